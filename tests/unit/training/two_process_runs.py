"""What every process of a test runs under torchrun: runs of heads in a folder that holds results.

A process is slow where the other one would overtake it if it did not wait.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dinoneck import train
from dinoneck.training import folder, run_file
from dinoneck.training.folder import writes

CONFIG: dict[str, Any] = {
    "data": {"pasture": 16},
    "backbone": {"name": "dinoneck_tiny", "random": True},
    "head": {"type": "patch_mean"},
    "optim": {"epochs": 2, "batch_size": 4},
    "folds": {"count": 2},
    "device": "cpu",
}
_PAUSE_S = 2.0  # more than the other process takes to overtake


@contextmanager
def _slow(module: Any, name: str, *, in_first: bool) -> Iterator[None]:
    """Within the block one process pauses before a function of a module."""
    function: Callable[..., Any] = getattr(module, name)

    def after_pause(*arguments: Any, **options: Any) -> Any:
        if writes() == in_first:
            time.sleep(_PAUSE_S)
        return function(*arguments, **options)

    with patch.object(module, name, after_pause):
        yield


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    train(CONFIG, out=out / "new")
    # the first process moves the earlier results while the second is ready to train
    with _slow(folder, "_set_aside", in_first=True):
        train(CONFIG, out=out / "replaced", overwrite=True)
    # the second process reads the folder when the first is ready to move what is in it
    with _slow(folder, "check_folder", in_first=False):
        train(CONFIG, out=out / "replaced late", overwrite=True)
    # the second process reads the report when the first is ready to replace it
    with _slow(run_file, "_finished_report", in_first=False):
        train({**CONFIG, "predict_with": "linear"}, out=out / "switched")


if __name__ == "__main__":
    main()
