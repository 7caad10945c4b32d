"""What training runs refuse.

Their folder, their state, their store and their masks, and a training that diverges.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinoneck import (
    CheckpointError,
    Composition,
    ConfigError,
    DataError,
    FeatureStore,
    FPNHead,
    HeadEnsemble,
    StoreError,
    Task,
    save_head,
)
from dinoneck.losses import TaskLoss
from dinoneck.training import (
    SAM,
    FreezeSchedule,
    MemoryTokens,
    Recipe,
    TrainConfig,
    group_folds,
    run,
    train,
)
from dinoneck.training.earlier import start_backbone
from dinoneck.training.new_head import start_from
from tests import kit
from tests.refusals import Row
from tests.refusals.store_files import sound
from tests.refusals.training import PASTURE
from tests.unit.store.store_samples import make, write_images
from tests.unit.training import small_fit
from tests.unit.training.meadow import a_run, write_meadow
from tests.unit.training.small_model import Model

Call = Callable[[Path], Any]
GROUPS = "aabcdddddd"  # a fold of four would be empty
CLASSES = [1, 1, 0, 2, 2, 2, 1, 0, 0, 1]


# the folder


def trained_into(name: str) -> Call:
    """Train into a folder, or a file, of this name, which is there."""

    def call(folder: Path) -> Any:
        path = folder / "run" / name
        path.parent.mkdir()
        path.touch()
        return train(a_run(None), folder / "run", table=PASTURE)

    return call


def trained_below_a_file(folder: Path) -> Any:
    (folder / "notes").touch()
    return train(a_run(None), folder / "notes" / "run", table=PASTURE)


# the state


def resumed(damage: Callable[[Path], object], **changes: Any) -> Call:
    """Train, damage the state in the folder, and train on with these changes."""

    def call(folder: Path) -> Any:
        small_fit.run(out=folder)
        damage(folder / "state.pt")
        return small_fit.run(out=folder, **changes)

    return call


def keep(state: Path) -> None:
    """Leave the state as it is."""


def flip_a_bit_of_a_tensor(state: Path) -> None:
    content = bytearray(state.read_bytes())
    with zipfile.ZipFile(state) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    # tensors are not compressed, so this byte, half a tensor after the entry's header, is a value
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    state.write_bytes(content)


def write_text(state: Path) -> None:
    state.write_text("no state")


def write_weights(state: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, state)


def write_code(state: Path) -> None:
    torch.save({"run": Path}, state)


def state_on_a_full_disk(folder: Path) -> Any:
    with kit.full_disk():
        return small_fit.run(out=folder)


def state_below_a_file(folder: Path) -> Any:
    (folder / "notes").touch()
    return small_fit.run(out=folder / "notes")


# a training that diverges


def large_steps(folder: Path) -> Any:
    return train(a_run(None, optim={"lr": 1e30}), folder / "run", table=PASTURE)


def predictions_without_a_number(folder: Path) -> Any:
    """Train heads whose last step made a weight as large as float32 holds."""
    fit = run.fit

    def diverged(head: Any, *arguments: Any, **options: Any) -> Any:
        history = fit(head, *arguments, **options)
        nn.init.constant_(head.mlps[0].out.bias, 3e38)
        return history

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "fit", diverged)
        return train(a_run(None), folder / "run", table=PASTURE)


def sam_at_infinity() -> Any:
    """Take a step of SAM at a weight whose gradient is not finite."""
    model = nn.Linear(1, 1)
    optimizer = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def closure() -> torch.Tensor:
        loss = model(torch.full((1, 1), torch.inf)).sum()
        loss.backward()
        return loss

    return optimizer.step(closure)


def tokens_of_weights(value: float) -> Callable[[], Any]:
    """Extract tokens with a backbone whose final norm has this weight."""

    def call() -> Any:
        backbone = kit.backbone()
        for name, parameter in backbone.named_parameters():
            if name.endswith("model.norm.weight"):
                nn.init.constant_(parameter, value)
        return MemoryTokens.extract(backbone, list(kit.images()), ["a", "b"])

    return call


# the store


def on_store(root: Path, **changes: Any) -> Any:
    """Train on a store of the images a and b."""
    (root.parent / "t.csv").write_text("image,mass\na.png,1\nb.png,2\n")
    data = {
        "csv": str(root.parent / "t.csv"),
        "store": str(root),
        "targets": ["mass"],
        **changes.pop("data", {}),
    }
    return train(a_run(None, data=data, **changes), root.parent / "run")


def on_store_made_with(**changes: Any) -> Call:
    return lambda folder: on_store(sound(folder), **changes)


def on_store_of_other_weights(folder: Path) -> Any:
    """A file of weights that did not make the store's tokens."""
    file = folder / "other.safetensors"
    kit.backbone(seed=1).save_weights(file)
    return on_store(sound(folder), backbone={"file": str(file)})


def on_store_of_a_file(folder: Path) -> Any:
    """Random weights, and a store of a file's."""
    file = folder / "weights.safetensors"
    kit.backbone(seed=1).save_weights(file)
    store = make(folder / "store", kit.backbone(checkpoint=file), views="none")
    store.extract(write_images(folder / "images", ["a.png", "b.png"]), root=folder / "images")
    return on_store(folder / "store", backbone={"random": True})


def on_converted_store(folder: Path) -> Any:
    """Train on features of another program, which names no layers."""
    (folder / "pt").mkdir()
    for name in ("a", "b"):
        torch.save(torch.zeros(64, 2, 3), folder / "pt" / f"{name}.pt")
    FeatureStore.from_pt(folder / "pt", folder / "store", patch_size=16)
    return on_store(folder / "store", backbone={"name": None})


def on_store_of_other_images(folder: Path) -> Any:
    root = sound(folder)
    kit.write_images(folder, ["a.png", "b.png"], seed=9)
    return on_store(root)


# tasks and masks


def masks_of_one_class(folder: Path) -> Any:
    csv = write_meadow(folder)
    for mask in folder.glob("*-mask.png"):
        Image.fromarray(np.zeros((32, 64), np.uint8)).save(mask)
    config = a_run(csv, data={"csv": str(csv), "labels": "mask"})
    return train(config, folder / "run")


def on_meadow(targets: list[str], **changes: Any) -> Call:
    def call(folder: Path) -> Any:
        csv = write_meadow(folder)
        data = {"csv": str(csv), "targets": targets, **changes.get("data", {})}
        return train(a_run(None, **{**changes, "data": data}), folder / "run")

    return call


def targets_of_a_composition() -> Any:
    module = small_fit.head(Task("y"), Task("shares", dim=2, kind="ratio"))
    plant = Composition(("leaf", "stem"), (), "plant", "y", "shares")
    targets = {
        "y": small_fit.Y,
        "shares": np.full((6, 2), 0.5),
        "plant": np.ones((6, 2)),
    }
    return small_fit.run(module, targets=targets, loss=TaskLoss(module.tasks, [plant]))


def unknown_class_of_a_table() -> Any:
    table = pd.DataFrame({"y": pd.Categorical(["no", "yes", "?"] * 2)}, index=small_fit.IDS)
    head = small_fit.head(Task("y", dim=2, kind="classification", labels=("yes", "no")))
    return small_fit.run(head, targets=table, target_ids=None)


def started_from(module: nn.Module) -> Call:
    """Start a small head from the file of another module."""
    return lambda folder: start_from(
        kit.head(), str(kit.saved_head(folder / "h.safetensors", module))
    )


def started_with_lora_of_another_backbone(folder: Path) -> Any:
    backbone = kit.backbone().add_lora(2)
    file = folder / "h.safetensors"
    save_head(file, kit.head(), backbone=backbone, preprocess=backbone.preprocess)
    config = TrainConfig.from_dict({"init": str(file), "backbone": {"lora": 2}})
    return start_backbone(kit.backbone(seed=3), config)


# folds and freezing


def stratified_with_an_empty_fold() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, of few members of a class
        return group_folds(GROUPS, 4, 0, stratify=CLASSES)


def stratified_without_scikit_learn() -> Any:
    with kit.without("sklearn.model_selection"):
        return group_folds("abc", 2, 0, stratify="aab")


def optimizer_of_the_head_alone() -> Any:
    model = Model()
    schedule = FreezeSchedule({0: "all", 1: "last:1"})
    optimizer = torch.optim.AdamW(model.head.parameters())
    return schedule.start_epoch(1, model, optimizer)


def unfrozen_model() -> Model:
    model = Model()
    model.backbone.unfreeze()
    return model


def model_beside_its_backbone() -> nn.Module:
    """A model of which a part is wrapped that holds the head alone."""
    model = unfrozen_model()
    model.head = DistributedDataParallel(model.head, find_unused_parameters=True)
    return model


def wrapped(build: Callable[[], nn.Module], finds_unused: bool = True) -> Callable[[], Any]:
    """Start the first epoch with a model in DistributedDataParallel, or with a part of it there."""

    def call() -> Any:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = build()
            if not any(isinstance(part, DistributedDataParallel) for part in model.modules()):
                model = DistributedDataParallel(model, find_unused_parameters=finds_unused)
            optimizer = torch.optim.AdamW(model.parameters())
            return FreezeSchedule({0: "all", 1: "last:1"}).start_epoch(0, model, optimizer)
        finally:
            dist.destroy_process_group()

    return call


def latin_file(folder: Path) -> Any:
    (folder / "run.yaml").write_bytes("data: {csv: Äcker.csv}".encode("latin-1"))
    return TrainConfig.read(folder / "run.yaml")


ROWS: list[Row] = [
    # the training file
    (lambda folder: TrainConfig.read(folder / "no.yaml"), ConfigError, "no.yaml"),
    (lambda folder: TrainConfig.read(folder), ConfigError, "folder"),
    (latin_file, ConfigError, ("run.yaml", "UTF-8")),
    # the folder
    (trained_into("report.json"), DataError, ("report.json", "--overwrite")),
    (trained_into("notes.txt"), DataError, "notes.txt"),
    (trained_below_a_file, DataError, "notes"),
    # the state
    (resumed(flip_a_bit_of_a_tensor), CheckpointError, ("state.pt", "checksum", "--no-resume")),
    (resumed(write_text), CheckpointError, ("state.pt", "not a zip file", "--no-resume")),
    (resumed(write_weights), CheckpointError, ("state.pt", "other things", "--no-resume")),
    (resumed(write_code), CheckpointError, ("state.pt", "code", "--no-resume")),
    (resumed(keep, lr=2e-3), CheckpointError, ("0.001 / 0.002", "--no-resume")),
    (state_on_a_full_disk, CheckpointError, "log.jsonl"),
    (state_below_a_file, CheckpointError, "log.jsonl"),
    # a training that diverges
    (large_steps, DataError, ("fold 0", "lr")),
    (predictions_without_a_number, DataError, ("fold 0", "GDM_g", "--lr")),
    (sam_at_infinity, DataError, "inf"),
    (tokens_of_weights(1e6), DataError, ("'a'", "float16", "torch.bfloat16")),
    (tokens_of_weights(torch.nan), DataError, ("'a'", "not finite", "weights")),
    # the store
    (on_converted_store, ConfigError, ("store", "no backbone", "--backbone NAME")),
    (on_store_made_with(data={"size": [64, 64]}), ConfigError, ("(32, 48)", "(64, 64)")),
    (on_store_made_with(backbone={"layers": [2]}), ConfigError, ("(5,)", "(2,)")),
    (
        on_store_made_with(backbone={"source": "transformers"}),
        ConfigError,
        ("source timm", "transformers"),
    ),
    (
        on_store_made_with(backbone={"seed": 3}),
        ConfigError,
        ("(seed 0)", "the random weights of seed 3"),
    ),
    (on_store_of_other_weights, ConfigError, ("(seed 0)", "other.safetensors")),
    (on_store_of_a_file, ConfigError, ("from a file", "random weights (--random-backbone)")),
    (on_store_of_other_images, StoreError, "a.png"),
    # tasks and masks
    (masks_of_one_class, DataError, "class '0'"),
    (
        on_meadow(
            ["crop"],
            data={"labels": "mask"},
            head={"type": "simple_pyramid", "out_channels": 8},
        ),
        ConfigError,
        ("'cells'", "(8, 16)"),
    ),
    (
        on_meadow(
            ["soil", "crop"],
            head={"type": "mask"},
            compositions={"all": {"sums": {"total": ["soil", "crop"]}}},
        ),
        ConfigError,
        ("MaskHead", "total"),
    ),
    (targets_of_a_composition, ConfigError, "'plant'"),
    (unknown_class_of_a_table, DataError, ("'?'", "yes, no")),
    (
        started_from(HeadEnsemble([kit.head(), kit.head(seed=1)])),
        ConfigError,
        "h.safetensors",
    ),
    (
        started_from(FPNHead(64, [kit.MASS], 1, fpn_dim=8, num_levels=1)),
        ConfigError,
        ("h.safetensors", "PatchMeanHead"),
    ),
    (
        started_with_lora_of_another_backbone,
        CheckpointError,
        ("h.safetensors", "another ViT than this run's", "seed 3", "seed 0"),
    ),
    # folds and freezing
    (stratified_with_an_empty_fold, DataError, "fold 2 of 4"),
    (stratified_without_scikit_learn, ImportError, "dinoneck[train]"),
    (lambda: small_fit.run(recipe=Recipe(freeze=("0=all",))), ConfigError, "0=all"),
    (optimizer_of_the_head_alone, ConfigError, ("epoch 1", "schedule.param_groups")),
    (wrapped(Model), ConfigError, "backbone.unfreeze()"),
    (wrapped(unfrozen_model, False), ConfigError, "find_unused_parameters=True"),
    (wrapped(model_beside_its_backbone), ConfigError, "self.backbone = backbone"),
]
