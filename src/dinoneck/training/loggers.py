"""Callbacks that log the losses and scores of every epoch."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoneck.training.config import LoggingConfig


class TensorBoardLogger:
    """Write every number of an epoch as a TensorBoard scalar. It needs the package tensorboard.

    Args:
        folder: of the event files, which are opened at the first epoch; a resumed run adds to them.

    Raises:
        ImportError: naming the package, if it is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("tensorboard is not installed; install it with: pip install tensorboard") from error
        self._writer: Any = functools.cache(functools.partial(SummaryWriter, os.fspath(folder)))

    def __call__(self, epoch: int, row: Mapping[str, float]) -> None:
        """Write one epoch."""
        for name, value in row.items():
            self._writer().add_scalar(name, value, epoch)
        self._writer().flush()


class WandbLogger:
    """Log every number of an epoch to Weights & Biases. It needs the package wandb.

    Args:
        **init: arguments of ``wandb.init``, such as ``project``; for runs that are resumed ``id`` and ``resume`` too.

    Raises:
        ImportError: naming the package, if it is not installed.
    """

    def __init__(self, **init: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("wandb is not installed; install it with: pip install wandb") from error
        self._run: Any = functools.cache(functools.partial(wandb.init, **init))

    def __call__(self, epoch: int, row: Mapping[str, float]) -> None:
        """Log one epoch."""
        self._run().log(dict(row), step=epoch)


def loggers_of(config: LoggingConfig, folder: Path, part: str = "") -> list[TensorBoardLogger | WandbLogger]:
    """Return the loggers of a run, or of a part of it such as a fold."""
    loggers: list[TensorBoardLogger | WandbLogger] = []
    if config.tensorboard:
        loggers.append(TensorBoardLogger(folder / "tensorboard" / part))
    if config.wandb is not None:
        loggers.append(WandbLogger(project=config.wandb, name=f"{folder.name}-{part}" if part else folder.name))
    return loggers
