"""The images of a detector's report: predicted boxes, with known ones where a COCO file or the run names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.cli.arguments import HeadBackbone, Views, list_images
from dinoneck.cli.detect import check_options
from dinoneck.cli.viz_truth import names_below
from dinoneck.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.data.boxes import BoxImages
    from dinoneck.viz.report import ReportEntry


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
    from dinoneck.viz.report import ReportEntry, worst_first

    check_options(views)
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

    known = open_images(TrainConfig.from_dict(training["config"]))[1]
    known.transform = None
    return known


def _pixels(known: BoxImages, place: int) -> Any:
    return known.original(place)[0]
