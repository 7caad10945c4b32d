"""Training samples that are blends of two: of their tokens (:func:`manifold_mixup`) or their images (:func:`cutmix`).

Every sample i of a batch is blended with a partner and keeps a share lambda_i of itself. One permutation and one
lambda per sample serve everything: all layers, all targets and all masks.

Targets ``{name: tensor}`` without ``tasks`` are mixed linearly and must be floating point. With tasks, by kind:

* ``regression``, ``density``: (B, dim) in model space, mixed in natural units (masses add in grams, not in log
  space) and taken back. ``dense`` (B, dim, rows, cols) likewise, so tokens and labels must be turned alike.
* ``ratio``: shares (B, dim), weighed by the mass that a composition names, else linearly. Where neither side has
  any mass: linearly. A mass below 0 counts as 0; where a mass is missing, so are the mixed shares.
* ``classification``: class indices (B,) -> probabilities (B, dim); ``segmentation``: (B, H, W) -> (B, dim, H, W).
  Probabilities are taken as well. A sample or pixel labelled -1 or ``ignore_index`` on either side is NaN.

A target named like a composition (``.name``) holds natural units and is mixed linearly. NaN means missing and
stays NaN in the mix. What a mask hides is NaN in the mix wherever mixing is not plainly linear (logarithms, shares
of a mass, classes).

Masks that are bool or integer count where both sides count. A floating-point weight, such as (B, rows, cols) of
dense labels, is mixed by lambda where both sides weigh more than 0, else it is 0. Shares weighed by a mass count
only where the mass does: their mask is intersected with its mask, and made if there was none.

:func:`cutmix` pastes maps instead of mixing them, and they keep their dtype: ``dense`` (B, dim, rows, cols),
``segmentation`` (B, H, W) or (B, dim, H, W), targets of four axes when there are no tasks, and masks of maps that
have rows and cols. A map's cells must not be cut: pass ``patch_size``, or maps at image resolution.

Random numbers are drawn on the CPU by a NumPy generator that is seeded with one draw from the torch generator, so
that a seed gives the same blend whatever the device, and one call moves the torch generator by one draw.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, get_args

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.grid import PatchSize, TokenGrid, patch_pair
from dinoneck.tasks import Kind, Task, check_tasks
from dinoneck.tokens import FeaturePyramid, Tokens

_ROUNDING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Mixture:
    """Sample i becomes ``kept[i]`` of itself plus the rest of sample ``partner[i]``.

    Attributes:
        partner: (B,) a permutation of the samples.
        kept: (B,) float64.
        exact: dtypes that hold ``kept`` without rounding; worked out where a Mixture is made, as reading values in a
            forward would wait for a GPU.
    """

    partner: Tensor
    kept: Tensor
    exact: tuple[torch.dtype, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.exact is None:
            exact = [dtype for dtype in _ROUNDING if torch.equal(self.kept.to(dtype).double(), self.kept)]
            object.__setattr__(self, "exact", (torch.float64, *exact))

    def to(self, device: torch.device | str) -> Self:
        """Return the same mixture on a device: its tensors are copied there once, not at every use."""
        dtype = torch.float32 if torch.device(device).type == "mps" else self.kept.dtype  # MPS has no float64
        return replace(self, partner=self.partner.to(device), kept=self.kept.to(dtype).to(device))

    def other(self, x: Tensor) -> Tensor:
        """The partners' values, as a copy of the same memory format."""
        return x[self.partner.to(x.device)]

    def share(self, like: Tensor) -> Tensor:
        """The share kept, (B, 1, ...) in the dtype and with the axes of ``like``."""
        return spread(self.kept.to(like.dtype).to(like.device), like.ndim)

    def linear(self, x: Tensor) -> Tensor:
        """Share * own + (1 - share) * other; exactly the own value where both are equal.

        In float32 where half precision would round the share that the targets were mixed by.
        """
        wide = x if x.dtype in (self.exact or ()) else x.float()
        return torch.lerp(self.other(wide), wide, self.share(wide)).to(x.dtype)

    def of(self, tokens: Tokens) -> Tokens:
        """Mix whole sequences, all layers."""
        return replace(tokens, sequence=tuple(self.linear(x) for x in tokens.sequence))


def spread(x: Tensor, ndim: int) -> Tensor:
    """The same values with as many size-1 axes behind them as are wanting."""
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


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
    for own in compositions:
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


_HALVES = 1e100  # beyond it NumPy's Beta overflows; lambda is 1/2 to the last digit long before


def manifold_mixup(
    tokens: Tokens | FeaturePyramid,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    tasks: Sequence[Task] | None = None,
    compositions: Sequence[TotalAndRatio] = (),
    masks: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Any, ...]:
    """Blend every sample's tokens (CLS and registers too), targets and masks with another sample's of the batch.

    Lambda is rounded to the tokens' dtype, so that tokens and targets keep the same share. Inputs are not changed.

    Args:
        tokens: Tokens or a FeaturePyramid of floating-point tensors.
        targets: name -> tensor with the batch first; the module's text says what becomes of each.
        alpha: lambda ~ Beta(alpha, alpha). 1 is uniform; below it most samples stay nearly themselves.
        tasks: what the targets are; a task without a target is passed over.
        compositions: objects whose ``.total`` and ``.ratio`` name tasks, such as a CompositionLoss.
        masks: name -> what counts: (B,), (B, dim) or for maps (B, rows, cols).
        generator: source of the random numbers; None = torch's own.

    Returns:
        (tokens, targets), and the mixed masks as a third value when masks are given.

    Raises:
        ConfigError: if alpha is not positive and finite, or tasks and compositions do not fit.
        ShapeError: if the tokens, a target or a mask have another form, or a name belongs to no task.
        DataError: if a class index is out of range.

    Examples:
        >>> tokens = Tokens.from_patches(torch.randn(2, 6, 8), grid=(2, 3), patch_size=16)
        >>> targets = {"mass": torch.tensor([[20.0], [100.0]]), "state": torch.tensor([0, 1])}
        >>> tasks = [Task("mass", unit="g"), Task("state", dim=2, kind="classification")]
        >>> tokens, mixed = manifold_mixup(tokens, targets, 1.0, tasks=tasks)
        >>> torch.allclose(mixed["mass"][:, 0], mixed["state"] @ torch.tensor([20.0, 100.0]))
        True

    Reference: Verma et al. 2019, "Manifold Mixup"; design source "DINOv3-H+ with CLS gating". Deviations: lambda
    per sample (as in the source), masses mixed in natural units and shares by their mass.
    """
    tensors = _tensors(tokens)
    random = _random(generator)
    partner = torch.from_numpy(random.permutation(len(tensors[0])))
    kept = _shares_kept(random, alpha, len(partner)).to(tensors[0].dtype).double()
    blend = Blend(partner, kept).to(tensors[0].device)
    mixed = _mixed(blend, targets, tasks, compositions, masks)
    if isinstance(tokens, Tokens):
        return blend.of(tokens), *mixed
    return replace(tokens, maps=tuple(blend.linear(x) for x in tokens.maps)), *mixed


def cutmix(
    images: Tensor,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    tasks: Sequence[Task] | None = None,
    compositions: Sequence[TotalAndRatio] = (),
    masks: Mapping[str, Tensor] | None = None,
    patch_size: PatchSize | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Any, ...]:
    """Paste a rectangle of another image of the batch into every image; targets follow by area and by place.

    The rectangle's sides are sqrt(1 - lambda) of the image's, its centre is uniform and it is clipped at the
    border. The share that a sample keeps is then counted from the pixels pasted. Inputs are not changed.

    Args:
        images: (B, C, H, W), floating point.
        targets: name -> tensor with the batch first; the module's text says what becomes of each.
        alpha: lambda ~ Beta(alpha, alpha).
        tasks: what the targets are; a task without a target is passed over.
        compositions: objects whose ``.total`` and ``.ratio`` name tasks.
        masks: name -> what counts.
        patch_size: pixels per patch; the rectangle then holds whole patches.
        generator: source of the random numbers; None = torch's own.

    Returns:
        (images, targets), and the mixed masks as a third value when masks are given.

    Raises:
        ConfigError: if alpha is not positive and finite, or tasks and compositions do not fit.
        GridError: if the patch does not divide the image.
        ShapeError: if images, a target or a mask have another form, or the rectangle would cut a map's cells.
        DataError: if a class index is out of range.

    Examples:
        >>> images = torch.stack((torch.zeros(3, 32, 64), torch.ones(3, 32, 64)))
        >>> mixed, targets = cutmix(images, {"white": torch.tensor([[0.0], [1.0]])}, 1.0, patch_size=16)
        >>> torch.allclose(mixed.mean(dim=(1, 2, 3)), targets["white"][:, 0])
        True

    Reference: Yun et al. 2019, "CutMix". Deviations: lambda and a rectangle per sample, whole patches.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ShapeError(f"images are {form_of(images)}; expected floating point (batch, channels, height, width)")
    random = _random(generator)
    partner = torch.from_numpy(random.permutation(len(images)))
    cut = _rectangles(random, _shares_kept(random, alpha, len(images)), images, patch_size)
    blend = Blend(partner, cut.shares_left(), cut)
    mixed = _mixed(blend, targets, tasks, compositions, masks)
    return blend.pasted(images, "images"), *mixed


def _mixed(
    blend: Blend,
    targets: Mapping[str, Tensor],
    tasks: Sequence[Task] | None,
    compositions: Sequence[TotalAndRatio],
    masks: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], ...]:
    """The targets, and the masks if there are any."""
    declared = Declared.of(tasks, compositions, targets, masks, len(blend.partner))
    mixed = mixed_targets(blend, declared, targets, masks or {})
    return (mixed,) if masks is None else (mixed, mixed_masks(blend, declared, targets, masks))


def _random(generator: torch.Generator | None) -> np.random.Generator:
    device = "cpu" if generator is None else generator.device
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator, device=device)))


def _shares_kept(random: np.random.Generator, alpha: float, batch: int) -> Tensor:
    """Lambda of every sample, (B,) float64."""
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < alpha < math.inf:
        raise ConfigError(f"alpha is {alpha!r}; expected a positive finite number (to switch mixing off, do not call)")
    return torch.from_numpy(random.beta(min(float(alpha), _HALVES), min(float(alpha), _HALVES), batch))


def _rectangles(random: np.random.Generator, kept: Tensor, images: Tensor, patch_size: PatchSize | None) -> Cut:
    unit = (1, 1) if patch_size is None else patch_pair(patch_size)
    height, width = images.shape[-2:]
    grid = TokenGrid(unit).size((height, width))
    side = (1.0 - kept).sqrt().numpy()
    edges = np.concatenate([_interval(random, side, cells) for cells in grid])
    return Cut(torch.from_numpy(edges), unit, (height, width))


def _interval(random: np.random.Generator, side: np.ndarray[Any, Any], cells: int) -> np.ndarray[Any, Any]:
    """First and one past the last cell, (2, B), of intervals of ``side`` x cells, clipped to 0 ... cells."""
    length = np.rint(side * cells).astype(np.int64)
    first = random.integers(0, cells, len(side)) - length // 2
    return np.stack((first, first + length)).clip(0, cells)


def _tensors(tokens: object) -> tuple[Tensor, ...]:
    if not isinstance(tokens, Tokens | FeaturePyramid):
        raise ShapeError(f"tokens are {form_of(tokens)}; expected Tokens (Tokens.from_sequence) or a FeaturePyramid")
    tensors = tokens.sequence if isinstance(tokens, Tokens) else tokens.maps
    if not tensors or any(not x.is_floating_point() or len(x) != len(tensors[0]) for x in tensors):
        forms = ", ".join(form_of(x) for x in tensors)
        raise ShapeError(f"tokens hold {forms or 'nothing'}; expected floating-point tensors of one batch size")
    return tensors
