"""The names that torch's wrappers put between the parts of a weight's name, and where they keep the model.

Imports no torch.
"""

from __future__ import annotations

COMPILED = "_orig_mod"
"""torch.compile."""
PARALLEL = "module"
"""DataParallel and DistributedDataParallel, and AveragedModel."""
SHARDED = "_fsdp_wrapped_module"
"""FullyShardedDataParallel."""
RECOMPUTED = "_checkpoint_wrapped_module"
"""Activation checkpointing."""
PARAMETRISED = "parametrizations"
"""torch.nn.utils.parametrize, which keeps the model as it is."""

KEEP_MODEL = (COMPILED, PARALLEL)
"""The attributes under which a model is found."""
WRAPPERS = (COMPILED, PARALLEL, SHARDED, RECOMPUTED)
LEADING = tuple(f"{name}." for name in KEEP_MODEL)
"""What the names of a whole model's weights begin with."""


def plain_name(name: str) -> str:
    """Return a weight's name without the parts that wrappers put anywhere into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_leading(name: str) -> str:
    """Return a weight's name without what wrappers of the whole model put before it."""
    while name.startswith(LEADING):
        name = name.partition(".")[2]
    return name
