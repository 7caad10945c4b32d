"""The LoRA weights that travel in a head file, so that one file restores the head and what was trained with it.

They are ``adapter/<linear layer of the backbone>.lora_A`` and ``.lora_B``; what they belong to stands
in the backbone record under ``adapter``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from dinoneck.backbones import lora
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.compare import check_records
from dinoneck.checkpoint.schema import Adapter, BackboneRecord, TensorEntry
from dinoneck.errors import BackboneError, CheckpointError, ConfigError
from dinoneck.text import some_of

_SHOWN = 5  # names in a message
_SAVE_AGAIN = "Save the head again with the backbone of its training"
_LORA_ENDS = (".lora_A", ".lora_B")
"""The two matrices of a linear layer: (rank, in) and (out, rank)."""


def lora_of(backbone: object) -> dict[str, Tensor]:
    """Return the LoRA weights of a backbone by its names; none for a mere record without them.

    Weights that are switched off at the moment are left out, as in the backbone's record.

    Raises:
        CheckpointError: if a record names LoRA weights, which only the backbone itself holds.
    """
    if isinstance(backbone, Backbone):
        if backbone.adapter.lora_off:
            return {}
        return lora.state(backbone.adapter)
    if isinstance(backbone, Mapping) and backbone.get("adapter") is not None:
        raise CheckpointError(
            "the backbone has LoRA weights, which a record does not hold; pass the Backbone "
            "itself as backbone=",
            step="write",
        )
    return {}


def check_lora(
    entries: Mapping[str, TensorEntry], record: BackboneRecord | None, name: str
) -> None:
    """Check the LoRA tensors of a file against the backbone record.

    Raises:
        CheckpointError: if they are not announced, incomplete or of another rank.
    """
    if record is None or record.adapter is None:
        raise CheckpointError(
            f"{name} holds LoRA weights that its backbone record does not mention; save the head "
            "again with the backbone of its training",
            step="tensors",
        )
    adapter = record.adapter
    _check_sizes(adapter, record.embed_dim or 0, record.depth or 0, name)
    if not entries:
        raise CheckpointError(
            f"{name} holds no LoRA weights, and its backbone record describes some; save the head "
            "again with the backbone of its training",
            step="tensors",
        )
    layers = {key.rpartition(".")[0] for key in entries}
    expected = {layer + end for layer in layers for end in _LORA_ENDS}
    missing = expected - entries.keys()
    if missing:
        raise CheckpointError(
            f"{name} lacks the LoRA weights {some_of(missing, _SHOWN)}; save the head again with "
            "the backbone of its training",
            step="tensors",
        )
    unknown = entries.keys() - expected
    if unknown:
        raise CheckpointError(
            f"{name} holds {some_of(unknown, _SHOWN)}; expected LoRA weights, whose names end in "
            f"{' or '.join(_LORA_ENDS)}",
            step="tensors",
        )
    for key, entry in entries.items():
        is_first = key.endswith(_LORA_ENDS[0])
        _check_entry(entry, adapter.rank, f"{name}: {key}", is_first=is_first)


def _check_sizes(adapter: Adapter, width: int, depth: int, name: str) -> None:
    """Raise a CheckpointError for a rank or a number of blocks that no LoRA weights of the backbone have."""
    if not 1 <= adapter.rank <= width:
        raise CheckpointError(
            f"{name}: LoRA of rank {adapter.rank} does not fit a backbone of width {width}; "
            f"expected 1 to {width}. {_SAVE_AGAIN}",
            step="config",
        )
    if not 1 <= adapter.blocks <= depth:
        raise CheckpointError(
            f"{name}: LoRA in {adapter.blocks} blocks does not fit a backbone of depth {depth}; "
            f"expected 1 to {depth}. {_SAVE_AGAIN}",
            step="config",
        )


def _check_entry(entry: TensorEntry, rank: int, where: str, *, is_first: bool) -> None:
    """Raise a CheckpointError for a tensor that is not one of the two float32 matrices of a rank."""
    if entry.dtype != "F32":
        raise CheckpointError(
            f"{where} is {entry.dtype}; expected F32. {_SAVE_AGAIN}", step="tensors"
        )
    if len(entry.shape) != 2:
        raise CheckpointError(
            f"{where} has the shape {entry.shape}; expected a matrix of rank {rank}. {_SAVE_AGAIN}",
            step="tensors",
        )
    inner = entry.shape[0] if is_first else entry.shape[1]
    if inner != rank:
        raise CheckpointError(
            f"{where} has the shape {entry.shape}, which is of rank {inner}; expected rank {rank}. "
            f"{_SAVE_AGAIN}",
            step="tensors",
        )


def check_takes_lora(backbone: Backbone, record: Mapping[str, Any], *, layers: bool = True) -> bool:
    """Check that the LoRA weights of a record fit a backbone; return whether it has them already.

    Args:
        backbone: the base of the LoRA weights.
        record: of the backbone in the head file.
        layers: compare the layers too.

    Raises:
        CheckpointError: if the backbone is another one or has other LoRA weights.
    """
    if backbone.adapter.lora_off:
        raise CheckpointError(
            "the LoRA weights of this backbone are switched off; leave the lora_disabled() block "
            "first",
            step="pairing",
        )
    actual = backbone.record()
    present = actual["adapter"]
    has_them = present is not None and present["sha256"] == record["adapter"]["sha256"]
    if present is not None and not has_them:
        raise CheckpointError(
            "this backbone has LoRA weights of its own; load it again, or merge_lora() if that is "
            "meant",
            step="pairing",
        )
    if layers or not has_them:
        check_records({**record, "adapter": None}, {**actual, "adapter": None}, layers=layers)
    return has_them


def apply_lora(
    backbone: Backbone, record: Mapping[str, Any], weights: Mapping[str, Tensor], *, trainable: bool
) -> None:
    """Put LoRA weights of a file into the backbone they were trained on; on a failure it stays as it was.

    Raises:
        CheckpointError: if the backbone is another one or has other LoRA weights.
    """
    has_them = check_takes_lora(backbone, record, layers=False)
    if has_them:
        if trainable:
            for parameter in lora.parameters(backbone.adapter):
                parameter.requires_grad_(True)
            backbone.train(backbone.adapter.asked_mode)
        return
    learning = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    try:
        _add_lora(backbone, record["adapter"], weights)
    except (BackboneError, ConfigError) as error:
        lora.remove(backbone.adapter)
        _restore_learning(backbone, learning)
        raise _unfit_lora(backbone, record, error) from error
    except BaseException:
        _restore_learning(backbone, learning)
        raise
    if not trainable:
        _restore_learning(backbone, learning)
    backbone.train(backbone.adapter.asked_mode)


def _add_lora(
    backbone: Backbone, adapter: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Add LoRA to a backbone with the weights of a file, and compare their hash with the record's."""
    lora.add(
        backbone.adapter,
        adapter["rank"],
        adapter["alpha"],
        adapter["targets"],
        seed=0,
        runs=adapter["blocks"],
    )
    lora.load_state(backbone.adapter, weights)
    if (lora.record(backbone.adapter) or {}).get("sha256") != adapter["sha256"]:
        raise BackboneError(
            "their SHA-256 is not the one of the backbone record, so the file was edited; save "
            "the head again with the backbone of its training"
        )


def _restore_learning(backbone: Backbone, learning: Collection[int]) -> None:
    """Let those parameters learn that did before, given by their ids; new ones are frozen."""
    for parameter in backbone.parameters():
        parameter.requires_grad_(id(parameter) in learning)


def _unfit_lora(backbone: Backbone, record: Mapping[str, Any], error: Exception) -> CheckpointError:
    """The error for LoRA weights that could not be put into a backbone."""
    trained_source = record.get("source")
    source = backbone.adapter.source
    reason = str(error)
    if trained_source != source:
        reason = (
            f"they were trained on a model of {trained_source}, this one is of {source}; load "
            f"the backbone with source={trained_source!r}"
        )
    return CheckpointError(f"the LoRA weights do not fit this backbone: {reason}", step="pairing")
