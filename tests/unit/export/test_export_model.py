"""Heads alone, and backbone and heads as one model: a file answers what the predictor answers."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from tests.export.runtimes import RUNTIMES
from tests.kit import randomised
from tests.unit.export.shown_maps import DoubledMaps, SameMaps, TwiceShown
from tests.unit.tuned_backbones import train_blocks
from torch import Tensor

from dinoneck import (
    Backbone,
    CheckpointError,
    CLSGatingHead,
    HeadCheckpoint,
    HeadEnsemble,
    MaskHead,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.data import Preprocessing
from dinoneck.export import Exported, export_head, export_model, onnx_file, program

pytestmark = pytest.mark.slow

MASS = Task(
    "mass",
    unit="g",
    activation="softplus",
    transform=TargetTransform(mean=40.0, std=20.0),
    minimum=0.0,
)
STATE = Task("state", dim=3, kind="classification", labels=("a", "b", "c"))
SIZE = (64, 96)  # 4 x 6 patches


@pytest.fixture(scope="module")
def one_block() -> Backbone:
    """Short enough to export in a test."""
    return load_backbone("dinoneck_tiny", layers=[0])


def fed(size: tuple[int, int] | None = SIZE, **changes: Any) -> Preprocessing:
    return Preprocessing(patch_size=16, size=size, **changes)


def run_onnx(path: Path) -> tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, str]]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    image = session.get_inputs()[0].name

    def run(pixels: Tensor) -> dict[str, Tensor]:
        return dict(
            zip(
                names,
                map(torch.as_tensor, session.run(names, {image: pixels.numpy()})),
                strict=True,
            )
        )

    return run, session.get_modelmeta().custom_metadata_map


def assert_answers(found: dict[str, Tensor], predictor: Predictor, images: Tensor) -> None:
    """A predictor of images of the model's own size equals the model on their pixels."""
    rows = predictor(list(images), maps="patch")
    for name, values in found.items():
        if name.endswith(".map") or name == "gate":
            wanted = [
                row["gate"][None] if name == "gate" else row["maps"][name.removesuffix(".map")]
                for row in rows
            ]
        else:
            wanted = [
                np.atleast_1d(row["maps"][name] if values.ndim == 4 else row[name]) for row in rows
            ]
        expected = torch.as_tensor(np.stack(wanted))
        assert values.shape == expected.shape
        assert torch.allclose(values, expected.float(), rtol=1e-4, atol=1e-5), name


@pytest.fixture(scope="module")
def head_file(one_block: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    save_head(
        path,
        randomised(PatchMeanHead(64, [MASS, STATE], hidden_dim=8)),
        backbone=one_block,
        preprocess=fed(),
    )
    return path


@pytest.fixture(scope="module")
def done(head_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("onnxscript")
    return export_model(head_file, tmp_path_factory.mktemp("onnx") / "model.onnx", maps=True)


@pytest.fixture
def head_of_four_views(one_block: Backbone, tmp_path: Path) -> Path:
    """A head that was saved with the views of an image."""
    file = tmp_path / "head.safetensors"
    head = randomised(PatchMeanHead(64, [MASS], hidden_dim=8))
    save_head(file, head, backbone=one_block, preprocess=fed(), tta="flip4")
    return file


def test_a_model_predicts_one_view_and_names_those_of_its_heads(
    head_of_four_views: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="flip4"):
        done = export_model(head_of_four_views, tmp_path / "m.pt2", format="pt2", size=SIZE)

    assert done.description["views"] == {"exported": "none", "recorded": ["flip4"]}
    images = torch.rand(2, 3, *SIZE)
    found = torch.export.load(tmp_path / "m.pt2").module()(images)
    assert_answers(found, Predictor(head_of_four_views, tta="none"), images)
    averaged = [row["mass"] for row in Predictor(head_of_four_views)(list(images))]
    assert not np.allclose(found["mass"].ravel().tolist(), averaged, rtol=1e-4)


def test_an_exported_head_names_its_views(head_of_four_views: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="flip4"):
        done = export_head(head_of_four_views, tmp_path / "h.pt2", format="pt2", grid=(4, 6))

    assert done.description["views"]["recorded"] == ["flip4"]


def test_an_onnx_model_answers_what_the_predictor_answers(done: Exported, head_file: Path) -> None:
    """At batches and sizes that neither the trace nor the check has seen, down to one patch."""
    assert (done.size, done.outputs) == (None, ("mass", "state", "mass.map", "state.map"))
    run, _ = run_onnx(done.files[0])
    for batch, height, width in ((1, 48, 112), (5, 80, 48), (1, 16, 16)):
        images = torch.rand(batch, 3, height, width)
        found = run(images)
        assert list(found) == list(done.outputs)
        assert_answers(found, Predictor(head_file, preprocess=fed(None)), images)


def test_openvino_answers_what_the_predictor_answers(done: Exported, head_file: Path) -> None:
    """It reads the same file, at the same sizes."""
    pytest.importorskip("openvino", reason="needs dinoneck[fast]")
    run = RUNTIMES["OpenVINO"](done.files[0])
    for batch, height, width in ((1, 48, 112), (5, 80, 48), (1, 32, 32)):
        images = torch.rand(batch, 3, height, width)
        outputs = run({"images": images.numpy()})
        found = {name: torch.as_tensor(outputs[name]) for name in done.outputs}
        assert_answers(found, Predictor(head_file, preprocess=fed(None)), images)


def test_its_metadata_are_enough_to_run_it(done: Exported, head_file: Path) -> None:
    _, texts = run_onnx(done.files[0])
    assert json.loads(texts["dinoneck"]) == HeadCheckpoint.load(head_file).meta
    about = json.loads(texts["dinoneck_export"])
    assert about == json.loads(json.dumps(done.description))
    assert (
        about["input"].items()
        >= {"name": "images", "range": [0.0, 1.0], "size": None, "smallest": [32, 32]}.items()
    )
    assert Preprocessing.from_record(about["preprocess"]) == fed()
    outputs = {
        output["name"]: (output["unit"], output["labels"], output["shape"])
        for output in about["outputs"]
    }
    assert outputs["mass"] == ("g", [], ["batch", 1])
    assert outputs["state.map"] == ("", ["a", "b", "c"], ["batch", 3, "rows", "cols"])
    assert done.parity is not None and about["parity"] == done.parity._asdict()


def test_a_size_that_the_patch_does_not_divide_is_refused_by_name(done: Exported) -> None:
    """A convolution alone would drop the rest in silence."""
    run, _ = run_onnx(done.files[0])
    for shape in ((1, 3, 72, 96), (1, 3, 64, 97)):
        with pytest.raises(Exception, match="height_and_width_must_be_multiples_of_16_and_16"):
            run(torch.rand(shape))


def test_pixels_that_the_backbone_refuses_give_no_number(done: Exported) -> None:
    """0 ... 255 gives plausible grams else; neighbours in the batch keep theirs."""
    run, _ = run_onnx(done.files[0])
    images = torch.rand(3, 3, 48, 64)
    wanted = run(images)
    images[1] *= 255
    images[2, 0, 5, 5] = float("nan")
    for name, found in run(images).items():
        assert torch.equal(found[0], wanted[name][0]) and found[1:].isnan().all(), name


def small_head() -> PatchMeanHead:
    return randomised(PatchMeanHead(64, [MASS], hidden_dim=8))


@pytest.fixture(scope="module")
def sized(one_block: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A .pt2 of :func:`small_head` for images of 32 x 48 px."""
    path = tmp_path_factory.mktemp("sized") / "m.pt2"
    return export_model(small_head(), path, format="pt2", backbone=one_block, size=(32, 48))


def test_an_onnx_file_is_sound(done: Exported) -> None:
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(done.files[0], full_check=True)


@pytest.mark.parametrize(
    "fixture", [pytest.param("done", id="onnx"), pytest.param("sized", id="pt2")]
)
def test_a_file_holds_nothing_of_the_machine(fixture: str, request: pytest.FixtureRequest) -> None:
    """The exporter notes source paths on every node: user names, folders, and most of a small model's bytes."""
    exported: Exported = request.getfixturevalue(fixture)

    content = b"".join(path.read_bytes() for path in exported.files)  # stored, not compressed

    assert os.fsencode(Path(torch.__file__).parent) not in content
    assert b"models.py" not in content
    assert b"site-packages" not in content


def test_the_same_head_gives_the_same_bytes(
    sized: Exported, one_block: Backbone, tmp_path: Path
) -> None:
    again = tmp_path / "again.pt2"

    export_model(small_head(), again, format="pt2", backbone=one_block, size=(32, 48))

    assert again.read_bytes() == sized.files[0].read_bytes()


def test_a_size_that_is_asked_for_is_in_the_record(sized: Exported) -> None:
    assert sized.size == (32, 48)
    assert sized.fixed_because is None
    assert sized.description["preprocess"]["size"] == [32, 48]
    extra = {"dinoneck_export": ""}
    torch.export.load(sized.files[0], extra_files=extra)
    assert json.loads(extra["dinoneck_export"])["input"]["size"] == [32, 48]


def test_a_size_that_is_asked_for_is_the_only_one(sized: Exported, one_block: Backbone) -> None:
    run = torch.export.load(sized.files[0]).module()

    images = torch.rand(4, 3, 32, 48)
    assert_answers(run(images), Predictor(small_head(), one_block), images)
    with pytest.raises((AssertionError, RuntimeError)):
        run(torch.rand(1, 3, 48, 48))


def test_a_program_holds_no_pickle(sized: Exported) -> None:
    with zipfile.ZipFile(sized.files[0]) as archive:
        beginnings = {name: archive.read(name)[:2] for name in archive.namelist()}

    assert [name for name, start in beginnings.items() if start == b"\x80\x02"] == []


def test_a_size_that_is_asked_for_replaces_that_of_the_file(
    one_block: Backbone, tmp_path: Path
) -> None:
    head = randomised(PatchMeanHead(64, [MASS], hidden_dim=8))
    checkpoint = HeadCheckpoint.from_module(head, backbone=one_block, preprocess=fed((64, 64)))

    done = export_model(
        checkpoint, tmp_path / "m.pt2", format="pt2", backbone=one_block, size=(32, 48)
    )

    assert done.size == (32, 48)
    assert done.description["preprocess"]["size"] == [32, 48]
    assert done.parity is not None
    assert done.parity.tried == [[1, 32, 48], [3, 32, 48]]


def test_lora_weights_travel_into_the_model(tmp_path: Path) -> None:
    tuned = load_backbone("dinoneck_tiny", layers=[0]).add_lora(rank=2)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    checkpoint = HeadCheckpoint.from_module(
        randomised(PatchMeanHead(64, [MASS], 8)), backbone=tuned, preprocess=fed()
    )
    export_model(checkpoint, tmp_path / "m.pt2", format="pt2", backbone=tuned, size=SIZE)
    assert tuned.adapter.lora is not None  # a copy was merged
    images = torch.rand(2, 3, *SIZE)
    found = torch.export.load(tmp_path / "m.pt2").module()(images)
    assert_answers(found, Predictor(checkpoint), images)
    with tuned.lora_disabled():
        plain = Predictor(checkpoint.build(check_backbone=False), tuned)(list(images))
    assert abs(plain[0]["mass"] - found["mass"][0].item()) > 1e-2


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("pt2", "old", id="pt2"),
        pytest.param("pt2", "new", id="pt2, no file"),
        pytest.param("onnx", "old", id="onnx"),
        pytest.param("onnx", "new", id="onnx, no file"),
    ],
)
def test_a_model_that_differs_is_not_written(
    kind: Any, name: str, head_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, and the file that was there stays."""
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    (tmp_path / "old").write_text("old")
    monkeypatch.setattr(program, "TOLERANCES", {torch.float32: -1.0})

    with pytest.raises(
        CheckpointError, match="^the exported model differs by .* nothing was written"
    ):
        export_model(head_file, tmp_path / name, format=kind, size=(32, 32))

    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"old": "old"}


def test_large_weights_go_into_a_file_of_their_own(
    done: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above protobuf's 2 GiB, with a name that the model which is replaced does not read."""
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 10_000)
    images = torch.rand(2, 3, 32, 64)
    wanted = run_onnx(done.files[0])[0](images)
    written = [
        onnx_file.write_onnx(tmp_path / "model.onnx", onnx.load(done.files[0])) for _ in range(2)
    ]
    assert written[0][1] != written[1][1]
    assert {*written[0], *written[1]} == {*tmp_path.iterdir()}
    assert torch.equal(run_onnx(tmp_path / "model.onnx")[0](images)["mass"], wanted["mass"])
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


@pytest.fixture(scope="module")
def half(head_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("onnxscript")
    return export_model(head_file, tmp_path_factory.mktemp("half") / "model.onnx", half=True)


def test_a_half_model_computes_products_alone_in_float16(half: Exported, done: Exported) -> None:
    """Softmax, norms, rotary positions and original units are computed in float32; weights take half the bytes."""
    onnx = pytest.importorskip("onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load(half.files[0]), strict_mode=True)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.value_info, *model.graph.output)
    }
    products = {"MatMul", "Gemm", "Conv"}
    assert {kinds[node.output[0]] for node in model.graph.node if node.op_type in products} == {
        onnx.TensorProto.FLOAT16
    }
    exact = {"Softmax", "LayerNormalization", "Sin", "Cos", "Add", "Mul"}
    # GELU may be one node
    nodes = [node for node in model.graph.node if node.op_type in {*exact, "Gelu", "Erf"}]
    assert {node.op_type for node in nodes} >= exact
    assert onnx.TensorProto.FLOAT16 not in {kinds[node.output[0]] for node in nodes}
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert weights < 0.6 * sum(
        len(tensor.raw_data) for tensor in onnx.load(done.files[0]).graph.initializer
    )


def test_a_half_model_is_compared_and_predicts_what_the_predictor_does(
    half: Exported, head_file: Path
) -> None:
    assert half.parity is not None and 0 < half.parity.largest < half.parity.tolerance == 2e-2
    run, _ = run_onnx(half.files[0])
    predictor = Predictor(head_file, preprocess=fed(None))
    for batch, height, width in ((1, 48, 112), (3, 80, 48)):
        images = torch.rand(batch, 3, height, width)
        expected = torch.tensor([row["mass"] for row in predictor(list(images))])
        assert torch.allclose(run(images)["mass"].flatten(), expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_the_only_map_of_a_mask_head_is_that_of_its_task(
    num_heads: int, one_block: Backbone, tmp_path: Path
) -> None:
    seg = Task("seg", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))
    heads = []
    for num_queries in range(4, 4 + num_heads):
        heads.append(
            randomised(
                MaskHead(
                    64,
                    [seg],
                    num_layers=1,
                    num_queries=num_queries,
                    num_blocks=1,
                    num_heads=1,
                    dim=16,
                )
            )
        )
    ensemble = HeadEnsemble(heads)

    done = export_model(
        ensemble, tmp_path / "m.pt2", format="pt2", backbone=one_block, size=(32, 48), maps=True
    )

    assert done.description["outputs"] == [
        {
            "name": "seg",
            "shape": ["batch", 3, "rows", "cols"],
            "task": "seg",
            "kind": "segmentation",
            "unit": "",
            "labels": ["soil", "crop", "weed"],
            "of": "task",
            "aggregate": None,
        }
    ]
    images = torch.rand(2, 3, 32, 48)
    found = torch.export.load(tmp_path / "m.pt2").module()(images)
    assert list(found) == ["seg"]
    assert_answers(found, Predictor(ensemble, one_block), images)


def outputs_of_export(head: Any, backbone: Backbone, path: Path) -> list[tuple[Any, ...]]:
    """Export a head with its maps; return the name, meaning, task and shape of each output."""
    done = export_model(
        head, path, format="pt2", backbone=backbone, size=(32, 48), maps=True, check=False
    )
    outputs = done.description["outputs"]
    return [(output["name"], output["of"], output["task"], output["shape"]) for output in outputs]


def test_the_record_of_a_gate_names_no_task(one_block: Backbone, tmp_path: Path) -> None:
    gated = randomised(CLSGatingHead(64, [MASS], mode="query", hidden_dim=8))

    outputs = outputs_of_export(gated, one_block, tmp_path / "m.pt2")

    assert outputs == [
        ("mass", "task", "mass", ["batch", 1]),
        ("gate", "gate", None, ["batch", 1, "rows", "cols"]),
    ]


def test_the_record_of_queries_has_their_classes_and_masks(
    one_block: Backbone, tmp_path: Path
) -> None:
    instances = Task("plant", dim=2, kind="instances")
    queries = randomised(
        MaskHead(64, [instances], num_layers=1, num_queries=5, num_blocks=1, num_heads=1, dim=16)
    )

    outputs = outputs_of_export(queries, one_block, tmp_path / "m.pt2")

    assert outputs == [
        ("plant.classes", "classes", "plant", ["batch", 5, 3]),
        ("plant.masks", "masks", "plant", ["batch", 5, "rows", "cols"]),
    ]


def test_a_head_with_a_grid_of_its_own(tiny: Backbone, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    head = randomised(CLSGatingHead(64, [STATE], num_patches=6, hidden_dim=8))
    checkpoint = HeadCheckpoint.from_module(head, backbone=tiny)
    export_head(checkpoint, tmp_path / "h.pt2", format="pt2", grid=(2, 3))
    done = export_head(checkpoint, tmp_path / "h.onnx", grid=(2, 3))
    assert done.parity is not None and done.parity.largest < 1e-5  # in ONNX Runtime
    tokens = kit.tokens_from(torch.randn(5, 3 + 6, 64), 2, 3, 3, layers=(5,), normed=True)
    wanted, extra = checkpoint.build().predict(tokens)["state"], {"dinoneck": ""}  # type: ignore[operator]
    program = torch.export.load(tmp_path / "h.pt2", extra_files=extra).module()
    assert json.loads(extra["dinoneck"]) == checkpoint.meta
    assert torch.allclose(program(tokens)["state"], wanted, atol=1e-6)


def test_the_grid_of_the_images_fixes_a_gate_over_places(tiny: Backbone, tmp_path: Path) -> None:
    head = CLSGatingHead(64, [STATE], num_patches=6, hidden_dim=8)
    checkpoint = HeadCheckpoint.from_module(
        head, backbone=tiny, preprocess=Preprocessing(patch_size=16, size=(32, 48))
    )
    with pytest.warns(
        UserWarning, match=r"takes 2x3 patches only: a gate of mode 'mlp'.*grid=\(rows, cols\)"
    ):
        done = export_head(checkpoint, tmp_path / "h.pt2", format="pt2")
    assert (
        done.size == (2, 3)
        and done.parity is not None
        and done.parity.tried == [[1, 2, 3], [3, 2, 3]]
    )
    with pytest.raises(CheckpointError, match="2 rows x 3 cols"):
        export_head(checkpoint, tmp_path / "other.pt2", format="pt2", grid=(3, 2))


def test_a_head_is_exported_next_to_a_backbone_that_was_trained(tmp_path: Path) -> None:
    backbone = kit.backbone()
    train_blocks(backbone)
    head = kit.head()
    done = export_head(head, tmp_path / "h.pt2", format="pt2", backbone=backbone, grid=(2, 3))
    assert done.description["outputs"][0]["name"] == "mass"


@pytest.mark.parametrize("in_ensemble", [False, True], ids=["alone", "in an ensemble"])
def test_a_head_that_shows_other_maps_than_those_of_its_values_is_refused(
    in_ensemble: bool, one_block: Backbone, tmp_path: Path
) -> None:
    head: Any = TwiceShown(64, [Task("height", kind="dense")], hidden_dim=8)
    if in_ensemble:
        head = HeadEnsemble([head])
    with pytest.raises(CheckpointError, match="TwiceShown replaces natural or predict_maps"):
        export_model(head, tmp_path / "m.pt2", format="pt2", backbone=one_block)
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize("in_ensemble", [False, True], ids=["alone", "in an ensemble"])
def test_the_maps_of_a_head_with_own_predict_outputs_are_compared(
    in_ensemble: bool, one_block: Backbone, tmp_path: Path
) -> None:
    height = Task("height", kind="dense")
    heads: list[Any] = []
    for kind in (DoubledMaps, SameMaps):
        head: Any = randomised(kind(64, [height], pool=None))
        heads.append(HeadEnsemble([head]) if in_ensemble else head)
    other, same = heads
    with pytest.raises(CheckpointError, match="DoubledMaps shows other maps of 'height' than"):
        export_model(other, tmp_path / "m.pt2", format="pt2", backbone=one_block)
    assert not (tmp_path / "m.pt2").exists()
    export_model(same, tmp_path / "m.pt2", format="pt2", backbone=one_block, check=False)
