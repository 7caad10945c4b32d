"""The YAML keys of a published FPN training notebook -> an FPNHead, and the loss that goes with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinoneck.errors import ConfigError
from dinoneck.flat_yaml import read_flat_yaml
from dinoneck.heads.fpn import FPNHead
from dinoneck.losses.composition import Composition, CompositionLoss
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.losses.uncertainty import UncertaintyWeighting
from dinoneck.tasks import Task

KEYS = (
    "model.head.type",
    "model.head.fpn_dim",
    "model.head.num_levels",
    "model.head.layer_grouping",
    "model.head.use_cls_context",
    "model.head.ndvi_dense",
    "model.backbone_layers.enabled",
    "model.backbone_layers.indices",
    "model.backbone_layers.separate_bottlenecks",
    "fpn.layer_groups",
    "loss.weighting",
)
TASKS = (Task("reg3"), Task("ratio", dim=3, kind="ratio"), Task("ndvi"))
NDVI_DENSE = Task("ndvi_dense", kind="dense")


@dataclass(frozen=True)
class FPNSettings:
    """The settings of one file.

    Attributes:
        arguments: of :class:`dinoneck.FPNHead`, without ``embed_dim`` and ``tasks``.
        ndvi_dense: whether a dense NDVI task is added.
        weighting: ``"uw"`` (uncertainty weighting) or None (fixed weights).
        path: of the file, for messages.
    """

    arguments: dict[str, Any]
    ndvi_dense: bool = False
    weighting: str | None = None
    path: str | os.PathLike[str] = "the settings"

    def tasks(self, tasks: Sequence[Task] | None = None) -> tuple[Task, ...]:
        """Return these tasks, or reg3, ratio and ndvi; and the dense NDVI task where the file asks for it."""
        given = TASKS if tasks is None else tuple(tasks)
        return (*given, NDVI_DENSE) if self.ndvi_dense else given

    def head(self, embed_dim: int = 384, tasks: Sequence[Task] | None = None, **arguments: Any) -> FPNHead:
        """Build the head that the file describes.

        Args:
            embed_dim: channels of the tokens, which such a file does not record (384: a ViT-S).
            tasks: as for :meth:`tasks`.
            **arguments: other arguments of the head, ``patch_size`` for example.

        Raises:
            ConfigError: naming the file and the key.
        """
        if twice := sorted(set(arguments) & set(self.arguments)):
            raise ConfigError(f"{', '.join(twice)} given twice: as an argument and in {self.path}")
        try:
            return FPNHead(embed_dim, self.tasks(tasks), **self.arguments, **arguments)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error

    def loss(self, tasks: Sequence[Task], compositions: Sequence[Composition | CompositionLoss] = ()) -> TaskLoss:
        """Return the loss over a head's tasks and compositions."""
        every = [own.name for own in (*tasks, *compositions)]
        return TaskLoss(tasks, compositions, UncertaintyWeighting(every) if self.weighting == "uw" else None)


def read_fpn_yaml(path: str | os.PathLike[str]) -> FPNSettings:
    """Read the notebook's keys, nested or dotted (``model.head.fpn_dim: 256``).

    ``model.backbone_layers.enabled: false`` means the last layer only; ``layer_grouping: explicit`` needs
    ``fpn.layer_groups``, positions in ``indices``; ``loss.weighting`` is ``uw`` or ``fixed``.

    Raises:
        ConfigError: if the file cannot be read, a key is unknown or stands twice, or values contradict each other.
    """
    return fpn_settings(path, read_flat_yaml(path, KEYS))


def fpn_settings(path: str | os.PathLike[str], given: Mapping[str, Any]) -> FPNSettings:
    """Like :func:`read_fpn_yaml`, of values that are read already; ``path`` is for messages."""
    said = {key: value for key, value in given.items() if value is not None}
    if said.get("model.head.type", "fpn") != "fpn":
        raise ConfigError(f"{path}: model.head.type is {said['model.head.type']!r}; expected 'fpn'")
    weighting = said.get("loss.weighting", "fixed")
    if weighting not in ("uw", "fixed"):
        raise ConfigError(f"{path}: loss.weighting is {weighting!r}; expected 'uw' or 'fixed'")
    switches = {
        key: _switch(path, key, said.get(key, default))
        for key, default in (
            ("model.backbone_layers.enabled", False),
            ("model.backbone_layers.separate_bottlenecks", True),
            ("model.head.use_cls_context", False),
            ("model.head.ndvi_dense", False),
        )
    }
    arguments: dict[str, Any] = {
        "use_separate_bottlenecks": switches["model.backbone_layers.separate_bottlenecks"],
        "use_cls_context": switches["model.head.use_cls_context"],
        **_layers(path, said, switches["model.backbone_layers.enabled"]),
    }
    for name in ("fpn_dim", "num_levels"):
        if f"model.head.{name}" in said:
            arguments[name] = said[f"model.head.{name}"]
    return FPNSettings(arguments, switches["model.head.ndvi_dense"], "uw" if weighting == "uw" else None, path)


def _layers(path: str | os.PathLike[str], said: dict[str, Any], enabled: bool) -> dict[str, Any]:
    grouping, groups = said.get("model.head.layer_grouping", "auto"), said.get("fpn.layer_groups")
    if grouping not in ("auto", "explicit"):
        raise ConfigError(f"{path}: model.head.layer_grouping is {grouping!r}; expected 'auto' or 'explicit'")
    if (grouping == "explicit") != (groups is not None):
        raise ConfigError(
            f"{path}: model.head.layer_grouping is {grouping!r} and fpn.layer_groups is {groups!r}; explicit grouping "
            "needs the groups, auto makes its own"
        )
    indices = said.get("model.backbone_layers.indices")
    if not enabled:
        return {"num_layers": 1, **({} if groups is None else {"layer_groups": groups})}
    if not isinstance(indices, list | tuple) or not indices:
        raise ConfigError(
            f"{path}: model.backbone_layers.enabled is true and indices is {indices!r}; expected a list of block "
            "indices such as [2, 5, 8, 11]"
        )
    return {"num_layers": len(indices), "layer_indices": indices, "layer_groups": groups or "auto"}


def _switch(path: str | os.PathLike[str], key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {key} is {value!r}; expected true or false")
    return value
