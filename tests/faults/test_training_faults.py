"""A training run that is stopped anywhere and started again ends where it would have ended, bit for bit."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.histories import logged, without_times
from tests.unit.training.noisy_head import noisy_head, noisy_source
from torch import Tensor

from dinoneck import CheckpointError
from dinoneck.training import Recipe, engine, fit
from dinoneck.training import folder as run_state
from dinoneck.training.folder import load_state

EPOCHS, IMAGES = 3, 10
RECIPES = {
    "adamw": Recipe(ema_decay=0.9),
    "sam": Recipe(optimizer="sam", rho=0.5, mixup_alpha=0.7),
    "patience": Recipe(patience=2, amp="bf16"),
    "fp16": Recipe(amp="fp16"),
}


class Killed(BaseException):
    """Stands for the end of the process."""


def trained(out: Path | None, recipe: Recipe, **arguments: Any) -> Any:
    """A head with dropout, batch statistics and EMA on a source that draws by itself."""
    head, source, y = noisy_head(), noisy_source(IMAGES), np.linspace(0, 1, IMAGES)
    given = {"epochs": EPOCHS, "batch_size": 3, "lr": 1e-2, "val_ids": source.ids[8:], "ids": source.ids[:8]}
    given["target_ids"] = source.ids
    history = fit(head, source, targets={"x": y}, out=out, recipe=recipe, **{**given, **arguments})
    return head, history


def flat(state: Any, name: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        return {key: value for own, part in state.items() for key, value in flat(part, f"{name}.{own}").items()}
    return {name: state}


def state_of(folder: Path) -> dict[str, Any]:
    """The state in a folder, without times."""
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return {**state, "history": without_times(state["history"])}


def assert_equal(one: Any, two: Any) -> None:
    first, second = flat(one), flat(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        same = torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
        assert same, key


def run_stopped_at(out: Path, recipe: Recipe, stop: Callable[[int], None]) -> int:
    """Start again and again, each attempt stopped a little later, until one comes through; how many were stopped."""
    for attempt in range(200):
        stop(attempt)
        try:
            trained(out, recipe)
        except Killed:
            continue
        return attempt
    raise AssertionError("the run never came to its end")


@pytest.fixture(autouse=True)
def a_state_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_at_every_step_it_ends_bit_for_bit_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, countdown, step = RECIPES[name], [10**9], engine.Engine._step
    head, history = trained(tmp_path / "whole", recipe)

    def dying(self: engine.Engine, group: Any) -> None:
        countdown[0] -= 1
        if countdown[0] < 0:
            raise Killed
        step(self, group)

    monkeypatch.setattr(engine.Engine, "_step", dying)
    stops = run_stopped_at(tmp_path / "parts", recipe, lambda attempt: countdown.__setitem__(0, 3 + attempt % 3))
    assert stops >= EPOCHS - 1
    assert_equal(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
    again, same_history = trained(tmp_path / "parts", recipe)  # nothing left to do
    assert_equal(head.state_dict(), again.state_dict())
    assert without_times(history) == without_times(same_history)
    assert logged(tmp_path / "parts/log.jsonl") == logged(tmp_path / "whole/log.jsonl")


def test_the_state_is_written_every_30_seconds_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(engine.Engine, "_save", lambda self: saved.append(self.epoch))
    for seconds, epochs in ((0.0, [1, 2, 3]), (30.0, [3])):
        saved.clear()
        monkeypatch.setattr(engine, "SAVE_EVERY_S", seconds)
        trained(tmp_path / str(seconds), RECIPES["adamw"])
        assert saved == epochs


def test_the_callers_random_numbers_are_left_alone_and_do_not_matter(tmp_path: Path) -> None:
    head, _ = trained(None, RECIPES["sam"])
    torch.manual_seed(99)
    np.random.seed(3)
    random.seed(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    other, _ = trained(tmp_path, RECIPES["sam"])
    assert_equal(head.state_dict(), other.state_dict())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    trained(tmp_path, RECIPES["patience"])
    return tmp_path / "state.pt"


def test_every_damage_is_refused(state: Path) -> None:
    whole = state.read_bytes()
    for content in (whole[:-5], whole[: len(whole) // 3], b"", b"x" * 100, pickle.dumps({"run": {}}, 2)):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt .*resume=False"):
            trained(state.parent, RECIPES["patience"])
    state.write_bytes(whole)
    expected, refused = state_of(state.parent), 0
    for place in range(0, len(whole), len(whole) // 50):  # names and paddings of the archive mean nothing
        state.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = load_state(state, expected["run"]) or {}
            assert_equal({**found, "history": without_times(found["history"])}, expected)
        except CheckpointError:
            refused += 1
    assert refused > 5
    _, history = trained(state.parent, RECIPES["patience"], resume=False)
    assert len(history) == EPOCHS


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trained(tmp_path / "file" / "run", RECIPES["adamw"])


def test_a_full_disk_keeps_the_older_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, write = [0], run_state.write_whole

    def full(path: Any, content: Any) -> None:
        calls[0] += Path(path).name == "state.pt"
        if calls[0] > 2:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(run_state, "write_whole", full)
    with pytest.raises(CheckpointError, match="No space left"):
        trained(tmp_path, RECIPES["adamw"])
    assert state_of(tmp_path)["epoch"] == 2
    monkeypatch.setattr(run_state, "write_whole", write)
    head, _ = trained(tmp_path, RECIPES["adamw"])
    assert_equal(head.state_dict(), trained(None, RECIPES["adamw"])[0].state_dict())
