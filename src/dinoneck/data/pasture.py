"""A procedural pasture: images of clover, dead and green matter whose dry masses are known exactly.

Meant for demonstrations, documentation and tests without downloads. Its statistics follow the CSIRO
Image2Biomass table (states, sampling dates, masses, zero shares); its pictures are drawings. Leaves
hide each other, so even perfect eyes cannot weigh what lies under the canopy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.atomic import write_text
from dinoneck.data.cells import GROUP, IMAGES, LABELS, csv_text

WEIGHTS = {
    "Dry_Clover_g": 0.1,
    "Dry_Dead_g": 0.1,
    "Dry_Green_g": 0.1,
    "GDM_g": 0.2,
    "Dry_Total_g": 0.5,
}
SUMS = {
    "GDM_g": ("Dry_Green_g", "Dry_Clover_g"),
    "Dry_Total_g": ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g"),
}
_CELL_PX = 16
_DATES = 7  # sampling dates of the drawn table, the same in each state
_STATES = ("Tas", "Vic", "NSW", "WA")
_STATE_SHARES = (0.39, 0.32, 0.21, 0.08)
_MEDIAN_G = (33.0, 38.0, 62.0, 27.0)
_MIX = ((0.17, 0.41, 0.42), (0.17, 0.24, 0.59), (0.0, 0.2, 0.8), (0.67, 0.0, 0.33))
_HEIGHT_CM = (3.8, 5.0, 20.5, 3.2)
_ITEM_G = (0.035, 0.05, 0.05)
_COLOURS = np.array(((58.0, 128.0, 48.0), (168.0, 146.0, 92.0), (84.0, 138.0, 52.0)))

_Array = np.ndarray[Any, Any]
_Size = tuple[int, int]


class PastureSample(NamedTuple):
    """One drawn image with everything that is known about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        classes: (H, W) uint8, what is visible: 0 soil, 1 clover, 2 dead, 3 green.
        grams: the five targets, named as in the CSIRO table.
        state: Tas, Vic, NSW or WA.
        date: sampling date, ``year/month/day``.
        height_cm: mean sward height.
    """

    image: _Array
    classes: _Array
    grams: dict[str, float]
    state: str
    date: str
    height_cm: float

    @property
    def group(self) -> str:
        """State and date: images of one sampling must stay in one fold."""
        return f"{self.state} | {self.date}"


class Pasture:
    """Generator of pasture images; sample i of a seed is the same on every machine and in every order.

    Args:
        seed: which pasture.
        size: (height, width) in pixels, 16 or more each.

    Examples:
        >>> sample = Pasture(seed=0, size=(64, 128)).sample(3)
        >>> sample.image.shape, round(sample.grams["Dry_Total_g"], 2)
        ((64, 128, 3), 46.91)
    """

    def __init__(self, seed: int = 0, size: _Size = (256, 512)) -> None:
        self.seed, self.size = seed, size

    def sample(self, index: int) -> PastureSample:
        """Draw sample ``index``."""
        # its stream is the same for ever, on every machine
        random = np.random.RandomState([self.seed, 1, index])
        state, date = int(random.choice(len(_STATES), p=_STATE_SHARES)), int(random.randint(_DATES))
        # what all images of one state and date share
        day = np.random.RandomState([self.seed, 2, state, date])
        mass_scale, tilt = np.exp(day.normal(0.0, 0.35)), np.exp(day.normal(0.0, 0.4, 3))
        hue, exposure = day.normal(0.0, 6.0, 3), np.exp(day.normal(0.0, 0.12))
        height_scale = np.exp(day.normal(0.0, 0.2))
        # the grams of clover, dead and green matter, and the height in cm
        total = np.clip(_MEDIAN_G[state] * mass_scale * np.exp(random.normal(0.0, 0.5)), 1.0, 185.0)
        mix = np.array(_MIX[state]) * tilt
        parts = np.array(
            [random.gamma(6.0 * share) if share > 0 else 0.0 for share in mix / mix.sum()]
        )
        if random.uniform() < 0.25 and parts[1:].sum() > 0:
            parts[0] = 0.0
        clover, dead, green = (total * parts / parts.sum()).tolist()
        height = _HEIGHT_CM[state] * height_scale * (total / _MEDIAN_G[state]) ** 0.6
        height_cm = float(np.clip(height * np.exp(random.normal(0.0, 0.2)), 1.0, 70.0))
        lit, classes = _draw(random, (clover, dead, green), height_cm, hue, self.size)
        pixels = lit * exposure + random.normal(0.0, 4.0, lit.shape)
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        grams = dict(
            zip(WEIGHTS, (clover, dead, green, clover + green, clover + green + dead), strict=True)
        )
        return PastureSample(
            pixels, classes, grams, _STATES[state], f"2015/{date + 1}/{3 * date + 1}", height_cm
        )

    def table(self, indices: Iterable[int]) -> Any:
        """Return samples as :func:`dinoneck.data.read_table` gives them, with images in memory and the five targets.

        The labels are the class maps: 0 soil, 1 clover, 2 dead, 3 green.
        """
        from dinoneck.data.tables import pd  # type: ignore[attr-defined]  # names the extra where it is missing

        samples = {f"pasture-{self.seed}-{i}": self.sample(i) for i in indices}
        rows = [
            [each.image, *each.grams.values(), each.group, each.classes]
            for each in samples.values()
        ]
        table = pd.DataFrame(rows, list(samples), [IMAGES, *WEIGHTS, GROUP, LABELS])
        table.attrs = {"weights": WEIGHTS}
        return table

    def write(self, folder: str | Path, images: int) -> None:
        """Write a folder as one's own would be: ``table.csv``, ``images/*.jpg`` and class masks ``masks/*.png``.

        The table has one row per image: image, mask (paths below the folder), sampling (equal
        values belong in one fold), cover (the share of the picture that plants hide) and the five
        targets in grams. The masks hold 0 soil, 1 clover, 2 dead, 3 green.

        Args:
            folder: made if missing; files of the same names are replaced.
            images: how many, samples 0, 1, 2, ... of this pasture.
        """
        root, rows = Path(folder), []
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            sample, image, mask = self.sample(i), f"images/{i:04}.jpg", f"masks/{i:04}.png"
            Image.fromarray(sample.image).save(root / image, quality=92)
            Image.fromarray(sample.classes).save(root / mask)
            values = ((sample.classes > 0).mean(), *sample.grams.values())
            rows.append([image, mask, sample.group, *(f"{value:.4f}" for value in values)])
        write_text(
            root / "table.csv", csv_text(("image", "mask", "sampling", "cover", *WEIGHTS), rows)
        )


def _draw(
    random: np.random.RandomState,
    grams: Iterable[float],
    height_cm: float,
    hue: _Array,
    size: _Size,
) -> tuple[_Array, _Array]:
    """Scatter leaves and blades and paint them from the ground up; return the lit image and what is visible."""
    rows, cols, scale = size[0] // _CELL_PX, size[1] // _CELL_PX, size[1] / 512.0
    each_places, each_kinds = [], []
    for kind, mass in enumerate(grams):
        if mass <= 0:
            continue
        count = max(1, round(mass / _ITEM_G[kind]))
        # unused; without it all later numbers of a seed would be others
        random.gamma(4.0, size=count)
        share = np.exp(_smooth(random, (rows, cols), 3) * 1.2).ravel()  # denser in some cells
        cells = np.searchsorted(np.cumsum(share) / share.sum(), random.uniform(size=count))
        corners = np.stack(np.divmod(np.minimum(cells, rows * cols - 1), cols)[::-1], axis=1)
        each_places.append((corners + random.uniform(size=(count, 2))) * _CELL_PX)
        each_kinds.append(np.full(count, kind))
    places, kinds = np.concatenate(each_places), np.concatenate(each_kinds)
    image, seen = Image.fromarray(_soil(random, size)), Image.new("L", size[::-1])
    pens = ImageDraw.Draw(image), ImageDraw.Draw(seen)  # of the image and of what is visible
    depth = random.uniform(size=len(kinds)) + np.array((0.25, -0.35, 0.0))[kinds]
    turns = random.uniform(0.0, 2 * np.pi, len(kinds))
    bends = random.normal(0.0, 0.5, len(kinds))
    tints = random.normal(0.0, 7.0, (len(kinds), 3))
    shades = 0.65 + 0.3 * depth[:, None]
    colours = np.clip((_COLOURS[kinds] + hue) * shades + tints, 0, 255).astype(int)
    length = (12.0 + 13.0 * np.log1p(height_cm) / np.log(10.0)) * scale
    width = max(1, round(2.6 * scale))
    for i in np.argsort(depth, kind="stable"):
        colour = tuple(colours[i])
        if kinds[i] == 0:
            radius, pale = 5.2 * scale, tuple(min(255, value + 38) for value in colour)
            # three round leaflets with a pale bar
            for angle in (turns[i], turns[i] + 2.0944, turns[i] + 4.1888):
                along = np.array((np.cos(angle), np.sin(angle))) * radius
                centre, across = places[i] + along * 0.85, along[::-1] * (-0.4, 0.4)
                box = (*(centre - radius * 0.75), *(centre + radius * 0.75))
                pens[0].ellipse(box, fill=colour)
                pens[1].ellipse(box, fill=1)
                pens[0].line((*(centre - across), *(centre + across)), fill=pale, width=1)
            continue
        angles = turns[i] + bends[i] * np.arange(3)  # of a curved blade of three segments
        steps = length / 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = [tuple(point) for point in np.cumsum([places[i], *steps], axis=0)]
        pens[0].line(points, fill=colour, width=width, joint="curve")
        pens[1].line(points, fill=int(kinds[i]) + 1, width=width, joint="curve")
    light = 1.0 + 0.12 * _smooth(random, (rows, cols), 2, size)[..., None]
    return np.asarray(image) * light, np.array(seen)


def _soil(random: np.random.RandomState, size: _Size) -> _Array:
    base = np.array((112.0, 88.0, 66.0)) + random.normal(0.0, 8.0, 3)
    relief = sum(
        _smooth(random, (size[0] // px, size[1] // px), 1, size)
        for px in (64, 16, 4)
        if size[0] >= px
    )
    return np.clip(base * (1.0 + 0.09 * np.asarray(relief)[..., None]), 0, 255).astype(np.uint8)


def _smooth(
    random: np.random.RandomState, shape: _Size, passes: int, size: _Size | None = None
) -> _Array:
    """Blurred unit-variance noise on a coarse grid, enlarged to ``size`` if given."""
    field: _Array = random.normal(size=shape)
    for _ in range(passes):
        padded = np.pad(field, 1, mode="edge")
        field = (
            padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + 2 * field
        ) / 6
    field = (field - field.mean()) / (field.std() + 1e-9)
    if size is None:
        return field
    enlarged = Image.fromarray(field.astype(np.float32)).resize(
        size[::-1], Image.Resampling.BICUBIC
    )
    return np.asarray(enlarged, np.float64)
