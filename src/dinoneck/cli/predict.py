"""``dinoneck predict``: values in original units from images, with a picture of where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction, arg

from dinoneck.atomic import write_text
from dinoneck.cli import detect
from dinoneck.cli.arguments import (
    HeadBackbone,
    Images,
    Views,
    check_output,
    list_images,
    names_below,
    refuse_unused,
    whole,
)
from dinoneck.cli.text import save_picture, show, whole_folder
from dinoneck.errors import ConfigError, DataError, counted
from dinoneck.training.config import SIZE

if TYPE_CHECKING:
    from dinoneck.inference.predictor import Predictor

_KEYED = re.compile(r"([A-Za-z][\w\-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Tiles:
    """Images larger than those of training.

    Attributes:
        tile: cut images into tiles of this many pixels, resized to the size of the heads.
        overlap: pixels that tiles share, at least.
    """

    tile: Annotated[tuple[int, int] | None, SIZE] = None
    overlap: Annotated[int, whole(0)] = 0


def predict(
    images: Images = (),
    *,
    heads: Annotated[tuple[tuple[str, ...], ...], arg(metavar="HEAD ..."), UseAppendAction],
    out: Path,
    store: Path | None = None,
    csv: Path | None = None,
    image_folder: Path | None = None,
    image_column: str = "image",
    maps: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    overlay: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    skip_unusable: bool = False,
    tiles: Annotated[Tiles, arg(name="")] = Tiles(),
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Predict from images with trained heads; write a CSV, and pictures on request.

    Example: dinoneck predict images/ --heads run --out predictions.csv --overlay pictures

    Args:
        images: images, or folders searched with their subfolders; before the options.
        heads: head files, folders of trainings or of head files, published heads, or Hub repositories (user/name),
            averaged; KEY=HEAD runs different heads next to each other.
        out: the CSV to write.
        store: a feature store whose tokens are used instead of images.
        csv: a CSV that names the images.
        image_folder: folder of the files in the CSV (default: that of the CSV).
        image_column: column of file names.
        maps: a new folder for the maps of every image, in its own pixels: classes as PNG, values as TIFF.
        overlay: a new folder for pictures: what is predicted, or boxes, over every image.
        skip_unusable: list and leave out unusable images.
        tiles: how larger images are cut.
        views: how images are predicted.
        backbone: where the weights come from.
    """
    options = locals()
    if bool(images) + bool(csv) + bool(store) != 1:
        raise ConfigError("name images (or folders of them) before the options, or --csv with their names, or --store")
    if csv is None:
        refuse_unused(predict, "a feature store" if store else "images that are named", options)
    named = {} if store else _named(images, csv, image_folder, image_column)
    words = _by_key([*chain(*heads)])
    weights = backbone.weights
    check_output(out, [*named.values(), *chain(*words.values()), csv, weights, backbone.backbone_file], (".csv",))
    places = _places([*named.values()], {"--maps": maps, "--overlay": overlay})
    model, predicting = _open(words, options, bool(places))
    is_detector = not hasattr(model, "tasks")
    left_out: dict[str, str] = {}
    if store is None:
        found, left_out = _predict_images(predicting, named, 4 * views.batch_size, skip_unusable)
        results = {name: row for name, _, row in found}
        if places:
            _draw(model, [(named[name], places[i], row) for name, i, row in found], maps, overlay)
    else:
        results = _predict_stored(model, store)
    document = detect.write(out, results) if is_detector else _write(out, results, model.tasks)
    written = [path for path in (out, maps, overlay) if path is not None]
    show(f"{counted(len(results), 'image')} predicted; written: {', '.join(map(str, written))}")
    return {**document, "written": written, "unusable": left_out, "revisions": getattr(model, "revisions", {})}


def _open(words: Mapping[str, Sequence[str]], options: Mapping[str, Any], maps: bool) -> tuple[Any, Any]:
    """The predictor or detector, and the function that predicts from images."""
    from dinoneck.inference.sources import opened

    views, backbone = options["views"], options["backbone"]
    read: Any = opened(words.get("", words), views.revision, backbone.weights)
    is_detector = next(iter(read.values()))[0].head_type == "detector"
    refuse_unused(predict, "a detector" if is_detector else "heads", options)
    if is_detector:
        detector = detect.open_detector(read, views, backbone)
        return detector, partial(detector.predict, **views.of_boxes)
    predictor = open_predictor(read, views, backbone, **asdict(options["tiles"]))
    return predictor, partial(predictor, maps="patch") if maps else predictor


def _predict_stored(predictor: Predictor, folder: Path) -> dict[str, Any]:
    """The predictions for everything in a feature store, by id."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(folder)
    return dict(zip(store.ids, predictor.predict(store), strict=True))


def _draw(model: Any, images: Sequence[tuple[Path, Path, Any]], maps: Path | None, overlay: Path | None) -> None:
    """Write maps and pictures of images; folders appear whole or not at all."""
    draw = _write_pictures if hasattr(model, "tasks") else detect.write_pictures
    with whole_folder(maps) as new_maps, whole_folder(overlay) as new_overlay:
        draw(model, images, new_maps, new_overlay)


def _predict_images(
    predict: Any, named: Mapping[str, Path], at_once: int, skip: bool
) -> tuple[list[tuple[str, int, Any]], dict[str, str]]:
    """The name, place and predictions of each image, and why others are left out."""
    from dinoneck.inference.results import predict_many

    names, unusable = [*named], dict[int, str]() if skip else None
    found = predict_many(predict, [*named.values()], at_once=at_once, unusable=unusable)
    if not found:
        raise DataError(f"none of the {len(names)} images can be used; the first: {(unusable or {})[0]}")
    left_out = {names[place]: reason for place, reason in (unusable or {}).items()}
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    return [(names[place], place, row) for place, row in found.items()], left_out


def _write_pictures(
    predictor: Predictor, images: Sequence[tuple[Path, Path, Any]], maps: Path | None, overlay: Path | None
) -> None:
    """Write maps and pictures of images (file, place in the folders, row), by key in a folder of its own."""
    from dinoneck.viz.map_files import write_maps
    from dinoneck.viz.overlay import overlay_panel
    from dinoneck.viz.scales import outputs, scales

    keyed = predictor.tasks if isinstance(predictor.tasks, Mapping) else {"": predictor.tasks}
    for key, tasks in keyed.items():
        rows = [row[key] if key else row for _, _, row in images]
        scale = scales(outputs(tasks), rows)
        for (file, place, _), row in zip(images, rows, strict=True):
            if maps is not None:
                write_maps(maps / key, str(place), predictor.image_maps(file, row, key=key), tasks, file)
            if overlay is not None:
                recipe = predictor.recipe(file, key)
                save_picture(overlay / key / f"{place}.jpg", overlay_panel(file, row, tasks, recipe, scale=scale))


def _places(files: Sequence[Path], folders: Mapping[str, Path | None]) -> list[Path]:
    """Where the files of images go in folders of outputs: their paths below their common folder, without suffix."""
    for option, folder in folders.items():
        if folder is not None and folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ConfigError(f"{option} {folder} is a file, or holds files; name a new folder")
        if folder is not None and not folder.parent.is_dir():
            raise ConfigError(f"{option} {folder}: the folder {folder.parent} does not exist; create it first")
    if not any(folders.values()):
        return []
    places = [Path(name).with_suffix("") for name in names_below(files)]
    first: dict[Path, Path] = {}
    for file, place in zip(files, places, strict=True):
        if first.setdefault(place, file) != file:
            raise DataError(f"{first[place]} and {file} differ in their suffix only; predict them one after the other")
    return places


def _by_key(words: Sequence[str]) -> dict[str, list[str]]:
    """The heads of a command line by their keys; without keys all of them under the empty one.

    Raises:
        ConfigError: if one is an image, or some have a key and some have none.
    """
    from dinoneck.data.loading import SUFFIXES

    if wrong := [word for word in words if Path(word).suffix.lower() in SUFFIXES]:
        raise ConfigError(f"--heads lists {wrong[0]}, which is an image; images stand before the options")
    keyed = [None if Path(word).exists() else _KEYED.fullmatch(word) for word in words]
    if None in keyed and any(keyed):
        raise ConfigError(f"--heads lists {' '.join(words)}; expected a key for every head (KEY=HEAD), or for none")
    named: dict[str, list[str]] = {}
    for word, match in zip(words, keyed, strict=True):
        key, source = match.groups() if match else ("", word)
        if source.endswith(".safetensors") and not Path(source).exists():
            raise DataError(f"the head file {source} does not exist; --heads takes files, folders and names on the Hub")
        named.setdefault(key, []).append(source)
    return named


def open_predictor(read: Mapping[str, Any], views: Views, backbone: HeadBackbone, **settings: Any) -> Predictor:
    """Return a predictor; print what a user should know."""
    from dinoneck.devices import local_device
    from dinoneck.inference.predictor import Predictor

    settings |= {"batch_size": views.batch_size, "probe": views.probe}
    own = backbone.given(next(iter(read.values()))[0])
    predictor = Predictor(read.get("", read), own, views.tta, local_device(views.device), **settings)
    if views.tta is None and predictor.tta != "none":
        show(f"Views: {predictor.tta}, as the heads record (--tta none: the image alone).")
    if len(predictor.passes) > 1:
        show(f"The heads need {len(predictor.passes)} passes of a backbone.")
    for repo, commit in predictor.revisions.items():
        show(f"{repo} is commit {commit}.")
    return predictor


def _named(images: Sequence[Path], csv: Path | None, folder: Path | None, column: str) -> dict[str, Path]:
    """Names for the output -> files to read."""
    if csv is None:
        named = {str(file): file for file in list_images(images)}
        if odd := [name for name in named if any("\ud800" <= sign <= "\udfff" for sign in name)]:
            raise DataError(f"the name {odd[0]!r} is not Unicode text, which --out holds; rename the file")
        return named
    from dinoneck.data.tables import existing_files, read_cells

    names = list(dict.fromkeys(read_cells(csv, [column])[column]))
    return dict(zip(names, existing_files(names, folder or csv.parent, f"images named in {csv}"), strict=True))


def _write(out: Path, results: Mapping[str, Mapping[str, Any]], tasks: Any) -> dict[str, Any]:
    """Write the CSV, one row per image; return the same for programs. Columns of keyed heads are ``key/column``."""
    import numpy as np

    from dinoneck.data.cells import csv_text
    from dinoneck.inference.results import table_row

    keyed = {f"{key}/": own for key, own in tasks.items()} if isinstance(tasks, Mapping) else {"": tasks}
    rows, predictions = list[list[Any]](), list[dict[str, Any]]()
    header = ["image"]
    for image, result in results.items():
        cells, values = dict[str, Any](), dict[str, Any]()
        for key, own in keyed.items():
            given = result[key[:-1]] if key else result
            cells |= {key + name: cell for name, cell in table_row(given, own, image=image).items() if name != "image"}
            values |= {key + task.name: np.asarray(given[task.name]).tolist() for task in own}
        header = ["image", *cells]
        rows.append([image, *(cell if isinstance(cell, str) else f"{cell:.6g}" for cell in cells.values())])
        predictions.append({"image": image, "values": values})
    write_text(out, csv_text(header, rows))
    described = [
        {"name": key + task.name, "kind": task.kind, "unit": task.unit, "labels": list(task.labels)}
        for key, own in keyed.items()
        for task in own
    ]
    return {"tasks": described, "predictions": predictions}
