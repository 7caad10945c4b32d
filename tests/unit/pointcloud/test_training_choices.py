"""Options, scenes and classes of a run: none is without effect, and comparisons are of the same classes and scenes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examples.pointcloud import extraction, training
from examples.pointcloud.frames import read_frames
from examples.pointcloud.room_batches import IGNORED, Scene, Voxels, batch_of
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import VARIANTS, Variant, build, load_weights, save_weights
from examples.pointcloud.training_plan import Rooms, misled, plan_of
from tests.unit.pointcloud.frame_samples import run_verb
from tests.unit.pointcloud.test_pointcloud_training import PLAN, made, options_of, rooms
from tests.unit.pointcloud.test_scans import drawn, write_scene

from dinoneck import ConfigError, DataError

TINY = ["--backbone", "dinoneck_tiny", "--random-backbone"]
SCANS = [
    "--network",
    "small",
    "--engine",
    "torch",
    "--points",
    "1000",
    "--steps",
    "1",
    "--batch",
    "1",
    "--voxel",
    "0.25",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed in range(2):
        write_scene(tmp_path / "tree", f"scene{seed}", drawn(seed).frames)
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--data", "tree", "--rooms", "3"], "--rooms"),
        (["--data", "tree", "--image-size", "32x32"], "--image-size"),
        (["--held-out", "scene1"], "--held-out"),
        (["--every", "2"], "--every"),
        (["--data", "tree", "--clouds", "clouds"], "--clouds"),
        (["--data", "tree", "--classes", "1=wall"], "--classes"),
        (["--data", "tree", "--features", "store", "--backbone", "dinoneck_tiny"], "--backbone"),
        (["--data", "tree", "--features", "store", "--cache", "cache"], "--cache"),
    ],
)
def test_options_without_effect_are_refused(words: list[str], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: without effect"):
        plan_of(options_of(training, [*words, "--out", "x"]))


def test_several_labels_may_have_one_name_and_no_label_two() -> None:
    words = ["--data", "tree", "--labels", "labels", "--out", "x", "--classes", "1=wall", "2=floor", "21=wall"]
    plan = plan_of(options_of(training, words), seed=0)
    assert plan.names == ("wall", "floor") and plan.ids == {1: 0, 2: 1, 21: 0}
    with pytest.raises(ConfigError, match="gives a label twice"):
        plan_of(options_of(training, [*words, "1=door"]))


def test_frames_are_chosen_as_extract_chose_them(tree: Path, tmp_path: Path) -> None:
    words = ["--data", tree, "--held-out", "scene1", *SCANS, "--variant", "inject"]
    assert run_verb(extraction, tree, "--out", tmp_path / "store", "--every", 2, *TINY) == 0
    features = ("--features", tmp_path / "store")
    with pytest.raises(DataError, match="frames are not in .*--every chooses frames as it does for extract"):
        run_verb(training, *words, *features, "--out", tmp_path / "a")
    assert run_verb(training, *words, *features, "--every", 2, "--out", tmp_path / "a") == 0


def test_a_linked_scene_has_the_name_of_its_link(tree: Path) -> None:
    (tree / "2D" / "other").symlink_to(tree / "2D" / "scene0", target_is_directory=True)
    assert read_frames(tree / "2D" / "other").names[0] == "other/color/0"


def test_features_of_scans_are_kept_in_the_cache(tree: Path, tmp_path: Path) -> None:
    words = ["--data", tree, "--held-out", "scene1", *SCANS, *TINY, "--variant", "inject"]
    for name in "ab":
        assert run_verb(training, *words, "--cache", tmp_path / "cache", "--out", tmp_path / name) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_single_held_out_room_gets_the_images_of_another_too() -> None:
    own, wrong = rooms(), misled(rooms())
    assert len(own.test) == 1 and wrong.test[0].maps is own.train[0].maps


def test_classes_that_are_not_held_out_have_no_iou_in_any_variant(caplog: pytest.LogCaptureFixture) -> None:
    one = rooms().test[0]
    bare = replace(one, labels=one.labels.where(one.labels != 4, IGNORED))
    model = made("3d")
    with torch.no_grad():
        model.classifier.bias[4] = 99.0  # predicts nothing else
    result = training.measure(model, Voxels(0.25), (bare,), CLASSES)
    assert result["iou"][CLASSES[4]] is None
    assert result["miou"] == 0.0  # of the others, all missed
    with caplog.at_level(logging.WARNING):
        training._log_absent(Rooms((one,), (bare,), None), CLASSES)
        training._log_absent(Rooms((bare,), (one,), None), CLASSES)
    assert f"{CLASSES[4]}: no labelled point to test on" in caplog.text
    assert f"{CLASSES[4]}: no labelled point to learn from" in caplog.text


def test_a_classifier_of_other_names_is_new(tmp_path: Path) -> None:
    save_weights(made("3d"), tmp_path / "a.safetensors", CLASSES)
    assert load_weights(made("3d"), tmp_path / "a.safetensors", CLASSES) == ()
    assert load_weights(made("3d"), tmp_path / "a.safetensors", CLASSES[::-1]) == ("classifier",)


def test_wrong_paths_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="which is a file; expected a folder"):
        run_verb(training, "--variant", "3d", "--out", tmp_path / "file")
    with pytest.raises(ConfigError, match="there is no such file"):
        run_verb(training, "--variant", "3d", "--out", tmp_path / "a", "--load-from", tmp_path / "b")


def turned_away(one: Scene) -> Scene:
    """The scene with cameras that look into the void: no point is visible."""
    assert one.links is not None
    empty = one.links.view[:0]
    links = replace(one.links, view=empty, point=empty, uv=one.links.uv[:0], z=one.links.z[:0], counts=None)
    return replace(one, links=links)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scenes_without_a_visible_point_train(variant: Variant) -> None:
    blind = tuple(map(turned_away, rooms().train))
    model = build(variant, network="small", in_channels=4, classes=len(CLASSES), c_dino=64, engine="torch")
    losses = training.learn(model, Voxels(0.25, strides=model.strides), blind, replace(PLAN, steps=2))
    assert len(losses) == 2
    batch = batch_of(blind, Voxels(0.25, strides=(1, 2)))
    assert batch.pyramid is not None and not batch.seen.any() and not batch.pyramid[2].valid.any()
