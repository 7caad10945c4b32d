"""``dinoneck demo``: the commands a user types first, run one after the other on generated images."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.cli.arguments import Count, check_backbone_name
from dinoneck.errors import BackboneError, ConfigError

_MARK = "README.txt"
_NEW = 3
_TARGETS = ("Dry_Total_g", "cover")
_CLASSES = ("soil", "clover", "dead", "green")


def demo(
    out: Path = Path("dinoneck-demo"),
    images: Count = 120,
    folds: Count = 3,
    epochs: Count = 40,
    backbone: str = DINOV3_SMALL,
    random_backbone: bool = False,
) -> dict[str, Any]:
    """Train, verify, predict and draw predictions on generated images, without a download.

    Example: dinoneck demo --out dinoneck-demo

    Args:
        out: folder for the results.
        images: how many images to generate.
        folds: of the cross-validation.
        epochs: passes over the images.
        backbone: see 'dinoneck list backbones'.
        random_backbone: seeded random weights; do not look for pretrained ones.
    """
    _claim(out)
    check_backbone_name(backbone)
    from dinoneck.data.pasture import Pasture

    weights = ["--backbone", backbone, *(["--random-backbone"] if not _is_available(backbone, random_backbone) else [])]
    print(f"{images} pasture images are drawn: the mass of the plants and the plant of every pixel are known.")
    Pasture(seed=0).write(out, images)
    Pasture(seed=1).write(out / "new", _NEW)
    heads, new, page = str(out / "run" / "heads"), str(out / "new" / "images"), out / "report.html"
    known = ["--csv", str(out / "table.csv"), "--targets", *_TARGETS, "--labels", "mask", "--classes", *_CLASSES]
    length = ["--folds", str(folds), "--epochs", str(epochs), "--lr", "2e-3"]
    head = ["--head", "fpn", "--hidden-dim", "64", "--size", "128x256", *weights, *length]
    where = ["--overwrite", "--no-resume", "--out", str(out / "run")]
    _run("train", *known, "--group", "sampling", "--minimum", "0", *head, *where)
    _run("verify", heads)
    shutil.rmtree(out / "overlay", ignore_errors=True)  # of an earlier demo
    _run("predict", new, "--heads", heads, "--out", str(out / "predictions.csv"), "--overlay", str(out / "overlay"))
    _run("viz", "report", heads, new, "--truth", str(out / "new" / "table.csv"), "--out", str(page))
    print(f"Everything is in {out}: run/, predictions.csv, overlay/, report.html")
    print(f"Open {page}: new images with their predicted maps, and the true values of each.")
    return {"out": out, "report": page}


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


def _run(verb: str, *words: str) -> None:
    """Print and run a command."""
    from dinoneck.cli.main import command

    print(f"\n$ {shlex.join(['dinoneck', verb, *words])}", flush=True)
    command(verb, words)()
