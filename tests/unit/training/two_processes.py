"""What every process of a test runs under torchrun: one fit, whose weights and gradients each process writes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dinoneck import PatchMeanHead, Task, Tokens, load_backbone
from dinoneck.losses import TaskLoss, UncertaintyWeighting
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, fit

IMAGES = 12
CASES: dict[str, Recipe] = {
    "adamw": Recipe(clip_norm=None),
    "sam": Recipe(optimizer="sam", rho=0.5, clip_norm=None),
    "patience": Recipe(patience=2, clip_norm=None, ema_decay=0.5),
    "parts": Recipe(accumulate=2, clip_norm=None),
    "live in parts": Recipe(accumulate=2, backbone_lr=1e-2, clip_norm=None),
    "live": Recipe(backbone_lr=1e-2, clip_norm=None),
}


def run(case: str, out: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Batches of 4 without missing values; gradients and weights of the first step, and the weights after the last."""
    y = np.linspace(-1, 3, IMAGES)
    tasks, ids = [Task("x"), Task("other")], [str(i) for i in range(IMAGES)]
    if case.startswith("live"):
        images = np.random.RandomState(0).randint(0, 255, (IMAGES, 32, 32, 3), np.uint8)
        source: Any = LiveTokens(load_backbone("dinoneck_tiny").unfreeze_last(1), list(images), ids)
    else:
        patches = torch.randn(IMAGES, 6, 64, generator=torch.Generator().manual_seed(0))
        source = MemoryTokens(ids, Tokens.from_patches(patches, grid=(2, 3), patch_size=16))
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # the first process' weights count
    head = PatchMeanHead(64, tasks, hidden_dim=4)
    first_step: dict[str, torch.Tensor] = {}

    def keep_gradients(optimizer: Any, *arguments: Any) -> None:
        for i, parameter in enumerate(
            p for group in optimizer.param_groups for p in group["params"]
        ):
            first_step.setdefault(f"gradient {i}", parameter.grad.detach().clone())

    def keep_weights(optimizer: Any, *arguments: Any) -> None:
        for i, parameter in enumerate(
            p for group in optimizer.param_groups for p in group["params"]
        ):
            first_step.setdefault(f"weight {i}", parameter.detach().clone())

    hooks = [
        register_optimizer_step_pre_hook(keep_gradients),
        register_optimizer_step_post_hook(keep_weights),
    ]
    weighting = UncertaintyWeighting(["x", "other"]) if case.startswith("live") else None
    loss = TaskLoss(tasks, (), weighting)
    targets = {"x": y, "other": y[::-1] ** 2}
    options: dict[str, Any] = {
        "target_ids": ids,
        "ids": ids[:8],
        "val_ids": ids[8:],
        "recipe": CASES[case],
    }
    history = fit(
        head,
        source,
        targets,
        **options,
        loss=loss,
        epochs=3,
        batch_size=4,
        lr=1e-2,
        out=out / "run",
    )
    for hook in hooks:
        hook.remove()
    trained = [*head.named_parameters(), *loss.named_parameters()]
    if case.startswith("live"):
        trained += [(name, p) for name, p in source.backbone.named_parameters() if p.requires_grad]
    return {name: p.detach().clone().contiguous() for name, p in trained} | first_step, history


def main() -> None:
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), os.environ["RANK"]
    for case in CASES:
        (out / case).mkdir(exist_ok=True)
        tensors, history = run(case, out / case)
        save_file(tensors, out / case / f"rank{rank}.safetensors")
        (out / case / f"rank{rank}.json").write_text(json.dumps(history))


if __name__ == "__main__":
    main()
