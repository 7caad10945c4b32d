"""All rows, in the order of the tables."""

from __future__ import annotations

from benchmarks.speed import (
    rows_backbone,
    rows_dense,
    rows_detection,
    rows_heads,
    rows_pyramids,
    rows_tokens,
)
from benchmarks.speed.rows import Row

COPY_SHARE = 0.7

ROWS = [
    *rows_tokens.ROWS,
    *rows_pyramids.ROWS,
    *rows_detection.ROWS,
    *rows_dense.ROWS,
    *rows_heads.ROWS,
    *rows_backbone.ROWS,
]


def goals_of(row: Row, cuda: bool) -> dict[str, float]:
    """What a row is to reach; on a GPU also a share of the copy bandwidth where memory binds."""
    if not cuda:
        return dict(row.goals)
    copies = {} if row.work is None else {f"copy {dtype}": COPY_SHARE for dtype in ("float32", "bfloat16")}
    return {**row.gpu_goals, **copies}
