"""Dry mass from images with plain modules and a plain loop: tokens, layer grouper, pyramid, CLS gate, mean of patches.

``python -m examples.biomass.wiring`` takes some seconds on a CPU and downloads nothing: the images
are drawn, and the backbone is the built-in tiny one with seeded random weights. In the shapes, B is
the batch, N = rows * cols the number of patches, C = 64 the channels of the backbone and D = 32
those of this head. Begin with ``BiomassHead.forward``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck import (
    CLSGating,
    HeadCheckpoint,
    LayerGrouper,
    PatchMeanMLP,
    TokenGrid,
    Tokens,
    ViTFPN,
    load_backbone,
)
from dinoneck.configured import Configured
from dinoneck.data import Pasture
from dinoneck.registry import register

IMAGE_SIZE = (64, 128)  # (height, width) in pixels
TRAIN_IMAGES = 48
HELD_OUT_IMAGES = 32
EPOCHS = 12
BATCH_SIZE = 8
LEARNING_RATE = 2e-3


class BiomassHead(Configured, nn.Module):
    """Dry mass in grams from the tokens of several layers.

    ``Configured`` records the constructor's arguments, which are plain values, so that a file can
    rebuild the module.
    """

    def __init__(
        self, embed_dim: int, num_layers: int, channels: int = 32, patch_size: int = 16
    ) -> None:
        super().__init__()
        self.token_grid = TokenGrid(patch_size)  # tokens <-> maps; it has no parameters
        self.grouper = LayerGrouper(embed_dim, num_layers, channels, num_groups=2)
        self.pyramid = ViTFPN(
            channels, num_layers=2, fpn_dim=channels, num_levels=2, patch_size=patch_size
        )
        self.gate = CLSGating(channels, mode="query")
        self.patch_mean = PatchMeanMLP(2 * channels, hidden_dim=32, activation=None)
        # mean and standard deviation of the training masses: the file holds them as it holds the
        # weights
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the dry mass (B,) in units of ``std`` around ``mean``."""
        prefix = tokens.num_prefix_tokens  # CLS and two registers, before the N patches
        # norm and linear layer for each of the four layers, then the mean of two of them, token by
        # token: 4 x (B, 3 + N, C) -> 2 x (B, 3 + N, D)
        shallow, deep = self.grouper(tokens.sequence)
        # the pyramid drops the prefix and makes maps: (B, D, rows, cols) at stride 16,
        # (B, D, rows/2, cols/2) at 32; the fine level holds the coarse one, upsampled and added
        fine, _coarse = self.pyramid([shallow, deep], grid=tokens.grid, num_prefix_tokens=prefix)
        # the fine level as tokens: (B, D, rows, cols) -> (B, N, D)
        patches = self.token_grid.flatten(fine)
        # the CLS token, first of the sequence, (B, D), weighs the patches: weighted sum (B, D),
        # weights (B, N)
        pooled, _weights = self.gate(deep[:, 0], patches)
        # each patch with the summary of its image: (B, N, D) and (B, D) -> (B, N, 2D)
        features = torch.cat((patches, pooled[:, None].expand_as(patches)), dim=-1)
        # every patch predicts, and the mean counts: (B, N, 2D) -> (B, 1) -> (B,)
        return self.patch_mean(features)[:, 0]

    @torch.no_grad()
    def grams(self, tokens: Tokens) -> Tensor:
        """Return the dry mass (B,) in grams."""
        return self(tokens) * self.std + self.mean


# the name in files; a program that loads one imports this module first
register(BiomassHead, name="biomass_wiring")


def train(head: BiomassHead, tokens: Tokens, grams: Tensor) -> list[float]:
    """Fit the head to tokens of S images and their masses (S,); return the mean loss of every epoch."""
    head.mean.copy_(grams.mean())
    head.std.copy_(grams.std())
    target = (grams - head.mean) / head.std  # (S,)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    history = []
    for _ in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(tokens)).split(BATCH_SIZE):  # rows: (B,)
            loss = F.mse_loss(head(tokens[rows]), target[rows])  # (B,) and (B,) -> ()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        history.append(total / len(tokens))
    return history


def main() -> dict[str, float]:
    """Draw images, extract tokens once, train, save, load; print and return the numbers."""
    torch.manual_seed(0)
    pasture = Pasture(seed=0, size=IMAGE_SIZE)
    samples = [pasture.sample(i) for i in range(TRAIN_IMAGES + HELD_OUT_IMAGES)]
    grams = torch.tensor([sample.grams["Dry_Total_g"] for sample in samples])  # (S,)

    backbone = load_backbone("dinoneck_tiny", layers=4)  # frozen; the last four blocks
    # (S, 3, 64, 128), normalised
    images = backbone.preprocess([sample.image for sample in samples])
    tokens = backbone(images)  # 4 layers of (S, 3 + 32, 64) and their grid
    grid = TokenGrid(backbone.patch_size).size(IMAGE_SIZE)  # from the image's size, never from N
    print(
        f"{len(tokens)} images of {IMAGE_SIZE} px -> {grid}, {len(tokens.sequence)} layers of "
        f"{backbone.embed_dim}"
    )

    head = BiomassHead(backbone.embed_dim, num_layers=len(tokens.sequence))
    history = train(head, tokens[:TRAIN_IMAGES], grams[:TRAIN_IMAGES])
    print(f"training loss (MSE of standardised masses): {history[0]:.2f} -> {history[-1]:.2f}")

    head.eval()
    unseen = tokens[TRAIN_IMAGES:]
    true = grams[TRAIN_IMAGES:]
    predicted = head.grams(unseen)  # (S,)
    error = (predicted - true).abs().mean()
    constant = (head.mean - true).abs().mean()
    print(
        f"held-out images: off by {error:.1f} g on average; always predicting the mean: "
        f"{constant:.1f} g"
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "biomass.safetensors"
        trained = HeadCheckpoint.from_module(
            head, backbone=backbone, preprocess=backbone.preprocess
        )
        trained.save(path)
        checkpoint = HeadCheckpoint.load(path)
        checkpoint.check_backbone(backbone)  # raises CheckpointError for other weights or layers
        loaded = checkpoint.build()  # in eval mode
        print(
            f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, made on "
            f"{checkpoint.meta['backbone']['name']}"
        )
    difference = (loaded.grams(unseen) - predicted).abs().max()
    print(f"the loaded head predicts the same: largest difference {difference:.1g} g")
    return {
        "first_loss": history[0],
        "last_loss": history[-1],
        "error": float(error),
        "constant": float(constant),
        "difference": float(difference),
    }


if __name__ == "__main__":
    main()
