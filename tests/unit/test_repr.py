"""What a notebook shows of an object says what the object is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import kit

from dinoneck import (
    Backbone,
    Composition,
    FeatureStore,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    SimplePyramid,
    Task,
    TokenGrid,
)
from dinoneck.interop import PyramidEncoder
from dinoneck.losses import UncertaintyWeighting
from dinoneck.points import SparsePyramid
from dinoneck.store import MemoryStore


def two_images(tiny: Backbone, folder: Path, **options: Any) -> FeatureStore:
    """A store of the images a and b."""
    images = kit.write_images(folder, ["a.png", "b.png"])
    store = FeatureStore.create(folder / "store", backbone=tiny, **options)
    store.extract(images)
    return store


def test_the_repr_of_a_head_checkpoint_has_type_tasks_parameters_backbone_and_digest(
    tiny: Backbone,
) -> None:
    head = kit.head()
    checkpoint = HeadCheckpoint.from_module(head, backbone=tiny)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    digest = checkpoint.meta["digest"]
    assert repr(checkpoint) == (
        f"HeadCheckpoint('patch_mean': mass (regression, g); {num_parameters} parameters, "
        f"backbone='dinoneck_tiny', {digest[:19]})"
    )


def test_the_repr_of_a_head_checkpoint_has_the_size_and_views_that_it_records(
    tiny: Backbone,
) -> None:
    preprocess = tiny.preprocess.changed(size=(32, 48))
    checkpoint = HeadCheckpoint.from_module(
        kit.head(), backbone=tiny, preprocess=preprocess, tta="flip4"
    )
    assert ", backbone='dinoneck_tiny', size=(32, 48), tta='flip4', sha256:" in repr(checkpoint)


def test_the_repr_of_the_checkpoint_of_a_neck_has_no_tasks() -> None:
    neck = SimplePyramid(embed_dim=64, out_channels=32)
    assert repr(HeadCheckpoint.from_module(neck)).startswith("HeadCheckpoint('simple_pyramid'; ")


def test_the_repr_of_a_head_checkpoint_stays_when_the_head_is_built_and_read_again(
    tiny: Backbone, tmp_path: Path
) -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=tiny)
    text = repr(checkpoint)
    checkpoint.build()
    checkpoint.save(tmp_path / "head.safetensors")
    assert repr(checkpoint) == text
    assert repr(HeadCheckpoint.load(tmp_path / "head.safetensors")) == text


def test_the_repr_of_a_head_checkpoint_without_a_backbone_says_so() -> None:
    assert ", backbone=None, sha256:" in repr(HeadCheckpoint.from_module(kit.head()))


def test_the_repr_of_a_head_begins_with_its_tasks() -> None:
    crop = Task("crop", kind="classification", dim=3)
    lines = repr(PatchMeanHead(64, [kit.MASS, crop])).splitlines()
    assert lines[0] == "PatchMeanHead("
    assert lines[1] == "  tasks: mass (regression, g), crop (classification of 3)"
    assert lines[2] == "  (scale): TokenScale()"


def test_the_repr_of_a_head_names_its_compositions() -> None:
    parts = [Task("leaf", unit="g"), Task("stem", unit="g")]
    whole = Composition(("leaf", "stem"), {"mass": ("leaf", "stem")}, name="plant")
    head = PatchMeanHead(64, parts, compositions=[whole])
    assert "leaf (regression, g), stem (regression, g), plant (" in repr(head)


def test_the_repr_of_a_predictor_has_tasks_and_backbone(tiny: Backbone) -> None:
    assert repr(Predictor(kit.head(), tiny)) == (
        "Predictor(1 head: mass (regression, g); backbone='dinoneck_tiny')"
    )


def test_the_repr_of_a_predictor_has_the_settings_that_were_made(tiny: Backbone) -> None:
    preprocess = tiny.preprocess.changed(size=(32, 48))
    folds = [kit.head(seed=0), kit.head(seed=1)]
    predictor = Predictor(
        folds, tiny, preprocess=preprocess, tta="flip4", tile=(64, 96), overlap=16
    )
    assert repr(predictor) == (
        "Predictor(2 heads: mass (regression, g); backbone='dinoneck_tiny', size=(32, 48), "
        "tta='flip4', tile=(64, 96), overlap=16)"
    )


def test_the_repr_of_a_predictor_lists_the_heads_of_a_mapping_by_key(tiny: Backbone) -> None:
    crop = PatchMeanHead(64, [Task("crop", kind="classification", dim=3)])
    predictor = Predictor({"grass": kit.head(), "field": crop}, tiny)
    assert repr(predictor).splitlines() == [
        "Predictor(",
        "  grass: 1 head: mass (regression, g); backbone='dinoneck_tiny'",
        "  field: 1 head: crop (classification of 3); backbone='dinoneck_tiny'",
        ")",
    ]


def test_the_repr_of_a_store_has_its_images_views_dtype_backbone_layers_and_size(
    tiny: Backbone, tmp_path: Path
) -> None:
    store = two_images(tiny, tmp_path, views="flips4", image_size=(32, 48))
    path = str(tmp_path / "store")
    assert repr(store) == (
        f"FeatureStore({path!r}: 2 images x 4 views, fp16, backbone='dinoneck_tiny', layers=(5,), "
        "size=(32, 48))"
    )


def test_the_repr_of_a_store_of_images_in_their_own_size_has_none(
    tiny: Backbone, tmp_path: Path
) -> None:
    assert repr(two_images(tiny, tmp_path, image_size=None, resize="crop")).endswith(
        ": 2 images x 1 view, fp16, backbone='dinoneck_tiny', layers=(5,))"
    )


def test_the_repr_of_a_store_in_memory_counts_the_images_that_are_kept(
    tiny: Backbone, tmp_path: Path
) -> None:
    store = two_images(tiny, tmp_path, views="flips4", image_size=(32, 48))
    assert repr(MemoryStore(store, ["a"])) == (
        "MemoryStore(1 image x 4 views, fp16, backbone='dinoneck_tiny', layers=(5,), size=(32, 48))"
    )


def test_the_repr_of_a_backbone_begins_with_its_name_its_geometry_and_its_layers() -> None:
    backbone = kit.backbone(layers=[3, 5], norm=False, frozen=False)
    lines = repr(backbone).splitlines()
    assert lines[0] == "Backbone("
    assert lines[1] == (
        "  'dinoneck_tiny', embed_dim=64, patch_size=16, layers=(3, 5), norm=False, frozen=False"
    )
    assert lines[2] == "  (adapter): TimmAdapter("


def test_the_repr_of_a_token_grid_has_its_options() -> None:
    assert repr(TokenGrid((14, 16), "pad", "center")) == (
        "TokenGrid(patch_size=(14, 16), on_remainder='pad', pad_to='center')"
    )


def test_the_repr_of_a_sparse_pyramid_has_its_options() -> None:
    assert repr(SparsePyramid((2, 8), "mean", masked=False)) == (
        "SparsePyramid(strides=(2, 8), reduce='mean', masked=False)"
    )


def test_the_repr_of_an_uncertainty_weighting_has_the_names_of_its_losses() -> None:
    weighting = UncertaintyWeighting(["mass", "crop"])
    assert repr(weighting) == "UncertaintyWeighting(names=('mass', 'crop'))"


def test_the_repr_of_a_pyramid_encoder_begins_with_channels_and_strides() -> None:
    neck = SimplePyramid(embed_dim=64, out_channels=32, scales=(2.0, 1.0))
    lines = repr(PyramidEncoder(kit.backbone(), neck, features_at=0.5)).splitlines()
    assert lines[0] == "PyramidEncoder("
    assert lines[1] == "  out_channels=32, strides=(16, 32), features_at=0.5"
    assert lines[2] == "  (backbone): Backbone("
