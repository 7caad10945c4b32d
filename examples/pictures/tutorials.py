"""Pictures of the tutorials: the code of each page is run, and what it trained draws held-out images."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
from PIL import Image, ImageDraw, ImageFont

from dinoneck import Predictor
from dinoneck.viz import boxes_panel, overlay_panel, pca_rgb

PAGES = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
COLUMNS = 3
PANEL_WIDTH = 300
GAP = 8  # pixels between panels
FONT_PX = 24
LINE_PX = 30
TEXT = "#1e1e1e"
BLUE = np.array((0, 114, 178), np.uint8)
ORANGE = np.array((230, 159, 0), np.uint8)
GREY = np.array((225, 228, 230), np.uint8)
OUTLINE_PX = 3
LEAST_SCORE = 0.4  # of the boxes that the page draws
QUANTILES = (0.2, 0.6, 0.9)  # of the images, from the surest of their true class on

Array = np.ndarray[Any, Any]


class Panel(NamedTuple):
    """A picture, and the lines of text below it."""

    picture: Image.Image
    lines: tuple[str, ...]


def regress() -> Image.Image:
    """Draw held-out meadows, the cover of each patch, and predicted and true cover."""
    with code_of("regress"):
        true = pandas.read_csv("meadow/table.csv", index_col="image")["cover"]
        images = []
        overlays = []
        for name, predictor in list(held_out_predictors().items())[:COLUMNS]:
            path = Path("meadow") / name
            image = Image.open(path).convert("RGB")
            prediction = predictor.one(path, maps="patch")
            overlay = overlay_panel(path, prediction, predictor.tasks, predictor.preprocess)
            lines = (f"cover {prediction['cover']:.2f}", f"true {true[name]:.2f}")
            images.append(Panel(image, ()))
            overlays.append(Panel(above_legend(overlay, image), lines))
        return sheet([*images, *overlays])


def classify() -> Image.Image:
    """Draw meadows with the class that the fold that held them out gives them."""
    with code_of("classify") as page:
        true = page["frame"].set_index("image")["stand"]
        probabilities: dict[str, dict[str, float]] = {}
        for name, predictor in held_out_predictors().items():
            prediction = predictor.one(Path("meadow") / name)["stand"].tolist()
            labels = predictor.tasks[0].labels
            probabilities[name] = dict(zip(labels, prediction, strict=True))
        of_true_class = pandas.Series(
            {name: probabilities[name][true[name]] for name in probabilities}
        )
        of_true_class = of_true_class.sort_values(ascending=False)
        panels = []
        for quantile in QUANTILES:
            name = of_true_class.index[round(quantile * (len(of_true_class) - 1))]
            best = max(probabilities[name], key=probabilities[name].__getitem__)
            lines = (f"{best} {100 * probabilities[name][best]:.0f} %", f"true: {true[name]}")
            panels.append(Panel(Image.open(Path("meadow") / name).convert("RGB"), lines))
        return sheet(panels)


def segment() -> Image.Image:
    """Draw held-out meadows, their masks, and the predicted class of each pixel."""
    with code_of("segment") as page:
        masks = pandas.read_csv("meadow/table.csv", index_col="image")["mask"]
        colours = page["colours"]
        panels = []
        for name, predictor in list(held_out_predictors().items())[:COLUMNS]:
            path = Path("meadow") / name
            mask = np.asarray(Image.open(Path("meadow") / masks[name]))
            predicted = predictor.one(path, maps="image")["maps"]["segmentation"]
            panels.append(Panel(Image.open(path).convert("RGB"), ("image",)))
            panels.append(Panel(Image.fromarray(colours[mask]), ("its mask",)))
            panels.append(Panel(Image.fromarray(colours[predicted]), ("predicted",)))
        # one title for each column
        for number in range(len(panels) - COLUMNS):
            panels[number] = panels[number]._replace(lines=())
        return sheet(panels)


def held_out_predictors() -> dict[str, Predictor]:
    """Return image -> the head that was not trained on it, of the run of a page."""
    table = pandas.read_csv("run-py/out_of_fold.csv", index_col="image")
    heads = {}
    for fold in table["fold"].unique():
        heads[fold] = Predictor(f"run-py/heads/fold-{fold}.safetensors")
    return {name: heads[fold] for name, fold in table["fold"].items()}


def count() -> Image.Image:
    """Draw scenes with the outlines that the fold that held them out gives their objects."""
    with code_of("count") as page:
        names = list(page["COLOURS"])
        panels = []
        for name, predictor in list(held_out_predictors().items())[:COLUMNS]:
            image = Image.open(Path("scenes") / name).convert("RGB")
            objects = predictor.one(image)["objects"]
            picture = enlarged(image)
            for mask, label in zip(objects["masks"], objects["labels"], strict=True):
                colour = (BLUE, ORANGE)[label]
                picture = with_outline(picture, mask, colour)
            counts = np.bincount(objects["labels"], minlength=len(names))
            lines = tuple(
                f"{number} {name}{'' if number == 1 else 's'}"
                for name, number in zip(names, counts, strict=True)
            )
            panels.append(Panel(picture, lines))
        return sheet(panels)


def detect() -> Image.Image:
    """Draw held-out scenes with their boxes."""
    with code_of("detect") as page:
        detector = page["detector"]
        panels = []
        for number in range(COLUMNS):
            image = enlarged(Image.open(f"scenes/val{number}.png").convert("RGB"))
            [boxes] = detector.predict([image], min_score=LEAST_SCORE)
            scores = [f"{score:.2f}" for score in boxes["scores"].tolist()]
            texts = [f"{name} {score}" for name, score in zip(boxes["names"], scores, strict=True)]
            drawn = boxes_panel(image, boxes, classes=detector.classes)
            panels.append(Panel(drawn, (", ".join(texts),)))
        return sheet(panels)


def feature_store() -> Image.Image:
    """Draw an image, its stored tokens, and what two heads read from them."""
    with code_of("feature-store") as page:
        row = page["held_out"][0]
        path = page["table"]["images"].iloc[row]
        tokens = page["store"][path.with_suffix("").relative_to("meadow").as_posix(), 0]
        [colours] = (255 * pca_rgb(tokens)).astype(np.uint8)
        [prediction] = page["predictor"](path, maps="patch")
        image = Image.open(path).convert("RGB")
        overlay = overlay_panel(
            path, prediction["cover"], page["predictor"].tasks["cover"], page["store"].preprocess
        )
        true = page["table"].iloc[row]
        lines = (
            f"cover {prediction['cover']['cover']:.2f}, true {true['cover']:.2f}",
            f"mass {prediction['GDM_g']['GDM_g']:.0f} g, true {true['GDM_g']:.0f} g",
        )
        panels = [
            Panel(image, ("image",)),
            Panel(Image.fromarray(colours), ("tokens, stored once",)),
            Panel(above_legend(overlay, image), lines),
        ]
        return sheet(panels)


def point_cloud() -> Image.Image:
    """Draw an image of a held-out room, and the wall's voxels: the true poster and the found one."""
    with code_of("point-cloud") as page:
        room = 6
        inputs, pyramid, labels = page["rooms"][room]
        image = page["render"](room)[0].permute(1, 2, 0).numpy()
        is_found = page["model"](inputs, pyramid=pyramid).detach().numpy() > 0
        centres = 2 * inputs.feats.numpy()
        panels = [Panel(Image.fromarray((255 * image).astype(np.uint8)), ("image",))]
        for is_poster, title in ((labels.numpy() > 0, "true"), (is_found, "found")):
            panels.append(Panel(wall(centres, is_poster), (f"poster on the wall, {title}",)))
        return sheet(panels)


def wall(centres: Array, is_poster: Array) -> Image.Image:
    """Draw the voxels of the wall y = 2 from the front, those of the poster in orange."""
    columns = np.rint((centres[:, 0] + 1.9) / 0.2).astype(int)
    rows = np.rint((2.3 - centres[:, 2]) / 0.2).astype(int)
    cells = np.tile(np.array((255, 255, 255), np.uint8), (12, 20, 1))
    on_wall = centres[:, 1] > 1.8
    cells[rows[on_wall].clip(0, 11), columns[on_wall].clip(0, 19)] = GREY
    found = on_wall & is_poster
    cells[rows[found].clip(0, 11), columns[found].clip(0, 19)] = ORANGE
    return Image.fromarray(cells)


@contextlib.contextmanager
def code_of(name: str) -> Any:
    """Run the code of a tutorial in a new folder, which is the current one meanwhile; yield its variables."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    variables: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in BLOCK.findall(text):
            exec(compile(block, f"{name}.md", "exec"), variables)  # noqa: S102 - a page of ours
        yield variables


def above_legend(overlay: Image.Image, image: Image.Image) -> Image.Image:
    """Return the part of an overlay that shows the image."""
    return overlay.crop((0, 0, overlay.width, overlay.width * image.height // image.width))


def enlarged(image: Image.Image) -> Image.Image:
    """Return an image of the width of a panel."""
    height = round(image.height * PANEL_WIDTH / image.width)
    # few pixels are patches or voxels, which stay squares
    resample = Image.Resampling.NEAREST if image.width < 32 else Image.Resampling.BICUBIC
    return image.resize((PANEL_WIDTH, height), resample)


def with_outline(picture: Image.Image, mask: Array, colour: Array) -> Image.Image:
    """Return a picture with the outline of a mask, whose pixels may be larger."""
    large = np.asarray(enlarged(Image.fromarray(255 * mask.astype(np.uint8)))) > 127
    inner = large
    for _ in range(OUTLINE_PX):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = np.array(picture)
    pixels[large & ~inner] = colour
    return Image.fromarray(pixels)


def sheet(panels: list[Panel]) -> Image.Image:
    """Draw panels in rows, each with its text below."""
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    heights = []
    for row in rows:
        tallest = max(enlarged(panel.picture).height for panel in row)
        lines = max(len(panel.lines) for panel in row)
        heights.append(tallest + lines * LINE_PX + GAP)
    width = COLUMNS * (PANEL_WIDTH + GAP) - GAP
    drawn = Image.new("RGB", (width, sum(heights) - GAP), "white")
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(FONT_PX)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            left = column * (PANEL_WIDTH + GAP)
            picture = enlarged(panel.picture)
            drawn.paste(picture, (left, top))
            for number, line in enumerate(panel.lines):
                draw.text((left, top + picture.height + LINE_PX * number), line, TEXT, font)
        top += height
    return drawn


TUTORIALS: dict[str, Callable[[], Image.Image]] = {
    "classify": classify,
    "count": count,
    "detect": detect,
    "feature_store": feature_store,
    "point_cloud": point_cloud,
    "regress": regress,
    "segment": segment,
}
"""Tutorial -> what runs its code and draws its picture."""
