"""``python -m examples.pictures FOLDER``: draw the two pictures of docs/how-to/pictures.md into a folder."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dinoneck import DenseHead, Predictor, TargetTransform, Task, load_backbone
from dinoneck.data import Pasture
from dinoneck.training import MemoryTokens, fit
from dinoneck.viz import heat_figure, pca_figure

TRAINED, DPI = 18, 60


def main(arguments: list[str]) -> int:
    """Draw and write; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m examples.pictures FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    table = Pasture(seed=0, size=(128, 256)).table(range(24))
    backbone = load_backbone("dinoneck_tiny")
    pictures = [backbone.preprocess.picture(image) for image in table.images]
    tokens = backbone(backbone.preprocess(table.images))
    write(pca_figure(pictures[:2], tokens[:2]), folder / "pictures_pca.png")
    known = {name: table.targets[name] for name in ("GDM_g", "Dry_Total_g")}
    tasks = [
        Task(name, kind="density", unit="g", transform=TargetTransform().fit(values[:TRAINED]))
        for name, values in known.items()
    ]
    torch.manual_seed(0)
    head = DenseHead(backbone.embed_dim, tasks, hidden_dim=32)
    source = MemoryTokens(table.ids, tokens)
    fit(head, source, targets=table, ids=table.ids[:TRAINED], epochs=40, batch_size=6, lr=3e-3)
    shown = range(TRAINED, TRAINED + 2)
    results = Predictor(head, backbone)([table.images[i] for i in shown], maps=True)
    truths = [{name: values[i] for name, values in known.items()} for i in shown]
    figure = heat_figure([pictures[i] for i in shown], results, tasks=tasks, truths=truths)
    write(figure, folder / "pictures_heat.png")
    return 0


def write(figure: Any, path: Path) -> None:
    """Save a figure as a small picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    with Image.open(buffer) as picture:
        picture.convert("RGB").save(path, optimize=True)
    print(f"{path}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
