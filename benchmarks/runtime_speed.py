"""What the runtimes of a backbone gain on a CPU: shared by the benchmarks of images and of extraction.

The share of a core is what a run computes in a second of CPU time over what the fastest product of
large matrices computes in one, measured in the same process. It is not a figure of a datasheet.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, Variants, cpu, ratios, turns_by_both_clocks
from dinoneck import Backbone, load_backbone
from dinoneck.cpu_libraries import openvino
from dinoneck.dtypes import dtype_name
from dinoneck.kinds import Runtime

OF_CPU_TIME = "× by CPU time"
PRODUCT_SIDES = (1024, 2048)  # of square matrices: rows and columns
PRODUCT_CALLS = 9
HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}  # OpenVINO's names of precisions
GIGA = 1e9


class Setting(NamedTuple):
    """What computes the tokens, and in which precision."""

    runtime: Runtime
    dtype: torch.dtype

    @property
    def title(self) -> str:
        """The name of the setting in a table."""
        return f"{self.runtime}, {dtype_name(self.dtype)}"


SETTINGS = (
    Setting("torch", torch.float32),
    Setting("openvino", torch.float32),
    Setting("torch", torch.bfloat16),
    Setting("openvino", torch.bfloat16),
)


class Work(NamedTuple):
    """A variant of a row, what its backbone computes, and in which precision.

    Attributes:
        run: the work.
        operations: floating-point operations of its backbone.
        dtype: the precision in which they are computed.
    """

    run: Callable[[], Any]
    operations: int
    dtype: torch.dtype


def backbones_of(name: str) -> dict[Setting, Backbone]:
    """Return the same seeded weights in every runtime and precision."""
    backbones = {}
    for setting in SETTINGS:
        backbones[setting] = load_backbone(
            name, pretrained=False, seed=0, runtime=setting.runtime, dtype=setting.dtype
        )
    return backbones


def operations_of(backbone: Backbone, image_size: tuple[int, int]) -> int:
    """Return the floating-point operations for one image: products and convolutions, 2 per multiply-add."""
    in_torch = backbone.with_runtime("torch")
    images = torch.zeros(1, 3, *image_size)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        in_torch(images)
    operations: int = counter.get_total_flops()
    return operations


def compare(
    works: Mapping[str, Work],
    peaks: Mapping[torch.dtype, float],
    *,
    peer: str,
    rounds: int,
) -> dict[str, Row]:
    """Return variant -> ratios to the peer and the share of a core.

    Args:
        works: variant -> its work.
        peaks: see :func:`fastest_products`.
        peer: the variant that the others are compared with.
        rounds: how often each runs.
    """
    variants: Variants = {name: work.run for name, work in works.items()}
    wall_clock, cpu_time = turns_by_both_clocks(variants, rounds=rounds)
    rows = ratios(wall_clock.seconds, peer, f"× {peer}")
    by_cpu_time = ratios(cpu_time.seconds, peer, OF_CPU_TIME)
    for name, work in works.items():
        row = rows[name]
        row[OF_CPU_TIME] = by_cpu_time[name][OF_CPU_TIME]
        seconds = statistics.median(cpu_time.seconds[name])
        row["first run more, s"] = max(0.0, wall_clock.first[name] - row["ms"] / 1e3)
        rate = work.operations / seconds / GIGA
        row["GFLOP/s of a core"] = rate
        row["share of the fastest product"] = rate / peaks[work.dtype]
    return rows


def fastest_products() -> tuple[dict[str, Row], dict[torch.dtype, float]]:
    """Measure products of large matrices in one thread.

    Returns:
        The table; and for each precision the GFLOP/s of a core of the fastest of them.
    """
    table: dict[str, Row] = {}
    peaks: dict[torch.dtype, float] = {}
    for setting in SETTINGS:
        row: Row = {}
        for side in PRODUCT_SIDES:
            rate = _rate_of_product(setting, side)
            row[f"{side} × {side}, GFLOP/s"] = rate
            peaks[setting.dtype] = max(rate, peaks.get(setting.dtype, 0.0))
        table[setting.title] = row
    return table, peaks


def _rate_of_product(setting: Setting, side: int) -> float:
    """Return the GFLOP/s of one thread for a product of square matrices: the fastest of several calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = _product(setting, side)
    run()
    fastest = min(cpu(run) for _ in range(PRODUCT_CALLS))
    torch.set_num_threads(threads)
    return 2 * side**3 / fastest / GIGA


def _product(setting: Setting, side: int) -> Callable[[], Any]:
    """Return a call of a linear layer on as many rows as it has columns."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(side, side, generator=generator)
    linear = nn.Linear(side, side, bias=False).requires_grad_(False)
    if setting.runtime == "torch":
        return functools.partial(
            _in_inference_mode, linear.to(setting.dtype), rows.to(setting.dtype)
        )
    library = openvino()
    model = library.convert_model(torch.export.export(linear, (rows,)))
    properties = {
        "INFERENCE_PRECISION_HINT": HINTS[setting.dtype],
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = library.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    return functools.partial(request.infer, [rows.numpy()], share_inputs=True)


@torch.inference_mode()
def _in_inference_mode(module: nn.Module, inputs: Tensor) -> Tensor:
    outputs: Tensor = module(inputs)
    return outputs
