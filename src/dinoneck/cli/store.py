"""``dinoneck store``: feature stores to and from older layouts, and their check."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from dinoneck.atomic import write_folder
from dinoneck.checkpoint.file import is_file
from dinoneck.cli.arguments import Paths, whole
from dinoneck.cli.files import check_store
from dinoneck.cli.text import each, good, show, show_rows
from dinoneck.errors import ConfigError
from dinoneck.training.config_flags import SIZE

Format = Literal["npz", "pt"]
_USED = {
    (True, "npz"): {"layer", "overwrite"},
    (True, "pt"): {"layer", "pattern", "overwrite"},
    (False, "npz"): {"grid", "patch_size", "patterns", "dtype"},
    (False, "pt"): {"grid", "patch_size", "dtype"},
}
"""(whether the source is a store, format) -> the options that apply."""
_NEEDED = {"npz": ("grid", "patch_size"), "pt": ("patch_size",)}


def verify(stores: Paths) -> dict[str, Any]:
    """Check every byte of feature stores; exit 1 if one is damaged.

    Example: dinoneck store verify store

    Args:
        stores: folders of feature stores.
    """
    rows = show_rows(each(stores, check_store))
    return {"ok": good(rows), "checked": rows}


def convert(
    source: Annotated[Path, Positional],
    out: Path,
    format: Format,
    grid: Annotated[tuple[int, int] | None, SIZE, arg(metavar="ROWSxCOLS")] = None,
    patch_size: Annotated[tuple[int, int] | None, SIZE, arg(metavar="PIXELS")] = None,
    patterns: str | None = None,
    dtype: Literal["fp16", "bf16", "int8"] | None = None,
    layer: int | None = None,
    pattern: Annotated[int | None, whole(0)] = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert .npz or .pt features into a store, or write the features of a store as such files.

    Example: dinoneck store convert features/ --format npz --grid 30x60 --patch-size 16 --out store

    Args:
        source: a folder of feature files, or a feature store.
        out: the new store, or the folder for the files.
        format: of the files: npz holds cls_i (C,) and patches_i (N, C) per pattern i, pt one tensor (C, rows, cols).
        grid: patches of an image; needed for npz into a store.
        patch_size: pixels of a patch, such as 16; needed into a store.
        patterns: what pattern i was, as for extract; from npz (default by number: 1 none, 4 flips4, 20 color20).
        dtype: of the new store (default fp16).
        layer: which block, from a store of several.
        pattern: which pattern, from a store into pt (default 0).
        overwrite: write into a folder that holds files.
    """
    options: dict[str, Any] = {"grid": grid, "patch_size": patch_size, "patterns": patterns, "dtype": dtype}
    options |= {"layer": layer, "pattern": pattern, "overwrite": overwrite}
    from_store = is_file(source / "store.json")
    _check(source, out, format, {name for name, value in options.items() if value not in (None, False)}, from_store)
    from dinoneck.store.feature_store import FeatureStore

    if not from_store:
        shared: dict[str, Any] = {"patch_size": patch_size, "grid": grid, "dtype": dtype or "fp16"}
        if format == "npz":
            made = FeatureStore.from_npz(source, out, patterns=patterns, **shared)
        else:
            made = FeatureStore.from_pt(source, out, **shared)
        document = {"written": out, "images": len(made), "patterns": len(made.patterns)}
    else:
        store = FeatureStore.open(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        with nullcontext(out) if out.exists() else write_folder(out) as folder:  # an interrupted one is left out
            count = store.to_npz(folder, layer) if format == "npz" else store.to_pt(folder, layer, pattern or 0)
        document = {"written": out, "files": count}
    show(document)
    return document


def _check(source: Path, out: Path, format: Format, given: set[str], from_store: bool) -> None:
    """Refuse, before any work, options that are missing or do not apply, and a folder that is in use."""
    if not source.is_dir():
        raise ConfigError(f"{source} is not a folder; expected a folder of feature files, or a feature store")
    what = f"a store into {format} files" if from_store else f"{format} files into a store"
    if odd := sorted(given - _USED[from_store, format]):
        raise ConfigError(f"{_flags(odd)} does not apply where {what} is converted; leave it out")
    if not from_store:
        if missing := [name for name in _NEEDED[format] if name not in given]:
            raise ConfigError(f"{format} files do not state {_flags(missing)}; give it")
        return
    if out.suffix == f".{format}":
        raise ConfigError(f"--out {out}: a file per image is written into a folder; expected the name of a folder")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"--out {out} lies in the store {source}; choose a folder outside it")
    if "overwrite" not in given and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"--out {out} is not empty; choose another folder, or give --overwrite")


def _flags(names: list[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


store = {"convert": convert, "verify": verify}
