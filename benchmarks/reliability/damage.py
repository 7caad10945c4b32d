"""Random damage to the bytes of a head file: six kinds, of many sizes, at many places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

Damage = Callable[[Random, bytes, Sequence[bytes]], bytes]
"""Of the random numbers, the file and other head files."""

_RUN = 4096
_DIGITS, _LETTERS = b"0123456789", b"abcdefghijklmnopqrstuvwxyz"
_SPELLED = (
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


def flipped(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bits: one, several close together or far apart; or a digit or letter of the header becomes another."""
    data = bytearray(content)
    if not data:
        return content
    how = rng.random()
    if how < 0.45:
        places = [_place(rng, content)]
    elif how < 0.6:
        first = _place(rng, content)
        places = [first + rng.randrange(16) for _ in range(rng.randrange(2, 9))]
    elif how < 0.75:
        places = [rng.randrange(len(data)) for _ in range(rng.choice((2, 3, 8, 64)))]
    else:
        place = rng.randrange(min(len(data), 8 + _length(content)))
        for signs in (_DIGITS, _LETTERS):
            if data[place] in signs:
                data[place] = rng.choice(signs)
                return bytes(data)
        places = [place]
    for place in places:
        data[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncated(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Cut off at the end: anywhere, near an edge, or at a multiple of a block; or at the beginning."""
    how = rng.random()
    if how < 0.4:
        return content[: rng.randrange(len(content) + 1)]
    if how < 0.7:
        return content[: max(0, _edge(rng, content) + rng.randrange(-8, 9))]
    if how < 0.9:
        block = rng.choice((4, 8, 64, 512, 1024))
        return content[: rng.randrange(len(content) // block + 1) * block]
    return content[rng.randrange(1, min(len(content), _RUN) + 1) :] if content else content


def inserted(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes are added: random, zeros, spelling, or a piece of the file itself."""
    place = rng.choice((_place(rng, content), _edge(rng, content), len(content)))
    size = _size(rng)
    how = rng.random()
    if how < 0.4:
        new = rng.randbytes(size)
    elif how < 0.55:
        new = bytes(size)
    elif how < 0.8:
        new = rng.choice(_SPELLED) * rng.randrange(1, 5)
    else:
        new = _piece(rng, content, size)
    return _told(rng, content, content[:place] + new + content[place:])


def deleted(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes are taken out."""
    place, size = rng.choice((_place(rng, content), _edge(rng, content))), _size(rng)
    return _told(rng, content, content[:place] + content[place + size :])


def swapped(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Two blocks of equal size change places: single bytes, numbers, whole tensors' worth."""
    size = rng.choice((1, 1, 2, 4, 4, 8, 16, 32, 64, 512))
    start = rng.choice((0, 8, 8 + _length(content)))
    step = rng.choice((1, size))
    room = (len(content) - start - size) // step
    if room < 1:
        return content
    one, other = sorted(start + step * rng.randrange(room + 1) for _ in range(2))
    if one + size > other:
        return content
    return (
        content[:one]
        + content[other : other + size]
        + content[one + size : other]
        + content[one : one + size]
        + content[other + size :]
    )


def spliced(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A part becomes that of another head file: its beginning, its end, its header, its tensors, a block, or zeros."""
    other, how = rng.choice(others), rng.random()
    if how < 0.2:
        cut = rng.randrange(min(len(content), len(other)) + 1)
        return content[:cut] + other[cut:]
    if how < 0.35:
        return content[: 8 + _length(content)] + other[8 + _length(other) :]
    if how < 0.45:
        return content[:8] + other[8:]
    if how < 0.55:
        return content[: _edge(rng, content)] + other[_edge(rng, other) :]
    size, place = _size(rng), _place(rng, content)
    if how < 0.85:
        at = min(place, max(0, len(other) - size)) if how < 0.7 else rng.randrange(len(other))
        new = other[at : at + size]
    else:
        new = rng.choice((b"\0", b"\xff")) * size
    return content[:place] + new[: len(content) - place] + content[place + len(new) :]


KINDS: dict[str, Damage] = {
    "flip": flipped,
    "truncate": truncated,
    "insert": inserted,
    "delete": deleted,
    "swap": swapped,
    "splice": spliced,
}
STACKED = "two or three of them"


def damaged(rng: Random, kind: str, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return the file after damage of one kind, or of two or three kinds one after the other."""
    kinds = [rng.choice(list(KINDS)) for _ in range(rng.choice((2, 3)))] if kind == STACKED else [kind]
    for each in kinds:
        content = KINDS[each](rng, content, others)
    return content


def _length(content: bytes) -> int:
    """What the first eight bytes say of the header's length, as far as there are so many bytes."""
    return max(0, min(int.from_bytes(content[:8], "little"), len(content) - 8))


def _place(rng: Random, content: bytes) -> int:
    """Anywhere; sometimes in the first bytes, in the header, or among the tensors."""
    end, header = len(content), 8 + _length(content)
    first, last = rng.choice(((0, end), (0, end), (0, 8), (8, header), (header, end)))
    return rng.randrange(first, last) if first < last <= end else rng.randrange(end) if end else 0


def _edge(rng: Random, content: bytes) -> int:
    """Where something begins or ends."""
    header = 8 + _length(content)
    number = header + 4 * rng.randrange((len(content) - header) // 4 + 1) if header <= len(content) else len(content)
    return rng.choice((0, 8, header, number, len(content)))


def _size(rng: Random) -> int:
    return rng.choice((1, 1, 1, 2, 3, 4, 8, 8, 16, 64, rng.randrange(1, 257), rng.randrange(1, _RUN)))


def _piece(rng: Random, content: bytes, size: int) -> bytes:
    at = rng.randrange(len(content)) if content else 0
    return content[at : at + size]


def _told(rng: Random, before: bytes, after: bytes) -> bytes:
    """Sometimes the announced length of the header follows its new size: else one check would see most of these."""
    grown = len(after) - len(before)
    length = int.from_bytes(before[:8], "little") + grown
    if rng.random() < 0.3 and len(after) >= 8 and 0 < length < 1 << 63:
        return length.to_bytes(8, "little") + after[8:]
    return after
