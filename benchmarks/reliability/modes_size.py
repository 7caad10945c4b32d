"""Modes 37 and 40: a small file that asks for much memory, time or room on the screen."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.reliability.attempts import harmless, load, of_folder
from benchmarks.reliability.changes import TASK, listed, member_type, neck_type, put
from benchmarks.reliability.forge import Change, forged
from benchmarks.reliability.modes import Case, Missed, Mode
from benchmarks.reliability.subjects import Subject, dense, ensemble, fpn, lora, plain, pyramid, small, told, tower
from dinoneck import CheckpointError
from dinoneck.checkpoint.header import LISTING, MAX_HEADER_BYTES

MEMORY_KIB, SECONDS, SIGNS = 96 << 10, 10.0, 2200
"""What refusing a file may take, and how long its message may be."""


def frugal(name: str, step: str, subject: Subject, change: Change, message: str = "", *, digest: bool = True) -> Case:
    """A forged head is refused with little memory, soon, and in few words."""

    def run(folder: Path) -> None:
        raw = forged(subject(), change, digest=digest)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            load(folder / "h.safetensors", raw)
        except CheckpointError as error:
            if len(str(error)) > SIGNS:
                raise Missed(f"{name}: the message has {len(str(error))} signs") from None
            raise
        finally:
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            took = time.perf_counter() - start
            if grown > MEMORY_KIB or took > SECONDS:
                raise Missed(f"{name}: refusing it took {grown} KiB more memory and {took:.1f} s")

    return Case(name, step, run, message)


def asking(step: str, place: tuple[Any, ...], value: int, message: str = "", subject: Subject = plain) -> Case:
    """One number of the configuration asks for too much."""
    name = f"{subject.__name__}: {'.'.join(map(str, place[1:]))} {value}"
    return frugal(name, step, subject, put(place, value), message)


def agreeing(width: int) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """Configuration and list of tensors agree about a width that the file does not have."""

    def change(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
        meta["config"]["embed_dim"] = width
        meta["tensors"][1][2] = [4, width]

    return change


def all_wide(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Every tensor asks for terabytes."""
    for row in meta["tensors"]:
        row[2] = [1 << 30] * len(row[2])


def many_members(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Thousands of members in a header that stays below its cap."""
    meta["config"]["members"] = meta["config"]["members"][:1] * 2000
    meta["tasks"] = meta["tasks"][:1]


def many_tensors(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Thousands of empty tensors."""
    meta["tensors"] = sorted(meta["tensors"] + [[f"z{place}", "F32", [0]] for place in range(3000)])


def many_tasks(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Thousands of tasks."""
    task = meta["tasks"][0]
    meta["tasks"] = meta["config"]["tasks"] = [{**task, "name": f"t{place}"} for place in range(1000)]


def terabytes() -> Mode:
    """Nothing is built that the file does not pay for."""
    more, depth = "more tensors than the file lists", 10**9
    return Mode(37, "a configuration that asks for terabytes", (
        asking("tensors", ("config", "embed_dim"), 10**12, "needs (4, 1000000000000)"),
        asking("tensors", ("config", "hidden_dim"), 1 << 40),
        asking("tensors", (*TASK, "dim"), 10**12),
        asking("config", ("config", "embed_dim"), 1 << 62, "refused"),
        asking("config", ("config", "embed_dim"), (1 << 63) - 1, "refused"),
        asking("config", ("config", "embed_dim"), 10**19, "refused"),
        asking("tensors", ("config", "embed_dim"), 10**12, "", fpn),
        asking("config", ("config", "fpn_dim"), 10**12, "", fpn),
        asking("config", ("config", "num_layers"), depth, "1024 or less", fpn),
        asking("config", ("config", "num_levels"), depth, "", fpn),
        asking("config", ("config", "tower_depth"), depth, more, tower),
        asking("config", ("config", "depth"), depth, more, dense),
        asking("config", ("config", "depth"), 1 << 62, more, dense),
        asking("config", ("config", "depth"), 10_000, more, dense),
        asking("tensors", ("config", "depth"), 3, "lacks blocks.2", dense),
        asking("config", ("config", "members", 0, "config", "embed_dim"), 10**12, "", ensemble),
        asking("tensors", ("config", "neck", "out_channels"), 10**6, "", pyramid),
        asking("config", ("config", "neck", "out_channels"), 10**9, "", pyramid),
        frugal("configuration and tensors agree", "tensors", plain, agreeing(10**12), "its header announces"),
        frugal("they agree about more than 64 bits", "tensors", plain, agreeing((1 << 48) - 1), "its header announces"),
        frugal("a side of 2^48", "tensors", plain, agreeing(1 << 48), "describes no tensor"),
        frugal("all tensors of terabytes", "tensors", plain, all_wide, "its header announces"),
        frugal("nine dimensions", "tensors", plain, lambda meta, state: meta["tensors"][0].__setitem__(2, [1] * 9)),
        frugal("2000 members", "config", ensemble, many_members, more),
        frugal("3000 empty tensors", "tensors", plain, many_tensors, "and 2995 more"),
        frugal("1000 tasks", "config", plain, many_tasks, more),
        asking("config", ("backbone", "adapter", "rank"), 10**12, "does not fit a backbone", lora),
        listed("5000 members", "schema", lambda x: x.update(members=x["members"][:1] * 5000), "no list of 1"),
        listed("fold 10^12", "schema", lambda x: x["members"][0].update(fold=10**12), "fold is"),
    ))  # fmt: skip


LONG, VERY_LONG = "x" * 100_000, "x" * 900_000


def long_text(step: str, place: tuple[Any, ...], text: str = LONG, message: str = "", subject: Subject = plain) -> Case:
    """A very long text in one place is refused, and not repeated on the screen."""
    name = f"{'.'.join(map(str, place))}: {len(text)} signs"
    return frugal(name, step, subject, put(place, text), message, digest=place != ("digest",))


def kept(place: tuple[Any, ...], text: str = LONG) -> Case:
    """A very long text that is only told: the head loads, bit for bit."""
    name = f"{'.'.join(map(str, place))}: {len(text)} signs, only told"
    return harmless(name, told, lambda: forged(told(), put(place, text)))


def long_name(meta: dict[str, Any], state: dict[str, Tensor]) -> None:
    """A tensor with a name of 100 000 signs."""
    row = meta["tensors"][-1]
    state[LONG] = state.pop(row[0])
    row[0] = LONG


def long_texts() -> Iterator[Case]:
    """One place after the other."""
    for place in (("head_type",), ("format",), ("config", "activation")):
        step = {"head_type": "registry", "format": "schema", "config": "config"}[place[0]]
        subject = plain if place[0] != "config" else small
        for text in (LONG, VERY_LONG):
            yield long_text(step, place, text, "", subject)
    yield long_text("config", (*TASK, "name"))
    yield long_text("config", (*TASK, "kind"))
    yield long_text("config", (*TASK, "$"))
    yield long_text("config", ("config", "embed_dim"))
    yield long_text("config", ("config", LONG))
    yield long_text("schema", (LONG,), "x", "unknown keys")
    yield long_text("schema", ("license",), LONG, "SPDX")
    yield long_text("schema", ("created_by", "dinoneck"), LONG, "plain texts")
    yield long_text("schema", ("extra", "note"), LONG, "larger than 16384")
    yield long_text("schema", ("extra", LONG), "x", "larger than 16384")
    yield long_text("schema", ("training",), "x" * 20_000)
    yield long_text("schema", ("training", "data", "name"), LONG, "larger than 16384", told)
    yield long_text("schema", ("training", "metrics", LONG), "", "training.metrics", told)
    yield long_text("schema", ("tta", "ops"), LONG, "tta.ops", told)
    yield long_text("schema", ("versions", LONG), "x", "each 1 or more")
    yield long_text("schema", ("backbone", "adapter", "kind"), LONG, "'lora'", lora)
    yield long_text("config", ("inputs", "fit"), LONG, "", told)
    yield long_text("digest", ("digest",), LONG)
    yield frugal("a tensor's name", "tensors", plain, long_name, "lacks")
    yield frugal("a member's type, told in versions", "schema", ensemble, member_type(LONG), "each 1 or more")
    yield frugal("a neck's type, told in versions", "schema", pyramid, neck_type(LONG), "each 1 or more")
    yield long_text("config", ("config", "members", 0, "type"), LONG, "", ensemble)
    yield long_text("config", ("config", "neck", "type"), LONG, "", pyramid)
    yield frugal("a future schema by a long version", "schema", plain, lambda meta, state: meta.update(
        schema=3, created_by={"dinoneck": LONG}), "install that version")  # fmt: skip
    yield listed("output: 100000 signs", "schema", lambda x: x["members"][0].update(output=LONG), "expected letters")
    yield listed("file: 100000 signs", "schema", lambda x: x["members"][0].update(file=LONG), "expected 'heads/")
    yield listed("digest: 100000 signs", "schema", lambda x: x["members"][0].update(digest=LONG), "digest is")
    yield listed("format: 100000 signs", "schema", lambda x: x.update(format=LONG), "no list of an ensemble")
    yield of_folder(f"{LISTING}: more than a header may have", "json", too_long, "has more than")
    for place in (("backbone", "name"), ("backbone", "license"), (*TASK, "unit"), (*TASK, "labels", 0)):
        yield kept(place)
    yield kept(("extra", "note"), "x" * 16_000)


def too_long(folder: Path) -> None:
    """A list that is longer than any is read."""
    (folder / LISTING).write_bytes(b'"' + b"x" * MAX_HEADER_BYTES + b'"')


MODES: list[Mode] = [terabytes(), Mode(40, "very long texts", tuple(long_texts()))]
