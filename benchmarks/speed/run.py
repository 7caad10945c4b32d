"""Necks, heads, backbones and points next to the usual formulations of the same work.

    python -m benchmarks speed [--only necks heads ...] [--dtypes float32 bfloat16] [--steps
    forward] [--graphs]
                               [--threads 1] [--device cpu] [--rounds 15]

Variants of a row share weights and tokens and take turns, in another order each round. Before
anything is timed their results and gradients are checked equal in float64 (1e-9), and their results
in the dtype measured. One CPU thread is timed by CPU time, several by the wall clock, a GPU by
events with the second-level cache overwritten before each turn. Ratios are medians, of the peer as
published and of the peer with its layout fixed. Rows whose peer is not installed are skipped and
listed. "% of roofline" is the least time for a forward at the measured ceilings: its operations, or
its weights, inputs and results moved once. With --graphs a GPU replays forwards as CUDA graphs (to
speed_graphs_cuda).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row as Numbers
from benchmarks.measure import gpu, is_gpu, ratios, timer_of, turns
from benchmarks.speed import (
    rows_backbone,
    rows_dense,
    rows_detection,
    rows_heads,
    rows_points,
    rows_published,
    rows_pyramids,
    rows_tokens,
)
from benchmarks.speed.checks import check, check_rounding, directions
from benchmarks.speed.rows import STEPS, Row, Setting, Variant, tensors_of
from benchmarks.speed.scenes import SCENES, per_scene
from dinoneck import load_backbone

ROUNDS = 15
ROWS = [
    *rows_pyramids.ROWS,
    *rows_detection.ROWS,
    *rows_dense.ROWS,
    *rows_heads.ROWS,
    *rows_published.ROWS,
    *rows_backbone.ROWS,
    *rows_tokens.ROWS,
    *rows_points.ROWS,
]
COPY_BYTES, SIDE = 1 << 28, 1536
GPU_COPY_BYTES, GPU_SIDE = 1 << 30, 8192
BACKBONES = {
    384: "vit_small_patch16_dinov3",
    768: "vit_base_patch16_dinov3",
    1280: "vit_huge_plus_patch16_dinov3",
}
PEERS = {"published": "× published", "fixed": "× layout fixed"}
SUMMARY = (
    (STEPS[0], "float32", "published"),
    (STEPS[0], "bfloat16", "published"),
    (STEPS[1], "float32", "published"),
    (STEPS[0], "float32", "fixed"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument(
        "--graphs", action="store_true", help="on a GPU, replay forwards as CUDA graphs"
    )


def stem(options: argparse.Namespace) -> str:
    """Return the name of the result."""
    return "speed_graphs" if options.graphs else "speed"


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Numbers]]]:
    """Yield a table per row and the summaries of the groups."""
    limits = ceilings(options.device, options.dtypes)
    yield "ceilings", {"measured": {name: value / 1e9 for name, value in limits.items()}}
    summaries: dict[str, dict[str, Numbers]] = {}
    for row in ROWS:
        if options.only and row.group not in options.only:
            continue
        table: dict[str, Numbers] = {}
        try:
            for setting in row.settings_on(options.device)[: 1 if options.short else None]:
                check(row, setting)
                for dtype in ["float32"] if row.only_float32 else options.dtypes:
                    table |= measured(row, setting.of(dtype=getattr(torch, dtype)), options, limits)
        except ModuleNotFoundError as error:  # a peer that is not installed
            print(f"skipped: {row.name} ({error})")
            continue
        yield row.name, table
        summaries.setdefault(row.group, {})[row.name] = summary(table)
    for group, rows in summaries.items():
        yield f"{group}, ratios", rows
    if not (is_gpu(options.device) or options.only or options.short):
        yield "scenes", {title: per_scene(*sizes) for title, sizes in SCENES.items()}


def summary(table: Mapping[str, Numbers]) -> Numbers:
    """Return the ranges over the settings of the ratios of ours; those below 1 are bold."""
    found: Numbers = {}
    for step, dtype, form in SUMMARY:
        column = f"{step}, {PEERS[form]}"
        ours = [
            row for name, row in table.items() if name.startswith("ours") and f", {dtype}: " in name
        ]
        values = [row[column] for row in ours if row.get(column) is not None]
        title = f"{step}, {PEERS[form] if form == 'fixed' else dtype}"
        if values:
            ends = list(dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values))))
            found[title] = " … ".join(f"**{end}**" if float(end) < 1 else end for end in ends)
    return found


def measured(
    row: Row, setting: Setting, options: argparse.Namespace, limits: Mapping[str, float]
) -> dict[str, Numbers]:
    """Return variant -> numbers of one row at one setting."""
    found: dict[str, Numbers] = {}
    variants: Mapping[str, Variant] = {}
    for step in (step for step in row.steps if step in options.steps):
        variants = row.build(setting)
        check_rounding(variants, setting)
        runs = {name: prepared(variant, step) for name, variant in variants.items()}
        replayed = options.graphs and step == STEPS[0]
        graphs = {
            runs[name] for name, variant in variants.items() if replayed and variant.capturable
        }
        seconds = turns(runs, rounds=options.rounds, timer=timer_of(setting.device, graphs))
        for name, own in seconds.items():
            found.setdefault(name, {})[f"{step}, ms"] = statistics.median(own) * 1e3
        for form, label in PEERS.items():
            peer = next((name for name, variant in variants.items() if variant.form == form), None)
            for name, numbers in ratios(seconds, peer).items() if peer else ():
                found[name][f"{step}, {label}"] = numbers["× peer"]
        for name, variant in variants.items():
            found[name] |= memory_of(variant, step, runs[name], setting.device)
    for name, variant in variants.items():
        ms = found[name].get(f"{STEPS[0]}, ms")
        if variant.form == "ours" and ms is not None:
            found[name]["% of roofline"] = 100 * floor_ms(variant, setting, limits) / ms
            if is_gpu(setting.device) and row.neck and setting.channels in BACKBONES:
                found[name]["% of its backbone"] = (
                    100 * ms / backbone_ms(setting.of(layers=1, out=1, learns=False))
                )
    dtype = str(setting.dtype).removeprefix("torch.")
    return {
        _title(variant, f"{setting.title}, {dtype}: {name}"): found[name]
        for name, variant in variants.items()
    }


def _title(variant: Variant, name: str) -> str:
    return f"{'ours, ' if variant.form == 'ours' else ''}{name}{'' if variant.same else ' (other function)'}"


def prepared(variant: Variant, step: str) -> Callable[[], Any]:
    """Return what is timed: a forward without autograd, or a forward and backward in train mode."""
    module = variant.module

    def forward() -> Any:
        if module.training:  # walking through all modules is not part of the work
            module.eval()
        with torch.inference_mode():
            return variant.call()

    if step == STEPS[0]:
        return forward
    with torch.no_grad():
        above = directions(tensors_of(variant.call()))

    def trained() -> Any:
        if not module.training:
            module.train()
        module.zero_grad(set_to_none=True)
        for x in variant.inputs:
            x.grad = None
        results = tensors_of(variant.call())
        torch.autograd.backward(results, above)
        return results

    return trained


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they live; not what one operation needs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.live = 0, dict[StorageWeakRef, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results; a view of another tensor makes none."""
        result = func(*args, **(kwargs or {}))
        old = {
            x.untyped_storage().data_ptr()
            for x in tree_leaves((args, kwargs))
            if isinstance(x, Tensor)
        }
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in old:
                self.live[StorageWeakRef(x.untyped_storage())] = x.untyped_storage().nbytes()
        self.live = {storage: size for storage, size in self.live.items() if not storage.expired()}
        self.peak = max(self.peak, sum(self.live.values()))
        return result


def memory_of(variant: Variant, step: str, run: Callable[[], Any], device: str) -> Numbers:
    """Return the MiB that autograd keeps of a step, each storage once, and those at the peak of one call."""
    found: Numbers = {}
    if is_gpu(device):
        module = gpu(device)
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        run()
        found[f"{step}, peak MiB"] = (module.max_memory_allocated() - before) / 2**20
    elif step == STEPS[0]:
        with LiveBytes() as live:
            run()
        found[f"{step}, peak MiB"] = live.peak / 2**20
    if step == STEPS[0]:
        return found
    given = (*variant.module.parameters(), *variant.module.buffers(), *variant.inputs)
    own = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return x

    variant.module.train()
    with saved_tensors_hooks(pack, lambda x: x):
        _results = variant.call()
    found["saved MiB"] = (
        sum(storage.nbytes() for place, storage in kept.items() if place not in own) / 2**20
    )
    return found


def ceilings(device: str, dtypes: list[str], rounds: int = 5) -> dict[str, float]:
    """Return bytes copied, read and written, and FLOP per second by dtype: the best of some turns."""
    size, side = (GPU_COPY_BYTES, GPU_SIDE) if is_gpu(device) else (COPY_BYTES, SIDE)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], Any]] = {"copy, GB/s": lambda: target.copy_(source)}
    for dtype in dtypes:  # random numbers: zeros are faster
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        runs[f"{dtype}, GFLOP/s"] = lambda a=a, b=b: a @ b  # type: ignore[misc]
    seconds = turns(runs, rounds=rounds, timer=timer_of(device))
    work = {name: 2.0 * size if name.startswith("copy") else 2.0 * side**3 for name in runs}
    return {name: work[name] / min(found) for name, found in seconds.items()}


def floor_ms(variant: Variant, setting: Setting, limits: Mapping[str, float]) -> float:
    """Return the least milliseconds of a forward: its operations, or its weights, inputs and results moved once."""
    variant.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        results = tensors_of(variant.call())
    moved = sum(
        x.numel() * x.element_size()
        for x in (*results, *variant.inputs, *variant.module.parameters())
    )
    product = limits[f"{str(setting.dtype).removeprefix('torch.')}, GFLOP/s"]
    return 1e3 * max(counter.get_total_flops() / product, moved / limits["copy, GB/s"])


@cache  # many rows have tokens of one ViT
def backbone_ms(setting: Setting) -> float:
    """Return the milliseconds of the whole ViT that gives tokens of this width, batch and grid."""
    model = load_backbone(BACKBONES[setting.channels], pretrained=False, dtype=setting.dtype).to(
        setting.device
    )
    images = setting.images()

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return 1e3 * statistics.median(
        turns({"whole": run}, rounds=5, timer=timer_of(setting.device))["whole"]
    )
