"""Two processes gather what each predicted; a test starts it with the folder to write to."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from dinoneck.detection import gather_predictions

WORLD = 2


def shares() -> list[dict[int, dict[str, Tensor]]]:
    """What each process has: other images, one that both have, one without boxes; the second has one image more."""
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> dict[str, Tensor]:
        corner = 100 * torch.rand(count, 2, generator=generator)
        return {
            "boxes": torch.cat((corner, corner + 5), dim=1),
            "scores": torch.rand(count, generator=generator),
            "labels": torch.randint(0, 3, (count,), generator=generator),
        }

    return [{3: some(4), 2**40 + 1: some(0)}, {8: some(1), 3: some(2), -5: some(7)}]


def work(rank: int, folder: str) -> None:
    """Gather twice: the shares, and a share that only the second process has."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {"all": gather_predictions(shares()[rank]), "one": gather_predictions(shares()[1] if rank else {})}
    none = gather_predictions({})
    dist.barrier()  # gloo may abort a process whose peer has gone
    dist.destroy_process_group()
    flat = {
        f"{case}/{i}/{key}": x.contiguous()
        for case, own in found.items()
        for i, p in own.items()
        for key, x in p.items()
    }
    save_file({**flat, "none": torch.tensor(len(none))}, f"{folder}/{rank}.safetensors")


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=WORLD)
