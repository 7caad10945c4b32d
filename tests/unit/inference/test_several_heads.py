"""Several heads: ensembles with weights and gates; mappings of heads; predictions from stored tokens."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from torch import nn

from dinoneck import (
    Backbone,
    CheckpointError,
    CLSGatingHead,
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
from dinoneck.inference import VIEWS
from dinoneck.inference.alike import difference

CLASSES = Task("soil", dim=2, kind="classification", labels=("wet", "dry"))
DEPTH, GRAMS = Task("depth", kind="dense", unit="m"), Task("mass", unit="g")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param({"a": 1, "b": None}, {"a": 1}, None, id="none and left out"),
        pytest.param({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "file.a.0.b: 1 / 2", id="in a list"),
        pytest.param({"a": 1}, {}, "file.a: 1 / None", id="left out"),
    ],
)
def test_records_differ_where_their_values_do(
    first: dict[str, Any], second: dict[str, Any], expected: str | None
) -> None:
    assert difference(first, second, "file") == expected


def checkpoint(
    head: nn.Module,
    backbone: Backbone,
    size: tuple[int, int] = kit.SIZE,
    blur: int | None = None,
) -> HeadCheckpoint:
    recipe = backbone.preprocess.changed(size=size, blur=blur)
    return HeadCheckpoint.from_module(head, backbone=backbone, preprocess=recipe)


def next_to_each_other(tiny: Backbone) -> dict[str, Any]:
    """Heads of other layers, one of them without the final norm."""
    return {
        "depth": checkpoint(DenseHead(64, [DEPTH], hidden_dim=8), tiny),
        "mass": checkpoint(kit.head(GRAMS), tiny.with_layers([1, 3], norm=False)),
        "soil": checkpoint(kit.head(CLASSES), tiny.with_layers([3])),
    }


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [
        *kit.write_images(tmp_path / "images", ["0.png", "1.png"]),
        *kit.write_images(tmp_path / "images", ["2.png"], 40, 76, seed=2),
    ]


# Lists: one ensemble
# ------------------------------------------------------------------------------------------


def folds(count: int = 3) -> list[PatchMeanHead]:
    """Heads of one task whose transforms differ: averages are only right in natural units."""
    transforms = [TargetTransform(log1p=True, mean=1.0, std=0.5 + i) for i in range(count)]
    return [kit.head(Task("a", transform=own), seed=i) for i, own in enumerate(transforms)]


def test_weights_are_of_natural_units_and_follow_the_order_of_files(
    tiny: Backbone, tmp_path: Path
) -> None:
    image, heads = kit.images(1)[0], folds()
    for i, head in enumerate(heads):
        kit.saved_head(tmp_path / f"fold-{i}.safetensors", head, backbone=tiny)
    each = [Predictor(head, tiny)(image, maps="patch")[0] for head in heads]
    for source in (tmp_path, heads):
        [result] = Predictor(source, tiny, weights=[0.2, 0.0, 1.8])(image, maps="patch")
        assert result["a"] == pytest.approx(0.1 * each[0]["a"] + 0.9 * each[2]["a"], rel=1e-5)
        picture = 0.1 * each[0]["maps"]["a"] + 0.9 * each[2]["maps"]["a"]
        assert np.allclose(result["maps"]["a"], picture, rtol=1e-5)


def test_gates_come_upright_and_averaged(tiny: Backbone) -> None:
    one, two = (CLSGatingHead(64, [Task("a")], mode="query", hidden_dim=8).eval() for _ in range(2))
    image, views = kit.images(1)[0], VIEWS["d6"]
    seen = [tiny(views.place(tiny.preprocess(image), i)) for i in range(6)]
    gates = [
        [views.undo(head.gate(view)[0], i) for i, view in enumerate(seen)] for head in (one, two)
    ]
    means = [torch.stack(own).mean(dim=0).detach().numpy() for own in gates]
    other = PatchMeanHead(64, [Task("b")])
    for heads, weights in (
        ([one, two], None),
        ([one, two], [3, 1]),
        (HeadEnsemble([one, two, other]), None),
    ):
        [result] = Predictor(heads, tiny, "d6", weights=weights)(image, maps="patch")
        expected = np.average(means, axis=0, weights=weights)
        assert expected.shape == (2, 3) and np.allclose(result["gate"], expected, atol=1e-6)
        assert result["gate"].sum() == pytest.approx(1.0, abs=1e-5) and "gate" not in result["maps"]
    assert "gate" not in Predictor(one, tiny)(image)[0]
    assert "gate" not in Predictor(other, tiny)(image, maps="patch")[0]


def test_only_its_own_grid_is_scored(tiny: Backbone, tmp_path: Path) -> None:
    file = kit.saved_head(
        tmp_path / "h", CLSGatingHead(64, [Task("a")], "mlp", 6, hidden_dim=8), backbone=tiny
    )
    image, upright = kit.images(1)[0], tiny.preprocess.changed(size=(48, 32))
    assert Predictor(file, tiny, tta="flip4")(image)
    for options in ({"tta": "d6"}, {"preprocess": upright}):
        with pytest.raises(CheckpointError, match="2 rows x 3 cols.*3 x 2") as caught:
            Predictor(file, tiny, **options)(image)  # type: ignore[arg-type]
        assert caught.value.step == "pairing"


def test_a_list_is_one_ensemble_of_alike_heads(tiny: Backbone) -> None:
    def head(mean: float = 1.0, **options: Any) -> PatchMeanHead:
        return kit.head(
            Task("mass", unit="g", transform=TargetTransform(mean=mean, std=2.0), **options)
        )

    first, image = checkpoint(head(), tiny), kit.images(1)[0]
    fitted = checkpoint(head(mean=3.0), tiny)
    each = [Predictor(one)(image)[0]["mass"] for one in (first, fitted)]
    assert Predictor([first, fitted])(image)[0]["mass"] == pytest.approx(np.mean(each), rel=1e-5)
    for other, named in (
        (checkpoint(head(activation="relu"), tiny), "config"),
        (checkpoint(head(), load_backbone("dinoneck_tiny", seed=7)), "backbone"),
    ):
        with pytest.raises(CheckpointError, match=named):
            Predictor([first, other])


# Mappings: heads next to each other
# ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tta", ["none", "d6"])
def test_three_heads_share_one_pass_and_keep_their_numbers(
    tiny: Backbone, images: list[Path], tta: Any
) -> None:
    heads = next_to_each_other(tiny)
    alone = {key: Predictor(head, tta=tta, batch_size=8) for key, head in heads.items()}
    predictor = Predictor(heads, tta=tta, batch_size=8)
    assert len(predictor.passes) == 1
    rows = predictor(images, maps="patch")
    assert [list(row) for row in rows] == [list(heads)] * 3
    for key, one in alone.items():
        assert kit.same([row[key] for row in rows], one(images, maps="patch"))
        assert [task.name for task in predictor.tasks[key]] == [key]


@pytest.mark.slow
def test_heads_that_need_other_images_get_a_pass_of_their_own(
    tiny: Backbone, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    heads, seeded = next_to_each_other(tiny), load_backbone("dinoneck_tiny", seed=7)
    heads["large"] = checkpoint(kit.head(Task("mass", unit="kg")), tiny, (64, 64))
    heads["seeded"] = [checkpoint(kit.head(Task("a"), seed=seed), seeded) for seed in range(2)]
    with caplog.at_level(logging.INFO, "dinoneck"):
        predictor = Predictor(heads)
    assert len(predictor.passes) == 3 and "passes of the backbone: 3" in caplog.text
    [row] = predictor(images[0])
    for key, head in heads.items():
        assert kit.same(row[key], Predictor(head)(images[0])[0])


def calls_of_backbone(predictor: Predictor, image: Path) -> int:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hooks = [
        one_pass.backbone.register_forward_pre_hook(count)
        for one_pass in {id(p.backbone): p for p in predictor.passes}.values()
    ]
    predictor(image)
    for hook in hooks:
        hook.remove()
    return calls


def test_a_module_shares_the_pass_of_a_file_that_records_the_recipe_of_the_backbone(
    tiny: Backbone, tmp_path: Path
) -> None:
    [image] = kit.write_images(tmp_path / "images", ["0.png"], 32, 48)
    module = kit.head(GRAMS)
    file = HeadCheckpoint.from_module(kit.head(CLASSES), backbone=tiny, preprocess=tiny.preprocess)
    predictor = Predictor({"module": module, "file": file}, tiny)
    assert len(predictor.passes) == 1
    assert calls_of_backbone(predictor, image) == 1
    [row] = predictor(image)
    assert kit.same(row["module"], Predictor(module, tiny)(image)[0])
    assert kit.same(row["file"], Predictor(file, tiny)(image)[0])


def sharp_and_blurred(tiny: Backbone) -> dict[str, HeadCheckpoint]:
    """Heads whose files differ in the blur of their images."""
    return {
        "sharp": checkpoint(kit.head(GRAMS), tiny),
        "blurred": checkpoint(kit.head(CLASSES), tiny, blur=5),
    }


def test_heads_whose_recipes_differ_in_the_blur_have_a_pass_each(tiny: Backbone) -> None:
    assert len(Predictor(sharp_and_blurred(tiny), tiny).passes) == 2


def test_heads_whose_recipes_differ_in_the_blur_share_a_pass_under_one_blur(
    tiny: Backbone, images: list[Path]
) -> None:
    predictor = Predictor(sharp_and_blurred(tiny), tiny, blur=3)

    assert predictor.preprocess.blur == 3
    assert len(predictor.passes) == 1
    assert calls_of_backbone(predictor, images[0]) == 1


@pytest.mark.parametrize("name", ["sharp", "blurred"])
def test_a_stated_blur_replaces_that_of_each_file(
    name: str, tiny: Backbone, images: list[Path]
) -> None:
    heads = sharp_and_blurred(tiny)

    [row] = Predictor(heads, tiny, blur=3)(images[0])

    [alone] = Predictor(heads[name], tiny, blur=3)(images[0])
    [as_recorded] = Predictor(heads[name], tiny)(images[0])
    assert kit.same(row[name], alone)
    assert not kit.same(row[name], as_recorded)


def with_two_sizes(tiny: Backbone) -> Predictor:
    return Predictor(
        {
            "small": checkpoint(kit.head(), tiny, (32, 48)),
            "large": checkpoint(kit.head(), tiny, (64, 64)),
        },
        tta="flip4",
        batch_size=3,
    )


def test_a_predictor_says_of_its_pass_what_the_first_one_does(tiny: Backbone) -> None:
    predictor = with_two_sizes(tiny)
    assert predictor.backbone is predictor.passes[0].backbone
    assert predictor.preprocess.size == (32, 48)
    assert predictor.tta == "flip4"
    assert len(predictor.views) == 4
    assert predictor.batch_size == 3
    assert predictor.device == torch.device("cpu")
    assert predictor.tiling is None


def test_what_a_predictor_says_of_its_pass_cannot_be_set_beside_it(tiny: Backbone) -> None:
    predictor = with_two_sizes(tiny)
    for name in ("backbone", "preprocess", "tta", "views", "batch_size", "device", "tiling"):
        with pytest.raises(AttributeError, match=name):
            setattr(predictor, name, None)


def test_the_modules_of_a_predictor_are_the_backbones_and_heads_of_all_passes(
    tiny: Backbone,
) -> None:
    depth = DenseHead(64, [DEPTH], hidden_dim=8)
    mass = kit.head(GRAMS)
    seeded = load_backbone("dinoneck_tiny", seed=7)
    predictor = Predictor({"depth": checkpoint(depth, tiny), "mass": checkpoint(mass, seeded)})
    names = [type(module).__name__ for module in predictor.modules]
    assert names == ["Backbone", "HeadEnsemble", "Backbone", "HeadEnsemble"]


# Stored tokens, and the folder of a training
# ------------------------------------------------------------------


def stored(folder: Path, images: list[Path], backbone: Backbone, **options: Any) -> FeatureStore:
    store = FeatureStore.create(folder / "s", backbone=backbone, image_size=kit.SIZE, **options)
    store.extract(images)
    return store


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "views", "tta"),
    [("fp16", "none", "none"), ("bf16", "d6", "d6"), ("fp16", "color20", "flip4")],
)
def test_stored_tokens_give_what_images_give(
    tiny: Backbone, images: list[Path], tmp_path: Path, dtype: Any, views: Any, tta: Any
) -> None:
    heads = next_to_each_other(tiny)
    del heads["mass"]  # the store holds normalised tokens
    store = stored(tmp_path, images, tiny.with_layers([3, 5]), views=views, dtype=dtype)
    rough = 0.03 if dtype == "bf16" else 3e-3
    expected = Predictor(heads, tta=tta)(images, maps="patch")
    found = Predictor(heads, tta=tta, batch_size=2).predict(store, maps="patch")
    for row, own in zip(found, expected, strict=True):
        assert row["depth"]["depth"] == pytest.approx(own["depth"]["depth"], abs=rough)
        assert row["soil"]["soil"] == pytest.approx(own["soil"]["soil"], abs=rough)
        assert np.allclose(
            row["depth"]["maps"]["depth"], own["depth"]["maps"]["depth"], atol=2 * rough
        )
    again = Predictor(heads["soil"], tta=tta).predict(store, [store.ids[2], store.ids[0]])
    assert kit.same(
        [row["soil"] for row in again], [found[i]["soil"]["soil"] for i in (2, 0)], 1e-6
    )


def test_a_norm_that_a_store_lacks_is_applied(
    tiny: Backbone, images: list[Path], tmp_path: Path
) -> None:
    heads = next_to_each_other(tiny)
    store = stored(tmp_path, images, tiny.with_layers([1, 3, 5], norm=False))
    for row, own in zip(Predictor(heads).predict(store), Predictor(heads)(images), strict=True):
        for name in ("mass", "soil"):
            assert row[name][name] == pytest.approx(own[name][name], abs=3e-3)


def test_the_folder_of_a_training_stands_for_its_head(tiny: Backbone, tmp_path: Path) -> None:
    image = kit.images(1)[0]
    (tmp_path / "heads").mkdir()
    for number in range(2):
        checkpoint(kit.head(seed=number), tiny).save(
            tmp_path / "heads" / f"fold-{number}.safetensors"
        )
    for read in (Predictor, HeadCheckpoint.load):
        with pytest.raises(CheckpointError, match=str(tmp_path / "heads")):
            read(tmp_path)
    checkpoint(kit.head(Task("whole")), tiny).save(tmp_path / "head.safetensors")
    assert Predictor(tmp_path)(image) == Predictor(tmp_path / "head.safetensors")(image)
