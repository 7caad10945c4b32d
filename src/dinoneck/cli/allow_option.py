"""The option that lets a file name heads of other packages."""

from __future__ import annotations

import argparse


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Declare ``--allow``."""
    parser.add_argument("--allow", nargs="+", default=(), help="heads of other packages that may be imported: vendor.*")
