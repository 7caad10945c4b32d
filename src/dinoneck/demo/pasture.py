"""A procedural pasture: images of clover, dead and green matter whose dry masses are known exactly.

Meant for demonstrations, documentation and tests without downloads. Its statistics follow the CSIRO
Image2Biomass table (states, sampling dates, masses, zero shares); its pictures are drawings. Leaves
hide each other, so even perfect eyes cannot weigh what lies under the canopy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.atomic import write_text
from dinoneck.data.cells import GROUP, IMAGES, LABELS, csv_text
from dinoneck.demo.generated_files import make_folders, write_image
from dinoneck.demo.noise import smooth_noise

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
_CELL_PX = 16  # of the coarse grids of noise
_DRAWN_WIDTH = 512.0  # of an image for which lengths in pixels are stated
_THIRD_OF_TURN = 2.0944  # in radians
_DATES = 7  # sampling dates of the drawn table, the same in each state

# clover, dead and green matter, the order of every triple below
_CLOVER = 0
_ITEM_G = (0.035, 0.05, 0.05)  # of a leaf or blade
_COLOURS = np.array(((58.0, 128.0, 48.0), (168.0, 146.0, 92.0), (84.0, 138.0, 52.0)))
_DEPTHS = np.array((0.25, -0.35, 0.0))  # clover grows over green over dead matter


class _State(NamedTuple):
    """What the table has of a state.

    Attributes:
        name: as in the table.
        share: of its images.
        median_g: of the dry total.
        mix: the mean shares of clover, dead and green matter in the total.
        height_cm: the mean height of the sward.
    """

    name: str
    share: float
    median_g: float
    mix: tuple[float, float, float]
    height_cm: float


_STATES = (
    _State("Tas", share=0.39, median_g=33.0, mix=(0.17, 0.41, 0.42), height_cm=3.8),
    _State("Vic", share=0.32, median_g=38.0, mix=(0.17, 0.24, 0.59), height_cm=5.0),
    _State("NSW", share=0.21, median_g=62.0, mix=(0.0, 0.2, 0.8), height_cm=20.5),
    _State("WA", share=0.08, median_g=27.0, mix=(0.67, 0.0, 0.33), height_cm=3.2),
)

_Array = np.ndarray[Any, Any]
_Size = tuple[int, int]
_Colour = tuple[int, ...]


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
        self.seed = seed
        self.size = size

    def sample(self, index: int) -> PastureSample:
        """Draw sample ``index``.

        What a seed draws is the same for ever, on every machine: numbers are drawn in one order.
        """
        random = np.random.RandomState([self.seed, 1, index])
        state_index = int(random.choice(len(_STATES), p=[state.share for state in _STATES]))
        date = int(random.randint(_DATES))
        state = _STATES[state_index]
        day = _Day(np.random.RandomState([self.seed, 2, state_index, date]))

        # grams of clover, dead and green matter, and the height
        total = state.median_g * day.mass_scale * np.exp(random.normal(0.0, 0.5))
        total = np.clip(total, 1.0, 185.0)
        mix = np.array(state.mix) * day.tilt
        parts = np.zeros(3)
        for kind, share in enumerate(mix / mix.sum()):
            if share > 0:
                parts[kind] = random.gamma(6.0 * share)
        if random.uniform() < 0.25 and parts[1:].sum() > 0:  # many images show no clover
            parts[_CLOVER] = 0.0
        clover, dead, green = (total * parts / parts.sum()).tolist()
        height = state.height_cm * day.height_scale * (total / state.median_g) ** 0.6
        height_cm = float(np.clip(height * np.exp(random.normal(0.0, 0.2)), 1.0, 70.0))

        # pixels
        lit, classes = _draw(random, (clover, dead, green), height_cm, day.hue, self.size)
        noise = random.normal(0.0, 4.0, lit.shape)
        pixels = np.clip(np.rint(lit * day.exposure + noise), 0, 255).astype(np.uint8)
        return PastureSample(
            image=pixels,
            classes=classes,
            grams={
                "Dry_Clover_g": clover,
                "Dry_Dead_g": dead,
                "Dry_Green_g": green,
                "GDM_g": clover + green,
                "Dry_Total_g": clover + green + dead,
            },
            state=state.name,
            date=f"2015/{date + 1}/{3 * date + 1}",
            height_cm=height_cm,
        )

    def table(self, indices: Iterable[int]) -> Any:
        """Return samples as :func:`dinoneck.data.read_table` gives them, with images in memory and the five targets.

        The labels are the class maps: 0 soil, 1 clover, 2 dead, 3 green.
        """
        from dinoneck.data.tables import pd  # type: ignore[attr-defined]  # names the extra where it is missing

        names = []
        rows = []
        for i in indices:
            sample = self.sample(i)
            names.append(f"pasture-{self.seed}-{i}")
            rows.append([sample.image, *sample.grams.values(), sample.group, sample.classes])
        table = pd.DataFrame(rows, index=names, columns=[IMAGES, *WEIGHTS, GROUP, LABELS])
        table.attrs = {"weights": WEIGHTS}
        return table

    def write(self, folder: str | Path, images: int) -> None:
        """Write a folder as one's own would be: ``table.csv``, ``images/*.jpg`` and class masks ``masks/*.png``.

        The table has one row per image. ``image`` and ``mask`` are paths below the folder. Rows
        with the same ``sampling`` belong in one fold. ``cover`` is the share of the picture that
        plants hide; the five other targets are in grams. The masks hold 0 soil, 1 clover, 2 dead, 3
        green.

        Args:
            folder: made if missing; files of the same names are replaced.
            images: how many, samples 0, 1, 2, ... of this pasture.
        """
        root = Path(folder)
        make_folders(root)
        rows = []
        for i in range(images):
            sample = self.sample(i)
            image, mask = write_image(root, i, sample.image, sample.classes)
            cover = (sample.classes > 0).mean()
            numbers = [f"{value:.4f}" for value in (cover, *sample.grams.values())]
            rows.append([image, mask, sample.group, *numbers])
        columns = ("image", "mask", "sampling", "cover", *WEIGHTS)
        write_text(root / "table.csv", csv_text(columns, rows))


class _Day:
    """What all images of one state and date share.

    Attributes:
        mass_scale: factor of all masses.
        tilt: factors of the shares of clover, dead and green matter.
        hue: (3,) added to all colours.
        exposure: factor of all pixels.
        height_scale: factor of the height.
    """

    def __init__(self, random: np.random.RandomState) -> None:
        self.mass_scale = np.exp(random.normal(0.0, 0.35))
        self.tilt = np.exp(random.normal(0.0, 0.4, 3))
        self.hue = random.normal(0.0, 6.0, 3)
        self.exposure = np.exp(random.normal(0.0, 0.12))
        self.height_scale = np.exp(random.normal(0.0, 0.2))


def _draw(
    random: np.random.RandomState,
    grams: Sequence[float],
    height_cm: float,
    hue: _Array,
    size: _Size,
) -> tuple[_Array, _Array]:
    """Scatter leaves and blades and paint them from the ground up; return the lit image and what is visible."""
    places, kinds = _scatter(random, grams, size)
    canvas = _Canvas(_soil(random, size))
    depth = random.uniform(size=len(kinds)) + _DEPTHS[kinds]
    turns = random.uniform(0.0, 2 * np.pi, len(kinds))
    bends = random.normal(0.0, 0.5, len(kinds))
    tints = random.normal(0.0, 7.0, (len(kinds), 3))
    shades = 0.65 + 0.3 * depth[:, None]
    colours = np.clip((_COLOURS[kinds] + hue) * shades + tints, 0, 255).astype(int)

    scale = size[1] / _DRAWN_WIDTH
    length = (12.0 + 13.0 * np.log1p(height_cm) / np.log(10.0)) * scale
    width = max(1, round(2.6 * scale))
    for i in np.argsort(depth, kind="stable"):
        colour = tuple(colours[i])
        if kinds[i] == _CLOVER:
            canvas.draw_clover(places[i], turn=turns[i], radius=5.2 * scale, colour=colour)
        else:
            angles = turns[i] + bends[i] * np.arange(3)  # of a curved blade of three segments
            steps = length / 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            points = np.cumsum([places[i], *steps], axis=0)
            canvas.draw_blade(points, width=width, colour=colour, kind=int(kinds[i]))

    light = 1.0 + 0.12 * smooth_noise(random, _num_cells(size), passes=2, size=size)[..., None]
    return np.asarray(canvas.image) * light, np.array(canvas.classes)


def _scatter(
    random: np.random.RandomState, grams: Sequence[float], size: _Size
) -> tuple[_Array, _Array]:
    """Draw where leaves and blades grow, denser in some cells: (n, 2) pixels (x, y), and the kind of each."""
    rows, cols = _num_cells(size)
    places = []
    kinds = []
    for kind, mass in enumerate(grams):
        if mass <= 0:
            continue
        count = max(1, round(mass / _ITEM_G[kind]))
        # unused; without it all later numbers of a seed would be others
        random.gamma(4.0, size=count)
        density = np.exp(smooth_noise(random, (rows, cols), passes=3) * 1.2).ravel()
        cells = np.searchsorted(np.cumsum(density) / density.sum(), random.uniform(size=count))
        cells = np.minimum(cells, rows * cols - 1)
        corners = np.stack([cells % cols, cells // cols], axis=1)  # (x, y)
        places.append((corners + random.uniform(size=(count, 2))) * _CELL_PX)
        kinds.append(np.full(count, kind))
    return np.concatenate(places), np.concatenate(kinds)


class _Canvas:
    """An image, and the class that is visible in each of its pixels.

    Attributes:
        image: RGB.
        classes: 0 soil, 1 clover, 2 dead, 3 green.
    """

    def __init__(self, soil: _Array) -> None:
        self.image = Image.fromarray(soil)
        self.classes = Image.new("L", self.image.size)
        self._image_pen = ImageDraw.Draw(self.image)
        self._class_pen = ImageDraw.Draw(self.classes)

    def draw_clover(self, place: _Array, turn: float, radius: float, colour: _Colour) -> None:
        """Draw three round leaflets with a pale bar."""
        pale = tuple(min(255, value + 38) for value in colour)
        for angle in (turn, turn + _THIRD_OF_TURN, turn + 2 * _THIRD_OF_TURN):
            along = np.array((np.cos(angle), np.sin(angle))) * radius
            across = along[::-1] * (-0.4, 0.4)
            centre = place + along * 0.85
            box = (*(centre - radius * 0.75), *(centre + radius * 0.75))
            self._image_pen.ellipse(box, fill=colour)
            self._class_pen.ellipse(box, fill=_CLOVER + 1)
            self._image_pen.line((*(centre - across), *(centre + across)), fill=pale, width=1)

    def draw_blade(self, points: _Array, width: int, colour: _Colour, kind: int) -> None:
        """Draw a line through the points (n, 2)."""
        corners = [tuple(point) for point in points]
        self._image_pen.line(corners, fill=colour, width=width, joint="curve")
        self._class_pen.line(corners, fill=kind + 1, width=width, joint="curve")


def _num_cells(size: _Size) -> _Size:
    """The (rows, cols) of the coarse grid of an image."""
    return size[0] // _CELL_PX, size[1] // _CELL_PX


def _soil(random: np.random.RandomState, size: _Size) -> _Array:
    """The ground (H, W, 3): brown with clods of three sizes."""
    height, width = size
    colour = np.array((112.0, 88.0, 66.0)) + random.normal(0.0, 8.0, 3)
    relief = np.zeros(size)
    for clod_px in (64, 16, 4):
        if height >= clod_px:
            relief += smooth_noise(
                random, (height // clod_px, width // clod_px), passes=1, size=size
            )
    return np.clip(colour * (1.0 + 0.09 * relief[..., None]), 0, 255).astype(np.uint8)
