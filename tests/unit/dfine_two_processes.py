"""Two processes train a model with a ``DINOv3Backbone`` past the epoch where the ViT thaws, as D-FINE's loop would."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from examples.detection.dfine.dinov3_backbone import DINOv3Backbone
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

EPOCHS = 3


class Detector(nn.Module):
    """Named as D-FINE names its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = DINOv3Backbone(
            "dinoneck_tiny",
            False,
            out_channels=[8] * 3,
            freeze_backbone_epochs=1,
            unfreeze="last:2",
            neck="sta_pyramid",
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([level.square().mean() for level in self.backbone(images)]).sum()


def train(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = Detector().train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    model: nn.Module = DistributedDataParallel(plain)
    changed = []
    for epoch in range(EPOCHS):
        report = plain.backbone.start_epoch(epoch)
        changed.append(report.changed)
        if report.changed:
            model = DistributedDataParallel(plain)
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(10 * epoch + rank))
        optimizer.zero_grad()
        model(images).backward()
        optimizer.step()
    torch.save({"weights": plain.state_dict(), "changed": changed}, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(train, args=(sys.argv[1],), nprocs=2)  # type: ignore[no-untyped-call]
