"""The same faults in other loaders: the table is what it says, and dinoneck misses none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.reliability import peers
from benchmarks.reliability.peers import NONE, RAISED, REFUSED, SAME, SIGNED, WRONG
from benchmarks.reliability.peers_faults import FAULTS, MARK
from benchmarks.reliability.peers_loaders import LOADERS, OWN
from tests.reliability_result import stored

TORCH, PLAIN = "torch.load(weights_only) + strict", "safetensors load_file + strict"
HARMLESS = {"weights of a head with another setting"}  # a head file brings its own setting along
BY_DIGEST = {"one bit flipped in a weight", "square matrix transposed", "two tensors of one shape exchanged",
             "two layers exchanged", "NaN in a weight", "infinity in a weight",
             "config: value changed, shapes fit"}  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return peers.measure(tmp_path_factory.mktemp("peers"), 1.0, only=(OWN, PLAIN, TORCH))


def check_own(result: dict[str, Any]) -> None:
    """Every fault is refused by one family, or proven harmless."""
    assert result["failed"] == []
    for fault, found in result["outcomes"][OWN].items():
        assert found["outcome"] == (SAME if fault in HARMLESS else REFUSED), fault
    assert result["counts"][OWN]["types"] == ["CheckpointError"]
    by_digest = {fault for fault, found in result["outcomes"][OWN].items() if found["detail"] == "digest"}
    assert by_digest == BY_DIGEST
    signed = {fault: found["detail"] for fault, found in result["outcomes"][SIGNED].items() if found["outcome"] != NONE}
    assert set(signed) == {fault.name for fault in FAULTS if fault.forged}
    assert set(signed.values()) == {"tensors", "finite", "config", "schema"}


def test_the_published_table() -> None:
    result = stored("peers")
    check_own(result)
    assert list(result["outcomes"]) == [
        OWN,
        SIGNED,
        *(name for name in LOADERS if name != OWN and name not in result["not installed"]),
    ]
    for name, column in result["outcomes"].items():
        assert list(column) == [fault.name for fault in FAULTS], name


def test_dinoneck_misses_nothing_and_the_peers_do(quick: dict[str, Any]) -> None:
    check_own(quick)
    for peer in (PLAIN, TORCH):
        found = quick["outcomes"][peer]
        for fault in (*(BY_DIGEST - {"config: value changed, shapes fit"}), "weight as int64", "weight as float8"):
            assert found[fault]["outcome"] == WRONG, (peer, fault)
        assert found["tensor missing"] == {"outcome": RAISED, "detail": "RuntimeError"}
        assert found["config missing"]["outcome"] == NONE
        assert quick["counts"][peer][WRONG] == 10
    assert quick["outcomes"][TORCH]["16 bytes appended"]["outcome"] == SAME
    assert quick["outcomes"][PLAIN]["key twice in the header"]["outcome"] == SAME


def test_the_page_shows_every_fault_and_count(quick: dict[str, Any]) -> None:
    text = peers.page(quick)
    for fault in FAULTS:
        assert f"| {fault.name} |" in text
    assert f"| **silently wrong** | **0** | **0** | **{quick['counts'][TORCH][WRONG]}** |" in text
    assert "torch " in text


def test_outcomes_are_told_apart(tmp_path: Path) -> None:
    right = torch.ones(2)

    def told(load: Any) -> tuple[str, str]:
        found = peers.judged(load, right, tmp_path)
        return found["outcome"], found["detail"]

    def warn() -> torch.Tensor:
        import warnings

        warnings.warn("something is missing", stacklevel=1)
        return right + 1

    def run_code() -> torch.Tensor:
        (tmp_path / MARK).mkdir()
        raise ValueError("too late")

    assert told(lambda: right) == (SAME, "")
    assert told(lambda: right + 1e-6) == (WRONG, "")
    assert told(lambda: right * torch.nan) == (WRONG, "not finite")
    assert told(warn) == (WRONG, "a warning")
    assert told(lambda: {}["x"]) == (RAISED, "KeyError")
    assert told(run_code) == (WRONG, "ran code")


@pytest.mark.slow
def test_the_whole_table(tmp_path: Path) -> None:
    result = peers.measure(tmp_path, 1.0)
    check_own(result)
    for name, counts in result["counts"].items():
        assert (counts[WRONG] == 0) == name.startswith(OWN), name
        assert sum(counts[kind] for kind in (RAISED, REFUSED, WRONG, SAME, NONE)) == len(FAULTS)
    assert len(result["outcomes"]) + len(result["not installed"]) == len(LOADERS) + 1
    mixin = result["outcomes"]["hub mixin"]
    assert mixin["tensor missing"]["outcome"] == mixin["all names with `module.`"]["outcome"] == WRONG
