"""The sound heads that faults are made of: small ones of every kind, made once."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.reliability.forge import content_of, written
from dinoneck import (
    DenseHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    PatchMeanMLP,
    PyramidHead,
    Task,
    load_backbone,
)
from dinoneck.checkpoint import Member, save_ensemble

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures"
Subject = Callable[[], HeadCheckpoint]


def _seeded(make: Subject) -> Subject:
    """The same weights at every call and in every process, whatever was drawn before."""

    @functools.cache
    @functools.wraps(make)
    def once() -> HeadCheckpoint:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make()

    return once


@_seeded
def small() -> HeadCheckpoint:
    """The smallest head file there is: about a kilobyte."""
    return HeadCheckpoint.from_module(PatchMeanMLP(2, 1, 1))


@_seeded
def plain() -> HeadCheckpoint:
    """One task; two of its tensors are 4 x 4."""
    return HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a", dim=4)], hidden_dim=4))


@_seeded
def told() -> HeadCheckpoint:
    """Every record filled in."""
    return HeadCheckpoint.from_module(
        PatchMeanHead(4, [Task("a", dim=2, unit="g", labels=("x", "ü"))], hidden_dim=4),
        backbone={
            "name": "mine",
            "family": "dinov3",
            "source": "timm",
            "embed_dim": 4,
            "depth": 12,
            "patch_size": [16, 16],
            "layers": [11],
            "norm": True,
            "license": "Apache-2.0",
            "weights": {"kind": "hub", "repo": "user/name", "revision": "0" * 40},
            "weights_sha256": "0" * 64,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        preprocess=loaded("head_v2/with_records").preprocess,
        training={
            "seed": 1,
            "folds": 5,
            "fold": 0,
            "data": {"name": "pasture", "revision": "2024-10"},
            "metrics": {"R2": 0.5, "MAE": {"mean": 1.0, "sd": 0.1}},
        },
        license="MIT",
        tta="d6",
        extra={"note": "spring"},
    )


@_seeded
def fpn() -> HeadCheckpoint:
    """Two levels from two layers."""
    return HeadCheckpoint.from_module(FPNHead(8, [Task("a")], num_layers=2, fpn_dim=4, num_levels=2))


@_seeded
def dense() -> HeadCheckpoint:
    """A tower of convolutions."""
    return HeadCheckpoint.from_module(DenseHead(4, [Task("a", kind="dense")], hidden_dim=4))


@_seeded
def tower() -> HeadCheckpoint:
    """A pyramid with convolutions before its dense task."""
    neck = {"type": "simple_pyramid", "out_channels": 4, "scales": [1.0]}
    return HeadCheckpoint.from_module(PyramidHead(8, [Task("a", kind="dense")], neck=neck, tower_depth=1))


@_seeded
def pyramid() -> HeadCheckpoint:
    """A head whose configuration names its neck."""
    neck = {"type": "simple_pyramid", "out_channels": 4, "scales": [1.0, 0.5]}
    return HeadCheckpoint.from_module(PyramidHead(8, [Task("a")], neck=neck))


@_seeded
def ensemble() -> HeadCheckpoint:
    """Two heads in one file."""
    heads = [PatchMeanHead(4, [Task("a", dim=4)], hidden_dim=4) for _ in range(2)]
    return HeadCheckpoint.from_module(HeadEnsemble.from_heads(heads))


@_seeded
def lora() -> HeadCheckpoint:
    """With LoRA weights of its backbone."""
    return loaded("head_v2/with_lora")


@_seeded
def drawn_lora() -> HeadCheckpoint:
    """With LoRA weights that all differ."""
    backbone = load_backbone("dinoneck_tiny").add_lora(rank=1, alpha=2.0)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    return HeadCheckpoint.from_module(PatchMeanHead(64, [Task("a")], hidden_dim=2), backbone=backbone)


ALL: dict[str, Subject] = {
    "patch_mean_mlp": small,
    "patch_mean": plain,
    "with records": told,
    "fpn": fpn,
    "dense": dense,
    "pyramid": pyramid,
    "ensemble": ensemble,
    "LoRA": lora,
}


def loaded(name: str) -> HeadCheckpoint:
    """One of the frozen files."""
    return HeadCheckpoint.load(FIXTURES / f"{name}.safetensors")


@functools.cache
def file_of(subject: Subject) -> bytes:
    """The bytes of its file."""
    return written(*content_of(subject()))


def first_schema() -> bytes:
    """The smallest frozen file of schema 1."""
    return min((file.read_bytes() for file in (FIXTURES / "head_v1").glob("*.safetensors")), key=len)


@functools.cache
def _ensemble_files() -> dict[str, bytes]:
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as work:
        torch.manual_seed(0)
        record = {"name": "mine", "embed_dim": 4}
        members = []
        for fold, weight in enumerate((1.0, 3.0)):
            head = PatchMeanHead(4, [Task("a", dim=4)], hidden_dim=4)
            members.append(Member(HeadCheckpoint.from_module(head, backbone=record), "a", fold, weight))
        save_ensemble(folder := Path(work, "e"), members)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ensemble_folder(target: Path) -> Path:
    """Write two heads as a folder."""
    shutil.rmtree(target, ignore_errors=True)
    for name, content in _ensemble_files().items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target
