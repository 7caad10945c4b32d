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
    ConfigError,
    DenseHead,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    PyramidHead,
    TargetTransform,
    Task,
    save_head,
)
from dinoneck.data import Preprocessing
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


def test_weights_count_across_layers_and_only_where_a_task_is_known(tiny: Backbone) -> None:
    a, b, c = PatchMeanHead(64, [Task("x")]), PatchMeanHead(64, [Task("x"), Task("y")]), PatchMeanHead(64, [Task("y")])
    image = torch.rand(3, 32, 48)
    each = [Predictor(head, tiny.with_layers([layer]))(image)[0] for head, layer in ((a, 5), (b, 3), (c, 5))]
    [result] = Predictor(HeadEnsemble([a, b, c], weights=[1, 3, 2], layers=[[5], [3], [5]]), tiny)(image)
    assert result["x"] == pytest.approx((each[0]["x"] + 3 * each[1]["x"]) / 4, rel=1e-5)
    assert result["y"] == pytest.approx((3 * each[1]["y"] + 2 * each[2]["y"]) / 5, rel=1e-5)


@pytest.mark.parametrize("count", [3, 4])
def test_medians_are_over_heads_and_means_over_views(tiny: Backbone, count: int) -> None:
    image, heads = torch.rand(3, 32, 48), folds(count)
    images = tiny.preprocess(image)
    views = [np.median([h.predict(tiny(v.apply(images)))["a"].item() for h in heads]) for v in VIEWS["flip4"]]
    [result] = Predictor(heads, tiny, "flip4", reduce="median")(image, maps="patch")
    assert result["a"] == pytest.approx(np.mean(views), rel=1e-5)
    mean = Predictor(heads, tiny, "flip4")(image)[0]["a"]
    assert mean != pytest.approx(result["a"], rel=1e-5)
    pictures = [Predictor(head, tiny)(image, maps="patch")[0]["maps"]["a"] for head in heads]
    [plain] = Predictor(heads, tiny, reduce="median")(image, maps="patch")
    assert np.allclose(plain["maps"]["a"], np.median(pictures, axis=0), rtol=1e-5)


def test_a_median_over_layers_is_no_median_of_medians(tiny: Backbone) -> None:
    heads, layers, image = folds(5), [[5], [5], [3], [5], [3]], torch.rand(3, 32, 48)
    each = [Predictor(head, tiny.with_layers(own))(image)[0]["a"] for head, own in zip(heads, layers, strict=True)]
    together = HeadEnsemble(heads, reduce="median", layers=layers)
    assert Predictor(together, tiny)(image)[0]["a"] == pytest.approx(np.median(each), rel=1e-5)


def test_weights_and_reduces_that_make_no_sense(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no meaning for reduce='median'"):
        Predictor(folds(2), tiny, weights=[1, 2], reduce="median")
    with pytest.raises(ConfigError, match="reduce.* is 'max'"):
        Predictor(folds(2), tiny, reduce="max")  # type: ignore[arg-type]
    heads = [PatchMeanHead(64, [Task("x")]), PatchMeanHead(64, [Task("y")])]
    with pytest.raises(ConfigError, match="knows task 'y' has weight 0"):
        HeadEnsemble(heads, weights=[1, 0])
    save_head(tmp_path / "one.safetensors", heads[0], backbone=tiny)
    for weights in ([1, 2], [-1], [float("nan")], [True], "1"):
        with pytest.raises(ConfigError, match="weights"):
            Predictor(tmp_path / "one.safetensors", tiny, weights=weights)  # type: ignore[arg-type]


def test_gates_come_upright_and_averaged(tiny: Backbone) -> None:
    one, two = (CLSGatingHead(64, [Task("a")], mode="query", hidden_dim=8).eval() for _ in range(2))
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    images = tiny.preprocess(image)
    gates = [[view.undo(head.gate(tiny(view.apply(images)))[:, None])[0, 0] for view in VIEWS["d6"]]
             for head in (one, two)]  # fmt: skip
    means = [torch.stack(views).mean(dim=0).detach().numpy() for views in gates]
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


def test_maps_of_different_strides_are_averaged_at_the_finest(tiny: Backbone) -> None:
    task, image = Task("h", kind="dense"), torch.rand(3, 32, 48)
    fine = PyramidHead(64, [task], {"type": "simple_pyramid", "out_channels": 8})
    coarse = DenseHead(64, [task], hidden_dim=8)
    both = HeadEnsemble([fine, coarse], layers=[[5], [3]])
    [found] = Predictor(both, tiny)(image, maps="patch")
    alone = [HeadEnsemble([fine], layers=[[5]]), HeadEnsemble([coarse], layers=[[3]])]
    large, small = (torch.as_tensor(Predictor(each, tiny)(image, maps="patch")[0]["maps"]["h"]) for each in alone)
    assert large.shape[-2:] != small.shape[-2:]
    resized = torch.nn.functional.interpolate(small[None], large.shape[-2:], mode="bilinear")[0]
    torch.testing.assert_close(torch.as_tensor(found["maps"]["h"]), (large + resized) / 2, rtol=1e-4, atol=1e-5)


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


def test_images_prepared_for_other_patches(tiny: Backbone) -> None:
    other = Preprocessing(patch_size=14, size=(112, 112))
    with pytest.raises(CheckpointError, match="14x14 px .* the backbone has 16x16") as caught:
        Predictor(PatchMeanHead(64, [Task("a")]), tiny, preprocess=other)
    assert caught.value.step == "pairing"
