"""Published heads next to what their publishers compute: a plain formula, and transformers' modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from tests import kit
from tests.unit.published import official_files as official
from tests.unit.published import peers
from tests.unit.published.narrow import PATCH, WIDTH, narrowed
from torch import Tensor

from benchmarks.measure import Row
from dinoneck import Tokens, load_backbone
from dinoneck.data import Preprocessing
from dinoneck.published.loading import translate
from dinoneck.published.table import row_named

GRIDS = ((7, 9), (8, 8), (16, 22), (1, 3))
DEPTH = 6  # of dinoneck_tiny
IMAGE = (100, 150)  # no multiples of the patch: it is padded to 112x160
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}
FORMS = (
    "dinov2_vits14_imagenet_linear",
    "dinov2_vits14_imagenet_linear4",
    "dinov2_vits14_nyu_linear",
    "dinov2_vits14_nyu_linear4",
    "dinov2_vits14_nyu_dpt",
    "dinov2_vits14_voc2012_linear",
    "dinov2_vits14_ade20k_ms",
    "dinov3_vitl16_sat_chmv2",
    "dinov3_vit7b16_synthmix_dpt",
    "dinov2_vits14_depth_anything_v2",
    "dinov2_vits14_depth_anything_v2_indoor",
    "tipsv2_b14_depth",
    "tipsv2_b14_normals",
    "tipsv2_b14_ade20k",
    "dinov3_vits16_coco_panoptic_pmt640",
)


@torch.no_grad()
def tables() -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the differences of logits in float32 and in float64."""
    for dtype, bound in BOUNDS.items():
        table: dict[str, Row] = {}
        for name in FORMS:
            for peer, row in _logits(name, dtype).items():
                table[f"`{name}`, {peer}"] = {**row, "bound": bound}
        yield f"published heads, {str(dtype).removeprefix('torch.')}", table


def above(table: Mapping[str, Row]) -> list[str]:
    """Return the rows with a difference above their bound; NaN is above it."""
    names = []
    for name, row in table.items():
        if not all(value <= row["bound"] for value in row.values()):
            names.append(name)
    return names


def _logits(name: str, dtype: torch.dtype) -> dict[str, Row]:
    """Return peer -> grid -> relative difference."""
    row, shapes = narrowed(row_named(name))
    num_layers = len(row.layers)
    state = official.random_state(shapes)
    head = cast("Any", row.build())
    tensors = translate(state, head.state_dict(), name, rename=row.rename, dtype=dtype)
    head.load_state_dict(tensors, assign=True)
    head.bins = None  # the outputs are then the logits
    peer_logits = {"formula": partial(official.logits, name, state)}
    peer_logits |= peers.logits_of(name, state, dtype)

    last_layers = range(DEPTH - num_layers, DEPTH)
    backbone = load_backbone("dinoneck_tiny", layers=last_layers, norm=row.norm).to(dtype)
    prefix = backbone.num_prefix_tokens
    inputs: dict[str, Tokens] = {}
    for rows, cols in GRIDS:
        generator = torch.Generator().manual_seed(rows)
        shape = (num_layers, 1, prefix + rows * cols, WIDTH)
        sequence = torch.randn(*shape, generator=generator).to(dtype)
        inputs[f"{rows}×{cols}"] = kit.tokens_from(list(sequence), rows, cols, prefix, PATCH)
    image = torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(1))
    prepare = Preprocessing(patch_size=PATCH, resize="pad", pad_to="center")
    inputs["100×150 px, padded"] = backbone(prepare([image]).to(dtype))

    table: dict[str, Row] = {peer: Row() for peer in peer_logits}
    for title, tokens in inputs.items():
        outputs = head.logits(tokens)[:1] if hasattr(head, "logits") else head(tokens).values()
        logits = torch.cat([output.flatten(1) for output in outputs], dim=1)
        for peer, compute in peer_logits.items():
            table[peer][title] = _difference(logits, compute(tokens))
    return table


def _difference(logits: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to that of the expected values around their mean."""
    expected = expected.reshape(logits.shape).double()
    return float((logits.double() - expected).norm() / (expected - expected.mean()).norm())
