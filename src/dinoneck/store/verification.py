"""The check of a whole store: every record against its checksum, the index against the shards' headers, both ways."""

from __future__ import annotations

import contextlib

from dinoneck.errors import StoreError
from dinoneck.progress import progress
from dinoneck.store import shards
from dinoneck.store.description import SCALE_FILE
from dinoneck.store.index import Entry
from dinoneck.store.reading import Reader

_OF_A_WRITER = f"{shards.FOLDER}/w-"


def damaged_shards(reader: Reader) -> dict[str, str]:
    """Return id -> shard of the images that cannot be trusted, and of those that are in a shard but not in the index.

    An id under which writers stored different images is among them. An image is sound if its shard's header repeats
    its index line and all its records have their checksums. A shard that the index does not name and whose header is
    damaged stands for its images, which are not known. Other files under ``data`` are left out: those that neither the
    index names nor a writer named. The channel scale of an int8 store stands for itself, if no image fits it.
    """
    names = shards.names(reader.files)
    reader.refresh(again=True)
    indexed: dict[str, set[str]] = {name: set() for name in names}
    for entry in reader.entries.values():
        indexed.setdefault(entry.file, set()).add(entry.id)
    damaged = {image_id: reader.entries[image_id].file for image_id in reader.entries.clashing}
    if not _fits_scale(reader):
        damaged[SCALE_FILE] = SCALE_FILE
    unlisted: dict[str, str] = {}
    for name, ids in progress(sorted(indexed.items()), desc="verify", unit="shard"):
        try:
            entries = _entries(reader, name)
        except StoreError:
            damaged |= dict.fromkeys(ids, name)
            if not ids and name.startswith(_OF_A_WRITER):
                damaged[name] = name
            continue
        for image_id in ids:
            entry = reader.entries[image_id]
            if entries.get(image_id) != entry or not reader.is_sound(entry):
                damaged[image_id] = name
        unlisted |= dict.fromkeys(entries.keys() - reader.entries.keys(), name)
    if unlisted:  # a writer at work appends its lines after its shard
        reader.refresh()
    return damaged | {image_id: name for image_id, name in unlisted.items() if image_id not in reader.entries}


def shard_of(reader: Reader, image_id: str) -> str:
    """Return the shard of an image, by the index or else by the shards' headers; a file's own name stands for it.

    Raises:
        DataError: if there is none.
    """
    if image_id in reader.entries:
        return reader.entries[image_id].file
    for name in (SCALE_FILE, *shards.names(reader.files)):
        with contextlib.suppress(StoreError):
            if name == image_id or image_id in _entries(reader, name):
                return name
    return reader.entry(image_id).file


def _fits_scale(reader: Reader) -> bool:
    """Whether an image of an int8 store has the channel scale that is there."""
    if reader.description.dtype != "int8" or not reader.entries:
        return True
    try:
        made = reader.made()
    except StoreError:
        return False
    return any(entry.made in ("", made) for entry in reader.entries.values())


def _entries(reader: Reader, name: str) -> dict[str, Entry]:
    """The entries in a shard's header; StoreError if it is damaged."""
    return {entry.id: entry for entry in shards.entries_in(reader.files, name, reader.description.layout)}
