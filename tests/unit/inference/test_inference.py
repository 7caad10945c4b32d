"""The predictor: views, tiles, threads, and tables of its results."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import kit
from torch import Tensor

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

if TYPE_CHECKING:
    import pandas as pd

# One image of the predictor, in several views


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("tta", ["flip4", "d6"])
def test_maps_of_all_views_come_back_to_the_image(tta: Any, name: str, blind: Backbone) -> None:
    tasks = [
        Task("a"),
        Task("b", transform=TargetTransform(area=2.0)),
    ]
    head = PatchMeanHead(64, tasks)
    image = torch.rand(3, 32, 80)

    [plain] = Predictor(head, blind)(image, maps="patch")
    [averaged] = Predictor(head, blind, tta=tta)(image, maps="patch")

    assert np.allclose(averaged["maps"][name], plain["maps"][name], atol=1e-5)
    assert averaged[name] == pytest.approx(plain[name], abs=1e-5)


def test_images_are_normalised_as_the_file_records(tiny: Backbone, tmp_path: Path) -> None:
    head = PatchMeanHead(64, [Task("a")])
    image = torch.rand(3, 32, 64)
    recorded = tiny.preprocess.changed(
        size=(32, 64),
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    )
    checkpoint = HeadCheckpoint.from_module(head, backbone=tiny, preprocess=recorded)
    checkpoint.save(tmp_path / "h.safetensors")
    as_recorded = head.predict(tiny(recorded(image)))["a"].item()
    as_the_backbone = head.predict(tiny(tiny.preprocess(image)))["a"].item()

    [result] = Predictor(tmp_path / "h.safetensors")(image)

    assert result["a"] == pytest.approx(as_recorded, rel=1e-5)
    assert as_the_backbone != pytest.approx(as_recorded, rel=1e-2)


PADDED_ROWS = 2  # of patches that show the image, in a grid of 4 x 4


def dense_head() -> DenseHead:
    return DenseHead(64, [Task("a", kind="dense")], hidden_dim=8, depth=0)


def predict_padded(head: Head, backbone: Backbone, tta: Any) -> dict[str, Any]:
    """The row of an image of 2 x 4 patches, padded to 4 x 4."""
    padded = backbone.preprocess.changed(size=(64, 64), resize="pad")
    predictor = Predictor(head, backbone, tta, preprocess=padded)
    [result] = predictor(kit.patchwork(PADDED_ROWS, 4), maps="patch")
    return result


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_padding_is_left_out_of_the_mean_of_a_map(blind: Backbone, tta: Any) -> None:
    result = predict_padded(dense_head(), blind, tta)

    values = result["maps"]["a"]
    assert values.shape == (1, 4, 4)
    assert result["a"] == pytest.approx(values[:, :PADDED_ROWS].mean(), rel=1e-5)
    assert result["a"] != pytest.approx(values.mean(), rel=1e-2)


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_a_padded_image_is_predicted_as_without_padding(blind: Backbone, tta: Any) -> None:
    head = dense_head()
    [alone] = Predictor(head, blind, tta)(kit.patchwork(PADDED_ROWS, 4), maps="patch")

    padded = predict_padded(head, blind, tta)

    assert padded["a"] == pytest.approx(alone["a"], rel=1e-5)


@dataclass
class LayersInOneFile:
    """Two heads that read other layers, what each predicts alone, and the file of their ensemble."""

    file: Path
    image: Tensor
    tokens_of_all: Any
    first: dict[str, Tensor]
    second: dict[str, Tensor]


@pytest.fixture
def layers_in_one_file(tiny: Backbone, tmp_path: Path) -> LayersInOneFile:
    first = PatchMeanHead(64, [Task("a")])
    second = PatchMeanHead(64, [Task("a"), Task("b")])
    together = HeadEnsemble([first, second], layers=[[1], [2, 4]])
    all_layers = tiny.with_layers([1, 2, 4])
    file = kit.saved_head(tmp_path / "h.safetensors", together, backbone=all_layers)
    image = kit.images(1)[0]
    pixels = tiny.preprocess(image)
    return LayersInOneFile(
        file=file,
        image=image,
        tokens_of_all=all_layers(pixels),
        first=first.predict(tiny.with_layers([1])(pixels)),
        second=second.predict(tiny.with_layers([2, 4])(pixels)),
    )


def test_one_pass_for_heads_of_several_layers(layers_in_one_file: LayersInOneFile) -> None:
    both = layers_in_one_file

    [result] = Predictor(both.file)(both.image, maps="patch")

    mean = (both.first["a"].item() + both.second["a"].item()) / 2
    assert result["a"] == pytest.approx(mean, rel=1e-5)
    assert result["b"] == pytest.approx(both.second["b"].item(), rel=1e-5)


def test_a_loaded_head_of_several_layers_predicts_as_the_predictor(
    layers_in_one_file: LayersInOneFile,
) -> None:
    loaded = load_head(layers_in_one_file.file)
    [result] = Predictor(layers_in_one_file.file)(layers_in_one_file.image)

    values = loaded.predict(layers_in_one_file.tokens_of_all)  # type: ignore[operator]

    assert values["a"].item() == pytest.approx(result["a"], rel=1e-5)


def test_images_of_different_sizes_keep_their_order(tiny: Backbone) -> None:
    predictor = Predictor(PatchMeanHead(64, [Task("a")]), tiny, batch_size=3)
    images = [
        torch.rand(3, 32, 32),
        torch.rand(3, 48, 32),
        torch.rand(3, 32, 32),
        torch.rand(3, 16, 16),
    ]
    alone = [predictor(image)[0]["a"] for image in images]

    together = [row["a"] for row in predictor(images)]

    assert together == pytest.approx(alone, rel=1e-5)


def test_a_head_of_a_half_precision_backbone_is_rebuilt_with_one(tmp_path: Path) -> None:
    half = kit.backbone(dtype=torch.bfloat16)

    predictor = Predictor(kit.saved_head(tmp_path / "h.safetensors", backbone=half))

    assert next(predictor.backbone.parameters()).dtype == torch.bfloat16


def test_half_precision_backbones_predict_with_float32_heads() -> None:
    head = kit.head()
    image = kit.images(1)[0]
    [exact] = Predictor(head, kit.backbone())(image)

    [half] = Predictor(head, kit.backbone(dtype=torch.bfloat16))(image)

    assert half["mass"] == pytest.approx(exact["mass"], abs=0.02)


def test_a_finer_dtype_than_in_training_takes_weights_that_are_not_rounded(tmp_path: Path) -> None:
    half = kit.backbone(dtype=torch.bfloat16)
    head = kit.head()
    image = kit.images(1)[0]
    file = kit.saved_head(tmp_path / "h.safetensors", head, backbone=half)
    [exact] = Predictor(head, kit.backbone())(image)
    [rounded] = Predictor(head, half, dtype=torch.float32)(image)

    [row] = Predictor(file, dtype="float32")(image)

    assert row["mass"] == exact["mass"]
    assert row["mass"] != rounded["mass"]


@pytest.mark.parametrize("weights", [(), ("--random-backbone",)], ids=["recorded", "named"])
def test_the_command_line_predicts_in_a_finer_precision(
    weights: tuple[str, ...], tmp_path: Path
) -> None:
    [image] = kit.write_images(tmp_path, ["a.png"])
    half = kit.backbone(dtype=torch.bfloat16)
    file = kit.saved_head(tmp_path / "h.safetensors", backbone=half)
    words = ("predict", image, "--heads", file, "--out", tmp_path / "out.csv", "--json")

    result = kit.cli(*words, "--precision", "float32", "--runtime", "torch", *weights)

    assert result.code == 0, result.err
    [row] = result.json["predictions"]
    [expected] = Predictor(file, kit.backbone())(image)
    assert row["mass"] == pytest.approx(expected["mass"], rel=1e-7)


def test_a_rebuilt_half_precision_backbone_predicts_the_same(tmp_path: Path) -> None:
    half = kit.backbone(dtype=torch.bfloat16)
    head = kit.head()
    image = kit.images(1)[0]
    file = kit.saved_head(tmp_path / "h.safetensors", head, backbone=half)

    rebuilt = Predictor(file)(image)

    assert rebuilt == Predictor(head, half)(image)


# The views that a head file records


@dataclass
class RecordedViews:
    """The file of a head that is to predict the mean of views, an image, and what each view gives.

    In original units: the numbers of the views differ, and the mean of their logarithms would be another.
    """

    views: str
    file: Path
    image: Path
    values: list[float]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@pytest.fixture(params=["flip4", "d6"])
def recorded_views(request: pytest.FixtureRequest, tiny: Backbone, tmp_path: Path) -> RecordedViews:
    views = request.param
    [image] = kit.write_images(tmp_path, ["field.png"])
    transform = TargetTransform(log1p=True, mean=1.0, std=2.0)
    head = kit.head(Task("mass", transform=transform, activation="relu"))
    file = kit.saved_head(tmp_path / "run" / "fold-0.safetensors", head, tta=views)
    pixels = tiny.preprocess(image, size=kit.SIZE)
    values = []
    for view in range(len(VIEWS[views])):
        tokens = tiny(VIEWS[views].place(pixels, view))
        values.append(head.predict(tokens)["mass"].item())
    return RecordedViews(views=views, file=file, image=image, values=values)


def test_the_views_make_a_difference(recorded_views: RecordedViews) -> None:
    """Else the tests below could not fail."""
    first = recorded_views.values[0]

    assert abs(recorded_views.mean - first) > 1e-4 * abs(recorded_views.mean)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "file", "list", "checkpoint"])
def test_every_source_of_a_head_averages_the_recorded_views(
    source: str, recorded_views: RecordedViews
) -> None:
    file = recorded_views.file
    heads: dict[str, Any] = {
        "folder": file.parent,
        "file": file,
        "list": [file],
        "checkpoint": HeadCheckpoint.load(file),
    }

    predictor = Predictor(heads[source])
    [result] = predictor(recorded_views.image)

    assert predictor.tta == recorded_views.views
    assert result["mass"] == pytest.approx(recorded_views.mean, rel=1e-5)


@pytest.mark.slow
def test_the_command_line_averages_the_recorded_views(
    recorded_views: RecordedViews, tmp_path: Path
) -> None:
    folder = recorded_views.file.parent
    table = tmp_path / "p.csv"

    ran = kit.cli("predict", recorded_views.image, "--heads", folder, "--out", table)

    row = table.read_text().splitlines()[1].split(",")
    assert float(row[1]) == pytest.approx(recorded_views.mean, rel=1e-5)
    assert recorded_views.views in ran.out


def test_the_model_card_names_the_recorded_views(recorded_views: RecordedViews) -> None:
    card = model_card(recorded_views.file, "user/name")

    assert f"`{recorded_views.views}`" in card


# Tiles


TASKS = (
    Task("mass", kind="density", transform=TargetTransform(area=0.5)),
    Task("cover", kind="density", aggregate="mean", activation="sigmoid"),
    Task("height", kind="dense"),
    Task("crop", dim=3, kind="segmentation"),
)


def axis(total: int, length: int, overlap: int) -> TileAxis:
    recipe = Preprocessing(patch_size=1)
    return Tiling((length, length), overlap).axes(GridSize(total, 1), recipe)[0]


@dataclass
class DrawnTiles:
    """One axis of an image of ``total`` cells, in tiles of ``length`` that share ``overlap`` at least."""

    total: int
    length: int
    overlap: int

    @property
    def axis(self) -> TileAxis:
        return axis(self.total, self.length, self.overlap)


@st.composite
def drawn_tiles(draw: st.DrawFn) -> DrawnTiles:
    total = draw(st.integers(1, 60))
    length = draw(st.integers(1, 20))
    overlap = draw(st.integers(0, length - 1))
    return DrawnTiles(total=total, length=length, overlap=overlap)


@given(drawn_tiles())
def test_tiles_begin_and_end_with_the_image(tiles: DrawnTiles) -> None:
    starts = tiles.axis.starts

    assert starts[0] == 0
    assert starts[-1] + tiles.axis.length == tiles.total


@given(drawn_tiles())
def test_tiles_share_as_much_as_they_are_asked_to(tiles: DrawnTiles) -> None:
    steps = np.diff(tiles.axis.starts)

    assert (steps > 0).all()
    assert (tiles.length - steps >= tiles.overlap).all()


@given(drawn_tiles())
def test_there_are_as_few_tiles_as_possible(tiles: DrawnTiles) -> None:
    fewest = 1
    if tiles.total > tiles.length:
        beyond_the_first = tiles.total - tiles.length
        longest_step = tiles.length - tiles.overlap
        fewest += -(-beyond_the_first // longest_step)

    assert len(tiles.axis.starts) == fewest


@given(drawn_tiles(), st.integers(1, 3))
def test_the_weights_of_tiles_add_up_to_one_at_every_cell(tiles: DrawnTiles, finer: int) -> None:
    sums = torch.zeros(tiles.total * finer, dtype=torch.float64)

    for start, window in zip(tiles.axis.starts, windows(tiles.axis, finer), strict=True):
        assert (window > 0).all()
        sums[start * finer : start * finer + len(window)] += window

    assert torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-15)


def test_one_tile_fades_into_the_next() -> None:
    tiles = axis(12, 8, 4)

    first, second = windows(tiles)

    assert tiles.starts == (0, 4)
    assert first[:4].tolist() == [1.0] * 4
    assert second[4:].tolist() == [1.0] * 4
    fading = torch.tensor([3.5 / 4, 2.5 / 4, 1.5 / 4, 0.5 / 4], dtype=torch.float64)
    assert torch.allclose(first[4:], fading)


@pytest.mark.parametrize("tta", ["none", "flip4", "d6"])
@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [
        pytest.param((3, 8), 48, 0, id="side by side"),
        pytest.param((7, 5), 48, 16, id="overlap in pixels"),
        pytest.param((4, 3), (32, 64), 0.5, id="overlap as a share"),
        pytest.param((2, 9), (32, 48), 10, id="overlap of no whole patches"),
    ],
)
def test_tiled_equals_whole(
    blind: Backbone, tta: Any, size: tuple[int, int], tile: Any, overlap: float
) -> None:
    maps_and_vectors = [
        DenseHead(64, TASKS, hidden_dim=8, depth=0),
        PatchMeanHead(64, [Task("a", minimum=0.0)]),
    ]
    head = HeadEnsemble(maps_and_vectors)
    image = kit.patchwork(*size)
    [whole] = Predictor(head, blind, tta)(image, maps="patch")

    predictor = Predictor(head, blind, tta, tile=tile, overlap=overlap, batch_size=3)
    [tiled] = predictor(image, maps="patch")

    assert tiled.keys() == whole.keys()
    assert kit.same(tiled, whole, 1e-5)
    assert tiled["mass"] == pytest.approx(tiled["maps"]["mass"].sum(), rel=1e-5)


@dataclass
class PooledTiles:
    """What a head with one answer per image gives for an image of 2 x 5 patches in three tiles of 2 x 3."""

    answers: list[dict[str, Any]]
    tiled: dict[str, Any]
    column_weights: np.ndarray  # (tiles, columns of the image): of each tile in a column, 1 in all

    def mean(self, name: str) -> Any:
        """The mean of the tiles' answers, weighted by the part of the image that each stands for."""
        shares = self.column_weights.sum(axis=1) / 5
        total: Any = 0.0
        for share, answer in zip(shares, self.answers, strict=True):
            total = total + share * answer[name]
        return total


@pytest.fixture
def pooled_tiles(tiny: Backbone) -> PooledTiles:
    tasks = [
        Task("mass", transform=TargetTransform(log1p=True)),
        Task("kind", dim=2, kind="classification"),
    ]
    head = CLSGatingHead(64, tasks, mode="query", hidden_dim=8).eval()
    image = torch.rand(3, 32, 80, generator=torch.Generator().manual_seed(0))
    answers = []
    for begin in (0, 16, 32):
        [answer] = Predictor(head, tiny)(image[..., begin : begin + 48], maps="patch")
        answers.append(answer)
    [tiled] = Predictor(head, tiny, tile=48, overlap=32)(image, maps="patch")
    ramps = np.array(
        [
            [0.5, 1.5, 0.5, 0.0, 0.0],
            [0.0, 0.5, 1.5, 0.5, 0.0],
            [0.0, 0.0, 0.5, 1.5, 0.5],
        ]
    )
    return PooledTiles(answers=answers, tiled=tiled, column_weights=ramps / ramps.sum(axis=0))


def test_pooled_answers_are_weighted_by_the_ground_they_stand_for(
    pooled_tiles: PooledTiles,
) -> None:
    assert pooled_tiles.tiled["mass"] == pytest.approx(pooled_tiles.mean("mass"), rel=1e-5)


def test_pooled_probabilities_are_weighted_by_the_ground_they_stand_for(
    pooled_tiles: PooledTiles,
) -> None:
    assert np.allclose(pooled_tiles.tiled["kind"], pooled_tiles.mean("kind"), atol=1e-6)


def test_the_gates_of_tiles_are_weighted_per_cell(pooled_tiles: PooledTiles) -> None:
    expected = np.zeros((2, 5))
    for tile, answer in enumerate(pooled_tiles.answers):
        columns = slice(tile, tile + 3)
        expected[:, columns] += pooled_tiles.column_weights[tile, columns] * answer["gate"]

    assert np.allclose(pooled_tiles.tiled["gate"], expected / expected.sum(), atol=1e-6)


# Images that are cut into tiles of 60 x 90 px; each tile becomes 32 x 48 px, 2 x 3 patches
RESIZED_TILES = pytest.mark.parametrize(
    ("image_size", "grid"),
    [
        pytest.param((120, 180), (4, 6), id="whole tiles"),
        # by less than half a patch brought to whole ones
        pytest.param((61, 180), (2, 6), id="one pixel too much"),
        pytest.param((30, 180), (1, 6), id="less than a tile high"),
    ],
)


def predictor_of_resized_tiles(head: Head, backbone: Backbone) -> Predictor:
    recipe = backbone.preprocess.changed(size=(32, 48))
    return Predictor(head, backbone, preprocess=recipe, tile=(60, 90))


@RESIZED_TILES
def test_a_tile_is_brought_to_the_heads_size(
    blind: Backbone, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    head = DenseHead(64, TASKS, hidden_dim=8, depth=0)
    image = torch.rand(3, *image_size)

    [tiled] = predictor_of_resized_tiles(head, blind)(image, maps="patch")

    assert tiled["maps"]["mass"].shape == (1, *grid)


@RESIZED_TILES
def test_the_picture_of_an_image_in_tiles_has_their_size(
    blind: Backbone, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    head = DenseHead(64, TASKS, hidden_dim=8, depth=0)
    image = torch.rand(3, *image_size)

    picture = predictor_of_resized_tiles(head, blind).picture(image)

    assert picture.shape == (3, grid[0] * 16, grid[1] * 16)


@RESIZED_TILES
def test_resized_tiles_equal_the_resized_image(
    blind: Backbone, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    head = DenseHead(64, TASKS, hidden_dim=8, depth=0)
    image = torch.rand(3, *image_size)
    stretched = blind.preprocess.changed(size=(grid[0] * 16, grid[1] * 16))
    [whole] = Predictor(head, blind, preprocess=stretched)(image, maps="patch")

    [tiled] = predictor_of_resized_tiles(head, blind)(image, maps="patch")

    assert kit.same(tiled["maps"], whole["maps"], 1e-6)
    assert tiled["mass"] == pytest.approx(whole["mass"], rel=1e-5)


# Threads


THREADS = 8


def heads_of_several_kinds() -> list[Head]:
    mass = Task("mass", unit="g", transform=TargetTransform(mean=(3.0,), std=(2.0,)))
    return [
        kit.head(mass),
        kit.head(mass, seed=1),
        CLSGatingHead(64, [Task("height")], mode="query", hidden_dim=16, dropout=0.5),
        DenseHead(64, [Task("cover", kind="dense")], hidden_dim=16),
        FPNHead(64, [Task("count", kind="density")], num_layers=1, fpn_dim=16, layer_indices=(5,)),
    ]


def predict_in_threads(predictor: Predictor, images: list[Tensor]) -> list[dict[str, Any]]:
    """The row of every image, each of a call of its own, several at a time."""

    def predict(image: Tensor) -> dict[str, Any]:
        [row] = predictor(image, maps="patch")
        return row

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(predict, images))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tta": "flip4"}, id="views"),
        pytest.param({"tile": 32, "overlap": 16}, id="tiles"),
    ],
)
def test_threads_get_what_a_lone_call_gets(options: dict[str, Any]) -> None:
    modules = heads_of_several_kinds()
    predictor = Predictor(HeadEnsemble(modules), kit.backbone(), **options)
    images = []
    for number in range(THREADS):
        width = 32 + 16 * (number % 3)
        images.append(kit.images(1, width, seed=number)[0])
    alone = [predictor(image, maps="patch")[0] for image in images]
    for module in modules:
        module.train()

    answers = predict_in_threads(predictor, images * 3)

    for answer, expected in zip(answers, alone * 3, strict=True):
        assert kit.same(answer, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"tta": "flip4"}, id="views"),
        pytest.param({"tile": 32, "overlap": 16}, id="tiles"),
    ],
)
def test_threads_leave_heads_in_the_mode_that_they_had(options: dict[str, Any]) -> None:
    modules = heads_of_several_kinds()
    backbone = kit.backbone()
    predictor = Predictor(HeadEnsemble(modules), backbone, **options)
    for module in modules:
        module.train()

    predict_in_threads(predictor, [*kit.images(THREADS)])

    for module in modules:
        for submodule in module.modules():
            assert submodule.training
    assert not backbone.training


# Tables of predictions


SOIL = Task("soil type", dim=3, kind="classification", labels=("wet clay", "sand", "loam"))
NAMES = ["a.png", "b.png"]
COLUMNS = [
    "leaf",
    "stem",
    "soil type",
    "soil type:wet clay",
    "soil type:sand",
    "soil type:loam",
    "kind",
    "kind:0",
    "kind:1",
    "above",
]


@dataclass
class TablesOfPredictions:
    """Predictions of two images as a frame, and as the rows of the file that the command writes."""

    frame: pd.DataFrame
    rows: dict[str, dict[str, str]]
    unnamed: pd.DataFrame


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> TablesOfPredictions:
    pytest.importorskip("pandas")
    folder = tmp_path_factory.mktemp("tables")
    tasks = [
        Task("leaf", unit="g"),
        Task("stem", unit="g"),
        SOIL,
        Task("kind", dim=2, kind="classification"),
    ]
    above = Composition(("leaf", "stem"), {"above": ("leaf", "stem")}, "sums")  # type: ignore[arg-type]
    torch.manual_seed(0)
    module = PatchMeanHead(64, tasks, 8, compositions=[above])
    head = kit.saved_head(folder / "h.safetensors", module)
    images = kit.write_images(folder, NAMES)
    predictor = Predictor(head, tiny)

    ran = kit.cli("predict", *images, "--heads", head, "--out", folder / "p.csv")
    assert ran.code == 0, ran.err
    with (folder / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    return TablesOfPredictions(
        frame=to_frame(predictor(images, maps="patch"), predictor.tasks, NAMES),
        rows=dict(zip(NAMES, rows, strict=True)),
        unnamed=to_frame(predictor(images), predictor.tasks),
    )


def test_the_frame_has_a_column_per_number_and_class(tables: TablesOfPredictions) -> None:
    assert list(tables.frame.columns) == COLUMNS


def test_the_frame_has_a_row_per_image(tables: TablesOfPredictions) -> None:
    assert list(tables.frame.index) == NAMES


def test_the_rows_of_a_frame_without_names_are_counted(tables: TablesOfPredictions) -> None:
    assert list(tables.unnamed.index) == [0, 1]


def test_the_csv_has_the_columns_of_the_frame(tables: TablesOfPredictions) -> None:
    assert list(tables.rows["a.png"]) == ["image", *COLUMNS]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_class_is_the_one_with_the_largest_share(
    name: str, tables: TablesOfPredictions
) -> None:
    row = tables.rows[name]
    shares = [float(row[f"soil type:{label}"]) for label in SOIL.labels]
    likeliest = SOIL.labels[int(np.argmax(shares))]

    assert row["soil type"] == likeliest
    assert tables.frame.loc[name, "soil type"] == likeliest


@pytest.mark.parametrize("name", NAMES)
def test_a_class_without_a_name_is_the_number_of_the_largest_share(
    name: str, tables: TablesOfPredictions
) -> None:
    row = tables.rows[name]
    likeliest = "1" if float(row["kind:1"]) > 0.5 else "0"

    assert row["kind"] == likeliest
    assert tables.frame.loc[name, "kind"] == likeliest


@pytest.mark.parametrize("column", ["leaf", "kind:1", "above"])
@pytest.mark.parametrize("name", NAMES)
def test_the_csv_and_the_frame_hold_the_same_numbers(
    name: str, column: str, tables: TablesOfPredictions
) -> None:
    expected = tables.frame.loc[name, column]

    assert float(tables.rows[name][column]) == pytest.approx(expected, rel=1e-4)
