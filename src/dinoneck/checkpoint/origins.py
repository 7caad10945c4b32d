"""Compare what a head was trained on with the backbone and the images that it is saved or used with.

A head carries an :class:`dinoneck.layers.inputs.Origin`, which records the tokens that it was fitted
on, or those that its file names. ``save_head`` and a Predictor of modules compare it by one rule:

- If the head still has the weights that it had when its origin was recorded, a difference is an
  error.
- If its weights have changed, the user's own training loop may have fitted it to the new tokens, and
  a difference is a warning.

The backbone may also have been trained after the head. If it has LoRA weights, or its weights come
from a file of the user's own, a different fingerprint is a warning at most. If its weights were
changed since they were loaded, fingerprints are not compared.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import CHANGED, Backbone
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError
from dinoneck.grid import patch_pair
from dinoneck.layers.inputs import Origin

logger = logging.getLogger(__name__)

_CHANNEL_TOLERANCE = 1e-3  # absolute, between two values of mean or std
_REMEDY_SKIP = "to compare nothing, set head.trained_on = None"


class TrainedHead:
    """A head, and what it was trained on.

    Args:
        head: the head.
        origin: what it was trained on.
        layers: block indices of the tokens that it now receives; None: unknown.
    """

    def __init__(self, head: Any, origin: Origin, layers: tuple[int, ...] | None) -> None:
        self.head = head
        self.origin = origin
        self.layers = layers

    @property
    def name(self) -> str:
        """The class of the head."""
        return type(self.head).__name__

    @functools.cached_property
    def is_unchanged(self) -> bool:
        """Whether the head has the weights that it had when its origin was recorded."""
        recorded_digest = self.origin.head_weights
        if recorded_digest is None:
            return False
        return weight_hashes.values_digest(self.head) == recorded_digest

    @property
    def has_reliable_layers(self) -> bool:
        """Whether the recorded layers and norm still hold.

        They do for a head that rejects other tokens, even if its weights changed: it cannot have
        been trained on others.
        """
        return self.origin.refuses_tokens or self.is_unchanged

    @functools.cached_property
    def images(self) -> Preprocessing | None:
        """How the images that it was trained on were prepared; None: unknown."""
        if self.origin.images is None:
            return None
        return Preprocessing.from_record(self.origin.images)


def is_changed(record: Mapping[str, Any]) -> bool:
    """Return whether a backbone was trained, or had LoRA merged into it, since its weights were loaded."""
    weights = record.get("weights")
    return isinstance(weights, Mapping) and weights.get("kind") in CHANGED


def check_tokens_of(module: nn.Module, record: Mapping[str, Any] | None) -> None:
    """Check that the heads in a module were trained on tokens of one backbone, and of this one.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        record: record of the backbone, with the layers and the norm of its tokens. None: the heads
            are only compared with each other.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    layers = None if record is None else record.get("layers")
    heads = list(trained_heads(module, layers))
    _check_members(heads)
    if record is None:
        return
    for trained in heads:
        _check_geometry(trained, record)
        _check_weights(trained, record)


def check_images_of(module: nn.Module, images: Preprocessing | None) -> None:
    """Check that images are prepared as they were when the heads in a module were trained.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        images: how images will be prepared; None: not stated, and nothing is compared.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    if images is None:
        return
    for trained in trained_heads(module):
        if trained.images is None:
            continue
        differences = _image_differences(trained.images, images)
        if not differences:
            continue
        problem = (
            f"this {trained.name} was trained on images that were prepared in another way "
            f"({'; '.join(differences)})"
        )
        if trained.is_unchanged:
            raise CheckpointError(
                f"{problem}: leave preprocess= out, and images are prepared as in training; "
                f"Predictor(file, preprocess=...) prepares them in another way later, and {_REMEDY_SKIP}",
                step="pairing",
            )
        logger.warning("%s; pass preprocess= as in the training", problem)


def images_for(
    module: nn.Module, backbone: Backbone | Mapping[str, Any] | None
) -> Preprocessing | None:
    """Return how to prepare images for the heads in a module if the user does not pass ``preprocess=``.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        backbone: the backbone, whose ``preprocess`` the user may have set, or its record.

    Returns:
        The preprocessing that the heads were trained with, or else the one that the user set on the
        backbone. None if that equals the model's default, or if neither is known.

    Raises:
        CheckpointError: if the two differ.
    """
    default_images = _default_images(backbone)
    user_images = None
    if isinstance(backbone, Backbone) and backbone.preprocess != default_images:
        user_images = backbone.preprocess
    head_images = None
    for trained in trained_heads(module):
        if trained.images is not None and trained.is_unchanged:
            head_images = trained.images
            break
    if head_images is None:
        return user_images
    if user_images is not None:
        differences = _image_differences(head_images, user_images)
        if differences:
            raise CheckpointError(
                f"this {type(module).__name__} was trained on images that were prepared in "
                f"another way than backbone.preprocess does ({'; '.join(differences)}); pass "
                "preprocess= as in the training",
                step="pairing",
            )
        if head_images.size is None:
            return user_images
    if default_images is None:
        default_images = Preprocessing(
            patch_size=head_images.patch_size, mean=head_images.mean, std=head_images.std
        )
    return None if head_images == default_images else head_images


def trained_heads(module: nn.Module, layers: Sequence[int] | None = None) -> Iterator[TrainedHead]:
    """Yield the heads in a module that record what they were trained on.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        layers: block indices of the tokens that the module receives; None: unknown.
    """
    # duck-typed: this package reaches the classes of heads through the registry, without an import
    readers: Any = getattr(module, "readers", None)
    if readers is not None:
        for head, head_layers in readers(layers):
            if head.trained_on is not None:
                yield TrainedHead(head, head.trained_on, head_layers)
        return
    for child in module.children():
        yield from trained_heads(child, layers)


def _check_members(heads: Sequence[TrainedHead]) -> None:
    """Raise a CheckpointError if no single backbone gives the tokens that all heads were trained on."""
    for first, second in itertools.pairwise(heads):
        differences = _member_differences(first, second)
        if differences and first.is_unchanged and second.is_unchanged:
            raise CheckpointError(
                "the heads of this ensemble were trained on tokens of different backbones, and "
                f"an ensemble reads those of one ({'; '.join(differences)}). Save every head with "
                "its own backbone, run the files next to each other with Predictor({'a': FILE, "
                "'b': FILE}), and average what it returns",
                step="pairing",
            )


def _member_differences(first: TrainedHead, second: TrainedHead) -> list[str]:
    """Describe what differs between the recorded tokens and images of two heads."""
    comparisons: list[tuple[str, Any, Any]] = [
        ("fingerprint of the weights", first.origin.source, second.origin.source),
        ("final norm applied", first.origin.normed, second.origin.normed),
    ]
    differences = _describe_differences(comparisons)
    if first.images is not None and second.images is not None:
        differences += _image_differences(first.images, second.images)
    return differences


def _check_geometry(trained: TrainedHead, record: Mapping[str, Any]) -> None:
    """Compare layers, norm and patch size with those of the backbone."""
    origin = trained.origin
    norm = record.get("norm")
    patch_size = record.get("patch_size")
    comparisons: list[tuple[str, Any, Any]] = [("norm", origin.normed, norm)]
    if origin.patch_size is not None and patch_size is not None:
        comparisons.append(("patch size", patch_pair(origin.patch_size), patch_pair(patch_size)))
    differences = _describe_differences(comparisons) + _layer_differences(trained)
    if not differences:
        return
    problem = (
        f"this {trained.name} was trained on other tokens than the backbone gives "
        f"({'; '.join(differences)})"
    )
    if trained.has_reliable_layers:
        layers = None if origin.layers is None else list(origin.layers)
        raise CheckpointError(
            f"{problem}: pass the backbone with the layers and the norm of the training, "
            f"backbone.with_layers({layers}, norm={origin.normed}); {_REMEDY_SKIP}",
            step="pairing",
        )
    logger.warning("%s; make sure that it was trained on these since", problem)


def _layer_differences(trained: TrainedHead) -> list[str]:
    """Describe how the layers that a head receives differ from those that it was trained on."""
    trained_layers = trained.origin.layers
    received_layers = trained.layers
    if trained_layers is None or received_layers is None:
        return []
    selected_layers = getattr(trained.head, "layer_indices", None)
    if selected_layers is not None and set(selected_layers) <= set(received_layers):
        return []  # the head selects its layers, and all of them are there
    if getattr(trained.head, "_reads_last_layer", False):
        return _describe_differences(
            [("the last of the layers", trained_layers[-1], received_layers[-1])]
        )
    return _describe_differences([("layers", trained_layers, received_layers)])


def _check_weights(trained: TrainedHead, record: Mapping[str, Any]) -> None:
    """Compare the fingerprint of the backbone that the head was trained with, and of this one."""
    if is_changed(record):
        return
    fingerprint = weight_hashes.fingerprint_from_record(record)
    trained_fingerprint = trained.origin.source
    if fingerprint is None or trained_fingerprint is None or fingerprint == trained_fingerprint:
        return
    problem = (
        f"this {trained.name} was trained on tokens of a backbone with the fingerprint "
        f"{trained_fingerprint}, and this backbone has {fingerprint}"
    )
    remedy = (
        "pass the backbone that made the tokens, with what was trained along; that of a head's "
        "file is HeadCheckpoint.load(file).load_backbone()"
    )
    has_lora = record.get("adapter") is not None
    weights = record.get("weights")  # early records have none
    is_of_file = isinstance(weights, Mapping) and weights.get("kind") == "file"
    if has_lora and not trained.is_unchanged:
        return  # the head and the LoRA weights may have been trained together
    if is_of_file and not has_lora:
        # LoRA weights may be merged into the file: other weights, but the tokens of the training
        logger.warning(
            "%s, of a file, which names weights that it was not trained on: right if that file holds "
            "what was trained along with the head, such as merged LoRA weights; else %s",
            problem,
            remedy,
        )
        return
    if trained.is_unchanged and not has_lora:
        raise CheckpointError(f"{problem}: {remedy}; {_REMEDY_SKIP}", step="pairing")
    logger.warning("%s, which names weights that it was not trained on: %s", problem, remedy)


def _image_differences(trained: Preprocessing, given: Preprocessing) -> list[str]:
    """Describe the settings by which two preprocessings give different pixel values.

    Sizes are compared only if the head was trained at a fixed size.
    """
    comparisons: list[tuple[str, Any, Any]] = [
        ("patch_size", patch_pair(trained.patch_size), patch_pair(given.patch_size)),
        ("blur", trained.blur or 1, given.blur or 1),
    ]
    if trained.size is not None and given.size is None:
        comparisons.append(("size", trained.size, "that of each image"))
    elif trained.size is not None:
        comparisons += [
            ("size", trained.size, given.size),
            ("resize", trained.resize, given.resize),
            ("pad_to", trained.pad_to, given.pad_to),
            ("interpolation", trained.interpolation, given.interpolation),
        ]
    if trained.bits is not None and given.bits is not None:
        comparisons.append(("bits", trained.bits, given.bits))
    for name in ("mean", "std"):
        trained_channels = getattr(trained, name)
        given_channels = getattr(given, name)
        is_same = len(trained_channels) == len(given_channels) and np.allclose(
            trained_channels, given_channels, rtol=0, atol=_CHANNEL_TOLERANCE
        )
        if not is_same:
            comparisons.append((name, trained_channels, given_channels))
    return _describe_differences(comparisons)


def _describe_differences(comparisons: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """Return "name: first / second" for each pair of values that differ; None counts as unknown."""
    differences = []
    for name, first, second in comparisons:
        if first is not None and second is not None and first != second:
            differences.append(f"{name}: {first} / {second}")
    return differences


def _default_images(backbone: Backbone | Mapping[str, Any] | None) -> Preprocessing | None:
    """Return a model's default preprocessing, which keeps the size of each image; None: unknown."""
    if isinstance(backbone, Backbone):
        preprocess = backbone.preprocess
        return Preprocessing(
            patch_size=preprocess.patch_size, mean=preprocess.mean, std=preprocess.std
        )
    record = backbone or {}
    patch_size = record.get("patch_size")
    mean = record.get("mean")
    std = record.get("std")
    if patch_size is None or mean is None or std is None:
        return None
    return Preprocessing(patch_size=patch_pair(patch_size), mean=tuple(mean), std=tuple(std))
