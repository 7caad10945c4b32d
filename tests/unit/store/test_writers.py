"""Several processes write one store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.process_group import ROOT, printed_by
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import Backbone, FeatureStore

WORKER = """
import sys
from tests.unit.store.store_samples import make
from dinoneck import load_backbone
root, images, dtype, shard = sys.argv[1:]
shard = tuple(map(int, shard.split("/"))) if shard else None
make(root, load_backbone("dinoneck_tiny"), dtype=dtype).extract(images, shard=shard, shard_bytes=1, batch_size=4)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, [f"{i}.png" for i in range(5)])
    return folder


def extracted(path: Path, images: Path, backbone: Backbone, dtype: str) -> FeatureStore:
    store = make(path, backbone, dtype=dtype)
    store.extract(images)
    return store


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


def test_torchrun_shares_the_work(images: Path, tiny: Backbone, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    printed_by([*torchrun, str(tmp_path / "s"), str(images), "fp16", ""], 110, ENVIRONMENT)
    assert same(FeatureStore.open(tmp_path / "s"), extracted(tmp_path / "expected", images, tiny, "fp16"))
    writers = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "s" / "data").iterdir()}
    assert len(writers) == 2
