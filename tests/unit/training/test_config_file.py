"""A training file says what it says: every key, its kind, its defaults, and what does not go together."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dinoneck import ConfigError
from dinoneck.training import Recipe, TrainingConfig, fpn_yaml, read_config
from dinoneck.training.config_file import config_of
from dinoneck.training.config_keys import FPN_KEYS, IGNORED, KEYS, RECIPE

# The keys and values of the CLS-gating design source.
SOURCE = """
experiment: {name: exp013_dinov3, seed: 42}
backbone:
  model_name: vit_huge_plus_patch16_dinov3.lvd1689m
  pretrained: true
  freeze: true
  hidden_dim: 1280
  num_patches: 3600  # 60 x 60
dataset:
  img_size: 960
  resize_method: INTER_AREA
  feature_dir: /path/to/precomputed_features
  num_aug_patterns: 20
  target_cols: [Dry_Total_g, GDM_g, Dry_Green_g]
  aux_target_cols: [Dry_Dead_g, Dry_Clover_g]
head: {shared_hidden: 512, dropout: 0.1}
loss:
  beta: 1.0
  main_weights: [1.0, 0.6, 0.3]
  state_weight: 0.1
  height_weight: 0.1
  aux_weight: 0.1
trainer: {num_epochs: 200, batch_size: 32, num_workers: 4, use_amp: true, n_folds: 5, fold: null, group_col: site}
optimization:
  lr: 1e-4
  weight_decay: 1e-2
  warmup_rate: 0.1
  use_ema: true
  ema_decay: 0.997
  ema_start_ratio: 0.025
augmentation:
  mixup: {enabled: true, alpha: 2.5, disable_ratio: 0.2}
inference:
  tta_indices: [0, 1, 2, 3]
"""
PYRAMID = """
model.head: {type: fpn, fpn_dim: 64, num_levels: 2, layer_grouping: explicit, use_cls_context: true}
model.backbone_layers: {enabled: true, indices: [1, 3, 5], separate_bottlenecks: false}
fpn.layer_groups: [[0, 2], [1]]
loss.weighting: uw
backbone.model_name: dinoneck_tiny
trainer.num_epochs: 7
"""


def read(folder: Path, text: str, flags: dict[str, Any] | None = None) -> TrainingConfig:
    path = folder / "train.yaml"
    path.write_text(text)
    return read_config(path, flags)


def test_the_printed_file_of_the_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = read(tmp_path, SOURCE)
    assert config == TrainingConfig(
        name="exp013_dinov3",
        seed=42,
        backbone="vit_huge_plus_patch16_dinov3.lvd1689m",
        embed_dim=1280,
        num_patches=3600,
        image_size=(960, 960),
        interpolation="area",
        store="/path/to/precomputed_features",
        patterns=20,
        targets=("Dry_Total_g", "GDM_g", "Dry_Green_g"),
        aux_targets=("Dry_Dead_g", "Dry_Clover_g"),
        head="cls_gating",
        hidden_dim=512,
        dropout=0.1,
        beta=1.0,
        main_weights=(1.0, 0.6, 0.3),
        state_weight=0.1,
        height_weight=0.1,
        aux_weight=0.1,
        epochs=200,
        batch_size=32,
        folds=5,
        fold=None,
        group_columns=("site",),
        lr=1e-4,
        tta="flip4",
        recipe={
            "weight_decay": 1e-2,
            "warmup": 0.1,
            "ema_decay": 0.997,
            "ema_start": 0.025,
            "amp": True,
            "mixup_alpha": 2.5,
            "mixup_off_last": 0.2,
        },
    )
    assert "trainer.num_workers is 4; tokens are read in the process itself" in caplog.text


def test_an_almost_empty_file_has_the_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, "experiment:\ntrainer: {fold: null, patience: null}\n")
    assert config == TrainingConfig(recipe={"patience": None})
    assert (config.epochs, config.batch_size, config.lr, config.folds, config.fold, config.seed) == (
        200, 32, 1e-4, 5, None, 42,
    )  # fmt: skip
    recipe = Recipe(**config.recipe)
    assert (recipe.weight_decay, recipe.warmup, recipe.ema_decay, recipe.ema_start) == (1e-2, 0.1, 0.997, 0.025)
    assert (recipe.mixup_alpha, recipe.amp) == (None, None)
    assert config_of({}) == TrainingConfig()


def test_the_keys_of_the_fpn_source(tmp_path: Path) -> None:
    config = read(tmp_path, PYRAMID)
    assert (config.head, config.backbone, config.epochs, config.weighting) == ("fpn", "dinoneck_tiny", 7, "uw")
    settings = fpn_yaml.fpn_settings("file", config.fpn)
    assert settings.arguments == {
        "use_separate_bottlenecks": False,
        "use_cls_context": True,
        "num_layers": 3,
        "layer_indices": (1, 3, 5),
        "layer_groups": ((0, 2), (1,)),
        "fpn_dim": 64,
        "num_levels": 2,
    }
    assert {*FPN_KEYS, "loss.weighting"} == set(fpn_yaml.KEYS)
    other = read(tmp_path, PYRAMID, {"head": "patch_mean"})
    assert (other.head, other.fpn) == ("patch_mean", {})


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "+1e-4", "1.0e-4", "0.0001", ".1e-3", "1.e-4"])
def test_numbers_in_every_spelling(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, f"optimization: {{lr: {text}}}").lr == 1e-4


def test_quoted_numbers_are_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimization\.lr is '1e-4' \(text\); expected a finite number above 0"):
        read(tmp_path, "optimization: {lr: '1e-4'}")
    assert read(tmp_path, "experiment: {name: run1e-4}").name == "run1e-4"


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    text = "trainer: {num_epochs: 20, batch_size: 4}\noptimization: {weight_decay: 0.5}\n"
    config = read(tmp_path, text, {"epochs": 3, "recipe.warmup": 0.0})
    assert (config.epochs, config.batch_size, config.lr) == (3, 4, 1e-4)
    assert config.recipe == {"warmup": 0.0, "weight_decay": 0.5}
    with pytest.raises(ConfigError, match="'epoch' is no field"):
        read(tmp_path, text, {"epoch": 3})


@pytest.mark.parametrize(
    ("text", "flags", "alpha"),
    [
        ("mixup: {alpha: 2.5}", {}, 2.5),
        ("mixup: {alpha: 2.5, enabled: true}", {}, 2.5),
        ("mixup: {alpha: 2.5, enabled: false}", {}, None),
        ("mixup: {alpha: 2.5, enabled: false}", {"recipe.mixup_alpha": 0.4}, 0.4),
        ("mixup: {alpha: 2.5, enabled: true}", {"recipe.mixup_alpha": None}, None),
        ("mixup: {enabled: true}", {"recipe.mixup_alpha": 1.0}, 1.0),
        ("mixup: {disable_ratio: 0.5}", {}, None),
    ],
)
def test_mixup_is_off_unless_an_alpha_is_given(
    tmp_path: Path, text: str, flags: dict[str, Any], alpha: float | None
) -> None:
    assert read(tmp_path, f"augmentation:\n  {text}", flags).recipe.get("mixup_alpha") == alpha


@pytest.mark.parametrize(
    ("text", "flags", "decay"),
    [
        ("{use_ema: false, ema_decay: 0.9}", {}, None),
        ("{use_ema: true}", {}, 0.997),
        ("{ema_decay: null}", {}, None),
        ("{use_ema: false}", {"recipe.ema_decay": 0.5}, 0.5),
        ("{use_ema: true}", {"ema": False}, None),
    ],
)
def test_the_switch_of_the_average(tmp_path: Path, text: str, flags: dict[str, Any], decay: float | None) -> None:
    assert Recipe(**read(tmp_path, f"optimization: {text}", flags).recipe).ema_decay == decay


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trainer: {num_epoch: 3}", r"unknown key 'trainer\.num_epoch'\. Did you mean 'trainer\.num_epochs'\?"),
        ("trainer: {lr: 1e-3}", r"unknown key 'trainer\.lr'\. Did you mean 'optimization\.lr'\?"),
        ("augmentation: {mixup: {alfa: 1}}", r"unknown key 'augmentation\.mixup\.alfa'"),
        ("trainr: {num_epochs: 3}", r"unknown key 'trainr\.num_epochs'\. Did you mean 'trainer\.num_epochs'\?"),
        ("speed: {very: {deep: 1}}", r"unknown key 'speed\.very\.deep'.*Known sections: experiment, backbone"),
        ("trainer: 3", "trainer is '3'; expected keys below it"),
        ("trainer: [1]", "trainer is .*; expected keys below it"),
        ("trainer: {num_epochs: many}", r"trainer\.num_epochs is 'many' \(text\); expected a whole number"),
        ("trainer: {num_epochs: 2.5}", r"num_epochs is 2.5 \(a number\)"),
        ("trainer: {num_epochs: true}", r"num_epochs is True \(true or false\)"),
        ("trainer: {num_epochs: [2]}", r"num_epochs is \[2\] \(a list\)"),
        ("trainer: {num_epochs: 0}", "num_epochs is 0"),
        ("trainer: {n_folds: 1}", "n_folds is 1"),
        ("trainer: {fold: 5}", "fold is 5 and there are 5 folds; expected 0 ... 4"),
        ("trainer: {use_amp: 1}", "use_amp is 1"),
        ("trainer: {group_col: [site, 3]}", "group_col is .*expected a list of names, or one"),
        ("trainer: {group_col: []}", "group_col is"),
        ("optimization: {lr: -1e-4}", "lr is -0.0001"),
        ("optimization: {lr: .nan}", "lr is nan"),
        ("optimization: {lr: .inf}", "lr is inf"),
        ("optimization: {ema_decay: 1.0}", "ema_decay is 1.0 .*below 1"),
        ("optimization: {warmup_rate: 1.0}", "warmup_rate is 1.0 .*below 1"),
        ("recipe: {min_lr: -1}", "min_lr is -1"),
        ("recipe: {mixup_off_last: 2}", "mixup_off_last is 2 .*1 at most"),
        ("recipe: {amp: half}", "recipe.amp is 'half'"),
        ("optimization: {optimizer: smd}", "optimizer is 'smd'.*Did you mean"),
        ("optimization: {use_ema: true, ema_decay: null}", "use_ema is true and ema_decay is null"),
        ("optimization: {lr: 1}\noptimization: {lr: 2}", r"key 'optimization\.lr' stands twice"),
        ("optimization.lr: 1\noptimization: {lr: 2}", r"key 'optimization\.lr' stands twice"),
        ("optimization.weight_decay: 1\nrecipe.weight_decay: 2", "say the same thing"),
        ("head: {shared_hidden: 8, hidden_dim: 9}", r"head\.shared_hidden and head\.hidden_dim say the same thing"),
        ("head: {type: cls_gate}", "head.type is 'cls_gate'.*Did you mean 'cls_gating'"),
        ("head: {type: fpn}\nmodel.head.fpn_dim: 3", "both describe the head"),
        ("model.head.fpn_dim: wide", r"model\.head\.fpn_dim is 'wide'"),
        ("model.head.type: unet", r"model\.head\.type is 'unet'"),
        ("augmentation: {mixup: {enabled: true}}", r"say augmentation\.mixup\.alpha"),
        ("backbone: {freeze: false}", "trains heads on a frozen backbone"),
        ("inference: {tta_indices: [0, 2]}", r"tta_indices is \[0, 2\].*expected \[0\]"),
        ("inference: {tta_indices: [false]}", "tta_indices is"),
        ("inference: {tta_indices: [0], tta: none}", "say the same thing"),
        ("dataset: {img_size: [960]}", "img_size is"),
        ("dataset: {img_size: 0}", "img_size is 0"),
        ("dataset: {resize_method: INTER_LANCZOS4}", "resize_method is 'INTER_LANCZOS4'.*INTER_AREA"),
        ("dataset: {target_cols: [a, b]}\nloss: {main_weights: [1.0]}", "has 1 numbers for 2 targets"),
        ("dataset: {target_cols: [a, b], aux_target_cols: b}", "'b' is among the targets and among the auxiliary"),
        ("dataset: {label_col: mask}", "give both"),
        ("experiment: {seed: -1}", "seed is -1"),
        ("experiment: {name: 2024-01-01}", "name is datetime"),
        ("trainer: {num_epochs: ${epochs}}", "num_epochs"),
        ("just text", "holds no settings"),
        ("a: [", "is no YAML"),
        ("--- {}\n--- {}", "is no YAML"),
        ("trainer: &a {x: *a}", "anchors and aliases"),
        ("trainer: !!python/object:os.system {}", r"expected keys below it|unknown key"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read(tmp_path, text)
    assert "train.yaml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml cannot be read"):
        read_config(tmp_path / "no.yaml")


def test_every_key_sets_a_field() -> None:
    names = {item.name for item in fields(TrainingConfig)} | {"freeze", "mixup", "ema"}
    for key, (name, _) in KEYS.items():
        assert name in names or name.startswith("recipe."), key
    assert not set(KEYS) & set(IGNORED)


def test_every_field_of_the_recipe_is_a_key_and_takes_its_default() -> None:
    defaults = {item.name: item.default for item in fields(Recipe)}
    assert set(defaults) == set(RECIPE)
    for name, value in defaults.items():
        assert RECIPE[name].read(name, value) == value


@pytest.mark.parametrize(
    ("text", "amp"),
    [("trainer.use_amp: true", "bf16"), ("trainer.use_amp: false", None), ("recipe.amp: fp16", "fp16")],
)
def test_mixed_precision(tmp_path: Path, text: str, amp: str | None) -> None:
    assert Recipe(**read(tmp_path, text).recipe).amp == amp


def test_every_key_is_in_the_reference() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "config-file.md").read_text()
    for key in (*KEYS, *FPN_KEYS, *IGNORED):
        assert f"`{key}`" in page or (key.startswith("recipe.") and f"`{key[7:]}`" in page), key


def test_reading_a_file_imports_no_torch(tmp_path: Path) -> None:
    read(tmp_path, SOURCE)
    script = (
        "import sys\nfrom dinoneck.training.config_file import read_config\nread_config(sys.argv[1])\n"
        "print('heavy:', sorted({'torch', 'numpy', 'timm', 'PIL'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "train.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, start_new_session=True)
    assert done.stdout == "heavy: []\n"
