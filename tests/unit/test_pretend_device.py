"""The tests on the pretend GPU, in a process of their own: torch cannot forget a kind of device once it is registered.

Autograd and ``nn.DataParallel`` of other tests in the same process would find it. To run them by
hand::

    DINONECK_PRETEND=1 python -m pytest tests/unit/test_gpu_benchmarks.py
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.conftest import ON_PRETEND_DEVICE, ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_the_pretend_device() -> None:
    files = [str(ROOT / "tests" / name) for name in ON_PRETEND_DEVICE]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-m", "", *files]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST")
    }
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "DINONECK_PRETEND": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
