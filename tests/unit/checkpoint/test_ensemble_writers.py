"""An ensemble that another process replaces while it is read is read again."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanHead, Task
from dinoneck.checkpoint import EnsembleFolder, Member, ensemble_folder


def made(seed: int) -> EnsembleFolder:
    torch.manual_seed(seed)
    heads = [HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a")], hidden_dim=2)) for _ in range(2)]
    return EnsembleFolder([Member(head, "a", fold) for fold, head in enumerate(heads)])


@pytest.mark.parametrize("turns", [1, 3])
def test_a_folder_replaced_meanwhile_is_read_again(turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, left = tmp_path / "e", list(range(1, turns + 1))
    made(0).save(folder)
    real = ensemble_folder.read_listing

    def replaced(place: Path) -> dict[str, object]:
        listing = real(place)
        if left:
            made(left.pop(0)).save(folder, overwrite=True)
        return listing

    monkeypatch.setattr(ensemble_folder, "read_listing", replaced)
    found = EnsembleFolder.load(folder)
    assert found.listing() == made(turns).listing()
    assert not left


def test_a_folder_moved_aside_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    folder, aside = tmp_path / "e", tmp_path / "aside"
    made(0).save(aside)

    def back() -> None:
        time.sleep(0.002)
        aside.rename(folder)

    thread = threading.Thread(target=back)
    thread.start()
    try:
        assert len(EnsembleFolder.load(folder)) == 2
    finally:
        thread.join()


def test_a_folder_that_stays_as_it_is_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reads = tmp_path / "e", []
    real = ensemble_folder.read_listing
    monkeypatch.setattr(ensemble_folder, "read_listing", lambda place: (reads.append(place), real(place))[1])
    with pytest.raises(CheckpointError, match="there is no head file"):
        EnsembleFolder.load(folder)
    made(0).save(folder)
    shutil.copy(folder / "heads" / "a-fold0.safetensors", folder / "heads" / "b.safetensors")
    with pytest.raises(CheckpointError, match="does not list"):
        EnsembleFolder.load(folder)
    assert len(reads) == 2


def test_one_that_never_settles_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, turn = tmp_path / "e", [0]
    made(0).save(folder)
    real = ensemble_folder.read_listing

    def replaced(place: Path) -> dict[str, object]:
        listing, turn[0] = real(place), turn[0] + 1
        made(turn[0]).save(folder, overwrite=True)
        return listing

    monkeypatch.setattr(ensemble_folder, "read_listing", replaced)
    with pytest.raises(CheckpointError, match="another head than"):
        EnsembleFolder.load(folder)
    assert turn[0] == 4
