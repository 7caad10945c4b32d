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


def test_tables_of_cost_follow_the_results() -> None:
    results = cost.measured()
    parts = {"vit_small_patch16_dinov3": {f"backbone, {dtype}": 100.0 for dtype in ("float32", "bfloat16")}}
    one = {**results, "pipelines": {"parts": parts}}
    other = json.loads(json.dumps(one))
    other["pipelines"]["parts"]["vit_small_patch16_dinov3"]["backbone, float32"] *= 2
    assert cost.backbone_cpu(other) != cost.backbone_cpu(one)
    assert cost.backbone_gpu(other) == cost.backbone_gpu(one)


def test_threads_of_a_gpu_follow_the_size_that_photos_are_brought_to() -> None:
    took = {preprocess_at(side): side / 100 for side in cost.SIDES}
    pipes = {"parts": {"vit_small_patch16_dinov3": took}, "setting": {"kind": "real photos, 480×360 JPEG"}}
    said = cost.photos({"pipelines": pipes})
    rate = cost.gpu_rate(cost.HUGE, 3600)
    assert f"{cost.amount(rate * 9.6e-3)} threads" in said and said.count("real photos, 480×360 JPEG") == 3
    assert f"{cost.amount(2.24e-3 * 1e6 / 3600)} thread-hours for 10⁶" in said


def test_a_short_run_leaves_the_page_on_cost_in_one_piece() -> None:
    short = {**cost.measured(), "pipelines": {"parts": {"dinoneck_tiny": {}}, "setting": {}}}
    assert cost.filled(cost.PAGE.read_text(), short).count("Not measured yet") == 4


@pytest.mark.parametrize("name", ["backbone-cpu", "index", "files", "photos"])
def test_what_was_not_measured_is_told_so(name: str) -> None:
    assert cost.TABLES[name]({**cost.measured(), "pipelines": {}}).startswith("Not measured yet")


def test_a_part_of_a_page_is_replaced() -> None:
    page = f"a\n<!-- table: one -->\nold\n{END}\nb\n<!-- table: two -->\n{END}\n"
    new = replaced(page, "one", "new\n")
    assert new == f"a\n<!-- table: one -->\n\nnew\n\n{END}\nb\n<!-- table: two -->\n{END}\n"
    assert replaced(new, "one", "new") == new
    with pytest.raises(SystemExit, match="three"):
        replaced(page, "three", "new")
