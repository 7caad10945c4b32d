"""Weights of trainings: the ViT is found in the file, is the one that was saved, and what is left out is logged."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import save_file
from tests.unit.backbones.test_weights import official_dinov2, official_dinov3
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from dinoneck import (
    BackboneError,
    HeadCheckpoint,
    PatchMeanHead,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.backbones.vit_files import VitShape, read_vit, shape_of

State = dict[str, Tensor]
REG = "vit_small_patch14_reg4_dinov2"
PLUS = "vit_small_plus_patch16_dinov3_qkvb"
IMAGE = torch.rand(1, 3, 56, 84, generator=torch.Generator().manual_seed(1))


def under(prefix: str, state: State, scale: float = 1.0) -> State:
    """The same tensors under longer names, multiplied."""
    return {f"{prefix}{name}": value * scale for name, value in state.items()}


def tiny_state(seed: int = 0) -> State:
    """The weights of the built-in ViT."""
    return load_backbone("dinoneck_tiny", seed=seed).adapter.model.state_dict()


def head_of_training() -> State:
    return {"mlp.0.weight": torch.ones(3, 64), "last_layer.weight_g": torch.ones(5, 1)}


def saved(folder: Path, content: Any, name: str = "w.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def is_seed(state: State, seed: int) -> bool:
    """Whether tensors are those of the built-in ViT with this seed."""
    expected = tiny_state(seed)
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], value) for name, value in expected.items()
    )


TEACHER = tiny_state(1)
STUDENT = tiny_state(2)
AVERAGE = tiny_state(3)

FILES: dict[str, Any] = {
    "plain": TEACHER,
    "under model": {"model": TEACHER, "epoch": 3},
    "DINO's teacher": {
        "teacher": under("backbone.", TEACHER) | under("dino_head.", head_of_training())
    },
    "DINO's student and teacher in two dicts": {
        "student": under("module.backbone.", STUDENT) | under("module.head.", head_of_training()),
        "teacher": under("backbone.", TEACHER),
        "epoch": 4,
    },
    "one rank's file": {
        "model": under("student.backbone.", STUDENT)
        | under("teacher.backbone.", TEACHER)
        | under("teacher.ibot_head.", head_of_training()),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "iteration": 9,
    },
    "a copy for Gram anchoring": {
        "model": under("student.backbone.", STUDENT)
        | under("gram_teacher.backbone.", AVERAGE)
        | under("teacher.backbone.", TEACHER)
    },
    "one model under two names": {
        "teacher": under("backbone.", TEACHER),
        "model": under("teacher.backbone.", TEACHER) | under("student.backbone.", STUDENT),
    },
    "Lightning": {
        "state_dict": under("model.", TEACHER) | {"loss.center": torch.zeros(1, 8)},
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": {"lr": 0.1, "layers": [1, 2]},
    },
    "a module of one's own": {
        "state_dict": under("net.encoder.vit.", TEACHER) | {"net.decoder.weight": torch.ones(2)}
    },
    "DDP": under("module.", TEACHER),
    "DDP of a compiled model": under("module._orig_mod.", TEACHER),
    "compiled blocks": {
        name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in TEACHER.items()
    },
    "checkpointed blocks under FSDP": {
        "model": {
            f"teacher.backbone._fsdp_wrapped_module.{name}".replace(
                "blocks.2.", "blocks.2._checkpoint_wrapped_module."
            ): value
            for name, value in TEACHER.items()
        }
    },
    "SWA's averaged model": under("module.", TEACHER) | {"n_averaged": torch.tensor(5)},
    "a classifier": TEACHER | {"head.weight": torch.ones(9, 64), "head.bias": torch.zeros(9)},
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_the_vit_of_a_training_is_found(content: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, content)
    assert is_seed(read_vit(path), seed=1)


AVERAGES: dict[str, Any] = {
    "DINOv3's model_ema": {
        "model": under("teacher.backbone.", TEACHER)
        | under("student.backbone.", STUDENT)
        | under("model_ema.backbone.", AVERAGE)
    },
    "timm's state_dict_ema": {"state_dict": TEACHER, "state_dict_ema": AVERAGE},
    "a dict called ema": {"model": under("module.", TEACHER), "ema": under("module.", AVERAGE)},
    "a dict called swa_model": {"model": TEACHER, "swa_model": under("module.", AVERAGE)},
    "Lightning's WeightAveraging": {
        "state_dict": under("model.", AVERAGE),
        "current_model_state": under("model.", TEACHER),
    },
}


@pytest.mark.parametrize("content", AVERAGES.values(), ids=AVERAGES.keys())
def test_the_averaged_model_is_preferred(content: Any, tmp_path: Path) -> None:
    path = saved(tmp_path, content)
    assert is_seed(read_vit(path), seed=3)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"best_model": TEACHER, "model": STUDENT}, "w.pth"),
        (
            {
                "state_dict": under("module.base_encoder.", TEACHER)
                | under("module.momentum_encoder.", STUDENT)
            },
            "w.pth",
        ),
        (under("a.", TEACHER) | under("b.", STUDENT), "w.safetensors"),
    ],
    ids=["dicts", "prefixes", "safetensors"],
)
def test_the_code_in_the_message_saves_the_first_of_several_vits(
    content: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save = save_file if name.endswith(".safetensors") else torch.save
    save(content, name)
    with pytest.raises(BackboneError, match="holds several ViTs") as refused:
        read_vit(name)
    code = str(refused.value).partition("such as the first: ")[2]

    exec(code, {"torch": torch, "safetensors": safetensors})

    assert is_seed(read_vit("weights.pth"), seed=1)


def test_a_student_alone_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path, {"student": under("backbone.", STUDENT)})
    assert is_seed(read_vit(path), seed=2)


def vit_of(width: int, blocks: int) -> State:
    """The names that a ViT is recognised by."""
    state = {
        "cls_token": torch.zeros(1, 1, width),
        "patch_embed.proj.weight": torch.zeros(width, 3, 16, 16),
    }
    return state | {f"blocks.{i}.norm1.weight": torch.ones(width) for i in range(blocks)}


def test_the_student_of_a_larger_teacher_is_taken_for_a_model_of_its_size(tmp_path: Path) -> None:
    content = {
        "model": under("teacher.backbone.", vit_of(96, 9)) | under("student.backbone.", STUDENT)
    }
    state = read_vit(saved(tmp_path, content), "dinoneck_tiny")
    assert is_seed(state, 2)
    assert read_vit(saved(tmp_path, content))["cls_token"].shape == (1, 1, 96)
    loaded = load_backbone("dinoneck_tiny", checkpoint=saved(tmp_path, content))
    assert is_seed(loaded.adapter.model.state_dict(), 2)


def test_of_several_of_the_size_the_averaged_one_is_taken(tmp_path: Path) -> None:
    content = {
        "model": under("teacher.backbone.", vit_of(96, 9))
        | under("student.backbone.", STUDENT)
        | under("model_ema.backbone.", AVERAGE)
    }
    assert is_seed(read_vit(saved(tmp_path, content), "dinoneck_tiny"), 3)


def test_safetensors_have_prefixes_too(tmp_path: Path) -> None:
    save_file(under("teacher.backbone.", TEACHER), tmp_path / "w.safetensors")
    assert is_seed(read_vit(tmp_path / "w.safetensors"), seed=1)


def test_the_choice_is_logged_with_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, FILES["one rank's file"])
    with caplog.at_level(logging.WARNING):
        read_vit(path)
    [record] = caplog.records
    message = record.getMessage()
    assert "those of the teacher, whose names begin with 'model.teacher.backbone.'" in message
    assert "not of 'model.student.backbone.'" in message
    assert "model.teacher.ibot_head" in message


def test_a_classifier_is_left_out_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, FILES["a classifier"])
    with caplog.at_level(logging.WARNING):
        read_vit(path)
    [record] = caplog.records
    assert "left out: head (2)" in record.getMessage()


def test_the_heads_beside_a_backbone_of_tipsv2_are_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {f"vision_encoder.{name}": value for name, value in TEACHER.items()}
    state |= {
        "depth_head.convs.0.weight": torch.zeros(2),
        "normals_head.project.bias": torch.zeros(2),
    }
    with caplog.at_level(logging.WARNING):
        read_vit(saved(tmp_path, state))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        read_vit(saved(tmp_path, {**state, "aux_head.weight": torch.zeros(2)}))
    [record] = caplog.records
    assert "aux_head (1)" in record.getMessage()


def test_a_plain_file_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_backbone("dinoneck_tiny", checkpoint=saved(tmp_path, {"model": TEACHER}))
    assert not caplog.records


@pytest.mark.slow
def test_a_teacher_of_the_dinov2_repository_gives_the_tokens_of_the_model(tmp_path: Path) -> None:
    source = load_backbone(REG, pretrained=False, seed=7)
    teacher = under("backbone.", official_dinov2(source, chunks=True))
    path = saved(tmp_path, {"teacher": teacher}, "teacher_checkpoint.pth")
    loaded = load_backbone("dinov2_vits14_reg", checkpoint=path)
    expected = source(IMAGE).sequence[0]
    assert torch.allclose(loaded(IMAGE).sequence[0], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_converted_dcp_folder_of_dinov3_gives_the_tokens_of_the_model(tmp_path: Path) -> None:
    source = load_backbone(PLUS, pretrained=False, seed=7)
    state = official_dinov3(source)
    model = under("student.backbone.", state, 2.0) | under("model_ema.backbone.", state)
    folder = tmp_path / "ckpt" / "12499"
    dcp.save({"model": model, "iteration": 12499}, checkpoint_id=folder, no_dist=True)
    dcp_to_torch_save(folder, tmp_path / "weights.pth")
    loaded = load_backbone(PLUS, checkpoint=tmp_path / "weights.pth")
    source.adapter.model.rope.periods.copy_(state["rope_embed.periods"])
    images = torch.rand(1, 3, 48, 80)
    assert torch.equal(loaded(images).sequence[0], source(images).sequence[0])


SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "crops of 224": ("vit_small_patch14_dinov2", "dinov2_vits14", {"img_size": 224}),
    "patch 16, DINOv2's default": (
        "vit_small_patch14_dinov2",
        "dinov2_vits14",
        {"img_size": 224, "patch_size": 16},
    ),
    "no registers, DINOv3's default": (
        "vit_small_patch16_dinov3",
        "dinov3_vits16",
        {"num_reg_tokens": 0},
    ),
    "eight registers": (REG, "dinov2_vits14_reg", {"reg_tokens": 8, "img_size": 98}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "name", "options"), SHAPES.values(), ids=SHAPES.keys())
def test_a_model_is_built_in_the_shape_that_it_was_pretrained_in(
    architecture: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = timm.create_model(
        architecture, num_classes=0, init_values=0.2, dynamic_img_size=True, **options
    ).eval()
    path = saved(tmp_path, {"teacher": under("backbone.", own.state_dict())})
    loaded = load_backbone(name, checkpoint=path)
    size = 7 * loaded.adapter.patch_size[0]
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        expected = own.forward_features(images)
    assert torch.equal(loaded(images).sequence[0], expected)


@pytest.mark.parametrize(
    ("name", "registers", "positions", "expected"),
    [
        pytest.param("vit_base_patch14_reg4_dinov2", 1, 37, 1, id="a DINOv2 with one register"),
        pytest.param("vit_base_patch14_reg4_dinov2", 1, 32, None, id="the published TIPSv2"),
        pytest.param("vit_base_patch14_reg1_tipsv2", 4, 32, 4, id="a TIPSv2 with four registers"),
        pytest.param("vit_base_patch14_reg1_tipsv2", 4, 37, None, id="the published DINOv2"),
    ],
)
def test_an_own_number_of_registers_may_be_that_of_another_family(
    name: str, registers: int, positions: int, expected: int | None
) -> None:
    shape = VitShape(
        form="dinov2",
        width=768,
        depth=12,
        patch=14,
        registers=registers,
        is_gated=False,
        positions=positions,
    )
    assert shape.timm_options(name, "w.pth").get("reg_tokens") == expected


@pytest.mark.slow
def test_queries_biases_are_taken_along_under_metas_name(tmp_path: Path) -> None:
    source = load_backbone("vit_small_patch16_dinov3_qkvb", pretrained=False, seed=3)
    state = official_dinov3(source)
    path = saved(tmp_path, state, "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    loaded = load_backbone("dinov3_vits16", checkpoint=path)
    assert loaded.name == "vit_small_patch16_dinov3_qkvb.lvd1689m"
    source.adapter.model.rope.periods.copy_(state["rope_embed.periods"])
    images = torch.rand(1, 3, 48, 80)
    assert torch.equal(loaded(images).sequence[0], source(images).sequence[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_of", "asked", "size"),
    [
        ("dinov3_vits16", "dinov3_vits16plus", "ViT-S of 384 channels, 12 blocks, patch 16, 4 reg"),
        ("dinov3_vits16plus", "dinov3_vits16", "4 registers, gated MLPs (DINOv3)"),
        ("dinov2_vits14", "dinov2_vitb14", "ViT-S of 384 channels, 12 blocks, patch 14 (DINOv2)"),
        ("dinov2_vits14", "dinov2_vits14_reg", "patch 14 (DINOv2), the model is a ViT-S"),
        ("dinov2_vits14_reg", "dinov2_vits14", "patch 14, 4 registers (DINOv2)"),
        ("dinov2_vits14_reg", "dinov3_vits16", "patch 14, 4 registers (DINOv2)"),
    ],
)
def test_a_file_of_another_vit_is_named_as_that(
    file_of: str, asked: str, size: str, tmp_path: Path
) -> None:
    source = load_backbone(file_of, pretrained=False)
    path = saved(tmp_path, source.adapter.model.state_dict())
    with pytest.raises(BackboneError) as refused:
        load_backbone(asked, checkpoint=path)
    assert size in str(refused.value)
    assert f"load it as '{file_of}'" in str(refused.value)


@pytest.mark.slow
def test_the_size_counts_before_the_biases(tmp_path: Path) -> None:
    state = official_dinov3(load_backbone("vit_small_patch16_dinov3_qkvb", pretrained=False))
    path = saved(tmp_path, state)
    with pytest.raises(BackboneError, match="ViT-S of 384.*ViT-B of 768"):
        load_backbone("vit_base_patch16_dinov3", checkpoint=path)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [True, False])
def test_chunks_of_blocks_count_as_blocks(chunks: bool) -> None:
    source = load_backbone("dinov2_vits14", pretrained=False)
    shape = shape_of(official_dinov2(source, chunks))
    assert shape is not None
    assert shape.depth == 12


class Trap:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_runs(tmp_path: Path) -> None:
    path = saved(tmp_path, {"teacher": TEACHER, "args": Trap(tmp_path / "ran")})
    with pytest.raises(BackboneError, match="w.pth"):
        read_vit(path)
    assert not (tmp_path / "ran").exists()


def test_the_command_for_settings_makes_a_file_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"teacher": under("backbone.", TEACHER), "args": argparse.Namespace(lr=0.1)}
    path = saved(tmp_path, content, "checkpoint0100.pth")
    with pytest.raises(BackboneError, match=r"argparse\.Namespace") as refused:
        read_vit(path)
    code = str(refused.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert is_seed(read_vit(tmp_path / "weights.pth"), seed=1)


def test_dicts_that_hold_each_other_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    path = saved(tmp_path, {"model": TEACHER, "extra": loop})
    assert is_seed(read_vit(path), seed=1)


@pytest.mark.slow
def test_a_fine_tuned_timm_classifier_gives_the_tokens_of_its_vit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = timm.create_model("vit_small_patch14_dinov2", num_classes=7, dynamic_img_size=True)
    wrapped = nn.ModuleDict({"model": classifier.eval()})
    path = saved(tmp_path, {"state_dict": wrapped.state_dict()}, "last.ckpt")
    loaded = load_backbone("dinov2_vits14", checkpoint=path)
    with torch.no_grad():
        expected = classifier.forward_features(IMAGE)
    assert torch.equal(loaded(IMAGE).sequence[0], expected)


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_a_folder_of_a_fine_tuned_classifier_gives_the_tokens_of_its_vit(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        num_labels=5,
    )
    classifier = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    loaded = load_backbone(str(tmp_path / "classifier"), source="transformers")
    with torch.no_grad():
        expected = classifier.base_model(IMAGE).last_hidden_state
    assert torch.equal(loaded(IMAGE).sequence[0], expected)
    assert "left out: classifier.bias, classifier.weight" in caplog.text


@pytest.mark.slow
def test_what_a_head_file_holds_is_built_in_the_shape_of_the_pretraining(tmp_path: Path) -> None:
    own = timm.create_model(
        "vit_small_patch14_dinov2",
        num_classes=0,
        img_size=112,
        patch_size=16,
        dynamic_img_size=True,
    )
    path = saved(tmp_path, {"teacher": under("backbone.", own.state_dict())})
    backbone = load_backbone("dinov2_vits14", checkpoint=path)
    weights = backbone.adapter.model.state_dict()
    head = PatchMeanHead(384, [Task("mass")])
    save_head(tmp_path / "head.safetensors", head, backbone=backbone, backbone_weights=weights)
    again = HeadCheckpoint.load(tmp_path / "head.safetensors").load_backbone()
    images = torch.rand(1, 3, 96, 160)
    assert again.record()["patch_size"] == [16, 16]
    assert torch.equal(again(images).sequence[0], backbone(images).sequence[0])
