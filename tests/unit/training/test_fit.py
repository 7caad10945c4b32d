"""fit: it learns and repeats, with values, maps, gaps and views; another run does not continue a state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.training.histories import without_times
from tests.unit.training.small_fit import IDS, Y, flat, head, run, tokens
from torch import nn

from dinoneck import (
    CheckpointError,
    ConfigError,
    DataError,
    DenseHead,
    PatchMeanHead,
    TargetTransform,
    Task,
    Tokens,
    load_backbone,
)
from dinoneck.data import Pasture, Preprocessing, Views
from dinoneck.data.table import Table
from dinoneck.losses import Composition, CompositionLoss, TaskLoss, UncertaintyWeighting
from dinoneck.metrics import class_counts, class_iou, confusion_matrix
from dinoneck.training import MemoryTokens, Recipe, TrainConfig, fit, r2
from dinoneck.training.batches import BatchReader, BatchRows
from dinoneck.training.engine import TIMES
from dinoneck.training.masks import Maps, read_maps
from dinoneck.training.problem import fitted, read_problem
from dinoneck.training.samples import Samples, Targets

PARTS = Composition(
    ("leaf", "stem"), {"both": ("leaf", "stem")}, "plant", total="y", ratio="shares"
)


@dataclass
class FittedHeads:
    """Heads that learned the share of patches of one kind from the first 32 of 48 images."""

    shares: np.ndarray
    source: MemoryTokens
    first: PatchMeanHead
    same_seed: PatchMeanHead
    other_seed: PatchMeanHead


@pytest.fixture(scope="module")
def fitted_heads() -> FittedHeads:
    """The kind of a patch shows in its token next to a large common part."""
    random = np.random.RandomState(0)
    is_kind = random.rand(48, 24) < random.rand(48, 1)
    signs = np.where(is_kind[..., None], 0.5, -0.5)
    common = 5 * random.randn(16)
    direction = random.randn(16)
    noise = 0.1 * random.randn(48, 24, 16)
    patches = torch.tensor(common + signs * direction + noise).float()
    ids = [str(i) for i in range(48)]
    source = MemoryTokens(ids, Tokens.from_patches(patches, grid=(4, 6), patch_size=16))
    shares = is_kind.mean(axis=1)
    return FittedHeads(
        shares=shares,
        source=source,
        first=fit_shares(source, shares, seed=0),
        same_seed=fit_shares(source, shares, seed=0),
        other_seed=fit_shares(source, shares, seed=1),
    )


def fit_shares(source: MemoryTokens, shares: np.ndarray, seed: int) -> PatchMeanHead:
    torch.manual_seed(0)
    task = Task("share", transform=TargetTransform().fit(shares[:32]))
    module = PatchMeanHead(16, [task], hidden_dim=16)
    fit(
        module,
        source,
        targets={"share": shares},
        target_ids=source.ids,
        ids=source.ids[:32],
        lr=1e-3,
        seed=seed,
    )
    return module


def test_it_learns_the_share_of_patches_of_one_kind(fitted_heads: FittedHeads) -> None:
    held_out = fitted_heads.source.batch(fitted_heads.source.ids[32:])

    shares = fitted_heads.first.predict(held_out)["share"][:, 0].numpy()

    assert r2(fitted_heads.shares[32:], shares) > 0.95


def test_a_fitted_head_is_ready_to_predict(fitted_heads: FittedHeads) -> None:
    assert not fitted_heads.first.training


def test_it_repeats_bit_for_bit_with_the_same_seed(fitted_heads: FittedHeads) -> None:
    assert torch.equal(flat(fitted_heads.first), flat(fitted_heads.same_seed))


def test_another_seed_gives_other_weights(fitted_heads: FittedHeads) -> None:
    assert not torch.equal(flat(fitted_heads.first), flat(fitted_heads.other_seed))


@dataclass
class LoggedRun:
    history: list[dict[str, float]]
    log: list[dict[str, float]]


@pytest.fixture(scope="module")
def logged_run(tmp_path_factory: pytest.TempPathFactory) -> LoggedRun:
    """Five epochs of two tasks that are named like other numbers of the history."""
    folder = tmp_path_factory.mktemp("run")
    history = run(
        head(Task("loss"), Task("epoch", weight=0.5)),
        targets={"loss": Y, "epoch": 2 * Y},
        ids=IDS[:4],
        val_ids=IDS[4:],
        epochs=5,
        out=folder,
    )
    lines = (folder / "log.jsonl").read_text().splitlines()
    return LoggedRun(history=history, log=[json.loads(line) for line in lines])


def test_history_names_losses_and_scores_of_tasks_named_like_other_numbers(
    logged_run: LoggedRun,
) -> None:
    names = {
        "loss",
        "loss/loss",
        "loss/epoch",
        "val_loss",
        "val_loss/loss",
        "val_loss/epoch",
        "val_r2",
        "val_r2/loss",
        "val_r2/epoch",
        *TIMES,
    }

    assert [set(row) for row in logged_run.history] == [names] * 5


def test_history_holds_times_above_zero(logged_run: LoggedRun) -> None:
    for row in logged_run.history:
        for name in TIMES:
            assert row[name] > 0


def test_the_loss_falls(logged_run: LoggedRun) -> None:
    assert logged_run.history[-1]["loss"] < logged_run.history[0]["loss"]


def test_the_loss_is_the_sum_of_those_of_the_tasks(logged_run: LoggedRun) -> None:
    row = logged_run.history[0]

    assert row["loss"] == pytest.approx(row["loss/loss"] + row["loss/epoch"], rel=1e-5)


def test_the_log_holds_the_history_and_the_numbers_of_its_epochs(logged_run: LoggedRun) -> None:
    expected = [{"epoch": epoch, **row} for epoch, row in enumerate(logged_run.history)]

    assert logged_run.log == expected


CLASSES = np.array([0, 1, 2, 0, 1, 2])


def head_of_classes(ignore_index: int) -> PatchMeanHead:
    return head(Task("c", dim=3, kind="classification", ignore_index=ignore_index))


def test_an_ignored_class_may_be_any_number() -> None:
    trained = {}
    for ignored in (255, 7):
        classes = np.where(CLASSES == 2, ignored, CLASSES).astype(np.uint8)
        trained[ignored] = head_of_classes(ignored)
        run(trained[ignored], targets={"c": classes})

    assert torch.equal(flat(trained[255]), flat(trained[7]))


def test_a_target_of_ignored_classes_alone_is_refused() -> None:
    with pytest.raises(DataError, match="'c'"):
        run(head_of_classes(7), targets={"c": np.full_like(CLASSES, 7)})


@pytest.fixture(scope="module")
def plain_history() -> list[dict[str, float]]:
    """The run that the calls below spell in other types."""
    history = run(epochs=2, batch_size=3, lr=0.5, seed=3, ids=IDS[:4], val_ids=IDS[4:5])
    return without_times(history)


@pytest.mark.parametrize(
    ("ids", "val_ids"),
    [
        pytest.param(np.array(IDS[:4]), np.array(IDS[4:5]), id="arrays"),
        pytest.param(set(IDS[:4]), frozenset(IDS[4:5]), id="sets"),
    ],
)
def test_ids_may_be_arrays_or_sets(
    ids: Any, val_ids: Any, plain_history: list[dict[str, float]]
) -> None:
    history = run(epochs=2, batch_size=3, lr=0.5, seed=3, ids=ids, val_ids=val_ids)

    assert without_times(history) == plain_history


def test_options_may_be_numbers_of_numpy(plain_history: list[dict[str, float]]) -> None:
    history = run(
        epochs=np.int64(2),
        batch_size=np.int32(3),
        lr=np.float32(0.5),
        seed=np.int64(3),
        ids=IDS[:4],
        val_ids=IDS[4:5],
    )

    assert without_times(history) == plain_history


def test_values_that_are_not_used_may_be_anything(plain_history: list[dict[str, float]]) -> None:
    values = Y.copy()
    values[5] = -np.inf

    history = run(
        targets={"y": values},
        epochs=2,
        batch_size=3,
        lr=0.5,
        seed=3,
        ids=IDS[:4],
        val_ids=IDS[4:5],
    )

    assert without_times(history) == plain_history


def changed(freeze: bool) -> dict[str, Any]:
    module = head()
    module.mlps[0].hidden.requires_grad_(not freeze)
    module.extra = None if freeze else nn.Linear(2, 2)
    return {"module": module}


def composed(*terms: Any) -> dict[str, Any]:
    module = head(Task("y"), Task("shares", dim=2, kind="ratio"))
    targets = {"y": Y, "shares": np.stack([Y, 5 - Y], axis=1) / 5}
    return {"module": module, "targets": targets, "loss": TaskLoss(module.tasks, *terms)}


def weighted(weights: tuple[float, ...]) -> dict[str, Any]:
    return composed([CompositionLoss(PARTS, weights)])


def balanced(weighting: type[UncertaintyWeighting]) -> dict[str, Any]:
    return composed((), weighting(["y", "shares"]))


class OtherWeighting(UncertaintyWeighting):
    pass


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        pytest.param(dict, lambda: changed(freeze=False), "trained.extra.", id="a layer more"),
        pytest.param(
            dict, lambda: changed(freeze=True), "trained.mlps.0.hidden.", id="a frozen layer"
        ),
        pytest.param(
            dict,
            lambda: {"source": MemoryTokens(IDS, tokens(seed=1))},
            "run.tokens",
            id="tokens",
        ),
        pytest.param(dict, lambda: {"targets": {"y": Y[::-1]}}, "ids and targets", id="targets"),
        pytest.param(dict, lambda: {"lr": 2e-3}, "recipe.lr: 0.001 / 0.002", id="recipe"),
        pytest.param(
            lambda: weighted((0.2, 0.4, 0.4)),
            lambda: weighted((0.2, 0.3, 0.5)),
            "loss",
            id="weights in the loss",
        ),
        pytest.param(
            lambda: balanced(UncertaintyWeighting),
            lambda: balanced(OtherWeighting),
            "OtherWeighting",
            id="weighting",
        ),
    ],
)
def test_a_changed_head_loss_recipe_or_sample_is_another_run(
    tmp_path: Path, first: Any, second: Any, named: str
) -> None:
    run(**first(), out=tmp_path)
    run(**first(), out=tmp_path)
    content = (tmp_path / "state.pt").read_bytes()

    with pytest.raises(CheckpointError) as raised:
        run(**second(), out=tmp_path)

    assert named in str(raised.value)
    assert "--no-resume" in str(raised.value)
    assert (tmp_path / "state.pt").read_bytes() == content


def test_tokens_of_a_later_image_that_changed_are_another_run(tmp_path: Path) -> None:
    run(out=tmp_path)
    other = tokens()
    other.sequence[0][4] += 1.0

    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        run(source=MemoryTokens(IDS, other), out=tmp_path)


def test_a_source_that_cannot_tell_its_tokens_apart_resumes(tmp_path: Path) -> None:
    class Plain:
        ids = IDS

        def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
            return tokens()[[IDS.index(image_id) for image_id in ids]]

    first = run(source=Plain(), out=tmp_path)

    again = run(source=Plain(), out=tmp_path)

    assert without_times(again) == without_times(first)


@pytest.mark.parametrize(
    ("values", "beginning"),
    [
        pytest.param(
            pd.date_range("2024-05-01", periods=6),
            "the values of 'y' are dates or times",
            id="dates",
        ),
        pytest.param(
            np.ma.masked_equal(np.arange(6.0), 3),
            "the values of 'y' are masked in part",
            id="masked",
        ),
    ],
)
def test_values_that_are_no_numbers_are_named_once(values: Any, beginning: str) -> None:
    with pytest.raises(DataError) as raised:
        run(targets={"y": values})

    assert str(raised.value).startswith(beginning)


def test_targets_of_a_composition_are_refused() -> None:
    settings = composed([PARTS])
    settings["targets"]["plant"] = np.ones((6, 3))

    with pytest.raises(ConfigError, match="'plant'"):
        run(**settings)


class Unbounded(PatchMeanHead):
    """Its loss is finite where its gradient is not, as with the square root of 0."""

    def forward(self, tokens: Any, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        outputs = super().forward(tokens, *arguments, **options)
        return {name: x + (x - x).sqrt() for name, x in outputs.items()}


@pytest.mark.parametrize("clip_norm", [1.0, None])
def test_weights_that_are_not_finite_are_neither_kept_nor_returned(
    clip_norm: float | None, tmp_path: Path
) -> None:
    module = Unbounded(8, [Task("y")], hidden_dim=4)
    recipe = Recipe(clip_norm=clip_norm)

    with pytest.raises(DataError, match=r"loss is nan in epoch 0.* lr 0\.001"):
        run(module, batch_size=6, recipe=recipe, out=tmp_path)

    assert not (tmp_path / "state.pt").exists()


ROWS, COLS, WIDTH, IMAGES = 4, 5, 12, 24
fit_maps = partial(fit, epochs=40, batch_size=8, lr=1e-2, recipe=Recipe(ema_decay=None))


def cells() -> tuple[MemoryTokens, np.ndarray]:
    """Images whose cells hold a value that their tokens show, next to a large common part; (n, 1, rows, cols)."""
    random = np.random.RandomState(0)
    values = random.rand(IMAGES, ROWS * COLS, 1)
    common = 3.0 * random.randn(WIDTH)
    direction = random.randn(WIDTH)
    noise = 0.02 * random.randn(IMAGES, ROWS * COLS, WIDTH)
    patches = torch.tensor(common + values * direction + noise, dtype=torch.float32)
    tokens = Tokens.from_patches([patches], grid=(ROWS, COLS), patch_size=16, layers=[0])
    source = MemoryTokens([str(i) for i in range(IMAGES)], tokens)
    return source, values.reshape(IMAGES, 1, ROWS, COLS)


def dense_head(*tasks: Task) -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(WIDTH, tasks or (Task("ndvi", kind="dense"),), hidden_dim=8, depth=1)


def predicted(head: Any, source: MemoryTokens, name: str = "ndvi") -> np.ndarray:
    return head.predict(source.batch(source.ids))[name].numpy()


@dataclass
class DenseRuns:
    """Maps (n, 1, rows, cols) of heads that were trained on the first 16 images."""

    values: np.ndarray
    without_weight: np.ndarray
    missing: np.ndarray


@pytest.fixture(scope="module")
def dense_runs() -> DenseRuns:
    """The same cells count for nothing: once they have weight 0 and a huge value, once they are NaN."""
    source, values = cells()
    counts = np.random.RandomState(1).rand(IMAGES, ROWS, COLS) > 0.3
    split = {"target_ids": source.ids, "ids": source.ids[:16]}

    poisoned = np.where(counts[:, None], values, 1e9)
    weights = {"ndvi": counts.astype(np.float32)}
    weighted_head = dense_head()
    fit_maps(weighted_head, source, {"ndvi": poisoned}, weights=weights, **split)

    gaps = np.where(counts[:, None], values, np.nan)
    gap_head = dense_head()
    fit_maps(gap_head, source, {"ndvi": gaps}, **split)

    return DenseRuns(
        values=values,
        without_weight=predicted(weighted_head, source),
        missing=predicted(gap_head, source),
    )


def test_a_dense_head_learns_every_cell(dense_runs: DenseRuns) -> None:
    held_out = dense_runs.values[16:].ravel()

    assert r2(held_out, dense_runs.without_weight[16:].ravel()) > 0.9


def test_cells_without_weight_are_the_same_as_missing_cells(dense_runs: DenseRuns) -> None:
    assert np.array_equal(dense_runs.without_weight, dense_runs.missing)


@pytest.mark.slow
def test_weights_pull_towards_heavy_cells() -> None:
    source, values = cells()
    zeros = torch.zeros_like(source.tokens.sequence[0])
    constant = MemoryTokens(source.ids, replace(source.tokens, sequence=(zeros,)))
    values[:, :, 0, 0] = 2.0
    weight = np.ones((IMAGES, ROWS, COLS), np.float32)
    weight[:, 0, 0] = 50.0
    weighted_mean = (values[:, 0] * weight).sum() / weight.sum()
    head = DenseHead(WIDTH, [Task("ndvi", kind="dense")], 4, depth=0)

    fit_maps(
        head,
        constant,
        {"ndvi": values},
        weights={"ndvi": weight},
        target_ids=source.ids,
        epochs=200,
        lr=3e-2,
    )

    assert predicted(head, constant).mean() == pytest.approx(weighted_mean, abs=0.05)
    assert abs(values.mean() - weighted_mean) > 0.5, "the weights make a difference"


def test_weights_without_the_name_of_their_task_are_refused() -> None:
    source, values = cells()
    weight: Any = np.ones((IMAGES, ROWS, COLS), np.float32)

    with pytest.raises(DataError, match="ndarray; expected a DataFrame, or name -> {id: value}"):
        fit(dense_head(), source, {"ndvi": values}, weights=weight, target_ids=source.ids)


def pixels_of(cell_classes: np.ndarray) -> np.ndarray:
    """The class of a cell in each of its 4 x 4 pixels."""
    return cell_classes.repeat(4, axis=1).repeat(4, axis=2)


def test_segmentation_learns_from_pixels() -> None:
    source, values = cells()
    classes = (values[:, 0] > 0.5).astype(np.int64)
    pixels = pixels_of(classes)
    pixels[:, :2] = -1
    head = dense_head(Task("class", dim=2, kind="segmentation"))

    fit_maps(head, source, {"class": pixels}, target_ids=source.ids, ids=source.ids[:16])

    found = predicted(head, source, "class")[16:].argmax(axis=1)
    assert (found == classes[16:]).mean() > 0.9


def test_segmentation_learns_from_shares() -> None:
    source, values = cells()
    shares = np.concatenate([1 - values, values], axis=1)
    shares[0, :, 0, 0] = np.nan
    head = dense_head(Task("class", dim=2, kind="segmentation"))

    fit_maps(head, source, {"class": shares}, target_ids=source.ids, ids=source.ids[:16])

    found = predicted(head, source, "class")[16:, 1]
    assert r2(values[16:].ravel(), found.ravel()) > 0.9


def fit_and_score_masks(targets: np.ndarray) -> tuple[float, torch.Tensor]:
    """The mean IoU of the history, and the maps (n, 2, rows, cols) of the images that it is of."""
    source, _ = cells()
    head = dense_head(Task("class", dim=2, kind="segmentation", ignore_index=2))
    history = fit_maps(
        head,
        source,
        {"class": targets},
        target_ids=source.ids,
        ids=source.ids[:16],
        val_ids=source.ids[16:],
        epochs=1,
        lr=1e-3,
    )
    maps = torch.tensor(predicted(head, source, "class")[16:])
    return history[-1]["val_mean_iou/class"], maps


def mean_iou_of(maps: torch.Tensor, true: np.ndarray) -> float:
    """By a confusion matrix of the maps at the size of the true classes; -1 counts for nothing."""
    resized = torch.nn.functional.interpolate(maps, true.shape[1:], mode="bilinear")
    matrix = confusion_matrix(true, resized.argmax(dim=1), num_classes=2)
    return float(np.nanmean(class_iou(class_counts(matrix))))


def test_validation_scores_masks_of_pixels_by_their_mean_iou() -> None:
    _, values = cells()
    pixels = pixels_of((values[:, 0] > 0.5).astype(np.int64))
    pixels[:, 0, 0] = 2  # one of the pixels of a cell: the class of the cell stays
    pixels[18, 4:8, :4] = 2  # a cell without any pixel that counts
    true = np.where(pixels[16:] == 2, -1, pixels[16:])

    mean_iou, maps = fit_and_score_masks(pixels)

    assert mean_iou == pytest.approx(mean_iou_of(maps, true))


def test_validation_scores_masks_of_shares_by_their_mean_iou() -> None:
    _, values = cells()
    classes = (values[:, 0] > 0.5).astype(np.int64)
    shares = np.stack([classes == 0, classes == 1], axis=1) * 1.0
    shares[18, :, 1, 0] = np.nan
    true = classes[16:].copy()
    true[18 - 16, 1, 0] = -1

    mean_iou, maps = fit_and_score_masks(shares)

    assert mean_iou == pytest.approx(mean_iou_of(maps, true))


def run_of_masks(classes: tuple[str, ...], **groups: Any) -> TrainConfig:
    return TrainConfig.from_dict({"data": {"labels": "labels", "classes": list(classes)}, **groups})


@dataclass
class MaskTable:
    """Three made-up pictures of 32 x 64 pixels with masks of four classes, and a run that reads them."""

    frame: pd.DataFrame
    table: Table
    preprocess: Preprocessing
    config: TrainConfig


@pytest.fixture(scope="module")
def mask_table() -> MaskTable:
    frame = Pasture(seed=0, size=(32, 64)).table(range(3))
    return MaskTable(
        frame=frame,
        table=Table.from_frame(frame),
        preprocess=load_backbone("dinoneck_tiny").preprocess,
        config=run_of_masks(("soil", "clover", "dead", "green")),
    )


@pytest.fixture(scope="module")
def mask_maps(mask_table: MaskTable) -> Maps:
    return read_maps(mask_table.config.data, mask_table.table, mask_table.preprocess)


def test_maps_of_a_table_have_a_channel_per_class(mask_table: MaskTable, mask_maps: Maps) -> None:
    assert mask_maps.names == mask_table.config.data.classes
    assert mask_maps.values.shape == (3, 4, 2, 4)


def test_maps_of_a_table_are_shares_of_its_masks(mask_table: MaskTable, mask_maps: Maps) -> None:
    first = mask_table.frame["labels"].iloc[0]
    green_share = (first[16:32, 32:48] == 3).mean()

    assert mask_maps.values[0, 3, 1, 2].item() == pytest.approx(green_share)


def test_weights_of_maps_of_a_table_are_the_pixels_of_a_cell(mask_maps: Maps) -> None:
    assert mask_maps.weight.tolist() == torch.full((3, 2, 4), 256.0).tolist()


def test_maps_of_a_table_read_its_masks(mask_table: MaskTable, mask_maps: Maps) -> None:
    first = mask_table.frame["labels"].iloc[0]

    assert mask_maps.read_pixels(0)[0].tolist() == first.tolist()


def test_the_transform_of_maps_is_fitted_on_the_rows_of_training(
    mask_table: MaskTable, mask_maps: Maps
) -> None:
    problem = read_problem(mask_table.config, mask_table.table, mask_table.preprocess)

    tasks = fitted(problem, np.array([0, 1]))

    [dense] = [task for task in tasks if task.kind == "dense"]
    means = mask_maps.values[:2].double().mean(dim=(0, 2, 3))
    assert dense.transform is not None
    assert dense.transform.mean == pytest.approx(means.tolist())


def test_masks_of_another_size_than_their_pictures_are_refused(mask_table: MaskTable) -> None:
    small = replace(mask_table.table, masks=[np.zeros((16, 64), np.uint8)] * 3)

    with pytest.raises(DataError, match=r"16x64.*32x64"):
        read_maps(mask_table.config.data, small, mask_table.preprocess)


def test_missing_values_count_for_nothing_in_the_loss() -> None:
    """With all samples in one step, training is that of the known samples alone."""
    recipe = Recipe(ema_decay=None, standardise_tokens=False)
    source = MemoryTokens(IDS, tokens())
    gaps = Y.copy()
    gaps[[2, 4]] = np.nan
    known_ids = [IDS[0], IDS[1], IDS[3], IDS[5]]
    of_gaps = head()
    of_known = head()

    history = run(of_gaps, source, targets={"y": gaps}, batch_size=6, epochs=3, recipe=recipe)
    expected = run(of_known, source, ids=known_ids, batch_size=4, epochs=3, recipe=recipe)

    losses = [row["loss"] for row in history]
    assert losses == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    for weight, expected_weight in zip(of_gaps.parameters(), of_known.parameters(), strict=True):
        torch.testing.assert_close(weight, expected_weight)


VIEW_IMAGES = 6


class Flipped:
    """A store in small: index images, every cell's token holds its place; the views flip them."""

    def __init__(self) -> None:
        self.cells = torch.arange(VIEW_IMAGES * 6).reshape(VIEW_IMAGES, 1, 2, 3) / (VIEW_IMAGES * 6)
        self.ids = tuple(f"p{i}" for i in range(VIEW_IMAGES))
        self.views = Views.named("flips4")
        self.asked: list[list[int]] = []

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        views = [0] * len(ids) if views is None else list(views)
        self.asked.append(views)
        maps = []
        for image_id, view in zip(ids, views, strict=True):
            maps.append(self.cells[self.ids.index(image_id)].flip([[], [-1], [-2], [-1, -2]][view]))
        values = torch.stack(maps).reshape(len(ids), 6, 1)
        tokens = values * torch.tensor([1.0, 0.0, -1.0, 0.5]) + torch.tensor([0.0, 1.0, 0.0, -1.0])
        return Tokens.from_patches(tokens, grid=(2, 3), patch_size=16)


def test_labels_of_a_cell_follow_the_image() -> None:
    source = Flipped()
    pixels = torch.arange(VIEW_IMAGES * 4 * 6).reshape(VIEW_IMAGES, 4, 6)
    values = {
        "map": source.cells,
        "mask": pixels,
        "mean": source.cells.mean(dim=(1, 2, 3))[:, None],
    }
    samples = Samples(
        source.ids, VIEW_IMAGES, Targets(values, cell_weights={"map": source.cells[:, 0]})
    )
    reader = BatchReader(source, samples, maps={"map", "mask"}, device=torch.device("cpu"))
    rows = BatchRows([4, 1, 0, 5], views=[3, 1, 0, 2], num_images=4, mixes=False)

    batch = reader.read(rows, is_training=True)

    wanted = batch.targets.values
    shown = batch.inputs.maps()[-1]
    assert torch.equal(wanted["map"][:, 0], shown[:, 0])
    assert torch.equal(batch.targets.cell_weights["map"], shown[:, 0])
    expected = [pixels[4].flip(-1, -2), pixels[1].flip(-1), pixels[0], pixels[5].flip(-2)]
    assert torch.equal(wanted["mask"], torch.stack(expected))
    assert torch.equal(wanted["mean"], values["mean"][[4, 1, 0, 5]])


@pytest.fixture(scope="module")
def asked_views() -> list[list[int]]:
    """The views of each batch of a run that trains on 4 images and validates on 2."""
    source = Flipped()
    torch.manual_seed(0)
    fit(
        PatchMeanHead(4, [Task("x")], hidden_dim=4),
        source,
        {"x": np.arange(VIEW_IMAGES) * 1.0},
        target_ids=source.ids,
        ids=source.ids[:4],
        val_ids=source.ids[4:],
        epochs=30,
        batch_size=4,
        recipe=Recipe(standardise_tokens=False),
    )
    return source.asked


@pytest.mark.parametrize("place", range(4))
def test_every_place_of_a_batch_meets_every_view_in_training(
    place: int, asked_views: list[list[int]]
) -> None:
    trained = [views for views in asked_views if len(views) == 4]

    assert {views[place] for views in trained} == {0, 1, 2, 3}


def test_every_sample_meets_its_own_image_in_validation(asked_views: list[list[int]]) -> None:
    validated = [views for views in asked_views if len(views) == 2]

    assert validated
    for views in validated:
        assert views == [0, 0]


def test_classes_of_a_table_are_those_of_the_head() -> None:
    table = pd.DataFrame({"y": pd.Categorical(["no", "yes", "?"] * 2)}, index=IDS)
    task = Task("y", dim=2, kind="classification", labels=("yes", "no"))
    message = r"has the class '\?', such as that of 's2'; expected one of yes, no"

    with pytest.raises(DataError, match=message):
        run(head(task), targets=table, target_ids=None)


def test_a_state_with_a_damaged_tensor_is_refused(tmp_path: Path) -> None:
    """Torch does not compare the checksums of tensors, and would load it."""
    module = head()
    run(module, out=tmp_path, epochs=2)
    state = tmp_path / "state.pt"
    content = bytearray(state.read_bytes())
    weight = module.mlps[0].hidden.weight.detach().numpy().tobytes()
    content[content.index(weight)] ^= 1
    state.write_bytes(content)

    with pytest.raises(CheckpointError, match="state.pt is damaged, its part .* checksum"):
        run(out=tmp_path, epochs=2)


def test_the_log_is_cut_back_to_the_state_that_a_run_continues_from(tmp_path: Path) -> None:
    """A kill may leave lines of epochs that the state does not hold, or a part of a line."""
    history = run(out=tmp_path, epochs=2)
    log = tmp_path / "log.jsonl"
    expected = log.read_text()
    log.write_text(expected + '{"epoch": 2, "loss": 0.5}\n{"epoch": 3, "lo')

    again = run(out=tmp_path, epochs=2)

    assert again == history
    assert log.read_text() == expected
