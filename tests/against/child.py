"""``python -m tests.against.child``: run the cases of a group with one dinoneck; started by the command.

The cases come from this checkout, and dinoneck from where PYTHONPATH and the interpreter say.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dinoneck
from tests.against.canonical import raised
from tests.against.groups import GROUPS
from tests.against.this_version import warning_categories

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "scipy")
"""Libraries that results depend on, which must be the same on both sides."""


def run_cases(
    group: str, names: Sequence[str], folder: Path
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Run the cases of a group, all if none is named.

    Returns:
        Case -> plain form of what it gives, and case -> categories of its warnings.
    """
    cases = import_module(f"tests.against.{group}").CASES
    unknown = [name for name in names if name not in cases]
    if unknown:
        sys.exit(f"{group} has no case {unknown[0]!r}; it has {', '.join(cases)}")
    results = {}
    warnings = {}
    for number, name in enumerate(names or cases):
        inside = folder / str(number)
        inside.mkdir()
        torch.manual_seed(0)
        np.random.seed(0)
        started = time.monotonic()
        with warning_categories() as categories:
            try:
                results[name] = cases[name](inside)
            except Exception as error:
                traceback.print_exc()
                results[name] = raised(error, inside)
        warnings[name] = categories
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    return results, warnings


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.against.child")
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("case", nargs="*", help="all cases if none is named")
    parser.add_argument("--source", type=Path, required=True, help="where dinoneck must lie")
    parser.add_argument("--folder", type=Path, required=True, help="an empty one to work in")
    parser.add_argument("--result", type=Path, required=True, help="the file to write")
    options = parser.parse_args()

    file = Path(str(dinoneck.__file__)).resolve()
    if not file.is_relative_to(options.source.resolve()):
        sys.exit(f"dinoneck came from {file}; expected {options.source}")
    torch.set_num_threads(1)
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    libraries["python"] = platform.python_version()
    cases, warnings = run_cases(options.group, options.case, options.folder.resolve())
    document = {"libraries": libraries, "cases": cases, "warnings": warnings}
    options.result.write_text(json.dumps(document))


if __name__ == "__main__":
    main()
