"""A training file holds a run: every spelling, one set of defaults, and refusals that name the key and the remedy."""

from __future__ import annotations

import contextlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoneck import ConfigError
from dinoneck.cli.main import command, main
from dinoneck.training import (
    BackboneConfig,
    DataConfig,
    FoldsConfig,
    InstancesDataConfig,
    LossConfig,
    Recipe,
    TaskConfig,
    TrainConfig,
    TrainDetectorConfig,
    fit,
)

WHOLE = """
data: {csv: cover.csv, images: pictures, targets: [crop, kind], aux_targets: [height], size: [480, 960], resize: pad,
  interpolation: area, pad_to: center, blur: 5, bits: 12, minimum: 0, unit: g, tta: d6, store: tokens,
  views: 4}
backbone: {name: dinoneck_tiny, layers: [1, 5], seed: 3}
head: {type: fpn, fpn_dim: 64, layer_groups: [[0], [1]]}
tasks:
  crop: {kind: regression, loss: smooth_l1, beta: 2, weight: 0.5, minimum: 0}
  both: {kind: ratio, columns: [crop, weed], weight: [1, 2]}
compositions: {masses: {total: crop, ratio: both, sums: {all: [crop, weed]}}}
losses: {weighting: uncertainty, aux_weight: 0.2}
optim: {epochs: 20, lr: 1e-4, ema_decay: 0.99, amp: bf16, clip_norm: null}
folds: {count: 3, group: [site, day], stratify: kind, only: 2}
imports: [own.py]
device: cpu
"""


def read(folder: Path, text: str) -> TrainConfig:
    path = folder / "run.yaml"
    path.write_text(text)
    return TrainConfig.read(path)


@pytest.mark.slow
def test_a_file_is_the_config_and_comes_back_from_its_values(tmp_path: Path) -> None:
    config = read(tmp_path, WHOLE)
    assert (config.data.size, config.data.targets, config.data.minimum) == (
        (480, 960),
        ("crop", "kind"),
        0.0,
    )
    assert config.head == {"type": "fpn", "fpn_dim": 64, "layer_groups": [[0], [1]]}
    crop = TaskConfig(kind="regression", loss="smooth_l1", beta=2.0, weight=0.5, minimum=0.0)
    assert config.tasks == {
        "crop": crop,
        "both": TaskConfig(kind="ratio", columns=("crop", "weed"), weight=(1.0, 2.0)),
    }
    assert config.compositions["masses"].sums == {"all": ("crop", "weed")}
    assert config.optim == Recipe(epochs=20, lr=1e-4, ema_decay=0.99, amp="bf16", clip_norm=None)
    assert config.folds == FoldsConfig(count=3, group=("site", "day"), stratify="kind", only=2)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert read(tmp_path, json.dumps(config.to_dict())) == config, "JSON is YAML"


def test_there_is_one_set_of_defaults(tmp_path: Path) -> None:
    assert (
        read(tmp_path, "optim:\nhead:\nfolds: {}\n") == TrainConfig() == TrainConfig.from_dict({})
    )
    assert command("train", ["--out", "x"]).keywords["run"] == TrainConfig()
    recipe = inspect.signature(fit).parameters["recipe"].default
    assert recipe in (Recipe(), None)
    assert TrainConfig().optim == Recipe()


@pytest.mark.parametrize(("size", "pixels"), [("32", (32, 32)), ("[32, 64]", (32, 64))])
def test_a_size_is_one_number_or_two(tmp_path: Path, size: str, pixels: tuple[int, int]) -> None:
    assert read(tmp_path, f"data: {{size: {size}}}").data.size == pixels
    assert TrainConfig(data=DataConfig(size=32)).data.size == (32, 32)


@pytest.mark.slow
def test_reading_a_file_imports_no_torch(tmp_path: Path) -> None:
    read(tmp_path, WHOLE)
    script = (
        "import sys\nfrom dinoneck.training import TrainConfig\nTrainConfig.read(sys.argv[1])\n"
        "print('heavy:', sorted({'torch', 'numpy', 'timm', 'PIL'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run.yaml")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, start_new_session=True
    )
    assert done.stdout == "heavy: []\n"


WRONG = [
    ("optim", "epochs", 0),
    ("optim", "lr", 0),
    ("optim", "amp", "fp8"),
    ("optim", "mixup_off_last", 2),
    ("optim", "cutmix_alpha", -1),
    ("optim", "patience", 0),
    ("optim", "backbone_lr", 0),
    ("data", "views", 0),
    ("data", "resize", "squash"),
    ("data", "pad_to", "left"),
    ("data", "interpolation", "cubic"),
    ("data", "blur", 0),
    ("data", "bits", 7),
    ("data", "bits", 17),
    ("data", "tta", "flip8"),
    ("data", "pasture", 0),
    ("data", "label_kind", "words"),
    ("backbone", "source", "keras"),
    ("backbone", "seed", -1),
    ("backbone", "lora", 0),
    ("folds", "count", 0),
    ("folds", "only", -1),
    ("losses", "weighting", "learned"),
    ("losses", "aux_weight", -1),
]
FLAGS = {
    "source": "backbone-source",
    "seed": "backbone-seed",
    "count": "folds",
    "only": "fold",
    "weighting": "loss-weighting",
}
GROUPS = {
    "optim": Recipe,
    "data": DataConfig,
    "backbone": BackboneConfig,
    "folds": FoldsConfig,
    "losses": LossConfig,
}


@pytest.mark.parametrize(("group", "key", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name_however_it_is_set(
    group: str, key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=key):
        GROUPS[group](**{key: value})
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({group: {key: value}}))
    with pytest.raises(ConfigError, match=f"{group}.{key}"):
        TrainConfig.read(file)
    name = "seed" if (group, key) == ("optim", "seed") else FLAGS.get(key, key.replace("_", "-"))
    with contextlib.suppress(SystemExit):  # of tyro
        assert main(["train", "--out", str(tmp_path / "out"), f"--{name}", str(value)]) != 0
    words = capsys.readouterr().err
    assert name in words or key in words
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: DataConfig(targts=("crop",)),  # type: ignore[call-arg]
            r"DataConfig has no argument 'targts'\. Did you mean 'targets'\?",
            id="unknown",
        ),
        pytest.param(
            lambda: Recipe(3),  # type: ignore[misc]
            r"Recipe takes keywords alone, not 3, such as Recipe\(epochs=\.\.\.\)",
            id="by its place",
        ),
        pytest.param(
            lambda: TrainDetectorConfig(),  # type: ignore[call-arg]
            "TrainDetectorConfig needs the argument 'data'",
            id="missing",
        ),
    ],
)
def test_a_call_with_wrong_keywords_names_class_and_keyword(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_a_missing_value_of_a_group_is_named() -> None:
    values: Any = {}
    with pytest.raises(ConfigError, match=r"^data\.boxes is missing$"):
        TrainDetectorConfig(data=values)


def test_paths_are_taken_as_text() -> None:
    csv: Any = Path("table.csv")
    assert DataConfig(csv=csv).csv == "table.csv"
    panoptic: Any = (Path("segments"), "segments.json")
    assert InstancesDataConfig(panoptic=panoptic).panoptic == ("segments", "segments.json")


def test_two_unicode_forms_of_one_name_are_shown_so_that_they_can_be_told_apart() -> None:
    composed = "caf\u00e9"
    decomposed = "cafe\u0301"

    with pytest.raises(ConfigError) as raised:
        DataConfig(targets=(composed, decomposed))

    assert r"'caf\xe9' and 'cafe\u0301'; name each once" in str(raised.value)
