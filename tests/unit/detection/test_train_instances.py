"""Training heads of objects from a COCO file: scores, numbers, files, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.kit import cli
from tests.unit.training.meadow import rows_of
from torch import Tensor

from dinoneck import (
    Backbone,
    CheckpointError,
    ConfigError,
    DataError,
    HeadCheckpoint,
    Predictor,
    evaluate,
)
from dinoneck.data import BoxImages
from dinoneck.detection import objects, score_masks, train_instances
from dinoneck.detection.evaluation import class_thresholds
from dinoneck.detection.object_tiles import ObjectTiles
from dinoneck.inference import coco_objects
from dinoneck.training import (
    BackboneConfig,
    InstancesDataConfig,
    PlainFoldsConfig,
    Recipe,
    TrainInstancesConfig,
    engine,
    run,
)

pytestmark = pytest.mark.slow

pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")
# pycocotools with NumPy 2
HEIGHT, WIDTH = 96, 128
COLOURS = ((220, 40, 40), (40, 60, 220))
Array = np.ndarray[Any, Any]


Shape = tuple[int, int, int, int]  # kind, centre x and y, radius


def written(
    folder: Path, pictures: list[Array], shapes: list[list[Shape]], names: dict[int, str]
) -> Path:
    """Draw the shapes of every picture, whose ids begin with 5; squares are the kind of that name.

    Return the JSON.
    """
    folder.mkdir(parents=True)
    entries, objects, ids = [], list[dict[str, Any]](), [*names]
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for i, (picture, own) in enumerate(zip(pictures, shapes, strict=True)):
        image = Image.fromarray(picture)
        for kind, x, y, r in own:
            corners = [(x + r * np.cos(a), y + r * np.sin(a)) for a in angles]
            if names[ids[kind]] == "square":
                corners = [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
            ImageDraw.Draw(image).polygon(corners, fill=COLOURS[kind])
            about = {
                "id": len(objects) + 1,
                "image_id": i + 5,
                "category_id": ids[kind],
                "iscrowd": 0,
            }
            outline = np.ravel(corners).tolist()
            objects.append(
                {**about, "bbox": [x - r, y - r, 2 * r, 2 * r], "segmentation": [outline]}
            )
        image.save(folder / f"{i}.png")
        entries.append(
            {"id": i + 5, "file_name": f"{i}.png", "width": image.width, "height": image.height}
        )
    categories = [{"id": number, "name": name} for number, name in names.items()]
    file = folder / "objects.json"
    file.write_text(
        json.dumps({"images": entries, "annotations": objects, "categories": categories})
    )
    return file


def scenes(folder: Path, count: int) -> Path:
    """Write images of 1 to 3 red discs and blue squares, and their COCO file."""
    rng, pictures, shapes = np.random.default_rng(0), [], []
    for i in range(count):
        pictures.append(rng.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        draws = [
            (rng.integers(2), rng.integers(24, 72), rng.integers(10, 16)) for _ in range(1 + i % 3)
        ]
        shapes.append(
            [(int(kind), 22 + 40 * k, int(y), int(r)) for k, (kind, y, r) in enumerate(draws)]
        )
    return written(folder, pictures, shapes, {9: "disc", 4: "square"})


def config_of(file: Path, epochs: int = 2, **changes: Any) -> TrainInstancesConfig:
    settings: dict[str, Any] = {
        "data": InstancesDataConfig(instances=str(file)),
        "folds": PlainFoldsConfig(count=2),
    }
    settings["optim"] = Recipe(epochs=epochs, batch_size=4, lr=3e-3, seed=0)
    settings["backbone"] = BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5))
    settings["head"] = {"type": "dpt_neck", "out_channels": 16}
    return TrainInstancesConfig(**settings | changes)


def test_true_masks_have_the_best_scores_and_numbers(tmp_path: Path) -> None:
    data, every = (
        BoxImages(scenes(tmp_path / "s", 4), masks=True),
        dict[int, list[dict[str, Any]]](),
    )
    for i, image_id in enumerate(data.ids):
        labels, masks = data[i][1]["labels"], data[i][1]["masks"].numpy() > 0
        every[image_id] = coco_objects(
            {"masks": masks, "labels": labels, "scores": torch.linspace(0.9, 0.6, len(labels))}
        )
    found = score_masks(data, every)
    assert (found["AP"], found["F1"], found["count_error"]) == (1.0, 1.0, 0.0)
    assert found["min_score"] == pytest.approx(0.6)
    del every[7]
    assert score_masks(data, every)["count_error"] == 3 / 4, (
        "an image without an entry has no objects"
    )
    every[6] = [{**own, "category_id": 1 - own["category_id"]} for own in every[6]]
    assert score_masks(data, every)["F1"] < 1.0, "a mask of another class is not found"
    with pytest.raises(DataError, match="99"):
        score_masks(data, every | {99: every[5]})


@pytest.mark.parametrize(
    "head", [None, {"type": "mask", "num_blocks": 1, "dim": 32}], ids=["pyramid", "mask"]
)
def test_a_run_has_scored_folds_and_a_head_of_all_images(
    head: dict[str, Any] | None, tmp_path: Path
) -> None:
    file, out = scenes(tmp_path / "s", 6), tmp_path / "run"
    report = train_instances(config_of(file, **({} if head is None else {"head": head})), out)
    scores = report["masks"]["head"]
    assert scores["images"] == report["images"] == 6 and 0 <= scores["AP"] <= 1
    assert json.loads((out / "report.json").read_text()) == report
    assert sorted(path.name for path in (out / "heads").iterdir()) == [
        "fold-0.safetensors",
        "fold-1.safetensors",
    ]
    [task] = HeadCheckpoint.load(out).meta["tasks"]
    assert (task["kind"], task["labels"]) == ("instances", ["square", "disc"]), (
        "by ascending category id"
    )
    assert task["minimum"] == scores["min_score"] and not (out / "unfinished").exists()
    rows = rows_of(out / "out_of_fold.csv")
    assert {row["image"]: int(float(row["objects"])) for row in rows} == {
        f"{i}.png": 1 + i % 3 for i in range(6)
    }
    errors = [abs(float(row["objects"]) - float(row["objects (head)"])) for row in rows]
    assert np.mean(errors) == pytest.approx(scores["count_error"])
    thresholds = class_thresholds(scores, task["labels"]) or (task["minimum"] or 0.0,) * 2
    assert tuple(task.get("thresholds", thresholds)) == thresholds
    for kept in Predictor(out)([file.parent / "0.png", file.parent / "2.png"]):
        least = np.array(thresholds)[kept["objects"]["labels"]]
        assert (kept["objects"]["scores"] >= least).all()


@pytest.mark.parametrize(
    "head",
    [{"type": "dpt_neck", "out_channels": 16}, {"type": "mask", "num_blocks": 1, "dim": 32}],
    ids=["pyramid", "mask"],
)
def test_the_head_of_all_images_has_the_thresholds_of_its_held_out_objects(
    head: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scenes(tmp_path / "s", 4)

    def scripted(*arguments: Any) -> dict[str, Any]:
        found = {"min_score": 0.25, "thresholds": {"square": None, "disc": 0.125}}
        return score_masks(*arguments) | found

    monkeypatch.setattr(objects, "score_masks", scripted)

    train_instances(config_of(file, epochs=1, head=head), tmp_path / "run")

    [task] = Predictor(tmp_path / "run").tasks
    assert (task.labels, task.minimum) == (("square", "disc"), 0.25)
    assert task.thresholds == (0.25, 0.125)
    [fold_task] = HeadCheckpoint.load(tmp_path / "run/heads/fold-0.safetensors").meta["tasks"]
    assert "thresholds" not in fold_task


def stop_in_first_fold(
    config: TrainInstancesConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begin a run that ends after its second epoch."""
    fit = run.fit

    def stop(epoch: int, row: dict[str, Any]) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    def stopped_fit(*arguments: Any, **options: Any) -> Any:
        return fit(*arguments, **{**options, "callbacks": [stop]})

    with monkeypatch.context() as patch:
        patch.setattr(engine, "SAVE_EVERY_S", 0.0)
        patch.setattr(run, "fit", stopped_fit)
        with pytest.raises(KeyboardInterrupt):
            train_instances(config, out)


@pytest.mark.parametrize("lora", [None, 2], ids=["frozen", "LoRA"])
def test_an_image_that_was_replaced_does_not_continue_a_run(
    lora: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5), lora=lora)
    config = config_of(scenes(tmp_path / "s", 4), backbone=backbone)
    stop_in_first_fold(config, tmp_path / "run", monkeypatch)
    image = tmp_path / "s" / "3.png"
    pixels = np.asarray(Image.open(image))
    Image.fromarray(255 - pixels).save(image)

    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        train_instances(config, tmp_path / "run")

    Image.fromarray(pixels).save(image)
    assert train_instances(config, tmp_path / "run")["images"] == 4


def test_a_run_of_0_3_with_a_trained_backbone_continues_with_its_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.3 kept one hash of the targets and of two tokens of every image."""
    backbone = BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5), lora=2)
    file = scenes(tmp_path / "s", 4)
    config = config_of(file, backbone=backbone)
    stop_in_first_fold(config, tmp_path / "run", monkeypatch)
    record = tmp_path / "run" / "unfinished" / "run.json"
    identity = json.loads(record.read_text())
    del identity["tokens"]
    del identity["hash of targets and folds"]
    record.write_text(json.dumps(identity))
    dataset = BoxImages(file, masks=True)
    tiles = ObjectTiles(dataset, tiling=None)
    trainer = objects.prepare_instances(config, tmp_path / "run", tiles)
    identity_of_0_3 = trainer.identity(as_in_0_3=True)
    identity["hash of images and targets"] = identity_of_0_3["hash of images and targets"]
    record.write_text(json.dumps(identity))
    image = tmp_path / "s" / "3.png"
    pixels = np.asarray(Image.open(image))
    Image.fromarray(255 - pixels).save(image)

    with pytest.raises(CheckpointError, match="hash of images and targets"):
        train_instances(config, tmp_path / "run")

    Image.fromarray(pixels).save(image)
    assert train_instances(config, tmp_path / "run")["images"] == 4


def test_a_trained_backbone_makes_no_frozen_tokens_that_nobody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5), lora=2)
    folds = PlainFoldsConfig(count=2, only=1)  # 2 images to train on, 2 held out
    config = config_of(scenes(tmp_path / "s", 4), epochs=3, backbone=backbone, folds=folds)
    num_images = []
    forward = Backbone.forward

    def counted_forward(self: Backbone, images: Tensor) -> Any:
        num_images.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", counted_forward)
    train_instances(config, tmp_path / "run")

    examples = 1 + 1  # of the tokens that the head is built for, and of the first batch of fit
    epochs = 3 * (2 + 2)
    held_out = 2
    assert sum(num_images) == examples + epochs + held_out


def test_a_damaged_image_is_refused_before_a_trained_backbone_writes_more_than_the_summary(
    tmp_path: Path,
) -> None:
    """The header of a JPEG is whole, so that only what decodes it sees that it is cut."""
    file = scenes(tmp_path / "s", 4)
    damaged = tmp_path / "s" / "3.jpg"
    Image.open(tmp_path / "s" / "3.png").save(damaged)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    file.write_text(file.read_text().replace("3.png", "3.jpg"))
    backbone = BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5), lora=2)
    config = config_of(file, backbone=backbone)

    with pytest.raises(DataError, match=r"3\.jpg cannot be decoded"):
        train_instances(config, tmp_path / "run")

    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"data.json", "data.txt", "data.jpg"}


def test_finished_heads_are_scored_over_all_scores(tmp_path: Path) -> None:
    file, out = scenes(tmp_path / "s", 3), tmp_path / "run"
    words = [
        "train",
        "--instances",
        file,
        "--images",
        file.parent,
        "--backbone",
        "dinoneck_tiny",
        "--layers",
        *"1245",
    ]
    head = "{type: dpt_neck, out_channels: 16}"
    assert cli(*words, "--head", head, "--folds", 1, "--epochs", 1, "--out", out).code == 0
    predictor = Predictor(out)
    data = BoxImages(file, masks=True, classes=predictor.tasks[0].labels)
    rows = zip(data.ids, predictor([*data.paths], min_score=0.0), strict=True)
    every = {image_id: coco_objects(row["objects"]) for image_id, row in rows}
    assert evaluate(out, file.parent, file)["masks"]["head"] == score_masks(data, every)


def test_one_fold_is_scored_on_its_own_images(tmp_path: Path) -> None:
    config = config_of(scenes(tmp_path / "s", 4), epochs=1, folds=PlainFoldsConfig(count=2, only=1))
    scores = train_instances(config, tmp_path / "r")["masks"]["head"]
    rows = rows_of(tmp_path / "r" / "out_of_fold.csv")
    assert scores["images"] == len(rows) == 2
    errors = [abs(float(row["objects"]) - float(row["objects (head)"])) for row in rows]
    assert scores["count_error"] == pytest.approx(np.mean(errors))


def test_small_objects_lie_on_top_and_crowd_regions_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = scenes(tmp_path / "s", 2)
    content = json.loads(file.read_text())
    content["annotations"] = [own for own in content["annotations"] if own["image_id"] == 6] + [
        {
            "id": 90 + i,
            "image_id": 5,
            "category_id": category,
            "iscrowd": crowd,
            "bbox": [0, 0, x, y],
            "segmentation": [[0, 0, x, 0, x, y, 0, y]],
        }
        for i, (category, crowd, x, y) in enumerate(
            [(4, 0, 32, 16), (9, 0, 64, 48), (9, 0, 16, 96), (9, 1, 128, 96)]
        )
    ]
    file.write_text(json.dumps(content))
    data, targets = BoxImages(file, masks=True), dict[str, torch.Tensor]()
    ids = np.full((HEIGHT, WIDTH), -2000)  # of classes square and disc, by category
    ids[:48, :64], ids[:, :16], ids[:16, :32] = 2000, 2001, 1000
    assert np.array_equal(data.pixels(0), ids) and data.numbers == {5: 3, 6: 2}

    def seen(head: Any, source: Any, own: dict[str, torch.Tensor], **settings: Any) -> None:
        targets.update(own)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "fit", seen)
    with pytest.raises(KeyboardInterrupt):
        train_instances(config_of(file), tmp_path / "run")
    assert np.array_equal(targets["objects"][0], ids[2::4, 2::4].clip(-1))
    masks = np.array([ids == own for own in (1000, 2000, 2001, -2000)])
    masks[3, :, :100] = False  # a part of the crowd region
    labels, scores = torch.tensor([0, 1, 1, 1]), torch.tensor([0.5, 0.6, 0.7, 0.9])
    found = score_masks(
        data.take([0]), {5: coco_objects({"masks": masks, "labels": labels, "scores": scores})}
    )
    assert found["AP50"] == 1.0 and found["F1"] == 1.0, "the last one lies in the crowd region"


def easy_scenes(folder: Path, count: int) -> Path:
    """Write images of 1 to 5 discs of two colours that do not touch, and their COCO file."""
    rng, pictures, shapes = np.random.default_rng(0), [], list[list[Shape]]()
    for _ in range(count):
        pictures.append(rng.integers(60, 140, (128, 128, 3), dtype=np.uint8))
        shapes.append([])
        for _ in range(int(rng.integers(1, 6))):
            kind, r = int(rng.integers(2)), int(rng.integers(7, 19))
            x, y = (int(place) for place in rng.integers(r + 1, 127 - r, 2))
            if all((x - a) ** 2 + (y - b) ** 2 >= (r + c + 3) ** 2 for _, a, b, c in shapes[-1]):
                shapes[-1].append((kind, x, y, r))
    return written(folder, pictures, shapes, {1: "red", 2: "blue"})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("head", "epochs", "lr", "least"),
    [({"type": "dpt_neck", "out_channels": 32}, 14, 2e-3, 0.95), ({"type": "mask"}, 20, 1e-3, 0.6)],
    ids=["maps", "mask"],
)
def test_objects_of_held_out_scenes_are_found_and_counted(
    head: dict[str, Any], epochs: int, lr: float, least: float, tmp_path: Path
) -> None:
    """180 images to train, 60 held out, on random features."""
    file, out = easy_scenes(tmp_path / "s", 240), tmp_path / "run"
    config = TrainInstancesConfig(
        data=InstancesDataConfig(instances=str(file)),
        backbone=BackboneConfig(name="vit_small_patch16_dinov3", random=True, layers=(2, 5, 8, 11)),
        head=head,
        optim=Recipe(epochs=epochs, lr=lr, seed=0),
        folds=PlainFoldsConfig(count=4, only=0),
    )
    scores = train_instances(config, out)["masks"]["head"]
    print(scores)
    assert scores["images"] == 60 and scores["AP50"] >= least
    rows = rows_of(out / "out_of_fold.csv")
    single = [float(row["objects (head)"]) for row in rows if float(row["objects"]) == 1]
    assert len(single) >= 5 and np.mean(np.equal(single, 1)) >= (1.0 if least > 0.9 else 0.8)


# an earlier head, and the number of epochs

SMALL_MASK_HEAD = {"type": "mask", "num_queries": 6, "num_blocks": 1, "dim": 16}


def test_a_mask_head_starts_from_an_earlier_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = PlainFoldsConfig(count=1)
    config = config_of(scenes(tmp_path / "s", 4), epochs=1, head=SMALL_MASK_HEAD, folds=folds)
    train_instances(config, tmp_path / "earlier")
    earlier = tmp_path / "earlier" / "head.safetensors"

    train_instances(config.changed(init=str(earlier)), tmp_path / "later")

    num_tensors = len(HeadCheckpoint.load(earlier).build().state_dict())
    assert f"{num_tensors} of {num_tensors} tensors are taken, 0 are new" in caplog.text


def test_a_mask_head_of_classes_in_another_order_is_no_start(tmp_path: Path) -> None:
    folds = PlainFoldsConfig(count=1)
    config = config_of(scenes(tmp_path / "s", 4), epochs=1, head=SMALL_MASK_HEAD, folds=folds)
    train_instances(config, tmp_path / "earlier")
    earlier = tmp_path / "earlier" / "head.safetensors"
    classes = tuple(reversed(HeadCheckpoint.load(earlier).build().tasks[0].labels))
    data = config.data.changed(classes=classes)

    with pytest.raises(ConfigError, match="the same place"):
        train_instances(config.changed(init=str(earlier), data=data), tmp_path / "later")


@pytest.mark.parametrize(
    ("stated", "epochs"),
    [
        pytest.param((), 500, id="the default is raised"),
        pytest.param(("epochs",), 40, id="the default is stated"),
    ],
)
def test_a_default_number_of_epochs_that_is_stated_is_taken(
    stated: tuple[str, ...], epochs: int, tmp_path: Path
) -> None:
    file = scenes(tmp_path / "s", 4)
    config = config_of(file, epochs=Recipe().epochs)
    tiles = ObjectTiles(BoxImages(file, masks=True), None)

    completed = objects.with_object_defaults(config, tiles, stated)

    assert completed.optim.epochs == epochs


def test_the_command_line_states_its_number_of_epochs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = scenes(tmp_path / "s", 2)
    completed = []

    def stop(config: TrainInstancesConfig, *_: Any, **__: Any) -> None:
        completed.append(config)
        raise DataError("stopped")

    monkeypatch.setattr(objects, "prepare_instances", stop)
    words = ("train", "--instances", file, "--backbone", "dinoneck_tiny", "--out", tmp_path / "run")

    result = cli(*words, "--epochs", "40")

    assert "stopped" in result.err
    [config] = completed
    assert config.optim.epochs == 40
