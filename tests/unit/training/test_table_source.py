"""A table's images are found in a larger source, each one its own; what is not there is named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from dinoneck import ConfigError, DataError, Tokens
from dinoneck.training.table_source import TableSource


class Turned(list[int]):
    """Views of which every second one flips."""

    def flips(self, i: int) -> tuple[bool, bool]:
        return i % 2 == 1, False


class Numbered:
    """Tokens whose values state their id and pattern."""

    def __init__(self, ids: Sequence[str], patterns: int = 3) -> None:
        self.ids, self.views = tuple(ids), Turned(range(patterns))

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        marks = [
            100 * self.ids.index(name) + pattern for name, pattern in zip(ids, patterns or [0] * len(ids), strict=True)
        ]
        return Tokens.from_patches(torch.tensor(marks).float().reshape(-1, 1, 1), grid=(1, 1), patch_size=16)


def marks(tokens: Tokens) -> list[float]:
    return tokens.patches[0].flatten().tolist()


@pytest.mark.parametrize(
    ("known", "names"),
    [
        (["x", "a", "b"], ["b.jpg", "a.JPG"]),
        (["x", "train/a", "train/b"], ["train/b.jpg", "./train/a.jpg"]),
        (["x", "a", "b"], ["train/b.jpg", "train/a.jpg"]),
        (["x", "b", "s/a", "t/a", "s/b"], ["train/s/b.png", "train/t/a.png"]),
        (["x", "b", "a.v2", "c"], ["b.jpg", "a.v2.jpg"]),
    ],
)
def test_every_image_gets_its_own_tokens(known: list[str], names: list[str]) -> None:
    source = TableSource(Numbered(known), names)
    assert source.ids == tuple(names)
    own = [next(i for i, k in enumerate(known) if n.rsplit(".", 1)[0].endswith(k)) for n in names]
    if known[1] == "b" and "s/b" in known:
        own = [4, 3]
    assert marks(source.batch(names, [2, 1])) == [100 * own[0] + 2, 100 * own[1] + 1]
    assert marks(source.batch(names[::-1])) == [100 * own[1], 100 * own[0]]


def test_only_the_suffix_of_an_image_is_left_out() -> None:
    known, names = ["plot", "plot.v1", "plot.v2"], ["train/plot.v2.jpg", "train/plot.v1"]
    assert marks(TableSource(Numbered(known), names).batch(names)) == [200, 100]
    with pytest.raises(DataError, match=r"2 of 2 images.*first is 'plot.v1.jpg'"):
        TableSource(Numbered(["plot"]), ["plot.v1.jpg", "plot.v2.jpg"])


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"1 of 2 images .*first is 'train/c.jpg'.*such as 'a', 'b'.*dinoneck extract"):
        TableSource(Numbered(["a", "b"]), ["train/a.jpg", "train/c.jpg"])
    with pytest.raises(DataError, match="'s/a.jpg' and 't/a.jpg' are both 'a' in the store"):
        TableSource(Numbered(["a", "b"]), ["s/a.jpg", "t/a.jpg"])
    with pytest.raises(DataError, match="1 ids are not in this source, the first is 'b'"):
        TableSource(Numbered(["a", "b"]), ["a.jpg"]).batch(["b"])


def test_only_the_first_patterns_are_used() -> None:
    every, two = (TableSource(Numbered(["a"], 5), ["a.jpg"], count).views for count in (None, 2))
    assert every is not None
    assert two is not None
    assert (len(every), len(two)) == (5, 2)
    assert [two.flips(i) for i in range(2)] == [(False, False), (True, False)]
    with pytest.raises(ConfigError, match="views is 20.*the store has 5"):
        TableSource(Numbered(["a"], 5), ["a.jpg"], 20)
