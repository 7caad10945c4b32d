"""``python -m examples.detection --train A.json --val B.json``: train and test a detector. See README.md."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import torch

from dinoneck.errors import DinoneckError
from examples.detection import session
from examples.detection.options import check, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser().parse_args(arguments)
    try:
        check(options)
        session.run(options)
    except (DinoneckError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"error: {error}\ntry a smaller --batch with --accumulate, --checkpointing or --amp bf16", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
