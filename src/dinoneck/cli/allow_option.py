"""The option that lets a file name heads of other packages."""

from __future__ import annotations

import argparse


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Declare ``--allow``."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="VENDOR.NAME",
        help="heads of an installed package that may be imported: vendor.head, or 'vendor.*' for all; repeatable",
    )
