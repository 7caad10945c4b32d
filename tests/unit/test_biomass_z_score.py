"""z_score.json: the exact way there and back, and every misfit named with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from examples.biomass.z_score import read_z_score

from dinoneck import TargetTransform


def written(folder: Path, content: Any) -> Path:
    path = folder / "z_score.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_both_forms(tmp_path: Path) -> None:
    path = written(
        tmp_path, {"reg3": {"mean": [5.0, 2.5, 3], "std": [0.8, 1.5, 1.0]}, "ndvi": {"mean": 0.6, "std": 0.2}}
    )
    assert read_z_score(path) == {
        "reg3": TargetTransform(mean=(5.0, 2.5, 3.0), std=(0.8, 1.5, 1.0)),
        "ndvi": TargetTransform(mean=0.6, std=0.2),
    }
    own_area = read_z_score(path, area={"reg3": 0.21}, log1p=("reg3", "ndvi"))
    assert (own_area["reg3"].area, own_area["ndvi"].area, own_area["ndvi"].log1p) == (0.21, None, True)
