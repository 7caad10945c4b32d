"""``dinoneck predict``: values in natural units from photos, with a picture of where they come from."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dinoneck.cli import backbone_options, detect, numbers
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output
from dinoneck.cli.text import say, tell_pooled
from dinoneck.cli.train_text import describe_size
from dinoneck.errors import ConfigError, DataError, DinoneckError, counted, printable

if TYPE_CHECKING:
    from torch import Tensor

    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.inference.predictor import Predictor

HELP = "predict from photos with trained heads; write a CSV, and pictures on request"
EXAMPLE = "dinoneck predict photos/ --heads run/heads --out submission.csv --maps"

logger = logging.getLogger(__name__)
_FILLED = " (its rows hold the mean of the other images' predictions)"
_PICTURES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("photos", nargs="*", type=Path, help="photos, or folders, which are searched to the bottom")
    parser.add_argument("--csv", type=Path, help="a CSV that names the photos, or a CSIRO test.csv, instead")
    parser.add_argument(
        "--photo-folder", type=Path, help="folder that the CSV's names are relative to (default: the CSV's)"
    )
    parser.add_argument(
        "--image-column", default="image", metavar="COLUMN", help="column of file names (default image)"
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        required=True,
        metavar="DIR_OR_REPO",
        help="head files, folders of them or of an ensemble, or hub repositories (user/name)",
    )
    parser.add_argument("--revision", help="a branch, tag or commit of the hub repositories (default: main)")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    parser.add_argument(
        "--maps",
        nargs="?",
        const=True,
        type=Path,
        metavar="PNG",
        help=f"draw the first {_PICTURES} photos beside their heat maps (without a name: --out's, with .png)",
    )
    parser.add_argument(
        "--skip-unusable",
        action="store_true",
        help="leave out images that cannot be read or used, in a submission use the mean of the others; list them",
    )
    add_views(parser)
    _add_tiles(parser)
    add_json(parser)
    parser.add_argument(
        "--weights",
        nargs="+",
        type=numbers.not_negative,
        metavar="W",
        help="one per head, in order (files of a folder by name)",
    )
    parser.add_argument(
        "--reduce", choices=("mean", "median"), default="mean", help="over heads of the same task (default mean)"
    )
    parser.add_argument(
        "--batch-size", type=numbers.count, default=8, metavar="N", help="photos or tiles at once (default 8)"
    )
    add_compared_backbone(parser)


def add_views(parser: argparse.ArgumentParser) -> None:
    """Declare --tta; :func:`views_of` reads it."""
    parser.add_argument(
        "--tta",
        choices=("none", "flip4", "d6"),
        help="views to average (default: those that the heads' training file named, else none)",
    )


def add_compared_backbone(parser: argparse.ArgumentParser) -> None:
    """Declare which backbone the heads are rebuilt on, and --probe: how it is compared with theirs."""
    backbone_options.add_rebuilt(parser)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="let what the backbone does decide whether it is the heads', not its digest",
    )


def _add_tiles(parser: argparse.ArgumentParser) -> None:
    tiles = parser.add_argument_group("photos larger than the heads' size, cut into tiles")
    tiles.add_argument(
        "--tile",
        type=backbone_options.size,
        metavar="HxW",
        help="pixels of the photo that are brought to the heads' size (480x960)",
    )
    tiles.add_argument(
        "--overlap",
        type=numbers.length,
        default=0,
        metavar="PX_OR_SHARE",
        help="of neighbouring tiles at least: 64 is pixels, 0.25 a share of the tile (default 0)",
    )
    tiles.add_argument(
        "--tile-scale",
        type=numbers.positive,
        default=1.0,
        metavar="FACTOR",
        help="photos' sides are multiplied by it first (default 1, their own resolution)",
    )


def run(options: argparse.Namespace) -> int:
    """Predict and write."""
    from dinoneck.atomic import write_text, write_whole
    from dinoneck.data.tables import csv_text
    from dinoneck.inference.panel import check_weights
    from dinoneck.inference.predictor import Predictor
    from dinoneck.inference.sources import listed, revisions_of

    if options.maps is True:
        options.maps = options.out.with_suffix(".png")
    names, photos = _photos(options)
    _check_outputs(options, photos)
    sources = listed(options.heads)
    check_weights(options.weights, len(sources), options.reduce)
    heads = _opened(sources, options)
    commits = revisions_of(sources, heads)
    for repo, commit in commits.items():
        print(f"{repo} is commit {commit}.")
    if heads[0].head_type == "detector":
        return detect.predict(options, heads[0], names, photos)
    predictor = Predictor(
        heads,
        backbone_options.rebuilt(options, cast("HeadCheckpoint", heads[0])),
        views_of(options, heads),
        options.device,
        tile=options.tile,
        overlap=options.overlap,
        tile_scale=options.tile_scale,
        weights=options.weights,
        reduce=options.reduce,
        batch_size=options.batch_size,
        probe=options.probe,
    )
    unread: dict[int, str] | None = {} if options.skip_unusable else None
    if unread is None:
        print("\n".join(_told_photo(predictor, photos[0])))
    first = min(_PICTURES, len(photos)) if options.maps else 0
    with_maps = predicted(predictor, photos, range(first), True, unread)
    found = with_maps | predicted(predictor, photos, range(first, len(photos)), False, unread)
    if not found:
        raise DataError(f"none of the {len(photos)} photos can be used; the first: {(unread or {})[0]}")
    drawn, picture = [*with_maps], b""
    if drawn:
        shown = [predictor.picture(photos[place]) for place in drawn]
        picture = _drawn([Path(names[place]).name for place in drawn], shown, [*with_maps.values()], predictor)
    left_out = {names[place]: reason for place, reason in (unread or {}).items()}
    names, results = [names[place] for place in found], [*found.values()]
    header, rows, filled = _rows(options, names, results, predictor)
    written = [options.out, *([options.maps] if drawn else [])]
    answer(options, written=written, revisions=commits, tasks=_told_tasks(predictor), unusable=left_out, filled=filled)
    answer(options, predictions=[_told(name, result, predictor) for name, result in zip(names, results, strict=True)])
    if drawn:
        write_whole(options.maps, picture)
    write_text(options.out, csv_text(header, rows))
    for name, reason in left_out.items():
        say(f"left out: {name}: {reason}{_FILLED if name in filled else ''}")
    print(f"{counted(len(names), 'photo')} predicted; written: {', '.join(map(str, written))}")
    return 0


def predicted(
    predictor: Predictor, photos: Sequence[Path], places: Sequence[int], maps: bool, unread: dict[int, str] | None
) -> dict[int, dict[str, Any]]:
    """Return place -> answer; photos that cannot be read, or used, are left out, and ``unread`` tells why.

    Raises:
        DinoneckError: what is wrong with the first such photo, if ``unread`` is None.
    """
    from tqdm import tqdm

    found: dict[int, dict[str, Any]] = {}
    if not places:
        return found
    batches = range(0, len(places), predictor.batch_size)
    for begin in tqdm(batches, desc="photos", unit="batch", disable=None):
        batch = places[begin : begin + predictor.batch_size]
        try:
            found |= dict(zip(batch, predictor([photos[place] for place in batch], maps), strict=True))
            continue
        except (DinoneckError, OSError):
            if unread is None:
                raise
            logger.info("a photo of %d cannot be used; they are taken one by one", len(batch), exc_info=True)
        for place in batch:
            try:
                found[place] = predictor(photos[place], maps)[0]
            except (DinoneckError, OSError) as error:
                unread[place] = printable(str(error))
    return found


def _opened(sources: Sequence[Any], options: argparse.Namespace) -> list[Any]:
    from dinoneck.inference.sources import opened

    heads: list[Any] = opened(sources, options.revision)
    tell_pooled([head.meta["tasks"] for head in heads])
    return heads


def _told_photo(predictor: Predictor, photo: Path) -> list[str]:
    """Say what becomes of the first photo."""
    down, across = predictor.tiles(photo)
    if down * across == 1:
        return describe_size(predictor.preprocess, photo)
    height, width = predictor.picture(photo).shape[-2:]
    return [f"The first photo becomes {height}x{width} px (height x width), cut into {down}x{across} tiles."]


def views_of(options: argparse.Namespace, heads: Sequence[Any]) -> Any:
    """The views asked for; else those that the training file of the heads named."""
    if options.tta is not None:
        return options.tta
    named = {_named_views(head.meta) for head in heads}
    if len(named) > 1:
        raise ConfigError(f"the heads were trained for different views ({', '.join(sorted(named))}); choose with --tta")
    views = next(iter(named), "none")
    if views != "none":
        say(f"Views: {views}, as the heads' training file says (--tta none: the photo alone).")
    return views


def _named_views(meta: Mapping[str, Any]) -> str:
    """The views that a head file names; those of schema 1 kept them under ``extra``."""
    return str((meta.get("tta") or {}).get("ops") or meta["extra"].get("tta", "none"))


def _check_outputs(options: argparse.Namespace, photos: Sequence[Path]) -> None:
    """Refuse, before any work, outputs that cannot be written or would replace an input."""
    inputs = [*photos, *options.heads, options.csv, options.backbone_file]
    check_output(options.out, inputs, (".csv",))
    if options.maps is not None:
        check_output(options.maps, inputs, (".png",), "--maps")
        among = [folder for folder in options.photos if folder.resolve() in options.maps.resolve().parents]
        if among:
            say(f"{options.maps} lies among the photos of {among[0]}, and would be taken for one the next time.")
    missing = [path for path in photos if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(photos)} photos or folders do not exist, the first is {missing[0]}")
    for path in photos:
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"the name {str(path)!r} is no Unicode text, and --out holds nothing else; rename it"
            ) from None


def _photos(options: argparse.Namespace) -> tuple[list[str], list[Path]]:
    """Names for the output and files to read."""
    if bool(options.photos) == bool(options.csv):
        raise ConfigError("give either photos (or folders of them) or --csv with the names of the photos")
    if options.csv:
        from dinoneck.data.tables import is_csiro, read_column, read_csiro_test

        column = (
            read_csiro_test(options.csv).images
            if is_csiro(options.csv)
            else read_column(options.csv, options.image_column)
        )
        names = list(dict.fromkeys(column))
        folder = options.photo_folder or options.csv.parent
        return names, [folder / name for name in names]
    files = files_of(options.photos)
    return [str(file) for file in files], files


def files_of(photos: Sequence[Path]) -> list[Path]:
    """Return photos, and those in folders, which are searched to the bottom, as ``dinoneck extract`` finds them.

    Raises:
        DataError: if a folder holds none.
    """
    from dinoneck.data.image_files import SUFFIXES, images_below

    files: list[Path] = []
    tell_other_pictures(photos)
    for path in photos:
        inside = images_below(path)
        if not inside:
            raise DataError(f"the folder {path} holds no photos ({', '.join(SUFFIXES)})")
        files += inside
    return files


def tell_other_pictures(photos: Sequence[Path]) -> None:
    """Say which pictures of the folders are of kinds that are not read, or they would be missing without a word."""
    from dinoneck.data.image_files import other_images_below

    others = [file for path in photos for file in other_images_below(path)]
    if others:
        kinds = ", ".join(sorted({file.suffix.lower() for file in others}))
        say(
            f"left out: {counted(len(others), 'picture')} of other kinds ({kinds}), the first {others[0]}; convert them"
        )


def _drawn(
    names: Sequence[str], photos: Sequence[Tensor], results: Sequence[dict[str, Any]], predictor: Predictor
) -> bytes:
    """The photos beside their heat maps, as PNG."""
    import io

    from dinoneck.viz.panels import prediction_panels

    buffer = io.BytesIO()
    prediction_panels(photos, results, tasks=predictor.tasks, names=names).save(buffer, "PNG")
    return buffer.getvalue()


def _rows(
    options: argparse.Namespace, names: list[str], results: list[dict[str, Any]], predictor: Predictor
) -> tuple[list[str], list[list[Any]], list[str]]:
    """Header and rows of the output: the CSIRO submission form for its test.csv, else one row per image.

    A submission has a row for everything that is asked for. Images without a prediction get the mean of the others and
    are the third value.
    """
    from dinoneck.data.tables import is_csiro, read_csiro_test
    from dinoneck.inference.frames import table_row

    each = [table_row(result, predictor.tasks, image=name) for name, result in zip(names, results, strict=True)]
    if not (options.csv and is_csiro(options.csv)):
        return [*each[0]], [[*map(_written, row.values())] for row in each], []
    wanted = read_csiro_test(options.csv)
    columns = [column for column, value in each[0].items() if isinstance(value, float)]
    numbers: dict[str, list[Any]] = {column: [row[column] for row in each] for column in columns}
    for target in wanted.targets:
        if target not in numbers:
            raise DataError(f"{options.csv} asks for {target!r}; the heads predict {', '.join(numbers)}")
    by_image = dict(zip(names, each, strict=True))
    means = {target: sum(values) / len(values) for target, values in numbers.items()}
    asked = zip(wanted.sample_ids, wanted.images, wanted.targets, strict=True)
    rows = [[i, _written(by_image.get(image, means)[target])] for i, image, target in asked]
    return ["sample_id", "target"], rows, [image for image in dict.fromkeys(wanted.images) if image not in by_image]


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _told_tasks(predictor: Predictor) -> list[dict[str, Any]]:
    return [
        {"name": task.name, "kind": task.kind, "unit": task.unit, "labels": list(task.labels)}
        for task in predictor.tasks
    ]


def _told(name: str, result: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """A photo's answers for programs: a number per task, or a list of them."""
    values = {task.name: _values(result[task.name]) for task in predictor.tasks}
    alone = {task.name for task in predictor.tasks if task.dim == 1}
    return {"image": name, "values": {task: told[0] if task in alone else told for task, told in values.items()}}


def _values(answer: Any) -> list[float]:
    return [answer] if isinstance(answer, float) else [float(value) for value in answer]
