"""A feature store trains only the images that it was extracted from: files that were replaced are refused by name."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.unit.store.store_samples import SIZE, make, write_images

from dinoneck import DataError, FeatureStore, PatchMeanHead, StoreError, Task, load_backbone
from dinoneck.data import read_table
from dinoneck.training import DataConfig, TrainConfig, fit
from dinoneck.training.run import Run, prepare

NAMES = [f"{i}.png" for i in range(6)]


@pytest.fixture
def stored(tmp_path: Path) -> FeatureStore:
    """A store of the six images in ``train``, a table of them by their names, and other images of these names."""
    write_images(tmp_path / "train", NAMES)
    write_images(tmp_path / "other", NAMES, seed=7)
    store = make(tmp_path / "store", load_backbone("dinoneck_tiny"), views="none")
    store.extract(tmp_path / "train")
    rows = [f"{name},{i}.5" for i, name in enumerate(NAMES)]
    (tmp_path / "t.csv").write_text("\n".join(["image,mass", *rows]) + "\n")
    return store


def config(folder: Path, images: str | None = None, table: str = "t.csv") -> TrainConfig:
    named = None if images is None else str(folder / images)
    csv, store = str(folder / table), str(folder / "store")
    return TrainConfig(data=DataConfig(csv=csv, images=named, store=store, targets=("mass",)))


def prepared(own: TrainConfig, folder: Path) -> Run:
    """The run before its work."""
    return prepare(own, folder / "run")


def trained(store: FeatureStore, table: pd.DataFrame) -> None:
    fit(PatchMeanHead(64, [Task("mass")], hidden_dim=4), store, targets=table, epochs=1)


def compared(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "compared" in record.getMessage()]


def test_images_of_the_same_names_are_refused(stored: FeatureStore, tmp_path: Path) -> None:
    run = prepared(config(tmp_path, "train"), tmp_path)
    assert list(run.table["images"]) == [tmp_path / "train" / name for name in NAMES]
    with pytest.raises(StoreError, match=r"6 stored images.*other/0.png is not what was read"):
        prepared(config(tmp_path, "other"), tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        prepared(config(tmp_path, "nowhere"), tmp_path)
    (tmp_path / "train" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png"):
        prepared(config(tmp_path, "train"), tmp_path)


def test_a_replaced_image_is_refused_by_name(stored: FeatureStore, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    prepared(config(tmp_path, "copy"), tmp_path)  # the same bytes at another place and time
    shutil.copy(tmp_path / "other" / "2.png", tmp_path / "copy" / "2.png")
    with pytest.raises(StoreError, match=r"1 stored image .*'2'"):
        prepared(config(tmp_path, "copy"), tmp_path)


def test_names_with_more_folders_are_compared(stored: FeatureStore, tmp_path: Path) -> None:
    text = (tmp_path / "t.csv").read_text()
    for folder in ("train", "other"):
        (tmp_path / f"{folder}.csv").write_text(text.replace("\n", f"\n{folder}/", len(NAMES)))
    prepared(config(tmp_path, ".", "train.csv"), tmp_path)
    with pytest.raises(StoreError, match="other/0.png"):
        prepared(config(tmp_path, ".", "other.csv"), tmp_path)
    with pytest.raises(StoreError, match="other/0.png"):  # found next to the table
        prepared(config(tmp_path, table="other.csv"), tmp_path)


def test_without_files_a_line_states_that_nothing_was_compared(
    stored: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared(config(tmp_path), tmp_path)
    [line] = compared(caplog)
    assert "0 of 6 images" in line
    caplog.clear()
    trained(stored, read_table(tmp_path / "t.csv", targets="mass"))
    [line] = compared(caplog)
    assert "0 of 6 images" in line
    caplog.clear()
    with caplog.at_level(logging.INFO):
        prepared(config(tmp_path, "train"), tmp_path)
        trained(stored, read_table(tmp_path / "t.csv", tmp_path / "train", "mass"))
    assert compared(caplog) == []


@pytest.mark.parametrize("entrance", ["fit", "train"])
def test_a_table_with_files_is_compared_in_python(stored: FeatureStore, tmp_path: Path, entrance: str) -> None:
    own = TrainConfig(data=DataConfig(store=str(tmp_path / "store")))
    runs: dict[str, Any] = {
        "fit": lambda table: trained(stored, table),
        "train": lambda table: prepare(own, tmp_path / "run", table=table),
    }
    runs[entrance](read_table(tmp_path / "t.csv", tmp_path / "train", "mass"))
    with pytest.raises(StoreError, match="'0'"):
        runs[entrance](read_table(tmp_path / "t.csv", tmp_path / "other", "mass"))


def test_a_store_of_converted_features_knows_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "train", NAMES)
    maps = torch.randn(len(NAMES), 64, SIZE[0] // 16, SIZE[1] // 16)
    (tmp_path / "pt").mkdir()
    for name, one in zip(NAMES, maps, strict=True):
        torch.save(one.half(), tmp_path / "pt" / name.replace(".png", ".pt"))
    store = FeatureStore.from_pt(tmp_path / "pt", tmp_path / "store", patch_size=16)
    images = [tmp_path / "train" / name for name in NAMES]
    trained(store, pd.DataFrame({"images": images, "mass": [*range(6)]}, index=NAMES))
    assert "0 of 6 images" in caplog.text


def test_quarter_turns_of_images_that_are_not_square_are_refused_before_the_work(
    stored: FeatureStore, tmp_path: Path
) -> None:
    """The first four views of ``d6`` have one grid."""
    store = make(tmp_path / "turned", load_backbone("dinoneck_tiny"), views="d6", image_size=(32, 48))
    store.extract(tmp_path / "train")
    data = DataConfig(csv=str(tmp_path / "t.csv"), store=str(tmp_path / "turned"), targets=("mass",))
    with pytest.raises(DataError, match=r"2x3, 3x2"):
        prepared(TrainConfig(data=data), tmp_path)
    assert list(prepared(TrainConfig(data=data.changed(views=4)), tmp_path).table.index) == NAMES
