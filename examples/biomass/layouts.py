"""Where images and their values come from: a generated pasture, the CSIRO layout, or images with a ``cover.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dinoneck.atomic import write_text
from dinoneck.data import Pasture, read_table
from dinoneck.data.tables import read_cells
from dinoneck.errors import ConfigError, DataError
from dinoneck.training import group_folds
from examples.biomass.drawn import TEST_COLUMNS, write_csiro

HERE = Path(__file__).parent
PASTURE_IMAGES, TEST_SHARE = 120, 4
COVER, COVER_TARGETS, COVER_GROUP, HELD_PART = "cover.csv", ("soil", "crop", "weed"), "group", 6


@dataclass(frozen=True)
class Layout:
    """One set of data as paths.

    Attributes:
        train: the table to learn from.
        test: the table that names the images to predict.
        images: the folder that both tables' file names are relative to.
        config: the training file that suits it.
    """

    train: Path
    test: Path
    images: Path
    config: Path

    @property
    def answer(self) -> str:
        """Name of the file with the predictions."""
        return "predictions.csv" if self.config.stem == "cover" else "submission.csv"


def find(data: Path | None, run: Path) -> Layout:
    """Return the layout of a folder; without one, the pasture's, in the run's folder.

    Raises:
        DataError: if the folder is of neither layout.
    """
    if data is None:
        return Layout(run / "pasture/train.csv", run / "pasture/test.csv", run / "pasture", HERE / "pasture.yaml")
    if (data / COVER).is_file():
        return Layout(run / "tables/train.csv", run / "tables/held.csv", data, HERE / "cover.yaml")
    for name in ("train.csv", "test.csv"):
        if not (data / name).is_file() or not {*TEST_COLUMNS}.issubset(read_cells(data / name).columns):
            raise DataError(
                f"{data} has no {COVER}, and no {name} in the CSIRO layout (sample_id, image_path, target_name). For a "
                "table of your own take the verbs dinoneck extract, train and predict; or leave --data out"
            )
    return Layout(data / "train.csv", data / "test.csv", data, HERE / "cls_gating.yaml")


def prepare(layout: Layout, size: tuple[int, int], pasture: int | None) -> pd.DataFrame | None:
    """Write what the layout lacks: drawn images, or tables without the held groups; what is there stays.

    Args:
        layout: from :func:`find`.
        size: (height, width) in pixels of images that are drawn.
        pasture: how many training images; a fourth of it more is drawn to be predicted. None = 120.

    Returns:
        The true values of the images to predict, in the order of the test table; None where they are not known.

    Raises:
        ConfigError: if another number of images was drawn before.
        DataError: if the cover table cannot be used.
    """
    if layout.config.stem == "pasture":
        return _pasture(layout, size, PASTURE_IMAGES if pasture is None else pasture)
    if pasture is not None:
        raise ConfigError("--pasture is the number of images to draw; there are images in --data already")
    return _cover(layout) if layout.config.stem == "cover" else None


def _pasture(layout: Layout, size: tuple[int, int], count: int) -> pd.DataFrame:
    """Draw the images, unless a whole pasture of this number is there; its last file tells."""
    drawn, test = Pasture(seed=0, size=size), max(1, count // TEST_SHARE)
    if not (layout.images / "sample_submission.csv").exists():
        write_csiro(drawn, layout.images, count, test)
    found = sum(1 for _ in (layout.images / "train").iterdir())
    if found != count:
        raise ConfigError(f"{layout.images} holds {found} training images, not {count}; choose another --out")
    return drawn.table(range(count, count + test))


def _cover(layout: Layout) -> pd.DataFrame:
    """Put about a sixth of the images aside, whole groups of them; they are only predicted."""
    file = layout.images / COVER
    rows = read_cells(file, ("image", COVER_GROUP, *COVER_TARGETS))
    groups = rows[COVER_GROUP].tolist()
    learnt, held = group_folds(groups, min(HELD_PART, len(set(groups))), seed=0)[0]
    for path, places in ((layout.train, learnt), (layout.test, held)):
        text = rows.iloc[places].to_csv(index=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    return read_table(layout.test, layout.images, COVER_TARGETS)


def answers(layout: Layout, file: Path) -> dict[str, list[float]]:
    """Return the predictions in a file, target -> one value per image in the order of the test table."""
    if layout.answer == "predictions.csv":
        return {name: values.astype(float).tolist() for name, values in read_cells(file)[[*COVER_TARGETS]].items()}
    values = read_cells(file).set_index("sample_id")["target"].astype(float)
    wanted = read_cells(layout.test, TEST_COLUMNS)
    return {name: values[own["sample_id"]].tolist() for name, own in wanted.groupby("target_name", sort=False)}
