"""Checks that variants are equal in float64, then times them in turn and counts their memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.speed.rows import Row, Setting, Variant, tensors_of
from benchmarks.timing import ratios, turns

EQUAL = 1e-9
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
FLUSH_BYTES = 256 << 20


class Unequal(Exception):
    """Two variants of one row do not give the same result."""


def measured(row: Row, setting: Setting, *, rounds: int, compiled: bool) -> dict[str, Any]:
    """Return ``{step: {variant: numbers}}`` of one row at one setting, after the check in float64."""
    check(row, setting)
    found: dict[str, Any] = {}
    for step in row.steps:
        variants = dict(row.build(setting))
        _agree(variants, step, ROUNDING[setting.dtype])
        memory = {name: memory_of(variant, step, setting.device) for name, variant in variants.items()}
        runs = {name: prepared(variant, step) for name, variant in variants.items()}
        forms = {name: variant.form for name, variant in variants.items()}
        if compiled:
            for name, variant in variants.items():
                runs[f"{name}, compiled"] = prepared(variant, step, torch.compile(variant.call))
                forms[f"{name}, compiled"] = variant.form
        found[step] = {
            name: {**numbers, "form": forms[name], **memory.get(name, {})}
            for name, numbers in timed(runs, forms, setting.device, rounds).items()
        }
    return found


def check(row: Row, setting: Setting) -> None:
    """Compare results, and gradients of the tokens' and weights' sum, in float64.

    Raises:
        Unequal: naming the variant and the largest relative difference.
    """
    exact = setting.of(dtype=torch.float64, batch=min(setting.batch, 2), learns=True)
    for step in row.steps:
        _agree(dict(row.build(exact)), step, EQUAL)


def _agree(variants: Mapping[str, Variant], step: str, bound: float) -> None:
    truth: list[Tensor] | None = None
    for name, variant in variants.items():
        if not variant.same:
            continue
        variant.module.train(step != "forward")
        found = [tensor.detach().double() for tensor in tensors_of(variant.call())]
        truth = truth or found
        for got, right in zip(found, truth, strict=True):
            error = float((got - right).norm() / right.norm().clamp_min(1e-30)) if got.shape == right.shape else 9.9
            if not error <= bound:
                raise Unequal(f"{name} ({step}): {tuple(got.shape)} differs by {error:.1e}, at most {bound:.0e} is due")


def prepared(variant: Variant, step: str, call: Callable[[], Any] | None = None) -> Callable[[], Any]:
    """Return what is timed: a forward without autograd, or a forward and backward in train mode."""
    call = call or variant.call
    module = variant.module

    def forward() -> Any:
        module.eval()
        with torch.inference_mode():
            return call()

    def step_() -> Any:
        module.train()
        results = tensors_of(call())
        torch.autograd.backward(results, [torch.ones_like(result) for result in results])

    return forward if step == "forward" else step_


def timed(
    runs: Mapping[str, Callable[[], Any]], forms: Mapping[str, str], device: str, rounds: int
) -> dict[str, dict[str, float]]:
    """Time all in turn; ratios to the first published and the first layout-fixed variant of the same rounds.

    One CPU thread is timed by the process's CPU time, which neighbours do not disturb; several threads by the wall
    clock; CUDA by events, after the caches were overwritten.
    """
    if device.startswith("cuda"):
        seconds = cuda_turns(runs, rounds)
    else:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        seconds = turns(runs, rounds=rounds, warmup=2, clock=clock)
    peers = {
        form: next(name for name in forms if forms[name] == form)
        for form in ("published", "fixed")
        if form in forms.values()
    }
    rows = ratios(seconds, peers["published"])
    against = ratios(seconds, peers["fixed"]) if "fixed" in peers else {}
    for name, row in rows.items():
        row["fixed_ratio"] = against[name]["ratio"] if against else None
    return rows


def cuda_turns(runs: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 25) -> dict[str, list[float]]:
    """Return the seconds of every variant in every round on the GPU, second-level cache overwritten before each."""
    scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for run in runs.values():
        for _ in range(warmup):
            run()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            scratch.zero_()
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            seconds[name].append(begin.elapsed_time(end) * 1e-3)
    return seconds


def memory_of(variant: Variant, step: str, device: str) -> dict[str, float]:
    """MiB that a forward adds at its peak, and in train mode what autograd keeps of it."""
    if step == "forward":
        return {"peak_mib": peak_mib(prepared(variant, step), device)}
    return {"saved_mib": saved_mib(variant)}


def saved_mib(variant: Variant) -> float:
    """MiB that autograd keeps of one forward in train mode, each storage once, weights and tokens left out."""
    variant.module.train()
    own = {x.untyped_storage().data_ptr() for x in (*variant.module.parameters(), *variant.module.buffers())}
    own |= {x.untyped_storage().data_ptr() for x in getattr(variant.module, "given", ())}
    kept: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()  # held, so that no address is used twice
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        result = tensors_of(variant.call())
    assert result
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own) / 2**20


def peak_mib(run: Callable[[], Any], device: str) -> float:
    """MiB that one call adds at its peak, its result included."""
    from benchmarks.backbones import peak_mib as peak

    return peak(run, device)


def count_parameters(module: nn.Module) -> int:
    """Weights of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
