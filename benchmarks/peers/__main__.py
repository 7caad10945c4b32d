"""Train heads of dinoneck and of its peers on the tokens of one frozen backbone.

    python -m benchmarks.peers --data FOLDER [--only crop_cover blood_cells lightly] [--seeds 0 1 2]

FOLDER holds ``crop_cover`` (class masks, images split by group) and ``blood_cells`` (boxes). The ViT runs once over all
images; every peer has the same tokens, training images, epochs, batches, optimizer, schedule and loss. A row's learning
rate is the one with the best score on the validation images, with the first seed. ``lightly`` needs lightly-train
(AGPL-3.0, not a dependency) in the environment. Updates benchmarks/results/peers.json, prints the tables of
docs/explanation/peers.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.data import BACKBONE, LAYERS, Boxes, Masks
from benchmarks.peers.rows import BATCH, PEERS, RATES, Peer
from benchmarks.points import resident
from benchmarks.sources import source_hash, store
from benchmarks.timing import machine
from dinoneck import load_backbone

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"


def measure(data: Masks | Boxes, peers: Mapping[str, Peer], metric: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train every peer with its learning rates and the first seed, then with the best one and the other seeds."""
    first, *others = options.seeds
    context = multiprocessing.get_context("fork")  # every training in a process of its own
    with context.Pool(options.processes, _begin, (peers, data), maxtasksperchild=1) as pool:
        jobs = [(name, lr, first) for name in peers for lr in RATES]
        tried = pool.starmap(trained, jobs, chunksize=1)
        best = {name: max(_of(name, tried), key=lambda run: run["val"][metric]) for name in peers}
        jobs = [(name, best[name]["lr"], seed) for name in peers for seed in others]
        runs = [*best.values(), *pool.starmap(trained, jobs, chunksize=1)]
    rest = [run for run in tried if run is not best[run["name"]]]
    return {
        name: {"runs": _of(name, runs), "not_chosen": _of(name, rest), "lines": peer.lines, "licence": peer.licence}
        for name, peer in peers.items()
    }


def _of(name: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [run for run in runs if run["name"] == name]


def _begin(peers: Mapping[str, Peer], data: Masks | Boxes) -> None:
    """Keep what the fork inherits."""
    globals()["_inherited"] = peers, data


def trained(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once; return scores, CPU seconds, and the memory that training adds to data and tokens."""
    peers, data = globals()["_inherited"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, begin = resident("VmRSS"), time.process_time()
    predict = peers[name].run(data, lr, seed)
    cost = {"cpu_s": time.process_time() - begin, "peak_mib": resident("VmHWM") - before}
    with torch.no_grad():
        parts = {part: [predict(rows) for rows in data.parts[part].split(BATCH)] for part in ("val", "test")}
    run = {"name": name, "lr": lr, "seed": seed, **cost}
    run |= {part: data.score(batches, part) for part, batches in parts.items()}
    print(json.dumps(run), flush=True)
    return run


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the tables of the docs page: held-out scores, means over seeds and their range."""
    blocks = []
    for name, rows in tables.items():
        metric, *others = next(iter(rows.values()))["runs"][0]["test"]
        titles = [f"`{name}`, held out", metric, ", ".join(others), "CPU minutes", "MiB added", "lines", "licence"]
        lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
        for peer, row in sorted(rows.items(), key=lambda item: -_mean(item[1], metric)):
            scores = [run["test"][metric] for run in row["runs"]]
            spread = f" ({min(scores):.3f} … {max(scores):.3f})" if len(scores) > 1 else ""
            each = ", ".join(f"{_mean(row, other):.2f}" for other in others)
            minutes = statistics.fmean(run["cpu_s"] for run in row["runs"]) / 60
            memory = max(run["peak_mib"] for run in row["runs"])
            cells = [peer, f"{_mean(row, metric):.3f}{spread}", each, f"{minutes:.1f}", f"{memory:.0f}"]
            lines.append("| " + " | ".join([*cells, str(row["lines"]), row["licence"]]) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _mean(row: Mapping[str, Any], score: str) -> float:
    return statistics.fmean(run["test"][score] for run in row["runs"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["crop_cover", "blood_cells"], choices=list(PEERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
    # rows that measured other source files are dropped
    tables = earlier["tables"] if earlier.get("sources") == source_hash("peers") else {}
    backbone = load_backbone(BACKBONE, pretrained=False, seed=0, layers=LAYERS)
    for name in options.only:
        if name == "blood_cells":
            data = Boxes.read(options.data / name, backbone.with_layers(LAYERS[1:]))
            tables[name] = measure(data, PEERS[name], "AP50", options)
        else:
            data = Masks.read(options.data / "crop_cover", backbone)
            tables.setdefault("crop_cover", {}).update(measure(data, PEERS[name], "mIoU", options))
    used = machine()
    used["versions"] |= {name: version(name) for name in ("segmentation_models_pytorch", "torchvision", "transformers")}
    store(options.out, {"tables": tables, "machine": used})
    print(markdown(tables))


if __name__ == "__main__":
    main()
