"""The module, the tensors and the preprocessing that a head file describes, checked against each other; and the bytes.

Nothing is used before everything is checked. Order: registry -> configuration (built on the meta
device, so a header cannot ask for memory) -> tasks, inputs -> tensor names, shapes, dtypes ->
digest -> finite values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinoneck import registry
from dinoneck.backbones import rotary
from dinoneck.backbones.weight_hashes import state_digest
from dinoneck.checkpoint.format import Content, spelling
from dinoneck.checkpoint.pairing import check_fits, check_lora
from dinoneck.checkpoint.schema import BACKBONE_PREFIX, DTYPE_BYTES, LORA_PREFIX, TensorEntry
from dinoneck.codec import encode
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.devices import bytes_of
from dinoneck.dtypes import BY_FILE_NAME, dtype_name
from dinoneck.errors import CheckpointError, ConfigError, RegistryError, some_of
from dinoneck.torch_wrappers import COMPILED, KEEP_MODEL, PARALLEL, PARAMETRISED

# those that a head file may hold
TORCH_DTYPES = {name: BY_FILE_NAME[name] for name in DTYPE_BYTES}
FILE_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_SHOWN = 5
# of torch while a head is built; those here need at most 9 per tensor
_CALLS, _CALLS_PER_TENSOR = 4_000, 15
_FILLING = frozenset(
    {
        getattr(nn.init, name)
        for name in dir(nn.init)
        if name.endswith("_") and not name.startswith("_")
    }
    | {getattr(Tensor, name) for name in ("uniform_", "normal_", "fill_", "zero_", "abs_")}
)


class Parts(NamedTuple):
    """The tensors of a file by what they belong to, under the names that they have there."""

    head: dict[str, Any]
    adapter: dict[str, Any]
    backbone: dict[str, Any]


class Contents(NamedTuple):
    """A checked head file.

    Attributes:
        meta: the metadata as it was read.
        module: what the configuration describes, on the meta device.
        preprocess: how images are prepared; None where it is not recorded.
        tensors: of the head, of LoRA and of a backbone that was tuned along.
    """

    meta: dict[str, Any]
    module: nn.Module
    preprocess: Preprocessing | None
    tensors: Parts


def check(content: Content) -> Contents:
    """Check the class, configuration, tensors, digest and values of a head file whose records are checked.

    Raises:
        CheckpointError: naming what does not fit.
    """
    name, record, meta = content.name, content.header.record, content.header.meta
    with torch.inference_mode(False):  # what is read can be trained
        module = on_meta(meta, name)
        try:
            preprocess = (
                None if meta["inputs"] is None else Preprocessing.from_record(meta["inputs"])
            )
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(f"{name}: inputs: {error}", step="config") from None
        parts = by_part({entry.name: entry for entry in record.tensors})
        if parts.adapter or (record.backbone is not None and record.backbone.adapter is not None):
            check_lora(parts.adapter, record.backbone, name)
        _check_tensors(module, parts.head, name)
        if content.digest != record.digest:
            raise CheckpointError(
                f"{name}: the content does not match its digest; the file is damaged or was "
                "edited. Fetch it again",
                step="digest",
            )
        # a signed file may have been written by another program
        try:
            check_fits(
                module,
                backbone=meta["backbone"],
                inputs=meta["inputs"],
                name=type(module).__name__,
            )
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}", step=error.step) from None
        pairs = zip(record.tensors, content.buffers, strict=True)
        state = {entry.name: _tensor(entry, buffer) for entry, buffer in pairs}
    check_finite(state, name)
    values = by_part(state)
    if values.backbone:
        known = (meta["backbone"] or {}).get("weights_sha256")
        found = state_digest(rotary.without_buffers(values.backbone))
        if known != found:
            raise CheckpointError(
                f"{name} holds weights of a backbone with the SHA-256 {found}; its backbone "
                f"record states {known}: save the head again with the backbone and its own weights",
                step="tensors",
            )
    return Contents(meta, module, preprocess, values)


def by_part(tensors: Mapping[str, Any]) -> Parts:
    """Return the head's tensors, the LoRA weights and the weights of a backbone that was tuned along."""
    parts = Parts({}, {}, {})
    for name, value in tensors.items():
        if name.startswith(LORA_PREFIX):
            parts.adapter[name.removeprefix(LORA_PREFIX)] = value
        elif name.startswith(BACKBONE_PREFIX):
            parts.backbone[name.removeprefix(BACKBONE_PREFIX)] = value
        else:
            parts.head[name] = value
    return parts


def together(parts: Parts) -> dict[str, Any]:
    """Return all tensors of a file by their names there, the inverse of :func:`by_part`."""
    adapter = {LORA_PREFIX + name: value for name, value in parts.adapter.items()}
    return (
        parts.head
        | adapter
        | {BACKBONE_PREFIX + name: value for name, value in parts.backbone.items()}
    )


def on_meta(meta: Mapping[str, Any], name: str) -> nn.Module:
    """Build what the metadata of a file describes, on the meta device and with a limit of calls.

    Raises:
        CheckpointError: if the class is not registered, or it refuses the configuration.
    """
    config = meta["config"]
    limited = _Limited([shape for _, _, shape in meta["tensors"]])
    gradients = torch.is_grad_enabled()
    try:
        cls = registry.resolve(meta["head_type"])
        with torch.device("meta"), limited:
            module = cls.from_config(config)
    except RegistryError as error:
        raise CheckpointError(f"{name}: {error}", step="registry") from None
    except Exception as error:  # any type: a constructor got values from a file
        raise CheckpointError(
            f"{name}: the configuration is refused: {error}", step="config"
        ) from error
    finally:
        # the limit may strike where a constructor leaves torch.no_grad()
        torch.set_grad_enabled(gradients)
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"{name}: {meta['head_type']!r} is registered as {cls.__name__}, which is no torch "
            "module; derive it from dinoneck.heads.Head, dinoneck.necks.Neck or nn.Module",
            step="config",
        )
    if module.config != config:
        raise CheckpointError(
            f"{name}: {_difference(config, module.config, 'config')}: the configuration is not in "
            "its normal form, so it was edited. Save the head again",
            step="config",
        )
    tasks = encode(getattr(module, "predicted", ()))
    if spelling(tasks) != spelling(meta["tasks"]):  # in Python true equals 1
        raise CheckpointError(
            f"{name}: {_difference(meta['tasks'], tasks, 'tasks')}: the tasks are not those of the "
            "configuration, so the file was edited. Save the head again",
            step="config",
        )
    return module


def _difference(given: Any, expected: Any, place: str) -> str:
    """The first place where two plain values differ: ``tasks[0].unit is "kg"; expected "g"``."""
    if isinstance(given, Mapping) and isinstance(expected, Mapping):
        for key in sorted(given.keys() | expected.keys()):
            if key not in given:
                return f"{place}.{key} is missing; expected {_shown(expected[key])}"
            if key not in expected:
                return f"{place}.{key} is unknown; expected no such entry"
            if _json(given[key]) != _json(expected[key]):
                return _difference(given[key], expected[key], f"{place}.{key}")
    if isinstance(given, list) and isinstance(expected, list) and len(given) == len(expected):
        for i, (given_item, expected_item) in enumerate(zip(given, expected, strict=True)):
            if _json(given_item) != _json(expected_item):
                return _difference(given_item, expected_item, f"{place}[{i}]")
    return f"{place} is {_shown(given)}; expected {_shown(expected)}"


def _json(value: Any) -> str:
    # a configuration that the user changed in Python may hold anything
    return json.dumps(value, sort_keys=True, default=repr)


def _shown(value: Any) -> str:
    return _json(value)[:80]


class _Limited(TorchFunctionMode):
    """Stops a constructor, in this thread, that makes far more than the tensors its file lists: a depth of 10^9.

    Nothing is drawn for tensors on the meta device: there is nothing to fill.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.left = _CALLS + _CALLS_PER_TENSOR * len([shape for shape in shapes if 0 not in shape])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConfigError("it describes far more tensors than the file lists")
        if func in _FILLING and (filled := args[0] if args else (kwargs or {})["tensor"]).is_meta:
            return filled
        return func(*args, **(kwargs or {}))


# segments that torch puts into the names of weights: what did so, and how it is taken off
_CAUSES = {
    COMPILED: (
        "torch.compile wraps",
        "save it without (head.{path} = head.{path}._orig_mod), or compile it in place with "
        "head.{path}.compile()",
    ),
    PARALLEL: (
        "DataParallel or DistributedDataParallel wraps",
        "save it without (head.{path} = head.{path}.module)",
    ),
    PARAMETRISED: (
        "torch.nn.utils.parametrize changed",
        "fold it in: torch.nn.utils.parametrize.remove_parametrizations(head.{path}, {weight!r})",
    ),
}


def _check_renamed(extra: Sequence[str], name: str) -> None:
    """Raise a CheckpointError if torch renamed weights of a head, naming what did so and how it is taken off."""
    for key in extra:
        segments = key.split(".")
        for segment, (cause, remedy) in _CAUSES.items():
            if segment not in segments:
                continue
            place = segments.index(segment)
            path = ".".join(segments[:place])
            weight = ".".join(segments[place + 1 : place + 2])
            raise CheckpointError(
                f"{name}: {cause} {path or 'the head'}, so one of its weights is called {key}; "
                f"{remedy.format(path=path, weight=weight)}",
                step="tensors",
            )


def _check_tensors(module: nn.Module, listed: Mapping[str, TensorEntry], name: str) -> None:
    expected = module.state_dict()
    _check_renamed(sorted(listed.keys() - expected.keys()), name)
    if missing := sorted(expected.keys() - listed.keys()):
        raise CheckpointError(
            f"{name} lacks {some_of(missing, _SHOWN)}, which a head of its configuration has; save "
            "the head again, as its constructor builds it",
            step="tensors",
        )
    if extra := sorted(listed.keys() - expected.keys()):
        raise CheckpointError(
            f"{name} holds {some_of(extra, _SHOWN)}, which a head of its configuration does not "
            "have; save the head again, as its constructor builds it",
            step="tensors",
        )
    floats = {entry.dtype for key, entry in listed.items() if expected[key].is_floating_point()}
    if len(floats) > 1:
        raise CheckpointError(
            f"{name} mixes {', '.join(sorted(floats))}; a head has one dtype: convert it, as with "
            "head.float(), and save it again",
            step="tensors",
        )
    for key, value in expected.items():
        entry = listed[key]
        dtype = TORCH_DTYPES[entry.dtype]
        alike = dtype.is_floating_point if value.is_floating_point() else dtype == value.dtype
        if tuple(value.shape) != entry.shape or not alike:
            raise CheckpointError(
                f"{name}: {key} is {entry.dtype} {entry.shape}; its configuration needs "
                f"{tuple(value.shape)} of {FILE_DTYPES.get(value.dtype, value.dtype)}",
                step="tensors",
            )


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Refuse NaN and infinite values."""
    for key, value in state.items():
        if not value.is_floating_point() or math.isfinite(value.sum().item()):
            # one NaN or infinity makes the sum one; only large finite values may do so too
            continue
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{name}: {key} holds NaN or infinite values, as after a training that diverged; "
                "take the weights of an earlier epoch, or fetch the file again if it is not yours",
                step="finite",
            )


def _tensor(entry: TensorEntry, buffer: Any) -> Tensor:
    """The tensor in the memory that was read."""
    dtype = TORCH_DTYPES[entry.dtype]
    return (
        torch.frombuffer(buffer, dtype=dtype) if len(buffer) else torch.empty(0, dtype=dtype)
    ).reshape(entry.shape)


def listing_of(state: Mapping[str, Tensor]) -> list[list[Any]]:
    """Return how a header lists these tensors."""
    return [
        [key, FILE_DTYPES[value.dtype], list(value.shape)] for key, value in sorted(state.items())
    ]


def chunks_of(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[memoryview]:
    """Return the tensors' bytes in the order of a file."""
    return [bytes_of(state[name]) for name, *_ in meta["tensors"]]


def named(module: nn.Module) -> str:
    """Return the registered name of a module. Hooks are not part of a file.

    Raises:
        CheckpointError: if it is not registered.
    """
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"{str(module)[:80]!r} is {type(module).__name__}; expected a registered module. The "
            "path comes first: save_head(path, module)",
            step="write",
        )
    try:
        return registry.name_of(type(module))
    except RegistryError as error:
        raise CheckpointError(_inside_wrapper(module) or str(error), step="registry") from None


def _inside_wrapper(module: nn.Module) -> str | None:
    """What to save in the place of a wrapper around a module that a file can hold; None for anything else."""
    for attribute in KEEP_MODEL:
        inner = getattr(module, attribute, None)
        if hasattr(type(inner), "from_config"):
            return (
                f"{type(module).__name__} wraps a {type(inner).__name__}, and a file holds what is "
                f"inside: pass module.{attribute} in the place of module"
            )
    return None


def snapshot(parts: Parts, name: str) -> dict[str, Tensor]:
    """Return copies of the tensors of the head called ``name`` on the CPU, by their names in a file.

    Raises:
        CheckpointError: for a value that is not a dense tensor of a known dtype, and for shared
            memory.
    """
    tensors = together(parts)
    for key, value in tensors.items():
        if problem := _why_not_saved(key, value):
            raise CheckpointError(f"{name}: {problem}", step="write")
    spans = sorted((str(x.device), x.data_ptr(), key) for key, x in tensors.items() if x.numel())
    for (*place, one), (*same, other) in pairwise(spans):
        if place == same:
            raise CheckpointError(
                f"{name}: {one} and {other} share their memory; untie them first", step="write"
            )
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}


def _why_not_saved(key: str, value: object) -> str | None:
    """Why a file cannot hold a value of a state dict, and the remedy; None if it can."""
    path, _, entry = key.rpartition(".")
    if entry == "_extra_state":
        return (
            f"{path or 'the module itself'} has a get_extra_state, which a file does not hold; "
            "keep it in parameters, buffers or constructor arguments"
        )
    if not isinstance(value, Tensor):
        return f"{key} is a {type(value).__name__}; expected a tensor"
    if value.is_meta:
        return f"{key} is on the device meta and has no values; build the head with device='cpu'"
    if value.layout is not torch.strided:
        return f"{key} is {value.layout}; expected a dense tensor, as to_dense() returns it"
    if value.dtype not in FILE_DTYPES:
        known = ", ".join(dtype_name(dtype) for dtype in FILE_DTYPES)
        return f"{key} is {value.dtype}; expected one of {known}"
    return None
