"""What every head has in common: tasks, outputs by task name in normalised units, ``predict`` in original units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack, get_args

import torch
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.grid import PatchSize
from dinoneck.layers.blocks import reset
from dinoneck.layers.inputs import Origin, Plain, TokensLike, as_tokens, check_tokens
from dinoneck.losses.composition import Composition, outputs_of
from dinoneck.tasks import Kind, Task, check_tasks
from dinoneck.tokens import Tokens


class Head(Configured, nn.Module):
    """A module that turns Tokens, or plain tensors, into one tensor per task.

    Every method that takes Tokens also takes (B, P + N, C) tensors with ``grid=(rows, cols)`` (and
    ``num_prefix_tokens=`` or ``cls_token=``), maps (B, C, rows, cols), or a list of tensors, one per layer.
    ``forward(tokens)`` returns ``{task name: (B, dim)}`` in normalised units, ``(B, dim, rows, cols)`` for kinds that
    predict per cell (dense, segmentation); ``predict(tokens)`` the same in original units and ``{composition name:
    (B, its outputs)}``; ``predict_maps(tokens)``, where a head has maps, ``{task name: (B, dim, rows, cols)}`` in
    original units.

    Attributes:
        trained_on: which tokens the head was trained on, from the backbone record of the file it was loaded from;
            Tokens that differ are refused. None takes any. It is not part of the configuration or the weights.
    """

    omitted_arguments: ClassVar[tuple[str, ...]] = ("compositions",)
    tasks: tuple[Task, ...]
    compositions: tuple[Composition, ...] = ()
    embed_dim: int
    trained_on: Origin | None = None

    def _set_tasks(self, tasks: Sequence[Task], compositions: Sequence[Composition], *kinds: Kind) -> None:
        """Check and keep what the head predicts; no ``kinds`` = tasks of any kind."""
        self.tasks = check_tasks(tasks, kinds=kinds or get_args(Kind), owner=type(self).__name__)
        self.compositions = tuple(compositions)
        outputs_of(self.tasks, self.compositions, type(self).__name__)  # refuses those that do not fit

    def check_origin(self, tokens: Tokens) -> None:
        """Refuse tokens of another backbone than the one that the head was trained on.

        Raises:
            BackboneError: naming what differs.
        """
        if self.trained_on is not None:
            self.trained_on.check(tokens, type(self).__name__, getattr(self, "layer_indices", None))

    def reset_parameters(self) -> None:
        """Re-initialise the weights. A class with parameters of its own, outside of modules, overrides this."""
        for module in self.children():
            reset(module)

    @property
    def predicted(self) -> tuple[Task, ...]:
        """What ``predict`` returns: the tasks, then one :class:`dinoneck.losses.Composed` per composition."""
        return outputs_of(self.tasks, self.compositions, type(self).__name__)

    def natural(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return predictions in original units, with gradients where they are enabled."""
        outputs = self(tokens, **plain)
        values = {task.name: task.predict(outputs[task.name]) for task in self.tasks}
        composed = {own.name: own.of(values) for own in self.compositions}
        return values | composed

    @torch.no_grad()
    def predict(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return predictions in original units (probabilities for classes and ratios), and what is composed of them."""
        return self.natural(tokens, **plain)

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim, rows, cols)}`` in original units; empty for a head without maps."""
        return {}

    @property
    def _patch_size(self) -> PatchSize:
        """Pixels per patch of plain tensors."""
        return (self.trained_on.patch_size if self.trained_on else None) or 16

    def _tokens(self, tokens: TokensLike, **plain: Unpack[Plain]) -> Tokens:
        """Tokens, of plain tensors too, checked against what this head was built for and trained on."""
        tokens = as_tokens(tokens, **plain, patch_size=self._patch_size, owner=self)
        self.check_origin(check_tokens(tokens, self, self.embed_dim))
        return tokens
