"""The table of published heads: which file, which backbone, which arithmetic, unit and licence. Imports no torch.

A row holds everything that users would otherwise have to know: the blocks, whether the final norm is applied, how
positions are resampled, how images are prepared, and how the head's output becomes a value in its unit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dinoneck import registry
from dinoneck.backbones.known import LICENSES, SATELLITE_STD, Known, model_of, names_of, resolve_name
from dinoneck.errors import CheckpointError, did_you_mean
from dinoneck.published.labels import labels_of

if TYPE_CHECKING:
    from dinoneck.heads.head import Head

_FILES = "https://dl.fbaipublicfiles.com"
_SPREAD = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}  # depth -> blocks of four-layer depth heads
_CLASSES = {"size": (224, 224), "resize": "crop", "interpolation": "bicubic"}
_WHOLE = {"resize": "pad", "pad_to": "center"}  # the image as it is, in whole patches
_DOUBLE = {"upsample": "double", "align_corners": True}
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


@dataclass(frozen=True)
class PublishedHead:
    """A head that others published.

    Attributes:
        name: ``{backbone}_{data}_{form}``, as :func:`load_published`, Predictor and ``--heads`` take it.
        task: ``classification``, ``depth``, ``canopy height`` or ``segmentation``.
        backbone: timm's name of the frozen backbone, with its tag.
        url: the publisher's file.
        layers: block indices that the head reads.
        inputs: fields of :class:`dinoneck.data.Preprocessing`.
        head: ``{"type", "config"}`` of the module; the labels of classes are filled in from ``labels``.
        norm: whether the final norm is applied to the layers.
        hub: a Hub repository with the same weights in safetensors; None if there is none.
        labels: the classes, ``imagenet``, ``ade20k`` or ``voc2012``; empty for values.
        terms: the licence, where it is not that of the backbone, whose weights then are in the file too: they were
            tuned along.
    """

    name: str
    task: str
    backbone: str
    url: str
    layers: tuple[int, ...]
    inputs: Mapping[str, Any]
    head: Mapping[str, Any]
    norm: bool = True
    hub: str | None = None
    labels: str = ""
    terms: str = ""

    @property
    def model(self) -> Known:
        """The architecture of the backbone."""
        return cast("Known", model_of(self.backbone))

    @property
    def licence(self) -> str:
        """The licence of the weights."""
        return self.terms or self.model.license

    @property
    def gated(self) -> bool:
        """Whether the publisher gives the file only to people who accepted its terms; pass it as ``weights=``."""
        return self.licence == LICENSES["dinov3"]

    @property
    def sha256(self) -> str:
        """The first digits of the file's hash, which its publisher states in its name; empty if it does not."""
        stated = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        return stated[1] if stated else ""

    @property
    def size(self) -> int:
        """Parameters of the head."""
        return sum(parameter.numel() for parameter in self.build().parameters())

    def build(self) -> Head:
        """Return the module on the meta device, in eval mode."""
        import torch

        config = {**self.head["config"]}
        if self.labels:
            config["tasks"] = [{**config["tasks"][0], "labels": labels_of(self.labels)}]
        with torch.device("meta"):
            return cast("Head", registry.resolve(self.head["type"]).from_config(config).eval())


def list_published(task: str | None = None, backbone: str | None = None) -> list[PublishedHead]:
    """Return the published heads that :func:`load_published` knows.

    Args:
        task: only those of this task.
        backbone: only those on this backbone, by any of its names.
    """
    wanted = None if backbone is None else resolve_name(backbone)
    return [row for row in ROWS.values() if task in (None, row.task) and wanted in (None, row.backbone)]


def is_published(source: object) -> bool:
    """Whether this is the name of a published head and not a local path.

    Raises:
        CheckpointError: if it is both, or neither and almost the name of one.
    """
    if not isinstance(source, str):
        return False
    exists = os.path.lexists(source)
    if source not in ROWS:
        if not exists and "/" not in source and did_you_mean(source, ROWS):
            row_named(source)
        return False
    if exists:
        raise CheckpointError(f"{source!r} is a published head and a path here; write ./{source} for the path")
    return True


def row_named(name: str) -> PublishedHead:
    """Return the row of a published head.

    Raises:
        CheckpointError: if there is none.
    """
    if name not in ROWS:
        raise CheckpointError(
            f"{name!r} is not a published head that is known here.{did_you_mean(name, ROWS)} 'dinoneck list heads' "
            "lists them"
        )
    return ROWS[name]


def _task(name: str, kind: str = "dense", **fields: Any) -> dict[str, Any]:
    return {"$": "Task", "name": name, "kind": kind, **fields}


def _linear(width: int, task: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"type": "linear", "config": {"embed_dim": width, "tasks": [task], **config}}


def _dpt(width: int, task: dict[str, Any], neck: dict[str, Any], **config: Any) -> dict[str, Any]:
    own = {"type": "dpt_neck", "config": {"embed_dim": width, **neck}}
    return {"type": "dpt", "config": {"embed_dim": width, "tasks": [task], "neck": own, **config}}


def _bins(high: float, low: float = 0.001, eps: float = 0.1, spacing: str = "linear") -> dict[str, Any]:
    return {"type": "bins", "config": {"low": low, "high": high, "count": 256, "spacing": spacing, "eps": eps}}


def _dinov2(
    base: str, name: str, task: str, layers: tuple[int, ...], head: dict[str, Any], **more: Any
) -> PublishedHead:
    """A row of the files of DINOv2."""
    fields = {"url": f"{_FILES}/dinov2/{base}/{base}_{name}_head.pth", "inputs": _WHOLE, **more}
    return PublishedHead(f"{base}_{name}", task, _backbone(base)[0], layers=layers, head=head, **fields)


def _classifiers() -> Iterator[PublishedHead]:
    """DINOv2's linear classifiers: CLS of one or four layers and the mean patch of the last."""
    task = _task("class", "classification", dim=1000)
    for short, size in _SIZES.items():
        base = f"dinov2_vit{short}14"
        for backbone, suffix in ((base, ""), (f"{base}_reg", "_reg4")):
            _, width, depth = _backbone(backbone)
            for form, count in (("linear", 1), ("linear4", 4)):
                more: dict[str, Any] = {"url": f"{_FILES}/dinov2/{base}/{base}{suffix}_{form}_head.pth"}
                if count == 1 and backbone == base:
                    more["hub"] = f"facebook/dinov2-{size}-imagenet1k-1-layer"
                head = _linear(width, task, num_layers=count, pool="cls+mean")
                layers = tuple(range(depth - count, depth))
                more |= {"inputs": _CLASSES, "labels": "imagenet"}
                yield _dinov2(backbone, f"imagenet_{form}", "classification", layers, head, **more)


def _depth_heads() -> Iterator[PublishedHead]:
    """DINOv2's depth heads, which read blocks before the final norm. The range is that of the training data."""
    shifted = {"$": "TargetTransform", "mean": 0.001, "std": 1.0}
    for short, size in _SIZES.items():
        base = f"dinov2_vit{short}14"
        _, width, depth = _backbone(base)
        widths = [width // 8, width // 4, width // 2, width]
        neck = {"readout": "project", "patch_size": 14, "hidden_sizes": widths, "unit_bias": False, **_DOUBLE}
        for data, far in (("nyu", 10.0), ("kitti", 80.0)):
            bounds: dict[str, Any] = {"unit": "m", "minimum": 0.001, "maximum": far}
            metres = _task("depth", activation="relu", transform=shifted, **bounds)
            head, hub = _dpt(width, metres, neck, add_projection=True), f"facebook/dpt-dinov2-{size}-{data}"
            yield _dinov2(base, f"{data}_dpt", "depth", _SPREAD[depth], head, norm=False, hub=hub)
            for form, layers in (("linear", (depth - 1,)), ("linear4", _SPREAD[depth])):
                cells = {"num_layers": len(layers), "pool": None, "use_cls": True, "upsample": 4, "bins": _bins(far)}
                head = _linear(width, _task("depth", **bounds), **cells)
                yield _dinov2(base, f"{data}_{form}", "depth", layers, head, norm=False)


def _segmentation_heads() -> Iterator[PublishedHead]:
    """DINOv2's linear segmentation of one and of four layers."""
    for short in _SIZES:
        base = f"dinov2_vit{short}14"
        _, width, depth = _backbone(base)
        for data, classes in (("voc2012", 21), ("ade20k", 150)):
            for form, count in (("linear", 1), ("ms", 4)):
                task = _task("class", "segmentation", dim=classes)
                head, layers = _linear(width, task, num_layers=count, pool=None), tuple(range(depth - count, depth))
                yield _dinov2(base, f"{data}_{form}", "segmentation", layers, head, labels=data)


def _dinov3_heads() -> Iterator[PublishedHead]:
    """DINOv3's canopy height on ViT-L, and the classifier and depth head on ViT-7B."""
    eightfold = {"$": "TargetTransform", "mean": 0.0, "std": 8.0}
    timm, width, _ = _backbone("vit_large_patch16_dinov3.sat493m")
    height, bins = _task("height", unit="m", transform=eightfold), _bins(12.0, eps=1e-8, spacing="mixed")
    neck = {"readout": "project", "hidden_sizes": [128, 256, 512, 1024], **_DOUBLE}
    yield PublishedHead(
        "dinov3_vitl16_sat_chmv2",
        "canopy height",
        timm,
        url=f"{_FILES}/dinov3/chmv2/dinov3_vitl16_chmv2_dpt_head-3703d643.pth",
        hub="facebook/dinov3-vitl16-chmv2-dpt-head",
        layers=(5, 11, 17, 23),  # block 5, where the depth heads on ViT-L read block 4
        inputs={**_WHOLE, "mean": (0.420, 0.411, 0.296), "std": SATELLITE_STD},  # the backbone's own mean is (0.430, …)
        head=_dpt(width, height, neck, hidden_dim=128, bins=bins),
    )
    timm, width, depth = _backbone("dinov3_vit7b16")
    files = f"{_FILES}/dinov3/dinov3_vit7b16/dinov3_vit7b16"
    yield PublishedHead(
        "dinov3_vit7b16_imagenet_linear",
        "classification",
        timm,
        url=f"{files}_imagenet1k_linear_head-90d8ed92.pth",
        layers=(depth - 1,),
        inputs=_CLASSES,
        head=_linear(width, _task("class", "classification", dim=1000), pool="cls+mean"),
        labels="imagenet",
    )
    neck = {"readout": "ignore", "out_channels": 512, "hidden_sizes": [2048] * 4, "unit_bias": False, **_DOUBLE}
    yield PublishedHead(
        "dinov3_vit7b16_synthmix_dpt",
        "depth",
        timm,
        url=f"{files}_synthmix_dpt_head-02040be1.pth",
        layers=_SPREAD[depth],
        inputs={"size": (768, 768), "resize": "stretch"},
        head=_dpt(width, _task("depth", unit="m"), neck, bins=_bins(100.0), add_projection=True),
    )


def _depth_anything() -> Iterator[PublishedHead]:
    """Depth Anything V2, relative and metric, whose backbones were tuned along; transformers' files."""
    kinds = (("", "", 0.0), ("_indoor", "-Metric-Indoor", 20.0), ("_outdoor", "-Metric-Outdoor", 80.0))
    settings = (("s", (48, 96, 192, 384), 64), ("b", (96, 192, 384, 768), 128), ("l", (256, 512, 1024, 1024), 256))
    for short, widths, channels in settings:
        base = f"dinov2_vit{short}14"
        timm, width, depth = _backbone(base)
        neck = {"patch_size": 14, "out_channels": channels, "hidden_sizes": [*widths], "align_corners": True}
        for suffix, data, far in kinds:
            task = _task("depth", activation="relu")
            if far:
                spread = {"$": "TargetTransform", "mean": 0.0, "std": far}
                task = _task("depth", activation="sigmoid", unit="m", transform=spread)
            hub = f"depth-anything/Depth-Anything-V2{data}-{_SIZES[short].capitalize()}-hf"
            yield PublishedHead(
                f"{base}_depth_anything_v2{suffix}",
                "depth",
                timm,
                url=f"https://huggingface.co/{hub}",
                layers=_SPREAD[depth],
                inputs={"size": (686, 686), "resize": "keep", "interpolation": "bicubic"},
                head=_dpt(width, task, neck),
                hub=hub,
                terms="not stated" if far else "Apache-2.0" if short == "s" else "CC-BY-NC-4.0",
            )


def _backbone(name: str) -> tuple[str, int, int]:
    """Timm's name, width and depth."""
    model = cast("Known", model_of(name))
    return cast("tuple[str, str]", names_of(name))[0], model.width, model.depth


_GROUPS = (_classifiers, _depth_heads, _segmentation_heads, _dinov3_heads, _depth_anything)
ROWS = {row.name: row for rows in _GROUPS for row in rows()}
"""Name -> row."""
