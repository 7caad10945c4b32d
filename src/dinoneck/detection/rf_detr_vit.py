"""The ViT of an RF-DETR as a backbone, so that every runtime can compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import Adapter, ForwardTokens
from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import BackboneError
from dinoneck.grid import as_maps
from dinoneck.kinds import Runtime
from dinoneck.published.detectors import VIT_NAME


class WindowedVit(Adapter):
    """The windowed DINOv2 of an RF-DETR, for square images of one size.

    Its blocks take the windows of an image as a batch (B * W, 1 + N / W, C), each with a CLS token.
    The final norm puts them together again: (B, W + N, C), the CLS tokens of all windows first.

    Args:
        model: the ViT, of transformers.
        image_size: (height, width) in pixels of the images.
    """

    source = "transformers"
    attention = "attention"

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__(model)
        config: Any = model.config
        self.embed_dim = config.hidden_size
        self.patch_size = (config.patch_size, config.patch_size)
        self.num_cls = 0
        self.num_registers = config.num_windows**2
        self._image_size = image_size

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order."""
        return list(self.model.encoder.layer)

    @property
    def norms(self) -> Sequence[nn.Module]:
        """The final norm."""
        return (self.model.layernorm,)

    @property
    def patch_embedding(self) -> nn.Module:
        """The module that makes patches of images."""
        module: nn.Module = self.model.embeddings.patch_embeddings
        return module

    @property
    def fixed_size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self._image_size

    def embed_natively(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens (B, 1 + N, C) of whole images with positions, and the size of the images."""
        height, width = images.shape[-2:]
        embeddings = self.model.embeddings
        patches = embeddings.patch_embeddings(images)  # (B, N, C)
        cls_tokens = embeddings.cls_token.expand(images.shape[0], -1, -1)
        tokens = torch.cat((cls_tokens, patches), dim=1)
        positions = embeddings.interpolate_pos_encoding(tokens, height, width)
        return tokens + positions, (height, width)

    def block_input(self, tokens: Tensor, extra: tuple[int, int]) -> Tensor:
        """Return the windows (B * W, 1 + N / W, C) of the tokens (B, 1 + N, C) of whole images."""
        windows: Tensor = self.model.embeddings.window_partition(tokens, *extra)
        return windows

    def step(self, block: nn.Module, number: int, x: Tensor, extra: tuple[int, int]) -> Tensor:
        """Run a block on windows; the first one gets whole images."""
        if number == 0:
            x = self.block_input(x, extra)
        output: Tensor = block(x)
        return output

    def final_norm(self, x: Tensor) -> Tensor:
        """Apply the final norm to windows, and put them together: (B, W + N, C)."""
        normed = self.model.layernorm(x)
        num_windows = self.num_registers
        batch = normed.shape[0] // num_windows
        cls_tokens = normed[:, 0].reshape(batch, num_windows, self.embed_dim)
        windows = self.model.window_unpartition(normed[:, 1:], *self._image_size)
        patches = windows.reshape(batch, -1, self.embed_dim)
        return torch.cat((cls_tokens, patches), dim=1)

    def tokens_in_output(self, output: Any) -> list[ForwardTokens]:
        """Raise a BackboneError: the model returns maps of some blocks."""
        raise BackboneError(f"{type(self.model).__name__} returns maps; expected tokens")


class VitMaps(NamedTuple):
    """What the projector reads of the ViT, by the name that transformers gives it.

    Attributes:
        feature_maps: (B, C, rows, cols) of one block each.
    """

    feature_maps: tuple[Tensor, ...]


class VitOfRuntime(nn.Module):
    """Stands in the place of the ViT of an RF-DETR and gives its maps, computed by any runtime.

    Its modules, and so the names of its weights, are those of the ViT, which is frozen.

    Args:
        vit: of transformers.
        image_size: (height, width) in pixels of the images.
        runtime: see :meth:`dinoneck.Backbone.with_runtime`.

    Raises:
        BackboneError: if ``openvino`` does not compute in the dtype of the weights.
        ImportError: naming the extra, if ``openvino`` is not installed.
    """

    def __init__(self, vit: nn.Module, image_size: tuple[int, int], runtime: Runtime) -> None:
        super().__init__()
        config: Any = vit.config
        self.config = config
        self.embeddings = vit.embeddings
        self.encoder = vit.encoder
        self.layernorm = vit.layernorm
        layers = [number - 1 for number in config.out_indices]
        backbone = Backbone(
            WindowedVit(vit, image_size),
            name=VIT_NAME,
            layers=layers,
            origin={"kind": "detector"},
        )
        # in a tuple, because its weights are listed above
        self._backbones = (backbone.with_runtime(runtime),)

    @property
    def backbone(self) -> Backbone:
        """The ViT as a backbone."""
        return self._backbones[0]

    @property
    def plain_vit(self) -> nn.Module:
        """The ViT of transformers, with the same weights."""
        vit: nn.Module = self.backbone.adapter.model
        return vit

    def forward(self, pixel_values: Tensor) -> VitMaps:
        """Return the maps (B, C, rows, cols) that the projector reads, of normalised images (B, 3, H, W)."""
        tokens = self.backbone(pixel_values)
        maps = []
        for patches in tokens.patches:
            maps.append(as_maps(patches, tokens.grid).contiguous())
        return VitMaps(tuple(maps))
