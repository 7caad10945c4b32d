"""Nothing is timed before its results and gradients are those of the peer, in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.speed.rows import Row, Setting, Variant, drawn, tensors_of

OF_WEIGHTS = "gradients of weights"
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
FLOOR = 1e-4  # of the largest of its kind: what is smaller is compared on that scale
Found = dict[str, dict[str, Tensor]]


class Unequal(Exception):
    """Two variants of one row do not give the same result."""


def check(row: Row, setting: Setting) -> None:
    """Compare results and, where a step is timed, the gradients of weights and tokens, in float64.

    Weights are known by their values, which the variants share, whatever their names and axes.

    Raises:
        Unequal: naming the variant, what differs and by how much.
    """
    learns = len(row.steps) > 1
    exact = setting.of(dtype=torch.float64, batch=min(setting.batch, 2), learns=learns)
    _alike(dict(row.build(exact)), row.equal, gradients=learns)


def check_rounding(variants: Mapping[str, Variant], setting: Setting) -> None:
    """Compare results in the dtype that is timed; half precision may round.

    Raises:
        Unequal: naming the variant, what differs and by how much.
    """
    _alike(variants, ROUNDING[setting.dtype], gradients=False)


def _alike(variants: Mapping[str, Variant], bound: float, gradients: bool) -> None:
    truth: Found | None = None
    for name, variant in variants.items():
        if not variant.same:
            continue
        found = evidence(variant, gradients)
        truth = truth or found
        for kind, right in truth.items():
            if variant.own_weights and kind == OF_WEIGHTS:
                continue
            _compare(name, kind, found[kind], right, bound)


def _compare(
    name: str, kind: str, found: Mapping[str, Tensor], right: Mapping[str, Tensor], bound: float
) -> None:
    """Relative difference of every tensor, in the Frobenius norm."""
    if found.keys() != right.keys():
        raise Unequal(f"{name}: {len(found)} {kind} beside {len(right)}, not the same ones")
    least = FLOOR * max((float(x.norm()) for x in right.values()), default=0.0)
    for key, truth in right.items():
        got = found[key]
        if got.shape != truth.shape:
            raise Unequal(f"{name}: {kind}, {key}: {tuple(got.shape)} beside {tuple(truth.shape)}")
        error = float((got - truth).norm()) / max(float(truth.norm()), least, 1e-300)
        if not error <= bound:
            raise Unequal(
                f"{name}: {kind}, {key}: differs by {error:.1e}, at most {bound:.0e} is due"
            )


def evidence(variant: Variant, gradients: bool) -> Found:
    """What one variant gives: results, and for a fixed random gradient of them those of its weights and inputs."""
    variant.module.eval()
    with torch.no_grad():
        found: Found = {"results": _numbered(tensors_of(variant.call()))}
    if not gradients:
        return found
    variant.module.train()
    weights = [x for x in variant.module.parameters() if x.requires_grad]
    inputs = [x for x in variant.inputs if x.requires_grad]
    results = tensors_of(variant.call())
    given = torch.autograd.grad(
        results, [*inputs, *weights], directions(results), allow_unused=True
    )
    of_inputs = [
        torch.zeros_like(x) if g is None else g for x, g in zip(inputs, given, strict=False)
    ]
    found["results in training"] = _numbered([x.detach() for x in results])
    found["gradients of tokens"] = _numbered(of_inputs)
    found[OF_WEIGHTS] = _by_value(weights, given[len(inputs) :])
    return found


def directions(results: list[Tensor]) -> list[Tensor]:
    """A random gradient for every result, the same for the same shapes (ones would be blind behind a LayerNorm)."""
    random = drawn([x.shape for x in results], 4, results[0].device) if results else []
    return [direction.to(x) for direction, x in zip(random, results, strict=True)]


def _numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(place): x.double() for place, x in enumerate(tensors)}


def _by_value(weights: list[Tensor], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """Gradients, flat, under a fingerprint of the weight's values; what takes no part is left out."""
    found: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            values = weight.detach().reshape(-1).double()
            key = (
                f"{len(values)} numbers beginning {float(values[0]):.12g}, "
                f"{float(values.sum()):.6g} in all"
            )
            found[key] = found[key] + gradient.detach().reshape(-1).double()
    return dict(found)
