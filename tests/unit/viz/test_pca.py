"""PCA colours of planted directions, and the page of similarities."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dinoneck import Tokens, load_backbone
from dinoneck.viz import PCABasis, pca_rgb, similarity_page


def directions(channels: int, count: int, seed: int = 0) -> np.ndarray:
    """(count, channels): orthonormal, the largest entry of each positive."""
    table = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, count)))[0].T
    return table * np.sign(table[np.arange(count), np.abs(table).argmax(axis=1)])[:, None]


def planted(
    rows: int = 6, cols: int = 9, batch: int = 2, channels: int = 32
) -> tuple[Tokens, np.ndarray, np.ndarray]:
    """Tokens whose first direction tells the row and whose second tells the column and the image."""
    first, second = directions(channels, 2)
    down = np.broadcast_to(np.arange(rows)[None, :, None], (batch, rows, cols)).astype(float)
    along = (
        np.broadcast_to(np.arange(cols)[None, None], (batch, rows, cols))
        + 0.5 * np.arange(batch)[:, None, None]
    )
    values = 10.0 * down[..., None] * first + along[..., None] * second + 3.0
    patches = torch.from_numpy(values.reshape(batch, rows * cols, channels))
    return Tokens.from_patches(patches, grid=(rows, cols), patch_size=16), down, along


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / (high - low), 0, 1)


@pytest.mark.parametrize("channels", [32, 300])  # fewer and more than there are patches
def test_two_planted_directions_come_out_as_red_and_green(channels: int) -> None:
    tokens, down, along = planted(channels=channels)
    colours = pca_rgb(tokens)
    np.testing.assert_allclose(colours[..., 0], stretched(down), atol=1e-9)
    np.testing.assert_allclose(colours[..., 1], stretched(along), atol=1e-9)
    np.testing.assert_array_equal(colours[..., 2], 0.5)  # nothing is left for the third


def test_with_a_shared_basis_one_image_looks_as_in_its_batch() -> None:
    tokens, _, _ = planted(batch=3)
    basis = PCABasis.fit(tokens)
    together = pca_rgb(tokens)
    for place in range(3):
        np.testing.assert_allclose(
            pca_rgb(tokens[place], basis=basis)[0], together[place], atol=1e-12
        )
    # its own range is another
    assert not np.allclose(pca_rgb(tokens[2])[0], together[2], atol=1e-3)
    rows = tokens.patches[0].reshape(-1, 32)
    np.testing.assert_array_equal(pca_rgb(rows, basis=basis).reshape(together.shape), together)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_foreground_is_what_the_edges_are_not(sign: float) -> None:
    subject, inside = directions(16, 2)
    front = np.zeros((1, 8, 10))
    front[0, 2:6, 3:8] = 1.0
    texture = np.random.default_rng(0).normal(size=(1, 8, 10))
    values = sign * 50.0 * front[..., None] * subject + texture[..., None] * inside
    maps = torch.from_numpy(np.moveaxis(values, -1, 1))
    colours = pca_rgb(maps, foreground=0.5)
    assert (colours[front == 0] == 0.0).all()
    along = texture[front == 1]
    np.testing.assert_allclose(colours[front == 1][:, 0], stretched(along), atol=1e-6)
    basis = PCABasis.fit(maps, foreground=0.5)
    np.testing.assert_array_equal(pca_rgb(maps, basis=basis), colours)


def test_one_patch_is_grey_and_rare_patches_are_seen() -> None:
    assert (pca_rgb(torch.ones(1, 8, 1, 1)) == 0.5).all()
    rare = torch.zeros(1, 8, 30, 30)
    rare[0, 2, 5, 7] = 1.0  # beyond the percentiles
    colours = pca_rgb(rare)[..., 0]
    assert colours[0, 5, 7] == 1.0
    assert colours.sum() == 1.0


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def data_of(page: str) -> dict:  # type: ignore[type-arg]
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index,no-any-return]


def stored_cosines(page: str) -> torch.Tensor:
    data = data_of(page)
    codes = np.frombuffer(base64.b64decode(data["codes"]), np.int8).reshape(-1, len(data["scales"]))
    coordinates = torch.from_numpy(codes * np.array(data["scales"])).float()
    return coordinates @ coordinates.T


def cosines(patches: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(patches - patches.mean(dim=0), dim=1)
    return unit @ unit.T


def smooth(rows: int, cols: int, seed: int) -> torch.Tensor:
    """An image of coloured areas, (3, 16 * rows, 16 * cols)."""
    noise = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (16 * rows, 16 * cols), mode="bicubic")[0].clamp(0, 1)


def test_the_page_holds_the_cosines_of_the_tokens_and_states_its_error() -> None:
    backbone = load_backbone("dinoneck_tiny")
    images = [smooth(30, 60, seed) for seed in range(2)]
    tokens = backbone(backbone.preprocess(images))
    page = similarity_page(tokens, images, names=["a.jpg", "<b>.jpg"])
    error = (stored_cosines(page) - cosines(tokens.patches[-1].flatten(0, 1))).abs()
    assert error.max() <= 0.05
    stated = float(re.search(r"at most (\d\.\d+)", page)[1])  # type: ignore[index]
    assert error.fill_diagonal_(0).max() <= stated + 0.005
    assert [image["name"] for image in data_of(page)["images"]] == ["a.jpg", "<b>.jpg"]
    assert "<b>" not in page


def test_images_of_several_sizes_share_one_page() -> None:
    parts = [
        Tokens.from_patches(torch.randn(1, r * c, 80), grid=(r, c), patch_size=16)
        for r, c in ((3, 4), (5, 2))
    ]
    page = similarity_page(parts, [smooth(3, 4, 0), smooth(5, 2, 1)])
    data = data_of(page)
    assert [(image["rows"], image["cols"]) for image in data["images"]] == [(3, 4), (5, 2)]
    assert len(stored_cosines(page)) == 22


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_the_patch_of_the_address(tmp_path: Path) -> None:
    """Two tokens: every second patch is one of them, so that the most similar one is known."""
    pair = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.from_patches(pair[torch.arange(12) % 2][None], grid=(3, 4), patch_size=16)
    file = tmp_path / "page.html"
    file.write_text(similarity_page(tokens, smooth(3, 4, 0), names=["a.jpg"]), "utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    call = [str(CHROMIUM), *options, "--virtual-time-budget=5000", f"{file.as_uri()}#0,1,2"]
    dom = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
    spoken = re.search(r"most like row (\d), column (\d) of a\.jpg \((\S+)\)", dom.stdout)
    assert spoken, dom.stdout[-2000:] + dom.stderr[-2000:]
    assert (4 * int(spoken[1]) + int(spoken[2])) % 2 == 0
    assert float(spoken[3]) > 0.99
    assert "Refused to" not in dom.stderr
