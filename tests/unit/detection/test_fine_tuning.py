"""Fine-tuning of RF-DETR: what is taken, what is trained, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.detection import coloured_boxes
from tests.unit.detection import rf_detr_files as files
from tests.unit.detection.rf_detr_files import BOXES, MASKS
from tests.unit.detection.test_train_detector import stopped_after
from tests.unit.training.histories import logged
from torchvision import tv_tensors
from torchvision.ops import box_convert

from dinoneck import (
    CheckpointError,
    ConfigError,
    DataError,
    HeadCheckpoint,
    evaluate,
    load_published,
    train,
)
from dinoneck.cli.main import main
from dinoneck.cli.text import show_scores
from dinoneck.data import Preprocessing, box_transforms
from dinoneck.detection import Detector, evaluate_boxes, fine_tuning, train_detector
from dinoneck.detection.fine_tuning import open_init
from dinoneck.detection.head import loss_counts
from dinoneck.detection.training import DetectorTrainer
from dinoneck.images.decoding import read_pixels
from dinoneck.inference.tiles import Tiling
from dinoneck.published.detectors import coco_classes
from dinoneck.training import DetectorRecipe, TrainDetectorConfig, engine, param_groups
from dinoneck.training.config import config_of as config_of_values

pytestmark = pytest.mark.slow

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")

VIT = "model.model.backbone.backbone."
CAT = 17  # COCO's category id, which is the output of the published models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of the short row as the Hub has it."""
    with pytest.MonkeyPatch.context() as patch:
        files.shorten(patch)
        folder = tmp_path_factory.mktemp("hub") / "rf-detr-nano"
        files.write_folder(folder, BOXES)
        yield folder


@pytest.fixture(scope="module")
def mask_folder(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A folder of the short row of masks."""
    mask_folder = tmp_path_factory.mktemp("hub") / "rf-detr-seg-small"
    files.write_folder(mask_folder, MASKS)
    return mask_folder


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose boxes have triangles as masks."""
    file = coloured_boxes.write(tmp_path_factory.mktemp("objects"))
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        entry["segmentation"] = [[left, top, left + width, top, left, top + height]]
        entry["area"] = width * height / 2
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_boxes.write(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def opened_files() -> dict[str, HeadCheckpoint]:
    """What :func:`opened_once` has opened."""
    return {}


@pytest.fixture
def opened_once(opened_files: dict[str, HeadCheckpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the files of the short rows once for all tests that train nothing: each takes a second."""
    load = fine_tuning.load_published

    def load_once(name: str, *, weights: str | None = None) -> HeadCheckpoint:
        if weights is None or name not in (BOXES, MASKS):
            return load(name, weights=weights)
        if weights not in opened_files:
            opened_files[weights] = load(name, weights=weights)
        return opened_files[weights]

    monkeypatch.setattr(fine_tuning, "load_published", load_once)


def config_of(boxes: Path, folder: Path, **groups: Any) -> TrainDetectorConfig:
    plain: dict[str, Any] = {
        "data": {"boxes": str(boxes), "val_boxes": str(boxes)},
        "init": BOXES,
        "weights": str(folder),
        "optim": {"batch_size": 3, "epochs": 1, "seed": 0, "lr": 1e-4},
    }
    for name, value in groups.items():
        plain[name] = {**plain.get(name, {}), **value} if isinstance(value, dict) else value
    return TrainDetectorConfig.from_dict(plain)


def built(folder: Path, boxes: Path, classes: tuple[str, ...]) -> Detector:
    config = config_of(boxes, folder)
    initial = open_init(config)
    assert initial is not None
    return initial.build(initial.completed(config), classes)


def published_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_published(BOXES, weights=folder).build().state_dict()


# what is taken


def test_only_the_rows_of_other_classes_are_new(folder: Path, boxes: Path) -> None:
    detector = built(folder, boxes, ("cell", "cat"))

    published = published_state(folder)
    state = detector.head.state_dict()
    assert state.keys() == published.keys()
    for name, value in state.items():
        if "class_embed." not in name:
            assert torch.equal(value, published[name]), name
            continue
        assert len(value) == 2
        assert torch.equal(value[1], published[name][CAT]), name
        if name.endswith("weight"):
            assert not (published[name] == value[0]).all(dim=1).any(), name
    # 13 groups of proposals and the decoder, weight and bias of each
    assert sum("class_embed." in name for name in state) == 28
    assert detector.classes == ("cell", "cat")


def test_equal_classes_keep_the_whole_head_and_its_predictions(folder: Path, boxes: Path) -> None:
    detector = built(folder, boxes, tuple(coco_classes().values()))

    published = published_state(folder)
    for name, value in detector.head.state_dict().items():
        assert torch.equal(value, published[name]), name
    image = boxes.parent / "0.png"
    [expected] = Detector.load(BOXES, weights=folder).predict(image, min_score=0.1)
    [prediction] = detector.predict(image, min_score=0.1)
    assert len(expected["boxes"]) > 0
    assert torch.equal(prediction["boxes"], expected["boxes"])
    assert torch.equal(prediction["scores"], expected["scores"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_file_of_fewer_bits_is_trained_in_float32(
    folder: Path, boxes: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Of equal classes, so that the detector of the file itself is trained."""
    file = tmp_path / "small.safetensors"
    built(folder, boxes, ("red", "blue")).to(dtype).save(file)

    train_detector(config_of(boxes, folder, init=str(file), weights=None), tmp_path / "run")

    trained = HeadCheckpoint.load(tmp_path / "run/detector.safetensors").state_dict
    in_file = HeadCheckpoint.load(file).state_dict
    for name, value in trained.items():
        assert value.dtype == torch.float32, name
        if name.startswith(VIT):
            assert torch.equal(value, in_file[name].float()), name


def test_a_file_of_another_size_is_loaded_without_a_warning(
    folder: Path, boxes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(boxes, folder, data={"size": 128})
    initial = open_init(config)
    assert initial is not None
    file = tmp_path / "larger.safetensors"
    initial.build(config, ("red",)).save(file)
    of_row = list(caplog.messages)
    caplog.clear()

    Detector.load(file)
    config = config_of(boxes, folder, init=str(file), weights=None)
    from_file = open_init(config)
    assert from_file is not None
    from_file.build(from_file.completed(config), ("red", "blue"))
    at_own_size = list(caplog.messages)
    from_file.build(config.changed(data=config.data.changed(size=96)), ("red", "blue"))

    [line] = [line for line in of_row if "resampled" in line]
    assert line.startswith("RF-DETR was trained on images of 96x96; for 128x128 the positions")
    assert not [line for line in at_own_size if "resampled" in line]
    [line] = [line for line in caplog.messages if "resampled" in line]
    assert line.startswith("RF-DETR was trained on images of 128x128; for 96x96 the positions")


def test_one_line_says_which_rows_are_new(
    folder: Path, boxes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(boxes, folder)
    initial = open_init(config)
    assert initial is not None
    completed = initial.completed(config)

    initial.log_start(initial.build(completed, ("cell", "cat")))
    initial.log_start(initial.build(completed, tuple(coco_classes().values())))

    total = len(published_state(folder))
    [rows, whole] = [line for line in caplog.messages if line.startswith(f"init {BOXES}: ")]
    assert f"{total - 28} of {total} tensors are taken; in the 28 of the class heads" in rows
    assert rows.endswith("rows are taken for cat, and rows are new for cell")
    assert whole == f"init {BOXES}: all {total} tensors are taken"


# losses


def targets_in(side: int, counts: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    targets = []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * side / 2
        extent = torch.rand(count, 2, generator=generator) * side / 3 + 4
        labels = torch.randint(0, 80, (count,), generator=generator)
        targets.append({"boxes": torch.cat((corner, corner + extent), 1), "labels": labels})
    return targets


def test_the_losses_add_up_to_that_of_transformers(folder: Path) -> None:
    model = load_published(BOXES, weights=folder).build().train()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    targets = targets_in(96, (2, 3))
    ids = torch.tensor([*coco_classes()])
    labels = []
    for target in targets:
        shares = box_convert(target["boxes"] / 96, "xyxy", "cxcywh")
        labels.append({"class_labels": ids[target["labels"]], "boxes": shares})

    losses = model(images, targets)

    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou"}
    expected = model.model(pixel_values=images, labels=labels).loss
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-5, atol=0)


def test_losses_of_parts_add_up_to_those_of_the_batch(folder: Path) -> None:
    model = load_published(BOXES, weights=folder).build().train()
    images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    targets = targets_in(96, (2, 0, 3))
    counts = loss_counts(model, targets, (96, 96))
    whole = model(images, targets)

    parts: dict[str, Any] = dict.fromkeys(whole, 0.0)
    for i in range(3):
        share = max(1.0, counts[i]) / sum(counts)
        for name, value in model(images[i : i + 1], targets[i : i + 1]).items():
            parts[name] = parts[name] + share * value

    assert counts == [13 * 2, 0, 13 * 3]
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_a_confident_score_has_a_finite_loss_under_autocast(
    folder: Path, dtype: torch.dtype
) -> None:
    """The loss takes log(1 - sigmoid(logit)), and the sigmoid of 9 is 1 in both dtypes."""
    published = load_published(BOXES, weights=folder).build()
    model = copy.deepcopy(published).train()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    targets = targets_in(96, (2, 3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class_embed" in name and name.endswith("weight"):
                parameter.zero_()
            elif "class_embed" in name:
                parameter[CAT] = 9.0
    expected = model(images, targets)

    with torch.autocast("cpu", dtype):
        losses = model(images, targets)

    assert expected["loss_ce"].isfinite()
    torch.testing.assert_close(losses["loss_ce"].float(), expected["loss_ce"], rtol=0.05, atol=0)


def test_targets_in_eval_mode_are_refused(folder: Path) -> None:
    model = load_published(BOXES, weights=folder).build().eval()

    with pytest.raises(ConfigError, match="targets are given in eval mode"):
        model(torch.rand(1, 3, 96, 96), targets_in(96, (1,)))


# training


def test_a_frozen_vit_keeps_its_bits_and_the_file_is_an_ordinary_detector(
    folder: Path, boxes: Path, tmp_path: Path
) -> None:
    config = config_of(boxes, folder, optim={"epochs": 2, "ema_decay": 0.9})

    report = train_detector(config, tmp_path / "run")

    published = published_state(folder)
    file = tmp_path / "run/detector.safetensors"
    checkpoint = HeadCheckpoint.load(file)
    num_trained = 0
    for name, value in checkpoint.state_dict.items():
        if name.startswith(VIT):
            assert torch.equal(value, published[name]), name
        elif "class_embed." not in name:
            num_trained += not torch.equal(value, published[name])
    assert num_trained > 100
    origin = checkpoint.meta["extra"]["init"]
    assert (origin["name"], origin["license"]) == (BOXES, "Apache-2.0")
    assert origin["sha256"] == load_published(BOXES, weights=folder).meta["extra"]["sha256"]
    assert report["init"] == origin
    assert checkpoint.meta["license"] == "Apache-2.0"
    assert checkpoint.meta["training"]["metrics"]["AP"] == report["best"]["AP"]
    detector = Detector.load(file)
    assert detector.classes == ("red", "blue")
    assert detector.size == (96, 96)
    assert report["config"]["data"]["size"] == [96, 96]
    if report["best"]["min_score"]:
        assert detector.min_score == report["best"]["min_score"]
    assert evaluate_boxes(detector, boxes)["AP"] == pytest.approx(report["best"]["AP"], abs=1e-6)
    detector.save(tmp_path / "again.safetensors")
    again = Detector.load(tmp_path / "again.safetensors")
    assert again.checkpoint().meta["extra"] == checkpoint.meta["extra"]
    [first] = detector.predict(boxes.parent / "0.png", min_score=0.0)
    [second] = again.predict(boxes.parent / "0.png", min_score=0.0)
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["scores"], second["scores"])


def test_the_loss_falls(folder: Path, boxes: Path, tmp_path: Path) -> None:
    config = config_of(boxes, folder, optim={"epochs": 12, "lr": 3e-4})

    train_detector(config, tmp_path / "run")

    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert np.mean([row["loss"] for row in rows[-3:]]) < 0.8 * rows[0]["loss"]
    assert {row["stage"] for row in rows} == {"all"}


def test_the_recipe_is_the_publishers_where_the_config_has_none(folder: Path, boxes: Path) -> None:
    plain = config_of(boxes, folder).changed(optim=DetectorRecipe())
    initial = open_init(plain)
    assert initial is not None

    optim = initial.completed(plain).optim
    stated = initial.completed(config_of(boxes, folder, optim={"lr": 3e-4, "clip_norm": 5.0}))

    assert (optim.lr, optim.weight_decay, optim.clip_norm) == (1e-4, 1e-4, 0.1)
    assert (stated.optim.lr, stated.optim.clip_norm) == (3e-4, 5.0)


def test_one_line_says_which_values_are_the_publishers(
    folder: Path, boxes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A config has a value for every option: 1e-3, the default of other detectors, is none that is stated."""
    config = config_of(boxes, folder, optim={"lr": 1e-3, "clip_norm": 5.0})
    initial = open_init(config)
    assert initial is not None

    initial.log_recipe(config.optim, initial.completed(config).optim)
    stated = config_of(boxes, folder, optim={"lr": 3e-4, "clip_norm": 5.0, "weight_decay": 0.0})
    initial.log_recipe(stated.optim, initial.completed(stated).optim)

    [line] = [line for line in caplog.messages if line.startswith(f"init {BOXES}: ")]
    assert "its publisher's lr 0.0001, weight_decay 0.0001, in place of 0.001, 0.01" in line


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[DetectorRecipe]:
    """The recipes of the trainings that follow, of which none is trained."""
    recipes: list[DetectorRecipe] = []

    def keep(trainer: DetectorTrainer, *, resume: bool = True) -> dict[str, Any]:
        recipes.append(trainer.config.optim)
        raise DataError("no training here")

    monkeypatch.setattr(DetectorTrainer, "train", keep)
    return recipes


@pytest.mark.usefixtures("opened_once")
def test_what_is_stated_wins_over_the_publisher_also_where_it_is_a_default(
    folder: Path, boxes: Path, tmp_path: Path, recipes: list[DetectorRecipe]
) -> None:
    data = {"boxes": str(boxes), "val_boxes": str(boxes)}
    start = {"init": BOXES, "weights": str(folder)}
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"data": data, **start, "optim": {"lr": 1e-3}}))
    words = ["--boxes", str(boxes), "--val-boxes", str(boxes), "--init", BOXES]
    words += ["--weights", str(folder), "--out", str(tmp_path / "run")]
    out = tmp_path / "run"
    config = TrainDetectorConfig.from_dict({"data": data, **start})

    assert main(["train", *words, "--lr", "1e-3"]) == 1
    assert main(["train", *words, "--lr=1e-3"]) == 1
    assert main(["train", str(file), "--out", str(out)]) == 1
    with pytest.raises(DataError, match="no training here"):
        train(out=out, **data, **start, lr=1e-3)
    with pytest.raises(DataError, match="no training here"):
        train({"data": data, **start, "optim": {"lr": 1e-3}}, out)
    with pytest.raises(DataError, match="no training here"):
        train(config, out, lr=1e-3)
    with pytest.raises(DataError, match="no training here"):
        train_detector(config, out, stated=["lr"])

    assert len(recipes) == 7
    for recipe in recipes:
        assert (recipe.lr, recipe.weight_decay, recipe.clip_norm) == (1e-3, 1e-4, 0.1)


@pytest.mark.usefixtures("opened_once")
def test_flags_are_stated_beside_those_of_the_file(
    folder: Path, boxes: Path, tmp_path: Path, recipes: list[DetectorRecipe]
) -> None:
    file = tmp_path / "run.yaml"
    data = {"boxes": str(boxes), "val_boxes": str(boxes)}
    values = {"data": data, "init": BOXES, "weights": str(folder), "optim": {"lr": 1e-3}}
    file.write_text(json.dumps(values))

    words = ["train", str(file), "--out", str(tmp_path / "run"), "--clip-norm", "1.0"]
    assert main(words) == 1

    [recipe] = recipes
    assert (recipe.lr, recipe.weight_decay, recipe.clip_norm) == (1e-3, 1e-4, 1.0)


@pytest.mark.usefixtures("opened_once")
def test_objects_are_trained_with_the_rate_that_is_stated(
    mask_folder: Path, objects: Path, tmp_path: Path, recipes: list[DetectorRecipe]
) -> None:
    words = ["--instances", str(objects), "--init", MASKS, "--weights", str(mask_folder)]
    words += ["--folds", "3"]

    assert main(["train", *words, "--out", str(tmp_path / "run"), "--lr", "1e-3"]) == 1

    [recipe] = recipes
    assert (recipe.lr, recipe.weight_decay, recipe.clip_norm) == (1e-3, 1e-4, 0.1)


def test_objects_open_what_they_start_from_once(
    mask_folder: Path,
    objects: Path,
    tmp_path: Path,
    recipes: list[DetectorRecipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    load = fine_tuning.load_published

    def count(name: str, **options: Any) -> HeadCheckpoint:
        opened.append(name)
        return load(name, **options)

    monkeypatch.setattr(fine_tuning, "load_published", count)
    words = ["--instances", str(objects), "--init", MASKS, "--weights", str(mask_folder)]
    words += ["--folds", "3"]

    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 1

    assert opened == [MASKS]
    assert len(recipes) == 1


@pytest.mark.parametrize(
    "groups",
    [{"backbone": {"unfreeze_last": 1}}, {"optim": {"freeze": ["0=last:1"]}}],
    ids=["unfreeze_last", "freeze"],
)
def test_the_last_block_is_trained_where_the_config_says_so(
    folder: Path, boxes: Path, tmp_path: Path, groups: dict[str, Any]
) -> None:
    groups = {**groups, "optim": {"warmup": 0.0, **groups.get("optim", {})}}

    train_detector(config_of(boxes, folder, **groups), tmp_path / "run")

    published = published_state(folder)
    trained = HeadCheckpoint.load(tmp_path / "run/detector.safetensors").state_dict
    changed = set()
    for name in published:
        if name.startswith(VIT) and not torch.equal(trained[name], published[name]):
            changed.add(name.removeprefix(VIT))
    assert {name for name in changed if "weight" in name} >= {
        "encoder.layer.3.attention.q_proj.weight",
        "layernorm.weight",
    }
    assert all(name.startswith(("encoder.layer.3.", "layernorm.")) for name in changed)


def test_layer_decay_slows_the_early_blocks(folder: Path, boxes: Path) -> None:
    detector = built(folder, boxes, ("red",))

    groups = param_groups(detector, lr=1e-3, backbone_lr=1e-4, layer_decay=0.5, include_frozen=True)

    rates = {group["name"]: group["lr"] for group in groups}
    # four blocks: embeddings are layer 0, block i is layer i + 1, the norm is in the last layer
    assert rates["backbone.embeddings.no_decay"] == 1e-4 * 0.5**4
    assert rates["backbone.block0.decay"] == 1e-4 * 0.5**3
    assert rates["backbone.block3.decay"] == 1e-4
    assert rates["backbone.norm.no_decay"] == 1e-4
    assert rates["head.decay"] == 1e-3
    in_groups = sum(len(group["params"]) for group in groups)
    assert in_groups == len([*detector.parameters()])
    scales = {id(block.layer_scale1.lambda1) for block in detector.own_vit.blocks}
    without_decay = set()
    for group in groups:
        if group["weight_decay"] == 0:
            without_decay.update(map(id, group["params"]))
    assert scales <= without_decay


def test_a_killed_run_goes_on_to_the_same_file(
    folder: Path, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = {"epochs": 3, "freeze": ["0=all", "1=last:1"], "layer_decay": 0.8, "ema_decay": 0.9}
    config = config_of(boxes, folder, optim=optim)
    train_detector(config, tmp_path / "whole")
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    with stopped_after(epochs=2, by=DataError("no power")):
        train_detector(config, tmp_path / "cut")
    other = tmp_path / "other"
    files.write_folder(other, BOXES, seed=3)
    with pytest.raises(CheckpointError, match=r"init\.sha256"):
        train_detector(config.changed(weights=str(other)), tmp_path / "cut")

    train_detector(config, tmp_path / "cut")

    assert logged(tmp_path / "cut/log.jsonl") == logged(tmp_path / "whole/log.jsonl")
    name = "detector.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_fine_tuned_file_is_trained_further(
    folder: Path, boxes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_detector(config_of(boxes, folder).changed(license="MIT"), tmp_path / "first")
    first = tmp_path / "first/detector.safetensors"
    config = config_of(boxes, folder).changed(init=str(first), weights=None)

    report = train_detector(config, tmp_path / "second")

    digest = HeadCheckpoint.load(first).meta["digest"]
    assert report["init"]["name"] == "detector.safetensors"
    assert report["init"]["digest"] == digest
    assert report["init"]["license"] == "MIT"
    assert report["init"]["extra"]["init"]["name"] == BOXES
    assert any(line.endswith("tensors are taken") for line in caplog.messages)
    assert any("it was trained on 3 of the 3 images" in line for line in caplog.messages)
    meta = HeadCheckpoint.load(tmp_path / "second/detector.safetensors").meta
    assert meta["license"] == "MIT"


def test_the_shell_a_file_and_python_are_one_training(
    folder: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"data: {{boxes: {boxes}, val_boxes: {boxes}}}\n"
        f"init: {BOXES}\nweights: {folder}\noptim: {{batch_size: 3, epochs: 1}}\n"
    )
    words = ["--boxes", str(boxes), "--val-boxes", str(boxes), "--init", BOXES]
    words += ["--weights", str(folder), "--batch-size", "3", "--epochs", "1"]

    assert main(["train", *words, "--out", str(tmp_path / "shell")]) == 0
    assert main(["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "file")]) == 0
    result = train(
        out=tmp_path / "python",
        boxes=str(boxes),
        val_boxes=str(boxes),
        init=BOXES,
        weights=str(folder),
        batch_size=3,
        epochs=1,
    )

    assert "best epoch (1)" in capsys.readouterr().out
    name = "detector.safetensors"
    of_shell = (tmp_path / "shell" / name).read_bytes()
    assert (tmp_path / "file" / name).read_bytes() == of_shell
    assert (tmp_path / "python" / name).read_bytes() == of_shell
    assert result["init"]["name"] == BOXES


def test_images_are_stretched_as_the_detector_does(boxes: Path) -> None:
    image = tv_tensors.Image(read_pixels(boxes.parent / "0.png"))
    box = tv_tensors.BoundingBoxes([[1, 2, 9, 9]], format="XYXY", canvas_size=(96, 128))
    recipe = Preprocessing(
        patch_size=16, size=(64, 64), resize="stretch", interpolation="bilinear_aliased"
    )

    transform = box_transforms(64, train=False, antialias=False, mean=None, std=None)
    resized, _ = transform(image, {"boxes": box})

    expected = recipe.fitted(boxes.parent / "0.png")
    torch.testing.assert_close(resized.as_subclass(torch.Tensor), expected, atol=1e-6, rtol=0)


# masks


def test_objects_train_a_detector_of_masks(
    mask_folder: Path, objects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"init": MASKS, "weights": str(mask_folder), "epochs": 1}
    options |= {"batch_size": 2, "seed": 1}  # the image that is held out has objects

    result = train(out=tmp_path / "run", instances=str(objects), folds=3, **options)

    assert result.best is not None
    assert result.best.target == "masks"
    assert result["scored"] == "masks"
    assert result["init"]["name"] == MASKS
    row = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert {"loss_mask_ce", "loss_mask_dice", "loss_ce", "loss_bbox", "loss_giou"} <= set(row)
    detector = result.predictor()
    assert detector.has_masks
    published = load_published(MASKS, weights=mask_folder).build().state_dict()
    for name, value in detector.head.state_dict().items():
        if name.startswith(VIT.replace("model.", "model.model.", 1)):
            assert torch.equal(value, published[name]), name
    [prediction] = detector.predict(objects.parent / "0.png", min_score=0.0)
    assert prediction["masks"].shape[1:] == (96, 128)
    held_out = scores_of_held_out(detector, objects, tmp_path)
    assert held_out["AP"] == pytest.approx(result["best"]["AP"], abs=1e-6)
    assert isinstance(config_of_values(result["config"], "report.json"), TrainDetectorConfig)
    words = ["viz", "report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]
    assert main(words) == 0
    show_scores(result)
    assert "held-out masks" in capsys.readouterr().out


def test_objects_train_a_detector_of_masks_on_tiles(
    mask_folder: Path, objects: Path, tmp_path: Path
) -> None:
    """A detector of other images, of 96 x 128 px, is trained on tiles of 72 x 72 px."""
    options: dict[str, Any] = {"init": MASKS, "weights": str(mask_folder), "epochs": 1}
    options |= {"batch_size": 2, "seed": 1, "tile": 72}

    result = train(out=tmp_path / "run", instances=str(objects), folds=3, **options)

    # the longest box has 50 px: 36 px overlap, rows 0 and 24, columns 0, 28 and 56
    assert result["tiles"]["train"] == 2 * 2 * 3
    detector = result.predictor()
    assert detector.tiling == Tiling((72, 72), 0.2, longest_box=50.0)
    held_out = scores_of_held_out(detector, objects, tmp_path)
    for name in ("AP", "AP50", "AR100", "F1"):
        assert held_out[name] == pytest.approx(result["best"][name], abs=1e-6)
    [prediction] = detector.predict(objects.parent / "0.png", min_score=0.0)
    assert np.asarray(prediction["masks"]).shape[1:] == (96, 128)


def scores_of_held_out(detector: Detector, objects: Path, folder: Path) -> dict[str, Any]:
    """The scores of the image that is held out with seed 1."""
    row = int(np.random.default_rng(1).permutation(3)[0])
    content = json.loads(objects.read_text())
    image = content["images"][row]
    shown = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
    assert shown
    content |= {"images": [image], "annotations": shown}
    file = folder / "held_out.json"
    file.write_text(json.dumps(content))
    scores: dict[str, Any] = evaluate(detector, objects.parent, file)["masks"]["head"]
    return scores


def test_boxes_with_masks_train_a_detector_of_masks(
    mask_folder: Path, objects: Path, tmp_path: Path
) -> None:
    config = config_of(objects, mask_folder, init=MASKS)

    report = train_detector(config, tmp_path / "run")

    assert report["scored"] == "masks"
    assert Detector.load(tmp_path / "run/detector.safetensors").has_masks


@pytest.mark.usefixtures("opened_once")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, r"or name the file of objects as data\.boxes .*in the place of --instances"),
        ({"folds": 9}, r"3 images, too few .*; name the file of objects as data\.boxes"),
        ({"init": BOXES}, "which gives boxes alone; take a detector of masks"),
        ({"mixup_alpha": 0.4}, r"optim\.mixup_alpha is 0\.4, and has no effect with"),
        ({"patience": 3}, r"optim\.patience is 3, .*--patience"),
        ({"resize": "pad"}, r"data\.resize is 'pad'"),
        ({"fold": 1}, r"folds\.only is 1"),
        ({"head": "mask"}, r"head is {'type': 'mask'}"),
        ({"hidden_dim": 64}, r"head is .*--hidden-dim"),
        ({"lora": 4}, r"backbone\.lora is 4"),
        ({"init": None}, r"weights is .*, and init is None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_has_no_effect_on_a_detector_of_masks_is_refused(
    folder: Path,
    mask_folder: Path,
    objects: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    weights = folder if options.get("init") == BOXES else mask_folder
    named: dict[str, Any] = {"init": MASKS, "weights": str(weights), **options}

    with pytest.raises(ConfigError, match=message):
        train(out=tmp_path / "run", instances=str(objects), **named)

    assert not (tmp_path / "run").exists()


def test_a_detector_of_masks_does_not_learn_boxes_alone(
    mask_folder: Path, boxes: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"5 of 5 objects cannot be used \(5 without mask\)"):
        train_detector(config_of(boxes, mask_folder, init=MASKS), tmp_path / "run")
    model = load_published(MASKS, weights=mask_folder).build().train()
    with pytest.raises(ConfigError, match="targets have no masks"):
        model(torch.rand(1, 3, 72, 72), targets_in(72, (1,)))


def test_numbers_do_not_start_from_a_detector(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'rf_detr_nano', a published detector, and needs data"):
        train(out=tmp_path / "run", csv="cover.csv", targets=["crop"], init=BOXES)


# refusals


@pytest.mark.usefixtures("opened_once")
@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"backbone": {"lora": 4}}, ("backbone.lora is 4", "--unfreeze-last")),
        (
            {"backbone": {"name": "dinov3_vits16"}},
            ("backbone.name is 'dinov3_vits16'", "--backbone"),
        ),
        ({"head": {"type": "sta_pyramid"}}, ("head is {'type': 'sta_pyramid'}", "--head")),
        ({"detector": {"name": "dfine"}}, ("detector.name is 'dfine'", "--detector")),
        ({"detector": {"queries": 30}}, ("detector.queries is 30", "--queries")),
        ({"detector": {"checkpointing": True}}, ("detector.checkpointing is True",)),
        ({"data": {"size": [100, 100]}}, ("size is 100x100", "multiple of 32", "128x128")),
        ({"data": {"size": [96, 128]}}, ("size is 96x128", "takes squares")),
        ({"data": {"size": [64, 64]}}, ("gives 16 patches", "expected 20 (queries)")),
        ({"init": "dinov2_vits14_nyu_dpt", "weights": None}, ("a published head of depth",)),
        ({"init": None}, ("weights is", "and init is None", "--init rf_detr_small")),
        ({"optim": {"backbone_lr": 1e-5}}, ("optim.backbone_lr is 1e-05", "--unfreeze-last")),
        (
            {"optim": {"layer_decay": 0.8, "freeze": ["0=all"]}},
            ("optim.layer_decay is 0.8", "--freeze"),
        ),
        ({"optim": {"freeze": ["0=last:5"]}}, ("last:5", "4 blocks", "'last:4'")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    folder: Path, boxes: Path, tmp_path: Path, groups: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = config_of(boxes, folder, **groups)

    with pytest.raises(ConfigError) as error:
        train_detector(config, tmp_path / "run")

    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "run").exists()


def test_two_ways_to_say_which_blocks_are_trained_are_refused(folder: Path, boxes: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.unfreeze_last is 2, and optim\.freeze is"):
        config_of(boxes, folder, backbone={"unfreeze_last": 2}, optim={"freeze": ["0=all"]})


def test_missing_weights_are_named_before_the_images_are_read(
    boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--boxes", str(boxes), "--init", BOXES, "--weights", str(tmp_path / "nothing")]

    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 1

    assert "nothing does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_detector_on_a_backbone_trains_its_last_blocks_from_the_first_epoch(
    boxes: Path, tmp_path: Path
) -> None:
    config = TrainDetectorConfig.from_dict(
        {
            "data": {"boxes": str(boxes), "val_boxes": str(boxes), "size": [96, 128]},
            "backbone": {"name": "dinoneck_tiny", "layers": [1, 3, 5], "unfreeze_last": 2},
            "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
            "optim": {"batch_size": 2, "epochs": 1},
        }
    )

    train_detector(config, tmp_path / "run")

    row = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert row["stage"] == "last:2"
