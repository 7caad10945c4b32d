"""What fit and its parts refuse.

Heads, ids, targets, recipes, sources, parameter groups and scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from dinoneck import (
    ConfigError,
    DataError,
    DenseHead,
    PatchMeanHead,
    ShapeError,
    TargetTransform,
    Task,
    load_backbone,
)
from dinoneck.losses import TaskLoss
from dinoneck.metrics import confusion_matrix
from dinoneck.training import (
    EMA,
    SAM,
    FreezeSchedule,
    LiveTokens,
    MemoryTokens,
    Recipe,
    cosine_with_warmup,
    cutmix,
    fit,
    manifold_mixup,
    param_groups,
    r2,
    ridge_probe,
    weighted_r2,
)
from dinoneck.training.scores import Split, score_classes, score_pixels, score_values
from tests.refusals import Row
from tests.unit.training.small_fit import IDS, Y, head, run, tokens

KIND, RATIO = Task("y", dim=3, kind="classification"), Task("y", dim=3, kind="ratio")
MAP, MASK = Task("y", kind="dense"), Task("y", dim=2, kind="segmentation")
CLASSES, CELLS = np.array([0, 1, 2, 0, 1, 2]), np.linspace(0, 1, 36).reshape(6, 1, 2, 3)
BY_ID, ODD = dict(zip(IDS, Y, strict=True)), {"s0": 1.0, "s1": 2.0}
IMAGES, TINY = torch.rand(2, 3, 32, 48), load_backbone("dinoneck_tiny")
ONE, FOLDS = Split([range(6)], range(6)), [(np.arange(2, 6), np.arange(2))]
DAYS = np.arange("2024-05-01", "2024-05-07", dtype="datetime64[D]")
LINEAR = nn.Linear(2, 1)
SGD = torch.optim.SGD(LINEAR.parameters())


def y(values: Any, *tasks: Task, **changes: Any) -> Any:
    return run(head(*tasks), targets={"y": values}, **changes)


def at(row: int, value: float) -> np.ndarray:
    return np.where(np.arange(6) == row, value, Y)


def cells(values: Any, task: Task = MAP, **changes: Any) -> Any:
    return run(DenseHead(8, [task], hidden_dim=4, depth=0), targets={"y": values}, **changes)


def ids_of(*names: str) -> MemoryTokens:
    return MemoryTokens(names, tokens(images=len(names)))


def live(task: Task, values: Any, transform: Any) -> Any:
    source = LiveTokens(TINY, IMAGES, transform=transform)
    made = (
        DenseHead(64, [task], hidden_dim=4, depth=0) if task.is_map else PatchMeanHead(64, [task])
    )
    return fit(made, source, {"y": values}, target_ids=["0", "1"], epochs=1)


def model(backbone: Any) -> nn.Module:
    return nn.ModuleDict({"backbone": backbone})


def unfrozen() -> nn.Module:
    return model(load_backbone("dinoneck_tiny").unfreeze())


def mixed_up(targets: dict[str, Any]) -> Any:
    return manifold_mixup(tokens(), targets, 1.0)


def unknown_validation() -> Any:
    """Wait for the loss of a validation sample whose value is missing."""
    return y(at(5, np.nan), ids=IDS[:5], val_ids=IDS[5:], recipe=Recipe(patience=2))


def without_gradients() -> Any:
    with torch.inference_mode():
        return run()


WRONG: list[dict[str, Any]] = [
    {"lr": "1e-4"},
    {"lr": float("inf")},
    {"epochs": 1.5},
    {"batch_size": 0},
    {"seed": 1.5},
    {"seed": -1},
    {"rho": 0.0},
    {"optimizer": "adam"},
    {"weight_decay": -1},
    {"warmup": 1.0},
    {"ema_decay": 1.0},
    {"clip_norm": 0},
    {"mixup_alpha": 0.0},
    {"standardise_tokens": 1},
    {"amp": "fp16", "optimizer": "sam"},
    {"epoch": 3},
]
PLANS: list[tuple[Any, Any]] = [
    ({}, ("{}", "1 or more")),
    ({0: "al"}, ("'al'", "'last:4'")),
    ({0: 4}, ("4", "text")),
    ({-1: "all"}, ("-1", "0 or more")),
    ({30: "last:7"}, ("'last:7'", "'last:6'")),
]

ROWS: list[Row] = [
    *((lambda own=own: run(**own), ConfigError, [*own][-1]) for own in WRONG),
    (lambda: run(nn.Linear(2, 2)), ConfigError, "Linear"),
    (lambda: run(PatchMeanHead(16, [Task("y")])), ShapeError, "16"),
    (lambda: run(head().requires_grad_(False)), ConfigError, ("PatchMeanHead", "requires_grad_")),
    (lambda: run(source=[1]), DataError, ("source is list", "MemoryTokens")),
    (lambda: run(source=tokens()), DataError, "source is Tokens"),
    (lambda: run(loss=3), ConfigError, ("loss is int", "TaskLoss")),
    (lambda: run(recipe={"epochs": 2}), ConfigError, ("recipe is dict", "Recipe")),
    (lambda: run(callbacks=print), ConfigError, "callbacks"),
    (without_gradients, ConfigError, "no_grad"),
    (lambda: run(recipe=Recipe(patience=2)), DataError, ("patience", "val_ids=")),
    (lambda: unknown_validation(), DataError, ("patience", "target value")),
    (lambda: run(loss=TaskLoss([Task("z")])), ConfigError, ("z", "y")),
    (
        lambda: run(recipe=Recipe(cutmix_alpha=1.0)),
        ConfigError,
        ("cutmix_alpha", "1.0", "MemoryTokens"),
    ),
    # ids
    (lambda: run(ids=[]), DataError, "ids= is empty"),
    (lambda: run(val_ids=IDS), DataError, "validation ids"),
    (lambda: y({}), DataError, "no training ids"),
    (lambda: y(None), DataError, ("'y'", "NoneType")),
    (lambda: y(Y * np.nan), DataError, ("'y'", "6 training ids")),
    (lambda: run(ids=["s1", "s2"], val_ids=["s1"]), DataError, "'s1'"),
    (lambda: run(val_ids=["z"]), DataError, "'z'"),
    (lambda: run(ids=[*IDS, "z"]), DataError, "'z'"),
    (lambda: run(targets={}), DataError, "'y'"),
    (lambda: run(targets={"x": BY_ID}), DataError, ("'y'", "x")),
    (lambda: run(targets=Y), DataError, "ndarray"),
    (lambda: run(target_ids=None), DataError, ("'y'", "target_ids")),
    (lambda: run(target_ids=IDS[:5]), DataError, ("'y'", "6", "5 ids")),
    (lambda: run(target_ids=[*IDS[:5], "s0"]), DataError, "'s0'"),
    (lambda: y({**BY_ID, "a": 1.0}), DataError, "'a'"),
    (lambda: y(ODD, ids=IDS), DataError, ("4 ids", "'y'", "'s2'", "'s0', 's1'", "NaN")),
    (
        lambda: y({"a": 1.0}, source=ids_of("a.jpg", "a.png")),
        DataError,
        ("'a'", "'a.jpg'", "'a.png'"),
    ),
    # values
    (lambda: y({"s0": [1.0], "s1": [1.0, 2.0]}), DataError, "'y'"),
    (lambda: y(["a"] * 6), DataError, ("'y'", "'a'")),
    (lambda: y(np.arange(6).astype("datetime64[D]")), DataError, ("'y'", "1970-01-01")),
    (lambda: y(np.arange(6).astype("datetime64[ns]")), DataError, ("'y'", "1970-01-01")),
    (lambda: y(np.arange(6).astype("timedelta64[ns]")), DataError, ("'y'", "0 nanoseconds")),
    (lambda: y(pd.date_range("2024-05-01", periods=6)), DataError, ("'y'", "2024-05-01")),
    (
        lambda: y(pd.Series(pd.to_timedelta(range(6), "D"), IDS)),
        DataError,
        ("'y'", "0 days", "since the first one"),
    ),
    (
        lambda: y(DAYS, KIND),
        DataError,
        ("'y'", "2024-05-01"),
    ),
    (lambda: ridge_probe(ids_of(*IDS), {"y": DAYS}, FOLDS, target_ids=IDS), DataError, "dates"),
    (lambda: r2(DAYS, DAYS), DataError, ("dates", "2024-05-01")),
    (
        lambda: y(Y > 3, Task("y", dim=2, kind="classification", labels=("yes", "no"))),
        DataError,
        ("'y' hold False", "yes, no", "one of these words"),
    ),
    (lambda: run(target_ids=(i for i in IDS)), DataError, ("generator", "a list")),
    (lambda: run(target_ids={*IDS}), DataError, ("set", "a list")),
    (
        lambda: run(targets={"y": pd.Series(Y)}, target_ids=pd.Series(IDS, index=range(1, 7))),
        DataError,
        ("'y'", "rows 0, 1, 2", "1, 2, 3", "one table"),
    ),
    (lambda: y(np.ma.masked_array(Y, Y > 3)), DataError, "masked"),
    (lambda: y(Y * 1e200), DataError, ("'y'", "1e+200", "'s1'", "transform")),
    (lambda: y(at(2, np.inf)), DataError, ("'y'", "infinite", "'s2'", "NaN")),
    (lambda: y(Y * 0 + 2.5), DataError, ("'y'", "2.5", "leave 'y' out")),
    (
        lambda: y(at(4, -3), Task("y", minimum=0)),
        DataError,
        ("1 image", "'s4' with -3", "--minimum"),
    ),
    (
        lambda: y(at(4, 30), Task("y", maximum=6)),
        DataError,
        ("1 image", "'s4' with 30", "--maximum"),
    ),
    (lambda: y(Y - 2.5, Task("y", minimum=0)), DataError, ("3 images", "'y'", "'s0' with -2.5")),
    (
        lambda: y(at(0, -2), Task("y", transform=TargetTransform(log1p=True))),
        DataError,
        ("'y'", "log1p", "-2"),
    ),
    (
        lambda: y(Y, Task("y", activation="relu", transform=TargetTransform().fit(Y))),
        DataError,
        ("'relu'", "-1.4", "minimum="),
    ),
    (
        lambda: y(Y, Task("y", activation="sigmoid")),
        DataError,
        ("'sigmoid'", "5 in normalised units", "std"),
    ),
    (lambda: run(lr=1e30, epochs=3), DataError, "1e+30"),
    (lambda: y(CLASSES + 1, KIND), DataError, "3"),
    (lambda: y(CLASSES * 0.5, KIND), DataError, "float64"),
    (lambda: y(np.eye(3, dtype=int)[CLASSES], KIND), DataError, ("'y'", "(3,)", "class index")),
    (lambda: y(np.eye(3)[CLASSES] * 100, RATIO), DataError, ("6 images", "100", "'s0'", "by 100")),
    (lambda: y(np.eye(3)[CLASSES] * 0.6, RATIO), DataError, ("6 images", "0.6", "their sum")),
    (lambda: y(np.stack([Y, Y], axis=1)), DataError, ("'y'", "(2,)", "(1,)")),
    # maps
    (lambda: run(weights={"y": CELLS[:, 0]}), DataError, ("'y'", "dense")),
    (lambda: cells(CELLS.repeat(2, axis=1)), DataError, ("(2, 2, 3)", "(1, rows, cols)")),
    (lambda: y(CELLS[:, 0].astype(int), KIND), DataError, ("(2, 3)", "class index")),
    (lambda: cells(CLASSES, MASK), DataError, ("'y'", "(height, width)")),
    (lambda: cells(CELLS, weights={"y": np.ones((6, 3, 3))}), DataError, ("(3, 3)", "(2, 3)")),
    (lambda: cells(CELLS, weights={"y": -CELLS[:, 0]}), DataError, ("weights of 'y'", "hold -0.0")),
    (lambda: live(MAP, CELLS[:2], lambda image: image), ConfigError, ("(y)", "transform=")),
    (lambda: live(Task("y"), [0.0, 1.0], lambda image: 3), DataError, "transform= returned int"),
    (lambda: live(Task("y"), [0.0, 1.0], lambda image: "a.png"), DataError, "returned str"),
    # sources
    *(
        (lambda make=make: make(TINY, IMAGES, ["a", "a"]), DataError, "'a'")
        for make in (LiveTokens, MemoryTokens.extract)
    ),
    *(
        (lambda make=make: make("dinoneck_tiny", IMAGES, ["a", "b"]), ConfigError, "dinoneck_tiny")
        for make in (LiveTokens, MemoryTokens.extract)
    ),
    (lambda: LiveTokens(TINY, IMAGES).batch(["z"]), DataError, "'z'"),
    (lambda: LiveTokens(TINY, IMAGES).batch(["0"], [1]), DataError, "view 0"),
    (
        lambda: MemoryTokens.extract(TINY, [IMAGES[0], IMAGES[0].mT], ["a", "b"]),
        DataError,
        ("'b'", "48x32"),
    ),
    (lambda: ids_of("a", "a"), DataError, "the id 'a'"),
    (lambda: MemoryTokens(["a"], tokens()), DataError, ("1 id", "6 images")),
    (lambda: LiveTokens(TINY, []), DataError, "no images"),
    (
        lambda: MemoryTokens.extract(TINY, IMAGES, ["a", "b"], batch_size=0),
        ConfigError,
        "batch_size",
    ),
    (lambda: ids_of("a", "b").batch(["a", "x"]), DataError, ("'x'", "'a', 'b'")),
    (lambda: ids_of("a", "b").batch(["a"], [3]), DataError, ("view 0", "view 3")),
    # parts for own loops
    (lambda: EMA(LINEAR, decay=1.0), ConfigError, "decay is 1.0"),
    (lambda: EMA(LINEAR).copy_to(nn.Linear(2, 5)), ConfigError, ("'weight'", "(5, 2)", "(1, 2)")),
    (lambda: EMA(LINEAR).copy_to(nn.Linear(2, 1, bias=False)), ConfigError, "no 'bias'"),
    (
        lambda: EMA(LINEAR).load_state_dict(EMA(nn.Linear(3, 1)).state_dict()),
        ConfigError,
        ("the state", "(1, 3)", "(1, 2)"),
    ),
    (lambda: EMA(LINEAR).load_state_dict(LINEAR.state_dict()), ConfigError, "weight, bias"),
    (lambda: SAM(LINEAR, SGD, rho=0), ConfigError, "rho is 0"),
    (lambda: SAM(LINEAR, LINEAR), ConfigError, "base_optimizer is Linear"),
    (lambda: SAM(LINEAR, SAM(LINEAR, SGD)), ConfigError, "base_optimizer is SAM"),
    (lambda: SAM(LINEAR, SGD).step(None), ConfigError, "closure"),
    (lambda: cosine_with_warmup(SGD, 10, 3.0), ConfigError, "warmup is 3"),
    (lambda: cosine_with_warmup(SGD, 0), ConfigError, "total_steps is 0"),
    (lambda: manifold_mixup(tokens(), {}, 0.0), ConfigError, "alpha is 0.0"),
    (lambda: manifold_mixup(IMAGES, {}, 1.0), ShapeError, "tokens are Tensor"),
    (lambda: mixed_up({"k": [0.0] * 6}), ShapeError, ("'k'", "list")),
    (lambda: mixed_up({"k": torch.zeros(())}), ShapeError, ("'k'", "()", "6 samples")),
    (lambda: mixed_up({"k": torch.zeros(5)}), ShapeError, ("'k'", "(5,)", "6 samples")),
    (lambda: mixed_up({"k": torch.zeros(6, dtype=torch.long)}), ShapeError, ("'k'", "one_hot")),
    (lambda: cutmix(torch.zeros(3, 32, 32), {}, 1.0), ShapeError, "(3, 32, 32)"),
    (lambda: cutmix(IMAGES.numpy(), {}, 1.0), ShapeError, "images are ndarray"),
    (lambda: cutmix(IMAGES.byte(), {}, 1.0), ShapeError, ("torch.uint8", "images / 255")),
    (lambda: cutmix(IMAGES, {"m": IMAGES}, 1.0), ShapeError, ("'m'", "(2, 3, 32, 48)", "fit(")),
    (lambda: FreezeSchedule({0: "all"}, lr_scale=0.0), ConfigError, "lr_scale is 0.0"),
    (lambda: FreezeSchedule({0: "all"}).stage(-1), ConfigError, "epoch is -1"),
    *(
        (lambda plan=plan: FreezeSchedule(plan).apply(TINY, 0), ConfigError, named)
        for plan, named in PLANS
    ),
    (lambda: param_groups(nn.Linear(2, 2), lr=1.0), ConfigError, "Linear"),
    (lambda: param_groups(model(nn.Linear(2, 2)), lr=1.0), ConfigError, "ModuleDict"),
    (
        lambda: param_groups(nn.ModuleList([unfrozen(), unfrozen()]), lr=1.0),
        ConfigError,
        "1.backbone",
    ),
    (lambda: param_groups(TINY, lr=1.0), ConfigError, "trainable"),
    *(
        (
            lambda own=own: param_groups(unfrozen(), **{"lr": 1.0, **own}),
            ConfigError,
            f"{next(iter(own))} is",
        )
        for own in ({"lr": 0.0}, {"backbone_lr": 0.0}, {"weight_decay": -0.1}, {"layer_decay": 1.5})
    ),
    # scores
    (lambda: ridge_probe(ids_of(*IDS), Y[:, None], FOLDS), DataError, "target_ids"),
    (
        lambda: ridge_probe(ids_of(*IDS), {"y": at(5, np.inf)}, FOLDS, target_ids=IDS),
        DataError,
        "infinite",
    ),
    (
        lambda: ridge_probe(ids_of(*IDS), {"y": Y * np.nan}, FOLDS, target_ids=IDS),
        DataError,
        "known",
    ),
    (lambda: r2({"a": 1.0, "z": 2.0}, {"a": 1.0, "b": 2.0}), DataError, ("2 ids", "'b'", "'z'")),
    (lambda: r2(BY_ID, Y), DataError, ("targets alone", "to_numpy")),
    (lambda: r2(Y, BY_ID), DataError, "predictions alone"),
    (lambda: r2([1.0, 2.0], [1.0]), DataError, ("2 targets", "1 prediction")),
    (lambda: r2([1.0, 1.0], [1.0, 2.0]), DataError, ("2 targets", "1,")),
    (lambda: r2(np.ones((6, 2)), np.ones((6, 2))), DataError, ("(6, 2)", "weighted_r2")),
    (lambda: weighted_r2([[np.nan]], [[1.0]], [1.0]), DataError, "1 of the targets"),
    (lambda: weighted_r2([[1.0]], [[np.nan]], [1.0]), DataError, "1 of the predictions"),
    (lambda: weighted_r2([[1.0]], [[1.0]], [-1.0]), DataError, "[-1.0]"),
    (lambda: weighted_r2([[1.0], [2.0]], [[1.0], [2.0]], [0.0]), DataError, "[0.0]"),
    (lambda: weighted_r2(np.ones((0, 1)), np.ones((0, 1)), [1.0]), DataError, "nothing to score"),
    (lambda: weighted_r2([1.0], [1.0], [1.0]), DataError, "(1,)"),
    (lambda: weighted_r2([[1.0]], [[1.0, 2.0]], [1.0]), DataError, ("(1, 2)", "(1, 1)")),
    (lambda: weighted_r2([[1.0]], [[1.0]], [1.0, 2.0]), DataError, ("weights", "(2,)")),
    (
        lambda: weighted_r2({"b": [1.0]}, {"a": [1.0]}, {"a": 1.0}),
        DataError,
        ("hold a", "targets b"),
    ),
    (lambda: weighted_r2({"b": [1.0]}, [[1.0]], {"b": 1.0}), DataError, "predictions are list"),
    (lambda: weighted_r2({}, {}, {}), DataError, "no names"),
    (
        lambda: weighted_r2({"a": [1, 3], "b": [2]}, {"a": [1, 2], "b": [1]}, {"a": 1, "b": 1}),
        DataError,
        ("a 2, b 1", "length"),
    ),
    (lambda: score_values(Y[:5], Y, ONE), DataError, ("(5,)", "(6,)")),
    (lambda: score_values(at(0, np.inf), Y, ONE), DataError, "infinite"),
    (
        lambda: score_classes(CLASSES, CLASSES + 1, ONE, "abc"),
        DataError,
        ("predicted", "3"),
    ),
    (
        lambda: score_pixels(np.ones((6, 2, 2)), ONE, reference=np.ones((6, 3, 3))),
        DataError,
        ("(6, 2, 2)", "(6, 3, 3)"),
    ),
    (lambda: confusion_matrix([0, 255], [0, 1], 2), DataError, ("true", "255")),
    (lambda: confusion_matrix([0, 0.5], [0, 1], 2), DataError, ("true", "0.5")),
]
