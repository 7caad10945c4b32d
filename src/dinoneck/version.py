"""The version of the package, in one place."""

from __future__ import annotations

__version__ = "0.4.0"


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    import platform  # these two cost a third of the time that the command takes to start
    from importlib import metadata

    others = {name: metadata.version(name) for name in ("torch", "timm", "numpy")}
    return {"dinoneck": __version__, "python": platform.python_version(), **others}
