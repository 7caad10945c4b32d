"""Load time of head files of 1 MB and 100 MB next to safetensors, and of ``dinoneck inspect``.

    python -m benchmarks.head_files [--rounds 30]

*safetensors* is what its documentation shows: build the module, ``load_file``, ``load_state_dict``, ``eval``. Prints
medians of rounds in turn, in milliseconds of the process's own clock, with the file in the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.timing import machine
from dinoneck import FPNHead, PatchMeanHead, Task, load_head, save_head

HEADS: dict[str, Callable[[], nn.Module]] = {
    "patch_mean, 1 MB": lambda: PatchMeanHead(512, [Task("a")], hidden_dim=512),
    "patch_mean, 100 MB": lambda: PatchMeanHead(5120, [Task("a")], hidden_dim=5120),
    "fpn, 1 MB": lambda: FPNHead(384, [Task("a")], num_layers=4, fpn_dim=53),
    "fpn, 100 MB": lambda: FPNHead(1024, [Task("a")], num_layers=4, fpn_dim=636),
}


def from_safetensors(make: Callable[[], nn.Module], path: Path) -> nn.Module:
    """Load plain weights strictly."""
    module = make()
    module.load_state_dict(load_file(path), strict=True)
    return module.eval()


def seconds(call: Callable[[], object]) -> float:
    """Processor time of one call."""
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "head.safetensors"), Path(folder, "plain.safetensors")
        for name, make in HEADS.items():
            module = make()
            save_head(ours, module, backbone={"name": "mine"})
            save_file(module.state_dict(), theirs)
            calls = {
                "dinoneck": lambda: load_head(ours),
                "safetensors": lambda make=make: from_safetensors(make, theirs),
            }
            times = {variant: [] for variant in calls}
            for _ in range(rounds):
                for variant, call in calls.items():
                    times[variant].append(seconds(call))
            ms = {variant: round(1e3 * statistics.median(values), 2) for variant, values in times.items()}
            print(json.dumps({"head": name, "bytes": ours.stat().st_size, "ms": ms}), flush=True)
        command = [Path(sys.executable).with_name("dinoneck"), "inspect", ours]
        taken: list[float] = []
        for _ in range(rounds):
            begun = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken.append(time.perf_counter() - begun)
    print(json.dumps({"dinoneck inspect, s": [round(min(taken), 3), round(statistics.median(taken), 3)], **machine()}))


if __name__ == "__main__":
    main()
