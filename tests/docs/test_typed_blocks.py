"""The Python blocks of README and of the quick start pass ``mypy --strict`` as a user's own file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_docs import BLOCK

ROOT = Path(__file__).resolve().parents[2]
UNTYPED_TORCH = 'Call to untyped function "backward" in typed context  [no-untyped-call]'


@pytest.mark.slow
def test_the_first_blocks_of_a_user_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for name in ("README.md", "docs/quick-start.md"):
        file = tmp_path / Path(name).with_suffix(".py").name.replace("-", "_")
        file.write_text("\n".join(BLOCK.findall((ROOT / name).read_text())))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line and not line.endswith(UNTYPED_TORCH)]
    assert not errors and "error" not in done.stderr, done.stdout + done.stderr
    assert "checked 2 source files" in done.stdout
