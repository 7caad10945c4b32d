"""What training files, tables, folds and runs refuse.

A run does so before its work, and leaves no folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from dinoneck import ConfigError, DataError, RegistryError
from dinoneck.data import Pasture, read_table
from dinoneck.detection import train_detector, train_instances
from dinoneck.training import (
    BoxesDataConfig,
    InstancesDataConfig,
    MemoryTokens,
    Recipe,
    TrainConfig,
    TrainDetectorConfig,
    TrainInstancesConfig,
    group_folds,
    read_config,
    train,
)
from dinoneck.training.comparison import prepare_heads
from dinoneck.training.config import FrozenBackbone
from dinoneck.training.folds import column_folds
from tests.refusals import Row
from tests.unit.training.meadow import (
    COUNT,
    a_run,
    one_image_only,
    with_columns,
    with_gaps,
    write_meadow,
)
from tests.unit.training.test_run_tokens import tokens_of

PASTURE = Pasture(size=(32, 64)).table(range(8))[["images", "GDM_g"]]
GRAMS, N = PASTURE["GDM_g"].to_numpy(), len(PASTURE)


def text(content: str) -> Callable[[Path], Any]:
    """Read a training file."""

    def call(folder: Path) -> Any:
        (folder / "run.yaml").write_text(content)
        return read_config(folder / "run.yaml")

    return call


def run(
    write: Callable[[Path], Any] | None = None, table: Any = None, **changes: Any
) -> Callable[[Path], Any]:
    """Train on the meadow; ``write`` changes its table, or ``table`` is trained on."""

    def call(folder: Path) -> Any:
        csv = None if table is not None else str(write_meadow(folder))
        if write is not None:
            write(Path(str(csv)))
        data = ({} if csv is None else {"csv": csv, "targets": ["crop"]}) | changes.get("data", {})
        given = table(folder) if callable(table) else table
        try:
            with mock.patch.object(MemoryTokens, "extract", one_image_only(MemoryTokens.extract)):
                train(a_run(None, **{**changes, "data": data}), folder / "run", table=given)
        finally:
            assert not (folder / "run").exists()

    return call


def read_with(folder: Path, **columns: Any) -> Any:
    """The table of the meadow, to which columns are added that read_table has not read."""
    return read_table(write_meadow(folder), folder, "crop").assign(**columns)


def with_a_column_twice(folder: Path) -> Any:
    """The table of the meadow, whose column of values stands in it twice."""
    table = read_table(write_meadow(folder), folder, "crop")
    return pd.concat([table, table[["crop"]]], axis=1)


def own_head(arguments: str) -> Callable[[Path], Any]:
    """Train a head whose constructor takes these arguments."""
    lines = [
        "from collections.abc import Sequence",
        "import dinoneck",
        "from dinoneck import Task",
        "from dinoneck.heads import Head",
        "@dinoneck.register",
        "class EdgeHead(Head):",
        f"    def __init__(self, {arguments}):",
        "        super().__init__()",
    ]

    def call(folder: Path) -> Any:
        (folder / "own.py").write_text("\n".join(lines))
        run(head={"type": "edge_head"}, imports=[str(folder / "own.py")])(folder)

    return call


def gaps(**known: Any) -> Callable[[Path], Any]:
    """Train on the odd and the even rows, of which these are known."""
    data = {"targets": ["crop"], "labels": "mask"}
    return run(lambda csv: with_gaps(csv, **known), data=data, folds={"column": "part"})


def on_folder_of_npz(folder: Path) -> Any:
    """Train on features of another program that are no store yet."""
    (folder / "features").mkdir()
    np.savez(folder / "features" / "a.npz", tokens=np.zeros((4, 8)))
    return run(data={"store": str(folder / "features")})(folder)


def heads(*names: str) -> Callable[[Path], Any]:
    return lambda folder: prepare_heads(
        a_run(write_meadow(folder), ["soil"]), names, folder / "run"
    )


TEXTS = [
    ("optim: {lrr: 1}", ("'optim.lrr'", "'lr'", "epochs, batch_size")),
    ("tasks: {a: {colums: [b]}}", ("'tasks.a.colums'", "'columns'")),
    ("optim.lr: 3", ("'optim.lr'", "'optim'")),
    ("optim: 3", "optim is 3"),
    ("optim: {lr: fast}", ("optim.lr is 'fast'", "expected a number")),
    ("optim: {epochs: 0}", ("optim.epochs is 0", "an integer of 1 or more")),
    ("optim: {warmup: 1.0}", ("optim.warmup is 1.0", "a number below 1")),
    ("optim: {lr: 0}", ("optim.lr is 0", "a number above 0")),
    ("optim: {ema_decay: x}", ("optim.ema_decay is 'x'", "a number or none")),
    ("data: {targets: a}", ("data.targets is 'a'", "a list, such as ['a']")),
    ("data: {targets: [1]}", ("data.targets is [1]", "every item must be text")),
    ("data: {csv: ' '}", ("data.csv is ' '", "file")),
    ("data: {panoptic: [a]}", ("data.panoptic is ['a']", "2 values")),
    ("head: fpn", ("head is 'fpn'", "keys with values")),
    ("tasks: {3: {}}", ("tasks is {3", "every key must be text")),
    ("optim: {optimizer: smd}", ("optim.optimizer is 'smd'", "adamw, sam", "'sam'")),
    ("optim: {amp: fp8}", ("optim.amp is 'fp8'", "bf16, fp16")),
    ("backbone: {source: tim}", ("backbone.source is 'tim'", "timm, transformers", "'timm'")),
    ("data: {size: 0}", "(0, 0)"),
    ("folds: {column: a, stratify: b}", ("folds.column", "--fold-column", "--stratify")),
    (
        "backbone: {file: w.pth, random: true}",
        ("backbone.file", "--backbone-file", "--random-backbone"),
    ),
    ("optim: {lr: 1}\noptim: {lr: 2}", "'optim'"),
    ("optim: &a {x: *a}", "anchors"),
    ("just text", "run.yaml"),
    ("optim: {freeze: [all]}", ("optim.freeze is ['all']", "EPOCH=STAGE", "10=last:4")),
    ("optim: {freeze: ['0=all', '0=none']}", "0=all, 0=none"),
    # keys of another training
    ("data: {boxes: b.json, targets: [a]}", ("data.targets is ['a']", "no effect with data.boxes")),
    ("data: {boxes: b, instances: o}", ("data.instances is 'o'", "no effect with data.boxes")),
    ("data: {boxes: b}\noptim: {rho: 0.1}", ("optim.rho is 0.1", "no effect with data.boxes")),
    (
        "data: {boxes: b}\nlosses: {aux_weight: 1}",
        ("losses.aux_weight", "no effect with data.boxes"),
    ),
    ("data: {boxes: b}\ntasks: {a: {}}", ("tasks is {'a': {}}", "no effect with data.boxes")),
    (
        "data: {instances: o}\nwith_ridge: true",
        ("predict_with is 'average'", "with data.instances"),
    ),
    ("with_ridge: 2", ("with_ridge is 2", "predict_with: average")),
    ("with_ridge: true\npredict_with: head", ("with_ridge is True", "leave with_ridge out")),
    ("predict_with: ridge", ("predict_with", "'ridge'")),
    ("data: {panoptic: [a, b], store: s}", ("data.store is 's'", "with data.panoptic")),
    ("data: {instances: o, panoptic: [a, b]}", ("data.panoptic is", "with data.instances")),
    ("data: {val_boxes: b}", ("data.val_boxes is 'b'", "needs data.boxes (--boxes)")),
    ("detector: {name: dfine}", ("detector.name is 'dfine'", "needs data.boxes (--boxes)")),
    ("detector: 3", ("detector is 3", "needs data.boxes (--boxes)")),
    ("data: {crowd: objects}", ("data.crowd is 'objects'", "--boxes or --instances or --panoptic")),
]
RUNS: list[tuple[dict[str, Any], type[Exception], str | tuple[str, ...]]] = [
    ({"head": {"type": "fpn", "fpn_dims": 8}}, ConfigError, ("'fpn_dims'", "'fpn_dim'")),
    ({"head": {"type": "fpnn"}}, RegistryError, "fpnn"),
    ({"tasks": {"crops": {}}}, DataError, ("'crops'", "'crop'")),
    (
        {"tasks": {"both": {"columns": ["crop", "kind"]}}},
        ConfigError,
        ("'both'", "'kind'", "kind: classification"),
    ),
    (
        {"tasks": {"both": {"columns": ["kind", "kind"]}}},
        ConfigError,
        ("'both'", "'kind'", "twice"),
    ),
    (
        {"tasks": {"two": {"columns": ["kind", "place"]}}},
        ConfigError,
        ("'two'", "kind, place", "one column"),
    ),
    (
        {"tasks": {"kind": {"kind": "regression"}}},
        DataError,
        ("kind of", "'bare'"),
    ),
    ({"tasks": {"crop": {"columns": ["weed"]}}}, ConfigError, "'crop'"),
    (
        {"tasks": {"x": {"columns": ["crop"]}, "y": {"columns": ["crop"]}}},
        ConfigError,
        ("'x'", "'y'", "'crop'"),
    ),
    (
        {"tasks": {"kind": {"log1p": True}}},
        ConfigError,
        ("'kind'", "'log1p'", "'classification'"),
    ),
    (
        {"tasks": {"m": {"kind": "segmentation", "area": 2.0}}, "data": {"labels": "mask"}},
        ConfigError,
        ("'m'", "'area'", "'segmentation'"),
    ),
    ({"tasks": {"crop": {"beta": 2.0}}}, ConfigError, ("beta 2", "smooth_l1")),
    ({"tasks": {"r": {"kind": "ratio", "columns": ["crop"]}}}, ConfigError, ("'r'", "'crop'")),
    ({"tasks": {"m": {"kind": "dense"}}}, ConfigError, ("m ", "data.labels", "--labels")),
    (
        {"tasks": {"m": {"kind": "dense"}, "n": {"kind": "segmentation"}}},
        ConfigError,
        ("m, n", "keep one"),
    ),
    ({"compositions": {"g": {}}}, ConfigError, ("'g'", "sums:")),
    (
        {"compositions": {"g": {"total": "crops", "ratio": "r"}}},
        ConfigError,
        ("'g'", "total 'crops'", "'crop'"),
    ),
    ({"compositions": {"g": {"total": "crop"}}}, ConfigError, ("'g'", "no ratio")),
    (
        {
            "tasks": {"r": {"kind": "ratio", "columns": ["soil", "crop", "weed"]}, "total": {}},
            "compositions": {"g": {"total": "total", "ratio": "r", "weights": {"soil": 1.0}}},
        },
        ConfigError,
        ("has soil;", "soil, crop, weed"),
    ),
    (
        {"tasks": {"m": {"kind": "dense", "auxiliary": True}}, "data": {"labels": "mask"}},
        ConfigError,
        "'m'",
    ),
    (
        {
            "tasks": {"m": {"kind": "segmentation"}},
            "data": {"labels": "mask", "label_kind": "numbers"},
        },
        ConfigError,
        ("m ", "'numbers'"),
    ),
    ({"data": {"classes": ["a", "b"]}}, ConfigError, ("data.classes", "data.labels")),
    ({"data": {"labels": "mask", "scale": 0.5}}, ConfigError, ("scale is 0.5", "'classes'")),
    ({"data": {"scale": 0.0}}, ConfigError, "scale is 0;"),
    ({"data": {"offset": float("inf")}}, ConfigError, "offset is inf"),
    (
        {"data": {"label_kind": "numbers", "scale": 0.5}},
        ConfigError,
        ("data.label_kind", "data.labels"),
    ),
    ({"data": {"views": 2}}, ConfigError, "data.views"),
    ({"data": {"boxes": "b.json"}}, ConfigError, ("'b.json'", "train_detector")),
    ({"data": {"instances": "b.json"}}, ConfigError, ("data.instances", "train_instances")),
    ({"data": {"targets": ["height"]}}, DataError, "'04.png'"),
    ({"data": {"targets": ["crop", "crop"]}}, ConfigError, "crop, crop"),
    ({"data": {"targets": ["caf\u00e9", "cafe\u0301"]}}, ConfigError, "NFC, NFD"),
    ({"data": {"csv": None}}, ConfigError, "targets"),
    ({"data": {"pad_to": "center"}}, ConfigError, "'center'"),
    (
        {"data": {"labels": "mask", "targets": ["kind"]}, "head": {"type": "patch_mean"}},
        ConfigError,
        "'cells'",
    ),
    ({"optim": {"patience": 1}, "folds": {"count": 1}}, DataError, "patience"),
    ({"folds": {"stratify": "place"}}, ConfigError, "'place'"),
    ({"folds": {"only": 2}}, ConfigError, "2 "),
    *(
        ({"optim": own}, ConfigError, next(iter(own)))
        for own in ({"cutmix_alpha": 1.0}, {"backbone_lr": 1e-4}, {"layer_decay": 0.5})
    ),
    (
        {"backbone": {"name": "vit_small_patch16_dinov3", "seed": 1}},
        ConfigError,
        ("seed is 1", "--random"),
    ),
    ({"backbone": {"lora": 2}, "predict_with": "average"}, ConfigError, "lora"),
]
# names of predicted numbers that are columns of tables, or of the scores, already
TAKEN_NAMES: list[tuple[dict[str, Any], str]] = [
    ({"tasks": {"images": {"columns": ["weed"]}}}, "'images'"),
    (
        {
            "compositions": {"g": {"sums": {"group": ["crop", "weed"]}}},
            "data": {"targets": ["crop", "weed"]},
        },
        "'group'",
    ),
    ({"tasks": {"overall (mean)": {"columns": ["weed"]}}}, "'overall (mean)'"),
    (
        {
            "tasks": {"weed": {"kind": "segmentation"}},
            "data": {"targets": ["weed"], "labels": "mask", "classes": ["a", "b", "c"]},
        },
        "'weed'",
    ),
]
FRAMES = [
    ({"targets": ["weed"]}, {}, "'weed'"),
    ({}, {"group": ["place"]}, "'group'"),
    ({"csv": "other.csv"}, {}, "'other.csv'"),
    ({"decimal": ","}, {}, ("data.decimal", "','", "--csv")),
]

DAY = {"targets": ["day"]}
# of a table that is given, and what its error names
COLUMNS_OF_NO_NUMBERS = [
    (pd.date_range("2024-05-01", periods=COUNT), ("'day'", "datetime64", "days since")),
    (pd.to_timedelta(range(COUNT), "D"), ("'day'", "timedelta64", "days since")),
    (["late"] * COUNT, ("'day'", "'late'", "read_table()")),
]

OF_BOXES = TrainDetectorConfig(data=BoxesDataConfig(boxes="boxes.json"))

ROWS: list[Row] = [
    *(
        (text(content), ConfigError, ("run.yaml", *([named] if isinstance(named, str) else named)))
        for content, named in TEXTS
    ),
    *((run(**changes), error, named) for changes, error, named in RUNS),
    *((run(**changes), ConfigError, named) for changes, named in TAKEN_NAMES),
    *(
        (
            run(
                table=lambda folder: read_table(write_meadow(folder), folder, "crop"),
                data=data,
                folds=folds,
            ),
            ConfigError,
            named,
        )
        for data, folds, named in FRAMES
    ),
    *(
        (
            run(table=lambda folder, days=days: read_with(folder, day=days), data=DAY),
            DataError,
            named,
        )
        for days, named in COLUMNS_OF_NO_NUMBERS
    ),
    (
        run(table=with_a_column_twice, data={"targets": ["crop"]}),
        DataError,
        ("'crop'", "stands more than once"),
    ),
    (own_head("embed_dim: int, tasks"), ConfigError, "tasks: Sequence"),
    (own_head("embed_dim: int, tasks: Sequence[Task], width: int"), ConfigError, "width"),
    (
        run(
            lambda csv: with_columns(csv, site=[f"s{min(i, 6)}" for i in range(COUNT)]),
            data={"targets": ["site"]},
        ),
        DataError,
        ("'site'", "7 classes", "12 images"),
    ),
    (
        run(
            lambda csv: with_columns(csv, site=["a", "b"] + [""] * (COUNT - 2)),
            data={"targets": ["site", "crop"]},
        ),
        DataError,
        ("'site'", "2 classes", "2 images"),
    ),
    (
        run(
            table=PASTURE.assign(a=0.3 * GRAMS, b=0.2 * GRAMS),
            tasks={"r": {"kind": "ratio", "columns": ["a", "b"]}, "GDM_g": {}},
            compositions={"c": {"total": "GDM_g", "ratio": "r"}},
        ),
        DataError,
        ("'c' says that GDM_g is a + b", "8 of 8 images", "in one unit"),
    ),
    # targets that cannot be learned
    (
        run(
            table=PASTURE.assign(a=[-1.0] * N, b=[-3.0] * N),
            tasks={"t": {"kind": "ratio", "columns": ["a", "b"]}},
        ),
        DataError,
        ("'t'", "a, b", "negative"),
    ),
    (
        run(
            table=PASTURE.assign(a=[0.0] * N, b=[0.0] + [1.0] * (N - 1)).drop(columns="GDM_g"),
            tasks={"t": {"kind": "ratio", "columns": ["a", "b"]}},
        ),
        DataError,
        ("nothing is known", "a, b", "'t'", "total"),
    ),
    (
        run(
            table=PASTURE.assign(GDM_g=np.where(np.arange(N) == 2, -1.5, GRAMS)),
            data={"minimum": 0.0},
        ),
        DataError,
        ("'GDM_g'", "-1.5"),
    ),
    (
        run(
            table=PASTURE.assign(
                GDM_g=[1.0] * 4 + [4.0, 5.0, 6.0, 7.0], group=["one"] * 4 + ["other"] * 4
            )
        ),
        DataError,
        ("fold ", "'GDM_g'", "(1 "),
    ),
    (
        run(table=PASTURE, tasks={"GDM_g": {"kind": "classification"}}),
        ConfigError,
        ("'GDM_g'", "'classification'", "numbers"),
    ),
    (run(table=PASTURE.iloc[:1]), DataError, "1 "),
    (run(table=PASTURE[["images"]]), ConfigError, "data.targets"),
    (gaps(crop=range(1, 12, 2), mask=range(COUNT)), DataError, ("fold 1", "'crop'")),
    (gaps(crop=(), mask=range(COUNT)), DataError, "'crop'"),
    # folds
    (lambda: group_folds("aba", 3, 0), DataError, "2 groups"),
    (lambda: group_folds("ab", 1, 0), ConfigError, "1"),
    (lambda: group_folds("abc", 2, 0, stratify=[0.0, float("nan"), 1.0]), DataError, "row 1"),
    (lambda: group_folds("abc", 3, 0, stratify="abc"), DataError, "stratified"),
    (lambda: group_folds("abc", 2, 0, stratify="ab"), DataError, ("2 class labels", "3 rows")),
    (lambda: group_folds(np.array([1.0, np.nan, 2.0, np.nan]), 2, 0), DataError, "row 1, row 3"),
    (lambda: column_folds(["a", "a"]), DataError, "2 rows"),
    (
        run(
            folds={"column": "split"},
            table=PASTURE.assign(fold=["train", "test"] * (len(PASTURE) // 2)),
        ),
        DataError,
        ("'split'", "expected train and val"),
    ),
    (lambda: column_folds(["a", " ", None, "b"]), DataError, "row 1, row 2"),
    # stores and several heads
    (lambda: tokens_of(["plot"], ["plot.v1.jpg", "plot.v2.jpg"]), DataError, "'plot.v1.jpg'"),
    (lambda: tokens_of(["a", "b"], ["a.jpg", "c.jpg"]), DataError, ("'c.jpg'", "dinoneck extract")),
    (lambda: tokens_of(["a", "b"], ["a.jpg", "a"]), DataError, "a, a.jpg"),
    (lambda: tokens_of(["a"], ["a.jpg"], 20), ConfigError, ("20", "4")),
    (lambda folder: train(5, folder / "run"), ConfigError, ("config is a int", "a DataFrame")),
    (lambda folder: train(Recipe(), folder / "run"), ConfigError, ("a Recipe", "TrainConfig")),
    (
        lambda folder: train(PASTURE, folder / "run", table=PASTURE),
        ConfigError,
        "two tables are given, config and table",
    ),
    # the config of another training
    (
        lambda folder: train(OF_BOXES, folder / "run", table=PASTURE),
        ConfigError,
        "table has no effect on a training of boxes",
    ),
    (
        lambda folder: train_detector(TrainConfig(), folder / "run"),  # type: ignore[arg-type]
        ConfigError,
        ("a TrainConfig", "dinoneck.training.train", "expected a TrainDetectorConfig"),
    ),
    (
        lambda folder: train_instances(TrainConfig(), folder / "run"),  # type: ignore[arg-type]
        ConfigError,
        ("a TrainConfig", "dinoneck.training.train", "expected a TrainInstancesConfig"),
    ),
    (lambda: TrainDetectorConfig.from_dict({}), ConfigError, ("data.boxes", "--boxes")),
    (
        lambda: TrainInstancesConfig.from_dict({"data": {"images": "i"}}),
        ConfigError,
        ("data.instances", "data.panoptic", "--instances or --panoptic"),
    ),
    (
        lambda: TrainInstancesConfig.from_dict({"data": {"boxes": "b.json"}}),
        ConfigError,
        ("data.boxes is 'b.json'", "TrainDetectorConfig", "train_detector"),
    ),
    (lambda: InstancesDataConfig(), ConfigError, ("instances", "panoptic", "--instances")),
    (
        lambda: OF_BOXES.changed(optim=Recipe()),
        ConfigError,
        ("optim is a Recipe", "expected a DetectorRecipe"),
    ),
    (
        lambda: OF_BOXES.changed(backbone=FrozenBackbone()),
        ConfigError,
        ("backbone is a FrozenBackbone", "expected a BackboneConfig"),
    ),
    (on_folder_of_npz, ConfigError, (".npz", "from_npz")),
    (heads("linear"), ConfigError, "linear"),
    (heads("linear", "linear"), ConfigError, "linear"),
]
