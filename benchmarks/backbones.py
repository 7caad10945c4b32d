"""Maps of one or several blocks of a frozen ViT: dinoneck next to the plain use of timm and transformers.

    python -m benchmarks.backbones [--model NAME] [--size 224x448] [--batch 2] [--threads 1] [--rounds 9]
                                   [--dtypes float32 bfloat16] [--device cpu]

Every variant gives final-normed maps (B, C, rows, cols) of the same blocks of the same seeded weights, without
autograd. Peers: `forward_intermediates` as it comes (all blocks, NCHW copies); `output_hidden_states=True`, then
norm, prefix off, reshape, permute, contiguous; both with their layout fixed (views instead of copies); timm also
with stop_early. transformers cannot stop early. All maps are checked equal first.

Peak memory is what one call adds on top of weights and images, its result included: on CPU the highest sum of live
bytes of torch's allocator, from the profiler's record of every allocation and release (scratch space that oneDNN
takes for itself is not in it); on CUDA torch.cuda.max_memory_allocated.
Writes benchmarks/results/backbones.json and .md; on CUDA backbones_cuda.json and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from benchmarks import devices
from benchmarks.sources import store
from benchmarks.timing import compare, machine
from dinoneck import Backbone, load_backbone

RESULTS = Path(__file__).with_name("results")
PEER = "timm, plain"
FLOAT32_BOUND, OTHER_BOUND = 1e-4, 3e-2
Maps = Sequence[Tensor]


def variants(
    ours: Backbone, ours_hf: Backbone | None, images: Tensor, finish: Callable[[], Any]
) -> dict[str, Callable[[], Maps]]:
    """All ways to the same maps; ``finish`` waits for the device. Without ``ours_hf`` those of timm only."""
    layers, grid = list(ours.layers), (images.shape[-2] // ours.patch_size, images.shape[-1] // ours.patch_size)
    timm_model = ours.adapter.model

    def timm_plain() -> Maps:
        return timm_model.forward_intermediates(images, indices=layers, norm=True)[1]

    def timm_fixed(stop_early: bool = False) -> Maps:
        options = {"norm": True, "output_fmt": "NLC", "intermediates_only": True, "stop_early": stop_early}
        return [_view(x, grid) for x in timm_model.forward_intermediates(images, indices=layers, **options)]

    runs: dict[str, Callable[[], Maps]] = {
        PEER: timm_plain,
        "timm, layout fixed": timm_fixed,
        "timm, layout fixed, stop_early": lambda: timm_fixed(stop_early=True),
        "dinoneck, timm": lambda: ours(images).maps(),
    }
    if ours_hf is not None:
        runs |= hf_variants(ours_hf, layers, images, grid)
    return {name: _finished(run, finish) for name, run in runs.items()}


def hf_variants(
    ours: Backbone, layers: Sequence[int], images: Tensor, grid: tuple[int, int]
) -> dict[str, Callable[[], Maps]]:
    """The ways through transformers."""
    model, norm, prefix = ours.adapter.model, ours.adapter.norms[0], ours.num_prefix_tokens

    def fixed() -> Maps:
        states = model(images, output_hidden_states=True).hidden_states
        return [_view(norm(states[layer + 1])[:, prefix:], grid) for layer in layers]

    def plain() -> Maps:
        states = model(images, output_hidden_states=True).hidden_states
        normed = (norm(states[layer + 1])[:, prefix:] for layer in layers)
        return [x.reshape(len(x), *grid, -1).permute(0, 3, 1, 2).contiguous() for x in normed]

    return {
        "transformers, plain": plain,
        "transformers, layout fixed": fixed,
        "dinoneck, transformers": lambda: ours(images).maps(),
    }


def _view(x: Tensor, grid: tuple[int, int]) -> Tensor:
    return x.unflatten(1, grid).permute(0, 3, 1, 2)


def _finished(run: Callable[[], Maps], finish: Callable[[], Any]) -> Callable[[], Maps]:
    def timed() -> Maps:
        with torch.no_grad():
            result = run()
        finish()
        return result

    return timed


def check(runs: Mapping[str, Callable[[], Maps]], truth: Maps) -> None:
    """Stop unless all maps are those of the float32 peer: to 1e-4, for other dtypes to 3 % in the Frobenius norm."""
    for name, run in runs.items():
        for got, right in zip(run(), truth, strict=True):
            error = (got.float() - right).abs().max() if got.dtype == torch.float32 else _relative(got.float(), right)
            bound = FLOAT32_BOUND if got.dtype == torch.float32 else OTHER_BOUND
            if not error <= bound:
                raise SystemExit(f"{name}: maps differ by {error:.2e}")


def _relative(got: Tensor, right: Tensor) -> Tensor:
    return (got - right).norm() / right.norm()


def peak_mib(run: Callable[[], Maps], device: str) -> float:
    """Memory that one call adds at its peak, in MiB."""
    if devices.is_gpu(device):
        gpu = devices.gpu(device)
        gpu.reset_peak_memory_stats()
        before = gpu.memory_allocated()
        run()
        return float(gpu.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    assert len(kept)
    events = []
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        peak = max(peak, now)
    return peak / 2**20


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Dtype and layers -> variant -> numbers."""
    height, width = (int(side) for side in options.size.split("x"))
    drawn = torch.randn(options.batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    finish = devices.waiting(options.device)
    devices.no_tf32()
    report: dict[str, dict[str, Any]] = {}
    truths: dict[str, list[Tensor]] = {}
    for dtype in dict.fromkeys(["float32", *options.dtypes]):
        settings: dict[str, Any] = {"pretrained": False, "dtype": getattr(torch, dtype)}
        base = load_backbone(options.model, source="timm", **settings).to(options.device)
        base_hf = None
        if find_spec("transformers") is not None:
            base_hf = load_backbone(options.model, source="transformers", **settings).to(options.device)
        images = drawn.to(options.device, getattr(torch, dtype))
        for title, layers in choices(base.depth).items():
            hf = None if base_hf is None else base_hf.with_layers(layers)
            runs = variants(base.with_layers(layers), hf, images, finish)
            if dtype == "float32":
                truths[title] = list(runs[PEER]())
            check(runs, truths[title])
            if dtype not in options.dtypes:
                continue
            peaks = {name: peak_mib(run, options.device) for name, run in runs.items()}
            rows = compare(runs, peer=PEER, rounds=options.rounds)
            for name, row in rows.items():
                row["images_per_s"] = options.batch / row["ms"] * 1e3
                row["peak_mib"] = peaks[name]
            report[f"{dtype}, {title}"] = rows
            print(markdown(f"{dtype}, {title}", rows), flush=True)
    return report


def choices(depth: int) -> dict[str, list[int]]:
    """Which blocks: the last, four spread, all, and two early ones."""
    four = [depth * k // 4 - 1 for k in (1, 2, 3, 4)]
    wanted = {"1 layer": four[3:], "4 layers": four, f"{depth} layers": list(range(depth)), "early layers": four[:2]}
    return {
        f"{name} ({', '.join(map(str, layers)) if len(layers) < depth else 'all'})": layers
        for name, layers in wanted.items()
    }


def markdown(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return one table."""
    lines = [f"**{title}**", "", "| variant | images/s | x peer (quartiles) | peak MiB |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['images_per_s']:.2f} | {row['ratio']:.2f} ({row['ratio_q1']:.2f} … {row['ratio_q3']:.2f}) "
        f"| {row['peak_mib']:.1f} |"
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_dinov3")
    parser.add_argument("--size", default="224x448", help="height x width, in pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"machine": machine(options.device)}
    torch.set_num_threads(options.threads)
    if find_spec("transformers") is None:
        print("skipped: the rows of transformers, which is not installed")
    else:
        report["machine"]["versions"]["transformers"] = metadata.version("transformers")
    keys = ("model", "size", "batch", "threads", "rounds", "device")
    report["setting"] = {key: getattr(options, key) for key in keys}
    report["results"] = measure(options)
    options.out.mkdir(exist_ok=True)
    stem = devices.stem("backbones", options.device)
    store(options.out / f"{stem}.json", report)
    (options.out / f"{stem}.md").write_text(page(report))


def page(report: Mapping[str, Any]) -> str:
    """Return the whole .md file."""
    shown, setting = report["machine"], report["setting"]
    place = shown.get("gpu", shown["cpu"])
    head = (
        f"{setting['batch']} images of {setting['size']} px, `{setting['model']}`, seeded weights, "
        f"{setting['threads']} thread(s), {setting['rounds']} rounds, peer: plain use of timm. "
        f"Measured on {place}, {shown['versions']}; "
        "`python -m benchmarks.backbones`.\n\n"
        "Peak MiB is what one call adds on top of weights and images, its result included: "
        + ("torch.cuda.max_memory_allocated.\n\n" if "gpu" in shown else "live bytes of torch's allocator.\n\n")
    )
    return head + "\n".join(markdown(title, rows) for title, rows in report["results"].items())


if __name__ == "__main__":
    main()
