"""A small MLP on every patch, and the mean of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, cast

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import GridSize, as_maps
from dinoneck.heads.head import Head, TokenScale
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.kinds import POOLED_KINDS
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Activation, Task, activate
from dinoneck.tokens import Tokens

LEAKY_SLOPE = 0.01  # of LeakyReLU below 0, torch's default


class PatchMeanMLP(Configured, nn.Module):
    """Linear -> LeakyReLU -> Linear -> activation on every patch, then the mean over patches.

    Because the activation is applied before the mean, every patch contributes its own prediction, and
    :meth:`per_patch` shows where the prediction comes from. Patches do not see each other.

    Args:
        embed_dim: channels C of the tokens.
        hidden_dim: hidden units per patch.
        out_dim: outputs per patch.
        activation: ``relu``, ``softplus``, ``sigmoid`` or None.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        (B, N, C) -> (B, out_dim); ``per_patch``: (B, N, C) -> (B, N, out_dim).

    Raises:
        ConfigError: if a size is not positive or the activation is unknown.
        ShapeError: if the input is not (B, N, embed_dim).

    Examples:
        >>> mlp = PatchMeanMLP(embed_dim=1536)
        >>> mlp(torch.randn(6, 256, 1536)).shape
        torch.Size([6, 1])

    Reference: a published notebook on DINOv2 dense features (1536 -> 128 -> LeakyReLU -> 1 -> ReLU
    -> mean). Deviation: a ReLU head starts with second-layer weights of one sign, so that no patch
    and no head is dead at the start.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int = 128,
        out_dim: int = 1,
        activation: Activation | None = "relu",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, embed_dim=embed_dim, hidden_dim=hidden_dim, out_dim=out_dim)
        if activation == "unit":
            raise ConfigError(
                "activation is 'unit'; expected relu, softplus, sigmoid or None: surface normals "
                "are maps, use DenseHead, FPNHead, DPTHead or LinearHead(pool=None)"
            )
        self.embed_dim = embed_dim
        self.hidden_dim = hidden_dim
        self.out_dim = out_dim
        self.activation = activation
        self.hidden = nn.Linear(embed_dim, hidden_dim, device=device, dtype=dtype)
        self.out = nn.Linear(hidden_dim, out_dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        self.hidden.reset_parameters()
        self.out.reset_parameters()
        if self.activation == "relu":
            with torch.no_grad():
                self.out.weight.abs_()
                self.out.bias.abs_()

    def per_patch(self, x: Tensor) -> Tensor:
        """Return the prediction of every patch: (B, N, C) -> (B, N, out_dim)."""
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ShapeError(
                f"patches have shape {tuple(x.shape)}; expected (batch, N, {self.embed_dim})"
            )
        # in place, for autograd keeps the result anyway: the last layer needs it
        hidden = F.leaky_relu(self.hidden(x), LEAKY_SLOPE, inplace=True)
        return activate(self.out(hidden), self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of :meth:`per_patch`, (B, out_dim)."""
        return self.per_patch(x).mean(dim=1)


class PatchMeanHead(Head):
    """One :class:`PatchMeanMLP` per task on the patch tokens of the last layer listed.

    Prefer it as the first head on few images: it cannot overfit to positions, and its maps show
    where a prediction comes from. Where the arrangement of patches matters, take a head with a
    neck.

    Args:
        embed_dim: channels of the tokens.
        tasks: regression, ratio, classification or multilabel tasks. A task's activation acts on
            every patch.
        hidden_dim: hidden units of each MLP.
        compositions: outputs computed from the tasks' predictions, see
            :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task name: (B, dim)}``; maps (B, dim, rows, cols).

    Raises:
        ConfigError: if tasks repeat a name or are of another kind.
        ShapeError: if the tokens have another width.

    Examples:
        >>> head = PatchMeanHead(64, [Task("mass", unit="g", activation="relu")])
        >>> x = torch.randn(2, 6, 64)
        >>> head(x, grid=(2, 3))["mass"].shape, head.predict_maps(x, grid=(2, 3))["mass"].shape
        (torch.Size([2, 1]), torch.Size([2, 1, 2, 3]))
    """

    reads_last_layer = True

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
        hidden_dim: int = 128,
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self._set_tasks(tasks, compositions, *POOLED_KINDS)
        factory = {"device": device, "dtype": dtype}
        self.scale = TokenScale(embed_dim, **factory)
        self.mlps = nn.ModuleList()
        for task in self.tasks:
            self.mlps.append(
                PatchMeanMLP(embed_dim, hidden_dim, task.dim, task.activation, **factory)
            )

    def per_patch(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the prediction of each patch, ``{task name: (B, N, dim)}``, in normalised units."""
        scaled: Tokens = self.scale(self._tokens(tokens, **plain))
        sequence = scaled.sequence[0]  # (B, P + N, C)
        outputs = {}
        for task, mlp in zip(self.tasks, self.mlps, strict=True):
            # CLS and registers are sliced off the output: slicing them off the tokens would copy
            # the tokens
            output = cast("PatchMeanMLP", mlp).per_patch(sequence)  # (B, P + N, dim)
            outputs[task.name] = output[:, scaled.num_prefix_tokens :]
        return outputs

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}`` in normalised units."""
        return _mean_over_patches(self.per_patch(tokens, **plain))

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the prediction of each patch, ``{task name: (B, dim, rows, cols)}``, in original units.

        ``minimum`` is not applied to maps: with an affine transform, the mean of a map is the
        prediction before ``minimum`` is applied.
        """
        tokens = self._tokens(tokens, **plain)
        return self._maps_of_patches(self.per_patch(tokens), tokens.grid)

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return values and maps of one run of the MLPs, see :meth:`Head.predict_outputs`."""
        is_subclass = type(self) is not PatchMeanHead  # which may replace forward or predict_maps
        if not with_maps or is_subclass:
            return super().predict_outputs(tokens, with_maps)
        per_patch = self.per_patch(tokens)
        predictions = self._predictions_of(_mean_over_patches(per_patch))
        with torch.no_grad():
            maps = self._maps_of_patches(per_patch, tokens.grid)
        return replace(HeadOutputs.of_predictions(self.predicted, predictions), maps=maps)

    def _maps_of_patches(
        self, per_patch: Mapping[str, Tensor], grid: GridSize
    ) -> dict[str, Tensor]:
        """The maps in original units, (B, dim, rows, cols), of outputs of patches (B, N, dim)."""
        maps = {}
        for task in self.tasks:
            maps[task.name] = as_maps(task.natural(per_patch[task.name]), grid)
        return maps


def _mean_over_patches(per_patch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means (B, dim) of outputs of patches (B, N, dim)."""
    return {name: reduce(output, "b n d -> b d", "mean") for name, output in per_patch.items()}
