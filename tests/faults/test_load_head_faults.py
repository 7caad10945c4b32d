"""Heads from a file on tokens of another backbone: every case is judged by predicting with it.

``MODES`` is plain data: what is done to the tokens, the backbone or the record, and whether the prediction must be the
head's own (``harmless``) or must not be made (``refused``). ``campaign()`` counts the outcomes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults import signed
from torch import Tensor

from dinoneck import (
    CLSGatingHead,
    DenseHead,
    FPNHead,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    Task,
    Tokens,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.errors import BackboneError, DinoneckError

TINY = "dinoneck_tiny"
HEADS: dict[str, Callable[[], Any]] = {
    "patch_mean": lambda: PatchMeanHead(64, [Task("y")], hidden_dim=4),
    "cls_gating": lambda: CLSGatingHead(64, [Task("y")], mode="query", hidden_dim=4),
    "dense": lambda: DenseHead(64, [Task("y", kind="dense")], hidden_dim=8, depth=0),
    "fpn": lambda: FPNHead(64, [Task("y")], num_layers=1, fpn_dim=8),
    "selecting": lambda: FPNHead(64, [Task("y")], num_layers=1, layer_indices=(5,), fpn_dim=8),
    "ensemble": lambda: HeadEnsemble.from_heads([PatchMeanHead(64, [Task("y")], hidden_dim=4) for _ in range(2)]),
}
# name -> (arguments of load_backbone, changes to its tokens); the heads were trained on layers=[5] with norm
OTHER_TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another seed": ({"seed": 1}, {}),
    "another layer": ({"layers": [2]}, {}),
    "another layer, another norm": ({"layers": [2], "norm": False}, {}),
    "without the norm": ({"norm": False}, {}),
    "two layers": ({"layers": [2, 4]}, {}),
    "another patch size": ({}, {"patch_size": 14}),
    "another width": ({}, {"sequence": (torch.zeros(2, 19, 32),)}),
    "half precision of another seed": ({"seed": 1, "dtype": torch.bfloat16}, {}),
}
SAME_TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same backbone": ({}, {}),
    "half precision of the same weights": ({"dtype": torch.bfloat16}, {}),
    "tokens of unknown source": ({}, {"source": None, "layers": None, "normed": None}),
}
# record entry -> values that no training writes; the file is signed again
EDITS: dict[str, tuple[Any, ...]] = {
    "layers": (None, [], [6], [-1], 5, "last"),
    "norm": (None, 1, "yes"),
    "patch_size": (None, [0, 16], [16], "16", [14, 14]),
    "embed_dim": (None, 0, -64, 32),
    "depth": (None, 0, 5),
    "mean": (None, [1.48, 0.4, 0.4], [-0.49, 0.4, 0.4], [0.5], [0.5, 0.5, True]),
    "std": (None, [1e308] * 3, [0.0, 0.2, 0.2], [2.0, 0.2, 0.2]),
    "probe": (None, [], [0.1] * 7, [1e308] * 8, ["x"] * 8),
    "weights_sha256": ("0" * 64,),
    "weights": ("seeded",),
    "num_cls": (None, -1, 0),
    "num_registers": (None, -3, 0),
    "name": (None, 5),
}
MODES = {
    **{f"tokens: {name}": ("refused", *how) for name, how in OTHER_TOKENS.items()},
    **{f"tokens: {name}": ("harmless", *how) for name, how in SAME_TOKENS.items()},
    **{f"record: {key}": ("refused", {key: values}) for key, values in EDITS.items()},
}


def campaign() -> dict[str, dict[str, int]]:
    """Return ``{mode: {cases, refused, noticed, harmless, silent}}``; a prediction other than its own is silent."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, head in HEADS.items():
            save_head(Path(folder, name), head(), backbone=load_backbone(TINY, layers=[5]))
        for mode, (_, *how) in MODES.items():
            if mode.startswith("tokens"):
                tokens = changed(images, *how)
                outcomes = [on_tokens(Path(folder, name), tokens, images) for name in HEADS]
            else:
                edits = [(key, value) for key, values in how[0].items() for value in values]
                outcomes = [edited(Path(folder, "patch_mean"), key, value, images) for key, value in edits]
            found[mode] = {"cases": len(outcomes), "noticed": 0}
            found[mode] |= {kind: outcomes.count(kind) for kind in ("refused", "harmless", "silent")}
    return found


def changed(images: Tensor, options: Mapping[str, Any], changes: Mapping[str, Any]) -> Tokens:
    tokens = load_backbone(TINY, **{"layers": [5], **options})(images).to(torch.float32)
    if "sequence" in changes:
        return Tokens.from_sequence(changes["sequence"][0], image_size=(64, 64), patch_size=16, num_prefix_tokens=3)
    return replace(tokens, **changes)


def on_tokens(path: Path, tokens: Tokens, images: Tensor) -> str:
    """Predict with a sound file on these tokens."""
    right = load_head(path).predict(load_backbone(TINY, layers=[5])(images))["y"]
    try:
        found = load_head(path).predict(tokens)["y"]
    except DinoneckError:
        return "refused"
    return "harmless" if torch.allclose(found, right, rtol=0.05, atol=0.05) else "silent"


def edited(path: Path, key: str, value: Any, images: Tensor) -> str:
    """Put a value into the record, sign the file again, and predict with whatever loads, by both ways."""
    content = signed.read(path.read_bytes())
    meta = {**content.meta, "backbone": {**content.meta["backbone"], key: value}}
    forged = path.with_name("forged")
    forged.write_bytes(signed.write(meta, content.chunks))
    outcomes = {judged(predict, forged, path, images) for predict in (by_load_head, by_predictor)}
    return max(outcomes, key=["harmless", "refused", "silent"].index)


def judged(predict: Callable[[Path, Tensor], Tensor], forged: Path, sound: Path, images: Tensor) -> str:
    try:
        found = predict(forged, images)
    except DinoneckError:
        return "refused"
    return "harmless" if torch.allclose(found, predict(sound, images), atol=1e-5) else "silent"


def by_load_head(path: Path, images: Tensor) -> Tensor:
    answer: Tensor = load_head(path).predict(load_backbone(TINY, layers=[5])(images))["y"]
    return answer


def by_predictor(path: Path, images: Tensor) -> Tensor:
    return torch.tensor([row["y"] for row in Predictor(path, load_backbone(TINY, layers=[5]))(list(images))])


def test_no_prediction_is_silently_wrong() -> None:
    for mode, counts in campaign().items():
        assert counts["silent"] == 0, (mode, counts)
        assert counts[MODES[mode][0]] == counts["cases"], (mode, counts)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_names_both_values_and_the_remedy(name: str, tmp_path: Path) -> None:
    backbone = load_backbone(TINY, layers=[5])
    save_head(tmp_path / "h", HEADS[name](), backbone=backbone)
    other = load_backbone(TINY, layers=[5], seed=1)
    tokens = other(torch.rand(1, 3, 64, 64))
    with pytest.raises(BackboneError, match=f"{backbone.fingerprint}, got {other.fingerprint}.*check_backbone=False"):
        load_head(tmp_path / "h").predict(tokens)
    assert load_head(tmp_path / "h", check_backbone=False).predict(tokens)["y"].isfinite().all()
