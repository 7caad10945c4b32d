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
from dinoneck.task_facts import cell_target_names, describe_tasks, labels_of
from dinoneck.tasks import Interval, columns_of, without_calibration

LARGEST_FITTED = 180.0  # grams that the transforms are fitted on


@pytest.mark.parametrize("area", [None, 0.21])
@pytest.mark.parametrize("log1p", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_is_exact_over_0_to_1000_grams(
    area: float | None, log1p: bool, dtype: torch.dtype
) -> None:
    fitted_on = torch.rand(50, dtype=torch.float64) * LARGEST_FITTED
    transform = TargetTransform(area=area, log1p=log1p).fit(fitted_on)
    grams = torch.linspace(0, 1000, 4001, dtype=dtype)

    returned = transform.inverse(transform.forward(grams))

    scale = grams
    if dtype == torch.float32:
        # a z-score in float32 cannot resolve a value finer than a ten-millionth of the spread it
        # was fitted on
        scale = grams.clamp_min(1.0 if log1p else LARGEST_FITTED)
    assert returned.dtype == dtype
    assert ((returned - grams).abs() <= 1e-6 * scale + 1e-12).all()


def test_fit_takes_population_statistics_and_skips_nan() -> None:
    fitted = TargetTransform().fit([[1.0, 10.0], [3.0, torch.nan], [5.0, 30.0]])

    assert fitted.mean == (3.0, 20.0)
    # the squares of the deviations from 3 are 4, 0 and 4
    assert fitted.std == pytest.approx((math.sqrt(8 / 3), 10.0))


def test_fitting_again_keeps_the_area_and_replaces_the_statistics() -> None:
    first = TargetTransform(area=2.0, mean=9.0, std=9.0)

    again = first.fit([2.0, 4.0])

    # per square metre the targets are 1 and 2
    assert again.mean == 1.5
    assert again.std == 0.5
    assert again.area == 2.0


def test_fitting_leaves_the_transform_as_it_is() -> None:
    first = TargetTransform(area=2.0, mean=9.0, std=9.0)

    first.fit([2.0, 4.0])

    assert first == TargetTransform(area=2.0, mean=9.0, std=9.0)


def test_an_output_that_does_not_vary_among_others_is_centred(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = TargetTransform().fit([[1.0, 5.0, 2.0], [3.0, 5.0, torch.nan], [5.0, 5.0, 2.0]])

    assert fitted.mean == (3.0, 5.0, 2.0)
    assert fitted.std == pytest.approx((math.sqrt(8 / 3), 1.0, 1.0))
    assert "[1, 2]" in caplog.text


@pytest.mark.parametrize("kind", ["classification", "ratio"])
def test_logits_become_probabilities(kind: Kind) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]])

    shares = Task("s", dim=3, kind=kind).predict(logits)

    assert torch.allclose(shares, torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]]))


def test_predictions_in_half_precision_become_float32() -> None:
    predicted = Task("t").predict(torch.ones(2, 1, dtype=torch.bfloat16))

    assert predicted.dtype == torch.float32


MAP = torch.randn(2, 3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MEANS = (4.0, -1.0, 0.5)
STDS = (2.0, 0.3, 7.0)
FITTED = TargetTransform(area=0.25, mean=MEANS, std=STDS)


def inverted_by_cell(maps: torch.Tensor) -> torch.Tensor:
    """The values of cells (B, C, rows, cols), each inverted on its own."""
    return FITTED.inverse(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


# maps of densities: the sum over the cells is the image


@pytest.fixture
def mass() -> Task:
    return Task("mass", dim=3, kind="density", transform=FITTED, minimum=0.0)


def test_the_cells_of_a_density_map_add_up_to_the_image(mass: Task) -> None:
    cells = mass.natural_map(MAP)

    image = mass.natural(MAP.sum(dim=(2, 3)))
    assert torch.allclose(cells.sum(dim=(2, 3)), image, rtol=1e-12)


def test_each_cell_of_a_density_map_has_its_share_of_the_mean(mass: Task) -> None:
    cells = mass.natural_map(MAP)

    num_cells = 10
    for channel, (mean, std) in enumerate(zip(MEANS, STDS, strict=True)):
        expected = MAP[:, channel] * std * 0.25 + mean * 0.25 / num_cells
        assert torch.allclose(cells[:, channel], expected, rtol=1e-12)


def test_the_bound_of_a_density_is_one_of_the_image_and_not_of_its_cells(mass: Task) -> None:
    cells = mass.predict_map(MAP)

    assert (cells < 0).any()
    assert torch.equal(cells, mass.natural_map(MAP)), "a bound on cells would break the sum"
    assert mass.predict(MAP.sum(dim=(2, 3))).min() >= 0


def test_a_density_without_a_transform_is_the_map() -> None:
    task = Task("mass", dim=3, kind="density")

    assert torch.equal(task.natural_map(MAP), MAP)


def test_the_cells_of_a_density_map_add_up_in_float32_too() -> None:
    task = Task("mass", kind="density", transform=TargetTransform(mean=3.0, std=2.0))
    maps = MAP[:, :1].float()

    cells = task.natural_map(maps)

    assert torch.allclose(cells.sum(dim=(2, 3)), task.natural(maps.sum(dim=(2, 3))), rtol=1e-5)


# other maps: every cell on its own


def test_a_density_that_is_a_mean_is_inverted_cell_by_cell() -> None:
    task = Task("a", dim=3, kind="density", aggregate="mean", transform=FITTED)

    cells = task.natural_map(MAP)

    assert torch.equal(cells, inverted_by_cell(MAP))
    assert torch.allclose(cells.mean(dim=(2, 3)), task.natural(MAP.mean(dim=(2, 3))))


def test_a_dense_map_is_inverted_cell_by_cell_and_bounded_when_predicted() -> None:
    task = Task("a", dim=3, kind="dense", transform=FITTED, minimum=-0.1)

    natural = task.natural_map(MAP)
    predicted = task.predict_map(MAP)

    assert torch.equal(natural, inverted_by_cell(MAP))
    assert (natural < -0.1).any()
    assert torch.equal(predicted, natural.clamp_min(-0.1))


def test_the_map_of_a_value_has_no_bound() -> None:
    task = Task("a", dim=3, transform=FITTED, minimum=0.0)

    predicted = task.predict_map(MAP)

    assert (predicted < 0).any()
    assert torch.equal(predicted, inverted_by_cell(MAP))


def test_logarithms_of_a_dense_map_are_undone() -> None:
    transform = TargetTransform(log1p=True, mean=1.0, std=2.0)
    task = Task("a", kind="dense", transform=transform)

    cells = task.natural_map(MAP[:, :1])

    assert torch.allclose(cells, torch.expm1(MAP[:, :1] * 2 + 1))


@pytest.mark.parametrize("kind", ["segmentation", "classification", "ratio"])
def test_a_map_of_classes_holds_their_shares_in_every_cell(kind: Kind) -> None:
    task = Task("a", dim=3, kind=kind)

    shares = task.natural_map(MAP)

    assert torch.allclose(shares, MAP.exp() / MAP.exp().sum(dim=1, keepdim=True))


def test_maps_in_half_precision_become_float32() -> None:
    task = Task("a", dim=3, kind="dense")

    assert task.natural_map(MAP.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "is_map"),
    [
        ("regression", False),
        ("ratio", False),
        ("classification", False),
        ("density", False),
        ("dense", True),
        ("segmentation", True),
    ],
)
def test_which_kinds_have_a_map_as_their_output(kind: Kind, is_map: bool) -> None:
    assert Task("a", dim=3, kind=kind).is_map == is_map


def test_the_output_of_a_segmentation_is_its_map() -> None:
    task = Task("a", dim=3, kind="segmentation")

    assert torch.equal(task.natural(MAP), task.natural_map(MAP))


def test_the_prediction_of_a_dense_task_is_its_map() -> None:
    task = Task("a", dim=3, kind="dense", minimum=0.2, transform=FITTED)

    assert torch.equal(task.predict(MAP), task.predict_map(MAP))


# columns of tables


def columns(*tasks: Task) -> list[tuple[str, str, int]]:
    """Name, task and channel of every column."""
    return [(name, task.name, channel) for name, task, channel in columns_of(tasks)]


def column_names(*tasks: Task) -> list[str]:
    return [name for name, _, _ in columns(*tasks)]


def test_columns_are_named_by_labels_and_hold_each_number_once() -> None:
    cells = Task("cells", dim=3, kind="dense", labels=("soil", "crop", "weed"))
    weed = Task("weed", from_map="cells")
    mass = Task("mass")

    assert columns(weed, mass, cells) == [
        ("weed", "weed", 0),
        ("mass", "mass", 0),
        ("soil", "cells", 0),
        ("crop", "cells", 1),
    ]


def test_a_value_from_a_map_of_one_channel_leaves_it_no_column() -> None:
    height = Task("height", from_map="cells")
    cells = Task("cells", kind="dense")

    assert columns(height, cells) == [("height", "height", 0)]


def test_a_label_may_be_called_as_its_task() -> None:
    task = Task("kind", dim=2, kind="segmentation", labels=("soil", "kind"))

    assert column_names(task) == ["soil", "kind"]


def test_a_map_of_one_channel_has_the_name_of_its_task() -> None:
    assert column_names(Task("depth", kind="dense")) == ["depth"]


def test_channels_without_labels_have_numbers() -> None:
    assert column_names(Task("cells", dim=2, kind="dense")) == ["cells 0", "cells 1"]


def test_classes_have_the_name_of_their_task_in_front() -> None:
    task = Task("cells", dim=2, kind="classification", labels=("dead", "green"))

    assert column_names(task) == ["cells:dead", "cells:green"]


def test_a_column_called_as_a_value_keeps_the_name_of_its_map() -> None:
    grams = Task("dead", unit="g")
    cells = Task("cells", dim=2, kind="dense", labels=("dead", "green"))

    assert column_names(grams, cells) == ["dead", "cells dead", "green"]


def test_columns_of_two_maps_keep_the_names_of_their_maps() -> None:
    cells = Task("cells", dim=2, kind="dense", labels=("dead", "green"))
    later = replace(cells, name="later")

    assert column_names(cells, later) == [
        "cells dead",
        "cells green",
        "later dead",
        "later green",
    ]


# bounds and kinds


def test_bounds_hold_for_predicted_cells_and_not_for_natural_ones() -> None:
    transform = TargetTransform(mean=0.0, std=2.0)
    task = Task("height", kind="dense", transform=transform, minimum=0.5, maximum=3.0)
    cells = torch.tensor([[[[-1.0, 1.0, 4.0]]]])

    natural = task.natural_map(cells)
    predicted = task.predict_map(cells)

    assert natural.flatten().tolist() == [-2.0, 2.0, 8.0]
    assert predicted.flatten().tolist() == [0.5, 2.0, 3.0]


def test_a_maximum_bounds_values() -> None:
    predicted = Task("height", maximum=3.0).predict(torch.tensor([[4.0]]))

    assert predicted.item() == 3.0


def test_targets_of_a_kind_are_in_one_group() -> None:
    groups = (NUMBER_KINDS, CLASS_KINDS, LABEL_KINDS, MAP_KINDS, MASK_KINDS)

    counts = Counter(chain.from_iterable(groups))

    assert counts == Counter(get_args(Kind))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_has_a_loss_without_naming_one(kind: Kind) -> None:
    assert Task("a", kind=kind, labels=("b",)).default_loss


# one task where several are expected


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


def test_a_loss_takes_a_single_task() -> None:
    assert TaskLoss(MASS).tasks == (MASS,)


def test_a_frame_takes_a_single_task() -> None:
    frame = to_frame([{"mass": 2.0}], MASS)

    assert list(frame["mass"]) == [2.0]


def test_a_composition_takes_a_single_task() -> None:
    total = Composition(("mass",), {"total": ("mass",)}, name="sum")

    assert total.tasks_of(MASS) == (MASS,)
    assert total.tasks_of([MASS]) == (MASS,)


def test_another_value_than_tasks_is_refused_with_what_is_expected() -> None:
    head: Any = PatchMeanHead
    with pytest.raises(ConfigError, match=r"is 'mass'; expected a Task, or a list of Task objects"):
        head(16, "mass")


def test_only_the_name_of_a_task_is_known_by_its_place() -> None:
    task: Any = Task
    with pytest.raises(TypeError, match="positional"):
        task("mass", 3)


# what is said of tasks


def test_tasks_are_described_in_one_line() -> None:
    crop = Task("crop", dim=3, kind="classification", labels=("maize", "rye", "oats"))

    line = describe_tasks([MASS, crop])

    assert line == "mass (regression, g), crop (classification of 3)"


@pytest.mark.parametrize(
    ("task", "names"),
    [
        pytest.param(Task("depth", kind="dense"), ["depth"], id="one output"),
        pytest.param(
            Task("cells", dim=2, kind="dense", labels=("soil", "crop")),
            ["cells soil", "cells crop"],
            id="labels",
        ),
        pytest.param(Task("cells", dim=2, kind="dense"), ["cells 0", "cells 1"], id="numbers"),
    ],
)
def test_outputs_of_a_dense_task_have_its_name_in_reports(task: Task, names: list[str]) -> None:
    assert cell_target_names(task) == names


def test_what_is_measured_of_a_trained_head_can_be_taken_out_of_its_task() -> None:
    interval = Interval(levels=(0.9,), half_widths=(4.0,), groups=12)
    calibrated = replace(MASS, interval=(interval,))

    assert without_calibration(calibrated) == MASS


def test_labels_of_an_image_are_those_that_reach_their_thresholds() -> None:
    weeds = Task(
        "weeds", dim=3, kind="multilabel", labels=("a", "b", "c"), thresholds=(0.5, 0.9, 0.2)
    )

    labels = labels_of([MASS, weeds], {"mass": 1.0, "weeds": [0.5, 0.8, 0.3]})

    assert labels == {"weeds": ["a", "c"]}


def test_a_single_label_may_be_given_as_a_number() -> None:
    weed = Task("weed", kind="multilabel", labels=("weed",))

    assert labels_of([weed], {"weed": 0.6}) == {"weed": ["weed"]}
    assert labels_of([weed], {"weed": 0.4}) == {"weed": []}
