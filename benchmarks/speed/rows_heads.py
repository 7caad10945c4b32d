"""Rows of heads: pooling by a gate, many heads at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, perturb
from dinoneck import HeadEnsemble, PatchMeanHead, Task
from dinoneck.heads import CLSGating

TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")
FOLDS = 5


class PlainGate(nn.Module):
    """The gate's two linear layers, softmax, and the weighted sum as a product of whole tensors.

    Args:
        gate: the module whose layers are used.
        fixed: compute the weighted sum by a batched matrix product.
    """

    def __init__(self, gate: CLSGating, fixed: bool) -> None:
        super().__init__()
        self.hidden = gate.hidden
        self.out = gate.out
        self.fixed = fixed

    def forward(self, sequence: Tensor) -> Tensor:
        """(B, P + N, C) -> (B, C)."""
        hidden = nn.functional.gelu(self.hidden(sequence[:, 0]))
        weights = self.out(hidden).softmax(dim=-1)
        patches = sequence[:, PREFIX:]
        if self.fixed:
            return torch.bmm(weights[:, None], patches)[:, 0]
        return (patches * weights[..., None]).sum(dim=1)


def gate_pool(setting: Setting) -> dict[str, Variant]:
    """Average the patches with weights that a network computes from the CLS token."""
    torch.manual_seed(0)
    rows, cols = setting.grid
    gate = perturb(CLSGating(setting.channels, rows * cols).to(**setting.factory_kwargs))
    published = PlainGate(gate, fixed=False)
    fixed = PlainGate(gate, fixed=True)
    tokens = setting.tokens()
    layers = tokens.sequence
    sequence = layers[0]

    def ours() -> Tensor:
        pooled, _ = gate(sequence[:, 0], sequence[:, PREFIX:], tokens.grid)
        return pooled

    return {
        "weights × patches, summed": Variant(
            "published", lambda: published(sequence), published, layers
        ),
        "batched product with the sliced patches": Variant(
            "fixed", lambda: fixed(sequence), fixed, layers
        ),
        "CLSGating": Variant("ours", ours, gate, layers),
    }


class HeadLoop(nn.Module):
    """One small network after the other."""

    def __init__(self, networks: list[nn.Sequential]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, patches: Tensor) -> Tensor:
        """(V, N, C) -> (targets,): mean over folds and views."""
        values = [torch.relu(network(patches)).mean(dim=(1, 2)) for network in self.networks]
        return torch.stack(values).reshape(len(TARGETS), FOLDS, -1).mean(dim=(1, 2))


def ensemble(setting: Setting) -> dict[str, Variant]:
    """5 targets × 5 folds of C -> 128 -> LeakyReLU -> 1 -> ReLU -> mean, on all views of an image.

    The views are the batch.
    """
    torch.manual_seed(0)
    heads = []
    networks = []
    for target in TARGETS:
        for _ in range(FOLDS):
            task = Task(target, activation="relu", unit="g")
            head = PatchMeanHead(setting.channels, [task], **setting.factory_kwargs)
            mlp = head.mlps[0]
            heads.append(head)
            networks.append(nn.Sequential(mlp.hidden, nn.LeakyReLU(), mlp.out))
    members = HeadEnsemble.from_heads(heads)
    published = HeadLoop(networks)
    fixed = HeadLoop(networks)
    tokens = setting.tokens(prefix=1)
    layers = tokens.sequence

    def with_copied_patches() -> Tensor:
        return fixed(layers[0][:, 1:].contiguous())

    def ours() -> Tensor:
        values = list(members(tokens).values())
        return torch.stack(values).mean(dim=1)[:, 0]

    return {
        "loop over heads, as published": Variant(
            "published", lambda: published(layers[0][:, 1:]), published, layers
        ),
        "loop over heads, patches copied once": Variant(
            "fixed", with_copied_patches, fixed, layers
        ),
        "HeadEnsemble": Variant("ours", ours, members, layers),
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
