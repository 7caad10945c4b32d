"""Several processes write one store, also those of Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.process_group import ROOT, printed_by
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, FeatureStore, StoreError
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.store.files import write_first

WORKER = """
import sys
from tests.unit.store.store_samples import make
from dinoneck import load_backbone
root, images, dtype, shard = sys.argv[1:]
shard = tuple(map(int, shard.split("/"))) if shard else None
make(root, load_backbone("dinoneck_tiny"), dtype=dtype).extract(images, shard=shard, shard_bytes=1, batch_size=4)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, [f"{i}.png" for i in range(5)])
    return folder


def extracted(
    path: Path, images: Path, backbone: Backbone, dtype: str, **options: Any
) -> FeatureStore:
    store = make(path, backbone, dtype=dtype)
    store.extract(images, **options)
    return store


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "shards"), [("fp16", ("0/2", "1/2")), ("int8", ("", ""))])
def test_two_processes_make_the_store_of_one(
    dtype: str, shards: tuple[str, str], images: Path, tiny: Backbone, tmp_path: Path
) -> None:
    """Each with its share, or both with all images at the same time."""
    command = [sys.executable, "-c", WORKER, str(tmp_path / "s"), str(images), dtype]
    started = [subprocess.Popen([*command, shard], env=ENVIRONMENT) for shard in shards]
    assert [process.wait(110) for process in started] == [0, 0]
    store = FeatureStore.open(tmp_path / "s")
    assert store.verify() == []
    assert make(tmp_path / "s", tiny, dtype=dtype).extract(images).written == []
    assert same(store, extracted(tmp_path / "expected", images, tiny, dtype))


@pytest.mark.slow
def test_torchrun_shares_the_work(images: Path, tiny: Backbone, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORKER)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    printed_by([*torchrun, str(tmp_path / "s"), str(images), "fp16", ""], 110, ENVIRONMENT)
    assert same(
        FeatureStore.open(tmp_path / "s"), extracted(tmp_path / "expected", images, tiny, "fp16")
    )
    writers = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "s" / "data").iterdir()}
    assert len(writers) == 2


LIMIT_S = 270

SCRIPT = """
import sys
from pathlib import Path
import ray
import ray.data
ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
ray.data.DataContext.get_current().wait_for_min_actors_s = 180
print("started", flush=True)
from dinoneck import load_backbone
from tests.unit.store.store_samples import make
store = make(sys.argv[1], load_backbone("dinoneck_tiny"), dtype="int8")
done = store.extract(sys.argv[2], engine="ray", skip_unusable=True, workers=1)
writers = {path.name.rsplit("-", 1)[0] for path in (Path(store.path) / "data").iterdir()}
print("done", len(done.written), sorted(done.unusable), len(store), len(writers), flush=True)
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_writes_the_same_store(tiny: Backbone, tmp_path: Path) -> None:
    """Two actors, each with a writer of its own; what was stored before is not extracted again."""
    write_images(tmp_path, [f"p/{i:03}.png" for i in range(100)])
    (tmp_path / "p" / "x.png").write_text("no picture")
    environment = {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        shown = printed_by(
            [sys.executable, "-c", SCRIPT, tmp_path / "s", tmp_path / "p"], LIMIT_S, environment
        )
    except (subprocess.TimeoutExpired, AssertionError) as error:
        if isinstance(error, AssertionError) and "started" in str(error):
            raise
        pytest.skip(
            f"Ray did not start, or not finish within {LIMIT_S} s, on this machine: {error}"
        )
    assert "done 100 ['x'] 100 2" in shown, shown[-3000:]
    expected = extracted(tmp_path / "expected", tmp_path / "p", tiny, "int8", skip_unusable=True)
    assert same(FeatureStore.open(tmp_path / "s"), expected)


def test_without_ray_the_extra_is_named(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path, ["a.png"])
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"dinoneck\[ray\]"):
        make(tmp_path / "s", tiny).extract(images, engine="ray")


def test_hidden_files_of_the_user_stay(images: Path, tiny: Backbone, tmp_path: Path) -> None:
    store = extracted(tmp_path / "s", images, tiny, "fp16")
    of_the_user = tmp_path / "s" / ".gitignore"
    of_the_user.write_text("data/")
    changed = time.time() - STALE_AFTER_S - 60
    os.utime(of_the_user, (changed, changed))

    store.extract(images)

    assert of_the_user.read_text() == "data/"


def test_of_two_writers_of_one_file_the_first_one_stays(tmp_path: Path) -> None:
    write_first(tmp_path / "store.json", b"first")

    write_first(tmp_path / "store.json", b"second")

    assert (tmp_path / "store.json").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["store.json"]


def test_a_disk_that_gives_back_other_bytes_is_named(
    images: Path, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def flip_a_bit_of_shards(path: Path) -> bytes:
        content = read(path)
        if path.parent.name != "data":
            return content
        return content[:-1] + bytes([content[-1] ^ 1])

    monkeypatch.setattr(Path, "read_bytes", flip_a_bit_of_shards)

    with pytest.raises(StoreError, match="has other bytes than were written; check the disk"):
        extracted(tmp_path / "s", images, tiny, "fp16")


@pytest.mark.parametrize(
    "name", [".w-1.00.dinoneck-tmp", pytest.param(".store.json.00.dinoneck-tmp", id="description")]
)
@pytest.mark.parametrize(
    ("age_s", "stays"),
    [
        pytest.param(STALE_AFTER_S + 60, False, id="killed"),
        pytest.param(STALE_AFTER_S - 60, True, id="at work"),
    ],
)
def test_temporary_files_of_writers_go_an_hour_after_their_last_byte(
    name: str, age_s: float, stays: bool, images: Path, tiny: Backbone, tmp_path: Path
) -> None:
    store = extracted(tmp_path / "s", images, tiny, "fp16")
    folder = tmp_path / "s" / ("data" if name.startswith(".w-") else "")
    leftover = folder / name
    leftover.write_text("half")
    changed = time.time() - age_s
    os.utime(leftover, (changed, changed))

    store.extract(images)

    assert leftover.exists() == stays
