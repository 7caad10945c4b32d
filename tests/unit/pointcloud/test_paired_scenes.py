"""Paired differences of AP: draws of groups are APs of their own, and intervals say what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples.pointcloud.comparison_tables import precision_table
from examples.pointcloud.instances import (
    AP_OF,
    LEAST_POINTS,
    Masks,
    SceneMatches,
    matches_from_json,
    matches_to_json,
    precision_of,
    resampled_precision,
    scene_matches,
)
from examples.pointcloud.paired import DRAWS, PairedPrecision, draw_counts, group_of

NAMES = ("chair", "sofa")
OBJECTS, POINTS_EACH = 4, 2 * LEAST_POINTS


def scene(kept: float, seed: int) -> SceneMatches:
    """A scene of four objects, of which a prediction each finds a share of the points."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.arange(OBJECTS).repeat_interleave(POINTS_EACH)
    classes = torch.tensor([0, 1, 0, 1])
    true = Masks(place, classes, torch.ones(OBJECTS))
    found = torch.rand(len(place), generator=generator) < kept
    scores = torch.rand(OBJECTS, generator=generator)
    predicted = Masks(torch.where(found, place, -1), classes, scores)
    return scene_matches(predicted, true, NAMES)


def scenes(kept: float, number: int, seed: int = 0) -> list[SceneMatches]:
    return [scene(kept, seed * 100 + place) for place in range(number)]


def test_a_draw_is_the_ap_of_the_scenes_it_holds_as_often_as_it_holds_them() -> None:
    matches = scenes(0.7, 5)
    counts = np.array([[2, 0, 1, 0, 2], [0, 3, 1, 1, 0], [1, 1, 1, 1, 1]], float)
    for score in ("AP", "AP50", "AP25"):
        found = resampled_precision(matches, NAMES, score, counts)
        for draw, row in zip(found, counts.astype(int), strict=True):
            held = [one for one, count in zip(matches, row, strict=True) for _ in range(count)]
            assert draw == pytest.approx(precision_of(held, NAMES)[score])
    assert 0 < precision_of(matches, NAMES)["AP"] < 1


def test_a_draw_without_a_true_instance_is_no_number() -> None:
    nothing = Masks(torch.full((50,), -1), torch.zeros(0).long(), torch.zeros(0))
    empty = scene_matches(nothing, nothing, NAMES)
    counts = np.array([[2.0, 0.0], [0.0, 2.0]])
    found = resampled_precision([empty, scene(1.0, 0)], NAMES, "AP", counts)
    assert np.isnan(found[0]) and found[1] == 1.0


def test_matches_come_back_from_plain_values() -> None:
    matches = scenes(0.7, 2)
    assert matches_from_json(matches_to_json(matches)) == matches


def test_equal_rows_differ_by_nothing() -> None:
    row = [scenes(0.7, 6), scenes(0.7, 6, seed=1)]
    found = PairedPrecision({"a": row, "b": row}, list("uvwxyz"), NAMES).difference("a", "b", "AP")
    assert found == {"difference": 0.0, "interval": [0.0, 0.0], "groups": 6, "excludes_0": False}


def test_a_better_row_has_an_interval_above_0_around_its_difference() -> None:
    rows = {"a": [scenes(0.95, 8)], "b": [scenes(0.6, 8)]}
    paired = PairedPrecision(rows, [str(place) for place in range(8)], NAMES)
    found = paired.difference("a", "b", "AP")
    expected = precision_of(rows["a"][0], NAMES)["AP"] - precision_of(rows["b"][0], NAMES)["AP"]
    assert found["difference"] == pytest.approx(expected)
    assert 0 < found["interval"][0] < expected < found["interval"][1]
    assert found["excludes_0"]
    other = paired.difference("b", "a", "AP")
    assert other["interval"] == [pytest.approx(-end) for end in reversed(found["interval"])]


def test_the_difference_is_the_mean_over_seeds() -> None:
    rows = {"a": [scenes(0.9, 5), scenes(0.8, 5, seed=1)], "b": [scenes(0.6, 5), scenes(0.5, 5)]}
    found = PairedPrecision(rows, list("uvwxy"), NAMES).difference("a", "b", "AP50")
    each = [
        precision_of(a, NAMES)["AP50"] - precision_of(b, NAMES)["AP50"]
        for a, b in zip(rows["a"], rows["b"], strict=True)
    ]
    assert found["difference"] == pytest.approx(np.mean(each))


def test_too_few_groups_have_no_interval() -> None:
    rows = {"a": [scenes(0.9, 6)], "b": [scenes(0.6, 6)]}
    groups = ["scene0001", "scene0001", "scene0002", "scene0002", "scene0003", "scene0003"]
    found = PairedPrecision(rows, groups, NAMES).difference("a", "b", "AP")
    assert found["interval"] is None and found["excludes_0"] is None
    assert found["groups"] == 3


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_table_of_too_few_groups_says_so_in_place_of_intervals(number: int) -> None:
    rows = {"a": [scenes(0.9, number)], "b": [scenes(0.6, number)]}
    paired = PairedPrecision(rows, list("uvwx")[:number], NAMES)
    differences = {"a - b": {score: paired.difference("a", "b", score) for score in AP_OF}}

    *table, _, note = precision_table(differences)

    [row] = table[2:]
    cells = row.strip("| ").split(" | ")
    assert cells[2::2] == ["–", "–", "–"]
    groups = "1 group" if number == 1 else f"{number} groups"
    assert note.startswith(f"No intervals of AP: {groups} of held-out scenes, and 5 or more are")


def test_a_table_of_five_groups_shows_intervals() -> None:
    rows = {"a": [scenes(0.9, 5)], "b": [scenes(0.6, 5)]}
    paired = PairedPrecision(rows, list("uvwxy"), NAMES)
    found = {score: paired.difference("a", "b", score) for score in AP_OF}

    *table, _, note = precision_table({"a - b": found})

    low, high = found["AP50"]["interval"]
    assert f"| {low:+.3f} ... {high:+.3f} |" in table[2]
    assert note.startswith("Intervals draw the 5 groups")


def test_scans_of_one_room_are_drawn_together() -> None:
    assert [group_of(name) for name in ("scene0011_00", "scene0011_01", "office_2")] == [
        "scene0011",
        "scene0011",
        "office_2",
    ]
    counts = draw_counts(["a", "a", "b", "c", "c"], seed=0)
    assert counts.shape == (DRAWS, 5)
    assert (counts[:, 0] == counts[:, 1]).all() and (counts[:, 3] == counts[:, 4]).all()
    assert (counts[:, [0, 2, 3]].sum(1) == 3).all()
    assert counts[:, 0].mean() == pytest.approx(1.0, abs=0.1)
