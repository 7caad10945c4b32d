"""The cells of a table as fit reads them: words, missing values, and numbers of pandas' own types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import DataError, Task
from dinoneck.losses import TaskLoss
from dinoneck.training.samples import match_samples
from dinoneck.training.targets import normalise_samples

pd = pytest.importorskip("pandas", reason="needs dinoneck[train]")

IDS = ["p0", "p1", "p2", "p3"]
NUMBER = Task("y")
KIND = Task("y", dim=3, kind="classification", labels=("a", "b", "c"))
GRADE = Task("y", dim=3, kind="classification", labels=("1", "2", "3"))


def read(task: Task, column: Any) -> list[float]:
    """The values of a column in the order of the ids, as the loss gets them."""
    table = column
    if not isinstance(column, dict):
        table = pd.DataFrame({"y": column}, index=IDS)
    matched = match_samples(IDS, table, None, {"y": task.labels}, ids=IDS)
    samples = normalise_samples(TaskLoss([task]), matched, needs_validation=False)
    return list(samples.targets.values["y"].flatten().tolist())


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "double[pyarrow]", object])
def test_missing_numbers_of_pandas_are_nan(dtype: Any) -> None:
    if dtype == "double[pyarrow]":
        pytest.importorskip("pyarrow")
    column = pd.Series([1, None, 3, 4], dtype=dtype, index=IDS)

    values = read(NUMBER, column)

    np.testing.assert_array_equal(values, [1.0, np.nan, 3.0, 4.0])


@pytest.mark.parametrize("dtype", ["str", object, "category"])
def test_words_are_the_classes_of_the_labels(dtype: Any) -> None:
    assert read(KIND, pd.Series(["b", "a", "c", "b"], dtype=dtype, index=IDS)) == [1, 0, 2, 1]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=["None", "NaN", "NA"])
def test_a_missing_word_is_no_class(missing: Any) -> None:
    column = pd.Series(["b", missing, "c", "a"], dtype=object, index=IDS)

    assert read(KIND, column) == [1, -1, 2, 0]


def test_words_by_id_are_the_classes_of_the_labels() -> None:
    by_id = {"p3": "a", "p1": "c", "p0": "b", "p2": None}

    assert read(KIND, {"y": by_id}) == [1, 2, -1, 0]


@pytest.mark.parametrize(
    "values", [[3, 1, 2, None], [3.0, 1.0, 2.0, None]], ids=["integers", "floats"]
)
def test_categories_that_are_numbers_are_the_classes_that_are_called_so(
    values: Sequence[Any],
) -> None:
    assert read(GRADE, pd.Categorical(values)) == [2, 0, 1, -1]


def test_missing_class_indices_of_pandas_are_no_class() -> None:
    assert read(KIND, pd.array([2, None, 0, 1], dtype="Int64")) == [2, -1, 0, 1]


def test_truth_values_are_the_classes_that_are_called_so() -> None:
    task = Task("y", dim=2, kind="classification", labels=("True", "False"))

    assert read(task, [True, False, False, True]) == [0, 1, 1, 0]


def test_truth_values_without_words_are_the_indices_0_and_1() -> None:
    task = Task("y", dim=2, kind="classification")

    assert read(task, [True, False, False, True]) == [1, 0, 0, 1]


@pytest.mark.parametrize("labels", [("yes", "no"), ("no", "yes")])
def test_truth_values_of_a_task_with_other_words_are_refused(labels: tuple[str, str]) -> None:
    task = Task("y", dim=2, kind="classification", labels=labels)

    with pytest.raises(DataError, match=f"'y' hold True, .*{labels[0]}, {labels[1]}"):
        read(task, [True, False, False, True])


@pytest.mark.parametrize(
    ("task", "column", "words"),
    [
        (KIND, ["b", "a", "d", "a"], ("y has the class 'd'", "a, b, c")),
        (GRADE, pd.Categorical([1, 2, 7, 2]), ("y has the class '7'", "1, 2, 3")),
        (KIND, [0.5, 1.0, 2.0, 0.0], ("'y' hold", "0.5", "class indices or its labels")),
        (NUMBER, [1.0, "tall", 2.0, 3.0], ("'y' hold 'tall'", "numbers, NaN = missing")),
        (NUMBER, np.array([1j, 2j, 3j, 4j]), ("'y' hold", "1j", "numbers, NaN = missing")),
        (
            Task("y", dim=3, kind="classification"),
            ["b", "a", "c", "b"],
            ("'y' hold 'b'", "expected class indices"),
        ),
    ],
    ids=["other word", "other category", "share", "word", "complex", "no labels"],
)
def test_what_is_no_target_is_named(task: Task, column: Any, words: Sequence[str]) -> None:
    with pytest.raises(DataError) as refused:
        read(task, column)

    for word in words:
        assert word in str(refused.value)


def test_float_targets_keep_their_values() -> None:
    values = read(NUMBER, np.array([0.25, np.nan, -1.5, 3.0], dtype=np.float32))

    torch.testing.assert_close(
        torch.tensor(values), torch.tensor([0.25, torch.nan, -1.5, 3.0]), equal_nan=True
    )


def by_id(*values: float) -> dict[str, dict[str, float]]:
    """A table of the task y: its values, one for each id."""
    return {"y": dict(zip(IDS, values, strict=True))}


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        pytest.param(
            Task("y", minimum=0),
            (0.5, -0.25, 1.0, -2.0),
            r"2 images with targets of 'y' below the minimum 0: 'p1' with -0\.25, 'p3' with -2\. "
            r"Predictions never go below it: .* another minimum \(--minimum\)",
            id="minimum",
        ),
        pytest.param(
            Task("y", maximum=1),
            (0.5, 1.25, 1.0, 0.0),
            r"1 image with targets of 'y' above the maximum 1: 'p1' with 1\.25\. "
            r"Predictions never go above it: .* another maximum \(--maximum\)",
            id="maximum",
        ),
        pytest.param(
            Task("y"),
            (0.5, np.inf, 1.0, 0.0),
            "1 image with infinite targets of 'y': 'p1'; missing ones are NaN",
            id="infinite",
        ),
    ],
)
def test_numbers_that_no_prediction_reaches_are_refused_by_their_images(
    task: Task, values: Sequence[float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(task, by_id(*values))


def test_numbers_at_their_bounds_and_missing_ones_are_learned() -> None:
    task = Task("y", minimum=0, maximum=1)

    values = read(task, by_id(0.0, 1.0 + 1e-7, np.nan, 0.5))

    np.testing.assert_allclose(values, [0.0, 1.0, np.nan, 0.5], rtol=1e-6)
