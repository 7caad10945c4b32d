"""Random damage: the campaign is what it says, it would see a reader's faults, and a short one sees none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from benchmarks.reliability import mutations
from benchmarks.reliability.damage import KINDS, STACKED, damaged
from benchmarks.reliability.forgeries import CHANGES, spelled
from benchmarks.reliability.mutation_seeds import BEHIND, BYTES, OLD, SMALLEST, WEIGHTS, seed_files, twin
from benchmarks.reliability.mutations import SILENT, UNCHANGED, WHOLE, Workbench, jobs, measure
from tests.reliability_result import stored

from dinoneck import HeadCheckpoint
from dinoneck.checkpoint.read import read_file


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    made = Workbench(tmp_path_factory.mktemp("mutations"), seed_files())
    yield made
    made.close()


def test_the_published_campaign() -> None:
    result = stored("mutations")
    assert result["changed"] >= 1_000_000
    assert result["tried"][BEHIND] >= 100_000
    assert len(result["files"]) == len(WEIGHTS[BEHIND]) > len(WEIGHTS[BYTES]) >= 5
    assert set(result["tables"][BYTES]) == {*KINDS, STACKED}
    assert not any(name == SILENT or name.startswith("uncaught") for table in result["tables"].values()
                   for row in table.values() for name in row)  # fmt: skip


def test_shares_are_shares_of_all() -> None:
    assert [round(sum(files.values()), 9) for files in WEIGHTS.values()] == [1.0, 1.0]


def test_a_whole_campaign_is_as_large_as_it_says() -> None:
    sizes = {
        table: sum(last - first for name, *_, first, last in jobs(1.0) if name == table) for table in (BYTES, BEHIND)
    }
    assert sizes[BYTES] >= 1_050_000, "some of them leave the bytes as they were"
    assert sizes[BEHIND] >= 100_000


def test_seed_files_are_sound_and_a_twin_differs_in_its_weights_alone(bench: Workbench) -> None:
    for name, content in bench.seeds.items():
        assert bench.outcome(BYTES, content)[0] == UNCHANGED, name
        other = twin(*bench.contents[name])
        assert len(other) == len(content)
        assert bench.outcome(BYTES, other)[0] == UNCHANGED
        half = 8 + int.from_bytes(content[:8], "little")
        assert bench.outcome(BYTES, content[:half] + other[half:])[0] == "digest"
        assert bench.outcome(BEHIND, spelled(*bench.contents[name]))[0] == WHOLE
    assert len(bench.seeds[SMALLEST]) < 1000


@pytest.mark.parametrize("kind", [*KINDS, STACKED])
def test_damage_is_of_its_kind_and_comes_again(kind: str, bench: Workbench) -> None:
    content, seen = bench.seeds[OLD], set()
    for number in range(300):
        data = damaged(Random(number), kind, content, bench.donors)
        assert data == damaged(Random(number), kind, content, bench.donors)
        seen.add(data)
        if kind in ("flip", "swap"):
            assert len(data) == len(content)
        if kind == "swap":
            assert sorted(data) == sorted(content)
        if kind in ("truncate", "delete"):
            assert len(data) <= len(content)
        if kind == "insert":
            assert len(data) > len(content)
    assert len(seen) > 150
    for empty in (b"", b"\x00", bytes(8), b"\xff" * 9):
        for number in range(100):
            damaged(Random(number), kind, empty, bench.donors)


def test_mutations_follow_from_their_names(bench: Workbench) -> None:
    for table, kinds in ((BYTES, (*KINDS, STACKED)), (BEHIND, tuple(CHANGES))):
        for kind in kinds:
            for seed in WEIGHTS[table]:
                name = f"{table}/{kind}/{seed}/3"
                assert bench.made(name) == bench.made(name)
    assert bench.made(f"{BYTES}/flip/{OLD}/0") != bench.made(f"{BYTES}/flip/{OLD}/1")


def test_the_campaign_sees_what_a_reader_lets_pass(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = read_file(bench.path)
    job = (BYTES, "flip", SMALLEST, 0, 40)

    def told(reader: Any) -> dict[str, Any]:
        monkeypatch.setattr(mutations, "read_file", reader)
        return bench.run(job)

    def lenient(path: Path) -> Any:
        return sound

    def raw(path: Path) -> Any:
        return {}["x"]

    def endless(path: Path) -> Any:
        while True:
            try:
                sum(range(1000))
            except Exception:  # must not swallow the end
                continue

    result = told(lenient)
    assert result["found"][SILENT] == 40
    assert '--repeat "bytes/flip/the smallest/0"' in result["problems"][0]
    assert told(raw)["found"]["uncaught KeyError"] == 40
    monkeypatch.setattr(mutations, "LIMIT_S", 0.02)
    job = (BYTES, "flip", SMALLEST, 0, 2)
    assert told(endless)["found"]["uncaught TooLong"] == 2
    assert mutations._bad(result["found"]) == 40


def test_the_campaign_sees_heads_that_do_not_stay_what_they_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = spelled(*bench.contents[SMALLEST])
    save = HeadCheckpoint.save
    monkeypatch.setattr(HeadCheckpoint, "save", lambda self, path: Path(path).write_bytes(b"other"))
    assert bench.outcome(BEHIND, content)[0] == SILENT
    monkeypatch.setattr(HeadCheckpoint, "save", save)
    monkeypatch.setattr(HeadCheckpoint, "build", lambda self: [][0])
    assert bench.outcome(BEHIND, content)[0] == "uncaught IndexError of a loaded head"


@pytest.mark.slow
def test_a_short_campaign(tmp_path: Path) -> None:
    result = measure(tmp_path, 0.002)
    assert result["failed"] == 0, result["problems"]
    assert result["tried"][BYTES] > 2000
    assert result["tried"][BEHIND] > 200
    for table, needed in ((BYTES, {"header", "json", "schema", "tensors", "digest"}),
                          (BEHIND, {"schema", "registry", "config", "tensors", "finite", WHOLE})):  # fmt: skip
        found = {name for row in result["tables"][table].values() for name in row}
        assert needed <= found, "a campaign that reaches few steps proves little"
    assert "uncaught" in mutations.page(result)


@pytest.mark.slow
def test_processes_do_the_same(tmp_path: Path) -> None:
    alone, shared = measure(tmp_path, 0.0003), measure(tmp_path, 0.0003, workers=2)
    for key in ("failed", "tried", "changed", "tables"):
        assert alone[key] == shared[key]
