"""A forward reads like its figure: few calls, in few files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dinoneck import ViTFPN
from tests.house.source import ROOT, SOURCE
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of

MOST_CALLS, MOST_FILES = 60, 5


@torch.no_grad()
def calls_of_a_forward() -> Counter[str]:
    """How often functions of each file of the package are called."""
    neck, tokens = ViTFPN(WIDTH, 4, 8).eval(), tokens_of(2, 6, 7, layers=4)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE):
            calls[path.relative_to(SOURCE).as_posix()] += 1

    sys.setprofile(count)
    neck(tokens)
    sys.setprofile(None)
    return calls


def test_a_forward_of_the_neck_makes_few_calls_in_few_files() -> None:
    """In a process of its own: after some tests of other libraries Python reports no calls."""
    command = [sys.executable, "-m", "tests.house.test_forwards"]
    calls = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert 0 < sum(calls.values()) <= MOST_CALLS and len(calls) <= MOST_FILES, calls


if __name__ == "__main__":
    print(json.dumps(calls_of_a_forward()))
