"""``dinoneck verify``, ``diff`` and ``migrate``: check, compare and rewrite head files and their folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from dinoneck.checkpoint.ensemble_folder import is_ensemble
from dinoneck.checkpoint.file import Header, head_files, is_file, read_content, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.arguments import Paths, check_output
from dinoneck.cli.text import Row, each, good, show, show_rows
from dinoneck.errors import CheckpointError, ConfigError


def verify(files: Paths) -> dict[str, Any]:
    """Check every byte of head files and feature stores; exit 1 if anything is refused.

    Example: dinoneck verify head.safetensors

    Args:
        files: head files, folders of them (config.json and README.md must name the same head), ensembles, feature
            stores, or Hub repositories.
    """
    rows = show_rows(each(files, _check))
    return {"ok": good(rows), "checked": rows}


def _check(path: Path) -> Iterator[Row]:
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.hub import names_a_repo

    if is_file(path / "store.json"):
        yield from check_store(path)
    elif names_a_repo(path):
        head = HeadCheckpoint.load(path)
        yield {"state": "ok", "path": path, "kind": "hub repository", "commit": head.revision}
    else:
        rows = []
        for row in each(head_files(path), _head):
            rows.append(row)
            yield row
        if is_ensemble(path):  # of version 0.1: its heads must be those that its list names, and fit together
            count = len(HeadCheckpoint.load(path).config["members"])
            hint = "'dinoneck migrate' makes one file of it"
            yield {"state": "ok", "path": path, "kind": "ensemble", "heads": count, "message": hint}
        elif path.is_dir() and good(rows):
            yield from _derived(path)


def _head(file: Path) -> Iterator[Row]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head, schema = HeadCheckpoint.load(file), read_header(file).meta["schema"]
    about = {"head_type": head.head_type, "digest": head.file_digest, "schema": schema}
    hint = {} if schema == SCHEMA else {"message": f"'dinoneck migrate' rewrites it in schema {SCHEMA}"}
    yield {"state": "ok", "path": file, "kind": "head", **about, **hint}


def _derived(folder: Path) -> Iterator[Row]:
    """Check that config.json and README.md name the head that lies next to them."""
    from dinoneck.checkpoint.card import HEAD_NAME, names_another

    head = folder / HEAD_NAME
    for file in (folder / "config.json", folder / "README.md") if head.is_file() else ():
        if file.is_file() and (other := names_another(file, read_header(head).file_digest)):
            message = f"it names another head, {other}; the head file decides"
            yield {"state": "differs", "path": file, "kind": "derived file", "message": message}


def check_store(path: Path) -> Iterator[Row]:
    """Check a feature store; the ids whose bytes are wrong are in the row."""
    from dinoneck.store.feature_store import FeatureStore
    from dinoneck.store.reading import damaged_shards

    store = FeatureStore.open(path)
    bad = dict(sorted(damaged_shards(store.reader).items()))
    about = {"images": len(store), "views": len(store.views), "dtype": store.dtype}
    row = {"state": "damaged" if bad else "ok", "path": path, "kind": "feature store", **about}
    hint = "delete the files that are named, and extract again"
    yield {**row, "damaged": bad, "message": hint} if bad else row


_APART = ("tensors", "digest")  # the first is listed tensor by tensor, the second differs whenever anything does
_LONGEST = 120
_NOTHING = object()

Content = tuple[Header, dict[str, bytearray | memoryview]]


def diff(first: Annotated[Path, Positional], second: Annotated[Path, Positional], values: bool = False) -> Any:
    """Compare two head files, or two folders of them; exit 1 if anything differs.

    The checksums are compared first, so a damaged file is refused.

    Example: dinoneck diff old.safetensors new.safetensors --values

    Args:
        first: a head file, or a folder of them or of an ensemble.
        second: another one.
        values: show how far apart differing tensors are.
    """
    for path in (first, second):
        if not path.exists():
            raise CheckpointError(f"there is no head file {path}, nor a folder of that name; check the name")
    if first.is_dir() != second.is_dir():
        raise ConfigError(
            f"{first} and {second} are a file and a folder; compare two head files, such as one in the folder "
            "('dinoneck inspect FOLDER' lists them), or two folders"
        )
    if first.is_dir():
        rows = show_rows(_heads(first, second))
        same = all(row["state"] == "equal" for row in rows)
        return {"ok": same, "same": same, "heads": rows}
    entries, tensors = _compared(first, second, values)
    for entry in entries:
        show(f"header   {entry['place']}: {_shown(entry, 'first')} -> {_shown(entry, 'second')}")
    show_rows(tensors)
    unlike = sum(row["state"] != "equal" for row in tensors)
    same = not entries and not unlike
    print("the same content" if same else f"{len(entries)} entries and {unlike} of {len(tensors)} tensors differ")
    return {"ok": same, "same": same, "entries": entries, "tensors": tensors}


def _heads(first: Path, second: Path) -> Iterator[Row]:
    """One row per name of a head: the numbers of entries and tensors that differ."""
    one, other = ({file.name: file for file in head_files(path)} for path in (first, second))
    for name in sorted({*one, *other}):
        if name not in one or name not in other:
            yield {"state": _only_in(name in one), "file": name}
            continue
        entries, tensors = _compared(one[name], other[name], False)
        unlike = sum(row["state"] != "equal" for row in tensors)
        yield {
            "state": "differs" if entries or unlike else "equal",
            "file": name,
            "entries": len(entries),
            "tensors": unlike,
        }


def _only_in(first: bool) -> str:
    return f"only in the {'first' if first else 'second'}"


def _compared(first: Path, second: Path, values: bool) -> tuple[list[Row], list[Row]]:
    """The entries that differ, and all tensors."""
    one, other = read_content(first), read_content(second)
    metas = [{key: value for key, value in content[0].meta.items() if key not in _APART} for content in (one, other)]
    return list(_entries(metas[0], metas[1])), list(_tensors(one, other, values))


def _entries(one: Any, other: Any, place: str = "") -> Iterator[Row]:
    """One row per entry of the metadata that differs; a missing entry has no value."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _entries(one.get(key, _NOTHING), other.get(key, _NOTHING), f"{place}.{key}" if place else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _entries(*pair, f"{place}[{index}]")
    elif _NOTHING in (one, other) or _text(one) != _text(other):
        sides = {"first": one, "second": other}
        yield {"place": place, **{side: value for side, value in sides.items() if value is not _NOTHING}}


def _tensors(one: Content, other: Content, values: bool) -> Iterator[Row]:
    """One row per tensor."""
    listed = [{entry.name: entry for entry in content[0].tensors} for content in (one, other)]
    for name in sorted({*listed[0], *listed[1]}):
        pair = listed[0].get(name), listed[1].get(name)
        kinds = [None if entry is None else f"{entry.dtype} {list(entry.shape)}" for entry in pair]
        row: Row = {"state": "differs", "name": name, "first": kinds[0], "second": kinds[1]}
        if None in kinds:
            row["state"] = _only_in(kinds[0] is not None)
        elif kinds[0] == kinds[1] and one[1][name] == other[1][name]:
            row["state"] = "equal"
        elif kinds[0] == kinds[1] and values and pair[0] is not None:
            row["gap"] = _gap(pair[0].dtype, one[1][name], other[1][name])
        yield row


def _gap(dtype: str, one: bytearray | memoryview, other: bytearray | memoryview) -> float:
    """The largest absolute difference of two tensors' values."""
    import torch

    from dinoneck.checkpoint.tensors import TORCH_DTYPES

    pair = [torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype]).double() for buffer in (one, other)]
    return float((pair[0] - pair[1]).abs().max())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(entry: Row, side: str) -> str:
    text = _text(entry[side]) if side in entry else "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def migrate(files: Paths, out: Path | None = None) -> dict[str, Any]:
    """Rewrite older head files in the present schema; exit 1 if one is refused.

    Each file is replaced whole or not at all.

    Example: dinoneck migrate heads/

    Args:
        files: head files, folders of them, or the folder of an ensemble.
        out: folder for the new files (default: replace the old), or the file for an ensemble.
    """
    rows = show_rows(each(files, partial(_migrate, out=out)))
    return {"ok": good(rows), "files": rows}


def _migrate(path: Path, out: Path | None) -> Iterator[Row]:
    """Migrate the files in a path; the folder of an ensemble becomes one file."""
    if not is_ensemble(path):
        yield from each(head_files(path), partial(_one, out=out))
        return
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    if out is None:
        raise CheckpointError(f"{path} holds an ensemble, which becomes one file; name it with --out", step="write")
    head = HeadCheckpoint.load(path)
    check_output(out, [path])
    if not _is_written(out, head.meta["digest"]):
        head.save(out)
    yield _row("migrated", out, 1, head.meta["digest"])


def _row(state: str, path: Path, schema: int, digest: str) -> Row:
    return {"state": state, "path": path, "from": schema, "to": SCHEMA, "digest": digest}


def _is_written(target: Path, digest: str) -> bool:
    """Whether an interrupted run has written this head already; another head is not replaced."""
    if not target.exists():
        return False
    if read_header(target).meta["digest"] != digest:
        raise CheckpointError(f"{target} exists already, and is another head", step="write")
    return True


def _one(file: Path, out: Path | None) -> Iterator[Row]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.migrate import check_versions, is_present
    from dinoneck.checkpoint.read import read_file
    from dinoneck.tensor_bytes import bytes_of

    old = read_header(file)
    check_versions(old.meta, str(file))
    if is_present(old.meta):
        yield _row("current", file, SCHEMA, old.meta["digest"])
        return
    if out is None and is_ensemble(folder := file.absolute().parent.parent):
        raise CheckpointError(
            f"{file} belongs to an ensemble, whose list holds its digest; name the folder {folder}, and with --out the "
            "one file to write",
            step="write",
        )
    (_, content), (new, state) = read_content(file), read_file(file)
    versions = old.meta.get("versions") or dict.fromkeys(new.meta["versions"], 1)
    if versions == new.meta["versions"] and content != {name: bytes_of(value) for name, value in state.items()}:
        raise CheckpointError(f"{file}: the migrated tensors are not those of the file", step="tensors")
    target, digest = file if out is None else out / file.name, new.meta["digest"]
    if target != file and _is_written(target, digest):
        yield _row("current", target, SCHEMA, digest)
        return
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the folder {out} cannot be created: {error}", step="write") from error
    HeadCheckpoint(new.meta, state).save(target)
    yield _row("migrated", target, old.meta["schema"], digest)
