"""Failure modes 53 to 61: a sound head on a backbone, a grid or a normalisation that it was not trained with."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from dinoneck import (
    Backbone,
    CLSGatingHead,
    FPNHead,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    wrap_backbone,
)
from dinoneck.data import Preprocessing
from dinoneck.inference.tta import VIEWS

SMALL3, BASE3, PLUS3 = "vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_small_plus_patch16_dinov3"
SMALL2, SMALL2_REG = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
SIZE = (32, 48)


def tiny(**options: Any) -> Backbone:
    """A new built-in backbone: 64 channels, patch 16, CLS and 2 registers, 4 blocks."""
    return load_backbone("dinoneck_tiny", **options)


@functools.cache
def record(name: str) -> dict[str, Any]:
    """The record of a published architecture, which is built without its memory."""
    with torch.device("meta"):
        return load_backbone(name, pretrained=False).record()


def other_vit(patch: int = 16, registers: int = 2, width: int = 64) -> Backbone:
    """A backbone that is like the built-in one but for what is given."""
    import timm

    torch.manual_seed(0)
    options = {"depth": 4, "num_heads": 1, "init_values": 1e-5, "dynamic_img_size": True, "num_classes": 0}
    vit = timm.models.VisionTransformer(
        img_size=4 * patch, patch_size=patch, embed_dim=width, reg_tokens=registers, **options
    )
    return wrap_backbone(vit)


def photo() -> Tensor:
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))


def file_of(folder: Path, backbone: Backbone | Mapping[str, Any] | None, name: str = "h", **options: Any) -> Path:
    """A head file that was trained on a backbone, or says so."""
    width = backbone.embed_dim if isinstance(backbone, Backbone) else (backbone or {"embed_dim": 64})["embed_dim"]
    torch.manual_seed(0)
    head = options.pop("head", None) or PatchMeanHead(width, [Task("a", unit="g")])
    path = folder / f"{name}.safetensors"
    HeadCheckpoint.from_module(head, backbone=backbone, **options).save(path)
    return path


def unrecorded(folder: Path) -> None:
    """A head of another width whose file does not state its backbone, which the Predictor warns of."""
    file = file_of(folder, None, head=PatchMeanHead(32, [Task("a")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        Predictor(file, tiny())(photo())


def checked(
    trained: Callable[[], Backbone | Mapping[str, Any]],
    given: Callable[[], Backbone | Mapping[str, Any]],
    probe: bool = False,
) -> Callable[[Path], None]:
    """Save a head of one backbone, load it and ask for another."""

    def run(folder: Path) -> None:
        HeadCheckpoint.load(file_of(folder, trained())).check_backbone(given(), probe)

    return run


def predicted(
    trained: Callable[[], Backbone], given: Callable[[], Backbone], probe: bool = False
) -> Callable[[Path], None]:
    """Save a head of one backbone and predict with another; what passes has to answer as with its own."""

    def run(folder: Path) -> None:
        path = file_of(folder, trained())
        answer = Predictor(path, given(), probe=probe)(photo())
        if answer != Predictor(path, trained())(photo()):
            raise Missed("another backbone was taken and answers otherwise")

    return run


WAYS = {"check": checked, "predict": predicted}


def changed(known: str, **entries: Any) -> Callable[[], dict[str, Any]]:
    return lambda: record(known) | entries


def of(name: str) -> Callable[[], dict[str, Any]]:
    return lambda: record(name)


def pair(name: str, trained: str, given: str, message: str) -> Case:
    """Two published architectures."""
    return Case(name, "pairing", checked(of(trained), of(given)), message)


def seen(message: str, **differs: Any) -> tuple[Case, ...]:
    """The built-in backbone, and one that differs in this, asked for and predicted with, both ways."""
    return tuple(
        case
        for way, build in WAYS.items()
        for case in (
            Case(f"{way}: another for the built-in", "pairing", build(tiny, lambda: other_vit(**differs)), message),
            Case(f"{way}: the built-in for another", "pairing", build(lambda: other_vit(**differs), tiny), message),
        )
    )


# -- 57, 58: layers and norm ------------------------------------------------------------------------------------------


def fpn_on(layers: list[int]) -> Callable[[Path], None]:
    """A head that reads blocks 0 and 3, saved with a backbone of these."""

    def run(folder: Path) -> None:
        head = FPNHead(64, [Task("a")], 2, layer_indices=(0, 3), fpn_dim=8, num_levels=2)
        file_of(folder, tiny(layers=layers), head=head)

    return run


def raw() -> Backbone:
    return tiny(norm=False)


def layers_are_asked_for(folder: Path) -> None:
    """A predictor takes the layers it needs from a backbone that gives others."""
    predicted(lambda: tiny(layers=[1]), lambda: tiny(layers=[0, 3]))(folder)


# -- 59: grids --------------------------------------------------------------------------------------------------------


def gated(folder: Path, inputs: bool = True, mode: str = "mlp") -> Path:
    """A head whose gate scores 2 x 3 places."""
    places = {"mlp": 6, "resized": (2, 3), "query": None}[mode]
    head = CLSGatingHead(64, [Task("a", unit="g")], mode=mode, num_patches=places, hidden_dim=8)  # type: ignore[arg-type]
    backbone = tiny()
    preprocess = backbone.preprocess.changed(size=SIZE) if inputs else None
    return file_of(folder, backbone, head=head, preprocess=preprocess)


def on_photos_of(*size: int) -> Callable[[Path], None]:
    """Predict with photos prepared in another size than the file says."""

    def run(folder: Path) -> None:
        path, backbone = gated(folder), tiny()
        Predictor(path, backbone, preprocess=backbone.preprocess.changed(size=size))(photo())

    return run


def tokens_of(*size: int) -> Callable[[Path], None]:
    """Feed the head itself with the tokens of a photo of another size."""
    return lambda folder: HeadCheckpoint.load(gated(folder)).build()(tiny()(torch.zeros(1, 3, *size)))


def in_tiles(folder: Path) -> None:
    """Tiles of another form, of as many patches."""
    Predictor(gated(folder), tiny(), preprocess=tiny().preprocess.changed(size=(48, 32)), tile=(48, 32))(
        torch.rand(3, 96, 96)
    )


def brought_to_its_size(folder: Path) -> None:
    """A photo of any size is brought to the size that the file says."""
    large = photo().repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    predictor = Predictor(gated(folder), tiny())
    [one], [other] = predictor(photo()), predictor(large)
    if abs(one["a"] - other["a"]) > 1e-5:
        raise Missed(f"the same photo twice as large gives {other['a']}, not {one['a']}")


def gates_of_any_grid(folder: Path) -> None:
    """Gates that know their grid, or need none, take quarter turns: the mean over the views, asked one by one."""
    backbone = tiny()
    images = backbone.preprocess(photo())
    for mode in ("resized", "query"):
        path = gated(folder, mode=mode)
        head = HeadCheckpoint.load(path).build()
        said = [head.predict(backbone(view.apply(images)))["a"].item() for view in VIEWS["d6"]]  # type: ignore[operator]
        [row] = Predictor(path, backbone, tta="d6")(photo())
        if abs(row["a"] - sum(said) / len(said)) > 1e-5:
            raise Missed(f"{mode}: the predictor says {row['a']}, the views one by one {said}")


def other_patch(folder: Path) -> None:
    """Photos prepared for patches of another size than the backbone's; the photo's size suits both."""
    file_of(folder, tiny(), preprocess=Preprocessing(patch_size=14, size=(112, 112)))


def other_patch_at_prediction(folder: Path) -> None:
    Predictor(file_of(folder, tiny()), tiny(), preprocess=Preprocessing(patch_size=14, size=(112, 112)))


# -- 60: weights ------------------------------------------------------------------------------------------------------


def trained_on() -> Backbone:
    """The right backbone, one of whose matrices has moved by 5 %: trained on, and not told."""
    backbone = tiny()
    with torch.no_grad():
        weight = backbone.adapter.model.blocks[0].mlp.fc1.weight
        weight.add_(0.05 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return backbone


def swapped() -> Backbone:
    """The right weights, two blocks exchanged."""
    backbone = tiny()
    blocks = backbone.adapter.model.blocks
    one, other = blocks[0].state_dict(), blocks[1].state_dict()
    one = {key: value.clone() for key, value in one.items()}
    blocks[0].load_state_dict(other)
    blocks[1].load_state_dict(one)
    return backbone


def with_lora() -> Backbone:
    return tiny().add_lora(rank=2)


def without_a_probe(folder: Path) -> None:
    """A file that was saved with the record alone holds no probe to compare."""
    HeadCheckpoint.load(file_of(folder, tiny().record())).check_backbone(tiny(), probe=True)


def without_a_record(folder: Path) -> None:
    HeadCheckpoint.load(file_of(folder, None)).check_backbone(tiny())


# -- 61: normalisation ------------------------------------------------------------------------------------------------


def normalising(mean: float, std: float) -> Callable[[], Backbone]:
    def build() -> Backbone:
        backbone = tiny()
        backbone.preprocess = backbone.preprocess.changed(mean=(mean,) * 3, std=(std,) * 3)
        return backbone

    return build


def the_file_decides(folder: Path) -> None:
    """A head trained on photos prepared otherwise than the backbone's own way gets them that way again."""
    backbone = tiny()
    prepared = backbone.preprocess.changed(size=SIZE, mean=(0.1,) * 3, std=(0.9,) * 3)
    path = file_of(folder, backbone, preprocess=prepared)
    with torch.no_grad():
        wanted = HeadCheckpoint.load(path).build().predict(backbone(prepared(photo())))["a"].item()  # type: ignore[operator]
    [row] = Predictor(path, tiny())(photo())
    if abs(row["a"] - wanted) > 1e-5:
        raise Missed(f"prepared as in training the head says {wanted}, the predictor {row['a']}")


def heads_that_disagree(folder: Path) -> None:
    backbone = tiny()
    ways = {"one": backbone.preprocess, "other": backbone.preprocess.changed(std=(0.5, 0.5, 0.5))}
    Predictor([file_of(folder, backbone, name, preprocess=way) for name, way in ways.items()], backbone)


MODES = [
    Mode(53, "backbone of another family", (
        Case("the right one", HARMLESS, checked(of(SMALL3), of(SMALL3))),
        Case("the right one predicts", HARMLESS, predicted(tiny, tiny)),
        pair("DINOv2 for DINOv3", SMALL3, SMALL2_REG, f"this is '{SMALL2_REG}'"),
        pair("DINOv3 for DINOv2", SMALL2_REG, SMALL3, f"this is '{SMALL3}'"),
        Case("same geometry, another family", "pairing",
             checked(of(SMALL3), changed(SMALL3, name=SMALL2_REG, family="dinov2")), "model: the head was trained on"),
        Case("a file that does not say", "pairing", without_a_record, "does not say which backbone"),
    )),
    Mode(54, "backbone of another size", (
        pair("ViT-B for ViT-S", SMALL3, BASE3, "token width: the head was trained on 384, this backbone has 768"),
        pair("ViT-S for ViT-B", BASE3, SMALL3, "token width: the head was trained on 768, this backbone has 384"),
        pair("ViT-S+ for ViT-S: the same width and depth", SMALL3, PLUS3, f"this is '{PLUS3}'"),
        *seen("token width", width=32),
        Case("deeper", "pairing", checked(of(SMALL3), changed(SMALL3, depth=24)), "number of blocks"),
        Case("saved with one it cannot read", "pairing",
             lambda folder: file_of(folder, tiny(), head=PatchMeanHead(32, [Task("a")])), "channels"),
        Case("a head without a record", "ShapeError",
             lambda folder: predicted(tiny, tiny)(folder) or unrecorded(folder),  # type: ignore[func-returns-value]
             "another backbone"),
    )),
    Mode(55, "patches of 14 px for 16", (
        pair("14 for 16", SMALL3, SMALL2_REG, "patch size: the head was trained on [16, 16], this backbone has [14"),
        pair("16 for 14", SMALL2_REG, SMALL3, "patch size: the head was trained on [14, 14], this backbone has [16"),
        *seen("patch size", patch=14),
    )),
    Mode(56, "0 registers for 4", (
        pair("0 for 4", SMALL2_REG, SMALL2, "register tokens: the head was trained on 4, this backbone has 0"),
        pair("4 for 0", SMALL2, SMALL2_REG, "register tokens: the head was trained on 0, this backbone has 4"),
        *seen("register tokens", registers=0),
    )),
    Mode(57, "other layers", (
        Case("another layer", "pairing", checked(tiny, lambda: tiny(layers=[1])), "layers: the head was trained on"),
        Case("more layers", "pairing", checked(tiny, lambda: tiny(layers=2)), "layers: the head was trained on"),
        Case("another order", "pairing", checked(lambda: tiny(layers=[0, 1]), lambda: tiny(layers=[1, 0])), "layers"),
        Case("saved with too few", "pairing", fpn_on([3]), "reads blocks (0, 3), the backbone gives blocks (3,)"),
        Case("saved with the right ones", HARMLESS, fpn_on([0, 3])),
        Case("the predictor asks for the right ones", HARMLESS, layers_are_asked_for),
    )),
    Mode(58, "normed tokens for raw ones", (
        Case("raw for raw", HARMLESS, predicted(raw, raw)),
        *(Case(f"{way}: {name}", "pairing", build(*backbones), "final norm applied: the head was trained on")
          for way, build in WAYS.items()
          for name, backbones in {"raw for normed": (tiny, raw), "normed for raw": (raw, tiny)}.items()),
    )),
    Mode(59, "another patch grid than the head is bound to", (
        Case("brought to its size", HARMLESS, brought_to_its_size),
        Case("another number of patches", "pairing", on_photos_of(48, 48), "2 rows x 3 cols; it is given 3 x 3"),
        Case("as many patches, turned", "pairing", on_photos_of(48, 32), "2 rows x 3 cols; it is given 3 x 2"),
        Case("as many patches in one row", "pairing", on_photos_of(16, 96), "2 rows x 3 cols; it is given 1 x 6"),
        Case("views that turn", "pairing", lambda folder: Predictor(gated(folder), tiny(), tta="d6")(photo()), "turn"),
        Case("views that turn, and no size in the file", "pairing",
             lambda folder: Predictor(gated(folder, inputs=False), tiny(), tta="d6")(photo()), "turn"),
        Case("tiles of another form", "pairing", in_tiles, "2 rows x 3 cols; it is given 3 x 2"),
        Case("a photo of another size and no size in the file", "ShapeError",
             lambda folder: Predictor(gated(folder, inputs=False), tiny())(torch.rand(3, 64, 64)), "for 6 places"),
        Case("the head itself, another number", "ShapeError", tokens_of(48, 48), "built for 6 places"),
        Case("gates of any grid", HARMLESS, gates_of_any_grid),
        Case("prepared for other patches", "pairing", other_patch, "14x14 px (height x width), the backbone has 16"),
        Case("prepared for other patches when used", "pairing", other_patch_at_prediction, "the backbone has 16x16"),
        Case("the patch does not divide the photo", "GridError",
             lambda folder: Predictor(file_of(folder, tiny()), tiny())(torch.rand(3, 33, 48)), "33"),
    )),
    Mode(60, "other weights of the same shape", (
        Case("the right ones, by what they do", HARMLESS, predicted(tiny, tiny, True)),
        Case("the right ones in bfloat16", HARMLESS, checked(tiny, lambda: tiny(dtype=torch.bfloat16), True)),
        *(Case(f"{way}: {name}", "pairing", build(tiny, given, probe), message)
          for way, build in WAYS.items()
          for name, given, probe, message in (
            ("another seed", lambda: tiny(seed=1), False, "weights: the head was trained on seeded random weights"),
            ("another seed, by what it does", lambda: tiny(seed=1), True, "does something else"),
            ("another seed in bfloat16", lambda: tiny(seed=1, dtype=torch.bfloat16), True, "does something else"),
            ("trained on", trained_on, False, "changed by training"),
            ("trained on, by what it does", trained_on, True, "does something else"),
            ("two blocks exchanged", swapped, False, "changed by training"),
            ("two blocks exchanged, by what they do", swapped, True, "does something else"),
            ("with LoRA weights", with_lora, False, "LoRA: this backbone has LoRA weights"),
        )),
        Case("without its LoRA weights", "pairing", checked(with_lora, tiny), "its file holds them"),
        Case("no probe in the file", "pairing", without_a_probe, "holds no functional probe"),
        Case("a record for a probe", "pairing", checked(tiny, lambda: tiny().record(), True), "the backbone itself"),
    )),
    Mode(61, "another mean and standard deviation", (
        Case("mean", "pairing", checked(tiny, normalising(0.5, 0.229)), "normalisation: the head's backbone"),
        Case("std", "pairing", checked(tiny, normalising(0.485, 0.5)), "normalisation: the head's backbone"),
        Case("predicting", "pairing", predicted(tiny, normalising(0.5, 0.5)), "normalisation: the head's backbone"),
        Case("by what it does, but this", "pairing", checked(tiny, normalising(0.5, 0.5), True), "normalisation"),
        Case("two heads that disagree", "pairing", heads_that_disagree, "std [0.229, 0.224, 0.225] / [0.5, 0.5, 0.5]"),
        Case("the file decides", HARMLESS, the_file_decides),
    )),
]  # fmt: skip
