"""``dinoneck predict`` and ``evaluate``: values in original units or boxes from images, and their scores."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from dinoneck.atomic import write_text
from dinoneck.cli import arguments as cli
from dinoneck.cli.text import save_picture, show, show_scores, whole_folder
from dinoneck.data.cells import IMAGES, LABELS, csv_text
from dinoneck.data.layout import Subfolders
from dinoneck.data.walk import SUFFIXES
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import counted, did_you_mean, some_of
from dinoneck.training.config import SIZE

Predict = Callable[[list[Any]], list[dict[str, Any]]]
_KEYED = re.compile(r"([A-Za-z][\w\-]*)=(.+)", re.DOTALL)
_OF_ALL = (
    "AP",
    "AP50",
    "AP75",
    "AR100",
    "F1",
    "PQ",
    "SQ",
    "RQ",
    "PQ_things",
    "PQ_stuff",
    "overall",
    "overall (mean)",
)
_BOX = ("image", "name", "score", "x0", "y0", "x1", "y1")


def predict(
    images: cli.Images = (),
    *,
    heads: Annotated[tuple[tuple[str, ...], ...], arg(metavar="HEAD ..."), UseAppendAction],
    out: Path,
    store: Path | None = None,
    maps: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    overlay: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    truth: Annotated[Path | None, arg(metavar="CSV|FOLDER")] = None,
    image_column: str = "image",
    subfolders: Literal["classes", "folds"] | None = None,
    skip_unusable: bool = False,
    tile: Annotated[tuple[int, int] | None, SIZE] = None,
    overlap: Annotated[int, cli.whole(0)] = 0,
    views: Annotated[cli.Views, arg(name="")] = cli.Views(),
    words: cli.Words = (),
) -> dict[str, Any]:
    """Predict from images with trained heads; write a CSV, and pictures on request.

    Example: dinoneck predict images/ --heads run --out predictions.csv --overlay pictures

    Args:
        images: images, or folders searched with their subfolders; before the options.
        heads: head files, folders of trainings or of head files, published heads, or Hub
            repositories (user/name), averaged; KEY=HEAD runs different heads next to each other.
        out: the CSV to write.
        store: a feature store whose tokens are used instead of images.
        maps: a new folder for the maps of every image, in its own pixels: classes as PNG, values as
            TIFF.
        overlay: a new folder for pictures: what is predicted, or boxes, over every image.
        truth: with overlay: known values, drawn next to predictions: CSV with a column of file
            names and the predictions' names, or the class folders that hold the images.
        image_column: column of file names in --truth.
        subfolders: with a folder as truth: whether the folders in it are classes or folds.
        skip_unusable: list and leave out unusable images.
        tile: cut images into tiles of this many pixels, resized to the size of the heads.
        overlap: pixels that tiles share, at least.
        views: how images are predicted.
        words: the command line.
    """
    if images and store is not None:
        raise ConfigError(
            f"{images[0]} and --store {store} are both given; predict from images or from a store"
        )
    if not images and store is None:
        raise ConfigError(f"{cli.NO_IMAGES}, or pass --store")
    if store is not None:
        cli.refuse_unused("a feature store", words)
    named = {str(file): file for file in cli.list_images(images)} if images else {}
    sources = _by_key([*chain(*heads)])
    inputs = [*named.values(), *chain(*sources.values()), views.weights, views.backbone_file, truth]
    cli.check_output(out, inputs, (".csv",))
    places = _places(named, images, {"--maps": maps, "--overlay": overlay})
    if overlay is None:
        cli.refuse_unused("predictions without --overlay", words)
    model, call, _ = open_model(
        sources.get("", sources), views, words, bool(places), tile=tile, overlap=overlap
    )
    tasks = getattr(model, "tasks", None)
    values = (
        {}
        if truth is None
        else known_values(truth, image_column, [*named.values()], tasks, subfolders)
    )
    results, left_out = (
        predict_named(call, named, skip_unusable)
        if store is None
        else (_of_store(store, model), {})
    )
    drawn = [(named[name], places[name], row) for name, row in results.items() if places]
    _draw(model, drawn, values, maps, overlay)
    rows = _boxes(results) if tasks is None else _values(results, tasks)
    cells = [
        [cell if isinstance(cell, str) else f"{cell:.6g}" for cell in row.values()] for row in rows
    ]
    write_text(out, csv_text([*rows[0]] if rows else _BOX, cells))
    document = {"predictions": rows} if tasks is None else _described(rows, results, tasks)
    written = [path for path in (out, maps, overlay) if path is not None]
    averaged = (
        "" if getattr(model, "tta", "none") == "none" else f", the mean of the views {model.tta}"
    )
    show(
        f"{counted(len(results), 'image')} predicted{averaged}; written: "
        f"{', '.join(map(str, written))}"
    )
    return {
        **document,
        "written": written,
        "unusable": left_out,
        "revisions": getattr(model, "revisions", {}),
    }


def _of_store(path: Path, model: Any) -> dict[str, Any]:
    """Id -> predictions from stored tokens."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    return dict(zip(store.ids, model.predict(store), strict=True))


def open_model(
    heads: Any, views: cli.Views, words: Sequence[str], maps: bool = False, **tiles: Any
) -> tuple[Any, Predict, list[Any]]:
    """Open heads, or the one detector.

    Args:
        heads: names of files, folders, repositories or published heads, or a mapping of keys to
            them.
        views: how images are predicted.
        words: the command line, whose options have to have an effect.
        maps: whether predictions hold the maps of heads.
        **tiles: of heads, how images are cut.

    Returns:
        The Predictor or Detector, the function that predicts from a list of images, and the head
        files.

    Raises:
        ConfigError: for several detectors, and for options without effect.
        CheckpointError: if a file cannot be read, or the heads do not belong together.
    """
    from dinoneck.devices import local_device
    from dinoneck.inference.sources import opened

    read: Any = opened(heads, views.revision, views.weights)
    checkpoints = [*chain(*read.values())]
    first = checkpoints[0]
    is_detector = first.head_type == "detector"
    cli.refuse_unused("a detector" if is_detector else "heads", words)
    own, device = views.given(first), local_device(views.device)
    if is_detector:
        from dinoneck.detection import Detector

        detector = Detector.from_checkpoint(first, own, device)
        detector.source = first.source or ""
        detector.min_score = detector.min_score if views.min_score is None else views.min_score
        detector.preprocess = detector.preprocess.changed(bits=views.bits)
        return detector, partial(detector.predict, batch_size=views.batch_size), checkpoints
    from dinoneck.inference.predictor import Predictor

    settings = {
        "batch_size": views.batch_size,
        "probe": views.probe,
        "bits": views.bits,
        **tiles,
    }
    predictor = Predictor(read.get("", read), own, views.tta, device, **settings)
    return predictor, partial(predictor, maps="patch" if maps else None), checkpoints


def predict_named(
    predict: Predict, named: Mapping[str, Any], skip_unusable: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return name -> predictions of images, and name -> reason of those that are left out."""
    from dinoneck.inference.results import predict_many

    names, unusable = [*named], dict[int, str]() if skip_unusable else None
    found = predict_many(predict, [*named.values()], unusable=unusable)
    if not found:
        raise DataError(
            f"none of the {len(names)} images can be used; the first: {(unusable or {})[0]}"
        )
    left_out = {names[place]: reason for place, reason in (unusable or {}).items()}
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    return {names[place]: found[place] for place in sorted(found)}, left_out


def known_values(
    truth: Path,
    image_column: str,
    images: Sequence[Path],
    tasks: Any,
    subfolders: Subfolders | None = None,
) -> dict[Path, dict[str, float | str]]:
    """Return image -> column -> known value, or class, of the images that the truth has a row for.

    A row belongs to the image whose path ends like its name, see
    :func:`dinoneck.data.sources.find_images`.

    Args:
        truth: a CSV with one row per image and columns named like the predictions; or a folder of
            class folders that hold the images.
        image_column: its column of file names.
        images: the files.
        tasks: what is predicted.
        subfolders: how the folders in the truth are read; None = by their names.

    Raises:
        ConfigError: if there are no tasks, as of a detector, or several groups of them, or the
            truth is a folder of masks.
        DataError: if class folders have a class that the heads do not, the truth has none of the
            columns or none of the images, a cell does not fit, or a name stands for several rows or
            images.
    """
    from dinoneck.data.sources import find_images
    from dinoneck.evaluation import truth_table

    if tasks is None:
        raise ConfigError(
            f"--truth {truth} is for numbers and classes, and a detector predicts boxes; leave it out"
        )
    if not isinstance(tasks, Sequence):
        raise ConfigError(
            f"--truth {truth} is for heads without keys; leave it out, or run one key at a time"
        )
    if masks := [task.name for task in tasks if task.is_masks]:
        raise ConfigError(
            f"--truth {truth} is for numbers and classes, and {masks[0]} is predicted as masks; "
            "leave it out"
        )
    if truth.is_dir() and any(task.is_map for task in tasks):
        raise ConfigError(
            f"--truth {truth} is a folder, and the heads predict masks, which 'dinoneck evaluate' "
            "compares; here name a CSV of known values"
        )
    known = truth_table(None, truth, [tasks], image_column=image_column, subfolders=subfolders)
    if truth.is_dir():
        _check_known_classes(truth, known, tasks)
        rows: Mapping[str, Path] = _rows_of_files(known[IMAGES], images, truth)
    else:
        rows = find_images(list(known.index), images, str(truth))
    values = known.drop(columns=[name for name in (IMAGES, LABELS) if name in known])
    values = values.astype(object)
    return {image: values.loc[row].dropna().to_dict() for row, image in rows.items()}


def _check_known_classes(truth: Path, known: Any, tasks: Sequence[Any]) -> None:
    """Raise a DataError if class folders have a class that the heads do not."""
    for task in tasks:
        if task.kind != "classification" or not task.labels or task.name not in known:
            continue
        unknown = set(known[task.name].dropna()) - set(task.labels)
        if unknown:
            raise DataError(
                f"--truth {truth} has the class folder {some_of(sorted(map(repr, unknown)), 3)}; the "
                f"heads predict {some_of(task.labels, 8)}. Rename the folder, or name a folder without "
                "it"
            )


def _rows_of_files(files: Any, images: Sequence[Path], truth: Path) -> dict[str, Path]:
    """Row -> image, of the rows whose file is one of the images."""
    image_of = {image.resolve(): image for image in images}
    rows = {}
    for row, file in files.items():
        image = image_of.get(file.resolve())
        if image is not None:
            rows[row] = image
    if not rows:
        raise DataError(f"{truth} holds none of the images, such as {some_of(map(str, images), 3)}")
    return rows


def _draw(
    model: Any,
    images: Sequence[tuple[Path, Path, Any]],
    known: Any,
    maps: Path | None,
    overlay: Path | None,
) -> None:
    """Write maps and pictures of images (file, place in the folders, row); folders appear whole or not at all."""
    from dinoneck.data.decoding import read_pixels
    from dinoneck.viz.overlay import overlay_panel as over
    from dinoneck.viz.overlay import write_maps
    from dinoneck.viz.panels import boxes_panel as boxes
    from dinoneck.viz.scales import outputs, scales

    all_tasks = getattr(model, "tasks", ())
    bits = model.preprocess.bits
    with whole_folder(maps) as new_maps, whole_folder(overlay) as new_overlay:
        for key, tasks in (
            all_tasks if isinstance(all_tasks, Mapping) else {"": all_tasks}
        ).items():
            rows = [row[key] if key else row for _, _, row in images]
            scale = scales(outputs(tasks), rows)
            objects = next((task for task in tasks if task.is_masks), None)
            for (file, place, _), row in zip(images, rows, strict=True):
                if new_maps is not None:
                    write_maps(
                        new_maps / key,
                        str(place),
                        model.image_maps(file, row, key=key),
                        tasks,
                        file,
                    )
                if new_overlay is None:
                    continue
                if not tasks:
                    drawn = boxes(read_pixels(file, bits), row, classes=model.classes)
                elif objects is not None:
                    drawn = boxes(
                        read_pixels(file, bits),
                        _boxes_of(row[objects.name], objects.labels),
                        classes=objects.labels,
                    )
                else:
                    drawn = over(
                        file,
                        row,
                        tasks,
                        model.recipe(file, key),
                        known=known.get(file),
                        scale=scale,
                    )
                save_picture(new_overlay / key / f"{place}.jpg", drawn)
        if new_maps is not None and not any(new_maps.iterdir()):
            raise ConfigError(
                f"--maps {maps}: these heads have no maps; leave --maps out (--json has objects)"
            )


def _boxes_of(objects: Any, labels: Sequence[str]) -> dict[str, Any]:
    """The boxes around the masks of objects, with their classes."""
    from dinoneck.inference.results import coco_objects

    found = coco_objects(objects)
    corners = [
        (x, y, x + width, y + height) for x, y, width, height in (each["bbox"] for each in found)
    ]
    names = [labels[each["category_id"]] if labels else str(each["category_id"]) for each in found]
    return {"boxes": corners, "names": names}


def _places(
    named: Mapping[str, Path], images: Sequence[Path], folders: Mapping[str, Path | None]
) -> dict[str, Path]:
    """Where the files of images go in folders of outputs: their paths below their common folder, without suffix."""
    given = {option: folder for option, folder in folders.items() if folder is not None}
    for option, folder in given.items():
        cli.check_place(option, folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            what = "holds files" if folder.is_dir() else "is a file"
            raise ConfigError(f"{option} {folder} {what}; name a new folder")
        if inside := [
            each
            for each in images
            if each.is_dir() and folder.resolve().is_relative_to(each.resolve())
        ]:
            raise ConfigError(
                f"{option} {folder} is inside {inside[0]}, whose files are images; name another "
                "place"
            )
    names = cli.names_below([*named.values()]) if given else []
    places = [Path(name).with_suffix("") for name in names]
    if twice := [place for place, count in Counter(places).items() if count > 1]:
        raise DataError(
            f"images called {twice[0]} differ in their suffix only; predict them one after the "
            "other"
        )
    return dict(zip(named, places, strict=False))


def _by_key(words: Sequence[str]) -> dict[str, list[str]]:
    """The heads of a command line by their keys; those without a key under the empty one.

    Raises:
        CheckpointError: if a head file does not exist, or is none.
        ConfigError: if one is an image, or some have a key and some have none.
    """
    from dinoneck.checkpoint.format import read_header

    found: dict[str, list[str]] = {}
    for word in words:
        match = None if Path(word).exists() else _KEYED.fullmatch(word)
        key, source = match.groups() if match else ("", word)
        if Path(source).suffix.lower() in SUFFIXES:
            raise ConfigError(
                f"--heads lists {source}, which is an image; images stand before the options"
            )
        if source.endswith(".safetensors"):
            read_header(source)  # missing and other files are refused before torch is imported
        found.setdefault(key, []).append(source)
    if "" in found and len(found) > 1:
        raise ConfigError(
            f"--heads lists {' '.join(words)}; expected a key for every head (KEY=HEAD), or for "
            "none"
        )
    return found


def _boxes(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per box, column -> value."""
    return [
        dict(
            zip(
                _BOX,
                (image, label, round(score, 4), *(round(side, 2) for side in box)),
                strict=True,
            )
        )
        for image, each in results.items()
        for label, score, box in zip(
            each["names"], each["scores"].tolist(), each["boxes"].tolist(), strict=True
        )
    ]


def _values(results: Mapping[str, Mapping[str, Any]], tasks: Any) -> list[dict[str, Any]]:
    """A row per image, column -> value; columns of keyed heads are ``key/column``."""
    from dinoneck.inference.results import table_row

    rows = []
    for image, result in results.items():
        row: dict[str, Any] = {"image": image}
        for key, own in tasks.items() if isinstance(tasks, Mapping) else ():
            row |= {f"{key}/{name}": cell for name, cell in table_row(result[key], own).items()}
        rows.append(row if isinstance(tasks, Mapping) else table_row(result, tasks, image=image))
    return rows


def _described(
    rows: Sequence[dict[str, Any]], results: Mapping[str, Any], tasks: Any
) -> dict[str, Any]:
    """The tasks, and the rows with the objects of images as COCO's run lengths."""
    from dinoneck.inference.results import coco_objects

    keyed = tasks if isinstance(tasks, Mapping) else {"": tasks}
    every = [
        (key, f"{key}/{task.name}" if key else task.name, task)
        for key, own in keyed.items()
        for task in own
    ]
    try:
        for row, result in zip(rows, results.values(), strict=True):
            for key, name, task in every:
                if task.is_masks:
                    row[f"{name} objects"] = coco_objects(
                        (result[key] if key else result)[task.name]
                    )
    except ImportError as error:
        show(f"--json lacks the objects: {error}")
    described = [
        {"name": name, "kind": task.kind, "unit": task.unit, "labels": task.labels}
        for _, name, task in every
    ]
    return {"tasks": described, "predictions": rows}


def evaluate(
    images: Annotated[Path | None, Positional, arg(metavar="IMAGES")] = None,
    *,
    heads: Annotated[tuple[str, ...], arg(metavar="HEAD ...")],
    truth: Annotated[tuple[Path, ...], arg(metavar="TRUTH ...")],
    group: tuple[str, ...] = (),
    image_column: str = "image",
    labels: str | None = None,
    subfolders: Literal["classes", "folds"] | None = None,
    nodata: tuple[float, ...] = (),
    class_values: tuple[int, ...] = (),
    crowd: Literal["ignore", "objects"] = "ignore",
    at_least: Annotated[tuple[str, ...], arg(metavar="TARGET=VALUE ...")] = (),
    views: Annotated[cli.Views, arg(name="")] = cli.Views(),
    words: cli.Words = (),
) -> dict[str, Any]:
    """Score finished heads or detectors on images whose truth is known; exit 1 if a score is too low.

    Example: dinoneck evaluate images/ --heads run --truth cover.csv --at-least crop=0.8

    Args:
        images: the folder of the images; before the options.
        heads: files, folders of trainings or Hub repositories; each is one model, compared with the
            first. KEY=HEAD names it in the tables.
        truth: CSV of numbers or classes, a folder of masks or of class folders, a COCO file of
            boxes or objects, or the folder and the COCO file of panoptic segments.
        group: columns; images of one group are resampled together.
        image_column: column of file names.
        labels: column of masks.
        subfolders: with a folder as truth: whether the folders in it are classes or folds.
        nodata: mask values without a label, such as 255; without it as in training.
        class_values: the value of each class in the masks; without it as in training.
        crowd: ignore: objects of a COCO file with iscrowd=1 count for nothing; objects: they are
            objects.
        at_least: the smallest R², accuracy or mean IoU of a target, or the smallest AP.
        views: how images are predicted.
        words: the command line.
    """
    cli.refuse_unused("scores, which count boxes of all scores", words)
    least = dict(_asked(word) for word in at_least)
    if missing := [path for path in (images, *truth) if path is not None and not path.exists()]:
        raise DataError(
            f"{missing[0]} does not exist; check the name, which is relative to this folder"
        )
    named = _by_name(heads)
    from dinoneck.evaluation import evaluate as scored
    from dinoneck.tasks import columns_of

    models = {name: open_model(source, views, words)[0] for name, source in named.items()}
    every = [getattr(one, "tasks", ()) for one in models.values()]
    targets = {*_OF_ALL, *(own.name for tasks in every for own in (*tasks, *columns_of(tasks)))}
    if wrong := least.keys() - targets:
        raise ConfigError(
            f"--at-least names {min(wrong)!r}; expected one of {', '.join(sorted(targets))}"
        )
    known: Any = truth if len(truth) > 1 else truth[0]
    found = scored(
        models,
        images,
        known,
        group=group,
        image_column=image_column,
        labels=labels,
        subfolders=subfolders,
        nodata=nodata,
        class_values=class_values,
        crowd=crowd,
    )
    show_scores(found if len(models) > 1 else {**found, "verdict": None}, held_out=False)
    low = [line for target, value in least.items() for line in _too_low(found, target, value)]
    for line in low:
        show(line)
    return {"ok": not low, **found}


def _by_name(words: Sequence[str]) -> dict[str, str]:
    """The models of a command line: name in the tables -> its source.

    Raises:
        CheckpointError: if a head file does not exist, or is none.
        ConfigError: if a name or a source occurs twice, or some have a key and some have none.
    """
    by_key = _by_key(words)
    sources = [source for own in by_key.values() for source in own]
    if len({*sources}) < len(sources):
        raise ConfigError(f"--heads {' '.join(words)} names a head twice; give each once")
    if "" not in by_key:
        several = [key for key, own in by_key.items() if len(own) > 1]
        if several:
            raise ConfigError(
                f"--heads has the key {several[0]} twice, and each value is one model; give each a "
                "key of its own, and an ensemble as its file or folder"
            )
        return {key: source for key, [source] in by_key.items()}
    if len(sources) == 1:
        return {"head": sources[0]}
    return {source: source for source in sources}


def _asked(word: str) -> tuple[str, float]:
    target, _, value = word.rpartition("=")
    with suppress(ValueError):
        if target and math.isfinite(float(value)):
            return target, float(value)
    raise ConfigError(f"--at-least is {word!r}; expected TARGET=VALUE, such as crop=0.8 or AP=0.3")


def _too_low(found: dict[str, Any], target: str, least: float) -> list[str]:
    """A line for each model whose score of the target is below the least one."""
    objects = found.get("boxes", {}) | found.get("masks", {}) | found.get("segments", {})
    scores = {name: own[target] for name, own in objects.items() if target in own}
    for name, own in found.get("scores", {}).get(target, {}).items():
        scores[name] = next(
            own[key]["pooled"] for key in ("r2", "accuracy", "mean_iou") if key in own
        )
    if not scores:
        there = {*found.get("scores", {})}
        for object_scores in objects.values():
            there.update(object_scores)
        raise ConfigError(
            f"--at-least names {target!r}; expected one of {some_of(there, 8)}."
            f"{did_you_mean(target, there)}"
        )
    return [
        f"{target} of {name} is {x}, below {least:g}"
        for name, x in scores.items()
        if x is None or x < least
    ]
