"""Which numbers of images a run reads from its map, whose means they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from dinoneck.data.arrays import Array
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.text import counted, some_of
from dinoneck.training.config import CompositionConfig, TrainConfig
from dinoneck.training.learned_tasks import LearnedTask, LearnedTasks, is_stated
from dinoneck.training.scores import r2

# from this R² on, a number follows the mean over the map of its name
_FOLLOWS_R2 = 0.9
# a number is the mean over its map if no image differs by more: of shares in parts of the image, of
# maps of numbers in parts of the range of their means
_LARGEST_DIFFERENCE = 0.02
# images with a number and a mask that decide; fewer may agree by chance
_FEWEST_IMAGES = 5
# of a task's description, what states how a readout of its own is trained
_OF_A_READOUT = ("loss", "beta", "weight", "activation", "area", "log1p")
_SHOWN = 5  # names in a message
logger = logging.getLogger(__name__)


def read_from_map(
    config: TrainConfig,
    learned: LearnedTasks,
    map_name: str,
    weight: Tensor,
    preprocess: Preprocessing,
    ids: Sequence[str],
) -> dict[str, LearnedTask]:
    """Return the tasks, with ``from_map`` set for the numbers that are the mean over their map.

    A number is compared with the map's class of its name, or with a map of numbers of its name. It
    is read from the map if it follows the mean over the labelled pixels of the prepared images,
    with an R² of 0.9 or more, and no image differs by more than 0.02. A number that hardly varies
    has no such R². A line names these numbers. A number that follows the map and is not read from
    it is named in a warning with the reason. Tasks whose description has ``from_map`` stay as they
    are.

    All images of the run that have both decide, also those that a fold holds out: the heads of all
    folds, and of runs of a single fold, read their numbers alike. A held-out image can only prevent
    that a number is read from the map; its values reach no weight.

    Args:
        config: the run.
        learned: all tasks of the run; the values are those of n images.
        map_name: name of the dense or segmentation task.
        weight: (n, rows, cols), how many labelled pixels each patch of its maps has.
        preprocess: what prepares the images and masks.
        ids: n names of the images, for messages.
    """
    changed = dict(learned)
    numbers = []
    for number in _numbers_of_map(learned, map_name, weight, ids):
        reason = _reason_for_readout(config, number, preprocess)
        if number.follows:
            reason = reason or _reason_of_differences(number)
            if reason:
                _warn_of_readout(number, reason)
                continue
            spec = number.task.spec.changed(from_map=map_name)
            changed[number.task.name] = replace(number.task, spec=spec)
            numbers.append(number)
        elif number.is_a_multiple and not reason:
            _warn_of_readout(number, _reason_of_unit(number))
    if numbers:
        _name_numbers(numbers)
    return changed


@dataclass(frozen=True)
class _Number:
    """A number of images and the mean over the map of its name, of the n images where both are known.

    Attributes:
        task: of the number.
        map_task: of the map.
        truth: the numbers (n,).
        means: the means over the map (n,).
        ids: n names of the images.
    """

    task: LearnedTask
    map_task: LearnedTask
    truth: Array
    means: Array
    ids: Sequence[str]

    @property
    def follows(self) -> bool:
        """Whether the number follows the mean over the map."""
        return r2(self.truth, self.means) >= _FOLLOWS_R2

    @property
    def differences(self) -> Array:
        """How much number and mean differ (n,), in the unit that the tolerance has."""
        differences: Array = np.abs(self.truth - self.means) / self._scale
        return differences

    @property
    def factor(self) -> float:
        """The factor between mean and number, by least squares; 0 for means of 0."""
        squares = float(self.means @ self.means)
        return float(self.truth @ self.means) / squares if squares else 0.0

    @property
    def is_a_multiple(self) -> bool:
        """Whether the number is the mean over the map in another unit, such as per cent."""
        factor = self.factor
        if factor <= 0 or r2(self.truth, factor * self.means) < _FOLLOWS_R2:
            return False
        differences = np.abs(self.truth / factor - self.means) / self._scale
        return bool(differences.max() <= _LARGEST_DIFFERENCE)

    @property
    def _scale(self) -> float:
        """What a difference is a part of: the image, or the range of the means over a map of numbers."""
        if self.map_task.labels:
            return 1.0
        return float(np.ptp(self.means)) or 1.0


def _numbers_of_map(
    learned: LearnedTasks, map_name: str, weight: Tensor, ids: Sequence[str]
) -> list[_Number]:
    """The numbers with the name of a class of the map, or of the map, that vary and do not state from_map."""
    map_task = learned[map_name]
    # (n, outputs)
    sums = (map_task.values.nan_to_num().double() * weight[:, None]).sum(dim=(2, 3))
    means = (sums / weight.sum(dim=(1, 2))[:, None]).numpy()
    numbers = []
    for channel, name in enumerate(_names_of_numbers(map_task)):
        task = learned.get(name)
        if task is None or task.spec.from_map is not None:
            continue
        if task.values.ndim > 1 or not task.values.is_floating_point():
            continue
        truth = task.values.numpy()
        is_known = np.isfinite(truth) & np.isfinite(means[:, channel])
        rows = np.flatnonzero(is_known).tolist()
        if len(np.unique(truth[rows])) > 1:
            number = _Number(
                task,
                map_task,
                truth=truth[rows],
                means=means[rows, channel],
                ids=[ids[row] for row in rows],
            )
            numbers.append(number)
    return numbers


def _names_of_numbers(map_task: LearnedTask) -> Sequence[str]:
    """What the number of each output of a map is called: as its class, or as the column or folder of its numbers."""
    if map_task.labels:
        return map_task.labels
    if map_task.num_outputs > 1:
        return ()
    # a map whose column or folder has the name of a target is called "NAME map"
    name = map_task.name
    while name.endswith(" map"):
        name = name.removesuffix(" map")
    return (name,)


def _reason_for_readout(config: TrainConfig, number: _Number, preprocess: Preprocessing) -> str:
    """Why a number keeps a readout of its own, however well it agrees with its map; empty without a reason.

    The run, the task or the images may be the reason.
    """
    spec = number.task.spec
    map_name = number.map_task.name
    in_its_place = f"write from_map: {map_name} in its place"
    if not config.data.numbers_from_maps:
        return "data.numbers_from_maps is off (--no-numbers-from-maps)"
    if spec.auxiliary:
        return "it is auxiliary, and a mean over the map would help training no more than the map"
    if spec.kind != "regression":
        return f"its kind is {spec.kind!r}; {in_its_place}"
    for option in _OF_A_READOUT:
        if is_stated(spec, option):
            return f"its task has {option}; {in_its_place}"
    for name, composition in config.compositions.items():
        if number.task.name in _numbers_of(composition):
            return f"the composition {name!r} computes with it"
    if number.map_task.spec.minimum is not None:
        return "the map has a minimum, and a mean of clipped cells is too high; leave it out there"
    if number.map_task.spec.maximum is not None:
        return "the map has a maximum, and a mean of clipped cells is too low; leave it out there"
    if preprocess.resize == "pad":
        return "with resize 'pad' cells of the map are padding"
    if len(number.ids) < _FEWEST_IMAGES:
        images = counted(len(number.ids), "image")
        return (
            f"{images} with a number and a mask are too few to tell; {_how_to_read_it(number)} reads "
            "it from the map"
        )
    return ""


def _numbers_of(composition: CompositionConfig) -> set[str]:
    """The names of the numbers that a composition computes with: of the whole, and of what it adds up."""
    numbers = {composition.total}
    for parts in composition.sums.values():
        numbers.update(parts)
    return numbers


def _reason_of_differences(number: _Number) -> str:
    """Why a number that follows its map is not read from it: an image where both differ; empty if none does."""
    row = int(np.argmax(number.differences))
    if number.differences[row] <= _LARGEST_DIFFERENCE:
        return ""
    difference = abs(number.truth[row] - number.means[row])
    return (
        f"it differs by up to {difference:.2g} (of image {number.ids[row]!r}); "
        f"{_how_to_read_it(number)} reads it from the map all the same"
    )


def _reason_of_unit(number: _Number) -> str:
    """Why a number that is the mean over its map in another unit is not read from it."""
    factor = f"{number.factor:.3g}"
    return (
        f"its numbers are {factor} times the map's; divide them by {factor} to read it from the map"
    )


def _how_to_read_it(number: _Number) -> str:
    """The entry of a training file with which a number is read from its map."""
    entry = f"{{{number.task.name}: {{from_map: {number.map_task.name}}}}}"
    return f"tasks: {entry} in a training file"


def _warn_of_readout(number: _Number, reason: str) -> None:
    """Name a number that follows its map, and why it is not read from it."""
    logger.warning(
        "the target %r follows the mean over its map %r and has a readout of its own: %s",
        number.task.name,
        number.map_task.name,
        reason,
    )


def _name_numbers(numbers: Sequence[_Number]) -> None:
    """Name the numbers that are read from their map."""
    largest = [float(np.abs(number.truth - number.means).max()) for number in numbers]
    num_images = [len(number.ids) for number in numbers]
    logger.warning(
        "read from the map %r, as means over its cells: %s (the largest difference in %s is %.2g); "
        "--no-numbers-from-maps gives each a readout of its own",
        numbers[0].map_task.name,
        some_of([repr(number.task.name) for number in numbers], _SHOWN),
        counted(max(num_images), "image"),
        max(largest),
    )
