"""``dinoneck demo``: the commands a user types first, run one after the other on generated images."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli.arguments import Count
from dinoneck.errors import BackboneError, ConfigError, DinoneckError

_MARK = "README.txt"
_NEW = 3
_MASS = "Dry_Total_g"
_CLASSES = ("soil", "clover", "dead", "green")


def demo(
    out: Path = Path("dinoneck-demo"),
    images: Count = 120,
    folds: Count = 3,
    epochs: Count = 40,
    backbone: str = DINOV3_SMALL,
    random_backbone: bool = False,
) -> dict[str, Any]:
    """Train, predict, draw maps and refuse a damaged file on generated images, without a download.

    Example: dinoneck demo --out dinoneck-demo

    Args:
        out: folder for the results.
        images: how many images to generate.
        folds: of the cross-validation.
        epochs: passes over the images.
        backbone: see 'dinoneck backbones'.
        random_backbone: seeded random weights; do not look for pretrained ones.
    """
    from dinoneck.data.pasture import Pasture

    _claim(out)
    weights = ["--backbone", backbone, *(["--random-backbone"] if not _is_available(backbone, random_backbone) else [])]
    print(f"{images} pasture images are drawn: the mass of the plants and the plant of every pixel are known.")
    Pasture(seed=0).write(out, images)
    Pasture(seed=1).write(out / "new", _NEW)
    table, heads = ["--csv", str(out / "table.csv")], str(out / "run" / "heads")
    known = ["--targets", _MASS, "cover", "--labels", "mask", "--classes", *_CLASSES]
    length = ["--folds", str(folds), "--epochs", str(epochs), "--lr", "2e-3"]
    head = ["--head", "fpn", "--hidden-dim", "64", "--size", "128x256", *weights, *length]
    where = ["--overwrite", "--no-resume", "--out", str(out / "run")]
    _run("train", *table, *known, "--group", "sampling", "--minimum", "0", *head, *where)
    new = str(out / "new" / "images")
    _run("predict", new, "--heads", heads, "--out", str(out / "predictions.csv"), "--maps", str(out / "maps.png"))
    picture = _draw_truth(out, heads)
    first, damaged = out / "run" / "heads" / "fold-0.safetensors", out / "damaged.safetensors"
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    try:
        if _run("verify", str(first), str(damaged))["ok"]:
            raise DinoneckError("a damaged head file was accepted")
    finally:
        damaged.unlink()
    print(f"One bit of the second file was flipped. Everything is in {out}: run/, predictions.csv, maps.png")
    print(f"Open {picture}: new images with their predicted maps, and below them the true ones.")
    return {"out": out, "picture": picture}


def _draw_truth(out: Path, heads: str) -> Path:
    """Draw the new images with their predicted maps and below them the true ones; print predicted and true masses."""
    from dataclasses import replace

    from dinoneck.data.labels import DenseLabels
    from dinoneck.data.tables import read_cells
    from dinoneck.inference.predictor import Predictor
    from dinoneck.viz.panels import prediction_panels

    predictor, new, picture = Predictor(heads), out / "new", out / "true_and_predicted.png"
    task = next(task for task in predictor.tasks if task.is_map)
    images, shown, names, truths = list[Any](), list[dict[str, Any]](), list[str](), list[dict[str, Any]]()
    for row in read_cells(new / "table.csv", ("image", "mask", "cover", _MASS)).to_dict("records"):
        file = new / row["image"]
        [result] = predictor(file, maps=True)
        cells = DenseLabels(classes=len(_CLASSES)).cells(new / row["mask"], predictor.preprocess)[0][0].numpy()
        known = {_MASS: float(row[_MASS]), "cover": float(row["cover"])}
        shares = cells.mean(axis=(1, 2))
        images += [predictor.picture(file)] * 2
        shown += [result, {**known, task.name: shares, "maps": {task.name: cells}}]
        names += [f"{file.name}, predicted", f"{file.name}, true"]
        truths += [{**known, **dict(zip(task.labels, shares.tolist(), strict=True))}, {}]
        print(f"{file.name}: mass {result[_MASS]:.0f} g (true {known[_MASS]:.0f} g)")
    tasks = [replace(each, unit="g") if each.name == _MASS else each for each in predictor.tasks]
    prediction_panels(images, shown, tasks, truths=truths, names=names).save(picture)
    return picture


def _claim(out: Path) -> None:
    """Take a new or empty folder, or one of an earlier demo; other files are never replaced."""
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is a file, or holds other files; choose a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("Written by dinoneck demo, which replaces these files when it runs again.\n")


def _is_available(name: str, random: bool) -> bool:
    """Whether the pretrained weights can be used; print why not."""
    from dinoneck.backbones.load import load_backbone

    try:
        load_backbone(name, pretrained=not random)
        reason = "as asked"
    except BackboneError as error:
        if not str(error).startswith("pretrained weights"):
            raise
        reason = "the published ones are neither in the cache nor can be downloaded"
        random = True
    if random:
        print(f"The backbone has seeded random weights ({reason}): its scores show little about DINO.")
    return not random


def _run(verb: str, *words: str) -> dict[str, Any]:
    """Print and run a command."""
    from dinoneck.cli.main import command

    print(f"\n$ {shlex.join(['dinoneck', verb, *words])}", flush=True)
    document: dict[str, Any] = command(verb, words)()
    return document
