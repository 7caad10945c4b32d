"""``dinoneck bench``: how long an image takes here, part by part."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import Count, HeadBackbone, check_backbone_name, refuse_unused
from dinoneck.cli.text import show, table
from dinoneck.errors import ConfigError
from dinoneck.training.config import SIZE, BackboneConfig
from dinoneck.version import versions

if TYPE_CHECKING:
    from torch import nn

    from dinoneck.backbones.backbone import Backbone
    from dinoneck.data.preprocessing import Preprocessing

_GENERATED = (1024, 2048)  # pixels of the image


def bench(
    head: Annotated[str | None, Positional] = None,
    backbone: Annotated[BackboneConfig, arg(name="")] = BackboneConfig(),
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    batch_size: Count = 1,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seconds: float = 2.0,
    device: str | None = None,
) -> dict[str, Any]:
    """Time a head, or a backbone alone, on this machine.

    The times are medians of torch.utils.benchmark for a generated JPEG of 1024x2048 px. 'prepare' is decoding, resizing
    and normalising.

    Example: dinoneck bench head.safetensors --size 480x960 --batch-size 8

    Args:
        head: a head file, a folder with one, or a Hub repository (user/name).
        backbone: without a head, the backbone to time.
        size: pixels that images are resized to (default: as the head was trained).
        batch_size: images per pass.
        dtype: of weights and tokens.
        seconds: how long each part is measured, at least.
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """
    if head is not None:
        refuse_unused(bench, "the time of a head file", locals())
    elif backbone.name is None or size is None:
        raise ConfigError("nothing to time: give a head file, or --backbone NAME with --size HEIGHTxWIDTH")
    check_backbone_name(backbone.name, backbone.source)
    import torch

    from dinoneck.data.pasture import Pasture
    from dinoneck.devices import local_device

    kind, place = getattr(torch, dtype), local_device(device)
    model, module, preprocess = _opened(head, backbone, place)
    preprocess = preprocess if size is None else preprocess.changed(size=size)
    with tempfile.TemporaryDirectory() as folder:
        Pasture(size=_GENERATED).write(folder, 1)
        files = [Path(folder, "images", "0000.jpg")] * batch_size
        rows = _measure(files, preprocess, model.to(kind), module and module.to(kind), seconds)
    about = {
        "head": head,
        "backbone": model.name,
        "layers": list(model.layers),
        "size": preprocess.size,
        "batch_size": batch_size,
        "dtype": dtype,
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        "versions": versions(),
    }
    show(about)
    cells = [[row["part"], f"{row['ms_per_image']:.2f}", f"{row['quartile_range_ms']:.2f}"] for row in rows]
    print(table(("part", "ms per image", "quartile range"), cells))
    return {**about, "parts": rows}


def _measure(
    files: list[Path], preprocess: Preprocessing, backbone: Backbone, head: nn.Module | None, seconds: float
) -> list[dict[str, Any]]:
    """The median time of each part of a prediction."""
    import torch
    from torch.utils.benchmark import Timer

    from dinoneck.backbones.adapter import evaluating

    place = next(backbone.parameters()).device
    parts: dict[str, Any] = {"prepare": lambda files: preprocess.prepare(files).images.to(place), "backbone": backbone}
    if head is not None:
        parts["head"] = getattr(head, "predict", head)
    rows, value = list[dict[str, Any]](), files
    with evaluating(*filter(None, (backbone, head))), torch.no_grad():
        for name, part in parts.items():
            scope = {"part": part, "value": value}
            timer = Timer("part(value)", globals=scope, num_threads=torch.get_num_threads())
            time, value = timer.blocked_autorange(min_run_time=seconds), part(value)
            ms = 1e3 / len(files)
            rows.append({"part": name, "ms_per_image": ms * time.median, "quartile_range_ms": ms * time.iqr})
    return rows


def _opened(head: str | None, backbone: BackboneConfig, device: Any) -> tuple[Any, Any, Any]:
    """The backbone, the head of a file if one is named, and how images are prepared."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.training.source import open_backbone

    if head is None:
        alone = open_backbone(backbone, device)
        return alone, None, alone.preprocess
    checkpoint = HeadCheckpoint.load(head)
    if not checkpoint.meta["tasks"]:
        raise ConfigError(f"{head} holds {checkpoint.head_type}, which has no tasks to predict; name a head")
    model = HeadBackbone(backbone.file, backbone.random).load(checkpoint).to(device)
    checkpoint.check_backbone(model)
    return model, checkpoint.build().to(device), checkpoint.preprocess or model.preprocess
