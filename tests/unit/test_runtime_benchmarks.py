"""What the benchmarks of runtimes compute: clocks, operations, shares of a core, and scores."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import runtime_scores, runtime_speed
from benchmarks.measure import Clock, turns_by_both_clocks
from benchmarks.runtime_speed import Work, operations_of
from torch.utils.flop_counter import flop_registry

from dinoneck import load_backbone


def test_both_clocks_say_what_the_same_runs_took() -> None:
    runs: list[str] = []

    def sleep() -> None:
        runs.append("sleep")
        time.sleep(0.02)

    wall_clock, cpu_time = turns_by_both_clocks({"sleep": sleep}, rounds=3)
    assert len(runs) == 4
    assert len(wall_clock.seconds["sleep"]) == len(cpu_time.seconds["sleep"]) == 3
    assert min(wall_clock.first["sleep"], *wall_clock.seconds["sleep"]) >= 0.02
    assert max(cpu_time.seconds["sleep"]) < 0.02


def test_a_row_has_ratios_by_both_clocks_and_the_share_of_the_fastest_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall_clock = Clock(
        first={"script": 2.0, "fast": 5.0}, seconds={"script": [2.0, 6.0], "fast": [1.0, 2.0]}
    )
    cpu_time = Clock(first={}, seconds={"script": [4.0, 4.0], "fast": [1.0, 1.0]})
    monkeypatch.setattr(
        runtime_speed, "turns_by_both_clocks", lambda variants, rounds: (wall_clock, cpu_time)
    )
    operations = 10 * 10**9
    works = {
        "script": Work(lambda: None, operations, torch.float32),
        "fast": Work(lambda: None, operations, torch.bfloat16),
    }
    peaks = {torch.float32: 10.0, torch.bfloat16: 40.0}
    rows = runtime_speed.compare(works, peaks, peer="script", rounds=2)
    assert rows["fast"]["× script"] == 2.5  # the median of 2 and 3
    assert rows["fast"]["× by CPU time"] == 4.0
    assert rows["fast"]["first run more, s"] == 3.5
    assert rows["fast"]["GFLOP/s of a core"] == 10.0
    assert rows["fast"]["share of the fastest product"] == 0.25
    assert rows["script"]["share of the fastest product"] == 0.25


@pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="the counter of this torch knows no attention on CPUs",
)
def test_operations_are_those_of_the_products_of_a_vit() -> None:
    backbone = load_backbone("dinoneck_tiny")
    width = backbone.embed_dim
    depth = len(list(backbone.adapter.blocks))
    patches = 2 * 3
    tokens = backbone.num_prefix_tokens + patches
    block = next(iter(backbone.adapter.blocks))
    hidden = block.get_parameter("mlp.fc1.weight").shape[0]
    linear = 2 * tokens * (4 * width * width + 2 * width * hidden)
    attention = 2 * 2 * tokens * tokens * width
    convolution = 2 * patches * width * 3 * 16 * 16
    counted = operations_of(backbone, (32, 48))
    assert counted == pytest.approx(convolution + depth * (linear + attention), rel=0.02)


def photos_of_two_classes() -> runtime_scores.Photos:
    return runtime_scores.Photos(images=[], masks=[], classes=("a", "b"), num_train=1)


def test_scores_are_of_the_held_out_images_only() -> None:
    """Of three images the first was trained on; predictions of the others are right, then one is wrong."""
    classes = torch.zeros(3, *runtime_scores.SIZE, dtype=torch.int64)
    classes[2] = 1
    shares = torch.stack((1.0 - classes, classes), dim=1)[:, :, :4, :4].float()
    truth = runtime_scores.Truth(shares=shares, weights=torch.ones(3, 4, 4), classes=classes)
    right = {"share": shares[1:], "class": shares[1:]}
    assert runtime_scores.score(right, truth, photos_of_two_classes()) == {"R²": 1.0, "mIoU": 1.0}
    wrong = {"share": shares[[1, 1]], "class": shares[[1, 1]]}
    # an error of 1 in one of two images, around a mean of 0.5; class a covers half, b is never found
    assert runtime_scores.score(wrong, truth, photos_of_two_classes()) == {
        "R²": -1.0,
        "mIoU": 0.25,
    }


def test_the_largest_difference_is_relative_to_the_largest_prediction() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert runtime_scores.largest_difference(expected, torch.tensor([2.0, -4.0])) == 0.25


def test_boxes_are_filled_the_smaller_over_the_larger(tmp_path: Path) -> None:
    for name in ("train", "val"):
        boxes = [
            {"image_id": 1, "category_id": 7, "bbox": [2, 1, 2, 2]},
            {"image_id": 1, "category_id": 5, "bbox": [-1, 0, 6, 4]},
        ]
        content = {
            "images": [{"id": 1, "file_name": f"{name}.jpg", "width": 8, "height": 6}],
            "categories": [{"id": 5, "name": "RBC"}, {"id": 7, "name": "WBC"}],
            "annotations": boxes,
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    photos = runtime_scores.cell_photos(tmp_path)
    expected = np.zeros((6, 8))
    expected[:4, :5] = 1
    expected[1:3, 2:4] = 2
    np.testing.assert_array_equal(photos.masks[0], expected)
    assert photos.num_train == 1
    assert [image.name for image in photos.images] == ["train.jpg", "val.jpg"]


def test_fewer_photos_are_spread_over_both_parts() -> None:
    photos = runtime_scores.Photos(
        images=[Path(str(number)) for number in range(10)],
        masks=[Path(str(number)) for number in range(10)],
        classes=("a",),
        num_train=7,
    )
    fewer = runtime_scores.thinned(photos, 3, 2)
    assert [image.name for image in fewer.images] == ["0", "3", "6", "7", "9"]
    assert fewer.num_train == 3
