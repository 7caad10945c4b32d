"""Recorded results of whole runs: the cases of ``tests/against/training.py`` and ``objects.py``.

``python -m tests.golden.runs CASE ...`` records the named cases and leaves the others as they are:
see README.md. ``runs.json`` keeps, per case and file, the entries of reports and logs, the columns
of tables, the header of head files, and of every tensor of a final head its shape, norm and two
projections.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.against import objects, training
from tests.against.canonical import METADATA
from tests.against.compare import ARRAY, without_type

FILE = Path(__file__).with_name("runs.json")
CASES: dict[str, Callable[[Path], Any]] = {
    **{f"training/{name}": case for name, case in training.CASES.items()},
    **{f"objects/{name}": case for name, case in objects.CASES.items()},
}

TOLERANCE = 3e-3
"""Of numbers. The kernels of other CPUs gave at most 1e-3; the runs are in float32."""
SMALLEST = 1e-3
"""Share of the largest norm in a file that a smaller norm counts as: steps of Adam move a bias with
a gradient of zero by its rounding."""
DIGITS = 6
PROJECTIONS = 2

LEFT_OUT = (
    "*/report.json/config",  # what the case states, and the defaults
    "*/data.json",  # the summary of the data, which no result depends on
    "*/data.txt",
    "*/data.jpg",
    "*/report.json/data",
    "training/evaluation*/data",
    "*/trained_on.csv/blake2b",  # bytes of PNG files differ between versions of their library
    "*.safetensors/header/training_images",  # hashes of the bytes of PNG files
    "*.safetensors/header/tensors",  # names and shapes, which are recorded with the statistics
    # hashes of trained weights
    "training/unfrozen_*.safetensors/header/backbone/weights_sha256",
    # AP is 0 but for rounding, and chooses the epoch of the weights
    "objects/detector/report.json/best",
    "objects/detector/log.jsonl/1",
    "objects/detector/detector.safetensors/header/training",
    "objects/detector/detector.safetensors/header/config/min_score",
    "objects/detector/detector.safetensors/tensors/*/statistics",
)
"""Addresses of what is not recorded, of which everything below is left out too."""
TOLERANCES = {"objects/detector/log.jsonl/0": 1e-2}
"""Address -> another tolerance: batch normalisation of two images enlarges differences."""


def measure(name: str, folder: Path) -> Any:
    """Run a case in an empty folder; return what is recorded of it."""
    torch.manual_seed(0)
    np.random.seed(0)
    result = without_type(CASES[name](folder))
    if "files" not in result:
        return without_left_out(plain(result), name)
    recorded = {}
    for path, content in result["files"].items():
        address = f"{name}/{path}"
        if not is_left_out(address):
            recorded[path] = without_left_out(record_file(path, content), address)
    return recorded


def is_left_out(address: str) -> bool:
    """Whether something is not recorded."""
    return any(fnmatch.fnmatchcase(address, pattern) for pattern in LEFT_OUT)


def record_file(path: str, content: Any) -> Any:
    """Return what is recorded of a file from its form in ``tests/against/canonical.py``."""
    if path.endswith(".csv"):
        return record_table(content)
    if path.endswith(".safetensors"):
        return record_tensors(path, content)
    return plain(content)


def plain(form: Any) -> Any:
    """Return a plain form without its types, and with rounded numbers."""
    content = without_type(form)
    if isinstance(content, dict):
        recorded = {key: plain(value) for key, value in content.items()}
        if "confusion_matrix" in recorded:
            recorded["confusion_matrix"] = as_floats(recorded["confusion_matrix"])
        return recorded
    if isinstance(content, list):
        return [plain(item) for item in content]
    if isinstance(content, float):
        return rounded(content)
    return content


def as_floats(matrix: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return counts of a matrix as numbers that are compared with a tolerance: pixels change sides."""
    return [[float(count) for count in row] for row in matrix]


def rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")


def record_table(lines: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns of a table: numbers with a point as such, all others as texts."""
    head, *rows = csv.reader(lines)
    columns: dict[str, list[Any]] = {}
    for position, name in enumerate(head):
        cells = [row[position] for row in rows if row]
        columns[name] = numbers_of(cells)
    return columns


def numbers_of(cells: list[str]) -> list[Any]:
    if not any("." in cell for cell in cells):
        return cells
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return cells


def record_tensors(path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header of a head file, and of its tensors the shapes and statistics.

    Heads of folds have the header alone: the final head consists of them, and where it does not,
    the scores show them.
    """
    metadata = without_type(without_type(content["header"])[METADATA])
    recorded = {"header": plain(metadata["dinoneck"])}
    if not path.rpartition("/")[0].endswith(("heads", "baselines")):
        tensors = content["tensors"].items()
        recorded["tensors"] = {name: statistics(tensor[ARRAY]) for name, tensor in tensors}
    return recorded


def statistics(array: Mapping[str, Any]) -> dict[str, Any]:
    """Return dtype and shape of a tensor, its norm, and projections of values evenly spread over it."""
    positions = np.arange(len(array["sample"]))
    values = np.array(array["sample"])
    numbers = [array["norm"]]
    for i in range(PROJECTIONS):
        numbers.append(float(values @ np.cos((i + 1) * positions + i)))
    shape = "x".join(map(str, array["shape"]))
    return {
        "shape": f"{array['dtype'].removeprefix('torch.')} {shape}".strip(),
        "statistics": [rounded(number) for number in numbers],
    }


def without_left_out(value: Any, address: str) -> Any:
    """Return a value without what is not recorded."""
    if isinstance(value, dict):
        kept = {}
        for key, inner in value.items():
            inside = f"{address}/{key}"
            if not is_left_out(inside):
                kept[key] = without_left_out(inner, inside)
        return kept
    if isinstance(value, list):
        kept_items = []
        for position, inner in enumerate(value):
            inside = f"{address}/{position}"
            if not is_left_out(inside):
                kept_items.append(without_left_out(inner, inside))
        return kept_items
    return value


def differences(stored: Any, measured: Any, address: str) -> list[str]:
    """Return a line for everything that differs: numbers by more than their tolerance.

    A number in a list counts by the largest of the list, a number of a tensor by its norm.
    """
    if isinstance(stored, dict) and isinstance(measured, dict):
        if list(stored) != list(measured):
            return [f"{address}: keys {', '.join(measured)}; recorded are {', '.join(stored)}"]
        if address.endswith(".safetensors/tensors"):
            return differences_of_tensors(stored, measured, address)
        return differences_of_items(stored, measured, address)
    if isinstance(stored, list) and isinstance(measured, list):
        if len(stored) != len(measured):
            return [f"{address}: {len(measured)} values; recorded are {len(stored)}"]
        if are_floats(stored) and are_floats(measured):
            return differences_of_numbers(stored, measured, address)
        return differences_of_items(
            {str(position): item for position, item in enumerate(stored)},
            {str(position): item for position, item in enumerate(measured)},
            address,
        )
    if isinstance(stored, float) and isinstance(measured, float):
        return differences_of_numbers([stored], [measured], address)
    if stored != measured or type(stored) is not type(measured):
        return [f"{address}: {measured!r}; recorded is {stored!r}"]
    return []


def differences_of_items(
    stored: Mapping[str, Any], measured: Mapping[str, Any], address: str
) -> list[str]:
    lines = []
    for key, value in stored.items():
        lines += differences(value, measured[key], f"{address}/{key}")
    return lines


def are_floats(values: Sequence[Any]) -> bool:
    return all(isinstance(value, float) for value in values)


def differences_of_numbers(
    stored: Sequence[float], measured: Sequence[float], address: str
) -> list[str]:
    largest = max(map(abs, stored), default=0.0)
    bound = tolerance_at(address) * max(largest, smallest_scale(address))
    return lines_of_numbers(stored, measured, address, bound)


def tolerance_at(address: str) -> float:
    for prefix, tolerance in TOLERANCES.items():
        if address.startswith(prefix):
            return tolerance
    return TOLERANCE


def smallest_scale(address: str) -> float:
    """Return what a smaller number counts as: 1 for scores and losses, which may be near 0.

    The other numbers of a header are what the user states, and means of the targets.
    """
    if "/header/" in address and "/metrics/" not in address:
        return 0.0
    return 1.0


def differences_of_tensors(
    stored: Mapping[str, Any], measured: Mapping[str, Any], address: str
) -> list[str]:
    norms = [entry["statistics"][0] for entry in stored.values() if "statistics" in entry]
    smallest_norm = SMALLEST * max(norms, default=0.0)
    lines = []
    for name, entry in stored.items():
        inside = f"{address}/{name}"
        lines += differences(entry["shape"], measured[name]["shape"], f"{inside}/shape")
        if "statistics" in entry:
            numbers = entry["statistics"]
            bound = TOLERANCE * max(numbers[0], smallest_norm)
            lines += lines_of_numbers(numbers, measured[name]["statistics"], inside, bound)
    return lines


def lines_of_numbers(
    stored: Sequence[float], measured: Sequence[float], address: str, bound: float
) -> list[str]:
    for expected, number in zip(stored, measured, strict=True):
        both_nan = math.isnan(expected) and math.isnan(number)
        if not (both_nan or abs(expected - number) <= bound):
            return [f"{address}: {list(measured)}; recorded is {list(stored)}, within {bound:.2g}"]
    return []


def main(names: list[str]) -> None:
    """Record the named cases; the others stay as they are."""
    unknown = sorted(set(names) - CASES.keys())
    if unknown:
        sys.exit(f"there is no case {unknown[0]}")
    if not names:
        sys.exit(f"name the cases to record: {', '.join(CASES)}")
    torch.set_num_threads(1)
    stored = json.loads(FILE.read_text())
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            stored[name] = measure(name, Path(folder))
    FILE.write_text(spelled(stored))


def spelled(stored: Mapping[str, Any]) -> str:
    """Return the text of the records: one line for each entry of a case, in the order of the cases."""
    cases = []
    for name in CASES:
        if name in stored:
            lines = []
            for key, value in stored[name].items():
                text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
                lines.append(f"{json.dumps(key)}:{text}")
            cases.append(f"{json.dumps(name)}:{{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(cases) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
