"""Lists of heads, mappings of heads, and predictions from stored tokens."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.kit import same
from torch import nn

from dinoneck import (
    Backbone,
    CheckpointError,
    ConfigError,
    DenseHead,
    FeatureStore,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_backbone,
)
from dinoneck.inference import passes

SIZE = (32, 48)
CLASSES = Task("soil", dim=2, kind="classification", labels=("wet", "dry"))


def checkpoint(head: nn.Module, backbone: Backbone, **options: Any) -> HeadCheckpoint:
    preprocess = options.pop("preprocess", backbone.preprocess.changed(size=SIZE))
    return HeadCheckpoint.from_module(head, backbone=backbone, preprocess=preprocess, **options)


def next_to_each_other(tiny: Backbone) -> dict[str, HeadCheckpoint]:
    """Heads of other layers, one of them without the final norm."""
    return {
        "depth": checkpoint(DenseHead(64, [Task("depth", kind="dense", unit="m")], hidden_dim=8), tiny),
        "mass": checkpoint(PatchMeanHead(64, [Task("mass", unit="g")], 8), tiny.with_layers([1, 3], norm=False)),
        "soil": checkpoint(PatchMeanHead(64, [CLASSES], 8), tiny.with_layers([3])),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(3):
        pixels = np.random.RandomState(i).randint(0, 255, (40, 60 + 8 * i, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_three_heads_share_one_pass_and_keep_their_numbers(tiny: Backbone, folder: Path, tta: Any) -> None:
    heads, images = next_to_each_other(tiny), sorted((folder / "images").iterdir())
    alone = {key: Predictor(head, tta=tta, batch_size=8)(images, maps="patch") for key, head in heads.items()}
    predictor, calls = Predictor(heads, tta=tta, batch_size=8), []
    predictor.passes[0].backbone.register_forward_hook(lambda *_: calls.append(1))
    rows = predictor(images, maps="patch")
    assert [list(row) for row in rows] == [list(heads)] * 3
    for key in heads:
        assert all(same(row[key], lone) for row, lone in zip(rows, alone[key], strict=True))
    assert len(predictor.passes) == 1
    single = Predictor(heads["soil"], tta=tta, batch_size=8)
    single.backbone.register_forward_hook(lambda *_: calls.append(-1))
    single(images)
    assert sum(calls) == 0, "as many passes as for one head"
    assert {key: [task.name for task in own] for key, own in predictor.tasks.items()} == {
        "depth": ["depth"], "mass": ["mass"], "soil": ["soil"]}  # fmt: skip


def test_heads_that_need_other_images_get_a_pass_of_their_own(
    tiny: Backbone, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: dict[str, Any] = next_to_each_other(tiny)
    heads["large"] = checkpoint(
        PatchMeanHead(64, [Task("mass", unit="kg")], 8), tiny, preprocess=tiny.preprocess.changed(size=(64, 64))
    )
    seeded = load_backbone("dinoneck_tiny", seed=7)
    heads["seeded"] = [checkpoint(PatchMeanHead(64, [Task("a")], 8), seeded) for _ in range(2)]
    image = folder / "images" / "0.png"
    with caplog.at_level(logging.INFO, "dinoneck"):
        predictor = Predictor(heads)
    assert len(predictor.passes) == 3
    assert "passes of the backbone: 3" in caplog.text
    decoded = []
    import dinoneck.inference.predictor as module

    own = module.read_pixels
    monkeypatch.setattr(module, "read_pixels", lambda image: decoded.append(image) or own(image))
    [row] = predictor(image)
    assert decoded == [image]
    for key, head in heads.items():
        assert same(row[key], Predictor(head)(image)[0])


def test_a_list_is_one_ensemble_of_alike_heads(tiny: Backbone) -> None:
    def head(**options: Any) -> PatchMeanHead:
        task = Task("mass", **{"unit": "g", "transform": TargetTransform(mean=1.0, std=2.0), **options})
        return PatchMeanHead(64, [task], 8)

    first, image = checkpoint(head(), tiny), torch.rand(3, *SIZE)
    fitted = checkpoint(head(transform=TargetTransform(mean=3.0, std=0.5)), tiny)
    each = [Predictor(one)(image)[0]["mass"] for one in (first, fitted)]
    assert Predictor([first, fitted])(image)[0]["mass"] == pytest.approx(np.mean(each), rel=1e-5)
    for other, named in (
        (checkpoint(DenseHead(64, [Task("mass", kind="dense", unit="g")], 8), tiny), "mass"),
        (checkpoint(PatchMeanHead(64, [Task("mass", unit="g")], 16), tiny), "config"),
        (checkpoint(head(activation="relu"), tiny), "config"),
        (checkpoint(head(), tiny.with_layers([3])), "layers"),
        (checkpoint(head(), load_backbone("dinoneck_tiny", seed=7)), "backbone"),
    ):
        with pytest.raises((CheckpointError, ConfigError), match=named):
            Predictor([first, other])
    for task in (Task("mass", unit="kg"), Task("mass", dim=2, unit="g"), Task("mass", kind="ratio", dim=2)):
        with pytest.raises(ConfigError, match="disagree about task 'mass'"):
            Predictor([first, checkpoint(PatchMeanHead(64, [task], 8), tiny)])
        with pytest.raises(ConfigError, match="disagree about task 'mass'"):
            HeadEnsemble([head(), PatchMeanHead(64, [task], 8)])


@pytest.mark.parametrize(("dtype", "views", "tta"), [("fp16", "none", "none"), ("bf16", "d6", "d6"),
                                                    ("fp16", "color20", "flip4")])  # fmt: skip
def test_stored_tokens_give_what_images_give(tiny: Backbone, folder: Path, dtype: Any, views: Any, tta: Any) -> None:
    heads: Any = {**next_to_each_other(tiny)}
    del heads["mass"]  # the store holds normalised tokens
    backbone = tiny.with_layers([3, 5])
    store = FeatureStore.create(folder / "s", backbone=backbone, views=views, image_size=SIZE, dtype=dtype)
    store.extract(folder / "images")
    images = sorted((folder / "images").iterdir())
    rough = 0.03 if dtype == "bf16" else 3e-3
    expected = Predictor(heads, tta=tta)(images, maps="patch")
    found = Predictor(heads, tta=tta, batch_size=2).predict(store, maps="patch")
    assert len(found) == len(images)
    for row, own in zip(found, expected, strict=True):
        assert row["depth"]["depth"] == pytest.approx(own["depth"]["depth"], abs=rough)
        assert row["soil"]["soil"] == pytest.approx(own["soil"]["soil"], abs=rough)
        assert np.allclose(row["depth"]["maps"]["depth"], own["depth"]["maps"]["depth"], atol=2 * rough)
    order = [store.ids[2], store.ids[0]]
    again = Predictor(heads["soil"], tta=tta).predict(store, order)
    assert [row["soil"].tolist() for row in again] == [
        pytest.approx(found[i]["soil"]["soil"].tolist(), abs=1e-6) for i in (2, 0)
    ]


def test_a_norm_that_a_store_lacks_is_applied(tiny: Backbone, folder: Path) -> None:
    heads = next_to_each_other(tiny)
    backbone = tiny.with_layers([1, 3, 5], norm=False)
    store = FeatureStore.create(folder / "s", backbone=backbone, image_size=SIZE)
    store.extract(folder / "images")
    images = sorted((folder / "images").iterdir())
    for row, own in zip(Predictor(heads).predict(store), Predictor(heads)(images), strict=True):
        assert row["mass"]["mass"] == pytest.approx(own["mass"]["mass"], abs=3e-3)
        assert row["soil"]["soil"] == pytest.approx(own["soil"]["soil"], abs=3e-3)


def test_what_a_pass_reads_is_one_look_at_the_weights(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, looks = Predictor(PatchMeanHead(64, [Task("a")]), tiny, batch_size=1), []
    own = passes.weight_hashes._versions
    monkeypatch.setattr(passes.weight_hashes, "_versions", lambda tensors: looks.append(1) or own(tensors))
    predictor([torch.rand(3, 32, 32) for _ in range(4)])
    assert len(looks) == 1


def test_the_folder_of_a_training_stands_for_its_head(tiny: Backbone, folder: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", torch.rand(3, *SIZE)
    (run / "heads").mkdir(parents=True)
    for number in range(2):
        checkpoint(PatchMeanHead(64, [Task("a")], 8), tiny).save(run / "heads" / f"fold-{number}.safetensors")
    for read in (Predictor, HeadCheckpoint.load):
        with pytest.raises(CheckpointError, match=str(run / "heads")):
            read(run)
    checkpoint(PatchMeanHead(64, [Task("whole")], 8), tiny).save(run / "head.safetensors")
    assert Predictor(run)(image) == Predictor(run / "head.safetensors")(image)
    assert len(Predictor(run / "heads").tasks) == 1
