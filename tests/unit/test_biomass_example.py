"""The biomass example: one command from images to a submission; called again it changes nothing."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import numpy as np
import pytest
from examples.biomass import keys, layouts, pipeline
from PIL import Image

from dinoneck.data.tables import read_cells
from dinoneck.training import TrainConfig

QUICK = ["--backbone", "dinoneck_tiny", "--size", "32x64", "--folds", "2", "--epochs", "4", "--lr", "0.01"]
TRAIN, TEST = 12, 3


def ran(*arguments: object) -> tuple[int, str]:
    """Run the command in this process; return its exit code and what it prints."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = pipeline.main([str(part) for part in arguments])
    return code, shown.getvalue()


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


def every_file(folder: Path) -> dict[str, tuple[int, bytes]]:
    # an opening of the store may write its derived index again
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "index.sqlite")
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def check_masses(file: Path) -> None:
    """No mass of a submission is below 0, and the sums are those of the parts, to the digits that are written."""
    found: dict[str, dict[str, float]] = {}
    for row in rows_of(file):
        image, name = row["sample_id"].split("__")
        found.setdefault(image, {})[name.removeprefix("Dry_").removesuffix("_g")] = float(row["target"])
    assert found
    for mass in found.values():
        assert min(mass.values()) >= 0
        assert mass["GDM"] == pytest.approx(mass["Green"] + mass["Clover"], rel=1e-5, abs=1e-5)
        assert mass["Total"] == pytest.approx(mass["GDM"] + mass["Dead"], rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_the_submission_answers_what_test_csv_asks(tmp_path: Path) -> None:
    code, shown = ran("--out", tmp_path, "--pasture", TRAIN, *QUICK, "--head", "cls_gating")
    assert code == 0, shown
    rows, wanted = rows_of(tmp_path / "submission.csv"), read_cells(tmp_path / "pasture" / "test.csv")
    assert list(rows[0]) == ["sample_id", "target"]
    assert [row["sample_id"] for row in rows] == list(wanted["sample_id"])
    assert {row["sample_id"].split("__")[0] for row in rows} == {f"ID{1000000 + TRAIN + i}" for i in range(TEST)}
    assert len(rows) == TEST * 5
    check_masses(tmp_path / "submission.csv")


def write_cover(folder: Path, groups: int, each: int) -> None:
    """Images whose green share is known."""
    (folder / "images").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ["image,mask,soil,crop,weed,domain,group"]
    for i in range(groups * each):
        image, share = rng.integers(60, 120, (36, 48, 3)).astype(np.uint8), rng.uniform(0.1, 0.9)
        image[:, : int(48 * share), 1] += 100
        Image.fromarray(image).save(folder / f"images/{i:04}.png")
        lines.append(f"images/{i:04}.png,masks/{i:04}.png,{1 - share},{share * 0.8},{share * 0.2},mixed,{i // each}")
    (folder / "cover.csv").write_text("\n".join(lines) + "\n")


def test_images_with_a_cover_table(tmp_path: Path) -> None:
    """Held images are predicted, groups of them are whole, and none was learnt from; called again nothing changes."""
    folder, out = tmp_path / "data", tmp_path / "out"
    write_cover(folder, groups=4, each=3)
    code, shown = ran("--data", folder, "--out", out, *QUICK)
    assert code == 0, shown
    held, learnt = rows_of(out / "tables" / "held.csv"), rows_of(out / "tables" / "train.csv")
    assert held and sorted([*held, *learnt], key=lambda row: row["image"]) == rows_of(folder / "cover.csv")
    assert not {row["group"] for row in held} & {row["group"] for row in learnt}
    rows = rows_of(out / "predictions.csv")
    assert [Path(row["image"]).name for row in rows] == [Path(row["image"]).name for row in held]
    assert min(float(row[name]) for row in rows for name in layouts.COVER_TARGETS) >= 0
    judged = {row["image"] for row in rows_of(out / "run" / "out_of_fold.csv")}
    assert judged == {row["image"] for row in learnt}
    before = every_file(out)
    assert ran("--data", folder, "--out", out, *QUICK)[0] == 0
    assert every_file(out) == before


def test_keys_of_the_notebooks_are_translated() -> None:
    """The file of the second notebook: nested keys, its weights, its tasks."""
    old = {
        "backbone": {"model_name": "vit", "pretrained": False, "freeze": True, "hidden_dim": 1280, "num_patches": 3600},
        "dataset": {"img_size": 960, "resize_method": "INTER_AREA", "feature_dir": "store", "num_aug_patterns": 20,
                    "target_cols": ["Dry_Total_g", "GDM_g"], "aux_target_cols": ["Dry_Dead_g", "Dry_Clover_g"]},
        "loss": {"beta": 2.0, "main_weights": [1.0, 0.6], "state_weight": 0.3, "height_weight": 0, "aux_weight": 0.5},
        "trainer": {"num_epochs": 3, "num_workers": 4, "use_amp": True, "fold": None, "group_col": "site"},
        "augmentation.mixup.alpha": 2.5,
        "inference.tta_indices": [0, 1, 2, 3],
    }  # fmt: skip
    found = TrainConfig.from_dict(keys.translate(old))
    data, optim = found.data, found.optim
    assert (data.size, data.interpolation, data.store, data.views) == ((960, 960), "area", "store", 20)
    assert (optim.epochs, optim.amp, optim.mixup_alpha, found.folds.group) == (3, "bf16", 2.5, ("site",))
    assert {name: (task.weight, task.auxiliary) for name, task in found.tasks.items()} == {
        "Dry_Total_g": (1.0, False), "GDM_g": (0.6, False), "Dry_Dead_g": (0.25, True), "Dry_Clover_g": (0.25, True),
        "State": (0.3, True),
    }  # fmt: skip
