"""What the processes of benchmarks.kill_campaign agree on; the one that kills need not import torch."""

from __future__ import annotations

JOBS = ("extraction", "training")
LIMIT_S = 60  # no process of a campaign lives longer

PHOTOS, TRAINED = 20, 14
SHARD_PHOTOS = 3
EPOCHS, BATCH, SAVE_STEPS = 8, 3, 2
STEPS = -(-TRAINED // BATCH)  # of an epoch: odd, so that epochs end between the states written every two steps

DISK = tuple(
    f"{operation} {kind}"
    for operation in ("write", "append", "fsync", "rename", "link", "flush folder of")
    for kind in ("store.json", "channel scale", "shard", "index", "state", "log")
)
WORK = (
    "between", "read photo", "backbone", "encode", "look for leftovers", "read tokens", "forward and backward",
    "optimizer step", "EMA", "validation", "state to bytes",
)  # fmt: skip
PHASES = WORK + DISK
MOMENTS = ("by the clock", "before", "halfway", "after")

# The shared page: bytes for the state of the run, the phase, that of the thread that decodes, the moment of a kill at
# a disk call, and a count of what is done.
RUNNING, PHASE, DECODING, MOMENT, COUNT, PAGE = 0, 1, 2, 3, slice(4, 8), 4096
WAITING, BEGUN, FINISHED = 0, 1, 2
