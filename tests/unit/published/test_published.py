"""Every published head: its publisher's file with random weights gives what the publisher's formula gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from safetensors.torch import save_file
from tests import kit
from tests.unit.published import official_files as official
from tests.unit.published.narrow import PATCH, WIDTH, narrowed
from torch import Tensor

from dinoneck import (
    BackboneError,
    CheckpointError,
    Predictor,
    Tokens,
    list_published,
    load_backbone,
    load_published,
)
from dinoneck.data import Preprocessing
from dinoneck.published import PublishedHead, names, table
from dinoneck.published.loading import translate

SAFE_READER = Version(torch.__version__) >= Version("2.10")
pytestmark = pytest.mark.skipif(
    not SAFE_READER, reason="torch before 2.10 does not read pickles without a known hash"
)
ROWS = [row for row in list_published() if isinstance(row, PublishedHead)]
ANYTHING = [row for row in ROWS if row.tuned]  # Depth Anything


SLOW = "chmv2|vit[bl]16.*pmt|vit[blg]14.*dpt|vitl14.*anything|tipsv2"  # large files


def tokens_of(row: table.PublishedHead, grid: tuple[int, int] = (5, 9)) -> Tokens:
    torch.manual_seed(0)
    prefix = 1 + row.model.registers
    shape = (1, prefix + grid[0] * grid[1], row.model.width)
    sequence = [torch.randn(shape, dtype=torch.float64) for _ in row.layers]
    return kit.tokens_from(
        sequence, *grid, prefix, row.model.patch, layers=row.layers, normed=row.norm
    )


def written(row: table.PublishedHead, folder: Path, state: dict[str, Tensor]) -> Path:
    """The publisher's file; safetensors where it has a hash, which random weights do not have, or is of transformers.

    The latter holds the backbone too.
    """
    if not (row.sha256 or row.tuned or row.only_safetensors):
        return Path(official.write(folder / "head.pth", state))
    shapes = official.backbone_shapes(row.model.width, row.model.depth) if row.tuned else {}
    save_file(state | official.random_state(shapes), folder / "head.safetensors")
    return folder / "head.safetensors"


def near(found: Tensor, expected: Tensor, bound: float) -> bool:
    """Relative to what varies: a mean over many bins is almost a constant."""
    return bool((found - expected).norm() <= bound * (expected - expected.mean()).norm())


def at_image_size(name: str, logits: Tensor, tokens: Tokens) -> Tensor:
    """The map of a DPT decoder at the size of the image: values and logits are resized, classes follow from these."""
    cells = official.values(name, logits)
    resized = F.interpolate(cells, size=tokens.image_size, mode="bilinear", align_corners=False)
    if name.endswith("normals"):
        return F.normalize(resized)
    if name.endswith("ade20k"):
        return resized.softmax(dim=1)
    return resized


def compare(
    row: table.PublishedHead, state: dict[str, Tensor], head: Any, grid: tuple[int, int], form: str
) -> None:
    tokens = tokens_of(row, grid)
    if form == "mask":
        exact, task = {key: value.double() for key, value in state.items()}, head.tasks[0].name
        found = head(tokens)
        both = official.mask_logits(exact, tokens, row.model.width // 64)
        for part, x in zip(("classes", "masks"), both, strict=True):
            assert near(found[f"{task}.{part}"], x, 1e-12)
        return
    bound = 1e-6 if any(is_norm(name) for name in state) else 1e-12  # folded in float32
    logits = official.logits(row.name, state, tokens)
    [(name, found)] = head.predict(tokens).items()
    if form == "dpt":
        assert near(head.logits(tokens)[0], logits, bound)
        expected = at_image_size(row.name, logits, tokens)
        assert near(found, expected, 1e-5 if "synthmix" in row.name else 1e-8)
        return
    if form == "depth":
        assert near(found, official.values(row.name, logits), 1e-9)
        head.bins = None  # which leaves the logits
    else:
        assert torch.allclose(found, logits.softmax(dim=1), rtol=0, atol=1e-6)
    assert near(head(tokens)[name], logits, bound)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.slow] * bool(re.search(SLOW, row.name)))
        for row in ROWS
    ],
)
def test_a_file_gives_what_its_publisher_computes(row: table.PublishedHead, tmp_path: Path) -> None:
    shapes, form = official.shapes_of(row.name)
    own = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    is_left_out = is_statistic if form == "mask" else is_norm  # folded where a linear layer follows
    assert row.size == sum(
        x.numel() for name, x in own.items() if not is_left_out(name) and not is_idle(name)
    )
    if row.size > 100_000_000:  # names and shapes only; the arithmetic follows at reduced width
        translate(own, row.build().state_dict(), "the file", rename=row.rename)
        return
    state = official.random_state(shapes)
    if row.tuned and row.model.width > 384:  # their backbones are large
        head: Any = row.build()
        head.load_state_dict(
            translate(state, head.state_dict(), "the file", rename=row.rename, dtype=torch.float64),
            assign=True,
        )
        compare(row, state, head, (5, 9), form)
        return
    checkpoint = load_published(row.name, weights=written(row, tmp_path, state))
    compare(row, state, checkpoint.build(dtype=torch.float64), (5, 9), form)
    assert checkpoint.meta["license"] == (None if row.licence == table.NOT_STATED else row.licence)
    assert checkpoint.meta["extra"]["published"] == row.name


def is_norm(name: str) -> bool:
    return ".bn." in name or "batchnorm" in name


def is_statistic(name: str) -> bool:
    return ".running_" in name or name.endswith("num_batches_tracked")


def is_idle(name: str) -> bool:
    return "layers.0.residual_layer1" in name or name.endswith("attn_mask_probs")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_file_of_any_head_that_does_not_fit_is_refused_by_name(row: table.PublishedHead) -> None:
    shapes, own = official.shapes_of(row.name)[0], row.build().state_dict()
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    needed = [
        name for name in state if not is_idle(name) and not name.endswith("num_batches_tracked")
    ]
    for name in (needed[0], needed[len(needed) // 2], needed[-1]):
        short = {key: value for key, value in state.items() if key != name}
        with pytest.raises(CheckpointError, match=rf"lacks {re.escape(name)}: "):
            translate(short, own, "the file", rename=row.rename)
        with pytest.raises(CheckpointError, match=re.escape(name)):
            translate(
                state | {name: torch.empty(*shapes[name], 2, device="meta")},
                own,
                "the file",
                rename=row.rename,
            )
    with pytest.raises(CheckpointError, match="aux_head"):
        translate(
            state | {"aux_head.weight": torch.empty(3, device="meta")},
            own,
            "the file",
            rename=row.rename,
        )


TIPSV2 = ["tipsv2_b14_depth", "tipsv2_b14_normals", "tipsv2_b14_ade20k"]
DECODERS = [
    "dinov3_vit7b16_synthmix_dpt",
    "dinov2_vits14_nyu_dpt",
    "dinov3_vitl16_sat_chmv2",
    ANYTHING[0].name,
]


@pytest.mark.parametrize("name", [*DECODERS, *TIPSV2])
@pytest.mark.parametrize("grid", [(7, 9), (8, 8), (1, 3)])
def test_decoders_at_reduced_width(name: str, grid: tuple[int, int]) -> None:
    """The batch norms of SYNTHMIX are folded, and odd grids double from their halves."""
    row, shapes = narrowed(table.row_named(name))
    state = official.random_state(shapes)
    head: Any = row.build()
    head.load_state_dict(
        translate(state, head.state_dict(), "the file", rename=row.rename, dtype=torch.float64),
        assign=True,
    )
    tokens = kit.tokens(1, *grid, width=WIDTH, layers=4, dtype=torch.float64)
    expected = official.logits(name, state, tokens)
    assert near(head.logits(tokens)[0], expected, 1e-12)


MAPS = ["dinov2_vits14_kitti_linear4", "dinov2_vits14_voc2012_linear", *DECODERS, ANYTHING[1].name]


@pytest.mark.parametrize("name", MAPS)
def test_padding_is_cut_off_before_maps_are_resized_to_the_image(name: str) -> None:
    """Against the formula's cells that show the image; bins vary little, and the difference is relative to that."""
    row, shapes = narrowed(table.row_named(name))
    state, head = official.random_state(shapes), row.build()
    head.load_state_dict(
        translate(state, head.state_dict(), "the file", rename=row.rename), assign=True
    )
    backbone = load_backbone("dinoneck_tiny", layers=range(6 - head.num_layers, 6), norm=row.norm)  # type: ignore[arg-type]
    image, own = (
        kit.images(1, 100, 150)[0],
        {key: row.inputs[key] for key in ("mean", "std") if key in row.inputs},
    )
    prepare = Preprocessing(patch_size=PATCH, resize="pad", pad_to="center", **own)
    tokens, classes = backbone(prepare([image])), head.tasks[0].kind == "segmentation"
    cells = official.values(name, official.logits(name, state, tokens))
    if row.head["type"] == "dpt":
        cells = F.interpolate(cells, size=tokens.image_size, mode="bilinear", align_corners=False)
    expected = official.cut(cells, prepare.placement((100, 150)))
    [result] = Predictor(head, backbone, preprocess=prepare)(
        image, maps="image", probabilities=classes
    )
    [found] = result["maps"].values()
    assert near(
        torch.as_tensor(found)[None], expected.softmax(dim=1) if classes else expected, 1e-4
    )


@pytest.mark.parametrize("head", ["imagenet_linear", "nyu_linear", "voc2012_linear", "nyu_dpt"])
@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "counts"])
def test_files_that_do_not_fit_are_refused_by_name(head: str, change: str, tmp_path: Path) -> None:
    name = f"dinov2_vits14_{head}"
    state = official.random_state(official.shapes_of(name)[0])
    tensor = next(key for key in state if key.endswith("weight"))
    if change == "missing":
        del state[tensor]
        tensor = f"lacks {tensor}: it is"
    elif change == "unknown":
        state[tensor := "decode_head.cls_seg.weight"] = torch.zeros(3)
    else:
        state[tensor] = (
            torch.zeros(3, 3) if change == "shape" else torch.zeros_like(state[tensor]).int()
        )
    with pytest.raises(CheckpointError, match=tensor):
        load_published(name, weights=official.write(tmp_path / "head.pth", state))


def test_files_that_are_not_the_head_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "dinov2_vits14_nyu_linear"
    state = official.random_state(official.shapes_of(name)[0])
    file, short = official.write(tmp_path / "head.pth", state), tmp_path / "short.pth"
    short.write_bytes(file.read_bytes()[:-2000])
    odd = official.write(
        tmp_path / "nan.pth", {key: value * float("nan") for key, value in state.items()}
    )
    # of equal names and shapes
    named = official.write(tmp_path / "dinov2_vits14_nyu_linear_head.pth", state)
    torch.save({"state_dict": print}, tmp_path / "code.pth")
    for own, path, word in (
        ("dinov2_vits14_nyu_linear5", file, "dinov2_vits14_nyu_linear5"),
        ("dinov3_vit7b16_imagenet_linear", file, "90d8ed92"),
        ("dinov2_vits14_kitti_linear4", file, "conv_depth"),
        ("dinov2_vits14_kitti_linear", named, name),
        (name, odd, "holds NaN or infinite values"),
        (name, short, "short.pth"),
        (name, tmp_path / "code.pth", "print"),
        (name, tmp_path / "nothing.pth", "nothing.pth"),
    ):
        with pytest.raises(CheckpointError, match=word):
            load_published(own, weights=path)
    with pytest.raises(CheckpointError, match="leave one of them out"):
        load_published(name, weights=file, revision="main")
    save_file(
        official.random_state(official.shapes_of(ANYTHING[0].name)[0]),
        tmp_path / "alone.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"the backbone in .* lacks blocks\."):
        load_published(ANYTHING[0].name, weights=tmp_path / "alone.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.9.1")  # its reader of pickles is not safe
    for path in (file, None):  # None: refused before it is downloaded
        with pytest.raises(CheckpointError, match=r"2\.9\.1"):
            load_published(name, weights=path)


def test_a_file_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row, download = (
        table.row_named("dinov2_vits14_nyu_linear"),
        mock.Mock(side_effect=OSError("no route")),
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(CheckpointError, match=row.url):
        load_published(row.name)
    state = official.random_state(official.shapes_of(row.name)[0])
    download.side_effect = lambda url, file, **_: official.write(file, state)
    assert load_published(row.name).meta["digest"] == load_published(row.name).meta["digest"]
    assert [call.args[0] for call in download.call_args_list] == [row.url] * 2
    with pytest.raises(CheckpointError, match="terms"):
        load_published("dinov3_vit7b16_imagenet_linear")
    with pytest.raises(CheckpointError, match="licence"):
        load_published("dinov3_vits16_coco_panoptic_pmt640")
    with pytest.raises(CheckpointError, match="revision"):
        load_published(row.name, revision="main")


def test_the_table_settles_the_traps() -> None:
    rows = {row.name: row for row in ROWS}
    assert rows["dinov2_vitl14_nyu_dpt"].layers == (4, 11, 17, 23)
    assert rows["dinov3_vitl16_sat_chmv2"].layers == (5, 11, 17, 23)
    assert rows["dinov3_vitl16_ade20k_semantic_pmt512"].layers == (5, 11, 17, 23)
    assert not rows["dinov2_vits14_kitti_linear4"].norm
    assert rows["dinov2_vits14_ade20k_ms"].norm
    assert rows["dinov3_vitl16_sat_chmv2"].inputs["mean"][0] == 0.420
    for head in TIPSV2:
        assert rows[head].norm
        assert rows[head].inputs["mean"] == (0, 0, 0)
        assert rows[head].inputs["std"] == (1, 1, 1)
        assert rows[head.replace("b14", "l14")].layers == (5, 11, 17, 23)
        assert rows[head.replace("b14", "so400m14")].layers == (6, 13, 20, 26)
    [task] = rows["dinov2_vits14_nyu_linear"].head["config"]["tasks"]
    assert task["maximum"] == 10.0
    assert {row.name for row in list_published("depth", "dinov3_vit7b16")} == {
        "dinov3_vit7b16_synthmix_dpt"
    }
    assert all(len(row.build().tasks[0].labels) in (0, 21, 80, 133, 150, 1000) for row in ROWS)


TABLES = {
    "DINOv2": names.DINOV2,
    "DINOv3": names.DINOV3,
    "Depth Anything": names.DEPTH_ANYTHING,
    "TIPSv2": names.TIPSV2,
    "PMT": names.PMT,
    "backbone": names.BACKBONE,
    "a block of the backbone": names.BACKBONE_LAYERS,
}


@pytest.mark.parametrize("beginnings", TABLES.values(), ids=TABLES.keys())
def test_the_order_of_a_publishers_names_does_not_matter(beginnings: dict[str, Any]) -> None:
    for name in beginnings:
        others = tuple(other for other in beginnings if other != name)
        assert not name.startswith(others)


IN_TRANSFORMERS = {
    "dinov2_vits14_imagenet_linear": "dinov2",
    "dinov2_vits14_nyu_dpt": "dpt",
    "dinov3_vitl16_sat_chmv2": "chmv2",
    ANYTHING[0].name: "depth_anything",
}


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_files_of_transformers_give_the_same_head(name: str) -> None:
    """Its modules are the peer: they load exactly the names that are translated here."""
    pytest.importorskip("transformers")
    from tests.unit.published import peers

    row, shapes = narrowed(table.row_named(name))
    state, head, model = official.random_state(shapes), row.build(), IN_TRANSFORMERS[name]
    theirs = {"backbone.norm": torch.zeros(3)}  # in the file too, and not read
    for key, value in state.items():
        own = official.transformers_name(key.removeprefix("decode_head."), model)
        theirs[
            f"classifier.{key}" if model == "dinov2" else key if model == "depth_anything" else own
        ] = value
    head.load_state_dict(
        translate(theirs, head.state_dict(), "the file", rename=row.rename, dtype=torch.float64),
        assign=True,
    )
    tokens = kit.tokens(1, 5, 9, width=WIDTH, layers=len(row.layers), dtype=torch.float64)
    expected = peers.logits_of(name, state, torch.float64)["transformers"](tokens)
    [found] = head.logits(tokens) if hasattr(head, "logits") else head(tokens).values()
    assert near(found, expected, 1e-10)


def depth_anything(row: table.PublishedHead) -> Any:
    """The module of transformers, on the meta device."""
    hf = pytest.importorskip("transformers")
    width, depth = row.model.width, row.model.depth
    own = row.head["config"]["neck"]["config"]
    vit = {
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "num_hidden_layers": depth,
        "image_size": 518,
    }
    out = [f"stage{layer + 1}" for layer in row.layers]
    stages = hf.Dinov2Config(**vit, patch_size=14, out_features=out, reshape_hidden_states=False)
    sizes = {"neck_hidden_sizes": own["hidden_sizes"], "fusion_hidden_size": own["out_channels"]}
    metric = (
        {"depth_estimation_type": "metric", "max_depth": 20} if row.name.endswith("indoor") else {}
    )
    config = hf.DepthAnythingConfig(
        backbone_config=stages, reassemble_hidden_size=width, **sizes, **metric
    )
    with torch.device("meta"):
        return hf.DepthAnythingForDepthEstimation(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dinov2_vits14_depth_anything_v2", "dinov2_vits14_depth_anything_v2_indoor"]
)
def test_depth_anything_brings_its_backbone(name: str, tmp_path: Path) -> None:
    """From an image on; 518 px is the size of its positions, which nothing has to resample there."""
    row = table.row_named(name)
    peer = depth_anything(row)
    state = official.random_state(
        {key: tuple(value.shape) for key, value in peer.state_dict().items()}
    )
    old = {
        key.replace("attention.q_proj", "attention.attention.query"): value
        for key, value in state.items()
    }
    save_file(old, tmp_path / "model.safetensors")
    peer.to_empty(device="cpu").load_state_dict(state)
    checkpoint = load_published(name, weights=tmp_path / "model.safetensors")
    backbone, images = checkpoint.load_backbone(), torch.randn(1, 3, 518, 518)
    with torch.no_grad():
        expected = peer(images).predicted_depth[:, None]
        found = checkpoint.build().predict(backbone(images))["depth"]  # type: ignore[operator]
    assert (found - expected).norm() <= 1e-4 * (expected - expected.mean()).norm()
    name = "backbone.encoder.layer.3.norm1.weight"
    for wrong in (
        {name: old[name][1:]},
        {"backbone.encoder.layer.77.norm1.weight": old[name].clone()},
    ):
        save_file(old | wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=r"blocks\.(3|77)\.norm1"):
            load_published(row.name, weights=tmp_path / "wrong.safetensors")
    with pytest.raises(BackboneError, match="weights"):
        checkpoint.build()(
            load_backbone("dinov2_vits14", pretrained=False, layers=row.layers)(
                images[..., :28, :28]
            )
        )
