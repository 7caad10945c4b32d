"""The page on compatibility shows the stored cells, all of them, and none with a failure hidden."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from benchmarks.matrix import ENDS, PAGE, PYTHONS, RESULTS, SHOWN, markdown

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_shows_the_stored_cells() -> None:
    assert markdown(json.loads(RESULTS.read_text())["cells"]) in PAGE.read_text()


def test_the_matrix_is_of_the_supported_pythons() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [line.rsplit(" ", 1)[1] for line in project["classifiers"] if "Python :: 3." in line] == list(PYTHONS)
    cells = {(cell["python"], cell["dependencies"]): cell for cell in json.loads(RESULTS.read_text())["cells"]}
    assert set(cells) == {(python, end) for python in PYTHONS for end in ENDS}
    for cell in cells.values():
        assert cell["passed"] > 5000 and cell["failed"] == 0
        assert all(name in cell["versions"] for name in SHOWN)






def test_the_quick_start_tells_the_stored_times() -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "first_prediction.json").read_text())
    page = (ROOT / "docs" / "quick-start.md").read_text()
    assert f"{stored['after_install_s']:.0f} s after the install" in page
    assert f"took {stored['seconds']['install']:.0f} s" in page
    assert stored["after_install_s"] <= 300
