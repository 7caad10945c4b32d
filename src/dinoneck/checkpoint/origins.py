"""What a head was trained on, compared with the backbone and the images that it is saved or used with.

A head carries an :class:`dinoneck.layers.inputs.Origin`: of the file it was loaded from, or of the
tokens that it was fitted on. One rule holds for ``save_head`` and for a Predictor of modules: while
the head has the weights that it had when this was noted, what differs is an error. If it was
trained since, by a loop of the user's own, it may fit the new tokens: a warning names what differs.

The same holds for a backbone whose weights were changed since they were loaded: it may have been
trained after the head. LoRA weights and those of a file of the user's own are named in a warning,
other changes are not compared.
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

_SAME_CHANNEL = 1e-3  # of mean and std, as backbones are compared
_NOTHING = "to compare nothing, set head.trained_on = None"


class Trained:
    """A head, and what it was trained on.

    Args:
        head: that reads tokens.
        origin: what it was trained on.
        layers: block indices of the tokens that it is given; None = unknown.
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
        """Whether the head has the weights that it had when its origin was noted."""
        noted = self.origin.head_weights
        return noted is not None and weight_hashes.values_digest(self.head) == noted

    @property
    def has_certain_layers(self) -> bool:
        """Whether its layers and norm are known: a head that refuses other tokens was trained on no others."""
        return self.origin.refuses_tokens or self.is_unchanged

    @functools.cached_property
    def images(self) -> Preprocessing | None:
        """How the images of its tokens were prepared; None = unknown."""
        record = self.origin.images
        return None if record is None else Preprocessing.from_record(record)


def is_changed(record: Mapping[str, Any]) -> bool:
    """Whether the weights of a record were trained since they were loaded, or LoRA was merged into them."""
    origin = record.get("weights")
    return isinstance(origin, Mapping) and origin.get("kind") in CHANGED


def check_tokens_of(module: nn.Module, record: Mapping[str, Any] | None) -> None:
    """Compare what the heads in a module were trained on with each other and with a backbone.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        record: of the backbone, with the layers and the norm that the heads are given; None = only
            the heads are compared with each other.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    layers = None if record is None else record.get("layers")
    heads = [*trained_heads(module, layers)]
    _check_alike(heads)
    if record is None:
        return
    for trained in heads:
        _check_geometry(trained, record)
        _check_weights(trained, record)


def check_images_of(module: nn.Module, images: Preprocessing | None) -> None:
    """Compare how images are prepared with how they were for the tokens of the heads in a module.

    Args:
        module: as for :func:`check_tokens_of`.
        images: how images will be prepared; None = not stated.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    if images is None:
        return
    for trained in trained_heads(module):
        if trained.images is None:
            continue
        differing = _different_images(trained.images, images)
        if not differing:
            continue
        problem = (
            f"this {trained.name} was trained on images that were prepared in another way "
            f"({'; '.join(differing)})"
        )
        if trained.is_unchanged:
            raise CheckpointError(
                f"{problem}: leave preprocess= out, and images are prepared as in training; "
                f"Predictor(file, preprocess=...) prepares them in another way later, and {_NOTHING}",
                step="pairing",
            )
        logger.warning("%s; pass preprocess= as in the training", problem)


def images_for(
    module: nn.Module, backbone: Backbone | Mapping[str, Any] | None
) -> Preprocessing | None:
    """Return how images are prepared for the heads in a module where ``preprocess=`` does not say it.

    Args:
        module: as for :func:`check_tokens_of`.
        backbone: the backbone, whose ``preprocess`` may have been set, or its record.

    Returns:
        As for the tokens that the heads were trained on; else as it was set for the backbone. None
        where that is what the model's name gives, or nothing is known.

    Raises:
        CheckpointError: if the two differ.
    """
    named = _plain_images(backbone)
    was_set = None
    if isinstance(backbone, Backbone) and backbone.preprocess != named:
        was_set = backbone.preprocess
    known = None
    for trained in trained_heads(module):
        if trained.images is not None and trained.is_unchanged:
            known = trained.images
            break
    if known is None:
        return was_set
    if was_set is not None:
        differing = _different_images(known, was_set)
        if differing:
            raise CheckpointError(
                f"this {type(module).__name__} was trained on images that were prepared in "
                f"another way than backbone.preprocess does ({'; '.join(differing)}); pass "
                "preprocess= as in the training",
                step="pairing",
            )
        if known.size is None:
            return was_set
    if named is None:
        named = Preprocessing(patch_size=known.patch_size, mean=known.mean, std=known.std)
    return None if known == named else known


def trained_heads(module: nn.Module, layers: Sequence[int] | None = None) -> Iterator[Trained]:
    """Yield the heads in a module of which it is known what they were trained on.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        layers: block indices that it is given; None = unknown.
    """
    readers: Any = getattr(module, "readers", None)  # heads are reached through the registry only
    if readers is not None:
        for head, given in readers(layers):
            if head.trained_on is not None:
                yield Trained(head, head.trained_on, given)
        return
    for child in module.children():
        yield from trained_heads(child, layers)


def _check_alike(heads: Sequence[Trained]) -> None:
    """Raise a CheckpointError for heads that were trained on tokens of which one backbone gives only some."""
    for first, second in itertools.pairwise(heads):
        differing = _different_members(first, second)
        if differing and first.is_unchanged and second.is_unchanged:
            raise CheckpointError(
                "the heads of this ensemble were trained on tokens of different backbones, and "
                f"an ensemble reads those of one ({'; '.join(differing)}). Save every head with "
                "its own backbone, run the files next to each other with Predictor({'a': FILE, "
                "'b': FILE}), and average what it returns",
                step="pairing",
            )


def _different_members(first: Trained, second: Trained) -> list[str]:
    """What differs between the tokens and images of two heads, where both are known."""
    pairs: list[tuple[str, Any, Any]] = [
        ("fingerprint of the weights", first.origin.source, second.origin.source),
        ("final norm applied", first.origin.normed, second.origin.normed),
    ]
    if first.images is not None and second.images is not None:
        images = _different_images(first.images, second.images)
    else:
        images = []
    return _different(pairs) + images


def _check_geometry(trained: Trained, record: Mapping[str, Any]) -> None:
    """Compare layers, norm and patch size with those of the backbone."""
    origin = trained.origin
    norm = record.get("norm")
    patch = record.get("patch_size")
    pairs: list[tuple[str, Any, Any]] = [("norm", origin.normed, norm)]
    if origin.patch_size is not None and patch is not None:
        pairs.append(("patch size", patch_pair(origin.patch_size), patch_pair(patch)))
    differing = _different(pairs) + _different_layers(trained)
    if not differing:
        return
    problem = (
        f"this {trained.name} was trained on other tokens than the backbone gives "
        f"({'; '.join(differing)})"
    )
    if trained.has_certain_layers:
        layers = None if origin.layers is None else list(origin.layers)
        raise CheckpointError(
            f"{problem}: pass the backbone with the layers and the norm of the training, "
            f"backbone.with_layers({layers}, norm={origin.normed}); {_NOTHING}",
            step="pairing",
        )
    logger.warning("%s; make sure that it was trained on these since", problem)


def _different_layers(trained: Trained) -> list[str]:
    own, given = trained.origin.layers, trained.layers
    if own is None or given is None:
        return []
    reads = getattr(trained.head, "layer_indices", None)
    if reads is not None and {*reads} <= {*given}:
        return []  # it selects its own
    if getattr(trained.head, "_reads_last_layer", False):
        return _different([("the last of the layers", own[-1], given[-1])])
    return _different([("layers", own, given)])


def _check_weights(trained: Trained, record: Mapping[str, Any]) -> None:
    """Compare the weights that made the tokens with those of the backbone."""
    named = weight_hashes.fingerprint_from_record(record)
    source = trained.origin.source
    if is_changed(record) or named is None or source is None or named == source:
        return
    problem = (
        f"this {trained.name} was trained on tokens of a backbone with the fingerprint {source}, "
        f"and this backbone has {named}"
    )
    remedy = (
        "pass the backbone that made the tokens, with what was trained along; that of a head's "
        "file is HeadCheckpoint.load(file).load_backbone()"
    )
    has_lora = record.get("adapter") is not None
    # a file may hold LoRA weights of the training, which were merged: other weights, the same tokens
    is_of_file = record["weights"]["kind"] == "file"
    if is_of_file and not has_lora:
        logger.warning(
            "%s, of a file: right if the file holds what was trained along with the head, such as "
            "merged LoRA weights; else %s",
            problem,
            remedy,
        )
        return
    if trained.is_unchanged and not has_lora:
        raise CheckpointError(f"{problem}: {remedy}; {_NOTHING}", step="pairing")
    if trained.is_unchanged or not has_lora:
        logger.warning("%s, which names weights that it was not trained on: %s", problem, remedy)


def _different_images(trained: Preprocessing, given: Preprocessing) -> list[str]:
    """What gives other values or pixels; images without a size may have been of any."""
    pairs: list[tuple[str, Any, Any]] = [
        ("patch_size", patch_pair(trained.patch_size), patch_pair(given.patch_size)),
        ("blur", trained.blur or 1, given.blur or 1),
    ]
    if trained.size is not None and given.size is None:
        pairs.append(("size", trained.size, "that of each image"))
    elif trained.size is not None:
        pairs += [
            ("size", trained.size, given.size),
            ("resize", trained.resize, given.resize),
            ("pad_to", trained.pad_to, given.pad_to),
            ("interpolation", trained.interpolation, given.interpolation),
        ]
    if trained.bits is not None and given.bits is not None:
        pairs.append(("bits", trained.bits, given.bits))
    for name in ("mean", "std"):
        own, other = getattr(trained, name), getattr(given, name)
        is_same = len(own) == len(other) and np.allclose(own, other, rtol=0, atol=_SAME_CHANNEL)
        if not is_same:
            pairs.append((name, own, other))
    return _different(pairs)


def _different(pairs: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """The names and both values of what is known twice and differs."""
    differing = []
    for name, own, given in pairs:
        if own is not None and given is not None and own != given:
            differing.append(f"{name}: {own} / {given}")
    return differing


def _plain_images(backbone: Backbone | Mapping[str, Any] | None) -> Preprocessing | None:
    """How a model's name alone has images prepared: each at its own size; None = unknown."""
    if isinstance(backbone, Backbone):
        own = backbone.preprocess
        return Preprocessing(patch_size=own.patch_size, mean=own.mean, std=own.std)
    record = backbone or {}
    patch, mean, std = (record.get(key) for key in ("patch_size", "mean", "std"))
    if patch is None or mean is None or std is None:
        return None
    return Preprocessing(patch_size=patch_pair(patch), mean=tuple(mean), std=tuple(std))
