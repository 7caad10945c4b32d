"""The limits of the service: one for each resource that a client uses."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from dinoneck.kinds import AnyRuntime, Precision
from dinoneck.training.config import TILE
from dinoneck.training.recipe import Config, Count

# the smallest is 10 kB, or 10 ms
Limit = Annotated[float, Meta(ge=0.01)]


class Settings(Config, frozen=True, kw_only=True):
    """What the service runs, how, and its limits.

    Attributes:
        max_upload_mb: size of a request's body, in millions of bytes.
        max_images: images in a request.
        max_pixels: pixels of an image, by its header, and after resizing (default: 50 million; 4096
            patches for heads without a recorded size, which are not cut into tiles).
        concurrency: requests computed at once, one thread each.
        queue: requests that may wait; more get 503.
        timeout: seconds from the head of a request to its response.
        body_timeout: seconds that a body may take to arrive while other requests wait for a slot.
        batch: images in a forward pass, gathered from several requests.
        device: such as cuda; None = where the backbone is.
        tta: views to average (default: as recorded in the heads, else none).
        weights: the local file of a published head or detector, or its folder as the Hub has it.
        tile: cut images into tiles of this many pixels, resized to the size of the heads or the
            detector; none: leave them whole (default: the tiles of training, for a detector or a
            head of objects, if it has any).
        overlap: smallest number of pixels that neighbouring tiles share (default: 0, for objects a
            fifth of the tile, or the longest box of the training up to half a tile).
        runtime: what computes the tokens: torch; openvino (extra [fast], on a CPU), compiled for
            each size; or auto, the faster of both for the sizes that the heads or tiles fix, tried
            at the start, and torch for others; None = torch, in commands DINONECK_RUNTIME, else
            auto. For an exported file: what runs it, onnxruntime (without this option) or openvino.
        precision: dtype of the backbone's weights and tokens, for heads, not for detectors; None =
            as in training.

    Raises:
        ConfigError: if a value is of another type, too small or not finite.
    """

    max_upload_mb: Limit = 20.0
    max_images: Count = 8
    max_pixels: Annotated[int, Meta(ge=1)] | None = None
    concurrency: Count = 4
    queue: Annotated[int, Meta(ge=0)] = 32
    timeout: Limit = 30.0
    body_timeout: Limit = 5.0
    batch: Count = 1
    device: str | None = None
    tta: Literal["none", "flip4", "d6"] | None = None
    weights: str | None = None
    tile: Annotated[tuple[int, int] | Literal["auto"] | None, TILE] = "auto"
    overlap: Annotated[int, Meta(ge=0)] | None = None
    runtime: AnyRuntime | None = None
    precision: Precision | None = None

    @property
    def max_upload_bytes(self) -> int:
        """``max_upload_mb`` in bytes."""
        return int(self.max_upload_mb * 1_000_000)
