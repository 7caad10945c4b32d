"""The table of published heads: which file, which backbone, which arithmetic, unit and licence. Imports no torch.

A row holds everything that users would otherwise have to know: the blocks, whether the final norm is applied, how
positions are resampled, how images are prepared, and how the head's output becomes a value in its unit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dinoneck import registry
from dinoneck.backbones.known import (
    LICENSES,
    SATELLITE_STD,
    Known,
    family_of,
    model_of,
    names_of,
    resolve_name,
)
from dinoneck.errors import CheckpointError, did_you_mean
from dinoneck.published.labels import labels_of

if TYPE_CHECKING:
    from dinoneck.heads.head import Head

_FILES = "https://dl.fbaipublicfiles.com"
_SPREAD = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}  # depth -> blocks of four-layer depth heads
_CLASSES = {"size": (224, 224), "resize": "crop", "interpolation": "bicubic"}
_WHOLE = {"resize": "pad", "pad_to": "center"}  # the image as it is, in whole patches
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


@dataclass(frozen=True)
class PublishedHead:
    """A head that others published.

    Attributes:
        name: ``{backbone}_{data}_{form}``, as :func:`load_published`, Predictor and ``--heads`` take it.
        task: ``classification``, ``depth``, ``canopy height`` or ``segmentation``.
        backbone: timm's name of the frozen backbone, with its tag.
        licence: of the weights.
        url: the publisher's file.
        gated: whether the publisher gives it only to people who accepted its terms; pass it as ``weights=``.
        hub: a Hub repository with the same weights in safetensors; None if there is none.
        sha256: the first digits of the file's hash that its publisher states; empty if none are.
        layers: block indices that the head reads.
        norm: whether the final norm is applied to them.
        inputs: fields of :class:`dinoneck.data.Preprocessing`.
        head: ``{"type", "config"}`` of the module; the labels of classes are filled in from ``labels``.
        labels: the classes, ``imagenet``, ``ade20k`` or ``voc2012``; empty for values.
        dialects: the forms of file that are understood, see :mod:`dinoneck.published.names`.
    """

    name: str
    task: str
    backbone: str
    licence: str
    url: str
    gated: bool
    hub: str | None
    sha256: str
    layers: tuple[int, ...]
    norm: bool
    inputs: Mapping[str, Any]
    head: Mapping[str, Any]
    labels: str
    dialects: tuple[str, ...]

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

    @property
    def model(self) -> Known:
        """The architecture of the backbone."""
        return _model(self.backbone)


def list_published(task: str | None = None, backbone: str | None = None) -> list[PublishedHead]:
    """Return the published heads that :func:`load_published` knows.

    Args:
        task: only those of this task.
        backbone: only those on this backbone, by any of its names.
    """
    wanted = None if backbone is None else resolve_name(backbone)
    rows = ROWS.values()
    return [row for row in rows if task in (None, row.task) and wanted in (None, row.backbone)]


def is_published(source: object) -> bool:
    """Whether this is the name of a published head and not a local path.

    Raises:
        CheckpointError: if it is both.
    """
    if not isinstance(source, str) or source not in ROWS:
        return False
    if os.path.lexists(source):
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


def _row(name: str, task: str, backbone: str, **more: Any) -> PublishedHead:
    full, _ = names_of(backbone) or (backbone, "")
    known = {"gated": False, "hub": None, "sha256": "", "norm": True, "labels": "", "url": ""}
    licence = LICENSES[family_of(full)]
    return PublishedHead(**{"name": name, "task": task, "backbone": full, "licence": licence, **known, **more})


def _task(name: str, kind: str = "dense", **fields: Any) -> dict[str, Any]:
    return {"$": "Task", "name": name, "kind": kind, **fields}


def _linear(width: int, task: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"type": "linear", "config": {"embed_dim": width, "tasks": [task], **config}}


def _dpt(width: int, task: dict[str, Any], neck: dict[str, Any], **config: Any) -> dict[str, Any]:
    own = {"type": "dpt_neck", "config": {"embed_dim": width, **neck}}
    return {"type": "dpt", "config": {"embed_dim": width, "tasks": [task], "neck": own, **config}}


def _bins(high: float, low: float = 0.001, eps: float = 0.1, spacing: str = "linear") -> dict[str, Any]:
    return {"type": "bins", "config": {"low": low, "high": high, "count": 256, "spacing": spacing, "eps": eps}}


def _classifiers() -> Iterator[PublishedHead]:
    """DINOv2's linear classifiers: CLS of one or four layers and the mean patch of the last."""
    for short, size in _SIZES.items():
        base = f"dinov2_vit{short}14"
        twin = f"facebook/dinov2-{size}-imagenet1k-1-layer"
        for backbone, file, hub in ((base, base, twin), (f"{base}_reg", f"{base}_reg4", None)):
            width, depth = _dimensions(backbone)
            for form, count in (("linear", 1), ("linear4", 4)):
                yield _row(
                    f"{backbone}_imagenet_{form}",
                    "classification",
                    backbone,
                    url=f"{_FILES}/dinov2/{base}/{file}_{form}_head.pth",
                    hub=hub if count == 1 else None,
                    layers=tuple(range(depth - count, depth)),
                    inputs=_CLASSES,
                    head=_linear(width, _task("class", "classification", dim=1000), num_layers=count, pool="cls+mean"),
                    labels="imagenet",
                    dialects=("classifier", "classifier of transformers"),
                )


def _depth_heads() -> Iterator[PublishedHead]:
    """DINOv2's depth heads, which read blocks before the final norm. The range is that of the training data."""
    for short, size in _SIZES.items():
        base = f"dinov2_vit{short}14"
        width, depth = _dimensions(base)
        for data, far in (("nyu", 10.0), ("kitti", 80.0)):
            file = f"{_FILES}/dinov2/{base}/{base}_{data}"
            shared: dict[str, Any] = {"norm": False, "inputs": _WHOLE}
            bounds: dict[str, Any] = {"unit": "m", "minimum": 0.001, "maximum": far}
            neck = {
                "readout": "project",
                "patch_size": 14,
                "hidden_sizes": [width // 8, width // 4, width // 2, width],
                "upsample": "double",
                "align_corners": True,
                "unit_bias": False,
            }
            shifted = {"$": "TargetTransform", "mean": 0.001, "std": 1.0}
            metres = _task("depth", activation="relu", transform=shifted, **bounds)
            yield _row(
                f"{base}_{data}_dpt",
                "depth",
                base,
                url=f"{file}_dpt_head.pth",
                hub=f"facebook/dpt-dinov2-{size}-{data}",
                layers=_SPREAD[depth],
                head=_dpt(width, metres, neck, add_projection=True),
                dialects=("dpt of mmcv", "dpt of transformers"),
                **shared,
            )
            for form, layers in (("linear", (depth - 1,)), ("linear4", _SPREAD[depth])):
                cells = {"num_layers": len(layers), "pool": None, "use_cls": True, "upsample": 4, "bins": _bins(far)}
                yield _row(
                    f"{base}_{data}_{form}",
                    "depth",
                    base,
                    url=f"{file}_{form}_head.pth",
                    layers=layers,
                    head=_linear(width, _task("depth", **bounds), **cells),
                    dialects=("depth of mmcv",),
                    **shared,
                )


def _segmentation_heads() -> Iterator[PublishedHead]:
    """DINOv2's linear segmentation of one and of four layers."""
    for short in _SIZES:
        base = f"dinov2_vit{short}14"
        width, depth = _dimensions(base)
        for data, classes in (("voc2012", 21), ("ade20k", 150)):
            for form, count in (("linear", 1), ("ms", 4)):
                task = _task("class", "segmentation", dim=classes)
                yield _row(
                    f"{base}_{data}_{form}",
                    "segmentation",
                    base,
                    url=f"{_FILES}/dinov2/{base}/{base}_{data}_{form}_head.pth",
                    layers=tuple(range(depth - count, depth)),
                    inputs=_WHOLE,
                    head=_linear(width, task, num_layers=count, pool=None),
                    labels=data,
                    dialects=("segmentation of mmseg",),
                )


def _dinov3_heads() -> Iterator[PublishedHead]:
    """DINOv3's canopy height on ViT-L, and the classifier and depth head on ViT-7B."""
    corners = {"patch_size": 16, "upsample": "double", "align_corners": True}
    eightfold = {"$": "TargetTransform", "mean": 0.0, "std": 8.0}
    width, _ = _dimensions("dinov3_vitl16")
    yield _row(
        "dinov3_vitl16_sat_chmv2",
        "canopy height",
        "vit_large_patch16_dinov3.sat493m",
        url=f"{_FILES}/dinov3/chmv2/dinov3_vitl16_chmv2_dpt_head-3703d643.pth",
        gated=True,
        hub="facebook/dinov3-vitl16-chmv2-dpt-head",
        sha256="3703d643",
        layers=(5, 11, 17, 23),  # block 5, where the depth heads on ViT-L read block 4
        inputs={**_WHOLE, "mean": (0.420, 0.411, 0.296), "std": SATELLITE_STD},  # the backbone's own mean is (0.430, …)
        head=_dpt(
            width,
            _task("height", unit="m", transform=eightfold),
            {"readout": "project", "hidden_sizes": [128, 256, 512, 1024], **corners},
            hidden_dim=128,
            bins=_bins(12.0, eps=1e-8, spacing="mixed"),
        ),
        dialects=("dpt", "chmv2 of transformers"),
    )
    width, depth = _dimensions("dinov3_vit7b16")
    files = f"{_FILES}/dinov3/dinov3_vit7b16/dinov3_vit7b16"
    yield _row(
        "dinov3_vit7b16_imagenet_linear",
        "classification",
        "dinov3_vit7b16",
        url=f"{files}_imagenet1k_linear_head-90d8ed92.pth",
        gated=True,
        sha256="90d8ed92",
        layers=(depth - 1,),
        inputs=_CLASSES,
        head=_linear(width, _task("class", "classification", dim=1000), pool="cls+mean"),
        labels="imagenet",
        dialects=("classifier",),
    )
    neck = {"readout": "ignore", "out_channels": 512, "hidden_sizes": [2048] * 4, "unit_bias": False, **corners}
    yield _row(
        "dinov3_vit7b16_synthmix_dpt",
        "depth",
        "dinov3_vit7b16",
        url=f"{files}_synthmix_dpt_head-02040be1.pth",
        gated=True,
        sha256="02040be1",
        layers=_SPREAD[depth],
        inputs={"size": (768, 768), "resize": "stretch"},
        head=_dpt(width, _task("depth", unit="m"), neck, bins=_bins(100.0), add_projection=True),
        dialects=("dpt with batch norm",),
    )


def _dimensions(backbone: str) -> tuple[int, int]:
    """Width and depth."""
    model = _model(backbone)
    return model.width, model.depth


def _model(backbone: str) -> Known:
    return cast("Known", model_of(backbone))


ROWS = {row.name: row for rows in (_classifiers, _depth_heads, _segmentation_heads, _dinov3_heads) for row in rows()}
"""Name -> row."""
