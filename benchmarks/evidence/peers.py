"""Heads of other libraries on the tokens of one frozen backbone, trained by the same ``fit``.

The ViT runs once over all images of crop_cover at 128 x 160 px; every head has the same tokens,
training images, epochs, batches, optimizer, schedule and loss. A row's learning rate is the one
with the best score on the validation images, with the first seed.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from benchmarks.evidence.real import CLASSES, SHORT_EVERY, layers_of, spread
from benchmarks.measure import Row
from dinoneck import FeaturePyramid, FPNHead, PyramidHead, Task, Tokens, load_backbone, register
from dinoneck.data import DenseLabels, read_table
from dinoneck.heads import Head
from dinoneck.necks.neck import Neck
from dinoneck.training import MemoryTokens, Recipe, fit, group_folds

SIZE = (128, 160)  # height, width
EPOCHS = 8
BATCH = 8
RATES = (1e-3, 3e-3)
FOLDS = 5  # groups of images: one to test, one to choose the learning rate, the others to train
SHORT_FOLDS = 3
# of every DPT decoder: channels of the four layers, and of the fused maps
HIDDEN = (32, 32, 64, 64)
WIDTH = 32
TASK = Task("class", dim=3, kind="segmentation", labels=CLASSES)

Run = Callable[[Tokens], Tensor]


def smp_dpt(dim: int) -> tuple[nn.Module, Run]:
    """DPT of segmentation_models_pytorch: half the image's size."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

    decoder = DPTDecoder(
        encoder_out_channels=[dim] * 4,
        encoder_output_strides=[16] * 4,
        encoder_has_prefix_tokens=True,
        readout="ignore",
        intermediate_channels=list(HIDDEN),
        fusion_channels=WIDTH,
    )
    head = SegmentationHead(WIDTH, len(CLASSES), kernel_size=3, upsampling=1)

    def run(tokens: Tokens) -> Tensor:
        prefix = [x[:, : tokens.num_prefix_tokens] for x in tokens.sequence]
        fused = decoder(tokens.maps(), prefix)
        return head(fused)

    return nn.ModuleList([decoder, head]), run


def transformers_dpt(dim: int) -> tuple[nn.Module, Run]:
    """DPT neck and head of transformers, which know no registers."""
    from transformers import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

    config = DPTConfig(
        hidden_size=dim,
        neck_hidden_sizes=HIDDEN,
        fusion_hidden_size=WIDTH,
        readout_type="ignore",
        num_labels=len(CLASSES),
    )
    neck = DPTNeck(config)
    head = DPTSemanticSegmentationHead(config)

    def run(tokens: Tokens) -> Tensor:
        rows, cols = tokens.grid
        layers = []
        for sequence in tokens.sequence:
            cls_token = sequence[:, :1]
            patches = sequence[:, tokens.num_prefix_tokens :]
            layers.append(torch.cat((cls_token, patches), dim=1))
        fused = neck(layers, rows, cols)
        return head(fused)

    return nn.ModuleList([neck, head]), run


DECODERS = {"smp": smp_dpt, "transformers": transformers_dpt}


class Decoder(Head):
    """A decoder of another library as a head."""

    def __init__(self, embed_dim: int, library: str) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.tasks = (TASK,)
        self.parts, self.run = DECODERS[library](embed_dim)

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """Tokens -> class maps."""
        return {TASK.name: self.run(tokens)}


def dinoneck_dpt(dim: int) -> Head:
    """PyramidHead on DPTNeck of the same sizes."""
    neck = {"type": "dpt_neck", "num_layers": 4, "out_channels": WIDTH, "hidden_sizes": HIDDEN}
    return PyramidHead(dim, [TASK], neck)


PEERS: dict[str, Callable[[int], Head]] = {
    "dinoneck, DPT neck": dinoneck_dpt,
    "dinoneck, FPN head": lambda dim: FPNHead(dim, [TASK], 4, fpn_dim=64, tower_depth=1),
    "segmentation_models_pytorch, DPT": lambda dim: Decoder(dim, "smp"),
    "transformers, DPT neck and head": lambda dim: Decoder(dim, "transformers"),
}


@register
class TorchvisionPyramid(Neck):
    """Torchvision's FPN on three scales of the three layers of a ViT, as its users build it."""

    def __init__(
        self, embed_dim: int, out_channels: int = 256, num_layers: int = 3, patch_size: int = 16
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.out_channels = out_channels
        self.num_layers = num_layers
        self.patch_size = patch_size
        self.strides = (patch_size / 2, 1.0 * patch_size, 2.0 * patch_size)
        self.fpn = FeaturePyramidNetwork([embed_dim] * 3, out_channels)

    def reset_parameters(self) -> None:
        """Draw the weights again."""
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def forward(self, tokens: Tokens, images: Tensor | None = None) -> FeaturePyramid:
        """Tokens -> three levels."""
        fine, middle, coarse = tokens.maps()
        levels = {
            "fine": F.interpolate(fine, scale_factor=2, mode="bilinear"),
            "middle": middle,
            "coarse": F.interpolate(coarse, scale_factor=0.5, mode="bilinear"),
        }
        return FeaturePyramid(tuple(self.fpn(levels).values()), self.strides)


class Cover:
    """Tokens and class masks of crop_cover, in three parts by group.

    Attributes:
        source: the tokens of all images.
        masks: int64 (images, height, width), the classes of the pixels.
        test: rows of the images that are scored.
        valid: rows of those that choose the learning rate.
        train: rows of those that heads learn from.
        embed_dim: channels of a token.
    """

    def __init__(self, options: Namespace) -> None:
        folder = options.data / "crop_cover"
        table = read_table(folder / "cover.csv", folder, CLASSES, group="group", labels="mask")
        if options.short:
            table = table.iloc[::SHORT_EVERY]
        layers = layers_of(options.backbone)
        backbone = load_backbone(options.backbone, pretrained=not options.random, layers=layers)
        prepare = backbone.preprocess.changed(size=SIZE)
        self.embed_dim = backbone.embed_dim
        self.masks = DenseLabels(classes=len(CLASSES)).indices(table["labels"], prepare)
        self.source = MemoryTokens.extract(
            backbone, table["images"], table.index, preprocess=prepare
        )
        count = SHORT_FOLDS if options.short else FOLDS
        folds = group_folds(table["group"], count, seed=0)
        held_out = [torch.as_tensor(rows) for _, rows in folds]
        self.test = held_out[0]
        self.valid = held_out[1]
        self.train = torch.cat(held_out[2:])

    def fit(self, head: Head, recipe: Recipe) -> None:
        """Train a head on the training images."""
        ids = [self.source.ids[row] for row in self.train]
        masks = {TASK.name: self.masks}
        fit(head, self.source, masks, target_ids=self.source.ids, ids=ids, recipe=recipe)

    def iou(self, head: Head, rows: Tensor) -> Tensor:
        """Return the IoU of every class (classes,) over all pixels of images."""
        classes = len(CLASSES)
        head.eval()
        counts = torch.zeros(classes * classes)
        for row in rows.tolist():
            maps = head.predict(self.source.batch([self.source.ids[row]]))[TASK.name]
            predicted = F.interpolate(maps, SIZE, mode="bilinear").argmax(dim=1)[0]
            pairs = classes * self.masks[row] + predicted
            counts += torch.bincount(pairs.flatten(), minlength=classes * classes)
        confusion = counts.view(classes, classes)
        true_positive = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - true_positive
        return true_positive / union


def train_head(
    make: Callable[[int], Head], cover: Cover, lr: float, seed: int, epochs: int
) -> tuple[Head, float]:
    """Return a trained head and the CPU minutes of its training."""
    torch.manual_seed(seed)
    head = make(cover.embed_dim)
    begin = time.process_time()
    recipe = Recipe(epochs=epochs, batch_size=BATCH, lr=lr, seed=seed, ema_decay=None)
    cover.fit(head, recipe)
    return head, (time.process_time() - begin) / 60


def heads(options: Namespace) -> dict[str, Row]:
    """Return the mean IoU of every head over seeds, that of the classes, and the CPU minutes of a training."""
    cover = Cover(options)
    rates = RATES[:1] if options.short else RATES
    epochs = 1 if options.short else EPOCHS
    table: dict[str, Row] = {}
    for name, make in PEERS.items():
        # the learning rate, by the validation images
        first_runs = {lr: train_head(make, cover, lr, seed=0, epochs=epochs) for lr in rates}
        valid_scores = {}
        for lr, (head, _) in first_runs.items():
            valid_scores[lr] = cover.iou(head, cover.valid).mean().item()
        best_lr = max(valid_scores, key=lambda lr: valid_scores[lr])

        # the other seeds
        runs = [first_runs[best_lr]]
        for seed in range(1, options.rounds):
            runs.append(train_head(make, cover, best_lr, seed=seed, epochs=epochs))

        ious = [cover.iou(head, cover.test) for head, _ in runs]
        row: Row = {"mIoU": spread([iou.mean().item() for iou in ious], digits=3)}
        for label, class_name in enumerate(CLASSES):
            row[class_name] = fmean(iou[label].item() for iou in ious)
        row["CPU minutes"] = fmean(minutes for _, minutes in runs)
        table[name] = row
    return table
