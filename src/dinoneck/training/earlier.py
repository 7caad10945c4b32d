"""What a new training takes of the backbone in an earlier file (``init``), where its head starts from that file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinoneck.backbones import weights as weight_files
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint import compare
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.training.config import AnyConfig, HeadConfig

logger = logging.getLogger(__name__)


def lora_rank(checkpoint: HeadCheckpoint) -> int | None:
    """Return the rank of the LoRA weights that a file holds; None without."""
    if not checkpoint.adapter_state:
        return None
    return int(checkpoint.meta["backbone"]["adapter"]["rank"])


def start_backbone(backbone: Backbone, config: HeadConfig) -> bool:
    """Put the backbone weights of the file of ``config.init`` into a backbone that is trained along.

    Returns:
        Whether its LoRA weights were taken, which takes ``backbone.lora`` of their rank.

    Raises:
        CheckpointError: if the weights are of another backbone.
    """
    if config.init is None:
        return False
    checkpoint = HeadCheckpoint.load(config.init)
    if checkpoint.backbone_weights is not None:
        _load_all(backbone, checkpoint.backbone_weights, config.init)
    return start_lora(backbone, checkpoint, config)


def start_lora(backbone: Backbone, checkpoint: HeadCheckpoint, config: AnyConfig) -> bool:
    """Put the LoRA weights of a file into a backbone if the training has some of this rank; return whether.

    Raises:
        CheckpointError: if they are of another backbone.
    """
    rank = lora_rank(checkpoint)
    if rank is None or rank != config.backbone.lora:
        return False
    try:
        checkpoint.apply_adapter(backbone, trainable=True)
    except CheckpointError as error:
        raise _of_another(config.init, error) from error
    return True


def check_same_backbone(backbone: Backbone, checkpoint: HeadCheckpoint, path: str) -> None:
    """Compare a backbone with the one of a file, LoRA weights and layers aside.

    Raises:
        CheckpointError: if it is another one.
    """
    try:
        compare.check_records(
            _without_lora(checkpoint.meta["backbone"]),
            _without_lora(backbone.record()),
            layers=False,
        )
    except CheckpointError as error:
        raise _of_another(path, error) from error


def log_backbone(
    config: AnyConfig,
    record: Mapping[str, Any],
    *,
    has_tuned: bool | None = None,
) -> None:
    """Log what a training takes and leaves out of the backbone in the file of ``config.init``.

    Args:
        config: the run.
        record: of the run's backbone.
        has_tuned: whether the file holds weights of the ViT, but for LoRA; None = as a head's file
            holds them.
    """
    if config.init is None:
        return
    checkpoint = HeadCheckpoint.load(config.init)
    if has_tuned is None:
        has_tuned = checkpoint.backbone_weights is not None
    if has_tuned and config.is_live:
        logger.warning("init %s: its weights of the ViT are taken", config.init)
    elif has_tuned:
        logger.warning(
            "init %s: its weights of the ViT, which were trained along with its head, are left "
            "out, so the head starts on other tokens: this run trains no ViT. unfreeze_last: 1 "
            "(--unfreeze-last 1) takes them too",
            config.init,
        )
    rank = lora_rank(checkpoint)
    if rank is not None and rank == config.backbone.lora:
        logger.warning("init %s: its LoRA weights of rank %d are taken", config.init, rank)
    elif rank is not None:
        logger.warning(
            "init %s: its LoRA weights, which were trained along with its head, are left out, so "
            "the head starts on other tokens. lora: %d (--lora %d) takes them too",
            config.init,
            rank,
            rank,
        )
    _log_other_tokens(config.init, checkpoint, record, weights=not has_tuned)


def _log_other_tokens(
    path: str, checkpoint: HeadCheckpoint, record: Mapping[str, Any], *, weights: bool
) -> None:
    """Log that the head of a file was trained on the tokens of another backbone, or of other layers."""
    trained = checkpoint.meta["backbone"]
    if trained is None:
        return
    try:
        compare.check_records(_without_lora(trained), _without_lora(record), weights=weights)
    except CheckpointError as error:
        logger.warning("init %s: the head starts on other tokens: %s", path, error)


def _without_lora(record: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's record as of one without LoRA weights."""
    return {**record, "adapter": None}


def _load_all(backbone: Backbone, state: Mapping[str, Tensor], path: str) -> None:
    """Load all weights of a ViT by the names of its model."""
    try:
        weight_files.load_state(backbone.adapter.model, state, path)
    except BackboneError as error:
        raise _of_another(path, error) from error


def _of_another(path: object, error: Exception) -> CheckpointError:
    """The error for a file whose backbone is another one than the run's."""
    return CheckpointError(
        f"init is {path}, whose head was trained along with another ViT than this run's: {error}",
        step="pairing",
    )
