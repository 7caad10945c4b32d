"""Features of other programs train by command: the backbone is named by a flag and compared with the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests import kit
from tests.unit.store.store_samples import make, write_images

from dinoneck import ConfigError, FeatureStore, HeadCheckpoint, Predictor
from dinoneck.training.config import BackboneConfig
from dinoneck.training.stated import stated_record

NAMES = [f"{i}.png" for i in range(6)]
TRAIN = ["--csv", "t.csv", "--targets", "mass", "--image-column", "image", "--head", "patch_mean"]
SHORT = ["--epochs", "2", "--folds", "2"]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """An extracted store, the same tokens in stores made of .pt and .npz files, and a table."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", NAMES)
    store = make(tmp_path / "store", kit.backbone(), views="none")
    store.extract(tmp_path / "images")
    (tmp_path / "pt").mkdir()
    (tmp_path / "npz").mkdir()
    for image_id in store.ids:
        tokens = store[image_id]
        torch.save(tokens.maps()[0][0].half().clone(), tmp_path / "pt" / f"{image_id}.pt")
        arrays = {
            "patches_0": tokens.patches[0][0].numpy(),
            "cls_0": tokens.cls_token[0][0].numpy(),
        }
        np.savez(tmp_path / "npz" / f"{image_id}.npz", **arrays)
    grid = store[store.ids[0]].grid
    FeatureStore.from_pt(tmp_path / "pt", tmp_path / "of_pt", patch_size=16)
    FeatureStore.from_npz(tmp_path / "npz", tmp_path / "of_npz", grid=grid, patch_size=16)
    rows = [f"{name},{i}.5" for i, name in enumerate(NAMES)]
    (tmp_path / "t.csv").write_text("\n".join(["image,mass", *rows]) + "\n")
    return store


def train(store: str, *words: str) -> kit.Ran:
    return kit.cli("train", *TRAIN, *SHORT, "--store", store, "--out", f"run-{store}", *words)


@pytest.mark.parametrize("made", ["of_pt", "of_npz"])
def test_a_head_of_imported_features_is_that_of_extracted_ones(
    made: str, stored: FeatureStore, tmp_path: Path
) -> None:
    assert train("store").code == 0
    assert train(made, "--backbone", "dinoneck_tiny").code == 0
    expected = HeadCheckpoint.load(tmp_path / "run-store" / "heads" / "fold-0.safetensors")
    found = HeadCheckpoint.load(tmp_path / f"run-{made}" / "heads" / "fold-0.safetensors")
    for name, weight in expected.state_dict.items():
        torch.testing.assert_close(found.state_dict[name], weight, rtol=1e-4, atol=1e-5)
    record = found.meta["backbone"]
    assert record["weights"] == {"kind": "stated"}
    assert (record["name"], record["layers"], record["depth"]) == ("dinoneck_tiny", [5], 6)


def test_such_a_head_says_so_and_predicts_images(
    stored: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = "x".join(map(str, stored.preprocess.size))
    assert train("of_pt", "--backbone", "dinoneck_tiny", "--size", size).code == 0
    file = tmp_path / "run-of_pt" / "heads" / "fold-0.safetensors"
    shown = kit.cli("inspect", str(file)).out
    assert "as stated by the user" in shown
    with caplog.at_level("WARNING"):
        [found] = Predictor(file)([tmp_path / "images" / NAMES[0]])
    assert "as stated by the user" in caplog.text
    assert train("store").code == 0
    file = tmp_path / "run-store" / "heads" / "fold-0.safetensors"
    [expected] = Predictor(file)([tmp_path / "images" / NAMES[0]])
    assert float(found["mass"]) == pytest.approx(float(expected["mass"]), abs=1e-5)


def test_without_a_name_the_flag_is_asked_for(stored: FeatureStore) -> None:
    result = train("of_pt")
    assert result.code == 1
    assert "name it: --backbone NAME" in result.err


def test_a_size_of_another_grid_is_refused(stored: FeatureStore) -> None:
    result = train("of_pt", "--backbone", "dinoneck_tiny", "--size", "160x160")
    assert result.code == 1
    assert "have a grid of 10x10, and the features" in result.err


STORED = {"embed_dim": 384, "patch_size": [16, 16]}
REFUSED: dict[str, tuple[BackboneConfig, str]] = {
    "another width": (BackboneConfig(name="dinov3_vitb16"), "have 384 channels.*gives 768"),
    "another patch": (BackboneConfig(name="dinov2_vits14"), r"patch_size \(16, 16\).*has 14"),
    "two layers": (BackboneConfig(name="dinov3_vits16", layers=(8, 11)), "of one layer"),
    "a block too many": (BackboneConfig(name="dinov3_vits16", layers=(12,)), "blocks 0 ... 11"),
    "an unknown name": (BackboneConfig(name="my_vit"), "my_vit is not a published model"),
    "no name": (BackboneConfig(), "name no backbone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_that_did_not_make_the_features_is_refused(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        stated_record(config, STORED, "store")


def test_the_record_is_that_of_the_published_model() -> None:
    record = stated_record(BackboneConfig(name="dinov3_vits16", layers=(8,)), STORED, "store")
    assert record["name"].startswith("vit_small_patch16_dinov3")
    assert (record["layers"], record["num_registers"], record["depth"]) == ([8], 4, 12)
    assert record["license"] == "dinov3-license"


SATELLITE = {"embed_dim": 1024, "patch_size": [16, 16]}


def test_satellite_weights_have_their_own_mean() -> None:
    name = "facebook/dinov3-vitl16-pretrain-sat493m"
    record = stated_record(BackboneConfig(name=name), SATELLITE, "store")
    assert record["mean"] == [0.430, 0.411, 0.296]


def test_tipsv2_takes_images_without_normalisation() -> None:
    stored = {"embed_dim": 768, "patch_size": [14, 14]}
    record = stated_record(BackboneConfig(name="tipsv2_b14"), stored, "store")
    assert (record["mean"], record["std"]) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert (record["family"], record["license"]) == ("tipsv2", "apache-2.0")
