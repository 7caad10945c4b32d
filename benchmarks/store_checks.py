"""What the checks of the feature store cost: records, images, index lines.

    python -m benchmarks.store_checks [--rounds 31] [--ids N]

* A first read with the record's checksum compared, a later one, and one with ``check=False``; batches of 32 records of
  ``dinoneck_tiny`` at 64 px and of a ViT-S at 224 px (random values: the bytes do not matter), from the page cache.
* Hashing an image's file, next to decoding and preparing it for 224 px, as ``extract`` does once per image.
* Parsing the index lines of 5,000 images, checked ones and those of version 0.1.
* With ``--ids 1000000``, instead of all that: a store with an index of so many lines, opened by one process, which
  makes the table, and by another one, which maps it: seconds, memory, and 1,000 batches of 32 random look-ups.

Times are CPU time of one thread; ratios are medians of the rounds' ratios. Writes
benchmarks/results/store_checks.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import compare, machine, markdown
from dinoneck import FeatureStore, load_backbone
from dinoneck.data import Patterns
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.grid import GridSize
from dinoneck.store import index
from dinoneck.store.description import Description, make_folder
from dinoneck.store.files import LocalFiles
from dinoneck.store.images import ImageFile, image_file
from dinoneck.store.writer import Writer

RESULTS = Path(__file__).with_name("results")
IMAGES, BATCH, LINES = 64, 32, 5_000
RECORDS = {"tiny at 64 px (2.4 kB)": ((4, 4), 64), "ViT-S at 224 px (154 kB)": ((14, 14), 384)}
Rows = dict[str, dict[str, float]]


def store_of(folder: Path, grid: tuple[int, int], channels: int) -> FeatureStore:
    """Write a store of random records."""
    record = {**load_backbone("dinoneck_tiny").record(), "embed_dim": channels}
    make_folder(folder, Description(record, Preprocessing(), Patterns.named("none"), "fp16"))
    store = FeatureStore.open(folder)
    layout = store.description.layout(GridSize(*grid))
    draw = np.random.default_rng(0)
    writer = Writer(folder, made=store.description.made)
    for number in range(IMAGES):
        raw = draw.standard_normal(layout.nbytes // 2).astype(np.float16).tobytes()
        writer.add(f"{number:03d}", [raw], layout, ImageFile(1))
    writer.flush()
    return FeatureStore.open(folder)


def reads(store: FeatureStore, rounds: int) -> Rows:
    """Read all records in batches."""
    unchecked = FeatureStore.open(store.path, check=False)
    times = max(1, (1 << 22) // (IMAGES * store.reader.entry(store.ids[0]).length))  # 4 MiB per measurement at least
    batches = [store.ids[begin : begin + BATCH] for begin in range(0, IMAGES, BATCH)]

    def run(source: FeatureStore, dtype: torch.dtype | None, first: bool) -> Callable[[], None]:
        def read() -> None:
            for _ in range(times):
                if first:
                    source.reader._index[1][:] = False
                for ids in batches:
                    source.batch(ids, dtype=dtype)

        return read

    rows: Rows = {}
    for form, dtype in (("as stored", None), ("float32", torch.float32)):
        variants = {
            "check=False": run(unchecked, dtype, False),
            "first read, checked": run(FeatureStore.open(store.path), dtype, True),
            "later reads": run(FeatureStore.open(store.path), dtype, False),
        }
        measured = compare(variants, peer="check=False", rounds=rounds, clock=time.process_time)
        rows |= {f"{name}, {form}": row for name, row in measured.items()}
    return rows


def hashing(folder: Path, rounds: int) -> Rows:
    """Hash a JPEG image of 12 MP, and prepare it."""
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (300, 400, 3)).astype(np.uint8))
    path = folder / "image.jpg"
    small.resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
    prepare = Preprocessing(size=(224, 224))
    variants = {
        f"decode and prepare ({path.stat().st_size / 1e6:.1f} MB)": lambda: prepare(path),
        "size, time and hash of the file": lambda: image_file("image", path),
        "size and time alone": lambda: path.stat(),
    }
    return compare(variants, peer=next(iter(variants)), rounds=max(5, rounds // 3), clock=time.process_time)


def opening(folder: Path, rounds: int) -> Rows:
    """Parse an index."""
    checked = [
        index.Entry(f"folder/{i:09d}", f"data/w-{i // 20:08d}.safetensors", i << 20, 1 << 20, (1 << 31,) * 4, (30, 60),
                    900_000, 1_700_000_000_000_000_000 + i, f"{i:032x}", made="-".join(["0123abcd"] * 4))
        for i in range(LINES)
    ]  # fmt: skip
    runs: dict[str, Callable[[], Any]] = {}
    rows: Rows = {}
    sizes = {}
    for name in ("lines of version 0.1", "checked lines"):
        files = LocalFiles(folder / name)
        (files.root / index.FOLDER).mkdir(parents=True)
        lines = [entry.line() for entry in checked]
        if name != "checked lines":
            kept = list(json.loads(lines[0]))[:7]
            lines = [json.dumps({key: json.loads(line)[key] for key in kept}, separators=(",", ":")) for line in lines]
        (files.root / index.FOLDER / "w-one.jsonl").write_text("".join(f"{line}\n" for line in lines))
        sizes[name] = sum(map(len, lines)) / LINES + 1
        runs[name] = lambda files=files: index.by_id(index.read_journal(files, "w-one.jsonl"), lambda _: True)
    for name, row in compare(runs, peer="lines of version 0.1", rounds=rounds, clock=time.process_time).items():
        rows[f"{name} ({sizes[name]:.0f} bytes, {1e3 * row['ms'] / LINES:.1f} us each)"] = row
    return rows


_OPENED = """
import json, random, sys, time
from pathlib import Path
from dinoneck import FeatureStore

def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))}

before, start = memory(), time.perf_counter()
store = FeatureStore.open(sys.argv[1])
row = {"open_s": time.perf_counter() - start, **{f"{k}_MB": v - before[k] for k, v in memory().items()}}
draw = random.Random(0)
batches = [[store.ids[draw.randrange(len(store))] for _ in range(32)] for _ in range(1000)]
start = time.perf_counter()
for ids in batches:
    for image_id in ids:
        store.reader.entry(image_id)
row["batch_look_up_ms"] = time.perf_counter() - start
row |= {f"{k}_MB_afterwards": v - before[k] for k, v in memory().items()}
print(json.dumps(row))
"""


def many_ids(folder: Path, count: int) -> None:
    """Open a store of many images twice, in two processes; print what it costs."""
    make_folder(
        folder, Description(load_backbone("dinoneck_tiny").record(), Preprocessing(), Patterns.named("flips4"), "fp16")
    )
    made = FeatureStore.open(folder).description.made
    with (folder / index.FOLDER / "w-one.jsonl").open("w") as file:
        for i in np.random.default_rng(0).permutation(count).tolist():
            image_id, shard = f"train/class_{i % 1000:04d}/img_{i:09d}", f"data/w-{i // 80:08d}.safetensors"
            entry = index.Entry(image_id, shard, i % 80 << 20, 1 << 18, (i,) * 4, (16, 16), 900_000, 10**18 + i,
                                f"{i + 1:032x}", made=made)  # fmt: skip
            file.write(f"{entry.line()}\n")
    for name in ("first process", "second process"):
        out = subprocess.run(
            [sys.executable, "-c", _OPENED, str(folder)], capture_output=True, text=True, check=True
        ).stdout
        print(f"{count} ids, {name}: {out.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--ids", type=int)
    options = parser.parse_args()
    rounds = options.rounds
    torch.set_num_threads(1)
    if options.ids:
        with tempfile.TemporaryDirectory() as place:
            many_ids(Path(place) / "store", options.ids)
        return
    tables: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (grid, channels) in RECORDS.items():
            tables[f"{IMAGES} records, {name}"] = reads(store_of(folder / name[:4], grid, channels), rounds)
        tables["an image's file"] = hashing(folder, rounds)
        tables[f"opening {LINES} images"] = opening(folder / "lines", max(5, rounds // 5))
    report = {"machine": machine(), "command": f"python -m benchmarks.store_checks --rounds {rounds}", "tables": tables}
    (RESULTS / "store_checks.json").write_text(json.dumps(report, indent=2) + "\n")
    shown = report["machine"]
    where = f"{shown['cpu']}, CPU time of one thread, {shown['versions']}"
    head = f"`{report['command']}`, {where}; x peer = peer's time / own time."
    text = "\n\n".join([head, *(markdown(title, rows) for title, rows in tables.items())]) + "\n"
    (RESULTS / "store_checks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
