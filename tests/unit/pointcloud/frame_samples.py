"""Small frame trees, and a way to run a verb, that the point cloud's tests of data share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image


def write_frames(root: Path, scenes: dict[str, Iterable[int]], size: tuple[int, int] = (48, 64)) -> Path:
    """Write random images (height, width) as ``root/2D/<scene>/color/<number>.png``; return root."""
    for scene, numbers in scenes.items():
        for number in numbers:
            path = root / "2D" / scene / "color" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(number)
            small = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
            Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return root


def run_verb(verb: ModuleType, *arguments: object) -> int:
    """Run one verb as ``python -m examples.pointcloud`` does, alone."""
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    code = verb.run(parser.parse_args([str(argument) for argument in arguments]))
    assert isinstance(code, int)
    return code
