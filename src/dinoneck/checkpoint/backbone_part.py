"""The part of a backbone that goes into a file: one rule for heads and detectors.

When a file is written, the backbone's present weights are hashed and compared with those that its
record names. What differs is written, or the file is refused: a head whose backbone is in no file
could never be used again. A head's file holds all weights or none; a detector's file holds those
that differ. LoRA weights travel with both, unless they are switched off at the moment.

Weights that were trained before the model was wrapped count as the model's own: whoever uses the
file passes that model. Rotary frequencies are in no hash, see :mod:`dinoneck.backbones.rotary`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinoneck.backbones import lora, rotary, weight_hashes
from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.backbones.vit_files import is_of_classifier
from dinoneck.checkpoint.lora_weights import lora_of
from dinoneck.checkpoint.origins import is_changed
from dinoneck.checkpoint.schema import NAMED, describe_weights
from dinoneck.errors import CheckpointError
from dinoneck.text import reason_of, some_of
from dinoneck.torch_wrappers import without_leading

MODEL = "adapter.model."
"""What the names of a model's weights begin with in the state dict of its Backbone."""
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class BackbonePart:
    """The part of a backbone that goes into the file of a head.

    Attributes:
        record: of the backbone; None where it is not recorded.
        lora: its LoRA weights, by the names of :func:`dinoneck.backbones.lora.state`.
        weights: all its other weights, by the names of its model; empty = they are not in the file.
    """

    record: dict[str, Any] | None
    lora: dict[str, Tensor]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class DetectorPart:
    """The part of a backbone that goes into the file of a detector.

    Attributes:
        record: of the backbone before its training.
        lora: its LoRA weights, by the names of :func:`dinoneck.backbones.lora.state`.
        tuned: the weights that differ from the record's, by the names of the model; they are
            written among the detector's own.
    """

    record: dict[str, Any]
    lora: dict[str, Tensor]
    tuned: dict[str, Tensor]


def part_for_head(
    backbone: Backbone | Mapping[str, Any] | None, weights: Mapping[str, Tensor] | None
) -> BackbonePart:
    """Return what the file of a head holds of its backbone.

    Args:
        backbone: the backbone, without the wrappers of torch, or a plain record, or None.
        weights: all its weights, by the names of its model or of its Backbone; None = they are not
            written.

    Raises:
        CheckpointError: if its weights were changed and are not given, or hold those of a
            classifier, and for LoRA weights that are named by a mere record.
    """
    state = plain_state(weights or {})
    if not isinstance(backbone, Backbone):
        record = None if backbone is None else dict(backbone)
        if record is not None and not state:
            _check_found_elsewhere(record, is_record=True)
        return BackbonePart(record, lora=lora_of(backbone), weights=state)
    forget_hashes(backbone)
    record = record_of(backbone)
    if state:
        _check_can_be_built(state)
        state |= rotary.changed_buffers(backbone.adapter.model)
    else:
        _check_found_elsewhere(record, is_record=False)
        _check_rotary(backbone)
    return BackbonePart(record, lora=lora_of(backbone), weights=state)


def record_of(backbone: Backbone) -> dict[str, Any]:
    """Return a backbone's record with its functional probe; a backbone without values has none.

    Raises:
        CheckpointError: if its outputs are not finite, or it fails.
    """
    record = backbone.record()
    if record["weights_sha256"] is None:
        return record
    try:
        probe = backbone.probe()
    except Exception as error:  # a layer that was exchanged may raise anything
        raise CheckpointError(
            f"the backbone {backbone.name!r} fails with an image: {reason_of(error)}; its model was "
            "changed after it was wrapped: wrap_backbone(model) names what it lacks",
            step="write",
        ) from error
    if not all(math.isfinite(number) for number in probe):
        raise CheckpointError(
            f"the backbone {backbone.name!r} gives values that are not finite; check its weights",
            step="write",
        )
    return {**record, "probe": probe}


def part_for_detector(
    backbone: Backbone, *, trained: Collection[str], record: Mapping[str, Any] | None
) -> DetectorPart:
    """Return what the file of a detector holds of its backbone: the record of before its training, and what differs.

    Args:
        backbone: the detector's.
        trained: names of weights that are written even if they are unchanged.
        record: of the backbone before its training, where the user gave one; None = as it was
            loaded.
    """
    forget_hashes(backbone)
    adapter = backbone.adapter
    base = base_record(backbone)
    state = weight_hashes.base_state(adapter)
    changed = weight_hashes.changed_tensors(adapter)
    names = {*trained, *changed} & state.keys()
    recorded: Mapping[str, Any] = base
    if record is not None and not is_changed(record):
        if record.get("weights_sha256") != base["weights_sha256"]:
            # any parameter may differ from the weights that the user's record states; buffers are
            # as the model is built, or were changed
            recorded = record or base  # an empty one states nothing
            parameters = lora.base_state(dict(adapter.model.named_parameters()))
            names.update(parameters.keys() & state.keys())
    lora_weights = lora_of(backbone)
    lora_record = lora.record(adapter) if lora_weights else None
    tuned = {name: state[name] for name in sorted(names)}
    return DetectorPart(
        record={**recorded, "adapter": lora_record},
        lora=lora_weights,
        tuned=tuned | _lost_frequencies(backbone),
    )


def changed_weights(backbone: Any) -> dict[str, Tensor] | None:
    """Return all weights of a backbone that was changed since it was loaded, by the names of its model, else None."""
    plain = plain_backbone(backbone)
    if not isinstance(plain, Backbone):
        return None
    forget_hashes(plain)
    if not is_changed(plain.record()):
        return None
    return weight_hashes.base_state(plain.adapter)


def base_record(backbone: Backbone) -> dict[str, Any]:
    """Return the record of a backbone as it was loaded or wrapped, before anything of it was trained."""
    record = backbone.record()
    record["adapter"] = None
    adapter = backbone.adapter
    original = adapter.history.original
    hashes = weight_hashes.current_hashes(adapter)
    if "fingerprint" in record:
        record["fingerprint"] = hashes.base_fingerprint
    is_comparable = weight_hashes.is_comparable(adapter, hashes)
    if original is None or not is_comparable or weight_hashes.is_original(adapter, hashes):
        return record
    record["weights"] = weight_hashes.unchanged_origin(record["weights"])
    record["weights_sha256"] = original.weights_sha256
    record["dtype"] = original.dtype
    record.pop("fingerprint", None)
    if original.dtype != "float32":
        record["fingerprint"] = None  # the float32 weights that these were cast from are not known
    return record


def forget_hashes(backbone: Backbone) -> None:
    """Have the weights hashed again, because torch does not count what is written through ``.data``."""
    weight_hashes.forget(backbone.adapter)


def plain_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of the model, without LoRA weights.

    The prefixes of a Backbone and of torch's wrappers are taken off.
    """
    named = {name_in_model(str(name)): value for name, value in weights.items()}
    return lora.base_state(named)


def name_in_model(name: str) -> str:
    """Return the name that a weight of a Backbone has in its model."""
    return without_leading(name).removeprefix(MODEL)


def _lost_frequencies(backbone: Backbone) -> dict[str, Tensor]:
    """The rotary frequencies that were changed after the model was built by its name alone."""
    kind = weight_hashes.unchanged_origin(backbone.weights)["kind"]
    if backbone.adapter.source != "timm" or kind not in NAMED:
        return {}
    return rotary.changed_buffers(backbone.adapter.model)


def _check_rotary(backbone: Backbone) -> None:
    """Raise a CheckpointError for rotary frequencies that neither the model's name nor a file gives."""
    lost = _lost_frequencies(backbone)
    if lost:
        [name] = lost  # a model has one buffer of frequencies
        raise CheckpointError(
            f"{name} of the backbone {backbone.name!r} holds other values than the model is built "
            "with, and these are in no file, so the head could not be used later: pass "
            "backbone_weights=backbone.state_dict()",
            step="write",
        )


def _check_can_be_built(state: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError for weights from which the ViT cannot be built again, as they hold a classifier's."""
    names = [name for name in state if is_of_classifier(name)]
    if names:
        raise CheckpointError(
            f"the backbone's weights hold {some_of(names, _SHOWN)}, which are of a classifier and "
            "not of the ViT, so the backbone could not be loaded from the file; take it off "
            "(model.reset_classifier(0) of the model that was wrapped), and save again",
            step="write",
        )


def _check_found_elsewhere(record: Mapping[str, Any], *, is_record: bool) -> None:
    """Raise a CheckpointError for a record of weights that were trained in memory, which no file of theirs holds."""
    if not is_changed(record):
        return
    name = record.get("name")
    weights = "the state dict of that backbone" if is_record else "backbone.state_dict()"
    raise CheckpointError(
        f"the backbone {name!r} has {describe_weights(record['weights'])}, and these are in no "
        f"file, so the head could not be used later: pass backbone_weights={weights}, or save them "
        "on their own (backbone.save_weights(FILE)) and pass the backbone that is loaded from that file",
        step="write",
    )
