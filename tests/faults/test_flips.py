"""Every bit of a small file: all at once in the campaign, a share of them here."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.reliability import flips
from benchmarks.reliability.subjects import file_of, first_schema, small
from tests.reliability_result import stored

from dinoneck import CheckpointError, HeadCheckpoint


def test_the_published_campaign() -> None:
    result = stored("flips")
    assert (result["every"], result["failed"]) == (1, 0)
    assert len(result["files"]) == 3
    for file in result["files"]:
        assert file["flips"] == 8 * file["bytes"] == sum(file["flip_steps"].values())
        assert file["cuts"] == file["bytes"] == sum(file["cut_steps"].values())
    assert result["files"][1]["bytes"] == len(first_schema())


def test_a_share_of_all_bits(tmp_path: Path) -> None:
    result = flips.measure(tmp_path, 1 / 61)
    assert not result["failed"], result
    assert all(file["flips"] > 60 and file["cuts"] > 8 for file in result["files"])
    assert "Only every 61th was taken" in flips.page(result)


@pytest.mark.slow
def test_all_bits_and_lengths_of_the_smallest_head(tmp_path: Path) -> None:
    file = flips.damaged("x", tmp_path / "h", file_of(small), HeadCheckpoint.load)
    assert not file["wrong"]
    assert file["flips"] == 8 * len(file_of(small)) == sum(file["flip_steps"].values())
    assert file["cut_steps"].keys() == {"header", "tensors"}
    assert {"json", "schema", "registry", "config", "tensors", "digest", "header"} == file["flip_steps"].keys()


def test_the_campaign_sees_what_passes_and_what_escapes(tmp_path: Path) -> None:
    def careless(path: Path) -> None:
        content = path.read_bytes()
        if len(content) < 2:
            raise ValueError("short")
        if content[0] != ord("a"):
            raise CheckpointError("no", step="header")

    file = flips.damaged("x", tmp_path / "h", b"ab", careless)
    assert (file["flip_steps"], file["cut_steps"]) == ({"header": 8}, {})
    assert len(file["wrong"]) == 8 + 2
    assert file["wrong"][0] == "bit 0 of byte 1: passed"
    assert file["wrong"][-1] == "cut to 1 bytes: ValueError: short"
    assert (tmp_path / "h").read_bytes() == b"ab"
    assert "cut to 1 bytes: ValueError" in flips.page({"every": 1, "files": [file]})
