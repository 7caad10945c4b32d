"""The training files of the biomass example state the commands that run them, and how to extract their views."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from examples.biomass import layouts, pipeline

from dinoneck import FeatureStore
from dinoneck.cli import main as cli
from dinoneck.data import Views
from dinoneck.errors import ConfigError
from dinoneck.training import TrainConfig
from dinoneck.training.run import prepare

FILES = sorted(layouts.HERE.glob("*.yaml"))
SMALL = ["--backbone", "dinoneck_tiny", "--layers", "1", "3", "--size", "32x64"]


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
            assert values["backbone"] == config.backbone
            assert values["stored"].interpolation == config.data.interpolation
            assert len(Views.named(values["stored"].views)) == config.data.views


@pytest.mark.parametrize("name", ["fpn", "cls_gating"])
def test_the_files_need_a_store_with_their_views(csiro: Path, tmp_path: Path, name: str) -> None:
    file, store = layouts.HERE / f"{name}.yaml", tmp_path / "store"
    train = [str(file), "--csv", str(csiro / "table.csv"), *SMALL, "--out", "run"]
    config: TrainConfig = cli.command("train", train).keywords["run"]
    with pytest.raises(ConfigError, match=r"views.*--store"):
        prepare(config, tmp_path / "run")
    [extract] = [words[1:] for words in commands(file) if words[:2] == ["dinoneck", "extract"]]
    views = extract[extract.index("--views") + 1]
    made = ["extract", str(csiro / "train"), "--root", str(csiro), "--out", str(store), "--views", views, *SMALL]
    made += ["--interpolation", "area"]
    assert cli.main(made) == 0
    assert len(FeatureStore.open(store).views) == config.data.views
    prepared = prepare(config.changed(data=config.data.changed(store=str(store))), tmp_path / "run")
    assert len(prepared.source.load().views) == config.data.views  # type: ignore[attr-defined]
