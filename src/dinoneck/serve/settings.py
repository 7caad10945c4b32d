"""The limits of the service: one for each resource that a client uses."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from dinoneck.errors import ConfigError

TTA = Literal["none", "flip4", "d6"]  # as in inference.tta, which imports torch


@dataclass(frozen=True)
class Settings:
    """How the service runs, and its limits.

    Attributes:
        max_upload_mb: size of a request's body, in millions of bytes.
        max_images: images in a request.
        max_pixels: pixels of an image (checked in its header), of all images decoded at once, and after resizing.
        max_patches: patches of an image, for heads without a recorded size.
        concurrency: requests computed at once, one thread each.
        queue: requests that may wait; more get 503.
        timeout: seconds from the whole body to the response.
        body_timeout: seconds for the body to arrive; half of it for the headers.
        connections: requests in progress; beyond it only /health is served.
        batch: images in a forward pass, gathered from several requests.
        threads: torch threads per request; 0 = share the processor's threads.
        device: such as cuda; None = where the backbone is.
        tta: views to average (default: as recorded in the heads, else none).

    Raises:
        ConfigError: if a number is not finite or too small.
    """

    max_upload_mb: float = 20.0
    max_images: int = 8
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
    tta: TTA | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("queue", "threads") else 1 if isinstance(field.default, int) else 0.01
            if isinstance(field.default, int | float) and not least <= value < math.inf:
                raise ConfigError(f"{field.name} is {value}; expected {least} or more")
        if self.tta is not None and self.tta not in get_args(TTA):
            raise ConfigError(f"tta is {self.tta!r}; expected {', '.join(get_args(TTA))}")

    @property
    def max_upload_bytes(self) -> int:
        """``max_upload_mb`` in bytes."""
        return int(self.max_upload_mb * 1_000_000)
