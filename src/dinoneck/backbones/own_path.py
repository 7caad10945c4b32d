"""One comparison at the entrance: the parts of a wrapped model, called one by one, against the model's own forward.

An adapter calls patch embedding, blocks and norm by itself. What people change inside these modules
runs as they changed it. What they change around them (a ``forward`` that was replaced, hooks on the
whole model or on the list of its blocks) does not, and the tokens would differ without a word.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import Adapter, OwnTokens, evaluating
from dinoneck.backbones.weight_hashes import uniform
from dinoneck.errors import BackboneError, GridError, reason_of
from dinoneck.grid import TokenGrid

logger = logging.getLogger(__name__)

# not square and not a size that anyone trains at, so that turned sides and positions that are not
# resampled are noticed
_GRID = (2, 3)
_HIGHEST = 2.0  # of normalised pixels
# Mean difference, as a share of the mean value, up to which it is rounding: another kernel for
# another place in memory, or timm's rotary positions computed on a GPU instead of the host. The mean,
# since single values of a ViT can be a thousand times the others.
_ROUNDING = {torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ROUNDING_OF_OTHERS = 1e-5
# On a GPU matmuls may round their inputs to ten bits (TF32), and rotary positions are computed
# there, so that a difference in the last bit grows to this. Not measured: an estimate.
_ROUNDING_OF_GPUS = 1e-2
# what a layer raises that has no kernel for this device or dtype, such as xformers' on the CPU
_NO_KERNEL = (NotImplementedError, RuntimeError, ImportError)
_REMEDY = (
    "a forward that was replaced, or a hook on the model or on its list of blocks, does that: move "
    "the change into a module that is called (a block, the norm, patch_embed), or wrap the model "
    "without it"
)


def check_own_tokens(adapter: Adapter) -> None:
    """Compare the tokens of one small image with those of the model's own forward, block by block.

    It costs two forwards of 2 x 3 patches in eval mode, without compilation. Of a model that takes
    images of one size, the patch embedding runs at that size; so does the rest where the blocks
    take positions. On the meta device only shapes are compared.

    Raises:
        BackboneError: if they differ by more than rounding, if one of the two fails, or if the
            model's weights are no tensors.
    """
    _check_weights(adapter)
    images = _image(adapter)
    device = "cpu" if images.is_meta else images.device.type
    with (
        evaluating(adapter),
        torch.no_grad(),
        torch.autocast(device, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        parts, own = _run_both(adapter, images)
        if adapter.pos_embed == "official":
            _check_official_positions(adapter)
    if isinstance(parts.error, _NO_KERNEL) and any(run.error is not None for run in own):
        logger.warning(
            "%s runs neither by itself nor in parts on %s in %s (%s): its tokens were not compared "
            "with those of its own forward; move it to the device where it runs, then wrap it",
            _kind(adapter),
            adapter.weight.device,
            adapter.weight.dtype,
            reason_of(parts.error),
        )
        return
    for run in own:
        if run.error is not None:
            raise BackboneError(
                f"{_kind(adapter)} fails with an image of {_size(images)} px: "
                f"{reason_of(run.error)}; expected a model that runs by itself"
            ) from run.error
    if parts.error is not None:
        raise BackboneError(
            f"{_kind(adapter)} runs by itself, but its parts called one by one do not: "
            f"{reason_of(parts.error)}; {_REMEDY}"
        ) from parts.error
    _check_shapes(adapter, images, parts)
    for run in own:
        _compare_blocks(adapter, parts, run)
        _compare_outputs(adapter, parts, run)


def layers_of(adapter: Adapter, norm: bool) -> tuple[int, ...] | None:
    """Return the blocks that a Backbone form of transformers is set to return; None for other models.

    Raises:
        BackboneError: if ``norm`` is not what its feature maps have.
    """
    layers = adapter.own_layers
    if layers is None:
        return None
    for layer in layers:
        if adapter.is_normed_map(layer) != norm:
            has = "without the" if norm else "with the"
            raise BackboneError(
                f"{_kind(adapter)} gives block {layer} {has} final norm (apply_layernorm="
                f"{adapter.model.config.apply_layernorm}) and norm is {norm}; pass norm={not norm}, "
                "or layers= to choose both yourself"
            )
    return layers


@dataclass
class _Run:
    """What one way through a model gave.

    Attributes:
        first: the tokens before the first block; only where the parts are called.
        blocks: the blocks that were called, in order, with their outputs.
        norm_inputs: what the modules of the final norm were called with.
        outputs: the tokens in what the model returns.
        error: what was raised instead.
    """

    first: Tensor | None = None
    blocks: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    norm_inputs: list[Tensor] = field(default_factory=list)
    outputs: list[OwnTokens] = field(default_factory=list)
    error: Exception | None = None


def _run_both(adapter: Adapter, images: Tensor) -> tuple[_Run, list[_Run]]:
    """Run the parts, then the model, on the first tokens of large images if the blocks take any."""
    if adapter.fixed_size is not None and adapter.blocks_take_any_tokens:
        with _shortened(adapter):
            parts = _run_parts(adapter, images)
            own = _run_own(adapter, images)
        if not any(run.error for run in [parts, *own]):
            return parts, own
    parts = _run_parts(adapter, images)
    return parts, _run_own(adapter, images)


@contextlib.contextmanager
def _shortened(adapter: Adapter) -> Iterator[None]:
    """Give the first block the first tokens alone in the ``with`` block."""
    kept = adapter.num_prefix_tokens + _GRID[0] * _GRID[1]

    def cut(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][:, :kept], *inputs[1:])

    handle = adapter.blocks[0].register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


def _image(adapter: Adapter) -> Tensor:
    """Return one image of fixed noise that the model takes."""
    size = adapter.fixed_size
    if size is None:
        size = (_GRID[0] * adapter.patch_size[0], _GRID[1] * adapter.patch_size[1])
    try:
        TokenGrid(adapter.patch_size).size(size)
    except GridError as error:
        raise BackboneError(
            f"{_kind(adapter)} takes images of {size[0]}x{size[1]} px only, which are no whole "
            f"patches of {_pair(adapter.patch_size)} px; build it with another img_size, or with "
            "dynamic_img_size=True"
        ) from error
    return _noise(adapter, size)


def _noise(adapter: Adapter, size: tuple[int, int]) -> Tensor:
    shape = (1, adapter.in_chans, *size)
    count = adapter.in_chans * size[0] * size[1]
    values = (uniform("image", count, 0) * 2.0 - 1.0) * _HIGHEST
    weight = adapter.weight
    return torch.from_numpy(values).reshape(shape).to(weight.device, weight.dtype)


def _run_parts(adapter: Adapter, images: Tensor) -> _Run:
    """Call the parts as :meth:`Adapter.forward` does, with the library's own recipe of positions."""
    run = _Run()
    recipe = adapter.pos_embed
    adapter.pos_embed = "native"
    try:
        with _same_random_numbers(images):
            x, extra = adapter.embed(images)
            run.first = x
            for number, block in enumerate(adapter.blocks):
                x = adapter.step(block, number, x, extra)
                run.blocks.append((block, x))
    except Exception as error:  # of any kind, since people wrote the model; raised again
        run.error = error
    finally:
        adapter.pos_embed = recipe
    return run


def _run_own(adapter: Adapter, images: Tensor) -> list[_Run]:
    """Call the model, and the method that returns its tokens where the call does not use it."""
    model = adapter.model
    method = adapter.tokens_method
    called = _Run()
    has_forward = type(model).forward is not nn.Module.forward or "forward" in vars(model)
    if method is None and not has_forward:
        return []  # an object of parts alone
    if method is None:
        with _same_random_numbers(images), _recorded(adapter, called):
            try:
                called.outputs = adapter.own_tokens(model(images))
            except Exception as error:  # of any kind, since people wrote the model; raised again
                called.error = error
        return [called]
    result = None
    if has_forward:
        with _same_random_numbers(images), _recorded(adapter, called):
            result = _result_within(adapter, called, images)
    if result is not None:
        called.outputs = adapter.own_tokens(result)
        return [called]
    # the call uses its blocks in another way: what the method gives is compared too
    direct = _Run()
    with _same_random_numbers(images), _recorded(adapter, direct):
        try:
            direct.outputs = adapter.own_tokens(getattr(model, method)(images))
        except Exception as error:  # of any kind, since people wrote the model; raised again
            direct.error = error
    return [called, direct]


class _Enough(Exception):
    """Ends a forward whose tokens are there."""


def _result_within(adapter: Adapter, run: _Run, images: Tensor) -> Any:
    """Call the model, and return what it gets from its own method; None if it does not call that with these images.

    What the model does after that is left out: it may be a head that fits nothing.
    """
    model = adapter.model
    method = adapter.tokens_method or ""
    bound = getattr(model, method)
    results: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        result = bound(*args, **kwargs)
        if any(_is_same(value, images) for value in (*args, *kwargs.values())):
            results.append(result)
            raise _Enough
        return result

    before = vars(model).get(method)
    setattr(model, method, keep)
    try:
        model(images)
    except _Enough:
        return results[0]
    except Exception as error:  # of any kind, since people wrote the model
        if len(run.blocks) < adapter.depth:
            run.blocks.clear()
            warnings.warn(
                f"calling {_kind(adapter)} with images fails ({reason_of(error)}); its tokens are "
                f"those of its {method}",
                stacklevel=6,
            )
    finally:
        delattr(model, method)
        if before is not None:
            setattr(model, method, before)
    return None


def _is_same(value: object, images: Tensor) -> bool:
    if value is images:
        return True
    if not isinstance(value, Tensor) or value.is_meta or value.shape != images.shape:
        return False
    return value.dtype == images.dtype and torch.equal(value, images)


@contextlib.contextmanager
def _recorded(adapter: Adapter, run: _Run) -> Iterator[None]:
    """Note every call of a block in the ``with`` block."""

    def note(block: nn.Module, _: Any, output: Any) -> None:
        run.blocks.append((block, _tokens_of(output)))

    def note_norm(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        run.norm_inputs.append(_tokens_of(inputs[0]))

    unique = {id(block): block for block in adapter.blocks}
    handles = [block.register_forward_hook(note) for block in unique.values()]
    handles += [norm.register_forward_pre_hook(note_norm) for norm in adapter.norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens_of(output: Any) -> Tensor:
    """Return the tokens in what a block gives: themselves, or first in a tuple or a list, as DINOv3's own code does."""
    if isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(f"a block gives {type(output).__name__}; expected tokens (B, N, C)")
    return output


def _same_random_numbers(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Run from the present state of the random numbers, and restore it."""
    devices = [images.device] if images.device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def _check_weights(adapter: Adapter) -> None:
    """Raise for layers whose weights are no tensors: no fingerprint would notice a change of them."""
    for name, value in adapter.model.state_dict().items():
        if not isinstance(value, Tensor):
            raise BackboneError(
                f"{_kind(adapter)} keeps {name} as a {type(value).__name__}, as quantised layers do; "
                "expected weights that are tensors: wrap the model before it is quantised (dtype= "
                "makes it smaller)"
            )


def _check_shapes(adapter: Adapter, images: Tensor, parts: _Run) -> None:
    """Raise where a sequence is not what the model's attributes say: prefix tokens, patches, width."""
    height, width = images.shape[-2:]
    rows, cols = TokenGrid(adapter.patch_size).size((height, width))
    prefix = adapter.num_prefix_tokens
    expected = (1, prefix + rows * cols, adapter.embed_dim)
    first = () if parts.first is None else tuple(parts.first.shape)
    if first != expected:
        raise BackboneError(
            f"{_kind(adapter)} makes tokens {first} of an image of {_size(images)} px; expected "
            f"{expected}: {prefix} prefix tokens and {rows}x{cols} patches of "
            f"{_pair(adapter.patch_size)} px, {adapter.embed_dim} wide, by its attributes; set those "
            "to what the model does, or wrap it without the change"
        )
    shapes = [tuple(x.shape) for _, x in parts.blocks]
    for number, shape in enumerate(shapes):
        # those of the first block may be shortened
        is_kept = shape == shapes[0] and shape[1] <= expected[1] and shape[2] == expected[2]
        if not is_kept or (adapter.fixed_size is None and shape != expected):
            raise BackboneError(
                f"block {number} of {_kind(adapter)} gives tokens {shape} for {expected}; expected "
                "as many as it gets: each patch of the image has one; wrap the model without the "
                "change"
            )


def _compare_blocks(adapter: Adapter, parts: _Run, own: _Run) -> None:
    """Raise at the first block that gives other tokens in the model's own forward."""
    if not own.blocks:
        return  # its forward does not call them as modules; what it returns is compared
    ours = [id(block) for block, _ in parts.blocks]
    theirs = [id(block) for block, _ in own.blocks]
    if ours != theirs:
        numbers = [ours.index(block) for block in theirs]
        raise BackboneError(
            f"the forward of {_kind(adapter)} runs its blocks as {numbers}; expected "
            f"{[*range(len(ours))]}, each of them once and in order: put the blocks that it runs "
            "into its list of blocks, or wrap the model without the change"
        )
    pairs = zip(parts.blocks, own.blocks, strict=True)
    for number, ((_, mine), (_, other)) in enumerate(pairs):
        _check_equal(adapter, f"block {number}", mine, other)
    # the norm takes out a factor between the last block and itself
    sequences = [mine for _, mine in parts.blocks]
    if parts.first is not None:
        sequences.append(parts.first)  # DINOv3's Backbone form norms it too, for stage 0
    for other in own.norm_inputs:
        alike = [mine for mine in sequences if mine.shape == other.shape]
        if not alike:
            continue  # CLS and patches have norms of their own
        gaps = [_gap(mine, other) for mine in alike]
        nearest = alike[gaps.index(min(gaps))]
        _check_equal(adapter, "what its norm gets", nearest, other)


def _compare_outputs(adapter: Adapter, parts: _Run, own: _Run) -> None:
    """Raise where the tokens that the model returns are not those of the parts."""
    for output in own.outputs:
        _, mine = parts.blocks[output.layer]
        if output.normed:
            with evaluating(adapter), torch.no_grad():
                mine = adapter.final_norm(mine)
        if output.patches_only:
            mine = mine[:, adapter.num_prefix_tokens :]
        _check_equal(adapter, f"what it returns of block {output.layer}", mine, output.tokens)


def _check_equal(adapter: Adapter, what: str, mine: Tensor, other: Tensor) -> None:
    """Raise unless two tensors are equal up to rounding; log a difference that rounding explains."""
    if mine.shape != other.shape:
        raise BackboneError(
            f"{_kind(adapter)}, {what}: {tuple(other.shape)} in its own forward, "
            f"{tuple(mine.shape)} where its parts are called one by one; {_REMEDY}"
        )
    gap = _gap(mine, other)
    if gap == 0:
        return
    if not gap <= _rounding_of(mine):
        raise BackboneError(
            f"{_kind(adapter)}, {what}: its own forward gives other tokens than its parts called one "
            f"by one, by {gap:.2g} of their mean; {_REMEDY}"
        )
    logger.info("%s, %s: equal up to rounding, %.1g", _kind(adapter), what, gap)


def _rounding_of(tokens: Tensor) -> float:
    """Return the largest difference, as of :func:`_gap`, that rounding explains."""
    rounding = _ROUNDING.get(tokens.dtype, _ROUNDING_OF_OTHERS)
    if tokens.device.type == "cpu":
        return rounding
    return max(rounding, _ROUNDING_OF_GPUS)


def _gap(mine: Tensor, other: Tensor) -> float:
    """Return the mean difference as a share of the mean value; 0 on the meta device."""
    if mine.is_meta or torch.equal(mine, other):
        return 0.0
    mine = mine.double()
    other = other.double()
    difference = (mine - other).abs().mean()
    size = other.abs().mean()
    smallest = torch.finfo(torch.float32).tiny  # tokens may all be 0
    return float(difference / size.clamp_min(smallest))


def _check_official_positions(adapter: Adapter) -> None:
    """Raise if both recipes of positions differ at the trained size, where neither resamples."""
    size = adapter.trained_size
    if size is None:
        return
    images = _noise(adapter, size)
    official, _ = adapter.embed(images)
    adapter.pos_embed = "native"
    try:
        native, _ = adapter.embed(images)
    finally:
        adapter.pos_embed = "official"
    gap = _gap(official, native)
    if not gap <= _rounding_of(official):
        raise BackboneError(
            f"{_kind(adapter)} makes positions of its own: at the size it was trained at they differ "
            f"from those of the dinov2 repository by {gap:.2g} of their mean; use "
            "pos_embed='native'"
        )


def _kind(adapter: Adapter) -> str:
    return type(adapter.model).__name__


def _size(images: Tensor) -> str:
    height, width = images.shape[-2:]
    return _pair((height, width))


def _pair(sides: tuple[int, int]) -> str:
    return f"{sides[0]}x{sides[1]}"
