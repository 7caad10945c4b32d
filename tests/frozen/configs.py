"""Frozen training files, written by hand: a YAML file for every kind of training, with every key in one of them."""

from __future__ import annotations

from dinoneck.training import read_config
from tests.frozen.folder import VersionFolder, is_frozen

FOLDER = "configs"


def freeze(folder: VersionFolder) -> None:
    """Record what the files mean that were written since: every value, those of keys that are left out too."""
    for path in sorted((folder.path / FOLDER).glob("*.yaml")):
        name = f"{FOLDER}/{path.name}"
        if not is_frozen(name):
            config = read_config(path)
            folder.record(name, {"config": config.to_dict()}, {})
