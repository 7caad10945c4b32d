"""The part ``flips``: every single bit of small files turned over, and every length they can be cut to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.reliability.modes_file import flipped
from benchmarks.reliability.subjects import ensemble_folder, file_of, first_schema, small
from dinoneck import CheckpointError, HeadCheckpoint
from dinoneck.checkpoint import EnsembleFolder
from dinoneck.checkpoint.header import LISTING

SHOWN = 20
OPENING = """\
Each single bit is turned over in turn, then the file is cut to each length that is shorter than its own. No byte is
free: the header must be spelled exactly as its content implies, and the digest covers the rest; the list of a folder
has a canonical spelling and a digest too."""
Load = Callable[[Path], object]


def measure(work: Path, share: float = 1.0) -> dict[str, Any]:
    """Turn over every bit, and cut at every length; of a share of 0.1 every tenth."""
    every = max(1, round(1 / share))
    head = work / "h.safetensors"
    listing = ensemble_folder(work / "e") / LISTING
    told = [
        damaged("a head file", head, file_of(small), HeadCheckpoint.load, every),
        damaged("a head file of schema 1", head, first_schema(), HeadCheckpoint.load, every),
        damaged(f"`{LISTING}` of a folder of heads", listing, listing.read_bytes(), _load_folder, every),
    ]
    return {"every": every, "files": told, "failed": sum(len(file["wrong"]) for file in told)}


def _load_folder(path: Path) -> EnsembleFolder:
    return EnsembleFolder.load(path.parent)


def damaged(name: str, path: Path, content: bytes, load: Load, every: int = 1) -> dict[str, Any]:
    """Every bit and every prefix of one file.

    Args:
        name: for the page.
        path: where it lies; it is left sound.
        content: its bytes.
        load: reads it, or what it belongs to.
        every: takes only every n-th bit and length.
    """
    bits, lengths = range(0, 8 * len(content), every), range(0, len(content), every)
    flips = ((f"bit {bit % 8} of byte {bit // 8}", flipped(content, bit // 8, bit % 8)) for bit in bits)
    cuts = ((f"cut to {length} bytes", content[:length]) for length in lengths)
    path.write_bytes(content)
    load(path)
    flip_steps, wrong = _refused(path, flips, load, len(bits), name)
    cut_steps, more = _refused(path, cuts, load, len(lengths), name)
    path.write_bytes(content)
    load(path)
    return {
        "file": name,
        "bytes": len(content),
        "flips": len(bits),
        "flip_steps": flip_steps,
        "cuts": len(lengths),
        "cut_steps": cut_steps,
        "wrong": wrong + more,
    }


def _refused(
    path: Path, attempts: Iterable[tuple[str, bytes]], load: Load, total: int, name: str
) -> tuple[dict[str, int], list[str]]:
    """How many were refused by which step; and what passed, or raised something else."""
    steps: Counter[str] = Counter()
    wrong = []
    for what, content in tqdm(attempts, total=total, desc=name, disable=None):
        path.write_bytes(content)
        try:
            load(path)
            wrong.append(f"{what}: passed")
        except CheckpointError as error:
            steps[error.step] += 1
        except Exception as error:  # whatever escapes is what is looked for
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    return dict(steps.most_common()), wrong


def page(result: dict[str, Any]) -> str:
    """A small table."""
    rows, wrong = [], []
    for file in result["files"]:
        flips, cuts = (sum(file[key].values()) for key in ("flip_steps", "cut_steps"))
        rows.append(
            f"| {file['file']} | {file['bytes']} | {flips:,} of {file['flips']:,} | {_spelled(file['flip_steps'])} | "
            f"{cuts:,} of {file['cuts']:,} | {_spelled(file['cut_steps'])} |"
        )
        wrong += [f"- {file['file']}: {text}" for text in file["wrong"]]
    tenth = "" if result["every"] == 1 else f" Only every {result['every']}th was taken."
    return "\n".join(
        [
            OPENING + tenth,
            "",
            "| file | bytes | flips refused | by step | cuts refused | by step |",
            "|---|--:|--:|---|--:|---|",
            *rows,
            *(["", "Not refused as they ought to be:", "", *wrong[:SHOWN]] if wrong else []),
        ]
    )


def _spelled(steps: dict[str, int]) -> str:
    return ", ".join(f"`{step}` {count:,}" for step, count in steps.items())
