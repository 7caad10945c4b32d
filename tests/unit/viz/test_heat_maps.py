"""Heat maps: cell (r, c) is the colour of its value and lies over patch (r, c)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from tests.unit.viz.drawn import captions, check_cells, check_no_overlap

from dinoneck import DataError, DenseHead, PatchMeanHead, Predictor, ShapeError, Task, load_backbone
from dinoneck.data import Preprocessing
from dinoneck.viz import heat_figure


def photo(rows: int, cols: int, patch: int = 16) -> np.ndarray:
    return np.random.default_rng(rows * cols).integers(0, 256, (rows * patch, cols * patch, 3), dtype=np.uint8)


def result(values: np.ndarray, name: str = "mass") -> dict[str, Any]:
    """An index image as a map (1, rows, cols) or (outputs, rows, cols)."""
    maps = values[None] if values.ndim == 2 else values
    totals = maps.sum(axis=(1, 2))
    return {name: float(totals[0]) if len(totals) == 1 else totals, "maps": {name: maps}}


@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (6, 2), (1, 1), (1, 16)])
def test_an_index_image_lies_patch_over_patch(rows: int, cols: int) -> None:
    index = np.arange(rows * cols, dtype=float).reshape(rows, cols)
    figure = heat_figure(photo(rows, cols), [result(index)], units={"mass": "g"}, alpha=1.0)
    overlay = figure.axes[1]
    assert tuple(overlay.images[-1].get_extent()) == (0, cols * 16, rows * 16, 0)
    shares = index / index.max() if index.max() else index + 0.5
    check_cells(figure, overlay, colormaps["viridis"](shares)[..., :3], (rows * 16, cols * 16))
    check_no_overlap(figure)


def test_a_padded_photo_is_drawn_as_the_backbone_saw_it() -> None:
    backbone = load_backbone("dinoneck_tiny")
    recipe = Preprocessing(size=(48, 80), fit="pad")
    head = PatchMeanHead(64, [Task("mass", unit="g")])
    tall = torch.rand(3, 100, 40, generator=torch.Generator().manual_seed(0))
    predictor = Predictor(head, backbone, preprocess=recipe)
    [found] = predictor(tall, maps=True)
    figure = heat_figure(recipe.picture(tall), [found], tasks=predictor.tasks, alpha=1.0)
    values = found["maps"]["mass"][0]
    shares = (values - values.min()) / (values.max() - values.min())
    check_cells(figure, figure.axes[1], colormaps["viridis"](shares)[..., :3], (48, 80))
    assert figure.axes[2].get_xlabel() == "mass of one patch [g]"


def test_columns_are_tasks_and_outputs_with_units_labels_and_truths() -> None:
    tasks = [
        Task("mass", kind="density", unit="g"),
        Task("parts", dim=2, kind="dense", labels=("clover", "dead"), unit="%"),
    ]
    backbone = load_backbone("dinoneck_tiny")
    predictor = Predictor(DenseHead(64, tasks, hidden_dim=4), backbone)
    photos = [torch.rand(3, 32, 48) for _ in range(6)]
    found = predictor(photos, maps=True)
    truths = [{"mass": 12.0, "parts": np.array([1.0, np.nan])}] + [{}] * 5
    figure = heat_figure(photos, found, tasks=predictor.tasks, truths=truths, names=list("abcdef"))
    maps = [axes for axes in figure.axes if len(axes.images) == 2]
    assert len(maps) == 18
    for column, (name, output) in enumerate([("mass", 0), ("parts", 0), ("parts", 1)]):
        own = maps[6 * column : 6 * column + 6]
        values = [one["maps"][name][output] for one in found]
        assert {axes.images[1].get_clim() for axes in own} == {(np.min(values), np.max(values))}
        for axes, cells in zip(own, values, strict=True):
            np.testing.assert_allclose(axes.images[1].get_array(), cells)
    assert captions(maps[0]) == [f"mass {found[0]['mass']:.3g} g (true 12)"]
    assert captions(maps[6]) == [f"parts: clover {found[0]['parts'][0]:.3g} % (true 1)"]
    assert captions(maps[12]) == [f"parts: dead {found[0]['parts'][1]:.3g} %"]
    assert captions(maps[1]) == [f"mass {found[1]['mass']:.3g} g"]
    labels = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert labels == ["mass of one patch [g]", "parts: clover of one patch [%]", "parts: dead of one patch [%]"]
    check_no_overlap(figure)
    chosen = heat_figure(photos, found, units={"parts": "share"}, tasks=["parts"])
    labels = [axes.get_xlabel() for axes in chosen.axes if axes.get_xlabel()]
    assert labels == ["parts: 0 of one patch [share]", "parts: 1 of one patch [share]"]


def test_tasks_without_maps_are_left_out_of_a_predictors_tasks() -> None:
    figure = heat_figure(photo(2, 2), [result(np.eye(2))], tasks=[Task("height"), Task("mass", unit="g")])
    assert [axes.get_xlabel() for axes in figure.axes][-1] == "mass of one patch [g]"


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, 1e-12, 1e9])
def test_equal_values_are_the_middle_of_the_bar(value: float) -> None:
    figure = heat_figure(photo(2, 2), [result(np.full((2, 2), value))], alpha=1.0)
    low, high = figure.axes[1].images[1].get_clim()
    assert low < value < high
    expected = np.broadcast_to(colormaps["viridis"](0.5)[:3], (2, 2, 3))
    check_cells(figure, figure.axes[1], expected, (32, 32), dpi=120)
    check_no_overlap(figure)


@pytest.mark.parametrize("span", [(1.0, 1.0001), (0.0, 3e-7), (-1e6, 2e6), (1e-4, 9e-4)])
@pytest.mark.parametrize("size", [(1, 20), (20, 1), (1, 1), (4, 6)])
def test_the_bars_numbers_keep_apart(span: tuple[float, float], size: tuple[int, int]) -> None:
    cells = np.linspace(*span, max(2, size[0] * size[1]))[: size[0] * size[1]].reshape(1, *size)
    cells = np.stack([cells[0], cells[0][::-1], cells[0] * 2])
    figure = heat_figure(photo(*size), [result(cells)], units={"mass": "kilograms per square metre and year"})
    check_no_overlap(figure)
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels() if text.get_text()]
    assert len(ticks) == len(set(ticks))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    good = result(np.eye(2))
    with pytest.raises(DataError, match="maps=True"):
        heat_figure(photo(2, 2), [{"mass": 1.0}])
    with pytest.raises(DataError, match="maps=True"):
        heat_figure(photo(2, 2), [{"mass": 1.0, "maps": None}])
    with pytest.raises(DataError, match="a value of 'mass' is 'much'; expected one number"):
        heat_figure(photo(2, 2), [good], truths=[{"mass": "much"}])
    with pytest.raises(DataError, match="1 photos with 2 results"):
        heat_figure(photo(2, 2), [good, good])
    with pytest.raises(DataError, match="1 photos with 2 truths"):
        heat_figure(photo(2, 2), [good], truths=[{}, {}])
    with pytest.raises(DataError, match=r"maps of 'mass' of photo 1 hold nan \(1 of 4"):
        heat_figure(photo(2, 2), [result(np.array([[1.0, np.nan], [0, 0]]))])
    with pytest.raises(ShapeError, match=r"expected \(outputs, rows, cols\)"):
        heat_figure(photo(2, 2), [{"mass": 1.0, "maps": {"mass": np.eye(2)}}])
    with pytest.raises(DataError, match="no map of 'mas'.*Did you mean 'mass'"):
        heat_figure(photo(2, 2), [good], tasks=["mas"])
    with pytest.raises(DataError, match="same outputs for every photo"):
        heat_figure([photo(2, 2)] * 2, [good, result(np.zeros((2, 2, 2)))])
    with pytest.raises(DataError, match="a value of 'mass' has 1 outputs, its map more"):
        heat_figure(photo(2, 2), [{"mass": 1.0, "maps": {"mass": np.zeros((2, 2, 2))}}])
    with pytest.raises(DataError, match="301 pictures beside each other; one figure takes 200"):
        heat_figure(photo(2, 2), [{"mass": np.zeros(300), "maps": {"mass": np.zeros((300, 2, 2))}}])
    with pytest.raises(DataError, match="no maps to draw"):
        heat_figure(photo(2, 2), [{"maps": {}}])
    with pytest.raises(DataError, match="there is no photo"):
        heat_figure(tmp_path / "none.jpg", [good])


def test_impossible_values_are_not_drawn() -> None:
    """Patches of a mass below 0 are drawn at 0, and the bar states it; a map without them has a plain bar."""
    task = Task("mass", unit="g", minimum=0)
    below, above = np.array([[-58.0, 10.0, 83.0]]), np.array([[0.0, 10.0, 83.0]])
    clipped = heat_figure(photo(1, 3), [result(below)], tasks=[task], alpha=1.0)
    plain = heat_figure(photo(1, 3), [result(above)], tasks=[task], alpha=1.0)
    np.testing.assert_allclose(clipped.axes[1].images[-1].get_array(), above)
    assert clipped.axes[1].images[-1].get_clim() == (0.0, 83.0)
    assert [figure.axes[2].get_xlabel() for figure in (clipped, plain)] == [
        "mass of one patch [g], clipped at 0", "mass of one patch [g]",
    ]  # fmt: skip
