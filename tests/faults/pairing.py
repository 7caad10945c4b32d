"""Heads from a file on tokens of another backbone, and files with another record of it, judged by predicting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests import kit
from tests.faults import signed
from tests.faults.judge import HARMLESS, REFUSED

from dinoneck import CLSGatingHead, DenseHead, HeadEnsemble, Predictor, Task, load_head, save_head
from dinoneck.errors import DinoneckError

HEADS: dict[str, Callable[[], Any]] = {
    "patch_mean": kit.head,
    "cls_gating": lambda: CLSGatingHead(64, [kit.MASS], mode="query", hidden_dim=4),
    "dense": lambda: DenseHead(64, [Task("mass", kind="dense")], hidden_dim=8, depth=0),
    "ensemble": lambda: HeadEnsemble.from_heads([kit.head(), kit.head(seed=1)]),
}
# name -> whether they are taken, arguments of load_backbone, changes to its tokens; heads are
# trained on layers=[5]
TOKENS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "another seed": (REFUSED, {"seed": 1}, {}),
    "another layer": (REFUSED, {"layers": [2]}, {}),
    "without the norm": (REFUSED, {"norm": False}, {}),
    "two layers": (REFUSED, {"layers": [2, 4]}, {}),
    "another patch size": (REFUSED, {}, {"patch_size": 14}),
    "another width": (REFUSED, {}, {"sequence": (torch.zeros(2, 19, 32),), "source": None}),
    "the same backbone": (HARMLESS, {}, {}),
    "half precision of the same weights": (HARMLESS, {"dtype": torch.bfloat16}, {}),
    "tokens of unknown source": (HARMLESS, {}, {"source": None, "layers": None, "normed": None}),
}
# entry of the record -> values that no training writes; the file is signed again
RECORDS: dict[str, list[Any]] = {
    "layers": [None, [], [6], [-1], 5, "last"],
    "patch_size": [None, [0, 16], [16], "16", [14, 14]],
    "mean": [None, [1.48, 0.4, 0.4], [-0.49, 0.4, 0.4], [0.5], [0.5, 0.5, True]],
    "std": [None, [1e308] * 3, [0.0, 0.2, 0.2], [2.0, 0.2, 0.2]],
    "probe": [None, [], [0.1] * 7, [1e308] * 8, ["x"] * 8],
    **{key: [None, 0, -64, 32] for key in ("embed_dim", "depth", "num_cls", "num_registers")},
    "norm": [None, 1, "yes"],
    "name": [None, 5],
    "weights_sha256": ["0" * 64],
    "weights": ["seeded"],
}
MODES = ("tokens of another backbone", "another record of the backbone")


def judged(predict: Callable[[], Any], right: Any, atol: float = 0.0) -> str:
    """Refused, harmless where the prediction is the right one, or another prediction."""
    try:
        return HARMLESS if kit.same(predict(), right, atol) else "it predicts something else"
    except DinoneckError:
        return REFUSED


def on_tokens(path: Path, options: dict[str, Any], changes: dict[str, Any]) -> Iterator[str]:
    """Predict with every head on these tokens."""
    images, trained = kit.images(2, 64, 64), kit.backbone(layers=[5])
    tokens = replace(
        kit.backbone(**{"layers": [5], **options})(images).to(torch.float32), **changes
    )
    for make in HEADS.values():
        save_head(path, make(), backbone=trained)
        right = load_head(path).predict(trained(images))["mass"]
        yield judged(lambda: load_head(path).predict(tokens)["mass"], right, atol=0.05)


def with_record(path: Path, key: str) -> Iterator[str]:
    """Predict with a file for every value of an entry."""
    images, trained = list(kit.images(2, 64, 64)), kit.backbone(layers=[5])
    for value in RECORDS[key]:
        save_head(path, kit.head(), backbone=trained)
        right = Predictor(path, trained)(images)
        meta, chunks = signed.read(path.read_bytes())
        path.write_bytes(
            signed.write({**meta, "backbone": {**meta["backbone"], key: value}}, chunks)
        )
        yield judged(lambda: Predictor(path, trained)(images), right)


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode; another outcome than the expected one is a fault."""
    if mode == MODES[0]:
        cases = [
            (name, expected, on_tokens(folder / "head", *how))
            for name, (expected, *how) in TOKENS.items()
        ]
    else:
        cases = [(key, REFUSED, with_record(folder / "head", key)) for key in RECORDS]
    for name, expected, found in cases:
        yield from (
            outcome if outcome == expected else f"{name}: {outcome}, not {expected}"
            for outcome in found
        )
