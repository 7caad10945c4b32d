"""Batches whose samples are blends of two: of their tokens (:func:`manifold_mixup`) or their images (:func:`cutmix`).

Every sample is blended with the one before it in the batch, by one share lambda ~ Beta(alpha, alpha) per batch. A loss
follows as ``lerp(loss(output, target of the partner), loss(output, target), share)``; that is what
:func:`dinoneck.training.fit` does, for targets of any kind. The two functions here mix targets instead, which is the
same for a loss that is linear in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ShapeError
from dinoneck.grid import PatchSize, TokenGrid
from dinoneck.tokens import Tokens
from dinoneck.training.recipe import Positive, converted

Box = tuple[float, float, float, float]  # top, bottom, left and right, as shares of the image's sides


def manifold_mixup(
    tokens: Tokens, targets: Mapping[str, Tensor], alpha: float, *, generator: torch.Generator | None = None
) -> tuple[Tokens, dict[str, Tensor]]:
    """Blend the tokens (CLS and registers too) and the targets of every sample with those of the sample before it.

    Args:
        tokens: of floating point, batch first. They are not changed.
        targets: name -> floating-point values or one-hot classes, batch first; NaN = missing and stays so.
        alpha: lambda ~ Beta(alpha, alpha). 1 is uniform; below it most batches stay nearly themselves.
        generator: source of the random numbers; None = torch's own.

    Raises:
        ConfigError: if alpha is not positive and finite.
        ShapeError: if a target is not of floating point, or of another number of samples.

    Examples:
        >>> tokens = Tokens.from_patches(torch.randn(2, 6, 8), grid=(2, 3), patch_size=16)
        >>> targets = {"mass": torch.tensor([[20.0], [100.0]]), "state": torch.eye(2)}
        >>> tokens, mixed = manifold_mixup(tokens, targets, 1.0)
        >>> torch.allclose(mixed["mass"][:, 0], mixed["state"] @ torch.tensor([20.0, 100.0]))
        True

    Reference: Verma et al. 2019, "Manifold Mixup".
    """
    mixed, share = blended_tokens(tokens, alpha, generator)
    return mixed, _blended_targets(targets, share, len(tokens))


def cutmix(
    images: Tensor,
    targets: Mapping[str, Tensor],
    alpha: float,
    *,
    patch_size: PatchSize | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Paste a rectangle of the image before it into every image; targets of whole images follow by its area.

    The rectangle's sides are sqrt(1 - lambda) of the image's, its centre is uniform and it is clipped at the border. It
    is the same for all images of the batch.

    Args:
        images: (B, C, H, W), floating point. They are not changed.
        targets: as for :func:`manifold_mixup`.
        alpha: see there.
        patch_size: pixels per patch; the rectangle then holds whole patches.
        generator: see there.

    Raises:
        ConfigError: if alpha is not positive and finite.
        GridError: if the patch does not divide the image.
        ShapeError: if images have another form, or as for ``manifold_mixup``.

    Examples:
        >>> images = torch.stack((torch.zeros(3, 32, 64), torch.ones(3, 32, 64)))
        >>> mixed, targets = cutmix(images, {"white": torch.tensor([[0.0], [1.0]])}, 1.0, patch_size=16)
        >>> torch.allclose(mixed.mean(dim=(1, 2, 3)), targets["white"][:, 0])
        True

    Reference: Yun et al. 2019, "CutMix". Deviation: the rectangle may hold whole patches.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ShapeError(f"images are {tuple(images.shape)} {images.dtype}; expected floats (batch, 3, height, width)")
    box, share = random_box(images.shape[-2:], alpha, 1 if patch_size is None else patch_size, generator)
    return pasted(images, box), _blended_targets(targets, share, len(images))


def blended_tokens(tokens: Tokens, alpha: float, generator: torch.Generator | None = None) -> tuple[Tokens, float]:
    """Return the blended tokens, and the share that every sample keeps of itself."""
    share = float(_random(alpha, generator).beta(alpha, alpha))
    return replace(tokens, sequence=tuple(torch.lerp(x.roll(1, 0), x, share) for x in tokens.sequence)), share


def random_box(
    image_size: Sequence[int], alpha: float, patch_size: PatchSize, generator: torch.Generator | None = None
) -> tuple[Box, float]:
    """Return a rectangle of whole patches, and the share of the image that it leaves."""
    random = _random(alpha, generator)
    side = (1.0 - random.beta(alpha, alpha)) ** 0.5
    spans: list[tuple[float, float]] = []
    for cells in TokenGrid(patch_size).size(image_size):
        count = round(side * cells)
        first = int(random.integers(0, cells)) - count // 2
        spans.append((max(0, first) / cells, min(cells, first + count) / cells))
    (top, bottom), (left, right) = spans
    return (top, bottom, left, right), 1.0 - (bottom - top) * (right - left)


def pasted(x: Tensor, box: Box) -> Tensor:
    """Return images or maps (B, ..., H, W) with the rectangle of the sample before each pasted into it."""
    height, width = x.shape[-2:]
    top, bottom, left, right = box
    rows = slice(round(top * height), round(bottom * height))
    cols = slice(round(left * width), round(right * width))
    mixed = x.clone()
    mixed[..., rows, cols] = x.roll(1, 0)[..., rows, cols]
    return mixed


def _random(alpha: float, generator: torch.Generator | None) -> np.random.Generator:
    """A generator seeded by one draw of torch's, so that a seed gives the same blend on every device."""
    converted("alpha", alpha, Positive)
    device = "cpu" if generator is None else generator.device
    return np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator, device=device)))


def _blended_targets(targets: Mapping[str, Tensor], share: float, samples: int) -> dict[str, Tensor]:
    for name, x in targets.items():
        if not x.is_floating_point() or len(x) != samples:
            raise ShapeError(
                f"the targets of {name!r} are {tuple(x.shape)} {x.dtype}; expected one_hot floats of {samples} samples"
            )
    return {name: torch.lerp(x.roll(1, 0), x, share) for name, x in targets.items()}
