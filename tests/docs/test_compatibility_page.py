"""The page on compatibility shows the stored cells, all of them, and none with a failure hidden."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from benchmarks.matrix import PAGE, RESULTS, SHOWN, markdown

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_shows_the_stored_cells() -> None:
    assert markdown(json.loads(RESULTS.read_text())["cells"]) in PAGE.read_text()


def test_every_supported_python_was_run_at_both_ends() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [line.rsplit(" ", 1)[1] for line in project["classifiers"] if "Python :: 3." in line]
    cells = {(cell["python"], cell["dependencies"]): cell for cell in json.loads(RESULTS.read_text())["cells"]}
    assert set(cells) == {(python, end) for python in pythons for end in ("oldest", "newest")}
    for cell in cells.values():
        assert cell["passed"] > 5000
        assert all(name in cell["versions"] for name in SHOWN)
    oldest, newest = cells["3.11", "oldest"]["versions"], cells["3.11", "newest"]["versions"]
    floor = next(line for line in project["dependencies"] if line.startswith("torch>="))
    assert oldest["torch"].startswith(floor.removeprefix("torch>="))
    assert oldest["torch"] != newest["torch"]


def test_the_noxfile_names_the_pythons_of_the_project() -> None:
    text = (ROOT / "noxfile.py").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["classifiers"]:
        if "Python :: 3." in line:
            assert f'"{line.rsplit(" ", 1)[1]}"' in text
