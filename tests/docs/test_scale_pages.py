"""The pages on pipelines and cost show what was measured, and what follows from it."""

from __future__ import annotations

import json

import pytest
from benchmarks.speed import cost, pipelines
from benchmarks.speed.marked import END, replaced
from benchmarks.speed.pipeline_forms import preprocess_at
from benchmarks.speed.results import RESULTS, stored


def test_the_page_on_pipelines_is_filled_with_what_is_stored() -> None:
    text = pipelines.PAGE.read_text()
    assert pipelines.filled(text, stored(RESULTS, "pipelines")) == text
    assert "Not measured yet" in pipelines.filled(text, None)


def test_stored_tables_are_those_of_the_stored_numbers() -> None:
    report = stored(RESULTS, "pipelines")
    assert report is not None
    assert pipelines.page(report) == (RESULTS / "pipelines.md").read_text()


def test_the_page_on_cost_shows_what_the_script_gives() -> None:
    text = cost.PAGE.read_text()
    assert cost.filled(text, cost.measured()) == text










