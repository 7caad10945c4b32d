"""What a folder of data holds: class folders, images with masks, and parts such as train and val.

The names of folders decide, and a reading that is not certain is refused with both readings: a
folder that is misread gives a head that learns something else, with good scores. Neither pandas nor
torch is imported; images are opened only where names do not tell masks from images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dinoneck.data.cells import PathLike, cell_text
from dinoneck.data.walk import SUFFIXES, Tree, walk
from dinoneck.errors import DataError, counted, some_of

Kind = Literal["images", "classes", "masks"]
Subfolders = Literal["classes", "folds", "parts"]
"""How the folders of a data set are read: as classes; as folds, each held out in turn; as train, val and test."""
PARTS = "parts"
"""The entry of ``table.attrs`` that says which fold of a table is held out; None = each in turn."""

# folders that are never a class, next to another folder
_IMAGE_FOLDERS = {"image", "images", "img", "imgs", "jpegimages", "leftimg8bit"}
# words in the names of folders whose neighbour holds masks
_IMAGE_WORDS = {"image", "images", "img", "imgs", "jpegimages", "leftimg"}
# words of folders that hold images, or are a class of them
_VAGUE_WORDS = {"photo", "photos", "picture", "pictures", "pics", "rgb", "input", "inputs", "raw"}
_VAGUE_WORDS |= {"data", "original", "originals", "orig", "frame", "frames"}
# words in the names of folders, and at the end of the names of files, of masks
_MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots"}
_MASK_WORDS |= {"anno", "gt", "gtfine", "gtcoarse", "groundtruth", "truth", "seg", "segs", "segm"}
_MASK_WORDS |= {"segmentation", "segmentations", "semantic", "trimap", "trimaps", "target"}
_MASK_WORDS |= {"targets", "labelids", "labeltrainids"}
# words in the names of folders that are parts of a data set, not classes of it
_PART_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
_PART_WORDS |= {"eval", "evaluation", "holdout", "heldout", "unlabeled", "unlabelled", "trainval"}
_PART_WORDS |= {"fold", "folds", "split", "part", "cv"}
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_LOSSLESS = (".png", ".tif", ".tiff", ".bmp")
_MASK_MODES = ("1", "L", "P", "I", "I;16")  # Pillow's names of one band, and of palettes
_BYTE_MODES = ("1", "L", "P")  # of these, without the 16 bits of thermal cameras
_OPENED = 3  # files of a folder that are opened to tell masks from images
_HEAD_BYTES = 65_536  # of a JSON file, in which the keys of COCO are looked for


@dataclass(frozen=True)
class DataFolder:
    """What a folder holds.

    Attributes:
        root: the folder.
        kind: images alone, class folders, or images and masks.
        images: the folder of the images.
        masks: the folder of their masks.
        classes: the names of the class folders.
        parts: name -> content of the parts, in the order in which they are read.
        held_out: of the parts: the one that heads are scored on; None = each in turn.
        left: of the parts: the one that training leaves, for ``evaluate``.
    """

    root: Path
    kind: Kind
    images: Path
    masks: Path | None = None
    classes: tuple[str, ...] = ()
    parts: Mapping[str, DataFolder] = field(default_factory=dict)
    held_out: str | None = None
    left: DataFolder | None = None


@dataclass
class _Folder:
    """A folder, its images and other files, and the folders in it."""

    path: Path
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, stripped and composed (NFC)."""
        return cell_text(self.path.name)

    def all_images(self) -> list[Path]:
        """The images in it and below it."""
        images = list(self.images)
        for folder in self.folders.values():
            images += folder.all_images()
        return images

    def with_images(self) -> list[_Folder]:
        """The folders in it that hold images."""
        return [folder for folder in self.folders.values() if folder.all_images()]


def read_data_folder(path: PathLike, subfolders: Subfolders | None = None) -> DataFolder:
    """Tell what a folder of data holds.

    * ``images/`` and ``masks/`` (or ``labels/`` and other words): images and their masks.
    * ``train/`` and ``val/`` (or ``valid/``, and ``test/``), each with class folders or with images
      and masks: parts.
    * two or more folders of images: classes.
    * images alone.

    Args:
        path: the folder.
        subfolders: how the folders in it are read; None = by their names.

    Raises:
        DataError: if the folder does not exist, or can be read in several ways.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist")
    tree = walk(root)
    _check_links(tree)
    top = _folder_of(tree)
    if subfolders == "classes":
        return _classes_of(top, certain=True)
    pairs = _mask_pairs(top)
    if pairs:
        return _paired(top, pairs, subfolders)
    if subfolders is not None:
        return _parts_of(top, subfolders)
    if _are_parts([folder.name for folder in top.with_images()]):
        return _parts_of(top, "parts")
    if top.with_images():
        return _classes_of(top, certain=False)
    return DataFolder(root, "images", root)


def picture_files(tree: Tree) -> tuple[list[Path], list[Path]]:
    """Return the images of a folder, and the masks that lie beside them, each sorted."""
    top = _folder_of(tree)
    masks = set(_mask_files(top))
    images = [file for file in tree.images if file not in masks]
    return images, sorted(masks)


def masks_in(folder: Path, masks: Path) -> Path | None:
    """Return the folder in ``folder`` that ``masks`` holds the masks of; None if it is not beside one."""
    if masks.parent != folder:
        return None
    for images, beside in _mask_pairs(_folder_of(walk(folder))):
        if beside.path == masks:
            return images.path
    return None


def data_files(root: Path) -> list[str]:
    """Return the tables and COCO files in a folder and the folders in it, with the option that reads each."""
    texts = []
    for folder in [root, *sorted(child for child in root.iterdir() if child.is_dir())]:
        for file in sorted(folder.iterdir()):
            suffix = file.suffix.lower()
            if file.name.startswith(".") or not file.is_file():
                continue
            if suffix in (".csv", ".tsv"):
                texts.append(f"the table {file} (--csv)")
            elif suffix == ".json" and _is_coco(file):
                texts.append(f"the COCO file {file} (--boxes, or --instances for masks)")
    return texts


def _is_coco(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            head = opened.read(_HEAD_BYTES)
    except OSError:
        return False
    return any(key in head for key in (b'"annotations"', b'"categories"', b'"images"'))


def _check_links(tree: Tree) -> None:
    """Refuse links that take images away: to nothing, or to a folder that is read under another name."""
    for link in tree.lost:
        if link.suffix == "" and tree.top in (link.parent, link.parent.parent):
            raise DataError(
                f"the link {link} leads to nothing; restore what it names, or remove it"
            )
    for link, folder in tree.repeated.items():
        if folder not in link.parents:  # else it is a loop
            raise DataError(
                f"{link} and {folder} are one folder; keep one of them, or images would count twice"
            )


def _folder_of(tree: Tree) -> _Folder:
    top = _Folder(tree.top)
    by_path = {tree.top: top}
    for path in tree.folders:  # sorted: a folder comes before those in it
        by_path[path] = _Folder(path)
        by_path[path.parent].folders[path.name] = by_path[path]
    for file in tree.files:
        folder = by_path[file.parent]
        if file.suffix.lower() in SUFFIXES:
            folder.images.append(file)
        else:
            folder.others.append(file)
    return top


# Images and masks
# ----------------------------------------------------------------------------------------------------


def _words(name: str) -> list[str]:
    """The words of a name: ``SegmentationClass_png`` -> segmentation, class, png."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def _is_mask_folder(folder: _Folder) -> bool:
    words = _words(folder.name)
    return bool(_MASK_WORDS.intersection(words)) or folder.name.lower().endswith(("annot", "masks"))


def _mask_pairs(top: _Folder) -> list[tuple[_Folder, _Folder]]:
    """The folders in a folder that hold images, and masks of these."""
    folders = top.with_images()
    masks = [folder for folder in folders if _is_mask_folder(folder)]
    others = [folder for folder in folders if not _is_mask_folder(folder)]
    pairs = []
    for mask in masks:
        for other in others:
            if _is_pair(other, mask, others):
                pairs.append((other, mask))
    return pairs


def _is_pair(images: _Folder, masks: _Folder, others: Sequence[_Folder]) -> bool:
    """Whether one folder holds the masks of another one next to it."""
    if _is_named_after(masks, images):
        return True
    if any(_is_named_after(masks, other) for other in others):
        return False
    words = set(_words(images.name))
    if words & _IMAGE_WORDS:
        return True
    is_mirror = _stems(masks) <= _stems(images)
    if words & _VAGUE_WORDS:
        return is_mirror or _look_like_masks(masks, images)
    return is_mirror and _look_like_masks(masks, images)


def _is_named_after(masks: _Folder, images: _Folder) -> bool:
    """Whether a folder has the name of another one and a word for masks: train_masks, trainannot."""
    name, start = masks.name.lower(), images.name.lower()
    return name.startswith(start) and bool(_MASK_WORDS.intersection(_words(name[len(start) :])))


def _stems(folder: _Folder) -> set[str]:
    """The paths of images below a folder, without their suffixes."""
    files = folder.all_images()
    return {file.relative_to(folder.path).with_suffix("").as_posix() for file in files}


def _look_like_masks(masks: _Folder, images: _Folder) -> bool:
    """Whether the first files of one folder have one band or a palette, and those of the other have colours."""
    of_masks = all(map(_has_one_band, _first_images(masks)))
    return of_masks and not any(map(_has_one_band, _first_images(images)))


def _first_images(folder: _Folder) -> list[Path]:
    """The files that are opened to tell masks from images."""
    return folder.all_images()[:_OPENED]


def _has_one_band(file: Path, modes: Sequence[str] = _MASK_MODES) -> bool:
    from PIL import Image, UnidentifiedImageError

    if file.suffix.lower() not in _LOSSLESS:
        return False
    try:
        with Image.open(file) as image:
            return image.mode in modes
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return False


def _mask_files(top: _Folder) -> Iterator[Path]:
    """The masks beside images, in a folder and below it."""
    masks = {id(mask): mask for _, mask in _mask_pairs(top)}
    for mask in masks.values():
        yield from mask.all_images()
    for folder in top.folders.values():
        if id(folder) not in masks:
            yield from _mask_files(folder)
    yield from _masks_beside(top.images)


def _masks_beside(images: Sequence[Path]) -> list[Path]:
    """The masks among the images of one folder: ``0.png`` beside ``0.jpg``, ``0_mask.png`` beside ``0.png``.

    Files of one name are masks if they have one band and the others do not. Files with a word for
    masks are masks if each image has one, or if they have one band.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in images:
        by_stem.setdefault(file.stem, []).append(file)
    masks = []
    named = []
    for stem, files in by_stem.items():
        if len(files) > 1:
            one_band = [file for file in files if _has_one_band(file, _BYTE_MODES)]
            if len(one_band) < len(files):
                masks += one_band
            continue
        word = re.search(r"[_\-. ]([A-Za-z]+)$", stem)
        if word is None or word.group(1).lower() not in _MASK_WORDS:
            continue
        if stem[: word.start()] in by_stem:
            named.append(files[0])
    if len(named) * 2 == len(images):
        return masks + named
    return masks + [file for file in named if _has_one_band(file)]


def _paired(
    top: _Folder, pairs: Sequence[tuple[_Folder, _Folder]], subfolders: Subfolders | None
) -> DataFolder:
    """Images and masks, or parts of which each has both."""
    root = top.path
    images, masks = pairs[0]
    paired = {id(folder) for pair in pairs for folder in pair}
    others = [folder.name for folder in top.with_images() if id(folder) not in paired]
    if top.images or others:
        what = f"the folders {', '.join(others)}" if others else f"images such as {top.images[0]}"
        raise DataError(
            f"{root} holds {images.name}/ with masks in {masks.name}/, and {what}. Name the folders "
            "to read, --images and --labels; if they are classes: --subfolders classes"
        )
    if len(pairs) == 1:
        return _images_and_masks(root, images, masks, subfolders)
    if len({id(folder) for folder, _ in pairs}) < len(pairs):
        raise DataError(
            f"{root} holds several folders with masks of {images.name}/: "
            f"{', '.join(beside.name for _, beside in pairs)}. Name one: --images {images.path} "
            f"--labels {masks.path}"
        )
    parts = {
        folder.name: DataFolder(root, "masks", folder.path, beside.path) for folder, beside in pairs
    }
    return _in_order(root, parts, subfolders)


def _images_and_masks(
    root: Path, images: _Folder, masks: _Folder, subfolders: Subfolders | None
) -> DataFolder:
    """A folder of images and one of masks, which may both have the same parts."""
    folders = images.with_images()
    has_parts = not images.images and _are_parts([folder.name for folder in folders])
    if not has_parts and subfolders is None:
        return DataFolder(root, "masks", images.path, masks.path)
    masks_of = {folder.name: folder for folder in masks.with_images()}
    parts = {}
    for folder in folders:
        if folder.name in masks_of:
            content = DataFolder(root, "masks", folder.path, masks_of[folder.name].path)
        else:
            content = DataFolder(root, "images", folder.path)
        parts[folder.name] = content
    return _in_order(root, parts, subfolders)


# Parts
# ----------------------------------------------------------------------------------------------------


def _part(name: str) -> str | None:
    """The part of a data set that a folder is named after."""
    for part, words in _PARTS.items():
        if name.lower() in words:
            return part
    return None


def _are_parts(names: Sequence[str]) -> bool:
    """Whether folders are train and val, and perhaps test, and nothing else."""
    parts = [_part(name) for name in names]
    return {"train", "val"} <= set(parts) <= set(_PARTS) and len(set(parts)) == len(parts)


def _parts_of(top: _Folder, subfolders: Subfolders) -> DataFolder:
    """The parts of a folder, each with class folders or with images and masks."""
    folders = top.with_images()
    if top.images:
        raise DataError(
            f"{top.path} holds images next to the folders "
            f"{', '.join(folder.name for folder in folders)}, such as {top.images[0].name}; move "
            "each into one"
        )
    parts = {folder.name: _part_content(folder) for folder in folders}
    return _in_order(top.path, parts, subfolders)


def _part_content(folder: _Folder) -> DataFolder:
    pairs = _mask_pairs(folder)
    if pairs:
        return _paired(folder, pairs, None)
    if folder.with_images():
        return _classes_of(folder, certain=False)
    return DataFolder(folder.path, "images", folder.path)


def _in_order(
    root: Path, parts: Mapping[str, DataFolder], subfolders: Subfolders | None
) -> DataFolder:
    """The folder with its parts: train and val, and test is left; or folds by their names.

    Raises:
        DataError: if they are not called so, there is one fold alone, or they are not alike.
    """
    names = ", ".join(parts) or "none"
    if subfolders == "folds" and len(parts) < 2:
        raise DataError(
            f"the folders with images in {root} are {names}; expected two folds or more"
        )
    if subfolders != "folds" and not _are_parts(list(parts)):
        raise DataError(
            f"the folders of {root} are {names}; parts are called train and val (or valid), and "
            "perhaps test. Rename them; if they are folds, each held out in turn: --subfolders folds"
        )
    left = None
    held_out = None
    if subfolders == "folds":
        chosen = dict(sorted(parts.items()))
    else:
        by_part = {_part(name): name for name in parts}
        chosen = {by_part[part]: parts[by_part[part]] for part in ("train", "val")}
        held_out = by_part["val"]
        left = parts[by_part["test"]] if "test" in by_part else None
    kinds = {content.kind for content in chosen.values()}
    if kinds == {"images"}:
        raise DataError(
            f"{root} holds images in {', '.join(chosen)}, without class folders and masks"
            f"{also_there(root)}"
        )
    if len(kinds) > 1:
        found = "; ".join(f"{name} holds {_called(content)}" for name, content in chosen.items())
        raise DataError(f"the folders of {root} are not alike: {found}")
    nested = [name for name, content in chosen.items() if content.parts]
    if nested:
        raise DataError(f"{root / nested[0]} holds parts in its turn; name the folder of one")
    [kind] = kinds
    class_names = {name for content in chosen.values() for name in content.classes}
    return DataFolder(
        root=root,
        kind=kind,
        images=root,
        masks=root if kind == "masks" else None,
        classes=tuple(sorted(class_names)),
        parts=chosen,
        held_out=held_out,
        left=left,
    )


def _called(content: DataFolder) -> str:
    if content.kind == "classes":
        return f"class folders {some_of(content.classes, 3)}"
    if content.kind == "masks":
        return "images and masks"
    return "images without class folders and masks"


# Classes
# ----------------------------------------------------------------------------------------------------


def _classes_of(top: _Folder, *, certain: bool) -> DataFolder:
    """The class folders of a folder.

    Args:
        top: the folder.
        certain: whether it was said that its folders are classes.
    """
    root = top.path
    names = sorted({folder.name for folder in top.folders.values()})
    if top.images:
        raise DataError(
            f"{root} holds images next to the class folders: "
            f"{some_of([file.name for file in top.images], 5)}; move each into one"
            f"{also_there(root)}"
        )
    if not certain:
        _check_classes(top, names)
    if len(names) < 2:
        inner = f"; or name {top.path / names[0]}" if top.with_images() else ""
        raise DataError(
            f"{root} has {counted(len(names), 'folder')} ({some_of(names, 3)}); expected two or "
            f"more, one per class{inner}{also_there(root)}"
        )
    return DataFolder(root, "classes", root, classes=tuple(names))


def _check_classes(top: _Folder, names: Sequence[str]) -> None:
    """Refuse folders that may be something else than classes.

    Raises:
        DataError: with both readings, and what to write for each.
    """
    root = top.path
    folders = top.with_images()
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    as_classes = "If they are classes: --subfolders classes"
    as_folds = "if they are folds, each held out in turn: --subfolders folds"
    as_parts = "parts that are called train and val (and test) are read as such"
    for folder in top.folders.values():
        if folder.name.lower() in _IMAGE_FOLDERS and len(names) > 1:
            raise _no_class(root, folder, list(top.folders.values()), listed, as_classes)
    if len(folders) < 2:
        return
    for alike in _alike(folders):
        masks = [folder for folder in alike if all(map(_has_one_band, _first_images(folder)))]
        pictures = [folder for folder in alike if folder not in masks]
        if masks and pictures:
            raise DataError(
                f"the folders of {root} are {listed}: {masks[0].name} has an image of one band for "
                f"each of {pictures[0].name}, like masks: --images {pictures[0].path} --labels "
                f"{masks[0].path}. {as_classes}"
            )
    if all(_PART_WORDS.intersection(_words(folder.name)) for folder in folders):
        raise DataError(
            f"the folders of {root} are {listed}: parts of a data set, or classes? {as_classes}; "
            f"{as_folds}; {as_parts}; or name one of them"
        )
    shared = _shared_subfolders(folders)
    if shared:
        raise DataError(
            f"the folders of {root} are {listed}, and several hold {some_of(shared, 3)}: parts with "
            f"the classes {some_of(shared, 3)}, or classes? {as_classes}; {as_folds}; {as_parts}; "
            "or name one of them"
        )
    for folder in folders:
        inside = sorted(own.name for own in folder.with_images())
        if _part(folder.name) and len(inside) > 1:
            raise DataError(
                f"the folders of {root} are {listed}, and {folder.name} holds {some_of(inside, 3)}: "
                f"a part with classes, or a class? {as_classes}; name the part: --images "
                f"{folder.path}"
            )


def _no_class(
    root: Path, images: _Folder, folders: Sequence[_Folder], listed: str, as_classes: str
) -> DataError:
    """The error for a folder called images next to others, with what the others hold."""
    beside = [folder for folder in folders if folder is not images]
    text = f"the folders of {root} are {listed}: {images.name} is no class. "
    boxes = [folder for folder in beside if _has_suffix(folder, ".txt")]
    if boxes:
        return DataError(
            f"{text}{boxes[0].name} holds .txt files, such as YOLO's boxes: convert them to COCO "
            "JSON, for --boxes (docs/how-to/boxes.md)"
        )
    with_images = [folder for folder in beside if folder.all_images()]
    if with_images:
        return DataError(
            f"{text}Name the folder of the images, --images {images.path}, and that of masks or of "
            f"numbers per pixel, --labels {with_images[0].path}. {as_classes}"
        )
    return DataError(
        f"{text}Name the folder of the images: --images {images.path}{also_there(root)}"
    )


def _has_suffix(folder: _Folder, suffix: str) -> bool:
    """Whether a folder, or one in it, holds a file with this suffix."""
    if any(file.suffix.lower() == suffix for file in folder.others):
        return True
    return any(_has_suffix(inside, suffix) for inside in folder.folders.values())


def _alike(folders: Sequence[_Folder]) -> list[list[_Folder]]:
    """The groups of folders whose images have the same names, up to suffixes."""
    groups: dict[frozenset[str], list[_Folder]] = {}
    for folder in folders:
        groups.setdefault(frozenset(_stems(folder)), []).append(folder)
    return [group for group in groups.values() if len(group) > 1]


def _shared_subfolders(folders: Sequence[_Folder]) -> list[str]:
    """The folders that lie in several folders of which all images are in such folders; one alone tells nothing."""
    inside = [{own.name for own in folder.with_images()} for folder in folders if not folder.images]
    everything = set().union(*inside)
    shared = {name for name in everything if sum(name in names for names in inside) > 1}
    return sorted(everything) if shared and len(everything) > 1 else []


def also_there(root: Path) -> str:
    """Return what else a folder holds that can be read, for the end of a message."""
    files = data_files(root)
    return f". It holds {some_of(files, 3)}" if files else ""
