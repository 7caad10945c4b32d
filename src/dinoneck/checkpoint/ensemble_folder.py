"""The ensemble folder of version 0.1, read as one head of type ``ensemble``; later versions write one file instead.

``ensemble.json`` lists the head files in ``heads/`` with their digests, so a file that is missing, damaged, exchanged
or added is refused before anything is built.
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from dinoneck import registry
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint.file import HEADS, LISTING, Header
from dinoneck.checkpoint.schema import MAX_TEXT_BYTES, Digest
from dinoneck.errors import CheckpointError, ConfigError, some_of

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 5
_Record = dict[str, Any] | None
_Head = tuple[Header, "dict[str, Tensor]", "nn.Module"]


class Member(msgspec.Struct, forbid_unknown_fields=True):
    """One line of the list: a head file, the output it predicts, its fold and its weight in the mean."""

    file: str
    digest: Digest
    output: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_\-]{0,63}\Z")]
    fold: Annotated[int, Meta(ge=0, lt=10_000)]
    weight: Annotated[float, Meta(ge=0)]


class Listing(msgspec.Struct, forbid_unknown_fields=True):
    """What ``ensemble.json`` holds."""

    format: Literal["dinoneck.ensemble"]
    schema: Literal[1]
    backbone: _Record
    inputs: _Record
    members: Annotated[list[Member], Meta(min_length=1, max_length=4096)]
    reduce: Literal["mean", "median"]
    digest: Digest


def is_ensemble(folder: str | os.PathLike[str]) -> bool:
    """Whether this is a folder with an ``ensemble.json``."""
    return files.is_file(Path(folder, LISTING))


def read_path(path: Path) -> _Head:
    """Read a head file, a folder with one head file, or an ensemble by its folder or list.

    Raises:
        CheckpointError: as :func:`dinoneck.checkpoint.read.read_head`, or if the folder holds no head or several.
    """
    from dinoneck.checkpoint.read import read_head

    folder = path.parent if path.name == LISTING else path
    if is_ensemble(folder):
        return read_ensemble(folder)
    found = files.head_files(path)
    if len(found) > 1:
        raise CheckpointError(
            f"the folder {path} holds {len(found)} head files: {some_of((file.name for file in found), _SHOWN)}; "
            "expected one. Load one of them, or pass the folder to Predictor, which averages heads of the same task; "
            "HeadEnsemble.from_heads(heads) and save_head make one file of them"
        )
    return read_head(found[0])


def read_listing(folder: str | os.PathLike[str]) -> Listing:
    """Read and check ``ensemble.json``, and that ``heads/`` holds exactly the files it lists; without torch.

    Raises:
        CheckpointError: naming what is wrong.
    """
    path = Path(folder, LISTING)
    with files.open_head(path) as file:
        raw = file.read(files.MAX_HEADER_BYTES + 1)
    if len(raw) > files.MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has more than {files.MAX_HEADER_BYTES} bytes", step="json")
    plain = files.strict_json(raw, str(path), "list of heads")
    if raw != files.canonical(plain) + b"\n":
        raise CheckpointError(f"{path} is not spelled canonically; it was edited or damaged", step="json")
    try:
        listing = msgspec.convert(plain, Listing)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path} is not a list of an ensemble's heads: {error}", step="schema") from None
    if files.digest(plain, ()) != listing.digest:
        raise CheckpointError(
            f"{path}: the list does not match its digest; it is damaged or was edited. Fetch the folder again",
            step="digest",
        )
    _check_files(Path(folder), listing.members)
    return listing


def read_ensemble(folder: str | os.PathLike[str]) -> _Head:
    """Read the folder as if its heads had been saved as one file; every digest is compared before anything is built.

    Args:
        folder: with ``ensemble.json`` and ``heads/``.

    Returns:
        What ``read_head`` gives for a file of type ``ensemble``; the header's ``file_digest`` is that of the list.

    Raises:
        CheckpointError: if a head is missing, damaged, not listed or not the one that is listed, or they do not fit
            together.
    """
    from dinoneck.checkpoint.pairing import LORA_PREFIX
    from dinoneck.checkpoint.read import check_meta, read_head
    from dinoneck.checkpoint.schema import entries_of
    from dinoneck.checkpoint.tensors import chunks_of, listing_of

    listing = read_listing(folder)
    heads = [read_head(Path(folder, member.file)) for member in listing.members]
    for member, (header, _, _) in zip(listing.members, heads, strict=True):
        _check_member(Path(folder, member.file), member, header, listing)
    state: dict[str, Tensor] = {}
    for place, (_, tensors, _) in enumerate(heads):  # LoRA weights belong to the one backbone: all heads have the same
        state |= {key if key.startswith(LORA_PREFIX) else f"heads.{place}.{key}": x for key, x in tensors.items()}
    meta = _meta([header.meta for header, _, _ in heads], [module for _, _, module in heads], listing, str(folder))
    meta["tensors"] = listing_of(state)
    entries = entries_of(meta["tensors"], str(folder))
    skeleton = check_meta(meta, entries, str(folder))
    meta["digest"] = files.digest(meta, chunks_of(meta, state))
    return Header(meta, entries, len(files.build(meta)), listing.digest), state, skeleton


def _check_files(folder: Path, members: Sequence[Member]) -> None:
    """Refuse names that do not follow from output and fold, and other files than those listed."""
    for member in members:
        if member.file != (expected := f"{HEADS}/{member.output}-fold{member.fold}.safetensors"):
            raise CheckpointError(f"{folder / LISTING}: file is {member.file!r}; expected {expected!r}", step="schema")
    listed = {member.file for member in members}
    if len(listed) < len(members) or len({member.digest for member in members}) < len(members):
        raise CheckpointError(f"{folder / LISTING} lists a head twice", step="pairing")
    there = {f"{HEADS}/{file.name}" for file in (folder / HEADS).glob(files.HEAD_FILES) if file.name[0] != "."}
    for names, verb in ((listed - there, "lacks"), (there - listed, "holds")):
        if names:
            what = f"{verb} {some_of(names, _SHOWN)}"
            raise CheckpointError(f"{folder} {what}; expected exactly the {len(listed)} heads that {LISTING} lists")


def _check_member(file: Path, member: Member, header: Header, listing: Listing) -> None:
    """Refuse a head that is not the one listed, or has other records than the list."""
    from dinoneck.checkpoint.pairing import comparable

    if header.file_digest != member.digest:
        pair = f"its digest is {header.file_digest[:19]}, listed is {member.digest[:19]}"
        raise CheckpointError(f"{file} is another head than {LISTING} lists: {pair}. Fetch it again", step="digest")
    tasks = [task.get("name") for task in header.meta["tasks"]]
    if len(tasks) == 1 and tasks[0] != member.output:
        raise CheckpointError(f"{file} predicts {tasks[0]!r}; it is listed as {member.output!r}", step="pairing")
    for key in ("backbone", "inputs"):
        own, shared = comparable(header.meta[key]) or {}, comparable(getattr(listing, key)) or {}
        if differ := [name for name in {**own, **shared} if own.get(name) != shared.get(name)]:
            found, expected = (f"{record.get(differ[0])!r}" for record in (own, shared))
            raise CheckpointError(
                f"{file}: {key}.{differ[0]} is {found}; expected {expected}, as {LISTING} states for all heads",
                step="pairing",
            )


def _meta(metas: Sequence[dict[str, Any]], modules: Sequence[nn.Module], listing: Listing, name: str) -> dict[str, Any]:
    """The header of the ensemble, without its tensors and digest."""
    from dinoneck.checkpoint.migrate import versions_of
    from dinoneck.checkpoint.read import predicted
    from dinoneck.configured import encode

    weights = [member.weight for member in listing.members]
    is_weighted = len(set(weights)) > 1 or not any(weights)
    try:
        cls = cast("Any", registry.resolve("ensemble"))
        ensemble = cls.from_heads(modules, weights if is_weighted else None, listing.reduce)
    except ConfigError as error:
        raise CheckpointError(f"{name}: the heads do not fit together: {error}", step="config") from error
    members = [[member.output, member.fold] for member in listing.members]
    training = _training([meta["training"] or {} for meta in metas], listing.members)
    licenses = " AND ".join(sorted({meta["license"] for meta in metas if meta["license"]})) or None
    extra = {**_shared([meta["extra"] for meta in metas]), "members": members}
    without_metrics = {key: value for key, value in (training or {}).items() if key != "metrics"} or None
    return {
        **metas[0],  # format, schema, created_by, and the records of backbone and inputs, which all share
        "head_type": "ensemble",
        "config": ensemble.config,
        "versions": versions_of("ensemble", ensemble.config),
        "tasks": encode(predicted(ensemble)),
        "training": _fitting(name, "training", MAX_TEXT_BYTES, training, without_metrics),
        "license": _fitting(name, "license", 200, licenses, None),
        "tta": _shared(metas).get("tta"),
        "extra": _fitting(name, "extra", MAX_TEXT_BYTES, extra, {"members": members}, {}),
    }


def _fitting(name: str, key: str, limit: int, *forms: Any) -> Any:
    """The first of several forms of an entry, from whole to empty, that one file can hold."""
    fitting = next(form for form in forms if len(files.canonical(form).strip(b'"')) <= limit)
    if fitting is not forms[0]:
        warnings.warn(f"{name}: {key} of all heads is longer than {limit} bytes and is shortened", stacklevel=2)
    return fitting


def _training(records: Sequence[Mapping[str, Any]], members: Sequence[Member]) -> dict[str, Any] | None:
    """What all heads share, and every metric by output: its mean and standard deviation over the folds."""
    found: dict[str, list[float]] = {}
    for member, record in zip(members, records, strict=True):
        for name, value in (record.get("metrics") or {}).items():
            found.setdefault(f"{member.output} {name}", []).append(value["mean"] if isinstance(value, dict) else value)
    metrics = {name: spread for name, values in found.items() if (spread := _spread(values)) is not None}
    shared = {key: value for key, value in _shared(records).items() if key != "metrics"}
    return {**shared, **({"metrics": metrics} if metrics else {})} or None


def _spread(values: Sequence[float]) -> Any:
    """The mean and the standard deviation; the value itself of one, nothing where they are too large for a float."""
    if len(values) == 1:
        return values[0]
    try:
        return {"mean": float(f"{statistics.fmean(values):.6g}"), "sd": float(f"{statistics.stdev(values):.6g}")}
    except OverflowError:
        return None


def _shared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all records have."""
    first, *others = records
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
