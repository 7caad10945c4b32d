"""TIPSv2's heads: against transformers' classes, and their file, which holds three heads and often the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import kit
from tests.unit.published import official_files as official
from tests.unit.published.narrow import CHANNELS, HIDDEN, WIDTH, narrowed
from tests.unit.published.test_published import TIPSV2, near
from torch import Tensor

from dinoneck import (
    CheckpointError,
    HeadCheckpoint,
    Predictor,
    list_published,
    load_backbone,
    load_published,
)
from dinoneck.cli.main import main
from dinoneck.published import PublishedHead, table
from dinoneck.published.loading import translate

GRIDS = [(7, 9), (5, 12), (16, 22)]
ROWS = [row for row in list_published() if row.name.startswith("tipsv2")]
SIDES = (70, 100)  # of the image


def narrow_head(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Tensor]]:
    """A head on 64 channels with the random weights of its file, and the tensors of the file."""
    row, shapes = narrowed(table.row_named(name))
    state = official.random_state(shapes)
    head: Any = row.build()
    tensors = translate(state, head.state_dict(), "the file", rename=row.rename, dtype=dtype)
    head.load_state_dict(tensors, assign=True)
    return head, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", TIPSV2)
def test_a_narrow_head_gives_the_logits_of_transformers(name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("transformers.models.tipsv2_dpt")
    from tests.unit.published import peers

    head, state = narrow_head(name, dtype)
    peer = peers.logits_of(name, state, dtype)["transformers"]
    bound = 1e-5 if dtype == torch.float32 else 1e-13
    for grid in GRIDS:
        torch.manual_seed(grid[0])
        tokens = kit.tokens(2, *grid, width=WIDTH, layers=4, dtype=dtype)
        assert near(head.logits(tokens)[0], peer(tokens), bound)


def test_the_readout_with_exact_gelu_is_another_one() -> None:
    """So that the parity above would not hold with it."""
    head, _ = narrow_head("tipsv2_b14_normals", torch.float64)
    exact: Any = type(head).from_config(with_exact_gelu(head.config)).double()
    exact.load_state_dict(head.state_dict())
    tokens = kit.tokens(1, 7, 9, width=WIDTH, layers=4, dtype=torch.float64)
    assert not near(exact.logits(tokens)[0], head.logits(tokens)[0], 1e-5)


def with_exact_gelu(config: dict[str, Any]) -> dict[str, Any]:
    neck = config["neck"]
    return {
        **config,
        "neck": {**neck, "config": {**neck["config"], "readout_activation": "gelu"}},
    }


def test_normals_are_the_formula_in_float64() -> None:
    """Divided by their length at the decoder's cells, resized to the image, and divided again."""
    head, state = narrow_head("tipsv2_b14_normals", torch.float64)
    tokens = kit.tokens(1, 5, 12, width=WIDTH, layers=4, dtype=torch.float64)
    logits = official.tipsv2_logits("tipsv2_b14_normals", state_in_float64(state), tokens)
    cells = logits / logits.norm(dim=1, keepdim=True)
    resized = torch.nn.functional.interpolate(cells, size=tokens.image_size, mode="bilinear")
    normals = head.predict(tokens)["normals"]
    assert torch.allclose(normals, resized / resized.norm(dim=1, keepdim=True), atol=1e-12)
    assert torch.allclose(normals.norm(dim=1), torch.ones(()).double(), atol=1e-12)


def state_in_float64(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in state.items()}


@pytest.mark.parametrize("name", TIPSV2)
def test_a_saved_head_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    head, _ = narrow_head(name)
    HeadCheckpoint.from_module(head).save(tmp_path / "head.safetensors")
    loaded: Any = HeadCheckpoint.load(tmp_path / "head.safetensors").build()
    tokens = kit.tokens(1, 5, 9, width=WIDTH, layers=4)
    assert loaded.config == head.config
    for key, value in head.predict(tokens).items():
        assert torch.equal(loaded.predict(tokens)[key], value)


def whole_file(row: PublishedHead, backbone: bool = True) -> dict[str, Tensor]:
    """Names and shapes of all that the publisher's file holds, on the meta device."""
    size = row.name.split("_")[1]
    shapes = {}
    for task in official.TIPSV2_HEADS:
        shapes |= official.shapes_of(f"tipsv2_{size}_{task}")[0]
    if backbone:
        shapes |= {"vision_encoder.cls_token": (1, 1, row.model.width)}
        shapes |= {"vision_encoder.mask_token": (1, row.model.width)}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_file_of_three_heads_holds_each_of_them(row: PublishedHead) -> None:
    head = row.build().state_dict()
    state = whole_file(row)
    assert row.layers[-1] == row.model.depth - 1
    assert row.licence == "Apache-2.0"
    assert row.licence_source.startswith(row.url)
    assert row.revision is None  # it is not pinned
    assert translate(state, head, "the file", rename=row.rename).keys() == head.keys()
    own = [name for name in state if row.rename(name) is not None]
    assert len(own) == 52
    for name in (own[0], own[-1]):
        missing = {key: value for key, value in state.items() if key != name}
        with pytest.raises(CheckpointError, match=f"lacks {row.rename(name)}"):
            translate(missing, head, "the file", rename=row.rename)
        reshaped = {**state, name: torch.empty(1, 1, 7, device="meta")}
        with pytest.raises(CheckpointError, match=f"{name} has the shape"):
            translate(reshaped, head, "the file", rename=row.rename)
    for extra in (f"{own[0]}.again", "aux_head.weight", "text_encoder.weight"):
        with pytest.raises(CheckpointError, match=f"holds {extra} in addition"):
            translate({**state, extra: torch.empty(3)}, head, "the file", rename=row.rename)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"is no \.safetensors file.*google/tipsv2-b14-dpt"):
        load_published(TIPSV2[0], weights=tmp_path / "head.pth")
