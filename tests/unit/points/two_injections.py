"""What two processes of a test run: one backward through a wrapped network with checkpointing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tests.unit.points.plain_unet import NAMES, PlainUNet, cloud, injection_of, pyramid_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinoneck.points import InjectedUNet

WORLD = 2


def trained() -> InjectedUNet:
    return injection_of(gate="token").wrap(PlainUNet("non-reentrant"), NAMES)


def loss(model: nn.Module, rank: int) -> Tensor:
    """The mean over the voxels of a rank's own cloud; the images of the second saw little."""
    x = cloud(rank, voxels=60 - 20 * rank)
    pyramid = pyramid_of(x, rank, seen=0.6 - 0.5 * rank)
    value: Tensor = model(x, pyramid=pyramid).square().mean()
    return value


def work(rank: int, folder: str) -> None:
    """Take one backward with the other process and write the gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    model = DistributedDataParallel(trained())
    loss(model, rank).backward()
    gradients = {name: p.grad.tolist() for name, p in model.module.named_parameters() if p.grad is not None}
    Path(folder, f"{rank}.json").write_text(json.dumps(gradients))
    del model  # before its process group
    dist.barrier()  # gloo may abort a process whose peer has gone
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=WORLD)
