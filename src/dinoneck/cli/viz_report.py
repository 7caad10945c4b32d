"""``dinoneck viz report``: predictions, maps and residuals of many photos as one HTML file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import HeadBackbone, Images, Views, check_output, list_images, whole
from dinoneck.cli.predict import open_predictor
from dinoneck.cli.text import file_size, say
from dinoneck.errors import DataError, counted

if TYPE_CHECKING:
    import numpy as np

    from dinoneck.inference.predictor import Predictor
    from dinoneck.viz.report.photos import ReportEntry

_DRAWN = 24
_MEGABYTES = 20.0
_FITTED, _PATCHES = 24, 20_000  # photos, and their patches, that the colours of tokens are fitted on
_HEADS_TOLD = 50


def report(
    head: Annotated[str, Positional],
    images: Images,
    out: Path,
    truth: Annotated[Path | None, arg(metavar="CSV")] = None,
    image_column: str = "image",
    scores: Annotated[Path | None, arg(metavar="JSON")] = None,
    title: str | None = None,
    max_images: Annotated[int, whole(0)] = _DRAWN,
    max_mb: float = _MEGABYTES,
    no_tokens: bool = False,
    strict: bool = False,
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Predict from images and write a report: one HTML file that opens in a browser without a network.

    Example: dinoneck viz report run/heads images/ --truth known.csv --out report.html

    Args:
        head: a head file, a folder of them or of an ensemble, or a Hub repository.
        images: images, or folders, which are searched with their subfolders.
        out: the .html file to write.
        truth: known values, in columns named like the predictions: adds residuals.
        image_column: column of file names in --truth.
        scores: report.json of the training run: adds its held-out scores.
        title: of the page (default: Predictions of HEAD).
        max_images: images to draw, with --truth those with the largest errors; the table lists all.
        max_mb: megabytes of the images drawn: they get smaller, then fewer.
        no_tokens: leave out the colours of the tokens.
        strict: exit with 1 if an image cannot be read.
        views: how the images are predicted.
        backbone: where the weights come from.
    """
    from dinoneck.atomic import write_text
    from dinoneck.cli.known_values import known_values
    from dinoneck.viz.report.numbers import outputs
    from dinoneck.viz.report.page import html_report

    if not max_mb > 0:
        raise DataError(f"--max-mb is {max_mb:g}; expected a number above 0")
    files = list(dict.fromkeys(list_images(images)))
    check_output(out, [*files, head, truth, scores], (".html", ".htm"))
    training = {} if scores is None else _training_report(scores)
    predictor, facts = opened_predictor(head, views, backbone)
    columns = [output.key for output in outputs(predictor.tasks)]
    known: Sequence[Mapping[str, float]] = [{}] * len(files)
    if truth is not None:
        known = known_values(truth, image_column, files, columns)
    unread: dict[int, str] = {}
    options = SimpleNamespace(truth=truth, max_photos=max_images, no_tokens=no_tokens)
    entries = _entries(options, predictor, files, known, unread)
    facts["How it was run"] = _run_facts(options, predictor, len(files), len(unread))
    named = f"Predictions of {'/'.join(Path(head).parts[-2:])}" if title is None else title
    left_out = {str(files[place]): reason for place, reason in unread.items()}
    by_name = {_names(files)[place]: reason for place, reason in unread.items()}
    page = html_report(
        entries,
        predictor.tasks,
        title=named,
        facts=facts,
        training=training,
        unread=by_name,
        max_bytes=max(1, round(max_mb * 1e6)),
    )
    write_text(out, page)
    document = {**_counts(out, page, len(entries), left_out), "scores": _told_scores(entries, predictor)}
    return {"ok": not (unread and strict), **document}


def _counts(out: Path, page: str, predicted: int, left_out: Mapping[str, str]) -> dict[str, Any]:
    """What was written, printed too."""
    size, drawn = len(page.encode("utf-8")), page.count("<article ")
    print(f"{counted(predicted, 'image')} predicted, {drawn} drawn; written: {out} ({file_size(size)})")
    for name, reason in left_out.items():
        say(f"left out: {name}: {reason}")
    return {"written": [out], "bytes": size, "photos": predicted, "drawn": drawn, "unread": left_out}


def opened_predictor(head: str, views: Views, backbone: HeadBackbone) -> tuple[Predictor, dict[str, dict[str, str]]]:
    """Return the predictor that the options ask for, and what its heads are, in words."""
    predictor, sources, heads, commits = open_predictor(head, views, backbone)
    return predictor, _head_facts(head, sources, heads, commits)


def _training_report(path: Path) -> dict[str, Any]:
    """The report of a training run, checked before any work."""
    from dinoneck.viz.score_tables import all_tables

    try:
        report: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if not all_tables(report):
            raise DataError("it holds no scores; expected the report.json of a training run")
    except (OSError, RecursionError, ValueError) as error:
        raise DataError(f"--scores {path} cannot be used: {error}") from error
    return report


def _entries(
    options: Any,
    predictor: Predictor,
    photos: Sequence[Path],
    known: Sequence[Mapping[str, float]],
    unread: dict[int, str],
) -> list[ReportEntry]:
    """An entry per photo that can be read, with pictures for those that are drawn; the others go to ``unread``."""
    from dinoneck.inference.many import predict_many
    from dinoneck.viz.report.page import worst_first
    from dinoneck.viz.report.photos import ReportEntry

    names, everything = _names(photos), list(range(len(photos)))
    if options.truth is None or len(photos) <= options.max_photos:
        drawn, rest = everything[: options.max_photos], everything[options.max_photos :]
        results = predict_many(predictor, photos, drawn, maps=True, unusable=unread) | predict_many(
            predictor, photos, rest, unusable=unread
        )
    else:
        results = predict_many(predictor, photos, everything, unusable=unread)
        order = list(results)
        plain = [ReportEntry(names[place], results[place], known=known[place]) for place in order]
        drawn = [order[i] for i in worst_first(plain, predictor.tasks)][: options.max_photos]
        results |= predict_many(predictor, photos, drawn, maps=True, unusable=unread)
    if not results:
        raise DataError(f"none of the {len(photos)} photos can be used; the first: {unread[0]}")
    drawn = [place for place in drawn if place in results]
    tokens = {} if options.no_tokens else _token_colours(predictor, photos, drawn)
    pictures = {place: partial(_pixels, predictor, photos[place]) for place in drawn}
    return [
        ReportEntry(names[place], results[place], pictures.get(place), tokens.get(place), known[place])
        for place in sorted(results)
    ]


def _names(photos: Sequence[Path]) -> list[str]:
    """The photos by their names below the folder that they share."""
    try:
        shared = Path(os.path.commonpath([photo.parent for photo in photos]))
    except ValueError:  # some absolute, some not
        return [str(photo) for photo in photos]
    return [str(photo.relative_to(shared)) for photo in photos]


def _pixels(predictor: Predictor, photo: Path) -> np.ndarray[Any, Any]:
    """The photo as the model saw it, (H, W, 3) bytes."""
    return (predictor.picture(photo).permute(1, 2, 0) * 255.0).round().byte().numpy()


def _token_colours(
    predictor: Predictor, photos: Sequence[Path], places: Sequence[int]
) -> dict[int, np.ndarray[Any, Any]]:
    """The last layer's patches as colours, whose directions all photos share: those of the first ones."""
    import torch

    from dinoneck.backbones.eval_mode import evaluating
    from dinoneck.progress import progress
    from dinoneck.viz.pca import PCABasis, pca_rgb

    def patches(place: int) -> Any:
        tokens = predictor.backbone(predictor.preprocess(photos[place]).to(predictor.device))
        return tokens.last.maps()[0].float().cpu()

    if not places:
        return {}
    with torch.no_grad(), evaluating(predictor.backbone):
        maps = map(patches, progress(places, desc="tokens", unit="image"))
        first = list(islice(maps, _FITTED))
        share = -(-sum(m.shape[-2] * m.shape[-1] for m in first) // _PATCHES)
        basis = PCABasis.fit(torch.cat([m[0].flatten(1).T[::share] for m in first]))
        return {place: pca_rgb(m, basis=basis)[0] for place, m in zip(places, chain(first, maps), strict=True)}


def _head_facts(
    given: str, sources: Sequence[Any], heads: Sequence[Any], commits: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """What the heads are, as ``dinoneck inspect`` tells it; of several what they share, then what differs."""
    from dinoneck.cli.inspect import entries

    told = {str(source): entries(head.meta) for source, head in zip(sources, heads, strict=True)}
    commit = {"commit": next(iter(commits.values()))} if commits else {}
    if len(told) == 1:
        return {"The head": {"from": given, **commit, **next(iter(told.values()))}}
    first = next(iter(told.values()))
    shared = {key: text for key, text in first.items() if all(one.get(key) == text for one in told.values())}
    own = {
        name: "; ".join(f"{key} {text}" for key, text in one.items() if key not in shared)
        for name, one in list(told.items())[:_HEADS_TOLD]
    }
    more = {"more": f"{len(told) - _HEADS_TOLD} other heads"} if len(told) > _HEADS_TOLD else {}
    return {"The heads": {"from": f"{given}, {len(told)} heads", **commit, **shared, **own, **more}}


def _run_facts(options: Any, predictor: Predictor, given: int, unread: int) -> dict[str, str]:
    from datetime import UTC, datetime

    from dinoneck.version import versions

    views = len(predictor.views)
    told = {
        "photos": f"{given} given, {given - unread} read",
        "views": predictor.tta if views == 1 else f"{predictor.tta}, the mean of {views} views",
        "device": str(predictor.device),
    }
    told |= {"known values": str(options.truth)} if options.truth is not None else {}
    told["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    return told | {"made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


def _told_scores(entries: Sequence[ReportEntry], predictor: Predictor) -> dict[str, dict[str, float]]:
    from dinoneck.viz.report.numbers import outputs
    from dinoneck.viz.report.page import agreement

    return {key: told._asdict() for key, told in agreement(entries, outputs(predictor.tasks)).items()}
