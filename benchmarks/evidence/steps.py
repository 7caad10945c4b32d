"""The steps: each runs one part on real data and returns its numbers."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import read_frames
from torch import Tensor, nn

from benchmarks.evidence import WEIGHTS
from benchmarks.parity import PARTS, both_norms, difference
from dinoneck import load_backbone
from dinoneck.backbones.known import KNOWN
from dinoneck.cli.main import main as dinoneck
from dinoneck.points import PointProjector, lift

CLASSES = ("soil", "crop", "weed")
# timm's and transformers' name -> entry of the official repository on torch.hub
PARITY = {
    "vit_small_patch14_reg4_dinov2": ("facebookresearch/dinov2:main", "dinov2_vits14_reg"),
    "vit_small_patch16_dinov3": ("facebookresearch/dinov3:main", "dinov3_vits16"),
}
BOUND = 1e-4  # of the largest value; float32 leaves about 1e-6, the wrong layer or norm 1e-1
NEAR_M = 0.2
FCOS = (
    "--detector fcos --head spatial_tuning_adapter --hidden-dim 96 --size 480x640 --augment both --batch-size 4 "
    "--lr 1e-3 --warmup 0.1 --weight-decay 1e-4 --clip-norm 5 --ema-decay 0.99 --freeze 0=all --epochs 12 "
    "--eval-every 4"
)
FCOS_SHORT = "--epochs 1 --size 96x128 --batch-size 2 --eval-every 1"


def layers_of(backbone: str) -> list[str]:
    """Return four blocks, evenly spaced; the last one is among them."""
    depth = next((one.depth for one in KNOWN if one.name == backbone.split(".")[0]), 6)
    return [str(depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)]


def shared(options: Namespace) -> list[str]:
    """Return the options that the commands share."""
    random = ["--random-backbone"] if options.random else []
    return ["--backbone", options.backbone, "--device", options.device, *random]


def parity(options: Namespace) -> dict[str, Any]:
    """Compare the tokens of one real image between timm, transformers and the official code, each with its own file."""
    rows, missing = [], {}
    for name in PARITY:
        models: dict[str, nn.Module] = {}
        for library, load in _libraries(name, options.random):
            try:
                models[library] = load()
            except Exception as error:  # not installed, gated or not in the folder: the others are still compared
                missing[f"{name}, {library}"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        prepare = load_backbone(name, pretrained=False).preprocess
        patch = 14 if "patch14" in name else 16
        images = prepare([options.data / "crop_cover" / "images" / "0001.jpg"], size=(14 * patch, 28 * patch))
        tokens = {library: both_norms(model, [11, 2, 5], "native", images) for library, model in models.items()}
        for one, other in combinations(tokens, 2):
            gaps = difference(tokens[one], tokens[other])
            relative = [gap / (gaps["scale"] or 1.0) for part in PARTS if (gap := gaps[part]) is not None]
            holds = all(value <= BOUND for value in relative)  # NaN does not hold
            rows.append({"model": name, "pair": f"{one} - {other}", "relative": max(relative), "holds": holds})
    return {"rows": rows, "missing": missing, "holds": bool(rows) and all(row["holds"] for row in rows)}


def _libraries(name: str, random: bool) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for source in ("timm", "transformers"):
        yield source, lambda source=source: load_backbone(name, source=source, pretrained=not random).adapter.model
    if not random:
        yield "official", lambda: _official(*PARITY[name])


def _official(repository: str, entry: str) -> nn.Module:
    """The official model; DINOv3's file is behind Meta's form and is looked for in the folder."""
    files = sorted(Path(WEIGHTS).glob(f"{entry}_pretrain*.pth"))
    given = {"weights": str(files[0])} if files else {}
    model: nn.Module = torch.hub.load(repository, entry, trust_repo=True, skip_validation=True, **given)
    return model.eval()


def cover(options: Namespace) -> dict[str, Any]:
    """Cross-validate a PatchMeanHead on the cover of crop images, next to ridge regression and knn."""
    return _trained(options, "cover", [])


def cells(options: Namespace) -> dict[str, Any]:
    """Cross-validate an FPNHead on the cover of every patch."""
    layers = layers_of(options.backbone)
    return _trained(options, "cells", ["--head", "fpn", "--layers", *layers, "--labels", "mask", "--classes", *CLASSES])


def _trained(options: Namespace, name: str, words: list[str]) -> dict[str, Any]:
    """Run ``dinoneck train``, keep its file of all heads, and return its R² by target and method."""
    images, out = options.data / "crop_cover", options.out / name
    table = images / "cover.csv"
    if options.short:
        head, *rows = table.read_text().splitlines()
        table = options.out / "cover.csv"
        table.write_text("\n".join([head, *rows[::20]]) + "\n")
        words = [*words, "--folds", "2", "--epochs", "1"]
    command = ["train", "--csv", str(table), "--images", str(images), "--targets", *CLASSES, "--group", "group"]
    command += ["--minimum", "0", *shared(options), *words, "--overwrite", "--out", str(out)]
    if dinoneck(command):
        raise RuntimeError(f"dinoneck {' '.join(command)} failed; its message is above")
    (options.out / "heads").mkdir(exist_ok=True)
    shutil.copyfile(out / "head.safetensors", options.out / "heads" / f"{name}.safetensors")
    report = json.loads((out / "report.json").read_text())
    pooled = {
        target: {method: own["r2"]["pooled"] for method, own in methods.items()}
        for target, methods in report["scores"].items()
    }
    return {"r2": pooled, "backbone": report["backbone"]}


def detector(options: Namespace) -> dict[str, Any]:
    """Train an FCOS on a frozen backbone to find blood cells, and test it on held-out images."""
    data, out = options.data / "blood_cells", options.out / "detector"
    command = ["train", "--boxes", str(data / "train.json"), "--val-boxes", str(data / "val.json"), *FCOS.split()]
    command += [*shared(options), "--layers", *layers_of(options.backbone)[1:], "--overwrite", "--out", str(out)]
    if options.short:
        command += FCOS_SHORT.split()
        command[2], command[4] = _first_images(data, options.out)
    if dinoneck(command):
        raise RuntimeError(f"dinoneck {' '.join(command)} failed; its message is above")
    result = json.loads((out / "report.json").read_text())
    return {key: result[key] for key in ("best", "untrained", "parameters", "minutes")}


def _first_images(data: Path, out: Path) -> tuple[str, str]:
    """COCO files of the first four images; the folder of the images is linked next to them."""
    if not (out / "images").exists():
        (out / "images").symlink_to((data / "images").resolve())
    for name in ("train.json", "val.json"):
        content = json.loads((data / name).read_text())
        content["images"] = content["images"][:4]
        (out / name).write_text(json.dumps(content))
    return str(out / "train.json"), str(out / "val.json")


def points(options: Namespace) -> dict[str, Any]:
    """Lift tokens of two views of a room to its points and look for every point in the other view by its feature.

    A point is found where the most similar feature of the other view belongs to a point within 20 cm.
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
    return {"found": sum(found) / len(found), "chance": sum(chance) / len(chance), "views": len(found)}


STEPS: dict[str, Callable[[Namespace], dict[str, Any]]] = {
    "parity": parity, "cover": cover, "cells": cells, "detector": detector, "points": points,
}  # fmt: skip
