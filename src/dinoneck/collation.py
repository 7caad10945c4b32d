"""Collating samples that hold Tokens, for data loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import default_collate

from dinoneck.errors import ShapeError
from dinoneck.tokens import Tokens


def collate(batch: Sequence[Any]) -> Any:
    """Collate samples that hold :class:`Tokens`; everything else goes to torch's ``default_collate``.

    Args:
        batch: Tokens, or tuples, lists or dicts that hold them, one per sample.

    Raises:
        ShapeError: if there are none, or Tokens differ in form or source, see :meth:`dinoneck.Tokens.cat`.

    Examples:
        >>> import torch
        >>> one = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16)
        >>> tokens, target = collate([(one, 1.0), (one, 2.0)])
        >>> len(tokens), target.tolist()
        (2, [1.0, 2.0])
    """
    if not batch:
        raise ShapeError("there are no samples to collate")
    first = batch[0]
    if isinstance(first, Tokens):
        return Tokens.cat(batch)
    if isinstance(first, dict):
        return {key: collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, tuple | list):
        columns = [collate(column) for column in zip(*batch, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return default_collate(list(batch))
