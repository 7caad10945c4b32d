"""``python -m examples.pictures FOLDER``: draw the picture of docs/how-to/pictures.md into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from dinoneck import load_backbone
from dinoneck.data import Pasture
from dinoneck.viz import pca_panels


def main(arguments: list[str]) -> int:
    """Draw and write; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m examples.pictures FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    images = Pasture(seed=0, size=(128, 256)).table(range(2)).images
    backbone = load_backbone("dinoneck_tiny")
    pictures = [backbone.preprocess.picture(image) for image in images]
    write(pca_panels(pictures, backbone(backbone.preprocess(images))), folder / "pictures_pca.png")
    return 0


def write(picture: Image.Image, path: Path) -> None:
    """Save a small picture."""
    picture.save(path, optimize=True)
    print(f"{path}, {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
