"""Photos to paint on, and their tokens: of a backbone or of a feature store."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dinoneck.backbones.adapter import evaluating
from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.bands import RGB_CHANNELS, read_channels
from dinoneck.images.decoding import read_image_size
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import Placement
from dinoneck.painting.page import Photo
from dinoneck.progress import progress
from dinoneck.store.feature_store import FeatureStore
from dinoneck.tokens import Tokens
from dinoneck.training.run_tokens import check_weights_have_a_file, compare_images
from dinoneck.viz.pictures import as_image

PICTURE_PX = 1280  # longer side of the picture to paint on


@dataclass(frozen=True, eq=False)
class PhotoTokens:
    """Photos to paint on, and what made their tokens.

    Attributes:
        photos: with the tokens of all layers, one after the other, as channels.
        backbone: that made the tokens, or its record.
        preprocess: how the photos were prepared.
        num_layers: how many layers of the backbone a patch's channels hold.
    """

    photos: tuple[Photo, ...]
    backbone: Backbone | Mapping[str, Any]
    preprocess: Preprocessing
    num_layers: int

    @classmethod
    def extract(
        cls,
        files: Mapping[str, Path],
        backbone: Backbone,
        *,
        size: tuple[int, int],
        bits: int | None = None,
    ) -> PhotoTokens:
        """Compute the tokens of photos.

        A photo keeps its proportions, up to whole patches; all of it is seen.

        Args:
            files: name of a photo -> its file.
            backbone: gives the tokens.
            size: (height, width) in pixels that a photo is resized to fit into.
            bits: how many bits images of 16 bits use, see :class:`dinoneck.data.Preprocessing`.

        Raises:
            DataError: if there are no photos, or one cannot be read.
        """
        preprocess = backbone.preprocess.changed(size=size, resize="keep", bits=bits)
        placements = {}
        for name, file in files.items():
            placements[name] = _whole_photo(name, file, preprocess)
        backbone.expect_images(Counter(placement.canvas for placement in placements.values()))
        device = next(backbone.parameters()).device
        photos = []
        num_layers = 0
        with torch.no_grad(), evaluating(backbone):
            for name, file in progress(files.items(), desc="photos", unit="photo"):
                pixels = read_channels(file, preprocess.channels, preprocess.bits)
                tokens = backbone(preprocess(pixels).to(device))
                num_layers = len(tokens.patches)
                photos.append(_photo_of(name, file, pixels, tokens))
        return cls(tuple(_checked(photos)), backbone, preprocess, num_layers)

    @classmethod
    def from_store(
        cls, files: Mapping[str, Path], store: FeatureStore, ids: Mapping[str, str]
    ) -> PhotoTokens:
        """Read the tokens of photos from a feature store.

        Args:
            files: name of a photo -> its file.
            store: that holds the tokens of these files.
            ids: name of a photo -> its id in the store.

        Raises:
            ConfigError: if the store holds tokens of another program, of weights that no file names,
                or of parts of the photos.
            DataError: if there are no photos, or one cannot be read.
            StoreError: if a photo was replaced since the extraction.
        """
        record = store.backbone_record
        if record.get("layers") is None:
            raise ConfigError(
                f"the store {store.path} was converted from files of another program, which do not "
                "tell how photos come to tokens; paint on the photos with --backbone"
            )
        check_weights_have_a_file(record, store.path)
        preprocess = store.preprocess
        for name, file in files.items():
            _whole_photo(name, file, preprocess)
        compare_images(store, {ids[name]: file for name, file in files.items()})
        photos = []
        for name, file in progress(files.items(), desc="photos", unit="photo"):
            pixels = read_channels(file, preprocess.channels, preprocess.bits)
            photos.append(_photo_of(name, file, pixels, store.batch([ids[name]])))
        return cls(tuple(_checked(photos)), record, preprocess, len(record["layers"]))


def _checked(photos: Sequence[Photo]) -> Sequence[Photo]:
    """The photos; there is one or more."""
    if not photos:
        raise DataError("there are no photos to paint on; name images, or folders of them")
    return photos


def _whole_photo(name: str, file: Path, preprocess: Preprocessing) -> Placement:
    """Where a photo lies on its canvas, all of which it covers.

    Raises:
        ConfigError: if it is cropped or padded.
    """
    placement = preprocess.placement(read_image_size(file))
    if placement.resized != placement.canvas:
        height, width = placement.canvas
        raise ConfigError(
            f"the tokens of {name} are of {height}x{width} px that resize={preprocess.resize!r} "
            "crops or pads, and a photo to paint on is seen as a whole; extract with --resize keep "
            "or --resize stretch"
        )
    return placement


def _photo_of(name: str, file: Path, pixels: Tensor, tokens: Tokens) -> Photo:
    """A photo of its pixels (channels, height, width) and its tokens of one image."""
    layers = [patches[0] for patches in tokens.patches]  # (rows * cols, C) each
    patches = torch.cat(layers, dim=-1).to("cpu", torch.float32)
    _, height, width = pixels.shape
    with file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return Photo(
        name=name,
        sha256=sha256,
        height=height,
        width=width,
        picture=_picture_of(pixels),
        patches=patches.reshape(tokens.grid.rows, tokens.grid.cols, -1),
    )


def _picture_of(pixels: Tensor) -> Image.Image:
    """The picture of an image (channels, height, width) in RGB, its longer side at most 1280 px.

    Of other channels than RGB, the first three are shown as it; the first alone, as grey, where
    there are fewer.
    """
    if len(pixels) < RGB_CHANNELS:
        shown = pixels[:1].expand(RGB_CHANNELS, -1, -1)
    else:
        shown = pixels[:RGB_CHANNELS]
    picture = as_image(shown)
    picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return picture
