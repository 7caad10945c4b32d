"""Where images and their values come from: a generated pasture, the CSIRO layout, or images with a ``cover.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dinoneck.atomic import write_text
from dinoneck.data import Pasture, read_table
from dinoneck.data.cells import csv_text
from dinoneck.data.pasture import WEIGHTS
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
        train: the table to learn from, one row per image.
        test: the table that names the images to predict.
        images: the folder that both tables' file names are relative to.
        config: the training file that suits it.
        targets: the columns that are scored.
    """

    train: Path
    test: Path
    images: Path
    config: Path
    targets: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Name of the file with the predictions in the form that is asked for."""
        return "predictions.csv" if self.config.stem == "cover" else "submission.csv"


def find(data: Path | None, run: Path) -> Layout:
    """Return the layout of a folder; without one, the pasture's, in the run's folder.

    Raises:
        DataError: if the folder is of neither layout.
    """
    tables = run / "tables/train.csv", run / "tables/held.csv"
    if data is None:
        return Layout(*tables, run / "pasture", HERE / "pasture.yaml", tuple(WEIGHTS))
    if (data / COVER).is_file():
        return Layout(*tables, data, HERE / "cover.yaml", COVER_TARGETS)
    for name in ("train.csv", "test.csv"):
        if not (data / name).is_file() or not {*TEST_COLUMNS}.issubset(
            read_cells(data / name).columns
        ):
            raise DataError(
                f"{data} has no {COVER}, and no {name} in the CSIRO layout (sample_id, "
                "image_path, target_name). For a table of your own take the verbs dinoneck "
                "extract, train and predict; or leave --data out"
            )
    return Layout(*tables, data, HERE / "cls_gating.yaml", tuple(WEIGHTS))


def prepare(layout: Layout, size: tuple[int, int], pasture: int | None) -> pd.DataFrame | None:
    """Write what the layout lacks: drawn images, or tables without the held groups; what is there stays.

    Args:
        layout: from :func:`find`.
        size: (height, width) in pixels of images that are drawn.
        pasture: how many training images; a fourth of it more is drawn to be predicted. None = 120.

    Returns:
        The true values of the images to predict, in the order of the test table; None where they
        are not known.

    Raises:
        ConfigError: if another number of images was drawn before.
        DataError: if the cover table cannot be used.
    """
    truth = None
    if layout.config.stem == "pasture":
        truth = _pasture(layout, size, PASTURE_IMAGES if pasture is None else pasture)
    elif pasture is not None:
        raise ConfigError(
            "--pasture is the number of images to draw; there are images in --data already"
        )
    if layout.config.stem == "cover":
        return _cover(layout)
    write(layout.train, wide(layout.images / "train.csv"))
    write(layout.test, wide(layout.images / "test.csv"))
    return truth


def _pasture(layout: Layout, size: tuple[int, int], count: int) -> pd.DataFrame:
    """Draw the images, unless a whole pasture of this number is there; its last file tells."""
    drawn, test = Pasture(seed=0, size=size), max(1, count // TEST_SHARE)
    if not (layout.images / "sample_submission.csv").exists():
        write_csiro(drawn, layout.images, count, test)
    found = sum(1 for _ in (layout.images / "train").iterdir())
    if found != count:
        raise ConfigError(
            f"{layout.images} holds {found} training images, not {count}; choose another --out"
        )
    return drawn.table(range(count, count + test))


def _cover(layout: Layout) -> pd.DataFrame:
    """Put about a sixth of the images aside, whole groups of them; they are only predicted."""
    file = layout.images / COVER
    rows = read_cells(file, ("image", COVER_GROUP, *COVER_TARGETS))
    groups = rows[COVER_GROUP].tolist()
    learnt, held = group_folds(groups, min(HELD_PART, len(set(groups))), seed=0)[0]
    write(layout.train, rows.iloc[learnt])
    write(layout.test, rows.iloc[held])
    return read_table(layout.test, layout.images, COVER_TARGETS)


def wide(file: Path) -> pd.DataFrame:
    """Return a table with a row per image and target as one with a row per image.

    Its columns are ``image``, what the rows of an image share, and the targets, where their values
    are known.

    Raises:
        DataError: if an image lacks a target, has one twice, or its rows differ in another column.
    """
    rows = read_cells(file, TEST_COLUMNS)
    shared = [
        column
        for column in rows
        if column not in ("sample_id", "image_path", "target_name", "target")
    ]
    for image, own in rows.groupby("image_path", sort=False):
        if sorted(own["target_name"]) != sorted(WEIGHTS) or (own[shared].nunique() > 1).any():
            raise DataError(
                f"{file}: {image} has the rows {own.values.tolist()}; expected one for each of "
                "five masses"
            )
    table = rows.drop_duplicates("image_path").set_index("image_path")[shared].rename_axis("image")
    if "target" in rows:
        table = table.join(
            rows.pivot(index="image_path", columns="target_name", values="target")[[*WEIGHTS]]
        )
    return table.reset_index()


def write(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, unless the file is there and the same."""
    text = table.to_csv(index=False, lineterminator="\n")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def answers(layout: Layout, predictions: Path) -> dict[str, list[float]]:
    """Return the predictions in a file, target -> one value per image in the order of the test table."""
    values = read_cells(predictions, layout.targets)
    return {name: values[name].astype(float).tolist() for name in layout.targets}


def submission(predictions: Path, test: Path) -> str:
    """Return predictions, a row per image, in the form that ``test.csv`` asks for: a row per image and target."""
    rows = read_cells(test, TEST_COLUMNS)
    value = read_cells(predictions, [*rows["target_name"].unique()]).set_index("image")
    value.index = [image.removeprefix(f"{test.parent}/") for image in value.index]
    asked = rows[[*TEST_COLUMNS]].itertuples(index=False)
    return csv_text(
        ["sample_id", "target"], [[sample, value.loc[image, name]] for sample, image, name in asked]
    )
