"""The letters of pictures."""

from __future__ import annotations

import functools
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import ImageFont


@functools.cache
def font_of(height: int) -> Any:
    """Return a font of this height in px: DejaVu Sans, whose file comes with matplotlib, if it is installed.

    Pillow's own font has the letters of ASCII alone; neither has Chinese, Japanese or Korean.
    """
    try:
        matplotlib = metadata.distribution("matplotlib")
    except metadata.PackageNotFoundError:
        return ImageFont.load_default(height)
    file = Path(str(matplotlib.locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")))
    return ImageFont.truetype(file, height) if file.is_file() else ImageFont.load_default(height)
