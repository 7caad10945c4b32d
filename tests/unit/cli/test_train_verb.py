"""``dinoneck train``: flags over file over defaults, every kind of task, stores, refusals and exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image
from tests.kit import cli
from tests.unit.training.meadow import HEIGHT, WIDTH, files_of, rows_of, write_rows

from dinoneck import Backbone, HeadCheckpoint
from dinoneck.cli.main import command
from dinoneck.cli.train import size_advice
from dinoneck.data import Preprocessing
from dinoneck.images.recipe import Resize
from dinoneck.store import FeatureStore
from dinoneck.training import Recipe, TrainConfig, r2
from dinoneck.training.head_arguments import head_with_width

TINY = ["--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "1"]


@pytest.fixture(scope="module")
def store(csiro: Path, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    made = FeatureStore.create(path, backbone=tiny, views="flips4", image_size=(32, 64))
    made.extract([csiro / "train", csiro / "test"], root=csiro)
    return path


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def parsed(*arguments: str) -> TrainConfig:
    call = command("train", [*arguments, "--out", "x"])
    config: TrainConfig = call.keywords["run"]
    return config


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    text = (
        "head: {type: fpn, fpn_dim: 16}\noptim: {optimizer: sam, rho: 0.1, patience: 4, "
        "batch_size: 4}\n"
    )
    path = written(tmp_path, f"{text}folds: {{count: 10}}\ndata: {{targets: [a, b], size: 64}}\n")
    flags = "--epochs 9 --patience 3 --fold 7 --resize crop --random-backbone --store s --lr 1e-2"
    config = parsed(path, *flags.split(), "--group", "State", "Sampling_Date", "--targets", "c")
    assert config.optim == Recipe(
        epochs=9, batch_size=4, lr=1e-2, optimizer="sam", rho=0.1, patience=3
    )
    assert (config.folds.count, config.folds.only, config.folds.group) == (
        10,
        7,
        ("State", "Sampling_Date"),
    )
    assert (config.data.size, config.data.resize, config.data.store) == ((64, 64), "crop", "s")
    assert (config.data.targets, config.backbone.random) == (("c",), True)
    assert config.head == {"type": "fpn", "fpn_dim": 16}


SWITCHED_ON: dict[str, Any] = {
    "ema_decay": 0.9,
    "amp": "bf16",
    "clip_norm": 0.5,
    "mixup_alpha": 0.3,
    "cutmix_alpha": 0.4,
    "patience": 4,
    "backbone_lr": 1e-5,
    "layer_decay": 0.8,
}


def test_every_option_of_a_recipe_that_may_be_off_is_in_the_table() -> None:
    hints = get_type_hints(Recipe)
    assert {name for name, hint in hints.items() if NoneType in get_args(hint)} == {*SWITCHED_ON}


@pytest.mark.parametrize("name", SWITCHED_ON)
def test_the_word_none_switches_off_what_a_training_file_switched_on(
    name: str, tmp_path: Path
) -> None:
    path = written(tmp_path, f"optim: {{{name}: {SWITCHED_ON[name]}}}\n")
    flag = f"--{name.replace('_', '-')}"
    assert getattr(parsed(path).optim, name) == SWITCHED_ON[name]
    assert getattr(parsed(path, flag, "none").optim, name) is None


@pytest.mark.parametrize("name", SWITCHED_ON)
def test_a_flag_switches_on_what_a_training_file_switched_off(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"optim: {{{name}: null}}\n")
    flag = f"--{name.replace('_', '-')}"
    assert getattr(parsed(path).optim, name) is None
    assert getattr(parsed(path, flag, str(SWITCHED_ON[name])).optim, name) == SWITCHED_ON[name]


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        ("--clip-norm", "-1", "clip_norm is -1.0"),
        ("--clip-norm", "None", "--clip-norm"),
        ("--patience", "0", "patience is 0"),
        ("--patience", "1.5", "--patience"),
        ("--amp", "fp8", "'fp8'"),
    ],
)
def test_other_words_than_none_are_checked_as_numbers_are(
    flag: str, value: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed(flag, value)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "head"),
    [
        (
            ["--head", "{type: fpn, fpn_dim: 8, layer_groups: [[0], [1]]}"],
            {"type": "fpn", "fpn_dim": 8, "layer_groups": [[0], [1]]},
        ),
        (["--head", "vit_fpn", "--hidden-dim", "8"], {"type": "vit_fpn", "fpn_dim": 8}),
        (["--hidden-dim", "8"], {"hidden_dim": 8}),
        (["--labels", "mask", "--hidden-dim", "8"], {"fpn_dim": 8}),
        (["--labels", "mask", "--targets", "crop", "--hidden-dim", "8"], {"hidden_dim": 8}),
        (["--labels", "mask", "--label-kind", "numbers", "--hidden-dim", "8"], {"hidden_dim": 8}),
        (["--boxes", "boxes.json", "--hidden-dim", "8"], {"out_channels": 8}),
        (["--instances", "boxes.json", "--hidden-dim", "8"], {"out_channels": 8}),
    ],
)
def test_heads_by_flags(flags: list[str], head: dict[str, Any]) -> None:
    call = command("train", [*flags, "--out", "x"])
    config = call.keywords["run"]
    hidden_dim = call.keywords["hidden_dim"]
    if hidden_dim is not None:
        config = config.changed(head=head_with_width(config, hidden_dim))
    assert config.head == head


def test_the_width_is_that_of_the_default_head_of_the_task_that_a_file_describes(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "data: {labels: mask}\ntasks: {cover: {kind: dense}}\n")
    assert head_with_width(parsed(file), 8) == {"hidden_dim": 8}  # of a dense head, not fpn_dim


@pytest.fixture(scope="module")
def labelled(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The meadow as folders of images, masks and classes, and as a table with a number per pixel."""
    root, rows, rng = tmp_path_factory.mktemp("labelled"), rows_of(meadow), np.random.default_rng(0)
    for i, row in enumerate(rows):
        for folder, file in (
            ("images", "image"),
            ("masks", "mask"),
            (f"classes/{row['kind']}", "image"),
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(meadow.parent / row[file], root / folder / row["image"])
        Image.fromarray(rng.random((HEIGHT, WIDTH), np.float32)).save(root / f"{i}.tif")
        row |= {"image": f"images/{row['image']}", "ndvi": f"{i}.tif"}
    write_rows(root / "t.csv", rows)
    return root


@pytest.mark.slow
def test_the_command_that_a_finished_training_names_predicts(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"train --csv {labelled / 't.csv'} --targets crop --out my_run"
    trained = cli(*words.split(), *TINY)
    beginning = "predict with it: dinoneck "
    [line] = [line for line in trained.out.splitlines() if line.startswith(beginning)]

    verb = line.removeprefix(beginning).replace("IMAGES", str(labelled / "images"))
    predicted = cli(*verb.split())

    assert (trained.code, predicted.code) == (0, 0), predicted.err
    assert verb.startswith("predict ") and "--heads my_run" in verb
    assert len(list((tmp_path / "pictures").iterdir())) == 12


KINDS = [  # flags, what is shown, and a score of one target
    (
        "--csv t.csv --targets crop kind --group place",
        "12 images, 4 groups, targets crop, kind",
        "kind",
        "accuracy",
    ),
    ("--images classes", "", "class", "accuracy"),
    (
        "--csv t.csv --targets crop --labels ndvi --label-kind numbers",
        "targets crop, ndvi\n",
        "ndvi",
        "r2",
    ),
    ("--images images --labels masks --classes soil crop weed", "", "segmentation", "mean_iou"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "shown", "target", "score"), KINDS)
def test_every_kind_of_data_is_trained_on_and_its_score_is_shown(
    words: str,
    shown: str,
    target: str,
    score: str,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(labelled)
    found = cli("train", *words.split(), *TINY, "--out", tmp_path / "run", "--json")
    report = found.json["report"]
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert (
        shown in found.err
        and f"{report['scores'][target]['head'][score]['pooled']:.3f}" in found.err
    )
    if target == "class":
        assert report["scores"]["class"]["head"]["labels"] == ["bare", "crop", "weedy"]
    if target == "ndvi":
        head = HeadCheckpoint.load(tmp_path / "run" / "heads" / "fold-0.safetensors")
        assert [(task["name"], task["kind"]) for task in head.meta["tasks"]][-1] == (
            "ndvi",
            "dense",
        )


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("detector: {name: dfine}\n", "", r"detector\.name .*--boxes"),
        ("", "--views 20", "20 .*the store has 4"),
        ("", "--size 960", r"made with size \(32, 64\), not \(960, 960\)"),
        ("", "--head fpn --layers 1 3", r"made with layers \(5,\)"),
        ("imports: [none.py]\n", "", r"none\.py"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(
    csiro: Path, store: Path, tmp_path: Path, text: str, flags: str, message: str
) -> None:
    path = written(
        tmp_path, f"data: {{csv: {csiro / 'table.csv'}, targets: [GDM_g], store: {store}}}\n{text}"
    )
    found = cli("train", path, *flags.split(), "--out", tmp_path / "run")
    assert found.code == 1 and re.search(message, found.err), found.err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight images of 20x33 px, whose green is the target, and the field that they are of."""
    lines, levels = ["image,green,field"], np.random.RandomState(0).randint(0, 255, 8)
    for i, level in enumerate(levels):
        image = np.full((20, 33, 3), 100, np.uint8)
        image[..., 1] = level
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{level / 255:.4f},{i % 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


@pytest.mark.slow
def test_from_a_table_to_predictions(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "--csv", table, "--targets", "green", *TINY, "--out", run]
    refused = cli(*words, "--resize", "keep")
    assert refused.code == 1 and "20x33 px" in refused.err and not run.exists()
    done = cli(*words)
    assert done.code == 0
    for text in (
        "becomes 16x32 px, 1x2 patches",
        "does not divide 20x33 px, so this becomes 16x32 px (--resize crop)",
        "No --group",
        "its worst fold",
        "It predicts with the ",
    ):
        assert text in done.out
    assert "No --group" not in cli(*words, "--group", "field", "--overwrite").out
    assert sorted(os.listdir(run)) == [
        "baselines",
        "data.jpg",
        "data.json",
        "data.txt",
        "head.safetensors",
        "heads",
        "logs",
        "out_of_fold.csv",
        "report.json",
        "trained_on.csv",
    ]
    rows = rows_of(run / "out_of_fold.csv")
    for fold in "01":  # a head's file holds its own fold's score, not that of all heads together
        own = [
            (float(row["green"]), float(row["green (head)"])) for row in rows if row["fold"] == fold
        ]
        recorded = HeadCheckpoint.load(run / "heads" / f"fold-{fold}.safetensors").meta["training"][
            "metrics"
        ]
        assert recorded["R2 green"] == pytest.approx(r2(*np.array(own).T), rel=1e-3, abs=1e-4)
    before, image = files_of(run), (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(image[:40])
    for more in ([], ["--overwrite", "--seed", "1"]):
        assert cli(*words, *more).code == 1
        assert files_of(run) == before, "a run that is refused keeps the earlier one"
    (tmp_path / "3.png").write_bytes(image)
    assert cli(*words, "--overwrite", "--size", 32).code == 0
    assert json.loads((run / "report.json").read_text())["inputs"]["size"] == [32, 32]
    images = [tmp_path / f"{i}.png" for i in range(8)]
    assert cli("predict", *images, "--heads", run / "heads", "--out", tmp_path / "p.csv").code == 0
    assert [row["image"] for row in rows_of(tmp_path / "p.csv")] == [*map(str, images)]


DATA_FILES = ["data.jpg", "data.json", "data.txt"]


def test_a_dry_run_shows_what_the_run_reads_and_a_run_starts_anew_there(
    table: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["train", "--csv", table, "--targets", "green", "--out", run]

    dry = cli(*words, "--dry-run", "--backbone-file", table)  # a file of no weights is not opened

    assert dry.code == 0
    assert "8 images: PNG RGB 8" in dry.err
    assert sorted(os.listdir(run)) == DATA_FILES
    before = files_of(run)
    done = cli(*words, *TINY)
    assert done.code == 0
    assert {name: files_of(run)[name] for name in DATA_FILES} == before
    report = json.loads((run / "report.json").read_text())
    assert report["data"] == json.loads((run / "data.json").read_text())
    assert "\n".join(report["data"]["lines"]) in done.err


def test_a_dry_run_refuses_what_a_run_refuses_and_writes_nothing(
    table: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    refused = cli("train", "--csv", table, "--targets", "blue", "--out", run, "--dry-run")
    assert refused.code == 1
    assert "blue" in refused.err
    assert not run.exists()


def test_a_folder_with_a_data_json_of_the_user_is_refused(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "data.json").write_text('{"images": [], "annotations": []}')
    refused = cli("train", "--csv", table, "--targets", "green", "--out", run, *TINY)
    assert refused.code == 1
    assert "data.json" in refused.err
    assert sorted(os.listdir(run)) == ["data.json"]


def test_images_with_very_many_patches_get_a_smaller_size_proposed() -> None:
    recipe = Preprocessing(16, resize="crop")

    [line] = size_advice(recipe, (3024, 4032))

    assert line == (
        "That is 47,628 patches per image: slow, and much memory. --size 480x640 brings images to "
        "1,200."
    )


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        pytest.param(Preprocessing(16, resize="crop"), (1024, 1024), id="4,096 patches"),
        pytest.param(Preprocessing(16, size=(480, 640)), (3024, 4032), id="a size"),
    ],
)
def test_images_with_fewer_patches_get_no_advice(
    recipe: Preprocessing, size: tuple[int, int]
) -> None:
    assert not size_advice(recipe, size)


def test_a_size_that_stretches_images_is_said() -> None:
    recipe = Preprocessing(16, size=(480, 480), resize="stretch")

    [line] = size_advice(recipe, (360, 480))

    assert line == (
        "--resize stretch changes its proportions by 33%; --resize crop, pad or keep would not."
    )


@pytest.mark.parametrize("resize", ["crop", "pad", "keep"])
def test_other_resize_modes_keep_proportions_and_say_nothing(resize: Resize) -> None:
    recipe = Preprocessing(16, size=(480, 480), resize=resize)

    assert not size_advice(recipe, (360, 480))


def test_advice_on_the_size_is_printed_before_the_work(meadow: Path, tmp_path: Path) -> None:
    """The images of the meadow are twice as wide as high."""
    table = ["--csv", str(meadow), "--targets", "crop", "--group", "place"]

    result = cli("train", *table, *TINY, "--size", "32x32", "--out", str(tmp_path / "run"))

    assert "--resize stretch changes its proportions by 100%" in result.out
    assert result.out.index("--resize stretch") < result.out.index("written:")
