"""What every neck has in common: Tokens or plain tensors in, a FeaturePyramid out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Unpack

from torch import Tensor, nn

from dinoneck import registry
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, RegistryError
from dinoneck.layers.blocks import reset
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.tokens import FeaturePyramid


class Neck(Configured, nn.Module, ABC):
    """A module that turns Tokens into a :class:`dinoneck.FeaturePyramid`.

    Attributes:
        embed_dim: channels of the tokens.
        num_layers: layers of the tokens it reads; None = the last one of however many.
        patch_size: pixels per patch.
        out_channels: channels of every level.
        strides: image pixels per cell of every level, fine to coarse.
        needs_images: whether ``forward`` needs the images as well as the tokens.
    """

    embed_dim: int
    num_layers: int | None = None
    patch_size: int
    out_channels: int
    strides: tuple[float, ...]
    needs_images: bool = False

    @abstractmethod
    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Unpack[Plain]
    ) -> FeaturePyramid:
        """Return the pyramid of a batch.

        Args:
            tokens: Tokens of a backbone; (B, P + N, C) with ``grid``; maps (B, C, rows, cols); or a
                list of tensors, one per layer. A neck that reads one layer (``num_layers`` None)
                takes the last.
            images: normalised images (B, 3, height, width) that the tokens were made of, where the
                neck needs them.
            **plain: of plain tensors ``grid``, ``num_prefix_tokens`` and ``cls_token``, see
                :func:`dinoneck.layers.inputs.as_tokens`.
        """

    def reset_parameters(self) -> None:
        """Re-initialise the weights.

        A class that has parameters outside of its submodules overrides this.
        """
        for module in self.children():
            reset(module)


def neck_named(name: Any) -> type[Neck]:
    """Return the neck registered under a name, as in :mod:`dinoneck.registry`.

    Raises:
        ConfigError: if the name is not registered, or names another kind of module.
    """
    try:
        cls = registry.resolve(name)
    except RegistryError as error:
        raise ConfigError(f"neck {name!r}: {error}") from None
    if not issubclass(cls, Neck):
        raise ConfigError(f"neck {name!r} is {cls.__name__}; expected a subclass of Neck")
    return cls
