"""Two older layouts of stored features, read into a store and written from it.

* ``.npz``: one file per image, ``cls_i`` (C,) and ``patches_i`` (N, C) for pattern i.
* ``.pt``: one float16 tensor (C, rows, cols) per image in a parallel folder tree, without CLS.

Both hold one layer and nothing about the backbone, so a store made of them cannot be extended.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dinoneck.atomic import write_whole
from dinoneck.data.patterns import Pattern, Patterns
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError, DinoneckError, StoreError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.progress import progress
from dinoneck.regular_files import open_regular
from dinoneck.store.description import SCALE_FILE, Description, named_patterns, upgrade_schema, write_scale
from dinoneck.store.encoding import StoreDtype, channel_rms, encode
from dinoneck.store.files import LocalFiles, failed_write
from dinoneck.store.images import PathLike, check_unchanged, image_file
from dinoneck.store.reading import Reader
from dinoneck.store.writer import Writer
from dinoneck.tokens import Tokens
from dinoneck.weight_files import read_tensor

UNKNOWN = "unknown"
_SCALE_FILES = 16
_BY_COUNT = {1: "none", 4: "flips4", 20: "color20"}
_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


def write_files(reader: Reader, folder: Path, suffix: str, patterns: list[int], layer: int | None) -> int:
    """Write one ``.npz`` (float32) or ``.pt`` (float16) file per image; return how many.

    Raises:
        StoreError: if the store has several layers and none is named, or the disk is full.
    """
    for image_id in progress(reader.ids, desc=suffix[1:], unit="image"):
        tokens = reader.assemble(*reader.columns([image_id] * len(patterns), patterns), torch.float32)
        if layer is not None:
            tokens = tokens.select(layer)
        elif len(tokens.sequence) != 1:
            raise StoreError(f"{reader.files} holds the layers {tokens.layers}, these files one; name it with layer=")
        buffer = io.BytesIO()
        if suffix == ".npz":
            arrays = {f"patches_{i}": tokens.patches[0][i].numpy() for i in range(len(patterns))}
            if tokens.num_cls:
                arrays |= {f"cls_{i}": tokens.cls_token[0][i].numpy() for i in range(len(patterns))}
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
        else:
            torch.save(tokens.maps()[0][0].half().contiguous(), buffer)
        path = folder / f"{image_id}{suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, buffer.getvalue())
        except OSError as error:
            raise failed_write(path, error) from error
    return len(reader.ids)


def files_in(folder: Path, suffix: str) -> dict[str, Path]:
    """Return id -> file for the features in a folder tree.

    Raises:
        DataError: if there are none.
    """
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob(f"*{suffix}"))}
    if not found:
        raise DataError(f"the folder {folder} holds no {suffix} files")
    return dict(sorted(found.items()))


def read_file(path: Path, grid: Sequence[int] | None, patch_size: PatchSize) -> Tokens:
    """Read one ``.npz``, the patterns of an image as a batch; or one ``.pt`` with the weights-only loader.

    Raises:
        DataError: if it holds anything else, naming the file.
    """
    expected = "cls_i (C,) and patches_i (N, C) for i = 0, 1, ..."
    cls = None
    try:
        if path.suffix == ".npz":
            patches, cls = _read_npz(path)
        else:
            expected = "a tensor (C, rows, cols)" + (f" of {tuple(grid)}" if grid else "")
            maps = read_tensor(path)
            if maps.ndim != 3 or (grid is not None and tuple(maps.shape[1:]) != tuple(grid)):
                raise ValueError(f"it holds a tensor of shape {tuple(maps.shape)}")
            patches, grid = maps.flatten(1).T[None].contiguous(), maps.shape[1:]
        if patches.is_complex():
            raise ValueError(f"it holds {patches.dtype}")
        return Tokens.from_patches(
            patches.float(), grid=cast("Sequence[int]", grid), patch_size=patch_size, cls_token=cls
        )
    except (*_ERRORS, DinoneckError) as error:
        raise DataError(f"{path} cannot be converted: {error}; expected {expected}") from error


def _read_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """The patches (B, N, C) and, where they are stored, the CLS tokens (B, C)."""
    with open_regular(path) as file, np.load(file, allow_pickle=False) as content:
        count = sum(name.startswith("patches_") for name in content.files)
        patches = np.stack([content[f"patches_{i}"] for i in range(count)])
        cls = np.stack([content[f"cls_{i}"] for i in range(count)]) if "cls_0" in content.files else None
    return torch.from_numpy(patches), None if cls is None else torch.from_numpy(cls).float()


def describe(first: Tokens, patterns: PathLike | Patterns | None, dtype: StoreDtype) -> Description:
    """Return the description of a store of converted features; the backbone is not known."""
    count = len(first)
    if patterns is None:
        patterns = _BY_COUNT.get(count, Patterns((Pattern(),) * count))
    named = named_patterns(patterns)
    if len(named) != count:
        raise DataError(f"{len(named)} patterns were named; the files hold {count}")
    sizes = {"patch_size": list(patch_pair(first.patch_size)), "embed_dim": first.sequence[0].shape[2]}
    record = {"name": UNKNOWN, **sizes, "num_cls": first.num_cls, "num_registers": 0, "layers": None, "norm": None}
    return Description(record, Preprocessing(patch_size=first.patch_size), named, dtype)


def convert(files: dict[str, Path], read: Callable[[Path], Tokens], reader: Reader, root: Path) -> None:
    """Store the tokens of all files that the store does not hold yet.

    Raises:
        DataError: if a file's tokens are not like the first one's; what was converted before is kept.
        StoreError: if a file that was converted before has changed, the disk is full, or values do not fit the dtype.
    """
    check_unchanged(files.items(), reader.entries)
    description = reader.description
    scale = None
    if description.dtype == "int8":
        if not (root / SCALE_FILE).exists():
            some = list(files.values())[:_SCALE_FILES]
            write_scale(root, channel_rms([read(path) for path in some]))
        scale = reader.scale()
    missing = {image_id: path for image_id, path in files.items() if image_id not in reader.entries}
    upgrade_schema(LocalFiles(root))
    writer = Writer(root, made=reader.made())
    expected = len(description.patterns), description.backbone["embed_dim"], description.backbone["num_cls"]
    try:
        for image_id, path in progress(missing.items(), desc="convert", unit="image"):
            file, tokens = image_file(image_id, path), read(path)
            kind = len(tokens), tokens.sequence[0].shape[2], tokens.num_cls
            if kind != expected:
                raise DataError(f"{path} holds (patterns, channels, CLS) {kind}; expected {expected}")
            layout = description.layout(tokens.grid)
            writer.add(image_id, encode(tokens, layout, scale), layout, file)
    finally:
        writer.flush()
