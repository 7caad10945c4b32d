"""What the folder of a config holds, if it names no table: the config that reads it.

No torch is imported here.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dinoneck.data.folders import (
    Content,
    DataFolder,
    check_has_labels,
    read_data_folder,
    read_images_and_masks,
)
from dinoneck.errors import ConfigError
from dinoneck.training.config import FoldsConfig, TrainConfig

logger = logging.getLogger(__name__)


def of_data_folder(config: TrainConfig) -> tuple[TrainConfig, DataFolder | None]:
    """Return the config with what the folder ``data.images`` holds: its masks, and its parts.

    Nothing is changed for a table, for class folders, for labels of images, and where
    ``data.labels`` names the masks; their folders are then parts only if ``data.subfolders`` says
    so. What is taken is logged in one line.

    Returns:
        The config, and the folder that was read, for :func:`dinoneck.training.table.table_of`: to
        read it again would repeat its warnings. None where the config that is returned names other
        folders, or none was read.

    Raises:
        ConfigError: if the config has folds, and the folders make them, or options of tables.
        DataError: if the folder can be read in several ways, or holds images alone.
    """
    data = config.data
    is_table = data.csv is not None or data.store is not None
    if data.images is None or is_table:
        return config, None
    config.check_without_table()  # before what the folder holds: the remedy is a table
    if data.multilabel:
        return config, None  # the names say what the folder holds
    if data.labels is not None:
        if data.labels == data.images or data.subfolders is None:
            return config, None
        pairs = read_images_and_masks(data.images, data.labels, data.subfolders)
        _check_folds(config.folds, pairs)
        return config, pairs
    folder = read_data_folder(data.images, data.subfolders)
    content = folder.content
    if content is None:
        _check_folds(config.folds, folder)
        labels = str(folder.root) if folder.kind == "masks" else None
        subfolders = "folds" if folder.held_out is None else "parts"
        with_parts = config.changed(data=data.changed(labels=labels, subfolders=subfolders))
        return with_parts, folder
    if content.kind == "masks":
        layout = _layout(folder.root, content)
        logger.warning("%s: %s", folder.root, layout)
        changed = data.changed(images=str(content.images), labels=str(content.masks))
        return config.changed(data=changed), None
    check_has_labels(content)
    return config, folder


def _check_folds(folds: FoldsConfig, folder: DataFolder) -> None:
    """Reject options of folds that the folders make."""
    default = FoldsConfig()
    names = ", ".join(folder.parts)
    if folds.stratify is not None:
        raise ConfigError(
            f"folds.stratify is {folds.stratify!r}, and the folders {names} are the folds; leave it "
            "out"
        )
    if folds.count not in (1, default.count):
        raise ConfigError(
            f"folds.count is {folds.count}, and the folders {names} are the folds; leave it out, or "
            "name one of the folders"
        )


def _layout(root: Path, content: Content) -> str:
    """Where images and masks lie, in words."""
    images = content.images
    masks = content.masks
    if masks is None or masks == images:
        return "images with masks beside them"
    in_images = f"images in {images.relative_to(root)}/" if images != root else "images"
    return f"{in_images}, masks in {masks.relative_to(root)}/"
