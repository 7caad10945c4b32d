"""z_score.json: the exact way there and back, and every misfit named with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examples.biomass.z_score import read_z_score

from dinoneck import DataError, TargetTransform


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
    one_area = read_z_score(str(path), area=0.21, log1p=["reg3"])
    assert one_area["reg3"] == TargetTransform(0.21, True, (5.0, 2.5, 3.0), (0.8, 1.5, 1.0))
    assert one_area["ndvi"] == TargetTransform(0.21, False, 0.6, 0.2)
    own_area = read_z_score(path, area={"reg3": 0.21}, log1p=("reg3", "ndvi"))
    assert (own_area["reg3"].area, own_area["ndvi"].area, own_area["ndvi"].log1p) == (0.21, None, True)
    flat = written(tmp_path, {"mean": [1.5], "std": [2.0]})
    assert read_z_score(flat, area=0.5, log1p=["target"]) == {"target": TargetTransform(0.5, True, (1.5,), (2.0,))}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ({"reg3": {"mean": 1.0}}, r"'reg3' lacks 'std'; it holds mean"),
        ({"reg3": [1.0, 2.0]}, r"'reg3' is \[1.0, 2.0\]; expected"),
        ({"reg3": {"mean": [1.0, 2.0], "std": [1.0]}}, r"'reg3' has mean \[1.0, 2.0\] and std \[1.0\]"),
        ('{"reg3": {"mean": 1e999, "std": 1}}', r"'reg3' 'mean' is inf"),
        ({"reg3": {"mean": 1.0, "std": 0.0}}, r"'reg3' 'std' is 0.0; expected positive"),
        ('{"reg3": {"mean": 1, "std": 1, "std": 2}}', r"the key 'std' is given twice"),
    ],
)
def test_misfits_name_the_file_and_the_key(tmp_path: Path, content: Any, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        read_z_score(path)
    assert str(path) in str(error.value)
