"""The limits of the service: one for each resource that a client uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dinoneck.errors import ConfigError

_LEAST = {
    "max_upload_mb": 0.01, "max_images": 1, "max_pixels": 1, "concurrency": 1, "queue": 0, "timeout": 0.01, "batch": 1
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What the service runs, how, and its limits.

    Attributes:
        max_upload_mb: size of a request's body, in millions of bytes.
        max_images: images in a request.
        max_pixels: pixels of an image, by its header, and after resizing (default: 50 million; 4096 patches for heads
            without a recorded size).
        concurrency: requests computed at once, one thread each.
        queue: requests that may wait; more get 503.
        timeout: seconds from the head of a request to its response.
        batch: images in a forward pass, gathered from several requests.
        device: such as cuda; None = where the backbone is.
        tta: views to average (default: as recorded in the heads, else none).
        weights: the publisher's file of a published head.

    Raises:
        ConfigError: if a number is not finite or too small.
    """

    max_upload_mb: float = 20.0
    max_images: int = 8
    max_pixels: int | None = None
    concurrency: int = 4
    queue: int = 32
    timeout: float = 30.0
    batch: int = 1
    device: str | None = None
    tta: Literal["none", "flip4", "d6"] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ConfigError(f"{name} is {value}; expected a number of {least} or more")

    @property
    def max_upload_bytes(self) -> int:
        """``max_upload_mb`` in bytes."""
        return int(self.max_upload_mb * 1_000_000)
