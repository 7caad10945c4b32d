"""The pictures of the how-to can be drawn again."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra [viz]")


@pytest.mark.slow
def test_the_example_draws_the_pictures_of_the_page(tmp_path: Path) -> None:
    from examples.pictures.__main__ import main

    assert main([str(tmp_path)]) == 0
    page = (Path(__file__).resolve().parents[3] / "docs" / "how-to" / "pictures.md").read_text()
    images = Path(__file__).resolve().parents[3] / "docs" / "images"
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["pictures_heat.png", "pictures_pca.png"]
    for name in drawn:
        assert f"images/{name})" in page
        with Image.open(tmp_path / name) as one, Image.open(images / name) as stored:
            assert one.size == stored.size
    assert main([]) == 2
