"""Necks for detectors on the same tokens of a ViT-S: DEIMv2's in transformers, a plain pyramid, and ours.

    OMP_NUM_THREADS=1 python -m benchmarks.detection_necks [--size 640] [--rounds 21] [--batches 1 4] [--device cpu]

Peers, each as published (NCHW) and with its layout fixed (channels-last weights and inputs, converted beforehand):
the part of transformers' Deimv2DINOv3ConvEncoder after its backbone, from the installed class itself; and a plain
pyramid (nearest x2 -> 1x1; 1x1; 3x3 stride 2). What has the same weights is first checked to give the same maps, in
eval and in train mode, to 1e-4 of the largest value. Ours gets the images as NCHW.

Forward is eval mode without autograd; the step is train mode, forward and backward, tokens included, as when the
backbone is tuned. Milliseconds are CPU time of the process, ratios medians over interleaved rounds. Saved MiB are the
activations that autograd keeps of one forward, each storage once, parameters, tokens and images left out. Peak MiB is
what one forward adds on top of weights and inputs, see benchmarks.backbones.
Writes benchmarks/results/detection_necks.json and .md; on CUDA detection_necks_cuda.json and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import devices
from benchmarks.backbones import peak_mib
from benchmarks.sources import store
from benchmarks.speed.peers_detection import DETAIL, OUT, WIDTH, Source, deim_encoder
from benchmarks.timing import compare, machine, ratios, turns
from dinoneck import SpatialTuningAdapter, STAPyramid, Tokens, load_backbone
from dinoneck.interop import PyramidEncoder

RESULTS = Path(__file__).with_name("results")
PREFIX, PATCH = 5, 16
BOUND = 1e-4
DEIM, SOURCE = "transformers' DEIMv2 neck", "plain pyramid"
SAME_GOAL, ALIGNED_GOAL = 1.5, 3.0
MODEL, LAYERS = "vit_small_patch16_dinov3", (5, 8, 11)
HEAD = (
    "| neck | goal | forward ms | × published | × layout fixed | forward + backward ms | × published | × layout fixed "
    "| saved MiB | peak MiB |"
)
SHORT = "| neck, batch 1 | forward ms | × layout fixed | forward + backward ms | × layout fixed | peak MiB |"
Maps = Sequence[Tensor]


@dataclass
class Variant:
    """One neck: its module, what calls it, what it should reach, and whether its maps are the peer's."""

    module: nn.Module
    call: Callable[[], Maps]
    goal: float | None = None
    same: bool = True


def deim_family(tokens: Tokens, images: Tensor) -> dict[str, Variant]:
    """DEIMv2's neck and the adapter in its forms, all of three layers."""
    published, fixed = deim_encoder(), deim_encoder()
    fixed.load_state_dict(published.state_dict())
    fixed.to(memory_format=torch.channels_last)
    images_last = images.contiguous(memory_format=torch.channels_last)
    copies = [maps.detach().contiguous().requires_grad_() for maps in tokens.maps()]
    views = [maps.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for maps in tokens.maps()]
    published.backbone.feature_maps, fixed.backbone.feature_maps = copies, views
    runs = {
        f"{DEIM}, as published": Variant(published, lambda: published(images)),
        f"{DEIM}, layout fixed": Variant(fixed, lambda: fixed(images_last)),
    }
    for detail, name, goal in (("aligned", 'detail="aligned"', ALIGNED_GOAL), (None, "detail=None, no images", None)):
        neck = SpatialTuningAdapter(WIDTH, OUT, 3, detail, DETAIL)
        runs[f"SpatialTuningAdapter, {name}, other weights"] = Variant(
            neck, lambda neck=neck: neck(tokens, images).maps, goal, same=False
        )
    return runs


def source_family(tokens: Tokens) -> dict[str, Variant]:
    """The plain pyramid and STAPyramid in its forms, of the last layer."""
    published, fixed = Source(), Source()
    fixed.load_state_dict(published.state_dict())
    fixed.to(memory_format=torch.channels_last)
    fixed.maps = tokens.last.maps()[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    sequence, (rows, cols) = tokens.sequence[-1], tokens.grid
    state = {
        name: x.flatten(1) if name in ("p8.weight", "p16.weight") else x for name, x in published.state_dict().items()
    }
    necks = {"same weights": STAPyramid(WIDTH, OUT)}
    necks["same weights"].load_state_dict(state)
    for name, option in (("bilinear", {"upsample": "bilinear"}), ("avgpool", {"downsample": "avgpool"})):
        necks[f"{name}, other weights"] = STAPyramid(WIDTH, OUT, **option)
    runs = {
        f"{SOURCE}, as published": Variant(
            published, lambda: published(sequence[:, PREFIX:].transpose(1, 2).reshape(-1, WIDTH, rows, cols))
        ),
        f"{SOURCE}, layout fixed": Variant(fixed, lambda: fixed(fixed.maps)),
    }
    for name, neck in necks.items():
        same = name == "same weights"
        runs[f"STAPyramid, {name}"] = Variant(
            neck, lambda neck=neck: neck(tokens).maps, SAME_GOAL if same else None, same
        )
    return runs


def handed(module: nn.Module) -> Sequence[Tensor]:
    """Token maps in the layout that a peer is given."""
    if isinstance(module, Source):
        return [] if module.maps is None else [module.maps]
    return module.backbone.feature_maps if hasattr(module, "backbone") else ()


def check(runs: Mapping[str, Variant]) -> None:
    """Raise unless all variants of the same weights give the same maps, in eval and in train mode."""
    for training in (True, False):
        truth: Maps | None = None
        for name, variant in runs.items():
            if not variant.same:
                continue
            found = _mode(variant.module, training) and [level.detach() for level in variant.call()]
            truth = truth or found
            for got, right in zip(found, truth, strict=True):
                error = float((got - right).abs().max() / right.abs().max().clamp_min(1.0))
                if got.shape != right.shape or not error <= BOUND:
                    raise SystemExit(f"{name}: maps differ by {error:.2e} (train={training})")


def _mode(module: nn.Module, training: bool) -> nn.Module:
    """Set the mode; batch statistics are used but not kept, so that train mode changes nothing."""
    for part in module.train(training).modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    return module


def saved_mib(variant: Variant, inputs: Sequence[Tensor]) -> float:
    """MiB that autograd keeps of one forward in train mode."""
    own = {x.untyped_storage().data_ptr() for x in (*inputs, *variant.module.parameters(), *variant.module.buffers())}
    kept: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return x

    _mode(variant.module, True)
    with saved_tensors_hooks(pack, lambda x: x):
        result = variant.call()
    assert len(result)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own) / 2**20


def measure(runs: Mapping[str, Variant], inputs: Sequence[Tensor], rounds: int, device: str) -> dict[str, Any]:
    """Variant -> numbers, forward and step, against both forms of the peer."""
    clock, wait = devices.clock(device), devices.waiting(device)
    published, fixed = list(runs)[:2]

    def forward(variant: Variant) -> Maps:
        with torch.no_grad():
            maps = variant.call()
        wait()
        return maps

    with torch.no_grad():
        above = {id(variant): [torch.full_like(level, 1e-3) for level in variant.call()] for variant in runs.values()}

    def step(variant: Variant) -> None:
        torch.autograd.backward(variant.call(), above[id(variant)])
        wait()

    def forget() -> None:
        for variant in runs.values():
            variant.module.zero_grad(set_to_none=True)
        for x in inputs:
            x.grad = None

    report: dict[str, Any] = {name: {"goal": variant.goal} for name, variant in runs.items()}
    for name, variant in runs.items():
        report[name]["saved_mib"] = saved_mib(variant, inputs)
        _mode(variant.module, False)
        report[name]["peak_mib"] = peak_mib(lambda variant=variant: forward(variant), device)
    for label, work in (("forward", forward), ("step", step)):
        for variant in runs.values():
            _mode(variant.module, label == "step")
        timed = {name: (lambda variant=variant, work=work: work(variant)) for name, variant in runs.items()}
        seconds = turns(timed, rounds=rounds, clock=clock, before=forget)
        to_published, to_fixed = ratios(seconds, published), ratios(seconds, fixed)
        for name in runs:
            report[name][label] = {**to_published[name], "ratio_fixed": to_fixed[name]["ratio"]}
    return report


def end_to_end(size: int, rounds: int, device: str) -> dict[str, Any]:
    """One image through ViT-S and neck: whole, alone, and with the ViT at half the size."""
    backbone = load_backbone(MODEL, pretrained=False, layers=LAYERS).to(device)
    neck = SpatialTuningAdapter(WIDTH, OUT, 3, "aligned", DETAIL)
    half = PyramidEncoder(backbone, SpatialTuningAdapter(WIDTH, OUT, 3, "aligned", DETAIL, grid_from="image"), 0.5)
    whole = f'ViT-S at {size} + SpatialTuningAdapter, detail="aligned"'
    runs: dict[str, nn.Module] = {f"ViT-S at {size}": backbone, whole: PyramidEncoder(backbone, neck)}
    runs[f"ViT-S at {size // 2} + adapter at {size} (dual resolution)"] = half
    images = torch.randn(1, 3, size, size, device=device)
    tokens = backbone(images)
    clock, wait = devices.clock(device), devices.waiting(device)

    def run(call: Callable[[], Any]) -> None:
        with torch.no_grad():
            call()
        wait()

    for module in runs.values():
        module.to(device).eval()
    variants = {name: (lambda m=module: run(lambda: m(images))) for name, module in runs.items()}
    variants['the neck alone, detail="aligned"'] = lambda: run(lambda: neck(tokens, images))
    return compare(variants, peer=whole, rounds=rounds, warmup=1, clock=clock)


def markdown(report: Mapping[str, Any]) -> str:
    """Return all tables; a goal that was missed is bold."""
    lines = []
    for batch in dict.fromkeys(title.rpartition(", ")[2] for title in report["necks"]):
        rows = {k: v for title, some in report["necks"].items() if title.endswith(batch) for k, v in some.items()}
        lines += [f"**{batch.capitalize()}**", "", HEAD, "|---|" + "---|" * HEAD.count(" | ")]
        for name, row in rows.items():
            cells = [f"≥ {row['goal']:g}" if row["goal"] else "–"]
            for part in (row["forward"], row["step"]):
                ratio = f"{part['ratio']:.2f}"
                missed = row["goal"] and part["ratio"] < row["goal"]
                cells += [f"{part['ms']:.1f}", f"**{ratio}**" if missed else ratio, f"{part['ratio_fixed']:.2f}"]
            cells += [f"{row['saved_mib']:.1f}", f"{row['peak_mib']:.1f}"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["**End to end, one image, forward**", ""]
    lines += ["| what runs | ms | images / s | share of the second row |", "|---|---|---|---|"]
    for name, row in report["end_to_end"].items():
        lines.append(f"| {name} | {row['ms']:.3g} | {1e3 / row['ms']:.3g} | {100 / row['ratio']:.1f} % |")
    return "\n".join(lines) + "\n"


def short(report: Mapping[str, Any]) -> str:
    """Return the table of the docs page: batch 1, compared with the layout-fixed peers."""
    lines = [SHORT, "|---|" + "---|" * SHORT.count(" | ")]
    rows = {k: v for title, some in report["necks"].items() if title.endswith("batch 1") for k, v in some.items()}
    for name, row in rows.items():
        cells = [f"{part['ms']:.1f} | {part['ratio_fixed']:.2f}" for part in (row["forward"], row["step"])]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['peak_mib']:.1f} |")
    return "\n".join(lines) + "\n"


def page(report: Mapping[str, Any]) -> str:
    """Return the whole .md file."""
    shown, setting = report["machine"], report["setting"]
    place = shown.get("gpu", shown["cpu"])
    return (
        f"Images of {setting['size']}×{setting['size']} px, tokens of width {WIDTH}, levels of {OUT} channels, "
        f"float32, {shown['cores']} thread(s), {setting['rounds']} rounds. Measured on {place}, "
        f"{shown['versions']}; `python -m benchmarks.detection_necks`.\n\n" + markdown(report)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--end-rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    devices.no_tf32()
    report: dict[str, Any] = {"machine": machine(options.device), "necks": {}}
    deim = find_spec("transformers") is not None
    if deim:
        report["machine"]["versions"]["transformers"] = metadata.version("transformers")
    else:
        print(f"skipped: {DEIM}, as transformers is not installed")
    report["setting"] = {key: getattr(options, key) for key in ("size", "rounds", "end_rounds", "threads", "device")}
    for batch in options.batches:
        count = PREFIX + (options.size // PATCH) ** 2
        layers = [torch.randn(batch, count, WIDTH, device=options.device, requires_grad=True) for _ in LAYERS]
        images = torch.randn(batch, 3, options.size, options.size, device=options.device)
        shape = {"image_size": (options.size, options.size), "patch_size": PATCH, "num_prefix_tokens": PREFIX}
        tokens = Tokens.from_sequence(layers, **shape)
        families = {DEIM: deim_family(tokens, images)} if deim else {}
        families[SOURCE] = source_family(tokens)
        for title, runs in families.items():
            for variant in runs.values():
                variant.module.to(options.device)
            check(runs)
            given = [x for v in runs.values() for x in handed(v.module)]
            rows = measure(runs, [*layers, images, *given], options.rounds, options.device)
            report["necks"][f"{title}, batch {batch}"] = rows
    report["end_to_end"] = end_to_end(options.size, options.end_rounds, options.device)
    options.out.mkdir(exist_ok=True)
    stem = devices.stem("detection_necks", options.device)
    store(options.out / f"{stem}.json", report)
    (options.out / f"{stem}.md").write_text(page(report))
    print(page(report))


if __name__ == "__main__":
    main()
