"""Weights, medians and gates of several heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dinoneck import (
    Backbone,
    CheckpointError,
    CLSGatingHead,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    save_head,
)
from dinoneck.inference import VIEWS


def folds(count: int = 3) -> list[PatchMeanHead]:
    """Heads of one task whose transforms differ: averages are only right in natural units."""
    return [
        PatchMeanHead(64, [Task("a", transform=TargetTransform(log1p=True, mean=1.0, std=0.5 + i))])
        for i in range(count)
    ]


def test_weights_are_of_natural_units_and_follow_the_order_of_files(tiny: Backbone, tmp_path: Path) -> None:
    image, heads = torch.rand(3, 32, 48), folds()
    for i, head in enumerate(heads):
        save_head(tmp_path / f"fold-{i}.safetensors", head, backbone=tiny)
    each = [Predictor(head, tiny)(image, maps="patch")[0] for head in heads]
    weights = [0.2, 0.0, 1.8]
    expected = 0.1 * each[0]["a"] + 0.9 * each[2]["a"]
    for source in (tmp_path, heads):
        [result] = Predictor(source, tiny, weights=weights)(image, maps="patch")
        assert result["a"] == pytest.approx(expected, rel=1e-5)
        picture = 0.1 * each[0]["maps"]["a"] + 0.9 * each[2]["maps"]["a"]
        assert np.allclose(result["maps"]["a"], picture, rtol=1e-5)
    assert Predictor(heads, tiny, weights=[5, 5, 5])(image)[0]["a"] == pytest.approx(
        Predictor(heads, tiny)(image)[0]["a"], rel=1e-6
    )


@pytest.mark.parametrize("count", [3, 4])
def test_medians_are_over_heads_and_means_over_views(tiny: Backbone, count: int) -> None:
    image, heads = torch.rand(3, 32, 48), folds(count)
    images = tiny.preprocess(image)
    flips = [tiny(VIEWS["flip4"].place(images, i)) for i in range(4)]
    views = [np.median([h.predict(flip)["a"].item() for h in heads]) for flip in flips]
    [result] = Predictor(heads, tiny, "flip4", reduce="median")(image, maps="patch")
    assert result["a"] == pytest.approx(np.mean(views), rel=1e-5)
    mean = Predictor(heads, tiny, "flip4")(image)[0]["a"]
    assert mean != pytest.approx(result["a"], rel=1e-5)
    pictures = [Predictor(head, tiny)(image, maps="patch")[0]["maps"]["a"] for head in heads]
    [plain] = Predictor(heads, tiny, reduce="median")(image, maps="patch")
    assert np.allclose(plain["maps"]["a"], np.median(pictures, axis=0), rtol=1e-5)


def test_gates_come_upright_and_averaged(tiny: Backbone) -> None:
    one, two = (CLSGatingHead(64, [Task("a")], mode="query", hidden_dim=8).eval() for _ in range(2))
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    images = tiny.preprocess(image)
    views = VIEWS["d6"]
    gates = [[views.undo(head.gate(tiny(views.place(images, i)))[0], i) for i in range(6)] for head in (one, two)]
    means = [torch.stack(own).mean(dim=0).detach().numpy() for own in gates]
    for heads in ([one, two], HeadEnsemble([one, two]), HeadEnsemble([one, two, PatchMeanHead(64, [Task("b")])])):
        [result] = Predictor(heads, tiny, "d6")(image, maps="patch")
        assert result["gate"].shape == (2, 3)
        assert np.allclose(result["gate"], (means[0] + means[1]) / 2, atol=1e-6)
        assert result["gate"].sum() == pytest.approx(1.0, abs=1e-5)
        assert "gate" not in result["maps"]
    [result] = Predictor([one, two], tiny, "d6", weights=[3, 1])(image, maps="patch")
    assert np.allclose(result["gate"], 0.75 * means[0] + 0.25 * means[1], atol=1e-6)
    assert "gate" not in Predictor(one, tiny)(image)[0]
    assert "gate" not in Predictor(PatchMeanHead(64, [Task("b")]), tiny)(image, maps="patch")[0]


@pytest.fixture
def gated() -> CLSGatingHead:
    return CLSGatingHead(64, [Task("a")], "mlp", 6, hidden_dim=8)


def test_only_its_own_grid_is_scored(gated: CLSGatingHead, tiny: Backbone, tmp_path: Path) -> None:
    prepared = tiny.preprocess.changed(size=(32, 48))
    save_head(tmp_path / "h", gated, backbone=tiny, preprocess=prepared)
    image = torch.rand(3, 32, 48)
    assert Predictor(tmp_path / "h", tiny, tta="flip4")(image)
    for options in ({"tta": "d6"}, {"preprocess": prepared.changed(size=(48, 32))}):
        with pytest.raises(CheckpointError, match="2 rows x 3 cols; it is given 3 x 2") as caught:
            Predictor(tmp_path / "h", tiny, **options)(image)  # type: ignore[arg-type]
        assert caught.value.step == "pairing"
