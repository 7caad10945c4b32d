"""Images, labels and the tokens of the frozen backbone, which all peers share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import to_pil_image

from dinoneck import Backbone
from dinoneck.data import BoxImages, DenseLabels, box_transforms, read_table
from dinoneck.detection import score_boxes
from dinoneck.training import MemoryTokens, group_folds

BACKBONE, LAYERS, SIZE, GRID = "vit_small_patch16_dinov3", (2, 5, 8, 11), (128, 160), (8, 10)
CLASSES = ("soil", "crop", "weed")


@dataclass
class Masks:
    """Images (uint8), tokens and class masks (n, H, W) of ``crop_cover``; row numbers of the parts."""

    backbone: Backbone
    images: Sequence[Tensor]
    source: MemoryTokens
    masks: Tensor
    parts: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path, backbone: Backbone) -> Masks:
        """Read the masks, run the backbone, and split by group: a fifth held out, a fifth for validation."""
        table = read_table(folder / "cover.csv", folder, CLASSES, group="group", labels="mask")
        prepare = backbone.preprocess.changed(size=SIZE)
        masks = DenseLabels(classes=3).indices(table["labels"], prepare)
        source = MemoryTokens.extract(backbone, table["images"], table.index, preprocess=prepare)
        folds = [torch.as_tensor(valid) for _, valid in group_folds(table["group"], 5, 0)]
        parts = {"test": folds[0], "val": folds[1], "train": torch.cat(folds[2:])}
        images = [(prepare.picture(path) * 255).round().byte() for path in table["images"]]
        return cls(backbone, images, source, masks, parts)

    def score(self, batches: Sequence[Tensor], part: str) -> dict[str, float]:
        """Return the mean IoU over all pixels of a part's images, and that of every class."""
        true, predicted = self.masks[self.parts[part]], torch.cat(list(batches))
        table = torch.bincount((3 * true + predicted).flatten(), minlength=9).view(3, 3).double()
        iou = table.diag() / (table.sum(0) + table.sum(1) - table.diag())
        return {"mIoU": float(iou.mean()), **dict(zip(CLASSES, iou.tolist(), strict=True))}

    def hand_to_lightly(self, folder: Path) -> None:
        """Write what lightly-train reads: PNG files, and the weights; its backbone looks whole images up.

        Only for the square crops in which it predicts, its backbone runs.
        """
        from lightly_train._models.dinov3.dinov3_vit import DINOv3ViTModelWrapper

        for part in ("train", "val"):
            for kind, values in (("images", self.images), ("masks", self.masks.byte())):
                (folder / part / kind).mkdir(parents=True)
                for row in self.parts[part].tolist():
                    to_pil_image(values[row]).save(folder / part / kind / f"{row}.png")
        own, weights = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}, {}
        for name, value in self.backbone.adapter.model.state_dict().items():
            *path, last = name.split(".")  # official names
            weights[".".join([*path, own.get(last, last)])] = value
            if name.endswith("qkv.weight"):
                weights[name.replace("weight", "bias")] = torch.zeros(len(value))
        torch.save(weights, folder / "backbone.pt")
        run, rows = DINOv3ViTModelWrapper.forward_features, {_key(image): row for row, image in enumerate(self.images)}
        mean, std = (
            torch.tensor(x).view(3, 1, 1) for x in (self.backbone.preprocess.mean, self.backbone.preprocess.std)
        )

        def forward_features(wrapper: Any, x: Tensor) -> dict[str, Tensor]:
            found = [rows.get(_key(((image * std + mean) * 255).round().byte())) for image in x]
            if None in found:
                return run(wrapper, x)
            tokens = self.source.tokens.sequence[-1][found, 5:].float()
            return {"features": tokens.transpose(1, 2).unflatten(2, GRID)}

        DINOv3ViTModelWrapper.forward_features = forward_features


@dataclass
class Boxes:
    """Images in 0 ... 1 and boxes of ``blood_cells``; datasets and row numbers of the parts."""

    backbone: Backbone
    images: Sequence[Tensor]
    targets: Sequence[dict[str, Tensor]]
    datasets: Mapping[str, BoxImages]
    parts: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path, backbone: Backbone) -> Boxes:
        """Read images and boxes, and run the backbone; a fifth of the training images is for validation."""
        resize = box_transforms(SIZE, train=False, mean=None, std=None)
        known = BoxImages(folder / "train.json", transform=resize)
        held_out = BoxImages(folder / "val.json", transform=resize, classes=known.classes)
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        parts = {"val": order[: len(known) // 5], "train": order[len(known) // 5 :]}
        datasets = {"val": known.take(parts["val"].tolist()), "test": held_out}
        pairs = [*known, *held_out]
        parts["test"] = torch.arange(len(known), len(pairs))
        targets = [{"boxes": t["boxes"].as_subclass(Tensor), "labels": t["labels"]} for _, t in pairs]
        images = [image.as_subclass(Tensor) for image, _ in pairs]
        remember(backbone, images)
        return cls(backbone, images, targets, datasets, parts)

    def score(self, batches: Sequence[Sequence[Mapping[str, Tensor]]], part: str) -> dict[str, float]:
        """Return COCO's AP50 and AP of a part's images, and the AP50 of every class."""
        data, found = self.datasets[part], [one for batch in batches for one in batch]
        scale = torch.tensor([640 / SIZE[1], 480 / SIZE[0]] * 2)  # boxes are judged in pixels of the files
        rows = [{**one, "boxes": one["boxes"] * scale} for one in found]
        scores = score_boxes(data, dict(zip(data.ids, rows, strict=True)))
        each = {name: row["AP50"] for name, row in scores["per_class"].items()}
        return {"AP50": scores["AP50"], "AP": scores["AP"], **each}


@torch.no_grad()
def remember(backbone: Backbone, images: Sequence[Tensor]) -> None:
    """Run a frozen backbone over all images; it and its timm model look the results up from then on."""
    look = GeneralizedRCNNTransform(*SIZE, backbone.preprocess.mean, backbone.preprocess.std, size_divisible=32)
    stored: dict[bytes, dict[int, Tensor]] = {}
    for image in images:
        prepared = look([image])[0].tensors
        tokens = backbone(prepared).sequence
        stored[_key(prepared[0])] = {layer: x[0].half() for layer, x in zip(backbone.layers, tokens, strict=True)}

    def sequences(batch: Tensor, layers: Sequence[int], *_: Any) -> list[Tensor]:
        found = [stored[_key(image)] for image in batch]
        return [torch.stack([one[layer] for one in found]).float() for layer in layers]

    def maps(batch: Tensor, indices: Sequence[int], **_: Any) -> list[Tensor]:
        return [x[:, 5:].transpose(1, 2).unflatten(2, GRID) for x in sequences(batch, indices)]

    backbone.adapter.forward = sequences
    backbone.adapter.model.forward_intermediates = maps


def _key(image: Tensor) -> bytes:
    return hashlib.sha256(image.numpy().tobytes()).digest()
