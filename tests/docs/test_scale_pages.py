"""The pages on pipelines, scaling and cost show what was measured, and what follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchmarks.speed import cost, pipelines, scaling
from benchmarks.speed.marked import END, replaced
from benchmarks.speed.pipeline_forms import preprocess_at
from benchmarks.speed.results import RESULTS, stored
from PIL import Image

MODULES = {"pipelines": pipelines, "scaling": scaling}


def found(name: str) -> dict[str, Any]:
    """Stored results, if there are any."""
    report = stored(RESULTS, name)
    if report is None:
        pytest.skip(f"no {name}.json is stored: `python -m benchmarks.speed.{name}`")
    return report


@pytest.mark.parametrize("name", MODULES)
def test_a_page_is_filled_with_what_is_stored(name: str) -> None:
    module: Any = MODULES[name]
    text = module.PAGE.read_text()
    assert module.filled(text, stored(RESULTS, name)) == text
    assert "Not measured yet" in module.filled(text, None)


@pytest.mark.parametrize("name", MODULES)
def test_stored_tables_are_those_of_the_stored_numbers(name: str) -> None:
    module: Any = MODULES[name]
    assert module.page(found(name)) == (RESULTS / f"{name}.md").read_text()


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


def test_fits_stored_are_those_of_the_points_stored() -> None:
    report = found("scaling")
    for part in report["axes"].values():
        for name, series in part["series"].items():
            fits = scaling.judged(series, part["from"])
            for what in ("ms", "peak_mib"):
                assert fits[what] == pytest.approx(part["fits"][name][what], rel=1e-6), name
            steps = [step["x"] for step in scaling.peaks(series, report["fault_us"])]
            assert steps == [step["x"] for step in part["peaks"][name]]


@pytest.mark.parametrize("path", sorted(scaling.IMAGES.glob("scaling_*.png")), ids=lambda path: path.stem)
def test_pictures_are_small_and_shown(path: Any) -> None:
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        assert picture.width <= 800
    assert path.name in scaling.PAGE.read_text()
