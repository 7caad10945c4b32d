"""The two types on the wire: Tokens (what a backbone gives) and FeaturePyramid (what a neck gives).

Both are registered pytrees, so they pass through ``torch.compile``, ``torch.export``, hooks and
data loaders. Constructors check nothing (they run under tracing); ``from_sequence`` and
``from_patches`` check everything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx._pytree import register_pytree_flatten_spec
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from dinoneck.errors import ConfigError, GridError, ShapeError
from dinoneck.grid import GridSize, PatchSize, TokenGrid, as_maps, checked_grid, patch_pair


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a batch of images, from one or several blocks of a ViT.

    The whole sequence of a block stays one tensor: CLS first, then registers, then patches in
    raster order. Slicing the prefix off before a projection would cost a hidden full-width copy, so
    modules project first and slice after. ``patches``, ``cls_token`` and ``registers`` are views.

    Attributes:
        sequence: one (B, P + N, C) tensor per layer, P prefix tokens, N = grid.rows * grid.cols.
        grid: the patch grid.
        patch_size: pixels per patch, an integer when square, else (height, width).
        num_cls: 1 when the sequence begins with a CLS token, else 0.
        num_registers: register tokens after it.
        layers: 0-based block indices in the order asked, duplicates kept; None = unknown.
        normed: whether the backbone's final norm was applied; None = unknown.
        source: a short fingerprint of the backbone's weights and LoRA weights, which a head loaded
            from a file compares; None where it is not known, and while they train. Exported
            programs take tokens of any source.

    Examples:
        >>> tokens = Tokens.from_sequence(
        ...     torch.zeros(2, 1805, 384), image_size=(480, 960), patch_size=16, num_prefix_tokens=5)
        >>> tokens.patches[0].shape, tokens.registers[0].shape, tokens.maps()[0].shape
        (torch.Size([2, 1800, 384]), torch.Size([2, 4, 384]), torch.Size([2, 384, 30, 60]))
    """

    sequence: tuple[Tensor, ...]
    grid: GridSize
    patch_size: PatchSize
    num_cls: int = 0
    num_registers: int = 0
    layers: tuple[int, ...] | None = None
    normed: bool | None = None
    source: str | None = None

    def __setstate__(self, state: object) -> None:
        _check_pickled(state)
        self.__dict__.update(state)  # type: ignore[call-overload]

    @classmethod
    def from_sequence(
        cls,
        x_or_list: Tensor | Sequence[Tensor],
        *,
        image_size: Sequence[int],
        patch_size: PatchSize,
        num_prefix_tokens: int,
        layers: Sequence[int] | None = None,
        normed: bool | None = None,
        num_cls: int | None = None,
        source: str | None = None,
    ) -> Tokens:
        """Take whole token sequences as a ViT returns them; nothing is copied.

        Args:
            x_or_list: (B, P + N, C), or one such tensor per layer.
            image_size: (height, width) of the images that went in, in pixels.
            patch_size: pixels per patch.
            num_prefix_tokens: tokens before the patches; the first one is CLS, the others are
                registers.
            layers: block indices of the tensors, in their order.
            normed: whether the backbone's final norm was applied.
            num_cls: CLS tokens among the prefix, 0 or 1; None = one, if there is a prefix.
            source: the fingerprint of the backbone that gave them.

        Raises:
            ShapeError: if the tensors are not alike or ``layers`` has another length.
            GridError: if the patch does not divide the image or N does not fit.
        """
        if (
            isinstance(num_prefix_tokens, bool)
            or not isinstance(num_prefix_tokens, int)
            or num_prefix_tokens < 0
        ):
            raise ConfigError(
                f"num_prefix_tokens is {num_prefix_tokens!r}; expected an integer >= 0"
            )
        if num_cls is None:
            num_cls = min(1, num_prefix_tokens)
        if num_cls not in (0, 1) or num_cls > num_prefix_tokens:
            raise ConfigError(
                f"num_cls is {num_cls!r} of {num_prefix_tokens} prefix tokens; expected 0 or 1"
            )
        sequence = _alike(x_or_list, "sequence")
        pair = patch_pair(patch_size)
        grid = TokenGrid(pair).size(image_size)
        if sequence[0].shape[1] != num_prefix_tokens + grid.rows * grid.cols:
            raise GridError(
                f"a sequence of {sequence[0].shape[1]} tokens does not fit "
                f"{image_size[0]}x{image_size[1]} px: {grid.rows} rows x {grid.cols} cols = "
                f"{grid.count} patches, plus {num_prefix_tokens} prefix tokens; check image_size=, "
                "patch_size= and num_prefix_tokens="
            )
        if layers is not None and len(layers) != len(sequence):
            raise ShapeError(
                f"layers names {len(layers)} blocks {tuple(layers)} for {len(sequence)} tensors"
            )
        return cls(
            sequence=sequence,
            grid=grid,
            patch_size=pair[0] if pair[0] == pair[1] else pair,
            num_cls=num_cls,
            num_registers=num_prefix_tokens - num_cls,
            layers=None if layers is None else tuple(map(operator.index, layers)),
            normed=normed,
            source=source,
        )

    @classmethod
    def from_patches(
        cls,
        x_or_list: Tensor | Sequence[Tensor],
        *,
        grid: Sequence[int],
        patch_size: PatchSize,
        cls_token: Tensor | Sequence[Tensor] | None = None,
        registers: Tensor | Sequence[Tensor] | None = None,
        layers: Sequence[int] | None = None,
        normed: bool | None = None,
        source: str | None = None,
    ) -> Tokens:
        """Take patch tokens that are already split off, with or without the other tokens.

        Args:
            x_or_list: patches (B, N, C), or one such tensor per layer.
            grid: (rows, cols); never inferred from N.
            cls_token: (B, C), or one per layer.
            registers: (B, R, C), or one per layer.
            patch_size: as for :meth:`from_sequence`, like ``layers``, ``normed`` and ``source``.
            layers: as ``normed`` and ``source``, see there.
            normed: see there.
            source: see there.

        Raises:
            ShapeError: if shapes do not fit each other.
            GridError: if N is not rows * cols.
        """
        patches = _alike(x_or_list, "patches")
        size = checked_grid(grid)
        patch_height, patch_width = patch_pair(patch_size)
        if patches[0].shape[1] != size.count:
            raise GridError(
                f"{patches[0].shape[1]} patch tokens do not fill a grid of {size.rows} rows x "
                f"{size.cols} cols = {size.count}; pass the patches without CLS and registers, or "
                "another grid"
            )
        parts: list[Sequence[Tensor]] = []  # each with one tensor (B, tokens, C) per layer
        num_cls = 0
        num_registers = 0
        if cls_token is not None:
            cls_tokens = _beside(cls_token, patches, 2, "cls_token")
            parts.append([token.unsqueeze(1) for token in cls_tokens])
            num_cls = 1
        if registers is not None:
            register_tokens = _beside(registers, patches, 3, "registers")
            parts.append(register_tokens)
            num_registers = register_tokens[0].shape[1]
        parts.append(patches)
        sequence = []
        for of_layer in zip(*parts, strict=True):
            sequence.append(torch.cat(of_layer, dim=1) if len(of_layer) > 1 else of_layer[0])
        return cls.from_sequence(
            sequence,
            image_size=(size.rows * patch_height, size.cols * patch_width),
            patch_size=patch_size,
            num_prefix_tokens=num_cls + num_registers,
            layers=layers,
            normed=normed,
            num_cls=num_cls,
            source=source,
        )

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.num_cls + self.num_registers

    @property
    def patches(self) -> tuple[Tensor, ...]:
        """Patch tokens (B, N, C) of every layer, as views."""
        return tuple(x[:, self.num_prefix_tokens :] for x in self.sequence)

    @property
    def cls_token(self) -> tuple[Tensor, ...]:
        """CLS token (B, C) of every layer, as views.

        Raises:
            ShapeError: if these tokens carry none.
        """
        if not self.num_cls:
            raise ShapeError(
                "these tokens have no CLS token; pass cls_token=, or sequences with "
                "num_prefix_tokens="
            )
        return tuple(x[:, 0] for x in self.sequence)

    @property
    def registers(self) -> tuple[Tensor, ...]:
        """Register tokens (B, R, C) of every layer, as views; R is 0 for models without."""
        return tuple(x[:, self.num_cls : self.num_prefix_tokens] for x in self.sequence)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image that the grid covers."""
        height, width = patch_pair(self.patch_size)
        return self.grid.rows * height, self.grid.cols * width

    @property
    def last(self) -> Tokens:
        """The Tokens of the last layer in the order asked."""
        return self._at([len(self.sequence) - 1])

    def maps(self) -> tuple[Tensor, ...]:
        """Patch maps (B, C, rows, cols) of every layer: zero-copy channels-last views."""
        return tuple(as_maps(patches, self.grid) for patches in self.patches)

    def select(self, layers: int | Iterable[int]) -> Tokens:
        """Return the Tokens of these block indices, in the order given, duplicates kept.

        Raises:
            ConfigError: if these tokens do not record their layers, or a layer is not among them.
        """
        selected = [layers] if isinstance(layers, int) else list(layers)
        if self.layers is None:
            raise ConfigError(
                "these tokens do not record which blocks they come from; build them with layers="
            )
        missing = [layer for layer in selected if layer not in self.layers]
        if missing or not selected:
            raise ConfigError(
                f"blocks {missing or selected} are not among these tokens' layers {self.layers}"
            )
        return self._at([self.layers.index(layer) for layer in selected])

    def __len__(self) -> int:
        return self.sequence[0].shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tokens:
        if index is None or isinstance(index, bool | tuple):
            raise TypeError(
                f"Tokens are indexed along the batch: an integer, a slice or a list; not {index!r}"
            )
        if hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0:
            index = [operator.index(index)]
        return self._map(lambda x: x[index])

    @staticmethod
    def cat(parts: Sequence[Tokens]) -> Tokens:
        """Join batches along the batch axis; where some do not state their source, the result has none.

        Raises:
            ShapeError: if there are none, or they differ in anything but their batch size and
                values.
        """
        if not parts:
            raise ShapeError("there are no Tokens to join")
        first = parts[0]
        for other in parts[1:]:
            if other._describe() != first._describe():
                raise ShapeError(
                    f"Tokens that differ cannot be joined: {first._describe()} and "
                    f"{other._describe()}"
                )
        sources = {part.source for part in parts}
        stated = sorted(filter(None, sources))
        if len(stated) > 1:
            raise ShapeError(
                f"Tokens of different backbones, {', '.join(stated[:5])}; extract them with one "
                "backbone"
            )
        source = first.source if len(sources) == 1 else None
        layers = zip(*(part.sequence for part in parts), strict=True)
        return replace(first, sequence=tuple(torch.cat(layer) for layer in layers), source=source)

    def to(self, *args: Any, **kwargs: Any) -> Tokens:
        """Move or convert the tensors; takes what ``Tensor.to`` takes: ``device``, ``dtype``, ``non_blocking``."""
        return self._map(lambda x: x.to(*args, **kwargs))

    def pin_memory(self) -> Tokens:
        """Copy the tensors to page-locked memory."""
        return self._map(Tensor.pin_memory)

    def detach(self) -> Tokens:
        """Cut the tensors off the autograd graph."""
        return self._map(Tensor.detach)

    def dynamic_spec(self) -> list[Any]:
        """Return the ``dynamic_shapes`` entry for ``torch.export``: batch and grid are free."""
        free = torch.export.Dim.DYNAMIC
        return [*({0: free, 1: free} for _ in self.sequence), free, free]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return replace(self, sequence=tuple(change(x) for x in self.sequence))

    def _at(self, indices: list[int]) -> Tokens:
        """The Tokens of some of the layers, by their index."""
        sequence = tuple(self.sequence[i] for i in indices)
        layers = None if self.layers is None else tuple(self.layers[i] for i in indices)
        return replace(self, sequence=sequence, layers=layers)

    def _describe(self) -> str:
        shapes = ", ".join(f"(batch, {x.shape[1]}, {x.shape[2]}) {x.dtype}" for x in self.sequence)
        return (
            f"{shapes}, {self.grid}, patch {self.patch_size} px, {self.num_cls} CLS, "
            f"{self.num_registers} registers, layers {self.layers}, normed {self.normed}"
        )

    def __repr__(self) -> str:
        return f"Tokens(batch {len(self)}: {self._describe()}, source {self.source})"


@dataclass(frozen=True, eq=False)
class FeaturePyramid:
    """Maps of falling resolution, fine to coarse.

    Attributes:
        maps: one (B, D, rows_i, cols_i) tensor per level.
        strides: image pixels per cell of every level.
    """

    maps: tuple[Tensor, ...]
    strides: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("maps", "strides"):
            if not isinstance(getattr(self, name), tuple):
                object.__setattr__(self, name, tuple(getattr(self, name)))

    def as_dict(self) -> dict[str, Tensor]:
        """Return the levels as ``{"0": finest, "1": ...}``, the form torchvision's detectors take."""
        return {str(level): level_map for level, level_map in enumerate(self.maps)}

    def __len__(self) -> int:
        return len(self.maps)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.maps)

    def __getitem__(self, level: int) -> Tensor:
        return self.maps[level]

    def __repr__(self) -> str:
        levels = ", ".join(
            f"{tuple(m.shape)} stride {s:g}" for m, s in zip(self.maps, self.strides, strict=True)
        )
        return f"FeaturePyramid({levels})"


def collate(batch: Sequence[Any]) -> Any:
    """Collate samples for a ``DataLoader``: Tokens are joined, the rest goes to ``default_collate``.

    Args:
        batch: one entry per sample: Tokens, or tuples, lists or dicts that hold them.

    Returns:
        One entry of the same form, with the batch as first axis.

    Raises:
        ShapeError: if there are none, or Tokens differ in form or source, see
            :meth:`dinoneck.Tokens.cat`.

    Examples:
        >>> one = Tokens.from_patches(torch.zeros(1, 6, 8), grid=(2, 3), patch_size=16)
        >>> tokens, target = collate([(one, 1.0), (one, 2.0)])
        >>> len(tokens), target.tolist()
        (2, [1.0, 2.0])
    """
    if not batch:
        raise ShapeError("there are no samples to collate")
    first = batch[0]
    if isinstance(first, Tokens):
        return Tokens.cat(batch)
    if isinstance(first, dict):
        return {key: collate([sample[key] for sample in batch]) for key in first}
    if isinstance(first, tuple | list):
        columns = [collate(column) for column in zip(*batch, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return default_collate(list(batch))


def _alike(x_or_list: Tensor | Sequence[Tensor], name: str) -> tuple[Tensor, ...]:
    tensors = (x_or_list,) if isinstance(x_or_list, Tensor) else tuple(x_or_list)
    if not tensors:
        raise ShapeError(
            f"{name} is empty; expected one (batch, tokens, channels) tensor per layer"
        )
    for x in tensors:
        if x.ndim != 3:
            raise ShapeError(
                f"{name} has a tensor of shape {tuple(x.shape)}; expected (batch, tokens, channels)"
            )
        if x.shape != tensors[0].shape or x.dtype != tensors[0].dtype:
            first = f"{tuple(tensors[0].shape)} {tensors[0].dtype}"
            raise ShapeError(f"the layers of {name} differ: {first} and {tuple(x.shape)} {x.dtype}")
    return tensors


def _beside(
    x_or_list: Tensor | Sequence[Tensor], patches: tuple[Tensor, ...], ndim: int, name: str
) -> list[Tensor]:
    """Tokens next to the patches: one tensor per layer, checked against batch and width."""
    tensors = [x_or_list] if isinstance(x_or_list, Tensor) else list(x_or_list)
    batch, _, width = patches[0].shape
    if len(tensors) != len(patches):
        raise ShapeError(
            f"{name} has {len(tensors)} tensors; the patches have {len(patches)} layers"
        )
    for x in tensors:
        if (
            x.ndim != ndim
            or x.shape[0] != batch
            or x.shape[-1] != width
            or x.dtype != patches[0].dtype
        ):
            form = f"({batch}, {width})" if ndim == 2 else f"({batch}, R, {width})"
            raise ShapeError(
                f"{name} is {tuple(x.shape)} {x.dtype}; expected {form} {patches[0].dtype}"
            )
    return tensors


# bytes up to which expanded tensors, whose memory is smaller than they are, are not asked about
_EXPANDED = 1 << 30
_SHARES = 4  # how many times the memory that it has a larger tensor may state


def _check_pickled(state: Any) -> None:
    """Check the state of pickled Tokens, which may come from a file of someone else.

    Raises:
        ShapeError: for other entries, values of another type, or tensors larger than their memory.
        GridError: if the grid does not fit the tensors.
    """
    if not isinstance(state, dict) or {*state} != {field.name for field in fields(Tokens)}:
        content = str(sorted(map(str, state))) if isinstance(state, dict) else type(state).__name__
        raise ShapeError(
            f"pickled Tokens have the state {content[:200]}; expected a dict of their attributes"
        )
    _check_pickled_facts(state)
    sequence = state["sequence"]
    grid = state["grid"]
    if not isinstance(sequence, tuple) or not sequence:
        raise ShapeError(
            f"pickled Tokens have a {type(sequence).__name__} as sequence; expected a tuple of tensors"
        )
    layers = state["layers"]
    if layers is not None and len(layers) != len(sequence):
        raise ShapeError(
            f"pickled Tokens name {len(layers)} layers for {len(sequence)} tensors; expected one each"
        )
    count = state["num_cls"] + state["num_registers"] + grid.rows * grid.cols
    for layer in sequence:
        if not isinstance(layer, Tensor) or layer.ndim != 3:
            raise ShapeError(
                f"pickled Tokens hold a {type(layer).__name__}; expected tensors (B, P + N, C)"
            )
        if min(grid) < 1 or layer.shape[1] != count:
            raise GridError(
                f"pickled Tokens have {layer.shape[1]} tokens and a grid of {grid.rows} rows x "
                f"{grid.cols} cols; these do not fit"
            )
        _check_memory(layer)


def _check_pickled_facts(state: dict[str, Any]) -> None:
    """Check the types of what pickled Tokens state next to their tensors."""
    grid = state["grid"]
    layers = state["layers"]
    patch_pair(state["patch_size"])
    whole = (int, torch.SymInt)  # torch.export traces grids as symbols
    if not isinstance(grid, GridSize) or not all(isinstance(side, whole) for side in grid):
        raise GridError(
            f"pickled Tokens have the grid {str(grid)[:80]}; expected a GridSize of integers"
        )
    if layers is not None and not isinstance(layers, tuple):
        raise ShapeError(
            f"pickled Tokens have a {type(layers).__name__} as layers; expected a tuple or None"
        )
    numbers = {"num_cls": state["num_cls"], "num_registers": state["num_registers"]}
    for i, layer in enumerate(layers or ()):
        numbers[f"layers[{i}]"] = layer
    for name, number in numbers.items():
        if not isinstance(number, int) or number < 0:
            raise ShapeError(
                f"pickled Tokens have {name} {str(number)[:80]!r}; expected an integer of 0 or more"
            )
    for name, kind in (("normed", bool), ("source", str)):
        if not isinstance(state[name], kind | None):
            raise ShapeError(
                f"pickled Tokens have a {type(state[name]).__name__} as {name}; expected "
                f"{kind.__name__} or None"
            )


def _check_memory(layer: Tensor) -> None:
    """Reject large expanded tensors: a small file could expand to unlimited memory."""
    size = layer.numel() * layer.itemsize
    if size <= _EXPANDED or layer.is_meta:
        return
    memory = layer.untyped_storage().nbytes()
    if size > _SHARES * memory:
        raise ShapeError(
            f"pickled Tokens hold a tensor of {size} bytes in {memory} bytes of memory; expected "
            "tensors with values of their own"
        )


Leaves = tuple[dict[str, Any], tuple[Any, ...]]


def _flatten_tokens(tokens: Tokens) -> Leaves:
    """The leaves are the tensors and the two integers of the grid, so that grids may be dynamic."""
    tensors = {f"layer_{i}": x for i, x in enumerate(tokens.sequence)}
    context = (
        tokens.patch_size,
        tokens.num_cls,
        tokens.num_registers,
        tokens.layers,
        tokens.normed,
    )
    return {**tensors, "rows": tokens.grid.rows, "cols": tokens.grid.cols}, context


def _flatten_pyramid(pyramid: FeaturePyramid) -> Leaves:
    maps = {f"level_{level}": level_map for level, level_map in enumerate(pyramid.maps)}
    return maps, pyramid.strides


def _register(
    cls: type, flatten: Callable[[Any], Leaves], restore: Callable[[list[Any], Any], Any]
) -> None:
    """Register ``cls`` with torch's pytrees: ``flatten`` decides which fields are leaves."""

    def with_keys(item: Any) -> tuple[list[tuple[Any, Any]], Any]:
        leaves, context = flatten(item)
        return [(pytree.GetAttrKey(name), leaf) for name, leaf in leaves.items()], context

    def values(item: Any) -> tuple[list[Any], Any]:
        return list(flatten(item)[0].values()), flatten(item)[1]

    pytree.register_pytree_node(
        cls,
        values,
        lambda leaves, context: restore(list(leaves), context),
        serialized_type_name=f"dinoneck.{cls.__name__}",
        to_dumpable_context=list,
        from_dumpable_context=_hashable,
        flatten_with_keys_fn=with_keys,
    )
    # torch 2.6 asks for this before it calls a loaded program; newer ones do without
    register_pytree_flatten_spec(cls, lambda item, _: values(item)[0])


def _hashable(stored: Any) -> Any:
    """Undo JSON: lists become tuples again."""
    return tuple(_hashable(item) for item in stored) if isinstance(stored, list) else stored


_register(
    Tokens,
    _flatten_tokens,
    lambda leaves, context: Tokens(tuple(leaves[:-2]), GridSize(*leaves[-2:]), *context),
)
_register(
    FeaturePyramid, _flatten_pyramid, lambda leaves, context: FeaturePyramid(tuple(leaves), context)
)
