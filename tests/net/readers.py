"""Read a data set by the public entrances, as plain values that two versions can be compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Reading = dict[str, Any]
PATCH = 8  # pixels; the masks of the net have bands of so many
_FILES = ("images", "labels")


def plain(value: Any) -> Any:
    """Return a value as JSON has it; NaN is None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        if value != value:
            return None
        return round(value, 6)
    return value


def frame(table: Any, root: Path) -> Reading:
    """Return the columns of a table, files relative to a folder, and classes in their order."""
    reading: Reading = {"ids": plain([*table.index])}
    for name in table.columns:
        values = table[name]
        if name in _FILES:
            reading[name] = [_relative(file, root) for file in values]
        elif hasattr(values, "cat"):
            reading[name] = plain(values.astype(object).tolist())
            reading[f"classes of {name}"] = plain([*values.cat.categories])
        else:
            reading[name] = plain([*values])
    if table.attrs.get("held_out") is not None:
        reading["held out"] = table.attrs["held_out"]
    return reading


def _relative(file: Any, root: Path) -> str | None:
    if not isinstance(file, Path):
        return None
    return file.resolve().relative_to(root.resolve()).as_posix()


def folders(root: Path, name: str = ".", **options: Any) -> Reading:
    """Read class folders."""
    from dinoneck.data import read_folders

    return frame(read_folders(root / name, **options), root)


def masks(root: Path, images: str, labels: str, **options: Any) -> Reading:
    """Read a folder of images and a folder of masks."""
    from dinoneck.data import read_masks

    return frame(read_masks(root / images, root / labels, **options), root)


def table(root: Path, source: Any, targets: Sequence[str] = (), **options: Any) -> Reading:
    """Read a table, a file in ``root`` or a DataFrame, with its images in ``root``."""
    from dinoneck.data import read_table

    if isinstance(source, str):
        source = root / source
    images = root / options.pop("images", ".")
    return frame(read_table(source, images, targets, **options), root)


def values(root: Path, *files: str, **options: Any) -> Any:
    """Read masks as DenseLabels does, every patch: (B, K, rows, cols), None where nothing is known."""
    from dinoneck.data import DenseLabels, Preprocessing

    preprocess = Preprocessing(patch_size=PATCH, resize="keep")
    paths = [root / file for file in files]
    cells, weight = DenseLabels(**options).cells(paths, preprocess)
    known = weight[:, None].expand_as(cells) > 0
    return plain(np.where(known.numpy(), cells.numpy(), np.nan))


def training(root: Path, data: Mapping[str, Any], **groups: Any) -> Reading:
    """Read what a run on these data learns: its table, and each task with its classes and targets.

    Texts of ``data`` that begin with ``./`` are relative to ``root``. The targets of masks are those
    of the patches, (K, rows, cols) of each image, None where nothing is known.
    """
    _, images, problem = data_of_a_run(root, data, **groups)
    return _learned(images, problem)


def _learned(images: Any, problem: Any) -> Reading:
    reading: Reading = {"ids": plain(images.ids)}
    if images.folds is not None:
        reading["folds"] = plain(images.folds)
    if images.held_out is not None:
        reading["held out"] = images.held_out
    if images.has_groups:
        reading["groups"] = plain(images.groups)
    for task in problem.tasks:
        reading[f"kind of {task.name}"] = task.kind
        if task.kind != "regression":
            reading[f"classes of {task.name}"] = [str(label) for label in task.labels]
        reading[task.name] = plain(np.asarray(problem.targets[task.name], np.float64))
    return reading


def folds(root: Path, data: Mapping[str, Any], **groups: Any) -> Reading:
    """Read the same, with the rows that each fold holds out and the weights of what is known."""
    from dinoneck.training.folds import folds_of

    config, images, problem = data_of_a_run(root, data, **groups)
    reading = _learned(images, problem)
    reading["held out rows"] = [plain(fold.valid) for fold in folds_of(config, images)]
    reading["weights of pixels"] = {
        name: plain(np.asarray(weight, np.float64)) for name, weight in problem.weights.items()
    }
    reading["weights of targets"] = plain(dict(config.data.target_weights))
    return reading


def data_of_a_run(root: Path, data: Mapping[str, Any], **groups: Any) -> tuple[Any, Any, Any]:
    """Read the config, the table and the targets of a run, as it does before the first image."""
    from dinoneck.data import Preprocessing
    from dinoneck.training import TrainConfig
    from dinoneck.training.data_folder import of_data_folder
    from dinoneck.training.problem import read_problem
    from dinoneck.training.table import table_of

    config = TrainConfig.from_dict(
        {
            "data": {name: _below(root, value) for name, value in data.items()},
            "backbone": {"name": "dinoneck_tiny"},
            **groups,
        }
    )
    config, folder = of_data_folder(config)
    images = table_of(config, None, folder)
    preprocess = Preprocessing(patch_size=PATCH, resize="keep")
    return config, images, read_problem(config, images, preprocess)


def _below(root: Path, value: Any) -> Any:
    if isinstance(value, str) and value.startswith("./"):
        return str(root / value[2:])
    return value


def boxes(root: Path, annotations: str, images: str | None = None, **options: Any) -> Reading:
    """Read images with boxes: by image the class and the corners of each."""
    from dinoneck.data import BoxImages

    folder = None if images is None else root / images
    dataset = BoxImages(root / annotations, folder, **options)
    reading: Reading = {"ids": plain(dataset.ids), "classes": plain(dataset.classes)}
    reading["images"] = [_relative(path, root) for path in dataset.paths]
    reading["sizes"] = plain(dataset.sizes)
    reading["boxes"] = [
        [
            [dataset.classes[label], *plain(corners)]
            for label, corners in zip(
                dataset.labels(i).tolist(), dataset.corners(i).numpy(), strict=True
            )
        ]
        for i in range(len(dataset))
    ]
    return reading


def object_pixels(root: Path, annotations: str, images: str, **options: Any) -> Any:
    """Read the objects of each image as a map of ids: {id: number of pixels}."""
    from dinoneck.data import BoxImages

    dataset = BoxImages(root / annotations, root / images, masks=True, **options)
    return [_counts(dataset.pixels(i)) for i in range(len(dataset))]


def panoptic(root: Path, annotations: str, pngs: str, images: str, **options: Any) -> Reading:
    """Read images with segments: by image {id: number of pixels}."""
    from dinoneck.data import PanopticImages

    dataset = PanopticImages(root / annotations, root / pngs, root / images, **options)
    return {
        "ids": plain(dataset.ids),
        "classes": plain(dataset.classes),
        "stuff": sorted(dataset.stuff),
        "pixels": [_counts(dataset.pixels(i)) for i in range(len(dataset))],
    }


def _counts(ids: Any) -> dict[str, int]:
    numbers, counts = np.unique(np.asarray(ids), return_counts=True)
    return {
        str(number): count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    }


def pixels(root: Path, *files: str, **options: Any) -> list[Any]:
    """Read images as a model gets them: (3, H, W) of each in steps of 1/255, before normalisation."""
    from dinoneck.data import Preprocessing

    preprocess = Preprocessing(
        patch_size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="keep", **options
    )
    return [
        plain(np.round(preprocess(root / file)[0].numpy().astype(np.float64) * 255, 3))
        for file in files
    ]
