"""Several labels per image from the table to the prediction: train, predict, evaluate, report, export."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests import kit

from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, Task, evaluate
from dinoneck.data import read_table
from dinoneck.errors import ConfigError, DataError
from dinoneck.export import export_model
from dinoneck.training import MemoryTokens, TrainConfig, fit, train, with_linear_baseline

LABELS = ("crack", "moss", "rust")
COLOURS = {"crack": (20, 20, 20), "moss": (30, 160, 40), "rust": (190, 80, 20)}
COUNT = 40


def write_walls(folder: Path) -> pd.DataFrame:
    """Write images (32, 48) of walls with a stripe in the colour of each label that they have; return their table."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        pixels = np.full((32, 48, 3), 200) + random.integers(-15, 15, (32, 48, 3))
        has = random.random(3) < [0.5, 0.4, 0.5]
        for place, label in enumerate(LABELS):
            if has[place]:
                pixels[:, 16 * place : 16 * place + 12] = COLOURS[label]
        name = f"{number:02}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        rows.append({"image": name, "wall": number // 4, **dict(zip(LABELS, has * 1, strict=True))})
    return pd.DataFrame(rows)


def words_of(frame: pd.DataFrame) -> list[str]:
    """The labels of each row as a cell of words."""
    cells = []
    for _, row in frame.iterrows():
        cells.append(";".join(label for label in LABELS if row[label] == 1) or "none")
    return cells


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, ``columns.csv`` of 0 and 1 and ``words.csv`` of words."""
    folder = tmp_path_factory.mktemp("walls")
    frame = write_walls(folder / "images")
    frame["damage"] = words_of(frame)
    frame[["image", "wall", "damage"]].to_csv(folder / "words.csv", index=False)
    frame = frame.drop(columns="damage").astype(dict.fromkeys(LABELS, object))
    frame.loc[3, "rust"] = None  # not known
    frame.to_csv(folder / "columns.csv", index=False)
    return folder


SHORT = ["--backbone", "dinoneck_tiny", "--folds", 3, "--group", "wall", "--epochs", 4]


@pytest.fixture(scope="module")
def run(walls: Path) -> Path:
    """A finished run on the columns of 0 and 1."""
    out = walls / "run"
    words = ["train", "--csv", walls / "columns.csv", "--images", walls / "images"]
    done = kit.cli(*words, "--multilabel", *LABELS, *SHORT, "--out", out)
    assert done.code == 0, done.err
    assert "tags, of each label" in done.out
    assert "mAP" in done.out
    return out


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


@pytest.mark.slow
def test_a_run_scores_labels_on_held_out_images(run: Path) -> None:
    report = report_of(run)
    assert {*report["scores"]} == {"tags"}
    methods = report["scores"]["tags"]
    assert {*methods} == {"head", "linear", "average"}
    linear = methods["linear"]
    # the labels are colours of areas: a linear layer on mean tokens ranks them well
    assert linear["mAP"]["pooled"] > 0.9
    assert linear["mAP"]["interval"][0] <= linear["mAP"]["pooled"] <= linear["mAP"]["interval"][1]
    assert len(linear["F1"]["folds"]) == 3
    assert {*linear["by_label"]} == {*LABELS}
    assert linear["head_minus"]["mAP"] is not None
    assert "mAP" in report["verdict"]
    assert report["choice"]["metric"] == "mAP"


def test_the_table_of_a_run_has_a_column_of_each_label(run: Path) -> None:
    table = pd.read_csv(run / "out_of_fold.csv")
    for label in LABELS:
        assert f"tags:{label}" in table
        assert table[f"tags:{label} (linear)"].between(0, 1).all()
    assert table["tags:rust"].isna().sum() == 1


def test_epochs_are_scored_by_the_mean_average_precision(run: Path) -> None:
    last = (run / "logs" / "fold-0.jsonl").read_text().splitlines()[-1]
    assert 0 < json.loads(last)["val_mAP/tags"] <= 1


def test_the_file_of_a_run_holds_the_thresholds_of_its_method(run: Path) -> None:
    report = report_of(run)
    method = report["predicts"]["method"]
    by_label = report["scores"]["tags"][method]["by_label"]
    [task] = Predictor(run).tasks
    assert task.thresholds == tuple(by_label[label]["threshold"] for label in LABELS)
    metrics = HeadCheckpoint.load(run / "head.safetensors").meta["training"]["metrics"]
    assert "mAP tags" in metrics
    assert "F1 tags" in metrics


@pytest.mark.slow
def test_another_method_brings_its_own_thresholds(run: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    done = kit.cli("train", "--out", copied, "--predict-with", "linear")
    assert done.code == 0, done.err
    by_label = report_of(copied)["scores"]["tags"]["linear"]["by_label"]
    [task] = Predictor(copied).tasks
    assert task.thresholds == tuple(by_label[label]["threshold"] for label in LABELS)


@pytest.mark.slow
def test_predict_writes_the_labels_and_their_probabilities(run: Path, walls: Path) -> None:
    out = walls / "predictions.csv"
    overlay = walls / "overlay"
    words = ["predict", walls / "images", "--heads", run, "--out", out, "--overlay", overlay]
    done = kit.cli(*words)
    assert done.code == 0, done.err
    table = pd.read_csv(out)
    assert list(table) == ["image", "tags", *(f"tags:{label}" for label in LABELS)]
    [task] = Predictor(run).tasks
    for _, row in table.iterrows():
        above = []
        for label, threshold in zip(LABELS, task.thresholds, strict=True):
            if row[f"tags:{label}"] >= threshold:
                above.append(label)
        assert row["tags"] == (";".join(above) or "none")
    assert len(list(overlay.iterdir())) == COUNT


def test_what_predict_wrote_can_be_trained_on_and_evaluated(run: Path, walls: Path) -> None:
    """The column of labels has the form of a table of truth."""
    rows = Predictor(run)(walls / "images")
    frame = pd.DataFrame(
        {
            "image": [Path(row["image"]).name for row in rows],
            "tags": [";".join(row["labels"]["tags"]) or "none" for row in rows],
        }
    )
    report = evaluate(Predictor(run), walls / "images", frame)
    assert report["scores"]["tags"]["head"]["F1"]["pooled"] == 1.0


@pytest.mark.parametrize("truth", ["columns.csv", "words.csv"])
def test_evaluate_compares_with_both_forms_of_tables(run: Path, walls: Path, truth: str) -> None:
    frame = pd.read_csv(walls / truth).rename(columns={"damage": "tags"})
    report = evaluate(Predictor(run), walls / "images", frame, group=["wall"])
    scores = report["scores"]["tags"]["head"]
    assert scores["images"] == COUNT
    assert scores["groups"] == COUNT // 4
    metrics = pytest.importorskip("sklearn.metrics")
    known = pd.read_csv(walls / "columns.csv")
    if truth == "words.csv":
        known.loc[3, "rust"] = float("rust" in frame.loc[3, "tags"])
    [task] = Predictor(run).tasks
    rows = Predictor(run)(walls / "images")
    precisions = []
    f1_scores = []
    for k, label in enumerate(LABELS):
        is_known = known[label].notna().to_numpy()
        values = known[label].to_numpy(float)[is_known]
        probabilities = np.array([row["tags"][k] for row in rows])[is_known]
        precisions.append(metrics.average_precision_score(values, probabilities))
        f1_scores.append(metrics.f1_score(values, probabilities >= task.thresholds[k]))
    assert scores["mAP"]["pooled"] == pytest.approx(np.mean(precisions), abs=1e-9)
    assert scores["F1"]["pooled"] == pytest.approx(np.mean(f1_scores), abs=1e-9)
    assert scores["by_label"]["moss"]["F1"] == pytest.approx(f1_scores[1], abs=1e-9)


def test_a_truth_with_another_word_is_refused(run: Path, walls: Path) -> None:
    frame = pd.read_csv(walls / "words.csv").rename(columns={"damage": "tags"})
    frame.loc[0, "tags"] = "crack;ruts"
    with pytest.raises(DataError, match="'crack;ruts'.*Did you mean 'rust'"):
        evaluate(Predictor(run), walls / "images", frame)


def test_two_models_are_compared_by_their_own_thresholds(run: Path, walls: Path) -> None:
    frame = pd.read_csv(walls / "columns.csv")
    models = {"run": run, "fold": run / "heads" / "fold-0.safetensors"}
    report = evaluate(models, walls / "images", frame)
    assert "mAP" in report["verdict"]
    assert "F1" in report["scores"]["tags"]["fold"]["head_minus"]


@pytest.mark.slow
def test_the_report_shows_labels(run: Path, walls: Path) -> None:
    page = walls / "report.html"
    words = ["viz", "report", run, walls / "images", "--out", page]
    done = kit.cli(*words, "--truth", walls / "columns.csv")
    assert done.code == 0, done.err
    text = page.read_text()
    assert "<span>tags:" in text
    assert re.search("✓ right|✗ wrong|✗ missed", text)
    assert "tags, of each label" in text
    assert "with it" in text


@pytest.mark.slow
def test_an_exported_file_gives_the_rows_of_the_head(run: Path, walls: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = walls / "tags.onnx"
    predictor = Predictor(run)
    export_model(run / "head.safetensors", file, size=kit.SIZE)
    exported: Any = Predictor(file, runtime="onnxruntime")
    image = walls / "images" / "00.png"
    row = exported.one(image)
    expected = predictor.one(image)
    assert row["labels"] == expected["labels"]
    assert np.allclose(row["tags"], expected["tags"], atol=1e-4)
    assert exported.tasks[0].thresholds == predictor.tasks[0].thresholds


@pytest.mark.slow
def test_a_column_of_words_is_trained_on(walls: Path, tmp_path: Path) -> None:
    report = train(
        walls / "words.csv",
        tmp_path / "run",
        images=str(walls / "images"),
        multilabel=["damage"],
        backbone="dinoneck_tiny",
        folds=1,
        epochs=1,
    )
    assert report["scores"] == {}
    [task] = Predictor(tmp_path / "run").tasks
    assert (task.name, task.labels, task.thresholds) == ("damage", LABELS, ())


@pytest.mark.slow
def test_the_head_of_all_images_gets_the_thresholds_of_the_folds(
    walls: Path, tmp_path: Path
) -> None:
    """With a backbone that is trained along, its weights stay in the file."""
    report = train(
        walls / "words.csv",
        tmp_path / "run",
        images=str(walls / "images"),
        multilabel=["damage"],
        backbone="dinoneck_tiny",
        unfreeze_last=1,
        folds=2,
        epochs=1,
    )
    by_label = report["scores"]["damage"]["head"]["by_label"]
    predictor = Predictor(tmp_path / "run")
    [task] = predictor.tasks
    assert task.thresholds == tuple(by_label[label]["threshold"] for label in LABELS)
    assert predictor.one(walls / "images" / "00.png")["damage"].shape == (3,)
    checkpoint = HeadCheckpoint.load(tmp_path / "run" / "head.safetensors")
    assert checkpoint.backbone_weights


@pytest.mark.slow
def test_a_table_of_read_table_is_trained_on_as_it_is(walls: Path, tmp_path: Path) -> None:
    names = ("rust", "moss", "crack")
    table = read_table(
        walls / "words.csv", walls / "images", "damage", multilabel={"damage": names}
    )
    config = TrainConfig.from_dict(
        {"backbone": {"name": "dinoneck_tiny"}, "folds": {"count": 1}, "optim": {"epochs": 1}}
    )
    train(config, tmp_path / "run", table=table)
    assert Predictor(tmp_path / "run").tasks[0].labels == names


def test_fit_and_the_linear_average_take_arrays_of_labels() -> None:
    tokens = kit.tokens(batch=12)
    ids = [f"image {number}" for number in range(12)]
    truth = np.tile([[1.0, 0.0], [0.0, 1.0], [np.nan, 0.0]], (4, 1))
    task = Task("tags", kind="multilabel", labels=("crack", "rust"))
    head = PatchMeanHead(kit.WIDTH, task, hidden_dim=4)
    source = MemoryTokens(ids, tokens)
    fit(head, source, {"tags": truth}, target_ids=ids, epochs=1)
    average = with_linear_baseline(head, source, {"tags": truth}, target_ids=ids)
    assert average.predict(tokens)["tags"].shape == (12, 2)
    wrong = np.where(truth == 1, 2.0, truth)
    with pytest.raises(DataError, match="'tags' is 2 for 'image 0' and the label 'crack'"):
        fit(head, source, {"tags": wrong}, target_ids=ids, epochs=1)


def trained_on(walls: Path, tmp_path: Path, frame: pd.DataFrame, **options: Any) -> Any:
    frame.to_csv(tmp_path / "table.csv", index=False)
    return train(
        tmp_path / "table.csv",
        tmp_path / "run",
        images=str(walls / "images"),
        backbone="dinoneck_tiny",
        epochs=1,
        **options,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moss": 0}, "the label 'moss' of target 'tags' is on none of 40 images"),
        ({"moss": 1}, "the label 'moss' of target 'tags' is on all of 40 images"),
        ({"moss": 2}, "moss of '00.png' is '2'"),
        ({"moss": "yes"}, "moss"),
    ],
    ids=["none", "all", "other number", "word"],
)
def test_columns_that_teach_nothing_are_refused(
    walls: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    frame = pd.read_csv(walls / "columns.csv").assign(**change)
    with pytest.raises(DataError, match=message):
        trained_on(walls, tmp_path, frame, multilabel=LABELS)


def test_an_image_with_an_empty_cell_is_named_with_what_to_write(
    walls: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(walls / "words.csv")
    frame.loc[5, "damage"] = None
    with pytest.raises(DataError, match="'05.png'.*write none where an image has no label"):
        trained_on(walls, tmp_path, frame, multilabel=["damage"])


def test_a_column_in_two_roles_is_refused() -> None:
    with pytest.raises(ConfigError, match="multilabel names 'crack', as targets"):
        TrainConfig.from_dict({"data": {"targets": ["crack"], "multilabel": ["crack"]}})


@pytest.fixture(scope="module")
def links(walls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images in ``all``, and links to them in a folder of each label."""
    folder = tmp_path_factory.mktemp("links")
    shutil.copytree(walls / "images", folder / "all")
    frame = pd.read_csv(walls / "columns.csv")
    for label in LABELS:
        (folder / label).mkdir()
        for name in frame.loc[frame[label] == 1, "image"]:
            (folder / label / name).symlink_to(folder / "all" / name)
    return folder


@pytest.fixture(scope="module")
def coco(walls: Path) -> Path:
    """A COCO file of the images and their labels."""
    frame = pd.read_csv(walls / "columns.csv")
    annotations = []
    for number, row in frame.iterrows():
        for category, label in enumerate(LABELS):
            if row[label] == 1:
                annotations.append({"image_id": number, "category_id": category})
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(frame["image"])],
        "annotations": annotations,
        "categories": [{"id": i, "name": label} for i, label in enumerate(LABELS)],
    }
    file = walls / "damage.json"
    file.write_text(json.dumps(content))
    return file


def table_without_gaps(walls: Path) -> pd.DataFrame:
    """The table of the labels; where a folder has no link, an image has no label."""
    frame = pd.read_csv(walls / "columns.csv")
    frame[[*LABELS]] = frame[[*LABELS]].fillna(0)
    return frame


@pytest.mark.slow
def test_folders_of_links_and_coco_files_train_the_head_of_a_table(
    walls: Path, links: Path, coco: Path, tmp_path: Path
) -> None:
    frame = table_without_gaps(walls)[["image", *LABELS]]
    frame["image"] = [str(walls / "images" / name) for name in frame["image"]]
    options: dict[str, Any] = {"backbone": "dinoneck_tiny", "folds": 2, "epochs": 1}
    expected = train(frame, tmp_path / "table", multilabel=LABELS, **options)
    shell = ["train", "--backbone", "dinoneck_tiny", "--folds", 2, "--epochs", 1]

    words = ["--images", links, "--multilabel", *LABELS]
    of_links = kit.cli(*shell, *words, "--out", tmp_path / "links")
    words = ["--images", walls / "images", "--multilabel", coco]
    of_file = kit.cli(*shell, *words, "--out", tmp_path / "coco")

    for ran, name in ((of_links, "links"), (of_file, "coco")):
        assert ran.code == 0, ran.err
        report = report_of(tmp_path / name)
        assert report["images"] == COUNT
        by_label = report["scores"]["tags"]["linear"]["by_label"]
        for label, scores in expected["scores"]["tags"]["linear"]["by_label"].items():
            assert by_label[label]["positives"] == scores["positives"]
        assert Predictor(tmp_path / name).tasks[0].labels == LABELS
    # the images of the file have the order and the folds of the table
    assert report_of(tmp_path / "coco")["scores"] == expected["scores"]


@pytest.mark.slow
def test_evaluate_takes_folders_of_links_and_coco_files_as_truth(
    run: Path, walls: Path, links: Path, coco: Path
) -> None:
    expected = evaluate(Predictor(run), walls / "images", table_without_gaps(walls))["scores"]

    of_links = evaluate(Predictor(run), links, links)["scores"]
    of_file = evaluate(Predictor(run), walls / "images", coco)["scores"]
    shell = ["evaluate", walls / "images", "--heads", run, "--truth", coco]
    ran = kit.cli(*shell)

    assert of_file == expected
    assert of_links["tags"]["head"]["mAP"]["pooled"] == pytest.approx(
        expected["tags"]["head"]["mAP"]["pooled"], abs=1e-9
    )
    assert ran.code == 0, ran.err
    assert "tags, of each label" in ran.out
    page = walls / "coco.html"
    shown = kit.cli("viz", "report", run, walls / "images", "--truth", coco, "--out", page)
    assert shown.code == 0, shown.err
    assert "with it" in page.read_text()


def test_a_truth_without_a_label_is_refused(run: Path, walls: Path, tmp_path: Path) -> None:
    (tmp_path / "walls" / "others").mkdir(parents=True)
    shutil.copy(walls / "images" / "05.png", tmp_path / "walls" / "others")

    with pytest.raises(DataError, match="none of the labels that are predicted, crack, moss, rust"):
        evaluate(Predictor(run), tmp_path / "walls", tmp_path / "walls")


@pytest.mark.slow
def test_true_and_false_are_trained_on_and_evaluated_as_1_and_0(
    run: Path, walls: Path, tmp_path: Path
) -> None:
    frame = table_without_gaps(walls)
    words = frame.assign(**{label: frame[label] == 1 for label in LABELS})
    words.to_csv(tmp_path / "words.csv", index=False)
    assert "True" in (tmp_path / "words.csv").read_text()
    options: dict[str, Any] = {
        "images": str(walls / "images"),
        "multilabel": LABELS,
        "backbone": "dinoneck_tiny",
        "folds": 2,
        "epochs": 1,
    }
    frame.to_csv(tmp_path / "numbers.csv", index=False)

    of_words = train(tmp_path / "words.csv", tmp_path / "run", **options)
    of_numbers = train(tmp_path / "numbers.csv", tmp_path / "numbers", **options)

    assert of_words["scores"] == of_numbers["scores"]
    scores = evaluate(Predictor(run), walls / "images", tmp_path / "words.csv")["scores"]
    assert scores == evaluate(Predictor(run), walls / "images", frame)["scores"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--multilabel", "all"], "the label 'all' of target 'all' is on all of 40 images"),
        (["--multilabel", "crak"], "multilabel names 'crak', which the folder "),
        (["--multilabel", "crack", "--subfolders", "classes"], "data.subfolders is 'classes', and"),
        (["--multilabel", "crack", "--group", "wall"], "folds.group is ('wall',), and needs"),
        (["--multilabel", "missing.json"], "missing.json"),
    ],
    ids=["all images", "word", "subfolders", "group", "file"],
)
def test_labels_without_a_table_that_teach_nothing_are_refused(
    links: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "run"
    done = kit.cli("train", "--images", links, *words, "--backbone", "dinoneck_tiny", "--out", out)
    assert done.code != 0
    assert message in done.err
    assert not out.exists()


def test_a_coco_file_beside_a_table_and_labels_without_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="the COCO file 'a.json', and there is a table"):
        TrainConfig.from_dict({"data": {"csv": "t.csv", "multilabel": ["a.json"]}}).check_used()
    with pytest.raises(ConfigError, match=r"needs data.csv \(--csv\), or the folder of the images"):
        TrainConfig.from_dict({"data": {"multilabel": ["crack"]}}).check_used()


def test_a_task_of_the_file_that_has_the_name_of_the_labels_is_refused(
    walls: Path, tmp_path: Path
) -> None:
    frame = pd.read_csv(walls / "columns.csv")
    tasks = {"tags": {"kind": "multilabel", "columns": list(LABELS)}}
    with pytest.raises(ConfigError, match="makes the task 'tags', and tasks has it too"):
        trained_on(walls, tmp_path, frame, multilabel=LABELS, tasks=tasks)
