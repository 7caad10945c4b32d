"""``dinoneck predict``: values in original units from images, with a picture of where they come from."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.atomic import write_text, write_whole
from dinoneck.cli import detect
from dinoneck.cli.arguments import HeadBackbone, Images, Views, check_output, list_images
from dinoneck.cli.text import show, show_drawn
from dinoneck.cli.train_text import describe_size
from dinoneck.errors import ConfigError, DataError, counted
from dinoneck.training.config_flags import SIZE

if TYPE_CHECKING:
    from dinoneck.inference.predictor import Predictor
    from dinoneck.tasks import Task

_PICTURES = 8
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


def _picture_name(words: list[str]) -> Path | Literal[True]:
    if len(words) > 1:
        raise ValueError(f"expected one name, or none, got {', '.join(words)}; images stand before the options")
    return Path(words[0]) if words else True


def _length(words: list[str]) -> int | float:
    value = int(words[0]) if words[0].isdecimal() else float(words[0])
    if not value >= 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"{words[0]!r}: expected pixels such as 64, or a share below 1 such as 0.25")
    return value


def _spec(nargs: Any, metavar: str, read: Any) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(nargs, metavar, read, lambda _: True, lambda value: [str(value)])


@dataclass(frozen=True)
class Tiles:
    """Images larger than those of training.

    Attributes:
        tile: cut images into tiles of this many pixels, resized to the size of the heads.
        overlap: of tiles, at least: 64 is pixels, 0.25 a share of the tile.
        tile_scale: factor of the images' height and width before they are cut.
    """

    tile: Annotated[tuple[int, int] | None, SIZE] = None
    overlap: Annotated[int | float, _spec(1, "PIXELS|SHARE", _length)] = 0
    tile_scale: float = 1.0


def predict(
    images: Images = (),
    *,
    heads: Annotated[tuple[tuple[str, ...], ...], arg(metavar="HEAD ..."), UseAppendAction],
    out: Path,
    store: Path | None = None,
    csv: Path | None = None,
    image_folder: Path | None = None,
    image_column: str = "image",
    maps: Annotated[Path | Literal[True] | None, _spec("*", "[PNG]", _picture_name)] = None,
    skip_unusable: bool = False,
    weights: tuple[float, ...] | None = None,
    reduce: Literal["mean", "median"] = "mean",
    tiles: Annotated[Tiles, arg(name="")] = Tiles(),
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Predict from images with trained heads; write a CSV, and pictures on request.

    Example: dinoneck predict images/ --heads run/heads --out predictions.csv --maps

    Args:
        images: images, or folders searched with their subfolders; before the options.
        heads: head files, folders of trainings or of head files, or Hub repositories (user/name), averaged; KEY=HEAD
            runs different heads next to each other.
        out: the CSV to write.
        store: a feature store whose tokens are used instead of images.
        csv: a CSV that names the images.
        image_folder: folder of the files in the CSV (default: that of the CSV).
        image_column: column of file names.
        maps: draw the first 8 images with their heat maps (default name: that of --out, with .png).
        skip_unusable: list and leave out unusable images.
        weights: one per head, in order (files of a folder by name).
        reduce: over heads of the same task.
        tiles: how larger images are cut.
        views: how images are predicted.
        backbone: where the weights come from.
    """
    picture = out.with_suffix(".png") if maps is True else maps
    if store is not None and (images or csv or image_folder or picture or skip_unusable):
        raise ConfigError("--store has tokens and no images; leave out images, --csv, --maps and --skip-unusable")
    names, files = _named(images, csv, image_folder, image_column) if store is None else ([], [])
    named_heads = _by_key([word for group in heads for word in group])
    _check([word for own in named_heads.values() for word in own], files, out, picture, [csv, backbone.backbone_file])
    read = read_heads(named_heads, views.revision)
    settings = {**asdict(tiles), "weights": weights, "reduce": reduce}
    if read.opened[0].head_type == "detector" and store is None:
        detect.check_options(views, settings)
        pairs = dict(zip(names, files, strict=True))
        return detect.predict(read.opened, pairs, out, picture, backbone, views, skip_unusable)
    predictor, commits = open_predictor(read, views, backbone, **settings)
    if store is not None:
        done = _predict_stored(predictor, store, out)
    else:
        done = _predict_images(predictor, dict(zip(names, files, strict=True)), out, picture, skip_unusable)
    return done | {"revisions": commits}


def _predict_images(
    predictor: Predictor, images: Mapping[str, Path], out: Path, picture: Path | None, skip: bool
) -> dict[str, Any]:
    """Write the predictions for images, given by their names in the output, and a picture of some."""
    names, files = [*images], [*images.values()]
    if not skip:
        _describe(predictor, files[0])
    unusable: dict[int, str] | None = {} if skip else None
    results, drawn = _results(predictor, files, _PICTURES if picture else 0, unusable)
    results, tasks = _flat(results, predictor.tasks)
    left_out = {names[place]: reason for place, reason in (unusable or {}).items()}
    named = {names[place]: result for place, result in results.items()}
    if picture and drawn:
        _draw(picture, {files[place]: results[place] for place in drawn}, predictor, tasks, len(named))
    _write(out, named, tasks)
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    written = [out, *([picture] if picture and drawn else [])]
    show(f"{counted(len(named), 'image')} predicted; written: {', '.join(map(str, written))}")
    return {"written": written, "unusable": left_out, **_for_programs(named, tasks)}


def _by_key(words: Sequence[str]) -> dict[str, list[str]]:
    """The heads of a command line by their keys; without keys all of them under the empty one.

    Raises:
        ConfigError: if some have a key and some have none.
    """
    keyed = [None if Path(word).exists() else _KEYED.fullmatch(word) for word in words]
    if None in keyed and any(keyed):
        raise ConfigError(f"--heads lists {' '.join(words)}; expected a key for every head (KEY=HEAD), or for none")
    named: dict[str, list[str]] = {}
    for word, match in zip(words, keyed, strict=True):
        key, source = match.groups() if match else ("", word)
        named.setdefault(key, []).append(source)
    return named


def read_heads(words: Mapping[str, Sequence[str]], revision: str | None) -> Heads:
    """Read and check heads that are named by their keys; the key of heads that are not in a mapping is empty."""
    from dinoneck.inference.sources import opened

    read = opened(words.get("", words), revision)
    return Heads([head for own in read.values() for head in own], read.get("", read))


def open_predictor(
    read: Heads, views: Views, backbone: HeadBackbone, **settings: Any
) -> tuple[Predictor, dict[str, str]]:
    """Return a predictor, and Hub repository -> commit; print what a user should know."""
    from dinoneck.devices import local_device
    from dinoneck.inference.predictor import Predictor

    if views.min_score is not None:
        raise ConfigError("--min-score is for detectors; leave it out")
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


def _predict_stored(predictor: Predictor, folder: Path, out: Path) -> dict[str, Any]:
    """Write the predictions for everything in a feature store."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(folder)
    results, tasks = _flat(dict(zip(store.ids, predictor.predict(store), strict=True)), predictor.tasks)
    _write(out, results, tasks)
    show(f"{counted(len(results), 'image')} predicted; written: {out}")
    return {"written": [out], **_for_programs(results, tasks)}


def _flat(results: Mapping[Any, dict[str, Any]], tasks: Any) -> tuple[dict[Any, dict[str, Any]], list[Task]]:
    """The results of a mapping of heads as those of one head, whose tasks are named ``key/task``."""
    if not isinstance(tasks, Mapping):
        return dict(results), [*tasks]
    names = {(key, task.name): f"{key}/{task.name}" for key, own in tasks.items() for task in own}
    flat: dict[Any, dict[str, Any]] = {}
    for image, rows in results.items():
        flat[image] = {name: rows[key][task] for (key, task), name in names.items()}
        if any("maps" in row for row in rows.values()):
            maps = {(key, task): x for key, row in rows.items() for task, x in row["maps"].items()}
            flat[image]["maps"] = {names[pair]: x for pair, x in maps.items()}
    renamed = []
    for key, own in tasks.items():
        for task in own:
            cells = None if task.from_cells is None else names[key, task.from_cells]
            are_names = hasattr(task, "parts_of") or (task.is_map and task.dim > 1)  # of columns
            labels = tuple(f"{key}/{label}" for label in task.labels) if are_names else task.labels
            renamed.append(replace(task, name=names[key, task.name], from_cells=cells, labels=labels))
    return flat, renamed


def _named(images: Sequence[Path], csv: Path | None, folder: Path | None, column: str) -> tuple[list[str], list[Path]]:
    """Names for the output and files to read."""
    if bool(images) == bool(csv):
        raise ConfigError("give either images (or folders of them), before the options, or --csv with their names")
    if csv is None:
        if folder is not None or column != "image":
            raise ConfigError("--image-folder and --image-column describe a CSV; name it with --csv, or leave them out")
        files = list_images(images)
        return [str(file) for file in files], files
    from dinoneck.data.tables import existing_files, read_cells

    names = list(dict.fromkeys(read_cells(csv, [column])[column]))
    return names, existing_files(names, folder or csv.parent, f"images named in {csv}")


def _check(heads: Sequence[str], files: Sequence[Path], out: Path, picture: Path | None, more: Sequence[Any]) -> None:
    """Refuse, before any work, an image among the heads, images that cannot be read or named, and wrong outputs."""
    from dinoneck.data.loading import SUFFIXES

    if wrong := [head for head in heads if Path(head).suffix.lower() in SUFFIXES]:
        raise ConfigError(f"--heads lists {wrong[0]}, which is an image; images stand before the options")
    if missing := [path for path in files if not path.exists()]:
        raise DataError(f"{len(missing)} of {len(files)} images or folders do not exist, the first is {missing[0]}")
    for path in files:
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"the name {str(path)!r} is not Unicode text, which --out holds; rename the file") from None
    check_output(out, [*files, *heads, *more], (".csv",))
    if picture is not None:
        check_output(picture, [*files, *heads, *more], (".png",), "--maps")


def _describe(predictor: Predictor, image: Path) -> None:
    """Print what an image is prepared to."""
    down, across = predictor.tiles(image)
    if down * across == 1:
        print("\n".join(describe_size(predictor.preprocess, image)))
    else:
        height, width = predictor.picture(image).shape[-2:]
        print(f"The first image becomes {height}x{width} px (height x width), cut into {down}x{across} tiles.")


def _results(
    predictor: Predictor, files: Sequence[Path], with_maps: int, unusable: dict[int, str] | None
) -> tuple[dict[int, dict[str, Any]], list[int]]:
    """Predictions by place, and the places of those with maps."""
    from dinoneck.inference.results import predict_many

    first = min(with_maps, len(files))
    options: dict[str, Any] = {"at_once": 4 * predictor.batch_size, "unusable": unusable}
    drawn = predict_many(partial(predictor, maps=True), files, range(first), **options)
    results = drawn | predict_many(predictor, files, range(first, len(files)), **options)
    if not results:
        raise DataError(f"none of the {len(files)} images can be used; the first: {(unusable or {})[0]}")
    return results, [*drawn]


def _write(out: Path, results: Results, tasks: Sequence[Task]) -> None:
    """Write the CSV, one row per image."""
    from dinoneck.data.cells import csv_text
    from dinoneck.inference.results import table_row

    rows = [table_row(result, tasks, image=name) for name, result in results.items()]
    write_text(out, csv_text([*rows[0]], [[*map(_text, row.values())] for row in rows]))


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _draw(
    picture: Path, results: Mapping[Path, Any], predictor: Predictor, tasks: Sequence[Task], predicted: int
) -> None:
    """Write the images next to their heat maps, and print how many of those predicted they are."""
    from dinoneck.viz.panels import prediction_panels

    buffer, images, names = io.BytesIO(), map(predictor.picture, results), [file.name for file in results]
    prediction_panels([*images], [*results.values()], tasks=tasks, names=names).save(buffer, "PNG")
    write_whole(picture, buffer.getvalue())
    show_drawn(picture, len(results), predicted)


def _for_programs(results: Results, tasks: Sequence[Task]) -> dict[str, Any]:
    """The tasks, and per image a number per task, or a list of them."""
    described = [{"name": t.name, "kind": t.kind, "unit": t.unit, "labels": list(t.labels)} for t in tasks]
    rows = []
    for image, result in results.items():
        values = {task.name: result[task.name] for task in tasks}
        plain = {name: value if isinstance(value, float) else value.tolist() for name, value in values.items()}
        rows.append({"image": image, "values": plain})
    return {"tasks": described, "predictions": rows}
