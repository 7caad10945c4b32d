"""Packages that an extra of dinoneck brings, and the error for one that is not installed."""

from __future__ import annotations

import importlib.util  # noqa: TID251 - finds a package, and imports none
import sys


def missing_extra(package: str, extra: str) -> ImportError:
    """Return the error for a package that an extra brings and that is not installed."""
    return ImportError(
        f"{package} is not installed; it comes with an extra: pip install 'dinoneck[{extra}]'"
    )


def check_installed(package: str, extra: str, module: str | None = None) -> None:
    """Check that a package of an extra is installed, without importing it.

    Args:
        package: its name on the index.
        extra: that brings it.
        module: the name that is imported; None = that of the package.

    Raises:
        ImportError: naming the extra.
    """
    name = module or package
    # None in sys.modules blocks an import, and find_spec raises for it
    is_blocked = name in sys.modules and sys.modules[name] is None
    if is_blocked or importlib.util.find_spec(name) is None:  # noqa: TID251
        raise missing_extra(package, extra)
