"""The memory that one large image takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import resource, sys
from dinoneck.data.preprocessing import Preprocessing
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Preprocessing(size=(240, 480), interpolation=sys.argv[2])(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_a_large_jpeg_is_never_whole_in_floats(tmp_path: Path, interpolation: str) -> None:
    rows = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(rows).resize((7000, 5000)).save(tmp_path / "large.jpg", quality=80)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "large.jpg"), interpolation]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes * 1024 < 2.5 * 7000 * 5000 * 3, "pixels as uint8, and working memory; floats take four times that"
