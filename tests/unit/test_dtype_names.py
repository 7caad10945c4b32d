"""A dtype may be given by its name wherever one is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.kit import saved_head
from tests.unit.store.store_samples import make, write_images

from dinoneck import (
    ConfigError,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    wrap_backbone,
)
from dinoneck.dtypes import float_dtype
from dinoneck.training import MemoryTokens


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float64", torch.float64),
    ],
)
def test_a_name_is_the_dtype_of_torch(name: str, dtype: torch.dtype) -> None:
    assert float_dtype(name) is dtype
    assert float_dtype(dtype) is dtype


@pytest.mark.parametrize("wrong", ["bf16", "bfloat", torch.int64, 16, float], ids=str)
def test_a_wrong_dtype_is_named_with_the_list(wrong: Any) -> None:
    expected = (
        r"expected one of 'float32', 'float16', 'bfloat16', 'float64', or a floating-point torch "
        r"dtype such as torch\.bfloat16"
    )

    with pytest.raises(ConfigError, match=expected) as caught:
        load_backbone("dinoneck_tiny", dtype=wrong)

    assert str(caught.value).startswith(f"dtype is {wrong!r}; ")
    assert ("Did you mean 'bfloat16'?" in str(caught.value)) == (wrong in ("bf16", "bfloat"))


def of_backbone(dtype: Any, folder: Path) -> Any:
    return load_backbone("dinoneck_tiny", dtype=dtype)(torch.zeros(1, 3, 32, 32)).patches[0]


def of_wrapped_model(dtype: Any, folder: Path) -> Any:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0, dynamic_img_size=True)
    return next(wrap_backbone(model, dtype=dtype).parameters())


def of_head(dtype: Any, folder: Path) -> Any:
    return next(PatchMeanHead(64, [Task("a")], dtype=dtype).parameters())


def of_file(dtype: Any, folder: Path) -> Any:
    file = saved_head(folder / "head.safetensors")
    return next(HeadCheckpoint.load(file).build(dtype=dtype).parameters())


def of_predictor(dtype: Any, folder: Path) -> Any:
    predictor = Predictor(saved_head(folder / "head.safetensors"), dtype=dtype)
    return next(predictor.passes[0].backbone.parameters())


def of_tokens_in_memory(dtype: Any, folder: Path) -> Any:
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    backbone = load_backbone("dinoneck_tiny")
    return MemoryTokens.extract(backbone, [image], ["a"], dtype=dtype).tokens.patches[0]


def of_store(dtype: Any, folder: Path) -> Any:
    folder = folder / str(dtype)
    write_images(folder / "images", ["a.png"])
    store = make(folder / "store", load_backbone("dinoneck_tiny"), dtype="int8")
    store.extract(folder / "images")
    return store.batch(["a"], dtype=dtype).patches[0]


@pytest.mark.parametrize(
    "read",
    [of_store, of_backbone, of_wrapped_model, of_head, of_file, of_predictor, of_tokens_in_memory],
)
def test_a_name_does_what_the_dtype_does(read: Callable[..., Any], tmp_path: Path) -> None:
    by_name = read("bfloat16", tmp_path)
    by_dtype = read(torch.bfloat16, tmp_path)

    assert by_name.dtype == by_dtype.dtype == torch.bfloat16
