r"""Which file a name means: rules that hold for all names of a table, a COCO file or a truth together.

Tables are made on other machines: names have ``\`` between their parts, ``%20`` for spaces, the
folders of that machine in front, or another case of the suffix. A :class:`Reading` is one way to
take all names of a file: how they are spelled, and how many of the folders that all of them begin
with are cut. Readings are tried from the most literal one on; the first that finds the files is
taken, and its text says what it changes. Different names never become one file, and a name whose
folder contradicts that of the file is no match.

No file is opened and no folder is listed here. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from dinoneck.data.walk import SUFFIXES

Parts = tuple[str, ...]
"""The folders of a path and its last name."""
Key = Callable[[str], str]

# folders that say nothing about which images they hold, as annotation tools and exports have them
GENERIC_FOLDERS = {
    "image",
    "images",
    "img",
    "imgs",
    "photo",
    "photos",
    "picture",
    "pictures",
    "pics",
    "jpegimages",
    "data",
    "dataset",
    "datasets",
    "upload",
    "uploads",
    "file",
    "files",
    "media",
    "default",
    "obj_train_data",
    "..",
}
# the words for parts of a data set as names of folders, also with a year as in COCO's train2017
_PART_FOLDER = re.compile(r"(train|val|test)(?:ing|id|idation)?\d*", re.IGNORECASE)
# POSIX, a home folder, Windows with a drive or a share, an address
_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:|[A-Za-z][\w+.-]+://")
_SAMPLE = 1000  # names by which the nearest reading is chosen for a message


def is_absolute(name: str) -> bool:
    """Whether a name begins at the root of some machine, in a home folder, or with a protocol."""
    return _ABSOLUTE.match(name) is not None


def parts_of(name: str) -> Parts:
    """Return the parts of a name with ``/``; ``.`` is left out, and ``..`` with the folder that it leaves."""
    parts: list[str] = []
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return tuple(parts)


def contradicts(prefix: Parts, folder: Parts, from_root: bool) -> bool:
    """Whether names in the folder ``prefix`` cannot be those of files in ``folder``.

    Folders that both end with agree. Of the rest, ``train`` contradicts ``val`` or ``test``. An
    absolute folder, of another machine, may else be called as it likes. A relative one has to be
    that of the files, or to say nothing, such as ``data``, or ``images/7`` of an annotation tool
    that numbers its projects.

    Args:
        prefix: what all names begin with.
        folder: of the files, from the root.
        from_root: whether the names are absolute.
    """
    names = [name.casefold() for name in prefix]
    folders = [name.casefold() for name in folder]
    while names and folders and names[-1] == folders[-1]:
        names.pop()
        folders.pop()
    parts_in_names = _part_words(names[-2:])
    parts_of_files = _part_words(folders[-2:])
    if parts_in_names and parts_of_files and not parts_in_names & parts_of_files:
        return True
    if from_root:
        return False
    last = folders[-1] if folders else ""
    unknown = [name for name in names if name not in GENERIC_FOLDERS and name != last]
    if len(unknown) < len(names) and not last.isdecimal():
        unknown = [name for name in unknown if not name.isdecimal()]
    return bool(unknown)


def _part_words(folders: Sequence[str]) -> set[str]:
    """The parts of a data set (train, val, test) that folders are named after."""
    matches = [_PART_FOLDER.fullmatch(folder) for folder in folders]
    return {match.group(1) for match in matches if match is not None}


@dataclass(frozen=True)
class Spelling:
    r"""How names are spelled.

    Attributes:
        slashes: ``\`` separates folders too.
        percent: ``%20`` and the like are decoded.
        text: what else is changed; empty = nothing.
        name_key: a name with ``/`` -> what is compared with files.
        file_key: the path of a file with ``/`` -> what is compared with names.
    """

    slashes: bool
    percent: bool
    text: str
    name_key: Key
    file_key: Key

    def decode(self, name: str) -> str:
        """Return a name with ``/`` between its parts."""
        if self.percent:
            name = unquote(name)
        return name.replace("\\", "/") if self.slashes else name

    def changes(self, names: Sequence[str]) -> list[str]:
        """Return what the spelling changes in names, in words."""
        texts = []
        if self.slashes and any("\\" in name for name in names):
            texts.append(r"'\' read as '/'")
        if self.percent and any(unquote(name) != name for name in names):
            texts.append("'%20' and the like decoded")
        if self.text:
            texts.append(self.text)
        return texts


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _lower_suffix(path: str) -> str:
    stem, suffix = posixpath.splitext(path)
    return _composed(stem) + suffix.lower()


def _any_case(path: str) -> str:
    return _composed(path).casefold()


def _without_suffix(path: str) -> str:
    stem, suffix = posixpath.splitext(path)
    return _composed(stem if suffix.lower() in SUFFIXES else path)


_KEYS = {  # what is changed -> keys of names and of files
    "": (_composed, _composed),
    "another case of the suffix": (_lower_suffix, _lower_suffix),
    "another case": (_any_case, _any_case),
    "a suffix added": (_composed, _without_suffix),
}


def spellings_of(names: Sequence[str]) -> list[Spelling]:
    """Return the ways to spell names, the most literal first, without those that change none of them."""
    has_backslash = any("\\" in name for name in names)
    has_percent = any(unquote(name) != name for name in names)
    spellings = []
    for text, (name_key, file_key) in _KEYS.items():
        for percent in (False, True) if has_percent else (False,):
            for slashes in (False, True) if has_backslash or percent else (False,):
                spellings.append(Spelling(slashes, percent, text, name_key, file_key))
    return spellings


@dataclass
class Reading:
    """One way to take all names of a file, and the files that it finds.

    Attributes:
        text: what it changes in the names; empty = nothing.
        files: name -> file.
        missing: the names without a file.
        several: a name -> the files that fit it alike.
        one_file: two names that one file fits.
        prefix: what it cuts from the names, as they have it.
        contradiction: the folder of a file that the prefix contradicts; None = there is none.
    """

    text: str
    files: dict[str, Path] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    several: dict[str, list[Path]] = field(default_factory=dict)
    one_file: tuple[str, str] | None = None
    prefix: str = ""
    contradiction: Path | None = None

    @property
    def is_sound(self) -> bool:
        """Whether names and files make pairs, and their folders agree."""
        return not self.several and self.one_file is None and self.contradiction is None


@dataclass
class _Names:
    """Names in one spelling.

    Attributes:
        spelling: how they are spelled.
        parts: name -> its parts.
        from_root: whether they are absolute.
        common: the folders that all of them begin with.
    """

    spelling: Spelling
    parts: dict[str, Parts]
    from_root: bool
    common: Parts

    @classmethod
    def of(cls, names: Sequence[str], spelling: Spelling) -> _Names:
        """Decode names and split them."""
        parts = {}
        from_root = False
        for name in names:
            decoded = spelling.decode(name)
            parts[name] = parts_of(decoded)
            from_root = from_root or is_absolute(decoded)
        return cls(spelling, parts, from_root, _shared(list(parts.values())))

    def describe(self, reading: Reading, cut: int = 0, below: str = "") -> Reading:
        """Write into a reading what it changes.

        Args:
            reading: of these names.
            cut: how many folders it cuts from the names.
            below: where the files are, in words; empty = where the names say.
        """
        ends = []
        prefix = ""
        for name in self.parts:
            prefix, end = self._split(name, cut)
            ends.append(end)
        changes = self.spelling.changes(ends)
        if prefix:
            text = f"names without '{prefix}'"
        elif below:
            text = f"names {below}"
        elif changes:
            text = f"names with {changes.pop(0)}"
        else:
            text = ""
        reading.text = ", ".join([text, *changes])
        reading.prefix = prefix
        return reading

    def _split(self, name: str, cut: int) -> tuple[str, str]:
        """The folders of a name that are cut, as it has them, and its end."""
        if cut == 0:
            return "", name
        parts = self.parts[name]
        separators = r"/\\" if self.spelling.slashes else "/"
        folders = rf"(?:[^{separators}]+[{separators}]+){{{len(parts) - cut - 1}}}"
        end = re.search(rf"{folders}[^{separators}]+$", name)
        if end is None or end.start() == 0:  # a separator is written %5C, or '..' leaves a folder
            return "/".join(parts[:cut]) + "/", "/".join(parts[cut:])
        return name[: end.start()], end.group()

    def find(
        self,
        cut: int,
        files_of: Callable[[Parts], Sequence[Path]],
        *,
        stop: bool = False,
    ) -> Reading:
        """Return a reading with the files of all names; :meth:`describe` writes its text.

        Args:
            cut: how many folders are cut from the names.
            files_of: the parts of a name that are left -> the files that fit them.
            stop: whether to stop at the first name without a file.
        """
        reading = Reading("")
        name_of: dict[Path, str] = {}
        for name, parts in self.parts.items():
            files = files_of(parts[cut:])
            if len(files) > 1:  # one may be spelled as the name is
                end = _composed("/" + "/".join(parts[cut:]))
                same = [file for file in files if _composed(file.as_posix()).endswith(end)]
                files = same if len(same) == 1 else files
            if not files:
                reading.missing.append(name)
                if stop:
                    break
            elif len(files) > 1:
                reading.several[name] = list(files)
            elif name_of.setdefault(files[0], name) != name:
                reading.one_file = (name_of[files[0]], name)
            else:
                reading.files[name] = files[0]
        return reading


class _Files:
    """Files by their paths.

    Args:
        paths: file -> the parts of its path that a name may have.
    """

    def __init__(self, paths: Mapping[Path, Parts]) -> None:
        self.paths = paths
        self._by_path: dict[Key, dict[str, list[Path]]] = {}
        self._by_end: dict[tuple[Key, int], dict[str, list[Path]]] = {}

    def at(self, path: Parts, spelling: Spelling) -> Sequence[Path]:
        """Return the files of this path."""
        key = spelling.file_key
        if key not in self._by_path:
            table: dict[str, list[Path]] = {}
            for file, parts in self.paths.items():
                table.setdefault(key("/".join(parts)), []).append(file)
            self._by_path[key] = table
        return self._by_path[key].get(spelling.name_key("/".join(path)), ())

    def ending(self, end: Parts, spelling: Spelling) -> Sequence[Path]:
        """Return the files whose path ends like this."""
        key, depth = spelling.file_key, len(end)
        if (key, depth) not in self._by_end:
            table: dict[str, list[Path]] = {}
            for file, parts in self.paths.items():
                if len(parts) >= depth:
                    table.setdefault(key("/".join(parts[-depth:])), []).append(file)
            self._by_end[key, depth] = table
        return self._by_end[key, depth].get(spelling.name_key("/".join(end)), ())


def find_below(
    names: Sequence[str], paths: Mapping[Path, Parts], folders: Sequence[Parts]
) -> Reading:
    """Return the first reading that finds all names below a folder; if there is none, the nearest one.

    The order: names relative to the folder; names of which each is the end of one path alone, as if
    one folder or several were put before them; names without the first folders that they share,
    from one such folder on. Of each the spellings, from the literal one on.

    Args:
        names: the names, each once.
        paths: file -> its parts below the folder.
        folders: the parts of the folder, from the root, and those of the one that it is a link to.
    """
    files = _Files(paths)
    unsound = None
    for attempt in _attempts_below(names, files, folders, stop=True):
        if attempt.reading.missing:
            continue
        if attempt.reading.is_sound:
            return attempt.described(files)
        if unsound is None:
            unsound = attempt
    if unsound is not None:
        return unsound.described(files)
    attempts = _attempts_below(names[:_SAMPLE], files, folders, stop=False)
    nearest = max(attempts, key=lambda attempt: len(attempt.reading.files))
    return nearest.described(files)


@dataclass
class _Attempt:
    """A reading of names that cuts so many folders, of files wherever they are or where the names say."""

    reading: Reading
    names: _Names
    cut: int = 0
    anywhere: bool = False

    def described(self, files: _Files) -> Reading:
        """Return the reading with its text."""
        below = _where(self.reading, self.names, files) if self.anywhere else ""
        return self.names.describe(self.reading, self.cut, below)


def _attempts_below(
    names: Sequence[str], files: _Files, folders: Sequence[Parts], *, stop: bool
) -> Iterator[_Attempt]:
    """The readings in their order."""
    spelled = _in_all_spellings(names)

    for spelled_names in spelled:
        at = partial(files.at, spelling=spelled_names.spelling)
        yield _Attempt(spelled_names.find(0, at, stop=stop), spelled_names)

    for spelled_names in spelled:
        ending = partial(files.ending, spelling=spelled_names.spelling)
        yield _Attempt(spelled_names.find(0, ending, stop=stop), spelled_names, anywhere=True)

    deepest = max(len(spelled_names.common) for spelled_names in spelled)
    for cut in range(1, deepest + 1):
        for spelled_names in spelled:
            if cut > len(spelled_names.common):
                continue
            at = partial(files.at, spelling=spelled_names.spelling)
            reading = spelled_names.find(cut, at, stop=stop)
            prefix = spelled_names.common[:cut]
            if all(contradicts(prefix, folder, spelled_names.from_root) for folder in folders):
                reading.contradiction = Path(*folders[0])
            yield _Attempt(reading, spelled_names, cut)


def _in_all_spellings(names: Sequence[str]) -> list[_Names]:
    spelled: list[_Names] = []
    decoded: dict[tuple[bool, bool], _Names] = {}
    for spelling in spellings_of(names):
        form = (spelling.slashes, spelling.percent)
        if form not in decoded:
            decoded[form] = _Names.of(names, spelling)
        spelled.append(replace(decoded[form], spelling=spelling))
    return spelled


def _where(reading: Reading, names: _Names, files: _Files) -> str:
    """Where the files of a reading are, in words."""
    folders = set()
    for name, file in reading.files.items():
        folders.add("/".join(files.paths[file][: -len(names.parts[name])]))
    return f"below '{folders.pop()}/'" if len(folders) == 1 else "of files in several subfolders"


def find_among(names: Sequence[str], paths: Mapping[Path, Parts]) -> Reading:
    """Return the reading that finds most of some files, each by the end of its path; names of other files are missing.

    Args:
        names: the names, each once.
        paths: file -> its parts from the root.
    """
    files = _Files(paths)
    spelled = _in_all_spellings(names)
    deepest = max((len(spelled_names.common) for spelled_names in spelled), default=-1)
    for cut in range(deepest + 1):
        best = None
        for spelled_names in spelled:
            if cut > len(spelled_names.common):
                continue
            ending = partial(files.ending, spelling=spelled_names.spelling)
            attempt = _Attempt(spelled_names.find(cut, ending), spelled_names, cut)
            if best is None or len(attempt.reading.files) > len(best.reading.files):
                best = attempt
            if len(best.reading.files) == len(paths):
                break
        if best is not None and (best.reading.files or best.reading.several):
            reading = best.described(files)
            reading.contradiction = _contradicted(reading, best.names, cut, paths)
            return reading
    return Reading("", missing=list(names))


def _contradicted(
    reading: Reading, names: _Names, cut: int, paths: Mapping[Path, Parts]
) -> Path | None:
    """The folder of a file that the folders which a reading cuts contradict."""
    if cut == 0:
        return None
    for name, file in reading.files.items():
        depth = len(names.parts[name]) - cut
        if contradicts(names.common[:cut], paths[file][:-depth], names.from_root):
            return file.parent
    return None


def _shared(paths: Sequence[Parts]) -> Parts:
    """The folders that all paths begin with."""
    shared: list[str] = []
    first, last = min(paths), max(paths)
    for folder, other in zip(first[:-1], last[:-1], strict=False):
        if folder != other:
            break
        shared.append(folder)
    return tuple(shared)
