"""Names in files mean classes in the table, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

import dinoneck
from dinoneck import PatchMeanHead, RegistryError, registry
from dinoneck.configured import Configured


class Mine(Configured, nn.Module):
    """A user's own module."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()


def test_every_name_resolves_to_the_class_that_has_it() -> None:
    for name in registry.names():
        assert registry.name_of(registry.resolve(name)) == name
    assert registry.resolve("patch_mean") is PatchMeanHead


@pytest.mark.parametrize("name", ["patch_maen", "", 3, None, "os.system", "dinoneck.heads.patch_mean:PatchMeanHead"])
def test_unknown_names_are_refused(name: object) -> None:
    with pytest.raises(RegistryError, match="not registered"):
        registry.resolve(name)
    if name == "patch_maen":
        with pytest.raises(RegistryError, match=r"Did you mean 'patch_mean'\?"):
            registry.resolve(name)


@pytest.mark.parametrize("how", [lambda: dinoneck.register(Mine), lambda: registry.register(Mine, name="mine")])
def test_own_classes(how: Callable[[], type]) -> None:
    with pytest.raises(RegistryError, match=r"dinoneck\.register\(cls\)"):
        registry.name_of(Mine)
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


@pytest.mark.parametrize("name", ["Mine", "9a", "a-b", "a.b.c", "a.", "", "x" * 65])
def test_malformed_names(name: str) -> None:
    with pytest.raises(RegistryError, match="not a valid head_type"):
        registry.register(Mine, name=name)


def test_taken_names_and_unfit_classes() -> None:
    with pytest.raises(RegistryError, match="taken"):
        registry.register(Mine, name="patch_mean")
    registry.register(Mine)
    with pytest.raises(RegistryError, match="taken"):
        registry.register(type("Other", (Mine,), {}), name="mine")
    for unfit in (nn.Linear, UncertainRecord):
        with pytest.raises(RegistryError, match="records its configuration"):
            registry.register(unfit, name="linear")


class UncertainRecord(Configured):
    """A configuration, but no module."""


@pytest.mark.parametrize("wrong", [3, None, "mine", nn.Linear(1, 1)])
def test_what_is_not_a_class_is_refused(wrong: object) -> None:
    with pytest.raises(RegistryError, match="expected a class"):
        registry.register(wrong)  # type: ignore[type-var]
