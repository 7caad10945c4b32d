"""What becomes of targets and masks when two samples are blended: each by what it is.

Used by :mod:`dinoneck.training.mixup`, whose functions say the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.tasks import Kind, Task, check_tasks
from dinoneck.training.mixture import Mixture, spread

MISSING_LABEL = -1


class TotalAndRatio(Protocol):
    """What a composition must say here: which task is the mass, and which holds the shares of it."""

    @property
    def total(self) -> str:
        """Name of the task of the mass."""

    @property
    def ratio(self) -> str:
        """Name of the task of the shares."""


@dataclass(frozen=True)
class Cut:
    """The rectangles of a batch: edges (4, B) = top, bottom, left, right in units of ``unit`` pixels."""

    edges: Tensor
    unit: tuple[int, int]
    image_size: tuple[int, int]

    def shares_left(self) -> Tensor:
        """The share of the image outside the rectangle, (B,) float64."""
        top, bottom, left, right = self.edges.double().unbind()
        area = (bottom - top) * self.unit[0] * (right - left) * self.unit[1]
        return 1.0 - area / (self.image_size[0] * self.image_size[1])

    def inside(self, cells: tuple[int, int], device: torch.device, name: str) -> Tensor:
        """Whether a cell of a map lies in the sample's rectangle, bool (B, rows, cols)."""
        spans: list[Tensor] = []
        for axis, (count, length, step) in enumerate(zip(cells, self.image_size, self.unit, strict=True)):
            if count < 1 or length % count or step % (length // count):
                raise ShapeError(self._misfit(cells, name))
            first, last = self.edges[2 * axis : 2 * axis + 2].to(device)[..., None] * (step // (length // count))
            places = torch.arange(count, device=device)
            spans.append((places >= first) & (places < last))
        return spans[0][:, :, None] & spans[1][:, None, :]

    def _misfit(self, cells: tuple[int, int], name: str) -> str:
        height, width = self.image_size
        return (
            f"{name} has {cells[0]}x{cells[1]} cells (rows x cols) on images of {height}x{width} px, and rectangles "
            f"of whole {self.unit[0]}x{self.unit[1]} px would cut through them; pass patch_size= with the pixels "
            f"per cell ({height / max(cells[0], 1):g}x{width / max(cells[1], 1):g}, whole numbers), or give a map at "
            "image resolution"
        )


@dataclass(frozen=True)
class Blend(Mixture):
    """A mixture of samples, and for cutmix where."""

    cut: Cut | None = None

    def pasted(self, x: Tensor, name: str) -> Tensor:
        """Maps (B, ..., rows, cols) with the partner's cells in the rectangle; linear where there is none."""
        if self.cut is None:
            return self.linear(x)
        inside = self.cut.inside((x.shape[-2], x.shape[-1]), x.device, name)
        return torch.where(inside.reshape(len(x), *(1,) * (x.ndim - 3), *inside.shape[1:]), self.other(x), x)

    def both(self, mask: Tensor) -> Tensor:
        """What counts on both sides; a floating-point weight is mixed there."""
        if not mask.is_floating_point():
            keep = mask != 0
            return keep & self.other(keep)
        return torch.where((mask > 0) & (self.other(mask) > 0), self.linear(mask), 0.0)


@dataclass(frozen=True)
class Declared:
    """What the targets are: tasks by name, ratio task -> task of its mass, and whether there were tasks at all."""

    tasks: Mapping[str, Task]
    masses: Mapping[str, str]
    told: bool

    @classmethod
    def of(
        cls,
        tasks: Sequence[Task] | None,
        compositions: Sequence[TotalAndRatio],
        targets: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None,
        batch: int,
    ) -> Declared:
        """Read the declarations and check names and batch sizes."""
        if tasks is None and compositions:
            raise ConfigError(f"{len(compositions)} compositions but no tasks; pass tasks= with those they name")
        told = () if tasks is None else check_tasks(tasks, kinds=get_args(Kind), owner="mixing")
        known = {task.name: task for task in told}
        named = [getattr(own, "name", own.total) for own in compositions]
        names = list(dict.fromkeys([*(targets if tasks is None else known), *named]))
        for what, given in (("targets", targets), ("masks", masks or {})):
            if unknown := [name for name in given if name not in names]:
                raise ShapeError(f"the {what} name {unknown}; expected some of {names}, or tasks= that tell them")
            for name, x in given.items():
                if not isinstance(x, Tensor) or x.ndim < 1 or x.shape[0] != batch:
                    raise ShapeError(f"the {what} of {name!r} are {form_of(x)}; expected a tensor of {batch} samples")
        return cls(known, _masses(known, compositions, targets), tasks is not None)

    def is_map(self, name: str, targets: Mapping[str, Tensor]) -> bool:
        """Whether a target has rows and cols."""
        if not self.told:
            return targets[name].ndim == 4
        return name in self.tasks and self.tasks[name].kind in ("dense", "segmentation")


def _masses(
    tasks: Mapping[str, Task], compositions: Sequence[TotalAndRatio], targets: Mapping[str, Tensor]
) -> dict[str, str]:
    masses: dict[str, str] = {}
    for own in (own for own in compositions if own.total or own.ratio):  # others add up tasks
        total, ratio = tasks.get(own.total), tasks.get(own.ratio)
        if total is None or total.kind not in ("regression", "density") or total.dim != 1:
            raise ConfigError(f"a composition's total {own.total!r} is no regression or density task with one output")
        if ratio is None or ratio.kind != "ratio":
            raise ConfigError(f"a composition's ratio {own.ratio!r} is no task of kind 'ratio'")
        if masses.setdefault(ratio.name, total.name) != total.name:
            raise ConfigError(f"compositions weigh {ratio.name!r} by {masses[ratio.name]!r} and by {total.name!r}")
        if ratio.name in targets and total.name not in targets:
            raise ShapeError(f"the targets lack {total.name!r}, the mass that the shares {ratio.name!r} are weighed by")
    return masses


def mixed_targets(
    blend: Blend, declared: Declared, targets: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the targets of the blended samples; ``masks`` say what of them may be looked at."""
    mixed = {}
    for name, x in targets.items():
        task = declared.tasks.get(name)
        if task is None:
            mixed[name] = _untold(blend, name, x, is_map=declared.is_map(name, targets))
        elif task.is_categorical:
            mixed[name] = _mixed_classes(blend, task, x, masks.get(name))
        elif name in declared.masses:
            total = declared.tasks[declared.masses[name]]
            mixed[name] = _mixed_shares(blend, task, x, _grams(total, targets[total.name], masks.get(total.name)))
        else:
            mixed[name] = _mixed_values(blend, task, x, masks.get(name))
    return mixed


def mixed_masks(
    blend: Blend, declared: Declared, targets: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the masks of the blended samples, and one for shares whose mass has a mask."""
    mixed = {}
    for name, mask in masks.items():
        if name in targets:
            _counts(mask, targets[name], name)
        on_map = blend.cut is not None and mask.ndim > 2 and declared.is_map(name, targets)
        mixed[name] = blend.pasted(mask, f"the mask of {name!r}") if on_map else blend.both(mask)
    for ratio, total in declared.masses.items():
        if ratio in targets and total in masks:
            known = (mixed[total] > 0).reshape(-1)
            own = mixed.get(ratio, known)
            mixed[ratio] = torch.where(spread(known, own.ndim), own, torch.zeros_like(own))
    return mixed


def _untold(blend: Blend, name: str, x: Tensor, *, is_map: bool) -> Tensor:
    """A target of which no task says what it is."""
    if not x.is_floating_point():
        raise ShapeError(f"the targets of {name!r} are {x.dtype}; say what they are with tasks= (classes, for one)")
    if blend.cut is not None and x.ndim > 2 and not is_map:
        raise ShapeError(
            f"the targets of {name!r} are {form_of(x)}, mixed by area or pasted? Expected (batch,), (batch, dim) or "
            "maps (batch, dim, rows, cols); add the axis, or say what they are with tasks="
        )
    return blend.pasted(x, f"the target {name!r}") if is_map else blend.linear(x)


def _mixed_values(blend: Blend, task: Task, x: Tensor, mask: Tensor | None) -> Tensor:
    """Values in model space, blended in natural units; an affine transform needs no way there and back."""
    values = _values(task, x)
    if blend.cut is not None and task.kind == "dense":
        return blend.pasted(values, f"the target {task.name!r}")
    if task.transform is None or task.transform.is_affine:
        return blend.linear(values)
    own = _wide(_shown(values, mask, task.name)).movedim(1, -1)
    mixed = task.transform.forward(blend.linear(task.transform.inverse(own)))
    mixed = torch.where(own == blend.other(own), own, mixed)
    return mixed.movedim(-1, 1).to(values.dtype)


def _mixed_shares(blend: Blend, task: Task, x: Tensor, grams: Tensor) -> Tensor:
    """Shares of a mass (B, 1): those of both sides, each weighed by what it brings to the blended mass."""
    values, kept, blended = _values(task, x), blend.share(grams), blend.linear(grams)
    nothing = blended == 0
    share = torch.where(nothing, kept, kept * grams / torch.where(nothing, 1.0, blended))
    return torch.lerp(_wide(blend.other(values)), _wide(values), share).to(values.dtype)


def _grams(total: Task, x: Tensor, mask: Tensor | None) -> Tensor:
    """A mass in natural units, at least 0; NaN where it is not known."""
    values = _wide(_shown(_values(total, x), mask, total.name))
    return (values if total.transform is None else total.transform.inverse(values)).clamp_min(0.0)


def _mixed_classes(blend: Blend, task: Task, x: Tensor, mask: Tensor | None) -> Tensor:
    """Class indices as blended probabilities, classes on axis 1; pasted segmentation stays as it is."""
    axes = 3 if task.kind == "segmentation" else 1
    soft = x.is_floating_point()
    if x.ndim != axes + soft or (soft and x.shape[1] != task.dim) or x.dtype == torch.bool:
        size = ", height, width" if axes == 3 else ""
        raise ShapeError(
            f"the targets of {task.name!r} are {form_of(x)}; expected class indices (batch{size}) or probabilities "
            f"(batch, {task.dim}{size})"
        )
    if axes == 3 and blend.cut is not None:
        return blend.pasted(x, f"the target {task.name!r}")
    return blend.linear(x if soft else _probabilities(task, x.long(), mask))


def _probabilities(task: Task, labels: Tensor, mask: Tensor | None) -> Tensor:
    """1 for the class, 0 for the others; NaN where there is no label."""
    known = labels != MISSING_LABEL
    if task.ignore_index is not None:
        known = known & (labels != task.ignore_index)
    if mask is not None:
        known = known & _counts(mask, labels, task.name)
    wrong = labels[known & ((labels < 0) | (labels >= task.dim))]
    if len(wrong):
        raise DataError(
            f"the targets of {task.name!r} hold class index {int(wrong[0])}; expected 0 ... {task.dim - 1}, "
            f"{MISSING_LABEL} for missing or the task's ignore_index ({task.ignore_index})"
        )
    shape = (labels.shape[0], task.dim, *labels.shape[1:])
    empty = torch.zeros(shape, device=labels.device)
    ones = empty.scatter_(1, torch.where(known, labels, 0).unsqueeze(1), 1.0)
    return ones.masked_fill_(~known.unsqueeze(1), torch.nan)


def _values(task: Task, x: Tensor) -> Tensor:
    """The target of a task that has values, its form checked."""
    axes = 4 if task.kind == "dense" else 2
    if x.ndim != axes or x.shape[1] != task.dim or not x.is_floating_point():
        size = ", rows, cols" if axes == 4 else ""
        raise ShapeError(
            f"the targets of {task.name!r} are {form_of(x)}; expected floating point (batch, {task.dim}{size})"
        )
    return x


def _counts(mask: Tensor, like: Tensor, name: str) -> Tensor:
    """A mask as bool in the shape of its target; (B, rows, cols) stands for all outputs of a map."""
    keep = mask > 0
    if like.ndim == 4 and keep.ndim == 3:
        keep = keep.unsqueeze(1)
    keep = keep.squeeze(-1) if keep.ndim == like.ndim + 1 else spread(keep, like.ndim)
    if keep.ndim != like.ndim or any(own not in (1, side) for own, side in zip(keep.shape, like.shape, strict=True)):
        raise ShapeError(f"the mask of {name!r} has shape {tuple(mask.shape)}; its target {tuple(like.shape)}")
    return keep.expand_as(like)


def _shown(values: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """NaN where a mask hides a value, which may be anything."""
    return values if mask is None else torch.where(_counts(mask, values, name), values, torch.nan)


def _wide(x: Tensor) -> Tensor:
    """float64 where the device has it, else float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def form_of(x: object) -> str:
    """Shape and dtype of a tensor, or the type of anything else, for messages."""
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
