"""``dinoneck paint``: a page to paint classes in, and of its strokes a head and masks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli import arguments as cli
from dinoneck.cli.text import file_size, show
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import counted, some_of
from dinoneck.training.config import SIZE, FrozenBackbone

if TYPE_CHECKING:
    from dinoneck.painting.files import PaintedFiles
    from dinoneck.painting.photos import PhotoTokens
    from dinoneck.painting.strokes import Strokes
    from dinoneck.store.feature_store import FeatureStore

_BACKBONE = FrozenBackbone()
_STORE_FILE = "store.json"  # FILE of dinoneck.store.description, which imports torch
_SIZE = (640, 640)  # at most 40 x 40 patches of 16 px
_FOLDS = 5  # of dinoneck train
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Tokens:
    """Whose tokens the head reads.

    Attributes:
        backbone: the model that makes the tokens.
        size: pixels that photos are resized to fit into; they keep their proportions.
        bits: how many bits images of 16 bits use, such as 12; 16 reads them as they are.
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """

    backbone: Annotated[FrozenBackbone, arg(name="")] = _BACKBONE
    size: Annotated[tuple[int, int], SIZE] = _SIZE
    bits: cli.Bits = None
    device: str | None = None


def paint(
    sources: Annotated[tuple[Path, ...], Positional, arg(metavar="IMAGES|STORE ...")],
    out: Annotated[Path, arg(metavar="FOLDER")],
    classes: Annotated[tuple[str, ...], arg(metavar="CLASS ...")] = (),
    strokes: Annotated[Path | None, arg(metavar="JSON")] = None,
    images: Annotated[tuple[Path, ...], arg(metavar="PATH ...")] = (),
    tokens: Annotated[Tokens, arg(name="")] = Tokens(),
) -> dict[str, Any]:
    """Write a page to paint classes in; with the strokes that it saves, train a head and write masks.

    The page shows the map of all photos after each stroke; it needs no network. Its button saves
    strokes.json; the same command with --strokes trains the same head on all channels of the
    tokens.

    Example: dinoneck paint photos/ --classes crop weed soil --out paint

    Args:
        sources: photos, or folders searched with their subfolders; or a feature store.
        out: folder for paint.html, and with --strokes for head.safetensors, masks/ and masks.csv.
        classes: their names; those of a mask are numbered from 0 in this order (default: those of
            the strokes).
        strokes: the strokes.json that the page saved.
        images: the photos that a store was extracted from (default: where they were).
        tokens: whose tokens are shown.
    """
    # refuse what is wrong before torch is imported
    if not sources:
        raise ConfigError(cli.NO_IMAGES)
    painted = _read_strokes(strokes, classes)
    class_names = classes if painted is None else painted.classes
    _check_out(out, (*sources, *images))
    if _is_store(sources):
        if tokens != Tokens():
            raise ConfigError(
                f"the tokens are in the store {sources[0]}; leave the backbone's options, --size, "
                "--bits and --device out"
            )
        photos = _Photos.of_store(sources[0], images)
    else:
        if images:
            raise ConfigError(
                "--images names the photos of a feature store, and no store is named; name the photos "
                "before the options"
            )
        photos = _Photos.of_images(sources, tokens)

    from dinoneck.painting.files import PaintedFiles, write_labels, write_page

    photo_tokens = photos.read()
    if painted is None:
        files = PaintedFiles(page=write_page(out, photo_tokens, class_names))
    else:
        files = write_labels(out, photo_tokens, painted, photos.files)
    _show(files, photos, photo_tokens, class_names)
    written = [files.page, *files.masks]
    if files.head is not None and files.table is not None:
        written += [files.head, files.table]
    return {"written": written, "photos": len(photos.files), "painted": len(files.masks)}


def _read_strokes(file: Path | None, classes: Sequence[str]) -> Strokes | None:
    """The strokes of a file, with the classes of the command line if it names some; None without a file."""
    from dinoneck.painting.strokes import Strokes, problem_of_classes

    if classes or file is None:
        problem = problem_of_classes(classes)
        if problem:
            raise ConfigError(f"{problem} (--classes)")
    if file is None:
        return None
    cli.check_exist([file])
    strokes = Strokes.read(file)
    return strokes.with_classes(classes) if classes else strokes


def _check_out(out: Path, sources: Sequence[Path]) -> None:
    """Refuse a folder to write that is a file, cannot be made, or is among the photos."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    existing = out.absolute()
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out} cannot be written; choose another folder")
    for source in sources:
        if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise ConfigError(
                f"--out {out} is inside {source}, whose files are read as photos or tokens, and so "
                "would the masks be; choose a folder elsewhere"
            )


def _is_store(sources: Sequence[Path]) -> bool:
    """Whether the command line names a feature store."""
    return len(sources) == 1 and (sources[0] / _STORE_FILE).is_file()


@dataclass(frozen=True)
class _Photos:
    """The photos of a command line.

    Attributes:
        files: name, which is the path below the folder that all share -> file.
        folder: that all share.
        tokens: whose tokens they get; None where a store holds them.
        store: that holds the tokens.
        ids: name -> id in the store.
    """

    files: Mapping[str, Path]
    folder: Path
    tokens: Tokens | None = None
    store: FeatureStore | None = None
    ids: Mapping[str, str] | None = None

    @classmethod
    def of_images(cls, images: Sequence[Path], tokens: Tokens) -> _Photos:
        """The photos that are named."""
        files, folder = _named_files(cli.list_images(images))
        cli.check_backbone_name(tokens.backbone.name, tokens.backbone.source)
        return cls(files, folder, tokens)

    @classmethod
    def of_store(cls, path: Path, images: Sequence[Path]) -> _Photos:
        """The photos of a store: those that are named, else all that are where they were."""
        listed = cli.list_images(images) if images else []

        from dinoneck.store.feature_store import FeatureStore
        from dinoneck.training.run_tokens import StoreSubset

        store = FeatureStore.open(path)
        if not listed:
            files_by_id = files_of_store(store)
            files, folder = _named_files(list(files_by_id.values()))
            ids = dict(zip(files, files_by_id, strict=True))
            return cls(files, folder, store=store, ids=ids)
        files, folder = _named_files(listed)
        ids = dict(zip(files, StoreSubset(store, list(files)).ids, strict=True))
        return cls(files, folder, store=store, ids=ids)

    def read(self) -> PhotoTokens:
        """The photos with their tokens."""
        from dinoneck.painting.photos import PhotoTokens
        from dinoneck.training.run_tokens import open_backbone

        if self.store is not None and self.ids is not None:
            return PhotoTokens.from_store(self.files, self.store, self.ids)
        options = self.tokens or Tokens()
        backbone = open_backbone(cli.with_default_runtime(options.backbone), options.device)
        return PhotoTokens.extract(self.files, backbone, size=options.size, bits=options.bits)


def _named_files(files: Sequence[Path]) -> tuple[dict[str, Path], Path]:
    """Name -> file, and the folder that all share."""
    from dinoneck.painting.strokes import check_mask_names

    names = [Path(name).as_posix() for name in cli.names_below(files)]
    named = dict(zip(names, files, strict=True))
    check_mask_names(list(named))
    return named, cli.shared_folder(files)


def files_of_store(store: FeatureStore) -> dict[str, Path]:
    """Id -> file of the images of a store that are where they were at the extraction.

    Raises:
        ConfigError: if the folder is not there, or the store has images of several or of none.
        DataError: if none of them is there.
    """
    from dinoneck.store.images import image_ids

    roots = store.entries.roots()
    if not roots:
        raise ConfigError(f"the store {store.path} holds no images; name one with tokens of photos")
    if len(roots) > 1:
        raise ConfigError(
            f"the store {store.path} was extracted from the folders {some_of(roots, _SHOWN)}, and "
            "photos are looked for in one; name them with --images"
        )
    if not Path(roots[0]).is_dir():
        raise ConfigError(
            f"the store {store.path} was extracted from {roots[0]}, where its photos are not found; "
            "name them with --images"
        )
    files = {}
    for image_id, file in image_ids(roots[0], roots[0]).items():
        if image_id in store:
            files[image_id] = file
    if not files:
        raise DataError(
            f"{roots[0]} has no image of the store {store.path}; name the photos with --images"
        )
    if len(files) < len(store):
        show(f"{len(files)} of {len(store)} images of the store are in {roots[0]}.")
    return files


def _num_folds(num_masks: int) -> int:
    """How many folds a training on masks can have: each holds out one or more; of a single mask none is held out."""
    return min(_FOLDS, num_masks)


def _show(
    files: PaintedFiles, photos: _Photos, tokens: PhotoTokens, classes: Sequence[str]
) -> None:
    """Print what was written, and what to do next."""
    num_patches = 0
    for photo in tokens.photos:
        rows, cols, _ = photo.patches.shape
        num_patches += rows * cols
    show(
        f"{counted(len(tokens.photos), 'photo')}, {num_patches} patches in all; written: {files.page} "
        f"({file_size(files.page.stat().st_size)})"
    )
    if files.head is None or files.table is None:
        show(
            f"Open {files.page} in a browser, paint, and save the strokes; then run this command "
            "again with --strokes strokes.json."
        )
        return

    from dinoneck.painting.strokes import UNPAINTED

    show(
        f"{counted(len(files.masks), 'photo')} painted; written: {files.head}, {files.table} and "
        f"{counted(len(files.masks), 'mask')} of the strokes"
    )
    words = ["dinoneck", "train", "--csv", str(files.table), "--images", str(photos.folder)]
    words += ["--labels", "mask", "--classes", *classes, "--nodata", str(UNPAINTED)]
    words += ["--folds", str(_num_folds(len(files.masks))), "--out", "run"]
    show(f"To train a larger head on the masks: {shlex.join(words)}")
