"""What a training returns: its report, with the scores as a table and the predictor that was trained."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from dinoneck.data.run_names import DETECTOR, HEAD_FILE, REPORT
from dinoneck.errors import DataError
from dinoneck.inference.predictor import Predictor
from dinoneck.kinds import predicting_method
from dinoneck.registry import detector_class
from dinoneck.tasks import MEAN_KEY, OVERALL
from dinoneck.text import printable
from dinoneck.training.folder import read_report
from dinoneck.training.verdict import MAIN_METRICS, main_metric

_OF_OBJECTS = ("masks", "segments")  # the keys of their scores
_COLUMNS = ("target", "method", "metric", "score", "low", "high", "images")
_METRICS_OF_CLASSES = {"iou": "IoU", "f1": "F1"}


class Best(NamedTuple):
    """The method that a run predicts with, and how it scores on held-out images.

    Attributes:
        method: ``head``, ``linear``, their average, or the epoch of a detector.
        target: what the score is of: the mean over the targets, or the first target.
        metric: the name of the score.
        score: on held-out images; None where none is known.
    """

    method: str
    target: str
    metric: str
    score: float | None


class ScoreRow(NamedTuple):
    """A score of a method on held-out images.

    Attributes:
        target: what is predicted; ``TARGET: CLASS`` for a class of it.
        method: what predicts.
        metric: the name of the score.
        score: over all held-out images; None where it is not defined.
        low: lower end of its 95 % interval over groups; None without one.
        high: the upper end.
        images: how many images count; None where the report does not state it.
    """

    target: str
    method: str
    metric: str
    score: float | None
    low: float | None = None
    high: float | None = None
    images: int | None = None


class TrainingResult(dict[str, Any]):
    """The report of a run, a dict with the values of ``report.json``, and its folder.

    Args:
        report: what ``report.json`` holds.
        folder: of the run.

    Attributes:
        folder: of the run.
    """

    def __init__(self, report: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
        super().__init__(report)
        self.folder = Path(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the result of an earlier run.

        Raises:
            DataError: if the folder holds no finished run, or its report is damaged.
        """
        report = read_report(Path(folder))
        if report is None:
            path = Path(folder) / REPORT
            raise DataError(f"{path} does not exist; expected the folder of a finished run")
        return cls(report, folder)

    @property
    def scores(self) -> dict[str, Any]:
        """Target -> method -> scores on held-out images.

        Objects have the targets ``masks`` or ``segments`` too, and detectors the target ``boxes``, or
        ``masks`` where they learn those.
        """
        scores = dict(self.get("scores", {}))
        for key in _OF_OBJECTS:
            if key in self:
                scores[key] = self[key]
        if "best" in self:
            scores[self.get("scored", "boxes")] = {
                f"epoch {self['best']['epoch']}": self["best"],
                "before training": self["untrained"],
            }
        return scores

    @property
    def best(self) -> Best | None:
        """The method that the run predicts with, and its main score; None if no image was held out."""
        scores = self.scores
        if not scores:
            return None
        target = self._main_target(scores)
        method = self._predicting_method(scores[target])
        [row, *_] = _rows_of(target, method, scores[target][method])
        return Best(method=method, target=target, metric=row.metric, score=row.score)

    def _main_target(self, scores: Mapping[str, Any]) -> str:
        """Objects or boxes, else the mean over the targets, else the first target that is not auxiliary."""
        for key in ("boxes", *_OF_OBJECTS):
            if key in scores:
                return key
        mean: str = self.get(MEAN_KEY, OVERALL)
        if mean in scores:
            return mean
        for target in scores:
            if target not in self.get("auxiliary", ()):
                return target
        return next(iter(scores))

    def _predicting_method(self, methods: Mapping[str, Any]) -> str:
        """The method of the head file; of several heads that are compared the best."""
        predicting = predicting_method(self)
        if predicting in methods:
            return predicting
        is_comparison = "cost" in self  # of heads
        first = str(next(iter(methods)))
        if not is_comparison:
            return first
        metric = main_metric(methods)
        pooled = {}
        for method, scores in methods.items():
            if scores[metric]["pooled"] is not None:
                pooled[method] = scores[metric]["pooled"]
        return max(pooled, key=pooled.__getitem__) if pooled else first

    def rows(self) -> list[ScoreRow]:
        """Return the scores on held-out images, those of classes after those of their target."""
        rows: list[ScoreRow] = []
        for target, methods in self.scores.items():
            for method, scores in methods.items():
                rows += _rows_of(target, method, scores)
        return rows

    def table(self) -> Any:
        """Return the scores on held-out images as a pandas DataFrame.

        Its columns are ``target``, ``method``, ``metric``, ``score``, ``low`` and ``high`` (the ends
        of the 95 % interval over groups) and ``images``; of boxes, masks and segments a row is AP or
        PQ, of all classes and of each.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = importlib.import_module("pandas")  # noqa: TID251 - users install pandas
        table = pandas.DataFrame(self.rows(), columns=list(_COLUMNS))
        # whole numbers, some of which are not known
        return table.astype({"score": float, "low": float, "high": float, "images": "Int64"})

    def predictor(self, **options: Any) -> Any:
        """Return what the run trained: a :class:`dinoneck.Predictor`, of boxes a :class:`dinoneck.detection.Detector`.

        Args:
            options: those of the class, such as ``device="cpu"`` or ``tile=512``.

        Raises:
            DataError: if the folder has no head of its own, as that of several heads that were
                compared.
        """
        name = DETECTOR if "best" in self else HEAD_FILE
        path = self.folder / name
        if not path.is_file():
            folders = [folder.parent.name for folder in sorted(self.folder.glob(f"*/{HEAD_FILE}"))]
            remedy = "train again"
            if folders:
                remedy = f"open the result of one of its heads: {', '.join(folders)}"
            raise DataError(f"{self.folder} holds no {name}; {remedy}")
        if name == HEAD_FILE:
            return Predictor(path, **options)
        return detector_class().load(path, **options)

    def __repr__(self) -> str:
        """Show the folder, the small table and the verdict."""
        lines = [f"TrainingResult of {self.folder}"]
        for row in self.rows():
            score = "-" if row.score is None else f"{row.score:.3f}"
            interval = "" if row.low is None else f"  {row.low:.2f} ... {row.high:.2f}"
            images = "" if row.images is None else f"  {row.images} images"
            words = MAIN_METRICS.get(row.metric, row.metric)  # AP and PQ are words
            lines.append(f"{row.target}  {row.method}  {words} {score}{interval}{images}")
        if self.get("verdict"):
            lines.append(self["verdict"])
        return "\n".join(printable(line) for line in lines)


def _rows_of(target: str, method: str, scores: Mapping[str, Any]) -> Iterator[ScoreRow]:
    """The rows of a method on a target: its main score, then that of each class."""
    for metric in ("AP", "PQ"):
        if metric in scores:
            images = scores.get("images")
            yield ScoreRow(target, method, metric, scores[metric], images=images)
            for label, of_class in scores["per_class"].items():
                yield ScoreRow(f"{target}: {label}", method, metric, of_class[metric])
            return
    metric = main_metric({method: scores})
    low, high = scores[metric]["interval"] or (None, None)
    yield ScoreRow(
        target,
        method,
        metric,
        scores[metric]["pooled"],
        low=low,
        high=high,
        images=scores["images"],
    )
    for key, name in _METRICS_OF_CLASSES.items():
        for label, score in (scores.get(key) or {}).items():
            yield ScoreRow(f"{target}: {label}", method, name, score)
