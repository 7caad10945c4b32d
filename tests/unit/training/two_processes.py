"""What every process of a test runs under torchrun: one fit, whose weights and history the first process writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from dinoneck import PatchMeanHead, Task, Tokens, load_backbone
from dinoneck.losses import TaskLoss, UncertaintyWeighting
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, fit

IMAGES = 11
CASES: dict[str, Recipe] = {
    "adamw": Recipe(clip_norm=0.5),
    "sam": Recipe(optimizer="sam", rho=0.5),
    "patience": Recipe(patience=5, ema_decay=None),
    "live": Recipe(backbone_lr=1e-2),
}


def run(case: str, out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Missing values, batches of 4, 4 and 1, learned weights of two tasks: all that makes shares of a batch unequal."""
    y = np.linspace(-1, 3, IMAGES)
    holes = np.where(np.arange(IMAGES) % 3 == 1, np.nan, y[::-1])
    tasks, ids = [Task("x"), Task("other")], [str(i) for i in range(IMAGES)]
    if case == "live":
        images = np.random.RandomState(0).randint(0, 255, (IMAGES, 32, 32, 3), np.uint8)
        source: Any = LiveTokens(load_backbone("dinoneck_tiny").unfreeze_last(1), list(images), ids)
    else:
        patches = torch.randn(IMAGES, 6, 64, generator=torch.Generator().manual_seed(0))
        source = MemoryTokens(ids, Tokens.from_patches(patches, grid=(2, 3), patch_size=16))
    torch.manual_seed(0)
    head = PatchMeanHead(64, tasks, hidden_dim=4)
    history = fit(
        head,
        source,
        targets={"x": y, "other": holes},
        target_ids=ids,
        ids=ids[:9],
        val_ids=ids[9:],
        epochs=4,
        batch_size=4,
        lr=1e-2,
        recipe=CASES[case],
        loss=TaskLoss(tasks, (), UncertaintyWeighting(["x", "other"])),
        out=out / "run",
    )
    weights = {name: p.detach().clone().contiguous() for name, p in head.named_parameters()}
    if case == "live":
        learnt = {n: p.detach().clone().contiguous() for n, p in source.backbone.named_parameters() if p.requires_grad}
        weights |= learnt
    return weights, history


def main() -> None:
    import os

    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), os.environ["RANK"]
    for case in CASES:
        (out / case).mkdir(exist_ok=True)
        weights, history = run(case, out / case)
        save_file(weights, out / case / f"rank{rank}.safetensors")
        (out / case / f"rank{rank}.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main()
