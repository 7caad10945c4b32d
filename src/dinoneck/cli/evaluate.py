"""``dinoneck evaluate``: the scores of finished heads or detectors on images whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import HeadBackbone, Views
from dinoneck.cli.text import show, table
from dinoneck.errors import DataError


def evaluate(
    images: Annotated[Path | None, Positional, arg(metavar="IMAGES")] = None,
    *,
    heads: Annotated[tuple[str, ...], arg(metavar="HEAD ...")],
    truth: Path,
    group: tuple[str, ...] = (),
    image_column: str = "image",
    labels: str | None = None,
    nodata: tuple[float, ...] = (),
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Score finished heads or detectors on images whose truth is known.

    Example: dinoneck evaluate images/ --heads run --truth cover.csv

    Args:
        images: the folder of the images; before the options.
        heads: files, folders of trainings or Hub repositories; each is one model, compared with the first.
        truth: CSV of numbers or classes, a folder of masks, or a COCO file of boxes.
        group: columns; images of one group are resampled together.
        image_column: column of file names.
        labels: column of masks.
        nodata: mask values without a label, such as 255.
        views: how images are predicted.
        backbone: where the weights come from.
    """
    if missing := [path for path in (images, truth) if path is not None and not path.exists()]:
        raise DataError(f"{missing[0]} does not exist; check the name, which is relative to this folder")
    from dinoneck.evaluation import evaluate as scored
    from dinoneck.viz.score_tables import all_tables

    stems = [Path(word).stem for word in heads]
    names = ["head"] if len(heads) == 1 else stems if len({*stems}) == len(stems) else [*heads]
    models = {name: _opened(word, views, backbone) for name, word in zip(names, heads, strict=True)}
    found = scored(models, images, truth, group=group, image_column=image_column, labels=labels, nodata=nodata)
    for each in all_tables(found):
        print(table(*each))
    show(found.get("verdict", "") if len(models) > 1 else "")
    cells = [[name, f"{own['seconds_per_image']:.3g}", f"{own['parameters']:,}", f"{own['backbone_parameters']:,}"]
             for name, own in found["cost"].items()]  # fmt: skip
    print(table(("cost", "seconds per image", "parameters", "of the backbone"), cells))
    return found


def _opened(word: str, views: Views, backbone: HeadBackbone) -> Any:
    """The predictor or detector of one model."""
    from dinoneck.detection.detector import Detector
    from dinoneck.devices import local_device
    from dinoneck.inference.predictor import Predictor
    from dinoneck.inference.sources import opened

    read: Any = opened(word, views.revision, backbone.weights)[""]
    own, device = backbone.given(read[0]), local_device(views.device)
    if read[0].head_type == "detector":
        return Detector.from_checkpoint(read[0], own, device)
    return Predictor(read, own, views.tta, device, batch_size=views.batch_size, probe=views.probe)
