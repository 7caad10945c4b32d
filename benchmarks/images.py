"""From a 12-megapixel JPEG to a tensor and to a prediction, compared with a script of PIL, torchvision and timm.

    python -m benchmarks.images [--image FILE] [--batch 32] [--rounds 7] [--threads 2] [--out FOLDER]

Both sides resize to 224 x 224 px and run ViT-S with the same seeded random weights; the script keeps PIL's bicubic
resize of timm's configuration. Variants take turns; ratios are medians over the rounds, by the wall clock. Without
FILE the image is generated. Writes benchmarks/results/images.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from benchmarks.speed.results import RESULTS, save
from benchmarks.timing import compare, machine
from dinoneck import PatchMeanHead, Predictor, Task, load_backbone, save_head

SIZE = (224, 224)
PEER = "plain script"


def generated(path: Path) -> Path:
    """A JPEG of 4000 x 3000 px with coarse and fine structure."""
    drawn = np.random.default_rng(0)
    coarse = Image.fromarray(drawn.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((4000, 3000))
    fine = drawn.normal(0, 12, (3000, 4000, 1))
    Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def measure(image: Path, folder: Path, batch: int, rounds: int) -> dict[str, Any]:
    """Return row -> variant -> ratios to the script."""
    backbone = load_backbone("vit_small_patch16_dinov3", pretrained=False, seed=0)
    model: Any = backbone.adapter.model
    recipe = backbone.preprocess.changed(size=SIZE)
    area = recipe.changed(interpolation="area")
    plain = transforms.Compose([
        transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(recipe.mean, recipe.std),
    ])  # fmt: skip
    head = PatchMeanHead(backbone.embed_dim, [Task("mass")]).eval()
    save_head(folder / "head.safetensors", head, backbone=backbone, preprocess=recipe)
    predictor = Predictor(folder / "head.safetensors", backbone)

    @torch.inference_mode()
    def script(paths: Sequence[Path]) -> torch.Tensor:
        images = torch.stack([plain(Image.open(path).convert("RGB")) for path in paths])
        tokens = model.forward_features(images)[:, model.num_prefix_tokens :]
        return head(tokens.unflatten(1, (14, 14)).permute(0, 3, 1, 2))["mass"]  # type: ignore[no-any-return]

    many = [image] * batch
    rows: dict[str, dict[str, Callable[[], Any]]] = {
        "12-megapixel JPEG to tensor": {
            PEER: lambda: plain(Image.open(image).convert("RGB")),
            "Preprocessing, default": lambda: recipe(image),
            "Preprocessing, area": lambda: area(image),
        },
        "one image to prediction": {PEER: lambda: script([image]), "Predictor": lambda: predictor(image)},
        f"{batch} images to predictions": {
            PEER: lambda: script(many),
            "Predictor": lambda: predictor(many),
        },
    }
    return {
        name: compare(variants, peer=PEER, rounds=rounds if i < 2 else 3, warmup=1)
        for i, (name, variants) in enumerate(rows.items())
    }


def page(report: dict[str, Any]) -> str:
    """The table."""
    lines = ["| row | variant | ms | × plain script (quartiles) |", "|---|---|---|---|"]
    for name, variants in report["rows"].items():
        for variant, row in variants.items():
            spread = f"{row['ratio']:.2f} ({row['ratio_q1']:.2f} … {row['ratio_q3']:.2f})"
            lines.append(f"| {name} | {variant} | {row['ms']:.0f} | {spread} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        image = options.image or generated(Path(folder) / "image.jpg")
        rows = measure(image, Path(folder), options.batch, options.rounds)
    report = {"machine": machine(), "threads": options.threads, "rounds": options.rounds, "rows": rows}
    save(report, options.out, "images", page(report))
    print(page(report))


if __name__ == "__main__":
    main()
