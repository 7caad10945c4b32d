"""What a verb writes replaces no input; streams that are closed or full, and a batch system's SIGTERM."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.unit.store.store_samples import make, write_photos

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.cli import main as command
from dinoneck.cli.main import main


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    preprocess = tiny.preprocess.changed(size=(32, 48))
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=tiny, preprocess=preprocess)
    return tmp_path / "h.safetensors"


@pytest.mark.parametrize("verb", [["card"], ["export", "--format", "state-dict"]])
@pytest.mark.parametrize("hard", [False, True])
def test_no_head_is_replaced(verb: list[str], hard: bool, head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither by its name, nor by a hard link to it."""
    before, out = head.read_bytes(), head
    if hard:
        out = head.parent / "link.safetensors"
        os.link(head, out)
    assert main([verb[0], str(head), *verb[1:], "--out", str(out)]) == 1
    assert "is one of the inputs and would be replaced" in capsys.readouterr().err
    assert head.read_bytes() == before


def test_a_store_is_not_written_into(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path, ["p/a.png"])
    make(tmp_path / "s", tiny, patterns="none").extract(tmp_path / "p")
    for out in ("s", "s/inside"):
        job = ["store", "convert", str(tmp_path / "s"), "--format", "pt", "--overwrite", "--out", str(tmp_path / out)]
        assert main(job) == 1
        assert "lies in the store" in capsys.readouterr().err


def test_a_conversion_that_ends_early_leaves_no_files(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path, ["p/a.png", "p/b.png"])
    make(tmp_path / "s", tiny, patterns="none").extract(tmp_path / "p")
    calls: list[object] = []

    def second(*_: object) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("dinoneck.store.converters._write", second)
    job = ["store", "convert", str(tmp_path / "s"), "--format", "npz", "--out", str(tmp_path / "new" / "files")]
    assert main(job) == command.INTERRUPTED
    assert os.listdir(tmp_path / "new") == []


def test_outputs_are_looked_at_before_the_work(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of the output's name, and photos that a CSV cannot name; a folder that is named like a photo is none."""
    write_photos(head.parent, ["p/a.png"])
    (head.parent / "o.csv").mkdir()
    job = ["predict", str(head.parent / "p"), "--heads", str(head), "--out"]
    assert main([*job, str(head.parent / "o.csv")]) == 1
    assert "o.csv is a folder" in capsys.readouterr().err
    (head.parent / "p" / "dir.png").mkdir()
    assert main([*job, str(head.parent / "q.csv")]) == 0
    try:
        (head.parent / "p" / os.fsdecode(b"\xff.png")).write_bytes((head.parent / "p" / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    assert main([*job, str(head.parent / "r.csv")]) == 1
    assert "is no Unicode text" in capsys.readouterr().err
    tokens = ["viz", "tokens", str(head.parent / "p"), "--backbone", "dinoneck_tiny", "--size", "32x48"]
    assert main([*tokens, "--out", str(head.parent / "t.png")]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--threads", "1000000"], "expected an integer 1 ... 1024"),
        (["--backbone-source", "timm"], "leave out --backbone-source"),
    ],
)
def test_bench_refuses(arguments: list[str], told: str, head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["bench", str(head), *arguments]) == 1
    except SystemExit as end:
        assert end.code == 2
    assert told in capsys.readouterr().err


def test_bench_of_a_backbone_has_no_revision(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--backbone", "dinoneck_tiny", "--size", "32", "--revision", "x"]) == 1
    assert "--revision is for heads" in capsys.readouterr().err


def test_extract_names_a_device_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path, ["a.png"])
    job = ["extract", str(tmp_path), "--out", str(tmp_path / "s"), "--backbone", "dinoneck_tiny", "--size", "32x48"]
    assert main([*job, "--device", "nonsense"]) == 1
    assert "device 'nonsense' cannot be used here" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
@pytest.mark.parametrize(
    ("streams", "code", "told"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 1, "error: the output cannot be written"),
    ],
)
def test_closed_and_full_streams(streams: str, code: int, told: str) -> None:
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    shown = f'"{sys.executable}" -m dinoneck backbones --json {streams}'
    done = subprocess.run(["/bin/sh", "-c", shown], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert told in done.stderr.splitlines()[-1:][0] if told else done.stderr.count("error") == 0


@pytest.mark.skipif(os.name != "posix", reason="other systems end processes at once")
def test_sigterm_is_cleaned_up_after(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The code is 143, what is open is left in order, and the process handles the signal as before."""
    import signal

    left: list[str] = []

    def work(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):  # impatience: what is being cleared away is not torn
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            left.append("in order")
        return 0

    monkeypatch.setattr("dinoneck.cli.backbones.run", work)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["backbones"]) == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left == ["in order"]
    assert capsys.readouterr().err == "terminated\n"
