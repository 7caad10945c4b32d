"""What the blocks of a U-Net really receive and give, next to what was planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.errors import CheckpointError, DinoneckError
from dinoneck.points import DecoderInjection, GatedFusion, SparseFeatures, VoxelGrid, adapter_of
from dinoneck.points.keys import at_stride, encode
from dinoneck.weight_files import read_state
from examples.pointcloud.res16unet import PLANES, Engine, Res16UNet

STRIDES = (1, 2, 4, 8, 16)


class Planned(NamedTuple):
    """What a block of the network is to work on: ``up`` + ``skip`` channels at a stride, and ``leaves`` after it."""

    stride: int
    up: int
    skip: int
    leaves: int


Plan = Mapping[str, Planned]


def plan_of(planes: Sequence[int] = PLANES, init_dim: int = 32) -> dict[str, Planned]:
    """Return what every block of a Res16UNet of these widths is to receive and give; the default is Res16UNet34C."""
    down = [init_dim, *planes[:3]]
    plan = {f"block{i + 1}": Planned(2 << i, down[i], 0, planes[i]) for i in range(4)}
    return plan | {f"block{i + 5}": Planned(8 >> i, planes[i + 4], down[3 - i], planes[i + 4]) for i in range(4)}


def decoder_of(plan: Plan) -> dict[int, str]:
    """Return stride -> name of the blocks behind a concatenation."""
    return {planned.stride: name for name, planned in plan.items() if planned.skip}


@dataclass
class BlockReport:
    """What a block of the network really received and gave, next to its plan.

    Attributes:
        name: of the block.
        plan: what it was to receive and give.
        voxels: it worked on.
        enters: channels it received, None if it was not reached.
        leaves: channels it gave.
        hit_rate: share of its voxels that got something from the images; None where nothing is injected.
        absent: share of its voxels that the pyramid does not have at all.
        bad: NaN and Inf in what it received and gave.
    """

    name: str
    plan: Planned
    voxels: int = 0
    enters: int | None = None
    leaves: int | None = None
    hit_rate: float | None = None
    absent: float | None = None
    bad: int = 0


@dataclass
class Pass:
    """One run of the network."""

    out: Tensor | None = None
    blocks: list[BlockReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Network:
    """A U-Net, what it was planned to be, and what brings image features into it."""

    net: Any
    plan: Plan
    injection: DecoderInjection
    fusion: GatedFusion

    @classmethod
    def build(cls, plan: Plan, net: nn.Module, c_dino: int, weights: Mapping[str, Tensor] | None = None) -> Network:
        """Put injection and fusion next to a network.

        Args:
            plan: of the network.
            net: the network.
            c_dino: channels of the images' features.
            weights: of a file, with ``injection.*`` and ``fusion.*`` where it was trained with them; random otherwise.

        Raises:
            CheckpointError: if those are for features of another width, or fit no branch of the plan.
        """
        state, decoder = dict(weights or {}), decoder_of(plan)
        own = {part: _part(state, part) for part in ("injection", "fusion")}
        levels = {stride: plan[name].up for stride, name in decoder.items()}
        target: Any = "up"
        if own["injection"]:
            widths = {stride: own["injection"].get(f"levels.{stride}.proj.weight") for stride in decoder}
            found = {stride: tuple(weight.shape) for stride, weight in widths.items() if weight is not None}
            skips = {stride: plan[name].skip for stride, name in decoder.items()}
            fits = [way for way, want in (("up", levels), ("skip", skips))
                    if found == {stride: (width, c_dino) for stride, width in want.items()}]  # fmt: skip
            if not fits:
                raise CheckpointError(
                    f"the file's injection has projections {found}; planned are {levels} (up) or {skips} (skip) of "
                    f"features with {c_dino} channels: another --plan or --backbone?",
                    step="tensors",
                )
            target, levels = fits[0], levels if fits[0] == "up" else skips
        injection = DecoderInjection(c_dino, levels, target=target, zero_init=False)
        width = plan[decoder[1]].leaves
        fusion = GatedFusion(c_dino, width, width)
        for part, module in (("injection", injection), ("fusion", fusion)):
            if own[part]:
                load(module, own[part], part)
        return cls(net.eval(), plan, injection.eval(), fusion.eval())

    def to(self, device: torch.device) -> Network:
        """Move everything to a device."""
        for part in (self.net, self.injection, self.fusion):
            part.to(device)
        return self

    def run(self, grid: VoxelGrid, inputs: Tensor, pyramid: dict[int, SparseFeatures]) -> Pass:
        """Run with the injection and meters on all blocks; without injection, to name the reason where that fails."""
        strides = pyramid_problems(self.plan, pyramid)
        first = Pass() if strides else self._pass(grid, inputs, pyramid)
        done = first if first.out is not None else self._pass(grid, inputs, None)
        problems = strides + (first.problems if done is not first else []) + done.problems
        problems += [text for block in done.blocks for text in _channel_problems(block)]
        done.problems = list(dict.fromkeys(problems))
        return done

    def _pass(self, grid: VoxelGrid, inputs: Tensor, pyramid: dict[int, SparseFeatures] | None) -> Pass:
        done = Pass(blocks=[BlockReport(name, planned) for name, planned in self.plan.items()])
        decoder, handles = decoder_of(self.plan), []
        try:
            if pyramid is not None:
                handles.append(self.injection.attach(self.net, decoder))
            for block in done.blocks:  # after the injection's: what they see is what the block gets
                handles += self._meter(block, done, grid, pyramid)
            with self.injection.using(pyramid):
                done.out = self.net(self.net.sparse(grid, inputs))
        except DinoneckError as error:
            done.problems.append(f"{'injection' if pyramid is not None else 'network'}: {error}")
        finally:
            for handle in handles:
                handle.remove()
        if pyramid is not None and done.out is not None:
            for block in done.blocks:
                if decoder.get(block.plan.stride) == block.name:
                    block.hit_rate = self.injection.stats[block.plan.stride].hit_rate
        return done

    def _meter(
        self, block: BlockReport, done: Pass, grid: VoxelGrid, pyramid: dict[int, SparseFeatures] | None
    ) -> list[Any]:
        """Hook a block to note what it receives and gives."""
        module = dict(self.net.named_modules()).get(block.name)
        if module is None:
            done.problems.append(
                f"{type(self.net).__name__} has no {block.name}, planned at stride {block.plan.stride}"
            )
            return []
        stride = block.plan.stride

        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            adapter = adapter_of(args[0])
            feats, keys = adapter.features(args[0]), encode(*adapter.coords(args[0], stride))
            block.voxels, block.enters = feats.shape
            block.bad += bad(feats)
            done.problems += _stride_problems(block, keys, grid)
            if pyramid is not None and block.plan.skip:
                block.absent = 1 - share(torch.isin(keys, pyramid[stride].keys))

        def after(_: nn.Module, __: tuple[Any, ...], out: Any) -> None:
            feats = out if isinstance(out, Tensor) else adapter_of(out).features(out)
            block.leaves = feats.shape[1]
            block.bad += bad(feats)

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def network_of(weights: Mapping[str, Tensor], engine: Engine) -> Res16UNet:
    """Build the Res16UNet that a file of weights belongs to, whatever its widths, and load it.

    Args:
        weights: of a Res16UNet, or of a whole model that has it as ``unet.*``.
        engine: of the sparse convolutions.

    Raises:
        CheckpointError: if it is none.
    """
    own = _part(weights, "unet") or dict(weights)
    kernels = [own.get("stem.conv.weight"), *(own.get(f"block{i}.0.conv.weight") for i in range(1, 9))]
    found = [kernel for kernel in kernels if kernel is not None and kernel.ndim == 5]
    if len(found) < len(kernels):
        raise CheckpointError(
            "these weights are no Res16UNet's: stem and block1 ... block8 are not there", step="tensors"
        )
    layers = [len({key.split(".")[1] for key in own if key.startswith(f"block{i}.")}) for i in range(1, 9)]
    init_dim, *planes = (len(kernel) for kernel in found)
    net = Res16UNet(found[0].shape[-1], engine, planes=planes, layers=layers, init_dim=init_dim)
    load(net, own, "network")
    return net


def read_network(
    path: Path | None, plan: str, networks: Mapping[str, Any], engine: Engine
) -> tuple[Any, dict[str, Tensor]]:
    """Return the network of a file with the file's weights, or a planned one with random weights."""
    if path is None:
        return Res16UNet(3, engine, **networks[plan]), {}
    weights = read_state(path)
    return network_of(weights, engine), weights


def load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load all of a state dict.

    Raises:
        CheckpointError: if it does not fit.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(f"the file's {what} does not fit: {error}", step="tensors") from error


def pyramid_problems(plan: Plan, pyramid: Mapping[int, SparseFeatures]) -> list[str]:
    """Compare the pyramid's strides with those that are injected."""
    problems = []
    for stride, name in decoder_of(plan).items():
        if stride not in pyramid:
            has = ", ".join(map(str, pyramid)) or "none"
            problems.append(f"stride: the pyramid has no level {stride}, planned for {name}; it has {has}")
        elif pyramid[stride].stride != stride:
            problems.append(f"stride: the pyramid's level {stride} holds cells of stride {pyramid[stride].stride}")
    return problems


def _stride_problems(block: BlockReport, keys: Tensor, grid: VoxelGrid) -> list[str]:
    """Compare a block's voxels with the cells of its planned stride."""
    stride = block.plan.stride
    planned = torch.unique_consecutive(at_stride(grid.keys, stride))
    if torch.equal(keys.sort().values, planned):
        return []
    alike = [s for s in (*STRIDES, 32, 64) if len(torch.unique_consecutive(at_stride(grid.keys, s))) == len(keys)]
    looks = f", as many as at stride {alike[0]}" if alike and stride not in alike else ""
    return [
        f"stride: {block.name} works on {len(keys)} voxels{looks}; planned: the {len(planned)} cells of stride {stride}"
    ]


def _channel_problems(block: BlockReport) -> list[str]:
    """Compare a block's channels with its plan, and its voxels with the pyramid's."""
    stride, up, skip, leaves = block.plan
    problems = []
    if block.enters is not None and block.enters != up + skip:
        parts = f"{up} + {skip}" if skip else f"{up}"
        problems.append(f"channels: {block.name} (stride {stride}) receives {block.enters}, planned {parts}")
    if block.leaves is not None and block.leaves != leaves:
        problems.append(f"channels: {block.name} (stride {stride}) gives {block.leaves}, planned {leaves}")
    if block.absent:
        problems.append(
            f"stride: {block.absent:.1%} of the voxels of {block.name} are not in the pyramid's level {stride}"
        )
    return problems


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def bad(values: Tensor) -> int:
    """Return how many values are NaN or infinite."""
    return int((~values.isfinite()).sum())


def share(mask: Tensor) -> float:
    """Return the share of what is true, 0 of nothing."""
    return float(mask.double().mean()) if mask.numel() else 0.0
