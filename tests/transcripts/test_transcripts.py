"""Every verb still gives what its transcript holds; see runner.py for changes that are meant."""

from __future__ import annotations

import json

import pytest

from dinoneck.cli.main import VERBS, load
from tests.transcripts.runner import FILE, run_scene
from tests.transcripts.scenes import FAST, SLOW, commands

STORED = json.loads(FILE.read_text())


@pytest.mark.parametrize(
    "scene", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_exit_codes_files_and_keys(scene: str) -> None:
    for found, stored in zip(run_scene(scene), STORED[scene], strict=True):
        assert found == stored, (
            "if this is meant: python -m tests.transcripts.runner, and review the diff"
        )


def test_every_verb_has_a_transcript() -> None:
    given = [command.split() for scene in STORED for command in commands(scene)]
    missing = []
    for verb in VERBS:
        for words in lines_of(verb):
            if not any(command[: len(words)] == words for command in given):
                missing.append(" ".join(words))
    assert missing == []
    assert STORED.keys() == {*FAST, *SLOW}


def lines_of(verb: str) -> list[list[str]]:
    """Return the words that a command line of a verb begins with: several if it has sub-verbs."""
    function = load(verb)
    if isinstance(function, dict):
        return [[verb, name] for name in function]
    return [[verb]]


def test_a_verb_with_sub_verbs_needs_a_transcript_of_each() -> None:
    assert lines_of("predict") == [["predict"]]
    assert ["viz", "tokens"] in lines_of("viz")
