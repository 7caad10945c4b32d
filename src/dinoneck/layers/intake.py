"""What a module checks of the Tokens it is given: the backbone, layers and patch it was built for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinoneck.errors import ShapeError
from dinoneck.grid import PatchSize
from dinoneck.tokens import Tokens


def sequences(
    tokens: Tokens,
    module: nn.Module,
    embed_dim: int,
    *,
    num_layers: int | None = None,
    patch_size: PatchSize | None = None,
) -> tuple[Tensor, ...]:
    """Return the whole sequences (B, P + N, C), one per layer, checked against what ``module`` was built for.

    Args:
        tokens: as a backbone gives them.
        module: named in messages; its first parameter tells the dtype.
        embed_dim: channels C it was built for.
        num_layers: layers it was built for; None = any number.
        patch_size: pixels per patch it was built for; None = any.

    Raises:
        ShapeError: naming what does not fit.
    """
    owner = type(module).__name__
    if not isinstance(tokens, Tokens):
        raise ShapeError(
            f"{owner} takes Tokens, got {type(tokens).__name__}; use backbone(images), Tokens.from_sequence or "
            "Tokens.from_patches"
        )
    sequence = tokens.sequence
    if sequence[0].shape[-1] != embed_dim:
        raise ShapeError(
            f"the tokens have {sequence[0].shape[-1]} channels, this {owner} was built for {embed_dim}: it belongs to "
            "another backbone"
        )
    if num_layers is not None and len(sequence) != num_layers:
        raise ShapeError(
            f"the tokens hold {len(sequence)} layers {tokens.layers or ''}, this {owner} was built for {num_layers}; "
            "extract as many, or pick them with tokens.select(...)"
        )
    if patch_size is not None and tokens.patch_size != patch_size:
        raise ShapeError(
            f"the tokens' patches are {tokens.patch_size} px, this {owner} was built for {patch_size} px, so its "
            "strides would be wrong; build it with patch_size= of the backbone"
        )
    own = next(module.parameters()).dtype
    if sequence[0].dtype != own and not torch.is_autocast_enabled(sequence[0].device.type):
        raise ShapeError(
            f"the tokens are {sequence[0].dtype}, this {owner} is {own}: convert one of them (tokens.to(dtype=...)), "
            "or run under torch.autocast"
        )
    return sequence
