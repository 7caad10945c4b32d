"""The table of published detectors: RF-DETR, whose models are files of transformers. Imports no torch.

All were trained on COCO with a DINOv2 ViT-S that was tuned along.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinoneck import registry

VIT_NAME = "DINOv2 ViT-S (tuned)"
"""What the backbone of every row is called."""
_TYPE = "rf_detr"  # of the registry
# the column "License" of the model tables in README.md; the pages on the Hub state none
_LICENCE_SOURCE = "https://github.com/roboflow/rf-detr"
_COCO_OUTPUTS = 91  # category ids 0 ... 90, of which 80 are classes
_MIN_SCORE = 0.5  # what the publisher's predict() leaves out by default


@dataclass(frozen=True)
class PublishedDetector:
    """A detector that others published, with its backbone.

    Attributes:
        name: as :func:`load_published`, Predictor and ``--heads`` take it.
        task: ``detection`` (boxes) or ``instances`` (boxes and masks).
        hub: the publisher's Hub repository.
        image_size: pixels of a side of the images that it was trained on.
        patch_size: pixels of a side of a patch.
        num_windows: windows along a side, within which most blocks attend.
        decoder_layers: layers of the decoder.
        queries: boxes that it gives at most.
        million_parameters: as published in the model tables of the publisher, to 0.1.
        ap: average precision on COCO val2017 as published, of boxes or of masks, in percent.
        revision: the commit of the repository that is fetched; None: it is not pinned, and the
            newest is fetched.
        licence: of the weights.
        licence_source: where the licence was read.
        min_score: of the boxes that are predicted by default.
    """

    name: str
    task: str
    hub: str
    image_size: int
    patch_size: int
    num_windows: int
    decoder_layers: int
    queries: int
    million_parameters: float
    ap: float
    revision: str | None = None
    licence: str = "Apache-2.0"
    licence_source: str = _LICENCE_SOURCE
    min_score: float = _MIN_SCORE

    backbone = VIT_NAME
    gated = False

    @property
    def url(self) -> str:
        """The publisher's page."""
        return f"https://huggingface.co/{self.hub}"

    @property
    def size(self) -> int:
        """Parameters, with those of the ViT."""
        return sum(parameter.numel() for parameter in self.build().parameters())

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of :class:`dinoneck.detection.RfDetr`."""
        outputs = coco_classes()
        return {
            "classes": list(outputs.values()),
            "outputs": list(outputs),
            "num_outputs": _COCO_OUTPUTS,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_windows": self.num_windows,
            "decoder_layers": self.decoder_layers,
            "queries": self.queries,
            "masks": self.task == "instances",
            "min_score": self.min_score,
        }

    def build(self) -> Any:
        """Return the :class:`dinoneck.detection.RfDetr` on the meta device, in eval mode.

        Raises:
            ImportError: if transformers is missing, or too old to have it.
        """
        return registry.resolve(_TYPE).from_config(self.config, device="meta").eval()


def coco_classes() -> Mapping[int, str]:
    """Return category id -> name of the 80 classes of COCO, whose ids have gaps."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    classes = {}
    for category_id, name in enumerate(names):  # torchvision fills the gaps
        if name not in ("__background__", "N/A"):
            classes[category_id] = name
    return classes


def _boxes(
    size: str, image_size: int, decoder_layers: int, *, million_parameters: float, ap: float
) -> PublishedDetector:
    return PublishedDetector(
        name=f"rf_detr_{size}",
        task="detection",
        hub=f"Roboflow/rf-detr-{size}",
        image_size=image_size,
        patch_size=16,
        num_windows=2,
        decoder_layers=decoder_layers,
        queries=300,
        million_parameters=million_parameters,
        ap=ap,
    )


def _masks(
    size: str,
    image_size: int,
    decoder_layers: int,
    *,
    queries: int,
    million_parameters: float,
    ap: float,
    num_windows: int = 2,
) -> PublishedDetector:
    return PublishedDetector(
        name=f"rf_detr_seg_{size}",
        task="instances",
        hub=f"Roboflow/rf-detr-seg-{size}",
        image_size=image_size,
        patch_size=12,
        num_windows=num_windows,
        decoder_layers=decoder_layers,
        queries=queries,
        million_parameters=million_parameters,
        ap=ap,
    )


# sizes, layers and queries as in the package rfdetr (src/rfdetr/config.py), parameters and AP as in
# its README.md. rf_detr_seg_large: config.py has 200 queries, which make 35.9 million parameters;
# 300 make the 36.2 of README.md
_ROWS = (
    _boxes("nano", 384, 2, million_parameters=30.5, ap=48.4),
    _boxes("small", 512, 3, million_parameters=32.1, ap=53.0),
    _boxes("medium", 576, 4, million_parameters=33.7, ap=54.7),
    _boxes("large", 704, 4, million_parameters=33.9, ap=56.5),
    _masks("nano", 312, 4, queries=100, million_parameters=33.6, ap=40.3, num_windows=1),
    _masks("small", 384, 4, queries=100, million_parameters=33.7, ap=43.1),
    _masks("medium", 432, 5, queries=200, million_parameters=35.7, ap=45.3),
    _masks("large", 504, 5, queries=300, million_parameters=36.2, ap=47.1),
    _masks("xlarge", 624, 6, queries=300, million_parameters=38.1, ap=48.8),
    _masks("2xlarge", 768, 6, queries=300, million_parameters=38.6, ap=49.9),
)
DETECTORS = {row.name: row for row in _ROWS}
"""Name -> row."""
