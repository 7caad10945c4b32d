"""Generated groves: their trees are counted, and their number says nothing about their cover."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck.demo.grove import IMAGES_PER_SITE, Grove


def test_a_sample_is_the_same_in_every_order() -> None:
    alone = Grove(seed=3).sample(5)

    grove = Grove(seed=3)
    for index in (7, 0):
        grove.sample(index)
    after_others = grove.sample(5)

    np.testing.assert_array_equal(alone.image, after_others.image)
    np.testing.assert_array_equal(alone.classes, after_others.classes)
    assert alone.trees == after_others.trees


def test_samples_and_seeds_differ() -> None:
    sample = Grove(seed=0).sample(0)

    assert not np.array_equal(sample.classes, Grove(seed=0).sample(1).classes)
    assert not np.array_equal(sample.classes, Grove(seed=1).sample(0).classes)


def crowns_in(classes: np.ndarray) -> int:
    """The number of connected areas of trees: flood fill over the four neighbours of a pixel."""
    left = {(int(row), int(column)) for row, column in np.argwhere(classes == 1)}
    count = 0
    while left:
        count += 1
        border = [left.pop()]
        while border:
            row, column = border.pop()
            for neighbour in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if neighbour in left:
                    left.remove(neighbour)
                    border.append(neighbour)
    return count


@pytest.mark.slow
def test_the_number_of_trees_is_the_number_of_crowns_where_none_touch() -> None:
    """Crowns may touch, so there are as many areas as trees or fewer, and often as many."""
    samples = [Grove(seed=0).sample(index) for index in range(8)]

    areas = [crowns_in(sample.classes) for sample in samples]

    trees = [sample.trees for sample in samples]
    assert all(area <= number for area, number in zip(areas, trees, strict=True))
    assert sum(areas) > 0.8 * sum(trees)


def test_crowns_are_greener_than_the_ground() -> None:
    sample = Grove(seed=0).sample(0)
    red, green, _ = (sample.image[..., channel].astype(float) for channel in range(3))
    is_tree = sample.classes == 1

    assert (green / red)[is_tree].mean() > 1.5 * (green / red)[~is_tree].mean()


@pytest.mark.slow
def test_the_number_of_trees_does_not_follow_from_their_cover() -> None:
    """100 pairs that are independent have a correlation below 0.26 in 99 of 100 cases."""
    samples = [Grove(seed=0, size=(64, 128)).sample(index) for index in range(100)]

    trees = [sample.trees for sample in samples]
    cover = [sample.cover for sample in samples]

    assert abs(np.corrcoef(trees, cover)[0, 1]) < 0.26
    assert max(trees) > 5 * min(trees)
    assert max(cover) > 2 * min(cover)


@pytest.mark.slow
def test_images_of_a_site_share_their_light() -> None:
    means = [Grove(seed=0).sample(index).image.mean() for index in range(8 * IMAGES_PER_SITE)]
    by_site = np.reshape(means, (8, IMAGES_PER_SITE))

    assert by_site.mean(axis=1).std() > by_site.std(axis=1).mean()


def test_the_folder_holds_what_the_samples_are(tmp_path: Path) -> None:
    grove = Grove(seed=2, size=(64, 96))

    grove.write(tmp_path, images=IMAGES_PER_SITE + 1)

    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert list(rows[0]) == ["image", "mask", "site", "trees", "cover"]
    assert [row["site"] for row in rows] == ["site 2.0"] * IMAGES_PER_SITE + ["site 2.1"]
    sample = grove.sample(1)
    assert int(rows[1]["trees"]) == sample.trees
    mask = np.asarray(Image.open(tmp_path / rows[1]["mask"]))
    np.testing.assert_array_equal(mask, sample.classes)
    assert float(rows[1]["cover"]) == pytest.approx((mask == 1).mean(), abs=1e-4)
    image = np.asarray(Image.open(tmp_path / rows[1]["image"]), float)
    assert abs(image - sample.image).mean() < 5.0  # a JPEG
