"""Where the campaigns' processes come from: a server that has everything imported and holds nothing else."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [f"benchmarks.reliability.{name}" for name in ("mutations", "kills", "full_disk", "writers")]
)
