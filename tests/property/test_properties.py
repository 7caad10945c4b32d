"""Facts that hold for whatever hypothesis thinks of."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dinoneck import TokenGrid

settings.register_profile("house", deadline=None, max_examples=100, derandomize=True, database=None)
settings.load_profile("house")

sizes = st.integers(1, 200)
patches = st.sampled_from([14, 16, (8, 16), 1])


@given(sizes, sizes, patches, st.sampled_from(["crop", "pad", "resize"]))
def test_prepared_points_come_back(height: int, width: int, patch: object, policy: str) -> None:
    grid = TokenGrid(patch, policy)  # type: ignore[arg-type]
    if policy == "crop":
        assume(height >= grid.patch_height and width >= grid.patch_width)
    prepared = grid.prepare(torch.zeros(1, 1, height, width))
    assert prepared.grid == grid.size((height, width))
    assert tuple(prepared.images.shape[-2:]) == (
        prepared.grid.rows * grid.patch_height,
        prepared.grid.cols * grid.patch_width,
    )
    points = torch.tensor(
        [[0.0, 0.0], [width, height], [width / 3, height / 7]], dtype=torch.float64
    )
    assert torch.allclose(prepared.to_original(prepared.to_prepared(points)), points, atol=1e-9)
    if policy == "resize":
        corner = torch.tensor(
            [prepared.images.shape[-1], prepared.images.shape[-2]], dtype=torch.float64
        )
        assert torch.allclose(prepared.to_prepared(points[1]), corner)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_sampling_an_affine_map_returns_the_point(rows: int, cols: int, seed: int) -> None:
    """A map that is affine in the cell centres is affine everywhere between them."""
    torch.manual_seed(seed)
    grid, (a, b, c) = TokenGrid(16), torch.randn(3, dtype=torch.float64)
    size = (rows * 16, cols * 16)
    centres = grid.cell_centers(size).double()
    maps = (a * centres[:, 0] + b * centres[:, 1] + c).reshape(1, 1, rows, cols)
    points = torch.rand(20, 2, dtype=torch.float64) * torch.tensor([cols - 1, rows - 1]) * 16 + 8
    read = grid.sample(maps, points, size)[0, :, 0]
    assert torch.allclose(read, a * points[:, 0] + b * points[:, 1] + c, atol=1e-8)
