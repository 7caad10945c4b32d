"""Names in files mean classes in the table, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

import dinoneck
from dinoneck import PatchMeanHead, registry
from dinoneck.configured import Configured


class Mine(Configured, nn.Module):
    """A user's own module."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()


def test_every_name_resolves_to_the_class_that_has_it() -> None:
    for name in registry.names():
        assert registry.name_of(registry.resolve(name)) == name
    assert registry.resolve("patch_mean") is PatchMeanHead


@pytest.mark.parametrize("how", [lambda: dinoneck.register(Mine), lambda: registry.register(Mine, name="mine")])
def test_own_classes(how: Callable[[], type]) -> None:
    assert how() is Mine
    assert how() is Mine, "again is fine"
    assert registry.resolve("mine") is Mine
    assert registry.name_of(Mine) == "mine"
    assert "mine" in registry.names()


@pytest.mark.parametrize(("written", "name"), [("MyHead", "my_head"), ("_MyFPNHead2", "my_fpn_head2")])
def test_the_default_name_is_the_class_in_snake_case(written: str, name: str) -> None:
    cls = dinoneck.register(type(written, (Mine,), {}))
    assert registry.name_of(cls) == name


def test_a_class_defined_again_replaces_the_earlier_one() -> None:
    def cell() -> type:
        @dinoneck.register
        class Cell(Mine):
            """As in a notebook."""

        return Cell

    cell()
    again = cell()
    assert registry.resolve("cell") is again
