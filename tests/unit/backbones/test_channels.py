"""Backbones that take other channels than red, green and blue, from the image to the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from dinoneck import (
    Backbone,
    BackboneError,
    ConfigError,
    DataError,
    FeatureStore,
    PatchMeanHead,
    Predictor,
    Task,
    save_head,
    wrap_backbone,
)
from dinoneck.data import Preprocessing, read_image_size
from dinoneck.export import export_model
from dinoneck.training import LiveTokens, fit

# rasterio and affine warn of each other
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

MEANS = (0.1, 0.3, 0.45, 0.2, 0.6)
STDS = (0.2, 0.25, 0.15, 0.3, 0.1)


def backbone_of(channels: int, **options: Any) -> Backbone:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=24,
        patch_size=8,
        in_chans=channels,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=0,
        dynamic_img_size=True,
    )
    options = {"mean": MEANS[:channels], "std": STDS[:channels], **options}
    return wrap_backbone(model, **options)


def bands_of(channels: int, number: int = 0, *, rows: int = 24, cols: int = 40) -> Any:
    random = np.random.default_rng(number)
    return random.integers(0, 256, (rows, cols, channels), dtype=np.uint8)


def normalised(bands: Any) -> torch.Tensor:
    """In float64, written out."""
    channels = bands.shape[-1]
    unit = bands.astype(np.float64) / 255
    values = (unit - np.array(MEANS[:channels])) / np.array(STDS[:channels])
    return torch.from_numpy(values).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", ["array", "tensor", "floats", "uint16"])
def test_channels_are_normalised_each_with_its_own(channels: int, kind: str) -> None:
    bands = bands_of(channels)
    images = {
        "array": bands,
        "tensor": torch.from_numpy(bands).permute(2, 0, 1),
        "floats": bands.astype(np.float32) / 255,
        "uint16": bands.astype(np.uint16) * 257,
    }
    prepared = backbone_of(channels).preprocess(images[kind], bits=16)
    assert prepared.shape == (1, channels, 24, 40)
    assert (prepared[0] - normalised(bands)).abs().max() < 1e-5


@pytest.mark.parametrize("resize", ["pad", "crop", "stretch"])
def test_every_way_of_resizing_keeps_the_channels_apart(resize: str) -> None:
    bands = np.zeros((20, 30, 4), dtype=np.uint8)
    bands[..., 2] = 255
    prepared = backbone_of(4).preprocess(bands, size=(16, 24), resize=resize)
    expected = [(value - mean) / std for value, mean, std in zip((0, 0, 1, 0), MEANS, STDS)]  # noqa: B905
    middle = prepared[0, :, 8, 12]
    assert middle.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_trained_saved_and_loaded_it_predicts_what_the_head_says(
    channels: int, tmp_path: Path
) -> None:
    backbone = backbone_of(channels)
    images = [bands_of(channels, number) for number in range(6)]
    head = PatchMeanHead(24, [Task("y")])
    ids = [str(number) for number in range(6)]
    source = LiveTokens(backbone, images, ids)
    fit(head, source, {"y": dict(zip(ids, range(6), strict=True))}, ids=ids, epochs=2, batch_size=3)
    save_head(tmp_path / "h.safetensors", head, backbone=backbone, preprocess=backbone.preprocess)
    again = backbone_of(channels)
    predictor = Predictor(tmp_path / "h.safetensors", backbone=again)
    tokens = backbone(torch.stack([normalised(image) for image in images]).float())
    with torch.no_grad():
        expected = head.eval().predict(tokens)["y"].flatten().tolist()
    predicted = [row["y"] for row in predictor(images)]
    assert predictor.backbone.preprocess.mean == MEANS[:channels]
    assert predicted == pytest.approx(expected, abs=1e-4)
    assert max(predicted) - min(predicted) > 1e-6


def test_a_head_of_other_channels_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    backbone = backbone_of(4)
    save_head(
        tmp_path / "h.safetensors",
        PatchMeanHead(24, [Task("y")]),
        backbone=backbone,
        preprocess=backbone.preprocess,
    )
    with pytest.raises(Exception, match=r"0\.45"):
        Predictor(tmp_path / "h.safetensors", backbone=backbone_of(5))


def test_views_and_tiles_take_all_channels(tmp_path: Path) -> None:
    backbone = backbone_of(5)
    head = PatchMeanHead(24, [Task("y")])
    save_head(tmp_path / "h.safetensors", head, backbone=backbone, preprocess=backbone.preprocess)
    image = bands_of(5)
    predictor = Predictor(tmp_path / "h.safetensors", backbone=backbone, tta="flip4")
    x = normalised(image).float()
    flips = torch.stack([x, x.flip(-1), x.flip(-2), x.flip((-1, -2))])
    with torch.no_grad():
        expected = head.eval()(backbone(flips))["y"].mean().item()
    assert predictor(image)[0]["y"] == pytest.approx(expected, abs=1e-5)
    tiled = Predictor(tmp_path / "h.safetensors", backbone=backbone, tile=(24, 16))
    assert np.isfinite(tiled(image)[0]["y"])


def test_a_picture_shows_the_first_three_channels_or_grey() -> None:
    bands = bands_of(5)
    shown = backbone_of(5).preprocess.picture(bands)
    assert (shown - torch.from_numpy(bands[..., :3] / 255).permute(2, 0, 1)).abs().max() < 1e-5
    grey = backbone_of(2).preprocess.picture(bands[..., :2])
    assert (grey - torch.from_numpy(bands[..., 0] / 255)).abs().max() < 1e-5


# --- files


def geotiff(path: Path, bands: Any) -> Path:
    rasterio = pytest.importorskip("rasterio")
    rows, cols, channels = bands.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=rows,
        width=cols,
        count=channels,
        dtype=bands.dtype.name,
        crs="EPSG:25832",
        transform=rasterio.transform.from_origin(500_000, 5_600_000, 0.1, 0.1),
    ) as file:
        file.write(np.moveaxis(bands, -1, 0))
    return path


@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_geotiff_is_its_array(channels: int, dtype: Any, tmp_path: Path) -> None:
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    bands = (bands_of(channels).astype(np.float64) * scale).astype(dtype)
    path = geotiff(tmp_path / "a.tif", bands)
    preprocess = backbone_of(channels).preprocess.changed(bits=16)
    assert torch.equal(preprocess(path), preprocess(bands))
    assert read_image_size(path) == (24, 40)


def test_a_geotiff_of_other_bands_is_refused(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", bands_of(5))
    with pytest.raises(DataError, match=r"a\.tif has 5 bands; expected 4"):
        backbone_of(4).preprocess(path)


def test_geotiffs_are_extracted(tmp_path: Path) -> None:
    bands = bands_of(4)
    path = geotiff(tmp_path / "a.tif", bands)
    backbone = backbone_of(4)
    store = FeatureStore.create(
        tmp_path / "s", backbone=backbone, views="flips4", image_size=(24, 40)
    )
    store.extract([path])
    tokens = store.batch(store.ids[:1], [0])
    expected = backbone(normalised(bands).float()[None])
    assert (tokens.sequence[0].float() - expected.sequence[0]).abs().max() < 1e-2


# --- what is refused


def test_without_mean_and_std_preprocess_is_refused_and_names_them() -> None:
    backbone = backbone_of(4, mean=None, std=None)
    with pytest.raises(BackboneError, match="4 channels.*mean=..., std=..."):
        _ = backbone.preprocess
    with pytest.raises(BackboneError, match="4 numbers"):
        backbone.record()
    assert backbone.patch_size == 8
    assert backbone.with_layers([0])(torch.zeros(1, 4, 8, 8)).grid.count == 1


def test_mean_and_std_of_rgb_can_be_given() -> None:
    backbone = backbone_of(3)
    assert backbone.preprocess.mean == MEANS[:3]
    assert backbone.record()["std"] == list(STDS[:3])


@pytest.mark.parametrize("options", [{"mean": MEANS[:3]}, {"std": STDS[:2]}, {"std": None}])
def test_mean_and_std_are_one_number_per_channel(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected 4 numbers each"):
        backbone_of(4, **options)


def test_preprocess_of_other_channels_cannot_be_set() -> None:
    backbone = backbone_of(4)
    with pytest.raises(ConfigError, match="takes 4"):
        backbone.preprocess = Preprocessing(patch_size=8)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), dtype=np.uint8),
        np.zeros((4, 8, 8), dtype=np.uint8),
        torch.zeros(3, 8, 8),
        np.zeros((8, 8), dtype=np.uint8),
    ],
)
def test_images_of_other_channels_are_refused(image: Any) -> None:
    with pytest.raises(DataError, match="4"):
        backbone_of(4).preprocess(image)


def test_colours_for_one_channel_are_refused() -> None:
    with pytest.raises(DataError, match="grey"):
        backbone_of(1).preprocess(bands_of(3))


def test_views_that_change_colours_are_refused_when_the_store_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="color20"):
        FeatureStore.create(
            tmp_path / "s", backbone=backbone_of(4), views="color20", image_size=None
        )


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_an_exported_model_takes_the_bands_of_its_backbone(channels: int, tmp_path: Path) -> None:
    backbone = backbone_of(channels)
    file = tmp_path / "model.pt2"
    head = PatchMeanHead(24, [Task("y")])

    done = export_model(head, file, format="pt2", backbone=backbone, size=(24, 40))

    bands = bands_of(channels)
    pixels = torch.from_numpy(bands).permute(2, 0, 1)[None].float() / 255
    found = torch.export.load(file).module()(pixels)["y"].item()
    tokens = backbone(normalised(bands)[None].float())
    expected = head.natural(tokens)["y"].item()
    assert found == pytest.approx(expected, rel=1e-4)
    assert done.description["input"]["channels"] == f"{channels} bands"


def test_the_service_refuses_heads_of_other_channels_before_it_loads_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("dinoneck.serve.models")
    settings = pytest.importorskip("dinoneck.serve").Settings()
    backbone = backbone_of(4)
    file = tmp_path / "head.safetensors"
    save_head(
        file,
        PatchMeanHead(24, [Task("y")]),
        backbone=backbone,
        preprocess=backbone.preprocess,
        backbone_weights=backbone.state_dict(),
    )
    monkeypatch.setattr(models, "Predictor", lambda *_, **__: pytest.fail("it was loaded"))

    with pytest.raises(ConfigError, match="takes images of 4 channels.*GeoTIFFs of 4 bands"):
        models.open_model(file, settings)
