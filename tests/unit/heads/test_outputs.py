"""What heads predict before averaging: values, maps, a gate and members apart, and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import kit
from torch import Tensor, nn

from dinoneck import (
    CLSGatingHead,
    Composition,
    DenseHead,
    DPTHead,
    DPTNeck,
    HeadEnsemble,
    MaskHead,
    PatchMeanHead,
    Task,
)
from dinoneck.heads import Head
from dinoneck.heads.outputs import (
    HeadOutputs,
    recompute_averaged_values,
    recompute_dependent_values,
)
from dinoneck.layers.inputs import TokensLike

WIDTH = 16
MASS = Task("mass", minimum=0.0)
COUNT = Task("count", kind="density")
COVER = Task("cover", dim=2, kind="dense", labels=("crop", "weed"))
WEED = Task("weed", from_map="cover", maximum=0.5)
TOTAL = Task("total", kind="density")
SHARES = Task("shares", dim=2, kind="ratio")
PARTS = Composition(("leaf", "stem"), {"plant": ("leaf", "stem")}, "parts", "total", "shares")
SEGMENTS = Task("segments", dim=3, kind="segmentation")
TOKENS = kit.tokens(width=WIDTH)


def dense(*tasks: Task, seed: int = 0, **options: object) -> DenseHead:
    head = DenseHead(WIDTH, tasks, hidden_dim=8, **options)  # type: ignore[arg-type]
    return kit.randomised(head, seed=seed).eval()


def mask(num_queries: int) -> MaskHead:
    head = MaskHead(
        WIDTH, [SEGMENTS], num_layers=1, num_queries=num_queries, num_blocks=1, num_heads=1
    )
    return kit.randomised(head, seed=num_queries).eval()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """With the same keys, in the same order."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


@torch.no_grad()
@pytest.mark.parametrize("is_ensemble", [False, True])
def test_values_and_maps_are_apart_in_the_order_of_the_tasks(is_ensemble: bool) -> None:
    head: Head = dense(COUNT, COVER, WEED)
    if is_ensemble:
        head = HeadEnsemble([head])
    predictions = head.predict(TOKENS)

    outputs = head.predict_outputs(TOKENS)

    assert_same(outputs.values, {name: predictions[name] for name in ("count", "weed")})
    assert_same(outputs.maps, {"cover": predictions["cover"]})
    assert outputs.gate is None
    assert outputs.raw_outputs == []


@torch.no_grad()
@pytest.mark.parametrize("is_ensemble", [False, True])
def test_with_maps_every_map_is_there_in_the_order_of_the_tasks(is_ensemble: bool) -> None:
    head: Head = dense(COUNT, COVER, WEED)
    if is_ensemble:
        head = HeadEnsemble([head])

    outputs = head.predict_outputs(TOKENS, with_maps=True)

    maps = head.predict_maps(TOKENS)
    assert list(maps) == ["count", "cover"]
    assert_same(outputs.maps, maps)


@torch.no_grad()
def test_a_composition_is_a_value() -> None:
    head = dense(TOTAL, SHARES, compositions=[PARTS])

    outputs = head.predict_outputs(TOKENS)

    assert_same(outputs.values, head.predict(TOKENS))
    assert list(outputs.values) == ["total", "shares", "parts"]


@torch.no_grad()
def test_the_gate_is_the_weighted_mean_of_the_members_that_have_one() -> None:
    gated = []
    for seed in range(2):
        head = CLSGatingHead(WIDTH, [MASS], mode="query", hidden_dim=8)
        gated.append(kit.randomised(head, seed=seed).eval())
    other = PatchMeanHead(WIDTH, [MASS]).eval()
    ensemble = HeadEnsemble([*gated, other], weights=[3.0, 1.0, 2.0])

    outputs = ensemble.predict_outputs(TOKENS, with_maps=True)

    gates = [head.gate(TOKENS) for head in gated]
    assert outputs.gate is not None
    torch.testing.assert_close(outputs.gate, 0.75 * gates[0] + 0.25 * gates[1])
    assert ensemble.predict_outputs(TOKENS).gate is None


@torch.no_grad()
def test_the_outputs_of_members_are_those_of_the_mask_heads_that_run() -> None:
    heads = [mask(4), mask(5), mask(6)]
    ensemble = HeadEnsemble(heads, weights=[1.0, 0.0, 2.0])

    outputs = ensemble.predict_outputs(TOKENS, with_maps=True)

    assert len(outputs.raw_outputs) == 2
    assert_same(outputs.raw_outputs[0], heads[0](TOKENS))
    assert_same(outputs.raw_outputs[1], heads[2](TOKENS))


@torch.no_grad()
def test_members_have_no_outputs_where_the_maps_of_one_are_resampled_themselves() -> None:
    ensemble = HeadEnsemble([mask(4), dense(COVER)])

    outputs = ensemble.predict_outputs(TOKENS, with_maps=True)

    assert outputs.raw_outputs == []
    assert list(outputs.maps) == ["segments", "cover"]


@torch.no_grad()
def test_maps_at_another_size_are_the_mean_of_the_members_at_that_size() -> None:
    heads = [mask(4), mask(5), mask(6)]
    ensemble = HeadEnsemble(heads, weights=[1.0, 0.0, 3.0])
    members = ensemble.member_outputs(TOKENS)

    maps = ensemble.maps_at_size(members, (7, 9))

    shares = []
    for head in (heads[0], heads[2]):
        resized = head.at_size(head(TOKENS), (7, 9))
        shares.append(resized["segments"].softmax(dim=1))
    torch.testing.assert_close(maps["segments"], 0.25 * shares[0] + 0.75 * shares[1])


def test_objects_are_neither_values_nor_maps() -> None:
    task = Task("plant", dim=2, kind="instances")
    head = MaskHead(WIDTH, [task], num_layers=1, num_queries=4, num_blocks=1, num_heads=1).eval()

    outputs = head.predict_outputs(TOKENS, with_maps=True)

    assert outputs == HeadOutputs()


def test_a_function_is_applied_to_every_tensor_in_a_fixed_order() -> None:
    def numbered(value: float) -> Tensor:
        return torch.tensor([value])

    outputs = HeadOutputs(
        values={"a": numbered(1.0), "b": numbered(2.0)},
        maps={"m": numbered(3.0)},
        gate=numbered(4.0),
        raw_outputs=[{"x": numbered(5.0)}, {"x": numbered(6.0)}],
    )
    seen: list[float] = []

    def double(tensor: Tensor) -> Tensor:
        seen.append(tensor.item())
        return 2 * tensor

    doubled = outputs.map_tensors(double)

    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert {name: value.item() for name, value in doubled.values.items()} == {"a": 2.0, "b": 4.0}
    assert doubled.maps["m"].item() == 6.0
    assert doubled.gate is not None
    assert doubled.gate.item() == 8.0
    assert [raw["x"].item() for raw in doubled.raw_outputs] == [10.0, 12.0]


def test_before_averaging_a_value_with_from_map_is_the_mean_of_all_cells() -> None:
    """``weed`` is at most 0.5."""
    cells = torch.zeros(2, 2, 1, 2)  # two images with two cells of two channels
    cells[0, 1] = torch.tensor([[0.2, 0.6]])
    cells[1, 1] = torch.tensor([[0.8, 0.6]])
    outputs = HeadOutputs(values={"weed": torch.zeros(2, 1)}, maps={"cover": cells})

    values = recompute_dependent_values([COVER, WEED], outputs)

    assert list(values) == ["weed"]
    torch.testing.assert_close(values["weed"], torch.tensor([[0.4], [0.5]]))


def test_after_averaging_a_value_with_from_map_is_the_value_of_the_map() -> None:
    """``weed`` is at most 0.5."""
    averages = {
        "weed": torch.zeros(2, 1),
        "cover": torch.tensor([[0.0, 0.2], [0.0, 0.8]]),  # of the cells that show the image
    }

    values = recompute_averaged_values([COVER, WEED], averages)

    assert list(values) == ["weed", "cover"]
    torch.testing.assert_close(values["weed"], torch.tensor([[0.2], [0.5]]))


def test_averaged_parts_add_up_to_the_averaged_total() -> None:
    head = dense(TOTAL, SHARES, compositions=[PARTS])
    values = {
        "total": torch.tensor([[8.0]]),
        "shares": torch.tensor([[0.5, 0.5]]),
        "parts": torch.tensor([[1.0, 3.0, 4.0]]),
    }

    recomputed = recompute_averaged_values(head.predicted, values)

    torch.testing.assert_close(recomputed["parts"], torch.tensor([[2.0, 6.0, 8.0]]))


def count_calls(module: nn.Module) -> list[int]:
    """A list that holds how often the module is called from now on."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    module.register_forward_hook(count)
    return calls


@torch.no_grad()
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(dense(COUNT, COVER, WEED), id="dense"),
        pytest.param(mask(4), id="mask"),
        pytest.param(
            CLSGatingHead(WIDTH, [MASS], mode="query", hidden_dim=8).eval(), id="cls_gating"
        ),
    ],
)
def test_a_head_runs_once_for_values_maps_and_raw_outputs(head: Head) -> None:
    ensemble = HeadEnsemble([HeadEnsemble([head])])
    calls = count_calls(head)

    ensemble.predict_outputs(TOKENS, with_maps=True)

    assert calls == [1]


@torch.no_grad()
def test_a_dpt_head_runs_once() -> None:
    head = DPTHead(WIDTH, [COVER], DPTNeck(WIDTH, num_layers=1, out_channels=8)).eval()
    calls = count_calls(head.neck)

    outputs = HeadEnsemble([head]).predict_outputs(TOKENS, with_maps=True)

    assert calls == [1]
    assert_same(outputs.maps, head.predict_maps(TOKENS))


@torch.no_grad()
def test_a_patch_mean_head_runs_once() -> None:
    soil = Task("soil", dim=3, kind="classification")
    head = kit.randomised(PatchMeanHead(WIDTH, [MASS, soil], hidden_dim=8)).eval()
    calls = count_calls(head.scale)

    outputs = head.predict_outputs(TOKENS, with_maps=True)

    assert calls == [1]
    assert_same(outputs.values, head.predict(TOKENS))
    assert_same(outputs.maps, head.predict_maps(TOKENS))
    assert outputs.raw_outputs == []


@torch.no_grad()
def test_what_a_subclass_of_patch_mean_replaces_is_used_with_maps_too() -> None:
    class Doubled(PatchMeanHead):
        def forward(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
            return {name: 2 * value for name, value in super().forward(tokens, **plain).items()}

    class Negative(PatchMeanHead):
        def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
            return {name: -cells for name, cells in super().predict_maps(tokens, **plain).items()}

    for head_class in (Doubled, Negative):
        head = kit.randomised(head_class(WIDTH, [MASS], hidden_dim=8)).eval()

        outputs = head.predict_outputs(TOKENS, with_maps=True)

        assert_same(outputs.values, head.predict(TOKENS))
        assert_same(outputs.maps, head.predict_maps(TOKENS))


@torch.no_grad()
def test_what_a_subclass_replaces_is_used_with_maps_too() -> None:
    class Doubled(DenseHead):
        def natural(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
            return {name: 2 * value for name, value in super().natural(tokens, **plain).items()}

    class Negative(DenseHead):
        def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
            return {name: -cells for name, cells in super().predict_maps(tokens, **plain).items()}

    for head_class in (Doubled, Negative):
        head = kit.randomised(head_class(WIDTH, [COUNT, COVER], hidden_dim=8)).eval()

        outputs = head.predict_outputs(TOKENS, with_maps=True)

        torch.testing.assert_close(outputs.values["count"], head.predict(TOKENS)["count"])
        torch.testing.assert_close(outputs.maps["cover"], head.predict(TOKENS)["cover"])
        assert outputs.shown_maps is not None
        assert_same(outputs.shown_maps, head.predict_maps(TOKENS))


@torch.no_grad()
def test_maps_that_a_subclass_of_dpt_replaces_are_used() -> None:
    class Negative(DPTHead):
        def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
            return {name: -cells for name, cells in self.predict(tokens, **plain).items()}

    head = Negative(WIDTH, [COVER], DPTNeck(WIDTH, num_layers=1, out_channels=8)).eval()

    outputs = head.predict_outputs(TOKENS, with_maps=True)

    assert outputs.shown_maps is not None
    assert_same(outputs.shown_maps, head.predict_maps(TOKENS))
    assert_same(outputs.maps, head.predict(TOKENS))


@torch.no_grad()
def test_a_head_that_replaces_neither_method_shows_the_maps_that_its_values_come_from() -> None:
    for head in (dense(COUNT, COVER), HeadEnsemble([dense(COUNT, COVER)])):
        outputs = head.predict_outputs(TOKENS, with_maps=True)

        assert outputs.shown_maps is None
        assert outputs.maps_to_show is outputs.maps
