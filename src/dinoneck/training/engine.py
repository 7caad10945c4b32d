"""What the training loops of heads and of detectors share: the step, averages, the best weights, a state per epoch."""

from __future__ import annotations

import io
import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dinoneck.backbones.backbone import Backbone
from dinoneck.devices import peak_memory_mb
from dinoneck.dtypes import HALF_DTYPES
from dinoneck.errors import CheckpointError, ConfigError, DataError
from dinoneck.progress import progress
from dinoneck.training.folder import LOG, Callback, load_state, write_file
from dinoneck.training.optim import EMA, SAM, cosine_with_warmup
from dinoneck.training.processes import copy_from_first, gather, join_processes
from dinoneck.training.recipe import DetectorRecipe

logger = logging.getLogger(__name__)
Row = dict[str, Any]
# what an epoch took, in its row; they differ from run to run
MEMORY = "peak_memory_mb"
TIMES = ("seconds", "images_per_second", MEMORY)
SAVE_EVERY_S = 30.0


@dataclass(frozen=True)
class _BatchLosses:
    """The losses of a batch by name, on the device, and how many images they are means over."""

    losses: Mapping[str, Tensor]
    num_images: int


@dataclass(frozen=True)
class _StateFile:
    """The file that keeps the state of a run, and the plain values that identify the run."""

    path: Path
    identity: Mapping[str, Any]


class Engine:
    """The state of a training run, in one process or several: the model, its optimizer and what is kept on disk.

    The caller writes the loops::

        with engine.progress() as bar:
            while not engine.is_finished:
                engine.start_epoch()
                engine.model.train()
                for batch in batches:
                    losses = engine.forward_backward(lambda: engine.model(batch))
                    engine.step()
                    engine.add_losses(losses, len(batch))
                    bar.update()
                engine.add_row()
                with engine.evaluating():
                    engine.add_scores(scores)
                engine.end_epoch()
        engine.finish()

    Args:
        trained: what is trained; averaged, clipped and moved by SAM.
        objective: holds ``trained``; its ``forward`` returns losses by name, of which ``"loss"`` is
            minimised.
        groups: of the optimizer; frozen parameters that are trained later are among them.
        recipe: epochs, learning rate and its schedule, precision, clipping and averaging.
        steps_per_epoch: of the optimizer; each takes a batch.
        sam_rho: neighbourhood size of SAM; None = without.
        patience: epochs without a better validation loss before training ends with the best
            weights; None = all epochs of the recipe.

    Attributes:
        model: the objective; in several processes in DistributedDataParallel.
        parameters: all that the optimizer has, also those that are frozen now.
        epoch: how many epochs are done.
        history: a row of numbers per finished epoch.
        best: the weights to keep; None = the last, or the averaged ones.
        extra: plain values that the caller keeps in the state.
        rank: this process among ``num_processes``; 0 writes.
    """

    def __init__(
        self,
        trained: nn.Module,
        objective: nn.Module,
        groups: list[dict[str, Any]],
        recipe: DetectorRecipe,
        steps_per_epoch: int,
        *,
        sam_rho: float | None = None,
        patience: int | None = None,
    ) -> None:
        self.trained = trained
        self.objective = objective
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.patience = patience
        self.device = next(trained.parameters()).device
        self.rank, self.num_processes = join_processes(self.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self.sam = None if sam_rho is None else SAM(trained, self.optimizer, sam_rho)
        self.scheduler = cosine_with_warmup(
            self.optimizer, recipe.epochs * steps_per_epoch, recipe.warmup
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.parameters: list[nn.Parameter] = []
        for group in self.optimizer.param_groups:
            self.parameters += group["params"]
        self.model = objective
        if self.num_processes > 1:
            self._check_parts()
            self.model = wrap_for_processes(objective, self.parameters)
        # made after DistributedDataParallel gave all processes the weights of the first
        self.ema = None if recipe.ema_decay is None else EMA(trained, recipe.ema_decay)
        # all of them in a run so short that no step is left: its weights are the last ones
        self._steps_before_average = round(recipe.ema_start * recipe.epochs * steps_per_epoch)

        self.epoch = 0
        self.history: list[Row] = []
        self.extra: dict[str, Any] = {}
        self.best: dict[str, Tensor] | None = None
        self._batch_losses: list[_BatchLosses] = []  # of the epoch
        self._epoch_started = time.perf_counter()
        self._saved = time.monotonic()
        self._state_file: _StateFile | None = None
        self._bar: Any = None
        self._title = ""  # of the bar

    def _check_parts(self) -> None:
        """Raise if the processes have fewer images of a step than parts."""
        images_per_process = self.recipe.batch_size // self.num_processes
        if self.recipe.accumulate > max(images_per_process, 1):
            raise ConfigError(
                f"accumulate is {self.recipe.accumulate}, and batch_size {self.recipe.batch_size} "
                f"for {self.num_processes} processes: each has {images_per_process} images of a "
                "step; take a larger batch_size, or a smaller accumulate"
            )

    def progress(self, title: str = "") -> Any:
        """Return a bar of the steps that are left, a context manager with ``update()``.

        It shows the epoch, and the loss of the last one.

        Args:
            title: what is trained, such as ``"fold 0"``; empty = none.
        """
        self._title = title
        self._bar = progress(
            total=self.recipe.epochs * self.steps_per_epoch,
            initial=self.epoch * self.steps_per_epoch,
            desc="steps",
            unit="step",
            hidden=self.rank > 0,
        )
        return self._bar

    @property
    def is_finished(self) -> bool:
        """Whether the recipe's last epoch is done, or patience has ended."""
        if self.epoch >= self.recipe.epochs:
            return True
        patience = self.patience
        return patience is not None and self._epochs_since_best() >= patience

    def _epochs_since_best(self) -> int:
        losses = [row.get("val_loss", math.inf) for row in self.history]
        if not losses:
            return 0
        return len(losses) - 1 - losses.index(min(losses))

    def start_epoch(self) -> int:
        """Seed an epoch, so that it is the same in a run that is resumed; return its number, from 0."""
        seed_all(self.recipe.seed, self.epoch, self.rank)
        self._epoch_started = time.perf_counter()
        if self._bar is not None:
            position = f"epoch {self.epoch + 1} of {self.recipe.epochs}, steps"
            if self._title:
                position = f"{self._title}, {position}"
            self._bar.set_description_str(position)
        return self.epoch

    def precision(self) -> torch.autocast:
        """Return the context of the recipe's ``amp``."""
        return autocast(self.device, self.recipe.amp)

    def forward_backward(self, *forwards: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Run a forward and a backward pass, with SAM two; leave the gradients of ``"loss"``, return the losses.

        Args:
            forwards: the forward pass of each part of the batch, one after the other; returns the
                losses by name, which add up to those of the batch.
        """

        def compute_gradients() -> dict[str, Tensor]:
            self.optimizer.zero_grad(set_to_none=True)
            sums: dict[str, Tensor] = {}
            for forward in forwards:
                with self._gradients_shared(is_last=forward is forwards[-1]):
                    with self.precision():
                        losses = forward()
                    self.scaler.scale(losses["loss"]).backward()  # type: ignore[no-untyped-call]
                for name, value in losses.items():
                    value = value.detach()
                    sums[name] = sums[name] + value if name in sums else value
            return sums

        if self.sam is None:
            return compute_gradients()
        return self.sam.gradient(compute_gradients)

    def _gradients_shared(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Within the block processes average gradients, of the last part of a batch only: those of all parts."""
        if isinstance(self.model, DistributedDataParallel) and not is_last:
            return self.model.no_sync()
        return nullcontext()

    def step(self) -> None:
        """Clip the gradients and take a step of the optimizer, the schedule and the moving average."""
        scale = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # a step whose gradient overflowed in float16 was skipped
        if self.scaler.get_scale() >= scale:
            self.scheduler.step()
            self._average()

    def _average(self) -> None:
        """Take the weights after a step into the average; until it begins it is the weights themselves."""
        if self.ema is None:
            return
        if self.scheduler.last_epoch <= self._steps_before_average:
            self.ema.restart(self.trained)
        else:
            self.ema.update(self.trained)

    def add_losses(self, losses: Mapping[str, Tensor], num_images: int) -> None:
        """Keep a batch's losses on the device: the host waits for it in :meth:`mean_losses` alone.

        Args:
            losses: scalars by name, the same names for all batches.
            num_images: of the batch in all processes; a batch counts in the means by it.
        """
        detached = {name: value.detach().float() for name, value in losses.items()}
        self._batch_losses.append(_BatchLosses(detached, num_images))

    def mean_losses(self) -> dict[str, float]:
        """Return the means over images of the losses that were added, and forget them.

        Raises:
            DataError: if one is not finite.
        """
        batches = self._batch_losses
        self._batch_losses = []
        names = list(batches[0].losses)
        on_device: list[Tensor] = []
        for batch in batches:
            on_device += batch.losses.values()
        # the host waits here
        values = torch.tensor(torch.stack(on_device).tolist(), dtype=torch.float64)
        values = values.view(len(batches), len(names))
        num_images = torch.tensor([batch.num_images for batch in batches], dtype=torch.float64)
        means = num_images @ values / num_images.sum()
        row: dict[str, float] = dict(zip(names, means.tolist(), strict=True))
        for name, value in row.items():
            if not math.isfinite(value):
                raise DataError(
                    f"{name} is {value} in epoch {self.epoch}: training diverged at lr "
                    f"{self.recipe.lr:.3g}; lower it"
                )
        return row

    def add_row(self) -> None:
        """Add the mean losses of the epoch, and what it took, to the history.

        Raises:
            DataError: if a loss or a weight is not finite.
        """
        num_images = sum(batch.num_images for batch in self._batch_losses)
        # the last gradient may not have been finite: the weights are checked with the losses, in
        # one read. A batch of 0 images changes no mean, unless its values are not finite: 0 * NaN
        norm = torch.nn.utils.get_total_norm([p.detach() for p in self.parameters])
        names = self._batch_losses[0].losses
        self.add_losses(dict.fromkeys(names, norm), num_images=0)
        rows = gather(self.mean_losses())
        row: Row = {}
        for name in rows[0]:
            row[name] = sum(process[name] for process in rows) / len(rows)
        seconds = time.perf_counter() - self._epoch_started
        row["seconds"] = seconds
        row["images_per_second"] = num_images / seconds
        peak = peak_memory_mb(self.device)
        if peak is not None:
            row[MEMORY] = peak
        self.history.append(row)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {row['loss']:.4g}")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the block the model evaluates, with the averaged weights and without gradients."""
        # batch statistics differ between processes; all evaluate those of the first, which are saved
        copy_from_first(self.objective.buffers())
        averaged_weights = nullcontext() if self.ema is None else self.ema.applied(self.trained)
        with torch.no_grad(), averaged_weights:
            self.objective.eval()
            yield

    def add_scores(self, scores: Row) -> None:
        """Add the scores of the first process to the row of the epoch; keep the weights if they are the best.

        Call it within :meth:`evaluating`: the weights of the moment are kept.
        """
        self.history[-1] |= gather(scores)[0]
        if self.patience is not None and self._epochs_since_best() == 0:
            self.best = {name: x.clone() for name, x in self._weights().items()}

    def end_epoch(self, callbacks: Sequence[Callback] = ()) -> None:
        """Count the epoch; keep the state, at most every 30 s and at the end.

        Args:
            callbacks: ``callback(epoch, row)``, called in the first process.
        """
        self.epoch += 1
        if self.is_finished or time.monotonic() - self._saved >= SAVE_EVERY_S:
            self._save()
            self._saved = time.monotonic()
        if self.rank == 0:
            for callback in callbacks:
                callback(self.epoch - 1, dict(self.history[-1]))

    def finish(self) -> None:
        """Give the model the best weights with patience, else the averaged ones, else leave the last."""
        if self.best is not None:
            self._load_weights(self.best)
        elif self.ema is not None:
            self.ema.copy_to(self.trained)
        copy_from_first(self.objective.buffers())  # batch statistics differ between processes
        self.objective.eval()

    def _weights(self) -> dict[str, Tensor]:
        """Return all weights and buffers but the parameters of a backbone that are never trained."""
        never_trained: set[Tensor] = set()
        for module in self.objective.modules():
            if isinstance(module, Backbone):
                never_trained.update(module.parameters())
        never_trained.difference_update(self.parameters)
        weights = {}
        for name, x in self.objective.state_dict(keep_vars=True).items():
            if x not in never_trained:
                weights[name] = x.detach()
        return weights

    @torch.no_grad()
    def _load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in self._weights().items():
            value.copy_(weights[name])

    def open_state(self, path: Path, identity: Mapping[str, Any], *, resume: bool = True) -> None:
        """Continue from the state in a file, if there is one; from now on keep the state in it.

        Next to it the log is written, one line per epoch.

        Args:
            path: of the file, which the first process writes and every process reads.
            identity: plain values that identify the run.
            resume: off = start again, whatever the file holds.

        Raises:
            CheckpointError: if the state is damaged, of another run, another one than the first
                process has, or cannot be written.
        """
        self._state_file = _StateFile(path, identity)
        self._saved = time.monotonic()
        state = load_state(path, identity) if resume else None
        epochs = gather(0 if state is None else state["epoch"])
        if len({*epochs}) > 1:
            raise CheckpointError(
                f"{path} is at epochs {epochs} in the processes; share one folder"
            )
        if state is not None:
            self.epoch = state["epoch"]
            self.history = state["history"]
            self.extra = state["extra"]
            self.best = state["best"]
            self._load_weights(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if self.rank == 0:
                logger.info("the run is resumed from %s, epoch %d", path, self.epoch)
        self._write_log()

    def _save(self) -> None:
        """Write the state and the log, in the first process of a run that keeps its state."""
        if self._state_file is None or self.rank > 0:
            return
        state = {
            "epoch": self.epoch,
            "history": self.history,
            "extra": self.extra,
            "best": self.best,
            "run": dict(self._state_file.identity),
            "weights": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        content = io.BytesIO()
        torch.save(state, content)
        write_file(self._state_file.path, content.getvalue())
        self._write_log()

    def _write_log(self) -> None:
        if self._state_file is None or self.rank > 0:
            return
        lines = []
        for epoch, row in enumerate(self.history):
            lines.append(json.dumps({"epoch": epoch, **row}, allow_nan=False) + "\n")
        log = self._state_file.path.with_name(LOG)
        write_file(log, "".join(lines).encode())


def autocast(device: torch.device, amp: str | None) -> torch.autocast:
    """Return the context of a recipe's ``amp`` on a device."""
    dtype = None if amp is None else HALF_DTYPES[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def highest_memory(rows: Iterable[Row], device: torch.device) -> dict[str, float]:
    """Return ``{"peak_memory_mb": the most memory}`` of a run; empty where the system does not tell it.

    Args:
        rows: of its epochs, also of those before an interruption.
        device: that computes.
    """
    peaks = [row[MEMORY] for row in rows if MEMORY in row]
    present = peak_memory_mb(device)
    if present is not None:
        peaks.append(present)
    return {MEMORY: max(peaks)} if peaks else {}


def wrap_for_processes(model: nn.Module, parameters: Sequence[nn.Parameter]) -> nn.Module:
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


def seed_all(*words: int) -> None:
    """Seed Python, NumPy and torch (all devices) by some numbers, such as seed, epoch and rank."""
    states = np.random.SeedSequence(words).generate_state(3).tolist()
    random.seed(states[0])
    np.random.seed(states[1])  # noqa: NPY002 (sources may draw from the global generator)
    torch.manual_seed(states[2])


@contextmanager
def restored_random_state() -> Iterator[None]:
    """After the block the generators of Python, NumPy and torch (all devices) are as before it."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002
    devices: list[int] = []
    # fork_rng reads the state of each device, which would initialise a CUDA that nobody uses
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
