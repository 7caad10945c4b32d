"""What a million and a billion images take, worked out from what this repository measured.

    python -m benchmarks.speed.cost

Reads benchmarks/results/backbones.json, feature_store.json and pipelines.json; nothing is measured here. GPU figures
are arithmetic under the assumptions named in ``GPU_PEAK`` and ``GPU_SHARE``, and say so. ``python -m
benchmarks.speed --page`` puts the tables into docs/explanation/cost-at-scale.md; a test holds the page to them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.marked import amount, pending, replaced
from benchmarks.speed.pipeline_forms import preprocess_at
from benchmarks.speed.results import RESULTS, stored
from dinoneck.grid import GridSize
from dinoneck.store.encoding import Layout, StoreDtype
from dinoneck.store.writer import SHARD_BYTES

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "cost-at-scale.md"
# assumed: bfloat16 FLOP/s of a large matrix product on an H200; what a ViT gets of it
GPU_PEAK, GPU_SHARE = 790e12, 0.5
MILLION, BILLION = 10**6, 10**9
HOUR = 3600.0
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Vit:
    """Sizes of a ViT, and its work.

    Attributes:
        name: how tables call it.
        channels: C.
        depth: blocks.
        hidden: units of a block's MLP.
        gated: the MLP has a third matrix (SwiGLU).
        patch: pixels.
        prefix: CLS and registers.
    """

    name: str
    channels: int
    depth: int
    hidden: int
    gated: bool = False
    patch: int = 16
    prefix: int = 5

    def flops(self, patches: int) -> float:
        """FLOPs of one view: products with weights, both products of attention, patch embedding."""
        tokens, c = patches + self.prefix, self.channels
        weights = 4 * c * c + (3 if self.gated else 2) * c * self.hidden
        attention = 4.0 * tokens * tokens * c
        return self.depth * (2.0 * tokens * weights + attention) + 2.0 * patches * 3 * self.patch**2 * c


SMALL, HUGE = Vit("ViT-S", 384, 12, 1536), Vit("ViT-H+", 1280, 32, 5120, gated=True)
MODELS = (SMALL, Vit("ViT-B", 768, 12, 3072), Vit("ViT-L", 1024, 24, 4096), HUGE)
SIDES = (224, 480, 960)


@dataclass(frozen=True)
class Plan:
    """What is kept of every image."""

    model: Vit
    side: int
    layers: int = 1
    patterns: int = 1

    @property
    def title(self) -> str:
        """How tables name it."""
        layers = f", {self.layers} layers" if self.layers > 1 else ""
        patterns = f", {self.patterns} patterns" if self.patterns > 1 else ""
        return f"{self.model.name}, {self.side} px{layers}{patterns}"

    @property
    def patches(self) -> int:
        """N of one view."""
        return (self.side // self.model.patch) ** 2

    def bytes(self, dtype: StoreDtype) -> int:
        """Bytes of one image in the store, exactly: records of all patterns."""
        side = self.side // self.model.patch
        layout = Layout(dtype, self.layers, self.model.prefix, self.model.channels, GridSize(side, side))
        return layout.nbytes * self.patterns

    def plain_bytes(self) -> int:
        """Bytes of one image as float32, CLS and patches, as design source 003 keeps them."""
        return 4 * self.patterns * self.layers * (1 + self.patches) * self.model.channels

    def per_shard(self, dtype: StoreDtype) -> int:
        """Images in one shard: it is closed once it holds ``SHARD_BYTES``, and no image is split."""
        return math.ceil(SHARD_BYTES / self.bytes(dtype))


PLANS = (
    Plan(SMALL, 224),
    Plan(SMALL, 480, patterns=4),
    Plan(SMALL, 480, layers=4),
    Plan(HUGE, 960),
    Plan(HUGE, 960, patterns=20),
)
STORED = Plan(HUGE, 960)  # the shape of what feature_store.json and pipelines.json read and wrote


def gpu_rate(model: Vit, patches: int) -> float:
    """Views per second of one GPU, assumed."""
    return GPU_PEAK * GPU_SHARE / model.flops(patches)


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5 or unit == "PB":
            return f"{amount(count)} {unit}"
        count /= 1000
    raise ValueError(count)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def parts_of(results: Results) -> Mapping[str, float]:
    """Measured milliseconds of ViT-S and of photos for it; {} where none are stored, as after a short run."""
    found: Mapping[str, float] = results["pipelines"].get("parts", {}).get("vit_small_patch16_dinov3", {})
    return found


def backbone_cpu(results: Results) -> str:
    """Measured: thread-hours = images / (images/s) / 3600; GFLOP/s = FLOPs x images/s."""
    if not (parts := parts_of(results)):
        return pending("benchmarks.speed.pipelines")
    rows = []
    for dtype in ("float32", "bfloat16"):
        whole = results["backbones"]["results"][f"{dtype}, 1 layer (11)"]["dinoneck, timm"]["images_per_s"]
        early = results["backbones"]["results"][f"{dtype}, early layers (2, 5)"]["dinoneck, timm"]["images_per_s"]
        part = 1e3 / parts[f"backbone, {dtype}"]
        for title, rate, patches, depth in (
            (f"224 × 224 px, {dtype}", part, 196, 12),
            (f"224 × 448 px, {dtype}", whole, 392, 12),
            (f"224 × 448 px, {dtype}, blocks 0 … 5 only", early, 392, 6),
        ):
            work = replace(SMALL, depth=depth).flops(patches) * rate / 1e9
            hours = MILLION / rate / HOUR
            rows.append([title, amount(rate), amount(work), amount(hours), amount(1000 * hours)])
    return table(["ViT-S, one thread", "views / s", "GFLOP / s", "thread-hours, 10⁶ views", "10⁹ views"], rows)


def backbone_gpu(results: Results) -> str:
    """Assumed: GPU-hours = images x FLOPs / (GPU_PEAK x GPU_SHARE) / 3600."""
    rows = []
    for model in MODELS:
        for side in SIDES:
            patches = (side // model.patch) ** 2
            rate = gpu_rate(model, patches)
            hours = MILLION / rate / HOUR
            rows.append(
                [
                    f"{model.name}, {side} px",
                    f"{patches}",
                    amount(model.flops(patches) / 1e9),
                    amount(rate),
                    amount(hours),
                    amount(1000 * hours),
                ]
            )
    head = ["model and size", "patches", "GFLOP per view", "views / s (assumed)"]
    return table([*head, "GPU-hours, 10⁶ views (assumed)", "10⁹ views (assumed)"], rows)


def storage(results: Results) -> str:
    """Exact: bytes = patterns x record of the layout; npz = float32 bytes / measured compression."""
    found = results["feature_store"]["size"]["npz, compressed float32"]["MiB"]
    shrink = STORED.plain_bytes() / (found * 2**20)
    rows = []
    for plan in PLANS:
        half, eight = plan.bytes("fp16"), plan.bytes("int8")
        rows.append(
            [
                plan.title,
                size(plan.plain_bytes() / shrink),
                size(half),
                size(eight),
                size(half * MILLION),
                size(eight * MILLION),
                size(half * BILLION),
                size(eight * BILLION),
            ]
        )
    head = ["kept of every image", "compressed float32 npz", "fp16", "int8", "10⁶, fp16", "10⁶, int8"]
    return table([*head, "10⁹, fp16", "10⁹, int8"], rows)


def kept(results: Results) -> str:
    """Exact: tokens x channels x bytes of a value, one layer, one pattern, ViT-H+ at 960 px."""
    plan, rows = STORED, []
    width = plan.model.channels
    for title, tokens in (
        (f"the whole sequence, {plan.patches + plan.model.prefix} tokens (what a store keeps)", None),
        ("mean over 2 × 2 patches and prefix (not a store)", plan.patches // 4 + plan.model.prefix),
        ("CLS and registers (not a store)", plan.model.prefix),
        ("CLS alone (not a store)", 1),
    ):
        count = plan.bytes("fp16") if tokens is None else 2 * tokens * width
        rows.append([title, size(count), size(count * MILLION), size(count * BILLION)])
    return table(["kept, ViT-H+, 960 px, fp16", "per view", "10⁶", "10⁹"], rows)


def shards(results: Results) -> str:
    """Exact: images per shard = ceil(64 MiB / bytes of an image); shards = ceil(images / that), plus one per writer."""
    rows = []
    for plan in PLANS:
        row = [plan.title]
        for dtype in ("fp16", "int8"):
            per: int = plan.per_shard(dtype)
            row += [f"{per}", size(per * plan.bytes(dtype)), amount(math.ceil(MILLION / per))]
            row.append(amount(math.ceil(BILLION / per)))
        rows.append(row)
    head = ["kept of every image"]
    for dtype in ("fp16", "int8"):
        head += [f"images per shard, {dtype}", "a shard", "shards, 10⁶", "10⁹"]
    return table(head, rows)


def index(results: Results) -> str:
    """Measured: bytes of a line, time to read it when a store is opened, memory of an entry; times the images."""
    if "index" not in results["pipelines"]:
        return pending("benchmarks.speed.pipelines --stages stores")
    row = results["pipelines"]["index"]["4 patterns"]
    rows = [
        [
            f"{name} images in one store",
            size(count * row["line_bytes"]),
            f"{amount(count * row['parse_us'] / 1e6)} s",
            size(count * row["memory_bytes"]),
        ]
        for name, count in (("10⁵", 10**5), ("10⁶", MILLION), ("10⁹", BILLION))
    ]
    return table(["", "index on disk", "one thread opens it in", "its entries in memory"], rows)


def files(results: Results) -> str:
    """From measured bytes/s of one thread: thread-hours = images x bytes / rate / 3600."""
    pipes, store = results["pipelines"], results["feature_store"]
    if "writing" not in pipes:
        return pending("benchmarks.speed.pipelines --stages stores")
    rows = []
    for plan in PLANS:
        row = [plan.title]
        for dtype in ("fp16", "int8"):
            kinds: StoreDtype = "fp16" if dtype == "fp16" else "int8"
            views = plan.bytes(kinds) / STORED.bytes(kinds)  # in units of what was measured
            write = views * pipes["writing"][f"{dtype} store"]["ms"] / 1e3
            pattern = views / plan.patterns
            read = pattern / store["loader, 0 workers"][f"{dtype} store, as stored"]["per_s"]
            step = pattern / pipes["training from files"][f"{dtype} store, 0 workers"]["per_s"]
            row += [amount(MILLION * seconds / HOUR) for seconds in (write, read, step)]
        rows.append(row)
    head = ["10⁶ images, thread-hours"]
    for dtype in ("fp16", "int8"):
        head += [f"encode and write, {dtype}", "read one pattern", "read and train a gate head"]
    return table(head, rows)


def photos(results: Results) -> str:
    """Measured ms per photo, by size; threads per GPU = assumed views/s of the GPU / views of a photo x these."""
    if not (parts := parts_of(results)):
        return pending("benchmarks.speed.pipelines")
    rows = []
    for side in SIDES:
        hours = MILLION * parts[preprocess_at(side)] / 1e3 / HOUR
        rows.append(
            [
                f"decode, resize, normalise to {side} × {side} px",
                f"{amount(hours)} thread-hours for 10⁶ photos, {amount(1000 * hours)} for 10⁹",
                f"measured, {results['pipelines']['setting']['kind']}",
            ]
        )
    for plan in (PLANS[0], PLANS[1], PLANS[3], PLANS[4]):
        rate = gpu_rate(plan.model, plan.patches) / plan.patterns
        took = parts[preprocess_at(plan.side)]
        rows.append(
            [
                f"threads that keep one GPU busy: {plan.title}",
                f"{amount(rate * took / 1e3)} threads",
                f"assumed {amount(rate)} photos / s per GPU",
            ]
        )
    return table(["", "", "from"], rows)


def cluster(results: Results) -> str:
    """Assumed: hours = GPU-hours / GPUs; write rate = assumed views/s x bytes of a view, fp16, per GPU."""
    rows = []
    for plan in PLANS:
        rate = gpu_rate(plan.model, plan.patches)
        view = plan.bytes("fp16") / plan.patterns
        hours = plan.patterns * MILLION / rate / HOUR
        rows.append(
            [
                plan.title,
                amount(hours),
                amount(1000 * hours),
                amount(1000 * hours / 64),
                size(rate * view) + "/s",
                size(64 * rate * view) + "/s",
            ]
        )
    head = ["kept of every image", "GPU-hours, 10⁶", "10⁹", "hours, 10⁹ on 64 GPUs", "writes per GPU, fp16"]
    return table([*head, "writes of 64 GPUs"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "backbone-cpu": backbone_cpu,
    "backbone-gpu": backbone_gpu,
    "storage": storage,
    "kept": kept,
    "shards": shards,
    "index": index,
    "files": files,
    "photos": photos,
    "cluster": cluster,
}


def measured() -> dict[str, Any]:
    """The stored results; {} for what is not."""
    return {name: stored(RESULTS, name) or {} for name in ("backbones", "feature_store", "pipelines")}


def filled(text: str, results: Results) -> str:
    """The page with every table as it is now."""
    for name, make in TABLES.items():
        text = replaced(text, name, make(results))
    return text


def write() -> None:
    """Write the page of the docs."""
    PAGE.write_text(filled(PAGE.read_text(), measured()))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, make in TABLES.items():
        print(f"**{name}**: {make.__doc__}\n\n{make(measured())}\n")


if __name__ == "__main__":
    main()
