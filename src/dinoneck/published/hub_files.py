"""Files of published heads and detectors from the Hugging Face Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from dinoneck.errors import CheckpointError
from dinoneck.hub_errors import refusal, unreachable, without_retries_logged
from dinoneck.published.detectors import PublishedDetector
from dinoneck.published.table import PublishedHead

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
Row = PublishedHead | PublishedDetector


def fetch_weights(row: Row, revision: str | None) -> tuple[Path, str]:
    """Return the Hub's copy of a row's weights, and the address of the commit that it is of.

    Raises:
        CheckpointError: if it does not arrive.
    """
    file = fetch(row, WEIGHTS, revision)
    # its folder is the commit
    return file, f"{hub_page(row)}/blob/{file.parent.name}/{file.name}"


def fetch(row: Row, name: str, revision: str | None) -> Path:
    """Return a file of a row's repository.

    Raises:
        CheckpointError: if it does not arrive.
    """
    from huggingface_hub import hf_hub_download

    repo_id = str(row.hub)
    try:
        with without_retries_logged():
            return Path(hf_hub_download(repo_id, name, revision=revision))
    except Exception as error:  # the client raises many unrelated types
        reason = refusal(error, repo_id, revision) or unreachable(error)
        raise not_fetched(row, hub_page(row), reason) from None


def hub_page(row: Row) -> str:
    """Return the address of the Hub repository of a row that has one."""
    return f"https://huggingface.co/{row.hub}"


def warn_of_terms(row: Row, url: str) -> None:
    """Log the licence of what was fetched."""
    logger.warning(
        "fetched %s: the terms of %s hold for it and what is made of it", url, row.licence
    )


def not_fetched(row: Row, url: str, reason: str) -> CheckpointError:
    """Return the error for a file that does not arrive."""
    return CheckpointError(
        f"{row.name} was not fetched from {url} ({reason}). Try again, or fetch the file "
        "elsewhere and pass it, weights=FILE (--weights FILE)",
        step="hub",
    )
