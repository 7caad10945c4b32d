"""``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` of registered modules, over the checked head file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck import registry
from dinoneck.checkpoint.format import HEAD_NAME
from dinoneck.checkpoint.head_checkpoint import RECORDS, HeadCheckpoint, warn_without_backbone
from dinoneck.errors import CheckpointError, RegistryError
from dinoneck.text import reason_of

if TYPE_CHECKING:
    from dinoneck.checkpoint.hub import CommitInfo


def save(
    module: Any, folder_or_file: str | os.PathLike[str], backbone: Any, record: Mapping[str, Any]
) -> None:
    """Write ``folder/head.safetensors``, or the file; the folder is made."""
    checkpoint = _checkpoint(module, backbone, record)
    path = Path(folder_or_file)
    if path.suffix != Path(HEAD_NAME).suffix:
        if path.is_file():
            raise CheckpointError(
                f"{path} is a file; expected a folder, or a file name that ends in .safetensors",
                step="write",
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"the folder {path} cannot be made: {reason_of(error)}", step="write"
            ) from error
        path /= HEAD_NAME
    checkpoint.save(path)


def push(module: Any, repo_id: str, backbone: Any, options: dict[str, Any]) -> CommitInfo:
    """Publish the module with its page in one commit."""
    record = {name: options.pop(name) for name in RECORDS if name in options}
    return _checkpoint(module, backbone, record).push_to_hub(repo_id, **options)


def load(cls: type, path_or_repo: str | os.PathLike[str], revision: str | None) -> Any:
    """Read a folder, a file or a hub repository, check that it holds ``cls`` or a subclass, and build it."""
    with contextlib.suppress(RegistryError):  # its name is taken: the name in the file decides
        _ensure_registered(cls)
    checkpoint = HeadCheckpoint.load(path_or_repo, revision=revision)
    stored = registry.resolve(checkpoint.head_type)
    if not issubclass(stored, cls):
        raise CheckpointError(
            f"{path_or_repo} holds {checkpoint.head_type!r} ({stored.__name__}); expected "
            f"{cls.__name__}. Load it with {stored.__name__}.from_pretrained, or with "
            "dinoneck.load_head, which takes any",
            step="registry",
        )
    return checkpoint.build()


def _checkpoint(module: Any, backbone: Any, record: Mapping[str, Any]) -> HeadCheckpoint:
    _ensure_registered(type(module))
    warn_without_backbone(module, backbone, stacklevel=5)  # the caller of save_pretrained
    return HeadCheckpoint.from_module(module, backbone=backbone, **record)


def _ensure_registered(cls: type) -> None:
    """Register a class from outside this package under its default name, unless it has one."""
    try:
        registry.name_of(cls)
    except RegistryError:
        if cls.__module__.partition(".")[0] != "dinoneck":
            registry.register(cls)
