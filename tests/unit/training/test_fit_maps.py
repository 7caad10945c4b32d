"""Training on labels per cell: dense, segmentation, weights, compositions; and the runs built on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.training.histories import mean_iou

from dinoneck import DataError, DenseHead, Task, Tokens, load_backbone
from dinoneck.data import Pasture
from dinoneck.training import MemoryTokens, Recipe, TrainConfig, r2
from dinoneck.training import fit as fit_by_default
from dinoneck.training.scores import confusion_matrix
from dinoneck.training.table import read_maps
from dinoneck.training.tasks import fitted, problem_of

ROWS, COLS, WIDTH, IMAGES = 4, 5, 12, 24
fit = partial(fit_by_default, epochs=40, batch_size=8, lr=1e-3, recipe=Recipe(ema_decay=None))


def cells(layers: int = 1) -> tuple[MemoryTokens, np.ndarray]:
    """Images whose cells hold a value that their tokens show, next to a large common part; (n, 1, rows, cols)."""
    random = np.random.RandomState(0)
    values = random.rand(IMAGES, ROWS * COLS, 1)
    common, own = 3.0 * random.randn(WIDTH), random.randn(WIDTH)
    shown = common + values * own + 0.02 * random.randn(IMAGES, ROWS * COLS, WIDTH)
    patches = [torch.tensor(shown, dtype=torch.float32)] * layers
    tokens = Tokens.from_patches(patches, grid=(ROWS, COLS), patch_size=16, layers=range(layers))
    return MemoryTokens([str(i) for i in range(IMAGES)], tokens), values.reshape(IMAGES, 1, ROWS, COLS)


def dense_head(*tasks: Task) -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(WIDTH, tasks or (Task("ndvi", kind="dense"),), hidden_dim=8, depth=1)


def predicted(head: Any, source: MemoryTokens, name: str = "ndvi") -> np.ndarray:
    return head.predict(source.batch(source.ids))[name].numpy()


def test_a_dense_head_learns_every_cell_and_nothing_from_map_without_weight() -> None:
    source, values = cells()
    weight = (np.random.RandomState(1).rand(IMAGES, ROWS, COLS) > 0.3).astype(np.float32)
    poisoned = np.where(weight[:, None] > 0, values, 1e9)
    head, clean = dense_head(), dense_head()
    fit(head, source, {"ndvi": poisoned}, weights={"ndvi": weight}, target_ids=source.ids, ids=source.ids[:16], lr=1e-2)
    assert r2(values[16:].ravel(), predicted(head, source)[16:].ravel()) > 0.9
    holes = np.where(weight[:, None] > 0, values, np.nan)
    fit(clean, source, targets={"ndvi": holes}, target_ids=source.ids, ids=source.ids[:16], epochs=40, lr=1e-2)
    assert np.array_equal(predicted(head, source), predicted(clean, source)), "NaN and weight 0 are the same"


def test_weights_pull_towards_heavy_cells() -> None:
    source, values = cells()
    constant = replace(source.tokens, sequence=(torch.zeros_like(source.tokens.sequence[0]),))
    flat = MemoryTokens(source.ids, constant)
    values[:, :, 0, 0] = 2.0
    weight = np.ones((IMAGES, ROWS, COLS), np.float32)
    weight[:, 0, 0] = 50.0
    head = DenseHead(WIDTH, [Task("ndvi", kind="dense")], 4, depth=0)
    fit(head, flat, targets={"ndvi": values}, weights={"ndvi": weight}, target_ids=source.ids, epochs=200, lr=3e-2)
    wanted = (values[:, 0] * weight).sum() / weight.sum()
    assert predicted(head, flat).mean() == pytest.approx(wanted, abs=0.05)
    assert abs(values.mean() - wanted) > 0.5


def test_segmentation_from_pixels_and_from_shares() -> None:
    source, values = cells()
    classes = (values[:, 0] > 0.5).astype(np.int64)
    pixels = classes.repeat(4, axis=1).repeat(4, axis=2)
    pixels[:, :2] = -1
    task = Task("class", dim=2, kind="segmentation")
    head = dense_head(task)
    fit(head, source, targets={"class": pixels}, target_ids=source.ids, ids=source.ids[:16], epochs=40, lr=1e-2)
    assert (predicted(head, source, "class")[16:].argmax(axis=1) == classes[16:]).mean() > 0.9
    shares = np.concatenate([1 - values, values], axis=1)
    shares[0, :, 0, 0] = np.nan
    soft = dense_head(task)
    fit(soft, source, targets={"class": shares}, target_ids=source.ids, ids=source.ids[:16], epochs=40, lr=1e-2)
    assert r2(values[16:].ravel(), predicted(soft, source, "class")[16:, 1].ravel()) > 0.9


def test_validation_scores_masks_by_their_mean_iou() -> None:
    """The last row agrees with a confusion matrix of the predictions, of labels of pixels and of shares."""
    source, values = cells()
    classes = (values[:, 0] > 0.5).astype(np.int64)
    pixels = classes.repeat(4, axis=1).repeat(4, axis=2)
    pixels[:, 0, 0] = 2  # one of the pixels of a cell: the class of the cell stays
    pixels[18, 4:8, :4] = 2  # a cell without any pixel that counts
    shares = np.stack([classes == 0, classes == 1], axis=1) * 1.0
    shares[18, :, 1, 0] = np.nan
    task = Task("class", dim=2, kind="segmentation", ignore_index=2)
    for targets in (pixels, shares):
        head = dense_head(task)
        options: dict[str, Any] = {"ids": source.ids[:16], "val_ids": source.ids[16:], "epochs": 1, "lr": 1e-3}
        row = fit(head, source, targets={"class": targets}, target_ids=source.ids, **options)[-1]
        true = pixels[16:] if targets is pixels else np.where(np.isnan(shares[16:, 0]), 2, classes[16:])
        true = np.where(true == 2, -1, true)
        maps = torch.tensor(predicted(head, source, "class")[16:])
        found = torch.nn.functional.interpolate(maps, true.shape[1:], mode="bilinear").argmax(dim=1)
        matrix = confusion_matrix(true, found, num_classes=2)
        assert row["val_mean_iou/class"] == pytest.approx(mean_iou(matrix)[0])


def run_of_masks(classes: tuple[str, ...], **groups: Any) -> TrainConfig:
    return TrainConfig.from_dict({"data": {"labels": "labels", "classes": list(classes)}, **groups})


def test_maps_of_a_table_are_shares_of_its_masks() -> None:
    table = Pasture(seed=0, size=(32, 64)).table(range(3))
    preprocess = load_backbone("dinoneck_tiny").preprocess
    config = run_of_masks(("soil", "clover", "dead", "green"))
    labels, values, weight, pixels = read_maps(config.data, table, preprocess)
    assert (labels, values.shape) == (config.data.classes, (3, 4, 2, 4))
    assert weight.tolist() == torch.full((3, 2, 4), 256.0).tolist()
    first = table["labels"].iloc[0]
    assert values[0, 3, 1, 2].item() == pytest.approx((first[16:32, 32:48] == 3).mean())
    assert pixels(0)[0].tolist() == first.tolist()
    [task] = [task for task in fitted(problem_of(config, table, preprocess), np.array([0, 1])) if task.kind == "dense"]
    assert task.transform is not None
    assert task.transform.mean == pytest.approx(values[:2].double().mean(dim=(0, 2, 3)).tolist())
    wrong = table.assign(labels=pd.Series([np.zeros((16, 64), np.uint8)] * 3, table.index, dtype=object))
    with pytest.raises(DataError, match=r"\(16, 64\).*\(32, 64\)"):
        read_maps(config.data, wrong, preprocess)


def test_a_number_that_is_the_mean_over_its_map_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A share in per cent is not that mean, nor is one that the config predicts from the map already."""
    masks = [(np.arange(32)[:, None] < 4 * i).repeat(32, axis=1).astype(np.uint8) for i in range(8)]
    share = np.array([mask.mean() for mask in masks])
    columns = {"images": [np.zeros((32, 32, 3), np.uint8)] * 8, "labels": masks, "soil": 100 * (1 - share)}
    table = pd.DataFrame({**columns, "crop": share}, index=[f"{i}" for i in range(8)])
    preprocess = load_backbone("dinoneck_tiny").preprocess

    def crop(data: pd.DataFrame = table, **own: Any) -> Task:
        config = run_of_masks(("soil", "crop"), tasks={"crop": own} if own else {})
        problem = problem_of(config, data, preprocess)
        return next(task for task in problem.tasks if task.name == "crop")

    assert crop().from_map is None
    [record] = caplog.records
    assert "'crop'" in record.getMessage()
    some = table.assign(labels=[*masks[:7], None])
    for data, own, weight in ((table, {}, (0.0,)), (some, {}, (1.0,)), (table, {"weight": 0.5}, 0.5)):
        task = crop(data, from_map="cells", **own)
        assert (task.from_map, task.weight) == ("cells", weight)
    assert len(caplog.records) == 1
