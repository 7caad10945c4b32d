"""Names of images below the folder that they share, after which maps and masks are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinoneck.cli.arguments import names_below, shared_folder


def test_a_folder_above_is_no_part_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps of ``../x.jpg`` would be written outside of their folder."""
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    files = [Path("../../photos/x.jpg"), Path("q/y.jpg")]
    assert names_below(files) == ["photos/x.jpg", "a/b/q/y.jpg"]
    assert shared_folder(files) == tmp_path


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_keeps_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "stored.jpg").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "named.jpg").symlink_to(tmp_path / "stored.jpg")
    assert names_below([tmp_path / "photos" / "named.jpg"]) == ["named.jpg"]
