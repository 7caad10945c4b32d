"""The generated pasture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dinoneck.data import Pasture, read_table


def test_samples_do_not_depend_on_order_or_company() -> None:
    first, second = Pasture(5, (32, 64)), Pasture(5, (32, 64))
    later = second.sample(7)
    assert np.array_equal(first.sample(3).image, second.sample(3).image)
    assert np.array_equal(first.sample(7).image, later.image)
    assert not np.array_equal(first.sample(3).image, first.sample(4).image)
    assert not np.array_equal(first.sample(3).image, Pasture(6, (32, 64)).sample(3).image)


def test_a_sample_is_fixed_for_ever() -> None:
    sample = Pasture(0).sample(0)
    assert sample.grams["GDM_g"] == sample.grams["Dry_Clover_g"] + sample.grams["Dry_Green_g"]
    # Pillow may draw a rim otherwise
    shares = np.bincount(sample.classes.ravel()) / sample.classes.size
    assert abs(shares - (0.6702, 0.1265, 0.2015, 0.0018)).max() < 0.01
    assert abs(sample.image.mean(axis=(0, 1)) - (115.7, 96.7, 73.5)).max() < 1.0
    assert {name: round(grams, 6) for name, grams in sample.grams.items()} == {
        "Dry_Clover_g": 4.429199,
        "Dry_Dead_g": 35.490635,
        "Dry_Green_g": 0.211802,
        "GDM_g": 4.641002,
        "Dry_Total_g": 40.131637,
    }
    assert (sample.state, sample.date, round(sample.height_cm, 6)) == ("Tas", "2015/7/19", 5.611976)


def test_a_written_folder_is_read_as_the_pasture_it_is(tmp_path: Path) -> None:
    pasture = Pasture(3, (32, 64))
    pasture.write(tmp_path, 2)
    names = ["Dry_Clover_g", "GDM_g", "Dry_Total_g"]
    table = read_table(
        tmp_path / "table.csv", tmp_path, ["cover", *names], group="sampling", labels="mask"
    )
    assert table.index.tolist() == ["images/0000.jpg", "images/0001.jpg"]
    for i in range(2):
        sample = pasture.sample(i)
        row = table.iloc[i]
        assert row["group"] == sample.group
        assert all(abs(row[name] - sample.grams[name]) <= 5.1e-5 for name in names)
        mask = np.asarray(Image.open(str(row["labels"])))
        assert np.array_equal(mask, sample.classes)
        assert abs(row["cover"] - (mask > 0).mean()) <= 5.1e-5
        image = np.asarray(Image.open(str(row["images"]))).astype(float)
        # JPEG
        assert (
            abs(image - sample.image).mean() < 0.5 * abs(image - pasture.sample(1 - i).image).mean()
        )
