"""Match the ids of tables, folders and calls with those of a token source."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from dinoneck.data.arrays import by_id, class_codes
from dinoneck.data.walk import SUFFIXES
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

_ANY = "/"  # stands for any suffix: no id ends like this


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
        self._named = defaultdict[str, list[str]](list)
        for image_id in ids:
            stem, suffix = _stem_and_suffix(image_id)
            for name in (stem + suffix, stem + _ANY):
                self._named[name].append(image_id)

    def find(self, image_id: Any) -> str | None:
        """Return the source's spelling of an id; None if it is not there.

        Raises:
            DataError: if several ids of the source fit.
        """
        if image_id in self.ids or not isinstance(image_id, str):
            return image_id if image_id in self.ids else None
        stem, suffix = _stem_and_suffix(image_id)
        fitting = self._named.get(stem + suffix) or self._named.get(
            stem if suffix else stem + _ANY, []
        )
        if len(fitting) > 1:
            raise DataError(
                f"id {image_id!r} may be {some_of(map(repr, fitting), 3)}; write it with its suffix"
            )
        return fitting[0] if fitting else None

    def all_of(self, ids: Iterable[Any], remedy: str = "") -> list[str]:
        """Return the source's spelling of ids.

        Args:
            ids: of the source, in either spelling.
            remedy: follows the message that names those without tokens.

        Raises:
            DataError: naming those that have no tokens.
        """
        spelt = {image_id: self.find(image_id) for image_id in ids}
        if missing := [repr(image_id) for image_id, spelling in spelt.items() if spelling is None]:
            raise DataError(
                f"{counted(len(missing), 'id')} without tokens in the source: "
                f"{some_of(missing, 3)}. The ids of the source are such as "
                f"{some_of(map(repr, self.ids), 3) or 'none'}; those of a store are paths below "
                f"the root of its extraction (--root){remedy}"
            )
        return [spelling for spelling in spelt.values() if spelling is not None]

    def columns(
        self, table: Any, ids: Sequence[Any] | None, names: Collection[str]
    ) -> dict[str, dict[Any, Any]]:
        """Return column -> id -> value for the columns of these names.

        Raises:
            DataError: as :func:`by_id`, or for a table of another type or without one of the
                columns.
        """
        if not hasattr(table, "keys"):
            raise DataError(
                f"the targets are {type(table).__name__}; expected a DataFrame, or name -> {{id: "
                "value}"
            )
        absent = [name for name in names if name not in table]
        if absent:
            raise DataError(
                f"there are no targets for {absent[0]!r}; given: "
                f"{', '.join(map(str, table)) or 'none'}"
            )
        classes = names if isinstance(names, dict) else {}
        columns = {name: class_codes(table[name], name, classes.get(name, ())) for name in names}
        return {
            name: by_id(x, repr(name), ids, lambda key: self.find(key) or key)
            for name, x in columns.items()
        }


def _stem_and_suffix(image_id: str) -> tuple[str, str]:
    """``train/a`` (NFC) and ``.JPG`` of ``train/a.JPG``."""
    name = unicodedata.normalize("NFC", image_id)
    suffix = PurePosixPath(name).suffix
    return (name.removesuffix(suffix), suffix) if suffix.lower() in SUFFIXES else (name, "")
