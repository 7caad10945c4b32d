"""What a training of boxes or masks starts from: a published RF-DETR, or one that was fine-tuned before."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import torch

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.detection.detector import Detector, Publication
from dinoneck.errors import ConfigError
from dinoneck.published.detectors import PublishedDetector
from dinoneck.published.loading import load_published
from dinoneck.published.table import is_published, row_named
from dinoneck.registry import WITH_OWN_VIT
from dinoneck.training.config import (
    BoxesDataConfig,
    HeldOutConfig,
    InstancesDataConfig,
    TrainDetectorConfig,
    TrainInstancesConfig,
)
from dinoneck.training.recipe import DetectorRecipe, Recipe, has_flag

if TYPE_CHECKING:
    from dinoneck.detection.rf_detr import RfDetr

FROZEN_PLAN = {0: "all"}  # epoch -> what is frozen of its ViT, unless the config says it
# what the publisher trains with, of the options that other detectors have other defaults of
# (rfdetr/main.py and config.py)
PUBLISHED_RECIPE = {"lr": 1e-4, "weight_decay": 1e-4, "clip_norm": 0.1}
# key -> flag of what an RF-DETR has of its own; empty: it stands in training files alone
_WITHOUT_EFFECT = {
    "backbone.name": "--backbone",
    "backbone.source": "--backbone-source",
    "backbone.file": "--backbone-file",
    "backbone.random": "--random-backbone",
    "backbone.seed": "--backbone-seed",
    "backbone.layers": "--layers",
    "backbone.license": "--backbone-license",
    "head": "--head, --hidden-dim",
    "detector.name": "--detector",
    "detector.variant": "--variant",
    "detector.features_at": "",
    "detector.queries": "--queries",
    "detector.encoder_layers": "--encoder-layers",
    "detector.checkpointing": "--checkpointing",
}
# key -> flag of what only heads of objects have; empty: it stands in training files alone
_OF_HEADS = {
    "data.panoptic": "--panoptic",
    "data.resize": "--resize",
    "data.pad_to": "",
    "data.interpolation": "",
    "data.blur": "",
    "folds.only": "--fold",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialDetector:
    """An RF-DETR that a training starts from.

    Attributes:
        name: as ``init`` names it.
        model: with its weights.
        size: (height, width) of the images that it takes, in pixels.
        license: of its weights; None if none is known.
        origin: its name, licence, where that was read, and SHA-256 (of an own file its digest), as
            the trained file and the report hold them.
    """

    name: str
    model: RfDetr
    size: tuple[int, int]
    license: str | None
    origin: dict[str, Any]

    def completed(
        self, config: TrainDetectorConfig, stated: Collection[str] = ()
    ) -> TrainDetectorConfig:
        """Return the config with the size of this detector where it has none, and the recipe of its publisher.

        Of that recipe the values in ``PUBLISHED_RECIPE`` take the place of those that equal the
        defaults of other detectors; :meth:`log_recipe` says which.

        Args:
            config: of the training.
            stated: names of values of ``optim`` that stay as they are, defaults too.

        Raises:
            ConfigError: naming an option that has no effect with it.
        """
        if config.backbone.lora is not None:
            raise ConfigError(
                f"backbone.lora is {config.backbone.lora}, and the ViT of {self.name} takes no LoRA "
                "weights; train its last blocks with backbone.unfreeze_last (--unfreeze-last)"
            )
        defaults = TrainDetectorConfig(data=config.data)
        for key, flag in _WITHOUT_EFFECT.items():
            value = attrgetter(key)(config)
            if value != attrgetter(key)(defaults):
                raise ConfigError(
                    f"{key} is {value!r}, and has no effect with init {self.name}, which has a ViT, "
                    f"a neck and a decoder of its own; {_leave_out(flag)}"
                )
        _check_rates_used(config)
        data = config.data
        if data.size is None:
            data = data.changed(size=self.size)
        recipe = {}
        for name, value in PUBLISHED_RECIPE.items():
            is_default = getattr(config.optim, name) == getattr(defaults.optim, name)
            if is_default and name not in stated:
                recipe[name] = value
        return config.changed(data=data, optim=config.optim.changed(**recipe))

    def build(self, config: TrainDetectorConfig, classes: Sequence[str]) -> Detector:
        """Return a detector of these classes with the weights of this one; the seed decides those of new classes.

        Raises:
            ConfigError: if it does not take images of the size.
        """
        torch.manual_seed(config.optim.seed)
        model = self.model.with_classes(classes)
        size = cast("tuple[int, int]", config.data.size)
        detector = Detector(model, None, size, bits=config.data.bits)
        detector.publication = Publication(self.license, extra={"init": self.origin})
        return detector

    def log_recipe(self, given: DetectorRecipe, completed: DetectorRecipe) -> None:
        """Log the values of the publisher's recipe that :meth:`completed` has taken, if any."""
        taken = []
        defaults = []
        for name in PUBLISHED_RECIPE:
            if getattr(completed, name) != getattr(given, name):
                taken.append(f"{name} {getattr(completed, name):g}")
                defaults.append(f"{getattr(given, name):g}")
        if taken:
            _logger.warning(
                "init %s: trained with its publisher's %s, in place of %s, which are the defaults of "
                "other detectors; values that are stated are taken as they are",
                self.name,
                ", ".join(taken),
                ", ".join(defaults),
            )

    def log_start(self, detector: Detector) -> None:
        """Log which tensors of a detector are those of this one."""
        model = cast("RfDetr", detector.head)
        num_tensors = len(model.state_dict())
        if model is self.model:
            _logger.warning("init %s: all %d tensors are taken", self.name, num_tensors)
            return
        heads = model.class_heads()
        kept = [label for label in model.classes if label in self.model.classes]
        new = [label for label in model.classes if label not in self.model.classes]
        rows = []
        if kept:
            rows.append(f"rows are taken for {', '.join(kept)}")
        if new:
            rows.append(f"rows are new for {', '.join(new)}")
        _logger.warning(
            "init %s: %d of %d tensors are taken; in the %d of the class heads (such as %s) %s",
            self.name,
            num_tensors - len(heads),
            num_tensors,
            len(heads),
            heads[-1],
            ", and ".join(rows),
        )


def _leave_out(flag: str) -> str:
    """The remedy for an option without effect; one without a flag stands in a training file."""
    return f"leave it out ({flag})" if flag else "leave it out of the training file"


def _check_rates_used(config: TrainDetectorConfig) -> None:
    """Raise a ConfigError for a learning rate of the ViT where no epoch trains it."""
    plan = config.plan or FROZEN_PLAN
    if any(stage != "all" for stage in plan.values()):
        return
    for name in ("backbone_lr", "layer_decay"):
        value = getattr(config.optim, name)
        if value is not None:
            raise ConfigError(
                f"optim.{name} is {value}, and needs a ViT that is trained along (--unfreeze-last or "
                "--freeze); or leave it out"
            )


def detector_training(
    config: TrainInstancesConfig, initial: InitialDetector
) -> TrainDetectorConfig:
    """Return the training of a detector that a training of objects describes by its ``init``.

    Raises:
        ConfigError: if the detector gives no masks, or an option has no effect on detectors.
    """
    if not initial.model.has_masks:
        raise ConfigError(
            f"init is {initial.name!r}, which gives boxes alone; take a detector of masks, such as "
            "rf_detr_seg_small, or train boxes with data.boxes (--boxes)"
        )
    defaults = TrainInstancesConfig(
        data=InstancesDataConfig(instances=config.data.instances or "-")
    )
    unused = dict(_OF_HEADS)
    hints = get_type_hints(Recipe, include_extras=True)
    for key in Recipe.__struct_fields__:
        if key not in DetectorRecipe.__struct_fields__:
            flag = f"--{key.replace('_', '-')}"
            unused[f"optim.{key}"] = flag if has_flag(hints[key]) else ""
    for key, flag in unused.items():
        value = attrgetter(key)(config)
        if value != attrgetter(key)(defaults):
            raise ConfigError(
                f"{key} is {value!r}, and has no effect with init {initial.name}, a detector; "
                f"{_leave_out(flag)}"
            )
    data = config.data
    optim = {key: getattr(config.optim, key) for key in DetectorRecipe.__struct_fields__}
    return TrainDetectorConfig(
        data=BoxesDataConfig(
            boxes=str(data.instances),
            images=data.images,
            size=data.size,
            classes=data.classes,
            bits=data.bits,
            crowd=data.crowd,
            tile=data.tile,
            overlap=data.overlap,
        ),
        backbone=config.backbone,
        head=config.head,
        optim=DetectorRecipe(**optim),
        folds=HeldOutConfig(count=config.folds.count),
        init=config.init,
        weights=config.weights,
        license=config.license,
        imports=config.imports,
        device=config.device,
    )


def open_init(config: TrainDetectorConfig | TrainInstancesConfig) -> InitialDetector | None:
    """Open the RF-DETR that a config names as ``init``; None if it names none, or another head or detector.

    Raises:
        ConfigError: if it is a published head, or weights are named for another file.
        CheckpointError: if the file cannot be used.
    """
    name = config.init
    if name is None or not is_published(name, has_weights=config.weights is not None):
        if config.weights is not None:
            raise ConfigError(
                f"weights is {config.weights}, which is for a published detector, and init is "
                f"{name!r}; name one with init (--init rf_detr_small), or leave weights out"
            )
        return None if name is None else _open_file(name)
    row = row_named(name)
    if not isinstance(row, PublishedDetector):
        raise ConfigError(
            f"init is {name!r}, a published head of {row.task}; expected a published detector, such "
            "as rf_detr_small, or a file"
        )
    checkpoint = load_published(name, weights=config.weights)
    published = checkpoint.meta["extra"]
    origin = {
        "name": name,
        "license": row.licence,
        "license_source": row.licence_source,
        "sha256": published["sha256"],
        "url": published["url"],
    }
    return _initial(name, checkpoint, origin)


def _open_file(name: str) -> InitialDetector | None:
    """Open the file of an RF-DETR; None if it is one of another detector."""
    checkpoint = HeadCheckpoint.load(name)
    if checkpoint.head_type not in WITH_OWN_VIT:
        return None
    origin = {
        "name": Path(name).name,
        "license": checkpoint.meta["license"],
        "digest": checkpoint.meta["digest"],
    }
    earlier = checkpoint.meta["extra"]
    if earlier:
        origin["extra"] = earlier  # what it was made from
    return _initial(name, checkpoint, origin)


def _initial(name: str, checkpoint: HeadCheckpoint, origin: dict[str, Any]) -> InitialDetector:
    """The detector of a checkpoint, in float32, in which it is trained."""
    detector = Detector.from_checkpoint(checkpoint).float()
    model: Any = detector.head
    return InitialDetector(
        name=name,
        model=model,
        size=detector.size,
        license=checkpoint.meta["license"],
        origin=origin,
    )
