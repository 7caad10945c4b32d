"""The training files of the biomass example state the commands that run them, and how to extract their views."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from examples.biomass import layouts, pipeline
from examples.biomass.z_score import read_z_score

from dinoneck import TargetTransform
from dinoneck.cli import main as cli
from dinoneck.data import Views
from dinoneck.training import TrainConfig

FILES = sorted(layouts.HERE.glob("*.yaml"))


def commands(file: Path) -> list[list[str]]:
    """The commands in the first comment of a file, as words."""
    comment = file.read_text().partition("\n#\n")[0]
    lines = re.sub(r"\\\n# *", "", comment).splitlines()
    return [shlex.split(line.removeprefix("#")) for line in lines if re.match(r"#   (dinoneck|python) ", line)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_first_comment_of_a_training_file_runs_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layouts.HERE.parents[1])
    config, stated = TrainConfig.read(file), commands(file)
    assert stated
    for _, *words in stated:
        if words[:3] == ["-m", "examples.biomass", "run"]:
            options, _ = pipeline._parser().parse_known_args(words[3:])
            assert options.config is None or Path(options.config).name == file.name
            continue
        if words[:3] == ["-m", "examples.biomass", "table"]:
            continue
        verb, *flags = words
        values: dict[str, Any] = cli.command(verb, flags).keywords
        if verb == "train":
            assert flags[0] == f"examples/biomass/{file.name}"
            assert (values["run"].data.store is not None) == (config.data.views is not None)
        else:
            size = config.data.size
            assert values["size"] == ((size, size) if isinstance(size, int) else size)
            names = values["backbone"].__struct_fields__
            assert [getattr(values["backbone"], name) for name in names] == [
                getattr(config.backbone, name) for name in names
            ]
            assert values["stored"].interpolation == config.data.interpolation
            assert len(Views.named(values["stored"].views)) == config.data.views


def test_z_scores_of_both_forms(tmp_path: Path) -> None:
    path, both = tmp_path / "z_score.json", {"mean": [5.0, 2.5, 3], "std": [0.8, 1.5, 1.0]}
    path.write_text(json.dumps({"reg3": both, "ndvi": {"mean": 0.6, "std": 0.2}}))
    assert read_z_score(path) == {
        "reg3": TargetTransform(mean=(5.0, 2.5, 3.0), std=(0.8, 1.5, 1.0)),
        "ndvi": TargetTransform(mean=0.6, std=0.2),
    }
    own_area = read_z_score(path, area={"reg3": 0.21}, log1p=("reg3", "ndvi"))
    assert (own_area["reg3"].area, own_area["ndvi"].area, own_area["ndvi"].log1p) == (0.21, None, True)
