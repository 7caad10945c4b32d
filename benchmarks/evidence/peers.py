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

from benchmarks.evidence.real import CLASSES, layers_of, spread
from benchmarks.measure import Row
from dinoneck import FeaturePyramid, FPNHead, PyramidHead, Task, Tokens, load_backbone, register
from dinoneck.data import DenseLabels, read_table
from dinoneck.heads import Head
from dinoneck.necks.neck import Neck
from dinoneck.training import MemoryTokens, Recipe, fit, group_folds

SIZE, EPOCHS, BATCH, RATES = (128, 160), 8, 8, (1e-3, 3e-3)
HIDDEN, WIDTH = (32, 32, 64, 64), 32  # of every DPT decoder
TASK = Task("class", dim=3, kind="segmentation", labels=CLASSES)


Run = Callable[[Tokens], Tensor]


def smp_dpt(dim: int) -> tuple[nn.Module, Run]:
    """DPT of segmentation_models_pytorch: half the image's size."""
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

    decoder = DPTDecoder([dim] * 4, [16] * 4, True, "ignore", list(HIDDEN), WIDTH)
    parts = nn.ModuleList([decoder, SegmentationHead(WIDTH, 3, kernel_size=3, upsampling=1)])

    def run(tokens: Tokens) -> Tensor:
        prefix = [x[:, : tokens.num_prefix_tokens] for x in tokens.sequence]
        return parts[1](parts[0](tokens.maps(), prefix))  # type: ignore[no-any-return]

    return parts, run


def transformers_dpt(dim: int) -> tuple[nn.Module, Run]:
    """DPT neck and head of transformers, which know no registers."""
    from transformers import DPTConfig
    from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

    sizes = {"neck_hidden_sizes": HIDDEN, "fusion_hidden_size": WIDTH, "hidden_size": dim}
    config = DPTConfig(readout_type="ignore", num_labels=3, **sizes)
    parts = nn.ModuleList([DPTNeck(config), DPTSemanticSegmentationHead(config)])

    def run(tokens: Tokens) -> Tensor:
        layers = [
            torch.cat((x[:, :1], x[:, tokens.num_prefix_tokens :]), dim=1) for x in tokens.sequence
        ]
        return parts[1](parts[0](layers, *tokens.grid))  # type: ignore[no-any-return]

    return parts, run


DECODERS = {"smp": smp_dpt, "transformers": transformers_dpt}


class Decoder(Head):
    """A decoder of another library as a head."""

    def __init__(self, embed_dim: int, library: str) -> None:
        super().__init__()
        self.embed_dim, self.tasks = embed_dim, (TASK,)
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
        self.embed_dim, self.out_channels = embed_dim, out_channels
        self.num_layers, self.patch_size = num_layers, patch_size
        self.strides = tuple(patch_size * scale for scale in (0.5, 1.0, 2.0))
        self.fpn = FeaturePyramidNetwork([embed_dim] * 3, out_channels)

    def reset_parameters(self) -> None:
        """Draw the weights again."""
        for module in self.fpn.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()

    def forward(self, tokens: Tokens, images: Tensor | None = None) -> FeaturePyramid:
        """Tokens -> three levels."""
        scales = zip(tokens.maps(), (2, 1, 0.5), strict=True)
        maps = {
            str(i): F.interpolate(x, scale_factor=scale, mode="bilinear")
            for i, (x, scale) in enumerate(scales)
        }
        return FeaturePyramid(tuple(self.fpn(maps).values()), self.strides)


def heads(options: Namespace) -> dict[str, Row]:
    """Return the mean IoU of every head over seeds, that of the classes, and the CPU minutes of a training."""
    folder = options.data / "crop_cover"
    table = read_table(folder / "cover.csv", folder, CLASSES, group="group", labels="mask")
    table = table.iloc[:: 20 if options.short else 1]
    backbone = load_backbone(
        options.backbone, pretrained=not options.random, layers=layers_of(options.backbone)
    )
    prepare = backbone.preprocess.changed(size=SIZE)
    masks = DenseLabels(classes=3).indices(table["labels"], prepare)
    source = MemoryTokens.extract(backbone, table["images"], table.index, preprocess=prepare)
    folds = [
        torch.as_tensor(valid)
        for _, valid in group_folds(table["group"], 3 if options.short else 5, 0)
    ]
    test, valid, train = folds[0], folds[1], torch.cat(folds[2:])

    def scored(head: Head, rows: Tensor) -> list[float]:
        """The mean IoU over all pixels, and that of every class."""
        counts = torch.zeros(9)
        for row in rows.tolist():
            maps = head.eval().predict(source.batch([source.ids[row]]))[TASK.name]
            found = F.interpolate(maps, SIZE, mode="bilinear").argmax(dim=1)
            counts += torch.bincount((3 * masks[row] + found[0]).flatten(), minlength=9)
        counts = counts.view(3, 3)
        iou = counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
        return [iou.mean().item(), *iou.tolist()]

    def trained(make: Callable[[int], Head], lr: float, seed: int) -> tuple[Head, float]:
        torch.manual_seed(seed)
        head, begin = make(backbone.embed_dim), time.process_time()
        recipe = Recipe(
            epochs=1 if options.short else EPOCHS,
            batch_size=BATCH,
            lr=lr,
            seed=seed,
            ema_decay=None,
        )
        known = [source.ids[row] for row in train]
        fit(head, source, {TASK.name: masks}, target_ids=source.ids, ids=known, recipe=recipe)
        return head, (time.process_time() - begin) / 60

    found: dict[str, Row] = {}
    for name, make in PEERS.items():
        tried = {lr: trained(make, lr, 0) for lr in RATES[: 1 if options.short else None]}
        best = max(tried, key=lambda lr: scored(tried[lr][0], valid)[0])
        runs = [tried[best], *(trained(make, best, seed) for seed in range(1, options.rounds))]
        scores = [scored(head, test) for head, _ in runs]
        found[name] = {"mIoU": spread([own[0] for own in scores], digits=3)}
        found[name] |= {
            each: fmean(own[place] for own in scores) for place, each in enumerate(CLASSES, 1)
        }
        found[name] |= {"CPU minutes": fmean(minutes for _, minutes in runs)}
    return found
