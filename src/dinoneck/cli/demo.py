"""``dinoneck demo``: train, save, reload, predict, refuse damage and draw maps, on generated images."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli import numbers, text
from dinoneck.cli.train_text import comparison
from dinoneck.errors import BackboneError, CheckpointError, ConfigError, DinoneckError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.data.tables import PhotoTable
    from dinoneck.training.cell_targets import CellTargets
    from dinoneck.training.crossval import CrossValidation
    from dinoneck.training.folds import Fold
    from dinoneck.training.sources import MemoryTokens, TokenSource

HELP = "train, save, reload and predict on generated pasture images, and draw maps; no download needed"
EXAMPLE = "dinoneck demo --out dinoneck-demo"

_SHOWN = 3
_MARK = "README.txt"
_PLANTS = {"clover": 1, "grass": 3}
"""Classes of the masks that the maps show."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--out", type=Path, default=Path("dinoneck-demo"), help="folder for the results")
    parser.add_argument(
        "--photos", type=numbers.count, default=120, metavar="N", help="images to generate (default 120)"
    )
    parser.add_argument("--folds", type=numbers.count, default=3, metavar="K", help="folds (default 3)")
    parser.add_argument("--epochs", type=numbers.count, default=40, metavar="N", help="passes (default 40)")
    parser.add_argument("--backbone", default=DINOV3_SMALL, metavar="NAME", help=f"timm name (default {DINOV3_SMALL})")
    parser.add_argument("--random-backbone", action="store_true", help="do not look for pretrained weights")


def run(options: argparse.Namespace) -> int:
    """Go the whole way."""
    from dinoneck.data.pasture import Pasture
    from dinoneck.training.config import FoldsConfig, TrainConfig
    from dinoneck.training.inputs import Inputs
    from dinoneck.training.recipe import Recipe
    from dinoneck.training.run import train
    from dinoneck.training.sources import MemoryTokens

    _claim(options.out)
    print(f"1. {options.photos} pasture images are drawn: the dry masses and the plant of every pixel are known.")
    table = Pasture(seed=0).table(range(options.photos))
    backbone = _backbone(options)
    print(f"2. Tokens are extracted once, and PatchMean heads trained, {options.folds} folds by sampling date.")
    pyramid = backbone.with_layers([backbone.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)])
    every = MemoryTokens.extract(pyramid, table.photos, table.ids)
    source = MemoryTokens(every.ids, every.tokens.select(backbone.layers), every.colours)
    config = TrainConfig(optim=Recipe(epochs=options.epochs), folds=FoldsConfig(options.folds))
    inputs = Inputs(table, backbone, backbone.record(), backbone.preprocess, source)
    result = train(config, options.out, inputs=inputs, overwrite=True, resume=False)
    print("\n".join(comparison(result.report)))
    head_file = options.out / "heads" / "fold-0.safetensors"
    print(f"3. {head_file} is read in a new process; its outputs must be the same bit for bit.")
    checkpoint = _check_reload(head_file, result, source, options.out)
    print(f"   They are. The file has {head_file.stat().st_size} bytes: {checkpoint.meta['digest'][:19]}...")
    print("4. A new process predicts images that the head never saw, from the image files and that head file alone:")
    _predict_elsewhere(head_file, table, result, options.out)
    print("5. One bit of a copy is flipped, and the copy is opened:")
    print(f"   {_check_refusal(head_file, options.out)}")
    print("6. An FPN head learns the shares of clover and grass per patch from the masks, on the same tokens:")
    _draw_maps(table, pyramid, every, result.folds[0], options)
    print(
        f"Everything is in {options.out}: heads/, logs/, report.json, out_of_fold.csv, predictions.csv, "
        "cover.safetensors, maps.png"
    )
    return 0


def _claim(out: Path) -> None:
    """Take a new or empty folder, or one of an earlier demo; other files are never replaced."""
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise ConfigError(f"{out} holds other files; choose a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("Written by dinoneck demo, which replaces what is here when it runs again.\n")


def _backbone(options: argparse.Namespace) -> Backbone:
    """Pretrained if it can be had, else seeded random; says which."""
    from dinoneck.backbones.load import load_backbone

    if not options.random_backbone:
        try:
            backbone = load_backbone(options.backbone)
        except BackboneError as error:
            if not str(error).startswith("pretrained weights"):
                raise
        else:
            seeded = backbone.weights["kind"] == "seeded"
            print(f"   The backbone is {backbone.name} with {'seeded random' if seeded else 'its published'} weights.")
            return backbone
    backbone = load_backbone(options.backbone, pretrained=False)
    why = "as asked" if options.random_backbone else "the published ones are neither in the cache nor to be reached"
    print(f"   The backbone is {backbone.name} with seeded random weights ({why}): scores say little about DINO.")
    return backbone


def _check_reload(head_file: Path, result: CrossValidation, source: TokenSource, out: Path) -> HeadCheckpoint:
    """Compare the head in memory with the same head loaded by another process, bit for bit."""
    import torch

    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.cli.replay import fingerprint, write_tokens

    ids = [result.table.ids[row] for row in result.folds[0][1][:_SHOWN]]
    tokens = source.batch(ids)
    tokens_file = out / "replay-tokens.safetensors"
    write_tokens(tokens_file, tokens)
    try:
        told = _python("-m", "dinoneck.cli.replay", str(head_file), str(tokens_file)).strip()
    finally:
        tokens_file.unlink(missing_ok=True)
    with torch.no_grad():
        own = fingerprint(result.heads[0](tokens))
    if told != own:
        raise DinoneckError(f"the reloaded head gives other outputs ({told}) than the one that was saved ({own})")
    return HeadCheckpoint.load(head_file)


def _predict_elsewhere(head_file: Path, table: PhotoTable, result: CrossValidation, out: Path) -> None:
    """Save held-out photos and let another process predict and draw them."""
    import numpy as np
    from PIL import Image

    folder = out / "photos"
    folder.mkdir(exist_ok=True)
    rows = [int(row) for row in result.folds[0][1][:_SHOWN]]
    files = []
    for row in rows:
        files.append(folder / f"{table.ids[row]}.png")
        Image.fromarray(np.asarray(table.photos[row])).save(files[-1])
    command = ["-m", "dinoneck", "predict", *map(str, files), "--heads", str(head_file)]
    _python(*command, "--out", str(out / "predictions.csv"))
    predicted = (out / "predictions.csv").read_text().splitlines()
    header = predicted[0].split(",")[1:]
    lines = []
    for row, line in zip(rows, predicted[1:], strict=True):
        known = [
            f"{float(value):.1f} ({table.targets[name][row]:.1f})"
            for name, value in zip(header, line.split(",")[1:], strict=True)
        ]
        lines.append([table.ids[row], *known])
    print(text.table(["grams, predicted (true)", *header], lines))


def _check_refusal(head_file: Path, out: Path) -> str:
    """Flip one bit in the middle of a copy; loading it must fail."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    damaged = out / "damaged.safetensors"
    content = bytearray(head_file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    try:
        HeadCheckpoint.load(damaged)
    except CheckpointError as error:
        return f"refused: {error}"
    finally:
        damaged.unlink()
    raise DinoneckError("a damaged head file was accepted")


def _draw_maps(
    table: PhotoTable, backbone: Backbone, source: MemoryTokens, fold: Fold, options: argparse.Namespace
) -> None:
    """Train an FPN head on the masks of a fold, score it on the held-out images and draw it next to the truth."""
    import torch

    from dinoneck.checkpoint.head_checkpoint import save_head
    from dinoneck.data.labels import DenseLabels
    from dinoneck.heads.fpn import FPNHead
    from dinoneck.training.cell_targets import CellTargets
    from dinoneck.training.fitting import fit
    from dinoneck.training.recipe import Recipe
    from dinoneck.training.sources import in_batches

    shares, weight = DenseLabels(classes=4).cells(table.labels or (), backbone.preprocess)
    cells = CellTargets(shares[:, list(_PLANTS.values())], weight, tuple(_PLANTS), "cover", table.ids)
    train, held_out = ([table.ids[row] for row in rows] for rows in fold)
    torch.manual_seed(0)
    layers = source.tokens.layers or ()
    task = cells.task(fold[0], minimum=0.0)
    head = FPNHead(backbone.embed_dim, [task], len(layers), layers, fpn_dim=64, tower_depth=1)
    recipe = Recipe(epochs=options.epochs, lr=2e-3)
    fit(head, source, targets={"cover": cells.values}, target_ids=table.ids, ids=train, recipe=recipe)
    save_head(options.out / "cover.safetensors", head, backbone=backbone, preprocess=backbone.preprocess)
    maps = torch.cat([head.predict(source.batch(ids))["cover"].float() for ids in in_batches(held_out, 16)])
    truth, maps = cells.of(held_out), maps.clamp_max(1.0)
    scores = {"FPN head": truth.scores(maps), "colour ridge": truth.scores(_from_colours(table, backbone, cells, fold))}
    rows = [[name, *("-" if x is None else f"{x:.3f}" for x in row.values())] for name, row in scores.items()]
    print(text.table([f"R² per patch of {len(held_out)} held-out images", *_PLANTS], rows))
    _save_picture(table, held_out, truth.values, maps, options.out / "maps.png")


def _from_colours(table: PhotoTable, backbone: Backbone, cells: CellTargets, fold: Fold) -> Tensor:
    """Predict the maps (n, 2, rows, cols) of held-out images by ridge regression on each patch's mean colour."""
    import numpy as np
    import torch

    from dinoneck.data.labels import DenseLabels
    from dinoneck.training.probes import ridge_out_of_fold

    colours, _ = DenseLabels().cells([np.asarray(image) for image in table.photos], backbone.preprocess)
    n, _, rows, cols = colours.shape
    places = np.arange(n * rows * cols).reshape(n, -1)
    features, targets = (maps.movedim(1, -1).flatten(0, 2).numpy() for maps in (colours, cells.values))
    groups = np.repeat(table.groups or table.ids, rows * cols).tolist()
    train, held_out = (places[chosen].ravel() for chosen in fold)
    found = ridge_out_of_fold(features, targets, [(train, held_out)], groups=groups)[held_out]
    return torch.from_numpy(found).reshape(len(fold[1]), rows, cols, -1).movedim(-1, 1)


def _save_picture(table: PhotoTable, ids: Sequence[str], truth: Tensor, predicted: Tensor, path: Path) -> None:
    """Draw predicted and true shares of the held-out images whose true shares of each, or both, plants vary most."""
    from dinoneck.viz.panels import prediction_panels

    spread = truth.std(dim=(2, 3))
    chosen = dict.fromkeys([*spread.argmax(dim=0).tolist(), int(spread.amin(dim=1).argmax())])
    results = []
    for row in chosen:
        maps = {
            f"{plant}, {which}": values[row, place].numpy()[None]
            for place, plant in enumerate(_PLANTS)
            for which, values in (("predicted", predicted), ("true", truth))
        }
        results.append({**{name: cells.mean() for name, cells in maps.items()}, "maps": maps})
    images = [table.photos[table.ids.index(ids[row])] for row in chosen]
    prediction_panels(images, results, names=[ids[row] for row in chosen], span=(0.0, 1.0)).save(path)


def _python(*arguments: str) -> str:
    """Run this Python on these arguments; return what it printed."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        shown = " ".join(arguments[:4])
        raise DinoneckError(f"'python {shown} ...' failed with code {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout
