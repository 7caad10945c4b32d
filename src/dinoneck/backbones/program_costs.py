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
from torch import nn

from dinoneck.backbones import openvino
from dinoneck.backbones.program_files import SUFFIX, GainRecord, processor, program_folder
from dinoneck.dtypes import dtype_name

# measured with ViT-S of 4 to 12 blocks at 224 px on one core of a Xeon; the first export of a
# process imports much of torch
_COMPILE_SECONDS = 2.0
_COMPILE_SECONDS_PER_BLOCK = 0.4
# of a program of 90 MB: import OpenVINO 0.12 s, probe 0.03 s, hash, read and load 0.25 s
_LOAD_SECONDS = 0.2
_LOAD_SECONDS_PER_BYTE = 4e-9
# with bfloat16 on an EPYC; below this no measured gain is asked for
_LARGEST_GAIN = 4.5
# the MLPs of a block gain more than its attention
_SHARE_OF_MLP_GAIN = 0.5
# whatever the MLP says: a trial then costs at most 5 % of the time that torch would take. On a Xeon
# with AMX the MLP gains nothing in bfloat16, and whole blocks 1.3 x
_SMALLEST_GAIN = 1.05
# a shorter run is repeated, because the first one also allocates memory
_REPEATED_BELOW_SECONDS = 0.5
_MLP_WIDTH = 384
_MLP_TOKENS = 1024
_GAIN_ROUNDS = 5

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


def expected_gain(dtype: torch.dtype) -> float:
    """Return how many times as fast as torch a program is expected to be on this processor, above 1.

    It is measured with the MLP of a small ViT, in a quarter of a second, and kept in the cache
    folder.
    """
    folder = program_folder()
    name = _gain_name(dtype_name(dtype), torch.get_num_threads())
    record = None
    if folder is not None:
        record = folder.record(name, GainRecord)
    if record is None:
        record = GainRecord(gain_of_mlp(dtype))
        if folder is not None:
            folder.write(name, record)
    return max(_SMALLEST_GAIN, 1.0 + _SHARE_OF_MLP_GAIN * (record.gain - 1.0))


def gain_of_mlp(dtype: torch.dtype) -> float:
    """Measure how many times as fast as torch OpenVINO computes the MLP of a block."""
    first = nn.Linear(_MLP_WIDTH, 4 * _MLP_WIDTH, dtype=dtype)
    second = nn.Linear(4 * _MLP_WIDTH, _MLP_WIDTH, dtype=dtype)
    program = openvino.compile_mlp(first, second)
    mlp = nn.Sequential(first, nn.GELU(), second)
    tokens = torch.ones(1, _MLP_TOKENS, _MLP_WIDTH, dtype=dtype)
    torch_seconds = []
    program_seconds = []
    with torch.no_grad():
        for _ in range(_GAIN_ROUNDS):
            torch_seconds.append(timed(lambda: mlp(tokens))[1])
            program_seconds.append(timed(lambda: program(tokens))[1])
    return min(torch_seconds) / min(program_seconds)


@functools.cache
def _gain_name(dtype: str, num_threads: int) -> str:
    """Return the name of the file of a gain: it depends on the processor and the libraries."""
    facts = {"dtype": dtype, "num_threads": num_threads, "computer": computer()}
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
