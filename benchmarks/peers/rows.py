"""What a user of every library writes: train on the part "train", return a function from row numbers to predictions."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch import DPT
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

from benchmarks.peers.data import BACKBONE, CLASSES, GRID, LAYERS, SIZE, Boxes, Masks
from dinoneck import FPNHead, PyramidHead, SpatialTuningAdapter, STAPyramid, Task
from dinoneck.heads import Head
from dinoneck.interop import TorchvisionBackbone
from dinoneck.training import Recipe, fit

try:  # AGPL-3.0: not a dependency, only in an environment of its own
    import lightly_train
except ImportError:
    lightly_train = None

EPOCHS, BATCH, RATES = 8, 8, (1e-3, 3e-3)
HIDDEN, WIDTH = (32, 32, 64, 64), 32  # of every DPT decoder
LEVELS = 64  # channels of a pyramid's levels; the group norms of FCOS want a multiple of 32
TASK = Task("class", dim=3, kind="segmentation", labels=CLASSES)
Predict = Callable[[Tensor], Any]


def train(module: nn.Module, loss: Callable[[Tensor], Tensor], rows: Tensor, lr: float) -> None:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    steps = EPOCHS * math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1, cycle_momentum=False)
    for _ in range(EPOCHS):
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            loss(batch).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    module.eval()


def fitted(head: Head, data: Masks, lr: float, seed: int) -> Predict:
    ids = data.source.ids
    chosen = {"targets": {"class": data.masks}, "target_ids": ids, "ids": [ids[i] for i in data.parts["train"]]}
    options = {"epochs": EPOCHS, "batch_size": BATCH, "lr": lr, "seed": seed, "recipe": Recipe(ema_decay=None)}
    fit(head, data.source, **chosen, **options)

    def predict(rows: Tensor) -> Tensor:
        maps = head.predict(data.source.batch([ids[i] for i in rows]))["class"]
        return F.interpolate(maps, SIZE, mode="bilinear").argmax(dim=1)

    return predict


def dinoneck_dpt(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    neck = {"type": "dpt_neck", "num_layers": 4, "out_channels": WIDTH, "hidden_sizes": HIDDEN}
    return fitted(PyramidHead(384, [TASK], neck, layer_indices=LAYERS), data, lr, seed)


def dinoneck_fpn(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    return fitted(FPNHead(384, [TASK], 4, LAYERS, fpn_dim=64, tower_depth=1), data, lr, seed)


def smp_dpt(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    sizes = {"decoder_intermediate_channels": HIDDEN, "decoder_fusion_channels": WIDTH}
    whole = DPT(f"tu-{BACKBONE}", encoder_weights=None, classes=3, decoder_readout="ignore", **sizes)
    model = nn.ModuleDict({"decoder": whole.decoder, "head": whole.segmentation_head})
    del whole  # its encoder is the shared backbone

    def logits(rows: Tensor) -> Tensor:
        layers = [layer[rows].float() for layer in data.source.tokens.sequence]
        maps = [layer[:, 5:].transpose(1, 2).unflatten(2, GRID).contiguous() for layer in layers]
        return model["head"](model["decoder"](maps, [layer[:, :5] for layer in layers]))

    train(model, lambda rows: F.cross_entropy(logits(rows), data.masks[rows]), data.parts["train"], lr)
    return lambda rows: logits(rows).argmax(dim=1)


def transformers_dpt(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    sizes = {"neck_hidden_sizes": HIDDEN, "fusion_hidden_size": WIDTH, "hidden_size": 384}
    config = DPTConfig(readout_type="ignore", num_labels=3, **sizes)
    model = nn.ModuleDict({"neck": DPTNeck(config), "head": DPTSemanticSegmentationHead(config)})

    def logits(rows: Tensor) -> Tensor:
        layers = [layer[rows].float() for layer in data.source.tokens.sequence]
        without_registers = [torch.cat((layer[:, :1], layer[:, 5:]), dim=1) for layer in layers]
        return F.interpolate(model["head"](model["neck"](without_registers, *GRID)), SIZE, mode="bilinear")

    train(model, lambda rows: F.cross_entropy(logits(rows), data.masks[rows]), data.parts["train"], lr)
    return lambda rows: logits(rows).argmax(dim=1)


def lightly_linear(data: Masks, lr: float, seed: int) -> Predict:
    folder = Path(tempfile.mkdtemp())
    data.hand_to_lightly(folder)
    parts = {part: {kind: str(folder / part / kind) for kind in ("images", "masks")} for part in ("train", "val")}
    plain = {"random_flip": None, "color_jitter": None, "scale_jitter": None, "image_size": SIZE}
    lightly_train.train_semantic_segmentation(
        out=folder / "out",
        model="dinov3/vits16-notpretrained-linear",  # its last layer, frozen, and one linear layer
        data={**parts, "classes": dict(enumerate(CLASSES))},
        steps=EPOCHS * math.ceil(len(data.parts["train"]) / BATCH),
        batch_size=BATCH,
        gradient_accumulation_steps=1,
        num_workers=0,
        accelerator="cpu",
        precision="32-true",
        seed=seed,
        # it multiplies the rate by the root of BATCH / 16
        model_args={"backbone_weights": str(folder / "backbone.pt"), "lr": lr * math.sqrt(16 / BATCH)},
        transform_args={**plain, "val": {"smallest_max_size": {"max_size": [SIZE[0]], "prob": 1.0}}},
    )
    model = lightly_train.load_model(folder / "out" / "exported_models" / "exported_last.pt")
    return lambda rows: torch.stack([model.predict(data.images[i]) for i in rows])


def detector(body: nn.Module, data: Boxes, lr: float) -> Predict:
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    sizes = {"min_size": SIZE[0], "max_size": SIZE[1], "size_divisible": 32}
    model = FCOS(body, 3, anchor_generator=anchors, score_thresh=0.05, **sizes)

    def loss(rows: Tensor) -> Tensor:
        return sum(model([data.images[i] for i in rows], [data.targets[i] for i in rows]).values())

    train(model, loss, data.parts["train"], lr)
    return lambda rows: model([data.images[i] for i in rows])


def dinoneck_adapter(data: Boxes, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    return detector(TorchvisionBackbone(data.backbone, SpatialTuningAdapter(384, LEVELS)), data, lr)


def dinoneck_sta(data: Boxes, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    return detector(TorchvisionBackbone(data.backbone.with_layers([11]), STAPyramid(384, LEVELS)), data, lr)


class TimmPyramid(nn.Module):
    """Three scales of three layers of a timm ViT, and torchvision's FPN."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit, self.out_channels = vit, LEVELS
        self.fpn = FeaturePyramidNetwork([384] * 3, LEVELS)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels by name."""
        maps = self.vit.forward_intermediates(images, indices=[5, 8, 11], norm=True, intermediates_only=True)
        scaled = [F.interpolate(x, scale_factor=s, mode="bilinear") for x, s in zip(maps, (2, 1, 0.5), strict=True)]
        return self.fpn({str(level): x for level, x in enumerate(scaled)})


def torchvision_fpn(data: Boxes, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    return detector(TimmPyramid(data.backbone.adapter.model), data, lr)


@dataclass(frozen=True)
class Peer:
    """A row: what is run, what else a user writes for it, and the licence of the library."""

    run: Callable[[Any, float, int], Predict]
    helpers: tuple[Any, ...]
    licence: str

    @property
    def lines(self) -> int:
        """Lines of user code, without blank lines, comments and docstrings."""
        source = "\n".join(inspect.getsource(part) for part in (self.run, *self.helpers)).splitlines()
        return sum(bool(line.strip()) and not line.strip().startswith(("#", '"""')) for line in source)


PEERS: dict[str, dict[str, Peer]] = {
    "crop_cover": {
        "dinoneck, DPT neck": Peer(dinoneck_dpt, (fitted,), "Apache-2.0"),
        "dinoneck, FPN head": Peer(dinoneck_fpn, (fitted,), "Apache-2.0"),
        "segmentation_models_pytorch, DPT": Peer(smp_dpt, (train,), "MIT"),
        "transformers, DPT neck and head": Peer(transformers_dpt, (train,), "Apache-2.0"),
    },
    "blood_cells": {
        "dinoneck, SpatialTuningAdapter + torchvision's FCOS": Peer(dinoneck_adapter, (detector, train), "Apache-2.0"),
        "dinoneck, STAPyramid + torchvision's FCOS": Peer(dinoneck_sta, (detector, train), "Apache-2.0"),
        "torchvision, FPN and FCOS on a timm ViT": Peer(
            torchvision_fpn, (TimmPyramid, detector, train), "BSD-3-Clause"
        ),
    },
    "lightly": {"lightly-train, linear head": Peer(lightly_linear, (), "AGPL-3.0")},
}
