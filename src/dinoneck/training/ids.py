"""Match the ids of tables, folders and calls with those of a token source."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from dinoneck.data.arrays import by_id, class_codes
from dinoneck.data.listing import SUFFIXES
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

_ANY_SUFFIX = "/"  # stands for any suffix: no id ends like this


class IdMatcher:
    """Find the ids of a token source in the spelling of the source.

    An id with the suffix of an image (``a.jpg``) and the same without (``a``) are one id.

    The exact spelling goes first; where it is missing, the other one must be unambiguous. The
    Unicode forms NFC and NFD of a name, which file systems exchange, are one id.

    Args:
        ids: all ids of the source.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = set(ids)
        self._ids_of_name = defaultdict[str, list[str]](list)
        for image_id in ids:
            stem, suffix = _stem_and_suffix(image_id)
            for name in (stem + suffix, stem + _ANY_SUFFIX):
                self._ids_of_name[name].append(image_id)

    def find(self, image_id: Any) -> str | None:
        """Return the source's spelling of an id; None if it is not there.

        Raises:
            DataError: if several ids of the source fit.
        """
        if image_id in self.ids:
            spelling: str = image_id
            return spelling
        if not isinstance(image_id, str):
            return None
        stem, suffix = _stem_and_suffix(image_id)
        fitting = self._ids_of_name.get(stem + suffix)
        if not fitting:
            if suffix:  # a.jpg may be the source's a
                fitting = self._ids_of_name.get(stem)
            else:  # a may be the source's a.jpg
                fitting = self._ids_of_name.get(stem + _ANY_SUFFIX)
        if not fitting:
            return None
        if len(fitting) > 1:
            raise DataError(
                f"id {image_id!r} may be {some_of(map(repr, fitting), 3)}; write it with its suffix"
            )
        return fitting[0]

    def find_all(self, ids: Iterable[Any], remedy: str = "") -> list[str]:
        """Return the source's spelling of ids; an id that is repeated is returned once.

        Args:
            ids: of the source, in either spelling.
            remedy: follows the message that names those without tokens.

        Raises:
            DataError: naming those that have no tokens.
        """
        spellings = {image_id: self.find(image_id) for image_id in ids}
        missing = [repr(image_id) for image_id, spelling in spellings.items() if spelling is None]
        if missing:
            raise DataError(
                f"{counted(len(missing), 'id')} without tokens in the source: "
                f"{some_of(missing, 3)}. The ids of the source are such as "
                f"{some_of(map(repr, self.ids), 3) or 'none'}; those of a store are paths below "
                f"the root of its extraction (--root){remedy}"
            )
        return [spelling for spelling in spellings.values() if spelling is not None]

    def columns(
        self,
        table: Any,
        ids: Sequence[Any] | None,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, dict[Any, Any]]:
        """Return column -> id -> value for the columns that ``labels`` names.

        Args:
            table: a DataFrame whose index holds the ids, or a mapping column -> ``{id: value}``, a
                Series, or values that ``ids`` gives the ids of.
            ids: the ids of values that carry none.
            labels: column -> the words of its classes in order; empty where there are none. None =
                all columns of the table, without words.

        Raises:
            DataError: as :func:`by_id`, or for a table of another type or without one of the
                columns.
        """
        if not hasattr(table, "keys"):
            raise DataError(
                f"the targets are {type(table).__name__}; expected a DataFrame, or name -> {{id: "
                "value}"
            )
        if labels is None:
            labels = dict.fromkeys(table, ())
        absent = [name for name in labels if name not in table]
        if absent:
            raise DataError(
                f"there are no targets for {absent[0]!r}; given: "
                f"{', '.join(map(str, table)) or 'none'}"
            )
        values_of_columns = {}
        for name, words in labels.items():
            values_of_columns[name] = class_codes(table[name], name, words)
        columns = {}
        for name, values in values_of_columns.items():
            columns[name] = by_id(values, repr(name), ids, self._find_or_keep)
        return columns

    def _find_or_keep(self, image_id: Any) -> Any:
        """Return the source's spelling of an id; an id that it does not have stays as it is."""
        return self.find(image_id) or image_id


def _stem_and_suffix(image_id: str) -> tuple[str, str]:
    """Return ``train/a`` (NFC) and ``.JPG`` for ``train/a.JPG``; other suffixes belong to the stem."""
    name = unicodedata.normalize("NFC", image_id)
    suffix = PurePosixPath(name).suffix
    if suffix.lower() not in SUFFIXES:
        return name, ""
    return name.removesuffix(suffix), suffix
