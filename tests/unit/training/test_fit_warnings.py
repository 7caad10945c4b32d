"""What fit says in the log: blocks that a head does not read, and losses of very different size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.small_fit import IDS, Y, head, run, tokens

from dinoneck import (
    Composition,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    TargetTransform,
    Task,
    Tokens,
    load_backbone,
    load_head,
)
from dinoneck.errors import DataError
from dinoneck.losses import TaskLoss, UncertaintyWeighting
from dinoneck.tasks import Interval
from dinoneck.training import LiveTokens, MemoryTokens, engine
from dinoneck.training.fitting import warn_of_unread_layers

SPLIT = {"ids": IDS[:4], "val_ids": IDS[4:]}


@pytest.fixture(autouse=True)
def unread_layers_are_said_again() -> Iterator[None]:
    """Forget what earlier tests of this process have logged: it is logged once per process."""
    warn_of_unread_layers.cache_clear()
    yield
    warn_of_unread_layers.cache_clear()


def tokens_of_layers(*layers: int) -> MemoryTokens:
    one = tokens().sequence[0]
    several = Tokens.from_sequence(
        [one + layer for layer in layers],
        image_size=(32, 48),
        patch_size=16,
        num_prefix_tokens=1,
        layers=layers,
    )
    return MemoryTokens(IDS, several)


def two_tasks(scale: float, **options: Any) -> dict[str, Any]:
    """Two regressions, the second with targets that are larger by a factor."""
    module = head(Task("y"), Task("large", **options))
    return {"module": module, "targets": {"y": Y, "large": scale * (Y + 1)}, **SPLIT}


def calibrated_head() -> HeadEnsemble:
    """An ensemble of one head, whose number, sum and labels were calibrated."""
    interval = Interval(levels=(0.5,), half_widths=(1.0,), groups=3)
    labels = Task("tags", kind="multilabel", labels=("a", "b"), thresholds=(0.2, 0.7))
    tasks = [Task("y", interval=interval), Task("z"), labels]
    both = Composition(("y", "z"), {"both": ("y", "z")}, "sums", interval=(interval,))
    torch.manual_seed(0)
    return HeadEnsemble([PatchMeanHead(8, tasks, hidden_dim=4, compositions=[both])])


def test_a_head_that_is_trained_further_loses_its_intervals_and_thresholds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    HeadCheckpoint.from_module(calibrated_head()).save(tmp_path / "before.safetensors")
    module: Any = load_head(tmp_path / "before.safetensors")
    assert [bool(task.interval) for task in module.predicted] == [True, False, False, True]
    targets = {"y": Y, "z": Y, "tags": np.eye(2)[[0, 1, 0, 1, 0, 1]]}
    loss = TaskLoss(module.tasks, module.compositions)

    run(module, targets=targets, loss=loss, out=tmp_path / "run")

    [record] = [record for record in caplog.records if "thresholds" in record.getMessage()]
    assert "intervals or thresholds of y, tags, sums," in record.getMessage()
    HeadCheckpoint.from_module(module).save(tmp_path / "after.safetensors")
    again: Any = load_head(tmp_path / "after.safetensors")
    for head_of_file in (module, again, again.heads[0]):
        for task in head_of_file.predicted:
            assert (task.interval, task.thresholds) == ((), ())
    assert again.compositions[0].interval == ()
    # the finished run is found again, by the head as it is and by one of the file
    caplog.clear()
    run(module, targets=targets, loss=loss, out=tmp_path / "run")
    assert not caplog.records
    loaded: Any = load_head(tmp_path / "before.safetensors")
    run(loaded, targets=targets, out=tmp_path / "run")


def test_a_training_that_is_refused_leaves_the_intervals_as_they_were() -> None:
    module = calibrated_head()
    tasks = module.predicted

    with pytest.raises(DataError):
        run(module, targets={"y": Y, "z": Y, "tags": np.full((6, 2), 3.0)})

    assert module.predicted == tasks


def test_a_head_of_one_layer_names_the_block_that_it_reads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(source=tokens_of_layers(5, 2))

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "[5, 2]" in record.getMessage()
    assert "PatchMeanHead reads the last one listed, block 2" in record.getMessage()


def test_the_block_that_is_read_is_named_once_for_all_folds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        run(source=tokens_of_layers(5, 2))

    assert len(caplog.records) == 1


def test_the_block_that_is_read_of_a_live_backbone_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backbone = load_backbone("dinoneck_tiny", layers=[4, 1]).unfreeze_last(1)
    source = LiveTokens(backbone, torch.rand(6, 3, 32, 48), IDS)

    run(PatchMeanHead(64, [Task("y")], hidden_dim=4), source)

    [record] = caplog.records
    assert "block 1" in record.getMessage()


def test_a_head_that_reads_all_layers_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pyramid = FPNHead(8, [Task("y")], num_layers=2, layer_indices=(2, 5), fpn_dim=8)

    run(pyramid, tokens_of_layers(2, 5))

    assert not caplog.records


def test_one_layer_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    run(source=tokens_of_layers(5))

    assert not caplog.records


def test_losses_of_very_different_size_are_named_at_the_first_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(**two_tasks(scale=1000.0), epochs=3)

    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "the loss of 'large' is" in record.getMessage()
    assert "that of 'y' is" in record.getMessage()
    assert "TargetTransform().fit" in record.getMessage()


def test_a_fitted_transform_balances_the_losses_so_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transform = TargetTransform().fit(1000.0 * (Y + 1))

    run(**two_tasks(scale=1000.0, transform=transform))

    assert not caplog.records


def test_learned_weights_balance_the_losses_so_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = two_tasks(scale=1000.0)
    loss = TaskLoss(given["module"].tasks, weighting=UncertaintyWeighting(["y", "large"]))

    run(**given, loss=loss)

    assert not caplog.records


@pytest.mark.parametrize("weighted", ["y", "large"])
def test_a_task_with_a_weight_of_its_own_is_not_compared(
    weighted: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody has chosen how much it counts, as the weights of auxiliary tasks are."""
    weights = {"y": 1.0, "large": 1.0, weighted: 0.01}
    module = head(*(Task(name, weight=weight) for name, weight in weights.items()))

    run(module, targets={"y": Y, "large": 1000.0 * (Y + 1)}, ids=IDS[:4])

    assert not caplog.records


def test_a_task_with_few_targets_in_the_first_batch_is_not_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The loss of one sample is small or large by chance."""
    given = two_tasks(scale=1000.0)
    given["targets"]["large"][2:] = np.nan

    run(**given)

    assert not caplog.records


def test_a_run_that_continues_compares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Losses of a trained head differ for good reasons."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)

    def stop(epoch: int, row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(**two_tasks(scale=1000.0), out=tmp_path, epochs=2, callbacks=[stop])
    caplog.clear()

    history = run(**two_tasks(scale=1000.0), out=tmp_path, epochs=2)

    assert len(history) == 2
    assert not caplog.records
