"""The 79 failure modes, case by case: refused by its step, or harmless. And the judge itself can fail."""

from __future__ import annotations

import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.reliability import attempts, faults
from benchmarks.reliability.faults import MODES
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.modes_size import frugal
from benchmarks.reliability.modes_strings import MARK
from benchmarks.reliability.subjects import ALL, ensemble_folder, file_of, plain, small
from benchmarks.reliability.watch import watched
from tests.reliability_result import stored

from dinoneck import BackboneError, CheckpointError, ConfigError, HeadCheckpoint
from dinoneck.checkpoint import EnsembleFolder

STEPS = {
    "file", "header", "json", "schema", "registry", "config", "tensors", "digest", "finite", "pairing", "write", "hub",
}  # fmt: skip
CASES = [
    pytest.param(case, id=f"{mode.number}-{case.name}", marks=[pytest.mark.slow] if mode.slow else [])
    for mode in MODES
    for case in mode.cases
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder; what cases leave in it may be gigabytes of nothing, so it is not kept."""
    place = Path(tempfile.mkdtemp())
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_its_step_or_harmless(case: Case, folder: Path) -> None:
    case.check(folder)


def test_the_list_is_complete() -> None:
    assert [mode.number for mode in MODES] == list(range(1, 80))
    for mode in MODES:
        names = [case.name for case in mode.cases]
        assert names, mode.number
        assert len(set(names)) == len(names), mode.number
    outcomes = {case.outcome for mode in MODES for case in mode.cases}
    assert STEPS | {HARMLESS} <= outcomes
    assert all(hasattr(sys.modules["dinoneck.errors"], name) for name in outcomes - STEPS - {HARMLESS})


def test_the_published_table() -> None:
    result = stored("faults")
    assert not result["failed"], result["modes"]
    assert [(mode["number"], mode["cases"]) for mode in result["modes"]] == [
        (mode.number, len(mode.cases)) for mode in MODES
    ]
    assert all(sum(mode["outcomes"].values()) == mode["cases"] for mode in result["modes"])


def test_the_sound_files_are_sound(folder: Path) -> None:
    for subject in ALL.values():
        found = attempts.load(folder / "h", file_of(subject))
        attempts.same_bits(found, subject())
        assert found.meta == subject().meta
    assert len(EnsembleFolder.load(ensemble_folder(folder / "e"))) == 2


# -- the judge ---------------------------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("x", "digest", lambda folder: None), "passed; expected the step 'digest'"),
        (Case("x", "digest", raising(CheckpointError("no", step="json"))), "refused by 'json', expected 'digest'"),
        (Case("x", HARMLESS, raising(CheckpointError("no", step="json"))), "refused by 'json', expected 'harmless'"),
        (Case("x", "config", raising(ConfigError("no"))), "refused by 'ConfigError', expected 'config'"),
        (Case("x", "digest", raising(ValueError("raw"))), "ValueError is none of the family"),
        (Case("x", "file", raising(FileNotFoundError("raw"))), "FileNotFoundError is none of the family"),
        (Case("x", "digest", raising(CheckpointError("no", step="digest")), "cause"), "does not say 'cause'"),
        (Case("x", HARMLESS, raising(Missed("other bits"))), "other bits"),
        (attempts.harmless("x", small, lambda: file_of(plain)), "it holds"),
        (attempts.harmless("x", plain, lambda: attempts.forged(
            plain(), lambda meta, state: state["mlps.0.out.bias"].add_(1))), "mlps.0.out.bias has other bits"),
        (attempts.of_bytes("x", "digest", lambda: file_of(small)), "passed"),
        (attempts.sweep("x", "header", lambda: [("sound", file_of(small), "header"), ("none", b"", "header")]),
         "1 passed: sound"),
        (attempts.sweep("x", "header", lambda: [("none", b"", "json|digest")]), "refused by 'header', expected json"),
        (attempts.of_folder("x", "digest", lambda folder: None), "passed"),
        (attempts.of_saving("x", "write", lambda path: path.write_bytes(b"")), "passed"),
        (attempts.of_saving("x", "write", lambda path: [path.write_bytes(b""), raising(CheckpointError("no"))(path)]),
         "refused, but the folder holds"),
    ],
    ids=range(16),
)  # fmt: skip
def test_the_judge_can_fail(case: Case, message: str, folder: Path) -> None:
    with pytest.raises(Missed, match=message):
        case.check(folder)


def test_an_error_of_the_library_that_is_no_refusal_is_told_by_its_name(folder: Path) -> None:
    Case("x", "BackboneError", raising(BackboneError("no"))).check(folder)


def test_memory_and_long_messages_are_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    case = frugal("x", "tensors", plain, lambda meta, state: meta["tensors"].pop())
    case.check(folder)
    read = HeadCheckpoint.load

    def greedy(path: Path, **options: object) -> HeadCheckpoint:
        kept.append(torch.ones(64 << 20))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(HeadCheckpoint, "load", greedy)
        with pytest.raises(Missed, match="KiB more memory"):
            case.check(folder)

    def garrulous(path: Path, **options: object) -> HeadCheckpoint:
        error = CheckpointError("", step="tensors")
        error.args = ("x" * 10_000,)
        raise error

    monkeypatch.setattr(HeadCheckpoint, "load", garrulous)
    with pytest.raises(Missed, match="10000 signs"):
        case.check(folder)


def test_both_readers_must_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(path: Path) -> None:
        raise CheckpointError("no", step="schema")

    monkeypatch.setattr(attempts, "read_header", strict)
    with pytest.raises(Missed, match="refused by 'schema', the file passes"):
        attempts.load(folder / "h", file_of(small))
    with pytest.raises(Missed, match="refused by 'schema', the file by 'header'"):
        attempts.load(folder / "h", b"")


def test_the_watch_sees_everything(folder: Path) -> None:
    (folder / MARK).touch()
    acts: dict[str, Callable[[], object]] = {
        "write": lambda: (folder / "x").write_text("x"),
        "os.mkdir": lambda: (folder / "y").mkdir(),
        "os.rename": lambda: (folder / "x").rename(folder / "z"),
        "os.remove": lambda: (folder / "z").unlink(),
        f"read .*{MARK}": lambda: (folder / MARK).read_bytes(),
    }
    for what, act in acts.items():
        with pytest.raises(Missed, match=what), watched(MARK):
            act()
    with watched(MARK):
        (folder / MARK).exists()
        Path(__file__).read_bytes()
    sys.modules.pop("colorsys", None)
    with pytest.raises(Missed, match="imported colorsys"), watched(MARK, frozenset({"colorsys"})):
        importlib.import_module("colorsys")


def test_the_page_names_what_was_missed(tmp_path: Path) -> None:
    modes = [
        Mode(1, "a|b", (Case("x", "digest", raising(CheckpointError("no", step="digest"))),) * 2),
        Mode(2, "c", (Case("y", "digest", lambda folder: None), Case("z", HARMLESS, lambda folder: None))),
    ]
    result = faults.judged(modes, tmp_path)
    assert (result["failed"], list(tmp_path.iterdir())) == (1, [])
    page = faults.page(result)
    assert "**2 modes, 4 cases, 1 neither refused" in page
    assert "| 1 | a\\|b | 2 | `digest` 2 |" in page
    assert "| 2 | c | 2 | harmless 1 |" in page
    assert "- 2: y: passed" in page
    assert "all refused or harmless" in faults.page(faults.judged(modes[:1], tmp_path))
