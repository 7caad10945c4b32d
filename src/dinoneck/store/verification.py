"""The check of a whole store: every record against its checksum, the index against the shards' headers, both ways."""

from __future__ import annotations

from tqdm import tqdm

from dinoneck.errors import StoreError
from dinoneck.store import shards
from dinoneck.store.reading import Reader


def damaged_ids(reader: Reader) -> list[str]:
    """Return the images, sorted, that cannot be trusted, and those that are in a shard but not in the index.

    An image is sound if its shard's header repeats its index line and all its records have their checksums. A file
    under ``data`` that is not a shard of this store is left out, unless the index names it.
    """
    names = shards.names(reader.files)
    reader.refresh()
    indexed: dict[str, set[str]] = {name: set() for name in names}
    for entry in reader.entries.values():
        indexed.setdefault(entry.file, set()).add(entry.id)
    damaged: set[str] = set()
    unlisted: set[str] = set()
    for name, ids in tqdm(sorted(indexed.items()), desc="verify", unit="shard", disable=None):
        try:
            entries = {entry.id: entry for entry in shards.entries_in(reader.files, name, reader.description.layout)}
        except StoreError:
            damaged |= ids
            continue
        for image_id in ids:
            entry = reader.entries[image_id]
            if entries.get(image_id) != entry or not reader.is_sound(entry):
                damaged.add(image_id)
        unlisted |= entries.keys() - reader.entries.keys()
    if unlisted:  # a writer at work appends its lines after its shard
        reader.refresh()
    return sorted(damaged | (unlisted - reader.entries.keys()))
