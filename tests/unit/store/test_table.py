"""The table gives what the journals give, whatever was appended, lost, damaged or copied since it was made."""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.store.store_samples import make, write_images

from dinoneck import DinoneckError, FeatureStore, GridSize, load_backbone
from dinoneck.store import table
from dinoneck.store.files import LocalFiles
from dinoneck.store.index import Entry, by_id, checked_line, clashing, names, read_journal
from dinoneck.store.table import FILE, Index, read_index

PATTERNS = 2
LOST = "data/w-5.safetensors"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of any size has a table, which is made of a few entries at a time."""
    monkeypatch.setattr(table, "LARGEST_TAIL", 0)
    monkeypatch.setattr(table, "ENTRIES_AT_ONCE", 7)


def entry(number: int, shard: int = 0, **changes: object) -> Entry:
    image_id, file, grid = f"{number % 7}/é{number}", f"data/w-{shard}.safetensors", GridSize(2, 3 + number % 2)
    known = {"mtime_ns": 10**18 + number, "blake2b": f"{number + 1:032x}", "root": f"/images/{shard}", "made": "a-b"}
    plain = Entry(image_id, file, number << 20, 1 << 20, (number, 1 << 31), grid, 900)
    return replace(plain, **{**known, **changes})  # type: ignore[arg-type]


ODD = [
    entry(100, crc32=(1, 2, 3)),
    entry(101, crc32=(1 << 40, 2)),
    entry(102, grid=GridSize(1 << 40, 1)),
    entry(103, blake2b="not a hash"),
    entry(104, blake2b="0" * 32),
    entry(105, blake2b="ab" * 17),
    entry(106, id="lone \ud800"),
    entry(107, blake2b="", mtime_ns=0, root="", made=""),
]
TWICE = [entry(3), entry(4, 1), entry(5, 5), entry(6, 1, blake2b="f" * 32)]  # equal, copied, lost, another image


def append(root: Path, name: str, entries: list[Entry]) -> None:
    with (root / "index" / f"{name}.jsonl").open("a") as file:
        for one in entries:
            file.write(checked_line({"root": one.root}) + "\n" + one.line() + "\n")


def opened(root: Path) -> Index:
    return read_index(LocalFiles(root), PATTERNS, lambda shard: shard != LOST)


def agrees(root: Path) -> bool:
    """Whether the index is that of the journals, by every way to look at it."""
    files = LocalFiles(root)
    entries = [one for name in names(files) for one in read_journal(files, name)]
    expected = by_id(entries, lambda shard: shard != LOST)
    index = opened(root)
    ids = tuple(expected)
    return (
        dict(index) == expected
        and {key: one.root for key, one in index.items()} == {key: one.root for key, one in expected.items()}
        and index.clashing == clashing(entries, expected, lambda shard: shard != LOST)
        and index.ids == ids
        and [index.checksums(one.id) for one in expected.values()]
        == [(tuple(one.grid), one.crc32) for one in expected.values()]
        and [index.ids[place] for place in range(-len(ids), len(ids))] == [*ids, *ids]
        and len({index.find(image_id) for image_id in ids}) == len(ids)
        and not any(absent in index for absent in ("", "0/", "zz", "lone ?", ids[0] + "x"))
    )


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "s" / "index").mkdir(parents=True)
    numbers = random.Random(0).sample(range(60), 60)
    append(tmp_path / "s", "w-a", [entry(number) for number in numbers[:45]])
    append(tmp_path / "s", "w-b", [entry(number, 1) for number in numbers[45:]])
    yield tmp_path / "s"


def test_it_gives_what_the_journals_give(root: Path) -> None:
    assert agrees(root)
    made = (root / FILE).stat().st_ino
    assert agrees(root) and (root / FILE).stat().st_ino == made  # read, not made again
    append(root, "w-c", [*TWICE, *ODD])
    assert agrees(root) and agrees(root)
    append(root, "w-a", [entry(3, 2), entry(200), entry(201, 5), entry(201, 6)])
    assert agrees(root)


def test_what_was_appended_later_is_laid_over_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(root)
    made = (root / FILE).read_bytes()
    monkeypatch.setattr(table, "LARGEST_TAIL", 1 << 20)
    monkeypatch.setattr(table, "ENTRIES_AT_ONCE", 1 << 20)
    append(root, "w-a", [entry(n) for n in (61, 62, 63)])
    append(root, "w-c", [*TWICE, *ODD])
    assert agrees(root)
    assert (root / FILE).read_bytes() == made


def test_ids_are_like_a_tuple(root: Path) -> None:
    ids = opened(root).ids
    plain = tuple(ids)
    assert plain == tuple(sorted(plain)) and len(ids) == 60
    assert ids == plain and plain == ids and ids == opened(root).ids and hash(ids) == hash(plain)
    assert ids != plain[:-1] and ids != plain[::-1] and ids != list(plain)
    assert (ids[0], ids[-1], ids[2:9:3], ids[::-1]) == (plain[0], plain[-1], plain[2:9:3], plain[::-1])
    assert plain[7] in ids and "x" not in ids and ids.index(plain[7]) == 7
    assert pickle.loads(pickle.dumps(ids)) == plain
    assert repr(ids) == repr(plain)
    with pytest.raises(IndexError):
        ids[60]


def test_a_table_of_other_journals_is_not_used(root: Path, tmp_path: Path) -> None:
    journal = root / "index" / "w-a.jsonl"
    opened(root)
    raw = journal.read_bytes()
    moved = journal.stat().st_mtime_ns + 10**9
    lines = raw.splitlines(keepends=True)
    lines[1], lines[3] = lines[3], lines[1]  # other content of the same size
    for content in (raw[: raw[:-1].rfind(b"\n") + 1], b"".join(lines), b""):
        journal.write_bytes(content)
        os.utime(journal, ns=(moved, moved))
        assert agrees(root), len(content)
        journal.write_bytes(raw)
        assert agrees(root)
    other = Path(shutil.copytree(root, tmp_path / "other"))
    append(other, "w-c", [entry(300)])
    opened(other)
    shutil.copy(other / FILE, root)
    assert agrees(root)
    (root / "index" / "w-b.jsonl").unlink()
    assert agrees(root)


def test_what_is_not_a_whole_table_is_made_again(root: Path) -> None:
    opened(root)
    raw = (root / FILE).read_bytes()
    for content in (b"", b"\n", b"{}\n", raw[:100], raw[:-1], raw + b"\0", b"x" + raw):
        (root / FILE).write_bytes(content)
        assert agrees(root) and (root / FILE).read_bytes() == raw


def test_verify_makes_a_damaged_table_again(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a.png", "b.png"])
    store = make(tmp_path / "s", load_backbone("dinoneck_tiny"))
    store.extract(tmp_path / "images")
    expected = store["b"].sequence[0]
    raw = (tmp_path / "s" / FILE).read_bytes()
    damaged = bytearray(raw)
    damaged[-70] ^= 1
    (tmp_path / "s" / FILE).write_bytes(damaged)
    store = FeatureStore.open(tmp_path / "s")
    with pytest.raises(DinoneckError, match=r"index.table is damaged in row 1; delete it"):
        store["b"]
    assert store.verify() == []
    assert store["b"].sequence[0].equal(expected)
    assert (tmp_path / "s" / FILE).read_bytes() == raw
