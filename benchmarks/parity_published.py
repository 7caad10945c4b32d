"""Published heads next to what their publishers compute: an own formula in float64, and the modules of transformers."""

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
    """Return the rows with a difference above their bound, which NaN is too."""
    return [
        name
        for name, row in table.items()
        if not all(value <= row["bound"] for value in row.values())
    ]


def _logits(name: str, dtype: torch.dtype) -> dict[str, Row]:
    """Peer -> grid -> relative difference."""
    row, shapes = narrowed(row_named(name))
    state, head = official.random_state(shapes), cast("Any", row.build())
    head.load_state_dict(translate(state, head.state_dict(), name, dtype), assign=True)
    backbone = load_backbone(
        "dinoneck_tiny", layers=range(6 - len(row.layers), 6), norm=row.norm
    ).to(dtype)
    runs = {"formula": partial(official.logits, name, state), **peers.logits_of(name, state, dtype)}
    given, prefix = dict[str, Tokens](), backbone.num_prefix_tokens
    for rows, cols in GRIDS:
        draw = torch.Generator().manual_seed(rows)
        sequence = torch.randn(len(row.layers), 1, prefix + rows * cols, WIDTH, generator=draw).to(
            dtype
        )
        given[f"{rows}×{cols}"] = kit.tokens_from(list(sequence), rows, cols, prefix, PATCH)
    image = torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(1))
    prepare = Preprocessing(patch_size=PATCH, resize="pad", pad_to="center")
    given["100×150 px, padded"] = backbone(prepare([image]).to(dtype))
    table: dict[str, Row] = {peer: Row() for peer in runs}
    head.bins = None  # which leaves the logits
    for title, tokens in given.items():
        outputs = head.logits(tokens)[:1] if hasattr(head, "logits") else head(tokens).values()
        found = torch.cat([output.flatten(1) for output in outputs], dim=1)
        for peer, run in runs.items():
            table[peer][title] = _difference(found, run(tokens))
    return table


def _difference(found: Tensor, expected: Tensor) -> float:
    """Relative to what varies."""
    expected = expected.reshape(found.shape).double()
    return float((found.double() - expected).norm() / (expected - expected.mean()).norm())
