"""The one table of dtypes: their names in torch and in records, in safetensors files, and in options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dinoneck.errors import ConfigError
from dinoneck.text import did_you_mean

BY_FILE_NAME = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' name -> dtype."""

FILE_NAMES = {dtype: name for name, dtype in BY_FILE_NAME.items()}
"""dtype -> safetensors' name."""

WEIGHT_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
"""torch's name -> dtype, of the dtypes that a backbone's weights may have."""

HALF_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""The name in options, such as ``dtype=`` of a store and ``amp=`` of a recipe -> dtype of 16 bits."""


def float_dtype(dtype: object) -> torch.dtype:
    """Return a dtype of real numbers, for weights and tokens, of torch or by its name, such as ``"bfloat16"``.

    Raises:
        ConfigError: for another name, a dtype of integers, and what is neither.
    """
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    hint = ""
    if isinstance(dtype, str):
        if dtype in WEIGHT_DTYPES:
            return WEIGHT_DTYPES[dtype]
        hint = did_you_mean(dtype, WEIGHT_DTYPES)
    raise ConfigError(
        f"dtype is {dtype!r}; expected one of {', '.join(map(repr, WEIGHT_DTYPES))}, or a "
        f"floating-point torch dtype such as torch.bfloat16.{hint}"
    )


def finer_dtype(dtype: torch.dtype | None, record: Mapping[str, Any] | None) -> torch.dtype | None:
    """Return the dtype in which a backbone is to compute if it is finer than that of its record, else None.

    Its weights are loaded in it: those that were rounded to the recorded one would stay rounded.
    """
    if dtype is None or record is None:
        return None
    recorded = float_dtype(record.get("dtype") or "float32")
    if torch.finfo(dtype).eps >= torch.finfo(recorded).eps:
        return None
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name of a dtype without ``torch.``, such as ``float32``."""
    return str(dtype).removeprefix("torch.")
