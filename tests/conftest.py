"""What all tests share: no network, one thread, known seeds, real data if it is there."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.hub_server import Hub

os.environ["HF_HUB_OFFLINE"] = "1"  # also for processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
# of commands, whose default would choose by the time that it measures
os.environ["DINONECK_RUNTIME"] = "torch"
# no pool of compiler processes next to the tests' own workers
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
# each worker its own
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="dinoneck-compiled-")
# indexes of stores that are only read, and compiled programs of backbones
os.environ.pop("DINONECK_CACHE", None)
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="dinoneck-cache-")

import torch

from dinoneck import Backbone, load_backbone, registry

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("DINONECK_DATA", ROOT.parent / "shared" / "data"))
CACHES = Path(os.environ["XDG_CACHE_HOME"])  # a folder in it per test
CACHE_NUMBERS = itertools.count()
ON_PRETEND_DEVICE = [
    "unit/test_gpu_benchmarks.py",
    "unit/store/test_memory_on_device.py",
    "unit/test_device_traffic.py",
    "unit/backbones/test_positions_on_device.py",
]
# run by unit/test_pretend_device.py in a process of its own
collect_ignore = [] if "DINONECK_PRETEND" in os.environ else ON_PRETEND_DEVICE

# what -m is given for the slow tier, for the campaigns, and for both
WITHOUT_QUICK_TESTS = ("slow and not campaign", "campaign", "slow")

torch.set_num_threads(1)
# OpenVINO reports every conversion from a copy of the process, unless its reporter cannot be imported
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
if not torch.cuda.is_available():
    sys.modules["triton"] = None  # type: ignore[assignment]  # compiles for GPUs alone


def names_slow_tests(path: Path) -> bool:
    """Whether a file of tests marks any as slow or as part of a campaign."""
    text = path.read_text(encoding="utf-8")
    return "slow" in text or "campaign" in text


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files of quick tests where no quick test is asked for: to import them takes a minute."""
    if config.option.markexpr not in WITHOUT_QUICK_TESTS:
        return None
    if not collection_path.match("test_*.py"):
        return None
    return None if names_slow_tests(collection_path) else True


def pytest_itemcollected(item: pytest.Item) -> None:
    """Make every test of a campaign a slow one; refuse a slow test whose file does not say so.

    Raises:
        pytest.UsageError: if a mark comes from another module, so that the slow tier would miss the test.
    """
    if item.get_closest_marker("campaign") is not None:
        item.add_marker(pytest.mark.slow)
    if item.get_closest_marker("slow") is not None and not names_slow_tests(item.path):
        raise pytest.UsageError(
            f"{item.nodeid} is marked slow by another module: name the mark in its file as well"
        )


def pytest_collection() -> None:
    """Collect the tests without looking for garbage: they stay, and every search looks at all of them."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Leave what was collected out of later searches for garbage."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Leave no files behind; what was collected stays out of the search for garbage at the end."""
    shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
    shutil.rmtree(CACHES, ignore_errors=True)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failure when it happens: a run that is stopped early prints no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(
            f"\nfailed ({report.when}): {report.nodeid}\n{report.longreprtext[-2000:]}", flush=True
        )


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Any connection beyond this machine fails the test that tries it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = not isinstance(address, tuple) or str(address[0]) in (
            "127.0.0.1",
            "::1",
            "localhost",
        )
        if not local:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without compiled programs: what earlier tests compiled changes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHES / str(next(CACHE_NUMBERS))))


@pytest.fixture(scope="session")
def folder_of_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of :func:`shared_programs`, one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "shared-programs"


@pytest.fixture
def shared_programs(folder_of_programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the programs that other tests with this fixture compiled of the same weights.

    It is for tests of what a program computes. To compile one takes seconds, to load it a moment.
    Tests of compiling, and of ``auto``, which keeps times in the cache folder, begin without any.
    """
    monkeypatch.setenv("DINONECK_CACHE", str(folder_of_programs))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same random state.

    torch.manual_seed would also note the stack of every call, to seed devices that nobody uses.
    """
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """The built-in backbone: 64 channels, patch 16, CLS and 2 registers."""
    return load_backbone("dinoneck_tiny")


@pytest.fixture(scope="session")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of 12 small images with shares, classes and masks; nothing is to be written next to it."""
    from tests.unit.training.meadow import write_meadow

    return write_meadow(tmp_path_factory.mktemp("meadow"))


@pytest.fixture(scope="session")
def csiro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 small generated images, and 2 to predict, in the CSIRO layout and in ``table.csv``; do not write there."""
    from examples.biomass import layouts
    from examples.biomass.drawn import write_csiro

    from dinoneck.data import Pasture

    root = tmp_path_factory.mktemp("csiro")
    write_csiro(Pasture(seed=1, size=(32, 64)), root, train=10, test=2)
    layouts.write(root / "table.csv", layouts.wide(root / "train.csv"))
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub on loopback, empty, with the hub's client pointed at it; nothing of it runs on afterwards."""
    from tests.hub_server import Hub, point_client_at

    before = set(threading.enumerate())
    with Hub() as served:
        point_client_at(served, monkeypatch, tmp_path)
        yield served
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if type(thread).__name__ != "TMonitor"
    ]
    for thread in left:  # an answer may be on its way; tqdm's monitor lives as long as the process
        thread.join(5)
    assert not any(thread.is_alive() for thread in left), left


@pytest.fixture
def writer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub on loopback, with someone logged in who may write."""
    from tests.hub_server import WRITER

    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


@pytest.fixture(scope="session")
def crop_cover() -> Path:
    """The folder of real crop images; tests that need it are skipped without."""
    folder = DATA / "crop_cover"
    if not (folder / "cover.csv").is_file():
        pytest.skip(
            f"the crop_cover images are not in {folder}; set DINONECK_DATA to the folder that "
            "holds them"
        )
    return folder


@pytest.fixture(autouse=True)
def registered_classes() -> Iterator[None]:
    """Classes that a test or a block of a page registers are gone after it."""
    own = dict(registry.REGISTERED)
    yield
    registry.REGISTERED.clear()
    registry.REGISTERED.update(own)
