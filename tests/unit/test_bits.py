"""The bits of 16-bit images travel with stores, head files and detectors: prediction scales as training did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.data.box_samples import content

from dinoneck import (
    Backbone,
    FeatureStore,
    HeadCheckpoint,
    Predictor,
    STAPyramid,
    StoreError,
    load_backbone,
)
from dinoneck.data import BoxImages
from dinoneck.detection import DetectionHead, Detector, evaluate_boxes
from dinoneck.training import LiveTokens

LARGEST = 4095  # of 12 bits
SIZE = "32x48"
QUICK = f"--backbone dinoneck_tiny --size {SIZE} --folds 2 --epochs 1 --hidden-dim 4".split()
NAMES = [f"{i}.png" for i in range(6)]


def write_deep(folder: Path, names: list[str], height: int = 40, width: int = 60) -> list[Path]:
    """Grey images of 12 bits in files of 16."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, name in enumerate(names):
        drawn = np.random.RandomState(i).randint(0, LARGEST + 1, (height, width))
        Image.fromarray(drawn.astype(np.uint16)).save(folder / name)
        files.append(folder / name)
    return files


def as_floats(file: Path) -> np.ndarray:
    """The image as the array of floats that it stands for."""
    return np.asarray(Image.open(file)).astype(np.float32) / LARGEST


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_deep(tmp_path / "images", NAMES)


@pytest.fixture
def table(files: list[Path]) -> Path:
    rows = "".join(f"{file.name},{i}\n" for i, file in enumerate(files))
    path = files[0].parent / "table.csv"
    path.write_text("image,crop\n" + rows)
    return path


# Python


def test_a_store_holds_the_tokens_of_the_stated_bits(
    files: list[Path], tiny: Backbone, tmp_path: Path
) -> None:
    store = FeatureStore.create(tmp_path / "s", backbone=tiny, image_size=(32, 48), bits=12)
    store.extract(files, batch_size=1)
    reopened = FeatureStore.open(tmp_path / "s")
    assert reopened.preprocess.bits == 12
    recipe = tiny.preprocess.changed(size=(32, 48))
    with torch.no_grad():
        expected = tiny(recipe(as_floats(files[0]))).last.patches[0]
    found = reopened.batch(["0"]).last.patches[0]
    assert torch.allclose(found, expected, atol=1e-2)


def test_a_store_of_other_bits_is_another_store(tiny: Backbone, tmp_path: Path) -> None:
    for made, asked in ((None, 12), (12, None), (12, 14)):
        folder = tmp_path / f"{made}-{asked}"
        FeatureStore.create(folder, backbone=tiny, image_size=(32, 48), bits=made)
        with pytest.raises(StoreError, match=r"inputs\.bits"):
            FeatureStore.create(folder, backbone=tiny, image_size=(32, 48), bits=asked)


def test_a_store_without_bits_is_described_as_before(tiny: Backbone, tmp_path: Path) -> None:
    FeatureStore.create(tmp_path / "s", backbone=tiny, image_size=(32, 48))
    assert "bits" not in json.loads((tmp_path / "s" / "store.json").read_text())["inputs"]


def test_a_head_file_records_bits_and_the_predictor_uses_them(
    files: list[Path], tiny: Backbone, tmp_path: Path
) -> None:
    recipe = tiny.preprocess.changed(size=(32, 48))
    for name, own in (("plain", recipe), ("deep", recipe.changed(bits=12))):
        HeadCheckpoint.from_module(kit.head(), backbone=tiny, preprocess=own).save(
            tmp_path / f"{name}.safetensors"
        )
    deep = Predictor(tmp_path / "deep.safetensors", tiny)
    plain = Predictor(tmp_path / "plain.safetensors", tiny)
    [expected] = plain(as_floats(files[0]))
    assert deep(files[0]) == [expected]
    assert "bits" not in HeadCheckpoint.load(tmp_path / "plain.safetensors").meta["inputs"]
    assert plain(files[0]) != [expected]  # of 16 bits
    assert Predictor(tmp_path / "plain.safetensors", tiny, bits=12)(files[0]) == [expected]


def test_keyed_heads_read_an_image_with_their_own_bits(
    files: list[Path], tiny: Backbone, tmp_path: Path
) -> None:
    heads, expected = {}, {}
    for bits in (12, 14, 16):
        recipe = tiny.preprocess.changed(size=(32, 48), bits=bits)
        file = tmp_path / f"{bits}.safetensors"
        HeadCheckpoint.from_module(kit.head(), backbone=tiny, preprocess=recipe).save(file)
        heads[str(bits)] = file
        expected[str(bits)] = Predictor(file, tiny)(files[0])[0]
    [found] = Predictor(heads, tiny)(files[0])
    assert found == expected
    assert len({row["mass"] for row in found.values()}) == 3


def test_live_tokens_transform_images_of_the_stated_bits(files: list[Path], tiny: Backbone) -> None:
    seen = []

    def keep(image: torch.Tensor) -> torch.Tensor:
        seen.append(image)
        return image

    recipe = tiny.preprocess.changed(size=(32, 48), bits=12)
    source = LiveTokens(tiny, files, preprocess=recipe, transform=keep)
    source.images(["0"], transformed=True)
    expected = torch.from_numpy(np.rint(as_floats(files[0]) * 255).astype(np.uint8))
    assert torch.equal(seen[0], expected.expand(3, -1, -1))


def test_boxes_and_detectors_read_images_of_the_stated_bits(tmp_path: Path) -> None:
    files = write_deep(tmp_path, ["0.png", "1.png", "2.png"], 30, 40)
    (tmp_path / "boxes.json").write_text(json.dumps(content()))
    data = BoxImages(tmp_path / "boxes.json", bits=12)
    expected = torch.from_numpy(np.rint(as_floats(files[0]) * 255).astype(np.uint8))
    assert torch.equal(data[0][0].as_subclass(torch.Tensor), expected.expand(3, -1, -1))

    backbone = load_backbone("dinoneck_tiny", layers=(1, 3, 5))
    head = DetectionHead("fcos", data.classes, STAPyramid(64, 32))
    detector = Detector(head, backbone, (64, 96), bits=12)
    detector.save(tmp_path / "d.safetensors")
    loaded = Detector.load(tmp_path / "d.safetensors", backbone=backbone)
    assert loaded.preprocess.bits == 12
    [found] = loaded.predict(files[0], min_score=0.0)
    [same] = Detector(head, backbone, (64, 96)).predict(as_floats(files[0]), min_score=0.0)
    assert torch.equal(found["boxes"], same["boxes"])
    pytest.importorskip("pycocotools")
    assert evaluate_boxes(loaded, data.file)["images"] == 3


# The command line


@pytest.mark.slow
def test_training_states_the_bits_and_prediction_follows(
    table: Path, files: list[Path], tmp_path: Path
) -> None:
    words: list[Any] = ["train", "--csv", table, "--targets", "crop", *QUICK]
    trained = kit.cli(*words, "--out", tmp_path / "run", "--bits", "12")
    assert trained.code == 0, trained.err
    head = tmp_path / "run" / "head.safetensors"
    assert HeadCheckpoint.load(head).preprocess.bits == 12
    out = tmp_path / "p.csv"
    images = table.parent
    predicted = kit.cli(
        "predict",
        images,
        "--heads",
        tmp_path / "run",
        "--out",
        out,
        "--overlay",
        tmp_path / "o",
        "--json",
    )
    assert predicted.code == 0, predicted.err
    expected = Predictor(head)([as_floats(file) for file in files])
    found = [row["crop"] for row in predicted.json["predictions"]]
    assert np.allclose(found, [row["crop"] for row in expected], atol=1e-5)
    assert len([*(tmp_path / "o").iterdir()]) == len(files)
    page = kit.cli("viz", "report", tmp_path / "run", images, "--out", tmp_path / "r.html")
    assert page.code == 0, page.err


def test_bits_of_prediction_are_stronger_than_the_recorded_ones(
    files: list[Path], tmp_path: Path
) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors")
    words: list[Any] = ["predict", *files, "--heads", head, "--out", tmp_path / "p.csv", "--json"]
    found = kit.cli(*words, "--bits", "12")
    assert found.code == 0, found.err
    [expected] = Predictor(head)(as_floats(files[2]))
    assert found.json["predictions"][2]["mass"] == pytest.approx(expected["mass"], abs=1e-5)
    assert kit.cli(*words, "--bits", "7").code == 2


def test_a_store_is_extracted_and_trained_on_with_its_bits(table: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words: list[Any] = ["extract", table.parent, "--out", store, "--size", SIZE]
    words += ["--backbone", "dinoneck_tiny", "--bits", "12"]
    assert kit.cli(*words).code == 0
    train: list[Any] = ["train", "--csv", table, "--targets", "crop", "--store", store]
    train += ["--folds", "2", "--epochs", "1", "--hidden-dim", "4"]
    mixed = kit.cli(*train, "--bits", "14", "--out", tmp_path / "no")
    assert mixed.code == 1
    assert "bits 12" in mixed.err
    trained = kit.cli(*train, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert HeadCheckpoint.load(tmp_path / "run" / "head.safetensors").preprocess.bits == 12
