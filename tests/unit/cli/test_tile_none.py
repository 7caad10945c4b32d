"""``--tile none`` leaves images whole that a file of a training on tiles would have cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import kit
from tests.unit.detection import test_train_instances
from tests.unit.detection.test_box_tiles import small_detector
from tests.unit.inference.test_image_resolution import head_of
from torch import Tensor

from dinoneck import ConfigError, HeadCheckpoint, Predictor, save_head
from dinoneck.detection import Detector
from dinoneck.export import export_model
from dinoneck.inference import coco_objects
from dinoneck.inference.tiles import Tiling, TrainedBoxes
from dinoneck.serve import models
from dinoneck.serve.settings import Settings
from dinoneck.training.config import TILE

SIZE = (32, 48)
BOXES = TrainedBoxes(longest_box=20.0, tile=SIZE, overlap=12)
CUT = "Images are cut into tiles of 32x48 px, as in the training; --tile takes others, or none."


def head_on_tiles(folder: Path, kind: str = "mask") -> Path:
    """The file of a head that was trained on tiles."""
    file = folder / "h.safetensors"
    backbone = kit.backbone()
    checkpoint = HeadCheckpoint.from_module(
        head_of(kind),
        backbone=backbone,
        preprocess=backbone.preprocess.changed(size=SIZE),
        training=BOXES.record(),
    )
    checkpoint.save(file)
    return file


def objects_of(predictor: Any, image: Any) -> Any:
    [row] = predictor([image])
    return coco_objects(row["plant"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "panoptic"])
def test_predict_takes_the_tiles_of_the_training_or_none(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")
    [image] = kit.write_images(tmp_path, ["images/a.png"], 80, 120)
    head = head_on_tiles(tmp_path, kind)
    words = ("predict", image, "--heads", head, "--out", tmp_path / "out.csv", "--json")

    cut = kit.cli(*words)
    whole = kit.cli(*words, "--tile", "none")

    in_tiles = objects_of(Predictor(head), image)
    assert in_tiles == objects_of(Predictor(head, tile=SIZE, overlap=12), image)
    assert in_tiles != objects_of(Predictor(head, tile=None), image)
    assert cut.json["predictions"][0]["plant objects"] == in_tiles
    assert whole.json["predictions"][0]["plant objects"] == objects_of(
        Predictor(head, tile=None), image
    )
    assert CUT in kit.cli(*words[:-1]).out
    assert CUT not in kit.cli(*words[:-1], "--tile", "none").out


def test_an_overlap_alone_is_one_of_the_tiles_of_the_training(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")
    [image] = kit.write_images(tmp_path, ["images/a.png"], 80, 120)
    head = head_on_tiles(tmp_path)

    with_overlap = objects_of(Predictor(head, overlap=8), image)

    assert with_overlap == objects_of(Predictor(head, tile=SIZE, overlap=8), image)


def test_an_overlap_leaves_a_head_without_tiles_beside_one_with_tiles_whole(
    tmp_path: Path,
) -> None:
    on_tiles = head_on_tiles(tmp_path)
    whole = tmp_path / "whole.safetensors"
    save_head(whole, head_of("mask"), backbone=kit.backbone())

    predictor = Predictor({"tiles": on_tiles, "whole": whole}, overlap=8)

    tilings = {key: each.tiling for each in predictor.passes for key in each.heads}
    assert tilings == {"tiles": Tiling(SIZE, 8), "whole": None}


def test_an_overlap_alone_is_refused_where_no_file_was_trained_on_tiles(tmp_path: Path) -> None:
    head = tmp_path / "h.safetensors"
    save_head(head, head_of("mask"), backbone=kit.backbone())
    reason = r"overlap is 20, and what predicts was not trained on tiles; give the size of a tile"

    with pytest.raises(ConfigError, match=reason):
        Predictor(head, overlap=20)
    with pytest.raises(ConfigError, match=reason):
        small_detector().use_tiles("auto", 20)


def test_evaluate_and_serve_know_the_word_too(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")
    truth = test_train_instances.scenes(tmp_path / "scenes", 2)
    head = head_on_tiles(tmp_path)
    words = ("evaluate", truth.parent, "--heads", head, "--truth", truth)

    assert CUT in kit.cli(*words).out
    assert CUT not in kit.cli(*words, "--tile", "none").out

    by_default = models.open_model(head, Settings(runtime="torch"))
    whole = models.open_model(head, Settings(runtime="torch", tile=None))
    assert (by_default.facts["tile"], by_default.facts["overlap"]) == (SIZE, 12)
    assert whole.facts["tile"] is None
    refused = kit.cli("serve", head, "--tile", "nothing")
    assert refused.code == 2
    assert "'nothing' is no size of tiles" in refused.err


def test_a_store_is_of_whole_images_which_a_head_of_tiles_does_not_take(tmp_path: Path) -> None:
    kit.write_images(tmp_path / "images", ["a.png"], 80, 120)
    on_tiles = head_on_tiles(tmp_path)
    whole = kit.saved_head(tmp_path / "whole.safetensors", size=SIZE)
    store = tmp_path / "store"
    words = ("--backbone", "dinoneck_tiny", "--size", "32x48", "--out", store)
    assert kit.cli("extract", tmp_path / "images", *words).code == 0

    for heads in ([on_tiles], [f"whole={whole}", f"tiles={on_tiles}"]):
        out = tmp_path / "out.csv"
        refused = kit.cli("predict", "--store", store, "--heads", *heads, "--out", out)

        assert refused.code == 1
        assert "trained on tiles of 32x48 px, and stored tokens are of whole images" in refused.err


def test_a_service_of_a_detector_states_the_tiles_and_the_overlap_of_its_training(
    tmp_path: Path,
) -> None:
    detector = small_detector()
    detector.note_trained_boxes(BOXES)
    file = tmp_path / "d.safetensors"
    detector.save(file)

    by_default = models.open_model(file, Settings(runtime="torch"))
    stated = models.open_model(file, Settings(runtime="torch", overlap=20))
    whole = models.open_model(file, Settings(runtime="torch", tile=None))

    assert (by_default.facts["tile"], by_default.facts["overlap"]) == (SIZE, 12)
    assert (stated.facts["tile"], stated.facts["overlap"]) == (SIZE, 20)
    assert (whole.facts["tile"], whole.facts["overlap"]) == (None, 0)


def test_a_detector_of_tiles_predicts_whole_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = small_detector()
    detector.note_trained_boxes(BOXES)
    file = tmp_path / "d.safetensors"
    detector.save(file)
    [image] = kit.write_images(tmp_path, ["images/a.png"], 80, 120)

    loaded = Detector.load(file)
    num_inputs = []
    forward = loaded.forward

    def counted_forward(pixels: Tensor) -> Any:
        num_inputs.append(len(pixels))
        return forward(pixels)

    monkeypatch.setattr(loaded, "forward", counted_forward)
    loaded.predict(image, tile=None)
    assert sum(num_inputs) == 1
    loaded.predict(image, batch_size=100)
    assert num_inputs[1:] == [4 * 3]  # 80 = 32 + 3 * 16 rows, 120 = 48 + 2 * 36 columns

    loaded.use_tiles("auto", 20)
    assert loaded.tiling == Tiling(SIZE, 20)
    loaded.use_tiles("auto")
    assert loaded.tiling == Tiling(SIZE, 20)
    loaded.use_tiles(None)
    assert loaded.tiling is None

    assert Predictor(file, tile=None).detector.tiling is None
    words = ("predict", image, "--heads", file, "--out", tmp_path / "out.csv")
    assert CUT in kit.cli(*words).out
    assert CUT not in kit.cli(*words, "--tile", "none").out


@pytest.mark.parametrize(
    ("words", "tile"),
    [
        pytest.param(["none"], None, id="none"),
        pytest.param(["auto"], "auto", id="the default"),
        pytest.param(["32"], (32, 32), id="one number"),
        pytest.param(["32x48"], (32, 48), id="height and width"),
    ],
)
def test_a_word_of_the_command_line_is_the_size_of_tiles(words: list[str], tile: object) -> None:
    assert TILE.instance_from_str(words) == tile
    assert TILE.instance_from_str(TILE.str_from_instance(tile)) == tile


def test_another_word_is_refused_with_the_words_that_are_taken() -> None:
    with pytest.raises(
        ValueError, match="'large' is no size of tiles; .* one number, none or auto"
    ):
        TILE.instance_from_str(["large"])


def test_an_overlap_of_no_tiles_is_refused(tmp_path: Path) -> None:
    head = head_on_tiles(tmp_path)

    with pytest.raises(ConfigError, match="overlap is 4, but tile is None"):
        Predictor(head, tile=None, overlap=4)


def test_a_head_without_tiles_shares_no_pass_with_one_of_tiles(tmp_path: Path) -> None:
    on_tiles = head_on_tiles(tmp_path)
    whole = kit.saved_head(tmp_path / "whole.safetensors", head_of("mask"), SIZE)

    predictor = Predictor({"tiles": on_tiles, "whole": whole})

    tilings = [each.object_tiling for each in predictor.passes]
    assert tilings == [Tiling(SIZE, 12), None]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this model takes")
def test_an_exported_head_of_tiles_takes_whole_images_and_says_so(tmp_path: Path) -> None:
    head = head_on_tiles(tmp_path)

    with pytest.warns(UserWarning, match="the head was trained on tiles of 32x48 px"):
        export_model(head, tmp_path / "h.pt2", format="pt2", check=False)


def test_the_size_of_tiles_may_be_a_list(tmp_path: Path) -> None:
    file = head_on_tiles(tmp_path)

    predictor = Predictor(file, kit.backbone(), tile=[32, 48])  # type: ignore[arg-type]

    assert predictor.tiling == Predictor(file, kit.backbone(), tile=(32, 48)).tiling
