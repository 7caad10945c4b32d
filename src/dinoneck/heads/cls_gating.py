"""A gate that weights the patches by the CLS token, and a head on the pooled patches and the CLS token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.heads.head import Head, TokenScale
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.kinds import POOLED_KINDS
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition
from dinoneck.losses.masked import exact
from dinoneck.tasks import Task, activate
from dinoneck.tokens import Tokens

Mode = Literal["mlp", "query", "resized"]


class CLSGating(Configured, nn.Module):
    """Pool patches by weights that the CLS token gives them; the weights of an image sum to one.

    ``mlp`` and ``resized`` score positions: the logits come from the CLS token alone, one per cell
    of a fixed grid. ``query`` scores content: CLS and patches are projected and compared, at any
    grid. Only ``query`` follows content that moves: for a flipped image its map is flipped, while a
    gate over positions stays the same.

    Args:
        embed_dim: channels C of the tokens.
        num_patches: ``mlp``: N, the only number of patches that it takes; ``resized``:
            (rows, cols), the grid that the logits belong to; ``query``: not read.
        mode: ``mlp``: Linear C -> C / reduction, GELU, Linear -> N; ``resized``: the same, the map
            of logits resampled bilinearly (``align_corners=False``) to the grid at hand, and at its
            own grid the same numbers as ``mlp``; ``query``: softmax(q(cls) · k(patch) / sqrt(C /
            reduction)).
        reduction: divides C for the width in between.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        cls_token (B, C), patches (B, N, C) -> pooled (B, C), weights (B, N).

    Raises:
        ConfigError: if ``num_patches`` does not fit the mode, or a size is not positive.
        ShapeError: if the input has another shape, or (``mlp``) another number of patches.

    Examples:
        >>> gating = CLSGating(embed_dim=1280, num_patches=3600)
        >>> pooled, weights = gating(torch.randn(2, 1280), torch.randn(2, 3600, 1280))
        >>> pooled.shape, weights.shape
        (torch.Size([2, 1280]), torch.Size([2, 3600]))

    Reference: the published notebook (``mlp``, the same arithmetic). Deviations: ``query`` and
    ``resized`` for other grids; the pooling is a matrix product, so no weighted copy of the patches
    is made.
    """

    def __init__(
        self,
        embed_dim: int,
        num_patches: int | tuple[int, int] | None = None,
        mode: Mode = "mlp",
        reduction: int = 4,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, embed_dim=embed_dim, reduction=reduction)
        width = embed_dim // reduction
        if width < 1:
            raise ConfigError(
                f"reduction is {reduction} for {embed_dim} channels; it leaves none in between"
            )
        self.embed_dim = embed_dim
        self.mode = mode
        self.width = width
        self.own_grid = None  # (rows, cols) of the logits of "resized"
        if mode == "resized" and isinstance(num_patches, tuple):
            self.own_grid = num_patches
        factory = {"device": device, "dtype": dtype}
        if mode == "query":
            self.query = nn.Linear(embed_dim, width, **factory)
            # the softmax would not see a bias
            self.key = nn.Linear(embed_dim, width, bias=False, **factory)
        else:
            self.num_patches = _checked_count(num_patches, mode)
            self.hidden = nn.Linear(embed_dim, width, **factory)
            self.out = nn.Linear(width, self.num_patches, **factory)

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for layer in self.children():
            layer.reset_parameters()  # type: ignore[operator]

    def forward(
        self, cls_token: Tensor, patches: Tensor, grid: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the patches, (B, C), and the weights, (B, N).

        Args:
            cls_token: (B, C).
            patches: (B, N, C).
            grid: (rows, cols) of the patches; ``resized`` needs it where it is not its own.
        """
        if cls_token.ndim != 2 or cls_token.shape[1] != self.embed_dim:
            raise ShapeError(
                f"the CLS token has shape {tuple(cls_token.shape)}; expected "
                f"(batch, {self.embed_dim})"
            )
        if patches.ndim != 3 or patches.shape[2] != self.embed_dim:
            raise ShapeError(
                f"the patches have shape {tuple(patches.shape)}; expected "
                f"(batch, N, {self.embed_dim})"
            )
        if patches.shape[0] != cls_token.shape[0]:
            raise ShapeError(
                f"there are CLS tokens of {cls_token.shape[0]} images and patches of "
                f"{patches.shape[0]}; expected one batch"
            )
        if (
            grid is not None
            and not torch.compiler.is_compiling()
            and grid[0] * grid[1] != patches.shape[1]
        ):
            raise ShapeError(
                f"{patches.shape[1]} patches do not fill a grid of {grid[0]} rows x {grid[1]} cols"
            )
        if self.mode == "query":
            # q . (K patch) = (q K) . patch: the key projection is applied to the query, not to
            # every patch
            query = self.query(cls_token) * self.width**-0.5  # (B, C / reduction)
            query = query @ self.key.weight  # (B, C)
            logits = torch.bmm(patches, query[..., None])[..., 0]  # (B, N)
        else:
            # Linear, GELU, Linear on the CLS token: one logit per cell; "resized": bilinearly to
            # the grid
            logits = self.place_logits(cls_token, patches.shape[1], grid)  # (B, N)
        # (B, N), they sum to 1; autocast's softmax is float32
        weights = logits.softmax(dim=-1).to(patches.dtype)
        pooled = torch.bmm(weights[:, None], patches)[:, 0]  # (B, C)
        return pooled, weights

    def place_logits(
        self, cls_token: Tensor, num_patches: int, grid: Sequence[int] | None
    ) -> Tensor:
        """Return the logits (B, N) of ``mlp`` and ``resized``, computed from the CLS token (B, C) alone."""
        if self.own_grid is None and num_patches != self.num_patches:
            raise ShapeError(
                f"there are {num_patches} patches; this gate of mode 'mlp' was built for "
                f"{self.num_patches}. Use images of the size it was trained on, or build it with "
                "mode='resized' (the same weights, any grid) or 'query'"
            )
        if self.own_grid is not None and grid is None and num_patches != self.num_patches:
            raise ShapeError(
                f"there are {num_patches} patches, and the logits belong to a grid of "
                f"{self.own_grid[0]} rows x {self.own_grid[1]} cols; pass grid=(rows, cols) of "
                "the patches"
            )
        logits: Tensor = self.out(F.gelu(self.hidden(cls_token)))  # (B, own rows * own cols)
        if self.own_grid is None or grid is None:
            return logits
        maps = rearrange(logits, "b (r c) -> b 1 r c", r=self.own_grid[0])
        maps = F.interpolate(maps, size=tuple(grid), mode="bilinear", align_corners=False)
        return rearrange(maps, "b 1 r c -> b (r c)")


def _checked_count(num_patches: int | tuple[int, int] | None, mode: str) -> int:
    """Return the number of logits of the modes ``mlp`` and ``resized``."""
    if mode == "resized":
        expected = "(rows, cols), the grid of its logits"
        if isinstance(num_patches, tuple):
            check_minimum(1, num_patches=min(num_patches))
            return math.prod(num_patches)
    else:
        expected = "one number"
        if isinstance(num_patches, int):
            check_minimum(1, num_patches=num_patches)
            return num_patches
    raise ConfigError(
        f"num_patches is {num_patches}; mode {mode!r} needs {expected}. Mode 'mlp' takes one "
        "number, rows * cols; 'resized' a grid (rows, cols); 'query' neither"
    )


class CLSGatingHead(Head):
    """The CLS token and the patches it picks, through one hidden layer, then one linear layer per task.

    Prefer it where only small parts of an image matter. :meth:`gate` returns the weights as a map.

    Args:
        embed_dim: channels C of the tokens.
        tasks: regression, ratio, classification or multilabel tasks.
        mode: of the gate, see :class:`CLSGating`.
        num_patches: of the gate: N for ``mlp``, (rows, cols) for ``resized``.
        hidden_dim: H, units of the hidden layer (Linear 2 C -> H, LayerNorm, GELU, Dropout).
        dropout: share of hidden units dropped in training.
        compositions: outputs computed from the tasks' predictions, see
            :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task name: (B, dim)}``; gate (B, rows, cols).

    Raises:
        ConfigError: if tasks repeat a name or are of another kind, or ``num_patches`` does not fit
            the mode.
        ShapeError: if the tokens have another width, no CLS token or (``mlp``) another number of
            patches.

    Examples:
        >>> head = CLSGatingHead(64, [Task("mass", unit="g", activation="softplus")], mode="query")
        >>> tokens = Tokens.from_sequence(
        ...     torch.randn(2, 11, 64), image_size=(32, 48), patch_size=16, num_prefix_tokens=5)
        >>> head(tokens)["mass"].shape, head.gate(tokens).shape
        (torch.Size([2, 1]), torch.Size([2, 2, 3]))

    Reference: a published notebook; ``examples/biomass/published.py`` reads its weights.
    """

    reads_last_layer = True

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
        mode: Mode = "mlp",
        num_patches: int | tuple[int, int] | None = None,
        hidden_dim: int = 512,
        dropout: float = 0.1,
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, hidden_dim=hidden_dim)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {dropout}; expected 0 or more, below 1")
        factory = {"device": device, "dtype": dtype}
        self.embed_dim = embed_dim
        self._set_tasks(tasks, compositions, *POOLED_KINDS)
        self.scale = TokenScale(embed_dim, **factory)
        self.gating = CLSGating(embed_dim, num_patches, mode, **factory)
        self.trunk = nn.Linear(2 * embed_dim, hidden_dim, **factory)
        self.norm = nn.LayerNorm(hidden_dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.readouts = nn.ModuleList(
            nn.Linear(hidden_dim, task.dim, **factory) for task in self.tasks
        )

    def gate(self, tokens: TokensLike, **plain: Unpack[Plain]) -> Tensor:
        """Return the weights of the patches as maps (B, rows, cols) that sum to one."""
        scaled: Tokens = self.scale(self._tokens(tokens, **plain))
        _, weights = self._pooled(scaled)
        return rearrange(weights, "b (r c) -> b r c", r=scaled.grid.rows)

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return the predictions, ``with_maps`` with the gate, see :meth:`Head.predict_outputs`.

        As predictions are, the gate is float32 or wider.
        """
        outputs = super().predict_outputs(tokens, with_maps)
        return replace(outputs, gate=exact(self.gate(tokens))) if with_maps else outputs

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return ``{task name: (B, dim)}`` in normalised units."""
        scaled: Tokens = self.scale(self._tokens(tokens, **plain))
        cls_token = scaled.cls_token[0]  # (B, C)
        pooled, _ = self._pooled(scaled)  # (B, C)
        # what the image is, and what the CLS token picks from the patches: (B, 2 C) ->
        # (B, hidden_dim)
        hidden = self.dropout(F.gelu(self.norm(self.trunk(torch.cat((cls_token, pooled), dim=-1)))))
        return {
            task.name: activate(readout(hidden), task.activation)
            for task, readout in zip(self.tasks, self.readouts, strict=True)
        }

    def _pooled(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The weighted sums of the patches (B, C) and the weights (B, N), for tokens of one layer."""
        pooled, weights = self.gating(tokens.cls_token[0], tokens.patches[0], tokens.grid)
        return pooled, weights
