"""What goes into a head file: tensors as they lie in it, and the plain records of a module and its backbone."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.file import canonical, strict_json
from dinoneck.checkpoint.schema import VIEWS
from dinoneck.codec import normal
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, RegistryError, did_you_mean
from dinoneck.tensor_bytes import bytes_of

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FILE_DTYPES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def listing_of(state: Mapping[str, Tensor]) -> list[list[Any]]:
    """Return how a header lists these tensors."""
    return [[key, FILE_DTYPES[value.dtype], list(value.shape)] for key, value in sorted(state.items())]


def chunks_of(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[memoryview]:
    """Return the tensors' bytes in the order of a file."""
    return [bytes_of(state[row[0]]) for row in meta["tensors"] if state[row[0]].numel()]


def snapshot(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU.

    Raises:
        CheckpointError: for a value that is not a dense tensor of a known dtype, and for shared memory.
    """
    state: dict[str, Tensor] = {}
    places: dict[tuple[Any, int], str] = {}
    check_byte_order("write")
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or value.is_meta or value.dtype not in FILE_DTYPES or _sparse(value):
            what = (
                f"{value.dtype} on {value.device}{' (sparse)' * _sparse(value)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise CheckpointError(f"{name}: {key} is {what}; it cannot be saved", step="write")
        place = (value.device, value.data_ptr())
        if value.numel() and places.setdefault(place, key) != key:
            raise CheckpointError(
                f"{name}: {key} and {places[place]} share their memory; untie them first", step="write"
            )
        state[key] = value.detach().to("cpu", copy=True).contiguous()
    _check_overlaps(tensors, name)
    return state


def _sparse(value: Tensor) -> bool:
    return value.layout is not torch.strided


def check_byte_order(step: str) -> None:
    """Refuse machines whose numbers lie the other way round: the files' are little-endian.

    Raises:
        CheckpointError: with this step.
    """
    if sys.byteorder != "little":
        raise CheckpointError(f"head files hold little-endian numbers, this machine has {sys.byteorder}-endian ones; "
                              "use another one", step=step)  # fmt: skip


def _check_overlaps(tensors: Mapping[str, Tensor], name: str) -> None:
    """Views of one memory that begin at different places; neighbours in one buffer are fine."""
    spans = sorted(
        (str(value.device), value.data_ptr(), value.data_ptr() + value.numel() * value.element_size(), key)
        for key, value in tensors.items()
        if value.numel() and value.is_contiguous()
    )
    for (device, _, end, one), (same, begin, _, other) in pairwise(spans):
        if device == same and begin < end:
            raise CheckpointError(f"{name}: {one} and {other} share their memory; untie them first", step="write")


def named(module: nn.Module) -> str:
    """The registered name of a module."""
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"{str(module)[:80]!r} is {type(module).__name__}; expected a registered module. The path comes first: "
            "save_head(path, module)",
            step="write",
        )
    try:
        return registry.name_of(type(module))
    except RegistryError as error:
        inner = next((getattr(module, n) for n in ("_orig_mod", "module", "injection") if hasattr(module, n)), None)
        hint = f" Save the {type(inner).__name__} inside it instead." if isinstance(inner, nn.Module) else ""
        raise CheckpointError(f"{error}.{hint}", step="registry") from None


def check_whole(module: nn.Module, name: str) -> None:
    """Refuse state beyond the configuration and tensors, which a file would lose. Hooks are not part of a file.

    Raises:
        CheckpointError: naming it.
    """
    for where, part in module.named_modules():
        if getattr(part.get_extra_state, "__func__", None) is not nn.Module.get_extra_state:
            raise CheckpointError(
                f"{name}: {where or 'the module itself'} has a get_extra_state, which a file does not hold; keep it in "
                "parameters, buffers or constructor arguments",
                step="write",
            )


def probed(backbone: Backbone) -> dict[str, Any]:
    """The record with the functional probe; a backbone without values has none."""
    record = backbone.record()
    if record["weights_sha256"] is None:
        return record
    probe = backbone.probe()
    if not all(math.isfinite(number) for number in probe):
        raise CheckpointError(
            f"the backbone {backbone.name!r} gives values that are not finite; check its weights", step="write"
        )
    return {**record, "probe": probe}


def plain_backbone(backbone: Any) -> Any:
    """The Backbone inside torch.compile's wrapper."""
    inner = getattr(backbone, "_orig_mod", None)
    return inner if isinstance(inner, Backbone) else backbone


def plain(record: Mapping[str, Any] | None, where: str) -> dict[str, Any] | None:
    """A deep copy in JSON form."""
    if record is None:
        return None
    try:
        if not isinstance(record, Mapping):
            raise TypeError(f"expected a dict, got {type(record).__name__}")
        copied = normal(Any, dict(record), where)
        return cast("dict[str, Any]", strict_json(canonical(copied), where, where))
    except (CheckpointError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a plain record of JSON values: {error}", step="write") from None


def inputs_of(preprocess: Preprocessing | Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The record of how images are prepared, in its normal form."""
    if isinstance(preprocess, Preprocessing):
        return preprocess.record()
    record = plain(preprocess, "preprocess")
    try:
        return None if record is None else Preprocessing.from_record(record).record()
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: inputs: {error}", step="config") from None


def views_of(tta: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The record of views at prediction; a set of views is named by one of those known here."""
    record = {"ops": tta, "reduce": "mean"} if isinstance(tta, str) else plain(tta, "tta")
    ops = (record or {}).get("ops")
    if isinstance(ops, str) and ops not in VIEWS:
        raise CheckpointError(
            f"tta.ops is {ops[:80]!r}; expected one of {', '.join(VIEWS)}.{did_you_mean(ops, VIEWS)}", step="write"
        )
    return record
