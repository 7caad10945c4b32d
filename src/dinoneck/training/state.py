"""The state of a run in one checked file, its log, and what identifies it."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_file
from torch import Tensor

from dinoneck.atomic import write_text, write_whole
from dinoneck.codec import encode
from dinoneck.errors import CheckpointError
from dinoneck.regular_files import read_regular
from dinoneck.tensor_bytes import bytes_of
from dinoneck.training.loop import Loop, Run
from dinoneck.training.processes import Processes
from dinoneck.training.sources import record_of

logger = logging.getLogger(__name__)

STATE, LOG = "last.safetensors", "log.jsonl"


class RunFiles:
    """The state and the log of a run in a folder; without a folder, nothing.

    Args:
        out: the folder; made if missing.
        run: what is trained; a state of another run is refused, see :func:`identity`.
        processes: of which the first writes.
    """

    def __init__(self, out: str | os.PathLike[str] | None, run: Run, processes: Processes) -> None:
        self.folder = None if out is None else Path(out)
        self.run, self.processes = {} if out is None else identity(run), processes

    def read(self) -> dict[str, Any] | None:
        """Return the state of this run, if there is one.

        Raises:
            CheckpointError: if it is damaged, or that of another run.
        """
        path = None if self.folder is None else self.folder / STATE
        state = load_state(path) if path is not None and path.exists() else None
        if state is not None:
            check_same(state["run"], self.run, str(path))
            logger.info("the run is resumed from %s, epoch %d", path, state["progress"]["epoch"])
        self.processes.agree(-1 if state is None else state["progress"]["step"], f"the state found in {self.folder}")
        return state

    def log(self, loop: Loop) -> None:
        """Write the log, one line per finished epoch; make the folder.

        Raises:
            CheckpointError: if it cannot be written.
        """
        if self.folder is None or not self.processes.writes:
            return
        rows = [{"epoch": epoch, **row} for epoch, row in enumerate(loop.progress.history)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / LOG, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        except OSError as error:
            raise CheckpointError(f"the run cannot be kept in {self.folder}: {error}", step="write") from error

    def save(self, loop: Loop) -> None:
        """Write the state, then the log.

        Raises:
            CheckpointError: if they cannot be written; the state that is there stays.
        """
        if self.folder is not None and self.processes.writes:
            save_state(self.folder / STATE, {"run": self.run, **loop.state()})
            self.log(loop)


def identity(run: Run) -> dict[str, Any]:
    """Return what makes a run this one: name -> plain value; long things by their SHA-256.

    The weights that the head begins with are not part of it: a resumed run takes those of its state.
    """
    head, loss, samples = run.learner.head, run.loss, run.samples
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    weighting = loss.weighting
    named: dict[str, Any] = {
        "head": {
            "type": type(head).__name__,
            "config": encode(head.config),
            "weights": {
                name: f"{x.dtype} {tuple(x.shape)}{'' if name in trained else ', not trained'}"
                for name, x in head.state_dict().items()
            },
        },
        "loss": {
            "type": type(loss).__qualname__,
            "compositions": [encode(composition) for composition in loss.compositions],
            "weighting": weighting and {"type": type(weighting).__qualname__, "config": weighting.config},
            "regularisers": [encode(regulariser) for regulariser in loss.regularisers],
        },
        "recipe": run.recipe.record(),
        "ids": _listed(samples.ids[: samples.trained]),
        "val_ids": _listed(samples.ids[samples.trained :]),
        "source": record_of(run.source, samples.ids),
        "groups": None if run.groups is None else _listed([str(group) for group in run.groups]),
    }
    for kind, table in (("targets", samples.values), ("weights", samples.cells)):
        for name, x in sorted(table.items()):
            named[f"{kind} of {name}"] = _sha256([repr((x.dtype, tuple(x.shape))).encode(), bytes_of(x)])
    plain: dict[str, Any] = json.loads(json.dumps(named))
    return plain


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], where: str) -> None:
    """Refuse to resume from the state of another run.

    Raises:
        CheckpointError: naming the first difference.
    """
    old, new = dict(_flat(there)), dict(_flat(here))
    differences = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        name = differences[0]
        raise CheckpointError(
            f"{where} holds the state of another run: {name} is {old.get(name)!r} there and {new.get(name)!r} here"
            f"{more}. Give this run a folder of its own, or replace that state: fit(..., resume=False), --no-resume",
            step="pairing",
        )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of nested dicts and lists, each by its name; empty ones stay as they are."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for i, each in enumerate(value):
            yield from _flat(each, f"{name}[{i}]")
    else:
        yield name, value


def _listed(ids: Sequence[str]) -> dict[str, Any]:
    return {"count": len(ids), "sha256": _sha256(f"{image_id}\0".encode() for image_id in ids)}


def _sha256(chunks: Iterable[bytes | memoryview]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


FORMAT, SCHEMA = "dinoneck.run", 1
_TENSOR, _PAIRS = "tensor", "pairs"


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a nested state of dicts, lists, numbers, strings, None and tensors.

    Raises:
        CheckpointError: if the file cannot be written; one that is there stays as it was.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"format": FORMAT, "schema": SCHEMA, "state": _packed(state, tensors)}, sort_keys=True)
    metadata = {"run": text, "sha256": _digest(text, tensors)}
    try:
        write_whole(path, tensor_file(tensors, metadata))
    except OSError as error:
        raise CheckpointError(f"the state of the run cannot be written to {path}: {error}", step="write") from error


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state; tensors are on the CPU.

    Raises:
        CheckpointError: if the file is damaged, of another kind, or written by a newer dinoneck.
    """
    try:
        raw = read_regular(path)
        length = int.from_bytes(raw[:8], "little")
        metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
        text, digest = metadata["run"], metadata["sha256"]
        tensors = parse_tensors(raw)
        content = json.loads(text)
        form, schema, state = content["format"], content["schema"], content["state"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not the state of a training run, or is damaged ({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    if form != FORMAT or type(schema) is not int or schema > SCHEMA:
        raise CheckpointError(
            f"{path} has format {form!r}, schema {schema!r}; this dinoneck reads {FORMAT!r} up to {SCHEMA}. {_REMEDY}",
            step="schema",
        )
    if _digest(text, tensors) != digest:
        raise CheckpointError(f"{path} does not match its digest; it is damaged or edited. {_REMEDY}", step="digest")
    found: dict[str, Any] = _unpacked(state, tensors)
    return found


_REMEDY = "Restore it from a copy, or start again: fit(..., resume=False), --no-resume"


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    parts = ((f"\0{k}|{x.dtype}|{tuple(x.shape)}|".encode(), bytes_of(x)) for k, x in sorted(tensors.items()))
    return _sha256(itertools.chain([text.encode()], *parts))


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The JSON-able form; tensors go to ``tensors``, numbered in order."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if isinstance(value, Mapping):  # keys may be numbers
        return {_PAIRS: [[key, _packed(own, tensors)] for key, own in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(own, tensors) for own in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(f"the state of a run holds a {type(value).__name__}, which cannot be kept", step="write")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(own, tensors) for own in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    return {key: _unpacked(own, tensors) for key, own in value[_PAIRS]}
