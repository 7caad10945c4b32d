"""``dinoneck extract`` and ``dinoneck verify`` on stores."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.kit import cli
from tests.unit.store.store_samples import make, same, write_images

from dinoneck import FeatureStore, load_backbone
from dinoneck.backbones.known import DINOV3_SMALL

TINY = ("--backbone", "dinoneck_tiny")


def test_the_backbone_that_the_help_names_is_the_default(tmp_path: Path) -> None:
    write_images(tmp_path, ["p/a.png"])
    assert cli("extract", tmp_path / "p", "--out", tmp_path / "s", "--size", "32x48", "--random-backbone").code == 0
    assert FeatureStore.open(tmp_path / "s").backbone_record["name"] == DINOV3_SMALL


def test_extract_and_verify(tmp_path: Path) -> None:
    write_images(tmp_path, ["p/a.png", "p/b.png"])
    out = tmp_path / "s"
    words = ("extract", tmp_path / "p", "--out", out, *TINY, "--size", "32x48", "--views", "flips4",
             "--layers", "0", "-1")  # fmt: skip
    assert "1 image extracted, 0 were there" in cli(*words, "--shard", "1/2").out
    (tmp_path / "p" / "c.png").write_text("no picture")
    refused = cli(*words)
    assert refused.code == 1 and "c.png" in refused.err
    printed = cli(*words, "--skip-unusable").out
    assert "0 images extracted, 2 were there, 1 left out" in printed and "left out:" in printed
    store, expected = (
        FeatureStore.open(out),
        make(tmp_path / "expected", load_backbone("dinoneck_tiny", layers=[0, -1])),
    )
    expected.extract([tmp_path / "p" / "a.png", tmp_path / "p" / "b.png"])
    assert same(store, expected)

    assert "images 2, views 4" in cli("verify", out).out
    shard = out / store.shard_of("b")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    damaged = cli("verify", out)
    assert damaged.code == 1 and f"damaged (b {store.shard_of('b')})" in damaged.err
    (out / "store.json").write_text("{}")
    foreign = cli("verify", out)
    assert foreign.code == 1 and "does not describe a feature store" in foreign.err


def test_options_change_the_store(tmp_path: Path) -> None:
    """A size that the patch does not divide is rounded and reported, as in training."""
    write_images(tmp_path, ["p/b.png", "p/x.png"])
    stores = {}
    for name, more in {
        "plain": [], "resize": ["--resize", "pad"], "interpolation": ["--interpolation", "bicubic"],
        "dtype": ["--dtype", "int8"], "norm": ["--no-norm"], "batch": ["--batch-size", "2"],
    }.items():  # fmt: skip
        printed = cli("extract", tmp_path / "p", *TINY, "--size", "40x60", "--out", tmp_path / name, *more).out
        assert "does not divide 40x60 px" in printed and "48x64 px" in printed
        stores[name] = FeatureStore.open(tmp_path / name).batch(["x"])
    plain, tiny = stores.pop("plain"), load_backbone("dinoneck_tiny")
    expected = tiny(tiny.preprocess(tmp_path / "p" / "x.png", size=(40, 60)))
    assert plain.grid == (3, 4)
    assert torch.allclose(plain.sequence[0].float(), expected.sequence[0], atol=4e-3)
    assert torch.allclose(stores.pop("batch").sequence[0], plain.sequence[0], atol=4e-3)
    for name, own in stores.items():
        assert not torch.equal(own.sequence[0], plain.sequence[0]), name
