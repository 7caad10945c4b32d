"""Whole pipelines: photo file to prediction, training from files, heads that share a pass, and what the parts take.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.pipelines [--data DATA] [--photos 8] [--rounds 7] [--short]
                                                         [--stages predictions heads passes parts stores] [--out FOLDER]
                                                         [--device cpu]

Photo to prediction: design source 003's scripts (batch 1, float32, all blocks, one forward per view; without files,
as its inference is, and through the compressed npz files of its extraction), timm as a careful user calls it, and the
Predictor: one backbone, the same five heads, four views; predictions are first checked equal. ``DATA`` is a folder of
photos; without one (and without ../shared/data/crop_cover) pasture photos are drawn. Times are CPU time of the
process on one thread: waiting for a disk does not count; with --device cuda backbone and heads are there, and times
are those of the wall clock. Variants take turns; quoted are medians over rounds.
``--photos 4 --rounds 5`` takes about half as long as the default. Stages that are left out stay as stored, if they
are of the same machine and setting. Writes benchmarks/results/pipelines.json, .md; on CUDA pipelines_cuda.json, .md.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks import devices
from benchmarks.speed import pipeline_stores
from benchmarks.speed.marked import pending, replaced
from benchmarks.speed.pipeline_forms import PlainHead, Work, careful, ours, preprocess_at, read, resized, source
from benchmarks.speed.results import RESULTS, save, stored, versions_of
from benchmarks.timing import machine, ratios, turns
from dinoneck import HeadEnsemble
from dinoneck.data import Pasture

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "whole-pipelines.md"
REAL = Path(__file__).parents[3] / "shared" / "data" / "crop_cover" / "images"
PEER, LIVE, TIMM = "design source 003, through npz", "design source 003, without files", "timm, batched"
TOGETHER = 2
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
SIZE = (224, 224)
SIDES = (224, 480, 960)
STAGES = ("predictions", "heads", "passes", "parts", "stores")
SMALL, TINY = "vit_small_patch16_dinov3", "dinoneck_tiny"
SETTINGS = {
    f"{SMALL}, last block": Work(SMALL, 11, SIZE),
    f"{SMALL}, block 8 of 12": Work(SMALL, 7, SIZE),
    f"{TINY}, last block": Work(TINY, 5, SIZE),
    f"{TINY}, block 4 of 6": Work(TINY, 3, SIZE),
}
Run = Callable[[], Any]
Rows = dict[str, dict[str, Any]]


def photos(folder: Path | None, count: int, drawn: Path) -> tuple[list[Path], str]:
    """The files that are predicted, and what they are."""
    folder = folder or (REAL if REAL.is_dir() else None)
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
        if len(found) == count:
            with Image.open(found[0]) as first:
                return found, f"real photos, {first.width}×{first.height} {first.format}"
    for i in range(count):
        Image.fromarray(Pasture(seed=0, size=(352, 480)).sample(i).image).save(drawn / f"{i:04d}.jpg", quality=90)
    return sorted(drawn.iterdir()), "generated photos, 480×352 JPEG"


def forms(work: Work, files: Path) -> dict[str, Callable[[Sequence[Path]], Tensor]]:
    """Every way to the predictions."""
    full, half = work.load(torch.float32), work.load(torch.bfloat16)
    heads = work.heads(full.embed_dim, full.patch_size)
    plain = [PlainHead(head) for head in heads]
    stops = {} if work.layer == full.depth - 1 else {f"{TIMM}, stop_early": careful(work, full, plain, stop_early=True)}
    return {
        PEER: source(work, full, plain, files),
        LIVE: source(work, full, plain, None),
        TIMM: careful(work, full, plain, stop_early=False),
        **stops,
        f"{[TIMM, *stops][-1]}, bfloat16": careful(work, half, plain, stop_early=True),
        "Predictor": ours(work, full, heads),
        "Predictor, batch_size=2": ours(work, full, heads, batch=2),
        "Predictor, bfloat16": ours(work, half, heads),
        "Predictor, bfloat16, batch_size=2": ours(work, half, heads, batch=2),
    }


def predictions(work: Work, paths: Sequence[Path], rounds: int) -> Rows:
    """Images per second from file to prediction, after the check that all predict the same."""
    with tempfile.TemporaryDirectory() as folder:
        runs = forms(work, Path(folder))
        truth, errors = None, {}
        for name, run in runs.items():
            said = run(paths).double()
            truth = said if truth is None else truth
            errors[name] = float((said - truth).norm() / truth.norm())
            bound = BOUNDS["bfloat16" if "bfloat16" in name else "float32"]
            if not errors[name] <= bound:
                raise SystemExit(f"{name} differs by {errors[name]:.1e}, at most {bound:.0e} is due")
        calls: dict[str, Run] = {name: lambda run=run: run(paths) for name, run in runs.items()}
        seconds = turns(calls, rounds=rounds, warmup=1, clock=devices.clock(work.device))
    rows, live, beside = (ratios(seconds, peer) for peer in (PEER, LIVE, TIMM))
    return {
        name: {
            **row, "live_ratio": live[name]["ratio"], "timm_ratio": beside[name]["ratio"],
            "per_s": 1e3 * len(paths) / row["ms"], "error": errors[name],
        }
        for name, row in rows.items()
    }  # fmt: skip


def shared_pass(name: str, counts: Sequence[int], paths: Sequence[Path], rounds: int, device: str) -> dict[str, Rows]:
    """Time k heads on one pass beside k passes of one head, one view per photo."""
    report = {}
    for count in counts:
        work = Work(name, 11 if name == SMALL else 5, SIZE, folds=count, flips=((),), device=device)
        backbone = work.load(torch.float32)
        heads = work.heads(backbone.embed_dim, backbone.patch_size)
        single = [ours(work, backbone, [head]) for head in heads]
        together = ours(work, backbone, heads)
        plain = careful(work, backbone, [PlainHead(head) for head in heads], stop_early=True)

        def one_by_one(single: list[Any] = single) -> Tensor:
            return torch.stack([run(paths) for run in single]).mean(dim=0)

        truth = one_by_one()
        for run in (together, plain):
            torch.testing.assert_close(run(paths).double(), truth.double(), rtol=1e-5, atol=1e-6)
        peer = "k passes, a Predictor per head"
        calls: dict[str, Run] = {
            peer: one_by_one,
            "one pass, a loop over plain heads": lambda run=plain: run(paths),
            "one pass, one Predictor": lambda run=together: run(paths),
        }
        seconds = turns(calls, rounds=rounds, warmup=1, clock=devices.clock(device))
        found = ratios(seconds, peer)
        report[f"{name}, {count} head{'s' if count > 1 else ''}"] = {
            variant: {**row, "per_s": 1e3 * len(paths) / row["ms"]} for variant, row in found.items()
        }
    return report


def parts(work: Work, paths: Sequence[Path], rounds: int) -> dict[str, float]:
    """Milliseconds of the parts: per photo for files, per view for backbone and heads."""
    backbone, half = work.load(torch.float32), work.load(torch.bfloat16)
    heads = work.heads(backbone.embed_dim, backbone.patch_size)
    together = HeadEnsemble.from_heads(heads).eval()
    recipe = backbone.preprocess.changed(size=work.size)
    images = recipe([str(path) for path in paths]).to(work.device)
    tokens = backbone(images)
    count, wait = len(paths), devices.waiting(work.device)

    def opened(side: int) -> Run:
        own = backbone.preprocess.changed(size=(side, side))
        return lambda: own([str(path) for path in paths])

    runs: dict[str, Run] = {
        "decode (PIL)": lambda: [read(path) for path in paths],
        "decode and resize, plain": lambda: [resized(read(path), work.size) for path in paths],
        **{preprocess_at(side): opened(side) for side in SIDES},
        "backbone, float32": lambda: backbone(images),
        "backbone, bfloat16": lambda: half(images),
        f"{len(heads)} heads": lambda: together.predict(tokens),
    }
    finished = {name: _finished(run, wait) for name, run in runs.items()}
    with torch.inference_mode():
        seconds = turns(finished, rounds=rounds, warmup=1, clock=devices.clock(work.device))
    return {name: 1e3 * statistics.median(each) / count for name, each in seconds.items()}


def _finished(run: Run, wait: Callable[[], None]) -> Run:
    """What runs and waits for the device."""

    def call() -> None:
        run()
        wait()

    return call


def faults() -> int:
    """Return how many page faults of this process needed no disk so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def passes(name: str, counts: Sequence[int], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Milliseconds and page faults per image of the backbone by how many images go through it at once."""
    backbone = Work(name, 11 if name == SMALL else 5, SIZE, device=device).load(torch.float32)
    images = torch.randn(max(counts), 3, *SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    clock, wait = devices.clock(device), devices.waiting(device)
    found: dict[str, tuple[list[float], list[float]]] = {f"{count} images": ([], []) for count in counts}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for count, (seconds, missed) in zip(counts, found.values(), strict=True):
                before, begin = faults(), clock()
                backbone(images[:count])
                wait()
                if turn:
                    seconds.append((clock() - begin) / count)
                    missed.append((faults() - before) / count)
    return {
        title: {"ms": 1e3 * statistics.median(seconds), "faults": statistics.median(missed)}
        for title, (seconds, missed) in found.items()
    }


def markdown(report: Mapping[str, Any]) -> str:
    """All tables of the stages that ran."""
    lines: list[str] = []
    columns = (
        "| variant | photos / s | × source 003 through npz (quartiles) | × source 003 without files | × timm, batched "
        "| difference |"
    )
    for title, rows in report.get("photo to prediction", {}).items():
        lines += [f"**{title}**", "", columns, "|---" * 6 + "|"]
        lines += [
            f"| {name} | {row['per_s']:.2f} | {row['ratio']:.2f} ({row['ratio_q1']:.2f} … {row['ratio_q3']:.2f}) "
            f"| {row['live_ratio']:.2f} | {row['timm_ratio']:.2f} | {row['error']:.0e} |"
            for name, row in rows.items()
        ]
        lines.append("")
    if heads := report.get("heads on one pass"):
        lines += [f"**Heads on one pass** ({TOGETHER} photos, one view; photos / s, × k passes)", ""]
        lines += ["| | " + " | ".join(next(iter(heads.values()))) + " |", "|---" * 4 + "|"]
        for title, rows in heads.items():
            cells = [f"{row['per_s']:.2f}, {row['ratio']:.2f} ×" for row in rows.values()]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines.append("")
    for name, found in report.get("passes", {}).items():
        lines += [f"**Images in one pass of the backbone** ({name}, float32)", ""]
        lines += ["| in one pass | ms per image | images / s | page faults per image |", "|---|---|---|---|"]
        lines += [
            f"| {title} | {row['ms']:.2f} | {1e3 / row['ms']:.1f} | {row['faults']:.0f} |"
            for title, row in found.items()
        ]
        lines.append("")
    if shares := report.get("parts"):
        lines += ["**Parts** (ms per photo or view)", "", "| | " + " | ".join(shares) + " |"]
        lines.append("|---" * (1 + len(shares)) + "|")
        for name in next(iter(shares.values())):
            lines.append(f"| {name} | " + " | ".join(f"{own[name]:.2f}" for own in shares.values()) + " |")
    if pipeline_stores.TRAINING in report:
        lines += pipeline_stores.tables(report)
    return "\n".join(lines) + "\n"


def page(report: Mapping[str, Any]) -> str:
    """The whole .md file."""
    shown, setting = report["machine"], report["setting"]
    head = (
        f"Measured on {shown.get('gpu', shown['cpu'])}, {shown['cores']} thread(s), "
        f"{'wall clock' if 'gpu' in shown else 'CPU time'}, {versions_of(shown)}; {setting['photos']} "
        f"{setting['kind']}, images of {SIZE[0]}×{SIZE[1]} px, {setting['rounds']} rounds"
        f"{', small settings only' if setting['short'] else ''}; `python -m benchmarks.speed.pipelines`.\n\n"
    )
    return head + markdown(report)


def filled(text: str, report: Mapping[str, Any] | None) -> str:
    """The page of the docs with what is stored."""
    return replaced(text, "pipelines", pending("benchmarks.speed.pipelines") if report is None else page(report))


def write() -> None:
    """Write the page of the docs."""
    PAGE.write_text(filled(PAGE.read_text(), stored(RESULTS, "pipelines")))


def continued(old: Mapping[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored, to be measured in part again.

    Raises:
        SystemExit: if it is of another machine or setting, which one page must not mix.
    """
    if old is None:
        return new
    for what, here in new.items():
        if old[what] != here:
            raise SystemExit(f"stored results are of {old[what]}, these of {here}: run all stages, or choose an --out")
    return dict(old)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photos")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="the small settings only")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="others stay as stored")
    parser.add_argument("--device", default="cpu", help="of backbone and heads")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    devices.no_tf32()
    rounds, device = options.rounds, options.device
    settings = {name: replace(work, device=device) for name, work in SETTINGS.items()}
    chosen = {name: work for name, work in settings.items() if not options.short or work.backbone == TINY}
    names = [TINY] if options.short else [TINY, SMALL]
    stem = devices.stem("pipelines", device)
    with tempfile.TemporaryDirectory() as folder:
        paths, kind = photos(options.data, options.photos, Path(folder))
        setting = {"photos": len(paths), "kind": kind, "size": list(SIZE), "rounds": rounds, "short": options.short}
        report: dict[str, Any] = {"machine": machine(device), "setting": setting}
        if set(options.stages) != set(STAGES):
            report = continued(stored(options.out, stem), report)
        if "predictions" in options.stages:
            report["photo to prediction"] = {title: predictions(w, paths, rounds) for title, w in chosen.items()}
        if "heads" in options.stages:
            report["heads on one pass"] = {}
            for name in names:
                report["heads on one pass"] |= shared_pass(name, (1, 5, 25), paths[:TOGETHER], rounds, device)
        if "passes" in options.stages:
            report["passes"] = {names[-1]: passes(names[-1], (2, 8, 16, 32), rounds, device)}
        if "parts" in options.stages:
            report["parts"] = {n: parts(settings[f"{n}, last block"], paths, rounds) for n in names}
    if "stores" in options.stages:
        report |= pipeline_stores.measure(options.short, rounds, device)
    save(report, options.out, stem, page(report))
    print(page(report))


if __name__ == "__main__":
    main()
