"""Wrong input: the exit code, and one short sentence that names the value and the remedy; never a traceback."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tests.kit import cli, saved_head

from dinoneck import LinearHead, PatchMeanHead, Task

LONGEST = 400  # characters on stderr
TINY = "--backbone dinoneck_tiny --folds 2 --epochs 1"
TRAIN = f"train --csv t.csv {TINY} --out r --targets"
GOOD = "h.safetensors"
PREDICT = f"predict images --out p.csv --heads {GOOD}"
REPORT = f"viz report {GOOD} images --out r.html"
EXPORT = f"export {GOOD} --out m.bin --format"
EXTRACT = "extract images --out s --size 32 --backbone dinoneck_tiny"
TOKENS = "viz tokens images --backbone dinoneck_tiny --out"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"

USAGE = [
    ("", "a verb is missing", "dinoneck --help"),
    ("trian --out r", "'trian'", "'train'"),
    (f"{TRAIN} cover --target cover", "--target", "'--targets'"),
    (f"{TRAIN} cover --val-boxes t.csv", "--val-boxes", "needs --boxes"),
    (f"{PREDICT} --out ''", "an argument is empty", "name a file"),
    (f"{PREDICT} --overlap 1.5", "'1.5'", "whole number"),
    ("predict images --heads h", "--out", "the CSV to write"),
    ("extract images --out s --size big", "'big'", "HEIGHTxWIDTH"),
    ("viz tokns", "tokns", "tokens"),
    (f"{TOKENS} t.png --lora 4", "--lora", "--help"),
]
"""Words of a command line -> what the message holds, with exit code 2."""

REFUSED = [
    (f"{TRAIN} covr", "'covr'", "'cover'"),
    (f"{TRAIN} cover --out t.csv", "--out t.csv", "is a file"),
    (f"train --csv none.csv --targets cover {TINY} --out r", "none.csv", "does not exist"),
    (f"train --images none {TINY} --out r", "none", "check the name"),
    (
        f"train --csv gone.csv --targets cover {TINY} --out r",
        "'images/9.png'",
        "names are relative",
    ),
    (f"{TRAIN} cover --device cuda:99", "cuda:99", "cannot be used here"),
    ("train --epochs 1 run.yaml --out r", "run.yaml", "stands first"),
    (
        "train --csv t.csv --targets cover --out r --backbone dinov3_vits61",
        "dinov3_vits61",
        "'dinov3_vits16'",
    ),
    ("predict images --out p.csv --heads lfs.safetensors", "lfs.safetensors", "git lfs pull"),
    ("predict images --out p.csv --heads none.safetensors", "none.safetensors", "cannot be opened"),
    (f"{PREDICT} images/0.png", "images/0.png", "before the options"),
    (f"predict --out p.csv --heads {GOOD}", "name images", "--store"),
    (f"{PREDICT} --store s", "--store", "both given"),
    (f"predict --store s --out p.csv --heads {GOOD} --maps m", "--maps", "leave out"),
    (f"{PREDICT} --out x.jpg", "x.jpg", "ends in .csv"),
    (f"{PREDICT} --maps images/0.png", "images/0.png", "name a new folder"),
    (f"{PREDICT} --overlay no/images", "no/images", "create it first"),
    ("predict images --out p.csv --heads pooled.safetensors --maps m", "--maps m", "no maps"),
    (f"{PREDICT} --out locked.csv", "locked.csv", "write-protected"),
    (f"{PREDICT} --out t.csv --overlay o --truth t.csv", "t.csv", "one of the inputs"),
    (f"{PREDICT} --overlay images/over", "images/over", "another place"),
    (
        f"evaluate images --heads {GOOD} --truth t.csv --at-least cover=nan",
        "cover=nan",
        "cover=0.8",
    ),
    (f"evaluate images --heads {GOOD} {GOOD} --truth t.csv", GOOD, "once"),
    (f"{EXPORT} pt2 --out empty", "empty", "name a file"),
    (f"{PREDICT} --random-backbone --backbone-file w.pth", "--random-backbone", "one of them"),
    (f"{PREDICT} --revision v1", "revision='v1'", "hub repositories"),
    (f"{EXPORT} pt2 --maps", "--maps", "leave out"),
    (f"export {GOOD} --format onnx --out t.csv --weights t.csv", "t.csv", "one of the inputs"),
    (f"{EXPORT} pt2 --with-backbone --size 32x50", "32x50 px", "patch"),
    (f"export {GOOD} --format pt2 --out link.safetensors", "link.safetensors", "another name"),
    ("verify", "no files are named", "feature stores"),
    ("inspect ~/h.safetensors", "~/h.safetensors", "not expanded"),
    ("extract --out s --size 32", "no images are named", "before the options"),
    ("extract empty --out s --size 32", "empty", ".png"),
    (f"{EXTRACT} --shard 2/2", "'2/2'", "0/4"),
    (f"{EXTRACT} --shard 0/2 --engine ray", "--shard", "one of them"),
    (f"{REPORT} --out truth.html --truth truth.html", "truth.html", "one of the inputs"),
]
"""The same with exit code 1."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images and their table, and files that are wrong in one way each."""
    place = tmp_path_factory.mktemp("wrong")
    lines = ["image,cover"]
    (place / "images").mkdir()
    (place / "empty").mkdir()
    for i in range(6):
        Image.new("RGB", (64, 32), (40 * i, 90, 0)).save(place / "images" / f"{i}.png")
        lines.append(f"images/{i}.png,{i / 10}")
    table = "\n".join(lines)
    texts = {
        "t.csv": table,
        "gone.csv": table.replace("5.png", "9.png"),
        "lfs.safetensors": LFS,
        "locked.csv": "",
    }
    texts |= {"run.yaml": "optim: {epochs: 2}\n", "truth.html": "image,cover\n", "locked.html": ""}
    for name, text in texts.items():
        (place / name).write_text(text)
    for name in ("locked.csv", "locked.html"):
        (place / name).chmod(0o444)
    saved_head(place / GOOD, PatchMeanHead(64, [Task("cover")]), (32, 64))
    saved_head(place / "pooled.safetensors", LinearHead(64, [Task("cover")]), (32, 64))
    os.link(place / GOOD, place / "link.safetensors")
    return place


@pytest.mark.parametrize(
    ("code", "line", "parts"),
    [(code, line, parts) for code, table in ((2, USAGE), (1, REFUSED)) for line, *parts in table],
)
def test_a_short_sentence_names_the_value_and_the_remedy(
    code: int, line: str, parts: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found = cli(*shlex.split(line))
    assert found.code == code, found.err
    assert all(part in found.err for part in parts), found.err
    assert "Traceback" not in found.err
    assert len(found.err) <= LONGEST or code == 2, found.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
