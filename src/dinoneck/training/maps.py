"""Labels per patch of a table's images: what dense and segmentation tasks are trained on and scored by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.cells import IMAGES
from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import DenseLabels, count_classes
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, DataError
from dinoneck.training.config import TrainConfig
from dinoneck.training.table import MAPS, labels_of, target_columns


@dataclass(frozen=True)
class Maps:
    """The labels of n images on their patch grid.

    Attributes:
        name: of the task.
        kind: of the task.
        values: (n, K, rows, cols) float32 in original units, of classes their shares of the patch; NaN where unknown.
        weight: (n, rows, cols) float32, how many labelled pixels a patch has; 0 = unknown.
        labels: names of the K outputs; empty = numbered.
        files: the label of each image, None where there is none.
        how: how they are read.
        preprocess: how the images are prepared.
    """

    name: str
    kind: Literal["dense", "segmentation"]
    values: Tensor
    weight: Tensor
    labels: tuple[str, ...]
    files: list[Any]
    how: DenseLabels
    preprocess: Preprocessing

    def pixels(self, row: int) -> Tensor:
        """Return the classes (1, height, width) of a prepared image; -1 = none, also without a label (1, 1, 1)."""
        if self.files[row] is None:
            return torch.full((1, 1, 1), -1)
        return self.how.indices([self.files[row]], self.preprocess)

    def indices(self, size: Sequence[int]) -> Tensor:
        """Return the classes of all images on a grid (n, *size), int64; -1 = none."""
        pixels = (self.pixels(row)[None].float() for row in range(len(self.files)))
        return torch.cat([F.interpolate(own, tuple(size), mode="nearest-exact")[0].long() for own in pixels])

    def means(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the mean of every output over the image's labelled pixels, (n, K), NaN without a label."""
        weight = self.weight[:, None].double()
        sums = (self.values.nan_to_num().double() * weight).sum(dim=(2, 3))
        found: np.ndarray[Any, np.dtype[np.float64]] = (sums / weight.sum(dim=(2, 3))).numpy()
        return found


def map_task(config: TrainConfig, table: Any) -> tuple[str, str]:
    """Return name and kind of the task of a config's masks; numbers have the name of their column or folder.

    Raises:
        ConfigError: if the config has several such tasks.
    """
    kinds = [(name, task.kind) for name, task in config.tasks.items() if task.kind in MAPS]
    if len(kinds) > 1:
        names = ", ".join(name for name, _ in kinds)
        raise ConfigError(f"tasks {names} are all per patch, and there is one column of masks; keep one")
    if kinds:
        return kinds[0]
    if config.data.label_kind == "numbers":
        labels = str(config.data.labels)
        return (Path(labels).name if Path(labels).is_dir() else labels), "dense"
    return ("cells", "dense") if target_columns(config, table)[0] else ("segmentation", "segmentation")


def read_maps(config: TrainConfig, table: Any, preprocess: Preprocessing) -> Maps | None:
    """Read the masks that a config names and average them over the patches; None where it names none.

    Raises:
        ConfigError: if a task is per patch and no masks are named, or kinds contradict each other.
        DataError: if the table has no labels, or one cannot be used or has another size than its image.
    """
    data, files = config.data, labels_of(table)
    if data.labels is None:
        if names := [name for name, task in config.tasks.items() if task.kind in MAPS]:
            raise ConfigError(f"task {', '.join(names)} is per patch; name its masks with data.labels (--labels)")
        return None
    if files is None:
        raise ConfigError(f"data.labels is {data.labels!r}, and the table has no labels")
    name, kind = map_task(config, table)
    if kind == "segmentation" and data.label_kind == "numbers":
        raise ConfigError(f"task {name!r} is a segmentation, and data.label_kind is 'numbers'; write 'classes'")
    labels, how = data.classes, DenseLabels(nodata=data.nodata)
    if data.label_kind == "classes":
        known = [label for label in files if label is not None]
        labels = labels or tuple(map(str, range(count_classes(known, data.nodata))))
        if len(labels) < 2:
            raise DataError(f"the masks hold the class {labels[0]} alone; expected two classes or more")
        how = DenseLabels(classes=len(labels), nodata=data.nodata)
    pairs = [
        (row, *how.cells(label, preprocess, [read_image_size(image)]))
        for row, (image, label) in enumerate(zip(table[IMAGES], files, strict=True))
        if label is not None
    ]
    shapes = {tuple(values.shape[1:]) for _, values, _ in pairs}
    if len(shapes) != 1:
        raise DataError(f"the labels come to different grids {sorted(shapes)}; give one size to all images (size=)")
    shape = shapes.pop()
    values, weight = torch.full((len(files), *shape), torch.nan), torch.zeros(len(files), *shape[1:])
    for row, own, counts in pairs:
        values[row], weight[row] = own[0].masked_fill(counts == 0, torch.nan), counts[0]
    return Maps(name, kind, values, weight, tuple(labels), files, how, preprocess)  # type: ignore[arg-type]
