"""A run's folder: what a stopped run leaves and continues from, what is replaced, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.unit.training.histories import without_memory
from tests.unit.training.meadow import a_run, files_of, write_meadow

from dinoneck import (
    CheckpointError,
    DataError,
    PatchMeanHead,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.checkpoint.backbone_part import changed_weights
from dinoneck.data import Pasture
from dinoneck.training import MemoryTokens, TrainConfig, engine, folder, run, train
from dinoneck.training.run_tokens import RunTokens
from dinoneck.training.table import table_of

pytestmark = pytest.mark.slow

N = 8
FILES = [
    "baselines/fold-0.safetensors",
    "baselines/fold-1.safetensors",
    "data.jpg",
    "data.json",
    "data.txt",
    "head.safetensors",
    "heads/fold-0.safetensors",
    "heads/fold-1.safetensors",
    "logs/fold-0.jsonl",
    "logs/fold-1.jsonl",
    "out_of_fold.csv",
    "report.json",
    "trained_on.csv",
]


FIRST_STEP_OF_FOLD_1 = 5  # of the optimizer: a fold takes two epochs of two batches


class Stopped(Exception):
    """Stands for anything that ends a run."""


@pytest.fixture(scope="module")
def pasture() -> pd.DataFrame:
    """Eight images in memory with one mass."""
    table = Pasture(size=(32, 64)).table(range(N))[["images", "GDM_g"]]
    table.attrs = {}
    return table


def stop_at(step: int, whole: Any = torch.optim.AdamW.step) -> Any:
    """A function, an optimizer's step if none is given, that ends the run when it is called so often."""
    calls: list[None] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == step:
            raise Stopped
        return whole(*arguments, **options)

    return counted


def test_a_stopped_run_continues_to_the_same_files(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first epoch, between epochs, and in the second fold; three steps are an epoch of six images."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    options = {"optim": {"batch_size": 2, "ema_decay": 0.9}, "predict_with": "average"}
    config = a_run(meadow, ["crop", "kind"], **options)  # type: ignore[arg-type]
    whole = train(config, tmp_path / "whole")
    for step in (2, 4, 5):  # counted from the state that the call before left
        stopped(config, tmp_path / "parts", monkeypatch, step)
        assert not (tmp_path / "parts" / "report.json").exists()
        assert (tmp_path / "parts" / "unfinished").is_dir()
    assert without_memory(train(config, tmp_path / "parts")) == without_memory(whole)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert sorted(files_of(tmp_path / "whole")) == FILES


def test_an_overwritten_run_keeps_the_earlier_results_until_its_report(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    run = tmp_path / "run"
    train(a_run(meadow, ["crop"]), run)
    before = files_of(run)
    other = a_run(meadow, ["kind"])
    stopped(other, run, monkeypatch, overwrite=True)
    assert files_of(run / "earlier") == before
    assert not (run / "report.json").exists()
    # a second interruption does not replace them by half a run
    stopped(other, run, monkeypatch, overwrite=True, resume=False)
    assert files_of(run / "earlier") == before
    report = train(other, run)
    assert report["config"]["data"]["targets"] == ["kind"]
    assert not (run / "earlier").exists()


def test_a_run_without_a_finished_epoch_does_not_block_the_corrected_one(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(a_run(meadow, ["crop"]), tmp_path / "run", monkeypatch, step=1)
    report = train(a_run(meadow, ["kind"]), tmp_path / "run")
    assert report["config"]["data"]["targets"] == ["kind"]


def test_the_head_of_a_fold_of_another_run_is_refused_by_name(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    fold = Path("heads", "fold-0.safetensors")
    config = a_run(meadow, ["crop"])
    other = a_run(meadow, ["crop"], optim={"seed": 7})
    for name, of_name in (("run", config), ("other", other)):
        stopped(of_name, tmp_path / name, monkeypatch, step=FIRST_STEP_OF_FOLD_1)
    (tmp_path / "run" / fold).write_bytes((tmp_path / "other" / fold).read_bytes())
    with pytest.raises(CheckpointError, match="not the file that this run wrote.*remove it"):
        train(config, tmp_path / "run")
    (tmp_path / "run" / fold).unlink()  # the remedy
    whole = train(config, tmp_path / "whole")
    assert without_memory(train(config, tmp_path / "run")) == without_memory(whole)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_run_killed_between_a_head_and_its_note_ends_with_the_same_files(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    config = a_run(meadow, ["crop"])
    with monkeypatch.context() as own:
        own.setattr(folder, "note_finished_head", stop_at(1))
        with pytest.raises(Stopped):
            train(config, tmp_path / "parts")
    assert (tmp_path / "parts" / "heads" / "fold-0.safetensors").exists()
    whole = train(config, tmp_path / "whole")
    assert without_memory(train(config, tmp_path / "parts")) == without_memory(whole)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def stopped(
    config: TrainConfig, folder: Path, patch: pytest.MonkeyPatch, step: int = 3, **options: Any
) -> None:
    """End a run at a step of the optimizer."""
    with patch.context() as own:
        own.setattr(torch.optim.AdamW, "step", stop_at(step))
        with pytest.raises(Stopped):
            train(config, folder, **options)


def test_another_config_or_other_data_do_not_continue_a_run(
    meadow: Path, pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    stopped(a_run(meadow, ["crop"]), tmp_path / "file", monkeypatch)
    for changes, named in (
        ({"optim": {"lr": 0.5}}, "optim"),
        ({"head": {"hidden_dim": 5}}, "head"),
        ({}, "targets"),
    ):
        targets = ["crop"] if changes else ["weed"]
        with pytest.raises(CheckpointError, match=named):
            train(a_run(meadow, targets, **changes), tmp_path / "file")
    train(a_run(meadow, ["weed"]), tmp_path / "file", resume=False)
    assert sorted(files_of(tmp_path / "file")) == FILES
    stopped(a_run(None), tmp_path / "frame", monkeypatch, table=pasture)
    values, images = pasture.copy(), pasture.copy()
    values.iloc[0, 1] += 1.0
    images["images"] = [255 - image for image in pasture["images"]]
    for table in (values, images, pasture[::-1]):
        with pytest.raises(CheckpointError):
            train(a_run(None), tmp_path / "frame", table=table)
    assert train(a_run(None), tmp_path / "frame", table=pasture)["images"] == N


def test_a_run_goes_on_with_tokens_that_another_device_rounds(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    config = a_run(meadow, ["crop"])
    stopped(config, tmp_path / "run", monkeypatch)
    extract = MemoryTokens.extract

    def rounded(*arguments: Any, **options: Any) -> MemoryTokens:
        made = extract(*arguments, **options)
        for layer in made.tokens.sequence:
            layer.mul_(1.002)
        return made

    monkeypatch.setattr(MemoryTokens, "extract", rounded)
    assert train(config, tmp_path / "run")["config"]["data"]["targets"] == ["crop"]


@pytest.mark.parametrize("changes", [{"seed": 5}, {"layers": [2]}], ids=["weights", "layers"])
def test_tokens_that_a_backbone_makes_are_those_of_its_weights_and_settings(
    changes: dict[str, Any], pasture: pd.DataFrame
) -> None:
    images = list(pasture["images"])
    ids = [str(number) for number in range(N)]
    first = MemoryTokens.extract(load_backbone("dinoneck_tiny"), images, ids)
    again = MemoryTokens.extract(load_backbone("dinoneck_tiny"), images, ids)
    other = MemoryTokens.extract(load_backbone("dinoneck_tiny", **changes), images, ids)
    replaced = MemoryTokens.extract(
        load_backbone("dinoneck_tiny"), [255 - images[0], *images[1:]], ids
    )
    assert first.digest(ids) == again.digest(ids)
    assert first.digest(ids) != other.digest(ids)
    assert first.digest(ids) != replaced.digest(ids)
    assert first.digest(ids[1:]) == replaced.digest(ids[1:])


def test_a_backbone_that_its_training_left_as_it_was_is_not_in_the_heads_file(
    meadow: Path, tmp_path: Path
) -> None:
    config = a_run(meadow, ["crop"], backbone={"unfreeze_last": 1})
    table = table_of(config)
    tokens = RunTokens.open(config, table)
    live = tokens.live(config)
    assert live is not None
    weights = changed_weights(live.backbone)
    file = tmp_path / "h.safetensors"
    head = PatchMeanHead(64, [Task("crop")])
    save_head(file, head, backbone=live.backbone, backbone_weights=weights)
    again = tokens.live(config, file)
    assert weights is None
    assert again is not None
    assert again.backbone.fingerprint == load_backbone("dinoneck_tiny").fingerprint


def test_tokens_of_taken_parts_know_the_images_that_they_are_of(meadow: Path) -> None:
    config = a_run(meadow, ["crop"])
    images = RunTokens.open(config, table_of(config))
    whole = table_of(config).images
    parts = [whole[row] for row in (0, 0, 1, 1, 2)]
    tokens = images.cut(parts, ids=["a", "b", "c", "d", "e"], image_rows=np.array([0, 0, 1, 1, 2]))

    taken = tokens.take([1, 3, 4])

    assert taken.ids == ["b", "d", "e"]
    assert taken.rows_of(np.array([1, 2])).tolist() == [1, 2]


def test_results_are_replaced_on_request_only(meadow: Path, tmp_path: Path) -> None:
    """Files of others stay in the folder.

    A run of LoRA weights does not read the replaced heads, which have none.
    """
    (tmp_path / ".keep").touch()
    train(a_run(meadow, ["crop"], folds={"count": 3}), tmp_path)
    (tmp_path / "notes.txt").write_text("kept")
    before = files_of(tmp_path)
    with pytest.raises(DataError, match=r"report\.json.*overwrite=True"):
        train(a_run(meadow, ["weed"]), tmp_path)
    assert files_of(tmp_path) == before
    train(a_run(meadow, ["weed"]), tmp_path, overwrite=True)
    assert sorted(files_of(tmp_path)) == sorted([*FILES, ".keep", "notes.txt"])
    train(a_run(meadow, ["weed"], backbone={"lora": 2}), tmp_path, overwrite=True)


@pytest.mark.parametrize("step", ["scores_of", "fold_metrics", "prediction_rows"])
def test_a_report_that_fails_costs_no_training(
    pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = train(a_run(None), tmp_path / "undisturbed", table=pasture)
    with monkeypatch.context() as patch:
        # the others are called for each fold, then for the report
        last = 1 if step == "prediction_rows" else 3
        patch.setattr(run.reports, step, stop_at(last, getattr(run.reports, step)))
        with pytest.raises(Stopped):
            train(a_run(None), tmp_path / "run", table=pasture)
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda *_, **__: pytest.fail("it is trained again")
    )
    assert without_memory(train(a_run(None), tmp_path / "run", table=pasture)) == without_memory(
        whole
    )
    assert files_of(tmp_path / "run") == files_of(tmp_path / "undisturbed")


def test_predictions_that_are_not_finite_are_named(
    pasture: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run.fit

    def diverged(head: Any, *arguments: Any, **given: Any) -> Any:
        history = real(head, *arguments, **given)
        with torch.no_grad():
            head.mlps[0].out.bias.fill_(3e38)
        return history

    monkeypatch.setattr(run, "fit", diverged)
    with pytest.raises(DataError, match=r"fold 0: .*GDM_g"):
        train(a_run(None), tmp_path, table=pasture)


def test_heads_are_not_written_into_a_folder_of_images(tmp_path: Path) -> None:
    config = a_run(write_meadow(tmp_path), ["crop"])
    for name in ("", "heads", "logs"):
        (tmp_path / name).mkdir(exist_ok=True)
        before = files_of(tmp_path)
        for options in ({}, {"overwrite": True}, {"resume": False}):
            with pytest.raises(DataError, match=r"00\.png"):
                train(config, tmp_path, **options)
        assert files_of(tmp_path) == before
    with pytest.raises(DataError, match=r"t\.csv"):
        train(config, tmp_path / "t.csv" / "run")
