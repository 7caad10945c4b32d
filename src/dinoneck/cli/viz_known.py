"""What ``dinoneck viz`` compares predictions with: known values of images, and known boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from dinoneck.cli.arguments import HeadBackbone, Views, list_images, names_below
from dinoneck.errors import ConfigError, DataError, some_of

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.data.boxes import BoxImages
    from dinoneck.viz.scales import ReportEntry


def known_values(
    table: Path, image_column: str, images: Sequence[Path], columns: Mapping[str, Sequence[str]]
) -> list[dict[str, float | str]]:
    """Return column -> known value, or class, for every image; an empty dict where the table has no row for it.

    A row belongs to the image of the same file name, whatever its folder. The table is read as by
    :func:`dinoneck.data.read_table`.

    Args:
        table: a CSV with one row per image and columns named like the predictions.
        image_column: its column of file names.
        images: the files.
        columns: what is predicted -> its classes; none for numbers.

    Raises:
        DataError: if the table has none of the columns or none of the images, a cell is neither a number nor a class,
            or a name stands for several rows or images.
    """
    import pandas as pd

    from dinoneck.data.tables import read_cells, read_table

    header = list(read_cells(table, [image_column]).columns)
    shared = [column for column in columns if column in header and column != image_column]
    if not shared:
        raise DataError(f"{table} has none of the columns {', '.join(columns)}; it has: {', '.join(header)}")
    classes = {column: columns[column] for column in shared if columns[column]}
    values = read_table(table, None, shared, image_column=image_column, classes=classes)[shared].astype(object)
    for column in shared:
        if words := [each for each in values[column].dropna() if column not in classes and isinstance(each, str)]:
            raise DataError(f"{table}: {column} is {words[0]!r}; the head predicts a number, so expected numbers")
    values.index = pd.Index([PurePath(name).name for name in values.index])
    names = pd.Index([image.name for image in images])
    if not names.isin(values.index).any():
        raise DataError(
            f"{table} has known values for none of the {len(images)} images; it names "
            f"{some_of(values.index, 3)}, the images are {some_of(map(str, images), 3)}"
        )
    for one, other in ((names, values.index), (values.index, names)):
        if len(twice := one[one.duplicated() & one.isin(other)]):
            raise DataError(f"{table}: {twice[0]} is the name of several rows or images; give each a name of its own")
    return [values.loc[name].dropna().to_dict() if name in values.index else {} for name in names]


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
    files = list_images(images) if known is None else [*known.paths]
    names, unusable = names_below(files), dict[int, str]()

    def pixels(place: int) -> Any:
        return files[place] if known is None else known.original(place)[0]

    def predict(places: Any) -> list[dict[str, Any]]:
        return detector.predict([pixels(place) for place in places], **views.of_boxes)

    def boxes(place: int) -> dict[str, Any]:
        target = {} if known is None else known[place][1]
        labels = [detector.classes[label] for label in target["labels"].tolist()] if target else []
        return {"boxes": target["boxes"].numpy(), "names": labels} if target else {}

    places: Any = range(len(files))
    results = predict_many(predict, places, at_once=4 * views.batch_size, unusable=unusable)
    if not results:
        raise DataError(f"none of the {len(names)} images can be used; the first: {unusable[0]}")
    places = sorted(results)
    entries = [ReportEntry(names[place], results[place], known=boxes(place)) for place in places]
    for i in worst_first(entries, ())[:most]:
        entries[i] = replace(entries[i], image=partial(pixels, places[i]))
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
    from dinoneck.detection.training import open_images
    from dinoneck.training.config import TrainConfig

    data = {key: _found_from(training["folder"], value) for key, value in training["config"]["data"].items()}
    known = open_images(TrainConfig.from_dict({**training["config"], "data": data}))[1]
    known.transform = None
    return known


def _found_from(run: Path, value: Any) -> Any:
    """A path of the run's configuration where it exists: here, or below a folder that holds the run."""
    places = (Path(value), *(parent / value for parent in run.resolve().parents)) if isinstance(value, str) else ()
    return next((str(place) for place in places if value and place.exists()), value)
