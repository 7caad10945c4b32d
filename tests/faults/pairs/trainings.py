"""Pairs of options of ``dinoneck train``; the reference is the run's own table of held-out predictions.

A run states what each fold predicted for its held-out images (``out_of_fold.csv``). The head file
of the fold, opened by a Predictor that knows nothing of the run, must predict the same from the
image files; and the head of the run the mean of its folds. Rows of one group or of one named fold
stay together. An option that is given must have an effect: the predictions of a pair differ from
those of each option alone.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tests import kit
from tests.faults.pairs.options import (
    Differs,
    Groups,
    Option,
    Settings,
    Trainings,
    check_same,
    judged,
    pairs,
    raise_refusal,
    training_file,
)

from dinoneck import Predictor

COUNT = 6
TOLERANCE = 1e-3  # tables have six digits, and tokens are kept in half precision
BFLOAT16_TOLERANCE = 2e-2  # the files of a run predict in float32
MASKS = ["--labels", "mask", "--classes", "soil", "crop"]
# name of an option -> value -> words of the command line
WORDS: dict[str, dict[Any, list[object]]] = {
    "target": {
        "words": ["--targets", "kind"],
        "masks": [*MASKS, "--targets", "crop", "--class-values", 1, 2, "--nodata", 7],
    },
    "size": {"48x32": ["--size", "48x32"]},
    "resize": {"pad": ["--resize", "pad"]},
    "interpolation": {"bicubic": []},  # in FILES
    "blur": {"5": []},  # in FILES
    "bits": {"12": ["--bits", 12]},
    "tta": {"flip4": ["--tta", "flip4"]},
    "layers": {"1 4": ["--layers", 1, 4]},
    "backbone": {"seed 3": ["--backbone-seed", 3]},
    "head": {"cls_gating": ["--head", "{type: cls_gating, mode: query}"]},
    "hidden-dim": {"4": ["--hidden-dim", 4]},
    "lora": {"2": ["--lora", 2, "--backbone-lr", 0.01]},
    "unfreeze-last": {"1": ["--unfreeze-last", 1, "--backbone-lr", 0.01]},
    "seed": {"7": ["--seed", 7]},
    "optimizer": {"sam": []},  # in FILES
    "ema": {"0.9": ["--ema-decay", 0.9]},
    "amp": {"bf16": ["--amp", "bf16"]},
    "standardise": {"off": ["--no-standardise-tokens"]},
    "mixup": {"0.4": ["--mixup-alpha", 0.4]},
    "batch-size": {"2": ["--batch-size", 2]},
    "folds": {"one": ["--folds", 1]},
    "group": {"place": ["--group", "place"]},
    "fold-column": {"part": ["--fold-column", "part"]},
    "stratify": {"kind": ["--stratify", "kind"]},
    "fold": {"0": ["--fold", 0]},
    "predict-with": {"linear": ["--predict-with", "linear"]},
    "minimum": {"2.6": ["--minimum", 2.6]},
    "weighting": {"uncertainty": ["--loss-weighting", "uncertainty"]},
    "aux-targets": {"height": ["--aux-targets", "height"]},
    "weight-decay": {"0.5": ["--weight-decay", 0.5]},
    "accumulate": {"2": ["--accumulate", 2]},
    "cutmix": {"1": ["--cutmix-alpha", 1]},
    "layer-decay": {"0.5": ["--layer-decay", 0.5]},
    "patience": {"1": ["--patience", 1]},
    "target-weights": {"mass": ["--target-weights", "mass=2"]},
    "runtime": {"openvino": ["--runtime", "openvino"]},
    "precision": {"bfloat16": ["--precision", "bfloat16"]},
    "store": {"views": ["--store", "turned", "--views", 2]},
}
# name of an option -> value -> groups of a training file: for what has no flag. --resize has one,
# and its padding is centred here
FILES: dict[str, dict[Any, Groups]] = {
    "resize": {"pad": {"data": {"pad_to": "center"}}},
    "interpolation": {"bicubic": {"data": {"interpolation": "bicubic"}}},
    "blur": {"5": {"data": {"blur": 5}}},
    "optimizer": {"sam": {"optim": {"optimizer": "sam"}}},
}
OPTIONS = tuple(Option(name, None, [*values]) for name, values in WORDS.items())
# options whose effect is not asked for, and why
WITHOUT_EFFECT = (
    "tta",  # files are compared without it
    "fold",  # fewer folds are trained, each as before
    "folds",  # one is trained, as before
    "stratify",  # the folds may be the same
    "bits",  # of images with more than 8
    "minimum",  # changes what is below it alone
    "weighting",  # of several targets
    "target-weights",  # of several targets
    "target",  # it is another column: it always differs
    "accumulate",  # an epoch has one batch
    "patience",  # one epoch is trained
    "runtime",  # rounding
)
CASES = [*pairs(OPTIONS)]


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: train, then predict with every file of the run."""
    return judged(cases, OPTIONS, Field(folder).check)


class Field:
    """Images with numbers, words, masks, places and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.table = folder / "table.csv"
        self._trainings = Trainings(self.train)
        names = [f"{number}.png" for number in range(COUNT)]
        kit.write_images(self.images, names, 40, 60)
        rng = np.random.default_rng(0)
        lines = ["image,mass,crop,height,kind,place,part,mask"]
        (folder / "masks").mkdir()
        for number, name in enumerate(names):
            mask = rng.choice([1, 2, 7], (4, 6)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
            Image.fromarray(mask).save(folder / "masks" / name)
            mass, crop = number + 0.5, round(float((mask == 2).mean()), 4)
            kind = "ab"[number % 2]
            lines.append(
                f"{name},{mass},{crop},{3 * crop},{kind},p{number // 2},{(number // 2) % 2},"
                f"../masks/{name}"
            )
        self.table.write_text("\n".join(lines) + "\n")
        words = ["--size", "32x32", "--backbone", "dinoneck_tiny", "--views", "flips4"]
        done = kit.cli("extract", self.images, "--out", folder / "turned", *words)
        assert done.code == 0, done.err

    def train(self, settings: Settings) -> Any:
        """Train, check the folds and the files of the run, and return the predictions of every file."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        words: list[object] = []
        for name, value in settings.items():
            if value is not None:
                words += [
                    self.folder / word if word == "turned" else word for word in WORDS[name][value]
                ]
        words += self._defaults(settings)
        file = training_file(self.folder / "run.yaml", FILES, settings)
        data = ["--csv", self.table, "--images", self.images]
        ran = kit.cli("train", *file, *data, *words, "--out", run)
        raise_refusal(ran)
        self._check_folds(settings, run)
        return self._check_files(settings, run)

    def _defaults(self, settings: Settings) -> list[object]:
        """What is asked for where no option of the case says it."""
        words: list[object] = ["--epochs", 1, "--lr", 0.01, "--device", "cpu"]
        if settings["predict-with"] is None:
            words += ["--predict-with", "head"]
        if settings["target"] is None:
            words += ["--targets", "mass"]
        if settings["folds"] is None and settings["fold-column"] is None:
            words += ["--folds", 2]
        if settings["store"] is None:
            words += ["--backbone", "dinoneck_tiny"]
            if settings["size"] is None:
                words += ["--size", "32x32"]
        return words

    def _check_folds(self, settings: Settings, run: Path) -> None:
        """Rows that belong together are in one fold, and no fold was trained on its own rows."""
        if settings["folds"] == "one":
            return
        fold_of = {row["image"]: row["fold"] for row in _rows(run / "out_of_fold.csv")}
        for row in _rows(run / "trained_on.csv"):
            if row["image"] in fold_of and fold_of[row["image"]] in row["folds"].split():
                raise Differs(f"{row['image']} was trained on and held out by one fold")
        for option, column in (("group", "place"), ("fold-column", "part")):
            if settings[option] is None:
                continue
            folds: dict[str, set[str]] = {}
            for row in _rows(self.table):
                if row["image"] in fold_of:
                    folds.setdefault(row[column], set()).add(fold_of[row["image"]])
            if any(len(found) > 1 for found in folds.values()):
                raise Differs(f"rows of one {column} are in several folds")

    def _check_files(self, settings: Settings, run: Path) -> Any:
        """Predict with the file of each fold, and with that of the run; return the predictions by file."""
        by_fold = {}
        for file in sorted(run.glob("heads/fold-*.safetensors")):
            _, fold = file.stem.split("-", 1)
            by_fold[fold] = self._predict(file)
        if settings["folds"] != "one":
            tolerance = TOLERANCE if settings["precision"] is None else BFLOAT16_TOLERANCE
            self._check_table(run, by_fold, tolerance)

        run_head = run / "head.safetensors"
        if not run_head.exists():
            return by_fold
        predictions = self._predict(run_head)
        # with a tuned backbone the head of the run is trained once more, on all images
        has_tuned_backbone = settings["lora"] or settings["unfreeze-last"]
        if by_fold and not has_tuned_backbone:
            members = by_fold
            if settings["predict-with"] == "linear":
                members = {
                    file.stem: self._predict(file)
                    for file in sorted(run.glob("baselines/fold-*.safetensors"))
                }
            _check_mean(predictions, [*members.values()])
        # the folds too: with --predict-with linear, options of the head change them alone
        return {"run": predictions, **by_fold}

    def _predict(self, file: Path) -> list[dict[str, list[float]]]:
        """Predict all images with one file."""
        paths = [self.images / f"{number}.png" for number in range(COUNT)]
        return [_plain(row) for row in Predictor(file, tta="none")(paths)]

    def _check_table(self, run: Path, by_fold: dict[str, Any], tolerance: float) -> None:
        """Compare the head of each fold with what the table says of its held-out images."""
        num_compared = 0
        for row in _rows(run / "out_of_fold.csv"):
            number = int(row["image"].removesuffix(".png"))
            predictions = by_fold[row["fold"]][number]
            for name, value in predictions.items():
                stated = row.get(f"{name} (head)")
                if stated is None:
                    continue
                num_compared += 1
                if len(value) > 1:  # probabilities of the words a and b
                    found = "ab"[int(np.argmax(value))]
                    if found != stated and abs(value[0] - value[1]) > tolerance:
                        raise Differs(f"{row['image']}: {name} is {found}, the table has {stated}")
                else:
                    check_same(value, [float(stated)], f"{row['image']}: {name}", tolerance)
        if num_compared == 0:
            raise AssertionError("the table holds nothing to compare")

    def check(self, settings: Settings) -> None:
        """Train, predict with every file of the run, and compare with each option alone."""
        predictions = self.train(settings)
        self.check_effect(settings, predictions)

    def check_effect(self, settings: Settings, predictions: Any) -> None:
        """Compare a pair with each of its options alone: the other one must have changed something.

        Raises:
            Differs: if it has not, though nothing was reported.
        """
        given = [name for name, value in settings.items() if value is not None]
        for name in given:
            if name in WITHOUT_EFFECT:
                continue
            if name == "group" and (settings["folds"] or settings["fold-column"]):
                continue  # the folds are given: the group then only affects prediction intervals
            if name == "fold-column" and settings["group"]:
                continue  # the named folds are those that the groups make of these rows
            alone = self._trainings.result_of({**settings, name: None})
            if alone is not None and _are_equal(alone, predictions):
                raise Differs(f"{name} has no effect, and is not refused")


def _check_mean(
    predictions: list[dict[str, list[float]]], members: list[list[dict[str, list[float]]]]
) -> None:
    """Compare the predictions of a run with the mean of those of its folds, image by image."""
    for image, row in enumerate(predictions):
        mean = {}
        for name in row:
            mean[name] = np.mean([rows[image][name] for rows in members], axis=0)
        check_same(row, mean, f"the run's head on image {image}", TOLERANCE)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def _plain(row: dict[str, Any]) -> dict[str, list[float]]:
    return {name: np.ravel(value).astype(float).tolist() for name, value in row.items()}


def _are_equal(one: Any, other: Any) -> bool:
    try:
        check_same(one, other, "", 1e-7)
    except Differs:
        return False
    return True
