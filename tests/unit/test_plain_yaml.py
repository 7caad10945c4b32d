"""YAML from strangers: written-out values alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dinoneck import ConfigError
from dinoneck.data.patterns import _read
from dinoneck.yaml_file import read_plain, read_yaml


@pytest.mark.parametrize("text", ["a: &x 1", "a: &x {b: 1}\nc: *x", "a: &x [1]\nb: {<<: *x}", "a: &a {b: *a}"])
def test_anchors_and_aliases_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError, match="write the value out"):
        read_plain(text)
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="write the value out"):
        read_yaml(file)
    with pytest.raises(ConfigError, match="write the value out"):
        _read(file)


def test_what_is_written_out_is_read() -> None:
    assert read_plain("a: {b: [1, 2.5, null, yes]}\nc: 'd & *e'") == {"a": {"b": [1, 2.5, None, True]}, "c": "d & *e"}


def test_many_keys_are_compared_in_no_time(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("{" + ",".join(f'"{i}":1' for i in range(60_000)) + "}")
    assert len(_read(file)) == 60_000
    file.write_text('{"a": 1, "b": 2, "a": 3}')
    with pytest.raises(ConfigError, match="'a' stands twice"):
        _read(file)
