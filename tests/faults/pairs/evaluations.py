"""Pairs of options of ``dinoneck evaluate``; the scores are computed again by their definitions.

R² and mean absolute error, accuracy and mean IoU come from predictions by hand, with NumPy; the
average precision from pycocotools, with classes joined by name.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
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
from tests.unit import tuned_backbones

from dinoneck import DenseHead, PatchMeanHead, SimplePyramid, Task, save_head
from dinoneck.detection import DetectionHead, Detector

COUNT = 6
HEIGHT, WIDTH = 32, 48
OPTIONS = (
    Option(
        "truth",
        "numbers",
        ["words", "class folders", "masks", "table of masks", "boxes"],
    ),
    Option("images", "8 bits", ["12 bits"]),
    Option("heads", "one", ["two"]),
    Option("recorded tta", None, ["flip4"]),
    Option("tta", None, ["none", "flip4"]),
    Option("bits", None, [12, 16]),
    Option("group", None, ["place"]),
    Option("image-column", None, ["file"]),
    Option("class-values", None, ["1 2", "2 1"]),
    Option("nodata", None, [7]),
    Option("labels", None, ["mask"]),
    Option("subfolders", None, ["classes", "folds"]),
    Option("at-least", None, ["below", "above"]),
    Option("crowd", None, ["objects"]),
    Option("min-score", None, [0.3]),
    Option("batch-size", None, [1]),
    Option("random-backbone", None, ["on"]),
    Option("probe", None, ["on"]),
    Option("runtime", None, ["torch", "openvino", "auto"]),
    Option("device", None, ["cpu"]),
)
CASES = [*pairs(OPTIONS)]
TOLERANCE = 1e-4
AP_TOLERANCE = 5e-2  # the rounding of OpenVINO can reorder boxes, which changes the AP
LABELS = ("soil", "crop")
LEAST_SCORE = 0.06  # of a box, in the files of the detectors
SHORTEST_PX = 4  # of the sides of true boxes; degenerate ones are skipped, with a warning


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: run the command, and compare its scores."""
    return judged(cases, OPTIONS, World(folder).check)


class World:
    """Images, their truth in every form, and heads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = kit.backbone()
        rng = np.random.default_rng(0)
        self.mass = [0.5 + 0.4 * number for number in range(COUNT)]
        self.words = ["xy"[number % 2] for number in range(COUNT)]
        self.classes = rng.integers(0, 2, (COUNT, 4, 6)).repeat(8, axis=1).repeat(8, axis=2)
        self.unknown = rng.random((COUNT, 4, 6)).repeat(8, axis=1).repeat(8, axis=2) < 0.2
        for kind, levels in (("8 bits", 256), ("12 bits", 4096)):
            for number in range(COUNT):
                shape = (4, 6, 3) if levels == 256 else (4, 6)
                pixels = rng.integers(0, levels, shape).repeat(8, axis=0).repeat(8, axis=1)
                image = Image.fromarray(pixels.astype(np.uint8 if levels == 256 else np.uint16))
                for path in (folder / kind, folder / f"{kind} in folders" / self.words[number]):
                    path.mkdir(parents=True, exist_ok=True)
                    image.save(path / f"{number}.png")
        for column in ("image", "file"):
            lines = [f"{column},mass,kind,place,mask"]
            for number in range(COUNT):
                row = [self.mass[number], self.words[number], f"p{number // 2}"]
                lines.append(f"{number}.png,{','.join(map(str, row))},masks/{number}.png")
            (folder / f"{column}.csv").write_text("\n".join(lines) + "\n")

    def check(self, settings: Settings) -> None:
        """Evaluate, and compare with the scores by hand."""
        truth = settings["truth"]
        heads = self._save_heads(settings)
        self._write_masks(settings)
        images = self.folder / settings["images"]
        if truth == "class folders":
            images = self.folder / f"{settings['images']} in folders"
        right: list[dict[str, Any]]
        if truth == "boxes":
            right = [self._average_precision(settings, detector, images) for detector in heads]
        else:
            right = [self._scores(settings, head, images) for head in heads]
        words = self._words(settings, images, right)
        ran = kit.cli("evaluate", *words, "--json")
        fails = settings["at-least"] == "above"
        document = json.loads(ran.out) if ran.out.startswith("{") else {}
        has_scores = bool(document.keys() & {"scores", "boxes"})
        if not has_scores:
            raise_refusal(ran)
            raise Differs("it prints no scores")
        if ran.code != int(fails):
            raise Differs(f"exit code {ran.code}, with a limit {settings['at-least']} the score")
        may_reorder_boxes = truth == "boxes" and settings["runtime"] in ("openvino", "auto")
        tolerance = AP_TOLERANCE if may_reorder_boxes else TOLERANCE
        for key, scores in zip(("A", "B"), right, strict=False):
            found = _found(document, key if settings["heads"] == "two" else None, truth)
            check_same({name: found.get(name) for name in scores}, scores, key, tolerance)

    def _save_heads(self, settings: Settings) -> list[Any]:
        heads = []
        for name, seed in (("A", 2), ("B", 5))[: 2 if settings["heads"] == "two" else 1]:
            file = self.folder / f"{name}.safetensors"
            if settings["truth"] == "boxes":
                head: Any = self._detector(seed)
                head.save(file)
            else:
                head = self._head(settings, seed)
                recipe = self.backbone.preprocess.changed(size=(HEIGHT, WIDTH))
                save_head(
                    file,
                    head,
                    backbone=self.backbone,
                    preprocess=recipe,
                    tta=settings["recorded tta"],
                )
            heads.append(head)
        return heads

    def _head(self, settings: Settings, seed: int) -> Any:
        if settings["truth"] in ("masks", "table of masks"):
            cover = Task("mask", dim=2, kind="segmentation", labels=LABELS)
            dense = DenseHead(64, [cover], hidden_dim=8, depth=1)
            return kit.randomised(dense, std=0.6, seed=seed).eval()
        task = Task("mass", unit="g")
        if settings["truth"] in ("words", "class folders"):
            task = Task("kind", dim=2, kind="classification", labels=("x", "y"))
        head = PatchMeanHead(64, [task], hidden_dim=8)
        return kit.randomised(head, seed=seed).eval()

    def _detector(self, seed: int) -> Detector:
        torch.manual_seed(seed)
        head = DetectionHead("retinanet", ("b", "a"), SimplePyramid(64, 16, scales=(1.0,)))
        tuned_backbones.change(head.parameters())
        detector = Detector(head, kit.backbone(), (HEIGHT, WIDTH)).eval()
        detector.min_score = LEAST_SCORE
        return detector

    def _write_masks(self, settings: Settings) -> None:
        """Write masks with the values that the options state."""
        values = [0, 1]
        if settings["class-values"] is not None:
            values = [*map(int, settings["class-values"].split())]
        (self.folder / "masks").mkdir(exist_ok=True)
        for number in range(COUNT):
            pixels = np.array(values)[self.classes[number]]
            if settings["nodata"] is not None:
                pixels = np.where(self.unknown[number], settings["nodata"], pixels)
            Image.fromarray(pixels.astype(np.uint8)).save(self.folder / "masks" / f"{number}.png")

    def _words(self, settings: Settings, images: Path, right: list[dict[str, Any]]) -> list[object]:
        column = settings["image-column"] or "image"
        tables = ("numbers", "words", "table of masks")
        truth: Path | str = self.folder / f"{column}.csv"
        if settings["truth"] not in tables:
            names = {"masks": "masks", "boxes": "boxes.json"}
            truth = self.folder / names.get(settings["truth"], images.name)
        words: list[object] = [images, "--truth", truth, "--heads"]
        if settings["heads"] == "two":
            words += [f"A={self.folder}/A.safetensors", f"B={self.folder}/B.safetensors"]
        else:
            words += [self.folder / "A.safetensors"]
        for name in (
            "tta", "bits", "group", "image-column", "nodata", "subfolders", "crowd", "min-score",
            "batch-size", "runtime", "device",
        ):  # fmt: skip
            if settings[name] is not None:
                words += [f"--{name}", settings[name]]
        if settings["class-values"] is not None:
            words += ["--class-values", *settings["class-values"].split()]
        if settings["truth"] == "table of masks" or settings["labels"] is not None:
            words += ["--labels", "mask"]
        for name in ("random-backbone", "probe"):
            if settings[name] is not None:
                words += [f"--{name}"]
        if settings["at-least"] is not None:
            measures = {"numbers": ("mass", "r2"), "boxes": ("AP", "AP")}
            measures |= dict.fromkeys(("words", "class folders"), ("kind", "accuracy"))
            target, measure = measures.get(settings["truth"], ("mask", "mean_iou"))
            # of two heads, below the worse one or above the better one
            values = [scores[measure] for scores in right]
            is_below = settings["at-least"] == "below"
            limit = min(values) - 0.01 if is_below else max(values) + 0.01
            words += ["--at-least", f"{target}={limit}"]
        return words

    @torch.no_grad()
    def _scores(self, settings: Settings, head: Any, images: Path) -> dict[str, Any]:
        """The scores of a head on all images."""
        recipe = self.backbone.preprocess.changed(size=(HEIGHT, WIDTH), bits=settings["bits"])
        flips = (settings["tta"] or settings["recorded tta"]) == "flip4"
        [task] = head.tasks
        outputs = []
        for number in range(COUNT):
            [path] = images.rglob(f"{number}.png")
            prepared = recipe.prepare([path]).images
            values = []
            for axes, _ in MIRRORED if flips else MIRRORED[:1]:
                value = head.predict(self.backbone(prepared.flip(axes)))[task.name]
                values.append(value.flip(axes) if value.ndim == 4 else value)
            outputs.append(torch.stack(values).mean(0)[0].numpy())
        if task.kind == "regression":
            errors = np.array(outputs)[:, 0] - self.mass
            spread = np.array(self.mass) - np.mean(self.mass)
            return {
                "r2": float(1 - (errors**2).sum() / (spread**2).sum()),
                "mae": float(np.abs(errors).mean()),
            }
        if task.kind == "classification":
            predicted = ["xy"[int(np.argmax(output))] for output in outputs]
            return {"accuracy": float(np.mean(np.array(predicted) == np.array(self.words)))}
        return self._iou(settings, outputs)

    def _iou(self, settings: Settings, outputs: list[Any]) -> dict[str, Any]:
        """Mean over the classes of the IoU of all pixels whose label is known."""
        counts = np.zeros((2, 2))
        for number, output in enumerate(outputs):
            whole = torch.as_tensor(output)[None]
            resized = torch.nn.functional.interpolate(
                whole, (HEIGHT, WIDTH), mode="bilinear", align_corners=False
            )
            predicted = resized[0].argmax(0).numpy()
            known = np.ones((HEIGHT, WIDTH), bool)
            if settings["nodata"] is not None:
                known = ~self.unknown[number]
            for row in (0, 1):
                for column in (0, 1):
                    hits = (self.classes[number] == row) & (predicted == column) & known
                    counts[row, column] += hits.sum()
        unions = counts.sum(0) + counts.sum(1) - counts.diagonal()
        return {
            "mean_iou": float((counts.diagonal() / unions).mean()),
            "pixel_accuracy": float(counts.diagonal().sum() / counts.sum()),
        }

    def _average_precision(
        self, settings: Settings, detector: Detector, images: Path
    ) -> dict[str, Any]:
        """The average precision of pycocotools; the category ids ascend in another order than the labels."""
        if settings["bits"] is not None:
            bits = settings["bits"]
            detector = Detector(detector.head, detector.backbone, (HEIGHT, WIDTH), bits=bits).eval()
        paths = [images / f"{number}.png" for number in range(COUNT)]
        file = self.folder / "boxes.json"
        ids = {"a": 1, "b": 2}  # the labels of the detector are b, a
        if not file.exists():
            file.write_text(json.dumps(self._truth(ids)))
        found = []
        for number, boxes in enumerate(detector.predict(paths, min_score=0.0)):
            rows = zip(
                boxes["boxes"].tolist(), boxes["scores"].tolist(), boxes["names"], strict=True
            )
            for (left, top, right, bottom), score, name in rows:
                found.append(
                    {
                        "image_id": number,
                        "category_id": ids[name],
                        "bbox": [left, top, right - left, bottom - top],
                        "score": score,
                    }
                )
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(file)
            if settings["crowd"] == "objects":
                for annotation in truth.dataset["annotations"]:
                    annotation["iscrowd"] = 0
                truth.createIndex()
            run = COCOeval(truth, truth.loadRes(found), "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()
        precision = run.eval["precision"][:, :, :, 0, -1]
        per_class = {}
        for name, number in ids.items():
            column = precision[:, :, run.params.catIds.index(number)]
            per_class[name] = float(column[column > -1].mean())
        return {"AP": float(run.stats[0]), "AP50": float(run.stats[1]), "per_class": per_class}

    def _truth(self, ids: dict[str, int]) -> dict[str, Any]:
        """Boxes near those that a detector finds, so that the precision is neither 0 nor 1; one is a crowd."""
        paths = [self.folder / "8 bits" / f"{number}.png" for number in range(COUNT)]
        annotations = []
        for number, boxes in enumerate(self._detector(2).predict(paths)):
            sides = boxes["boxes"][:, 2:] - boxes["boxes"][:, :2]
            large = boxes["boxes"][sides.amin(dim=1) >= SHORTEST_PX].tolist()
            for place, (left, top, right, bottom) in enumerate(large[:6]):
                right = right - 0.05 * place * (right - left)
                name = "ab"[place % 2]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": ids[name],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": int(place == 5),
                    }
                )
        return {
            "images": [
                {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
                for i in range(COUNT)
            ],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }


def _found(document: dict[str, Any], key: str | None, truth: str) -> dict[str, Any]:
    """The scores that the command printed: name -> number."""
    if truth == "boxes":
        scores = dict(document["boxes"][key or "head"])
        scores["per_class"] = {name: each["AP"] for name, each in scores["per_class"].items()}
        return scores
    [methods] = [value for name, value in document["scores"].items() if name != "overall"]
    scores = {}
    for name, value in methods[key or "head"].items():
        scores[name] = value["pooled"] if isinstance(value, dict) and "pooled" in value else value
    return scores
