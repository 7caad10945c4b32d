"""From photo files to predictions in three ways: a design source's scripts, timm with a plain head, dinoneck.

All three share one backbone's weights, the same heads (gate of the CLS token, one hidden layer, softplus), the same
resizing and four views (flips). The source's own resizing is OpenCV's on uint8; here everybody uses
``F.interpolate(mode="area")`` on floats, so that results can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from dinoneck import Backbone, CLSGatingHead, Predictor, Task, load_backbone
from dinoneck.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD

TASKS = (Task("main", dim=3, activation="softplus"), Task("height", activation="softplus"))
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
Answer = Tensor


class PlainHead(nn.Module):
    """The head of design source 003, with the weights of ours: the weighted patches exist, then they are summed."""

    def __init__(self, head: CLSGatingHead) -> None:
        super().__init__()
        self.hidden, self.out = head.gating.hidden, head.gating.out
        self.trunk, self.norm, self.dropout, self.readouts = head.trunk, head.norm, head.dropout, head.readouts

    def forward(self, cls_token: Tensor, patches: Tensor) -> list[Tensor]:
        """(B, C), (B, N, C) -> one (B, dim) per task."""
        weights = self.out(F.gelu(self.hidden(cls_token))).softmax(dim=-1)
        pooled = (patches * weights.unsqueeze(-1)).sum(dim=1)
        shared = self.dropout(F.gelu(self.norm(self.trunk(torch.cat([cls_token, pooled], dim=-1)))))
        return [F.softplus(readout(shared)) for readout in self.readouts]


def preprocess_at(side: int) -> str:
    """What tables call opening photos for a backbone that takes squares of this side."""
    return f"preprocess (decode, resize, normalise), {side} px"


@dataclass
class Work:
    """What is predicted with.

    Attributes:
        backbone: the name of a model.
        layer: block that the heads read; the last block = nothing can be left out.
        size: height and width of the images in pixels.
        folds: how many heads.
        flips: views of every photo.
        device: of backbone and heads.
    """

    backbone: str
    layer: int
    size: tuple[int, int]
    folds: int = 5
    flips: tuple[tuple[int, ...], ...] = FLIPS
    device: str = "cpu"

    def load(self, dtype: torch.dtype) -> Backbone:
        """Return the backbone with seeded weights, the same in every dtype."""
        options: dict[str, Any] = {} if self.backbone == "dinoneck_tiny" else {"pretrained": False, "seed": 0}
        return load_backbone(self.backbone, layers=[self.layer], dtype=dtype, **options).to(self.device)

    def heads(self, embed_dim: int, patch: int, dtype: torch.dtype = torch.float32) -> list[CLSGatingHead]:
        """Return the folds' heads, the same at every call."""
        count = (self.size[0] // patch) * (self.size[1] // patch)
        torch.manual_seed(0)
        made = [CLSGatingHead(embed_dim, TASKS, num_patches=count) for _ in range(self.folds)]
        return [head.eval().to(self.device, dtype) for head in made]


def read(path: Path) -> np.ndarray[Any, Any]:
    """One photo file -> (H, W, 3) uint8, upright."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def resized(photo: np.ndarray[Any, Any], size: tuple[int, int]) -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) float32 in 0 ... 1."""
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255.0
    return F.interpolate(x[None], size=size, mode="area")[0]


def all_blocks(model: nn.Module, layer: int, images: Tensor) -> Tensor:
    """The normed sequence (B, P + N, C) of a block of a timm ViT, after all blocks have run."""
    return sequence_of(model, layer, images, stop_early=False)


def sequence_of(model: Any, layer: int, images: Tensor, *, stop_early: bool) -> Tensor:
    """The normed sequence of a block, as timm gives it: patches and prefix apart; put together again for a head."""
    if layer == len(model.blocks) - 1:
        whole: Tensor = model.forward_features(images)
        return whole
    options = {"norm": True, "output_fmt": "NLC", "intermediates_only": True, "return_prefix_tokens": True}
    [(patches, prefix)] = model.forward_intermediates(images, indices=[layer], stop_early=stop_early, **options)
    return torch.cat([prefix, patches], dim=1)


def source(
    work: Work, backbone: Backbone, heads: Sequence[PlainHead], files: Path | None
) -> Callable[[Sequence[Path]], Answer]:
    """Design source 003: one view at a time, float32, every block, head after head; ``files``: through npz."""
    model, prefix = backbone.adapter.model, backbone.num_prefix_tokens
    mean, std = (np.array(values) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def features(path: Path) -> list[tuple[Tensor, Tensor]]:
        image = resized(read(path), work.size).permute(1, 2, 0).numpy()
        found = []
        for flip in work.flips:
            view = np.flip(image, [axis - 1 for axis in flip])  # of (height, width, channels)
            x = torch.tensor((view - mean) / std, dtype=torch.float32).permute(2, 0, 1).unsqueeze(0)
            out = all_blocks(model, work.layer, x.to(work.device, backbone.dtype))
            found.append((out[:, 0, :], out[:, prefix:, :]))
        return found

    def through_files(name: str, found: list[tuple[Tensor, Tensor]], folder: Path) -> list[tuple[Tensor, Tensor]]:
        arrays = {}
        for i, (cls_token, patches) in enumerate(found):
            arrays[f"cls_{i}"], arrays[f"patches_{i}"] = (
                cls_token.cpu().numpy().squeeze(0),
                patches.cpu().numpy().squeeze(0),
            )
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        with np.load(folder / f"{name}.npz") as content:
            return [
                tuple(torch.tensor(content[f"{part}_{i}"])[None].to(work.device) for part in ("cls", "patches"))
                for i in range(len(found))
            ]

    @torch.no_grad()
    def run(paths: Sequence[Path]) -> Answer:
        rows = []
        for path in paths:
            found = features(path)
            if files is not None:
                found = through_files(path.stem, found, files)
            said = [torch.cat(head(*tokens), dim=-1) for tokens in found for head in heads]
            rows.append(torch.cat(said).mean(dim=0))
        return torch.stack(rows).cpu()

    return run


def careful(
    work: Work, backbone: Backbone, heads: Sequence[PlainHead], *, stop_early: bool, batch: int = 8
) -> Callable[[Sequence[Path]], Answer]:
    """Timm as a careful user calls it: photos in batches, one forward per view, inference mode, heads in turn."""
    model, prefix = backbone.adapter.model, backbone.num_prefix_tokens
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    own = next(heads[0].parameters()).dtype

    @torch.inference_mode()
    def run(paths: Sequence[Path]) -> Answer:
        rows = []
        for begin in range(0, len(paths), batch):
            photos = [(resized(read(path), work.size) - mean) / std for path in paths[begin : begin + batch]]
            images, said = torch.stack(photos).to(work.device, backbone.dtype), []
            for flip in work.flips:
                tokens = sequence_of(model, work.layer, images.flip(flip), stop_early=stop_early).to(own)
                said += [torch.cat(head(tokens[:, 0], tokens[:, prefix:]), dim=-1) for head in heads]
            rows.append(torch.stack(said).mean(dim=0))
        return torch.cat(rows).cpu()

    return run


def ours(
    work: Work, backbone: Backbone, heads: Sequence[CLSGatingHead], batch: int | None = None
) -> Callable[[Sequence[Path]], Answer]:
    """The Predictor: heads together, no block more than is read."""
    recipe = backbone.preprocess.changed(size=work.size, interpolation="area")
    tta: Any = {1: "none", 4: "flip4"}[len(work.flips)]
    predictor = Predictor(list(heads), backbone, tta=tta, preprocess=recipe, batch_size=batch)

    def run(paths: Sequence[Path]) -> Answer:
        rows = predictor([str(path) for path in paths])
        found = [np.concatenate([np.atleast_1d(row[task.name]) for task in TASKS]) for row in rows]
        return torch.from_numpy(np.stack(found))

    return run
