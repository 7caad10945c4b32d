"""Many heads as one folder: ``ensemble.json`` says which files belong together, ``heads/`` holds them.

Every member is a head file of its own, so it can be inspected, verified and used alone. The list names each by its
digest, so a file that is missing, damaged, exchanged or too many is noticed before anything is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self, cast

from torch import nn

from dinoneck import registry
from dinoneck.atomic import write_folder, write_text
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint import hub
from dinoneck.checkpoint.ensemble_writers import check_target, settled
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.header import HEADS, LISTING
from dinoneck.checkpoint.listing import FORMAT, MAX_MEMBERS, SCHEMA, check_place, read_listing
from dinoneck.checkpoint.pairing import told
from dinoneck.errors import CheckpointError, ConfigError

Reduce = Literal["mean", "median"]


@dataclass(frozen=True)
class Member:
    """One head of an ensemble.

    Attributes:
        checkpoint: the head with its records.
        output: its task's name; of a head with several tasks any name.
        fold: of the cross-validation, counted from 0.
        weight: its share in the mean, relative to the others'.
    """

    checkpoint: HeadCheckpoint
    output: str
    fold: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.fold, Integral) and not isinstance(self.fold, bool):  # NumPy's integers too
            object.__setattr__(self, "fold", int(self.fold))

    @property
    def file(self) -> str:
        """Where it lies in the folder; a function of output and fold, so that no path is ever taken from a file."""
        return f"{HEADS}/{self.output}-fold{self.fold}.safetensors"


class EnsembleFolder:
    """Heads of one backbone that answer together, checked against each other.

    Args:
        members: the heads with output and fold.
        reduce: ``"mean"`` or ``"median"`` over the heads that know a task.

    Attributes:
        members: as given.
        reduce: as given.
        backbone: the backbone record that all agree on; None if none has one.
        inputs: the record of how photos are prepared, likewise.
        revision: the commit a hub repository was read at; None for a local folder.

    Raises:
        CheckpointError: if members disagree about backbone or inputs, or outputs, folds or weights do not fit.
    """

    def __init__(self, members: Sequence[Member], reduce: Reduce = "mean") -> None:
        self.members, self.reduce = tuple(members), reduce
        _check_members(self.members, reduce)
        self.backbone: dict[str, Any] | None = _shared(self.members, "backbone")
        self.inputs: dict[str, Any] | None = _shared(self.members, "inputs")
        self.revision: str | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Self:
        """Read a folder; every digest is verified before anything is built.

        Args:
            folder: with ``ensemble.json`` and ``heads/``; or a hub repository ``user/name`` that holds them.
            revision: branch, tag or commit of a hub repository; has no meaning for a folder.
            **options: for :meth:`dinoneck.HeadCheckpoint.load`.

        Raises:
            CheckpointError: if a member is missing, too many, damaged or another than listed, or they do not go
                together. A folder that a writer replaces meanwhile is read again, a few times.
        """
        headers.check_path(folder)
        headers.check_revision(revision)
        repo, commit = None, None
        if hub.names_a_repo(folder):
            repo, place = folder, hub.download(os.fspath(folder), revision)
            folder, commit = place.parent, hub.commit_of(place)
        elif revision is not None:
            raise CheckpointError(f"revision={revision!r} is for hub repositories; {folder} is read as a folder")
        ensemble = settled(folder, lambda: cls._read(folder, repo, options))
        ensemble.revision = commit
        return ensemble

    @classmethod
    def _read(cls, folder: str | os.PathLike[str], repo: object, options: Mapping[str, Any]) -> Self:
        """Read a local folder; of a hub repository, errors name that."""
        listing = read_listing(folder)
        loaded = []
        for row in listing["members"]:
            path = Path(folder) / row["file"]
            try:
                loaded.append(_listed_member(path, row, options))
            except CheckpointError as error:
                raise error if repo is None else hub.blamed(error, repo, path) from None
        ensemble = cls(loaded, listing["reduce"])
        for key in ("backbone", "inputs"):
            if told(getattr(ensemble, key)) != told(listing[key]):
                raise CheckpointError(
                    f"{folder}: the {key} record of {LISTING} is not that of its heads", step="pairing"
                )
        return ensemble

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the folder: whole or not at all. Of several writers at once the last one's stays.

        Args:
            folder: to create; it may exist empty.
            overwrite: replace an ensemble that is there. Anything else is never replaced.

        Raises:
            CheckpointError: if the folder holds something, or cannot be written.
        """
        headers.check_path(folder)
        target = Path(folder)
        try:
            check_target(target, overwrite)
            with write_folder(target, check=lambda there: check_target(there, overwrite)) as new:
                (new / HEADS).mkdir()
                for member in self.members:
                    member.checkpoint.save(new / member.file)
                write_text(new / LISTING, headers.canonical(self.listing()).decode() + "\n")
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {error}", step="write") from error

    def listing(self) -> dict[str, Any]:
        """Return what ``ensemble.json`` holds."""
        rows = [
            {
                "file": member.file,
                "digest": member.checkpoint.meta["digest"],
                "output": member.output,
                "fold": member.fold,
                "weight": float(member.weight),
            }
            for member in self.members
        ]
        listing = {
            "format": FORMAT,
            "schema": SCHEMA,
            "backbone": self.backbone,
            "inputs": self.inputs,
            "members": rows,
            "reduce": self.reduce,
        }
        return {**listing, "digest": headers.digest(listing, ())}

    def build(self, *, check_backbone: bool = True) -> nn.Module:
        """Return one HeadEnsemble of all members, in eval mode on the CPU.

        Args:
            check_backbone: refuse tokens of another backbone than the record names, see :func:`dinoneck.load_head`.
        """
        weights = [member.weight for member in self.members]
        cls = cast("Any", registry.resolve("ensemble"))
        try:
            built = cls.from_heads(
                [member.checkpoint.build(check_backbone=check_backbone) for member in self.members],
                None if len(set(weights)) == 1 else weights,
                self.reduce,
            )
        except ConfigError as error:
            raise CheckpointError(f"the members do not go together: {error}", step="config") from error
        return cast("nn.Module", built.eval())

    def checkpoint(self) -> HeadCheckpoint:
        """Return all members as one head of type ``ensemble``, to be saved as one file.

        Raises:
            CheckpointError: if LoRA weights travel with them, which then would be lost.
        """
        if any(member.checkpoint.adapter_state for member in self.members):
            raise CheckpointError("LoRA weights travel with these heads; keep them as a folder", step="write")
        names = [[member.output, member.fold] for member in self.members]
        return HeadCheckpoint.from_module(
            self.build(), backbone=self.backbone, preprocess=self.inputs, extra={"members": names}
        )

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        outputs = list(dict.fromkeys(member.output for member in self.members))
        name = (self.backbone or {}).get("name")
        return f"EnsembleFolder({len(self)} heads of {', '.join(outputs)}, {self.reduce}, backbone {name!r})"


def save_ensemble(
    folder: str | os.PathLike[str], members: Sequence[Member], *, reduce: Reduce = "mean", overwrite: bool = False
) -> None:
    """Write heads as one folder, see :class:`EnsembleFolder`.

    Args:
        folder: to create.
        members: the heads with output and fold.
        reduce: ``"mean"`` or ``"median"``.
        overwrite: replace an ensemble that is there.

    Raises:
        CheckpointError: if the members do not go together, or the folder cannot be written.
    """
    EnsembleFolder(members, reduce).save(folder, overwrite=overwrite)


def load_ensemble(folder: str | os.PathLike[str], *, check_backbone: bool = True, **options: Any) -> nn.Module:
    """Load a folder of heads as one HeadEnsemble; every digest is verified before anything is built.

    Args:
        folder: with ``ensemble.json`` and ``heads/``, or a hub repository.
        check_backbone: as for :meth:`EnsembleFolder.build`.
        **options: for :meth:`EnsembleFolder.load`.

    Raises:
        CheckpointError: as :meth:`EnsembleFolder.load`.
    """
    return EnsembleFolder.load(folder, **options).build(check_backbone=check_backbone)


def is_ensemble(path: object) -> bool:
    """Whether this is a folder with an ``ensemble.json``."""
    return isinstance(path, str | os.PathLike) and os.path.isfile(Path(path) / LISTING)  # noqa: PTH113


def _listed_member(path: Path, row: Mapping[str, Any], options: Mapping[str, Any]) -> Member:
    checkpoint = HeadCheckpoint.load(path, **options)
    if checkpoint.file_digest != row["digest"]:
        raise CheckpointError(
            f"{path} is another head than {LISTING} lists: its digest is {str(checkpoint.file_digest)[:19]}, "
            f"listed is {row['digest'][:19]}",
            step="digest",
        )
    return Member(checkpoint, row["output"], row["fold"], row["weight"])


def _check_members(members: Sequence[Member], reduce: str) -> None:
    if not 1 <= len(members) <= MAX_MEMBERS:
        raise CheckpointError(f"an ensemble has 1 to {MAX_MEMBERS} heads, not {len(members)}", step="config")
    if reduce not in ("mean", "median"):
        raise CheckpointError(f"reduce is {reduce!r}; expected 'mean' or 'median'", step="config")
    weights = [member.weight for member in members]
    odd = any(isinstance(weight, bool) or not isinstance(weight, Real) for weight in weights)
    if odd or min(weights) < 0 or not 1e-30 < sum(weights) < 1e30 or (reduce == "median" and len(set(weights)) > 1):
        raise CheckpointError(
            f"weights are {tuple(weights)}; expected ordinary numbers of 0 or more, not all 0, and equal ones for a "
            "median",
            step="config",
        )
    places: set[str] = set()
    digests: dict[str, str] = {}
    for member in members:
        check_place(member.output, member.fold, member.file)
        tasks = [task.get("name") for task in member.checkpoint.meta["tasks"]]
        if len(tasks) == 1 and tasks[0] != member.output:
            raise CheckpointError(
                f"{member.file}: this head predicts {tasks[0]!r}, it cannot be listed as {member.output!r}",
                step="pairing",
            )
        if (place := member.file.casefold()) in places:
            raise CheckpointError(f"{member.file} stands twice, or differs in capitals only", step="pairing")
        places.add(place)
        digest = member.checkpoint.meta["digest"]
        if digests.setdefault(digest, member.file) != member.file:
            raise CheckpointError(f"{member.file} and {digests[digest]} are the same head", step="pairing")


def _shared(members: Sequence[Member], key: str) -> dict[str, Any] | None:
    """The record that all members have."""
    first = members[0].checkpoint.meta[key]
    for member in members[1:]:
        other = member.checkpoint.meta[key]
        if told(other) != told(first):
            differ = sorted(
                name
                for name in {*(first or {}), *(other or {})}
                if (first or {}).get(name) != (other or {}).get(name) and name != "probe"
            )
            raise CheckpointError(
                f"the heads of an ensemble share one {key} record; {member.file} has another than {members[0].file}: "
                f"{', '.join(f'{name} {(other or {}).get(name)!r} / {(first or {}).get(name)!r}' for name in differ)}",
                step="pairing",
            )
    return cast("dict[str, Any] | None", first)
