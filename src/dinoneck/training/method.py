"""Which method predicts in a run: its head, the linear baseline or their average; how well the choice does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    Difference,
    MainScore,
    Scores,
    best_difference,
    capitalised,
    number_text,
)

_ONE = "one"  # the name of predictions that are scored alone


@dataclass(frozen=True)
class Candidates:
    """The methods that a run may predict with.

    Attributes:
        kept: those that it keeps heads of, in the order of :data:`METHODS`.
        lacking: method -> an output of the head that it lacks, in words; it predicts if it is named.
    """

    kept: tuple[Method, ...]
    lacking: Mapping[Method, str]

    @property
    def complete(self) -> list[Method]:
        """Those that have every output of the head."""
        return [method for method in self.kept if method not in self.lacking]


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
    return Candidates(kept=tuple(heads), lacking=lacking)


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

    def better_than(self, method: Method, candidates: Sequence[Method]) -> Difference | None:
        """Return the best candidate next to a method, if it is clearly better than this one."""
        methods: Methods = {method: self.methods[method]}
        for candidate in candidates:
            methods.setdefault(candidate, self.methods[candidate])
        scores, main_score = self._score(methods, Split(list(self.folds.values()), self.groups))
        difference = best_difference(scores, method, main_score)
        if difference is None or difference.better == method or not difference.is_clear:
            return None
        return difference

    def _pooled(self, predictions: Predictions, rows: Rows) -> float | None:
        """The score of predictions on some rows together; None where it is not defined."""
        # of one group, for which no interval is computed
        split = Split([rows], groups=[0] * len(self.groups))
        scores, main_score = self._score({_ONE: predictions}, split)
        return main_score.pooled(scores).get(_ONE)

    def _score(self, methods: Methods, split: Split) -> tuple[Scores, MainScore]:
        """The scores of methods on what decides between all of them."""
        targets = deciding_targets(self.targets, self.methods)
        scores = scores_of(targets, methods, split, self.weights)
        target = deciding_target(targets, methods)
        return scores, MainScore.of(scores, target, mean=mean_name(targets))


def choice_record(candidates: Candidates, held_out: HeldOut, scores: Scores) -> dict[str, Any]:
    """Return what a report holds of the choice between the methods, its entry ``choice``.

    Args:
        candidates: the methods of the run.
        held_out: its held-out predictions, by fold.
        scores: of all targets and methods.

    Returns:
        ``methods``: method -> ``score`` on all held-out images; ``lacks``: an output of the head that
        it does not give, in words, or None; ``better``: the ``method`` that is clearly better and
        the ``difference``, its 95 % interval in words, or None. ``words``: what the score is called.
        With two folds or more ``best``: the method with the best score, of those that give every
        output; ``on_other_folds``: fold -> the best method on the other folds;
        ``score_on_other_folds``: of the predictions that each fold has from that method. ``target``
        and ``metric``: the keys of the score.
    """
    methods: dict[str, dict[str, Any]] = {}
    for method in candidates.kept:
        lacks = candidates.lacking.get(method)
        methods[method] = {"score": None, "lacks": lacks, "better": None}
    record: dict[str, Any] = {"words": "", "methods": methods}
    if not held_out.folds:
        return record
    mean = mean_name(held_out.targets)
    target = deciding_target(held_out.targets, held_out.methods)
    main_score = MainScore.of(scores, target, mean=mean)
    record |= {
        "words": main_score.words,
        "target": main_score.target,
        "metric": main_score.metric,
    }
    for method in candidates.kept:
        methods[method]["score"] = main_score.pooled(scores).get(method)
        difference = held_out.better_than(method, candidates.kept)
        if difference is not None:
            methods[method]["better"] = {
                "method": difference.better,
                "difference": difference.interval_text(),
            }
    if len(held_out.folds) > 1:
        on_other_folds = held_out.best_on_other_folds(candidates.complete)
        record["best"] = held_out.best_method(list(held_out.folds), candidates.complete)
        record["on_other_folds"] = on_other_folds
        record["score_on_other_folds"] = held_out.score_of_choice(on_other_folds)
    return record


def scores_record(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report of 0.3 knows of the choice between the methods: their scores.

    Args:
        report: with the present names of the methods.

    Returns:
        As :func:`choice_record`, without ``best``.
    """
    scores: Scores = report["scores"]
    methods: dict[str, dict[str, Any]] = {}
    record: dict[str, Any] = {"words": "", "methods": methods}
    if not scores:
        return record
    auxiliary = report["auxiliary"]
    target = OVERALL if OVERALL in scores else min(scores, key=lambda name: name in auxiliary)
    main_score = MainScore.of(scores, target)
    pooled = main_score.pooled(scores)
    for method in scores[target]:
        methods[method] = {"score": pooled.get(method), "lacks": None, "better": None}
    return record | {"words": main_score.words, "target": target, "metric": main_score.metric}


def chosen_method(config: TrainConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method that predicts, and why: the entry ``predicts`` of a report.

    Args:
        config: the run, which may name a method, or a head.
        record: of :func:`choice_record`, or of :func:`scores_record`.

    Returns:
        ``method``; ``sentence``: the method, why it predicts, and with which scores; ``score``: on
        all held-out images; ``score_on_other_folds``: with the choice made on the other folds, None
        if the score was not what decided; ``better``: a method that is clearly better, or None.
    """
    method: Method = HEAD
    score_on_other_folds = None
    if config.predict_with is not None:
        method = config.predict_with
        reason = "as predict_with (--predict-with) says"
    elif config.names_head:
        reason = "as head.type (--head) names it"
    elif config.is_live:
        reason = "as the linear baseline reads another backbone, the frozen one"
    elif "best" not in record:
        reason = "as a choice takes two folds of held-out images or more"
    else:
        method = record["best"]
        reason = "the best on held-out images"
        lacking = {of["lacks"] for of in record["methods"].values()} - {None}
        if lacking:
            reason += f" of those that give a {min(lacking)}"
        score_on_other_folds = record["score_on_other_folds"]
    facts: Mapping[str, Any] = record.get("methods", {}).get(method, {})
    sentence = f"It predicts with {METHOD_NAMES[method]}, {reason}"
    if facts.get("score") is not None:
        sentence += f": {record['words']} {number_text(facts['score'])}"
        if score_on_other_folds is not None:
            score = number_text(score_on_other_folds)
            sentence += f", and {score} with the choice made on the other folds"
    sentence += "."
    better = facts.get("better")
    if better is not None:
        sentence += (
            f" {capitalised(METHOD_NAMES[better['method']])} is better ({better['difference']})"
        )
        lacks = record["methods"][better["method"]]["lacks"]
        if lacks is not None:
            sentence += f", but has no {lacks}"
        sentence += "."
    return {
        "method": method,
        "sentence": sentence,
        "score": facts.get("score"),
        "score_on_other_folds": score_on_other_folds,
        "better": None if better is None else better["method"],
    }


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores that the file of a run keeps: of the method that predicts.

    Where the method was chosen by its score, that of the choice made on the other folds is kept too.
    """
    predicts = report["predicts"]
    metrics = fold_metrics(report["scores"], predicts["method"])
    score = predicts["score_on_other_folds"]
    if score is not None:
        choice = report["choice"]
        metric = NAMES_IN_FILE[choice["metric"]]
        metrics[f"{metric} {choice['target']} (chosen on the other folds)"] = score
    return metrics
