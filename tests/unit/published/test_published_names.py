"""Published heads by their names, in the Predictor and on the command line, on a backbone with random weights."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.hub_server import WRITER, Hub
from tests.kit import write_images
from tests.unit.published import official_files as official
from tests.unit.published.test_published import SAFE_READER

from dinoneck import CheckpointError, HeadCheckpoint, Predictor, load_backbone, load_published
from dinoneck.cli.main import main
from dinoneck.inference.sources import NO_KEY, open_heads
from dinoneck.published import table

pytestmark = [
    pytest.mark.skipif(
        not SAFE_READER, reason="torch before 2.10 does not read pickles without a known hash"
    ),
    # the Hub client's own way of uploading
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]
DEPTH, CLASSES, DECODER = (
    "dinov2_vits14_nyu_linear",
    "dinov2_vits14_voc2012_linear",
    "dinov2_vits14_nyu_dpt",
)
ANYTHING, CANOPY = "dinov2_vits14_depth_anything_v2", "dinov3_vitl16_sat_chmv2"
SIDES = (70, 100)  # of the image, which is padded to 70 x 112


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two heads, weights of their backbone, and an image of 70x100 px, which needs padding."""
    folder = tmp_path_factory.mktemp("published")
    for name in (DEPTH, CLASSES, DECODER):
        official.write(folder / f"{name}.pth", official.random_state(official.shapes_of(name)[0]))
    load_backbone("dinov2_vits14", pretrained=False, seed=0).save_weights(
        folder / "backbone.safetensors"
    )
    pixels = np.random.default_rng(0).integers(0, 255, (*SIDES, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def file_backbone(folder: Path, name: str = "dinov2_vits14", pos_embed: str = "official") -> object:
    return load_backbone(name, checkpoint=folder / "backbone.safetensors", pos_embed=pos_embed)  # type: ignore[arg-type]


@pytest.mark.slow
def test_other_backbones_are_refused(folder: Path) -> None:
    head = load_published(DEPTH, weights=folder / f"{DEPTH}.pth")
    with pytest.raises(CheckpointError, match="pos_embed"):
        Predictor(head, file_backbone(folder, pos_embed="native"))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="seeded"):
        Predictor(head, load_backbone("dinov2_vits14", pretrained=False, pos_embed="official"))
    module = head.build()
    tokens = file_backbone(folder)(torch.zeros(1, 3, 28, 28))  # type: ignore[operator]
    with pytest.raises(Exception, match="normed"):
        module(tokens)


def test_a_name_with_its_file_is_the_head_that_is_loaded(folder: Path) -> None:
    file = folder / f"{DEPTH}.pth"
    backbone: Any = file_backbone(folder)
    image = folder / "image.png"
    [expected] = Predictor(load_published(DEPTH, weights=file), backbone)(image)
    assert Predictor(DEPTH, backbone, weights=file)(image) == [expected]
    assert Predictor([DEPTH], backbone, weights=str(file))(image) == [expected]
    assert Predictor({"d": DEPTH}, backbone, weights=file)(image) == [{"d": expected}]
    with pytest.raises(CheckpointError, match="is not a file"):
        Predictor(DEPTH, backbone, weights=folder / "nothing.pth")


def test_the_backbone_in_a_publishers_file_is_the_published_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = load_published(DEPTH, weights=folder / f"{DEPTH}.pth")
    [expected] = Predictor(checkpoint, file_backbone(folder))(folder / "image.png")  # type: ignore[arg-type]
    assert "make sure that they are the published weights" in caplog.text
    caplog.clear()

    checkpoint.backbone_file = folder / "backbone.safetensors"
    predictor = Predictor(checkpoint)

    assert predictor(folder / "image.png") == [expected]
    assert not caplog.records
    record = predictor.backbone.record()
    assert record["weights"] == checkpoint.meta["backbone"]["weights"]
    assert record["license"] == "apache-2.0"


def words_of(folder: Path, name: str) -> list[str]:
    return [
        "--weights",
        str(folder / f"{name}.pth"),
        "--backbone-file",
        str(folder / "backbone.safetensors"),
    ]


@pytest.mark.slow
def test_the_command_line_writes_metres_and_pictures(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "depth.csv"
    words = [
        "predict",
        folder / "image.png",
        "--heads",
        DEPTH,
        *words_of(folder, DEPTH),
        "--out",
        out,
    ]
    words += ["--maps", tmp_path / "m", "--overlay", tmp_path / "o"]
    assert main([*map(str, words)]) == 0
    with Image.open(tmp_path / "m" / "image.tif") as stored:
        depth = np.asarray(stored)
    assert depth.dtype == np.float32
    assert 0.001 <= depth.min() < depth.max() <= 10.0
    [line] = out.read_text().splitlines()[1:]
    assert 0.001 <= float(line.split(",")[1]) <= 10.0
    assert (tmp_path / "o" / "image.jpg").is_file()
    predictor = Predictor(
        load_published(DEPTH, weights=folder / f"{DEPTH}.pth"), file_backbone(folder)
    )  # type: ignore[arg-type]
    [row] = predictor(folder / "image.png", maps="image")
    assert np.allclose(depth, row["maps"]["depth"][0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_it_is_exported_with_its_backbone(folder: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    words = [
        "export",
        DEPTH,
        *words_of(folder, DEPTH),
        "--with-backbone",
        "--format",
        "onnx",
        "--size",
        "70x112",
    ]
    assert main([*words, "--maps", "--out", str(tmp_path / "m.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 70, 112)
    predictor = Predictor(
        load_published(DEPTH, weights=folder / f"{DEPTH}.pth"), file_backbone(folder)
    )  # type: ignore[arg-type]
    [row] = predictor(images[0], maps="patch")
    [found] = session.run(["depth"], {"images": images.numpy()})
    expected = row["maps"]["depth"]
    assert np.abs(found[0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_it_is_scored_saved_and_pushed(
    folder: Path,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "truth").mkdir()
    Image.open(folder / "image.png").save(tmp_path / "images" / "image.png")
    Image.fromarray(np.full(SIDES, 7, np.uint8)).save(tmp_path / "truth" / "image.png")
    words = ["evaluate", tmp_path / "images", "--heads", CLASSES, "--truth", tmp_path / "truth"]
    assert main([*map(str, words), *words_of(folder, CLASSES)]) == 0
    assert "sofa" in capsys.readouterr().out

    checkpoint = load_published(DEPTH, weights=folder / f"{DEPTH}.pth")
    checkpoint.save(tmp_path / "head.safetensors")
    monkeypatch.setenv("HF_TOKEN", WRITER)
    pushed = checkpoint.push_to_hub("me/depth")
    card = hub.repos["me/depth"].commits[pushed.oid]["README.md"].decode()
    assert "license: apache-2.0" in card
    for source in (tmp_path / "head.safetensors", "me/depth"):
        loaded = HeadCheckpoint.load(source)
        assert loaded.meta == checkpoint.meta
        assert loaded.meta["extra"]["url"] == table.row_named(DEPTH).url


@pytest.mark.slow
def test_hub_repositories_are_fetched_or_refused_in_one_sentence(
    folder: Path,
    tmp_path: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Depth Anything comes from the Hub with its terms, heads on DINOv3 are gated, others have a revision."""
    state = official.random_state(official.shapes_of(ANYTHING)[0])
    state |= official.random_state(official.backbone_shapes(384, 12))
    save_file(state, tmp_path / "model.safetensors")
    content = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    hub.repo("depth-anything/Depth-Anything-V2-Small-hf", content)
    found = load_published(ANYTHING).meta
    assert found["license"] == "Apache-2.0"
    revision = hub.repos["depth-anything/Depth-Anything-V2-Small-hf"].branches["main"]
    assert f"/{revision}/" in found["extra"]["url"]
    with pytest.raises(CheckpointError, match="states no licence"):
        load_published(f"{ANYTHING}_indoor", revision="main")
    hub.repo("facebook/dinov3-vitl16-chmv2-dpt-head", content, gated=True)
    hub.repo("facebook/dpt-dinov2-small-nyu", content)
    with pytest.raises(CheckpointError, match="facebook/dinov3-vitl16-chmv2-dpt-head.* is gated"):
        load_published(CANOPY)
    assert "terms of dinov3-license" not in caplog.text  # nothing was fetched
    with pytest.raises(CheckpointError, match="no-branch"):
        load_published(DECODER, revision="no-branch")
    with pytest.raises(
        CheckpointError, match=r"lacks head\.head\.0\.bias.* it is the file of another"
    ):
        load_published(DECODER, revision="main")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"{ANYTHING} was not fetched"):
        load_published(ANYTHING)


def test_golden_numbers_of_open_heads_are_stored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``make evidence`` stores with the publishers' files; a head whose file is gone is named."""
    pytest.importorskip("transformers")
    from benchmarks.evidence import published

    write_images(tmp_path / "crop_cover" / "images", [f"{i:02}.png" for i in range(11)], *SIDES)
    rows = [table.row_named(name) for name in (DEPTH, "dinov2_vits14_kitti_linear", CANOPY)]

    def download(url: str, file: str, **_: object) -> None:
        if "kitti" in url:
            raise OSError("404")
        shutil.copy(folder / f"{DEPTH}.pth", file)

    monkeypatch.setattr(published, "list_published", lambda: rows)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(HeadCheckpoint, "load_backbone", lambda self, dtype: file_backbone(folder))
    found = published.golden(Namespace(data=tmp_path, device="cpu"))
    assert [*found] == [f"`{row.name}`" for row in rows[:2]]
    assert found["`dinov2_vits14_kitti_linear`"] == {"not run": "CheckpointError"}
    assert [*found[f"`{DEPTH}`"]] == ["mean", "deviation", "largest"]


def test_a_head_is_served_from_its_publishers_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    from dinoneck.serve import Settings
    from dinoneck.serve.models import open_model

    monkeypatch.setattr(HeadCheckpoint, "load_backbone", lambda self, dtype: file_backbone(folder))
    model = open_model(DEPTH, Settings(weights=str(folder / f"{DEPTH}.pth")))
    assert [task["unit"] for task in model.facts["tasks"]] == ["m"]
    assert 0.001 <= model.predict(torch.rand(3, 28, 42), "none")["values"]["depth"] <= 10.0


def test_a_name_that_is_a_path_too_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load_published(DEPTH, weights=folder / f"{DEPTH}.pth").save(DEPTH)
    with pytest.raises(CheckpointError, match=rf"./{DEPTH} for the path, or .*--weights FILE"):
        Predictor(DEPTH)
    with pytest.raises(CheckpointError, match="Did you mean 'dinov2_vits14_nyu_dpt'"):
        Predictor("dinov2_vits14_nyu_dtp")
    predictor = Predictor(f"./{DEPTH}", file_backbone(folder))  # type: ignore[arg-type]
    assert predictor.tasks[0].unit == "m"


def test_beside_weights_a_name_is_the_published_head_and_not_a_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEPTH).mkdir()
    (Path(DEPTH) / "head.safetensors").write_text("no head")

    opened = open_heads(DEPTH, weights=folder / f"{DEPTH}.pth")
    with pytest.raises(CheckpointError, match=f"./{DEPTH}"):
        open_heads(DEPTH)

    [checkpoint] = opened[NO_KEY]
    assert isinstance(checkpoint, HeadCheckpoint)
    assert checkpoint.meta["extra"]["published"] == DEPTH
