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
_NEW = 3
_KNOWN = (
    "--targets Dry_Total_g cover --labels mask --classes soil clover dead green --group "
    "sampling --minimum 0"
)
_HEAD = "--head fpn --hidden-dim 64 --size 128x256 --lr 2e-3 --with-ridge --overwrite --no-resume"


def demo(
    out: Path = Path("dinoneck-demo"),
    images: Count = 120,
    folds: Count = 3,
    epochs: Count = 40,
    backbone: str = TINY,
    random_backbone: bool = False,
) -> dict[str, Any]:
    """Train, verify, predict and draw predictions on generated images, without a download.

    Example: dinoneck demo --out dinoneck-demo

    Args:
        out: folder for the results.
        images: how many images to generate.
        folds: of the cross-validation.
        epochs: passes over the images.
        backbone: see 'dinoneck list backbones'; the default is small, with seeded random weights.
        random_backbone: seeded random weights in the place of pretrained ones.
    """
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        what = "holds other files" if out.is_dir() else "is a file"
        raise ConfigError(f"--out {out} {what}; choose a new folder")
    check_backbone_name(backbone)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text(
        "Written by dinoneck demo, which replaces these files when it runs again.\n"
    )
    from dinoneck.data.pasture import Pasture

    weights = ["--backbone", backbone, *(["--random-backbone"] if random_backbone else [])]
    print(
        f"{images} pasture images are drawn: the mass of the plants and the plant of every pixel "
        "are known."
    )
    Pasture(seed=0).write(out, images)
    Pasture(seed=1).write(out / "new", _NEW)
    heads, new, page = f"{out}/run/heads", f"{out}/new/images", out / "report.html"
    length = ["--folds", str(folds), "--epochs", str(epochs), *weights]
    _run(
        "train",
        "--csv",
        f"{out}/table.csv",
        *_KNOWN.split(),
        *_HEAD.split(),
        *length,
        "--out",
        f"{out}/run",
    )
    _run("verify", heads)
    shutil.rmtree(out / "overlay", ignore_errors=True)  # of an earlier demo
    _run(
        "predict",
        new,
        "--heads",
        heads,
        "--out",
        f"{out}/predictions.csv",
        "--overlay",
        f"{out}/overlay",
    )
    _run("viz", "report", heads, new, "--truth", f"{out}/new/table.csv", "--out", str(page))
    print(f"Open {page}: new images with their predicted maps, and the true values of each.")
    return {"out": out, "report": page}


def _run(verb: str, *words: str) -> None:
    """Print and run a command."""
    from dinoneck.cli.main import command

    print(f"\n$ {shlex.join(['dinoneck', verb, *words])}", flush=True)
    command(verb, words)()
