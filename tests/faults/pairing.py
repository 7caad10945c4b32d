"""Heads from a file on tokens of another backbone, and files with another record of it, judged by predicting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
TRAINED_LAYERS = [5]


@dataclass(frozen=True)
class TokenCase:
    """Tokens that a head gets, and what must come of it.

    Attributes:
        expected: REFUSED or HARMLESS.
        backbone: arguments of load_backbone that differ from those of the training.
        changes: attributes of the tokens that are replaced.
    """

    expected: str
    backbone: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


NARROW = {"sequence": (torch.zeros(2, 19, 32),), "source": None}
UNKNOWN_SOURCE = {"source": None, "layers": None, "normed": None}
TOKENS = {
    "another seed": TokenCase(REFUSED, backbone={"seed": 1}),
    "another layer": TokenCase(REFUSED, backbone={"layers": [2]}),
    "without the norm": TokenCase(REFUSED, backbone={"norm": False}),
    "two layers": TokenCase(REFUSED, backbone={"layers": [2, 4]}),
    "another patch size": TokenCase(REFUSED, changes={"patch_size": 14}),
    "another width": TokenCase(REFUSED, changes=NARROW),
    "the same backbone": TokenCase(HARMLESS),
    "half precision of the same weights": TokenCase(HARMLESS, backbone={"dtype": torch.bfloat16}),
    "tokens of unknown source": TokenCase(HARMLESS, changes=UNKNOWN_SOURCE),
}
# entry of the file's record of its backbone -> values that no training writes
RECORDS: dict[str, list[Any]] = {
    "layers": [None, [], [6], [-1], 5, "last"],
    "patch_size": [None, [0, 16], [16], "16", [14, 14]],
    "mean": [None, [1.48, 0.4, 0.4], [-0.49, 0.4, 0.4], [0.5], [0.5, 0.5, True]],
    "std": [None, [1e308] * 3, [0.0, 0.2, 0.2], [2.0, 0.2, 0.2]],
    "probe": [None, [], [0.1] * 7, [1e308] * 8, ["x"] * 8],
    "embed_dim": [None, 0, -64, 32],
    "depth": [None, 0, -64, 32],
    "num_cls": [None, 0, -64, 32],
    "num_registers": [None, 0, -64, 32],
    "norm": [None, 1, "yes"],
    "name": [None, 5],
    "weights_sha256": ["0" * 64],
    "weights": ["seeded"],
}
OTHER_TOKENS = "tokens of another backbone"
OTHER_RECORD = "another record of the backbone"
MODES = (OTHER_TOKENS, OTHER_RECORD)


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all cases of one mode, whatever the share; another outcome than the expected one is a fault."""
    path = folder / "head"
    if mode == OTHER_TOKENS:
        for name, case in TOKENS.items():
            for head, outcome in on_tokens(path, case):
                yield as_expected(f"{name}, {head}", outcome, case.expected)
    else:
        for key in RECORDS:
            for value, outcome in with_record(path, key):
                yield as_expected(f"{key}={value!r}", outcome, REFUSED)


def on_tokens(path: Path, case: TokenCase) -> Iterator[tuple[str, str]]:
    """Predict with every head on the tokens of the case; yield the head's name and the outcome."""
    images = kit.images(2, 64, 64)
    trained = kit.backbone(layers=TRAINED_LAYERS)
    other = kit.backbone(**{"layers": TRAINED_LAYERS, **case.backbone})
    tokens = replace(other(images).to(torch.float32), **case.changes)
    for name, make in HEADS.items():
        save_head(path, make(), backbone=trained)
        right = load_head(path).predict(trained(images))["mass"]
        outcome = outcome_of(lambda: load_head(path).predict(tokens)["mass"], right, atol=0.05)
        yield name, outcome


def with_record(path: Path, key: str) -> Iterator[tuple[Any, str]]:
    """Predict with a file for every value of an entry, whose digest is right; yield the value and the outcome."""
    images = list(kit.images(2, 64, 64))
    trained = kit.backbone(layers=TRAINED_LAYERS)
    for value in RECORDS[key]:
        save_head(path, kit.head(), backbone=trained)
        right = Predictor(path, trained)(images)
        meta, chunks = signed.read(path.read_bytes())
        record = {**meta["backbone"], key: value}
        path.write_bytes(signed.write({**meta, "backbone": record}, chunks))
        yield value, outcome_of(lambda: Predictor(path, trained)(images), right)


def outcome_of(predict: Callable[[], Any], right: Any, atol: float = 0.0) -> str:
    """Return REFUSED, HARMLESS if it predicts what is right, or a sentence."""
    try:
        prediction = predict()
    except DinoneckError:
        return REFUSED
    if kit.same(prediction, right, atol):
        return HARMLESS
    return "it predicts something else"


def as_expected(case: str, outcome: str, expected: str) -> str:
    """Return the outcome if it is the expected one, else a sentence."""
    if outcome == expected:
        return outcome
    return f"{case}: {outcome}, not {expected}"
