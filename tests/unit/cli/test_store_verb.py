"""``dinoneck store``: older layouts in and out, and the check."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone, FeatureStore, load_backbone
from dinoneck.cli.main import main


@pytest.fixture
def filled(tiny: Backbone, tmp_path: Path) -> Path:
    write_images(tmp_path, ["p/a.png", "p/deep/b.png"])
    make(tmp_path / "store", tiny, image_size=(32, 48)).extract(tmp_path / "p")
    return tmp_path / "store"


def run(*arguments: object) -> int:
    return main(["store", *map(str, arguments)])


def test_npz_there_and_back(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, again = tmp_path / "files", tmp_path / "again"
    assert run("convert", filled, "--format", "npz", "--out", files) == 0
    assert "files      2" in capsys.readouterr().out
    assert sorted(str(file.relative_to(files)) for file in files.rglob("*.npz")) == ["a.npz", "deep/b.npz"]
    back = ("convert", files, "--format", "npz", "--out", again, "--patch-size", "16", "--grid", "2x3")
    assert run(*back) == 0
    one, other = FeatureStore.open(filled), FeatureStore.open(again)
    assert (other.ids, len(other.patterns), other.dtype) == (one.ids, 4, "fp16")
    for image_id in one.ids:
        for pattern in range(4):
            assert torch.equal(one[image_id, pattern].patches[0], other[image_id, pattern].patches[0])
    assert run(*back, "--patterns", "color20") == 1
    assert "20 patterns were named; the files hold 4" in capsys.readouterr().err


def test_pt_there_and_back(filled: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    assert run("convert", filled, "--format", "pt", "--out", files, "--pattern", "3") == 0
    wanted = FeatureStore.open(filled)["a", 3].maps()[0][0]
    assert torch.equal(torch.load(files / "a.pt", weights_only=True).float(), wanted)
    for dtype, near in (("fp16", 0.0), ("bf16", 2e-2), ("int8", 5e-2)):
        out = tmp_path / dtype
        assert run("convert", files, "--format", "pt", "--out", out, "--patch-size", "16", "--dtype", dtype) == 0
        store = FeatureStore.open(out)
        assert store.dtype == dtype
        assert np.allclose(store["a"].maps()[0][0], wanted, atol=near, rtol=near)


def test_several_layers_need_one_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, ["p/a.png"])
    make(tmp_path / "store", load_backbone("dinoneck_tiny", layers=[2, 5])).extract(tmp_path / "p")
    command = ("convert", tmp_path / "store", "--format", "npz")
    assert run(*command, "--out", tmp_path / "x") == 1
    assert "name it with layer=" in capsys.readouterr().err
    for layer in (2, 5):
        assert run(*command, "--out", tmp_path / f"f{layer}", "--layer", layer) == 0
    found = [np.load(tmp_path / f"f{layer}" / "a.npz")["patches_0"] for layer in (2, 5)]
    assert not np.array_equal(*found)


def test_what_would_be_ignored_or_replaced_is_refused(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    out = ("--out", files)
    assert run("convert", filled, "--format", "pt", *out) == 0
    for arguments, message in (
        ((filled, "--format", "pt", *out), "is not empty"),
        ((filled, "--format", "npz", "--pattern", "1", "--out", tmp_path / "n"), "--pattern does not apply"),
        ((filled, "--format", "npz", "--grid", "2x3", "--out", tmp_path / "n"), "--grid does not apply"),
        ((files, "--format", "pt", "--out", tmp_path / "n"), "do not state --patch-size"),
        ((files, "--format", "npz", "--out", tmp_path / "n"), "do not state --grid, --patch-size"),
        ((files, "--format", "pt", "--layer", "1", "--out", tmp_path / "n"), "--layer does not apply"),
        ((files, "--format", "npz", "--grid", "2x3", "--patch-size", "16", "--out", tmp_path / "n"), "no .npz files"),
        ((filled, "--format", "pt", "--out", tmp_path / "n.pt"), "a file per image is written into a folder"),
        ((tmp_path / "nothing", "--format", "pt", "--out", tmp_path / "n"), "is not a folder"),
    ):
        assert run("convert", *arguments) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "n").exists()
    assert run("convert", filled, "--format", "pt", *out, "--overwrite") == 0


def test_a_store_is_no_folder_of_heads(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(filled)]) == 1
    assert f"see 'dinoneck store verify {filled}'" in capsys.readouterr().err


def test_verify(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", filled) == 0
    assert "images 2, patterns 4" in capsys.readouterr().out
    store = FeatureStore.open(filled)
    (filled / store.shard_of("a")).write_bytes(os.urandom((filled / store.shard_of("a")).stat().st_size))
    assert run("verify", filled, tmp_path / "none") == 1
    printed = capsys.readouterr().err
    assert f"damaged  {filled}" in printed and f"a {store.shard_of('a')}" in printed
    assert f"refused  {tmp_path / 'none'}" in printed


def test_verify_names_the_shard_of_images_that_the_index_has_lost(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [shard] = (f"data/{path.name}" for path in (filled / "data").iterdir())
    next((filled / "index").iterdir()).unlink()
    assert run("verify", filled) == 1
    assert f"deep/b {shard}" in capsys.readouterr().err
