"""The version of the package, in one place."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    others = {name: metadata.version(name) for name in ("torch", "timm", "numpy")}
    return {"dinoneck": __version__, "python": platform.python_version(), **others}
