"""Does a backbone fit a head? Compares the record a head was trained with against a backbone's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinoneck.errors import CheckpointError

_MUST_AGREE = {
    "embed_dim": "token width",
    "patch_size": "patch size",
    "num_cls": "CLS tokens",
    "num_registers": "register tokens",
    "depth": "number of blocks",
    "layers": "layers",
    "norm": "final norm applied",
    "pos_embed": "position-embedding recipe",
}


NAMED = ("seeded", "hub")


def check_records(trained: Mapping[str, Any], given: Mapping[str, Any], *, layers: bool = True) -> None:
    """Compare two backbone records.

    Args:
        trained: the record in the head file.
        given: the record of the backbone at hand.
        layers: compare the layers too.

    Raises:
        CheckpointError: naming what differs, both values and the remedy.
    """
    differences = [
        f"{meaning}: the head was trained on {trained.get(key)!r}, this backbone has {given.get(key)!r}"
        for key, meaning in _MUST_AGREE.items()
        if trained.get(key) != given.get(key) and (layers or key != "layers")
    ]
    differences += _weights_differ(trained, given)
    if differences:
        raise CheckpointError(
            f"the backbone {given.get('name')!r} does not fit this head: {'; '.join(differences)}. Load "
            f"{trained.get('name')!r} with layers={trained.get('layers')}, norm={trained.get('norm')} and the weights "
            f"{_spell(trained)}",
            step="pairing",
        )


def _weights_differ(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    digests = trained.get("weights_sha256"), given.get("weights_sha256")
    if None not in digests and digests[0] == digests[1]:
        return []
    if _architecture(trained) != _architecture(given):
        return [f"model: the head was trained on {trained.get('name')!r}, this is {given.get('name')!r}"]
    if None not in digests and trained.get("dtype") == given.get("dtype"):
        return [f"weights: the head was trained on {_spell(trained)}, this backbone has {_spell(given)}"]
    if trained.get("weights") != given.get("weights"):
        return [f"weights: the head was trained on {_spell(trained)}, this backbone has {_spell(given)}"]
    origin = trained.get("weights")
    if isinstance(origin, Mapping) and origin.get("kind") in NAMED:
        return []
    return [
        f"weights: those of a file or object cannot be compared in another dtype; load the backbone with "
        f"dtype=torch.{trained.get('dtype')}, as in training"
    ]


def _architecture(record: Mapping[str, Any]) -> str:
    return str(record.get("name")).split(".", 1)[0]


def _spell(record: Mapping[str, Any]) -> str:
    weights = record.get("weights")
    origin = weights if isinstance(weights, Mapping) else {}
    if origin.get("kind") == "seeded":
        text = f"seeded random weights (seed {origin.get('seed')})"
    elif origin.get("kind") == "hub":
        text = f"the published weights of {origin.get('repo')} at {origin.get('revision')}"
    else:
        text = "weights from a file or an object"
    return f"{text}, sha256 {str(record.get('weights_sha256'))[:12]}"
