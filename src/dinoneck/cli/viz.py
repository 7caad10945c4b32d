"""``dinoneck viz``: pictures of what a backbone and a head compute; a report to open in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import Positional, arg

from dinoneck.cli import arguments as cli
from dinoneck.cli.head_checks import headers_of
from dinoneck.cli.predict import OpenModel, open_model, predict_named
from dinoneck.cli.text import file_size, save_picture, show
from dinoneck.cli.truth import (
    KnownMasks,
    boxes_of,
    check_truths,
    known_values,
    one_truth,
    open_known_boxes,
)
from dinoneck.data.pairs import Pairing
from dinoneck.errors import ConfigError, DataError
from dinoneck.kinds import AVERAGE_OF_0_3, predicting_method
from dinoneck.runtime.names import is_exported
from dinoneck.text import counted
from dinoneck.training.config import SIZE, FrozenBackbone

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.data.boxes import BoxImages
    from dinoneck.data.cells import DecimalMark
    from dinoneck.data.folders import Subfolders
    from dinoneck.evaluation.mask_options import MaskOptions
    from dinoneck.heads.instances import LeastScore
    from dinoneck.images.preprocessing import Preprocessing
    from dinoneck.inference.predictor import Predictor
    from dinoneck.task_facts import TaskFacts
    from dinoneck.tokens import Tokens
    from dinoneck.viz.report import ReportEntry

_BACKBONE = FrozenBackbone()
_PAGES = (".html", ".htm")


def report(
    head: Annotated[str, Positional, arg(metavar="HEAD")],
    images: cli.Images = (),
    *,
    out: Path,
    truth: Annotated[tuple[Path, ...], arg(metavar="CSV|FOLDER|JSON ...")] = (),
    image_column: str = "image",
    subfolders: Literal["classes", "folds"] | None = None,
    decimal: Literal[".", ","] | None = None,
    mask_suffix: str | None = None,
    skip_unpaired: bool = False,
    nodata: tuple[float, ...] = (),
    class_values: tuple[int, ...] = (),
    class_colors: tuple[str, ...] = (),
    classes: Annotated[Path | None, arg(metavar="CSV")] = None,
    max_images: Annotated[int, cli.whole(0)] = 24,
    no_tokens: bool = False,
    strict: bool = False,
    options: Annotated[cli.PredictionOptions, arg(name="")] = cli.PredictionOptions(),
    words: cli.Words = (),
) -> dict[str, Any]:
    """Predict from images and write a report as one HTML file.

    It has the held-out scores of the training too, where the run's report.json is next to the head.

    Example: dinoneck viz report run/heads images/ --truth known.csv --out report.html

    Args:
        head: a head file, a folder of them, or a Hub repository (user/name).
        images: images, or folders searched with their subfolders; default for a detector's run: its
            held-out images.
        out: the .html file to write.
        truth: CSV of known values in columns named like the predictions; a folder of masks; the
            folders of classes or labels that hold the images; a COCO file of a detector's boxes or
            of labels; or a CSV and a folder of masks (--truth known.csv masks/).
        image_column: column of file names in --truth.
        subfolders: with a folder as truth: whether the folders in it are classes or folds.
        decimal: with a CSV as truth: the decimal mark of its numbers; without it a point, or in a file
            separated by ; the one that all its numbers have.
        mask_suffix: with a folder of masks as truth: what their names have more than those of the
            images, such as _labelIds, where there are several files for each image.
        skip_unpaired: with a folder of masks as truth: leave out images without a mask, and masks
            without an image.
        nodata: values without a label in masks of --truth, such as 255; without it as in training.
        class_values: the value of each class in these masks; without it as in training.
        class_colors: the colour of each class in them, as R,G,B such as 0,128,0; without it as in
            training.
        classes: CSV file with the columns name, r, g, b: the colours of the classes by their names.
        max_images: images to draw: those with the largest errors, and typical ones; the table lists
            all.
        no_tokens: leave out the colours of the tokens.
        strict: exit with 1 if an image cannot be used.
        options: how the images are predicted.
        words: the command line.
    """
    # refuse what is wrong before torch is imported
    files = list(dict.fromkeys(cli.list_images(images))) if images else []
    cli.check_output(out, [*files, head, *truth], _PAGES)
    if not truth:
        cli.refuse_unused(cli.REPORT_WITHOUT_TRUTH, words)
    check_truths(truth, image_column, decimal)

    # predict
    # missing and other files are refused before torch is imported
    headers_of(head, has_weights=options.weights is not None)
    if is_exported(head):
        raise ConfigError(
            f"{head} is an exported file, of which no report is drawn: name the head file; 'dinoneck "
            "predict --overlay' draws the maps of an exported file"
        )
    opened = open_model(head, options, words, maps=len(files) <= max_images)
    tasks = opened.tasks
    training = _training_report(Path(head), tasks)
    if tasks:
        from dinoneck.evaluation.mask_options import MaskOptions

        # without images their list refuses with what to name
        files = files or cli.list_images(images)
        report_images = _images_of_heads(
            opened.model,
            images,
            files,
            truth,
            image_column=image_column,
            subfolders=subfolders,
            decimal=decimal,
            pairing=Pairing(mask_suffix, skip_unpaired),
            mask_options=MaskOptions(
                nodata=nodata,
                class_values=class_values,
                class_colors=class_colors,
                classes=classes,
            ),
        )
    else:
        report_images = _images_of_detector(opened.model, files, images, truth, training)
    entries, left_out, box_scores = _report_entries(
        opened,
        report_images,
        most_drawn=max_images,
        with_tokens=not no_tokens,
        batch_size=options.batch_size,
    )

    # write
    from dinoneck.atomic import write_text
    from dinoneck.viz.report import agreement, html_report

    page = html_report(
        entries,
        tasks,
        title=f"Predictions of {'/'.join(Path(head).parts[-2:])}",
        facts=_facts(head, opened, truth),
        training=training,
        unread=left_out,
        classes=() if tasks else opened.model.classes,
        trained_on=_count_trained_on(opened.checkpoints, report_images.files),
        box_scores=box_scores,
    )
    write_text(out, page)
    num_bytes = out.stat().st_size
    num_drawn = page.count("<article ")
    print(
        f"{counted(len(entries), 'image')} predicted, {num_drawn} drawn; written: {out} "
        f"({file_size(num_bytes)})"
    )
    document = {
        "ok": not (left_out and strict),
        "written": [out],
        "bytes": num_bytes,
        "images": len(entries),
        "drawn": num_drawn,
        "unread": left_out,
        "scores": agreement(entries, tasks),
    }
    if box_scores:
        document["boxes"] = box_scores
    return document


def _count_trained_on(heads: Sequence[HeadCheckpoint], images: Sequence[Path]) -> int:
    """How many of the images one of the heads was trained on, as far as it is recorded."""
    from dinoneck.checkpoint.training_images import NO_IMAGES
    from dinoneck.training.trained_images import seen_in_training

    sources = [head.source for head in heads if head.source]
    stated = NO_IMAGES
    for head in heads:
        stated |= head.training_images or NO_IMAGES
    return len(seen_in_training(sources, images, stated).paths)


@dataclass(frozen=True)
class _ReportImages:
    """The images of a report.

    Attributes:
        items: name -> what names the image to ``known`` and ``pixels``: its file, or its index in
            the list of images with boxes.
        known: returns what is known of an image; empty where nothing is.
        pixels: returns an image as it is drawn; a detector predicts from it.
        files: of all images.
        boxes: the images of a COCO file, by which a detector is scored; None without one.
        masks: the known masks of images; None without.
    """

    items: dict[str, Any]
    known: Callable[[Any], Mapping[str, Any]]
    pixels: Callable[[Any], Any]
    files: Sequence[Path]
    boxes: BoxImages | None = None
    masks: KnownMasks | None = None


def _images_of_heads(
    predictor: Predictor,
    images: Sequence[Path],
    files: Sequence[Path],
    truths: Sequence[Path],
    *,
    image_column: str,
    subfolders: Subfolders | None,
    decimal: DecimalMark | None,
    pairing: Pairing,
    mask_options: MaskOptions,
) -> _ReportImages:
    """Files, with the known values that truths have of them."""
    from dinoneck.viz.pictures import as_image

    known = known_values(
        truths,
        images,
        files,
        predictor,
        image_column=image_column,
        subfolders=subfolders,
        decimal=decimal,
        pairing=pairing,
        mask_options=mask_options if truths else None,
    )

    def known_of(file: Path) -> Mapping[str, Any]:
        return known.values.get(file, {})

    pixels: Callable[[Path], Any] = predictor.picture
    if any(task.is_masks for task in predictor.tasks):  # masks have the pixels of the image itself
        pixels = partial(as_image, bits=predictor.preprocess.bits)
    items = dict(zip(cli.names_below(files), files, strict=True))
    return _ReportImages(items=items, known=known_of, pixels=pixels, files=files, masks=known.masks)


def _report_entries(
    opened: OpenModel,
    images: _ReportImages,
    *,
    most_drawn: int,
    with_tokens: bool,
    batch_size: int,
) -> tuple[list[ReportEntry], dict[str, str], dict[str, Any]]:
    """An entry per image that can be used, name -> why another one cannot, and the scores of boxes.

    The scores are empty without known boxes, and where an image cannot be used.

    Args:
        opened: the model; its predictions hold maps unless there are more images than are drawn.
        images: its images.
        most_drawn: how many entries have pixels: those of the largest errors, and typical ones.
        with_tokens: whether those of a Predictor have their tokens as colours.
        batch_size: images in a forward pass of a detector.
    """
    from dinoneck.runtime.intervals import default_level
    from dinoneck.viz.report import ReportEntry, worst_and_typical

    model = opened.model
    tasks = opened.tasks
    level = default_level(tasks)

    def predict(items: list[Any]) -> list[dict[str, Any]]:
        if tasks:
            return [_add_intervals(result, tasks, level) for result in opened.predict(items)]
        pixels = [images.pixels(item) for item in items]
        if images.boxes is None:
            return opened.predict(pixels)
        # average precision ranks boxes of all scores
        boxes: list[dict[str, Any]] = model.predict(pixels, min_score=0.0, batch_size=batch_size)
        return boxes

    results, left_out = predict_named(predict, images.items, skip_unusable=True)
    box_scores: dict[str, Any] = {}
    if images.boxes is not None:
        if not left_out:
            box_scores = _box_scores(images.boxes, images.items, results)
        least_score = model.thresholds or model.min_score
        results = {name: _sure_boxes(result, least_score) for name, result in results.items()}
    entries = []
    for name, result in results.items():
        entries.append(ReportEntry(name, result, known=images.known(images.items[name])))

    drawn = worst_and_typical(entries, tasks, most_drawn)
    drawn_items = [images.items[entries[i].name] for i in drawn]
    colours: Sequence[Any] = [None] * len(drawn)
    if tasks and with_tokens:
        colours = _token_colours(model, drawn_items)
    for i, item, tokens in zip(drawn, drawn_items, colours, strict=True):
        entries[i] = replace(entries[i], image=partial(images.pixels, item), tokens=tokens)
        if images.masks is not None and entries[i].known:
            entries[i] = replace(entries[i], classes=partial(images.masks.classes_by_task, item))
        if tasks and len(images.items) > most_drawn:  # the maps of all images would not fit
            [result] = model(item, maps="patch")
            entries[i] = replace(entries[i], result=_add_intervals(result, tasks, level))
    return entries, left_out, box_scores


def _add_intervals(
    result: Mapping[str, Any], tasks: Sequence[TaskFacts], level: float | None
) -> dict[str, Any]:
    """A result with the intervals and prediction sets of a level; None = there are none."""
    from dinoneck.runtime.intervals import interval_entries

    entries = {} if level is None else interval_entries(tasks, result, level)
    return {**result, **entries}


def _box_scores(
    box_images: BoxImages, items: Mapping[str, int], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The average precision of boxes of all scores, as of :func:`dinoneck.detection.score_boxes`.

    Empty if no image has a box, or pycocotools is not installed.
    """
    from dinoneck.detection import score_boxes

    predictions = {}
    for name, result in results.items():
        predictions[box_images.ids[items[name]]] = result
    try:
        return score_boxes(box_images, predictions)
    except (ImportError, DataError) as error:
        show(f"the report has no average precision: {error}")
        return {}


def _sure_boxes(result: Mapping[str, Any], least_score: LeastScore) -> dict[str, Any]:
    """The boxes of a detector's result that have this score, or that of their class, or more."""
    from dinoneck.heads.instances import reach_score

    is_sure = reach_score(result["scores"], result["labels"], least_score)
    places = is_sure.nonzero()[:, 0].tolist()
    sure = {
        "boxes": result["boxes"][is_sure],
        "scores": result["scores"][is_sure],
        "labels": result["labels"][is_sure],
        "names": [result["names"][i] for i in places],
    }
    if "masks" in result:
        sure["masks"] = result["masks"][places]
    return sure


def _token_colours(predictor: Predictor, files: Sequence[Path]) -> list[Any]:
    """The tokens of each image as colours, whose directions all of them share."""
    import torch

    from dinoneck.viz.pca import PCABasis, pca_rgb

    if not files:
        return []
    tokens_of_images = _tokens(predictor.backbone, predictor.preprocess, files)
    basis = PCABasis.fit(torch.cat([tokens.patches[-1][0] for tokens in tokens_of_images]))
    return [pca_rgb(tokens, basis=basis)[0] for tokens in tokens_of_images]


def _facts(head: str, opened: OpenModel, truths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """What the first head is, in the words of ``dinoneck inspect``, and how it was run."""
    from dinoneck.cli.files import entries
    from dinoneck.runtime.intervals import default_level, describe_groups
    from dinoneck.version import versions

    model = opened.model
    checkpoints = opened.checkpoints
    about_head = {"from": f"{head}, {counted(len(checkpoints), 'head')}"}
    for checkpoint in checkpoints:
        if checkpoint.revision:
            about_head[f"commit of {checkpoint.source}"] = checkpoint.revision
    about_head |= entries(checkpoints[0].meta)

    run = {
        "device": str(model.device),
        "known values": ", ".join(map(str, truths)) or "none",
        "made": str(date.today()),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if opened.is_detector:
        run["boxes"] = _describe_least_scores(model)
    else:
        run["views"] = f"{model.tta}, the mean of {len(model.views)} views"
        level = default_level(opened.tasks)
        if level is not None:
            groups = describe_groups(opened.tasks, level)
            run["intervals"] = f"{100 * level:g} %, {groups}: of new groups, in brackets"
    return {"The head": about_head, "How it was run": run}


def _describe_least_scores(detector: Any) -> str:
    """Which boxes of a detector the report shows."""
    if not detector.thresholds:
        return f"those of a score of {detector.min_score:.2g} or more"
    texts = []
    for name, threshold in zip(detector.classes, detector.thresholds, strict=True):
        texts.append(f"{name} {threshold:.2g}")
    return f"those of the score of their class or more: {', '.join(texts)}"


def _training_report(head: Path, tasks: Sequence[TaskFacts]) -> dict[str, Any]:
    """The report of the training run in whose folder a head lies, with what other files hold for the page.

    It is empty where there is none, or the run is one of other tasks.
    """
    from dinoneck.data import run_names
    from dinoneck.training import folder as files

    folder = head if head.is_dir() else head.parent
    run = folder.parent if folder.name in (run_names.HEADS, run_names.BASELINES) else folder
    report = files.read_report(run)
    if report is None:
        return {}
    scores = report.get("scores", {})
    if tasks and not _are_scored(tasks, scores):
        return {}
    report["log"] = []
    log = run / files.LOG
    if "best" in report and log.is_file():
        report["log"] = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    report["path"] = run / run_names.REPORT
    report["sheet"] = _sheet_of(run, report)
    report["held_out"] = _held_out_values(
        run / run_names.PREDICTIONS, scores, predicting_method(report)
    )
    report["remarks"] = [report["verdict"]] if "verdict" in report else []
    sentence = report.get("predicts", {}).get("sentence")
    if sentence is not None:
        report["remarks"].append(sentence)
    return report


def _sheet_of(run: Path, report: Mapping[str, Any]) -> Image.Image | None:
    """The sheet of the data of a run; None without one, or if it is that of another run, as after a dry run there."""
    from PIL import Image

    from dinoneck.data import run_names

    sheet = run / run_names.DATA_SHEET
    text = run / run_names.DATA_TEXT
    if not sheet.is_file() or not text.is_file():
        return None
    if text.read_text("utf-8").splitlines() != report.get("data", {}).get("lines"):
        return None
    with Image.open(sheet) as opened:
        return opened.convert("RGB")


def _are_scored(tasks: Sequence[TaskFacts], scores: Mapping[str, Any]) -> bool:
    """Whether a report has a score of one of the tasks."""
    scored = set(scores)
    scored.update(name.partition(" ")[0] for name in scores)  # of maps: "task label"
    return any(not scored.isdisjoint((task.name, *task.columns)) for task in tasks)


def _held_out_values(table: Path, scores: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Target -> (2, n) known and predicted numbers of the images that a run held out; empty without its table.

    The predictions are those of the method that predicts.
    """
    if not table.is_file():
        return {}
    import pandas as pd

    from dinoneck.data.tables import read_cells

    cells = read_cells(table)
    held_out = {}
    for name in sorted(scores):
        if "r2" not in scores[name]["head"] or name not in cells:
            continue
        predictions = _column_of(name, method, cells.columns)
        pairs = cells[[name, predictions]].apply(pd.to_numeric, errors="coerce").dropna()
        if len(pairs):
            held_out[name] = pairs.to_numpy().T
    return held_out


def _column_of(target: str, method: str, columns: Collection[str]) -> str:
    """The column of a method's predictions, which a table of 0.3 may name otherwise."""
    column = f"{target} ({method})"
    if column not in columns and method == "average":
        return f"{target} ({AVERAGE_OF_0_3})"
    return column


def _images_of_detector(
    detector: Any,
    files: list[Path],
    images: Sequence[Path],
    truths: Sequence[Path],
    training: Mapping[str, Any],
) -> _ReportImages:
    """The images of a COCO file; without one those that are named, or else those that the run held out."""
    if truths:
        box_images = open_known_boxes(one_truth(truths), images, detector)
        return _images_with_boxes(box_images, detector.classes)
    if images:
        return _images_without_boxes(files, detector.preprocess.bits)
    if "best" in training:
        return _images_with_boxes(_held_out_images(training), detector.classes)
    raise ConfigError(
        "no images are named, and no report.json of a detector's training is there; name images"
    )


def _held_out_images(training: Mapping[str, Any]) -> BoxImages:
    """The images that the run of a report held out, whose paths may be relative to a folder above the run."""
    from dinoneck.detection.training import open_images
    from dinoneck.training.config import TrainDetectorConfig

    folders = training["path"].resolve().parents
    config = training["config"]
    data = {key: _existing_path(value, folders) for key, value in config["data"].items()}
    _, held_out = open_images(TrainDetectorConfig.from_dict(config | {"data": data}))
    held_out.transform = None
    return held_out


def _existing_path(value: Any, folders: Sequence[Path]) -> Any:
    """A path where it exists: here, or in one of the folders; any other value as it is."""
    if not isinstance(value, str) or not value:
        return value
    for path in (Path(value), *(folder / value for folder in folders)):
        if path.exists():
            return str(path)
    return value


def _images_with_boxes(box_images: BoxImages, classes: Sequence[str]) -> _ReportImages:
    """Images and their known boxes, whose classes have these names."""

    def known_boxes(index: int) -> dict[str, Any]:
        return boxes_of(box_images, index, classes)

    def pixels(index: int) -> Any:
        return box_images.original(index)[0]

    files = box_images.paths
    items = {name: index for index, name in enumerate(cli.names_below(files))}
    return _ReportImages(
        items=items, known=known_boxes, pixels=pixels, files=files, boxes=box_images
    )


def _images_without_boxes(files: list[Path], bits: int | None) -> _ReportImages:
    """The images that are named, of which no boxes are known."""
    from dinoneck.images.decoding import read_pixels

    def no_boxes(file: Path) -> dict[str, Any]:
        return {}

    def pixels(file: Path) -> Any:
        return file if bits is None else read_pixels(file, bits)

    items = dict(zip(cli.names_below(files), files, strict=True))
    return _ReportImages(items=items, known=no_boxes, pixels=pixels, files=files)


class ImageTokens(NamedTuple):
    """Images with their tokens.

    Attributes:
        names: of the images.
        pictures: (3, H, W) pixels of each as the backbone sees them.
        tokens: of each, on the CPU.
        note: on the backbone's weights; empty if there is nothing to note.
    """

    names: list[str]
    pictures: list[torch.Tensor]
    tokens: list[Tokens]
    note: str = ""


@dataclass(frozen=True)
class Features:
    """Whose tokens are shown.

    Attributes:
        backbone: the model; --layers names the one block whose tokens are shown (default: the
            last).
        store: take the tokens of this feature store, which was made from these files.
        size: resize images to this size (default: their own).
        bits: how many bits images of 16 bits use, such as 12; 16 reads them as they are.
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """

    backbone: Annotated[FrozenBackbone, arg(name="")] = _BACKBONE
    store: Path | None = None
    size: Annotated[tuple[int, int] | None, SIZE] = None
    bits: cli.Bits = None
    device: str | None = None

    def read(self, images: Sequence[Path], out: Path, suffixes: Sequence[str]) -> ImageTokens:
        """Return images with their tokens, after the check of the file to write.

        Args:
            images: images and folders.
            out: the file to write.
            suffixes: that its name may end in.
        """
        files = cli.list_images(images)
        cli.check_output(out, files, suffixes)
        if self.store is not None:
            if self != Features(store=self.store):
                raise ConfigError(
                    f"the tokens are in --store {self.store}; leave the backbone's options out"
                )
            return _stored_tokens(self.store, files, images)
        cli.check_backbone_name(self.backbone.name, self.backbone.source)
        from dinoneck.training.run_tokens import open_backbone

        backbone = open_backbone(cli.with_default_runtime(self.backbone), self.device)
        preprocess = backbone.preprocess.changed(
            size=self.size, resize="crop" if self.size is None else None, bits=self.bits
        )
        return ImageTokens(
            names=cli.names_below(files),
            pictures=[preprocess.picture(file) for file in files],
            tokens=_tokens(backbone, preprocess, files),
            note="(random weights)" if backbone.weights["kind"] == "seeded" else "",
        )


def _stored_tokens(path: Path, files: Sequence[Path], images: Sequence[Path]) -> ImageTokens:
    """The tokens of a feature store that was extracted from these files.

    Ids are relative to the folder that is named, as ``extract`` makes them, else to the folder that
    the files share.

    Raises:
        DataError: if the store lacks a file, or holds another one of its name.
    """
    from dinoneck.store.feature_store import FeatureStore
    from dinoneck.training.ids import IdMatcher
    from dinoneck.training.run_tokens import StoreSubset, compare_images

    store = FeatureStore.open(path)
    names = cli.names_below(files)
    if len(images) == 1 and images[0].is_dir():
        relative = [file.relative_to(images[0]).as_posix() for file in files]
        stored = IdMatcher(store.ids)
        if all(stored.find(name) is not None for name in relative):
            names = relative
    ids = StoreSubset(store, names).ids
    compare_images(store, dict(zip(ids, files, strict=True)))
    return ImageTokens(
        names=list(ids),
        pictures=[store.preprocess.picture(file) for file in files],
        tokens=[store.batch([image_id]) for image_id in ids],
    )


def tokens(
    images: cli.Images,
    out: Path,
    features: Annotated[Features, arg(name="")] = Features(),
    foreground: float | None = None,
) -> dict[str, Any]:
    """Draw images next to their tokens: the three main directions as red, green and blue.

    Example: dinoneck viz tokens images/ --backbone dinoneck_tiny --out tokens.png

    Args:
        images: images, or folders searched with their subfolders.
        out: the picture to write (.png, .jpg or .pdf).
        features: whose tokens are drawn.
        foreground: share of the first direction below which patches are left black: start with 0.5.
    """
    shown = features.read(images, out, (".png", ".jpg", ".pdf"))
    from dinoneck.tokens import Tokens
    from dinoneck.viz.panels import pca_panels

    picture = pca_panels(
        shown.pictures,
        Tokens.cat(shown.tokens),
        foreground=foreground,
        names=shown.names,
        note=shown.note,
    )
    save_picture(out, picture)
    print(f"{counted(len(shown.names), 'image')} drawn; written: {out}")
    cli.warn_of_picture_among_images(out, images)
    return {"written": [out], "images": len(shown.names)}


def _tokens(backbone: Backbone, preprocess: Preprocessing, files: Sequence[Path]) -> list[Tokens]:
    """The tokens of each image, on the CPU."""
    import torch

    from dinoneck.backbones.adapter import evaluating

    device = next(backbone.parameters()).device
    tokens = []
    with torch.no_grad(), evaluating(backbone):
        for file in files:
            prepared = preprocess(file).to(device)
            tokens.append(backbone(prepared).to("cpu", torch.float32))
    return tokens


viz = {"report": report, "tokens": tokens}
