"""Which blocks of a ViT are read. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from dinoneck.errors import BackboneError


def resolve_layers(layers: int | Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return 0-based block indices: None = last, n = n last, a sequence = these (negative from the end).

    Raises:
        BackboneError: if a block does not exist or none is asked for.
    """
    if layers is None:
        return (depth - 1,)
    if isinstance(layers, int | Integral):
        count = int(layers)
        if isinstance(layers, bool) or not 1 <= count <= depth:
            raise BackboneError(
                f"layers is {layers!r}; expected 1 ... {depth} last blocks, or a list of block "
                "indices"
            )
        return tuple(range(depth - count, depth))
    indices = list(layers)
    if not indices or not all(_is_block(index, depth) for index in indices):
        raise BackboneError(
            f"layers is {indices}; expected block indices {-depth} ... {depth - 1}, at least one"
        )
    return tuple(int(index) % depth for index in indices)


def _is_block(index: object, depth: int) -> bool:
    """Whether this is the index of one of so many blocks, from the start or the end."""
    if isinstance(index, bool) or not isinstance(index, Integral):
        return False
    return -depth <= int(index) < depth
