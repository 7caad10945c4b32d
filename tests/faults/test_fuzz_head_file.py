"""A fuzz target: whatever hypothesis thinks of is refused with a CheckpointError, or is a whole head.

A few examples of each, always the same. ``DINONECK_FUZZ=100000 python -m pytest tests/faults/test_fuzz_head_file.py``
tries so many, others each time; one that fails is printed in its smallest form.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.reliability.forge import with_header
from benchmarks.reliability.forgeries import spelled
from benchmarks.reliability.mutation_seeds import BEHIND, BYTES, WEIGHTS, seed_files
from benchmarks.reliability.mutations import UNCHANGED, WHOLE, Workbench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEPS = {"file", "header", "json", "schema", "registry", "config", "tensors", "digest", "finite"}
MORE = os.environ.get("DINONECK_FUZZ")
fuzz = settings(
    max_examples=int(MORE or 60),
    derandomize=MORE is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
pytestmark = [pytest.mark.timeout(0)] if MORE else []

seeds = st.sampled_from(sorted(WEIGHTS[BEHIND]))
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(10**19), 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 64), st.binary(max_size=64)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    made = Workbench(tmp_path_factory.mktemp("fuzz"), seed_files())
    yield made
    made.close()


@fuzz
@given(st.binary(max_size=2000))
def test_any_bytes(bench: Workbench, content: bytes) -> None:
    assert bench.outcome(BYTES, content)[0] in STEPS


@fuzz
@given(st.binary(max_size=2000), st.binary(max_size=64))
def test_any_bytes_as_header(bench: Workbench, header: bytes, body: bytes) -> None:
    assert bench.outcome(BYTES, len(header).to_bytes(8, "little") + header + body)[0] in STEPS


@fuzz
@given(values, st.binary(max_size=64))
def test_any_json_as_header(bench: Workbench, value: Any, body: bytes) -> None:
    assert bench.outcome(BYTES, with_header(json.dumps(value, ensure_ascii=False), body))[0] in STEPS


@fuzz
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_any_json_as_metadata(bench: Workbench, meta: dict[str, Any]) -> None:
    assert bench.outcome(BEHIND, spelled(meta, {}))[0] in STEPS


@fuzz
@given(seeds, edits)
def test_edited_files(bench: Workbench, seed: str, changes: list[tuple[float, int, bytes]]) -> None:
    content = bench.seeds[seed]
    for share, taken, put in changes:
        place = round(share * len(content))
        content = content[:place] + put + content[place + taken :]
    assert bench.outcome(BYTES, content)[0] in STEPS | ({UNCHANGED} if content in bench.known else set())


@fuzz
@given(seeds, st.lists(st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=6), values), min_size=1, max_size=3))
def test_any_value_at_any_place_behind_the_digest(
    bench: Workbench, seed: str, changes: list[tuple[list[int], Any]]
) -> None:
    meta, state = copy.deepcopy(bench.contents[seed][0]), dict(bench.contents[seed][1])
    for way, value in changes:
        holder: Any = meta
        for number, turn in enumerate(way):
            keys = sorted(holder) if isinstance(holder, dict) else range(len(holder))
            key = keys[turn % len(keys)]
            if number == len(way) - 1 or not isinstance(holder[key], dict | list) or not holder[key]:
                holder[key] = value
                break
            holder = holder[key]
    assert bench.outcome(BEHIND, spelled(meta, state))[0] in STEPS | {WHOLE}
