"""Objects of an image: what the head itself returns, in the pixels of the image, as COCO JSON and as an ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from torch import Tensor

from dinoneck import Backbone, MaskHead, Predictor, PyramidHead, Task
from dinoneck.export import export_model
from dinoneck.inference import coco_objects, to_frame

KINDS = ["mask", "centres", "panoptic"]
NECK = {"type": "simple_pyramid", "out_channels": 16, "scales": [1.0]}


def head_of(kind: str) -> Any:
    """A head that finds objects in any image."""
    things = {"things": ("a",)} if kind == "panoptic" else {}
    task = Task("plant", 2, kind="panoptic" if things else "instances", labels=("a", "b"), **things)  # type: ignore
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
    return head.predict_panoptic(tokens)[0] if head.tasks[0].kind == "panoptic" else head.predict_instances(tokens)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_their_own_size_give_what_the_head_returns(kind: str, tiny: Backbone) -> None:
    head, images = head_of(kind), [*kit.images(2, 64, 96), *kit.images(1, 32, 48, seed=3)]
    for image, row in zip(images, Predictor({"k": head, "m": kit.head()}, tiny)(images), strict=True):
        expected, found = direct(head, tiny, image), row["k"]["plant"]
        assert kit.same(found, {name: expected[name] for name in found} if isinstance(found, dict) else expected)
        assert isinstance(row["m"]["mass"], float)
    assert len(found[1] if kind == "panoptic" else found["scores"]) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("resize", "pad_to"), [("pad", "corner"), ("pad", "center"), ("crop", "corner")])
def test_objects_lie_where_the_image_lies(kind: str, resize: Any, pad_to: Any, tiny: Backbone) -> None:
    """A canvas of twice the image's scale: what the canvas shows, cut to the image and shrunk, is the answer."""
    recipe, image = tiny.preprocess.changed(size=(96, 96), resize=resize, pad_to=pad_to), kit.images(1, 24, 48)[0]
    head = head_of(kind)
    [row] = Predictor(head, tiny, preprocess=recipe)(image)
    place = recipe.placement((24, 48))
    scale = place.resized[0] // 24
    canvas, (top, left) = [side // scale for side in place.canvas], (corner // scale for corner in place.corner)
    tokens = tiny(recipe(image))
    if kind == "panoptic":
        whole, found = head.predict_panoptic(tokens, canvas)[0][0][None].numpy(), row["plant"][0][None]
        assert [one["area"] for one in row["plant"][1]] == [int((found == one["id"]).sum()) for one in row["plant"][1]]
    else:
        whole, found = head.predict_instances(tokens, canvas)[0]["masks"].numpy(), row["plant"]["masks"]
        whole = np.array([mask for mask in whole if np.roll(mask, (-top, -left), (0, 1))[:24, :48].any()])
    seen = np.zeros((len(whole), 24, 48), whole.dtype)
    rows, cols = (slice(max(0, -corner), min(side, limit - corner)) for corner, side, limit in
                  zip((top, left), (24, 48), canvas, strict=True))  # fmt: skip
    seen[:, rows, cols] = whole[:, rows.start + top : rows.stop + top, cols.start + left : cols.stop + left]
    assert np.array_equal(found, seen)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decode
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_run_lengths_of_coco(kind: str, tiny: Backbone) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    predictor = Predictor(head_of(kind), tiny)
    [row] = predictor(kit.images(1, 64, 96))
    found, plants = coco_objects(row["plant"]), row["plant"]
    masks = [plants[0] == one["id"] for one in plants[1]] if kind == "panoptic" else plants["masks"]
    assert np.array_equal([coco.decode(one["segmentation"]) for one in found], masks)
    assert [one["category_id"] for one in found] == (
        [one["category_id"] for one in plants[1]] if kind == "panoptic" else plants["labels"].tolist()
    )
    for one, mask in zip(found, masks, strict=True):
        down, across = np.nonzero(mask)
        assert one["bbox"][:2] == [across.min(), down.min()] and one["bbox"][2] == across.max() - across.min() + 1
    pytest.importorskip("pandas")
    assert to_frame([row], predictor.tasks)["plant"].tolist() == [len(found)]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt2", "onnx"])
@pytest.mark.parametrize("kind", ["mask", "centres"])
def test_an_exported_model_gives_what_the_head_itself_gives(
    kind: str, form: Any, tiny: Backbone, tmp_path: Path
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
    done = export_model(head_of(kind), tmp_path / "m", format=form, backbone=tiny)
    assert done.outputs == (("plant.classes", "plant.masks") if kind == "mask" else ("mass", "plant.map"))
    assert done.size is None and done.parity is not None and done.parity.largest < 1e-4
    assert [output["shape"] for output in done.description["outputs"]][-1][2:] == ["rows", "cols"]
