"""The script of a newcomer's first hour runs as it is, on the data that it draws."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOUR = Path(__file__).resolve().parents[2] / "examples" / "first_hour"


@pytest.mark.slow
def test_the_first_hour_runs_without_an_edit(tmp_path: Path) -> None:
    """Nothing is installed, as dinoneck is there."""
    pytest.importorskip("pycocotools")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", str(HOUR / "first_hour.sh"), str(tmp_path / "hour")],
        env={**os.environ, "PATH": path, "DINONECK_RUNTIME": "torch"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "hour"
    assert not (folder / "env").exists()
    with (folder / "new.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {"image", "soil", "crop", "weed"} <= rows[0].keys()
    assert len(list((folder / "pictures").rglob("*.*"))) == 12
    assert (folder / "report.html").stat().st_size > 100_000
    assert (folder / "run_boxes" / "detector.safetensors").is_file()
