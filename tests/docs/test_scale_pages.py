"""The pages on pipelines, scaling and cost show what was measured, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.speed import cost, pipelines, scaling
from benchmarks.speed.scaling_cases import VIT
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = DOCS / "explanation"


def stored(name: str) -> dict[str, Any]:
    return json.loads((cost.RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "page", "module"), [("pipelines", "whole-pipelines", pipelines), ("scaling", "scaling", scaling)]
)
def test_pages_show_the_stored_tables(name: str, page: str, module: Any) -> None:
    report, text = stored(name), (PAGES / f"{page}.md").read_text()
    assert module.markdown(report).strip() in text
    assert module.page(report) == (cost.RESULTS / f"{name}.md").read_text()
    assert report["machine"]["cpu"] in text
    for library, version in report["machine"]["versions"].items():
        assert version in text, library


def test_the_page_on_cost_shows_what_the_script_gives() -> None:
    page = cost.PAGE.read_text()
    assert cost.filled(page, cost.stored()) == page
    for name, make in cost.TABLES.items():
        assert f"<!-- table: {name} -->\n{make(cost.stored())}\n" in page


def test_tables_of_cost_follow_the_results() -> None:
    results = cost.stored()
    changed = json.loads(json.dumps(results))
    changed["pipelines"]["parts"]["vit_small_patch16_dinov3"]["backbone, float32"] *= 2
    assert cost.backbone_cpu(changed) != cost.backbone_cpu(results)
    assert cost.backbone_gpu(changed) == cost.backbone_gpu(results)


def test_fits_stored_are_those_of_the_points_stored() -> None:
    report = stored("scaling")
    for part in report["axes"].values():
        for name, series in part["series"].items():
            fits = scaling.judged(series, part["from"])
            for what in ("ms", "peak_mib"):
                assert fits[what] == pytest.approx(part["fits"][name][what], rel=1e-6), name
            found = [step["x"] for step in scaling.peaks(series, report["fault_us"])]
            assert found == [step["x"] for step in part["peaks"][name]]


def test_up_to_ten_thousand_tokens_everything_but_the_vit_is_a_fixed_cost_and_a_line() -> None:
    """As the page says."""
    for name, series in stored("scaling")["axes"]["tokens N"]["series"].items():
        below = sum(x <= 10_000 for x in series["x"])
        off = scaling.affine(series["x"][:below], series["ms"][:below])[2]
        assert (off > 3) if name == VIT else (off <= scaling.OFF), name


@pytest.mark.parametrize("path", sorted((DOCS / "images").glob("scaling_*.png")), ids=lambda path: path.stem)
def test_pictures_are_small_and_shown(path: Path) -> None:
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        assert picture.width <= 800
    assert path.name in (PAGES / "scaling.md").read_text()
