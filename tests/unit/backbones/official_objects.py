"""Small stand-ins with the interface of the dinov2 and dinov3 repositories' objects (not their code)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block whose output depends on every token, and on the rotary pair if one is given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.Module()
        self.attn.qkv = nn.Linear(width, width)
        self.attn.proj = nn.Linear(width, width)
        self.mlp = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        y = self.attn.proj(self.attn.qkv(x).tanh() + x.mean(dim=1, keepdim=True))
        if rope is not None:
            sin = rope[0].to(y.dtype)
            y = torch.cat(
                (y[:, : -len(sin)], y[:, -len(sin) :] + sin.mean(dim=-1)[None, :, None]), dim=1
            )
        return x + y + self.mlp(x).relu() / 4


class ListBlock(Block):
    """A block that also takes a list of sequences with a list of rotary pairs, as dinov3's does."""

    def forward(self, x: Any, rope: Any = None) -> Any:
        if isinstance(x, list):
            pairs = zip(x, rope, strict=True)
            return [super(ListBlock, self).forward(tokens, pair) for tokens, pair in pairs]
        return super().forward(x, rope)


class Attention(nn.Module):
    """Each token and the mean of all, moved by the rotary pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, attn_bias: Any = None, rope: Any = None) -> Tensor:
        y = self.qkv(x)
        sin = rope[0].to(y.dtype)
        moved = y[:, -len(sin) :] + sin.mean(dim=-1)[None, :, None]
        y = torch.cat((y[:, : -len(sin)], moved), dim=1)
        return self.proj(y.tanh() + x.mean(dim=1, keepdim=True))


class SubsetBlock(nn.Module):
    """A block with the modules of dinov3's, which computes the size of a random subset in evaluation too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sample_drop_ratio = 0.0
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.ls1 = nn.Identity()
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, width)
        self.ls2 = nn.Identity()

    def forward(self, x: Any, rope: Any = None) -> Any:
        if isinstance(x, list):
            pairs = zip(x, rope, strict=True)
            return [self.forward(tokens, pair) for tokens, pair in pairs]
        subset_size = max(int(x.shape[0] * (1 - self.sample_drop_ratio)), 1)
        if self.training and subset_size < x.shape[0]:
            raise NotImplementedError
        x = x + self.ls1(self.attn(self.norm1(x), rope=rope))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Chunk(nn.ModuleList):
    """A chunk of blocks that is called as one, as in dinov2."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class Rotary(nn.Module):
    """Rotary positions that move at random in training mode, as the real ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("periods", torch.linspace(1, 9, 4))

    def forward(self, *, H: int, W: int) -> tuple[Tensor, Tensor]:
        place = torch.stack(
            torch.meshgrid(torch.arange(0.5, H) / H, torch.arange(0.5, W) / W, indexing="ij"),
            dim=-1,
        )
        place = place.reshape(-1, 2) * (1 + torch.rand(1) if self.training else 1.0)
        angles = (place[:, :, None] / self.periods).flatten(1)
        return angles.sin(), angles.cos()


class Official(nn.Module):
    """What both have in common."""

    block_type: type[nn.Module] = Block

    def __init__(
        self, width: int = 8, depth: int = 4, patch: int = 4, registers: int = 0, chunks: int = 0
    ) -> None:
        super().__init__()
        self.embed_dim, self.patch_size, self.n_blocks = width, patch, depth
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.extra_tokens = nn.Parameter(torch.randn(1, registers, width))
        flat = [self.block_type(width) for _ in range(depth)]
        self.chunked_blocks = chunks > 0
        if chunks:
            size = depth // chunks
            self.blocks = nn.ModuleList(
                Chunk([nn.Identity()] * i + flat[i : i + size]) for i in range(0, depth, size)
            )
        else:
            self.blocks = nn.ModuleList(flat)
        self.flat = tuple(flat)
        self.norm = nn.LayerNorm(width)

    def tokens(self, x: Tensor) -> Tensor:
        patches = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        return torch.cat(
            (
                self.cls_token.expand(len(x), -1, -1),
                self.extra_tokens.expand(len(x), -1, -1),
                patches,
            ),
            1,
        )

    def outputs(self, x: Tensor, n: Any, norm: bool) -> list[Tensor]:
        y, found = self.tokens(x), []
        for number, block in enumerate(self.flat):
            y = self.run(block, y, x)
            if number in n:
                found.append(self.normed(y) if norm else y)
        return found

    def run(self, block: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        return block(y)

    def normed(self, y: Tensor) -> Tensor:
        return self.norm(y)

    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)["x_norm_clstoken"]


class Dinov2Like(Official):
    """dinov2's surface: positional n, no way to the registers."""

    def __init__(self, **setting: Any) -> None:
        super().__init__(**setting)
        self.num_register_tokens = self.extra_tokens.shape[1]

    def prepare_tokens_with_masks(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        return self.tokens(x)

    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
        y = self.prepare_tokens_with_masks(x, masks)
        for block in self.blocks:
            y = block(y)
        normed = self.normed(y)
        skip = 1 + self.num_register_tokens
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1:skip],
            "x_norm_patchtokens": normed[:, skip:],
        }


class Dinov3Like(Official):
    """dinov3's surface: keyword n, extra tokens, rotary positions, perhaps a norm of its own for the prefix.

    Its forward calls the blocks with lists of sequences, one of them for one batch of images.
    """

    block_type = ListBlock

    def __init__(self, *, untied: bool = False, **setting: Any) -> None:
        super().__init__(**setting)
        self.n_storage_tokens = self.extra_tokens.shape[1]
        self.rope_embed = Rotary()
        self.untie_cls_and_patch_norms = untied
        self.cls_norm = nn.LayerNorm(self.embed_dim) if untied else None
        if untied:
            nn.init.constant_(self.cls_norm.weight, 3.0)

    def prepare_tokens_with_masks(
        self, x: Tensor, masks: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        return self.tokens(x), (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)

    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
        return self.forward_features_list([x], [masks])[0]

    def forward_features_list(self, images: list[Tensor], masks: list[Any]) -> list[Any]:
        sequences, positions = [], []
        for x, mask in zip(images, masks, strict=True):
            tokens, (rows, cols) = self.prepare_tokens_with_masks(x, mask)
            sequences.append(tokens)
            positions.append(self.rope_embed(H=rows, W=cols))
        for block in self.blocks:
            sequences = block(sequences, positions)
        skip = 1 + self.n_storage_tokens
        outputs = []
        for sequence in sequences:
            normed = self.normed(sequence)
            outputs.append(
                {
                    "x_norm_clstoken": normed[:, 0],
                    "x_storage_tokens": normed[:, 1:skip],
                    "x_norm_patchtokens": normed[:, skip:],
                }
            )
        return outputs

    def run(self, block: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        return block(
            y, self.rope_embed(H=x.shape[-2] // self.patch_size, W=x.shape[-1] // self.patch_size)
        )

    def normed(self, y: Tensor) -> Tensor:
        if not self.untie_cls_and_patch_norms:
            return self.norm(y)
        skip = 1 + self.n_storage_tokens
        return torch.cat((self.cls_norm(y[:, :skip]), self.norm(y[:, skip:])), dim=1)
