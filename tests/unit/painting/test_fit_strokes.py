"""The head of strokes: its examples, the same weights as scikit-learn's, and the photos that strokes are of."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import DataError
from dinoneck.painting import PaintedImage, Photo, Stroke, Strokes, fit_strokes
from dinoneck.painting.head import patch_weights
from dinoneck.painting.matching import match_photos
from dinoneck.painting.page import PENALTY
from dinoneck.painting.strokes import UNPAINTED

CLASSES = ("crop", "weed", "soil")
ROWS = 3
COLS = 4
CHANNELS = 6


def photo(number: int, height: int = 48, width: int = 64) -> Photo:
    generator = torch.Generator().manual_seed(number)
    return Photo(
        name=f"{number}.jpg",
        sha256=f"{number:064x}",
        height=height,
        width=width,
        picture=Image.new("RGB", (width, height)),
        patches=3 + 5 * torch.randn(ROWS, COLS, CHANNELS, generator=generator),
    )


def painting(of: Photo, *strokes: Stroke) -> PaintedImage:
    return PaintedImage(of.name, of.sha256, height=of.height, width=of.width, strokes=strokes)


PHOTOS = [photo(number) for number in range(3)]
STROKES = Strokes(
    CLASSES,
    (
        painting(
            PHOTOS[0],
            Stroke("crop", 6.0, ((4.0, 4.0), (40.0, 30.0))),
            Stroke("weed", 5.0, ((60.0, 5.0), (60.0, 40.0))),
        ),
        painting(PHOTOS[2], Stroke("soil", 7.0, ((5.0, 40.0), (30.0, 44.0)))),
    ),
)


def test_a_patch_weighs_as_the_share_of_its_pixels() -> None:
    random = np.random.default_rng(0)
    mask = random.choice([0, 1, 2, UNPAINTED], (48, 64)).astype(np.uint8)

    weights = patch_weights(mask, 3, rows=ROWS, cols=COLS)

    for row in range(ROWS):
        for col in range(COLS):
            patch = mask[row * 16 : row * 16 + 16, col * 16 : col * 16 + 16]
            expected = [(patch == label).mean() for label in range(3)]
            assert np.allclose(weights[row * COLS + col], expected, rtol=0, atol=1e-12)


def test_patches_that_do_not_divide_the_photo_share_its_pixels() -> None:
    mask = np.zeros((7, 10), np.uint8)

    weights = patch_weights(mask, 2, rows=3, cols=4)

    # of 7 rows the centres lie at 0.21 ... 2.79 patches: 2, 3 and 2 of them; of 10 columns 3, 2, 2, 3
    assert weights[:, 0].tolist() == [1.0] * 12
    mask[2:5] = 1
    rows = patch_weights(mask, 2, rows=3, cols=4)[:, 1].reshape(3, 4)
    assert rows.tolist() == [[0.0] * 4, [1.0] * 4, [0.0] * 4]


def test_the_head_is_that_of_scikit_learn_on_the_same_examples() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    head = fit_strokes(PHOTOS, STROKES)

    # one example per patch and class, by its weight; features in units of all patches
    all_patches = torch.cat([photo.patches.flatten(0, 1) for photo in PHOTOS]).double().numpy()
    mean = all_patches.mean(axis=0)
    std = all_patches.std(axis=0)
    features = []
    labels = []
    weights = []
    for image, its_photo in zip(STROKES.images, (PHOTOS[0], PHOTOS[2]), strict=True):
        shares = patch_weights(image.mask(CLASSES), 3, rows=ROWS, cols=COLS)
        for patch, label in zip(*np.nonzero(shares), strict=True):
            features.append(its_photo.patches.flatten(0, 1)[patch].double().numpy())
            labels.append(label)
            weights.append(shares[patch, label])
    assert len(set(labels)) == 3
    # scikit-learn minimises C * sum of losses + 0.5 * squared norm; ours is mean + penalty * norm
    regression = linear_model.LogisticRegression(
        C=1 / (2 * PENALTY * sum(weights)), tol=1e-10, max_iter=10_000
    )
    regression.fit((np.array(features) - mean) / std, labels, sample_weight=weights)
    expected = regression.predict_proba((all_patches - mean) / std)

    logits = [head(p.patches.reshape(1, ROWS * COLS, -1), grid=(ROWS, COLS)) for p in PHOTOS]
    maps = torch.cat([output["segmentation"].flatten(2)[0].T for output in logits])
    assert np.abs(maps.softmax(dim=1).detach().numpy() - expected).max() < 1e-4


def test_layers_are_the_parts_of_a_patch_in_their_order() -> None:
    head = fit_strokes(PHOTOS, STROKES, num_layers=2)

    one_layer = fit_strokes(PHOTOS, STROKES)
    patches = PHOTOS[1].patches.reshape(1, ROWS * COLS, 2, -1)
    layers = [patches[:, :, 0], patches[:, :, 1]]
    whole = PHOTOS[1].patches.reshape(1, ROWS * COLS, -1)
    of_layers = head(layers, grid=(ROWS, COLS))["segmentation"]
    of_one = one_layer(whole, grid=(ROWS, COLS))["segmentation"]
    assert torch.allclose(of_layers, of_one, rtol=0, atol=1e-5)


def test_a_class_that_is_not_painted_is_named_and_never_predicted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strokes = STROKES.with_classes(("straw", *CLASSES))

    with caplog.at_level(logging.WARNING):
        head = fit_strokes(PHOTOS, strokes)

    assert "nothing is painted of 'straw'" in caplog.text
    output = head(PHOTOS[1].patches.reshape(1, ROWS * COLS, -1), grid=(ROWS, COLS))
    assert output["segmentation"].softmax(dim=1)[:, 0].max() == 0
    without = fit_strokes(PHOTOS, STROKES)
    expected = without(PHOTOS[1].patches.reshape(1, ROWS * COLS, -1), grid=(ROWS, COLS))
    assert torch.allclose(
        output["segmentation"][:, 1:], expected["segmentation"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        pytest.param((), "the strokes show no class", id="none"),
        pytest.param(
            (Stroke("weed", 3.0, ((9.0, 9.0),)),),
            "the strokes show the class 'weed' alone",
            id="one",
        ),
        pytest.param(
            (Stroke("weed", 3.0, ((-90.0, 9.0),)),), "the strokes show no class", id="outside"
        ),
    ],
)
def test_two_classes_are_needed(strokes: tuple[Stroke, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_strokes(PHOTOS, Strokes(CLASSES, (painting(PHOTOS[0], *strokes),)))


def test_a_renamed_photo_is_found_by_its_hash() -> None:
    renamed = [replace(p, name=f"moved/{p.name}") for p in PHOTOS]

    matched = match_photos(STROKES, renamed)

    assert [image.name for image in matched.images] == ["moved/0.jpg", "moved/2.jpg"]
    assert [image.strokes for image in matched.images] == [i.strokes for i in STROKES.images]


def test_of_equal_files_the_one_of_the_name_is_painted() -> None:
    copy = replace(PHOTOS[0], name="copy.jpg")

    matched = match_photos(STROKES, [copy, *PHOTOS])

    assert [image.name for image in matched.images] == ["0.jpg", "2.jpg"]
    both = Strokes(CLASSES, (STROKES.images[0], replace(STROKES.images[0], name="copy.jpg")))
    with pytest.raises(DataError, match=r"'0.jpg' and 'copy.jpg' are of one file"):
        match_photos(both, PHOTOS)


def test_a_renamed_copy_takes_the_file_that_its_twin_leaves() -> None:
    """``a.jpg`` and ``0.jpg`` are one file, both are painted, and ``a.jpg`` is called ``b.jpg`` now."""
    painted_copy = replace(STROKES.images[0], name="a.jpg")
    renamed = replace(PHOTOS[0], name="b.jpg")

    both = Strokes(CLASSES, (painted_copy, STROKES.images[0]))
    matched = match_photos(both, [PHOTOS[0], renamed])

    assert sorted(image.name for image in matched.images) == ["0.jpg", "b.jpg"]


def test_a_photo_that_was_replaced_is_named() -> None:
    other = replace(PHOTOS[2], sha256="a" * 64)

    with pytest.raises(DataError, match=r"painted on other files .*: '2.jpg', whose sha256"):
        match_photos(STROKES, [*PHOTOS[:2], other])


def test_a_photo_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match=r"not among the photos that are named: '2.jpg'"):
        match_photos(STROKES, PHOTOS[:2])


def test_a_photo_of_another_size_is_named() -> None:
    other = replace(PHOTOS[0], height=50)

    with pytest.raises(DataError, match="'0.jpg' has 48x64 px, and the file has 50x64"):
        match_photos(STROKES, [other, *PHOTOS[1:]])
