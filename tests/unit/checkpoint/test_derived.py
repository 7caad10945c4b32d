"""``dinoneck verify`` on a folder derives config.json and README.md again: what speaks of another head is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.hub_server import WRITER, Hub

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task
from dinoneck.checkpoint import push_to_hub
from dinoneck.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def made(tiny: Backbone, seed: int = 0) -> HeadCheckpoint:
    torch.manual_seed(seed)
    training = {"metrics": {"r2": 0.5}, "data": {"name": "me/pasture"}}
    head = PatchMeanHead(64, [Task("a", unit="g")])
    return HeadCheckpoint.from_module(head, backbone=tiny, license="MIT", training=training)


@pytest.fixture
def folder(hub: Hub, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub repository as ``hf download --local-dir`` leaves it."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    (tmp_path / "gate.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    push_to_hub(made(tiny), "me/one", figures=[tmp_path / "gate.png"])
    repo = hub.repos["me/one"]
    for name, content in repo.commits[repo.branches["main"]].items():
        file = tmp_path / "one" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "one"


def verified(folder: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert main(["verify", str(folder)]) == code
    told = capsys.readouterr()
    return told.err if code else told.out


def test_what_was_pushed_is_what_is_derived(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = verified(folder, capsys)
    for name in ("config.json", "README.md"):
        assert f"ok       {folder / name}  is what the header gives\n" in told
    for name in ("config.json", "README.md"):
        (folder / name).unlink()
    told = verified(folder, capsys)
    assert "config.json" not in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace('"digest": "sha256:', '"digest": "sha256:0'), "digest is"),
        (lambda text: text.replace('"library_name"', '"library"'), "library_name is missing, the header gives"),
        (lambda text: text.replace("{", '{"more": 1,', 1), "more is 1, the header gives missing"),
        (lambda text: text.replace("head", "tail"), "head"),
        (lambda text: text[:-3], "is no JSON"),
        (lambda _: "[1]", "holds list; expected an object"),
        (lambda _: "[" * 100_000, "is no JSON"),
        (lambda text: text + " " * (1 << 20), "has more than 1048576 bytes"),
    ],
    ids=range(8),
)
def test_another_config_is_refused(
    change: Callable[[str], str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "config.json"
    file.write_text(change(file.read_text()))
    answer = verified(folder, capsys, 1)
    assert answer.startswith(f"differs  {file}  derived file differs: ")
    assert told in answer
    assert answer.count("\n") == 1


def test_spelling_does_not_count_in_the_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text())).replace(" ", "\r\n"))
    assert f"ok       {file}" in verified(folder, capsys)


def test_people_edit_pages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "README.md"
    page = file.read_text()
    file.write_text(page + "\n## Thanks\n")
    assert f"note     {file}  differs from what the header gives: edited, or made by another" in verified(
        folder, capsys
    )
    file.write_text(page.replace("license: mit", "license: apache-2.0").replace("value: 0.5", "value: 0.9"))
    told = verified(folder, capsys)
    assert "among them license" in told
    assert "model-index" in told
    for text in (
        "# my own page\n",
        "---\n- no mapping\n---\n",
        "---\n&a [*a\n---\n",
        '---\nHeadCheckpoint.load("a--b/c")',
    ):
        file.write_text(text)
        assert f"note     {file}  differs" in verified(folder, capsys)
    file.write_bytes(b"\xff\xfe")
    assert f"note     {file}  cannot be compared" in verified(folder, capsys)


def test_the_page_of_another_head_is_refused(folder: Path, tiny: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    made(tiny, 7).save(folder / "head.safetensors")
    told = verified(folder, capsys, 1)
    assert f"differs  {folder / 'config.json'}  derived file differs: digest is " in told
    assert f"differs  {folder / 'README.md'}  derived file differs: speaks of sha256:" in told


def test_files_of_others_are_not_looked_at(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of heads under other names, beside somebody's config.json."""
    made(tiny).save(tmp_path / "fold0.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert "config.json" not in verified(tmp_path, capsys)


def test_a_refusal_does_not_end_it(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tiny).save(tmp_path / "h.safetensors")
    (tmp_path / "empty").mkdir()
    files = [tmp_path / "empty", tmp_path / "none.safetensors", tmp_path / "h.safetensors"]
    assert main(["verify", *map(str, files)]) == 1
    told = capsys.readouterr()
    assert f"refused  {files[0]}  at step 'file': the folder {files[0]} holds no head files" in told.err
    assert f"refused  {files[1]}  at step 'file': there is no head file" in told.err
    assert told.out.startswith(f"ok       {files[2]}  patch_mean  sha256:")
