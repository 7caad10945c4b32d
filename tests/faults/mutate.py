"""Random damage to the bytes of sound head files, and every single bit and length of the smallest one.

The digest is left alone, so that no damaged file may load. Each mutation follows from its seed file and its number.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.faults import signed, subjects
from tests.faults.forge import Report
from tests.faults.judge import Judge

WEIGHTS = {"smallest": 6, "patch_mean with all records": 2, "ensemble": 2, "LoRA": 1, "cls_gating": 1}
"""How often each sound file is damaged; what is quick to read more often."""
SPELLINGS = (
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
Damage = Callable[[Random, bytes], bytes]


def _place(rng: Random, content: bytes) -> int:
    """Anywhere; more often in the length, in the header, or at the edge between header and tensors."""
    body = min(signed.body_at(content), len(content))
    first, last = rng.choice(
        ((0, len(content)), (0, 8), (8, body), (8, body), (body - 8, body + 8), (body, len(content)))
    )
    return max(0, min(rng.randrange(first, max(first + 1, last)), len(content) - 1))


def _size(rng: Random) -> int:
    return rng.choice((1, 1, 1, 2, 4, 8, 8, 64, rng.randrange(1, 4096)))


def flip(rng: Random, content: bytes) -> bytes:
    """Turn over one bit, or several."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(data)


def replace(rng: Random, content: bytes) -> bytes:
    """Put a digit or letter in the place of another one of the header, or a random byte anywhere."""
    place = _place(rng, content)
    signs = next(
        (kind for kind in (b"0123456789", b"abcdefghijklmnopqrstuvwxyz") if content[place] in kind), bytes(range(256))
    )
    return content[:place] + bytes([rng.choice(signs)]) + content[place + 1 :]


def insert(rng: Random, content: bytes) -> bytes:
    """Add noise, zeros, JSON, or a piece of the file itself, and often correct the header's length."""
    place, size = _place(rng, content), _size(rng)
    new = rng.choice((rng.randbytes(size), bytes(size), rng.choice(SPELLINGS), content[place : place + size]))
    return _measured(rng, content, content[:place] + new + content[place:])


def delete(rng: Random, content: bytes) -> bytes:
    """Take bytes out, and often correct the header's length."""
    place = _place(rng, content)
    return _measured(rng, content, content[:place] + content[place + _size(rng) :])


def swap(rng: Random, content: bytes) -> bytes:
    """Exchange two pieces of equal size."""
    size = rng.choice((1, 2, 4, 4, 8, 16, 64))
    one, other = sorted((_place(rng, content), _place(rng, content)))
    if one + size > other or other + size > len(content):
        return flip(rng, content)
    a, b = content[one : one + size], content[other : other + size]
    return content[:one] + b + content[one + size : other] + a + content[other + size :]


def truncate(rng: Random, content: bytes) -> bytes:
    """Cut off the end, or the beginning."""
    cut = rng.choice((_place(rng, content), _place(rng, content) // 8 * 8))
    return content[:cut] if rng.random() < 0.9 else content[cut + 1 :]


def append(rng: Random, content: bytes) -> bytes:
    """Add something behind the file."""
    return content + rng.choice((bytes(_size(rng)), rng.randbytes(_size(rng)), content, b"\n", b" " * 8))


def splice(rng: Random, content: bytes) -> bytes:
    """Put a part of another sound file in: its end, its tensors, its header, or a piece."""
    other = rng.choice([raw for raw in subjects.files().values() if raw != content])
    place, size = _place(rng, content), _size(rng)
    body, others = signed.body_at(content), signed.body_at(other)
    return rng.choice((
        content[:place] + other[place:],
        content[:body] + other[others:],
        other[:others] + content[body:],
        content[:place] + other[place : place + size] + content[place + size :],
    ))  # fmt: skip


def several(rng: Random, content: bytes) -> bytes:
    """Two or three kinds of damage, one after the other."""
    for _ in range(rng.choice((2, 3))):
        content = rng.choice(list(KINDS.values())[:-1])(rng, content) or b"\0"
    return content


KINDS: dict[str, Damage] = {
    each.__name__: each for each in (flip, replace, insert, delete, swap, truncate, append, splice, several)
}


def _measured(rng: Random, old: bytes, new: bytes) -> bytes:
    """In two of three cases the header's announced length follows what was inserted or taken out."""
    if len(new) < 8 or rng.random() < 0.33:
        return new
    return (signed.body_at(old) - 8 + len(new) - len(old) & (1 << 64) - 1).to_bytes(8, "little") + new[8:]


def mutations(count: int, seed: int = 0) -> Iterator[tuple[str, str, bytes]]:
    """So many (name, kind, file); files that the damage left sound are not among them."""
    sound, names, kinds = subjects.files(), list(WEIGHTS), list(KINDS)
    known, made, number = set(sound.values()), 0, 0
    while made < count:
        number += 1
        rng = random.Random(f"{seed}/{number}")
        name, kind = rng.choices(names, list(WEIGHTS.values()))[0], kinds[number % len(kinds)]
        content = KINDS[kind](rng, sound[name])
        if content not in known:
            made += 1
            yield f"{kind} of {name}, seed {seed}/{number}", kind, content


def campaign(folder: Path, count: int, seed: int = 0) -> dict[str, Report]:
    """Judge so many mutations; a report per kind of damage. ``read_header`` is asked about every fourth as well."""
    judge, reports = Judge(folder), {kind: Report() for kind in KINDS}
    for number, (name, kind, content) in enumerate(mutations(count, seed)):
        reports[kind].add(name, judge.damaged(content, both=number % 4 == 0))
    return reports


def part(count: int, seed: int) -> dict[str, Report]:
    """A campaign in a folder of its own; for a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return campaign(Path(folder), count, seed)


def every_bit(folder: Path, every: int = 1) -> Report:
    """Every n-th bit of the smallest file turned over, and every n-th length it can be cut to."""
    judge, report, content = Judge(folder), Report(), subjects.files()["smallest"]
    for bit in range(0, 8 * len(content), every):
        flipped = content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
        report.add(f"bit {bit % 8} of byte {bit // 8}", judge.damaged(flipped))
    for length in range(0, len(content), every):
        report.add(f"cut to {length} bytes", judge.damaged(content[:length]))
    return report
