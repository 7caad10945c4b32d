"""The index follows the shards: what was added, removed, rewritten or damaged is never read as something else."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, DataError, FeatureStore, StoreError
from dinoneck.store import index

OLD = 10**9


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, [f"{i}.png" for i in range(4)])
    return folder


@pytest.fixture(scope="module")
def sound(images: Path, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Four shards of one image each, in a folder whose time is trusted."""
    store = make(tmp_path_factory.mktemp("sound") / "s", tiny, views="none")
    store.extract(images, shard_bytes=1)
    return aged(Path(store.path))


@pytest.fixture
def root(sound: FeatureStore, tmp_path: Path) -> Path:
    return shutil.copytree(sound.path, tmp_path / "copy")


def aged(root: Path) -> FeatureStore:
    """Give the shards' folder an old time, and build the index."""
    os.utime(root / "data", (OLD, OLD))
    store = FeatureStore.open(root)
    store.refresh(rebuild=True)
    assert store.entries.times[0] == OLD * 10**9
    return store


@contextlib.contextmanager
def changed(root: Path) -> Iterator[sqlite3.Connection]:
    """The index, to be changed in place."""
    with contextlib.closing(sqlite3.connect(root / "index.sqlite")) as database:
        yield database
        database.commit()


def shards(root: Path) -> list[Path]:
    return sorted((root / "data").iterdir())


def value(store: FeatureStore, image_id: str) -> torch.Tensor:
    return store[image_id].sequence[0]


@pytest.mark.parametrize(("age", "trusted"), [(1.0, False), (3.0, True)])
def test_a_folder_younger_than_two_seconds_is_not_trusted(
    root: Path, age: float, trusted: bool
) -> None:
    probe = root / "probe"
    probe.touch()  # the clock of the file system
    moment = probe.stat().st_mtime_ns - int(age * 1e9)
    os.utime(root / "data", ns=(moment, moment))
    store = FeatureStore.open(root)
    store.refresh(rebuild=True)
    assert store.entries.times[0] == (moment if trusted else -1)


def test_a_folder_of_time_zero_is_not_taken_for_a_complete_index(
    root: Path, sound: FeatureStore
) -> None:
    """Archives with reproducible content set all times to 0; an index that trusts no time must not equal that."""
    (root / "data" / "note.txt").touch()  # just now, so its time is not trusted
    store = FeatureStore.open(root)
    store.refresh(rebuild=True)
    (root / sound.shard_of("3")).unlink()
    os.utime(root / "data", (0, 0))
    assert FeatureStore.open(root).ids == ("0", "1", "2")


def test_entries_of_new_shards_are_kept_in_memory(
    images: Path, tiny: Backbone, tmp_path: Path, root: Path
) -> None:
    write_images(tmp_path / "more", ["x.png"], seed=9)
    other = make(tmp_path / "other", tiny, views="none")
    other.extract(tmp_path / "more")
    store = FeatureStore.open(root)  # a copy, whose index is written again
    before = (root / "index.sqlite").read_bytes()
    shutil.copy(shards(Path(other.path))[0], root / "data" / "w-0.safetensors")
    assert "x" not in store.ids
    store.refresh()
    assert (store.ids, len(store)) == (("0", "1", "2", "3", "x"), 5)
    assert torch.equal(value(store, "x"), value(other, "x"))
    assert store.verify() == []
    assert (root / "index.sqlite").read_bytes() == before  # readers leave it alone
    assert make(root, tiny, views="none").extract(images).present == 4  # an extraction writes it
    assert len(FeatureStore.open(root).entries.listed()) == 5


def test_many_new_shards_are_written_to_the_index(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 2)
    (root / "index.sqlite").unlink()
    store = FeatureStore.open(root)
    assert (len(store), store.entries.later) == (4, {})
    assert (root / "index.sqlite").is_file()


def test_vanished_shards_are_dropped_with_a_warning(
    root: Path, images: Path, tiny: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    gone = FeatureStore.open(root).shard_of("2")
    (root / gone).unlink()
    shards(root)[0].rename(root / "data" / "w-0.safetensors")
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        store = FeatureStore.open(root)
    assert gone in caplog.text
    assert (store.ids, store.verify()) == (("0", "1", "3"), [])
    with pytest.raises(DataError, match="'2' is not among the 3 images"):
        store["2"]
    assert make(root, tiny, views="none").extract(images).written == ["2"]


def test_a_shard_rewritten_in_place_is_looked_up_in_its_header(
    root: Path, sound: FeatureStore
) -> None:
    one, other = (root / sound.shard_of(image_id) for image_id in ("0", "1"))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    os.utime(root / "data", (OLD, OLD))
    store = FeatureStore.open(root)
    assert store.entries.times[0] == OLD * 10**9  # nothing shows it yet
    assert torch.equal(value(store, "0"), value(sound, "0"))
    assert same(store, sound)


def test_a_shard_that_vanishes_under_an_open_store_is_named(
    root: Path, sound: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    store, gone = FeatureStore.open(root), sound.shard_of("3")
    (root / gone).unlink()
    with caplog.at_level(logging.WARNING, logger="dinoneck"), pytest.raises(StoreError, match=gone):
        store["3"]
    assert gone in caplog.text
    assert "3" not in store


def test_an_index_replaced_under_an_open_store_is_noticed(root: Path, sound: FeatureStore) -> None:
    """Threads and forked processes open the file later than the object: its rows may have other numbers by then."""
    store = FeatureStore.open(root)
    with changed(root) as database:
        database.execute("update image set number = number + 1000")
    with ThreadPoolExecutor(1) as threads:
        assert torch.equal(threads.submit(value, store, "3").result(), value(sound, "3"))


def test_verify_names_an_id_that_was_changed_in_the_index(root: Path) -> None:
    with changed(root) as database:
        database.execute("update image set id = 'z' where id = '1'")
    store = FeatureStore.open(root)
    with pytest.raises(DataError, match="'1' is not among"):
        store["1"]
    with pytest.raises(DataError, match="'z' is not among"):  # its checksum is that of another id
        FeatureStore.open(root)["z"]
    with changed(root) as database:
        database.execute("update image set id = 'z' where id = '1'")
    store = FeatureStore.open(root)
    assert store.verify() == ["1", "z"]
    assert store.verify() == []
    assert store.ids == ("0", "1", "2", "3")


def test_verify_finds_every_changed_bit_of_a_header(root: Path) -> None:
    shard = shards(root)[2]
    raw = shard.read_bytes()
    header_bytes = 8 + int.from_bytes(raw[:8], "little")
    missed = []
    for bit in random.Random(0).sample(range(8 * header_bytes), 200):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(damaged)
        if not FeatureStore.open(root).verify():
            missed.append((bit, raw[bit // 8 : bit // 8 + 1]))
        shard.write_bytes(raw)
        (root / "index.sqlite").unlink()
        aged(root)

    assert missed == []


@pytest.mark.parametrize("stated", ["hash", "dtype"])
def test_a_shard_that_states_other_facts_than_were_written_is_named(
    root: Path, stated: str, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shards(root)[2]
    raw = shard.read_bytes()
    if stated == "hash":
        [known] = [entry for entry in FeatureStore.open(root).entries.every() if entry.id == "2"]
        other = known.blake2b.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
        shard.write_bytes(raw.replace(known.blake2b.encode(), other.encode()))
        reason = "does not have its checksum"
    else:
        shard.write_bytes(raw.replace(b'"F16"', b'"I16"'))
        reason = "its 2/tokens has the dtype I16; expected F16"

    damaged = FeatureStore.open(root).verify()

    assert damaged == ["2"]
    assert reason in caplog.text


def test_the_line_of_an_index_that_is_built_again_does_not_ask_to_delete_a_shard(
    root: Path, sound: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    with changed(root) as database:
        database.execute("update image set checksums = x'0000000000000000' where id = '1'")

    found = value(FeatureStore.open(root), "1")

    assert torch.equal(found, value(sound, "1"))
    assert shards(root)[1].name in caplog.text
    assert "delete" not in caplog.text


def test_a_row_of_another_kind_is_damage(root: Path, sound: FeatureStore) -> None:
    for column in ("far", "rows", "checksums", "offsets", "mtime", "hash", "id"):
        with changed(root) as database:
            wrong = {
                "hash": "cast(x'a0ff' as text)",
                "id": "null",
                "far": "x'ffffffffffffffff'",
            }.get(column, "'text'")
            column = "offsets" if column == "far" else column
            database.execute(f"update image set {column} = {wrong} where id = '1'")
        store = FeatureStore.open(root)
        if column == "id":  # which is compared with an id that is not stored
            with pytest.raises(DataError, match="'10' is not among"):
                store["10"]
            assert store.ids == sound.ids
        assert torch.equal(value(store, "1"), value(sound, "1")), column


def test_in_builds_an_index_with_a_damaged_row_again(root: Path) -> None:
    with changed(root) as database:
        database.execute("update image set rows = 'text' where id = '1'")
    store = FeatureStore.open(root)
    assert "1" in store
    assert store.entries.lookup(["1"])


def test_a_grid_larger_than_its_shard_takes_no_memory(root: Path, sound: FeatureStore) -> None:
    with changed(root) as database:
        database.execute("update image set rows = ? where id = '1'", [1 << 30])
    store = FeatureStore.open(root)

    tokens = value(store, "1")

    assert torch.equal(tokens, value(sound, "1"))


def test_a_shard_overwritten_in_place_with_another_image_is_refused(
    root: Path, sound: FeatureStore, tiny: Backbone, tmp_path: Path
) -> None:
    folder = tmp_path / "other images"
    write_images(folder, ["0.png"], seed=7)
    other = make(tmp_path / "other", tiny, views="none")
    other.extract(folder)
    store = FeatureStore.open(root)
    before = value(store, "0")
    [entry] = [entry for entry in store.entries.every() if entry.id == "0"]
    [other_shard] = shards(Path(other.path))

    shutil.copyfile(other_shard, root / entry.shard)

    assert torch.equal(before, value(sound, "0"))
    with pytest.raises(StoreError, match="was replaced: it holds another image under the id '0'"):
        value(store, "0")


def test_a_shard_that_was_touched_is_read_as_before(root: Path, sound: FeatureStore) -> None:
    store = FeatureStore.open(root)
    value(store, "0")

    for shard in shards(root):
        shard.touch()

    assert same(store, sound)


def test_numbers_of_rows_that_no_file_could_hold_take_no_memory(
    root: Path, sound: FeatureStore
) -> None:
    with changed(root) as database:
        database.execute("update image set number = number + ?", [1 << 60])

    store = FeatureStore.open(root)

    assert store.entries.rows == len(shards(root))
    assert same(store, sound)


@pytest.mark.parametrize(
    "definition",
    [
        pytest.param(
            "alter table image rename to images; create view image as select * from images",
            id="view",
        ),
        pytest.param(
            "create trigger again before delete on image begin delete from about; end",
            id="trigger",
        ),
        pytest.param("alter table image drop column hash", id="a column less"),
        pytest.param("alter table image add column doubled as (rows * 2)", id="generated column"),
    ],
)
def test_an_index_of_other_tables_is_not_queried(
    root: Path, sound: FeatureStore, definition: str
) -> None:
    with changed(root) as database:
        database.executescript(definition)

    store = FeatureStore.open(root)

    assert store.entries.path is None  # only the headers of the shards are read
    assert same(store, sound)


@pytest.mark.parametrize("is_absolute", [False, True])
def test_an_index_reads_no_file_outside_of_the_folder_of_shards(
    root: Path, is_absolute: bool
) -> None:
    shard = shards(root)[0]
    [image_id] = [
        entry.id for entry in FeatureStore.open(root).entries.every() if shard.name in entry.shard
    ]
    outside = root.parent / shard.name
    shard.rename(outside)
    name = str(outside) if is_absolute else f"data/../../{outside.name}"
    os.utime(root / "data", (OLD, OLD))
    with changed(root) as database:
        database.execute("update shard set name = ? where name = ?", [name, f"data/{outside.name}"])
        changed_ns = (root / "data").stat().st_ctime_ns
        database.execute("update about set changed = ?", [changed_ns])
    store = FeatureStore.open(root)

    with pytest.raises(DataError, match=f"'{image_id}' is not among the 3 images"):
        store[image_id]


@pytest.mark.parametrize("name", ["a?b", "a#b", "with blank", "ä-ü-文", "100%25", "a&b=c;d"])
def test_paths_of_all_kinds(
    sound: FeatureStore, images: Path, tiny: Backbone, tmp_path: Path, name: str
) -> None:
    root = shutil.copytree(sound.path, tmp_path / name)
    assert same(FeatureStore.open(root), sound)
    (root / "index.sqlite").unlink()
    assert make(root, tiny, views="none").extract(images).present == 4
    assert sorted(path.name for path in root.iterdir()) == ["data", "index.sqlite", "store.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_threads_read_more_files_than_stay_open(
    root: Path, sound: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinoneck.store.files.MOST_OPEN_FILES", 1)
    store, together = FeatureStore.open(root, check="always"), threading.Barrier(4)
    expected = {image_id: value(sound, image_id) for image_id in sound.ids}

    def read(_: int) -> bool:
        right = []
        for turn in range(100):
            together.wait(60)  # all open the same file at once
            right.append(torch.equal(value(store, str(turn % 4)), expected[str(turn % 4)]))
        return all(right)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(4)))


def test_an_index_that_cannot_be_kept_in_the_store_lies_in_the_cache(
    root: Path, sound: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 0)
    (root / "index.sqlite").unlink()
    touch = Path.touch

    def read_only(path: Path) -> None:
        if path.parent == root:
            raise PermissionError(13, "Permission denied")
        touch(path)

    monkeypatch.setattr(Path, "touch", read_only)
    store = FeatureStore.open(root)
    assert same(store, sound)
    assert str(store.entries.path).startswith(str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "store.json"))  # a file
    with pytest.raises(StoreError, match="XDG_CACHE_HOME"):
        FeatureStore.open(root)


def test_a_remote_store_fetches_its_index_once(
    root: Path, sound: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 0)
    fetched: list[str] = []
    read = index.RemoteFiles.read
    monkeypatch.setattr(
        index.RemoteFiles, "read", lambda self, name: (fetched.append(name), read(self, name))[1]
    )
    for _ in range(2):
        store = FeatureStore.open(f"local://{root}")
        assert store.ids == sound.ids
        assert torch.equal(value(store, "2"), value(sound, "2"))
        assert store.entries.later == {}
    assert fetched.count("index.sqlite") == 1
    assert same(store, sound)
    assert store.verify() == []


@pytest.mark.parametrize("check", ["first", "always", "never"])
def test_when_checksums_are_compared(root: Path, check: str) -> None:
    store = FeatureStore.open(root, check=check)  # type: ignore[arg-type]
    expected = value(store, "0")
    shard = root / store.shard_of("0")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    if check != "never":
        with pytest.raises(StoreError, match="view 0 of '0' has another checksum"):
            store["0"]
        with pytest.raises(StoreError, match="another checksum"):
            FeatureStore.open(root, check=check)["0"]  # type: ignore[arg-type]
    else:
        assert not torch.equal(value(store, "0"), expected)


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_turned_and_blurred_views(images: Path, tiny: Backbone, tmp_path: Path, dtype: str) -> None:
    store = make(tmp_path / "s", tiny, views="d6", blur=5, dtype=dtype)
    store.extract(images)
    prepare = tiny.preprocess.changed(size=(32, 48), blur=5)
    image = prepare(images / "1.png")
    plain = [
        image,
        image.flip(-1),
        image.flip(-2),
        image.flip(-1, -2),
        image.rot90(1, (2, 3)),
        image.rot90(3, (2, 3)),
    ]
    for view, x in enumerate(plain):
        given, expected = store["1", view], tiny(x)
        assert given.grid == expected.grid == ((2, 3) if view < 4 else (3, 2))
        error = (given.patches[0] - expected.patches[0]).norm() / expected.patches[0].norm()
        assert error < (2e-3 if dtype == "fp16" else 2e-2), view
    assert store.verify() == []
    assert torch.equal(store.batch(["1", "2"], [4, 5]).sequence[0][:1], store["1", 4].sequence[0])
    with pytest.raises(DataError, match="2x3, 3x2"):
        store.batch(["1", "1"], [0, 4])


def test_the_plan_is_printed_and_what_does_not_fit_is_refused(
    images: Path,
    tiny: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A view of 96 x 96 px has 36 patches and 3 other tokens of 64 channels, 2 bytes each: 4992 bytes."""
    free = [10**12]
    monkeypatch.setattr(
        "dinoneck.store.images.shutil.disk_usage", lambda _: SimpleNamespace(free=free[0])
    )
    store = make(tmp_path / "s", tiny, image_size=(96, 96))
    store.extract(images / "0.png", root=images)
    assert "1 image x 4 views x 1 layer in fp16: about 20.6kB per image" in capsys.readouterr().err
    free[0] = 4 * 14_000  # three images are missing
    with pytest.raises(StoreError, match=r"61\.7kB in all; 56\.0kB are free in .*dtype='int8'"):
        store.extract(images)
    assert store.ids == ("0",)
    # nothing is missing, so nothing is needed
    assert store.extract(images / "0.png", root=images).present == 1
    free[0] = 3 * 21_000
    assert len(store.extract(images).written) == 3


def test_two_images_under_one_id_are_listed_and_refused(tmp_path: Path, tiny: Backbone) -> None:
    """Two extracts of different folders at once: neither sees the other's image when it starts."""
    for name, seed in (("A", 0), ("B", 9), ("C", 0)):
        write_images(tmp_path / name, ["p0.png", "p1.png"], seed=seed)
        make(tmp_path / f"store{name}", tiny).extract(tmp_path / name)
    equal = merged(tmp_path / "storeA", tmp_path / "storeC")  # the same images: one record each
    assert (equal.verify(), len(equal), equal.ids) == ([], 2, ("p0", "p1"))
    store = merged(tmp_path / "storeA", tmp_path / "storeB")
    assert store.verify() == ["p0", "p1"]
    with pytest.raises(
        StoreError, match=r"different images under the id 'p0', in .*/A\).*/B\)|/B\).*/A\)"
    ):
        store.batch(["p0"])
    for _ in range(4):  # as many as there are shards of one of the images at most
        for shard in {store.shard_of(image_id) for image_id in store.verify()}:
            (tmp_path / "storeA" / shard).unlink()
        store.refresh()
    assert store.verify() == []
    assert store.batch(["p0", "p1"]).sequence[0].isfinite().all()


def merged(into: Path, other: Path) -> FeatureStore:
    for file in (other / "data").iterdir():
        shutil.copy(file, into / "data")
    return FeatureStore.open(into)


def test_a_forked_process_opens_the_index_itself(
    sound: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of SQLite must not be carried through a fork."""
    opened: list[object] = []
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3,
        "connect",
        lambda *args, **options: opened.append(args) or connect(*args, **options),
    )
    store = FeatureStore.open(sound.path)
    assert "0" in store
    before = len(opened)
    assert "1" in store
    assert len(opened) == before

    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert "2" in store
    assert len(opened) == before + 1
