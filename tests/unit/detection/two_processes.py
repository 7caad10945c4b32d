"""What both processes of a test run under torchrun: training past the epoch where blocks thaw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dinoneck.detection import train_detector, training
from dinoneck.training import TrainConfig

folder = Path(sys.argv[1])
states: list[dict[str, torch.Tensor]] = []


class Watched(training._Run):
    """A run that notes its process' weights and the statistics it evaluated with, after every epoch."""

    def _validated(self) -> dict[str, Any]:
        scores = super()._validated()
        tested = {f"tested.{name}": value for name, value in self.detector.named_buffers()}
        own = dict(self.detector.named_parameters()) | tested
        states.append({name: value.detach().clone().contiguous() for name, value in own.items()})
        return scores


if __name__ == "__main__":
    training._Run = Watched  # type: ignore[misc]
    train_detector(TrainConfig.from_dict(json.loads((folder / "config.json").read_text())), folder / "run")
    for epoch, state in enumerate(states):
        save_file(state, folder / f"{torch.distributed.get_rank()}-{epoch}")
