"""What is no tensor is refused by name, before its missing methods are."""

from __future__ import annotations

from torch import Tensor

from dinoneck.errors import ShapeError


def check_tensor(name: str, value: object) -> None:
    """Refuse arrays, lists and None where a tensor is taken.

    Raises:
        ShapeError: naming the value's type.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} is a {type(value).__name__}; expected a tensor (torch.from_numpy makes one)")
