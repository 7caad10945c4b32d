"""What the service is told: the head, the address, and a bound on everything a client decides."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """The service's settings; the command line has an option of the same name for each.

    Attributes:
        head: a head file, a folder of files, or a hub repository.
        host: address to listen on; the default is reached from this machine only.
        port: 0 = any free one, which is printed.
        max_upload_mb: bytes of a request's body, in millions.
        max_photos: photos in a request.
        max_pixels: of one photo, read from its header before anything is decoded; of all photos that are decoded at
            once; and of what a photo is resized to on its way.
        max_patches: of one photo, where the head has no size of its own: attention costs their square.
        concurrency: requests that are worked on at once, a thread each.
        queue: requests that may wait for those; more are refused with 503.
        timeout: seconds from the whole body to the answer.
        body_timeout: seconds for the body to arrive; half of it for the head of a request.
        connections: open connections.
        batch: photos in a pass; above 1 the threads' photos are gathered by a MicroBatcher.
        threads: torch's threads per request worked on; 0 = what the processor has, shared out.
        device: where to run; None = where the backbone is.
        tta: views that are averaged.
    """

    head: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_upload_mb: float = 20.0
    max_photos: int = 8
    max_pixels: int = 50_000_000
    max_patches: int = 4096
    concurrency: int = 4
    queue: int = 32
    timeout: float = 30.0
    body_timeout: float = 15.0
    connections: int = 256
    batch: int = 1
    threads: int = 0
    device: str | None = None
    tta: str = "none"

    @property
    def max_upload_bytes(self) -> int:
        """``max_upload_mb`` in bytes."""
        return int(self.max_upload_mb * 1_000_000)


_HELP = {
    "host": "address to listen on; the default is reached from this machine only",
    "port": "0 = any free one, which is printed",
    "max_upload_mb": "size of a request's body, in millions of bytes",
    "max_photos": "photos in a request",
    "max_pixels": "pixels of a photo, and of all that are decoded at once",
    "max_patches": "patches of a photo, where the head has no size of its own",
    "concurrency": "requests worked on at once",
    "queue": "requests that may wait; more are refused with 503",
    "timeout": "seconds from the whole body to the answer",
    "body_timeout": "seconds for the body to arrive",
    "connections": "open connections",
    "batch": "photos in a pass; above 1 those of several requests are gathered",
    "threads": "torch's threads per request worked on; 0 = the processor's, shared out",
    "device": "where to run, such as cuda; default: where the backbone is",
    "tta": "views that are averaged: none, flip4 or d6",
}


def parsed(arguments: Sequence[str] | None = None) -> Settings:
    """Read the command line; a wrong one ends the process with status 2 and a message."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.service",
        description="Serve a head over HTTP. No user is asked who they are: put it behind a proxy that does.",
        epilog="example: python -m examples.service head.safetensors --port 8000",
    )
    parser.add_argument("head", help="head file, folder of head files, or hub repository user/name")
    for field in fields(Settings)[1:]:
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_type(field.name, field.default),
            default=field.default,
            help=f"{_HELP[field.name]} (default: {field.default})",
        )
    return Settings(**vars(parser.parse_args(arguments)))


def _type(name: str, default: object) -> Callable[[str], int | float | str]:
    if not isinstance(default, int | float):
        return str
    kind = type(default)
    least = 0 if name in ("port", "queue", "threads") else 1 if kind is int else 0.01

    def number(text: str) -> int | float:
        value = kind(text)
        if not math.isfinite(value) or value < least:
            raise argparse.ArgumentTypeError(f"{name} is {text}; expected {least} or more")
        return value

    return number
