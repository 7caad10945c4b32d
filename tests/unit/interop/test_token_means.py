"""TokenMeans: the mean patch token of every layer, the same from images and Tokens, inside scikit-learn's tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinoneck import ConfigError, DataError, Tokens, load_backbone
from dinoneck.interop import TokenMeans


def images(n: int = 5) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (n, 32, 48, 3), dtype=np.uint8))


def test_features_are_the_means_of_the_patches_layer_by_layer() -> None:
    patches = [torch.randn(3, 6, 4), torch.randn(3, 6, 4)]
    tokens = Tokens.from_patches(patches, grid=(2, 3), patch_size=16, cls_token=[torch.full((3, 4), 1e3)] * 2)
    features = TokenMeans(batch_size=2).transform(tokens)
    np.testing.assert_allclose(features, np.concatenate([x.double().mean(1).numpy() for x in patches], axis=1))


def test_images_their_tokens_and_single_tokens_give_the_same_features() -> None:
    backbone = load_backbone("dinoneck_tiny", layers=[2, 5])
    tokens = backbone(backbone.preprocess(images()))
    expected = TokenMeans().transform(tokens)
    assert expected.shape == (5, 128)
    means = TokenMeans(backbone, batch_size=2)
    for same in (images(), np.stack(images()), [tokens[i] for i in range(5)]):
        np.testing.assert_allclose(means.fit_transform(same), expected, atol=1e-5)
    assert not np.allclose(TokenMeans(backbone, size=(16, 16)).transform(images()), expected, atol=1e-3)


def test_what_cannot_be_transformed_is_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        TokenMeans().transform([])
    with pytest.raises(ConfigError, match="no backbone"):
        TokenMeans().transform(images())
    with pytest.raises(ConfigError, match="no parameter 'layers'"):
        TokenMeans().set_params(layers=3)


def test_a_pipeline_is_cloned_over_one_backbone_and_searched() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.base import clone
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    backbone = load_backbone("dinoneck_tiny")
    pipeline = make_pipeline(TokenMeans(backbone), Ridge())
    assert clone(pipeline)[0].backbone is backbone
    brightness = [image.mean() for image in images(6)]
    search = GridSearchCV(pipeline, {"tokenmeans__size": [16, 32]}, cv=2).fit(images(6), brightness)
    assert search.predict(images(2)).shape == (2,)
