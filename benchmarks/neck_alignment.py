"""Where a cell of SpatialTuningAdapter looks: the centroid of its input gradient against its own centre, in cells.

    python -m benchmarks.neck_alignment [--seeds 32] [--rounds 15]

Per path (the tokens' share, the ``aligned`` and the ``deimv2`` detail) and level: over seeds and inner cells, the mean
offset of sum |d cell / d input| along y and x, the one of larger size. 0 = the cell looks around its centre. Also
times both detail branches at 640 x 640, in CPU time of one thread. Writes benchmarks/results/neck_alignment.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import compare, machine
from dinoneck import SpatialTuningAdapter, Tokens
from dinoneck.necks.image_detail import AlignedDetail, DEIMv2Detail

RESULTS = Path(__file__).with_name("results")
CASES = {
    "320 x 480, patch 16": (20, 30, 16),
    "336 x 464, patch 16 (odd grid)": (21, 29, 16),
    "322 x 448, patch 14": (23, 32, 14),
}
WIDTH = 32


def inner(rows: int, cols: int) -> Sequence[tuple[int, int]]:
    """Cells that no border touches."""
    return [(rows // 2, cols // 2), (1, cols - 3), (rows - 3, 1), (rows - 3, cols - 3)]


def offsets(levels: Sequence[Tensor], source: Tensor, extent: Callable[[int], tuple[float, float]]) -> Tensor:
    """(levels, cells, 2): y and x of the gradients' centroids less the cells' centres, in cells of the level."""
    found = []
    for level in levels:
        rows, cols = level.shape[-2:]
        high, wide = (size / count for size, count in zip(source.shape[-2:], extent(len(found)), strict=True))
        for row, col in inner(rows, cols):
            push = level[0, :, row, col] @ torch.randn(level.shape[1])
            weight = torch.autograd.grad(push, source, retain_graph=True)[0][0].abs().sum(dim=0)
            weight = weight / weight.sum()
            y = (weight.sum(dim=1) * (torch.arange(weight.shape[0]) + 0.5)).sum() / high - (row + 0.5)
            x = (weight.sum(dim=0) * (torch.arange(weight.shape[1]) + 0.5)).sum() / wide - (col + 0.5)
            found.append(torch.stack((y, x)))
        found[-4:] = [torch.stack(found[-4:])]
    return torch.stack(found)


def one(path: str, rows: int, cols: int, patch: int, seed: int) -> Tensor:
    """Offsets of one path with one seed's weights."""
    torch.manual_seed(seed)

    def extent(level: int) -> tuple[float, float]:
        return rows * 2.0 ** (1 - level), cols * 2.0 ** (1 - level)

    if path == "tokens":
        neck = SpatialTuningAdapter(WIDTH, WIDTH, 1, None, patch_size=patch).eval()
        maps = torch.randn(1, WIDTH, rows, cols, requires_grad=True)
        tokens = Tokens.from_patches(maps.flatten(2).transpose(1, 2), grid=(rows, cols), patch_size=patch)
        return offsets(neck(tokens).maps, maps, extent)
    branch = (AlignedDetail if path == "aligned" else DEIMv2Detail)(16).eval()
    images = torch.randn(1, 3, rows * 16, cols * 16, requires_grad=True)
    return offsets(branch(images), images, extent)


def measure(seeds: int) -> dict[str, dict[str, list[float]]]:
    """Case -> path -> the larger mean offset of every level."""
    table: dict[str, dict[str, list[float]]] = {}
    for name, (rows, cols, patch) in CASES.items():
        table[name] = {}
        for path in ("tokens", "aligned", "deimv2"):
            mean = torch.stack([one(path, rows, cols, patch, seed) for seed in range(seeds)]).mean(dim=0).flatten(1)
            worst = mean.gather(1, mean.abs().argmax(dim=1, keepdim=True))[:, 0]
            table[name][path] = [round(float(value), 3) for value in worst]
    return table


@torch.no_grad()
def time_branches(rounds: int) -> dict[str, dict[str, float]]:
    """Both branches at 640 x 640, the aligned one against the other, both channels-last."""
    torch.set_num_threads(1)
    images = torch.randn(1, 3, 640, 640).contiguous(memory_format=torch.channels_last)
    aligned, deimv2 = AlignedDetail(16).eval(), DEIMv2Detail(16).eval()
    variants = {"deimv2": lambda: deimv2(images), "aligned": lambda: aligned(images)}
    return compare(variants, peer="deimv2", rounds=rounds, clock=time.thread_time)


def markdown(stored: dict[str, Any]) -> str:
    """Return the table of offsets that the page shows."""
    lines = ["| image | path | stride 8 | stride 16 | stride 32 |", "|---|---|---|---|---|"]
    for case, paths in stored["offsets"].items():
        for path, values in paths.items():
            lines.append(f"| {case} | {path} | " + " | ".join(f"{value:+.2f}" for value in values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    report = {"machine": machine(), "seeds": options.seeds, "offsets": measure(options.seeds)}
    report["milliseconds"] = time_branches(options.rounds)
    print(markdown(report))
    print(json.dumps(report["milliseconds"], indent=2))
    options.out.mkdir(exist_ok=True)
    (options.out / "neck_alignment.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
