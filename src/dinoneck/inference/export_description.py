"""What an exported model says of itself: enough to run it without dinoneck."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from dinoneck.inference.whole_model import GATE, MAP, Traced
from dinoneck.version import __version__

if TYPE_CHECKING:
    from dinoneck.inference.export_parity import Parity
    from dinoneck.inference.predictor import Predictor

Format = Literal["onnx", "pt2"]
FORMAT = 1


def described(
    predictor: Predictor,
    found: Traced,
    image: str,
    size: tuple[int, int] | None,
    parity: Parity | None,
    form: Format,
) -> dict[str, Any]:
    """Return the JSON-able record ``dinoneck_export``.

    Args:
        predictor: heads, backbone and preparation.
        found: the program.
        image: name of its input.
        size: (height, width) in pixels that was asked for, which photos are to be brought to instead of the heads' own.
        parity: how far the program is from the eager model; None if nobody asked.
        form: of the file.
    """
    sides = found.sides
    return {
        "format": FORMAT,
        "input": {
            "name": image,
            "layout": "NCHW",
            "channels": "RGB",
            "dtype": "float32",
            "range": [0.0, 1.0],
            "normalised_inside": True,
            "patch_size": list(sides.patch),
            "size": None if sides.size is None else list(sides.size),
            "smallest": None if sides.size is not None else [sides.smallest * side for side in sides.patch],
            "batch": "free",
        },
        "preprocess": predictor.preprocess.changed(size=size).record(),
        "outputs": _outputs(predictor, found),
        "parity": None if parity is None else parity.record(),
        "made_with": _versions(form),
    }


def _outputs(predictor: Predictor, found: Traced) -> list[dict[str, Any]]:
    tasks = {task.name: task for task in predictor.tasks}
    rows = []
    for name, (dim, axes) in found.outputs.items():
        task = None if name == GATE else tasks[name.removesuffix(MAP)]
        rows.append(
            {
                "name": name,
                "task": None if task is None else task.name,
                "of": "gate" if task is None else ("map" if name.endswith(MAP) else "task"),
                "kind": None if task is None else task.kind,
                "aggregate": task.aggregate if task is not None and task.kind == "density" else None,
                "unit": "" if task is None else task.unit,
                "labels": [] if task is None else list(task.labels),
                "shape": ["batch", dim, "rows", "cols"][:axes],
            }
        )
    return rows


def _versions(form: Format) -> dict[str, str]:
    packages = ("torch", "timm", *(("onnx", "onnxscript") if form == "onnx" else ()))
    return {"dinoneck": __version__, **{name: metadata.version(name) for name in packages}}
