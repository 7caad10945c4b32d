"""Making the folder of a store: nothing is touched unless it is empty, new, or a store already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinoneck.atomic import write_whole
from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.patterns import Patterns
from dinoneck.errors import StoreError
from dinoneck.grid import TokenGrid
from dinoneck.store import index, shards
from dinoneck.store.description import FILE, SCHEMA, Description
from dinoneck.store.encoding import StoreDtype
from dinoneck.store.files import Files, LocalFiles, flush_folder, told_write, write_first


def described(
    backbone: Backbone,
    patterns: str | os.PathLike[str] | Patterns,
    dtype: StoreDtype,
    preparation: Mapping[str, Any],
) -> Description:
    """Return what a store of this backbone's tokens holds; ``preparation`` changes the backbone's own.

    Raises:
        ConfigError: if ``backbone`` is no Backbone, or a value is out of range.
    """
    prepare = checked_backbone(backbone).preprocess.changed(**preparation)
    return Description(backbone.record(), prepare, named_patterns(patterns), dtype)


def make_folder(root: Path, asked: Description) -> None:
    """Make the folders of a store and its ``store.json``, unless there is one.

    Raises:
        StoreError: if the folder holds something else or cannot be written.
        GridError: if the patch does not divide the photos' size, and the policy is to refuse that.
    """
    if asked.preprocess.size is not None and asked.preprocess.fit != "keep":
        TokenGrid(asked.preprocess.patch_size, asked.preprocess.policy).size(asked.preprocess.size)
    if root.exists() and not (root / FILE).exists():
        _check_empty(root)
    try:
        for folder in (root, root / shards.FOLDER, root / index.FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
        if write_first(root / FILE, asked.to_bytes()):
            flush_folder(root.parent)
    except OSError as error:
        if not (root / FILE).exists():  # a finished store may be on a read-only disk
            raise told_write(root, error) from error


def named_patterns(patterns: str | os.PathLike[str] | Patterns) -> Patterns:
    """Return the patterns given, or those of a name or a file."""
    return patterns if isinstance(patterns, Patterns) else Patterns.named(patterns)


def read_description(files: Files) -> Description:
    """Read ``store.json``.

    Raises:
        StoreError: if there is none, it cannot be read, is damaged or of a newer schema.
    """
    try:
        raw = files.read(FILE)
    except FileNotFoundError:
        raise StoreError(f"{files} is no feature store: it holds no {FILE}") from None
    except NotADirectoryError:
        raise StoreError(f"{files} is a file; expected the folder of a feature store") from None
    except OSError as error:
        raise StoreError(f"{files} cannot be opened: {error}") from error
    return Description.from_bytes(raw, f"{files}/{FILE}")


def upgrade_schema(files: LocalFiles) -> None:
    """Give ``store.json`` the current schema before index lines of that schema are added to an older store.

    Raises:
        StoreError: if it is damaged or cannot be written.
    """
    description = read_description(files)
    if description.schema < SCHEMA:
        try:
            write_whole(files.root / FILE, replace(description, schema=SCHEMA).to_bytes())
        except OSError as error:
            raise told_write(files.root / FILE, error) from error


def _check_empty(root: Path) -> None:
    if not root.is_dir():
        raise StoreError(f"{root} is a file; expected a folder for the store")
    own = (f".{FILE}", f"..{FILE}")  # what a killed creation leaves
    for path in sorted(root.iterdir()):
        empty = path.name in (shards.FOLDER, index.FOLDER) and path.is_dir() and not any(path.iterdir())
        if not empty and not path.name.startswith(own) and not (root / FILE).exists():
            raise StoreError(f"the folder {root} holds {path.name!r} but no {FILE}: it is no store; give a new folder")
