"""Pairs of options of ``dinoneck predict``; the reference is every head on every view by hand."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests import kit
from tests.faults.pairs.extractions import MIRRORED
from tests.faults.pairs.options import (
    Differs,
    Option,
    Settings,
    check_same,
    judged,
    pairs,
    raise_refusal,
)

from dinoneck import PatchMeanHead, Predictor, Task, save_head
from dinoneck.data import Preprocessing
from dinoneck.task_intervals import DEFAULT_LEVEL
from dinoneck.tasks import Interval

SIZE, WHOLE = (32, 48), (64, 96)  # of the heads and of the images: four tiles
NAMES = ("a.png", "b.png", "c.png")
OPTIONS = (
    Option("heads", "mass", ["words", "two", "keys", "same key twice"]),
    Option("recorded tta", None, ["flip4", "d6"]),
    Option("recorded resize", "stretch", ["pad", "crop"]),
    # named by the views of the predictions whose residuals gave the interval
    Option("recorded interval", None, ["none", "flip4"]),
    Option("images", "8 bits", ["12 bits", "with a broken one"]),
    Option("tta", None, ["none", "flip4", "d6"]),
    Option("bits", None, [12, 16]),
    Option("store", None, ["plain", "turned", "of another backbone"]),
    Option("tile", None, ["32x48", "64x96"]),
    Option("overlap", None, [8]),
    Option("batch-size", None, [1]),
    Option("maps", None, ["folder"]),
    Option("overlay", None, ["folder"]),
    Option("truth", None, ["table"]),
    Option("backbone-file", None, ["the same", "other weights"]),
    Option("random-backbone", None, ["on"]),
    Option("probe", None, ["on"]),
    Option("interval", None, [0.5, 0.9]),
    Option("runtime", None, ["torch", "openvino", "auto"]),
    Option("precision", None, ["bfloat16"]),
    Option("skip-unusable", None, ["on"]),
    Option("device", None, ["cpu"]),
)
CASES = [*pairs(OPTIONS)]
TOLERANCE = 2e-4  # tables have six digits
STORE_TOLERANCE = 5e-3  # tokens of half precision
BFLOAT16_TOLERANCE = 4e-2  # the reference is computed in float32
HALF_WIDTHS = {0.5: 1.5, 0.9: 4.0}  # level -> half width
VIEWS = {
    None: MIRRORED[:1],
    "none": MIRRORED[:1],
    "flip4": MIRRORED,
    "d6": [*MIRRORED, ((), 1), ((), 3)],
}


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: run the command, and compare its table."""
    return judged(cases, OPTIONS, World(folder).check)


class World:
    """Images of two kinds, stores, a table, and files of weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = kit.backbone()
        self.tasks = {
            "mass": Task("mass", unit="g"),
            "words": Task("kind", dim=2, kind="classification", labels=("x", "y")),
        }
        rng = np.random.default_rng(0)
        for kind, levels in (("8 bits", 256), ("12 bits", 4096)):
            images = folder / kind
            images.mkdir()
            for name in NAMES:
                shape = (8, 12, 3) if levels == 256 else (8, 12)
                coarse = rng.integers(0, levels, shape)
                pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)
                Image.fromarray(pixels.astype(np.uint8 if levels == 256 else np.uint16)).save(
                    images / name
                )
        shutil.copytree(folder / "8 bits", folder / "with a broken one")
        (folder / "with a broken one" / "d.png").write_bytes(b"not an image")
        self.backbone.save_weights(folder / "the same.safetensors")
        kit.backbone(seed=1).save_weights(folder / "other weights.safetensors")
        table = ["image,mass,kind", *(f"{name},{i},x" for i, name in enumerate(NAMES))]
        (folder / "table.csv").write_text("\n".join(table) + "\n")
        stores = (
            ("plain", ["--views", "none"]),
            ("turned", ["--views", "d6"]),
            ("of another backbone", ["--backbone-seed", 1]),
        )
        for store, words in stores:
            done = kit.cli(
                "extract", folder / "8 bits", "--out", folder / f"store {store}", "--size", "32x48",
                "--backbone", "dinoneck_tiny", *words,
            )  # fmt: skip
            assert done.code == 0, done.err

    def check(self, settings: Settings) -> None:
        """Run the command, and compare its rows with those by hand."""
        for name in ("maps", "overlay"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        table = self.folder / "rows.csv"
        table.unlink(missing_ok=True)
        heads = self._save_heads(settings)
        ran = kit.cli("predict", *self._words(settings), "--out", table)
        raise_refusal(ran)
        rows = {Path(row["image"]).stem: row for row in csv.DictReader(table.open())}
        if sorted(rows) != ["a", "b", "c"]:
            raise Differs(f"the rows are of {sorted(rows)}")
        kind = "12 bits" if settings["images"] == "12 bits" else "8 bits"
        tolerance = TOLERANCE if settings["store"] is None else STORE_TOLERANCE
        if settings["precision"] == "bfloat16":
            tolerance = BFLOAT16_TOLERANCE
        for name in NAMES:
            right = self._by_hand(settings, heads, self.folder / kind / name)
            for column, value in right.items():
                found = float(rows[name[0]][column])
                check_same([found], [value], f"{column} of {name}", tolerance)
                self._check_bounds(settings, rows[name[0]], column)

    def _check_bounds(self, settings: Settings, row: dict[str, str], column: str) -> None:
        """Compare the interval of a number with the half widths of its file.

        Shares of classes have none.

        Raises:
            Differs: if bounds are missing, are there although tiles or other views are predicted,
                or are other ones.
        """
        views = settings["recorded interval"]
        tta = settings["tta"] or settings["recorded tta"] or "none"
        is_number = ":" not in column
        # an interval of the image alone holds for all views, one of several views for these alone
        is_expected = is_number and views in ("none", tta) and settings["tile"] is None
        has_bounds = f"{column} low" in row
        if has_bounds != is_expected:
            found = "bounds" if has_bounds else "no bounds"
            raise Differs(f"{column} has {found}, of residuals of {views} with views {tta}")
        if not has_bounds:
            if is_number and settings["interval"] is not None:
                raise Differs("interval has no effect, and is not refused")
            return
        half_width = HALF_WIDTHS[settings["interval"] or DEFAULT_LEVEL]
        found_ends = [float(row[f"{column} {end}"]) for end in ("low", "high")]
        value = float(row[column])
        right = [value - half_width, value + half_width]
        check_same(found_ends, right, f"the bounds of {column}", TOLERANCE)

    def _save_heads(self, settings: Settings) -> dict[str, list[Any]]:
        """Save the heads of a case; return key -> heads."""
        kind = settings["heads"]
        mass = self.tasks["mass"]
        if settings["recorded interval"] is not None:
            interval = Interval(
                levels=tuple(HALF_WIDTHS),
                half_widths=tuple(HALF_WIDTHS.values()),
                groups=40,
                views=settings["recorded interval"],
            )
            mass = replace(mass, interval=(interval,))
        first = self._head(self.tasks["words"] if kind == "words" else mass, seed=0)
        second = self._head(self.tasks["words"] if kind == "keys" else mass, seed=1)
        recipe = self._recipe(settings)
        for name, head in (("first", first), ("second", second)):
            save_head(
                self.folder / f"{name}.safetensors",
                head,
                backbone=self.backbone,
                preprocess=recipe,
                tta=settings["recorded tta"],
            )
        if kind in ("two", "same key twice"):
            return {"" if kind == "two" else "A": [first, second]}
        return {"A": [first], "B": [second]} if kind == "keys" else {"": [first]}

    def _head(self, task: Task, seed: int) -> Any:
        return kit.randomised(PatchMeanHead(64, [task], hidden_dim=8), seed=seed).eval()

    def _recipe(self, settings: Settings) -> Preprocessing:
        return self.backbone.preprocess.changed(size=SIZE, resize=settings["recorded resize"])

    def _words(self, settings: Settings) -> list[object]:
        first, second = self.folder / "first.safetensors", self.folder / "second.safetensors"
        heads = {
            "two": [first, second],
            "keys": [f"A={first}", f"B={second}"],
            "same key twice": [f"A={first}", f"A={second}"],
        }
        words: list[object] = [self.folder / settings["images"]]
        if settings["store"] is not None:
            words = ["--store", self.folder / f"store {settings['store']}"]
        words += ["--heads", *heads.get(settings["heads"], [first])]
        for name in (
            "tta",
            "bits",
            "tile",
            "overlap",
            "batch-size",
            "device",
            "interval",
            "runtime",
            "precision",
        ):
            if settings[name] is not None:
                words += [f"--{name}", settings[name]]
        for name in ("maps", "overlay"):
            if settings[name] is not None:
                words += [f"--{name}", self.folder / name]
        if settings["truth"] is not None:
            words += ["--truth", self.folder / "table.csv"]
        if settings["backbone-file"] is not None:
            words += ["--backbone-file", self.folder / f"{settings['backbone-file']}.safetensors"]
        for name in ("random-backbone", "probe", "skip-unusable"):
            if settings[name] is not None:
                words += [f"--{name}"]
        return words

    @torch.no_grad()
    def _by_hand(
        self, settings: Settings, heads: dict[str, list[Any]], image: Path
    ) -> dict[str, float]:
        """Column -> value: the mean over heads, views and tiles."""
        recipe = self._recipe(settings).changed(bits=settings["bits"])
        tta = settings["tta"] or settings["recorded tta"]
        if settings["overlap"] is not None:  # overlapping tiles are weighted; the same in Python
            return self._in_python(settings, image, tta)
        parts = [recipe.prepare([image]).images]
        if settings["tile"] == "32x48":
            whole = self.backbone.preprocess.changed(bits=settings["bits"]).prepare([image]).images
            parts = [
                whole[..., top : top + SIZE[0], left : left + SIZE[1]]
                for top in (0, SIZE[0])
                for left in (0, SIZE[1])
            ]
        columns = {}
        for key, members in heads.items():
            values = []
            for part in parts:
                for axes, turns in VIEWS[tta]:
                    tokens = self.backbone(torch.rot90(part.flip(axes), turns, (-2, -1)))
                    values += [next(iter(head.predict(tokens).values()))[0] for head in members]
            mean = torch.stack(values).mean(0)
            columns |= self._columns(key, members[0].tasks[0], mean.tolist())
        return columns

    def _columns(self, key: str, task: Task, values: list[float]) -> dict[str, float]:
        start = f"{key}/" if key else ""
        if task.kind == "classification":
            return {
                f"{start}{task.name}:{label}": value
                for label, value in zip(task.labels, values, strict=True)
            }
        return {f"{start}{task.name}": values[0]}

    def _in_python(self, settings: Settings, image: Path, tta: Any) -> dict[str, float]:
        height, width = map(int, (settings["tile"] or "0x0").split("x"))
        file = self.folder / "first.safetensors"  # of an option with a neutral choice of heads
        predictor = Predictor(file, tta=tta, tile=(height, width), overlap=settings["overlap"])
        return self._columns("", predictor.tasks[0], np.ravel([*predictor(image)[0].values()]))
