"""The inputs of necks and heads: Tokens, or plain tensors that are converted to Tokens here, and their checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from dinoneck.errors import BackboneError, GridError, ShapeError
from dinoneck.grid import PatchSize, checked_grid, patch_pair
from dinoneck.text import counted
from dinoneck.tokens import Tokens

logger = logging.getLogger(__name__)

TokensLike: TypeAlias = Tokens | Tensor | Sequence[Tensor]
_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)  # what autocast converts


class Plain(TypedDict, total=False):
    """What plain tensors need in addition; see :func:`as_tokens`."""

    grid: Sequence[int] | None
    num_prefix_tokens: int
    cls_token: Tensor | Sequence[Tensor] | None


def as_tokens(
    x: TokensLike,
    grid: Sequence[int] | None = None,
    num_prefix_tokens: int = 0,
    cls_token: Tensor | Sequence[Tensor] | None = None,
    *,
    patch_size: PatchSize = 16,
    owner: nn.Module | None = None,
) -> Tokens:
    """Convert plain tensors to Tokens; Tokens are returned as they are.

    Only ``cls_token`` makes a copy.

    Args:
        x: Tokens; token sequences (B, P + N, C), or a list of them, one per layer; or maps
            (B, C, rows, cols), or a list of them.
        grid: (rows, cols) of the N patches; it is never inferred from N. Maps have their own.
        num_prefix_tokens: P tokens before the patches: CLS, then registers.
        cls_token: (B, C), or one per layer, where it is not part of the sequences.
        patch_size: pixels per patch of the result.
        owner: the module that takes them, named in messages.

    Raises:
        ShapeError: if something else than tensors is given, ``grid`` is missing, or shapes do not
            fit each other.
        GridError: if N is not rows * cols.
    """
    owner_name = "this function" if owner is None else type(owner).__name__
    if isinstance(x, Tokens):
        _check_only_tokens(owner_name, grid, num_prefix_tokens, cls_token)
        return x
    layers, grid = _sequences(x, grid, num_prefix_tokens, owner_name)
    if grid is None:
        raise ShapeError(
            f"{owner_name} got tensors {tuple(layers[0].shape)} without their patch grid; pass "
            "grid=(rows, cols), which is the image size divided by the patch size "
            "(TokenGrid(patch_size).size(image_size))"
        )
    if num_prefix_tokens and cls_token is not None:
        raise ShapeError(
            f"{owner_name} got cls_token= and num_prefix_tokens={num_prefix_tokens}: the first "
            "prefix token is the CLS token; pass one of them"
        )
    if not num_prefix_tokens:
        return Tokens.from_patches(layers, grid=grid, patch_size=patch_size, cls_token=cls_token)
    patch_height, patch_width = patch_pair(patch_size)
    rows, cols = checked_grid(grid)
    return Tokens.from_sequence(
        layers,
        image_size=(rows * patch_height, cols * patch_width),
        patch_size=patch_size,
        num_prefix_tokens=num_prefix_tokens,
    )


def _check_only_tokens(
    owner_name: str,
    grid: Sequence[int] | None,
    num_prefix_tokens: int,
    cls_token: Tensor | Sequence[Tensor] | None,
) -> None:
    """Raise a ShapeError for an argument of plain tensors next to Tokens."""
    arguments = {
        "grid": grid is not None,
        "num_prefix_tokens": bool(num_prefix_tokens),
        "cls_token": cls_token is not None,
    }
    for name, is_given in arguments.items():
        if is_given:
            raise ShapeError(
                f"{owner_name} got Tokens with {name}=, which Tokens hold themselves; leave it out"
            )


def _sequences(
    x: Tensor | Sequence[Tensor],
    grid: Sequence[int] | None,
    num_prefix_tokens: int,
    owner_name: str,
) -> tuple[list[Tensor], Sequence[int] | None]:
    """Plain tensors as one (B, P + N, C) per layer, and their grid."""
    layers = []
    if isinstance(x, Tensor):
        layers = [x]
    elif isinstance(x, list | tuple):
        layers = list(x)
    dims = {layer.ndim if isinstance(layer, Tensor) else None for layer in layers}
    if dims not in ({3}, {4}):
        got = [_shape_or_type(layer) for layer in layers] or type(x).__name__
        raise ShapeError(
            f"{owner_name} takes Tokens (backbone(images)), tensors (batch, tokens, channels) "
            "with grid=(rows, cols), maps (batch, channels, rows, cols), or a list of tensors, one per "
            f"layer; got {got}"
        )
    if dims == {3}:
        return layers, grid
    map_grid = tuple(layers[0].shape[-2:])
    # compare grids and not numbers of cells, which are equal for 2 x 6 and 3 x 4
    if any(layer.shape[-2:] != layers[0].shape[-2:] for layer in layers):
        sizes = ", ".join(f"{layer.shape[-2]}x{layer.shape[-1]}" for layer in layers)
        raise ShapeError(
            f"{owner_name} got maps of {sizes} cells; expected one grid for all layers"
        )
    if num_prefix_tokens:
        raise ShapeError(
            f"{owner_name} got maps with num_prefix_tokens={num_prefix_tokens}; maps hold patches "
            "alone: leave it out, and pass CLS tokens as cls_token="
        )
    if grid is not None and tuple(grid) != map_grid:
        raise ShapeError(
            f"{owner_name} got maps of {map_grid[0]} rows x {map_grid[1]} cols with "
            f"grid={tuple(grid)}; maps have a grid of their own: leave it out"
        )
    # (B, C, rows, cols) -> (B, rows * cols, C): a view
    return [layer.flatten(2).transpose(1, 2) for layer in layers], map_grid


def _shape_or_type(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def check_tokens(
    tokens: Tokens,
    module: nn.Module,
    embed_dim: int,
    *,
    num_layers: int | None = None,
    patch_size: PatchSize | None = None,
) -> Tokens:
    """Return ``tokens``, checked against what ``module`` was built for.

    Args:
        tokens: as :func:`as_tokens` returns them.
        module: named in messages; its first parameter, if any, gives the dtype.
        embed_dim: channels C it was built for.
        num_layers: layers it was built for; None = any number.
        patch_size: pixels per patch it was built for; None = any.

    Raises:
        ShapeError: naming what does not fit.
        GridError: if the number of patch tokens is not rows * cols.
    """
    owner = type(module).__name__
    sequence = tokens.sequence
    if sequence[0].shape[-1] != embed_dim:
        raise ShapeError(
            f"the tokens have {sequence[0].shape[-1]} channels, this {owner} was built for "
            f"{embed_dim}: build it with embed_dim={sequence[0].shape[-1]}, or take the tokens of "
            "its own backbone"
        )
    if num_layers is not None and len(sequence) != num_layers:
        held_layers = counted(len(sequence), "layer")
        if tokens.layers is not None:
            held_layers += f" {tokens.layers}"
        raise ShapeError(
            f"the tokens hold {held_layers}, this {owner} was built for {num_layers}; extract as "
            "many, or pick them with tokens.select(...)"
        )
    if patch_size is not None and tokens.patch_size != patch_size:
        raise ShapeError(
            f"the tokens' patches are {tokens.patch_size} px, this {owner} was built for "
            f"{patch_size} px, so its strides would be wrong; build it with patch_size= of the "
            "backbone"
        )
    rows, cols = tokens.grid
    count = sequence[0].shape[1] - tokens.num_prefix_tokens
    if count != rows * cols:
        raise GridError(
            f"{count} patch tokens do not fill a grid of {rows} rows x {cols} cols = "
            f"{rows * cols}; check the image size, the patch size and the number of prefix tokens"
        )
    token_dtype = sequence[0].dtype
    module_dtype = token_dtype
    # torch 2.8 cannot compile next() of a generator with a default
    for parameter in module.parameters():
        module_dtype = parameter.dtype
        break
    if token_dtype != module_dtype:
        is_cast = token_dtype in _AUTOCAST and torch.is_autocast_enabled(sequence[0].device.type)
        if not is_cast:
            raise ShapeError(
                f"the tokens are {token_dtype}, this {owner} is {module_dtype}: convert one of "
                "them (tokens.to(dtype=...)), or run under torch.autocast"
            )
    return tokens


@dataclass(frozen=True)
class Origin:
    """The tokens and images that a head was trained on.

    They are taken from the head's file, or from the tokens that it was fitted on. None stands for
    unknown in every field.

    Attributes:
        name: name of the backbone model.
        source: fingerprint of the backbone's weights.
        layers: block indices of the tokens.
        normed: whether the backbone's final norm was applied.
        patch_size: pixels per patch.
        images: how images were prepared, as the record of a
            :class:`dinoneck.data.Preprocessing`.
        head_weights: hash of the head's weights when the origin was recorded. It tells whether the
            head was trained since.
        refuses_tokens: whether ``forward`` rejects tokens that differ, as in a head that was loaded
            from a file. Otherwise they are only compared when the head is saved or used in a
            Predictor.
    """

    name: str | None = None
    source: str | None = None
    layers: tuple[int, ...] | None = None
    normed: bool | None = None
    patch_size: PatchSize | None = None
    images: Mapping[str, Any] | None = None
    head_weights: str | None = None
    refuses_tokens: bool = True
    _warnings_given: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def check(
        self,
        tokens: Tokens,
        owner: str,
        reads: tuple[int, ...] | None = None,
        *,
        predicts: bool = False,
    ) -> None:
        """Reject tokens of another backbone.

        Only the values that both sides know are compared. Tokens that the user built without layers
        or normed are accepted, and one warning per loaded head names what is not compared. Tokens of
        a backbone with trainable parameters have no source. During training that is expected; when
        the head predicts, it is a warning.

        Args:
            tokens: the head's input.
            owner: the class of the head, for messages.
            reads: block indices that the head selects; None: it takes the layers as they come.
            predicts: whether the head is in eval mode and gradients are off.

        Raises:
            BackboneError: naming what differs, both values and the remedy.
        """
        pairs: list[tuple[str, object, object]] = [
            ("source (fingerprint of the weights)", self.source, tokens.source),
            ("normed (final norm applied)", self.normed, tokens.normed),
            ("patch_size", self.patch_size, tokens.patch_size),
        ]
        if reads is None:
            pairs.append(("layers", self.layers, tokens.layers))
        elif tokens.layers is not None and not set(reads) <= set(tokens.layers):
            pairs.append(("layers", reads, tokens.layers))
        differing = []
        for what, recorded, actual in pairs:
            if recorded is not None and actual is not None and recorded != actual:
                differing.append(f"{what}: trained on {recorded}, got {actual}")
        if differing:
            raise BackboneError(
                f"this {owner} was trained on other tokens ({'; '.join(differing)}). Use tokens "
                f"of {self.name!r} with layers={self.layers}, norm={self.normed} and the weights "
                "that its file names (dinoneck inspect). To take any tokens, as after a training "
                "of your own, set head.trained_on = None, or load it with load_head(path, "
                "check_backbone=False)"
            )
        if torch.compiler.is_compiling():
            return
        if tokens.layers is None or tokens.normed is None:
            self._warn_of_unknown(tokens, owner)
        elif predicts and self.source is not None and tokens.source is None:
            self._warn_once(
                f"this {owner} was trained on tokens of {self.name!r} with the fingerprint "
                f"{self.source}; these tokens state no source, as those of a backbone of which "
                "anything is trainable, so the weights are not compared: call backbone.freeze() "
                "before you predict"
            )

    def _warn_of_unknown(self, tokens: Tokens, owner: str) -> None:
        """Warn of the values that this origin has and tokens that the user built lack."""
        pairs = [
            ("source", self.source, tokens.source),
            ("layers", self.layers, tokens.layers),
            ("normed", self.normed, tokens.normed),
        ]
        unknown = []
        for name, recorded, actual in pairs:
            if recorded is not None and actual is None:
                unknown.append(f"{name}=")
        if not unknown:
            return
        self._warn_once(
            f"this {owner} was trained on tokens of {self.name!r} with layers={self.layers}, "
            f"norm={self.normed}; these tokens do not state {', '.join(unknown)}, which is not "
            "compared: pass it to Tokens.from_patches or from_sequence, with "
            "source=backbone.fingerprint"
        )

    def _warn_once(self, warning: str) -> None:
        """Log a warning, unless this origin has logged it before."""
        if warning not in self._warnings_given:
            self._warnings_given.add(warning)
            logger.warning(warning)
