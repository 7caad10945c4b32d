"""One cause, one message: rows of the tables share a message only where that is meant.

``shared_messages.json`` lists which rows give the same message, values and names left out; no
wording is stored. Two messages that become one put rows with different causes into one group. After
a change that is meant: ``python -m tests.refusals.test_messages``, and review the diff.

Left out are what a call gives (quoted texts, numbers, paths, names of files, lists) and what it is
about (the words before "is" and "are", arguments, classes, names with an underscore). So "tta is
'x'; this value is not possible" and "overlap is 8; this value is not possible" are one message.

Two messages that become one are not found if each still has a word of its own: a plain word that is
not before "is" ("the store holds …", "the folder holds …"), or a list that one call gives in
brackets and the other does not.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.refusals import Row, rows_by_id, run

FILE = Path(__file__).with_name("shared_messages.json")
WRITE_AGAIN = "python -m tests.refusals.test_messages"
VALUE = "<value>"
FILE_NAME = re.compile(
    r"[\w./-]*\w\.(safetensors|csv|jsonl?|yaml|toml|png|jpg|onnx|pt2?|html|sqlite)\b"
)
NAME_IN_CODE = re.compile(r"\b[A-Za-z]+(?:[A-Z][a-z0-9]+|_[a-z0-9]+)\w*\b")
"""A class (``HeadEnsemble``), or a name with an underscore (``min_score``)."""
SUBJECT = re.compile(r"(?:^|(?<=\s))(?:--)?[\w<>.]+=?(?=:? (?:is|are)\b)")
"""The word before "is" or "are": mostly the argument that a message is about."""
ARGUMENT = re.compile(r"\b\w+=")
VALUES_IN_A_ROW = re.compile(rf"({VALUE}[ ,:.]*)+")

Groups = list[list[str]]
"""Ids of rows that give the same message, for every message that several rows give."""


def without_values(message: str, folder: Path) -> str:
    """A message whose paths, quoted texts, brackets, numbers and names are all one placeholder."""
    message = re.sub(rf"{re.escape(str(folder.parent))}/\S*", VALUE, message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", VALUE, message)
    message = re.sub(r"\b[0-9a-f]{16,}\b", VALUE, message)  # hashes and random names
    message = re.sub(r"\([^)]*\)|\[[^\]]*\]|\{[^}]*\}", VALUE, message)
    message = re.sub(r"[-+]?\d[\d.,e+-]*", VALUE, message)
    for names in (FILE_NAME, NAME_IN_CODE, SUBJECT):
        message = names.sub(VALUE, message)
    message = ARGUMENT.sub(f"{VALUE}=", message)
    return VALUES_IN_A_ROW.sub(f"{VALUE} ", message)


def message_of(row: Row) -> str:
    """What the call of a row raises, without values."""
    call, error, _ = row
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        try:
            run(call, folder)
        except error as refused:
            return without_values(str(refused), folder)
    raise AssertionError(f"expected {error.__name__}")


def shared_messages(rows: dict[str, Row]) -> Groups:
    """The ids of rows that give one message, for every message that several rows give."""
    ids: dict[str, list[str]] = defaultdict(list)
    for row_id, row in rows.items():
        ids[message_of(row)].append(row_id)
    return sorted(group for group in ids.values() if len(group) > 1)


def changes(listed: Groups, shared: Groups) -> str:
    """Say which groups are new or larger, and which are lost or smaller; empty if none is."""
    new = [group for group in shared if not is_within(group, listed)]
    lost = [group for group in listed if not is_within(group, shared)]
    lines = []
    if new:
        lines.append("rows that give one message now; write one message for each cause:")
        lines += [f"  {describe(group, listed)}" for group in new]
    if lost:
        lines.append("rows that gave one message, and do not any more or have another id:")
        lines += [f"  {describe(group, shared)}" for group in lost]
    if lines:
        lines.append(f"if this is meant: {WRITE_AGAIN}, and review the diff")
    return "\n".join(lines)


def is_within(group: Sequence[str], others: Groups) -> bool:
    """Whether a group is one of the others, or a part of it."""
    return any({*group} <= {*other} for other in others)


def describe(group: Sequence[str], others: Groups) -> str:
    """Name the rows of a group; of those that share another group already, the first stands for all."""
    remaining = list(group)
    parts = []
    for other in others:
        shared = [row_id for row_id in remaining if row_id in other]
        if shared:
            remaining = [row_id for row_id in remaining if row_id not in other]
            rest = f" (and {len(shared) - 1} of its group)" if len(shared) > 1 else ""
            parts.append(f"{shared[0]}{rest}")
    return " | ".join([*remaining, *parts])


@pytest.mark.slow
def test_no_two_causes_share_a_message() -> None:
    """A group that is new here is one message for several causes: write one for each."""
    found = changes(json.loads(FILE.read_text()), shared_messages(rows_by_id()))
    if found:
        pytest.fail(found, pytrace=False)


def refuse_rows(count: int) -> None:
    if count < 1:
        raise ValueError(f"there are {count} rows; expected one or more")
    raise ValueError(f"{count} rows are more than a grid of 2 holds")


def refuse_in_one_message(count: int) -> None:
    raise ValueError(f"there are {count} rows; expected 1 to 2")


def refuse_views(tta: str) -> None:
    raise ValueError(f"tta is {tta!r}; this value is not possible")


def refuse_overlap(overlap: int) -> None:
    raise ValueError(f"overlap is {overlap}; this value is not possible")


def test_messages_that_differ_in_values_alone_are_one_message() -> None:
    rows: dict[str, Row] = {
        "none": (lambda: refuse_rows(0), ValueError, "0"),
        "negative": (lambda: refuse_rows(-1), ValueError, "-1"),
        "too many": (lambda: refuse_rows(3), ValueError, "3"),
    }
    assert shared_messages(rows) == [["none", "negative"]]


def test_two_merged_messages_are_found() -> None:
    rows: dict[str, Row] = {
        "none": (lambda: refuse_in_one_message(0), ValueError, "0"),
        "too many": (lambda: refuse_in_one_message(3), ValueError, "3"),
    }
    assert shared_messages(rows) == [["none", "too many"]]


def test_merged_messages_about_two_arguments_are_found() -> None:
    rows: dict[str, Row] = {
        "views": (lambda: refuse_views("x"), ValueError, "x"),
        "overlap": (lambda: refuse_overlap(8), ValueError, "8"),
    }
    assert shared_messages(rows) == [["views", "overlap"]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            "min_score is 3; expected less", "max_boxes is 4; expected less", id="arguments"
        ),
        pytest.param(
            "Task(dim=) is 3; expected less",
            "PatchMeanHead(width=) is 4; expected less",
            id="arguments of classes",
        ),
        pytest.param("pass tile= or leave it out", "pass backbone= or leave it out", id="remedies"),
        pytest.param("DenseHead serves no ratio", "PyramidHead serves no ratio", id="classes"),
        pytest.param("run.yaml has no columns", "../tables/a.csv has no columns", id="files"),
        pytest.param("/data/x/run.yaml: lr is 3", "rate is 3", id="a file before the argument"),
        pytest.param("DenseHead: lr is 3", "rate is 3", id="a class before the argument"),
        pytest.param("it has 2 columns: 'a', 'b'", "it has 1 columns: 'a'", id="lists"),
        pytest.param("'a': 'b' has no unit", "'a' has no unit", id="a value after a colon"),
        pytest.param("'a'.'b' has no unit", "'a' has no unit", id="a value after a point"),
    ],
)
def test_names_and_values_are_left_out(one: str, other: str) -> None:
    folder = Path("/data/x")
    assert without_values(one, folder) == without_values(other, folder)


def test_a_plain_word_that_differs_makes_two_messages() -> None:
    one = without_values("a has 2 rows", Path("/data/x"))
    other = without_values("a has 2 columns", Path("/data/x"))
    assert one != other


def test_a_list_that_fits_has_no_changes() -> None:
    assert changes([["a", "b"], ["c", "d"]], [["a", "b"], ["c", "d"]]) == ""


def test_new_groups_are_named_with_the_command_that_lists_them() -> None:
    found = changes([["a", "b"]], [["a", "b", "e"], ["c", "d"]])
    assert found.splitlines() == [
        "rows that give one message now; write one message for each cause:",
        "  e | a (and 1 of its group)",
        "  c | d",
        f"if this is meant: {WRITE_AGAIN}, and review the diff",
    ]


def test_lost_groups_are_named_with_the_command_that_lists_them() -> None:
    found = changes([["a", "b"], ["c", "d", "e"]], [["c", "d"]])
    assert found.splitlines() == [
        "rows that gave one message, and do not any more or have another id:",
        "  a | b",
        "  e | c (and 1 of its group)",
        f"if this is meant: {WRITE_AGAIN}, and review the diff",
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(shared_messages(rows_by_id()), indent=1) + "\n")
