"""Tables of images as pandas DataFrames, from class folders, or folders of images and masks.

The columns are those of :mod:`dinoneck.data.tables`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from dinoneck.data.cells import FOLD, IMAGES, LABELS, PathLike
from dinoneck.data.class_counts import warn_of_missing_classes
from dinoneck.data.copies import find_copies, warn_of_changed_copies, warn_of_copies
from dinoneck.data.folder_texts import data_files, listed
from dinoneck.data.ground import warn_of_overlaps
from dinoneck.data.image_tree import (
    ImageFolder,
    image_folder,
    outputs_beside,
    pictures_of,
    warn_of_masks,
)
from dinoneck.data.layout import (
    HELD_OUT,
    Content,
    DataFolder,
    Subfolders,
    UnreadPart,
    check_folder,
    check_has_labels,
    masks_in,
    read_data_folder,
)
from dinoneck.data.mask_pixels import LABEL_SUFFIXES
from dinoneck.data.masks_beside import Companion
from dinoneck.data.name_pairs import SEPARATOR, endings, shared_affixes, without_ending
from dinoneck.data.names import check_encodable, composed
from dinoneck.data.paired_paths import are_other_parts, check_paths
from dinoneck.data.walk import SUFFIXES, Listing, path_order, walk, warn_of_left_out
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import counted, some_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

logger = logging.getLogger(__name__)

_LABEL_STUDIO = re.compile(r"(^|/)[0-9a-f]{8}-")
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")  # not those of 1.05
_MOVE_APART = "Move the images of one ground into one part"


def read_folders(images: PathLike, *, subfolders: Subfolders | None = None) -> pd.DataFrame:
    """Read images that lie in one folder per class, such as ``images/wheat/1.jpg``.

    Folders ``train`` and ``val`` (or ``valid``, and ``test``) with class folders in them are parts:
    the column ``fold`` has the name of each image's part, and ``test`` is left out. Links to
    folders are followed.

    Args:
        images: the folder.
        subfolders: ``"classes"``: the folders in it are classes, whatever they are called;
            ``"folds"``: they are folds of class folders, each held out in turn; ``"parts"``: train,
            val and test; None = by their names.

    Returns:
        A table with the target ``class``; its class names are those of the folders, stripped,
        composed (NFC) and sorted. The ids are the paths relative to ``images``, with ``/``.

    Raises:
        DataError: if images lie next to the class folders, there are fewer than two, one holds no
            images, or the folders may be something else than classes.
    """
    data = read_data_folder(images, subfolders)
    if data.kind == "masks":
        raise DataError(f"{data.root} holds images and masks, no class folders; use read_masks()")
    return table_of_folder(data)


def read_masks(images: PathLike, labels: PathLike) -> pd.DataFrame:
    """Read a folder of images and a folder of masks; ``a/1.jpg`` belongs to ``a/1.png``.

    Masks, and images, may all have one ending more, as in ``1_mask.png``.

    Returns:
        A table without targets, the masks as ``labels``. The ids are the images' paths relative to
        ``images``.

    Raises:
        DataError: if a folder does not exist or holds no images, an image has no mask, a mask has
            no image, or two files differ in their suffix alone.
    """
    image_root = _folder(images)
    label_root = _folder(labels)
    if image_root.samefile(label_root):
        raise DataError(
            f"images and masks are both in {image_root}; put the masks into a folder of their own"
        )
    beside = masks_in(image_root, label_root)
    table = _mask_table(image_root, image_root if beside is None else beside, label_root)
    _check_copies(table)
    warn_of_changed_copies(table[IMAGES])
    return table


def table_of_folder(data: DataFolder) -> pd.DataFrame:
    """Return the table of what a folder holds; of parts with their names as folds.

    ``table.attrs["held_out"]`` is then the fold that is held out; None = each in turn.

    Raises:
        DataError: as :func:`read_folders` and :func:`read_masks`.
    """
    if data.kind == "classes":
        _warn_of_unread(data.root)
        _warn_of_spellings(data.classes)
    if data.content is not None:
        table = _content_table(data.root, data.content)
        _check_copies(table)
        warn_of_changed_copies(table[IMAGES])
        return table
    tables = []
    for name, content in data.parts.items():
        table_of_part = _content_table(data.root, content)
        table_of_part[FOLD] = name
        tables.append(table_of_part)
    table = pd.concat(tables)
    _check_copies(table, data.unread_part)
    warn_of_overlaps(table[IMAGES], _values_of_files(table, FOLD), _MOVE_APART)
    if data.kind == "classes":
        table = _with_classes(table, data.classes)
        _warn_of_missing_classes(data)
    table.attrs[HELD_OUT] = data.held_out
    return table


def describe(data: DataFolder, table: pd.DataFrame) -> str:
    """Return what was taken of a folder of parts, in one line."""
    counts = table[FOLD].value_counts(sort=False)
    if data.held_out is None:
        folds = [f"{name} ({counted(count, 'image')})" for name, count in counts.items()]
        return f"{data.root}: the folders {', '.join(folds)} are folds; each is held out in turn"
    train = next(name for name in data.parts if name != data.held_out)
    text = (
        f"{data.root}: {train} ({counted(counts[train], 'image')}) is trained on, {data.held_out} "
        f"({counted(counts[data.held_out], 'image')}) is held out"
    )
    if data.unread_part is None:
        return text
    content = data.unread_part.content
    if content.problem:
        return f"{text}; {content.images} is not read, and its labels cannot be: {content.problem}"
    if content.kind == "images":
        return f"{text}; {content.images} has no labels and is not read"
    truth = content.images if content.masks is None else content.masks
    return f"{text}; left for: dinoneck evaluate {content.images} --heads RUN --truth {truth}"


def _content_table(root: Path, content: Content) -> pd.DataFrame:
    """The table of class folders, or of images and masks; ids are relative to ``root``."""
    if content.masks is not None:
        return _mask_table(root, content.images, content.masks)
    check_has_labels(content)
    return _class_table(root, content)


def _class_table(root: Path, content: Content) -> pd.DataFrame:
    """The images of class folders; masks beside images in one are left out."""
    listing = walk(content.images)
    warn_of_left_out([listing])
    class_of: dict[Path, str] = {}
    pictures = []
    class_folders = list(image_folder(listing).folders.values())
    _warn_of_blanks(class_folders)
    for folder in class_folders:
        in_folder = pictures_of(folder)
        pictures.append(in_folder)
        class_of |= dict.fromkeys(in_folder.images, folder.name)
    warn_of_masks(pictures)
    rows = {}
    for file in sorted(class_of, key=path_order):
        rows[_id_of(file, root)] = (file, class_of[file])
    table = pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, "class"])
    empty = set(content.classes).difference(table["class"])
    if empty:
        raise DataError(
            f"{content.images}: no images of the class {some_of(empty, 5)}; add some or remove the "
            "folder"
        )
    return _with_classes(table, content.classes)


def _id_of(file: Path, root: Path) -> str:
    """The path below the root with ``/``; a DataError if it is not UTF-8."""
    below_root = file.relative_to(root)
    check_encodable(below_root, file)
    return below_root.as_posix()


def _warn_of_unread(root: Path) -> None:
    """Name the tables and COCO files that lie beside class folders or in them."""
    files = data_files(root)
    if files:
        logger.warning("%s: class folders; not read: %s", root, some_of(files, 3))


def _with_classes(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table with these classes, as numbers in this order."""
    texts = table["class"].astype(object)
    return table.assign(**{"class": texts.astype(pd.CategoricalDtype(names))})


def _warn_of_blanks(folders: Sequence[ImageFolder]) -> None:
    """Name folders that are one class, since their names differ in blanks or Unicode forms alone."""
    first: dict[str, ImageFolder] = {}
    for folder in folders:
        other = first.setdefault(folder.name, folder)
        if other is not folder:
            line = "the folders '%s' and '%s' are one class, '%s': their names differ in blanks or Unicode forms alone"
            logger.warning(line, other.path, folder.path, folder.name)


def _check_copies(table: pd.DataFrame, unread_part: UnreadPart | None = None) -> None:
    """Raise for one file under two names in two parts or two classes; name other pictures that are there twice.

    Pictures of the unread part are compared with those that are read. They are named alone, also
    if they are one file: nothing is scored on them now, and two of its own do no harm.

    Args:
        table: of all parts that are read.
        unread_part: the part that is not read.

    Raises:
        DataError: naming both files.
    """
    files = list(table[IMAGES])
    is_read = set(files)
    unread_files = [] if unread_part is None else _images_of(unread_part.content)
    # the files that are read come first, so they are the first ones of their copies
    copies = [copy for copy in find_copies(files + unread_files) if copy.first in is_read]
    class_of = _values_of_files(table, "class")
    part_of = _values_of_files(table, FOLD)
    for copy in copies:
        if not copy.is_one_file:
            continue
        if copy.differs_in(part_of):
            raise DataError(
                f"{copy.first} and {copy.second} are one file in two parts, so that a head is scored "
                "on what it was trained on; keep one of them"
            )
        if copy.differs_in(class_of):
            raise DataError(
                f"{copy.first} and {copy.second} are one file in two classes; keep one of them"
            )
    if unread_part is not None:
        part_of |= dict.fromkeys(unread_files, unread_part.name)
    warn_of_copies(copies, part_of, {"the class": class_of})


def _values_of_files(table: pd.DataFrame, column: str) -> dict[Path, object]:
    """File -> its value in a column, which the table may lack."""
    if column not in table:
        return {}
    return dict(zip(table[IMAGES], table[column], strict=True))


def _images_of(content: Content) -> list[Path]:
    return pictures_of(image_folder(walk(content.images))).images


def _warn_of_spellings(class_names: Sequence[str]) -> None:
    """Name classes whose names differ in case, in separators or in leading zeros alone."""
    first: dict[str, str] = {}
    for name in class_names:
        spelling = re.sub(r"[_\-. ]+", " ", name.casefold())
        spelling = re.sub(r"\b0+(?=\d)", "", spelling)
        other = first.setdefault(spelling, name)
        if other == name:
            continue
        if other.casefold() == name.casefold():
            difference = "upper and lower case"
        else:
            difference = "separators or leading zeros"
        line = "the classes '%s' and '%s' differ in %s alone; are they one class?"
        logger.warning(line, other, name, difference)


def _warn_of_missing_classes(data: DataFolder) -> None:
    """Name the classes that a part lacks."""
    for name, content in data.parts.items():
        missing = [class_name for class_name in data.classes if class_name not in content.classes]
        if data.held_out is None:
            remedy = "That fold scores nothing of it"
        elif name == data.held_out:
            remedy = "It gets no score"
        else:
            remedy = "No head can learn it: move some images there"
        warn_of_missing_classes(missing, "image", str(data.root / name), remedy)


# Images and masks
# ----------------------------------------------------------------------------------------------------


def _mask_table(root: Path, images: Path, masks: Path) -> pd.DataFrame:
    check_paths(images, masks)
    if images == masks:
        image_of, mask_of = _side_by_side(images)
    else:
        image_of = _by_stem(images, masks)
        mask_of = _by_stem(masks, images, other_formats=LABEL_SUFFIXES)
    if image_of.keys() != mask_of.keys():
        image_of, mask_of = _pair_by_other_names(image_of, mask_of, images, masks)
    rows = {}
    for stem, file in image_of.items():
        rows[_id_of(file, root)] = (file, mask_of[stem])
    return pd.DataFrame.from_dict(rows, "index", columns=[IMAGES, LABELS])


def _side_by_side(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The images and the masks of one folder by their names without suffix."""
    listing = walk(folder)
    warn_of_left_out([listing])
    pictures = pictures_of(image_folder(listing))
    masks = pictures.masks
    if not masks:
        # some of the possible masks must be masks: otherwise the folder would be read as images alone
        possible_masks = [*pictures.named_like_masks, *pictures.looking_like_masks]
        masks = [companion.path for companion in possible_masks]
    is_mask = set(masks)
    images = [file for file in pictures.images if file not in is_mask]
    return _stems_of(folder, images), _stems_of(folder, masks)


def _stems_of(root: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Files by their relative path without suffix, composed (NFC)."""
    file_of: dict[str, Path] = {}
    for file in files:
        stem = composed(file.relative_to(root).with_suffix("").as_posix())
        other = file_of.setdefault(stem, file)
        if other is not file:
            difference = "suffix" if other.suffix != file.suffix else "Unicode form (NFC, NFD)"
            raise DataError(
                f"{other} and {file} differ in their {difference} alone; keep one of them, since "
                "images and masks are paired by their names without it"
            )
    return file_of


def _by_stem(root: Path, other: Path, other_formats: Sequence[str] = ()) -> dict[str, Path]:
    """The images of a folder by their relative path without suffix.

    Masks may lie in a folder in that of the images, and images in one in that of the masks: what is
    below the other folder is left out.

    Args:
        root: the folder.
        other: that of the masks, or of the images.
        other_formats: suffixes that are read if there are no images.
    """
    listing = walk(root)
    is_inside = other in root.parents  # then all files are below the other folder
    if not is_inside:
        listing.files = [file for file in listing.files if other not in file.parents]
    files = listing.images
    if not files:
        files = [file for file in listing.files if file.suffix.lower() in other_formats]
        taken = set(files)
        listing.files = [file for file in listing.files if file not in taken]
    warn_of_left_out([listing])
    if not files:
        formats = ", ".join([*SUFFIXES, *other_formats])
        raise DataError(f"the folder {root} holds no images ({formats}){_kinds_held(listing)}")
    return _stems_of(root, files)


def _kinds_held(listing: Listing) -> str:
    """The kinds of files that a folder without images holds, for the end of a message."""
    kinds = sorted({file.suffix.lower() for file in listing.files if file.suffix})
    return f"; it holds {some_of(kinds, 5)}" if kinds else ""


def _pair_by_other_names(
    image_of: dict[str, Path], mask_of: dict[str, Path], images: Path, masks: Path
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and masks by names that agree once something is left out of all of them, which a warning states.

    It is tried in this order:

    1. an ending of all images, an ending of all masks, or both: ``0_sat`` and ``0_mask``;
    2. a word that all images begin with, or all masks, or both: ``img_0`` and ``mask_0``;
    3. the case of letters: ``IMG_0`` and ``img_0``;
    4. what programs write into names, see ``_FORMS``: ``1f2e3d4c-img`` and ``img``, ``001`` and ``1``.

    Args:
        image_of: name -> image.
        mask_of: name -> mask.
        images: the folder of the images.
        masks: the folder of the masks.

    Raises:
        DataError: if the names still differ.
    """
    affixes = shared_affixes(image_of, mask_of)
    if affixes is not None:
        short_images = {affixes.of_image(name): file for name, file in image_of.items()}
        short_masks = {affixes.of_mask(name): file for name, file in mask_of.items()}
        changes = []
        if affixes.image_affix:
            changes.append(f"images without '{affixes.image_affix}'")
        if affixes.mask_affix:
            changes.append(f"masks without '{affixes.mask_affix}'")
        _state_pairs(images, masks, ", ".join(changes), len(short_images))
        return short_images, short_masks
    for words, form in _FORMS:
        formed_images = {form(name): file for name, file in image_of.items()}
        formed_masks = {form(name): file for name, file in mask_of.items()}
        is_one_to_one = len(formed_images) == len(image_of) and len(formed_masks) == len(mask_of)
        if is_one_to_one and formed_images.keys() == formed_masks.keys():
            _state_pairs(images, masks, words, len(formed_images))
            return formed_images, formed_masks
    raise _other_names(image_of, mask_of, images, masks)


def _without_label_studio(name: str) -> str:
    return _LABEL_STUDIO.sub(r"\1", name)


def _without_zeros(name: str) -> str:
    return _ZEROS.sub("", name)


# what messages say of a form of all names, and the function from a name to it; the first that gives
# pairs is taken
_FORMS: Sequence[tuple[str, Callable[[str], str]]] = (
    ("names in another case", str.casefold),
    ("names without the 8 letters of Label Studio in front", _without_label_studio),
    ("names with '%20' and the like decoded", unquote),
    ("numbers without zeros in front", _without_zeros),
)


def _state_pairs(images: Path, masks: Path, change: str, number: int) -> None:
    """Say how images and masks were paired, in one line."""
    logger.warning("%s and %s: %s: %s", images, masks, change, counted(number, "pair"))


def _other_names(
    image_of: Mapping[str, Path], mask_of: Mapping[str, Path], images: Path, masks: Path
) -> DataError:
    """The error for names of images and masks that differ, with what the masks seem to be."""
    kinds = _kinds_of_masks(image_of, mask_of)
    if kinds:
        return DataError(
            f"{masks} holds several masks of an image of {images}, that end in {some_of(kinds, 5)}. "
            f"Move one kind into a folder of its own, such as all that end in {kinds[-1]}, and name "
            "it: --labels FOLDER; or name the files in a table (--csv, --labels COLUMN)"
        )
    made = _made_of_others(image_of.values())
    if made:
        return DataError(
            f"{images} holds {counted(len(made), 'file')} called like what programs make of another "
            f"one, such as {made[0].path.name} beside {made[0].image.name}: move such files into a "
            "folder elsewhere, so that the images and their masks are left"
        )
    without_mask = sorted(image_of.keys() - mask_of.keys())
    without_image = sorted(mask_of.keys() - image_of.keys())
    texts = []
    if without_mask:
        number = counted(len(without_mask), "image")
        texts.append(f"{masks} has no mask for {number} of {images}: {some_of(without_mask, 5)}")
    if without_image:
        number = counted(len(without_image), "mask")
        texts.append(f"{images} has no image for {number} of {masks}: {some_of(without_image, 5)}")
    text = "; ".join(texts)
    folders_of_masks = {name.partition("/")[0] for name in mask_of if "/" in name}
    if folders_of_masks == image_of.keys():
        return DataError(
            f"{text}. {masks} has a folder of masks for each image: merge the masks of each into one "
            "file, called like the image"
        )
    inside = _folders_with_all_masks(image_of, mask_of)
    # val of images is not in train of masks, though equal numbering has a mask for each image
    right = [name for name in inside if not are_other_parts(name, images.name)]
    if images.name in right:
        right = [images.name]
    if len(right) == 1 and without_mask:
        return DataError(
            f"{text}. {masks / right[0]} has a mask for each image: name that folder, --labels "
            f"{masks / right[0]}"
        )
    if right and without_mask:
        return DataError(
            f"{text}. The folders {listed(right)} in {masks} have a mask for each image: name the "
            "one of these images (--labels), such as --labels "
            f"{masks / right[0]}"
        )
    if inside and not without_mask:
        return DataError(
            f"{text}. {masks / inside[0]} has a second mask for each image: move one of both into a "
            "folder elsewhere"
        )
    return DataError(
        f"{text}. An image and its mask have the same path without suffix; a table pairs other "
        "names, and images without a mask (--csv, --labels COLUMN)"
    )


def _made_of_others(images: Iterable[Path]) -> list[Companion]:
    """The files among images that are called like what programs make of another one in their folder."""
    by_folder: dict[Path, list[Path]] = {}
    for file in images:
        by_folder.setdefault(file.parent, []).append(file)
    made = []
    for files in by_folder.values():
        made += outputs_beside(files, set())
    return made


def _kinds_of_masks(image_names: Collection[str], mask_names: Collection[str]) -> list[str]:
    """The endings of masks, if all are called after an image with an ending, and images have several.

    So of ``0_leftImg8bit`` and ``0_gtFine_color``, ``0_gtFine_labelIds``.
    """
    for image_ending in endings(image_names):
        short_names = {without_ending(name, image_ending) for name in image_names}
        mask_endings = [_ending_after(name, short_names) for name in mask_names]
        kinds = sorted({ending for ending in mask_endings if ending is not None})
        if None not in mask_endings and len(kinds) > 1 and len(mask_names) > len(image_names):
            return kinds
    return []


def _ending_after(name: str, short_names: Collection[str]) -> str | None:
    """What follows one of some names in a name, from a separator on: the shortest; None if there is no such one."""
    for match in reversed(list(re.finditer(SEPARATOR, name))):
        if name[: match.start()] in short_names:
            return name[match.start() :]
    return None


def _folders_with_all_masks(image_names: Collection[str], mask_names: Iterable[str]) -> list[str]:
    """The folders of masks that have one for each image, by their names below the folder: ``trimaps``."""
    names_in: dict[str, set[str]] = {}
    for name in mask_names:
        folder, _, rest = name.partition("/")
        if rest:
            names_in.setdefault(folder, set()).add(rest)
    expected = set(image_names)
    return sorted(folder for folder, names in names_in.items() if expected <= names)


def _folder(path: PathLike) -> Path:
    check_folder(Path(path))
    return Path(path)
