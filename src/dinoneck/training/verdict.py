"""Which of several methods is better, and whether that is clear: in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinoneck.tasks import OVERALL

# with fewer, a report does not tell which method is better
ENOUGH_IMAGES = 50
ENOUGH_GROUPS = 10

# the scores that methods are compared by, and their words; a target has one of them
_MAIN_METRICS = {
    "r2": "R²",
    "accuracy": "accuracy",
    "mAP": "mAP",
    "mean_iou": "mean IoU",
    "within_11": "share of pixels within 11.25°",
}
_DIGITS = 2
_MOST_DIGITS = 4

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Target -> method -> its scores, see :func:`dinoneck.training.report.scores_of`."""


def main_metric(methods: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the score that methods are compared by on a target, which all of its methods have.

    Args:
        methods: method, or model -> its scores on the target.
    """
    method_scores = next(iter(methods.values()))
    [metric] = [name for name in _MAIN_METRICS if name in method_scores]
    return metric


@dataclass(frozen=True)
class MainScore:
    """The score that methods are compared by.

    Attributes:
        target: its key in the scores: the mean over the targets, or one of them.
        metric: the key of the score.
        words: what sentences call it, such as "overall R²".
    """

    target: str
    metric: str
    words: str

    @classmethod
    def of(cls, scores: Scores, target: str, *, mean: str = OVERALL) -> MainScore:
        """Return the main score on a target.

        Args:
            scores: of all targets.
            target: the target that decides, or the mean over the targets.
            mean: what the scores call the mean over the targets.
        """
        metric = main_metric(scores[target])
        words = _MAIN_METRICS[metric]
        num_targets = sum(name != mean for name in scores)
        if num_targets > 1 and target == mean:
            words = f"overall {words}"
        elif num_targets > 1:
            words = f"{words} of {target}"
        return cls(target, metric, words)

    def pooled(self, scores: Scores) -> dict[str, float]:
        """Return method -> its score on all held-out images, where it is defined."""
        pooled = {}
        for method, method_scores in scores[self.target].items():
            score = method_scores[self.metric]["pooled"]
            if score is not None:
                pooled[method] = score
        return pooled


@dataclass(frozen=True)
class Difference:
    """A better method next to another one.

    Attributes:
        better: the method with the higher score.
        other: the other one.
        score: of the better one.
        other_score: of the other one.
        interval: the ends of the 95 % interval of their difference; None = it is not known.
        images: how many the scores rest on.
        groups: how many groups these are of.
    """

    better: str
    other: str
    score: float
    other_score: float
    interval: tuple[float, float] | None
    images: int
    groups: int

    @property
    def are_enough(self) -> bool:
        """Whether there are enough images and groups to tell whether the difference is clear."""
        is_known = self.interval is not None
        return is_known and self.images >= ENOUGH_IMAGES and self.groups >= ENOUGH_GROUPS

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies above 0, of enough images and groups."""
        return self.are_enough and self.interval is not None and self.interval[0] > 0

    def sentence(self, words: str, names: Mapping[str, str]) -> str:
        """Return it as a sentence.

        Args:
            words: what the score is called.
            names: method -> what the sentence calls it; others are called by their own name.
        """
        better = names.get(self.better, self.better)
        other = names.get(self.other, self.other)
        if not self.are_enough:
            texts = self._texts()
            return (
                f"{self.images} images in {self.groups} groups are too few to tell whether {better} "
                f"is better than {other}: {words} {texts.score} against {texts.other_score}."
            )
        numbers = self._numbers(words)
        if self.is_clear:
            if self.better in names:
                better = capitalised(better)
            return f"{better} is better than {other}: {numbers}."
        return f"It is not clear whether {better} is better than {other}: {numbers}."

    def _numbers(self, words: str) -> str:
        """The scores with the interval of their difference."""
        texts = self._texts()
        return f"{words} {texts.score} against {texts.other_score} ({self.interval_text()})"

    def interval_text(self) -> str:
        """Return the interval of the difference in words; empty where it is not known."""
        if self.interval is None:
            return ""
        texts = self._texts()
        return f"difference {texts.low} to {texts.high}, 95 %"

    def _texts(self) -> _DifferenceTexts:
        """The numbers as texts, with so many digits that what is not equal differs.

        Both scores differ then, and the ends of a clear interval differ from 0.
        """
        for digits in range(_DIGITS, _MOST_DIGITS):
            texts = self._texts_with(digits)
            zero = number_text(0.0, digits)
            shows_scores = texts.score != texts.other_score or self.score == self.other_score
            shows_clear = not self.is_clear or zero not in (texts.low, texts.high)
            if shows_scores and shows_clear:
                return texts
        return self._texts_with(_MOST_DIGITS)

    def _texts_with(self, digits: int) -> _DifferenceTexts:
        """The numbers as texts, with this many digits."""
        low = ""
        high = ""
        if self.interval is not None:
            low = number_text(self.interval[0], digits)
            high = number_text(self.interval[1], digits)
        return _DifferenceTexts(
            score=number_text(self.score, digits),
            other_score=number_text(self.other_score, digits),
            low=low,
            high=high,
        )


@dataclass(frozen=True)
class _DifferenceTexts:
    """The numbers of a difference, for a sentence.

    Attributes:
        score: of the better method.
        other_score: of the other one.
        low: lower end of the interval of their difference; empty where it is not known.
        high: the upper end.
    """

    score: str
    other_score: str
    low: str
    high: str


def number_text(number: float, digits: int = _DIGITS) -> str:
    """Return a number for a sentence, with the minus sign of texts."""
    text = f"{number:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def capitalised(words: str) -> str:
    """Return words with a capital letter at the beginning."""
    return words[:1].upper() + words[1:]


def verdict(
    scores: Scores,
    first: str,
    *,
    target: str,
    mean: str = OVERALL,
    names: Mapping[str, str] = {},
) -> str:
    """Return which of several methods scores best, and whether its difference from the first one is clear.

    Args:
        scores: of :func:`dinoneck.training.report.scores_of`.
        first: the method that was compared with the others.
        target: the target that decides, or the mean over the targets.
        mean: what the scores call the mean over the targets.
        names: method -> what sentences call it; others are called by their own name.
    """
    main_score = MainScore.of(scores, target, mean=mean)
    difference = best_difference(scores, first, main_score)
    if difference is None:
        return f"{target}: there is nothing to compare {first!r} with"
    return difference.sentence(main_score.words, names)


def best_difference(scores: Scores, first: str, main_score: MainScore) -> Difference | None:
    """Return the best method next to the first one, or the first one next to the second best.

    None if the first method has no score, or no other one has. The arguments are those of
    :func:`verdict`.
    """
    pooled = main_score.pooled(scores)
    if first not in pooled or len(pooled) < 2:
        return None
    others = [method for method in pooled if method != first]
    best_other = max(others, key=lambda method: pooled[method])
    scores_of_other = scores[main_score.target][best_other]
    interval = scores_of_other["head_minus"][main_score.metric]  # of the first minus the other
    if pooled[first] >= pooled[best_other]:
        better = first
        worse = best_other
    else:
        better = best_other
        worse = first
        if interval is not None:
            low, high = interval
            interval = (-high, -low)
    return Difference(
        better=better,
        other=worse,
        score=pooled[better],
        other_score=pooled[worse],
        interval=interval,
        images=scores_of_other["images"],
        groups=scores_of_other["groups"],
    )
