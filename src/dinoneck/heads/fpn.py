"""FPNHead: the ViT-FPN with its task heads, in one flat configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from dinoneck.configured import Migrations
from dinoneck.heads.pyramid import PyramidHead, RatioReadout
from dinoneck.layers.blocks import ActivationName, NormName
from dinoneck.losses.composition import Composition
from dinoneck.necks.layer_grouper import Fusion
from dinoneck.necks.neck import GROUPS_OF_0_1, with_used_group_size
from dinoneck.necks.vit_fpn import Downsample, ViTFPN
from dinoneck.tasks import Task


class FPNHead(PyramidHead):
    """A :class:`dinoneck.PyramidHead` on a :class:`dinoneck.ViTFPN`, with the neck's arguments next to its own.

    Prefer it where the prediction depends on how patches are arranged, or where there are labels per pixel; for a few
    hundred images with one number each, compare it with :class:`dinoneck.PatchMeanHead` by the worst fold.

    Args:
        embed_dim: channels of the tokens.
        tasks: any kinds, see :class:`dinoneck.PyramidHead`.
        num_layers: layers L the head reads.
        layer_indices: their block indices, in this order; tokens that hold more are selected from.
        fpn_dim: see :class:`dinoneck.ViTFPN`, as all that follow up to ``norm_group_size``.
        num_levels: levels of the pyramid.
        layer_groups: ``"auto"`` or one tuple of positions per level.
        use_separate_bottlenecks: one bottleneck per layer, or one for all.
        fusion: ``mean``, ``softmax`` or ``pixel``.
        downsample: ``conv``, ``pool`` or ``interpolate``.
        norm: ``layer``, ``group`` or None.
        activation: ``gelu``, ``relu``, ``silu`` or None.
        residual_init: ``"zero"`` starts as the pooled-token head.
        use_coords: CoordConv channels.
        use_cls_context: the CLS token gates channels.
        patch_size: pixels per patch.
        norm_group_size: least channels per group of ``norm="group"``.
        hidden_dim: hidden units of the light heads; None = one linear layer each.
        tower_depth: 3x3 blocks of every tower on P2.
        ratio_readout: ratios from the ``pooled`` vector or from logits per ``patch``.
        compositions: see :class:`dinoneck.PyramidHead`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Raises:
        ConfigError: if arguments do not fit.
        ShapeError: if the tokens do not.

    Examples:
        >>> import torch
        >>> from dinoneck import Tokens
        >>> tasks = [Task("reg3"), Task("ratio", dim=3, kind="ratio"), Task("ndvi")]
        >>> head = FPNHead(64, tasks, num_layers=3, layer_indices=(0, 1, 2), fpn_dim=32)
        >>> layers = [torch.randn(2, 15, 64) for _ in range(3)]
        >>> tokens = Tokens.from_patches(layers, grid=(3, 5), patch_size=16, layers=(0, 1, 2))
        >>> {name: tuple(output.shape) for name, output in head(tokens).items()}
        {'reg3': (2, 1), 'ratio': (2, 3), 'ndvi': (2, 1)}

    Reference: the published FPN notebook (reg3, ratio and NDVI heads on P2, P3, P4). Deviations: the
    non-linearity after the smoothing and LayerNorm at the entrance, see :class:`dinoneck.ViTFPN`.
    """

    checkpoint_version: ClassVar[int] = 2
    checkpoint_migrations: ClassVar[Migrations] = GROUPS_OF_0_1

    def __init__(
        self,
        embed_dim: int,
        tasks: Sequence[Task],
        num_layers: int,
        layer_indices: Sequence[int] | None = None,
        fpn_dim: int = 256,
        num_levels: int = 3,
        layer_groups: Literal["auto"] | Sequence[Sequence[int]] = "auto",
        use_separate_bottlenecks: bool = True,
        fusion: Fusion = "mean",
        downsample: Downsample = "conv",
        norm: NormName | None = "layer",
        activation: ActivationName | None = "gelu",
        residual_init: Literal["zero"] | None = None,
        use_coords: bool = False,
        use_cls_context: bool = False,
        patch_size: int = 16,
        norm_group_size: int = 8,
        hidden_dim: int | None = None,
        tower_depth: int = 2,
        ratio_readout: RatioReadout = "pooled",
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        neck = ViTFPN(
            embed_dim, num_layers, fpn_dim, num_levels, layer_groups, use_separate_bottlenecks, fusion, downsample,
            norm, activation, residual_init, use_coords, use_cls_context, patch_size, norm_group_size,
            device=device, dtype=dtype,
        )  # fmt: skip
        own = (hidden_dim, tower_depth, ratio_readout, compositions)
        super().__init__(embed_dim, tasks, neck, layer_indices, *own, device=device, dtype=dtype)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments; ``norm_group_size`` with ``norm="group"`` only."""
        return with_used_group_size(super().config)
