"""train_detector learns, resumes to the same numbers, and refuses what has no effect."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tests import kit
from tests.process_group import ROOT, printed_by
from tests.unit.detection import coloured_boxes
from tests.unit.training.histories import logged

from dinoneck import Backbone, CheckpointError, DataError, HeadCheckpoint
from dinoneck.detection import Detector, evaluate_boxes, train_detector, training
from dinoneck.detection.training import build_detector
from dinoneck.training import TrainDetectorConfig, engine, folder

pytestmark = pytest.mark.slow

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")

SCORES = ("AP", "AP50", "AP75")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_boxes.write(tmp_path_factory.mktemp("images"))


def config_of(boxes: Path, **groups: dict[str, Any]) -> TrainDetectorConfig:
    plain: dict[str, dict[str, Any]] = {
        "data": {"boxes": str(boxes), "val_boxes": str(boxes), "size": [96, 128]},
        "backbone": {"name": "dinoneck_tiny", "layers": [1, 3, 5]},
        "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
        "detector": {"variant": "tiny"},
        "optim": {"batch_size": 2, "epochs": 1, "seed": 0},
    }
    return TrainDetectorConfig.from_dict(
        {key: {**own, **groups.get(key, {})} for key, own in {**groups, **plain}.items()}
    )


class Stop(logging.Handler):
    """Raises an error where the log reports an epoch."""

    def __init__(self, epoch: int, error: BaseException) -> None:
        super().__init__()
        self.epoch = epoch
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(f"epoch {self.epoch + 1} of "):
            raise self.error


@contextlib.contextmanager
def stopped_after(epochs: int, by: BaseException) -> Iterator[None]:
    """Stop a training by an error after so many epochs; the block has to end with that error."""
    logger = logging.getLogger("dinoneck")
    level = logger.level
    stop = Stop(epochs - 1, by)
    logger.addHandler(stop)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(type(by)) as raised:
            yield
        assert raised.value is by
    finally:
        logger.removeHandler(stop)
        logger.setLevel(level)


def test_a_killed_run_goes_on_to_the_same_numbers(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"checkpointing": True}
    optim = {
        "freeze": ["0=all", "1=last:2"],
        "layer_decay": 0.8,
        "epochs": 3,
        "ema_decay": 0.9,
        "amp": "bf16",
    }
    config = config_of(boxes, detector=own, optim=optim)
    report, whole, cut = (
        train_detector(config, tmp_path / "whole"),
        tmp_path / "whole",
        tmp_path / "cut",
    )
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["all", "last:2", "last:2"]
    assert {"classification", "bbox_regression", "bbox_ctrness", "AP50", "per_class"} <= rows[
        0
    ].keys()
    assert report["best"]["AP"] == max(row["AP"] for row in rows)
    assert json.loads((whole / "report.json").read_text()) == json.loads(json.dumps(report))
    files = [
        "data.jpg",
        "data.json",
        "data.txt",
        "detector.safetensors",
        "log.jsonl",
        "report.json",
    ]
    files += ["trained_on.csv"]
    assert sorted(contents(whole)) == files
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)

    with stopped_after(epochs=2, by=DataError("no power")):
        train_detector(config, cut)
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.001 / 0.01"):
        train_detector(config_of(boxes, detector=own, optim={**optim, "lr": 1e-2}), cut)
    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match=r"backbone record\.weights_sha256"),
    ):
        recorded = Backbone.record
        patch.setattr(
            Backbone, "record", lambda own: recorded(own) | {"weights_sha256": "of another file"}
        )
        train_detector(config, cut)
    content = boxes.read_text()
    boxes.write_text(content.replace("[8, 10, 40, 30]", "[8, 10, 20, 30]"))
    with pytest.raises(CheckpointError, match="hash of images and boxes"):
        train_detector(config, cut)
    boxes.write_text(content)
    train_detector(config, cut)
    assert logged(cut / "log.jsonl") == logged(whole / "log.jsonl")
    assert contents(cut)["detector.safetensors"] == contents(whole)["detector.safetensors"]
    scores = evaluate_boxes(Detector.load(whole / "detector.safetensors"), boxes)
    assert {key: scores[key] for key in SCORES} == pytest.approx(
        {key: report["best"][key] for key in SCORES}, abs=1e-6
    )


@pytest.mark.parametrize("replaced", ["train", "held out"])
def test_an_image_that_was_replaced_does_not_continue_a_run(
    replaced: str, boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    shutil.copytree(boxes.parent, tmp_path / "train")
    shutil.copytree(boxes.parent, tmp_path / "held out")
    data = {"val_boxes": str(tmp_path / "held out" / boxes.name)}
    config = config_of(tmp_path / "train" / boxes.name, data=data, optim={"epochs": 2})
    with stopped_after(epochs=1, by=DataError("no power")):
        train_detector(config, tmp_path / "run")
    image = min((tmp_path / replaced).rglob("*.png"))
    pixels = np.asarray(Image.open(image))
    Image.fromarray(255 - pixels).save(image)

    with pytest.raises(CheckpointError, match="hash of image files"):
        train_detector(config, tmp_path / "run")

    Image.fromarray(pixels).save(image)
    train_detector(config, tmp_path / "run")
    assert (tmp_path / "run" / "report.json").exists()


def test_an_unfinished_run_of_0_3_continues_without_a_hash_of_its_images(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    config = config_of(boxes, optim={"epochs": 2})
    begin = folder.begin

    def begin_as_0_3(path: Path, values: dict[str, Any], *, resume: bool) -> dict[str, Any]:
        values_of_0_3 = {**values}
        del values_of_0_3[folder.IMAGE_FILES]
        return begin(path, values_of_0_3, resume=resume)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "begin", begin_as_0_3)
        with stopped_after(epochs=1, by=DataError("no power")):
            train_detector(config, tmp_path / "run")

    train_detector(config, tmp_path / "run")

    assert len(logged(tmp_path / "run" / "log.jsonl")) == 2


def lora_config(boxes: Path) -> TrainDetectorConfig:
    backbone = {"name": "dinoneck_tiny", "layers": [1, 3, 5], "lora": 2}
    optim = {"freeze": ["0=all"], "epochs": 3, "backbone_lr": 1e-2, "ema_decay": 0.9}
    config = config_of(boxes, optim=optim).to_dict()
    return TrainDetectorConfig.from_dict({**config, "backbone": backbone})


def test_a_detector_trains_lora_weights_and_its_file_holds_them_and_no_backbone(
    boxes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="needs dinoneck[lora]")

    report = train_detector(lora_config(boxes), tmp_path / "run")

    state = load_file(tmp_path / "run" / "detector.safetensors")
    products = [value for name, value in state.items() if name.endswith(".lora_B")]
    assert len(products) == 2 * 6  # attn.qkv and attn.proj of six blocks
    assert all(value.abs().max() > 0 for value in products)  # they start at zero
    assert {name.partition("/")[0].partition(".")[0] for name in state} == {"adapter", "model"}
    loaded = Detector.load(tmp_path / "run" / "detector.safetensors")
    assert loaded.backbone.record()["adapter"]["rank"] == 2
    assert evaluate_boxes(loaded, boxes)["AP"] == pytest.approx(report["best"]["AP"], abs=1e-6)


def test_a_killed_run_with_lora_weights_goes_on_to_the_same_file(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft", reason="needs dinoneck[lora]")
    config = lora_config(boxes)
    train_detector(config, tmp_path / "whole")
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    with stopped_after(epochs=2, by=DataError("no power")):
        train_detector(config, tmp_path / "cut")

    train_detector(config, tmp_path / "cut")

    assert logged(tmp_path / "cut" / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")
    name = "detector.safetensors"
    assert contents(tmp_path / "cut")[name] == contents(tmp_path / "whole")[name]


def test_the_file_of_a_detector_states_the_licence_that_the_run_states(
    boxes: Path, tmp_path: Path
) -> None:
    train_detector(config_of(boxes).changed(license="MIT"), tmp_path / "run")

    meta = HeadCheckpoint.load(tmp_path / "run" / "detector.safetensors").meta
    assert meta["license"] == "MIT"


def test_held_out_images_are_scored_in_every_second_epoch_where_that_is_asked_for(
    boxes: Path, tmp_path: Path
) -> None:
    config = config_of(boxes, optim={"epochs": 2}, detector={"eval_every": 2})

    train_detector(config, tmp_path / "run")

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert ["AP" in json.loads(line) for line in lines] == [False, True]


@pytest.mark.parametrize(
    ("neck", "expected"),
    [
        pytest.param(
            {"type": "simple_pyramid"},
            {"out_channels": 128, "scales": [2.0, 1.0, 0.5]},
            id="a pyramid of scales",
        ),
        pytest.param(
            {"type": "spatial_tuning_adapter"}, {"out_channels": 128}, id="an adapter without"
        ),
        pytest.param(
            {"type": "simple_pyramid", "out_channels": 64, "scales": [2.0, 1.0, 0.5]},
            {"out_channels": 64},
            id="stated",
        ),
    ],
)
def test_the_neck_of_a_detr_has_the_channels_and_the_scales_of_its_encoder(
    neck: dict[str, Any], expected: dict[str, Any], boxes: Path
) -> None:
    pytest.importorskip("transformers")
    config = config_of(boxes, detector={"name": "dfine", "encoder_layers": 2})
    config = config.changed(head=neck)

    detector = build_detector(config, ("red", "blue"))

    built = detector.head.config["neck"]["config"]
    assert {name: built[name] for name in expected} == expected
    assert detector.head.model.config.encoder_layers == 2


def test_a_killed_run_whose_steps_have_parts_goes_on_to_the_same_file(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(boxes, optim={"epochs": 2, "accumulate": 2, "ema_decay": 0.9})
    assert config.optim.batch_size >= 2
    train_detector(config, tmp_path / "whole")
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    with stopped_after(epochs=1, by=DataError("no power")):
        train_detector(config, tmp_path / "cut")

    train_detector(config, tmp_path / "cut")

    assert logged(tmp_path / "cut" / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")
    name = "detector.safetensors"
    assert contents(tmp_path / "cut")[name] == contents(tmp_path / "whole")[name]


@pytest.mark.parametrize("lora", [2, None])
def test_a_detector_starts_as_the_detector_of_the_earlier_file(
    boxes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, lora: int | None
) -> None:
    """It predicts the same boxes, by what was trained of the ViT too."""
    if lora is not None:
        pytest.importorskip("peft", reason="needs dinoneck[lora]")
    plan = ["0=last:1"] if lora is None else ["0=all"]
    optim = {"freeze": plan, "lr": 1e-2, "backbone_lr": 1e-2}
    config = config_of(boxes, optim=optim, backbone={"lora": lora})
    train_detector(config, tmp_path)
    earlier = Detector.load(tmp_path / "detector.safetensors")

    started = training.build_detector(
        config.changed(init=str(tmp_path / "detector.safetensors")), earlier.classes
    )

    image = boxes.parent / "0.png"
    [before] = earlier.predict(image, min_score=0.0)
    [now] = started.predict(image, min_score=0.0)
    assert len(before["boxes"]) > 0
    np.testing.assert_array_equal(now["boxes"], before["boxes"])
    np.testing.assert_array_equal(now["scores"], before["scores"])
    [line] = [line for line in caplog.messages if "are new;" in line]
    assert line.endswith("tensors are taken, 0 are new; 0 of the file are left out")


def test_lora_weights_of_a_detector_that_starts_from_a_file_are_trained(
    boxes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="needs dinoneck[lora]")
    train_detector(lora_config(boxes), tmp_path)
    config = lora_config(boxes).changed(init=str(tmp_path / "detector.safetensors"))

    started = training.build_detector(
        config, Detector.load(tmp_path / "detector.safetensors").classes
    )

    trainable = [name for name, p in started.backbone.named_parameters() if p.requires_grad]
    assert len([name for name in trainable if "lora_" in name]) == 2 * 2 * 6


def test_a_detector_does_not_start_from_the_tuned_blocks_of_another_vit(
    boxes: Path, tmp_path: Path
) -> None:
    train_detector(config_of(boxes, optim={"freeze": ["0=last:1"]}), tmp_path / "first")
    first = tmp_path / "first" / "detector.safetensors"
    config = config_of(boxes, backbone={"seed": 3}).changed(init=str(first))

    with pytest.raises(CheckpointError, match="another ViT than this run's"):
        train_detector(config, tmp_path / "second")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a run, without those of an unfinished one."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if "unfinished" not in path.parts
    }


def test_an_interrupted_overwrite_goes_on(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier results are whole in a folder of their own; none stands next to the files of the new run."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    run = tmp_path / "run"
    first = config_of(boxes)
    second = config_of(boxes, optim={"lr": 3e-3})
    train_detector(first, run)
    before = contents(run)
    train_detector(second, tmp_path / "whole")
    with stopped_after(epochs=1, by=KeyboardInterrupt()):
        train_detector(second, run, overwrite=True)
    assert contents(run / "earlier") == before
    assert {path.name for path in run.glob("*") if path.is_file()} <= {
        "data.json",
        "data.txt",
        "data.jpg",
    }
    Detector.load(run / "earlier" / "detector.safetensors")
    train_detector(second, run)
    after, whole = contents(run), contents(tmp_path / "whole")
    assert after.keys() == whole.keys() and not (run / "unfinished").exists()
    assert after["detector.safetensors"] == whole["detector.safetensors"]
    assert logged(run / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")
    (run / "report.json").unlink()
    with pytest.raises(DataError, match=r"detector\.safetensors.*overwrite=True"):
        train_detector(second, run)


def test_a_run_that_an_error_ended_before_its_first_epoch_does_not_block_another(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "score_boxes", _no_scores)
        with pytest.raises(RuntimeError, match="no scores"):
            train_detector(config_of(boxes), tmp_path / "run")
    corrected = config_of(boxes, optim={"lr": 2e-3})
    report = train_detector(corrected, tmp_path / "run")
    assert report["config"]["optim"]["lr"] == 2e-3


def _no_scores(*_: Any) -> Any:
    raise RuntimeError("no scores")


def test_a_missing_extra_is_named_before_a_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("pycocotools", "faster_coco_eval"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pycocotools is not installed.*dinoneck\[detection\]"):
        train_detector(config_of(tmp_path / "missing.json"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_verb_trains(boxes: Path, tmp_path: Path) -> None:
    words = (
        "--size 96x128 --backbone dinoneck_tiny --epochs 1 --batch-size 2 --val-boxes "
        f"{boxes} --hidden-dim 32"
    )
    run = [
        "train",
        "--boxes",
        boxes,
        "--detector",
        "retinanet",
        *words.split(),
        "--out",
        tmp_path / "run",
    ]
    assert "held-out boxes" in kit.cli(*run, "--head", "spatial_tuning_adapter").out
    assert "retinanet" in kit.cli("inspect", tmp_path / "run" / "detector.safetensors").out


# enough steps to learn two images by heart; rates and clipping are those of the recipe of each
FCOS = {"epochs": 150, "lr": 1e-3, "backbone_lr": 1e-3, "clip_norm": 5.0}
DFINE = {"epochs": 160, "lr": 2e-3, "backbone_lr": 2e-3, "clip_norm": 0.1}


@pytest.mark.parametrize(
    ("detector", "recipe", "size"),
    [
        pytest.param({"name": "fcos"}, FCOS, [96, 128], id="fcos"),
        pytest.param({"name": "dfine", "queries": 30}, DFINE, [64, 96], id="dfine"),
    ],
)
def test_a_pair_of_images_is_learned_by_heart(
    detector: dict[str, Any],
    recipe: dict[str, Any],
    size: list[int],
    boxes: Path,
    tmp_path: Path,
) -> None:
    content = json.loads(boxes.read_text())
    content["images"] = content["images"][:2]  # the third one has no boxes
    two = boxes.parent / "two.json"
    two.write_text(json.dumps(content))
    config = config_of(
        boxes,
        data={"boxes": str(two), "val_boxes": str(two), "size": size},
        detector={"augment": "none", "eval_every": 20, **detector},
        optim={"freeze": ["0=none"], **recipe},  # the backbone learns from the first epoch on
    )

    report = train_detector(config, tmp_path)

    assert report["untrained"]["AP"] < 0.1  # what is found was learned
    assert report["best"]["AP"] >= 0.75  # 0.81 to 1.0 from one CPU to another


def test_the_file_holds_the_weights_of_the_epoch_with_the_best_precision(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later weights with the same precision do not replace them."""
    precisions = iter([0.9, 0.1, 0.5, 0.5])  # of the first weights, then of each epoch
    score_boxes = training.score_boxes

    def scripted(*arguments: Any) -> dict[str, Any]:
        return score_boxes(*arguments) | {"AP": next(precisions)}

    monkeypatch.setattr(training, "score_boxes", scripted)

    report = train_detector(config_of(boxes, optim={"epochs": 3}), tmp_path)

    record = HeadCheckpoint.load(tmp_path / "detector.safetensors").meta["training"]
    assert record["epochs"] == 2
    assert record["metrics"]["AP"] == 0.5
    assert report["best"]["epoch"] == 1
    assert report["untrained"]["AP"] == 0.9


def test_two_processes_score_all_held_out_images_together(boxes: Path, tmp_path: Path) -> None:
    alone = train_detector(config_of(boxes), tmp_path / "alone")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tests.unit.detection.two_processes",
        str(boxes),
        str(tmp_path),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
    }

    printed_by(command, 150, environment)

    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    for process in (first, second):
        # the first weights, then those after the epoch
        assert process["scored"] == [[0, 1, 2], [0, 1, 2]]
        assert process["report"]["untrained"] == alone["untrained"]
    assert second["report"]["best"]["AP"] == first["report"]["best"]["AP"]
    [row] = logged(tmp_path / "run" / "log.jsonl")
    assert row["AP"] == first["report"]["best"]["AP"]


def test_every_epoch_shows_the_images_in_another_order(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same orders again with the same seed."""
    orders: list[int] = []
    forward = Detector.forward

    def watched(self: Detector, images: Any, targets: Any = None) -> Any:
        if targets is not None:
            orders.extend(target["image_id"] for target in targets)
        return forward(self, images, targets)

    monkeypatch.setattr(Detector, "forward", watched)
    config = config_of(boxes, optim={"epochs": 4, "batch_size": 3})

    for name in ("first", "again"):
        train_detector(config, tmp_path / name)

    first, again = orders[:12], orders[12:]
    epochs = [tuple(first[begin : begin + 3]) for begin in range(0, 12, 3)]
    assert all(sorted(epoch) == [0, 1, 2] for epoch in epochs)
    assert len({*epochs}) > 1
    assert again == first


def twenty_images(folder: Path) -> Path:
    """Twenty images with a box each, sorted by where they were taken."""
    names = [f"place-{number // 5}-{number % 5}.png" for number in range(20)]
    kit.write_images(folder, names, *kit.SIZE)
    height, width = kit.SIZE
    content = {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": height}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 12, 12]} for i in range(20)
        ],
        "categories": [{"id": 1, "name": "plant"}],
    }
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return file


def test_without_val_boxes_the_held_out_images_are_drawn_at_random(tmp_path: Path) -> None:
    """Not the first ones: a file that is sorted by place would give a biased score."""
    file = twenty_images(tmp_path)
    drawn = []
    for seed in (0, 1, 0):
        data = {"boxes": str(file), "size": 32}
        config = TrainDetectorConfig.from_dict({"data": data, "optim": {"seed": seed}})

        train, held_out = training.open_images(config)

        assert sorted([*train.ids, *held_out.ids]) == list(range(20))
        assert len(held_out.ids) == 20 // config.folds.count
        drawn.append(list(held_out.ids))

    assert drawn[0] == drawn[2] != drawn[1]
    first_ones = list(range(20 // config.folds.count))
    assert first_ones not in drawn


# Copies
# ------------------------------------------------------------------------------------------------
