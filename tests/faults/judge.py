"""The verdict on one damaged or forged head file. The judge predicts.

* **refused**: ``HeadCheckpoint.load`` raises a ``CheckpointError`` of a known step with one printable line, and
  ``read_header`` agrees with it.
* **harmless**: it loads, and what was loaded is what the file states. Precisely: the metadata is the file's, value for
  value and type for type; the head that it builds, described again from its own attributes, has the same class,
  configuration, tasks, tensors and records; and it predicts, bit for bit, what a head made by hand from the file's
  configuration and tensors predicts. If nothing that a prediction depends on was changed (:data:`INERT`), this is
  also the prediction of the original file, from tokens and from an image. A digest is not a signature: who
  writes another configuration or other weights and computes a valid digest has written a sound file of another head.
* **silent**: it loads and is not harmless.
* **uncaught**: anything but a ``CheckpointError`` while it is read, or but a ``DinoneckError`` while it predicts.
* **slow**, **large**: more than 2 s of processor time, or more than 96 MiB of memory.

Of damage that leaves the digest as it was, every file that loads and is not a sound file byte for byte is *silent*:
no byte of a head file is free.
"""

from __future__ import annotations

import resource
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults import signed, subjects
from torch import Tensor, nn

from dinoneck import CheckpointError, HeadCheckpoint
from dinoneck.checkpoint import read_header
from dinoneck.errors import DinoneckError

REFUSED, HARMLESS, SILENT, UNCAUGHT, SLOW, LARGE = "refused", "harmless", "silent", "uncaught", "slow", "large"
STEPS = ("file", "header", "json", "schema", "registry", "config", "tensors", "digest", "finite", "pairing")
SECONDS, KIB, LONGEST = 2.0, 96 << 10, 2200
INERT = frozenset({"created_by", "extra", "license", "training"})
"""Top-level keys that no prediction depends on."""
_RESTATED = ("head_type", "config", "tasks", "inputs", "training", "license", "tta", "extra")


@dataclass(frozen=True)
class Verdict:
    """What came of one file: a kind, the step that refused it, and the reason."""

    kind: str
    step: str = ""
    why: str = ""

    @property
    def bad(self) -> bool:
        """Whether this is a fault of the reader."""
        return self.kind not in (REFUSED, HARMLESS)


class TooLong(BaseException):
    """Not an Exception: a reader that catches everything must not swallow it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what takes more processor time than this."""

    def end(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Judge:
    """Judges files that were made from sound ones.

    Args:
        folder: where the file under judgement is written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "head.safetensors"
        self.known = {raw: name for name, raw in subjects.files().items()}
        self._original: dict[str, tuple[dict[str, Tensor], list[dict[str, Any]] | None]] = {}

    def original(self, name: str) -> tuple[dict[str, Tensor], list[dict[str, Any]] | None]:
        """What a sound file predicts: from tokens, and from an image if it names the built-in backbone."""
        if name not in self._original:
            self.path.write_bytes(subjects.files()[name])
            head = HeadCheckpoint.load(self.path)
            record = head.meta["backbone"]
            rows = subjects.rows(self.path) if record and not head.adapter_state else None
            self._original[name] = subjects.predict(head.build(check_backbone=False)), rows
        return self._original[name]

    def damaged(self, content: bytes, both: bool = True) -> Verdict:
        """Judge a file whose digest was left alone; ``both``: ``read_header`` has to agree."""
        return self._limited(content, None, frozenset(), both)

    def forged(self, content: bytes, name: str, changed: frozenset[str]) -> Verdict:
        """Judge a file with a valid digest.

        Args:
            content: the file.
            name: of the sound file that it was made from.
            changed: the top-level keys that differ.
        """
        self.original(name)
        return self._limited(content, name, changed)

    def _limited(self, content: bytes, name: str | None, changed: frozenset[str], both: bool = True) -> Verdict:
        self.path.write_bytes(content)
        before = _memory()
        try:
            with limited(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verdict = self._verdict(content, name, changed, both)
        except TooLong:
            return Verdict(SLOW, why=f"more than {SECONDS:g} s")
        if (grown := _memory() - before) > KIB:
            return Verdict(LARGE, why=f"{grown} KiB more memory")
        return verdict

    def _verdict(self, content: bytes, name: str | None, changed: frozenset[str], both: bool) -> Verdict:
        step = None
        try:
            try:
                _ = both and read_header(self.path)
            except CheckpointError as error:
                step = error.step
            head = HeadCheckpoint.load(self.path)
            module = head.build(check_backbone=False)
        except CheckpointError as error:
            if step not in (None, error.step):
                return Verdict(SILENT, why=f"read_header refuses by {step}, load by {error.step}")
            return _refusal(error)
        except Exception as error:  # whatever escapes is what is looked for
            return Verdict(UNCAUGHT, why=f"{type(error).__name__}: {str(error)[:200]}")
        if step is not None:
            return Verdict(SILENT, why=f"read_header refuses by {step}, load accepts")
        try:
            if name is None:
                why = self._as_known(content, module)
            else:
                why = self._misstated(head, module, content, changed) or self._mispredicted(
                    module, content, name, changed
                )
        except Exception as error:
            return Verdict(UNCAUGHT, why=f"of a loaded head: {type(error).__name__}: {str(error)[:200]}")
        return Verdict(SILENT, why=why) if why else Verdict(HARMLESS)

    def _as_known(self, content: bytes, module: nn.Module) -> str:
        if content not in self.known:
            return "it loads with other bytes"
        wanted = self._original[self.known[content]][0] if self.known[content] in self._original else None
        return "it predicts something else" if wanted and not same(subjects.predict(module), wanted) else ""

    def _misstated(self, head: HeadCheckpoint, module: nn.Module, content: bytes, changed: frozenset[str]) -> str:
        """Compare what was loaded with the file, and with the module's own description."""
        if signed.canonical(head.meta) != signed.canonical(signed.read(content).meta):
            return "the metadata is not the file's"
        records = {key: head.meta[key] for key in ("training", "license", "extra")}
        records["tta"] = (head.meta["tta"] or {"ops": None})["ops"]
        try:
            again = HeadCheckpoint.from_module(module, preprocess=head.meta["inputs"], **records).meta
        except DinoneckError as error:
            return f"it cannot be described again: {error}"
        for key in _RESTATED:
            if not alike(again[key], head.meta[key]):
                return f"{key} of what was loaded is {str(again[key])[:100]}"
        listed = [row for row in head.meta["tensors"] if not row[0].startswith("adapter/")]
        return "" if again["tensors"] == listed else "its tensors are others"

    def _mispredicted(self, module: nn.Module, content: bytes, name: str, changed: frozenset[str]) -> str:
        """Compare predictions with those of a head made by hand, and with the original's."""
        tokens, rows = self._original[name]
        try:
            found = subjects.predict(module)
        except DinoneckError:  # a head of another geometry than the fixed tokens
            return "it no longer predicts" if changed <= INERT else ""
        if not same(found, subjects.predict(by_hand(module, content))):
            return "it predicts something else than a head made from its configuration and tensors"
        if changed <= INERT and not same(found, tokens):
            return "it predicts something else than the original"
        if rows is None:
            return ""
        try:
            seen = subjects.rows(self.path)
        except DinoneckError:
            return "Predictor refuses it" if changed <= INERT else ""
        return "Predictor predicts something else than the original" if changed <= INERT and seen != rows else ""


def _refusal(error: CheckpointError) -> Verdict:
    text = str(error)
    if error.step not in STEPS:
        return Verdict(SILENT, why=f"refused by an unknown step {error.step!r}: {text[:200]}")
    if len(text) > LONGEST or not text.isprintable():
        return Verdict(SILENT, why=f"not one printable line of at most {LONGEST} characters: {text[:100]!r}")
    return Verdict(REFUSED, error.step, text)


def by_hand(module: nn.Module, content: bytes) -> nn.Module:
    """The head that a file states: the class called with the file's configuration, the file's tensors copied in."""
    stated = signed.read(content)
    made: nn.Module = type(module).from_config(stated.meta["config"])  # type: ignore[attr-defined]
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
             "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
    state = {
        row[0]: torch.frombuffer(bytearray(stated.chunks[row[0]]), dtype=kinds[row[1]]).reshape(row[2])
        for row in stated.meta["tensors"]
        if not row[0].startswith("adapter/")
    }
    made.load_state_dict(state, strict=True, assign=True)
    return made.eval()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two predictions are equal bit for bit."""
    return one.keys() == other.keys() and all(
        one[key].shape == other[key].shape and torch.allclose(one[key], other[key], rtol=0, atol=0, equal_nan=True)
        for key in one
    )


def alike(one: Any, other: Any) -> bool:
    """Whether two records are equal; a whole number and a float of its value are, true and 1 are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
