"""The verdict on one damaged or forged head file.

* **refused**: ``HeadCheckpoint.load`` raises a ``CheckpointError`` of a known step with one
  printable line. ``read_header``, which reads less, accepts the file or refuses it by the same step.
* **harmless**: it loads, and what was loaded is what the file states. Precisely: the metadata is
  the file's, value for value and type for type; the head that it builds, described again from its
  own attributes, has the same class, configuration, tasks, tensors and records; and it predicts,
  bit for bit, what a head made by hand from the file's configuration and tensors predicts. If
  nothing that a prediction depends on was changed (:data:`INERT`), this is also the prediction of
  the original file, from tokens and from an image. A digest is not a signature: who writes another
  configuration or other weights and computes a valid digest has written a sound file of another
  head.
* Anything else is a **fault**, a sentence: it loads and is not harmless; another error than a
  ``CheckpointError`` while it is read, or than a ``DinoneckError`` while it predicts; more than 2 s
  of processor time; more than 96 MiB.

A file whose digest was left alone may load only if it is, byte for byte, a sound file: no byte of a
head file is free.
"""

from __future__ import annotations

import functools
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from tests import kit
from tests.faults import signed
from torch import Tensor, nn

import dinoneck
from dinoneck import (
    CheckpointError,
    DinoneckError,
    HeadCheckpoint,
    PatchMeanHead,
    PatchMeanMLP,
    TargetTransform,
    Task,
)
from dinoneck.checkpoint import read_header

TRAINING = {
    "seed": 7,
    "folds": 5,
    "fold": 0,
    "epochs": 40,
    "data": {"name": "pasture", "revision": "2024-10"},
    "metrics": {"R2": 0.75, "R2 over folds": {"mean": 0.7, "sd": 0.05}},
}
TOTAL = Task(
    "total",
    unit="g",
    minimum=0.0,
    transform=TargetTransform(area=0.25, log1p=True, mean=2.0, std=0.5),
)
SHARES = Task("shares", dim=3, kind="ratio", labels=("clover", "dead", "grün"))
CLASSES = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"))


def recorded(head: nn.Module, layers: list[int]) -> HeadCheckpoint:
    """A head with everything that a file can record."""
    backbone = kit.backbone(layers=layers)
    preprocess = backbone.preprocess.changed(size=(32, 64), resize="crop", blur=5)
    records = {
        "training": TRAINING,
        "license": "Apache-2.0",
        "tta": "flip4",
        "extra": {"note": ["spring", 1, None]},
    }
    return HeadCheckpoint.from_module(head, backbone=backbone, preprocess=preprocess, **records)


def ensemble() -> dinoneck.HeadEnsemble:
    members = [PatchMeanHead(64, [TOTAL], hidden_dim=width).eval() for width in (1, 2)]
    return dinoneck.HeadEnsemble.from_heads(members, weights=[1.0, 3.0])


def with_lora() -> HeadCheckpoint:
    backbone = kit.backbone().add_lora(rank=1)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return HeadCheckpoint.from_module(
        PatchMeanHead(64, [Task("total")], hidden_dim=2), backbone=backbone
    )


FPN = {"layer_indices": (1, 3), "fpn_dim": 4, "num_levels": 2}
PYRAMID = {"type": "simple_pyramid", "out_channels": 4, "scales": [1.0, 0.5]}
DENSE = [TOTAL, Task("cover", kind="dense")]
MADE: dict[str, Callable[[], HeadCheckpoint]] = {
    "smallest": lambda: HeadCheckpoint.from_module(PatchMeanMLP(2, 1, 1)),
    "all records": lambda: recorded(PatchMeanHead(64, [TOTAL, SHARES], hidden_dim=2), [2]),
    "fpn": lambda: recorded(dinoneck.FPNHead(64, DENSE, num_layers=2, **FPN), [1, 3]),
    "cls_gating": lambda: recorded(
        dinoneck.CLSGatingHead(64, [TOTAL, CLASSES], mode="query", hidden_dim=2), [5]
    ),
    "ensemble": lambda: recorded(ensemble(), [5]),
    "LoRA": with_lora,
    "pyramid": lambda: HeadCheckpoint.from_module(dinoneck.PyramidHead(8, [TOTAL], neck=PYRAMID)),
}


@functools.cache
def files() -> dict[str, bytes]:
    """Return name -> the bytes of a sound head file; the same bytes in every process."""
    made = {}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, make in MADE.items():
            make().save(Path(folder, "head"))
            made[name] = Path(folder, "head").read_bytes()
    return made


@functools.cache
def _tokens(width: int, layers: tuple[int, ...] | None, count: int) -> dinoneck.Tokens:
    """(2, 3 + 2 * 4, width) per layer, always the same; their source is unknown."""
    values = []
    for layer in range(count):
        length = 3 + 2 * 4
        angles = torch.arange(2 * length * width) * (1.0 + layer)
        values.append(torch.sin(angles).reshape(2, length, width))
    return kit.tokens_from(values, 2, 4, 3, layers=layers)


def predict(module: nn.Module) -> dict[str, Tensor]:
    """What a module predicts from fixed tokens of its own width, or from a fixed (2, 4, 2) tensor."""
    with torch.no_grad():
        if isinstance(module, PatchMeanMLP):
            return {"": module(torch.sin(torch.arange(16.0)).reshape(2, 4, 2))}
        layers = getattr(module, "layer_indices", None)
        if layers is not None:
            layers = tuple(layers)
        count = getattr(module, "num_layers", None) or 1
        tokens = _tokens(module.embed_dim, layers, count)
        return dict(module.predict(tokens))


@functools.cache
def _backbone_and_image() -> tuple[Any, Tensor]:
    return kit.backbone(), kit.images(1, 32, 64)


def predictions_of(path: Path) -> list[dict[str, Any]]:
    """What a Predictor of this file returns for a fixed image."""
    backbone, image = _backbone_and_image()
    found = dinoneck.Predictor(path, backbone)(image)
    return [{key: np.asarray(value).tolist() for key, value in row.items()} for row in found]


REFUSED = "refused"
NOTICED = "noticed"
HARMLESS = "harmless"
OUTCOMES = (REFUSED, NOTICED, HARMLESS)
STEPS = (
    "file",
    "header",
    "json",
    "schema",
    "registry",
    "config",
    "tensors",
    "digest",
    "finite",
    "pairing",
)
# the most that reading a file may take, and the longest message of a refusal
MAX_SECONDS = 2.0  # of processor time
MAX_KIB = 96 * 1024
MAX_CHARACTERS = 2200
INERT = frozenset({"created_by", "extra", "license", "training"})
"""Top-level keys that no prediction depends on."""
# top-level keys that a head, described again from its own attributes, states again
_RESTATED = ("head_type", "config", "tasks", "inputs", "training", "license", "tta", "extra")


def named(case: str, outcome: str) -> str:
    """Put the name of a case before a fault; other outcomes stay."""
    if outcome in OUTCOMES:
        return outcome
    return f"{case}: {outcome}"


def _peak_memory() -> int:
    """The peak of this process in KiB. It never falls: only growth beyond all earlier cases is seen."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Judge:
    """Judges files that were made from sound ones; ``folder`` is where the file under judgement is written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "head.safetensors"
        self._original: dict[str, tuple[dict[str, Tensor], list[dict[str, Any]] | None]] = {}

    def original(self, name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]] | None]:
        """What a sound file predicts: from tokens, and from an image if it names the built-in backbone."""
        if name not in self._original:
            self.path.write_bytes(files()[name])
            head = HeadCheckpoint.load(self.path)
            rows = None
            if head.meta["backbone"] and not head.adapter_state:
                rows = predictions_of(self.path)
            self._original[name] = predict(head.build(check_backbone=False)), rows
        return self._original[name]

    def verdict(
        self, content: bytes, name: str | None = None, changed: frozenset[str] = frozenset()
    ) -> str:
        """Judge a file whose digest was left alone, or one with a valid digest.

        Args:
            content: the file.
            name: of the sound file that a file with a new digest was made from; None: the digest was
                left alone.
            changed: the top-level keys that differ.
        """
        if name is not None:
            self.original(name)
        self.path.write_bytes(content)
        seconds_before = time.process_time()
        memory_before = _peak_memory()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verdict = self._read(content, name, changed)
        except Exception as error:  # whatever escapes is what is looked for
            return f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.process_time() - seconds_before
        memory = _peak_memory() - memory_before
        if seconds > MAX_SECONDS or memory > MAX_KIB:
            return f"it takes {seconds:.1f} s and {memory} KiB"
        return verdict

    def _read(self, content: bytes, name: str | None, changed: frozenset[str]) -> str:
        step = None
        try:
            read_header(self.path)
        except CheckpointError as error:
            step = error.step
        try:
            head = HeadCheckpoint.load(self.path)
            module = head.build(check_backbone=False)
        except CheckpointError as error:
            if step not in (None, error.step):
                return f"read_header refuses by {step}, load by {error.step}"
            return _refusal(error)
        if step is not None:
            return f"read_header refuses by {step}, load accepts"
        if name is None:
            return HARMLESS if content in files().values() else "it loads with other bytes"
        fault = self._misstated(head, module, content)
        if not fault:
            fault = self._mispredicted(module, content, name, inert=changed <= INERT)
        return fault or HARMLESS

    def _misstated(self, head: HeadCheckpoint, module: nn.Module, content: bytes) -> str:
        """Compare what was loaded with the file, and with the module's own description; return the fault."""
        if signed.canonical(head.meta) != signed.canonical(signed.read(content)[0]):
            return "the metadata is not the file's"
        records = {key: head.meta[key] for key in ("training", "license", "extra")}
        records["tta"] = (head.meta["tta"] or {"ops": None})["ops"]
        again = HeadCheckpoint.from_module(module, preprocess=head.meta["inputs"], **records).meta
        for key in _RESTATED:
            if again[key] != head.meta[key]:
                return f"{key} of what was loaded is {str(again[key])[:100]}"
        listed = [row for row in head.meta["tensors"] if not row[0].startswith("adapter/")]
        if again["tensors"] != listed:
            return "its tensors are others"
        return ""

    def _mispredicted(self, module: nn.Module, content: bytes, name: str, inert: bool) -> str:
        """Compare predictions with those of a head made by hand, and with the original's; return the fault.

        Args:
            module: that was loaded.
            content: the file.
            name: of the sound file that it was made from.
            inert: whether no prediction depends on what was changed.
        """
        original_outputs, original_rows = self._original[name]
        try:
            outputs = predict(module)
        except DinoneckError as error:
            if inert:
                return f"it no longer predicts: {error}"
            return ""  # a head of another geometry than the fixed tokens
        try:
            right = predict(by_hand(module, content))
        except DinoneckError as error:
            return f"a head made from its configuration and tensors does not predict: {error}"
        if not kit.same(outputs, right):
            return "it predicts something else than a head made from its configuration and tensors"

        rows = None
        if original_rows is not None:
            try:
                rows = predictions_of(self.path)
            except DinoneckError as error:
                if inert:
                    return f"it no longer predicts: {error}"
                return ""  # a head of another backbone
        is_original = kit.same(outputs, original_outputs) and rows == original_rows
        if inert and not is_original:
            return "it predicts something else than the original"
        return ""


def _refusal(error: CheckpointError) -> str:
    text = str(error)
    if error.step not in STEPS:
        return f"it is refused by {error.step!r}"
    if len(text) > MAX_CHARACTERS or not text.isprintable():
        return f"it is refused, but not in one printable line: {text[:100]!r}"
    return REFUSED


def by_hand(module: nn.Module, content: bytes) -> nn.Module:
    """The head that a file states: the class called with the file's configuration, the file's tensors copied in."""
    meta, _ = signed.read(content)
    head: nn.Module = type(module).from_config(meta["config"])
    tensors = safetensors.torch.load(content)
    state = {name: value for name, value in tensors.items() if not name.startswith("adapter/")}
    head.load_state_dict(state, assign=True)
    return head.eval()
