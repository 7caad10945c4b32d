"""A config's table and tasks: the design source's on the CSIRO layout, z-scores elsewhere, gaps masked."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dinoneck import ConfigError, DataError, Task
from dinoneck.data import Pasture, read_csiro
from dinoneck.losses import TaskLoss
from dinoneck.training.config_file import config_of
from dinoneck.training.config_tasks import make_tasks, read_table


@pytest.fixture(scope="module")
def csiro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("csiro")
    Pasture(seed=3, size=(32, 64)).write_csiro(root, train=6, test=1)
    return root / "train.csv"


def table_and_tasks(path: Path, **said: Any) -> tuple[Any, dict[str, Task]]:
    config = config_of({"csv": str(path), **said})
    table = read_table(config)
    return table, {task.name: task for task in make_tasks(config, table, np.arange(len(table)))}


def changed(path: Path, folder: Path, **columns: Any) -> Path:
    """A copy of a table; a column as None is left out, one as text holds it, one as a function is mapped."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if columns.get(name, "") is not None]
    for number, row in enumerate(rows):
        for name, value in columns.items():
            row[name] = value(number // 5, row[name]) if callable(value) else str(value)
    out = folder / "changed.csv"
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return out


def test_the_loss_is_the_design_sources(csiro: Path) -> None:
    table, tasks = table_and_tasks(csiro)
    assert list(table.targets) == ["Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "GDM_g", "Dry_Total_g"]
    assert list(table.auxiliary) == ["State", "Height_Ave_cm"]
    assert {name: task.weight for name, task in tasks.items()} == pytest.approx(
        {"Dry_Clover_g": 0.05, "Dry_Dead_g": 0.05, "Dry_Green_g": 0.3, "GDM_g": 0.6, "Dry_Total_g": 1.0, "State": 0.1,
         "Height_Ave_cm": 0.1}
    )  # fmt: skip
    assert {task.activation for name, task in tasks.items() if name != "State"} == {"softplus"}
    assert tasks["State"].labels == ("Tas", "NSW", "WA", "Vic")
    assert tasks["Height_Ave_cm"].unit == "cm"
    generator = torch.Generator().manual_seed(0)
    out = {name: 5 * torch.rand(6, task.dim, generator=generator) for name, task in tasks.items()}
    true = {name: torch.tensor(values)[:, None].float() for name, values in table.targets.items()}
    true["Height_Ave_cm"] = torch.tensor(table.auxiliary["Height_Ave_cm"])[:, None].float()
    true["State"] = torch.tensor(table.auxiliary["State"])
    total, _ = TaskLoss(tuple(tasks.values()))(out, true)

    def l1(*names: str) -> torch.Tensor:
        return F.smooth_l1_loss(torch.cat([out[n] for n in names], 1), torch.cat([true[n] for n in names], 1))

    plain = l1("Dry_Total_g") + 0.6 * l1("GDM_g") + 0.3 * l1("Dry_Green_g") + 0.1 * l1("Dry_Dead_g", "Dry_Clover_g")
    plain = plain + 0.1 * F.cross_entropy(out["State"], true["State"]) + 0.1 * l1("Height_Ave_cm")
    torch.testing.assert_close(total, plain)


def test_every_weight_and_beta_is_heard(csiro: Path) -> None:
    said = {"targets": ("GDM_g", "Dry_Total_g"), "aux_targets": ("Dry_Dead_g",), "main_weights": (2.0, 3.0)}
    table, tasks = table_and_tasks(csiro, **said, aux_weight=0.7, state_weight=0.4, height_weight=0.0, beta=2.0)
    assert list(table.targets) == ["Dry_Dead_g", "GDM_g", "Dry_Total_g"]
    assert table.weights == {"Dry_Dead_g": 0.1, "GDM_g": 0.2, "Dry_Total_g": 0.5}
    weights = {name: task.weight for name, task in tasks.items()}
    assert weights == {"GDM_g": 2.0, "Dry_Total_g": 3.0, "Dry_Dead_g": 0.7, "State": 0.4}
    assert {tasks[name].beta for name in said["targets"]} == {2.0}


def test_other_heads_have_z_scores_and_help_only_where_asked(csiro: Path) -> None:
    table, tasks = table_and_tasks(csiro, head="patch_mean")
    assert list(tasks) == list(table.targets)
    assert all(task.activation is None and task.default_loss == "mse" and task.weight == 1 for task in tasks.values())
    transform = tasks["GDM_g"].transform
    assert transform is not None
    assert transform.mean == pytest.approx(table.targets["GDM_g"].mean())
    _, tasks = table_and_tasks(csiro, head="patch_mean", state_weight=0.2, height_weight=0.3, beta=0.5)
    assert (tasks["State"].weight, tasks["Height_Ave_cm"].weight) == (0.2, 0.3)
    assert (tasks["GDM_g"].default_loss, tasks["GDM_g"].beta) == ("smooth_l1", 0.5)


def test_missing_help_is_masked_or_left_out(csiro: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gaps = changed(csiro, tmp_path, State=lambda i, v: "" if i == 1 else v, Height_Ave_cm=lambda i, v: "" if i else v)
    table = read_table(config_of({"csv": str(gaps), "photos": str(csiro.parent)}))
    assert table.auxiliary["State"].tolist().count(-1) == 1
    assert np.isnan(table.auxiliary["Height_Ave_cm"]).tolist() == [False] + [True] * 5
    assert len(set(table.groups or ())) == len(
        {group.split(" | ")[1] for group in read_csiro(csiro, csiro.parent).groups or ()}
    )
    assert "State is missing or has gaps; photos are grouped by Sampling_Date alone" in caplog.text
    none = changed(csiro, tmp_path, State=None, Height_Ave_cm=None)
    assert not read_table(config_of({"csv": str(none), "photos": str(csiro.parent)})).auxiliary
    assert "has no column 'State'; training goes without it" in caplog.text
    assert "has no column 'Height_Ave_cm'" in caplog.text


@pytest.mark.parametrize(
    ("columns", "said", "says"),
    [
        ({"State": "Qld"}, {}, "State of .* is 'Qld'; expected one of Tas, NSW, WA, Vic"),
        ({}, {"group_columns": ("site",)}, "no column or target 'site'.*It has the columns .*State"),
        ({}, {"group_columns": ("State", "Sampling_Dat")}, "Did you mean 'Sampling_Date'"),
        ({}, {"targets": ("Dry_Totl_g",)}, "no target 'Dry_Totl_g'. Did you mean 'Dry_Total_g'"),
        ({}, {"main_weights": (1.0, 2.0)}, "main_weights has 2 numbers for 3 targets"),
        ({}, {"minimum": 1.0}, "own minimum"),
    ],
)
def test_what_does_not_fit_the_layout(
    csiro: Path, tmp_path: Path, columns: dict[str, Any], said: dict[str, Any], says: str
) -> None:
    path = changed(csiro, tmp_path, **columns)
    with pytest.raises((ConfigError, DataError), match=says):
        config = config_of({"csv": str(path), "photos": str(csiro.parent), **said})
        make_tasks(config, read_table(config), np.arange(6))


def test_any_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,a,b,place,day\nx.png,1,,p,1\ny.png,2,5,p,2\nz.png,4,7,q,1\n")
    said = {"csv": str(tmp_path / "t.csv"), "store": "some/store", "targets": ("a",), "unit": "m", "minimum": 0.0}
    config = config_of({**said, "aux_targets": ("b",), "group_columns": ("place", "day"), "head": "patch_mean"})
    table = read_table(config)
    assert table.groups == ("p | 1", "p | 2", "q | 1")
    np.testing.assert_array_equal(table.auxiliary["b"], [np.nan, 5, 7])
    tasks = make_tasks(config, table, np.array([1, 2]))
    assert [(task.name, task.weight, task.unit, task.minimum) for task in tasks] == [
        ("a", 1.0, "m", 0.0), ("b", 0.1, "m", None),
    ]  # fmt: skip
    masks = {"label_column": "mask", "classes": ("a", "soil")}
    for own, weight in ({}, 1.0), ({"main_weights": (1.0,)}, (1.0,)):  # a given 1.0 is not the default
        config = config_of({**said, **masks, **own, "aux_targets": ("b",)})
        assert make_tasks(config, table, np.array([1, 2]))[0].weight == weight
    with pytest.raises(DataError, match="no column 'c'. It has: image, a, b"):
        read_table(config_of({**said, "aux_targets": ("c",)}))
    with pytest.raises(DataError, match="images named in"):
        read_table(config_of({**said, "store": None}))
    with pytest.raises(ConfigError, match="which columns"):
        read_table(config_of({**said, "targets": None}))
    with pytest.raises(ConfigError, match="which table"):
        read_table(config_of({}))
