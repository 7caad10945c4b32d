"""Which categories of a COCO JSON are the classes that a user or a head names."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from dinoneck.data.cells import check_unique, strip_cell
from dinoneck.data.coco_entries import CocoCategory, Id
from dinoneck.data.names import composed
from dinoneck.errors import DataError
from dinoneck.text import did_you_mean, some_of

logger = logging.getLogger(__name__)

_SEPARATORS = str.maketrans("_-", "  ")  # of words in a name
_SHOWN_NAMES = 5  # in a message


def choose_classes(
    classes: Sequence[str] | None,
    categories: Sequence[CocoCategory],
    file: Path,
    *,
    allow_unlisted: bool = False,
) -> dict[str, Id | None]:
    """Return the names of the classes and their category ids, in the order of the labels.

    Names are composed (NFC), as those of the categories are, and then compared. A class that the
    file lacks is taken for the only category that differs from it in nothing but case and blanks,
    which a warning states.

    Args:
        classes: names in the order of their labels; None = all, by ascending category id.
        categories: those of the file.
        file: what messages name.
        allow_unlisted: whether the file may lack some of the classes, which have the id None and
            are named in a warning. It must not have others then: those may be the same ones.

    Raises:
        DataError: if ``classes`` is no list of names, is empty, or names a category twice or one
            that the file does not have; with ``allow_unlisted`` if it has none of them, or others.
    """
    id_of = {
        category.name: category.id for category in sorted(categories, key=lambda entry: entry.id)
    }
    if classes is None:
        return dict(id_of)
    if isinstance(classes, str) or not len(classes):
        raise DataError(
            f"classes is {classes!r}; expected a list of one or more of {', '.join(id_of)}"
        )
    classes = [composed(name) if isinstance(name, str) else name for name in classes]
    check_unique(classes, "classes: the name", "name each once")
    category_of = _match_names(classes, id_of, file)
    unlisted = [name for name in classes if name not in category_of]
    if unlisted:
        others = [name for name in id_of if name not in category_of.values()]
        hint = did_you_mean(unlisted[0], others)
        if not allow_unlisted:
            raise DataError(
                f"classes: {file} has no category {unlisted[0]!r}.{hint} It has "
                f"{some_of(id_of, 20)}; add {unlisted[0]!r} to the categories of the file, or leave it "
                "out of the classes"
            )
        if not category_of:
            raise DataError(
                f"classes: {file} has none of the classes, such as {unlisted[0]!r}.{hint} It has "
                f"{some_of(id_of, 20)}; pass the file of these classes, or write their names in it"
            )
        if others:
            raise DataError(
                f"classes: {file} has no category {unlisted[0]!r}, and others that are not among the "
                f"classes, {some_of(map(repr, others), _SHOWN_NAMES)}: they may be the same ones."
                f"{hint} Write the names of the classes in the file, or take the others out of its "
                "categories"
            )
        logger.warning(
            "%s lists no category %s: predictions of it are not scored",
            file,
            some_of(map(repr, unlisted), _SHOWN_NAMES),
        )
    chosen: dict[str, Id | None] = dict.fromkeys(classes)
    for name, category in category_of.items():
        chosen[name] = id_of[category]
    return chosen


def _match_names(classes: Sequence[str], names: Iterable[str], file: Path) -> dict[str, str]:
    """Class -> the name of its category in the file, of the classes that have one."""
    exact = {name: name for name in classes if name in names}
    if len(exact) == len(classes):
        return exact
    categories_of: dict[str, list[str]] = {}  # without case and blanks -> names of categories
    for name in names:
        categories_of.setdefault(without_case_and_blanks(name), []).append(name)
    num_classes_of = Counter(map(without_case_and_blanks, classes))
    matched = {}
    for name in classes:
        if name in exact:
            matched[name] = name
            continue
        key = without_case_and_blanks(name)
        categories = categories_of.get(key, [])
        is_one_to_one = len(categories) == 1 and num_classes_of[key] == 1
        if is_one_to_one:
            matched[name] = categories[0]
    other = [f"{name!r} is {category!r}" for name, category in matched.items() if name != category]
    if other:
        logger.warning(
            "%s: names of classes are compared without case and blanks: %s",
            file,
            some_of(other, _SHOWN_NAMES),
        )
    return matched


def without_case_and_blanks(name: str) -> str:
    """Return a name in lower case, with single blanks, and no blanks or invisible marks at its ends.

    An é is one character, however it is written (NFC).
    """
    return " ".join(composed(strip_cell(name)).split()).casefold()


def without_separators(name: str) -> str:
    """Return :func:`without_case_and_blanks` of a name in which ``_`` and ``-`` are blanks."""
    return without_case_and_blanks(name.translate(_SEPARATORS))
