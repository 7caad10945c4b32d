"""``python -m tests.against ENV [GROUP ...]``: compare this checkout with 0.3.0, to the bit.

Exits 1 for a difference that ``differences.toml`` does not list, and for an entry of it without a
difference. See tests/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.against.compare import LIST, Difference, Judgement, judge, read_list
from tests.against.environment import VERSION, old_side, this_side
from tests.against.groups import GROUPS
from tests.against.processes import CannotCompareError, compare_groups

MAX_SHOWN = 3
"""How many differences of a case are printed without ``--all``."""


def choose(words: Sequence[str]) -> dict[str, list[str]]:
    """Return group -> cases of the words GROUP and GROUP/CASE; no cases mean all."""
    chosen: dict[str, list[str]] = {}
    for word in words or GROUPS:
        group, _, case = word.partition("/")
        if group not in GROUPS:
            sys.exit(f"{group} is no group; expected one of {', '.join(GROUPS)}")
        chosen.setdefault(group, [])
        if case:
            chosen[group].append(case)
    return chosen


def show_case(case: str, differences: Sequence[Difference], *, limit: int | None) -> None:
    """Print the first differences of a case with both values."""
    print(f"\n  {case}: {len(differences)}")
    for difference in differences[:limit]:
        print(f"    {difference.address}")
        print(f"        {VERSION:<6} {difference.old}")
        print(f"        here   {difference.here}")
        if difference.note:
            print(f"        {difference.note}")
    if limit is not None and len(differences) > limit:
        print(f"    and {len(differences) - limit} more, with --all")


def report(judgement: Judgement, *, limit: int | None) -> int:
    """Print what is not listed and what no longer differs; return the exit code."""
    for group in GROUPS:
        unlisted = [difference for difference in judgement.unlisted if difference.group == group]
        if unlisted:
            print(f"\n{group}: {len(unlisted)} differences that {LIST.name} does not list")
            cases = dict.fromkeys(difference.case for difference in unlisted)
            for case in cases:
                of_case = [difference for difference in unlisted if difference.case == case]
                show_case(case, of_case, limit=limit)
    if judgement.stale:
        print(f"\n{LIST.name} lists what no longer differs; remove the entry:")
        for entry in judgement.stale:
            print(f"  {entry.address}: {entry.what} ({entry.commit})")
    if judgement.unlisted or judgement.stale:
        print(
            f"\nFAILED: {len(judgement.unlisted)} differences without an entry, "
            f"{len(judgement.stale)} entries without a difference"
        )
        return 1
    if judgement.listed:
        print(f"\nequal, except for {len(judgement.listed)} listed differences")
    else:
        print("\nall equal")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.against", description="Compare this checkout with 0.3.0, to the bit."
    )
    parser.add_argument(
        "environment",
        metavar="ENV",
        type=Path,
        help="folder of an environment with 0.3.0; it is made if it does not exist",
    )
    parser.add_argument(
        "groups",
        metavar="GROUP",
        nargs="*",
        help=f"{', '.join(GROUPS)}, or GROUP/CASE for one case of it; all groups if none is named",
    )
    parser.add_argument("--all", action="store_true", help="print every difference")
    options = parser.parse_args()

    chosen = choose(options.groups)
    try:
        entries = read_list(LIST, GROUPS)
        old = old_side(options.environment.resolve())
        differences = compare_groups(old, this_side(), chosen)
    except (ValueError, CannotCompareError) as error:
        sys.exit(f"error: {error}")
    whole_groups = [group for group, cases in chosen.items() if not cases]
    judgement = judge(differences, entries, whole_groups)
    return report(judgement, limit=None if options.all else MAX_SHOWN)


if __name__ == "__main__":
    sys.exit(main())
