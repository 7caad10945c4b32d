"""The time of a run that is stated before its first epoch, and the peak memory that its report states."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.meadow import a_run, files_of, write_meadow
from torch import nn

from dinoneck import CheckpointError, PatchMeanHead, TargetTransform, Task, Tokens
from dinoneck.devices import peak_memory_mb
from dinoneck.losses import TaskLoss
from dinoneck.training import MemoryTokens, Recipe, run, train
from dinoneck.training.fitting import seconds_per_image

pytestmark = pytest.mark.slow

MASKS = {"labels": "mask", "classes": ["soil", "crop", "weed"]}
WIDTH = 8


@pytest.fixture(scope="module")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meadow(tmp_path_factory.mktemp("meadow"))


class SlowHead(PatchMeanHead):
    """A head with batch normalisation and dropout that takes 20 ms more per image."""

    def __init__(self, embed_dim: int, tasks: Any, hidden_dim: int = 4) -> None:
        super().__init__(embed_dim, tasks, hidden_dim=hidden_dim)
        self.norm = nn.BatchNorm1d(embed_dim)
        self.dropout = nn.Dropout(0.5)
        self.sizes: list[int] = []

    def forward(self, tokens: Any, **plain: Any) -> dict[str, torch.Tensor]:
        sequence = tokens.last.sequence[0]
        self.sizes.append(len(sequence))
        time.sleep(0.02 * len(sequence))
        self.dropout(self.norm(sequence.mean(dim=1)))
        return super().forward(tokens, **plain)


def random_states() -> tuple[Any, ...]:
    """The state of every generator."""
    return (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())


@pytest.mark.parametrize(("optimizer", "passes"), [("adamw", 1), ("sam", 2)])
def test_the_time_of_an_image_is_that_of_a_step_on_a_copy(optimizer: Any, passes: int) -> None:
    """20 ms per image and pass; weights, statistics, gradients and random numbers stay."""
    ids = [f"{i}" for i in range(12)]
    patches = torch.randn(12, 6, WIDTH)
    source = MemoryTokens(ids, Tokens.from_patches(patches, grid=(2, 3), patch_size=16))
    values = torch.rand(12, 1).numpy()
    head = SlowHead(WIDTH, [Task("y", transform=TargetTransform().fit(values))])
    head.eval()
    weights = {name: value.clone() for name, value in head.state_dict().items()}
    states = random_states()

    seconds = seconds_per_image(
        head,
        source,
        {"y": values},
        ids=ids,
        target_ids=ids,
        weights={},
        loss=TaskLoss(head.tasks),
        recipe=Recipe(optimizer=optimizer, batch_size=8),
    )

    assert 0.02 * passes <= seconds < 0.2 * passes
    assert random_states() == states
    assert not head.training
    assert head.sizes == [], "the head itself ran"
    assert all(parameter.grad is None for parameter in head.parameters())
    for name, value in head.state_dict().items():
        assert torch.equal(value, weights[name])


class Stopped(Exception):
    """Ends a run."""


def stop_after_an_epoch(epoch: int, _: Any) -> None:
    raise Stopped


@pytest.mark.parametrize(
    ("head", "seconds", "line"),
    [
        # 2 folds of 6 images to train on and 6 to predict (a third of the cost), 2 epochs: 32
        pytest.param(None, 1.0, None, id="a short run"),
        pytest.param(None, 10.0, "about 5 min for the 2 folds", id="minutes"),
        pytest.param(
            None, 30.0, "about 16 min for the 2 folds; --head dense is much faster", id="fpn"
        ),
        pytest.param(
            "dpt_neck", 30.0, "about 16 min for the 2 folds; --head fpn is much faster", id="dpt"
        ),
        pytest.param("dense", 300.0, "about 2.7 h for the 2 folds", id="none is cheaper"),
    ],
)
def test_a_long_run_states_its_time_before_the_first_epoch(
    head: str | None,
    seconds: float,
    line: str | None,
    meadow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "seconds_per_image", lambda *_, **__: seconds)
    config = a_run(meadow, data=MASKS, head={} if head is None else {"type": head})

    with pytest.raises(Stopped):
        train(config, tmp_path / "run", callbacks=[stop_after_an_epoch])

    lines = capsys.readouterr().err.splitlines()
    if line is None:
        assert not any("about" in text for text in lines)
    else:
        [estimate] = [number for number, text in enumerate(lines) if "about" in text]
        assert lines[estimate] == line
        assert not any(text.startswith("fold 0, epoch 1") for text in lines[:estimate])


def test_the_time_of_a_run_is_stated_once_for_all_folds(
    meadow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "seconds_per_image", lambda *_, **__: 300.0)
    config = a_run(meadow, data=MASKS, head={"type": "dense"})

    train(config, tmp_path / "run")

    lines = capsys.readouterr().err.splitlines()
    first_epoch = next(text for text in lines if text.startswith("fold 0, epoch 1 of 2: loss "))
    assert lines.index("about 2.7 h for the 2 folds") < lines.index(first_epoch)
    assert sum("about" in text for text in lines) == 1


def refuse(*_: Any, **__: Any) -> float:
    """Stands for a head that cannot be copied."""
    raise RuntimeError("Only Tensors created explicitly by the user support deepcopy")


def test_the_estimate_changes_no_result(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = a_run(meadow, ["crop"], head={"type": "fpn", "fpn_dim": 8})
    train(config, tmp_path / "with")
    monkeypatch.setattr(run, "seconds_per_image", refuse)

    train(config, tmp_path / "without")

    assert files_of(tmp_path / "with") == files_of(tmp_path / "without")


def test_a_head_that_cannot_be_copied_is_trained_without_an_estimate(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "seconds_per_image", refuse)

    report = train(a_run(meadow, ["crop"]), tmp_path / "run")

    assert report["predicted"] == 12


# the default head


def test_masks_of_classes_are_learned_by_an_fpn_head_on_the_last_block(
    meadow: Path, tmp_path: Path
) -> None:
    """It is trained as the head that is named so."""
    one_epoch = {"epochs": 1}
    report = train(a_run(meadow, data=MASKS, optim=one_epoch), tmp_path / "default")
    named_head = a_run(meadow, data=MASKS, optim=one_epoch, head={"type": "fpn"})
    train(named_head, tmp_path / "named")

    assert report["backbone"]["layers"] == [5]
    default = files_of(tmp_path / "default")
    named = files_of(tmp_path / "named")
    for log in ("logs/fold-0.jsonl", "logs/fold-1.jsonl"):
        assert default[log] == named[log]


def test_a_run_of_masks_that_0_3_began_is_not_continued_with_another_head(
    meadow: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        """Ends a run after the first epoch of its second fold."""

    epochs: list[int] = []

    def stop(epoch: int, _: Any) -> None:
        epochs.append(epoch)
        if len(epochs) == 3:
            raise Stopped

    config = a_run(meadow, data=MASKS)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", callbacks=[stop])
    record = tmp_path / "run" / "unfinished" / "run.json"
    values = json.loads(record.read_text())
    del values["default head of masks"]
    record.write_text(json.dumps(values))

    with pytest.raises(CheckpointError, match="default head of masks"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("targets", "data"),
    [
        pytest.param(["crop"], {}, id="numbers"),
        pytest.param(["crop"], MASKS, id="numbers and masks"),
        pytest.param([], {"labels": "mask", "label_kind": "numbers"}, id="masks of numbers"),
    ],
)
def test_other_trainings_have_the_default_heads_of_0_3(
    targets: list[str], data: dict[str, Any], meadow: Path, tmp_path: Path
) -> None:
    config = a_run(meadow, data={"targets": targets, **data})
    trainer = run.prepare(config, tmp_path / "run")

    assert trainer.config.head == {}
    assert type(trainer.heads["0"]).__name__ == ("DenseHead" if data else "PatchMeanHead")


# memory


def test_reports_state_the_most_memory_of_all_epochs_and_predictions(
    meadow: Path, tmp_path: Path
) -> None:
    report = train(a_run(meadow, ["crop"]), tmp_path)

    peaks = []
    for log in (tmp_path / "logs").iterdir():
        for line in log.read_text().splitlines():
            peaks.append(json.loads(line)["peak_memory_mb"])
    present = peak_memory_mb(torch.device("cpu"))
    assert present is not None
    # torch alone takes more than 50 MiB
    assert 50 < max(peaks) <= report["peak_memory_mb"] <= present


def test_nothing_is_stated_where_the_system_does_not_tell_the_memory(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where Python has no module ``resource``."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mb(torch.device("cpu")) is None

    report = train(a_run(meadow, ["crop"]), tmp_path)

    assert "peak_memory_mb" not in report
    row = json.loads((tmp_path / "logs" / "fold-0.jsonl").read_text().splitlines()[0])
    assert "seconds" in row and "peak_memory_mb" not in row
