"""Necks, heads, backbones and points next to the usual formulations of the same work.

    python -m benchmarks speed [--only necks heads ...] [--dtypes float32 bfloat16]
                               [--steps forward] [--graphs]
                               [--threads 1] [--device cpu] [--rounds 15]

Variants of a row share weights and tokens and take turns, in another order each round. Before they
are timed, their results and gradients are compared in float64 (1e-9), and their results in the
dtype that is measured. One CPU thread is timed by CPU time, several by the wall clock, a GPU by
events with the second-level cache overwritten before each turn. Ratios are medians, of the peer as
published and of the peer with its layout fixed. Rows whose peer is not installed are skipped and
listed. "% of roofline" is the least time for a forward at the measured ceilings: its operations, or
its weights, inputs and results moved once. With --graphs a GPU replays forwards as CUDA graphs (to
speed_graphs_cuda).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
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
from benchmarks.speed.checks import check, check_rounding, output_gradients
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
FORWARD, FORWARD_BACKWARD = STEPS
# what the ceilings are measured with: bytes that are copied, and the side of square matrices
COPY_BYTES = 1 << 28
SIDE = 1536
GPU_COPY_BYTES = 1 << 30
GPU_SIDE = 8192
CEILING_ROUNDS = 5
BACKBONE_ROUNDS = 5
COPY = "copy, GB/s"
MIB = 2**20
BACKBONES = {  # by width
    384: "vit_small_patch16_dinov3",
    768: "vit_base_patch16_dinov3",
    1280: "vit_huge_plus_patch16_dinov3",
}
PEERS = {"published": "× published", "fixed": "× layout fixed"}  # form -> column
SUMMARY = (  # step, dtype, form of the peer
    (FORWARD, "float32", "published"),
    (FORWARD, "bfloat16", "published"),
    (FORWARD_BACKWARD, "float32", "published"),
    (FORWARD, "float32", "fixed"),
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
        try:
            table = measure_row(row, options, limits)
        except ModuleNotFoundError as error:  # a peer that is not installed
            print(f"skipped: {row.name} ({error})")
            continue
        yield row.name, table
        summaries.setdefault(row.group, {})[row.name] = summary(table)
    for group, rows in summaries.items():
        yield f"{group}, ratios", rows
    with_scenes = not options.short
    if options.only:
        with_scenes = "scenes" in options.only
    if with_scenes and not is_gpu(options.device):
        scenes = {}
        for title, (points, views) in SCENES.items():
            scenes[title] = per_scene(points, views)
        yield "scenes", scenes


def measure_row(
    row: Row, options: argparse.Namespace, limits: Mapping[str, float]
) -> dict[str, Numbers]:
    """Return the table of a row: its settings in all dtypes, after their results were compared.

    Raises:
        ModuleNotFoundError: if a peer is not installed.
        Unequal: if a variant gives other results than the peer.
    """
    settings = row.settings_on(options.device)
    if options.short:
        settings = settings[:1]
    dtypes = ["float32"] if row.only_float32 else options.dtypes
    table: dict[str, Numbers] = {}
    for setting in settings:
        check(row, setting)
        for dtype in dtypes:
            in_dtype = setting.changed(dtype=getattr(torch, dtype))
            table |= measure_setting(row, in_dtype, options, limits)
    return table


def summary(table: Mapping[str, Numbers]) -> Numbers:
    """Return the ranges over the settings of the ratios of ours; those below 1 are bold."""
    ranges: Numbers = {}
    for step, dtype, form in SUMMARY:
        column = f"{step}, {PEERS[form]}"
        values = []
        for name, row in table.items():
            is_ours = name.startswith("ours") and f", {dtype}: " in name
            if is_ours and row.get(column) is not None:
                values.append(row[column])
        if values:
            title = f"{step}, {PEERS[form] if form == 'fixed' else dtype}"
            ranges[title] = _range(values)
    return ranges


def _range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value; those below 1 are bold."""
    lowest = f"{min(values):.2f}"
    highest = f"{max(values):.2f}"
    ends = [lowest] if lowest == highest else [lowest, highest]
    return " … ".join(f"**{end}**" if float(end) < 1 else end for end in ends)


def measure_setting(
    row: Row, setting: Setting, options: argparse.Namespace, limits: Mapping[str, float]
) -> dict[str, Numbers]:
    """Return title of a variant -> numbers of one row at one setting."""
    numbers: dict[str, Numbers] = {}
    variants: Mapping[str, Variant] = {}
    for step in row.steps:
        if step not in options.steps:
            continue
        variants = row.build(setting)
        check_rounding(variants, setting)
        runs = {name: make_run(variant, step) for name, variant in variants.items()}
        graphs = set()
        if options.graphs and step == FORWARD:
            graphs = {runs[name] for name, variant in variants.items() if variant.capturable}
        seconds = turns(runs, rounds=options.rounds, timer=timer_of(setting.device, graphs))
        for name, times in seconds.items():
            numbers.setdefault(name, {})[f"{step}, ms"] = statistics.median(times) * 1e3
        for form, column in PEERS.items():
            peer = _first_of(variants, form)
            if peer is not None:
                for name, row_ratios in ratios(seconds, peer).items():
                    numbers[name][f"{step}, {column}"] = row_ratios["× peer"]
        for name, variant in variants.items():
            numbers[name] |= memory_of(variant, step, runs[name], setting.device)

    for name, variant in variants.items():
        ms = numbers[name].get(f"{FORWARD}, ms")
        if variant.form != "ours" or ms is None:
            continue
        numbers[name]["% of roofline"] = 100 * floor_ms(variant, setting, limits) / ms
        if is_gpu(setting.device) and row.neck and setting.channels in BACKBONES:
            of_backbone = backbone_ms(setting.changed(layers=1, out=1, learns=False))
            numbers[name]["% of its backbone"] = 100 * ms / of_backbone

    return {_title(variant, setting, name): numbers[name] for name, variant in variants.items()}


def _first_of(variants: Mapping[str, Variant], form: str) -> str | None:
    """Return the name of the first variant of a form."""
    for name, variant in variants.items():
        if variant.form == form:
            return name
    return None


def _title(variant: Variant, setting: Setting, name: str) -> str:
    title = f"{setting.title}, {name_of(setting.dtype)}: {name}"
    if variant.form == "ours":
        title = f"ours, {title}"
    if not variant.same:
        title = f"{title} (other function)"
    return title


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def make_run(variant: Variant, step: str) -> Callable[[], Any]:
    """Return the call that is timed.

    It is a forward without autograd in eval mode, or a forward and backward in train mode.
    """
    module = variant.module

    def forward() -> Any:
        if module.training:  # to walk through all modules is not part of the computation
            module.eval()
        with torch.inference_mode():
            return variant.call()

    if step == FORWARD:
        return forward
    with torch.no_grad():
        gradients = output_gradients(tensors_of(variant.call()))

    def forward_backward() -> Any:
        if not module.training:
            module.train()
        module.zero_grad(set_to_none=True)
        for tensor in variant.inputs:
            tensor.grad = None
        results = tensors_of(variant.call())
        torch.autograd.backward(results, gradients)
        return results

    return forward_backward


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations return, while they live.

    Memory that one operation uses inside is not counted.

    Attributes:
        peak: the largest number of bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages of its results that are not those of its inputs."""
        result = func(*args, **(kwargs or {}))
        input_addresses = set()
        for tensor in _tensors_in((args, kwargs)):
            input_addresses.add(tensor.untyped_storage().data_ptr())
        for tensor in _tensors_in(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in input_addresses:
                self._live[StorageWeakRef(storage)] = storage.nbytes()
        self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def _tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory_of(variant: Variant, step: str, run: Callable[[], Any], device: str) -> Numbers:
    """Return the MiB at the peak of one call, and those that autograd saves of a step.

    The peak of a step with a backward pass is measured on a GPU alone.
    """
    numbers: Numbers = {}
    if is_gpu(device):
        module = gpu(device)
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        run()
        numbers[f"{step}, peak MiB"] = (module.max_memory_allocated() - before) / MIB
    elif step == FORWARD:
        with LiveBytes() as live:
            run()
        numbers[f"{step}, peak MiB"] = live.peak / MIB
    if step != FORWARD:
        numbers["saved MiB"] = _saved_bytes(variant) / MIB
    return numbers


def _saved_bytes(variant: Variant) -> int:
    """Return the bytes that autograd saves of a forward, each storage once, without inputs and weights."""
    module = variant.module
    not_counted = set()
    for tensor in (*module.parameters(), *module.buffers(), *variant.inputs):
        not_counted.add(tensor.untyped_storage().data_ptr())
    saved: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage  # a reference, so that no address is used twice
        return tensor

    module.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _results = variant.call()
    return sum(storage.nbytes() for address, storage in saved.items() if address not in not_counted)


def ceilings(device: str, dtypes: list[str], rounds: int = CEILING_ROUNDS) -> dict[str, float]:
    """Return bytes copied, read and written, and FLOP per second by dtype: the best of some turns."""
    if is_gpu(device):
        num_bytes = GPU_COPY_BYTES
        side = GPU_SIDE
    else:
        num_bytes = COPY_BYTES
        side = SIDE
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], Any]] = {COPY: lambda: target.copy_(source)}
    work = {COPY: 2.0 * num_bytes}
    for name in dtypes:
        # random numbers: zeros are multiplied faster
        dtype = getattr(torch, name)
        left = torch.randn(side, side, device=device).to(dtype)
        right = torch.randn(side, side, device=device).to(dtype)
        runs[f"{name}, GFLOP/s"] = partial(torch.matmul, left, right)
        work[f"{name}, GFLOP/s"] = 2.0 * side**3
    seconds = turns(runs, rounds=rounds, timer=timer_of(device))
    return {name: work[name] / min(times) for name, times in seconds.items()}


def floor_ms(variant: Variant, setting: Setting, limits: Mapping[str, float]) -> float:
    """Return the least milliseconds of a forward at the measured ceilings.

    Either its operations take them, or its weights, inputs and results, each moved once.
    """
    variant.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        results = tensors_of(variant.call())
    moved_bytes = 0
    for tensor in (*results, *variant.inputs, *variant.module.parameters()):
        moved_bytes += tensor.numel() * tensor.element_size()
    seconds_of_operations = counter.get_total_flops() / limits[f"{name_of(setting.dtype)}, GFLOP/s"]
    seconds_of_copies = moved_bytes / limits[COPY]
    return 1e3 * max(seconds_of_operations, seconds_of_copies)


@cache  # many rows have tokens of one ViT
def backbone_ms(setting: Setting) -> float:
    """Return the milliseconds of the whole ViT whose tokens have this width, batch and grid."""
    name = BACKBONES[setting.channels]
    model = load_backbone(name, pretrained=False, dtype=setting.dtype).to(setting.device)
    images = setting.images()

    def run() -> None:
        with torch.inference_mode():
            model(images)

    seconds = turns({"whole": run}, rounds=BACKBONE_ROUNDS, timer=timer_of(setting.device))
    return 1e3 * statistics.median(seconds["whole"])
