"""LinearHead, the linear probe: one linear layer per task on frozen tokens; and Bins, which make values of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError
from dinoneck.grid import as_maps
from dinoneck.heads.head import Head, init_bias
from dinoneck.heads.outputs import (
    HeadOutputs,
    from_map_outputs,
    outputs_from_cells,
    scale_cells,
)
from dinoneck.kinds import POOLED_KINDS
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition
from dinoneck.losses.masked import exact
from dinoneck.tasks import Kind, Task, activate, as_tasks, check_tasks
from dinoneck.tokens import Tokens

Pool = Literal["cls", "mean", "cls+mean"]
Spacing = Literal["linear", "log", "mixed"]
_MAP_KINDS: tuple[Kind, ...] = ("dense", "density", "segmentation", "ratio")


class Bins(Configured, nn.Module):
    """The weighted mean of fixed values (bins), with weights ReLU(logit) + eps that are divided by their sum.

    It has no parameters. A head with bins learns one logit per bin and cell, and its task keeps
    ``dim=1``.

    Args:
        low: the first bin, above 0 unless ``spacing="linear"``.
        high: the last bin, above ``low``.
        count: bins.
        spacing: ``linear``: equal steps; ``log``: equal ratios; ``mixed``: t * log + (1 - t) *
            linear, with t falling from 1 at the first bin to 0 at the last.
        eps: added to every ReLU, so that logits of which none is positive give the mean of the
            bins.
        device: torch factory keyword, without effect.
        dtype: torch factory keyword, without effect.

    Shape:
        (B, count, rows, cols) -> (B, 1, rows, cols) in float32, or float64 for float64 logits.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> bins = Bins(0.0, 10.0, 3, eps=1e-8)
        >>> bins(torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1, 1)).item()
        8.75

    Reference: AdaBins (arXiv 2011.14141) with fixed bins, as the depth heads of DINOv2 and DINOv3
    have them.
    """

    def __init__(
        self,
        low: float,
        high: float,
        count: int = 256,
        spacing: Spacing = "linear",
        eps: float = 0.1,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(2, count=count)
        if low >= high:
            raise ConfigError(f"low is {low} and high {high}; expected low below high")
        if spacing != "linear" and low <= 0:
            raise ConfigError(
                f"low is {low}; spacing={spacing!r} takes its logarithm: pass a number above 0, "
                "or spacing='linear'"
            )
        if eps <= 0:
            raise ConfigError(f"eps is {eps}; expected a number above 0")
        self.low = low
        self.high = high
        self.count = count
        self.spacing = spacing
        self.eps = eps

    def reset_parameters(self) -> None:
        """Do nothing: it has no parameters."""

    def check(self, tasks: Task | Sequence[Task]) -> None:
        """Reject tasks that bins do not fit.

        Raises:
            ConfigError: naming the first.
        """
        for task in as_tasks(tasks):
            if task.kind != "dense" or task.dim > 1:
                raise ConfigError(
                    f"bins give one value per cell; task {task.name!r} has kind {task.kind!r} and "
                    f"dim {task.dim}, expected 'dense' and 1"
                )

    def forward(self, logits: Tensor) -> Tensor:
        """Return the weighted mean of the bins in every cell."""
        weights = exact(logits).relu() + self.eps  # (B, count, rows, cols)
        share = torch.linspace(0.0, 1.0, self.count, dtype=weights.dtype, device=weights.device)
        values = self.low + (self.high - self.low) * share  # (count,)
        if self.spacing != "linear":
            log = self.low * (self.high / self.low) ** share
            values = log if self.spacing == "log" else (1.0 - share) * log + share * values
        total = (weights * values[:, None, None]).sum(dim=1, keepdim=True)  # (B, 1, rows, cols)
        return total / weights.sum(dim=1, keepdim=True)


class LinearHead(Head):
    """One linear layer per task on pooled tokens, or on every patch: the linear probe, without norm or hidden layer.

    Prefer it as the baseline that a head with more layers must exceed, and where published linear
    probes are compared.

    Args:
        embed_dim: channels C of the tokens.
        tasks: with ``pool`` regression, ratio, classification or multilabel tasks; with
            ``pool=None`` dense, density, segmentation or ratio tasks (a ratio's shares are averaged
            over patches), and regressions with ``from_map``.
        num_layers: layers L of the tokens.
        pool: what the layer reads. ``"cls"``: the CLS tokens of all layers; ``"mean"``: the mean
            over the patches of the last layer, so that there are maps too: the layer on each patch;
            ``"cls+mean"``: both, CLS first; None: the patches of all layers, one prediction per
            patch. Registers are never read.
        use_cls: without ``pool``: every patch is read together with the CLS token of its layer.
        upsample: without ``pool``: cells per patch side; the layer's outputs are resized (bilinear,
            ``align_corners=False``), then ``bins`` and the activation are applied.
        bins: for dense tasks of one output: the layer gives one logit per bin, of which they make
            the value.
        compositions: outputs computed from the tasks' predictions, see
            :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task: (B, dim)}`` with ``pool``; maps (B, dim, rows, cols) with ``"mean"``.
        Without: ``{task: (B, dim, rows * upsample, cols * upsample)}`` for dense and segmentation,
        ``{task: (B, dim)}`` with the map as ``"task.map"`` for density and ratio. The weight of a
        task is (dim, parts * C), or (bins, parts * C), with its columns in the order of the parts.
        With ``use_cls`` they are the patch and CLS of the first layer, the patch and CLS of the
        second, and so on.

    Raises:
        ConfigError: if tasks repeat a name or are of a kind that ``pool`` or ``bins`` do not give,
            a size is not positive, or ``use_cls`` or ``upsample`` is given with ``pool``.
        ShapeError: if the tokens have another width or number of layers, or no CLS token where it
            is read.

    Examples:
        >>> head = LinearHead(64, [Task("state", dim=3, kind="classification")], num_layers=4)
        >>> layers = [torch.randn(2, 1 + 6, 64) for _ in range(4)]
        >>> head(layers, grid=(2, 3), num_prefix_tokens=1)["state"].shape
        torch.Size([2, 3])

    Reference: linear classification, depth and segmentation in DINOv2 (arXiv 2304.07193): CLS
    tokens of one or four layers and the mean patch; [patch, CLS] upsampled by 4, with bins; patch
    tokens. Deviations: segmentation has no batch norm before the layer; the layer precedes the
    upsampling, which is exact and needs a fraction of the memory.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
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
        check_minimum(1, embed_dim=embed_dim, num_layers=num_layers, upsample=upsample)
        if pool is not None:
            map_options = {"use_cls": use_cls, "upsample": upsample > 1, "bins": bins is not None}
            names = [name for name, is_set in map_options.items() if is_set]
            if names:
                raise ConfigError(
                    f"pool is {pool!r}, which reads one vector of an image, and {' and '.join(names)} "
                    f"{'is' if len(names) == 1 else 'are'} for maps; pass pool=None"
                )
        self.embed_dim = embed_dim
        self.pool = pool
        self.use_cls = use_cls
        self.upsample = upsample
        self.bins = bins
        self.num_layers = num_layers
        self._takes_layers = num_layers
        self._set_tasks(tasks, compositions)
        check_tasks(
            self._read_tasks,
            kinds=_MAP_KINDS if pool is None else POOLED_KINDS,
            owner=f"LinearHead(pool={pool!r})",
        )
        if bins is not None:
            bins.check(self._read_tasks)
        num_parts = self._num_parts(num_layers)
        self.readouts = nn.ModuleList()
        for task in self._read_tasks:
            width = task.dim if bins is None else bins.count
            self.readouts.append(
                nn.Linear(num_parts * embed_dim, width, device=device, dtype=dtype)
            )
        self._init_biases()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        self._init_biases()

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the tasks' outputs in normalised units."""
        tokens = self._tokens(tokens, **plain)
        parts = self._parts(tokens)
        outputs: dict[str, Tensor] = {}
        for task, readout in zip(self._read_tasks, self.readouts, strict=True):
            value = _product(cast("nn.Linear", readout), parts)  # (B, width), or (B, P + N, width)
            if self.pool is not None:
                outputs[task.name] = activate(value, task.activation)  # (B, dim)
            else:
                cells = activate(self._cells(value, tokens), task.activation)
                cells = scale_cells(task, cells)  # (B, dim, rows * upsample, cols * upsample)
                outputs.update(outputs_from_cells(task, cells))
        if self.pool is not None:
            return outputs
        return outputs | from_map_outputs(self.tasks, outputs)

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return maps in original units, see :meth:`Head.predict_maps`; with ``pool="mean"`` those of the patches.

        These are what the layer and the activation give for each patch, (B, dim, rows, cols).
        ``minimum`` is not applied to them: with an affine transform and no activation, the mean of
        a map is the prediction before ``minimum`` is applied.
        """
        if self.pool != "mean":
            return super().predict_maps(tokens, **plain)
        return self._maps_of_patches(self._tokens(tokens, **plain))

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return values and maps of one run of the layers, see :meth:`Head.predict_outputs`."""
        is_subclass = type(self) is not LinearHead  # which may replace forward or predict_maps
        if not with_maps or is_subclass:
            return super().predict_outputs(tokens, with_maps)
        outputs = self(tokens)
        predictions = HeadOutputs.of_predictions(self.predicted, self._predictions_of(outputs))
        if self.pool == "mean":
            return replace(predictions, maps=self._maps_of_patches(tokens))
        return replace(predictions, maps=self._maps_of(outputs))

    @torch.no_grad()
    def _maps_of_patches(self, tokens: Tokens) -> dict[str, Tensor]:
        """The maps (B, dim, rows, cols) in original units of the layers on patches, with ``pool="mean"``."""
        sequence = tokens.last.sequence[0]  # (B, P + N, C)
        maps = {}
        for task, readout in zip(self.tasks, self.readouts, strict=True):
            # CLS and registers are sliced off here: off the tokens it would copy these
            values = readout(sequence)[:, tokens.num_prefix_tokens :]  # (B, N, dim)
            cells = activate(values, task.activation)
            maps[task.name] = as_maps(task.natural(cells), tokens.grid)
        return maps

    def _cells(self, values: Tensor, tokens: Tokens) -> Tensor:
        """(B, P + N, width) to maps (B, dim, rows * upsample, cols * upsample)."""
        # CLS and registers are sliced off here: off the tokens it would copy these
        maps = as_maps(values[:, tokens.num_prefix_tokens :], tokens.grid)
        if self.upsample > 1:
            maps = F.interpolate(
                maps, scale_factor=float(self.upsample), mode="bilinear", align_corners=False
            )
        if self.bins is None:
            return maps
        cells: Tensor = self.bins(maps)
        return cells.to(maps.dtype)

    def _num_parts(self, num_layers: int) -> int:
        """The number of :meth:`_parts`, of ``embed_dim`` channels each, that a layer reads."""
        if self.pool is None and self.use_cls:
            return 2 * num_layers
        if self.pool is None or self.pool == "cls":
            return num_layers
        if self.pool == "mean":
            return 1
        return num_layers + 1

    def _parts(self, tokens: Tokens) -> list[Tensor]:
        """What the layers read: (B, C) each with ``pool``, else (B, P + N, C), and (B, 1, C) of CLS tokens."""
        if self.pool is None and self.use_cls:
            parts = []
            for sequence, cls_token in zip(tokens.sequence, tokens.cls_token, strict=True):
                parts.append(sequence)
                parts.append(cls_token[:, None])
            return parts
        if self.pool is None:
            return list(tokens.sequence)
        parts = []
        if self.pool in ("cls", "cls+mean"):
            parts += tokens.cls_token
        if self.pool in ("mean", "cls+mean"):
            parts.append(tokens.last.patches[0].mean(dim=1))
        return parts

    def _init_biases(self) -> None:
        for task, readout in zip(self._read_tasks, self.readouts, strict=True):
            init_bias(cast("nn.Linear", readout).bias, task.activation)


def _product(layer: nn.Linear, parts: Sequence[Tensor]) -> Tensor:
    """The layer on the concatenation of the parts (..., C), without making it: the sum of one product per part."""
    weights = torch.split(layer.weight, layer.in_features // len(parts), dim=1)
    result = F.linear(parts[0], weights[0], layer.bias)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        result = result + F.linear(part, weight)
    return result
