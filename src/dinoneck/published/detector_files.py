"""The files of published detectors, checked and read into a HeadCheckpoint like any other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinoneck.checkpoint.backbone_part import BackbonePart
from dinoneck.checkpoint.format import strict_json
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint, checkpoint_of_detector
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.published.detectors import PublishedDetector
from dinoneck.published.hub_files import CONFIG, WEIGHTS, fetch, fetch_weights, warn_of_terms
from dinoneck.text import reason_of
from dinoneck.weight_files import read_state

_MOST_CONFIG_BYTES = 1 << 20


class _Files(NamedTuple):
    """The files of a detector.

    Attributes:
        weights: the safetensors file.
        config: the configuration of transformers; None next to a single file.
        url: where the weights are published.
    """

    weights: Path
    config: Path | None
    url: str


def load_detector(
    row: PublishedDetector, *, weights: str | os.PathLike[str] | None, revision: str | None
) -> HeadCheckpoint:
    """Load a published detector, see :func:`dinoneck.load_published`.

    Raises:
        CheckpointError: if weights and a revision are given, the file is no safetensors file, is
            damaged or of another model, or cannot be fetched.
        ImportError: if transformers is missing, or too old.
    """
    detector = row.build()
    files = _find_files(row, weights, revision)
    if files.config is not None:
        detector.check_config(_read_config(files.config), str(files.config))
    try:
        state = read_state(files.weights)
    except BackboneError as error:
        raise CheckpointError(f"published head {row.name!r}: {error}", step="file") from error
    detector.load_published(state, str(files.weights))
    preprocess = Preprocessing(
        patch_size=row.patch_size,
        size=(row.image_size, row.image_size),
        resize="stretch",
        interpolation="bilinear_aliased",
    )
    with files.weights.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return checkpoint_of_detector(
        detector,
        BackbonePart(record=None, lora={}, weights={}),
        preprocess=preprocess,
        license=row.licence,
        extra={
            "published": row.name,
            "url": files.url,
            "sha256": sha256,
            "license_source": row.licence_source,
        },
    )


def _find_files(
    row: PublishedDetector, weights: str | os.PathLike[str] | None, revision: str | None
) -> _Files:
    """The local files of a row; those of the Hub are downloaded once.

    Raises:
        CheckpointError: if there are none, or the weights are no safetensors file.
    """
    if weights is None:
        revision = revision or row.revision
        config = fetch(row, CONFIG, revision)
        file, url = fetch_weights(row, revision)
        warn_of_terms(row, row.url)
        return _Files(file, config, url)
    if revision is not None:
        raise CheckpointError(
            f"revision={revision!r} is for a Hub copy, and weights={str(weights)!r} is a local "
            "file; leave one of them out",
            step="hub",
        )
    path = Path(weights)
    if path.is_dir():
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise CheckpointError(
                    f"the folder {path} has no {name}; expected {CONFIG} and {WEIGHTS}, as "
                    f"{row.url} has them",
                    step="file",
                )
        return _Files(path / WEIGHTS, path / CONFIG, row.url)
    if not path.is_file():
        raise CheckpointError(
            f"the weights of {row.name} are to be read from {path}, which is not a file",
            step="file",
        )
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"{path} is no .safetensors file, and {row.name} is read from no other; take "
            f"{WEIGHTS} from {row.url}",
            step="file",
        )
    return _Files(path, None, row.url)


def _read_config(file: Path) -> Mapping[str, Any]:
    """Read a configuration of transformers.

    Raises:
        CheckpointError: if the file cannot be read, or is no JSON object.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MOST_CONFIG_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {reason_of(error)}", step="file") from error
    if len(raw) > _MOST_CONFIG_BYTES:
        raise CheckpointError(
            f"{file} has more than {_MOST_CONFIG_BYTES} bytes; expected the {CONFIG} of a model",
            step="json",
        )
    config, _ = strict_json(raw, str(file), "configuration")
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file} is a JSON {type(config).__name__}; expected an object", step="json"
        )
    return config
