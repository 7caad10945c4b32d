"""The biomass example: its files, its published recipe, and one command from images to a submission."""

from __future__ import annotations

import json
import math
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from examples.biomass import keys, layouts, pipeline
from examples.biomass.__main__ import main
from examples.biomass.published import cls_gating
from examples.biomass.z_score import read_z_score
from PIL import Image
from tests import kit
from tests.unit.training.meadow import rows_of
from torch import Tensor

from dinoneck import FPNHead, TargetTransform, Task, load_head, save_head
from dinoneck.cli import main as cli
from dinoneck.data import Views
from dinoneck.data.tables import read_cells
from dinoneck.errors import ConfigError
from dinoneck.training import TrainConfig

QUICK = [
    "--backbone",
    "dinoneck_tiny",
    "--size",
    "32x64",
    "--folds",
    "2",
    "--epochs",
    "4",
    "--lr",
    "0.01",
]
TRAIN, TEST = 12, 3
example = partial(kit.cli, main=pipeline.main)


def every_file(folder: Path) -> dict[str, tuple[int, bytes]]:
    # an opening of the store may write its derived index again
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != "index.sqlite"
    )
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in files
    }


def check_masses(file: Path) -> None:
    """No mass of a submission is below 0, and the sums are those of the parts, to the digits that are written."""
    found: dict[str, dict[str, float]] = {}
    for row in rows_of(file):
        image, name = row["sample_id"].split("__")
        found.setdefault(image, {})[name.removeprefix("Dry_").removesuffix("_g")] = float(
            row["target"]
        )
    assert found
    for mass in found.values():
        assert min(mass.values()) >= 0
        assert mass["GDM"] == pytest.approx(mass["Green"] + mass["Clover"], rel=1e-5, abs=1e-5)
        assert mass["Total"] == pytest.approx(mass["GDM"] + mass["Dead"], rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_the_submission_answers_what_test_csv_asks(tmp_path: Path) -> None:
    done = example("--out", tmp_path, "--pasture", TRAIN, *QUICK, "--head", "cls_gating")
    assert done.code == 0, done
    rows, wanted = (
        rows_of(tmp_path / "submission.csv"),
        read_cells(tmp_path / "pasture" / "test.csv"),
    )
    assert list(rows[0]) == ["sample_id", "target"]
    assert [row["sample_id"] for row in rows] == list(wanted["sample_id"])
    assert {row["sample_id"].split("__")[0] for row in rows} == {
        f"ID{1000000 + TRAIN + i}" for i in range(TEST)
    }
    assert len(rows) == TEST * 5
    check_masses(tmp_path / "submission.csv")


def test_the_verb_table_prints_its_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--help"]) == 0
    assert "table LONG.csv WIDE.csv" in capsys.readouterr().out

    with pytest.raises(SystemExit, match=r"table LONG\.csv WIDE\.csv"):
        main(["table", "long.csv"])


def write_cover(folder: Path, groups: int, each: int) -> None:
    """Images whose green share is known."""
    (folder / "images").mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ["image,mask,soil,crop,weed,domain,group"]
    for i in range(groups * each):
        image, share = rng.integers(60, 120, (36, 48, 3)).astype(np.uint8), rng.uniform(0.1, 0.9)
        image[:, : int(48 * share), 1] += 100
        Image.fromarray(image).save(folder / f"images/{i:04}.png")
        lines.append(
            f"images/{i:04}.png,masks/{i:04}.png,{1 - share},{share * 0.8},{share * 0.2},mixed,{i // each}"
        )
    (folder / "cover.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_images_with_a_cover_table(tmp_path: Path) -> None:
    """Held images are predicted, groups of them are whole, and none was learnt from; called again nothing changes."""
    folder, out = tmp_path / "data", tmp_path / "out"
    write_cover(folder, groups=4, each=3)
    done = example("--data", folder, "--out", out, *QUICK)
    assert done.code == 0, done
    held, learnt = rows_of(out / "tables" / "held.csv"), rows_of(out / "tables" / "train.csv")
    assert held and sorted([*held, *learnt], key=lambda row: row["image"]) == rows_of(
        folder / "cover.csv"
    )
    assert not {row["group"] for row in held} & {row["group"] for row in learnt}
    rows = rows_of(out / "predictions.csv")
    assert [Path(row["image"]).name for row in rows] == [Path(row["image"]).name for row in held]
    assert min(float(row[name]) for row in rows for name in layouts.COVER_TARGETS) >= 0
    judged = {row["image"] for row in rows_of(out / "run" / "out_of_fold.csv")}
    assert judged == {row["image"] for row in learnt}
    before = every_file(out)
    assert example("--data", folder, "--out", out, *QUICK).code == 0
    assert every_file(out) == before


@pytest.mark.slow
def test_keys_of_the_notebooks_are_translated() -> None:
    """The file of the second notebook: nested keys, its weights, its tasks."""
    old = {
        "backbone": {
            "model_name": "vit",
            "pretrained": False,
            "freeze": True,
            "hidden_dim": 1280,
            "num_patches": 3600,
        },
        "dataset": {
            "img_size": 960,
            "resize_method": "INTER_AREA",
            "feature_dir": "store",
            "num_aug_patterns": 20,
            "target_cols": ["Dry_Total_g", "GDM_g"],
            "aux_target_cols": ["Dry_Dead_g", "Dry_Clover_g"],
        },
        "loss": {
            "beta": 2.0,
            "main_weights": [1.0, 0.6],
            "state_weight": 0.3,
            "height_weight": 0,
            "aux_weight": 0.5,
        },
        "trainer": {
            "num_epochs": 3,
            "num_workers": 4,
            "use_amp": True,
            "fold": None,
            "group_col": "site",
        },
        "augmentation.mixup.alpha": 2.5,
        "inference.tta_indices": [0, 1, 2, 3],
    }
    found = TrainConfig.from_dict(keys.translate(old))
    data, optim = found.data, found.optim
    assert (data.size, data.interpolation, data.store, data.views) == (
        (960, 960),
        "area",
        "store",
        20,
    )
    assert (optim.epochs, optim.amp, optim.mixup_alpha, found.folds.group) == (
        3,
        "bf16",
        2.5,
        ("site",),
    )
    assert {name: (task.weight, task.auxiliary) for name, task in found.tasks.items()} == {
        "Dry_Total_g": (1.0, False),
        "GDM_g": (0.6, False),
        "Dry_Dead_g": (0.25, True),
        "Dry_Clover_g": (0.25, True),
        "State": (0.3, True),
    }


def pyramid_of(groups: dict[str, Any]) -> FPNHead:
    """The head of an old file of the first notebook, which reads four blocks."""
    old = {
        "model": {
            "backbone_layers": {"enabled": True, "indices": [2, 5, 8, 11]},
            "head": {"type": "fpn", "fpn_dim": 8, **groups},
        },
        "dataset": {"target_cols": ["Dry_Total_g"]},
    }
    config = TrainConfig.from_dict(keys.translate(old))
    arguments = {name: value for name, value in config.head.items() if name != "type"}
    layers = config.backbone.layers
    assert layers is not None
    return FPNHead(8, [Task("x")], num_layers=len(layers), layer_indices=layers, **arguments)


def test_blocks_that_are_grouped_as_the_notebook_writes_them_make_the_levels() -> None:
    groups = [[11], [5], [2, 8]]
    head = pyramid_of({"layer_grouping": "explicit", "layer_groups": groups})
    assert head.config["layer_groups"] == [[3], [1], [0, 2]]
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randn(1, 16, 8, generator=generator) for _ in range(4)]

    levels = head.eval().neck.grouper(sequences)
    # only the level of block 11 changes with block 11
    changed = head.neck.grouper([*sequences[:3], sequences[3] + 1 + sequences[3] ** 2])

    is_equal = [torch.equal(*pair) for pair in zip(levels, changed, strict=True)]
    assert is_equal == [False, True, True]


def test_auto_groups_are_those_of_the_library() -> None:
    assert pyramid_of({"layer_grouping": "auto"}).config["layer_groups"] == "auto"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone.freeze": False}, "unfreeze_last: N"),
        ({"model.head.type": "unet"}, "'unet'"),
        ({"model.head.layer_grouping": "explicit"}, "groups are missing"),
        ({"model.head.layer_grouping": "auto", "model.head.layer_groups": [[1]]}, "is auto"),
        ({"model.head.layer_grouping": "pairs"}, "expected auto or explicit"),
        (
            {"model.head.layer_grouping": "explicit", "model.head.layer_groups": [[1]]},
            "reads the last block alone",
        ),
    ],
    ids=["freeze", "type", "no groups", "auto", "unknown", "blocks that are not read"],
)
def test_keys_that_cannot_be_translated_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keys.translate(values)


FILES = sorted(layouts.HERE.glob("*.yaml"))


def commands(file: Path) -> list[list[str]]:
    """The commands in the first comment of a file, as words."""
    comment = file.read_text().partition("\n#\n")[0]
    lines = re.sub(r"\\\n# *", "", comment).splitlines()
    return [
        shlex.split(line.removeprefix("#"))
        for line in lines
        if re.match(r"#   (dinoneck|python) ", line)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_first_comment_of_a_training_file_runs_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(layouts.HERE.parents[1])
    config, stated = TrainConfig.read(file), commands(file)
    assert stated
    for _, *words in stated:
        if words[:3] == ["-m", "examples.biomass", "run"]:
            options, _ = pipeline.argument_parser().parse_known_args(words[3:])
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
    assert (own_area["reg3"].area, own_area["ndvi"].area, own_area["ndvi"].log1p) == (
        0.21,
        None,
        True,
    )


WIDTH, PLACES, HIDDEN = 32, 15, 24


def source_weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dict with the source's names and shapes."""
    torch.manual_seed(seed)
    sizes = {
        "gate_mlp.0": (WIDTH // 4, WIDTH),
        "gate_mlp.2": (PLACES, WIDTH // 4),
        "shared_mlp.0": (HIDDEN, 2 * WIDTH),
        "main_head": (3, HIDDEN),
        "state_head": (4, HIDDEN),
        "height_head": (1, HIDDEN),
        "aux_head": (2, HIDDEN),
    }
    state = {
        f"{name}.weight": torch.randn(shape) / math.sqrt(shape[1]) for name, shape in sizes.items()
    }
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in sizes.items()}
    state |= {
        "shared_mlp.1.weight": torch.rand(HIDDEN) + 0.5,
        "shared_mlp.1.bias": torch.randn(HIDDEN),
    }
    return {name: value.to(dtype) for name, value in state.items()}


def source_forward(w: dict[str, Tensor], cls_token: Tensor, patches: Tensor) -> dict[str, Tensor]:
    """What the source's module computes, in eval mode."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    attention = torch.softmax(linear(F.gelu(linear(cls_token, "gate_mlp.0")), "gate_mlp.2"), dim=-1)
    pooled = (patches * attention.unsqueeze(-1)).sum(dim=1)
    x = linear(torch.cat([cls_token, pooled], dim=-1), "shared_mlp.0")
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = F.gelu(x * w["shared_mlp.1.weight"] + w["shared_mlp.1.bias"])
    predicted = {name: linear(x, f"{name}_head") for name in ("main", "state", "height", "aux")}
    return {
        name: value if name == "state" else F.softplus(value) for name, value in predicted.items()
    }


def test_the_gating_module_predicts_the_same(tmp_path: Path) -> None:
    state, path = source_weights(), tmp_path / "head.pt"
    torch.save(state, path)
    head = cls_gating(path, embed_dim=WIDTH, num_patches=PLACES, hidden_dim=HIDDEN)
    x = torch.randn(4, 20, WIDTH)
    predicted, expected = head(kit.tokens_from(x, 3, 5)), source_forward(state, x[:, 0], x[:, 5:])
    assert list(predicted) == ["main", "state", "height", "aux"]
    for name, values in expected.items():
        assert (predicted[name] - values).abs().max() <= 1e-6, name
    predicted = head.predict(kit.tokens_from(x, 3, 5))
    assert torch.allclose(predicted["state"], expected["state"].softmax(-1), atol=1e-6)
    save_head(tmp_path / "own", head)
    assert torch.equal(
        load_head(tmp_path / "own")(kit.tokens_from(x, 3, 5))["main"], predicted["main"]
    )
