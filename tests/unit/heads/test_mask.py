"""MaskHead is its formula, its positions are DINOv3's, and its loss is Mask2Former's over all cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.kit import randomised, tokens_from
from tests.unit.published import official_files as official
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from dinoneck import (
    ConfigError,
    DataError,
    DPTNeck,
    MaskHead,
    PyramidHead,
    SimplePyramid,
    Task,
    Tokens,
    load_backbone,
    load_head,
)
from dinoneck.grid import GridSize
from dinoneck.heads.instances import boxes_of, decode_centres, decode_instances, decode_panoptic
from dinoneck.heads.mask import rotary_positions
from dinoneck.losses import TaskLoss
from dinoneck.losses.mask import centre_loss, mask_loss
from dinoneck.losses.task_loss import known_masks
from dinoneck.published.names import pmt_name
from dinoneck.training import LiveTokens, MemoryTokens, fit

TASK = Task("plant", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))
pytest.importorskip("scipy")


def head_of(dim: int | None = None) -> MaskHead:
    torch.manual_seed(0)
    head = MaskHead(32, [TASK], num_layers=2, num_queries=5, num_blocks=2, num_heads=2, dim=dim)
    return head.eval()


def tokens_of(rows: int, cols: int, prefix: int, **to: Any) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(2, prefix + rows * cols, 32, generator=generator) for _ in range(2)]
    return tokens_from(layers, rows, cols, prefix).to(**to)


# The head


def published_logits(head: MaskHead, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Class and mask logits by the formula of the published files, whose names are other ones."""
    our_state = dict(head.state_dict())
    state = {}
    for name in official.mask_shapes(32, 3, 5, layers=2, blocks=2):
        our_name = pmt_name(name)
        if our_name in our_state:
            state[name] = our_state[our_name]
    if head.queries.embedding_dim != 32:
        for name, value in our_state.items():
            if name.startswith("narrow."):
                state[name] = value
    return official.mask_logits(state, tokens, heads=2)


def class_shares(classes: Tensor, masks: Tensor) -> Tensor:
    """The share of every class in every cell, from logits of queries (B, Q, classes + 1) and (B, Q, h, w)."""
    probabilities = classes.softmax(-1)[..., :-1]
    sums = torch.einsum("bqc,bqhw->bchw", probabilities, masks.sigmoid())
    return sums / sums.sum(dim=1, keepdim=True)


OF_GRIDS = pytest.mark.parametrize(
    ("rows", "cols", "prefix"),
    [
        pytest.param(3, 5, 0, id="3x5 without prefix"),
        pytest.param(5, 9, 1, id="5x9 with a class token"),
        pytest.param(1, 4, 5, id="1x4 with registers"),
        pytest.param(1, 1, 1, id="1x1 with a class token"),
    ],
)


@OF_GRIDS
@pytest.mark.parametrize("dim", [None, 16])
def test_the_head_is_its_formula(rows: int, cols: int, prefix: int, dim: int | None) -> None:
    head = randomised(head_of(dim).double())
    tokens = tokens_of(rows, cols, prefix, dtype=torch.float64)
    classes, masks = published_logits(head, tokens)

    outputs = head(tokens)

    assert torch.allclose(outputs["plant.classes"], classes, atol=1e-12)
    assert torch.allclose(outputs["plant.masks"], masks, atol=1e-11)


@OF_GRIDS
@pytest.mark.parametrize("dim", [None, 16])
def test_the_map_holds_logarithms_of_the_shares_of_classes(
    rows: int, cols: int, prefix: int, dim: int | None
) -> None:
    head = randomised(head_of(dim).double())
    tokens = tokens_of(rows, cols, prefix, dtype=torch.float64)
    shares = class_shares(*published_logits(head, tokens))

    logits = head(tokens)["plant"]

    assert torch.allclose(logits.softmax(dim=1), shares, atol=1e-11)
    assert torch.allclose(logits.exp().sum(dim=1), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("grid", [(3, 5), (7, 4), (1, 13), (1, 1)])
def test_positions_are_those_of_dinov3(grid: tuple[int, int]) -> None:
    layers = pytest.importorskip("timm.layers")
    peer = layers.RotaryEmbeddingDinoV3(32, temperature=100.0, rotate_half=True).eval()
    prefix = 2

    positions = rotary_positions(GridSize(*grid), prefix, 8, torch.empty(0))

    assert torch.allclose(positions[prefix:], peer.get_embed(grid), atol=1e-6)
    unturned = torch.cat([torch.zeros(prefix, 32), torch.ones(prefix, 32)], dim=-1)
    assert torch.equal(positions[:prefix], unturned)


def test_masks_are_resampled_before_they_are_shares() -> None:
    head = head_of()
    outputs = head(tokens_of(3, 4, 1))
    masks = F.interpolate(outputs["plant.masks"], (48, 64), mode="bilinear")
    shares = class_shares(outputs["plant.classes"], masks)

    resized = head.at_size(outputs, (48, 64))

    assert torch.allclose(resized["plant"].softmax(dim=1), shares, atol=1e-6)


def test_maps_of_a_pyramid_head_are_resampled_and_values_stay() -> None:
    head = PyramidHead(32, [TASK, Task("mass")], neck=DPTNeck(32, 2, 8))
    outputs = head(tokens_of(3, 4, 1))

    resized = head.at_size(outputs, (48, 64))

    expected = F.interpolate(outputs["plant"], (48, 64), mode="bilinear")
    assert torch.allclose(resized["plant"], expected)
    assert torch.equal(resized["mass"], outputs["mass"])


# The loss of queries


Known = list[tuple[Tensor, Tensor]]  # labels and masks of each image


def random_queries(seed: int = 0) -> tuple[Tensor, Tensor, Known]:
    """Logits of classes and masks of 4 queries in 3 images, and what is known of the images."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    masks = 2 * torch.randn(3, 4, 6, 8, generator=generator, dtype=torch.float64)
    known = []
    for labels in ([0, 1, 1], [1], [0, 1]):
        shares = torch.rand(len(labels), 6, 8, generator=generator, dtype=torch.float64)
        known.append((torch.tensor(labels), shares))
    return classes, masks, known


def cell_centres() -> Tensor:
    """The centres (1, 48, 2) of 6 x 8 cells: x, y as shares of the sides."""
    rows = (torch.arange(6) + 0.5) / 6
    cols = (torch.arange(8) + 0.5) / 8
    y, x = torch.meshgrid(rows, cols, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(1, 48, 2).double()


def draw_points_at_cell_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers, which draws points, take all centres of cells, each once."""
    centres = cell_centres()
    draw = torch.rand

    def draw_or_take(*shape: Any, **options: Any) -> Tensor:
        is_of_points = len(shape) == 3 and shape[-1] == 2
        if is_of_points:
            return centres.expand(*shape).clone()
        return draw(*shape, **options)

    monkeypatch.setattr(torch, "rand", draw_or_take)


def test_the_loss_is_that_of_mask2former_over_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    classes, masks, known = random_queries()
    labels = [own_labels for own_labels, _ in known]
    truths = [shares.round() for _, shares in known]
    config = module.Mask2FormerConfig(
        train_num_points=48,
        oversample_ratio=1.0,
        importance_sample_ratio=0.0,
        num_labels=2,
        no_object_weight=0.1,
    )
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    reference = module.Mask2FormerLoss(config, weights).double()
    draw_points_at_cell_centres(monkeypatch)
    losses = reference(masks, classes, truths, labels)
    expected = sum(weights[name] * value for name, value in losses.items())

    loss = mask_loss(classes, masks, list(zip(labels, truths, strict=True)))

    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@dataclass
class WeightlessCells:
    """The loss of maps whose last three columns have no weight, and that of the first five alone."""

    loss: Tensor
    loss_of_first_columns: Tensor
    masks: Tensor


@pytest.fixture
def weightless_cells() -> WeightlessCells:
    classes, masks, known = random_queries()
    weight = torch.ones(3, 6, 8)
    weight[..., 5:] = 0
    in_first_columns = [(labels, shares[..., :5]) for labels, shares in known]
    loss_of_first_columns = mask_loss(classes, masks[..., :5], in_first_columns)
    spoilt = []
    for labels, shares in known:
        shares = shares.clone()
        shares[..., 5:] = 0.7
        spoilt.append((labels, shares))
    masks[..., 5:] = 1e4
    masks.requires_grad_()
    return WeightlessCells(
        loss=mask_loss(classes, masks, spoilt, weight),
        loss_of_first_columns=loss_of_first_columns,
        masks=masks,
    )


def test_cells_without_weight_count_for_nothing(weightless_cells: WeightlessCells) -> None:
    expected = float(weightless_cells.loss_of_first_columns)

    assert float(weightless_cells.loss.detach()) == pytest.approx(expected, rel=1e-12)


def test_cells_without_weight_have_no_gradient(weightless_cells: WeightlessCells) -> None:
    weightless_cells.loss.backward()

    gradient = weightless_cells.masks.grad
    assert gradient is not None
    assert (gradient[..., 5:] == 0).all()
    assert (gradient[..., :5] != 0).any()


def test_images_without_masks_have_a_finite_loss_and_the_masks_a_gradient() -> None:
    classes, masks, _ = random_queries()
    masks.requires_grad_()
    nothing = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, 8))

    loss = mask_loss(classes, masks, [nothing] * 3)
    loss.backward()

    assert loss.isfinite()
    assert masks.grad is not None


def test_the_loss_is_finite_where_float16_does_not_hold_the_sum_of_masks() -> None:
    masks = torch.full((1, 2, 300, 300), 20.0, dtype=torch.float16)
    known = [(torch.tensor([0]), torch.ones(1, 300, 300))]

    loss = mask_loss(torch.zeros(1, 2, 3), masks, known)

    assert loss.isfinite()


def test_the_loss_of_no_images_is_zero_and_reaches_every_output() -> None:
    classes = torch.zeros(0, 4, 3, requires_grad=True)
    masks = torch.zeros(0, 4, 6, 8, requires_grad=True)

    loss = mask_loss(classes, masks, [])
    loss.backward()

    assert loss.item() == 0.0
    assert classes.grad is not None
    assert masks.grad is not None


# Two images of 2 x 4 pixels; -1: unknown
CLASSES_OF_PIXELS = torch.tensor(
    [
        [[0, 0, 2, 2], [0, -1, 2, 2]],
        [[-1, -1, -1, -1], [-1, -1, -1, -1]],
    ]
)
IS_KNOWN = CLASSES_OF_PIXELS >= 0
ONE_HOT = F.one_hot(CLASSES_OF_PIXELS.clamp_min(0), 3).movedim(-1, 1)
IDS_OF_OBJECTS = torch.where(IS_KNOWN, 1000 * (CLASSES_OF_PIXELS + 1) + 7, -1)


@pytest.mark.parametrize(
    ("task", "target"),
    [
        pytest.param(TASK, CLASSES_OF_PIXELS, id="class indices"),
        pytest.param(TASK, (ONE_HOT * IS_KNOWN[:, None]).float(), id="shares of classes"),
        pytest.param(Task("leaf", dim=3, kind="instances"), IDS_OF_OBJECTS, id="ids of objects"),
    ],
)
def test_maps_become_known_masks_and_ignored_pixels_have_no_weight(
    task: Task, target: Tensor
) -> None:
    known, weight = known_masks(task, target, (1, 2), None)

    labels, masks = known[0]
    assert labels.tolist() == [0, 2]
    assert masks.tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
    assert weight.tolist() == [[[0.75, 1.0]], [[0.0, 0.0]]]


def test_a_map_of_ignored_pixels_alone_has_no_loss() -> None:
    outputs = head_of()(tokens_of(2, 3, 1))

    loss, _ = TaskLoss([TASK])(outputs, {"plant": torch.full((2, 32, 48), -1)})

    assert float(loss.detach()) == 0.0


# Objects and segments of queries


def queries_of(masks: Tensor, labels: list[int], num_classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of queries that are sure of these masks (Q, h, w) and classes."""
    classes = torch.full((1, len(labels), num_classes + 1), -9.0)
    for query, label in enumerate(labels):
        classes[0, query, label] = 9.0
    return classes, 40 * (masks[None].float() - 0.5)


def masks_of(*places: tuple[slice, slice]) -> Tensor:
    """Masks (Q, 4, 6) that are 1 in a rectangle each."""
    masks = torch.zeros(len(places), 4, 6)
    for query, (rows, cols) in enumerate(places):
        masks[query, rows, cols] = 1
    return masks


ALL = slice(None)
TOP_LEFT = (slice(0, 2), slice(0, 3))
BOTTOM_RIGHT = (slice(2, 4), slice(3, 6))


def decode_four_queries() -> dict[str, Tensor]:
    """The objects of two queries of one object, one of another, and one of nothing."""
    masks = masks_of(TOP_LEFT, TOP_LEFT, BOTTOM_RIGHT, (slice(0, 0), ALL))
    classes, logits = queries_of(masks, [0, 0, 1, 3])
    classes[0, 1, 0] -= 1.0  # less sure than the first
    [found] = decode_instances(classes, logits, (8, 12), min_score=0.5)
    return found


def test_duplicates_and_empty_queries_are_no_instances() -> None:
    found = decode_four_queries()

    assert found["labels"].tolist() == [0, 1]
    assert (found["scores"] > 0.99).all()


def test_the_boxes_of_instances_are_in_pixels_of_the_image() -> None:
    found = decode_four_queries()

    assert found["boxes"].tolist() == [[0, 0, 6, 4], [6, 4, 12, 8]]


def test_boxes_end_at_the_outer_edges_of_masks_as_those_of_torchvision() -> None:
    masks = torch.rand(50, 7, 9, generator=torch.Generator().manual_seed(0)) > 0.95
    is_filled = masks.flatten(1).any(dim=1)
    assert 0 < is_filled.sum() < 50

    boxes = boxes_of(masks)

    edges = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert torch.equal(boxes[is_filled], masks_to_boxes(masks[is_filled]) + edges)
    assert not boxes[~is_filled].any()
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_the_masks_of_instances_are_those_of_queries_in_the_image() -> None:
    found = decode_four_queries()

    expected = F.interpolate(masks_of(BOTTOM_RIGHT)[None], (8, 12))[0, 0]
    assert torch.equal(found["masks"][1], expected > 0)


def test_queries_that_are_sure_that_they_are_nothing_are_no_instances() -> None:
    classes = torch.tensor([0.0, 0.0, 9.0]).expand(1, 200, 3)
    masks = torch.ones(1, 200, 4, 6)

    [found] = decode_instances(classes, masks, (4, 6))

    assert len(found["labels"]) == 0


LEFT = (ALL, slice(0, 2))
RIGHT = (ALL, slice(4, 6))
TOP_MIDDLE = (slice(0, 2), slice(2, 4))
THREE_MASKS = masks_of(LEFT, RIGHT, TOP_MIDDLE)


def decode_three_queries(things: list[int]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Segments of two queries of class 0, left and right, and of one of class 1 between them."""
    classes, masks = queries_of(THREE_MASKS, [0, 0, 1])
    [(segments, listed)] = decode_panoptic(classes, masks, (4, 6), things)
    return segments, listed


@pytest.mark.parametrize(
    ("things", "is_thing_of_segments"),
    [
        pytest.param([0], [True, True], id="class 0 is a thing"),
        pytest.param([2], [False], id="class 0 is stuff"),
    ],
)
def test_stuff_is_one_segment_and_things_are_several(
    things: list[int], is_thing_of_segments: list[bool]
) -> None:
    _, listed = decode_three_queries(things)

    of_class_0 = [segment["isthing"] for segment in listed if segment["category_id"] == 0]
    assert of_class_0 == is_thing_of_segments
    assert len(listed) == len(is_thing_of_segments) + 1


@pytest.mark.parametrize("things", [[0], [2]])
def test_the_areas_of_segments_are_their_pixels(things: list[int]) -> None:
    segments, listed = decode_three_queries(things)

    assert sum(segment["area"] for segment in listed) == 20
    assert int((segments > 0).sum()) == 20


@pytest.mark.parametrize("things", [[0], [2]])
def test_pixels_hold_the_number_of_their_segment(things: list[int]) -> None:
    segments, _ = decode_three_queries(things)

    assert (segments[2:, 2:4] == 0).all(), "no mask is there"
    assert segments[0, 0] != segments[0, 2]


@pytest.mark.parametrize(
    ("min_score", "num_segments"),
    [
        pytest.param(None, 2, id="not given"),
        pytest.param(0.3, 3, id="below the score"),
        pytest.param(0.6, 2, id="above the score"),
    ],
)
def test_segments_of_low_scores_are_left_out(min_score: float | None, num_segments: int) -> None:
    classes, masks = queries_of(THREE_MASKS, [0, 1, 2])
    classes[0, 1, 1] -= 17.5  # a probability of 0.5 or so

    [(_, listed)] = decode_panoptic(classes, masks, (4, 6), [0], min_score)

    assert len(listed) == num_segments


# Objects of centres


@dataclass
class Scene:
    """An image (3, 128, 128) with discs of two colours that do not touch, and what is in it.

    Attributes:
        ids: of the object of every pixel: 1000 * (label + 1) + its number; 0: none.
        masks: (objects, 128, 128).
        labels: 0 is red, 1 is blue.
    """

    image: Tensor
    ids: Tensor
    masks: Tensor
    labels: Tensor


COLOURS = torch.tensor([[0.7, 0.1, 0.1], [0.1, 0.1, 0.7]])


def draw_discs(seed: int) -> Scene:
    """One to four discs in quarters of the image."""
    random = np.random.RandomState(seed)
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 128, 128, generator=generator) * 0.2
    ids = torch.zeros(128, 128, dtype=torch.int64)
    masks = []
    labels = []
    y, x = np.mgrid[:128, :128]
    for quarter in random.permutation(4)[: 1 + seed % 4]:
        centre_y = 64 * (quarter // 2) + 32
        centre_x = 64 * (quarter % 2) + 32
        radius = random.randint(9, 20)
        label = random.randint(2)
        mask = torch.from_numpy((y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2)
        image[:, mask] += COLOURS[label][:, None]
        ids[mask] = 1000 * (label + 1) + len(labels)
        masks.append(mask)
        labels.append(label)
    return Scene(
        image=image.clamp(0, 1),
        ids=ids,
        masks=torch.stack(masks),
        labels=torch.tensor(labels),
    )


def drawn_centres(scene: Scene) -> Tensor:
    """The maps that a perfect head gives: no object, two classes, the centre of gravity, the offset to it (y, x)."""
    rows, cols = scene.masks.shape[1:]
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    maps = torch.zeros(6, rows, cols)
    no_object, *classes, centre = maps[:4]
    no_object += 9.0
    for mask, label in zip(scene.masks.float(), scene.labels, strict=True):
        middle = (mask * places).sum(dim=(1, 2)) / mask.sum()
        offsets = middle[:, None, None] - places
        nearness = torch.exp(-offsets.square().sum(dim=0) / 8)
        centre.copy_(torch.maximum(centre, nearness))
        maps[4:] = torch.where(mask > 0, offsets, maps[4:])
        no_object -= 18 * mask
        classes[label] += 9 * mask
    return maps


def test_objects_come_back_from_their_centres() -> None:
    scenes = [draw_discs(seed) for seed in range(8)]
    maps = torch.stack([drawn_centres(scene) for scene in scenes])

    decoded = decode_centres(maps, (128, 128))

    for found, scene in zip(decoded, scenes, strict=True):
        assert len(found["labels"]) == len(scene.labels)
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            [index] = [i for i, other in enumerate(found["masks"]) if torch.equal(other, mask)]
            box = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
            assert found["labels"][index] == label
            assert torch.equal(found["boxes"][index], box)


def test_an_object_whose_centre_is_between_cells_is_one() -> None:
    to_centre = torch.tensor([1.5, 0.5, -0.5, -1.5])
    offsets = torch.stack(torch.meshgrid(to_centre, to_centre, indexing="ij"))
    no_object = torch.full((4, 4), -9.0)
    first_class = torch.full((4, 4), 9.0)
    centre = torch.exp(-offsets.square().sum(dim=0))
    maps = torch.stack([no_object, first_class, centre, *offsets])

    [found] = decode_centres(maps[None], (4, 4))

    assert len(found["labels"]) == 1


def test_maps_without_centres_give_empty_tensors_of_the_right_shapes() -> None:
    [found] = decode_centres(torch.zeros(1, 6, 3, 4), (48, 64))

    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 48, 64),
    }


@dataclass
class CentresWithTruth:
    """The maps of a perfect head for three scenes, and the ids that it learned from."""

    maps: Tensor
    ids: Tensor

    def loss(self, maps: Tensor, is_known: Tensor | None = None) -> float:
        task_loss = TaskLoss([Task("disc", dim=2, kind="instances")])
        known = {} if is_known is None else {"disc": is_known}
        loss, _ = task_loss({"disc.map": maps}, {"disc": self.ids}, known)
        return float(loss)


@pytest.fixture(scope="module")
def centres() -> CentresWithTruth:
    scenes = [draw_discs(seed) for seed in range(3)]
    maps = torch.stack([drawn_centres(scene) for scene in scenes])
    ids = torch.stack([scene.ids for scene in scenes])
    return CentresWithTruth(maps=maps, ids=ids)


@pytest.mark.parametrize(
    ("channel", "change"),
    [
        pytest.param(1, 30.0, id="class"),
        pytest.param(-3, 0.5, id="centre"),
        pytest.param(-2, 3.0, id="offset in y"),
        pytest.param(-1, -3.0, id="offset in x"),
    ],
)
def test_the_loss_of_centres_is_least_where_the_maps_are_true(
    channel: int, change: float, centres: CentresWithTruth
) -> None:
    spoilt = centres.maps.clone()
    spoilt[:, channel] += change

    assert centres.loss(spoilt) > centres.loss(centres.maps) + 0.05


def test_offsets_outside_objects_do_not_count(centres: CentresWithTruth) -> None:
    is_outside = centres.maps[:, :1] > 0
    spoilt = centres.maps.clone()
    spoilt[:, -2:] += 100 * is_outside

    assert centres.loss(spoilt) == pytest.approx(centres.loss(centres.maps), rel=1e-5)


def test_unknown_pixels_do_not_count_in_the_loss_of_centres(centres: CentresWithTruth) -> None:
    is_known = torch.ones(3, 128, 128)
    is_known[..., 64:] = 0
    is_unknown = is_known[:, None] == 0
    spoilt = centres.maps + 50 * is_unknown * torch.randn_like(centres.maps)

    expected = centres.loss(centres.maps, is_known)
    assert centres.loss(spoilt, is_known) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_centres_of_no_images_is_zero_and_reaches_the_maps() -> None:
    maps = torch.zeros(0, 6, 8, 8, requires_grad=True)

    loss = centre_loss(maps, [], weight=torch.zeros(0, 8, 8))
    loss.backward()

    assert loss.item() == 0.0
    assert maps.grad is not None


# Training


def fit_two_images(**options: Any) -> tuple[MaskHead, Tokens]:
    """A head that learned maps of classes in three steps, and its tokens."""
    head = head_of().train()
    tokens = tokens_of(3, 5, 1)
    names = ["a", "b"]
    classes = torch.arange(2 * 48 * 80).reshape(2, 48, 80) % 3
    source = MemoryTokens(names, tokens)
    targets = {"plant": classes}
    fit(head, source, targets, target_ids=names, epochs=3, batch_size=2, **options)
    return head, tokens


OF_OPTIMIZERS = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="adamw"),
        pytest.param({"optimizer": "sam"}, id="sam"),
        pytest.param({"ema_decay": 0.9}, id="ema"),
    ],
)


@OF_OPTIMIZERS
def test_batch_norms_count_a_step_once(options: dict[str, Any]) -> None:
    """Both passes of SAM count as one."""
    head, _ = fit_two_images(**options)

    assert [int(norm.num_batches_tracked) for norm in head.norms] == [3, 3]


@OF_OPTIMIZERS
def test_a_trained_head_predicts_the_same_after_loading(
    options: dict[str, Any], tmp_path: Path
) -> None:
    head, tokens = fit_two_images(**options)

    head.save_pretrained(tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors", check_backbone=False)

    outputs = loaded(tokens)
    for name, expected in head.eval()(tokens).items():
        assert torch.equal(outputs[name], expected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_six_scenes_are_learned_in_100_steps() -> None:
    scenes = {str(seed): draw_discs(seed) for seed in range(6)}
    backbone = load_backbone(
        "vit_small_patch16_dinov3", pretrained=False, seed=0, layers=[2, 5, 8, 11]
    )
    images = torch.stack([scene.image for scene in scenes.values()])
    source = MemoryTokens(list(scenes), backbone(images))
    torch.manual_seed(0)
    task = Task("disc", dim=2, kind="instances", labels=("a", "b"))
    head = MaskHead(384, [task], num_queries=20, dim=128)
    ids = {name: scene.ids for name, scene in scenes.items()}

    fit(head, source, {"disc": ids}, epochs=100, batch_size=6, lr=1e-3)

    predictions = head.eval().predict_instances(source.tokens, (128, 128), 0.5)
    for found, scene in zip(predictions, scenes.values(), strict=True):
        assert len(found["labels"]) == len(scene.labels), "the number is exact"
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            intersection = (found["masks"] & mask).sum(dim=(1, 2))
            union = (found["masks"] | mask).sum(dim=(1, 2))
            iou = intersection / union
            assert iou.max() > 0.5
            assert found["labels"][iou.argmax()] == label


LEAF = Task("leaf", dim=2, kind="instances")
LEAF_IDS = {str(seed): draw_discs(seed).ids for seed in range(6)}


def leaf_head(width: int) -> PyramidHead:
    return PyramidHead(width, [LEAF], neck=SimplePyramid(width, 16, scales=(1.0,)))


def leaf_tokens() -> MemoryTokens:
    patches = torch.randn(6, 64, 32, generator=torch.Generator().manual_seed(0))
    return MemoryTokens([*LEAF_IDS], Tokens.from_patches(patches, grid=(8, 8), patch_size=16))


@pytest.mark.slow
def test_fit_trains_on_ids_of_objects() -> None:
    """Flipped views flip the ids along."""
    history = fit(
        leaf_head(32),
        leaf_tokens(),
        {"leaf": LEAF_IDS},
        val_ids=["4", "5"],
        epochs=12,
        batch_size=2,
        lr=3e-3,
    )

    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert np.isfinite(history[-1]["val_loss"])


@pytest.mark.parametrize("wrong", [1, 999, 3000, -2])
def test_ids_that_name_no_class_are_refused(wrong: int) -> None:
    ids = {**LEAF_IDS, "0": torch.full((128, 128), wrong)}

    with pytest.raises(DataError, match=f" {wrong} .*'0'"):
        fit(leaf_head(32), leaf_tokens(), {"leaf": ids}, epochs=1)


@pytest.mark.slow
def test_cutmix_is_refused_for_ids_of_objects() -> None:
    """It would join objects of two images."""
    names = ["0", "1"]
    images = [draw_discs(seed).image for seed in range(2)]
    live = LiveTokens(load_backbone("dinoneck_tiny").add_lora(2), images, names)
    ids = {name: LEAF_IDS[name] for name in names}

    with pytest.raises(ConfigError, match="cutmix"):
        fit(leaf_head(64), live, {"leaf": ids}, cutmix_alpha=1.0, epochs=1)
