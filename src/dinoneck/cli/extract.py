"""``dinoneck extract``: run a backbone over images once and keep the tokens."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from dinoneck.cli import arguments as cli
from dinoneck.cli.text import show, show_remainder
from dinoneck.errors import ConfigError
from dinoneck.extras import check_installed
from dinoneck.text import counted
from dinoneck.training.config import SIZE, FrozenBackbone


@dataclass(frozen=True)
class Stored:
    """What a store holds of an image.

    Attributes:
        resize: how images come to the size in whole patches: stretched (the default), kept in
            proportion, cropped or padded.
        pad_to: where resize pad puts the image (default: corner).
        interpolation: of the resize (default: bilinear).
        views: views of every image: none (the default), flips4, d6 (these and quarter turns),
            color20.
        blur: odd kernel of a Gaussian blur of every view.
        bits: how many bits images of 16 bits use, such as 12; 16 reads them as they are (default:
            images that use a part of the range are refused).
        dtype: dtype of the stored values; int8 takes half the space of fp16.
    """

    resize: Literal["stretch", "keep", "crop", "pad"] = "stretch"
    pad_to: Literal["corner", "center"] | None = None
    interpolation: Literal["bilinear", "bicubic", "area"] | None = None
    views: str = "none"
    blur: int | None = None
    bits: cli.Bits = None
    dtype: Literal["fp16", "bf16", "int8"] = "fp16"


def extract(
    images: cli.Images,
    out: Annotated[Path, arg(metavar="STORE")],
    size: Annotated[tuple[int, int], SIZE],
    root: Path | None = None,
    backbone: Annotated[FrozenBackbone, arg(name="")] = FrozenBackbone(),
    no_norm: bool = False,
    stored: Annotated[Stored, arg(name="")] = Stored(),
    shard: Annotated[str | None, arg(metavar="I/N")] = None,
    skip_unusable: bool = False,
    batch_size: cli.CountOrNone = None,
    workers: cli.CountOrNone = None,
    device: str | None = None,
    engine: Literal["local", "ray"] = "local",
) -> dict[str, Any]:
    """Extract the tokens of images into a feature store; the same command continues an interrupted run.

    Example: dinoneck extract images/ --out store --size 480x960 --views color20

    Args:
        images: images, or folders searched with their subfolders.
        out: folder of the store.
        size: pixels that images are resized to, such as 480x960.
        root: folder that ids are relative to (default: the folder given).
        backbone: the model that makes the tokens.
        no_norm: leave out the final norm of the backbone.
        stored: what is stored of an image.
        shard: do part I of N, counted from 0 (default: all, or the rank of torchrun).
        skip_unusable: leave out images that cannot be decoded, and list them.
        batch_size: views per backbone pass (default: up to 32).
        workers: threads that decode (default: one per core, at most 8).
        device: such as cpu or cuda:1 (default: a GPU if there is one).
        engine: ray spreads the work over a Ray cluster (extra [ray]).
    """
    # refuse what is wrong before torch is imported
    part = None if shard is None else _read_shard(shard)
    if engine == "ray" and shard is not None:
        raise ConfigError("--shard and --engine ray both divide the work; give one of them")
    if engine == "ray":
        check_installed("ray", "ray")
    files = cli.list_images(images, skip_unusable=skip_unusable)
    if root is None and len(images) == 1 and images[0].is_dir():
        root = images[0]
    cli.check_backbone_name(backbone.name, backbone.source)
    backbone = cli.with_default_runtime(backbone)
    from dinoneck.data.summary import image_line
    from dinoneck.store.feature_store import FeatureStore, no_empty_store
    from dinoneck.store.images import image_ids
    from dinoneck.training.run_tokens import open_backbone

    model = open_backbone(backbone, device, norm=not no_norm)
    # with several processes another one may be about to write
    is_alone = part is None and "WORLD_SIZE" not in os.environ
    cleanup = no_empty_store(out) if is_alone else nullcontext()
    with cleanup:
        store = FeatureStore.create(out, backbone=model, image_size=size, **asdict(stored))
        show_remainder(store.preprocess, size)
        if part is None or part[0] == 0:
            show(image_line([*image_ids(files, root).values()]))
        extraction = store.extract(
            files,
            root,
            part,
            skip_unusable=skip_unusable,
            engine=engine,
            batch_size=batch_size,
            workers=workers,
        )
    for problem in extraction.unusable.values():
        show(f"left out: {problem}")
    print(
        f"{counted(len(extraction.written), 'image')} extracted, {extraction.present} were there, "
        f"{len(extraction.unusable)} left out: {store}"
    )
    return {
        "store": out,
        "written": len(extraction.written),
        "present": extraction.present,
        "images": len(store),
        "unusable": extraction.unusable,
    }


def _read_shard(shard: str) -> tuple[int, int]:
    """The part and the number of parts of a text such as ``0/4``."""
    part, _, parts = shard.partition("/")
    if not (part.isdecimal() and parts.isdecimal()):
        raise ConfigError(f"--shard is {shard!r}; expected I/N, such as 0/4")
    if int(part) >= int(parts):
        raise ConfigError(
            f"--shard is {shard!r}; parts are counted from 0, so the first of 4 is 0/4 and the last "
            "is 3/4"
        )
    return int(part), int(parts)
