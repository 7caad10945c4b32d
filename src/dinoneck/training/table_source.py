"""The images of a table among the tokens of a larger source, such as a feature store."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from dinoneck.errors import ConfigError, DataError
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.images import check_unchanged
from dinoneck.training.matching import SourceIds
from dinoneck.training.sources import SomeTokens, TokenSource, Views
from dinoneck.training.table import Table

logger = logging.getLogger(__name__)


class TableSource(SomeTokens):
    """A source whose ids are a table's, in the table's order; tokens come from a source that holds at least these.

    An image's id in a feature store is its path without the suffix, relative to the folder that was extracted. A table
    may name its images with suffixes, and from further up (``train/a.jpg`` for ``a``): the same number of leading
    folders is left out of all names, as few as possible.

    Args:
        source: tokens by its own ids, with ``views`` where it has several views per image.
        names: the table's ids: paths of images.
        views: only the source's first augmented views are used, this many; None = all.

    Raises:
        DataError: if the source lacks an image, or two names match one of its ids.
        ConfigError: if the source has fewer views.
    """

    def __init__(self, source: TokenSource, names: Sequence[str], views: int | None = None) -> None:
        super().__init__(source, names, _matched(names, source.ids))
        count = 1 if self.views is None else len(self.views)
        if views is not None and views > count:
            raise ConfigError(
                f"views is {views} (--views) and the store has {count} augmented views; extract the images with "
                "more, or ask for fewer"
            )
        if views is not None and self.views is not None:
            self.views = Views(views, self.views.flips)


def compare_images(store: FeatureStore, ids: Collection[str], files: Mapping[str, Path]) -> None:
    """Refuse images whose files are not those that a store's tokens were extracted from.

    Sizes and times are compared, and the bytes where these differ. A warning states how many images were compared where
    files are not at hand. A store that was converted from features knows no images.

    Args:
        store: the feature store.
        ids: the store's ids of the images that are used.
        files: id -> the image's file, which need not exist.

    Raises:
        StoreError: naming the images that were replaced.
        DataError: if a file cannot be read.
    """
    knows_images = store.backbone_record.get("layers") is not None
    there = {name: file for name, file in files.items() if knows_images and file.is_file()}
    check_unchanged(there.items(), store.entries)
    if len(there) < len(ids):
        logger.warning(
            "%s: of %d images, the files of %d were compared with those that the store %s was extracted from. To "
            "compare them all, name their folder (--images, read_table(images=))",
            "the images were compared in part" if there else "nothing was compared",
            len(ids),
            len(there),
            store.path,
        )


def compare_table(store: FeatureStore, table: Table, ids: Collection[str]) -> None:
    """Compare the images of a table, some of them by the store's ids, as :func:`compare_images` does."""
    spelling, used = SourceIds(store.ids), set(ids)
    pairs = [(spelling.find(name), image) for name, image in zip(table.ids, table.images, strict=True)]
    files = {own: Path(image) for own, image in pairs if own in used and isinstance(image, str | os.PathLike)}
    compare_images(store, used, files)


def _matched(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The source's id of each name; the same number of leading folders is left out of all names."""
    spelling = SourceIds(known)
    paths = [PurePosixPath(name).parts for name in names]
    fewest = min((len(parts) for parts in paths), default=1)
    best: list[str] = []
    for dropped in range(max(fewest, 1)):
        pairs = [(name, spelling.find("/".join(parts[dropped:]))) for name, parts in zip(names, paths, strict=True)]
        missing = [name for name, found in pairs if found is None]
        if not missing:
            _refuse_doubles(pairs)
            return [found for _, found in pairs if found is not None]
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
