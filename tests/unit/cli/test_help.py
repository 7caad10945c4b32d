"""The help of the verbs: every flag once, those of a first run first, and defaults only where they say something."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro
from tests.docs.command_line import help_of, names
from tests.kit import cli

from dinoneck.cli.arguments import flags
from dinoneck.cli.help import verb_help
from dinoneck.cli.main import VERBS, load
from dinoneck.cli.train import FIRST_FLAGS, train, train_boxes, train_objects

FLAG = re.compile(r"^  (?:-h, )?(--[a-z][a-z-]*)", re.MULTILINE)
FLAG_OF_TYRO = re.compile(r"^[│ ] {0,3}(?:-h, )?(--[a-z][a-z-]*)", re.MULTILINE)
TRAININGS = {"numbers": train, "objects": train_objects, "boxes": train_boxes}
OF_EVERY_VERB = {"--json", "--import", "--help"}


def functions() -> Iterator[tuple[str, Any]]:
    """The words and the function of every verb."""
    for verb in VERBS:
        loaded = load(verb)
        if isinstance(loaded, Mapping):
            for name, function in loaded.items():
                yield f"{verb} {name}", function
        else:
            yield verb, loaded


@pytest.mark.parametrize(
    ("words", "function"), [pytest.param(*case, id=case[0]) for case in functions()]
)
def test_a_help_lists_the_flags_that_the_parser_has_each_once(words: str, function: Any) -> None:
    @functools.wraps(function)
    def nothing(*values: Any, **options: Any) -> None:
        pass

    printed = io.StringIO()
    style: list[Any] = [tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone]
    if words != "train":  # the one verb whose switches have opposites
        style.append(tyro.conf.FlagCreatePairsOff)
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(nothing, prog="verb", args=["--help"], config=style)

    listed = FLAG.findall(help_of(*words.split()))

    assert sorted(listed) == sorted(set(listed))
    by_parser = set(FLAG_OF_TYRO.findall(printed.getvalue()))
    assert set(listed) - OF_EVERY_VERB == by_parser - OF_EVERY_VERB


@pytest.mark.parametrize("words", [*names()], ids=" ".join)
def test_a_help_states_no_default_that_says_nothing(words: tuple[str, ...]) -> None:
    text = help_of(*words)

    assert "None" not in text
    assert not re.search(r"\(default:\s*(none|False|True|''|'\{\}')?\s*\)", text)
    assert text.count("(default") < 2 or not re.search(r"\(default[^)]*\)[.,]?\s*\(default", text)


@pytest.mark.parametrize("training", TRAININGS)
def test_train_begins_with_what_a_first_run_needs(training: str) -> None:
    function = TRAININGS[training]

    text = verb_help("dinoneck train", function, pairs=True, first=FIRST_FLAGS)

    options = text.partition("in the order of use:\n")[2]
    expected = [flag for flag in FIRST_FLAGS if flag in flags(function)]
    assert FLAG.findall(options)[: len(expected)] == expected


def test_every_flag_of_a_first_run_is_one_of_a_training() -> None:
    all_flags = {flag for function in TRAININGS.values() for flag in flags(function)}

    assert set(FIRST_FLAGS) <= all_flags


def test_the_defaults_of_a_training_file_are_those_of_the_help(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {epochs: 7}\ndata: {size: [32, 64]}\nfolds: {group: [place]}\n")

    text = " ".join(help_of("train", str(path)).split())

    assert "passes over the training images (default: 7)" in text
    assert "without it their own (default: 32x64)" in text
    assert "rows of one group stay in one fold (default: place)" in text


def verb(
    name: str,
    share: Annotated[float | None, tyro.conf.arg(metavar="SHARE")] = None,
    is_on: bool = True,
    words: tuple[str, ...] = (),
) -> None:
    """Do it.

    Args:
        name: what it is called,
            in words.
        share: of all; None = a half.
        is_on: whether it is on.
        words: some; empty = all.
    """


def test_a_help_is_made_of_the_signature_and_the_docstring() -> None:
    text = verb_help("dinoneck verb", verb, pairs=False, first=())

    assert text.splitlines()[:11] == [
        "usage: dinoneck verb --name TEXT [OPTIONS]",
        "",
        "Do it.",
        "",
        "options:",
        "  --name TEXT           what it is called, in words (required)",
        "  --share SHARE         of all; default: a half.",
        "  --no-is-on            whether it is on (default: --is-on)",
        "  --words TEXT ...      some; default: all.",
        "",
        "of every verb:",
    ]


def test_a_help_of_one_verb_is_printed_wherever_it_is_asked_for() -> None:
    after = cli("predict", "--heads", "none.safetensors", "-h")
    below = cli("list", "--help")

    assert (after.code, below.code) == (0, 0)
    assert after.out.startswith("usage: dinoneck predict [IMAGES ...] --heads HEAD ... --out PATH")
    assert "  heads  " in below.out


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_option_that_a_verb_always_refuses_is_not_in_its_help(verb: str) -> None:
    assert ("--min-score" in help_of(verb)) == (verb == "predict")


def test_an_option_without_a_line_in_the_help_is_refused_with_its_reason(tmp_path: Path) -> None:
    ran = cli("evaluate", tmp_path, "--heads", "a", "--truth", tmp_path, "--min-score", "0.5")
    assert ran.code == 1
    assert "without effect on scores, which count boxes of all scores" in ran.err
