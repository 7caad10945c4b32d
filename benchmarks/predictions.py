"""Predictions of a head for ids of a token source, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinoneck.heads import Head
from dinoneck.training import TokenSource
from dinoneck.training.sources import in_batches


def predicted(head: Head, source: TokenSource, ids: Sequence[str], name: str) -> Tensor:
    """Return the outputs (n, ...) of a task in original units."""
    device = next(head.parameters()).device
    return torch.cat([head.predict(source.batch(batch).to(device))[name].cpu() for batch in in_batches(ids, 16)])
