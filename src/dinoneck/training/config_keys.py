"""The keys of a training file: which value each one sets, and what that value may be."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dinoneck.training.config_values import (
    COUNT,
    INTERPOLATION,
    SEED,
    SHARE,
    SIZE,
    SWITCH,
    TEXT,
    TEXTS,
    Kind,
    number,
    one_of,
    several,
    whole,
)

HEADS = ("patch_mean", "fpn", "cls_gating", "dense")
_POSITIVE, _WEIGHT = number(0, above=True), number(0)
_DECAY = Kind("a number of 0 or more and below 1", lambda value: SHARE.fits(value) and value < 1, float)
_PRECISION = Kind(
    "bf16, fp16, true (bf16) or false",
    lambda value: isinstance(value, bool) or (isinstance(value, str) and value in ("bf16", "fp16")),
)
_FLIPS = {(0,): "none", (0, 1, 2, 3): "flip4"}
_VIEWS = Kind(
    "[0] (the photo as it is) or [0, 1, 2, 3] (and its flips)",
    lambda value: isinstance(value, list | tuple) and str(tuple(value)) in map(str, _FLIPS),
    lambda value: _FLIPS[tuple(value)],
)

RECIPE: Mapping[str, Kind] = MappingProxyType(
    {
        "optimizer": one_of("adamw", "sam"),
        "rho": _POSITIVE,
        "weight_decay": _WEIGHT,
        "warmup": _DECAY,
        "min_lr": _WEIGHT,
        "ema_decay": _DECAY.or_null(),
        "ema_start": SHARE,
        "amp": _PRECISION.or_null(),
        "clip_norm": _POSITIVE.or_null(),
        "standardise_tokens": SWITCH,
        "ridge_blend": SHARE,
        "mixup_alpha": _POSITIVE.or_null(),
        "mixup_off_last": SHARE,
        "cutmix_alpha": _POSITIVE.or_null(),
        "patience": COUNT.or_null(),
        "backbone_lr": _POSITIVE.or_null(),
        "save_steps": COUNT.or_null(),
    }
)
"""The fields of :class:`dinoneck.training.Recipe`, each a key ``recipe.NAME``."""

KEYS: Mapping[str, tuple[str, Kind]] = MappingProxyType(
    {
        "experiment.name": ("name", TEXT),
        "experiment.seed": ("seed", SEED),
        "backbone.model_name": ("backbone", TEXT),
        "backbone.pretrained": ("pretrained", SWITCH),
        "backbone.freeze": ("freeze", SWITCH),
        "backbone.hidden_dim": ("embed_dim", COUNT),
        "backbone.num_patches": ("num_patches", COUNT),
        "backbone.source": ("backbone_source", one_of("timm", "transformers")),
        "backbone.checkpoint": ("backbone_file", TEXT),
        "backbone.seed": ("backbone_seed", SEED),
        "backbone.layers": ("layers", several(whole(-1000, 1000), "block indices")),
        "dataset.csv": ("csv", TEXT),
        "dataset.image_dir": ("photos", TEXT),
        "dataset.image_col": ("image_column", TEXT),
        "dataset.img_size": ("image_size", SIZE),
        "dataset.resize_method": ("interpolation", INTERPOLATION),
        "dataset.fit": ("fit", one_of("stretch", "keep", "crop", "pad")),
        "dataset.policy": ("policy", one_of("error", "crop", "pad", "resize")),
        "dataset.feature_dir": ("store", TEXT),
        "dataset.num_aug_patterns": ("patterns", COUNT),
        "dataset.target_cols": ("targets", TEXTS),
        "dataset.aux_target_cols": ("aux_targets", TEXTS),
        "dataset.state_col": ("state_column", TEXT),
        "dataset.height_col": ("height_column", TEXT),
        "dataset.label_col": ("label_column", TEXT),
        "dataset.classes": ("classes", TEXTS),
        "dataset.unit": ("unit", TEXT),
        "dataset.minimum": ("minimum", number()),
        "head.type": ("head", one_of(*HEADS)),
        "head.shared_hidden": ("hidden_dim", COUNT),
        "head.hidden_dim": ("hidden_dim", COUNT),
        "head.dropout": ("dropout", _DECAY),
        "head.mode": ("gate", one_of("mlp", "query", "resized")),
        "head.activation": ("activation", one_of("relu", "softplus", "sigmoid")),
        "loss.beta": ("beta", _POSITIVE),
        "loss.main_weights": ("main_weights", several(_WEIGHT, "numbers of 0 or more")),
        "loss.state_weight": ("state_weight", _WEIGHT),
        "loss.height_weight": ("height_weight", _WEIGHT),
        "loss.aux_weight": ("aux_weight", _WEIGHT),
        "loss.weighting": ("weighting", one_of("fixed", "uw")),
        "trainer.num_epochs": ("epochs", COUNT),
        "trainer.batch_size": ("batch_size", COUNT),
        "trainer.use_amp": ("recipe.amp", SWITCH),
        "trainer.n_folds": ("folds", whole(2, 1_000_000)),
        "trainer.fold": ("fold", whole(0, 1_000_000).or_null()),
        "trainer.group_col": ("group_columns", TEXTS),
        "trainer.patience": ("recipe.patience", RECIPE["patience"]),
        "trainer.device": ("device", TEXT),
        "optimization.optimizer": ("recipe.optimizer", RECIPE["optimizer"]),
        "optimization.rho": ("recipe.rho", _POSITIVE),
        "optimization.lr": ("lr", _POSITIVE),
        "optimization.weight_decay": ("recipe.weight_decay", _WEIGHT),
        "optimization.warmup_rate": ("recipe.warmup", _DECAY),
        "optimization.use_ema": ("ema", SWITCH),
        "optimization.ema_decay": ("recipe.ema_decay", RECIPE["ema_decay"]),
        "optimization.ema_start_ratio": ("recipe.ema_start", SHARE),
        "optimization.clip_norm": ("recipe.clip_norm", RECIPE["clip_norm"]),
        "augmentation.mixup.enabled": ("mixup", SWITCH),
        "augmentation.mixup.alpha": ("recipe.mixup_alpha", RECIPE["mixup_alpha"]),
        "augmentation.mixup.disable_ratio": ("recipe.mixup_off_last", SHARE),
        "inference.tta_indices": ("tta", _VIEWS),
        "inference.tta": ("tta", one_of("none", "flip4", "d6")),
        **{f"recipe.{name}": (f"recipe.{name}", kind) for name, kind in RECIPE.items()},
    }
)
"""Dotted key -> the field of :class:`dinoneck.training.TrainingConfig` that it sets, and the kind of its value."""

FPN_KEYS: Mapping[str, Kind] = MappingProxyType(
    {
        "model.head.type": one_of("fpn"),
        "model.head.fpn_dim": COUNT,
        "model.head.num_levels": COUNT,
        "model.head.layer_grouping": one_of("auto", "explicit"),
        "model.head.use_cls_context": SWITCH,
        "model.head.ndvi_dense": SWITCH,
        "model.backbone_layers.enabled": SWITCH,
        "model.backbone_layers.indices": several(whole(0, 1000), "block indices"),
        "model.backbone_layers.separate_bottlenecks": SWITCH,
        "fpn.layer_groups": several(several(whole(0, 1000), "positions"), "lists of positions"),
    }
)
"""The keys of the FPN design source but ``loss.weighting``; :mod:`dinoneck.training.fpn_yaml` makes a head of them."""

IGNORED: Mapping[str, str] = MappingProxyType(
    {"trainer.num_workers": "tokens are read in the process itself, so there are no workers and it is not used"}
)
"""Keys that are taken and change nothing, and why; each is logged."""
