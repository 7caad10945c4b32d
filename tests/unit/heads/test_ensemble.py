"""Ensembles: the configurations of 0.3, and weights that leave an output without a member."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import kit
from torch import Tensor

from dinoneck import (
    Composition,
    ConfigError,
    DenseHead,
    DPTHead,
    DPTNeck,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Task,
    load_head,
    register,
    save_head,
)
from dinoneck.configured import Configured
from dinoneck.heads import Head
from dinoneck.layers.inputs import Origin

FIXTURES = Path(__file__).parents[2] / "fixtures" / "0.3.0" / "heads"
NESTED = FIXTURES / "ensemble-nested.safetensors"


def words_of(config: Any) -> set[str]:
    """The keys of a configuration, at every depth."""
    words: set[str] = set()
    if isinstance(config, dict):
        words.update(config)
        for value in config.values():
            words |= words_of(value)
    if isinstance(config, list):
        for value in config:
            words |= words_of(value)
    return words


def test_a_file_of_nested_ensembles_of_0_3_is_written_again_without_reduce(tmp_path: Path) -> None:
    earlier = HeadCheckpoint.load(NESTED)
    assert "reduce" in words_of(earlier.config)
    head = load_head(NESTED)

    save_head(tmp_path / "again.safetensors", head, backbone=earlier.meta["backbone"])

    again = HeadCheckpoint.load(tmp_path / "again.safetensors")
    assert "reduce" not in words_of(again.config)
    x = kit.tokens(width=8)
    expected = head.predict(x)  # type: ignore[operator]
    found = again.build().predict(x)  # type: ignore[operator]
    assert kit.same(found, expected)


def test_a_checkpoint_keeps_the_configuration_that_its_file_states(tmp_path: Path) -> None:
    checkpoint = HeadCheckpoint.load(NESTED)

    checkpoint.save(tmp_path / "copy.safetensors")

    copy = HeadCheckpoint.load(tmp_path / "copy.safetensors")
    assert copy.config == checkpoint.config
    assert copy.meta["digest"] == checkpoint.meta["digest"]


def test_two_heads_are_built_from_one_file_of_0_3() -> None:
    checkpoint = HeadCheckpoint.load(NESTED)

    first = checkpoint.build()
    second = checkpoint.build()

    assert first is not second
    assert kit.same(first.state_dict(), second.state_dict())


def test_the_reduction_of_a_member_is_read_too() -> None:
    inner = HeadEnsemble([kit.head(width=8)])
    config = HeadEnsemble([inner]).config
    config["members"][0]["config"]["reduce"] = "median"

    with pytest.raises(ConfigError, match="reduce is 'median'"):
        HeadEnsemble.from_config(config)


def test_a_subclass_may_have_an_argument_reduce_of_its_own() -> None:
    class Reduced(HeadEnsemble):
        def __init__(self, members: Sequence[Head], reduce: str = "max") -> None:
            super().__init__(members)
            self.reduce = reduce

    config = Reduced([kit.head(width=8)], reduce="median").config

    assert Reduced.from_config(config).reduce == "median"


def test_a_plain_argument_that_looks_like_a_module_is_left_as_it_is(tmp_path: Path) -> None:
    @register
    class NotedHead(Head):
        def __init__(self, embed_dim: int, note: Any = None) -> None:
            super().__init__()
            self.embed_dim = embed_dim
            self.tasks = (Task("mass"),)
            self.linear = torch.nn.Linear(embed_dim, 1)

        def forward(self, tokens: Any) -> Any:
            return {"mass": self.linear(tokens.last.patches[0].mean(dim=1))}

    note = {"type": "not_a_class", "config": {"reduce": "median"}}

    save_head(tmp_path / "h.safetensors", NotedHead(8, note), backbone=None)

    assert HeadCheckpoint.load(tmp_path / "h.safetensors").config["note"] == note


def test_a_class_without_changes_keeps_its_configuration() -> None:
    class Plain(Configured):
        def __init__(self, reduce: str = "mean") -> None:
            self.reduce = reduce

    assert Plain.from_config({"reduce": "median"}).reduce == "median"


def test_a_composition_whose_only_member_has_weight_0_is_refused() -> None:
    total = Task("total", kind="density")
    shares = Task("shares", dim=2, kind="ratio")
    parts = Composition(("leaf", "stem"), {}, "parts", "total", "shares")
    composing = DenseHead(8, [total, shares], hidden_dim=4, compositions=[parts])
    apart = [DenseHead(8, [total], hidden_dim=4), DenseHead(8, [shares], hidden_dim=4)]

    with pytest.raises(ConfigError, match="'parts' has weight 0"):
        HeadEnsemble([composing, *apart], weights=[0.0, 1.0, 1.0])


def test_a_composition_is_made_of_the_tasks_of_another_member() -> None:
    total = Task("total", kind="density")
    shares = Task("shares", dim=2, kind="ratio")
    parts = Composition(("leaf", "stem"), {}, "parts", "total", "shares")
    composing = DenseHead(8, [total, shares], hidden_dim=4, compositions=[parts])
    plain = DenseHead(8, [total, shares], hidden_dim=4)
    ensemble = HeadEnsemble([composing, plain], weights=[0.0, 1.0])

    values = ensemble.predict(kit.tokens(width=8))

    torch.testing.assert_close(values["parts"], values["total"] * values["shares"])


@torch.no_grad()
def test_the_bounds_of_a_member_of_weight_0_do_not_hold_for_the_mean() -> None:
    free = kit.randomised(PatchMeanHead(8, [Task("mass")], hidden_dim=4)).eval()
    bounded = PatchMeanHead(8, [Task("mass", minimum=1000.0)], hidden_dim=4).eval()
    tokens = kit.tokens(width=8)

    ensemble = HeadEnsemble([bounded, free], weights=[0.0, 1.0])

    assert ensemble.tasks[0].minimum is None
    torch.testing.assert_close(ensemble.predict(tokens)["mass"], free.predict(tokens)["mass"])


@torch.no_grad()
def test_maps_of_members_with_other_strides_are_stacked_at_the_finest() -> None:
    cover = Task("cover", kind="dense")
    coarse = DenseHead(8, [cover], hidden_dim=4).eval()
    fine = DPTHead(8, [cover], DPTNeck(8, num_layers=1, out_channels=4)).eval()
    tokens = kit.tokens(width=8)
    ensemble = HeadEnsemble([coarse, fine])

    members = ensemble.members_predict(tokens)["cover"]

    torch.testing.assert_close(members[1], fine.predict(tokens)["cover"])
    torch.testing.assert_close(members.mean(dim=0), ensemble.predict(tokens)["cover"])


@torch.no_grad()
def test_an_origin_that_is_set_keeps_the_layers_of_every_member() -> None:
    shallow = PatchMeanHead(8, [Task("mass")], hidden_dim=4)
    deep = PatchMeanHead(8, [Task("mass")], hidden_dim=4)
    ensemble = HeadEnsemble([shallow, deep], layers=[[2], [5]])

    ensemble.trained_on = Origin(name="vit", layers=(2, 5), patch_size=16)

    assert shallow.trained_on == Origin(name="vit", layers=(2,), patch_size=16)
    assert deep.trained_on == Origin(name="vit", layers=(5,), patch_size=16)


def test_the_origin_is_taken_off_every_member() -> None:
    members = [PatchMeanHead(8, [Task("mass")], hidden_dim=4) for _ in range(2)]
    ensemble = HeadEnsemble(members, layers=[[2], [5]])
    ensemble.trained_on = Origin(name="vit", layers=(2, 5))

    ensemble.trained_on = None

    assert [member.trained_on for member in members] == [None, None]


@register
class OwnSizes(FPNHead):
    """Resamples its maps in a way of its own: the nearest cell."""

    def at_size(self, outputs: Any, size: Any, resample: Any = None) -> dict[str, Tensor]:
        resized = dict(outputs)
        resized["cover"] = F.interpolate(outputs["cover"], tuple(size), mode="nearest")
        return resized


@torch.no_grad()
def test_values_beside_a_map_stay_out_of_the_maps_of_another_size() -> None:
    tasks = [Task("cover", kind="dense"), Task("mass")]
    members = [kit.randomised(OwnSizes(8, tasks, 1, fpn_dim=4), seed=seed) for seed in (1, 2)]
    ensemble = HeadEnsemble(members).eval()
    tokens = kit.tokens(width=8)

    maps = ensemble.maps_at_size(ensemble.member_outputs(tokens), (48, 80))

    cells = (members[0](tokens)["cover"] + members[1](tokens)["cover"]) / 2
    assert list(maps) == ["cover"]
    torch.testing.assert_close(maps["cover"], F.interpolate(cells, (48, 80), mode="nearest"))
