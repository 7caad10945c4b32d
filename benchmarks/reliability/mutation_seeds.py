"""The sound head files that random damage begins with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reliability.forge import written
from dinoneck import HeadCheckpoint, HeadEnsemble, PatchMeanHead, PatchMeanMLP, TargetTransform, Task, load_backbone
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.state import TORCH_DTYPES

FROZEN = Path(__file__).parents[2] / "tests" / "fixtures"
SMALLEST, FACTS, LORA, ENSEMBLE, OLD = "the smallest", "records and facts", "LoRA", "an ensemble", "schema 1"
FROZEN_FILES = {
    OLD: "head_v1/patch_mean",
    "CLS gating": "head_v2/cls_gating",
    "FPN": "head_v2/fpn",
    "a pyramid": "head_v2/pyramid",
    "decoder injection": "head_v2/decoder_injection",
}
BYTES, BEHIND = "bytes", "behind the digest"
WEIGHTS = {
    BYTES: {SMALLEST: 0.3, FACTS: 0.15, LORA: 0.15, ENSEMBLE: 0.15, OLD: 0.25},
    BEHIND: {SMALLEST: 0.15, FACTS: 0.15, LORA: 0.1, ENSEMBLE: 0.15, OLD: 0.15, "CLS gating": 0.1, "FPN": 0.05,
             "a pyramid": 0.1, "decoder injection": 0.05},
}  # fmt: skip
"""Of the two tables: the share of every file in all mutations. What is cheap to read is tried more often."""


def _heads() -> dict[str, HeadCheckpoint]:
    torch.manual_seed(0)
    total = Task("total", unit="g", minimum=0.0, transform=TargetTransform(area=0.25, log1p=True, mean=2.0, std=0.5))
    shares = Task("shares", dim=3, kind="ratio", labels=("clover", "dead", "grün"))
    tiny = load_backbone("dinoneck_tiny", layers=[2])
    facts = HeadCheckpoint.from_module(
        PatchMeanHead(64, [total, shares], hidden_dim=2),
        backbone=tiny,
        preprocess=tiny.preprocess.changed(size=(32, 64), fit="crop", policy="pad", blur=5),
        training={"seed": 7, "folds": 5, "fold": 0, "epochs": 40, "data": {"name": "pasture", "revision": "2024-10"},
                  "metrics": {"R2": 0.75, "R2 over folds": {"mean": 0.7, "sd": 0.05}}},
        license="Apache-2.0",
        tta="flip4",
        extra={"note": "spring"},
    )  # fmt: skip
    tuned = load_backbone("dinoneck_tiny").add_lora(rank=1)
    members = [PatchMeanHead(8, [total], hidden_dim=width).eval() for width in (2, 4)]
    return {
        SMALLEST: HeadCheckpoint.from_module(PatchMeanMLP(2, 1, 1)),
        FACTS: facts,
        LORA: HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total")], hidden_dim=2), backbone=tuned),
        ENSEMBLE: HeadCheckpoint.from_module(HeadEnsemble.from_heads(members, weights=[1.0, 3.0])),
    }


def seed_files() -> dict[str, bytes]:
    """Return name -> the bytes of a head file."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, head in _heads().items():
            path = Path(folder, "head")
            head.save(path)
            files[name] = path.read_bytes()
    return files | {name: (FROZEN / f"{path}.safetensors").read_bytes() for name, path in FROZEN_FILES.items()}


def content_of(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Everything in a sound file as it stands there: an older one is not brought to the present form."""
    with headers.open_regular(path) as file:
        header = headers.parse(file, path.stat().st_size, str(path))
        buffers = headers.read_data(file, header, str(path))
    state = {
        entry.name: torch.frombuffer(buffer, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
        for entry, buffer in zip(header.tensors, buffers, strict=True)
    }
    return header.meta, state


def twin(meta: dict[str, object], state: dict[str, Tensor]) -> bytes:
    """The file of a head alike in everything but its weights: spliced with it, only the digest can tell."""
    return written(dict(meta), {name: value + 1 for name, value in state.items()})
