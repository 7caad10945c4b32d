"""``python -m tests.extras FOLDER``: what is installed does not change the numbers of the demo.

The wheel is installed with each set of extras in an environment of its own, from the package index.
Where a training is possible, the demo is run; everywhere its new images are predicted, with the head
of the environment ``train`` or, without torch, with the file that is exported from it. All numbers
are compared with those of ``train`` in torch, and the table is stored in
``benchmarks/results/matrix.json``.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import RESULTS, processor, write

from dinoneck.version import __version__
from tests.wheel import ROOT, run


@dataclass(frozen=True)
class Environment:
    """What is installed, and how it is used.

    Attributes:
        runtime: what computes its predictions.
        extras: of the package.
        trains: whether the demo, with its training, is run.
    """

    runtime: str
    extras: tuple[str, ...] = ()
    trains: bool = False


REFERENCE = "train"
"""The environment that the first pages install, with whose numbers the others are compared."""
WITHOUT_TORCH = "without torch"
EVERY_EXTRA = (
    "detection",
    "export",
    "fast",
    "geo",
    "hf",
    "lora",
    "masks",
    "ray",
    "serve",
    "train",
    "viz",
)
ENVIRONMENTS = {
    REFERENCE: Environment("torch", extras=("train",), trains=True),
    "plain": Environment("torch"),
    "fast": Environment("openvino", extras=("fast",)),
    "all": Environment("openvino", extras=EVERY_EXTRA, trains=True),
    WITHOUT_TORCH: Environment("onnxruntime"),
}
LARGEST_DIFFERENCE = 1e-3
"""Of a predicted number from that of the reference, relative to the largest one."""


def installed(folder: Path, wheel: Path, extras: tuple[str, ...]) -> Path:
    """Install the wheel with extras in a new environment; return the folder of its programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    wanted = f"dinoneck[{','.join(extras)}] @ {wheel.as_uri()}" if extras else str(wheel)
    install(folder / "bin" / "python", wanted)
    return folder / "bin"


def installed_without_torch(folder: Path, wheel: Path) -> Path:
    """Install the wheel and what ``python -m dinoneck.runtime`` lists; return the folder of its programs."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    install(python, "--no-deps", wheel)
    requirements = folder / "requirements.txt"
    requirements.write_text(run(python, "-m", "dinoneck.runtime", cwd=folder))
    install(python, "--requirement", requirements)
    return folder / "bin"


def install(python: Path, *wanted: object) -> None:
    """Install packages by uv, or by pip where uv finds none."""
    uv = Path(sys.executable).with_name("uv")
    if uv.is_file():
        words = [uv, "pip", "install", "--quiet", "--python", python, *wanted]
        if subprocess.run([str(word) for word in words], check=False).returncode == 0:
            return
    run(python, "-m", "pip", "install", "--quiet", *wanted, cwd=python.parent)


def predicted(programs: Path, head: Path, images: Path, *, runtime: str) -> dict[str, list[float]]:
    """Predict images in an environment; image -> its numbers."""
    out = images.parent / "predicted.csv"
    words = ["predict", images, "--heads", head, "--out", out, "--runtime", runtime]
    run(programs / "dinoneck", *words, cwd=images.parent)
    numbers = {}
    with out.open(newline="") as file:
        for row in csv.DictReader(file):
            image = row.pop("image")
            numbers[image] = [float(value) for value in row.values() if is_number(value)]
    return numbers


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def largest_difference(numbers: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """Return the largest difference of two predictions, relative to the largest expected number.

    Raises:
        ValueError: if the images or the counts of their numbers differ.
    """
    largest = max(abs(value) for values in expected.values() for value in values)
    differences = []
    for image in sorted({*numbers, *expected}):
        for value, other in zip(numbers[image], expected[image], strict=True):
            differences.append(abs(value - other))
    return max(differences) / largest


def score(demo: Path) -> float:
    """The R² of the demo's number on held-out images."""
    report = json.loads((demo / "run" / "report.json").read_text())
    return float(report["scores"]["trees"]["head"]["r2"]["pooled"])


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["DINONECK_RUNTIME"] = "torch"  # of the demo; predictions state theirs
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    [wheel] = folder.glob("*.whl")

    programs = {}
    demos = {}
    for name, environment in ENVIRONMENTS.items():
        place = folder / name.replace(" ", "-")
        if name == WITHOUT_TORCH:
            programs[name] = installed_without_torch(place, wheel)
        else:
            programs[name] = installed(place, wheel, environment.extras)
        if environment.trains:
            demos[name] = folder / f"demo-{name}"
            run(programs[name] / "dinoneck", "demo", "--out", demos[name], cwd=folder)

    demo = demos[REFERENCE]
    head = demo / "run" / "head.safetensors"
    exported = folder / "head.onnx"
    words = ["export", head, "--with-backbone", "--format", "onnx", "--out", exported]
    run(programs["all"] / "dinoneck", *words, cwd=folder)

    images = demo / "new" / "images"
    expected = predicted(programs[REFERENCE], head, images, runtime="torch")
    rows = {}
    differences = {}
    for name, environment in ENVIRONMENTS.items():
        file = exported if name == WITHOUT_TORCH else head
        numbers = predicted(programs[name], file, images, runtime=environment.runtime)
        row: dict[str, float | str] = {
            "extras": ", ".join(environment.extras),
            "predicts in": environment.runtime,
        }
        if name in demos:
            row["R² of the demo"] = score(demos[name])
        differences[name] = largest_difference(numbers, expected)
        row["largest difference"] = differences[name]
        rows[name] = row
        print(name, row, flush=True)

    machine = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "as torch chooses"),
        "system": platform.system(),
        "versions": {"dinoneck": __version__, "python": platform.python_version()},
    }
    write(
        RESULTS / "matrix.json",
        "matrix",
        "python -m tests.extras FOLDER",
        machine,
        {"extras": rows},
    )
    differing = [name for name, value in differences.items() if value > LARGEST_DIFFERENCE]
    if differing:
        sys.exit(f"the numbers of {', '.join(differing)} differ from those of {REFERENCE}")
    scores = {score(its_demo) for its_demo in demos.values()}
    if max(scores) - min(scores) > LARGEST_DIFFERENCE:
        sys.exit(f"the demo's scores differ: {sorted(scores)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
