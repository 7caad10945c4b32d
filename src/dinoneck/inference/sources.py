"""Where heads come from: files, folders, published heads, the hub, checkpoints and modules."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from dinoneck.checkpoint.format import head_files
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.published.detectors import PublishedDetector
from dinoneck.published.loading import load_published
from dinoneck.published.table import is_published, row_named
from dinoneck.registry import DETECTORS
from dinoneck.runtime.names import is_exported

NO_KEY = ""
"""The key of heads that are not in a mapping; those of a mapping are not empty."""

HeadSource = str | os.PathLike[str] | HeadCheckpoint | nn.Module
Heads = HeadSource | Sequence[HeadSource]


def open_heads(
    heads: Heads | Mapping[str, Heads],
    revision: str | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> dict[str, list[HeadCheckpoint | nn.Module]]:
    """Read and check heads by their keys; the key of heads that are not in a mapping is :data:`NO_KEY`.

    Args:
        heads: as a :class:`dinoneck.Predictor` takes them. A folder without ``head.safetensors``
            stands for all head files in it, sorted by name.
        revision: branch, tag or commit of the hub repositories among them.
        weights: the local file of the one published head among them, or of several that one file
            holds, or its folder.

    Raises:
        CheckpointError: if there are none, one cannot be read, a revision is given for a path, or
            ``weights`` and the published heads are none, or of several files.
        ConfigError: for keys that are not texts, for what is neither a head nor a list, and for a
            detector among several.
    """
    has_weights = weights is not None
    sources_by_key = _sources_by_key(heads, has_weights)
    published = _published_among(sources_by_key, has_weights)
    files = {row_named(str(name)).url for name in published}
    if has_weights and len(files) != 1:
        raise CheckpointError(
            f"{weights} is the file of one published head; the heads name {published or 'none'}"
        )
    num_heads = sum(map(len, sources_by_key.values()))
    if num_heads > 1 and any(_is_published_detector(source, has_weights) for source in published):
        raise _detector_among(num_heads)  # before any file is fetched
    opened: dict[str, list[HeadCheckpoint | nn.Module]] = {}
    _check_none_is_exported(sources_by_key)
    for key, sources in sources_by_key.items():
        opened[key] = [_open(source, revision, weights) for source in sources]
    _check_detector_is_alone(opened)
    return opened


def _sources_by_key(
    heads: Heads | Mapping[str, Heads], has_weights: bool
) -> dict[str, list[HeadSource]]:
    if not isinstance(heads, Mapping):
        return {NO_KEY: _list_sources(heads, has_weights)}
    if not heads or not all(isinstance(key, str) and key for key in heads):
        raise ConfigError(
            f"the keys of heads are {[*heads]}; expected at least one text, none of them empty"
        )
    sources_by_key = {}
    for key, heads_of_key in heads.items():
        sources_by_key[key] = _list_sources(heads_of_key, has_weights)
    return sources_by_key


def _list_sources(heads: Any, has_weights: bool) -> list[HeadSource]:
    """One source per head: a folder of head files becomes its files."""
    if isinstance(heads, Mapping):
        raise ConfigError(
            f"heads are a mapping of {', '.join(map(str, heads))}; expected a list, or one head"
        )
    if isinstance(heads, str | os.PathLike | HeadCheckpoint | nn.Module):
        heads = [heads]
    if not isinstance(heads, Iterable):
        raise ConfigError(
            f"heads are {heads!r}; expected a head, a head file, or a list or mapping of them"
        )
    sources: list[HeadSource] = []
    for source in heads:
        is_folder = isinstance(source, str | os.PathLike) and os.path.isdir(source)  # noqa: PTH112 - never raises
        if is_folder and not is_published(source, has_weights=has_weights):
            sources += head_files(source)
        else:
            sources.append(source)
    if not sources:
        raise CheckpointError("no heads were given")
    return sources


def names_detector(heads: Heads | Mapping[str, Heads], *, has_weights: bool = False) -> bool:
    """Whether heads are the name of a published detector, or hold it; no file is read or fetched.

    Args:
        heads: as of :func:`open_heads`.
        has_weights: whether the file of a published head is named beside them.

    Raises:
        CheckpointError: for a name that is a path too, without such a file, or almost that of a
            published head.
    """
    if isinstance(heads, Mapping):
        return any(names_detector(head, has_weights=has_weights) for head in heads.values())
    if isinstance(heads, Sequence) and not isinstance(heads, str):
        return any(_is_published_detector(head, has_weights) for head in heads)
    return _is_published_detector(heads, has_weights)


def _is_published_detector(source: object, has_weights: bool) -> bool:
    if not is_published(source, has_weights=has_weights):
        return False
    return isinstance(row_named(str(source)), PublishedDetector)


def _check_none_is_exported(sources_by_key: Mapping[str, Sequence[HeadSource]]) -> None:
    """Raise a ConfigError for an exported file among heads: it has a runtime and no backbone of its own."""
    for sources in sources_by_key.values():
        for source in sources:
            if is_exported(source):
                raise ConfigError(
                    f"{source} is an exported file, which predicts alone: Predictor({str(source)!r}), "
                    "without keys, other heads or a backbone; for several heads export one of "
                    "them all, or take the head files"
                )


def _published_among(
    sources_by_key: Mapping[str, Sequence[HeadSource]], has_weights: bool
) -> list[HeadSource]:
    """The published heads; a name that is almost one is refused here, before any file is read."""
    published: list[HeadSource] = []
    for sources in sources_by_key.values():
        for source in sources:
            if is_published(source, has_weights=has_weights):
                published.append(source)
    return published


def _open(
    source: HeadSource, revision: str | None, weights: str | os.PathLike[str] | None
) -> HeadCheckpoint | nn.Module:
    """A path, a published head or a hub repository as a checkpoint; others as they are."""
    if not isinstance(source, str | os.PathLike):
        return source
    if is_published(source, has_weights=weights is not None):
        return load_published(str(source), weights=weights, revision=revision)
    return HeadCheckpoint.load(source, revision=revision)


def _check_detector_is_alone(
    opened: Mapping[str, Sequence[HeadCheckpoint | nn.Module]],
) -> None:
    head_types: list[str] = []
    for heads in opened.values():
        head_types += [getattr(head, "head_type", "") for head in heads]
    if len(head_types) > 1 and not DETECTORS.isdisjoint(head_types):
        raise _detector_among(len(head_types))


def _detector_among(num_heads: int) -> ConfigError:
    """The error for a detector that is not alone."""
    return ConfigError(
        f"{num_heads} heads are given, a detector among them; expected a detector alone, or none"
    )
