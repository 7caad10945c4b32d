"""Published heads next to what their publishers compute: an own formula in float64, and the modules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from tests import kit
from tests.unit.published import official_files as official
from tests.unit.published import peers
from tests.unit.published.narrow import PATCH, WIDTH, narrowed
from torch import Tensor

from benchmarks.measure import Row
from dinoneck import Predictor, Tokens, load_backbone
from dinoneck.data import Preprocessing
from dinoneck.data.preprocessing import Placement
from dinoneck.published.names import translated
from dinoneck.published.table import row_named

GRIDS = ((7, 9), (8, 8), (16, 22), (1, 3))
IMAGE = (100, 150)  # no multiples of the patch: it is padded to 112x160
BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-12}
PIXELS = 1e-4  # the values of bins vary by little, and the difference is relative to that
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
)
OWN = {"imagenet": official.classifier, "voc2012": official.segmentation, "ade20k": official.segmentation}
OWN |= {"nyu_linear": official.depth_logits}
Logits = Callable[[Tokens], Tensor]


@torch.no_grad()
def tables() -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the differences of logits in float32 and in float64, and of maps in the pixels of an image."""
    pixels: dict[str, Row] = {}
    for dtype, bound in BOUNDS.items():
        table: dict[str, Row] = {}
        for name in FORMS:
            for peer, row in _logits(name, dtype).items():
                table[f"`{name}`, {peer}"] = {**row, "bound": bound}
        yield f"published heads, {str(dtype).removeprefix('torch.')}", table
    for name in FORMS:
        if "imagenet" not in name:
            pixels[f"`{name}`"] = {"difference": _pixels(name), "bound": PIXELS}
    yield "published heads, pixels", pixels


def above(table: Mapping[str, Row]) -> list[str]:
    """Return the rows with a difference above their bound, which NaN is too."""
    return [name for name, row in table.items() if not all(value <= row["bound"] for value in row.values())]


def _prepared(name: str, dtype: torch.dtype) -> tuple[Any, Any, Preprocessing, dict[str, Tensor]]:
    """The head, a backbone of its width, how images are prepared, and the tensors of the head's file."""
    row, shapes = narrowed(row_named(name))
    state, head = official.random_state(shapes), row.build()
    head.load_state_dict(translated(state, head.state_dict(), name, dtype), assign=True)
    backbone = load_backbone("dinoneck_tiny", layers=range(6 - head.num_layers, 6), norm=row.norm).to(dtype)
    own = {key: row.inputs[key] for key in ("mean", "std") if key in row.inputs}
    return head, backbone, Preprocessing(patch_size=PATCH, resize="pad", pad_to="center", **own), state


def _image() -> Tensor:
    return torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(1))


def _formula(name: str, state: Mapping[str, Tensor]) -> Logits:
    """What the publisher computes, in float64."""
    own = next((own for part, own in OWN.items() if part in name), official.dpt_logits)
    exact = {key: value.double() for key, value in state.items()}
    return lambda tokens: own(exact, tokens.to(dtype=torch.float64))


def _logits(name: str, dtype: torch.dtype) -> dict[str, Row]:
    """Peer -> grid -> relative difference."""
    head, backbone, prepare, state = _prepared(name, dtype)
    runs = {"formula": _formula(name, state), **peers.logits_of(name, state, dtype)}
    prefix = backbone.num_prefix_tokens
    given = {}
    for rows, cols in GRIDS:
        draw = torch.Generator().manual_seed(rows)
        sequence = torch.randn(head.num_layers, 1, prefix + rows * cols, WIDTH, generator=draw).to(dtype)
        given[f"{rows}×{cols}"] = kit.tokens_from(list(sequence), rows, cols, prefix, PATCH)
    given["100×150 px, padded"] = backbone(prepare([_image()]).to(dtype))
    table: dict[str, Row] = {peer: Row() for peer in runs}
    for title, tokens in given.items():
        bins, head.bins = getattr(head, "bins", None), None
        found = head.logits(tokens)[0] if hasattr(head, "logits") else next(iter(head(tokens).values()))
        head.bins = bins
        for peer, run in runs.items():
            table[peer][title] = _difference(found, run(tokens))
    return table


def _difference(found: Tensor, expected: Tensor) -> float:
    """Relative to what varies."""
    expected = expected.reshape(found.shape).double()
    return float((found.double() - expected).norm() / (expected - expected.mean()).norm())


def _pixels(name: str) -> float:
    """The relative difference of a Predictor's map from the cells that show the image, resized to its pixels."""
    head, backbone, prepare, state = _prepared(name, torch.float32)
    tokens = backbone(prepare([_image()]))
    cells = official.values(name, _formula(name, state)(tokens))
    if hasattr(head, "logits"):
        cells = F.interpolate(cells, size=tokens.image_size, mode="bilinear", align_corners=False)
    classes = head.tasks[0].kind == "segmentation"
    [result] = Predictor(head, backbone, preprocess=prepare)(_image(), maps="image", probabilities=classes)
    expected = _cut(cells, prepare.placement(IMAGE))
    [found] = result["maps"].values()
    return _difference(torch.as_tensor(found)[None], expected.softmax(dim=1) if classes else expected)


def _cut(cells: Tensor, placement: Placement) -> Tensor:
    """Leave out the cells that show padding alone, and resize the others to the pixels of the image."""
    places = []
    for side, (count, canvas, corner, pixels) in enumerate(
        zip(cells.shape[2:], placement.canvas, placement.corner, IMAGE, strict=True), start=2
    ):
        first, last = corner * count // canvas, -(-(corner + pixels) * count // canvas)
        cells = cells.narrow(side, first, last - first)
        place = (torch.arange(pixels, dtype=torch.float64) + 0.5 + corner) * count / canvas - first
        places.append(2 * place / (last - first) - 1)
    rows, cols = torch.meshgrid(*places, indexing="ij")
    where = torch.stack([cols, rows], dim=-1)[None]  # (1, height, width, 2)
    return F.grid_sample(cells, where, mode="bilinear", padding_mode="border", align_corners=False)
