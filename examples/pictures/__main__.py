"""``python -m examples.pictures FOLDER``: draw the pictures of README and docs.

With the images of crop_cover, a head is trained in four folds by group. Each image is predicted by
the fold that held it out. Among images with both plants, those at four quantiles of the error are
drawn. Their licence is CC BY-SA 4.0. Chromium, if it is installed, draws the report of the first
fold. With the images of blood_cells, a detector is trained as in docs/explanation/detection.md and
draws held-out images. The frames of rgbd_room become a point cloud, and a head learns depth, normals
and classes of computed scenes. ``--tutorials`` runs the code of the tutorials and draws their
pictures alone. ``--sheets`` runs the code of the pages about data and draws what ``dinoneck train
--dry-run`` read, alone. ``--before`` draws computed scenes with the code of 0.3.0 and with that of today, for
docs/project/pictures.md, alone. ``--help`` lists the data that each picture needs.

Drawn by hand are ``logo.svg``, ``data_flow.svg`` and ``roads.svg``; ``python -m examples.dense_ndvi``
draws ``field_ndvi.png``.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import torch
from PIL import Image, ImageDraw, ImageFont

from dinoneck import Predictor, load_backbone
from dinoneck.cli.main import main as dinoneck
from dinoneck.data import BoxImages, DenseLabels, Pasture
from dinoneck.detection import Detector
from dinoneck.training import TrainConfig, train
from dinoneck.viz import boxes_panel, heat, overlay_panel, pca_panels
from examples.pictures.before_after import draw_before_and_after
from examples.pictures.intervals import interval_picture, intervals_of_new_samplings
from examples.pictures.room import room
from examples.pictures.sheets import SHEETS, draw_sheet
from examples.pictures.surfaces import surfaces
from examples.pictures.tutorials import TUTORIALS

PLANTS = ("crop", "weed")
PLANT_COLOURS = ("#009e73", "#d55e00")
LEAST_SHARE = 0.02  # of each plant in an image of the picture
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
TEXT = "#1e1e1e"
NOTE = "#5f6b73"
# pixels of the picture of README: width of a field image, and between columns and rows
WIDTH = 420
COLUMN_GAP = 12
ROW_GAP = 8
# on a phone letters are larger, and notes below pictures are left out
STYLE = """text { font-family: system-ui, sans-serif; fill: #1e1e1e }
.title { font-size: 24px; font-weight: 600 } .number { font-size: 28px } .note { font-size: 18px }
@media (max-width: 37.5em) { .title, .number { font-size: 37px } .true { font-size: 37px } .below { display: none } }
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
    parser.add_argument(
        "--surfaces",
        action="store_true",
        help="train on computed scenes, 5 CPU minutes, for surfaces.jpg",
    )
    parser.add_argument(
        "--tutorials",
        nargs="*",
        choices=[*TUTORIALS],
        metavar="NAME",
        help="run the code of tutorials, 3 CPU minutes, for tutorial_NAME.jpg; without names all",
    )
    parser.add_argument(
        "--sheets",
        action="store_true",
        help="read the data of the pages about data, 1 CPU minute, for data-sheet-NAME.jpg alone",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="the folder of a checkout of 0.3.0, for before_NAME.jpg and after_NAME.jpg alone",
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.tutorials is not None:
        for name in options.tutorials or TUTORIALS:
            write(TUTORIALS[name](), options.folder / f"tutorial_{name}.jpg", quality=82)
        return
    if options.sheets:
        for name in SHEETS:
            draw_sheet(name, options.folder)
        return
    if options.before is not None:
        draw_before_and_after(options.folder, options.before)
        return
    write(pasture_colours(), options.folder / "pictures_pca.png", optimize=True)
    picture = interval_picture(intervals_of_new_samplings())
    (options.folder / "intervals.svg").write_text(picture, encoding="utf-8")
    if options.cells is not None:
        run = options.detector
        if run is None:
            run = options.folder / "detector"
            train_detector(options.cells, run)
        write(detected_cells(options.cells, run), options.folder / "blood_cells.jpg")
    if options.room is not None:
        write(room(options.room), options.folder / "rgbd_room.jpg", quality=85)
    if options.surfaces:
        write(surfaces(), options.folder / "surfaces.jpg", quality=85)
    if options.data is not None:
        run = options.run
        if run is None:
            run = options.folder / "run"
            train_head(options.data, run)
        draw_field(options.data, run, options.folder)


def draw_field(data: Path, run: Path, folder: Path) -> None:
    """Draw and write the pictures of field images."""
    panels = held_out(data, run)
    write(sheet(panels), folder / "hero.webp", quality=70)
    names = [panel.name for panel in panels]
    write(cover(data, run, names), folder / "dense_cover.jpg", quality=80)
    (folder / "what.svg").write_text(what_is_it(panels[0]), encoding="utf-8")
    browser = shutil.which("chromium")
    if browser is not None:
        write(report(data, run, browser), folder / "report.jpg", quality=82)


def train_head(data: Path, run: Path) -> None:
    """Train the head of the field images."""
    config = {**CONFIG, "data": {**CONFIG["data"], "csv": str(data / "cover.csv")}}
    train(TrainConfig.from_dict(config), run)


def train_detector(data: Path, run: Path) -> None:
    """Train the detector of the page."""
    boxes = ["--boxes", str(data / "train.json"), "--val-boxes", str(data / "val.json")]
    status = dinoneck(["train", *boxes, *DETECTOR.split(), "--out", str(run)])
    if status != 0:
        raise SystemExit("the detector was not trained; the message is above")


def detected_cells(data: Path, run: Path) -> Image.Image:
    """Draw four held-out images with their boxes, at the score of the best F1."""
    detector = Detector.load(run / "detector.safetensors")
    images = BoxImages(data / "val.json", classes=detector.classes)
    width = 600
    height = 450
    picture = Image.new("RGB", (2 * width + ROW_GAP, 2 * height + ROW_GAP), "white")
    for number in range(4):
        image, *_ = images.original(number)
        _, target = images[number]
        truth = {"boxes": target["boxes"], "labels": target["labels"]}
        [detections] = detector.predict([image])
        panel = boxes_panel(image, detections, truth, classes=detector.classes)
        row, column = divmod(number, 2)
        corner = (column * (width + ROW_GAP), row * (height + ROW_GAP))
        picture.paste(panel.resize((width, height)), corner)
    return picture


def report(data: Path, run: Path, browser: str) -> Image.Image:
    """Return the first screen of the report of fold 0 on the images that it held out."""
    table = pandas.read_csv(run / "out_of_fold.csv")
    images = [str(data / name) for name in table["image"][table["fold"] == 0]]
    head = run / "heads" / "fold-0.safetensors"
    page = run / "report.html"
    screenshot = run / "report.png"
    truth = ["--truth", str(data / "cover.csv")]
    status = dinoneck(["viz", "report", str(head), *images, *truth, "--out", str(page)])
    if status != 0:
        raise SystemExit("the report was not written; the message is above")
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=900,1000"]
    command = [browser, *options, f"--screenshot={screenshot}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    return Image.open(screenshot).convert("RGB")


def pasture_colours() -> Image.Image:
    """Draw two generated pastures, each next to its patches as colours."""
    images = Pasture(seed=0, size=(128, 256)).table(range(2)).images
    backbone = load_backbone("dinoneck_tiny")
    pictures = [backbone.preprocess.picture(image) for image in images]
    return pca_panels(pictures, backbone(backbone.preprocess(images)))


class FieldPanel(NamedTuple):
    """A field image and the prediction of the fold that was not trained on it.

    Attributes:
        name: of the image.
        image: the image.
        overlay: the predicted cover over the grey image.
        predicted: plant -> predicted share.
        true: plant -> share in the mask.
    """

    name: str
    image: Image.Image
    overlay: Image.Image
    predicted: dict[str, float]
    true: dict[str, float]


def held_out(data: Path, run: Path) -> list[FieldPanel]:
    """Return the images at the quantiles of the error, among those with both plants."""
    table = pandas.read_csv(run / "out_of_fold.csv", index_col="image")
    with_both = table[(table[[*PLANTS]] > LEAST_SHARE).all(axis=1)]
    errors = sum((with_both[plant] - with_both[f"{plant} (head)"]).abs() for plant in PLANTS)
    errors = errors.sort_values()
    panels = []
    for quantile in QUANTILES:
        name = errors.index[round(quantile * (len(errors) - 1))]
        predictor = Predictor(run / "heads" / f"fold-{table['fold'][name]}.safetensors")
        [row] = predictor(data / name, maps="patch")
        with_one_map = {**row, "maps": {"cells": row["maps"]["cells"]}}
        tasks = [task for task in predictor.tasks if task.name == "cells"]
        overlay = overlay_panel(data / name, with_one_map, tasks, predictor.preprocess)
        image = Image.open(data / name).convert("RGB")
        # without the legend below
        height = overlay.width * image.height // image.width
        panel = FieldPanel(
            name=name,
            image=image,
            overlay=overlay.crop((0, 0, overlay.width, height)),
            predicted=dict(zip(PLANTS, row["cells"][1:].tolist(), strict=True)),
            true={plant: float(table[plant][name]) for plant in PLANTS},
        )
        panels.append(panel)
    return panels


def cover(data: Path, run: Path, names: list[str]) -> Image.Image:
    """Draw held-out images, the cover of their patches by the masks, and the predicted cover."""
    table = pandas.read_csv(run / "out_of_fold.csv", index_col="image")
    masks = pandas.read_csv(data / "cover.csv")
    picture = Image.new("RGB", (3 * (WIDTH + ROW_GAP) - ROW_GAP, 0), "white")
    for name in names:
        predictor = Predictor(run / "heads" / f"fold-{table['fold'][name]}.safetensors")
        [row] = predictor(data / name, maps="patch")
        [task] = [task for task in predictor.tasks if task.name == "cells"]
        image = Image.open(data / name).convert("RGB")
        mask = data / masks["mask"][masks["image"] == name].item()
        labels = DenseLabels(classes=task.dim)
        truth, _ = labels.cells([mask], predictor.preprocess, [(image.height, image.width)])
        panels = [to_width(image)]
        for cells in (truth[0].numpy(), row["maps"]["cells"]):
            prediction = {"cells": cells.mean(axis=(1, 2)), "maps": {"cells": cells}}
            panels.append(to_width(overlay_panel(image, prediction, [task], predictor.preprocess)))
        picture = add_row(picture, panels)
    return picture


def add_row(picture: Image.Image, panels: list[Image.Image]) -> Image.Image:
    """Return a picture with panels in a row below it; overlays are the tallest."""
    height = max(panel.height for panel in panels)
    taller = Image.new("RGB", (picture.width, picture.height + height + ROW_GAP), "white")
    taller.paste(picture, (0, 0))
    for column, panel in enumerate(panels):
        taller.paste(panel, (column * (WIDTH + ROW_GAP), picture.height))
    return taller


def sheet(panels: list[FieldPanel]) -> Image.Image:
    """Draw the images in a row, below each the overlay, and the predicted and the true shares."""
    row_height = to_width(panels[0].image).height + ROW_GAP
    width = len(panels) * (WIDTH + COLUMN_GAP) - COLUMN_GAP
    line_height = 34
    height = 2 * row_height + len(PLANTS) * line_height
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for column, panel in enumerate(panels):
        left = column * (WIDTH + COLUMN_GAP)
        picture.paste(to_width(panel.image), (left, 0))
        picture.paste(to_width(panel.overlay), (left, row_height))
        for line, (plant, colour) in enumerate(zip(PLANTS, PLANT_COLOURS, strict=True)):
            top = 2 * row_height + line_height * line
            predicted = f"{plant} {100 * panel.predicted[plant]:.1f} %"
            true = f"true {100 * panel.true[plant]:.1f} %"
            draw.rectangle((left, top + 4, left + 20, top + 24), fill=colour)
            draw.text((left + 32, top), predicted, TEXT, ImageFont.load_default(26))
            draw.text((left + 220, top + 2), true, NOTE, ImageFont.load_default(22))
    return picture


def to_width(picture: Image.Image) -> Image.Image:
    """Return a picture of the common width."""
    height = round(picture.height * WIDTH / picture.width)
    return picture.resize((WIDTH, height), Image.Resampling.LANCZOS)


def what_is_it(panel: FieldPanel) -> str:
    """Draw image, similarity of tokens, map and numbers as one SVG.

    It follows the reader's colour scheme.
    """
    steps = [
        (panel.image, "image", "any size, here 22 × 30 patches"),
        (similarity(panel.image), "tokens", "similarity to one patch"),
        (panel.overlay, "map", "neck and head, trained"),
        (None, "numbers", "one file: units, checks"),
    ]
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1180 270" '
        f'role="img"><style>{STYLE}</style>'
    ]
    for number, (picture, title, note) in enumerate(steps):
        left = number * 300
        if picture is not None:
            lines.append(f'<image x="{left}" width="264" height="194" href="{data_url(picture)}"/>')
            lines.append(f'<path class="arrow" d="M{left + 272} 97h18m-7-7l7 7l-7 7"/>')
        lines.append(f'<text x="{left}" y="226" class="title">{title}</text>')
        lines.append(f'<text x="{left}" y="254" class="note below">{note}</text>')
    lines.append('<rect class="box" x="901" y="1" width="264" height="192" rx="8"/>')
    for number, plant in enumerate(PLANTS):
        predicted = f"{plant} {100 * panel.predicted[plant]:.1f} %"
        true = f"true {100 * panel.true[plant]:.1f} %"
        top = 88 * number
        lines.append(f'<text x="924" y="{46 + top}" class="number">{predicted}</text>')
        lines.append(f'<text x="924" y="{86 + top}" class="note true">{true}</text>')
    return "\n".join([*lines, "</svg>\n"])


def data_url(picture: Image.Image) -> str:
    """Return the upper part of a picture, 264 x 194 px, as a JPEG in a URL."""
    width = 264
    resized = picture.resize((width, picture.height * width // picture.width))
    file = io.BytesIO()
    resized.crop((0, 0, width, 194)).save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{data}"


def similarity(image: Image.Image) -> Image.Image:
    """Draw the cosine similarity of all patches to one patch of a weed, over centred tokens."""
    backbone = load_backbone("dinoneck_tiny")
    tokens = backbone(backbone.preprocess(image, (352, 480))).maps()[0][0]  # (C, rows, cols)
    centred = tokens - tokens.mean(dim=(1, 2), keepdim=True)
    unit = torch.nn.functional.normalize(centred, dim=0)
    row, col = 3, 18  # of a weed
    cosine = torch.einsum("c,crk->rk", unit[:, row, col], unit)
    return heat(cosine.numpy(), 0.0, 1.0).resize(image.size, Image.Resampling.NEAREST)


def write(picture: Image.Image, path: Path, **options: Any) -> None:
    """Save a small picture."""
    picture.save(path, **options)
    print(f"{path}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
