"""The records inside a head file's header: which values they may hold. Checked without torch.

A record may lack an entry (somebody may hand in his own), but an entry that is there has the right type; who
needs a missing one says so then.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from dinoneck.errors import CheckpointError

MAX_TRAINING_BYTES = 16 << 10
MAX_LICENSE = 200
MAX_AREA_PX = 1 << 26  # of an image that a file asks for
VIEWS = ("none", "flip4", "d6")
"""The sets of views known here; a file may name one of a later version."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .+:()_\-]*", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_NO_DIGEST = "sha256:" + "0" * 64  # before a file is written
_HEAD_TYPE = re.compile(r"([a-z0-9][a-z0-9_]{0,63}\.)?[a-z][a-z0-9_]{0,63}", re.ASCII)
_MAX_VERSION = 1 << 16
_PROBE_PER_LAYER, _LARGEST_PROBE = 8, 1e4  # of dinoneck.backbones.probe; at most the root of a sequence's values
_MAY_BE_NULL = ("adapter", "fingerprint", "license", "weights_sha256")


def check_entries(meta: Mapping[str, Any], name: str) -> None:
    """Check the records of a header: backbone, inputs, tasks, versions, training, licence and views.

    Raises:
        CheckpointError: naming the entry that has another type than expected.
    """
    if not DIGEST.fullmatch(told := meta.get("digest", _NO_DIGEST)):
        raise CheckpointError(f"{name}: digest is {told[:80]!r}; expected sha256: and 64 of 0-9a-f", step="digest")
    if meta["backbone"] is not None:
        check_backbone_record(meta["backbone"], f"{name}: backbone")
    if meta["inputs"] is not None:
        _check(meta["inputs"], _INPUTS, f"{name}: inputs", _AGAIN)
    for place, task in enumerate(meta["tasks"]):
        if not isinstance(task, Mapping):
            raise CheckpointError(f"{name}: tasks[{place}] is {task!r}; expected an object", step="schema")
        _check(task, _TASK, f"{name}: tasks[{place}]")
    _check(meta, _TOP, name)
    for key, rules in (("training", _TRAINING), ("tta", _TTA)):
        record = meta.get(key)
        if isinstance(record, Mapping):
            if odd := sorted(set(record) - set(rules)):
                raise CheckpointError(
                    f"{name}: {key} holds {', '.join(odd)}; it may hold {', '.join(rules)}, anything else belongs "
                    "under extra",
                    step="schema",
                )
            _check(record, rules, f"{name}: {key}")
    tta = meta.get("tta")
    if tta is not None and (missing := [key for key in _TTA if tta.get(key) is None]):
        raise CheckpointError(f"{name}: tta lacks {', '.join(missing)}", step="schema")
    size = len(json.dumps(meta.get("training"), ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_TRAINING_BYTES:
        raise CheckpointError(f"{name}: training is larger than {MAX_TRAINING_BYTES} bytes", step="schema")


def check_backbone_record(record: Mapping[str, Any], name: str) -> None:
    """Check the record of a backbone.

    A record that states its weights, or their SHA-256, was written by a backbone, so what a backbone always knows is
    not null, and layers and norm are there. Converted features, whose record states neither, may leave them open.

    Raises:
        CheckpointError: naming the entry that has another type or value than expected, and the remedy.
    """
    _check(record, _BACKBONE, name, _AGAIN)
    asked = record.keys() | {"layers", "norm"}
    null = [key for key in _BACKBONE if key in asked and record.get(key) is None and key not in _MAY_BE_NULL]
    if null and (record.get("weights") is not None or record.get("weights_sha256") is not None):
        state = "null" if null[0] in record else "missing"
        raise CheckpointError(f"{name}.{null[0]} is {state}; expected {_BACKBONE[null[0]][1]}{_AGAIN}", step="schema")
    layers, depth, probe = record.get("layers"), record.get("depth"), record.get("probe")
    if layers is not None and depth is not None and max(layers) >= depth:
        raise CheckpointError(
            f"{name}.layers is {str(layers)[:80]}; expected block indices below the depth {depth}{_AGAIN}",
            step="schema",
        )
    if layers is not None and probe is not None and len(probe) != _PROBE_PER_LAYER * len(layers):
        raise CheckpointError(
            f"{name}.probe has {len(probe)} numbers; expected {_PROBE_PER_LAYER} for each of {len(layers)} layers"
            f"{_AGAIN}",
            step="schema",
        )
    weights, where = record.get("weights"), f"{name}.weights"
    while isinstance(weights, Mapping):
        _check(weights, _WEIGHTS, where)
        weights, where = weights.get("base"), f"{where}.base"
    if isinstance(adapter := record.get("adapter"), Mapping):
        odd = [key for key in _LORA if adapter.get(key) is None] + sorted(set(adapter) - set(_LORA))
        if odd:
            raise CheckpointError(f"{name}.adapter lacks or adds {', '.join(odd)}", step="schema")
        _check(adapter, _LORA, f"{name}.adapter")


def need(record: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a backbone record.

    Raises:
        CheckpointError: if it is missing.
    """
    if record.get(key) is None:
        raise CheckpointError(
            f"the backbone record of this head does not state {key!r} (it holds {sorted(record)}); load the "
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


def _check(
    record: Mapping[str, Any], rules: Mapping[str, tuple[Callable[[Any], bool], str]], where: str, remedy: str = ""
) -> None:
    for key, (fits, expected) in rules.items():
        if key in record and record[key] is not None and not fits(record[key]):
            raise CheckpointError(
                f"{where}.{key} is {str(record[key])[:80]!r}; expected {expected}{remedy}", step="schema"
            )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(_is_int(item) for item in value)


def _is_blocks(value: Any) -> bool:
    return _is_ints(value) and len(value) > 0 and min(value) >= 0


def _is_probe(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_number(x) and abs(x) <= _LARGEST_PROBE for x in value)


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e6


def _is_sides(value: Any) -> bool:
    sides = [value, value] if _is_int(value) else value
    return _is_ints(sides) and len(sides) == 2 and min(sides) >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _is_metrics(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name) and name and (_is_number(found) or _is_spread(found)) for name, found in value.items()
    )


def _is_spread(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"mean", "sd"} and all(map(_is_number, value.values()))


def _is_data(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) <= {"name", "revision"} and all(map(_is_text, value.values()))


def _is_versions(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _HEAD_TYPE.fullmatch(name) and _is_int(version) and 1 <= version <= _MAX_VERSION
        for name, version in value.items()
    )


def _is_made_by(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_text(text) and len(text) <= MAX_LICENSE for text in value.values())


def _is_labels(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_size(value: Any) -> bool:
    return _is_ints(value) and len(value) == 2 and math.prod(value) <= MAX_AREA_PX


def _is_blur(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"kernel", "sigma"} and all(map(_is_number, value.values()))


def _is_license(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LICENSE and _LICENSE.fullmatch(value) is not None


def _is_channels(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(x) and 0 <= x <= 1 for x in value)


def _is_deviations(value: Any) -> bool:
    return _is_channels(value) and min(value) > 0


_TEXT = (_is_text, "plain text")
_INT = (_is_int, "an integer")
_SIDES = (_is_sides, "one or two integers of 1 or more")
_SIZE = (lambda value: _is_int(value) and value >= 1, "an integer of 1 or more")
_COUNT = (_is_count, "an integer of 0 or more")
_MEAN = (_is_channels, "three numbers from 0 to 1, for R, G, B")
_STD = (_is_deviations, "three numbers above 0, at most 1, for R, G, B")
_OBJECT = (lambda value: isinstance(value, Mapping), "an object")
_AGAIN = ". Save the head again with the backbone= and preprocess= of its training"
_BACKBONE = {
    **dict.fromkeys(
        ("name", "family", "source", "pos_embed", "dtype", "license", "weights_sha256", "fingerprint"), _TEXT
    ),
    **dict.fromkeys(("embed_dim", "depth"), _SIZE),
    **dict.fromkeys(("num_cls", "num_registers"), _COUNT),
    "patch_size": _SIDES,
    "layers": (_is_blocks, "a list of block indices, at least one"),
    "norm": (lambda value: isinstance(value, bool), "true or false"),
    "weights": _OBJECT,
    "adapter": _OBJECT,
    "probe": (_is_probe, f"a list of finite numbers within ±{_LARGEST_PROBE:g}, at least one"),
    "mean": _MEAN,
    "std": _STD,
}
_LORA = {
    "kind": (lambda value: value == "lora", "'lora'"),
    "rank": _INT,
    "alpha": (_is_scale, "a number above 0, at most a million"),
    "targets": (lambda value: value in ("attention", "all"), "'attention' or 'all'"),
    "blocks": _INT,
    "sha256": _TEXT,
}
_WEIGHTS = {"kind": _TEXT, "repo": _TEXT, "revision": _TEXT, "scheme": _TEXT, "seed": _INT, "base": _OBJECT}
_INPUTS = {
    "size": (_is_size, f"two integers, [height, width] in pixels, with a product of at most {MAX_AREA_PX}"),
    "patch_size": _SIDES,
    "blur": (_is_blur, "an object with kernel and sigma, numbers both"),
    **dict.fromkeys(("fit", "policy", "interpolation"), _TEXT),
    "mean": _MEAN,
    "std": _STD,
}
_TASK = {
    **dict.fromkeys(("name", "kind", "unit", "from_cells"), _TEXT),
    "parts_of": _OBJECT,
    "dim": _INT,
    "labels": (_is_labels, "a list of plain texts"),
    "transform": _OBJECT,
    "minimum": (lambda value: isinstance(value, int | float), "a number"),
}
_TOP = {
    "created_by": (_is_made_by, f"an object of plain texts of at most {MAX_LICENSE} characters"),
    "versions": (_is_versions, "head types with their versions, each 1 or more"),
    "license": (_is_license, f"an SPDX identifier or the like, at most {MAX_LICENSE} characters"),
}
_TRAINING = {
    **dict.fromkeys(("seed", "folds", "fold", "epochs"), _COUNT),
    "data": (_is_data, "an object with name and revision, plain text both"),
    "metrics": (_is_metrics, "finite numbers, or {mean, sd} of such, by name"),
}
_TTA = {
    "ops": (lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None, "the name of a set of views"),
    "reduce": (lambda value: value == "mean", "'mean'"),
}
