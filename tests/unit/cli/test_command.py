"""The command itself: usage, exit codes, --json, completion, streams, signals, and what it imports."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.store.store_samples import write_images

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.cli import files as files_verbs
from dinoneck.cli.main import command, main
from dinoneck.errors import missing_extra
from dinoneck.version import __version__

HEAVY = {"torch", "numpy", "timm", "torchvision", "PIL", "matplotlib", "huggingface_hub", "tqdm", "packaging"}
LOOK = (
    "import sys\nfrom dinoneck.cli.main import main\n"
    "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
    f"print(code, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
)


def given(line: str) -> dict[str, Any]:
    """The arguments that the words of a line are taken for."""
    verb, _, words = line.partition(" ")
    return command(verb, words.split()).keywords


def test_lists_take_several_values_and_images_stand_first() -> None:
    """No second value of an option is an image, and no image is a value of an option."""
    words = given("predict a.png b --heads h1 h2 --tile 32x64 --out o.csv")
    assert [path.name for path in words["images"]] == ["a.png", "b"]
    assert (words["heads"], words["tile"]) == ((("h1", "h2"),), (32, 64))
    words = given("predict --heads h1 h2 --out o.csv a.png")
    assert (words["heads"], [path.name for path in words["images"]]) == ((("h1", "h2"),), ["a.png"])
    assert given("extract a.png --out s --size 32x48 --layers 2 -1")["backbone"].layers == (2, -1)
    run = given("train --out x --targets a b --layers 2 5")["run"]
    assert (run.data.targets, run.backbone.layers) == (("a", "b"), (2, 5))


def test_flags_win_over_the_training_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("optim: {epochs: 7, lr: 0.5}\n")
    run = given(f"train {tmp_path / 'run.yaml'} --images folder --epochs 3 --out x")["run"]
    assert (run.data.images, run.optim.epochs, run.optim.lr) == ("folder", 3, 0.5)


def seen_from(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()[-1]


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    """One process: the help of every verb. Its own: reading headers, and refusals before the work."""
    script = (
        "import sys, io, contextlib\nfrom dinoneck.cli.main import main, VERBS\n"
        "for verb in ('', *VERBS):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([*filter(None, [verb]), '--help'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    save_head(tmp_path / "h.safetensors", PatchMeanHead(4, [Task("a")]))
    head = str(tmp_path / "h.safetensors")
    for arguments in (
        ["list", "backbones", "dinov3"],
        ["list", "heads"],
        ["inspect", head],
        ["inspect", str(tmp_path)],
    ):
        assert seen_from(*arguments) == "0 []", arguments
    (tmp_path / "t.csv").write_text("image,a\nx.png,1\n")
    wrong = ["train", "--csv", str(tmp_path / "t.csv"), "--targets", "b", "--out", str(tmp_path / "r")]
    assert seen_from(*wrong) == "1 ['numpy']"
    assert seen_from("predict", str(tmp_path), "--heads", "h", "--out", "no/o.csv") == "1 []"


def test_one_document_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "no.safetensors")
    assert main(["inspect", path, "--json"]) == 1
    printed = capsys.readouterr()
    message = f"the head file {path!r} cannot be opened: No such file or directory; expected a .safetensors file"
    assert json.loads(printed.out) == {
        "verb": "inspect", "ok": False, "dinoneck": __version__,
        "error": {"type": "CheckpointError", "message": message, "step": "file"},
    }  # fmt: skip
    assert printed.err == f"error: {message}\n"
    assert main(["list", "backbones", "dinov3_vits16"]) == 0
    for_people = capsys.readouterr().out
    assert main(["--verbose", "list", "backbones", "--json", "dinov3_vits16"]) == 0
    printed = capsys.readouterr()
    assert printed.err == for_people
    assert json.loads(printed.out)["backbones"][0]["patch"] == 16


def answering(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Make ``inspect`` return a value, or raise it."""

    def work(file: Path) -> dict[str, Any]:
        if isinstance(value, BaseException):
            raise value
        return value  # type: ignore[no-any-return]

    monkeypatch.setattr(files_verbs, "inspect", work)
    work.__annotations__ = {"file": Path}


def test_documents_hold_only_what_json_has(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, {"a": math.nan, "b": (Path("c"), math.inf), "d": "\x1b[2J", "ok": False})
    assert main(["inspect", "--file", "x", "--json"]) == 1
    out = capsys.readouterr().out
    assert json.loads(out) == {
        "verb": "inspect", "ok": False, "dinoneck": __version__, "a": None, "b": ["c", None], "d": "\x1b[2J"
    }  # fmt: skip
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (missing_extra("onnx", "export"), 1, "error: onnx is not installed; it comes with an extra: pip install "),
        (IndexError("out of range"), 1, "error: unexpected IndexError: out of range (--verbose shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file", "none.json"), 1, "error: none.json: No such file; check the name"),
    ],
)
def test_errors_end_in_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, error)
    assert main(["inspect", "--file", "x"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1
    if isinstance(error, IndexError):
        with pytest.raises(IndexError):
            main(["--verbose", "inspect", "--file", "x"])


@pytest.mark.skipif(os.name != "posix", reason="other systems end processes at once")
def test_sigterm_is_cleaned_up_after() -> None:
    """The code is 143, and a second signal does not stop the clean-up."""
    script = (
        "import os, signal, sys\nfrom dinoneck.cli import files, main\n"
        "def work():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        signal.pause()\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGTERM)\n        print('in order')\n"
        "files.doctor, sys.argv = work, ['dinoneck', 'doctor']\nsys.exit(main.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "in order\n", "interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
@pytest.mark.parametrize(
    ("streams", "code", "message"),
    [(">&-", 0, ""), (">&- 2>&-", 0, ""), ("> /dev/full", 1, "error: the output cannot be written")],
)
def test_closed_and_full_streams(streams: str, code: int, message: str) -> None:
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    shown = f'"{sys.executable}" -m dinoneck list backbones --json {streams}'
    done = subprocess.run(["/bin/sh", "-c", shown], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1:][0] if message else done.stderr.count("error") == 0


def test_a_reader_that_closes_the_pipe_is_code_141() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dinoneck", "list", "backbones"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


class Terminal(io.StringIO):
    """Where bars are drawn."""

    def isatty(self) -> bool:
        return True


def test_bars_are_for_terminals_and_lines_for_logs(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, ["p/a.png", "p/b.png"])
    head, chosen = str(tmp_path / "h.safetensors"), ["--backbone", "dinoneck_tiny"]
    save_head(head, PatchMeanHead(64, [Task("x")]), backbone=tiny, preprocess=tiny.preprocess.changed(size=(32, 48)))
    train = ["train", "--out", str(tmp_path / "r"), "--pasture", "6", "--folds", "2", "--epochs", "2", "--overwrite"]
    jobs = {
        "predict": ["predict", str(tmp_path / "p"), "--heads", head, "--out", str(tmp_path / "p.csv")],
        "train": [*train, *chosen],
    }
    for verb, job in jobs.items():
        assert main(job) == 0
        printed = capsys.readouterr().err
        assert "%|" not in printed, verb
        assert ("fold 1 is trained, 2 of 2" in printed) == (verb == "train")
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            assert main(job) == 0
        assert "%|" in terminal.getvalue(), verb
        capsys.readouterr()
    monkeypatch.setattr("dinoneck.progress._SECONDS", 0.0)
    assert main(jobs["train"]) == 0
    assert "steps: 1 of 2 in" in capsys.readouterr().err
