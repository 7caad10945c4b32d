"""``python -m examples.pointcloud VERB``: features of a tree's images, and the comparison.

See README.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from dinoneck import FeatureStore, load_backbone
from dinoneck.data import read_image_size
from dinoneck.devices import local_device
from dinoneck.errors import DinoneckError
from examples.pointcloud.comparison import compare
from examples.pointcloud.features import input_size, pixels
from examples.pointcloud.frames import chosen, images_folder, scene_names


def extract(
    root: tyro.conf.Positional[Path],
    /,
    out: Path,
    backbone: str,
    every: int = 1,
    random_backbone: bool = False,
    device: str | None = None,
) -> None:
    """Run a backbone over every k-th frame of a 2D/<scene>/color/<number>.jpg tree, into a feature store.

    Args:
        root: folder that holds 2D/, or 2D itself.
        out: folder of the store.
        backbone: name, see 'dinoneck list backbones'.
        every: frames whose number it divides.
        random_backbone: seeded random weights, without download.
        device: such as cpu or cuda:1; a GPU if there is one.
    """
    tree = images_folder(root)
    frames = [
        path
        for name in scene_names(root)
        for path in chosen((tree / name / "color").iterdir(), every)
    ]
    vit = load_backbone(backbone, pretrained=not random_backbone).to(local_device(device))
    size = input_size(read_image_size(frames[0]), vit.patch_size)
    store = FeatureStore.create(out, backbone=vit, image_size=size, dtype="fp16", resize="stretch")
    done = store.extract(frames, tree)
    print(
        f"{len(frames)} frames: {len(done.written)} extracted, {done.present} were there; "
        f"{pixels(size)} px, {store}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return the exit code: 0 done, 1 refused, 2 wrong usage."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"extract": extract, "compare": compare},
            prog="python -m examples.pointcloud",
            args=arguments,
        )
    except (DinoneckError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
