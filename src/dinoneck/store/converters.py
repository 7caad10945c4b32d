"""Two layouts of features that other programs store, read into a store.

* ``.npz``: one file per image, ``cls_i`` (C,) and ``patches_i`` (N, C) for view i.
* ``.pt``: one float16 tensor (C, rows, cols) per image in a parallel folder tree, without CLS.

Both hold one layer and nothing about the backbone, so a store made of them cannot be extended.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.atomic import open_regular
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.views import Views
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.progress import progress
from dinoneck.store.description import Description, named_views
from dinoneck.store.encoding import StoreDtype, encode
from dinoneck.store.images import check_unchanged, image_file
from dinoneck.store.reading import Reader
from dinoneck.store.shards import Writer
from dinoneck.text import reason_of
from dinoneck.tokens import Tokens
from dinoneck.weight_files import read_any

Make = Callable[[Description], Reader]
_EXPECTED = {
    ".npz": "cls_i (C,) and patches_i (N, C), i = 0, 1, ...",
    ".pt": "a tensor (C, rows, cols) of real numbers",
}


def read_file(path: Path, patch_size: PatchSize, grid: Sequence[int] | None = None) -> Tokens:
    """Read one ``.npz``, the views of an image as a batch, or one ``.pt`` with the weights-only loader.

    Raises:
        DataError: naming the file, and what is expected of it.
    """
    cls_token = None
    try:
        if path.suffix == ".pt":
            maps = read_any(path)
            if not isinstance(maps, Tensor):
                raise ValueError(f"it holds a {type(maps).__name__}")
            if maps.ndim != 3:
                raise ValueError(f"it holds a tensor of shape {tuple(maps.shape)}")
            if maps.is_complex():
                raise ValueError("it holds complex numbers")
            grid = maps.shape[1:]
            patches = maps.float().flatten(1).T[None].contiguous()  # (1, N, C)
        else:
            with open_regular(path) as file, np.load(file, allow_pickle=False) as content:  # noqa: TID251
                count = sum(name.startswith("patches_") for name in content.files)
                patches = _stacked(content, "patches", count)  # (B, N, C)
                # (B, C)
                cls_token = _stacked(content, "cls", count) if "cls_0" in content.files else None
        return Tokens.from_patches(
            patches, grid=grid or (), patch_size=patch_size, cls_token=cls_token
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        DinoneckError,
    ) as error:
        raise DataError(
            f"{path} cannot be converted: {reason_of(error)}; expected {_EXPECTED[path.suffix]}"
        ) from error


def _stacked(content: Mapping[str, np.ndarray[Any, Any]], name: str, count: int) -> Tensor:
    return torch.from_numpy(np.stack([content[f"{name}_{i}"] for i in range(count)])).float()


def convert(
    make: Make, folder: Path, suffix: str, views: str | Views, dtype: StoreDtype, **known: Any
) -> None:
    """Store the tokens of all files of a folder tree that the store does not hold yet; ids are their paths.

    Args:
        make: makes the store, or opens an equal one.
        folder: with the files.
        suffix: of their names.
        views: of every file.
        dtype: of the store.
        **known: what :func:`read_file` takes.

    Raises:
        DataError: if there are none, or a file's tokens are not like the first one's; what was
            converted is kept.
        StoreError: if a file that was converted before has changed, the disk is full, or values do
            not fit the dtype.
        ConfigError: for int8.
    """
    if dtype == "int8":
        raise ConfigError(
            "dtype is 'int8'; converted features are stored as they are, expected 'fp16' or 'bf16'"
        )
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob(f"*{suffix}"))
    }
    if not files:
        raise DataError(f"the folder {folder} holds no {suffix} files")
    first = read_file(next(iter(files.values())), **known)
    sizes = {
        "patch_size": list(patch_pair(first.patch_size)),
        "embed_dim": first.sequence[0].shape[2],
    }
    record = {
        "name": "unknown",
        **sizes,
        "num_cls": first.num_cls,
        "num_registers": 0,
        "layers": None,
        "norm": None,
    }
    reader = make(
        Description(record, Preprocessing(patch_size=first.patch_size), named_views(views), dtype)
    )
    stored = frozenset(reader.ids)
    check_unchanged((item for item in files.items() if item[0] in stored), reader.entries)
    writer = Writer(reader.shards, str(folder.absolute()))
    expected = len(reader.description.views), first.sequence[0].shape[2], first.num_cls
    try:
        for image_id in progress(sorted(files.keys() - stored), desc="convert", unit="image"):
            file, tokens = image_file(path := files[image_id]), read_file(path, **known)
            kind = len(tokens), tokens.sequence[0].shape[2], tokens.num_cls
            if kind != expected:
                raise DataError(f"{path} holds (views, channels, CLS) {kind}; expected {expected}")
            writer.add(image_id, encode(tokens, dtype), tokens.grid, file)
    finally:
        writer.flush()
    reader.refresh(write=True)
