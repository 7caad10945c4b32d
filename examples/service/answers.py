"""A predictor's answer as JSON: numbers that lose no bit, maps as lists or as small pictures."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import Image

Maps = Literal["none", "lists", "png"]


def as_json(name: str, answer: dict[str, Any], maps: Maps) -> dict[str, Any]:
    """Return one photo's answer.

    Args:
        name: the file's name, as the client gave it.
        answer: what the predictor said.
        maps: ``lists``: nested lists (dim, rows, cols), and (rows, cols) for the gate; ``png``: per output an 8-bit
            grey picture in base64, with the values that black and white stand for.
    """
    values = {key: plain(value) for key, value in answer.items() if key not in ("maps", "gate")}
    told: dict[str, Any] = {"name": name, "values": values}
    if maps == "none":
        return told
    told["maps"] = {
        key: plain(value) if maps == "lists" else [_picture(part) for part in value]
        for key, value in answer["maps"].items()
    }
    if "gate" in answer:
        told["gate"] = plain(answer["gate"]) if maps == "lists" else _picture(answer["gate"])
    return told


def plain(value: Any) -> Any:
    """Return a float, or nested lists of floats; float32 values stay what they are."""
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


def _picture(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    grey = (values - low) / (high - low) if high > low else np.zeros_like(values)
    file = io.BytesIO()
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(file, format="PNG")
    return {"png": base64.b64encode(file.getvalue()).decode("ascii"), "black": low, "white": high}
