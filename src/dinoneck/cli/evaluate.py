"""``dinoneck evaluate``: the scores of finished heads or detectors on images whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import HeadBackbone, Views
from dinoneck.cli.text import show, table
from dinoneck.errors import ConfigError, DataError


def evaluate(
    images: Annotated[Path | None, Positional, arg(metavar="IMAGES")] = None,
    *,
    heads: Annotated[tuple[str, ...], arg(metavar="HEAD ...")],
    truth: Path,
    group: tuple[str, ...] = (),
    image_column: str = "image",
    labels: str | None = None,
    nodata: tuple[float, ...] = (),
    at_least: Annotated[tuple[str, ...], arg(metavar="TARGET=VALUE ...")] = (),
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Score finished heads or detectors on images whose truth is known; exit 1 if a score is too low.

    Example: dinoneck evaluate images/ --heads run --truth cover.csv --at-least crop=0.8

    Args:
        images: the folder of the images; before the options.
        heads: files, folders of trainings or Hub repositories; each is one model, compared with the first.
        truth: CSV of numbers or classes, a folder of masks, or a COCO file of boxes.
        group: columns; images of one group are resampled together.
        image_column: column of file names.
        labels: column of masks.
        nodata: mask values without a label, such as 255.
        at_least: the smallest R², accuracy or mean IoU of a target, or the smallest AP.
        views: how images are predicted.
        backbone: where the weights come from.
    """
    least = dict(_asked(word) for word in at_least)
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
    low = [line for target, value in least.items() for line in _too_low(found, target, value)]
    for line in low:
        show(line)
    return {"ok": not low, **found}


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


def _asked(word: str) -> tuple[str, float]:
    target, sign, value = word.rpartition("=")
    try:
        return target, float(value) if sign and target else float("no number")
    except ValueError:
        raise ConfigError(f"--at-least is {word!r}; expected TARGET=VALUE, such as crop=0.8 or AP=0.3") from None


def _too_low(found: dict[str, Any], target: str, least: float) -> list[str]:
    """A line for each model whose score of the target is below the least one."""
    scores = {name: own[target] for name, own in found.get("boxes", {}).items() if target in own}
    for name, own in found.get("scores", {}).get(target, {}).items():
        scores[name] = next(own[key]["pooled"] for key in ("r2", "accuracy", "mean_iou") if key in own)
    if not scores:
        raise ConfigError(f"--at-least names {target!r}; expected a target with a score, or AP of boxes")
    return [f"{target} of {name} is {x}, below {least:g}" for name, x in scores.items() if x is None or x < least]
