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
    """Return a random offset; more often one in the length, in the header, or near the begin of the tensors."""
    end = len(content)
    body = min(signed.body_at(content), end)
    anywhere = (0, end)
    length = (0, 8)
    header = (8, body)
    edge = (body - 8, body + 8)
    tensors = (body, end)
    first, last = rng.choice((anywhere, length, header, header, edge, tensors))
    chosen = rng.randrange(first, max(first + 1, last))
    return max(0, min(chosen, end))


def damaged(rng: Random, content: bytes) -> bytes:
    """Put nothing, noise, zeros, JSON, or a part of a sound file in the place of nothing, a piece, or all that follows.

    This happens up to three times. After a change behind the length field, two times in three the
    announced length of the header is adjusted.
    """
    num_changes = rng.choice((1, 1, 1, 2, 3))
    for _ in range(num_changes):
        body = signed.body_at(content)
        begin = place(rng, content)
        size = rng.choice((1, 1, 2, 4, 8, 64, 4096))
        other = rng.choice(list(files().values()))

        noise = rng.randbytes(size)
        json_text = rng.choice(JSON)
        piece_of_other = other[begin : begin + size]
        rest_of_other = other[begin:]
        tensors_of_other = other[signed.body_at(other) :]
        new = rng.choice(
            (
                b"",
                noise,
                bytes(size),
                json_text,
                piece_of_other,
                rest_of_other,
                tensors_of_other,
            )
        )
        num_removed = rng.choice((0, 1, 1, len(new), size, len(content)))
        changed = content[:begin] + new + content[begin + num_removed :]

        if begin >= 8 and rng.random() < 0.67:
            growth = len(changed) - len(content)
            header_size = (body - 8 + growth) % 2**64
            changed = _with_header_size(changed, header_size)
        content = changed
    return content


def _with_header_size(content: bytes, size: int) -> bytes:
    """Return a file that announces a header of so many bytes."""
    return size.to_bytes(8, "little") + content[8:]


def bits(every: int) -> Iterator[tuple[str, bytes]]:
    """Every n-th bit of the smallest file turned over, and every n-th length that it can be cut to."""
    content = files()["smallest"]
    for bit in range(0, 8 * len(content), every):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit}", bytes(flipped)
    for length in range(0, len(content), every):
        yield f"length {length}", content[:length]


HEADER_SIZES = (
    0,
    1,
    10_000,
    2**20 + 1,
    101_000_000,
    2**32,
    2**53 + 1,
    2**63,
    2**64 - 8,
)
HEADERS = (
    "[" * 100_000,
    '{"a":' * 100_000 + "0" + "}" * 100_000,
    "[]",
    "3",
    '{"__metadata__":{"dinoneck":"{}"}}',
)


def others(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files of other formats, a gzip bomb, and headers of a wrong size, shape or encoding."""
    # this pickle makes the folder "run" if it is loaded
    yield "pickle", f"cos\nmkdir\n(S'{folder}/run'\ntR.".encode()
    saved = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, saved)
    yield "torch.save", saved.getvalue()
    digest = "4d7a" * 16
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 80496\n"
    yield "LFS", pointer.encode()
    yield "web page", b"<!DOCTYPE html>\n<html>404</html>\n"
    yield "gzip", gzip.compress(bytes(64 << 20), 1)

    sound = files()["smallest"]
    for size in HEADER_SIZES:
        yield f"header of {size} bytes", _with_header_size(sound, size)
    for text in HEADERS:
        yield f"header {text[:40]}", signed.framed(text)
    body = signed.body_at(sound)
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        header = sound[8:body].decode().encode(encoding)
        yield encoding, _with_header_size(bytes(8) + header + sound[body:], len(header))


EVERY_BIT = "every bit and length of the smallest"
OTHER_FORMAT = "another format"
MODES = (*MADE, EVERY_BIT, OTHER_FORMAT)


def cases_of(mode: str, share: float, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of every case: random damage, a share of the bits, or other formats."""
    if mode == EVERY_BIT:
        yield from bits(every=max(1, round(1 / share)))
    elif mode == OTHER_FORMAT:
        yield from others(folder)
    else:
        sound = files()[mode]
        for number in range(round(share * MUTATIONS)):
            yield f"number {number}", damaged(Random(number), sound)


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode; sound files are not among them."""
    judge = Judge(folder)
    sound_files = set(files().values())
    for case, content in cases_of(mode, share, folder):
        if content in sound_files:
            continue
        verdict = judge.verdict(content)
        if (folder / "run").exists():
            (folder / "run").rmdir()
            verdict = "code in the file was executed"
        if verdict != REFUSED:
            verdict = f"{case}: {verdict}"
        yield verdict
