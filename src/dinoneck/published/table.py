"""The table of published heads: which file, which backbone, which arithmetic, unit and licence.

Imports no torch.

A row holds what users would otherwise have to know: the blocks, the final norm, how positions are
resampled, and how images are prepared. It also says how the head's output becomes a value in its
unit.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dinoneck import registry
from dinoneck.backbones.known import (
    KNOWN,
    LICENSES,
    SATELLITE_STD,
    TIPSV2_BACKBONE,
    TIPSV2_MEAN,
    TIPSV2_STD,
    Known,
    WeightNames,
    license_of,
    model_of,
    names_of,
    unknown_backbone,
)
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.published.detectors import DETECTORS, PublishedDetector, coco_classes
from dinoneck.published.names import (
    depth_anything_name,
    dinov2_name,
    dinov3_name,
    pmt_name,
    tipsv2_name,
)
from dinoneck.text import did_you_mean

if TYPE_CHECKING:
    from dinoneck.heads.head import Head

_META_FILES = "https://dl.fbaipublicfiles.com"
_HUB = "https://huggingface.co"
# depth -> blocks of four-layer depth heads
_DEPTH_LAYERS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
# the last block of every quarter of a ViT-L: the depth heads read block 4 first, others block 5
_QUARTERS_OF_24 = (5, 11, 17, 23)
_CLASSIFIER_INPUTS = {"size": (224, 224), "resize": "crop", "interpolation": "bicubic"}
_WHOLE_IMAGES = {"resize": "pad", "pad_to": "center"}  # the image as it is, in whole patches
_TIPSV2_INPUTS = {
    "size": (448, 448),
    "resize": "stretch",
    "mean": TIPSV2_MEAN,
    "std": TIPSV2_STD,
}
_DOUBLE_UPSAMPLING = {"upsample": "double", "align_corners": True}
_COCO_THINGS = 80  # of the panoptic classes, which list them first
NOT_STATED = "not stated"
Rename = Callable[[str], str | None]
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


@dataclass(frozen=True)
class PublishedHead:
    """A head that others published.

    Attributes:
        name: ``{backbone}_{data}_{form}``, as :func:`load_published`, Predictor and ``--heads``
            take it.
        task: ``classification``, ``depth``, ``canopy height``, ``normals``, ``segmentation``,
            ``instances`` or ``panoptic``.
        backbone: timm's name of the frozen backbone, with its tag.
        url: the publisher's file, or its page.
        layers: block indices that the head reads.
        inputs: fields of :class:`dinoneck.data.Preprocessing`.
        head: ``{"type", "config"}`` of the module; the labels of classes are filled in from
            ``labels``.
        rename: a name in its file -> our name of the tensor, or None if the tensor is not part of
            the head; see :mod:`dinoneck.published.names`.
        norm: whether the final norm is applied to the layers.
        hub: a Hub repository with the same weights in safetensors; None if there is none.
        labels: the classes, as for :func:`labels_of`; empty for values.
        terms: the licence, where it is not that of the backbone.
        licence_source: where the licence was read; empty for that of the backbone, or of the page.
        tuned: whether the backbone was tuned along, so that its weights are in the file too.
        backbone_prefix: what the names of the frozen backbone's tensors begin with, where the file
            may hold it; empty where it never does.
        only_safetensors: whether files of other formats are not read.
        revision: the commit of the Hub repository that is fetched; None: it is not pinned, and the
            newest is fetched.
    """

    name: str
    task: str
    backbone: str
    url: str
    layers: tuple[int, ...]
    inputs: Mapping[str, Any]
    head: Mapping[str, Any]
    rename: Rename
    norm: bool = True
    hub: str | None = None
    labels: str = ""
    terms: str = ""
    licence_source: str = ""
    tuned: bool = False
    backbone_prefix: str = ""
    only_safetensors: bool = False
    revision: str | None = None

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
    def is_on_hub(self) -> bool:
        """Whether the Hub repository is the publisher's, and not a copy of its file."""
        return self.hub is not None and self.url == f"{_HUB}/{self.hub}"

    @property
    def sha256(self) -> str:
        """The first digits of the file's hash, which its publisher states in its name; empty if it does not."""
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.url)
        return match[1] if match else ""

    @property
    def size(self) -> int:
        """Parameters of the head."""
        return sum(parameter.numel() for parameter in self.build().parameters())

    def build(self) -> Head:
        """Return the module on the meta device, in eval mode."""
        import torch

        config = dict(self.head["config"])
        if self.labels:
            labels = labels_of(self.labels)
            task = config["tasks"][0] | {"labels": labels}
            if task["kind"] == "panoptic":
                task["things"] = labels[:_COCO_THINGS]
            config["tasks"] = [task]
        with torch.device("meta"):
            return cast("Head", registry.resolve(self.head["type"]).from_config(config).eval())


def list_published(
    task: str | None = None, backbone: str | None = None
) -> list[PublishedHead | PublishedDetector]:
    """Return the published heads and detectors that :func:`load_published` knows.

    Args:
        task: only those of this task.
        backbone: only heads on this backbone, by any of its names; detectors have one of their own.

    Raises:
        ConfigError: for a task that no row has.
        BackboneError: for a backbone that is not known.
    """
    rows: list[PublishedHead | PublishedDetector] = [*ROWS.values(), *DETECTORS.values()]
    if task is not None:
        tasks = dict.fromkeys(row.task for row in rows)
        if task not in tasks:
            raise ConfigError(f"task is {task!r}; expected one of {', '.join(tasks)}")
        rows = [row for row in rows if row.task == task]
    if backbone is not None:
        names = names_of(backbone)
        if names is None:
            raise unknown_backbone(backbone, [model.name for model in KNOWN])
        heads = [row for row in rows if isinstance(row, PublishedHead)]
        rows = [head for head in heads if head.backbone == names.timm]
    return rows


def is_published(source: object, *, has_weights: bool = False) -> bool:
    """Whether this is the name of a published head or detector, and not a local path.

    Args:
        source: a name or a path; other objects are neither.
        has_weights: whether the file of a published head is named beside it: then the name is
            that of the head, also where there is a path of the same name.

    Raises:
        CheckpointError: if it is both and no file is named, or neither and almost the name of one.
    """
    if not isinstance(source, str):
        return False
    exists = os.path.lexists(source)
    known = {**ROWS, **DETECTORS}
    if source not in known:
        may_be_name = source.replace("-", "_").isidentifier()
        if not exists and may_be_name and did_you_mean(source, known):
            row_named(source)  # raises the error that suggests a name
        return False
    if exists and not has_weights:
        raise CheckpointError(
            f"{source!r} is a published head and a path here; write ./{source} for the path, or "
            "name the file of the published head too, weights=FILE (--weights FILE)"
        )
    return True


def row_named(name: str) -> PublishedHead | PublishedDetector:
    """Return the row of a published head or detector.

    Raises:
        CheckpointError: if there is none.
    """
    known: dict[str, PublishedHead | PublishedDetector] = {**ROWS, **DETECTORS}
    if name not in known:
        raise CheckpointError(
            f"{name!r} is not a published head that is known here.{did_you_mean(name, known)} "
            "'dinoneck list heads' lists them"
        )
    return known[name]


def labels_of(data: str) -> list[str]:
    """Return the classes of a data set; a name of several classes is followed by its index.

    Args:
        data: ``imagenet``, ``voc2012``, ``ade20k``, ``coco`` (80 things) or ``coco_panoptic`` (and
            53 of stuff).
    """
    if data in ("ade20k", "coco_panoptic"):
        lines = Path(__file__).with_name(f"{data}.txt").read_text("utf-8").split("\n")[:-1]
        if data == "coco_panoptic":  # the file lists stuff only
            return labels_of("coco") + lines
        return lines
    if data == "coco":
        return list(coco_classes().values())
    from torchvision import models

    weights: Any = models.ResNet18_Weights.IMAGENET1K_V1
    if data == "voc2012":
        weights = models.segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    names = list(weights.meta["categories"])
    count = Counter(names)
    labels = []
    for index, name in enumerate(names):
        labels.append(name if count[name] == 1 else f"{name} ({index})")
    return labels


def _task(name: str, kind: str = "dense", **fields: Any) -> dict[str, Any]:
    return {"$": "Task", "name": name, "kind": kind, **fields}


def _affine(std: float, mean: float = 0.0) -> dict[str, Any]:
    """The transform whose value is ``std * output + mean``."""
    return {"$": "TargetTransform", "mean": mean, "std": std}


def _linear(width: int, task: dict[str, Any], **config: Any) -> dict[str, Any]:
    return {"type": "linear", "config": {"embed_dim": width, "tasks": [task], **config}}


def _dpt(width: int, task: dict[str, Any], neck: dict[str, Any], **config: Any) -> dict[str, Any]:
    neck_config = {"type": "dpt_neck", "config": {"embed_dim": width, **neck}}
    return {
        "type": "dpt",
        "config": {"embed_dim": width, "tasks": [task], "neck": neck_config, **config},
    }


def _bins(
    high: float, low: float = 0.001, eps: float = 0.1, spacing: str = "linear"
) -> dict[str, Any]:
    return {
        "type": "bins",
        "config": {"low": low, "high": high, "count": 256, "spacing": spacing, "eps": eps},
    }


class _Backbone(NamedTuple):
    """What the rows of heads on a backbone say of it.

    Attributes:
        name: timm's, with the tag of the weights.
        width: channels of a token.
        depth: blocks.
    """

    name: str
    width: int
    depth: int


def _backbone(name: str) -> _Backbone:
    """A published backbone, by any of its names."""
    model = cast("Known", model_of(name))
    names = cast("WeightNames", names_of(name))
    return _Backbone(names.timm, model.width, model.depth)


def _dinov2(
    base: str,
    form: str,
    *,
    task: str,
    layers: Sequence[int],
    head: Any,
    inputs: Mapping[str, Any] = _WHOLE_IMAGES,
    **fields: Any,
) -> PublishedHead:
    """A row of the files of DINOv2."""
    folder = base.removesuffix("_reg")
    file_base = base.replace("_reg", "_reg4")
    file_form = form.removeprefix("imagenet_")
    return PublishedHead(
        name=f"{base}_{form}",
        task=task,
        backbone=_backbone(base).name,
        url=f"{_META_FILES}/dinov2/{folder}/{file_base}_{file_form}_head.pth",
        layers=tuple(layers),
        inputs=inputs,
        head=head,
        rename=dinov2_name,
        **fields,
    )


def _dinov2_heads() -> Iterator[PublishedHead]:
    """DINOv2's linear classifiers, depth heads and linear segmentation, one backbone after the other."""
    for short, size in _SIZES.items():
        base = f"dinov2_vit{short}14"
        width = _backbone(base).width
        depth = _backbone(base).depth
        # CLS of one or four layers and the mean patch of the last
        task = _task("class", "classification", dim=1000)
        for backbone in (base, f"{base}_reg"):
            for form, count in (("linear", 1), ("linear4", 4)):
                hub = None
                if count == 1 and backbone == base:
                    hub = f"facebook/dinov2-{size}-imagenet1k-1-layer"
                yield _dinov2(
                    backbone,
                    f"imagenet_{form}",
                    task="classification",
                    layers=range(depth - count, depth),
                    head=_linear(width, task, num_layers=count, pool="cls+mean"),
                    inputs=_CLASSIFIER_INPUTS,
                    labels="imagenet",
                    hub=hub,
                )
        # blocks before the final norm; the range is that of the training data
        neck = {
            "readout": "project",
            "patch_size": 14,
            "hidden_sizes": [width // 8, width // 4, width // 2, width],
            "unit_bias": False,
            **_DOUBLE_UPSAMPLING,
        }
        for data, far in (("nyu", 10.0), ("kitti", 80.0)):
            bounds: dict[str, Any] = {"unit": "m", "minimum": 0.001, "maximum": far}
            metres = _task("depth", activation="relu", transform=_affine(1.0, mean=0.001), **bounds)
            yield _dinov2(
                base,
                f"{data}_dpt",
                task="depth",
                layers=_DEPTH_LAYERS[depth],
                head=_dpt(width, metres, neck, add_projection=True),
                norm=False,
                hub=f"facebook/dpt-dinov2-{size}-{data}",
            )
            for form, blocks in (("linear", (depth - 1,)), ("linear4", _DEPTH_LAYERS[depth])):
                head = _linear(
                    width,
                    _task("depth", **bounds),
                    num_layers=len(blocks),
                    pool=None,
                    use_cls=True,
                    upsample=4,
                    bins=_bins(far),
                )
                yield _dinov2(
                    base,
                    f"{data}_{form}",
                    task="depth",
                    layers=blocks,
                    head=head,
                    norm=False,
                )
        for data, classes in (("voc2012", 21), ("ade20k", 150)):
            for form, count in (("linear", 1), ("ms", 4)):
                task = _task("class", "segmentation", dim=classes)
                yield _dinov2(
                    base,
                    f"{data}_{form}",
                    task="segmentation",
                    layers=range(depth - count, depth),
                    head=_linear(width, task, num_layers=count, pool=None),
                    labels=data,
                )


def _dinov3_heads() -> Iterator[PublishedHead]:
    """DINOv3's canopy height on ViT-L, and the classifier and depth head on ViT-7B."""
    vit_large = _backbone("vit_large_patch16_dinov3.sat493m")
    neck = {"readout": "project", "hidden_sizes": [128, 256, 512, 1024], **_DOUBLE_UPSAMPLING}
    yield PublishedHead(
        name="dinov3_vitl16_sat_chmv2",
        task="canopy height",
        backbone=vit_large.name,
        url=f"{_META_FILES}/dinov3/chmv2/dinov3_vitl16_chmv2_dpt_head-3703d643.pth",
        layers=_QUARTERS_OF_24,
        # the mean is not the backbone's, (0.430, ...)
        inputs={**_WHOLE_IMAGES, "mean": (0.420, 0.411, 0.296), "std": SATELLITE_STD},
        head=_dpt(
            vit_large.width,
            _task("height", unit="m", transform=_affine(8.0)),
            neck,
            hidden_dim=128,
            bins=_bins(12.0, eps=1e-8, spacing="mixed"),
        ),
        rename=dinov3_name,
        hub="facebook/dinov3-vitl16-chmv2-dpt-head",
    )
    vit_7b = _backbone("dinov3_vit7b16")
    files = f"{_META_FILES}/dinov3/dinov3_vit7b16/dinov3_vit7b16"
    yield PublishedHead(
        name="dinov3_vit7b16_imagenet_linear",
        task="classification",
        backbone=vit_7b.name,
        url=f"{files}_imagenet1k_linear_head-90d8ed92.pth",
        layers=(vit_7b.depth - 1,),
        inputs=_CLASSIFIER_INPUTS,
        head=_linear(vit_7b.width, _task("class", "classification", dim=1000), pool="cls+mean"),
        rename=dinov3_name,
        labels="imagenet",
    )
    neck = {
        "readout": "ignore",
        "out_channels": 512,
        "hidden_sizes": [2048] * 4,
        "unit_bias": False,
        **_DOUBLE_UPSAMPLING,
    }
    yield PublishedHead(
        name="dinov3_vit7b16_synthmix_dpt",
        task="depth",
        backbone=vit_7b.name,
        url=f"{files}_synthmix_dpt_head-02040be1.pth",
        layers=_DEPTH_LAYERS[vit_7b.depth],
        inputs={"size": (768, 768), "resize": "stretch"},
        head=_dpt(
            vit_7b.width,
            _task("depth", unit="m"),
            neck,
            bins=_bins(100.0),
            add_projection=True,
        ),
        rename=dinov3_name,
    )


def _depth_anything() -> Iterator[PublishedHead]:
    """Depth Anything V2, relative and metric, whose backbones were tuned along; transformers' files."""
    inputs = {"size": (686, 686), "resize": "keep", "interpolation": "bicubic"}
    settings = (
        ("s", (48, 96, 192, 384), 64),
        ("b", (96, 192, 384, 768), 128),
        ("l", (256, 512, 1024, 1024), 256),
    )
    for short, widths, channels in settings:
        backbone = _backbone(f"dinov2_vit{short}14")
        neck = {
            "patch_size": 14,
            "out_channels": channels,
            "hidden_sizes": list(widths),
            "align_corners": True,
        }
        for suffix, data, far in (
            ("", "", 0),
            ("_indoor", "-Metric-Indoor", 20),
            ("_outdoor", "-Metric-Outdoor", 80),
        ):
            if far:
                task = _task("depth", activation="sigmoid", unit="m", transform=_affine(float(far)))
                terms = NOT_STATED
            else:
                task = _task("depth", activation="relu")
                terms = "Apache-2.0" if short == "s" else "CC-BY-NC-4.0"
            hub = f"depth-anything/Depth-Anything-V2{data}-{_SIZES[short].capitalize()}-hf"
            yield PublishedHead(
                name=f"dinov2_vit{short}14_depth_anything_v2{suffix}",
                task="depth",
                backbone=backbone.name,
                url=f"{_HUB}/{hub}",
                layers=_DEPTH_LAYERS[backbone.depth],
                inputs=inputs,
                head=_dpt(backbone.width, task, neck),
                rename=depth_anything_name,
                hub=hub,
                terms=terms,
                tuned=True,
            )


# blocks of TIPSv2's heads, as its config.json states them
_TIPSV2_LAYERS = {
    "b14": (2, 5, 8, 11),
    "l14": _QUARTERS_OF_24,
    "so400m14": (6, 13, 20, 26),
    "g14": (9, 19, 29, 39),
}


def _tipsv2_heads() -> Iterator[PublishedHead]:
    """TIPSv2-DPT: depth and surface normals of NYU Depth V2, and ADE20k's classes, on one frozen backbone."""
    for short, layers in _TIPSV2_LAYERS.items():
        backbone = _backbone(f"tipsv2_{short}")
        width = backbone.width
        neck = {
            "readout": "project",
            "readout_activation": "gelu_tanh",
            "patch_size": 14,
            "hidden_sizes": [width // 8, width // 4, width // 2, width],
            "unit_bias": False,
            **_DOUBLE_UPSAMPLING,
        }
        decoder = partial(_dpt, width, neck=neck, add_projection=True, linear_readout=True)
        metres = _task("depth", unit="m", minimum=0.001, maximum=10.0)
        normals = _task("normals", dim=3, activation="unit")
        classes = _task("class", "segmentation", dim=150)
        hub = f"google/tipsv2-{short}-dpt"
        row = PublishedHead(
            name=f"tipsv2_{short}_depth",
            task="depth",
            backbone=backbone.name,
            url=f"{_HUB}/{hub}",
            layers=layers,
            inputs=_TIPSV2_INPUTS,
            head=decoder(metres, bins=_bins(10.0, eps=0.001)),
            rename=partial(tipsv2_name, head="depth_head."),
            hub=hub,
            terms="Apache-2.0",
            licence_source=f"{_HUB}/{hub}/blob/main/README.md",
            backbone_prefix=TIPSV2_BACKBONE,
            only_safetensors=True,
        )
        yield row
        yield replace(
            row,
            name=f"tipsv2_{short}_normals",
            task="normals",
            head=decoder(normals, projection_activation=None),
            rename=partial(tipsv2_name, head="normals_head."),
        )
        yield replace(
            row,
            name=f"tipsv2_{short}_ade20k",
            task="segmentation",
            head=decoder(classes, projection_activation=None),
            rename=partial(tipsv2_name, head="segmentation_head."),
            labels="ade20k",
        )


class _MaskHeads(NamedTuple):
    """The mask heads of PMT for one data set.

    Attributes:
        data: as their names have it.
        sizes: (ViT, side of the images in pixels) of every head.
        labels: their classes, as for :func:`labels_of`.
        task: what they predict.
        num_queries: of every head.
        pads_to_square: whether images are resized and padded to a square of that side; else they
            are read as they are, in whole patches.
    """

    data: str
    sizes: Sequence[tuple[str, int]]
    labels: str
    task: dict[str, Any]
    num_queries: int
    pads_to_square: bool


_MASK_HEADS = (
    _MaskHeads(
        data="coco_panoptic",
        sizes=(("s", 640), ("b", 640), ("l", 640), ("l", 1280)),
        labels="coco_panoptic",
        task=_task("objects", "panoptic", dim=133),
        num_queries=200,
        pads_to_square=True,
    ),
    _MaskHeads(
        data="coco_instance",
        sizes=(("l", 640), ("l", 1280)),
        labels="coco",
        task=_task("objects", "instances", dim=80),
        num_queries=200,
        pads_to_square=True,
    ),
    _MaskHeads(
        data="ade20k_semantic",
        sizes=(("l", 512),),
        labels="ade20k",
        task=_task("class", "segmentation", dim=150),
        num_queries=100,
        pads_to_square=False,
    ),
)


def _mask_heads() -> Iterator[PublishedHead]:
    """PMT, masks by queries on frozen DINOv3; its pages state no licence, so its files are not downloaded."""
    for heads in _MASK_HEADS:
        for short, pixels in heads.sizes:
            backbone = _backbone(f"dinov3_vit{short}16")
            config = {
                "embed_dim": backbone.width,
                "tasks": [heads.task],
                "num_queries": heads.num_queries,
            }
            layers = _DEPTH_LAYERS[backbone.depth]
            if backbone.depth == 24:
                layers = _QUARTERS_OF_24
            inputs: Mapping[str, Any] = _WHOLE_IMAGES
            if heads.pads_to_square:
                inputs = {"size": (pixels, pixels), "resize": "pad"}
            page = f"{heads.data}_pmt_{_SIZES[short]}_{pixels}_dinov3"
            yield PublishedHead(
                name=f"dinov3_vit{short}16_{heads.data}_pmt{pixels}",
                task=heads.task["kind"],
                backbone=backbone.name,
                url=f"{_HUB}/tue-mps/{page}",
                layers=layers,
                inputs=inputs,
                head={"type": "mask", "config": config},
                rename=pmt_name,
                labels=heads.labels,
                terms=NOT_STATED,
            )


ROWS = {
    row.name: row
    for heads in (_dinov2_heads, _dinov3_heads, _depth_anything, _tipsv2_heads, _mask_heads)
    for row in heads()
}
"""Name -> row."""
