"""The command itself: usage, exit codes, --json, streams, signals, progress, and what it imports."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image
from tests.kit import cli, saved_head, write_images

from dinoneck.cli import files as verbs
from dinoneck.cli import main as commands
from dinoneck.cli.main import command, main
from dinoneck.extras import missing_extra
from dinoneck.version import __version__

HEAVY = {
    "torch",
    "numpy",
    "timm",
    "torchvision",
    "PIL",
    "matplotlib",
    "huggingface_hub",
    "tqdm",
    "packaging",
}
LOOK = (
    "import sys, io, contextlib\nfrom dinoneck.cli.main import main\ncodes = []\n"
    "for line in sys.argv[1:]:\n"
    "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
    "        codes.append(main(line.split()))\n"
    f"print(codes, sorted({HEAVY!r} & set(sys.modules)))"
)


def given(line: str) -> dict[str, Any]:
    """The arguments that the words of a line are taken for."""
    verb, _, words = line.partition(" ")
    return command(verb, words.split()).keywords


def test_lists_take_several_values_and_flags_win_over_the_training_file(tmp_path: Path) -> None:
    """No second value of an option is an image, and no image is a value of an option."""
    words = given("predict a.png b --heads h1 h2 --tile 32x64 --out o.csv")
    assert [path.name for path in words["images"]] == ["a.png", "b"]
    assert (words["heads"], words["tile"]) == ((("h1", "h2"),), (32, 64))
    assert given("predict --heads h1 h2 --out o.csv a.png")["heads"] == (("h1", "h2"),)
    assert given("extract a.png --out s --size 32x48 --layers 2 -1")["backbone"].layers == (2, -1)
    (tmp_path / "run.yaml").write_text("optim: {epochs: 7, lr: 0.5}\n")
    run = given(f"train {tmp_path / 'run.yaml'} --targets a b --epochs 3 --out x")["run"]
    assert (run.data.targets, run.optim.epochs, run.optim.lr) == (("a", "b"), 3, 0.5)


def seen_from(*lines: str) -> str:
    """The exit codes of lines in one new process, and the heavy packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *lines], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    from dinoneck.cli.main import VERBS

    head = saved_head(tmp_path / "h.safetensors")
    helps = ["--help", *(f"{verb} --help" for verb in VERBS)]
    assert (
        seen_from(*helps, "list backbones dinov3", "list heads", f"inspect {head}")
        == "[0, 0, 0] []"
    )
    (tmp_path / "t.csv").write_text("image,a\nx.png,1\n")
    refused = [
        f"train --csv {tmp_path}/t.csv --targets b --out r",
        f"train --csv {tmp_path}/t.csv --targets a --out r --backbone dinov3_vits61",
        f"train --images {tmp_path}/none --out r",
        f"extract {tmp_path}/none --out s --size 32",
        f"predict {tmp_path}/none --out p.csv --heads {head}",
        f"predict {tmp_path} --heads h --out no/o.csv",
    ]
    codes, _, imported = seen_from(*refused).partition("] ")
    assert codes == str([1] * len(refused)).rstrip("]")
    # pandas, which reads tables, brings numpy
    assert not {"torch", "timm", "torchvision", "huggingface_hub"}.intersection(
        literal_eval(imported)
    )


def test_one_document_on_stdout(tmp_path: Path) -> None:
    path = str(tmp_path / "no.safetensors")
    printed = cli("inspect", path, "--json")
    error = {"type": "CheckpointError", "message": printed.err[len("error: ") : -1], "step": "file"}
    assert printed.json == {"verb": "inspect", "ok": False, "dinoneck": __version__, "error": error}
    assert printed.code == 1 and path in printed.err
    for_people = cli("list", "backbones", "dinov3_vits16").out
    printed = cli("--verbose", "list", "backbones", "--json", "dinov3_vits16")
    assert printed.err == for_people
    assert printed.json["backbones"][0]["patch"] == 16


def test_weights_under_terms_of_their_own_are_listed_with_them() -> None:
    found = cli("list", "backbones", "--json", "eupe").json["backbones"]
    assert len(found) == 3
    assert {row["licence"] for row in found} == {"fair-noncommercial-research-license"}
    assert {row["width"] for row in found} == {192, 384, 768}


def test_backbones_under_one_licence_are_listed() -> None:
    listed = cli("list", "backbones", "--json").json["backbones"]
    open_names = [row["name"] for row in listed if row["licence"] == "apache-2.0"]
    shown = cli("list", "backbones", "--licence", "apache-2.0", "--json").json["backbones"]
    assert [row["name"] for row in shown] == open_names
    assert {row["alias"] for row in shown} >= {"tipsv2_b14", "robbyant/lingbot-vision-vit-small"}
    none = cli("list", "backbones", "dinov3", "--licence", "apache-2.0")
    assert none.code == 1
    assert "none of the backbones under apache-2.0 has 'dinov3'" in none.out


def test_a_licence_that_no_backbone_has_is_named_with_those_that_are() -> None:
    printed = cli("list", "backbones", "--licence", "apache2.0")
    assert printed.code == 1
    assert "--licence is 'apache2.0'" in printed.err
    for licence in ("apache-2.0", "dinov3-license", "fair-noncommercial-research-license"):
        assert licence in printed.err
    assert "Did you mean 'apache-2.0'?" in printed.err


def test_published_heads_under_one_licence_are_listed() -> None:
    listed = cli("list", "heads", "--json").json["published"]
    open_names = [row["name"] for row in listed if row["licence"].lower() == "apache-2.0"]
    assert {"rf_detr_small", "tipsv2_b14_depth", "dinov2_vits14_nyu_dpt"} <= set(open_names)
    for licence in ("apache-2.0", "Apache-2.0"):  # as both lists spell it
        document = cli("list", "heads", "--licence", licence, "--json").json
        assert [row["name"] for row in document["published"]] == open_names
        assert "heads" not in document  # the types are under no licence of their own
    depth = cli("list", "heads", "depth", "--licence", "apache-2.0", "--json").json["published"]
    assert 0 < len(depth) < len(open_names)
    assert {row["task"] for row in depth} == {"depth"}
    none = cli("list", "heads", "dinov3_vit", "--licence", "apache-2.0")
    assert none.code == 1
    assert "none of the published heads under apache-2.0 has 'dinov3_vit'" in none.out
    unknown = cli("list", "heads", "--licence", "mit")
    assert unknown.code == 1
    assert "--licence is 'mit'; the licences of published heads are apache-2.0" in unknown.err


def answering(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Make ``inspect`` return a value, or raise it."""

    def work(file: Path) -> dict[str, Any]:
        if isinstance(value, BaseException):
            raise value
        return value  # type: ignore[no-any-return]

    monkeypatch.setattr(verbs, "inspect", work)
    work.__annotations__ = {"file": Path}


def test_documents_hold_only_what_json_has(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, {"a": math.nan, "b": (Path("c"), math.inf), "d": "\x1b[2J", "ok": False})
    found, made = (
        cli("inspect", "--file", "x", "--json"),
        {"verb": "inspect", "ok": False, "dinoneck": __version__},
    )
    assert json.loads(found.out) == {**made, "a": None, "b": ["c", None], "d": "\x1b[2J"}
    assert found.code == 1 and "\x1b" not in found.out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            missing_extra("onnx", "export"),
            1,
            "error: onnx is not installed; it comes with an extra: pip install ",
        ),
        (
            IndexError("out of range"),
            1,
            "error: unexpected IndexError: out of range (--verbose shows where)",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "none.json"),
            1,
            "error: none.json: No such file or directory; check the name and who may read",
        ),
        (
            IsADirectoryError(errno.EISDIR, "it is a folder; expected the name of a file", "run"),
            1,
            "error: run: it is a folder; expected the name of a file\n",
        ),
    ],
)
def test_errors_end_in_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, error)
    found = cli("inspect", "--file", "x")
    assert found.code == code and found.err.startswith(line) and found.err.count("\n") == 1
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
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "in order\n", "interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("streams", "code", "message"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("--json > /dev/full", 1, "error: the output cannot be written"),
        (") | true; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_closed_and_full_streams(streams: str, code: int, message: str) -> None:
    shown = f'"{sys.executable}" -m dinoneck list backbones {streams}'
    shown = f"(sleep 1; {shown}" if "PIPE" in streams else shown
    done = subprocess.run(["/bin/bash", "-c", shown], capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert message in done.stderr and bool(message) == bool(done.stderr)


class Terminal(io.StringIO):
    """Where bars are drawn."""

    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_bars_are_for_terminals_and_lines_for_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, ["p/a.png", "p/b.png"])
    predict = [
        "predict",
        str(tmp_path / "p"),
        "--heads",
        str(saved_head(tmp_path / "h.safetensors")),
        "--out",
    ]
    train = [
        "train",
        "--pasture",
        "6",
        "--folds",
        "2",
        "--epochs",
        "2",
        "--overwrite",
        "--backbone",
        "dinoneck_tiny",
    ]
    for job in ([*predict, str(tmp_path / "p.csv")], [*train, "--out", str(tmp_path / "r")]):
        printed = cli(*job)
        assert printed.code == 0 and "%|" not in printed.err
        assert "steps:" not in printed.err, "lines of epochs repeat no line of steps"
        for line in ("fold 1, epoch 2 of 2: loss ", "fold 1 is trained, 2 of 2"):
            assert (line in printed.err) == (job[0] == "train")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal := Terminal())
            assert main(job) == 0
        assert "%|" in terminal.getvalue(), job
    assert re.search(r"fold 1, epoch 2 of 2, steps: .*loss [0-9.]+", terminal.getvalue())
    assert "fold 1, epoch 2 of 2: " not in terminal.getvalue()
    monkeypatch.setattr("dinoneck.progress.SECONDS_PER_LINE", 0.0)
    assert "steps: 1 of 2 in" in cli(*train, "--out", tmp_path / "r").err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        pytest.param([], "The same command continues this training.\n", id="resumes"),
        pytest.param(["--no-resume"], "", id="begins anew"),
        pytest.param(["--overwrite"], "", id="replaces"),
    ],
)
def test_a_training_that_is_interrupted_says_that_its_command_continues_it(
    options: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, ["0.png", "1.png"])
    table = tmp_path / "t.csv"
    table.write_text("image,green\n0.png,1\n1.png,2\n")
    monkeypatch.setattr(
        "dinoneck.training.entrance.run_training", mock.Mock(side_effect=KeyboardInterrupt)
    )
    train = ["train", "--csv", table, "--targets", "green", "--folds", "2"]

    found = cli(*train, "--backbone", "dinoneck_tiny", "--out", tmp_path / "run", *options)

    assert (found.code, found.out, found.err) == (130, hint, "interrupted\n")


def test_maps_go_into_the_empty_folder_that_a_link_names(tmp_path: Path) -> None:
    [image] = write_images(tmp_path, ["a.png"])
    head = saved_head(tmp_path / "h.safetensors")
    folder = tmp_path / "disk" / "maps"
    folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)

    ran = cli("predict", image, "--heads", head, "--out", tmp_path / "p.csv", "--overlay", link)

    assert ran.code == 0, ran.err
    assert link.is_symlink()
    assert os.listdir(folder) == ["a.jpg"]
    assert os.listdir(folder.parent) == ["maps"]


def test_a_limit_on_the_size_of_files_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [image] = write_images(tmp_path, ["a.png"])
    head = saved_head(tmp_path / "h.safetensors")
    out = tmp_path / "p.csv"
    limited = mock.Mock(side_effect=OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
    monkeypatch.setattr(os, "fsync", limited)

    ran = cli("predict", image, "--heads", head, "--out", out)

    assert ran.code == 1
    assert ran.err.splitlines()[-1] == (
        f"error: {out}: File too large; files may not be that large here; 'ulimit -f' shows the limit"
    )
    assert not out.exists()


def test_a_prediction_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second picture is being written."""
    images, out = write_images(tmp_path, ["a.png", "b.png"]), tmp_path / "out"
    head = saved_head(tmp_path / "h.safetensors")
    out.mkdir()
    job = ["predict", *images, "--heads", head, "--out", out / "p.csv", "--overlay", out / "p"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", mock.Mock(side_effect=[None, KeyboardInterrupt]))
        found = cli(*job)
    assert (found.code, found.err.splitlines()[-1]) == (130, "interrupted")
    assert os.listdir(out) == []
    assert cli(*job).code == 0
    assert sorted(os.listdir(out)) == ["p", "p.csv"]


OWN_HEAD = """
import dinoneck

@dinoneck.register
class MyHead(dinoneck.PatchMeanHead):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("by", ["file", "module"])
def test_heads_of_a_user_are_registered_by_import(by: str, tmp_path: Path) -> None:
    (tmp_path / "my_heads.py").write_text(OWN_HEAD)
    name = "my_heads.py" if by == "file" else "my_heads"

    done = subprocess.run(
        [sys.executable, "-m", "dinoneck", "--import", name, "list", "heads"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )

    assert re.search(r"^  \S+ +my_heads:MyHead$", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["list", "heads", "--import", "my_heads.py"],
        ["list", "--import=my_heads", "heads"],
        ["list", "--import", "my_heads.py", "heads"],
        ["list", "heads", "--import", "empty.py", "--import", "my_heads.py", "--json"],
    ],
)
def test_every_verb_takes_the_import_among_its_own_words(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "my_heads.py").write_text(OWN_HEAD)
    (tmp_path / "empty.py").write_text("")

    done = subprocess.run(
        [sys.executable, "-m", "dinoneck", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )

    assert "my_heads:MyHead" in done.stdout


WARNINGS = """import warnings
import dinoneck

warnings.warn_explicit("cut large images", UserWarning, dinoneck.__file__, 1)
warnings.warn_explicit("of another library", UserWarning, "other.py", 7)
"""


@pytest.mark.slow
def test_a_warning_of_the_library_is_a_line_without_its_place_in_the_code(tmp_path: Path) -> None:
    (tmp_path / "warns.py").write_text(WARNINGS)

    done = subprocess.run(
        [sys.executable, "-m", "dinoneck", "--import", "warns.py", "list", "heads"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )

    assert done.stderr.splitlines() == [
        "warning: cut large images",
        "other.py:7: UserWarning: of another library",
    ]


@pytest.mark.parametrize(
    "words",
    [["list", "heads", "--import"], ["list", "heads", "--import="], ["list", "--import", "--json"]],
)
def test_an_import_of_nothing_is_refused(words: list[str]) -> None:
    ran = cli(*words)

    assert ran.code == 2
    assert "--import names nothing" in ran.err


REPEATED = [
    ("extract i --out s --size 32", "--layers", "1"),
    ("train --out r", "--targets", "a"),
    ("train --out r", "--aux-targets", "a"),
    ("train --out r", "--classes", "a"),
    ("train --out r", "--class-values", "1"),
    ("train --out r", "--nodata", "1"),
    ("train --out r", "--panoptic", "a b"),
    ("train --out r", "--layers", "1"),
    ("train --out r", "--freeze", "0=all"),
    ("train --out r", "--group", "a"),
    ("train --out r", "--import", "a.py"),
    ("train --out r", "--heads", "linear"),
    ("evaluate i --truth t", "--heads", "a"),
    ("evaluate i --heads h", "--truth", "a"),
    ("evaluate i --heads h --truth t", "--group", "a"),
    ("evaluate i --heads h --truth t", "--nodata", "1"),
    ("evaluate i --heads h --truth t", "--class-values", "1"),
    ("evaluate i --heads h --truth t", "--at-least", "a=1"),
    ("push h", "--figure", "a.png"),
    ("viz tokens i --out o.png", "--layers", "1"),
]


@pytest.mark.parametrize(
    ("words", "flag", "values"), REPEATED, ids=[f"{row[0].split()[0]}{row[1]}" for row in REPEATED]
)
def test_an_option_of_several_values_is_refused_where_it_would_replace_an_earlier_one(
    words: str, flag: str, values: str
) -> None:
    ran = cli(*words.split(), flag, *values.split(), flag, *values.split())

    assert ran.code == 2
    assert ran.err == f"error: {flag} is given twice; give it once, with all its values after it\n"


def test_a_word_that_an_option_of_several_values_takes_is_not_counted_as_the_option() -> None:
    call = command(
        "evaluate",
        ["i", "--heads", "a", "--truth", "t", "--group", "heads", "--at-least", "heads=1"],
    )

    assert call.keywords["heads"] == ("a",)
    assert call.keywords["group"] == ("heads",)


def test_an_unknown_option_after_a_training_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {epochs: 2}\n")

    ran = cli("train", file, "--epoch", "3", "--out", tmp_path / "run")

    assert ran.code == 2
    assert "'--epoch' is unknown. Did you mean '--epochs'?" in ran.err


def test_an_argument_that_is_named_as_an_option_is_said_to_stand_alone(tmp_path: Path) -> None:
    ran = cli("extract", "--images", tmp_path, "--out", tmp_path / "store", "--size", "32x32")

    assert ran.code == 2
    assert "'--images' is unknown. Its value stands alone, without it." in ran.err
    assert "Did you mean" not in ran.err


@pytest.mark.slow
def test_a_head_of_an_unknown_type_is_said_to_need_an_import(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    (tmp_path / "far_heads.py").write_text(OWN_HEAD.replace("MyHead", "FarHead"))
    making = (
        "from dinoneck import Task, load_backbone, save_head; from far_heads import FarHead; "
        "save_head('own.safetensors', FarHead(64, [Task('x')]), backbone=load_backbone('dinoneck_tiny'))"
    )
    subprocess.run([sys.executable, "-c", making], check=True, cwd=tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    given = [tmp_path / "a.png", "--heads", file, "--out", tmp_path / "p.csv"]

    refused = cli("predict", *given)
    done = cli("predict", *given, "--import", tmp_path / "far_heads.py")

    assert refused.code == 1
    assert "--import" in refused.err
    assert done.code == 0, done.err


def test_a_terminal_without_a_sign_gets_a_question_mark_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as R² in the code page of a Windows console, or with LANG=C."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(commands, "command", lambda verb, words: lambda: print("R² 0.5"))

    code = main(["inspect"])

    assert code == 0
    assert written.getvalue() == b"R? 0.5\n"


def test_the_demo_does_not_write_into_a_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("mine")

    ran = cli("demo", "--out", tmp_path)

    assert ran.code == 1
    assert "holds other files; choose a new folder" in ran.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("earlier", [False, True], ids=["an empty folder", "an earlier demo"])
def test_the_demo_takes(earlier: bool, tmp_path: Path) -> None:
    """The folder is no reason to refuse; the name of the backbone, which is looked at next, is."""
    if earlier:
        (tmp_path / "README.txt").write_text("Written by dinoneck demo")
        (tmp_path / "table.csv").write_text("of the earlier demo")

    ran = cli("demo", "--out", tmp_path, "--backbone", "dinov3_vits61")

    assert ran.code == 1
    assert "dinov3_vits61" in ran.err
    assert "choose a new folder" not in ran.err
