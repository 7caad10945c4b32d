"""A generated pasture in the files of the published competition: a row per image and target."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from dinoneck.atomic import write_text, write_whole
from dinoneck.data import Pasture
from dinoneck.data.cells import csv_text
from dinoneck.demo.pasture import PastureSample

TEST_COLUMNS = ("sample_id", "image_path", "target_name")
SAMPLING_COLUMNS = ("Sampling_Date", "State", "Species", "Pre_GSHH_NDVI", "Height_Ave_cm")
NDVI = np.array((0.18, 0.9, 0.3, 0.85), np.float32)  # of soil, clover, dead and green matter
TRAIN_COLUMNS = (*TEST_COLUMNS, *SAMPLING_COLUMNS, "target")


def write_csiro(pasture: Pasture, folder: str | os.PathLike[str], train: int, test: int) -> None:
    """Write images in the exact CSIRO layout: train.csv, test.csv, sample_submission.csv, JPEG files.

    The table test.csv names images and targets only; the true values of its images are not written.
    """
    root = Path(folder)
    train_rows: list[list[str]] = []
    test_rows: list[list[str]] = []
    for i in range(train + test):
        part = "train" if i < train else "test"
        sample = pasture.sample(i)
        path = f"{part}/ID{1000000 + i}.jpg"
        buffer = io.BytesIO()
        Image.fromarray(sample.image).save(buffer, "JPEG", quality=92)
        (root / part).mkdir(parents=True, exist_ok=True)
        write_whole(root / path, buffer.getvalue())
        for name, grams in sample.grams.items():
            row = [f"ID{1000000 + i}__{name}", path, name]
            if part == "test":
                test_rows.append(row)
                continue
            ndvi = NDVI[sample.classes].mean()
            row += [sample.date, sample.state, _species(sample)]
            row += [f"{ndvi:.2f}", f"{sample.height_cm:.1f}", f"{grams:.4f}"]
            train_rows.append(row)
    write_text(root / "train.csv", csv_text(TRAIN_COLUMNS, train_rows))
    write_text(root / "test.csv", csv_text(TEST_COLUMNS, test_rows))
    zeros = [(sample_id, 0.0) for sample_id, _, _ in test_rows]
    write_text(root / "sample_submission.csv", csv_text(("sample_id", "target"), zeros))


def _species(sample: PastureSample) -> str:
    """The plants that have a mass, the heaviest first, joined by ``_``."""
    grams_of_plant = {
        "Clover": sample.grams["Dry_Clover_g"],
        "Ryegrass": sample.grams["Dry_Green_g"],
    }
    heaviest_first = sorted(grams_of_plant, key=lambda plant: -grams_of_plant[plant])
    plants = [plant for plant in heaviest_first if grams_of_plant[plant] > 0]
    return "_".join(plants) or "Mixed"
