"""The campaign of kills: it finds what is wrong, a short one finds nothing, and the page shows the long one."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.process_group import ROOT, told_by

KILLS = 4


def test_the_page_shows_a_hundred_kills_of_each_run() -> None:
    from benchmarks.kill_campaign import RESULTS, markdown

    stored = json.loads((RESULTS / "kill_campaign.json").read_text())
    page = (ROOT / "docs" / "explanation" / "killed.md").read_text()
    for name, result in stored["runs"].items():
        assert result["identical"] == result["runs"] == len(stored["cases"][name]) >= 100
        assert result["in_a_write_or_rename"] >= 20
        assert markdown(result) in page, f"copy the table of {name} to the page"
    assert stored["runs"]["training"]["in_the_middle_of_an_epoch"] >= 20


@pytest.mark.slow
@pytest.mark.parametrize("job", ["extraction", "training"])
def test_after_a_kill_a_run_ends_bit_for_bit_the_same(job: str, tmp_path: Path) -> None:
    options = ["--jobs", job, "--kills", str(KILLS), "--work", tmp_path, "--out", tmp_path / "report.json"]
    told = told_by([sys.executable, "-m", "benchmarks.kill_campaign", *options], 55)
    result = json.loads((tmp_path / "report.json").read_text())["runs"][job]
    assert result["identical"] == result["runs"] == KILLS, told
    assert sum(row["kills"] for row in result["phases"].values()) >= KILLS


def flip(path: Path, place: int = -1) -> None:
    """Change one bit of a byte."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def cut_a_line(path: Path) -> None:
    """Remove the second line; the first of a store's index names the root folder."""
    first, _, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, *others]))


def double_a_line(path: Path) -> None:
    first, second, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, second, second, *others]))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("extraction", "store/data/*.safetensors", flip, "has other bits"),
    ("extraction", "store/data/*.safetensors", cut_off, "is half written"),
    ("extraction", "store/index/*.jsonl", cut_a_line, "is missing"),
    ("extraction", "store/index/*.jsonl", double_a_line, "lines for"),
    ("extraction", "store/channel_scale.safetensors", flip, "channel_scale.safetensors differs"),
    ("training", "run/log.jsonl", cut_a_line, "the log has other lines"),
    ("training", "run/log.jsonl", double_a_line, "the log is ahead of the state"),
    ("training", "run/log.jsonl", cut_off, "the log differs"),
]


@pytest.mark.slow
def test_the_campaign_sees_every_damage(tmp_path: Path) -> None:
    from benchmarks.kill_campaign_jobs import JOBS, digest, write_photos

    from dinoneck.training.run_state import load_state, save_state

    write_photos(tmp_path / "photos")
    done = {}
    for name, job in JOBS.items():
        (tmp_path / name).mkdir()
        done[name] = job.prepare(tmp_path / name, tmp_path)() | {"steps": None}
    state = load_state(tmp_path / "training" / "run" / "last.safetensors")
    done["training"]["states"] = [digest(state)]

    def problems(name: str) -> str:
        whole, told = tmp_path / f"whole {name}", done[name]
        return ", ".join(JOBS[name].difference(tmp_path / name, whole, told, told))

    for name in JOBS:
        shutil.copytree(tmp_path / name, tmp_path / f"whole {name}")
        assert problems(name) == ""
    for name, pattern, damage, expected in DAMAGES:
        path = next((tmp_path / name).glob(pattern))
        content = path.read_bytes()
        damage(path)
        assert expected in problems(name), damage
        path.write_bytes(content)
    state["ema"]["updates"] += 1
    save_state(tmp_path / "training" / "run" / "last.safetensors", state)
    assert problems("training") == "the state is none that the uninterrupted run wrote, the ema differs"
