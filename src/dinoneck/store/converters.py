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
from dinoneck.errors import ConfigError, DataError, DinoneckError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.views import Views
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
                if "cls_0" in content.files:
                    cls_token = _stacked(content, "cls", count)  # (B, C)
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
    """Return the arrays ``name_0``, ``name_1``, ... as one float32 tensor."""
    arrays = [content[f"{name}_{i}"] for i in range(count)]
    return torch.from_numpy(np.stack(arrays)).float()


def convert(
    make: Make, folder: Path, suffix: str, views: str | Views, dtype: StoreDtype, **geometry: Any
) -> None:
    """Store the tokens of all files of a folder tree that the store does not hold yet; ids are their paths.

    Args:
        make: makes the store, or opens an equal one.
        folder: with the files.
        suffix: of their names.
        views: of every file.
        dtype: of the store.
        **geometry: the patch size and the grid, as :func:`read_file` takes them.

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
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{suffix}")):
        image_id = path.relative_to(folder).with_suffix("").as_posix()
        files[image_id] = path
    if not files:
        raise DataError(f"the folder {folder} holds no {suffix} files")

    first_path = next(iter(files.values()))
    first = read_file(first_path, **geometry)
    channels = first.sequence[0].shape[2]
    record = {
        "name": "unknown",
        "patch_size": list(patch_pair(first.patch_size)),
        "embed_dim": channels,
        "num_cls": first.num_cls,
        "num_registers": 0,
        "layers": None,
        "norm": None,
    }
    description = Description(
        backbone=record,
        preprocess=Preprocessing(patch_size=first.patch_size),
        views=named_views(views),
        dtype=dtype,
    )
    reader = make(description)
    stored = frozenset(reader.ids)
    stored_files = {image_id: path for image_id, path in files.items() if image_id in stored}
    check_unchanged(stored_files.items(), reader.entries)

    writer = Writer(reader.shards, str(folder.absolute()))
    expected = (len(reader.description.views), channels, first.num_cls)
    try:
        for image_id in progress(sorted(files.keys() - stored), desc="convert", unit="image"):
            path = files[image_id]
            file = image_file(path)  # before the tokens: a file that changes meanwhile is noticed
            tokens = read_file(path, **geometry)
            actual = (len(tokens), tokens.sequence[0].shape[2], tokens.num_cls)
            if actual != expected:
                raise DataError(
                    f"{path} holds (views, channels, CLS) {actual}; expected {expected}"
                )
            writer.add(image_id, encode(tokens, dtype), tokens.grid, file)
    finally:
        writer.flush()
    reader.refresh(write=True)
