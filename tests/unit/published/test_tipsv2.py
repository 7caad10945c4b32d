"""TIPSv2's heads: against transformers' classes, and their file, which holds three heads and often the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import kit
from tests.unit.published import official_files as official
from tests.unit.published.narrow import WIDTH, narrowed
from tests.unit.published.test_published import TIPSV2, near
from torch import Tensor

from dinoneck import (
    CheckpointError,
    DPTHead,
    DPTNeck,
    HeadCheckpoint,
    Predictor,
    Task,
    list_published,
    load_published,
)
from dinoneck.cli.main import main
from dinoneck.published import PublishedHead, table
from dinoneck.published.loading import translate

GRIDS = [(7, 9), (5, 12), (16, 22)]
ROWS = [row for row in list_published() if row.name.startswith("tipsv2")]
SIDES = (70, 100)  # of the image


def narrow_head(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Tensor]]:
    """A head on 64 channels with the random weights of its file, and the tensors of the file."""
    row, shapes = narrowed(table.row_named(name))
    state = official.random_state(shapes)
    head: Any = row.build()
    tensors = translate(state, head.state_dict(), "the file", rename=row.rename, dtype=dtype)
    head.load_state_dict(tensors, assign=True)
    return head, state


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", TIPSV2)
def test_a_narrow_head_gives_the_logits_of_transformers(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("transformers.models.tipsv2_dpt")
    from tests.unit.published import peers

    head, state = narrow_head(name, dtype)
    peer = peers.logits_of(name, state, dtype)["transformers"]
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    for grid in GRIDS:
        torch.manual_seed(grid[0])
        tokens = kit.tokens(2, *grid, width=WIDTH, layers=4, dtype=dtype)
        assert near(head.logits(tokens)[0], peer(tokens), bound)


def test_the_readout_with_exact_gelu_is_another_one() -> None:
    """So that the parity above would not hold with it."""
    head, _ = narrow_head("tipsv2_b14_normals", torch.float64)
    exact: Any = type(head).from_config(with_exact_gelu(head.config)).double()
    exact.load_state_dict(head.state_dict())
    tokens = kit.tokens(1, 7, 9, width=WIDTH, layers=4, dtype=torch.float64)
    assert not near(exact.logits(tokens)[0], head.logits(tokens)[0], 1e-5)


def with_exact_gelu(config: dict[str, Any]) -> dict[str, Any]:
    neck = config["neck"]
    return {
        **config,
        "neck": {**neck, "config": {**neck["config"], "readout_activation": "gelu"}},
    }


class OwnHead(DPTHead):
    """A class of a user, with fewer arguments."""

    def __init__(self, width: int) -> None:
        neck = DPTNeck(width, 1, 8, hidden_sizes=(8,))
        super().__init__(width, Task("depth", kind="dense"), neck, hidden_dim=4)


def test_a_configuration_of_earlier_versions_is_completed() -> None:
    neck = DPTNeck(WIDTH, 1, 8, hidden_sizes=(8,))
    earlier = {key: x for key, x in neck.config.items() if key != "readout_activation"}
    assert DPTNeck.current_config(earlier) == neck.config
    head = DPTHead(WIDTH, Task("depth", kind="dense"), neck)
    new = ("projection_activation", "linear_readout")
    earlier = {key: x for key, x in head.config.items() if key not in new}
    assert DPTHead.current_config(earlier) == head.config
    assert OwnHead.current_config({"width": WIDTH}) == {"width": WIDTH}


def test_normals_are_the_formula_in_float64() -> None:
    """Divided by their length at the decoder's cells, resized to the image, and divided again."""
    head, state = narrow_head("tipsv2_b14_normals", torch.float64)
    tokens = kit.tokens(1, 5, 12, width=WIDTH, layers=4, dtype=torch.float64)
    logits = official.tipsv2_logits("tipsv2_b14_normals", state_in_float64(state), tokens)
    cells = logits / logits.norm(dim=1, keepdim=True)
    resized = torch.nn.functional.interpolate(cells, size=tokens.image_size, mode="bilinear")
    normals = head.predict(tokens)["normals"]
    assert torch.allclose(normals, resized / resized.norm(dim=1, keepdim=True), atol=1e-12)
    assert torch.allclose(normals.norm(dim=1), torch.ones(()).double(), atol=1e-12)


def state_in_float64(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in state.items()}


@pytest.mark.parametrize("name", TIPSV2)
def test_a_saved_head_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    head, _ = narrow_head(name)
    HeadCheckpoint.from_module(head).save(tmp_path / "head.safetensors")
    loaded: Any = HeadCheckpoint.load(tmp_path / "head.safetensors").build()
    tokens = kit.tokens(1, 5, 9, width=WIDTH, layers=4)
    assert loaded.config == head.config
    for key, value in head.predict(tokens).items():
        assert torch.equal(loaded.predict(tokens)[key], value)


def whole_file(row: PublishedHead, backbone: bool = True) -> dict[str, Tensor]:
    """Names and shapes of all that the publisher's file holds, on the meta device."""
    size = row.name.split("_")[1]
    shapes = {}
    for task in official.TIPSV2_HEADS:
        shapes |= official.shapes_of(f"tipsv2_{size}_{task}")[0]
    if backbone:
        shapes |= {"vision_encoder.cls_token": (1, 1, row.model.width)}
        shapes |= {"vision_encoder.mask_token": (1, row.model.width)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_file_of_three_heads_holds_each_of_them(row: PublishedHead) -> None:
    head = row.build().state_dict()
    state = whole_file(row)
    assert row.layers[-1] == row.model.depth - 1
    assert row.licence == "Apache-2.0"
    assert row.licence_source.startswith(row.url)
    assert row.revision is None  # it is not pinned
    assert translate(state, head, "the file", rename=row.rename).keys() == head.keys()
    own = [name for name in state if row.rename(name) is not None]
    assert len(own) == 52
    for name in (own[0], own[-1]):
        missing = {key: value for key, value in state.items() if key != name}
        with pytest.raises(CheckpointError, match=f"lacks {name}: it is"):
            translate(missing, head, "the file", rename=row.rename)
        reshaped = {**state, name: torch.empty(1, 1, 7, device="meta")}
        with pytest.raises(CheckpointError, match=f"{name} has the shape"):
            translate(reshaped, head, "the file", rename=row.rename)
    for extra in (f"{own[0]}.again", "aux_head.weight", "text_encoder.weight"):
        with pytest.raises(CheckpointError, match=f"holds {extra} in addition"):
            translate({**state, extra: torch.empty(3)}, head, "the file", rename=row.rename)


def test_the_last_layer_of_another_head_is_unknown() -> None:
    assert table.row_named(TIPSV2[0]).rename("depth_head.depth_head.bias") == "readouts.0.bias"
    unknown = "depth_head.normals_head.bias"
    assert table.row_named(TIPSV2[0]).rename(unknown) == unknown


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"is no \.safetensors file.*google/tipsv2-b14-dpt"):
        load_published(TIPSV2[0], weights=tmp_path / "head.pth")


def test_a_folder_is_read_by_its_file_of_weights(tmp_path: Path) -> None:
    state = official.random_state(official.shapes_of(TIPSV2[0])[0])
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "empty").mkdir()

    checkpoint = load_published(TIPSV2[0], weights=tmp_path)

    expected = load_published(TIPSV2[0], weights=tmp_path / "model.safetensors")
    assert checkpoint.meta == expected.meta
    assert checkpoint.meta["extra"]["license_source"].startswith("https://huggingface.co/google")
    with pytest.raises(CheckpointError, match=r"empty has no model\.safetensors; name the file of"):
        load_published(TIPSV2[0], weights=tmp_path / "empty")


def test_a_weight_that_is_not_finite_is_named_with_its_file(tmp_path: Path) -> None:
    state = official.random_state(official.shapes_of(TIPSV2[0])[0])
    state["depth_head.convs.1.weight"][0, 0, 0, 0] = float("nan")
    file = tmp_path / "model.safetensors"
    save_file(state, file)
    with pytest.raises(CheckpointError) as error:
        load_published(TIPSV2[0], weights=file)
    assert f"{file}: depth_head.convs.1.weight holds NaN" in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of B/14 with random weights as transformers saves it, 0.6 GB, and an image."""
    hf = pytest.importorskip("transformers")
    pytest.importorskip("transformers.models.tipsv2_dpt")
    folder = tmp_path_factory.mktemp("tipsv2")
    torch.manual_seed(0)
    vit = hf.Tipsv2VisionConfig(out_indices=[3, 6, 9, 12], reshape_hidden_states=False)
    config = hf.Tipsv2DptConfig(backbone_config=vit, num_labels=150)
    hf.Tipsv2DptForDensePrediction(config).save_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (*SIDES, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_b14_gives_what_transformers_gives(folder: Path) -> None:
    """The heads on equal tokens, and from an image on with the backbone of the file."""
    import transformers as hf

    model = hf.Tipsv2DptForDensePrediction.from_pretrained(folder).eval()
    images = torch.rand(1, 3, 98, 126, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
    outputs = {
        "depth": (model.depth_neck, model.depth_decoder, expected.predicted_depth[:, None]),
        "normals": (model.normals_neck, model.normals_decoder, expected.normals),
        "ade20k": (
            model.segmentation_neck,
            model.segmentation_decoder,
            expected.segmentation_logits,
        ),
    }
    for task, (neck, decoder, output) in outputs.items():
        checkpoint = load_published(f"tipsv2_b14_{task}", weights=folder / "model.safetensors")
        head: Any = checkpoint.build()
        for grid in GRIDS:
            torch.manual_seed(0)
            tokens = kit.tokens(1, *grid, width=768, registers=1, layers=4, patch=14)
            with torch.no_grad():
                logits = decoder(neck(list(tokens.sequence), *grid)[-1])
                assert near(head.logits(tokens)[0], logits, 1e-5)
        with torch.no_grad():
            tokens = checkpoint.load_backbone()(images)
            cells = head.logits(tokens)[0]
        if task == "depth":
            cells = head.bins(cells)
        assert near(cells, output, 1e-4)  # 12 blocks in float32


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", official.TIPSV2_HEADS)
def test_one_file_is_enough_for_a_prediction(
    folder: Path, tmp_path: Path, task: str, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["predict", folder / "image.png", "--heads", f"tipsv2_b14_{task}"]
    words += ["--weights", folder / "model.safetensors", "--out", tmp_path / "out.csv"]
    words += ["--maps", tmp_path / "maps", "--overlay", tmp_path / "pictures"]
    assert main([*map(str, words)]) == 0
    assert [record.getMessage() for record in caplog.records] == []
    assert (tmp_path / "pictures" / "image.jpg").is_file()
    files = list((tmp_path / "maps").rglob("*.tif" if task != "ade20k" else "*.png"))
    assert files
    [line] = (tmp_path / "out.csv").read_text().splitlines()[1:]
    if task == "normals":
        normals = kit.read_bands(files[0])
        assert normals.shape == (3, *SIDES)
        assert np.allclose(np.square(normals).sum(axis=0), 1.0, atol=1e-5)
    else:
        with Image.open(files[0]) as picture:
            assert picture.size == SIDES[::-1]
    values = [float(value) for value in line.split(",")[1:]]
    # an image has no number of normals: they are in the map alone
    assert len(values) == {"depth": 1, "normals": 0, "ade20k": 150}[task]
    if task == "depth":
        assert 0.001 <= values[0] <= 10.0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_heads_of_one_file_run_next_to_each_other(folder: Path) -> None:
    heads = {}
    for task in official.TIPSV2_HEADS:
        heads[task] = load_published(f"tipsv2_b14_{task}", weights=folder / "model.safetensors")
    [row] = Predictor(heads)(folder / "image.png", maps="image")
    assert row["normals"]["maps"]["normals"].shape == (3, *SIDES)
    assert row["depth"]["maps"]["depth"].shape == (1, *SIDES)
    assert row["ade20k"]["maps"]["class"].shape == SIDES


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_file_of_heads_alone_takes_the_backbone_of_another(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    heads = {key: value for key, value in state.items() if not key.startswith("vision_encoder.")}
    backbone = {key: value for key, value in state.items() if key.startswith("vision_encoder.")}
    save_file(heads, tmp_path / "heads.safetensors")
    save_file(backbone, tmp_path / "backbone.safetensors")
    checkpoint = load_published(TIPSV2[1], weights=tmp_path / "heads.safetensors")
    assert checkpoint.backbone_file is None
    whole = load_published(TIPSV2[1], weights=folder / "model.safetensors")
    assert whole.backbone_file == folder / "model.safetensors"
    whole.save(tmp_path / "saved.safetensors")
    assert HeadCheckpoint.load(tmp_path / "saved.safetensors").backbone_file is None
    image = torch.rand(3, 56, 70)
    [expected] = Predictor(whole)(image, maps="image")
    other = checkpoint.load_backbone(tmp_path / "backbone.safetensors")
    [found] = Predictor(checkpoint, other)(image, maps="image")
    assert found["maps"]["normals"].shape == (3, 56, 70)
    assert np.array_equal(found["maps"]["normals"], expected["maps"]["normals"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_normals_are_exported_with_their_backbone(folder: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    words = ["export", TIPSV2[1], "--weights", folder / "model.safetensors", "--with-backbone"]
    words += ["--format", "onnx", "--size", "70x112", "--maps", "--out", tmp_path / "m.onnx"]
    assert main([*map(str, words)]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 70, 112)
    checkpoint = load_published(TIPSV2[1], weights=folder / "model.safetensors")
    head: Any = checkpoint.build()
    with torch.no_grad():
        expected = head.predict(checkpoint.load_backbone()(images))["normals"].numpy()
    [found] = session.run(["normals"], {"images": images.numpy()})
    assert np.abs(found - expected).max() <= 1e-4
