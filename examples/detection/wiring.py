"""A detector with plain modules and a plain loop: DINO backbone, STAPyramid, torchvision's FCOS.

``python -m examples.detection.wiring`` takes some seconds on a CPU and downloads nothing: the
images are drawn rectangles, and the backbone is the built-in tiny one with seeded random weights.
In the shapes, B is the batch and D = 32 the channels of the pyramid. Begin with
``build_detector``.
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
TRAIN_IMAGES = 16
NEW_IMAGES = 8
STEPS = 40
BATCH_SIZE = 4
LEARNING_RATE = 2e-3


def build_detector(channels: int = 32) -> FCOS:
    """Build the detector: images in 0 ... 1 -> boxes in their pixels."""
    # images (B, 3, H, W) -> tokens of the last block (B, 3 + rows * cols, 64), rows = H / 16,
    # cols = W / 16; frozen: backbone.unfreeze_last(4) would train its last blocks too
    backbone = load_backbone("dinoneck_tiny")
    # tokens -> (B, D, 2 rows, 2 cols), (B, D, rows, cols), (B, D, rows / 2, cols / 2), which are
    # strides 8, 16, 32
    neck = STAPyramid(backbone.embed_dim, channels, patch_size=backbone.patch_size)
    # torchvision needs {"0": map, "1": map, "2": map} and out_channels
    body = TorchvisionBackbone(backbone, neck)
    # FCOS has one square anchor per cell, as large as the stride of its level
    sizes = tuple((int(stride),) for stride in body.strides)
    anchors = AnchorGenerator(sizes, aspect_ratios=((1.0,),) * len(sizes))
    height, width = IMAGE_SIZE
    return FCOS(
        body,
        num_classes=len(CLASSES),
        anchor_generator=anchors,
        # the detector resizes, normalises and pads the images itself, as the backbone needs them
        fixed_size=(width, height),  # torchvision's order
        image_mean=backbone.preprocess.mean,
        image_std=backbone.preprocess.std,
        size_divisible=body.size_divisible,
        score_thresh=0.3,
    )


def draw(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw a red and a blue rectangle on grey noise.

    Returns:
        The image (3, H, W) in 0 ... 1, and its ``boxes`` (2, 4), left, top, right, bottom in pixels,
        and ``labels`` (2,), indices of ``CLASSES``.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    half_width = width // 2
    image = 0.5 + 0.05 * torch.randn(3, height, width, generator=generator)
    boxes = []
    labels = torch.randperm(2, generator=generator)
    for half, label in enumerate(labels):  # one in the left half, one in the right half
        box_width, box_height = torch.randint(24, 49, (2,), generator=generator)
        offset = torch.randint(0, int(half_width - box_width), (), generator=generator)
        left = half * half_width + offset
        top = torch.randint(0, int(height - box_height), (), generator=generator)
        right = left + box_width
        bottom = top + box_height
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
        batch = [images[row] for row in rows]
        batch_targets = [targets[row] for row in rows]
        # classification, box regression and centre-ness, each a number
        losses = detector(batch, batch_targets)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


@torch.no_grad()
def detect(detector: FCOS, image: Tensor) -> dict[str, Tensor]:
    """Detect objects in an image (3, H, W).

    Returns:
        ``boxes`` (n, 4) in pixels of the image, ``labels`` (n,) and ``scores`` (n,), best first.
    """
    [detections] = detector.eval()([image])
    return detections


def main() -> dict[str, float]:
    """Draw images, train for some steps, detect in new images; print and return the numbers."""
    torch.manual_seed(0)
    images = []
    targets = []
    for seed in range(TRAIN_IMAGES + NEW_IMAGES):
        image, target = draw(seed)
        images.append(image)
        targets.append(target)
    detector = build_detector()
    levels = detector.backbone(images[0][None])
    for name, level in levels.items():
        print(f"level {name}: {tuple(level.shape)}")

    history = train(detector, images[:TRAIN_IMAGES], targets[:TRAIN_IMAGES])
    first = sum(history[:5]) / 5
    last = sum(history[-5:]) / 5
    print(f"training loss, mean of five steps: {first:.2f} -> {last:.2f}")

    overlaps = []
    for image, target in zip(images[TRAIN_IMAGES:], targets[TRAIN_IMAGES:], strict=True):
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

    detections = detect(detector, images[-1])
    for label, box in zip(targets[-1]["labels"], targets[-1]["boxes"], strict=True):
        print(f"  drawn {CLASSES[label]:4} at {box.int().tolist()} px")
    best_two = slice(0, 2)
    for label, box, score in zip(
        detections["labels"][best_two],
        detections["boxes"][best_two],
        detections["scores"][best_two],
        strict=True,
    ):
        print(f"  found {CLASSES[label]:4} at {box.round().int().tolist()} px, score {score:.2f}")
    return {"first_loss": first, "last_loss": last, "iou": iou}


if __name__ == "__main__":
    main()
