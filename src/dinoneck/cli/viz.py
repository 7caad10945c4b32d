"""``dinoneck viz``: pictures of what a backbone and a head compute; a report to open in a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import (
    HeadBackbone,
    Images,
    Views,
    check_backbone_name,
    check_output,
    list_images,
    names_below,
    refuse_unused,
    whole,
)
from dinoneck.cli.predict import open_predictor
from dinoneck.cli.text import file_size, save_picture, show
from dinoneck.cli.viz_known import box_entries, known_values
from dinoneck.errors import DataError, counted
from dinoneck.regular_files import read_regular
from dinoneck.training.config import SIZE, BackboneConfig

if TYPE_CHECKING:
    from dinoneck.inference.predictor import Predictor
    from dinoneck.tasks import Task
    from dinoneck.tokens import Tokens
    from dinoneck.viz.scales import ReportEntry

_FORMATS, _PAGES = (".png", ".jpg", ".pdf"), (".html", ".htm")
_MOST = 48  # images of one figure
_FITTED = 24  # images that the colours of tokens are fitted on


def report(
    head: Annotated[str, Positional, arg(metavar="HEAD")],
    images: Images = (),
    *,
    out: Path,
    truth: Annotated[Path | None, arg(metavar="CSV|JSON")] = None,
    image_column: str = "image",
    scores: Annotated[Path | None, arg(metavar="JSON")] = None,
    max_images: Annotated[int, whole(0)] = 24,
    no_tokens: bool = False,
    strict: bool = False,
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Predict from images and write a report as one HTML file.

    Example: dinoneck viz report run/heads images/ --truth known.csv --out report.html

    Args:
        head: a head file, a folder of them, or a Hub repository (user/name).
        images: images, or folders searched with their subfolders; default for a detector's run: its held-out images.
        out: the .html file to write.
        truth: CSV of known values in columns named like the predictions, or JSON of a detector's boxes.
        image_column: column of file names in --truth.
        scores: report.json of the run: adds its held-out scores and residuals.
        max_images: images to draw, largest errors first if known; the table lists all.
        no_tokens: leave out the colours of the tokens.
        strict: exit with 1 if an image cannot be used.
        views: how the images are predicted.
        backbone: where the weights come from.
    """
    options, files = locals(), list(dict.fromkeys(list_images(images) if images else []))
    check_output(out, [*files, head, truth, scores], _PAGES)
    training = _training_report(scores or (None if images else _report_of(head)))
    from dinoneck.inference.sources import opened

    read: Any = opened(head, views.revision, backbone.weights)
    heads = read[""]
    tasks: Sequence[Task] = ()
    if heads[0].head_type == "detector":
        refuse_unused(report, "a detector", options)
        entries, left_out = box_entries(heads[0], images, truth, training, max_images, views, backbone)
        lowest = views.min_score if views.min_score is not None else heads[0].config["min_score"]
        device, how = views.device or "the default", f"boxes of a score of {lowest:.2g} or more"
    else:
        refuse_unused(report, "heads", options)
        files = files or list_images(images)
        predictor = open_predictor(read, views, backbone)
        tasks = predictor.tasks
        _check_scores(scores, training, tasks)
        known = None if truth is None else known_values(truth, image_column, files, _columns(tasks))
        entries, left_out = _entries(predictor, files, known, max_images, not no_tokens)
        device, how = str(predictor.device), f"{predictor.tta}, the mean of {len(predictor.views)} views"
    run = {"views": how, "device": device, "known values": str(truth or "none"), "made": f"{date.today()}"}
    facts = {"The head": _head_facts(head, heads), "How it was run": run}
    title = f"Predictions of {'/'.join(Path(head).parts[-2:])}"
    document = _write(out, entries, tasks, title=title, facts=facts, training=training, unread=left_out)
    return {"ok": not (left_out and strict), **document}


def _write(out: Path, entries: Sequence[ReportEntry], tasks: Sequence[Task], **shown: Any) -> dict[str, Any]:
    """Write the page, and print what it holds."""
    from dinoneck.atomic import write_text
    from dinoneck.version import versions
    from dinoneck.viz.report import agreement, html_report

    shown["facts"]["How it was run"]["versions"] = ", ".join(f"{name} {own}" for name, own in versions().items())
    page = html_report(entries, tasks, **shown)
    write_text(out, page)
    size, drawn, left_out = out.stat().st_size, page.count("<article "), shown["unread"]
    print(f"{counted(len(entries), 'image')} predicted, {drawn} drawn; written: {out} ({file_size(size)})")
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    counts = {"bytes": size, "images": len(entries), "drawn": drawn, "unread": left_out}
    return {"written": [out], **counts, "scores": agreement(entries, tasks)}


def _report_of(head: str) -> Path | None:
    """The report of the training run in whose folder a head lies, if it is there."""
    path = (Path(head) if Path(head).is_dir() else Path(head).parent) / "report.json"
    return path if path.is_file() else None


def tokens(
    images: Images,
    out: Path,
    backbone: Annotated[BackboneConfig, arg(name="")] = BackboneConfig(),
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Draw images next to their tokens: the three main directions as red, green and blue.

    Example: dinoneck viz tokens images/ --backbone dinoneck_tiny --out tokens.png

    Args:
        images: images, or folders searched with their subfolders.
        out: the picture to write (.png, .jpg or .pdf).
        backbone: the model; --layers names the one block whose tokens are drawn (default: the last).
        size: resize images to this size (default: their own).
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """
    names, pictures, features, about = _features(images, out, _FORMATS, backbone, size, device)
    from dinoneck.tokens import Tokens
    from dinoneck.viz.panels import pca_panels

    save_picture(out, pca_panels(pictures, Tokens.cat(features), names=names, note=about))
    print(f"{counted(len(names), 'image')} drawn; written: {out}")
    return {"written": [out], "images": len(names)}


def similarity(
    images: Images,
    out: Path,
    backbone: Annotated[BackboneConfig, arg(name="")] = BackboneConfig(),
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Write a page that shows how similar the patches of images are to the one under the pointer.

    Example: dinoneck viz similarity a.jpg b.jpg --backbone dinoneck_tiny --out similar.html

    Args:
        images: images, or folders searched with their subfolders.
        out: the .html file to write; it needs no network.
        backbone: the model; --layers names the one block whose tokens are compared (default: the last).
        size: resize images to this size (default: their own).
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """
    names, pictures, features, about = _features(images, out, _PAGES, backbone, size, device)
    from dinoneck.atomic import write_text
    from dinoneck.viz.similarity import similarity_page

    title = f"Similar patches, block {features[0].layers[-1] if features[0].layers else '?'} {about}".rstrip()
    write_text(out, similarity_page(features, pictures, names=names, title=title))
    print(f"{counted(len(names), 'image')} compared; written: {out} ({file_size(out.stat().st_size)})")
    return {"written": [out], "images": len(names)}


def _features(
    images: Sequence[Path],
    out: Path,
    suffixes: Sequence[str],
    backbone: BackboneConfig,
    size: tuple[int, int] | None,
    device: str | None,
) -> tuple[list[str], list[Any], list[Tokens], str]:
    """The names of images, their pixels as the backbone sees them, their tokens, and a note on random weights."""
    files = list_images(images)
    check_output(out, files, suffixes)
    if len(files) > _MOST:
        raise DataError(f"{len(files)} images; one picture takes {_MOST} at most. Name fewer, such as images/*1.jpg")
    check_backbone_name(backbone.name, backbone.source)
    import torch

    from dinoneck.training.source import open_backbone

    model = open_backbone(backbone, device)
    recipe = model.preprocess.changed(size=size, resize="crop" if size is None else None)
    place = next(model.parameters()).device
    with torch.no_grad():
        features = [model(recipe(file).to(place)).to("cpu", torch.float32) for file in files]
    note = "(random weights)" if model.weights["kind"] == "seeded" else ""
    return [file.name for file in files], [recipe.picture(file) for file in files], features, note


def _training_report(path: Path | None) -> dict[str, Any]:
    """The report of a training run, with what the other files of the run hold for the page."""
    from dinoneck.viz.drawing import new_figure
    from dinoneck.viz.score_tables import all_tables

    new_figure(1.0, 1.0)
    if path is None:
        return {}
    try:
        found: dict[str, Any] = json.loads(read_regular(path))
        if not all_tables(found):
            raise DataError("it holds no scores; expected the report.json of a training run")
    except (OSError, RecursionError, ValueError) as error:
        raise DataError(f"--scores {path} cannot be used: {error}") from error
    if "groups_predicted" in found:
        found["remarks"] = [found["verdict"]]
    if "best" in found and (log := path.with_name("log.jsonl")).is_file():
        found["log"] = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    held_out, table = {}, path.with_name("out_of_fold.csv")
    if table.is_file():
        from dinoneck.data.tables import read_cells, read_table

        numeric = {
            name for name, own in found.get("scores", {}).items() if "r2" in own["head"] and own["head"]["images"]
        }
        for name in numeric.intersection(read_cells(table).columns):
            both = [name, f"{name} (head)"]
            held_out[name] = read_table(table, None, both)[both].dropna().to_numpy().T
    return {**found, "folder": path.parent, "held_out": dict(sorted(held_out.items()))}


def _check_scores(path: Path | None, training: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Refuse the scores of a run that trained heads for other targets."""
    scored = [name for name in training.get("scores", {}) if name != "overall"]
    predicted = {name for task in tasks for name in (task.name, *task.columns, *task.labels)}
    predicted |= {f"{task.name} {label}" for task in tasks for label in task.labels or range(task.dim)}  # of maps
    if training and predicted.isdisjoint(scored):
        raise DataError(
            f"--scores {path} holds the scores of {', '.join(scored) or 'boxes'}, and the head predicts "
            f"{', '.join(task.name for task in tasks)}; name the report.json of the run that trained the head"
        )


def _columns(tasks: Sequence[Task]) -> dict[str, Sequence[str]]:
    """The columns that may hold known values -> the classes of those that hold classes."""
    from dinoneck.tasks import columns_of

    columns: dict[str, Sequence[str]] = {column.name: () for column in columns_of(tasks)}
    return columns | {task.name: task.labels for task in tasks if task.kind == "classification"}


def _entries(
    predictor: Predictor,
    files: Sequence[Path],
    known: Sequence[Mapping[str, Any]] | None,
    most: int,
    with_tokens: bool,
) -> tuple[list[ReportEntry], dict[str, str]]:
    """An entry per image that can be used, with pixels for those that are drawn; why others cannot."""
    from dinoneck.inference.results import predict_many
    from dinoneck.viz.report import worst_first
    from dinoneck.viz.scales import ReportEntry

    names, unusable = names_below(files), dict[int, str]()
    with_maps, some, is_many = partial(predictor, maps="patch"), 4 * predictor.batch_size, len(files) > most
    results = predict_many(predictor if is_many else with_maps, files, at_once=some, unusable=unusable)
    if not results:
        raise DataError(f"none of the {len(files)} images can be used; the first: {unusable[0]}")
    places = sorted(results)
    entries = [ReportEntry(names[place], results[place], known=known[place] if known else {}) for place in places]
    order = worst_first(entries, predictor.tasks)[:most]
    colours = _token_colours(predictor, [files[places[i]] for i in order]) if with_tokens else [None] * len(order)
    if is_many:  # the maps of all images would not fit
        results |= predict_many(with_maps, files, [places[i] for i in order], at_once=some)
    for i, tokens in zip(order, colours, strict=True):
        picture = partial(predictor.picture, files[places[i]])
        entries[i] = replace(entries[i], result=results[places[i]], image=picture, tokens=tokens)
    return entries, {names[place]: reason for place, reason in unusable.items()}


def _token_colours(predictor: Predictor, files: Sequence[Path]) -> list[Any]:
    """The last layer's patches as colours, whose directions all images share: those of the first ones."""
    import torch

    from dinoneck.backbones.adapter import evaluating
    from dinoneck.viz.pca import PCABasis, pca_rgb

    maps = []
    with torch.no_grad(), evaluating(predictor.backbone):
        for file in files:
            tokens = predictor.backbone(predictor.preprocess(file).to(predictor.device))
            maps.append(tokens.last.maps()[0].float().cpu())
    rows = [patches[0].flatten(1).T for patches in maps[:_FITTED]]
    basis = PCABasis.fit(torch.cat(rows)) if rows else None
    return [pca_rgb(patches, basis=basis)[0] for patches in maps]


def _head_facts(head: str, heads: Sequence[Any]) -> dict[str, str]:
    """What the first head is, in the words of ``dinoneck inspect``, and where the heads come from."""
    from dinoneck.cli.inspect import entries

    commits = {f"commit of {one.source}": one.revision for one in heads if one.revision}
    return {"from": f"{head}, {counted(len(heads), 'head')}", **commits, **entries(heads[0].meta)}


viz = {"report": report, "tokens": tokens, "similarity": similarity}
