"""The index: one row per stored image, in an SQLite file that is derived from the shards and replaced as a whole.

    shard(number, name, size, root)
    image(number, id, rows, cols, checksums, hash, bytes, mtime, offsets, shard)
    about(name, value)      made, times of the folder "data" (0 = not known), number of ids, number of rows

``offsets`` are the bytes of the shard where view 0 of each part begins. The file is built under a temporary name and
renamed, and opened ``mode=ro&immutable=1``: no process ever locks it. If the folder ``data`` has the times that the
index holds, the index is complete; a copy that keeps the time of modification gets another time of change. Otherwise
the names of the shards are compared; the headers of a few new shards are laid over the file in memory, and after larger
changes it is built again.
A store that cannot be written to, or is behind a URL, has its index in a cache folder of this machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import ValidationError, convert
from msgspec.structs import astuple

from dinoneck.atomic import flush_folder
from dinoneck.errors import DataError, StoreError, did_you_mean, some_of
from dinoneck.store.description import DATA
from dinoneck.store.files import Files, LocalFiles, RemoteFiles
from dinoneck.store.shards import Entry, Layouts, Whole, read_entries, shards_of

FILE = "index.sqlite"
MOST_LAID_OVER = 64  # new shards whose headers each process reads for itself
YOUNGEST_NS = 2_000_000_000  # a folder that is younger may change again without another time
_ABOUT = """
    insert into about values ('made', ?), ('time', 0), ('changed', 0), ('ids', (select count(distinct id) from image)),
                             ('rows', (select coalesce(max(number), 0) + 1 from image))
"""
_INSERT = "insert into image values (null, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_READ_ONLY = "mode=ro&immutable=1"
_TABLES = """
    create table shard (number integer primary key, name text, size integer, root text);
    create table image (number integer primary key, id text, rows integer, cols integer, checksums blob,
                        hash text, bytes integer, mtime integer, offsets blob, shard integer);
    create table about (name text primary key, value);
"""
_IMAGES = """
    select image.number, image.id, rows, cols, checksums, hash, bytes, mtime, offsets, shard.name, shard.root
"""
_FIND = f"""{_IMAGES} from json_each(?) as wanted cross join image on image.id = wanted.value
    join shard on shard.number = image.shard"""
_EVERY = f"{_IMAGES} from image join shard on shard.number = image.shard order by image.number"


logger = logging.getLogger(__name__)


class Index(Mapping[str, Entry]):
    """Image id -> entry: a file, and the entries of shards that came after it. What it shows never changes.

    Threads and processes have a connection each, opened at first use; forked and unpickled processes open their own.

    Args:
        store: its name.
        made: what its shards begin with.
        path: of the file; None = there is none.

    Raises:
        StoreError: if the file is missing, damaged or of another store.
    """

    def __init__(self, store: str, made: str, path: Path | None = None) -> None:
        self.store, self.path = store, None if path is None else path.resolve()
        self.later: dict[str, list[tuple[int, Entry]]] = {}
        self.time = self.changed = self.rows = self._ids_in_file = 0
        self.checked = np.zeros((0, 0), np.bool_)  # a mark per row and view, for the reader
        self._local = threading.local()
        if path is None:
            return
        about = dict(self._rows("select name, value from about"))
        if about.get("made") != made:
            raise StoreError(f"{path} is the index of another store; delete it")
        try:
            numbers = (convert(about[key], Whole) for key in ("time", "changed", "ids", "rows"))
            self.time, self.changed, self._ids_in_file, self.rows = numbers
        except (KeyError, ValueError) as error:
            raise self._damage(error) from None

    def lay_over(self, entries: Iterable[Entry]) -> None:
        """Add the entries of a shard that the file does not know; before the index is shown to others."""
        for entry in entries:
            self.later.setdefault(entry.id, []).append((self.rows, entry))
            self.rows += 1

    def listed(self) -> dict[str, int]:
        """Return the shards of the file and their sizes."""
        return dict(self._rows("select name, size from shard"))

    def lookup(self, ids: Iterable[str]) -> dict[str, list[tuple[int, Entry]]]:
        """Return what is stored under these ids: (row, entry) of every shard that holds one, by the shard's name."""
        found: dict[str, list[tuple[int, Entry]]] = {}
        wanted = list(dict.fromkeys(ids))
        for number, entry in map(self._entry, self._rows(_FIND, json.dumps(wanted))):
            found.setdefault(entry.id, []).append((number, entry))
        for image_id in wanted:
            if image_id in self.later:
                found.setdefault(image_id, []).extend(self.later[image_id])
        return {image_id: sorted(several, key=lambda pair: pair[1].shard) for image_id, several in found.items()}

    def find(self, ids: Iterable[str]) -> list[tuple[int, Entry]]:
        """Return (row, entry) of each image, in this order. Rows are numbers below ``rows``.

        Raises:
            DataError: if an id is not in the store.
            StoreError: if different images were stored under one id, or the file is damaged.
        """
        ids = list(ids)
        found = self.lookup(image_id for image_id in ids if isinstance(image_id, str))
        for image_id in ids:
            several = found.get(image_id) if isinstance(image_id, str) else None
            if several is None:
                near = did_you_mean(image_id, (row[0] for row in self._rows("select id from image limit 1000")))
                raise DataError(f"{image_id!r} is not among the {len(self)} images of {self.store}.{near}")
            if len({entry.blake2b for _, entry in several}) > 1:
                origins = " and ".join(f"{entry.shard} (from {entry.root})" for _, entry in several[:3])
                raise StoreError(
                    f"{self.store} holds different images under the id {image_id!r}, in {origins}. Delete the shards "
                    "of one of them, and extract with a root= that all images share"
                )
        return [found[image_id][0] for image_id in ids]

    def known(self, ids: Iterable[str]) -> dict[str, Entry]:
        """Return the entries of the ids that are stored."""
        return {image_id: several[0][1] for image_id, several in self.lookup(ids).items()}

    def every(self) -> Iterator[Entry]:
        """Iterate over all entries, those of one shard together."""
        yield from (self._entry(row)[1] for row in self._rows(_EVERY))
        later = (pair for several in self.later.values() for pair in several)
        yield from (entry for _, entry in sorted(later, key=lambda pair: pair[0]))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        try:
            in_file = convert([row[0] for row in self._rows("select distinct id from image order by id")], list[str])
        except ValidationError as error:
            raise self._damage(error) from None
        return tuple(sorted({*in_file, *self.later}) if self.later else in_file)

    def __len__(self) -> int:
        return len(self.ids) if self.later else self._ids_in_file

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __getitem__(self, image_id: str) -> Entry:
        return self.known([image_id])[image_id]

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and image_id in self.known([image_id])

    def _entry(self, row: tuple[Any, ...]) -> tuple[int, Entry]:
        try:
            number, entry = convert(row[0], Whole), convert(row[1:], Entry)
        except ValidationError as error:
            raise self._damage(error) from None
        if number >= self.rows:  # another file has its name by now, and this is a connection to that one
            raise self._damage(ValueError(f"row {number} of {self.rows}"))
        return number, entry

    def _rows(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        local = self._local
        if self.path is None:
            return
        try:
            if getattr(local, "process", None) != os.getpid():  # a forked process opens its own
                uri = f"{self.path.as_uri()}?{_READ_ONLY}"
                local.database = sqlite3.connect(uri, uri=True, check_same_thread=False, factory=_Connection)
                local.process = os.getpid()
            yield from local.database.execute(sql, values)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._damage(error) from None

    def _damage(self, error: Exception) -> StoreError:
        return StoreError(f"the index {self.path} is damaged ({error}); delete it: it is built again from {DATA}/")


class _Connection(sqlite3.Connection):
    def __del__(self) -> None:  # with its last user
        with contextlib.suppress(sqlite3.ProgrammingError):  # it could not be opened
            self.close()


def open_index(files: Files, made: str, layouts: Layouts) -> Index:
    """Return the index of what a store holds now; it is built where too much of it is missing.

    Args:
        files: of the store.
        made: what its shards begin with.
        layouts: gives the layout of its views on a grid.

    Raises:
        StoreError: if it has to be built and cannot be written anywhere.
    """
    times, shards, base = files.modified(DATA), None, Index(str(files), made)
    for path in _places(files):
        try:
            index = Index(str(files), made, path)
            if (index.time, index.changed) == times:
                return index
            shards = shards_of(files) if shards is None else shards
            new, gone = _changes(shards, index.listed())
        except StoreError as error:  # damaged, or of another store
            logger.info("%s", error)
            continue
        if not gone and len(new) <= MOST_LAID_OVER:
            return _laid_over(index, files, new, made, layouts)
        if gone:
            logger.warning("shards of %s have vanished with their images: %s", files, some_of(gone, 3))
        base = index
    shards = shards_of(files) if shards is None else shards
    if len(shards) <= MOST_LAID_OVER:
        return _laid_over(Index(str(files), made), files, shards, made, layouts)
    return build_index(files, made, layouts, base.path)


def build_index(files: Files, made: str, layouts: Layouts, base: Path | None = None) -> Index:
    """Build the index of all shards and open it; it lies in the store, or else in the cache folder of this machine.

    Args:
        files: of the store.
        made: what its shards begin with.
        layouts: gives the layout of its views on a grid.
        base: the index that is there, which is brought up to date; None = every header is read.

    Raises:
        StoreError: if it cannot be written anywhere.
    """
    own = [files.root / FILE] if isinstance(files, LocalFiles) else []
    for target in (*own, cached := _cache_path(files)):
        try:
            if target == cached:  # the folder of a store is not made again
                target.parent.mkdir(parents=True, exist_ok=True)
            _write(target, files, made, layouts, base)
            return Index(str(files), made, target)
        except OSError as error:
            problem = error
    raise StoreError(
        f"the index of {files} cannot be written, nor kept in {cached} ({problem}); set XDG_CACHE_HOME to a folder "
        "that can be written"
    )


def _changes(shards: Mapping[str, int | None], listed: Mapping[str, int]) -> tuple[dict[str, int | None], set[str]]:
    """The shards that an index does not list, or lists with another size; and what it lists that is not there so."""
    new = {name: size for name, size in shards.items() if name not in listed or size not in (None, listed[name])}
    return new, {name for name in listed if name not in shards or name in new}


def _laid_over(index: Index, files: Files, new: Mapping[str, int | None], made: str, layouts: Layouts) -> Index:
    for _, _, entries in _sound(files, new, made, layouts):
        index.lay_over(entries)
    return index


def _sound(
    files: Files, shards: Mapping[str, int | None], made: str, layouts: Layouts
) -> Iterator[tuple[str, int, list[Entry]]]:
    """The shards whose headers can be read; the others are named in a warning."""
    for name, size, entries in read_entries(files, shards, made, layouts):
        if isinstance(entries, StoreError):
            logger.warning("%s; its images are left out. 'dinoneck verify' lists what is damaged", entries)
        else:
            yield name, size, entries


def _places(files: Files) -> Iterator[Path]:
    """Where the index of a store may be: in its folder, in the cache folder, behind its URL."""
    cached = _cache_path(files)
    own = [files.root / FILE] if isinstance(files, LocalFiles) else []
    yield from (path for path in (*own, cached) if path.is_file())
    if isinstance(files, RemoteFiles):
        fetched = cached.with_name(f".{cached.name}.{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):  # there is none, or it cannot be kept
            cached.parent.mkdir(parents=True, exist_ok=True)
            files.fetch(FILE, fetched)
            fetched.replace(cached)
            yield cached


def _cache_path(files: Files) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinoneck" / "stores"
    name = str(files.root.resolve()) if isinstance(files, LocalFiles) else str(files)
    return folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.sqlite"


def _write(path: Path, files: Files, made: str, layouts: Layouts, base: Path | None) -> None:
    """Build an index under a temporary name and rename it.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.resolve().with_name(f".{path.name}.{secrets.token_hex(8)}.dinoneck-tmp")
    try:
        try:
            _fill(temporary, files, made, layouts, base)
        except (sqlite3.DatabaseError, UnicodeDecodeError, FileNotFoundError):
            if base is None:
                raise
            temporary.unlink(missing_ok=True)
            _fill(temporary, files, made, layouts, None)  # the index that was there is damaged
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except sqlite3.Error as error:
        number = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, f"SQLite: {error}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _fill(path: Path, files: Files, made: str, layouts: Layouts, base: Path | None) -> None:
    """Write the rows of all shards to a new file, or to a copy of the one that is there, those that it lacks."""
    if base is not None:
        shutil.copyfile(base, path)
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?nolock=1", uri=True, isolation_level=None)) as database:
        database.executescript("pragma journal_mode = off; pragma synchronous = off")
        database.executescript("delete from about" if base else _TABLES)
        database.execute("begin")
        shards = shards_of(files)
        new, gone = _changes(shards, dict(database.execute("select name, size from shard").fetchall()))
        if gone:
            database.executemany("delete from shard where name = ?", ([name] for name in gone))
            database.execute("delete from image where shard not in (select number from shard)")
        for name, size, entries in _sound(files, new, made, layouts):
            shard = database.execute("insert into shard values (null, ?, ?, ?)", [name, size, entries[0].root])
            rows = ((*astuple(entry)[:-2], shard.lastrowid) for entry in entries)  # its number for name and root
            database.executemany(_INSERT, rows)
        database.execute("create index if not exists by_id on image (id)")
        database.execute(_ABOUT, [made])
        database.execute("commit")
        # the time of the file is now, by the clock of the store's file system
        now, (time, changed) = path.stat().st_mtime_ns, files.modified(DATA) or (0, 0)
        [(listed,)] = database.execute("select count(*) from shard")
        if now - time >= YOUNGEST_NS and listed == len(shards) and shards_of(files) == shards:
            database.executemany("update about set value = ? where name = ?", [(time, "time"), (changed, "changed")])
