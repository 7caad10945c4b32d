"""LoRA weights that travel in a head file, with the head's own, so that one file restores both.

Their tensors are named ``adapter/<linear layer of the backbone>.lora_A`` and ``.lora_B``; what they belong to stands
in the backbone record under ``adapter``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinoneck.backbones import lora
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.pairing import check_records
from dinoneck.checkpoint.schema import TensorEntry
from dinoneck.errors import BackboneError, CheckpointError, ConfigError

PREFIX = "adapter/"
_ENDS = (".lora_A", ".lora_B")


def weights_of(backbone: object) -> dict[str, Tensor]:
    """Return the LoRA weights of a backbone under their names in a file; nothing for a mere record without them.

    Weights that are switched off at the moment are left out, as in the backbone's record.

    Raises:
        CheckpointError: if a record names LoRA weights, which only the backbone itself holds.
    """
    if isinstance(backbone, Backbone):
        if backbone.adapter.lora_off:
            return {}
        return {PREFIX + name: value for name, value in lora.state(backbone.adapter).items()}
    if isinstance(backbone, Mapping) and backbone.get("adapter") is not None:
        raise CheckpointError(
            "the backbone has LoRA weights, which a record does not hold; pass the Backbone itself as backbone=",
            step="write",
        )
    return {}


def check(entries: Mapping[str, TensorEntry], record: Mapping[str, Any] | None, name: str) -> None:
    """Check the LoRA tensors of a file against the backbone record.

    Raises:
        CheckpointError: if they are not announced, incomplete or of another rank.
    """
    adapter = (record or {}).get("adapter")
    if adapter is None:
        if entries:
            raise CheckpointError(
                f"{name} holds LoRA weights that its backbone record does not mention", step="tensors"
            )
        return
    width, depth = (record or {}).get("embed_dim"), (record or {}).get("depth")
    if not (width and depth and 1 <= adapter["rank"] <= width and 1 <= adapter["blocks"] <= depth):
        raise CheckpointError(
            f"{name}: LoRA of rank {adapter['rank']} in {adapter['blocks']} blocks does not fit a backbone of width "
            f"{width} and depth {depth}",
            step="config",
        )
    layers = {key.rpartition(".")[0] for key in entries}
    if not layers or entries.keys() != {layer + end for layer in layers for end in _ENDS}:
        raise CheckpointError(f"{name}: the LoRA weights that its record lists are not complete", step="tensors")
    for key, entry in entries.items():
        rank = entry.shape[0 if key.endswith(_ENDS[0]) else -1] if len(entry.shape) == 2 else None
        if rank != adapter["rank"] or entry.dtype != "F32":
            raise CheckpointError(
                f"{name}: {key} is {entry.dtype} {entry.shape}; expected F32 of rank {adapter['rank']}", step="tensors"
            )


def apply(backbone: Backbone, record: Mapping[str, Any], weights: Mapping[str, Tensor], *, trainable: bool) -> None:
    """Put LoRA weights of a file into the backbone they were trained on; on a failure it stays as it was.

    Raises:
        CheckpointError: if the backbone is another one or has other LoRA weights.
    """
    if backbone.adapter.lora_off:
        raise CheckpointError(
            "the LoRA weights of this backbone are switched off; leave the lora_disabled() block first", step="pairing"
        )
    adapter = record["adapter"]
    own = backbone.record()
    if own["adapter"] is not None and own["adapter"]["sha256"] == adapter["sha256"]:
        if trainable:
            for parameter in lora.parameters(backbone.adapter):
                parameter.requires_grad_(True)
            backbone.train(backbone.adapter.asked_mode)
        return
    if own["adapter"] is not None:
        raise CheckpointError(
            "this backbone has LoRA weights of its own; load it again, or merge_lora() if that is meant", step="pairing"
        )
    if own["source"] != record.get("source"):
        raise CheckpointError(
            f"the LoRA weights were trained on a model of {record.get('source')}, this one is of {own['source']}; load "
            f"it with source={record.get('source')!r}",
            step="pairing",
        )
    check_records({**record, "adapter": None}, own, layers=False)
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    try:
        lora.add(
            backbone.adapter, adapter["rank"], adapter["alpha"], adapter["targets"], seed=0, runs=adapter["blocks"]
        )
        lora.load_state(backbone.adapter, weights)
        if (lora.record(backbone.adapter) or {}).get("sha256") != adapter["sha256"]:
            raise BackboneError("they are not those that its record was written for")
    except (BackboneError, ConfigError) as error:
        lora.remove(backbone.adapter)
        for parameter in backbone.parameters():
            parameter.requires_grad_(any(parameter is one for one in learning))
        raise CheckpointError(f"the LoRA weights do not fit this backbone: {error}", step="pairing") from error
    if not trainable:
        backbone.adapter.requires_grad_(False)
        for parameter in learning:
            parameter.requires_grad_(True)
    backbone.train(backbone.adapter.asked_mode)
