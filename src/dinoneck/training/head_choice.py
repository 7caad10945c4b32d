"""A head by its name and plain values, fitted to the tokens it will read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.grid import GridSize, patch_pair
from dinoneck.heads.cls_gating import CLSGatingHead
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.fpn import FPNHead
from dinoneck.heads.head import Head
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.tasks import Task
from dinoneck.training.fpn_yaml import FPNSettings, fpn_settings
from dinoneck.training.plan import HeadName

PYRAMID_DIM = 128
POOLED_HEADS = ("patch_mean", "cls_gating")
"""Those that answer for the whole photo alone."""


@dataclass(frozen=True)
class HeadChoice:
    """Which head, in plain values; None = the head's own default.

    Attributes:
        name: ``patch_mean``, ``fpn``, ``cls_gating`` or ``dense``.
        hidden_dim: hidden units; channels of the pyramid.
        dropout: of ``cls_gating``.
        gate: its mode, ``mlp``, ``query`` or ``resized``.
        fpn: values of the FPN design source's keys, see :func:`dinoneck.training.read_fpn_yaml`; empty = a pyramid on
            all layers of the tokens.

    Raises:
        ConfigError: if the name is unknown.
    """

    name: HeadName = "patch_mean"
    hidden_dim: int | None = None
    dropout: float | None = None
    gate: str | None = None
    fpn: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = get_args(HeadName)
        if self.name not in names:
            raise ConfigError(
                f"head is {self.name!r}; expected one of {', '.join(names)}.{did_you_mean(self.name, names)}"
            )

    @property
    def settings(self) -> FPNSettings | None:
        """What the FPN design source's keys say; None where none is given.

        Raises:
            ConfigError: if they contradict each other, or ask for dense NDVI, which no table of numbers has.
        """
        if self.name != "fpn" or not self.fpn:
            return None
        found = fpn_settings("the training file", self.fpn)
        if found.ndvi_dense:
            raise ConfigError(
                "model.head.ndvi_dense is true; a table of numbers has no NDVI maps. Leave it out, or train from "
                "Python: examples/dense_ndvi"
            )
        return found

    @property
    def layers(self) -> tuple[int, ...] | None:
        """The backbone blocks that the FPN keys name; None = any."""
        settings = self.settings
        named = None if settings is None else settings.arguments.get("layer_indices")
        return None if named is None else tuple(named)

    def build(self, backbone: Mapping[str, Any], grid: GridSize, tasks: Sequence[Task]) -> Head:
        """Return a new head for tokens of this backbone (its record) on this grid.

        Raises:
            ConfigError: if the head cannot serve the tasks, or does not fit the tokens.
        """
        width = int(backbone["embed_dim"])
        hidden: dict[str, Any] = {} if self.hidden_dim is None else {"hidden_dim": self.hidden_dim}
        if self.name == "fpn":
            return self._pyramid(backbone, tasks)
        if self.name == "cls_gating":
            dropout: dict[str, Any] = {} if self.dropout is None else {"dropout": self.dropout}
            mode: Any = self.gate or "mlp"
            places: Any = {"mlp": grid.count, "resized": (grid.rows, grid.cols)}.get(mode)
            return CLSGatingHead(width, tasks, mode, places, **hidden, **dropout)
        if self.name == "dense":
            return DenseHead(width, tasks, **hidden)
        return PatchMeanHead(width, tasks, **hidden)

    def _pyramid(self, backbone: Mapping[str, Any], tasks: Sequence[Task]) -> FPNHead:
        layers, settings = tuple(backbone["layers"]), self.settings
        patch_size, across = patch_pair(backbone["patch_size"])
        if patch_size != across:
            raise ConfigError(f"head 'fpn' needs square patches; this backbone's are {(patch_size, across)} px")
        if settings is not None:
            arguments = {**settings.arguments}
        else:
            arguments = {"num_layers": len(layers), "layer_indices": layers, "fpn_dim": PYRAMID_DIM, "tower_depth": 1}
        if self.hidden_dim is not None:
            arguments["fpn_dim"] = self.hidden_dim
        return FPNHead(int(backbone["embed_dim"]), tasks, **arguments, patch_size=patch_size)
