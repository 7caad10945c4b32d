"""The table of published heads: which file, which backbone, which arithmetic, unit and licence.

Imports no torch.

A row holds everything that users would otherwise have to know: the blocks, whether the final norm
is applied, how positions are resampled, how images are prepared, and how the head's output becomes
a value in its unit.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dinoneck import registry
from dinoneck.backbones.known import (
    KNOWN,
    LICENSES,
    SATELLITE_STD,
    Known,
    license_of,
    model_of,
    names_of,
    refuse,
)
from dinoneck.errors import CheckpointError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from dinoneck.heads.head import Head

_FILES = "https://dl.fbaipublicfiles.com"
# depth -> blocks of four-layer depth heads
_SPREAD = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
_CLASSES = {"size": (224, 224), "resize": "crop", "interpolation": "bicubic"}
_WHOLE = {"resize": "pad", "pad_to": "center"}  # the image as it is, in whole patches
_DOUBLE = {"upsample": "double", "align_corners": True}
_COCO_THINGS = 80
NOT_STATED = "not stated"
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


@dataclass(frozen=True)
class PublishedHead:
    """A head that others published.

    Attributes:
        name: ``{backbone}_{data}_{form}``, as :func:`load_published`, Predictor and ``--heads``
            take it.
        task: ``classification``, ``depth``, ``canopy height``, ``segmentation``, ``instances`` or
            ``panoptic``.
        backbone: timm's name of the frozen backbone, with its tag.
        url: the publisher's file, or its page.
        layers: block indices that the head reads.
        inputs: fields of :class:`dinoneck.data.Preprocessing`.
        head: ``{"type", "config"}`` of the module; the labels of classes are filled in from
            ``labels``.
        norm: whether the final norm is applied to the layers.
        hub: a Hub repository with the same weights in safetensors; None if there is none.
        labels: the classes, as for :func:`labels_of`; empty for values.
        terms: the licence, where it is not that of the backbone.
        tuned: whether the backbone was tuned along, so that its weights are in the file too.
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
    tuned: bool = False

    @property
    def model(self) -> Known:
        """The architecture of the backbone."""
        return cast("Known", model_of(self.backbone))

    @property
    def licence(self) -> str:
        """The licence of the weights."""
        return self.terms or str(license_of(self.backbone))

    @property
    def gated(self) -> bool:
        """Whether the publisher gives the file only to people who accepted its terms."""
        return self.licence == LICENSES["dinov3"]

    @property
    def sha256(self) -> str:
        """The first digits of the file's hash, which its publisher states in its name; empty if it does not."""
        return "".join(re.findall(r"-([0-9a-f]{8})\.pth$", self.url))

    @property
    def size(self) -> int:
        """Parameters of the head."""
        return sum(parameter.numel() for parameter in self.build().parameters())

    def build(self) -> Head:
        """Return the module on the meta device, in eval mode."""
        import torch

        config = {**self.head["config"]}
        if self.labels:
            [task], labels = config["tasks"], labels_of(self.labels)
            things = {"things": labels[:_COCO_THINGS]} if task["kind"] == "panoptic" else {}
            config["tasks"] = [{**task, "labels": labels, **things}]
        with torch.device("meta"):
            return cast("Head", registry.resolve(self.head["type"]).from_config(config).eval())


def list_published(task: str | None = None, backbone: str | None = None) -> list[PublishedHead]:
    """Return the published heads that :func:`load_published` knows.

    Args:
        task: only those of this task.
        backbone: only those on this backbone, by any of its names.

    Raises:
        ConfigError: for a task that no row has.
        BackboneError: for a backbone that is not known.
    """
    if task is not None and task not in (tasks := dict.fromkeys(row.task for row in ROWS.values())):
        raise ConfigError(f"task is {task!r}; expected one of {', '.join(tasks)}")
    known = None if backbone is None else names_of(backbone)
    if backbone is not None and known is None:
        raise refuse(backbone, [model.name for model in KNOWN])
    return [
        row
        for row in ROWS.values()
        if task in (None, row.task) and (known is None or row.backbone in known)
    ]


def is_published(source: object) -> bool:
    """Whether this is the name of a published head and not a local path.

    Raises:
        CheckpointError: if it is both, or neither and almost the name of one.
    """
    if not isinstance(source, str):
        return False
    exists = os.path.lexists(source)
    if source not in ROWS:
        if not exists and source.isidentifier() and did_you_mean(source, ROWS):
            row_named(source)
        return False
    if exists:
        raise CheckpointError(
            f"{source!r} is a published head and a path here; write ./{source} for the path"
        )
    return True


def row_named(name: str) -> PublishedHead:
    """Return the row of a published head.

    Raises:
        CheckpointError: if there is none.
    """
    if name not in ROWS:
        raise CheckpointError(
            f"{name!r} is not a published head that is known here.{did_you_mean(name, ROWS)} "
            "'dinoneck list heads' lists them"
        )
    return ROWS[name]


def labels_of(data: str) -> list[str]:
    """Return the classes of a data set; a name of several classes is followed by its index.

    Args:
        data: ``imagenet``, ``voc2012``, ``ade20k``, ``coco`` (80 things) or ``coco_panoptic`` (and
            53 of stuff).
    """
    if data in ("ade20k", "coco_panoptic"):
        listed = Path(__file__).with_name(f"{data}.txt").read_text("utf-8").split("\n")[:-1]
        return [*(labels_of("coco") if data == "coco_panoptic" else ()), *listed]
    from torchvision import models

    weights: Any = models.ResNet18_Weights.IMAGENET1K_V1
    if data == "coco":
        weights = models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    elif data == "voc2012":
        weights = models.segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    names = [
        name
        for name in weights.meta["categories"]
        if data != "coco" or name not in ("__background__", "N/A")
    ]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]


def _task(name: str, kind: str = "dense", **fields: Any) -> dict[str, Any]:
    return {"$": "Task", "name": name, "kind": kind, **fields}


def _times(std: float, mean: float = 0.0) -> dict[str, Any]:
    return {"$": "TargetTransform", "mean": mean, "std": std}


def _linear(width: int, task: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"type": "linear", "config": {"embed_dim": width, "tasks": [task], **config}}


def _dpt(width: int, task: dict[str, Any], neck: dict[str, Any], **config: Any) -> dict[str, Any]:
    own = {"type": "dpt_neck", "config": {"embed_dim": width, **neck}}
    return {"type": "dpt", "config": {"embed_dim": width, "tasks": [task], "neck": own, **config}}


def _bins(
    high: float, low: float = 0.001, eps: float = 0.1, spacing: str = "linear"
) -> dict[str, Any]:
    return {
        "type": "bins",
        "config": {"low": low, "high": high, "count": 256, "spacing": spacing, "eps": eps},
    }


def _backbone(name: str) -> tuple[str, int, int]:
    """Timm's name, width and depth."""
    model = cast("Known", model_of(name))
    return cast("tuple[str, str]", names_of(name))[0], model.width, model.depth


def _dinov2(
    base: str, form: str, task: str, layers: Sequence[int], head: Any, **more: Any
) -> PublishedHead:
    """A row of the files of DINOv2."""
    file = f"{base.removesuffix('_reg')}/{base.replace('_reg', '_reg4')}_{form.removeprefix('imagenet_')}_head.pth"
    fields = {"inputs": _WHOLE, **more}
    return PublishedHead(
        f"{base}_{form}",
        task,
        _backbone(base)[0],
        f"{_FILES}/dinov2/{file}",
        tuple(layers),
        head=head,
        **fields,
    )


def _dinov2_heads() -> Iterator[PublishedHead]:
    """DINOv2's linear classifiers, depth heads and linear segmentation, one backbone after the other."""
    for short, size in _SIZES.items():
        base = f"dinov2_vit{short}14"
        _, width, depth = _backbone(base)
        # CLS of one or four layers and the mean patch of the last
        task = _task("class", "classification", dim=1000)
        for backbone in (base, f"{base}_reg"):
            for form, count in (("linear", 1), ("linear4", 4)):
                head = _linear(width, task, num_layers=count, pool="cls+mean")
                hub = (
                    f"facebook/dinov2-{size}-imagenet1k-1-layer"
                    if count == 1 and backbone == base
                    else None
                )
                layers = range(depth - count, depth)
                more: dict[str, Any] = {"inputs": _CLASSES, "labels": "imagenet", "hub": hub}
                yield _dinov2(backbone, f"imagenet_{form}", "classification", layers, head, **more)
        # blocks before the final norm; the range is that of the training data
        widths = [width // 8, width // 4, width // 2, width]
        neck = {
            "readout": "project",
            "patch_size": 14,
            "hidden_sizes": widths,
            "unit_bias": False,
            **_DOUBLE,
        }
        for data, far in (("nyu", 10.0), ("kitti", 80.0)):
            bounds: dict[str, Any] = {"unit": "m", "minimum": 0.001, "maximum": far}
            metres = _task("depth", activation="relu", transform=_times(1.0, mean=0.001), **bounds)
            head, hub = (
                _dpt(width, metres, neck, add_projection=True),
                f"facebook/dpt-dinov2-{size}-{data}",
            )
            yield _dinov2(base, f"{data}_dpt", "depth", _SPREAD[depth], head, norm=False, hub=hub)
            for form, blocks in (("linear", (depth - 1,)), ("linear4", _SPREAD[depth])):
                cells = {
                    "num_layers": len(blocks),
                    "pool": None,
                    "use_cls": True,
                    "upsample": 4,
                    "bins": _bins(far),
                }
                head = _linear(width, _task("depth", **bounds), **cells)
                yield _dinov2(base, f"{data}_{form}", "depth", blocks, head, norm=False)
        for data, classes in (("voc2012", 21), ("ade20k", 150)):
            for form, count in (("linear", 1), ("ms", 4)):
                head = _linear(
                    width, _task("class", "segmentation", dim=classes), num_layers=count, pool=None
                )
                yield _dinov2(
                    base,
                    f"{data}_{form}",
                    "segmentation",
                    range(depth - count, depth),
                    head,
                    labels=data,
                )


def _dinov3_heads() -> Iterator[PublishedHead]:
    """DINOv3's canopy height on ViT-L, and the classifier and depth head on ViT-7B."""
    timm, width, _ = _backbone("vit_large_patch16_dinov3.sat493m")
    neck = {"readout": "project", "hidden_sizes": [128, 256, 512, 1024], **_DOUBLE}
    bins, task = (
        _bins(12.0, eps=1e-8, spacing="mixed"),
        _task("height", unit="m", transform=_times(8.0)),
    )
    head = _dpt(width, task, neck, hidden_dim=128, bins=bins)
    url = f"{_FILES}/dinov3/chmv2/dinov3_vitl16_chmv2_dpt_head-3703d643.pth"
    # block 5, where the depth heads on ViT-L read block 4; and the mean is not the backbone's,
    # (0.430, ...)
    layers, inputs = (
        (5, 11, 17, 23),
        {**_WHOLE, "mean": (0.420, 0.411, 0.296), "std": SATELLITE_STD},
    )
    hub = "facebook/dinov3-vitl16-chmv2-dpt-head"
    yield PublishedHead(
        "dinov3_vitl16_sat_chmv2", "canopy height", timm, url, layers, inputs, head, hub=hub
    )
    timm, width, depth = _backbone("dinov3_vit7b16")
    name, files = "dinov3_vit7b16", f"{_FILES}/dinov3/dinov3_vit7b16/dinov3_vit7b16"
    url, task = (
        f"{files}_imagenet1k_linear_head-90d8ed92.pth",
        _task("class", "classification", dim=1000),
    )
    more: dict[str, Any] = {
        "inputs": _CLASSES,
        "head": _linear(width, task, pool="cls+mean"),
        "labels": "imagenet",
    }
    yield PublishedHead(
        f"{name}_imagenet_linear", "classification", timm, url, (depth - 1,), **more
    )
    neck = {
        "readout": "ignore",
        "out_channels": 512,
        "hidden_sizes": [2048] * 4,
        "unit_bias": False,
        **_DOUBLE,
    }
    head = _dpt(width, _task("depth", unit="m"), neck, bins=_bins(100.0), add_projection=True)
    url, inputs = (
        f"{files}_synthmix_dpt_head-02040be1.pth",
        {"size": (768, 768), "resize": "stretch"},
    )
    yield PublishedHead(f"{name}_synthmix_dpt", "depth", timm, url, _SPREAD[depth], inputs, head)


def _depth_anything() -> Iterator[PublishedHead]:
    """Depth Anything V2, relative and metric, whose backbones were tuned along; transformers' files."""
    inputs = {"size": (686, 686), "resize": "keep", "interpolation": "bicubic"}
    settings = (
        ("s", (48, 96, 192, 384), 64),
        ("b", (96, 192, 384, 768), 128),
        ("l", (256, 512, 1024, 1024), 256),
    )
    for short, widths, channels in settings:
        timm, width, depth = _backbone(f"dinov2_vit{short}14")
        neck = {
            "patch_size": 14,
            "out_channels": channels,
            "hidden_sizes": [*widths],
            "align_corners": True,
        }
        for suffix, data, far in (
            ("", "", 0),
            ("_indoor", "-Metric-Indoor", 20),
            ("_outdoor", "-Metric-Outdoor", 80),
        ):
            task, terms = (
                _task("depth", activation="relu"),
                "Apache-2.0" if short == "s" else "CC-BY-NC-4.0",
            )
            if far:
                task = _task("depth", activation="sigmoid", unit="m", transform=_times(float(far)))
                terms = NOT_STATED
            hub = f"depth-anything/Depth-Anything-V2{data}-{_SIZES[short].capitalize()}-hf"
            yield PublishedHead(
                f"dinov2_vit{short}14_depth_anything_v2{suffix}",
                "depth",
                timm,
                f"https://huggingface.co/{hub}",
                _SPREAD[depth],
                inputs,
                _dpt(width, task, neck),
                hub=hub,
                terms=terms,
                tuned=True,
            )


_MASKS = {  # data -> ViTs and sides of the images in pixels, classes, task and queries
    "coco_panoptic": (
        "s640 b640 l640 l1280",
        "coco_panoptic",
        _task("objects", "panoptic", dim=133),
        200,
    ),
    "coco_instance": ("l640 l1280", "coco", _task("objects", "instances", dim=80), 200),
    "ade20k_semantic": ("l512", "ade20k", _task("class", "segmentation", dim=150), 100),
}


def _mask_heads() -> Iterator[PublishedHead]:
    """PMT, masks by queries on frozen DINOv3; its pages state no licence, so its files are not downloaded."""
    for data, (sizes, labels, task, queries) in _MASKS.items():
        for short, pixels in ((size[0], int(size[1:])) for size in sizes.split()):
            timm, width, depth = _backbone(f"dinov3_vit{short}16")
            head = {
                "type": "mask",
                "config": {"embed_dim": width, "tasks": [task], "num_queries": queries},
            }
            inputs = _WHOLE if labels == "ade20k" else {"size": (pixels, pixels), "resize": "pad"}
            url = f"https://huggingface.co/tue-mps/{data}_pmt_{_SIZES[short]}_{pixels}_dinov3"
            layers = _SPREAD[depth] if depth == 12 else (5, 11, 17, 23)
            name, kind = f"dinov3_vit{short}16_{data}_pmt{pixels}", task["kind"]
            yield PublishedHead(
                name, kind, timm, url, layers, inputs, head, labels=labels, terms=NOT_STATED
            )


ROWS = {
    row.name: row
    for heads in (_dinov2_heads, _dinov3_heads, _depth_anything, _mask_heads)
    for row in heads()
}
"""Name -> row."""
