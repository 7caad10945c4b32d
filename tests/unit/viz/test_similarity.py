"""The similarity page: its numbers are the tokens' cosines, it loads nothing, and a browser draws it."""

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
from dinoneck.viz import similarity_page

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
    one = similarity_page(tokens[:1], images[:1])
    assert len(one) < 300_000


def test_images_of_several_sizes_share_one_page() -> None:
    parts = [Tokens.from_patches(torch.randn(1, r * c, 80), grid=(r, c), patch_size=16) for r, c in ((3, 4), (5, 2))]
    page = similarity_page(parts, [smooth(3, 4, 0), smooth(5, 2, 1)])
    data = data_of(page)
    assert [(image["rows"], image["cols"]) for image in data["images"]] == [(3, 4), (5, 2)]
    assert len(data["scales"]) == 64
    assert len(stored_cosines(page)) == 22


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_draws_the_patch_of_the_address(tmp_path: Path) -> None:
    """Two tokens: every second patch is one of them, so that the most similar one is known."""
    pair = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.from_patches(pair[torch.arange(12) % 2][None], grid=(3, 4), patch_size=16)
    file = tmp_path / "page.html"
    file.write_text(similarity_page(tokens, smooth(3, 4, 0), names=["a.jpg"]), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    call = [str(CHROMIUM), *options, "--virtual-time-budget=5000", f"{file.as_uri()}#0,1,2"]
    dom = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
    spoken = re.search(r"most like row (\d), column (\d) of a\.jpg \((\S+)\)", dom.stdout)
    assert spoken, dom.stdout[-2000:] + dom.stderr[-2000:]
    assert (4 * int(spoken[1]) + int(spoken[2])) % 2 == 0
    assert float(spoken[3]) > 0.99
    assert "Refused to" not in dom.stderr
