"""Where images and their values come from: a generated pasture, the CSIRO layout, or images with a ``cover.csv``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dinoneck.atomic import write_text
from dinoneck.data import Pasture, read_table
from dinoneck.data.cells import csv_text
from dinoneck.data.tables import read_cells
from dinoneck.demo.pasture import WEIGHTS
from dinoneck.errors import ConfigError, DataError
from dinoneck.training import group_folds
from examples.biomass.drawn import TEST_COLUMNS, write_csiro

HERE = Path(__file__).parent
PASTURE_IMAGES = 120  # to train on, unless told otherwise
TRAIN_PER_TEST = 4  # training images for each one that is only predicted
COVER = "cover.csv"
COVER_TARGETS = ("soil", "crop", "weed")
COVER_GROUP = "group"
COVER_PARTS = 6  # one of them is only predicted


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
    tables = (run / "tables" / "train.csv", run / "tables" / "held.csv")
    if data is None:
        return Layout(*tables, run / "pasture", HERE / "pasture.yaml", tuple(WEIGHTS))
    if (data / COVER).is_file():
        return Layout(*tables, data, HERE / "cover.yaml", COVER_TARGETS)
    for name in ("train.csv", "test.csv"):
        if not _is_long(data / name):
            raise DataError(
                f"{data} has no {COVER}, and no {name} in the CSIRO layout (sample_id, "
                "image_path, target_name). For a table of your own take the verbs dinoneck "
                "extract, train and predict; or leave --data out"
            )
    return Layout(*tables, data, HERE / "cls_gating.yaml", tuple(WEIGHTS))


def _is_long(file: Path) -> bool:
    """Whether there is a table with the columns of the CSIRO layout."""
    if not file.is_file():
        return False
    return set(TEST_COLUMNS) <= set(read_cells(file).columns)


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
        count = PASTURE_IMAGES if pasture is None else pasture
        truth = _draw_pasture(layout, size, count)
    elif pasture is not None:
        raise ConfigError(
            "--pasture is the number of images to draw; there are images in --data already"
        )
    if layout.config.stem == "cover":
        return _split_cover(layout)
    write(layout.train, wide(layout.images / "train.csv"))
    write(layout.test, wide(layout.images / "test.csv"))
    return truth


def _draw_pasture(layout: Layout, size: tuple[int, int], count: int) -> pd.DataFrame:
    """Draw the images, unless a whole pasture of this number is there; its last file tells."""
    drawn = Pasture(seed=0, size=size)
    test = max(1, count // TRAIN_PER_TEST)
    if not (layout.images / "sample_submission.csv").exists():
        write_csiro(drawn, layout.images, count, test)
    num_files = len(list((layout.images / "train").iterdir()))
    if num_files != count:
        raise ConfigError(
            f"{layout.images} holds {num_files} training images, not {count}; choose another --out"
        )
    return drawn.table(range(count, count + test))


def _split_cover(layout: Layout) -> pd.DataFrame:
    """Put about a sixth of the images aside, whole groups of them; they are only predicted."""
    rows = read_cells(layout.images / COVER, ("image", COVER_GROUP, *COVER_TARGETS))
    groups = rows[COVER_GROUP].tolist()
    parts = min(COVER_PARTS, len(set(groups)))
    train, held_out = group_folds(groups, parts, seed=0)[0]
    write(layout.train, rows.iloc[train])
    write(layout.test, rows.iloc[held_out])
    return read_table(layout.test, layout.images, COVER_TARGETS)


def wide(file: Path) -> pd.DataFrame:
    """Return a table with a row per image and target as one with a row per image.

    Its columns are ``image``, what the rows of an image share, and the targets, where their values
    are known.

    Raises:
        DataError: if an image lacks a target, has one twice, or its rows differ in another column.
    """
    rows = read_cells(file, TEST_COLUMNS)
    shared = [column for column in rows if column not in (*TEST_COLUMNS, "target")]
    for image, image_rows in rows.groupby("image_path", sort=False):
        has_all_targets = sorted(image_rows["target_name"]) == sorted(WEIGHTS)
        is_contradictory = (image_rows[shared].nunique() > 1).any()
        if not has_all_targets or is_contradictory:
            raise DataError(
                f"{file}: {image} has the rows {image_rows.values.tolist()}; expected one for "
                "each of five masses"
            )
    table = rows.drop_duplicates("image_path").set_index("image_path")[shared]
    table = table.rename_axis("image")
    if "target" in rows:
        targets = rows.pivot(index="image_path", columns="target_name", values="target")
        table = table.join(targets[list(WEIGHTS)])
    return table.reset_index()


def write(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, unless the file is there and the same."""
    text = table.to_csv(index=False, lineterminator="\n")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def answers(layout: Layout, predictions: Path) -> dict[str, list[float]]:
    """Return the predictions in a file, target -> one value per image in the order of the test table."""
    rows = read_cells(predictions, layout.targets)
    return {name: rows[name].astype(float).tolist() for name in layout.targets}


def submission(predictions: Path, test: Path) -> str:
    """Return predictions, a row per image, in the form that ``test.csv`` asks for: a row per image and target."""
    asked = read_cells(test, TEST_COLUMNS)
    targets = asked["target_name"].unique().tolist()
    values = read_cells(predictions, targets).set_index("image")
    values.index = [image.removeprefix(f"{test.parent}/") for image in values.index]
    rows = []
    for sample_id, image, target in asked[list(TEST_COLUMNS)].itertuples(index=False):
        rows.append([sample_id, values.loc[image, target]])
    return csv_text(["sample_id", "target"], rows)
