"""The files for D-FINE's repository: the class, YAML files and optimizer groups; and 25 million parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import yaml
from examples.detection.dfine.dinov3_backbone import DINOv3Backbone
from tests.process_group import ROOT

from dinoneck import load_backbone

FOLDER = ROOT / "examples" / "detection" / "dfine"
NECKS = ("sta_pyramid", "spatial_tuning_adapter")
FILES = ("dfine_dinov3_s_coco.yml", "dfine_dinov3_s_25m_coco.yml")


def tiny(**keys: Any) -> DINOv3Backbone:
    return DINOv3Backbone(
        **{"model_name": "dinoneck_tiny", "pretrained": False, "out_channels": [8] * 3, **keys}
    )


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(old[key], new[key])
        for key in old.keys() & new.keys()
        if isinstance(new[key], dict)
    }
    return {**old, **new, **both}


def config(name: str) -> dict[str, Any]:
    """A file with those of ours that it includes; the repository's own are not here."""
    own = yaml.safe_load((FOLDER / name).read_text())
    for included in own.pop("__include__"):
        if (FOLDER / included).exists():
            own = merged(config(included), own)
    return own


@pytest.mark.parametrize("neck", NECKS)
def test_three_maps_of_the_vit_and_the_neck(neck: str) -> None:
    module = tiny(neck=neck).eval()
    images = torch.rand(2, 3, 64, 96)
    maps = module(images)
    assert isinstance(maps, list)
    assert [tuple(level.shape) for level in maps] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    seen = (images - mean) / std
    layers = (2, 3, 5) if neck == "spatial_tuning_adapter" else None
    expected = module.neck(load_backbone("dinoneck_tiny", layers=layers)(seen), seen).maps
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(maps, expected, strict=True))
    module.normalize = False
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(module(seen), expected, strict=True))


# -- the YAML files
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_the_class_and_itself(name: str) -> None:
    found = config(name)
    keys, spec = found["DINOv3Backbone"], inspect.getfullargspec(DINOv3Backbone.__init__)
    assert spec.varkw is spec.varargs is None, (
        "D-FINE reads the schema off the positional arguments"
    )
    assert not spec.kwonlyargs
    assert set(keys) == set(spec.args) - {"self"}
    assert found["DFINE"]["backbone"] == DINOv3Backbone.__name__
    assert keys["out_channels"] == found["HybridEncoder"]["in_channels"]
    encoder, transformer = found["HybridEncoder"], found["DFINETransformer"]
    width = encoder.get("hidden_dim", 256)
    assert (
        transformer.get("hidden_dim", 256) == width and transformer["feat_channels"] == [width] * 3
    )
    assert encoder["feat_strides"] == transformer["feat_strides"] == keys["feat_strides"]
    maps = DINOv3Backbone(**{**keys, "model_name": "dinoneck_tiny", "pretrained": False})(
        torch.rand(2, 3, 64, 64)
    )
    assert [level.shape[1] for level in maps] == keys["out_channels"]
    assert [64 // level.shape[-1] for level in maps] == keys["feat_strides"]


# -- 25 million parameters
# --------------------------------------------------------------------------------
