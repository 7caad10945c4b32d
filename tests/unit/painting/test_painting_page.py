"""The content of the painting page: reduced tokens, strokes, its size and what it may load."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.painting.fields import CLASSES, document, fields, stroke
from torch.nn import functional as F

from dinoneck.errors import DataError
from dinoneck.painting import Photo, page, painting_page


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def decoded(data: dict[str, Any]) -> np.ndarray:
    """The features of all patches in the page."""
    rows = []
    for photo in data["photos"]:
        codes = np.frombuffer(base64.b64decode(photo["codes"]), np.int8)
        rows.append(codes.reshape(-1, len(data["scales"])) * np.array(data["scales"]))
    return np.concatenate(rows)


def standardised(photos: list[Photo]) -> np.ndarray:
    patches = np.concatenate([photo.patches.flatten(0, 1).numpy() for photo in photos])
    patches = patches.astype(np.float64)
    return (patches - patches.mean(axis=0)) / patches.std(axis=0)


def with_tokens(photo: Photo, patches: torch.Tensor) -> Photo:
    return dataclasses.replace(photo, patches=patches)


def test_with_few_channels_inner_products_are_those_of_standardised_tokens() -> None:
    photos = fields(4)
    features = decoded(data_of(painting_page(photos, CLASSES)))
    expected = standardised(photos)
    assert features.shape == expected.shape  # 24 channels, fewer than 64 components
    # a code is off by half a step of up to 8 / 127 deviations
    error = features @ features.T - expected @ expected.T
    assert np.abs(error).max() < 0.02 * np.abs(expected @ expected.T).max()


def test_of_many_channels_64_components_are_kept_with_the_largest_variance() -> None:
    [photo] = fields(1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 20, 70, generator=generator) @ torch.randn(
        70, 100, generator=generator
    )
    photos = [with_tokens(photo, tokens)]
    html = painting_page(photos, CLASSES)
    features = decoded(data_of(html))
    assert features.shape == (240, 64)
    eigenvalues = np.linalg.eigvalsh(np.cov(standardised(photos).T, ddof=0))[::-1]
    assert features.var(axis=0) == pytest.approx(eigenvalues[:64], rel=0.05)
    share = eigenvalues[:64].sum() / eigenvalues.sum()
    assert f"64 components of 8 bits, which keep {100 * share:.0f} % of the variance" in html


def test_the_page_states_how_much_cosines_change() -> None:
    photos = fields(3)
    html = painting_page(photos, CLASSES)
    features = F.normalize(torch.from_numpy(decoded(data_of(html))), dim=1)
    expected = F.normalize(torch.from_numpy(standardised(photos)), dim=1)
    error = (features @ features.T - expected @ expected.T).abs().max()
    found = re.search(r"cosine similarities by at most (\d\.\d+)", html)
    assert found is not None
    assert float(found[1]) == pytest.approx(float(error), abs=0.006)


def test_one_outlier_does_not_make_the_codes_of_other_patches_coarse() -> None:
    photos = fields(2)
    tokens = photos[0].patches.clone()
    tokens[0, 0] += 100.0
    html = painting_page([with_tokens(photos[0], tokens), photos[1]], CLASSES)
    distinct = [len(set(column)) for column in decoded(data_of(html)).T]
    assert (
        min(distinct[1:]) > 30
    )  # of 96 patches; without a limit the first component has few codes


def test_constant_channels_do_not_count() -> None:
    photos = fields(2)
    padded = [
        with_tokens(photo, torch.cat([photo.patches, torch.full((6, 8, 1), 3.3)], dim=2))
        for photo in photos
    ]
    plain = decoded(data_of(painting_page(photos, CLASSES)))
    with_constant = decoded(data_of(painting_page(padded, CLASSES)))
    assert np.abs(with_constant[:, :24]) == pytest.approx(np.abs(plain), abs=1e-3)
    assert not with_constant[:, 24:].any()


def test_the_page_is_the_same_each_time() -> None:
    assert painting_page(fields(2), CLASSES) == painting_page(fields(2), CLASSES)


def test_only_the_style_and_script_of_the_page_may_run_and_pictures_are_in_it() -> None:
    html = painting_page(fields(2), CLASSES)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    assert policy is not None
    [style] = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    for kind, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; img-src data:; ")
    assert "http:" not in html and "https:" not in html
    assert not re.findall(r"\son\w+=|\sstyle=", html.replace(script, ""))


def test_names_and_classes_are_escaped() -> None:
    photo = dataclasses.replace(fields(1)[0], name="</script><b>\u202e.jpg")
    html = painting_page([photo], ("<i>", "soil"), title="<u>")
    assert "<b>" not in html and "<i>" not in html and "<u>" not in html
    assert "\u202e" not in html
    data = data_of(html)
    assert data["photos"][0]["name"] == photo.name
    assert data["classes"] == ["<i>", "soil"]


def test_every_class_has_a_colour_also_the_ground() -> None:
    colours = data_of(painting_page(fields(1), ("soil", "crop", "weed")))["colours"]
    assert len({tuple(colour) for colour in colours}) == 3


def test_a_photo_without_strokes_in_a_file_of_strokes_may_be_missing() -> None:
    photos = fields(2)
    strokes = document(photos[1], [])

    data = data_of(painting_page(photos[:1], CLASSES, strokes=strokes))

    assert [photo["strokes"] for photo in data["photos"]] == [[]]


def test_strokes_are_loaded_for_their_photo() -> None:
    photos = fields(3)
    strokes = [stroke("crop", 4.0, (20.0, 20.0)), stroke(None, 2.0, (20.0, 20.0), (30.0, 20.0))]
    data = data_of(painting_page(photos, CLASSES, strokes=document(photos[1], strokes)))
    assert [photo["strokes"] for photo in data["photos"]] == [[], strokes, []]


def test_a_page_that_would_be_too_large_says_how_many_photos_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = len(painting_page(fields(6), CLASSES))
    monkeypatch.setattr(page, "LARGEST_PAGE", size)
    with pytest.raises(DataError, match=r"a page of 60 photos .*; the first (\d+) fit") as refused:
        painting_page(fields(60), CLASSES)
    fitting = int(re.findall(r"first (\d+) fit", str(refused.value))[0])
    assert 3 <= fitting < 60
    assert len(painting_page(fields(fitting), CLASSES)) < 2 * size


def test_the_largest_page_has_200_mb() -> None:
    assert page.LARGEST_PAGE == 200_000_000


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": [{"name": "a"}]}, "missing required field"),
        ({"version": 9}, "version 9"),
        ({"format": "others"}, "format|strokes"),
    ],
    ids=["a photo without strokes", "another version", "another format"],
)
def test_strokes_that_are_no_file_of_strokes_are_refused(
    change: dict[str, Any], expected: str
) -> None:
    photos = fields(1)
    with pytest.raises(DataError, match=expected):
        painting_page(photos, CLASSES, strokes={**document(photos[0], []), **change})


def test_strokes_on_a_photo_of_another_size_are_refused() -> None:
    photos = fields(1)
    strokes = document(photos[0], [{"class": CLASSES[0], "radius": 2.0, "points": [[1.0, 1.0]]}])
    strokes["images"][0]["width"] += 1
    with pytest.raises(DataError, match="expected strokes on these photos"):
        painting_page(photos, CLASSES, strokes=strokes)
