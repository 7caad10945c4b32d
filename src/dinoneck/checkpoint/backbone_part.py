"""What of a backbone goes into a file: one rule for heads and detectors.

When a file is written, the backbone's present weights are hashed and compared with those that its
record names. What differs is written, or the file is refused: a head whose backbone is in no file
could never be used again. LoRA weights always travel. A head's file holds all other weights or
none; a detector's file holds those that differ.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dinoneck.backbones import lora, weight_hashes
from dinoneck.backbones.backbone import CHANGED, Backbone, unchanged_origin
from dinoneck.checkpoint import pairing
from dinoneck.checkpoint.schema import describe_weights
from dinoneck.errors import CheckpointError

MODEL = "adapter.model."
"""What stands before the names of a model's weights in the state dict of its Backbone."""
_OF_BACKBONE = re.compile(rf"^(?:(?:module|_orig_mod)\.)*{re.escape(MODEL)}")


class BackbonePart(NamedTuple):
    """What of a backbone goes into a file.

    Attributes:
        record: of the backbone; None where it is not recorded.
        lora: its LoRA weights, by the names of :func:`dinoneck.backbones.lora.state`.
        weights: all its other weights, by the names of its model; empty = they are not in the file.
        tuned: those that differ from the record's, by the same names; the caller writes them.
    """

    record: dict[str, Any] | None
    lora: dict[str, Tensor] = {}  # noqa: RUF012 - a default that nothing writes to
    weights: dict[str, Tensor] = {}  # noqa: RUF012 - as above
    tuned: dict[str, Tensor] = {}  # noqa: RUF012 - as above


def part_for_head(
    backbone: Backbone | Mapping[str, Any] | None, weights: Mapping[str, Tensor] | None
) -> BackbonePart:
    """Return what the file of a head holds of its backbone.

    Args:
        backbone: the backbone, without the wrappers of torch, or a plain record, or None.
        weights: all its weights, by the names of its model or of its Backbone; None = they are not
            written.

    Raises:
        CheckpointError: if its weights were changed and are not given, and for LoRA weights that
            are named by a mere record.
    """
    state = plain_state(weights or {})
    record: dict[str, Any] | None
    if isinstance(backbone, Backbone):
        forget_hashes(backbone)
        record = pairing.record_of(backbone)
    else:
        record = None if backbone is None else dict(backbone)
    if record is not None and not state:
        _check_found_elsewhere(record, is_record=not isinstance(backbone, Backbone))
    return BackbonePart(record, lora=pairing.lora_of(backbone), weights=state)


def part_for_detector(
    backbone: Backbone, *, trained: Collection[str], record: Mapping[str, Any] | None
) -> BackbonePart:
    """Return what the file of a detector holds of its backbone: the record of before its training, and what differs.

    Args:
        backbone: the detector's.
        trained: names of weights that are written even if they are unchanged.
        record: of the backbone before its training, where the user gave one; None = as it was
            loaded.

    Raises:
        CheckpointError: if the backbone's outputs are not finite.
    """
    forget_hashes(backbone)
    adapter = backbone.adapter
    base = base_record(backbone)
    state = weight_hashes.base_state(adapter)
    names = {*trained} & state.keys()
    if record is None or is_changed(record) or _has_same_weights(record, base):
        names.update(weight_hashes.changed_tensors(adapter))
        record = base
    else:
        names.update(state)  # of other weights than it was loaded with: any of these may differ
    own_lora = pairing.lora_of(backbone)
    lora_record = lora.record(adapter) if own_lora else None
    return BackbonePart(
        {**record, "adapter": lora_record},
        lora=own_lora,
        tuned={name: state[name] for name in sorted(names)},
    )


def _has_same_weights(record: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    return bool(record.get("weights_sha256") == base["weights_sha256"])


def is_changed(record: Mapping[str, Any]) -> bool:
    """Whether the weights of a record were trained since they were loaded, or LoRA was merged into them."""
    origin = record.get("weights")
    return isinstance(origin, Mapping) and origin.get("kind") in CHANGED


def changed_weights(backbone: Any) -> dict[str, Tensor] | None:
    """Return all weights of a backbone that was changed since it was loaded, by the names of its model, else None."""
    own = pairing.plain_backbone(backbone)
    if not isinstance(own, Backbone) or not is_changed(own.record()):
        return None
    return weight_hashes.base_state(own.adapter)


def base_record(backbone: Backbone) -> dict[str, Any]:
    """Return the record of a backbone as it was loaded or wrapped, before anything of it was trained."""
    record = backbone.record()
    record["adapter"] = None
    original = backbone.adapter.original
    hashes = weight_hashes.current_hashes(backbone.adapter)
    if "fingerprint" in record:
        record["fingerprint"] = hashes.base_fingerprint
    if original is None or weight_hashes.is_original(backbone.adapter, hashes) is not False:
        return record
    record["weights"] = unchanged_origin(record["weights"])
    record["weights_sha256"] = original.weights_sha256
    record["dtype"] = original.dtype
    record.pop("fingerprint", None)
    if original.dtype != "float32":
        record["fingerprint"] = None  # the float32 weights that these were cast from are not known
    return record


def forget_hashes(backbone: Backbone) -> None:
    """Have the weights hashed again, because torch does not count what is written through ``.data``."""
    backbone.adapter.hashes = None


def plain_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of the model, without LoRA weights.

    The prefixes of a Backbone and of torch's wrappers are taken off.
    """
    state = {}
    for name, value in weights.items():
        own_name = lora.base_name(_OF_BACKBONE.sub("", str(name)))
        if own_name is not None:
            state[own_name] = value
    return state


def _check_found_elsewhere(record: Mapping[str, Any], *, is_record: bool) -> None:
    """Raise a CheckpointError for a record of weights that were trained in memory, which no file of theirs holds."""
    if not is_changed(record):
        return
    origin, name = record["weights"], record.get("name")
    weights = "the state dict of that backbone" if is_record else "backbone.state_dict()"
    raise CheckpointError(
        f"the backbone {name!r} has {describe_weights(origin)}, and these are in no file, so the "
        f"head could not be used later: pass backbone_weights={weights}, or save them on their own "
        "(backbone.save_weights(FILE)) and pass the backbone that is loaded from that file",
        step="write",
    )
