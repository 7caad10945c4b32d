"""A procedural pasture: images of clover, dead and green matter whose dry masses are known exactly.

Meant for demonstrations, documentation and tests without downloads. Its statistics follow the CSIRO
Image2Biomass table (states, sampling dates, masses, zero shares); its pictures are drawings. Leaves hide each
other, so even perfect eyes cannot weigh what lies under the canopy.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.atomic import write_text, write_whole
from dinoneck.data.cells import GROUP, IMAGES, LABELS, csv_text
from dinoneck.data.resizing import Size
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = {"Dry_Clover_g": 0.1, "Dry_Dead_g": 0.1, "Dry_Green_g": 0.1, "GDM_g": 0.2, "Dry_Total_g": 0.5}
SUMS = {"GDM_g": ("Dry_Green_g", "Dry_Clover_g"), "Dry_Total_g": ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g")}
STATES = ("Tas", "Vic", "NSW", "WA")
CELL_PX = 16
_STATE_SHARES = (0.39, 0.32, 0.21, 0.08)
_DATES = 7
_MEDIAN_G = (33.0, 38.0, 62.0, 27.0)
_MIX = ((0.17, 0.41, 0.42), (0.17, 0.24, 0.59), (0.0, 0.2, 0.8), (0.67, 0.0, 0.33))
_HEIGHT_CM = (3.8, 5.0, 20.5, 3.2)
_ITEM_G = (0.035, 0.05, 0.05)
_COLOURS = ((58.0, 128.0, 48.0), (168.0, 146.0, 92.0), (84.0, 138.0, 52.0))

_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_Kinds = np.ndarray[Any, np.dtype[np.int64]]
_Random = np.random.RandomState
_Colours = tuple[tuple[int, ...], int]
_Pens = tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw]  # of the image and of what is visible


@dataclass(frozen=True)
class PastureSample:
    """One drawn image with everything that is known about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        classes: (H, W) uint8, what is visible: 0 soil, 1 clover, 2 dead, 3 green.
        density_g: (3, H/16, W/16) float64, grams of clover, dead, green per cell; sums to the masses.
        grams: the five targets, named as in the CSIRO table.
        state: Tas, Vic, NSW or WA.
        date: sampling date, ``year/month/day``.
        height_cm: mean sward height.
    """

    image: _Pixels
    classes: _Pixels
    density_g: _Floats
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
        size: (height, width) in pixels, multiples of 16.

    Raises:
        ConfigError: if the size is not a multiple of 16.

    Examples:
        >>> sample = Pasture(seed=0, size=(64, 128)).sample(3)
        >>> bool(abs(sample.density_g.sum() - sample.grams["Dry_Total_g"]) < 1e-9)
        True
    """

    def __init__(self, seed: int = 0, size: tuple[int, int] = (256, 512)) -> None:
        if len(size) != 2 or any(side < CELL_PX or side % CELL_PX for side in size):
            raise ConfigError(f"size is {size}; expected (height, width), multiples of {CELL_PX} px")
        self.seed = seed
        self.size = size

    def sample(self, index: int) -> PastureSample:
        """Draw sample ``index``."""
        random = _random(self.seed, 1, index)
        state = int(random.choice(len(STATES), p=_STATE_SHARES))
        date = int(random.randint(_DATES))
        day = _Sampling(_random(self.seed, 2, state, date))
        masses, height_cm = _masses(random, state, day)
        places, cell_g, kinds = _items(random, masses, self.size)
        image, classes = _draw(random, places, kinds, height_cm, day, self.size)
        clover, dead, green = masses.tolist()
        grams = dict(zip(WEIGHTS, (clover, dead, green, clover + green, clover + green + dead), strict=True))
        day_of_year = f"2015/{date + 1}/{3 * date + 1}"
        return PastureSample(image, classes, cell_g, grams, STATES[state], day_of_year, height_cm)

    def table(self, indices: Iterable[int]) -> pd.DataFrame:
        """Return samples as :func:`dinoneck.data.read_table` gives them, with images in memory and the five targets.

        The labels are the class maps: 0 soil, 1 clover, 2 dead, 3 green.
        """
        from dinoneck.data.tables import pd  # type: ignore[attr-defined]  # names the extra where it is missing

        samples = {f"pasture-{self.seed}-{i}": self.sample(i) for i in indices}
        rows = [[each.image, *each.grams.values(), each.group, each.classes] for each in samples.values()]
        table = pd.DataFrame(rows, list(samples), [IMAGES, *WEIGHTS, GROUP, LABELS])
        table.attrs = {"weights": WEIGHTS}
        return table

    def write(self, folder: str | os.PathLike[str], images: int) -> None:
        """Write a folder as one's own would be: ``table.csv``, ``images/*.jpg`` and class masks ``masks/*.png``.

        The table has one row per image: image, mask (paths below the folder), sampling (equal values belong in one
        fold), cover (the share of the picture that plants hide) and the five targets in grams. The masks hold 0 soil,
        1 clover, 2 dead, 3 green.

        Args:
            folder: made if missing; files of the same names are replaced.
            images: how many, samples 0, 1, 2, ... of this pasture.

        Raises:
            ConfigError: if ``images`` is below 1.
        """
        if images < 1:
            raise ConfigError(f"images is {images}; expected 1 or more")
        root, rows = Path(folder), []
        for i in range(images):
            sample, image, mask = self.sample(i), f"images/{i:04}.jpg", f"masks/{i:04}.png"
            _write_picture(root / image, sample.image)
            _write_picture(root / mask, sample.classes)
            values = (float((sample.classes > 0).mean()), *sample.grams.values())
            rows.append([image, mask, sample.group, *(f"{value:.4f}" for value in values)])
        write_text(root / "table.csv", csv_text(("image", "mask", "sampling", "cover", *WEIGHTS), rows))


def _write_picture(path: Path, pixels: _Pixels) -> None:
    """An image as JPEG, a mask as PNG, by the name's ending; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG" if path.suffix == ".png" else "JPEG", quality=92)
    write_whole(path, buffer.getvalue())


class _Sampling:
    """What all images of one state and date share."""

    def __init__(self, random: _Random) -> None:
        self.mass_scale = float(np.exp(random.normal(0.0, 0.35)))
        self.tilt: _Floats = np.exp(random.normal(0.0, 0.4, 3))
        self.hue: _Floats = random.normal(0.0, 6.0, 3)
        self.exposure = float(np.exp(random.normal(0.0, 0.12)))
        self.height_scale = float(np.exp(random.normal(0.0, 0.2)))


def _random(*keys: int) -> _Random:
    """``RandomState`` and not ``default_rng``: NumPy guarantees its stream for ever, on every machine."""
    return np.random.RandomState(list(keys))


def _masses(random: _Random, state: int, day: _Sampling) -> tuple[_Floats, float]:
    """Draw grams of clover, dead, green and the sward height in cm."""
    median = _MEDIAN_G[state]
    total = float(np.clip(median * day.mass_scale * np.exp(random.normal(0.0, 0.5)), 1.0, 185.0))
    mix = np.array(_MIX[state]) * day.tilt
    mix /= mix.sum()
    parts = np.array([random.gamma(6.0 * share) if share > 0 else 0.0 for share in mix])
    if random.uniform() < 0.25 and parts[1:].sum() > 0:
        parts[0] = 0.0
    masses = total * parts / parts.sum()
    height = _HEIGHT_CM[state] * day.height_scale * (total / median) ** 0.6 * np.exp(random.normal(0.0, 0.2))
    return masses, float(np.clip(height, 1.0, 70.0))


def _items(random: _Random, masses: _Floats, size: Size) -> tuple[_Floats, _Floats, _Kinds]:
    """Scatter leaves and blades: places (n, 2) as x, y; grams per cell (3, rows, cols); kinds (n,)."""
    height, width = size
    rows, cols = height // CELL_PX, width // CELL_PX
    cell_g = np.zeros((3, rows, cols))
    places, kinds = [], []
    for kind, mass in enumerate(masses):
        if mass <= 0:
            continue
        count = max(1, round(mass / _ITEM_G[kind]))
        weights = random.gamma(4.0, size=count)
        weights *= mass / weights.sum()
        share = np.exp(_smooth(random, (rows, cols), 3) * 1.2).ravel()
        cells = np.searchsorted(np.cumsum(share) / share.sum(), random.uniform(size=count))
        cells = np.minimum(cells, rows * cols - 1)
        np.add.at(cell_g[kind], (cells // cols, cells % cols), weights)
        inside = random.uniform(size=(count, 2))
        places.append((np.stack((cells % cols, cells // cols), axis=1) + inside) * CELL_PX)
        kinds.append(np.full(count, kind))
    return np.concatenate(places), cell_g, np.concatenate(kinds)


def _draw(
    random: _Random, places: _Floats, kinds: _Kinds, height_cm: float, day: _Sampling, size: Size
) -> tuple[_Pixels, _Pixels]:
    """Paint items from the ground up; return the image and the map of what is visible."""
    scale = size[1] / 512.0
    image = Image.fromarray(_soil(random, size))
    seen = Image.new("L", (size[1], size[0]), 0)
    pens = ImageDraw.Draw(image), ImageDraw.Draw(seen)
    depth = random.uniform(size=len(kinds)) + np.array((0.25, -0.35, 0.0))[kinds]
    turns = random.uniform(0.0, 2 * np.pi, len(kinds))
    bends = random.normal(0.0, 0.5, len(kinds))
    tints = random.normal(0.0, 7.0, (len(kinds), 3))
    length = (12.0 + 13.0 * np.log1p(height_cm) / np.log(10.0)) * scale
    for i in np.argsort(depth, kind="stable"):
        kind = int(kinds[i])
        shade = 0.65 + 0.3 * float(depth[i])
        colour = np.clip((np.array(_COLOURS[kind]) + day.hue) * shade + tints[i], 0, 255).astype(int)
        x, y = places[i]
        if kind == 0:
            _clover(pens, x, y, float(turns[i]), 5.2 * scale, tuple(colour))
        else:
            width = max(1, round(2.6 * scale))
            _blade(pens, places[i], float(turns[i]), float(bends[i]), length, width, (tuple(colour), kind + 1))
    light = 1.0 + 0.12 * _smooth(random, (size[0] // CELL_PX, size[1] // CELL_PX), 2, size)[..., None]
    pixels = np.asarray(image, dtype=np.float64) * light * day.exposure + random.normal(0.0, 4.0, (*size, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), np.asarray(seen).copy()


def _blade(pens: _Pens, place: _Floats, turn: float, bend: float, length: float, width: int, colours: _Colours) -> None:
    """A curved stroke of three segments."""
    turns = turn + bend * np.arange(3)
    steps = length / 3 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    points = [tuple(point) for point in np.cumsum([place, *steps], axis=0)]
    pens[0].line(points, fill=colours[0], width=width, joint="curve")
    pens[1].line(points, fill=colours[1], width=width, joint="curve")


def _clover(pens: _Pens, x: float, y: float, turn: float, radius: float, colour: tuple[int, ...]) -> None:
    """Three round leaflets with a pale bar."""
    pale = tuple(min(255, value + 38) for value in colour)
    for angle in (turn, turn + 2.0944, turn + 4.1888):
        cx, cy = x + radius * 0.85 * np.cos(angle), y + radius * 0.85 * np.sin(angle)
        box = (cx - radius * 0.75, cy - radius * 0.75, cx + radius * 0.75, cy + radius * 0.75)
        pens[0].ellipse(box, fill=colour)
        pens[1].ellipse(box, fill=1)
        across = np.array((-np.sin(angle), np.cos(angle))) * radius * 0.4
        pens[0].line((cx - across[0], cy - across[1], cx + across[0], cy + across[1]), fill=pale, width=1)


def _soil(random: _Random, size: Size) -> _Pixels:
    base = np.array((112.0, 88.0, 66.0)) + random.normal(0.0, 8.0, 3)
    relief = sum(
        _smooth(random, (size[0] // cell, size[1] // cell), 1, size) for cell in (64, 16, 4) if size[0] >= cell
    )
    return np.clip(base * (1.0 + 0.09 * np.asarray(relief)[..., None]), 0, 255).astype(np.uint8)


def _smooth(random: _Random, shape: Size, passes: int, size: Size | None = None) -> _Floats:
    """Blurred unit-variance noise on a coarse grid, enlarged to ``size`` if given."""
    field: _Floats = random.normal(size=shape)
    for _ in range(passes):
        padded = np.pad(field, 1, mode="edge")
        field = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + 2 * field) / 6
    field = (field - field.mean()) / (field.std() + 1e-9)
    if size is None:
        return field
    enlarged = Image.fromarray(field.astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, dtype=np.float64)
