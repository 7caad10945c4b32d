"""Images with different known labels train together, and every score states the images it rests on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.training.meadow import COUNT, a_run, one_image_only, rows_of, write_meadow
from tests.unit.training.small_fit import IDS, Y, head, run, tokens

from dinoneck import DataError, load_head
from dinoneck.data import read_table
from dinoneck.training import MemoryTokens, Recipe, r2, ridge_probe, train, weighted_r2
from dinoneck.training.scores import Split, class_scores, mask_scores, value_scores

CROP, KIND, MASK = range(8), range(3, 11), (0, 4, 5, 6, 7, 8, 9, 10, 11)  # rows in which each is known


@pytest.fixture
def meadow(tmp_path: Path) -> Path:
    """The table with gaps in three columns; each image has a value in one of them at least."""
    return with_gaps(write_meadow(tmp_path), crop=CROP, kind=KIND, mask=MASK)


def with_gaps(path: Path, **known: Any) -> Path:
    rows = rows_of(path)
    for i, row in enumerate(rows):
        row |= {name: row[name] if i in kept else "" for name, kept in known.items()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_empty_cells_are_read_as_missing(meadow: Path) -> None:
    table = read_table(meadow, meadow.parent, ["crop", "kind"], labels="mask")
    assert [i for i in range(COUNT) if not np.isnan(table["crop"].iloc[i])] == [*CROP]
    assert [i for i in range(COUNT) if isinstance(table["kind"].iloc[i], str)] == [*KIND]
    assert [i for i in range(COUNT) if table["labels"].iloc[i] is not None] == [*MASK]
    assert table["labels"].iloc[4] == meadow.parent / "04-mask.png"
    with pytest.raises(DataError, match=r"1 of 9 .*'mask'.*'04-mask.png'"):
        (meadow.parent / "04-mask.png").unlink()
        read_table(meadow, meadow.parent, "crop", labels="mask")


def test_scores_rest_on_the_images_that_are_known(meadow: Path, tmp_path: Path) -> None:
    """They are those of scikit-learn on the file of predictions."""
    metrics = pytest.importorskip("sklearn.metrics")
    out, data = tmp_path / "run", {"csv": str(meadow), "targets": ["crop"], "aux_targets": ["kind"], "labels": "mask"}
    report = train(a_run(None, data=data, head={"type": "fpn", "fpn_dim": 8}, folds={"column": "part"}), out)
    rows, scores = rows_of(out / "out_of_fold.csv"), report["scores"]
    assert (report["images"], report["predicted"]) == (COUNT, COUNT)
    assert {row["image"] for row in rows if row["crop"]} == {f"{i:02}.png" for i in CROP}
    known = [row for row in rows if row["crop"]]
    assert {"head", "linear", "head + linear"} == set(scores["crop"])
    for method, own in scores["crop"].items():
        assert all(row[f"crop ({method})"] for row in rows), "every image is predicted"
        true, pred = ([float(row[name]) for row in known] for name in ("crop", f"crop ({method})"))
        assert own["images"] == 8
        assert own["r2"]["pooled"] == pytest.approx(metrics.r2_score(true, pred), abs=1e-4)
        assert own["mae"]["pooled"] == pytest.approx(metrics.mean_absolute_error(true, pred), rel=1e-4)
    assert scores["kind"]["head"]["images"] == 8
    assert {own["head"]["images"] for name, own in scores.items() if name.startswith("cells ")} == {len(MASK)}


def test_masses_of_some_images_and_maps_of_others(tmp_path: Path) -> None:
    """Two data sets in one table: twelve images with a mass, twelve with a map of numbers."""
    meadow = write_meadow(tmp_path)
    rows = rows_of(meadow)
    lines = [f"{row['image']},{row['crop']}," for row in rows]
    for i, row in enumerate(rows):
        with Image.open(tmp_path / row["image"]) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / f"b{i:02}.png")
            values = np.asarray(image.convert("L"), np.float32) / 255
        Image.fromarray(values).save(tmp_path / f"ndvi{i:02}.tif")
        lines.append(f"b{i:02}.png,,ndvi{i:02}.tif")
    (tmp_path / "both.csv").write_text("\n".join(["image,mass,nd", *lines]) + "\n")
    data = {"csv": str(tmp_path / "both.csv"), "targets": ["mass"], "labels": "nd", "label_kind": "numbers"}
    config = a_run(None, data=data, head={"type": "fpn", "fpn_dim": 8}, folds={"count": 3})
    report = train(config, tmp_path / "run")
    assert (report["images"], report["predicted"]) == (24, 24)
    assert [report["scores"][name]["head"]["images"] for name in ("mass", "nd")] == [12, 12]
    assert report["spread"]["mass"]["all"] == pytest.approx(np.std([float(row["crop"]) for row in rows]))


def test_a_number_without_a_mask_is_trained_on_its_own(meadow: Path) -> None:
    """A target that is the mean over the cells of its name learns from images that have the number alone."""
    rows, share = rows_of(meadow), []
    for row in rows:
        with Image.open(meadow.parent / row["image"].replace(".png", "-mask.png")) as mask:
            share.append((np.asarray(mask) == 1).mean())
    weights = []
    for known in (MASK, range(COUNT)):
        write_meadow(meadow.parent)
        for i, row in enumerate(rows_of(with_gaps(meadow, mask=known))):
            rows[i] = {"image": row["image"], "crop": share[i], "mask": row["mask"]}  # type: ignore[dict-item]
        with meadow.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "crop", "mask"])
            writer.writeheader()
            writer.writerows(rows)
        data = {"csv": str(meadow), "targets": ["crop"], "labels": "mask", "classes": ["soil", "crop", "weed"]}
        own = {"head": {"type": "fpn", "fpn_dim": 8}, "optim": {"epochs": 1}, "folds": {"only": 0}}
        out = meadow.parent / f"run{len(weights)}"
        train(a_run(None, data=data, tasks={"crop": {"from_map": "cells"}}, **own), out)
        [task] = [task for task in load_head(out / "head.safetensors").tasks if task.name == "crop"]
        assert task.from_map == "cells"
        weights.append(task.weight)
    assert weights == [(1.0,), (0.0,)]


@pytest.mark.parametrize(
    ("known", "named"),
    [
        ({"crop": CROP, "mask": range(4, 10)}, ["'10.png'", "'11.png'"]),
        ({"crop": (1, 3, 5, 7, 9, 11), "mask": range(COUNT)}, ["fold 1", "'crop'"]),
        ({"crop": range(COUNT), "mask": (0, 2, 4, 6, 8)}, ["fold 0", "'cells'"]),
        ({"crop": (), "mask": range(COUNT)}, ["'crop'"]),
        ({"crop": range(COUNT), "mask": ()}, ["'mask'"]),
    ],
)
def test_what_cannot_be_learned_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], named: list[str]
) -> None:
    monkeypatch.setattr(MemoryTokens, "extract", one_image_only(MemoryTokens.extract))
    data = {"csv": str(with_gaps(write_meadow(tmp_path), **known)), "targets": ["crop"], "labels": "mask"}
    with pytest.raises(DataError) as refused:  # fold 0 trains on the odd rows
        train(a_run(None, data=data, folds={"column": "part"}), tmp_path / "run")
    assert all(name in str(refused.value) for name in named), refused.value
    assert not (tmp_path / "run").exists()


def test_missing_values_count_for_nothing_in_the_loss() -> None:
    """With all samples in one step, training is that of the known samples alone."""
    recipe = Recipe(ema_decay=None, standardise_tokens=False)
    source, known = MemoryTokens(IDS, tokens()), [0, 1, 3, 5]
    gaps = np.where(np.isin(range(6), known), Y, np.nan)
    whole, part = head(), head()
    one = run(whole, source, targets={"y": gaps}, batch_size=6, epochs=3, recipe=recipe)
    other = run(part, source, ids=[IDS[i] for i in known], batch_size=4, epochs=3, recipe=recipe)
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-5)
    for x, y in zip(whole.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(x, y)


def test_scores_of_targets_with_different_gaps() -> None:
    random = np.random.RandomState(0)
    true, pred = random.randn(40, 2), random.randn(40, 2)
    known = random.rand(40, 2) < 0.6
    gaps, split = np.where(known, true, np.nan), Split([np.arange(20), np.arange(20, 40)], [*range(40)])
    each = [value_scores(gaps[:, i], pred[:, i], split) for i in range(2)]
    for i, scores in enumerate(each):
        own = known[:, i]
        assert scores["images"] == own.sum()
        assert scores["r2"]["pooled"] == pytest.approx(r2(true[own, i], pred[own, i]))
        assert scores["r2"]["folds"][1] == pytest.approx(r2(true[20:][own[20:], i], pred[20:][own[20:], i]))
        assert scores["mae"]["pooled"] == pytest.approx(np.abs(pred - true)[own, i].mean())
        low, high = scores["r2"]["interval"]
        assert low < scores["r2"]["pooled"] < high
    both = value_scores(gaps, pred, split)
    assert both["images"] == known.any(axis=1).sum()
    assert both["r2"]["pooled"] == pytest.approx(np.mean([scores["r2"]["pooled"] for scores in each]))
    weighted = value_scores(gaps, pred, split, weights=[0.3, 0.7])["r2"]["pooled"]
    w = np.where(known, [0.3, 0.7], 0.0)
    mean = (w * true).sum() / w.sum()
    assert weighted == pytest.approx(1 - (w * (true - pred) ** 2).sum() / (w * (true - mean) ** 2).sum())
    complete = value_scores(true, pred, split, weights=[0.3, 0.7])["r2"]["pooled"]
    assert complete == pytest.approx(weighted_r2(true, pred, [0.3, 0.7]))
    nothing = value_scores(np.full(40, np.nan), pred[:, 0], split)
    assert (nothing["images"], nothing["r2"]["pooled"], nothing["mae"]["pooled"]) == (0, None, None)


def test_scores_of_classes_and_masks_count_their_images() -> None:
    split = Split([np.arange(4)], "abcd")
    assert class_scores([0, -1, 1, 1], [0, 1, 1, 0], ("u", "v"), split)["images"] == 3
    matrices = np.zeros((4, 2, 2), int)
    matrices[1:3] = 5
    assert mask_scores(matrices, ("u", "v"), split)["images"] == 2


def test_ridge_learns_each_target_from_the_images_in_which_it_is_known() -> None:
    source = MemoryTokens(IDS, tokens())
    folds = [(np.arange(1, 6), np.array([0])), (np.arange(5), np.array([5]))]
    first, second = np.where(np.arange(6) == 2, np.nan, Y), np.where(np.arange(6) == 3, np.nan, Y[::-1])
    found = ridge_probe(source, {"u": first, "v": second}, folds, target_ids=IDS)
    for column, (values, gap) in enumerate(((Y, 2), (Y[::-1], 3))):
        kept = [(np.setdiff1d(rows, gap), valid) for rows, valid in folds]
        alone = ridge_probe(source, {"x": values}, kept, target_ids=IDS)
        np.testing.assert_allclose(found[:, column], alone[:, 0])
