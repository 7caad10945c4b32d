"""Whether the heads of a list are alike, so that their predictions can be averaged.

Neither numpy nor torch is imported: the command line compares what the headers of files state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dinoneck.errors import CheckpointError

_LONGEST_VALUE = 80  # characters of a value that a message shows
_NOT_COMPARED = ("probe", "runtime")  # entries of the record of a backbone


@dataclass(frozen=True)
class HeadFacts:
    """What the heads of a list must have in common; None = unknown, or free to differ.

    Attributes:
        backbone: the record of the backbone.
        config: the configuration; the numbers of fitted transforms, intervals and thresholds may
            differ.
        head_type: the name of the class.
        inputs: how images are prepared.
        views: that predictions are averaged over.
    """

    backbone: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    head_type: str | None = None
    inputs: Mapping[str, Any] | None = None
    views: str | None = None


def check_facts_alike(facts_of_heads: Sequence[HeadFacts]) -> None:
    """Refuse heads of a list that differ in what both state.

    Raises:
        CheckpointError: naming the first difference.
    """
    for number, facts in enumerate(facts_of_heads[1:], 2):
        text = _first_difference(facts_of_heads[0], facts)
        if text is None:
            continue
        if text.startswith("heads.backbone"):
            remedy = ": each then has its own backbone, and their predictions can be averaged"
        else:
            remedy = (
                ", or average them with HeadEnsemble.from_heads; preprocess= and tta= (--tta) "
                "replace what the files record of inputs and views"
            )
        raise CheckpointError(
            f"heads 1 and {number} of the list differ ({text}); a list is one ensemble of "
            "alike heads. Run different heads next to each other with a mapping, {'depth': a, "
            f"'classes': b}} (--heads depth=A --heads classes=B){remedy}",
            step="pairing",
        )


def _first_difference(first: HeadFacts, second: HeadFacts) -> str | None:
    """The place and values of what two heads of a list do not have in common; None if nothing."""
    others = _compared_values(second)
    for name, value in _compared_values(first).items():
        other = others[name]
        if value is None or other is None:
            continue
        text = difference(value, other, f"heads.{name}")
        if text is not None:
            return text
    return None


def _compared_values(facts: HeadFacts) -> dict[str, Any]:
    """Name -> what has to be equal, in the order in which it is compared."""
    backbone = facts.backbone
    if backbone is not None:
        backbone = without(backbone, *_NOT_COMPARED)
    return {
        "backbone": backbone,
        "config": _without_fitted_numbers(facts.config),
        "head_type": facts.head_type,
        "inputs": facts.inputs,
        "views": facts.views,
    }


def _without_fitted_numbers(config: Any) -> Any:
    """A configuration without the mean and std of fitted transforms, intervals and thresholds."""
    if isinstance(config, list):
        return [_without_fitted_numbers(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    if config.get("$") == "TargetTransform":
        config = without(config, "mean", "std")
    if config.get("$") in ("Task", "Composition"):
        config = without(config, "interval", "thresholds")
    return {key: _without_fitted_numbers(value) for key, value in config.items()}


def without(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the other entries of a record."""
    return {key: value for key, value in record.items() if key not in names}


def difference(first: Any, second: Any, where: str) -> str | None:
    """Return the place and the values of the first difference of two JSON values; None where they are equal."""
    if first == second:
        return None
    are_lists = isinstance(first, list) and isinstance(second, list)
    if are_lists and any(isinstance(entry, Mapping) for entry in first):
        first = dict(enumerate(first))
        second = dict(enumerate(second))
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return f"{where}: {str(first)[:_LONGEST_VALUE]} / {str(second)[:_LONGEST_VALUE]}"
    for key in sorted({*first, *second}):
        text = difference(first.get(key), second.get(key), f"{where}.{key}")
        if text is not None:
            return text
    return None
