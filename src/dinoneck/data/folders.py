"""Folders of data: one folder per class, ``images/`` with ``masks/``, and parts such as train and val.

The names of folders decide, by the few words below. Every other layout is named by options
(``--images``, ``--labels``, ``--subfolders``) or by a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dinoneck.data.cells import FOLD, IMAGES, LABELS, PathLike, composed
from dinoneck.data.names import check_any_pictures, check_encodable, check_folder, image_files
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["images", "classes", "masks"]
Subfolders = Literal["classes", "folds", "parts"]
"""How the folders of a data set are read: as classes; as folds, each held out in turn; as train, val and test."""
HELD_OUT = "held_out"
"""The entry of ``table.attrs`` that says which fold of a table is held out; None = each in turn."""
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val"}
PARTS |= {"validation": "val", "test": "test", "testing": "test"}
_MASK_ENDINGS = ("_mask", "_label", "_seg", "_gt")  # of the name of a mask beside its image's


@dataclass(frozen=True)
class Content:
    """The images of a folder, or of one part of it, and their labels.

    Attributes:
        kind: images alone, class folders, or images and masks.
        images: the folder of the images.
        masks: of images and masks: the folder of the masks.
        classes: of class folders: their names, sorted.
    """

    kind: Kind
    images: Path
    masks: Path | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFolder:
    """What a folder holds: images of one kind, or parts that do.

    Attributes:
        root: the folder.
        content: its images; None = it has parts.
        parts: name -> content of the parts that are read, in their order; all are of one kind.
        held_out: of the parts: the one that heads are scored on; None = each in turn.
        left_out: of the parts: the one that training leaves for ``evaluate``; None = there is none.
    """

    root: Path
    content: Content | None
    parts: Mapping[str, Content] = field(default_factory=dict)
    held_out: str | None = None
    left_out: str | None = None

    @property
    def contents(self) -> list[Content]:
        """What is read: the images, or those of the parts."""
        return list(self.parts.values()) if self.content is None else [self.content]

    @property
    def kind(self) -> Kind:
        """The kind of its images, which all parts share."""
        return self.contents[0].kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the class folders, of all parts, sorted."""
        return tuple(sorted({name for content in self.contents for name in content.classes}))


def part_of(name: str) -> str | None:
    """Return the part that a name means: train, val or test; None = it is another name."""
    return PARTS.get(name.strip().lower())


def part_names_among(names: set[str]) -> list[str]:
    """Return those of some names that are parts; none unless train and another one are among them."""
    found = [name for name in sorted(names) if part_of(name)]
    return found if len(found) > 1 and "train" in map(part_of, found) else []


# What a folder holds
# ----------------------------------------------------------------------------------------------------


def read_data_folder(path: PathLike, subfolders: Subfolders | None = None) -> DataFolder:
    """Tell what a folder of data holds.

    Args:
        path: the folder.
        subfolders: how the folders in it are read; None = by their names.

    Raises:
        DataError: if the folder does not exist, or is named as parts that do not fit.
    """
    root = Path(path)
    check_folder(root)
    folders = _folders_in(root)
    if subfolders == "classes":
        return DataFolder(root, Content("classes", root, classes=_class_names(folders)))
    images = _called(folders, IMAGE_FOLDERS)
    masks = _called(folders, MASK_FOLDERS)
    if images is not None and masks is not None:
        return read_images_and_masks(images, masks, subfolders, root=root)
    if subfolders is not None or part_names_among({folder.name for folder in folders}):
        contents = {folder.name: _content_of(folder) for folder in folders}
        return _of_parts(root, contents, subfolders or "parts")
    return DataFolder(root, _content_of(root))


def read_images_and_masks(
    images: PathLike, masks: PathLike, subfolders: Subfolders | None, *, root: Path | None = None
) -> DataFolder:
    """Tell what a folder of images and a folder of their masks hold.

    Args:
        images: the folder of the images.
        masks: the folder of the masks, another one.
        subfolders: how the folders in both are read: folds or parts; None = as parts if they are
            called so.
        root: the folder of both; None = that of the images.

    Raises:
        DataError: if a folder does not exist, or has no such parts.
    """
    images, masks = Path(images), Path(masks)
    root = root or images
    check_folder(images)
    check_folder(masks)
    if subfolders == "classes":
        raise DataError(f"--subfolders is classes, and {masks} holds masks; leave one of them out")
    names = [folder.name for folder in _folders_in(images)]
    if subfolders is None and not part_names_among(set(names)):
        return DataFolder(root, Content("masks", images, masks))
    contents = {name: Content("masks", images / name, masks / name) for name in names}
    return _of_parts(root, contents, subfolders or "parts")


def check_has_labels(content: Content) -> None:
    """Reject a folder of images alone, or without images."""
    if content.kind == "images":
        check_any_pictures(content.images, image_files(content.images))
        raise DataError(
            f"{content.images} holds images, without class folders and masks; expected two class "
            "folders, images/ and masks/, or a table (--csv)"
        )


def _folders_in(root: Path) -> list[Path]:
    """The folders in a folder, without hidden ones, sorted."""
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._")


def _called(folders: Sequence[Path], words: Sequence[str]) -> Path | None:
    return next((folder for folder in folders if folder.name.lower() in words), None)


def _class_names(folders: Sequence[Path]) -> tuple[str, ...]:
    return tuple(composed(folder.name) for folder in folders if image_files(folder))


def _content_of(root: Path) -> Content:
    """Images and masks, class folders, or images alone."""
    folders = _folders_in(root)
    images = _called(folders, IMAGE_FOLDERS)
    masks = _called(folders, MASK_FOLDERS)
    if masks is not None:
        return Content("masks", images or root, masks)
    if any(_image_name(path) is not None for path in image_files(root)):
        return Content("masks", root, root)
    names = _class_names(folders)
    if len(names) > 1 or (names and not any(path.parent == root for path in image_files(root))):
        return Content("classes", root, classes=names)
    return Content("images", root)


def _image_name(path: Path) -> str | None:
    """The name without suffix of the image that a file is called as the mask of; None = of no one."""
    for ending in _MASK_ENDINGS:
        if path.stem.lower().endswith(ending):
            return path.stem[: -len(ending)]
    return None


def _of_parts(root: Path, contents: Mapping[str, Content], subfolders: Subfolders) -> DataFolder:
    """The folds or the parts of a data set, all of one kind."""
    kinds = {content.kind for content in contents.values()}
    if len(contents) < 2 or len(kinds) > 1:
        raise DataError(
            f"{root} has the folders {some_of(contents, 5) or 'none'}; expected two {subfolders} or more "
            "of one kind: each with class folders, or each with images and masks"
        )
    if subfolders == "folds":
        return DataFolder(root, None, contents)
    name_of = {part_of(name): name for name in contents}
    if not {"train", "val"} <= name_of.keys():
        raise DataError(
            f"{root} has the parts {some_of(contents, 5)}; expected train and val, and perhaps test. "
            "Name the part to score on val, or read folds (--subfolders folds)"
        )
    parts = {name_of[part]: contents[name_of[part]] for part in ("train", "val")}
    return DataFolder(root, None, parts, name_of["val"], name_of.get("test"))


# Tables
# ----------------------------------------------------------------------------------------------------


def read_folders(images: PathLike, *, subfolders: Subfolders | None = None) -> pd.DataFrame:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Raises:
        DataError: if there are no class folders, or an image is in two of them.
    """
    folder = read_data_folder(images, subfolders)
    if folder.kind != "classes":
        raise DataError(f"{images} has no class folders; expected two folders of images or more")
    return table_of_folder(folder)


def read_masks(images: PathLike, masks: PathLike) -> pd.DataFrame:
    """Read images and their masks, which have the same paths in two folders but for the suffix.

    Raises:
        DataError: naming images without a mask, and masks without an image.
    """
    return table_of_folder(read_images_and_masks(images, masks, None))


def table_of_folder(folder: DataFolder) -> pd.DataFrame:
    """Return the table of a folder: ``images``, and ``class`` or ``labels``; of parts also ``fold``."""
    import pandas as pd

    frames = []
    contents = folder.parts if folder.content is None else {"": folder.content}
    for part, content in contents.items():
        check_has_labels(content)
        if content.kind == "classes":
            frame = _table_of_classes(content, folder.root)
        else:
            frame = _table_of_masks(content, folder.root if part else content.images)
        if part:
            frame[FOLD] = part
        frames.append(frame)
    table = pd.concat(frames)
    if folder.kind == "classes":
        table["class"] = pd.Categorical(table["class"], categories=list(folder.classes))
    if folder.parts:
        table.attrs[HELD_OUT] = folder.held_out
    _check_one_file_once(table)
    return table


def describe(folder: DataFolder, table: pd.DataFrame) -> str:
    """Return how the parts of a folder are used, in one line."""
    counts = table[FOLD].value_counts()
    shown = [f"{name} ({counted(int(counts[name]), 'image')})" for name in folder.parts]
    if folder.held_out is None:
        return f"{folder.root}: folds {', '.join(shown)}, each held out in turn"
    rest = f"; {folder.left_out} is left out, for evaluate" if folder.left_out else ""
    return f"{folder.root}: {', '.join(shown)}; {folder.held_out} is held out{rest}"


def _id_of(file: Path, root: Path) -> str:
    relative = file.relative_to(root)
    check_encodable(relative, file)
    return composed(relative.as_posix())


def _table_of_classes(content: Content, root: Path) -> pd.DataFrame:
    import pandas as pd

    rows = {}
    for file in image_files(content.images):
        parts = file.relative_to(content.images).parts
        if len(parts) < 2:
            raise DataError(
                f"{file} lies beside the class folders of {content.images}; move it into one of them, "
                "or elsewhere"
            )
        rows[_id_of(file, root)] = (file, composed(parts[0]))
    return pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, "class"])


def _table_of_masks(content: Content, root: Path) -> pd.DataFrame:
    import pandas as pd

    folder, masks = content.images, content.masks or content.images
    image_of = {}
    mask_of = {}
    for file in image_files(folder):
        name = _image_name(file) if masks == folder else None
        if name is not None:
            _add(mask_of, str(file.relative_to(folder).with_name(name)), file)
        elif masks == folder or not file.is_relative_to(masks):
            _add(image_of, str(file.relative_to(folder).with_suffix("")), file)
    if masks != folder:
        for file in image_files(masks):
            key = file.relative_to(masks).with_suffix("")
            name = str(key)
            if name not in image_of:  # 0_mask.png in a folder of masks
                name = str(key.with_name(_image_name(file) or key.name))
            _add(mask_of, name, file)
    for names, others, noun in ((image_of, mask_of, "mask"), (mask_of, image_of, "image")):
        missing = [str(file) for name, file in names.items() if name not in others]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(names)} files have no {noun} of the same name, such as "
                f"{some_of(missing, 3)}; expected one each in {folder} and {masks}"
            )
    rows = {_id_of(file, root): (file, mask_of[name]) for name, file in image_of.items()}
    return pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, LABELS])


def _add(files: dict[str, Path], name: str, file: Path) -> None:
    other = files.setdefault(name, file)
    if other != file:
        raise DataError(f"{other} and {file} have one name without suffix; keep one of them")


def _check_one_file_once(table: pd.DataFrame) -> None:
    """Refuse two names of one file that differ in class or part: links."""
    row_of: dict[Path, int] = {}
    columns = [name for name in ("class", FOLD) if name in table]
    for row, file in enumerate(table[IMAGES]):
        first = row_of.setdefault(file.resolve(), row)
        for column in columns:
            if table[column].iloc[first] != table[column].iloc[row]:
                raise DataError(
                    f"{table[IMAGES].iloc[first]} and {file} are one file, and differ in {column}; keep "
                    "one of them"
                )
