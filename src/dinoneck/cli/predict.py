"""``dinoneck predict``: values in original units from images, with a picture of where they come from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import UseAppendAction, arg

from dinoneck.atomic import write_text
from dinoneck.cli import detect
from dinoneck.cli.arguments import HeadBackbone, Images, Views, check_output, list_images, refuse_unused, whole
from dinoneck.cli.text import save_picture, show, whole_folder
from dinoneck.cli.train_text import describe_size
from dinoneck.errors import ConfigError, DataError, counted
from dinoneck.training.config_flags import SIZE

if TYPE_CHECKING:
    from dinoneck.inference.predictor import Predictor
    from dinoneck.tasks import Task

_KEYED = re.compile(r"([A-Za-z][\w\-]*)=(.+)", re.DOTALL)
Results = Mapping[str, Mapping[str, Any]]


class Heads(NamedTuple):
    """Heads that were named on the command line.

    Attributes:
        opened: what was read and checked, without keys.
        given: what a Predictor takes: a list, or a mapping of lists.
    """

    opened: list[Any]
    given: Any


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
    head_weights: tuple[float, ...] | None = None,
    reduce: Literal["mean", "median"] = "mean",
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
        head_weights: one per head, in order (files of a folder by name).
        reduce: over heads of the same task.
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
    named_heads = _by_key([*chain(*heads)])
    weights, words = backbone.weights, chain(*named_heads.values())
    check_output(out, [*named.values(), *words, csv, weights, backbone.backbone_file], (".csv",))
    places = _places(list(named.values()), {"--maps": maps, "--overlay": overlay})
    read = read_heads(named_heads, views.revision, weights)
    if read.opened[0].head_type == "detector":
        refuse_unused(predict, "a detector", options)
        return detect.predict(read.opened, named, out, overlay, places, backbone, views, skip_unusable)
    refuse_unused(predict, "heads", options)
    predictor, commits = open_predictor(read, views, backbone, **asdict(tiles), weights=head_weights, reduce=reduce)
    if store is not None:
        return _predict_stored(predictor, store, out) | {"revisions": commits}
    return _predict_images(predictor, named, out, maps, overlay, places, skip_unusable) | {"revisions": commits}


def _predict_images(
    predictor: Predictor,
    images: Mapping[str, Path],
    out: Path,
    maps: Path | None,
    overlay: Path | None,
    places: Sequence[Path],
    skip: bool,
) -> dict[str, Any]:
    """Write the predictions for images, given by their names in the output, and maps and pictures of them."""
    from dinoneck.inference.results import predict_many

    names, files = [*images], [*images.values()]
    if not skip:
        _describe(predictor, files[0])
    unusable: dict[int, str] | None = {} if skip else None
    predicting = partial(predictor, maps="patch") if maps or overlay else predictor
    results = predict_many(predicting, files, at_once=4 * predictor.batch_size, unusable=unusable)
    if not results:
        raise DataError(f"none of the {len(files)} images can be used; the first: {(unusable or {})[0]}")
    written = [out]
    if maps or overlay:
        named = {place: (files[place], places[place], row) for place, row in results.items()}
        with whole_folder(maps) as new_maps, whole_folder(overlay) as new_overlay:
            _write_pictures(predictor, [*named.values()], new_maps, new_overlay)
        written += [folder for folder in (maps, overlay) if folder is not None]
    results, tasks = _flat(results, predictor.tasks)
    document = _write(out, {names[place]: result for place, result in results.items()}, tasks)
    left_out = {names[place]: reason for place, reason in (unusable or {}).items()}
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    show(f"{counted(len(results), 'image')} predicted; written: {', '.join(map(str, written))}")
    return {**document, "written": written, "unusable": left_out}


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
        if folder is not None:
            _check_new(option, folder)
    if not any(folders.values()):
        return []
    whole = [file.absolute() for file in files]
    root = os.path.commonpath([file.parent for file in whole])
    places = [file.relative_to(root).with_suffix("") for file in whole]
    first: dict[Path, Path] = {}
    for file, place in zip(files, places, strict=True):
        if first.setdefault(place, file) != file:
            raise DataError(f"{first[place]} and {file} differ in their suffix only; predict them one after the other")
    return places


def _check_new(option: str, folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{option} {folder} is a file, or holds files; name a new folder")
    if not folder.parent.is_dir():
        raise ConfigError(f"{option} {folder}: the folder {folder.parent} does not exist; create it first")


def _predict_stored(predictor: Predictor, folder: Path, out: Path) -> dict[str, Any]:
    """Write the predictions for everything in a feature store."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(folder)
    results, tasks = _flat(dict(zip(store.ids, predictor.predict(store), strict=True)), predictor.tasks)
    document = _write(out, results, tasks)
    show(f"{counted(len(results), 'image')} predicted; written: {out}")
    return {**document, "written": [out]}


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


def read_heads(words: Mapping[str, Sequence[str]], revision: str | None, weights: str | None) -> Heads:
    """Read and check heads that are named by their keys; the key of heads that are not in a mapping is empty."""
    from dinoneck.inference.sources import opened

    read = opened(words.get("", words), revision, weights)
    return Heads([head for own in read.values() for head in own], read.get("", read))


def open_predictor(
    read: Heads, views: Views, backbone: HeadBackbone, **settings: Any
) -> tuple[Predictor, dict[str, str]]:
    """Return a predictor, and Hub repository -> commit; print what a user should know."""
    from dinoneck.devices import local_device
    from dinoneck.inference.predictor import Predictor

    settings |= {"batch_size": views.batch_size, "probe": views.probe}
    own = backbone.given(read.opened[0])
    predictor = Predictor(read.given, own, views.tta, local_device(views.device), **settings)
    if views.tta is None and predictor.tta != "none":
        show(f"Views: {predictor.tta}, as the heads record (--tta none: the image alone).")
    if len(predictor.passes) > 1:
        show(f"The heads need {len(predictor.passes)} passes of a backbone.")
    for repo, commit in predictor.revisions.items():
        show(f"{repo} is commit {commit}.")
    return predictor, predictor.revisions


def _flat(results: Mapping[Any, dict[str, Any]], tasks: Any) -> tuple[dict[Any, dict[str, Any]], list[Task]]:
    """The results of a mapping of heads as those of one head, whose tasks are named ``key/task``."""
    if not isinstance(tasks, Mapping):
        return dict(results), [*tasks]
    names = {(key, task.name): f"{key}/{task.name}" for key, own in tasks.items() for task in own}
    flat: dict[Any, dict[str, Any]] = {}
    for image, rows in results.items():
        flat[image] = {name: rows[key][task] for (key, task), name in names.items()}
    renamed = []
    for key, own in tasks.items():
        for task in own:
            cells = None if task.from_map is None else names[key, task.from_map]
            are_names = hasattr(task, "parts_of") or (task.is_map and task.dim > 1)  # of columns
            labels = tuple(f"{key}/{label}" for label in task.labels) if are_names else task.labels
            renamed.append(replace(task, name=names[key, task.name], from_map=cells, labels=labels))
    return flat, renamed


def _named(images: Sequence[Path], csv: Path | None, folder: Path | None, column: str) -> dict[str, Path]:
    """Names for the output -> files to read."""
    if csv is None:
        files = list_images(images)
        _check_text(files)
        return {str(file): file for file in files}
    from dinoneck.data.tables import existing_files, read_cells

    names = list(dict.fromkeys(read_cells(csv, [column])[column]))
    return dict(zip(names, existing_files(names, folder or csv.parent, f"images named in {csv}"), strict=True))


def _check_text(files: Iterable[Path]) -> None:
    for path in files:
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"the name {str(path)!r} is not Unicode text, which --out holds; rename the file") from None


def _describe(predictor: Predictor, image: Path) -> None:
    """Print what an image is prepared to."""
    down, across = predictor.tiles(image)
    if down * across == 1:
        print("\n".join(describe_size(predictor.preprocess, image)))
    else:
        height, width = predictor.picture(image).shape[-2:]
        print(f"The first image becomes {height}x{width} px (height x width), cut into {down}x{across} tiles.")


def _write(out: Path, results: Results, tasks: Sequence[Task]) -> dict[str, Any]:
    """Write the CSV, one row per image; return the same for programs."""
    from dinoneck.data.cells import csv_text
    from dinoneck.inference.results import table_row

    rows = [table_row(result, tasks, image=name) for name, result in results.items()]
    cells = [[value if isinstance(value, str) else f"{value:.6g}" for value in row.values()] for row in rows]
    write_text(out, csv_text([*rows[0]], cells))
    described = [{"name": t.name, "kind": t.kind, "unit": t.unit, "labels": list(t.labels)} for t in tasks]
    predictions = []
    for image, result in results.items():
        values = {task.name: result[task.name] for task in tasks}
        plain = {name: value if isinstance(value, float) else value.tolist() for name, value in values.items()}
        predictions.append({"image": image, "values": plain})
    return {"tasks": described, "predictions": predictions}
