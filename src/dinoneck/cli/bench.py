"""``dinoneck bench``: how long an image takes here, part by part."""

from __future__ import annotations

import copy
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import Count, HeadBackbone, whole
from dinoneck.cli.text import show, table
from dinoneck.errors import ConfigError
from dinoneck.training.config import BackboneConfig
from dinoneck.training.config_flags import SIZE
from dinoneck.version import versions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dinoneck.backbones.backbone import Backbone
    from dinoneck.data.preprocessing import Preprocessing

    Parts = tuple[Backbone, nn.Module | None, Preprocessing]

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_LARGER = 2
_MB = 1 << 20
_BLOTCH = 24  # pixels of a generated image
Key = tuple[str, int]  # dtype and batch size


class Pipeline(NamedTuple):
    """One batch of image files on its way to predictions; the head may be a neck, or None."""

    images: Sequence[Path]
    preprocess: Preprocessing
    backbone: Backbone
    head: nn.Module | None = None


def bench(
    head: Annotated[str | None, Positional] = None,
    revision: str | None = None,
    backbone: Annotated[BackboneConfig, arg(name="")] = BackboneConfig(),
    neck: str | None = None,
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    image: Path | None = None,
    batch_size: tuple[Count, ...] = (1,),
    dtype: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32",),
    rounds: Annotated[int, whole(2)] = 7,
    device: str | None = None,
) -> dict[str, Any]:
    """Time a head, or a backbone alone or with a neck, on this machine.

    The times are medians over the rounds after a warm-up. 'prepare' is decoding, resizing and normalising.

    Example: dinoneck bench head.safetensors --size 480x960 --batch-size 1 8

    Args:
        head: a head file, a folder with one, or a Hub repository (user/name).
        revision: a branch, tag or commit of the Hub repository (default: main).
        backbone: without a head, the backbone to time.
        neck: with --backbone: a registered neck with its default arguments.
        size: pixels that images are resized to (default: as the head was trained).
        image: the image to use (default: a generated JPEG of twice the size).
        batch_size: images per pass.
        dtype: of weights and tokens.
        rounds: how many rounds.
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """
    if head is None:
        model, module, preprocess = _of_backbone(backbone, neck, size, device, revision)
    else:
        if neck is not None or backbone != BackboneConfig(file=backbone.file, random=backbone.random):
            raise ConfigError("a head file names its backbone and neck; leave out --neck, --layers and --backbone")
        model, module, preprocess = _of_head(head, HeadBackbone(backbone.file, backbone.random), device, revision)
        preprocess = preprocess if size is None else preprocess.changed(size=size)
    from dinoneck.progress import progress

    with tempfile.TemporaryDirectory() as folder:
        file, described = _image(image, preprocess, Path(folder))
        pipelines = _pipelines(dtype, batch_size, file, preprocess, model, module)
        with progress(total=rounds + 1, desc="rounds", unit="round") as bar:
            seconds, peaks = time_in_turn(pipelines, rounds, bar.update)
    rows = [_row(key, took, peaks[key]) for key, took in seconds.items()]
    where = machine(next(model.parameters()).device)
    about = {"head": head, "backbone": model.name, "neck": neck, "layers": list(model.layers), "image": described}
    show({**about, "machine": where})
    print(table(*_table(rows)))
    print(f"milliseconds per image, medians of {rounds} rounds; (quartiles) of the whole")
    return {**about, "machine": where, "rounds": rounds, "rows": rows, "peak_process_bytes": _peak_process_bytes()}


def _of_head(file: str, options: HeadBackbone, device: str | None, revision: str | None) -> Parts:
    """The head of a file with the backbone that it names, and how its images are prepared."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.devices import local_device

    checkpoint = HeadCheckpoint.load(file, revision=revision)
    backbone = options.load(checkpoint)
    checkpoint.check_backbone(backbone)
    place = local_device(device)
    backbone, module = backbone.to(place), checkpoint.build().to(place)
    if not hasattr(module, "predict"):
        _check_neck(module, f"{file} holds {checkpoint.head_type}")
    return backbone, module, checkpoint.preprocess or backbone.preprocess


def _of_backbone(
    config: BackboneConfig, name: str | None, size: tuple[int, int] | None, device: str | None, revision: str | None
) -> Parts:
    """A backbone by name, with a neck if one was named."""
    from dinoneck.configured import fields_of
    from dinoneck.necks.neck import neck_named
    from dinoneck.training.inputs import open_backbone

    if config.name is None:
        raise ConfigError("nothing to time: give a head file, or --backbone NAME")
    if revision is not None:
        raise ConfigError("--revision is for heads; leave it out with --backbone")
    if size is None:
        raise ConfigError("a backbone alone has no image size; give it with --size, such as 480x960")
    cls = None if name is None else neck_named(name)  # before the weights are loaded
    backbone, neck = open_backbone(config, device), None
    if cls is not None:
        sizes = {
            "embed_dim": backbone.embed_dim, "num_layers": len(backbone.layers), "patch_size": backbone.patch_size
        }  # fmt: skip
        neck = cls(**{key: value for key, value in sizes.items() if key in fields_of(cls)})
        _check_neck(neck, f"--neck is {name}")
        neck = neck.to(next(backbone.parameters()).device)
    return backbone, neck, backbone.preprocess.changed(size=size)


def _check_neck(module: nn.Module, what: str) -> None:
    """Refuse what does not run on tokens alone."""
    from dinoneck.necks.neck import Neck

    if not isinstance(module, Neck) or module.needs_images:
        raise ConfigError(f"{what}, which does not run on tokens alone; heads with tasks and most necks do")


def _image(image: Path | None, preprocess: Preprocessing, folder: Path) -> tuple[Path, str]:
    """The file that is decoded again and again, and its description."""
    if image is not None:
        return image, str(image)
    if preprocess.size is None:
        raise ConfigError("this head takes images in their own size; give one with --image, or a size with --size")
    height, width = (_LARGER * side for side in preprocess.size)
    file = folder / "image.jpg"
    _save_sample(file, height, width)
    return file, f"generated JPEG of {height}x{width} px (height x width)"


def _pipelines(
    dtypes: tuple[str, ...],
    sizes: tuple[int, ...],
    image: Path,
    preprocess: Preprocessing,
    backbone: Backbone,
    head: nn.Module | None,
) -> dict[Key, Pipeline]:
    """One per dtype and batch size; those of a dtype share their models."""
    import torch

    pipelines = {}
    for dtype in dict.fromkeys(dtypes):
        kind = getattr(torch, _DTYPES[dtype])
        cast = copy.deepcopy(backbone).to(kind), None if head is None else copy.deepcopy(head).to(kind)
        for size in dict.fromkeys(sizes):
            pipelines[dtype, size] = Pipeline([image] * size, preprocess, *cast)
    return pipelines


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    parts = list(rows[0]["ms_per_image"])
    cells = [
        [row["dtype"], str(row["batch_size"]), *(f"{row['ms_per_image'][part]:.1f}" for part in parts),
         "({:.1f} ... {:.1f})".format(*row["whole_quartiles_ms"]), f"{row['images_per_s']:.2f}",
         "-" if row["peak_device_bytes"] is None else f"{row['peak_device_bytes'] / _MB:.0f} MiB"]
        for row in rows
    ]  # fmt: skip
    return ["dtype", "batch", *parts, "(quartiles)", "images/s", "peak on device"], cells


def time_in_turn(
    pipelines: Mapping[Key, Pipeline], rounds: int, done: Callable[[], object] = bool
) -> tuple[dict[Key, list[dict[str, float]]], dict[Key, int | None]]:
    """Run every pipeline once per round, in random order, so that a slow phase of the machine slows all of them.

    Args:
        pipelines: by dtype and batch size.
        rounds: how many count; one that does not count goes before.
        done: called after every round.

    Returns:
        The seconds of each part in every round that counts, and the most bytes allocated on a CUDA device.
    """
    import torch

    order = random.Random(0)
    seconds: dict[Key, list[dict[str, float]]] = {key: [] for key in pipelines}
    peaks: dict[Key, int | None] = dict.fromkeys(pipelines)
    for _ in range(rounds + 1):
        for key in order.sample(list(pipelines), len(pipelines)):
            device = next(pipelines[key].backbone.parameters()).device
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds[key].append(seconds_of(pipelines[key], device))
            if device.type == "cuda":
                peaks[key] = max(peaks[key] or 0, torch.cuda.max_memory_allocated(device))
        done()
    return {key: took[1:] for key, took in seconds.items()}, peaks


def seconds_of(pipeline: Pipeline, device: torch.device) -> dict[str, float]:
    """Run a batch once; return the seconds of each part, and of the whole."""
    import torch

    from dinoneck.backbones.adapter import evaluating

    def prepare(files: Any) -> torch.Tensor:
        return pipeline.preprocess.prepare(list(files)).images.to(device)

    parts: dict[str, Callable[[Any], Any]] = {"prepare": prepare, "backbone": pipeline.backbone}
    if pipeline.head is not None:
        parts["head"] = getattr(pipeline.head, "predict", pipeline.head)
    values: Any = pipeline.images
    times = {}
    with evaluating(*filter(None, (pipeline.backbone, pipeline.head))), torch.no_grad():
        for name, part in parts.items():
            begin = _now(device)
            values = part(values)
            times[name] = _now(device) - begin
    return {**times, "whole": sum(times.values())}


def _now(device: torch.device) -> float:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _row(key: Key, took: Sequence[Mapping[str, float]], peak: int | None) -> dict[str, Any]:
    """Medians over the rounds, in milliseconds per image; those of the parts need not add up to the whole."""
    dtype, count = key
    ms = {part: statistics.median(one[part] for one in took) * 1e3 / count for part in took[0]}
    low, _, high = statistics.quantiles([one["whole"] * 1e3 / count for one in took], n=4, method="inclusive")
    rate = 1e3 / ms["whole"]
    return {
        "dtype": dtype, "batch_size": count, "ms_per_image": ms, "whole_quartiles_ms": (low, high),
        "images_per_s": rate, "peak_device_bytes": peak,
    }  # fmt: skip


def _save_sample(file: Path, height: int, width: int) -> None:
    """Write a JPEG of colour blotches with noise, which takes as long to decode as an image of a camera."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (-(-height // _BLOTCH) + 1, -(-width // _BLOTCH) + 1, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + generator.integers(-12, 13, (height, width, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what numbers were measured on: processor, device, threads, system and versions."""
    import torch

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
    }


def _peak_process_bytes() -> int | None:
    """The most memory that this process has held; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
