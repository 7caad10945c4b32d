"""Small data sets of every form that is read: right values, no warning, and nothing but these.

The cases of "0.4" hold for the version before `data` was written again as well: run this file with
``--noconftest`` and that version's ``src`` before this one's in ``PYTHONPATH``.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net import images, layouts, masks, objects, tables
from tests.net.case import Case

IS_BEFORE_THE_REWRITE = importlib.util.find_spec("dinoneck.images") is None
CASES = [
    *layouts.CASES,
    *tables.CASES,
    *masks.CASES,
    *images.CASES,
    *objects.CASES,
]


@pytest.fixture
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is right is read without a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    if IS_BEFORE_THE_REWRITE:
        return
    lines = [str(item.message) for item in caught if item.category is not DeprecationWarning]
    for record in caplog.get_records("call"):
        if record.levelno >= logging.WARNING and record.name.startswith("dinoneck"):
            lines.append(record.getMessage())
    assert not lines


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_data_are_read_as_they_are_meant(case: Case, tmp_path: Path) -> None:
    if IS_BEFORE_THE_REWRITE and case.since != "0.4":
        pytest.skip(f"read so since {case.since}")
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    case.write(tmp_path)

    if isinstance(case.right, type):
        with pytest.raises(case.right) as refusal:
            case.read(tmp_path)
        missing = [name for name in case.names if name not in str(refusal.value)]
        assert not missing, refusal.value
    else:
        assert case.read(tmp_path) == case.right


def test_every_case_has_its_own_name() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
