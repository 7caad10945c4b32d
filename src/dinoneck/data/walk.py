"""The files below a folder: images, pictures of formats that are not read, and links.

From files to tables: this module lists what lies below a folder; ``image_tree`` tells images from
masks among it, and ``layout`` class folders, images with masks, and parts. ``folders`` makes tables
of them. Where a table names the files, ``names`` and ``sources`` find them.

Neither pandas nor torch is imported.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.run_names import DETECTOR, HEADS, PREDICTIONS, REPORT, RUN, UNFINISHED
from dinoneck.errors import DataError
from dinoneck.text import counted, reason_of

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
# pictures that are counted and named, since people expect them to be read: of telephones, cameras,
# browsers, microscopes, scanners and arrays
OTHER_SUFFIXES = (
    ".heic",
    ".heif",
    ".avif",
    ".gif",
    ".apng",
    ".jfif",
    ".jpe",
    ".jps",
    ".mpo",
    ".jxl",
    ".jp2",
    ".j2k",
    ".jpx",
    ".jpf",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".nrw",
    ".arw",
    ".orf",
    ".rw2",
    ".raf",
    ".pef",
    ".srw",
    ".psd",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".tga",
    ".exr",
    ".hdr",
    ".dcm",
    ".nii",
    ".nii.gz",
    ".czi",
    ".lif",
    ".lsm",
    ".nd2",
    ".svs",
    ".ndpi",
    ".ecw",
    ".sid",
    ".npy",
    ".npz",
    ".mat",
)
# folders that systems and archives make: they hold copies, thumbnails or what was thrown away
SYSTEM_FOLDERS = (
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
)
# what tells a folder that dinoneck wrote: one of these sets of names is in it
_NAMES_OF_RUNS = (
    {REPORT, HEADS},
    {REPORT, PREDICTIONS},
    {REPORT, DETECTOR},
    {"store.json", "index.sqlite"},
)
# files that often lie beside images, in numbers that would take long to look into
_NOT_PICTURES = (
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".xml",
    ".yaml",
    ".yml",
    ".md",
    ".npy",
    ".npz",
    ".pt",
    ".pth",
    ".safetensors",
    ".tfw",
    ".jgw",
    ".pgw",
    ".wld",
    ".prj",
)
# overviews (a TIFF file of its own) and statistics of an image, as GIS programs write beside it
_SIDE_SUFFIXES = (".ovr", ".aux", ".rrd")
_ENVI_HEADER = ".hdr"
_ENVI_BEGINS = b"ENVI"  # as no picture of the suffix .hdr does
_REGION = ".roi"  # of ImageJ; a RoiSet.zip holds nothing else
# they may hold images that were never unpacked
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_PICTURES_BEGIN = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*")
_HEAD_BYTES = 12


@dataclass
class Listing:
    """What lies below a folder, without hidden files and folders, those of systems, and runs.

    Attributes:
        top: the folder.
        files: all files, sorted.
        folders: all folders below it, sorted, also empty ones.
        repeated: a link to a folder -> that folder, which was read already.
        lost: links that lead nowhere and are not named like an image.
        run_folders: folders of trainings and of feature stores; what is in them is not listed.
        is_whole: whether all files were listed.
    """

    top: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    repeated: dict[Path, Path] = field(default_factory=dict)
    lost: list[Path] = field(default_factory=list)
    run_folders: list[Path] = field(default_factory=list)
    is_whole: bool = True

    @property
    def images(self) -> list[Path]:
        """The files that are read as images, by their suffix."""
        return _with_suffix(self.files, SUFFIXES)

    @property
    def others(self) -> list[Path]:
        """The pictures of formats that are not read; a text header of ENVI beside its image is none."""
        others = _with_suffix(self.files, OTHER_SUFFIXES)
        if not _with_suffix(others, [_ENVI_HEADER]):
            return others
        stems_of_images = {image.with_suffix("") for image in self.images}
        return [file for file in others if not _is_header_of_one(file, stems_of_images)]

    @property
    def unnamed(self) -> list[Path]:
        """The pictures whose names do not say so: ``0``, ``0.jpg_large``, ``0.jpg.txt``; their first bytes tell."""
        known = (*SUFFIXES, *OTHER_SUFFIXES, *_NOT_PICTURES)
        unnamed = []
        for file in self.files:
            if file.suffix.lower() in _SIDE_SUFFIXES:
                continue
            is_known = file.suffix.lower() in known
            if (not is_known or _has_picture_suffix_inside(file)) and _begins_as_picture(file):
                unnamed.append(file)
        return unnamed

    @property
    def unreadable(self) -> list[Path]:
        """The files beside images that are called like a picture with one suffix more, and are none.

        Such are ``0.jpg.part`` of a download that was broken off. A file that belongs to a picture is
        none of them: ``0.jpg.txt`` beside ``0.jpg``.
        """
        candidates = []
        for file in self.files:
            is_side_file = file.suffix.lower() in _SIDE_SUFFIXES
            if _has_picture_suffix_inside(file) and not is_side_file:
                candidates.append(file)
        if not candidates:
            return []
        folders_of_images = {file.parent for file in self.images}
        paths = {str(file).lower() for file in self.files}
        unreadable = []
        for file in candidates:
            has_picture = str(file.with_suffix("")).lower() in paths
            is_beside_images = file.parent in folders_of_images
            if is_beside_images and not has_picture and not _begins_as_picture(file):
                unreadable.append(file)
        return unreadable

    @property
    def archives(self) -> list[Path]:
        """The archives that are not unpacked beside themselves, as ``wheat.zip`` into ``wheat``.

        Archives of ImageJ's regions alone, as ``RoiSet.zip``, are none of them.
        """
        folders = {str(folder).lower() for folder in self.folders}
        packed = []
        for file in _with_suffix(self.files, _ARCHIVES):
            unpacked = str(file.with_name(file.name.split(".")[0])).lower()
            is_picture = file.name.lower().endswith(OTHER_SUFFIXES)  # .nii.gz
            if unpacked not in folders and not is_picture and not _holds_regions_alone(file):
                packed.append(file)
        return packed


def _is_header_of_one(file: Path, stems_of_images: Collection[Path]) -> bool:
    """Whether a file is ENVI's text header of an image: ``0.hdr`` or ``0.tif.hdr`` beside ``0.tif``."""
    if file.suffix.lower() != _ENVI_HEADER:
        return False
    without_suffix = file.with_suffix("")
    if without_suffix.suffix.lower() in SUFFIXES:
        without_suffix = without_suffix.with_suffix("")
    return without_suffix in stems_of_images and _head_of(file).startswith(_ENVI_BEGINS)


def _holds_regions_alone(file: Path) -> bool:
    """Whether a file is a ZIP archive of one region of ImageJ or more, and of nothing else."""
    if file.suffix.lower() != ".zip" or not file.is_file():
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False  # it is counted as an archive
    return bool(names) and all(name.lower().endswith(_REGION) for name in names)


def _has_picture_suffix_inside(file: Path) -> bool:
    """Whether a name has the suffix of a picture before its last one, which is none: ``0.jpg.txt``."""
    if file.name.count(".") < 2:
        return False
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    return len(suffixes) == 2 and suffixes[0] in SUFFIXES and suffixes[1] not in SUFFIXES


def _head_of(file: Path) -> bytes:
    """The first bytes of a file; none if it cannot be read, since nobody asked for it."""
    try:
        with file.open("rb") as opened:
            return opened.read(_HEAD_BYTES)
    except OSError:
        return b""


def _begins_as_picture(file: Path) -> bool:
    head = _head_of(file)
    is_webp = head.startswith(b"RIFF") and head[8:12] == b"WEBP"
    return is_webp or head.startswith(_PICTURES_BEGIN)


def _with_suffix(files: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files whose name ends in one of the suffixes, in any case."""
    endings = tuple(suffixes)
    return [file for file in files if file.name.lower().endswith(endings)]


def walk(top: Path, most: int | None = None) -> Listing:
    """List what lies below a folder.

    Links are followed, also to folders. Each folder is read once, under the path without links if
    there is one below ``top``: so links that make a loop, and several links to one folder, add
    nothing.

    Args:
        top: the folder; it may be hidden itself.
        most: stop after so many files; None = never.

    Raises:
        DataError: if a folder cannot be read.
    """
    listing = Listing(top)
    first_path: dict[tuple[int, int], Path] = {}  # of a folder that was read
    folders = [top]
    links: list[Path] = []  # to folders; they are followed after all others
    while folders or links:
        if folders:
            folder = folders.pop()
        else:
            links.sort()
            folder = links.pop(0)
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in first_path:
                listing.repeated[folder] = first_path[identity]
                continue
            first_path[identity] = folder
            with os.scandir(folder) as opened:
                entries = list(opened)
        except OSError as error:
            raise DataError(
                f"the folder {folder} cannot be read: {reason_of(error)}; check who may read it, or "
                "move it away"
            ) from error
        if folder != top:
            if _has_names_of_run(folder, {entry.name for entry in entries}):
                listing.run_folders.append(folder)
                continue
            listing.folders.append(folder)
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if entry.name.lower() in SYSTEM_FOLDERS:
                    continue
                if entry.is_symlink():
                    links.append(path)
                else:
                    folders.append(path)
            elif _leads_nowhere(entry) and path.suffix.lower() not in SUFFIXES:
                listing.lost.append(path)
            else:
                listing.files.append(path)
        if most is not None and len(listing.files) > most:
            listing.is_whole = False
            break
    _move_parents_of_runs(listing)
    listing.files.sort(key=path_order)
    listing.folders.sort(key=path_order)
    listing.run_folders.sort(key=path_order)
    return listing


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a training, of several or of a feature store."""
    names = _names_in(folder)
    if _has_names_of_run(folder, names):
        return True
    inside = [folder / name for name in names if name != REPORT and not name.startswith(".")]
    if not inside or not all(path.is_dir() for path in inside):
        return False
    return all(_has_names_of_run(path, _names_in(path)) for path in inside)


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _has_names_of_run(folder: Path, names: set[str]) -> bool:
    """Whether the names in a folder are those of one training, also an unfinished one, or of one store."""
    if any(names_of_run <= names for names_of_run in _NAMES_OF_RUNS):
        return True
    return UNFINISHED in names and (folder / UNFINISHED / RUN).is_file()


def _move_parents_of_runs(listing: Listing) -> None:
    """Take folders that hold nothing but trainings, as of several heads, for run folders themselves."""
    parents = {folder.parent for folder in listing.run_folders} - {listing.top}
    for parent in sorted(parents):
        inside = [path for path in [*listing.files, *listing.folders] if parent in path.parents]
        if any(path.name != REPORT for path in inside):
            continue
        listing.files = [file for file in listing.files if parent not in file.parents]
        listing.folders.remove(parent)
        others = [folder for folder in listing.run_folders if folder.parent != parent]
        listing.run_folders = [*others, parent]


def path_order(path: Path) -> str:
    """Return a key that sorts paths as pathlib does, folder by folder, in a fifth of the time."""
    return str(path).replace(os.sep, "\0")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110 - raises nothing


def warn_of_left_out(listings: Sequence[Listing]) -> None:
    """Name, in one line each, what is left out: pictures that are not read, archives, links to nothing, and runs."""
    others: list[Path] = []
    unnamed: list[Path] = []
    unreadable: list[Path] = []
    archives: list[Path] = []
    lost: list[Path] = []
    run_folders: list[Path] = []
    for listing in listings:
        others += listing.others
        unnamed += listing.unnamed
        unreadable += listing.unreadable
        archives += listing.archives
        lost += listing.lost
        run_folders += listing.run_folders
    suffixes = ", ".join(sorted({file.suffix.lower() for file in others}))
    _warn_of(others, "file", f" of other formats ({suffixes})", "; convert them")
    _warn_of(
        unnamed,
        "picture",
        " in files that are not named as such",
        "; end their names in .png, .jpg or what they are",
    )
    _warn_of(
        unreadable,
        "file",
        " called like pictures with one suffix more, which are none",
        "; restore the pictures, or remove the files",
    )
    _warn_of(archives, "archive", "", "; if it holds images, unpack it")
    _warn_of(lost, "link", " to nothing", "; restore what it names, or remove it")
    _warn_of(run_folders, "folder", " that dinoneck wrote, trainings or stores", "")


def _warn_of(paths: Sequence[Path], noun: str, cause: str, remedy: str) -> None:
    """Name the first of some paths that are left out, with their number; nothing without any."""
    if paths:
        logger.warning(
            "left out: %s%s, the first %s%s",
            counted(len(paths), noun),
            cause,
            paths[0],
            remedy,
        )
