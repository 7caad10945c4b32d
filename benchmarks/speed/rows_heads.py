"""Rows of heads: pooling by a gate, many heads at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, Row, Setting, Variant
from dinoneck.heads import CLSGating
from dinoneck.heads.cls_gating import gate_together

TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")


class PlainGate(nn.Module):
    """The gate's two linear layers, softmax, and the weighted sum as a product of whole tensors."""

    def __init__(self, gate: CLSGating, fixed: bool) -> None:
        super().__init__()
        self.hidden, self.out, self.fixed = gate.hidden, gate.out, fixed

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, P + N, C) -> (B, C)."""
        weights = self.out(nn.functional.gelu(self.hidden(sequence[:, 0]))).softmax(dim=-1)
        patches = sequence[:, PREFIX:]
        if self.fixed:
            return torch.bmm(weights[:, None], patches)[:, 0]
        return (patches * weights[..., None]).sum(dim=1)


def gate_pool(setting: Setting) -> dict[str, Variant]:
    """Pool patches by weights that the CLS token gives them."""
    torch.manual_seed(0)
    count = setting.grid[0] * setting.grid[1]
    gate = CLSGating(setting.channels, count).to(setting.device, setting.dtype)
    published, fixed = PlainGate(gate, fixed=False), PlainGate(gate, fixed=True)
    tokens = setting.tokens()
    sequence = tokens.sequence[0]

    def ours() -> Tensor:
        return gate_together([gate], sequence[:, 0], sequence, PREFIX, tokens.grid)[0][0]

    return {
        "weights × patches, summed": Variant("published", lambda: published(sequence), published),
        "batched product with the sliced patches": Variant("fixed", lambda: fixed(sequence), fixed),
        "CLSGating": Variant("ours", ours, gate),
    }


ROWS = [
    Row(
        "CLS gate pool",
        gate_pool,
        [Setting(4, (60, 60), 1280), Setting(16, (30, 60), 768)],
        {"forward float32": 8.0, "step float32": 6.0},
    ),
]
