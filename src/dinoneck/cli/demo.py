"""``dinoneck demo``: the commands a user types first, run one after the other on generated images."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

from dinoneck.backbones.known import TINY
from dinoneck.cli.arguments import Count, check_backbone_name
from dinoneck.errors import ConfigError

_MARK = "README.txt"
"""The file of a folder that a demo wrote and may write again."""
_NUM_NEW = 6  # images that are predicted and were not trained on
_TRUTH = shlex.split("--targets trees --labels mask --classes ground tree --group site --minimum 0")
"""Flags of the number and the masks that the generated table has."""
_HEAD = shlex.split("--head dense --hidden-dim 64 --size 192x320 --lr 2e-3 --overwrite --no-resume")


def demo(
    out: Path = Path("dinoneck-demo"),
    images: Count = 120,
    folds: Count = 3,
    epochs: Count = 30,
    backbone: str = TINY,
    random_backbone: bool = False,
) -> dict[str, Any]:
    """Train, verify, predict and draw predictions on generated images, without a download.

    Example: dinoneck demo --out dinoneck-demo

    Args:
        out: folder for the results.
        images: how many images to generate.
        folds: number of folds of the cross-validation.
        epochs: passes over the images.
        backbone: see 'dinoneck list backbones'; the default is small, with seeded random weights.
        random_backbone: seeded random weights in the place of pretrained ones.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; choose a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).is_file():
        raise ConfigError(f"--out {out} holds other files; choose a new folder")
    check_backbone_name(backbone)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text(
        "Written by dinoneck demo, which replaces these files when it runs again.\n"
    )
    from dinoneck.demo.grove import Grove

    print(
        f"{images} groves are drawn from above. The number of trees does not follow from the share "
        "of the image that they cover: there are few large trees or many small ones."
    )
    Grove(seed=0).write(out, images)
    Grove(seed=1).write(out / "new", _NUM_NEW)

    run = str(out / "run")
    length = ["--folds", str(folds), "--epochs", str(epochs)]
    weights = ["--backbone", backbone]
    if random_backbone:
        weights.append("--random-backbone")
    table = str(out / "table.csv")
    _run("train", "--csv", table, *_TRUTH, *_HEAD, *length, *weights, "--out", run)

    _run("verify", str(out / "run" / "heads"))

    new_images = str(out / "new" / "images")
    predictions = str(out / "predictions.csv")
    overlay = out / "overlay"
    shutil.rmtree(overlay, ignore_errors=True)  # of an earlier demo
    _run("predict", new_images, "--heads", run, "--out", predictions, "--overlay", str(overlay))

    truths = [str(out / "new" / "table.csv"), str(out / "new" / "masks")]
    page = out / "report.html"
    _run("viz", "report", run, new_images, "--truth", *truths, "--out", str(page))
    print(
        f"Open {page}: held-out scores of the head and of a linear baseline on mean tokens, and new "
        "images with their predicted and true trees."
    )
    return {"out": out, "report": page}


def _run(verb: str, *words: str) -> None:
    """Print and run a command."""
    from dinoneck.cli.main import command

    print(f"\n$ {shlex.join(['dinoneck', verb, *words])}", flush=True)
    command(verb, words)()
