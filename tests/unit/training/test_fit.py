"""fit: it learns and repeats, with values, maps, gaps and views; another run does not continue a state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
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
from dinoneck.data import Pasture, Views
from dinoneck.data.table import Table
from dinoneck.losses import Composition, CompositionLoss, TaskLoss, UncertaintyWeighting
from dinoneck.metrics import class_counts, class_iou, confusion_matrix
from dinoneck.training import MemoryTokens, Recipe, TrainConfig, fit, r2
from dinoneck.training.batches import BatchReader, BatchRows
from dinoneck.training.engine import TIMES
from dinoneck.training.masks import read_maps
from dinoneck.training.problem import fitted, read_problem
from dinoneck.training.samples import Samples, Targets

PARTS = Composition(
    ("leaf", "stem"), {"both": ("leaf", "stem")}, "plant", total="y", ratio="shares"
)


def test_it_learns_and_repeats_bit_for_bit() -> None:
    """The target is the share of patches of one kind, on tokens with a large common part."""
    random = np.random.RandomState(0)
    kinds = random.rand(48, 24) < random.rand(48, 1)
    sign, y, ids = (
        np.where(kinds[..., None], 0.5, -0.5),
        kinds.mean(axis=1),
        [str(i) for i in range(48)],
    )
    patches = 5 * random.randn(16) + sign * random.randn(16) + 0.1 * random.randn(48, 24, 16)
    source = MemoryTokens(
        ids, Tokens.from_patches(torch.tensor(patches).float(), grid=(4, 6), patch_size=16)
    )
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        module = PatchMeanHead(
            16, [Task("share", transform=TargetTransform().fit(y[:32]))], hidden_dim=16
        )
        fit(module, source, {"share": y}, target_ids=ids, ids=ids[:32], lr=1e-3, seed=seed)
        heads.append(module)
    assert r2(y[32:], heads[0].predict(source.batch(ids[32:]))["share"][:, 0].numpy()) > 0.95
    assert not heads[0].training
    assert torch.equal(flat(heads[0]), flat(heads[1])) and not torch.equal(
        flat(heads[0]), flat(heads[2])
    )


def test_history_holds_the_losses_also_of_tasks_named_like_other_numbers(tmp_path: Path) -> None:
    module = head(Task("loss"), Task("epoch", weight=0.5))
    split = {"ids": IDS[:4], "val_ids": IDS[4:], "epochs": 5}
    history = run(module, targets={"loss": Y, "epoch": 2 * Y}, out=tmp_path, **split)
    parts = {"loss", "loss/loss", "loss/epoch"}
    validated = {f"val_{name}" for name in parts} | {"val_r2", "val_r2/loss", "val_r2/epoch"}
    assert [set(row) for row in history] == [parts | validated | {*TIMES}] * 5
    assert all(row[name] > 0 for row in history for name in TIMES)
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[0]["loss"] == pytest.approx(
        history[0]["loss/loss"] + history[0]["loss/epoch"], rel=1e-5
    )
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": epoch, **row} for epoch, row in enumerate(history)]


def test_an_ignored_class_may_be_any_number() -> None:
    trained, classes = {}, np.array([0, 1, 2, 0, 1, 2])
    for ignored in (255, 7):
        trained[ignored] = head(Task("c", dim=3, kind="classification", ignore_index=ignored))
        run(
            trained[ignored],
            targets={"c": np.where(classes == 2, ignored, classes).astype(np.uint8)},
        )
    assert torch.equal(flat(trained[255]), flat(trained[7]))
    with pytest.raises(DataError, match="'c'"):
        run(trained[7], targets={"c": classes * 0 + 7})


def test_ids_in_sets_and_numbers_of_numpy_are_taken_and_values_that_are_not_used_may_be_anything() -> (
    None
):
    expected = without_times(
        run(epochs=2, batch_size=3, lr=0.5, seed=3, ids=IDS[:4], val_ids=IDS[4:5])
    )
    numbers = {
        "epochs": np.int64(2),
        "batch_size": np.int32(3),
        "lr": np.float32(0.5),
        "seed": np.int64(3),
    }
    for ids, val_ids in (
        (np.array(IDS[:4]), np.array(IDS[4:5])),
        (set(IDS[:4]), frozenset(IDS[4:5])),
    ):
        unused = np.where(np.arange(6) == 5, -np.inf, Y)
        assert (
            without_times(run(**numbers, ids=ids, val_ids=val_ids, targets={"y": unused}))
            == expected
        )


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
        (dict, lambda: changed(freeze=False), "trained.extra."),
        (dict, lambda: changed(freeze=True), "trained.mlps.0.hidden."),
        (dict, lambda: {"source": MemoryTokens(IDS, tokens(seed=1))}, "run.tokens"),
        (dict, lambda: {"targets": {"y": Y[::-1]}}, "ids and targets"),
        (dict, lambda: {"lr": 2e-3}, "recipe.lr: 0.001 / 0.002"),
        (lambda: weighted((0.2, 0.4, 0.4)), lambda: weighted((0.2, 0.3, 0.5)), "loss"),
        (
            lambda: balanced(UncertaintyWeighting),
            lambda: balanced(OtherWeighting),
            "OtherWeighting",
        ),
    ],
)
def test_a_changed_head_loss_recipe_or_sample_is_another_run(
    tmp_path: Path, first: Any, second: Any, named: str
) -> None:
    run(**first(), out=tmp_path)
    run(**first(), out=tmp_path)
    content = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(CheckpointError) as refused:
        run(**second(), out=tmp_path)
    assert named in str(refused.value) and "--no-resume" in str(refused.value)
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
    with pytest.raises(DataError, match=r"loss is nan in epoch 0.* lr 0\.001"):
        run(
            Unbounded(8, [Task("y")], hidden_dim=4),
            batch_size=6,
            recipe=Recipe(clip_norm=clip_norm),
            out=tmp_path,
        )
    assert not (tmp_path / "state.pt").exists()


ROWS, COLS, WIDTH, IMAGES = 4, 5, 12, 24
fit_maps = partial(fit, epochs=40, batch_size=8, lr=1e-2, recipe=Recipe(ema_decay=None))


def cells(layers: int = 1) -> tuple[MemoryTokens, np.ndarray]:
    """Images whose cells hold a value that their tokens show, next to a large common part; (n, 1, rows, cols)."""
    random = np.random.RandomState(0)
    values = random.rand(IMAGES, ROWS * COLS, 1)
    common, own = 3.0 * random.randn(WIDTH), random.randn(WIDTH)
    shown = common + values * own + 0.02 * random.randn(IMAGES, ROWS * COLS, WIDTH)
    patches = [torch.tensor(shown, dtype=torch.float32)] * layers
    tokens = Tokens.from_patches(patches, grid=(ROWS, COLS), patch_size=16, layers=range(layers))
    return MemoryTokens([str(i) for i in range(IMAGES)], tokens), values.reshape(
        IMAGES, 1, ROWS, COLS
    )


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
    known = {"target_ids": source.ids, "ids": source.ids[:16]}
    fit_maps(head, source, {"ndvi": poisoned}, weights={"ndvi": weight}, **known)
    assert r2(values[16:].ravel(), predicted(head, source)[16:].ravel()) > 0.9
    fit_maps(clean, source, {"ndvi": np.where(weight[:, None] > 0, values, np.nan)}, **known)
    assert np.array_equal(predicted(head, source), predicted(clean, source)), (
        "NaN and weight 0 are the same"
    )


def test_weights_pull_towards_heavy_cells() -> None:
    source, values = cells()
    constant = replace(source.tokens, sequence=(torch.zeros_like(source.tokens.sequence[0]),))
    flat = MemoryTokens(source.ids, constant)
    values[:, :, 0, 0] = 2.0
    weight = np.ones((IMAGES, ROWS, COLS), np.float32)
    weight[:, 0, 0] = 50.0
    head = DenseHead(WIDTH, [Task("ndvi", kind="dense")], 4, depth=0)
    options: dict[str, Any] = {"target_ids": source.ids, "epochs": 200, "lr": 3e-2}
    fit_maps(head, flat, {"ndvi": values}, weights={"ndvi": weight}, **options)
    wanted = (values[:, 0] * weight).sum() / weight.sum()
    assert predicted(head, flat).mean() == pytest.approx(wanted, abs=0.05)
    assert abs(values.mean() - wanted) > 0.5


def test_weights_without_the_name_of_their_task_are_refused() -> None:
    source, values = cells()
    weight: Any = np.ones((IMAGES, ROWS, COLS), np.float32)
    with pytest.raises(DataError, match="ndarray; expected a DataFrame, or name -> {id: value}"):
        fit(dense_head(), source, {"ndvi": values}, weights=weight, target_ids=source.ids)


def test_segmentation_from_pixels_and_from_shares() -> None:
    source, values = cells()
    classes = (values[:, 0] > 0.5).astype(np.int64)
    pixels = classes.repeat(4, axis=1).repeat(4, axis=2)
    pixels[:, :2] = -1
    shares = np.concatenate([1 - values, values], axis=1)
    shares[0, :, 0, 0] = np.nan
    head, soft = (dense_head(Task("class", dim=2, kind="segmentation")) for _ in range(2))
    for own, labels in ((head, pixels), (soft, shares)):
        fit_maps(own, source, {"class": labels}, target_ids=source.ids, ids=source.ids[:16])
    assert (predicted(head, source, "class")[16:].argmax(axis=1) == classes[16:]).mean() > 0.9
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
        options: dict[str, Any] = {
            "ids": source.ids[:16],
            "val_ids": source.ids[16:],
            "epochs": 1,
            "lr": 1e-3,
        }
        row = fit_maps(head, source, targets={"class": targets}, target_ids=source.ids, **options)[
            -1
        ]
        true = (
            pixels[16:]
            if targets is pixels
            else np.where(np.isnan(shares[16:, 0]), 2, classes[16:])
        )
        true = np.where(true == 2, -1, true)
        maps = torch.tensor(predicted(head, source, "class")[16:])
        found = torch.nn.functional.interpolate(maps, true.shape[1:], mode="bilinear").argmax(dim=1)
        matrix = confusion_matrix(true, found, num_classes=2)
        assert row["val_mean_iou/class"] == pytest.approx(
            np.nanmean(class_iou(class_counts(matrix)))
        )


def run_of_masks(classes: tuple[str, ...], **groups: Any) -> TrainConfig:
    return TrainConfig.from_dict({"data": {"labels": "labels", "classes": list(classes)}, **groups})


def test_maps_of_a_table_are_shares_of_its_masks() -> None:
    frame = Pasture(seed=0, size=(32, 64)).table(range(3))
    table = Table.from_frame(frame)
    preprocess = load_backbone("dinoneck_tiny").preprocess
    config = run_of_masks(("soil", "clover", "dead", "green"))
    maps = read_maps(config.data, table, preprocess)
    assert (maps.names, maps.values.shape) == (config.data.classes, (3, 4, 2, 4))
    assert maps.weight.tolist() == torch.full((3, 2, 4), 256.0).tolist()
    first = frame["labels"].iloc[0]
    assert maps.values[0, 3, 1, 2].item() == pytest.approx((first[16:32, 32:48] == 3).mean())
    assert maps.read_pixels(0)[0].tolist() == first.tolist()
    [task] = [
        task
        for task in fitted(read_problem(config, table, preprocess), np.array([0, 1]))
        if task.kind == "dense"
    ]
    assert task.transform is not None
    assert task.transform.mean == pytest.approx(
        maps.values[:2].double().mean(dim=(0, 2, 3)).tolist()
    )
    wrong = replace(table, masks=[np.zeros((16, 64), np.uint8)] * 3)
    with pytest.raises(DataError, match=r"16x64.*32x64"):
        read_maps(config.data, wrong, preprocess)


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


def test_every_sample_meets_every_view_in_training_and_its_own_image_in_validation() -> None:
    source = Flipped()
    torch.manual_seed(0)
    head = PatchMeanHead(4, [Task("x")], hidden_dim=4)
    recipe = Recipe(standardise_tokens=False)
    split = {"target_ids": source.ids, "ids": source.ids[:4], "val_ids": source.ids[4:]}
    fit(
        head,
        source,
        {"x": np.arange(VIEW_IMAGES) * 1.0},
        epochs=30,
        batch_size=4,
        recipe=recipe,
        **split,
    )
    trained = [views for views in source.asked if len(views) == 4]
    for place in range(4):
        assert {views[place] for views in trained} == {0, 1, 2, 3}
    assert all(views == [0, 0] for views in source.asked if len(views) == 2)


def test_classes_of_a_table_are_those_of_the_head() -> None:
    table = pd.DataFrame({"y": pd.Categorical(["no", "yes", "?"] * 2)}, index=IDS)
    with pytest.raises(
        DataError, match=r"has the class '\?', such as that of 's2'; expected one of yes, no"
    ):
        run(
            head(Task("y", dim=2, kind="classification", labels=("yes", "no"))),
            targets=table,
            target_ids=None,
        )


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
