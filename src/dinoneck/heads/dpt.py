"""DPTHead: the readout of the Dense Prediction Transformer, a map in the resolution of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, cast

import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import with_defaults
from dinoneck.errors import ConfigError
from dinoneck.heads.head import Head, init_bias, resampled
from dinoneck.heads.linear import Bins
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.heads.pyramid import checked_neck
from dinoneck.layers.blocks import MapLinear
from dinoneck.layers.inputs import Plain, TokensLike
from dinoneck.necks.dpt import DPTNeck
from dinoneck.necks.neck import Neck
from dinoneck.tasks import Task, activate
from dinoneck.tokens import Tokens


class DPTHead(Head):
    """Two 3x3 convolutions with an upsampling between them and a linear layer, on the finest level of a DPTNeck.

    For depth, height and segmentation with one value per pixel; published depth heads have this
    form.

    Args:
        embed_dim: channels C of the tokens.
        tasks: dense and segmentation tasks.
        neck: a :class:`dinoneck.DPTNeck`, which keeps its weights; or
            ``{"type": "dpt_neck", ...its arguments}``.
        hidden_dim: channels of the second convolution; without effect with ``linear_readout``.
        bins: for dense tasks of one output: one logit per bin and cell, of which they make the
            value.
        add_projection: a 3x3 convolution and ``projection_activation`` in front, as in heads on
            DINOv2.
        projection_activation: after the projection; None = none, as in TIPSv2's heads of normals
            and classes. Without ``add_projection`` only ``relu``, which changes nothing then.
        linear_readout: a linear layer at the decoder's cells in place of the two convolutions, the
            upsampling and the linear layer, as in TIPSv2's heads.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens -> ``{task: (B, dim, rows * patch, cols * patch)}``, one cell per pixel. The values
        are computed at the decoder's cells and then resized (bilinear, ``align_corners=False``):
        class logits in normalised units, others in original units within the task's bounds.

    Raises:
        ConfigError: if tasks repeat a name, are of another kind or do not fit ``bins``. Also if the
            neck is not a DPTNeck of this width, a size is not positive, or
            ``projection_activation`` is None without a projection.
        ShapeError: if the tokens do not fit the neck.

    Examples:
        >>> import torch
        >>> neck = DPTNeck(64, out_channels=16, hidden_sizes=(8, 8, 8, 8))
        >>> task = Task("depth", kind="dense", activation="relu", unit="m")
        >>> head = DPTHead(64, [task], neck, hidden_dim=8)
        >>> layers = [torch.randn(1, 5 + 15, 64) for _ in range(4)]
        >>> head(layers, grid=(3, 5), num_prefix_tokens=5)["depth"].shape
        torch.Size([1, 1, 48, 80])

    Reference: Ranftl et al., Vision Transformers for Dense Prediction, ICCV 2021. The upsampling
    follows the neck: with ``upsample="double"`` by 2, with ``"next"`` to one cell per pixel, both
    with the neck's ``align_corners``. TIPSv2 (arXiv 2604.12012): ``Tipsv2DptDecoder`` of
    transformers.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Task | Sequence[Task],
        neck: Neck | dict[str, Any],
        hidden_dim: int = 32,
        bins: Bins | None = None,
        add_projection: bool = False,
        projection_activation: Literal["relu"] | None = "relu",
        linear_readout: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_minimum(1, hidden_dim=hidden_dim)
        if projection_activation is None and not add_projection:
            raise ConfigError(
                "projection_activation is None, and there is no projection that it would follow; leave "
                "it out, or pass add_projection=True"
            )
        dpt_neck, factory = checked_neck(neck, embed_dim, {"device": device, "dtype": dtype})
        if not isinstance(dpt_neck, DPTNeck):
            raise ConfigError(
                f"neck is a {type(dpt_neck).__name__}; expected a DPTNeck, or use PyramidHead"
            )
        self.embed_dim = embed_dim
        self.num_layers = dpt_neck.num_layers
        self.neck = dpt_neck
        self.bins = bins
        self._set_tasks(tasks, (), "dense", "segmentation")
        if bins is not None:
            bins.check(self.tasks)
        width = dpt_neck.out_channels
        self.mix = nn.Conv2d(width, width, 3, padding=1, **factory) if add_projection else None
        self.projection_activation = projection_activation
        self.readouts = nn.ModuleList()
        for task in self.tasks:
            dim = task.dim if bins is None else bins.count
            if linear_readout:
                self.readouts.append(MapLinear(width, dim, **factory))
            else:
                self.readouts.append(_Readout(width, hidden_dim, dim, **factory))
        self._init_biases()

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        super().reset_parameters()
        self._init_biases()

    @classmethod
    def current_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of a file of 0.3, which has neither of the two last arguments."""
        defaults = {"projection_activation": "relu", "linear_readout": False}
        return with_defaults(cls, config, defaults)

    def forward(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return the tasks' outputs in normalised units."""
        tokens = self._tokens(tokens, **plain)
        outputs = {}
        for task, cells in self._cells(tokens):
            outputs[task.name] = task.of_unit_length(resampled(cells, tokens.image_size))
        return outputs

    def natural(self, tokens: TokensLike, **plain: Unpack[Plain]) -> dict[str, Tensor]:
        """Return predictions in original units, with gradients where they are enabled."""
        tokens = self._tokens(tokens, **plain)
        size = tokens.image_size
        maps = {}
        for task, cells in self._cells(tokens):
            if task.is_categorical:  # logits are resized
                maps[task.name] = task.predict_map(resampled(cells, size))
            else:  # values are resized within their bounds
                maps[task.name] = task.of_unit_length(resampled(task.predict_map(cells), size))
        return maps

    predict_maps = Head.predict  # all tasks are maps

    def predict_outputs(self, tokens: Tokens, with_maps: bool = False) -> HeadOutputs:
        """Return the maps, with or without ``with_maps``, see :meth:`Head.predict_outputs`."""
        if type(self).predict_maps is not DPTHead.predict_maps:  # a subclass has other maps
            return super().predict_outputs(tokens, with_maps)
        return HeadOutputs(maps=self.natural(tokens))

    def logits(self, tokens: Tokens) -> list[Tensor]:
        """Return the last layer's output of every task, (B, dim or bins, rows, cols) at the decoder's cells."""
        finest = self.neck(tokens).maps[0]  # checks the tokens
        # the level's own result, upsampled as inside the neck: (B, D, 2 rows, 2 cols) of its cells
        maps = F.interpolate(
            finest, scale_factor=2.0, mode="bilinear", align_corners=self.neck.align_corners
        )
        if self.mix is not None:
            maps = self.mix(maps)
            if self.projection_activation == "relu":
                maps = F.relu(maps)
        logits = []
        for readout in self.readouts:
            if isinstance(readout, _Readout):
                logits.append(readout(maps, self.neck, tokens.image_size))
            else:
                logits.append(readout(maps))
        return logits

    def _init_biases(self) -> None:
        """Set the biases of surface normals.

        Those of other tasks stay random, also before a ReLU, so that a seed gives the weights of 0.3.
        """
        for task, readout in zip(self.tasks, self.readouts, strict=True):
            if task.is_unit:
                layer = readout.out if isinstance(readout, _Readout) else readout
                init_bias(cast("nn.Linear", layer).bias, task.activation)

    def _cells(self, tokens: Tokens) -> list[tuple[Task, Tensor]]:
        """The tasks, and their maps (B, dim, rows, cols) in normalised units at the decoder's cells."""
        cells = []
        for task, values in zip(self.tasks, self.logits(tokens), strict=True):
            if self.bins is not None:
                values = self.bins(values).to(values.dtype)
            cells.append((task, activate(values, task.activation)))
        return cells


class _Readout(nn.Module):
    """3x3, upsampling, 3x3, ReLU and a linear layer."""

    def __init__(self, channels: int, hidden: int, dim: int, **factory: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels // 2, 3, padding=1, **factory)
        self.second = nn.Conv2d(channels // 2, hidden, 3, padding=1, **factory)
        self.out = MapLinear(hidden, dim, **factory)

    def forward(self, maps: Tensor, neck: DPTNeck, size: Sequence[int]) -> Tensor:
        """(B, D, r, c) -> (B, dim, rows, cols): twice as many with "double", else those of ``size``, the pixels."""
        maps = self.first(maps)
        to: dict[str, Any] = {"scale_factor": 2.0} if neck.upsample == "double" else {"size": size}
        maps = F.interpolate(maps, mode="bilinear", align_corners=neck.align_corners, **to)
        cells: Tensor = self.out(F.relu(self.second(maps)))
        return cells
