"""What predictors, their tiles, views and stores, tables of predictions and compositions refuse."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from timm.models.eva import Eva

from dinoneck import (
    BackboneError,
    BusyError,
    CheckpointError,
    CLSGatingHead,
    Composition,
    ConfigError,
    DataError,
    DenseHead,
    FeatureStore,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    MaskHead,
    PatchMeanHead,
    PatchMeanMLP,
    Predictor,
    PyramidHead,
    ShapeError,
    SimplePyramid,
    TargetTransform,
    Task,
    evaluate,
    wrap_backbone,
)
from dinoneck.data import Preprocessing, read_table
from dinoneck.inference import MicroBatcher, coco_objects, to_frame
from dinoneck.inference.sources import open_heads
from dinoneck.inference.tiles import Assembly, TileAxis
from dinoneck.training.new_head import start_from
from tests import kit
from tests.refusals import Row
from tests.unit.detection.test_detector import detector_of

IMAGE = torch.rand(3, 32, 48)
PIXELS = np.zeros((32, 48, 3), np.uint8)
CELLS = Task("cells", dim=3, kind="dense", labels=("soil", "crop", "weed"))
WEED, KIND = (
    Task("weed", from_map="cells"),
    Task("kind", dim=2, kind="classification", labels=("a", "b")),
)
PARTS = {
    "parts": ("leaf", "stem", "root"),
    "sums": (),
    "name": "masses",
    "total": "total",
    "ratio": "shares",
}
SHARES = [Task("shares", dim=3, kind="ratio"), Task("total", unit="g")]
SUMMED = [Task("a", unit="g"), Task("b", unit="cm"), Task("c", dim=2), Task("d", unit="g")]


def predictor(head: Any = None, backbone: Any = None, **options: Any) -> Predictor:
    return Predictor(
        head or kit.head(), kit.backbone() if backbone is None else backbone, **options
    )


def objects() -> MaskHead:
    return MaskHead(
        64,
        [Task("plant", dim=1, kind="instances", labels=("a",))],
        1,
        num_queries=2,
        num_blocks=1,
        dim=16,
    )


def infinite() -> PatchMeanHead:
    head = PatchMeanHead(64, [Task("x")])
    torch.nn.init.constant_(head.mlps[0].out.bias, float("inf"))  # type: ignore[union-attr, arg-type]
    return head


def recorded(record: dict[str, Any] | None = None, views: str = "none") -> HeadCheckpoint:
    own = kit.backbone().record() if record is None else record
    checkpoint: Any = HeadCheckpoint.from_module(kit.head(), backbone=own, tta="flip4")
    checkpoint.meta["tta"]["ops"] = views
    return checkpoint


def file(folder: Path, module: Any = None, name: str = "h.safetensors", **options: Any) -> Path:
    return kit.saved_head(folder / name, module, **options)


def flat() -> Any:
    options = {"embed_dim": 64, "depth": 1, "num_heads": 4, "num_classes": 0, "use_fc_norm": False}
    return wrap_backbone(Eva(img_size=64, patch_size=(16, 8), dynamic_img_size=True, **options))  # type: ignore[arg-type]


def stored(folder: Path, head: Any = None, size: tuple[int, int] = kit.SIZE, **options: Any) -> Any:
    """Predict from a store of the last layer, at 32 x 48."""
    store = FeatureStore.create(folder / "s", backbone=kit.backbone(), image_size=kit.SIZE)
    store.extract(kit.write_images(folder, ["a.png"]))
    own = options.pop("backbone", None) or kit.backbone()
    checkpoint = HeadCheckpoint.from_module(
        head or kit.head(), backbone=own, preprocess=own.preprocess.changed(size=size)
    )
    return Predictor(checkpoint, own, **options).predict(store)


def as_images(folder: Path) -> Any:
    """Call a predictor with a store in the place of images."""
    store = FeatureStore.create(folder / "s", backbone=kit.backbone(), image_size=kit.SIZE)
    return predictor()(store)


def of_a_task_called_image(folder: Path) -> Any:
    """Predict the images of a folder with a head whose task has the name of their paths."""
    kit.write_images(folder, ["a.png"])
    return Predictor(kit.head(Task("image")), kit.backbone())(folder)


def image_maps_of_a_store(folder: Path) -> Any:
    """Ask for maps in the pixels of images that are stored as tokens."""
    store = FeatureStore.create(folder / "s", backbone=kit.backbone(), image_size=kit.SIZE)
    return predictor().predict(store, maps="image")  # type: ignore[arg-type]


def ids_in_a_text(folder: Path) -> Any:
    """Predict one id of a store that is not in a list."""
    store = FeatureStore.create(folder / "s", backbone=kit.backbone(), image_size=kit.SIZE)
    return predictor().predict(store, "a")


def scored(folder: Path, head: Any) -> Any:
    """Evaluate a head on one image with a number ``mass``."""
    kit.write_images(folder, ["a.png"])
    (folder / "t.csv").write_text("image,mass\na.png,1\n")
    return evaluate(head, folder, folder / "t.csv")


def scored_both(folder: Path, first: Task, second: Task) -> Any:
    """Evaluate two heads, each of one task, on one image with a number ``mass``."""
    heads = {"a": predictor(kit.head(first)), "b": predictor(kit.head(second))}
    return scored(folder, heads)


def scored_ratios(folder: Path, second_name: str) -> Any:
    """Evaluate heads of the ratio ``one``, leaf to stem, and of another one, leaf to root, on one image."""
    first = Task("one", dim=2, kind="ratio", labels=("leaf", "stem"))
    second = Task(second_name, dim=2, kind="ratio", labels=("leaf", "root"))
    kit.write_images(folder, ["a.png"])
    (folder / "t.csv").write_text("image,leaf,stem,root\na.png,1,2,3\n")
    heads = {"a": predictor(kit.head(first)), "b": predictor(kit.head(second))}
    return evaluate(heads, folder, folder / "t.csv")


def run_of_several_heads(folder: Path) -> Any:
    """Predict with the folder of a training that compared heads."""
    for name in ("linear", "fpn"):
        kit.saved_head(folder / name / "head.safetensors")
    return Predictor(folder)


def scored_with_units(folder: Path, *, is_read: bool = False) -> Any:
    """Evaluate a head of numbers on a table that has their unit in the cells."""
    kit.write_images(folder, ["a.png", "b.png", "c.png"])
    (folder / "t.csv").write_text("image,mass\na.png,0.5 kg\nb.png,0.4 kg\nc.png,0.5 kg\n")
    truth = read_table(folder / "t.csv", folder, "mass") if is_read else folder / "t.csv"
    return evaluate(predictor(), folder, truth)


def scored_with_nodata(folder: Path) -> Any:
    """Evaluate a head of numbers with the option of masks that names values without a label."""
    kit.write_images(folder, ["a.png"])
    (folder / "t.csv").write_text("image,mass\na.png,1\n")
    return evaluate(predictor(), folder, folder / "t.csv", nodata=[-9999.0])


def scored_categories(folder: Path) -> Any:
    """Evaluate a head of numbers on a ready-made table whose numbers are categories."""
    images = kit.write_images(folder, ["a.png", "b.png"], *kit.SIZE)
    table = pd.DataFrame({"images": images, "mass": pd.Categorical(["1", "2"])})
    return evaluate(predictor(), None, table)


def trained_on_what_is_damaged(folder: Path) -> Any:
    """Evaluate the head of a run whose record of its images is damaged."""
    kit.saved_head(folder / "head.safetensors")
    (folder / "trained_on.csv").write_text("image\n")
    return scored(folder, folder / "head.safetensors")


def composed(tasks: list[Task], **changes: Any) -> PatchMeanHead:
    return PatchMeanHead(64, tasks, compositions=[Composition(**{**PARTS, **changes})])  # type: ignore[arg-type]


def twice(folder: Path) -> Predictor:
    """Predict with a folder that holds one head two times."""
    (folder / "copy.safetensors").write_bytes(file(folder).read_bytes())
    return Predictor(folder)


def two(folder: Path, other: Any) -> Predictor:
    file(folder, name="a.safetensors")
    other(folder)
    return Predictor(folder)


class Waiting:
    """Holds the passes of a batcher until the block ends; then what waits is predicted."""

    def __init__(self, max_waiting: int) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        own = predictor()
        predict_prepared = own.predict_prepared

        def wait(prepared: Any, maps: bool) -> Any:
            self.started.set()
            assert self.go.wait(60)
            return predict_prepared(prepared, maps)

        own.predict_prepared = wait  # type: ignore[method-assign]
        self.batcher = MicroBatcher(own, max_batch=1, max_waiting=max_waiting)

    def __enter__(self) -> MicroBatcher:
        self.batcher.submit(PIXELS)
        assert self.started.wait(60)
        return self.batcher

    def __exit__(self, *error: object) -> None:
        self.go.set()
        self.batcher.close()


def full_batcher() -> Any:
    with Waiting(max_waiting=1) as batcher:
        batcher.submit(PIXELS)
        return batcher.submit(PIXELS)


def closed_batcher() -> Any:
    batcher = MicroBatcher(predictor())
    batcher.close()
    return batcher.submit(PIXELS)


class ReturnsNoTask(PatchMeanHead):
    def forward(self, tokens: Any, **plain: Any) -> Any:
        return {"other": super().forward(tokens, **plain)["mass"]}


class ReturnsTuple(PatchMeanHead):
    def forward(self, tokens: Any, **plain: Any) -> Any:
        return tuple(super().forward(tokens, **plain).values())


class ReturnsNoAxis(PatchMeanHead):
    def forward(self, tokens: Any, **plain: Any) -> Any:
        return {"mass": super().forward(tokens, **plain)["mass"][:, 0]}


def predicted_by(head_class: type[PatchMeanHead]) -> Any:
    return head_class(64, [Task("mass")], hidden_dim=4).eval().predict(kit.tokens(width=64))


def density_without_a_map_in_tiles() -> Any:
    axis = TileAxis(total=2, length=2, starts=(0,))
    placement = Preprocessing(16).placement((32, 32))
    return Assembly(axis, axis).outputs([Task("count", kind="density")], {"count"}, placement)


def image_maps_of_a_batcher() -> Any:
    with MicroBatcher(predictor()) as batcher:
        return batcher.submit(PIXELS, maps="image")  # type: ignore[arg-type]


def batcher_after_a_fork() -> Any:
    with MicroBatcher(predictor()) as batcher, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        return batcher.submit(PIXELS)


def changed_weights() -> Any:
    backbone = kit.backbone()
    predict = predictor(backbone=backbone)
    with torch.no_grad():
        next(backbone.parameters()).add_(1.0)
    return predict(IMAGE)


def gate_on_another_grid() -> Any:
    """Predict from 3 x 2 patches with a gate over the places of 2 x 3."""
    head = CLSGatingHead(64, [Task("a")], mode="mlp", num_patches=6, hidden_dim=8)
    checkpoint = HeadCheckpoint.from_module(
        head, backbone=kit.backbone(), preprocess=kit.backbone().preprocess.changed(size=kit.SIZE)
    )
    return predictor(checkpoint, preprocess=Preprocessing(16, size=(48, 32)))(IMAGE)


def tiles_of_a_coarse_map() -> Any:
    """Predict tiles of 3 x 3 patches with a head whose map has a cell for 2 x 2 patches."""
    head = PyramidHead(neck=SimplePyramid(64, 8, scales=(0.5,)), tasks=[CELLS], hidden_dim=8)
    return predictor(head, tile=48)(torch.rand(3, 96, 96))


def objects_without_pycocotools() -> Any:
    with kit.without("pycocotools"):
        return coco_objects({"masks": torch.zeros(0, 4, 4), "scores": [], "labels": []})


def scored_images_alone(folder: Path) -> Any:
    """Evaluate a head on a table with the images and nothing that is known of them."""
    table = pd.DataFrame({"images": kit.write_images(folder, ["a.png"], *kit.SIZE)})
    return evaluate(predictor(), None, table)


def scored_with_other_classes(folder: Path) -> Any:
    other = replace(KIND, labels=("a", "c"))
    models = {"one": predictor(kit.head(KIND)), "two": predictor(kit.head(other))}
    return scored(folder, models)


def scored_masks(folder: Path, record: Any, **options: Any) -> Any:
    """Evaluate a head, whose file records how masks were read, on one mask."""
    kit.write_images(folder, ["a.png"])
    Image.fromarray(np.zeros(kit.SIZE, np.uint8)).save(folder / "mask.png")
    (folder / "t.csv").write_text("image,mask\na.png,mask.png\n")
    head = DenseHead(64, [Task("cover", dim=2, kind="segmentation", labels=("crop", "soil"))])
    checkpoint = HeadCheckpoint.from_module(
        head, backbone=kit.backbone(), training={"masks": record}
    )
    return evaluate(checkpoint, folder, folder / "t.csv", labels="mask", **options)


def with_record_without(*entries: str) -> HeadCheckpoint:
    """A head whose record of its backbone lacks these entries."""
    backbone = kit.backbone()
    record = {name: value for name, value in backbone.record().items() if name not in entries}
    return HeadCheckpoint.from_module(kit.head(), backbone=record, preprocess=backbone.preprocess)


ROWS: list[Row] = [
    (lambda: predictor(tta="flip"), ConfigError, "'flip'"),
    (lambda: predictor(batch_size=0), ConfigError, "batch_size is 0"),
    (lambda: predictor(backbone=flat(), tta="d6"), ConfigError, "(16, 8)"),
    (
        lambda: predictor(preprocess=Preprocessing(14, size=(112, 112))),
        CheckpointError,
        ("14x14", "16x16"),
    ),
    *(
        (lambda device=device: predictor(device=device), ConfigError, device)
        for device in ("gpu0", "meta")
    ),
    (lambda: predictor(infinite())(IMAGE), DataError, "'x' is"),
    (lambda: Task("maps"), ConfigError, "'maps'"),
    (lambda: Task("overall (mean)"), ConfigError, "'overall (mean)'"),
    *(
        (lambda own=own: predictor()(IMAGE, **own), ConfigError, named)
        for own, named in (
            ({"maps": "pixel"}, "maps is 'pixel'"),
            ({"maps": True}, "maps is True"),
            ({"maps": "patch", "probabilities": True}, ("probabilities", "maps is 'patch'")),
        )
    ),
    (lambda: predictor(PatchMeanMLP(64)), CheckpointError, "PatchMeanMLP"),
    (lambda: Predictor(kit.head()), CheckpointError, "PatchMeanHead"),
    (lambda: Predictor([]), CheckpointError, "no heads"),
    (lambda: Predictor(None), ConfigError, "None"),  # type: ignore[arg-type]
    (lambda: Predictor({}), ConfigError, "keys"),
    (lambda: predictor({"a": {"b": kit.head()}}), ConfigError, "b"),
    (lambda: predictor({"a": kit.head()}, weights=[1]), ConfigError, "weights"),
    (lambda folder: Predictor(folder), CheckpointError, "no head files"),
    (
        run_of_several_heads,
        CheckpointError,
        ("a run for each of several heads", "fpn, linear", "such as"),
    ),
    *(
        (
            lambda folder, own=own: Predictor(file(folder), kit.backbone(), weights=own),
            ConfigError,
            "weights",
        )
        for own in ([1, 2], [-1], [float("nan")])
    ),
    (
        lambda folder: Predictor(file(folder), kit.backbone(), weights="1"),
        CheckpointError,
        ("1 is the file of one published head", "name none"),
    ),
    (
        lambda: HeadEnsemble.from_config(HeadEnsemble([kit.head()]).config | {"reduce": "median"}),
        ConfigError,
        ("'median'", "0.4", "dinoneck 0.3"),
    ),
    (lambda: HeadEnsemble([kit.head(), kit.head(Task("y"))], weights=[1, 0]), ConfigError, "'y'"),
    (lambda: HeadEnsemble([kit.head(), kit.head()], layers=[[3]]), ConfigError, "layers"),
    (lambda folder: Predictor(file(folder), kit.backbone(seed=1)), CheckpointError, "seed 1"),
    (
        lambda: Predictor(with_record_without("depth"), kit.backbone()),
        CheckpointError,
        ("does not state its number of blocks", "save_head("),
    ),
    (
        lambda: Predictor(with_record_without("layers", "weights", "weights_sha256")),
        CheckpointError,
        ("does not state 'layers'", "save_head("),
    ),
    (
        lambda: Predictor(with_record_without("weights")),
        CheckpointError,
        ("does not state 'weights'", "pass backbone="),
    ),
    (
        lambda: Predictor(recorded({"name": "x", "weights": {"kind": "file"}})),
        CheckpointError,
        "layers",
    ),
    (lambda: Predictor(recorded(views="d8")), CheckpointError, ("'d8'", "none, flip4, d6")),
    (twice, CheckpointError, "h.safetensors"),
    (
        lambda folder: two(folder, lambda own: detector_of("fcos").save(own / "b.safetensors")),
        ConfigError,
        "2 heads",
    ),
    (
        lambda folder: two(folder, lambda own: file(own, size=(64, 64))),
        CheckpointError,
        ("inputs.size", "64, 64"),
    ),
    (
        lambda folder: two(
            folder,
            lambda own: file(
                own, kit.head(Task("mass", unit="kg", transform=TargetTransform(area=0.5)))
            ),
        ),
        ConfigError,
        "'mass'",
    ),
    *(
        (lambda own=own: predictor(**own), ConfigError, named)
        for own, named in (
            ({"tile": 0}, "tile is (0, 0)"),
            ({"tile": 40}, "tile=(32, 32)"),
            ({"overlap": 8}, "overlap is 8"),
            ({"overlap": 8, "tile": None}, "tile is None"),
            ({"batch_size": 1.5}, "batch_size is 1.5"),
            ({"batch_size": "x"}, "batch_size is 'x'"),
            ({"preprocess": {}}, "preprocess is a dict"),
            ({"tile": 32, "overlap": 32}, "overlap is 32 px"),
            ({"tile": 32, "overlap": -1}, "overlap is -1 px"),
            ({"tile": 32, "overlap": 1.5}, "overlap is 1.5; a float is a share"),
            ({"tile": 32, "overlap": 17}, "overlap is 17, rounded up to 2 of the 2"),
            ({"tile": 32, "overlap": float("nan")}, "overlap is nan"),
        )
    ),
    (
        lambda: predictor(tile=50, preprocess=Preprocessing(16, size=(32, 64), resize="crop")),
        ConfigError,
        "(50, 100)",
    ),
    (lambda: predictor(objects(), tta="d6"), ConfigError, "'plant'"),
    (lambda: predictor([objects(), objects()]), ConfigError, "'plant'"),
    (lambda folder: stored(folder, objects()), ConfigError, "'plant'"),
    (lambda folder: stored(folder, tile=32), ConfigError, "tile"),
    (lambda folder: stored(folder, tta="flip4"), ConfigError, "horizontal=True"),
    (lambda folder: stored(folder, size=(64, 64)), CheckpointError, "64, 64"),
    (lambda folder: stored(folder, backbone=kit.backbone(layers=[3])), CheckpointError, "layers"),
    (lambda: predictor().predict("store"), ConfigError, ("a str", "FeatureStore")),  # type: ignore[arg-type]
    (lambda: predictor().predict(torch.rand(3, 32, 48)), ConfigError, ("a Tensor", "(images)")),  # type: ignore[arg-type]
    (image_maps_of_a_store, ConfigError, ("'image'", "'patch'")),
    (ids_in_a_text, ConfigError, ("'a'", "['a']")),
    (as_images, DataError, "predictor.predict(store, ids)"),
    (lambda folder: predictor()(folder), DataError, ("no images", ".png")),
    (lambda folder: predictor()([torch.rand(3, 32, 48), folder]), DataError, "images[1]"),
    (of_a_task_called_image, ConfigError, ("'image'", "as a list")),
    (lambda folder: predictor().one(folder), DataError, "predictor('"),
    (lambda: predictor().one(["a.png"]), DataError, ("a list", "predictor(images)")),
    (lambda: predictor().one(torch.rand(2, 3, 32, 48)), DataError, "(2, 3, 32, 48)"),
    (lambda: MicroBatcher(predictor(), max_batch=0), ConfigError, "max_batch"),
    (lambda: predicted_by(ReturnsNoTask), ShapeError, ("ReturnsNoTask", "'mass'", "(B, 1)")),
    (lambda: predicted_by(ReturnsTuple), ShapeError, ("ReturnsTuple", "a tuple", "(B, dim)")),
    (lambda: predicted_by(ReturnsNoAxis), ShapeError, ("ReturnsNoAxis", "'mass'", "(B, 1)")),
    (density_without_a_map_in_tiles, ConfigError, ("'count'", "'count.map'", "tile=")),
    (image_maps_of_a_batcher, ConfigError, ("'image'", "'patch'", "call the predictor")),
    (
        lambda: to_frame([{"p": np.zeros(2)}], [Task("p", dim=2, labels=("a", "a"))]),
        ConfigError,
        "p:a",
    ),
    (lambda folder: scored(folder, predictor(kit.head(Task("biomass")))), DataError, "biomass"),
    (
        lambda folder: scored(folder, {"a": predictor(), "b": detector_of("fcos")}),
        ConfigError,
        "detectors",
    ),
    (lambda folder: scored(folder, {"m": predictor({"k": kit.head()})}), ConfigError, "keys k"),
    (
        lambda folder: evaluate(detector_of("fcos"), folder, {}, group=["place"]),
        ConfigError,
        "group is ['place']",
    ),
    (
        lambda folder: evaluate(detector_of("fcos"), folder, {}, subfolders="folds"),
        ConfigError,
        "subfolders is 'folds'",
    ),
    (
        lambda folder: evaluate(detector_of("fcos"), folder, {}, labels="mask"),
        ConfigError,
        "labels is 'mask'",
    ),
    (
        lambda folder: scored_both(folder, Task("mass", unit="g"), Task("mass", unit="kg")),
        DataError,
        ("a predicts mass in g", "b in kg"),
    ),
    (
        lambda folder: scored_both(
            folder,
            Task("mass", transform=TargetTransform(area=0.5)),
            Task("mass", transform=TargetTransform(area=2.0)),
        ),
        DataError,
        ("mass of an area of 0.5", "b of 2"),
    ),
    (
        lambda folder: scored_both(
            folder,
            Task("mass"),
            Task("mass", dim=2, kind="classification", labels=("low", "high")),
        ),
        DataError,
        ("a predicts numbers for mass", "b classes"),
    ),
    (trained_on_what_is_damaged, DataError, ("trained_on.csv", "image, folds, blake2b")),
    (scored_with_nodata, ConfigError, ("nodata is [-9999.0]", "--labels")),
    (scored_categories, DataError, ("mass is categorical", "astype(float)")),
    (lambda folder: scored(folder, {}), ConfigError, "empty mapping"),
    (
        lambda folder: scored_ratios(folder, second_name="other"),
        DataError,
        ("share of leaf", "leaf + stem", "leaf + root", "apart"),
    ),
    (
        lambda folder: scored_ratios(folder, second_name="one"),
        DataError,
        ("ratio one", "leaf + stem", "leaf + root", "apart"),
    ),
    (
        lambda folder: scored_masks(folder, {"class_values": [1, 0]}, class_values=(0, 1)),
        ConfigError,
        ("class_values are 0 1", "the training of the head", "1 0", "--class-values"),
    ),
    (
        lambda folder: scored_masks(folder, {"nodata": [9.0]}, nodata=(255,)),
        ConfigError,
        ("nodata is 255", "the training of the head", "nodata 9", "--nodata"),
    ),
    (
        lambda folder: scored_masks(folder, {"nodata": [0.0]}, class_values=(0, 1)),
        ConfigError,
        ("of the call are 0 1", "0 is nodata of the head", "leave the option out"),
    ),
    (lambda: to_frame([{"q": 1.0}], [Task("p")]), DataError, ("no 'p'", "holds q")),
    (scored_with_units, DataError, ("mass", "'0.5 kg'", "'a.png'")),
    (
        lambda folder: scored_with_units(folder, is_read=True),
        DataError,
        ("mass", "'0.5 kg'", "'a.png'"),
    ),
    (
        lambda folder: start_from(
            kit.head(replace(KIND, labels=("b", "a"))), str(file(folder, kit.head(KIND)))
        ),
        ConfigError,
        "'b'",
    ),
    (lambda: composed(SHARES, name="total"), ConfigError, "total"),
    (lambda: composed(SHARES, total=""), ConfigError, ("'masses'", "'shares'", "total=")),
    (lambda: composed(SHARES, ratio=""), ConfigError, ("'masses'", "'total'", "ratio=")),
    (lambda: composed(SHARES, total="totl"), ConfigError, "'totl'"),
    *(
        (
            lambda own=own: composed(SUMMED, total="", ratio="", name="sums", **own),
            ConfigError,
            named,
        )
        for own, named in (
            ({"parts": ("a", "b"), "sums": {"s": ("a", "b")}}, "b (cm)"),
            ({"parts": ("a", "d"), "sums": ()}, "sums="),
            ({"parts": ("a", "d"), "sums": {"b": ("a", "d")}}, "b"),
        )
    ),
    *(
        (lambda own=own: FPNHead(64, own, 1, fpn_dim=8, num_levels=1), ConfigError, named)
        for own, named in (([WEED], "none"), ([WEED, replace(CELLS, minimum=0.0)], "minimum is 0"))
    ),
    (lambda: Task("weed", dim=2, from_map="cells"), ConfigError, "weed"),
    # batches
    (full_batcher, BusyError, "max_waiting=1"),
    (closed_batcher, BusyError, "closed"),
    (batcher_after_a_fork, BusyError, "fork"),
    # what changed, or does not fit
    (changed_weights, BackboneError, "'dinoneck_tiny'"),
    (gate_on_another_grid, CheckpointError, ("2 rows x 3 cols", "3 x 2")),
    (tiles_of_a_coarse_map, ShapeError, ("cells", "2x2", "3x3")),
    (objects_without_pycocotools, ImportError, "dinoneck[masks]"),
    (
        lambda folder: open_heads(
            [file(folder), file(folder, name="b.safetensors")], weights="w.pt"
        ),
        CheckpointError,
        "w.pt",
    ),
    (
        lambda: open_heads(["dinov2_vits14_ade20k_ms", "dinov2_vits14_nyu_dpt"], None, "w"),
        CheckpointError,
        ("w ", "dinov2_vits14"),
    ),
    # scores
    (scored_images_alone, DataError, ("mass", "images")),
    (scored_with_other_classes, DataError, ("kind", "('a', 'b')", "('a', 'c')")),
]
