"""What a head file holds: the module that its configuration describes, its tensors and its preprocessing.

Nothing is used before everything is checked. Order: registry -> configuration (built on the meta
device, so a header cannot ask for memory) -> tasks, inputs -> tensor names, shapes, dtypes ->
digest -> finite values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dinoneck import registry
from dinoneck.backbones import rotary
from dinoneck.backbones.weight_hashes import state_digest
from dinoneck.checkpoint.compare import check_fits
from dinoneck.checkpoint.format import HeadFile, spelling
from dinoneck.checkpoint.lora_weights import check_lora
from dinoneck.checkpoint.schema import BACKBONE_PREFIX, DTYPE_BYTES, LORA_PREFIX, TensorEntry
from dinoneck.codec import current_config, encode
from dinoneck.devices import bytes_of
from dinoneck.dtypes import BY_FILE_NAME, dtype_name
from dinoneck.errors import CheckpointError, ConfigError, RegistryError
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.text import some_of
from dinoneck.torch_wrappers import COMPILED, KEEP_MODEL, PARALLEL, PARAMETRISED

# those that a head file may hold
TORCH_DTYPES = {name: BY_FILE_NAME[name] for name in DTYPE_BYTES}
FILE_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_SHOWN = 5  # names in a message
_LONGEST_SHOWN = 80  # characters of a value in a message
# calls of torch while a head is built: the heads of this library need at most 9 per tensor
_CALLS = 4_000
_CALLS_PER_TENSOR = 15


class TensorGroups(NamedTuple):
    """The tensors of a file by what they belong to, by their names there.

    Attributes:
        head: the weights of the module.
        adapter: LoRA weights of its backbone.
        backbone: weights of a backbone that was tuned along.
    """

    head: dict[str, Any]
    adapter: dict[str, Any]
    backbone: dict[str, Any]


def check(file: HeadFile) -> nn.Module:
    """Check the class, configuration, tensors, digest and values of a head file whose records are checked.

    Returns:
        The module that the configuration describes, on the meta device.

    Raises:
        CheckpointError: naming what does not fit.
    """
    name = file.name
    record = file.header.record
    meta = file.header.meta
    with torch.inference_mode(False):  # what is read can be trained
        module = build_on_meta(meta, name)
    preprocess_of(file)
    entries = group_tensors({entry.name: entry for entry in record.tensors})
    announces_lora = record.backbone is not None and record.backbone.adapter is not None
    if entries.adapter or announces_lora:
        check_lora(entries.adapter, record.backbone, name)
    _check_tensors(module, entries.head, name)
    if file.digest != record.digest:
        raise CheckpointError(
            f"{name}: the content does not match its digest; the file is damaged or was "
            "edited. Fetch it again",
            step="digest",
        )
    _check_records_fit(module, meta, name)
    tensors = tensors_of(file)
    check_finite(tensors, name)
    backbone_weights = group_tensors(tensors).backbone
    if backbone_weights:
        _check_backbone_weights(backbone_weights, meta["backbone"], name)
    return module


def preprocess_of(file: HeadFile) -> Preprocessing | None:
    """Return how images are prepared; None if the file does not record it.

    Raises:
        CheckpointError: if its record is not one of a preprocessing.
    """
    record = file.header.meta["inputs"]
    if record is None:
        return None
    try:
        return Preprocessing.from_record(record)
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file.name}: inputs: {error}", step="config") from None


def tensors_of(file: HeadFile) -> dict[str, Tensor]:
    """Return the tensors of a file by their names there, in the memory that was read."""
    tensors = {}
    with torch.inference_mode(False):  # what is read can be trained
        for entry, buffer in zip(file.header.record.tensors, file.buffers, strict=True):
            dtype = TORCH_DTYPES[entry.dtype]
            if len(buffer):
                values = torch.frombuffer(buffer, dtype=dtype)
            else:
                values = torch.empty(0, dtype=dtype)
            tensors[entry.name] = values.reshape(entry.shape)
    return tensors


def group_tensors(tensors: Mapping[str, Any]) -> TensorGroups:
    """Return the head's tensors, the LoRA weights and the weights of a backbone that was tuned along."""
    groups = TensorGroups(head={}, adapter={}, backbone={})
    for name, value in tensors.items():
        if name.startswith(LORA_PREFIX):
            groups.adapter[name.removeprefix(LORA_PREFIX)] = value
        elif name.startswith(BACKBONE_PREFIX):
            groups.backbone[name.removeprefix(BACKBONE_PREFIX)] = value
        else:
            groups.head[name] = value
    return groups


def join_tensors(groups: TensorGroups) -> dict[str, Any]:
    """Return all tensors of a file by their names there, the inverse of :func:`group_tensors`."""
    tensors = dict(groups.head)
    for name, value in groups.adapter.items():
        tensors[LORA_PREFIX + name] = value
    for name, value in groups.backbone.items():
        tensors[BACKBONE_PREFIX + name] = value
    return tensors


def _check_records_fit(module: nn.Module, meta: Mapping[str, Any], name: str) -> None:
    """Compare a head with the records of its own file, which another program may have signed."""
    try:
        check_fits(
            module, backbone=meta["backbone"], inputs=meta["inputs"], name=type(module).__name__
        )
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}", step=error.step) from None


def _check_backbone_weights(
    weights: Mapping[str, Tensor], record: Mapping[str, Any] | None, name: str
) -> None:
    """Compare the weights of a backbone in a file with the hash in its record."""
    recorded_digest = (record or {}).get("weights_sha256")
    digest = state_digest(rotary.without_buffers(weights))
    if recorded_digest != digest:
        raise CheckpointError(
            f"{name} holds weights of a backbone with the SHA-256 {digest}; its backbone "
            f"record states {recorded_digest}: save the head again with the backbone and its own "
            "weights",
            step="tensors",
        )


def build_on_meta(meta: Mapping[str, Any], name: str) -> nn.Module:
    """Build what the metadata of a file describes, on the meta device and with a limit of calls.

    Raises:
        CheckpointError: if the class is not registered, or it refuses the configuration.
    """
    limited = _Limited([shape for _, _, shape in meta["tensors"]])
    gradients = torch.is_grad_enabled()
    try:
        cls = registry.resolve(meta["head_type"])
        config = current_config(cls, meta["config"])
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
    """The JSON of a value; a configuration that the user changed in Python may hold anything."""
    return json.dumps(value, sort_keys=True, default=repr)


def _shown(value: Any) -> str:
    """The JSON of a value for a message."""
    return _json(value)[:_LONGEST_SHOWN]


def _functions_that_fill() -> frozenset[Any]:
    """The functions of torch that write values into a tensor which is given."""
    functions = {
        Tensor.uniform_,
        Tensor.normal_,
        Tensor.fill_,
        Tensor.zero_,
        Tensor.abs_,
    }
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            functions.add(getattr(nn.init, name))
    return frozenset(functions)


_FILLING = _functions_that_fill()


class _Limited(TorchFunctionMode):
    """Stops a constructor, in this thread, that makes far more than the tensors its file lists: a depth of 10^9.

    Nothing is drawn for tensors on the meta device: there is nothing to fill.
    """

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        num_tensors = sum(0 not in shape for shape in shapes)
        self.calls_left = _CALLS + _CALLS_PER_TENSOR * num_tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise ConfigError("it describes far more tensors than the file lists")
        keywords = kwargs or {}
        if func in _FILLING:
            tensor = args[0] if args else keywords["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **keywords)


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
            position = segments.index(segment)
            path = ".".join(segments[:position])
            weight = ".".join(segments[position + 1 : position + 2])
            raise CheckpointError(
                f"{name}: {cause} {path or 'the head'}, so one of its weights is called {key}; "
                f"{remedy.format(path=path, weight=weight)}",
                step="tensors",
            )


def _check_tensors(module: nn.Module, listed: Mapping[str, TensorEntry], name: str) -> None:
    """Compare names, dtypes and shapes that a file lists with those of the module of its configuration."""
    expected = module.state_dict()
    missing = expected.keys() - listed.keys()
    extra = listed.keys() - expected.keys()
    _check_renamed(sorted(extra), name)
    if missing:
        raise CheckpointError(
            f"{name} lacks {some_of(missing, _SHOWN)}, which a head of its configuration has; save "
            "the head again, as its constructor builds it",
            step="tensors",
        )
    if extra:
        raise CheckpointError(
            f"{name} holds {some_of(extra, _SHOWN)}, which a head of its configuration does not "
            "have; save the head again, as its constructor builds it",
            step="tensors",
        )
    floats = {
        entry.dtype for entry in listed.values() if TORCH_DTYPES[entry.dtype].is_floating_point
    }
    if len(floats) > 1:
        raise CheckpointError(
            f"{name} mixes {', '.join(sorted(floats))}; a head has one dtype: convert it, as with "
            "head.float(), and save it again",
            step="tensors",
        )
    for key, tensor in expected.items():
        entry = listed[key]
        dtype = TORCH_DTYPES[entry.dtype]
        if tuple(tensor.shape) != entry.shape:
            raise CheckpointError(
                f"{name}: {key} has the shape {entry.shape}; its configuration needs "
                f"{tuple(tensor.shape)}: save the head again, as its constructor builds it",
                step="tensors",
            )
        # the module is built in float32, and saved in any floating dtype
        is_alike = dtype.is_floating_point and tensor.is_floating_point()
        if not is_alike and dtype != tensor.dtype:
            raise CheckpointError(
                f"{name}: {key} is {entry.dtype}; its configuration needs "
                f"{FILE_DTYPES.get(tensor.dtype, tensor.dtype)}: save the head again, as its "
                "constructor builds it",
                step="tensors",
            )


def check_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Raise a CheckpointError for NaN and infinite values."""
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


def listing_of(state: Mapping[str, Tensor]) -> list[list[Any]]:
    """Return how a header lists these tensors: name, dtype and shape of each, sorted by name."""
    listing = []
    for name, tensor in sorted(state.items()):
        listing.append([name, FILE_DTYPES[tensor.dtype], list(tensor.shape)])
    return listing


def chunks_of(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[memoryview]:
    """Return the tensors' bytes in the order of a file."""
    return [bytes_of(state[name]) for name, _dtype, _shape in meta["tensors"]]


def registered_name(module: nn.Module) -> str:
    """Return the registered name of a module. Hooks are not part of a file.

    Raises:
        CheckpointError: if it is not registered.
    """
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"{str(module)[:_LONGEST_SHOWN]!r} is {type(module).__name__}; expected a registered module. The "
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


def copy_tensors(groups: TensorGroups, name: str) -> dict[str, Tensor]:
    """Return copies of the tensors of the head called ``name`` on the CPU, by their names in a file.

    Raises:
        CheckpointError: for a value that is not a dense tensor of a known dtype, and for shared
            memory.
    """
    tensors = join_tensors(groups)
    for key, value in tensors.items():
        problem = _why_not_saved(key, value)
        if problem is not None:
            raise CheckpointError(f"{name}: {problem}", step="write")
    _check_not_tied(tensors, name)
    copies = {}
    for key, value in tensors.items():
        copies[key] = value.detach().to("cpu", copy=True).contiguous()
    return copies


def _check_not_tied(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise a CheckpointError for two tensors that begin at one address."""
    key_of_address: dict[tuple[str, int], str] = {}
    for key, tensor in sorted(tensors.items()):
        if not tensor.numel():
            continue
        address = str(tensor.device), tensor.data_ptr()
        if address in key_of_address:
            raise CheckpointError(
                f"{name}: {key_of_address[address]} and {key} share their memory; untie them first",
                step="write",
            )
        key_of_address[address] = key


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
