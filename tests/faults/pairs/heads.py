"""Pairs of options of ``save_head``, ``load_head`` and ``Predictor``; the reference is the head in memory.

A case builds a backbone and a head, predicts by hand (prepare, turn, backbone, head, mean), saves,
and predicts again in all ways that users have: with the backbone of the file, with the one in
memory, with one that is loaded again, from tokens, and from a copy of the file.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests import kit
from tests.faults.judge import HARMLESS, NOTICED, REFUSED
from tests.faults.pairs.options import Option, Settings, check_same, name_of, pairs, verdict
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    CLSGatingHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    Tokens,
    load_head,
    save_head,
)
from dinoneck.grid import PreparedImages

TASKS = {
    "mass": Task("mass", unit="g", transform=TargetTransform(log1p=True, mean=1.0, std=0.5)),
    "bounded": Task("mass", activation="softplus", minimum=0.4),
    "ratio": Task("mass", dim=3, kind="ratio", labels=("clover", "grass", "soil")),
    "classes": Task("mass", dim=3, kind="classification", labels=("a", "b", "c")),
}
COVER = Task("cover", dim=2, kind="segmentation", labels=("soil", "crop"))
PREPARED: dict[str, dict[str, Any]] = {
    "size": {"size": (32, 64)},
    "padded": {"size": (64, 48), "resize": "pad", "pad_to": "center"},
    "cropped": {"size": (48, 32), "resize": "crop", "interpolation": "bicubic"},
    "blurred": {"size": (48, 48), "interpolation": "area", "blur": 5},
    "12 bits": {"size": (32, 32), "bits": 12},
}
OPTIONS = (
    Option("dtype", "float32", ["bfloat16"]),
    Option("layers", None, [(2,), (1, 4)]),
    Option("norm", True, [False]),
    Option("weights", "loaded", ["tuned", "tuned and frozen", "written to .data"]),
    Option("lora", None, ["trained", "merged", "switched off"]),
    Option("backbone", "given", ["left out", "its record", "in DataParallel"]),
    Option("backbone_weights", None, ["state dict", "of the model"]),
    Option("head", "patch_mean", ["cls_gating", "fpn", "with a map", "ensemble"]),
    Option("head dtype", "float32", ["bfloat16"]),
    Option("task", "mass", ["bounded", "ratio", "classes"]),
    Option("preprocess", None, [*PREPARED]),
    Option("tta", None, ["flip4", "d6"]),
)
CASES = [*pairs(OPTIONS)]
ATOL = {"float32": 2e-5, "bfloat16": 4e-2}  # shares of the largest value
# mirrored axes and quarter turns of the views, as the documentation of Predictor lists them
MIRRORED: list[tuple[tuple[int, ...], int]] = [((), 0), ((-1,), 0), ((-2,), 0), ((-2, -1), 0)]
VIEWS = {
    None: MIRRORED[:1],
    "flip4": MIRRORED,
    "d6": [*MIRRORED, ((), 1), ((), 3)],
}


@dataclass(frozen=True)
class Saved:
    """A head that was saved, and what it predicted before."""

    path: Path
    settings: Settings
    backbone: Backbone
    image: Any
    tokens: Tokens
    rows: dict[str, Any]
    of_tokens: dict[str, Tensor]
    warned: bool


def outcomes(cases: Sequence[Settings], folder: Path) -> Iterator[str]:
    """Judge cases: save once, predict in all ways."""
    for settings in cases:
        yield from _outcomes_of(settings, folder)


def _outcomes_of(settings: Settings, folder: Path) -> Iterator[str]:
    name = name_of(settings, OPTIONS)
    saved: list[Saved] = []
    result = verdict(name, lambda: saved.append(save(settings, folder / "head.safetensors")))
    if not saved:  # without a file no prediction can be wrong
        yield result
        return
    for way, predict in WAYS.items():

        def run(predict: Callable[[Saved], Any] = predict) -> None:
            check(saved[0], predict)

        result = verdict(f"{name}; {way}", run)
        is_wrong = result not in (HARMLESS, REFUSED)
        # a head saved without backbone= warns that another backbone cannot be refused
        yield NOTICED if is_wrong and saved[0].warned and way in OTHER_BACKBONES else result


def save(settings: Settings, path: Path) -> Saved:
    """Predict by hand, then save."""
    backbone, head = build_backbone(settings), build_head(settings)
    recipe = backbone.preprocess
    options: dict[str, Any] = {"tta": settings["tta"]}
    if settings["preprocess"] is not None:
        recipe = recipe.changed(**PREPARED[settings["preprocess"]])
        options["preprocess"] = recipe
    with _lora_as_saved(settings, backbone):
        if settings["backbone_weights"] == "state dict":
            options["backbone_weights"] = backbone.state_dict()
        elif settings["backbone_weights"] == "of the model":
            options["backbone_weights"] = backbone.adapter.model.state_dict()
        if settings["backbone"] == "given":
            options["backbone"] = backbone
        elif settings["backbone"] == "its record":
            options["backbone"] = backbone.record()
        elif settings["backbone"] == "in DataParallel":
            options["backbone"] = nn.DataParallel(backbone)
        image = picture(settings)
        prepared = recipe.prepare([image])
        with torch.no_grad():
            tokens = backbone(prepared.images)
            of_tokens = head.predict(tokens)
        rows = predict_by_hand(settings, backbone, head, prepared)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save_head(path, head, **options)
    warned = any("without backbone=" in str(each.message) for each in caught)
    return Saved(path, settings, backbone, image, tokens, rows, of_tokens, warned)


def _lora_as_saved(settings: Settings, backbone: Backbone) -> Any:
    """Switch LoRA off where the case saves a head of the base."""
    is_off = settings["lora"] == "switched off"
    return backbone.lora_disabled() if is_off else contextlib.nullcontext()


def picture(settings: Settings) -> Any:
    """An image (32, 48, 3): of 12 bits where the preprocessing is for these, else of 8."""
    levels = 4096 if settings["preprocess"] == "12 bits" else 256
    drawn = np.random.default_rng(1).integers(0, levels, (32, 48, 3))
    return drawn.astype(np.uint16 if levels > 256 else np.uint8)


@torch.no_grad()
def predict_by_hand(
    settings: Settings, backbone: Backbone, head: Any, prepared: PreparedImages
) -> dict[str, Any]:
    """The mean over the views of what the head predicts; of a map the mean over the cells with image."""
    totals: dict[str, list[Tensor]] = {}
    for axes, turns in VIEWS[settings["tta"]]:
        images = torch.rot90(prepared.images.flip(axes), turns, (-2, -1))
        shows = torch.rot90(prepared.valid.flip(axes), turns, (-2, -1)).float()
        for name, value in head.predict(backbone(images)).items():
            if name.endswith(".map"):
                continue
            if value.ndim == 4:
                value = (value.float() * shows).sum((2, 3)) / shows.sum()
            totals.setdefault(name, []).append(value[0].float())
    return {name: torch.stack(values).mean(0) for name, values in totals.items()}


def check(saved: Saved, predict: Callable[[Saved], Any]) -> None:
    """Compare what is predicted from a file with what was predicted before it was saved."""
    found = predict(saved)
    is_half = "bfloat16" in (saved.settings["dtype"], saved.settings["head dtype"])
    right = saved.of_tokens if predict is from_tokens else saved.rows
    for name, value in right.items():
        if not name.endswith(".map"):
            tolerance = ATOL["bfloat16" if is_half else "float32"]
            check_same(_flat(found[name]), _flat(value), name, tolerance)


def _flat(value: Any) -> list[float]:
    return torch.as_tensor(value).detach().float().flatten().tolist()


def by_its_own_backbone(saved: Saved) -> Any:
    return Predictor(saved.path)(saved.image)[0]


def by_the_one_in_memory(saved: Saved) -> Any:
    with _lora_as_saved(saved.settings, saved.backbone):
        return Predictor(saved.path, saved.backbone)(saved.image)[0]


def by_the_one_in_memory_as_it_is(saved: Saved) -> Any:
    return Predictor(saved.path, saved.backbone)(saved.image)[0]


def by_one_that_is_loaded_again(saved: Saved) -> Any:
    return Predictor(saved.path, load_base(saved.settings))(saved.image)[0]


def by_one_of_other_layers(saved: Saved) -> Any:
    return Predictor(saved.path, saved.backbone.with_layers([0, 3]))(saved.image)[0]


def with_a_probe(saved: Saved) -> Any:
    return Predictor(saved.path, load_base(saved.settings), probe=True)(saved.image)[0]


def from_tokens(saved: Saved) -> Any:
    return load_head(saved.path).predict(saved.tokens)


def from_a_copy(saved: Saved) -> Any:
    copy = saved.path.with_name("copy.safetensors")
    HeadCheckpoint.load(saved.path).save(copy)
    return Predictor(copy, saved.backbone)(saved.image)[0]


WAYS: dict[str, Callable[[Saved], Any]] = {
    "by its own backbone": by_its_own_backbone,
    "by the one in memory": by_the_one_in_memory,
    "by the one in memory as it is": by_the_one_in_memory_as_it_is,
    "by one that is loaded again": by_one_that_is_loaded_again,
    "by one of other layers": by_one_of_other_layers,
    "by one that is loaded again, with a probe": with_a_probe,
    "from tokens": from_tokens,
    "from a copy": from_a_copy,
}
OTHER_BACKBONES = (
    "by the one in memory as it is",
    "by one that is loaded again",
    "by one of other layers",
    "by one that is loaded again, with a probe",
    "from a copy",
)


def build_backbone(settings: Settings) -> Backbone:
    """Load the tiny backbone, and change its weights as the case asks for."""
    backbone = load_base(settings)
    if settings["weights"] in ("tuned", "tuned and frozen"):
        backbone.unfreeze_last(1)
        train(backbone)
        if settings["weights"] == "tuned and frozen":
            backbone.freeze()
    elif settings["weights"] == "written to .data":
        for parameter in backbone.adapter.blocks[0].parameters():
            parameter.data.mul_(1.5)
    if settings["lora"] is not None:
        backbone.add_lora(rank=2)
        train(backbone)
        backbone.freeze()
        if settings["lora"] == "merged":
            backbone.merge_lora()
    return backbone


@torch.no_grad()
def train(backbone: Backbone) -> None:
    """Change what is trainable, as a training does."""
    generator = torch.Generator().manual_seed(3)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * step.to(parameter.dtype))


def load_base(settings: Settings) -> Backbone:
    """The backbone as it is before any training."""
    layers = settings["layers"]
    return kit.backbone(
        layers=None if layers is None else list(layers),
        norm=settings["norm"],
        dtype=getattr(torch, settings["dtype"]),
    )


def build_head(settings: Settings) -> Any:
    """A head with random weights for the layers of the case."""
    kind, task = settings["head"], TASKS[settings["task"]]
    pyramid: dict[str, Any] = {
        "num_layers": len(settings["layers"] or (5,)),
        "fpn_dim": 8,
        "num_levels": 2,
        "hidden_dim": 8,
    }
    head: Any
    if kind == "cls_gating":
        head = kit.randomised(CLSGatingHead(64, [task], mode="query", hidden_dim=8))
    elif kind == "fpn":
        head = kit.randomised(FPNHead(64, [task], **pyramid))
    elif kind == "with a map":
        head = kit.randomised(FPNHead(64, [task, COVER], **pyramid))
    elif kind == "ensemble":
        members = [PatchMeanHead(64, [task], hidden_dim=width) for width in (4, 6)]
        for number, member in enumerate(members):
            kit.randomised(member, seed=number)
        head = HeadEnsemble.from_heads(members, weights=[1.0, 3.0])
    else:
        head = kit.randomised(PatchMeanHead(64, [task], hidden_dim=8))
    return head.eval().to(getattr(torch, settings["head dtype"]))
