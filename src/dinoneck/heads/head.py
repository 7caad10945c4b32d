"""What every head has in common: tasks, outputs by task name in model space, ``predict`` in original units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.layers.intake import sequences
from dinoneck.layers.mixture import Mixture
from dinoneck.layers.origin import Origin
from dinoneck.losses.composition import Composition, outputs_of
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens


class Head(Configured, nn.Module):
    """A module that turns Tokens into one tensor per task.

    ``forward(tokens)`` returns ``{task name: (B, dim)}`` in model space, ``(B, dim, rows, cols)`` for the kinds that
    predict per cell (dense, segmentation); ``predict(tokens)`` the same in original units and ``{composition name:
    (B, parts + sums)}``; ``predict_maps(tokens)``, where a head has maps, ``{task name: (B, dim, rows, cols)}`` in
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

    def check_origin(self, tokens: Tokens) -> None:
        """Refuse tokens of another backbone than the one that the head was trained on.

        Raises:
            BackboneError: naming what differs.
        """
        if self.trained_on is not None:
            self.trained_on.check(tokens, type(self).__name__, getattr(self, "layer_indices", None))

    @property
    def predicted(self) -> tuple[Task, ...]:
        """What ``predict`` returns: the tasks, then one :class:`dinoneck.losses.Composed` per composition."""
        return outputs_of(self.tasks, self.compositions, type(self).__name__)

    def mixed(self, tokens: Tokens, mixture: Mixture) -> dict[str, Tensor]:
        """Return the outputs of ``forward`` for mixed samples.

        Heads whose first steps are linear override it and mix behind them, which is the same and takes less.
        """
        outputs: dict[str, Tensor] = self(mixture.of(tokens))
        return outputs

    def natural(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return predictions in original units, with gradients where they are enabled."""
        return self._natural(self(tokens))

    def _natural(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of ``forward`` in original units, and what is composed of them."""
        values = {task.name: task.predict(outputs[task.name]) for task in self.tasks}
        composed = {own.name: own.of_shares(values[own.total], values[own.ratio]) for own in self.compositions}
        return values | composed

    @torch.no_grad()
    def predict(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return predictions in original units (probabilities for classes and ratios), and what is composed of them."""
        return self.natural(tokens)

    @torch.no_grad()
    def predict_maps(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim, rows, cols)}`` in original units; empty for a head without maps."""
        return {}

    def _sequence(self, tokens: Tokens) -> Tensor:
        """The whole last sequence (B, P + N, C), checked against what this head was built for and trained on."""
        sequence = sequences(tokens, self, self.embed_dim)[-1]
        self.check_origin(tokens)
        return sequence
