"""Modes 21 to 27: another kind of file under a head's name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.attempts import harmless, load, of_bytes, of_folder
from benchmarks.reliability.forge import forged
from benchmarks.reliability.modes import Case, Missed, Mode
from benchmarks.reliability.subjects import file_of, plain, small, told
from dinoneck import HeadCheckpoint
from dinoneck.checkpoint import read_legacy
from dinoneck.checkpoint.header import LISTING

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 80496\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Not Found</title></head><body>404</body></html>\n"
MEMBER = "heads/a-fold0.safetensors"
ROOM = 2 << 20
"""What refusing a file may take of memory, whatever it would unpack to."""


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def hostile(name: str, step: str, content: Callable[[Evil], bytes], message: str = "", *, legacy: bool = False) -> Case:
    """A file that would make a folder if it were unpickled; also for the importer of older heads."""

    def run(folder: Path) -> None:
        mark = folder / "run"
        raw = content(Evil(mark))
        try:
            if legacy:
                (folder / "h.pt").write_bytes(raw)
                read_legacy(folder / "h.pt")
            else:
                load(folder / "h.safetensors", raw)
        finally:
            if mark.exists():
                raise Missed(f"{name}: its code was run")

    return Case(name, step, run, message)


def torch_saved(value: object, **options: Any) -> bytes:
    """The bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(content: bytes, compression: int = zipfile.ZIP_DEFLATED, name: str = "h.safetensors") -> bytes:
    """A zip archive with one file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    """A tar archive with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("h.safetensors")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def gzip_bomb(megabytes: int = 1024) -> bytes:
    """A gzip file of one megabyte on disk that would unpack to so many."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (megabytes - 1)


def frugal(name: str, content: Callable[[], bytes], message: str) -> Case:
    """Refusing it takes little memory, however much it would unpack to."""

    def run(folder: Path) -> None:
        path = folder / "h.safetensors"
        path.write_bytes(content())
        tracemalloc.start()
        try:
            HeadCheckpoint.load(path)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if peak > ROOM:
                raise Missed(f"{name}: {peak} bytes of memory were taken to refuse it")

    return Case(name, "header", run, message)


def placed(name: str, step: str, content: bytes, message: str = "", *, at: str = MEMBER) -> Case:
    """In place of a file of an ensemble's folder."""
    return of_folder(name, step, lambda folder: (folder / at).write_bytes(content), message)


def pages() -> Iterator[Mode]:
    """What a download leaves when it went wrong."""
    yield Mode(21, "a Git LFS pointer in place of the file", (
        of_bytes("as Git writes it", "header", LFS, "git lfs pull"),
        of_bytes("with Windows line ends", "header", LFS.replace(b"\n", b"\r\n"), "git lfs pull"),
        of_bytes("with a byte-order mark", "header", b"\xef\xbb\xbf" + LFS, "no head file"),
        placed("a member of an ensemble", "header", LFS, "git lfs pull"),
        placed(f"{LISTING}", "json", LFS, "git lfs pull", at=LISTING),
    ))  # fmt: skip
    page = "a web page saved in place of the file"
    yield Mode(22, "an error page saved as the file", (
        of_bytes("HTML", "header", HTML, page),
        of_bytes("no doctype", "header", b"<html><body>sign in</body></html>", page),
        of_bytes("after empty lines", "header", b"\n\n  " + HTML, page),
        of_bytes("with a byte-order mark", "header", b"\xef\xbb\xbf" + HTML, page),
        of_bytes("XML of a bucket", "header", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', page),
        of_bytes("JSON of an API", "header", b'{"error":"Repository not found"}', "no head file"),
        of_bytes("plain text", "header", b"Entry not found", "no head file"),
        of_bytes("plain text, shorter than 8 bytes", "header", b"Error", "5 bytes"),
        placed("a member of an ensemble", "header", HTML, page),
        placed(f"{LISTING}", "json", HTML, page, at=LISTING),
    ))  # fmt: skip


def pickles() -> Iterator[Mode]:
    """Files that run code where somebody unpickles them."""
    runs = "which may run code"
    yield Mode(23, "a raw pickle", (
        *(hostile(f"protocol {protocol}", "header", lambda evil, protocol=protocol: pickle.dumps(evil, protocol),
                  runs if protocol >= 2 else "no head file") for protocol in range(6)),
        of_bytes("a harmless one", "header", pickle.dumps({"a": 1}), "a pickle"),
        hostile("torch.save's old form", "header",
                lambda evil: torch_saved(evil, _use_new_zipfile_serialization=False), "a pickle"),
        placed("a member of an ensemble", "header", pickle.dumps({"a": 1}), "a pickle"),
        placed(f"{LISTING}", "json", pickle.dumps({"a": 1}), "a pickle", at=LISTING),
        hostile("through the importer of older heads", "file", lambda evil: pickle.dumps(evil, 2), legacy=True),
        hostile("torch.save's old form through it", "file",
                lambda evil: torch_saved(evil, _use_new_zipfile_serialization=False), legacy=True),
    ))  # fmt: skip
    yield Mode(24, "a zip of torch.save", (
        of_bytes("a state dict", "header", lambda: torch_saved(plain().state_dict), "a zip or torch.save file"),
        hostile("with code", "header", torch_saved, "a zip or torch.save file"),
        of_bytes("a TorchScript archive", "header", scripted, "a zip or torch.save file"),
        placed("a member of an ensemble", "header", torch_saved({"a": torch.zeros(1)}), "a zip or torch.save file"),
        hostile("with code, through the importer of older heads", "file", torch_saved, legacy=True),
    ))  # fmt: skip


def scripted() -> bytes:
    """A TorchScript archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


def archives() -> Iterator[Mode]:
    """Packed files; none is ever unpacked."""

    def bomb() -> bytes:
        return zipped(bytes(16 << 20))

    yield Mode(25, "a zip bomb", (
        frugal("a gigabyte in one of a megabyte", lambda: gzip_bomb(), "gzip"),
        frugal("16 MiB in 16 KiB of zip", bomb, "a zip"),
        frugal("a bomb in a bomb", lambda: zipped(zipped(bytes(16 << 20))), "a zip"),
        of_bytes("behind a whole head", "tensors", lambda: file_of(small) + bomb(), "something was appended"),
        legacy_bomb(),
    ))  # fmt: skip
    tails: dict[str, Callable[[], bytes]] = {
        "a zip": lambda: zipped(b"x"), "a zip's end record": lambda: b"PK\x05\x06" + bytes(18),
        "a pickle": lambda: pickle.dumps({"a": 1}), "a web page": lambda: HTML,
        "a PDF": lambda: b"%PDF-1.7\n%%EOF", "a script": lambda: b"\n#!/bin/sh\nid\n",
    }  # fmt: skip
    fronts = {"a PDF": b"%PDF-1.7\n", "a PNG": b"\x89PNG\r\n\x1a\n", "a script": b"#!/bin/sh\n", "8 zeros": bytes(8)}
    yield Mode(26, "two kinds of file in one", (
        *(of_bytes(f"a head, then {name}", "tensors", lambda tail=tail: file_of(small) + tail(), "appended")
          for name, tail in tails.items()),
        *(of_bytes(f"{name}, then a head", "header", lambda front=front: front + file_of(small), "no head file")
          for name, front in fronts.items()),
        of_bytes("a head stored in a zip", "header", lambda: zipped(file_of(small), zipfile.ZIP_STORED), "a zip"),
        harmless("a web page under extra", told, lambda: forged(
            told(), lambda meta, state: meta["extra"].update(note=HTML.decode()))),
    ))  # fmt: skip
    packed: dict[str, tuple[Callable[[bytes], bytes], str]] = {
        "gzip": (lambda raw: gzip.compress(raw, mtime=0), "a gzip file: unpack it first"),
        "bzip2": (bz2.compress, "no head file"), "xz": (lzma.compress, "no head file"),
        "zlib": (zlib.compress, "no head file"), "tar": (tarred, "no head file"),
        "zip": (zipped, "a zip or torch.save file"),
    }  # fmt: skip
    yield Mode(27, "a packed head file", (
        *(of_bytes(name, "header", lambda pack=pack: pack(file_of(plain)), message)
          for name, (pack, message) in packed.items()),
        of_folder("a member of an ensemble, gzip", "header", lambda folder: (folder / MEMBER).write_bytes(
            gzip.compress((folder / MEMBER).read_bytes(), mtime=0)), "unpack it first"),
        of_folder(f"{LISTING}, gzip", "json", lambda folder: (folder / LISTING).write_bytes(
            gzip.compress((folder / LISTING).read_bytes(), mtime=0)), "unpack it first"),
    ))  # fmt: skip


def legacy_bomb() -> Case:
    """A compressed archive for the importer of older heads."""

    def run(folder: Path) -> None:
        (folder / "h.pt").write_bytes(zipped(bytes(16 << 20), name="archive/data/0"))
        read_legacy(folder / "h.pt")

    return Case("through the importer of older heads", "file", run)


MODES: list[Mode] = [*pages(), *pickles(), *archives()]
