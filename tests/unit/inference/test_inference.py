"""Views, presets and the predictor."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import (
    Backbone,
    CheckpointError,
    DenseHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.inference import VIEWS


def test_maps_of_all_views_come_back_to_the_image(blind: Backbone) -> None:
    head = PatchMeanHead(64, [Task("a"), Task("b", transform=TargetTransform(area=2.0))])
    image = torch.rand(3, 32, 80)
    plain = Predictor(head, blind)(image, maps="patch")[0]
    for tta in ("flip4", "d6"):
        averaged = Predictor(head, blind, tta=tta)(image, maps="patch")[0]  # type: ignore[arg-type]
        assert averaged["maps"]["a"].shape == (1, 2, 5)
        for name in ("a", "b"):
            assert np.allclose(averaged["maps"][name], plain["maps"][name], atol=1e-5)
            assert averaged[name] == pytest.approx(plain[name], abs=1e-5)


def test_views_are_averaged_in_natural_units(tiny: Backbone) -> None:
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("a", transform=TargetTransform(log1p=True, mean=1.0, std=2.0), activation="relu")])
    image = torch.rand(3, 32, 48)
    images = tiny.preprocess(image)
    each = [head.predict(tiny(VIEWS["d6"].place(images, i)))["a"].item() for i in range(6)]
    assert Predictor(head, tiny, tta="d6")(image)[0]["a"] == pytest.approx(np.mean(each), rel=1e-5)


@pytest.fixture
def saved(tiny: Backbone, tmp_path: Path) -> Path:
    """A folder with the heads of three folds."""
    prep = tiny.preprocess.changed(size=(32, 64))
    for fold in range(3):
        torch.manual_seed(fold)
        head = PatchMeanHead(64, [Task("a", unit="g"), Task("s", dim=2, kind="classification", labels=("x", "y"))])
        save_head(tmp_path / f"fold-{fold}.safetensors", head, backbone=tiny, preprocess=prep)
    return tmp_path


def test_from_files_alone(saved: Path, tiny: Backbone, tmp_path: Path) -> None:
    image = np.random.RandomState(0).randint(0, 255, (50, 90, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "p.png")
    heads = [HeadCheckpoint.load(file).build() for file in sorted(saved.glob("*.safetensors"))]
    tokens = tiny(tiny.preprocess(image, size=(32, 64)))
    expected = np.mean([head.predict(tokens)["a"].item() for head in heads])
    shares = np.mean([head.predict(tokens)["s"][0].numpy() for head in heads], axis=0)
    for source in (saved, str(saved), sorted(saved.glob("*.safetensors"))):
        [result] = Predictor(source)(tmp_path / "p.png")
        assert result["a"] == pytest.approx(expected, rel=1e-5)
        assert np.allclose(result["s"], shares, atol=1e-6)
        assert "maps" not in result


def test_images_are_normalised_as_the_file_records(tiny: Backbone, tmp_path: Path) -> None:
    head, image = PatchMeanHead(64, [Task("a")]), torch.rand(3, 32, 64)
    own = tiny.preprocess.changed(size=(32, 64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    save_head(tmp_path / "h.safetensors", head, backbone=tiny, preprocess=own)
    expected = head.predict(tiny(own(image)))["a"].item()
    assert Predictor(tmp_path / "h.safetensors")(image)[0]["a"] == pytest.approx(expected, rel=1e-5)
    assert head.predict(tiny(tiny.preprocess(image)))["a"].item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_padding_is_left_out_of_the_mean_of_a_map(
    blind: Backbone, patchwork: Callable[[int, int], torch.Tensor], tta: Any
) -> None:
    padded = blind.preprocess.changed(size=(64, 64), resize="pad")  # 2 x 4 patches of image in a grid of 4 x 4
    head = DenseHead(64, [Task("a", kind="dense")], hidden_dim=8, depth=0)
    [result] = Predictor(head, blind, tta, preprocess=padded)(patchwork(2, 4), maps="patch")
    [alone] = Predictor(head, blind, tta)(patchwork(2, 4), maps="patch")
    assert result["maps"]["a"].shape == (1, 4, 4)
    assert result["a"] == pytest.approx(result["maps"]["a"][:, :2].mean(), rel=1e-5)
    assert result["a"] == pytest.approx(alone["a"], rel=1e-5)
    assert result["a"] != pytest.approx(result["maps"]["a"].mean(), rel=1e-2)


def test_one_pass_for_heads_of_several_layers(tiny: Backbone, tmp_path: Path) -> None:
    shallow, deep = tiny.with_layers([1]), tiny.with_layers([2, 4])
    prep = tiny.preprocess.changed(size=(32, 32))
    heads = [PatchMeanHead(64, [Task("a")]), PatchMeanHead(64, [Task("a"), Task("b")])]
    together = HeadEnsemble(heads, layers=[[1], [2, 4]])
    save_head(tmp_path / "h.safetensors", together, backbone=tiny.with_layers([1, 2, 4]), preprocess=prep)
    predictor = Predictor(tmp_path)
    assert predictor.backbone.layers == (1, 2, 4)
    image = torch.rand(3, 32, 32)
    images = prep(image)
    a0, both = heads[0].predict(shallow(images)), heads[1].predict(deep(images))
    [result] = predictor(image, maps="patch")
    assert result["a"] == pytest.approx((a0["a"].item() + both["a"].item()) / 2, rel=1e-5)
    assert result["b"] == pytest.approx(both["b"].item(), rel=1e-5)
    assert result["maps"]["a"].shape == (1, 2, 2)
    values = load_head(tmp_path / "h.safetensors").predict(tiny.with_layers([1, 2, 4])(images))  # type: ignore[operator]
    assert values["a"].item() == pytest.approx(result["a"], rel=1e-5)


def test_images_of_different_sizes_keep_their_order(tiny: Backbone) -> None:
    predictor = Predictor(PatchMeanHead(64, [Task("a")]), tiny, batch_size=3)
    images = [torch.rand(3, 32, 32), torch.rand(3, 48, 32), torch.rand(3, 32, 32), torch.rand(3, 16, 16)]
    together = [row["a"] for row in predictor(images)]
    assert together == pytest.approx([predictor(image)[0]["a"] for image in images], rel=1e-5)


def test_a_head_that_is_there_twice_is_refused(saved: Path, tmp_path: Path) -> None:
    """A copy in the folder would have twice the weight of the others."""
    first, second = sorted(saved.glob("*.safetensors"))[:2]
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in (first, second):
        (folder / file.name).write_bytes(file.read_bytes())
    assert Predictor(folder).tasks
    copy = folder / f"{first.stem} (copy).safetensors"
    copy.write_bytes(first.read_bytes())
    loaded = HeadCheckpoint.load(first)
    for heads, named in ((folder, copy.name), ([first, second, first], first.name), ([first, loaded], first.name)):
        with pytest.raises(CheckpointError, match=re.escape(named)):
            Predictor(heads)


def test_half_precision_backbones_predict_with_float32_heads(tmp_path: Path) -> None:
    torch.manual_seed(3)
    half = load_backbone("dinoneck_tiny", dtype=torch.bfloat16)
    head, image = PatchMeanHead(64, [Task("x")]), torch.rand(3, 32, 48)
    save_head(tmp_path / "h.safetensors", head, backbone=half)
    rebuilt = Predictor(tmp_path / "h.safetensors")
    assert next(rebuilt.backbone.parameters()).dtype == torch.bfloat16
    exact = Predictor(head, load_backbone("dinoneck_tiny"))(image)[0]["x"]
    assert rebuilt(image)[0]["x"] == pytest.approx(exact, abs=0.02)
    assert rebuilt(image)[0]["x"] == Predictor(head, half)(image)[0]["x"]


def test_the_probe_may_decide_across_libraries(tmp_path: Path) -> None:
    from dinoneck import wrap_backbone

    torch.manual_seed(4)
    trained = wrap_backbone(load_backbone("dinoneck_tiny", layers=[5, 2]).adapter.model, layers=[3])
    head, image = PatchMeanHead(64, [Task("x")]), torch.rand(3, 32, 48)
    save_head(tmp_path / "h.safetensors", head, backbone=trained, preprocess=trained.preprocess)
    other = load_backbone("dinoneck_tiny", source="transformers")
    with pytest.raises(CheckpointError, match="probe=True"):
        Predictor(tmp_path / "h.safetensors", other)
    [value] = Predictor(tmp_path / "h.safetensors", other, probe=True)(image)
    assert value["x"] == pytest.approx(Predictor(head, trained)(image)[0]["x"], abs=1e-5)
    with pytest.raises(CheckpointError, match="gives other outputs"):
        Predictor(tmp_path / "h.safetensors", load_backbone("dinoneck_tiny", seed=1), probe=True)
