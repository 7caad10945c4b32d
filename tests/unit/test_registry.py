"""Names in files mean classes in the table, and nothing else."""

from __future__ import annotations

import pytest
from torch import nn

from dinoneck import PatchMeanHead, RegistryError, registry
from dinoneck.configured import Configured


class Mine(Configured, nn.Module):
    """Somebody's own module."""

    def __init__(self, width: int = 1) -> None:
        super().__init__()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OWN", {})


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


def test_own_classes(clean: None) -> None:
    with pytest.raises(RegistryError, match="register"):
        registry.name_of(Mine)
    registry.register("mine", Mine)
    registry.register("mine", Mine)
    assert registry.resolve("mine") is Mine
    assert registry.name_of(Mine) == "mine"
    assert "mine" in registry.names()


@pytest.mark.parametrize("name", ["Mine", "9a", "a-b", "a.b", "", "x" * 65])
def test_malformed_names(clean: None, name: str) -> None:
    with pytest.raises(RegistryError, match="no head_type"):
        registry.register(name, Mine)


def test_taken_names_and_unfit_classes(clean: None) -> None:
    with pytest.raises(RegistryError, match="taken"):
        registry.register("patch_mean", Mine)
    registry.register("mine", Mine)
    with pytest.raises(RegistryError, match="taken"):
        registry.register("mine", type("Other", (Mine,), {}))
    with pytest.raises(RegistryError, match="from_config"):
        registry.register("linear", nn.Linear)
