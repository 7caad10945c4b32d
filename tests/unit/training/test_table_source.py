"""A table's images are found in a larger store, each one its own; what is not there is named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dinoneck import ConfigError, DataError, Tokens
from dinoneck.data import Views
from dinoneck.training.source import TableTokens


class Numbered:
    """A store whose tokens state their id and view."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids, self.views = tuple(ids), Views.named("flips4")

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        marks = [100 * self.ids.index(name) + i for name, i in zip(ids, views or [0] * len(ids), strict=True)]
        return Tokens.from_patches(torch.tensor(marks).float().reshape(-1, 1, 1), grid=(1, 1), patch_size=16)


def tokens_of(known: Sequence[str], names: Sequence[str], views: int | None = None) -> TableTokens:
    store: Any = Numbered(known)
    return TableTokens(store, names, views)


def marks(tokens: Tokens) -> list[float]:
    return tokens.patches[0].flatten().tolist()


@pytest.mark.parametrize(
    ("known", "names", "own"),
    [
        (["x", "a", "b"], ["b.jpg", "a.JPG"], [2, 1]),
        (["x", "train/a", "train/b"], ["train/b.jpg", "./train/a.jpg"], [2, 1]),
        (["x", "a", "b"], ["train/b.jpg", "train/a.jpg"], [2, 1]),
        (["x", "b", "s/a", "t/a", "s/b"], ["train/s/b.png", "train/t/a.png"], [4, 3]),
        (["x", "b", "a.v2", "c"], ["b.jpg", "a.v2.jpg"], [1, 2]),
        (["plot", "plot.v1", "plot.v2"], ["train/plot.v2.jpg", "train/plot.v1"], [2, 1]),
    ],
)
def test_every_image_gets_its_own_tokens(known: list[str], names: list[str], own: list[int]) -> None:
    source = tokens_of(known, names)
    assert source.ids == tuple(names)
    assert marks(source.batch(names, [2, 1])) == [100 * own[0] + 2, 100 * own[1] + 1]
    assert marks(source.batch(names[::-1])) == [100 * own[1], 100 * own[0]]


@pytest.mark.parametrize(
    ("known", "names", "named"),
    [
        (["plot"], ["plot.v1.jpg", "plot.v2.jpg"], "2 of 2 .*'plot.v1.jpg'"),
        (["a", "b"], ["train/a.jpg", "train/c.jpg"], "1 of 2 .*'train/c.jpg'"),
        (["a", "b"], ["s/a.jpg", "t/a.jpg"], "s/a.jpg.*t/a.jpg"),
        (["a", "b"], ["a.jpg", "a"], "a, a.jpg"),
    ],
)
def test_what_is_not_there_or_not_one_image_is_named(known: list[str], names: list[str], named: str) -> None:
    with pytest.raises(DataError, match=named):
        tokens_of(known, names)


def test_only_the_first_views_are_used() -> None:
    every, two = (tokens_of(["a"], ["a.jpg"], count).views for count in (None, 2))
    assert (len(every), len(two)) == (4, 2)
    assert [two.flips(i) for i in range(2)] == [every.flips(i) for i in range(2)]
    with pytest.raises(ConfigError, match="20.* 4"):
        tokens_of(["a"], ["a.jpg"], 20)
