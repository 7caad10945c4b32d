"""``dinoneck verify``: check every byte of head files, ensembles and feature stores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.checkpoint.header import SCHEMA, head_files, is_file, read_header
from dinoneck.cli.allow_option import add_allow
from dinoneck.cli.one_by_one import refused
from dinoneck.cli.text import say

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
    return 1 if sum(refused(path, partial(_all, path, options.allow)) for path in options.files) else 0


def _all(path: Path, allow: Sequence[str]) -> int:
    """How many things in a path are refused."""
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.hub import names_a_repo

    if is_file(path / "store.json"):
        return _store(path)
    if names_a_repo(path):
        return _pulled(path, allow)
    bad = sum(refused(file, partial(_head, file, allow)) for file in head_files(path))
    if is_ensemble(path):
        return bad + refused(path, partial(_ensemble, path, allow, compare=not bad))
    return bad if bad or not path.is_dir() else _compared(path, None)


def _head(file: Path, allow: Sequence[str]) -> int:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    checkpoint = HeadCheckpoint.load(file, allow=allow)
    schema = read_header(file).meta["schema"]
    older = "" if schema == SCHEMA else f"  schema {schema}: 'dinoneck migrate' brings it to {SCHEMA}"
    say(f"ok       {file}  {checkpoint.head_type}  {checkpoint.file_digest}{older}")
    return 0


def _ensemble(path: Path, allow: Sequence[str], compare: bool) -> int:
    """Check that an ensemble's heads are those that its list names, and go together; and the files beside them."""
    from dinoneck.checkpoint.ensemble_folder import EnsembleFolder

    ensemble = EnsembleFolder.load(path, allow=allow)
    say(f"ok       {path}  {ensemble!r}")
    return _compared(path, ensemble) if compare else 0


def _compared(folder: Path, ensemble: EnsembleFolder | None) -> int:
    """How many of config.json and README.md speak of another head than the one beside them."""
    from dinoneck.checkpoint.derived import compare

    wrong = 0
    for found in compare(folder, ensemble):
        wrong += found.differs
        if found.differs:
            say(f"differs  {found.file}  derived file differs: {found.told}; the head decides", sys.stderr)
        else:
            say(f"{'ok' if found.told.startswith('is') else 'note':<8} {found.file}  {found.told}")
    return wrong


def _pulled(repo: Path, allow: Sequence[str]) -> int:
    from dinoneck.checkpoint.load_any import load_any

    found = load_any(repo, allow=allow)
    say(f"ok       {repo}  {found!r}  commit {found.revision}")
    return 0


def _store(path: Path) -> int:
    """Check a feature store and list the ids whose bytes are wrong."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    bad = store.verify()
    for image_id in bad:
        say(f"damaged  {path}  {image_id}  {store.shard_of(image_id)}", sys.stderr)
    if bad:
        print("delete these shards and extract their photos again", file=sys.stderr)
    else:
        say(f"ok       {path}  feature store  {len(store)} images x {len(store.patterns)} patterns")
    return 1 if bad else 0
