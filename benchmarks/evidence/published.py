"""What needs published weights to mean something: parity of libraries, golden numbers of heads, points of a room."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import Frames, read_frames
from torch import Tensor, nn

from benchmarks.evidence.weights import WEIGHTS
from benchmarks.measure import Row
from benchmarks.parity import PARTS, both_norms, difference
from dinoneck import (
    DinoneckError,
    Predictor,
    Tokens,
    list_published,
    load_backbone,
    load_published,
)
from dinoneck.points import PointProjector, lift
from dinoneck.published import PublishedHead

# timm's and transformers' name -> entry of the official repository on torch.hub
PARITY = {
    "vit_small_patch14_reg4_dinov2": ("facebookresearch/dinov2:main", "dinov2_vits14_reg"),
    "vit_small_patch16_dinov3": ("facebookresearch/dinov3:main", "dinov3_vits16"),
}
BOUND = 1e-4  # of the largest value; float32 leaves about 1e-6, the wrong layer or norm 1e-1
NEAR_M = 0.2  # a point of another view is found within this distance
POINTS = 2000
GOLDEN_IMAGES = 10


def parity(options: Namespace) -> dict[str, Row]:
    """Compare the tokens of one real image between timm, transformers and the official code, each with its own file.

    Raises:
        ValueError: if two libraries differ.
    """
    names = list(PARITY)
    if options.short:
        names = names[:1]
    table: dict[str, Row] = {}
    for name in names:
        models: dict[str, nn.Module] = {}
        for library, load in _libraries(name, options.random):
            # not installed, gated or not in the folder: the others are still compared
            try:
                models[library] = load()
            except Exception as error:
                table[f"`{name}`, {library}"] = {"not compared": type(error).__name__}

        images = _real_image(name, options.data)
        tokens = {}
        for library, model in models.items():
            tokens[library] = both_norms(model, [11, 2, 5], "native", images)
        for first, second in combinations(tokens, 2):
            largest = _relative_difference(tokens[first], tokens[second])
            if not largest <= BOUND:  # NaN does not hold
                raise ValueError(
                    f"{name}: {first} and {second} differ by {largest:.1e} of the largest value"
                )
            table[f"`{name}`, {first} - {second}"] = {"difference / largest value": largest}
    return table


def _real_image(name: str, data: Path) -> Tensor:
    """The first image of crop_cover, prepared for a ViT: (1, 3, height, width), 14 x 28 patches."""
    prepare = load_backbone(name, pretrained=False).preprocess
    patch = 14 if "patch14" in name else 16
    file = data / "crop_cover" / "images" / "0001.jpg"
    return prepare([file], size=(14 * patch, 28 * patch))


def _relative_difference(tokens: Sequence[Tokens], others: Sequence[Tokens]) -> float:
    """The largest difference over the largest value of any part; NaN where a part has one."""
    gaps = difference(tokens, others)
    scale = gaps["scale"] or 1.0
    largest = 0.0
    for part in PARTS:
        gap = gaps[part]
        if gap is None:
            continue
        relative = gap / scale
        if math.isnan(relative):
            return relative
        largest = max(largest, relative)
    return largest


def _libraries(name: str, random: bool) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield each library and the function that loads the model with it."""
    for source in ("timm", "transformers"):
        yield source, partial(_wrapped, name, source, random)
    if not random:
        yield "official", partial(_official, *PARITY[name])


def _wrapped(name: str, source: str, random: bool) -> nn.Module:
    """The model of a library that this one wraps."""
    return load_backbone(name, source=source, pretrained=not random).adapter.model


def _official(repository: str, entry: str) -> nn.Module:
    """The official model; DINOv3's file is behind Meta's form and is looked for in the folder."""
    files = sorted(Path(WEIGHTS).glob(f"{entry}_pretrain*.pth"))
    options = {"weights": str(files[0])} if files else {}
    model: nn.Module = torch.hub.load(
        repository, entry, trust_repo=True, skip_validation=True, **options
    )
    return model.eval()


def golden(options: Namespace) -> dict[str, Row]:
    """Run each open published head on ten images: mean, deviation and largest of its predictions; or why it did not."""
    images = sorted((options.data / "crop_cover" / "images").iterdir())[:GOLDEN_IMAGES]
    table: dict[str, Row] = {}
    for head in list_published():
        if not isinstance(head, PublishedHead):
            continue  # a detector
        if head.gated:
            continue
        try:
            predictor = Predictor(load_published(head.name), device=options.device)
            predictions = predictor(images)
        except DinoneckError as error:  # a file is gone, or is another one: the others still run
            print(f"{head.name}: {error}")
            table[f"`{head.name}`"] = {"not run": type(error).__name__}
            continue
        numbers = []
        for prediction in predictions:
            numbers += [torch.as_tensor(value).flatten() for value in prediction.values()]
        values = torch.cat(numbers).float()
        table[f"`{head.name}`"] = {
            "mean": values.mean().item(),
            "deviation": values.std().item(),
            "largest": values.max().item(),
        }
    return table


def points(options: Namespace) -> dict[str, Row]:
    """Lift tokens of two views of a room to its points and look for every point in the other view by its feature.

    A point is found where the most similar feature of the other view belongs to a point within 20
    cm.
    """
    frames = read_frames(options.data / "rgbd_room")
    backbone = load_backbone(options.backbone, pretrained=not options.random).to(options.device)
    maps, cameras = frame_maps(backbone, frames, size=(96, 128) if options.short else None)
    cloud = _points_of_first_view(frames)
    project = PointProjector()

    def features(view: int) -> tuple[Tensor, Tensor]:
        """The features (N, C) of the points in one view, and whether it shows them (N,)."""
        only = slice(view, view + 1)
        links = project(cloud, cameras[only], frames.depth[only])
        return lift(maps[only].cpu(), links)

    first, seen_in_first = features(0)
    found = []
    by_chance = []
    for view in range(1, len(frames)):
        other, seen_in_other = features(view)
        in_both = seen_in_first & seen_in_other
        most_similar = _most_similar(first[in_both], other[in_both])
        is_near = torch.cdist(cloud[in_both], cloud[in_both]) < NEAR_M
        is_found = is_near[torch.arange(len(most_similar)), most_similar]
        found.append(is_found.double().mean().item())
        by_chance.append(is_near.double().mean().item())
    row = {"found": sum(found) / len(found), "by chance": sum(by_chance) / len(by_chance)}
    return {"points of another view": row}


def _points_of_first_view(frames: Frames) -> Tensor:
    """Some points (N, 3) that the first frame shows, in metres."""
    cloud = frames.cameras[:1].unproject(frames.depth[:1]).reshape(-1, 3)
    cloud = cloud[cloud.isfinite().all(1)]
    generator = torch.Generator().manual_seed(0)
    return cloud[torch.randperm(len(cloud), generator=generator)[:POINTS]]


def _most_similar(feats: Tensor, others: Tensor) -> Tensor:
    """For each row of ``feats`` the row of ``others`` with the largest cosine, both centred: (N,)."""
    feats = F.normalize(feats - feats.mean(0), dim=-1)
    others = F.normalize(others - others.mean(0), dim=-1)
    return (feats @ others.T).argmax(1)
