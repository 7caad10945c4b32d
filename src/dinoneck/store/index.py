"""The index: one row per stored image, in an SQLite file that is derived from the shards and replaced as a whole.

    shard(number, name, size, root)
    image(number, id, rows, cols, checksums, hash, bytes, mtime, offsets, shard)
    about(made, ids, modified, changed)

``made`` is what the shards begin with, ``ids`` the number of ids; ``modified`` and ``changed`` are
the times of the folder ``data``, -1 where they are not trusted.

``offsets`` are the bytes of the shard where view 0 of each part begins. The file is built under a
temporary name and renamed, and opened ``mode=ro&immutable=1``: no process ever locks it. If the
folder ``data`` has the times that the index holds, the index is complete; a copy that keeps the
time of modification gets another time of change. Otherwise the names and sizes of the shards are
compared. Of a few new shards, each process reads the headers and keeps their entries in memory.
After larger changes, or where shards vanished, a copy of the file is brought up to date: rows of
vanished or changed shards are dropped, and only new headers are read. A store that cannot be
written to, or is behind a URL, has its index in a cache folder of this machine. An index that is
written less than two seconds after a change of the folder does not trust the folder's times; a
later opening writes it again.
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
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import ValidationError, convert
from msgspec.structs import astuple

from dinoneck.atomic import flush_folder
from dinoneck.cache_folder import cache_folder
from dinoneck.errors import DataError, StoreError
from dinoneck.store.description import DATA
from dinoneck.store.files import Files, FileState, FolderTimes, RemoteFiles
from dinoneck.store.shards import Entry, Shards, Whole, is_shard_name
from dinoneck.text import did_you_mean, some_of

FILE = "index.sqlite"
MOST_SHARDS_IN_MEMORY = 64  # new shards whose headers each process reads for itself
# a folder may change again within one tick of its file system's clock, and has the same times then
TRUSTED_AGE_NS = 2_000_000_000
_TABLES = """
    create table shard (number integer primary key, name text, size integer, root text);
    create table image (number integer primary key, id text, rows integer, cols integer, checksums blob,
                        hash text, bytes integer, mtime integer, offsets blob, shard integer);
    create table about (made text, ids integer, modified integer, changed integer);
"""
_ID_INDEX = "create index by_id on image (id);"
# everything that the file defines, as SQLite keeps it; a view or a trigger could run any query
_SCHEMA = "select sql from sqlite_master"
# the columns of a Row: the number, then the fields of its entry in their order
_IMAGES = (
    "select image.number, image.id, rows, cols, checksums, hash, bytes, mtime, offsets, "
    "shard.name, shard.root"
)
_FIND = f"""{_IMAGES} from json_each(?) as wanted cross join image on image.id = wanted.value
    join shard on shard.number = image.shard"""
_EVERY = f"{_IMAGES} from image join shard on shard.number = image.shard"
_ABOUT = (
    "select made, ids, modified, changed, (select coalesce(max(number), 0) + 1 from image) "
    "from about"
)
# ids that "Did you mean" compares with an unknown one: a store may hold millions
GUESSED_IDS = 1000
_NAMED_SHARDS = 3  # in a message
_UNKNOWN_TIMES = FolderTimes(modified_ns=-1, changed_ns=-1)
_CACHED_NAME_DIGITS = 32  # of the hash of a store's folder or URL
_SOME_IDS = "select id from image limit ?"

# what reading a damaged file, or one that another process has removed, leads to
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError, FileNotFoundError)

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """An image in a shard, and its number among the rows of an index."""

    number: int
    entry: Entry


class Index:
    """Entries by image id: those of a file, and in memory those of shards that the file lacks.

    What it shows never changes.

    Threads and processes have a connection each, opened at first use; forked and unpickled
    processes open their own.

    Args:
        shards: of the store.
        path: of the file; None: there is none.

    Raises:
        StoreError: if the file is missing, damaged or of another store.
    """

    def __init__(self, shards: Shards, path: Path | None = None) -> None:
        self.store = str(shards.files)
        self.path = None if path is None else path.resolve()
        # entries of shards that the file lacks, by id
        self.later: dict[str, list[Row]] = {}
        self.times = _UNKNOWN_TIMES  # of the folder of shards
        self.rows = 0
        self._ids_in_file = 0
        self.checked = np.zeros((0, 0), np.bool_)  # a mark per row and view, for the reader
        self.states: dict[str, FileState] = {}  # of the shards that the reader has opened
        self._local = threading.local()
        if path is not None:
            self._check_schema()
            self._read_about(path, shards.made)

    def _read_about(self, path: Path, expected_made: str) -> None:
        """Read what the file states of itself.

        Raises:
            StoreError: if it is damaged, or the index of another store.
        """
        try:
            [about] = self._rows(_ABOUT)
            made, id_count, modified_ns, changed_ns, row_count = convert(
                about, tuple[str, Whole, int, int, Whole]
            )
            file_bytes = path.stat().st_size
        except (ValueError, OSError) as error:
            raise self._damage(error) from None
        if made != expected_made:
            raise StoreError(f"{path} is the index of another store; delete it")
        # the reader takes memory for each row; a row has more than a byte in the file
        if row_count > file_bytes:
            raise self._damage(ValueError(f"{row_count} rows in {file_bytes} bytes"))
        self.rows = row_count
        self._ids_in_file = id_count
        self.times = FolderTimes(modified_ns, changed_ns)

    def _check_schema(self) -> None:
        """Compare the tables with those of an index, before any of them is read.

        Raises:
            StoreError: if the file defines anything else.
        """
        definitions = {_in_one_line(str(sql)).lower() for (sql,) in self._rows(_SCHEMA)}
        statements = f"{_TABLES}{_ID_INDEX}".split(";")
        expected = {_in_one_line(sql) for sql in statements if sql.strip()}
        if definitions != expected:
            raise self._damage(ValueError("it has other tables than an index"))

    def add_shards(self, shards: Iterable[tuple[str, list[Entry]]]) -> None:
        """Keep the entries of shards that the file lacks in memory; call it before anything is looked up."""
        for _, entries in shards:
            for entry in entries:
                self.later.setdefault(entry.id, []).append(Row(self.rows, entry))
                self.rows += 1

    def listed(self) -> dict[str, int]:
        """Return the shards of the file and their sizes."""
        return dict(self._rows("select name, size from shard"))

    def roots(self) -> list[str]:
        """Return the folders that the ids are relative to, sorted.

        Raises:
            StoreError: if the file is damaged.
        """
        rows = self._rows("select distinct root from shard")
        try:
            roots_in_file = convert([row[0] for row in rows], list[str])
        except ValidationError as error:
            raise self._damage(error) from None
        roots = set(roots_in_file)
        for rows_of_id in self.later.values():
            roots.update(row.entry.root for row in rows_of_id)
        return sorted(roots)

    def lookup(self, ids: Iterable[str]) -> dict[str, list[Row]]:
        """Return what is stored under these ids: id -> a row for each shard that holds it, by the shard's name."""
        unique_ids = list(dict.fromkeys(ids))
        found: dict[str, list[Row]] = {}
        for image_id in unique_ids:
            if image_id in self.later:
                found[image_id] = list(self.later[image_id])
        for values in self._rows(_FIND, json.dumps(unique_ids)):
            row = self._row(values)
            found.setdefault(row.entry.id, []).append(row)
        for rows_of_id in found.values():
            rows_of_id.sort(key=lambda row: row.entry.shard)
        return found

    def find(self, ids: Iterable[str]) -> list[Row]:
        """Return the row of each image, in this order; its number is below ``rows``.

        Raises:
            DataError: if an id is not in the store.
            StoreError: if different images were stored under one id, or the file is damaged.
        """
        ids = [str(image_id) for image_id in ids]
        found = self.lookup(ids)
        for image_id in ids:
            if image_id not in found:
                raise self._unknown_id(image_id)
            self._check_one_image(image_id, found[image_id])
        return [found[image_id][0] for image_id in ids]

    def _unknown_id(self, image_id: str) -> DataError:
        some_ids = [str(row[0]) for row in self._rows(_SOME_IDS, GUESSED_IDS)]
        near = did_you_mean(image_id, some_ids)
        return DataError(f"{image_id!r} is not among the {len(self)} images of {self.store}.{near}")

    def _check_one_image(self, image_id: str, rows: list[Row]) -> None:
        """Reject an id under which several shards hold different images."""
        if len({row.entry.blake2b for row in rows}) == 1:
            return
        origins = []
        for row in rows[:_NAMED_SHARDS]:
            origins.append(f"{row.entry.shard} (from {row.entry.root})")
        raise StoreError(
            f"{self.store} holds different images under the id {image_id!r}, in "
            f"{' and '.join(origins)}. Delete the shards of one of them, and extract with a common "
            "root="
        )

    def every(self) -> Iterator[Entry]:
        """Iterate over all entries."""
        for values in self._rows(_EVERY):
            yield self._row(values).entry
        for rows_of_id in self.later.values():
            for row in rows_of_id:
                yield row.entry

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        rows = self._rows("select distinct id from image order by id")
        try:
            ids_in_file = convert([row[0] for row in rows], list[str])
        except ValidationError as error:
            raise self._damage(error) from None
        if not self.later:
            return tuple(ids_in_file)
        return tuple(sorted({*ids_in_file, *self.later}))

    def __len__(self) -> int:
        return len(self.ids) if self.later else self._ids_in_file

    def _row(self, values: tuple[Any, ...]) -> Row:
        """Return a row of the file, of the values that ``_IMAGES`` selects.

        Raises:
            StoreError: if the values are not those of a row.
        """
        number, *fields = values
        try:
            row = Row(convert(number, Whole), convert(fields, Entry))
        except ValidationError as error:
            raise self._damage(error) from None
        # another file has its name by now, and this is a connection to that one
        if row.number >= self.rows:
            raise self._damage(ValueError(f"row {row.number} of {self.rows}"))
        shard = row.entry.shard
        if not is_shard_name(shard):
            raise self._damage(ValueError(f"the shard {shard!r} is not a file in {DATA}/"))
        return row

    def _rows(self, sql: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query to the file; none without a file.

        Raises:
            StoreError: if the file is damaged.
        """
        if self.path is None:
            return
        local = self._local
        try:
            if getattr(local, "process", None) != os.getpid():  # a forked process opens its own
                uri = f"{self.path.as_uri()}?mode=ro&immutable=1"
                local.database = sqlite3.connect(
                    uri, uri=True, check_same_thread=False, factory=_Connection
                )
                local.process = os.getpid()
            yield from local.database.execute(sql, values)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise self._damage(error) from None

    def _damage(self, error: Exception) -> StoreError:
        return StoreError(
            f"the index {self.path} is damaged ({error}); delete it: it is built again from {DATA}/"
        )


class _Connection(sqlite3.Connection):
    def __del__(self) -> None:  # with its last user
        with contextlib.suppress(sqlite3.ProgrammingError):  # it could not be opened
            self.close()


class _Changes(NamedTuple):
    """How the shards of a store differ from those of an index.

    Attributes:
        to_read: name -> size of the shards that the index lacks, or has with another size.
        to_drop: the shards of the index that the store lacks, or has with another size.
    """

    to_read: dict[str, int]
    to_drop: list[str]


def open_index(shards: Shards) -> Index:
    """Return the index of what a store holds now; it is built again if too much of it is missing.

    An index as old as the folder of shards is complete. Another one is brought up to date: in its
    file, or in memory where the store has only a few shards more.

    Raises:
        StoreError: if it has to be built and cannot be written anywhere.
    """
    times = shards.files.times_of(DATA)
    base: Path | None = None
    for path in _existing_paths(shards.files):
        try:
            index = Index(shards, path)
            if index.times == times:  # no shard came or went since it was written
                return index
            changes = _compare(index.listed(), shards.sizes())
        except StoreError:  # damaged, or of another store
            continue
        if changes.to_drop:
            some_dropped = some_of(changes.to_drop, _NAMED_SHARDS)
            logger.warning("shards of %s have vanished or changed: %s", shards.files, some_dropped)
        if _should_be_written_again(changes, times):
            with contextlib.suppress(StoreError):  # it cannot be written
                return build_index(shards, path)
        # rows are dropped in the file alone
        can_be_completed = not changes.to_drop and len(changes.to_read) <= MOST_SHARDS_IN_MEMORY
        if can_be_completed:
            index.add_shards(shards.entries(changes.to_read))
            return index
        base = path  # its rows of the other shards are kept

    # no file is of use as it is
    sizes = shards.sizes()
    if len(sizes) <= MOST_SHARDS_IN_MEMORY:
        index_in_memory = Index(shards)
        index_in_memory.add_shards(shards.entries(sizes))
        return index_in_memory
    return build_index(shards, base)


def _compare(listed: Mapping[str, int], sizes: Mapping[str, int]) -> _Changes:
    """How the shards of a store differ from those of an index.

    Args:
        listed: name -> size of the shards of the index.
        sizes: name -> size of the shards of the store.
    """
    to_read = {name: size for name, size in sizes.items() if listed.get(name) != size}
    to_drop = [name for name, size in listed.items() if sizes.get(name) != size]
    return _Changes(to_read, to_drop)


def _should_be_written_again(changes: _Changes, times: FolderTimes | None) -> bool:
    """Whether an index has rows to drop, or can trust the times of its folder by now.

    Args:
        changes: since it was written.
        times: of the folder of shards; None: it has none, as behind a URL.
    """
    if times is None:
        return False
    if changes.to_drop:
        return True
    # twice the age: the clock of the disk, by which it is written, may be behind
    is_old_enough = time.time_ns() - times.modified_ns > 2 * TRUSTED_AGE_NS
    # with new shards, the times differ because the folder did change
    return is_old_enough and not changes.to_read


def build_index(shards: Shards, base: Path | None = None) -> Index:
    """Build the index of all shards and open it; it lies in the store, or else in the cache folder of this machine.

    Args:
        shards: of the store.
        base: an index of the store: rows of new shards are added, those of vanished ones dropped;
            None: every header is read.

    Raises:
        StoreError: if it cannot be written anywhere.
    """
    for path in _paths(shards.files):
        try:
            if path.name != FILE:  # the folder of a store is not made again
                path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, shards, base)
            return Index(shards, path)
        except OSError as error:
            problem = error
    raise StoreError(
        f"the index of {shards.files} cannot be written, nor kept in {path}; set XDG_CACHE_HOME or "
        f"DINONECK_CACHE to a folder that can be written ({problem})"
    )


def _paths(files: Files) -> list[Path]:
    """Where the index of a store may be kept: in its folder, or in the cache folder of this machine."""
    if isinstance(files, RemoteFiles):
        return [_path_in_cache(files.url)]
    folder = files.root.resolve()
    in_store = folder / FILE
    in_cache = _path_in_cache(str(folder))
    if os.access(folder, os.W_OK):
        return [in_store, in_cache]
    return [in_cache, in_store]


def _path_in_cache(store: str) -> Path:
    """Return the path of the index of a store in the cache folder of this machine."""
    name = hashlib.sha256(store.encode()).hexdigest()[:_CACHED_NAME_DIGITS]
    return cache_folder() / "stores" / f"{name}.sqlite"


def _existing_paths(files: Files) -> Iterator[Path]:
    """The files that may be the index of a store; that behind a URL is fetched if the others are of no use."""
    for path in _paths(files):
        if path.is_file():
            yield path
    if isinstance(files, RemoteFiles):
        [cached] = _paths(files)  # of a URL in the cache folder alone
        fetched = cached.with_name(f".{cached.name}.{secrets.token_hex(8)}")
        with contextlib.suppress(OSError):  # there is none, or it cannot be kept
            cached.parent.mkdir(parents=True, exist_ok=True)
            fetched.write_bytes(files.read(FILE))
            fetched.replace(cached)
            yield cached


def _write(path: Path, shards: Shards, base: Path | None) -> None:
    """Write an index; from the one that is there if it can be read, else from all headers.

    Raises:
        OSError: if it cannot be written.
    """
    if base is not None:
        with contextlib.suppress(*_UNREADABLE):
            _write_under_temporary_name(path, shards, base)
            return
    try:
        _write_under_temporary_name(path, shards, None)
    except _UNREADABLE as error:
        is_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        code = errno.ENOSPC if is_full else errno.EIO
        raise OSError(code, str(error), str(path)) from error


def _write_under_temporary_name(path: Path, shards: Shards, base: Path | None) -> None:
    """Build an index under a temporary name and rename it."""
    temporary = path.resolve().with_name(f".{path.name}.{secrets.token_hex(8)}.dinoneck-tmp")
    try:
        _fill(temporary, shards, base)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(path: Path, shards: Shards, base: Path | None) -> None:
    """Write the rows of all shards to a new file, or to a copy of the one that is there, without vanished shards."""
    path.touch()
    now_ns = path.stat().st_mtime_ns  # by the clock of the disk
    # the folder's times before its listing: what changes later gives it other times, except shortly
    # after a change
    times = shards.files.times_of(DATA) or _UNKNOWN_TIMES
    sizes = shards.sizes()
    if base is not None:
        shutil.copyfile(base, path)
    with contextlib.closing(
        sqlite3.connect(f"{path.as_uri()}?nolock=1", uri=True, isolation_level=None)
    ) as database:
        database.executescript("pragma journal_mode = off; pragma synchronous = off")
        database.executescript(_TABLES if base is None else "delete from about")
        database.execute("begin")
        listed = dict(database.execute("select name, size from shard").fetchall())
        changes = _compare(listed, sizes)
        if changes.to_drop:
            names_to_drop = [(name,) for name in changes.to_drop]
            database.executemany("delete from shard where name is ?", names_to_drop)
            database.execute("delete from image where shard not in (select number from shard)")
        for name, entries in shards.entries(changes.to_read):
            if entries:
                _insert(database, name, sizes[name], entries)
        if base is None:
            database.execute(_ID_INDEX)  # after the rows, which is faster
        [(count,)] = database.execute("select count(*) from shard")
        is_too_new = now_ns - times.modified_ns < TRUSTED_AGE_NS
        lacks_shards = count != len(sizes)  # damaged ones, which are read again next time
        if is_too_new or lacks_shards:
            times = _UNKNOWN_TIMES
        database.execute(
            "insert into about select ?, count(distinct id), ?, ? from image", [shards.made, *times]
        )
        database.execute("commit")


def _insert(
    database: sqlite3.Connection, shard: str, shard_bytes: int, entries: Sequence[Entry]
) -> None:
    """Add a shard and its images."""
    root = entries[0].root
    cursor = database.execute(
        "insert into shard values (null, ?, ?, ?)", [shard, shard_bytes, root]
    )
    rows = []
    for entry in entries:
        *image_fields, _shard, _root = astuple(entry)  # the last two are in the shard's row
        rows.append((*image_fields, cursor.lastrowid))
    database.executemany("insert into image values (null, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _in_one_line(sql: str) -> str:
    """Return a statement with single spaces between its words."""
    return " ".join(sql.split())
