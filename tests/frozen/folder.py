"""The folders of frozen files, one for each version of dinoneck that wrote some, and the records of what they gave.

``tests/fixtures/VERSION`` holds the files themselves, ``expected.json`` with what they say (a line
for each of them) and ``expected.safetensors`` with the numbers: inputs, and what was computed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"
FACTS = "expected.json"
NUMBERS = "expected.safetensors"
# between a file's name and that of a number; no task, column or file may have it in its name
SEPARATOR = ":"


@dataclass(frozen=True)
class FrozenFile:
    """A frozen file or folder, and what was recorded when it was written.

    Attributes:
        version: the dinoneck that wrote it.
        name: its path in the version's folder, such as ``heads/linear.safetensors``.
        facts: what it says, in plain values.
    """

    version: str
    name: str
    facts: dict[str, Any]

    @property
    def path(self) -> Path:
        """Where it lies; tests write to copies only."""
        return FIXTURES / self.version / self.name

    def numbers(self, group: str = "") -> dict[str, Tensor]:
        """Return the recorded tensors whose names begin with ``group/``, without that; all of them for no group."""
        prefix = f"{self.name}{SEPARATOR}"
        if group:
            prefix += f"{group}/"
        numbers = {}
        for key, value in _load_numbers(FIXTURES / self.version / NUMBERS).items():
            if key.startswith(prefix):
                numbers[key.removeprefix(prefix)] = value
        return numbers

    def __str__(self) -> str:
        return f"{self.version}/{self.name}"


def frozen_files(folder: str) -> list[FrozenFile]:
    """Return the recorded files of every version in one of its folders, such as ``heads``."""
    found = []
    for facts_file in sorted(FIXTURES.glob(f"*/{FACTS}")):
        for name, facts in json.loads(facts_file.read_text()).items():
            if name.startswith(f"{folder}/"):
                found.append(FrozenFile(facts_file.parent.name, name, facts))
    return found


def is_frozen(name: str) -> bool:
    """Return whether some version wrote a file of this name and recorded what it gives."""
    folder = name.partition("/")[0]
    return name in {file.name for file in frozen_files(folder)}


@functools.cache
def _load_numbers(path: Path) -> dict[str, Tensor]:
    return load_file(path)


class VersionFolder:
    """The folder of one version, to which files and records are added; what is recorded is never replaced.

    Args:
        path: ``tests/fixtures/VERSION``; it is made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts: dict[str, Any] = {}
        self._numbers: dict[str, Tensor] = {}
        path.mkdir(parents=True, exist_ok=True)
        if (path / FACTS).exists():
            self._facts = json.loads((path / FACTS).read_text())
        if (path / NUMBERS).exists():
            self._numbers = load_file(path / NUMBERS)

    def new_path(self, name: str) -> Path:
        """Return where a new file goes; its folder is made.

        Raises:
            FileExistsError: if it is there already: an earlier call was interrupted before it
                recorded what the file gives.
        """
        path = self.path / name
        if path.exists():
            raise FileExistsError(f"{path} is there, but not in {FACTS}; delete it and try again")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def record(self, name: str, facts: Mapping[str, Any], numbers: Mapping[str, Tensor]) -> None:
        """Record what a new file says and gives."""
        if name in self._facts:
            raise ValueError(f"{name} is recorded already, and records of frozen files stay")
        self._facts[name] = plain(facts)
        for key, value in numbers.items():
            self._numbers[f"{name}{SEPARATOR}{key}"] = value.detach().contiguous()
        lines = []
        for recorded_name, recorded_facts in sorted(self._facts.items()):
            line = json.dumps(recorded_facts, sort_keys=True, separators=(",", ":"))
            lines.append(f"{json.dumps(recorded_name)}:{line}")
        (self.path / FACTS).write_text("{\n" + ",\n".join(lines) + "\n}\n")
        save_file(self._numbers, self.path / NUMBERS)


def plain(value: Any) -> Any:
    """Return a value as a JSON file gives it back: tuples as lists."""
    return json.loads(json.dumps(value))
