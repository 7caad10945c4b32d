"""The same frozen backbone under heads of dinoneck and of its peers: score, CPU minutes, memory, lines, licence.

    python -m benchmarks.peers --data FOLDER [--seeds 0 1 2]

FOLDER holds ``crop_cover`` (class masks, images split by group) and ``blood_cells`` (boxes). The ViT runs once over all
images and its tokens are shared; every peer is one function, written as a user of that library would write it, and all
have the same training images, epochs, batches, optimizer, schedule and loss. The learning rate of a row is the one of
``RATES`` with the best score on the validation images, with the first seed; held-out images are used once per seed.
Writes benchmarks/results/peers.json and prints the tables of docs/explanation/peers.md.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from examples.detection.evaluation import evaluate
from segmentation_models_pytorch import DPT
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

from benchmarks.points import resident
from benchmarks.timing import machine
from dinoneck import Backbone, FPNHead, PyramidHead, SpatialTuningAdapter, STAPyramid, Task, load_backbone
from dinoneck.data import BoxPhotos, DenseLabels, box_transforms, read_csv
from dinoneck.interop import TorchvisionBackbone
from dinoneck.training import MemoryTokens, Recipe, fit, group_folds

RESULTS = Path(__file__).with_name("results") / "peers.json"
BACKBONE, LAYERS = "vit_small_patch16_dinov3", (2, 5, 8, 11)
COVER_SIZE, CELLS_SIZE = (128, 160), (192, 256)
CLASSES = ("soil", "crop", "weed")
COVER_EPOCHS, CELLS_EPOCHS, BATCH, RATES = 8, 5, 8, (1e-3, 3e-3)
HIDDEN, WIDTH = (32, 32, 64, 64), 32  # of every DPT decoder
LEVELS = 64  # channels of every detector's levels; its group norms want a multiple of 32
ANCHORS = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)


Predict = Callable[[Tensor], Any]  # row numbers -> predictions


@dataclass(frozen=True)
class Masks:
    """Tokens and class masks (n, H, W) of all images; row numbers of the parts."""

    source: MemoryTokens
    grid: tuple[int, int]
    masks: Tensor
    parts: Mapping[str, Tensor]

    def score(self, predicted: Tensor, part: str) -> dict[str, float]:
        """Return the IoU of every class over all pixels of a part's images, and their mean."""
        true = self.masks[self.parts[part]]
        table = torch.bincount((3 * true + predicted).flatten(), minlength=9).view(3, 3).double()
        iou = table.diag() / (table.sum(0) + table.sum(1) - table.diag())
        return {"mIoU": float(iou.mean()), **dict(zip(CLASSES, iou.tolist(), strict=True))}


@dataclass(frozen=True)
class Boxes:
    """Images (3, H, W) in 0 ... 1 and targets of all images; datasets and row numbers of the parts."""

    backbone: Backbone
    images: Sequence[Tensor]
    targets: Sequence[dict[str, Tensor]]
    datasets: Mapping[str, BoxPhotos]
    parts: Mapping[str, Tensor]

    def score(self, predicted: Sequence[Mapping[str, Tensor]], part: str) -> dict[str, float]:
        """Return COCO's AP and AP50 of a part's images."""
        data = self.datasets[part]
        scale = torch.tensor([640 / CELLS_SIZE[1], 480 / CELLS_SIZE[0]] * 2)
        rows = [{**found, "boxes": found["boxes"] * scale} for found in predicted]
        scores = evaluate(dict(zip(data.ids, rows, strict=True)), data)
        each = {name: row["AP50"] for name, row in scores["per_class"].items()}
        return {"AP50": scores["AP50"], "AP": scores["AP"], **each}


def train(module: nn.Module, loss: Callable[[Tensor], Tensor], rows: Tensor, lr: float, epochs: int) -> None:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    steps = epochs * math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1, cycle_momentum=False)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(BATCH):
            optimizer.zero_grad()
            loss(batch).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    module.eval()


def dinoneck_dpt(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    ids = data.source.ids
    neck = {"type": "dpt", "num_layers": 4, "out_channels": WIDTH, "hidden_sizes": HIDDEN}
    head = PyramidHead(384, [Task("class", dim=3, kind="segmentation")], neck, layer_indices=LAYERS)
    chosen = {"targets": {"class": data.masks}, "target_ids": ids, "ids": [ids[i] for i in data.parts["train"]]}
    options = {"epochs": COVER_EPOCHS, "batch_size": BATCH, "lr": lr, "seed": seed, "recipe": Recipe(ema_decay=None)}
    fit(head, data.source, **chosen, **options)

    def predict(rows: Tensor) -> Tensor:
        maps = head.predict(data.source.batch([ids[i] for i in rows]))["class"]
        return F.interpolate(maps, data.masks.shape[-2:], mode="bilinear").argmax(dim=1)

    return predict


def dinoneck_fpn(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    ids = data.source.ids
    head = FPNHead(384, [Task("class", dim=3, kind="segmentation")], 4, LAYERS, fpn_dim=64, tower_depth=1)
    chosen = {"targets": {"class": data.masks}, "target_ids": ids, "ids": [ids[i] for i in data.parts["train"]]}
    options = {"epochs": COVER_EPOCHS, "batch_size": BATCH, "lr": lr, "seed": seed, "recipe": Recipe(ema_decay=None)}
    fit(head, data.source, **chosen, **options)

    def predict(rows: Tensor) -> Tensor:
        maps = head.predict(data.source.batch([ids[i] for i in rows]))["class"]
        return F.interpolate(maps, data.masks.shape[-2:], mode="bilinear").argmax(dim=1)

    return predict


def smp_dpt(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    sizes = {"decoder_intermediate_channels": HIDDEN, "decoder_fusion_channels": WIDTH}
    whole = DPT(f"tu-{BACKBONE}", encoder_weights=None, classes=3, decoder_readout="ignore", **sizes)
    model = nn.ModuleDict({"decoder": whole.decoder, "head": whole.segmentation_head})
    del whole  # its encoder is the shared backbone

    def logits(rows: Tensor) -> Tensor:
        layers = [layer[rows].float() for layer in data.source.tokens.sequence]
        maps = [layer[:, 5:].transpose(1, 2).unflatten(2, data.grid).contiguous() for layer in layers]
        return model["head"](model["decoder"](maps, [layer[:, :5] for layer in layers]))

    train(model, lambda rows: F.cross_entropy(logits(rows), data.masks[rows]), data.parts["train"], lr, COVER_EPOCHS)
    return lambda rows: logits(rows).argmax(dim=1)


def transformers_dpt(data: Masks, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    sizes = {"neck_hidden_sizes": HIDDEN, "fusion_hidden_size": WIDTH, "hidden_size": 384}
    config = DPTConfig(readout_type="ignore", num_labels=3, **sizes)
    model = nn.ModuleDict({"neck": DPTNeck(config), "head": DPTSemanticSegmentationHead(config)})

    def logits(rows: Tensor) -> Tensor:
        layers = [layer[rows].float() for layer in data.source.tokens.sequence]
        without_registers = [torch.cat((layer[:, :1], layer[:, 5:]), dim=1) for layer in layers]
        maps = model["head"](model["neck"](without_registers, *data.grid))
        return F.interpolate(maps, data.masks.shape[-2:], mode="bilinear")

    train(model, lambda rows: F.cross_entropy(logits(rows), data.masks[rows]), data.parts["train"], lr, COVER_EPOCHS)
    return lambda rows: logits(rows).argmax(dim=1)


def detector(body: nn.Module, data: Boxes, lr: float) -> Predict:
    sizes = {"min_size": CELLS_SIZE[0], "max_size": CELLS_SIZE[1], "size_divisible": 32}
    model = FCOS(body, 3, anchor_generator=ANCHORS, score_thresh=0.05, **sizes)

    def loss(rows: Tensor) -> Tensor:
        return sum(model([data.images[i] for i in rows], [data.targets[i] for i in rows]).values())

    train(model, loss, data.parts["train"], lr, CELLS_EPOCHS)
    return lambda rows: model([data.images[i] for i in rows])


def dinoneck_sta(data: Boxes, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    return detector(TorchvisionBackbone(data.backbone.with_layers([11]), STAPyramid(384, LEVELS)), data, lr)


def dinoneck_adapter(data: Boxes, lr: float, seed: int) -> Predict:
    torch.manual_seed(seed)
    return detector(TorchvisionBackbone(data.backbone, SpatialTuningAdapter(384, LEVELS)), data, lr)


class Body(nn.Module):
    """What a torchvision detector needs of a timm ViT: three scales of three layers, and torchvision's FPN."""

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
    return detector(Body(data.backbone.adapter.model), data, lr)


@dataclass(frozen=True)
class Peer:
    """A row: what is run, the other functions a user has to write for it, and whose code it uses."""

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
        "dinoneck, DPT neck": Peer(dinoneck_dpt, (), "Apache-2.0"),
        "dinoneck, FPN head": Peer(dinoneck_fpn, (), "Apache-2.0"),
        "segmentation_models_pytorch, DPT": Peer(smp_dpt, (train,), "MIT"),
        "transformers, DPT neck and head": Peer(transformers_dpt, (train,), "Apache-2.0"),
    },
    "blood_cells": {
        "dinoneck, spatial tuning adapter + torchvision FCOS": Peer(dinoneck_adapter, (detector, train), "Apache-2.0"),
        "dinoneck, STAPyramid + torchvision FCOS": Peer(dinoneck_sta, (detector, train), "Apache-2.0"),
        "torchvision, FPN and FCOS on a timm ViT": Peer(torchvision_fpn, (Body, detector, train), "BSD-3-Clause"),
    },
}


def read_masks(folder: Path, backbone: Backbone) -> Masks:
    """Read the masks, run the backbone, and split by group: a fifth held out, a fifth for validation."""
    table = read_csv(folder / "cover.csv", folder, CLASSES, "group", minimum=0.0, label_column="mask")
    prepare = backbone.preprocess.changed(size=COVER_SIZE)
    masks = DenseLabels(classes=3).indices(table.labels, prepare)
    source = MemoryTokens.extract(backbone, table.photos, table.ids, preprocess=prepare)
    folds = [torch.as_tensor(valid) for _, valid in group_folds(table.groups, 5, 0)]
    parts = {"test": folds[0], "val": folds[1], "train": torch.cat(folds[2:])}
    return Masks(source, tuple(source.tokens.grid), masks, parts)


def read_boxes(folder: Path, backbone: Backbone) -> Boxes:
    """Read images and boxes, run the backbone once, and let it look its tokens up from then on."""
    resize = box_transforms(CELLS_SIZE, train=False, mean=None, std=None)
    known = BoxPhotos(folder / "train.json", transform=resize)
    held_out = BoxPhotos(folder / "val.json", transform=resize, classes=known.classes)
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    parts = {"val": order[: len(known) // 5], "train": order[len(known) // 5 :]}
    datasets = {"val": known.take(parts["val"].tolist()), "test": held_out}
    pairs = [*known, *held_out]
    parts["test"] = torch.arange(len(known), len(pairs))
    targets = [{"boxes": t["boxes"].as_subclass(Tensor), "labels": t["labels"]} for _, t in pairs]
    images = [image.as_subclass(Tensor) for image, _ in pairs]
    remember(backbone, images)
    return Boxes(backbone, images, targets, datasets, parts)


@torch.no_grad()
def remember(backbone: Backbone, images: Sequence[Tensor]) -> None:
    """Run a frozen backbone over all images, and let it and its timm model look the results up from then on."""
    look = GeneralizedRCNNTransform(*CELLS_SIZE, backbone.preprocess.mean, backbone.preprocess.std, size_divisible=32)
    stored: dict[bytes, dict[int, Tensor]] = {}
    for image in images:
        [prepared] = look([image])[0].tensors
        sequence = backbone(prepared[None]).sequence
        stored[key(prepared)] = {layer: x[0].half() for layer, x in zip(backbone.layers, sequence, strict=True)}

    def sequences(batch: Tensor, layers: Sequence[int], *_: Any) -> list[Tensor]:
        found = [stored[key(image)] for image in batch]
        return [torch.stack([one[layer] for one in found]).float() for layer in layers]

    def maps(batch: Tensor, indices: Sequence[int], **_: Any) -> list[Tensor]:
        grid = tuple(side // 16 for side in CELLS_SIZE)
        return [x[:, 5:].transpose(1, 2).unflatten(2, grid) for x in sequences(batch, indices)]

    backbone.adapter.forward = sequences
    backbone.adapter.model.forward_intermediates = maps


def key(image: Tensor) -> bytes:
    """Return what an image is found again by."""
    return hashlib.sha256(image.numpy().tobytes()).digest()


def measure(data: Masks | Boxes, peers: Mapping[str, Peer], metric: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train every peer with every learning rate and the first seed, then with its best one and the other seeds."""
    context = multiprocessing.get_context("fork")  # every training in a process of its own
    with context.Pool(options.processes, _begin, (peers, data), maxtasksperchild=1) as pool:
        jobs = [(name, lr, options.seeds[0]) for name in peers for lr in RATES]
        tried = pool.starmap(trained, jobs, chunksize=1)
        best = {name: max((run for run in tried if run["name"] == name), key=_on_validation(metric)) for name in peers}
        jobs = [(name, best[name]["lr"], seed) for name in peers for seed in options.seeds[1:]]
        others = pool.starmap(trained, jobs, chunksize=1)
    return {
        name: {
            "runs": [best[name], *(run for run in others if run["name"] == name)],
            "not_chosen": [run for run in tried if run["name"] == name and run is not best[name]],
            "lines": peer.lines,
            "licence": peer.licence,
        }
        for name, peer in peers.items()
    }


def _on_validation(metric: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda run: run["val"][metric]


def _begin(peers: Mapping[str, Peer], data: Masks | Boxes) -> None:
    """Keep what the fork inherits."""
    globals()["_inherited"] = peers, data


def trained(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once; return scores, CPU seconds, and the memory that training adds to data and tokens."""
    peers, data = globals()["_inherited"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, begin = resident("VmRSS"), time.process_time()
    predict = peers[name].run(data, lr, seed)
    cost = {"cpu_s": time.process_time() - begin, "peak_mib": resident("VmHWM") - before}
    scores = {}
    with torch.no_grad():
        for part in ("val", "test"):
            batches = [predict(rows) for rows in data.parts[part].split(BATCH)]
            predicted = torch.cat(batches) if isinstance(data, Masks) else list(itertools.chain(*batches))
            scores[part] = data.score(predicted, part)
    print(name, lr, seed, cost, scores, flush=True)
    return {"name": name, "lr": lr, "seed": seed, **cost, **scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    backbone = load_backbone(BACKBONE, pretrained=False, seed=0, layers=LAYERS)
    cover = read_masks(options.data / "crop_cover", backbone)
    tables = {"crop_cover": measure(cover, PEERS["crop_cover"], "mIoU", options)}
    del cover
    cells = read_boxes(options.data / "blood_cells", backbone.with_layers(LAYERS[1:]))
    tables["blood_cells"] = measure(cells, PEERS["blood_cells"], "AP50", options)
    used = machine()
    used["versions"] |= {name: version(name) for name in ("segmentation_models_pytorch", "torchvision", "transformers")}
    report = {"tables": tables, "minutes": (time.monotonic() - begin) / 60, "machine": used}
    options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
