"""Tokens of many photos on few principal components with 8 bits each, small enough for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dinoneck.errors import DataError, ShapeError

COMPONENTS = 64  # fewer keep the variance, and lose which patches are the nearest
_LARGEST_CODE = 127  # of int8
_CLIP = 8.0  # standard deviations of a component; codes up to the largest value would be coarse
_COMPARED = 1024  # patches whose cosines are compared with those of the full tokens


@dataclass(frozen=True, eq=False)
class ReducedTokens:
    """Tokens that are standardised by channel and reduced to principal components.

    A coordinate is its code times the scale of its component.

    Attributes:
        codes: per photo (patches, components) int8.
        scales: (components,) float32.
        variance: the share of the variance that the components keep, 0 ... 1.
        cosine_error: the largest change of a cosine between two of 1,024 evenly chosen patches.
    """

    codes: list[Tensor]
    scales: Tensor
    variance: float
    cosine_error: float


class _Standardisation(NamedTuple):
    """Channels with mean 0 and variance 1 over all patches."""

    mean: Tensor
    deviation: Tensor

    def apply(self, patches: Tensor) -> Tensor:
        """Standardise (patches, channels), in float64."""
        return (patches.detach().cpu().double() - self.mean) / self.deviation


def reduce_tokens(patches: Sequence[Tensor]) -> ReducedTokens:
    """Reduce tokens to at most 64 principal components, which all photos share.

    Channels are standardised first, over all patches of all photos. The components are an
    orthogonal basis of the standardised channels, so an L2 penalty on the weights of a linear head
    means the same on both.

    Args:
        patches: per photo (patches, channels).

    Raises:
        ShapeError: if photos have different numbers of channels.
        DataError: if a token is not finite.
    """
    _check_patches(patches)
    standardisation = _fit_standardisation(patches)
    directions, variance = _principal_directions(patches, standardisation)

    coordinates = []
    for rows in patches:
        coordinates.append((standardisation.apply(rows) @ directions).float())
    scales = _code_scales(torch.cat(coordinates))
    codes = []
    for values in coordinates:
        rounded = (values / scales).round().clamp(-_LARGEST_CODE, _LARGEST_CODE)
        codes.append(rounded.to(torch.int8))

    num_patches = sum(len(rows) for rows in patches)
    step = math.ceil(num_patches / _COMPARED)
    compared = standardisation.apply(torch.cat([rows[::step] for rows in patches]))
    decoded = torch.cat([rows[::step] for rows in codes]) * scales
    return ReducedTokens(
        codes=codes,
        scales=scales,
        variance=variance,
        cosine_error=_cosine_error(decoded.double(), compared),
    )


def _check_patches(patches: Sequence[Tensor]) -> None:
    channels = patches[0].shape[1]
    for number, rows in enumerate(patches):
        if rows.shape[1] != channels:
            raise ShapeError(
                f"photo {number} has tokens of {rows.shape[1]} channels, the first one of "
                f"{channels}; expected those of one backbone"
            )
        if not rows.isfinite().all():
            raise DataError(f"tokens of photo {number} are not finite; they cannot be compared")


def _fit_standardisation(patches: Sequence[Tensor]) -> _Standardisation:
    """Mean and standard deviation of each channel; constant channels keep their scale."""
    count = sum(len(rows) for rows in patches)
    mean = torch.zeros(patches[0].shape[1], dtype=torch.float64)
    for rows in patches:
        mean += rows.detach().cpu().double().sum(dim=0) / count
    variance = torch.zeros_like(mean)
    for rows in patches:
        variance += (rows.detach().cpu().double() - mean).square().sum(dim=0) / count
    deviation = variance.sqrt()
    is_constant = deviation <= 1e-6 * (mean.abs() + 1e-6)
    return _Standardisation(mean=mean, deviation=deviation.masked_fill(is_constant, 1.0))


def _principal_directions(
    patches: Sequence[Tensor], standardisation: _Standardisation
) -> tuple[Tensor, float]:
    """Directions (channels, components) of the largest variance, and the share that they keep."""
    channels = len(standardisation.mean)
    scatter = torch.zeros(channels, channels, dtype=torch.float64)
    for rows in patches:
        standard = standardisation.apply(rows)
        scatter += standard.T @ standard
    eigenvalues, eigenvectors = torch.linalg.eigh(scatter)  # ascending
    kept = eigenvalues[-COMPONENTS:].sum() / eigenvalues.sum().clamp_min(1e-12)
    return eigenvectors[:, -COMPONENTS:].flip(1), float(kept)


def _code_scales(coordinates: Tensor) -> Tensor:
    """The step between two codes, per component, with six digits as it is written in the page."""
    largest = coordinates.abs().amax(dim=0)
    clipped = _CLIP * coordinates.std(dim=0, correction=0)
    steps = torch.minimum(largest, clipped).clamp_min(1e-12) / _LARGEST_CODE
    return torch.tensor([float(f"{step:.6g}") for step in steps.tolist()])


def _cosine_error(decoded: Tensor, standard: Tensor) -> float:
    """The largest difference between cosines of two rows, before and after the reduction."""
    unit = F.normalize(standard, dim=1)
    decoded_unit = F.normalize(decoded, dim=1)
    error = (decoded_unit @ decoded_unit.T - unit @ unit.T).abs()
    return float(error.max())
