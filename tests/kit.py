"""Parts that many tests share: the tiny backbone, tokens, images, heads, a short training, one run of the command line.

Whatever is random is drawn from a seed of its own, or from the state that every test begins with
(``conftest.seeded``).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dinoneck import Backbone, PatchMeanHead, Task, Tokens, load_backbone, save_head
from dinoneck.cli.main import main

WIDTH = 24  # of the tokens that are drawn
SIZE = (32, 48)  # of images: 2 x 3 patches of the tiny backbone
Module = TypeVar("Module", bound=nn.Module)
MASS = Task("mass", unit="g", activation="softplus")


def patchwork(rows: int, cols: int) -> Tensor:
    """An image (3, H, W) of rows x cols patches of 16 px, each with a colour of its own."""
    colours = torch.rand(3, rows, cols, generator=torch.Generator().manual_seed(rows * 100 + cols))
    return colours.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)


def backbone(**options: Any) -> Backbone:
    """The built-in backbone: 64 channels, patch 16, CLS and 2 registers, 6 blocks."""
    return load_backbone("dinoneck_tiny", **options)


def tokens_from(
    sequence: Tensor | Sequence[Tensor],
    rows: int,
    cols: int,
    prefix: int = 5,
    patch: int = 16,
    **record: Any,
) -> Tokens:
    """Tokens of whole sequences (B, prefix + rows x cols, C), one per layer."""
    layers = [sequence] if isinstance(sequence, Tensor) else list(sequence)
    size = (rows * patch, cols * patch)
    return Tokens.from_sequence(
        layers, image_size=size, patch_size=patch, num_prefix_tokens=prefix, **record
    )


def tokens(
    batch: int = 2,
    rows: int = 3,
    cols: int = 5,
    *,
    width: int = WIDTH,
    registers: int = 4,
    layers: int = 1,
    patch: int = 16,
    **to: Any,
) -> Tokens:
    """Random tokens of a grid: CLS, registers and rows x cols patches of every layer."""
    drawn = [torch.randn(batch, 1 + registers + rows * cols, width) for _ in range(layers)]
    return tokens_from(
        drawn, rows, cols, 1 + registers, patch, layers=range(layers), normed=True
    ).to(**to)


def images(count: int = 2, height: int = SIZE[0], width: int = SIZE[1], seed: int = 0) -> Tensor:
    """(count, 3, height, width) in 0..1, always the same."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def write_images(
    folder: Path, names: Sequence[str], height: int = 40, width: int = 60, seed: int = 0
) -> list[Path]:
    """Write small random images and return their files; the ending of a name is its format."""
    paths = [folder / name for name in names]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed + i).integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return paths


def randomised(module: Module, std: float = 0.2, seed: int = 0) -> Module:
    """Draw all parameters, and the statistics of batch norms, as after training: nothing stays 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=std, generator=generator)
        elif name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0, generator=generator)
    return module


def head(*tasks: Task, width: int = 64, hidden_dim: int = 8, seed: int = 0) -> PatchMeanHead:
    """A small head, of one mass where no task is given; the tokens of the tiny backbone have 64 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchMeanHead(width, tasks or [MASS], hidden_dim=hidden_dim).eval()


def saved_head(
    path: Path, module: nn.Module | None = None, size: tuple[int, int] = SIZE, **options: Any
) -> Path:
    """Save a head (:func:`head` where none is given) with the tiny backbone and the size of its images."""
    own = options.pop("backbone", None) or backbone()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_head(
        path,
        module or head(),
        backbone=own,
        preprocess=own.preprocess.changed(size=size),
        **options,
    )
    return path


def leaves(result: Any) -> list[Tensor]:
    """The tensors of a result, in a fixed order."""
    return torch.utils._pytree.tree_leaves(result)


def same(one: Any, other: Any, atol: float = 0.0) -> bool:
    """Whether two results hold equal tensors (or arrays, numbers), and at least one."""
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return bool(pairs) and all(_equal(a, b, atol) for a, b in pairs)


def _equal(a: Any, b: Any, atol: float) -> bool:
    if isinstance(a, str) or a is None:
        return bool(a == b)
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=0, atol=atol, equal_nan=True
    )


@dataclass(frozen=True)
class Ran:
    """What a command line left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document that ``--json`` printed."""
        return json.loads(self.out)


def cli(*words: object, main: Callable[[list[str]], int] = main) -> Ran:
    """Run ``dinoneck WORDS``, or another program, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())


needs_export = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None, reason="the extra [export] is not installed"
)


@contextlib.contextmanager
def skip_without_extras() -> Iterator[None]:
    """Skip the test if what runs asks for a package of an extra, and the package is not installed."""
    try:
        yield
    except ImportError as error:
        message = re.match(r"(\w+) is not installed; it comes with an extra", str(error))
        if message is None:
            raise
        package = message.group(1)
        if importlib.util.find_spec(package) is not None:
            raise
        pytest.skip(str(error))


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let the disk be full: whatever is flushed to it fails."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


@contextlib.contextmanager
def without(*packages: str) -> Iterator[None]:
    """Let these packages, or modules of them, be not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in packages:
            patch.setitem(sys.modules, name, None)
        yield


def read_bands(path: Path) -> np.ndarray:
    """Return all bands (K, H, W) of a TIFF; skips the test without rasterio."""
    rasterio = pytest.importorskip("rasterio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            bands: np.ndarray = file.read()
    return bands
