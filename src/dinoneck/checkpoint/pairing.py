"""The backbone of a head: compared with the record of the one it was trained with, and loaded again from that record.

LoRA weights travel in the head file, so that one file restores both:
``adapter/<linear layer of the backbone>.lora_A`` and ``.lora_B``; what they belong to stands in the
backbone record under ``adapter``. A backbone that was tuned along may travel too, as
``backbone.<its own names>``; the record holds the hash of these weights.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.backbones import lora, weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import architecture_of, names_of
from dinoneck.backbones.load import load_backbone
from dinoneck.backbones.weight_hashes import differs
from dinoneck.checkpoint.schema import BackboneRecord, TensorEntry, describe_weights
from dinoneck.errors import BackboneError, CheckpointError, ConfigError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.layers.inputs import Origin

logger = logging.getLogger(__name__)

_MUST_AGREE = {
    "embed_dim": "token width",
    "patch_size": "patch size",
    "num_cls": "CLS tokens",
    "num_registers": "register tokens",
    "depth": "number of blocks",
    "layers": "layers",
    "norm": "final norm applied",
}

_LORA = (
    "LoRA weights (HeadCheckpoint.load(file).apply_adapter(backbone) applies those of a head file)"
)
_SAME_CHANNEL = 1e-3
NAMED = ("seeded", "hub")
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
_PART = r"[A-Za-z0-9][\w.\-]{0,95}"
# a model's name, or a hub repository: a path below the working folder at most
_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


def need(record: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a backbone record.

    Raises:
        CheckpointError: if it is missing.
    """
    if record.get(key) is None:
        raise CheckpointError(
            f"the backbone record of this head does not state {key!r} (it holds "
            f"{sorted(record)}); load the backbone yourself and pass backbone=",
            step="pairing",
        )
    return record[key]


def check_records(
    trained: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    layers: bool = True,
    weights: bool = True,
) -> None:
    """Compare two backbone records.

    Args:
        trained: the record in the head file.
        given: the record of the backbone at hand.
        layers: compare the layers too.
        weights: compare architecture and digests too; off when a probe decides.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    facts, own = _facts(trained), _facts(given)
    for key in ("mean", "std"):
        one, other, meaning = trained.get(key), given.get(key), f"normalisation of images ({key})"
        if (
            one is not None
            and other is not None
            and not np.allclose(one, other, rtol=0, atol=_SAME_CHANNEL)
        ):
            facts[meaning], own[meaning] = one, other
    differences = [
        f"{meaning}: the head was trained on {facts[meaning]!r}, this backbone has {own[meaning]!r}"
        for meaning in facts
        if facts[meaning] != own[meaning] and (layers or meaning != "layers")
    ]
    if weights:
        differences += _weights_differ(trained, given)
    if differences:
        raise CheckpointError(
            f"the backbone {given.get('name')!r} does not fit this head: "
            f"{'; '.join(differences)}. Load {trained.get('name')!r} with "
            f"layers={trained.get('layers')}, norm={trained.get('norm')} and {_spell(trained)}",
            step="pairing",
        )


def check_probe(trained: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare two functional probes.

    Raises:
        CheckpointError: if the file has none, or they differ by more than rounding explains.
    """
    if not trained.get("probe"):
        raise CheckpointError(
            "this head file holds no functional probe of its backbone", step="pairing"
        )
    gap = differs(
        trained["probe"], given["probe"], (str(trained.get("dtype")), str(given.get("dtype")))
    )
    if gap is not None:
        raise CheckpointError(
            f"the backbone {given.get('name')!r} gives other outputs than the one this head was "
            f"trained on: its probe differs by {gap:.3g}. Load {trained.get('name')!r} with "
            f"{_spell(trained)}",
            step="pairing",
        )


def check_reads(module: object, backbone: Mapping[str, Any] | None, name: str) -> None:
    """Refuse a head of another width or layers than its backbone gives: the file could never be used.

    Raises:
        CheckpointError: naming both.
    """
    record = backbone or {}
    width, layers = record.get("embed_dim"), record.get("layers")
    reads, count = getattr(module, "layer_indices", None), getattr(module, "num_layers", None)
    missing = (
        count not in (None, len(layers or ()))
        if reads is None
        else not {*reads} <= {*(layers or ())}
    )
    own = getattr(module, "embed_dim", width)
    if width not in (None, own) or (layers is not None and missing):
        raise CheckpointError(
            f"this {name} reads {count or reads or 'the'} layers of {own} channels; the backbone "
            f"gives blocks {layers} of {width} channels: save it with the backbone it was trained "
            "on (load_backbone(layers=...))",
            step="pairing",
        )


def origin_of(record: Mapping[str, Any] | None) -> Origin | None:
    """Return what a head compares Tokens with; None without a record."""
    if record is None:
        return None
    layers, patch = record.get("layers"), record.get("patch_size")
    pair = None if patch is None else patch_pair(patch)
    return Origin(
        name=str(record.get("name")),
        source=weight_hashes.fingerprint_from_record(record),
        layers=None if layers is None else tuple(layers),
        normed=record.get("norm"),
        patch_size=pair if pair is None or pair[0] != pair[1] else pair[0],
    )


def check_patch(inputs: PatchSize, backbone: PatchSize) -> None:
    """Refuse images that are prepared for other patches than the backbone's.

    Raises:
        CheckpointError: naming both.
    """
    one, other = patch_pair(inputs), patch_pair(backbone)
    if one != other:
        raise CheckpointError(
            f"images are prepared for patches of {one[0]}x{one[1]} px (height x width), the "
            f"backbone has {other[0]}x{other[1]}: take preprocess= from the backbone, "
            "backbone.preprocess.changed(size=...)",
            step="pairing",
        )


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be equal, by its meaning."""
    facts = {meaning: record.get(key) for key, meaning in _MUST_AGREE.items()}
    facts["position-embedding recipe (pos_embed=)"] = _recipe(record)
    facts[_LORA] = (record.get("adapter") or {}).get("sha256")
    return facts


def _recipe(record: Mapping[str, Any]) -> str:
    """Which function resamples positions; only plain DINOv2 has several."""
    plain = record.get("family") == "dinov2" and not record.get("num_registers")
    if not plain and not (
        record.get("family") == "other" and record.get("pos_embed") == "official"
    ):
        return "the only one"
    if record.get("source") == "official" or record.get("pos_embed") == "official":
        return "'official'"
    return f"{record.get('pos_embed')!r} of {record.get('source')}"


def _weights_differ(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    digests = trained.get("weights_sha256"), given.get("weights_sha256")
    if None not in digests and digests[0] == digests[1]:
        return []
    names = str(trained.get("name")), str(given.get("name"))
    if architecture_of(names[0]) != architecture_of(names[1]):
        return [
            f"model: the head was trained on {names[0]!r}, this is {names[1]!r} (if only names "
            "differ: probe=True)"
        ]
    origin: Mapping[str, Any] = trained.get("weights") or {}
    if digests[0] is None and origin.get("kind") == "hub" and origin.get("revision") is None:
        return _copy_differs(trained, given)
    same_form = None not in digests and all(
        trained.get(key) == given.get(key) for key in ("dtype", "source")
    )
    if not same_form and origin == given.get("weights") and origin.get("kind") in NAMED:
        return []
    return [
        f"weights: the head was trained on {_spell(trained)}, this backbone has {_spell(given)}. "
        "Digests of the same weights differ across libraries and dtypes: load the backbone as in "
        f"training (source={trained.get('source')!r}, dtype=torch.{trained.get('dtype')}), or "
        "compare its outputs: check_backbone(backbone, probe=True), Predictor(..., probe=True)"
    ]


def _copy_differs(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Compare published weights, of which a head's record names no revision or hash, by their name in any library."""
    origin: Mapping[str, Any] = given.get("weights") or {}
    kind = origin.get("kind")
    if kind == "hub" and names_of(str(trained.get("name"))) == names_of(str(given.get("name"))):
        return []
    if kind != "file":
        return [
            f"weights: the head was trained on {_spell(trained)}, this backbone has {_spell(given)}"
        ]
    logger.warning(
        "the backbone's weights are of a file, and the head's file states no hash of those that "
        "it was trained on: make sure that they are the published weights of %r",
        trained.get("name"),
    )
    return []


def _spell(record: Mapping[str, Any]) -> str:
    return (
        f"{describe_weights(record.get('weights'))}, sha256 "
        f"{record.get('weights_sha256') or 'not recorded':.12}"
    )


def plain_backbone(backbone: Any) -> Any:
    """Return the Backbone inside torch.compile's wrapper."""
    inner = getattr(backbone, "_orig_mod", None)
    return inner if isinstance(inner, Backbone) else backbone


def record_of(backbone: Backbone) -> dict[str, Any]:
    """Return a backbone's record with its functional probe; a backbone without values has none.

    Raises:
        CheckpointError: if its outputs are not finite.
    """
    record = backbone.record()
    if record["weights_sha256"] is None:
        return record
    probe = backbone.probe()
    if not all(math.isfinite(number) for number in probe):
        raise CheckpointError(
            f"the backbone {backbone.name!r} gives values that are not finite; check its weights",
            step="write",
        )
    return {**record, "probe": probe}


_LORA_ENDS = (".lora_A", ".lora_B")


def lora_of(backbone: object) -> dict[str, Tensor]:
    """Return the LoRA weights of a backbone by its names; nothing for a mere record without them.

    Weights that are switched off at the moment are left out, as in the backbone's record.

    Raises:
        CheckpointError: if a record names LoRA weights, which only the backbone itself holds.
    """
    if isinstance(backbone, Backbone):
        return {} if backbone.adapter.lora_off else lora.state(backbone.adapter)
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
            f"{name} holds LoRA weights that its backbone record does not mention", step="tensors"
        )
    rank, blocks = record.adapter.rank, record.adapter.blocks
    if not (1 <= rank <= (record.embed_dim or 0) and 1 <= blocks <= (record.depth or 0)):
        raise CheckpointError(
            f"{name}: LoRA of rank {rank} in {blocks} blocks does not fit a backbone of width "
            f"{record.embed_dim} and depth {record.depth}",
            step="config",
        )
    layers = {key.rpartition(".")[0] for key in entries}
    if not layers or entries.keys() != {layer + end for layer in layers for end in _LORA_ENDS}:
        raise CheckpointError(
            f"{name}: the LoRA weights that its record lists are not complete", step="tensors"
        )
    for key, entry in entries.items():
        side = 0 if key.endswith(_LORA_ENDS[0]) else -1
        if entry.dtype != "F32" or len(entry.shape) != 2 or entry.shape[side] != rank:
            raise CheckpointError(
                f"{name}: {key} is {entry.dtype} {entry.shape}; expected F32 of rank {rank}",
                step="tensors",
            )


def apply_lora(
    backbone: Backbone, record: Mapping[str, Any], weights: Mapping[str, Tensor], *, trainable: bool
) -> None:
    """Put LoRA weights of a file into the backbone they were trained on; on a failure it stays as it was.

    Raises:
        CheckpointError: if the backbone is another one or has other LoRA weights.
    """
    if backbone.adapter.lora_off:
        raise CheckpointError(
            "the LoRA weights of this backbone are switched off; leave the lora_disabled() block "
            "first",
            step="pairing",
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
            "this backbone has LoRA weights of its own; load it again, or merge_lora() if that is "
            "meant",
            step="pairing",
        )
    check_records({**record, "adapter": None}, own, layers=False)
    learning = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
    try:
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
            raise BackboneError("they are not those that its record was written for")
    except (BackboneError, ConfigError) as error:
        lora.remove(backbone.adapter)
        trainable = False
        raise CheckpointError(
            f"the LoRA weights do not fit this backbone: {error}", step="pairing"
        ) from error
    finally:
        for parameter in () if trainable else backbone.parameters():
            parameter.requires_grad_(id(parameter) in learning)
    backbone.train(backbone.adapter.asked_mode)


def rebuild(
    record: Mapping[str, Any], file: str | os.PathLike[str] | None = None, *, random: bool = False
) -> Backbone:
    """Load the backbone of a record: by name, with the weights of a local file, or with random ones.

    Nothing in a record is imported or run, and no folder that it names is opened. Weights that come
    from elsewhere are compared by who asks for this.

    Args:
        record: the backbone record of a head file.
        file: its weights, where they are not seeded or published; for transformers also a model
            folder.
        random: seeded random weights instead of those of the record: its own seed, or 0 where it
            names other weights.

    Raises:
        CheckpointError: if the record is incomplete or contradicts itself.
        BackboneError: if the weights cannot be had.
    """
    name, origin = str(need(record, "name")), need(record, "weights")
    if file is None and not random and origin.get("kind") not in NAMED:
        raise CheckpointError(
            f"the heads were trained on {name!r} with {describe_weights(origin)}, which cannot be "
            "found by name: load them yourself and pass backbone= (--backbone-file on the command "
            "line)",
            step="pairing",
        )
    if "/" in name and origin.get("kind") == "hub" and origin.get("repo") != name:
        raise CheckpointError(
            f"the record names the model {name!r} and weights of {origin.get('repo')!r}: these do "
            "not belong together",
            step="pairing",
        )
    dtype = record.get("dtype") or "float32"
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"the record has dtype {dtype!r}; expected one of {', '.join(_DTYPES)}", step="pairing"
        )
    folder = file is not None and Path(file).is_dir()
    own = origin.get("kind") == "seeded"
    seeded = file is None and (random or own)
    # the library transformers takes names and local folders for the same argument
    is_folder_here = record.get("source") == "transformers" and Path(name).is_dir()
    if not folder and (is_folder_here or not _NAME.fullmatch(name)):
        raise CheckpointError(
            f"the record names the model {name[:200]!r}; expected a name such as "
            "'vit_small_patch16_dinov3', or a hub repository 'user/name', that is not a folder "
            "here. A head file names no path: load the backbone yourself and pass backbone=",
            step="pairing",
        )
    try:
        return load_backbone(
            str(file) if folder else name,
            pretrained=not seeded,
            checkpoint=None if folder else file,
            seed=(need(origin, "seed") if own else 0) if seeded else None,
            layers=need(record, "layers"),
            norm=need(record, "norm"),
            source=record.get("source") or "timm",
            pos_embed=record.get("pos_embed") or "native",
            dtype=_DTYPES[dtype],
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the head's backbone record cannot be followed: {error}", step="pairing"
        ) from error
