"""Eval mode for the length of a ``with`` block, safe for several threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torch import nn


class _Held:
    """A module in eval mode: the mode it had before, and how many callers hold it at the moment."""

    __slots__ = ("holders", "mode", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module, self.mode, self.holders = module, module.training, 0


_held: dict[int, _Held] = {}  # by id; an entry keeps its module alive, so that no id is used twice
_lock = threading.Lock()


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Run the ``with`` block with modules in eval mode, then restore the mode of each.

    ``train()`` is not called, so that a backbone keeps the mode it was asked for. Several threads may enter at once,
    with the same modules or with some in common: a module gets its mode back when the last thread leaves. The lock is
    held only while modes are switched. A call of ``train()`` or ``eval()`` from another thread meanwhile may be undone.
    """
    inside = {id(module): module for top in modules for module in top.modules()}
    with _lock:
        for key, module in inside.items():
            held = _held.setdefault(key, _Held(module))
            held.holders += 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for key, module in inside.items():
                held = _held[key]
                held.holders -= 1
                if not held.holders:
                    module.training = _held.pop(key).mode
