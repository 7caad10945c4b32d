"""The files for D-FINE's repository: the class, YAML files and optimizer groups; and 25 million parameters."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
import yaml
from examples.detection.dfine.dinov3_backbone import DINOv3Backbone
from tests.process_group import ROOT
from torch import nn

from dinoneck import ConfigError, DataError, SpatialTuningAdapter, STAPyramid, load_backbone

FOLDER = ROOT / "examples" / "detection" / "dfine"
NECKS = ("sta_pyramid", "spatial_tuning_adapter")
FILES = ("dfine_dinov3_s_coco.yml", "dfine_dinov3_s_25m_coco.yml")


def tiny(**keys: Any) -> DINOv3Backbone:
    return DINOv3Backbone(**{"model_name": "dinoneck_tiny", "pretrained": False, "out_channels": [8] * 3, **keys})


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(old[key], new[key]) for key in old.keys() & new.keys() if isinstance(new[key], dict)}
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
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = (images - mean) / std
    layers = (2, 3, 5) if neck == "spatial_tuning_adapter" else None
    expected = module.neck(load_backbone("dinoneck_tiny", layers=layers)(seen), seen).maps
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(maps, expected, strict=True))
    module.normalize = False
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(module(seen), expected, strict=True))


def test_images_that_are_normalised_already_are_refused() -> None:
    module = tiny()
    for images in (torch.randn(1, 3, 32, 32), torch.full((1, 3, 32, 32), 200.0)):
        with pytest.raises(DataError, match="normalize: False"):
            module(images)
    tiny(normalize=False).eval()(torch.randn(1, 3, 32, 32))


def learns(module: DINOv3Backbone) -> set[str]:
    """Which parts get gradients."""
    module.train().zero_grad()
    sum(level.square().mean() for level in module(torch.rand(2, 3, 64, 64))).backward()  # type: ignore[union-attr,arg-type]
    names = [name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()]
    return {".".join(name.split(".")[:5]) if ".blocks." in name else name.split(".")[0] for name in names}


@pytest.mark.parametrize("freeze", [False, True])
def test_freezing_for_some_epochs(freeze: bool) -> None:
    module = tiny(freeze_backbone=freeze, freeze_backbone_epochs=2, unfreeze="last:1")
    assert all(p.requires_grad for name, p in module.named_parameters() if ".blocks." in name)  # for the optimizer
    with pytest.raises(ConfigError, match="start_epoch"):
        module.train()(torch.rand(2, 3, 64, 64))
    module.eval()(torch.rand(1, 3, 64, 64))
    seen = []
    for epoch in range(4):
        report = module.start_epoch(epoch)
        seen.append((report.changed, report.trainable_blocks, "vit.adapter.model.blocks.5" in learns(module)))
    assert seen == [(True, (), False), (False, (), False), (True, (5,), True), (False, (5,), True)]
    assert module.start_epoch(0).changed  # a resumed run asks for its own epoch


# -- the YAML files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_the_class_and_itself(name: str) -> None:
    found = config(name)
    keys, spec = found["DINOv3Backbone"], inspect.getfullargspec(DINOv3Backbone.__init__)
    assert spec.varkw is spec.varargs is None, "D-FINE reads the schema off the positional arguments"
    assert not spec.kwonlyargs
    assert set(keys) == set(spec.args) - {"self"}
    assert found["DFINE"]["backbone"] == DINOv3Backbone.__name__
    assert keys["out_channels"] == found["HybridEncoder"]["in_channels"]
    width = found["HybridEncoder"].get("hidden_dim", 256)
    assert found["DFINETransformer"].get("hidden_dim", 256) == width
    assert found["DFINETransformer"]["feat_channels"] == [width] * 3
    for part in ("HybridEncoder", "DFINETransformer"):
        assert found[part]["feat_strides"] == keys["feat_strides"]
    maps = DINOv3Backbone(**{**keys, "model_name": "dinoneck_tiny", "pretrained": False})(torch.rand(2, 3, 64, 64))
    assert [level.shape[1] for level in maps] == keys["out_channels"]
    assert [64 // level.shape[-1] for level in maps] == keys["feat_strides"]


class DFine(nn.Module):
    """The names of D-FINE's modules, with parameters of any size."""

    def __init__(self, neck: str) -> None:
        super().__init__()
        options = {"pre_norm": True, "pos_embed": True} if neck == "sta_pyramid" else {}
        layers = [0, 1, 3, 5] if neck == "spatial_tuning_adapter" else None  # four layers are mixed by weights
        self.backbone = tiny(neck=neck, neck_options=options, layers=layers)
        layer = nn.TransformerEncoderLayer(8, 2, 8)
        conv_norm = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 1, bias=False), "norm": nn.BatchNorm2d(8)})
        self.encoder = nn.ModuleDict(
            {"input_proj": nn.ModuleList([conv_norm]), "encoder": nn.ModuleList([nn.ModuleDict({"layers": layer})])}
        )
        self.decoder = nn.ModuleDict(
            {"decoder": nn.ModuleDict({"layers": nn.TransformerDecoderLayer(8, 2, 8)}),
             "dec_score_head": nn.ModuleList([nn.Linear(8, 4)]), "denoising_class_embed": nn.Embedding(5, 8)}
        )  # fmt: skip


def groups(optimizer: dict[str, Any], model: nn.Module) -> dict[str, tuple[float, float]]:
    """Parameter -> (lr, weight decay), by the rule of D-FINE's ``get_optim_params``; twice the same is refused."""
    found: dict[str, tuple[float, float]] = {}
    plain = (optimizer["lr"], optimizer["weight_decay"])
    for group in optimizer["params"]:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and re.findall(group["params"], name):
                assert name not in found, f"{name} matches twice"
                found[name] = (group.get("lr", plain[0]), group.get("weight_decay", plain[1]))
    return {name: found.get(name, plain) for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("neck", NECKS)
def test_every_parameter_is_in_the_right_group(name: str, neck: str) -> None:
    optimizer, model = config(name)["optimizer"], DFine(neck)
    parameters = dict(model.named_parameters())
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    in_norms = {id(p) for module in model.modules() if isinstance(module, norms) for p in module.parameters()}
    for key, (rate, decay) in groups(optimizer, model).items():
        assert rate == (1e-5 if key.startswith("backbone.vit.") else 2.5e-4), key
        rest = key.rsplit(".", 1)[-1]
        plain = id(parameters[key]) in in_norms or parameters[key].ndim == 1 or "token" in rest
        plain = plain or rest in ("mix", "places") or "pos_embed" in rest
        assert decay == (0.0 if plain else 1.25e-4), key


# -- 25 million parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neck", "total"),
    [
        (SpatialTuningAdapter(384, 160, detail_dim=32), 25.08),
        (SpatialTuningAdapter(384, 160), 24.97),
        (STAPyramid(384, 160, downsample="avgpool"), 24.92),
    ],
)
def test_25_million(neck: Any, total: float) -> None:
    pytest.importorskip("transformers")
    from dinoneck.detection import DetectionHead

    with torch.device("meta"):
        head = DetectionHead("dfine", tuple(map(str, range(80))), neck, variant="25m")
    vit = load_backbone("vit_small_patch16_dinov3", pretrained=False)
    count = sum(p.numel() for module in (head, vit) for p in module.parameters())
    assert count / 1e6 == pytest.approx(total, abs=0.005)
