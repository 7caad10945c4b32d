"""What programs cost and gain: the figures by which the runtime ``auto`` decides."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from importlib import metadata
from typing import TypeVar

import torch
from torch import Tensor

from dinoneck.backbones import openvino
from dinoneck.backbones.adapter import Adapter
from dinoneck.backbones.program_files import (
    SUFFIX,
    GainRecord,
    is_outdated,
    processor,
    program_folder,
)
from dinoneck.backbones.token_batch import TokenBatch
from dinoneck.grid import TokenGrid

# measured with ViT-S of 4 to 12 blocks at 224 px on one core of a Xeon; the first export of a
# process imports much of torch
_COMPILE_SECONDS = 2.0
_COMPILE_SECONDS_PER_BLOCK = 0.4
# of a program of 90 MB: import OpenVINO 0.12 s, probe 0.03 s, hash, read and load 0.25 s
_LOAD_SECONDS = 0.2
_LOAD_SECONDS_PER_BYTE = 4e-9
# with bfloat16 on an EPYC; below this no measured gain is asked for
_LARGEST_GAIN = 4.5
# whatever the block says: a trial then costs at most 5 % of the time that torch would take
_SMALLEST_GAIN = 1.05
# a shorter run is repeated, because the first one also allocates memory
_REPEATED_BELOW_SECONDS = 0.5
_GAIN_ROUNDS = 6
# about so many tokens, in whole images, are computed to measure a gain: of fewer the calls alone
# would take much of the time
_GAIN_TOKENS = 400

Result = TypeVar("Result")


def default_compile_seconds(num_blocks: int) -> float:
    """Return an estimate of the time to compile so many blocks, where none was measured."""
    return _COMPILE_SECONDS + _COMPILE_SECONDS_PER_BLOCK * num_blocks


def load_seconds(num_bytes: int) -> float:
    """Return an estimate of the time to load a program of so many bytes from a file."""
    return _LOAD_SECONDS + _LOAD_SECONDS_PER_BYTE * num_bytes


def is_worth_compiling(
    torch_seconds: float,
    *,
    num_images: int,
    batch: int,
    compile_seconds: float,
    gain: Callable[[], float],
) -> bool:
    """Whether compiling takes less time than it saves.

    The next batch is computed by torch too, to be compared.

    Args:
        torch_seconds: of an image in torch.
        num_images: still to come, with the next batch.
        batch: images of the next batch.
        compile_seconds: what compiling takes.
        gain: returns how many times as fast as torch the program is; called only if it matters.
    """

    def saved_seconds(gain_of_program: float) -> float:
        saved_images = num_images * (1.0 - 1.0 / gain_of_program) - batch
        return torch_seconds * saved_images

    if saved_seconds(_LARGEST_GAIN) <= compile_seconds:
        return False
    return saved_seconds(gain()) > compile_seconds


def timed(compute: Callable[[], Result]) -> tuple[Result, float]:
    """Return a result and the seconds that it took."""
    start = time.perf_counter()
    result = compute()
    return result, time.perf_counter() - start


def timed_twice(compute: Callable[[], Result]) -> tuple[Result, float]:
    """Return a result and the seconds that it took, the shorter of two times if that is quick."""
    result, seconds = timed(compute)
    if seconds < _REPEATED_BELOW_SECONDS:
        _, repeated_seconds = timed(compute)
        seconds = min(seconds, repeated_seconds)
    return result, seconds


def expected_gain(batch: TokenBatch) -> float:
    """Return how many times as fast as torch a program is expected to be on this processor, above 1.

    It is measured with one block, in a fraction of a second, and kept in the cache folder for a
    week. On a Xeon with AMX, programs of ViT-S at 224 and 512 px were 1.2 to 1.5 times as fast as
    torch, and what one block gave lay 0.3 below to 0.1 above that.
    """
    folder = program_folder()
    name = _gain_name(batch)
    record = None
    if folder is not None:
        record = folder.record(name, GainRecord)
    if record is None or is_outdated(record):
        record = GainRecord(gain=gain_of_block(batch), measured_at=time.time())
        if folder is not None:
            folder.write(name, record)
    return max(_SMALLEST_GAIN, record.gain)


def gain_of_block(batch: TokenBatch) -> float:
    """Measure how many times as fast as torch OpenVINO computes a block of these dimensions.

    It compares CPU time: calls that take milliseconds are interrupted on a busy computer.
    """
    adapter = batch.adapter
    block = adapter.blocks[0]
    torch_seconds = []
    program_seconds = []
    with torch.no_grad():
        tokens, extra = adapter.embed(_images_to_measure(batch))
        inputs = adapter.block_input(tokens, extra)
        program = openvino.compile_block(inputs, hidden_width(adapter))
        program()
        for _ in range(_GAIN_ROUNDS):
            torch_seconds.append(_cpu_seconds(lambda: adapter.step(block, 0, tokens, extra)))
            program_seconds.append(_cpu_seconds(program))
    return min(torch_seconds) / min(program_seconds)


def _images_to_measure(batch: TokenBatch) -> Tensor:
    """The first image of a batch, as often as it takes for enough tokens."""
    rows, cols = TokenGrid(batch.adapter.patch_size).size(batch.key.image_size)
    num_images = max(1, _GAIN_TOKENS // (rows * cols))
    return batch.images[:1].repeat(num_images, 1, 1, 1)


@torch.no_grad()
def _shape_to_measure(batch: TokenBatch) -> tuple[int, ...]:
    """The shape (B, N, C) of what the measured block computes with."""
    tokens, extra = batch.adapter.embed(_images_to_measure(batch))
    return tuple(batch.adapter.block_input(tokens, extra).shape)


def hidden_width(adapter: Adapter) -> int:
    """Return the width of a plain MLP with which a block has as many weights as those of a backbone.

    Attention has 4 C^2 weights, the MLP 2 C times its width. A gated MLP of three layers counts as
    a wider one of two.
    """
    width = adapter.embed_dim
    num_weights = sum(parameter.numel() for parameter in adapter.blocks[0].parameters())
    return max(1, (num_weights - 4 * width**2) // (2 * width))


def _cpu_seconds(compute: Callable[[], object]) -> float:
    """Return the CPU time of all threads of this process while something is computed."""
    start = time.process_time()
    compute()
    return time.process_time() - start


def _gain_name(batch: TokenBatch) -> str:
    """Return the name of the file of a gain: it depends on the block, the processor and the libraries."""
    adapter = batch.adapter
    facts = {
        "adapter": type(adapter).__qualname__,
        "width": adapter.embed_dim,
        "hidden_width": hidden_width(adapter),
        "image_size": batch.key.image_size,
        "patch_size": adapter.patch_size,
        "tokens": _shape_to_measure(batch),
        "dtype": batch.key.dtype,
        "num_threads": batch.key.num_threads,
        "computer": computer(),
    }
    text = json.dumps(facts, sort_keys=True)
    return f"gain-{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"


@functools.cache
def computer() -> dict[str, str]:
    """Return what a program depends on beside the backbone: processor and versions of libraries."""
    facts = dict(processor())
    for package in ("dinoneck", "openvino", "torch", "timm", "transformers"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = ""
    return facts
