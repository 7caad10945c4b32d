"""Scores of numbers and classes of images, of a table without masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinoneck.evaluation.comparable import check_same_wholes
from dinoneck.evaluation.predicted import Predicted
from dinoneck.evaluation.scores import score_predictions
from dinoneck.evaluation.targets import value_targets
from dinoneck.evaluation.truth import nothing_to_score
from dinoneck.inference.predictor import Predictor


def evaluate_values(
    predictors: Mapping[str, Predictor], table: Any, predicted: Predicted
) -> dict[str, Any]:
    """Score models on the numbers and classes of a table.

    Args:
        predictors: name -> model; the first is compared with the others.
        table: of :func:`dinoneck.evaluation.truth.truth_table`, without masks.
        predicted: what all models predict.

    Raises:
        DataError: if the truth has nothing that is predicted, or values that cannot be scored.
    """
    targets_of_models = value_targets(predictors, table, predicted)
    check_same_wholes(predictors, targets_of_models)
    if not any(targets_of_models.values()):
        raise nothing_to_score([*predicted.tasks], list(table.columns))
    return score_predictions(predictors, table, targets_of_models)
