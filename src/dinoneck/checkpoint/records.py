"""The records inside a head file's header: which values they may hold. Checked without torch.

A record may lack an entry (somebody may hand in his own), but an entry that is there has the right type; who
needs a missing one says so then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dinoneck.errors import CheckpointError


def check_entries(meta: Mapping[str, Any], name: str) -> None:
    """Check the backbone, inputs and tasks of a header.

    Raises:
        CheckpointError: naming the entry that has another type than expected.
    """
    if meta["backbone"] is not None:
        _check(meta["backbone"], _BACKBONE, f"{name}: backbone")
        if isinstance(weights := meta["backbone"].get("weights"), Mapping):
            _check(weights, _WEIGHTS, f"{name}: backbone.weights")
        if isinstance(adapter := meta["backbone"].get("adapter"), Mapping):
            odd = [key for key in _LORA if adapter.get(key) is None] + sorted(set(adapter) - set(_LORA))
            if odd:
                raise CheckpointError(f"{name}: backbone.adapter lacks or adds {', '.join(odd)}", step="schema")
            _check(adapter, _LORA, f"{name}: backbone.adapter")
    if meta["inputs"] is not None:
        _check(meta["inputs"], _INPUTS, f"{name}: inputs")
    for place, task in enumerate(meta["tasks"]):
        if not isinstance(task, Mapping):
            raise CheckpointError(f"{name}: tasks[{place}] is {task!r}; expected an object", step="schema")
        _check(task, _TASK, f"{name}: tasks[{place}]")


def need(record: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a backbone record.

    Raises:
        CheckpointError: if it is missing.
    """
    if key not in record:
        raise CheckpointError(
            f"the backbone record of this head says nothing about {key!r} (it holds {sorted(record)}); load the "
            "backbone yourself and pass backbone=",
            step="pairing",
        )
    return record[key]


def told_weights(origin: Any) -> str:
    """Say where a backbone's weights come from."""
    weights = origin if isinstance(origin, Mapping) else {}
    kind = weights.get("kind")
    if kind == "seeded":
        return f"seeded random weights (seed {weights.get('seed')})"
    if kind == "hub":
        return f"the published weights of {weights.get('repo')} at {weights.get('revision')}"
    if kind in ("modified", "merged"):
        changed = "changed by training" if kind == "modified" else "with LoRA merged in"
        return f"{told_weights(weights.get('base'))}, {changed}"
    return "weights from a file or an object"


def _check(record: Mapping[str, Any], rules: Mapping[str, tuple[Callable[[Any], bool], str]], where: str) -> None:
    for key, (fits, expected) in rules.items():
        if key in record and record[key] is not None and not fits(record[key]):
            raise CheckpointError(f"{where}.{key} is {str(record[key])[:80]!r}; expected {expected}", step="schema")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(_is_int(item) for item in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e6


def _is_sides(value: Any) -> bool:
    return _is_int(value) or (_is_ints(value) and len(value) == 2)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


_TEXT = (_is_text, "plain text")
_INT = (_is_int, "an integer")
_SIDES = (_is_sides, "one or two integers")
_OBJECT = (lambda value: isinstance(value, Mapping), "an object")
_BACKBONE = {
    **dict.fromkeys(("name", "family", "source", "pos_embed", "dtype", "license", "weights_sha256"), _TEXT),
    **dict.fromkeys(("embed_dim", "depth", "num_cls", "num_registers"), _INT),
    "patch_size": _SIDES,
    "layers": (_is_ints, "a list of block indices"),
    "norm": (lambda value: isinstance(value, bool), "true or false"),
    "weights": _OBJECT,
    "adapter": _OBJECT,
    "probe": (_is_numbers, "a list of numbers"),
}
_LORA = {
    "kind": (lambda value: value == "lora", "'lora'"),
    "rank": _INT,
    "alpha": (_is_scale, "a number above 0, at most a million"),
    "targets": (lambda value: value in ("attention", "all"), "'attention' or 'all'"),
    "blocks": _INT,
    "sha256": _TEXT,
}
_WEIGHTS = {"kind": _TEXT, "repo": _TEXT, "revision": _TEXT, "scheme": _TEXT, "seed": _INT}
_INPUTS = {"size": _SIDES, "patch_size": _SIDES, **dict.fromkeys(("fit", "policy", "interpolation"), _TEXT)}
_TASK = {
    **dict.fromkeys(("name", "kind", "unit"), _TEXT),
    "dim": _INT,
    "transform": _OBJECT,
    "minimum": (lambda value: isinstance(value, int | float), "a number"),
}
