"""Two older layouts of stored features, read into a store and written from it.

* ``.npz`` (design source 003): one file per image, ``cls_i`` (C,) and ``patches_i`` (N, C) for pattern i.
* ``.pt`` (design source 001): one float16 tensor (C, rows, cols) per image in a parallel folder tree, without CLS.

Both hold one layer and nothing about the backbone, so a store made of them cannot be extended.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dinoneck.atomic import write_whole
from dinoneck.data.patterns import Pattern, Patterns
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError, DinoneckError, StoreError
from dinoneck.grid import PatchSize, patch_pair
from dinoneck.progress import progress
from dinoneck.store.description import SCALE_FILE, Description, upgrade_schema, write_scale
from dinoneck.store.encoding import StoreDtype, channel_rms, encode
from dinoneck.store.files import LocalFiles, failed_write
from dinoneck.store.images import check_unchanged, image_file
from dinoneck.store.reading import Reader
from dinoneck.store.writer import Writer
from dinoneck.tokens import Tokens
from dinoneck.weight_files import read_tensor

UNKNOWN = "unknown"
_SCALE_FILES = 16
_BY_COUNT = {1: "none", 4: "flips4", 20: "color20"}
_NPZ_ERRORS = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


def write_npz(reader: Reader, folder: Path, layer: int | None) -> int:
    """Write one ``.npz`` per image, float32; return how many."""
    for image_id in progress(reader.ids, desc="npz", unit="image"):
        count = len(reader.description.patterns)
        tokens = _of_layer(reader, image_id, list(range(count)), layer)
        arrays = {f"patches_{i}": tokens.patches[0][i].numpy() for i in range(count)}
        if tokens.num_cls:
            arrays |= {f"cls_{i}": tokens.cls_token[0][i].numpy() for i in range(count)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        _write(folder, f"{image_id}.npz", buffer)
    return len(reader.ids)


def write_pt(reader: Reader, folder: Path, layer: int | None, pattern: int) -> int:
    """Write one float16 ``.pt`` tensor (C, rows, cols) per image; return how many."""
    for image_id in progress(reader.ids, desc="pt", unit="image"):
        tokens = _of_layer(reader, image_id, [pattern], layer)
        buffer = io.BytesIO()
        torch.save(tokens.maps()[0][0].half().contiguous(), buffer)
        _write(folder, f"{image_id}.pt", buffer)
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


def read_npz(path: Path, grid: Sequence[int], patch_size: PatchSize) -> Tokens:
    """Read one ``.npz``: the patterns of one image as a batch.

    Raises:
        DataError: if it holds anything else, naming the file.
    """
    with _refused(path, "cls_i (C,) and patches_i (N, C) for i = 0, 1, ..."):
        with np.load(path, allow_pickle=False) as content:
            count = sum(name.startswith("patches_") for name in content.files)
            patches = np.stack([content[f"patches_{i}"] for i in range(count)])
            if np.iscomplexobj(patches):
                raise ValueError(f"patches are {patches.dtype}")
            cls = np.stack([content[f"cls_{i}"] for i in range(count)]) if "cls_0" in content.files else None
        cls_token = None if cls is None else torch.from_numpy(cls).float()
        x = torch.from_numpy(patches).float()
        return Tokens.from_patches(x, grid=grid, patch_size=patch_size, cls_token=cls_token)


def read_pt(path: Path, grid: Sequence[int] | None, patch_size: PatchSize) -> Tokens:
    """Read one ``.pt`` with the weights-only loader: a batch of one.

    Raises:
        DataError: if it holds anything else, naming the file.
    """
    with _refused(path, "a tensor (C, rows, cols)" + (f" of {tuple(grid)}" if grid else "")):
        maps = read_tensor(path)
        if maps.is_complex():
            raise ValueError(f"it holds {maps.dtype}")
        if maps.ndim != 3 or (grid is not None and tuple(maps.shape[1:]) != tuple(grid)):
            raise ValueError(f"it holds a tensor of shape {tuple(maps.shape)}")
        patches = maps.float().flatten(1).T[None].contiguous()
        return Tokens.from_patches(patches, grid=tuple(maps.shape[1:]), patch_size=patch_size)


def describe(first: Tokens, patterns: Patterns | None, dtype: StoreDtype) -> Description:
    """Return the description of a store of converted features; the backbone is not known."""
    count = len(first)
    if patterns is None:
        patterns = Patterns.named(_BY_COUNT[count]) if count in _BY_COUNT else Patterns((Pattern(),) * count)
    if len(patterns) != count:
        raise DataError(f"{len(patterns)} patterns were named; the files hold {count}")
    sizes = {"patch_size": list(patch_pair(first.patch_size)), "embed_dim": first.sequence[0].shape[2]}
    record = {"name": UNKNOWN, **sizes, "num_cls": first.num_cls, "num_registers": 0, "layers": None, "norm": None}
    return Description(record, Preprocessing(patch_size=first.patch_size), patterns, dtype)


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


def _of_layer(reader: Reader, image_id: str, patterns: list[int], layer: int | None) -> Tokens:
    columns, grid = reader.columns([image_id] * len(patterns), patterns)
    tokens = reader.assemble(columns, grid, torch.float32)
    if layer is not None:
        return tokens.select(layer)
    if len(tokens.sequence) != 1:
        raise StoreError(f"{reader.files} holds the layers {tokens.layers}, these files one; name it with layer=")
    return tokens


def _write(folder: Path, name: str, buffer: io.BytesIO) -> None:
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise failed_write(path, error) from error


@contextlib.contextmanager
def _refused(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (*_NPZ_ERRORS, DinoneckError) as error:
        raise DataError(f"{path} cannot be converted: {error}; expected {expected}") from error
