"""The predictor: views, tiles, threads, and tables of its results."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import kit

from dinoneck import (
    Backbone,
    CLSGatingHead,
    Composition,
    DenseHead,
    FPNHead,
    GridSize,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_head,
)
from dinoneck.checkpoint import model_card
from dinoneck.data import Preprocessing
from dinoneck.heads import Head
from dinoneck.inference import VIEWS, to_frame
from dinoneck.inference.tiles import TileAxis, Tiling, windows


def test_maps_of_all_views_come_back_to_the_image(blind: Backbone) -> None:
    head = PatchMeanHead(64, [Task("a"), Task("b", transform=TargetTransform(area=2.0))])
    image = torch.rand(3, 32, 80)
    plain = Predictor(head, blind)(image, maps="patch")[0]
    for tta in ("flip4", "d6"):
        averaged = Predictor(head, blind, tta=tta)(image, maps="patch")[0]  # type: ignore[arg-type]
        for name in ("a", "b"):
            assert np.allclose(averaged["maps"][name], plain["maps"][name], atol=1e-5)
            assert averaged[name] == pytest.approx(plain[name], abs=1e-5)


def test_images_are_normalised_as_the_file_records(tiny: Backbone, tmp_path: Path) -> None:
    head, image = PatchMeanHead(64, [Task("a")]), torch.rand(3, 32, 64)
    own = tiny.preprocess.changed(size=(32, 64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    HeadCheckpoint.from_module(head, backbone=tiny, preprocess=own).save(tmp_path / "h.safetensors")
    expected = head.predict(tiny(own(image)))["a"].item()
    assert Predictor(tmp_path / "h.safetensors")(image)[0]["a"] == pytest.approx(expected, rel=1e-5)
    assert head.predict(tiny(tiny.preprocess(image)))["a"].item() != pytest.approx(
        expected, rel=1e-2
    )


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_padding_is_left_out_of_the_mean_of_a_map(blind: Backbone, tta: Any) -> None:
    # 2 x 4 patches of image in a grid of 4 x 4
    padded = blind.preprocess.changed(size=(64, 64), resize="pad")
    head = DenseHead(64, [Task("a", kind="dense")], hidden_dim=8, depth=0)
    [result] = Predictor(head, blind, tta, preprocess=padded)(kit.patchwork(2, 4), maps="patch")
    [alone] = Predictor(head, blind, tta)(kit.patchwork(2, 4), maps="patch")
    assert result["maps"]["a"].shape == (1, 4, 4)
    assert result["a"] == pytest.approx(result["maps"]["a"][:, :2].mean(), rel=1e-5)
    assert result["a"] == pytest.approx(alone["a"], rel=1e-5)
    assert result["a"] != pytest.approx(result["maps"]["a"].mean(), rel=1e-2)


def test_one_pass_for_heads_of_several_layers(tiny: Backbone, tmp_path: Path) -> None:
    shallow, deep, all_layers = (tiny.with_layers(own) for own in ([1], [2, 4], [1, 2, 4]))
    heads = [PatchMeanHead(64, [Task("a")]), PatchMeanHead(64, [Task("a"), Task("b")])]
    together = HeadEnsemble(heads, layers=[[1], [2, 4]])
    file = kit.saved_head(tmp_path / "h.safetensors", together, backbone=all_layers)
    predictor, image = Predictor(file), kit.images(1)[0]
    images = tiny.preprocess(image)
    a0, both = heads[0].predict(shallow(images)), heads[1].predict(deep(images))
    [result] = predictor(image, maps="patch")
    assert result["a"] == pytest.approx((a0["a"].item() + both["a"].item()) / 2, rel=1e-5)
    assert result["b"] == pytest.approx(both["b"].item(), rel=1e-5)
    values = load_head(file).predict(all_layers(images))  # type: ignore[operator]
    assert values["a"].item() == pytest.approx(result["a"], rel=1e-5)


def test_images_of_different_sizes_keep_their_order(tiny: Backbone) -> None:
    predictor = Predictor(PatchMeanHead(64, [Task("a")]), tiny, batch_size=3)
    images = [
        torch.rand(3, 32, 32),
        torch.rand(3, 48, 32),
        torch.rand(3, 32, 32),
        torch.rand(3, 16, 16),
    ]
    together = [row["a"] for row in predictor(images)]
    assert together == pytest.approx([predictor(image)[0]["a"] for image in images], rel=1e-5)


def test_half_precision_backbones_predict_with_float32_heads(tmp_path: Path) -> None:
    half, head, image = kit.backbone(dtype=torch.bfloat16), kit.head(), kit.images(1)[0]
    rebuilt = Predictor(kit.saved_head(tmp_path / "h.safetensors", head, backbone=half))
    assert next(rebuilt.backbone.parameters()).dtype == torch.bfloat16
    exact = Predictor(head, kit.backbone())(image)[0]["mass"]
    assert rebuilt(image)[0]["mass"] == pytest.approx(exact, abs=0.02)
    assert rebuilt(image) == Predictor(head, half)(image)


@pytest.mark.slow
@pytest.mark.parametrize("views", ["flip4", "d6"])
def test_every_way_to_predict_averages_the_recorded_views(
    views: str, tiny: Backbone, tmp_path: Path
) -> None:
    """In original units: the numbers of the views differ, and the mean of their logarithms would be another."""
    [image] = kit.write_images(tmp_path, ["field.png"])
    head = kit.head(
        Task("mass", transform=TargetTransform(log1p=True, mean=1.0, std=2.0), activation="relu")
    )
    file = kit.saved_head(tmp_path / "run" / "fold-0.safetensors", head, tta=views)
    pixels = tiny.preprocess(image, size=kit.SIZE)
    each = [
        head.predict(tiny(VIEWS[views].place(pixels, i)))["mass"].item()
        for i in range(len(VIEWS[views]))
    ]
    expected = sum(each) / len(each)
    assert abs(expected - each[0]) > 1e-4 * abs(expected), "the views make a difference"
    for source in (file.parent, file, [file], HeadCheckpoint.load(file)):
        predictor = Predictor(source)
        assert predictor.tta == views
        assert predictor(image)[0]["mass"] == pytest.approx(expected, rel=1e-5)
    ran = kit.cli("predict", image, "--heads", file.parent, "--out", tmp_path / "p.csv")
    assert float((tmp_path / "p.csv").read_text().splitlines()[1].split(",")[1]) == pytest.approx(
        expected, rel=1e-5
    )
    assert views in ran.out and f"`{views}`" in model_card(file, "user/name")


TASKS = (
    Task("mass", kind="density", transform=TargetTransform(area=0.5)),
    Task("cover", kind="density", aggregate="mean", activation="sigmoid"),
    Task("height", kind="dense"),
    Task("crop", dim=3, kind="segmentation"),
)


def axis(total: int, length: int, overlap: int) -> TileAxis:
    recipe = Preprocessing(patch_size=1)
    return Tiling((length, length), overlap).axes(GridSize(total, 1), recipe)[0]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 19), st.integers(1, 3))
def test_tiles_cover_every_cell_and_their_weights_add_up_to_one(
    total: int, length: int, overlap: int, finer: int
) -> None:
    overlap = min(overlap, length - 1)
    tiles = axis(total, length, overlap)
    assert tiles.starts[0] == 0
    assert tiles.starts[-1] + tiles.length == total
    steps = np.diff(tiles.starts)
    assert (steps > 0).all()
    assert (length - steps >= overlap).all()
    fewest = 1 if total <= length else -(-(total - length) // (length - overlap)) + 1
    assert len(tiles.starts) == fewest
    sums = torch.zeros(total * finer, dtype=torch.float64)
    for start, window in zip(tiles.starts, windows(tiles, finer), strict=True):
        assert (window > 0).all()
        sums[start * finer : start * finer + len(window)] += window
    assert torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-15)


def test_one_tile_fades_into_the_next() -> None:
    tiles = axis(12, 8, 4)
    assert tiles.starts == (0, 4)
    first, second = windows(tiles)
    assert first[:4].tolist() == second[4:].tolist() == [1.0] * 4
    assert torch.allclose(
        first[4:], torch.tensor([3.5 / 4, 2.5 / 4, 1.5 / 4, 0.5 / 4], dtype=torch.float64)
    )


@pytest.mark.parametrize("tta", ["none", "flip4", "d6"])
@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((3, 8), 48, 0), ((7, 5), 48, 16), ((4, 3), (32, 64), 0.5), ((2, 9), (32, 48), 10)],
)
def test_tiled_equals_whole(
    blind: Backbone, tta: Any, size: tuple[int, int], tile: Any, overlap: float
) -> None:
    heads = HeadEnsemble(
        [DenseHead(64, TASKS, hidden_dim=8, depth=0), PatchMeanHead(64, [Task("a", minimum=0.0)])]
    )
    image = kit.patchwork(*size)
    [whole] = Predictor(heads, blind, tta)(image, maps="patch")
    [tiled] = Predictor(heads, blind, tta, tile=tile, overlap=overlap, batch_size=3)(
        image, maps="patch"
    )
    assert tiled.keys() == whole.keys() and kit.same(tiled, whole, 1e-5)
    assert tiled["mass"] == pytest.approx(tiled["maps"]["mass"].sum(), rel=1e-5)


def test_pooled_answers_are_weighted_by_the_ground_they_stand_for(tiny: Backbone) -> None:
    tasks = [
        Task("mass", transform=TargetTransform(log1p=True)),
        Task("kind", dim=2, kind="classification"),
    ]
    head = CLSGatingHead(64, tasks, mode="query", hidden_dim=8).eval()
    image = torch.rand(3, 32, 80, generator=torch.Generator().manual_seed(0))
    cuts = [slice(0, 48), slice(16, 64), slice(32, 80)]
    answers = [Predictor(head, tiny)(image[..., cut], maps="patch")[0] for cut in cuts]
    [tiled] = Predictor(head, tiny, tile=48, overlap=32)(image, maps="patch")
    ramps = np.array([[0.5, 1.5, 0.5, 0, 0], [0, 0.5, 1.5, 0.5, 0], [0, 0, 0.5, 1.5, 0.5]])
    shares = (ramps / ramps.sum(axis=0)).sum(axis=1) / 5
    assert tiled["mass"] == pytest.approx(
        sum(s * a["mass"] for s, a in zip(shares, answers, strict=True)), rel=1e-5
    )
    assert np.allclose(
        tiled["kind"], sum(s * a["kind"] for s, a in zip(shares, answers, strict=True)), atol=1e-6
    )
    expected = np.zeros((2, 5))
    for k, answer in enumerate(answers):
        expected[:, k : k + 3] += (ramps / ramps.sum(axis=0))[k, k : k + 3] * answer["gate"]
    assert np.allclose(tiled["gate"], expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "grid"),
    [
        ((120, 180), (4, 6)),  # 60x90 px become 32x48, 2x3 patches
        ((61, 180), (2, 6)),  # one pixel too much: by less than half a patch brought to whole ones
        ((30, 180), (1, 6)),  # less than a tile high
    ],
)
def test_a_tile_is_brought_to_the_heads_size(
    blind: Backbone, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    head, recipe = (
        DenseHead(64, TASKS, hidden_dim=8, depth=0),
        blind.preprocess.changed(size=(32, 48)),
    )
    image = torch.rand(3, *image_size)
    predictor = Predictor(head, blind, preprocess=recipe, tile=(60, 90))
    [tiled] = predictor(image, maps="patch")
    assert tiled["maps"]["mass"].shape == (1, *grid)
    assert predictor.picture(image).shape == (3, grid[0] * 16, grid[1] * 16)
    stretched = blind.preprocess.changed(size=(grid[0] * 16, grid[1] * 16))
    [whole] = Predictor(head, blind, preprocess=stretched)(image, maps="patch")
    assert kit.same(tiled["maps"], whole["maps"], 1e-6)
    assert tiled["mass"] == pytest.approx(whole["mass"], rel=1e-5)


THREADS = 8


def heads() -> list[Head]:
    mass = Task("mass", unit="g", transform=TargetTransform(mean=(3.0,), std=(2.0,)))
    return [
        kit.head(mass),
        kit.head(mass, seed=1),
        CLSGatingHead(64, [Task("height")], mode="query", hidden_dim=16, dropout=0.5),
        DenseHead(64, [Task("cover", kind="dense")], hidden_dim=16),
        FPNHead(64, [Task("count", kind="density")], num_layers=1, fpn_dim=16, layer_indices=(5,)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, True])
def test_threads_get_what_a_lone_call_gets(tiled: bool) -> None:
    modules, backbone = heads(), kit.backbone()
    options: dict[str, Any] = {"tile": 32, "overlap": 16} if tiled else {"tta": "flip4"}
    predictor = Predictor(HeadEnsemble(modules), backbone, **options)
    given = [kit.images(1, 32 + 16 * (i % 3), seed=i)[0] for i in range(THREADS)]
    alone = [predictor(image, maps="patch")[0] for image in given]
    for module in modules:
        module.train()
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda image: predictor(image, maps="patch")[0], given * 3))
    assert all(kit.same(answer, one) for answer, one in zip(answers, alone * 3, strict=True))
    assert all(part.training for module in modules for part in module.modules())
    assert not backbone.training


SOIL = Task("soil type", dim=3, kind="classification", labels=("wet clay", "sand", "loam"))


SOIL_TASKS = [
    Task("leaf", unit="g"),
    Task("stem", unit="g"),
    SOIL,
    Task("kind", dim=2, kind="classification"),
]


COLUMNS = [
    *("leaf", "stem", "soil type", "soil type:wet clay", "soil type:sand", "soil type:loam"),
    *("kind", "kind:0", "kind:1", "above"),
]


def test_the_csv_and_the_frame_hold_the_same(tmp_path: Path, tiny: Backbone) -> None:
    pytest.importorskip("pandas")
    above = Composition(("leaf", "stem"), {"above": ("leaf", "stem")}, "sums")  # type: ignore[arg-type]
    head = kit.saved_head(
        tmp_path / "h.safetensors", PatchMeanHead(64, SOIL_TASKS, 8, compositions=[above])
    )
    names, out = ["a.png", "b.png"], tmp_path / "p.csv"
    files = kit.write_images(tmp_path, names)
    predictor = Predictor(head, tiny)
    frame = to_frame(predictor(files, maps="patch"), predictor.tasks, names)
    assert list(frame.columns) == COLUMNS and list(frame.index) == names
    assert kit.cli("predict", *files, "--heads", head, "--out", out).code == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", *COLUMNS]
    for name, row in zip(names, rows, strict=True):
        shares = {label: float(row[f"soil type:{label}"]) for label in SOIL.labels}
        assert (
            row["soil type"] == frame.loc[name, "soil type"] == max(shares, key=shares.__getitem__)
        )
        assert row["kind"] == frame.loc[name, "kind"] == str(int(float(row["kind:1"]) > 0.5))
        for column in ("leaf", "kind:1", "above"):
            assert float(row[column]) == pytest.approx(frame.loc[name, column], rel=1e-4)
    assert list(to_frame(predictor(files), predictor.tasks).index) == [0, 1]
