"""A run belongs to the content of its images: it is not continued after one of them changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoneck.training import folder as run_folder
from tests.kit import cli
from tests.net.files import write_image, write_rows


def test_a_run_whose_image_changed_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("image", "mass"), *((f"{number}.png", number) for number in range(6))]
    table = write_rows(tmp_path / "t.csv", rows)
    words = f"train --csv {table} --targets mass --backbone dinoneck_tiny --folds 2 --epochs 1"
    train = [*words.split(), "--out", tmp_path / "run"]

    def stop(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "note_finished_head", stop)
        assert cli(*train).code == 1
    write_image(tmp_path / "3.png", (24, 16))
    refused = cli(*train)

    assert refused.code == 1
    assert "3.png" in refused.err
    write_rows(table, rows)
    assert cli(*train).code == 0
