"""What both processes of a test run under torchrun: the example's training, past the epoch where blocks thaw."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from examples.detection import loop
from examples.detection.__main__ import main
from safetensors.torch import save_file

folder = Path(sys.argv[1])
states: list[dict[str, torch.Tensor]] = []


class Watched(loop.Run):
    """A run that notes its process' weights and the statistics it tested with, after every epoch."""

    def _save(self) -> None:
        tested = {f"tested.{name}": value for name, value in self._averaged().named_buffers()}
        own = dict(self.detector.named_parameters()) | tested
        states.append({name: value.clone() for name, value in own.items()})
        super()._save()


def run() -> None:
    from examples.detection import session

    session.Run = Watched  # type: ignore[misc]
    code = main(sys.argv[2:])
    rank = torch.distributed.get_rank()
    for epoch, state in enumerate(states):
        save_file({name: value.detach().contiguous() for name, value in state.items()}, folder / f"{rank}-{epoch}")
    sys.exit(code)


if __name__ == "__main__":
    run()
