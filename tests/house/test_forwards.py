"""A forward reads like its figure: few calls, in few files."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from dinoneck import ViTFPN
from tests.house.source import SOURCE
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of

MOST_CALLS, MOST_FILES = 60, 5


@torch.no_grad()
def test_a_forward_of_the_neck_makes_few_calls_in_few_files() -> None:
    neck, tokens = ViTFPN(WIDTH, 4, 8).eval(), tokens_of(2, 6, 7, layers=4)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SOURCE):
            calls[path.relative_to(SOURCE).as_posix()] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        neck(tokens)
    finally:
        sys.setprofile(before)
    assert 0 < calls.total() <= MOST_CALLS and len(calls) <= MOST_FILES, calls
