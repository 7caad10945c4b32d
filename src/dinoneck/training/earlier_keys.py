"""Keys of training files of version 0.1, and how they are written now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = "head: {type: fpn, ...} with the arguments of FPNHead (fpn_dim, num_levels, layer_groups, use_cls_context)"
_TASKS = "tasks: {NAME: {...}}"
EARLIER: Mapping[str, str] = {
    "experiment.name": "nothing: the folder's name is the run's",
    "experiment.seed": "optim.seed",
    "backbone.model_name": "backbone.name",
    "backbone.pretrained": "backbone.random (the opposite)",
    "backbone.freeze": "nothing: the backbone of a run from a file is frozen",
    "backbone.hidden_dim": "nothing: the width is read from the tokens",
    "backbone.num_patches": "nothing: the grid is read from the tokens",
    "backbone.checkpoint": "backbone.file",
    "dataset.image_dir": "data.images",
    "dataset.image_col": "data.image_column",
    "dataset.img_size": "data.size",
    "dataset.resize_method": "data.interpolation (area, bicubic, bilinear)",
    "dataset.feature_dir": "data.store",
    "dataset.num_aug_patterns": "data.views",
    "dataset.target_cols": "data.targets",
    "dataset.aux_target_cols": "data.aux_targets",
    "dataset.state_col": "data.aux_targets (the column is one of them)",
    "dataset.height_col": "data.aux_targets (the column is one of them)",
    "dataset.label_col": "data.labels",
    "loss.beta": f"{_TASKS} with loss: smooth_l1 and beta",
    "loss.main_weights": f"{_TASKS} with weight",
    "loss.state_weight": f"{_TASKS} with weight",
    "loss.height_weight": f"{_TASKS} with weight",
    "trainer.num_epochs": "optim.epochs",
    "trainer.batch_size": "optim.batch_size",
    "trainer.num_workers": "nothing: it was not used",
    "trainer.use_amp": "optim.amp (bf16, fp16)",
    "trainer.n_folds": "folds.count",
    "trainer.fold": "folds.only",
    "trainer.group_col": "folds.group",
    "trainer.patience": "optim.patience",
    "trainer.device": "device",
    "inference": "data",
    "dataset": "data",
    "loss": "losses",
    "optimization.warmup_rate": "optim.warmup",
    "optimization.use_ema": "optim.ema_decay (null: no average)",
    "optimization.ema_start_ratio": "optim.ema_start",
    "augmentation.mixup.enabled": "optim.mixup_alpha (null: no mixup)",
    "augmentation.mixup.alpha": "optim.mixup_alpha",
    "augmentation.mixup.disable_ratio": "optim.mixup_off_last",
    "inference.tta_indices": "data.tta (none, flip4, d6)",
    "model": _HEAD,
    "fpn": _HEAD,
    "recipe": "optim",
    "optimization": "optim",
}


def earlier_key(key: str, value: Any) -> str | None:
    """Return how a key of version 0.1, or the first key of its section, is written now; None for other keys."""
    while isinstance(value, Mapping) and value:
        last, value = next(iter(value.items()))
        key = f"{key}.{last}"
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (now := EARLIER.get(".".join(parts[:length]))) is not None:
            rest = parts[length:] if now in ("optim", "data", "losses") else []
            return f"{key!r} is a key of version 0.1; write {'.'.join([now, *rest])}"
    return None
