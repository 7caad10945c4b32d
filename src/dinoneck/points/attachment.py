"""Hooks that bring an injection into a network whose code stays as it is."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from dinoneck.errors import ConfigError, ShapeError, did_you_mean
from dinoneck.points.engines import SparseAdapter, adapter_of
from dinoneck.points.sparse import SparseFeatures

Pyramid = Mapping[int, SparseFeatures]

_tracker = ModuleTracker()  # only its ``is_bw``: whether autograd's backward runs now
_passes: ContextVar[Mapping[Slot, Pass]] = ContextVar("passes", default={})  # noqa: B039 - never written to
_hooked: weakref.WeakKeyDictionary[nn.Module, list[Injector]] = weakref.WeakKeyDictionary()


class Injector(Protocol):
    """What hooks need of :class:`dinoneck.points.DecoderInjection`."""

    channels: dict[int, int]
    target: Literal["up", "skip"]

    def inject(self, x: Tensor, features: SparseFeatures, coords: Tensor, batch: Tensor) -> Tensor:
        """Return x (M, C) with the features at its voxels added."""


class Pass:
    """One forward pass: its pyramid, the voxels of its blocks, and whether backward has recomputed blocks."""

    def __init__(self, pyramid: Pyramid | None) -> None:
        self.pyramid, self.recomputed = pyramid, False
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        first = next(iter(pyramid.values()), None) if pyramid else None
        self.mark = first and weakref.ref(first)  # distinguishes pyramids without keeping them

    def saw(self, stride: int, voxels: tuple[Tensor, Tensor]) -> bool:
        """Whether a block at the stride had these voxels."""
        return stride in self.seen and all(map(torch.equal, self.seen[stride], voxels))


class Slot:
    """Where hooks find the pyramid: of the pass under way in this thread, or of the last one that backward recomputes.

    Copies and pickles of a slot are empty: a copied model has no pass under way.
    """

    def __init__(self) -> None:
        self.last: Pass | None = None
        self.earlier: Pass | None = None

    def __reduce__(self) -> tuple[type[Slot], tuple[()]]:
        return Slot, ()

    @contextmanager
    def running(self, pyramid: Pyramid | None, keep: bool) -> Iterator[None]:
        """Run a pass in the ``with`` block; ``keep`` its pyramid for blocks that are recomputed in backward."""
        current = Pass(pyramid)
        if keep:
            self.earlier = None if self.last and self.last.recomputed else self.last
            if self.earlier:
                self.earlier.pyramid = None
            self.last = current
        token = _passes.set({**_passes.get(), self: current})
        try:
            yield
        finally:
            _passes.reset(token)

    def pyramid_at(self, stride: int, name: str, voxels: tuple[Tensor, Tensor]) -> Pyramid | None:
        """Return the pyramid of the pass that a block with these voxels belongs to.

        Raises:
            ConfigError: if there is none, or it is ambiguous.
        """
        current = self.last if _tracker.is_bw else _passes.get().get(self)
        if current is None:
            raise ConfigError(
                f"{name!r} runs without a pyramid. Attached networks run inside `with injection.using(pyramid):` "
                "(using(None) = without images), wrapped ones are called wrapped(x, pyramid=...). If this is backward, "
                "activation checkpointing recomputes the block after the pyramid has gone: train injection.wrap(...), "
                "which keeps it, and call its backward before the next forward"
            )
        if _tracker.is_bw:
            self._check_recomputed(current, stride, name, voxels)
        else:
            current.seen[stride] = voxels
        return current.pyramid

    def _check_recomputed(self, last: Pass, stride: int, name: str, voxels: tuple[Tensor, Tensor]) -> None:
        if not last.saw(stride, voxels):
            raise ConfigError(
                f"backward recomputes {name!r} for other voxels than those of the last pass, whose pyramid is kept: "
                "under activation checkpointing call backward() before the next forward"
            )
        if self.earlier and self.earlier.saw(stride, voxels) and self.earlier.mark != last.mark:
            raise ConfigError(
                f"backward recomputes {name!r}, and two passes over the same voxels had different pyramids: under "
                "activation checkpointing call backward() before the next forward, and run passes that need none "
                "under torch.no_grad()"
            )
        last.recomputed = True


class BlockHook:
    """The forward pre-hook of one block. An object, not a closure: copies of a model get copies of it."""

    def __init__(self, injection: Injector, slot: Slot, stride: int, name: str, adapter: SparseAdapter | None) -> None:
        self.injection, self.slot, self.stride, self.name, self.adapter = injection, slot, stride, name, adapter

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the block's arguments, the first with features added."""
        if not args:
            raise ConfigError(f"{self.name!r} was called without positional arguments; the first one is injected into")
        adapter = self.adapter or adapter_of(args[0])
        coords, batch = adapter.coords(args[0], self.stride)
        self._check_level(coords)
        pyramid = self.slot.pyramid_at(self.stride, self.name, (coords, batch))
        if pyramid is None:
            return None
        feats, channels = adapter.features(args[0]), self.injection.channels[self.stride]
        if feats.shape[-1] < channels:
            raise ShapeError(
                f"{self.name!r} is given {feats.shape[-1]} channels, fewer than levels[{self.stride}] = {channels} "
                f"which are to be added to; name the module behind the concatenation at stride {self.stride}"
            )
        rest = feats.shape[-1] - channels
        own, sizes = (0, [channels, rest]) if self.injection.target == "up" else (1, [rest, channels])
        parts = list(torch.split(feats, sizes, dim=-1))
        parts[own] = self.injection.inject(parts[own], pyramid[self.stride], coords, batch)
        return adapter.with_features(args[0], torch.cat(parts, dim=-1)), *args[1:]

    def _check_level(self, coords: Tensor) -> None:
        """Refuse a block of a finer level; engines that count cells of their level cannot tell."""
        if torch.compiler.is_compiling() or self.stride == 1:
            return
        odd = (coords & (self.stride - 1)).any(dim=1)
        if odd.any():
            raise ConfigError(
                f"{self.name!r} has a voxel at {coords[odd][0].tolist()}, not a multiple of {self.stride}: it "
                "runs at a finer stride; name the block behind the concatenation at that stride"
            )


class Attached:
    """The hooks of an injection on a network."""

    def __init__(self, injection: Injector, hooks: Mapping[nn.Module, BlockHook]) -> None:
        self._injection, self._blocks = injection, list(hooks)
        self._handles = [block.register_forward_pre_hook(hook) for block, hook in hooks.items()]
        for block in hooks:
            _hooked.setdefault(block, []).append(injection)

    def remove(self) -> None:
        """Give the network back as it was."""
        for handle, block in zip(self._handles, self._blocks, strict=True):
            handle.remove()
            _hooked[block] = [other for other in _hooked.get(block, []) if other is not self._injection]


def hook_blocks(
    injection: Injector, slot: Slot, model: nn.Module, names: Mapping[int, str], adapter: SparseAdapter | None
) -> Attached:
    """Hook the named blocks, all or none of them.

    Raises:
        ConfigError: if a module does not exist, is named twice or hooked already, or strides and levels differ.
    """
    if set(names) != set(injection.channels):
        raise ConfigError(
            f"modules are named for strides {', '.join(map(str, names)) or 'none'}; this injection has levels at "
            f"{', '.join(map(str, injection.channels))}: name one module for each"
        )
    known = dict(model.named_modules(remove_duplicate=False))
    hooks: dict[nn.Module, BlockHook] = {}
    for stride, name in names.items():
        if name not in known or not name:
            near = did_you_mean(name, filter(None, known))
            raise ConfigError(
                f"{type(model).__name__} has no module {name!r} (stride {stride}).{near} "
                "model.named_modules() lists them"
            )
        if known[name] in hooks:
            raise ConfigError(f"{name!r} is named for two strides; a block belongs to one")
        if any(other is injection for other in _hooked.get(known[name], [])):
            raise ConfigError(f"{name!r} has this injection already; remove() the earlier one first")
        hooks[known[name]] = BlockHook(injection, slot, stride, name, adapter)
    return Attached(injection, hooks)
