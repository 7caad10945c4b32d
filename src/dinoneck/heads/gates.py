"""The gates of several heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from dinoneck.heads.cls_gating import CLSGatingHead
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.tokens import Tokens


@torch.no_grad()
def gates_of(heads: Iterable[nn.Module], tokens: Tokens) -> list[Tensor]:
    """Return the gate (B, rows, cols) of every head that has one, members of ensembles included.

    Every gate sums to one over its image, and so does the mean of several.
    """
    return [head.gate(tokens) for head in _gated(heads)]


def scores_places(head: nn.Module) -> bool:
    """Whether it holds a gate over the cells of one grid, of which it records only the number."""
    return any(gated.gating.mode == "mlp" for gated in _gated([head]))


def _gated(heads: Iterable[nn.Module]) -> Iterator[CLSGatingHead]:
    for head in heads:
        if isinstance(head, HeadEnsemble):
            yield from _gated(head.heads)
        elif isinstance(head, CLSGatingHead):
            yield head
