"""The images that a head was trained on, as short hashes in its file. Imports no torch."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from dinoneck.errors import CheckpointError

HASH_BYTES = 8
"""Of the BLAKE2b of an image's file, its first bytes.

Of m images that none of n training images equals, one is taken for a training image with a
probability below m * n / 2**64: for a million images and :data:`MOST_HASHES` below 1e-9.
"""
MOST_HASHES = 16_384
"""How many hashes a file holds at most, in 175 kB of text; a header has 1 MiB.

Of more images it holds the smallest hashes, which are those of a random sample: an image of the
sample is recognised, another one is not.
"""


@dataclass(frozen=True)
class TrainingImages:
    """The images that a head was trained on. Make it with :meth:`of_digests` or :meth:`from_record`.

    Attributes:
        hashes: the first :data:`HASH_BYTES` bytes of the BLAKE2b of each image's file.
    """

    hashes: frozenset[bytes] = frozenset()

    @classmethod
    def of_digests(cls, digests: Iterable[str]) -> Self:
        """Return those of hashes as :func:`dinoneck.images.content.hash_of` returns them."""
        return cls(frozenset(_hash_of_digest(digest) for digest in digests))

    @classmethod
    def from_record(cls, record: str) -> Self:
        """Read the entry of a header.

        Raises:
            CheckpointError: if it is no base64 of ascending hashes.
        """
        try:
            content = base64.b64decode(record, validate=True)
        except (binascii.Error, ValueError) as error:
            raise CheckpointError(
                f"training_images is no base64 ({error}); fetch the file again", step="schema"
            ) from None
        hashes = []
        for start in range(0, len(content), HASH_BYTES):
            hashes.append(content[start : start + HASH_BYTES])
        is_whole = len(content) % HASH_BYTES == 0 and 0 < len(hashes) <= MOST_HASHES
        if not is_whole or any(first >= second for first, second in pairwise(hashes)):
            raise CheckpointError(
                f"training_images holds {len(content)} bytes; expected 1 ... {MOST_HASHES} hashes of "
                f"{HASH_BYTES} bytes, ascending; fetch the file again",
                step="schema",
            )
        return cls(frozenset(hashes))

    def record(self) -> str:
        """Return the entry of a header."""
        kept = sorted(self.hashes)[:MOST_HASHES]
        return base64.b64encode(b"".join(kept)).decode()

    @property
    def may_be_sample(self) -> bool:
        """Whether the head may have been trained on more images than these."""
        return len(self.hashes) >= MOST_HASHES

    def __or__(self, other: TrainingImages) -> TrainingImages:
        """Return the images of both."""
        return TrainingImages(self.hashes | other.hashes)

    def __contains__(self, digest: str) -> bool:
        """Whether an image, given by the hash of its file, is among these."""
        return _hash_of_digest(digest) in self.hashes


NO_IMAGES = TrainingImages()
"""Of a head of whose training images nothing is known."""


def _hash_of_digest(digest: str) -> bytes:
    """The first bytes of a hash of hexadecimal digits."""
    return bytes.fromhex(digest[: 2 * HASH_BYTES])
