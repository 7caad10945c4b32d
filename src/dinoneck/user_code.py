"""Import the user's own modules, which register heads and necks: ``--import``, and ``imports`` of a training file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from dinoneck.errors import ConfigError


def import_modules(names: Sequence[str]) -> None:
    """Import modules, or Python files, that register heads and necks.

    Raises:
        ConfigError: if one cannot be imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(name).stem, name)
                if spec is None or spec.loader is None or not Path(name).is_file():
                    raise ImportError("there is no such file")
                module = importlib.util.module_from_spec(spec)
                sys.modules[Path(name).stem] = module
                spec.loader.exec_module(module)
            else:
                importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"{name} cannot be imported: {error}") from error
