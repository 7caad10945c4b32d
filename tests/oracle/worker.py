"""What either version runs for the oracle: ``write FOLDER`` or ``read FOLDER RESULT``. Public names of 0.1 alone."""

from __future__ import annotations

import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import dinoneck
from dinoneck import FeatureStore, HeadCheckpoint, Predictor, load_backbone
from dinoneck.data import Pasture

ROUNDS = 7
TINY = "--backbone dinoneck_tiny --folds 2 --epochs 2"
TRAIN = f"train --csv table.csv --targets Dry_Total_g cover --group sampling {TINY}"


def write(folder: Path) -> None:
    """Heads of every contract case, images, a store and a trained run."""
    from tests.contract.cases import CASES

    (folder / "heads").mkdir(parents=True)
    facts = {}
    for case in CASES:
        torch.manual_seed(1)
        HeadCheckpoint.from_module(case.build()).save(folder / "heads" / f"{case.name}.safetensors")
        facts[case.name] = {"takes": case.takes, "layers": case.layers, "cell_px": case.cell_px, "grid": case.grid}
    (folder / "facts.json").write_text(json.dumps(facts))
    Pasture(seed=3, size=(48, 80)).write(folder, 12)
    for dtype in ("fp16", "bf16", "int8"):
        store = FeatureStore.create(folder / f"store-{dtype}", backbone=load_backbone("dinoneck_tiny", layers=[2, 5]),
                                    patterns="flips4", image_size=(48, 80), dtype=dtype)  # fmt: skip
        store.extract(folder / "photos")
    for head in ("patch_mean", "fpn", "cls_gating"):
        command = [sys.executable, "-m", "dinoneck", *TRAIN.split(), "--head", head, "--out", f"run-{head}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a job and the median of its milliseconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        result = job()
        times.append((time.perf_counter() - begin) * 1e3)
    return result, statistics.median(times)


def hashed(value: Any) -> str:
    """A hash of every tensor's name, dtype, shape and bits, and of every other value."""
    total = hashlib.sha256()
    for path, entry in pytree.tree_flatten_with_path(value)[0]:
        total.update(pytree.keystr(path).encode())
        if isinstance(entry, Tensor):
            bits = entry.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            total.update(f"{entry.dtype} {tuple(entry.shape)}".encode() + bits.numpy().tobytes())
        else:
            total.update(repr(entry).encode())
    return total.hexdigest()[:16]


def read(folder: Path) -> dict[str, Any]:
    """Outputs and times of loading, of everything in the folder."""
    from tests.golden.golden import grids_of, inputs

    found: dict[str, Any] = {}
    for name, case in json.loads((folder / "facts.json").read_text()).items():
        file = folder / "heads" / f"{name}.safetensors"
        module, ms = timed(lambda file=file: HeadCheckpoint.load(file).build())  # type: ignore[misc]
        outputs: list[Any] = [dict(module.state_dict())]
        for grid in grids_of(case):
            arguments = pytree.tree_map_only(Tensor, single, inputs(case, *grid)[1])
            with torch.no_grad():
                outputs.append(pytree.tree_leaves(module(*arguments)))
        found[f"head {name}"] = {"outputs": hashed(outputs), "ms": ms}
    for path in sorted(folder.glob("store-*")):
        store, ms = timed(lambda path=path: FeatureStore.open(path))  # type: ignore[misc]
        tokens = [[store[image, pattern].sequence for pattern in range(4)] for image in store.ids]
        found[f"{path.name} (open)"] = {"outputs": hashed([list(store.ids), tokens]), "ms": ms}
    for path in sorted(folder.glob("run-*")):
        predictor, ms = timed(lambda path=path: Predictor(path / "heads"))  # type: ignore[misc]
        images = sorted((folder / "photos").iterdir())
        found[f"{path.name} (load)"] = {"outputs": hashed(predictor(images)), "ms": ms}
    return found


def single(value: Tensor) -> Tensor:
    """Float32 without gradients; masks stay as they are."""
    return value.detach().float() if value.is_floating_point() else value


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        Path(sys.argv[3]).write_text(json.dumps({"package": dinoneck.__file__, **read(Path(sys.argv[2]))}))
