"""examples/onnx_runtime answers what the predictor answers, in a process that has no torch and no dinoneck."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import kit

from dinoneck import DenseHead, HeadEnsemble, Predictor, TargetTransform, Task
from dinoneck.data import Preprocessing
from dinoneck.export import export_model

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "onnx_runtime"
MASS = Task(
    "mass",
    unit="g",
    activation="softplus",
    transform=TargetTransform(mean=40.0, std=20.0),
    minimum=0.0,
)
STATE = Task("state", dim=3, kind="classification", labels=("a", "b", "c"))
NDVI = Task("ndvi", kind="dense")
# any import of these fails, as in an environment without them
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "dinoneck", "transformers", "onnx"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


HEADS = kit.randomised(
    HeadEnsemble([kit.head(MASS, STATE), DenseHead(64, [NDVI], hidden_dim=8, depth=0)])
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_model(HEADS, path, backbone=kit.backbone(layers=[0]), check=False)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEGs of odd sizes: landscape, small; a JPEG and a grey TIFF turned by EXIF tags; a 16-bit and a palette PNG."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)

    def picture(height: int, width: int) -> Image.Image:
        coarse = generator.integers(
            0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8
        )
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(331, 517).save(folder / "wide.jpg", quality=90)
    picture(301, 467).save(folder / "turned.jpg", exif=exif)
    picture(160, 230).convert("L").save(folder / "turned.tif", exif=exif)
    picture(47, 61).save(folder / "small.jpg")
    Image.fromarray(generator.integers(0, 65536, (91, 133), dtype=np.uint16)).save(
        folder / "deep.png"
    )
    picture(120, 90).quantize(16).save(folder / "palette.png")
    return sorted(folder.iterdir())


def prepared_as(model: Path, recipe: Preprocessing, path: Path) -> Path:
    """The model, with images prepared in another way."""
    onnx = pytest.importorskip("onnx")
    changed = onnx.load(model)
    (entry,) = (entry for entry in changed.metadata_props if entry.key == "dinoneck_export")
    entry.value = json.dumps({**json.loads(entry.value), "preprocess": recipe.record()})
    onnx.save(changed, path)
    return path


RECIPES: dict[str, dict[str, Any]] = {
    "crop": {"size": (80, 96), "resize": "crop", "interpolation": "bilinear", "blur": 5},
    "bits": {"size": (80, 96), "interpolation": "area", "bits": 16},
    "centred": {"size": (90, 90), "resize": "pad", "pad_to": "center", "interpolation": "area"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_answers_what_the_predictor_answers(
    name: str, model: Path, images: list[Path], tmp_path: Path
) -> None:
    recipe = Preprocessing(patch_size=16, **RECIPES[name])
    words = [
        prepared_as(model, recipe, tmp_path / "m.onnx"),
        *images,
        "--csv",
        tmp_path / "a.csv",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-c", ALONE, FOLDER / "predict.py", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with (tmp_path / "a.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == [str(image) for image in images]
    assert list(table[0]) == ["image", "mass", "state:a", "state:b", "state:c", "ndvi"]
    predictor = Predictor(HEADS, kit.backbone(layers=[0]), preprocess=recipe)
    # Pillow rounds some pixels another way than torch
    rel = 2e-3 if recipe.interpolation == "bilinear" else 1e-4
    for row, wanted, line in zip(table, predictor(images), done.stdout.splitlines(), strict=True):
        assert float(row["mass"]) == pytest.approx(wanted["mass"], rel=rel)
        assert [float(row[f"state:{part}"]) for part in "abc"] == pytest.approx(
            wanted["state"].tolist(), rel=rel
        )
        assert float(row["ndvi"]) == pytest.approx(wanted["ndvi"], rel=rel, abs=1e-5)
        printed = re.fullmatch(re.escape(row["image"]) + r": mass (\S+) g, state .*", line)
        assert printed is not None and float(printed.group(1)) == pytest.approx(
            wanted["mass"], rel=1e-3
        )
