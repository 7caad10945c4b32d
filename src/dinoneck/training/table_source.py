"""The images of a table among the tokens of a larger source, such as a feature store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from dinoneck.errors import ConfigError, DataError
from dinoneck.tokens import Tokens
from dinoneck.training.matching import SourceIds
from dinoneck.training.sources import Flips, TokenSource, record_of


class TableSource:
    """A source whose ids are a table's, in the table's order; tokens come from a source that holds at least these.

    An image's id in a feature store is its path without the suffix, relative to the folder that was extracted. A table
    may name its images with suffixes, and from further up (``train/a.jpg`` for ``a``): the same number of leading
    folders is left out of all names, as few as it takes.

    Args:
        source: tokens by its own ids, with ``patterns`` where it has several per photo.
        names: the table's ids: paths of photos.
        patterns: only the source's first patterns are used, this many; None = all.

    Attributes:
        own_ids: id of the table -> the source's own.
        dropped: the leading folders that are left out, as the first name has them; empty for none.

    Raises:
        DataError: if the source lacks a photo, or two names come to one of its ids.
        ConfigError: if the source has fewer patterns.
    """

    def __init__(self, source: TokenSource, names: Sequence[str], patterns: int | None = None) -> None:
        own = getattr(source, "patterns", None)
        count = 1 if own is None else len(own)
        if patterns is not None and patterns > count:
            raise ConfigError(
                f"{patterns} augmentation patterns are asked for (dataset.num_aug_patterns) and the store has "
                f"{count}; extract the photos with more, or ask for fewer"
            )
        self.source = source
        self.ids = tuple(names)
        self.patterns = None if own is None else FirstPatterns(own, patterns or count)
        found, folders = _matched(names, source.ids)
        self.own_ids = dict(zip(self.ids, found, strict=True))
        self.dropped = "/".join(PurePosixPath(self.ids[0]).parts[:folders]) if self.ids else ""

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these of the table's ids; without ``patterns`` pattern 0, the photo as it is."""
        unknown = [name for name in ids if name not in self.own_ids]
        if unknown:
            raise DataError(f"{len(unknown)} ids are not in this table, the first is {unknown[0]!r}")
        return self.source.batch([self.own_ids[name] for name in ids], [0] * len(ids) if patterns is None else patterns)

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells the tokens of these ids from others; None = of all."""
        return record_of(self.source, [self.own_ids[name] for name in (self.ids if ids is None else ids)])


class FirstPatterns:
    """The first few of a source's augmentation patterns.

    Args:
        patterns: all of them.
        count: how many are used.
    """

    def __init__(self, patterns: Flips, count: int) -> None:
        self._patterns, self._count = patterns, count

    def __len__(self) -> int:
        return self._count

    def flips(self, i: int) -> tuple[bool, bool]:
        """Return whether pattern i flips left and right, top and bottom."""
        return self._patterns.flips(i)


def _matched(names: Sequence[str], known: Sequence[str]) -> tuple[list[str], int]:
    """The source's id of each name, and how many leading folders of the names were left out."""
    spelling = SourceIds(known)
    paths = [PurePosixPath(name).parts for name in names]
    fewest = min((len(parts) for parts in paths), default=1)
    best: list[str] = []
    for dropped in range(max(fewest, 1)):
        pairs = [(name, spelling.find("/".join(parts[dropped:]))) for name, parts in zip(names, paths, strict=True)]
        missing = [name for name, found in pairs if found is None]
        if not missing:
            _refuse_doubles(pairs)
            return [found for _, found in pairs if found is not None], dropped
        best = missing if not best or len(missing) < len(best) else best
    shown = ", ".join(repr(own) for own in sorted(known)[:3])
    raise DataError(
        f"{len(best)} of {len(names)} photos of the table are not in the store, the first is {best[0]!r}. The store's "
        f"{len(known)} ids are paths without suffix, such as {shown or 'none'}. Extract the photos that are missing "
        "(dinoneck extract PHOTOS --out STORE, with the options that made it, adds them), or remove the rows"
    )


def _refuse_doubles(pairs: Sequence[tuple[str, str | None]]) -> None:
    first: dict[str | None, str] = {}
    for name, own in pairs:
        if (other := first.setdefault(own, name)) != name:
            raise DataError(f"the table's photos {other!r} and {name!r} are both {own!r} in the store; keep one row")
