"""The records of a head file as msgspec structs: every entry, its type and its limits.

Imports no torch.

:func:`check` converts the metadata once; the struct travels on next to the plain JSON object, whose
canonical bytes are compared before. A record may lack an entry (a user may pass a record of their
own), but an entry that is there has the right type.

Every fact has one place. Layers, final norm and position embeddings of the backbone are in
``backbone``, the way from a file to a tensor is in ``inputs``. ``license`` is that of the head;
``licences`` holds that of the backbone's weights.

Pairs are lists of two: msgspec 0.22 crashes on a fixed-length tuple in a union with a constrained
type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from dinoneck.checkpoint.training_images import TrainingImages
from dinoneck.checks import LARGEST_SIDE
from dinoneck.errors import CheckpointError

FORMAT = "dinoneck.head"
SCHEMA = 1
MAX_TEXT_BYTES = 16 << 10  # of the records `training` and `extra`
VIEWS = ("none", "flip4", "d6")
"""The sets of views known here; a file may name one of a later version."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
# of the names of tensors that belong to the backbone
LORA_PREFIX = "adapter/"
BACKBONE_PREFIX = "backbone."
NAMED = ("seeded", "hub")
"""Kinds of weights that are found again by their name."""
STATED = "stated"
"""The kind of weights that the user alone names, see :mod:`dinoneck.training.stated`."""
UNSIGNED = "sha256:" + "0" * 64  # of a header whose digest is not computed yet
# numbers of dinoneck.backbones.weight_hashes; each is at most the root of a sequence's values
_PROBE_PER_LAYER = 8
_MAY_BE_NULL = ("adapter", "fingerprint", "weights_sha256")
# what msgspec's message begins with for a value that a Literal annotation lacks
_NOT_IN_LITERAL = "Invalid enum value"
_FIELD = re.compile(r"\.(\w+)")  # of a path such as .backbone.layers[0]
# how msgspec's message ends: " - at `$.backbone.layers[0]`", or " - at `key` in `$.licences`"
_WHERE = re.compile(r" - at (?P<of_key>`key` in )?`\$(?P<path>[^`]*)`\Z")
# ends of messages, by the path of the value
_HINTS = {
    ".license": ", an SPDX identifier such as MIT",
    ".training": "; its entries are seed, folds, fold, epochs, data, masks, metrics, "
    "auxiliary, target_weights, longest_box, tile and overlap, others belong under extra",
}
# what the Literal annotations of the records allow, by the last field of the path
_ALLOWED = {
    "format": repr(FORMAT),
    "schema": str(SCHEMA),
    "kind": "'lora'",
    "targets": "'attention' or 'all'",
    "reduce": "'mean'",
    "tensors": f"one of {', '.join(DTYPE_BYTES)}",
    "licences": "'backbone'",
}
SAVE_AGAIN = (
    "if you know the backbone that it was trained on, save the head again with it: "
    "save_head(path, load_head(path), backbone=backbone, preprocess=...)"
)
_FOUND_BY = ("name", "weights")  # what a backbone is loaded by
_LONGEST_SHOWN = 80  # characters of a value in a message
_LONGEST_VERSION = 40  # characters of a version that a file states
_AGAIN = ". Save the head again with the backbone= and preprocess= of its training"

Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
Level = Annotated[int, Meta(ge=0, le=255)]
Colour = Annotated[list[Level], Meta(min_length=3, max_length=3)]
Pair = Annotated[list[Positive], Meta(min_length=2, max_length=2)]
# one number per channel; hyperspectral cameras have some hundred
_MOST_CHANNELS = 1024
Means = Annotated[
    list[Annotated[float, Meta(ge=0, le=1)]], Meta(min_length=1, max_length=_MOST_CHANNELS)
]
Deviations = Annotated[
    list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=1, max_length=_MOST_CHANNELS)
]
ShortText = Annotated[str, Meta(max_length=200)]
TypeName = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9_]{0,63}\.)?[a-z][a-z0-9_]{0,63}\Z")]
ViewName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Digest = Annotated[str, Meta(pattern=rf"^{DIGEST.pattern}\Z")]
LICENSE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 .+:()_\-]*\Z"
License = Annotated[str, Meta(pattern=LICENSE_PATTERN, max_length=200)]


class Adapter(Struct, forbid_unknown_fields=True):
    """LoRA weights that travel in the file."""

    kind: Literal["lora"]
    rank: int
    alpha: Annotated[float, Meta(gt=0, le=1e6)]
    targets: Literal["attention", "all"]
    blocks: int
    sha256: str


class Weights(Struct):
    """Where the weights of a backbone come from; ``base`` is what they were before they were changed."""

    kind: str | None = None
    repo: str | None = None
    revision: str | None = None
    scheme: str | None = None
    seed: int | None = None
    base: Weights | None = None


class BackboneRecord(Struct):
    """The backbone that a head was trained on; entries of one's own are kept."""

    name: str | None = None
    family: str | None = None
    source: str | None = None
    pos_embed: str | None = None
    dtype: str | None = None
    weights_sha256: str | None = None
    fingerprint: str | None = None
    runtime: str | None = None
    embed_dim: Positive | None = None
    depth: Positive | None = None
    num_cls: Count | None = None
    num_registers: Count | None = None
    patch_size: Positive | Pair | None = None
    layers: Annotated[list[Count], Meta(min_length=1)] | None = None
    norm: bool | None = None
    weights: Weights | None = None
    adapter: Adapter | None = None
    probe: Annotated[list[Annotated[float, Meta(ge=-1e4, le=1e4)]], Meta(min_length=1)] | None = (
        None
    )
    mean: Means | None = None
    std: Deviations | None = None


class Inputs(Struct):
    """How images are prepared, see :class:`dinoneck.data.Preprocessing`."""

    size: Annotated[list[Side], Meta(min_length=2, max_length=2)] | None = None
    patch_size: Positive | Pair | None = None
    blur: int | None = None
    bits: int | None = None
    resize: str | None = None
    pad_to: str | None = None
    interpolation: str | None = None
    mean: Means | None = None
    std: Deviations | None = None


class CompositionRecord(Struct):
    """What a composed output is computed from, see :class:`dinoneck.Composition`; a sum is its name and its parts."""

    parts: list[str]
    sums: list[tuple[str, list[str]]]
    total: str
    ratio: str


class IntervalRecord(Struct):
    """How far an output is from the truth, see :class:`dinoneck.tasks.Interval`."""

    levels: list[float]
    half_widths: list[float]
    groups: Count
    views: str | None = None


class TaskRecord(Struct):
    """What is predicted; the rest of a task is compared with the configuration."""

    name: str | None = None
    kind: str | None = None
    unit: str | None = None
    from_map: str | None = None
    parts_of: CompositionRecord | None = None
    dim: int | None = None
    labels: list[str] | None = None
    transform: dict[str, Any] | None = None
    minimum: float | None = None
    maximum: float | None = None
    interval: list[IntervalRecord] | None = None
    thresholds: list[float] | None = None


class Spread(Struct, forbid_unknown_fields=True):
    """A metric over several folds."""

    mean: float
    sd: float


class Data(Struct, forbid_unknown_fields=True):
    """The data of a training."""

    name: str | None = None
    revision: str | None = None


class Masks(Struct, forbid_unknown_fields=True):
    """How a training read the values of masks; null where it was not told."""

    class_values: Annotated[list[int], Meta(min_length=1)] | None = None
    class_colors: Annotated[list[Colour], Meta(min_length=1)] | None = None
    nodata: Annotated[list[float], Meta(min_length=1)] | None = None
    scale: float | None = None
    offset: float | None = None


class Training(Struct, forbid_unknown_fields=True):
    """Facts of a training."""

    seed: Count | None = None
    folds: Count | None = None
    fold: Count | None = None
    epochs: Count | None = None
    data: Data | None = None
    masks: Masks | None = None
    metrics: dict[Annotated[str, Meta(min_length=1)], float | Spread] | None = None
    auxiliary: list[Annotated[str, Meta(min_length=1)]] | None = None
    target_weights: dict[str, Annotated[float, Meta(ge=0)]] | None = None
    longest_box: Annotated[float, Meta(gt=0)] | None = None
    tile: Annotated[list[Side], Meta(min_length=2, max_length=2)] | None = None
    overlap: Count | None = None


class Views(Struct, forbid_unknown_fields=True):
    """The views that predictions are averaged over."""

    ops: ViewName
    reduce: Literal["mean"]


class TensorEntry(Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Name, safetensors dtype and shape of one stored tensor."""

    name: Annotated[str, Meta(min_length=1)]
    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL"]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 48)], ...], Meta(max_length=8)]


class HeadRecord(Struct, forbid_unknown_fields=True, kw_only=True):
    """The header; null, or empty, where unknown."""

    format: Literal["dinoneck.head"]
    schema: Literal[1]
    created_by: dict[str, ShortText]
    head_type: TypeName
    config: dict[str, Any]
    tensors: list[TensorEntry]
    digest: Digest
    backbone: BackboneRecord | None
    inputs: Inputs | None
    tasks: list[TaskRecord]
    training: Training | None
    license: License | None
    licences: dict[Literal["backbone"], Annotated[str, Meta(min_length=1, max_length=200)]]
    tta: Views | None
    extra: dict[str, Any]
    training_images: str | None = None  # files without it were written before it, or leave it out


def check(meta: Mapping[str, Any], name: str) -> HeadRecord:
    """Check the metadata of a file and return it as a struct.

    Raises:
        CheckpointError: naming the entry, its value, what was expected and the remedy.
    """
    schema = meta.get("schema")
    if type(schema) is int and schema > SCHEMA:
        remedy = "install a later version"
        made = meta.get("created_by")
        if isinstance(made, Mapping) and "dinoneck" in made:
            remedy = f"install dinoneck {str(made['dinoneck'])[:_LONGEST_VERSION]}, which wrote the file, or later"
        raise CheckpointError(
            f"{name} has schema {schema}, this dinoneck reads schema {SCHEMA}; {remedy}",
            step="schema",
        )
    try:
        record = msgspec.convert(meta, HeadRecord)
    except msgspec.ValidationError as error:
        raise _header_error(_mistake(error, meta), name) from None
    if record.backbone is not None:
        _check_known(record.backbone, meta["backbone"], f"{name}: backbone")
    for key in ("training", "extra"):
        content = json.dumps(meta[key], ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(content) > MAX_TEXT_BYTES:
            raise CheckpointError(
                f"{name}: {key} is larger than {MAX_TEXT_BYTES} bytes", step="schema"
            )
    _check_names([entry.name for entry in record.tensors], name)
    if record.training_images is not None:
        try:
            TrainingImages.from_record(record.training_images)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}", step=error.step) from None
    return record


def _check_names(names: Sequence[str], name: str) -> None:
    """Raise a CheckpointError unless the names of the tensors are sorted and differ."""
    if "__metadata__" in names:
        raise CheckpointError(
            f"{name}: a tensor is called '__metadata__', which is no name of a tensor; the file "
            "was edited. Fetch it again",
            step="tensors",
        )
    for tensor, later in pairwise(names):
        if tensor == later:
            raise CheckpointError(
                f"{name} lists the tensor {tensor} twice; the file was edited. Fetch it again",
                step="tensors",
            )
        if tensor > later:
            raise CheckpointError(
                f"{name} lists the tensor {tensor} before {later}; expected names in order. The file "
                "was edited, fetch it again",
                step="tensors",
            )


def check_backbone_record(record: Any, name: str) -> None:
    """Check the record of a backbone.

    A record that states its weights, or their SHA-256, was written by a backbone, so what a
    backbone always knows is not null, and layers and norm are there. Converted features, whose
    record states neither, may leave them open.

    Raises:
        CheckpointError: naming the entry that has another type or value than expected, and the
            remedy.
    """
    try:
        known = msgspec.convert(record, BackboneRecord)
    except msgspec.ValidationError as error:
        mistake = _mistake(error, record)
        raise CheckpointError(
            f"{name}{mistake.path}{mistake.value}: {mistake.reason}{_AGAIN}", step="schema"
        ) from None
    _check_known(known, record, name)


def _check_known(known: BackboneRecord, record: Mapping[str, Any], name: str) -> None:
    """Check that a record states what a backbone always knows, and that its entries fit each other.

    Args:
        known: the record as a struct.
        record: the same record as it was written, which tells null from missing.
        name: of the record, for messages.
    """
    if known.weights is not None or known.weights_sha256 is not None:
        for key in known.__struct_fields__:
            is_asked = key in record or key in ("layers", "norm")
            if not is_asked or key in _MAY_BE_NULL or getattr(known, key) is not None:
                continue
            state = "null" if key in record else "missing"
            raise CheckpointError(
                f"{name}.{key} is {state}; expected a value, as a backbone states it{_AGAIN}",
                step="schema",
            )
    layers = known.layers
    depth = known.depth
    probe = known.probe
    if layers is not None and depth is not None and max(layers) >= depth:
        raise CheckpointError(
            f"{name}.layers is {_shown(layers)}; expected block indices below the depth "
            f"{depth}{_AGAIN}",
            step="schema",
        )
    if layers is not None and probe is not None and len(probe) != _PROBE_PER_LAYER * len(layers):
        raise CheckpointError(
            f"{name}.probe has {len(probe)} numbers; expected {_PROBE_PER_LAYER} for each of "
            f"{len(layers)} layers{_AGAIN}",
            step="schema",
        )


class _Mistake(NamedTuple):
    """A value of a record that does not fit its type.

    Attributes:
        path: of the value, as msgspec writes it without ``$``: ``.backbone.layers[0]``; empty for
            the record itself.
        fields: the names of the path: backbone, layers.
        value: " is " and the value, or " has the names " and those of an object; empty for null,
            other objects and where the path leads to none.
        reason: what was expected.
    """

    path: str
    fields: list[str]
    value: str
    reason: str


def _mistake(error: msgspec.ValidationError, record: Any) -> _Mistake:
    """Read what msgspec reports of a record: "Expected `int`, got `str` - at `$.backbone.depth`"."""
    message = str(error)
    where = _WHERE.search(message)
    path = ""  # a message about the record itself names no place
    reason = message
    if where is not None:
        path = where["path"]
        reason = message[: where.start()]
    fields = _FIELD.findall(path)
    last_field = fields[-1] if fields else ""
    if reason.startswith(_NOT_IN_LITERAL) and last_field in _ALLOWED:
        reason = f"expected {_ALLOWED[last_field]}"
    else:
        reason = reason[:1].lower() + reason[1:]
    value = _at(record, path)
    shown_value = ""
    if where is not None and where["of_key"]:
        names = ", ".join(map(repr, value))[:_LONGEST_SHOWN]
        shown_value = f" has the names {names}"
        reason = f"one of them does not fit, {reason}"
    elif value is not None and not isinstance(value, Mapping):
        shown_value = f" is {_shown(value)}"
    return _Mistake(path=path, fields=fields, value=shown_value, reason=reason)


def _header_error(mistake: _Mistake, name: str) -> CheckpointError:
    """The error for a mistake in the header of a file."""
    shown_path = mistake.path.removeprefix(".") or "the header"
    entry = mistake.fields[0] if mistake.fields else ""
    remedy = _HINTS.get(mistake.path, "")
    if entry in ("backbone", "inputs"):
        remedy = _AGAIN
    step = "schema"
    if entry in ("digest", "tensors"):  # which have a check of their own
        step = entry
    return CheckpointError(
        f"{name}: {shown_path}{mistake.value}: {mistake.reason}{remedy}", step=step
    )


def need(record: Mapping[str, Any], key: str) -> Any:
    """Return an entry of a backbone record.

    Raises:
        CheckpointError: if it is missing.
    """
    if record.get(key) is None:
        remedy = SAVE_AGAIN
        if key in _FOUND_BY:
            remedy = "load the backbone yourself and pass backbone="
        stated = sorted(name for name, value in record.items() if value is not None)
        raise CheckpointError(
            f"the backbone record of this head does not state {key!r}; it holds "
            f"{', '.join(stated) or 'nothing'}; {remedy}",
            step="pairing",
        )
    return record[key]


def describe_weights(origin: Any) -> str:
    """Return where a backbone's weights come from, in words."""
    weights: Mapping[str, Any] = origin if isinstance(origin, Mapping) else {}
    kind = weights.get("kind")
    if kind == "seeded":
        return f"seeded random weights (seed {weights.get('seed')})"
    if kind == "hub":
        return (
            f"the published weights of {weights.get('repo')} at "
            f"{weights.get('revision') or 'no stated revision'}"
        )
    if kind == STATED:
        return "weights as stated by the user (features of another program)"
    if kind == "modified":
        return f"{describe_weights(weights.get('base'))}, changed by training"
    if kind == "merged":
        return f"{describe_weights(weights.get('base'))}, with LoRA merged in"
    return "weights from a file or an object"


def describe_parts(record: Mapping[str, Any]) -> str:
    """Return how a composed output is computed, from the entry ``parts_of`` of a task's record."""
    if record["total"]:
        return f"{record['total']} x {record['ratio']}"
    return ", ".join(f"{name} = {' + '.join(parts)}" for name, parts in record["sums"])


def describe_intervals(task: Mapping[str, Any]) -> dict[str, str]:
    """Return output -> the half widths of its interval by level, in words, from the record of a task.

    Of a classification they are the smallest probabilities of the labels in a set.
    """
    name = task["name"]
    is_class = task["kind"] == "classification"
    labels = task.get("labels") or []
    described = {}
    for number, interval in enumerate(task.get("interval") or []):
        label = labels[number] if number < len(labels) else number
        output = name if is_class or task["dim"] == 1 else f"{name}: {label}"
        levels = []
        for level, half_width in zip(interval["levels"], interval["half_widths"], strict=False):
            bound = f"p ≥ {1 - half_width:.3g}" if is_class else f"± {half_width:.3g}"
            levels.append(f"{100 * level:g} % {bound}")
        described[output] = f"{', '.join(levels) or 'none'} from {interval['groups']} groups"
    return described


def _at(record: Any, path: str) -> Any:
    """The value at a path such as .backbone.layers[0].

    None where the path leads to none; for ``[...]``, by which msgspec names no entry of a mapping,
    the mapping.
    """
    value = record
    try:
        for part in re.findall(r"[^.\[\]]+", path):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (LookupError, TypeError, ValueError):
        return None
    return value


def _shown(value: Any) -> str:
    """A value of a record for a message."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text[:_LONGEST_SHOWN]
