"""What is given by mistake is named before it turns into wrong numbers or an error of torch's."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.points.plain_unet import NAMES, PlainUNet, cloud, injection_of, pyramid_of
from torch import Tensor, nn

from dinoneck import CheckpointError, ConfigError, DataError, DinoneckError, GridError, ShapeError, save_head
from dinoneck.points import (
    Cameras,
    DecoderInjection,
    GatedFusion,
    Links,
    PointProjector,
    SparseFeatures,
    SparsePyramid,
    VoxelGrid,
    check_cameras,
    lift,
)

SIZE = (48, 64)
K = torch.tensor([[[40.0, 0.0, 31.5], [0.0, 40.0, 23.5], [0.0, 0.0, 1.0]]])
POINTS = torch.tensor([[0.0, 0.0, 2.0], [0.3, 0.1, 3.0]])
DEPTH = torch.full((1, 48, 64), 2.0)
MAPS = torch.ones(1, 4, 3, 4)
ARRAY: Any = POINTS.numpy()


def camera(**changed: Any) -> Cameras:
    return Cameras(**{"K": K, "cam_to_world": torch.eye(4)[None], "size": SIZE, **changed})


def by_hand(**changed: Any) -> Links:
    zero = torch.zeros(1, dtype=torch.int64)
    parts = {"view": zero, "point": zero, "uv": torch.ones(1, 2), "z": torch.ones(1)}
    return Links(**{**parts, "num_points": 2, "num_views": 1, "image_size": SIZE, **changed})


def cells(**changed: Any) -> SparseFeatures:
    coords = torch.tensor([[0, 0, 0], [1, 0, 0]])
    parts = {"coords": coords, "batch": torch.zeros(2).long(), "feats": torch.ones(2, 3)}
    return SparseFeatures(**{**parts, "valid": torch.ones(2, dtype=torch.bool), **changed})


def test_the_view_of_a_wrong_projection_is_named() -> None:
    with pytest.raises(DataError, match=r"P of view 1 ends in \[0\.0, 0\.0, 0\.0, 2\.0\]"):
        Cameras.from_proj(torch.stack([torch.eye(4), torch.eye(4) * 2]), SIZE)


def test_a_projection_is_flat_by_its_shape_not_by_its_scale() -> None:
    exact = camera()
    assert torch.allclose(Cameras.from_proj(1e-120 * exact.projections(), SIZE).K, exact.K, rtol=1e-9)
    first, second = torch.tensor([500.0, 0.1, 320.3]).double(), torch.tensor([0.1, 500.7, 240.1]).double()
    flat = torch.stack([first, second, (0.1 * first + 0.3 * second) / 300])
    with pytest.raises(DataError, match="rank below 3"):
        Cameras.from_proj(torch.cat([flat, torch.ones(3, 1).double()], 1)[None], SIZE)


def test_images_are_cut_between_pixels_only() -> None:
    with pytest.raises(GridError, match=r"crop from \(top, left\) is \(0\.5, 0\); expected whole pixels"):
        camera().crop(0.5, 0, 4, 4)  # type: ignore[arg-type]
    with pytest.raises(GridError, match="padding is"):
        camera().pad(0.5, 0, 0.5, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: camera().project(ARRAY), "points is a ndarray; expected a tensor"),
        (lambda: camera().unproject(DEPTH.numpy()), "depth is a ndarray"),
        (lambda: PointProjector()(ARRAY, camera()), "points is a ndarray"),
        (lambda: PointProjector()(POINTS.tolist(), camera()), "points is a list"),
        (lambda: PointProjector()(POINTS, camera(), DEPTH.numpy()), "depth is a ndarray"),
        (lambda: PointProjector()(POINTS, K), "cameras is a Tensor; expected dinoneck.points.Cameras"),
        (lambda: VoxelGrid.from_points(ARRAY, 0.1), "points is a ndarray"),
        (lambda: VoxelGrid.from_coords(np.zeros((2, 3), int)), "coords is a ndarray"),
        (lambda: VoxelGrid.from_points(POINTS, 0.1, batch=[0, 0]), "batch is a list"),
        (lambda: VoxelGrid.from_coords(torch.zeros(2, 3, dtype=torch.uint16)), r"torch\.uint16.*coords\.long\(\)"),
        (lambda: lift(MAPS.numpy(), by_hand()), "maps is a ndarray"),
        (lambda: lift(MAPS, None), "links is a NoneType; expected dinoneck.points.Links"),
        (lambda: lift(MAPS, by_hand(), POINTS), "grid is a Tensor; expected dinoneck.points.VoxelGrid"),
        (lambda: lift(MAPS.to("meta"), by_hand()), "maps on meta, links on cpu; bring them to one device"),
        (lambda: by_hand(z=[1.0]), "z is a list"),
        (lambda: cells(feats=np.ones((2, 3))), "feats is a ndarray"),
        (lambda: cells(valid=torch.ones(2, dtype=torch.bool, device="meta")), "feats on cpu, valid on meta"),
        (lambda: cells().at(torch.zeros(2, 3, dtype=torch.int64, device="meta")), "coords on meta, features on cpu"),
        (lambda: SparsePyramid((1, 2), "mean")(cells(feats=torch.ones(2, 3).long())), r"feats are torch\.int64"),
        (lambda: GatedFusion(3, 3, 3)(ARRAY, POINTS, torch.ones(2, dtype=torch.bool)), "x3 is a ndarray"),
        (lambda: check_cameras(None, camera(), None), "depth is a NoneType"),
        (lambda: check_cameras(None, None, DEPTH), "cameras is a NoneType"),
    ],
)
def test_what_is_no_tensor_or_elsewhere_is_named(call: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PointProjector(near="1"), "near is '1'; expected a number"),
        (lambda: PointProjector(depth_abs=None), "depth_abs is None"),
        (lambda: PointProjector(border=24)(POINTS, camera()), "border is 24 px on every side of images of 48x64 px"),
        (lambda: VoxelGrid.from_points(POINTS, "0.1"), "size is '0.1'"),
        (lambda: VoxelGrid.from_points(POINTS, None), "size is None"),
        (lambda: VoxelGrid.from_points(POINTS, (1, 2, "3")), "size is"),
        (
            lambda: check_cameras(POINTS, camera(), DEPTH, max_points=1e4),
            r"max_points is 10000\.0; expected a number of points",
        ),
    ],
)
def test_options_of_another_kind_are_named(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_an_origin_may_be_a_tensor() -> None:
    exact = VoxelGrid.from_points(POINTS, 0.25, POINTS.amin(0).tolist())
    for origin in (POINTS.amin(0), POINTS.amin(0).numpy()):
        grid = VoxelGrid.from_points(POINTS, torch.full((3,), 0.25), origin)
        assert grid.origin == exact.origin and torch.equal(grid.keys, exact.keys)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"view": torch.tensor([1])}, r"link 0 names view 1; expected 0 \.\.\. 0"),
        ({"view": torch.tensor([-1])}, "link 0 names view -1"),
        ({"point": torch.tensor([2])}, r"link 0 names point 2; expected 0 \.\.\. 1"),
        ({"uv": torch.tensor([[torch.nan, 1.0]])}, r"link 0 has uv = \[nan, 1\.0\]"),
        ({"image_size": (0, 4)}, r"image_size is \(0, 4\)"),
    ],
)
def test_links_by_hand_stay_within_maps_and_points(changed: dict[str, Any], message: str) -> None:
    assert lift(MAPS, by_hand())[0].shape == (2, 4)
    with pytest.raises(DataError, match=message):
        lift(MAPS, by_hand(**changed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_more_equal_maxima_than_halves_count_share_one_gradient(dtype: torch.dtype) -> None:
    grid = VoxelGrid.from_coords(torch.cartesian_prod(*[torch.arange(42)] * 3))
    feats = torch.zeros(len(grid), 1, dtype=dtype, requires_grad=True)
    voxels = SparseFeatures(grid.coords, grid.batch, feats, torch.ones(len(grid), dtype=torch.bool))
    SparsePyramid((64,))(voxels)[64].feats.sum().backward()
    assert feats.grad is not None and feats.grad.dtype == dtype
    assert float(feats.grad.double().sum()) == pytest.approx(1.0, rel=0.01)


def test_cameras_that_share_nothing_are_not_blamed_on_their_poses() -> None:
    verdict = str(check_cameras(None, camera(), DEPTH))
    assert verdict.startswith("no reading can be judged: under none does a point lie in any image")
    assert "no reading fits" not in verdict


def test_dtypes_that_the_fusion_does_not_have_are_named() -> None:
    fusion, valid = GatedFusion(6, 5, 5), torch.ones(4, dtype=torch.bool)
    with pytest.raises(ShapeError, match=r"x2 is torch\.float16, that of the weights torch\.float32"):
        fusion(torch.zeros(4, 5), torch.zeros(4, 6).half(), valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fusion(torch.zeros(4, 5), torch.zeros(4, 6).bfloat16(), valid).shape == (4, 5)


def test_coordinates_of_fewer_voxels_are_not_spread_over_all() -> None:
    level = pyramid_of(cloud())[1]
    with pytest.raises(ShapeError, match=r"coords \(1, 3\); expected \(M, C\) and \(M, 3\), a row per voxel"):
        injection_of().inject(torch.zeros(len(level), 9), level, level.coords[:1], level.batch[:1])


def test_a_pyramid_that_is_none_is_named() -> None:
    level: Any = pyramid_of(cloud())[1]
    for given in (level, {2: level.feats, 1: level.feats}):
        with pytest.raises(ConfigError, match=r"expected \{stride: SparseFeatures\}"):
            injection_of().using(given).__enter__()


def test_a_block_goes_by_all_of_its_names() -> None:
    net: Any = PlainUNet()
    net.alias = net.block2
    net.eval()
    x, injection = cloud(), injection_of()
    pyramid = pyramid_of(x)
    with pytest.raises(ConfigError, match="'alias' is named for two strides"):
        injection.attach(net, {2: "block2", 1: "alias"})
    with pytest.raises(ConfigError, match=r"no module '' \(stride 2\)\. model\.named_modules"):
        injection.attach(net, {**NAMES, 2: ""})
    for level in injection.levels.values():
        nn.init.normal_(level.proj.weight)  # type: ignore[union-attr, arg-type]
    results = []
    for names in ({**NAMES, 2: "alias"}, NAMES):
        handle = injection.attach(net, names)
        with torch.no_grad(), injection.using(pyramid):
            results.append(net(x))
        handle.remove()
    assert torch.equal(*results)


def in_thread(work: Any) -> Any:
    """Run in another thread; return what it gives or raises."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except DinoneckError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return results[0]


def test_threads_do_not_see_each_others_pyramids() -> None:
    net, injection, x = PlainUNet().eval(), injection_of(), cloud()
    for level in injection.levels.values():
        nn.init.normal_(level.proj.weight)  # type: ignore[union-attr, arg-type]
    injection.attach(net, NAMES)
    pyramid = pyramid_of(x)

    def inferred(network: nn.Module, inject: Any) -> Tensor:
        with torch.no_grad(), inject.using(pyramid):
            found: Tensor = network(x)
        return found

    alone = inferred(net, injection)
    with torch.no_grad(), injection.using(None):
        own = in_thread(lambda: inferred(net, injection))
        refused = in_thread(lambda: net(x))
        without = net(x)
    assert isinstance(refused, ConfigError)
    assert "without a pyramid" in str(refused)
    assert torch.equal(own, alone)
    assert not torch.equal(without, alone)


def test_a_block_of_a_finer_stride_is_named() -> None:
    """Its look-ups would hit, for every voxel lies in some coarse cell, and the network would train on."""
    plain, x = PlainUNet(), cloud()
    injection = DecoderInjection(6, {2: 9, 1: 10})
    pyramid = pyramid_of(x)
    swapped = injection.wrap(plain, {2: "block1", 1: "block2"})
    with pytest.raises(ConfigError, match=r"'block1' has a voxel at \[.*\], not a multiple of 2: it runs at a"):
        DecoderInjection(6, {2: 9}).wrap(PlainUNet(), {2: "block1"})(x, pyramid=pyramid)
    with pytest.raises(ConfigError, match="not a multiple of 2"):
        swapped(x, pyramid=pyramid)


def test_the_wrapped_network_is_not_saved_in_place_of_its_injection(tmp_path: Path) -> None:
    wrapped = injection_of().wrap(PlainUNet(), NAMES)
    with pytest.raises(CheckpointError, match="Save the DecoderInjection inside it instead"):
        save_head(tmp_path / "w.safetensors", wrapped)
