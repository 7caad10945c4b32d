"""Folders of data: one folder per class, ``images/`` with ``masks/``, and parts such as train and val.

The names of folders decide, by the few words below. Every other layout is named by options
(``--images``, ``--labels``, ``--subfolders``, ``--mask-suffix``) or by a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dinoneck.data.cells import FOLD, IMAGES, LABELS, PathLike, composed
from dinoneck.data.listing import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    MASK_SUFFIXES,
    SUFFIXES,
    check_any_pictures,
    check_folder,
    identity_of,
    list_files,
)
from dinoneck.data.names import check_encodable
from dinoneck.data.pairs import DEFAULT_PAIRING, Pairing, pair_files
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["images", "classes", "masks"]
Subfolders = Literal["classes", "folds", "parts"]
"""How the folders of a data set are read: as classes; as folds, each held out in turn; as train, val and test."""
HELD_OUT = "held_out"
"""The entry of ``table.attrs`` that says which fold of a table is held out; None = each in turn."""
LEFT_OUT = "left_out"
"""The entry of ``table.attrs`` that says what was left out, in words -> how many."""

# what folders are called, in any case
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_NUM_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Content:
    """The images of a folder, or of one part of it, and their labels.

    Attributes:
        kind: images alone, class folders, or images and masks.
        images: the folder of the images.
        masks: of images and masks: the folder of the masks.
    """

    kind: Kind
    images: Path
    masks: Path | None = None


@dataclass(frozen=True)
class DataFolder:
    """What a folder holds: images of one kind, or parts that do.

    Attributes:
        root: the folder.
        content: its images; None = it has parts.
        parts: name -> content of the parts that are read, in their order; all are of one kind.
        held_out: of the parts: the one that heads are scored on; None = each in turn.
        unread: name -> content of the folders that are not read, such as test.
    """

    root: Path
    content: Content | None
    parts: Mapping[str, Content] = field(default_factory=dict)
    held_out: str | None = None
    unread: Mapping[str, Content] = field(default_factory=dict)

    @property
    def test_part(self) -> str | None:
        """The name of the part that training leaves for ``evaluate``; None = there is none."""
        tests = [name for name in self.unread if part_of(name) == "test"]
        return tests[0] if self.held_out is not None and tests else None

    @property
    def contents(self) -> list[Content]:
        """What is read: the images, or those of the parts."""
        return list(self.parts.values()) if self.content is None else [self.content]

    @property
    def kind(self) -> Kind:
        """The kind of its images, which all parts share."""
        return self.contents[0].kind


def part_of(name: str) -> str | None:
    """Return the part that a name means: train, val or test; None = it is another name."""
    return PARTS.get(name.strip().lower())


def part_names_among(names: Collection[str]) -> list[str]:
    """Return those of some names that are parts; none unless train and another one are among them."""
    found = [name for name in sorted(names) if part_of(name)]
    return found if len(found) > 1 and "train" in map(part_of, found) else []


# What a folder holds
# ----------------------------------------------------------------------------------------------------


def read_data_folder(path: PathLike, subfolders: Subfolders | None = None) -> DataFolder:
    """Tell what a folder of data holds, by the names of the folders in it.

    ``images`` beside ``masks`` are images and masks, which may both hold parts. Folders that are all
    called train, val or test are parts, and hold classes, or images and masks. Others are classes.

    Args:
        path: the folder.
        subfolders: how the folders in it are read; None = by their names.

    Raises:
        DataError: if the folder does not exist, two folders have one meaning, or parts do not fit.
    """
    root = Path(path)
    check_folder(root)
    if subfolders == "classes":
        return DataFolder(root, Content("classes", root))
    folders, mask_folders = _folders_with_files(root)
    pair = _images_and_masks(folders, mask_folders)
    if pair is not None:
        found = read_images_and_masks(*pair, subfolders, root=root)
        others = {
            folder.name: Content("images", folder) for folder in folders if folder not in pair
        }
        return replace(found, unread={**found.unread, **others})
    if subfolders is not None or _are_parts(folders):
        contents = {folder.name: _content_of(folder) for folder in folders}
        return _of_parts(root, contents, subfolders or "parts")
    for folder in folders:
        inner_folders = [path for path in folder.iterdir() if path.is_dir()]
        if _images_and_masks(inner_folders, inner_folders) is not None:
            raise DataError(
                f"{folder} holds images and masks, and is read as one class; name them (--images, "
                "--labels) or the images of each class in a table (--csv), or read the folders of "
                f"{root} as folds of images and masks (--subfolders folds)"
            )
    return DataFolder(root, Content("classes" if folders else "images", root))


def read_images_and_masks(
    images: PathLike, masks: PathLike, subfolders: Subfolders | None, *, root: Path | None = None
) -> DataFolder:
    """Tell what a folder of images and a folder of their masks hold.

    Args:
        images: the folder of the images.
        masks: the folder of the masks; that of the images where names tell them apart.
        subfolders: how the folders in both are read: folds or parts; None = as parts if the folders
            of images are all called so.
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
    folders = [folder for folder in _folders_with_files(images)[0] if folder != masks]
    if subfolders is None and not _are_parts(folders):
        return DataFolder(root, Content("masks", images, masks))
    _, mask_folders = _folders_with_files(masks)
    contents = {}
    for folder in folders:
        masks_of_part = _folder_of_part(folder.name, mask_folders)
        kind: Kind = "images" if masks_of_part is None else "masks"
        contents[folder.name] = Content(kind, folder, masks_of_part)
    return _of_parts(root, contents, subfolders or "parts")


def check_has_labels(content: Content) -> None:
    """Reject a folder of images alone, or without images."""
    if content.kind == "images":
        check_any_pictures(content.images, list_files(content.images).files)
        raise DataError(
            f"{content.images} holds images, without class folders and masks; expected two class "
            "folders, images/ and masks/, or a table (--csv)"
        )


def _folders_with_files(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder that hold images, and those that hold masks, sorted."""
    with_images = set()
    with_masks = set()
    for file in list_files(root, MASK_SUFFIXES).files:
        parts = file.relative_to(root).parts
        if len(parts) > 1:
            with_masks.add(root / parts[0])
            if file.suffix.lower() in SUFFIXES:
                with_images.add(root / parts[0])
    return sorted(with_images), sorted(with_masks)


def _images_and_masks(
    folders: Sequence[Path], mask_folders: Sequence[Path]
) -> tuple[Path, Path] | None:
    """The folder of images and that of masks, if both are there."""
    images = [folder for folder in folders if folder.name.lower() in IMAGE_FOLDERS]
    masks = [folder for folder in mask_folders if folder.name.lower() in MASK_FOLDERS]
    if not images or not masks:
        return None
    for found in (images, masks):
        if len(found) > 1:
            raise DataError(
                f"{found[0]} and {found[1]} may both be the folder; name that of the images and that of "
                "the masks (--images, --labels)"
            )
    return images[0], masks[0]


def _folder_of_part(name: str, mask_folders: Sequence[Path]) -> Path | None:
    """The folder of masks of the same name, else of the same part; None = there is none."""
    same_name = [folder for folder in mask_folders if folder.name == name]
    part = part_of(name)
    same_part = [folder for folder in mask_folders if part and part_of(folder.name) == part]
    fitting = same_name or same_part
    return fitting[0] if fitting else None


def _are_parts(folders: Sequence[Path]) -> bool:
    """Whether folders are all called train, val or test, and there are two or more."""
    return len(folders) > 1 and all(part_of(folder.name) for folder in folders)


def _content_of(root: Path) -> Content:
    """Images and masks, class folders, or images alone."""
    folders, mask_folders = _folders_with_files(root)
    pair = _images_and_masks(folders, mask_folders)
    if pair is not None:
        images, masks = pair
        return Content("masks", images, masks)
    return Content("classes" if folders else "images", root)


def _of_parts(root: Path, contents: Mapping[str, Content], subfolders: Subfolders) -> DataFolder:
    """The folds or the parts of a data set, all of one kind."""
    if subfolders == "folds":
        _check_kinds(root, contents)
        return DataFolder(root, None, contents)
    name_of: dict[str, str] = {}
    for name in contents:
        part = part_of(name)
        if part is not None and name_of.setdefault(part, name) != name:
            raise DataError(
                f"{root}: {name_of[part]} and {name} are both the part {part}; merge them"
            )
    if not {"train", "val"} <= name_of.keys():
        raise DataError(
            f"{root} has the folders {some_of(contents, _NUM_SHOWN) or 'none'}; parts are train and "
            "val, and perhaps test. Name the folder to train on, or say that they are folds, held out "
            "in turn (--subfolders folds), or classes (--subfolders classes)"
        )
    parts = {name_of[part]: contents[name_of[part]] for part in ("train", "val")}
    _check_kinds(root, parts)
    unread = {name: content for name, content in contents.items() if name not in parts}
    return DataFolder(root, None, parts, name_of["val"], unread)


def _check_kinds(root: Path, parts: Mapping[str, Content]) -> None:
    """Reject parts that do not hold the same kind of labels, and a part alone."""
    kinds = {content.kind for content in parts.values()}
    if len(parts) < 2 or len(kinds) > 1:
        shown = [f"{name} ({content.kind})" for name, content in parts.items()]
        raise DataError(
            f"{root} has the folders {some_of(shown, _NUM_SHOWN) or 'none'}; expected two or more, each "
            "with class folders, or each with images and masks"
        )


# Tables
# ----------------------------------------------------------------------------------------------------


def read_folders(images: PathLike, *, subfolders: Subfolders | None = None) -> pd.DataFrame:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Folders ``train`` and ``val`` with class folders in them are parts: the column ``fold`` has the
    name of each image's part, and ``test`` is left out.

    Args:
        images: the folder.
        subfolders: ``"classes"``: the folders in it are classes, whatever they are called;
            ``"folds"``: they are folds of class folders, each held out in turn; ``"parts"``: train,
            val and test; None = by their names.

    Returns:
        A table with the target ``class``: the names of the folders, composed (NFC) and sorted. The
        ids are the paths relative to ``images``, with ``/``.

    Raises:
        DataError: if there are fewer than two class folders, images lie beside them, or an image is
            in two of them.
    """
    folder = read_data_folder(images, subfolders)
    if folder.kind != "classes":
        raise DataError(f"{images} has no class folders; expected two folders of images or more")
    return table_of_folder(folder)


def read_masks(
    images: PathLike,
    masks: PathLike,
    *,
    mask_suffix: str | None = None,
    skip_unpaired: bool = False,
) -> pd.DataFrame:
    """Read a folder of images and a folder of masks: ``a/1.jpg`` belongs to ``a/1.png``.

    All masks, or all images, may have one ending or beginning more: ``1_mask.png``. Folders
    ``train`` and ``val`` in both are parts: the column ``fold`` has the name of each image's part,
    and ``test`` is left out.

    Args:
        images: the folder of the images.
        masks: the folder of the masks; with ``mask_suffix`` it may be that of the images.
        mask_suffix: what the names of masks have more than those of their images, such as
            ``_labelIds``, where there are several files for each image.
        skip_unpaired: leave out images without a mask, and masks without an image.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to
        ``images``.

    Raises:
        DataError: naming images without a mask, and masks without an image.
    """
    folder = read_images_and_masks(images, masks, None)
    return table_of_folder(folder, Pairing(mask_suffix, skip_unpaired))


def table_of_folder(folder: DataFolder, pairing: Pairing = DEFAULT_PAIRING) -> pd.DataFrame:
    """Return the table of a folder: ``images``, and ``class`` or ``labels``; of parts also ``fold``.

    ``table.attrs["left_out"]`` counts what was left out, and of parts ``table.attrs["held_out"]`` is
    the fold that is held out; None = each in turn.

    Args:
        folder: what it holds.
        pairing: how masks are chosen.

    Raises:
        DataError: as :func:`read_folders` and :func:`read_masks`.
    """
    import pandas as pd

    frames = []
    left_out = Counter[str]()
    contents = folder.parts if folder.content is None else {"": folder.content}
    for part, content in contents.items():
        check_has_labels(content)
        if content.kind == "classes":
            frame = _table_of_classes(content, folder.root, left_out)
        else:
            frame = _table_of_masks(
                content, folder.root if part else content.images, pairing, left_out
            )
        if part:
            frame[FOLD] = part
        frames.append(frame)
    table = pd.concat(frames)
    if folder.kind == "classes":
        names = sorted(set(table["class"]))
        if len(names) < 2:
            raise DataError(
                f"{folder.root} has the class folders {some_of(names, 1) or 'none'}; expected two or "
                "more. If the classes are folders in it, name it"
            )
        table["class"] = pd.Categorical(table["class"], categories=names)
    _check_one_file_once(table)
    for name, content in folder.unread.items():
        words = f"images of the part {name}" if part_of(name) else f"images in {name}/"
        left_out[words] += len(list_files(content.images, without=_inner_masks(content)).files)
    if folder.parts:
        table.attrs[HELD_OUT] = folder.held_out
    table.attrs[LEFT_OUT] = dict(left_out)
    return table


def describe(folder: DataFolder, table: pd.DataFrame) -> str:
    """Return how a folder is read, in one line: its layout, and what its parts are for."""
    if folder.content is not None:
        return f"{folder.root}: {_layout(folder.root, folder.content)}"
    counts = table[FOLD].value_counts()
    parts = [f"{name} ({counted(int(counts.get(name, 0)), 'image')})" for name in folder.parts]
    shown = f"{folder.root}: {_layout(folder.root, folder.contents[0])}; "
    if folder.held_out is None:
        return f"{shown}folds {', '.join(parts)}, each held out in turn"
    shown += f"{', '.join(parts)}; {folder.held_out} is held out"
    if folder.test_part is not None:
        shown += f"; {folder.test_part} is left for evaluate"
    return shown


def _layout(root: Path, content: Content) -> str:
    """Where images and masks lie, in words."""
    if content.masks is None:
        return "class folders"
    if content.masks == content.images:
        return "images with masks beside them"
    if content.images.is_relative_to(root) and content.masks.is_relative_to(root):
        return f"images in {content.images.relative_to(root)}/, masks in {content.masks.relative_to(root)}/"
    return f"images with masks in {content.masks}"


def _inner_masks(content: Content) -> Path | None:
    """The folder of masks that lies in that of the images; None = it lies elsewhere."""
    if content.masks is not None and content.images in content.masks.parents:
        return content.masks
    return None


def _id_of(file: Path, root: Path) -> str:
    relative = file.relative_to(root)
    check_encodable(relative, file)
    return composed(relative.as_posix())


def _table_of_classes(content: Content, root: Path, left_out: Counter[str]) -> pd.DataFrame:
    import pandas as pd

    listing = list_files(content.images)
    left_out.update(listing.left_out)
    rows: dict[str, tuple[Path, str]] = {}
    for file in listing.files:
        folders = file.relative_to(content.images).parts[:-1]
        if not folders:
            raise DataError(
                f"{file} lies beside the class folders of {content.images}; move it into one of them, "
                "or elsewhere"
            )
        image_id = _id_of(file, root)
        if image_id in rows:
            raise DataError(
                f"{rows[image_id][0]} and {file} have one name, in two Unicode forms; rename one of them"
            )
        rows[image_id] = (file, composed(folders[0]))
    return pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, "class"])


def _table_of_masks(
    content: Content, root: Path, pairing: Pairing, left_out: Counter[str]
) -> pd.DataFrame:
    import pandas as pd

    pairs = pair_files(content.images, content.masks or content.images, pairing)
    left_out.update(pairs.left_out)
    rows = {}
    for image, mask in pairs.mask_of.items():
        rows[_id_of(image, root)] = (image, mask)
    return pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, LABELS])


def _check_one_file_once(table: pd.DataFrame) -> None:
    """Reject two names of one file that differ in class or part: links."""
    columns = [name for name in ("class", FOLD) if name in table]
    values = list(table[columns].itertuples(index=False, name=None))
    row_of: dict[Hashable, int] = {}
    for row, file in enumerate(table[IMAGES]):
        first = row_of.setdefault(identity_of(file), row)
        if values[first] == values[row]:
            continue
        for column, value, other in zip(columns, values[first], values[row], strict=True):
            if value != other:
                raise DataError(
                    f"{table[IMAGES].iloc[first]} and {file} are one file, and their {column} is "
                    f"{value!r} and {other!r}; keep one of them"
                )
