"""What a backbone record may hold is checked where the file is read; heads without one warn; paths are not empty."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import kit

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanMLP, Predictor, load_head, save_head
from dinoneck.errors import BackboneError


def test_own_entries_of_a_record_may_hold_any_text(tmp_path: Path) -> None:
    weights = {"kind": "file", "note": "a\tb", "base": {"note": "\x1b"}}
    record = {"name": "mine", "layers": [0], "norm": True, "note": "a\nb", "weights": weights}
    checkpoint = HeadCheckpoint.from_module(PatchMeanMLP(4), backbone=record)
    checkpoint.save(tmp_path / "h")
    assert HeadCheckpoint.load(tmp_path / "h").meta["backbone"] == record


def test_records_of_converted_features_may_leave_layers_open(tmp_path: Path) -> None:
    open_record = {"name": "unknown", "patch_size": [16, 16], "embed_dim": 64, "layers": None, "norm": None}
    save_head(tmp_path / "h", kit.head(), backbone=open_record)
    tokens = kit.backbone()(torch.rand(1, 3, 32, 32))
    assert load_head(tmp_path / "h").predict(tokens)["mass"].shape == (1, 1)
    with pytest.raises(CheckpointError, match="does not fit"):
        Predictor(tmp_path / "h", kit.backbone())


def test_a_head_without_a_record_warns_when_saved_and_when_used(tmp_path: Path) -> None:
    backbone = kit.backbone()
    with pytest.warns(UserWarning, match="saved without backbone=") as caught:
        kit.head().save_pretrained(tmp_path / "a")
        save_head(tmp_path / "h", kit.head())
    assert {one.filename for one in caught} == {__file__}
    with pytest.warns(UserWarning, match="does not state its backbone, so 'dinoneck_tiny' is used unchecked"):
        Predictor(tmp_path / "h", backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_head(tmp_path / "mlp", PatchMeanMLP(8))
        save_head(tmp_path / "h", kit.head(), backbone=backbone)
        Predictor(tmp_path / "h", backbone)
        Predictor(kit.head(), backbone)


@pytest.mark.parametrize("make", [lambda b: b, lambda b: b.unfreeze_last(1), lambda b: b.add_lora(2)])
def test_a_predictor_notices_weights_that_change(make: Callable[[Backbone], Backbone]) -> None:
    backbone = make(kit.backbone())
    predictor = Predictor(kit.head(), backbone)
    image = torch.rand(3, 32, 32)
    before = predictor(image)
    assert predictor(image) == predictor(image) == before
    learning = [p for p in backbone.parameters() if p.requires_grad] or list(backbone.parameters())
    with torch.no_grad():
        learning[-1].add_(0.1)
    for _ in range(2):
        with pytest.raises(BackboneError, match="changed after this Predictor was made"):
            predictor(image)
        backbone.freeze()


def test_a_loaded_head_keeps_what_it_was_trained_on(tmp_path: Path) -> None:
    backbone = kit.backbone()
    save_head(tmp_path / "h", kit.head(), backbone=backbone)
    loaded = load_head(tmp_path / "h")
    other = kit.backbone(layers=[2], norm=False)(torch.rand(1, 3, 64, 64))
    for kept in (loaded, copy.deepcopy(loaded), HeadCheckpoint.load(tmp_path / "h").build()):
        with pytest.raises(
            BackboneError, match=r"normed.*trained on True, got False; layers: trained on \(5,\), got \(2,\)"
        ):
            kept.predict(other)
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    assert compiled(backbone(torch.rand(1, 3, 64, 64)))["mass"].shape == (1, 1)
