"""Every verb still gives what its transcript holds; see runner.py for changes that are meant."""

from __future__ import annotations

import json

import pytest

from dinoneck.cli.main import VERBS
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
    first_words = {command.split()[0] for scene in STORED for command in commands(scene)}
    assert first_words >= {*VERBS}
    assert STORED.keys() == {*FAST, *SLOW}
