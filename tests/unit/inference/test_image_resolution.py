"""Maps and objects in the pixels of the image, whatever the image was resized to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from tests import kit
from torch import Tensor
from torch.nn import functional as F

from dinoneck import (
    Backbone,
    HeadEnsemble,
    MaskHead,
    Predictor,
    PyramidHead,
    ShapeError,
    SimplePyramid,
    Task,
    load_backbone,
)
from dinoneck.data import Preprocessing
from dinoneck.export import export_model
from dinoneck.inference import coco_objects, to_frame
from dinoneck.inference.resolution import UNSEEN, at_image_size, objects_from_outputs
from dinoneck.inference.views import VIEWS

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CROP = Preprocessing(16, resize="crop")
CASES: list[dict[str, Any]] = [
    {"size": (64, 96)},
    {"size": (64, 64), "resize": "keep"},
    {"size": (96, 64), "resize": "pad"},
    {"size": (96, 64), "resize": "pad", "pad_to": "center"},
    {"resize": "pad", "pad_to": "center"},
    {"resize": "crop"},
    {"resize": "stretch"},
]


def places(size: tuple[int, int], recipe: Preprocessing, finer: int = 1) -> np.ndarray:
    """(2, rows, cols): the row and column, in pixels of the image, of the centre of every cell."""
    place, patch = recipe.placement(size), int(recipe.patch_size) / finer  # type: ignore[arg-type]
    axes = [
        ((torch.arange(round(canvas / patch)) + 0.5) * patch - corner) * side / resized
        for side, resized, canvas, corner in zip(size, *place, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("finer", [1, 4])
def test_a_map_of_places_gives_every_pixel_its_own_place(case: dict[str, Any], finer: int) -> None:
    size = (83, 130)
    recipe = Preprocessing(16, **case, **PLAIN)
    found = at_image_size(places(size, recipe, finer), Task("y", dim=2, kind="dense"), size, recipe)
    expected = np.stack(np.meshgrid(np.arange(83) + 0.5, np.arange(130) + 0.5, indexing="ij"))
    cell = [
        16 / finer * side / resized
        for side, resized in zip(size, recipe.placement(size).resized, strict=True)
    ]
    # outside of the outermost centres the border is repeated
    rows = slice(int(cell[0]) + 1, -int(cell[0]) - 1)
    cols = slice(int(cell[1]) + 1, -int(cell[1]) - 1)
    assert np.abs(found - expected)[:, rows, cols].max() < 1e-3
    assert np.isfinite(found).all()


def test_pixels_that_were_cut_off_have_no_prediction() -> None:
    recipe = Preprocessing(16, size=(32, 32), resize="crop", **PLAIN)
    ones = np.ones((3, 2, 2))
    values = at_image_size(ones, Task("y", dim=3, kind="dense"), (32, 320), recipe)
    classes = at_image_size(ones / 3, Task("y", dim=3, kind="segmentation"), (32, 320), recipe)
    kept = np.zeros((32, 320), bool)
    kept[:, 144 - 16 : 176 + 16] = True  # the window, and the remainder of a patch around it
    assert np.array_equal(np.isfinite(values), np.broadcast_to(kept, values.shape))
    assert np.array_equal(classes != UNSEEN, kept)


def test_classes_are_resampled_as_logits() -> None:
    logits = 4 * torch.randn(1, 5, 6, 9, generator=torch.Generator().manual_seed(0))
    recipe, task = Preprocessing(16, size=(96, 144), **PLAIN), Task("y", dim=5, kind="segmentation")
    expected = F.interpolate(logits, (200, 300), mode="bilinear")[0]
    cells = logits.softmax(dim=1)[0].numpy()
    assert np.array_equal(
        at_image_size(cells, task, (200, 300), recipe), expected.argmax(0).numpy()
    )
    shares = at_image_size(cells, task, (200, 300), recipe, probabilities=True)
    assert np.allclose(shares, expected.softmax(0).numpy(), atol=1e-5)


def test_the_pixels_of_a_density_add_up_to_its_cells() -> None:
    cells = np.random.RandomState(0).rand(1, 4, 6)
    for case in CASES:
        recipe = Preprocessing(16, **case, **PLAIN)
        grid = recipe.placement((83, 130)).canvas
        own = np.resize(cells, (1, grid[0] // 16, grid[1] // 16))
        found = at_image_size(own, Task("y", kind="density"), (83, 130), recipe)
        assert found.sum() == pytest.approx(own.sum(), rel=1e-4)


@pytest.fixture(scope="module")
def head() -> PyramidHead:
    torch.manual_seed(0)
    tasks = [Task("crop", dim=3, kind="segmentation"), Task("ndvi", kind="dense")]
    return PyramidHead(64, tasks, neck=SimplePyramid(64, 32))


def test_an_image_and_its_turned_file_have_maps_of_one_size(
    head: PyramidHead, tmp_path: Path
) -> None:
    upright = np.random.RandomState(0).randint(0, 256, (70, 100, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(head, load_backbone("dinoneck_tiny"), preprocess=CROP)
    plain, turned = predictor([upright, tmp_path / "turned.png"], maps="image")
    assert np.mean(plain["maps"]["crop"] == turned["maps"]["crop"]) > 0.999
    assert np.allclose(plain["maps"]["ndvi"], turned["maps"]["ndvi"], atol=1e-5)
    [cells], [whole] = predictor(upright, maps="patch"), predictor(upright, maps="image")
    for task in predictor.tasks:
        expected = at_image_size(cells["maps"][task.name], task, (70, 100), CROP)
        assert np.array_equal(expected, whole["maps"][task.name])


def reference(outputs: dict[str, Tensor], where: np.ndarray) -> np.ndarray:
    """Shares (K, H, W) in float64 by loops over queries: masks at the places, then sigmoid, sum, normalisation.

    Args:
        outputs: of a MaskHead for one image.
        where: (2, H, W), row and column of every pixel in cells of the masks, 0 at the first
            centre.
    """
    masks, classes = (
        outputs[f"plant{kind}"][0].double().numpy() for kind in (".masks", ".classes")
    )
    sums = np.zeros((classes.shape[1] - 1, *where.shape[1:]))
    for mask, logits in zip(masks, classes, strict=True):
        shares = np.exp(logits - logits.max())
        at = map_coordinates(mask, where, order=1, mode="nearest")
        sums += (shares / shares.sum())[:-1, None, None] / (1 + np.exp(-at))
    return sums / sums.sum(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [{"size": (64, 96)}, {"resize": "pad", "pad_to": "center"}, {"resize": "crop"}]
)
@pytest.mark.parametrize("views", ["none", "flip4", "d6"])
def test_masks_are_resampled_before_they_are_shares(case: dict[str, Any], views: Any) -> None:
    torch.manual_seed(0)
    tasks, backbone = (
        [Task("plant", dim=3, kind="segmentation")],
        load_backbone("dinoneck_tiny", layers=2),
    )
    heads = [
        MaskHead(64, tasks, num_layers=2, num_queries=count, num_blocks=1, dim=32).eval()
        for count in (4, 5)
    ]
    for head in heads:
        torch.nn.init.normal_(head.masks[-1].weight, std=0.5)  # masks with edges
    image, recipe = (
        np.random.RandomState(0).randint(0, 256, (83, 130, 3), np.uint8),
        Preprocessing(16, **case),
    )
    predictor = Predictor(
        HeadEnsemble(heads, weights=(1.0, 3.0)), backbone, views, preprocess=recipe
    )
    [row] = predictor(image, maps="image", probabilities=True)
    place, prepared = recipe.placement((83, 130)), recipe(image)
    axes = [
        ((np.arange(side) + 0.5) * resized / side + corner) / 4 - 0.5
        for side, resized, corner in zip((83, 130), place.resized, place.corner, strict=True)
    ]
    expected, all_views = np.zeros((3, 83, 130)), VIEWS[views]
    for i in range(len(all_views)):
        with torch.no_grad():
            tokens = backbone(all_views.place(prepared, i))
            found = [head(tokens) for head in heads]
        for weight, outputs in zip((0.25, 0.75), found, strict=True):
            upright = {**outputs, "plant.masks": all_views.undo(outputs["plant.masks"], i)}
            expected += (
                weight
                * reference(upright, np.stack(np.meshgrid(*axes, indexing="ij")))
                / len(all_views)
            )
    limits = [  # at the border of the image, cells that show padding alone are left out
        (4 * (max(corner, 0) // 16) + 1, -(-min(corner + resized, canvas) // 16) * 4 - 2)
        for corner, resized, canvas in zip(place.corner, place.resized, place.canvas, strict=True)
    ]
    rows, cols = (
        np.flatnonzero((axis > low) & (axis < high))
        for axis, (low, high) in zip(axes, limits, strict=True)
    )
    shares = row["maps"]["plant"].astype(np.float64)
    assert np.abs(shares - expected)[:, rows[:, None], cols].max() < 2e-6
    [classes] = predictor(image, maps="image")
    assert np.array_equal(classes["maps"]["plant"], row["maps"]["plant"].argmax(axis=0))


KINDS = ["mask", "centres", "panoptic"]
NECK = {"type": "simple_pyramid", "out_channels": 16, "scales": [1.0]}


def head_of(kind: str) -> Any:
    """A head that finds objects in any image."""
    things = {"things": ("a",)} if kind == "panoptic" else {}
    task = Task(
        "plant", dim=2, kind="panoptic" if things else "instances", labels=("a", "b"), **things
    )  # type: ignore
    if kind == "centres":
        head: Any = kit.randomised(PyramidHead(64, [task, Task("mass")], NECK), 0.3)
        head.towers[0].out.bias.data[:] = torch.tensor([-3.0, 1.0, 0.0, 1.0, 0.0, 0.0])
        return head.eval()
    torch.manual_seed(3)
    head = MaskHead(64, [task], 1, num_queries=3, num_blocks=1, dim=16)
    head.classes.weight.data *= 400  # sure of its classes
    head.queries.weight.data *= 40
    return head.eval()


def direct(head: Any, backbone: Backbone, image: Tensor) -> Any:
    tokens = backbone(backbone.preprocess(image))
    return (
        head.predict_panoptic(tokens)[0]
        if head.tasks[0].kind == "panoptic"
        else head.predict_instances(tokens)[0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_their_own_size_give_what_the_head_returns(kind: str, tiny: Backbone) -> None:
    head, images = head_of(kind), [*kit.images(2, 64, 96), *kit.images(1, 32, 48, seed=3)]
    for image, row in zip(
        images, Predictor({"k": head, "m": kit.head()}, tiny)(images), strict=True
    ):
        expected, found = direct(head, tiny, image), row["k"]["plant"]
        assert kit.same(
            found, {name: expected[name] for name in found} if isinstance(found, dict) else expected
        )
        assert isinstance(row["m"]["mass"], float)
    assert len(found[1] if kind == "panoptic" else found["scores"]) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("resize", "pad_to"), [("pad", "corner"), ("pad", "center"), ("crop", "corner")]
)
def test_objects_lie_where_the_image_lies(
    kind: str, resize: Any, pad_to: Any, tiny: Backbone
) -> None:
    """A canvas of twice the image's scale: what the canvas shows, cut to the image and shrunk, is the answer."""
    recipe, image = (
        tiny.preprocess.changed(size=(96, 96), resize=resize, pad_to=pad_to),
        kit.images(1, 24, 48)[0],
    )
    head = head_of(kind)
    [row] = Predictor(head, tiny, preprocess=recipe)(image)
    place = recipe.placement((24, 48))
    scale = place.resized[0] // 24
    canvas, (top, left) = (
        [side // scale for side in place.canvas],
        (corner // scale for corner in place.corner),
    )
    tokens = tiny(recipe(image))
    if kind == "panoptic":
        whole, found = (
            head.predict_panoptic(tokens, canvas)[0][0][None].numpy(),
            row["plant"][0][None],
        )
        assert [one["area"] for one in row["plant"][1]] == [
            int((found == one["id"]).sum()) for one in row["plant"][1]
        ]
    else:
        whole, found = (
            head.predict_instances(tokens, canvas)[0]["masks"].numpy(),
            row["plant"]["masks"],
        )
        whole = np.array(
            [mask for mask in whole if np.roll(mask, (-top, -left), (0, 1))[:24, :48].any()]
        )
    seen = np.zeros((len(whole), 24, 48), whole.dtype)
    rows, cols = (
        slice(max(0, -corner), min(side, limit - corner))
        for corner, side, limit in zip((top, left), (24, 48), canvas, strict=True)
    )
    seen[:, rows, cols] = whole[
        :, rows.start + top : rows.stop + top, cols.start + left : cols.stop + left
    ]
    assert np.array_equal(found, seen)


# of pycocotools' decode
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_run_lengths_of_coco(kind: str, tiny: Backbone) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    predictor = Predictor(head_of(kind), tiny)
    [row] = predictor(kit.images(1, 64, 96))
    found, plants = coco_objects(row["plant"]), row["plant"]
    masks = [plants[0] == one["id"] for one in plants[1]] if kind == "panoptic" else plants["masks"]
    assert np.array_equal([coco.decode(one["segmentation"]) for one in found], masks)
    assert [one["category_id"] for one in found] == (
        [one["category_id"] for one in plants[1]]
        if kind == "panoptic"
        else plants["labels"].tolist()
    )
    for one, mask in zip(found, masks, strict=True):
        down, across = np.nonzero(mask)
        assert (
            one["bbox"][:2] == [across.min(), down.min()]
            and one["bbox"][2] == across.max() - across.min() + 1
        )
    pytest.importorskip("pandas")
    assert to_frame([row], predictor.tasks)["plant"].tolist() == [len(found)]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_objects_of_raw_outputs_are_those_of_the_head(kind: str, tiny: Backbone) -> None:
    head = head_of(kind)
    predictor = Predictor(head, tiny)
    image = kit.images(1, 64, 96)[0]
    [row] = predictor([image])
    outputs = head(tiny(predictor.preprocess([image])))
    contents = ("map",) if kind == "centres" else ("classes", "masks")
    raw: Any = {content: outputs[f"plant.{content}"][0].numpy() for content in contents}
    task: Any = head.tasks[0]

    found = objects_from_outputs(
        raw, task, size=(64, 96), recipe=predictor.preprocess, min_score=None
    )

    if kind == "panoptic":
        segments, entries = row["plant"]
        assert np.array_equal(found[0], segments)
        assert found[1] == [pytest.approx(entry) for entry in entries]
        return
    assert np.array_equal(found["masks"], np.asarray(row["plant"]["masks"]))
    assert np.array_equal(found["labels"], row["plant"]["labels"])
    np.testing.assert_allclose(found["scores"], row["plant"]["scores"], rtol=1e-5)


def test_a_segment_that_lies_in_the_padding_alone_is_left_out() -> None:
    task: Any = Task("ground", dim=2, kind="panoptic", labels=("soil", "sky"), things=("soil",))
    recipe = Preprocessing(16, size=(64, 64), resize="pad", **PLAIN)
    masks = np.full((2, 4, 4), -9.0, np.float32)
    masks[0, :2] = 9.0  # the image, 32 rows
    masks[1, 2:] = 9.0  # 32 rows below it
    classes = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]], np.float32)

    segments, entries = objects_from_outputs(
        {"classes": classes, "masks": masks}, task, size=(32, 64), recipe=recipe, min_score=None
    )

    assert [entry["category_id"] for entry in entries] == [0]
    assert segments.shape == (32, 64)
    assert entries[0]["area"] == (segments == entries[0]["id"]).sum() > 0


def test_more_masks_than_objects_are_no_rows_of_coco() -> None:
    pytest.importorskip("pycocotools")
    objects = {
        "masks": np.ones((2, 4, 6), bool),
        "labels": np.array([0]),
        "scores": np.array([0.9]),
    }

    with pytest.raises(ShapeError, match="2 masks, and 1 objects; expected one of each"):
        coco_objects(objects)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("kind", ["mask", "centres"])
def test_an_exported_model_gives_what_the_head_itself_gives(
    kind: str, form: Any, tiny: Backbone, tmp_path: Path
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
    done = export_model(head_of(kind), tmp_path / "m", format=form, backbone=tiny)
    assert done.outputs == (
        ("plant.classes", "plant.masks") if kind == "mask" else ("mass", "plant.map")
    )
    assert done.size is None and done.parity is not None and done.parity.largest < 1e-4
    assert [output["shape"] for output in done.description["outputs"]][-1][2:] == ["rows", "cols"]
