"""``dinoneck demo``: the whole way once, on generated photos: train, save, reload, predict, refuse damage."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli import numbers, text
from dinoneck.cli.train import comparison
from dinoneck.errors import BackboneError, CheckpointError, ConfigError, DinoneckError

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.data.tables import PhotoTable
    from dinoneck.training.crossval import CrossValidation
    from dinoneck.training.sources import TokenSource

HELP = "train, save, reload and predict on generated pasture photos; no download needed"
EXAMPLE = "dinoneck demo --out dinoneck-demo"

_SHOWN = 3
_MARK = "README.txt"


class DemoFailedError(DinoneckError):
    """A promise of the demo was not kept."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--out", type=Path, default=Path("dinoneck-demo"), help="folder for the results")
    parser.add_argument(
        "--photos", type=numbers.count, default=120, metavar="N", help="photos to generate (default 120)"
    )
    parser.add_argument("--folds", type=numbers.count, default=3, metavar="K", help="folds (default 3)")
    parser.add_argument("--epochs", type=numbers.count, default=40, metavar="N", help="passes (default 40)")
    parser.add_argument("--backbone", default=DINOV3_SMALL, metavar="NAME", help=f"timm name (default {DINOV3_SMALL})")
    parser.add_argument("--random-backbone", action="store_true", help="do not look for pretrained weights")


def run(options: argparse.Namespace) -> int:
    """Go the whole way."""
    from dinoneck.data.pasture import Pasture
    from dinoneck.training.crossval import Plan
    from dinoneck.training.experiment import RunOptions, run_experiment

    _claim(options.out)
    print(f"1. {options.photos} pasture photos with known masses are drawn.")
    table = Pasture(seed=0).table(range(options.photos))
    backbone = _backbone(options)
    print(f"2. Tokens are extracted and PatchMean heads trained, {options.folds} folds by sampling date.")
    plan = Plan(folds=options.folds, epochs=options.epochs)
    result, source, report = run_experiment(
        table, backbone, backbone.preprocess, options.out, plan, overwrite=True, options=RunOptions(resume=False)
    )
    print("\n".join(comparison(report, table)))
    head_file = options.out / "heads" / "fold-0.safetensors"
    print(f"3. {head_file} is read in a new process; its outputs must be the same bit for bit.")
    checkpoint = _check_reload(head_file, result, source, options.out)
    print(f"   They are. The file has {head_file.stat().st_size} bytes: {checkpoint.meta['digest'][:19]}...")
    print("4. A new process predicts photos the head never saw, from the photo files and that head file alone:")
    _predict_elsewhere(head_file, table, result, options.out)
    print("5. One bit of a copy is flipped, and the copy is opened:")
    print(f"   {_check_refusal(head_file, options.out)}")
    print(
        f"Everything is in {options.out}: heads/, logs/, report.json, out_of_fold.csv, predictions.csv, predictions.png"
    )
    return 0


def _claim(out: Path) -> None:
    """Take a new or empty folder, or one of an earlier demo; nobody else's results are replaced."""
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
        raise DemoFailedError(f"the reloaded head gives other outputs ({told}) than the one that was saved ({own})")
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
    _python(*command, "--out", str(out / "predictions.csv"), "--maps", str(out / "predictions.png"))
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
    raise DemoFailedError("a damaged head file was accepted")


def _python(*arguments: str) -> str:
    """Run this Python on these arguments; return what it printed."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        shown = " ".join(arguments[:4])
        raise DemoFailedError(f"'python {shown} ...' failed with code {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout
