"""Step 8 of a run: how held-out images are predicted and scored; the evaluator of values and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dinoneck.data.table import Table
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.kinds import METHOD_NAMES, METHODS, Method
from dinoneck.training import report as reports
from dinoneck.training.baselines import baseline_head
from dinoneck.training.config import TrainConfig
from dinoneck.training.folds import Fold
from dinoneck.training.intervals import (
    Intervals,
    Residuals,
    intervals_of_tasks,
    no_residuals,
    record_of_intervals,
    target_intervals,
    targets_with_residuals,
)
from dinoneck.training.method import (
    Candidates,
    Choice,
    ChosenMethod,
    HeldOut,
    candidates_of,
)
from dinoneck.training.problem import Problem
from dinoneck.training.report import AVERAGE, HEAD, LINEAR
from dinoneck.training.run_tokens import RunTokens
from dinoneck.training.token_sources import LiveTokens, TokenSource

Logs = Mapping[str, Sequence[Mapping[str, float]]]
"""Name of a fold's log -> its rows, one per epoch."""


@dataclass(frozen=True)
class FoldTokens:
    """The tokens of a fold.

    Attributes:
        of_run: of all images, by the frozen backbone or of the store.
        live: of the backbone that the fold trains along with its head; None = it is frozen.
    """

    of_run: RunTokens
    live: LiveTokens | None

    @property
    def frozen(self) -> TokenSource:
        """The tokens of the frozen backbone, extracted when they are asked for first, or of the store."""
        return self.of_run.frozen()

    @property
    def of_head(self) -> TokenSource:
        """What the fold's head reads."""
        return self.frozen if self.live is None else self.live


@dataclass(frozen=True)
class KeptHead:
    """A head that a run keeps in a file.

    Attributes:
        head: the trained head of a fold, or its linear baseline.
        facts: of its training, for the file.
        intervals: of its tasks, for the file; empty where no image is held out yet.
    """

    head: Head
    facts: dict[str, Any]
    intervals: Intervals = field(default_factory=dict)


class Evaluator(Protocol):
    """How the held-out images of a run are predicted and scored."""

    methods: reports.Methods
    """Method -> target -> the held-out predictions of all rows."""

    has_baseline: bool
    """Whether it fits a baseline to the tokens of the frozen backbone."""

    def predict_fold(
        self, problem: Problem, fold: Fold, head: Head, tokens: FoldTokens
    ) -> dict[Method, KeptHead]:
        """Predict the held-out images of a fold; return method -> the head that the run keeps."""
        ...

    def final_problem(self, problem: Problem) -> Problem:
        """Return what the head of all images learns, once all folds are predicted."""
        ...

    def report(self, logs: Logs, units: Mapping[str, str]) -> dict[str, Any]:
        """Return what the report holds of the predictions of all folds.

        Args:
            logs: of the folds; empty in a process that writes no files.
            units: target -> its unit, empty where it is not stated.
        """
        ...


class ValueEvaluator:
    """Predicts values, classes and masks with the fold's head, a linear baseline and their mean.

    With live tokens the head reads these, and the baseline those of the frozen backbone: no mean is
    made.

    Args:
        config: the run.
        table: the images.
        problem: what the heads learn.
        folds: of the run.

    Attributes:
        methods: method -> target -> the held-out predictions of all rows.
        residuals: method -> target -> how far these are off, see
            :mod:`dinoneck.training.intervals`.
        candidates: the methods that the run may predict with; known once a fold is predicted.
    """

    has_baseline = True

    def __init__(
        self, config: TrainConfig, table: Table, problem: Problem, folds: Sequence[Fold]
    ) -> None:
        self.config = config
        self.table = table
        self.targets = problem.scored
        self.with_residuals = problem.with_residuals
        self.folds = folds
        names = (HEAD, LINEAR) if config.is_live else METHODS
        self.methods: reports.Methods = {
            name: reports.no_predictions(problem.scored) for name in names
        }
        self.residuals: dict[Method, Residuals] = {
            name: no_residuals(problem.with_residuals) for name in names
        }
        self.candidates = Candidates(methods=(HEAD,), lacking={})

    def predict_fold(
        self, problem: Problem, fold: Fold, head: Head, tokens: FoldTokens
    ) -> dict[Method, KeptHead]:
        """Predict the held-out images of a fold; return its head, and the linear baseline of the same tokens."""
        linear = baseline_head(
            tokens.frozen,
            problem.targets,
            rows=fold.train.tolist(),
            tasks=head.tasks,
            groups=self.table.groups,
            compositions=problem.compositions,
            seed=self.config.optim.seed,
        )
        heads: dict[Method, Head] = {
            HEAD: head,
            LINEAR: linear.to(next(head.parameters()).device),
        }
        if tokens.live is None:
            linear.trained_on = head.trained_on
            heads[AVERAGE] = HeadEnsemble.from_heads([head, linear])
        methods = []
        for name, predicting in heads.items():
            methods.append(
                reports.PredictingMethod(
                    predicting,
                    tokens=tokens.of_head if name == HEAD else tokens.frozen,
                    predictions=self.methods[name],
                    residuals=self.residuals[name],
                )
            )
        reports.write_predictions(
            problem.scored,
            methods,
            rows=fold.valid.tolist(),
            with_residuals=targets_with_residuals(problem.with_residuals),
            compositions=problem.compositions,
        )
        if tokens.live is not None:
            return {HEAD: self._kept(HEAD, fold, head)}
        example = tokens.frozen.batch([tokens.frozen.ids[fold.train[0]]])
        self.candidates = candidates_of(heads, example)
        return {HEAD: self._kept(HEAD, fold, head), LINEAR: self._kept(LINEAR, fold, linear)}

    def _kept(self, method: Method, fold: Fold, head: Head) -> KeptHead:
        """A head of a fold with its scores."""
        predictions: reports.Methods = {method: self.methods[method]}
        report = reports.summary(self.table, self.targets, predictions, [fold.valid])
        metrics = reports.fold_metrics(report["scores"], method)
        facts = {"fold": fold.number, "metrics": metrics}
        if not fold.is_of_all_images:
            return KeptHead(head, facts)
        # the last one to be trained: all folds are predicted
        intervals = target_intervals(self.with_residuals, self.residuals, self.table.groups)
        return KeptHead(head, facts, intervals_of_tasks(intervals, method, head.predicted))

    def final_problem(self, problem: Problem) -> Problem:
        """Return the problem as it is."""
        return problem

    def report(self, logs: Logs, units: Mapping[str, str]) -> dict[str, Any]:
        """Return the scores and intervals of all methods, the choice between them, and the weights of the losses."""
        valid_rows = [fold.valid for fold in self.folds]
        report = reports.summary(
            self.table, self.targets, self.methods, valid_rows, units, names=METHOD_NAMES
        )
        held_out = HeldOut(
            self.targets,
            methods=self.methods,
            folds={fold.name: fold.valid for fold in self.folds if len(fold.valid)},
            groups=self.table.groups,
            weights=report["target_weights"],
        )
        choice = Choice.of(self.candidates, held_out, report["scores"])
        report["choice"] = choice.record()
        report["predicts"] = ChosenMethod.of(self.config, choice).record()
        intervals = target_intervals(self.with_residuals, self.residuals, self.table.groups)
        if intervals:
            report["prediction_intervals"] = record_of_intervals(intervals)
        learns_weights = self.config.losses.weighting == "uncertainty"
        report["loss_weights"] = learned_weights(logs) if learns_weights else {}
        return report


def learned_weights(logs: Logs) -> dict[str, dict[str, float]]:
    """Return name of a fold's log -> loss -> its learned weight after the last epoch."""
    learned = {}
    for name, rows in logs.items():
        weights = {}
        for key, value in rows[-1].items():
            if key.startswith("weight/"):
                weights[key.removeprefix("weight/")] = value
        learned[name] = weights
    return learned
