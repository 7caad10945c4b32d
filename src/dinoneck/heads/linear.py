"""LinearHead: the linear probe, one linear layer per task on frozen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.codec import at_least
from dinoneck.grid import as_maps
from dinoneck.heads.head import Head, from_map, read_map, start, task_map
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task, activate, check_tasks
from dinoneck.tokens import Tokens

Pool = Literal["cls", "mean", "cls+mean"]


class LinearHead(Head):
    """One linear layer per task on pooled tokens, or on every patch: the linear probe, without norm or hidden layer.

    Prefer it as the baseline that a head with more layers must exceed, and where published linear probes are compared.

    Args:
        embed_dim: channels C of the tokens.
        tasks: with ``pool`` regression, ratio or classification tasks; with ``pool=None`` dense, density, segmentation
            or ratio tasks (a ratio's shares are averaged over patches), and regressions with ``from_map``.
        num_layers: layers L of the tokens.
        pool: what the layer reads. ``"cls"``: the CLS tokens of all layers; ``"mean"``: the mean over the patches of
            the last layer; ``"cls+mean"``: both, CLS first; None: the patches of all layers, one prediction per patch.
            Registers are never read.
        compositions: outputs computed from the tasks' predictions, see :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task: (B, dim)}`` with ``pool``. Without: ``{task: (B, dim, rows, cols)}`` for dense and
        segmentation, ``{task: (B, dim)}`` with the map as ``"task.map"`` for density and ratio.
        The weight of a task is (dim, parts * C), its columns in the order of the parts.

    Raises:
        ConfigError: if tasks repeat a name or are of a kind that ``pool`` does not give, or a size is not positive.
        ShapeError: if the tokens have another width or number of layers, or no CLS token where it is read.

    Examples:
        >>> head = LinearHead(64, [Task("state", dim=3, kind="classification")], num_layers=4)
        >>> layers = [torch.randn(2, 1 + 6, 64) for _ in range(4)]
        >>> head(layers, grid=(2, 3), num_prefix_tokens=1)["state"].shape
        torch.Size([2, 3])

    Reference: linear classification and segmentation in DINOv2 (arXiv 2304.07193): CLS tokens of one or four layers and
    the mean patch; patch tokens. Deviation: segmentation has no batch norm before the layer.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Sequence[Task],
        num_layers: int = 1,
        pool: Pool | None = "cls+mean",
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        at_least(1, embed_dim=embed_dim, num_layers=num_layers)
        self.embed_dim, self.pool = embed_dim, pool
        self.num_layers = self._takes_layers = num_layers
        own = [task for task in tasks if task.from_map is None or pool is not None]
        maps, values = ("dense", "density", "segmentation", "ratio"), ("regression", "ratio", "classification")
        check_tasks(own, kinds=maps if pool is None else values, owner=f"LinearHead(pool={pool!r})")
        self._set_tasks(tasks, compositions)
        parts = {None: num_layers, "cls": num_layers, "mean": 1, "cls+mean": num_layers + 1}[pool]
        layers = (nn.Linear(parts * embed_dim, task.dim, device=device, dtype=dtype) for task in own)
        self._own, self.readouts = own, nn.ModuleList(layers)
        self._start()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        self._start()

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the tasks' outputs in normalised units."""
        read = self._read(self._tokens(tokens, **plain))
        if self.pool is not None:
            return {task.name: value for task, value in read}
        outputs = {name: value for task, cells in read for name, value in read_map(task, cells).items()}
        return outputs | from_map(self.tasks, outputs)

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task: (B, dim, rows, cols)}`` in original units; empty for a head that pools."""
        if self.pool is not None:
            return {}
        return {task.name: task.predict_map(cells) for task, cells in self._read(self._tokens(tokens, **plain))}

    def _read(self, tokens: Tokens) -> list[tuple[Task, Tensor]]:
        """The tasks with a layer, and its results: (B, dim) pooled, else (B, dim, rows, cols)."""
        parts = self._parts(tokens)
        found = []
        for task, readout in zip(self._own, self.readouts, strict=True):
            value = activate(_product(cast("nn.Linear", readout), parts), task.activation)
            if self.pool is None:  # CLS and registers are sliced off here: off the tokens it would copy these
                value = task_map(task, as_maps(value[:, tokens.num_prefix_tokens :], tokens.grid))
            found.append((task, value))
        return found

    def _parts(self, tokens: Tokens) -> list[Tensor]:
        """What the layers read: (B, C) each with ``pool``, else (B, P + N, C)."""
        if self.pool is None:
            return list(tokens.sequence)
        parts = list(tokens.cls_token) if self.pool != "mean" else []
        return parts if self.pool == "cls" else [*parts, tokens.last.patches[0].mean(dim=1)]

    def _start(self) -> None:
        for task, readout in zip(self._own, self.readouts, strict=True):
            start(cast("nn.Linear", readout), task.activation)


def _product(layer: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    """The layer on the concatenation of the parts (..., C), which is not made: one product per part, added up."""
    first, *rest = zip(parts, torch.split(layer.weight, layer.in_features // len(parts), dim=1), strict=True)
    result = F.linear(*first, layer.bias)
    for part, weight in rest:
        result = result + F.linear(part, weight)
    return result
