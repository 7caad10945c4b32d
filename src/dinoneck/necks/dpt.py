"""The neck of the Dense Prediction Transformer: maps of four sizes from four layers, fused from coarse to fine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import with_defaults
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import GridSize
from dinoneck.layers.blocks import MapLinear
from dinoneck.layers.inputs import Plain, TokensLike, as_tokens, check_tokens
from dinoneck.necks.neck import Neck
from dinoneck.necks.strides import DPT_SCALES, dpt_strides
from dinoneck.tokens import FeaturePyramid

Readout = Literal["ignore", "add", "project"]
Upsample = Literal["next", "double"]
ReadoutActivation = Literal["gelu", "gelu_tanh"]
HIDDEN_SIZES = (96, 192, 384, 768)


class DPTNeck(Neck):
    """Reassemble layers of rising depth to maps of falling resolution, and fuse them from coarse to fine.

    For dense predictions (depth, height, segmentation) with sharp edges: shallow layers give
    detail, deep layers semantics. With its default widths it has 18 to 40 million parameters, more
    than a ViT-S; ``hidden_sizes`` and ``out_channels`` make it smaller, and
    :class:`dinoneck.ViTFPN` is the light neck.

    Reassembly of a layer: readout, 1x1 projection to its hidden size, transposed convolution
    (scales 4 and 2), nothing (1) or 3x3 convolution with stride 2 (0.5), and a bias-free 3x3
    convolution to ``out_channels``. Fusion, from the coarsest: a residual unit
    (ReLU, 3x3, ReLU, 3x3) on the level's own map, plus the coarser result, then another residual
    unit and a 1x1 projection. With own maps m_i from fine (0) to coarse (n), residual units L and
    U, the projection P and bilinear resizing to a size, the levels y_i are y_n = P(U(m_n)) and

    - ours, ``upsample="next", align_corners=False``: y_i = P(U(resize(y_i+1, size of m_i) +
      L(m_i)));
    - Depth Anything, ``"next", True``: the same with corners aligned;
    - DINOv2, DINOv3 and DPT, ``"double", True``: y_i = P(U(double(y_i+1) + L(resize(m_i, its
      size)))), where double gives twice the rows and cols with corners aligned, and m_i is resized
      with ``align_corners=False``.

    Args:
        embed_dim: channels C of the tokens.
        num_layers: layers of the tokens, shallow first, 1 ... 4. They take the last ``num_layers``
            of the scales 4, 2, 1, 0.5: the deepest layer is always the coarsest level.
        out_channels: channels D of every level.
        readout: what the CLS token does: ``ignore`` = nothing; ``add`` = it is added to every
            patch; ``project`` = a linear layer and ``readout_activation`` on [patch, CLS].
            Registers never take part.
        patch_size: pixels per patch; strides follow it.
        hidden_sizes: width of every layer's map before the common width; None = the last
            ``num_layers`` of the published 96, 192, 384, 768.
        upsample: size of the coarser result when it is added: ``next`` = that of the next level's
            own map; ``double`` = twice its own, to which the next level's own map is resized.
        align_corners: of the resizing of the coarser result, as in torch's ``interpolate``.
        unit_bias: whether the convolutions of the residual units have a bias.
        readout_activation: of ``readout="project"``: ``gelu``, or its approximation by tanh,
            ``gelu_tanh``, as in the heads of TIPSv2 (``gelu_pytorch_tanh`` in transformers). The
            two differ by up to 5e-4. Other readouts have no activation, and take only ``gelu``.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of ``num_layers`` layers -> levels (B, D, rows * scale, cols * scale), channels-last,
        with ceil(rows / 2) x ceil(cols / 2) cells at scale 0.5. A level is the fused map at its own
        size; the published neck returns the same maps upsampled by 2. With ``upsample="double"``
        the levels double from the coarsest: the finest has 8 ceil(rows / 2) cells, which is more
        than ``strides`` states for an odd number of rows.

    Raises:
        ConfigError: if a number is not positive, there are more than 4 layers, ``hidden_sizes``
            are not one per layer, or ``readout_activation`` changes nothing.
        ShapeError: if the tokens have another width, patch size, dtype or number of layers, or lack
            the CLS token that the readout needs.

    Examples:
        >>> import torch
        >>> neck = DPTNeck(64, out_channels=32, readout="project", hidden_sizes=(8, 16, 32, 64))
        >>> layers = [torch.randn(1, 5 + 15 * 31, 64) for _ in range(4)]
        >>> [tuple(level.shape) for level in neck(layers, grid=(15, 31), num_prefix_tokens=5)], neck.strides
        ([(1, 32, 60, 124), (1, 32, 30, 62), (1, 32, 15, 31), (1, 32, 8, 16)], (4.0, 8.0, 16.0, 32.0))

    Reference: Ranftl et al., Vision Transformers for Dense Prediction, ICCV 2021; transformers'
    ``DPTNeck``, whose weights fit one to one under other names (its fusion layers count from coarse
    to fine). Deviations: the defaults of ``upsample`` and ``align_corners``, with which odd grids
    keep their size; the 1x1 projection precedes the resizing, which is exact; the coarsest level
    lacks the residual unit that the published one builds and never calls.
    """

    num_layers: int

    def __init__(
        self,
        embed_dim: int,
        num_layers: int = len(DPT_SCALES),
        out_channels: int = 256,
        readout: Readout = "ignore",
        patch_size: int = 16,
        hidden_sizes: tuple[int, ...] | None = None,
        upsample: Upsample = "next",
        align_corners: bool = False,
        unit_bias: bool = True,
        readout_activation: ReadoutActivation = "gelu",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(
            1,
            embed_dim=embed_dim,
            num_layers=num_layers,
            out_channels=out_channels,
            patch_size=patch_size,
        )
        strides = dpt_strides(num_layers, patch_size)
        widths = HIDDEN_SIZES[-num_layers:] if hidden_sizes is None else hidden_sizes
        if len(widths) != num_layers or min(widths) < 1:
            raise ConfigError(
                f"hidden_sizes is {widths}; expected one positive width per layer, {num_layers} "
                "in all"
            )
        if readout_activation != "gelu" and readout != "project":
            raise ConfigError(
                f"readout_activation is {readout_activation!r}, and readout={readout!r} has no "
                "activation; leave it out, or pass readout='project'"
            )
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.readout = readout
        self.align_corners = align_corners
        self.upsample = upsample
        scales = DPT_SCALES[-num_layers:]
        self.strides = strides
        factory = {"device": device, "dtype": dtype}
        self.reassemble = nn.ModuleList(
            _Reassemble(
                embed_dim,
                width,
                out_channels,
                scale=scale,
                readout=readout,
                readout_activation=readout_activation,
                **factory,
            )
            for width, scale in zip(widths, scales, strict=True)
        )
        coarsest = num_layers - 1
        self.fusion = nn.ModuleList(
            _Fusion(out_channels, unit_bias, has_coarser=level != coarsest, **factory)
            for level in range(num_layers)
        )

    @classmethod
    def current_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a file of 0.3, which states no activation of the readout."""
        return with_defaults(cls, config, {"readout_activation": "gelu"})

    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Unpack[Plain]
    ) -> FeaturePyramid:
        """Return the pyramid of fused maps, see :meth:`Neck.forward`; ``images`` are not needed."""
        # plain tensors are converted and checked: one (B, P + N, C) per layer
        tokens = as_tokens(tokens, **plain, patch_size=self.patch_size, owner=self)
        check_tokens(
            tokens, self, self.embed_dim, num_layers=self.num_layers, patch_size=self.patch_size
        )
        if self.readout != "ignore" and not tokens.num_cls:
            raise ShapeError(
                f"these tokens have no CLS token, which readout={self.readout!r} reads; build the "
                "neck with readout='ignore'"
            )
        cls_tokens = (None,) * self.num_layers if self.readout == "ignore" else tokens.cls_token
        # every layer to its own scale and the common width: (B, D, rows * scale, cols * scale)
        maps = [
            reassemble(sequence, cls, tokens.num_prefix_tokens, tokens.grid)
            for reassemble, sequence, cls in zip(
                self.reassemble, tokens.sequence, cls_tokens, strict=True
            )
        ]
        # from coarse to fine: the coarser result, resized, is added to the level's own map
        levels: list[Tensor] = []
        for fusion, own in zip(reversed(self.fusion), reversed(maps), strict=True):
            coarser = None
            # (B, D, rows, cols) of the level's own map, or (B, D, 2 rows, 2 cols) of the coarser
            # level
            if levels:
                to: dict[str, Any] = (
                    {"size": own.shape[-2:]} if self.upsample == "next" else {"scale_factor": 2.0}
                )
                coarser = F.interpolate(
                    levels[-1], **to, mode="bilinear", align_corners=self.align_corners
                )
                if self.upsample == "double":
                    own = F.interpolate(
                        own, size=coarser.shape[-2:], mode="bilinear", align_corners=False
                    )
            levels.append(fusion(own, coarser))
        return FeaturePyramid(tuple(levels[::-1]), self.strides)


class _Reassemble(nn.Module):
    """One layer's tokens to a map of its scale and the common width."""

    def __init__(
        self,
        embed_dim: int,
        hidden: int,
        out_channels: int,
        *,
        scale: float,
        readout: Readout,
        readout_activation: ReadoutActivation,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.approximate = "tanh" if readout_activation == "gelu_tanh" else "none"
        self.readout_linear = None
        if readout == "project":
            self.readout_linear = nn.Linear(2 * embed_dim, embed_dim, **factory)
        self.project = nn.Linear(embed_dim, hidden, **factory)
        self.up = None
        if scale > 1:
            side = int(scale)
            self.up = nn.ConvTranspose2d(hidden, hidden, side, stride=side, **factory)
        self.down = None
        if scale < 1:
            self.down = nn.Conv2d(hidden, hidden, 3, stride=2, padding=1, **factory)
        self.widen = nn.Conv2d(hidden, out_channels, 3, padding=1, bias=False, **factory)

    def forward(
        self, sequence: Tensor, cls_token: Tensor | None, num_prefix: int, grid: GridSize
    ) -> Tensor:
        """(B, P + N, C) and the CLS token (B, C), if it takes part -> (B, out_channels, rows * scale, cols * scale)."""
        # whole sequences are projected and sliced afterwards: slicing first would copy them at full
        # width
        projected = self._project(sequence, cls_token)[:, num_prefix:]  # (B, N, hidden)
        # patch tokens are a raster-ordered map: a channels-last view
        maps = rearrange(projected, "b (r c) d -> b d r c", r=grid.rows, c=grid.cols)
        if self.up is not None:
            maps = self.up(maps)  # (B, hidden, rows * scale, cols * scale)
        if self.down is not None:
            maps = self.down(maps)  # (B, hidden, ceil(rows / 2), ceil(cols / 2))
        widened: Tensor = self.widen(maps)
        return widened

    def _project(self, sequence: Tensor, cls_token: Tensor | None) -> Tensor:
        """Readout and projection: (B, P + N, C) -> (B, P + N, hidden).

        A linear layer on [token, CLS] is the sum of one on the token and one on the CLS token:
        nothing of width 2 C is built, and the CLS token is not repeated.
        """
        # "project": GELU(linear([token, CLS]))
        if cls_token is not None and self.readout_linear is not None:
            token_weight, cls_weight = self.readout_linear.weight.chunk(2, dim=1)  # (C, C) each
            cls_term = F.linear(cls_token, cls_weight, self.readout_linear.bias)  # (B, C)
            sequence = F.linear(sequence, token_weight) + cls_term[:, None]  # (B, P + N, C)
            sequence = F.gelu(sequence, approximate=self.approximate)
        projected: Tensor = self.project(sequence)  # (B, P + N, hidden)
        # "add": the projection of token + CLS
        if cls_token is not None and self.readout_linear is None:
            projected = projected + F.linear(cls_token, self.project.weight)[:, None]
        return projected


class _Fusion(nn.Module):
    """A level's own map and the coarser level's result to the level's result."""

    def __init__(self, channels: int, bias: bool, *, has_coarser: bool, **factory: Any) -> None:
        super().__init__()
        self.lateral = _ResidualUnit(channels, bias, **factory) if has_coarser else None
        self.unit = _ResidualUnit(channels, bias, **factory)
        self.project = MapLinear(channels, channels, **factory)

    def forward(self, own: Tensor, coarser: Tensor | None) -> Tensor:
        """(B, D, rows, cols) both -> the same."""
        if self.lateral is not None and coarser is not None:
            own = coarser + self.lateral(own)
        fused: Tensor = self.project(self.unit(own))
        return fused


class _ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3 both."""

    def __init__(self, channels: int, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=bias, **factory)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=bias, **factory)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, rows, cols) -> the same."""
        change: Tensor = self.second(F.relu(self.first(F.relu(maps))))
        return maps + change
