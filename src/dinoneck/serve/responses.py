"""Predictions as JSON: exact numbers; maps as lists or as small images."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import Image

Maps = Literal["none", "lists", "png"]


def as_json(name: str, prediction: dict[str, Any], maps: Maps) -> dict[str, Any]:
    """Return the prediction of one image as JSON values.

    Args:
        name: the file's name, as the client gave it.
        prediction: output of the predictor.
        maps: ``lists``: nested lists (dim, rows, cols), and (rows, cols) for the gate; ``png``: an 8-bit grey image in
            base64 for each output, with the values of black and white.
    """
    values = {key: plain(value) for key, value in prediction.items() if key not in ("maps", "gate")}
    response: dict[str, Any] = {"name": name, "values": values}
    if maps == "none":
        return response
    response["maps"] = {
        key: plain(value) if maps == "lists" else [_png(part) for part in value]
        for key, value in prediction["maps"].items()
    }
    if "gate" in prediction:
        response["gate"] = plain(prediction["gate"]) if maps == "lists" else _png(prediction["gate"])
    return response


def plain(value: Any) -> Any:
    """Return a float, or nested lists of floats, without rounding float32 values."""
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


def _png(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    grey = (values - low) / (high - low) if high > low else np.zeros_like(values)
    file = io.BytesIO()
    Image.fromarray((grey * 255).round().astype(np.uint8)).save(file, format="PNG")
    return {"png": base64.b64encode(file.getvalue()).decode("ascii"), "black": low, "white": high}
