"""What training and prediction copy between host and device, and how often the host waits, on the pretend device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tests import kit
from tests.pretend_device import NAME, pretend_device
from tests.unit.detection import coloured_boxes
from tests.unit.training.histories import without_times

from dinoneck import FPNHead, HeadEnsemble, PatchMeanHead, Predictor, Task, load_backbone
from dinoneck.detection import train_detector
from dinoneck.heads.head import Head
from dinoneck.losses import Composition, TaskLoss, UncertaintyWeighting
from dinoneck.store import FeatureStore, MemoryStore
from dinoneck.store.encoding import StoreDtype
from dinoneck.tasks import TargetTransform
from dinoneck.training import Recipe, TrainDetectorConfig, fit

IDS = [f"image{i:02d}" for i in range(12)]
BATCHES = 4
MASS = Task("mass", transform=TargetTransform(mean=5.0, std=2.0), minimum=0)
STATE = Task("state", dim=3, kind="classification")
SHARES = Task("shares", dim=2, kind="ratio", labels=("leaf", "stem"))
CELLS = Task("cells", dim=2, kind="dense", weight=(1.0, 0.5))
SEGMENTS = Task("segments", dim=3, kind="segmentation")
PARTS = Composition(
    ("leaf", "stem"), {"all": ("leaf", "stem")}, "parts", total="mass", ratio="shares"
)


def targets_of(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    values: dict[str, Callable[[int], Any]] = {
        "mass": lambda i: 3.0 + i % 5,
        "state": lambda i: i % 3,
        "shares": lambda i: np.array([i / 12, 1 - i / 12]),
        "cells": lambda i: rng.normal(size=(2, 2, 3)),
        "segments": lambda i: rng.integers(-1, 3, (2, 3)),
    }
    return {task.name: {name: values[task.name](i) for i, name in enumerate(IDS)} for task in tasks}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.write_images(
        tmp_path_factory.mktemp("images"), [f"{name}.png" for name in IDS], *kit.SIZE
    )[0].parent


@pytest.fixture(scope="module")
def stores(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    backbone, folder = kit.backbone(), tmp_path_factory.mktemp("stores")
    made = {}
    for dtype in get_args(StoreDtype):
        made[dtype] = FeatureStore.create(
            folder / dtype, backbone=backbone, views="flips4", image_size=None, dtype=dtype
        )
        made[dtype].extract(images)
    return made


def trained(
    source: Any, make: Callable[[], Head], recipe: Recipe, **options: Any
) -> tuple[Head, list[dict[str, float]]]:
    torch.manual_seed(0)
    head = make().to(options.pop("device", "cpu"))
    loss = options.pop("loss", lambda head: None)(head)
    return head, fit(
        head, source, targets=targets_of(head.tasks), loss=loss, recipe=recipe, **options
    )


def events_of_an_epoch(
    source: Any, make: Callable[[], Head], recipe: Recipe, **options: Any
) -> Counter[str]:
    """What one more epoch does on the device; the same training on the CPU has the same result, bit for bit."""
    counts = []
    for epochs in (2, 3):
        with pretend_device() as device:
            kept = MemoryStore(source, device=NAME) if options.get("kept") else source
            device.events.clear()
            plain = {name: value for name, value in options.items() if name != "kept"}
            head, history = trained(kept, make, recipe.changed(epochs=epochs), device=NAME, **plain)
            counts.append(Counter(device.events))
            weights = [value.cpu() for value in head.state_dict().values()]
    expected, losses = trained(source, make, recipe.changed(epochs=3), **plain)
    if recipe.amp is None:  # the pretend device has no autocast
        assert without_times(history) == without_times(losses)
        assert all(
            torch.equal(x, y) for x, y in zip(weights, expected.state_dict().values(), strict=True)
        )
    return counts[1] - counts[0]


def patch_mean(*tasks: Task, **options: Any) -> Callable[[], Head]:
    return lambda: PatchMeanHead(64, tasks, **options)


def maps() -> Head:
    return FPNHead(64, [CELLS, SEGMENTS, MASS], num_layers=1)


def uncertain(head: Head) -> TaskLoss:
    return TaskLoss(
        head.tasks, head.compositions, UncertaintyWeighting([task.name for task in head.tasks])
    )


@pytest.mark.parametrize(
    ("dtype", "make", "recipe", "options"),
    [
        ("fp16", patch_mean(MASS, STATE), {}, {"loss": uncertain}),
        ("bf16", patch_mean(MASS, SHARES, compositions=[PARTS]), {"amp": "bf16"}, {}),
        pytest.param(
            "int8", maps, {"clip_norm": 1.0, "ema_decay": 0.9}, {}, marks=pytest.mark.slow
        ),
        ("fp16", patch_mean(MASS, STATE), {"clip_norm": 1.0}, {"kept": True}),
        ("int8", patch_mean(MASS), {}, {"kept": True}),
    ],
)
def test_a_training_step_is_one_copy_that_nothing_waits_for(
    dtype: str,
    make: Callable[[], Head],
    recipe: dict[str, Any],
    options: dict[str, Any],
    stores: dict[str, FeatureStore],
) -> None:
    events = events_of_an_epoch(stores[dtype], make, Recipe(batch_size=3, **recipe), **options)
    # the losses of an epoch are read at its end
    assert events == {"to device": BATCHES, "read": 1, "wait": 1}


def test_the_parts_of_a_step_wait_for_nothing_once_the_weights_of_losses_are_set(
    stores: dict[str, FeatureStore],
) -> None:
    recipe = Recipe(batch_size=3, accumulate=2)
    events = events_of_an_epoch(stores["fp16"], patch_mean(MASS, STATE), recipe, loss=uncertain)
    assert events["wait"] == 1, "for the losses of the epoch"


def test_the_scale_of_tokens_is_measured_on_the_device(stores: dict[str, FeatureStore]) -> None:
    counts = []
    for measures in (True, False):
        recipe = Recipe(batch_size=3, epochs=1, standardise_tokens=measures)
        with pretend_device() as device:
            trained(stores["fp16"], patch_mean(MASS), recipe, device=NAME)
            counts.append(Counter(device.events))
    # the tokens travel as a step's; it is read whether there is a scale, and whether it is finite
    assert counts[0] - counts[1] == {"to device": BATCHES, "read": 2, "wait": 2}


def test_validation_reads_its_losses_and_its_predictions_once(
    stores: dict[str, FeatureStore],
) -> None:
    events = events_of_an_epoch(
        stores["fp16"], patch_mean(MASS, STATE), Recipe(batch_size=3), val_ids=IDS[:6]
    )
    assert events == {"to device": 4, "read": 2, "to host": 1, "wait": 3}


def test_prediction_is_one_copy_in_and_one_read(images: Path) -> None:
    files = [images / f"{name}.png" for name in IDS[:4]]
    ensemble = HeadEnsemble([PatchMeanHead(64, [MASS, STATE]), PatchMeanHead(64, [MASS])])
    heads = {"means": ensemble, "cells": maps()}
    expected = Predictor(heads, load_backbone("dinoneck_tiny"), tta="flip4", batch_size=16)(
        files, maps="patch"
    )
    with pretend_device() as device:
        predictor = Predictor(
            heads, load_backbone("dinoneck_tiny"), tta="flip4", device=NAME, batch_size=4
        )
        predictor(files)
        device.events.clear()
        rows = predictor(files, maps="patch")
        events = Counter(device.events)
    # the backbone checks the range of its input
    assert events == {"to device": 1, "to host": 1, "read": 1, "wait": 2}
    for row, own in zip(rows, expected, strict=True):  # passes on a CPU are smaller
        assert row["means"]["mass"] == pytest.approx(own["means"]["mass"], rel=1e-5)
        cells = [one["cells"]["maps"]["cells"] for one in (row, own)]
        assert cells[0] == pytest.approx(cells[1], rel=1e-4, abs=1e-5)


def test_a_detectors_batch_is_one_copy(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")
    boxes = coloured_boxes.write(tmp_path / "images")
    config = TrainDetectorConfig.from_dict(
        {
            "data": {"boxes": str(boxes), "val_boxes": str(boxes), "size": [96, 128]},
            "backbone": {"name": "dinoneck_tiny", "layers": [1, 3, 5]},
            "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
            "detector": {"variant": "tiny"},
            "optim": {"batch_size": 1, "epochs": 1, "seed": 0},
            "device": NAME,
        }
    )
    with pretend_device() as device:
        train_detector(config, tmp_path / "run")
    copies = [
        n
        for (event, place), n in device.places.items()
        if event == "to device" and "devices.py" in place
    ]
    assert sum(copies) == 3
