"""Tasks and their transforms."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import pytest
import torch

from dinoneck import (
    CLSGatingHead,
    Composition,
    DenseHead,
    FPNHead,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    TargetTransform,
    Task,
)
from dinoneck.errors import ConfigError
from dinoneck.heads.head import Head
from dinoneck.inference import to_frame
from dinoneck.kinds import CLASS_KINDS, LABEL_KINDS, MAP_KINDS, MASK_KINDS, NUMBER_KINDS, Kind
from dinoneck.losses import TaskLoss
from dinoneck.tasks import columns_of


@pytest.mark.parametrize("area", [None, 0.21])
@pytest.mark.parametrize("log1p", [False, True])
def test_inverse_is_exact_over_0_to_1000_grams(area: float | None, log1p: bool) -> None:
    transform = TargetTransform(area=area, log1p=log1p).fit(
        torch.rand(50, dtype=torch.float64) * 180
    )
    for dtype in (torch.float32, torch.float64):
        grams = torch.linspace(0, 1000, 4001, dtype=dtype)
        back = transform.inverse(transform.forward(grams))
        assert back.dtype == dtype
        # a z-score in float32 cannot resolve a value finer than a ten-millionth of the spread it
        # was fitted on
        scale = grams if dtype == torch.float64 else grams.clamp_min(1.0 if log1p else 180.0)
        assert ((back - grams).abs() <= 1e-6 * scale + 1e-12).all()


def test_fit_takes_population_statistics_and_skips_nan() -> None:
    fitted = TargetTransform().fit([[1.0, 10.0], [3.0, torch.nan], [5.0, 30.0]])
    assert fitted.mean == (3.0, 20.0)
    assert fitted.std == pytest.approx((math.sqrt(8 / 3), 10.0))
    first = TargetTransform(area=2.0, mean=9.0, std=9.0)
    again = first.fit([2.0, 4.0])
    assert (again.mean, again.std, again.area) == (1.5, 0.5, 2.0)
    assert first.mean == 9.0


def test_an_output_that_does_not_vary_among_others_is_centred(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = TargetTransform().fit([[1.0, 5.0, 2.0], [3.0, 5.0, torch.nan], [5.0, 5.0, 2.0]])
    assert fitted.mean == (3.0, 5.0, 2.0)
    assert fitted.std == pytest.approx((math.sqrt(8 / 3), 1.0, 1.0))
    assert "[1, 2]" in caplog.text


def test_logits_become_probabilities() -> None:
    for kind in ("classification", "ratio"):
        shares = Task("s", dim=3, kind=kind).predict(
            torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
        )  # type: ignore[arg-type]
        assert torch.allclose(shares, torch.tensor([[1 / 3] * 3, [1.0, 0.0, 0.0]]))
    halved = Task("t").predict(torch.ones(2, 1, dtype=torch.bfloat16))
    assert halved.dtype == torch.float32


MAP = torch.randn(2, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FITTED = TargetTransform(area=0.25, mean=(4.0, -1.0, 0.5), std=(2.0, 0.3, 7.0))


def test_the_cells_of_a_density_map_add_up_to_the_image() -> None:
    task = Task("mass", dim=3, kind="density", transform=FITTED, minimum=0.0)
    cells = task.natural_map(MAP)
    assert torch.allclose(cells.sum(dim=(2, 3)), task.natural(MAP.sum(dim=(2, 3))), rtol=1e-12)
    for k, (mean, std) in enumerate(zip((4.0, -1.0, 0.5), (2.0, 0.3, 7.0), strict=True)):
        assert torch.allclose(cells[:, k], MAP[:, k] * std * 0.25 + mean * 0.25 / 10, rtol=1e-12)
    assert (cells < 0).any()
    assert torch.equal(task.predict_map(MAP), cells), "a bound on cells would break the sum"
    assert task.predict(MAP.sum(dim=(2, 3))).min() >= 0
    plain = Task("mass", dim=3, kind="density")
    assert torch.equal(plain.natural_map(MAP), MAP)
    single = Task("mass", kind="density", transform=TargetTransform(mean=3.0, std=2.0))
    maps = MAP[:, :1].float()
    assert torch.allclose(
        single.natural_map(maps).sum(dim=(2, 3)), single.natural(maps.sum(dim=(2, 3))), rtol=1e-5
    )


def test_other_maps_are_inverted_cell_by_cell() -> None:
    expected = FITTED.inverse(MAP.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    average = Task("a", dim=3, kind="density", aggregate="mean", transform=FITTED)
    assert torch.equal(average.natural_map(MAP), expected)
    assert torch.allclose(
        average.natural_map(MAP).mean(dim=(2, 3)), average.natural(MAP.mean(dim=(2, 3)))
    )
    dense = Task("a", dim=3, kind="dense", transform=FITTED, minimum=-0.1)
    assert torch.equal(dense.natural_map(MAP), expected)
    assert torch.equal(dense.predict_map(MAP), expected.clamp_min(-0.1))
    assert (expected < -0.1).any()
    regression = Task("a", dim=3, transform=FITTED, minimum=0.0)
    assert torch.equal(regression.predict_map(MAP), expected)
    logarithmic = Task("a", kind="dense", transform=TargetTransform(log1p=True, mean=1.0, std=2.0))
    assert torch.allclose(logarithmic.natural_map(MAP[:, :1]), torch.expm1(MAP[:, :1] * 2 + 1))
    for kind in ("segmentation", "classification", "ratio"):
        shares = Task("a", dim=3, kind=kind).natural_map(MAP)  # type: ignore[arg-type]
        assert torch.allclose(shares, MAP.exp() / MAP.exp().sum(dim=1, keepdim=True))
    assert Task("a", dim=3, kind="dense").natural_map(MAP.half()).dtype == torch.float32


def test_the_output_of_a_map_task_is_a_map() -> None:
    maps = {
        kind
        for kind in ("regression", "ratio", "classification", "dense", "density", "segmentation")
        if Task("a", dim=3, kind=kind).is_map
    }  # type: ignore[arg-type]
    assert maps == {"dense", "segmentation"}
    task = Task("a", dim=3, kind="segmentation")
    assert torch.equal(task.natural(MAP), task.natural_map(MAP))
    dense = Task("a", dim=3, kind="dense", minimum=0.2, transform=FITTED)
    assert torch.equal(dense.predict(MAP), dense.predict_map(MAP))


def columns(*tasks: Task) -> list[tuple[str, str, int]]:
    return [(name, task.name, place) for name, task, place in columns_of(tasks)]


def test_columns_are_named_by_labels_and_hold_each_number_once() -> None:
    cells = Task("cells", dim=3, kind="dense", labels=("soil", "crop", "weed"))
    weed, mass = Task("weed", from_map="cells"), Task("mass")
    assert columns(weed, mass, cells) == [
        ("weed", "weed", 0),
        ("mass", "mass", 0),
        ("soil", "cells", 0),
        ("crop", "cells", 1),
    ]
    kind = Task("kind", dim=2, kind="segmentation", labels=("soil", "kind"))
    assert [name for name, *_ in columns(kind)] == ["soil", "kind"]
    assert [name for name, *_ in columns(replace(cells, name="depth", dim=1, labels=()))] == [
        "depth"
    ]
    assert columns(Task("height", from_map="cells"), Task("cells", kind="dense")) == [
        ("height", "height", 0)
    ]


def test_columns_of_equal_names_keep_the_name_of_their_map() -> None:
    grams, cells = (
        Task("dead", unit="g"),
        Task("cells", dim=2, kind="dense", labels=("dead", "green")),
    )
    assert [name for name, *_ in columns(grams, cells)] == ["dead", "cells dead", "green"]
    later = replace(cells, name="later")
    assert [name for name, *_ in columns(cells, later)] == [
        "cells dead",
        "cells green",
        "later dead",
        "later green",
    ]
    assert [name for name, *_ in columns(replace(cells, labels=()))] == ["cells 0", "cells 1"]
    assert [name for name, *_ in columns(replace(cells, kind="classification"))] == [
        "cells:dead",
        "cells:green",
    ]


def test_a_maximum_bounds_values_and_dense_cells() -> None:
    task = Task(
        "height",
        kind="dense",
        transform=TargetTransform(mean=0.0, std=2.0),
        minimum=0.5,
        maximum=3.0,
    )
    cells = torch.tensor([[[[-1.0, 1.0, 4.0]]]])
    assert task.natural_map(cells).flatten().tolist() == [-2.0, 2.0, 8.0]
    assert task.predict_map(cells).flatten().tolist() == [0.5, 2.0, 3.0]
    assert Task("height", maximum=3.0).predict(torch.tensor([[4.0]])).item() == 3.0


def test_targets_of_a_kind_are_in_one_group() -> None:
    groups = (NUMBER_KINDS, CLASS_KINDS, LABEL_KINDS, MAP_KINDS, MASK_KINDS)
    counts = Counter(chain.from_iterable(groups))
    assert counts == Counter(get_args(Kind))


def test_every_kind_has_a_loss_without_naming_one() -> None:
    for kind in get_args(Kind):
        assert Task("a", kind=kind, labels=("b",)).default_loss


MASS = Task("mass", unit="g")
COVER = Task("cover", dim=2, kind="segmentation")
HEADS: dict[type[Head], tuple[Task, dict[str, Any]]] = {
    PatchMeanHead: (MASS, {}),
    LinearHead: (MASS, {}),
    CLSGatingHead: (MASS, {"mode": "query"}),
    DenseHead: (COVER, {}),
    MaskHead: (COVER, {"num_layers": 1, "num_blocks": 1, "dim": 8}),
    FPNHead: (MASS, {"num_layers": 1}),
}


@pytest.mark.parametrize("cls", HEADS)
def test_a_head_of_a_single_task_is_that_of_a_list_of_it(cls: type[Any]) -> None:
    task, options = HEADS[cls]
    head = cls(16, task, **options)
    assert head.tasks == (task,)
    assert head.config == cls(16, [task], **options).config


def test_a_single_task_is_taken_where_tasks_are_expected() -> None:
    assert TaskLoss(MASS).tasks == (MASS,)
    assert list(to_frame([{"mass": 2.0}], MASS)["mass"]) == [2.0]
    total = Composition(("mass",), {"total": ("mass",)}, name="sum")
    assert total.tasks_of(MASS) == total.tasks_of([MASS]) == (MASS,)


def test_another_value_than_tasks_is_refused_with_what_is_expected() -> None:
    head: Any = PatchMeanHead
    with pytest.raises(ConfigError, match=r"is 'mass'; expected a Task, or a list of Task objects"):
        head(16, "mass")


def test_only_the_name_of_a_task_is_known_by_its_place() -> None:
    task: Any = Task
    with pytest.raises(TypeError, match="positional"):
        task("mass", 3)
