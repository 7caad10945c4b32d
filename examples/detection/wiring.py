"""A detector with plain modules and a plain loop: DINO backbone, STAPyramid, torchvision's FCOS.

``python -m examples.detection.wiring`` takes some seconds on a CPU and downloads nothing: the
images are drawn rectangles, and the backbone is the built-in tiny one with seeded random weights.
In the shapes, B is the batch and D = 32 the channels of the pyramid. Begin with ``detector_of``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from dinoneck import STAPyramid, load_backbone
from dinoneck.interop import TorchvisionBackbone

IMAGE_SIZE = (96, 128)  # (height, width) in pixels
CLASSES = ("red", "blue")
COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.2, 0.9]])  # RGB in 0 ... 1
TRAIN_IMAGES, NEW_IMAGES = 16, 8
STEPS, BATCH_SIZE, LEARNING_RATE = 40, 4, 2e-3


def build_detector(channels: int = 32) -> FCOS:
    """Build the detector: images in 0 ... 1 -> boxes in their pixels."""
    # (B, 3, H, W) -> tokens of the last block, (B, 3 + rows * cols, 64), rows = H / 16, cols = W /
    # 16
    # frozen; backbone.unfreeze_last(4) would train its last blocks too
    backbone = load_backbone("dinoneck_tiny")
    # tokens -> (B, D, 2 rows, 2 cols), (B, D, rows, cols), (B, D, rows / 2, cols / 2): strides 8,
    # 16, 32
    neck = STAPyramid(backbone.embed_dim, channels, patch_size=backbone.patch_size)
    # torchvision asks for {"0": map, "1": map, "2": map} and out_channels
    body = TorchvisionBackbone(backbone, neck)
    # FCOS has one square anchor per cell, as large as the stride of its level
    anchors = AnchorGenerator(
        tuple((int(stride),) for stride in body.strides), ((1.0,),) * len(body.strides)
    )
    return FCOS(
        body,
        num_classes=len(CLASSES),
        anchor_generator=anchors,
        # the detector resizes, normalises and pads the images itself, as this backbone needs it
        fixed_size=(IMAGE_SIZE[1], IMAGE_SIZE[0]),  # torchvision's order: (width, height)
        image_mean=backbone.preprocess.mean,
        image_std=backbone.preprocess.std,
        size_divisible=body.size_divisible,
        score_thresh=0.3,
    )


def draw(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw a red and a blue rectangle on grey noise: an image (3, H, W) in 0 ... 1 and what is in it.

    ``boxes`` (2, 4) are left, top, right, bottom in pixels, ``labels`` (2,) positions in
    ``CLASSES``.
    """
    random = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    image = 0.5 + 0.05 * torch.randn(3, height, width, generator=random)
    boxes, labels = [], torch.randperm(2, generator=random)
    for half, label in enumerate(labels):  # one in the left half, one in the right half
        size = torch.randint(24, 49, (2,), generator=random)  # (width, height)
        left = half * width // 2 + torch.randint(0, int(width // 2 - size[0]), (), generator=random)
        top = torch.randint(0, int(height - size[1]), (), generator=random)
        right, bottom = left + size[0], top + size[1]
        image[:, top:bottom, left:right] = COLOURS[label][:, None, None]
        boxes.append(torch.stack([left, top, right, bottom]))
    return image.clamp(0, 1), {"boxes": torch.stack(boxes).float(), "labels": labels}


def train(detector: FCOS, images: list[Tensor], targets: list[dict[str, Tensor]]) -> list[float]:
    """Fit the detector; return the loss of every step."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=LEARNING_RATE)
    detector.train()
    history = []
    for _ in range(STEPS):
        rows = torch.randperm(len(images))[:BATCH_SIZE].tolist()
        # classification, box regression and centre-ness, each a number
        losses = detector([images[i] for i in rows], [targets[i] for i in rows])
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


@torch.no_grad()
def detect(detector: FCOS, image: Tensor) -> dict[str, Tensor]:
    """Return ``boxes`` (n, 4) in pixels of the image (3, H, W), ``labels`` (n,) and ``scores`` (n,), best first."""
    [found] = detector.eval()([image])
    return found


def main() -> dict[str, float]:
    """Draw images, train for some steps, detect in new images; print and return the numbers."""
    torch.manual_seed(0)
    drawn = [draw(seed) for seed in range(TRAIN_IMAGES + NEW_IMAGES)]
    images, targets = [image for image, _ in drawn], [target for _, target in drawn]
    detector = build_detector()
    levels = detector.backbone(images[0][None])
    print("\n".join(f"level {name}: {tuple(level.shape)}" for name, level in levels.items()))

    history = train(detector, images[:TRAIN_IMAGES], targets[:TRAIN_IMAGES])
    first, last = (sum(part) / len(part) for part in (history[:5], history[-5:]))
    print(f"training loss, mean of five steps: {first:.2f} -> {last:.2f}")

    overlaps = []
    for image, target in drawn[TRAIN_IMAGES:]:
        detections = detect(detector, image)
        for label, box in zip(target["labels"], target["boxes"], strict=True):
            # best of this class: (1, 4), or (0, 4)
            best = detections["boxes"][detections["labels"] == label][:1]
            overlaps.append(float(box_iou(box[None], best).sum()))  # 0 if none
    iou = sum(overlaps) / len(overlaps)
    print(
        f"{NEW_IMAGES} new images: overlap (IoU) of the best box per class with the drawn one, on "
        f"average {iou:.2f}"
    )
    image, target = drawn[-1]
    detections = detect(detector, image)
    for label, box in zip(target["labels"], target["boxes"], strict=True):
        print(f"  drawn {CLASSES[label]:4} at {box.int().tolist()} px")
    for label, box, score in zip(
        *(detections[key][:2] for key in ("labels", "boxes", "scores")), strict=True
    ):
        print(f"  found {CLASSES[label]:4} at {box.round().int().tolist()} px, score {score:.2f}")
    return {"first_loss": first, "last_loss": last, "iou": iou}


if __name__ == "__main__":
    main()
