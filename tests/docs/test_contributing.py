"""The example of CONTRIBUTING.md: one file and four lines make a neck that every part of the library knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import torch, dinoneck
from dinoneck import registry
from dinoneck.cli.main import main
neck = dinoneck.TokenMap(64, 8)
assert dinoneck.necks.TokenMap is dinoneck.TokenMap
assert registry.PURPOSES["token_map"].startswith("neck: ")
head = dinoneck.PyramidHead(neck=neck, tasks=[dinoneck.Task("mass")]).eval()
tokens = dinoneck.Tokens.from_patches(torch.randn(2, 6, 64), grid=(2, 3), patch_size=16)
for module, name in ((head, "head"), (neck, "neck")):
    module.save_pretrained(name, **({"backbone": dinoneck.load_backbone("dinoneck_tiny")} if name == "head" else {}))
again = dinoneck.load_head("head/head.safetensors")
assert torch.equal(again(tokens)["mass"], head(tokens)["mass"])
assert torch.equal(dinoneck.TokenMap.from_pretrained("neck")(tokens).maps[0], neck(tokens).maps[0])
assert main(["verify", "head/head.safetensors"]) == 0
"""
USE = ["-c", SCRIPT]
BATTERY = [
    "-m",
    "pytest",
    "-n",
    "0",
    "-q",
    "-m",
    "",
    "tests/contract",
    "-k",
    "token_map or every_registered",
]


def inserted(path: Path, before: str, line: str) -> None:
    """Put a line into a list, before its first entry."""
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, f"{before}    {line}\n", 1))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [USE, BATTERY], ids=["use", "contract"])
def test_one_file_and_four_lines(arguments: list[str], tmp_path: Path) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| `([\w/.]+)`(?:, `(\w+)`)? \| `(.*)` \|$", page, re.MULTILINE)
    lines = {(file, table): line for file, table, line in rows}
    assert list(lines) == [
        ("src/dinoneck/registry.py", "HOMES"),
        ("src/dinoneck/registry.py", "PURPOSES"),
        ("tests/contract/cases.py", "CASES"),
        ("docs/reference/necks.md", ""),
    ]
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "contract", tmp_path / "tests" / "contract")
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/kit.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "src/dinoneck/necks/token_map.py").write_text(source)
    registry = "src/dinoneck/registry.py"
    cases = "tests/contract/cases.py"
    for table in ("HOMES", "PURPOSES"):
        inserted(tmp_path / registry, f"{table}: dict[str, str] = {{\n", lines[registry, table])
    inserted(tmp_path / cases, "CASES = [\n", lines[cases, "CASES"])
    assert re.fullmatch(r"::: dinoneck\.\w+", lines["docs/reference/necks.md", ""])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(tmp_path / "src"), str(tmp_path))),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
