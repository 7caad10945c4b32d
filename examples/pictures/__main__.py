"""``python -m examples.pictures FOLDER``: draw pictures of README and docs; ``--help`` lists what each needs.

With the images of crop_cover, a head is trained in four folds by group. Each image is predicted by
the fold that held it out. Among images with both plants, those at four quantiles of the error are
drawn. Their licence is CC BY-SA 4.0. Chromium, where it is installed, draws the report of the first
fold. With the images of blood_cells, a detector is trained as in docs/explanation/detection.md and
draws held-out images. The frames of rgbd_room become a point cloud.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas
import torch
from PIL import Image, ImageDraw, ImageFont

from dinoneck import Predictor, load_backbone
from dinoneck.cli.main import main as dinoneck
from dinoneck.data import BoxImages, DenseLabels, Pasture
from dinoneck.detection import Detector
from dinoneck.training import TrainConfig, train
from dinoneck.viz import boxes_panel, heat, overlay_panel, pca_panels
from examples.pictures.room import room

PLANTS = ("crop", "weed")
QUANTILES = (0.1, 0.3, 0.5, 0.7)  # of the summed error of both shares
CONFIG = {
    "data": {
        "targets": ["soil", *PLANTS],
        "labels": "mask",
        "classes": ["soil", *PLANTS],
        "minimum": 0,
        "size": [360, 480],
        "resize": "crop",
    },
    "backbone": {"name": "dinoneck_tiny", "layers": [1, 3, 5]},
    "head": {"type": "fpn", "fpn_dim": 64},
    "optim": {"epochs": 15, "lr": 3e-3},
    "folds": {"count": 4, "group": ["group"]},
}
DETECTOR = (
    "--detector fcos --hidden-dim 96 --size 256x320 --backbone dinoneck_tiny --layers 1 3 5 "
    "--freeze 0=none --batch-size 4 --epochs 8 --seed 0"
)
WIDTH = 420  # of a field image in the picture of README
STYLE = """text { font-family: system-ui, sans-serif; fill: #1e1e1e }
.note { fill: #5f6b73 } .box { fill: none; stroke: #9aa3ab } .arrow { stroke: #c2461f; stroke-width: 3; fill: none }
@media (prefers-color-scheme: dark) { text { fill: #e6edf0 } .note { fill: #a9b4bb } }"""


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--data", type=Path, help="the folder of crop_cover, for hero.webp, what.svg and others"
    )
    parser.add_argument(
        "--run", type=Path, help="the folder of a finished run; None = train: 3 CPU minutes"
    )
    parser.add_argument("--cells", type=Path, help="the folder of blood_cells, for blood_cells.jpg")
    parser.add_argument(
        "--detector", type=Path, help="the folder of a finished run; None = train: 8 CPU minutes"
    )
    parser.add_argument("--room", type=Path, help="the folder of rgbd_room, for rgbd_room.jpg")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write(pasture_colours(), options.folder / "pictures_pca.png", optimize=True)
    if options.cells is not None:
        write(
            found_cells(options.cells, options.detector or trained(options)),
            options.folder / "blood_cells.jpg",
        )
    if options.room is not None:
        write(room(options.room), options.folder / "rgbd_room.jpg", quality=85)
    if options.data is None:
        return
    if options.run is None:
        options.run = options.folder / "run"
        data = {**CONFIG["data"], "csv": str(options.data / "cover.csv")}
        train(TrainConfig.from_dict({**CONFIG, "data": data}), options.run)
    images, overlays, rows = held_out(options.data, options.run)
    write(sheet(images, overlays, rows), options.folder / "hero.webp", quality=70)
    write(
        cover(options.data, options.run, [row["image"] for row in rows]),
        options.folder / "dense_cover.jpg",
        quality=80,
    )
    (options.folder / "what.svg").write_text(
        what_is_it(images[0], overlays[0], rows[0]), encoding="utf-8"
    )
    if browser := shutil.which("chromium"):
        write(report(options.data, options.run, browser), options.folder / "report.jpg", quality=82)


def trained(options: argparse.Namespace) -> Path:
    """Train the detector of the page; return the folder of the run."""
    out, data = options.folder / "detector", options.cells
    boxes = ["--boxes", f"{data / 'train.json'}", "--val-boxes", f"{data / 'val.json'}"]
    if dinoneck(["train", *boxes, *DETECTOR.split(), "--out", f"{out}"]):
        raise SystemExit("the detector was not trained; the message is above")
    return out


def found_cells(data: Path, run: Path) -> Image.Image:
    """Return four held-out images with their boxes, at the score of the best F1."""
    detector = Detector.load(run / "detector.safetensors")
    images = BoxImages(data / "val.json", classes=detector.classes)
    panels = []
    for place in range(4):
        image, target = images.original(place)[0], images[place][1]
        known = {"boxes": target["boxes"], "labels": target["labels"]}
        [found] = detector.predict([image])
        panels.append(boxes_panel(image, found, known, classes=detector.classes).resize((600, 450)))
    picture = Image.new("RGB", (1208, 908), "white")
    for place, panel in enumerate(panels):
        picture.paste(panel, (608 * (place % 2), 458 * (place // 2)))
    return picture


def report(data: Path, run: Path, browser: str) -> Image.Image:
    """Return the first screen of the report of fold 0 on the images that it held out."""
    table = pandas.read_csv(run / "out_of_fold.csv")
    images = [str(data / name) for name in table["image"][table["fold"] == 0]]
    head, page, shot = run / "heads" / "fold-0.safetensors", run / "report.html", run / "report.png"
    if dinoneck(
        [
            "viz",
            "report",
            f"{head}",
            *images,
            "--truth",
            f"{data / 'cover.csv'}",
            "--out",
            f"{page}",
        ]
    ):
        raise SystemExit("the report was not written; the message is above")
    options = (
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--window-size=900,1000",
        f"--screenshot={shot}",
    )
    subprocess.run([browser, *options, page.resolve().as_uri()], check=True, capture_output=True)  # noqa: S603
    return Image.open(shot).convert("RGB")


def pasture_colours() -> Image.Image:
    """Return two generated pastures, each next to its patches as colours."""
    images = Pasture(seed=0, size=(128, 256)).table(range(2)).images
    backbone = load_backbone("dinoneck_tiny")
    pictures = [backbone.preprocess.picture(image) for image in images]
    return pca_panels(pictures, backbone(backbone.preprocess(images)))


def held_out(
    data: Path, run: Path
) -> tuple[list[Image.Image], list[Image.Image], list[dict[str, Any]]]:
    """Return images, overlays and numbers, each of the fold that did not train on the image."""
    images, overlays, rows = [], [], []
    table = pandas.read_csv(run / "out_of_fold.csv", index_col="image")
    both = table[(table[[*PLANTS]] > 0.02).all(axis=1)]
    errors = sum((both[name] - both[f"{name} (head)"]).abs() for name in PLANTS).sort_values()
    for quantile in QUANTILES:
        name = errors.index[round(quantile * (len(errors) - 1))]
        predictor = Predictor(run / "heads" / f"fold-{table['fold'][name]}.safetensors")
        [row] = predictor(data / name, maps="patch")
        known = {plant: float(table[plant][name]) for plant in PLANTS}
        shown = {**row, "maps": {"cells": row["maps"]["cells"]}}
        tasks = [task for task in predictor.tasks if task.name == "cells"]
        overlay = overlay_panel(data / name, shown, tasks, predictor.preprocess)
        images.append(Image.open(data / name).convert("RGB"))
        overlays.append(
            overlay.crop(
                (0, 0, overlay.width, overlay.width * images[-1].height // images[-1].width)
            )
        )
        rows.append(
            {
                "image": name,
                "predicted": dict(zip(PLANTS, row["cells"][1:].tolist(), strict=True)),
                "known": known,
            }
        )
    return images, overlays, rows


def cover(data: Path, run: Path, names: list[str]) -> Image.Image:
    """Return held-out images, the cover of their patches by the masks, and the predicted one over the grey image."""
    table, masks = (
        pandas.read_csv(run / "out_of_fold.csv", index_col="image"),
        pandas.read_csv(data / "cover.csv"),
    )
    picture = Image.new("RGB", (3 * (WIDTH + 8) - 8, 0), "white")
    for name in names:
        predictor = Predictor(run / "heads" / f"fold-{table['fold'][name]}.safetensors")
        [row], [task] = (
            predictor(data / name, maps="patch"),
            [t for t in predictor.tasks if t.name == "cells"],
        )
        mask = data / masks["mask"][masks["image"] == name].item()
        image = Image.open(data / name).convert("RGB")
        true, _ = DenseLabels(classes=task.dim).cells(
            [mask], predictor.preprocess, [(image.height, image.width)]
        )
        shown = [fitted(image)]
        for cells in (true[0].numpy(), row["maps"]["cells"]):
            means = cells.mean(axis=(1, 2))
            drawn = overlay_panel(
                image, {"cells": means, "maps": {"cells": cells}}, [task], predictor.preprocess
            )
            shown.append(fitted(drawn))
        taller = Image.new("RGB", (picture.width, picture.height + shown[1].height + 8), "white")
        taller.paste(picture, (0, 0))
        for place, panel in enumerate(shown):
            taller.paste(panel, (place * (WIDTH + 8), picture.height))
        picture = taller
    return picture


def sheet(
    images: list[Image.Image], overlays: list[Image.Image], rows: list[dict[str, Any]]
) -> Image.Image:
    """Return the images in a row, below each the overlay, and the predicted and the true shares."""
    columns = [
        (fitted(image), fitted(overlay)) for image, overlay in zip(images, overlays, strict=True)
    ]
    high = columns[0][0].height + 8
    picture = Image.new("RGB", (len(columns) * (WIDTH + 12) - 12, 2 * high + 68), "white")
    draw = ImageDraw.Draw(picture)
    for place, ((image, overlay), row) in enumerate(zip(columns, rows, strict=True)):
        left = place * (WIDTH + 12)
        picture.paste(image, (left, 0))
        picture.paste(overlay, (left, high))
        for line, (name, colour) in enumerate(zip(PLANTS, ("#009e73", "#d55e00"), strict=True)):
            top = 2 * high + 34 * line
            draw.rectangle((left, top + 4, left + 20, top + 24), fill=colour)
            text = f"{name} {100 * row['predicted'][name]:.1f} %"
            draw.text((left + 32, top), text, "#1e1e1e", ImageFont.load_default(26))
            draw.text(
                (left + 220, top + 2),
                f"true {100 * row['known'][name]:.1f} %",
                "#5f6b73",
                ImageFont.load_default(22),
            )
    return picture


def fitted(picture: Image.Image) -> Image.Image:
    """Return a picture of the common width."""
    return picture.resize(
        (WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS
    )


def what_is_it(image: Image.Image, overlay: Image.Image, row: dict[str, Any]) -> str:
    """Return image, similarity of tokens, map and numbers as one SVG, which follows the reader's colour scheme."""
    steps = [
        (image, "image", "any size, here 22 × 30 patches"),
        (similarity(image), "tokens", "similarity to one patch"),
        (overlay, "map", "neck and head, trained"),
        (None, "numbers", "one file: units, checks"),
    ]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1180 270" '
        f'role="img"><style>{STYLE}</style>'
    ]
    for place, (picture, title, note) in enumerate(steps):
        left = place * 300
        if picture is not None:
            shown = picture.resize((264, picture.height * 264 // picture.width)).crop(
                (0, 0, 264, 194)
            )
            file = io.BytesIO()
            shown.save(file, "JPEG", quality=80)
            data = base64.b64encode(file.getvalue()).decode()
            parts.append(
                f'<image x="{left}" width="264" height="194" href="data:image/jpeg;base64,{data}"/>'
            )
            parts.append(f'<path class="arrow" d="M{left + 272} 97h18m-7-7l7 7l-7 7"/>')
        parts.append(f'<text x="{left}" y="226" font-size="24" font-weight="600">{title}</text>')
        parts.append(f'<text x="{left}" y="254" font-size="18" class="note">{note}</text>')
    parts.append('<rect class="box" x="901" y="1" width="264" height="192" rx="8"/>')
    for line, name in enumerate(PLANTS):
        parts.append(
            f'<text x="924" y="{52 + 80 * line}" font-size="28">{name} '
            f"{100 * row['predicted'][name]:.1f} %</text>"
        )
        true = f"by the mask {100 * row['known'][name]:.1f} %"
        parts.append(
            f'<text x="924" y="{80 + 80 * line}" font-size="18" class="note">{true}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def similarity(image: Image.Image) -> Image.Image:
    """Return the cosine similarity of all patches to one patch of a weed, over centred tokens, as colours."""
    backbone = load_backbone("dinoneck_tiny")
    tokens = backbone(backbone.preprocess(image, (352, 480))).maps()[0][0]  # (C, rows, cols)
    patch = (3, 18)  # row and column of a weed
    unit = torch.nn.functional.normalize(tokens - tokens.mean(dim=(1, 2), keepdim=True), dim=0)
    cosine = torch.einsum("c,crk->rk", unit[:, *patch], unit)
    return heat(cosine.numpy(), 0.0, 1.0).resize(image.size, Image.Resampling.NEAREST)


def write(picture: Image.Image, path: Path, **options: Any) -> None:
    """Save a small picture."""
    picture.save(path, **options)
    print(f"{path}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
