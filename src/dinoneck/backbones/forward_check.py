"""Compare a wrapped model's parts, called one by one, with the model's own forward.

An adapter calls patch embedding, blocks and final norm by itself. What people change inside these
modules runs as they changed it. What they change around them (a ``forward`` that was replaced,
hooks on the whole model or on the list of its blocks) does not run, and the tokens would silently
differ.

Both ways use the model's own positions. So they are the same operations on the same values, and
agree bit for bit on every device, with TF32 too.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import Adapter, ForwardTokens, evaluating
from dinoneck.backbones.weight_hashes import uniform
from dinoneck.dtypes import dtype_name
from dinoneck.errors import BackboneError, GridError
from dinoneck.grid import TokenGrid
from dinoneck.text import reason_of

logger = logging.getLogger(__name__)

# not square and not a size that anyone trains at, so that turned sides and positions that are not
# resampled are noticed
_GRID = (2, 3)
_LARGEST_PIXEL = 2.0  # of normalised images
# Mean difference, as a share of the mean value, up to which it is rounding. Unchanged models differ
# by 0 (measured on CPUs); the rest is for forwards that compute the same in another order. The
# mean, since single values of a ViT can be a thousand times the others.
_ROUNDING = {torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ROUNDING_OF_OTHERS = 1e-5
# what a layer raises that has no kernel for this device or dtype, such as xformers' on the CPU
_NO_KERNEL = (NotImplementedError, RuntimeError, ImportError)
# what torch says of tensors that do not fit together, on any device
_OTHER_SIZES = re.compile(
    r"size of tensor|shapes cannot be multiplied|is invalid for input of size"
)
_EMBEDDING = "the embedding of images"  # patches, prefix tokens and positions
_EXTRA_STATE = "_extra_state"  # torch's name of what get_extra_state() returns
_CHANGED_AROUND = (
    "a forward that was replaced, or a hook on the model or on its list of blocks, can do that: move "
    "the change into a module that is called (a block, the norm, patch_embed), or wrap the model "
    "without it"
)


def check_forward(adapter: Adapter) -> list[str]:
    """Compare the tokens of one small image with those of the model's own forward, block by block.

    It costs two forwards of 2 x 3 patches in eval mode, without compilation. Of a model that takes
    images of one size, the patch embedding runs at that size; so do the blocks, unless they take
    any number of tokens. On the meta device only shapes are compared. A model that cannot run on
    its device is logged as not compared.

    Returns:
        What the caller is to warn of.

    Raises:
        BackboneError: if the tokens differ by more than rounding or are not finite, if the parts or
            the forward fail, or if the model's weights are no tensors.
    """
    _check_weights(adapter)
    images = _noise_of_size(adapter, _image_size(adapter))
    with _comparable(adapter, images):
        parts, forwards = _run_both(adapter, images)
        if _can_run(adapter, images, parts, forwards):
            _check_shapes(adapter, images, parts)
            _check_finite(adapter, parts)
            for forward in forwards:
                _compare(adapter, parts, forward)
            adapter.compare_positions()
            if adapter.pos_embed == "official":
                _check_official_positions(adapter)
    return [forward.warning for forward in forwards if forward.warning is not None]


@dataclass
class _Run:
    """What one way through a model gave.

    Attributes:
        embedded: the tokens before the first block; only where the parts are called.
        extra: the blocks' further arguments, see :meth:`Adapter.step`; only where the parts are
            called.
        blocks: the blocks that were called, in order.
        block_tokens: what each of them returned, (B, N, C).
        norm_inputs: what the modules of the final norm were called with.
        outputs: the tokens in what the model returns.
        last_part: what ran last; only where the parts are called.
        error: what was raised instead.
        warning: what the user should know of this way.
    """

    embedded: Tensor | None = None
    extra: Any = None
    blocks: list[nn.Module] = field(default_factory=list)
    block_tokens: list[Tensor] = field(default_factory=list)
    norm_inputs: list[Tensor] = field(default_factory=list)
    outputs: list[ForwardTokens] = field(default_factory=list)
    last_part: str = ""
    error: Exception | None = None
    warning: str | None = None

    def runs_blocks_of(self, adapter: Adapter) -> bool:
        """Whether the adapter's blocks were called, each once and in order."""
        called = [id(block) for block in self.blocks]
        return called == [id(block) for block in adapter.blocks]


@contextlib.contextmanager
def _comparable(adapter: Adapter, images: Tensor) -> Iterator[None]:
    """Run the ``with`` block in eval mode, with named outputs, without gradients, autocast and compilation."""
    device = "cpu" if images.is_meta else images.device.type
    with (
        evaluating(adapter),
        adapter.with_named_outputs(),
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def _run_both(adapter: Adapter, images: Tensor) -> tuple[_Run, list[_Run]]:
    """Run the parts, then the model; blocks that take any number of tokens get few of a large image.

    The parts come first: what the model's forward leaves behind in its modules would help them.
    """
    if adapter.fixed_size is not None and adapter.blocks_take_any_tokens:
        with _few_tokens(adapter):
            parts = _run_parts(adapter, images)
            forwards = [] if parts.error is not None else _run_forward(adapter, images)
        if parts.error is None and not any(forward.error for forward in forwards):
            return parts, forwards
        if forwards:
            images = images.flip(-1)  # what a forward left behind is of another image
    parts = _run_parts(adapter, images)
    return parts, _run_forward(adapter, images)


@contextlib.contextmanager
def _few_tokens(adapter: Adapter) -> Iterator[None]:
    """Give the first block as many tokens as a small image has, in the ``with`` block."""
    kept = adapter.num_prefix_tokens + _GRID[0] * _GRID[1]

    def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][:, :kept], *inputs[1:])

    handle = adapter.blocks[0].register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


# --- images


def _image_size(adapter: Adapter) -> tuple[int, int]:
    """Return (height, width) in pixels of a small image that the model takes."""
    size = adapter.fixed_size
    if size is None:
        return _GRID[0] * adapter.patch_size[0], _GRID[1] * adapter.patch_size[1]
    try:
        TokenGrid(adapter.patch_size).size(size)
    except GridError as error:
        raise BackboneError(
            f"{_class_name(adapter)} takes images of {_sides(size)} px only, which are no whole "
            f"patches of {_sides(adapter.patch_size)} px; build it with another img_size, or with "
            "dynamic_img_size=True"
        ) from error
    return size


def _noise_of_size(adapter: Adapter, size: tuple[int, int]) -> Tensor:
    """Return one image of fixed noise, (1, channels, height, width), in the model's dtype."""
    shape = (1, adapter.in_chans, *size)
    count = adapter.in_chans * size[0] * size[1]
    values = (uniform("image", count, 0) * 2.0 - 1.0) * _LARGEST_PIXEL
    weight = adapter.weight
    return torch.from_numpy(values).reshape(shape).to(weight.device, weight.dtype)


# --- the parts


def _run_parts(adapter: Adapter, images: Tensor) -> _Run:
    """Call the parts as :meth:`Adapter.forward` does, with the model's own positions."""
    run = _Run()
    outputs = []
    try:
        with _same_random_numbers(images):
            run.last_part = _EMBEDDING
            x, run.extra = adapter.embed_natively(images)
            run.embedded = x
            for number, block in enumerate(adapter.blocks):
                run.last_part = f"block {number}"
                x = adapter.step(block, number, x, run.extra)
                outputs.append((block, x))
    except Exception as error:  # of any kind, since people wrote the model; raised again
        run.error = error
    for block, output in outputs:
        run.blocks.append(block)
        run.block_tokens.append(_tokens_in_block_output(adapter, block, output))
    return run


def _same_random_numbers(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Run from the present state of the random numbers, and restore it."""
    devices = [images.device] if images.device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


# --- the model's own forward


def _run_forward(adapter: Adapter, images: Tensor) -> list[_Run]:
    """Run what returns the model's tokens: its call, the method that the call uses, or both.

    One empty run for an object that has parts alone.
    """
    model = adapter.model
    method = adapter.tokens_method
    has_forward = type(model).forward is not nn.Module.forward or "forward" in vars(model)
    if method is None and not has_forward:
        return [_Run()]
    if method is None:
        return [_run_call(adapter, images, model)]
    if not has_forward:
        return [_run_call(adapter, images, getattr(model, method))]
    call = _run_call_to_method(adapter, images, method)
    if call.outputs:
        return [call]
    # the call uses its blocks in another way: what the method returns is compared too
    direct = _run_call(adapter, images, getattr(model, method))
    if call.warning is not None:
        direct.warning = call.warning
        return [direct]
    return [call, direct]


def _run_call(adapter: Adapter, images: Tensor, call: Callable[[Tensor], Any]) -> _Run:
    """Run the model, or its method, and keep the tokens that it returns."""
    output = None
    with _recorded(adapter, images) as record:
        try:
            output = call(images)
        except Exception as error:  # of any kind, since people wrote the model; raised again
            record.error = error
    run = record.run(adapter)
    if run.error is None:
        run.outputs = adapter.tokens_in_output(output)
    return run


class _MethodReturned(Exception):
    """Raised to end a forward as soon as the method of its tokens has returned."""


def _run_call_to_method(adapter: Adapter, images: Tensor, method: str) -> _Run:
    """Run the model until its own method has returned the tokens of these images.

    What the model does after that is left out: it may be a head that fits nothing. A call that does
    not use the method gives no outputs; one that fails before its last block gives a warning.
    """
    model = adapter.model
    bound = getattr(model, method)
    returned: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        output = bound(*args, **kwargs)
        if any(_is_same(value, images) for value in (*args, *kwargs.values())):
            returned.append(output)
            raise _MethodReturned
        return output

    with _recorded(adapter, images) as record, _replaced(model, method, keep):
        try:
            model(images)
        except _MethodReturned:
            pass
        except Exception as error:  # of any kind, since people wrote the model
            record.error = error
    run = record.run(adapter)
    run.error = None
    if returned:
        run.outputs = adapter.tokens_in_output(returned[0])
    elif record.error is not None and len(run.blocks) < adapter.depth:
        run.warning = (
            f"calling {_class_name(adapter)} with images fails ({reason_of(record.error)}); its "
            f"tokens are those of its {method}"
        )
    return run


@contextlib.contextmanager
def _replaced(model: Any, method: str, other: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of the object in the ``with`` block."""
    before = vars(model).get(method)
    setattr(model, method, other)
    try:
        yield
    finally:
        delattr(model, method)
        if before is not None:
            setattr(model, method, before)


def _is_same(value: object, images: Tensor) -> bool:
    """Whether an argument holds these images."""
    if value is images:
        return True
    if not isinstance(value, Tensor) or value.is_meta or value.shape != images.shape:
        return False
    return value.dtype == images.dtype and torch.equal(value, images)


@dataclass
class _Record:
    """The calls of blocks and norms in a forward, with what they returned and were given."""

    block_outputs: list[tuple[nn.Module, Any]] = field(default_factory=list)
    norm_inputs: list[Any] = field(default_factory=list)
    error: Exception | None = None

    def run(self, adapter: Adapter) -> _Run:
        """Return the tokens in these calls."""
        run = _Run(error=self.error)
        for block, output in self.block_outputs:
            run.blocks.append(block)
            run.block_tokens.append(_tokens_in_block_output(adapter, block, output))
        for value in self.norm_inputs:
            if isinstance(value, Tensor):
                run.norm_inputs.append(value)
        return run


@contextlib.contextmanager
def _recorded(adapter: Adapter, images: Tensor) -> Iterator[_Record]:
    """Record every call of a block and of a final norm in the ``with`` block."""
    record = _Record()

    def note_block(block: nn.Module, _: Any, output: Any) -> None:
        record.block_outputs.append((block, output))

    def note_norm(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        record.norm_inputs.extend(inputs[:1])

    unique = {id(block): block for block in adapter.blocks}
    handles = [block.register_forward_hook(note_block) for block in unique.values()]
    handles += [norm.register_forward_pre_hook(note_norm) for norm in adapter.norms]
    try:
        with _same_random_numbers(images):
            yield record
    finally:
        for handle in handles:
            handle.remove()


def _tokens_in_block_output(adapter: Adapter, block: nn.Module, output: Any) -> Tensor:
    """Return the tokens that a block returns: alone, first in a tuple, or in a list of one, as in dinov3."""
    tokens = output
    is_filled_tuple = isinstance(output, tuple) and len(output) > 0
    is_list_of_one = isinstance(output, list) and len(output) == 1
    if is_filled_tuple or is_list_of_one:
        tokens = output[0]
    if isinstance(tokens, Tensor):
        return tokens
    number = [id(other) for other in adapter.blocks].index(id(block))
    length = f" of {len(output)}" if isinstance(output, list | tuple) else ""
    raise BackboneError(
        f"block {number} of {_class_name(adapter)} returns a {type(output).__name__}{length}; "
        "expected tokens (B, N, C), alone, first in a tuple, or in a list of one: wrap the model "
        "without the change of its blocks"
    )


# --- what is compared


def _check_weights(adapter: Adapter) -> None:
    """Raise for a state that is no tensor: no fingerprint would notice a change of it."""
    for name, value in adapter.model.state_dict().items():
        if isinstance(value, Tensor):
            continue
        what = f"{_class_name(adapter)} keeps {name} as a {type(value).__name__}"
        if name.endswith(_EXTRA_STATE):
            raise BackboneError(
                f"{what}, by a get_extra_state() of its own, which no hash of the weights covers; "
                "expected a state of tensors: keep it in buffers, or wrap the model without it"
            )
        raise BackboneError(
            f"{what}, as quantised layers do; expected weights that are tensors: wrap the model "
            "before it is quantised (dtype= makes it smaller)"
        )


def _can_run(adapter: Adapter, images: Tensor, parts: _Run, forwards: list[_Run]) -> bool:
    """Whether the model ran; log it if it has no kernel here, raise if it fails in another way."""
    place = f"on {images.device} in {dtype_name(images.dtype)}"
    for forward in forwards:
        if forward.error is None:
            continue
        if _is_missing_kernel(forward.error, parts.error):
            logger.warning(
                "%s cannot run %s (%s): its tokens were not compared with those of its own forward; "
                "move it to the device where it runs, such as model.cuda(), and wrap it then",
                _class_name(adapter),
                place,
                reason_of(forward.error),
            )
            return False
        raise BackboneError(
            f"{_class_name(adapter)} fails {place} with an image of {_size(images)} px: "
            f"{reason_of(forward.error)}; expected a model that runs by itself: if it runs on "
            "another device or in another dtype, convert it first and wrap it then"
        ) from forward.error
    if parts.error is not None:
        raise BackboneError(
            f"{_class_name(adapter)} runs by itself, but {parts.last_part} fails where the parts are "
            f"called one by one: {reason_of(parts.error)}; what it needs of the model's forward must "
            "be in a module that is called (a block, the norm, patch_embed): move it there, or wrap "
            "the model without the change"
        ) from parts.error
    return True


def _is_missing_kernel(forward_error: Exception, parts_error: Exception | None) -> bool:
    """Whether both ways fail in the same way, with an error that layers without a kernel raise."""
    if _OTHER_SIZES.search(str(forward_error)):
        return False
    return isinstance(forward_error, _NO_KERNEL) and type(forward_error) is type(parts_error)


def _compare(adapter: Adapter, parts: _Run, forward: _Run) -> None:
    """Raise at the first difference between the model's own forward and its parts."""
    block_tokens = parts.block_tokens
    if forward.blocks:  # else it does not call them as modules; what it returns is compared
        _compare_blocks(adapter, parts, forward)
        block_tokens = forward.block_tokens
    candidates = list(block_tokens)
    if parts.embedded is not None:
        candidates.append(parts.embedded)  # DINOv3's Backbone form norms it too, for stage 0
    _compare_norm_inputs(adapter, candidates, forward)
    _compare_outputs(adapter, block_tokens, forward)


def _check_shapes(adapter: Adapter, images: Tensor, parts: _Run) -> None:
    """Raise where a sequence is not what the model's attributes say: prefix tokens, patches, width."""
    height, width = images.shape[-2:]
    rows, cols = TokenGrid(adapter.patch_size).size((height, width))
    prefix = adapter.num_prefix_tokens
    expected = (1, prefix + rows * cols, adapter.embed_dim)
    embedded = () if parts.embedded is None else tuple(parts.embedded.shape)
    if embedded != expected:
        raise BackboneError(
            f"{_class_name(adapter)} makes tokens {embedded} of an image of {_size(images)} px; "
            f"expected {expected}: {prefix} prefix tokens and {rows}x{cols} patches of "
            f"{_sides(adapter.patch_size)} px, {adapter.embed_dim} wide, by its attributes; set "
            "those to what the model does, or wrap it without the change"
        )
    shapes = [tuple(tokens.shape) for tokens in parts.block_tokens]
    for number, shape in enumerate(shapes):
        # the first block may get fewer tokens, see _few_tokens
        is_kept = shape == shapes[0] and shape[1] <= expected[1] and shape[2] == expected[2]
        if not is_kept or (adapter.fixed_size is None and shape != expected):
            raise BackboneError(
                f"block {number} of {_class_name(adapter)} gives tokens {shape} for {expected}; "
                "expected as many as it gets: each patch of the image has one; wrap the model "
                "without the change"
            )


def _check_finite(adapter: Adapter, parts: _Run) -> None:
    """Raise at the first tokens that are NaN or infinite: nothing can be compared with them."""
    tokens_of: dict[str, Tensor] = {}
    if parts.embedded is not None:
        tokens_of[_EMBEDDING] = parts.embedded
    for number, block_tokens in enumerate(parts.block_tokens):
        tokens_of[f"block {number}"] = block_tokens
    for part, tokens in tokens_of.items():
        if _is_finite(tokens):
            continue
        values = "NaN" if bool(tokens.isnan().any()) else "infinite"
        what = f"{_class_name(adapter)}: {part} gives tokens that are {values}"
        broken = _weights_not_finite(adapter)
        if broken is not None:
            raise BackboneError(
                f"{what}, since the weights {broken} are not finite; expected a model with its "
                "weights: load them, then wrap it"
            )
        raise BackboneError(
            f"{what} in {dtype_name(tokens.dtype)}, of finite weights; expected finite tokens: wrap "
            "the model in a dtype of a wider range, such as bfloat16 or float32"
        )


def _is_finite(tokens: Tensor) -> bool:
    return tokens.is_meta or bool(tokens.isfinite().all())


def _weights_not_finite(adapter: Adapter) -> str | None:
    """Return the name of the first weights that hold NaN or infinity; None if there are none."""
    for name, value in adapter.model.state_dict().items():
        if value.is_floating_point() and not _is_finite(value):
            return str(name)
    return None


def _compare_blocks(adapter: Adapter, parts: _Run, forward: _Run) -> None:
    """Raise at the first block that gives other tokens in the model's own forward."""
    if not forward.runs_blocks_of(adapter):
        positions = [id(block) for block in adapter.blocks]
        numbers = [positions.index(id(block)) for block in forward.blocks]
        raise BackboneError(
            f"the forward of {_class_name(adapter)} runs its blocks as {numbers}; expected "
            f"{[*range(adapter.depth)]}, each of them once and in order: put the blocks that it runs "
            "into its list of blocks, or wrap the model without the change"
        )
    is_exact = True
    for number, block in enumerate(adapter.blocks):
        parts_tokens = parts.block_tokens[number]
        if not is_exact:
            # rounding before this block may grow in it: call it with what the forward gave it
            block_input = forward.block_tokens[number - 1]
            output = adapter.step(block, number, block_input, parts.extra)
            parts_tokens = _tokens_in_block_output(adapter, block, output)
        forward_tokens = forward.block_tokens[number]
        _check_equal(adapter, f"block {number}", parts_tokens, forward_tokens)
        is_exact = _difference(parts.block_tokens[number], forward_tokens) == 0


def _compare_norm_inputs(adapter: Adapter, candidates: list[Tensor], forward: _Run) -> None:
    """Raise if the norm gets what no block gives: the norm takes out a factor before itself."""
    for norm_input in forward.norm_inputs:
        # CLS and patches may have norms of their own, which get parts of a sequence
        of_same_shape = [tokens for tokens in candidates if tokens.shape == norm_input.shape]
        if not of_same_shape:
            continue
        differences = [_difference(tokens, norm_input) for tokens in of_same_shape]
        nearest = of_same_shape[differences.index(min(differences))]
        _check_equal(adapter, "what its norm gets", nearest, norm_input)


def _compare_outputs(adapter: Adapter, block_tokens: list[Tensor], forward: _Run) -> None:
    """Raise where the tokens that the model returns are not those of its blocks and norm."""
    for output in forward.outputs:
        parts_tokens = block_tokens[output.layer]
        if output.normed:
            parts_tokens = adapter.final_norm(parts_tokens)
        if output.patches_only:
            parts_tokens = parts_tokens[:, adapter.num_prefix_tokens :]
        where = f"what it returns of block {output.layer}"
        _check_equal(adapter, where, parts_tokens, output.tokens)


def _check_equal(
    adapter: Adapter, where: str, parts_tokens: Tensor, forward_tokens: Tensor
) -> None:
    """Raise unless two tensors are equal up to rounding; log a difference that rounding explains."""
    if parts_tokens.shape != forward_tokens.shape:
        raise BackboneError(
            f"{_class_name(adapter)}, {where}: {tuple(forward_tokens.shape)} in its own forward, "
            f"{tuple(parts_tokens.shape)} where its parts are called one by one; {_CHANGED_AROUND}"
        )
    if not _is_finite(forward_tokens):
        values = "NaN" if bool(forward_tokens.isnan().any()) else "infinite values"
        raise BackboneError(
            f"{_class_name(adapter)}, {where}: its own forward gives {values}, its parts called one "
            f"by one do not; {_CHANGED_AROUND}"
        )
    difference = _difference(parts_tokens, forward_tokens)
    if difference == 0:
        return
    if not difference <= _rounding_of(parts_tokens.dtype):
        raise BackboneError(
            f"{_class_name(adapter)}, {where}: its own forward gives other tokens than its parts "
            f"called one by one, by {difference:.2g} of their mean; {_CHANGED_AROUND}"
        )
    logger.info("%s, %s: equal up to rounding, %.1g", _class_name(adapter), where, difference)


def _rounding_of(dtype: torch.dtype) -> float:
    """Return the largest difference, as of :func:`_difference`, that rounding explains."""
    return _ROUNDING.get(dtype, _ROUNDING_OF_OTHERS)


def _difference(tokens: Tensor, reference: Tensor) -> float:
    """Return the mean difference as a share of the reference's mean value; 0 on the meta device."""
    if tokens.is_meta or torch.equal(tokens, reference):
        return 0.0
    reference = reference.double()
    mean_difference = (tokens.double() - reference).abs().mean()
    mean_value = reference.abs().mean()
    smallest = torch.finfo(torch.float32).tiny  # tokens may all be 0
    return float(mean_difference / mean_value.clamp_min(smallest))


def _check_official_positions(adapter: Adapter) -> None:
    """Raise if both recipes of positions differ at the trained size, where neither resamples."""
    size = adapter.trained_size
    if size is None:
        return
    images = _noise_of_size(adapter, size)
    official, _ = adapter.embed(images)
    native, _ = adapter.embed_natively(images)
    difference = _difference(official, native)
    if not difference <= _rounding_of(official.dtype):
        raise BackboneError(
            f"{_class_name(adapter)} makes positions of its own: at the size it was trained at they "
            f"differ from those of the dinov2 repository by {difference:.2g} of their mean; use "
            "pos_embed='native'"
        )


# --- words of messages


def _class_name(adapter: Adapter) -> str:
    return type(adapter.model).__name__


def _size(images: Tensor) -> str:
    height, width = images.shape[-2:]
    return _sides((height, width))


def _sides(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"
