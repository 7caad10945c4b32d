"""What computes the tokens of a backbone: torch, or programs that OpenVINO compiled of its frozen blocks."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dinoneck.backbones import openvino, weight_hashes
from dinoneck.backbones.adapter import Adapter
from dinoneck.dtypes import dtype_name
from dinoneck.errors import BackboneError, ConfigError

RuntimeName = Literal["torch", "openvino", "auto"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

MOST_PROGRAMS = 8
"""How many programs are kept in memory, each of one image size."""


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
    # rounding of 8 bits in each of the blocks
    torch.bfloat16: Tolerance(of_layer=5e-2, of_token=1e-1),
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


class Programs:
    """The programs of a backbone's blocks, each for images of one size; the last used are kept.

    A copy of a backbone has none: they are compiled again for it.

    Attributes:
        images_left: (height, width) -> how many images of this size are still to come.
    """

    def __init__(self) -> None:
        self.images_left: Counter[tuple[int, int]] = Counter()
        self._programs: OrderedDict[tuple[Any, ...], openvino.Program] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Programs:
        return Programs()

    def __reduce__(self) -> tuple[type[Programs], tuple[()]]:
        return Programs, ()

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
        self.images_left = Counter(counts)

    def run(
        self, adapter: Adapter, images: Tensor, layers: Sequence[int], norm: bool
    ) -> list[Tensor]:
        """Return the tokens (B, P + N, C) of these blocks, in this order, in the dtype of the weights.

        The first batch of a size is computed by torch too, and compared.

        Args:
            adapter: frozen, on the CPU.
            images: (B, C, H, W), normalised, in the dtype of the weights; B is 1 or more.
            layers: block indices.
            norm: apply the final norm to each.

        Raises:
            BackboneError: if the weights are on another device or of a dtype that OpenVINO does not
                compute in, the model cannot be compiled, or the program gives other tokens.
            ImportError: naming the extra, if OpenVINO is not installed.
        """
        _check_weights(adapter)
        with self._lock:
            key = _key(adapter, images, layers, norm)
            program = self._programs.get(key)
            if program is None:
                program = _compiled(adapter, images, layers, norm)
                if _key(adapter, images, layers, norm) != key:
                    raise BackboneError(
                        "the weights of the backbone were changed by another thread while a program "
                        "of them was compiled; run it again"
                    )
                self._programs[key] = program
                if len(self._programs) > MOST_PROGRAMS:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
        tokens = program(images)
        return [tokens[layer].to(images.dtype) for layer in layers]


def _key(adapter: Adapter, images: Tensor, layers: Sequence[int], norm: bool) -> tuple[Any, ...]:
    """What a program depends on: with any other value another one is compiled."""
    hashes = weight_hashes.current_hashes(adapter)
    lora_sha256 = None if hashes.lora is None else hashes.lora["sha256"]
    return (
        hashes.weights_sha256,
        lora_sha256,
        # of rotary frequencies, which no record of weights holds
        *sorted(weight_hashes.rotary_hashes(adapter).items()),
        adapter.pos_embed,
        tuple(images.shape[-2:]),
        tuple(sorted(set(layers))),
        norm,
        images.dtype,
        torch.get_num_threads(),
    )


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
        if module._forward_hooks or module._forward_pre_hooks:
            raise BackboneError(
                f"runtime is 'openvino', and {name or 'the adapter'} has forward hooks, which a "
                "program would not call; remove them, or pass runtime='torch'"
            )


def _compiled(
    adapter: Adapter, images: Tensor, layers: Sequence[int], norm: bool
) -> openvino.Program:
    """Compile a program for images of this size, and compare its tokens of these with torch's."""
    height, width = images.shape[-2:]
    program = openvino.compile_program(
        adapter,
        (height, width),
        layers=layers,
        norm=norm,
        num_threads=torch.get_num_threads(),
    )
    expected = adapter(images, layers, norm)
    tokens = program(images)
    difference = token_difference(expected, [tokens[layer] for layer in layers])
    tolerance = TOLERANCES[images.dtype]
    if not difference.is_within(tolerance):
        raise BackboneError(
            f"OpenVINO gives other tokens than torch for images of {height}x{width} px: they differ "
            f"by {difference.of_layer:.1e} of the largest value (at most {tolerance.of_layer:.0e} is "
            f"taken in {dtype_name(images.dtype)}) and by {difference.of_token:.1e} of the length of "
            f"a token (at most {tolerance.of_token:.0e}); pass runtime='torch'"
        )
    return program
