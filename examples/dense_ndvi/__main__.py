"""``python -m examples.dense_ndvi DATA``: NDVI per patch from a colour image, next to four baselines.

The colours of one capture are what the backbone sees; its near infrared, which they do not show,
makes the label. Heads learn on the left of the capture and are tested on the right, with a strip
between. See README.md next to this file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dinoneck import (
    Backbone,
    DenseHead,
    FPNHead,
    HeadCheckpoint,
    Predictor,
    TargetTransform,
    Task,
    load_backbone,
)
from dinoneck.data import DenseLabels, Preprocessing
from dinoneck.errors import DataError, DinoneckError
from dinoneck.heads import Head
from dinoneck.training import MemoryTokens, Recipe, fit
from dinoneck.version import versions
from examples import kinds
from examples.dense_ndvi.bands import Bands, read_bands

Array = np.ndarray[Any, Any]

LAYERS = 4
TRAIN_SHARE = 0.6
VALID_SHARE = 0.5  # of a held-out cell's pixels
STRIDE_SHARE = 0.5  # of a tile, at most
FLIPS = ((), (1,), (0,), (0, 1))  # axes of (height, width)
BANDS_FOR_RIDGE = 5
ALPHAS = tuple(10.0**power for power in range(-2, 6))
FPN_DIM, BATCH_SIZE, LR = 64, 8, 1e-3


class Tile(NamedTuple):
    """A square cut out of the capture, in pixels; ``flip`` names the axes it is mirrored along."""

    top: int
    left: int
    flip: tuple[int, ...] = ()


class Split(NamedTuple):
    """The tiles to learn from, those to test on, and the part of the capture (two slices) that the latter fill."""

    train: list[Tile]
    test: list[Tile]
    part: tuple[slice, slice]


class Part(NamedTuple):
    """What the methods read of some tiles: tokens, and per cell NDVI, valid pixels, mean colour and ridge fold."""

    images: list[Array]
    source: MemoryTokens
    ndvi: Array
    weight: Array
    colour: Array
    fold: Array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.dense_ndvi", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with IMG_0001_1.tif ... IMG_0001_5.tif")
    parser.add_argument(
        "--out", type=Path, default=Path("dense-ndvi"), help="folder for the head and the picture"
    )
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3", metavar="NAME")
    parser.add_argument(
        "--pretrained", action="store_true", help="published weights instead of seeded random ones"
    )
    parser.add_argument("--epochs", type=kinds.count, default=15, metavar="N")
    parser.add_argument(
        "--seed", type=kinds.whole, default=0, metavar="N", help="first weights and order"
    )
    parser.add_argument(
        "--tile", type=kinds.count, default=256, metavar="PX", help="side of a tile (default 256)"
    )
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (DinoneckError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Cut, extract, train, test, save, predict from the saved file and draw."""
    bands = read_bands(options.data)
    backbone = load_backbone(options.backbone, pretrained=options.pretrained)
    backbone = backbone.with_layers([(i + 1) * backbone.depth // LAYERS - 1 for i in range(LAYERS)])
    prepare = backbone.preprocess
    split = split_capture(bands.ndvi.shape, options.tile, prepare.patch_size)
    train = read_part(bands, split.train, options.tile, backbone, prepare)
    test = read_part(bands, split.test, options.tile, backbone, prepare)
    print(f"{len(train.images)} training tiles, {len(test.images)} test tiles of {options.tile} px")

    maps = baselines(train, test)
    torch.manual_seed(options.seed)
    task = Task(
        "ndvi", kind="dense", transform=TargetTransform().fit(train.ndvi[:, 0][train.weight > 0])
    )
    dense = DenseHead(backbone.embed_dim, [task], hidden_dim=FPN_DIM)
    last = train._replace(source=MemoryTokens(train.source.ids, train.source.tokens.last))
    maps["DenseHead, last layer"] = predicted(trained(dense, last, options), test.images, backbone)
    fpn = FPNHead(
        backbone.embed_dim, [task], LAYERS, backbone.layers, fpn_dim=FPN_DIM, tower_depth=1
    )
    trained(fpn, train, options)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "ndvi.safetensors"
    HeadCheckpoint.from_module(fpn, backbone=backbone, preprocess=prepare).save(file)
    maps["FPNHead, four layers"] = predicted(file, test.images)

    truth, valid = (x[0].numpy() for x in DenseLabels().cells(bands.ndvi[split.part], prepare))
    weight = known_cells(valid, prepare.patch_size)
    whole = {name: mosaic(own, split, prepare.patch_size) for name, own in maps.items()}
    print(table({name: score(own, truth[0], weight) for name, own in whole.items()}))
    print(
        f"{backbone.name}, seed {options.seed}; "
        + ", ".join(f"{k} {v}" for k, v in versions().items())
    )
    print(
        f"{np.count_nonzero(weight)} of {weight.size} cells have a known NDVI; the FPN head is in "
        f"{file}"
    )
    if find_spec("matplotlib") is None:
        print("no picture: matplotlib is missing; pip install 'dinoneck[viz]'")
        return
    shown = np.dstack([bands.rgb, bands.valid])[split.part]
    draw(options.out / "ndvi.png", shown, truth[0], whole["FPNHead, four layers"], weight)


def split_capture(size: tuple[int, ...], tile: int, patch: Any) -> Split:
    """Cut the left for training, leave a strip as wide as a tile, and cover the rest with test tiles.

    Training tiles overlap and come in four orientations; test tiles overlap only where they would
    not fit otherwise.

    Raises:
        DataError: if the patch does not divide the tile, or the capture is too small for it.
    """
    height, width = size
    edge = int(width * TRAIN_SHARE)
    left = edge + tile
    if not isinstance(patch, int) or tile < patch or tile % patch:
        raise DataError(
            f"tiles of {tile} px are no whole number of patches of {patch} px; choose another "
            "--tile"
        )
    if height < tile or edge < tile or width - left < tile:
        raise DataError(
            f"the capture is {height}x{width} px (height x width); tiles of {tile} px need {tile} "
            f"px of height, and in the width {edge} px for training, {tile} px between and {tile} "
            "px for the test: choose a smaller --tile"
        )
    stride = max(1, int(tile * STRIDE_SHARE))
    places = [(top, x) for top in starts(height, tile, stride) for x in starts(edge, tile, stride)]
    rows, cols, own = height // patch, (width - left) // patch, tile // patch
    cells = [(row, col) for row in starts(rows, own, own) for col in starts(cols, own, own)]
    return Split(
        [Tile(top, x, flip) for top, x in places for flip in FLIPS],
        [Tile(row * patch, left + col * patch) for row, col in cells],
        (slice(0, rows * patch), slice(left, left + cols * patch)),
    )


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin that cover ``length``: evenly, at most ``stride`` apart, the last one at the end."""
    count = -(-(length - tile) // stride) + 1
    return [round(float(place)) for place in np.linspace(0, length - tile, count)]


def cut(picture: Array, tile: Tile, side: int) -> Array:
    """Return what a tile shows of a picture (H, W) or (H, W, K): images and labels are cut by this alone."""
    shown = picture[tile.top : tile.top + side, tile.left : tile.left + side]
    return np.ascontiguousarray(np.flip(shown, axis=tile.flip))


def read_part(
    bands: Bands, tiles: Sequence[Tile], side: int, backbone: Backbone, prepare: Preprocessing
) -> Part:
    """Extract the tokens of tiles, and bring labels and colours to their cells."""
    images = [cut(bands.rgb, tile, side) for tile in tiles]
    sizes = [image.shape[:2] for image in images]
    ndvi, weight = DenseLabels().cells(
        [cut(bands.ndvi, tile, side) for tile in tiles], prepare, sizes
    )
    colour, _ = DenseLabels().cells(images, prepare, sizes)
    height, width = bands.ndvi.shape
    rows = np.repeat(np.arange(height)[:, None], width, axis=1)
    row, _ = DenseLabels().cells([cut(rows, tile, side) for tile in tiles], prepare, sizes)
    source = MemoryTokens.extract(
        backbone, images, [str(i) for i in range(len(images))], preprocess=prepare
    )
    fold = (row[:, 0].numpy() * BANDS_FOR_RIDGE / height).astype(int)
    return Part(
        images, source, ndvi.numpy(), weight.numpy(), colour.permute(0, 2, 3, 1).numpy(), fold
    )


def baselines(train: Part, test: Part) -> dict[str, Array]:
    """Return what needs no head, (tiles, rows, cols) each: the training mean, and ridge on colours and on tokens."""
    truth, weight, fold = train.ndvi.reshape(-1), train.weight.reshape(-1), train.fold.reshape(-1)
    shape = test.weight.shape
    maps = {"mean of training": np.full(shape, np.average(truth, weights=weight))}
    features = {
        "colour ridge": (train.colour, test.colour),
        "token ridge, last layer": tuple(
            part.source.tokens.last.patches[0].double().numpy() for part in (train, test)
        ),
    }
    for name, (own, new) in features.items():
        d = own.shape[-1]
        maps[name] = ridge(own.reshape(-1, d), truth, weight, fold, new.reshape(-1, d)).reshape(
            shape
        )
    return maps


def ridge(x: Array, y: Array, weight: Array, fold: Array, x_new: Array) -> Array:
    """Predict y of new rows by weighted ridge regression on standardised features, with a free offset.

    The strength is the one of ``ALPHAS`` with the least squared error over folds left out in turn.
    All of it is computed from the weighted moments of (1, x, y), which add up over folds.

    Args:
        x: (n, d).
        y: (n,).
        weight: (n,), 0 or more.
        fold: (n,), a number for each row.
        x_new: (m, d).
    """
    x, share = np.asarray(x, np.float64), np.asarray(weight, np.float64) / weight.sum()
    mean = share @ x
    std = np.sqrt(share @ (x - mean) ** 2) + 1e-8
    rows = np.column_stack([np.ones(len(x)), (x - mean) / std, y])
    parts = []
    for number in np.unique(fold):
        own = rows[fold == number]
        parts.append(own.T @ (own * share[fold == number, None] * len(x)))
    whole = sum(parts)
    errors = []
    for alpha in ALPHAS:
        left = [np.append(_solved(whole - part, alpha), -1.0) for part in parts]
        errors.append(sum(beta @ part @ beta for beta, part in zip(left, parts, strict=True)))
    beta = _solved(whole, ALPHAS[int(np.argmin(errors))])
    return (
        np.column_stack([np.ones(len(x_new)), (np.asarray(x_new, np.float64) - mean) / std]) @ beta
    )


def _solved(moments: Array, alpha: float) -> Array:
    """Offset and slopes from the moments of (1, x, y)."""
    penalty = np.full(len(moments) - 1, alpha)
    penalty[0] = 0.0
    return np.linalg.solve(moments[:-1, :-1] + np.diag(penalty), moments[:-1, -1])


def trained(head: Head, part: Part, options: argparse.Namespace) -> Head:
    """Fit a head to the cells of a part; a cell counts by its valid pixels."""
    history = fit(
        head,
        part.source,
        targets={"ndvi": part.ndvi},
        weights={"ndvi": part.weight},
        target_ids=part.source.ids,
        ids=part.source.ids,
        epochs=options.epochs,
        batch_size=BATCH_SIZE,
        lr=LR,
        seed=options.seed,
        recipe=Recipe(ema_decay=None),
    )
    print(
        f"{type(head).__name__}: training loss {history[0]['loss']:.3f} -> "
        f"{history[-1]['loss']:.3f}"
    )
    return head


def predicted(head: Head | Path, images: list[Array], backbone: Backbone | None = None) -> Array:
    """Return NDVI maps (tiles, rows, cols); a file says itself which backbone and preparation it needs."""
    return np.stack(
        [result["maps"]["ndvi"][0] for result in Predictor(head, backbone)(images, maps="patch")]
    )


def mosaic(maps: Array, split: Split, patch: Any) -> Array:
    """Lay the maps of the test tiles side by side; where tiles overlap, their mean counts."""
    rows, cols = ((own.stop - own.start) // patch for own in split.part)
    total, count = np.zeros((rows, cols)), np.zeros((rows, cols))
    for tile, own in zip(split.test, maps, strict=True):
        top, left = (
            (tile.top - split.part[0].start) // patch,
            (tile.left - split.part[1].start) // patch,
        )
        place = slice(top, top + own.shape[0]), slice(left, left + own.shape[1])
        total[place] += own
        count[place] += 1
    return total / count


def known_cells(valid: Array, patch: Any) -> Array:
    """Return the valid pixels of cells, 0 for those that show no data in more than half of their pixels."""
    return np.where(valid >= VALID_SHARE * patch**2, valid, 0.0)


def score(found: Array, truth: Array, weight: Array) -> tuple[float, float]:
    """Return R² and RMSE of cells, each counted by its valid pixels."""
    share = weight / weight.sum()
    error = (share * (found - truth) ** 2).sum()
    spread = (share * (truth - (share * truth).sum()) ** 2).sum()
    return float(1.0 - error / spread), float(np.sqrt(error))


def table(scores: dict[str, tuple[float, float]]) -> str:
    """Return the scores as a table."""
    lines = ["| held-out cells | R² | RMSE (NDVI) |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {name} | {r2:.2f} | {rmse:.3f} |" for name, (r2, rmse) in scores.items())]
    )


def draw(path: Path, image: Array, truth: Array, found: Array, weight: Array) -> None:
    """Save the test part: image, true NDVI, predicted NDVI and difference; cells without data are hatched in all."""
    from matplotlib.figure import Figure

    known = weight > 0
    low, high = np.floor(truth[known].min() * 10) / 10, np.ceil(truth[known].max() * 10) / 10
    ndvi = {"cmap": "YlGn", "vmin": low, "vmax": high}
    panels: list[tuple[str, str, Array, dict[str, Any]]] = [
        ("image", "", image, {}),
        ("NDVI from the near infrared", "NDVI", np.ma.array(truth, mask=~known), ndvi),
        ("NDVI predicted from the image", "NDVI", np.ma.array(found, mask=~known), ndvi),
        (
            "difference",
            "predicted \N{MINUS SIGN} true NDVI",
            np.ma.array(found - truth, mask=~known),
            {"cmap": "PuOr", "vmin": -0.5, "vmax": 0.5},
        ),
    ]
    height = 9.0
    figure = Figure(
        figsize=(4 * height * image.shape[1] / image.shape[0] + 1.2, height),
        dpi=80,
        layout="constrained",
    )
    for axes, (title, label, picture, colours) in zip(figure.subplots(1, 4), panels, strict=True):
        axes.patch.set(facecolor="0.85", edgecolor="0.55", hatch="////")
        shown = axes.imshow(picture, interpolation="nearest", **colours)
        axes.set(title=title, xticks=[], yticks=[])
        axes.title.set_fontsize(9)
        if colours:
            figure.colorbar(shown, ax=axes, orientation="horizontal", label=label, pad=0.01)
    figure.savefig(path)
    print(f"the picture is {path}")


if __name__ == "__main__":
    sys.exit(main())
