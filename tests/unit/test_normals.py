"""Surface normals: a dense task of three outputs whose vectors have length 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck import (
    CLSGatingHead,
    Composition,
    DenseHead,
    DPTHead,
    FPNHead,
    HeadEnsemble,
    LinearHead,
    PatchMeanMLP,
    TargetTransform,
    Task,
    Tokens,
    load_head,
    save_head,
)
from dinoneck.errors import ConfigError
from dinoneck.heads.head import Head, resampled
from dinoneck.heads.linear import Bins
from dinoneck.losses import TaskLoss, dense_masked_cosine
from dinoneck.losses.masked import MicroBatch
from dinoneck.necks import DPTNeck
from dinoneck.tasks import unit_vectors

NORMALS = Task("normals", kind="dense", dim=3, activation="unit")


def lengths(maps: Tensor) -> Tensor:
    return maps.square().sum(dim=-3).sqrt()


def tokens_of(num_layers: int = 1, *, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.randn(2, 1 + 20, 16, generator=generator) for _ in range(num_layers)]
    return Tokens.from_sequence(layers, image_size=(64, 80), patch_size=16, num_prefix_tokens=1)


def head_of(cls: type[Any], tasks: Sequence[Task] = (NORMALS,)) -> Head:
    torch.manual_seed(1)
    if cls is DPTHead:
        neck = DPTNeck(16, out_channels=8, hidden_sizes=(4, 4, 4, 4))
        return DPTHead(16, tasks, neck, hidden_dim=4)
    options: dict[type[Any], dict[str, Any]] = {
        DenseHead: {"hidden_dim": 8},
        LinearHead: {"pool": None, "upsample": 2},
        FPNHead: {"num_layers": 1, "fpn_dim": 8, "num_levels": 2},
    }
    head: Head = cls(16, tasks, **options[cls])
    return head


HEADS = (DenseHead, LinearHead, FPNHead, DPTHead)


def test_vectors_are_divided_by_their_length() -> None:
    maps = torch.tensor([3.0, 0.0, 4.0, 1e-9, 2e-9, -2e-9]).view(2, 3, 1, 1)
    expected = [0.6, 0.0, 0.8, 1 / 3, 2 / 3, -2 / 3]
    assert unit_vectors(maps).flatten().tolist() == pytest.approx(expected)


def test_a_vector_without_a_direction_is_zero_and_has_no_gradient() -> None:
    maps = torch.zeros(1, 3, 1, 2, requires_grad=True)
    units = unit_vectors(maps)
    assert torch.equal(units, torch.zeros(1, 3, 1, 2))
    units.sum().backward()
    assert torch.equal(maps.grad, torch.zeros(1, 3, 1, 2))


def test_a_vector_of_nan_stays_nan() -> None:
    assert unit_vectors(torch.full((1, 3, 1, 1), torch.nan)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_vectors_of_half_precision_keep_their_direction(dtype: torch.dtype) -> None:
    maps = torch.tensor([1e-4, 0.0, 0.0], dtype=dtype).view(1, 3, 1, 1)
    units = unit_vectors(maps)
    assert units.dtype == dtype
    assert units.flatten().tolist() == [1.0, 0.0, 0.0]  # 1e-8 is 0 in float16


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"dim": 1}, "dim is 1; expected 3 with activation 'unit'"),
    ({"dim": 4}, "dim is 4; expected 3 with activation 'unit'"),
    ({"kind": "regression"}, "activation is 'unit'; expected relu, softplus, sigmoid or None for"),
    ({"kind": "density"}, "activation is 'unit'; expected relu, softplus, sigmoid or None for"),
    ({"loss": "mse"}, "loss is 'mse'; expected one for activation 'unit': cosine"),
    ({"minimum": 0.0}, "minimum is 0.0; expected None: surface normals have length 1"),
    ({"maximum": 1.0}, "maximum is 1.0; expected None: surface normals have length 1"),
    ({"transform": TargetTransform(mean=0.0)}, "expected None: surface normals have length 1"),
    ({"unit": "m"}, "unit is 'm'; expected '': surface normals have no unit"),
    ({"labels": ("x", "y", "z")}, "expected none: the outputs of surface normals are x, y and z"),
    ({"shares": True}, "shares is True; expected False: surface normals are no shares"),
    ({"weight": (1.0, 1.0, 2.0)}, "expected one number, since x, y and z share one loss"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_a_task_of_normals_refuses_what_vectors_do_not_have(
    fields: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"kind": "dense", "dim": 3, "activation": "unit"}
    with pytest.raises(ConfigError, match=message):
        Task("normals", **(arguments | fields))


def test_another_task_has_no_cosine_loss() -> None:
    with pytest.raises(ConfigError, match=r"expected one for kind 'dense': mse, smooth_l1"):
        Task("depth", kind="dense", loss="cosine")


def test_normals_have_no_mean_for_another_task_and_no_bins() -> None:
    with pytest.raises(ConfigError, match=r"task 'z' is the mean over the cells of 'normals'"):
        DenseHead(16, [NORMALS, Task("z", from_map="normals")])
    with pytest.raises(ConfigError, match=r"bins give one value per cell; task 'normals'"):
        LinearHead(16, [NORMALS], pool=None, bins=Bins(0.0, 1.0))
    total = Composition(("normals",), {"total": ("normals",)}, name="sum")
    with pytest.raises(ConfigError, match="normals"):
        DenseHead(16, [NORMALS], compositions=[total])


def test_heads_without_maps_refuse_normals() -> None:
    with pytest.raises(ConfigError, match="task 'normals' is 'dense'"):
        CLSGatingHead(16, [NORMALS], mode="query")
    with pytest.raises(ConfigError, match="activation is 'unit'; expected relu"):
        PatchMeanMLP(16, out_dim=3, activation="unit")


@pytest.mark.parametrize("cls", HEADS)
def test_heads_give_vectors_of_length_1(cls: type[Any]) -> None:
    head = head_of(cls)
    tokens = tokens_of(4 if cls is DPTHead else 1)
    with torch.no_grad():
        outputs = head(tokens)["normals"]
    assert torch.allclose(lengths(outputs), torch.ones(()), atol=1e-6)
    predicted = head.predict(tokens)["normals"]
    assert torch.allclose(predicted, outputs, atol=1e-6)
    assert torch.allclose(head.predict_maps(tokens)["normals"], outputs, atol=1e-6)


@pytest.mark.parametrize("cls", HEADS)
def test_a_new_head_starts_from_a_wall_that_faces_the_camera(cls: type[Any]) -> None:
    head = head_of(cls)
    assert_starts_from_a_wall(head)
    head.reset_parameters()
    assert_starts_from_a_wall(head)


def test_a_linear_readout_of_a_dpt_head_starts_from_the_same_wall() -> None:
    neck = DPTNeck(16, out_channels=8, hidden_sizes=(4, 4, 4, 4))
    assert_starts_from_a_wall(DPTHead(16, NORMALS, neck, linear_readout=True))


def assert_starts_from_a_wall(head: Head) -> None:
    weights = head.state_dict()
    biases = [bias for name, bias in weights.items() if name.endswith("bias") and len(bias) == 3]
    assert [bias.tolist() for bias in biases] == [[0.0, 0.0, 1.0]]


def test_maps_at_another_size_have_length_1() -> None:
    head = head_of(DenseHead)
    tokens = tokens_of()
    with torch.no_grad():
        outputs = head(tokens)
        resized = head.at_size(outputs, (23, 31))
    shortened = resampled(outputs["normals"], (23, 31))
    assert lengths(shortened).min() < 0.99, "the case needs vectors that become shorter"
    assert torch.allclose(lengths(resized["normals"]), torch.ones(()), atol=1e-6)
    assert torch.allclose(NORMALS.predict_map(shortened), resized["normals"], atol=1e-6)


def test_a_file_keeps_the_task(tmp_path: Path) -> None:
    head = head_of(DenseHead)
    path = tmp_path / "normals.safetensors"
    save_head(path, head)
    loaded = load_head(path)
    assert loaded.tasks == (NORMALS,)
    tokens = tokens_of()
    assert torch.equal(loaded.predict(tokens)["normals"], head.predict(tokens)["normals"])


def test_an_ensemble_gives_the_direction_of_the_mean_vector() -> None:
    heads = [head_of(DenseHead), head_of(LinearHead)]  # one map is twice as fine as the other
    ensemble = HeadEnsemble(heads, weights=(1.0, 3.0))
    assert ensemble.tasks[0].is_unit
    tokens = tokens_of()
    coarse = heads[0].predict(tokens)["normals"]
    fine = heads[1].predict(tokens)["normals"]
    resized = torch.nn.functional.interpolate(coarse, fine.shape[2:], mode="bilinear")
    resized = resized / lengths(resized)[:, None]
    mean = 0.25 * resized + 0.75 * fine
    expected = mean / lengths(mean)[:, None]
    assert torch.allclose(ensemble.predict(tokens)["normals"], expected, atol=1e-6)
    assert torch.allclose(ensemble.predict_maps(tokens)["normals"], expected, atol=1e-6)
    members = ensemble.members_predict(tokens)["normals"]
    assert torch.allclose(lengths(members), torch.ones(()), atol=1e-6)


def test_members_with_and_without_length_1_disagree() -> None:
    plain = Task("normals", kind="dense", dim=3)
    with pytest.raises(ConfigError, match=r"its activation is 'unit' in one and None in another"):
        HeadEnsemble([head_of(DenseHead), head_of(DenseHead, [plain])])


def angles_to_vectors(degrees: Sequence[float]) -> Tensor:
    """Vectors (1, 3, 1, n) that lean so much from the z axis to the x axis."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.sin(), torch.zeros_like(radians), radians.cos()])[None, :, None]


def test_the_loss_is_1_minus_the_cosine_over_cells_that_are_known() -> None:
    target = angles_to_vectors([0.0, 0.0, 0.0, 0.0, 0.0])
    output = angles_to_vectors([60.0, 90.0, 180.0, 45.0, 45.0])
    target[..., 3] = 0.0
    target[:, 1, :, 4] = torch.nan
    weight = torch.tensor([[[2.0, 1.0, 1.0, 5.0, 5.0]]])
    expected = (2 * 0.5 + 1.0 + 2.0) / 4
    assert dense_masked_cosine(output, target, weight).item() == pytest.approx(expected)
    loss = TaskLoss([replace(NORMALS, weight=3.0)])
    total, _ = loss({"normals": output}, {"normals": target}, {"normals": weight})
    assert total.item() == pytest.approx(3 * expected)
    assert loss.counts(["normals"], {"normals": target}, {"normals": weight})["normals"] == 4.0


def test_lengths_do_not_change_the_loss() -> None:
    target = angles_to_vectors([0.0, 10.0])
    output = angles_to_vectors([30.0, 30.0])
    loss = dense_masked_cosine(output, target)
    assert dense_masked_cosine(4 * output, 0.1 * target).item() == pytest.approx(loss.item())


def test_what_is_unknown_has_no_gradient() -> None:
    target = angles_to_vectors([0.0, 0.0, 0.0])
    target[..., 1] = 0.0
    target[..., 2] = torch.nan
    output = angles_to_vectors([30.0, 30.0, 30.0])
    output[..., 2] = torch.nan
    output.requires_grad_()
    total, _ = TaskLoss([NORMALS])({"normals": output}, {"normals": target})
    total.backward()
    assert output.grad is not None
    assert output.grad[..., 0].any()
    assert not output.grad[..., 1:].any()


def test_a_batch_of_unknown_cells_has_the_loss_0() -> None:
    output = angles_to_vectors([30.0]).requires_grad_()
    total, _ = TaskLoss([NORMALS])({"normals": output}, {"normals": torch.zeros(1, 3, 1, 1)})
    total.backward()
    assert total.item() == 0.0
    assert torch.equal(output.grad, torch.zeros_like(output))


def test_micro_batches_add_up_to_the_batch() -> None:
    loss = TaskLoss([NORMALS])
    target = torch.cat([angles_to_vectors([0.0, 0.0]), angles_to_vectors([0.0, 0.0])])
    target[1, :, :, 1] = 0.0
    output = torch.cat([angles_to_vectors([60.0, 90.0]), angles_to_vectors([120.0, 20.0])])
    whole, _ = loss({"normals": output}, {"normals": target})
    counts = loss.counts(["normals"], {"normals": target})
    parts = []
    for i in range(2):
        micro_batch = MicroBatch(counts, num_samples=1, num_in_batch=2)
        part, _ = loss(
            {"normals": output[i : i + 1]}, {"normals": target[i : i + 1]}, micro_batch=micro_batch
        )
        parts.append(part.item())
    assert whole.item() == pytest.approx((0.5 + 1.0 + 1.5) / 3)
    assert sum(parts) == pytest.approx(whole.item())
