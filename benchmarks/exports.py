"""How far exported models are from the eager ones: ONNX in float32 and half, at sizes that the export never saw.

    python -m benchmarks.exports [--models NAME ...] [--sources timm transformers]

Seeded weights, a head on the last layer, ONNX Runtime on the CPU. Compared are the predictions of all patches, relative
to the largest of them; shown is the largest difference over all images. The table of docs/how-to/export.md is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch

from benchmarks.timing import machine
from dinoneck import PatchMeanHead, Predictor, Task, load_backbone
from dinoneck.export import export_model

MODELS = ("vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "vit_small_patch14_dinov2")
GRIDS = ((1, 14, 14), (2, 7, 21), (1, 37, 37))  # batch, rows, cols
TASKS = [Task("mass")]


def difference(path: Path, predictor: Predictor) -> float:
    """The largest difference of an ONNX model from the predictor, relative to the predictor's largest value."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    gaps = []
    height, width = predictor.backbone.adapter.patch_size
    for batch, rows, cols in GRIDS:
        draw = torch.Generator().manual_seed(rows)
        images = torch.rand(batch, 3, rows * height, cols * width, generator=draw)
        found = torch.tensor(session.run(["mass.map"], {"images": images.numpy()})[0])
        expected = torch.stack([torch.as_tensor(row["maps"]["mass"]) for row in predictor(list(images), maps="patch")])
        gaps.append(((found - expected).abs().max() / expected.abs().max()).item())
    return max(gaps)


def row(name: str, source: str, folder: Path) -> str:
    """A row of the table."""
    backbone = load_backbone(name, source=source, pretrained=False)  # type: ignore[arg-type]
    head = PatchMeanHead(backbone.embed_dim, TASKS)
    cells = [f"`{name}`, {source}"]
    for half in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = export_model(head, folder / "m.onnx", backbone=backbone, maps=True, half=half)
        size = sum(file.stat().st_size for file in done.files)
        cells += [f"{size / 1e6:.0f} MB", f"{difference(done.files[0], Predictor(head, backbone)):.1e}"]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sources", nargs="+", default=["timm"])
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    print("| backbone | float32 | largest difference | half | largest difference |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            for source in options.sources:
                print(row(name, source, Path(folder)), flush=True)
    print(machine())


if __name__ == "__main__":
    main()
