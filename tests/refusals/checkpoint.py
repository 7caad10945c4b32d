"""What head files refuse.

Modules, records and backbones when they are saved, weights of others, names for the Hub.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    CLSGatingHead,
    ConfigError,
    FeatureStore,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    MaskHead,
    PatchMeanHead,
    PatchMeanMLP,
    StoreError,
    Task,
    import_weights,
    registry,
    save_head,
    wrap_backbone,
)
from dinoneck.checkpoint import push_to_hub
from dinoneck.checkpoint.format import head_files
from dinoneck.data import Preprocessing
from dinoneck.layers.inputs import Origin
from dinoneck.weight_files import read_state
from tests import kit
from tests.refusals import Row
from tests.unit.backbones.official_objects import Dinov2Like

BIAS = "mlps.0.out.bias"


def trained_on(**origin: Any) -> PatchMeanHead:
    """A head that notes what it was trained on."""
    head = kit.head()
    head.note_origin(Origin(**origin))
    return head


def save(folder: Path, module: Any = None, **meta: Any) -> None:
    save_head(folder / "h.safetensors", kit.head() if module is None else module, **meta)


def trained_backbone() -> Backbone:
    backbone = kit.backbone()
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.1)
    return backbone


def tuned_elsewhere(folder: Path) -> None:
    """Save a head whose backbone was trained, without the backbone's weights."""
    save(folder, backbone=trained_backbone())


def compiled_part(folder: Path) -> None:
    """Save a head of which a part is wrapped by torch.compile."""
    head: Any = kit.head()
    head.mlps[0] = torch.compile(head.mlps[0])
    save(folder, head)


def parametrised_part(folder: Path) -> None:
    """Save a head of which a weight is computed from others."""
    head: Any = kit.head()
    nn.utils.parametrizations.spectral_norm(head.mlps[0].hidden)
    save(folder, head)


def other_patches(folder: Path) -> None:
    """Save a head on a backbone with patches of 16 px, and images for patches of 14 px."""
    save(folder, backbone=kit.backbone(), preprocess=Preprocessing(size=(28, 28), patch_size=14))


def other_channels(folder: Path) -> None:
    """Save a head on a backbone of RGB images, and images of four channels."""
    recipe = Preprocessing(16, mean=(0.5,) * 4, std=(0.2,) * 4)
    save(folder, backbone=kit.backbone(), preprocess=recipe)


def pyramid_of_other_patches(folder: Path) -> None:
    """Save a head whose neck is built for patches of 14 px on a backbone with patches of 16 px."""
    save(folder, FPNHead(64, [Task("x")], num_layers=1, patch_size=14), backbone=kit.backbone())


def views_of_objects(folder: Path) -> None:
    """Save a head of instances with views whose predictions have no mean."""
    leaf = Task("leaf", dim=1, kind="instances")
    head = MaskHead(64, [leaf], num_layers=1, num_queries=2, dim=32)
    save(folder, head, backbone=kit.backbone(), tta="flip4")


def turned_views_of_places(folder: Path) -> None:
    """Save a head that scores the places of a grid of 2 x 3 patches with views that turn it."""
    head = CLSGatingHead(64, [Task("x")], num_patches=6, mode="mlp")
    vit = kit.backbone()
    save(folder, head, backbone=vit, preprocess=vit.preprocess.changed(size=(32, 48)), tta="d6")


def turned_views_of_oblong_patches(folder: Path) -> None:
    """Save a head on patches that are no squares with views that turn them."""
    save(folder, backbone={**kit.backbone().record(), "patch_size": [16, 8]}, tta="d6")


def other_rotary_periods(folder: Path) -> None:
    """Save a head whose backbone's rotary periods were changed by hand, without its weights."""
    vit = kit.backbone()
    vit.adapter.model.rope.periods.mul_(2.0)
    save(folder, backbone=vit)


def with_a_classifier(folder: Path) -> None:
    """Save a head with the weights of a wrapped model that has a classifier."""
    model: Any = kit.backbone().adapter.model
    model.reset_classifier(4)
    vit = wrap_backbone(model)
    save(folder, backbone=vit, backbone_weights=vit.state_dict())


def official_object(folder: Path) -> None:
    """Ask for the backbone of a head that was trained on an object of the dinov2 repository."""
    vit = wrap_backbone(Dinov2Like())
    head = PatchMeanHead(vit.embed_dim, [Task("x")])
    save(folder, head, backbone=vit, backbone_weights=vit.state_dict())
    HeadCheckpoint.load(folder / "h.safetensors").load_backbone()


def with_bias(value: float) -> PatchMeanHead:
    head = kit.head()
    nn.init.constant_(head.get_parameter(BIAS), value)
    return head


def tied() -> PatchMeanHead:
    head = kit.head(Task("a"), Task("b"))
    head.mlps[1].hidden = head.mlps[0].hidden
    return head


def grown() -> PatchMeanHead:
    head = kit.head()
    head.extra = nn.Linear(1, 1)
    return head


def with_buffer(value: torch.Tensor) -> PatchMeanHead:
    head = kit.head()
    head.register_buffer("extra", value)
    return head


class Remembering(PatchMeanHead):
    """A head with a state of its own."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def remembering() -> Remembering:
    if "remembering" not in registry.names():
        registry.register(Remembering)
    return Remembering(64, [Task("x")])


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return PatchMeanMLP(4)


def checked(backbone: Any, own: Any = None, **options: Any) -> None:
    """Compare a backbone, or changes of a record, with that of a saved head."""
    trained = kit.backbone() if own is None else own
    given = trained.record() | backbone if isinstance(backbone, dict) else backbone
    HeadCheckpoint.from_module(kit.head(), backbone=trained).check_backbone(given, **options)


def tuned(**options: Any) -> HeadCheckpoint:
    """A head on LoRA tokens."""
    return made(kit.backbone(**options).add_lora(2))


def made(record: Any, module: Any = None) -> HeadCheckpoint:
    return HeadCheckpoint.from_module(module or kit.head(), backbone=record)


def imported(folder: Path, content: Any = None, rename: Any = None, **changes: Any) -> Any:
    """Import the weights of another head, changed, or other content."""
    own = {**kit.head(seed=1).state_dict(), **changes}
    torch.save(
        {key: value for key, value in own.items() if value is not None}
        if content is None
        else content,
        folder / "w.pth",
    )
    return import_weights(kit.head(), folder / "w.pth", rename)


def pushed(folder: Path, repo_id: Any = "me/one", *figures: str, **options: Any) -> Any:
    for name in ("a.png", "x](y).png", "in/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
    (folder / "b.png").write_bytes(b"<script>")
    file = kit.saved_head(folder / "h.safetensors")
    return push_to_hub(file, repo_id, figures=[folder / name for name in figures], **options)


def shared(folder: Path) -> Any:
    one = torch.ones(1 << 10)
    torch.save({f"a{i}": one for i in range(100)}, folder / "a.pt")
    return read_state(folder / "a.pt")


def compressed(folder: Path) -> Any:
    """Import weights of which the zip file was packed again."""
    torch.save({"a": torch.zeros(1 << 14)}, folder / "plain.pth")
    with (
        zipfile.ZipFile(folder / "plain.pth") as plain,
        zipfile.ZipFile(folder / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return import_weights(kit.head(), folder / "packed.pth")


def import_from_a_pipe(folder: Path) -> Any:
    os.mkfifo(folder / "w.pth")
    return import_weights(kit.head(), folder / "w.pth")


ROWS: list[Row] = [
    (lambda folder: save(folder, nn.Linear(1, 1)), CheckpointError, "Linear"),
    (lambda folder: save(folder, nn.DataParallel(kit.head())), CheckpointError, "DataParallel"),
    (lambda folder: save(folder, with_bias(torch.nan)), CheckpointError, BIAS),
    (lambda folder: save(folder, tied()), CheckpointError, "share their memory"),
    (lambda folder: save(folder, grown()), CheckpointError, "extra.bias"),
    (lambda folder: save(folder, on_meta()), CheckpointError, ("hidden.weight", "device='cpu'")),
    (
        lambda folder: save(folder, with_buffer(torch.zeros(2, 2).to_sparse())),
        CheckpointError,
        ("extra", "sparse", "to_dense()"),
    ),
    (
        lambda folder: save(folder, with_buffer(torch.zeros(2, dtype=torch.complex64))),
        CheckpointError,
        ("extra", "complex64", "float32"),
    ),
    (
        lambda folder: save(folder, remembering()),
        CheckpointError,
        ("Remembering", "get_extra_state", "buffers"),
    ),
    (lambda folder: save(folder, extra=[1]), CheckpointError, ("extra", "list", "dict")),
    (
        lambda folder: save(folder, backbone_weights=[1]),
        CheckpointError,
        ("backbone_weights", "list", "state dict"),
    ),
    (tuned_elsewhere, CheckpointError, ("changed by training", "backbone_weights=")),
    (
        lambda folder: save(folder, backbone=trained_backbone().record()),
        CheckpointError,
        ("changed by training", "backbone_weights=the state dict"),
    ),
    (compiled_part, CheckpointError, ("torch.compile", "mlps.0", "_orig_mod")),
    (parametrised_part, CheckpointError, ("parametrize", "mlps.0.hidden", "'weight'")),
    (other_patches, CheckpointError, ("14x14", "16x16", "preprocess=")),
    (other_channels, CheckpointError, ("4 channels", "takes 3", "preprocess=")),
    (pyramid_of_other_patches, CheckpointError, ("FPNHead", "16 px", "14 px")),
    (views_of_objects, CheckpointError, ("'flip4'", "'leaf'", "tta=")),
    (turned_views_of_places, CheckpointError, ("'d6'", "2 rows x 3 cols", "tta='flip4'")),
    (turned_views_of_oblong_patches, CheckpointError, ("'d6'", "16x8", "tta='flip4'")),
    (other_rotary_periods, CheckpointError, ("rope.periods", "backbone_weights=")),
    (with_a_classifier, CheckpointError, ("head.weight", "reset_classifier(0)")),
    (official_object, CheckpointError, ("'Dinov2Like'", "wrap_backbone(model)")),
    (
        lambda folder: save(folder, trained_on(source="0123456789abcdef"), backbone=kit.backbone()),
        CheckpointError,
        ("fingerprint 0123456789abcdef", "pass the backbone that made the tokens"),
    ),
    (
        lambda folder: save(folder, trained_on(layers=(2,)), backbone=kit.backbone()),
        CheckpointError,
        ("the last of the layers: 2 / 5", "with_layers([2]"),
    ),
    (
        lambda folder: save(
            folder,
            HeadEnsemble([trained_on(normed=True), trained_on(normed=False)]),
            backbone=kit.backbone(),
        ),
        CheckpointError,
        ("different backbones", "final norm applied: True / False", "Predictor({"),
    ),
    (
        lambda folder: save(
            folder,
            HeadEnsemble(
                [
                    trained_on(images=kit.backbone().preprocess.record()),
                    trained_on(images=kit.backbone().preprocess.changed(size=(16, 32)).record()),
                ]
            ),
            backbone=kit.backbone(),
        ),
        CheckpointError,
        ("prepared in different ways", "size: (16, 32) / that of each image", "pass preprocess="),
    ),
    (
        lambda folder: save(
            folder,
            trained_on(images=kit.backbone().preprocess.changed(size=(16, 32)).record()),
            backbone=kit.backbone(),
            preprocess=kit.backbone().preprocess,
        ),
        CheckpointError,
        ("size: (16, 32) / that of each image", "leave preprocess= out"),
    ),
    (lambda folder: save_head(kit.head(), folder), CheckpointError, "save_head(path, module)"),  # type: ignore[arg-type]
    *(
        (lambda folder, meta=meta: save(folder, **meta), CheckpointError, "extra")
        for meta in (
            {"extra": {"note": object()}},
            {"extra": {1: 2}},
            {"extra": {"note": "\ud800"}},
            {"extra": {"note": "x" * 20000}},
        )
    ),
    (lambda folder: save(folder, preprocess={"size": 3}), CheckpointError, "inputs.size"),
    (
        lambda folder: save(folder, preprocess={**Preprocessing().record(), "std": None}),
        CheckpointError,
        "std is None",
    ),
    (lambda folder: save(folder, backbone="tiny"), CheckpointError, "backbone"),
    (lambda folder: save(folder, tta="nope"), CheckpointError, ("'nope'", "none, flip4, d6")),
    (
        lambda: made(kit.backbone(), PatchMeanHead(8, [Task("x")])),
        CheckpointError,
        ("8 channels", "the backbone gives 64"),
    ),
    (
        lambda: made(kit.backbone(), FPNHead(64, [Task("x")], 3, layer_indices=[1, 2, 3])),
        CheckpointError,
        ("blocks [1, 2, 3]", "gives blocks [5]", "load_backbone(layers=...)"),
    ),
    (
        lambda: made(kit.backbone(), FPNHead(64, [Task("x")], 3)),
        CheckpointError,
        ("3 layers", "gives blocks [5]", "load_backbone(layers=...)"),
    ),
    *(
        (lambda own=own: made(own), CheckpointError, "expected")
        for own in ({"name": 5}, {"weights": "x"}, {"layers": "all"}, {"norm": 1})
    ),
    (lambda: made({**kit.backbone().record(), "license": 3}), CheckpointError, "licences"),
    (lambda: made(None).load_backbone(), CheckpointError, "backbone"),
    (lambda: made(None).build(device="gpu0"), ConfigError, "'gpu0'"),
    (lambda: made(None).build(dtype="bf16"), ConfigError, ("'bf16'", "torch.bfloat16")),
    (lambda: made(None).build(dtype=torch.int8), ConfigError, ("torch.int8", "floating-point")),
    (
        lambda: made(None).check_backbone(kit.backbone()),
        CheckpointError,
        "does not name the backbone",
    ),
    (lambda: checked(kit.backbone(seed=1)), CheckpointError, ("seed 0", "seed 1")),
    (
        lambda: checked(kit.backbone(seed=1, dtype=torch.bfloat16)),
        CheckpointError,
        ("seed 0", "seed 1", "dtype=torch.float32", "probe=True"),
    ),
    (lambda: checked({"mean": [0.4, 0.4, 0.4]}), CheckpointError, ("0.4", "changed(mean=")),
    (lambda: checked(kit.backbone().with_layers([1])), CheckpointError, "layers"),
    (lambda: checked(kit.backbone(norm=False)), CheckpointError, "final norm"),
    (lambda: checked({"name": "other", "weights_sha256": None}), CheckpointError, "'other'"),
    (lambda: checked("x"), CheckpointError, "str"),
    (lambda: checked({}, probe=True), CheckpointError, "record"),
    (
        lambda: made(kit.backbone().record()).check_backbone(kit.backbone(), probe=True),
        CheckpointError,
        "probe",
    ),
    (
        lambda: made(kit.backbone()).check_backbone(kit.backbone().add_lora(2)),
        CheckpointError,
        ("LoRA", "trained without", "load the backbone again"),
    ),
    (lambda: tuned().check_backbone(kit.backbone()), CheckpointError, "apply_adapter"),
    (
        lambda: tuned().check_backbone(kit.backbone().add_lora(2, seed=1)),
        CheckpointError,
        ("LoRA", "load the backbone again", "apply_adapter"),
    ),
    (lambda: tuned().apply_adapter(kit.backbone(seed=1)), CheckpointError, "seed 1"),
    (
        lambda: tuned().apply_adapter(kit.backbone(source="transformers")),
        CheckpointError,
        ("LoRA", "source='timm'"),
    ),
    (
        lambda: tuned().apply_adapter(kit.backbone().add_lora(3)),
        CheckpointError,
        "LoRA weights of its own",
    ),
    (
        lambda: made(kit.backbone()).apply_adapter(kit.backbone()),
        CheckpointError,
        "no LoRA weights",
    ),
    (
        lambda: made(kit.backbone().add_lora(2).record()),
        CheckpointError,
        "pass the Backbone itself",
    ),
    *(
        (lambda own=own: checked(own), CheckpointError, str(*own.values()))
        for own in (
            {"embed_dim": 65},
            {"patch_size": [14, 14]},
            {"num_registers": 4},
            {"num_cls": 0},
            {"depth": 12},
            {"pos_embed": "official"},
        )
    ),
    (lambda: head_files(""), CheckpointError, "''"),
    (lambda: head_files(kit.head()), CheckpointError, ("a PatchMeanHead", "a Path")),  # type: ignore[arg-type]
    (
        lambda: push_to_hub(kit.head(), "me/one"),
        CheckpointError,
        ("a PatchMeanHead", "head.push_to_hub"),
    ),  # type: ignore[arg-type]
    (lambda: FeatureStore.open(""), StoreError, "''"),
    *(
        (lambda folder, own=own: imported(folder, **own), CheckpointError, named)
        for own, named in (
            ({"more": torch.zeros(1)}, ("holds more", "no place")),
            ({"more": torch.zeros(1), BIAS: None}, (f"lacks {BIAS}", "holds more")),
            ({BIAS: torch.zeros(1, 9)}, "(1, 9)"),
            ({BIAS: torch.zeros(1).half()}, "float16"),
            ({BIAS: torch.zeros(1).long()}, "int64"),
            ({BIAS: torch.tensor([torch.nan])}, BIAS),
            ({BIAS: None}, f"lacks {BIAS}"),
            ({"x": print}, "print"),
            ({"content": [1, 2]}, "list"),
            ({"content": nn.Linear(2, 2)}, "Linear"),
            ({"content": {"weights": {}, "epoch": 3}}, "weights"),
            ({"rename": {"nothing.": ""}}, "'nothing.'"),
        )
    ),
    (lambda folder: imported(folder, rename=[("a.", "b.")]), CheckpointError, "rename is"),
    (lambda folder: import_weights(kit.head(), folder / "no.pth"), CheckpointError, "no.pth"),
    (lambda: import_weights("w.pth", kit.head()), CheckpointError, "str"),  # type: ignore[type-var, arg-type]
    (shared, BackboneError, "409600"),
    *(
        (lambda folder, own=own: pushed(folder, own), CheckpointError, repr(own))
        for own in ("one", "me/..")
    ),
    *(
        (
            lambda folder, own=own: pushed(folder, "me/one", *own),
            CheckpointError,
            own[-1].rpartition("/")[2],
        )
        for own in (["b.png"], ["x](y).png"], ["a.png", "in/a.png"])
    ),
    (lambda folder: pushed(folder, revision="0" * 40), CheckpointError, "0" * 40),
    (lambda folder: pushed(folder, terms=folder / "no.txt"), CheckpointError, "no.txt"),
    (lambda: push_to_hub("gone.safetensors", "me/one"), CheckpointError, "gone.safetensors"),
    # weights of others
    (
        lambda: import_weights(on_meta(), "w.pth"),
        CheckpointError,
        ("hidden.weight", "device='cpu'"),
    ),
    (
        lambda folder: imported(folder, rename={"mlps.0.hidden.": "mlps.0.out."}),
        CheckpointError,
        ("mlps.0.hidden.weight", "mlps.0.out.weight"),
    ),
    (compressed, CheckpointError, "packed.pth"),
    (import_from_a_pipe, CheckpointError, "pipe"),
    (lambda folder: import_weights(kit.head(), folder), CheckpointError, "folder"),
    (lambda: import_weights(kit.head(), ""), CheckpointError, "empty"),
]
