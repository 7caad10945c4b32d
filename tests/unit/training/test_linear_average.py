"""The average of a head and its linear baseline, compared with that of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.unit.training.meadow import a_run, rows_of, write_meadow

from dinoneck import (
    Backbone,
    ConfigError,
    DataError,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    Task,
    load_head,
    save_head,
)
from dinoneck.training import MemoryTokens, train, with_linear_baseline


@pytest.fixture(scope="module")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meadow(tmp_path_factory.mktemp("meadow"))


@pytest.fixture(scope="module")
def source(meadow: Path, tiny: Backbone) -> MemoryTokens:
    names = [row["image"] for row in rows_of(meadow)]
    return MemoryTokens.extract(tiny, [meadow.parent / name for name in names], names)


@pytest.fixture(scope="module")
def run(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in groups, of a number and a class."""
    folder = tmp_path_factory.mktemp("run")
    train(a_run(meadow, ["crop", "kind"], folds={"group": ["place"]}), folder)
    return folder


def table_of(meadow: Path) -> Any:
    return pd.read_csv(meadow).set_index("image")


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["frame", "mapping"])
def test_the_average_is_that_of_the_run(
    targets: str, run: Path, meadow: Path, source: MemoryTokens
) -> None:
    rows = rows_of(run / "out_of_fold.csv")
    head: Any = load_head(run / "heads" / "fold-0.safetensors")
    held_out = [row for row in rows if row["fold"] == "0"]
    ids = [row["image"] for row in rows if row["fold"] != "0"]
    table = table_of(meadow)
    values = (
        table if targets == "frame" else {name: table[name].to_dict() for name in ("crop", "kind")}
    )
    average = with_linear_baseline(head, source, values, ids=ids, groups=table["place"])
    tokens = source.batch([row["image"] for row in held_out])
    predicted = average.predict(tokens)["crop"][:, 0]
    expected = torch.tensor([float(row["crop (average)"]) for row in held_out])
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-3)
    labels = [head.tasks[1].labels[place] for place in average.predict(tokens)["kind"].argmax(1)]
    assert labels == [row["kind (average)"] for row in held_out]


def test_it_is_saved_and_predicts_as_any_head(
    run: Path, meadow: Path, source: MemoryTokens, tiny: Backbone, tmp_path: Path
) -> None:
    head: Any = load_head(run / "heads" / "fold-0.safetensors")
    average = with_linear_baseline(head, source, table_of(meadow))
    assert isinstance(average, HeadEnsemble)
    save_head(tmp_path / "h.safetensors", average, backbone=tiny)
    image = meadow.parent / "00.png"
    members = [Predictor(member, tiny).one(image)["crop"] for member in average.heads]
    both = Predictor(tmp_path / "h.safetensors").one(image)["crop"]
    assert both == pytest.approx(sum(members) / 2, rel=1e-4)


def test_groups_are_needed_for_every_training_image(
    run: Path, meadow: Path, source: MemoryTokens
) -> None:
    head: Any = load_head(run / "heads" / "fold-0.safetensors")
    groups = table_of(meadow)["place"].iloc[1:]
    with pytest.raises(DataError, match=r"1 id without a group: '00.png'"):
        with_linear_baseline(head, source, table_of(meadow), groups=groups)


def test_objects_and_other_modules_are_refused(meadow: Path, source: MemoryTokens) -> None:
    of_objects: Any = PatchMeanHead(64, Task("plant"))
    of_objects.tasks = (Task("plant", kind="instances"),)
    with pytest.raises(ConfigError, match="plant are objects, which have no linear baseline"):
        with_linear_baseline(of_objects, source, {})
    module: Any = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="head is a Linear; expected the head that fit trained"):
        with_linear_baseline(module, source, {})
