"""MaskHead: learned queries and patch tokens pass a few ViT blocks together; every query gives a class and a mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Unpack

import torch
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.errors import ConfigError
from dinoneck.grid import GridSize, as_maps
from dinoneck.heads.head import Head, Resample, resampled
from dinoneck.heads.instances import decode_instances, decode_panoptic, task_of
from dinoneck.layers.blocks import ChannelNorm
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.masked import exact
from dinoneck.tasks import CLASSES, MASKS, Task

SEMANTIC_QUERIES = 20  # of a segmentation, where no number is passed
_EPS = 1e-6  # of the normalisation of channels
_LEAST_SHARE = 1e-6  # of a class in a cell, so that its logarithm is finite
_HEAD_WIDTH = 64  # of an attention head, where no number of heads is passed; as in ViTs
# base of the rotary positions' frequencies, as in DINOv3
_ROTARY_BASE = 100.0


class MaskHead(Head):
    """Classes and masks by queries that attend to the fused patch tokens of a frozen backbone.

    Prefer it for semantic masks on frozen tokens. Its maps have a quarter of the patch's stride.

    Args:
        embed_dim: channels C of the tokens.
        tasks: one task of K classes: segmentation, instances or panoptic.
        num_layers: layers L of the tokens, all with the final norm.
        num_queries: Q; None = 20 for a segmentation; instances and panoptic tasks need a number,
            more than an image has objects.
        num_blocks: of the transformer.
        num_heads: of its attention; None = the width divided by 64, at least 1.
        dim: width of the transformer; None = C, the published form. 128 trains on a few hundred
            images.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of L layers -> ``"task.classes"``: (B, Q, K + 1), logits of the classes and of none;
        ``"task.masks"``: (B, Q, 4 rows, 4 cols), logits; and of a segmentation
        ``{task: (B, K, 4 rows, 4 cols)}``, the logarithms of the shares of the classes, which add
        up to 1.

    Raises:
        ConfigError: if there is not one task of these kinds, ``num_queries`` is missing, or the
            width of an attention head is not a multiple of 4.
        ShapeError: if the tokens have another width or number of layers.

    Examples:
        >>> from dinoneck import Tokens
        >>> head = MaskHead(64, [Task("plant", dim=3, kind="segmentation")], num_layers=2, dim=32)
        >>> layers = [torch.randn(2, 15, 64) for _ in range(2)]
        >>> tokens = Tokens.from_patches(layers, grid=(3, 5), patch_size=16)
        >>> {name: tuple(output.shape) for name, output in head(tokens).items()}
        {'plant': (2, 3, 12, 20), 'plant.classes': (2, 20, 4), 'plant.masks': (2, 20, 12, 20)}

    Reference: PMT, a mask decoder on frozen DINOv3 features (2026). Deviations: the width is free;
    prefix tokens are counted at each call, not fixed; shares are normalised over the classes;
    attention is not masked in training.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
        num_layers: int = 4,
        num_queries: int | None = None,
        num_blocks: int = 6,
        num_heads: int | None = None,
        dim: int | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._set_tasks(tasks, (), "segmentation", "instances", "panoptic")
        if len(self.tasks) > 1:
            names = ", ".join(task.name for task in self.tasks)
            raise ConfigError(f"tasks are {names}; a MaskHead has one task")
        if num_queries is None and self.tasks[0].is_masks:
            raise ConfigError(
                f"num_queries is None, and task {self.tasks[0].name!r} is of kind "
                f"{self.tasks[0].kind!r}; pass a number, more than an image has objects"
            )
        width = embed_dim if dim is None else dim
        queries = SEMANTIC_QUERIES if num_queries is None else num_queries
        heads = max(width // _HEAD_WIDTH, 1) if num_heads is None else num_heads
        check_minimum(
            1,
            embed_dim=embed_dim,
            dim=width,
            num_layers=num_layers,
            num_queries=queries,
            num_blocks=num_blocks,
            num_heads=heads,
        )
        if width % (4 * heads):
            raise ConfigError(
                f"dim is {width} and num_heads {heads}; expected a dim that is a multiple of "
                f"{4 * heads} (4 x num_heads)"
            )
        self.embed_dim = embed_dim
        self._takes_layers = num_layers
        self.angles = width // heads // 4  # of rotary positions: sines and cosines of y and x
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norms = nn.ModuleList(nn.BatchNorm1d(embed_dim, **factory) for _ in range(num_layers))
        self.lateral = nn.ModuleList(
            _mlp(embed_dim, embed_dim // 2, embed_dim, **factory) for _ in range(num_layers)
        )
        self.scales = nn.ParameterList(torch.ones(embed_dim, **factory) for _ in range(num_layers))
        self.narrow = (
            nn.Identity() if width == embed_dim else nn.Linear(embed_dim, width, **factory)
        )
        self.queries = nn.Embedding(queries, width, **factory)
        block = partial(
            EvaBlock,
            width,
            heads,
            qkv_fused=False,
            mlp_ratio=1.0,
            init_values=1.0,
            norm_layer=nn.LayerNorm,
            num_prefix_tokens=0,
            rotate_half=True,
            **factory,
        )
        self.blocks = nn.ModuleList(block() for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width, **factory)
        self.classes = nn.Linear(width, self.tasks[0].dim + 1, **factory)
        self.masks = _mlp(width, width, width, width, **factory)
        self.up = nn.Sequential(*(_Up(width, **factory) for _ in range(2)))

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        for name, scale in self.named_parameters():
            if name.startswith("scales.") or ".gamma" in name:
                nn.init.ones_(scale)

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the logarithms of the shares, and class and mask logits of the queries."""
        tokens = self._tokens(tokens, **plain)
        # norm and lateral network of every layer on whole sequences, summed: (B, P + N, C)
        fused = torch.stack([self._layer(i, x) for i, x in enumerate(tokens.sequence)]).sum(dim=0)
        # (B, P + N, C) -> (B, P + N, D), the queries in front: (B, Q + P + N, D)
        fused = self.narrow(fused)
        count = self.queries.num_embeddings
        x = torch.cat([self.queries.weight.expand(fused.shape[0], -1, -1), fused], dim=1)
        # queries and prefix tokens have no position: they are not rotated
        rope = rotary_positions(tokens.grid, count + tokens.num_prefix_tokens, self.angles, x).to(
            x.dtype
        )
        for block in self.blocks:
            x = block(x, rope=rope)
        x = self.norm(x)
        queries = x[:, :count]
        patches = x[:, count + tokens.num_prefix_tokens :]
        # (B, N, D) -> (B, D, 4 rows, 4 cols)
        maps = self.up(as_maps(patches, tokens.grid))
        # (B, Q, K + 1), and the product of mask embeddings and maps: (B, Q, 4 rows, 4 cols)
        classes = self.classes(queries)
        masks = torch.einsum("bqd,bdhw->bqhw", self.masks(queries), maps)
        return self._outputs(classes, masks)

    def at_size(
        self, outputs: Mapping[str, Tensor], size: Sequence[int], resample: Resample = resampled
    ) -> dict[str, Tensor]:
        """Return the outputs at another size: masks are resampled before they are shares, see :meth:`Head.at_size`."""
        classes, masks = self._query_logits(outputs)
        return self._outputs(classes, resample(masks, size))

    def _outputs(self, classes: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The logits (B, Q, K + 1) and (B, Q, h, w); of a segmentation the logarithms of the shares (B, K, h, w) too.

        The share of a class is the sum over queries of its probability times the mask's, divided by
        that of all classes.
        """
        task = self.tasks[0]
        outputs = {}
        if not task.is_masks:
            probabilities = exact(classes).softmax(dim=-1)[..., :-1]  # (B, Q, K), without none
            sums = torch.einsum("bqk,bqhw->bkhw", probabilities, exact(masks).sigmoid())
            sums = sums.clamp_min(_LEAST_SHARE)
            log_shares = (sums / sums.sum(dim=1, keepdim=True)).log()
            outputs[task.name] = log_shares.to(masks.dtype)
        outputs[f"{task.name}{CLASSES}"] = classes
        outputs[f"{task.name}{MASKS}"] = masks
        return outputs

    def _query_logits(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Class and mask logits."""
        name = self.tasks[0].name
        return outputs[f"{name}{CLASSES}"], outputs[f"{name}{MASKS}"]

    @torch.no_grad()
    def predict_instances(
        self,
        tokens: TokensLike,
        size: Sequence[int] | None = None,
        min_score: float | None = None,
        **plain: Unpack[Plain],
    ) -> list[dict[str, Tensor]]:
        """Return the instances of every image, see :func:`dinoneck.heads.instances.decode_instances`.

        Args:
            tokens: of the images.
            size: (height, width) of the masks; None = that of the images that the tokens are of.
            min_score: leave out instances of a lower score; None = the thresholds of the task, or its
                minimum, without both 0.3.
            **plain: of plain tensors, as for calling.

        Raises:
            ConfigError: if the task is not of instances.
        """
        task = task_of(self.tasks, "instances")
        tokens = self._tokens(tokens, **plain)
        classes, masks = self._query_logits(self(tokens))
        return decode_instances(
            classes,
            masks,
            size=size or tokens.image_size,
            min_score=task.least_score if min_score is None else min_score,
        )

    @torch.no_grad()
    def predict_panoptic(
        self,
        tokens: TokensLike,
        size: Sequence[int] | None = None,
        min_score: float | None = None,
        **plain: Unpack[Plain],
    ) -> list[tuple[Tensor, list[dict[str, Any]]]]:
        """Return the panoptic segments of every image, see :func:`dinoneck.heads.instances.decode_panoptic`.

        Args:
            tokens: of the images.
            size: (height, width) of the segments; None = that of the images that the tokens are of.
            min_score: leave out queries of a lower score; None = the minimum of the task, without
                one 0.8.
            **plain: of plain tensors, as for calling.

        Raises:
            ConfigError: if the task is not panoptic.
        """
        task = task_of(self.tasks, "panoptic")
        tokens = self._tokens(tokens, **plain)
        classes, masks = self._query_logits(self(tokens))
        return decode_panoptic(
            classes,
            masks,
            size=size or tokens.image_size,
            things=[task.labels.index(label) for label in task.things],
            min_score=task.minimum if min_score is None else min_score,
        )

    def _layer(self, i: int, x: Tensor) -> Tensor:
        """One layer (B, P + N, C): normalised, with its lateral network added, scaled per channel."""
        x = self.norms[i](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        fused: Tensor = (x + self.lateral[i](x)) * self.scales[i]
        return fused


def _mlp(*widths: int, **factory: Any) -> nn.Sequential:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for in_width, out_width in pairwise(widths):
        if layers:
            layers.append(nn.GELU())
        layers.append(nn.Linear(in_width, out_width, **factory))
    return nn.Sequential(*layers)


class _Up(nn.Module):
    """(B, D, rows, cols) -> (B, D, 2 rows, 2 cols): transposed 2x2, GELU, depthwise 3x3, LayerNorm over channels."""

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(dim, dim, 2, 2, **factory)
        self.smooth = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **factory)
        self.norm = ChannelNorm(dim, eps=_EPS, **factory)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps at twice the resolution."""
        smoothed: Tensor = self.norm(self.smooth(nn.functional.gelu(self.grow(maps))))
        return smoothed


def rotary_positions(grid: GridSize, prefix: int, angles: int, like: Tensor) -> Tensor:
    """Return the rotary positions of ``prefix`` tokens without a position, then those of the patches of a grid.

    They are in float32, or in float64 if ``like`` is, on the device of ``like``.

    A patch's centre is (y, x) in -1 ... 1; its angles are 2 pi times the coordinate times 100 **
    (-k / angles).

    Shape:
        (prefix + rows * cols, 8 * angles): sines, then cosines, each of y, x, y, x.
    """
    on: dict[str, Any] = {
        "dtype": torch.promote_types(like.dtype, torch.float32),
        "device": like.device,
    }
    frequencies = 2 * math.pi * _ROTARY_BASE ** (-torch.arange(angles, **on) / angles)
    rows, cols = grid
    y = 2 * (torch.arange(rows, **on) + 0.5) / rows - 1
    x = 2 * (torch.arange(cols, **on) + 0.5) / cols - 1
    down = y[:, None, None].expand(rows, cols, 1) * frequencies  # (rows, cols, angles)
    across = x[None, :, None].expand(rows, cols, 1) * frequencies
    angle = torch.cat([down, across, down, across], dim=-1).flatten(0, 1)  # (N, 4 * angles)
    # (prefix + N, 4 * angles): an angle of 0 rotates nothing
    angle = nn.functional.pad(angle, (0, 0, prefix, 0))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
