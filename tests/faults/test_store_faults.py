"""Kills, full disks, several writers and damaged bytes: a store never shows anything half written."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.process_group import ROOT, told_by
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, FeatureStore, StoreError

NAMES = [f"{i}.png" for i in range(5)]

WORKER = """
import sys
from tests.unit.store.store_samples import make
from dinoneck import load_backbone
store = make(sys.argv[1], load_backbone("dinoneck_tiny"), dtype=sys.argv[3])
print("ready", flush=True)
store.extract(sys.argv[2].split(":"), root=sys.argv[4], shard_bytes=1)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def whole(images: Path, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = make(tmp_path_factory.mktemp("whole") / "s", tiny)
    store.extract(images)
    return store


class Crash(BaseException):
    """Ends an extraction like a kill would: nothing in the library catches it."""


def count_down(monkeypatch: pytest.MonkeyPatch, steps: int, error: Callable[[], BaseException]) -> Callable[[], int]:
    """Fail at the n-th system call that changes the disk; return how many there were."""
    seen = 0

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kw: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == steps:
                raise error()
            return call(*args, **kw)

        return guarded

    for name in ("replace", "fsync", "write", "link"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    monkeypatch.setattr(Path, "replace", wrapped(Path.replace))
    return lambda: seen


def test_a_full_disk_at_any_step_costs_nothing_finished(images: Path, tiny: Backbone, tmp_path: Path) -> None:
    options = {"dtype": "fp16", "views": "none"}
    expected = make(tmp_path / "expected", tiny, **options)
    few = [images / name for name in NAMES[:2]]
    expected.extract(few)
    step, failed = 1, True
    while failed:
        root = tmp_path / f"{step}"
        with pytest.MonkeyPatch.context() as patch:
            count = count_down(patch, step, lambda: OSError(errno.ENOSPC, "No space left on device"))
            try:
                make(root, tiny, **options).extract(few, shard_bytes=1, workers=1)
            except StoreError as raised:
                assert "disk is full" in str(raised), raised
            failed = count() >= step
        if (root / "store.json").exists():
            visible = FeatureStore.open(root)
            assert set(visible.ids) <= set(expected.ids)
            assert not visible.verify()
        again = make(root, tiny, **options)
        again.extract(few)
        assert same(again, expected), step
        assert not list((root / "data").glob(".*")), step
        step += 1
    assert step > 10


@pytest.mark.parametrize("place", [20, -5])
def test_what_verify_lists_is_repaired_by_its_remedy(
    images: Path, whole: FeatureStore, tiny: Backbone, tmp_path: Path, place: int
) -> None:
    """A byte of the header is damaged, which hides the images of the shard, or a byte of a record."""
    store = make(tmp_path / "s", tiny)
    store.extract(images, shard_bytes=1)
    shard = Path(store.path) / store.shard_of("3")
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)
    assert FeatureStore.open(store.path).verify() == ["3"]
    assert FeatureStore.open(store.path).shard_of("3") == f"data/{shard.name}"
    (tmp_path / "s" / "index.sqlite").unlink()
    lost = FeatureStore.open(store.path)
    assert lost.verify() == [f"data/{shard.name}" if place > 0 else "3"]
    assert {lost.shard_of(name) for name in lost.verify()} == {f"data/{shard.name}"}
    shard.unlink()
    assert make(tmp_path / "s", tiny).extract(images).written == ["3"]
    assert same(FeatureStore.open(store.path), whole)
    assert FeatureStore.open(store.path).verify() == []


@contextlib.contextmanager
def extracting(root: Path, images: list[Path], dtype: str = "fp16") -> Iterator[subprocess.Popen[str]]:
    """A process that extracts; killed with all it started when the block ends."""
    arguments = [sys.executable, "-c", WORKER, str(root), ":".join(map(str, images)), dtype, str(images[0].parent)]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
@pytest.mark.parametrize("overlap", [False, True])
def test_two_writers_at_once(images: Path, tiny: Backbone, tmp_path: Path, dtype: str, overlap: bool) -> None:
    files = [images / name for name in NAMES]
    lists = [files, files] if overlap else [files[:3], files[3:]]
    root = tmp_path / "s"
    with extracting(root, lists[0], dtype) as one, extracting(root, lists[1], dtype) as two:
        for process in (one, two):
            _, shown = process.communicate(timeout=110)
            assert process.returncode == 0, shown
    store = FeatureStore.open(root)
    assert store.ids == tuple(str(i) for i in range(5))
    assert store.verify() == []
    again = make(root, tiny, dtype=dtype)
    assert again.extract(images).written == []
    if overlap or dtype == "fp16":
        expected = make(tmp_path / "expected", tiny, dtype=dtype)
        expected.extract(images)
        assert same(store, expected)


@pytest.mark.slow
def test_torchrun_shares_the_work(images: Path, whole: FeatureStore, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORKER)
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
                 str(tmp_path / "s"), str(images), "fp16", str(images)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    told_by(arguments, 110, environment)
    store = FeatureStore.open(tmp_path / "s")
    assert same(store, whole)
    writers = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "s" / "data").iterdir()}
    assert len(writers) == 2
