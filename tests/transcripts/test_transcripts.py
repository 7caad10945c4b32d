"""Every verb still gives what its transcript holds; see runner.py for changes that are meant."""

from __future__ import annotations

import json

import pytest
from tests.transcripts.runner import FILE, run_scene
from tests.transcripts.scenes import FAST, SLOW

from dinoneck.cli.main import EARLIER_NAMES, VERBS

STORED = json.loads(FILE.read_text())


@pytest.mark.parametrize(
    ("scene", "commands"), [*FAST.items(), *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW.items())]
)
def test_exit_codes_files_and_keys(scene: str, commands: list[str]) -> None:
    for found, stored in zip(run_scene(commands), STORED[scene], strict=True):
        assert found == stored, "if this is meant: python -m tests.transcripts.runner, and review the diff"


def test_every_verb_has_a_transcript() -> None:
    run = {command.split()[0] for commands in (*FAST.values(), *SLOW.values()) for command in commands if command}
    assert run >= {*VERBS, *EARLIER_NAMES}
    assert STORED.keys() == {*FAST, *SLOW}
