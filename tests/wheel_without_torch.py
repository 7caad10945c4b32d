"""``python -m tests.wheel_without_torch FOLDER``: predict with an exported file from the wheel, without torch.

The environment gets the wheel and the list that ``python -m dinoneck.runtime`` prints, from the
package index. Its size and the time from the command to the result are printed.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.wheel import ROOT, run

# writes cover.safetensors, cover.onnx, image.jpg and expected.json into the folder that it runs in
MAKE_FILES = """
import json
import numpy as np
import torch
from PIL import Image
from dinoneck import FPNHead, Predictor, Task, load_backbone, save_head
from dinoneck.data import Preprocessing
from dinoneck.export import export_model
torch.manual_seed(0)
backbone = load_backbone("dinoneck_tiny", layers=[0])
cover = Task("cover", dim=3, kind="segmentation", labels=("soil", "clover", "grass"))
head = FPNHead(64, [Task("mass", kind="density", unit="g"), cover], num_layers=1)
recipe = Preprocessing(16, size=(224, 224))
save_head("cover.safetensors", head, backbone=backbone, preprocess=recipe)
export_model("cover.safetensors", "cover.onnx", maps=True)
pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
Image.fromarray(pixels).resize((800, 600)).save("image.jpg", quality=95)
[row] = Predictor("cover.safetensors")("image.jpg")
shares = dict(zip(cover.labels, row["cover"].tolist()))
json.dump({"mass": row["mass"], **shares}, open("expected.json", "w"))
"""
TOLERANCE = 1e-4


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [wheel] = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "env", cwd=folder)
    programs = folder / "env" / "bin"
    python = programs / "python"
    num_bytes_before = size_of(folder / "env")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    requirements = folder / "requirements.txt"
    requirements.write_text(run(python, "-m", "dinoneck.runtime", cwd=folder))
    run(python, "-m", "pip", "install", "--quiet", "-r", requirements, cwd=folder)
    if [*(folder / "env").rglob("site-packages/torch")]:
        sys.exit("the environment has torch")
    num_bytes = size_of(folder / "env") - num_bytes_before

    with tempfile.TemporaryDirectory() as outside:
        place = Path(outside)
        run(sys.executable, "-c", MAKE_FILES, cwd=place)
        words = ["predict", "image.jpg", "--heads", "cover.onnx", "--out", "p.csv"]
        started = time.perf_counter()
        run(programs / "dinoneck", *words, cwd=place)
        seconds = time.perf_counter() - started
        run(programs / "dinoneck", *words, "--overlay", "o", "--maps", "m", cwd=place)
        if not (place / "o" / "image.jpg").is_file():
            sys.exit("there is no overlay")
        [row] = csv.DictReader((place / "p.csv").open(newline=""))
        expected = json.loads((place / "expected.json").read_text())
        for name, value in expected.items():
            if abs(float(row[name]) - value) > TOLERANCE * max(1.0, abs(value)):
                sys.exit(f"{name} is {row[name]}; the head file gives {value}")
        refusal = subprocess.run(
            [programs / "dinoneck", *words[:3], "cover.safetensors", *words[4:]],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
        if "needs torch" not in refusal.stderr:
            sys.exit(f"a head file is refused with: {refusal.stderr}")
    print(
        f"{wheel.name} without torch: {num_bytes / 1e6:.0f} MB in the environment, "
        f"{seconds:.1f} s from the command to the CSV"
    )


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
