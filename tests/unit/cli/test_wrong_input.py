"""Wrong input: the exit code, and one short sentence that names the value and the remedy; never a traceback."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.cli.main import main

LONGEST = 400  # characters on stderr
TINY = "--backbone dinoneck_tiny --folds 2 --epochs 1"
TRAIN = f"train --csv t.csv {TINY} --out r --targets"
PREDICT = "predict images --out p.csv --heads"
GOOD = "h.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"

USAGE = [
    ("", "a verb is missing", "dinoneck --help"),
    ("trian --out r", "'trian'", "'train'"),
    ("--nothing", "--nothing", "dinoneck"),
    (f"train --csv t.csv {TINY} --out r --target cover", "--target", "'--targets'"),
    (f"train --csv t.csv {TINY} --out r --lables mask", "--lables", "'--labels'"),
    (f"{PREDICT} {GOOD} --overlpa 3", "--overlpa", "'--overlay'"),
    (f"{PREDICT} {GOOD} --tta flip", "'flip'", "flip4"),
    (f"{PREDICT} {GOOD} --out ''", "an argument is empty", "name a file"),
    (f"{PREDICT} {GOOD} --overlap 1.5", "'1.5'", "whole number"),
    ("predict images --heads h", "--out", "the CSV to write"),
    ("extract images --out s --size big", "'big'", "HEIGHTxWIDTH"),
    ("extract images --out s --size 32 --batch-size 0", "'0'", "whole number 1"),
    (f"inspect {GOOD} --colour red", "--colour", "--help"),
    ("viz", "report", "tokens"),
    ("viz tokns", "tokns", "tokens"),
    ("train", "--out", "folder for heads"),
    ("serve h --port 99999", "'99999'", "0 ... 65535"),
    ("train --out x --seed=-1", "seed", "-1"),
    ("train --out x --lr nan", "lr", "nan"),
]
"""Words of a command line -> what the message holds, with exit code 2."""

REFUSED = [
    (f"{TRAIN} covr", "'covr'", "'cover'"),
    (f"train --csv none.csv --targets cover {TINY} --out r", "none.csv", "does not exist"),
    (f"train --images none {TINY} --out r", "none", "check the name"),
    (f"train --csv gone.csv --targets cover {TINY} --out r", "'images/9.png'", "names are relative"),
    (f"{TRAIN} cover --device cuda:99", "cuda:99", "cannot be used here"),
    ("train --csv t.csv --targets cover --out r --backbone dinov3_vits61", "dinov3_vits61", "'dinov3_vits16'"),
    ("extract images --out s --size 32 --backbone dinov3_vits61", "dinov3_vits61", "'dinov3_vits16'"),
    ("viz tokens images --out t.png --backbone dinov3_vits61", "dinov3_vits61", "'dinov3_vits16'"),
    (f"predict none --out p.csv --heads {GOOD}", "none", "do not exist"),
    (f"{PREDICT} none.safetensors", "none.safetensors", "does not exist"),
    (f"{PREDICT} lfs.safetensors", "lfs.safetensors", "git lfs pull"),
    (f"{PREDICT} torch.safetensors", "torch.safetensors", "torch.save"),
    (f"train --csv t.csv --labels small --classes soil crop {TINY} --out r", "(16, 16)", "(32, 64)"),
    (f"train --csv t.csv --labels high --classes soil crop {TINY} --out r", "255", "nodata"),
    (f"train --csv empty.csv --targets cover {TINY} --out r", "empty.csv", "no column 'image'"),
    (f"train --csv head.csv --targets cover {TINY} --out r", "head.csv", "no rows"),
    (f"train --csv words.csv --targets cover {TINY} --out r", "'n/a'", "empty cell"),
    (f"{PREDICT} {GOOD} --min-score 0.5", "--min-score", "leave out"),
    (f"{PREDICT} {GOOD} --image-column x", "--image-column", "leave out"),
    (f"export {GOOD} --format onnx --out m.onnx --maps", "--maps", "leave out"),
    (f"bench {GOOD} --layers 2", "--layers", "leave out"),
    (f"{PREDICT} images/0.png", "images/0.png", "before the options"),
    ("verify", "no files are named", "feature stores"),
    ("extract --out s --size 32", "no images are named", "before the options"),
]
"""The same with exit code 1."""


@pytest.fixture(scope="module")
def folder(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images and their table, and files that are wrong in one way each."""
    place = tmp_path_factory.mktemp("wrong")
    (place / "images").mkdir()
    lines = ["image,cover,small,high"]
    for i in range(6):
        Image.new("RGB", (64, 32), (40 * i, 90, 0)).save(place / "images" / f"{i}.png")
        lines.append(f"images/{i}.png,{i / 10},small.png,high.png")
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(place / "small.png")
    Image.fromarray(np.full((32, 64), 255, np.uint8)).save(place / "high.png")
    table = "\n".join(lines)
    for name, text in {
        "t.csv": table,
        "gone.csv": table.replace("5.png", "9.png"),
        "empty.csv": "",
        "head.csv": "image,cover\n",
        "words.csv": table.replace("0.3", "n/a"),
        "lfs.safetensors": LFS,
    }.items():
        (place / name).write_text(text)
    torch.save({"weight": torch.zeros(2)}, place / "torch.safetensors")
    preprocess = tiny.preprocess.changed(size=(32, 64))
    save_head(place / GOOD, PatchMeanHead(64, [Task("cover")]), backbone=tiny, preprocess=preprocess)
    return place


@pytest.mark.parametrize(
    ("code", "line", "parts"),
    [(code, line, parts) for code, table in ((2, USAGE), (1, REFUSED)) for line, *parts in table],
)
def test_a_short_sentence_names_the_value_and_the_remedy(
    code: int, line: str, parts: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    try:
        found = main(shlex.split(line))
    except SystemExit as end:
        found = int(end.code or 0)
    printed = capsys.readouterr().err
    assert found == code, printed
    assert all(part in printed for part in parts), printed
    assert "Traceback" not in printed
    assert len(printed) <= LONGEST or code == 2, printed
    assert sorted(folder.rglob("*")) == before


def test_names_are_refused_before_torch_is_imported(folder: Path) -> None:
    lines = [
        "train --images none --out r",
        "train --csv t.csv --targets cover --backbone dinov3_vits61 --out r",
        "extract none --out s --size 32",
        f"predict none --out p.csv --heads {GOOD}",
        "predict images --out p.csv --heads none.safetensors",
    ]
    script = (
        "import sys, shlex\nfrom dinoneck.cli.main import main\n"
        f"codes = [main(shlex.split(line)) for line in {lines!r}]\nprint(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{[1] * len(lines)} False"
