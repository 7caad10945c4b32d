"""Rows of mixup on stored tokens: what comes first, the mixing or the layer that is linear in the tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.speed import work
from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, stirred
from benchmarks.speed.rows_heads import PlainGate
from dinoneck.heads import CLSGating
from dinoneck.heads.cls_gating import gate_together
from dinoneck.layers.mixture import Mixture

Mix = Callable[[Tensor], Tensor]


def mixture_of(setting: Setting) -> Mixture:
    """Partner of every sample and the share kept of itself, rounded to the tokens' dtype and moved as in training."""
    generator = torch.Generator().manual_seed(5)
    kept = torch.rand(setting.batch, generator=generator).to(setting.dtype).double()
    return Mixture(torch.arange(setting.batch).roll(1), kept).to(setting.device)


def mixers(setting: Setting) -> tuple[Mix, Mix]:
    """Tokens mixed as it is usually written, and in one pass over the partners' copy."""
    mixture = mixture_of(setting)
    partner, kept = mixture.partner, mixture.kept.to(setting.dtype)[:, None, None]

    def written(x: Tensor) -> Tensor:
        return kept * x + (1 - kept) * x[partner]

    def lerped(x: Tensor) -> Tensor:
        return torch.lerp(x[partner], x, kept)

    return written, lerped


def before_linear(setting: Setting) -> dict[str, Variant]:
    """Mixed tokens -> a linear layer on every patch."""
    torch.manual_seed(0)
    linear = stirred(nn.Linear(setting.channels, setting.out).to(**setting.like))
    (written, lerped), tokens = mixers(setting), setting.tokens()
    given, x = tokens.sequence, tokens.sequence[0]
    mixture = mixture_of(setting)

    def ours() -> Tensor:
        return mixture.linear(linear(x))[:, PREFIX:]

    return {
        "tokens mixed, then the linear layer": Variant(
            "published", lambda: linear(written(x)[:, PREFIX:]), linear, given
        ),
        "the same, mixed in one pass, whole sequence": Variant(
            "fixed", lambda: linear(lerped(x))[:, PREFIX:], linear, given
        ),
        "the linear layer, then mixed": Variant("ours", ours, linear, given),
    }


def before_pool(setting: Setting) -> dict[str, Variant]:
    """Mixed tokens -> gate of their CLS token -> one vector per sample."""
    torch.manual_seed(0)
    count = setting.grid[0] * setting.grid[1]
    gate = CLSGating(setting.channels, count).to(**setting.like)
    stirred(gate)
    published, fixed = PlainGate(gate, fixed=False), PlainGate(gate, fixed=True)
    (written, lerped), tokens = mixers(setting), setting.tokens()
    given, x = tokens.sequence, tokens.sequence[0]
    mixture = mixture_of(setting)

    def ours() -> Tensor:
        return gate_together([gate], mixture.linear(x[:, 0]), x, PREFIX, tokens.grid, mixture)[0][0]

    return {
        "tokens mixed, weights × patches, summed": Variant(
            "published", lambda: published(written(x)), published, given
        ),
        "the same, mixed in one pass, batched product": Variant("fixed", lambda: fixed(lerped(x)), fixed, given),
        "pooled for both, then mixed": Variant("ours", ours, gate, given),
    }


SETTING = Setting(4, (60, 60), 1280)
LINEAR_WHY = (
    "The linear layer itself is the floor of both forms: the slower a machine's arithmetic beside its memory, the "
    "smaller the part that mixing takes, which is all that can be saved."
)
POOL_WHY = "One pass over the tokens remains, and its speed is the memory's."
ROWS = [
    Row("mixup before a linear layer", before_linear, [SETTING], {"forward float32": 3.0}, work=work.mixed_linear,
        why=LINEAR_WHY),
    Row("mixup before a pool", before_pool, [SETTING], {"forward float32": 15.0}, work=work.mixed_pool,
        why=POOL_WHY),
]  # fmt: skip
