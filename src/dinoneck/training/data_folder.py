"""What the folder of a config holds, if it names no table: the config that reads it.

No torch is imported here.
"""

from __future__ import annotations

from dinoneck.data.folders import DataFolder, check_has_labels
from dinoneck.errors import ConfigError
from dinoneck.training.config import FoldsConfig, TrainConfig
from dinoneck.training.table import read_folder_of


def of_data_folder(config: TrainConfig) -> tuple[TrainConfig, DataFolder | None]:
    """Return the config with what the folder ``data.images`` holds: its masks, and its parts.

    Nothing is changed for a table, for class folders, and for labels of images.

    Returns:
        The config, and the folder that was read, for :func:`dinoneck.training.table.table_of`; None
        if the config names none.

    Raises:
        ConfigError: if the config has folds, and the folders make them, or options of tables.
        DataError: if the folder cannot be read, or holds images alone.
    """
    data = config.data
    if data.images is None or data.csv is not None or data.store is not None:
        return config, None
    config.check_without_table()  # before what the folder holds: the remedy is a table
    if data.multilabel:
        return config, None  # the names say what the folder holds
    folder = read_folder_of(data)
    if folder.content is not None:
        check_has_labels(folder.content)
        if folder.kind == "masks" and data.labels is None:
            data = data.changed(images=str(folder.content.images), labels=str(folder.content.masks))
        return config.changed(data=data), folder
    _check_folds(config.folds, folder)
    subfolders = "folds" if folder.held_out is None else "parts"
    data = data.changed(subfolders=subfolders)
    if folder.kind == "masks" and data.labels is None:
        data = data.changed(labels=str(folder.root))
    return config.changed(data=data), folder


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
