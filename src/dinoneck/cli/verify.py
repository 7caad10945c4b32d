"""``dinoneck verify``: check every byte of head files, ensembles and feature stores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.checkpoint.header import SCHEMA, head_files, is_file, read_header
from dinoneck.cli.allow_option import add_allow
from dinoneck.errors import CheckpointError, StoreError

if TYPE_CHECKING:
    from dinoneck.checkpoint.ensemble_folder import EnsembleFolder

HELP = "check every byte of head files and feature stores; exit 1 if anything is refused"
EXAMPLE = "dinoneck verify head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="head files, folders of them (config.json and README.md there are compared too), ensembles, feature "
        "stores, or hub repositories (user/name)",
    )
    add_allow(parser)


def run(options: argparse.Namespace) -> int:
    """Load everything with all checks, one after the other; a refusal does not end it."""
    return 1 if sum(_refused(path, options.allow) for path in options.files) else 0


def _refused(path: Path, allow: Sequence[str]) -> int:
    """How many things in a path are refused."""
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.hub import names_a_repo

    if is_file(path / "store.json"):
        return int(not _is_sound_store(path))
    try:
        if names_a_repo(path):
            return _pulled(path, allow)
        files = head_files(path)
    except CheckpointError as error:
        return _no(path, error)
    refused = sum(not _is_sound(file, allow) for file in files)
    ensemble = None
    if is_ensemble(path):
        ensemble = _whole(path, allow)
        refused += ensemble is None
    if not refused and path.is_dir():
        refused += _compared(path, ensemble)
    return refused


def _is_sound(file: Path, allow: Sequence[str]) -> bool:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    try:
        checkpoint = HeadCheckpoint.load(file, allow=allow)
        schema = read_header(file).meta["schema"]
    except CheckpointError as error:
        return not _no(file, error)
    older = "" if schema == SCHEMA else f"  schema {schema}: 'dinoneck migrate' brings it to {SCHEMA}"
    print(f"ok       {file}  {checkpoint.head_type}  {checkpoint.file_digest}{older}")
    return True


def _whole(path: Path, allow: Sequence[str]) -> EnsembleFolder | None:
    """The ensemble, if its heads are those that its list names, and go together."""
    from dinoneck.checkpoint.ensemble_folder import EnsembleFolder

    try:
        ensemble = EnsembleFolder.load(path, allow=allow)
    except CheckpointError as error:
        _no(path, error)
        return None
    print(f"ok       {path}  {ensemble!r}")
    return ensemble


def _compared(folder: Path, ensemble: EnsembleFolder | None) -> int:
    """How many of config.json and README.md speak of another head than the one beside them."""
    from dinoneck.checkpoint.derived import compare

    wrong = 0
    for found in compare(folder, ensemble):
        wrong += found.differs
        if found.differs:
            print(f"differs  {found.file}  derived file differs: {found.told}; the head decides", file=sys.stderr)
        else:
            print(f"{'ok' if found.told.startswith('is') else 'note':<8} {found.file}  {found.told}")
    return wrong


def _pulled(repo: Path, allow: Sequence[str]) -> int:
    from dinoneck.checkpoint.load_any import load_any

    found = load_any(repo, allow=allow)
    print(f"ok       {repo}  {found!r}  commit {found.revision}")
    return 0


def _no(path: Path, error: CheckpointError) -> int:
    print(f"refused  {path}  at step {error.step!r}: {error}", file=sys.stderr)
    return 1


def _is_sound_store(path: Path) -> bool:
    """Check a feature store and list the ids whose bytes are wrong."""
    from dinoneck.store.feature_store import FeatureStore

    try:
        store = FeatureStore.open(path)
        bad = store.verify()
    except StoreError as error:
        print(f"refused  {path}  {error}", file=sys.stderr)
        return False
    for image_id in bad:
        print(f"damaged  {path}  {image_id}  {store.shard_of(image_id)}", file=sys.stderr)
    if bad:
        print("delete these shards and extract their photos again", file=sys.stderr)
    else:
        print(f"ok       {path}  feature store  {len(store)} images x {len(store.patterns)} patterns")
    return not bad
