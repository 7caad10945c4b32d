"""``dinoneck store``: older layouts in and out, and the check."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.store.store_samples import make, write_images

from dinoneck import Backbone
from dinoneck.cli.main import main


@pytest.fixture
def filled(tiny: Backbone, tmp_path: Path) -> Path:
    write_images(tmp_path, ["p/a.png", "p/deep/b.png"])
    make(tmp_path / "store", tiny, image_size=(32, 48)).extract(tmp_path / "p")
    return tmp_path / "store"


def run(*arguments: object) -> int:
    return main(["store", *map(str, arguments)])


def test_what_would_be_ignored_or_replaced_is_refused(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    out = ("--out", files)
    assert run("convert", filled, "--format", "pt", *out) == 0
    for arguments, message in (
        ((filled, "--format", "pt", *out), "is not empty"),
        ((filled, "--format", "npz", "--pattern", "1", "--out", tmp_path / "n"), "--pattern does not apply"),
        ((filled, "--format", "npz", "--grid", "2x3", "--out", tmp_path / "n"), "--grid does not apply"),
        ((files, "--format", "pt", "--out", tmp_path / "n"), "do not state --patch-size"),
        ((files, "--format", "npz", "--out", tmp_path / "n"), "do not state --grid, --patch-size"),
        ((files, "--format", "pt", "--layer", "1", "--out", tmp_path / "n"), "--layer does not apply"),
        ((files, "--format", "npz", "--grid", "2x3", "--patch-size", "16", "--out", tmp_path / "n"), "no .npz files"),
        ((filled, "--format", "pt", "--out", tmp_path / "n.pt"), "a file per image is written into a folder"),
        ((tmp_path / "nothing", "--format", "pt", "--out", tmp_path / "n"), "is not a folder"),
    ):
        assert run("convert", *arguments) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "n").exists()
    assert run("convert", filled, "--format", "pt", *out, "--overwrite") == 0
