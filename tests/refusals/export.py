"""What exports refuse: formats, sizes, dtypes, heads without a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dinoneck import (
    Backbone,
    CheckpointError,
    CLSGatingHead,
    ConfigError,
    HeadCheckpoint,
    PatchMeanMLP,
    Task,
    load_backbone,
    save_head,
    wrap_backbone,
)
from dinoneck.export import export_head, export_model
from dinoneck.export.models import TokensModel
from dinoneck.export.onnx_file import onnx_runner
from dinoneck.export.program import Traced, check_parity
from dinoneck.grid import GridSize
from tests import kit
from tests.refusals import Row


def model(
    head: Any = None,
    name: str = "m.onnx",
    backbone: Backbone | None = None,
    *,
    is_exported_first: bool = False,
    **options: Any,
) -> Any:
    """Return an export with the first block of the tiny backbone.

    Where the error is found in a finished export, ``is_exported_first`` says so: an export for any
    batch size needs torch 2.8.
    """

    def call(folder: Path) -> Any:
        if is_exported_first:
            pytest.importorskip("torch", minversion="2.8", reason="exports for any batch size")
        own = backbone or load_backbone("dinoneck_tiny", layers=[0])
        return export_model(head or kit.head(), folder / name, backbone=own, **options)

    return call


def alone(module: Any, backbone: Backbone | None = None, **options: Any) -> Any:
    checkpoint = HeadCheckpoint.from_module(module, backbone=backbone)
    return lambda folder: export_head(checkpoint, folder / "h.pt2", format="pt2", **options)


def heavy() -> Any:
    head = kit.head()
    torch.nn.init.constant_(head.get_parameter("mlps.0.hidden.weight"), 1e6)
    return head


def tokens_to(form: Any) -> Any:
    """Return an export of a small head for one grid of tokens."""

    def export(folder: Path) -> Any:
        name = folder / f"m.{form}"
        return export_head(kit.head(), name, format=form, backbone=kit.backbone(), grid=(2, 3))

    return export


def fail(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("operator aten::rot90 is not known\nmore lines")


def failing(place: Any, name: str, call: Any) -> Any:
    """Export where this function of another library fails."""

    def export(folder: Path) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, fail)
            return call(folder)

    return export


def export_without_onnxscript(folder: Path) -> Any:
    pytest.importorskip("onnx", reason="needs dinoneck[export]")
    with kit.without("onnxscript"):
        return tokens_to("onnx")(folder)


def run_empty_model(folder: Path) -> Any:
    """Open an ONNX model without a graph."""
    onnx = pytest.importorskip("onnx", reason="needs dinoneck[export]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))  # ONNX Runtime leaves a file there when it is imported
        with onnx_runner(onnx.ModelProto(), list) as run:
            return run


def run_without_onnxruntime(folder: Path) -> Any:
    with kit.without("onnxruntime"):
        return run_empty_model(folder)


def with_fixed_size(size: tuple[int, int]) -> Any:
    """Export with a backbone that takes images of 64 x 64 px alone."""
    vit = timm.models.VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=64,
        depth=1,
        num_heads=1,
        num_classes=0,
    )
    return model(backbone=wrap_backbone(vit), size=size)


def compared(run: Any) -> Any:
    """Compare a head with what another runtime gives for the same tokens."""
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone())
    traced = Traced(program=None, outputs={}, grid=GridSize(2, 3))  # type: ignore[arg-type]
    return check_parity(TokensModel(checkpoint), traced, run)


def give_nothing(tokens: Any) -> dict[str, torch.Tensor]:
    return {}


def give_two_columns(tokens: Any) -> dict[str, torch.Tensor]:
    return {"mass": torch.zeros(len(tokens), 2)}


def checked_on_a_full_disk(folder: Path) -> Any:
    with kit.full_disk():
        return run_empty_model(folder)


def onto_its_own_file(folder: Path) -> Any:
    save_head(folder / "h.safetensors", kit.head(), backbone=kit.backbone())
    return export_head(folder / "h.safetensors", folder / "h.safetensors", format="pt2")


def onto_a_file_of_its_folder(folder: Path) -> Any:
    save_head(folder / "h.safetensors", kit.head(), backbone=kit.backbone())
    return export_model(folder, folder / "h.safetensors", format="pt2")


def give_zeros(tokens: Any) -> dict[str, torch.Tensor]:
    return {"mass": torch.zeros(len(tokens), 1)}


GATE = CLSGatingHead(64, [Task("a")], num_patches=6, hidden_dim=8)
ROWS: list[Row] = [
    (model(format="onxx"), ConfigError, ("'onxx'", "'onnx'")),
    (model(backbone=load_backbone("dinoneck_tiny", dtype=torch.bfloat16)), ConfigError, "bfloat16"),
    (
        model(name="no/m.pt2", format="pt2", check=False, size=(32, 32), is_exported_first=True),
        CheckpointError,
        "m.pt2",
    ),
    (model(kit.head().half(), half=True), ConfigError, ("half is True", "float16")),
    (model(name="m.pt2", format="pt2", half=True), ConfigError, ("half is True", "'pt2'")),
    (onto_its_own_file, ConfigError, "h.safetensors belongs"),
    (onto_a_file_of_its_folder, ConfigError, "h.safetensors belongs"),
    (
        model(heavy(), half=True, size=(32, 32), is_exported_first=True),
        CheckpointError,
        "1e+06",
    ),
    (model(GATE, format="pt2"), CheckpointError, "size="),
    (
        lambda folder: export_head([kit.head(), kit.head(Task("b"))], folder / "m"),
        ConfigError,
        "2 heads",
    ),  # type: ignore
    (alone(PatchMeanMLP(4, 2)), CheckpointError, "PatchMeanMLP"),
    (alone(kit.head()), CheckpointError, "does not state which tokens"),
    # what other libraries refuse or lack
    (export_without_onnxscript, ImportError, ("onnxscript", "dinoneck[export]")),
    (run_without_onnxruntime, ImportError, ("onnxruntime", "dinoneck[export]")),
    (run_empty_model, CheckpointError, "ONNX Runtime refuses"),
    (failing(torch.onnx, "export", tokens_to("onnx")), CheckpointError, ("rot90", "'pt2'")),
    (failing(torch.export, "export", tokens_to("pt2")), CheckpointError, "rot90"),
    (
        failing(torch.export, "export", model(kit.head(), "m.pt2", format="pt2")),
        CheckpointError,
        ("rot90", "size="),
    ),
    (with_fixed_size((32, 32)), CheckpointError, ("32x32", "64x64")),
    # what the export gives
    (lambda: compared(fail), CheckpointError, ("batch 1 of 2x3 patches", "rot90")),
    (lambda: compared(give_nothing), CheckpointError, ("none at batch 1 of 2x3", "expected mass")),
    (lambda: compared(give_two_columns), CheckpointError, ("'mass'", "(1, 2)", "(1, 1)")),
    (checked_on_a_full_disk, CheckpointError, ("TMPDIR", "--no-check")),
    (lambda: compared(give_zeros), CheckpointError, "'mass'"),
]
