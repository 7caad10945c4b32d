"""Ways to bring a failure about: load bytes, a forged head or a folder; sweep over many; save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.forge import Change, forged
from benchmarks.reliability.modes import HARMLESS, Case, Missed
from benchmarks.reliability.subjects import Subject, ensemble_folder
from dinoneck import CheckpointError, HeadCheckpoint
from dinoneck.checkpoint import EnsembleFolder, read_header

Content = bytes | Callable[[], bytes]
Attempt = tuple[str, bytes, str]
"""What is done, the file, and the steps that may refuse it, with ``|`` between them."""


def load(path: Path, content: bytes) -> HeadCheckpoint:
    """Write, read the header as ``dinoneck inspect`` does, load and build; both readers must agree."""
    path.write_bytes(content)
    step = None
    try:
        read_header(path)
    except CheckpointError as error:
        step = error.step
    try:
        head = HeadCheckpoint.load(path)
        head.build()
    except CheckpointError as error:
        if step not in (None, error.step):
            raise Missed(f"the header alone is refused by {step!r}, the file by {error.step!r}: {error}") from error
        raise
    if step is not None:
        raise Missed(f"the header alone is refused by {step!r}, the file passes")
    return head


def of_bytes(name: str, step: str, content: Content, message: str = "") -> Case:
    """A file of these bytes is refused."""

    def run(folder: Path) -> None:
        load(folder / "h.safetensors", content if isinstance(content, bytes) else content())

    return Case(name, step, run, message)


def of_forged(
    name: str, step: str, subject: Subject, change: Change, message: str = "", *, digest: bool = True
) -> Case:
    """A head after a change is refused; its digest is right unless ``digest=False``."""
    return of_bytes(name, step, lambda: forged(subject(), change, digest=digest), message)


def same_bits(head: HeadCheckpoint, wanted: HeadCheckpoint) -> None:
    """Compare all tensors bit for bit.

    Raises:
        Missed: if one differs.
    """
    own, other = ({**each.state_dict, **each.adapter_state} for each in (head, wanted))
    if own.keys() != other.keys():
        raise Missed(f"it holds {sorted(own)}, not {sorted(other)}")
    for key, value in own.items():
        same = value.dtype == other[key].dtype and value.shape == other[key].shape
        if not same or not torch.equal(value.view(-1).view(torch.uint8), other[key].view(-1).view(torch.uint8)):
            raise Missed(f"{key} has other bits")


def harmless(name: str, subject: Subject, content: Content) -> Case:
    """A file of these bytes loads and has the tensors of the subject, bit for bit."""

    def run(folder: Path) -> None:
        raw = content if isinstance(content, bytes) else content()
        same_bits(load(folder / "h.safetensors", raw), subject())

    return Case(name, HARMLESS, run)


def sweep(name: str, step: str, attempts: Callable[[], Iterable[Attempt]]) -> Case:
    """Many files, each refused by one of its own steps; the last one by ``step``."""

    def run(folder: Path) -> None:
        accepted, last = [], None
        for what, content, steps in attempts():
            try:
                load(folder / "h.safetensors", content)
                accepted.append(what)
            except CheckpointError as error:
                last = error
                if error.step not in steps.split("|"):
                    raise Missed(f"{name}: {what}: refused by {error.step!r}, expected {steps}: {error}") from error
        if accepted:
            raise Missed(f"{name}: {len(accepted)} passed: {', '.join(accepted[:20])}")
        if last is not None:
            raise last

    return Case(name, step, run)


def of_folder(name: str, outcome: str, change: Callable[[Path], Any], message: str = "") -> Case:
    """An ensemble's folder after a change."""

    def run(folder: Path) -> None:
        change(ensemble_folder(folder / "e"))
        EnsembleFolder.load(folder / "e").build()

    return Case(name, outcome, run, message)


def of_saving(name: str, step: str, save: Callable[[Path], Any], message: str = "") -> Case:
    """Saving is refused, and nothing is left behind; an older file keeps its bytes."""

    def run(folder: Path) -> None:
        for old in (None, b"an older file"):
            target = folder / "h.safetensors"
            if old is not None:
                target.write_bytes(old)
            try:
                save(target)
            except CheckpointError:
                left = {path.name: path.read_bytes() for path in folder.iterdir()}
                if left != ({} if old is None else {target.name: old}):
                    raise Missed(f"{name}: refused, but the folder holds {sorted(left)}") from None
                if old is not None:
                    raise
            else:
                return

    return Case(name, step, run, message)


def emptied(folder: Path) -> Path:
    """Make a folder, or make it empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
