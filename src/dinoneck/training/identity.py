"""What makes a run the run that it is: a state of another one is not resumed from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.codec import encode
from dinoneck.devices import bytes_of
from dinoneck.training.folder import BACKBONE, SAMPLES, SAMPLES_OF_0_3, TOKENS
from dinoneck.training.objective import Objective
from dinoneck.training.samples import Samples
from dinoneck.training.token_sources import LiveTokens, TokenSource, digest_of, has_stored

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of a function or an object


def identity_of(
    objective: Objective, source: TokenSource, samples: Samples, parameters: Sequence[Tensor]
) -> dict[str, Any]:
    """Return what makes a run this one: recipe, head and loss, ids and targets, and the tokens.

    The weights that are trained are not part of it: a resumed run takes those of its state.

    Args:
        objective: with the head and, of live tokens, the backbone.
        source: of the tokens.
        samples: of the run.
        parameters: all that the optimizer has.

    Returns:
        Values as JSON has them.
    """
    head = objective.trained.head
    loss = objective.loss
    trained_shapes = {}
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            trained_shapes[name] = parameter.shape
    weighting = None
    if loss.weighting is not None:
        weighting = {type(loss.weighting).__qualname__: loss.weighting.config}

    # intervals are no part of the loss, and the head has none any more
    compositions = []
    for part in loss.compositions:
        compositions.append(replace(part, composition=replace(part.composition, interval=())))

    without_tokens = _hash_of_samples(samples)
    with_tokens = without_tokens.copy()
    if has_stored(source):
        tensors, _ = source.stored(samples.ids[:1])
        for x in tensors:
            with_tokens.update(f"tokens {x.dtype} {tuple(x.shape)} ".encode() + bytes_of(x))
    tokens = digest_of(source, samples.ids)
    hash_of_samples = with_tokens if tokens is None else without_tokens

    identity = {
        "recipe": objective.recipe.to_dict(),
        "head": {type(head).__name__: encode(head.config)},
        "trained": trained_shapes,
        "weighting": weighting,
        "loss": [encode(part) for part in (*compositions, *loss.regularisers)],
        SAMPLES_OF_0_3: with_tokens.hexdigest(),
        SAMPLES: hash_of_samples.hexdigest(),
        TOKENS: tokens,
        BACKBONE: _identity_of_backbone(source, parameters),
    }
    # as the state of an earlier run holds it: tuples are lists there
    json_values: dict[str, Any] = json.loads(json.dumps(identity))
    return json_values


def _hash_of_samples(samples: Samples) -> hashlib._Hash:
    """Return a SHA-256 of the ids and targets, which more can be added to."""
    tensors = dict(samples.targets.values)
    for name, weight in samples.targets.cell_weights.items():
        tensors[f"{name}.weight"] = weight
    total = hashlib.sha256(repr([samples.train_count, *map(str, samples.ids)]).encode())
    for name, x in sorted(tensors.items()):
        total.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode() + bytes_of(x))
    return total


def _identity_of_backbone(
    source: TokenSource, parameters: Sequence[Tensor]
) -> dict[str, Any] | None:
    """Return what decides which tokens a backbone makes, without its trained weights; None without live tokens."""
    if not isinstance(source, LiveTokens):
        return None
    backbone = cast("Backbone", plain_backbone(source.backbone))
    adapter = backbone.adapter
    return {
        "layers": backbone.layers,
        "norm": backbone.norm,
        "patch_size": adapter.patch_size,
        "pos_embed": adapter.pos_embed,
        "preprocess": source.preprocess.record(),
        "transform": _ADDRESS.sub("", repr(source.transform)),
        "LoRA": adapter.lora,
        "weights that are not trained": weight_hashes.digest_without(adapter, parameters),
    }
