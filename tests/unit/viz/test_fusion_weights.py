"""Fusion weights: bars as high as the weights, labelled by the blocks they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.viz.drawn import check_no_overlap

from dinoneck import (
    ConfigError,
    DataError,
    FPNHead,
    HeadEnsemble,
    LayerGrouper,
    PatchMeanHead,
    Task,
    ViTFPN,
)
from dinoneck.viz import fusion_figure


def bars(axes: Any) -> tuple[list[str], list[float]]:
    return [label.get_text() for label in axes.get_xticklabels()], [bar.get_height() for bar in axes.patches]


def test_softmax_weights_are_the_bars() -> None:
    neck = ViTFPN(16, 4, 8, num_levels=2, layer_groups=[[3, 0, 1], [2]], fusion="softmax")
    with torch.no_grad():
        neck.grouper.fusion_weights["0"].copy_(torch.tensor([2.0, 1.0, 3.0]).log())
    figure = fusion_figure(neck, layers=(2, 5, 8, 11))
    labels, heights = bars(figure.axes[0])
    assert labels == ["11", "2", "5"]
    np.testing.assert_allclose(heights, [2 / 6, 1 / 6, 3 / 6], atol=1e-6)
    assert bars(figure.axes[1]) == (["8"], [1.0])
    assert [axes.get_title() for axes in figure.axes] == ["group 0", "group 1"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"block"}
    check_no_overlap(figure)


def test_a_mean_is_even_and_unknown_blocks_are_numbered_by_position() -> None:
    figure = fusion_figure(LayerGrouper(16, 5, 8, num_groups=2))
    assert [bars(axes)[0] for axes in figure.axes] == [["0", "1", "2"], ["3", "4"]]
    np.testing.assert_allclose(bars(figure.axes[0])[1], 1 / 3, atol=1e-6)
    assert figure.axes[0].get_xlabel() == "position of the layer"


def test_heads_know_their_blocks_and_ensembles_show_every_member() -> None:
    heads = [
        FPNHead(16, [Task("mass")], 4, layer_indices=blocks, fpn_dim=8, num_levels=1, fusion="softmax")
        for blocks in ([2, 5, 8, 11], [8, 9, 10, 11])
    ]
    assert bars(fusion_figure(heads[0]).axes[0])[0] == ["2", "5", "8", "11"]
    figure = fusion_figure(HeadEnsemble.from_heads(heads))
    assert [axes.get_title() for axes in figure.axes] == ["heads.0.neck, group 0", "heads.1.neck, group 0"]
    assert [bars(axes)[0] for axes in figure.axes] == [["2", "5", "8", "11"], ["8", "9", "10", "11"]]
    check_no_overlap(figure)


def test_what_has_no_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="PatchMeanHead holds no LayerGrouper"):
        fusion_figure(PatchMeanHead(16, [Task("mass")]))
    neck = ViTFPN(16, 4, 8, fusion="softmax")
    with pytest.raises(ConfigError, match=r"layers are \(1, 2\); this LayerGrouper reads 4"):
        fusion_figure(neck, layers=(1, 2))
    with pytest.raises(ConfigError, match="fusion='pixel'"):
        fusion_figure(ViTFPN(16, 4, 8, fusion="pixel"))
    with torch.no_grad():
        neck.grouper.fusion_weights["0"].fill_(torch.nan)
    with pytest.raises(DataError, match="not finite"):
        fusion_figure(neck)
