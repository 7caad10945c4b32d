"""The runtime "auto": which of torch and a program computes, by a clock that moves only as stated."""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tests.kit import without
from torch import Tensor, nn

from dinoneck import Backbone, ConfigError, load_backbone, wrap_backbone
from dinoneck.backbones import openvino, program_costs, runtime
from dinoneck.backbones.program_files import ProgramFolder, ProgramRecord
from dinoneck.backbones.token_batch import TokenBatch
from dinoneck.errors import BackboneError

SIZE = (32, 48)
COMPILE_SECONDS = 10.0


class FakeProgram:
    """What torch computes, in another time."""

    def __init__(self, scene: Scene, compute: Callable[[Tensor], dict[int, Tensor]]) -> None:
        self._scene = scene
        self._compute = compute

    def __call__(self, images: Tensor) -> dict[int, Tensor]:
        self._scene.clock += self._scene.program_seconds * len(images)
        self._scene.log.append("program")
        return self._compute(images)

    def export(self) -> bytes:
        return b"a program"


class Scene:
    """A backbone with the runtime "auto" and the times that torch, a program and compiling take.

    Attributes:
        clock: seconds.
        torch_seconds: of an image in torch.
        program_seconds: of an image in a program.
        error: what compiling raises.
        factor: of the program's tokens.
        log: what computed: torch, program; and compile, load.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = 0.0
        self.torch_seconds = 1.0
        self.program_seconds = 0.5
        self.error: Exception | None = None
        self.factor = 1.0
        self.log: list[str] = []
        self.backbone = self.fresh_backbone()
        monkeypatch.setattr(program_costs.time, "perf_counter", lambda: self.clock)
        monkeypatch.setattr(openvino, "is_installed", lambda: True)
        monkeypatch.setattr(openvino, "check_usable", lambda dtype: None)
        monkeypatch.setattr(openvino, "compile_program", self.compile_program)
        monkeypatch.setattr(openvino, "load_program", self.load_program)
        monkeypatch.setattr(runtime, "expected_gain", lambda batch: 2.0)
        monkeypatch.setattr(runtime, "default_compile_seconds", lambda blocks: COMPILE_SECONDS)
        monkeypatch.setattr(runtime, "load_seconds", lambda num_bytes: 3.0)

    def fresh_backbone(self) -> Backbone:
        """The backbone as another process has it: without programs in memory."""
        backbone = load_backbone("dinoneck_tiny", layers=[0], runtime="auto")
        self.forward = type(backbone.adapter).forward
        self.adapter = backbone.adapter

        def forward(images: Tensor, layers: Any, norm: bool) -> list[Tensor]:
            self.clock += self.torch_seconds * len(images)
            self.log.append("torch")
            return self.forward(backbone.adapter, images, layers, norm)

        backbone.adapter.forward = forward  # type: ignore[method-assign]
        backbone.fingerprint  # noqa: B018 - hashed before the clock is read
        return backbone

    def compile_program(self, adapter: Any, size: tuple[int, int], **options: Any) -> FakeProgram:
        self.log.append("compile")
        self.clock += COMPILE_SECONDS
        if self.error is not None:
            raise self.error
        return self.load_program(b"", layers=options["layers"], is_logged=False)

    def load_program(
        self, exported: bytes, *, layers: Any, is_logged: bool = True, **options: Any
    ) -> FakeProgram:
        if is_logged:
            assert exported == b"a program"
            self.log.append("load")
        adapter = self.adapter
        factor = self.factor

        def compute(images: Tensor) -> dict[int, Tensor]:
            tokens = self.forward(adapter, images, layers, True)
            return {layer: factor * x for layer, x in zip(layers, tokens, strict=True)}

        return FakeProgram(self, compute)

    def run(self, batch: int = 2, size: tuple[int, int] = SIZE) -> list[str]:
        """Compute a batch; return what computed it."""
        self.log.clear()
        images = torch.randn(batch, 3, *size).clamp(-3, 3)
        tokens = self.backbone(images)
        [expected] = self.forward(self.adapter, images, [0], True)
        assert torch.allclose(tokens.sequence[0], expected, rtol=1e-5)
        return list(self.log)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path / "cache"))
    return Scene(monkeypatch)


def test_without_a_statement_torch_computes(scene: Scene) -> None:
    for _ in range(50):
        assert scene.run() == ["torch"]


def test_a_program_is_compiled_after_the_first_batch_compared_and_used(scene: Scene) -> None:
    scene.backbone.expect_images({SIZE: 100})
    assert scene.run() == ["torch"]
    # the last run of torch is the probe, by which a file of the program is recognised
    assert scene.run() == ["compile", "torch", "program", "torch"]
    assert scene.run() == ["program"]
    assert scene.run(batch=5) == ["program"]


@pytest.mark.parametrize(("num_images", "compiles"), [(26, False), (27, True)])
def test_it_is_compiled_if_it_saves_more_than_it_costs(
    scene: Scene, num_images: int, compiles: bool
) -> None:
    """With gain 2, n images left at 1 s save n / 2 s, less a batch of 2 that torch computes too: n > 24."""
    scene.backbone.expect_images({SIZE: num_images})
    scene.run(batch=2)
    assert ("compile" in scene.run(batch=2)) is compiles


def test_images_count_down_and_a_statement_replaces_the_one_before(scene: Scene) -> None:
    scene.backbone.expect_images({SIZE: 27})
    scene.run(batch=2)
    scene.backbone.expect_images({(16, 16): 1000})
    assert scene.run(batch=2) == ["torch"]
    sibling = scene.backbone.with_layers([0])
    sibling.expect_images({SIZE: 1000})
    assert "compile" in scene.run(batch=2)


def test_each_size_is_decided_for_itself(scene: Scene) -> None:
    scene.backbone.expect_images({SIZE: 100, (16, 16): 4})
    scene.run()
    scene.run(size=(16, 16))
    assert "compile" in scene.run()
    assert scene.run(size=(16, 16)) == ["torch"]


@pytest.mark.parametrize(
    "sizes",
    [[SIZE], [(16, 16 * number) for number in range(1, 21)], [SIZE] * 20],
    ids=["one photo", "20 photos of 20 sizes", "20 photos of one size"],
)
def test_few_photos_take_the_time_of_torch(scene: Scene, sizes: list[tuple[int, int]]) -> None:
    counts: dict[tuple[int, int], int] = {}
    for size in sizes:
        counts[size] = counts.get(size, 0) + 1
    scene.backbone.expect_images(counts)
    scene.clock = 0.0
    for size in sizes:
        scene.run(batch=1, size=size)
    assert scene.clock == pytest.approx(len(sizes) * 1.0)


def test_the_time_of_the_last_compilation_is_taken_instead_of_the_estimate(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "default_compile_seconds", lambda blocks: 1.0)
    scene.backbone.expect_images({SIZE: 20, (16, 16): 20})
    scene.run()
    assert "compile" in scene.run()  # it took 10 s
    scene.run(size=(16, 16))
    assert scene.run(size=(16, 16)) == ["torch"]
    scene.backbone = scene.fresh_backbone()  # another process reads it from the first program
    scene.backbone.expect_images({(16, 16): 20})
    scene.run(size=(16, 16))
    assert scene.run(size=(16, 16)) == ["torch"]


def test_a_slower_program_is_dropped_and_not_made_again(scene: Scene) -> None:
    scene.program_seconds = 0.98  # not faster by more than runs differ
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    assert scene.run()[:3] == ["compile", "torch", "program"]
    assert scene.run() == ["torch"]
    scene.backbone = scene.fresh_backbone()
    scene.backbone.expect_images({SIZE: 1000})
    for _ in range(3):
        assert scene.run() == ["torch"]


def set_time_of_measurement(cache: Path, measured_at: float) -> None:
    """Let the only program of a cache folder have been measured at this time."""
    folder = ProgramFolder(cache / "programs")
    [name] = [path.name for path in folder.path.iterdir()]
    record = folder.record(name, ProgramRecord)
    assert record is not None
    program = folder.program(name)
    assert program is not None
    folder.write(name, msgspec.structs.replace(record, measured_at=measured_at), program)


def test_the_use_of_a_slower_program_does_not_renew_what_was_measured(
    scene: Scene, tmp_path: Path
) -> None:
    """ "openvino" keeps a program whatever it gains; "auto" measures again a week after."""
    scene.program_seconds = 2.0
    scene.backbone = scene.fresh_backbone().with_runtime("openvino")
    assert scene.run()[0] == "compile"
    set_time_of_measurement(tmp_path / "cache", time.time() - 8 * 24 * 3600)
    scene.backbone = scene.fresh_backbone().with_runtime("openvino")
    assert scene.run() == ["torch", "load", "program"]  # the first is the probe
    scene.program_seconds = 0.5  # the computer was busy
    scene.backbone = scene.fresh_backbone()
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    assert scene.run()[0] == "compile"


def test_the_time_of_programs_is_counted_without_that_of_the_batch(scene: Scene) -> None:
    """10 s to compile, 1 s for the probe and 1 s for two images in the program, not the 2 s of theirs in torch."""
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    assert scene.backbone.seconds_for_programs == 0.0
    assert scene.run() == ["compile", "torch", "program", "torch"]
    assert scene.backbone.seconds_for_programs == COMPILE_SECONDS + 2.0
    scene.run()
    assert scene.backbone.seconds_for_programs == COMPILE_SECONDS + 2.0
    assert scene.backbone.with_layers([0]).seconds_for_programs == COMPILE_SECONDS + 2.0


@pytest.mark.parametrize(("days", "first"), [(6, "torch"), (8, "compile"), (-1, "compile")])
def test_that_torch_is_faster_holds_for_a_week(
    scene: Scene, tmp_path: Path, days: int, first: str
) -> None:
    """The computer may have been busy when it was measured; its clock may have been set back since."""
    scene.program_seconds = 0.98
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    scene.run()
    scene.program_seconds = 0.5
    set_time_of_measurement(tmp_path / "cache", time.time() - days * 24 * 3600)
    scene.backbone = scene.fresh_backbone()
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    assert scene.run()[0] == first


def test_the_time_until_a_program_is_ready_is_that_of_the_cache_folder(scene: Scene) -> None:
    """10 s to compile, 3 s to load; never where torch was faster."""
    images = torch.zeros(1, 3, *SIZE)
    assert scene.backbone.preparation_seconds(images) == COMPILE_SECONDS
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    scene.run()
    assert scene.fresh_backbone().preparation_seconds(images) == 3.0
    other_size = torch.zeros(1, 3, 64, 64)
    scene.program_seconds = 2.0
    scene.backbone.expect_images({(64, 64): 1000})
    scene.run(size=(64, 64))
    scene.run(size=(64, 64))
    assert scene.fresh_backbone().preparation_seconds(other_size) == math.inf


def test_a_program_with_other_tokens_is_dropped_with_a_warning(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.factor = 1.001
    scene.backbone.expect_images({SIZE: 1000})
    for _ in range(4):
        scene.run()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "32x48 px in torch: OpenVINO gives other tokens than torch" in caplog.text
    assert scene.run() == ["torch"]


def test_a_model_that_cannot_be_compiled_runs_in_torch(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.error = BackboneError("OpenVINO cannot run it")
    scene.backbone.expect_images({SIZE: 1000, (16, 16): 1000})
    for size in (SIZE, (16, 16)):
        for _ in range(3):
            scene.run(size=size)
    assert caplog.text.count("OpenVINO cannot run it") == 1
    assert scene.run(size=(16, 16)) == ["torch"]


def test_a_program_that_fails_later_is_replaced_by_torch(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    scene.run()

    def fail(program: FakeProgram, images: Tensor) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(FakeProgram, "__call__", fail)
    assert scene.run() == ["torch"]
    assert scene.run() == ["torch"]
    assert caplog.text.count("no memory") == 1


def test_a_program_of_the_cache_folder_is_loaded_where_that_pays(scene: Scene) -> None:
    """It saves 0.5 s an image and takes 3 s to load: from 7 images on, without a statement too."""
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    scene.run()
    scene.backbone = scene.fresh_backbone()
    assert scene.run(batch=6) == ["torch"]
    scene.backbone.expect_images({SIZE: 7})
    assert scene.run(batch=1) == ["torch", "load", "program"]  # the first is the probe
    scene.backbone = scene.fresh_backbone()
    for _ in range(7):
        assert scene.run(batch=1) == ["torch"]
    assert "load" in scene.run(batch=1)  # as many again are expected as were computed


def test_the_program_of_a_model_with_another_block_is_not_loaded(scene: Scene) -> None:
    """Its weights, and so the file's name, are the same."""
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    scene.run()
    scene.backbone = scene.fresh_backbone()
    scene.backbone.adapter.model.blocks[0].mlp.act = nn.ReLU()
    scene.backbone.expect_images({SIZE: 1000})
    for _ in range(3):
        assert "load" not in scene.run()


def test_a_wrapped_model_has_no_file(scene: Scene, tmp_path: Path) -> None:
    """No version names the code that it runs."""
    model = scene.backbone.adapter.model
    scene.backbone = wrap_backbone(model, layers=[0]).with_runtime("openvino")
    scene.adapter = scene.backbone.adapter
    assert "compile" in scene.run()
    assert not (tmp_path / "cache").exists()


class WaitingCompilation:
    """Lets what is compiled wait for a test.

    Attributes:
        starts: is set when something is to be compiled.
        goes_on: what the compilation waits for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starts = threading.Event()
        self.goes_on = threading.Event()
        self._monkeypatch = monkeypatch

    def wait_from_now_on(self) -> None:
        compile_program = openvino.compile_program

        def wait_and_compile(*args: Any, **options: Any) -> Any:
            self.starts.set()
            assert self.goes_on.wait(60)
            return compile_program(*args, **options)

        self._monkeypatch.setattr(openvino, "compile_program", wait_and_compile)


@pytest.fixture
def compilation(monkeypatch: pytest.MonkeyPatch) -> WaitingCompilation:
    return WaitingCompilation(monkeypatch)


def test_while_one_thread_compiles_the_others_compute_in_torch(
    scene: Scene, compilation: WaitingCompilation
) -> None:
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    compilation.wait_from_now_on()
    images = torch.zeros(2, 3, *SIZE)
    thread = threading.Thread(target=scene.backbone, args=(images,))
    thread.start()
    assert compilation.starts.wait(60)
    assert scene.run() == ["torch"]
    compilation.goes_on.set()
    thread.join()
    assert scene.run() == ["program"]


def test_while_one_size_is_compiled_programs_of_others_run(
    scene: Scene, compilation: WaitingCompilation
) -> None:
    """As of the runtime openvino, which computes nothing in torch."""
    scene.backbone.runtime = "openvino"
    scene.run()
    compilation.wait_from_now_on()
    of_new_size = threading.Thread(target=scene.backbone, args=(torch.zeros(2, 3, 64, 64),))
    of_new_size.start()
    assert compilation.starts.wait(60)

    of_ready_size = threading.Thread(target=scene.backbone, args=(torch.zeros(2, 3, *SIZE),))
    of_ready_size.start()
    of_ready_size.join(10)
    has_waited = of_ready_size.is_alive()

    compilation.goes_on.set()
    of_new_size.join()
    of_ready_size.join()
    assert not has_waited


def in_half_precision(backbone: Backbone) -> None:
    backbone.half()


def with_a_hook(backbone: Backbone) -> None:
    backbone.adapter.blocks[0].register_forward_hook(lambda module, inputs, output: output)


def training(backbone: Backbone) -> None:
    backbone.adapter.model.train()


def unfrozen(backbone: Backbone) -> None:
    backbone.unfreeze_last(1)


def with_trainable_lora(backbone: Backbone) -> None:
    backbone.add_lora(2)


@pytest.mark.parametrize(
    "change", [in_half_precision, with_a_hook, training, unfrozen, with_trainable_lora]
)
def test_what_openvino_cannot_do_runs_in_torch(change: Callable[[Backbone], None]) -> None:
    backbone = load_backbone("dinoneck_tiny")
    change(backbone)
    automatic = backbone.with_runtime("auto")
    automatic.expect_images({SIZE: 10**9})
    images = torch.randn(2, 3, *SIZE).clamp(-3, 3)
    for _ in range(3):
        tokens = automatic(images)
    assert torch.equal(tokens.sequence[0], backbone(images).sequence[0])


def test_without_openvino_auto_is_torch() -> None:
    with without("openvino"):
        backbone = load_backbone("dinoneck_tiny", runtime="auto")
        backbone.expect_images({SIZE: 10**9})
        images = torch.randn(2, 3, *SIZE).clamp(-3, 3)
        for _ in range(3):
            tokens = backbone(images)
    assert torch.equal(tokens.sequence[0], backbone.with_runtime("torch")(images).sequence[0])


def test_frozen_lora_weights_are_used_and_trainable_ones_are_not(scene: Scene) -> None:
    scene.backbone.expect_images({SIZE: 1000})
    scene.run()
    scene.run()
    assert scene.run() == ["program"]
    scene.backbone.unfreeze_last(1)
    assert scene.run() == ["torch"]
    scene.backbone.freeze()
    assert scene.run() == ["program"]


def test_copies_and_their_counts_are_apart(scene: Scene) -> None:
    scene.backbone.expect_images({SIZE: 1000})
    scene.backbone = copy.deepcopy(scene.backbone)
    assert scene.backbone.runtime == "auto"
    for _ in range(3):
        assert scene.run() == ["torch"]


def test_a_negative_number_is_refused() -> None:
    backbone = load_backbone("dinoneck_tiny", runtime="auto")
    with pytest.raises(ConfigError, match="-1 images of 32x48 px; expected 0 or more"):
        backbone.expect_images({SIZE: -1})


@pytest.mark.skipif(not openvino.is_installed(), reason="the extra [fast] is not installed")
def test_the_gain_of_this_processor_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    backbone = load_backbone("dinoneck_tiny")
    images = torch.zeros(2, 3, *SIZE)
    gain = backbone.expected_gain(images)
    assert 1.05 <= gain < 20.0
    monkeypatch.setattr(program_costs, "gain_of_block", lambda batch: 1 / 0)
    assert backbone.expected_gain(images) == gain
    assert backbone.with_layers([0]).expected_gain(images) == gain
    ProgramFolder(tmp_path / "programs").empty()
    monkeypatch.setattr(program_costs, "gain_of_block", lambda batch: 3.0)
    assert backbone.expected_gain(images) == 3.0
    # of another size it is another one; a trial costs at most 5 % of what torch would take
    monkeypatch.setattr(program_costs, "gain_of_block", lambda batch: 0.5)
    assert backbone.expected_gain(torch.zeros(2, 3, 64, 64)) == 1.05


@pytest.mark.skipif(not openvino.is_installed(), reason="the extra [fast] is not installed")
@pytest.mark.parametrize(("width", "hidden_width"), [(64, 256), (160, 100), (40, 40)])
def test_the_block_that_is_measured_takes_any_tokens(width: int, hidden_width: int) -> None:
    """Widths of one and two heads, also such as 64 does not divide."""
    tokens = torch.randn(2, 7, width)
    [outputs] = openvino.compile_block(tokens, hidden_width)().values()
    assert outputs.shape == tokens.shape
    assert np.isfinite(outputs).all()


def test_the_measured_block_has_as_many_weights_as_those_of_the_backbone() -> None:
    """dinoneck_tiny has an MLP of four times its 64 channels; biases and norms count as a few more."""
    batch = TokenBatch(load_backbone("dinoneck_tiny").adapter, torch.zeros(1, 3, *SIZE), [0], True)
    hidden_width = program_costs.hidden_width(batch.adapter)
    assert 4 * 64 <= hidden_width < 4 * 64 + 16


def test_info_of_hooks_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_backbone("dinoneck_tiny", runtime="auto")
    with_a_hook(backbone)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            backbone(torch.zeros(1, 3, *SIZE))
    if openvino.is_installed():
        assert caplog.text.count("blocks.0 has forward hooks") == 1
