"""The training loop: what is trained, steps, averages, validation, and a state that can be resumed at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tokens import Tokens
from dinoneck.training.batches import Batch, Labels, Order, TokenScale
from dinoneck.training.mixup import cutmix, manifold_mixup
from dinoneck.training.optim import EMA, SAM, cosine_with_warmup
from dinoneck.training.parameter_groups import param_groups
from dinoneck.training.processes import Processes, seed_step
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import LiveTokens, TokenSource
from dinoneck.training.validation import Scores, joined_predictions

BACKBONE_SHARE = 0.1


class Learner(nn.Module):
    """A head and, where it is trained along, its backbone: one set of weights to step, average and keep.

    Args:
        head: the head.
        backbone: with trainable parameters; None = the head learns alone.
    """

    def __init__(self, head: Head, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.head, self.backbone = head, backbone

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return next(self.head.parameters()).device

    def weights(self) -> dict[str, Tensor]:
        """Return all of the head's weights and buffers and what the backbone learns, not copied."""
        found = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        if self.backbone is not None:
            learnt = {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}
            found |= {f"backbone.{name}": p.detach() for name, p in learnt.items()}
        return found

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights of :meth:`weights` in."""
        for name, value in self.weights().items():
            value.copy_(weights[name])

    def note_source(self) -> None:
        """Let a head that was loaded from a file expect the tokens of the backbone that was trained along."""
        if self.backbone is None:
            return
        source = weight_hashes.current_hashes(self.backbone.adapter).fingerprint
        for part in self.head.modules():
            if isinstance(part, Head) and part.trained_on is not None:
                part.trained_on = replace(part.trained_on, source=source)

    def groups(self, loss: nn.Module, recipe: Recipe, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups; the loss's own parameters have no weight decay."""
        if self.backbone is None:
            groups = _by_shape([p for p in self.head.parameters() if p.requires_grad], recipe.weight_decay)
        else:
            rate = BACKBONE_SHARE * lr if recipe.backbone_lr is None else recipe.backbone_lr
            groups = param_groups(self, lr=lr, backbone_lr=rate, weight_decay=recipe.weight_decay)
        own = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        return [group for group in (*groups, {"params": own, "weight_decay": 0.0}) if group["params"]]


def _by_shape(trained: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


Table = dict[str, Tensor]
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


@dataclass(frozen=True)
class Problem:
    """What is trained on what.

    Attributes:
        learner: head and backbone.
        source: of tokens.
        loss: of the tasks.
        labels: of all samples of the run.
        order: of the training samples.
        valid: batches of the validation samples, and what scores them.
        scores: see ``valid``.
        scale: that the head expects tokens in.
    """

    learner: Learner
    source: TokenSource
    loss: TaskLoss
    labels: Labels
    order: Order
    valid: list[Batch]
    scores: Scores
    scale: TokenScale | None


class Loop:
    """One run of one problem by one recipe.

    Args:
        problem: what is trained on what.
        recipe: how.
        epochs: passes over the training samples.
        lr: peak learning rate of the head.
        seed: of every random number.
        processes: that share the batches.
    """

    def __init__(
        self, problem: Problem, recipe: Recipe, *, epochs: int, lr: float, seed: int, processes: Processes
    ) -> None:
        self.problem, self.recipe, self.epochs, self.seed, self.processes = problem, recipe, epochs, seed, processes
        learner = problem.learner
        self.lr = lr
        self.total_steps = epochs * problem.order.steps
        self.optimizer = torch.optim.AdamW(learner.groups(problem.loss, recipe, lr), lr=lr)
        self.sam = SAM(learner, self.optimizer, recipe.rho) if recipe.optimizer == "sam" else None
        self.scheduler = cosine_with_warmup(self.optimizer, self.total_steps, recipe.warmup, recipe.min_lr)
        self.scaler = torch.amp.GradScaler(learner.device.type, enabled=recipe.amp == "fp16")
        self.ema = None if recipe.ema_decay is None else EMA(learner, recipe.ema_decay)
        self.progress = Progress()
        self.best: Table | None = None

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        progress, patience = self.progress, self.recipe.patience
        waited = progress.epoch - 1 - progress.best_epoch
        return progress.epoch >= self.epochs or (patience is not None and progress.epoch > 0 and waited >= patience)

    def run(self, save: Callable[[], None]) -> None:
        """Train to the end; ``save`` is called wherever the run may be taken up again."""
        progress = self.progress
        hidden = None if self.processes.writes else True
        with tqdm(
            total=self.epochs, initial=progress.epoch, desc="epochs", unit="epoch", disable=hidden, leave=False
        ) as bar:
            while not self.finished:
                batches = self.problem.order.epoch(progress.epoch)
                self._train_mode()
                for batch in batches[progress.batch :]:
                    self._step(batch)
                    if self.recipe.save_steps and progress.step % self.recipe.save_steps == 0:
                        save()
                self._end_epoch()
                save()
                bar.update()

    def finish(self) -> None:
        """Give head and backbone the weights to keep: the best ones with patience, else the average, else the last."""
        if self.best is not None:
            self.problem.learner.take(self.best)
        elif self.ema is not None:
            self.ema.copy_to(self.problem.learner)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        problem = self.problem
        return {
            "progress": asdict(self.progress),
            "weights": problem.learner.weights(),
            "loss": problem.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "best": self.best,
            "scale": None if problem.scale is None else {"mean": problem.scale.mean, "std": problem.scale.std},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the run up where a state of :meth:`state` was taken."""
        problem = self.problem
        self.progress = Progress(**state["progress"])
        problem.learner.take(state["weights"])
        problem.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.best = state["best"]

    def _train_mode(self) -> None:
        self.problem.learner.train()
        self.problem.loss.train()

    def _step(self, batch: Batch) -> None:
        """One step of the optimizer down the gradient of the batch's loss."""
        problem, progress = self.problem, self.progress
        seed_step(self.seed, progress.step, self.processes.rank)
        given = self._read(batch)
        first: list[Table] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            total, parts = self._loss(given, len(batch.rows))
            first.append({"loss": total.detach(), **parts})
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            self.processes.sum_gradients(problem.learner.parameters())
            self.processes.mean_gradients(problem.loss.parameters())
            return total

        if self.sam is None:
            closure()
        else:
            self.sam.gradient(closure)
        self._descend()
        _add(progress.sums, first[0], len(batch.rows) / len(problem.order.rows))
        progress.step += 1
        progress.batch += 1

    def _descend(self) -> None:
        """Clip, step and average; a step whose gradient overflowed in float16 is left out of all three."""
        learner, scale = self.problem.learner, self.scaler.get_scale()
        if self.recipe.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(learner.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < scale:
            return
        self.scheduler.step()
        if self.ema is not None:
            late = self.progress.step >= self.recipe.ema_start * self.total_steps
            (self.ema.update if late else self.ema.restart)(learner)

    def _read(self, batch: Batch) -> tuple[Tokens | Tensor, Table, Table]:
        """This process's share of a batch: tokens, or photos where the backbone learns along; targets and masks."""
        problem, device = self.problem, self.problem.learner.device
        places = self.processes.share(range(len(batch.rows)))
        own = batch.part(list(places))
        wanted, masks = problem.labels.of(own, device)
        if not isinstance(problem.source, LiveTokens):
            return problem.labels.tokens(own, problem.source).to(device), wanted, masks
        images = problem.source.images(problem.labels.ids_of(own)).to(device)
        if self.recipe.cutmix_alpha is not None and self._blends:
            images, wanted, masks = cutmix(
                images,
                wanted,
                self.recipe.cutmix_alpha,
                tasks=problem.loss.tasks,
                compositions=problem.loss.compositions,
                masks=masks,
                patch_size=problem.source.backbone.patch_size,
            )
        return images, wanted, masks

    @property
    def _blends(self) -> bool:
        return self.progress.step < (1.0 - self.recipe.mixup_off_last) * self.total_steps

    def _loss(self, given: tuple[Tokens | Tensor, Table, Table], size: int) -> tuple[Tensor, Table]:
        """The loss of the whole batch, of which this process holds a share."""
        problem = self.problem
        (inputs, wanted, masks), loss = given, problem.loss
        with self._precision():
            tokens = self._tokens(inputs)
            if self.recipe.mixup_alpha is not None and self._blends:
                tokens, wanted, masks = manifold_mixup(
                    tokens,
                    wanted,
                    self.recipe.mixup_alpha,
                    tasks=loss.tasks,
                    compositions=loss.compositions,
                    masks=masks,
                )
            outputs = _exact(problem.learner.head(tokens))
        total, parts = loss(*self.processes.gathered((outputs, wanted, masks), size))
        if not bool(total.isfinite()):
            rate = self.optimizer.param_groups[0]["lr"]
            raise DataError(
                f"the loss is {total.item()} at lr {rate:.3g}: training diverged; lower lr, or check the targets"
            )
        return total, parts

    def _tokens(self, inputs: Tokens | Tensor) -> Tokens:
        problem = self.problem
        if isinstance(inputs, Tensor) and isinstance(problem.source, LiveTokens):
            inputs = problem.source.backbone(inputs)
        tokens: Tokens = inputs  # type: ignore[assignment]
        return tokens if problem.scale is None else problem.scale.apply(tokens)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.recipe.amp is None:
            return nullcontext()
        return torch.autocast(self.problem.learner.device.type, dtype=_AMP[str(self.recipe.amp)])

    def _end_epoch(self) -> None:
        progress, learner = self.progress, self.problem.learner
        row, progress.sums, progress.batch = progress.sums, {}, 0
        if self.problem.valid:
            with nullcontext() if self.ema is None else self.ema.applied(learner):
                row = {**row, **self._validated()}
                if self.recipe.patience is not None and (
                    progress.best_loss is None or row["val_loss"] < progress.best_loss
                ):
                    progress.best_loss, progress.best_epoch = row["val_loss"], progress.epoch
                    self.best = {name: value.detach().clone() for name, value in learner.weights().items()}
        progress.history.append(row)
        progress.epoch += 1

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        """The loss (the plain sum of its parts) and the scores of the validation samples."""
        problem, device = self.problem, self.problem.learner.device
        seed_step(self.seed, self.progress.step, self.processes.rank, validation=True)
        problem.learner.eval()
        problem.loss.eval()
        sums: dict[str, float] = {}
        predictions = []
        count = sum(len(batch.rows) for batch in problem.valid)
        for batch in problem.valid:
            own = batch.part(list(self.processes.share(range(len(batch.rows)))))
            wanted, masks = problem.labels.of(own, device)
            with self._precision():
                outputs = _exact(
                    problem.learner.head(self._tokens(problem.labels.tokens(own, problem.source).to(device)))
                )
            outputs, wanted, masks = self.processes.gathered((outputs, wanted, masks), len(batch.rows))
            parts = problem.loss(outputs, wanted, masks)[1]
            named = {f"val_{name}": part for name, part in parts.items()}
            _add(sums, {"val_loss": torch.stack(list(parts.values())).sum(), **named}, len(batch.rows) / count)
            predictions.append({task.name: task.predict(outputs[task.name]) for task in problem.loss.tasks})
        rows = [row for batch in problem.valid for row in self.processes.order(batch.rows)]
        joined = joined_predictions(predictions)
        unusable = [name for name, values in joined.items() if not bool(values.isfinite().all())]
        found = sums if unusable else {**sums, **problem.scores.of(joined, rows)}
        if unusable or not all(math.isfinite(value) for value in found.values()):
            raise DataError(
                f"validation predictions of {', '.join(unusable) or 'some tasks'} are not finite, or their scores "
                f"overflow: training diverged at lr {self.lr:.3g}; lower it (lr=, --lr)"
            )
        return found


def _exact(outputs: Mapping[str, Tensor]) -> Table:
    """Outputs in float32 or wider, so that losses are exact under autocast."""
    return {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}


def _add(sums: dict[str, float], parts: Mapping[str, Tensor], share: float) -> None:
    for name, part in parts.items():
        sums[name] = sums.get(name, 0.0) + float(part.detach()) * share
