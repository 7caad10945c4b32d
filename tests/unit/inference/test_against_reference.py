"""Every combination of heads, views, tiles, preparations and images predicts what the slow reference predicts.

The slow tier prints how many cases of each sort it drew and the largest difference that it saw:
``pytest tests/unit/inference/test_against_reference.py -n 0 -m slow -s``.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from tests.unit.inference import drawn_cases as drawn
from tests.unit.inference.drawn_cases import Case
from tests.unit.inference.reference import pixels_slowly, predict_slowly

from dinoneck import Predictor

BOUND = 1e-5  # of the largest number of an output: rounding of float32 in another order
BOUND_OF_STORE = 5e-3  # the same, where tokens were rounded to 16 bits
LEAST_VALUE = (
    0.1  # a smaller value counts as one: it is the mean of cells of about 1 that cancel out
)
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],  # a drawn case is small: shrinking it takes longer than reading it
    "suppress_health_check": list(HealthCheck),
}


class Differences:
    """The largest difference of all comparisons, and how many cases of each sort there were."""

    def __init__(self) -> None:
        self.largest = dict.fromkeys((False, True), 0.0)
        self.sorts: Counter[str] = Counter()

    def count(self, case: Case) -> None:
        """Count a case by its sorts."""
        [first, *_] = case.heads
        self.sorts.update(
            [
                "cases",
                f"views={first.views}",
                f"maps={case.maps}",
                f"resize={first.resize}",
                "tiles" if case.tile else "no tiles",
                "files" if case.are_files else "modules",
                *(["keyed"] if case.is_keyed else []),
                *(["stored tokens"] if case.is_stored else []),
                *(["several backbones"] if case.are_files and len(case.heads) > 1 else []),
                *(["turned image"] if any(i.orientation > 1 for i in case.images) else []),
                *(["ensemble"] if any(m.members for h in case.heads for m in h.members) else []),
            ]
        )

    def compare(
        self, found: Any, expected: Any, *, is_stored: bool, where: str, least: float = 0.0
    ) -> None:
        """Compare two numbers or arrays, relative to the largest number that is expected.

        Args:
            found: of the predictor.
            expected: of the reference.
            is_stored: whether tokens were rounded.
            where: what it is, for the message.
            least: the smallest number that a difference is relative to.
        """
        found = np.asarray(found, np.float64)
        expected = np.asarray(expected, np.float64).reshape(found.shape)
        assert np.array_equal(np.isnan(found), np.isnan(expected)), f"{where}: other pixels are NaN"
        if np.isnan(expected).all():
            return
        scale = max(float(np.nanmax(np.abs(expected))), least)
        difference = float(np.nanmax(np.abs(found - expected)))
        if difference:
            difference = difference / scale if scale else math.inf
        self.largest[is_stored] = max(self.largest[is_stored], difference)
        bound = BOUND_OF_STORE if is_stored else BOUND
        assert difference <= bound, f"{where}: {found} differs from {expected} by {difference:.2g}"

    def __str__(self) -> str:
        sorts = ", ".join(f"{name}: {count}" for name, count in sorted(self.sorts.items()))
        return (
            f"{sorts}. Largest difference, relative to the largest number of an output: "
            f"{self.largest[False]:.2g} of images, {self.largest[True]:.2g} of stored tokens"
        )


def check(case: Case, folder: Path, differences: Differences) -> None:
    """Predict the images of a case, and each of them slowly."""
    predictor = drawn.predictor_of(case)

    rows = predicted(case, predictor, folder)

    differences.count(case)
    for image, row in zip(case.images, rows, strict=True):
        if case.is_keyed:
            assert [*row] == [*predictor.tasks]
        for number, heads in enumerate(case.heads):
            key = f"key {number}" if case.is_keyed else ""
            check_row(case, heads, image, row[key] if key else row, key, differences)


def predicted(case: Case, predictor: Predictor, folder: Path) -> list[dict[str, Any]]:
    """What the predictor predicts of the images, or of a store of them."""
    images = [drawn.given_image(image, folder) for image in case.images]
    maps: Any = case.maps
    if not case.is_stored:
        return predictor(images, maps=maps, probabilities=case.are_probabilities)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        store = drawn.store_of(case, predictor, Path(own))
        return predictor.predict(store, [image.stem for image in images], maps=maps)


def check_row(
    case: Case,
    heads: drawn.DrawnHeads,
    image: drawn.DrawnImage,
    row: dict[str, Any],
    key: str,
    differences: Differences,
) -> None:
    """Compare what is predicted of one image by the heads of one key."""
    setting = drawn.setting_of(case, heads)
    ensemble = drawn.reference_of(heads)
    pixels = drawn.upright(image)
    expected = predict_slowly(ensemble, pixels, setting)
    maps = expected.pop("maps")
    if case.maps == "image":
        maps = pixels_slowly({"maps": maps}, ensemble, pixels, setting)
    found_maps = row.pop("maps", {})
    row.pop("maps:outputs", None)
    if case.maps is None:
        maps = {}
        expected.pop("gate", None)
    assert row.keys() == expected.keys()
    assert found_maps.keys() == maps.keys()
    for name in expected:
        differences.compare(
            row[name], expected[name], is_stored=case.is_stored, where=name, least=LEAST_VALUE
        )
    for name, cells in maps.items():
        compare_map(found_maps[name], cells, name, case, differences)


def compare_map(found: Any, cells: Any, name: str, case: Case, differences: Differences) -> None:
    """Compare a map; a class index where the reference has probabilities."""
    assert found.shape[-2:] == cells.shape[-2:]
    where = f"map of {name}"
    is_index = found.dtype == np.int64
    if is_index:
        assert np.array_equal(found == -1, np.isnan(cells[0]))
        chosen = np.take_along_axis(cells, np.maximum(found, 0)[None], axis=0)[0]
        differences.compare(chosen, cells.max(axis=0), is_stored=case.is_stored, where=where)
    else:
        assert found.dtype == np.float32
        differences.compare(found, cells, is_stored=case.is_stored, where=where)


@settings(**SETTINGS, max_examples=40)
@given(case=drawn.cases())
def test_predictions_are_those_of_the_reference(
    tmp_path_factory: pytest.TempPathFactory, case: Case
) -> None:
    check(case, tmp_path_factory.getbasetemp(), Differences())


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on a core of its own
def test_500_predictions_are_those_of_the_reference(tmp_path: Path) -> None:
    differences = Differences()

    @settings(**SETTINGS, max_examples=500)
    @given(case=drawn.cases())
    def compare(case: Case) -> None:
        check(case, tmp_path, differences)

    compare()

    print(differences)
    assert differences.sorts["cases"] >= 500
    assert min(differences.sorts.values()) >= 20
