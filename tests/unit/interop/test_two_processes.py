"""A detector in two processes, its backbone frozen first and thawed later."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from tests.process_group import ROOT, told_by


@pytest.mark.slow
@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="torch has no gloo")
def test_ranks_stay_equal_while_the_backbone_thaws(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    told_by([*command, "-m", "tests.unit.interop.two_detectors", str(tmp_path)], 120, environment)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"spreads": [0.0, 0.0, 0.0], "moved": [False, True, True]}
