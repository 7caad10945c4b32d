"""The example of CONTRIBUTING.md: one file and three lines make a neck that every part of the library knows."""

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
from dinoneck.cli.main import main
neck = dinoneck.TokenMap(64, 8)
assert dinoneck.necks.TokenMap is dinoneck.TokenMap
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
def test_one_file_and_three_lines(arguments: list[str], tmp_path: Path) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = dict(re.findall(r"^\| `([\w/.]+)` \| `(.*)` \|$", page, re.MULTILINE))
    assert list(lines) == [
        "src/dinoneck/registry.py",
        "tests/contract/cases.py",
        "docs/reference/necks.md",
    ]
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "contract", tmp_path / "tests" / "contract")
    for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/kit.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "src/dinoneck/necks/token_map.py").write_text(source)
    inserted(
        tmp_path / "src/dinoneck/registry.py",
        "HOMES: dict[str, str] = {\n",
        lines["src/dinoneck/registry.py"],
    )
    inserted(tmp_path / "tests/contract/cases.py", "CASES = [\n", lines["tests/contract/cases.py"])
    assert re.fullmatch(r"::: dinoneck\.\w+", lines["docs/reference/necks.md"])
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
