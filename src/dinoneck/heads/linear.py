"""LinearHead: the linear probe, one linear layer per task on frozen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.codec import at_least
from dinoneck.errors import ConfigError
from dinoneck.grid import as_maps
from dinoneck.heads.bins import Bins
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
        use_cls: without ``pool``: every patch is read together with the CLS token of its layer.
        upsample: without ``pool``: cells per patch side; the layer's outputs are resized (bilinear,
            ``align_corners=False``), then ``bins`` and the activation are applied.
        bins: for dense tasks of one output: the layer gives one logit per bin, of which they make the value.
        compositions: outputs computed from the tasks' predictions, see :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task: (B, dim)}`` with ``pool``. Without: ``{task: (B, dim, rows * upsample, cols * upsample)}``
        for dense and segmentation, ``{task: (B, dim)}`` with the map as ``"task.map"`` for density and ratio.
        The weight of a task is (dim, parts * C), or (bins, parts * C), its columns in the order of the parts: with
        ``use_cls`` patch, CLS of the first layer, patch, CLS of the second, and so on.

    Raises:
        ConfigError: if tasks repeat a name or are of a kind that ``pool`` or ``bins`` do not give, a size is not
            positive, or ``use_cls`` or ``upsample`` is given with ``pool``.
        ShapeError: if the tokens have another width or number of layers, or no CLS token where it is read.

    Examples:
        >>> head = LinearHead(64, [Task("state", dim=3, kind="classification")], num_layers=4)
        >>> layers = [torch.randn(2, 1 + 6, 64) for _ in range(4)]
        >>> head(layers, grid=(2, 3), num_prefix_tokens=1)["state"].shape
        torch.Size([2, 3])

    Reference: linear classification, depth and segmentation in DINOv2 (arXiv 2304.07193): CLS tokens of one or four
    layers and the mean patch; [patch, CLS] upsampled by 4, with bins; patch tokens. Deviations: segmentation has no
    batch norm before the layer; the layer precedes the upsampling, which is exact and needs a fraction of the memory.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Sequence[Task],
        num_layers: int = 1,
        pool: Pool | None = "cls+mean",
        use_cls: bool = False,
        upsample: int = 1,
        bins: Bins | None = None,
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        at_least(1, embed_dim=embed_dim, num_layers=num_layers, upsample=upsample)
        if pool is not None and (use_cls or upsample > 1 or bins is not None):
            raise ConfigError(f"pool is {pool!r}; use_cls, upsample and bins are for maps: pass pool=None with them")
        self.embed_dim, self.pool, self.use_cls, self.upsample, self.bins = embed_dim, pool, use_cls, upsample, bins
        self.num_layers = self._takes_layers = num_layers
        own = [task for task in tasks if task.from_map is None or pool is not None]
        maps, values = ("dense", "density", "segmentation", "ratio"), ("regression", "ratio", "classification")
        check_tasks(own, kinds=maps if pool is None else values, owner=f"LinearHead(pool={pool!r})")
        self._set_tasks(tasks, compositions)
        if bins is not None:
            bins.check(own)
        parts = {None: num_layers * (1 + use_cls), "cls": num_layers, "mean": 1, "cls+mean": num_layers + 1}[pool]
        widths = (task.dim if bins is None else bins.count for task in own)
        layers = (nn.Linear(parts * embed_dim, width, device=device, dtype=dtype) for width in widths)
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
            value = _product(cast("nn.Linear", readout), parts)  # (B, width), or (B, P + N, width)
            if self.pool is None:
                value = self._cells(value, tokens)  # (B, dim, rows * upsample, cols * upsample)
            value = activate(value, task.activation)
            found.append((task, value if self.pool is not None else task_map(task, value)))
        return found

    def _cells(self, values: Tensor, tokens: Tokens) -> Tensor:
        """(B, P + N, width) to maps (B, dim, rows * upsample, cols * upsample)."""
        # CLS and registers are sliced off here: off the tokens it would copy these
        maps = as_maps(values[:, tokens.num_prefix_tokens :], tokens.grid)
        if self.upsample > 1:
            maps = F.interpolate(maps, scale_factor=float(self.upsample), mode="bilinear", align_corners=False)
        return maps if self.bins is None else self.bins(maps).to(maps.dtype)

    def _parts(self, tokens: Tokens) -> list[Tensor]:
        """What the layers read: (B, C) each with ``pool``, else (B, P + N, C), and (B, 1, C) of CLS tokens."""
        if self.pool is None and self.use_cls:
            pairs = zip(tokens.sequence, tokens.cls_token, strict=True)
            return [part for patches, cls in pairs for part in (patches, cls[:, None])]
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
