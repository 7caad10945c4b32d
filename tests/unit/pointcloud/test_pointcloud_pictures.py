"""Clouds are drawn where they are, the nearest on top, in colours that features alone decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud import pictures
from examples.pointcloud.pictures import components, splat, stretched
from PIL import Image
from tests.unit.pointcloud.frame_samples import run_verb

from dinoneck.points import Cameras

CAMERA = Cameras(torch.tensor([[[10.0, 0, 9.5], [0, 10, 7.5], [0, 0, 1]]]), torch.eye(4)[None], (16, 20))


def test_a_splat_is_a_z_buffer() -> None:
    def ray(u: int, v: int, z: float) -> list[float]:
        return [(u - 9.5) / 10 * z, (v - 7.5) / 10 * z, z]

    points = torch.tensor([ray(4, 5, 1.0), ray(4, 5, 2.0), ray(5, 5, 3.0), ray(19, 15, 2.0), [0, 0, -1]]).double()
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7], [1, 1, 1]]).float()
    drawn = splat(points, colours, CAMERA)
    expected = torch.full((3, 16, 20), 255, dtype=torch.uint8)
    for u, v, colour in ((5, 5, [0, 0, 255]), (4, 5, [255, 0, 0]), (19, 15, [9, 8, 7])):  # from far to near
        square = (slice(v - 1, v + 2), slice(u - 1, u + 2))
        expected[:, square[0], square[1]] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    assert torch.equal(drawn, expected)
    assert torch.equal(splat(points.flip(0), colours.flip(0), CAMERA), expected)
    assert int((splat(points, colours, CAMERA, radius=0) < 255).any(0).sum()) == 3


def test_components_of_three_directions_are_found() -> None:
    made = torch.Generator().manual_seed(0)
    hidden = torch.rand(4000, 3, generator=made) * torch.tensor([9.0, 4.0, 1.0])
    basis = torch.linalg.qr(torch.randn(16, 16, generator=made)).Q[:3]
    feats = hidden @ basis + 5.0
    shown = stretched(components(feats)(feats).detach())
    assert float(shown.min()) == 0
    assert float(shown.max()) == 255
    for axis in range(3):
        correlation = torch.corrcoef(torch.stack([shown[:, axis], hidden[:, axis]]))[0, 1].abs()
        assert correlation > 0.99
    order = torch.randperm(4000, generator=made)
    assert torch.allclose(stretched(components(feats[order])(feats).detach()), shown, atol=0.5)
    assert stretched(components(torch.zeros(0, 5))(torch.zeros(0, 5))).shape == (0, 3)
    assert bool(stretched(components(torch.ones(7, 2))(torch.ones(7, 2))).isfinite().all())


def test_the_verb_writes_a_picture_and_says_what_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "room.png"
    assert run_verb(pictures, "--out", out, "--frames", 2, "--render", "60x80") == 0
    assert "dinoneck_tiny (seeded random weights)" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.size == (2 * 80 + 6, 2 * 60 + 6 + 20)
        pixels = torch.tensor(np.asarray(image.convert("RGB").resize((16, 16))).reshape(-1, 3).tolist())
    assert len(pixels.unique(dim=0)) > 50
    assert run_verb(pictures, "--out", tmp_path / "again.png", "--frames", 2, "--render", "60x80") == 0
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
