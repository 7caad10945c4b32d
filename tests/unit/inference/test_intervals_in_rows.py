"""Rows with intervals: of head files, exported files, the service, tables, the card and ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import kit

from dinoneck import Composition, DenseHead, HeadCheckpoint, PatchMeanHead, Predictor, Task
from dinoneck.checkpoint import model_card
from dinoneck.errors import ConfigError
from dinoneck.export import export_model
from dinoneck.inference import to_frame
from dinoneck.task_intervals import NO_INTERVAL
from dinoneck.tasks import Interval

MASS = Interval(levels=(0.5, 0.9), half_widths=(0.25, 40.0), groups=12)
KIND = Interval(levels=(0.5, 0.9), half_widths=(0.1, 0.99), groups=11)
TASKS = [
    Task("mass", unit="g", minimum=0, interval=MASS),
    Task("kind", dim=3, kind="classification", labels=("a", "b", "c"), interval=KIND),
    Task("height"),
]


def plant() -> PatchMeanHead:
    """A head with a composition, of whose outputs the first has no interval."""
    tasks = [Task("total"), Task("shares", dim=2, kind="ratio", labels=("leaf", "stem"))]
    composition = Composition(
        ("leaf", "stem"),
        (),
        "plant",
        total="total",
        ratio="shares",
        interval=(NO_INTERVAL, MASS),
    )
    return PatchMeanHead(64, tasks, hidden_dim=4, compositions=[composition])


def test_rows_hold_the_prediction_plus_and_minus_the_half_width() -> None:
    head = kit.randomised(kit.head(*TASKS))

    plain = Predictor(head, kit.backbone()).one(kit.images(1)[0])
    row = Predictor(head, kit.backbone(), interval=0.5).one(kit.images(1)[0])

    assert row.keys() - plain.keys() == {"interval", "set"}
    low, high = row["interval"]["mass"]
    mass = plain["mass"]
    assert (low, high) == pytest.approx((max(mass - 0.25, 0), mass + 0.25))
    assert [*row["interval"]] == ["mass"]
    likeliest = ("a", "b", "c")[int(np.argmax(plain["kind"]))]
    assert row["set"] == {"kind": [likeliest]}


def test_heads_next_to_each_other_have_intervals_of_their_own() -> None:
    heads = {"x": kit.head(*TASKS), "y": plant(), "z": kit.head(Task("depth"))}

    row = Predictor(heads, kit.backbone(), interval=0.9).one(kit.images(1)[0])

    assert [*row["x"]["interval"]] == ["mass"]
    low, high = row["y"]["interval"]["plant"]
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, False]
    assert high[1] - low[1] == pytest.approx(80.0)
    assert "interval" not in row["z"]


def test_the_caller_may_change_a_row() -> None:
    predictor = Predictor(plant(), kit.backbone(), interval=0.9)
    [prediction] = predictor.predictions(kit.images(1)[0])

    prediction.row()["interval"]["plant"][0][1] = 0

    assert prediction.row()["interval"]["plant"][0][1] != 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "level", "message"),
    [
        (TASKS, 0.8, "holds 0.5, 0.9, as 0.8 needs .* 4 groups or more; from 11 to 12 groups"),
        (TASKS, 0.7, "interval is 0.7; the head holds 0.5, 0.9; from"),
        ([Task("mass")], 0.9, "holds no intervals: train with held-out images of 9 groups or more"),
        ([Task("set"), *TASKS], 0.9, "a task is called 'set', as the entry of rows"),
        (TASKS, 90, "interval is 90; expected a number between 0 and 1"),
    ],
    ids=["not reached", "unknown", "none", "name", "per cent"],
)
def test_what_a_head_does_not_hold_is_refused(
    tasks: list[Task], level: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(kit.head(*tasks), kit.backbone(), interval=level)


def test_a_level_for_labels_is_refused_without_advice_to_calibrate() -> None:
    tags = Task("tags", kind="multilabel", labels=("moss", "rust"), dim=2)
    reason = r"the head predicts multilabel; intervals are of numbers and classes of an image"

    with pytest.raises(ConfigError, match=reason):
        Predictor(kit.head(tags), kit.backbone(), interval=0.9)


def test_the_intervals_that_averaged_heads_share_are_given_next_to_a_task_without_any() -> None:
    wider = Interval(levels=(0.9,), half_widths=(80.0,), groups=12)
    shared = Task("mass", interval=MASS)
    heads = [
        kit.head(shared, Task("height", interval=MASS)),
        kit.head(shared, Task("height", interval=wider)),
    ]

    row = Predictor(heads, kit.backbone(), interval=0.9).one(kit.images(1)[0])

    assert [*row["interval"]] == ["mass"]


def test_a_table_says_that_averaged_heads_have_different_intervals(tmp_path: Path) -> None:
    wider = Interval(levels=(0.9,), half_widths=(80.0,), groups=12)
    first = kit.saved_head(tmp_path / "a.safetensors", kit.head(Task("mass", interval=MASS)))
    second = kit.saved_head(tmp_path / "b.safetensors", kit.head(Task("mass", interval=wider)))
    [image] = kit.write_images(tmp_path, ["a.png"])

    ran = kit.cli("predict", image, "--heads", first, second, "--out", tmp_path / "p.csv")

    assert ran.code == 0, ran.err
    assert "Without intervals of mass: those of the heads that are averaged differ" in ran.out
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "image,mass"


def test_a_data_frame_has_the_columns_of_predict() -> None:
    predictor = Predictor(plant(), kit.backbone(), interval=0.9)

    frame = to_frame(predictor(kit.images(2)), predictor.tasks)

    assert [*frame] == [
        "total",
        "shares:leaf",
        "shares:stem",
        "leaf",
        "stem",
        "stem low",
        "stem high",
    ]


def test_a_task_that_is_called_as_the_entry_of_rows_leaves_a_table_without_bounds(
    tmp_path: Path,
) -> None:
    tasks = [Task("mass", interval=MASS), Task("interval"), Task("set")]
    head = kit.saved_head(tmp_path / "head.safetensors", kit.head(*tasks))
    [image] = kit.write_images(tmp_path, ["a.png"])

    ran = kit.cli("predict", image, "--heads", head, "--out", tmp_path / "p.csv")

    assert ran.code == 0, ran.err
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "image,mass,interval,set"


def test_a_table_of_heads_without_intervals_stays_as_it_was(tmp_path: Path) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors", kit.head(Task("mass")))
    [image] = kit.write_images(tmp_path, ["a.png"])

    ran = kit.cli("predict", image, "--heads", head, "--out", tmp_path / "p.csv")

    assert ran.code == 0 and "interval" not in ran.out
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == "image,mass"


@pytest.mark.slow
def test_an_exported_file_gives_the_intervals_of_its_head(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    backbone = kit.backbone(layers=[0])
    head = kit.randomised(kit.head(*TASKS))
    size = (48, 64)  # of one size: free ones are exported in twice the time
    export_model(head, tmp_path / "m.onnx", backbone=backbone, check=False, size=size)
    [image] = kit.write_images(tmp_path, ["a.png"], height=48, width=64)

    exported = Predictor(str(tmp_path / "m.onnx"), interval=0.9).one(image)

    expected = Predictor(head, backbone, interval=0.9).one(image)
    assert exported["interval"]["mass"] == pytest.approx(expected["interval"]["mass"], rel=1e-4)
    assert exported["set"] == expected["set"]
    with pytest.raises(ConfigError, match="m.onnx holds 0.5, 0.9, as 0.95 needs"):
        Predictor(str(tmp_path / "m.onnx"), interval=0.95)
    ran = kit.cli("predict", image, "--heads", tmp_path / "m.onnx", "--out", tmp_path / "p.csv")
    assert ran.code == 0, ran.err
    assert "mass,mass low,mass high,kind,kind set" in (tmp_path / "p.csv").read_text()


def test_the_service_answers_with_the_intervals_of_tables(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from dinoneck.serve import Settings
    from dinoneck.serve.models import open_model

    head = kit.saved_head(tmp_path / "head.safetensors", kit.randomised(kit.head(*TASKS)))
    model = open_model(head, Settings())

    answer = json.loads(json.dumps(model.predict(kit.images(1)[0], "none"), allow_nan=False))

    mass = answer["values"]["mass"]
    assert answer["level"] == 0.9
    assert answer["interval"] == {"mass": pytest.approx([max(mass - 40, 0), mass + 40])}
    assert set(answer["set"]["kind"]) <= {"a", "b", "c"}
    [of_mass, *_, of_height] = model.facts["tasks"]
    assert of_mass["interval"][0]["groups"] == 12
    assert "interval" not in of_height


def test_an_output_without_an_interval_is_null_in_the_service(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from dinoneck.serve import Settings
    from dinoneck.serve.models import open_model

    model = open_model(kit.saved_head(tmp_path / "head.safetensors", plant()), Settings())

    [low, high] = model.predict(kit.images(1)[0], "none")["interval"]["plant"]

    assert low[0] is None and high[0] is None
    assert high[1] - low[1] == pytest.approx(80.0)


def test_card_and_inspect_state_half_widths_and_groups(tmp_path: Path) -> None:
    file = kit.saved_head(tmp_path / "head.safetensors", kit.head(*TASKS))

    card = model_card(HeadCheckpoint.load(file).meta)
    ran = kit.cli("inspect", file)

    assert "| `mass` | `50 % ± 0.25, 90 % ± 40 from 12 groups` |" in card
    assert "| `kind` | `50 % p ≥ 0.9, 90 % p ≥ 0.01 from 11 groups` |" in card
    assert "interval of mass: 50 % ± 0.25, 90 % ± 40 from 12 groups" in ran.out


def test_a_list_of_heads_with_different_intervals_is_an_ensemble_without(tmp_path: Path) -> None:
    other = Interval(levels=(0.5,), half_widths=(3.0,), groups=4)
    files = [
        kit.saved_head(tmp_path / "a.safetensors", kit.head(Task("mass", interval=MASS))),
        kit.saved_head(tmp_path / "b.safetensors", kit.head(Task("mass", interval=other), seed=1)),
    ]

    assert Predictor(files).tasks[0].interval == ()
    reason = "averaged for 'mass' hold different intervals, which do not hold for the mean"
    with pytest.raises(ConfigError, match=reason):
        Predictor(files, interval=0.5)


def test_maps_and_intervals_go_together() -> None:
    head = DenseHead(64, [Task("mass", kind="density", interval=MASS)], hidden_dim=4)

    row: Any = Predictor(head, kit.backbone(), interval=0.9).one(kit.images(1)[0], maps="patch")

    assert row["maps"]["mass"].ndim == 3
    assert row["interval"]["mass"][1] == pytest.approx(row["mass"] + 40, rel=1e-6)


def test_joined_tiles_have_no_intervals(tmp_path: Path) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors", kit.head(*TASKS), size=(32, 48))
    image = kit.images(1, 64, 96)[0]

    predictor = Predictor(head, tile=(32, 48))

    assert all(not task.interval for task in predictor.tasks)
    assert "interval" not in predictor(image)[0]
    with pytest.raises(
        ConfigError, match="interval is 0.9, and tile is .32, 48.: intervals hold for"
    ):
        Predictor(head, tile=(32, 48), interval=0.9)


def test_predict_says_that_joined_tiles_have_no_intervals(tmp_path: Path) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors", kit.head(*TASKS), size=(32, 48))
    image = tmp_path / "large.png"
    Image.new("RGB", (96, 64), "green").save(image)
    out = tmp_path / "p.csv"

    ran = kit.cli("predict", image, "--heads", head, "--tile", "32x48", "--out", out)

    assert "Without intervals, which hold for images like those of the training" in ran.out
    assert "mass low" not in out.read_text()


def test_predict_names_the_outputs_without_an_interval_of_the_level(tmp_path: Path) -> None:
    few = Interval(levels=(0.5,), half_widths=(0.25,), groups=3)
    tasks = [Task("mass", interval=MASS), Task("height", interval=few)]
    head = kit.saved_head(tmp_path / "head.safetensors", kit.head(*tasks))
    [image] = kit.write_images(tmp_path, ["a.png"])

    ran = kit.cli("predict", image, "--heads", head, "--out", tmp_path / "p.csv")

    assert (
        "Without intervals of height, of which the heads hold none of 90 %; --interval 0.5 writes "
        "those that they hold." in ran.out
    )
    assert "with intervals of 90 % from 12 groups" in ran.out
