"""What heads that others published refuse.

Their names, their files, and that a file is to be fetched.

Nothing is downloaded: files are written here, the hub is one on loopback, and the publisher's
server is not reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file
from torch import Tensor

from dinoneck import BackboneError, CheckpointError, ConfigError
from dinoneck.inference.sources import open_heads
from dinoneck.published import list_published, load_published
from tests.hub_server import Hub
from tests.refusals import Row
from tests.refusals.hub import asked

VOC = "dinov2_vits14_voc2012_linear"
CLASSES = "dinov2_vits14_imagenet_linear"
DEPTH = "dinov2_vits14_depth_anything_v2"
UNLICENSED = "dinov2_vits14_depth_anything_v2_indoor"
GATED = "dinov3_vit7b16_imagenet_linear"
SAFE = "tipsv2_b14_depth"
HASHED = "dinov3_vitl16_sat_chmv2"
WEIGHT = torch.zeros(21, 384)
BIAS = torch.zeros(21)


def held(**tensors: Tensor) -> Callable[[Path], Any]:
    """Load the segmentation head of a file with these tensors."""

    def call(folder: Path) -> Any:
        save_file(tensors, folder / "h.safetensors")
        return load_published(VOC, weights=folder / "h.safetensors")

    return call


def text_file(name: str, file: str) -> Callable[[Path], Any]:
    """Load a head from a file of text with this name."""

    def call(folder: Path) -> Any:
        (folder / file).write_text("no weights")
        return load_published(name, weights=folder / file)

    return call


def pickle_file(name: str) -> Callable[[Path], Any]:
    """Load a head from a pickle with the name of a safetensors file."""

    def call(folder: Path) -> Any:
        torch.save({"weight": WEIGHT, "bias": BIAS}, folder / "h.safetensors")
        return load_published(name, weights=folder / "h.safetensors")

    return call


def name_and_path(folder: Path) -> Any:
    with contextlib.chdir(folder):
        Path(VOC).touch()
        return open_heads(VOC)


def fetched(folder: Path) -> Any:
    """Load a head of which the publisher's server is not reached."""

    def fail(url: str, file: str) -> None:
        raise URLError("timed out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder))
        patch.setattr(torch.hub, "download_url_to_file", fail)
        return load_published(VOC)


def fetched_by_old_torch(folder: Path) -> Any:
    """Load a pickle without a known hash by a torch whose reader has a hole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.hub, "get_dir", lambda: str(folder))
        patch.setattr(torch, "__version__", "2.9.1")
        return load_published(VOC)


def fetched_from_the_hub(hub: Hub, folder: Path) -> Any:
    return load_published(DEPTH)


ROWS: list[Row] = [
    # names
    (lambda: list_published(task="dept"), ConfigError, ("'dept'", "depth")),
    (lambda: list_published(backbone="dinov2_vits41"), BackboneError, "'dinov2_vits14'"),
    (lambda: load_published("dinov2_vits14_voc"), CheckpointError, "'dinov2_vits14_voc2012_ms'"),
    (name_and_path, CheckpointError, (f"{VOC!r}", f"./{VOC}")),
    # files
    (lambda: load_published(VOC, weights="no.pth"), CheckpointError, "no.pth"),
    (text_file(VOC, "h.safetensors"), CheckpointError, (f"{VOC!r}", "h.safetensors")),
    (pickle_file(VOC), CheckpointError, (f"{VOC!r}", "h.safetensors", "torch.save")),
    (text_file(HASHED, "h.pth"), CheckpointError, ("h.pth", "SHA-256")),
    (text_file(SAFE, "h.pth"), CheckpointError, ("h.pth", ".safetensors", "tipsv2-b14-dpt")),
    (held(weight=WEIGHT), CheckpointError, "lacks bias"),
    (held(weight=WEIGHT, bias=BIAS, more=BIAS.clone()), CheckpointError, "holds more"),
    (
        held(weight=WEIGHT, more=BIAS.clone()),
        CheckpointError,
        ("lacks bias", "holds more"),
    ),
    (held(weight=WEIGHT[:20], bias=BIAS), CheckpointError, ("(20, 384)", "(21, 384)")),
    (held(weight=WEIGHT.int(), bias=BIAS), CheckpointError, "torch.int32"),
    (held(weight=WEIGHT / 0, bias=BIAS), CheckpointError, ("h.safetensors: weight", "NaN")),
    (
        lambda folder: load_published(SAFE, weights=folder),
        CheckpointError,
        ("model.safetensors", SAFE, "tipsv2-b14-dpt"),
    ),
    # fetching
    (
        lambda: load_published(VOC, weights="w.pth", revision="main"),
        CheckpointError,
        ("'main'", "'w.pth'"),
    ),
    (lambda: load_published(VOC, revision="main"), CheckpointError, ("'main'", VOC)),
    (lambda: load_published(GATED), CheckpointError, (GATED, "dinov3-license", "--weights")),
    (lambda: load_published(UNLICENSED), CheckpointError, (UNLICENSED, "--weights")),
    (fetched_by_old_torch, CheckpointError, ("2.9.1", "2.10")),
    (asked(fetched_from_the_hub), CheckpointError, (DEPTH, "hf auth login")),
    (asked(fetched_from_the_hub, offline=True), CheckpointError, (DEPTH, "HF_HUB_OFFLINE")),
]
# an earlier torch refuses every pickle without a known hash, as fetched_by_old_torch shows
if Version(torch.__version__) >= Version("2.10"):
    ROWS += [
        (text_file(VOC, "dinov2_vits14_linear_head.pth"), CheckpointError, (VOC, CLASSES)),
        (fetched, CheckpointError, (VOC, "timed out", "--weights")),
    ]
