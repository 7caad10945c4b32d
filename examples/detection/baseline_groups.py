"""Parameter groups of a detector on a convolutional baseline, which has no dinoneck backbone."""

from __future__ import annotations

from typing import Any

from torch import nn


def convolutional_groups(
    model: nn.Module, backbone: nn.Module, *, lr: float, backbone_lr: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Return four groups: backbone and the rest, each with and without weight decay (norms and biases).

    Args:
        model: the detector.
        backbone: the part of it with a learning rate of its own.
        lr: of the rest.
        backbone_lr: of the backbone; None = lr.
        weight_decay: of weight matrices and kernels.
    """
    inside = {id(parameter) for parameter in backbone.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        part, rate = ("backbone", backbone_lr or lr) if id(parameter) in inside else ("head", lr)
        decays = parameter.ndim > 1
        name = f"{part}.{'decay' if decays else 'no_decay'}"
        fresh = {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0, "name": name}
        if parameter.requires_grad:
            groups.setdefault(name, fresh)["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: str(group["name"]))
