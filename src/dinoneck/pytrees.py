"""Registers a class with torch's pytrees: which of its parts are leaves, and which are fixed context."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch.fx._pytree import register_pytree_flatten_spec
from torch.utils import _pytree as pytree

T = TypeVar("T")
Context = tuple[Any, ...]


def register(
    cls: type[T],
    flatten: Callable[[T], tuple[dict[str, Any], Context]],
    unflatten: Callable[[list[Any], Context], T],
) -> None:
    """Register ``cls`` so that it passes through ``torch.export``, ``torch.compile`` and tree functions.

    ``torch.export.register_dataclass`` would make every field a leaf; here the caller decides which are.

    Args:
        cls: the class.
        flatten: object -> (name -> leaf, context); the context must be hashable and hold plain values.
        unflatten: (leaves, context) -> object; it must check nothing, since leaves may be stand-ins.
    """

    def flatten_values(item: T) -> tuple[list[Any], Context]:
        leaves, context = flatten(item)
        return list(leaves.values()), context

    def flatten_with_keys(item: T) -> tuple[list[tuple[Any, Any]], Context]:
        leaves, context = flatten(item)
        return [(pytree.GetAttrKey(name), leaf) for name, leaf in leaves.items()], context

    def restore(leaves: Iterable[Any], context: Any) -> T:
        return unflatten(list(leaves), context)

    pytree.register_pytree_node(
        cls,
        flatten_values,
        restore,
        serialized_type_name=f"dinoneck.{cls.__name__}",
        to_dumpable_context=list,
        from_dumpable_context=_hashable,
        flatten_with_keys_fn=flatten_with_keys,
    )
    # torch 2.6 asks for this before it calls a loaded program; newer ones do without
    register_pytree_flatten_spec(cls, lambda item, _: flatten_values(item)[0])


def _hashable(stored: Any) -> Any:
    """Undo JSON: lists become tuples again."""
    return tuple(_hashable(item) for item in stored) if isinstance(stored, list) else stored
