"""What a detector finds in photos."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from dinoneck.data import BoxPhotos, collate_boxes, to_original
from dinoneck.training.processes import Processes
from examples.detection.detectors import Detector
from examples.detection.evaluation import gather_predictions

MOST_BOXES = 100


@torch.no_grad()
def predict(
    detector: Detector,
    photos: BoxPhotos,
    processes: Processes,
    device: torch.device,
    *,
    batch: int = 1,
    workers: int = 0,
) -> dict[int, dict[str, Tensor]]:
    """Return image id -> ``boxes`` (x, y, x, y in pixels of the photo), ``scores`` and ``labels``, for all photos.

    Args:
        detector: put into eval mode.
        photos: with the transform of the held-out ones.
        processes: each predicts its share; all get everything.
        device: of the detector.
        batch: photos at a time.
        workers: processes that read photos.
    """
    detector.eval()
    own = range(processes.rank, len(photos), processes.count)
    loader = DataLoader(Subset(photos, own), batch_size=batch, num_workers=workers, collate_fn=collate_boxes)
    found: dict[int, dict[str, Tensor]] = {}
    for images, targets in tqdm(loader, desc="test", disable=None if processes.writes else True, leave=False):
        for boxes, target in zip(detector(images.to(device)), targets, strict=True):
            best = boxes["scores"].argsort(descending=True)[:MOST_BOXES]
            kept = {key: value[best].cpu() for key, value in boxes.items()}
            found[target["image_id"]] = {
                **kept,
                "boxes": to_original(kept["boxes"].float(), images.shape[-2:], target["size"]),
            }
    return gather_predictions(found) if processes.count > 1 else found
