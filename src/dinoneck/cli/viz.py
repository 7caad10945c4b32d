"""``dinoneck viz``: pictures of what a backbone and a head compute; a report to open in a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
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
    refuse_unused,
    whole,
)
from dinoneck.cli.predict import open_predictor, read_heads
from dinoneck.cli.text import file_size, save_picture, show
from dinoneck.cli.viz_known import box_entries, held_out, known_values, names_below
from dinoneck.errors import DataError, counted
from dinoneck.regular_files import read_regular
from dinoneck.training.config import BackboneConfig
from dinoneck.training.config_flags import SIZE

if TYPE_CHECKING:
    from dinoneck.inference.predictor import Predictor
    from dinoneck.tasks import Task
    from dinoneck.viz.scales import ReportEntry

_FORMATS = (".png", ".jpg", ".pdf")
_MOST = 48  # images of one figure
_HEADS = 50  # that the report describes one by one
_AT_ONCE = 4  # images of one pass of the backbone
_FITTED, _PATCHES = 24, 20_000  # images, and their patches, that the colours of tokens are fitted on


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
    check_output(out, [*files, head, truth, scores], (".html", ".htm"))
    training = _training_report(scores or (None if images else _report_of(head)))
    read = read_heads({"": (head,)}, views.revision, backbone.weights)
    tasks: Sequence[Task] = ()
    if read.opened[0].head_type == "detector":
        refuse_unused(report, "a detector", options)
        entries, left_out = box_entries(read.opened[0], images, truth, training, max_images, views, backbone)
        lowest = views.min_score if views.min_score is not None else read.opened[0].config["min_score"]
        device, how = views.device or "the default", f"boxes of a score of {lowest:.2g} or more"
    else:
        refuse_unused(report, "heads", options)
        files = files or list_images(images)
        predictor, _ = open_predictor(read, views, backbone)
        tasks = predictor.tasks
        _check_scores(scores, training, tasks)
        known = None if truth is None else known_values(truth, image_column, files, _columns(tasks))
        entries, left_out = _entries(predictor, files, known, max_images, not no_tokens)
        device, how = str(predictor.device), f"{predictor.tta}, the mean of {len(predictor.views)} views"
    facts = _head_facts(head, read.opened)
    facts["How it was run"] = _run_facts(len(entries), len(left_out), how, device, truth)
    title = f"Predictions of {'/'.join(Path(head).parts[-2:])}"
    shown = {"title": title, "facts": facts, "training": training}
    return {"ok": not (left_out and strict), **_write_report(out, entries, tasks, left_out, shown)}


def _report_of(head: str) -> Path | None:
    """The report of the training run in whose folder a head lies, if it is there."""
    path = (Path(head) if Path(head).is_dir() else Path(head).parent) / "report.json"
    return path if path.is_file() else None


def _write_report(
    out: Path,
    entries: Sequence[ReportEntry],
    tasks: Sequence[Task],
    left_out: Mapping[str, str],
    shown: Mapping[str, Any],
) -> dict[str, Any]:
    from dinoneck.atomic import write_text
    from dinoneck.viz.report import agreement, html_report

    page = html_report(entries, tasks, unread=left_out, **shown)
    write_text(out, page)
    size, drawn = out.stat().st_size, page.count("<article ")
    print(f"{counted(len(entries), 'image')} predicted, {drawn} drawn; written: {out} ({file_size(size)})")
    for name, reason in left_out.items():
        show(f"left out: {name}: {reason}")
    counts = {"bytes": size, "images": len(entries), "drawn": drawn, "unread": left_out}
    return {"written": [out], **counts, "scores": agreement(entries, tasks)}


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
    files = list_images(images)
    check_output(out, [*images, *files], _FORMATS)
    if len(files) > _MOST:
        raise DataError(f"{len(files)} images; one figure takes {_MOST} at most. Name fewer, such as images/*1.jpg")
    check_backbone_name(backbone.name, backbone.source)
    import torch

    from dinoneck.data.decoding import read_image_size
    from dinoneck.tokens import Tokens
    from dinoneck.training.source import open_backbone
    from dinoneck.viz.panels import pca_panels

    model = open_backbone(backbone, device)
    recipe = model.preprocess.changed(size=size, resize="crop" if size is None else None)
    prepared = recipe.prepare(files)
    with torch.no_grad():
        parts = [model(batch.to(next(model.parameters()).device)) for batch in torch.split(prepared.images, _AT_ONCE)]
    pictures = [recipe.picture(file) for file in files]
    whole_size, kept = size or read_image_size(files[0]), pictures[0].shape[-2:]
    if whole_size != tuple(kept):
        become = f"{whole_size[0]}x{whole_size[1]} px become {kept[0]}x{kept[1]}"
        show(f"{files[0]}: {become}, as the patch does not divide them (--size HxW resizes images).")
    features = Tokens.cat([part.to("cpu", torch.float32) for part in parts])
    note = "(random weights)" if model.weights["kind"] == "seeded" else ""
    save_picture(out, pca_panels(pictures, features, names=[file.name for file in files], note=note))
    print(f"{counted(len(files), 'image')} drawn; written: {out}")
    return {"written": [out], "images": len(files)}


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
    files = list_images(images)
    check_output(out, [*images, *files], (".html", ".htm"))
    if len(files) > _MOST:
        raise DataError(f"{len(files)} images; one page takes {_MOST} at most. Name fewer, such as images/*1.jpg")
    check_backbone_name(backbone.name, backbone.source)
    import torch

    from dinoneck.atomic import write_text
    from dinoneck.training.source import open_backbone
    from dinoneck.viz.similarity import similarity_page

    model = open_backbone(backbone, device)
    recipe = model.preprocess.changed(size=size, resize="crop" if size is None else None)
    place = next(model.parameters()).device
    with torch.no_grad():
        features = [model(recipe(file).to(place)).to("cpu", torch.float32) for file in files]
    note = ", random weights" if model.weights["kind"] == "seeded" else ""
    title = f"Similar patches: {model.name}, block {features[0].layers[-1] if features[0].layers else '?'}{note}"
    pictures = [recipe.picture(file) for file in files]
    write_text(out, similarity_page(features, pictures, names=[file.name for file in files], title=title))
    print(f"{counted(len(files), 'image')} compared; written: {out} ({file_size(out.stat().st_size)})")
    return {"written": [out], "images": len(files)}


viz = {"report": report, "tokens": tokens, "similarity": similarity}


def _training_report(path: Path | None) -> dict[str, Any]:
    """The report of a training run with the held-out values next to it, checked before any work like matplotlib."""
    from dinoneck.data.tables import read_cells
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
    table, log = path.with_name("out_of_fold.csv"), path.with_name("log.jsonl")
    columns = read_cells(table).columns if table.is_file() else ()  # of numbers and classes, without maps
    numeric = [name for name, methods in found.get("scores", {}).items() if "r2" in methods["head"]]
    targets = [name for name in numeric if name in columns and found["scores"][name]["head"]["images"]]
    if "groups_predicted" in found:
        found["remarks"] = [found["verdict"]]
    if "best" in found and log.is_file():
        found["log"] = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    found["folder"] = path.parent
    return found | {"held_out": {name: held_out(table, name) for name in targets}}


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
    """An entry per image that can be used, with pixels and maps for those that are drawn; why others cannot."""
    from dinoneck.inference.results import predict_many
    from dinoneck.viz.report import worst_first
    from dinoneck.viz.scales import ReportEntry

    def entry(place: int, **drawn: Any) -> ReportEntry:
        return ReportEntry(names[place], results[place], known=known[place] if known else {}, **drawn)

    names, order, some = names_below(files), list(range(len(files))), 4 * predictor.batch_size
    results, unusable = dict[int, dict[str, Any]](), dict[int, str]()
    if known is not None and len(files) > most:
        results = predict_many(predictor, files, at_once=some, unusable=unusable)
        order = [[*results][i] for i in worst_first([entry(place) for place in results], predictor.tasks)]
    drawn = predict_many(partial(predictor, maps="patch"), files, order[:most], at_once=some, unusable=unusable)
    rest = [place for place in order[most:] if place not in results]
    results |= drawn | predict_many(predictor, files, rest, at_once=some, unusable=unusable)
    if not results:
        raise DataError(f"none of the {len(files)} images can be used; the first: {unusable[0]}")
    colours = _token_colours(predictor, files, list(drawn)) if with_tokens and drawn else {}
    pixels = {place: partial(predictor.picture, files[place]) for place in drawn}
    entries = [entry(place, image=pixels.get(place), tokens=colours.get(place)) for place in sorted(results)]
    return entries, {names[place]: reason for place, reason in unusable.items()}


def _token_colours(predictor: Predictor, files: Sequence[Path], places: Sequence[int]) -> dict[int, Any]:
    """The last layer's patches as colours, whose directions all images share: those of the first ones."""
    import torch

    from dinoneck.backbones.adapter import evaluating
    from dinoneck.viz.pca import PCABasis, pca_rgb

    def patches(place: int) -> Any:
        tokens = predictor.backbone(predictor.preprocess(files[place]).to(predictor.device))
        return tokens.last.maps()[0].float().cpu()

    with torch.no_grad(), evaluating(predictor.backbone):
        maps = map(patches, places)
        first = list(islice(maps, _FITTED))
        share = -(-sum(m.shape[-2] * m.shape[-1] for m in first) // _PATCHES)
        basis = PCABasis.fit(torch.cat([m[0].flatten(1).T[::share] for m in first]))
        return {place: pca_rgb(m, basis=basis)[0] for place, m in zip(places, chain(first, maps), strict=True)}


def _head_facts(head: str, heads: Sequence[Any]) -> dict[str, dict[str, str]]:
    """What the heads are, in the words of ``dinoneck inspect``; of several what they share, then what differs."""
    from dinoneck.cli.inspect import entries

    found = {one.source: entries(one.meta) for one in heads}
    first = next(iter(found.values()))
    shared = {key: text for key, text in first.items() if all(own.get(key) == text for own in found.values())}
    if len(found) == 1:
        commits = {f"commit of {one.source}": one.revision for one in heads if one.revision}
        return {"The head": {"from": head, **commits, **first}}
    own = {
        name: "; ".join(f"{key} {text}" for key, text in one.items() if key not in shared)
        for name, one in list(found.items())[:_HEADS]
    }
    more = {"more": f"{len(found) - _HEADS} other heads"} if len(found) > _HEADS else {}
    return {"The heads": {"from": f"{head}, {len(found)} heads", **shared, **own, **more}}


def _run_facts(used: int, left_out: int, how: str, device: str, truth: Path | None) -> dict[str, str]:
    from datetime import UTC, datetime

    from dinoneck.version import versions

    return {
        "images": f"{used + left_out} given, {used} used",
        "views": how,
        "device": device,
        "known values": str(truth or "none"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "made": f"{datetime.now(UTC):%Y-%m-%d}",
    }
