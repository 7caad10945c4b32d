"""What every process of a test runs under torchrun: a detector through a freeze plan; each writes what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.unit.interop.test_torchvision import body, retinanet, scenes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinoneck.interop import find_encoder
from dinoneck.training import FreezeSchedule

PLAN = {0: "all", 1: "last:2", 2: "none"}


class Trained(nn.Module):
    """A detector whose DINO backbone is where plans and parameter groups look for it."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = retinanet(body())
        self.backbone = find_encoder(self.detector).backbone

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.detector(images, targets)
        return losses


def spread(module: nn.Module, world: int) -> float:
    own = torch.cat([value.detach().flatten() for value in module.parameters()])
    others = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(others, own)
    return max(float((other - own).abs().max()) for other in others)


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    inner = Trained()
    schedule = FreezeSchedule(PLAN, lr_scale=0.5)
    model: nn.Module = DistributedDataParallel(inner)
    optimizer = torch.optim.SGD(schedule.param_groups(model, lr=0.01))
    spreads, moved = [], []
    for epoch in PLAN:
        model, optimizer = schedule.start_epoch(epoch, model, optimizer)
        before = [value.detach().clone() for value in inner.backbone.adapter.blocks[5].parameters()]
        images, targets = scenes()
        optimizer.zero_grad()
        sum(model.train()([images[rank]], [targets[rank]]).values()).backward()
        optimizer.step()
        after = inner.backbone.adapter.blocks[5].parameters()
        moved.append(any(not torch.equal(one, other) for one, other in zip(before, after, strict=True)))
        spreads.append(spread(inner, world))
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps({"spreads": spreads, "moved": moved}))
    dist.barrier()  # gloo may abort a process whose peer has gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
