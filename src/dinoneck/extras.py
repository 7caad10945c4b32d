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
    if not is_installed(module or package):
        raise missing_extra(package, extra)


def check_scores_of_boxes() -> None:
    """Check that a library is installed that scores boxes, faster-coco-eval or pycocotools, without importing it.

    Raises:
        ImportError: naming the extra, if neither is.
    """
    if not is_installed("faster_coco_eval"):
        check_installed("pycocotools", "detection")


def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    # None in sys.modules blocks an import, and find_spec raises for it
    is_blocked = module in sys.modules and sys.modules[module] is None
    if is_blocked:
        return False
    try:
        return importlib.util.find_spec(module) is not None  # noqa: TID251
    except ImportError:  # of a finder that refuses the module
        return False
