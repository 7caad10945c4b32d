"""Translate training files with the keys of two published notebooks to those of ``TrainConfig``.

``python -m examples.biomass.keys OLD.yaml > NEW.yaml``. What the file leaves out gets the second
notebook's values.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

from dinoneck.demo.pasture import WEIGHTS
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
    "optimization.ema_start_ratio": "optim.ema_start",
    "augmentation.mixup.alpha": "optim.mixup_alpha",
    "augmentation.mixup.disable_ratio": "optim.mixup_off_last",
}
"""Key of the old file -> key of the new one, where the value stays."""
UNUSED = (
    "experiment.name",
    "backbone.hidden_dim",
    "backbone.num_patches",
    "trainer.num_workers",
)
"""Keys that are not read: widths and grids come from the tokens."""
DEFAULTS = {"epochs": 200, "batch_size": 32, "lr": 1e-4, "ema_decay": 0.997}
_TTA = {"[0]": "none", "[0, 1, 2, 3]": "flip4"}
_METHODS = {"INTER_AREA": "area", "INTER_LINEAR": "bilinear", "INTER_CUBIC": "bicubic"}
_WEIGHTINGS = {"uw": "uncertainty"}
# of the second notebook: target -> weight of its loss, the targets that only help, and the weight
# of all these together, of the state and of the height
_MAIN_WEIGHTS = {"Dry_Total_g": 1.0, "GDM_g": 0.6, "Dry_Green_g": 0.3}
_AUXILIARY = ("Dry_Dead_g", "Dry_Clover_g")
_AUXILIARY_WEIGHT = 0.1


def translate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a :class:`dinoneck.training.TrainConfig`.

    Args:
        values: of the old file, nested or with dotted keys.

    Raises:
        ConfigError: if a key is unknown, asks for what a training file cannot do, or a value is
            wrong.
    """
    # what is read is taken from the old keys
    old = flat(values)
    new: dict[str, Any] = {
        "data": {},
        "optim": dict(DEFAULTS),
        "head": _take_head(old),
        "tasks": {},
    }
    for key, path in RENAMED.items():
        value = old.pop(key, None)
        if value is not None:
            _put(new, path, [value] if path == "folds.group" else value)
    _move_layers(old, new)
    _move_switches(old, new)
    _move_tasks(old, new)

    for key in old:
        if key not in UNUSED:
            raise ConfigError(f"{key!r} is not a key of the published notebooks")
    new = {name: group for name, group in new.items() if group != {}}
    TrainConfig.from_dict(new)
    return new


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            dotted |= flat(value, f"{prefix}{key}.")
        else:
            dotted[f"{prefix}{key}"] = value
    return dotted


def _take_head(old: dict[str, Any]) -> dict[str, Any]:
    """The head's type, which the keys of the second notebook's pyramid tell."""
    is_pyramid = any(key.startswith("model.") for key in old)
    type_name = old.pop("model.head.type", "fpn")
    if type_name != "fpn":
        raise ConfigError(
            f"model.head.type is {type_name!r}; the published files have 'fpn'; write another head "
            "into the new file: head: {type: NAME}"
        )
    if old.pop("model.head.ndvi_dense", False):
        raise ConfigError(
            "model.head.ndvi_dense is true, but the old file names no NDVI maps; remove the key "
            "and name the column of the maps in the new file: data: {labels: COLUMN, label_kind: "
            "numbers}"
        )
    return {"type": "fpn" if is_pyramid else "cls_gating"}


def _move_switches(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Move the keys whose value is written in another way."""
    if old.pop("backbone.freeze", True) is False:
        raise ConfigError(
            "backbone.freeze is false, and the old file does not say how many blocks are trained; "
            "remove the key and name them in the new file: backbone: {unfreeze_last: N} "
            "(--unfreeze-last N), or LoRA weights: backbone: {lora: RANK} (--lora RANK)"
        )
    if old.pop("backbone.pretrained", True) is False:
        _put(new, "backbone.random", True)
    method = old.pop("dataset.resize_method", None)
    if method:
        _put(new, "data.interpolation", _METHODS.get(method, method))
    indices = old.pop("inference.tta_indices", None)
    if indices is not None:
        if str(indices) not in _TTA:
            raise ConfigError(
                f"inference.tta_indices is {indices}; expected one of {', '.join(_TTA)}"
            )
        _put(new, "data.tta", _TTA[str(indices)])
    if old.pop("augmentation.mixup.enabled", True) is False:
        new["optim"]["mixup_alpha"] = None
    if old.pop("optimization.use_ema", True) is False:
        new["optim"]["ema_decay"] = None
        new["optim"].pop("ema_start", None)
    if old.pop("trainer.use_amp", False):
        new["optim"]["amp"] = "bf16"
    weighting = old.pop("loss.weighting", "fixed")
    if weighting != "fixed":
        _put(new, "losses.weighting", _WEIGHTINGS.get(weighting, weighting))


def _move_layers(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Move the blocks that are read, and which of them make each level of the pyramid.

    The old file groups indices of blocks, and the new one positions in the list of blocks.
    """
    is_enabled = old.pop("model.backbone_layers.enabled", None)
    indices = old.pop("model.backbone_layers.indices", None)
    layers = list(indices or ()) if is_enabled else []
    if layers:
        _put(new, "backbone.layers", layers)
    grouping = old.pop("model.head.layer_grouping", "auto")
    groups = old.pop("model.head.layer_groups", old.pop("fpn.layer_groups", None))
    if grouping not in ("auto", "explicit"):
        raise ConfigError(f"model.head.layer_grouping is {grouping!r}; expected auto or explicit")
    if grouping == "auto" and groups is not None:
        raise ConfigError(
            f"layer_groups are {groups}, and model.head.layer_grouping is auto; set it to explicit, "
            "or leave the groups out"
        )
    if grouping == "auto":
        return
    if groups is None:
        raise ConfigError(
            "model.head.layer_grouping is explicit, and the groups are missing; name the blocks of "
            "each level: model.head.layer_groups: [[2], [5], [8, 11]]"
        )
    positions = []
    for group in groups:
        for block in group:
            if layers.count(block) != 1:
                raise ConfigError(
                    f"layer_groups name block {block}, and model.backbone_layers reads "
                    f"{layers or 'the last block alone'}; group the blocks that are read"
                )
        positions.append([layers.index(block) for block in group])
    _put(new, "head.layer_groups", positions)


def _move_tasks(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Move the targets, and how each is trained.

    For CLS gating, the second notebook's tasks where the file names none.
    """
    targets = _listed(old.pop("dataset.target_cols", None))
    auxiliary = _listed(old.pop("dataset.aux_target_cols", None))
    weights = old.pop("loss.main_weights", None)
    in_grams = new["head"]["type"] == "cls_gating" and set(targets) <= WEIGHTS.keys()
    if in_grams and not targets:
        targets = list(_MAIN_WEIGHTS)
        auxiliary = auxiliary or list(_AUXILIARY)
    if in_grams and weights is None:
        weights = [_MAIN_WEIGHTS.get(name, 1.0) for name in targets]
    if weights is not None and len(weights) != len(targets):
        raise ConfigError(
            f"loss.main_weights has {len(weights)} numbers for {len(targets)} targets"
        )

    # what tasks of numbers have in common
    common: dict[str, Any] = {}
    if in_grams:
        common["activation"] = "softplus"
    beta = old.pop("loss.beta", None)
    if beta is not None or in_grams:
        common["loss"] = "smooth_l1"
        common["beta"] = 1.0 if beta is None else float(beta)

    tasks: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(targets):
        tasks[name] = dict(common)
        if weights is not None:
            tasks[name]["weight"] = weights[i]
    auxiliary_weight = _or_default(old.pop("loss.aux_weight", None)) / max(len(auxiliary), 1)
    for name in auxiliary:
        tasks[name] = {**common, "auxiliary": True, "weight": auxiliary_weight}
    state_weight = old.pop("loss.state_weight", None)
    if state_weight or (state_weight is None and in_grams):
        tasks["State"] = {"auxiliary": True, "weight": _or_default(state_weight)}
    height_weight = old.pop("loss.height_weight", None)
    if height_weight or (height_weight is None and in_grams):
        weight = _or_default(height_weight)
        tasks["Height_Ave_cm"] = {**common, "unit": "cm", "auxiliary": True, "weight": weight}
    new["tasks"] = {name: task for name, task in tasks.items() if task}
    if targets:
        _put(new, "data.targets", targets)


def _or_default(weight: float | None) -> float:
    """The weight of an auxiliary loss, or that of the second notebook."""
    return _AUXILIARY_WEIGHT if weight is None else weight


def _listed(names: Any) -> list[str]:
    """The names of columns: none, one or a list of them."""
    if isinstance(names, str):
        return [names]
    return list(names or ())


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value of a dotted key in nested mappings."""
    *groups, name = path.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[name] = value


if __name__ == "__main__":
    try:
        yaml.safe_dump(translate(read_yaml(sys.argv[1])), sys.stdout, sort_keys=False)
    except (DinoneckError, IndexError) as error:
        sys.exit(f"error: {error}; usage: python -m examples.biomass.keys OLD.yaml > NEW.yaml")
