"""A Predictor takes a detector by name or file, and predicts what the Detector does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.detection import rf_detr_files as files
from tests.unit.detection.rf_detr_files import BOXES, MASKS

from dinoneck import (
    CheckpointError,
    ConfigError,
    HeadCheckpoint,
    Predictor,
    STAPyramid,
    load_backbone,
    load_published,
)
from dinoneck.data import Preprocessing
from dinoneck.detection import DetectionHead, Detector
from dinoneck.detection.fine_tuning import open_init
from dinoneck.evaluation.models import open_models
from dinoneck.inference import MicroBatcher
from dinoneck.training.config import BoxesDataConfig, TrainDetectorConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> a folder of that row, which is short, as the Hub has it."""
    with pytest.MonkeyPatch.context() as patch:
        files.shorten(patch)
        folder = tmp_path_factory.mktemp("hub")
        for name in (BOXES, MASKS):
            files.write_folder(folder / name, name)
        yield {name: folder / name for name in (BOXES, MASKS)}


@pytest.fixture
def detector_file(tmp_path: Path) -> Path:
    """A detector on a backbone that its file names; a seventh of its boxes have a score above 0.3."""
    torch.manual_seed(0)
    head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
    head.model.head.classification_head.cls_logits.bias.data.fill_(2.0)
    file = tmp_path / "detector.safetensors"
    Detector(head, load_backbone("dinoneck_tiny"), (64, 96)).save(file)
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three pictures of several sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(120, 200), (60, 50), (33, 97)]):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("a file is fetched")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)


def assert_equal(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for prediction, expected in zip(first, second, strict=True):
        assert prediction.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(prediction[key], value)
            else:
                assert prediction[key] == value


@pytest.mark.slow
@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_three_roads_to_a_published_detector_give_the_same(
    folders: dict[str, Path], images: Path, name: str
) -> None:
    weights = folders[name]

    predictor = Predictor(name, weights=weights)

    expected = Detector.load(name, weights=weights).predict(images, min_score=0.2)
    from_checkpoint = Detector.from_checkpoint(load_published(name, weights=weights))
    of_checkpoint = Predictor(load_published(name, weights=weights))
    assert sum(len(prediction["scores"]) for prediction in expected) > 0
    assert all(("masks" in prediction) == (name == MASKS) for prediction in expected)
    assert_equal(predictor(images, min_score=0.2), expected)
    assert_equal(from_checkpoint.predict(images, min_score=0.2), expected)
    assert_equal(of_checkpoint(images, min_score=0.2), expected)
    default = Detector.load(name, weights=weights).predict(images)
    assert_equal(predictor(images), default)
    picture = images / "1.png"
    assert_equal([predictor.one(picture)], Detector.load(name, weights=weights).predict(picture))


@pytest.mark.slow
def test_a_folder_of_the_name_does_not_hide_a_published_detector_beside_its_weights(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders[BOXES].parent)  # which holds a folder of that name
    config = TrainDetectorConfig(data=BoxesDataConfig(boxes="-"), init=BOXES, weights=BOXES)

    initial = open_init(config)

    assert initial is not None
    assert initial.origin["name"] == BOXES
    assert Predictor(BOXES, weights=BOXES).detector is not None
    publication = Detector.load(BOXES, weights=BOXES).publication
    assert publication is not None
    assert publication.extra["published"] == BOXES
    for load in (Predictor, Detector.load, load_name_of_init):
        with pytest.raises(CheckpointError, match=rf"./{BOXES} for the path, or .*weights=FILE"):
            load(BOXES)


def load_name_of_init(name: str) -> object:
    return open_init(TrainDetectorConfig(data=BoxesDataConfig(boxes="-"), init=name))


@pytest.mark.slow
def test_the_file_of_a_detector_is_predicted_with_as_a_name_is(
    detector_file: Path, images: Path
) -> None:
    expected = Detector.load(detector_file).predict(images)
    assert sum(len(prediction["scores"]) for prediction in expected) > 0
    for source in (detector_file, str(detector_file), HeadCheckpoint.load(detector_file)):
        assert_equal(Predictor(source)(images), expected)
    assert_equal(Predictor([detector_file])(images), expected)
    assert_equal(Predictor(detector_file.parent)(images), expected)
    assert_equal(Predictor(detector_file.parent.glob("*.safetensors"))(images), expected)  # type: ignore[arg-type]
    backbone = load_backbone("dinoneck_tiny")
    assert_equal(Predictor(detector_file, backbone, device="cpu")(images), expected)


def test_batches_have_the_size_that_is_asked_for(
    detector_file: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(detector_file, batch_size=2)
    sizes = []
    forward = Detector.forward

    def count(detector: Detector, batch: torch.Tensor, *args: Any) -> Any:
        sizes.append(len(batch))
        return forward(detector, batch, *args)

    monkeypatch.setattr(Detector, "forward", count)
    predictor(images)
    assert sizes == [2, 1]


@pytest.mark.slow
def test_it_says_what_it_is(detector_file: Path, folders: dict[str, Path]) -> None:
    predictor = Predictor(detector_file, bits=12)
    assert repr(predictor) == "Predictor(detector of 2 labels; backbone='dinoneck_tiny')"
    assert isinstance(predictor.detector, Detector)
    assert predictor.tasks == ()
    assert predictor.revisions == {}
    assert predictor.preprocess.size == (64, 96)
    assert predictor.preprocess.bits == 12
    assert predictor.device == torch.device("cpu")
    published = Predictor(BOXES, weights=folders[BOXES])
    assert "80 labels; backbone='DINOv2 ViT-S (tuned)'" in repr(published)


OPTIONS_OF_HEADS = {
    "tta": {"tta": "flip4"},
    "weights": {"weights": [1.0]},
    "blur": {"blur": 3},
    "preprocess": {"preprocess": Preprocessing(patch_size=16)},
    "probe": {"probe": True},
    "dtype": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("name", OPTIONS_OF_HEADS)
@pytest.mark.usefixtures("without_network")
def test_options_of_heads_are_refused_before_anything_is_fetched(
    detector_file: Path, name: str
) -> None:
    options: dict[str, Any] = OPTIONS_OF_HEADS[name]
    for source in (BOXES, [BOXES], detector_file):
        with pytest.raises(ConfigError, match=f"{name} is .*, which is for heads; a detector") as e:
            Predictor(source, **options)
        assert "\n" not in str(e.value)


@pytest.mark.usefixtures("without_network")
def test_what_a_detector_does_not_go_with_is_refused_before_anything_is_fetched(
    detector_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the keys boxes, a detector among them; pass it alone"):
        Predictor({"boxes": BOXES})
    with pytest.raises(ConfigError, match="the keys boxes, a detector among them; pass it alone"):
        Predictor({"boxes": detector_file})
    with pytest.raises(ConfigError, match="2 heads are given, a detector among them"):
        Predictor([BOXES, detector_file])
    with pytest.raises(ConfigError, match="the keys boxes, depth, a detector among them"):
        Predictor({"boxes": BOXES, "depth": "dinov2_vits14_nyu_dpt"})
    with pytest.raises(CheckpointError, match="Did you mean 'rf_detr_nano'"):
        Predictor("rf_detr_nan", weights=tmp_path)
    with pytest.raises(CheckpointError, match=r"is not a file"):
        Predictor(BOXES, weights=tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="is the file of one published head"):
        Predictor(detector_file, weights=detector_file)
    with pytest.raises(CheckpointError, match="leave one of them out"):
        Predictor(BOXES, weights=tmp_path, revision="main")


def test_what_is_of_heads_says_that_it_is(detector_file: Path, images: Path) -> None:
    predictor = Predictor(detector_file, tta="none")
    with pytest.raises(ConfigError, match="maps is 'patch', and a detector has no maps"):
        predictor(images, maps="patch")
    uses: list[Any] = [
        lambda: predictor.passes,
        lambda: predictor.backbone,
        lambda: predictor.tta,
        lambda: predictor.predictions(images),
        lambda: predictor.prepare(images / "0.png"),
        lambda: predictor.recipe(images / "0.png"),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match="this predictor holds a detector"):
            use()
    with (
        MicroBatcher(predictor) as batcher,
        pytest.raises(ConfigError, match="this predictor holds a detector"),
    ):
        batcher.predict(images / "0.png")


def test_its_detector_is_evaluated(detector_file: Path) -> None:
    predictor = Predictor(detector_file)
    assert open_models(predictor) == {"head": predictor.detector}
    assert open_models({"a": predictor, "b": str(detector_file)})["a"] is predictor.detector
    assert predictor.detector.source == str(detector_file)  # type: ignore[union-attr]
