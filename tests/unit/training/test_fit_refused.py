"""What fit and its parts cannot work with is refused: a table of calls, error classes, and the value that is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.small_fit import IDS, Y, head, run, tokens
from torch import nn

from dinoneck import (
    ConfigError,
    DataError,
    DenseHead,
    GridError,
    PatchMeanHead,
    ShapeError,
    TargetTransform,
    Task,
    Tokens,
    load_backbone,
)
from dinoneck.losses import TaskLoss
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, cutmix, fit, manifold_mixup

CLASSES = np.array([0, 1, 2, 0, 1, 2])
KIND, RATIO = Task("y", dim=3, kind="classification"), Task("y", dim=3, kind="ratio")
MAP, MASK = Task("y", kind="dense"), Task("y", dim=2, kind="segmentation")
CELLS = np.linspace(0, 1, 36).reshape(6, 1, 2, 3)
BY_ID = dict(zip(IDS, Y, strict=True))


def changed(row: int, value: float) -> np.ndarray:
    return np.where(np.arange(6) == row, value, Y)


def fit_map(values: Any, task: Task = MAP, **changes: Any) -> None:
    run(DenseHead(8, [task], hidden_dim=4, depth=0), targets={"y": values}, **changes)


def twice() -> MemoryTokens:
    return MemoryTokens(["a.jpg", "a.png"], tokens(images=2))


def jpg() -> MemoryTokens:
    return MemoryTokens([f"{image_id}.jpg" for image_id in IDS], tokens())


def frozen() -> PatchMeanHead:
    return head().requires_grad_(False)


CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # arguments
    (lambda: run(nn.Linear(2, 2)), ConfigError, "Linear"),
    (lambda: run(PatchMeanHead(16, [Task("y")])), ShapeError, "16"),
    (lambda: run(frozen()), ConfigError, "frozen"),
    (lambda: run(source=[1]), DataError, "list"),
    (lambda: run(recipe={"patience": 2}), ConfigError, "patience"),
    (lambda: run(epoch=3), ConfigError, "epoch"),
    (lambda: run(loss=TaskLoss([Task("z")])), ConfigError, "tasks z.* y"),
    *((lambda own=own: run(**own), ConfigError, next(iter(own))) for own in (
        {"lr": "1e-4"}, {"lr": float("inf")}, {"epochs": 1.5}, {"batch_size": 0}, {"seed": 1.5}, {"seed": -1}
    )),
    (lambda: run(recipe=Recipe(patience=2)), ConfigError, "patience is 2"),
    (lambda: run(recipe=Recipe(cutmix_alpha=1.0)), ConfigError, "cutmix_alpha is 1.0.*MemoryTokens"),
    # ids
    (lambda: run(ids=[]), ConfigError, "0 ids"),
    (lambda: run(ids=["s1", "s2"], val_ids=["s1"]), DataError, "'s1'"),
    (lambda: run(val_ids=["z"]), DataError, "'z'"),
    (lambda: run(ids=[*IDS, "z"]), DataError, "'z'"),
    (lambda: run(targets={}), DataError, "'y'"),
    (lambda: run(targets={"x": BY_ID}), DataError, "'y'"),
    (lambda: run(targets=Y), DataError, "ndarray"),
    (lambda: run(target_ids=None), DataError, "'y'.*target_ids"),
    (lambda: run(target_ids=IDS[:5]), DataError, r"'y'.*\(6,\).* 5 ids"),
    (lambda: run(target_ids=[*IDS[:5], "s0"]), DataError, "'s0'"),
    (lambda: run(targets={"y": {**BY_ID, "s0.png": 1.0}}), DataError, "'s0'"),
    (lambda: run(targets={"y": {**BY_ID, "a": 1.0}}), DataError, "'a'"),
    (lambda: run(targets={"y": {"s0": 1.0, "s1": 2.0}}, ids=IDS), DataError, "4 ids .*'y'.*'s2'"),
    (lambda: run(source=twice(), targets={"y": {"a": 1.0}}), DataError, "'a'.*'a.jpg', 'a.png'"),
    (lambda: run(source=jpg(), targets={"y": {f"{i}.png": v for i, v in BY_ID.items()}}), DataError, "'s0.png'"),
    (lambda: run(weights={"y": CELLS[:, 0]}), DataError, "'y'.*none"),
    # values
    (lambda: run(targets={"y": {"s0": [1.0], "s1": [1.0, 2.0]}}), DataError, "'y'"),
    (lambda: run(targets={"y": [[1], [2, 3]]}, target_ids=["s0", "s1"]), DataError, "'y'"),
    (lambda: run(targets={"y": ["a"] * 6}), DataError, "'y'.*'a'"),
    (lambda: run(targets={"y": np.arange(6).astype("datetime64[D]")}), DataError, "datetime64"),
    (lambda: run(targets={"y": np.ma.masked_array(Y, Y > 3)}), DataError, "'y' is a masked"),
    (lambda: run(targets={"y": list(np.ma.masked_array(Y, Y > 3))}), DataError, "'y' is a masked"),
    (lambda: run(targets={"y": Y * 1e200}), DataError, "1e\\+200"),
    (lambda: run(targets={"y": changed(3, np.inf)}), DataError, "inf for 's3'"),
    (lambda: run(targets={"y": Y * np.nan}), DataError, "'y' .* 6 training ids"),
    (lambda: run(targets={"y": Y * 0 + 2.5}), DataError, "'y' are 2.5"),
    (lambda: run(ids=["s3"]), DataError, "'y' are 3"),
    (lambda: run(head(Task("y", minimum=0)), targets={"y": changed(4, -3)}), DataError, r"'y'.*'s4' \(-3\)"),
    (
        lambda: run(targets={"y": np.where(Y > 3, np.nan, Y)}, ids=IDS[:4], val_ids=IDS[4:], patience=1),
        DataError,
        "patience",
    ),
    (lambda: run(head(Task("y", activation="relu", transform=TargetTransform().fit(Y)))), DataError, "'relu'.* -1.4"),
    (lambda: run(head(Task("y", activation="sigmoid"))), DataError, "'sigmoid'"),
    (lambda: run(lr=1e30, epochs=3), DataError, r"diverged at lr 1e\+30"),
    # classes and shares
    (lambda: run(head(KIND), targets={"y": CLASSES + 1}), DataError, "1 to 3"),
    (lambda: run(head(KIND), targets={"y": CLASSES * 0.5}), DataError, "float64"),
    (lambda: run(head(KIND), targets={"y": np.eye(3, dtype=int)[CLASSES]}), DataError, r"\(6, 3\)"),
    (lambda: run(head(RATIO), targets={"y": -np.eye(3)[CLASSES]}), DataError, "-1.0"),
    (lambda: run(head(RATIO), targets={"y": np.eye(3)[CLASSES] * 0.6}), DataError, "0.6"),
    # maps
    (lambda: fit_map(CELLS.repeat(2, axis=1)), DataError, r"\(6, 2, 2, 3\)"),
    (lambda: fit_map(CELLS[:, :, :1, :1] * 1.0), ShapeError, r"\(4, 1, 1, 1\)"),
    (lambda: fit_map(CELLS * np.nan), DataError, "'y'"),
    (lambda: fit_map(CELLS + np.inf), DataError, "inf"),
    (lambda: fit_map(CELLS, weights={"y": np.ones((6, 3, 3))}), DataError, r"'y'.*\(6, 3, 3\)"),
    (lambda: fit_map(CELLS, weights={"z": CELLS[:, 0]}), DataError, "'z'.*'y'"),
    (lambda: fit_map(CELLS, weights={"y": -CELLS[:, 0]}), DataError, "-1"),
    (lambda: fit_map(np.ones((6, 2, 2, 3)), MASK), DataError, r"\[1.0, 1.0\]"),
    # mixup and CutMix by hand
    (lambda: manifold_mixup(tokens(), {}, 0.0), ConfigError, "alpha is 0.0"),
    (lambda: manifold_mixup(tokens(), {"k": torch.zeros(6, dtype=torch.long)}, 1.0), ShapeError, "'k'.*one_hot"),
    (lambda: manifold_mixup(tokens(), {"x": torch.zeros(3, 1)}, 1.0), ShapeError, "'x'.*6 samples"),
    (lambda: cutmix(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {}, 1.0), ShapeError, "uint8"),
    (lambda: cutmix(torch.zeros(2, 3, 30, 32), {}, 1.0, patch_size=16), GridError, "30"),
    # sources
    (lambda: MemoryTokens(["a", "a"], tokens(images=2)), DataError, r"2 ids \(1 different\)"),
    (lambda: MemoryTokens(IDS, tokens()).batch(["s1", "x"]), DataError, "'x'"),
    (lambda: MemoryTokens(IDS, tokens()).batch(["s1"], [3]), DataError, "view 0"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CALLS)))
def test_it_is_refused_and_named(case: int) -> None:
    call, error, value = CALLS[case]
    with pytest.raises(error, match=f"(?s){value}"):
        call()


def test_gradients_that_are_off_and_sources_of_another_kind_are_refused() -> None:
    with torch.inference_mode(), pytest.raises(ConfigError, match="no_grad"):
        run()
    images, backbone = torch.rand(2, 3, 32, 48), load_backbone("dinoneck_tiny")
    for make in (LiveTokens, MemoryTokens.extract):
        with pytest.raises(DataError, match=r"2 ids \(1 different\) for 2 images"):
            make(backbone, images, ["a", "a"])
        with pytest.raises(DataError, match="1 ids"):
            make(backbone, images, ["a"])
        with pytest.raises(ConfigError, match="dinoneck_tiny"):
            make("dinoneck_tiny", images, ["a", "b"])  # type: ignore[arg-type]
    live = LiveTokens(backbone, images)
    assert live.ids == ("0", "1")
    with pytest.raises(DataError, match="'z'"):
        live.batch(["z"])
    with pytest.raises(DataError, match="view 0"):
        live.batch(["0"], [1])
    shown = LiveTokens(backbone, images, transform=lambda image: 3)
    with pytest.raises(DataError, match="int"):
        fit(PatchMeanHead(64, [Task("y")]), shown, {"y": {"0": 0.0, "1": 1.0}}, epochs=1)
    head_of_maps = DenseHead(64, [MAP], hidden_dim=4, depth=0)
    with pytest.raises(ConfigError, match="'y'"):
        fit(head_of_maps, shown, {"y": CELLS[:2]}, target_ids=["0", "1"])
    with pytest.raises(DataError, match="0 ids"):
        MemoryTokens.extract(backbone, [], [])
    with pytest.raises(DataError, match="'b' with 48x32 px"):
        MemoryTokens.extract(backbone, [images[0], images[0].transpose(1, 2)], ["a", "b"])


def test_tokens_that_do_not_fit_float16_are_refused() -> None:
    backbone = load_backbone("dinoneck_tiny")
    loud = nn.Module.register_forward_hook(backbone, lambda module, given, found: Tokens._map(found, lambda x: x * 1e6))
    with pytest.raises(DataError, match="float16"):
        MemoryTokens.extract(backbone, torch.rand(1, 3, 32, 32), ["a"])
    loud.remove()
