"""Time and peak memory of necks and heads against tokens, layers, batch and number of heads.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scaling [--rounds 7] [--short] [--axes NAME ...]
                                                       [--device cpu] [--out FOLDER]

One CPU thread, float32, eval mode without autograd, tokens of 192 channels, necks of 32. Each series gets an
exponent, the slope of a least-squares line on log-log axes, and the largest factor by which a point is off that line,
from the point on where small sizes end. It is straight where that exponent lies in 0.9 ... 1.1 and no point is off by
more than 1.25. A fixed cost bends it: so there is also the fit a + b x to all points (relative least squares), with
the same factor. What is neither is named, with the steps that are too steep and the share of them that page faults
explain. Every point is measured in every round. ``--short`` leaves out the last point of every axis, which takes most
of the time. With --device cuda modules and tokens are there, times are those of the wall clock, and page faults are
not counted. Writes benchmarks/results/scaling.json, .md and docs/images/scaling_*.png; on CUDA scaling_cuda.json, .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import devices
from benchmarks.backbones import peak_mib
from benchmarks.speed.marked import amount, pending, replaced
from benchmarks.speed.results import RESULTS, stored, versions_of
from benchmarks.speed.scaling_cases import AXES, Axis
from benchmarks.timing import machine

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "scaling.md"
IMAGES = PAGE.parents[1] / "images"
PICTURES = {
    "scaling_tokens": "Milliseconds of necks and heads against tokens",
    "scaling_memory": "Peak memory against tokens",
    "scaling_layers_heads": "Milliseconds against layers, and against heads",
    "scaling_batch": "Milliseconds against the batch",
}
STRAIGHT, OFF = (0.9, 1.1), 1.25
SHORTEST_S = 5e-3
LONG_S = 1.0
FEWEST = 3  # points of a fit: with two, no point can be off
Series = dict[str, list[float]]


def fit(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Slope of the least-squares line through log y over log x, and the largest factor by which a point is off it."""
    x, y = np.log(np.asarray(xs, float)), np.log(np.asarray(ys, float))
    slope, shift = np.polyfit(x, y, 1)
    return float(slope), float(np.exp(np.abs(y - (slope * x + shift)).max()))


def affine(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float]:
    """The fixed part a and slope b of y = a + b x by relative least squares (a >= 0), and the largest factor off."""
    x, y = np.asarray(xs, float), np.asarray(ys, float)
    fixed, slope = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y), rcond=None)[0]
    if fixed < 0:
        fixed, slope = 0.0, (x / y).sum() / ((x / y) ** 2).sum()
    ratio = (fixed + slope * x) / y
    return float(fixed), float(slope), float(np.maximum(ratio, 1 / ratio).max())


def faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def fault_us() -> float:
    """CPU microseconds that one page fault takes here: fresh memory filled, less the same memory filled again."""
    took, count = [], 0
    for _ in range(5):
        fresh = torch.empty(64 << 20, dtype=torch.uint8)
        before, begin = faults(), time.process_time()
        fresh.fill_(1)
        middle = time.process_time()
        count = faults() - before
        fresh.fill_(2)
        took.append(((middle - begin) - (time.process_time() - middle)) / max(1, count))
    return 1e6 * statistics.median(took)


def measure(axis: Axis, points: Sequence[int], rounds: int, device: str = "cpu") -> dict[str, Series]:
    """Series by name: x, median ms of a call, peak MiB, page faults of a call. All points take turns."""
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    clock, wait = devices.clock(device), devices.waiting(device)
    for x in points:
        calls |= {(name, x): call for name, call in axis.calls(x, device).items()}
    found: dict[str, Series] = {}
    once: dict[tuple[str, int], float] = {}
    with torch.inference_mode():
        for key, call in calls.items():
            for _ in range(2):
                begin = clock()
                call()
                wait()
                once[key] = max(1e-6, clock() - begin)
                if once[key] > LONG_S:
                    break
        seconds: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        missed: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        for _ in range(rounds):
            for key, call in calls.items():
                repeats = max(1, int(SHORTEST_S / once[key]))
                before, begin = faults(), clock()
                for _ in range(repeats):
                    call()
                wait()
                seconds[key].append((clock() - begin) / repeats)
                missed[key].append((faults() - before) / repeats)
        for (name, x), call in calls.items():
            series = found.setdefault(name, {"x": [], "ms": [], "peak_mib": [], "faults": []})
            series["x"].append(x)
            series["ms"].append(1e3 * statistics.median(seconds[name, x]))
            series["peak_mib"].append(peak_mib(lambda call=call: [call()], device))
            series["faults"].append(statistics.median(missed[name, x]))
    return found


def judged(series: Mapping[str, list[float]], start: float) -> dict[str, Any]:
    """The fits of a series from ``start`` on, or to its last three points, and of a fixed cost and a slope to all."""
    chosen = [i for i, x in enumerate(series["x"]) if x >= start]
    if len(chosen) < FEWEST:
        chosen = list(range(len(series["x"])))[-FEWEST:]
    verdict: dict[str, Any] = {"from": series["x"][chosen[0]]}
    for what in ("ms", "peak_mib"):
        exponent, off = fit([series["x"][i] for i in chosen], [series[what][i] for i in chosen])
        fixed, slope, affine_off = affine(series["x"], series[what])
        verdict[what] = {"exponent": exponent, "off": off, "fixed": fixed, "slope": slope, "affine_off": affine_off}
        verdict[what]["straight"] = STRAIGHT[0] <= exponent <= STRAIGHT[1] and off <= OFF
        verdict[what]["linear"] = affine_off <= OFF
    return verdict


def word(verdict: Mapping[str, Any]) -> str:
    """How a table says it."""
    if verdict["straight"]:
        return "straight"
    if verdict["linear"]:
        return "a fixed cost, then straight"
    if verdict["exponent"] < 1:
        return "no: less than in proportion"
    return "**no: more than in proportion**"


def peaks(series: Mapping[str, list[float]], us: float) -> list[dict[str, float]]:
    """Steps from one point to the next in which time grows by more than 1.25 times as much as x.

    ``by_faults`` is the share of that excess which page faults explain: their number times what one takes. Memory
    that one call gives back to the system, as large pieces are, comes back page by page in the next.
    """
    found = []
    for i in range(1, len(series["x"])):
        times, grown = series["x"][i] / series["x"][i - 1], series["ms"][i] / series["ms"][i - 1]
        if grown > OFF * times:
            excess = series["ms"][i] - times * series["ms"][i - 1]
            paid = (series["faults"][i] - times * series["faults"][i - 1]) * us * 1e-3
            found.append({"x": series["x"][i], "excess": grown / times, "by_faults": paid / excess})
    return found


def judge(report: dict[str, Any]) -> None:
    """Add fits and steps to every axis."""
    for part in report["axes"].values():
        part["fits"] = {name: judged(own, part["from"]) for name, own in part["series"].items()}
        part["peaks"] = {name: peaks(own, report["fault_us"]) for name, own in part["series"].items()}


def markdown(report: Mapping[str, Any]) -> str:
    """One table per axis."""
    lines: list[str] = []
    for title, part in report["axes"].items():
        xs = next(iter(part["series"].values()))["x"]
        lines += [f"**Against {title}** ({part['setting']}; {xs[0]:.0f} … {xs[-1]:.0f}, fits from {part['from']:g} on)"]
        first, last = f"{xs[0]:.0f}", f"{xs[-1]:.0f}"
        lines += ["", f"| | ms at {first} … {last} | exponent | off by | a + b x | off by | time: a line? "]
        lines[-1] += f"| MiB at {last} | exponent | memory: a line? |"
        lines.append("|---" * 10 + "|")
        for name, series in part["series"].items():
            ms, mib = part["fits"][name]["ms"], part["fits"][name]["peak_mib"]
            size, reach = amount(series["peak_mib"][-1]), series["x"][-1]
            stop = "" if reach == xs[-1] else f" (at {reach:.0f})"
            begin = part["fits"][name]["from"]
            lower = f" (from {begin:.0f})" if begin < part["from"] else ""
            cells = [name, f"{amount(series['ms'][0])} … {amount(series['ms'][-1])}{stop}"]
            cells += [f"{ms['exponent']:.2f}{lower}", f"{ms['off']:.2f}"]
            cells += [f"{ms['fixed']:.2f} ms + {amount(1e3 * ms['slope'])} µs", f"{ms['affine_off']:.2f}", word(ms)]
            cells += [f"{size}{stop}", f"{mib['exponent']:.2f}{lower}", word(mib)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += ["**Steps steeper than the line** (page faults: share of the excess that they explain)", ""]
    lines += ["| axis | module | at | time grows more than the axis by | page faults explain |", "|---" * 5 + "|"]
    for title, part in report["axes"].items():
        for name, steps in part["peaks"].items():
            lines += [
                f"| {title} | {name} | {step['x']:.0f} | {step['excess']:.2f} × | {100 * step['by_faults']:.0f} % |"
                for step in steps
            ]
    return "\n".join(lines) + "\n"


def page(report: Mapping[str, Any]) -> str:
    """The whole .md file."""
    shown = report["machine"]
    head = (
        f"Measured on {shown.get('gpu', shown['cpu'])}, {shown['cores']} thread(s), "
        f"{'wall clock' if 'gpu' in shown else 'CPU time'}, {versions_of(shown)}; {report['rounds']} "
        f"rounds, one page fault {report['fault_us']:.2f} µs; `python -m benchmarks.speed.scaling`.\n\n"
    )
    return head + markdown(report)


def filled(text: str, report: Mapping[str, Any] | None) -> str:
    """The page of the docs with what is stored: tables, and pictures as far as they were drawn."""
    if report is None:
        return replaced(text, "scaling", pending("benchmarks.speed.scaling"))
    drawn = [(name, words) for name, words in PICTURES.items() if (IMAGES / f"{name}.png").exists()]
    return replaced(text, "scaling", "\n\n".join([page(report), *(f"![{w}](../images/{n}.png)" for n, w in drawn)]))


def write() -> None:
    """Write the page of the docs."""
    PAGE.write_text(filled(PAGE.read_text(), stored(RESULTS, "scaling")))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="without the last point of every axis")
    parser.add_argument("--axes", nargs="+", help="parts of axes' names; the others stay as they are stored")
    parser.add_argument("--no-pictures", action="store_true")
    parser.add_argument("--pictures-only", action="store_true", help="draw what is stored")
    parser.add_argument("--device", default="cpu", help="of modules and tokens")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    devices.no_tf32()
    stem, here = devices.stem("scaling", options.device), machine(options.device)
    target = options.out / f"{stem}.json"
    if options.pictures_only or (options.axes and target.exists()):
        report = json.loads(target.read_text())
        if options.axes and (report["machine"], report["rounds"]) != (here, options.rounds):
            raise SystemExit(f"stored are {report['rounds']} rounds on {report['machine']}: measure all axes, or --out")
    else:
        report = {"machine": here, "rounds": options.rounds, "axes": {}}
    for axis in () if options.pictures_only else AXES:
        if options.axes and not any(part in axis.title for part in options.axes):
            continue
        series = measure(axis, axis.points[:-1] if options.short else axis.points, options.rounds, options.device)
        report["axes"][axis.title] = {"setting": axis.setting, "from": axis.start, "series": series}
        report["fault_us"] = 0.0 if devices.is_gpu(options.device) else fault_us()
        judge(report)
        options.out.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{stem}.md").write_text(page(report))
    print(page(report))
    if (
        not options.no_pictures
        and not devices.is_gpu(options.device)
        and all(axis.title in report["axes"] for axis in AXES)
    ):
        from benchmarks.speed.scaling_pictures import draw

        draw(report, IMAGES if options.out == RESULTS else options.out)


if __name__ == "__main__":
    main()
