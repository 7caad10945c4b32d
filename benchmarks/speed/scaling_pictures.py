"""Log-log pictures of what ``benchmarks.speed.scaling`` measured, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.speed.scaling_cases import VIT, heads

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vP*"
TITLES = {"ms": "ms per call", "peak_mib": "peak MiB of a call"}


def draw(report: Mapping[str, Any], folder: Path) -> None:
    """Write the four pictures into a folder."""
    axes = report["axes"]
    series = axes["tokens N"]["series"]
    own = set(heads())
    above = {name: row for name, row in series.items() if name not in own}
    below = {name: row for name, row in series.items() if name in own}
    for what, name in (("ms", "scaling_tokens"), ("peak_mib", "scaling_memory")):
        panels = [("necks", "tokens N", above), ("heads", "tokens N", below)]
        figure(panels, what, folder / f"{name}.png")
    rest = [(title, title, axes[title]["series"]) for title in ("layers L", "heads k")]
    figure(rest, "ms", folder / "scaling_layers_heads.png")
    batch = axes["batch B"]["series"]
    parts = ({n: row for n, row in batch.items() if n not in own}, {n: row for n, row in batch.items() if n in own})
    figure([("necks", "batch B", parts[0]), ("heads", "batch B", parts[1])], "ms", folder / "scaling_batch.png")


def figure(panels: Sequence[tuple[str, str, Mapping[str, Any]]], what: str, path: Path) -> None:
    """Panels under each other, each with its legend below and a grey line of slope one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False})
    picture, places = pyplot.subplots(len(panels), 1, figsize=(6.4, 5.9 * len(panels)), constrained_layout=True)
    for place, (title, label, series) in zip(places, panels, strict=True):
        for (name, row), colour, marker in zip(series.items(), COLOURS, MARKERS, strict=False):
            dashes = "--" if name == VIT else "-"
            place.loglog(
                row["x"], row[what], dashes, color=colour, marker=marker, label=name, linewidth=2, markersize=7
            )
        low, high = min(min(row["x"]) for row in series.values()), max(max(row["x"]) for row in series.values())
        top = max(row[what][-1] for name, row in series.items() if name != VIT)
        place.loglog([low, high], [2.5 * top * low / high, 2.5 * top], color="0.6", linewidth=1.5, label="slope 1")
        place.set_title(title)
        place.set_xlabel(label)
        place.set_ylabel(TITLES[what])
        place.grid(True, which="major", color="0.9")
        place.legend(loc="upper center", bbox_to_anchor=(0.45, -0.17), ncols=2, frameon=False, fontsize=12)
    path.parent.mkdir(exist_ok=True)
    picture.savefig(path, dpi=100)
    pyplot.close(picture)
    with Image.open(path) as drawn:
        drawn.convert("RGB").quantize(48).save(path, optimize=True)
