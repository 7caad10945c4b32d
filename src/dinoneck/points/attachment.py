"""Hooks that bring an injection into a network whose code stays as it is, and the sparse tensors of its engine.

Three functions per engine tell where its voxels are, their features, and make a new tensor. None of
the engines is imported: what their tensors have is enough to tell them apart.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from dinoneck.errors import ConfigError, ShapeError
from dinoneck.points.minkowski import MinkowskiAdapter
from dinoneck.points.voxels import SparseFeatures
from dinoneck.text import did_you_mean

Pyramid = Mapping[int, SparseFeatures]
Injector = Any  # a dinoneck.points.DecoderInjection, whose module imports this one


# torch has no public function that tells whether backward runs; this class answers it in ``is_bw``
_module_tracker = ModuleTracker()


def _is_in_backward() -> bool:
    """Whether autograd's backward runs in this thread now, in which checkpointing recomputes blocks."""
    return bool(_module_tracker.is_bw)


class _RunningPass(NamedTuple):
    """A pass under way: the slot that its hooks read, and its pyramid (None = without images)."""

    slot: Slot
    pyramid: Pyramid | None


# of this thread and of all slots, the innermost pass last; no variable per slot, since Python frees
# no ContextVar
_running_passes: ContextVar[tuple[_RunningPass, ...]] = ContextVar("running_passes", default=())


@dataclasses.dataclass
class _KeptPass:
    """A finished pass whose blocks backward may recompute.

    Attributes:
        pyramid: of the pass; None = without images.
        is_ambiguous: whether passes before it, which still wait for backward, had other pyramids.
        was_recomputed: whether backward has recomputed a block of it.
    """

    pyramid: Pyramid | None
    is_ambiguous: bool
    was_recomputed: bool = False


class Slot:
    """Where the hooks of one attached network find the pyramid of the pass that they run in.

    In forward that is the pass under way in this thread: the pyramid is known to this thread alone.
    Backward may run in another thread and after the pass, so for blocks that it recomputes
    (activation checkpointing) the slot keeps the last pass itself.

    Copies and pickles of a slot are empty: a copied model has no pass under way.
    """

    def __init__(self) -> None:
        self._kept: _KeptPass | None = None

    def __reduce__(self) -> tuple[type[Slot], tuple[()]]:
        return Slot, ()

    @contextmanager
    def running(self, pyramid: Pyramid | None, *, keep_for_backward: bool) -> Iterator[None]:
        """Run a pass in the ``with`` block.

        Args:
            pyramid: what its hooks are given; None = without images.
            keep_for_backward: whether backward may recompute blocks of it.
        """
        this_pass = _RunningPass(self, pyramid)
        token = _running_passes.set((*_running_passes.get(), this_pass))
        try:
            yield
        finally:
            _running_passes.reset(token)
        if keep_for_backward:
            self._keep(pyramid)

    def _keep(self, pyramid: Pyramid | None) -> None:
        """Keep the pyramid of a finished pass in place of the one before."""
        earlier = self._kept
        is_ambiguous = False
        # a pass of which no block was recomputed yet may still wait for its backward
        if earlier is not None and not earlier.was_recomputed:
            is_ambiguous = earlier.is_ambiguous or earlier.pyramid is not pyramid
        self._kept = _KeptPass(pyramid, is_ambiguous)

    def pyramid_of(self, name: str) -> Pyramid | None:
        """Return the pyramid of the pass that the block of this name runs in.

        Raises:
            ConfigError: if there is none, or it is ambiguous.
        """
        if _is_in_backward():
            return self._pyramid_to_recompute(name)
        for running_pass in reversed(_running_passes.get()):
            if running_pass.slot is self:
                return running_pass.pyramid
        raise _no_pyramid(name)

    def _pyramid_to_recompute(self, name: str) -> Pyramid | None:
        """The pyramid of the kept pass, of which backward recomputes the block of this name."""
        if self._kept is None:
            raise _no_pyramid(name)
        if self._kept.is_ambiguous:
            raise ConfigError(
                f"backward recomputes {name!r} after passes with several pyramids, of which only "
                "the last is kept: under activation checkpointing call backward() before the next "
                "forward, and run passes that need none under torch.no_grad()"
            )
        self._kept.was_recomputed = True
        return self._kept.pyramid


def _no_pyramid(name: str) -> ConfigError:
    """The error for a block that runs outside of any pass."""
    return ConfigError(
        f"{name!r} runs without a pyramid. Attached networks run inside `with "
        "injection.using(pyramid):` (using(None) = without images), wrapped ones are "
        "called wrapped(x, pyramid=...). If this is backward, activation checkpointing "
        "recomputes the block after the pyramid has gone: train injection.wrap(...), "
        "which keeps it, and call its backward before the next forward"
    )


# hooked block -> the injections that are attached to it: each may be attached to a block once
_hooked: weakref.WeakKeyDictionary[nn.Module, list[Injector]] = weakref.WeakKeyDictionary()


class BlockHook:
    """The forward pre-hook of one block.

    An object, not a closure: copies of a model get copies of it.
    """

    def __init__(
        self, injection: Injector, slot: Slot, stride: int, name: str, adapter: SparseAdapter | None
    ) -> None:
        self.injection = injection
        self.slot = slot
        self.stride = stride
        self.name = name
        self.adapter = adapter

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the block's arguments, the first with features added."""
        if not args:
            raise ConfigError(
                f"{self.name!r} was called without positional arguments; the first one is "
                "injected into"
            )
        adapter = self.adapter or adapter_of(args[0])
        coords, batch = adapter.coords(args[0], self.stride)
        if self.stride > 1 and not torch.compiler.is_compiling():
            # strides are powers of two; an engine that counts the cells of a level has multiples
            # of its stride in any case, so that a wrong block cannot be told there
            is_between = (coords & (self.stride - 1)).any(dim=1)
            if is_between.any():
                raise ConfigError(
                    f"{self.name!r} has a voxel at {coords[is_between][0].tolist()}, not a multiple of "
                    f"{self.stride}: it runs at a finer stride; name the block behind the "
                    "concatenation at that stride"
                )
        pyramid = self.slot.pyramid_of(self.name)
        if pyramid is None:
            return None  # the arguments stay as they are
        feats = adapter.features(args[0])
        channels = self.injection.channels[self.stride]
        if feats.shape[-1] < channels:
            raise ShapeError(
                f"{self.name!r} is given {feats.shape[-1]} channels, fewer than "
                f"levels[{self.stride}] = {channels} which are to be added to; name the module "
                f"behind the concatenation at stride {self.stride}"
            )
        features = pyramid[self.stride]
        rest = feats.shape[-1] - channels
        if self.injection.target == "up":
            up, skip = torch.split(feats, [channels, rest], dim=-1)
            up = self.injection.inject(up, features, coords, batch)
        else:
            up, skip = torch.split(feats, [rest, channels], dim=-1)
            skip = self.injection.inject(skip, features, coords, batch)
        joined = torch.cat((up, skip), dim=-1)
        return adapter.with_features(args[0], joined), *args[1:]


class Attached:
    """The hooks of an injection on a network."""

    def __init__(self, injection: Injector, hooks: Mapping[nn.Module, BlockHook]) -> None:
        self._injection = injection
        self._blocks = list(hooks)
        self._handles = [block.register_forward_pre_hook(hook) for block, hook in hooks.items()]
        for block in hooks:
            _hooked.setdefault(block, []).append(injection)

    def remove(self) -> None:
        """Give the network back as it was."""
        for handle, block in zip(self._handles, self._blocks, strict=True):
            handle.remove()
            hooked = _hooked.get(block, [])
            _hooked[block] = [other for other in hooked if other is not self._injection]


def hook_blocks(
    injection: Injector,
    slot: Slot,
    model: nn.Module,
    names: Mapping[int, str],
    adapter: SparseAdapter | None,
) -> Attached:
    """Hook the named blocks, all or none of them.

    Raises:
        ConfigError: if a module does not exist, is named twice or hooked already, or strides and
            levels differ.
    """
    if set(names) != set(injection.channels):
        raise ConfigError(
            f"modules are named for strides {', '.join(map(str, names)) or 'none'}; this "
            f"injection has levels at {', '.join(map(str, injection.channels))}: name one module "
            "for each"
        )
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks: dict[nn.Module, BlockHook] = {}
    for stride, name in names.items():
        if name not in modules or not name:
            near = did_you_mean(name, filter(None, modules))
            raise ConfigError(
                f"{type(model).__name__} has no module {name!r} (stride {stride}).{near} "
                "model.named_modules() lists them"
            )
        block = modules[name]
        if block in hooks:
            raise ConfigError(f"{name!r} is named for two strides; a block belongs to one")
        if any(other is injection for other in _hooked.get(block, [])):
            raise ConfigError(
                f"{name!r} has this injection already; remove() the earlier one first"
            )
        hooks[block] = BlockHook(injection, slot, stride, name, adapter)
    return Attached(injection, hooks)


class SparseAdapter(Protocol):
    """The three functions that connect an engine; any object that has them connects another one.

    Examples:
        >>> class Pairs:
        ...     def coords(self, x, stride):
        ...         return x[0][:, 1:] * stride, x[0][:, 0]
        ...     def features(self, x):
        ...         return x[1]
        ...     def with_features(self, x, feats):
        ...         return x[0], feats
        >>> adapter: SparseAdapter = Pairs()
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return coords (M, 3) int64 in base voxel units (a cell's first voxel) and batch (M,) int64."""

    def features(self, x: Any) -> Tensor:
        """Return the features (M, C)."""

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return a tensor of the engine with other features; ``x`` stays as it was."""


@dataclasses.dataclass(frozen=True)
class PlainSparse:
    """A sparse tensor of three plain ones, for networks without an engine.

    Attributes:
        coords: (M, 3) int64 in base voxel units, multiples of the stride on coarse levels.
        batch: (M,) int64, the sample of each voxel.
        feats: (M, C).
    """

    coords: Tensor
    batch: Tensor
    feats: Tensor

    def with_feats(self, feats: Tensor) -> Self:
        """Return the same voxels with other features."""
        return dataclasses.replace(self, feats=feats)


class PlainAdapter:
    """For :class:`PlainSparse`."""

    def coords(self, x: PlainSparse, stride: int) -> tuple[Tensor, Tensor]:
        """Return its coordinates and batch as they are."""
        return x.coords, x.batch

    def features(self, x: PlainSparse) -> Tensor:
        """Return ``feats``."""
        return x.feats

    def with_features(self, x: PlainSparse, feats: Tensor) -> PlainSparse:
        """Return the same voxels with other features."""
        return x.with_feats(feats)


class SpconvAdapter:
    """For spconv's ``SparseConvTensor``: indices (batch, a, b, c) count cells of the level they are on.

    The order of the axes is whatever the network was given: build the grid from the same indices,
    ``VoxelGrid.from_coords(x.indices[:, 1:], batch=x.indices[:, 0])``. spconv 2.3.8 silently gives
    wrong numbers, on a CPU at least, in three cases. The first is an odd ``spatial_shape``, of
    which going down drops the last plane: round it up to a multiple of the coarsest stride. The
    others are indices that are not contiguous, and samples times volume of 2^31 or more.
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return the indices in base voxel units."""
        indices = x.indices.long()
        return indices[:, 1:] * stride, indices[:, 0]

    def features(self, x: Any) -> Tensor:
        """Return ``features``."""
        feats: Tensor = x.features
        return feats

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return ``x.replace_feature(feats)``, which keeps its table of neighbours."""
        return x.replace_feature(feats)


class PointceptAdapter:
    """For Pointcept's ``Point``, a dict with ``grid_coord`` in cells of its level and ``batch`` or ``offset``.

    Pointcept shifts ``grid_coord`` to begin at 0 in every sample: build the grid from the shifted
    ones. Run against Pointcept's PointTransformerV3 and ``Point`` (commit d74c646).
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return ``grid_coord`` in base voxel units."""
        coords = x["grid_coord"].long() * stride
        if "batch" in x:
            return coords, x["batch"].long()
        ends = x["offset"].long()  # of the samples' rows
        sizes = torch.diff(ends, prepend=ends.new_zeros(1))
        samples = torch.arange(len(sizes), device=coords.device)
        return coords, torch.repeat_interleave(samples, sizes)

    def features(self, x: Any) -> Tensor:
        """Return ``feat``."""
        feats: Tensor = x["feat"]
        return feats

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return a copy with the features in ``feat`` and in ``sparse_conv_feat``."""
        copied = type(x)(x)  # the encoder may hold on to x: it is not written to
        copied["feat"] = feats
        if "sparse_conv_feat" in x:
            copied["sparse_conv_feat"] = x["sparse_conv_feat"].replace_feature(feats)
        return copied


def adapter_of(x: Any) -> SparseAdapter:
    """Return the adapter of a sparse tensor, by what it has.

    Raises:
        ShapeError: if it is none of the known.
    """
    if isinstance(x, PlainSparse):
        return PlainAdapter()
    # first: an addict.Dict has any attribute
    if isinstance(x, Mapping) and "grid_coord" in x and "feat" in x:
        return PointceptAdapter()
    if hasattr(type(x), "replace_feature"):
        return SpconvAdapter()
    if hasattr(x, "coordinate_map_key") and not isinstance(x, Mapping):
        return MinkowskiAdapter()
    raise ShapeError(
        f"{type(x).__name__} is not a known sparse tensor (PlainSparse, spconv, "
        "MinkowskiEngine, Pointcept's Point); pass adapter=, an object with the three functions of "
        "dinoneck.points.SparseAdapter"
    )
