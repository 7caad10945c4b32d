"""The weights of targets in the overall score: of the call, of the truth, or of the trainings of the models."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dinoneck.data.table import Table
from dinoneck.detection.evaluation import HeadModel
from dinoneck.errors import ConfigError
from dinoneck.evaluation.models import loaded_heads_of
from dinoneck.training.report import targets_of_mean
from dinoneck.training.scored import ScoredTarget
from dinoneck.training.target_weights import check_target_weights

logger = logging.getLogger(__name__)


def weights_of(
    predictors: Mapping[str, HeadModel],
    table: Table,
    targets: Mapping[str, ScoredTarget],
    *,
    weights_of_call: Mapping[str, float],
) -> dict[str, float]:
    """Return target -> its weight in the overall score; empty = all count alike.

    What the call leaves open is as in the table, else as in the trainings of the models, which a log
    line states. Weights of trainings hold if each target of the overall score has one.

    Args:
        predictors: name -> model.
        table: the truth, whose weights count where the call has none.
        targets: what is scored.
        weights_of_call: which hold if there are some.

    Raises:
        ConfigError: if the weights of the call do not fit the targets, or trainings have others.
    """
    counted = targets_of_mean(targets)
    if weights_of_call:
        check_target_weights(weights_of_call, counted)
        return dict(weights_of_call)
    if table.weights:
        return dict(table.weights)
    recorded = _recorded_weights(predictors)
    weights = {}
    for name in counted:
        if name in recorded:
            weights[name] = recorded[name]
    if not weights or len(weights) < len(counted) or not any(weights.values()):
        return {}
    stated = " ".join(f"{name}={weight:g}" for name, weight in weights.items())
    logger.warning("the overall score is weighted as in training: %s", stated)
    return weights


def _recorded_weights(predictors: Mapping[str, HeadModel]) -> Mapping[str, float]:
    """The weights that the trainings of the models record, of those that record some."""
    first_model = ""
    first: Mapping[str, float] = {}
    for model, predictor in predictors.items():
        for loaded_head in loaded_heads_of(predictor):
            weights = loaded_head.target_weights
            if not weights:
                continue
            if first and weights != first:
                raise ConfigError(
                    f"the trainings of {first_model} and {model} weigh targets differently, "
                    f"{dict(first)} and {dict(weights)}; name the weights with target_weights "
                    "(--target-weights), or evaluate them apart"
                )
            first_model = model
            first = weights
    return first
