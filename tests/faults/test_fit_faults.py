"""Training inputs that are permuted, replaced, dropped, doubled, renamed or flipped.

The judge predicts with the resulting head: a disturbed call is refused, or it predicts what the undisturbed one does.
``python -m tests.faults --parts fit`` runs more cases of every mode of ``MODES`` for the report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dinoneck import PatchMeanHead, TargetTransform, Task, Tokens
from dinoneck.errors import DinoneckError
from dinoneck.training import MemoryTokens, Recipe, fit

IDS = [f"field-{i}" for i in range(12)]
Y = np.linspace(1.0, 9.0, 12)
CASES = 5
MODES = {
    "the table's rows permuted": "harmless",
    "the source's images permuted": "harmless",
    "rows of ids that are not asked for added": "harmless",
    "ids written with an image's suffix": "harmless",
    "arrays without ids": "refused",
    "an id dropped from the table": "refused",
    "an id dropped from the source": "refused",
    "an id doubled with another value": "refused",
    "an id renamed": "refused",
    "a value replaced by one below the minimum": "refused",
    "a value replaced by an infinite one": "refused",
    "values flipped in sign": "refused",
    "another order of values for the state in out=": "refused",
    "another order of rows for the state in out=": "harmless",
}


def source(order: Any = range(12), names: list[str] | None = None) -> MemoryTokens:
    patches = torch.randn(12, 6, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    patches[:, :, 0] += torch.tensor(Y, dtype=torch.float32)[:, None]
    rows = list(order)
    tokens = Tokens.from_patches(patches[torch.tensor(rows)], grid=(2, 3), patch_size=16)
    return MemoryTokens(names or [IDS[i] for i in rows], tokens)


def table(order: Any = range(12), **changes: float) -> pd.DataFrame:
    rows = list(order)
    values = [changes.get(IDS[i], Y[i]) for i in rows]
    return pd.DataFrame({"y": values}, index=[IDS[i] for i in rows])


def predictions(tokens: MemoryTokens, targets: Any, epochs: int = 3, **given: Any) -> torch.Tensor:
    """Train and predict every image, in the order of ``IDS``."""
    torch.manual_seed(0)
    head = PatchMeanHead(8, [Task("y", minimum=0, transform=TargetTransform().fit(Y))], hidden_dim=4)
    recipe = Recipe(ema_decay=0.9, mixup_alpha=0.5)
    given = {"ids": IDS[:9], "val_ids": IDS[9:], "recipe": recipe, **given}
    fit(head, tokens, targets=targets, epochs=epochs, batch_size=4, lr=1e-2, **given)
    return head.predict(source().batch(IDS))["y"]


def disturbed(mode: str, rng: np.random.RandomState, folder: Path) -> torch.Tensor:
    """One disturbed call."""
    order, name = rng.permutation(12), IDS[rng.randint(12)]
    others = [i for i in range(12) if IDS[i] != name]
    doubled = table([*range(12), IDS.index(name)])
    doubled.iloc[-1] += 1.0
    renamed = [f"{i}-b" if i == name else i for i in IDS]
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "the table's rows permuted": lambda: predictions(source(), table(order)),
        "the source's images permuted": lambda: predictions(source(order), table()),
        "rows of ids that are not asked for added": lambda: predictions(
            source(), {"y": {**dict(zip(IDS, Y, strict=True)), "elsewhere": 1e6}}
        ),
        "ids written with an image's suffix": lambda: predictions(
            source(), {"y": {f"{IDS[i]}.jpg": Y[i] for i in order}}
        ),
        "arrays without ids": lambda: predictions(source(), {"y": Y}),
        "an id dropped from the table": lambda: predictions(source(), table(others)),
        "an id dropped from the source": lambda: predictions(source(others), table()),
        "an id doubled with another value": lambda: predictions(source(), doubled),
        "an id renamed": lambda: predictions(source(), {"y": dict(zip(renamed, Y, strict=True))}),
        "a value replaced by one below the minimum": lambda: predictions(source(), table(**{name: -1.0})),
        "a value replaced by an infinite one": lambda: predictions(source(), table(**{name: np.inf})),
        "values flipped in sign": lambda: predictions(source(), {"y": dict(zip(IDS, -Y, strict=True))}),
        "another order of values for the state in out=": lambda: resumed(folder, {"y": dict(zip(IDS, Y[order]))}),  # noqa: B905
        "another order of rows for the state in out=": lambda: resumed(folder, table(order)),
    }
    return calls[mode]()


def resumed(folder: Path, targets: Any) -> torch.Tensor:
    """Two calls with one state, the second with other targets."""
    predictions(source(), table(), out=folder)
    return predictions(source(), targets, out=folder)


def outcomes(mode: str, folder: Path, cases: int) -> list[str]:
    """Return ``refused``, ``harmless`` (the same predictions, bit for bit) or ``silent`` for each case of a mode."""
    expected = predictions(source(), table())
    rng, found = np.random.RandomState(list(MODES).index(mode)), []
    for case in range(cases):
        try:
            same = torch.equal(disturbed(mode, rng, folder / str(case)), expected)
            found.append("harmless" if same else "silent")
        except DinoneckError:
            found.append("refused")
    return found


def campaign() -> dict[str, dict[str, int]]:
    """Return ``{mode: {cases, refused, noticed, harmless, silent}}``."""
    found = {}
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            each = outcomes(mode, Path(folder), 4 * CASES)
        counts = {kind: each.count(kind) for kind in ("refused", "harmless", "silent")}
        found[mode] = {"cases": len(each), "noticed": 0, **counts}
    return found


@pytest.mark.parametrize("mode", MODES)
def test_a_disturbed_call_is_refused_or_predicts_the_same(mode: str, tmp_path: Path) -> None:
    assert outcomes(mode, tmp_path, CASES) == [MODES[mode]] * CASES


def test_the_judge_sees_targets_of_other_images() -> None:
    """Matched by position: with targets of other images the head predicts something else."""
    wrong = {"y": dict(zip(IDS, Y[::-1], strict=True))}
    assert (predictions(source(), wrong) - predictions(source(), table())).abs().max() > 0.1
