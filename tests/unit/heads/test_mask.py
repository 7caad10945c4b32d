"""MaskHead is its formula, its positions are DINOv3's, and its loss is Mask2Former's over all cells."""

from __future__ import annotations

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
from dinoneck.heads.instances import decode_centres, decode_instances, decode_panoptic
from dinoneck.heads.mask import rotary_positions
from dinoneck.losses import TaskLoss
from dinoneck.losses.mask import centre_loss, mask_loss
from dinoneck.losses.task_loss import known_masks
from dinoneck.published.names import pmt_name
from dinoneck.training import LiveTokens, MemoryTokens, fit

TASK = Task("plant", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))
pytest.importorskip("scipy")


def head_of(**options: Any) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(
        32,
        [TASK],
        **{"num_layers": 2, "num_queries": 5, "num_blocks": 2, "num_heads": 2, **options},
    ).eval()


def tokens_of(rows: int, cols: int, prefix: int, **how: Any) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randn(2, prefix + rows * cols, 32, generator=generator) for _ in range(2)]
    return tokens_from(layers, rows, cols, prefix).to(**how)


def plain(head: MaskHead, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Class and mask logits by the formula of the published files, whose names are other ones."""
    own, width = dict(head.state_dict()), head.queries.embedding_dim
    names = official.mask_shapes(32, 3, 5, layers=2, blocks=2)
    state = {}
    for name in names:
        our_name = pmt_name(name)
        if our_name in own:
            state[name] = own[our_name]
    state |= {name: x for name, x in own.items() if width != 32 and name.startswith("narrow.")}
    return official.mask_logits(state, tokens, heads=2)


@pytest.mark.parametrize(("rows", "cols", "prefix"), [(3, 5, 0), (5, 9, 1), (1, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize("dim", [None, 16])
def test_the_head_is_its_formula(rows: int, cols: int, prefix: int, dim: int | None) -> None:
    head, tokens = (
        randomised(head_of(dim=dim).double()),
        tokens_of(rows, cols, prefix, dtype=torch.float64),
    )
    classes, masks = plain(head, tokens)
    found = head(tokens)
    assert torch.allclose(found["plant.classes"], classes, atol=1e-12)
    assert torch.allclose(found["plant.masks"], masks, atol=1e-11)
    shares = (classes.softmax(-1)[..., :-1, None, None] * masks.sigmoid()[:, :, None]).sum(1)
    assert torch.allclose(
        found["plant"].softmax(1), shares / shares.sum(1, keepdim=True), atol=1e-11
    )
    assert torch.allclose(found["plant"].exp().sum(1), torch.ones(()).double())


@pytest.mark.parametrize("grid", [(3, 5), (7, 4), (1, 13), (1, 1)])
def test_positions_are_those_of_dinov3(grid: tuple[int, int]) -> None:
    layers = pytest.importorskip("timm.layers")
    expected = (
        layers.RotaryEmbeddingDinoV3(32, temperature=100.0, rotate_half=True).eval().get_embed(grid)
    )
    found = rotary_positions(GridSize(*grid), 2, 8, torch.empty(0))
    assert torch.allclose(found[2:], expected, atol=1e-6)
    assert torch.equal(found[:2], torch.cat([torch.zeros(2, 32), torch.ones(2, 32)], -1))


def some_masks(seed: int = 0) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(3, 4, 3, generator=generator, dtype=torch.float64)
    masks = 2 * torch.randn(3, 4, 6, 8, generator=generator, dtype=torch.float64)
    known = [
        (
            torch.tensor(labels),
            torch.rand(len(labels), 6, 8, generator=generator, dtype=torch.float64),
        )
        for labels in ([0, 1, 1], [1], [0, 1])
    ]
    return classes, masks, known


def test_the_loss_is_that_of_mask2former_over_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers draws points; here they are all centres of cells, each once."""
    module = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    classes, masks, known = some_masks()
    config = module.Mask2FormerConfig(
        train_num_points=48,
        oversample_ratio=1.0,
        importance_sample_ratio=0.0,
        num_labels=2,
        no_object_weight=0.1,
    )
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    reference = module.Mask2FormerLoss(config, weights).double()
    y, x = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(8) + 0.5) / 8, indexing="ij")
    centres = torch.stack([x, y], -1).reshape(1, 48, 2).double()
    draw = torch.rand
    monkeypatch.setattr(
        torch,
        "rand",
        lambda *s, **o: centres.expand(*s).clone() if s[-1] == 2 and len(s) == 3 else draw(*s, **o),
    )
    truths = [own.round() for _, own in known]
    labels = [labels for labels, _ in known]
    parts = reference(masks, classes, truths, labels)
    expected = sum(weights[name] * value for name, value in parts.items())
    found = mask_loss(classes, masks, list(zip(labels, truths, strict=True)))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_cells_without_weight_count_for_nothing() -> None:
    classes, masks, known = some_masks()
    weight = torch.ones(3, 6, 8)
    weight[..., 5:] = 0
    half = [(labels, own[..., :5]) for labels, own in known]
    expected = mask_loss(classes, masks[..., :5], half)
    spoilt = [(labels, own.index_fill(2, torch.tensor([5, 6, 7]), 0.7)) for labels, own in known]
    masks[..., 5:] = 1e4
    masks.requires_grad_()
    found = mask_loss(classes, masks, spoilt, weight)
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-12)
    found.backward()
    assert masks.grad is not None
    assert (masks.grad[..., 5:] == 0).all()


def test_images_without_masks_have_a_finite_loss_and_every_parameter_a_gradient() -> None:
    classes, masks, _ = some_masks()
    masks.requires_grad_()
    loss = mask_loss(
        classes, masks, [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 6, 8))] * 3
    )
    loss.backward()
    assert loss.isfinite() and masks.grad is not None
    # whose sum float16 does not hold
    large = torch.full((1, 2, 300, 300), 20.0, dtype=torch.float16)
    assert mask_loss(
        torch.zeros(1, 2, 3), large, [(torch.tensor([0]), torch.ones(1, 300, 300))]
    ).isfinite()


def test_the_loss_of_no_images_is_zero_and_reaches_every_output() -> None:
    classes = torch.zeros(0, 4, 3, requires_grad=True)
    masks = torch.zeros(0, 4, 6, 8, requires_grad=True)

    loss = mask_loss(classes, masks, [])
    loss.backward()

    assert loss.item() == 0.0
    assert classes.grad is not None
    assert masks.grad is not None


def test_the_loss_of_centres_of_no_images_is_zero_and_reaches_the_maps() -> None:
    maps = torch.zeros(0, 6, 8, 8, requires_grad=True)

    loss = centre_loss(maps, [], weight=torch.zeros(0, 8, 8))
    loss.backward()

    assert loss.item() == 0.0
    assert maps.grad is not None


def test_maps_become_known_masks_and_ignored_pixels_have_no_weight() -> None:
    """Class indices, their one-hot shares, and ids of objects."""
    target = torch.tensor([[[0, 0, 2, 2], [0, -1, 2, 2]], [[-1] * 4, [-1] * 4]])
    shares = F.one_hot(target.clamp_min(0), 3).movedim(-1, 1) * (target >= 0)[:, None]
    ids = torch.where(target < 0, -1, 1000 * (target + 1) + 7)
    leaf = Task("leaf", dim=3, kind="instances")
    for task, own in ((TASK, target), (TASK, shares.float()), (leaf, ids)):
        known, weight = known_masks(task, own, (1, 2), None)
        assert known[0][0].tolist() == [0, 2]
        assert known[0][1].tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
        assert weight.tolist() == [[[0.75, 1.0]], [[0.0, 0.0]]]
    outputs = head_of()(tokens_of(2, 3, 1))
    total, _ = TaskLoss([TASK])(outputs, {"plant": torch.full((2, 32, 48), -1)})
    assert float(total.detach()) == 0.0


def test_masks_are_resampled_before_they_are_shares() -> None:
    head, tokens = head_of(), tokens_of(3, 4, 1)
    outputs = head(tokens)
    found = head.at_size(outputs, (48, 64))
    masks = F.interpolate(outputs["plant.masks"], (48, 64), mode="bilinear")
    shares = (
        outputs["plant.classes"].softmax(-1)[..., :-1, None, None] * masks.sigmoid()[:, :, None]
    ).sum(1)
    assert torch.allclose(
        found["plant"].softmax(1), shares / shares.sum(1, keepdim=True), atol=1e-6
    )
    values = PyramidHead(32, [TASK, Task("mass")], neck=DPTNeck(32, 2, 8))
    outputs = values(tokens)
    found = values.at_size(outputs, (48, 64))
    assert torch.allclose(
        found["plant"], F.interpolate(outputs["plant"], (48, 64), mode="bilinear")
    )
    assert torch.equal(found["mass"], outputs["mass"])


def discs(seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """An image with discs of two colours that do not touch, the ids of its pixels, and its masks."""
    random = np.random.RandomState(seed)
    image, masks, labels = (
        torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(seed)) * 0.2,
        [],
        [],
    )
    ids = torch.zeros(128, 128, dtype=torch.int64)
    y, x = np.mgrid[:128, :128]
    for place in random.permutation(4)[: 1 + seed % 4]:
        cy, cx, radius, label = (
            64 * (place // 2) + 32,
            64 * (place % 2) + 32,
            random.randint(9, 20),
            random.randint(2),
        )
        mask = torch.from_numpy((y - cy) ** 2 + (x - cx) ** 2 < radius**2)
        image[:, mask] += torch.tensor([[0.7, 0.1, 0.1], [0.1, 0.1, 0.7]])[label][:, None]
        ids[mask] = 1000 * (label + 1) + len(labels)
        masks.append(mask)
        labels.append(label)
    return image.clamp(0, 1), ids, {"masks": torch.stack(masks), "labels": torch.tensor(labels)}


def queries_of(masks: Tensor, labels: list[int], count: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of queries that are sure of these masks (Q, h, w) and classes."""
    classes = torch.full((1, len(labels), count + 1), -9.0)
    classes[0, range(len(labels)), labels] = 9.0
    return classes, 40 * (masks[None].float() - 0.5)


def test_duplicates_and_empty_queries_are_no_instances() -> None:
    masks = torch.zeros(4, 4, 6)
    masks[0, :2, :3], masks[1, :2, :3], masks[2, 2:, 3:] = 1, 1, 1
    classes, logits = queries_of(masks, [0, 0, 1, 3])
    classes[0, 1] -= torch.tensor([1.0, 0, 0, 0])
    [found] = decode_instances(classes, logits, (8, 12), min_score=0.5)
    assert found["labels"].tolist() == [0, 1]
    assert found["boxes"].tolist() == [[0, 0, 6, 4], [6, 4, 12, 8]]
    assert torch.equal(found["masks"][1], F.interpolate(masks[None, 2:3], (8, 12))[0, 0] > 0)
    assert (found["scores"] > 0.99).all()
    idle, blank = torch.tensor([0.0, 0.0, 1.0]).expand(1, 200, 3), torch.zeros(1, 200, 4, 6)
    # all are sure that they are nothing
    assert not len(decode_instances(9 * idle, blank + 1, (4, 6))[0]["labels"])


def test_stuff_is_one_segment_and_things_are_several() -> None:
    masks = torch.zeros(3, 4, 6)
    masks[0, :, :2], masks[1, :, 4:], masks[2, :2, 2:4] = 1, 1, 1
    for label, things, expected in ((0, [0], 3), (0, [2], 2)):
        [(segments, listed)] = decode_panoptic(
            *queries_of(masks, [label, label, 1]), (4, 6), things
        )
        assert len(listed) == expected
        assert sum(one["area"] for one in listed) == int((segments > 0).sum()) == 20
        assert (segments[2:, 2:4] == 0).all()
        assert segments[0, 0] != segments[0, 2]
        assert [one["isthing"] for one in listed if one["category_id"] == 0] == [
            label in things
        ] * (expected - 1)
    classes, logits = queries_of(masks, [0, 1, 2])
    classes[0, 1, 1] -= 17.5  # a probability of 0.5 or so
    for least, expected in ((None, 2), (0.3, 3), (0.6, 2)):
        assert len(decode_panoptic(classes, logits, (4, 6), [0], least)[0][1]) == expected


def drawn_centres(truth: dict[str, Tensor], count: int) -> Tensor:
    """The maps that a perfect head gives: classes, the centre of gravity, and the offset to it."""
    masks, labels = truth["masks"].float(), truth["labels"]
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(side) for side in masks.shape[1:]), indexing="ij")
    ).float()
    maps = torch.zeros(count + 4, *masks.shape[1:])
    maps[0] = 9.0
    for mask, label in zip(masks, labels, strict=True):
        middle = (mask * grid).sum((1, 2)) / mask.sum()
        offsets = middle[:, None, None] - grid
        maps[-3] = torch.maximum(maps[-3], torch.exp(-offsets.square().sum(0) / 8))
        maps[-2:] = torch.where(mask > 0, offsets, maps[-2:])
        maps[0] -= 18 * mask
        maps[1 + label] += 9 * mask
    return maps


def test_objects_come_back_from_their_centres() -> None:
    truths = [discs(seed)[2] for seed in range(8)]
    maps = torch.stack([drawn_centres(truth, 2) for truth in truths])
    for found, truth in zip(decode_centres(maps, (128, 128)), truths, strict=True):
        assert len(found["labels"]) == len(truth["labels"])
        for mask, label in zip(truth["masks"], truth["labels"], strict=True):
            [place] = [i for i, own in enumerate(found["masks"]) if torch.equal(own, mask)]
            assert found["labels"][place] == label
            assert torch.equal(
                found["boxes"][place], masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
            )
    offsets = torch.stack(
        torch.meshgrid(*[torch.tensor([1.5, 0.5, -0.5, -1.5])] * 2, indexing="ij")
    )
    # its centre is between cells
    between = torch.cat([torch.full((1, 4, 4), -9.0), torch.ones(2, 4, 4), offsets])
    between[1] = 9.0
    between[2] = torch.exp(-offsets.square().sum(dim=0))
    assert len(decode_centres(between[None], (4, 4))[0]["labels"]) == 1
    [nothing] = decode_centres(torch.zeros(1, 6, 3, 4), (48, 64))
    assert {name: tuple(own.shape) for name, own in nothing.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 48, 64),
    }


def test_the_loss_of_centres_is_least_where_the_maps_are_true() -> None:
    scenes = [discs(seed) for seed in range(3)]
    ids, task = torch.stack([scene[1] for scene in scenes]), Task("disc", dim=2, kind="instances")
    true = torch.stack([drawn_centres(scene[2], 2) for scene in scenes])

    def loss(maps: Tensor, mask: Tensor | None = None) -> float:
        return float(
            TaskLoss([task])(
                {"disc.map": maps}, {"disc": ids}, {} if mask is None else {"disc": mask}
            )[0]
        )

    for channel, change in ((1, 30.0), (-3, 0.5), (-2, 3.0), (-1, -3.0)):
        spoilt = true.clone()
        spoilt[:, channel] += change
        assert loss(spoilt) > loss(true) + 0.05
    outside = true.clone()
    outside[:, -2:] += 100 * (true[:, :1] > 0)
    assert loss(outside) == pytest.approx(loss(true), rel=1e-5)
    mask = torch.ones(3, 128, 128)
    mask[..., 64:] = 0
    spoilt = true + 50 * (mask == 0)[:, None] * torch.randn_like(true)
    assert loss(spoilt, mask) == pytest.approx(loss(true, mask), rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "sam"}, {"ema_decay": 0.9}], ids=["adamw", "sam", "ema"]
)
def test_a_trained_head_predicts_the_same_after_loading(
    options: dict[str, Any], tmp_path: Path
) -> None:
    head, tokens = head_of().train(), tokens_of(3, 5, 1)
    targets = {"plant": torch.arange(2 * 48 * 80).reshape(2, 48, 80) % 3}
    fit(
        head,
        MemoryTokens(["a", "b"], tokens),
        targets,
        target_ids=["a", "b"],
        epochs=3,
        batch_size=2,
        **options,
    )
    counted = [norm.num_batches_tracked for norm in head.norms]
    assert counted == [3, 3]  # both passes of SAM count as one step
    head.save_pretrained(tmp_path / "head.safetensors")
    loaded = load_head(tmp_path / "head.safetensors", check_backbone=False)
    for name, expected in head.eval()(tokens).items():
        assert torch.equal(loaded(tokens)[name], expected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_six_scenes_are_learned_in_100_steps() -> None:
    scenes, names = [discs(seed) for seed in range(6)], [str(i) for i in range(6)]
    backbone = load_backbone(
        "vit_small_patch16_dinov3", pretrained=False, seed=0, layers=[2, 5, 8, 11]
    )
    source = MemoryTokens(names, backbone(torch.stack([scene[0] for scene in scenes])))
    torch.manual_seed(0)
    head = MaskHead(
        384, [Task("disc", dim=2, kind="instances", labels=("a", "b"))], num_queries=20, dim=128
    )
    ids = {name: scene[1] for name, scene in zip(names, scenes, strict=True)}
    fit(head, source, {"disc": ids}, epochs=100, batch_size=6, lr=1e-3)
    for found, (_, _, truth) in zip(
        head.eval().predict_instances(source.tokens, (128, 128), 0.5), scenes, strict=True
    ):
        assert len(found["labels"]) == len(truth["labels"]), "the number is exact"
        for mask, label in zip(truth["masks"], truth["labels"], strict=True):
            iou = (found["masks"] & mask).sum((1, 2)) / (found["masks"] | mask).sum((1, 2))
            assert iou.max() > 0.5 and found["labels"][iou.argmax()] == label


@pytest.mark.slow
def test_fit_trains_on_ids_of_objects() -> None:
    """Flipped views flip the ids along; CutMix would join objects of two images."""
    torch.manual_seed(0)
    names = [str(i) for i in range(6)]
    tokens = Tokens.from_patches(torch.randn(6, 64, 32), grid=(8, 8), patch_size=16)
    ids = {name: discs(i)[1] for i, name in enumerate(names)}
    head = PyramidHead(
        32, [Task("leaf", dim=2, kind="instances")], neck=SimplePyramid(32, 16, scales=(1.0,))
    )
    history = fit(
        head,
        MemoryTokens(names, tokens),
        {"leaf": ids},
        val_ids=names[4:],
        epochs=12,
        batch_size=2,
        lr=3e-3,
    )
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert np.isfinite(history[-1]["val_loss"])
    for wrong in (1, 999, 3000, -2):
        with pytest.raises(DataError, match=f" {wrong} .*'0'"):
            fit(
                head,
                MemoryTokens(names, tokens),
                {"leaf": {**ids, "0": torch.full((128, 128), wrong)}},
                epochs=1,
            )
    live = LiveTokens(
        load_backbone("dinoneck_tiny").add_lora(2), [discs(i)[0] for i in range(2)], names[:2]
    )
    other = PyramidHead(
        64, [Task("leaf", dim=2, kind="instances")], neck=SimplePyramid(64, 16, scales=(1.0,))
    )
    with pytest.raises(ConfigError, match="cutmix"):
        fit(
            other,
            live,
            {"leaf": {name: ids[name] for name in names[:2]}},
            cutmix_alpha=1.0,
            epochs=1,
        )
