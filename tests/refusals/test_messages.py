"""One cause, one message: rows of the tables share a message only where that is meant.

``shared_messages.json`` lists which rows give the same message, values left out; no wording is
stored. Two messages that become one put rows with different causes into one group. After a change
that is meant: ``python -m tests.refusals.test_messages``, and review the diff.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from tests.refusals import Row, rows_by_id, run

FILE = Path(__file__).with_name("shared_messages.json")


def without_values(message: str, folder: Path) -> str:
    """A message with its paths, quoted texts, brackets and numbers replaced by placeholders."""
    message = re.sub(rf"{re.escape(str(folder.parent))}/\S*", "<path>", message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "<text>", message)
    message = re.sub(r"\b[0-9a-f]{16,}\b", "<number>", message)  # hashes and random names
    message = re.sub(r"\([^)]*\)|\[[^\]]*\]|\{[^}]*\}", "<several>", message)
    return re.sub(r"[-+]?\d[\d.,e+-]*", "<number>", message)


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


def shared_messages(rows: dict[str, Row]) -> list[list[str]]:
    """The ids of rows that give one message, for every message that several rows give."""
    ids: dict[str, list[str]] = defaultdict(list)
    for row_id, row in rows.items():
        ids[message_of(row)].append(row_id)
    return sorted(group for group in ids.values() if len(group) > 1)


@pytest.mark.slow
def test_no_two_causes_share_a_message() -> None:
    """A group that is new here is one message for several causes: write one for each."""
    assert shared_messages(rows_by_id()) == json.loads(FILE.read_text())


def refuse_rows(count: int) -> None:
    if count < 1:
        raise ValueError(f"there are {count} rows; expected one or more")
    raise ValueError(f"{count} rows are more than a grid of 2 holds")


def refuse_rows_in_one_message(count: int) -> None:
    raise ValueError(f"there are {count} rows; expected 1 to 2")


def test_messages_that_differ_in_values_alone_are_one_message() -> None:
    rows: dict[str, Row] = {
        "none": (lambda: refuse_rows(0), ValueError, "0"),
        "negative": (lambda: refuse_rows(-1), ValueError, "-1"),
        "too many": (lambda: refuse_rows(3), ValueError, "3"),
    }
    assert shared_messages(rows) == [["none", "negative"]]


def test_two_merged_messages_are_found() -> None:
    rows: dict[str, Row] = {
        "none": (lambda: refuse_rows_in_one_message(0), ValueError, "0"),
        "too many": (lambda: refuse_rows_in_one_message(3), ValueError, "3"),
    }
    assert shared_messages(rows) == [["none", "too many"]]


if __name__ == "__main__":
    FILE.write_text(json.dumps(shared_messages(rows_by_id()), indent=1) + "\n")
