"""Res16UNet34C on the point-cloud example's two engines, the same weights and voxels: seconds per pass and per step.

    OMP_NUM_THREADS=1 python -m benchmarks.sparse_convolution [--voxel 0.1] [--rounds 5] [--device cpu]

Voxels are those of points on the walls of a room that stands askew in the grid, as scans do. Both engines are first
checked to give the same. A pass includes the search for neighbours, which training repeats for every cloud; a step is
forward and backward, without the optimizer. Milliseconds are CPU time of the process (wall time on CUDA), ratios
medians over interleaved rounds. Needs spconv, which is the peer.
Writes benchmarks/results/sparse_convolution.json and .md (sparse_convolution_cuda on CUDA).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from examples.pointcloud.res16unet import Res16UNet
from examples.pointcloud.sparse_conv import Level
from torch import Tensor

from benchmarks import devices
from benchmarks.timing import compare, machine, markdown
from dinoneck.points import VoxelGrid

RESULTS = Path(__file__).with_name("results")
ROOM_M, POINTS, CHANNELS = (5.0, 4.0, 3.0), 400_000, 3


def walls(voxel_m: float) -> VoxelGrid:
    """Voxels of the walls, floor and ceiling of a room turned by 30 and 10 degrees."""
    draw = torch.Generator().manual_seed(0)
    points = torch.rand(POINTS, 3, generator=draw, dtype=torch.float64)
    side = torch.randint(6, (POINTS,), generator=draw)
    points[torch.arange(POINTS), side // 2] = (side % 2).double()
    points = (points - 0.5) * points.new_tensor(ROOM_M)
    for axes, degrees in (((0, 1), 30.0), ((1, 2), 10.0)):
        angle = torch.deg2rad(points.new_tensor(degrees))
        a, b = points[:, axes[0]].clone(), points[:, axes[1]].clone()
        points[:, axes[0]] = a * angle.cos() - b * angle.sin()
        points[:, axes[1]] = a * angle.sin() + b * angle.cos()
    return VoxelGrid.from_points(points, voxel_m)


def networks(device: str) -> dict[str, Res16UNet]:
    """The same network on both engines, the peer first."""
    made: dict[str, Res16UNet] = {}
    for name, engine in (("spconv", "spconv"), ("plain torch", "torch")):
        torch.manual_seed(0)
        made[name] = Res16UNet(CHANNELS, engine).to(device)  # type: ignore[arg-type]
    return made


def same(nets: dict[str, Res16UNet], grid: VoxelGrid, feats: Tensor) -> float:
    """Return the largest difference over the largest value; raise if it is no rounding."""
    with torch.no_grad():
        a, b = (net.eval()(net.sparse(grid, feats)) for net in nets.values())
    error = float((a - b).abs().max() / a.abs().max())
    if not error < 1e-4:
        raise SystemExit(f"the engines differ by {error:.1e} of the largest value")
    return error


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, on which cloud."""
    grid = walls(options.voxel).to(options.device)
    feats = torch.rand(len(grid), CHANNELS, generator=torch.Generator().manual_seed(0)).to(options.device)
    nets = networks(options.device)
    neighbours = sum(len(grid) if rows is None else len(rows) for _, rows, _ in Level(grid.keys).neighbours(3).entries)
    told: dict[str, Any] = {"voxels": len(grid), "neighbours": neighbours / len(grid)}
    told["difference"] = same(nets, grid, feats)
    wait = devices.waiting(options.device)

    def timed(run: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            run()
            wait()

        return call

    def infer(net: Res16UNet) -> None:
        with torch.no_grad():
            net.eval()(net.sparse(grid, feats))

    def step(net: Res16UNet) -> None:
        net.zero_grad(set_to_none=True)
        net.train()(net.sparse(grid, feats)).square().mean().backward()

    for title, act in (("inference", infer), ("training step", step)):
        runs = {name: timed(partial(act, net)) for name, net in nets.items()}
        told[title] = compare(runs, peer="spconv", rounds=options.rounds, warmup=1, clock=devices.clock(options.device))
    return told


def page(report: dict[str, Any]) -> str:
    """Return the .md file."""
    found, shown = report["sparse_convolution"], report["machine"]
    lines = [
        f"Res16UNet34C (37.85 M parameters), float32, {found['voxels']} voxels of a room's walls with "
        f"{found['neighbours']:.1f} occupied cells in a 3×3×3 neighbourhood, itself among them; both engines agree to "
        f"{found['difference']:.0e} of the largest value. {shown['cores']} thread(s), "
        f"{report['setting']['rounds']} rounds. Measured on {shown.get('gpu', shown['cpu'])}, {shown['versions']}, "
        f"spconv {shown['spconv']}; `python -m benchmarks.sparse_convolution`.",
    ]
    for title in ("inference", "training step"):
        lines += ["", markdown(title, found[title])]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxel", type=float, default=0.1, help="metres; 0.1 gives about 12 000 voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    devices.no_tf32()
    report: dict[str, Any] = {"machine": machine(options.device)}
    report["setting"] = {name: getattr(options, name) for name in vars(options) if name != "out"}
    report["sparse_convolution"] = measure(options)
    report["machine"]["spconv"] = version("spconv")
    name = devices.stem("sparse_convolution", options.device)
    options.out.mkdir(exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.out / f"{name}.md").write_text(page(report))
    print(page(report))


if __name__ == "__main__":
    main()
