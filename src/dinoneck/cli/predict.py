"""``dinoneck predict``: values in original units, or boxes, from images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import UseAppendAction, arg

from dinoneck.atomic import write_text
from dinoneck.cli import arguments as cli
from dinoneck.cli.head_checks import check_files_alike, headers_of, tasks_of
from dinoneck.cli.text import save_picture, show, whole_folder
from dinoneck.cli.truth import (
    boxes_of,
    check_truths,
    known_values,
    one_truth,
    open_known_boxes,
)
from dinoneck.data.cells import DecimalMark, csv_text
from dinoneck.data.folders import Subfolders
from dinoneck.data.listing import SUFFIXES
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import is_installed
from dinoneck.kinds import Runtime, TileSize
from dinoneck.registry import DETECTORS
from dinoneck.runtime.names import check_backbone_runtime, is_exported
from dinoneck.text import counted, some_of
from dinoneck.training.config import TILE

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.detection import Detector
    from dinoneck.inference.predictor import Predictor
    from dinoneck.inference.tiles import Tiling
    from dinoneck.runtime.exported import ExportedDetector, ExportedPredictor
    from dinoneck.task_facts import TaskFacts
    from dinoneck.viz.geo_reference import GeoReference
    from dinoneck.viz.geojson import PlacedObjects

Predict = Callable[[list[Any]], list[dict[str, Any]]]
"""Images -> the predictions of each."""
Row = dict[str, Any]
"""Column -> value, of a line of the CSV."""
_KEY_AND_HEAD = re.compile(r"([A-Za-z][\w\-]*)=(.+)", re.DOTALL)
_BOX_COLUMNS: tuple[str, ...] = ("image", "name", "score", "x0", "y0", "x1", "y1")
_SCORE_DIGITS = 4
_BOX_DIGITS = 2  # of a pixel


def predict(
    images: cli.Images = (),
    *,
    heads: Annotated[tuple[tuple[str, ...], ...], arg(metavar="HEAD ..."), UseAppendAction],
    out: Path,
    store: Path | None = None,
    maps: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    overlay: Annotated[Path | None, arg(metavar="FOLDER")] = None,
    geojson: Annotated[Path | None, arg(metavar="FILE")] = None,
    truth: Annotated[tuple[Path, ...], arg(metavar="CSV|FOLDER|JSON ...")] = (),
    image_column: str = "image",
    subfolders: Literal["classes", "folds"] | None = None,
    decimal: Literal[".", ","] | None = None,
    skip_unusable: bool = False,
    tile: Annotated[tuple[int, int] | Literal["auto"] | None, TILE] = "auto",
    overlap: Annotated[int | None, cli.whole(0)] = None,
    interval: float | None = None,
    options: Annotated[cli.PredictionOptions, arg(name="")] = cli.PredictionOptions(),
    words: cli.Words = (),
) -> dict[str, Any]:
    """Predict from images with trained heads; write a CSV, and pictures on request.

    Example: dinoneck predict images/ --heads run --out predictions.csv --overlay pictures

    Args:
        images: images, or folders searched with their subfolders; before the options.
        heads: head files, folders of trainings or of head files, published heads, or Hub
            repositories (user/name), averaged; KEY=HEAD runs different heads next to each other. Or
            one file of 'dinoneck export' (.onnx), which needs no torch.
        out: the CSV to write.
        store: a feature store whose tokens are used instead of images.
        maps: a new folder for the maps of every image, in its own pixels: classes as PNG, values as
            TIFF.
        overlay: a new folder for pictures: what is predicted, or boxes, over every image.
        geojson: a file for the boxes or objects of GeoTIFF images, as polygons in their coordinate
            system; it needs the extra geo.
        truth: with overlay: known values, drawn next to predictions: CSV with a column of file
            names and the predictions' names, a folder of masks, the class folders that hold the
            images, or a COCO file of a detector's boxes; or a CSV and a folder of masks.
        image_column: column of file names in --truth.
        subfolders: with a folder as truth: whether the folders in it are classes or folds.
        decimal: with a CSV as truth: the decimal mark of its numbers; without it a point, or in a file
            separated by ; the one that all its numbers have.
        skip_unusable: list and leave out unusable images.
        tile: cut images into tiles of this many pixels, resized to the size of the heads or the
            detector; none: leave them whole (default: the tiles of training, for a detector or a
            head of objects, if it has any).
        overlap: smallest number of pixels that neighbouring tiles share (default: 0, for objects a
            fifth of the tile, or the longest box of the training up to half a tile).
        interval: the level of the columns 'NAME low' and 'NAME high' of heads that hold intervals:
            0.5, 0.8, 0.9 or 0.95; without it 0.9, or the highest that they hold.
        options: how images are predicted.
        words: the command line.
    """
    # what is wrong is refused before torch is imported
    _check_sources(heads, images, store, words)
    files = cli.list_images(images, skip_unusable=skip_unusable) if images else []
    file_by_name = {str(file): file for file in files}
    named_heads = _read_fitting_heads(
        list(chain.from_iterable(heads)),
        options,
        truth=truth,
        interval=interval,
        words=words,
    )
    inputs: list[str | Path | None] = [*files, *list_heads(named_heads)]
    inputs += [options.weights, options.backbone_file, *truth]
    cli.check_output(out, inputs, (".csv",))
    references: Mapping[Path, GeoReference] = {}
    if geojson is not None:
        cli.check_output(geojson, inputs, (".geojson", ".json"), option="--geojson")
        from dinoneck.viz.geojson import read_references

        references = read_references(files, skip_unusable=skip_unusable)
    output_paths = _output_paths(file_by_name, images, {"--maps": maps, "--overlay": overlay})
    if overlay is None:
        cli.refuse_unused(cli.PREDICT_WITHOUT_OVERLAY, words)
    if not truth:
        cli.refuse_unused(cli.PREDICT_WITHOUT_TRUTH, words)
    check_truths(truth, image_column, decimal)

    # open
    opened = open_model(
        named_heads, options, words, maps=bool(output_paths), tile=tile, overlap=overlap
    )
    level = _interval_level(opened, interval)
    _check_asked_outputs(opened, maps=maps, overlay=overlay, geojson=geojson)
    known: Mapping[Path, Mapping[str, Any]] = {}
    if truth:
        known = _read_truth(
            truth,
            opened,
            images,
            list(file_by_name.values()),
            image_column=image_column,
            subfolders=subfolders,
            decimal=decimal,
        )

    # predict
    opened.model.expect_images(len(file_by_name))
    left_out: dict[str, str] = {}
    with whole_folder(maps) as new_maps, whole_folder(overlay) as new_overlay:
        if store is not None:
            results = _predict_store(store, opened.model)
        elif new_maps is not None:
            writer = _MapWriter(
                new_maps,
                name=str(maps),
                opened=opened,
                output_paths={file_by_name[name]: path for name, path in output_paths.items()},
                keeps_maps=overlay is not None,
            )
            results, left_out = predict_named(
                opened.model.predictions, file_by_name, skip_unusable, finish=writer.write
            )
        else:
            results, left_out = predict_named(opened.predict, file_by_name, skip_unusable)
        if new_overlay is not None:
            predicted_files = []
            for name, result in results.items():
                file = _PredictedFile(file_by_name[name], output_paths[name], result)
                predicted_files.append(file)
            _draw(new_overlay, opened, predicted_files, known, level)

    # write
    rows = _rows(results, opened, level)
    columns: tuple[str, ...] = _BOX_COLUMNS  # where there are no rows; heads have one per image
    if rows:
        columns = tuple(rows[0])
    write_text(out, csv_text(columns, [_csv_cells(row) for row in rows]))
    if geojson is not None:
        from dinoneck.viz.geojson import feature_collection

        placed = _placed_objects(results, file_by_name, references, opened)
        write_text(geojson, json.dumps(feature_collection(placed)))
    document = _document(results, rows, opened, level)
    written = [path for path in (out, maps, overlay, geojson) if path is not None]
    left_out_intervals = _intervals_left_out(opened, level, tile)
    if left_out_intervals:
        show(left_out_intervals)
    show(
        f"{counted(len(results), 'image')} predicted{_how_predicted(opened, level)}; written: "
        f"{', '.join(map(str, written))}"
    )
    revisions = {} if opened.is_detector else opened.model.revisions
    return {**document, "written": written, "unusable": left_out, "revisions": revisions}


def _check_sources(
    heads: Sequence[Sequence[str]],
    images: Sequence[Path],
    store: Path | None,
    words: Sequence[str],
) -> None:
    """Raise a ConfigError unless there are heads, and images or a store."""
    if not heads:
        raise ConfigError(
            "--heads is missing; name what predicts (--heads run), and images before the options or "
            "a store of their tokens (--store)"
        )
    if images and store is not None:
        raise ConfigError(
            f"{images[0]} and --store {store} are both given; predict from images or from a store"
        )
    if not images and store is None:
        raise ConfigError(f"{cli.NO_IMAGES}, or pass --store")
    if store is not None:
        cli.refuse_unused(cli.PREDICT_FROM_STORE, words)


def _read_fitting_heads(
    head_words: Sequence[str],
    options: cli.PredictionOptions,
    *,
    truth: Sequence[Path],
    interval: float | None,
    words: Sequence[str],
) -> list[str] | dict[str, list[str]]:
    """Read the heads of a command line; check that they go together and with the options.

    Args:
        head_words: of ``--heads``.
        options: how images are predicted.
        truth: of ``--truth``.
        interval: of ``--interval``.
        words: the command line.

    Raises:
        CheckpointError: if a file cannot be read, or averaged heads differ.
        ConfigError: for an exported file or a detector among others, or an option without effect.
    """
    has_weights = options.weights is not None
    named_heads = read_heads(head_words, has_weights=has_weights)
    exported_file = _exported_file(named_heads)
    if exported_file is not None:
        if truth:
            names = " ".join(map(str, truth))
            raise ConfigError(
                f"--truth {names} is drawn next to predictions of head files, and {exported_file} is "
                "an exported file; leave it out, or name the head file. 'dinoneck evaluate' scores "
                "exported files"
            )
        cli.refuse_unused(cli.PREDICT_WITH_FILE, words)
    _check_detector_is_alone(list_heads(named_heads), has_weights=has_weights)
    if interval is not None:
        _check_stored_level(list_heads(named_heads), interval, has_weights=has_weights)
    if not has_weights:  # the heads are on this disk under their names
        for averaged_heads in _lists_of_heads(named_heads):
            check_files_alike(averaged_heads, compare_views=options.tta is None)
    return named_heads


def _check_asked_outputs(
    opened: OpenModel, *, maps: Path | None, overlay: Path | None, geojson: Path | None
) -> None:
    """Raise a ConfigError if the model has not what a file is asked for, or nothing for the CSV alone."""
    if maps is not None and opened.are_of_objects:
        raise _no_maps(str(maps))
    if geojson is not None and not opened.has_objects:
        raise ConfigError(
            f"--geojson {geojson}: these heads predict no objects; leave --geojson out (--maps has maps)"
        )
    if opened.has_maps_alone and maps is None and overlay is None:
        raise ConfigError(
            f"the heads predict surface normals ({opened.tasks[0].name}), which have no number for an "
            "image; name a folder for their maps (--maps FOLDER) or pictures (--overlay FOLDER)"
        )


def _rows(results: Mapping[str, Any], opened: OpenModel, level: float | None) -> list[Row]:
    """The rows of the CSV: one per box of a detector, one per image of heads."""
    if opened.is_detector:
        return _box_rows(results)
    return _value_rows(results, opened.groups, level)


def _document(
    results: Mapping[str, Any], rows: list[Row], opened: OpenModel, level: float | None
) -> dict[str, Any]:
    """The predictions for ``--json``: the rows of the CSV, to which masks of objects are added."""
    document: dict[str, Any] = {}
    if not opened.is_detector:
        document["tasks"] = _describe_tasks(opened.groups)
    if level is not None:
        document["interval"] = level
    try:
        if opened.is_detector:
            _add_masks(rows, results)
        else:
            _add_objects(rows, results, opened.groups)
    except ImportError as error:
        show(f"--json lacks the objects: {error}")
    document["predictions"] = rows
    return document


def _how_predicted(opened: OpenModel, level: float | None) -> str:
    """A clause on the views that are averaged and on the intervals; empty without both."""
    from dinoneck.runtime.intervals import describe_groups

    views = ""
    if not opened.is_detector and opened.model.tta != "none":
        views = f", the mean of the views {opened.model.tta}"
    intervals = ""
    if level is not None:
        groups = describe_groups(opened.tasks, level)
        intervals = f", with intervals of {100 * level:g} % {groups}"
    return views + intervals


def _predict_store(path: Path, model: Any) -> dict[str, Any]:
    """Id -> predictions from stored tokens."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    return dict(zip(store.ids, model.predict(store), strict=True))


class HeadGroup(NamedTuple):
    """Heads whose predictions are averaged: those of one key, or all of a command line without keys.

    Attributes:
        key: None: the command line has no keys.
        tasks: what they predict.
    """

    key: str | None
    tasks: Sequence[TaskFacts]

    @property
    def predictor_key(self) -> str:
        """What the methods of a Predictor take as ``key``."""
        return "" if self.key is None else self.key

    def select(self, result: Any) -> Any:
        """Return what these heads predict from an image, of what the Predictor returns for it."""
        if self.key is None:
            return result
        return result[self.key]

    def column(self, name: str) -> str:
        """Return what one of their columns is called."""
        return name if self.key is None else f"{self.key}/{name}"

    def subfolder(self, folder: Path) -> Path:
        """Return where their pictures go in a folder of outputs."""
        return folder if self.key is None else folder / self.key


class OpenModel(NamedTuple):
    """The heads of a command line, or its detector.

    Attributes:
        model: a Detector or a Predictor, or an exported file of one.
        is_detector: which of them it is.
        groups: the heads of the Predictor; empty for a Detector.
        predict: predicts a list of images with the options of the command line.
        checkpoints: the head files; none of an exported file.
    """

    model: Any
    is_detector: bool
    groups: Sequence[HeadGroup]
    predict: Predict
    checkpoints: list[HeadCheckpoint]

    @property
    def tasks(self) -> tuple[TaskFacts, ...]:
        """The tasks of all heads; none of a detector."""
        return tuple(chain.from_iterable(group.tasks for group in self.groups))

    @property
    def are_of_objects(self) -> bool:
        """Whether all are heads of objects, which have no maps."""
        return not self.is_detector and all(task.is_masks for task in self.tasks)

    @property
    def has_objects(self) -> bool:
        """Whether boxes or objects are predicted."""
        return self.is_detector or any(task.is_masks for task in self.tasks)

    @property
    def has_maps_alone(self) -> bool:
        """Whether all are heads of surface normals, of which an image has no number."""
        return bool(self.tasks) and all(task.is_unit for task in self.tasks)

    def row(self, prediction: Any, with_maps: bool) -> dict[str, Any]:
        """Return what calling the Predictor returns, of its ``predictions``; on request with maps per patch."""
        rows: dict[str, Any] = {}
        for group in self.groups:
            row = group.select(prediction).row(maps="patch" if with_maps else None)
            if group.key is None:
                return dict(row)
            rows[group.key] = row
        return rows


def open_model(
    heads: str | Sequence[str] | Mapping[str, Sequence[str]],
    options: cli.PredictionOptions,
    words: Sequence[str],
    maps: bool = False,
    tile: TileSize = "auto",
    overlap: int | None = None,
) -> OpenModel:
    """Open heads, or the one detector.

    Args:
        heads: names of files, folders, repositories or published heads, or a mapping of keys to
            them.
        options: how images are predicted.
        words: the command line, whose options have to have an effect.
        maps: whether predictions hold the maps of heads.
        tile: the tiles that images are cut into, see :data:`dinoneck.kinds.TileSize`.
        overlap: pixels that tiles share.

    Raises:
        ConfigError: for several detectors, and for options without effect.
        CheckpointError: if a file cannot be read, or the heads do not belong together.
    """
    file = _exported_file(heads)
    if file is not None:
        return _open_file(file, options, words, maps=maps)
    from dinoneck.devices import local_device
    from dinoneck.dtypes import WEIGHT_DTYPES, finer_dtype
    from dinoneck.inference.sources import names_detector, open_heads

    if names_detector(heads, has_weights=options.weights is not None):  # before its file is fetched
        cli.refuse_unused(cli.PREDICT_WITH_DETECTOR, words)
        options.refuse_with_own_vit()
    checkpoints_by_key: Any = open_heads(heads, options.revision, options.weights)
    checkpoints = list(chain.from_iterable(checkpoints_by_key.values()))
    first = checkpoints[0]
    is_detector = first.head_type in DETECTORS
    if is_detector:
        cli.refuse_unused(cli.PREDICT_WITH_DETECTOR, words)
    else:
        cli.refuse_unused(cli.PREDICT_WITH_HEADS, words)
    dtype = None if options.precision is None else WEIGHT_DTYPES[options.precision]
    names_backbone = bool(options.backbone_file) or options.random_backbone
    precision = None
    if names_backbone and finer_dtype(dtype, first.meta["backbone"]) is not None:
        precision = options.precision  # else the weights are rounded to that of the record
    backbone = options.load_backbone(first, precision)
    runtime = check_backbone_runtime(options.runtime or cli.default_runtime())
    if is_detector:
        detector = _open_detector(first, backbone, options, runtime=runtime)
        detector.use_tiles(tile, overlap)
        if tile == "auto" and detector.tiling is not None:
            _say_tiles(detector.tiling)
        return OpenModel(
            detector,
            is_detector=True,
            groups=(),
            predict=partial(detector.predict, batch_size=options.batch_size),
            checkpoints=checkpoints,
        )
    from dinoneck.inference.predictor import Predictor

    has_keys = isinstance(heads, Mapping)
    predictor = Predictor(
        checkpoints_by_key if has_keys else checkpoints,
        backbone,
        options.tta,
        local_device(options.device),
        batch_size=options.batch_size,
        probe=options.probe,
        bits=options.bits,
        runtime=runtime,
        dtype=dtype,
        tile=tile,
        overlap=overlap,
    )
    if tile == "auto":
        for tiling in dict.fromkeys(each.tiling for each in predictor.passes):
            if tiling is not None:
                _say_tiles(tiling)
    if has_keys:
        groups = [HeadGroup(key, tasks) for key, tasks in predictor.tasks.items()]
    else:
        groups = [HeadGroup(None, predictor.tasks)]
    return OpenModel(
        predictor,
        is_detector=False,
        groups=groups,
        predict=partial(predictor, maps="patch" if maps else None),
        checkpoints=checkpoints,
    )


def _say_tiles(tiling: Tiling) -> None:
    """Name the tiles of a training, which images are cut into."""
    height, width = tiling.tile
    print(
        f"Images are cut into tiles of {height}x{width} px, as in the training; --tile takes others, "
        "or none."
    )


def _exported_file(heads: str | Sequence[str] | Mapping[str, Sequence[str]]) -> str | None:
    """The exported file that a command line names alone; None for other heads.

    Raises:
        ConfigError: for such a file with a key, or among other heads.
    """
    names = [heads] if isinstance(heads, str) else list(heads)
    if isinstance(heads, Mapping):
        names = list(chain.from_iterable(heads.values()))
    files = [name for name in names if is_exported(name)]
    if not files:
        return None
    if isinstance(heads, Mapping) or len(names) > 1:
        raise ConfigError(
            f"--heads lists {files[0]}, an exported file, which predicts alone: name it without a "
            "key and without other heads, or name the head files"
        )
    return files[0]


def _open_file(
    file: str, options: cli.PredictionOptions, words: Sequence[str], *, maps: bool
) -> OpenModel:
    """Open an exported file; torch is not imported before objects are decoded."""
    cli.refuse_unused(cli.EVALUATE_FILE, words)
    from dinoneck.runtime.exported import ExportedDetector, open_exported

    model = open_exported(
        file,
        options.runtime,
        batch_size=options.batch_size,
        bits=options.bits,
        min_score=options.min_score,
        decode_objects=_decode_objects if is_installed("torch") else None,
    )
    if isinstance(model, ExportedDetector):
        cli.refuse_unused(cli.PREDICT_WITH_EXPORTED_DETECTOR, words)
        if maps:
            cli.refuse_unused(cli.RunKind("a detector", unused=("--maps",)), words)
        return OpenModel(model, is_detector=True, groups=(), predict=model.predict, checkpoints=[])
    return OpenModel(
        model,
        is_detector=False,
        groups=[HeadGroup(None, model.tasks)],
        predict=partial(model, maps="patch" if maps else None),
        checkpoints=[],
    )


def _decode_objects(*args: Any, **options: Any) -> Any:
    """Call :func:`dinoneck.inference.resolution.objects_from_outputs`, which imports torch."""
    from dinoneck.inference.resolution import objects_from_outputs

    return objects_from_outputs(*args, **options)


def _open_detector(
    checkpoint: HeadCheckpoint,
    backbone: Backbone | None,
    options: cli.PredictionOptions,
    *,
    runtime: Runtime,
) -> Detector:
    """The detector of a file, on the device and with the smallest score that are asked for."""
    from dinoneck.detection import Detector
    from dinoneck.devices import local_device

    detector = Detector.from_checkpoint(
        checkpoint, backbone, local_device(options.device), runtime=runtime
    )
    if options.min_score is not None:
        detector.min_score = options.min_score
    detector.preprocess = detector.preprocess.changed(bits=options.bits)
    return detector


def predict_named(
    predict: Predict,
    images: Mapping[str, Any],
    skip_unusable: bool,
    finish: Callable[[Path, Any], dict[str, Any]] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return name -> predictions of images, and name -> reason of those that are left out.

    Args:
        predict: predicts a list of images.
        images: name -> image.
        skip_unusable: leave out images that cannot be used.
        finish: as for :func:`dinoneck.inference.results.predict_many`.
    """
    from dinoneck.inference.results import predict_many

    names = list(images)
    reasons: dict[int, str] = {}
    predictions = predict_many(
        predict,
        list(images.values()),
        unusable=reasons if skip_unusable else None,
        finish=finish,
    )
    if not predictions:
        raise DataError(f"none of the {len(names)} images can be used; the first: {reasons[0]}")
    left_out = {names[i]: reason for i, reason in reasons.items()}
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    return {names[i]: predictions[i] for i in sorted(predictions)}, left_out


def _read_truth(
    truths: Sequence[Path],
    opened: OpenModel,
    images: Sequence[Path],
    files: Sequence[Path],
    *,
    image_column: str,
    subfolders: Subfolders | None,
    decimal: DecimalMark | None,
) -> Mapping[Path, Mapping[str, Any]]:
    """Image file -> what truths say of it: column -> value, or the boxes of a detector.

    Raises:
        ConfigError: for heads with keys.
        DataError: if a truth cannot be read, or has nothing of the images.
    """
    if opened.is_detector:
        return _known_boxes(one_truth(truths), opened, images, files)
    if any(group.key is not None for group in opened.groups):
        names = " ".join(map(str, truths))
        raise ConfigError(
            f"--truth {names} is for heads without keys; leave it out, or run one key at a time"
        )
    known = known_values(
        truths,
        images,
        files,
        opened.model,
        image_column=image_column,
        subfolders=subfolders,
        decimal=decimal,
    )
    return known.values


def _known_boxes(
    truth: Path, opened: OpenModel, images: Sequence[Path], files: Sequence[Path]
) -> dict[Path, dict[str, Any]]:
    """Image file -> its boxes in a COCO file.

    Raises:
        DataError: if it has none of the images.
    """
    box_images = open_known_boxes(truth, images, opened.model)
    file_of_path = {file.resolve(): file for file in files}
    known = {}
    for index, path in enumerate(box_images.paths):
        file = file_of_path.get(path.resolve())
        if file is not None:
            known[file] = boxes_of(box_images, index, opened.model.classes)
    if not known:
        raise DataError(f"{truth} holds none of the images, such as {some_of(map(str, files), 3)}")
    return known


class _PredictedFile(NamedTuple):
    """What is predicted from an image file.

    Attributes:
        file: the image.
        output_path: where its pictures go below a folder, without suffix.
        result: of the Predictor, of the Detector, or of the heads of one key.
    """

    file: Path
    output_path: Path
    result: Any


class _MapWriter:
    """Writes the maps of every image as soon as it is predicted, since maps of many images take much memory.

    Args:
        folder: for the maps.
        name: what the command line calls it.
        opened: the heads.
        output_paths: image -> where its maps go below the folder, without suffix.
        keeps_maps: whether results have maps per patch, which are drawn later.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        opened: OpenModel,
        output_paths: Mapping[Path, Path],
        keeps_maps: bool,
    ) -> None:
        self.folder = folder
        self.name = name
        self.opened = opened
        self.output_paths = output_paths
        self.keeps_maps = keeps_maps

    def write(self, file: Path, prediction: Any) -> dict[str, Any]:
        """Write the maps of an image, and return its result.

        Args:
            file: the image.
            prediction: of ``Predictor.predictions``, which makes the maps in the pixels of the
                image.

        Raises:
            ConfigError: if the heads have no maps, which the first image shows.
        """
        from dinoneck.viz.overlay import write_maps

        written: list[Path] = []
        for group in self.opened.groups:
            of_group = group.select(prediction)
            written += write_maps(
                group.subfolder(self.folder),
                str(self.output_paths[file]),
                of_group.image_maps(),
                group.tasks,
                file,
                gate=of_group.image_gate(),
            )
        if not written:
            raise _no_maps(self.name)
        return self.opened.row(prediction, self.keeps_maps)


def _no_maps(folder: str) -> ConfigError:
    """The error for heads without maps, which are asked for."""
    return ConfigError(
        f"--maps {folder}: these heads have no maps; leave --maps out (--json has objects)"
    )


def _draw(
    folder: Path,
    opened: OpenModel,
    predicted_files: Sequence[_PredictedFile],
    known: Mapping[Path, Mapping[str, Any]],
    level: float | None,
) -> None:
    """Draw the pictures of images into a folder, with the intervals of a level."""
    if opened.is_detector:
        _draw_boxes(folder, opened.model, predicted_files, known)
        return
    for group in opened.groups:
        group_files = []
        for predicted in predicted_files:
            result = group.select(predicted.result) | _intervals_of(group, predicted.result, level)
            group_files.append(predicted._replace(result=result))
        _draw_values(folder, opened.model, group, group_files, known)


def _draw_values(
    folder: Path,
    predictor: Predictor | ExportedPredictor,
    group: HeadGroup,
    predicted_files: Sequence[_PredictedFile],
    known: Mapping[Path, Mapping[str, Any]],
) -> None:
    """Draw what a group of heads predicts over every image: their objects, or numbers and maps."""
    from dinoneck.viz.objects import objects_of
    from dinoneck.viz.overlay import overlay_panel
    from dinoneck.viz.pictures import as_image, boxes_panel
    from dinoneck.viz.scales import THE_GATE, outputs, scales, with_gate

    tasks = list(group.tasks)
    objects = next((task for task in tasks if task.is_masks), None)
    results = [with_gate(predicted.result, str(predicted.file)) for predicted in predicted_files]
    if any(THE_GATE.name in result["maps"] for result in results):
        tasks.append(THE_GATE)
    scale = scales(outputs(tasks), results)
    for predicted, result in zip(predicted_files, results, strict=True):
        file = predicted.file
        if objects is not None:
            found = objects_of(result[objects.name], objects)
            image = as_image(file, predictor.preprocess.bits)
            picture = boxes_panel(image, found._asdict(), classes=objects.labels)
        else:
            picture = overlay_panel(
                file,
                result,
                tasks,
                predictor.recipe(file, group.predictor_key),
                known=known.get(file),
                scale=scale,
            )
        save_picture(group.subfolder(folder) / f"{predicted.output_path}.jpg", picture)


def _draw_boxes(
    folder: Path,
    detector: Detector | ExportedDetector,
    predicted_files: Sequence[_PredictedFile],
    known: Mapping[Path, Mapping[str, Any]],
) -> None:
    """Draw the boxes of a detector, and known ones, over every image."""
    from dinoneck.viz.pictures import as_image, boxes_panel

    for predicted in predicted_files:
        image = as_image(predicted.file, detector.preprocess.bits)
        picture = boxes_panel(
            image, predicted.result, known.get(predicted.file), classes=detector.classes
        )
        save_picture(folder / f"{predicted.output_path}.jpg", picture)


def _output_paths(
    file_by_name: Mapping[str, Path], images: Sequence[Path], folders: Mapping[str, Path | None]
) -> dict[str, Path]:
    """Return name -> where the files of an image go in the folders of outputs.

    That is its path below the folder that all images share, without suffix.

    Args:
        file_by_name: the images.
        images: images and folders as they are named.
        folders: option -> folder; nothing is returned if all are None.

    Raises:
        ConfigError: if a folder is a file, holds files, or is inside a folder of images or the
            other one.
        DataError: if the files of two images would have one name.
    """
    named_folders = {option: folder for option, folder in folders.items() if folder is not None}
    if not named_folders:
        return {}
    for option, folder in named_folders.items():
        cli.check_can_be_written(option, folder)
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{option} {folder} holds files; name a new folder")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{option} {folder} is a file; name a new folder")
        for path in images:
            if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise ConfigError(
                    f"{option} {folder} is inside {path}, whose files are images; name another "
                    "place"
                )
    for option, other_option in permutations(named_folders, 2):
        folder = named_folders[option]
        other_folder = named_folders[other_option]
        if folder.resolve().is_relative_to(other_folder.resolve()):
            raise ConfigError(
                f"{option} {folder} is the folder of {other_option} {other_folder}, or inside of it; "
                "expected two folders, one next to the other: name another place"
            )
    names = cli.names_below(list(file_by_name.values()))
    output_paths = [Path(name).with_suffix("") for name in names]
    for output_path, count in Counter(output_paths).items():
        if count > 1:
            raise DataError(
                f"images called {output_path} differ in their suffix only; predict them one after the "
                "other"
            )
    return dict(zip(file_by_name, output_paths, strict=True))


def read_heads(
    words: Sequence[str], *, has_weights: bool = False
) -> list[str] | dict[str, list[str]]:
    """Return the heads of a command line: a list where none has a key, else key -> heads.

    Args:
        words: of ``--heads``.
        has_weights: whether the file of a published head among them is named.

    Raises:
        CheckpointError: as :func:`dinoneck.cli.head_checks.headers_of`.
        ConfigError: if one is an image, or some have a key and some have none.
    """
    heads_without_key: list[str] = []
    heads_by_key: dict[str, list[str]] = {}
    for word in words:
        key, head = _split_key(word)
        if Path(head).suffix.lower() in SUFFIXES:
            raise ConfigError(
                f"--heads lists {head}, which is an image; images stand before the options"
            )
        # missing and other files are refused before torch is imported
        headers_of(head, has_weights=has_weights)
        if key is None:
            heads_without_key.append(head)
        else:
            heads_by_key.setdefault(key, []).append(head)
    if heads_without_key and heads_by_key:
        raise ConfigError(
            f"--heads lists {' '.join(words)}; expected a key for every head (KEY=HEAD), or for "
            "none"
        )
    if heads_without_key:
        return heads_without_key
    return heads_by_key


def _check_detector_is_alone(heads: Sequence[str], *, has_weights: bool) -> None:
    """Raise a ConfigError for a detector among several heads, of those that are on this disk."""
    head_types: list[str] = []
    for head in heads:
        for header in headers_of(head, has_weights=has_weights):
            head_types.append(header.meta["head_type"])
    if len(head_types) > 1 and not DETECTORS.isdisjoint(head_types):
        raise ConfigError(
            f"{len(head_types)} heads are given, a detector among them; expected a detector alone, "
            "or none"
        )


def _check_stored_level(heads: Sequence[str], level: float, *, has_weights: bool) -> None:
    """Raise a ConfigError for a level of intervals that no head file holds, if all are on this disk.

    Whether the files of an ensemble agree shows when they are loaded.
    """
    from dinoneck.runtime.intervals import check_level

    tasks: list[TaskFacts] = []
    for head in heads:
        headers = headers_of(head, has_weights=has_weights)
        if not headers:
            return
        for header in headers:
            if header.meta["head_type"] in DETECTORS:
                raise _no_interval_of_boxes(level)
            tasks += tasks_of(header)
    check_level(tasks, level, "the head")


def _no_interval_of_boxes(level: float) -> ConfigError:
    return ConfigError(
        f"--interval {level:g} is for numbers and classes, and a detector predicts boxes; leave it out"
    )


def _split_key(word: str) -> tuple[str | None, str]:
    """The key and the head of KEY=HEAD; no key for the name of a file that exists, whatever it holds."""
    match = _KEY_AND_HEAD.fullmatch(word)
    if match is None or Path(word).exists():
        return None, word
    key, head = match.groups()
    return key, head


def _lists_of_heads(heads: list[str] | dict[str, list[str]]) -> list[list[str]]:
    """The heads whose predictions are averaged: those of each key, or all where there are no keys."""
    return list(heads.values()) if isinstance(heads, dict) else [heads]


def list_heads(heads: list[str] | dict[str, list[str]]) -> list[str]:
    """Return all heads of a command line, as :func:`read_heads` returns them, in one list."""
    if isinstance(heads, dict):
        return list(chain.from_iterable(heads.values()))
    return heads


def _box_rows(results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """A row per box."""
    rows = []
    for image, result in results.items():
        scores = result["scores"].tolist()
        boxes = result["boxes"].tolist()
        for name, score, box in zip(result["names"], scores, boxes, strict=True):
            sides = [round(side, _BOX_DIGITS) for side in box]
            cells = [image, name, round(score, _SCORE_DIGITS), *sides]
            rows.append(dict(zip(_BOX_COLUMNS, cells, strict=True)))
    return rows


def _add_masks(rows: Sequence[Row], results: Mapping[str, Any]) -> None:
    """Add the mask of every box to its row, as COCO's run lengths, where there are masks."""
    from dinoneck.inference.results import coco_objects

    records = []
    for result in results.values():
        if "masks" in result:
            records += coco_objects(result)
    for row, record in zip(rows, records, strict=False):  # of a model for boxes there are none
        row["segmentation"] = record["segmentation"]


def _placed_objects(
    results: Mapping[str, Any],
    files: Mapping[str, Path],
    references: Mapping[Path, GeoReference],
    opened: OpenModel,
) -> list[PlacedObjects]:
    """The boxes or objects of every image, with where its pixels lie."""
    from dinoneck.viz.geojson import PlacedObjects

    placed = []
    for image, result in results.items():
        reference = references[files[image]]
        if opened.is_detector:
            placed.append(PlacedObjects(image, reference, result, opened.model.classes))
        for group in opened.groups:
            properties = {} if group.key is None else {"head": group.key}
            for task in group.tasks:
                if task.is_masks:
                    objects = group.select(result)[task.name]
                    placed.append(PlacedObjects(image, reference, objects, task.labels, properties))
    return placed


def _interval_level(opened: OpenModel, interval: float | None) -> float | None:
    """The level of the intervals in the CSV; None for heads that hold none.

    Raises:
        ConfigError: for a level that the heads do not hold.
    """
    from dinoneck.runtime.intervals import check_level, default_level

    if interval is None:
        return default_level(opened.tasks)
    if opened.is_detector:
        raise _no_interval_of_boxes(interval)
    check_level(opened.tasks, interval, "the head")
    return interval


def _intervals_left_out(opened: OpenModel, level: float | None, tile: TileSize) -> str:
    """A sentence on the intervals in head files that the CSV lacks; empty without such."""
    if opened.is_detector:
        return ""
    if isinstance(tile, tuple):
        has_intervals = any(task.interval for file in opened.checkpoints for task in file.tasks)
        if has_intervals:
            return "Without intervals, which hold for images like those of the training, not for tiles."
        return ""
    of_other_views = _tasks_with_intervals_of_other_views(opened)
    if of_other_views:
        return (
            f"Without intervals of {', '.join(of_other_views)}, which are of predictions from the views "
            "that the file names: leave --tta out to have them."
        )
    of_different_heads = _tasks_of_different_intervals(opened)
    if of_different_heads:
        return (
            f"Without intervals of {', '.join(of_different_heads)}: those of the heads that are averaged "
            "differ, and do not hold for the mean."
        )
    names = []
    levels: set[float] = set()
    for task in opened.tasks:
        if task.interval_levels and level not in task.interval_levels:
            names.append(task.name)
            levels.update(task.interval_levels)
    if not names:
        return ""
    if level is None:
        return "Without intervals, as a target is called 'interval' or 'set' like their entries in rows."
    shown_levels = " or ".join(f"{x:g}" for x in sorted(levels))
    return (
        f"Without intervals of {', '.join(names)}, of which the heads hold none of {100 * level:g} %; "
        f"--interval {shown_levels} writes those that they hold."
    )


def _tasks_with_intervals_of_other_views(opened: OpenModel) -> list[str]:
    """The names of tasks whose intervals do not hold for the views that predict them, each once."""
    if not opened.checkpoints:  # an exported file, which is read without torch
        return []
    from dinoneck.heads.ensemble import has_intervals_of_other_views

    names: dict[str, None] = {}
    for its_pass in opened.model.passes:
        for loaded_head in its_pass.heads.values():
            for task in loaded_head.head.predicted:
                if has_intervals_of_other_views(task, its_pass.tta):
                    names[task.name] = None
    return list(names)


def _tasks_of_different_intervals(opened: OpenModel) -> list[str]:
    """The names of tasks that several heads predict with different intervals, each once."""
    if not opened.checkpoints:
        return []
    from dinoneck.heads.ensemble import tasks_of_different_intervals

    names: dict[str, None] = {}
    for its_pass in opened.model.passes:
        for loaded_head in its_pass.heads.values():
            names |= dict.fromkeys(tasks_of_different_intervals(loaded_head.head))
    return list(names)


def _value_rows(
    results: Mapping[str, Mapping[str, Any]], groups: Sequence[HeadGroup], level: float | None
) -> list[Row]:
    """A row per image; columns of heads with keys are ``key/column``."""
    from dinoneck.inference.results import table_row

    rows: list[Row] = []
    for image, result in results.items():
        row: Row = {"image": image}
        for group in groups:
            of_group = group.select(result) | _intervals_of(group, result, level)
            if group.key is None:  # next to the image's, no column of theirs may be called image
                row = table_row(of_group, group.tasks, image=image)
                continue
            for name, value in table_row(of_group, group.tasks).items():
                row[group.column(name)] = value
        rows.append(row)
    return rows


def _intervals_of(group: HeadGroup, result: Any, level: float | None) -> dict[str, Any]:
    """The intervals and prediction sets of a group's predictions; none without a level."""
    from dinoneck.runtime.intervals import interval_entries

    if level is None:
        return {}
    return interval_entries(group.tasks, group.select(result), level)


def _csv_cells(row: Row) -> list[str]:
    """The cells of a row: numbers with six digits."""
    return [value if isinstance(value, str) else f"{value:.6g}" for value in row.values()]


def _describe_tasks(groups: Sequence[HeadGroup]) -> list[dict[str, Any]]:
    """What the columns of the heads are."""
    described = []
    for group in groups:
        for task in group.tasks:
            description: dict[str, Any] = {
                "name": group.column(task.name),
                "kind": task.kind,
                "unit": task.unit,
                "labels": task.labels,
            }
            if task.is_multilabel or task.thresholds:
                description["thresholds"] = task.label_thresholds
            described.append(description)
    return described


def _add_objects(
    rows: Sequence[Row], results: Mapping[str, Any], groups: Sequence[HeadGroup]
) -> None:
    """Add the objects of every image to its row, as COCO's run lengths."""
    from dinoneck.inference.results import coco_objects

    for row, result in zip(rows, results.values(), strict=True):
        for group in groups:
            predictions = group.select(result)
            for task in group.tasks:
                if task.is_masks:
                    objects = coco_objects(predictions[task.name])
                    row[f"{group.column(task.name)} objects"] = objects
