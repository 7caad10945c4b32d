"""CLSGating and CLSGatingHead against the plain formula, and where a gate looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dinoneck import CLSGating, CLSGatingHead, ConfigError, Task, Tokens

TASKS = (
    Task("mass", unit="g", activation="softplus"),
    Task("parts", dim=3, kind="ratio"),
    Task("state", dim=4, kind="classification"),
)


def tokens_of(x: torch.Tensor, rows: int, cols: int, prefix: int = 5) -> Tokens:
    return Tokens.from_sequence(x, image_size=(rows * 16, cols * 16), patch_size=16, num_prefix_tokens=prefix)


def head_of(mode: str, num_patches: Any = None, width: int = 16, seed: int = 0, **options: Any) -> CLSGatingHead:
    torch.manual_seed(seed)
    return CLSGatingHead(width, TASKS, mode, num_patches, 8, **options).eval()  # type: ignore[arg-type]


def plain_weights(gating: CLSGating, cls_token: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The gate written out, patch by patch, of a gate at its own grid."""
    if gating.mode == "query":
        query = cls_token @ gating.query.weight.T + gating.query.bias
        keys = patches @ gating.key.weight.T
        logits = (query[:, None] * keys).sum(dim=-1) / gating.width**0.5
    else:
        hidden = cls_token @ gating.hidden.weight.T + gating.hidden.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        logits = hidden @ gating.out.weight.T + gating.out.bias
    raised = (logits - logits.amax(dim=1, keepdim=True)).exp()
    return raised / raised.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("mode", "num_patches"), [("mlp", 12), ("resized", (3, 4)), ("query", None)])
@pytest.mark.parametrize("reduction", [1, 4])
def test_the_gate_is_the_formula(mode: Any, num_patches: Any, reduction: int) -> None:
    gating = CLSGating(16, num_patches, mode, reduction).double()
    cls_token, patches = torch.randn(3, 16).double() * 3, torch.randn(3, 12, 16).double()
    pooled, weights = gating(cls_token, patches, (3, 4))
    expected = plain_weights(gating, cls_token, patches)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-12)
    assert torch.allclose(pooled, (patches * expected[..., None]).sum(dim=1), rtol=0, atol=1e-12)
    assert expected.std() > 0.01


@pytest.mark.parametrize("mode", ["mlp", "resized", "query"])
@pytest.mark.parametrize("prefix", [1, 5])
def test_pooling_the_whole_sequence_equals_slicing_the_patches_off(mode: str, prefix: int) -> None:
    """In fp64 to rounding: zeros over the prefix instead of a copy of the patches; the last layer is read."""
    head = head_of(mode, {"mlp": 12, "resized": (3, 4)}.get(mode)).double()
    x = torch.randn(3, prefix + 12, 16).double()
    cls_token, patches = x[:, 0], x[:, prefix:]
    weights = plain_weights(head.gating, cls_token, patches)
    pooled = (patches * weights[..., None]).sum(dim=1)
    shared = F.gelu(head.norm(head.trunk(torch.cat((cls_token, pooled), dim=1))))
    two = Tokens.from_sequence([x + 1, x], image_size=(48, 64), patch_size=16, num_prefix_tokens=prefix)
    for tokens in (tokens_of(x, 3, 4, prefix), two):
        predicted = head(tokens)
        for task, readout in zip(TASKS, head.readouts, strict=True):
            expected = readout(shared)
            expected = F.softplus(expected) if task.activation else expected
            assert torch.allclose(predicted[task.name], expected, rtol=0, atol=1e-12)
        assert torch.allclose(head.gate(tokens).flatten(1), weights, rtol=0, atol=1e-12)
        assert head.gate(tokens).sum().item() == pytest.approx(3.0)


@pytest.mark.parametrize("mode", ["mlp", "resized"])
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 4)])
def test_a_one_hot_gate_picks_exactly_that_patch(mode: str, place: tuple[int, int]) -> None:
    """Patch (r, c) holds r and c; the gate of place (r, c) gives them back, and its map is 1 there."""
    rows, cols = 3, 5
    head = head_of(mode, {"mlp": rows * cols, "resized": (rows, cols)}[mode], width=4)
    with torch.no_grad():
        head.gating.out.weight.zero_()
        head.gating.out.bias.fill_(-1e4)
        head.gating.out.bias[place[0] * cols + place[1]] = 1e4
    where = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"), dim=-1).float()
    patches = torch.cat((where, where), dim=-1).reshape(1, rows * cols, 4)
    x = torch.cat((torch.full((1, 5, 4), 99.0), patches), dim=1)
    gate = head.gate(tokens_of(x, rows, cols))
    assert gate.shape == (1, rows, cols)
    assert gate[0, place[0], place[1]] == 1.0 and gate.sum() == 1.0
    pooled, _ = head.gating(x[:, 0], patches)
    assert torch.equal(pooled, torch.tensor([[*place, *place]]).float())


def test_resized_is_mlp_at_its_own_grid_and_a_bilinear_map_elsewhere() -> None:
    mlp, resized = head_of("mlp", 12), head_of("resized", (3, 4), seed=1)
    resized.load_state_dict(mlp.state_dict())
    tokens = tokens_of(torch.randn(2, 17, 16), 3, 4)
    for name, predicted in mlp(tokens).items():
        assert torch.equal(predicted, resized(tokens)[name])
    assert torch.equal(mlp.gate(tokens), resized.gate(tokens))


def test_the_resized_logits_keep_their_places() -> None:
    """Logits that are r + 10 c at cell centres: at twice the grid they are so at the finer centres, edges held."""
    gating = CLSGating(4, (3, 5), "resized")
    index = (torch.arange(3.0)[:, None] + 10 * torch.arange(5.0)).flatten()
    with torch.no_grad():
        gating.out.weight.zero_(), gating.out.bias.copy_(index)
    logits = gating.place_logits(torch.randn(1, 4), 60, (6, 10)).reshape(6, 10)
    rows = ((torch.arange(6) + 0.5) / 2 - 0.5).clamp(0, 2)
    cols = ((torch.arange(10) + 0.5) / 2 - 0.5).clamp(0, 4)
    assert torch.allclose(logits, rows[:, None] + 10 * cols, atol=1e-5)
    weights = gating(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(6, 10))[1]
    assert torch.allclose(weights, logits.flatten().softmax(0)[None], atol=1e-6)
    assert not torch.allclose(weights, gating(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(10, 6))[1], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "num_patches is None; mode 'mlp' needs one number"),
        ({"num_patches": (3, 4)}, r"\(3, 4\); mode 'mlp' needs one number"),
        ({"num_patches": 12, "mode": "resized"}, r"12; mode 'resized' needs \(rows, cols\)"),
        ({"mode": "quary"}, "Did you mean 'query'"),
        ({"mode": "query", "reduction": 17}, "leaves none"),
    ],
)
def test_gates_that_cannot_be_built(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        CLSGating(16, **arguments)
