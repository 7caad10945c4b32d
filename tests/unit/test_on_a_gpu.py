"""What a GPU computes is what a CPU computes; skipped where there is no GPU.

    pytest tests/unit/test_on_a_gpu.py -n 0

Float32 products are exact on both (TF32 is off), so that results differ by the order of sums only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import kit
from tests.contract.cases import CASES, Case
from tests.unit.detection import coloured_boxes
from tests.unit.training.meadow import COUNT

from dinoneck import (
    Backbone,
    BackboneError,
    FPNHead,
    PatchMeanHead,
    Predictor,
    Task,
    Tokens,
    load_backbone,
    save_head,
)
from dinoneck.detection import Detector
from dinoneck.store import FeatureStore, MemoryStore
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, fit

DEVICE = "cuda"
IDS = [f"image{number:02d}" for number in range(12)]
MASS = Task("mass")
CELLS = Task("cells", dim=2, kind="dense")
# of float32 results: sums of a few hundred products in another order
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
MASSES = {name: 3.0 + number % 5 for number, name in enumerate(IDS)}
# two neighbours of 16-bit numbers below 4, where a rounding falls to the other side
FLOAT16_STEP = 4e-3
# boxes of an untrained query come in any order
MOST_CERTAIN = 5
# LayerNorm and attention of several blocks in bfloat16, which keeps 8 bits of a number
BFLOAT16_RELATIVE = 0.05

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Float32 stays float32: no TF32 in products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return kit.write_images(tmp_path / "images", [f"{name}.png" for name in IDS], *kit.SIZE)


def on_device(inputs: Any) -> Any:
    """The inputs of a case on the device."""
    if isinstance(inputs, (torch.Tensor, Tokens)):
        return inputs.to(DEVICE)
    return type(inputs)(one.to(DEVICE) for one in inputs)


def assert_close(result: Any, expected: Any) -> None:
    pairs = list(zip(kit.leaves(result), kit.leaves(expected), strict=True))
    assert pairs
    for one, other in pairs:
        torch.testing.assert_close(
            torch.as_tensor(one).cpu().float(), torch.as_tensor(other).float(), **CLOSE
        )


def test_the_fixture_ran_on_a_gpu() -> None:
    backbone = load_backbone("dinoneck_tiny").to(DEVICE)

    tokens = backbone(kit.images().to(DEVICE))

    assert tokens.sequence[0].is_cuda


# -- modules
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_module_gives_the_same_outputs(case: Case) -> None:
    torch.manual_seed(0)
    module = kit.randomised(case.build()).eval()
    inputs = case.inputs()
    expected = module(*case.args(inputs))

    result = copy.deepcopy(module).to(DEVICE)(*case.args(on_device(inputs)))

    assert_close(result, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_module_gives_the_same_gradients(case: Case) -> None:
    torch.manual_seed(0)
    module = kit.randomised(case.build(), std=0.1).eval()
    inputs = case.inputs(rows=max(3, case.smallest), cols=max(5, case.smallest))
    twin = copy.deepcopy(module).to(DEVICE)

    for one, given in ((module, inputs), (twin, on_device(inputs))):
        outputs = kit.leaves(one(*case.args(given)))
        loss = sum(output.float().square().mean() for output in outputs)
        loss.backward()  # type: ignore[union-attr]

    for (name, own), other in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert own.grad is not None, name
        scale = own.grad.abs().max().item()
        difference = (own.grad - other.grad.cpu()).abs().max().item()
        assert difference <= 1e-3 * scale + 1e-6, name


@pytest.mark.parametrize(
    "name", ["vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"]
)
def test_tokens_of_a_vit_are_the_same(name: str) -> None:
    backbone = load_backbone(name, pretrained=False, layers=[5, 11])
    images = kit.images(height=112, width=224)
    with torch.no_grad():
        expected = backbone(images)

        result = backbone.to(DEVICE)(images.to(DEVICE))

    for own, other in zip(result.sequence, expected.sequence, strict=True):
        torch.testing.assert_close(own.cpu(), other, **CLOSE)


# -- stores
# --------------------------------------------------------------------------------------------


def test_a_store_filled_on_a_gpu_holds_the_tokens_of_a_cpu(
    images: list[Path], tmp_path: Path
) -> None:
    stores = {}
    for device in ("cpu", DEVICE):
        backbone = load_backbone("dinoneck_tiny").to(device)
        stores[device] = FeatureStore.create(
            tmp_path / device, backbone=backbone, image_size=None, dtype="fp16"
        )
        stores[device].extract(images[0].parent)

    own = stores[DEVICE].batch(stores[DEVICE].ids)
    expected = stores["cpu"].batch(stores["cpu"].ids)

    assert stores[DEVICE].ids == stores["cpu"].ids
    for one, other in zip(own.sequence, expected.sequence, strict=True):
        torch.testing.assert_close(one, other, rtol=FLOAT16_STEP, atol=FLOAT16_STEP)


def test_a_store_in_the_memory_of_a_gpu_gives_the_tokens_of_the_files(
    images: list[Path], tmp_path: Path
) -> None:
    store = FeatureStore.create(
        tmp_path / "store", backbone=load_backbone("dinoneck_tiny"), image_size=None, dtype="int8"
    )
    store.extract(images[0].parent)
    kept = MemoryStore(store, device=DEVICE)

    own = kept.batch(store.ids)

    assert own.sequence[0].is_cuda
    assert_close(own.sequence, store.batch(store.ids).sequence)


# -- heads and their files
# --------------------------------------------------------------------------------------------


def test_predictions_and_maps_are_the_same(images: list[Path]) -> None:
    heads = {"means": PatchMeanHead(64, [MASS]).eval(), "cells": FPNHead(64, [CELLS], num_layers=1)}
    expected = Predictor(copy.deepcopy(heads), load_backbone("dinoneck_tiny"), tta="flip4")(
        images, maps="patch"
    )

    rows = Predictor(heads, load_backbone("dinoneck_tiny"), tta="flip4", device=DEVICE)(
        images, maps="patch"
    )

    for row, own in zip(rows, expected, strict=True):
        assert row["means"]["mass"] == pytest.approx(own["means"]["mass"], rel=1e-3, abs=1e-4)
        cells, own_cells = (one["cells"]["maps"]["cells"] for one in (row, own))
        assert isinstance(cells, np.ndarray)
        np.testing.assert_allclose(cells, own_cells, **CLOSE)


def trained(
    images: list[Path], backbone: Backbone, **recipe: Any
) -> tuple[PatchMeanHead, list[Any]]:
    """A head trained on the device, and the history of the training."""
    head = PatchMeanHead(64, [MASS]).to(DEVICE)
    history = fit(
        head,
        MemoryTokens.extract(backbone, images, IDS),
        targets={"mass": MASSES},
        recipe=Recipe(epochs=8, batch_size=4, lr=1e-2, **recipe),
    )
    return head, history


def saved(path: Path, head: PatchMeanHead, backbone: Backbone) -> Path:
    save_head(path, head, backbone=backbone, preprocess=backbone.preprocess.changed(size=kit.SIZE))
    return path


def assert_equal_masses(rows: Any, expected: Any) -> None:
    for row, other in zip(rows, expected, strict=True):
        assert row["mass"] == pytest.approx(other["mass"], rel=1e-3, abs=1e-4)


def test_a_head_trained_on_a_gpu_predicts_the_same_on_a_cpu(
    images: list[Path], tmp_path: Path
) -> None:
    backbone = load_backbone("dinoneck_tiny").to(DEVICE)
    head, history = trained(images, backbone)
    file = saved(tmp_path / "head.safetensors", head, backbone)

    own = Predictor(file, device=DEVICE)(images)
    expected = Predictor(file, device="cpu")(images)

    assert history[-1]["loss"] < history[0]["loss"]
    assert_equal_masses(own, expected)


def test_training_in_bfloat16_learns(images: list[Path]) -> None:
    _, history = trained(images, load_backbone("dinoneck_tiny").to(DEVICE), amp="bf16")

    assert history[-1]["loss"] < history[0]["loss"]


def test_lora_weights_trained_on_a_gpu_travel_to_a_cpu(images: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs dinoneck[lora]")
    backbone = load_backbone("dinoneck_tiny")
    backbone.add_lora(rank=2)
    backbone.to(DEVICE)
    head = PatchMeanHead(64, [MASS]).to(DEVICE)
    fit(
        head,
        LiveTokens(backbone, images, IDS),
        targets={"mass": MASSES},
        recipe=Recipe(epochs=2, batch_size=4, lr=1e-2, backbone_lr=1e-2),
    )
    file = saved(tmp_path / "tuned.safetensors", head, backbone)
    own = Predictor({"head": head}, backbone, device=DEVICE)(images)

    expected = Predictor(file, device="cpu")(images)

    assert_equal_masses([row["head"] for row in own], expected)


def test_weights_changed_on_a_gpu_are_noticed(images: list[Path], tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny").to(DEVICE)
    head, _ = trained(images, backbone)
    file = saved(tmp_path / "head.safetensors", head, backbone)
    predictor = Predictor(file, backbone, device=DEVICE)
    predictor(images[:1])

    with torch.no_grad():
        next(backbone.parameters()).add_(0.1)

    with pytest.raises(BackboneError, match="weights"):
        predictor(images[:1])


def test_a_backbone_in_bfloat16_gives_nearly_the_tokens_of_float32() -> None:
    images = kit.images(height=112, width=224)
    backbone = load_backbone("vit_small_patch16_dinov3.lvd1689m", pretrained=False)
    with torch.no_grad():
        expected = backbone(images).patches[0]

        result = backbone.to(DEVICE, torch.bfloat16)(images.to(DEVICE)).patches[0]

    difference = (result.cpu().float() - expected).norm() / expected.norm()
    assert 0 < difference < BFLOAT16_RELATIVE


# -- detectors and the command line
# --------------------------------------------------------------------------------------------


def test_a_detector_trained_on_a_gpu_finds_the_same_boxes_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")
    boxes = coloured_boxes.write(tmp_path / "images")
    ran = kit.cli(
        *("train", "--boxes", boxes, "--val-boxes", boxes, "--backbone", "dinoneck_tiny"),
        *("--head", "{type: spatial_tuning_adapter, out_channels: 32}", "--layers", 1, 3, 5),
        *("--size", "96x128", "--epochs", 4, "--batch-size", 2, "--device", DEVICE),
        *("--out", tmp_path / "run"),
    )
    assert ran.code == 0, ran.err
    pictures = [tmp_path / "images" / f"{number}.png" for number in coloured_boxes.BOXES]
    file = tmp_path / "run" / "detector.safetensors"

    own = Detector.load(file).to(DEVICE).predict(pictures, min_score=0.0, max_boxes=MOST_CERTAIN)
    expected = Detector.load(file).predict(pictures, min_score=0.0, max_boxes=MOST_CERTAIN)

    for found, other in zip(own, expected, strict=True):
        torch.testing.assert_close(found["scores"].cpu(), other["scores"], rtol=1e-2, atol=1e-3)


def predicted_table(run: Path, images: Path, device: str) -> pd.DataFrame:
    """What ``dinoneck predict`` writes for these images with the heads of this run."""
    table = run / f"{device}.csv"
    pictures = sorted(images.glob("[0-9][0-9].png"))
    ran = kit.cli(
        "predict", *pictures, "--heads", run / "heads", "--device", device, "--out", table
    )
    assert ran.code == 0, ran.err
    return pd.read_csv(table)


def test_train_and_predict_of_the_command_line_agree_with_a_cpu(
    meadow: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ran = kit.cli(
        *("train", "--csv", meadow, "--targets", "soil", "crop", "--backbone", "dinoneck_tiny"),
        *("--epochs", 3, "--batch-size", 4, "--folds", 2, "--device", DEVICE, "--out", run),
    )
    assert ran.code == 0, ran.err

    own = predicted_table(run, meadow.parent, DEVICE)
    expected = predicted_table(run, meadow.parent, "cpu")

    assert len(own) == len(expected) == COUNT
    for target in ("soil", "crop"):
        np.testing.assert_allclose(own[target], expected[target], rtol=1e-3)
