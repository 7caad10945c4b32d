"""OpenVINO as the runtime of frozen backbones: its tokens are torch's, and it reports nothing."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from tests.unit.backbones.official_objects import Dinov2Like, Dinov3Like, SubsetBlock
from torch import Tensor, nn

from dinoneck import Backbone, BackboneError, ConfigError, Tokens, load_backbone, wrap_backbone
from dinoneck.backbones import openvino, runtime
from dinoneck.backbones.runtime import (
    MOST_PROGRAMS,
    TOLERANCES,
    TokenDifference,
    Tolerance,
    token_difference,
)

# looked for without an import, which would report it
is_missing = importlib.util.find_spec("openvino") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(is_missing, reason="the extra [fast] is not installed"),
]
SIZE = (32, 48)


def some_images(*, batch: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(batch, 3, *size).clamp(-3, 3)


def of_timm(name: str, depth: int = 2) -> nn.Module:
    """A model of timm of this architecture with fewer and narrower blocks, and larger random weights."""
    model: nn.Module = timm.create_model(
        name,
        pretrained=False,
        num_classes=0,
        dynamic_img_size=True,
        depth=depth,
        embed_dim=48,
        num_heads=3,
    )
    return with_large_weights(model)


def with_large_weights(model: nn.Module) -> nn.Module:
    """Have every block change its tokens; LayerScale starts at 1e-5, by which they would stay the same."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
        elif "gamma" in name or "lambda" in name:
            nn.init.constant_(parameter, 0.3)
    return model.eval()


def of_transformers(name: str, patch_size: int) -> nn.Module:
    """A model of transformers with few and narrow blocks."""
    config = getattr(transformers, f"{name}Config")(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=6 * patch_size,
        patch_size=patch_size,
    )
    model: nn.Module = getattr(transformers, f"{name}Model")(config)
    return with_large_weights(model)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Any]]] = {
    "dinov2": (lambda: of_timm("vit_small_patch14_dinov2"), 14, {}),
    "dinov2 official": (
        lambda: of_timm("vit_small_patch14_dinov2"),
        14,
        {"pos_embed": "official"},
    ),
    "dinov2 giant": (lambda: of_timm("vit_giant_patch14_dinov2"), 14, {}),
    "dinov2 registers": (lambda: of_timm("vit_small_patch14_reg4_dinov2"), 14, {}),
    "dinov3": (lambda: of_timm("vit_small_patch16_dinov3"), 16, {}),
    "dinov3 plus": (lambda: of_timm("vit_small_plus_patch16_dinov3_qkvb"), 16, {}),
    "dinov3 7b": (lambda: of_timm("vit_7b_patch16_dinov3"), 16, {}),
    "transformers dinov2": (lambda: of_transformers("Dinov2", 14), 14, {}),
    "transformers registers": (lambda: of_transformers("Dinov2WithRegisters", 14), 14, {}),
    "transformers dinov3": (lambda: of_transformers("DINOv3ViT", 16), 16, {}),
    "official dinov2": (Dinov2Like, 4, {}),
    "official dinov3": (lambda: Dinov3Like(patch=16, registers=4), 16, {}),
}


# test_runtime_parity.py has quick tests of registers and of timm's DINOv3
QUICK = ("dinov2", "transformers dinov3")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_torch_for_every_architecture(name: str) -> None:
    """On a grid that the positions were not made for, of odd sides, for every layer in the order asked for."""
    make, patch_size, options = MODELS[name]
    model = make()
    backbone = wrap_backbone(model, layers=[-1, 0, -1], **options)
    images = some_images(size=(3 * patch_size, 5 * patch_size))
    expected = backbone(images)
    tokens = backbone.with_runtime("openvino")(images)
    assert_same_tokens(tokens, expected)
    # tokens of other images would be as far away as these layers are from each other
    difference = token_difference([expected.sequence[0]], [expected.sequence[1]])
    assert not difference.is_within(Tolerance(of_layer=1e-2, of_token=1e-2))


def assert_same_tokens(tokens: Tokens, expected: Tokens) -> None:
    difference = token_difference(expected.sequence, tokens.sequence)
    assert difference.is_within(TOLERANCES[torch.float32])
    assert tokens.source == expected.source
    assert tokens.layers == expected.layers
    assert tokens.grid == expected.grid
    assert tokens.sequence[0].dtype == expected.sequence[0].dtype


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of each test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DINONECK_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """Two blocks of the built-in backbone, whose programs the tests of this file share."""
    return load_backbone("dinoneck_tiny", layers=[0, 1], runtime="openvino")


def one_block(**options: Any) -> Backbone:
    """The first block of the built-in backbone: a program of one block is compiled in half the time."""
    return load_backbone("dinoneck_tiny", layers=[0], **options)


@pytest.mark.usefixtures("shared_programs")
def test_one_program_takes_batches_of_any_number(tiny: Backbone) -> None:
    in_torch = tiny.with_runtime("torch")
    for batch in (1, 3, 7):
        images = some_images(batch=batch)
        assert_same_tokens(tiny(images), in_torch(images))
    empty = tiny(torch.zeros(0, 3, *SIZE))
    assert empty.sequence[0].shape == (0, 9, 64)


@pytest.mark.usefixtures("shared_programs")
def test_tokens_that_were_returned_stay_as_they_are(tiny: Backbone) -> None:
    images = some_images()
    first = tiny(images).sequence[0]
    copy_of_first = first.clone()
    tiny(some_images())
    assert torch.equal(first, copy_of_first)


def test_blocks_of_dinov3s_code_take_batches_of_any_number() -> None:
    """They compute the size of a subset of the batch, by which an export would fix the batch."""
    model = SubsetDinov3(registers=2).eval()
    compiled = wrap_backbone(model, layers=[1, 3]).with_runtime("openvino")
    in_torch = compiled.with_runtime("torch")
    for batch in (1, 3):
        images = some_images(batch=batch, size=(16, 24))
        assert_same_tokens(compiled(images), in_torch(images))


class SubsetDinov3(Dinov3Like):
    block_type = SubsetBlock


@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize(
    ("layers", "norm"),
    [
        pytest.param([0, 1], False, id="without the norm"),
        pytest.param([0], True, id="one of the layers"),
    ],
)
def test_without_the_final_norm_and_with_other_layers_another_program_runs(
    tiny: Backbone, layers: list[int], norm: bool
) -> None:
    images = some_images()
    tiny(images)

    other = tiny.with_layers(layers, norm=norm)

    assert other.runtime == "openvino"
    assert_same_tokens(other(images), other.with_runtime("torch")(images))


@pytest.mark.usefixtures("shared_programs")
def test_changed_weights_get_a_program_of_their_own() -> None:
    backbone = one_block(runtime="openvino")
    images = some_images()
    before = backbone(images)

    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    after = backbone(images)

    assert_same_tokens(after, backbone.with_runtime("torch")(images))
    assert not torch.allclose(after.sequence[0], before.sequence[0], atol=1e-3)


@pytest.mark.usefixtures("shared_programs")
def test_lora_weights_are_merged_into_the_program_and_left_where_they_are() -> None:
    backbone = one_block().add_lora(2)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    backbone.freeze()
    record = backbone.record()
    images = some_images()
    program = backbone.with_runtime("openvino")

    assert_same_tokens(program(images), backbone(images))
    with backbone.lora_disabled():
        assert_same_tokens(program(images), backbone(images))
    assert backbone.record() == record


@pytest.mark.usefixtures("shared_programs")
def test_what_trains_runs_in_torch() -> None:
    backbone = load_backbone("dinoneck_tiny", runtime="openvino").unfreeze_last(1)
    tokens = backbone(some_images())
    assert tokens.sequence[0].requires_grad
    backbone.freeze()
    assert not backbone(some_images()).sequence[0].requires_grad


def test_bfloat16_is_asked_for_by_the_dtype() -> None:
    """Its tokens lie as far from those of float32 as torch's do, and float32's lie much nearer."""
    images = some_images()
    expected = one_block()(images)
    half = one_block(dtype=torch.bfloat16, runtime="openvino")

    tokens = half(images)

    assert tokens.sequence[0].dtype == torch.bfloat16
    assert tokens.source == expected.source
    difference = token_difference(expected.sequence, tokens.sequence)
    of_torch = token_difference(expected.sequence, half.with_runtime("torch")(images).sequence)
    assert difference.of_token <= 2 * of_torch.of_token
    assert difference.of_token > TOLERANCES[torch.float32].of_token


def test_the_precision_is_passed_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it OpenVINO computes in bfloat16 where the processor can."""
    asked: list[dict[str, Any]] = []
    library = openvino.openvino()

    class Core:
        def compile_model(self, model: Any, device: str, properties: dict[str, Any]) -> Any:
            asked.append(properties)
            return library.Core().compile_model(model, device, properties)

    stand_in = type("Library", (), {"Core": Core, "convert_model": library.convert_model})
    monkeypatch.setattr(openvino, "openvino", lambda: stand_in)
    backbone = load_backbone("dinoneck_tiny", layers=[0])
    for dtype in (torch.float32, torch.bfloat16):
        backbone.to(dtype).with_runtime("openvino")(some_images())
    hints = [properties["INFERENCE_PRECISION_HINT"] for properties in asked]
    assert hints == ["f32", "bf16"]
    assert asked[0]["INFERENCE_NUM_THREADS"] == torch.get_num_threads()


def test_a_program_with_other_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_program = openvino.compile_program

    def compile_other(*args: Any, **options: Any) -> Callable[[Tensor], dict[int, Tensor]]:
        program = compile_program(*args, **options)
        return lambda images: {layer: 1.001 * x for layer, x in program(images).items()}

    monkeypatch.setattr(openvino, "compile_program", compile_other)
    backbone = one_block(runtime="openvino")

    with pytest.raises(BackboneError, match=r"other tokens than torch.*32x48 px.*1\.0e-03"):
        backbone(some_images())


def test_differences_are_relative_to_the_layer_and_to_each_token() -> None:
    expected = torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    actual = expected + torch.tensor([[[0.3, 0.4], [0.0, 2.0]]])
    difference = token_difference([expected], [actual])
    assert difference.of_layer == pytest.approx(2 / 100)
    assert difference.of_token == pytest.approx(0.5 / 5)  # hidden in the maximum of the layer
    is_nan = token_difference([expected], [expected * torch.nan])
    assert not is_nan.is_within(Tolerance(of_layer=1.0, of_token=1.0))
    assert TokenDifference(0.1, 0.1).is_within(Tolerance(of_layer=0.1, of_token=0.1))


def test_a_few_programs_are_kept_the_last_used_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[int, int]] = []

    def compile_program(adapter: Any, size: tuple[int, int], **options: Any) -> Any:
        compiled.append(size)
        return lambda images: dict(
            zip(options["layers"], adapter(images, options["layers"], True), strict=True)
        )

    monkeypatch.setattr(openvino, "compile_program", compile_program)
    monkeypatch.setattr(runtime, "program_folder", lambda: None)
    backbone = load_backbone("dinoneck_tiny", runtime="openvino")
    sizes = [(16, 16 * number) for number in range(1, MOST_PROGRAMS + 2)]
    for size in sizes:
        backbone(some_images(size=size))
    backbone(some_images(size=sizes[-1]))
    assert compiled == sizes
    backbone(some_images(size=sizes[0]))  # the oldest one was dropped
    assert compiled == [*sizes, sizes[0]]


@pytest.mark.usefixtures("shared_programs")
def test_changed_rotary_frequencies_get_a_program_of_their_own() -> None:
    """They are no weights: the hash of the weights stays the same."""
    backbone = one_block(runtime="openvino")
    images = some_images()
    before = backbone(images)

    with torch.no_grad():
        backbone.adapter.model.rope.periods.mul_(3.0)
    after = backbone(images)

    assert_same_tokens(after, backbone.with_runtime("torch")(images))
    assert not torch.allclose(after.sequence[0], before.sequence[0], atol=1e-3)


def test_inference_mode_gives_the_same_tokens() -> None:
    """Also where the program is compiled there."""
    backbone = one_block(runtime="openvino")
    images = some_images()

    with torch.inference_mode():
        tokens = backbone(images)

    assert_same_tokens(tokens, backbone.with_runtime("torch")(images))


@pytest.mark.usefixtures("shared_programs")
def test_copies_have_programs_of_their_own(tiny: Backbone) -> None:
    tiny(some_images())

    other = copy.deepcopy(tiny)

    assert other.runtime == "openvino"
    assert not other.has_programs
    images = some_images()
    assert_same_tokens(other(images), tiny(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    backbone = load_backbone("dinoneck_tiny", dtype=dtype)
    with pytest.raises(BackboneError, match=r"float(16|64); expected float32 or bfloat16"):
        backbone.with_runtime("openvino")


def test_a_runtime_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="runtime is 'onnx'; expected 'torch' or 'openvino' or 'auto'"
    ):
        load_backbone("dinoneck_tiny", runtime="onnx")  # type: ignore[arg-type]


def test_hooks_that_a_program_would_not_call_are_refused() -> None:
    backbone = load_backbone("dinoneck_tiny", runtime="openvino")
    backbone.adapter.blocks[1].register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(BackboneError, match=r"blocks\.1 has forward hooks"):
        backbone(some_images())


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino is not installed.*dinoneck\[fast\]"):
        load_backbone("dinoneck_tiny", runtime="openvino")


WITHOUT_CONNECTIONS = """
import socket

def connect(self, address):
    raise SystemExit(f"a connection to {address}")

socket.socket.connect = connect
socket.socket.connect_ex = connect
"""
REPORTING = """
import torch
from dinoneck import load_backbone
backbone = load_backbone("dinoneck_tiny", layers=[0], runtime="openvino")
backbone(torch.zeros(1, 3, 32, 32))
import sys
assert "openvino" in sys.modules
import openvino_telemetry  # it may be imported by others again
"""


def test_nothing_is_reported_and_nothing_written_into_the_home_folder(
    tmp_path: Path, cache: Path
) -> None:
    home = run_with_empty_home(REPORTING, tmp_path)
    assert list(home.rglob("*")) == []
    assert len(list((cache / "programs").iterdir())) == 1


DOCTOR = """
import sys

from dinoneck.checkup import checkup

findings = {finding.name: finding for finding in checkup()}
fast = findings["extra fast"]
assert fast.state == "ok" or "openvino" not in fast.text, fast  # torchcodec may be missing
assert findings["extra export"].state == "ok", findings["extra export"]
assert {"openvino", "onnxruntime"} <= {*sys.modules}
"""


def test_doctor_imports_all_packages_without_a_report(tmp_path: Path) -> None:
    home = run_with_empty_home(DOCTOR, tmp_path)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def run_with_empty_home(program: str, tmp_path: Path) -> Path:
    """Run a program that may open no connection, as outside of CI; return the home folder."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    home = tmp_path / "home"
    home.mkdir()
    environment["HOME"] = str(home)
    environment.pop("XDG_CACHE_HOME", None)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CONNECTIONS + program],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return home
