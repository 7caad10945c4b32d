"""What a run refuses before the work: folders of other files, and columns with too many classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.unit.training.meadow import COUNT, a_run, files_of, one_image_only
from tests.unit.training.test_train_edges import with_columns

from dinoneck import DataError
from dinoneck.cli.main import main
from dinoneck.training import MemoryTokens, train

TINY = ["--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "1"]


@pytest.fixture
def images(meadow: Path, tmp_path: Path) -> Path:
    """The folder of images and its table, for tests that may write there."""
    shutil.copytree(meadow.parent, tmp_path / "images")
    return tmp_path / "images"


def refused(images: Path, *flags: str) -> None:
    before = files_of(images)
    assert main(["train", *flags, "--out", str(images)]) == 1
    assert files_of(images) == before


def test_heads_are_not_written_into_a_folder_of_images(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ["--csv", str(images / "t.csv"), "--targets", "crop", *TINY]
    for more in ([], ["--overwrite"], ["--no-resume"]):
        refused(images, *table, *more)
        assert "00.png" in capsys.readouterr().err
    (images / "heads").mkdir()
    (images / "logs").mkdir()
    refused(images, *table)
    with pytest.raises(DataError, match=r"00\.png"):
        train(a_run(images / "t.csv", ["crop"]), images)


def test_new_empty_hidden_and_earlier_folders_are_used(meadow: Path, tmp_path: Path) -> None:
    config = a_run(meadow, ["crop"], optim={"epochs": 1}, folds={"only": 0})
    for name in ("new", "empty", "hidden"):
        if name != "new":
            (tmp_path / name).mkdir()
        if name == "hidden":
            (tmp_path / name / ".keep").touch()
        train(config, tmp_path / name)
        assert (tmp_path / name / "report.json").is_file()
    (tmp_path / "new" / "notes.txt").write_text("kept")
    with pytest.raises(DataError, match=r"report\.json"):
        train(config, tmp_path / "new")
    train(config, tmp_path / "new", overwrite=True)
    assert (tmp_path / "new" / "notes.txt").read_text() == "kept"


def test_a_column_with_too_few_images_a_class_is_refused(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven places and dates in twelve images are no classes to learn."""
    monkeypatch.setattr(MemoryTokens, "extract", one_image_only(MemoryTokens.extract))
    sampling = [f"site {min(i, 6)}" for i in range(COUNT)]
    table = with_columns(images / "t.csv", sampling=sampling, pair=[f"p{i // 2}" for i in range(COUNT)])
    flags = ["train", "--csv", str(table), *TINY, "--targets"]
    assert main([*flags, "sampling", "--out", str(images.parent / "run")]) == 1
    shown = capsys.readouterr().err
    assert all(number in shown for number in ("'sampling'", "7 classes", "12 images", "6 of them"))
    assert not (images.parent / "run").exists()
    monkeypatch.undo()
    assert main([*flags, "pair", "--out", str(images.parent / "run")]) == 0, "six classes of two images"
