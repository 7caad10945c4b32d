"""Heads on a feature pyramid: PyramidHead on any neck, and FPNHead, its preset on ViTFPN."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.codec import encode
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.heads.head import Head, Light, Tower
from dinoneck.heads.instances import decode_centres, task_of
from dinoneck.heads.outputs import from_map_outputs, outputs_from_cells, scale_cells
from dinoneck.layers.blocks import ActivationName, NormName
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.losses.composition import Composition
from dinoneck.necks.layer_grouper import Fusion
from dinoneck.necks.neck import Neck, neck_named
from dinoneck.necks.vit_fpn import Downsample, ViTFPN
from dinoneck.tasks import MAP, Kind, Task
from dinoneck.tokens import FeaturePyramid, Tokens

RatioReadout = Literal["pooled", "patch"]
_KINDS = tuple(kind for kind in get_args(Kind) if kind != "panoptic")
_CENTRE_CHANNELS = 4  # no object, the centre, and the offset to it (down, right)


class PyramidHead(Head):
    """One readout per task on any registered neck.

    Scalar tasks (regression, ratio, classification, multilabel) read concat(GAP of every level) ->
    LayerNorm -> one light head each, or take the mean over a map's cells (``Task.from_map``). Dense,
    density and segmentation tasks read the finest level through a 3x3 tower each: ``dense`` a value and
    ``segmentation`` class logits per cell, ``density`` a map whose cells sum (or average, see
    ``Task.aggregate``) to the image's value. ``instances`` have a class, a centre and the offset to
    it per cell, which :meth:`predict_instances` joins to objects.

    Args:
        embed_dim: channels of the tokens; None = those of the neck module.
        tasks: any kinds but ``panoptic``.
        neck: a neck module, which keeps its weights, or
            ``{"type": a registered neck, ...its arguments}`` without ``embed_dim``.
        layer_indices: block indices the head reads, in this order; tokens that hold more are
            selected from. None: the tokens' layers as they come.
        hidden_dim: hidden units of the light heads; None = one linear layer each.
        tower_depth: 3x3 blocks of every tower.
        ratio_readout: ratios from the ``pooled`` vector, or from logits per ``patch`` whose shares
            are averaged.
        compositions: outputs computed from the tasks' predictions, see
            :class:`dinoneck.Composition`.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task: (B, dim)}``; ``{task: (B, dim, rows, cols)}`` for dense and segmentation;
        next to the value of a density (or patch-wise ratio) its map in normalised units as
        ``"task.map"``; of instances ``"task.map"`` alone, (B, dim + 4, rows, cols). Its channels
        are the logits of no object and of the classes, the centre, and the offset to it (down,
        right) in cells. rows x cols are those of the finest level.

    Raises:
        ConfigError: if tasks repeat a name, the `neck` is None or its arguments do not fit.
        ShapeError: if tokens do not fit the neck, or the neck returns no FeaturePyramid.

    Examples:
        >>> from dinoneck import SimplePyramid
        >>> tasks = [Task("mass", unit="g"), Task("ndvi_map", kind="dense"), Task("plants", kind="density")]
        >>> head = PyramidHead(neck=SimplePyramid(64, out_channels=32, scales=[1, 0.5]), tasks=tasks)
        >>> tokens = Tokens.from_patches(torch.randn(2, 15, 64), grid=(3, 5), patch_size=16)
        >>> {name: tuple(output.shape) for name, output in head.predict(tokens).items()}
        {'mass': (2, 1), 'ndvi_map': (2, 1, 3, 5), 'plants': (2, 1)}
    """

    def __init__(
        self,
        embed_dim: int | None = None,
        tasks: Task | Sequence[Task] = (),
        neck: Neck | dict[str, Any] | None = None,
        layer_indices: Sequence[int] | None = None,
        hidden_dim: int | None = None,
        tower_depth: int = 2,
        ratio_readout: RatioReadout = "pooled",
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if hidden_dim is not None:
            check_minimum(1, hidden_dim=hidden_dim)
        check_minimum(0, tower_depth=tower_depth)
        self.neck, factory = checked_neck(neck, embed_dim, {"device": device, "dtype": dtype})
        self.embed_dim = self.neck.embed_dim
        self.num_layers = self.neck.num_layers
        self.ratio_readout = ratio_readout
        self._set_tasks(tasks, compositions, *_KINDS)
        self.layer_indices = _checked_layers(layer_indices, self.neck.num_layers)
        pooled_dim = self.neck.out_channels * len(self.neck.strides)
        self._scalar_tasks = [task for task in self._read_tasks if not self._reads_map(task)]
        self._map_tasks = [task for task in self.tasks if self._reads_map(task)]
        self.norm = nn.LayerNorm(pooled_dim, **factory) if self._scalar_tasks else None
        self.light = nn.ModuleList(
            Light(pooled_dim, task, hidden_dim, **factory) for task in self._scalar_tasks
        )
        self.towers = nn.ModuleList()
        for task in self._map_tasks:
            tower_task = task
            if task.is_masks:  # its tower has a plain output per channel
                num_channels = task.dim + _CENTRE_CHANNELS
                tower_task = replace(task, kind="dense", dim=num_channels, labels=(), thresholds=())
            self.towers.append(Tower(self.neck.out_channels, tower_task, tower_depth, **factory))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments, with every argument of the neck."""
        arguments = super().config
        if "neck" in arguments:  # a preset such as FPNHead has the neck's arguments instead
            return arguments | {"neck": encode(self.neck)}
        return arguments

    def calibrate(self, batches: Iterable[Tokens]) -> None:
        """Let the neck set its entrance norms to the tokens, if it has such norms and they are still untouched."""
        calibrate = getattr(self.neck, "calibrate", None)
        if callable(calibrate):
            calibrate(self._selected(self._tokens(tokens)) for tokens in batches)

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the tasks' outputs in normalised units."""
        tokens = self._selected(self._tokens(tokens, **plain))
        levels = self._levels(tokens)  # (B, D, rows_i, cols_i) each
        outputs: dict[str, Tensor] = {}
        if self.norm is not None:
            # global average of every level: (B, levels * D)
            pooled = torch.cat([level.mean(dim=(2, 3)) for level in levels], dim=1)
            pooled = self.norm(pooled)
            for task, light in zip(self._scalar_tasks, self.light, strict=True):
                outputs[task.name] = light(pooled)
        for task, tower in zip(self._map_tasks, self.towers, strict=True):
            cells = scale_cells(task, tower(levels[0]))  # (B, dim, rows, cols)
            outputs.update(outputs_from_cells(task, cells))
        return outputs | from_map_outputs(self.tasks, outputs)

    def _levels(self, tokens: Tokens) -> tuple[Tensor, ...]:
        """The maps of the neck's pyramid, fine to coarse."""
        pyramid = self.neck(tokens)
        if not isinstance(pyramid, FeaturePyramid):
            raise ShapeError(
                f"{type(self.neck).__name__}.forward returned a {type(pyramid).__name__}; expected "
                "a FeaturePyramid: return FeaturePyramid(maps, self.strides) with maps "
                "(batch, out_channels, rows, cols), fine to coarse"
            )
        return pyramid.maps

    @torch.no_grad()
    def predict_instances(
        self,
        tokens: TokensLike,
        size: Sequence[int] | None = None,
        min_score: float | None = None,
        **plain: Unpack[Plain],
    ) -> list[dict[str, Tensor]]:
        """Return the instances of every image, see :func:`dinoneck.heads.instances.decode_centres`.

        Args:
            tokens: of the images.
            size: (height, width) of the masks; None = that of the images that the tokens are of.
            min_score: leave out instances of a lower score; None = the thresholds of the task, or its
                minimum, without both 0.3.
            **plain: of plain tensors, as for calling.

        Raises:
            ConfigError: if the head has no task of instances, or several.
        """
        task = task_of(self.tasks, "instances")
        tokens = self._tokens(tokens, **plain)
        maps = self(tokens)[f"{task.name}{MAP}"]
        return decode_centres(
            maps,
            size=size or tokens.image_size,
            min_score=task.least_score if min_score is None else min_score,
        )

    def _reads_map(self, task: Task) -> bool:
        if task.kind == "ratio":
            return self.ratio_readout == "patch"
        return task.is_map or task.kind in ("density", "instances")

    def _selected(self, tokens: Tokens) -> Tokens:
        """The layers that the head reads, where both sides name layers."""
        if self.layer_indices is None or tokens.layers is None:
            return tokens
        if tokens.layers == self.layer_indices:
            return tokens
        return tokens.select(self.layer_indices)


def checked_neck(
    neck: Neck | dict[str, Any] | None, embed_dim: int | None, factory: dict[str, Any]
) -> tuple[Neck, dict[str, Any]]:
    """Return the neck and the device and dtype of its weights, for the layers on top of it.

    A neck module is moved to the factory's device and dtype, a dict is built with them.

    Raises:
        ConfigError: if the neck is None, its width is not ``embed_dim``, or it needs images.
    """
    if isinstance(neck, dict):
        config = {"embed_dim": embed_dim, **neck}
        neck = neck_named(config.pop("type", None)).from_config(config, **factory)
    elif neck is None:
        raise ConfigError(
            "neck is None; expected a neck module such as ViTFPN(...), or {'type': ..., its "
            "arguments}"
        )
    elif any(value is not None for value in factory.values()):
        neck = neck.to(**factory)
    if embed_dim not in (None, neck.embed_dim):
        raise ConfigError(
            f"the neck's embed_dim is {neck.embed_dim}, the head's {embed_dim}; leave it out"
        )
    if neck.needs_images:
        raise ConfigError(
            f"{type(neck).__name__} needs the images with the tokens, which heads are not given"
        )
    weight = next(neck.parameters(), None)
    if weight is not None:
        factory = {"device": weight.device, "dtype": weight.dtype}
    return neck, factory


def _checked_layers(layers: Sequence[int] | None, num_layers: int | None) -> tuple[int, ...] | None:
    """The block indices of a head whose neck reads so many layers; None: any number."""
    if layers is None:
        return None
    if not layers:
        raise ConfigError(
            "layer_indices is empty; expected one block index or more, or None for the layers of "
            "the tokens as they come"
        )
    for layer in layers:
        if layer < 0:
            raise ConfigError(
                f"layer_indices is {tuple(layers)}, and {layer} is negative; expected block "
                "indices, which count from 0"
            )
    if num_layers is not None and len(layers) != num_layers:
        raise ConfigError(
            f"layer_indices names {len(layers)} blocks {tuple(layers)}; the neck reads "
            f"{num_layers} layers"
        )
    return tuple(layers)


class FPNHead(PyramidHead):
    """A :class:`dinoneck.PyramidHead` on a :class:`dinoneck.ViTFPN`, with the neck's arguments next to its own.

    Prefer it where the prediction depends on how patches are arranged, or where there are labels
    per pixel; for a few hundred images with one number each, compare it with
    :class:`dinoneck.PatchMeanHead` by the worst fold.

    Args:
        embed_dim: channels of the tokens.
        tasks: any kinds, see :class:`dinoneck.PyramidHead`.
        num_layers: layers L the head reads.
        layer_indices: their block indices, in this order; tokens that hold more are selected from.
        fpn_dim: see :class:`dinoneck.ViTFPN`, as all that follow up to ``patch_size``.
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

    Reference: the published FPN notebook (reg3, ratio and NDVI heads on P2, P3, P4). Deviations:
    the non-linearity after the smoothing and LayerNorm at the entrance, see
    :class:`dinoneck.ViTFPN`.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
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
        hidden_dim: int | None = None,
        tower_depth: int = 2,
        ratio_readout: RatioReadout = "pooled",
        compositions: Sequence[Composition] = (),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        neck = ViTFPN(
            embed_dim,
            num_layers,
            fpn_dim=fpn_dim,
            num_levels=num_levels,
            layer_groups=layer_groups,
            use_separate_bottlenecks=use_separate_bottlenecks,
            fusion=fusion,
            downsample=downsample,
            norm=norm,
            activation=activation,
            residual_init=residual_init,
            use_coords=use_coords,
            use_cls_context=use_cls_context,
            patch_size=patch_size,
            device=device,
            dtype=dtype,
        )
        super().__init__(
            embed_dim,
            tasks,
            neck,
            layer_indices=layer_indices,
            hidden_dim=hidden_dim,
            tower_depth=tower_depth,
            ratio_readout=ratio_readout,
            compositions=compositions,
            device=device,
            dtype=dtype,
        )
