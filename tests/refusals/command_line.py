"""What the verbs of the command line refuse.

These are their own checks, below ``main``, which prints one sentence.

A row is a command line that runs in a folder with two images, their table, a head, a detector and a
few files that are wrong.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from dinoneck import BackboneError, ConfigError, DataError, LinearHead
from dinoneck.cli.main import command
from tests import kit
from tests.refusals import Row
from tests.refusals.head_files import sound
from tests.unit.data.box_samples import content, write
from tests.unit.detection.test_detector import detector_of

Call = Callable[[Path], Any]
GOOD = "h.safetensors"
PREDICT = f"predict images --out p.csv --heads {GOOD}"
EVALUATE = f"evaluate images --truth t.csv --heads {GOOD}"
EXTRACT = "extract images --out s --size 32 --backbone dinoneck_tiny"
EXPORT = f"export {GOOD} --format onnx --out m.onnx"
TRAIN = "train --csv t.csv --backbone dinoneck_tiny --out r --targets mass"


class WrongUsageError(Exception):
    """What is printed before the process ends with the exit code 2."""


@cache
def detector() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "d.safetensors")
        detector_of("fcos").save(path)
        return path.read_bytes()


@cache
def pooled_head() -> bytes:
    """The file of a head without maps."""
    with tempfile.TemporaryDirectory() as name:
        return kit.saved_head(Path(name, "p.safetensors"), LinearHead(64, [kit.MASS])).read_bytes()


def write_world(folder: Path) -> None:
    """Write images, known values and heads; the names of what is wrong say what it is."""
    kit.write_images(folder / "images", ["0.png", "1.png"])
    kit.write_images(folder / "same", ["0.png", "0.bmp"])
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "0.png").write_text("no picture")
    (folder / "t.csv").write_text("image,mass\n0.png,1\n1.png,2\n")
    (folder / "others.csv").write_text("image,mass\n7.png,1\n8.png,2\n")
    (folder / "twice.csv").write_text("image,mass\na/0.png,1\nb/0.png,2\n")
    (folder / "locked.csv").touch()
    (folder / "locked.csv").chmod(0o444)
    (folder / "run.yaml").write_text("optim: {epochs: 2}\n")
    (folder / GOOD).write_bytes(sound())
    (folder / "pooled.safetensors").write_bytes(pooled_head())
    (folder / "d.safetensors").write_bytes(detector())
    (folder / "heads").mkdir()
    (folder / "heads" / "a.safetensors").write_bytes(sound())
    (folder / "heads" / "b.safetensors").write_bytes(sound())
    (folder / "results").mkdir()
    (folder / "results" / "report.json").write_text("{}")
    (folder / "words.csv").write_text("image,mass\n0.png,0.5 kg\n1.png,0.4 kg\n")
    (folder / "rows.csv").write_text("image,mass\n0.png,1\n0.png,2\n")
    (folder / "again").mkdir()
    (folder / "again" / "0.png").write_bytes((folder / "images" / "0.png").read_bytes())
    (folder / "run" / "heads").mkdir(parents=True)
    (folder / "run" / "heads" / "a.safetensors").write_bytes(sound())
    (folder / "run" / "report.json").write_text("{cut")


def line(text: str) -> Call:
    """Run a verb in the folder with these words."""

    def call(folder: Path) -> Any:
        write_world(folder)
        verb, *words = shlex.split(text)
        with contextlib.chdir(folder):
            return command(verb, words)()

    return call


def usage(text: str) -> Call:
    """Run a command line that is no call of a verb."""

    def call(folder: Path) -> None:
        ran = kit.cli(*shlex.split(text))
        assert ran.code == 2
        raise WrongUsageError(ran.err)

    return call


def with_a_name_of_no_text(folder: Path) -> Any:
    write_world(folder)
    (folder / "images" / "0.png").rename(folder / "images" / os.fsdecode(b"\xff.png"))
    with contextlib.chdir(folder):
        return command("predict", shlex.split(PREDICT)[1:])()


def drawn_boxes(folder: Path) -> Any:
    """Draw the boxes of a COCO file, and name images instead of their folder."""
    write(folder, content())
    return line("viz report d.safetensors images/0.png --truth boxes.json --out r.html")(folder)


ROWS: list[Row] = [
    # words that no verb takes
    (usage(""), WrongUsageError, "a verb is missing"),
    (usage("trian --out r"), WrongUsageError, ("'trian'", "'train'")),
    (usage("bench h.safetensors"), WrongUsageError, ("'bench'", "'dinoneck evaluate'")),
    (usage("verify ''"), WrongUsageError, "empty"),
    (usage("list backbone"), WrongUsageError, ("'backbone'", "'backbones'")),
    (line("list backbones --licence apache2"), ConfigError, ("'apache2'", "'apache-2.0'")),
    (usage("viz tokens images --out t.png --lora 4"), WrongUsageError, "'--lora'"),
    (usage(f"{PREDICT} --overlap 1.5"), WrongUsageError, "'1.5'"),
    (usage("extract images --out s --size big"), WrongUsageError, "'big'"),
    (usage("train --csv t.csv --out r --head '[1]'"), WrongUsageError, "'[1]'"),
    (usage("predict images --heads h"), WrongUsageError, "--out"),
    (usage("train --out r --targets a --targets b"), WrongUsageError, ("--targets", "once")),
    (usage("train --out r --class_values 0 --class-values=1"), WrongUsageError, "--class-values"),
    (usage("evaluate i --heads h --truth t --truth u"), WrongUsageError, "--truth is given twice"),
    (
        usage("viz tokens i --out o.png --layers 1 --layers 2"),
        WrongUsageError,
        "--layers is given twice",
    ),
    (usage("push h --figure a.png --figure b.png"), WrongUsageError, "--figure is given twice"),
    # options without effect
    (line("predict --store s --out p.csv --heads h --maps m"), ConfigError, "--maps"),
    (line(f"{PREDICT} --min-score 0.5"), ConfigError, ("heads", "--min-score")),
    (line(f"{PREDICT} --truth t.csv"), ConfigError, ("without --overlay", "--truth")),
    (
        line(f"{PREDICT} --overlay o --image-column file"),
        ConfigError,
        ("without --truth", "--image-column"),
    ),
    (line(f"{PREDICT} --overlay o --decimal ,"), ConfigError, ("without --truth", "--decimal")),
    (
        line(f"{PREDICT} --overlay o --truth images --decimal ,"),
        ConfigError,
        ("--decimal", "no CSV file"),
    ),
    (
        line(f"viz report {GOOD} images --out r.html --image-column file"),
        ConfigError,
        ("a report without --truth", "--image-column"),
    ),
    (
        line("viz report d.safetensors images --out r.html --truth t.csv --image-column image"),
        ConfigError,
        ("a detector", "--image-column"),
    ),
    (
        line("evaluate images --heads d.safetensors --truth t.csv --min-score 0.5"),
        ConfigError,
        ("boxes of all scores", "--min-score"),
    ),
    (
        line("predict images --out p.csv --heads d.safetensors --tta flip4"),
        ConfigError,
        ("a detector", "--tta"),
    ),
    (line(f"{EXPORT} --maps"), ConfigError, ("without --with-backbone", "--maps")),
    (line(f"{EXPORT} --with-backbone --grid 2x3"), ConfigError, ("whole model", "--grid")),
    (
        line("export d.safetensors --format onnx --out m.onnx --maps"),
        ConfigError,
        ("export of a detector", "--maps"),
    ),
    # what several verbs take
    (
        line(f"{PREDICT} --random-backbone --backbone-file w.pth"),
        ConfigError,
        ("--random-backbone", "--backbone-file"),
    ),
    (line("extract images --out s --size 32 --backbone dinov3_vits61"), BackboneError, "vits16"),
    (line("export h.safetensors --format pt2 --out empty"), ConfigError, "empty"),
    (line(f"{PREDICT} --out p.jpg"), ConfigError, (".csv", "p.jpg")),
    (line(f"{PREDICT} --overlay o --truth t.csv --out t.csv"), ConfigError, "t.csv"),
    (line(f"{PREDICT} --out locked.csv"), ConfigError, ("locked.csv", "write-protected")),
    (line(f"{PREDICT} --out no/p.csv"), ConfigError, ("no/p.csv", "create it first")),
    (line("extract --out s --size 32"), ConfigError, "no images"),
    (line("extract images no.png --out s --size 32"), DataError, "no.png"),
    (line("extract empty --out s --size 32"), DataError, ("empty", ".png")),
    (
        line(f"predict {GOOD} --heads {GOOD} --out p.csv"),
        ConfigError,
        (f"{GOOD} is not an image", "--heads"),
    ),
    (with_a_name_of_no_text, DataError, "UTF-8"),
    # extract, demo, verify
    (line(f"{EXTRACT} --shard 2/2"), ConfigError, ("'2/2'", "from 0")),
    (line(f"{EXTRACT} --shard 2"), ConfigError, ("'2'", "I/N")),
    (line(f"{EXTRACT} --shard 0/2 --engine ray"), ConfigError, ("--shard", "--engine ray")),
    (line("demo --out images"), ConfigError, "images"),
    (line("demo --out t.csv"), ConfigError, "t.csv"),
    (line("verify"), ConfigError, "no files"),
    # export
    (line("export heads --format onnx --out m.onnx"), ConfigError, ("heads", "2 head files")),
    (line("export d.safetensors --format pt2 --out m.pt2"), ConfigError, "pt2"),
    # predict
    (line(f"predict --out p.csv --heads {GOOD}"), ConfigError, "--store"),
    (line(f"{PREDICT} --store s"), ConfigError, "--store"),
    (
        line(f"predict broken --out p.csv --heads {GOOD} --skip-unusable"),
        DataError,
        ("1 images", "0.png"),
    ),
    (
        line(f"predict images --heads a={GOOD} b={GOOD} --out p.csv --overlay o --truth t.csv"),
        ConfigError,
        "t.csv",
    ),
    (
        line("predict images --heads d.safetensors --out p.csv --overlay o --truth t.csv"),
        DataError,
        "t.csv",
    ),
    (
        line(f"{PREDICT} --overlay o --truth others.csv"),
        DataError,
        ("others.csv", "images/0.png, images/1.png", "7.png, 8.png"),
    ),
    (line(f"{PREDICT} --overlay o --truth twice.csv"), DataError, ("twice.csv", "0.png")),
    (
        line("predict images --out p.csv --heads pooled.safetensors --maps m"),
        ConfigError,
        "--maps m",
    ),
    (line(f"{PREDICT} --maps images/0.png"), ConfigError, "--maps images/0.png"),
    (line(f"{PREDICT} --overlay results"), ConfigError, "--overlay results"),
    (line(f"{PREDICT} --overlay images/over"), ConfigError, ("images/over", "images,")),
    (line(f"predict same --out p.csv --heads {GOOD} --maps m"), DataError, "called 0"),
    (line(f"predict --out p.csv --heads {GOOD} images/0.png --store s"), ConfigError, "0.png"),
    (
        line(f"predict images --out p.csv --heads {GOOD} b={GOOD}"),
        ConfigError,
        f"{GOOD} b={GOOD}",
    ),
    # evaluate
    (line(f"{EVALUATE} {GOOD}"), ConfigError, f"{GOOD} {GOOD}"),
    (
        line("evaluate images --truth t.csv --heads a=heads/a.safetensors a=pooled.safetensors"),
        ConfigError,
        "the key a",
    ),
    (usage("list heads --import"), WrongUsageError, "--import names nothing"),
    (line(f"evaluate images --heads {GOOD} --truth no.csv"), DataError, "no.csv"),
    (line(f"{EVALUATE} --at-least mass"), ConfigError, "'mass'"),
    (line(f"{EVALUATE} --at-least mass=nan"), ConfigError, "'mass=nan'"),
    (line(f"{EVALUATE} --at-least mass=0.5 mass=0.9"), ConfigError, ("'mass'", "0.5", "0.9")),
    (line(f"{EVALUATE} --at-least weight=0.5"), ConfigError, ("'weight'", "mass")),
    (
        line(f"evaluate images --heads {GOOD} --truth words.csv"),
        DataError,
        ("mass of", "0.png", "'0.5 kg'"),
    ),
    (line(f"{EVALUATE} --at-least AP=0.5"), ConfigError, "'AP'"),
    # train
    (line("train --epochs 1 run.yaml --out r"), ConfigError, "run.yaml"),
    (line(f"{TRAIN} --out t.csv"), ConfigError, "--out t.csv"),
    (line(f"{TRAIN} --out results"), ConfigError, ("--out results", "--overwrite")),
    (
        usage("train --boxes t.csv --images images --out r --heads linear fpn"),
        WrongUsageError,
        ("--heads", "--boxes"),
    ),
    (line("train --images no --out r"), DataError, "no "),
    # viz
    (drawn_boxes, ConfigError, "boxes.json"),
    (line("viz report d.safetensors --out r.html"), ConfigError, "report.json"),
    (
        line("viz report run/heads/a.safetensors images --out r.html"),
        DataError,
        ("run/report.json", "damaged"),
    ),
    (
        line(f"predict images again --heads {GOOD} --out p.csv --overlay o --truth t.csv"),
        DataError,
        ("images/0.png", "again/0.png"),
    ),
    (line("viz tokens images --store s --size 32 --out t.png"), ConfigError, "--store s"),
    (
        line("viz tokens images --backbone dinoneck_tiny --foreground 2 --out t.png"),
        ConfigError,
        "foreground is 2.0",
    ),
]
