"""Whether a backbone, and the images of a preprocessing, fit a head: their records and outputs are compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.backbones import rotary
from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import architecture_of, names_of, position_recipe
from dinoneck.backbones.weight_hashes import differs
from dinoneck.checkpoint.schema import NAMED, SAVE_AGAIN, STATED, describe_weights, need
from dinoneck.dtypes import dtype_name
from dinoneck.errors import CheckpointError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.text import counted

logger = logging.getLogger(__name__)

_LAYERS = "layers"
# entries of a record that have to be equal, and what messages call them
_MUST_AGREE = {
    "embed_dim": "token width",
    "patch_size": "patch size",
    "num_cls": "CLS tokens",
    "num_registers": "register tokens",
    "depth": "number of blocks",
    "layers": _LAYERS,
    "norm": "final norm applied",
}
_COMPARE_OUTPUTS = (
    "compare its outputs: check_backbone(backbone, probe=True), Predictor(..., probe=True)"
)
_SHORT_DIGEST = 12  # digits of a hash in a message
_CHANNEL_TOLERANCE = 1e-3  # absolute, between two values of mean or std


def check_records(
    trained: Mapping[str, Any],
    actual: Mapping[str, Any],
    *,
    layers: bool = True,
    weights: bool = True,
) -> None:
    """Compare two backbone records.

    Args:
        trained: the record in the head file.
        actual: the record of the backbone at hand.
        layers: compare the layers too.
        weights: compare architecture and digests too; off when a probe decides.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    trained_facts = _facts(trained)
    facts = _facts(actual)
    if not layers:
        del trained_facts[_LAYERS]
        del facts[_LAYERS]
    unstated = []
    differences = []
    for meaning, value in facts.items():
        trained_value = trained_facts[meaning]
        if trained_value is None and value is not None:
            unstated.append(meaning)
        elif trained_value != value:
            differences.append(
                f"{meaning}: the head was trained on {trained_value!r}, this backbone has {value!r}"
            )
    if unstated:
        raise CheckpointError(
            "the record of the backbone that this head was trained on does not state its "
            f"{', '.join(unstated)}, so {actual.get('name')!r} cannot be compared with it; "
            f"{SAVE_AGAIN}",
            step="pairing",
        )
    if weights:
        differences += _weights_differ(trained, actual)
    remedy = ""
    if differences:
        remedy = (
            f". Load {trained.get('name')!r} with layers={trained.get('layers')}, "
            f"norm={trained.get('norm')} and {_spell(trained)}"
        )
    # these have a remedy of their own
    differences += _lora_differs(trained, actual)
    differences += normalisation_differs(trained, actual)
    if differences:
        raise CheckpointError(
            f"the backbone {actual.get('name')!r} does not fit this head: "
            f"{'; '.join(differences)}{remedy}",
            step="pairing",
        )


def check_probe(trained: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
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
    dtypes = str(trained.get("dtype")), str(actual.get("dtype"))
    gap = differs(trained["probe"], actual["probe"], dtypes)
    if gap is not None:
        raise CheckpointError(
            f"the backbone {actual.get('name')!r} gives other outputs than the one this head was "
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
    dtypes = (str(trained.get("dtype")), dtype_name(backbone.dtype))
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
    rebuilt = backbone.record()
    digest = rebuilt["weights_sha256"]
    if digest is None or digest != record.get("weights_sha256"):
        return  # other weights, which are compared as such
    dtypes = str(record.get("dtype")), str(rebuilt["dtype"])
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


def check_patch(inputs: PatchSize, backbone: PatchSize) -> None:
    """Compare the patches that images are prepared for with those of a backbone.

    Raises:
        CheckpointError: if they differ, naming both.
    """
    height, width = patch_pair(inputs)
    backbone_height, backbone_width = patch_pair(backbone)
    if (height, width) != (backbone_height, backbone_width):
        raise CheckpointError(
            f"images are prepared for patches of {height}x{width} px (height x width), the "
            f"backbone has {backbone_height}x{backbone_width}: take preprocess= from the backbone, "
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
    """The entries of a record that have to be equal, by what messages call them."""
    facts = {meaning: record.get(key) for key, meaning in _MUST_AGREE.items()}
    facts["position-embedding recipe (pos_embed=)"] = position_recipe(record)
    return facts


def _lora_differs(trained: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Describe the difference between the LoRA weights of two records; empty if there is none."""
    digest = (trained.get("adapter") or {}).get("sha256")
    actual_digest = (actual.get("adapter") or {}).get("sha256")
    if digest == actual_digest:
        return []
    if actual_digest is None:
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
        f"LoRA: the head was trained with the LoRA weights {digest[:_SHORT_DIGEST]}, this backbone has "
        f"{actual_digest[:_SHORT_DIGEST]}; load the backbone again, and apply those of the head's file: "
        "HeadCheckpoint.load(file).apply_adapter(backbone)"
    ]


def normalisation_differs(trained: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Describe the difference between the mean and std of two records; empty if there is none, or one is unknown."""
    for key in ("mean", "std"):
        trained_values = trained.get(key)
        values = actual.get(key)
        if trained_values is None or values is None:
            continue
        if not are_channels_alike(trained_values, values):
            return [
                f"normalisation: the head's backbone took images with mean {trained.get('mean')} "
                f"and std {trained.get('std')}, this one takes {actual.get('mean')} and "
                f"{actual.get('std')}; set backbone.preprocess = "
                "backbone.preprocess.changed(mean=..., std=...)"
            ]
    return []


def are_channels_alike(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two means, or standard deviations, are equal to rounding in every channel."""
    if len(first) != len(second):
        return False
    return np.allclose(first, second, rtol=0, atol=_CHANNEL_TOLERANCE)


def _weights_differ(trained: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Describe how the weights of two records differ; empty if they are the same, as far as that is known."""
    trained_digest = trained.get("weights_sha256")
    digest = actual.get("weights_sha256")
    has_digests = trained_digest is not None and digest is not None
    if has_digests and trained_digest == digest:
        return []
    trained_name = str(trained.get("name"))
    name = str(actual.get("name"))
    if architecture_of(trained_name) != architecture_of(name):
        hint = " (if only names differ: probe=True)" if trained.get("probe") else ""
        return [f"model: the head was trained on {trained_name!r}, this is {name!r}{hint}"]
    origin: Mapping[str, Any] = trained.get("weights") or {}
    kind = origin.get("kind")
    if trained_digest is None and kind == STATED:
        return []  # nothing is known but the name
    if trained_digest is None and kind == "hub" and origin.get("revision") is None:
        return _copy_differs(trained, actual)
    # digests of the same weights differ across libraries and dtypes
    is_same_form = all(trained.get(key) == actual.get(key) for key in ("dtype", "source"))
    has_same_origin = kind in NAMED and origin == actual.get("weights")
    if has_same_origin and not (has_digests and is_same_form):
        return []
    difference = _names_of_weights(trained, actual)
    if not is_same_form:
        difference += (
            ". Digests of the same weights differ across libraries and dtypes: load the backbone "
            f"as in training (source={trained.get('source')!r}, "
            f"dtype=torch.{trained.get('dtype')})"
        )
        if trained.get("probe"):
            difference += f", or {_COMPARE_OUTPUTS}"
    elif not has_digests:
        remedy = _COMPARE_OUTPUTS if trained.get("probe") else SAVE_AGAIN
        difference += f". Without both hashes weights cannot be compared; {remedy}"
    return [difference]


def _copy_differs(trained: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Compare published weights, of which a head's record names no revision or hash, by their name in any library."""
    origin: Mapping[str, Any] = actual.get("weights") or {}
    kind = origin.get("kind")
    if kind == "hub" and names_of(str(trained.get("name"))) == names_of(str(actual.get("name"))):
        return []
    if kind != "file":
        return [_names_of_weights(trained, actual)]
    logger.warning(
        "the backbone's weights are of a file, and the head's file states no hash of those that "
        "it was trained on: make sure that they are the published weights of %r",
        trained.get("name"),
    )
    return []


def _names_of_weights(trained: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    """The weights of two records, which differ."""
    return f"weights: the head was trained on {_spell(trained)}, this backbone has {_spell(actual)}"


def _spell(record: Mapping[str, Any]) -> str:
    """The weights of a record in words, with the first digits of their hash."""
    origin = describe_weights(record.get("weights"))
    digest = record.get("weights_sha256") or "not recorded"
    return f"{origin}, sha256 {digest[:_SHORT_DIGEST]}"
