"""The backbone of features that other programs stored: what the user states, compared with what the files show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinoneck.backbones.known import (
    TINY,
    TINY_DEPTH,
    TINY_WIDTH,
    Known,
    family_of,
    license_of,
    model_of,
    normalisation_of,
    resolve_name,
)
from dinoneck.checkpoint.schema import STATED
from dinoneck.errors import ConfigError
from dinoneck.grid import patch_pair
from dinoneck.images.recipe import IMAGENET_MEAN, IMAGENET_STD
from dinoneck.training.config import BackboneConfig

_TINY = Known(TINY, 16, TINY_WIDTH, TINY_DEPTH, registers=2, hubs={})


def stated_record(
    backbone: BackboneConfig, stored: Mapping[str, Any], store: str
) -> dict[str, Any]:
    """Return the record of a backbone that the user names, after it has been compared with the stored features.

    Width, patch and number of layers are in the files and have to be the model's. Which weights
    made them is in no file: the record says that it is stated.

    Args:
        backbone: its name, and the block that was read; the last one if ``layers`` is None.
        stored: record of the store.
        store: its path, for messages.

    Raises:
        ConfigError: if no name is given or it is not published, or the features are another
            model's.
    """
    if backbone.name is None:
        raise ConfigError(
            f"the store {store} was made of files that name no backbone; name it: --backbone NAME, "
            "and --layers BLOCK if it was not the last one"
        )
    model = _TINY if backbone.name == TINY else model_of(backbone.name)
    if model is None:
        raise ConfigError(
            f"--backbone {backbone.name} is not a published model, so the features of {store} "
            "cannot be compared with it; 'dinoneck list backbones' lists those, or use "
            "training.fit"
        )
    layers = (model.depth - 1,) if backbone.layers is None else backbone.layers
    _check_features(model, layers, stored, store)
    name = resolve_name(backbone.name)
    mean, std = normalisation_of(name) or (IMAGENET_MEAN, IMAGENET_STD)
    return {
        "name": name,
        "family": family_of(name),
        "source": "timm",
        "patch_size": list(patch_pair(model.patch)),
        "embed_dim": model.width,
        "depth": model.depth,
        "num_cls": 1,
        "num_registers": model.registers,
        "layers": list(layers),
        "norm": True,
        "pos_embed": "native",
        "mean": list(mean),
        "std": list(std),
        "dtype": "float32",
        "adapter": None,
        "weights": {"kind": STATED},
        "weights_sha256": None,
        "license": license_of(name),
    }


def _check_features(
    model: Known, layers: tuple[int, ...], stored: Mapping[str, Any], store: str
) -> None:
    """Check that a model has the width and the patch of the features, and the layer that they are of.

    Raises:
        ConfigError: naming both.
    """
    width = stored["embed_dim"]
    if width != model.width:
        raise ConfigError(
            f"the features of {store} have {width} channels, and {model.name} gives {model.width}; "
            "another --backbone made them"
        )
    patch = tuple(stored["patch_size"])
    if patch != patch_pair(model.patch):
        raise ConfigError(
            f"the store {store} was made with patch_size {patch}, and {model.name} has "
            f"{model.patch}; make the store anew with the patch of its backbone"
        )
    if len(layers) != 1:
        raise ConfigError(
            f"--layers is {layers}, and the features of {store} are of one layer; give one block"
        )
    if not 0 <= layers[0] < model.depth:
        raise ConfigError(
            f"--layers is {layers[0]}, and {model.name} has the blocks 0 ... {model.depth - 1}"
        )
