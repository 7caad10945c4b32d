"""``dinoneck bench``: what is timed is what was asked for; no test judges a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.kit import write_images

from dinoneck import Backbone, PatchMeanHead, Task
from dinoneck.cli import backbone as verbs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_SECONDS", 0.01)


def test_the_parts_are_those_of_a_prediction(tiny: Backbone, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    class Head(PatchMeanHead):
        def predict(self, tokens):  # type: ignore[no-untyped-def]
            assert not self.training
            assert not torch.is_grad_enabled()
            seen.append(tuple(tokens.patches[0].shape))
            return super().predict(tokens)

    modules = {"backbone": tiny, "head": Head(64, [Task("x")]).train()}
    prepare = tiny.preprocess.changed(size=(32, 48))
    rows = verbs._measure(write_images(tmp_path, ["p.png"]) * 2, prepare, modules)
    assert set(seen) == {(2, 6, 64)}
    assert [row["part"] for row in rows] == ["prepare", "backbone", "head"]
    assert modules["head"].training, "modules are left as they were"
