"""Translate training files with the keys of two published notebooks to those of ``TrainConfig``.

``python -m examples.biomass.keys OLD.yaml > NEW.yaml``. What the file leaves out gets the second
notebook's values.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

from dinoneck.data.pasture import WEIGHTS
from dinoneck.errors import ConfigError, DinoneckError
from dinoneck.training import TrainConfig
from dinoneck.yaml_file import read_yaml

RENAMED: Mapping[str, str] = {
    "experiment.seed": "optim.seed",
    "backbone.model_name": "backbone.name",
    "dataset.img_size": "data.size",
    "dataset.feature_dir": "data.store",
    "dataset.num_aug_patterns": "data.views",
    "head.shared_hidden": "head.hidden_dim",
    "head.dropout": "head.dropout",
    "model.head.fpn_dim": "head.fpn_dim",
    "model.head.num_levels": "head.num_levels",
    "model.head.use_cls_context": "head.use_cls_context",
    "model.backbone_layers.separate_bottlenecks": "head.use_separate_bottlenecks",
    "trainer.num_epochs": "optim.epochs",
    "trainer.batch_size": "optim.batch_size",
    "trainer.n_folds": "folds.count",
    "trainer.fold": "folds.only",
    "trainer.group_col": "folds.group",
    "optimization.lr": "optim.lr",
    "optimization.weight_decay": "optim.weight_decay",
    "optimization.warmup_rate": "optim.warmup",
    "optimization.ema_decay": "optim.ema_decay",
    "augmentation.mixup.alpha": "optim.mixup_alpha",
    "augmentation.mixup.disable_ratio": "optim.mixup_off_last",
}
"""Key of the old file -> key of the new one, where the value stays."""
UNUSED = (
    "experiment.name",
    "backbone.hidden_dim",
    "backbone.num_patches",
    "trainer.num_workers",
    "model.head.type",
    "model.head.layer_grouping",
    "optimization.ema_start_ratio",
)
"""Keys that are not read: widths and grids come from the tokens, and the average begins with the first step."""
DEFAULTS = {"epochs": 200, "batch_size": 32, "lr": 1e-4, "ema_decay": 0.997}
_TTA = {"[0]": "none", "[0, 1, 2, 3]": "flip4"}
_METHODS = {"INTER_AREA": "area", "INTER_LINEAR": "bilinear", "INTER_CUBIC": "bicubic"}


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a :class:`dinoneck.training.TrainConfig`.

    Args:
        values: of the old file, nested or with dotted keys.

    Raises:
        ConfigError: if a key is unknown, asks for what a training file cannot do, or a value is
            wrong.
    """
    old = flat(values)
    new: dict[str, Any] = {"data": {}, "optim": {**DEFAULTS}, "head": _head(old), "tasks": {}}
    for key, path in RENAMED.items():
        if (value := old.pop(key, None)) is not None:
            _put(new, path, [value] if path == "folds.group" else value)
    _switches(old, new)
    _tasks(old, new)
    if unknown := [key for key in old if key not in UNUSED]:
        raise ConfigError(f"{unknown[0]!r} is not a key of the published notebooks")
    new = {name: group for name, group in new.items() if group != {}}
    TrainConfig.from_dict(new)
    return new


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            flat(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return found


def _head(old: dict[str, Any]) -> dict[str, Any]:
    """The head's type."""
    head = {"type": "fpn" if any(key.startswith("model.") for key in old) else "cls_gating"}
    if old.pop("model.head.ndvi_dense", False):
        raise ConfigError(
            "model.head.ndvi_dense is true, but the old file names no NDVI maps; remove the key "
            "and name the column of the maps in the new file: data: {labels: COLUMN, label_kind: "
            "numbers}"
        )
    return head


def _switches(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Keys whose value is written in another way."""
    if old.pop("backbone.freeze", True) is False:
        raise ConfigError(
            "backbone.freeze is false; a run from a file trains heads on a frozen backbone"
        )
    if old.pop("backbone.pretrained", True) is False:
        _put(new, "backbone.random", True)
    if method := old.pop("dataset.resize_method", None):
        _put(new, "data.interpolation", _METHODS.get(method, method))
    enabled, layers = (
        old.pop(f"model.backbone_layers.{name}", None) for name in ("enabled", "indices")
    )
    if enabled:
        _put(new, "backbone.layers", layers)
    if (indices := old.pop("inference.tta_indices", None)) is not None:
        if str(indices) not in _TTA:
            raise ConfigError(
                f"inference.tta_indices is {indices}; expected one of {', '.join(_TTA)}"
            )
        _put(new, "data.tta", _TTA[str(indices)])
    for key, name in (
        ("augmentation.mixup.enabled", "mixup_alpha"),
        ("optimization.use_ema", "ema_decay"),
    ):
        if old.pop(key, True) is False:
            new["optim"][name] = None
    if old.pop("trainer.use_amp", False):
        new["optim"]["amp"] = "bf16"
    if (weighting := old.pop("loss.weighting", "fixed")) != "fixed":
        _put(new, "losses.weighting", {"uw": "uncertainty"}.get(weighting, weighting))


def _tasks(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Targets, and how each is trained: for CLS gating, the second notebook's tasks where the file names none."""
    targets, helping = (
        _listed(old.pop(f"dataset.{name}_cols", None)) for name in ("target", "aux_target")
    )
    in_grams = new["head"]["type"] == "cls_gating" and set(targets) <= WEIGHTS.keys()
    weights = old.pop("loss.main_weights", None)
    if in_grams and not targets:
        targets, helping = (
            ["Dry_Total_g", "GDM_g", "Dry_Green_g"],
            helping or ["Dry_Dead_g", "Dry_Clover_g"],
        )
    if in_grams and weights is None:
        weights = [
            {"Dry_Total_g": 1.0, "GDM_g": 0.6, "Dry_Green_g": 0.3}.get(name, 1.0)
            for name in targets
        ]
    if weights is not None and len(weights) != len(targets):
        raise ConfigError(
            f"loss.main_weights has {len(weights)} numbers for {len(targets)} targets"
        )
    own: dict[str, Any] = {"activation": "softplus"} if in_grams else {}
    if (beta := old.pop("loss.beta", None)) is not None or in_grams:
        own |= {"loss": "smooth_l1", "beta": float(beta or 1.0)}
    tasks = {
        name: {**own, **({} if weights is None else {"weight": weights[i]})}
        for i, name in enumerate(targets)
    }
    shared = _number(old.pop("loss.aux_weight", None)) / max(len(helping), 1)
    tasks |= {name: {**own, "auxiliary": True, "weight": shared} for name in helping}
    for name, column, task in (
        ("state", "State", {}),
        ("height", "Height_Ave_cm", {**own, "unit": "cm"}),
    ):
        weight = old.pop(f"loss.{name}_weight", None)
        if weight or (weight is None and in_grams):
            tasks[column] = {**task, "auxiliary": True, "weight": _number(weight)}
    new["tasks"] = {name: task for name, task in tasks.items() if task}
    if targets:
        _put(new, "data.targets", targets)


def _number(weight: float | None) -> float:
    return 0.1 if weight is None else weight


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *groups, name = path.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = value


if __name__ == "__main__":
    try:
        yaml.safe_dump(translate(read_yaml(sys.argv[1])), sys.stdout, sort_keys=False)
    except (DinoneckError, IndexError) as error:
        sys.exit(f"error: {error}; usage: python -m examples.biomass.keys OLD.yaml > NEW.yaml")
