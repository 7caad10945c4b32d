"""Pieces of work in processes of their own, made by fork: they may be killed, limited or robbed of their rights."""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.reliability.modes import Missed
from dinoneck.errors import CheckpointError

LIMIT_S = 60.0
LONGEST = 8000
_CAPABILITIES_3 = 0x20080522
_READ_AND_WRITE_ANYTHING = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@dataclass
class Child:
    """A process that does one piece of work and tells what came of it."""

    pid: int
    answers: int

    def kill(self) -> None:
        """End it at once, as ``kill -9`` does."""
        os.kill(self.pid, signal.SIGKILL)

    def ended(self, limit_s: float = LIMIT_S) -> None:
        """Wait for its end and raise what it raised; one that was killed raises nothing.

        Raises:
            CheckpointError: with the child's step and message.
            Missed: if it raised anything else, or did not end in time.
        """
        status, until = None, time.monotonic() + limit_s
        while status is None:
            pid, found = os.waitpid(self.pid, os.WNOHANG)
            status = found if pid else None
            if status is None and time.monotonic() > until:
                self.kill()
                until = math.inf
            time.sleep(0.001)
        os.set_blocking(self.answers, False)  # children of its own may hold the other end
        try:
            told = os.read(self.answers, 2 * LONGEST)
        except BlockingIOError:
            told = b""
        os.close(self.answers)
        if until == math.inf:
            raise Missed(f"a process did not end within {limit_s:g} s")
        if told:
            answer = json.loads(told)
            if answer["step"] is None:
                raise Missed(answer["message"])
            raise CheckpointError(answer["message"], step=answer["step"])
        if status not in (0, signal.SIGKILL):
            raise Missed(f"a process ended with the status {status}")


def child(work: Callable[[], object], with_torch: bool = True) -> Child:
    """Start a piece of work in a copy of this process.

    Args:
        work: to do there.
        with_torch: it uses torch. Beside threads it must not: a lock that one of them held is held there for ever.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child uses none of theirs
        pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    if with_torch:
        torch.set_num_threads(1)  # threads that a fork has not taken along are waited for without end
    told: dict[str, str | None] = {}
    try:
        os.close(reading)
        work()
    except CheckpointError as error:
        told = {"step": error.step, "message": str(error)[:LONGEST]}
    except Missed as error:
        told = {"step": None, "message": str(error)[:LONGEST]}
    except BaseException as error:
        told = {"step": None, "message": f"{type(error).__name__} is none of the family: {error}"[:LONGEST]}
    finally:
        if told:
            os.write(writing, json.dumps(told).encode())
        os._exit(0)


def in_child(work: Callable[[], object]) -> None:
    """Do a piece of work in a copy of this process, and raise what it raises.

    Raises:
        CheckpointError: with the child's step and message.
        Missed: if it raised anything else, or did not end in time.
    """
    child(work).ended()


def without_rights() -> None:
    """Let permission bits count for this process, also where it is root's.

    Raises:
        Missed: if they cannot be made to.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head, rights = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(head, rights):
        raise Missed("the rights of this process cannot be read")
    for place in (0, 1):  # what is in force, and what may be taken again
        rights[place] &= ~_READ_AND_WRITE_ANYTHING
    if libc.capset(head, rights):
        raise Missed("the rights of this process cannot be dropped")


def with_files_of(size: int) -> None:
    """Let no file of this process grow beyond so many bytes: a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
