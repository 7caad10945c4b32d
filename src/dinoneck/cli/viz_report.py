"""``dinoneck viz report``: predictions, maps and residuals of many photos as one HTML file."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.cli import backbone_options, numbers
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output
from dinoneck.cli.predict import add_compared_backbone, add_views, files_of, predicted, views_of
from dinoneck.cli.text import file_size, say
from dinoneck.errors import DataError, counted

if TYPE_CHECKING:
    import numpy as np

    from dinoneck.inference.predictor import Predictor
    from dinoneck.viz.report.photos import ReportEntry

HELP = "predict from photos and write a report: one HTML file that opens in a browser without a network"
EXAMPLE = "dinoneck viz report run/heads photos/ --truth known.csv --out report.html"

_DRAWN = 24
_MEGABYTES = 20.0
_FITTED, _PATCHES = 24, 20_000  # photos, and their patches, that the colours of tokens are fitted on
_HEADS_TOLD = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_head_and_photos(parser)
    parser.add_argument("--out", type=Path, required=True, help="the .html file to write")
    parser.add_argument(
        "--truth", type=Path, metavar="CSV", help="known values, in columns named like the predictions: adds residuals"
    )
    parser.add_argument(
        "--image-column", default="image", metavar="COLUMN", help="column of file names in --truth (default image)"
    )
    parser.add_argument(
        "--scores", type=Path, metavar="JSON", help="report.json of the training run: adds its held-out scores"
    )
    parser.add_argument("--title", help="of the page (default: Predictions of HEAD)")
    parser.add_argument(
        "--max-photos",
        type=numbers.whole,
        default=_DRAWN,
        metavar="N",
        help=f"photos to draw, with --truth those that are off most (default {_DRAWN}); the table holds all",
    )
    parser.add_argument(
        "--max-mb",
        type=numbers.positive,
        default=_MEGABYTES,
        metavar="MB",
        help=f"of the photos drawn: they get smaller, then fewer (default {_MEGABYTES:g})",
    )
    parser.add_argument("--no-tokens", action="store_true", help="leave out the colours of the backbone's tokens")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a photo could not be read")
    add_json(parser)


def add_head_and_photos(parser: argparse.ArgumentParser) -> None:
    """Declare HEAD, PHOTOS and how they are predicted."""
    parser.add_argument("head", metavar="HEAD", help="a head file, a folder of them or of an ensemble, or a repository")
    parser.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTOS", help="photos, or folders, which are searched to the bottom"
    )
    add_views(parser)
    parser.add_argument("--revision", help="a branch, tag or commit of the hub repository (default: main)")
    parser.add_argument("--batch-size", type=numbers.count, default=8, metavar="N", help="photos at once (default 8)")
    add_compared_backbone(parser)


def run(options: argparse.Namespace) -> int:
    """Predict, draw, write."""
    from dinoneck.atomic import write_text
    from dinoneck.cli.known_values import known_values
    from dinoneck.viz.report.numbers import outputs
    from dinoneck.viz.report.page import html_report

    photos = list(dict.fromkeys(files_of(options.photos)))
    check_output(options.out, [*photos, options.head, options.truth, options.scores], (".html", ".htm"))
    training = {} if options.scores is None else _training_report(options.scores)
    predictor, facts = opened_predictor(options)
    columns = [output.key for output in outputs(predictor.tasks)]
    known: Sequence[Mapping[str, float]] = [{}] * len(photos)
    if options.truth is not None:
        known = known_values(options.truth, options.image_column, photos, columns)
    unread: dict[int, str] = {}
    entries = _entries(options, predictor, photos, known, unread)
    facts["How it was run"] = _run_facts(options, predictor, len(photos), len(unread))
    names = _names(photos)
    page = html_report(
        entries,
        predictor.tasks,
        title=f"Predictions of {'/'.join(Path(options.head).parts[-2:])}" if options.title is None else options.title,
        facts=facts,
        training=training,
        unread={names[place]: reason for place, reason in unread.items()},
        max_bytes=max(1, round(options.max_mb * 1e6)),
    )
    write_text(options.out, page)
    size, drawn = len(page.encode("utf-8")), page.count("<article ")
    told = {str(photos[place]): reason for place, reason in unread.items()}
    answer(options, written=[options.out], bytes=size, photos=len(entries), drawn=drawn, unread=told)
    answer(options, scores=_told_scores(entries, predictor))
    print(f"{counted(len(entries), 'photo')} predicted, {drawn} drawn; written: {options.out} ({file_size(size)})")
    for name, reason in told.items():
        say(f"left out: {name}: {reason}")
    return 1 if unread and options.strict else 0


def opened_predictor(options: argparse.Namespace) -> tuple[Predictor, dict[str, dict[str, str]]]:
    """Return the predictor that the options ask for, and what its heads are, in words."""
    from dinoneck.inference.predictor import Predictor
    from dinoneck.inference.sources import listed, opened, revisions_of

    sources = listed(options.head)
    heads = opened(sources, options.revision)
    predictor = Predictor(
        heads,
        backbone_options.rebuilt(options, heads[0]),  # type: ignore[arg-type]
        views_of(options, heads),
        options.device,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    return predictor, _head_facts(options.head, sources, heads, revisions_of(sources, heads))


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
    options: argparse.Namespace,
    predictor: Predictor,
    photos: Sequence[Path],
    known: Sequence[Mapping[str, float]],
    unread: dict[int, str],
) -> list[ReportEntry]:
    """An entry per photo that can be read, with pictures for those that are drawn; the others go to ``unread``."""
    from dinoneck.viz.report.page import worst_first
    from dinoneck.viz.report.photos import ReportEntry

    names, everything = _names(photos), list(range(len(photos)))
    if options.truth is None or len(photos) <= options.max_photos:
        drawn, rest = everything[: options.max_photos], everything[options.max_photos :]
        results = predicted(predictor, photos, drawn, True, unread) | predicted(predictor, photos, rest, False, unread)
    else:
        results = predicted(predictor, photos, everything, False, unread)
        order = list(results)
        plain = [ReportEntry(names[place], results[place], known=known[place]) for place in order]
        drawn = [order[i] for i in worst_first(plain, predictor.tasks)][: options.max_photos]
        results |= predicted(predictor, photos, drawn, True, unread)
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
    from tqdm import tqdm

    from dinoneck.backbones.eval_mode import evaluating
    from dinoneck.viz.pca import PCABasis, pca_rgb

    def patches(place: int) -> Any:
        tokens = predictor.backbone(predictor.preprocess(photos[place]).to(predictor.device))
        return tokens.last.maps()[0].float().cpu()

    if not places:
        return {}
    with torch.no_grad(), evaluating(predictor.backbone):
        maps = map(patches, tqdm(places, desc="tokens", unit="photo", disable=None))
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


def _run_facts(options: argparse.Namespace, predictor: Predictor, given: int, unread: int) -> dict[str, str]:
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
