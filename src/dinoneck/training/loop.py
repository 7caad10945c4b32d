"""The training loop: steps, averages, validation, and a state that can be resumed at any step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.loading import in_threads
from dinoneck.devices import fetch
from dinoneck.errors import DataError
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.progress import progress as progress_bar
from dinoneck.tokens import Tokens
from dinoneck.training.batches import Batch, Samples, TokenScale, epochs
from dinoneck.training.learner import Learner
from dinoneck.training.live_tokens import LiveTokens
from dinoneck.training.mixup import cutmix, manifold_mixup
from dinoneck.training.optim import EMA, SAM, cosine_with_warmup
from dinoneck.training.processes import Processes, seed_step
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import TokenSource, is_stored

Table = dict[str, Tensor]
Inputs = tuple[Any, Table, Table]  # Tokens or images, targets, masks
Callback = Callable[[int, dict[str, float]], object]
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_READ_EVERY = 50  # steps after which a GPU's losses are read and checked


@dataclass(frozen=True)
class Run:
    """What one call of :func:`dinoneck.training.fit` trains.

    Attributes:
        learner: head and backbone.
        source: of tokens.
        loss: of the head's tasks.
        samples: to train and to validate on.
        recipe: how.
        groups: of the training samples, for the ridge blend.
    """

    learner: Learner
    source: TokenSource
    loss: TaskLoss
    samples: Samples
    recipe: Recipe
    groups: Sequence[Hashable] | None = None


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps begun so far.
        epoch: the epoch it is in.
        batch: batches of this epoch that are done.
        sums: the epoch's losses so far.
        history: the losses and scores of the epochs that are done.
        best_loss: the lowest validation loss.
        best_epoch: its epoch.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_loss: float | None = None
    best_epoch: int = -1


class Loop:
    """The training loop of a run, and all state that changes in it.

    Args:
        run: what is trained.
        processes: that share the batches.
        scale: that the head expects tokens in.
    """

    def __init__(self, run: Run, processes: Processes, scale: TokenScale | None) -> None:
        self.learner, self.source, self.loss = run.learner, run.source, run.loss
        self.samples, self.recipe = run.samples, run.recipe
        self.processes, self.device = processes, run.learner.device
        self.scale = None if scale is None else scale.to(self.device)
        samples, recipe = run.samples, run.recipe
        self.valid = Batch(np.arange(samples.trained, len(samples.ids))).pieces(recipe.batch_size)
        self.total_steps = recipe.epochs * -(-samples.trained // recipe.batch_size)
        self.optimizer = torch.optim.AdamW(self.learner.groups(self.loss, recipe), lr=recipe.lr)
        self.sam = SAM(self.learner, self.optimizer, recipe.rho) if recipe.optimizer == "sam" else None
        self.scheduler = cosine_with_warmup(self.optimizer, self.total_steps, recipe.warmup, recipe.min_lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.ema = None if recipe.ema_decay is None else EMA(self.learner, recipe.ema_decay)
        self.mixed = {"tasks": self.loss.tasks, "compositions": self.loss.compositions}
        self.stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        self.progress = Progress()
        self.best: Table | None = None
        self._losses: list[tuple[Table, float]] = []  # of steps, on the device, and their shares in the epoch's mean

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        progress, patience = self.progress, self.recipe.patience or math.inf
        waited = progress.epoch - 1 - progress.best_epoch  # epochs without an improvement
        return progress.epoch >= self.recipe.epochs or (progress.epoch > 0 and waited >= patience)

    def run(self, save: Callable[[], None], callbacks: Sequence[Callback] = ()) -> None:
        """Train to the end; ``save`` is called wherever the run may be resumed, callbacks after every epoch."""
        progress, recipe, writes = self.progress, self.recipe, self.processes.writes
        views = 1 if self.samples.flips is None else len(self.samples.flips)
        order = epochs(self.samples.trained, recipe.batch_size, recipe.seed, views)
        with progress_bar(
            total=recipe.epochs, initial=progress.epoch, desc="epochs", unit="epoch", hidden=not writes
        ) as bar:
            for batches in itertools.islice(order, progress.epoch, None):
                if self.finished:
                    break
                self.learner.train()
                self.loss.train()
                rest = batches[progress.batch :]
                with closing(self._loaded(rest)) as inputs:
                    for batch in rest:
                        self._step(batch, inputs)
                        if recipe.save_steps and progress.step % recipe.save_steps == 0:
                            self._count_losses(with_weights=True)
                            save()
                self._count_losses(with_weights=True)
                self._end_epoch()
                save()
                for callback in callbacks if writes else ():
                    callback(progress.epoch - 1, dict(progress.history[-1]))
                bar.update()

    def finish(self) -> None:
        """Give head and backbone the weights to keep: the best ones with patience, else the average, else the last."""
        if self.best is not None:
            self.learner.take(self.best)
        elif self.ema is not None:
            self.ema.copy_to(self.learner)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {
            "progress": asdict(self.progress),
            "weights": self.learner.weights(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "best": self.best,
            "scale": None if self.scale is None else {"mean": self.scale.mean, "std": self.scale.std},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a state of :meth:`state`."""
        self.progress = Progress(**state["progress"])
        self.learner.take(state["weights"])
        self.best = state["best"]
        for name in ("loss", "optimizer", "scheduler", "scaler", "ema"):
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(state[name])

    def _step(self, batch: Batch, inputs: Iterator[Inputs]) -> None:
        """One step of the optimizer down the gradient of the batch's loss."""
        progress = self.progress
        seed_step(self.recipe.seed, progress.step, self.processes.rank)
        loaded = next(inputs)
        shares = iter((len(batch.rows) / self.samples.trained, 0.0))  # SAM's second loss is checked, not counted

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            total, parts = self._loss(*loaded, len(batch.rows))
            self._losses.append((_named(total, parts), next(shares)))
            if self.device.type == "cpu" or len(self._losses) >= _READ_EVERY:
                self._count_losses()
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            self.processes.add_gradients(self.learner.parameters())
            self.processes.add_gradients(self.loss.parameters(), average=True)
            return total

        if self.sam is None:
            closure()
        else:
            self.sam.gradient(closure)
        self._descend()
        progress.step += 1
        progress.batch += 1

    def _descend(self) -> None:
        """Clip, step and average; a step whose gradient overflowed in float16 is left out of all three."""
        scale = self.scaler.get_scale()
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            return
        self.scheduler.step()
        if self.ema is not None:
            late = self.progress.step >= self.recipe.ema_start * self.total_steps
            (self.ema.update if late else self.ema.restart)(self.learner)

    def _loaded(self, batches: Sequence[Batch], *, training: bool = True) -> Generator[Inputs, None, None]:
        """Yield the inputs, targets and masks of this process's share of batches.

        A thread reads a batch while the step before computes, of live tokens up to their transform, which may draw
        random numbers. So may a source without ``stored``, which is read when its step has begun.
        """
        owned = [batch.part(list(self.processes.share(range(len(batch.rows))))) for batch in batches]
        if isinstance(self.source, LiveTokens):
            live = self.source
            with closing(in_threads(lambda own: live.decoded(*self.samples.named(own)), owned, workers=1)) as decoded:
                for own, images in zip(owned, decoded, strict=True):
                    yield self._images(live, own, images, training=training)
        elif is_stored(self.source):
            yield from in_threads(self._read, owned, workers=1)
        else:
            yield from map(self._read, owned)

    def _read(self, own: Batch) -> Inputs:
        """The standardised tokens of a batch, its targets and masks."""
        on_stream = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)  # a thread has its own
        with on_stream, self._precision():
            tokens, targets, masks = self.samples.read(own, self.source, self.device)
            return tokens if self.scale is None else self.scale.apply(tokens), targets, masks

    def _images(self, live: LiveTokens, own: Batch, decoded: Sequence[Tensor], *, training: bool) -> Inputs:
        """The images of a batch, its targets and masks; in training blended by :func:`cutmix`."""
        prepared = live.prepared(decoded, self.samples.named(own)[1])
        [images], targets, masks = self.samples.send([prepared], own, self.device)
        if training and self.recipe.cutmix_alpha is not None and self._mixes:
            options: dict[str, Any] = {**self.mixed, "masks": masks, "patch_size": live.backbone.patch_size}
            images, targets, masks = cutmix(images, targets, self.recipe.cutmix_alpha, **options)
        return images, targets, masks

    def _tokens(self, inputs: Any) -> Tokens:
        """The standardised tokens of images that go through a live backbone; tokens that are read are ready."""
        if isinstance(inputs, Tokens):
            return inputs
        tokens: Tokens = self.source.backbone(inputs)  # type: ignore[attr-defined]
        return tokens if self.scale is None else self.scale.apply(tokens)

    @property
    def _mixes(self) -> bool:
        return self.progress.step < (1.0 - self.recipe.mixup_off_last) * self.total_steps

    def _loss(self, inputs: Any, targets: Table, masks: Table, size: int) -> tuple[Tensor, Table]:
        """The loss of the whole batch, of which this process holds a share."""
        with self._precision():
            tokens = self._tokens(inputs)
            if self.recipe.mixup_alpha is not None and self._mixes:
                options: dict[str, Any] = {**self.mixed, "masks": masks}
                tokens, targets, masks = manifold_mixup(tokens, targets, self.recipe.mixup_alpha, **options)
            outputs = _exact(self.learner.head(tokens))
        return self.loss(*self.processes.gathered((outputs, targets, masks), size))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _count_losses(self, *, with_weights: bool = False) -> None:
        """Add the losses of the last steps to the epoch's; the host waits for the device here only.

        Args:
            with_weights: check the trained weights too: a finite loss may have a gradient that is not.

        Raises:
            DataError: if a loss or a weight is not finite.
        """
        losses, self._losses = self._losses, []
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norms = [{"norm": torch.nn.utils.get_total_norm(trained)}] if with_weights else []
        rows = _read([*(parts for parts, _ in losses), *norms])
        norm = rows.pop()["norm"] if norms else 0.0
        for row, (_, share) in zip(rows, losses, strict=True):
            self._check_finite("the loss", row["loss"])
            _add(self.progress.sums, row, share)
        self._check_finite("the norm of the weights", norm)

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DataError(
                f"{what} is {value} in epoch {self.progress.epoch}: training diverged at lr {self.recipe.lr:.3g}; "
                "lower it (lr=, --lr), or check the targets"
            )

    def _precision(self) -> torch.autocast:
        amp = self.recipe.amp
        return torch.autocast(self.device.type, dtype=_AMP.get(str(amp)), enabled=amp is not None)

    def _end_epoch(self) -> None:
        progress, learner = self.progress, self.learner
        row, progress.sums, progress.batch = progress.sums, {}, 0
        if self.valid:
            with nullcontext() if self.ema is None else self.ema.applied(learner):
                row = {**row, **self._validated()}
                better = progress.best_loss is None or row["val_loss"] < progress.best_loss
                if self.recipe.patience is not None and better:
                    progress.best_loss, progress.best_epoch = row["val_loss"], progress.epoch
                    self.best = {name: value.detach().clone() for name, value in learner.weights().items()}
        progress.history.append(row)
        progress.epoch += 1

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        """The loss (the plain sum of its parts) and the scores of the validation samples."""
        seed_step(self.recipe.seed, self.progress.step, self.processes.rank, validation=True)
        self.learner.eval()
        self.loss.eval()
        losses: dict[str, float] = {}
        tables: list[Table] = []
        predictions: list[Table] = []
        with closing(self._loaded(self.valid, training=False)) as inputs:
            for batch, (loaded, targets, masks) in zip(self.valid, inputs, strict=True):
                with self._precision():
                    outputs = _exact(self.learner.head(self._tokens(loaded)))
                outputs, targets, masks = self.processes.gathered((outputs, targets, masks), len(batch.rows))
                parts = self.loss(outputs, targets, masks)[1]
                tables.append(_named(torch.stack(list(parts.values())).sum(), parts))
                predictions.append({task.name: task.predict(outputs[task.name]) for task in self.loss.tasks})
        for batch, row in zip(self.valid, _read(tables), strict=True):
            share = len(batch.rows) / (len(self.samples.ids) - self.samples.trained)
            _add(losses, {f"val_{name}": value for name, value in row.items()}, share)
        rows = [row for batch in self.valid for row in self.processes.order(batch.rows)]
        names = list(predictions[0])
        values = fetch([torch.cat([part[name] for part in predictions]) for name in names])
        joined = dict(zip(names, values, strict=True))
        unusable = [name for name, values in joined.items() if not bool(values.isfinite().all())]
        row = losses if unusable else {**losses, **self.samples.scores(joined, rows)}
        if unusable or not all(math.isfinite(value) for value in row.values()):
            raise DataError(
                f"validation predictions of {', '.join(unusable) or 'some tasks'} are not finite, or their scores "
                f"overflow: training diverged at lr {self.recipe.lr:.3g}; lower it (lr=, --lr)"
            )
        return row


def _exact(outputs: Mapping[str, Tensor]) -> Table:
    """Outputs in float32 or wider, so that losses are exact under autocast."""
    return {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}


def _named(total: Tensor, parts: Mapping[str, Tensor]) -> Table:
    """The numbers of the log: ``loss``, and ``loss/NAME`` of every part, without their graph."""
    return {"loss": total.detach(), **{f"loss/{name}": part.detach() for name, part in parts.items()}}


def _read(tables: Sequence[Table]) -> list[dict[str, float]]:
    """Read tables of single numbers of a device at once."""
    values = iter(torch.stack([x for table in tables for x in table.values()]).tolist() if tables else [])
    return [{name: next(values) for name in table} for table in tables]


def _add(sums: dict[str, float], values: Mapping[str, float], share: float) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value * share
