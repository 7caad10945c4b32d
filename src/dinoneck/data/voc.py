"""VOC: a folder ``Annotations`` of XML files, one per image, as the entries of COCO JSON.

Corners count pixels from 1, and the last pixel is inside: a box begins at ``xmin - 1`` and ends at
``xmax``. ``difficult`` objects are crowd regions, which are neither trained on nor scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from dinoneck.atomic import read_regular
from dinoneck.data.cells import PathLike, check_unique, composed, number_of
from dinoneck.data.coco import Listed
from dinoneck.data.coco_entries import ClassName, Coco, CocoBox, CocoCategory, CocoImage
from dinoneck.data.listing import images_below
from dinoneck.errors import DataError
from dinoneck.text import reason_of, some_of

PARTS = ("train", "val")
_IMAGE_FOLDERS = ("JPEGImages", "images")  # beside the folder of the XML files
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MOST_BYTES = 16 << 20  # of an XML file: more than 50,000 objects


def parts_of(folder: Path) -> tuple[str, ...]:
    """Return train and val where ``ImageSets/Main`` beside the folder lists both, else nothing."""
    lists = [_list_of(folder, part) for part in PARTS]
    return PARTS if all(file.is_file() for file in lists) else ()


def _list_of(folder: Path, part: str) -> Path:
    return folder.absolute().parent / "ImageSets" / "Main" / f"{part}.txt"


def read_voc(folder: Path, images: PathLike | None, part: str | None) -> Listed[CocoBox]:
    """Read the images of a part with their boxes; classes are sorted by name.

    The image of an XML file is the one of its name without the suffix.

    Args:
        folder: of the XML files.
        images: that of the images; None = ``JPEGImages`` or ``images`` beside the folder, else the
            folder itself.
        part: ``train`` or ``val``; None = all XML files.

    Raises:
        DataError: if a file cannot be used, an XML file has no image, or a list names one that is
            not there; it names the file and the object.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")
    if not files:
        raise DataError(f"{folder} holds no .xml files; expected the folder Annotations of VOC")
    image_folder = _image_folder(folder, images)
    images_of = _images_by_stem(image_folder)
    num_others = len(images_of.keys() - {composed(file.stem) for file in files})
    if part is not None:
        files = _listed_files(files, _list_of(folder, part))
    paths = _find_images(files, images_of, image_folder)
    listed_images = []
    objects: list[tuple[Element, str, str]] = []
    for file in files:
        root = _parse(file)
        width, height = (_side(root, f"size/{name}", file) for name in ("width", "height"))
        listed_images.append(CocoImage(file.stem, file.stem, width=width, height=height))
        for number, element in enumerate(root.findall("object"), start=1):
            objects.append((element, file.stem, f"{file}: object {number}"))
    names = [_name_of(element, where) for element, _, where in objects]
    label_of = {name: label for label, name in enumerate(sorted(set(names)))}
    if not label_of:
        raise DataError(f"{folder}: none of {len(files)} XML files has an object")
    boxes = []
    for name, (element, stem, where) in zip(names, objects, strict=True):
        is_crowd = (element.findtext("difficult") or "0").strip() == "1"
        box = CocoBox(stem, label_of[name], _read_bbox(element, where), iscrowd=is_crowd)
        boxes.append(box)
    categories = [CocoCategory(label, ClassName(name)) for name, label in label_of.items()]
    left_out = {"images without an XML file": num_others} if num_others else {}
    places = [where for _, _, where in objects]
    return Listed(folder, Coco(listed_images, boxes, categories), paths, places, left_out, part)


def _listed_files(files: Sequence[Path], part_list: Path) -> list[Path]:
    """The XML files of a list, a name per line."""
    try:
        lines = read_regular(part_list).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{part_list} cannot be read: {reason_of(error)}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    check_unique(names, f"{part_list}: the name", "list it once")
    file_of = {composed(file.stem): file for file in files}
    missing = [name for name in names if composed(name) not in file_of]
    if missing or not names:
        raise DataError(
            f"{part_list} lists {some_of(missing, 3) or 'nothing'}; expected names of XML files in "
            f"{files[0].parent}"
        )
    return [file_of[composed(name)] for name in names]


def _image_folder(folder: Path, images: PathLike | None) -> Path:
    if images is not None:
        return Path(images)
    beside = [folder.absolute().parent / name for name in _IMAGE_FOLDERS]
    return next((path for path in beside if path.is_dir()), folder)


def _images_by_stem(folder: Path) -> dict[str, list[Path]]:
    """Name without the suffix -> images below a folder."""
    images_of: dict[str, list[Path]] = {}
    for image in images_below(folder):
        images_of.setdefault(composed(image.stem), []).append(image)
    return images_of


def _find_images(
    files: Sequence[Path], images_of: Mapping[str, Sequence[Path]], folder: Path
) -> list[Path]:
    """The image of each XML file."""
    paths: list[Path] = []
    missing = []
    for file in files:
        images = images_of.get(composed(file.stem), ())
        if len(images) > 1:
            raise DataError(f"{file} may be of {images[0]} or {images[1]}; rename one of them")
        paths += images
        if not images:
            missing.append(file.name)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} XML files have no image of their name in {folder}: "
            f"{some_of(missing, 5)}; pass the folder of the images"
        )
    return paths


def _parse(file: Path) -> Element:
    """The root of an XML file, which may not declare entities: these could expand to any size."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise DataError(
                f"{file} has more than {_MOST_BYTES >> 20} MiB; expected one image's boxes"
            )
        # as text: expat then ignores an encoding that the file declares, and reads what is checked
        text = read_regular(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {reason_of(error)}; expected UTF-8") from error
    for word in ("<!DOCTYPE", "<!ENTITY"):
        if word in text:
            raise DataError(f"{file} has {word}, which is not read; remove it")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{file} is no XML: {reason_of(error)}") from error
    if root.tag != "annotation":
        raise DataError(f"{file} begins with <{root.tag}>; expected <annotation>, as VOC writes")
    return root


def _side(root: Element, path: str, file: Path) -> int | None:
    """A side of the image in pixels; None if it is missing or 0: it is read from the image."""
    text = root.findtext(path)
    if text is None or not text.strip():
        return None
    number = number_of(text)
    if number is None or number < 0 or not number.is_integer():
        raise DataError(f"{file} has the {path} {text!r}; expected pixels, a whole number")
    return int(number)


def _name_of(element: Element, where: str) -> str:
    name = composed(element.findtext("name") or "")
    if not name:
        raise DataError(f"{where} has no name; expected the class of the object")
    return name


def _read_bbox(element: Element, where: str) -> list[float]:
    """Left, top, width and height of an object in pixels."""
    if element.find("bndbox") is None:
        tags = some_of([child.tag for child in element], 5)
        raise DataError(
            f"{where} has no bndbox, but {tags}; expected {', '.join(_CORNERS)} in bndbox"
        )
    corners = []
    for name in _CORNERS:
        text = element.findtext(f"bndbox/{name}") or ""
        number = number_of(text)
        if number is None:
            raise DataError(f"{where} has the {name} {text!r}; expected pixels, a number")
        corners.append(number)
    left, top, right, bottom = corners
    if right < left or bottom < top:
        raise DataError(
            f"{where} has the corners {corners}; expected xmin <= xmax and ymin <= ymax"
        )
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]
