"""``python -m examples.dense_ndvi DATA``: NDVI per patch from a colour image, next to four baselines.

The colours of one capture are what the backbone sees; its near infrared, which they do not show,
makes the label. Heads learn on the left of the capture and are tested on the right, with a strip
between. See README.md next to this file.
"""

from __future__ import annotations

import argparse
import math
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
from dinoneck.data import DenseLabels
from dinoneck.errors import DataError, DinoneckError
from dinoneck.heads import Head
from dinoneck.training import MemoryTokens, Recipe, fit
from dinoneck.version import versions
from examples import kinds
from examples.dense_ndvi.bands import Bands, read_bands

Array = np.ndarray[Any, Any]

LAYERS = 4
TRAIN_SHARE = 0.6  # of the capture's width
VALID_SHARE = 0.5  # of a held-out cell's pixels
STRIDE_SHARE = 0.5  # of a tile, at most
FLIPS = ((), (1,), (0,), (0, 1))  # axes of (height, width)
RIDGE_FOLDS = 5  # horizontal bands of the capture
ALPHAS = tuple(10.0**power for power in range(-2, 6))
FPN_DIM = 64
BATCH_SIZE = 8
LR = 1e-3
DENSE_HEAD = "DenseHead, last layer"
FPN_HEAD = "FPNHead, four layers"


class Tile(NamedTuple):
    """A square of the capture.

    Attributes:
        top: in pixels.
        left: in pixels.
        flip: the axes along which it is mirrored.
    """

    top: int
    left: int
    flip: tuple[int, ...] = ()


class Split(NamedTuple):
    """The tiles of a capture.

    Attributes:
        train: tiles to learn from.
        test: tiles to test on.
        part: the rows and columns of the capture that the test tiles cover.
    """

    train: list[Tile]
    test: list[Tile]
    part: tuple[slice, slice]


class TileData(NamedTuple):
    """What the methods read of T tiles.

    Attributes:
        images: (height, width, 3) each, RGB.
        source: their tokens.
        ndvi: (T, 1, rows, cols), the mean of every cell.
        weight: (T, rows, cols), the valid pixels of every cell.
        colour: (T, rows, cols, 3), the mean of every cell.
        fold: (T, rows, cols), the fold of every cell in the choice of a ridge.
    """

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
    layers = [number * backbone.depth // LAYERS - 1 for number in range(1, LAYERS + 1)]
    backbone = backbone.with_layers(layers)
    preprocess = backbone.preprocess
    patch = preprocess.patch_size
    split = split_capture(bands.ndvi.shape, options.tile, patch)
    train = read_tiles(bands, split.train, options.tile, backbone)
    test = read_tiles(bands, split.test, options.tile, backbone)
    print(f"{len(train.images)} training tiles, {len(test.images)} test tiles of {options.tile} px")

    # predictions of the test tiles, by method
    maps = baselines(train, test)
    torch.manual_seed(options.seed)
    transform = TargetTransform().fit(train.ndvi[:, 0][train.weight > 0])
    task = Task("ndvi", kind="dense", transform=transform)
    dense = DenseHead(backbone.embed_dim, [task], hidden_dim=FPN_DIM)
    last_layer = MemoryTokens(train.source.ids, train.source.tokens.last)
    fit_head(dense, train._replace(source=last_layer), options)
    maps[DENSE_HEAD] = predict(Predictor(dense, backbone), test.images)

    fpn = FPNHead(
        backbone.embed_dim, [task], LAYERS, backbone.layers, fpn_dim=FPN_DIM, tower_depth=1
    )
    fit_head(fpn, train, options)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "ndvi.safetensors"
    HeadCheckpoint.from_module(fpn, backbone=backbone, preprocess=preprocess).save(file)
    # the file names the backbone and the preprocessing
    maps[FPN_HEAD] = predict(Predictor(file), test.images)

    ndvi, valid = DenseLabels().cells(bands.ndvi[split.part], preprocess)
    truth = ndvi[0, 0].numpy()
    weight = known_cells(valid[0].numpy(), patch)
    mosaics = {name: mosaic(tile_maps, split, patch) for name, tile_maps in maps.items()}
    print(table({name: score(whole, truth, weight) for name, whole in mosaics.items()}))
    installed = ", ".join(f"{name} {version}" for name, version in versions().items())
    print(f"{backbone.name}, seed {options.seed}; {installed}")
    print(
        f"{np.count_nonzero(weight)} of {weight.size} cells have a known NDVI; the FPN head is in "
        f"{file}"
    )
    if find_spec("matplotlib") is None:
        print("no picture: matplotlib is missing; pip install 'dinoneck[viz]'")
        return
    transparent_where_invalid = np.dstack([bands.rgb, bands.valid])[split.part]
    picture = options.out / "ndvi.png"
    draw(picture, transparent_where_invalid, truth, mosaics[FPN_HEAD], weight)


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
    train = []
    for top in starts(height, tile, stride):
        for x in starts(edge, tile, stride):
            train += [Tile(top, x, flip) for flip in FLIPS]

    # test tiles begin at patches of the part, so that their maps fit together
    rows = height // patch
    cols = (width - left) // patch
    tile_cells = tile // patch
    test = []
    for row in starts(rows, tile_cells, tile_cells):
        for col in starts(cols, tile_cells, tile_cells):
            test.append(Tile(row * patch, left + col * patch))
    part = (slice(0, rows * patch), slice(left, left + cols * patch))
    return Split(train, test, part)


def starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin that cover ``length``.

    They lie evenly, at most ``stride`` apart, the last one at the end.
    """
    count = math.ceil((length - tile) / stride) + 1
    return [round(float(start)) for start in np.linspace(0, length - tile, count)]


def cut(picture: Array, tile: Tile, side: int) -> Array:
    """Return what a tile shows of a picture (H, W) or (H, W, K).

    Images and labels are cut by this function alone.
    """
    square = picture[tile.top : tile.top + side, tile.left : tile.left + side]
    return np.ascontiguousarray(np.flip(square, axis=tile.flip))


def read_tiles(bands: Bands, tiles: Sequence[Tile], side: int, backbone: Backbone) -> TileData:
    """Extract the tokens of tiles, and average labels and colours over their cells."""
    preprocess = backbone.preprocess
    height, width = bands.ndvi.shape
    row_of_pixel = np.repeat(np.arange(height)[:, None], width, axis=1)
    images = [cut(bands.rgb, tile, side) for tile in tiles]
    ndvi_tiles = [cut(bands.ndvi, tile, side) for tile in tiles]
    row_tiles = [cut(row_of_pixel, tile, side) for tile in tiles]

    sizes = [image.shape[:2] for image in images]
    labels = DenseLabels()
    ndvi, weight = labels.cells(ndvi_tiles, preprocess, sizes)
    colour, _ = labels.cells(images, preprocess, sizes)
    row, _ = labels.cells(row_tiles, preprocess, sizes)
    ids = [str(number) for number in range(len(images))]
    return TileData(
        images=images,
        source=MemoryTokens.extract(backbone, images, ids, preprocess=preprocess),
        ndvi=ndvi.numpy(),
        weight=weight.numpy(),
        colour=colour.permute(0, 2, 3, 1).numpy(),
        fold=(row[:, 0].numpy() * RIDGE_FOLDS / height).astype(int),
    )


def baselines(train: TileData, test: TileData) -> dict[str, Array]:
    """Predict the test tiles without a head, (tiles, rows, cols) each.

    By the training mean, and by ridge regression on colours and on tokens.
    """
    mean = np.average(train.ndvi.reshape(-1), weights=train.weight.reshape(-1))
    return {
        "mean of training": np.full(test.weight.shape, mean),
        "colour ridge": ridge_maps(train, train.colour, test.colour),
        "token ridge, last layer": ridge_maps(train, last_patches(train), last_patches(test)),
    }


def last_patches(data: TileData) -> Array:
    """Return the tokens of the last layer, (tiles, patches, C)."""
    tokens: Array = data.source.tokens.last.patches[0].double().numpy()
    return tokens


def ridge_maps(train: TileData, train_features: Array, test_features: Array) -> Array:
    """Predict the test tiles by ridge regression on features (tiles, ..., C) of cells."""
    channels = train_features.shape[-1]
    predictions = ridge(
        train_features.reshape(-1, channels),
        train.ndvi.reshape(-1),
        train.weight.reshape(-1),
        train.fold.reshape(-1),
        test_features.reshape(-1, channels),
    )
    _, rows, cols = train.weight.shape
    return predictions.reshape(-1, rows, cols)


def ridge(x: Array, y: Array, weight: Array, fold: Array, x_new: Array) -> Array:
    """Predict y of new rows by weighted ridge regression on standardised features.

    The offset is not penalised. The penalty is the one of ``ALPHAS`` with the least squared error
    over folds left out in turn. All is computed from the weighted moments of (1, x, y), which add
    up over folds.

    Args:
        x: (n, d).
        y: (n,).
        weight: (n,), 0 or more.
        fold: (n,), a number for each row.
        x_new: (m, d).
    """
    x = np.asarray(x, np.float64)
    x_new = np.asarray(x_new, np.float64)
    share = np.asarray(weight, np.float64) / weight.sum()
    mean = share @ x
    std = np.sqrt(share @ (x - mean) ** 2) + 1e-8
    rows = np.column_stack([np.ones(len(x)), (x - mean) / std, y])
    moments_of_folds = []
    for number in np.unique(fold):
        in_fold = fold == number
        fold_rows = rows[in_fold]
        moments_of_folds.append(fold_rows.T @ (fold_rows * share[in_fold, None] * len(x)))
    moments = sum(moments_of_folds)

    errors = []
    for alpha in ALPHAS:
        error = 0.0
        for held_out in moments_of_folds:
            coefficients = _solve(moments - held_out, alpha)
            # prediction - y, as a product with (1, x, y)
            residual = np.append(coefficients, -1.0)
            error = error + residual @ held_out @ residual
        errors.append(error)
    best_alpha = ALPHAS[int(np.argmin(errors))]
    rows_new = np.column_stack([np.ones(len(x_new)), (x_new - mean) / std])
    return rows_new @ _solve(moments, best_alpha)


def _solve(moments: Array, alpha: float) -> Array:
    """Return offset and slopes from the moments of (1, x, y)."""
    penalty = np.full(len(moments) - 1, alpha)
    penalty[0] = 0.0
    return np.linalg.solve(moments[:-1, :-1] + np.diag(penalty), moments[:-1, -1])


def fit_head(head: Head, data: TileData, options: argparse.Namespace) -> None:
    """Fit a head to the cells of tiles; a cell counts by its valid pixels."""
    history = fit(
        head,
        data.source,
        targets={"ndvi": data.ndvi},
        weights={"ndvi": data.weight},
        target_ids=data.source.ids,
        ids=data.source.ids,
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


def predict(predictor: Predictor, images: list[Array]) -> Array:
    """Return NDVI maps (tiles, rows, cols)."""
    predictions = predictor(images, maps="patch")
    return np.stack([prediction["maps"]["ndvi"][0] for prediction in predictions])


def mosaic(maps: Array, split: Split, patch: int) -> Array:
    """Join the maps of the test tiles; where tiles overlap, their mean counts."""
    part_rows, part_cols = split.part
    shape = (
        (part_rows.stop - part_rows.start) // patch,
        (part_cols.stop - part_cols.start) // patch,
    )
    total = np.zeros(shape)
    count = np.zeros(shape)
    for tile, tile_map in zip(split.test, maps, strict=True):
        rows, cols = tile_map.shape
        top = (tile.top - part_rows.start) // patch
        left = (tile.left - part_cols.start) // patch
        total[top : top + rows, left : left + cols] += tile_map
        count[top : top + rows, left : left + cols] += 1
    return total / count


def known_cells(valid: Array, patch: int) -> Array:
    """Return the valid pixels of cells, 0 where more than half of the pixels have no data."""
    return np.where(valid >= VALID_SHARE * patch**2, valid, 0.0)


def score(predicted: Array, truth: Array, weight: Array) -> tuple[float, float]:
    """Return R² and RMSE of cells, each counted by its valid pixels."""
    share = weight / weight.sum()
    error = (share * (predicted - truth) ** 2).sum()
    variance = (share * (truth - (share * truth).sum()) ** 2).sum()
    return float(1.0 - error / variance), float(np.sqrt(error))


def table(scores: dict[str, tuple[float, float]]) -> str:
    """Return the scores as a table."""
    lines = ["| held-out cells | R² | RMSE (NDVI) |", "|---|---|---|"]
    for name, (r2, rmse) in scores.items():
        lines.append(f"| {name} | {r2:.2f} | {rmse:.3f} |")
    return "\n".join(lines)


def draw(path: Path, image: Array, truth: Array, predicted: Array, weight: Array) -> None:
    """Save the image, the true and the predicted NDVI and their difference.

    Cells without data are hatched.
    """
    from matplotlib.figure import Figure

    known = weight > 0

    def masked(values: Array) -> Array:
        return np.ma.array(values, mask=~known)

    lowest = np.floor(truth[known].min() * 10) / 10
    highest = np.ceil(truth[known].max() * 10) / 10
    of_ndvi = {"cmap": "YlGn", "vmin": lowest, "vmax": highest}
    of_difference = {"cmap": "PuOr", "vmin": -0.5, "vmax": 0.5}
    panels: list[tuple[str, str, Array, dict[str, Any]]] = [  # title, label, picture, colours
        ("image", "", image, {}),
        ("NDVI from the near infrared", "NDVI", masked(truth), of_ndvi),
        ("NDVI predicted from the image", "NDVI", masked(predicted), of_ndvi),
        (
            "difference",
            "predicted \N{MINUS SIGN} true NDVI",
            masked(predicted - truth),
            of_difference,
        ),
    ]
    height = 9.0  # inches
    width = 4 * height * image.shape[1] / image.shape[0] + 1.2
    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    for axes, (title, label, picture, colours) in zip(figure.subplots(1, 4), panels, strict=True):
        axes.patch.set(facecolor="0.85", edgecolor="0.55", hatch="////")
        drawn = axes.imshow(picture, interpolation="nearest", **colours)
        axes.set(title=title, xticks=[], yticks=[])
        axes.title.set_fontsize(9)
        if colours:
            figure.colorbar(drawn, ax=axes, orientation="horizontal", label=label, pad=0.01)
    figure.savefig(path)
    print(f"the picture is {path}")


if __name__ == "__main__":
    sys.exit(main())
