"""The short hashes of training images in a head file: their form, their limit, and what is refused."""

from __future__ import annotations

import base64
import hashlib

import pytest

from dinoneck import CheckpointError
from dinoneck.checkpoint.training_images import HASH_BYTES, MOST_HASHES, TrainingImages


def digests(count: int) -> list[str]:
    return [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(count)]


def record_of(hashes: list[bytes]) -> str:
    return base64.b64encode(b"".join(hashes)).decode()


def test_a_record_holds_the_first_bytes_of_each_hash_in_order() -> None:
    first, second = sorted(digests(2))
    content = base64.b64decode(TrainingImages.of_digests([second, first, second]).record())
    assert content.hex() == first[:16] + second[:16]


def test_a_record_is_read_back() -> None:
    images = TrainingImages.of_digests(digests(100))
    assert TrainingImages.from_record(images.record()) == images
    assert not images.may_be_sample


def test_an_image_is_known_by_its_hash_alone() -> None:
    *trained, other = digests(1000)
    images = TrainingImages.of_digests(trained)
    assert all(digest in images for digest in trained)
    assert other not in images


def test_of_many_images_the_smallest_hashes_are_kept() -> None:
    """A million hashes would take 11 MB; a header has 1 MiB."""
    many = digests(MOST_HASHES + 1000)
    record = TrainingImages.of_digests(many).record()
    kept = TrainingImages.from_record(record)
    assert len(record) < 200_000
    assert kept.may_be_sample
    known = [digest for digest in many if digest in kept]
    assert sorted(known) == sorted(many)[:MOST_HASHES]


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("", id="no hash"),
        pytest.param("%%", id="no base64"),
        pytest.param(record_of([b"1234567"]), id="a byte is missing"),
        pytest.param(record_of([b"2" * HASH_BYTES, b"1" * HASH_BYTES]), id="not ascending"),
        pytest.param(record_of([b"1" * HASH_BYTES] * 2), id="twice"),
    ],
)
def test_another_record_is_refused(record: str) -> None:
    with pytest.raises(CheckpointError, match=r"training_images .*fetch the file again") as error:
        TrainingImages.from_record(record)
    assert error.value.step == "schema"
