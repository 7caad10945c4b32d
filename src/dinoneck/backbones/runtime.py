"""What computes the tokens of a backbone: torch, or programs that OpenVINO compiled of its frozen blocks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from dinoneck.backbones import openvino, weight_hashes
from dinoneck.backbones.adapter import Adapter
from dinoneck.backbones.program_costs import (
    computer,
    default_compile_seconds,
    expected_gain,
    is_worth_compiling,
    load_seconds,
    timed,
    timed_twice,
)
from dinoneck.backbones.program_files import (
    LARGEST_CACHE_BYTES,
    SUFFIX,
    ProgramRecord,
    is_outdated,
    program_folder,
)
from dinoneck.backbones.token_batch import ProgramKey, TokenBatch
from dinoneck.errors import BackboneError, ConfigError
from dinoneck.kinds import RUNTIMES
from dinoneck.text import first_line

logger = logging.getLogger(__name__)

MOST_PROGRAMS = 8
"""How many programs are kept in memory, each of one image size."""
_MOST_SIZES = 1024  # whose figures are kept
_FASTER_BY = 1.05  # two runs of one program differ by less
_TRANSFORMERS_HOOKS = "transformers.utils.output_capturing"
_PREFIX_DIGITS = 16
_NAME_DIGITS = 32


class Tolerance(NamedTuple):
    """How far the tokens of two runtimes may differ.

    Attributes:
        of_layer: the largest difference, relative to the largest magnitude of a layer.
        of_token: the length of the difference of a token, relative to the length of the token. A
            few tokens of DINOv2 are so large that they hide the others in a maximum.
    """

    of_layer: float
    of_token: float


TOLERANCES = {
    torch.float32: Tolerance(of_layer=1e-4, of_token=1e-3),
    # tokens are rounded to 8 bits after each block, and the differences add up: for seeded weights of
    # ViT-S+ 0.015 of a token after 1 block, 0.031 after 5, 0.051 after 12 and 0.05 of a layer. Models
    # have up to 40 blocks. A wrong program gives differences near 1
    torch.bfloat16: Tolerance(of_layer=1e-1, of_token=2e-1),
}


class TokenDifference(NamedTuple):
    """How far tokens lie from a reference, see :class:`Tolerance`: the largest over the layers."""

    of_layer: float
    of_token: float

    def is_within(self, tolerance: Tolerance) -> bool:
        """Whether neither is above the tolerance, nor NaN."""
        return self.of_layer <= tolerance.of_layer and self.of_token <= tolerance.of_token


def check_runtime(runtime: object) -> None:
    """Check the name of a runtime.

    Raises:
        ConfigError: naming the runtimes.
    """
    if runtime not in RUNTIMES:
        expected = " or ".join(map(repr, RUNTIMES))
        raise ConfigError(f"runtime is {runtime!r}; expected {expected}")


def token_difference(reference: Sequence[Tensor], tokens: Sequence[Tensor]) -> TokenDifference:
    """Return how far tokens (B, P + N, C) of each layer lie from those of a reference."""
    of_layer = 0.0
    of_token = 0.0
    for expected, actual in zip(reference, tokens, strict=True):
        expected = expected.double()
        difference = actual.double() - expected
        largest = float(difference.abs().max() / expected.abs().max())
        lengths = difference.norm(dim=-1) / expected.norm(dim=-1)
        longest = float(lengths.max())
        if math.isnan(largest) or math.isnan(longest):
            return TokenDifference(math.nan, math.nan)
        of_layer = max(of_layer, largest)
        of_token = max(of_token, longest)
    return TokenDifference(of_layer, of_token)


@dataclass
class SizeFigures:
    """What ``auto`` knows of images of one size.

    Attributes:
        torch_seconds: the shortest time of an image in torch; infinite before the first batch.
        num_computed: images that torch has computed.
        has_read_file: whether the cache folder was looked at.
        record: of the program in the cache folder; None if there is none.
        stays_with_torch: no program is tried again.
    """

    torch_seconds: float = math.inf
    num_computed: int = 0
    has_read_file: bool = False
    record: ProgramRecord | None = None
    stays_with_torch: bool = False


class CompiledProgram(NamedTuple):
    """A program and what its first batch gave.

    Attributes:
        program: that was compiled.
        tokens: of the batch, as torch computes them.
        record: of the times that were measured.
        difference: of the program's tokens from torch's.
    """

    program: openvino.Program
    tokens: list[Tensor]
    record: ProgramRecord
    difference: TokenDifference


class Programs:
    """The programs of a backbone's blocks, each for images of one size; the last used are kept.

    A copy of a backbone has none: they are loaded or compiled again for it.

    Attributes:
        images_left: (height, width) -> how many images of this size are still to come.
        seconds_taken: by loading, compiling and comparing programs until now.
    """

    def __init__(self) -> None:
        self.images_left: Counter[tuple[int, int]] = Counter()
        self._programs: OrderedDict[ProgramKey, openvino.Program] = OrderedDict()
        self._figures: OrderedDict[ProgramKey, SizeFigures] = OrderedDict()
        self.seconds_taken = 0.0
        self._compile_seconds: float | None = None
        self._compiles = True
        self._logged: set[str] = set()
        self._lock = threading.Lock()
        self._preparation = threading.Lock()

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Programs:
        return Programs()

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        return Programs, ()

    @property
    def are_in_memory(self) -> bool:
        """Whether there is one."""
        with self._lock:
            return bool(self._programs)

    def expect(self, counts: Mapping[tuple[int, int], int]) -> None:
        """Take how many images of each size are still to come, in place of what was stated before.

        Raises:
            ConfigError: if a number is negative.
        """
        for (height, width), count in counts.items():
            if count < 0:
                raise ConfigError(
                    f"counts holds {count} images of {height}x{width} px; expected 0 or more"
                )
        with self._lock:
            self.images_left = Counter(counts)

    def run(self, batch: TokenBatch) -> list[Tensor]:
        """Return the tokens (B, P + N, C) of each layer, in the dtype of the weights.

        The first batch of a program that is compiled is computed by torch too, and compared. One
        thread prepares a program at a time; those of other sizes run meanwhile.

        Args:
            batch: on the CPU, in the dtype of the weights.

        Raises:
            BackboneError: if the weights are on another device or of a dtype that OpenVINO does not
                compute in, the model cannot be compiled, or the program gives other tokens.
            ImportError: naming the extra, if OpenVINO is not installed.
        """
        _check_weights(batch.adapter)
        program = self._get(batch.key)
        if program is None:
            with self._preparation:
                program = self._get(batch.key)  # another thread may have prepared it meanwhile
                if program is None:
                    with self._taking_time():
                        program = self._load_or_compile(batch)
        return _run_program(program, batch)

    def _load_or_compile(self, batch: TokenBatch) -> openvino.Program:
        """Return the program of the cache folder, else one that is compiled and compared with torch.

        Raises:
            BackboneError: if the model cannot be compiled, or the program gives other tokens.
        """
        program = _load(batch, _read_record(batch))
        if program is None:
            compiled = self._compile(batch)
            _check_agreement(compiled.difference, batch.key)
            _keep(batch, compiled.record, compiled.program)
            program = compiled.program
        self._put(batch.key, program)
        return program

    def run_fastest(self, batch: TokenBatch) -> list[Tensor]:
        """Return the tokens as :meth:`run` does, by torch or by a program, whichever takes less time.

        Torch computes until compiling pays for the images of this size that are still to come. It
        computes too what OpenVINO cannot; nothing is raised for that.

        Args:
            batch: on any device, of any dtype.
        """
        num_left = self._count_down(batch.images)
        if not self._may_run_programs(batch):
            return batch.run_torch()
        figures = self._figures_of(batch.key)
        if not figures.stays_with_torch:
            try:
                program_tokens = self._run_if_faster(batch, figures, num_left)
            except Exception as error:  # the exporter, the converter and programs raise any type
                figures.stays_with_torch = True
                self._log_once(logging.WARNING, _message_of_torch(batch.key, first_line(error)))
            else:
                if program_tokens is not None:
                    return program_tokens
        tokens, seconds = timed(batch.run_torch)
        figures.torch_seconds = min(figures.torch_seconds, seconds / len(batch))
        figures.num_computed += len(batch)
        return tokens

    def preparation_seconds(self, batch: TokenBatch) -> float:
        """Return what loading a program for such images takes, or compiling it where no file holds one.

        Returns:
            Seconds, estimated; infinite where torch was measured to be faster.
        """
        record = _read_valid_record(batch)
        if record is None:
            return self._expected_compile_seconds(batch.key)
        if not _is_of_use(record):
            return math.inf
        return load_seconds(record.num_bytes)

    def _may_run_programs(self, batch: TokenBatch) -> bool:
        """Whether OpenVINO is here and can compute the tokens of these images."""
        if batch.images.device.type != "cpu" or type(batch.images) is not Tensor:
            return False
        if not openvino.is_installed():
            return False
        try:
            _check_weights(batch.adapter)
        except BackboneError as error:
            self._log_once(logging.INFO, f"the runtime 'auto' computes in torch: {error}")
            return False
        return True

    def _run_if_faster(
        self, batch: TokenBatch, figures: SizeFigures, num_left: int
    ) -> list[Tensor] | None:
        """Return the tokens of a program that is there or pays; None where torch is to compute them.

        While one thread loads or compiles a program, the others compute in torch.

        Args:
            batch: as for :meth:`run`.
            figures: of images of this size.
            num_left: how many images of this size are stated to come, with these.
        """
        program = self._get(batch.key)
        if program is None and self._preparation.acquire(blocking=False):
            try:
                with self._taking_time():
                    program = self._load_if_faster(batch, figures, num_left)
                    if program is None and self._is_worth_compiling(batch, figures, num_left):
                        return self._compile_if_faster(batch, figures)
            finally:
                self._preparation.release()
        if program is None:
            return None
        return _run_program(program, batch)

    def _load_if_faster(
        self, batch: TokenBatch, figures: SizeFigures, num_left: int
    ) -> openvino.Program | None:
        """Load the program of the cache folder if that pays.

        As many images are expected as are stated, or as were computed until now.
        """
        if not figures.has_read_file:
            figures.record = _read_valid_record(batch)
            figures.has_read_file = True
        record = figures.record
        if record is None:
            return None
        saved_seconds = record.torch_seconds - record.program_seconds
        if not _is_of_use(record):
            figures.stays_with_torch = True
            return None
        num_images = max(num_left, len(batch), figures.num_computed)
        if num_images * saved_seconds <= load_seconds(record.num_bytes):
            return None
        program = _load(batch, record)
        if program is None:
            figures.record = None
        else:
            self._put(batch.key, program)
        return program

    def _is_worth_compiling(self, batch: TokenBatch, figures: SizeFigures, num_left: int) -> bool:
        """Whether a program of images of this size saves more time than compiling it takes."""
        if figures.record is not None or math.isinf(figures.torch_seconds) or not self._compiles:
            return False
        return is_worth_compiling(
            figures.torch_seconds,
            num_images=num_left,
            batch=len(batch),
            compile_seconds=self._expected_compile_seconds(batch.key),
            gain=lambda: expected_gain(batch),
        )

    def _expected_compile_seconds(self, key: ProgramKey) -> float:
        """Return the time of the last compilation of these weights, else an estimate."""
        if self._compile_seconds is None:
            folder = program_folder()
            records = [] if folder is None else folder.records(_prefix(key))
            if records:
                self._compile_seconds = records[0].compile_seconds
        if self._compile_seconds is None:
            return default_compile_seconds(key.layers[-1] + 1)
        return self._compile_seconds

    def _compile_if_faster(self, batch: TokenBatch, figures: SizeFigures) -> list[Tensor]:
        """Compile a program and keep it if it is faster than torch; return torch's tokens.

        Raises:
            BackboneError: if the model cannot be compiled, or the program gives other tokens.
        """
        try:
            compiled = self._compile(batch)
        except Exception:
            self._compiles = False  # nor would it be of another size
            raise
        self.seconds_taken -= len(batch) * compiled.record.torch_seconds  # for the batch itself
        _check_agreement(compiled.difference, batch.key)
        record = compiled.record
        record = msgspec.structs.replace(
            record, torch_seconds=min(record.torch_seconds, figures.torch_seconds)
        )
        if is_faster(record):
            self._put(batch.key, compiled.program)
            _keep(batch, record, compiled.program)
        else:
            figures.stays_with_torch = True
            _keep(batch, record)
        return compiled.tokens

    def _compile(self, batch: TokenBatch) -> CompiledProgram:
        """Compile a program for images of this size, and compute these with it and with torch.

        Raises:
            BackboneError: if that fails, or another thread changed the weights.
        """
        key = batch.key
        program, compile_seconds = timed(
            lambda: openvino.compile_program(
                batch.adapter,
                key.image_size,
                layers=key.layers,
                norm=key.norm,
                num_threads=key.num_threads,
            )
        )
        if batch.present_key() != key:
            raise BackboneError(
                "the weights of the backbone were changed by another thread while a program "
                "of them was compiled; run it again"
            )
        self._compile_seconds = compile_seconds
        expected, torch_seconds = timed_twice(batch.run_torch)
        tokens, program_seconds = timed_twice(lambda: program(batch.images))
        record = ProgramRecord(
            compile_seconds=compile_seconds,
            torch_seconds=torch_seconds / len(batch),
            program_seconds=program_seconds / len(batch),
            probe=weight_hashes.measure(batch.adapter, key.layers, key.norm),
            num_bytes=0,
            measured_at=time.time(),
        )
        difference = token_difference(expected, [tokens[layer] for layer in batch.layers])
        return CompiledProgram(program, expected, record, difference)

    @contextlib.contextmanager
    def _taking_time(self) -> Iterator[None]:
        """Add the time of the ``with`` block to what programs have taken."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_taken += time.perf_counter() - started

    def _count_down(self, images: Tensor) -> int:
        """Return how many images of this size were stated to come, with these; count these as computed."""
        height, width = images.shape[-2:]
        with self._lock:
            num_left = self.images_left[height, width]
            if num_left:
                self.images_left[height, width] = max(0, num_left - images.shape[0])
        return num_left

    def _figures_of(self, key: ProgramKey) -> SizeFigures:
        """Return the figures of a size; of many sizes the last used are kept."""
        with self._lock:
            figures = self._figures.setdefault(key, SizeFigures())
            self._figures.move_to_end(key)
            if len(self._figures) > _MOST_SIZES:
                self._figures.popitem(last=False)
        return figures

    def _get(self, key: ProgramKey) -> openvino.Program | None:
        with self._lock:
            program = self._programs.get(key)
            if program is not None:
                self._programs.move_to_end(key)
        return program

    def _put(self, key: ProgramKey, program: openvino.Program) -> None:
        with self._lock:
            self._programs[key] = program
            self._programs.move_to_end(key)
            if len(self._programs) > MOST_PROGRAMS:
                self._programs.popitem(last=False)

    def _log_once(self, level: int, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            logger.log(level, "%s", message)


def _run_program(program: openvino.Program, batch: TokenBatch) -> list[Tensor]:
    """Return the tokens of each layer, in the dtype of the images."""
    tokens = program(batch.images)
    return [tokens[layer].to(batch.images.dtype) for layer in batch.layers]


def is_faster(record: ProgramRecord) -> bool:
    """Whether a program took less time than torch, by more than chance."""
    return _FASTER_BY * record.program_seconds < record.torch_seconds


def _is_of_use(record: ProgramRecord) -> bool:
    """Whether a file holds a program, and it is faster than torch."""
    return record.num_bytes > 0 and is_faster(record)


def _message_of_torch(key: ProgramKey, reason: str) -> str:
    height, width = key.image_size
    return f"the runtime 'auto' computes images of {height}x{width} px in torch: {reason}"


def _check_agreement(difference: TokenDifference, key: ProgramKey) -> None:
    """Raise a BackboneError if the tokens of a program lie too far from torch's."""
    tolerance = TOLERANCES[getattr(torch, key.dtype)]
    if not difference.is_within(tolerance):
        height, width = key.image_size
        raise BackboneError(
            f"OpenVINO gives other tokens than torch for images of {height}x{width} px: they differ "
            f"by {difference.of_layer:.1e} of the largest value (at most {tolerance.of_layer:.0e} is "
            f"taken in {key.dtype}) and by {difference.of_token:.1e} of the length of "
            f"a token (at most {tolerance.of_token:.0e}); pass runtime='torch'"
        )


def _file_name(batch: TokenBatch) -> str | None:
    """Return the name of the file of a program; None where none is kept.

    The code of a model that was wrapped may be anybody's, which no version names: its programs are
    in no file.
    """
    key = batch.key
    origin = weight_hashes.unchanged_origin(batch.adapter.history.origin)
    if key.weights_sha256 is None or origin["kind"] == "object":
        return None
    model = type(batch.adapter.model)
    facts = {
        "key": key._asdict(),
        "adapter": type(batch.adapter).__qualname__,
        "model": f"{model.__module__}.{model.__qualname__}",
        "computer": computer(),
    }
    text = json.dumps(facts, sort_keys=True)
    return f"{_prefix(key)}{hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]}{SUFFIX}"


def _prefix(key: ProgramKey) -> str:
    """Return how the names of the files of all programs of these weights begin."""
    return f"{str(key.weights_sha256)[:_PREFIX_DIGITS]}-"


def _read_record(batch: TokenBatch) -> ProgramRecord | None:
    """Return what the cache folder holds of a program; None without one."""
    folder = program_folder()
    name = _file_name(batch)
    if folder is None or name is None:
        return None
    return folder.record(name, ProgramRecord)


def _read_valid_record(batch: TokenBatch) -> ProgramRecord | None:
    """Return what the cache folder holds of a program; None where torch was faster, too long ago to count."""
    record = _read_record(batch)
    if record is not None and not _is_of_use(record) and is_outdated(record):
        return None
    return record


def _load(batch: TokenBatch, record: ProgramRecord | None) -> openvino.Program | None:
    """Load the program of the cache folder; None if there is none of this backbone that can be read."""
    key = batch.key
    folder = program_folder()
    name = _file_name(batch)
    if folder is None or name is None or record is None or record.num_bytes == 0:
        return None
    # another model of these weights, such as one with a block replaced
    probe = weight_hashes.measure(batch.adapter, key.layers, key.norm)
    if weight_hashes.differs(record.probe, probe, (key.dtype, key.dtype)) is not None:
        return None
    exported = folder.program(name)
    if exported is None:
        return None
    try:
        return openvino.load_program(
            exported,
            layers=key.layers,
            dtype=getattr(torch, key.dtype),
            num_threads=key.num_threads,
        )
    except RuntimeError as error:
        logger.info("%s cannot be loaded: %s", folder.path / name, first_line(error))
        folder.remove(name)
        return None


def _keep(
    batch: TokenBatch, record: ProgramRecord, program: openvino.Program | None = None
) -> None:
    """Write a program, or what was measured of one that is not used, to the cache folder."""
    folder = program_folder()
    name = _file_name(batch)
    if folder is None or name is None:
        return
    exported = b""
    if program is not None:
        float32_bytes = sum(4 * parameter.numel() for parameter in batch.adapter.parameters())
        if float32_bytes > LARGEST_CACHE_BYTES:  # an export would take as much memory again
            return
        exported = program.export()
    record = msgspec.structs.replace(record, num_bytes=len(exported))
    folder.write(name, record, exported)


def _check_weights(adapter: Adapter) -> None:
    """Raise a BackboneError for weights that OpenVINO does not compute with, or for hooks that it would leave out."""
    weight = adapter.weight
    openvino.check_usable(weight.dtype)
    if weight.device.type != "cpu":
        raise BackboneError(
            f"runtime is 'openvino', which computes on the CPU, and the weights are on "
            f"{weight.device}; move them, or pass runtime='torch'"
        )
    for name, module in adapter.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # those that transformers adds to its models do nothing unless it collects outputs
        if any(getattr(hook, "__module__", "") != _TRANSFORMERS_HOOKS for hook in hooks):
            raise BackboneError(
                f"runtime is 'openvino', and {name or 'the adapter'} has forward hooks, which a "
                "program would not call; remove them, or pass runtime='torch'"
            )
