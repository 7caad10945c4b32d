"""Hooks that bring an injection into a network whose code stays as it is."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dinoneck.errors import ConfigError, ShapeError, did_you_mean
from dinoneck.points.engines import SparseAdapter, adapter_of
from dinoneck.points.sparse import SparseFeatures

if TYPE_CHECKING:
    from dinoneck.points.injection import DecoderInjection

Pyramid = Mapping[int, SparseFeatures]


class Pass:
    """One forward pass: its pyramid, the voxels its blocks saw, and whether backward has run blocks again."""

    def __init__(self, pyramid: Pyramid | None) -> None:
        self.pyramid, self.recomputed = pyramid, False
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        first = next(iter(pyramid.values()), None) if pyramid else None
        self.mark = first and weakref.ref(first)  # tells pyramids apart without keeping them

    def saw(self, stride: int, voxels: tuple[Tensor, Tensor]) -> bool:
        """Whether a block at the stride had these voxels."""
        return stride in self.seen and all(map(torch.equal, self.seen[stride], voxels))


class Slot:
    """Where hooks find the pyramid of a pass: open while it runs, kept for what backward recomputes, or empty.

    Copies and pickles of a slot are empty: a copied model has no pass under way.
    """

    def __init__(self) -> None:
        self.phase: Literal["empty", "open", "kept"] = "empty"
        self.last, self.earlier = Pass(None), Pass(None)
        self.owner = 0

    def __reduce__(self) -> tuple[type[Slot], tuple[()]]:
        return Slot, ()

    def claim(self) -> None:
        """Refuse to begin a pass while another thread's is under way: its blocks would find this one's pyramid.

        Raises:
            ConfigError: if one is.
        """
        if torch.compiler.is_compiling():
            return
        own = threading.get_ident()
        if self.phase == "open" and self.owner != own:
            raise ConfigError(
                "another thread runs this network with its pyramid, and they would be mixed up; give every thread a "
                "copy.deepcopy of network and injection, together, or take turns with a lock"
            )
        self.owner = own

    def open(self, pyramid: Pyramid | None) -> None:
        """Begin a pass."""
        self.claim()
        self.earlier = Pass(None) if self.last.recomputed else self.last
        self.earlier.pyramid = None
        self.phase, self.last = "open", Pass(pyramid)

    def close(self, keep: bool) -> None:
        """End a pass; ``keep`` its pyramid for blocks that are run again in backward."""
        self.phase = "kept" if keep else "empty"
        if not keep:
            self.last = Pass(None)

    def pyramid_at(self, stride: int, name: str, voxels: tuple[Tensor, Tensor]) -> Pyramid | None:
        """Return the pyramid of the pass that a block with these voxels belongs to.

        Raises:
            ConfigError: if there is none, or which one it is cannot be told.
        """
        recomputing = torch._C._current_graph_task_id() != -1  # a graph task: backward is under way
        if self.phase == "empty" or (self.phase == "kept" and not recomputing):
            raise ConfigError(
                f"{name!r} runs without a pyramid. Attached networks run inside `with injection.using(pyramid):` "
                "(using(None) = without photos), wrapped ones are called wrapped(x, pyramid=...). If this is backward, "
                "activation checkpointing recomputes the block after the pyramid has gone: train injection.wrap(...), "
                "which keeps it, and call its backward before the next forward"
            )
        if recomputing:
            self._check_recomputed(stride, name, voxels)
        else:
            self.last.seen[stride] = voxels
        return self.last.pyramid

    def _check_recomputed(self, stride: int, name: str, voxels: tuple[Tensor, Tensor]) -> None:
        if not self.last.saw(stride, voxels):
            raise ConfigError(
                f"backward recomputes {name!r} for other voxels than those of the last pass, whose pyramid is kept: "
                "under activation checkpointing call backward() before the next forward"
            )
        if self.earlier.saw(stride, voxels) and self.earlier.mark != self.last.mark:
            raise ConfigError(
                f"backward recomputes {name!r} and cannot tell for which of two passes over the same voxels with "
                "different pyramids: under activation checkpointing call backward() before the next forward, and run "
                "passes that need none under torch.no_grad()"
            )
        self.last.recomputed = True


class BlockHook:
    """The forward pre-hook of one block. An object, not a closure: copies of a model get copies of it."""

    def __init__(
        self, injection: DecoderInjection, slot: Slot, stride: int, name: str, adapter: SparseAdapter | None
    ) -> None:
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
                f"{self.name!r} has a voxel at {coords[odd][0].tolist()}, which is no multiple of {self.stride}: it "
                "runs at a finer stride; name the block behind the concatenation at that stride"
            )


class Attached:
    """The hooks of an injection on a network."""

    def __init__(self, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Give the network back as it was."""
        for handle in self._handles:
            handle.remove()


def hook_blocks(
    injection: DecoderInjection, slot: Slot, model: nn.Module, names: Mapping[int, str], adapter: SparseAdapter | None
) -> Attached:
    """Hook the named blocks, all or none of them.

    Raises:
        ConfigError: if a module does not exist, is named twice or hooked already, or strides and levels differ.
    """
    if set(names) != set(injection.strides):
        raise ConfigError(
            f"modules are named for strides {', '.join(map(str, names)) or 'none'}; this injection has levels at "
            f"{', '.join(map(str, injection.strides))}: name one module for each"
        )
    known = dict(model.named_modules(remove_duplicate=False))
    blocks: dict[int, nn.Module] = {}
    for stride, name in names.items():
        if name not in known or not name:
            near = did_you_mean(name, filter(None, known))
            raise ConfigError(
                f"{type(model).__name__} has no module {name!r} (stride {stride}).{near} "
                "model.named_modules() lists them"
            )
        if any(known[name] is block for block in blocks.values()):
            raise ConfigError(f"{name!r} is named for two strides; a block belongs to one")
        if any(isinstance(h, BlockHook) and h.injection is injection for h in known[name]._forward_pre_hooks.values()):
            raise ConfigError(f"{name!r} has this injection already; remove() the earlier one first")
        blocks[stride] = known[name]
    return Attached(
        [
            block.register_forward_pre_hook(BlockHook(injection, slot, stride, names[stride], adapter))
            for stride, block in blocks.items()
        ]
    )


class InjectedUNet(nn.Module):
    """A network and its injection as one module; made by :meth:`DecoderInjection.wrap`.

    Under activation checkpointing call backward before the next forward: only the pyramid of the last pass is kept, and
    another order is refused. Take ``use_reentrant=False``: torch's older kind loses the gradients of tensors that are
    inside sparse objects.

    Weights: ``state_dict()`` has ``unet.*`` and ``injection.*``; a head file holds ``wrapped.injection``.

    Args:
        unet: the network; hooked, not copied.
        injection: what is added.
        names: stride -> name of the block behind the concatenation.
        adapter: of an engine that is not known here.
    """

    def __init__(
        self,
        unet: nn.Module,
        injection: DecoderInjection,
        names: Mapping[int, str],
        adapter: SparseAdapter | None = None,
    ) -> None:
        super().__init__()
        self._slot = Slot()
        self._attached = hook_blocks(injection, self._slot, unet, names, adapter)
        self.unet, self.injection = unet, injection

    def forward(self, x: Any, *args: Any, pyramid: Pyramid | None, **kwargs: Any) -> Any:
        """Return what the network says of x with the pyramid's features.

        Args:
            x: what the network takes.
            *args: passed on.
            pyramid: stride -> features; None = the 3D network alone. Its parameters then get no gradient: for samples
                without photos under DDP give features that are nowhere valid instead.
            **kwargs: passed on.
        """
        self.injection.check_pyramid(pyramid)
        self._slot.open(pyramid)
        try:
            return self.unet(x, *args, **kwargs)
        finally:
            self._slot.close(keep=torch.is_grad_enabled())

    def remove(self) -> None:
        """Take the hooks off: ``unet`` is what it was."""
        self._attached.remove()
