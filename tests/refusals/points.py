"""What cameras, projection, voxels, lifting, pyramids and injection refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck import ConfigError, DataError, GridError, ShapeError
from dinoneck.points import (
    Cameras,
    DecoderInjection,
    GatedFusion,
    Links,
    MinkowskiAdapter,
    PointProjector,
    SparseFeatures,
    SparsePyramid,
    VoxelGrid,
    check_cameras,
    lift,
    minkowski_offsets,
)
from dinoneck.points.attachment import adapter_of
from dinoneck.points.keys import BATCHES
from tests.refusals import Row
from tests.unit.points.plain_unet import NAMES, PlainUNet, cloud, injection_of, pyramid_of

ONE, FOUR = torch.zeros(1).long(), torch.zeros(4).long()
K = torch.tensor([[[50.0, 0.0, 31.5], [0.0, 52.0, 23.5], [0.0, 0.0, 1.0]]])


class MinkowskiTensor:
    """What the adapter reads of a ``SparseTensor``: one cell of one sample."""

    C, F, tensor_stride = torch.zeros(1, 4).int(), torch.ones(1, 2), [1, 1, 1]


def features_at(x: float, sample: float) -> Tensor:
    place = torch.tensor([[x, 0.0, 0.0]])
    return MinkowskiAdapter().features_at_coordinates(
        MinkowskiTensor(), place, torch.tensor([sample])
    )


def unit(**entries: float) -> Tensor:
    """The unit pose with entries ``rRC=value``."""
    pose = torch.eye(4)
    for place, value in entries.items():
        pose[int(place[1]), int(place[2])] = value
    return pose[None]


def lens(**entries: float) -> Tensor:
    return unit(**{"r00": 50.0, "r11": 50.0, **entries})[:, :3, :3]


def cameras(**changes: Any) -> Cameras:
    return Cameras(**{"K": K, "cam_to_world": torch.eye(4)[None], "size": (48, 64), **changes})


# changed keywords, the class of the error, and what the message must name
KeywordCase = tuple[dict[str, Any], type[Exception], str | tuple[str, ...]]


def rows_of(call: Callable[..., Any], cases: list[KeywordCase]) -> list[Row]:
    """A row for each case of keywords."""
    rows: list[Row] = []
    for keywords, error, named in cases:
        rows.append((lambda keywords=keywords: call(**keywords), error, named))
    return rows


SCENE = cameras()
BATCHED = cameras(sample=ONE)
CAMERAS: list[KeywordCase] = [
    ({"cam_to_world": unit(r03=1.0, r13=2.0).mT}, DataError, "cam_to_world.mT"),
    ({"cam_to_world": unit(r00=1.1)}, DataError, "0.21"),
    ({"cam_to_world": unit(r11=-1.0)}, DataError, "determinant -1"),
    ({"cam_to_world": unit(r03=-math.inf)}, DataError, "cam_to_world of view 0"),
    ({"K": lens(r20=31.5)}, DataError, "K.mT"),
    ({"K": lens(r22=2.0)}, DataError, "divide by the last entry"),
    ({"K": lens(r01=1.0, r10=1.0)}, DataError, ("[1.0, 50.0, 0.0]", "divide by the last entry")),
    (
        {"K": lens(r11=-50.0).repeat(9, 1, 1), "cam_to_world": torch.eye(4).repeat(9, 1, 1)},
        DataError,
        "views 0, 1, 2",
    ),
    ({"cam_to_world": unit(r33=2.0)}, DataError, "a rigid 4x4 matrix ends so"),
    (
        {"cam_to_world": unit(r00=1000.0, r11=1000.0, r22=1000.0)},
        DataError,
        ("scaled by 1000", "it looks in millimetres"),
    ),
    ({"cam_to_world": unit(r00=2.0, r11=2.0, r22=2.0)}, DataError, "scaled by 2: divide"),
    ({"K": torch.zeros(1, 2, 3)}, ShapeError, "(1, 2, 3)"),
    ({"size": 48}, GridError, "size is 48"),
    ({"size": "48x64"}, GridError, "'48x64'"),
    ({"K": lens(r11=-50.0)}, DataError, "[50.0, -50.0]"),
    ({"K": lens(r00=0.8, r11=1.1, r02=0.5)}, DataError, "48x64"),
    ({"K": K[0]}, ShapeError, ("(3, 3)", "K[None]")),
    ({"K": unit(r00=50.0, r11=50.0)}, ShapeError, ("(1, 4, 4)", "K[:, :3, :3]")),
    ({"K": unit(r00=50.0, r11=50.0)[0]}, ShapeError, ("(4, 4)", "K[:3, :3][None]")),
    ({"K": unit(r03=1.0)}, ShapeError, "(1, 4, 4)"),
    ({"K": K.long()}, ShapeError, "torch.int64"),
    ({"K": [[1.0]]}, ShapeError, "list"),
    ({"cam_to_world": torch.eye(4).repeat(2, 1, 1)}, ShapeError, "K has 1 view and"),
    ({"sample": torch.zeros(2).long()}, ShapeError, "(2,)"),
    ({"size": (48, 64.0)}, GridError, "64.0"),
]
POINTS = torch.zeros(4, 3)


def project(**changes: Any) -> Links:
    return PointProjector()(**{"points": POINTS, "cameras": SCENE, **changes})


PROJECTED: list[KeywordCase] = [
    ({"points": torch.zeros(4, 2)}, ShapeError, "(4, 2)"),
    ({"points": torch.tensor([[0.0, math.nan, 1.0]])}, DataError, "1 of 1 points"),
    ({"depth": torch.ones(2, 6, 8)}, ShapeError, "(2, 6, 8)"),
    ({"depth": torch.ones(1, 6, 8).int()}, ShapeError, "torch.int32"),
    ({"batch": FOUR}, ShapeError, "batch is given and Cameras(sample=...) is not"),
    ({"cameras": BATCHED}, ShapeError, "cameras.sample is given and batch is not"),
    ({"cameras": BATCHED, "batch": FOUR[:3]}, ShapeError, "(3,)"),
]
PROJECTORS: list[KeywordCase] = [
    ({"near": 0.0}, ConfigError, "near is 0.0"),
    ({"far": 0.01}, ConfigError, "far is 0.01"),
    ({"depth_abs": -1.0}, ConfigError, "depth_abs is -1.0"),
    ({"depth_rel": math.nan}, ConfigError, "depth_rel is nan"),
    ({"chunk": 0}, ConfigError, "chunk is 0"),
    ({"unknown_depth": "keep"}, ConfigError, "unknown_depth is 'keep'"),
]
LINKS = Links(FOUR[:3], torch.arange(3), torch.zeros(3, 2), torch.ones(3), 40, 3, (48, 70))
NOWHERE = torch.tensor([[0.0, 0.0], [0.0, math.nan], [0.0, 0.0]])
BACKWARDS = Links(
    FOUR[:3], torch.arange(3).flip(0), torch.zeros(3, 2), torch.ones(3), 40, 3, (48, 70)
)


def lift_links(**changes: Any) -> Any:
    return lift(**{"maps": torch.zeros(3, 4, 3, 5), "links": LINKS, **changes})


LIFTED: list[KeywordCase] = [
    ({"maps": torch.zeros(2, 4, 3, 5)}, ShapeError, "2 maps"),
    ({"maps": torch.zeros(3, 4, 3, 5).long()}, ShapeError, "torch.int64"),
    ({"grid": VoxelGrid.from_coords(torch.zeros(5, 3).long())}, ShapeError, "5 points"),
    ({"sampling": "cubic"}, ConfigError, "'cubic'"),
    ({"views": "first"}, ConfigError, "'first'"),
    ({"project": nn.Sequential(nn.Linear(4, 2), nn.ReLU())}, ConfigError, "Sequential"),
    ({"project": nn.Linear(5, 2)}, ShapeError, ("5 channels", "have 4")),
    ({"project": nn.Linear(4, 2).double()}, ShapeError, ("torch.float32", "torch.float64")),
    ({"links": 3}, ShapeError, ("links is a int", "Links")),
    ({"grid": 3}, ShapeError, ("grid is a int", "VoxelGrid")),
    ({"links": BACKWARDS}, DataError, "sorted"),
    # links made by hand
    ({"links": replace(LINKS, view=FOUR[:3] + 3)}, DataError, ("link 0", "view 3", "0 ... 2")),
    ({"links": replace(LINKS, point=torch.tensor([0, 1, 40]))}, DataError, ("link 2", "point 40")),
    ({"links": replace(LINKS, uv=NOWHERE)}, DataError, ("link 1", "nan")),
    ({"links": replace(LINKS, z=LINKS.z * torch.nan)}, DataError, ("link 0", "nan", "depth")),
    ({"links": replace(LINKS, uv=NOWHERE[:2])}, ShapeError, ("uv", "(2, 2)", "(3, 2)")),
    ({"links": replace(LINKS, point=FOUR)}, ShapeError, ("links.point", "(3,)")),
    ({"links": replace(LINKS, image_size=(0, 70))}, DataError, "(0, 70)"),
]
TWO = torch.zeros(2, 3)


def voxelize(points: Tensor, size: Any = 1.0, **options: Any) -> VoxelGrid:
    return VoxelGrid.from_points(points, size, **options)


VOXELS: list[KeywordCase] = [
    (
        {"points": torch.tensor([[0.0, 0, 0], [0, math.nan, 0]])},
        DataError,
        "points[1] = [0.0, nan",
    ),
    ({"points": torch.tensor([[1e5, 0, 0]]), "size": 0.5}, DataError, "[200000, 0, 0]"),
    ({"points": torch.tensor([[-1e30, 0, 0]]), "size": 0.5}, DataError, "coords[0]"),
    ({"points": TWO[:, :2]}, ShapeError, "(2, 2)"),
    ({"points": TWO, "size": 0.0}, ConfigError, "size is 0.0"),
    ({"points": TWO, "size": (1.0, 1.0)}, ConfigError, "size is (1.0, 1.0)"),
    ({"points": TWO, "batch": FOUR[:3]}, ShapeError, "3 entries"),
    ({"points": TWO, "batch": torch.zeros(2)}, ShapeError, "torch.float32"),
]
GRID = VoxelGrid.from_coords(torch.cartesian_prod(*[torch.arange(0, 8, 2)] * 3))
ROWS_OF = (
    GRID.coords,
    GRID.batch,
    torch.zeros(len(GRID), 6),
    torch.ones(len(GRID), dtype=torch.bool),
)
FLIPPED = [x.flip(0) for x in ROWS_OF]
COARSE = SparsePyramid((4,))(SparseFeatures(*ROWS_OF))[4]
INJECTION = DecoderInjection(6, {2: 10, 1: 9})
FUSION = GatedFusion(6, 5, 5)
CLOUD = cloud()
PYRAMID = pyramid_of(CLOUD)
# four voxels: channels of the decoder, features of the pyramid, and which voxels were seen
X = torch.zeros(4, 10)
F = torch.zeros(4, 6)
SEEN = torch.ones(4, dtype=torch.bool)


def features_without_first(coords: bool = False, seen: bool = False) -> SparseFeatures:
    """Features of which one tensor lacks the first of the 64 voxels."""
    voxel_coords, batch, values, was_seen = ROWS_OF
    if coords:
        voxel_coords = voxel_coords[1:]
    if seen:
        was_seen = was_seen[1:]
    return SparseFeatures(voxel_coords, batch, values, was_seen)


def run_attached(
    names: dict[int, str] = NAMES, pyramid: Any = PYRAMID, block: str = "", **given: Any
) -> Any:
    """Run a network, or one of its blocks, that an injection is attached to."""
    net = PlainUNet()
    injection = injection_of()
    injection.attach(net, names)
    with injection.using(pyramid):
        return net.get_submodule(block)(**given) if given else net(CLOUD)


def attached_twice() -> Any:
    net = PlainUNet()
    injection = injection_of()
    injection.attach(net, NAMES)
    return injection.wrap(net, NAMES)


def without_a_pyramid() -> Any:
    net = PlainUNet()
    injection = injection_of()
    injection.attach(net, NAMES)
    return net(CLOUD)


def two_passes_before_backward() -> Any:
    """Train under activation checkpointing on two passes of different pyramids."""
    net = injection_of().wrap(PlainUNet("non-reentrant"), NAMES)
    first = net(CLOUD, pyramid=PYRAMID)
    net(CLOUD, pyramid=pyramid_of(CLOUD, seed=1))
    return first.sum().backward()


def project_at_depth(depth: float, z: float) -> Any:
    """Project points at a distance where depth is another one."""
    points = torch.tensor([[0.0, 0.0, z]]).repeat(100, 1)
    return PointProjector()(points, SCENE, torch.full((1, 48, 64), depth))


def check_depth_between_cameras(depth: float) -> Any:
    """Check cameras that are a metre apart and have this depth."""
    poses = torch.cat([unit(), unit(r03=1.0)])
    two = cameras(K=K.repeat(2, 1, 1), cam_to_world=poses)
    return check_cameras(None, two, torch.full((2, 48, 64), depth))


ROWS: list[Row] = [
    *rows_of(cameras, CAMERAS),
    (lambda: cameras().crop(0, 10, 20, 60), GridError, "20x60 px from row 0, column 10"),
    (
        lambda: Cameras.from_world_to_cam(K, unit(r03=1.0).mT, (48, 64)),
        DataError,
        "world_to_cam.mT",
    ),
    (lambda: SCENE[5], IndexError, "5"),
    (lambda: SCENE.unproject(torch.ones(2, 48, 64)), ShapeError, "(2, 48, 64)"),
    (lambda: check_cameras(POINTS, SCENE, torch.ones(1, 64, 48)), ShapeError, "64x48"),
    (lambda: check_cameras(None, BATCHED, torch.ones(1, 48, 64), FOUR), ShapeError, "batch"),
    (lambda: check_cameras(None, SCENE, torch.ones(2, 48, 64)), ShapeError, "(1 views"),
    (
        lambda: check_cameras(POINTS, SCENE, torch.ones(1, 48, 64), depth_rel=-0.5),
        ConfigError,
        "depth_rel is -0.5",
    ),
    *rows_of(project, PROJECTED),
    *rows_of(PointProjector, PROJECTORS),
    *rows_of(lift_links, LIFTED),
    *rows_of(voxelize, VOXELS),
    (
        lambda: VoxelGrid.from_coords(torch.zeros(2, 3).long(), torch.tensor([3, BATCHES])),
        DataError,
        f"is {BATCHES}",
    ),
    (lambda: features_without_first(coords=True), ShapeError, "63"),
    (lambda: features_without_first(seen=True), ShapeError, "63"),
    (lambda: SparseFeatures(*FLIPPED).at(GRID.coords), DataError, "sorted"),
    (lambda: SparsePyramid(()), ConfigError, "power"),
    (lambda: SparsePyramid((3,)), ConfigError, "power"),
    (lambda: SparsePyramid((2, 8))(COARSE), ConfigError, ("stride 4", "(2, 8)")),
    (lambda: INJECTION(X, F, SEEN), ConfigError, "2, 1"),
    (lambda: INJECTION(X, F, SEEN, stride=8), ConfigError, "stride 8"),
    (lambda: INJECTION(X[:, :8], F, SEEN, stride=2), ShapeError, "8 channels"),
    (lambda: INJECTION(X, F[:3], SEEN, stride=2), ShapeError, "bool"),
    (
        lambda: INJECTION.inject(X, SparseFeatures(*ROWS_OF, 2), GRID.coords[:1], GRID.batch[:1]),
        ShapeError,
        "(1, 3)",
    ),
    (lambda: run_attached({2: "blocks2", 1: "block1"}), ConfigError, ("'blocks2'", "'block2'")),
    (lambda: run_attached({2: "block2"}), ConfigError, "2, 1"),
    (lambda: run_attached({2: "block1", 1: "block1"}), ConfigError, "'block1'"),
    (
        lambda: run_attached(pyramid={1: PYRAMID[1], 4: PYRAMID[4]}),
        ConfigError,
        ("stride 2", "1, 4"),
    ),
    (
        lambda: run_attached(pyramid={1: PYRAMID[1], 2: PYRAMID[1]}),
        ConfigError,
        ("entry 2", "stride 1"),
    ),
    (lambda: run_attached(pyramid=pyramid_of(CLOUD, channels=5)), ShapeError, ("5 channels", "6")),
    (lambda: run_attached({2: "block2", 1: "enc1"}), ShapeError, ("'enc1'", "3 channels")),
    (lambda: run_attached(block="block1", x=CLOUD), ConfigError, "positional arguments"),
    (attached_twice, ConfigError, "'block2'"),
    # its look-ups would hit, for every voxel lies in some coarse cell, and the network would train
    # on
    (
        lambda: DecoderInjection(6, {2: 9}).wrap(PlainUNet(), {2: "block1"})(
            CLOUD, pyramid=PYRAMID
        ),
        ConfigError,
        ("'block1'", "not a multiple of 2"),
    ),
    (lambda: GatedFusion(6, 5, 4), ConfigError, "c_out is 4"),
    (lambda: GatedFusion(6, 5, 5, 0), ConfigError, "hidden is 0"),
    (lambda: FUSION(F, F, SEEN), ShapeError, ("x3 has 6 channels", "5")),
    (lambda: FUSION(X[:, :5], X[:, :5], SEEN), ShapeError, ("x2 has 5 channels", "6")),
    (lambda: FUSION(X[:, :5], F[:3], SEEN), ShapeError, ("(3,)", "(4,)", "x2")),
    (lambda: FUSION(X[:, :5], F, SEEN.long()), ShapeError, "torch.int64"),
    (lambda: FUSION(X[:, :5], F, SEEN[:3]), ShapeError, ("valid", "(3,)", "(4,)")),
    (lambda: FUSION(X[:, :5], F.half(), SEEN), ShapeError, ("x2", "torch.float16")),
    (lambda: INJECTION(X, F.half(), SEEN, stride=2), ShapeError, ("features", "torch.float16")),
    # attached networks
    (without_a_pyramid, ConfigError, ("'block2'", "injection.using(pyramid)")),
    (two_passes_before_backward, ConfigError, ("'block1'", "torch.no_grad()")),
    (lambda: adapter_of(torch.zeros(3)), ShapeError, "Tensor"),
    (lambda: DecoderInjection(6, {}), ConfigError, "levels"),
    (lambda: features_at(math.nan, 0), DataError, "1 of 1 places that are NaN"),
    (lambda: features_at(0.0, 0.5), DataError, "batch holds 0.5"),
    (lambda: minkowski_offsets(2.5), ConfigError, "kernel_size is 2.5"),  # type: ignore[arg-type]
    (lambda: minkowski_offsets(3, 0.5), ConfigError, "stride is 0.5"),  # type: ignore[arg-type]
    (lambda: minkowski_offsets(0), ConfigError, "kernel_size is 0; expected 1 or more"),
    # units
    (lambda: check_depth_between_cameras(2000.0), DataError, ("2000", "1 m", "depth / 1000")),
    (lambda: project_at_depth(depth=2000.0, z=2.0), DataError, ("2000", "2 m", "depth / 1000")),
    (
        lambda: project_at_depth(depth=2.0, z=2000.0),
        DataError,
        ("2000", "2 m", "divide them by 1000"),
    ),
    (
        lambda: PointProjector()(POINTS, "cameras"),  # type: ignore[arg-type]
        ShapeError,
        "str",
    ),
    (
        lambda: SparsePyramid((2,), reduce="mean")(
            SparseFeatures(*ROWS_OF[:2], ROWS_OF[2].long(), ROWS_OF[3])
        ),
        ShapeError,
        "torch.int64",
    ),
]
