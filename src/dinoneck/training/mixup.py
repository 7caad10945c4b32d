"""Training samples that are blends of two: of their tokens (:func:`manifold_mixup`) or their images (:func:`cutmix`).

Every sample i of a batch is blended with a partner and keeps a share lambda_i of itself, the same for all layers,
targets and masks. Targets without ``tasks`` are mixed linearly and must be floating point. With tasks, by kind:

* ``regression``, ``density``: (B, dim) in normalised units, mixed in original units (masses add in grams, not in log
  space) and taken back. ``dense`` (B, dim, rows, cols) as well, so tokens and labels must be flipped alike.
* ``ratio``: shares (B, dim), weighed by the mass that a composition names, else linearly. Where neither side has
  any mass: linearly. A mass below 0 counts as 0; where a mass is missing, so are the mixed shares.
* ``classification``: class indices (B,) -> probabilities (B, dim); ``segmentation``: (B, H, W) -> (B, dim, H, W).
  Probabilities are taken as well. A sample or pixel labelled -1 or ``ignore_index`` on either side is NaN.

A target named like a composition (``.name``) is in original units and mixed linearly. NaN means missing and stays
NaN; what a mask hides is NaN in the mix. Masks that are bool or integer count where both sides count. A floating-point
weight, such as (B, rows, cols) of dense labels, is mixed by lambda where both sides weigh more than 0, else it is 0.

:func:`cutmix` pastes maps instead of mixing them, and they keep their dtype: ``dense`` (B, dim, rows, cols),
``segmentation`` (B, H, W) or (B, dim, H, W), targets of three or four axes when there are no tasks, and masks of maps
that have rows and cols. A map's cells must not be cut: pass ``patch_size``, or maps at image resolution.
One call takes one draw from the torch generator; a seed gives the same blend on every device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from dinoneck.devices import send
from dinoneck.errors import DataError, ShapeError
from dinoneck.grid import PatchSize, TokenGrid, patch_pair
from dinoneck.losses.composition import Composition, CompositionLoss
from dinoneck.losses.masked import full_mask
from dinoneck.tasks import Kind, Task, check_tasks
from dinoneck.tokens import FeaturePyramid, Tokens
from dinoneck.training.recipe import check_number

_MISSING = -1
Compositions = Sequence[Composition | CompositionLoss]


def manifold_mixup(
    tokens: Tokens | FeaturePyramid,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    tasks: Sequence[Task] | None = None,
    compositions: Compositions = (),
    masks: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Any, ...]:
    """Blend every sample's tokens (CLS and registers too), targets and masks with another sample's of the batch.

    Lambda is rounded to the tokens' dtype, so that tokens and targets keep the same share. Inputs are not changed.

    Args:
        tokens: Tokens or a FeaturePyramid of floating-point tensors.
        targets: name -> tensor with the batch first; the module's text states what becomes of each.
        alpha: lambda ~ Beta(alpha, alpha). 1 is uniform; below it most samples stay nearly themselves.
        tasks: what the targets are; a task without a target is skipped.
        compositions: those of the head or the loss, whose shares are weighed by their total.
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

    Reference: Verma et al. 2019, "Manifold Mixup". Deviations: lambda per sample, masses mixed in original units and
    shares by their mass.
    """
    if not isinstance(tokens, Tokens | FeaturePyramid):
        raise ShapeError(f"tokens are {_form(tokens)}; expected Tokens (Tokens.from_sequence) or a FeaturePyramid")
    tensors = tokens.sequence if isinstance(tokens, Tokens) else tokens.maps
    if not all(x.is_floating_point() for x in tensors):
        raise ShapeError(f"tokens hold {', '.join(map(_form, tensors))}; expected floating-point tensors")
    _, partner, kept = _drawn(generator, alpha, len(tensors[0]))
    partner, kept = send([partner, kept.to(tensors[0].dtype)], tensors[0].device)
    blend = Blend(partner, kept)
    mixed = _mixed(blend, targets, tasks, compositions, masks)
    blended = tuple(blend.linear(x) for x in tensors)
    if isinstance(tokens, Tokens):
        return replace(tokens, sequence=blended), *mixed
    return replace(tokens, maps=blended), *mixed


def cutmix(
    images: Tensor,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    tasks: Sequence[Task] | None = None,
    compositions: Compositions = (),
    masks: Mapping[str, Tensor] | None = None,
    patch_size: PatchSize | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Any, ...]:
    """Paste a rectangle of another image of the batch into every image; targets follow by area and by place.

    The rectangle's sides are sqrt(1 - lambda) of the image's, its centre is uniform and it is clipped at the
    border. The share that a sample keeps is then counted from the pixels pasted. Inputs are not changed.

    Args:
        images: (B, C, H, W), floating point.
        targets: with ``alpha``, ``tasks``, ``compositions``, ``masks`` and ``generator`` as for :func:`manifold_mixup`.
        alpha: see there.
        tasks: see there.
        compositions: see there.
        masks: see there.
        patch_size: pixels per patch; the rectangle then holds whole patches.
        generator: see there.

    Returns:
        (images, targets), and the mixed masks as a third value when masks are given.

    Raises:
        GridError: if the patch does not divide the image.
        ShapeError: if images have another form, or the rectangle would cut a map's cells; and as ``manifold_mixup``.

    Examples:
        >>> images = torch.stack((torch.zeros(3, 32, 64), torch.ones(3, 32, 64)))
        >>> mixed, targets = cutmix(images, {"white": torch.tensor([[0.0], [1.0]])}, 1.0, patch_size=16)
        >>> torch.allclose(mixed.mean(dim=(1, 2, 3)), targets["white"][:, 0])
        True

    Reference: Yun et al. 2019, "CutMix". Deviations: lambda and a rectangle per sample, whole patches.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise ShapeError(f"images are {_form(images)}; expected floating point (batch, channels, height, width)")
    random, partner, kept = _drawn(generator, alpha, len(images))
    unit, (height, width) = (1, 1) if patch_size is None else patch_pair(patch_size), images.shape[-2:]
    TokenGrid(unit).size((height, width))
    side = (1.0 - kept).sqrt().numpy()
    rows, cols = _interval(random, side, height, unit[0]), _interval(random, side, width, unit[1])
    inside = rows[:, :, None] & cols[:, None, :]  # (B, H, W)
    kept = 1.0 - inside.double().mean(dim=(1, 2))
    partner, kept, inside = send([partner, kept.to(images.dtype), inside], images.device)
    blend = Blend(partner, kept, inside, unit)
    mixed = _mixed(blend, targets, tasks, compositions, masks)
    return blend.pasted(images, "images"), *mixed


@dataclass(frozen=True)
class Blend:
    """Sample i becomes ``kept[i]`` of itself plus the rest of sample ``partner[i]``; with cutmix, place by place."""

    partner: Tensor  # (B,) a permutation of the samples
    kept: Tensor  # (B,) in the dtype of the tokens or images
    inside: Tensor | None = None  # cutmix: the pixels taken from the partner, bool (B, height, width)
    unit: tuple[int, int] = (1, 1)  # cutmix: rectangles hold whole cells of (rows, cols) pixels

    def other(self, x: Tensor) -> Tensor:
        """The partners' values, as a copy of the same memory format."""
        return x[self.partner.to(x.device)]

    def share(self, like: Tensor) -> Tensor:
        """The share kept, (B, 1, ...) in the dtype and with the axes of ``like``."""
        return _spread(self.kept.to(like.dtype).to(like.device), like.ndim)

    def linear(self, x: Tensor) -> Tensor:
        """Share * own + (1 - share) * other, in a dtype that does not round the share; exact where both are equal."""
        wide = x.to(torch.promote_types(x.dtype, self.kept.dtype))
        return torch.lerp(self.other(wide), wide, self.share(wide)).to(x.dtype)

    def pasted(self, x: Tensor, name: str) -> Tensor:
        """Maps (B, ..., rows, cols) with the partner's cells in the rectangle; linear where there is none."""
        if self.inside is None:
            return self.linear(x)
        (rows, cols), (height, width) = x.shape[-2:], self.inside.shape[1:]
        for cells, length, unit in ((rows, height, self.unit[0]), (cols, width, self.unit[1])):
            if cells < 1 or length % cells or unit % (length // cells):
                raise ShapeError(
                    f"{name} has {rows}x{cols} cells (rows x cols) on images of {height}x{width} px, and rectangles of "
                    f"whole {self.unit[0]}x{self.unit[1]} px would cut through them; pass patch_size= with the pixels "
                    f"per cell ({height / max(rows, 1):g}x{width / max(cols, 1):g}, whole numbers), or give a map at "
                    "image resolution"
                )
        inside = self.inside[:, :: height // rows, :: width // cols].to(x.device)
        return torch.where(inside.reshape(len(x), *(1,) * (x.ndim - 3), rows, cols), self.other(x), x)

    def both(self, mask: Tensor) -> Tensor:
        """What counts on both sides; a floating-point weight is mixed there."""
        keep = mask > 0
        keep = keep & self.other(keep)
        return torch.where(keep, self.linear(mask), 0.0) if mask.is_floating_point() else keep


def _drawn(generator: torch.Generator | None, alpha: float, batch: int) -> tuple[np.random.Generator, Tensor, Tensor]:
    """A generator seeded by one draw, and its first draws: the partners (B,), and lambda of every sample (B,)."""
    check_number("alpha", alpha, above=True)
    device = "cpu" if generator is None else generator.device
    random = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator, device=device)))
    partner = torch.from_numpy(random.permutation(batch))
    return random, partner, torch.from_numpy(random.beta(alpha, alpha, batch))


def _interval(random: np.random.Generator, side: np.ndarray[Any, Any], length: int, unit: int) -> Tensor:
    """Which pixels of an axis lie in an interval of ``side`` x its length in whole units, bool (B, length)."""
    count = np.rint(side * (length // unit)).astype(np.int64)[:, None]
    first = random.integers(0, length // unit, len(side))[:, None] - count // 2
    cell = np.arange(length) // unit
    return torch.from_numpy((first <= cell) & (cell < first + count))


def _mixed(
    blend: Blend,
    targets: Mapping[str, Tensor],
    tasks: Sequence[Task] | None,
    compositions: Compositions,
    masks: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], ...]:
    """The blended targets, and the masks if there are any."""
    hidden = masks or {}
    known = {} if tasks is None else {t.name: t for t in check_tasks(tasks, kinds=get_args(Kind), owner="mixing")}
    masses = _masses(known, compositions, targets)
    for what, tensors in (("targets", targets), ("masks", hidden)):
        for name, x in tensors.items():
            if name not in (targets if tasks is None else [*known, *(own.name for own in compositions)]):
                raise ShapeError(f"the {what} name {name!r}; expected some of {[*known]}, or tasks= that declare it")
            if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != len(blend.partner):
                raise ShapeError(
                    f"the {what} of {name!r} are {_form(x)}; expected a tensor of {len(blend.partner)} samples"
                )
    maps = {name for name, x in targets.items() if (known[name].is_map if name in known else x.ndim > 2)}
    values, kept = {}, {}
    for name, x in targets.items():
        task = known.get(name)
        _check_form(name, x, task)
        if name in maps and blend.inside is not None:
            values[name] = blend.pasted(x, f"the target {name!r}")
            continue
        x = _with_gaps(task, x, hidden.get(name))
        if name in masses:
            total = known[masses[name]]
            mass = _wide(_with_gaps(total, targets[total.name], hidden.get(total.name)))
            mass = mass if total.transform is None else total.transform.inverse(mass)
            values[name] = _mixed_shares(blend, x, mass.clamp_min(0.0))
        elif task is None or task.transform is None or task.transform.is_affine:
            values[name] = blend.linear(x)
        else:  # in original units, and back
            natural = blend.linear(task.transform.inverse(_wide(x).movedim(1, -1)))
            values[name] = task.transform.forward(natural).movedim(-1, 1).to(x.dtype)
    for name, mask in hidden.items():
        pastes = blend.inside is not None and mask.ndim > 2 and name in maps
        kept[name] = blend.pasted(mask, f"the mask of {name!r}") if pastes else blend.both(mask)
    return (values,) if masks is None else (values, kept)


def _masses(known: Mapping[str, Task], compositions: Compositions, targets: Mapping[str, Tensor]) -> dict[str, str]:
    """Ratio task -> the task of the mass that its shares are of."""
    masses: dict[str, str] = {}
    for each in compositions:
        own = each.composition if isinstance(each, CompositionLoss) else each
        own.tasks_of([*known.values()])
        if not own.adds_tasks:
            masses[own.ratio] = own.total
        if own.ratio in targets and own.total not in targets:
            raise ShapeError(f"the targets lack {own.total!r}, the mass that the shares {own.ratio!r} are weighed by")
    return masses


def _mixed_shares(blend: Blend, x: Tensor, mass: Tensor) -> Tensor:
    """Shares of a mass (B, 1): those of both sides, each weighed by what it brings to the blended mass."""
    kept, blended = blend.share(mass), blend.linear(mass)
    nothing = blended == 0
    share = torch.where(nothing, kept, kept * mass / torch.where(nothing, 1.0, blended))
    return torch.lerp(_wide(blend.other(x)), _wide(x), share).to(x.dtype)


def _with_gaps(task: Task | None, x: Tensor, mask: Tensor | None) -> Tensor:
    """Values with NaN where a mask hides them; class indices (B, ...) as probabilities (B, dim, ...)."""
    if task is None or x.is_floating_point():
        return x if mask is None else torch.where(_counts(mask, x), x, torch.nan)
    known = (x != _MISSING) & (x != (_MISSING if task.ignore_index is None else task.ignore_index))
    known = known if mask is None else known & _counts(mask, x)
    # CUDA checks the range itself; here the host would wait for it
    if x.device.type in ("cpu", "mps") and len(wrong := x[known & ((x < 0) | (x >= task.dim))]):
        raise DataError(
            f"the targets of {task.name!r} hold class index {int(wrong[0])}; expected 0 ... {task.dim - 1}, "
            f"{_MISSING} for missing or the task's ignore_index ({task.ignore_index})"
        )
    ones = torch.nn.functional.one_hot(torch.where(known, x, 0).long(), task.dim).movedim(-1, 1).float()
    return ones.masked_fill(~known.unsqueeze(1), torch.nan)


def _check_form(name: str, x: Tensor, task: Task | None) -> None:
    """Refuse a target of another form: values are floating point, class indices have no axis of outputs."""
    if task is None:
        fits, expected = x.is_floating_point(), "floating point; declare classes with tasks="
    else:
        size = ", rows, cols" if task.is_map else ""
        values = x.is_floating_point() or not task.is_categorical
        fits = x.ndim == 1 + values + 2 * task.is_map and x.dtype != torch.bool
        fits = fits and (not values or (x.shape[1] == task.dim and x.is_floating_point()))
        expected = f"floating point (batch, {task.dim}{size})"
        expected = f"class indices (batch{size}) or {expected}" if task.is_categorical else expected
    if not fits:
        raise ShapeError(f"the targets of {name!r} are {_form(x)}; expected {expected}")


def _counts(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as bool in the shape of its target; (B, rows, cols) stands for all outputs of a map."""
    return full_mask(mask.unsqueeze(1) if like.ndim == 4 and mask.ndim == 3 else mask, like)


def _wide(x: Tensor) -> Tensor:
    """float64 where the device has it, else float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _spread(x: Tensor, ndim: int) -> Tensor:
    """The same values with size-1 axes appended up to ``ndim``."""
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))


def _form(x: object) -> str:
    """Shape and dtype of a tensor, or the type of anything else, for messages."""
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
