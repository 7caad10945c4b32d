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

from dinoneck.backbones import lora, rotary, weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import architecture_of, names_of
from dinoneck.backbones.load import load_backbone
from dinoneck.backbones.weight_hashes import differs
from dinoneck.checkpoint.schema import BackboneRecord, TensorEntry, describe_weights
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    counted,
    reason_of,
    some_of,
)
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

_COMPARE_OUTPUTS = (
    "compare its outputs: check_backbone(backbone, probe=True), Predictor(..., probe=True)"
)
_SAVE_AGAIN = (
    "if you know the backbone that it was trained on, save the head again with it: "
    "save_head(path, load_head(path), backbone=backbone, preprocess=...)"
)
_FOUND_BY = ("name", "weights")  # what a backbone is loaded by
_SAME_CHANNEL = 1e-3
_SHOWN = 5
NAMED = ("seeded", "hub")
STATED = "stated"  # by the user alone, see dinoneck.training.stated
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
        remedy = _SAVE_AGAIN
        if key in _FOUND_BY:
            remedy = "load the backbone yourself and pass backbone="
        stated = sorted(name for name, value in record.items() if value is not None)
        raise CheckpointError(
            f"the backbone record of this head does not state {key!r}; it holds "
            f"{', '.join(stated) or 'nothing'}; {remedy}",
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
    unstated = [
        meaning
        for meaning in facts
        if facts[meaning] is None and own[meaning] is not None and (layers or meaning != "layers")
    ]
    if unstated:
        raise CheckpointError(
            "the record of the backbone that this head was trained on does not state its "
            f"{', '.join(unstated)}, so {given.get('name')!r} cannot be compared with it; "
            f"{_SAVE_AGAIN}",
            step="pairing",
        )
    differences = [
        f"{meaning}: the head was trained on {facts[meaning]!r}, this backbone has {own[meaning]!r}"
        for meaning in facts
        if facts[meaning] != own[meaning] and (layers or meaning != "layers")
    ]
    if weights:
        differences += _weights_differ(trained, given)
    remedy = ""
    if differences:
        remedy = (
            f". Load {trained.get('name')!r} with layers={trained.get('layers')}, "
            f"norm={trained.get('norm')} and {_spell(trained)}"
        )
    # these have a remedy of their own
    differences += _lora_differs(trained, given)
    differences += _normalisation_differs(trained, given)
    if differences:
        raise CheckpointError(
            f"the backbone {given.get('name')!r} does not fit this head: "
            f"{'; '.join(differences)}{remedy}",
            step="pairing",
        )


def check_probe(trained: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare two functional probes.

    Raises:
        CheckpointError: if the file has none, or they differ by more than rounding explains.
    """
    if not trained.get("probe"):
        raise CheckpointError(
            "this head file holds no functional probe of its backbone; a head that is saved with "
            "the Backbone itself as backbone= has one. Check it without probe=True",
            step="pairing",
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


def check_rotary(trained: Mapping[str, Any], backbone: Backbone) -> None:
    """Compare what a backbone with rotary frequencies of its own does with the probe of a record, if it has one.

    No hash holds these frequencies. Those of published models are not compared.

    Raises:
        CheckpointError: if the outputs differ.
    """
    unusual = rotary.unusual_buffers(backbone.adapter.model)
    if not unusual or not trained.get("probe"):
        return
    same_layers = backbone.with_layers(need(trained, "layers"), need(trained, "norm"))
    dtypes = (str(trained.get("dtype")), str(backbone.dtype).removeprefix("torch."))
    gap = differs(trained["probe"], same_layers.probe(), dtypes)
    if gap is not None:
        [name] = unusual
        raise CheckpointError(
            f"the backbone {backbone.name!r} gives other outputs than the one this head was "
            f"trained on: its probe differs by {gap:.3g}, and {name} holds other values than "
            "published models have; load the backbone again",
            step="pairing",
        )


def check_rebuilt(record: Mapping[str, Any], backbone: Backbone) -> None:
    """Compare the outputs of a backbone that was built by a record with those of the one that the record is of.

    Equal weights do not tell whether a model was changed in another way, as by hooks.

    Raises:
        CheckpointError: if they differ by more than rounding explains.
    """
    if not record.get("probe"):
        return
    given = backbone.record()
    if given["weights_sha256"] is None or given["weights_sha256"] != record.get("weights_sha256"):
        return  # other weights, which are compared as such
    dtypes = str(record.get("dtype")), str(given["dtype"])
    gap = differs(record["probe"], backbone.probe(), dtypes)
    if gap is not None:
        raise CheckpointError(
            f"the backbone {record.get('name')!r} has the weights that the head was saved with, "
            f"and other outputs: its probe differs by {gap:.3g}. The model of the training was "
            "changed in a way that weights do not hold (a hook, another activation): change the "
            "model in the same way, and pass backbone=wrap_backbone(model)",
            step="pairing",
        )


def check_fits(
    module: object,
    *,
    backbone: Mapping[str, Any] | None,
    inputs: Mapping[str, Any] | None,
    name: str,
) -> None:
    """Check that a head can be used with the backbone and the images that its records describe.

    Args:
        module: the head; of another module what it states is compared.
        backbone: the record of the backbone.
        inputs: the record of the preprocessing.
        name: of the head's class, for messages.

    Raises:
        CheckpointError: if the width, the layers, the patch size or the channels of images differ,
            naming both.
    """
    record = backbone or {}
    inputs_patch = (inputs or {}).get("patch_size")
    backbone_patch = record.get("patch_size")
    if inputs_patch is not None and backbone_patch is not None:
        check_patch(inputs_patch, backbone_patch)

    inputs_mean = (inputs or {}).get("mean")
    backbone_mean = record.get("mean")
    if inputs_mean is not None and backbone_mean is not None:
        check_channels(len(inputs_mean), len(backbone_mean))

    width = record.get("embed_dim")
    head_width = getattr(module, "embed_dim", width)
    if width is not None and head_width != width:
        raise CheckpointError(
            f"this {name} was built for tokens of {head_width} channels, the backbone gives "
            f"{width}; save it with the backbone that it was trained on, or ask its author",
            step="pairing",
        )

    layers = record.get("layers")
    if layers is None:
        return
    indices = getattr(module, "layer_indices", None)
    count = getattr(module, "num_layers", None)
    if indices is not None:
        does_fit = {*indices} <= {*layers}
        layers_read = f"blocks {[*indices]}"
    else:
        does_fit = count is None or count == len(layers)
        layers_read = f"{count} layers"
    if not does_fit:
        raise CheckpointError(
            f"this {name} reads {layers_read}, the backbone gives blocks {[*layers]}; save it with the "
            "backbone that it was trained on (load_backbone(layers=...), or "
            "backbone.with_layers(...)), or ask its author",
            step="pairing",
        )


def origin_of(
    record: Mapping[str, Any] | None, inputs: Mapping[str, Any] | None = None
) -> Origin | None:
    """Return what a head was trained on, by the records of its file; None without that of a backbone.

    Args:
        record: of the backbone.
        inputs: of how images are prepared.
    """
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
        images=None if inputs is None else dict(inputs),
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


def check_channels(inputs: int, backbone: int) -> None:
    """Compare the channels of prepared images with those that a backbone takes.

    Raises:
        CheckpointError: if they differ, naming both.
    """
    if inputs != backbone:
        raise CheckpointError(
            f"images are prepared with {counted(inputs, 'channel')} (mean and std of so many "
            f"numbers), the backbone takes {backbone}: take preprocess= from the backbone, "
            "backbone.preprocess.changed(size=...)",
            step="pairing",
        )


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be equal, by its meaning."""
    facts = {meaning: record.get(key) for key, meaning in _MUST_AGREE.items()}
    facts["position-embedding recipe (pos_embed=)"] = _recipe(record)
    return facts


def _lora_differs(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    digest = (trained.get("adapter") or {}).get("sha256")
    given_digest = (given.get("adapter") or {}).get("sha256")
    if digest == given_digest:
        return []
    if given_digest is None:
        return [
            "LoRA: the head was trained with LoRA weights, and this backbone has none; the head's "
            "file holds them: HeadCheckpoint.load(file).apply_adapter(backbone)"
        ]
    if digest is None:
        return [
            "LoRA: this backbone has LoRA weights, and the head was trained without; load the "
            "backbone again"
        ]
    return [
        f"LoRA: the head was trained with the LoRA weights {digest[:12]}, this backbone has "
        f"{given_digest[:12]}; load the backbone again, and apply those of the head's file: "
        "HeadCheckpoint.load(file).apply_adapter(backbone)"
    ]


def _normalisation_differs(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    for key in ("mean", "std"):
        trained_values = trained.get(key)
        given_values = given.get(key)
        if trained_values is None or given_values is None:
            continue
        alike = len(trained_values) == len(given_values)
        if not alike or not np.allclose(trained_values, given_values, rtol=0, atol=_SAME_CHANNEL):
            return [
                f"normalisation: the head's backbone took images with mean {trained.get('mean')} "
                f"and std {trained.get('std')}, this one takes {given.get('mean')} and "
                f"{given.get('std')}; set backbone.preprocess = "
                "backbone.preprocess.changed(mean=..., std=...)"
            ]
    return []


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
        hint = " (if only names differ: probe=True)" if trained.get("probe") else ""
        return [f"model: the head was trained on {names[0]!r}, this is {names[1]!r}{hint}"]
    origin: Mapping[str, Any] = trained.get("weights") or {}
    if digests[0] is None and origin.get("kind") == STATED:
        return []  # nothing is known but the name
    if digests[0] is None and origin.get("kind") == "hub" and origin.get("revision") is None:
        return _copy_differs(trained, given)
    is_recorded = None not in digests
    is_same_form = all(trained.get(key) == given.get(key) for key in ("dtype", "source"))
    if (
        not (is_recorded and is_same_form)
        and origin == given.get("weights")
        and origin.get("kind") in NAMED
    ):
        return []
    difference = (
        f"weights: the head was trained on {_spell(trained)}, this backbone has {_spell(given)}"
    )
    if not is_same_form:
        difference += (
            ". Digests of the same weights differ across libraries and dtypes: load the backbone "
            f"as in training (source={trained.get('source')!r}, "
            f"dtype=torch.{trained.get('dtype')})"
        )
        if trained.get("probe"):
            difference += f", or {_COMPARE_OUTPUTS}"
    elif not is_recorded:
        remedy = _COMPARE_OUTPUTS if trained.get("probe") else _SAVE_AGAIN
        difference += f". Without both hashes weights cannot be compared; {remedy}"
    return [difference]


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
            f"{name} holds LoRA weights that its backbone record does not mention; save the head "
            "again with the backbone of its training",
            step="tensors",
        )
    rank, blocks = record.adapter.rank, record.adapter.blocks
    if not (1 <= rank <= (record.embed_dim or 0) and 1 <= blocks <= (record.depth or 0)):
        raise CheckpointError(
            f"{name}: LoRA of rank {rank} in {blocks} blocks does not fit a backbone of width "
            f"{record.embed_dim} and depth {record.depth}",
            step="config",
        )
    if not entries:
        raise CheckpointError(
            f"{name} holds no LoRA weights, and its backbone record describes some; save the head "
            "again with the backbone of its training",
            step="tensors",
        )
    layers = {key.rpartition(".")[0] for key in entries}
    expected = {layer + end for layer in layers for end in _LORA_ENDS}
    if missing := expected - entries.keys():
        raise CheckpointError(
            f"{name} lacks the LoRA weights {some_of(missing, _SHOWN)}; save the head again with "
            "the backbone of its training",
            step="tensors",
        )
    if unknown := entries.keys() - expected:
        raise CheckpointError(
            f"{name} holds {some_of(unknown, _SHOWN)}; expected LoRA weights, whose names end in "
            f"{' or '.join(_LORA_ENDS)}",
            step="tensors",
        )
    for key, entry in entries.items():
        side = 0 if key.endswith(_LORA_ENDS[0]) else -1
        if entry.dtype != "F32" or len(entry.shape) != 2 or entry.shape[side] != rank:
            raise CheckpointError(
                f"{name}: {key} is {entry.dtype} {entry.shape}; expected F32 of rank {rank}",
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
    given = backbone.record()
    present = given["adapter"]
    has_them = present is not None and present["sha256"] == record["adapter"]["sha256"]
    if present is not None and not has_them:
        raise CheckpointError(
            "this backbone has LoRA weights of its own; load it again, or merge_lora() if that is "
            "meant",
            step="pairing",
        )
    if layers or not has_them:
        without_lora = {"adapter": None}
        check_records({**record, **without_lora}, {**given, **without_lora}, layers=layers)
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
    adapter = record["adapter"]
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
            raise BackboneError(
                "their SHA-256 is not the one of the backbone record, so the file was edited; save "
                "the head again with the backbone of its training"
            )
    except (BackboneError, ConfigError) as error:
        lora.remove(backbone.adapter)
        trainable = False
        trained_source = record.get("source")
        source = backbone.adapter.source
        reason = str(error)
        if trained_source != source:
            reason = (
                f"they were trained on a model of {trained_source}, this one is of {source}; load "
                f"the backbone with source={trained_source!r}"
            )
        raise CheckpointError(
            f"the LoRA weights do not fit this backbone: {reason}", step="pairing"
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
    layers = need(record, "layers")
    norm = need(record, "norm")
    name, origin = str(need(record, "name")), need(record, "weights")
    if file is None and not random and origin.get("kind") == STATED:
        logger.warning(
            "%s is loaded with its published weights, as stated by the user for features of "
            "another program; whether they made these features is not known",
            name,
        )
    elif file is None and not random and origin.get("kind") not in NAMED:
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
    if record.get("source") == "official":
        raise CheckpointError(
            f"the head was trained on {name!r}, an object of the dinov2 or dinov3 repository, which "
            "is not built by name: load it, and pass backbone=wrap_backbone(model). A file that "
            "holds its weights gives them as HeadCheckpoint.load(file).backbone_weights, for "
            "model.load_state_dict",
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
    if not folder and not _NAME.fullmatch(name):
        raise CheckpointError(
            f"the record names the model {name[:200]!r}; expected a name such as "
            "'vit_small_patch16_dinov3', or a hub repository 'user/name'. A head file names no "
            "path: load the backbone yourself and pass backbone=",
            step="pairing",
        )
    if not folder and is_folder_here:
        raise CheckpointError(
            f"the record names the model {name!r}, and the working folder holds a folder of that "
            "name, which would be loaded in its place: start elsewhere, or load the backbone "
            "yourself and pass backbone=",
            step="pairing",
        )
    try:
        backbone = load_backbone(
            str(file) if folder else name,
            pretrained=not seeded,
            checkpoint=None if folder else file,
            seed=(need(origin, "seed") if own else 0) if seeded else None,
            layers=layers,
            norm=norm,
            source=record.get("source") or "timm",
            pos_embed=record.get("pos_embed") or "native",
            dtype=_DTYPES[dtype],
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the head's backbone record cannot be followed: {error}", step="pairing"
        ) from error
    _take_normalisation(backbone, record)
    return backbone


def _take_normalisation(backbone: Backbone, record: Mapping[str, Any]) -> None:
    """Have a backbone take images with the mean and std of a record, which its user may have chosen."""
    mean = record.get("mean")
    std = record.get("std")
    adapter = backbone.adapter
    if mean is None or std is None or len(mean) != adapter.in_chans:
        return
    if _normalisation_differs(record, {"mean": adapter.mean, "std": adapter.std}):
        backbone.preprocess = Preprocessing(
            patch_size=adapter.patch_size, mean=tuple(mean), std=tuple(std)
        )
