"""What the checks cost: loading, looking at the header, saving and verifying beside plain safetensors.

All variants take turns in one process, round after round; quoted is the median of the rounds' ratios. What they load is
compared bit for bit first. The digest's share is measured in the same rounds: SHA-256 alone over the same bytes. Loads
are timed by the process's own clock, which other work on the machine does not move: the files lie in the page cache and
nothing waits. Whole processes and saving, which does wait for the disk, are timed by the wall.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.reliability import cost_page
from benchmarks.timing import turns
from dinoneck import FPNHead, HeadCheckpoint, HeadEnsemble, PatchMeanHead, Task, load_head, save_head
from dinoneck.checkpoint import EnsembleFolder, Member, load_ensemble, read_header
from dinoneck.cli import verify as verify_verb

PLAIN, LEAN, MEMORY = "safetensors", "safetensors, mapped", "safetensors, in memory"
OWN, CHECKPOINT, HASH = "dinoneck", "dinoneck, checkpoint kept", "SHA-256 alone"
GOALS = {"patch_mean 1 MB": 2.0, "fpn 1 MB": 2.0, "patch_mean 100 MB": 1.3, "fpn 100 MB": 1.3}
INSPECT_SECONDS = 0.3
ROUNDS = {"small": 41, "large": 9, "process": 9}
LARGE = 50e6
_OUTPUTS, _FOLDS = ("clover", "dead", "green", "gdm", "total"), 5

page = cost_page.page


class Load(NamedTuple):
    """One thing to load: its files, and every way to load it."""

    files: list[Path]
    ways: dict[str, Callable[[], nn.Module]]


def heads(share: float) -> dict[str, Callable[[], nn.Module]]:
    """The heads by name; a small share leaves out the large ones."""
    task = [Task("total", unit="g")]
    every: dict[str, tuple[float, Callable[[], nn.Module]]] = {
        "patch_mean 200 KB": (0, lambda: PatchMeanHead(384, task, hidden_dim=128)),
        "patch_mean 1 MB": (0, lambda: PatchMeanHead(1024, task, hidden_dim=256)),
        "fpn 1 MB": (0, lambda: FPNHead(384, task, num_layers=4, fpn_dim=56)),
        "patch_mean 10 MB": (0.1, lambda: PatchMeanHead(1024, task, hidden_dim=2560)),
        "fpn 10 MB": (0.1, lambda: FPNHead(768, task, num_layers=4, fpn_dim=184)),
        "patch_mean 100 MB": (0.5, lambda: PatchMeanHead(4096, task, hidden_dim=6400)),
        "fpn 100 MB": (0.5, lambda: FPNHead(1024, task, num_layers=4, fpn_dim=628)),
    }
    return {name: make for name, (least, make) in every.items() if share >= least}


def measure(work: Path, share: float) -> dict[str, Any]:
    """Time everything in turns; ``failed`` names the goals that were missed."""
    loads = {name: one_head(work, name, make) for name, make in heads(share).items()}
    loads |= ensembles(work)
    rows = {}
    for name, load in tqdm(loads.items(), desc="loading", disable=None):
        check_equal(load.ways)
        rows[name] = load_row(load, share)
    goals = [goal_row(name, goal, rows[name]) for name, goal in GOALS.items() if name in rows]
    first = next(iter(loads.values())).files[0]
    look = inspect_rows(first, share)
    goals.append(inspect_goal(look))
    save = {
        name: save_row(work, make(), share)
        for name, make in tqdm(heads(share).items(), desc="saving", disable=None)
        if name.startswith("patch_mean")
    }
    return {
        "load": rows,
        "goals": goals,
        "inspect": look,
        "save": save,
        "versions": {"safetensors": safetensors.__version__, "torch": str(torch.__version__)},
        "failed": [row["what"] for row in goals if not row["met"]],
    }


def one_head(work: Path, name: str, make: Callable[[], nn.Module]) -> Load:
    """Write a head and give the ways to load it. The peers build the same module by its constructor."""
    torch.manual_seed(0)
    module = make()
    path = work / f"{name.replace(' ', '-')}.safetensors"
    save_head(path, module)
    return Load(
        [path],
        {
            PLAIN: lambda: filled(make(), safetensors.torch.load_file(path), assign=False),
            LEAN: lambda: filled(on_meta(make), safetensors.torch.load_file(path), assign=True),
            MEMORY: lambda: filled(on_meta(make), safetensors.torch.load(path.read_bytes()), assign=True),
            OWN: lambda: load_head(path),
            CHECKPOINT: lambda: HeadCheckpoint.load(path).build(),
        },
    )


def ensembles(work: Path) -> dict[str, Load]:
    """25 heads of 0.8 MB: as a folder, and as one file."""
    places = [(output, fold) for output in _OUTPUTS for fold in range(_FOLDS)]
    tasks = {output: [Task(output, unit="g")] for output in _OUTPUTS}
    torch.manual_seed(0)
    members = [
        Member(HeadCheckpoint.from_module(PatchMeanHead(1536, tasks[output])), output, fold) for output, fold in places
    ]
    folder, path = EnsembleFolder(members), work / "ensemble.safetensors"
    folder.save(work / "ensemble")
    folder.checkpoint().save(path)
    files = [work / "ensemble" / member.file for member in members]
    rows = [{"type": "patch_mean", "config": member.checkpoint.config} for member in members]

    def from_folder(assign: bool) -> nn.Module:
        built = []
        for (output, _), file in zip(places, files, strict=True):
            make = lambda output=output: PatchMeanHead(1536, tasks[output])  # noqa: E731
            built.append(filled(on_meta(make) if assign else make(), safetensors.torch.load_file(file), assign=assign))
        return HeadEnsemble.from_heads(built).eval()

    def whole() -> HeadEnsemble:
        return HeadEnsemble(rows)

    return {
        "25 heads of 0.8 MB, folder": Load(
            files,
            {
                PLAIN: lambda: from_folder(False),
                LEAN: lambda: from_folder(True),
                OWN: lambda: load_ensemble(work / "ensemble"),
            },
        ),
        "25 heads of 0.8 MB, one file": Load(
            [path],
            {
                PLAIN: lambda: filled(whole(), safetensors.torch.load_file(path), assign=False),
                LEAN: lambda: filled(on_meta(whole), safetensors.torch.load_file(path), assign=True),
                MEMORY: lambda: filled(on_meta(whole), safetensors.torch.load(path.read_bytes()), assign=True),
                OWN: lambda: load_head(path),
            },
        ),
    }


def filled(module: nn.Module, state: Mapping[str, torch.Tensor], *, assign: bool) -> nn.Module:
    """What users of plain safetensors write."""
    module.load_state_dict(state, strict=True, assign=assign)
    return module.eval()


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory, to assign weights to."""
    with torch.device("meta"):
        return make()


def check_equal(ways: Mapping[str, Callable[[], nn.Module]]) -> None:
    """Refuse to time ways that do not load the same bits."""
    expected = ways[PLAIN]().state_dict()
    for name, way in ways.items():
        found = way().state_dict()
        if found.keys() != expected.keys() or not all(torch.equal(found[key], expected[key]) for key in expected):
            raise RuntimeError(f"{name} loads other tensors")


def rounds_of(kind: str, share: float) -> int:
    """How many rounds a share of the measurement takes; quartiles need two."""
    return max(2, round(ROUNDS[kind] * min(share, 1)))


def load_row(load: Load, share: float) -> dict[str, Any]:
    """Milliseconds of every way, and what dinoneck takes relative to the peers with and without its digest."""
    content = [path.read_bytes() for path in load.files]
    size = sum(map(len, content))
    rounds = rounds_of("large" if size > LARGE else "small", share)
    ways = {**load.ways, HASH: lambda: [hashlib.sha256(data).digest() for data in content]}
    seconds = turns(ways, rounds=rounds, warmup=2, clock=time.process_time)
    row: dict[str, Any] = {"bytes": size, "rounds": rounds}
    row["ms"] = {name: statistics.median(own) * 1e3 for name, own in seconds.items()}
    for key, less in (("ratio", [0.0] * rounds), ("ratio, hash aside", seconds[HASH])):
        row[key] = {
            peer: quartiles(
                [(own - aside) / other for own, aside, other in zip(seconds[OWN], less, seconds[peer], strict=True)]
            )
            for peer in (PLAIN, LEAN, MEMORY)
            if peer in seconds
        }
    return row


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4)


def goal_row(name: str, goal: float, row: Mapping[str, Any]) -> dict[str, Any]:
    """A goal for the ratio to plain safetensors as it is used, the digest's time taken off."""
    measured = row["ratio, hash aside"][PLAIN][1]
    return {
        "what": f"load, {name}, hash aside",
        "goal": f"<= {goal:g} x safetensors",
        "measured": f"{measured:.2f} x (with the hash {row['ratio'][PLAIN][1]:.2f} x)",
        "met": measured <= goal,
    }


def inspect_goal(look: Mapping[str, Any]) -> dict[str, Any]:
    """The goal for looking at a header from the command line."""
    seconds, median = (look[kind]["dinoneck inspect"] for kind in ("least s", "median s"))
    torch_there = look["imports torch"]
    return {
        "what": "`dinoneck inspect`, whole process",
        "goal": f"< {INSPECT_SECONDS} s, no torch",
        "measured": f"{seconds:.3f} s (median {median:.3f}), {'torch imported' if torch_there else 'no torch'}",
        "met": seconds < INSPECT_SECONDS and not torch_there,
    }


def inspect_rows(path: Path, share: float) -> dict[str, Any]:
    """Seconds of whole processes, and of the header alone in a process that runs."""
    command = [sys.executable, "-m", "dinoneck", "inspect", str(path)]
    verify = [sys.executable, "-m", "dinoneck", "verify", str(path)]
    spoken = subprocess.run([sys.executable, "-X", "importtime", *command[1:]], capture_output=True, check=True)
    ways: dict[str, Callable[[], Any]] = {
        "python": lambda: run([sys.executable, "-c", "pass"]),
        "dinoneck inspect": lambda: run(command),
    }
    if share >= 0.1:  # these take seconds each
        ways["python -c 'import torch'"] = lambda: run([sys.executable, "-c", "import torch"])
        ways["dinoneck verify"] = lambda: run(verify)
    seconds = turns(ways, rounds=rounds_of("process", share), warmup=1)
    result: dict[str, Any] = {"median s": {name: statistics.median(own) for name, own in seconds.items()}}
    result["least s"] = {name: min(own) for name, own in seconds.items()}
    inside = turns(
        {"read_header": lambda: read_header(path), "safe_open": lambda: opened(path)}, rounds=rounds_of("small", share)
    )
    result["header ms"] = {name: statistics.median(own) * 1e3 for name, own in inside.items()}
    result["imports torch"] = any(line.split(b"|")[-1].strip() == b"torch" for line in spoken.stderr.splitlines())
    return result


def run(command: list[str]) -> None:
    """One process, silent."""
    subprocess.run(command, capture_output=True, check=True)


def opened(path: Path) -> Any:
    """The header as safetensors reads it."""
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def save_row(work: Path, module: nn.Module, share: float) -> dict[str, Any]:
    """Milliseconds of saving, its parts, and of verifying."""
    state = {key: value.detach() for key, value in module.state_dict().items()}
    checkpoint = HeadCheckpoint.from_module(module)
    plain, own = work / "plain.safetensors", work / "own.safetensors"
    checkpoint.save(own)

    def verify() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            verify_verb.run(verify_verb_options(own))

    ways: dict[str, Callable[[], Any]] = {
        "safetensors save_file": lambda: safetensors.torch.save_file(state, plain),
        "save_file and flush to disk": lambda: flushed(plain, lambda: safetensors.torch.save_file(state, plain)),
        "dinoneck save_head": lambda: save_head(own, module),
        "of that: copy and digest": lambda: HeadCheckpoint.from_module(module),
        "of that: write, flush, read back, rename": lambda: checkpoint.save(own),
        "of that: read back": lambda: HeadCheckpoint.load(own),
        "dinoneck verify, in a process that runs": verify,
    }
    size = own.stat().st_size
    seconds = turns(ways, rounds=rounds_of("large" if size > LARGE else "small", share), warmup=1)
    return {"bytes": size, "ms": {name: statistics.median(own) * 1e3 for name, own in seconds.items()}}


def verify_verb_options(path: Path) -> Any:
    """The verb's arguments as its parser gives them."""
    import argparse

    parser = argparse.ArgumentParser()
    verify_verb.add_arguments(parser)
    return parser.parse_args([str(path)])


def flushed(path: Path, write: Callable[[], None]) -> None:
    """Write, then flush the file's bytes to disk."""
    write()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
