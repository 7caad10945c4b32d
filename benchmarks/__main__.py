"""``python -m benchmarks NAME [--short]``: measure, print the tables, and write the JSON of that name.

With ``--short`` a benchmark has few rounds and small sizes, checks the code and writes to
bench-results; without it writes to benchmarks/results. ``python -m benchmarks NAME --help`` lists
the options of a benchmark.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import is_gpu, machine
from benchmarks.results import RESULTS, markdown, write

NAMES = (
    "images",
    "reading",
    "extraction",
    "training_loop",
    "store",
    "speed",
    "gpu",
    "service",
    "tiles",
    "parity",
    "runtimes",
    "operators",
    "runtime_scores",
    "painting",
    "painted_scores",
    "demo",
    "evidence",
)
SHORT_ROUNDS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in NAMES:
        raise SystemExit(f"{__doc__}\nNAME is one of: {', '.join(NAMES)}")
    name = words[0]
    module = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        f"python -m benchmarks {name}",
        description=sys.modules[module.measure.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--short", action="store_true", help="few rounds and small sizes: checks the code"
    )
    parser.add_argument("--rounds", type=int, help="turns of every variant")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder of the JSON")
    parser.add_argument(
        "--machine",
        choices=["amx"],
        help="what kind of CPU this is, if it is not that of the other results: amx writes "
        "NAME_amx.json",
    )
    parser.add_argument("--only", nargs="+", help="parts of the benchmark; default: all")
    if hasattr(module, "arguments"):
        module.arguments(parser)
    options = parser.parse_args(words[1:])
    if options.machine and is_gpu(options.device):
        parser.error("--machine is for a CPU, whose results stand beside those of other CPUs")
    if not options.rounds:
        options.rounds = SHORT_ROUNDS if options.short else module.ROUNDS
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    stem = module.stem(options) if hasattr(module, "stem") else name
    if is_gpu(options.device):
        stem = f"{stem}_{torch.device(options.device).type}"
    elif options.machine:
        stem = f"{stem}_{options.machine}"
    folder = options.out or (Path("bench-results") if options.short else RESULTS)
    path = folder / f"{stem}.json"
    # results name no folders of the machine: of an absolute path the last part is kept
    without_folders = [re.sub(r"(?<![^=])/.*/", "", word) for word in words]
    command = shlex.join(["python", "-m", "benchmarks", *without_folders])

    with tempfile.TemporaryDirectory() as cache:
        # what earlier runs kept there would not be computed again
        os.environ["DINONECK_CACHE"] = cache
        for title, table in module.measure(options):
            print(f"**{title}**\n\n{markdown(table)}\n", flush=True)
            # after each table, so that it is kept if a later one fails, and with its own threads
            write(path, name, command, machine(options.device), {title: table})


if __name__ == "__main__":
    main()
