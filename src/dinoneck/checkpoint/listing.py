"""``ensemble.json``, the list of an ensemble folder's heads, read without torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.header import HEADS, LISTING
from dinoneck.checkpoint.records import DIGEST
from dinoneck.errors import CheckpointError, some_of

FORMAT = "dinoneck.ensemble"
SCHEMA = 1
MAX_MEMBERS = 4096
_OUTPUT = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]{0,63}")
_SHOWN = 5


def read_listing(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check ``ensemble.json``, and that ``heads/`` holds exactly the files it lists.

    Raises:
        CheckpointError: naming what is wrong.
    """
    path = Path(folder) / LISTING
    with headers.open_regular(path) as file:
        raw = file.read(headers.MAX_HEADER_BYTES + 1)
    if len(raw) > headers.MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has more than {headers.MAX_HEADER_BYTES} bytes", step="json")
    listing = headers.strict_json(raw, str(path), "list of members")
    _check_listing(listing, str(path))
    if raw != headers.canonical(listing) + b"\n":
        raise CheckpointError(f"{path} is not spelled canonically; it was edited or damaged", step="json")
    if headers.digest(listing, ()) != listing["digest"]:
        raise CheckpointError(
            f"{path}: the list does not match its digest; it is damaged or was edited. Fetch it again, or write the "
            "folder anew with save_ensemble",
            step="digest",
        )
    listed = {row["file"] for row in listing["members"]}
    room = Path(folder) / HEADS
    try:
        there = {f"{HEADS}/{file.name}" for file in room.glob(headers.HEAD_FILES)} if os.path.isdir(room) else set()  # noqa: PTH112
    except OSError as error:  # removed by another writer in this moment
        raise CheckpointError(f"{room} cannot be listed: {error}") from error
    if missing := listed - there:
        raise CheckpointError(f"{folder} lacks {some_of(missing, _SHOWN)} of the {len(listed)} heads it lists")
    if extra := there - listed:
        raise CheckpointError(f"{folder} holds {some_of(extra, _SHOWN)}, which {LISTING} does not list")
    return cast("dict[str, Any]", listing)


def check_place(output: Any, fold: Any, where: str) -> None:
    """Refuse what is no output or no fold of a member.

    Raises:
        CheckpointError: naming it.
    """
    if not isinstance(output, str) or not _OUTPUT.fullmatch(output):
        raise CheckpointError(
            f"{where}: output is {str(output)[:80]!r}; expected letters, digits, '_' and '-'", step="schema"
        )
    if type(fold) is not int or not 0 <= fold < 10_000:
        raise CheckpointError(f"{where}: fold is {fold!r}; expected an integer 0 ... 9999", step="schema")


def _check_listing(listing: Any, name: str) -> None:
    keys = {"format", "schema", "backbone", "inputs", "members", "reduce", "digest"}
    if not isinstance(listing, dict) or listing.get("format") != FORMAT:
        raise CheckpointError(f"{name} is no list of an ensemble's heads (format {FORMAT!r})", step="schema")
    schema = listing.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise CheckpointError(
            f"{name}: schema is {schema!r}; this dinoneck reads up to {SCHEMA}. A newer one may be needed",
            step="schema",
        )
    if set(listing) != keys:
        raise CheckpointError(f"{name} holds {sorted(listing)}; expected {sorted(keys)}", step="schema")
    if any(not isinstance(listing[key], dict | None) for key in ("backbone", "inputs")):
        raise CheckpointError(f"{name}: backbone and inputs are records or null", step="schema")
    members = listing["members"]
    if not isinstance(members, list) or not 1 <= len(members) <= MAX_MEMBERS:
        raise CheckpointError(f"{name}: members is no list of 1 to {MAX_MEMBERS} heads", step="schema")
    for place, row in enumerate(members):
        _check_row(row, f"{name}: members[{place}]")


def _check_row(row: Any, where: str) -> None:
    keys = {"file", "digest", "output", "fold", "weight"}
    if not isinstance(row, dict) or set(row) != keys:
        raise CheckpointError(f"{where} is no object with {sorted(keys)}", step="schema")
    check_place(row["output"], row["fold"], where)
    if not isinstance(row["digest"], str) or not DIGEST.fullmatch(row["digest"]):
        raise CheckpointError(f"{where}: digest is {str(row['digest'])[:80]!r}", step="schema")
    if type(row["weight"]) not in (int, float):
        raise CheckpointError(f"{where}: weight is {row['weight']!r}; expected a number", step="schema")
    if row["file"] != (expected := f"{HEADS}/{row['output']}-fold{row['fold']}.safetensors"):
        raise CheckpointError(f"{where}: file is {str(row['file'])[:80]!r}; expected {expected!r}", step="schema")
