"""Compare what a head was trained on with the backbone and the images that it is saved or used with.

A head carries an :class:`dinoneck.layers.inputs.Origin`, which records the tokens that it was fitted
on, or those that its file names. ``save_head`` and a Predictor of modules compare it by one rule:

- If the head still has the weights that it had when its origin was recorded, a difference is an
  error.
- If its weights have changed, the user's own training loop may have fitted it to the new tokens, and
  a difference is a warning.

The backbone may also have been trained after the head. If it has LoRA weights, if its weights come
from a file of the user's own, or if they were changed since they were loaded, a different
fingerprint is a warning at most. Merging LoRA changes the fingerprint, not the tokens.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.compare import are_channels_alike
from dinoneck.errors import CheckpointError
from dinoneck.grid import patch_pair
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.layers.inputs import Origin

logger = logging.getLogger(__name__)

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
    return isinstance(weights, Mapping) and weights.get("kind") in weight_hashes.CHANGED


def check_tokens_of(
    module: nn.Module, record: Mapping[str, Any] | None, *, before_merge: str | None = None
) -> None:
    """Check that the heads in a module were trained on tokens of one backbone, and of this one.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        record: record of the backbone, with the layers and the norm of its tokens. None: the heads
            are only compared with each other.
        before_merge: the fingerprint that the backbone had before LoRA was merged into it, if that
            is known.

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
        _check_weights(trained, record, before_merge)


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
        logger.warning(
            "%s; right if its weights were trained on images that are prepared so since", problem
        )


def images_for(
    module: nn.Module,
    backbone: Backbone | Mapping[str, Any] | None,
    in_files: Preprocessing | None = None,
) -> Preprocessing | None:
    """Return how to prepare images for the heads in a module if the user does not pass ``preprocess=``.

    Args:
        module: a head, an ensemble, or a module with heads in it.
        backbone: the backbone, whose ``preprocess`` the user may have set, or its record.
        in_files: how the files of those heads that come from files prepare them.

    Returns:
        The preprocessing that the heads were trained with, or else the one that the user set on the
        backbone. None if that equals the model's default, or if neither is known. A head that was
        trained since keeps the one that it was known to be trained with, and a warning says so.

    Raises:
        CheckpointError: if they differ.
    """
    head_images = []
    images_before = []
    for trained in trained_heads(module):
        if trained.images is not None and trained.is_unchanged:
            head_images.append(trained.images)
        elif trained.images is not None:
            images_before.append(trained.images)
    _check_same_images(module, head_images if in_files is None else [in_files, *head_images])
    if in_files is not None:
        return in_files
    default_images = _default_images(backbone)
    user_images = None
    if isinstance(backbone, Backbone) and backbone.preprocess != default_images:
        user_images = backbone.preprocess
    if not head_images:
        if user_images is not None or not images_before:
            return user_images
        return _images_before_a_loop(module, images_before[0], default_images)
    if user_images is not None:
        differences = _image_differences(head_images[0], user_images)
        if differences:
            raise CheckpointError(
                f"this {type(module).__name__} was trained on images that were prepared in "
                f"another way than backbone.preprocess does ({'; '.join(differences)}); pass "
                "preprocess= as in the training",
                step="pairing",
            )
        if head_images[0].size is None:
            return user_images
    return _unless_default(head_images[0], default_images)


def _check_same_images(module: nn.Module, images: Sequence[Preprocessing]) -> None:
    """Raise a CheckpointError if heads that get the same images were trained on images prepared differently."""
    for first, second in itertools.pairwise(images):
        # only the first one's size counts in a comparison
        differences = _image_differences(first, second) or _image_differences(second, first)
        if differences:
            raise CheckpointError(
                f"the heads of this {type(module).__name__} were trained on images that were "
                f"prepared in different ways ({'; '.join(differences)}), and get the same ones: pass "
                "preprocess=, or run them next to each other with Predictor({'a': HEAD, 'b': HEAD}), "
                "and average what it returns",
                step="pairing",
            )


def _images_before_a_loop(
    module: nn.Module, images_before: Preprocessing, default_images: Preprocessing | None
) -> Preprocessing | None:
    """Return how to prepare images for a head whose weights changed since its origin was recorded, with a warning.

    A loop of the user's own, an average of weights and ``load_state_dict`` change them.
    """
    images = _unless_default(images_before, default_images)
    differences = []
    if images is not None and default_images is not None:
        differences = _image_differences(images, default_images)
    if differences:
        logger.warning(
            "the weights of this %s changed after it was trained, and images are prepared as in that "
            "training (its value / the backbone's own: %s); pass preprocess= if it was trained on "
            "other images since",
            type(module).__name__,
            "; ".join(differences),
        )
    return images


def _unless_default(
    images: Preprocessing, default_images: Preprocessing | None
) -> Preprocessing | None:
    """Return how images are prepared; None if that is the model's default."""
    if default_images is None:
        default_images = Preprocessing(
            patch_size=images.patch_size, mean=images.mean, std=images.std
        )
    return None if images == default_images else images


def is_head(module: nn.Module) -> bool:
    """Return whether a module is a head with tasks; the classes are reached through the registry only."""
    return hasattr(type(module), "trained_on")


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
    for first, second in itertools.combinations(heads, 2):  # a value may be unknown of some
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
    """Describe what differs between the recorded tokens of two heads."""
    comparisons: list[tuple[str, Any, Any]] = [
        ("fingerprint of the weights", first.origin.source, second.origin.source),
        ("final norm applied", first.origin.normed, second.origin.normed),
    ]
    return _describe_differences(comparisons)


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
    if getattr(trained.head, "reads_last_layer", False):
        return _describe_differences(
            [("the last of the layers", trained_layers[-1], received_layers[-1])]
        )
    return _describe_differences([("layers", trained_layers, received_layers)])


def _check_weights(
    trained: TrainedHead, record: Mapping[str, Any], before_merge: str | None
) -> None:
    """Compare the fingerprint of the backbone that the head was trained with, and of this one."""
    fingerprint = weight_hashes.fingerprint_from_record(record)
    trained_fingerprint = trained.origin.source
    if None in (fingerprint, trained_fingerprint):
        return
    if trained_fingerprint in (fingerprint, before_merge):
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
    was_trained_since = has_lora or is_changed(record)
    if was_trained_since and not trained.is_unchanged:
        return  # the head and these weights may have been trained together
    if is_changed(record):
        logger.warning(
            "%s, which names weights that it was not trained on, as the backbone was trained since, "
            "or had LoRA merged into it: right if the head was frozen meanwhile; else %s",
            problem,
            remedy,
        )
        return
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
        if not are_channels_alike(trained_channels, given_channels):
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
