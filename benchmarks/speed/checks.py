"""Compare the results and gradients of variants with those of their peer, before they are timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.speed.rows import Row, Setting, Variant, random_tensors, tensors_of

ROUNDING_BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# tensors whose norm is below this share of the largest of their kind are compared on that scale
SMALLEST_SHARE = 1e-4
TINIEST = 1e-300  # a divisor above 0
RESULTS = "results"
RESULTS_IN_TRAINING = "results in training"
OF_TOKENS = "gradients of tokens"
OF_WEIGHTS = "gradients of weights"
Evidence = dict[str, dict[str, Tensor]]  # kind -> key -> tensor


class Unequal(Exception):
    """Two variants of one row do not give the same result."""


def check(row: Row, setting: Setting) -> None:
    """Compare results and, where a step is timed, the gradients of weights and tokens, in float64.

    Weights are recognised by their values, which the variants share under other names and axes.

    Raises:
        Unequal: naming the variant, what differs and by how much.
    """
    with_gradients = len(row.steps) > 1
    float64 = setting.changed(
        dtype=torch.float64, batch=min(setting.batch, 2), learns=with_gradients
    )
    _compare_variants(row.build(float64), row.float64_bound, with_gradients)


def check_rounding(variants: Mapping[str, Variant], setting: Setting) -> None:
    """Compare results in the dtype that is timed; half precision may round.

    Raises:
        Unequal: naming the variant, what differs and by how much.
    """
    _compare_variants(variants, ROUNDING_BOUNDS[setting.dtype], with_gradients=False)


def _compare_variants(variants: Mapping[str, Variant], bound: float, with_gradients: bool) -> None:
    """Compare all variants of the same function with the first."""
    expected: Evidence | None = None
    for name, variant in variants.items():
        if not variant.same:
            continue
        actual = evidence(variant, with_gradients)
        if expected is None:
            expected = actual
        for kind in expected:
            if variant.own_weights and kind == OF_WEIGHTS:
                continue
            _compare(name, kind, actual[kind], expected[kind], bound)


def _compare(
    name: str,
    kind: str,
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    bound: float,
) -> None:
    """Compare the relative difference of every tensor, in the Frobenius norm, with the bound."""
    if actual.keys() != expected.keys():
        raise Unequal(f"{name}: {len(actual)} {kind} beside {len(expected)}, not the same ones")
    largest_norm = max((float(tensor.norm()) for tensor in expected.values()), default=0.0)
    for key, truth in expected.items():
        value = actual[key]
        if value.shape != truth.shape:
            raise Unequal(
                f"{name}: {kind}, {key}: {tuple(value.shape)} beside {tuple(truth.shape)}"
            )
        scale = max(float(truth.norm()), SMALLEST_SHARE * largest_norm, TINIEST)
        error = float((value - truth).norm()) / scale
        if not error <= bound:  # NaN is above the bound too
            raise Unequal(
                f"{name}: {kind}, {key}: differs by {error:.1e}, at most {bound:.0e} is due"
            )


def evidence(variant: Variant, with_gradients: bool) -> Evidence:
    """Return the results of a variant, and the gradients of its weights and inputs.

    The gradient of the results is random and fixed.
    """
    variant.module.eval()
    with torch.no_grad():
        results = tensors_of(variant.call())
    collected: Evidence = {RESULTS: _numbered(results)}
    if not with_gradients:
        return collected
    variant.module.train()
    weights = [weight for weight in variant.module.parameters() if weight.requires_grad]
    inputs = [tensor for tensor in variant.inputs if tensor.requires_grad]
    results = tensors_of(variant.call())
    gradients = torch.autograd.grad(
        results, [*inputs, *weights], output_gradients(results), allow_unused=True
    )
    of_inputs = []
    for tensor, gradient in zip(inputs, gradients[: len(inputs)], strict=True):
        of_inputs.append(torch.zeros_like(tensor) if gradient is None else gradient)
    collected[RESULTS_IN_TRAINING] = _numbered([tensor.detach() for tensor in results])
    collected[OF_TOKENS] = _numbered(of_inputs)
    collected[OF_WEIGHTS] = _by_value(weights, gradients[len(inputs) :])
    return collected


def output_gradients(results: list[Tensor]) -> list[Tensor]:
    """Return a random gradient for every result, the same for the same shapes.

    Behind a LayerNorm a gradient of ones is zero.
    """
    if not results:
        return []
    shapes = [tensor.shape for tensor in results]
    gradients = random_tensors(shapes, seed=4, device=results[0].device)
    return [gradient.to(tensor) for gradient, tensor in zip(gradients, results, strict=True)]


def _numbered(tensors: list[Tensor]) -> dict[str, Tensor]:
    return {str(number): tensor.double() for number, tensor in enumerate(tensors)}


def _by_value(weights: list[Tensor], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """Return flat gradients by a fingerprint of the weight's values, without unused weights."""
    by_value: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    for weight, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            continue
        values = weight.detach().reshape(-1).double()
        key = (
            f"{len(values)} numbers beginning {float(values[0]):.12g}, "
            f"{float(values.sum()):.6g} in all"
        )
        # the parts of a weight that is split or repeated may have equal values
        by_value[key] = by_value[key] + gradient.detach().reshape(-1).double()
    return dict(by_value)
