"""A forward reads like its figure: few calls, in few files."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import dinoneck
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of

MOST_CALLS, MOST_FILES = 60, 5
PACKAGE = Path(dinoneck.__file__).parent  # as imported: it may be installed from elsewhere


@torch.no_grad()
def test_a_forward_of_the_neck_makes_few_calls_in_few_files() -> None:
    neck, tokens = dinoneck.ViTFPN(WIDTH, 4, 8).eval(), tokens_of(2, 6, 7, layers=4)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            calls[path.relative_to(PACKAGE).as_posix()] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        neck(tokens)
    finally:
        sys.setprofile(before)
    assert 0 < calls.total() <= MOST_CALLS and len(calls) <= MOST_FILES, calls
