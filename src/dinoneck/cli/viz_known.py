"""What ``dinoneck viz`` compares predictions with: known values of images, held-out predictions and boxes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from dinoneck.cli.arguments import HeadBackbone, Views, list_images
from dinoneck.errors import ConfigError, DataError, some_of

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.data.boxes import BoxImages
    from dinoneck.viz.scales import ReportEntry


def known_values(
    table: Path, image_column: str, images: Sequence[Path], columns: Mapping[str, Sequence[str]]
) -> list[dict[str, float | str]]:
    """Return column -> known value, or class, for every image; an empty dict where the table has no row for it.

    A row belongs to the image of the same file name, whatever its folder. Where several rows or images have one name,
    the row's path must be the end of the image's. The table is read as by :func:`dinoneck.data.read_table`.

    Args:
        table: a CSV with one row per image and columns named like the predictions.
        image_column: its column of file names.
        images: the files.
        columns: what is predicted -> its classes; none for numbers.

    Raises:
        DataError: if the table has none of the columns or none of the images, a cell is neither a number nor a class,
            or a name stands for several images.
    """
    from dinoneck.data.tables import read_cells, read_table

    header = list(read_cells(table, [image_column]).columns)
    shared = [column for column in columns if column in header and column != image_column]
    if not shared:
        raise DataError(f"{table} has none of the columns {', '.join(columns)}; it has: {', '.join(header)}")
    classes = {column: columns[column] for column in shared if columns[column]}
    values = read_table(table, None, shared, image_column=image_column, classes=classes)[shared]
    if words := [column for column in shared if column not in classes and values[column].dtype != float]:
        raise DataError(f"{table}: {words[0]} holds words; the head predicts a number, so expected numbers")
    rows = [(PurePath(name), row.dropna().to_dict()) for name, row in values.iterrows()]
    counts = Counter(path.name for path, _ in rows) | Counter(image.name for image in images)
    found, owners = list[dict[str, Any]](), dict[PurePath, Path]()
    for image in images:
        near = [(path, row) for path, row in rows if path.name == image.name]
        fits = [pair for pair in near if counts[image.name] == 1 or image.parts[-len(pair[0].parts) :] == pair[0].parts]
        if fits and owners.setdefault(fits[0][0], image) != image:
            raise DataError(f"{table}: {fits[0][0]} stands for several images; name images with their folders")
        found.append(fits[0][1] if fits else {})
    if not any(found):
        raise DataError(
            f"{table} has known values for none of the {len(images)} images; it names "
            f"{some_of([str(path) for path, _ in rows], 3)}, the images are {some_of(map(str, images), 3)}"
        )
    return found


def names_below(files: Sequence[Path]) -> list[str]:
    """Return the names of images below the folder that they share."""
    try:
        shared = Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:  # some absolute, some not
        return [str(file) for file in files]
    return [str(file.relative_to(shared)) for file in files]


def held_out(table: Path, target: str) -> tuple[list[float], list[float]]:
    """Return the known values of a target and the head's predictions, from out_of_fold.csv, where both are known.

    Raises:
        DataError: if the table lacks a column, or one holds no numbers.
    """
    from dinoneck.data.tables import read_table

    columns = [target, f"{target} (head)"]
    rows = read_table(table, None, columns)[columns].dropna()
    if not all(rows[column].dtype == float for column in columns):
        raise DataError(f"{table}: the columns of {target!r} hold words; only numbers have residuals")
    return rows[target].tolist(), rows[columns[1]].tolist()


def box_entries(
    checkpoint: HeadCheckpoint,
    images: Sequence[Path],
    truth: Path | None,
    training: Mapping[str, Any],
    most: int,
    views: Views,
    backbone: HeadBackbone,
) -> tuple[list[ReportEntry], dict[str, str]]:
    """Return an entry per image that can be used, with pixels for the worst of them; why others cannot be used.

    Args:
        checkpoint: the detector.
        images: images and folders; none = those that the run held out.
        truth: COCO file of known boxes.
        training: report.json of the run.
        most: how many images are drawn.
        views: batch size, lowest score and device.
        backbone: where the weights come from.
    """
    from dinoneck.detection import Detector
    from dinoneck.devices import local_device
    from dinoneck.inference.results import predict_many
    from dinoneck.viz.report import worst_first
    from dinoneck.viz.scales import ReportEntry

    detector = Detector.from_checkpoint(checkpoint, backbone.given(checkpoint), local_device(views.device))
    known = _known_boxes(images, truth, training, detector.classes)
    boxes: dict[int, dict[str, Any]] = {}

    def predict_known(places: Sequence[int]) -> list[dict[str, Any]]:
        samples = [known[place] for place in places]  # type: ignore[index]
        for place, (_, target) in zip(places, samples, strict=True):
            labels = [detector.classes[label] for label in target["labels"].tolist()]
            boxes[place] = {"boxes": target["boxes"].numpy(), "names": labels}
        return detector.predict([image for image, _ in samples], **views.of_boxes)

    sources: Any
    if known is None:
        files = list_images(images)
        names, sources = names_below(files), (partial(detector.predict, **views.of_boxes), files)
    else:
        names = [image["file_name"] for image in known.ground_truth()["images"]]
        sources = predict_known, range(len(known))
    unusable: dict[int, str] = {}
    results = predict_many(*sources, at_once=4 * views.batch_size, unusable=unusable)
    if not results:
        raise DataError(f"none of the {len(names)} images can be used; the first: {unusable[0]}")
    places = sorted(results)
    entries = [ReportEntry(names[place], results[place], known=boxes.get(place, {})) for place in places]
    for i in worst_first(entries, ())[:most]:
        pixels = files[places[i]] if known is None else partial(_pixels, known, places[i])
        entries[i] = replace(entries[i], image=pixels)
    return entries, {names[place]: reason for place, reason in unusable.items()}


def _known_boxes(
    images: Sequence[Path], truth: Path | None, training: Mapping[str, Any], classes: Sequence[str]
) -> BoxImages | None:
    """The images of the COCO file, or without any images those held out by the run; None = images without boxes."""
    from dinoneck.data.boxes import BoxImages

    if truth is not None:
        if len(images) != 1 or not images[0].is_dir():
            raise ConfigError(f"--truth {truth} names its images itself; name the one folder that they are in")
        return BoxImages(truth, images[0], classes=classes)
    if images:
        return None
    if "best" not in training:
        raise ConfigError("no images are named, and no report.json of a detector's training is there; name images")
    from dinoneck.detection.building import open_images
    from dinoneck.training.config import TrainConfig

    data = {key: _found_from(training["folder"], value) for key, value in training["config"]["data"].items()}
    known = open_images(TrainConfig.from_dict({**training["config"], "data": data}))[1]
    known.transform = None
    return known


def _found_from(run: Path, value: Any) -> Any:
    """A path of the run's configuration where it exists: here, or below a folder that holds the run."""
    if not isinstance(value, str) or not value:
        return value
    places = (Path(value), *(parent / value for parent in run.resolve().parents))
    return next((str(place) for place in places if place.exists()), value)


def _pixels(known: BoxImages, place: int) -> Any:
    return known.original(place)[0]
