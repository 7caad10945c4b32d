"""OpenVINO: programs of frozen backbones for a CPU."""

from __future__ import annotations

import copy
import functools
import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.backbones import lora
from dinoneck.backbones.adapter import Adapter
from dinoneck.cpu_libraries import openvino
from dinoneck.dtypes import dtype_name
from dinoneck.errors import BackboneError
from dinoneck.extras import check_installed
from dinoneck.text import first_line

# the dtype of the weights -> OpenVINO's name of the precision that it computes in
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_TRACED_BATCH = 2  # torch.export takes a batch of 1 for a constant
_LARGEST_BATCH = 65_536
_HEAD_WIDTH = 64  # of all published models but the largest
# how far the first tokens of an image may lie from those that the model computes, relative to them
_FIRST_TOKENS_TOLERANCE = 1e-5


class Program:
    """The blocks of a backbone, compiled for images of one size and a free batch.

    It may be called by several threads: one of them computes at a time, with all threads of the
    program.

    Args:
        compiled: the model of OpenVINO.
        layers: the block of each of its outputs.
    """

    def __init__(self, compiled: Any, layers: Sequence[int]) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._layers = tuple(layers)
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> dict[int, Tensor]:
        """Return block -> its tokens (B, P + N, C) in float32, for images (B, C, H, W) on the CPU."""
        array = images.detach().float().contiguous().numpy()
        with self._lock:
            outputs = self._request.infer([array], share_inputs=True)
            tokens = {}
            for position, layer in enumerate(self._layers):
                tokens[layer] = torch.from_numpy(np.array(outputs[position]))
        return tokens

    def export(self) -> bytes:
        """Return the program for :func:`load_program`, which this version of OpenVINO alone can read."""
        stream: io.BytesIO = self._compiled.export_model()
        return stream.getvalue()


def is_installed() -> bool:
    """Whether OpenVINO can be imported; it is not imported."""
    try:
        check_installed("openvino", "fast")
    except ImportError:
        return False
    return True


def check_usable(dtype: torch.dtype) -> None:
    """Check that OpenVINO is installed and computes in the dtype of a backbone's weights.

    Raises:
        ImportError: naming the extra.
        BackboneError: naming the dtype and those that it takes.
    """
    check_installed("openvino", "fast")
    if dtype not in _PRECISIONS:
        expected = " or ".join(dtype_name(precision) for precision in _PRECISIONS)
        raise BackboneError(
            f"runtime is 'openvino' and the weights are {dtype_name(dtype)}; expected {expected}: "
            "pass dtype=, or runtime='torch'"
        )


def compile_program(
    adapter: Adapter,
    image_size: tuple[int, int],
    *,
    layers: Sequence[int],
    norm: bool,
    num_threads: int,
) -> Program:
    """Compile the blocks of a frozen backbone for images of one size.

    It computes in the precision of the weights. LoRA weights that are switched on are merged into
    the program; the adapter is not changed.

    Args:
        adapter: in float32 or bfloat16, on the CPU.
        image_size: (height, width) in pixels.
        layers: the blocks whose tokens are returned.
        norm: apply the final norm to each.
        num_threads: how many threads it uses.

    Raises:
        BackboneError: if the model cannot be exported or converted.
    """
    library = openvino()
    layers = sorted(set(layers))
    height, width = image_size
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    try:
        # inference tensors cannot be exported
        with torch.inference_mode(False), torch.no_grad():
            model = _Blocks(_merged_copy(adapter), image_size, layers=layers, norm=norm)
            example = torch.zeros(_TRACED_BATCH, adapter.in_chans, height, width)
            exported = torch.export.export(
                model, (example,), dynamic_shapes=({0: batch},), strict=False
            )
        with _quiet():
            converted = library.convert_model(exported)
            properties = _properties(adapter.weight.dtype, num_threads)
            compiled = library.Core().compile_model(converted, "CPU", properties)
    except Exception as error:  # the exporter and the converter raise many unrelated types
        raise BackboneError(
            f"OpenVINO cannot run {adapter.name or type(adapter.model).__name__} on images of "
            f"{height}x{width} px: {first_line(error)}; pass runtime='torch'"
        ) from error
    return Program(compiled, layers)


def load_program(
    exported: bytes, *, layers: Sequence[int], dtype: torch.dtype, num_threads: int
) -> Program:
    """Load what :meth:`Program.export` returned on this computer.

    Args:
        exported: the program.
        layers: the blocks that it was compiled for.
        dtype: of the weights.
        num_threads: how many threads it uses.

    Raises:
        RuntimeError: if OpenVINO cannot read it.
    """
    properties = _properties(dtype, num_threads)
    compiled = openvino().Core().import_model(exported, "CPU", properties)
    return Program(compiled, sorted(set(layers)))


def compile_block(tokens: Tensor, hidden_width: int) -> Callable[[], Any]:
    """Compile a block of a ViT with random weights from OpenVINO's operations: an export takes longer.

    It has LayerScale, and no rotary positions, which cost little in a program.

    Args:
        tokens: (B, N, C) that it computes, in the precision of their dtype.
        hidden_width: of its MLP.

    Returns:
        What computes the block once; nothing is converted or copied, as between the blocks of a
        program. The output is that of :meth:`openvino.InferRequest.infer`.
    """
    library = openvino()
    width = tokens.shape[-1]
    block = _BlockOfOperations(library.opset13, width)
    inputs = block.operations.parameter([-1, -1, width], np.float32)
    outputs = block.outputs(inputs, hidden_width)
    model = library.Model([outputs], [inputs])
    properties = _properties(tokens.dtype, torch.get_num_threads())
    request = library.Core().compile_model(model, "CPU", properties).create_infer_request()
    array = tokens.detach().float().numpy()
    return functools.partial(request.infer, [array], share_inputs=True, share_outputs=True)


class _BlockOfOperations:
    """A block of a ViT in OpenVINO's operations, with random weights.

    Args:
        operations: OpenVINO's set of them.
        width: channels of a token.
    """

    def __init__(self, operations: ModuleType, width: int) -> None:
        self.operations = operations
        self._width = width
        self._num_heads = max(1, width // _HEAD_WIDTH)
        while width % self._num_heads:
            self._num_heads -= 1
        self._generator = np.random.default_rng(0)

    def outputs(self, tokens: Any, hidden_width: int) -> Any:
        """Return the tokens (B, N, C) after the block."""
        operations = self.operations
        attended = self._attention(self._norm(tokens))
        tokens = operations.add(tokens, operations.multiply(attended, self._weight(self._width)))
        hidden = self._linear(self._norm(tokens), self._width, hidden_width)
        outputs = self._linear(operations.gelu(hidden, "erf"), hidden_width, self._width)
        return operations.add(tokens, operations.multiply(outputs, self._weight(self._width)))

    def _attention(self, tokens: Any) -> Any:
        operations = self.operations
        width = self._width
        head_width = width // self._num_heads
        projected = self._linear(tokens, width, 3 * width)
        shape = self._integers(0, 0, 3, self._num_heads, head_width)
        by_head = operations.reshape(projected, shape, True)  # (B, N, 3, heads, D)
        by_head = operations.transpose(by_head, self._integers(2, 0, 3, 1, 4))
        parts = operations.split(by_head, self._integers(0, is_scalar=True), 3)
        query, key, value = [
            operations.squeeze(parts.output(i), self._integers(0)) for i in range(3)
        ]  # (B, heads, N, D)
        attended = operations.scaled_dot_product_attention(query, key, value, causal=False)
        attended = operations.transpose(attended, self._integers(0, 2, 1, 3))
        attended = operations.reshape(attended, self._integers(0, 0, width), True)  # (B, N, C)
        return self._linear(attended, width, width)

    def _norm(self, tokens: Any) -> Any:
        operations = self.operations
        normed = operations.mvn(tokens, self._integers(-1), True, 1e-6, "inside_sqrt")
        scaled = operations.multiply(normed, self._weight(self._width))
        return operations.add(scaled, self._weight(self._width))

    def _linear(self, inputs: Any, in_width: int, out_width: int) -> Any:
        weight = self._weight(out_width, in_width)
        product = self.operations.matmul(inputs, weight, False, True)
        return self.operations.add(product, self._weight(out_width))

    def _weight(self, *shape: int) -> Any:
        values = self._generator.normal(scale=0.02, size=shape).astype(np.float32)
        return self.operations.constant(values)

    def _integers(self, *values: int, is_scalar: bool = False) -> Any:
        array = np.array(values[0] if is_scalar else values)
        return self.operations.constant(array)


def _properties(dtype: torch.dtype, num_threads: int) -> dict[str, str | int]:
    """Return how OpenVINO computes with weights of a dtype."""
    return {
        # without it OpenVINO computes in bfloat16 wherever the processor can
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": num_threads,
        "PERFORMANCE_HINT": "LATENCY",
    }


class _Blocks(nn.Module):
    """A frozen backbone for images of one size: positions are constants.

    The first tokens are the patches of the image, without the bias of their convolution, plus the
    first tokens of a black image. OpenVINO has no rule for how DINOv2 resamples its positions, and
    no program has to compute them again for each batch.

    Args:
        adapter: of float32 weights.
        image_size: (height, width) in pixels.
        layers: the blocks whose tokens are returned, in order.
        norm: apply the final norm to each.
    """

    def __init__(
        self, adapter: Adapter, image_size: tuple[int, int], *, layers: Sequence[int], norm: bool
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.layers = tuple(layers)
        self.norm = norm
        black = torch.zeros(1, adapter.in_chans, *image_size)
        with torch.no_grad():
            # extra: what the blocks need beside the tokens, such as rotary positions
            self.tokens_of_black, self.extra = adapter.embed(black)
        convolution = _convolution_of(adapter)
        self.uses_model_embedding = convolution is None
        if convolution is not None:
            self.convolution = convolution
            self.uses_model_embedding = not self._adds_positions_to_patches(black)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tokens (B, P + N, C) of each layer."""
        if self.uses_model_embedding:
            tokens, extra = self.adapter.embed(images)
        else:
            tokens = self._first_tokens(images)
            extra = self.extra
        outputs = []
        for number, block in enumerate(list(self.adapter.blocks)[: self.layers[-1] + 1]):
            tokens = self.adapter.step_for_export(block, number, tokens, extra)
            if number in self.layers:
                outputs.append(self.adapter.final_norm(tokens) if self.norm else tokens)
        return tuple(outputs)

    def _first_tokens(self, images: Tensor) -> Tensor:
        """Return the first tokens (B, P + N, C) with positions."""
        convolution = self.convolution
        maps = F.conv2d(images, convolution.weight, None, convolution.stride)
        patches = maps.flatten(2).transpose(1, 2)  # (B, N, C)
        num_prefix_tokens = self.tokens_of_black.shape[1] - patches.shape[1]
        prefix = self.tokens_of_black[:, :num_prefix_tokens].expand(images.shape[0], -1, -1)
        return torch.cat((prefix, patches + self.tokens_of_black[:, num_prefix_tokens:]), dim=1)

    def _adds_positions_to_patches(self, black: Tensor) -> bool:
        """Whether the first tokens of an image are what this class takes them for."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(black.shape, generator=generator)
        with torch.no_grad():
            expected, _ = self.adapter.embed(images)
            computed = self._first_tokens(images)
        if computed.shape != expected.shape:
            return False
        difference = (computed - expected).abs().max()
        return bool(difference <= _FIRST_TOKENS_TOLERANCE * expected.abs().max())


def _convolution_of(adapter: Adapter) -> nn.Conv2d | None:
    """The one convolution that makes patches of images; None if there is none, or several."""
    modules = [
        module for module in adapter.patch_embedding.modules() if isinstance(module, nn.Conv2d)
    ]
    return modules[0] if len(modules) == 1 else None


def _merged_copy(adapter: Adapter) -> Adapter:
    """Return a copy of the adapter in float32, whose LoRA weights are merged, or left out if they are off.

    A program may use the memory of the weights that it was made of: those of a copy, which nobody
    writes to.
    """
    merged = copy.deepcopy(adapter).float()
    if adapter.lora is None:
        return merged
    if adapter.lora_off:
        lora.remove(merged)
    else:
        lora.merge(merged)
    return merged


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's own notes out of the log."""
    logger = logging.getLogger("openvino")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
