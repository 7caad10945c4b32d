"""Training and evaluation of surface normals: runs, scores of angles, views of stored tokens, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from torch import Tensor

from dinoneck import (
    DenseHead,
    HeadCheckpoint,
    LinearHead,
    Predictor,
    Task,
    Tokens,
    load_backbone,
    save_head,
)
from dinoneck.data import Views
from dinoneck.data.normals import NormalLabels
from dinoneck.errors import ConfigError
from dinoneck.evaluation import evaluate
from dinoneck.export import export_model
from dinoneck.metrics import (
    ANGLE_METRICS,
    NUM_ANGLE_TERMS,
    angle_terms,
    share_within,
)
from dinoneck.training import train
from dinoneck.training.batches import BatchReader, BatchRows
from dinoneck.training.samples import Samples, Targets
from dinoneck.viz import write_maps
from dinoneck.viz.score_tables import all_tables

NORMALS = Task("normals", kind="dense", dim=3, activation="unit")
WALLS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.8, 0.6], [0.8, 0.0, 0.6]])


def tilted(angles: Any) -> Tensor:
    """Vectors (3, 1, n) that lean so many degrees from the z axis."""
    radians = torch.as_tensor(angles).double().deg2rad()
    return torch.stack([radians.sin(), torch.zeros_like(radians), radians.cos()])[:, None]


def scores_of(angles: Any) -> dict[str, float]:
    terms = angle_terms(tilted(torch.zeros(len(angles))), tilted(angles))
    return {metric.name: float(metric.of_sums(terms)) for metric in ANGLE_METRICS}


def test_scores_are_those_of_all_angles() -> None:
    angles = [1.0, 5.0, 11.0, 12.0, 23.0, 29.0, 31.0, 90.0, 180.0]
    scores = scores_of(angles)
    assert scores["mean_angle"] == pytest.approx(np.mean(angles))
    assert scores["median_angle"] == pytest.approx(23.0, abs=0.25)
    assert scores["within_11"] == pytest.approx(3 / 9)
    assert scores["within_22"] == pytest.approx(4 / 9)
    assert scores["within_30"] == pytest.approx(6 / 9)


@pytest.mark.parametrize("median", [0.01, 0.4, 11.2, 30.0, 100.0])
def test_the_median_is_exact_to_a_step(median: float) -> None:
    random = np.random.default_rng(0)
    angles = np.concatenate([random.uniform(0, median, 500), random.uniform(median, 180, 500)])
    step = 0.05 if median < 12 else 1.0
    assert scores_of(angles)["median_angle"] == pytest.approx(np.median(angles), abs=step)


def test_angles_right_below_and_at_a_bound_are_told_apart() -> None:
    assert scores_of([11.2499])["within_11"] == 1.0
    assert scores_of([11.2501])["within_11"] == 0.0


def test_equal_vectors_have_the_angle_0_and_a_zero_vector_90_degrees() -> None:
    truth = torch.nn.functional.normalize(torch.randn(3, 1, 50), dim=0)
    assert angle_terms(truth, truth)[0] < 1e-4
    assert angle_terms(truth, 5 * truth)[0] < 1e-4
    assert angle_terms(truth, torch.zeros_like(truth))[0] == pytest.approx(50 * 90.0)


def test_unknown_pixels_do_not_count() -> None:
    truth = tilted([0.0, 0.0])
    truth[:, :, 1] = torch.nan
    terms = angle_terms(truth, tilted([10.0, 80.0]))
    assert terms.shape == (NUM_ANGLE_TERMS,)
    assert terms[0] == pytest.approx(10.0)
    assert terms[1:].sum() == 1


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of patches of three colours, each a wall, and their normals."""
    root = tmp_path_factory.mktemp("walls")
    random = np.random.default_rng(0)
    colours = np.array([[40, 40, 200], [40, 200, 40], [200, 40, 40]], np.uint8)
    (root / "images").mkdir()
    for i in range(9):
        kinds = random.integers(0, 3, (3, 4)).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(colours[kinds]).save(root / "images" / f"{i}.png")
        normals = WALLS.numpy()[kinds].transpose(2, 0, 1)
        write_maps(root / "truth", str(i), {"normals": normals}, [NORMALS])
    return root


def config_of(walls: Path, **data: Any) -> dict[str, Any]:
    return {
        "data": {
            "images": str(walls / "images"),
            "labels": str(walls / "truth"),
            "label_kind": "normals",
            **data,
        },
        "backbone": {"name": "dinoneck_tiny", "random": True},
        "optim": {"epochs": 10, "batch_size": 3},
        "folds": {"count": 3},
    }


@pytest.fixture(scope="module")
def run(walls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(config_of(walls), out)
    return out


@pytest.mark.slow
def test_a_run_scores_angles_beside_its_baseline(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    scores = report["scores"]["truth"]
    assert set(scores) == {"head", "linear", "average"}
    linear = scores["linear"]  # walls of a colour are linear in it, but for pixels between patches
    assert linear["mean_angle"]["pooled"] < 15
    assert linear["median_angle"]["pooled"] < 10
    assert scores["head"]["images"] == 9
    low, high = scores["head"]["within_11"]["interval"]
    assert low <= scores["head"]["within_11"]["pooled"] <= high
    assert report["choice"]["metric"] == "within_11"
    [table] = all_tables(report)
    assert table.header[:4] == [
        "truth, 9 images held out",
        "mean angle (°)",
        "median angle (°)",
        "within 11.25°",
    ]


def test_its_heads_are_of_normals(run: Path) -> None:
    [task] = HeadCheckpoint.load(run / "head.safetensors").build().tasks
    assert task.is_unit and task.name == "truth"


def test_a_share_within_an_angle_inside_a_step_is_refused() -> None:
    sums = angle_terms(tilted([10.0, 20.0]), tilted([0.0, 0.0]))
    assert share_within(sums, 11.25) == 0.5
    with pytest.raises(ConfigError, match=r"degrees is 11\.27; expected an end of the steps"):
        share_within(sums, 11.27)


def test_evaluate_gives_the_scores_of_the_predictions(run: Path, walls: Path) -> None:
    report = evaluate(run, walls / "images", walls / "truth")
    scores = report["scores"]["truth"]["head"]
    predictor = Predictor(run)
    angles = []
    for image in sorted((walls / "images").iterdir()):
        [row] = predictor(image, maps="patch")
        truth = NormalLabels().pixels(walls / "truth" / f"{image.stem}.tif", predictor.preprocess)
        cells = torch.from_numpy(row["maps"]["truth"])[None]
        resized = torch.nn.functional.interpolate(cells, truth.shape[1:], mode="bilinear")[0]
        cosine = torch.nn.functional.cosine_similarity(resized.double(), truth.double(), dim=0)
        angles.append(cosine.clamp(-1, 1).acos().rad2deg().flatten())
    all_angles = torch.cat(angles)
    assert scores["mean_angle"]["pooled"] == pytest.approx(all_angles.mean().item(), abs=0.01)
    within = (all_angles < 11.25).double().mean().item()
    assert scores["within_11"]["pooled"] == pytest.approx(within, abs=1e-3)


def test_predict_writes_maps_and_asks_for_a_folder_of_them(
    run: Path, walls: Path, tmp_path: Path
) -> None:
    image = walls / "images" / "0.png"
    words = ("predict", image, "--heads", run, "--out", tmp_path / "names.csv")
    refused = kit.cli(*words)
    assert refused.code == 1
    assert "surface normals (truth), which have no number for an image" in refused.err
    written = kit.cli(*words, "--maps", tmp_path / "maps", "--overlay", tmp_path / "pictures")
    assert written.code == 0
    assert (tmp_path / "names.csv").read_text().split() == ["image", str(image)]
    vectors = kit.read_bands(tmp_path / "maps" / "0.tif")
    assert np.allclose(np.linalg.norm(vectors, axis=0), 1.0, atol=1e-6)
    assert (tmp_path / "pictures" / "0.jpg").is_file()


def test_evaluate_has_a_smallest_share_of_normals(run: Path, walls: Path) -> None:
    words = ("evaluate", walls / "images", "--heads", run, "--truth", walls / "truth")
    assert kit.cli(*words, "--at-least", "truth=0.01").code == 0
    assert kit.cli(*words, "--at-least", "truth=1.0").code == 1


def test_evaluate_refuses_options_of_masks_of_classes(run: Path, walls: Path) -> None:
    with pytest.raises(ConfigError, match="the heads predict surface normals, truth"):
        evaluate(run, walls / "images", walls / "truth", nodata=(0,))


def test_evaluate_refuses_normals_next_to_classes_of_pixels(walls: Path) -> None:
    head = DenseHead(64, [NORMALS, Task("land", dim=2, kind="segmentation")])
    predictor = Predictor(head, load_backbone("dinoneck_tiny"))
    with pytest.raises(
        ConfigError, match="pixels, land, and surface normals, normals, and the file"
    ):
        evaluate(predictor, walls / "images", walls / "truth")


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"nodata": [0]}, {}, "nodata is .*, and label_kind is 'normals'"),
    ({"scale": 2.0}, {}, "scale is 2.0, and label_kind is 'normals'"),
    ({"classes": ["a"]}, {}, "classes is .*, and label_kind is 'normals'"),
    ({}, {"kind": "segmentation"}, "data.label_kind is 'normals'; write 'classes'"),
    ({}, {"kind": "dense", "activation": "relu"}, "has the activation 'relu', and data.label_kind"),
    ({}, {"kind": "dense", "minimum": 0.0}, "minimum is 0.0; expected None: surface normals"),
    ({}, {"kind": "dense", "loss": "mse"}, "expected one for activation 'unit': cosine"),
    ({}, {"kind": "dense", "log1p": True}, "is of surface normals, which have no 'log1p'"),
    ({"label_kind": "numbers"}, {"kind": "dense", "activation": "unit"}, "label_kind: normals"),
]


@pytest.mark.parametrize(("data", "task", "message"), REFUSED)
def test_a_run_refuses_options_that_normals_have_not(
    data: dict[str, Any], task: dict[str, Any], message: str, walls: Path, tmp_path: Path
) -> None:
    config = config_of(walls, **data)
    if task:
        config["tasks"] = {"truth": task}
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")


def test_targets_of_stored_views_are_turned_with_the_images() -> None:
    views = Views.named("d6")
    vectors = torch.nn.functional.normalize(torch.randn(1, 3, 4, 4), dim=1)

    class Source:
        ids = ("a",)

        def __init__(self) -> None:
            self.views = views

        def batch(self, ids: Any, views: Any = None) -> Any:
            return Tokens.from_patches(torch.zeros(1, 16, 4), grid=(4, 4), patch_size=16)

    samples = Samples(
        ids=["a"],
        train_count=1,
        targets=Targets({"normals": vectors}, {"normals": torch.ones(1, 4, 4)}),
    )
    source: Any = Source()
    reader = BatchReader(
        source,
        samples,
        maps={"normals"},
        device=torch.device("cpu"),
        vector_maps={"normals"},
    )
    for view in range(len(views)):
        rows = BatchRows([0], views=[view], num_images=1, mixes=False)
        placed = reader.read(rows, is_training=True).targets.values["normals"]
        assert torch.equal(placed[0], views.place_vectors(vectors[0], view))
        assert torch.allclose(views.undo_vectors(placed[0], view), vectors[0])
    horizontal = views.place_vectors(vectors[0], 1)
    assert torch.equal(horizontal[0], -vectors[0, 0].flip(-1))
    assert torch.equal(horizontal[1:], vectors[0, 1:].flip(-1))


@pytest.mark.slow
def test_a_head_of_finer_maps_learns_normals_of_its_cells(walls: Path, tmp_path: Path) -> None:
    config = config_of(walls) | {
        "head": {"type": "dpt_neck", "out_channels": 8, "hidden_sizes": [4, 4, 4, 4]},
        "backbone": {"name": "dinoneck_tiny", "random": True, "layers": [2, 3, 4, 5]},
        "optim": {"epochs": 1, "batch_size": 9},
        "folds": {"count": 2},
    }
    result = train(config, tmp_path / "run")
    assert result["scores"]["truth"]["head"]["images"] == 9
    [row] = Predictor(tmp_path / "run" / "heads" / "fold-0.safetensors")(
        walls / "images" / "0.png", maps="patch"
    )
    assert row["maps"]["truth"].shape[1] > 3


@pytest.mark.slow
def test_an_exported_model_gives_vectors_of_length_1(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    backbone = load_backbone("dinoneck_tiny", layers=[0])
    head = LinearHead(backbone.embed_dim, [NORMALS], pool=None).eval()
    image = torch.rand(1, 3, 32, 48)
    prepare = backbone.preprocess.changed(size=(32, 48))
    head_file = tmp_path / "normals.safetensors"
    save_head(head_file, head, backbone=backbone, preprocess=prepare)
    predictor = Predictor(head_file)
    path = tmp_path / "normals.onnx"

    export_model(head_file, path)

    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [normals] = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert np.allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-6)
    [row] = predictor(image[0], maps="patch")
    assert np.allclose(normals[0], row["maps"]["normals"], atol=1e-4)
    properties = session.get_modelmeta().custom_metadata_map
    [output] = json.loads(properties["dinoneck_export"])["outputs"]
    assert output["activation"] == "unit"
