"""What every head has in common: tasks, outputs by task name in model space, ``predict`` in natural units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.errors import ShapeError
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens


class Head(Configured, nn.Module):
    """A module that turns Tokens into one tensor per task.

    ``forward(tokens)`` returns ``{task name: (B, dim)}`` in model space; ``predict(tokens)`` the same in natural
    units; ``predict_maps(tokens)``, where a head has maps, ``{task name: (B, dim, rows, cols)}`` in natural units.
    """

    tasks: tuple[Task, ...]
    embed_dim: int

    def natural(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}`` in natural units, with gradients where they are enabled."""
        outputs = self(tokens)
        return {task.name: task.predict(outputs[task.name]) for task in self.tasks}

    @torch.no_grad()
    def predict(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}`` in natural units (probabilities for classes and ratios)."""
        return self.natural(tokens)

    @torch.no_grad()
    def predict_maps(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim, rows, cols)}`` in natural units; empty for a head without maps."""
        return {}

    def _sequence(self, tokens: Tokens) -> Tensor:
        """The whole last sequence (B, P + N, C), checked against the width this head was built for."""
        if not isinstance(tokens, Tokens):
            raise ShapeError(
                f"{type(self).__name__} takes Tokens, got {type(tokens).__name__}; use backbone(images), "
                "Tokens.from_sequence or Tokens.from_patches"
            )
        sequence = tokens.sequence[-1]
        if sequence.shape[-1] != self.embed_dim:
            raise ShapeError(
                f"the tokens have {sequence.shape[-1]} channels, this {type(self).__name__} was built for "
                f"{self.embed_dim}: it belongs to another backbone"
            )
        own = next(self.parameters()).dtype
        if sequence.dtype != own and not torch.is_autocast_enabled(sequence.device.type):
            raise ShapeError(
                f"the tokens are {sequence.dtype}, this {type(self).__name__} is {own}: convert one of them "
                "(tokens.to(dtype=...)), or run under torch.autocast"
            )
        return sequence
