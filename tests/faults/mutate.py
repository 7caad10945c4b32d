"""Random damage to the bytes of sound head files, every bit and length of the smallest one, and files of other formats.

The digest is left alone, so that no damaged file may load. Each mutation follows from its number.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tests.faults import signed
from tests.faults.judge import MADE, REFUSED, Judge, files

MUTATIONS = 150_000  # of every file
JSON = (
    b" ",
    b"\n",
    b"0",
    b"1",
    b"[]",
    b"{}",
    b",",
    b'"',
    b"null",
    b"true",
    b"1e9",
    b"\\u0000",
    b"\xc3\xa9",
    b"\xff",
)


def place(rng: Random, content: bytes) -> int:
    """Anywhere; more often in the length, in the header, or at the edge between header and tensors."""
    body, end = min(signed.body_at(content), len(content)), len(content)
    first, last = rng.choice(
        ((0, end), (0, 8), (8, body), (8, body), (body - 8, body + 8), (body, end))
    )
    return max(0, min(rng.randrange(first, max(first + 1, last)), end))


def damaged(rng: Random, content: bytes) -> bytes:
    """Put nothing, noise, zeros, JSON, or a part of a sound file in the place of nothing, a piece, or all that follows.

    This happens up to three times; in two of three cases the header's announced length follows.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        body, begin = signed.body_at(content), place(rng, content)
        size, other = rng.choice((1, 1, 2, 4, 8, 64, 4096)), rng.choice(list(files().values()))
        parts = (other[begin : begin + size], other[begin:], other[signed.body_at(other) :])
        new = rng.choice((b"", rng.randbytes(size), bytes(size), rng.choice(JSON), *parts))
        end = begin + rng.choice((0, 1, 1, len(new), size, len(content)))
        changed = content[:begin] + new + content[end:]
        if begin >= 8 and rng.random() < 0.67:
            length = body - 8 + len(changed) - len(content) & (1 << 64) - 1
            changed = length.to_bytes(8, "little") + changed[8:]
        content = changed
    return content


def bits(every: int) -> Iterator[tuple[str, bytes]]:
    """Every n-th bit of the smallest file turned over, and every n-th length that it can be cut to."""
    content = files()["smallest"]
    for bit in range(0, 8 * len(content), every):
        yield (
            f"bit {bit}",
            content[: bit // 8]
            + bytes([content[bit // 8] ^ 1 << bit % 8])
            + content[bit // 8 + 1 :],
        )
    for length in range(0, len(content), every):
        yield f"length {length}", content[:length]


def others(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of other formats, a bomb, and headers that announce or nest too much."""
    sound, saved = files()["smallest"], io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, saved)
    # a pickle that makes a folder when it is loaded
    evil = f"cos\nmkdir\n(S'{folder}/run'\ntR.".encode()
    lfs = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:"
        + b"4d7a" * 16
        + b"\nsize 80496\n"
    )
    page, bomb = b"<!DOCTYPE html>\n<html>404</html>\n", gzip.compress(bytes(64 << 20), 1)
    formats = {
        "pickle": evil,
        "torch.save": saved.getvalue(),
        "LFS": lfs,
        "web page": page,
        "gzip": bomb,
    }
    yield from formats.items()
    for length in (
        0,
        1,
        10_000,
        (1 << 20) + 1,
        101_000_000,
        1 << 32,
        (1 << 53) + 1,
        1 << 63,
        (1 << 64) - 8,
    ):
        yield f"header of {length} bytes", length.to_bytes(8, "little") + sound[8:]
    nested = "[" * 100_000, '{"a":' * 100_000 + "0" + "}" * 100_000
    for text in (*nested, "[]", "3", '{"__metadata__":{"dinoneck":"{}"}}'):
        yield f"header {text[:40]}", signed.framed(text)
    for code in ("utf-16", "utf-32", "utf-8-sig"):
        text = sound[8 : signed.body_at(sound)].decode().encode(code)
        yield code, len(text).to_bytes(8, "little") + text + sound[signed.body_at(sound) :]


MODES = (*MADE, "every bit and length of the smallest", "another format")


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge random damage of one file, or a share of the bits, or other formats; sound files are not among them."""
    if mode in MADE:
        sound, count = files()[mode], round(share * MUTATIONS)
        cases = ((f"number {number}", damaged(Random(number), sound)) for number in range(count))
    else:
        cases = others(folder) if mode == "another format" else bits(max(1, round(1 / share)))
    judge, known = Judge(folder), set(files().values())
    for case, content in cases:
        if content not in known:
            verdict = judge.verdict(content)
            verdict = "what it holds was run" if (folder / "run").exists() else verdict
            yield verdict if verdict == REFUSED else f"{case}: {verdict}"
