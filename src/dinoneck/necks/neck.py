"""What every neck has in common: Tokens in, a FeaturePyramid out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from dinoneck import registry
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, RegistryError
from dinoneck.layers.intake import sequences
from dinoneck.layers.mixture import Mixture
from dinoneck.tokens import FeaturePyramid, Tokens


class Neck(Configured, nn.Module, ABC):
    """A module that turns Tokens into a :class:`dinoneck.FeaturePyramid`.

    Attributes:
        embed_dim: channels of the tokens.
        num_layers: layers of the tokens it reads; None = the last one of however many.
        patch_size: pixels per patch.
        out_channels: channels of every level.
        strides: image pixels per cell of every level, fine to coarse.
        needs_images: whether ``forward`` needs the images beside the tokens.
    """

    embed_dim: int
    num_layers: int | None
    patch_size: int
    out_channels: int
    strides: tuple[float, ...]
    needs_images: bool = False

    @abstractmethod
    def forward(self, tokens: Tokens, images: Tensor | None = None) -> FeaturePyramid:
        """Return the pyramid of a batch."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw the weights anew."""

    def mixed(self, tokens: Tokens, mixture: Mixture, images: Tensor | None = None) -> FeaturePyramid:
        """Return the pyramid of mixed samples; necks that begin with a linear layer override it and mix behind it."""
        found: FeaturePyramid = self(mixture.of(tokens), images)
        return found

    def _sequences(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """The whole sequences (B, P + N, C) it reads, checked against what it was built for."""
        found = sequences(tokens, self, self.embed_dim, num_layers=self.num_layers, patch_size=self.patch_size)
        return found if self.num_layers is not None else found[-1:]


def neck_named(name: Any, told: Any = None) -> type[Neck]:
    """Return the neck registered under a name.

    Args:
        name: as in :mod:`dinoneck.registry`.
        told: what the message quotes where nothing is registered; None = the name.

    Raises:
        ConfigError: if nothing is, or no neck.
    """
    try:
        cls = registry.resolve(name)
    except RegistryError as error:
        raise ConfigError(f"neck is {(name if told is None else told)!r}: {error}") from None
    if not issubclass(cls, Neck):
        raise ConfigError(f"neck is {name!r}, which is {cls.__name__} and no neck")
    return cls
