"""Which source files a result measured, and whether they have changed since.

    python -m benchmarks.sources

lists every stored CPU result whose sources differ from those that it measured; the exit status is then 1.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
HEADS = ("heads", "necks", "layers", "losses", "training")
SOURCES = {  # result -> folders and files of src/dinoneck
    "arrangement": HEADS,
    "backbones": ("backbones",),
    "blood_cells": ("detection", "necks", "layers", "training"),
    "crop_cover": ("backbones", *HEADS),
    "dense_cover": ("store", *HEADS),
    "detection_necks": ("necks", "layers", "interop"),
    "extraction": ("backbones", "data", "store"),
    "feature_store": ("store",),
    "gram_anchor": ("losses", "training"),
    "images": ("backbones", "data", "inference"),
    "mask_heads": HEADS,
    "parity": ("backbones",),
    "peers": ("detection", "interop", *HEADS),
    "points": ("points",),
    "points_scenes": ("points",),
    "service": ("serve", "inference"),
    "speed": ("backbones", "heads", "necks", "layers", "tokens.py"),
    "store_growth": ("store",),
    "training_loop": ("heads", "layers", "losses", "training"),
}


def source_hash(name: str) -> str:
    """Return the SHA-256 of the files, with their paths, that the result of this name measures."""
    total = hashlib.sha256()
    for part in sorted(SOURCES[name]):
        place = ROOT / "src" / "dinoneck" / part
        if not place.exists():
            raise FileNotFoundError(f"benchmarks/sources.py names {part} for {name}, which is not in src/dinoneck")
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def store(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, with the hash of the sources that it measured."""
    hashed = {"sources": source_hash(path.stem)} if path.stem in SOURCES else {}
    path.write_text(json.dumps({**report, **hashed}, indent=1) + "\n")


def stale(folder: Path = RESULTS) -> list[str]:
    """Return the names of stored results without the hash of the present sources."""
    found = ((name, folder / f"{name}.json") for name in SOURCES)
    return [name for name, path in found
            if path.exists() and json.loads(path.read_text()).get("sources") != source_hash(name)]  # fmt: skip


if __name__ == "__main__":
    old = stale()
    print("\n".join(f"{name}: its sources have changed since it was measured" for name in old))
    raise SystemExit(int(bool(old)))
