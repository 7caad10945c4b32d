"""What is scored: how targets of each kind read predictions from a head's outputs, and write them as cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinoneck import ConfigError
from dinoneck.training.report import check_target_names, no_predictions
from dinoneck.training.scored import ClassTarget, PixelTarget, ValueTarget
from dinoneck.training.scores import Split


def numbers(**options: bool) -> ValueTarget:
    """Two numbers of three images, which the last two columns of an output predict."""
    truth = np.array([[1.0, 2.0], [3.0, math.nan], [5.0, 6.0]])
    return ValueTarget("mix", columns=(1, 2), truth=truth, **options)


def classes() -> ClassTarget:
    return ClassTarget("kind", truth=np.array([1, -1, 0]), labels=("soil", "crop"))


def pixels_of_row(row: int) -> torch.Tensor:
    """A mask of 2 x 2 pixels of class ``row``, and one of row 2, where no pixel is known."""
    return torch.full((1, 2, 2), row if row < 2 else -1)


def pixels() -> PixelTarget:
    return PixelTarget("cover", num_rows=3, num_classes=2, labels=(), read_pixels=pixels_of_row)


def test_numbers_are_read_from_their_columns() -> None:
    target = numbers()
    output = torch.arange(6.0).reshape(2, 3)

    selected = target.select({"mix": output, "other": output + 9})

    assert target.read(selected, [0, 2]).tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_numbers_per_patch_have_no_columns_of_out_of_fold() -> None:
    per_patch = ValueTarget("map", columns=(0,), truth=np.zeros((3, 1, 2, 2)))

    assert per_patch.is_per_patch and not per_patch.has_columns
    assert numbers().has_columns
    assert not numbers(auxiliary=True).has_columns


def test_cells_of_numbers_have_six_digits_and_none_where_nothing_is_known() -> None:
    cells = numbers().cells(np.array([[1 / 3], [math.nan], [1234567.0]]))

    assert cells == [0.333333, None, 1234570.0]


def test_classes_are_the_most_probable_ones() -> None:
    target = classes()
    probabilities = torch.tensor([[0.9, 0.1], [0.2, 0.8]])

    selected = target.select({"kind": probabilities})

    assert target.read(selected, [0, 1]).tolist() == [0, 1]


def test_cells_of_classes_are_their_names() -> None:
    assert classes().cells(np.array([1, -1, 0])) == ["crop", None, "soil"]


def test_pixels_are_read_as_a_confusion_matrix_of_each_image() -> None:
    target = pixels()
    is_crop = torch.tensor([[[[0.0]], [[1.0]]]]).expand(2, 2, 1, 1)  # of every pixel

    selected = target.select({"cover": is_crop})

    assert target.read(selected, [0, 1]).tolist() == [[[0, 4], [0, 0]], [[0, 0], [0, 4]]]


def test_pixels_without_a_label_are_in_no_matrix() -> None:
    class_map = torch.zeros(1, 2, 1, 1)

    assert not pixels().read(class_map, [2]).any()


def test_nothing_is_scored_where_nothing_was_predicted() -> None:
    targets = {"mix": numbers(), "kind": classes(), "cover": pixels()}
    split = Split([np.arange(3)], ["a", "b", "c"])

    predictions = no_predictions(targets)

    for name, target in targets.items():
        assert target.score(predictions[name], split)["images"] == 0


def test_rows_that_are_taken_keep_their_truth() -> None:
    rows = np.array([1, 2])

    assert numbers().take(rows).truth[1].tolist() == [5.0, 6.0]
    assert classes().take(rows).truth.tolist() == [-1, 0]
    taken = pixels().take(rows)
    assert taken.num_rows == 2
    assert taken.read_pixels(0).tolist() == pixels_of_row(1).tolist()


@pytest.mark.parametrize("name", ["mix (linear)", "overall (mean)", "overall (weighted)"])
def test_a_target_that_is_called_like_another_column_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="rename it"):
        check_target_names({"mix": numbers(), name: numbers()})
