"""Heads of other packages: imported only when a file names one and the caller allows it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinoneck import (
    CheckpointError,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    RegistryError,
    Task,
    registry,
    third_party,
)
from dinoneck.checkpoint import header as headers

HEAD = '''
import sys
sys.stderr.write("acme was imported\\n")
from torch import nn
from dinoneck import PatchMeanHead


class PineHead(PatchMeanHead):
    """Somebody else's head."""


class Loose(nn.Module):
    """Has no configuration."""
'''
ENTRY_POINTS = """[dinoneck.heads]
pine = acme_heads:PineHead
broken = acme_broken:Head
missing = acme_heads:Nothing
loose = acme_heads:Loose
"""
SAVE = """
import torch
import acme_heads
from dinoneck import HeadEnsemble, PyramidHead, Task, load_head, save_head
torch.manual_seed(0)
head = acme_heads.PineHead(8, [Task("a")])
save_head("pine.safetensors", head)
save_head("folds.safetensors", HeadEnsemble.from_heads([head, acme_heads.PineHead(8, [Task("a")])]))
"""


def installed(folder: Path, entry_points: str = ENTRY_POINTS, name: str = "Acme.Heads", version: str = "1.0") -> Path:
    """A distribution as pip would leave it."""
    info = folder / f"acme_heads-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)
    (folder / "acme_heads.py").write_text(HEAD)
    (folder / "acme_broken.py").write_text("raise ValueError('this package is broken')\n")
    return folder


def ran(code: str, cwd: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    here = [str(Path(registry.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *here])}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with head files of the package in ``site``."""
    folder = tmp_path_factory.mktemp("third")
    done = ran(SAVE, folder, installed(folder / "site"))
    assert done.returncode == 0, done.stderr
    return folder


LOAD = """
from dinoneck import CheckpointError, HeadCheckpoint, load_head
def told(file, **options):
    try:
        print(type(load_head(file, **options)).__name__)
    except CheckpointError as error:
        print(error.step, "|", error)
"""


def test_only_what_is_named_and_allowed_is_imported(place: Path) -> None:
    done = ran(LOAD + 'told("pine.safetensors")\ntold("folds.safetensors", allow=("other.*",))', place, place / "site")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "registry | pine.safetensors: head_type 'acme_heads.pine' is code of the installed package"
    )
    assert "allow=('acme_heads.*',)" in lines[0]
    assert lines[1].startswith("config | ")
    assert "allow=('acme_heads.*',)" in lines[1]
    assert "acme was imported" not in done.stderr


@pytest.mark.parametrize("allow", ["acme_heads.*", pytest.param("acme_heads.pine", marks=pytest.mark.slow)])
def test_what_is_allowed_is_loaded_once_and_not_for_ever(allow: str, place: Path) -> None:
    code = LOAD + (
        f'told("pine.safetensors", allow=("{allow}",))\n'
        f'told("folds.safetensors", allow=("{allow}",))\n'
        'told("pine.safetensors")\n'
        f'checkpoint = HeadCheckpoint.load("pine.safetensors", allow=("{allow}",))\n'
        'checkpoint.save("again.safetensors")\n'
        "print(checkpoint.head_type, type(checkpoint.build()).__name__)\n"
        "from dinoneck import registry, third_party\n"
        "print(third_party.offered(), registry.name_of(type(checkpoint.build())))\n"
    )
    done = ran(code, place, place / "site")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["PineHead", "HeadEnsemble"], done.stderr
    assert "is code of the installed package" in lines[2]
    assert lines[3] == "acme_heads.pine PineHead"
    every = ("acme_heads.broken", "acme_heads.loose", "acme_heads.missing", "acme_heads.pine")
    assert lines[4] == f"{every} acme_heads.pine"
    assert (place / "again.safetensors").read_bytes() == (place / "pine.safetensors").read_bytes()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package installed for this process, forgotten afterwards."""
    monkeypatch.syspath_prepend(str(installed(tmp_path / "site")))
    yield tmp_path / "site"
    for name in ("acme_heads", "acme_broken"):
        sys.modules.pop(name, None)


def refused(name: str, message: str) -> None:
    with third_party.allowing(["acme_heads.*"]), pytest.raises(RegistryError, match=message):
        registry.resolve(name)
    assert "acme_heads" not in sys.modules or "acme_heads:" in message or "Configured" in message


def test_a_package_that_is_not_here() -> None:
    refused("acme_heads.pine", "a head of a package 'acme-heads', which is not installed")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "cannot be imported from 'acme_broken:Head': ValueError: this package is broken"),
        ("missing", "cannot be imported from 'acme_heads:Nothing': AttributeError"),
        ("loose", "'acme_heads:Loose' .* has to mix in dinoneck.configured.Configured"),
        ("palm", r"does not offer it \(it offers broken, loose, missing, pine\)"),
    ],
)
def test_broken_packages_are_named(name: str, message: str, site: Path) -> None:
    refused(f"acme_heads.{name}", message)


def test_a_name_is_offered_once(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed(tmp_path / "copy")))
    with third_party.allowing(["acme_heads.*"]):
        assert registry.resolve("acme_heads.pine").__name__ == "PineHead"  # two copies that say the same
    del sys.modules["acme_heads"]
    other = installed(tmp_path / "other", "[dinoneck.heads]\npine = elsewhere:PineHead\n", version="2.0")
    monkeypatch.syspath_prepend(str(other))
    refused("acme_heads.pine", "is offered twice by 'acme-heads': acme_heads:PineHead, elsewhere:PineHead")


def test_nobody_speaks_in_anothers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for entry in ("acme_heads.pine", "pine"):
        impostor = installed(tmp_path / entry, f"[dinoneck.heads]\n{entry} = acme_heads:PineHead\n", name="evil-heads")
        monkeypatch.syspath_prepend(str(impostor))
        refused("acme_heads.pine", "not installed or does not offer it")


@pytest.mark.parametrize("allow", [["*"], ["acme"], ["acme.*", 3], ["a.b.*"], ["os.system:x"], ["Acme.*"]])
def test_permission_is_given_by_vendor(allow: list[str]) -> None:
    with pytest.raises(CheckpointError, match="expected names such as"), third_party.allowing(allow):
        pass


def test_names_in_files_are_no_import_paths() -> None:
    for name in ("os.system", "dinoneck.heads", "subprocess.run"):
        with third_party.allowing([name]), pytest.raises(RegistryError, match="not registered"):
            registry.resolve(name)


def test_an_older_file_with_a_foreign_member_is_refused_by_the_same_family(tmp_path: Path) -> None:
    made = HeadCheckpoint.from_module(HeadEnsemble.from_heads([PatchMeanHead(4, [Task("a")])]))
    meta = {key: value for key, value in made.meta.items() if key in headers.KEYS[1]}
    meta["schema"], meta["config"] = 1, copy.deepcopy(meta["config"])
    meta["config"]["members"][0]["type"] = "os.system"
    chunks = [made.state_dict[row[0]].numpy().tobytes() for row in meta["tensors"]]
    meta["digest"] = headers.digest(meta, chunks)
    (tmp_path / "h").write_bytes(headers.build(meta) + b"".join(chunks))
    with pytest.raises(CheckpointError, match="'os.system' is not registered") as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert caught.value.step == "registry"
