"""The config.json and README.md beside a head: derived from its header, never trusted, so they can be derived again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dinoneck.checkpoint.card import FIGURE, HEAD_NAME, REPO_ID, config_json, model_card
from dinoneck.checkpoint.records import DIGEST
from dinoneck.errors import CheckpointError, some_of
from dinoneck.plain_yaml import read_plain

_MAX_BYTES = 1 << 20
_SHOWN = 3
_MAX_FRONT = 16 << 10
_SOURCE = re.compile(r"HeadCheckpoint\.load\(\"([^\"\n]{1,200}+)\"\)")
_PICTURE = re.compile(r"!\[[^\[\]\n]{0,300}+\]\(([\w.\-/]{1,300}+)\)", re.ASCII)
"""Linear time on any page: no part can begin inside another, and none gives back what it took."""


class Derived(NamedTuple):
    """What a file beside a head says, compared with what would be derived now.

    Attributes:
        file: the file.
        differs: it says something of another head; a page that a person has edited does not.
        told: what was found, in words.
    """

    file: Path
    differs: bool
    told: str


def compare(folder: Path) -> Iterator[Derived]:
    """Compare config.json and README.md in a folder with what its head says.

    Args:
        folder: with ``head.safetensors``, as a hub repository holds it; nothing else is looked at.

    Raises:
        CheckpointError: if the head is none.
    """
    head = folder / HEAD_NAME
    if not head.is_file():
        return
    config, page = (folder / name for name in ("config.json", "README.md"))
    if config.is_file():
        yield _config(config, json.loads(config_json(head)))
    if page.is_file():
        yield _page(page, lambda *told: model_card(head, *told))


def _config(file: Path, wanted: Mapping[str, Any]) -> Derived:
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        return Derived(file, True, f"is no JSON ({error})")
    if found == wanted:
        return Derived(file, False, "is what the header gives")
    if not isinstance(found, dict):
        return Derived(file, True, f"holds {type(found).__name__}; expected an object")
    odd = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key) or key not in wanted)
    told = [f"{key} is {_short(found.get(key))}, the header gives {_short(wanted.get(key))}" for key in odd]
    return Derived(file, True, "; ".join(told[:_SHOWN]) + ("; ..." if len(told) > _SHOWN else ""))


def _page(file: Path, derive: Callable[[str | None, list[str]], str]) -> Derived:
    """People edit pages: only one that names other digests and not this head's is of another head."""
    try:
        found = _text(file)
    except ValueError as error:
        return Derived(file, False, f"cannot be compared ({error})")
    source = _SOURCE.search(found)
    repo = source[1] if source and REPO_ID.fullmatch(source[1]) else None
    figures = [name for name in _PICTURE.findall(found) if FIGURE.fullmatch(name)]
    try:
        wanted = derive(repo, figures)
    except CheckpointError:  # a name of a repository that is none
        wanted = derive(None, [])
    if found == wanted:
        return Derived(file, False, "is what the header gives")
    digests = set(DIGEST.findall(found))
    if digests and not digests & set(DIGEST.findall(wanted)):
        return Derived(file, True, f"speaks of {some_of(digests, 1)}, which is not this head")
    ours, theirs = _front(wanted), _front(found)
    odd = sorted(key for key in ours if theirs.get(key) != ours[key])
    where = f", among them {some_of(odd, _SHOWN)} in its front matter" if odd else ""
    return Derived(file, False, f"differs from what the header gives{where}: edited, or made by another version")


def _front(page: str) -> dict[str, Any]:
    """The front matter; empty if there is none that can be read, or a longer one than any that is derived."""
    try:
        _, front, _ = page[:_MAX_FRONT].split("---\n", 2)
        found = read_plain(front)
    except (ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(file: Path) -> str:
    with file.open("rb") as opened:
        raw = opened.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    return raw.decode("utf-8")


def _short(value: Any) -> str:
    try:
        text = "missing" if value is None else json.dumps(value, ensure_ascii=True)
    except RecursionError:
        text = "nested too deep"
    return text if len(text) <= 80 else f"{text[:80]}..."
