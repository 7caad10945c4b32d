"""Modes 1 to 27: the file itself is damaged, or is another kind of file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from benchmarks.reliability.attempts import Attempt, of_bytes, of_folder, sweep
from benchmarks.reliability.modes import Case, Missed, Mode
from benchmarks.reliability.modes_json import MODES as JSON_MODES
from benchmarks.reliability.modes_strangers import MODES as STRANGERS
from benchmarks.reliability.subjects import ALL, Subject, ensemble, file_of, first_schema, fpn, plain, small
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.header import LISTING, MAX_HEADER_BYTES

CAP_OF_SAFETENSORS = 100_000_000
MEMBER = "heads/a-fold0.safetensors"


def announced(length: int, rest: bytes | None = None) -> Callable[[], bytes]:
    """A file whose first eight bytes say this length of the header."""
    return lambda: length.to_bytes(8, "little") + (file_of(small)[8:] if rest is None else rest)


def sparse(name: str, length: int, size: int) -> Case:
    """A file of zeros that takes no room, announcing a header of this length."""

    def run(folder: Path) -> None:
        path = folder / "h.safetensors"
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(size)
        load_there(path)

    return Case(name, "header", run, f"header of {length} bytes")


def load_there(path: Path) -> None:
    """Load what lies there."""
    from dinoneck import HeadCheckpoint

    HeadCheckpoint.load(path)


def head_start(content: bytes) -> int:
    """Where the tensors of a file begin."""
    return 8 + int.from_bytes(content[:8], "little")


def prefixes(
    content: Callable[[], bytes], first: int, last: Callable[[bytes], int], step: int = 1
) -> Iterator[Attempt]:
    """The first n bytes of a file, each with the step that must refuse it."""
    raw = content()
    for length in range(first, last(raw), step):
        yield f"{length} bytes", raw[:length], "header" if length < head_start(raw) else "tensors"


def cut(name: str, step: str, content: Callable[[], bytes], every: int = 1) -> Case:
    """All prefixes in the part of a file that ``step`` looks after."""
    bounds = {"header": (8, head_start), "tensors": (0, len)}
    first, last = bounds[step]
    if step == "tensors":
        return sweep(name, step, lambda: prefixes(content, head_start(content()), last, every))
    return sweep(name, step, lambda: prefixes(content, first, last, every))


def appended(name: str, tail: Callable[[bytes], bytes], subject: Subject = small) -> Case:
    """A whole file and something behind it."""
    return of_bytes(name, "tensors", lambda: file_of(subject) + tail(file_of(subject)), "something was appended")


def random_files() -> Iterator[Attempt]:
    """Noise of many lengths: nothing in it announces a header that could be one."""
    for seed in range(200):
        rng = Random(seed)
        yield f"seed {seed}", rng.randbytes(rng.choice((8, 9, 64, 1000, 4096))), "header"


def random_headers() -> Iterator[Attempt]:
    """A right length, then noise; every second one of printable signs."""
    for seed in range(200):
        rng = Random(seed)
        size = rng.choice((8, 64, 512))
        noise = rng.randbytes(size) if seed % 2 else bytes(rng.randrange(32, 127) for _ in range(size))
        yield f"seed {seed}", size.to_bytes(8, "little") + noise + rng.randbytes(rng.randrange(64)), "json"


def random_tensors() -> Iterator[Attempt]:
    """A right header and noise for the tensors."""
    raw = file_of(plain)
    for seed in range(50):
        yield f"seed {seed}", raw[: head_start(raw)] + Random(seed).randbytes(len(raw) - head_start(raw)), "digest"


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """One bit of one byte."""
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def flips(places: Callable[[bytes], range], steps: str, subject: Subject = small) -> Iterator[Attempt]:
    """One bit in every byte of a region, another one from byte to byte."""
    raw = file_of(subject)
    for place in places(raw):
        yield f"bit {place % 8} of byte {place}", flipped(raw, place, place % 8), steps


def flipped_lengths() -> Iterator[Attempt]:
    """All bits of the announced length; small changes leave a length that could be one."""
    raw = file_of(small)
    for place in range(64):
        damaged = flipped(raw, place // 8, place % 8)
        possible = 2 <= int.from_bytes(damaged[:8], "little") <= len(raw) - 8
        yield f"bit {place}", damaged, "json" if possible else "header"


def span(key: str) -> Callable[[bytes], range]:
    """Where the value of a metadata entry stands in the file."""

    def places(raw: bytes) -> range:
        mark = f'\\"{key}\\":'.encode()
        begin = raw.index(mark) + len(mark)
        end = next(at for at in range(begin, len(raw)) if raw[at : at + 3] in (b',\\"', b'}"}'))
        return range(begin, end)

    return places


def listing_places(raw: bytes) -> range:
    """The header behind the metadata: where other readers look up their tensors."""
    return range(raw.index(b'}"},') + 3, head_start(raw))


def respelled(
    old: str, new: str, subject: Subject = plain, body: Callable[[bytes], bytes] = bytes
) -> Callable[[], bytes]:
    """The header with other offsets; the digest does not cover them, so it stays right."""

    def content() -> bytes:
        raw = file_of(subject)
        start, text = raw[head_start(raw) :], raw[8 : head_start(raw)].decode().rstrip()
        if text.count(old) < 1:
            raise Missed(f"the header does not hold {old}")
        spelled = text.replace(old, new, 1).encode()
        spelled += b" " * (-len(spelled) % 8)
        return len(spelled).to_bytes(8, "little") + spelled + body(start)

    return content


def offsets(place: int, subject: Subject = plain) -> str:
    """How the offsets of the n-th tensor are spelled."""
    rows, begin = subject().meta["tensors"], 0
    for row in rows[:place]:
        begin += 4 * count(row[2])
    return f'"data_offsets":[{begin},{begin + 4 * count(rows[place][2])}]'


def count(shape: list[int]) -> int:
    """Numbers in a tensor."""
    total = 1
    for side in shape:
        total *= side
    return total


def moved(name: str, place: int, new: str, subject: Subject = plain, body: Callable[[bytes], bytes] = bytes) -> Case:
    """Other offsets of one tensor."""
    return of_bytes(
        name,
        "json",
        lambda: respelled(offsets(place, subject), f'"data_offsets":{new}', subject, body)(),
        "not spelled canonically",
    )


def listing_cut(every: int) -> Case:
    """Every prefix of an ensemble's list."""

    def run(folder: Path) -> None:
        from benchmarks.reliability.subjects import ensemble_folder
        from dinoneck import CheckpointError
        from dinoneck.checkpoint import EnsembleFolder

        path = ensemble_folder(folder / "e") / LISTING
        raw, last = path.read_bytes(), None
        for length in range(0, len(raw), every):
            path.write_bytes(raw[:length])
            try:
                EnsembleFolder.load(folder / "e")
            except CheckpointError as error:
                last = error
                if error.step == "json":
                    continue
            raise Missed(f"{length} bytes of {len(raw)}: {last}")
        if last is not None:
            raise last

    return Case(f"{LISTING}: every prefix", "json", run)


def damaged_member(name: str, step: str, content: Callable[[bytes], bytes], message: str = "") -> Case:
    """A member of an ensemble's folder with other bytes."""
    return of_folder(name, step, lambda e: (e / MEMBER).write_bytes(content((e / MEMBER).read_bytes())), message)


def damaged_listing(name: str, step: str, content: Callable[[bytes], bytes], message: str = "") -> Case:
    """An ensemble's list with other bytes."""
    return of_folder(name, step, lambda e: (e / LISTING).write_bytes(content((e / LISTING).read_bytes())), message)


def sixteen() -> Iterator[Case]:
    """Headers at the reader's cap and above."""
    json_of = b'{"a":"' + b"x" * (MAX_HEADER_BYTES - 8)
    yield of_bytes("1 MiB + 1, all of it there", "header", announced(MAX_HEADER_BYTES + 1, json_of + b'x"}'))
    yield of_bytes("1 MiB, as large as allowed, of plain weights", "json", announced(MAX_HEADER_BYTES, json_of + b'"}'))
    yield sparse("101 MB, sparse", 101_000_000, 101_000_008)
    yield sparse("as much as safetensors allows", CAP_OF_SAFETENSORS, CAP_OF_SAFETENSORS + 8)
    yield sparse("one byte more than safetensors allows", CAP_OF_SAFETENSORS + 1, CAP_OF_SAFETENSORS + 9)
    yield sparse("4 GiB, sparse", 4 << 30, (4 << 30) + 8)
    yield damaged_listing(f"{LISTING} of 1 MiB + 1", "json", lambda raw: raw + b" " * MAX_HEADER_BYTES, "has more than")


def larger_than_allowed(folder: Path) -> None:
    """A sparse file above the cap for whole files."""
    path = folder / "h.safetensors"
    path.write_bytes(file_of(small))
    os.truncate(path, headers.MAX_FILE_BYTES + 1)
    load_there(path)


def eight() -> Iterator[Case]:
    """What stands behind a whole file."""
    tails: dict[str, Callable[[bytes], bytes]] = {
        "a zero": lambda raw: b"\0",
        "a space": lambda raw: b" ",
        "a line's end": lambda raw: b"\n",
        "four zeros, one number": lambda raw: bytes(4),
        "eight spaces, as a header is padded": lambda raw: b" " * 8,
        "itself": bytes,
        "a megabyte of zeros": lambda raw: bytes(1 << 20),
        "another head": lambda raw: file_of(plain),
    }
    for what, tail in tails.items():
        yield appended(what, tail)
    for what in ("ensemble", "fpn", "LoRA", "with records"):
        yield appended(f"{what}: a zero", lambda raw: b"\0", ALL[what])
    yield of_bytes("schema 1: a zero", "tensors", lambda: first_schema() + b"\0", "something was appended")
    yield damaged_member("a member: a zero", "tensors", lambda raw: raw + b"\0")
    for what, tail_of in (("a line's end", b"\n"), ("a space", b" "), ("a zero", b"\0"), ("another list", b"{}")):
        yield damaged_listing(f"{LISTING}: {what}", "json", lambda raw, tail_of=tail_of: raw + tail_of)
    yield Case("zeros, up to more than 16 GiB", "file", larger_than_allowed, "at most")


def ten() -> Iterator[Case]:
    """One flip in every byte; the part `flips` of the campaign does all bits."""
    yield sweep("the announced length, all bits", "header", flipped_lengths)
    yield sweep("the metadata's key", "json", lambda: flips(lambda raw: range(8, raw.index(b"backbone")), "json"))
    anything = "json|schema|registry|config|tensors|digest"
    yield sweep("the metadata", "json", lambda: flips(lambda raw: range(8, raw.index(b'}"},') + 3), anything))
    for key, last, steps in (
        ("digest", "digest", "digest|json"),
        ("created_by", "digest", "digest|json|schema"),
        ("format", "json", "schema|json"),
        ("head_type", "json", "registry|json"),
        ("config", "config", "config|tensors|digest|json"),
        ("schema", "schema", "schema|json"),
    ):
        yield sweep(f"the entry {key}", last, lambda key=key, steps=steps: ending(flips(span(key), steps), key, steps))
    for name, old, new, step in (
        ("a weight", b'"weight":1.0', b'"weight":9.0', "digest"),
        ("its own digest", b'"sha256:', b'"sha257:', "digest"),
        ("the way to reduce", b'"mean"', b'"meaN"', "digest"),
    ):
        yield damaged_listing(f"{LISTING}: {name}", step, lambda raw, old=old, new=new: raw.replace(old, new, 1))
    yield sweep("the offsets, and the padding", "json", lambda: flips(listing_places, "json"))
    for what, subject in ALL.items():
        every = 1 if what == "patch_mean_mlp" else len(file_of(subject)) // 16
        yield sweep(
            f"{what}: the tensors",
            "digest",
            lambda subject=subject, every=every: flips(
                lambda raw: range(head_start(raw), len(raw), every), "digest", subject
            ),
        )


def ending(attempts: Iterator[Attempt], key: str, steps: str) -> Iterator[Attempt]:
    """Some flips, and at the end one whose step is known."""
    yield from attempts
    known = {
        "digest": (b"sha256:", b"sha257:"),
        "created_by": (b'torch\\":\\"', b'torci\\":\\"'),
        "format": (b'"dinoneck.head\\"', b'\x02dinoneck.head\\"'),
        "head_type": (b'"patch_mean_mlp\\",', b'\x02patch_mean_mlp\\",'),
        "config": (b'relu\\"', b'relt\\"'),
        "schema": (b'schema\\":2', b'schema\\":3'),
    }
    old, new = known[key]
    yield f"{key} at last", file_of(small).replace(old, new, 1), steps


def modes_1_to_6() -> Iterator[Mode]:
    """Lengths."""
    yield Mode(1, "zero length", (
        of_bytes("a head file", "header", b"", "0 bytes"),
        damaged_member("a member of an ensemble", "header", lambda raw: b"", "0 bytes"),
        damaged_listing(f"{LISTING}", "json", lambda raw: b"", "no sound JSON"),
    ))  # fmt: skip
    yield Mode(2, "fewer than 8 bytes", tuple(
        of_bytes(f"{size} bytes of {what}", "header", lambda size=size, of=of: of()[:size], f"{size} bytes")
        for what, of in (("a head", lambda: file_of(small)), ("zeros", lambda: bytes(8)))
        for size in range(1, 8)
    ))  # fmt: skip
    yield Mode(3, "header length 0", (
        of_bytes("8 zeros", "header", bytes(8), "header of 0 bytes"),
        of_bytes("and a header", "header", announced(0), "header of 0 bytes"),
        of_bytes("1: no JSON object fits", "header", announced(1), "header of 1 bytes"),
        of_bytes("2: an empty object", "json", announced(2, b"{}"), "plain weights"),
    ))  # fmt: skip
    yield Mode(4, "header length beyond the file", (*(
        of_bytes(name, "header", lambda more=more: announced(len(file_of(small)) - 8 + more)(), "header of")
        for name, more in (("by 1 byte", 1), ("by 8 bytes", 8), ("twice the file", 1024), ("a megabyte", 1 << 20))
    ), of_bytes("the length alone", "header", announced(100, b""),
                 "header of 100 bytes in a file of 8")))  # fmt: skip
    yield Mode(5, "header length 2^40, 2^63", tuple(
        of_bytes(name, "header", announced(length), f"header of {length} bytes")
        for name, length in (
            ("2^31", 1 << 31), ("2^32", 1 << 32), ("2^40", 1 << 40), ("2^53 + 1", (1 << 53) + 1),
            ("2^62", 1 << 62), ("2^63 - 1", (1 << 63) - 1), ("2^63", 1 << 63), ("2^64 - 1", (1 << 64) - 1),
            ("2^64 - 8: wraps to 0 with the eight bytes before", (1 << 64) - 8),
        )
    ))  # fmt: skip
    yield Mode(6, "header of 1 MiB + 1, 101 MB", tuple(sixteen()))


def modes_7_to_13() -> Iterator[Mode]:
    """Bytes that are missing, added, random or flipped; offsets."""

    def small_file() -> bytes:
        return file_of(small)

    yield Mode(7, "cut off, at every length", (
        sweep("shorter than 8 bytes", "header", lambda: prefixes(small_file, 0, lambda raw: 8)),
        cut("inside the header", "header", small_file),
        cut("inside the tensors", "tensors", small_file),
        cut("schema 1: inside the header", "header", first_schema, 3),
        cut("schema 1: inside the tensors", "tensors", first_schema, 3),
        cut("ensemble: inside the tensors", "tensors", lambda: file_of(ensemble), 5),
        cut("fpn: inside the tensors", "tensors", lambda: file_of(fpn), 64),
        cut("LoRA: inside the tensors", "tensors", lambda: file_of(ALL["LoRA"]), 512),
        damaged_member("a member of an ensemble", "tensors", lambda raw: raw[:-4]),
        listing_cut(7),
    ))  # fmt: skip
    yield Mode(8, "bytes appended", tuple(eight()))
    yield Mode(9, "random bytes", (
        sweep("the whole file", "header", random_files),
        sweep("the header, of the right length", "json", random_headers),
        sweep("the tensors", "digest", random_tensors),
        damaged_listing(f"{LISTING}", "json", lambda raw: Random(0).randbytes(len(raw))),
    ))  # fmt: skip
    yield Mode(10, "one bit flipped, in every byte", tuple(ten()))
    yield Mode(11, "overlapping offsets", (
        moved("the second begins inside the first", 1, "[12,76]"),
        moved("the second is the first", 1, "[0,16]"),
        moved("the first covers all", 0, "[0,160]"),
        moved("the last begins at 0", 3, "[0,64]"),
        moved("in a file with two heads", 1, "[12,76]", ensemble),
    ))  # fmt: skip
    yield Mode(12, "gaps between tensors", (
        moved("the second begins later", 1, "[20,84]"),
        moved("eight bytes that nobody owns", 1, "[24,88]", plain, lambda body: body[:16] + bytes(8) + body[16:]),
        moved("a hole before the first", 0, "[8,24]", plain, lambda body: bytes(8) + body),
        moved("a hole behind the last", 3, "[96,168]", plain, lambda body: body + bytes(8)),
    ))  # fmt: skip
    yield Mode(13, "negative and impossible offsets", (
        moved("negative begin", 0, "[-16,16]"),
        moved("both negative", 0, "[-16,-0]"),
        moved("end before begin", 0, "[16,0]"),
        moved("beyond the file", 3, "[1099511627776,1099511627840]"),
        of_bytes("with a leading zero", "json", respelled("[0,16]", "[00,16]"), "no sound JSON"),
        moved("a fraction", 0, "[0.0,16.0]"),
        moved("as text", 0, '["0","16"]'),
        moved("three of them", 0, "[0,16,16]"),
        moved("none", 0, "[]"),
        moved("null", 0, "null"),
        moved("2^64 - 16", 0, "[18446744073709551600,16]"),
    ))  # fmt: skip


MODES: list[Mode] = sorted([*modes_1_to_6(), *modes_7_to_13(), *JSON_MODES, *STRANGERS], key=lambda mode: mode.number)
