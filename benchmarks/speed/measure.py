"""Measures the variants of a row: time in turns, memory, warm-up and graphs of the compiled ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import torch

from benchmarks import devices
from benchmarks.speed.checks import check_rounding, directions
from benchmarks.speed.clocks import timed
from benchmarks.speed.memory import peak_mib, saved_mib
from benchmarks.speed.rows import STEPS, Row, Setting, Variant, tensors_of


def measured(
    row: Row,
    setting: Setting,
    *,
    rounds: int,
    compiled: bool = False,
    graphs: bool = False,
    steps: Collection[str] = STEPS,
) -> dict[str, dict[str, Any]]:
    """Return ``{step: {variant: numbers}}`` of one row at one setting; :func:`checks.check` comes first.

    Args:
        row: what to measure.
        setting: at which sizes.
        rounds: turns of every variant.
        compiled: each variant once more through ``torch.compile``.
        graphs: on a GPU, replay forwards as graphs where they can be captured.
        steps: those of the row's that are wanted.
    """
    found: dict[str, dict[str, Any]] = {}
    for step in (step for step in row.steps if step in steps):
        variants = dict(row.build(setting.of(learns=step == "step, tokens learn")))
        replays = graphs and step == "forward" and devices.is_gpu(setting.device)
        replayed = [name for name, variant in variants.items() if replays and variant.capturable]
        check_rounding(variants, setting)
        runs = {name: prepared(variant, step) for name, variant in variants.items()}
        forms: dict[str, str] = {name: variant.form for name, variant in variants.items()}
        notes = {name: memory_of(variant, step, setting.device) for name, variant in variants.items()}
        if compiled:
            torch.compiler.reset()  # each code object is compiled a few times only, then left as it is
            for name, variant in variants.items():
                title = f"{name}, compiled"
                run = prepared(variant, step, torch.compile(variant.call))
                runs[title], forms[title], notes[title] = run, variant.form, first_call(run)
        rows = timed(runs, forms, device=setting.device, rounds=rounds, graphs=replayed)
        same = {name: variants[name.removesuffix(", compiled")].same for name in runs}
        found[step] = {
            name: {**numbers, "rounds": rounds, "form": forms[name], "same": same[name], **notes[name]}
            | ({"replayed": True} if name in replayed else {})
            for name, numbers in rows.items()
        }
    return found


def prepared(variant: Variant, step: str, call: Callable[[], Any] | None = None) -> Callable[[], Any]:
    """Return what is timed: a forward without autograd, or a forward and backward in train mode."""
    call = call or variant.call
    module = variant.module

    def forward() -> Any:
        if module.training:  # walking through all modules is no part of the work
            module.eval()
        with torch.inference_mode():
            return call()

    if step == "forward":
        return forward
    with torch.no_grad():
        above = directions(tensors_of(variant.call()))

    def trained() -> Any:
        if not module.training:
            module.train()
        forget(variant)
        results = tensors_of(call())
        torch.autograd.backward(results, above)
        return results

    return trained


def memory_of(variant: Variant, step: str, device: str) -> dict[str, Any]:
    """MiB at the peak of one call; of a step also what autograd keeps between forward and backward."""
    found = {} if step == "forward" else {"saved_mib": saved_mib(variant)}
    run = prepared(variant, step)
    run()
    forget(variant)  # what the traced call releases of an earlier one would count against its own
    return {**found, "peak_mib": peak_mib(run, device)}


def forget(variant: Variant) -> None:
    """Drop the gradients of weights and inputs."""
    variant.module.zero_grad(set_to_none=True)
    for x in variant.inputs:
        x.grad = None


def first_call(run: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of the call that compiles, and how many graphs came of it."""
    from torch._dynamo.utils import counters

    counters.clear()
    begin = time.perf_counter()
    run()
    return {"compile_s": time.perf_counter() - begin, "graphs": int(counters["stats"]["unique_graphs"])}
