"""``dinoneck viz``: pictures of what a backbone and a head compute; a report to open in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from dinoneck.atomic import read_regular
from dinoneck.cli import arguments as cli
from dinoneck.cli.predict import Predict, known_values, open_model, predict_named
from dinoneck.cli.text import file_size, save_picture
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import counted, reason_of
from dinoneck.training.config import SIZE, FrozenBackbone

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.tasks import Task
    from dinoneck.tokens import Tokens
    from dinoneck.viz.scales import ReportEntry

_BACKBONE = FrozenBackbone()
_PAGES = (".html", ".htm")


def report(
    head: Annotated[str, Positional, arg(metavar="HEAD")],
    images: cli.Images = (),
    *,
    out: Path,
    truth: Annotated[Path | None, arg(metavar="CSV|FOLDER|JSON")] = None,
    image_column: str = "image",
    subfolders: Literal["classes", "folds"] | None = None,
    max_images: Annotated[int, cli.whole(0)] = 24,
    no_tokens: bool = False,
    strict: bool = False,
    views: Annotated[cli.Views, arg(name="")] = cli.Views(),
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
        truth: CSV of known values in columns named like the predictions, the class folders that
            hold the images, or JSON of a detector's boxes.
        image_column: column of file names in --truth.
        subfolders: with a folder as truth: whether the folders in it are classes or folds.
        max_images: images to draw: those with the largest errors, and typical ones; the table lists
            all.
        no_tokens: leave out the colours of the tokens.
        strict: exit with 1 if an image cannot be used.
        views: how the images are predicted.
        words: the command line.
    """
    files = list(dict.fromkeys(cli.list_images(images))) if images else []
    cli.check_output(out, [*files, head, truth], _PAGES)
    if truth is None:
        cli.refuse_unused("a report without --truth", words)
    model, predict, heads = open_model(head, views, words, maps=len(files) <= max_images)
    from dinoneck.atomic import write_text
    from dinoneck.viz.report import agreement, html_report

    tasks: Sequence[Task] = getattr(model, "tasks", ())
    training = _training_report(Path(head), tasks)
    if tasks:
        files = files or cli.list_images(images)
        named: dict[str, Any] = dict(zip(cli.names_below(files), files, strict=True))
        paths: Sequence[Path] = files
        values = (
            {} if truth is None else known_values(truth, image_column, files, tasks, subfolders)
        )
        known, shown = lambda file: values.get(file, {}), model.picture
    else:
        report_images = _box_images(
            files, images, truth, training, model.classes, model.preprocess.bits
        )
        named = report_images.entries
        paths = report_images.files
        known = report_images.known_boxes
        shown = report_images.pixels
    entries, left_out = _entries(model, predict, named, known, shown, max_images, not no_tokens)
    facts = _facts(head, heads, model, truth)
    title = f"Predictions of {'/'.join(Path(head).parts[-2:])}"
    page = html_report(
        entries,
        tasks,
        title=title,
        facts=facts,
        training=training,
        unread=left_out,
        classes=getattr(model, "classes", ()),
        trained_on=_count_trained_on(heads, paths),
    )
    write_text(out, page)
    size, drawn = out.stat().st_size, page.count("<article ")
    print(
        f"{counted(len(entries), 'image')} predicted, {drawn} drawn; written: {out} "
        f"({file_size(size)})"
    )
    counts = {"bytes": size, "images": len(entries), "drawn": drawn, "unread": left_out}
    return {
        "ok": not (left_out and strict),
        "written": [out],
        **counts,
        "scores": agreement(entries, tasks),
    }


def _count_trained_on(heads: Sequence[HeadCheckpoint], images: Sequence[Path]) -> int:
    """How many of the images one of the heads was trained on, as far as it is recorded."""
    from dinoneck.training.trained_images import seen_in_training

    sources = [head.source for head in heads if head.source]
    return len(seen_in_training(sources, images))


def _entries(
    model: Any,
    predict: Predict,
    named: Mapping[str, Any],
    known: Any,
    shown: Any,
    most: int,
    with_tokens: bool,
) -> tuple[list[ReportEntry], dict[str, str]]:
    """An entry per image that can be used, with pixels for the worst of them; why others cannot.

    Args:
        model: the Predictor or Detector.
        predict: predicts a list of images, with maps unless there are more than are drawn.
        named: name -> the image of ``known`` and ``shown``; of a Predictor its file.
        known: image -> known values.
        shown: image -> its pixels as they are drawn; a detector predicts them.
        most: how many are drawn.
        with_tokens: whether those of a Predictor have their tokens as colours.
    """
    from dinoneck.viz.report import worst_and_typical
    from dinoneck.viz.scales import ReportEntry

    tasks = getattr(model, "tasks", ())
    results, left_out = predict_named(
        lambda items: predict(items if tasks else [*map(shown, items)]), named, True
    )
    entries = [
        ReportEntry(name, result, known=known(named[name])) for name, result in results.items()
    ]
    drawn = worst_and_typical(entries, tasks, most)
    items = [named[entries[i].name] for i in drawn]
    colours = _token_colours(model, items) if tasks and with_tokens else [None] * len(items)
    for i, item, tokens in zip(drawn, items, colours, strict=True):
        entries[i] = replace(entries[i], image=partial(shown, item), tokens=tokens)
        if tasks and len(named) > most:  # the maps of all images would not fit
            entries[i] = replace(entries[i], result=model(item, maps="patch")[0])
    return entries, left_out


def _token_colours(model: Any, files: Sequence[Path]) -> list[Any]:
    """The tokens of each image as colours, whose directions all of them share."""
    import torch

    from dinoneck.viz.pca import PCABasis, pca_rgb

    features = _tokens(model.backbone, model.preprocess, files)
    basis = PCABasis.fit(torch.cat([own.patches[-1][0] for own in features])) if files else None
    return [pca_rgb(own, basis=basis)[0] for own in features]


def _facts(
    head: str, heads: Sequence[HeadCheckpoint], model: Any, truth: Path | None
) -> dict[str, dict[str, str]]:
    """What the first head is, in the words of ``dinoneck inspect``, and how it was run."""
    from dinoneck.cli.files import entries
    from dinoneck.version import versions

    commits = {f"commit of {one.source}": one.revision for one in heads if one.revision}
    run = {
        "device": str(model.device),
        "known values": str(truth or "none"),
        "made": f"{date.today()}",
    }
    run["versions"] = ", ".join(f"{name} {own}" for name, own in versions().items())
    boxes = (
        f"those of a score of {model.min_score:.2g} or more" if not hasattr(model, "tasks") else ""
    )
    run |= (
        {"boxes": boxes}
        if boxes
        else {"views": f"{model.tta}, the mean of {len(model.views)} views"}
    )
    own = {"from": f"{head}, {counted(len(heads), 'head')}", **commits, **entries(heads[0].meta)}
    return {"The head": own, "How it was run": run}


def _training_report(head: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """The report of the training run in whose folder a head lies, with what other files hold for the page."""
    folder = head if head.is_dir() else head.parent
    path = (folder.parent if folder.name == "heads" else folder) / "report.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(read_regular(path))
        scores = found.get("scores", {})
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise DataError(
            f"{path} is not the report of a training, or is damaged: {reason_of(error)}; remove "
            "it, or move the head out of its folder"
        ) from error
    # of maps: "task label"
    scored = {own for name in scores for own in (name, name.partition(" ")[0])}
    if tasks and scored.isdisjoint(name for task in tasks for name in (task.name, *task.columns)):
        return {}  # of another run
    held_out: dict[str, Any] = {}
    table, log = path.with_name("out_of_fold.csv"), path.with_name("log.jsonl")
    if table.is_file():
        import pandas as pd

        from dinoneck.data.tables import read_cells

        cells = read_cells(table)
        for name in sorted(
            name for name, own in scores.items() if "r2" in own["head"] and name in cells
        ):
            pair = cells[[name, f"{name} (head)"]].apply(pd.to_numeric, errors="coerce").dropna()
            held_out |= {name: pair.to_numpy().T} if len(pair) else {}
    lines = log.read_text("utf-8").splitlines() if "best" in found and log.is_file() else []
    more = {"log": [json.loads(line) for line in lines], "path": path, "held_out": held_out}
    return {**found, **more, "remarks": [found["verdict"]] if "verdict" in found else []}


@dataclass(frozen=True)
class _ReportImages:
    """The images of a detector's report.

    Attributes:
        entries: name -> what names the image to ``known_boxes`` and ``pixels``: its file, or its
            place in the list of images with boxes.
        known_boxes: returns the known boxes of an image; empty where none are known.
        pixels: returns what the detector takes of an image.
        files: of all images.
    """

    entries: dict[str, Any]
    known_boxes: Callable[[Any], dict[str, Any]]
    pixels: Callable[[Any], Any]
    files: Sequence[Path]


def _box_images(
    files: list[Path],
    images: Sequence[Path],
    truth: Path | None,
    training: Mapping[str, Any],
    classes: Sequence[str],
    bits: int | None,
) -> _ReportImages:
    """The images of a COCO file; without any those that are named, or else those that the run held out.

    ``bits`` are those of 16-bit images.
    """
    from dinoneck.data.boxes import BoxImages

    if truth is not None:
        if len(images) != 1 or not images[0].is_dir():
            raise ConfigError(
                f"--truth {truth} names its images itself; name the one folder that they are in"
            )
        known = BoxImages(truth, images[0], classes=classes, bits=bits, allow_unlisted=True)
    elif images:
        return _images_without_boxes(files, bits)
    elif "best" in training:
        from dinoneck.detection.training import open_images
        from dinoneck.training.config import TrainConfig

        above = training["path"].resolve().parents
        data = {key: _found(value, above) for key, value in training["config"]["data"].items()}
        known = open_images(TrainConfig.from_dict({**training["config"], "data": data}))[1]
        known.transform = None
    else:
        raise ConfigError(
            "no images are named, and no report.json of a detector's training is there; name images"
        )

    known_classes = [
        name for label, name in enumerate(known.classes) if label not in known.unlisted
    ]

    def boxes(place: int) -> dict[str, Any]:
        target = known[place][1]
        return {
            "boxes": target["boxes"].numpy(),
            "names": [known.classes[label] for label in target["labels"].tolist()],
            "classes": known_classes,
        }

    def pixels(place: int) -> Any:
        return known.original(place)[0]

    places = {name: place for place, name in enumerate(cli.names_below(known.paths))}
    return _ReportImages(entries=places, known_boxes=boxes, pixels=pixels, files=known.paths)


def _images_without_boxes(files: list[Path], bits: int | None) -> _ReportImages:
    """The images that are named, of which no boxes are known."""
    from dinoneck.data.decoding import read_pixels

    def no_boxes(file: Path) -> dict[str, Any]:
        return {}

    def pixels(file: Path) -> Any:
        return file if bits is None else read_pixels(file, bits)

    entries = dict(zip(cli.names_below(files), files, strict=True))
    return _ReportImages(entries=entries, known_boxes=no_boxes, pixels=pixels, files=files)


def _found(value: Any, above: Sequence[Path]) -> Any:
    """A path of the run's configuration where it exists: here, or in a folder above the run."""
    places = (
        (Path(value), *(folder / value for folder in above))
        if isinstance(value, str) and value
        else ()
    )
    return next((str(place) for place in places if place.exists()), value)


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

    def of(self, images: Sequence[Path], out: Path, suffixes: Sequence[str]) -> Any:
        """Return the names of images, their pixels as the backbone sees them, their tokens, and a note on weights."""
        files = cli.list_images(images)
        cli.check_output(out, files, suffixes)
        if self.store is not None:
            if self != Features(store=self.store):
                raise ConfigError(
                    f"the tokens are in --store {self.store}; leave the backbone's options out"
                )
            return _stored(self.store, files, images)
        cli.check_backbone_name(self.backbone.name, self.backbone.source)
        from dinoneck.training.source import open_backbone

        model = open_backbone(self.backbone, self.device)
        recipe = model.preprocess.changed(
            size=self.size, resize="crop" if self.size is None else None, bits=self.bits
        )
        note = "(random weights)" if model.weights["kind"] == "seeded" else ""
        pictures = [recipe.picture(file) for file in files]
        return cli.names_below(files), pictures, _tokens(model, recipe, files), note


def _stored(path: Path, files: Sequence[Path], images: Sequence[Path]) -> Any:
    """Return names, pictures, tokens and a note, of a feature store that was extracted from these files.

    Ids are relative to the folder that is named, as ``extract`` makes them, else to the folder that
    the files share.

    Raises:
        DataError: if the store lacks a file, or holds another one of its name.
    """
    from dinoneck.store.feature_store import FeatureStore
    from dinoneck.training.source import TableTokens, compare_images
    from dinoneck.training.targets import SourceIds

    store = FeatureStore.open(path)
    names = cli.names_below(files)
    if len(images) == 1 and images[0].is_dir():
        relative = [file.relative_to(images[0]).as_posix() for file in files]
        stored = SourceIds(store.ids)
        if all(stored.find(name) is not None for name in relative):
            names = relative
    ids = TableTokens(store, names).ids
    compare_images(store, dict(zip(ids, files, strict=True)))
    return (
        ids,
        [store.preprocess.picture(file) for file in files],
        [store.batch([own]) for own in ids],
        "",
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
    names, pictures, found, note = features.of(images, out, (".png", ".jpg", ".pdf"))
    from dinoneck.tokens import Tokens
    from dinoneck.viz.panels import pca_panels

    drawn = pca_panels(pictures, Tokens.cat(found), foreground=foreground, names=names, note=note)
    save_picture(out, drawn)
    print(f"{counted(len(names), 'image')} drawn; written: {out}")
    cli.warn_of_picture_among_images(out, images)
    return {"written": [out], "images": len(names)}


def similarity(
    images: cli.Images, out: Path, features: Annotated[Features, arg(name="")] = Features()
) -> dict[str, Any]:
    """Write a page that shows how similar the patches of images are to the one under the pointer.

    Example: dinoneck viz similarity a.jpg b.jpg --backbone dinoneck_tiny --out similar.html

    Args:
        images: images, or folders searched with their subfolders.
        out: the .html file to write; it needs no network.
        features: whose tokens are compared.
    """
    names, pictures, found, note = features.of(images, out, _PAGES)
    from dinoneck.atomic import write_text
    from dinoneck.viz.similarity import similarity_page

    title = (
        f"Similar patches, block {found[0].layers[-1] if found[0].layers else '?'} {note}".rstrip()
    )
    write_text(out, similarity_page(found, pictures, names=names, title=title))
    print(
        f"{counted(len(names), 'image')} compared; written: {out} ({file_size(out.stat().st_size)})"
    )
    return {"written": [out], "images": len(names)}


def _tokens(backbone: Any, recipe: Any, files: Sequence[Path]) -> list[Tokens]:
    """The tokens of each image, on the CPU."""
    import torch

    from dinoneck.backbones.adapter import evaluating

    place = next(backbone.parameters()).device
    with torch.no_grad(), evaluating(backbone):
        return [backbone(recipe(file).to(place)).to("cpu", torch.float32) for file in files]


viz = {"report": report, "tokens": tokens, "similarity": similarity}
