"""The one training loop, of heads and of detectors, in one process or several: steps, averages, a state per epoch."""

from __future__ import annotations

import atexit
import io
import json
import logging
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinoneck.backbones.backbone import Backbone
from dinoneck.dtypes import HALF_DTYPES
from dinoneck.errors import CheckpointError, DataError
from dinoneck.progress import progress
from dinoneck.training.folder import LOG, Callback, load_state, write_file
from dinoneck.training.optim import EMA, SAM, cosine_with_warmup
from dinoneck.training.recipe import DetectorRecipe

logger = logging.getLogger(__name__)
Row = dict[str, Any]
# images of a batch in all processes, arguments of model
Batches = Generator[tuple[int, Sequence[Any]], None, None]
# of an epoch; they differ from run to run
TIMES = ("seconds", "images_per_second", "peak_memory_mb")
SAVE_EVERY_S = 30.0
_PLAIN = ("epoch", "history", "extra", "best")  # plain values of the state


class Engine:
    """A training run: the model, its optimizer and all state that changes from step to step.

    Args:
        trained: what is trained; averaged, clipped and moved by SAM.
        model: holds ``trained``; its ``forward`` returns losses by name, of which ``"loss"`` is
            minimised.
        groups: of the optimizer; frozen parameters that are trained later are among them.
        recipe: how.
        steps: of the optimizer, per epoch; each takes a batch.
        sam_rho: neighbourhood size of SAM; None = without.
        patience: epochs without a better validation loss before training ends with the best
            weights; None = all epochs of the recipe.

    Attributes:
        epoch: how many epochs are done.
        history: a row of numbers per finished epoch.
        best: the weights to keep; None = the last, or the averaged ones.
        extra: plain values that the caller keeps in the state.
        rank: this process among ``count``; 0 writes.
    """

    def __init__(
        self,
        trained: nn.Module,
        model: nn.Module,
        groups: list[dict[str, Any]],
        recipe: DetectorRecipe,
        steps: int,
        *,
        sam_rho: float | None = None,
        patience: int | None = None,
    ) -> None:
        self.trained, self.plain, self.recipe, self.steps = trained, model, recipe, steps
        self.patience = patience
        self.device = next(trained.parameters()).device
        self.rank, self.count = joined(self.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self.sam = None if sam_rho is None else SAM(trained, self.optimizer, sam_rho)
        self.scheduler = cosine_with_warmup(self.optimizer, recipe.epochs * steps, recipe.warmup)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        self.model = wrapped(model, self.parameters) if self.count > 1 else model
        # of the first process' weights
        self.ema = None if recipe.ema_decay is None else EMA(trained, recipe.ema_decay)
        self._parts: dict[str, Any] = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }
        self._parts |= {} if self.ema is None else {"ema": self.ema}
        self.epoch, self.history, self.extra = 0, list[Row](), dict[str, Any]()
        self.best: dict[str, Tensor] | None = None
        # of batches, on the device, and their images
        self._losses: list[tuple[dict[str, Tensor], int]] = []
        self._file: tuple[Path, Mapping[str, Any]] | None = None

    def run(
        self,
        batches: Callable[[int], Batches],
        validate: Callable[[], Row] | None = None,
        *,
        begin: Callable[[int], object] = lambda epoch: None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Train until the recipe's last epoch, or until patience ends; keep the state, at most every 30 s.

        At the end the model has the best weights with patience, else the averaged ones, else the
        last.

        Args:
            batches: of an epoch.
            validate: returns the scores of an epoch; it sees the averaged weights, and the first
                process' row counts.
            begin: called before an epoch.
            callbacks: ``callback(epoch, row)``, called after every epoch in the first process.
        """
        saved = time.monotonic()
        total, done = self.recipe.epochs * self.steps, self.epoch * self.steps
        with progress(
            total=total, initial=done, desc="steps", unit="step", hidden=self.rank > 0
        ) as bar:
            while not self._is_finished():
                seed_all(self.recipe.seed, self.epoch, self.rank)
                begin(self.epoch)
                self.history.append(self._one_epoch(batches(self.epoch), bar.update))
                if validate is not None:
                    self._validate(validate)
                self.epoch += 1
                if self._is_finished() or time.monotonic() - saved >= SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()
                for callback in callbacks if self.rank == 0 else ():
                    callback(self.epoch - 1, dict(self.history[-1]))
        if self.best is not None:
            self._take(self.best)
        elif self.ema is not None:
            self.ema.copy_to(self.trained)
        same(self.plain.buffers())  # batch statistics differ between processes
        self.plain.eval()

    def precision(self) -> torch.autocast:
        """Return the context of the recipe's ``amp``."""
        dtype = None if self.recipe.amp is None else HALF_DTYPES[self.recipe.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def note(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Note a batch's losses on the device: the host waits for it in :meth:`mean_losses` alone."""
        self._losses.append(
            ({name: value.detach().float() for name, value in losses.items()}, images)
        )

    def mean_losses(self) -> dict[str, float]:
        """Return the means over images of the losses that are noted, and forget them.

        Raises:
            DataError: if one is not finite.
        """
        noted, self._losses = self._losses, []
        images = torch.tensor([float(count) for _, count in noted], dtype=torch.float64)
        # the host waits here
        values = torch.stack([x for losses, _ in noted for x in losses.values()]).tolist()
        means = (
            images @ torch.tensor(values, dtype=torch.float64).view(len(noted), -1) / images.sum()
        )
        row: dict[str, float] = dict(zip(noted[0][0], means.tolist(), strict=True))
        if wrong := [name for name, value in row.items() if not math.isfinite(value)]:
            raise DataError(
                f"{wrong[0]} is {row[wrong[0]]} in epoch {self.epoch}: training diverged at lr "
                f"{self.recipe.lr:.3g}; lower it"
            )
        return row

    def _is_finished(self) -> bool:
        return self.epoch >= self.recipe.epochs or self._epochs_since_best() >= (
            self.patience or math.inf
        )

    def _epochs_since_best(self) -> int:
        losses = [row.get("val_loss", math.inf) for row in self.history]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def _one_epoch(self, batches: Batches, done: Callable[[], object]) -> Row:
        """Train on the batches; return the mean losses and what they took."""
        self.model.train()
        begin, images = time.perf_counter(), 0
        with closing(batches):
            for size, arguments in batches:
                self.note(self._step(arguments), size)
                done()
                images += size
        # the last gradient may not have been finite: the weights are checked with the losses, in
        # one read
        norm = torch.nn.utils.get_total_norm([p.detach() for p in self.parameters])
        self.note(dict.fromkeys(self._losses[0][0], norm), 0)
        rows = gathered(self.mean_losses())
        row = {name: sum(process[name] for process in rows) / len(rows) for name in rows[0]}
        seconds = time.perf_counter() - begin
        return {
            **row,
            **dict(
                zip(TIMES, (seconds, images / seconds, _peak_memory_mb(self.device)), strict=True)
            ),
        }

    def _step(self, arguments: Sequence[Any]) -> dict[str, Tensor]:
        """Take one step of the optimizer; return the losses before it."""

        def closure() -> dict[str, Tensor]:
            self.optimizer.zero_grad(set_to_none=True)
            with self.precision():
                losses: dict[str, Tensor] = self.model(*arguments)
            self.scaler.scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
            return losses

        losses = closure() if self.sam is None else self.sam.gradient(closure)
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # a gradient that overflowed in float16 counts for nothing
        if self.scaler.get_scale() >= scale:
            self.scheduler.step()
            if self.ema is not None:
                self.ema.update(self.trained)
        return losses

    @torch.no_grad()
    def _validate(self, validate: Callable[[], Row]) -> None:
        """Add the scores to the row of the epoch."""
        # batch statistics differ between processes; all evaluate those of the first, which are saved
        same(self.plain.buffers())
        with nullcontext() if self.ema is None else self.ema.applied(self.trained):
            self.plain.eval()
            self.history[-1] |= gathered(validate())[0]
            if self.patience is not None and self._epochs_since_best() == 0:
                self.best = {name: x.clone() for name, x in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        """All weights and buffers but those of a backbone that is not trained."""
        backbones = [module for module in self.plain.modules() if isinstance(module, Backbone)]
        left_out = {p for module in backbones for p in module.parameters()} - {*self.parameters}
        return {
            name: x.detach()
            for name, x in self.plain.state_dict(keep_vars=True).items()
            if x not in left_out
        }

    @torch.no_grad()
    def _take(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self._weights().items():
            value.copy_(weights[name])

    def keep(self, path: Path, run: Mapping[str, Any], *, resume: bool = True) -> None:
        """Keep the state in a file and, next to it, the log: one line per epoch; continue from the state of this run.

        Args:
            path: of the file, which the first process writes and every process reads.
            run: plain values that identify the run.
            resume: off = start again.

        Raises:
            CheckpointError: if the state is damaged, of another run, another one than the first
                process has, or cannot be written.
        """
        self._file = path, run
        state = load_state(path, run) if resume else None
        epochs = gathered(0 if state is None else state["epoch"])
        if len({*epochs}) > 1:
            raise CheckpointError(
                f"{path} is at epochs {epochs} in the processes; share one folder"
            )
        if state is not None:
            for name in _PLAIN:
                setattr(self, name, state[name])
            self._take(state["weights"])
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            if self.rank == 0:
                logger.info("the run is resumed from %s, epoch %d", path, self.epoch)
        self._write_log()

    def _save(self) -> None:
        if self._file is not None and self.rank == 0:
            path, run = self._file
            state = {name: getattr(self, name) for name in _PLAIN} | {
                "run": dict(run),
                "weights": self._weights(),
            }
            content = io.BytesIO()
            torch.save(
                state | {name: part.state_dict() for name, part in self._parts.items()}, content
            )
            write_file(path, content.getvalue())
            self._write_log()

    def _write_log(self) -> None:
        if self._file is not None and self.rank == 0:
            lines = [
                json.dumps({"epoch": i, **row}, allow_nan=False) + "\n"
                for i, row in enumerate(self.history)
            ]
            write_file(self._file[0].parent / LOG, "".join(lines).encode())


def _peak_memory_mb(device: torch.device) -> float:
    """The most memory so far: of torch on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def joined(device: torch.device) -> tuple[int, int]:
    """Return this process' rank and the number of processes; open the group of ``torchrun`` where it is not open.

    The group stays open until the process ends: opened a second time it would find the addresses of
    the first.

    Args:
        device: of the model, which decides between NCCL and Gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes one process per GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(lambda: dist.destroy_process_group() if _are_several() else None)
    return (dist.get_rank(), dist.get_world_size()) if _are_several() else (0, 1)


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def wrapped(model: nn.Module, parameters: Sequence[nn.Parameter]) -> nn.Module:
    """Return the model in DistributedDataParallel, which gets the weights of the first process.

    Args:
        model: whose ``forward`` returns the losses.
        parameters: whose gradients are averaged, also those that are frozen now and trained later.
    """
    frozen = nn.ParameterList(parameter for parameter in parameters if not parameter.requires_grad)
    frozen.requires_grad_(True)  # the wrapper only knows parameters that are trainable now
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    frozen.requires_grad_(False)
    return parallel


def gathered(value: Any) -> list[Any]:
    """Return the values of all processes."""
    values = [value] * (dist.get_world_size() if _are_several() else 1)
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def same(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values of the first."""
    for tensor in tensors if _are_several() else ():
        whole = tensor.contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


def seed_all(*words: int) -> None:
    """Seed Python, NumPy and torch (all devices) by some numbers, such as seed, epoch and rank."""
    states = np.random.SeedSequence(words).generate_state(3).tolist()
    random.seed(states[0])
    np.random.seed(states[1])  # noqa: NPY002 (sources may draw from the global generator)
    torch.manual_seed(states[2])


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """After the block the generators of Python, NumPy and torch (all devices) are as before it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    # fork_rng reads the state of each device, which would initialise a CUDA that nobody uses
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if is_used else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
