"""Which method predicts in a run: its head, the linear baseline or their average; how well the choice does."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import torch

from dinoneck.heads.head import Head
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.kinds import METHOD_NAMES, Method
from dinoneck.tasks import OVERALL
from dinoneck.tokens import Tokens
from dinoneck.training.config import TrainConfig
from dinoneck.training.folds import Rows
from dinoneck.training.report import (
    HEAD,
    NAMES_IN_FILE,
    Methods,
    Predictions,
    deciding_target,
    deciding_targets,
    fold_metrics,
    mean_name,
    no_predictions,
    scores_of,
)
from dinoneck.training.scored import ScoredTarget
from dinoneck.training.scores import Split
from dinoneck.training.verdict import (
    MainScore,
    Scores,
    best_difference,
    capitalised,
    number_text,
)

_SCORED = "scored"  # the name of predictions that are scored alone


@dataclass(frozen=True)
class Candidates:
    """The methods that a run may predict with.

    Attributes:
        methods: those that it keeps heads of, in the order of :data:`dinoneck.kinds.METHODS`.
        lacking: method -> an output of the head that it lacks, in words. Such a method predicts only
            if ``predict_with`` names it.
    """

    methods: tuple[Method, ...]
    lacking: Mapping[Method, str]

    @property
    def complete(self) -> list[Method]:
        """Those that have every output of the head."""
        return [method for method in self.methods if method not in self.lacking]


@torch.no_grad()
def candidates_of(heads: Mapping[Method, Head], tokens: Tokens) -> Candidates:
    """Return which of several methods have every output of the head.

    Args:
        heads: method -> the head that predicts by it, in evaluation mode; ``head`` among them.
        tokens: of an image.
    """
    tokens = tokens.to(next(heads[HEAD].parameters()).device)
    outputs = {}
    for method, head in heads.items():
        outputs[method] = head.predict_outputs(tokens, with_maps=True)
    lacking = {}
    for method in heads:
        output = lacking_output(outputs[method], outputs[HEAD])
        if output is not None:
            lacking[method] = output
    return Candidates(methods=tuple(heads), lacking=lacking)


def lacking_output(outputs: HeadOutputs, head_outputs: HeadOutputs) -> str | None:
    """Return an output of the head that a method lacks, in words; None if it has all.

    Args:
        outputs: of the method, with maps.
        head_outputs: of the head, with maps.
    """
    for name in head_outputs.values:
        if name not in outputs.values:
            return f"value of {name}"
    for name in head_outputs.maps_to_show:
        if name not in outputs.maps_to_show:
            return f"map of {name}"
    if head_outputs.gate is not None and outputs.gate is None:
        return "gate"
    return None


@dataclass(frozen=True)
class HeldOut:
    """The held-out predictions of a run, and what its methods are compared by.

    Attributes:
        targets: what is scored.
        methods: their predictions.
        folds: name of a fold -> the rows that it held out, one or more.
        groups: one label per row.
        weights: target -> its weight in the weighted R².
    """

    targets: Mapping[str, ScoredTarget]
    methods: Methods
    folds: Mapping[str, Rows]
    groups: Sequence[Hashable]
    weights: Mapping[str, float]

    def best_method(self, folds: Sequence[str], candidates: Sequence[Method]) -> Method:
        """Return the candidate with the best score on the rows of some folds; of equal ones the first."""
        rows = np.concatenate([self.folds[fold] for fold in folds])
        best = candidates[0]
        best_score: float | None = None
        for method in candidates:
            score = self._pooled(self.methods[method], rows)
            if score is not None and (best_score is None or score > best_score):
                best = method
                best_score = score
        return best

    def best_on_other_folds(self, candidates: Sequence[Method]) -> dict[str, Method]:
        """Return fold -> the candidate with the best score on all other folds."""
        best = {}
        for fold in self.folds:
            others = [other for other in self.folds if other != fold]
            best[fold] = self.best_method(others, candidates)
        return best

    def score_of_choice(self, method_of_fold: Mapping[str, Method]) -> float | None:
        """Return the score of predictions that each fold has from a method of its own.

        Args:
            method_of_fold: fold -> the method, such as that of :meth:`best_on_other_folds`.
        """
        predictions = no_predictions(self.targets)
        for fold, rows in self.folds.items():
            predictions_of_fold = self.methods[method_of_fold[fold]]
            for name in predictions:
                predictions[name][rows] = predictions_of_fold[name][rows]
        return self._pooled(predictions, np.concatenate(list(self.folds.values())))

    def better_than(self, method: Method, candidates: Sequence[Method]) -> BetterMethod | None:
        """Return the best candidate, if it is clearly better than a method."""
        # the first one is what the others are compared with
        methods: Methods = {method: self.methods[method]}
        for candidate in candidates:
            if candidate != method:
                methods[candidate] = self.methods[candidate]
        scores, main_score = self._score(methods, Split(list(self.folds.values()), self.groups))
        difference = best_difference(scores, method, main_score)
        if difference is None or difference.better == method or not difference.is_clear:
            return None
        return BetterMethod(difference.better, difference.interval_text())

    def _pooled(self, predictions: Predictions, rows: Rows) -> float | None:
        """The score of predictions on some rows together; None where it is not defined."""
        # of one group, for which no interval is computed
        split = Split([rows], groups=[0] * len(self.groups))
        scores, main_score = self._score({_SCORED: predictions}, split)
        return main_score.pooled(scores).get(_SCORED)

    def _score(self, methods: Methods, split: Split) -> tuple[Scores, MainScore]:
        """The scores of methods on what decides between all of them."""
        targets = deciding_targets(self.targets, self.methods)
        scores = scores_of(targets, methods, split, self.weights)
        target = deciding_target(targets, methods)
        return scores, MainScore.of(scores, target, mean=mean_name(targets))


@dataclass(frozen=True)
class BetterMethod:
    """A method that is clearly better than another one.

    Attributes:
        method: the better one.
        difference: the 95 % interval of the difference of both, in words.
    """

    method: str
    difference: str


@dataclass(frozen=True)
class MethodScore:
    """How a method does in a run.

    Attributes:
        score: on all held-out images; None if it is not defined.
        lacks: an output of the head that it does not give, in words, or None.
        better: another method that is clearly better, or None.
    """

    score: float | None
    lacks: str | None
    better: BetterMethod | None


_NOTHING_KNOWN = MethodScore(score=None, lacks=None, better=None)


@dataclass(frozen=True)
class Choice:
    """What is known of the methods of a run, and which of them the scores choose.

    Attributes:
        words: what the score is called that decides; empty without held-out images.
        methods: method -> how it does.
        target: what that score is of: a target, or the mean over the targets; None without held-out
            images.
        metric: the key of that score, such as ``r2``; None without held-out images.
        best: the method with the best score, of those that give every output; None with fewer
            than two folds.
        on_other_folds: fold -> the best method on the other folds.
        score_on_other_folds: of the predictions that each fold has from that method.
    """

    words: str = ""
    methods: Mapping[str, MethodScore] = field(default_factory=dict)
    target: str | None = None
    metric: str | None = None
    best: Method | None = None
    on_other_folds: Mapping[str, Method] = field(default_factory=dict)
    score_on_other_folds: float | None = None

    @classmethod
    def of(cls, candidates: Candidates, held_out: HeldOut, scores: Scores) -> Choice:
        """Return the choice between the methods of a run.

        Args:
            candidates: its methods.
            held_out: its held-out predictions, by fold.
            scores: of all targets and methods.
        """
        methods: dict[str, MethodScore] = {}
        if not held_out.folds:
            for method in candidates.methods:
                lacks = candidates.lacking.get(method)
                methods[method] = MethodScore(score=None, lacks=lacks, better=None)
            return cls(methods=methods)
        target = deciding_target(held_out.targets, held_out.methods)
        main_score = MainScore.of(scores, target, mean=mean_name(held_out.targets))
        pooled = main_score.pooled(scores)
        for method in candidates.methods:
            methods[method] = MethodScore(
                score=pooled.get(method),
                lacks=candidates.lacking.get(method),
                better=held_out.better_than(method, candidates.methods),
            )
        choice = cls(
            words=main_score.words,
            methods=methods,
            target=main_score.target,
            metric=main_score.metric,
        )
        if len(held_out.folds) < 2:
            return choice
        on_other_folds = held_out.best_on_other_folds(candidates.complete)
        return replace(
            choice,
            best=held_out.best_method(list(held_out.folds), candidates.complete),
            on_other_folds=on_other_folds,
            score_on_other_folds=held_out.score_of_choice(on_other_folds),
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Choice:
        """Return what the entry ``choice`` of a report holds."""
        return msgspec.convert(dict(record), cls)

    @classmethod
    def of_report_of_0_3(cls, report: Mapping[str, Any]) -> Choice:
        """Return what the report of a run of 0.3 knows of the choice: the scores of its methods.

        Args:
            report: with the present names of the methods.
        """
        scores: Scores = report["scores"]
        if not scores:
            return cls()
        target = _main_target_of_0_3(scores, auxiliary=report["auxiliary"])
        main_score = MainScore.of(scores, target)
        pooled = main_score.pooled(scores)
        methods = {}
        for method in scores[target]:
            methods[method] = MethodScore(score=pooled.get(method), lacks=None, better=None)
        return cls(
            words=main_score.words,
            methods=methods,
            target=main_score.target,
            metric=main_score.metric,
        )

    def record(self) -> dict[str, Any]:
        """Return the entry ``choice`` of a report; what is not known has no key."""
        record = asdict(self)
        if self.target is None:
            del record["target"]
            del record["metric"]
        if self.best is None:
            del record["best"]
            del record["on_other_folds"]
            del record["score_on_other_folds"]
        return record


@dataclass(frozen=True)
class ChosenMethod:
    """The method that predicts in a run, the entry ``predicts`` of its report.

    Attributes:
        method: the method.
        sentence: the method, why it predicts, with which scores, and which output of the head it lacks.
        score: on all held-out images.
        score_on_other_folds: with the choice made on the other folds; None if the score was not what
            decided.
        better: a method that is clearly better, or None.
    """

    method: Method
    sentence: str
    score: float | None
    score_on_other_folds: float | None
    better: str | None

    @classmethod
    def of(cls, config: TrainConfig, choice: Choice) -> ChosenMethod:
        """Return the method that predicts, and why.

        Args:
            config: the run, which may name a method, or a head.
            choice: what is known of its methods.
        """
        decision = _decide(config, choice)
        known = choice.methods.get(decision.method, _NOTHING_KNOWN)
        return cls(
            method=decision.method,
            sentence=_sentence(decision, known, choice),
            score=known.score,
            score_on_other_folds=decision.score_on_other_folds,
            better=None if known.better is None else known.better.method,
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ChosenMethod:
        """Return what the entry ``predicts`` of a report holds."""
        return msgspec.convert(dict(record), cls)

    def record(self) -> dict[str, Any]:
        """Return the entry ``predicts`` of a report."""
        return asdict(self)


def _main_target_of_0_3(scores: Scores, auxiliary: Collection[str]) -> str:
    """The mean over the targets, or the first target; an auxiliary one only where there is no other."""
    if OVERALL in scores:
        return OVERALL
    for name in scores:
        if name not in auxiliary:
            return name
    return next(iter(scores))


@dataclass(frozen=True)
class _Decision:
    """Which method predicts.

    Attributes:
        method: the method.
        reason: why, in words.
        score_on_other_folds: as of :class:`ChosenMethod`.
    """

    method: Method
    reason: str
    score_on_other_folds: float | None = None


def _decide(config: TrainConfig, choice: Choice) -> _Decision:
    """The method that a config names, else the head where one is named or nothing was chosen, else the best."""
    if config.predict_with is not None:
        return _Decision(config.predict_with, "as predict_with (--predict-with) says")
    if config.names_head:
        return _Decision(HEAD, "as head.type (--head) names it")
    if config.is_live:
        return _Decision(HEAD, "as the linear baseline reads another backbone, the frozen one")
    if choice.best is None:
        return _Decision(HEAD, "as a choice takes two folds of held-out images or more")
    return _Decision(choice.best, _reason_of_best(choice), choice.score_on_other_folds)


def _sentence(decision: _Decision, known: MethodScore, choice: Choice) -> str:
    """The sentence of :class:`ChosenMethod`, of what is known of the method."""
    sentence = f"It predicts with {METHOD_NAMES[decision.method]}, {decision.reason}"
    if known.score is not None:
        sentence += f": {choice.words} {number_text(known.score)}"
        if decision.score_on_other_folds is not None:
            on_other_folds = number_text(decision.score_on_other_folds)
            sentence += f", and {on_other_folds} with the choice made on the other folds"
    sentence += "."
    if known.lacks is not None:
        sentence += f" Its file has no {known.lacks}, which the head has."
    if known.better is not None:
        sentence += f" {_sentence_of_better(known.better, choice)}"
    return sentence


def _reason_of_best(choice: Choice) -> str:
    """Why the method with the best score predicts, and what others lack that could not be chosen."""
    reason = "the best on held-out images"
    lacking = {score.lacks for score in choice.methods.values() if score.lacks is not None}
    if lacking:
        reason += f" of those that give a {min(lacking)}"
    return reason


def _sentence_of_better(better: BetterMethod, choice: Choice) -> str:
    """That another method is clearly better, and what it lacks."""
    sentence = f"{capitalised(METHOD_NAMES[better.method])} is better ({better.difference})"
    lacks = choice.methods[better.method].lacks
    if lacks is not None:
        sentence += f", but has no {lacks}"
    return f"{sentence}."


def metrics_of(scores: Scores, chosen: ChosenMethod, choice: Choice) -> dict[str, float]:
    """Return the scores that the file of a run keeps: of the method that predicts.

    Where the method was chosen by its score, that of the choice made on the other folds is kept too.
    """
    metrics = fold_metrics(scores, chosen.method)
    if chosen.score_on_other_folds is not None and choice.metric is not None:
        name = f"{NAMES_IN_FILE[choice.metric]} {choice.target} (chosen on the other folds)"
        metrics[name] = chosen.score_on_other_folds
    return metrics
