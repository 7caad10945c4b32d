"""What every head has in common: tasks, outputs by task name in model space, ``predict`` in natural units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.layers.intake import sequences
from dinoneck.layers.mixture import Mixture
from dinoneck.layers.origin import Origin
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens


class Head(Configured, nn.Module):
    """A module that turns Tokens into one tensor per task.

    ``forward(tokens)`` returns ``{task name: (B, dim)}`` in model space, ``(B, dim, rows, cols)`` for the kinds that
    answer per cell (dense, segmentation); ``predict(tokens)`` the same in natural units; ``predict_maps(tokens)``,
    where a head has maps, ``{task name: (B, dim, rows, cols)}`` in natural units.

    Attributes:
        expects: the backbone record of the file that the head was loaded from; Tokens that differ from it are refused.
            None takes any. It is no part of the configuration or the weights.
    """

    tasks: tuple[Task, ...]
    embed_dim: int
    expects: Origin | None = None

    def check_origin(self, tokens: Tokens) -> None:
        """Refuse tokens of another backbone than the one in the head's file.

        Raises:
            BackboneError: naming what differs.
        """
        if self.expects is not None:
            self.expects.check(tokens, type(self).__name__, getattr(self, "layer_indices", None))

    def mixed(self, tokens: Tokens, mixture: Mixture) -> dict[str, Tensor]:
        """Return what ``forward`` says of mixed samples.

        Heads whose first steps are linear override it and mix behind them, which is the same and takes less.
        """
        outputs: dict[str, Tensor] = self(mixture.of(tokens))
        return outputs

    def natural(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return what ``forward`` says in natural units, with gradients where they are enabled."""
        outputs = self(tokens)
        return {task.name: task.predict(outputs[task.name]) for task in self.tasks}

    @torch.no_grad()
    def predict(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return what ``forward`` says in natural units (probabilities for classes and ratios)."""
        return self.natural(tokens)

    @torch.no_grad()
    def predict_maps(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim, rows, cols)}`` in natural units; empty for a head without maps."""
        return {}

    def _sequence(self, tokens: Tokens) -> Tensor:
        """The whole last sequence (B, P + N, C), checked against what this head was built for and trained on."""
        sequence = sequences(tokens, self, self.embed_dim)[-1]
        self.check_origin(tokens)
        return sequence
