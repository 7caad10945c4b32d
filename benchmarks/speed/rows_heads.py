"""Rows of heads: pooling by a gate, many heads at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, stirred
from dinoneck import HeadEnsemble, PatchMeanHead, Task
from dinoneck.heads import CLSGating

TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")
FOLDS = 5


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
    gate = stirred(CLSGating(setting.channels, count).to(**setting.like))
    published, fixed = PlainGate(gate, fixed=False), PlainGate(gate, fixed=True)  # type: ignore[arg-type]
    tokens = setting.tokens()
    sequence, given = tokens.sequence[0], tokens.sequence

    def ours() -> Tensor:
        return gate(sequence[:, 0], sequence[:, PREFIX:], tokens.grid)[0]

    return {
        "weights × patches, summed": Variant(
            "published", lambda: published(sequence), published, given
        ),
        "batched product with the sliced patches": Variant(
            "fixed", lambda: fixed(sequence), fixed, given
        ),
        "CLSGating": Variant("ours", ours, gate, given),
    }


class Loop(nn.Module):
    """One small network after the other."""

    def __init__(self, networks: list[nn.Sequential]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, patches: Tensor) -> Tensor:
        """(V, N, C) -> (targets,): mean over folds and views."""
        answers = [torch.relu(network(patches)).mean(dim=(1, 2)) for network in self.networks]
        return torch.stack(answers).reshape(len(TARGETS), FOLDS, -1).mean(dim=(1, 2))


def ensemble(setting: Setting) -> dict[str, Variant]:
    """5 targets × 5 folds of C -> 128 -> LeakyReLU -> 1 -> ReLU -> mean, on every view of one image (the batch)."""
    torch.manual_seed(0)
    one = [[Task(name, activation="relu", unit="g")] for name in TARGETS]
    heads = [
        PatchMeanHead(setting.channels, tasks, **setting.like)
        for tasks in one
        for _ in range(FOLDS)
    ]
    own = HeadEnsemble.from_heads(heads)
    networks = [
        nn.Sequential(head.mlps[0].hidden, nn.LeakyReLU(), head.mlps[0].out) for head in heads
    ]  # type: ignore[arg-type]
    published, fixed = Loop(networks), Loop(networks)
    tokens = setting.tokens(prefix=1)
    given = tokens.sequence

    def copied() -> Tensor:
        return fixed(given[0][:, 1:].contiguous())

    def ours() -> Tensor:
        return torch.stack(list(own(tokens).values())).mean(dim=1)[:, 0]

    return {
        "loop over heads, as published": Variant(
            "published", lambda: published(given[0][:, 1:]), published, given
        ),
        "loop over heads, patches copied once": Variant("fixed", copied, fixed, given),
        "HeadEnsemble": Variant("ours", ours, own, given),
    }


ROWS = [
    Row(
        "CLS gate pool",
        gate_pool,
        [Setting(4, (60, 60), 1280), Setting(16, (30, 60), 768)],
        "heads",
    ),
    Row("25 heads × 6 views", ensemble, [Setting(6, (16, 16), 1536)], "heads", gpu_batch=None),
]
