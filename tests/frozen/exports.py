"""Frozen exports: a head and a model with backbone as ONNX file and as torch program, and a detector as ONNX file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck import (
    CLSGatingHead,
    DenseHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    SimplePyramid,
    Tokens,
)
from dinoneck.detection import DetectionHead, Detector
from dinoneck.export import export_head, export_model
from dinoneck.heads import Head
from tests import kit
from tests.frozen.folder import FrozenFile, VersionFolder, is_frozen
from tests.frozen.heads import CLASSES, LEAF, MASS, STATE, TokenShape
from tests.frozen.tiny_vit import WIDTH, tiny_vit

FOLDER = "exports"
READS = TokenShape(width=WIDTH, layers=(0,), prefix=2)
IMAGE_SIZE = (32, 32)
METADATA = ("dinoneck", "dinoneck_export", "dinoneck_detector")


@dataclass(frozen=True)
class ExportToFreeze:
    """An export that is written once.

    Attributes:
        name: of its file; its suffix is the format.
        write: writes it to a path.
        takes: ``tokens``, ``images`` or, of a detector, ``image``.
    """

    name: str
    write: Callable[[Path], object]
    takes: str

    @property
    def file(self) -> str:
        """Its path in the folder of a version."""
        return f"{FOLDER}/{self.name}"


def write_head(path: Path) -> None:
    """Export a head that takes tokens of any grid."""
    head = kit.randomised(PatchMeanHead(WIDTH, [MASS, STATE], hidden_dim=4)).eval()
    export_head(head, path, format=format_of(path), backbone=tiny_vit())


def write_model(path: Path) -> None:
    """Export the ViT with heads that have a gate, maps and a mean over a map; the size of images is free."""
    gated = CLSGatingHead(WIDTH, [MASS], "query", hidden_dim=4)
    maps = DenseHead(WIDTH, [CLASSES, LEAF], hidden_dim=4, depth=0)
    export(HeadEnsemble([gated, maps]), path, maps=True)


def write_small_model(path: Path) -> None:
    """Export the ViT with one number, for images of one size: a torch program spells out every operation."""
    export(PatchMeanHead(WIDTH, [MASS], hidden_dim=4), path, size=IMAGE_SIZE)


def export(head: Head, path: Path, **options: Any) -> None:
    """Export the ViT with a head of random weights."""
    backbone = tiny_vit()
    checkpoint = HeadCheckpoint.from_module(
        kit.randomised(head).eval(),
        backbone=backbone,
        preprocess=backbone.preprocess.changed(size=IMAGE_SIZE),
        license="Apache-2.0",
    )
    export_model(checkpoint, path, format=format_of(path), backbone=backbone, **options)


def write_detector(path: Path) -> None:
    """Export RetinaNet on the ViT, without what 0.3.0 leaves in such files: the paths of its source code."""
    import onnx

    neck = SimplePyramid(WIDTH, 4, scales=(1.0,))
    head = DetectionHead("retinanet", ("crop", "weed"), neck)
    detector = Detector(kit.randomised(head, std=0.1), tiny_vit(), IMAGE_SIZE)
    detector.export_onnx(path)
    model = onnx.load(path)
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, path)


def format_of(path: Path) -> Any:
    """Return the format that a suffix stands for."""
    return path.suffix.removeprefix(".")


EXPORTS = (
    ExportToFreeze("head.onnx", write_head, "tokens"),
    ExportToFreeze("head.pt2", write_head, "tokens"),
    ExportToFreeze("model.onnx", write_model, "images"),
    ExportToFreeze("model.pt2", write_small_model, "images"),
    ExportToFreeze("detector.onnx", write_detector, "image"),
)


def freeze(folder: VersionFolder) -> None:
    """Write the exports that no version has written, and record what they give."""
    for entry in EXPORTS:
        if is_frozen(entry.file):
            continue
        path = folder.new_path(entry.file)
        entry.write(path)
        [inputs] = READS.draw()
        if entry.takes != "tokens":
            inputs = images_to_predict()
        facts = {"takes": entry.takes, "torch": torch.__version__.partition("+")[0]}
        numbers = {"input": inputs}
        for name, value in run(path, entry.takes, inputs).items():
            numbers[f"result/{name}"] = value
        folder.record(entry.file, facts, numbers)


def images_to_predict() -> Tensor:
    """Return an image (1, 3, height, width) in 0 ... 1, of values that 8 bits hold."""
    return (kit.images(1, *IMAGE_SIZE) * 255).round() / 255


def run_recorded(file: FrozenFile) -> dict[str, Tensor]:
    """Return what an export gives for the input that was recorded with it."""
    return run(file.path, file.facts["takes"], file.numbers()["input"])


def run(path: Path, takes: str, inputs: Tensor) -> dict[str, Tensor]:
    """Return the outputs of an export, by their names."""
    if path.suffix == ".onnx":
        return run_onnx(path, takes, inputs)
    arguments: Tokens | Tensor = READS.tokens([inputs]) if takes == "tokens" else inputs
    program = torch.export.load(path)
    outputs: dict[str, Tensor] = program.module()(arguments)
    return {name: value.detach() for name, value in outputs.items()}


def run_onnx(path: Path, takes: str, inputs: Tensor) -> dict[str, Tensor]:
    """Run a file in ONNX Runtime on the CPU."""
    session = open_onnx(path)
    values: dict[str, Any] = {takes: inputs.numpy()}
    if takes == "tokens":
        rows, cols = torch.tensor(READS.rows), torch.tensor(READS.cols)
        values = {"tokens_0": inputs.numpy(), "rows": rows.numpy(), "cols": cols.numpy()}
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, map(torch.as_tensor, session.run(names, values)), strict=True))
    if takes == "image":
        # rows of score 0 are empty
        is_box = outputs["scores"] > 0
        outputs = {name: value[is_box] for name, value in outputs.items()}
    return outputs


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the records inside an export, key -> what its JSON text holds."""
    if path.suffix == ".onnx":
        texts = open_onnx(path).get_modelmeta().custom_metadata_map
    else:
        texts = dict.fromkeys(METADATA, "")
        torch.export.load(path, extra_files=texts)
    return {key: json.loads(texts[key]) for key in METADATA if texts.get(key)}


def open_onnx(path: Path) -> Any:
    """Open a file in ONNX Runtime."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
