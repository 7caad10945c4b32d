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
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import PatchSize, TokenGrid, patch_pair
from dinoneck.tasks import Task
from dinoneck.tokens import FeaturePyramid, Tokens
from dinoneck.training.mixed_targets import (
    Blend,
    Cut,
    Declared,
    TotalAndRatio,
    form_of,
    mixed_masks,
    mixed_targets,
)

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
