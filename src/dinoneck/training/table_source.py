"""The images of a table among the tokens of a larger source, such as a feature store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from dinoneck.errors import ConfigError, DataError
from dinoneck.training.matching import SourceIds
from dinoneck.training.sources import SomeTokens, TokenSource
from dinoneck.training.views import Views


class TableSource(SomeTokens):
    """A source whose ids are a table's, in the table's order; tokens come from a source that holds at least these.

    An image's id in a feature store is its path without the suffix, relative to the folder that was extracted. A table
    may name its images with suffixes, and from further up (``train/a.jpg`` for ``a``): the same number of leading
    folders is left out of all names, as few as possible.

    Args:
        source: tokens by its own ids, with ``views`` where it has several views per image.
        names: the table's ids: paths of images.
        views: only the source's first augmented views are used, this many; None = all.

    Attributes:
        dropped: the leading folders that are left out, as the first name has them; empty for none.

    Raises:
        DataError: if the source lacks an image, or two names match one of its ids.
        ConfigError: if the source has fewer views.
    """

    def __init__(self, source: TokenSource, names: Sequence[str], views: int | None = None) -> None:
        own, folders = _matched(names, source.ids)
        super().__init__(source, names, own)
        self.dropped = "/".join(PurePosixPath(self.ids[0]).parts[:folders]) if self.ids else ""
        count = 1 if self.views is None else len(self.views)
        if views is not None and views > count:
            raise ConfigError(
                f"views is {views} (--views) and the store has {count} augmented views; extract the images with "
                "more, or ask for fewer"
            )
        if views is not None and self.views is not None:
            self.views = Views(views, self.views.flips)


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
        f"{len(best)} of {len(names)} images of the table are not in the store, the first is {best[0]!r}. The store's "
        f"{len(known)} ids are paths without suffix, such as {shown or 'none'}. Extract the images that are missing "
        "(dinoneck extract IMAGES --out STORE, with the options that made it, adds them), or remove the rows"
    )


def _refuse_doubles(pairs: Sequence[tuple[str, str | None]]) -> None:
    first: dict[str | None, str] = {}
    for name, own in pairs:
        if (other := first.setdefault(own, name)) != name:
            raise DataError(f"the table's images {other!r} and {name!r} are both {own!r} in the store; keep one row")
