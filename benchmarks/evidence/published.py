"""What needs published weights to mean something: parity of libraries, golden numbers of heads, points of a room."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import read_frames
from torch import Tensor, nn

from benchmarks.evidence.weights import WEIGHTS
from benchmarks.measure import Row
from benchmarks.parity import PARTS, both_norms, difference
from dinoneck import DinoneckError, Predictor, list_published, load_backbone, load_published
from dinoneck.points import PointProjector, lift

# timm's and transformers' name -> entry of the official repository on torch.hub
PARITY = {
    "vit_small_patch14_reg4_dinov2": ("facebookresearch/dinov2:main", "dinov2_vits14_reg"),
    "vit_small_patch16_dinov3": ("facebookresearch/dinov3:main", "dinov3_vits16"),
}
BOUND = 1e-4  # of the largest value; float32 leaves about 1e-6, the wrong layer or norm 1e-1
NEAR_M = 0.2


def parity(options: Namespace) -> dict[str, Row]:
    """Compare the tokens of one real image between timm, transformers and the official code, each with its own file.

    Raises:
        ValueError: if two libraries differ.
    """
    table: dict[str, Row] = {}
    for name in list(PARITY)[: 1 if options.short else None]:
        models: dict[str, nn.Module] = {}
        for library, load in _libraries(name, options.random):
            try:
                models[library] = load()
            except (
                Exception
            ) as error:  # not installed, gated or not in the folder: the others are still compared
                table[f"`{name}`, {library}"] = {"not compared": type(error).__name__}
        prepare = load_backbone(name, pretrained=False).preprocess
        patch = 14 if "patch14" in name else 16
        images = prepare(
            [options.data / "crop_cover" / "images" / "0001.jpg"], size=(14 * patch, 28 * patch)
        )
        tokens = {
            library: both_norms(model, [11, 2, 5], "native", images)
            for library, model in models.items()
        }
        for one, other in combinations(tokens, 2):
            gaps = difference(tokens[one], tokens[other])
            relative = [
                gap / (gaps["scale"] or 1.0) for part in PARTS if (gap := gaps[part]) is not None
            ]
            if not all(value <= BOUND for value in relative):  # NaN does not hold
                raise ValueError(
                    f"{name}: {one} and {other} differ by {max(relative):.1e} of the largest value"
                )
            table[f"`{name}`, {one} - {other}"] = {"difference / largest value": max(relative)}
    return table


def _libraries(name: str, random: bool) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for source in ("timm", "transformers"):
        yield (
            source,
            lambda source=source: (
                load_backbone(name, source=source, pretrained=not random).adapter.model
            ),
        )
    if not random:
        yield "official", lambda: _official(*PARITY[name])


def _official(repository: str, entry: str) -> nn.Module:
    """The official model; DINOv3's file is behind Meta's form and is looked for in the folder."""
    files = sorted(Path(WEIGHTS).glob(f"{entry}_pretrain*.pth"))
    given = {"weights": str(files[0])} if files else {}
    model: nn.Module = torch.hub.load(
        repository, entry, trust_repo=True, skip_validation=True, **given
    )
    return model.eval()


def golden(options: Namespace) -> dict[str, Row]:
    """Run each open published head on ten images: mean, deviation and largest of its predictions; or why it did not."""
    images = sorted((options.data / "crop_cover" / "images").iterdir())[:10]
    table: dict[str, Row] = {}
    for head in list_published():
        if head.gated:
            continue
        try:
            rows = Predictor(load_published(head.name), device=options.device)(images)
        except DinoneckError as error:  # a file is gone, or is another one: the others still run
            print(f"{head.name}: {error}")
            table[f"`{head.name}`"] = {"not run": type(error).__name__}
            continue
        values = torch.stack(
            [torch.cat([torch.as_tensor(x).flatten() for x in row.values()]) for row in rows]
        ).float()
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
    draw = torch.Generator().manual_seed(0)
    cloud = frames.cameras[:1].unproject(frames.depth[:1]).reshape(-1, 3)
    project, found, chance = PointProjector(), [], []
    cloud = cloud[cloud.isfinite().all(1)]
    cloud = cloud[torch.randperm(len(cloud), generator=draw)[:2000]]

    def features(view: int) -> tuple[Tensor, Tensor]:
        one = slice(view, view + 1)
        return lift(maps[one].cpu(), project(cloud, cameras[one], frames.depth[one]))

    own, seen = features(0)
    for view in range(1, len(frames)):
        other, also = features(view)
        both = seen & also
        near = torch.cdist(cloud[both], cloud[both]) < NEAR_M
        a, b = (F.normalize(x[both] - x[both].mean(0), dim=-1) for x in (own, other))
        best = (a @ b.T).argmax(1)
        found.append(near[torch.arange(len(best)), best].double().mean().item())
        chance.append(near.double().mean().item())
    return {
        "points of another view": {
            "found": sum(found) / len(found),
            "by chance": sum(chance) / len(chance),
        }
    }
