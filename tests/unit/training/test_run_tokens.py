"""Sources of tokens: tables, stores, ids in any order, and no pandas."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.process_group import ROOT
from tests.unit.store.store_samples import SIZE, make, write_images
from tests.unit.training.small_fit import flat

from dinoneck import (
    Backbone,
    CheckpointError,
    DataError,
    FeatureStore,
    PatchMeanHead,
    StoreError,
    Task,
    Tokens,
    load_backbone,
)
from dinoneck.data import Views, read_table
from dinoneck.store import MemoryStore
from dinoneck.training import DataConfig, MemoryTokens, TrainConfig, engine, fit
from dinoneck.training.run import Trainer, prepare
from dinoneck.training.run_tokens import StoreSubset

NAMES = [f"{i}.png" for i in range(6)]


class Numbered:
    """A store whose tokens state their id and view."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids, self.views, self.path = tuple(ids), Views.named("flips4"), "store"

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        marks = [
            100 * self.ids.index(name) + i
            for name, i in zip(ids, views or [0] * len(ids), strict=True)
        ]
        return Tokens.from_patches(
            torch.tensor(marks).float().reshape(-1, 1, 1), grid=(1, 1), patch_size=16
        )


def tokens_of(known: Sequence[str], names: Sequence[str], views: int | None = None) -> StoreSubset:
    store: Any = Numbered(known)
    return StoreSubset(store, names, views)


@pytest.mark.parametrize(
    ("known", "names", "own"),
    [
        (["x", "a", "b"], ["b.jpg", "a.JPG"], [2, 1]),
        (["x", "b", "a.v2", "c"], ["b.jpg", "a.v2.jpg"], [1, 2]),
        (["plot", "plot.v1", "plot.v2"], ["plot.v2.jpg", "plot.v1"], [2, 1]),
    ],
)
def test_every_image_gets_its_own_tokens(
    known: list[str], names: list[str], own: list[int]
) -> None:
    source = tokens_of(known, names)
    for ids, places in ((source.ids, own), (source.ids[::-1], own[::-1])):
        marks = source.batch(ids, [2, 1]).patches[0].flatten().tolist()
        assert marks == [100 * places[0] + 2, 100 * places[1] + 1]


def test_the_folder_of_all_names_is_left_out_where_a_store_was_made_below_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ["field/images/b/0.jpg", "field/images/a/0.jpg"]

    source = tokens_of(["a/0.jpg", "b/0.jpg"], names)

    assert source.ids == ["b/0.jpg", "a/0.jpg"]
    assert "names without 'field/images/': 2 of 2 found" in caplog.text


def test_names_of_several_folders_are_not_shortened() -> None:
    with pytest.raises(DataError, match="2 ids without tokens"):
        tokens_of(["0.jpg", "1.jpg"], ["left/0.jpg", "right/1.jpg"])


def test_a_folder_is_left_out_of_all_names_or_of_none() -> None:
    with pytest.raises(DataError, match="1 id without tokens in the source: 'images/1.jpg'"):
        tokens_of(["images/0.jpg", "1.jpg"], ["images/0.jpg", "images/1.jpg"])


def test_only_the_first_views_are_used() -> None:
    every, two = (tokens_of(["a"], ["a.jpg"], count).views for count in (None, 2))
    assert (len(every), len(two)) == (4, 2)
    assert two.views == every.views[:2]


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


def prepared(folder: Path, images: str | None = None, **data: Any) -> Trainer:
    """The run before its work."""
    named = None if images is None else str(folder / images)
    given = {
        "csv": str(folder / "t.csv"),
        "images": named,
        "store": str(folder / "store"),
        "targets": ["mass"],
        **data,
    }
    return prepare(TrainConfig.from_dict({"data": given}), folder / "run")


def trained(store: FeatureStore, table: pd.DataFrame) -> None:
    fit(PatchMeanHead(64, [Task("mass")], hidden_dim=4), store, targets=table, epochs=1)


def test_images_of_the_same_names_are_refused(stored: FeatureStore, tmp_path: Path) -> None:
    assert prepared(tmp_path, "train").table.images == [tmp_path / "train" / name for name in NAMES]
    with pytest.raises(StoreError, match=r"6 stored images.*other/0.png"):
        prepared(tmp_path, "other")
    shutil.copytree(tmp_path / "train", tmp_path / "copy")
    prepared(tmp_path, "copy")  # the same bytes at another place and time
    shutil.copy(tmp_path / "other" / "2.png", tmp_path / "copy" / "2.png")
    with pytest.raises(StoreError, match=r"1 stored image .*'2'"):
        prepared(tmp_path, "copy")
    shutil.copy(tmp_path / "t.csv", tmp_path / "other" / "t.csv")
    with pytest.raises(StoreError, match="other/0.png"):  # found next to the table
        prepared(tmp_path, csv=str(tmp_path / "other" / "t.csv"))


@pytest.mark.parametrize("kept", ["on the disk", "in memory"])
def test_a_store_that_was_made_again_from_other_images_does_not_continue_a_fit(
    stored: FeatureStore, tmp_path: Path, kept: str
) -> None:
    def fitted(folder: str) -> None:
        store = FeatureStore.open(tmp_path / folder)
        source = MemoryStore(store) if kept == "in memory" else store
        head = PatchMeanHead(64, [Task("mass")], hidden_dim=4)
        targets = pd.read_csv(tmp_path / "t.csv", index_col="image")
        targets.index = [Path(name).stem for name in targets.index]
        fit(head, source, targets=targets, epochs=1, out=tmp_path / "fit")

    fitted("store")
    shutil.copy(tmp_path / "train" / "0.png", tmp_path / "other" / "0.png")  # one image is the same
    again = make(tmp_path / "again", load_backbone("dinoneck_tiny"), views="none")
    again.extract(tmp_path / "other")
    equal = make(tmp_path / "equal", load_backbone("dinoneck_tiny"), views="none")
    equal.extract(tmp_path / "train")

    fitted("equal")
    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        fitted("again")


class Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_store_that_was_made_again_from_other_images_does_not_continue_a_run(
    stored: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)

    def stop(epoch: int, row: dict[str, Any]) -> None:
        if epoch == 1:
            raise Stopped

    def trained_until_stopped() -> None:
        with pytest.raises(Stopped):
            prepared(tmp_path, "train").train(callbacks=[stop])

    trained_until_stopped()
    trained_until_stopped()
    shutil.rmtree(tmp_path / "store")
    write_images(tmp_path / "train", NAMES, seed=7)
    again = make(tmp_path / "store", load_backbone("dinoneck_tiny"), views="none")
    again.extract(tmp_path / "train")

    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        prepared(tmp_path, "train").train(callbacks=[stop])


def test_without_files_a_line_states_that_nothing_was_compared(
    stored: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [tmp_path / "train" / name for name in NAMES]
    maps = torch.randn(len(NAMES), 64, SIZE[0] // 16, SIZE[1] // 16)
    (tmp_path / "pt").mkdir()
    for name, one in zip(NAMES, maps, strict=True):
        torch.save(one.half(), tmp_path / "pt" / name.replace(".png", ".pt"))
    converted = FeatureStore.from_pt(tmp_path / "pt", tmp_path / "converted", patch_size=16)
    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: prepared(tmp_path), 1),
        (lambda: trained(stored, read_table(tmp_path / "t.csv", targets="mass")), 1),
        (
            lambda: trained(
                converted, pd.DataFrame({"images": images, "mass": [*range(6)]}, index=NAMES)
            ),
            1,
        ),
        (lambda: prepared(tmp_path, "train"), 0),
        (lambda: trained(stored, read_table(tmp_path / "t.csv", tmp_path / "train", "mass")), 0),
    ]
    with caplog.at_level(logging.INFO):
        for call, expected in calls:
            caplog.clear()
            call()
            assert (
                sum("0 of 6 images" in record.getMessage() for record in caplog.records) == expected
            )


def test_a_table_with_files_is_compared_in_python(stored: FeatureStore, tmp_path: Path) -> None:
    own = TrainConfig(data=DataConfig(store=str(tmp_path / "store")))
    table, other = (
        read_table(tmp_path / "t.csv", tmp_path / name, "mass") for name in ("train", "other")
    )
    prepare(own, tmp_path / "run", table=table)
    with pytest.raises(StoreError, match="'0'"):
        prepare(own, tmp_path / "run", table=other)
    with pytest.raises(StoreError, match="'0'"):
        trained(stored, other)


def test_quarter_turns_of_images_that_are_not_square_are_refused_before_the_work(
    stored: FeatureStore, tmp_path: Path
) -> None:
    """The first four views of ``d6`` have one grid."""
    store = make(
        tmp_path / "turned", load_backbone("dinoneck_tiny"), views="d6", image_size=(32, 48)
    )
    store.extract(tmp_path / "train")
    with pytest.raises(DataError, match=r"2x3, 3x2"):
        prepared(tmp_path, store=str(tmp_path / "turned"))
    assert prepared(tmp_path, store=str(tmp_path / "turned"), views=4).table.ids == NAMES


IDS = tuple(f"meadow-{i}" for i in range(12))  # sorted, meadow-10 comes before meadow-2


Y = np.linspace(0.0, 1.0, 12) ** 2


ORDER = np.random.RandomState(0).permutation(12)


SHUFFLED, VALUES = [IDS[i] for i in ORDER], Y[ORDER]


FRAME = pd.DataFrame({"y": VALUES}, index=SHUFFLED)


FORMS: dict[str, dict[str, Any]] = {
    "frame": {"targets": FRAME},
    "series": {"targets": {"y": FRAME["y"]}},
    "dict of dicts": {"targets": {"y": dict(zip(SHUFFLED, VALUES, strict=True))}},
    "array": {"targets": {"y": VALUES}, "target_ids": SHUFFLED},
    "tensor": {"targets": {"y": torch.tensor(VALUES)[:, None]}, "target_ids": SHUFFLED},
    "numbered rows": {"targets": pd.DataFrame({"y": VALUES}), "target_ids": SHUFFLED},
    "columns of one table": {
        "targets": {"y": pd.Series(VALUES, index=ORDER)},
        "target_ids": pd.Series(SHUFFLED, index=ORDER),
    },
    "suffixes": {"targets": FRAME.set_axis([f"{name}.JPG" for name in SHUFFLED])},
}


def source(order: Any = range(12)) -> MemoryTokens:
    """Images whose tokens carry the value of their own id, in any order."""
    patches = torch.randn(12, 6, 8, generator=torch.Generator().manual_seed(0)) * 0.1
    patches[:, :, 0] += torch.tensor(Y, dtype=torch.float32)[:, None]
    rows = list(order)
    return MemoryTokens(
        [IDS[i] for i in rows], Tokens.from_patches(patches[rows], grid=(2, 3), patch_size=16)
    )


def weights(tokens: MemoryTokens, **given: Any) -> torch.Tensor:
    torch.manual_seed(0)
    head = PatchMeanHead(8, [Task("y")], hidden_dim=4)
    fit(head, tokens, epochs=3, batch_size=4, lr=1e-2, **given)
    return flat(head)


@pytest.mark.parametrize("form", FORMS)
def test_a_shuffled_table_trains_the_same_weights_bit_for_bit(form: str) -> None:
    ordered, given = {"targets": {"y": dict(zip(IDS, Y, strict=True))}}, FORMS[form]
    for chosen in ({}, {"ids": IDS[3:9], "val_ids": IDS[:3]}):
        assert torch.equal(
            weights(source(range(11, -1, -1)), **given, **chosen),
            weights(source(), **ordered, **chosen),
        )


SCRIPT = """
import sys
sys.modules["pandas"] = sys.modules["sklearn"] = None
from dinoneck import Predictor
from tests import kit
from tests.unit.training.small_fit import IDS, Y, run

run(targets={"y": dict(zip(IDS, Y))})
print(len(Predictor(kit.head(), kit.backbone())(list(kit.images(4)))))
for call in ("from dinoneck.data import read_table", "Pasture(size=(32, 32)).table(range(1))"):
    try:
        exec("from dinoneck.data import Pasture\\n" + call)
    except ImportError as error:
        print("dinoneck[train]" in str(error))
"""


@pytest.mark.slow
def test_fit_and_prediction_need_no_pandas() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["4", "True", "True"], done.stderr


def test_the_log_counts_images_and_not_batches(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dinoneck.progress.SECONDS_PER_LINE", 0.0)
    images = [torch.zeros(3, 32, 32)] * 5

    MemoryTokens.extract(tiny, images, list("abcde"), batch_size=2)

    assert "tokens of images: 4 of 5 in" in capsys.readouterr().err
