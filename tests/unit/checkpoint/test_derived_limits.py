"""A page or configuration of a stranger takes ``dinoneck verify`` no longer than its length."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dinoneck import PatchMeanHead, Task, save_head
from dinoneck.checkpoint import derived
from dinoneck.cli.main import main

MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_head(tmp_path / "head.safetensors", PatchMeanHead(4, [Task("a")], hidden_dim=2))
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        "![" * 40_000,
        "![](" * 40_000,
        "![](a" * 40_000,
        "!" + "[" * 80_000,
        'HeadCheckpoint.load("' * 20_000,
        'HeadCheckpoint.load("a' * 20_000,
        "---\n" * 60_000,
        f"---\n{MERGED}---\n",
        "---\n" + "a: [1, 2, {b: c}]\n" * 20_000 + "---\n",
        "---\n" + "[" * 15_000 + "\n---\n",
        "---\n? [a]\n: b\n---\n",
        "---\na: 2026-13-45\n---\n",
    ],
)
def test_any_page_is_compared_in_no_time(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text(page, encoding="utf-8")
    before = time.process_time()
    assert main(["verify", str(folder)]) == 0
    assert time.process_time() - before < 3
    assert "differs from what the header gives" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["[" * 900, "[" * 100_000, '{"a":' * 400 + "1" + "}" * 400, "9" * 5000, '{"\\ud800":1}']
)
def test_any_configuration_is_told(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text(text)
    assert main(["verify", str(folder)]) == 1
    assert "derived file differs" in capsys.readouterr().err


def test_pictures_and_front_matter_are_still_found() -> None:
    assert derived._PICTURE.findall("![a b](figures/a-b.png) ![](c.png) ![x](http://a/b)") == [
        "figures/a-b.png",
        "c.png",
    ]
    assert derived._front("---\na: 1\nb: [x]\n---\n# page\n") == {"a": 1, "b": ["x"]}
