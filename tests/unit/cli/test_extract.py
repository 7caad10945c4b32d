"""``dinoneck extract`` and ``dinoneck verify`` on stores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import FeatureStore, load_backbone
from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli.main import main


def test_the_backbone_that_the_help_names_is_the_default(tmp_path: Path) -> None:
    write_images(tmp_path, ["p/a.png"])
    job = ["extract", str(tmp_path / "p"), "--out", str(tmp_path / "s"), "--size", "32x48", "--random-backbone"]
    assert main(job) == 0
    assert FeatureStore.open(tmp_path / "s").backbone_record["name"] == DINOV3_SMALL


def test_extract_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path, ["p/a.png", "p/b.png"])
    out = tmp_path / "s"
    arguments = ["extract", str(tmp_path / "p"), "--out", str(out), "--backbone", "dinoneck_tiny", "--size", "32x48",
                 "--views", "flips4", "--layers", "0", "-1"]  # fmt: skip
    assert main([*arguments, "--shard", "1/2"]) == 0
    assert "1 image extracted, 0 were there" in capsys.readouterr().out
    (tmp_path / "p" / "c.png").write_text("no picture")
    assert main(arguments) == 1
    assert "c.png" in capsys.readouterr().err
    assert main([*arguments, "--skip-unusable"]) == 0
    printed = capsys.readouterr().out
    assert "0 images extracted, 2 were there, 1 left out" in printed
    assert "left out:" in printed
    store = FeatureStore.open(out)
    expected = make(tmp_path / "expected", load_backbone("dinoneck_tiny", layers=[0, -1]))
    expected.extract([tmp_path / "p" / "a.png", tmp_path / "p" / "b.png"])
    assert same(store, expected)

    assert main(["verify", str(out)]) == 0
    assert "images 2, views 4" in capsys.readouterr().out
    shard = out / store.shard_of("b")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert main(["verify", str(out)]) == 1
    assert f"damaged (b {store.shard_of('b')})" in capsys.readouterr().err
    (out / "store.json").write_text("{}")
    assert main(["verify", str(out)]) == 1
    assert "does not describe a feature store" in capsys.readouterr().err


def test_options_change_the_store(tmp_path: Path) -> None:
    write_images(tmp_path, ["p/b.png", "p/x.png"])
    common = ["extract", str(tmp_path / "p"), "--backbone", "dinoneck_tiny", "--size", "32x48"]
    stores = {}
    for name, more in {
        "plain": [], "resize": ["--resize", "pad"], "interpolation": ["--interpolation", "bicubic"],
        "dtype": ["--dtype", "int8"], "norm": ["--no-norm"], "batch": ["--batch-size", "2"],
    }.items():  # fmt: skip
        assert main([*common, "--out", str(tmp_path / name), *more]) == 0
        stores[name] = FeatureStore.open(tmp_path / name).batch(["x"]).sequence[0]
    for name in ("resize", "interpolation", "dtype", "norm"):
        assert not torch.equal(stores[name], stores["plain"]), name
    assert torch.allclose(stores["batch"], stores["plain"], atol=4e-3)


def test_a_size_that_the_patch_does_not_divide_is_rounded_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in training, whose default is the same; another word is used where it is named."""
    write_images(tmp_path, ["p/a.png"])
    job = ["extract", str(tmp_path / "p"), "--backbone", "dinoneck_tiny", "--size", "40x60"]
    assert main([*job, "--out", str(tmp_path / "s")]) == 0
    assert "48x64" in capsys.readouterr().out
    store, tiny = FeatureStore.open(tmp_path / "s"), load_backbone("dinoneck_tiny")
    expected = tiny(tiny.preprocess(tmp_path / "p" / "a.png", size=(40, 60)))
    stored = store.batch(["a"])
    assert stored.grid == (3, 4)
    assert torch.allclose(stored.sequence[0].float(), expected.sequence[0], atol=4e-3)
    assert main([*job, "--out", str(tmp_path / "crop"), "--resize", "crop"]) == 0
    assert FeatureStore.open(tmp_path / "crop").batch(["a"]).grid == (2, 3)
    assert main([*job[:-1], "8x60", "--out", str(tmp_path / "no"), "--resize", "crop"]) == 1
    assert "8 px" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


