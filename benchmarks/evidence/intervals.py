"""Intervals for images of new groups: coverage and width over draws of groups that are held out.

In every draw some groups are set aside as new. Ridge regression on the mean token is fitted in five
folds of the other groups; a new image is predicted by the mean of the five. The residuals of the
folds give the intervals, in several forms.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.real import SHORT_EVERY, SHORT_SIZE, layers_of
from benchmarks.measure import Row
from dinoneck import Backbone, load_backbone
from dinoneck.data import Pasture, read_table
from dinoneck.intervals import group_quantile
from dinoneck.training import MemoryTokens, group_folds
from dinoneck.training.baselines import RIDGE, predict_with_best_setting

LEVEL = 0.9
DRAWS = 100
SHORT_DRAWS = 2
FOLDS = 5
COVERS = ("crop", "weed")
MASSES = ("Dry_Green_g", "Dry_Total_g")
FIELD_SIZE = (240, 320)  # height, width
PASTURE_SIZE = (128, 256)
NEW_FIELDS = 4  # of 16
# of 136: each pasture has 28 samplings at most, a state and a date
NEW_SAMPLINGS = 30
PASTURES = 5
IMAGES = 200  # of each pasture
SHORT_SAMPLINGS = 8  # of the 28 of one pasture
SHORT_IMAGES = 60

# the forms of the interval
ROW_FOLDS = "row folds, images count alike"
GROUP_FOLDS = "group folds, images count alike"
GROUPS = "**group folds, groups count alike**"
ONE_HEAD = "the same, the head of one fold predicts"
SCALED = "the same, by predicted size"
OUTER = "quantile of the groups' quantiles"
LARGE = 2 / 3  # quantile of the truth, from which on a value is large

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Images:
    """What is known about n images.

    Attributes:
        features: mean tokens of the last layer (n, C).
        targets: names of t targets.
        values: (n, t), 0 or more.
        groups: one number per image (n,).
    """

    features: Floats
    targets: Sequence[str]
    values: Floats
    groups: np.ndarray[Any, np.dtype[np.int64]]


class Score(NamedTuple):
    """What a form of the interval reaches on images of new groups.

    Attributes:
        coverage: the share of images inside, averaged over groups.
        coverage_of_large: the share inside of images whose value is large.
        width: the mean width, in the unit of the target.
    """

    coverage: float
    coverage_of_large: float
    width: float


@dataclass(frozen=True)
class Predicted:
    """Predictions of one target, and the truth.

    Attributes:
        held_out: of the images of the folds, by the fold that held them out.
        truth: of these images.
        new: of the images of new groups, by the head of every fold (folds, n).
        new_truth: of these images.
        new_groups: of these images.
        large: from this value on, an image counts as large.
    """

    held_out: Floats
    truth: Floats
    new: Floats
    new_truth: Floats
    new_groups: np.ndarray[Any, np.dtype[np.int64]]
    large: float

    @property
    def residuals(self) -> Floats:
        """The absolute errors of held-out images."""
        return np.abs(self.held_out - self.truth)

    @property
    def mean_of_heads(self) -> Floats:
        """What a run predicts of the images of new groups."""
        mean: Floats = self.new.mean(axis=0)
        return mean

    def score(self, predictions: Floats, half_width: float | Floats) -> Score:
        """Return how often and how narrowly intervals around predictions hold the truth of new images."""
        is_inside = np.abs(predictions - self.new_truth) <= half_width
        shares = [
            fmean(is_inside[self.new_groups == group]) for group in np.unique(self.new_groups)
        ]
        low = np.maximum(predictions - half_width, 0.0)
        width = predictions + half_width - low
        return Score(
            coverage=fmean(shares),
            coverage_of_large=float(is_inside[self.new_truth >= self.large].mean()),
            width=float(width.mean()),
        )


def interval_fields(options: Namespace) -> dict[str, Row]:
    """Return coverage and width of intervals of the cover of new fields.

    Four of 16 are new in a draw. With random weights the backbone is dinoneck_tiny.
    """
    folder = options.data / "crop_cover"
    table = read_table(folder / "cover.csv", folder, COVERS, group="group")
    size = FIELD_SIZE
    if options.short:
        table = table.iloc[:: SHORT_EVERY // 2]
        size = SHORT_SIZE
    backbone = last_layer_of(options)
    source = MemoryTokens.extract(
        backbone,
        table["images"],
        table.index,
        preprocess=backbone.preprocess.changed(size=size),
    )
    images = images_of(source, COVERS, table[[*COVERS]], table["group"])
    return table_of(images, NEW_FIELDS, SHORT_DRAWS if options.short else DRAWS)


def interval_pasture(options: Namespace) -> dict[str, Row]:
    """Return coverage and width of intervals of masses of new samplings of the generated pasture.

    30 of 136 samplings are new in a draw. With random weights the backbone is dinoneck_tiny.
    """
    num_pastures = 1 if options.short else PASTURES
    num_images = SHORT_IMAGES if options.short else IMAGES
    pictures = []
    values = []
    groups = []
    for seed in range(num_pastures):
        pasture = Pasture(seed, size=PASTURE_SIZE)
        for index in range(num_images):
            sample = pasture.sample(index)
            pictures.append(sample.image)
            values.append([sample.grams[target] for target in MASSES])
            groups.append(f"{seed} | {sample.group}")
    ids = [str(number) for number in range(len(pictures))]
    source = MemoryTokens.extract(last_layer_of(options), pictures, ids)
    images = images_of(source, MASSES, values, groups)
    if options.short:
        return table_of(images, SHORT_SAMPLINGS, SHORT_DRAWS)
    return table_of(images, NEW_SAMPLINGS, DRAWS)


def last_layer_of(options: Namespace) -> Backbone:
    """Return the backbone, whose tokens are those of its last layer."""
    name = "dinoneck_tiny" if options.random else options.backbone
    return load_backbone(name, pretrained=not options.random, layers=layers_of(name)[-1:])


def images_of(
    source: MemoryTokens, targets: Sequence[str], values: Any, groups: Sequence[Hashable]
) -> Images:
    """Return the features of images with their values (n, t) and groups."""
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    patches = source.batch(source.ids).patches[-1]
    return Images(
        features=patches.mean(dim=1).double().numpy(),
        targets=targets,
        values=np.asarray(values, np.float64),
        groups=numbers,
    )


def table_of(images: Images, num_new: int, num_draws: int) -> dict[str, Row]:
    """Return the scores of every target and form over draws of new groups."""
    scores: dict[str, list[Score]] = {}
    for seed in range(num_draws):
        for column, target in enumerate(images.targets):
            for form, score in scores_of_forms(images, column, num_new, seed).items():
                scores.setdefault(f"{target}: {form}", []).append(score)
    deviations = dict(zip(images.targets, images.values.std(axis=0), strict=True))
    table: dict[str, Row] = {}
    for name, of_draws in scores.items():
        coverages = np.array([score.coverage for score in of_draws])
        deviation = deviations[name.split(":")[0]]
        table[name] = {
            "coverage": float(coverages.mean()),
            "deviation over draws": float(coverages.std()),
            "lowest draw": float(coverages.min()),
            "coverage of the largest third": fmean(score.coverage_of_large for score in of_draws),
            "width / deviation of the target": fmean(score.width for score in of_draws) / deviation,
        }
    return table


def scores_of_forms(images: Images, column: int, num_new: int, seed: int) -> dict[str, Score]:
    """Return the scores of every form of the interval in one draw."""
    random = np.random.default_rng(seed)
    new_groups = random.choice(np.unique(images.groups), num_new, replace=False)
    is_new = np.isin(images.groups, new_groups)
    groups = images.groups[~is_new].tolist()
    rows = range(len(groups))
    scores = {}

    by_rows = predict(images, column, is_new, fold_labels=rows, seed=seed)
    half_width = group_quantile(by_rows.residuals, rows, LEVEL)
    scores[ROW_FOLDS] = by_rows.score(by_rows.mean_of_heads, half_width)

    by_groups = predict(images, column, is_new, fold_labels=groups, seed=seed)
    residuals = by_groups.residuals
    predictions = by_groups.mean_of_heads
    half_width = group_quantile(residuals, rows, LEVEL)
    scores[GROUP_FOLDS] = by_groups.score(predictions, half_width)

    half_width = group_quantile(residuals, groups, LEVEL)
    scores[GROUPS] = by_groups.score(predictions, half_width)
    scores[ONE_HEAD] = by_groups.score(by_groups.new[seed % FOLDS], half_width)

    # small values have errors too: the mean value is added to the predicted size
    mean_size = by_groups.truth.mean()
    relative = group_quantile(residuals / (by_groups.held_out + mean_size), groups, LEVEL)
    scores[SCALED] = by_groups.score(predictions, relative * (predictions + mean_size))

    half_width = quantile_of_quantiles(residuals, groups)
    scores[OUTER] = by_groups.score(predictions, half_width)
    return scores


def predict(
    images: Images,
    column: int,
    is_new: np.ndarray[Any, np.dtype[np.bool_]],
    *,
    fold_labels: Sequence[Hashable],
    seed: int,
) -> Predicted:
    """Fit ridge regression in folds that keep images of a label together, and predict."""
    x = images.features[~is_new]
    y = images.values[~is_new, column]
    new_x = images.features[is_new]
    held_out = np.empty(len(y))
    of_new = []
    for train, valid in group_folds(fold_labels, FOLDS, seed):
        predictions = predict_with_best_setting(
            RIDGE,
            x[train],
            y[train, None],
            groups=[fold_labels[row] for row in train],
            new=np.concatenate((x[valid], new_x)),
        )
        values = np.maximum(predictions[:, 0], 0.0)
        held_out[valid] = values[: len(valid)]
        of_new.append(values[len(valid) :])
    return Predicted(
        held_out=held_out,
        truth=y,
        new=np.stack(of_new),
        new_truth=images.values[is_new, column],
        new_groups=images.groups[is_new],
        large=float(np.quantile(images.values[:, column], LARGE)),
    )


def quantile_of_quantiles(residuals: Floats, groups: Sequence[Hashable]) -> float:
    """Return the quantile over groups of the quantile of each, both at the level."""
    labels = np.array(groups)
    quantiles = []
    for label in np.unique(labels):
        of_group = np.sort(residuals[labels == label])
        rank = math.ceil(LEVEL * len(of_group) - 1e-9)
        quantiles.append(of_group[rank - 1])
    return group_quantile(quantiles, range(len(quantiles)), LEVEL)
