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

import os
import posixpath
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from dinoneck.data.folder_words import GENERIC_FOLDERS, part_of
from dinoneck.data.walk import SUFFIXES
from dinoneck.errors import DataError

Parts = tuple[str, ...]
"""The folders of a path and its last name."""
Key = Callable[[str], str]

# POSIX, a home folder, Windows with a drive or a share, an address
_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:|[A-Za-z][\w+.-]+://")
_QUERY = re.compile(r"[?#].*$")
_UPLOAD_HASH = re.compile(r"^[0-9a-f]{8}[-_]")
_LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")
_SPLIT_DEPTH = 2  # folders above an image that may be called train, val or test
SAMPLE = 1000  # names by which the nearest reading is chosen for a message


def check_encodable(path: Path, file: Path) -> None:
    """Check that a path can be written into a table or a document.

    Args:
        path: what is written: the file, or its path below a folder.
        file: for the message.

    Raises:
        DataError: naming the file or the folder of which the name is not UTF-8.
    """
    for name in path.parts:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"the name {name!r} in {str(file)!r} is not UTF-8, as an archive of another system "
                "may leave it; rename the file or the folder"
            ) from None


def is_json_file(file: str | os.PathLike[str]) -> bool:
    """Return whether a file is called as JSON, in any case: such a file has COCO's form."""
    return str(file).lower().endswith(".json")


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


def core_of(name: str) -> str:
    """Return what is left of a name without what programs add or lose, to find a file called much alike.

    That is: folders, the suffix, case, the query of an address (``0.jpg?w=640``), the hash that Label
    Studio puts before an upload (``3f2a1b4c-0.jpg``), and zeros before numbers, which spreadsheets
    drop (``1`` for ``001.jpg``).
    """
    last_part = re.split(r"[/\\]", _QUERY.sub("", name))[-1]
    stem = _UPLOAD_HASH.sub("", _without_suffix(last_part).casefold())
    return _LEADING_ZEROS.sub("", stem)


def contradicts(prefix: Parts, folder: Parts, from_root: bool) -> bool:
    """Whether names in the folder ``prefix`` cannot be those of files in ``folder``.

    Folders that both end with agree. Of the rest, ``train`` contradicts ``val`` or ``test``. Nothing
    else contradicts an absolute folder: it is one of another machine. A relative one has to be that
    of the files, or to say nothing, such as ``data``.

    Annotation tools number their projects: in ``images/7`` the number says nothing either. That
    needs a folder beside it that says nothing, and a folder of files that is no number itself:

    * names in ``images/7``, files in ``/data/photos``: agree.
    * names in ``7``, files in ``/data/photos``: contradict, as 7 may be a day or a plot.
    * names in ``images/7``, files in ``/data/8``: contradict.

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
    splits_of_names = part_words(names[-_SPLIT_DEPTH:])
    splits_of_files = part_words(folders[-_SPLIT_DEPTH:])
    if splits_of_names and splits_of_files and splits_of_names.isdisjoint(splits_of_files):
        return True
    if from_root:
        return False
    last = folders[-1] if folders else ""
    unknown = [name for name in names if name not in GENERIC_FOLDERS and name != last]
    has_generic_folder = len(unknown) < len(names)
    if has_generic_folder and not last.isdecimal():
        unknown = [name for name in unknown if not name.isdecimal()]
    return bool(unknown)


def part_words(folders: Sequence[str]) -> set[str]:
    """Return the splits of a data set (train, val, test) that folders are named after, as COCO's train2017."""
    splits = set()
    for folder in folders:
        split = part_of(folder.rstrip(string.digits))
        if split is not None:
            splits.add(split)
    return splits


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


def composed(path: str) -> str:
    """Return a path in the form NFC, in which an é is one character."""
    return unicodedata.normalize("NFC", path)


def _lower_suffix(path: str) -> str:
    stem, suffix = posixpath.splitext(path)
    return composed(stem) + suffix.lower()


def _any_case(path: str) -> str:
    return composed(path).casefold()


def _without_suffix(path: str) -> str:
    stem, suffix = posixpath.splitext(path)
    return composed(stem if suffix.lower() in SUFFIXES else path)


class _Comparison(NamedTuple):
    """A way to compare names with files: they fit where their keys are equal.

    Attributes:
        change: what differs between a name and its file, in the words of messages; empty for none.
        name_key: name -> its key.
        file_key: path of a file -> its key.
    """

    change: str
    name_key: Callable[[str], str]
    file_key: Callable[[str], str]


_COMPARISONS = (  # the most literal first: it is preferred
    _Comparison("", composed, composed),
    _Comparison("another case of the suffix", _lower_suffix, _lower_suffix),
    _Comparison("another case", _any_case, _any_case),
    _Comparison("a suffix added", composed, _without_suffix),
)


def spellings_of(names: Sequence[str]) -> list[Spelling]:
    """Return the ways to spell names, the most literal first, without those that change none of them."""
    has_backslash = any("\\" in name for name in names)
    has_percent = any(unquote(name) != name for name in names)
    spellings = []
    percent_options = (False, True) if has_percent else (False,)
    for comparison in _COMPARISONS:
        for percent in percent_options:
            may_have_backslash = has_backslash or percent  # %5C is one
            slash_options = (False, True) if may_have_backslash else (False,)
            for slashes in slash_options:
                spelling = Spelling(
                    slashes=slashes,
                    percent=percent,
                    text=comparison.change,
                    name_key=comparison.name_key,
                    file_key=comparison.file_key,
                )
                spellings.append(spelling)
    return spellings


@dataclass(frozen=True)
class _Match:
    """The files of names.

    Attributes:
        files: name -> file.
        missing: the names without a file.
        several: a name -> the files that fit it alike.
        one_file: two names that one file fits.
    """

    files: Mapping[str, Path]
    missing: Sequence[str]
    several: Mapping[str, Sequence[Path]]
    one_file: tuple[str, str] | None

    @property
    def is_one_to_one(self) -> bool:
        """Whether the names that have files make pairs with them."""
        return not self.several and self.one_file is None


@dataclass(frozen=True)
class Reading:
    """One way to take all names of a file, and the files that it finds.

    Attributes:
        text: what it changes in the names, in words; empty = nothing.
        prefix: what it cuts from the names, as they have it.
        is_contradicted: whether the folder of a file contradicts the prefix.
        files: name -> file.
        missing: the names without a file.
        several: a name -> the files that fit it alike.
        one_file: two names that one file fits.
    """

    text: str
    prefix: str
    is_contradicted: bool
    files: Mapping[str, Path]
    missing: Sequence[str]
    several: Mapping[str, Sequence[Path]]
    one_file: tuple[str, str] | None

    @property
    def is_changed(self) -> bool:
        """Whether names are taken otherwise than as they are written."""
        return self.text != ""


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

    def split(self, name: str, cut: int) -> tuple[str, str]:
        r"""Return the first folders of a name, as the name has them, and its end.

        One folder of ``old\a//0.png`` is ``old\``, and its end ``a//0.png``. Where separators are
        encoded, or the end of the name goes up again, both are joined from the parts: one folder of
        ``old%5Ca%5C0.png``, and of ``old/a/b/../0.png``, is ``old/``, and the end ``a/0.png``.

        Args:
            name: one of the names.
            cut: how many folders.
        """
        if cut == 0:
            return "", name
        parts = self.parts[name]
        separators = r"/\\" if self.spelling.slashes else "/"
        num_folders = len(parts) - cut - 1  # of the end
        folders = rf"(?:[^{separators}]+[{separators}]+){{{num_folders}}}"
        match = re.search(rf"{folders}[^{separators}]+$", name)
        if match is not None and parts_of(self.spelling.decode(match.group())) == parts[cut:]:
            return name[: match.start()], match.group()
        return "/".join(parts[:cut]) + "/", "/".join(parts[cut:])

    def match(
        self,
        cut: int,
        files_of: Callable[[Parts], Sequence[Path]],
        *,
        stop: bool = False,
    ) -> _Match:
        """Return the files of all names.

        Args:
            cut: how many folders are cut from the names.
            files_of: the parts of a name that are left -> the files that fit them.
            stop: whether to stop at the first name without a file.
        """
        files: dict[str, Path] = {}
        missing: list[str] = []
        several: dict[str, Sequence[Path]] = {}
        one_file = None
        name_of: dict[Path, str] = {}
        for name, parts in self.parts.items():
            end = parts[cut:]
            candidates = files_of(end)
            if len(candidates) > 1:
                candidates = _spelled_alike(end, candidates)
            if not candidates:
                missing.append(name)
                if stop:
                    break
            elif len(candidates) > 1:
                several[name] = candidates
            elif candidates[0] in name_of:
                one_file = (name_of[candidates[0]], name)
            else:
                files[name] = candidates[0]
                name_of[candidates[0]] = name
        return _Match(files, missing, several, one_file)


def _spelled_alike(end: Parts, files: Sequence[Path]) -> Sequence[Path]:
    """The one of some files whose path ends exactly like a name; all if there is no such one."""
    path = composed("/" + "/".join(end))
    alike = [file for file in files if composed(file.as_posix()).endswith(path)]
    return alike if len(alike) == 1 else files


class _Files:
    """Files by their paths.

    Args:
        paths: file -> the parts of its path that a name may have.
    """

    def __init__(self, paths: Mapping[Path, Parts]) -> None:
        self.paths = paths
        self._tables: dict[tuple[Key, int | None], dict[str, list[Path]]] = {}

    def at(self, path: Parts, spelling: Spelling) -> Sequence[Path]:
        """Return the files of this path."""
        table = self._table(spelling.file_key, depth=None)
        return table.get(spelling.name_key("/".join(path)), ())

    def ending(self, end: Parts, spelling: Spelling) -> Sequence[Path]:
        """Return the files whose path ends like this."""
        table = self._table(spelling.file_key, depth=len(end))
        return table.get(spelling.name_key("/".join(end)), ())

    def _table(self, key: Key, depth: int | None) -> dict[str, list[Path]]:
        """The last ``depth`` parts of the paths, as spelled, -> files; None = all parts."""
        if (key, depth) not in self._tables:
            table: dict[str, list[Path]] = {}
            for file, parts in self.paths.items():
                if depth is None:
                    end = parts
                elif len(parts) >= depth:
                    end = parts[-depth:]
                else:
                    continue
                table.setdefault(key("/".join(end)), []).append(file)
            self._tables[key, depth] = table
        return self._tables[key, depth]


@dataclass(frozen=True)
class _Attempt:
    """A match of names, and how it was found.

    Attributes:
        match: the files of the names.
        names: the names in one spelling.
        cut: how many folders are cut from them.
        anywhere: whether files are wherever they are, below the folders of the names.
        is_contradicted: whether the folders that are cut contradict those of the files.
    """

    match: _Match
    names: _Names
    cut: int = 0
    anywhere: bool = False
    is_contradicted: bool = False

    @property
    def is_sound(self) -> bool:
        """Whether names and files make pairs, and their folders agree."""
        return self.match.is_one_to_one and not self.is_contradicted

    def reading(self, files: _Files) -> Reading:
        """Return the match with what it changes in the names, in words."""
        ends = []
        prefix = ""
        for name in self.names.parts:
            # the last name's: all names share the folders that are cut
            prefix, end = self.names.split(name, self.cut)
            ends.append(end)
        changes = self.names.spelling.changes(ends)
        if prefix:
            changes = [f"names without '{prefix}'", *changes]
        elif self.anywhere:
            changes = [f"names {_where(self.match, self.names, files)}", *changes]
        elif changes:
            changes[0] = f"names with {changes[0]}"
        return Reading(
            text=", ".join(changes),
            prefix=prefix,
            is_contradicted=self.is_contradicted,
            files=self.match.files,
            missing=self.match.missing,
            several=self.match.several,
            one_file=self.match.one_file,
        )


def find_below(
    names: Sequence[str], paths: Mapping[Path, Parts], folders: Sequence[Parts]
) -> Reading:
    """Return how names mean files below a folder: by the first way in which each means one of them.

    The order: names relative to the folder; names of which each is the end of one path alone, as if
    one folder or several were put before them; names without the first folders that they share,
    from one such folder on. Of each the spellings, from the literal one on.

    If there is no such way, the first one is returned that finds files for all names, and is not
    certain: a name fits several files, two names fit one file, or folders contradict each other.
    If there is none of these either, it is the one that finds most of the first 1000 names, or of
    all if these are found: its ``files`` and ``missing`` are of these names alone.

    Args:
        names: the names, each once.
        paths: file -> its parts below the folder.
        folders: the parts of the folder, from the root, and those of the one that it is a link to.
    """
    files = _Files(paths)
    unsound = None
    for attempt in _attempts_below(names, files, folders, stop=True):
        if attempt.match.missing:
            continue
        if attempt.is_sound:
            return attempt.reading(files)
        if unsound is None:
            unsound = attempt
    if unsound is not None:
        return unsound.reading(files)
    nearest = _nearest_below(names[:SAMPLE], files, folders)
    if not nearest.match.missing:  # the names that have no file come later
        nearest = _nearest_below(names, files, folders)
    return nearest.reading(files)


def _nearest_below(names: Sequence[str], files: _Files, folders: Sequence[Parts]) -> _Attempt:
    """The attempt that finds most of the names; of several, the first."""
    attempts = _attempts_below(names, files, folders, stop=False)
    return max(attempts, key=lambda attempt: len(attempt.match.files))


def _attempts_below(
    names: Sequence[str], files: _Files, folders: Sequence[Parts], *, stop: bool
) -> Iterator[_Attempt]:
    """The attempts to find names below a folder, in their order."""
    spelled = _in_all_spellings(names)

    for spelled_names in spelled:
        at = partial(files.at, spelling=spelled_names.spelling)
        yield _Attempt(spelled_names.match(0, at, stop=stop), spelled_names)

    for spelled_names in spelled:
        ending = partial(files.ending, spelling=spelled_names.spelling)
        yield _Attempt(spelled_names.match(0, ending, stop=stop), spelled_names, anywhere=True)

    deepest = max(len(spelled_names.common) for spelled_names in spelled)
    for cut in range(1, deepest + 1):
        for spelled_names in spelled:
            if cut > len(spelled_names.common):
                continue
            at = partial(files.at, spelling=spelled_names.spelling)
            prefix = spelled_names.common[:cut]
            from_root = spelled_names.from_root
            yield _Attempt(
                spelled_names.match(cut, at, stop=stop),
                spelled_names,
                cut=cut,
                is_contradicted=all(contradicts(prefix, folder, from_root) for folder in folders),
            )


def _in_all_spellings(names: Sequence[str]) -> list[_Names]:
    spelled: list[_Names] = []
    decoded: dict[tuple[bool, bool], _Names] = {}
    for spelling in spellings_of(names):
        form = (spelling.slashes, spelling.percent)
        if form not in decoded:
            decoded[form] = _Names.of(names, spelling)
        spelled.append(replace(decoded[form], spelling=spelling))
    return spelled


def _where(match: _Match, names: _Names, files: _Files) -> str:
    """Where the files of a match are, in words."""
    folders = set()
    for name, file in match.files.items():
        folders.add("/".join(files.paths[file][: -len(names.parts[name])]))
    return f"below '{folders.pop()}/'" if len(folders) == 1 else "of files in several subfolders"


def find_among(names: Sequence[str], paths: Mapping[Path, Parts]) -> Reading:
    """Return which names mean some files, each by the end of its path; names of other files are missing.

    As few folders as possible are cut from the names: none, or as many as it takes until one name
    fits a file. Of the spellings that which finds most is taken, the most literal of several.

    Args:
        names: the names, each once.
        paths: file -> its parts from the root.
    """
    files = _Files(paths)
    spelled = _in_all_spellings(names)
    deepest = max(len(spelled_names.common) for spelled_names in spelled)
    for cut in range(deepest + 1):
        attempt = _best_spelling(spelled, cut, files)
        if attempt.match.files or attempt.match.several:
            contradicted = replace(attempt, is_contradicted=_is_contradicted(attempt, paths))
            return contradicted.reading(files)
    literal = _best_spelling(spelled[:1], 0, files)
    return literal.reading(files)


def _best_spelling(spelled: Sequence[_Names], cut: int, files: _Files) -> _Attempt:
    """The spelling that finds most files by the ends of their paths; of several, the most literal.

    Args:
        spelled: the names in all spellings; in one of them at least they share so many folders.
        cut: how many folders are cut.
        files: that names may mean.
    """
    attempts = []
    for spelled_names in spelled:
        if cut > len(spelled_names.common):
            continue
        ending = partial(files.ending, spelling=spelled_names.spelling)
        attempt = _Attempt(spelled_names.match(cut, ending), spelled_names, cut=cut)
        attempts.append(attempt)
        if len(attempt.match.files) == len(files.paths):
            break
    return max(attempts, key=lambda attempt: len(attempt.match.files))


def _is_contradicted(attempt: _Attempt, paths: Mapping[Path, Parts]) -> bool:
    """Whether the folders that an attempt cuts from the names contradict that of a file."""
    if attempt.cut == 0:
        return False
    names = attempt.names
    prefix = names.common[: attempt.cut]
    for name, file in attempt.match.files.items():
        depth = len(names.parts[name]) - attempt.cut
        if contradicts(prefix, paths[file][:-depth], names.from_root):
            return True
    return False


def _shared(paths: Sequence[Parts]) -> Parts:
    """The folders that all paths begin with."""
    # in alphabetical order, the folders that the first and the last path share are those of all
    first = min(paths)
    last = max(paths)
    shared: list[str] = []
    for folder, other in zip(first[:-1], last[:-1], strict=False):
        if folder != other:
            break
        shared.append(folder)
    return tuple(shared)
