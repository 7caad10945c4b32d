"""The command itself: its verbs, their help, exit codes, completion, and that it starts without heavy imports."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.store.store_samples import write_photos

from dinoneck import Backbone, PatchMeanHead, Task, save_head
from dinoneck.cli.main import EARLIER_NAMES, VERBS, main, parser

HEAVY = {"torch", "numpy", "timm", "torchvision", "PIL", "matplotlib", "huggingface_hub", "shtab", "tqdm", "packaging"}
LOOK = (
    "import sys\nfrom dinoneck.cli.main import main\n"
    "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
    f"print(code, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
)


def parsers(
    parser_: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb and sub-verb with its parser."""
    for action in parser_._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield " ".join((*path, name)), sub
                yield from parsers(sub, (*path, name))


ALL = dict(parsers(parser()))


def examples(help_text: str) -> list[list[str]]:
    """The commands after ``example:``, as a shell would split them."""
    lines = help_text[help_text.index("example: ") + len("example: ") :].splitlines()
    return [shlex.split(line.strip()) for line in lines if line.strip()]


def test_the_verbs_are_these() -> None:
    assert VERBS == (
        "demo", "backbones", "extract", "train", "predict", "inspect", "verify", "diff", "migrate", "import-legacy",
        "push", "pull", "card", "bench", "viz", "export", "serve", "doctor", "store",
    )  # fmt: skip
    assert {"store convert", "store verify", "viz report"} <= set(ALL)
    listed = [
        line.split()[0] for line in parser().format_help().splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert listed == list(VERBS)


@pytest.mark.parametrize("verb", ALL)
def test_every_help_has_examples_that_parse(verb: str) -> None:
    told = ALL[verb].format_help()
    found = examples(told)
    name = EARLIER_NAMES.get(verb, verb)
    assert found[0][: 1 + len(name.split())] == ["dinoneck", *name.split()] or verb in ("store", "viz")
    for words in found:
        assert words[0] == "dinoneck"
        assert words[1] == name.split()[0]
        parser().parse_args(words[1:])


@pytest.mark.parametrize("verb", ALL)
def test_every_argument_is_explained(verb: str) -> None:
    told = [action for action in ALL[verb]._actions if not isinstance(action, argparse._SubParsersAction)]
    assert [action.dest for action in told if not action.help] == []


def seen_from(*arguments: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()[-1]


def test_looking_costs_no_heavy_import(tmp_path: Path) -> None:
    """One process: the help of every verb. Its own: what ends the process, or is run."""
    script = (
        "import sys, io, contextlib\nfrom dinoneck.cli.main import main, VERBS\n"
        "for verb in VERBS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([verb, '--help'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    save_head(tmp_path / "h.safetensors", PatchMeanHead(4, [Task("a")]))
    head = str(tmp_path / "h.safetensors")
    inspected = (["inspect", head], ["inspect", str(tmp_path)], ["diff", head, head])
    for arguments in (["--version"], ["backbones", "dinov3"], *inspected):
        assert seen_from(*arguments)[1] == "0 []", arguments
    assert seen_from("--print-completion", "zsh")[1] == "0 ['shtab']"


def completed(line: str, script: Path) -> list[str]:
    """What bash offers for a line that ends where the cursor is."""
    words = line.split() + ([""] if line.endswith(" ") else [])
    quoted = " ".join(map(shlex.quote, words))
    command = (
        f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_dinoneck; echo ${{COMPREPLY[@]}}"
    )
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes_verbs_options_values_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    assert completed("dinoneck migr", script) == ["migrate"]
    assert completed("dinoneck export", script) == ["export"]
    assert completed("dinoneck predict --tt", script) == ["--tta"]
    assert completed("dinoneck predict --tta fl", script) == ["flip4"]
    assert completed("dinoneck store ver", script) == ["verify"]
    assert completed("dinoneck extract photos --backbone dinoneck", script) == ["dinoneck_tiny"]
    (tmp_path / "head.safetensors").touch()
    assert completed(f"dinoneck inspect {tmp_path}/hea", script) == [f"{tmp_path}/head.safetensors"]


def test_completion_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 1
    assert "pip install shtab" in capsys.readouterr().err


def test_a_reader_that_leaves_is_code_141() -> None:
    """The whole table is written when nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dinoneck", "backbones"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_missing_extra_is_a_plain_refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dinoneck.cli import inspect
    from dinoneck.errors import missing_extra

    def run(options: argparse.Namespace) -> int:
        raise missing_extra("onnx", "export")

    monkeypatch.setattr(inspect, "run", run)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == (
        "error: onnx is not installed; it comes with an extra: pip install 'dinoneck[export]'\n"
    )


def test_a_verb_that_was_nearly_spelled_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predcit", "photos"])
    assert end.value.code == 2
    assert "there is no verb 'predcit'. Did you mean 'predict'? 'dinoneck --help' lists them" in capsys.readouterr().err


class Terminal(io.StringIO):
    """Somewhere that bars are drawn."""

    def isatty(self) -> bool:
        return True


def test_bars_are_for_terminals(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each verb that has one draws it on a terminal, and writes nothing of it into a log."""
    write_photos(tmp_path, ["p/a.png", "p/b.png"])
    head, store = str(tmp_path / "h.safetensors"), str(tmp_path / "s")
    save_head(head, PatchMeanHead(64, [Task("x")]), backbone=tiny, preprocess=tiny.preprocess.changed(size=(32, 48)))
    photos = str(tmp_path / "p")
    chosen = ["--backbone", "dinoneck_tiny"]
    jobs = {
        "extract": ["extract", photos, "--out", store, "--size", "32x48", *chosen],
        "predict": ["predict", photos, "--heads", head, "--out", str(tmp_path / "p.csv")],
        "verify": ["verify", store],
        "convert": ["store", "convert", store, "--format", "npz", "--out", str(tmp_path / "n"), "--overwrite"],
        "train": ["train", "--out", str(tmp_path / "r"), "--pasture", "6", "--folds", "2", "--epochs", "1", *chosen,
                  "--overwrite"],
        "bench": ["bench", head, "--rounds", "2"],
    }  # fmt: skip
    for verb, job in jobs.items():
        assert main(job) == 0
        assert "%|" not in capsys.readouterr().err, verb
    jobs["extract"][3] = str(tmp_path / "again")
    for verb, job in jobs.items():
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            assert main(job) == 0
        assert "%|" in terminal.getvalue(), verb
