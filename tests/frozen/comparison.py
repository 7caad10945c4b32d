"""How what a file says and gives today is compared with what was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def differences(recorded: Any, today: Any, where: str = "") -> list[str]:
    """Return what is missing today or has another value, by its place; keys that were added are not named."""
    if isinstance(recorded, dict) and isinstance(today, dict):
        found = []
        for key, value in recorded.items():
            place = f"{where}.{key}" if where else str(key)
            if key in today:
                found += differences(value, today[key], place)
            else:
                found.append(f"{place} is missing")
        return found
    if isinstance(recorded, list) and isinstance(today, list) and len(recorded) == len(today):
        found = []
        for number, (one, other) in enumerate(zip(recorded, today, strict=True)):
            found += differences(one, other, f"{where}[{number}]")
        return found
    if recorded != today or type(recorded) is not type(today):
        return [f"{where} is {today!r}; recorded was {recorded!r}"]
    return []


def assert_same_numbers(
    today: Mapping[str, Tensor], recorded: Mapping[str, Tensor], *, rtol: float, atol: float
) -> None:
    """Assert that there are the recorded tensors, and that their values are close.

    Values of integers and booleans, such as labels and masks, must be equal.
    """
    assert recorded, "nothing was recorded"
    assert sorted(today) == sorted(recorded)
    for name, expected in recorded.items():
        is_float = expected.is_floating_point()
        torch.testing.assert_close(
            today[name],
            expected,
            rtol=rtol if is_float else 0,
            atol=atol if is_float else 0,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
