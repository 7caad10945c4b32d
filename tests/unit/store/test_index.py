"""The index follows the shards: what was added, removed, rewritten or damaged is never read as something else."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, DataError, FeatureStore, StoreError
from dinoneck.store import index
from dinoneck.store.reading import Check

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


@pytest.mark.parametrize(
    ("age_s", "is_trusted"),
    [
        pytest.param(1.0, False, id="1 second"),
        pytest.param(3.0, True, id="3 seconds"),
    ],
)
def test_a_folder_younger_than_two_seconds_is_not_trusted(
    root: Path, age_s: float, is_trusted: bool
) -> None:
    probe = root / "probe"
    probe.touch()  # the clock of the file system
    moment = probe.stat().st_mtime_ns - int(age_s * 1e9)
    os.utime(root / "data", ns=(moment, moment))
    store = FeatureStore.open(root)

    store.refresh(rebuild=True)

    assert store.entries.times[0] == (moment if is_trusted else -1)


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


@pytest.fixture
def other(tiny: Backbone, tmp_path: Path) -> FeatureStore:
    """A store of another image, x, in one shard."""
    write_images(tmp_path / "more", ["x.png"], seed=9)
    other = make(tmp_path / "other", tiny, views="none")
    other.extract(tmp_path / "more")
    return other


@pytest.fixture
def before_refresh(root: Path, other: FeatureStore) -> FeatureStore:
    """A store that was opened before the shard of another one was copied into it."""
    store = FeatureStore.open(root)  # a copy, whose index is written again
    [shard] = shards(Path(other.path))
    shutil.copy(shard, root / "data" / "w-0.safetensors")
    return store


def test_new_shards_are_read_after_a_refresh(
    before_refresh: FeatureStore, other: FeatureStore
) -> None:
    assert "x" not in before_refresh.ids

    before_refresh.refresh()

    assert before_refresh.ids == ("0", "1", "2", "3", "x")
    assert len(before_refresh) == 5
    assert torch.equal(value(before_refresh, "x"), value(other, "x"))
    assert before_refresh.verify() == []


def test_entries_of_new_shards_are_kept_in_memory(before_refresh: FeatureStore, root: Path) -> None:
    written = (root / "index.sqlite").read_bytes()

    before_refresh.refresh()

    assert len(before_refresh) == 5
    assert (root / "index.sqlite").read_bytes() == written  # readers leave it alone


def test_folders_of_images_in_new_shards_are_among_the_folders(
    before_refresh: FeatureStore, images: Path, other: FeatureStore
) -> None:
    [folder_of_other] = other.entries.roots()

    before_refresh.refresh()

    assert before_refresh.entries.roots() == sorted([str(images), folder_of_other])


def test_more_new_shards_than_fit_in_memory_are_written_next_to_those_of_the_index(
    before_refresh: FeatureStore, other: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 0)

    before_refresh.refresh()

    assert before_refresh.ids == ("0", "1", "2", "3", "x")
    assert before_refresh.entries.later == {}
    assert torch.equal(value(before_refresh, "x"), value(other, "x"))


def test_an_extraction_writes_the_entries_of_new_shards(
    before_refresh: FeatureStore, images: Path, tiny: Backbone, root: Path
) -> None:
    extracted = make(root, tiny, views="none").extract(images)

    assert extracted.present == 4
    assert len(FeatureStore.open(root).entries.listed()) == 5


def test_many_new_shards_are_written_to_the_index(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 2)
    (root / "index.sqlite").unlink()

    store = FeatureStore.open(root)

    assert len(store) == 4
    assert store.entries.later == {}
    assert (root / "index.sqlite").is_file()


@pytest.fixture
def without_two(root: Path) -> str:
    """The name of the shard of image 2, which is deleted; a shard that is there is renamed besides."""
    vanished = FeatureStore.open(root).shard_of("2")
    (root / vanished).unlink()
    shards(root)[0].rename(root / "data" / "w-0.safetensors")
    return vanished


def test_vanished_shards_are_dropped_with_a_warning(
    root: Path, without_two: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        store = FeatureStore.open(root)

    assert without_two in caplog.text
    assert store.ids == ("0", "1", "3")
    assert store.verify() == []


@pytest.mark.usefixtures("without_two")
def test_an_image_of_a_vanished_shard_is_not_among_the_images(root: Path) -> None:
    store = FeatureStore.open(root)

    with pytest.raises(DataError, match="'2' is not among the 3 images"):
        store["2"]


@pytest.mark.usefixtures("without_two")
def test_an_image_of_a_vanished_shard_is_extracted_again(
    root: Path, images: Path, tiny: Backbone
) -> None:
    extracted = make(root, tiny, views="none").extract(images)

    assert extracted.written == ["2"]


def test_a_shard_rewritten_in_place_is_looked_up_in_its_header(
    root: Path, sound: FeatureStore
) -> None:
    first = root / sound.shard_of("0")
    second = root / sound.shard_of("1")
    content_of_first = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content_of_first)
    os.utime(root / "data", (OLD, OLD))

    store = FeatureStore.open(root)

    assert store.entries.times[0] == OLD * 10**9  # nothing shows it yet
    assert torch.equal(value(store, "0"), value(sound, "0"))
    assert same(store, sound)


def test_a_shard_that_vanishes_under_an_open_store_is_named(
    root: Path, sound: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore.open(root)
    vanished = sound.shard_of("3")
    (root / vanished).unlink()

    with (
        caplog.at_level(logging.WARNING, logger="dinoneck"),
        pytest.raises(StoreError, match=vanished),
    ):
        store["3"]

    assert vanished in caplog.text
    assert "3" not in store


def test_an_index_replaced_under_an_open_store_is_noticed(root: Path, sound: FeatureStore) -> None:
    """Threads and forked processes open the file later than the object: its rows may have other numbers by then."""
    store = FeatureStore.open(root)
    with changed(root) as database:
        database.execute("update image set number = number + 1000")

    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(value, store, "3").result()

    assert torch.equal(read, value(sound, "3"))


@pytest.fixture
def with_changed_id(root: Path) -> Path:
    """A store whose index calls image 1 z."""
    with changed(root) as database:
        database.execute("update image set id = 'z' where id = '1'")
    return root


def test_an_id_that_was_changed_in_the_index_is_not_among_the_images(
    with_changed_id: Path,
) -> None:
    store = FeatureStore.open(with_changed_id)

    with pytest.raises(DataError, match="'1' is not among"):
        store["1"]


def test_the_id_that_it_was_changed_to_is_not_among_the_images(with_changed_id: Path) -> None:
    store = FeatureStore.open(with_changed_id)

    with pytest.raises(DataError, match="'z' is not among"):  # its checksum is that of another id
        store["z"]


def test_verify_names_an_id_that_was_changed_in_the_index(with_changed_id: Path) -> None:
    store = FeatureStore.open(with_changed_id)

    assert store.verify() == ["1", "z"]


def test_verify_builds_an_index_with_a_changed_id_again(with_changed_id: Path) -> None:
    store = FeatureStore.open(with_changed_id)

    store.verify()

    assert store.verify() == []
    assert store.ids == ("0", "1", "2", "3")


@pytest.mark.slow
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


def test_a_shard_that_states_another_checksum_is_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shards(root)[2]
    [entry] = [entry for entry in FeatureStore.open(root).entries.every() if entry.id == "2"]
    other_hash = entry.blake2b.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    content = shard.read_bytes()
    shard.write_bytes(content.replace(entry.blake2b.encode(), other_hash.encode()))

    damaged = FeatureStore.open(root).verify()

    assert damaged == ["2"]
    assert "does not have its checksum" in caplog.text


def test_a_shard_that_states_another_dtype_is_named(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shards(root)[2]
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'"F16"', b'"I16"'))

    damaged = FeatureStore.open(root).verify()

    assert damaged == ["2"]
    assert "its 2/tokens has the dtype I16; expected F16" in caplog.text


def test_the_line_of_an_index_that_is_built_again_does_not_ask_to_delete_a_shard(
    root: Path, sound: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    with changed(root) as database:
        database.execute("update image set checksums = x'0000000000000000' where id = '1'")

    found = value(FeatureStore.open(root), "1")

    assert torch.equal(found, value(sound, "1"))
    assert shards(root)[1].name in caplog.text
    assert "delete" not in caplog.text


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        pytest.param("offsets", "x'ffffffffffffffff'", id="offsets after the end of any file"),
        pytest.param("offsets", "'text'", id="offsets that are text"),
        pytest.param("rows", "'text'", id="rows"),
        pytest.param("checksums", "'text'", id="checksums"),
        pytest.param("mtime", "'text'", id="mtime"),
        pytest.param("hash", "cast(x'a0ff' as text)", id="hash that is not UTF-8"),
    ],
)
def test_a_row_of_another_kind_is_damage(
    root: Path, sound: FeatureStore, column: str, wrong: str
) -> None:
    with changed(root) as database:
        database.execute(f"update image set {column} = {wrong} where id = '1'")

    store = FeatureStore.open(root)

    assert torch.equal(value(store, "1"), value(sound, "1"))
    assert same(store, sound)


def test_a_row_without_an_id_is_damage_once_an_id_is_compared_with_it(
    root: Path, sound: FeatureStore
) -> None:
    with changed(root) as database:
        database.execute("update image set id = null where id = '1'")
    store = FeatureStore.open(root)

    with pytest.raises(DataError, match="'10' is not among"):
        store["10"]

    assert store.ids == sound.ids
    assert torch.equal(value(store, "1"), value(sound, "1"))


def test_asking_for_an_image_repairs_an_index_with_a_damaged_row(root: Path) -> None:
    with changed(root) as database:
        database.execute("update image set rows = 'text' where id = '1'")
    store = FeatureStore.open(root)

    is_stored = "1" in store

    assert is_stored
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


folder_names = pytest.mark.parametrize(
    "name", ["a?b", "a#b", "with blank", "ä-ü-文", "100%25", "a&b=c;d"]
)


@folder_names
def test_a_store_may_be_called_anything(sound: FeatureStore, tmp_path: Path, name: str) -> None:
    root = shutil.copytree(sound.path, tmp_path / name)

    assert same(FeatureStore.open(root), sound)


@folder_names
def test_the_index_of_a_store_is_written_into_its_folder_and_nowhere_else(
    sound: FeatureStore, images: Path, tiny: Backbone, tmp_path: Path, name: str
) -> None:
    root = shutil.copytree(sound.path, tmp_path / name)
    (root / "index.sqlite").unlink()

    extracted = make(root, tiny, views="none").extract(images)

    assert extracted.present == 4
    assert sorted(path.name for path in root.iterdir()) == ["data", "index.sqlite", "store.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_threads_read_more_files_than_stay_open(
    root: Path, sound: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinoneck.store.files.MOST_OPEN_FILES", 1)
    store = FeatureStore.open(root, check="always")
    expected = {image_id: value(sound, image_id) for image_id in sound.ids}
    together = threading.Barrier(4)

    def all_are_right(_: int) -> bool:
        are_right = []
        for turn in range(100):
            image_id = str(turn % 4)
            together.wait(60)  # all open the same file at once
            are_right.append(torch.equal(value(store, image_id), expected[image_id]))
        return all(are_right)

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(all_are_right, range(4)))

    assert results == [True] * 4


@pytest.fixture
def read_only(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store without an index, in whose folder none can be written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 0)
    (root / "index.sqlite").unlink()
    touch = Path.touch

    def refuse_in_root(path: Path) -> None:
        if path.parent == root:
            raise PermissionError(13, "Permission denied")
        touch(path)

    monkeypatch.setattr(Path, "touch", refuse_in_root)
    return root


def test_an_index_that_cannot_be_kept_in_the_store_lies_in_the_cache(
    read_only: Path, sound: FeatureStore, tmp_path: Path
) -> None:
    store = FeatureStore.open(read_only)

    assert same(store, sound)
    assert str(store.entries.path).startswith(str(tmp_path / "cache"))


def test_without_a_folder_for_the_cache_its_variable_is_named(
    read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(read_only / "store.json"))  # a file

    with pytest.raises(StoreError, match="XDG_CACHE_HOME"):
        FeatureStore.open(read_only)


@pytest.fixture
def remote_with_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store whose index is fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "MOST_SHARDS_IN_MEMORY", 0)
    return f"local://{root}"


def test_a_remote_store_is_that_of_its_folder(remote_with_cache: str, sound: FeatureStore) -> None:
    store = FeatureStore.open(remote_with_cache)

    assert store.ids == sound.ids
    assert store.entries.later == {}
    assert same(store, sound)
    assert store.verify() == []


def test_a_remote_store_fetches_its_index_once(
    remote_with_cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    read = index.RemoteFiles.read

    def counted(self: index.RemoteFiles, name: str) -> bytes:
        fetched.append(name)
        return read(self, name)

    monkeypatch.setattr(index.RemoteFiles, "read", counted)

    for _ in range(2):
        store = FeatureStore.open(remote_with_cache)
        value(store, "2")

    assert fetched.count("index.sqlite") == 1


@pytest.fixture
def last_bit_flipped(root: Path, sound: FeatureStore) -> Callable[[], None]:
    """Flips the last bit of the tokens of image 0."""

    def flip() -> None:
        shard = root / sound.shard_of("0")
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)

    return flip


@pytest.mark.parametrize("check", ["first", "always"])
def test_a_changed_bit_is_found_by_the_checksum_of_the_view(
    root: Path, last_bit_flipped: Callable[[], None], check: Check
) -> None:
    last_bit_flipped()
    store = FeatureStore.open(root, check=check)

    with pytest.raises(StoreError, match="view 0 of '0' has another checksum"):
        store["0"]


@pytest.mark.parametrize("check", ["first", "always"])
def test_a_bit_that_changes_under_an_open_store_is_found(
    root: Path, last_bit_flipped: Callable[[], None], check: Check
) -> None:
    store = FeatureStore.open(root, check=check)
    value(store, "0")

    last_bit_flipped()

    with pytest.raises(StoreError, match="view 0 of '0' has another checksum"):
        store["0"]


def test_verify_names_an_image_with_a_changed_bit(
    root: Path, last_bit_flipped: Callable[[], None]
) -> None:
    last_bit_flipped()

    assert FeatureStore.open(root).verify() == ["0"]


def test_without_checks_a_changed_bit_is_read(
    root: Path, sound: FeatureStore, last_bit_flipped: Callable[[], None]
) -> None:
    last_bit_flipped()

    store = FeatureStore.open(root, check="never")

    assert not torch.equal(value(store, "0"), value(sound, "0"))


@pytest.fixture(scope="module", params=["fp16", "int8"])
def turned(
    request: pytest.FixtureRequest,
    images: Path,
    tiny: Backbone,
    tmp_path_factory: pytest.TempPathFactory,
) -> FeatureStore:
    """A store of blurred images in six views, two of them turned by a quarter."""
    folder = tmp_path_factory.mktemp("turned")
    store = make(folder / "s", tiny, views="d6", blur=5, dtype=request.param)
    store.extract(images)
    return store


@pytest.mark.parametrize(
    ("view", "change", "grid"),
    [
        pytest.param(0, lambda x: x, (2, 3), id="as it is"),
        pytest.param(1, lambda x: x.flip(-1), (2, 3), id="left-right"),
        pytest.param(2, lambda x: x.flip(-2), (2, 3), id="up-down"),
        pytest.param(3, lambda x: x.flip(-1, -2), (2, 3), id="both"),
        pytest.param(4, lambda x: x.rot90(1, (2, 3)), (3, 2), id="a quarter turn"),
        pytest.param(5, lambda x: x.rot90(3, (2, 3)), (3, 2), id="three quarter turns"),
    ],
)
def test_turned_and_blurred_views(
    turned: FeatureStore,
    images: Path,
    tiny: Backbone,
    view: int,
    change: Callable[[torch.Tensor], torch.Tensor],
    grid: tuple[int, int],
) -> None:
    prepare = tiny.preprocess.changed(size=(32, 48), blur=5)
    expected = tiny(change(prepare(images / "1.png")))

    stored = turned["1", view]

    assert stored.grid == expected.grid == grid
    error = (stored.patches[0] - expected.patches[0]).norm() / expected.patches[0].norm()
    assert error < (2e-3 if turned.dtype == "fp16" else 2e-2)


def test_a_store_with_turned_views_is_sound(turned: FeatureStore) -> None:
    assert turned.verify() == []


def test_turned_views_make_a_batch(turned: FeatureStore) -> None:
    batch = turned.batch(["1", "2"], [4, 5])

    assert torch.equal(batch.sequence[0][:1], turned["1", 4].sequence[0])


def test_views_of_other_grids_make_no_batch(turned: FeatureStore) -> None:
    with pytest.raises(DataError, match="2x3, 3x2"):
        turned.batch(["1", "1"], [0, 4])


# a view of 96 x 96 px has 36 patches and 3 other tokens of 64 channels, 2 bytes each: 4992 bytes


@pytest.fixture
def let_disk_have(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes are free."""

    def set_free(free: int) -> None:
        monkeypatch.setattr(
            "dinoneck.store.images.shutil.disk_usage", lambda _: SimpleNamespace(free=free)
        )

    return set_free


@pytest.fixture
def of_one_large_image(images: Path, tiny: Backbone, tmp_path: Path) -> FeatureStore:
    """A store of the first of four images."""
    store = make(tmp_path / "s", tiny, image_size=(96, 96))
    store.extract(images / "0.png", root=images)
    return store


def test_the_plan_is_printed(
    images: Path, tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make(tmp_path / "s", tiny, image_size=(96, 96))

    store.extract(images / "0.png", root=images)

    printed = capsys.readouterr().err
    assert "1 image x 4 views x 1 layer in fp16: about 20.6kB per image" in printed


def test_what_does_not_fit_on_the_disk_is_refused(
    of_one_large_image: FeatureStore, images: Path, let_disk_have: Callable[[int], None]
) -> None:
    let_disk_have(4 * 14_000)  # three images are missing

    with pytest.raises(StoreError, match=r"61\.7kB in all; 56\.0kB are free in .*dtype='int8'"):
        of_one_large_image.extract(images)

    assert of_one_large_image.ids == ("0",)


def test_where_nothing_is_missing_no_room_is_needed(
    of_one_large_image: FeatureStore, images: Path, let_disk_have: Callable[[int], None]
) -> None:
    let_disk_have(0)

    extracted = of_one_large_image.extract(images / "0.png", root=images)

    assert extracted.present == 1


def test_what_just_fits_on_the_disk_is_stored(
    of_one_large_image: FeatureStore, images: Path, let_disk_have: Callable[[int], None]
) -> None:
    let_disk_have(3 * 21_000)

    extracted = of_one_large_image.extract(images)

    assert len(extracted.written) == 3


def of_folder(folder: Path, tiny: Backbone, seed: int) -> FeatureStore:
    """A store of two images of a folder, p0 and p1."""
    write_images(folder, ["p0.png", "p1.png"], seed=seed)
    store = make(folder.with_name(f"store {folder.name}"), tiny)
    store.extract(folder)
    return store


@pytest.fixture
def with_two_images_of_one_id(tmp_path: Path, tiny: Backbone) -> FeatureStore:
    """Two extracts of different folders at once: neither sees the other's images when it starts."""
    store = of_folder(tmp_path / "A", tiny, seed=0)
    other = of_folder(tmp_path / "B", tiny, seed=9)
    return merged(Path(store.path), Path(other.path))


def test_equal_images_of_two_extracts_are_one_record_each(tmp_path: Path, tiny: Backbone) -> None:
    store = of_folder(tmp_path / "A", tiny, seed=0)
    other = of_folder(tmp_path / "C", tiny, seed=0)

    joined = merged(Path(store.path), Path(other.path))

    assert joined.verify() == []
    assert len(joined) == 2
    assert joined.ids == ("p0", "p1")


def test_two_images_under_one_id_are_listed(with_two_images_of_one_id: FeatureStore) -> None:
    assert with_two_images_of_one_id.verify() == ["p0", "p1"]


def test_two_images_under_one_id_are_refused(with_two_images_of_one_id: FeatureStore) -> None:
    folders = r"/A\).*/B\)|/B\).*/A\)"

    with pytest.raises(StoreError, match=rf"different images under the id 'p0', in .*({folders})"):
        with_two_images_of_one_id.batch(["p0"])


def test_deleting_the_shards_of_the_images_that_verify_names_ends_a_clash_of_ids(
    with_two_images_of_one_id: FeatureStore,
) -> None:
    store = with_two_images_of_one_id

    for _ in range(4):  # as many as there are shards of one of the images at most
        for shard in {store.shard_of(image_id) for image_id in store.verify()}:
            (Path(store.path) / shard).unlink()
        store.refresh()

    assert store.verify() == []
    assert store.batch(["p0", "p1"]).sequence[0].isfinite().all()


def merged(into: Path, other: Path) -> FeatureStore:
    for file in (other / "data").iterdir():
        shutil.copy(file, into / "data")
    return FeatureStore.open(into)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections of SQLite that are opened."""
    opened: list[object] = []
    connect = sqlite3.connect

    def counted(*arguments: object, **options: object) -> object:
        opened.append(arguments)
        return connect(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(sqlite3, "connect", counted)
    return opened


def test_the_index_is_opened_once(sound: FeatureStore, connections: list[object]) -> None:
    store = FeatureStore.open(sound.path)
    assert "0" in store
    num_opened = len(connections)

    assert "1" in store

    assert len(connections) == num_opened


def test_a_forked_process_opens_the_index_itself(
    sound: FeatureStore, connections: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of SQLite must not be carried through a fork."""
    store = FeatureStore.open(sound.path)
    assert "0" in store
    num_opened = len(connections)

    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert "2" in store
    assert len(connections) == num_opened + 1


# facts of the index as a whole


def test_the_index_of_another_store_is_not_read(root: Path, sound: FeatureStore) -> None:
    with changed(root) as database:
        database.execute("update about set made = '00'")

    store = FeatureStore.open(root)

    assert same(store, sound)
    assert store.verify() == []


def test_folders_of_images_that_are_no_text_are_damage(root: Path, sound: FeatureStore) -> None:
    with changed(root) as database:
        database.execute("update shard set root = x'00'")

    store = FeatureStore.open(root)

    assert same(store, sound)
    assert store.verify() == []
