"""What a process does to the outside while a file is read: files written or opened, programs, connections, imports."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reliability.modes import Missed

_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pickle.find_class")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_seen: list[tuple[str, str]] | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open":
        path, _, flags = arguments
        _seen.append(("write" if isinstance(flags, int) and flags & _WRITES else "read", str(path)))
    elif event in _CHANGES or event in _RUNS or event.startswith("shutil."):
        _seen.append((event, str(arguments)))
    elif event == "import":
        _seen.append((event, str(arguments[0])))


@contextlib.contextmanager
def watched(mark: str, modules: frozenset[str] = frozenset()) -> Iterator[None]:
    """Watch everything that Python reports of itself (``sys.addaudithook``).

    Args:
        mark: a part of every text in the file that could be a path; nothing that holds it may be touched or opened.
        modules: may not be imported.

    Raises:
        Missed: if anything was written, run, connected or imported, or a path with the mark was opened.
    """
    global _seen, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    before = set(sys.modules)
    _seen = []
    try:
        yield
    finally:
        seen, _seen = _seen, None
        wrong = [f"{event} {what}" for event, what in seen if event not in ("read", "import") or mark in what]
        wrong += [f"imported {name}" for name in set(sys.modules) - before if name in modules]
        if wrong:
            raise Missed(f"while it was read: {', '.join(wrong[:5])}")


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
