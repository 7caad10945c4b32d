"""Frozen training files are read with the values that they hold; every key is in one of them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from dinoneck.training import CompositionConfig, TaskConfig, read_config
from dinoneck.training.config import TRAININGS
from dinoneck.training.trainings import keys_of, with_present_keys
from tests.frozen import configs
from tests.frozen.comparison import differences
from tests.frozen.folder import FrozenFile, frozen_files, plain

pytestmark = pytest.mark.slow

CONFIGS = frozen_files(configs.FOLDER)
each_config = pytest.mark.parametrize("file", CONFIGS, ids=str)
NAMED_GROUPS = {"tasks": TaskConfig, "compositions": CompositionConfig}  # one per name


@each_config
def test_a_training_file_means_what_it_meant(file: FrozenFile) -> None:
    """The values of keys that a file leaves out are compared too: they decide what it trains."""
    config = read_config(file.path)
    # records of 0.3 hold the defaults of all trainings
    meant = TRAININGS.without_void_keys(file.facts["config"])
    assert differences(meant, plain(config.to_dict())) == []


@each_config
def test_a_training_file_is_read_with_the_values_in_it(file: FrozenFile) -> None:
    written = with_present_keys(yaml.safe_load(file.path.read_text()), str(file))
    config = read_config(file.path).to_dict()
    assert_holds(written, plain(config))


def assert_holds(written: Any, read: Any, key: str = "") -> None:
    """Assert that the values of a file are among those that were read."""
    if isinstance(written, dict):
        for name, value in written.items():
            assert_holds(value, read[name], name)
    elif key == "size" and isinstance(written, int):
        assert read == [written, written]
    elif isinstance(read, float):
        assert float(written) == read  # YAML 1.1 takes 3e-4 for a text
    else:
        assert written == read


def test_every_key_is_in_a_frozen_training_file() -> None:
    written: set[str] = set()
    for file in CONFIGS:
        written |= keys_in(yaml.safe_load(file.path.read_text()))
    known: set[str] = set()
    for program in TRAININGS.all:
        known |= keys_of(program.config).keys()
    for name, group in NAMED_GROUPS.items():
        known.remove(name)
        known |= {f"{name}.{key}" for key in group.__struct_fields__}
    missing = sorted(known - written)
    assert missing == [], "write it to a new file in configs, then: python -m tests.frozen"


def keys_in(content: dict[str, Any]) -> set[str]:
    """The keys of a training file, ``GROUP.KEY``; those of one task or composition without its name."""
    found = set()
    for name, value in content.items():
        if name in NAMED_GROUPS:
            for named in value.values():
                found |= {f"{name}.{key}" for key in named}
        elif isinstance(value, dict) and name != "head":
            found |= {f"{name}.{key}" for key in value}
        else:
            found.add(name)
    return found
