"""Exported files predict what their heads predict, in this process and in one that has no torch."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit

from dinoneck import (
    CheckpointError,
    ConfigError,
    DataError,
    DenseHead,
    HeadEnsemble,
    Predictor,
    TargetTransform,
    Task,
)
from dinoneck.data import Preprocessing
from dinoneck.export import export_head, export_model
from dinoneck.kinds import FILE_RUNTIMES
from dinoneck.runtime import ExportedPredictor, open_exported

ROOT = Path(__file__).resolve().parents[3]
MASS = Task(
    "mass",
    unit="g",
    activation="softplus",
    transform=TargetTransform(mean=40.0, std=20.0),
    minimum=0.0,
)
STATE = Task("state", dim=3, kind="classification", labels=("a", "b", "c"))
NDVI = Task("ndvi", kind="dense")
COVER = Task("cover", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))
CROP = Task("crop", from_map="cover", minimum=0.1)
HEADS = kit.randomised(
    HeadEnsemble(
        [
            kit.head(MASS, STATE),
            DenseHead(64, [NDVI, COVER, CROP], hidden_dim=8, depth=0),
        ]
    )
)
# the runtime's own rounding, and that of the model
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
# any import of these fails, as in an environment without them
WITHOUT_TORCH = """
import sys
import tomllib
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "safetensors", "onnx", "pandas"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
from dinoneck.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The heads with their backbone, for images of any size, with maps."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export_model(HEADS, path, backbone=kit.backbone(layers=[0]), check=False, maps=True)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEGs of odd sizes: landscape, small; a JPEG and a grey TIFF turned by EXIF tags; a 16-bit and a palette PNG."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)

    def picture(height: int, width: int) -> Image.Image:
        coarse = generator.integers(
            0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8
        )
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(331, 517).save(folder / "wide.jpg", quality=90)
    picture(301, 467).save(folder / "turned.jpg", exif=exif)
    picture(160, 230).convert("L").save(folder / "grey.tif", exif=exif)
    picture(47, 61).save(folder / "small.jpg")
    Image.fromarray(generator.integers(0, 65536, (91, 133), dtype=np.uint16)).save(
        folder / "deep.png"
    )
    picture(120, 90).quantize(16).save(folder / "palette.png")
    return sorted(folder.iterdir())


def changed(model: Path, path: Path, **entries: Any) -> Path:
    """The model, with other entries in its description."""
    onnx = pytest.importorskip("onnx")
    proto = onnx.load(model)
    [entry] = [entry for entry in proto.metadata_props if entry.key == "dinoneck_export"]
    description = json.loads(entry.value) | entries
    entry.value = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    onnx.save(proto, path)
    return path


def assert_same_row(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        if name == "maps":
            assert_same_row(row["maps"], value)
        elif getattr(value, "dtype", None) == np.int64:  # classes: rounding may turn a tie
            assert row[name].shape == value.shape
            assert (row[name] != value).mean() < 1e-3
        else:
            np.testing.assert_allclose(row[name], value, **TOLERANCE)


RECIPES: dict[str, dict[str, Any]] = {
    "stretch": {"size": (80, 96), "resize": "stretch"},
    "crop": {"size": (80, 96), "resize": "crop", "blur": 5},
    "bicubic": {"size": (96, 80), "interpolation": "bicubic"},
    "bits": {"size": (80, 96), "interpolation": "area", "bits": 16},
    "aliased": {"size": (80, 96), "interpolation": "bilinear_aliased"},
    "centred": {"size": (90, 90), "resize": "pad", "pad_to": "center", "interpolation": "area"},
    "own size": {"resize": "pad"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_file_predicts_what_its_heads_predict(
    name: str, model: Path, images: list[Path], tmp_path: Path
) -> None:
    recipe = Preprocessing(patch_size=16, **RECIPES[name])
    file = changed(model, tmp_path / "m.onnx", preprocess=recipe.record())
    usable = [image for image in images if name != "own size" or image.name != "small.jpg"]
    predictor = Predictor(HEADS, kit.backbone(layers=[0]), preprocess=recipe)
    exported = Predictor(str(file))
    assert isinstance(exported, ExportedPredictor)
    for maps in (None, "patch", "image"):
        rows = exported(usable, maps)
        for row, expected in zip(rows, predictor(usable, maps), strict=True):
            assert_same_row(row, expected)


def test_openvino_predicts_the_same(model: Path, images: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    recipe = Preprocessing(patch_size=16, size=(80, 96))
    file = changed(model, tmp_path / "m.onnx", preprocess=recipe.record())
    expected_rows = open_exported(file)(images, "patch")
    for row, expected in zip(
        open_exported(file, "openvino")(images, "patch"), expected_rows, strict=True
    ):
        assert_same_row(row, expected)


@pytest.mark.slow
def test_the_command_line_needs_no_torch(model: Path, images: list[Path], tmp_path: Path) -> None:
    recipe = Preprocessing(patch_size=16, size=(80, 96))
    file = changed(model, tmp_path / "m.onnx", preprocess=recipe.record())
    words = ["predict", *map(str, images), "--heads", str(file), "--out", "p.csv"]
    words += ["--maps", "maps", "--overlay", "pictures"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "p.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    predictor = Predictor(HEADS, kit.backbone(layers=[0]), preprocess=recipe)
    assert [row["image"] for row in rows] == [str(image) for image in images]
    for row, expected in zip(rows, predictor(images), strict=True):
        assert float(row["mass"]) == pytest.approx(expected["mass"], rel=1e-4)
        assert row["state"] == "abc"[int(expected["state"].argmax())]
        assert float(row["crop"]) == pytest.approx(expected["crop"], rel=1e-4)
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == [f"{image.stem}.jpg" for image in images]
    classes = np.asarray(Image.open(tmp_path / "maps" / "cover" / "wide.png"))
    [expected_maps] = predictor.predictions(images[-1])
    assert (classes == expected_maps.image_maps()["cover"]).mean() > 0.999


def test_pixels_that_are_not_finite_are_refused(model: Path, tmp_path: Path) -> None:
    recipe = Preprocessing(patch_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    file = changed(model, tmp_path / "m.onnx", preprocess=recipe.record())
    black = np.zeros((80, 96, 3), np.float32)
    exported = open_exported(file)
    assert np.isfinite(exported.one(black)["mass"])
    black[0, 0] = np.nan
    with pytest.raises(DataError, match="expected floats in 0 ... 1"):
        exported.one(black)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"runtime": "auto"}, "tokens of a backbone", id="runtime of a backbone"),
        pytest.param({"runtime": "onnxruntim"}, "Did you mean 'onnxruntime'", id="unknown runtime"),
        pytest.param({"tile": 64}, "no tiles", id="tiles"),
        pytest.param({"tta": "flip4"}, "one view", id="views"),
        pytest.param({"weights": [1.0]}, "leave weights out", id="weights"),
    ],
)
def test_what_a_file_has_not_is_refused(
    arguments: dict[str, Any], message: str, model: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(str(model), **arguments)


@pytest.mark.parametrize("as_mapping", [False, True], ids=["list", "mapping"])
def test_a_file_predicts_alone(as_mapping: bool, model: Path) -> None:
    heads: Any = {"cover": str(model)} if as_mapping else [str(model), HEADS]
    with pytest.raises(ConfigError, match="predicts alone"):
        Predictor(heads)


def test_a_runtime_of_files_is_none_of_heads() -> None:
    with pytest.raises(ConfigError, match="runs an exported file"):
        Predictor(HEADS, kit.backbone(layers=[0]), runtime="onnxruntime")
    assert FILE_RUNTIMES == ("onnxruntime", "openvino")


@pytest.mark.slow
def test_a_head_without_its_backbone_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    export_head(
        kit.head(MASS), tmp_path / "head.onnx", backbone=kit.backbone(layers=[0]), check=False
    )
    with pytest.raises(CheckpointError, match="without its backbone"):
        open_exported(tmp_path / "head.onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param({"format": 3}, "install a newer dinoneck", id="later version"),
        pytest.param({"outputs": [{}]}, "is damaged", id="damaged"),
        pytest.param({"preprocess": None}, "how images are prepared", id="no recipe"),
        pytest.param({"input": 5}, "is damaged", id="a number as input"),
        pytest.param({"input": None}, "is damaged", id="null as input"),
        pytest.param({"views": 5}, "is damaged", id="a number as views"),
        pytest.param(
            {"views": {"exported": "none"}}, "is damaged", id="views without those of heads"
        ),
        pytest.param({"outputs": []}, "has no outputs", id="no outputs"),
    ],
)
def test_other_descriptions_are_refused(
    entries: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_exported(changed(model, tmp_path / "m.onnx", **entries))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        pytest.param("crop", {"from_map": "covers"}, "which is no map of it", id="no such map"),
        pytest.param("crop", {"from_map": "mass"}, "which is no map of it", id="mean of a number"),
        pytest.param("crop", {"name": "wheat"}, "is of no task", id="output of no task"),
        pytest.param(
            "cover", {"labels": ["a", "b", "c"]}, "whose labels are a, b, c", id="no channel"
        ),
        pytest.param("ndvi", {"kind": "density"}, "does not fit its task", id="another kind"),
        pytest.param("state", {"dim": 2}, "does not fit its task", id="another dim"),
    ],
)
def test_tasks_that_the_outputs_do_not_predict_are_refused(
    task: str,
    changes: dict[str, Any],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = record_of(model)["tasks"]
    for record in tasks:
        if record["name"] == task:
            record |= changes
    file = changed(
        model, tmp_path / "m.onnx", tasks=tasks, preprocess=Preprocessing(patch_size=16).record()
    )
    monkeypatch.setattr("dinoneck.runtime.exported.open_session", None)
    with pytest.raises(CheckpointError, match=message):
        open_exported(file)


def test_a_task_without_an_output_is_refused(model: Path, tmp_path: Path) -> None:
    outputs = [output for output in record_of(model)["outputs"] if output["name"] != "mass"]
    file = changed(
        model,
        tmp_path / "m.onnx",
        outputs=outputs,
        preprocess=Preprocessing(patch_size=16).record(),
    )
    with pytest.raises(CheckpointError, match="no output predicts the task 'mass'"):
        open_exported(file)


def small_onnx(path: Path, edit: Any = None) -> Path:
    """A file of one operator that dinoneck did not write."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    floats = onnx.TensorProto.FLOAT
    value = helper.make_tensor_value_info("x", floats, [1])
    result = helper.make_tensor_value_info("y", floats, [1])
    weight = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value], [result], [weight])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    if edit is not None:
        edit(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def external(location: str) -> Any:
    def edit(proto: Any) -> None:
        [tensor] = proto.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=location)

    return edit


def external_with_offset(proto: Any) -> None:
    external("../w.data")(proto)
    [tensor] = proto.graph.initializer
    tensor.external_data.add(key="offset", value="16")


def external_without_location(proto: Any) -> None:
    external("w.data")(proto)
    [tensor] = proto.graph.initializer
    tensor.external_data[0].key = "offset"


def record_of(model: Path) -> dict[str, Any]:
    """The description in a file."""
    onnx = pytest.importorskip("onnx")
    [entry] = [entry for entry in onnx.load(model).metadata_props if entry.key == "dinoneck_export"]
    record: dict[str, Any] = json.loads(entry.value)
    return record


def inside_of_if(proto: Any) -> None:
    """Hide an operator of another domain in the branch of a condition."""
    import onnx

    helper = onnx.helper
    branch = helper.make_graph(
        [helper.make_node("Run", ["x"], ["z"], domain="evil")],
        "branch",
        [],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1])],
    )
    proto.graph.node.append(
        helper.make_node("If", ["c"], ["r"], then_branch=branch, else_branch=branch)
    )


def twice(proto: Any) -> None:
    for _ in range(2):
        proto.metadata_props.add(key="dinoneck_export", value="{}")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        pytest.param(None, "was not written by 'dinoneck export'", id="another program's"),
        pytest.param(external("w.data"), "a second file, 'w.data'", id="second file"),
        pytest.param(external("../w.data"), "outside of its folder", id="parent folder"),
        pytest.param(external("/etc/passwd"), "outside of its folder", id="absolute path"),
        pytest.param(external("C:\\w"), "outside of its folder", id="path of Windows"),
        pytest.param(external_with_offset, "outside of its folder, '../w.data'", id="offset"),
        pytest.param(external_without_location, "does not state where", id="no location"),
        pytest.param(inside_of_if, "evil::Run", id="custom operator in a branch"),
        pytest.param(twice, "twice", id="an entry twice"),
    ],
)
def test_unsafe_and_foreign_files_are_refused_before_they_are_opened(
    edit: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinoneck.runtime.exported.open_session", None)
    with pytest.raises(CheckpointError, match=message.replace("\\", "\\\\")):
        open_exported(small_onnx(tmp_path / "small.onnx", edit))


def message_field(number: int, content: bytes, *, hidden: bool = False) -> bytes:
    """A field of bytes; hidden: of a tag with a bit beyond the 32nd, which protobuf in C++ drops."""
    tag = number << 3 | 2
    if hidden:
        tag |= 1 << 32
    coded = b""
    for remaining in (tag, len(content)):
        while remaining >= 0x80:
            coded += bytes([remaining & 0x7F | 0x80])
            remaining >>= 7
        coded += bytes([remaining])
    return coded + content


def hidden_weights() -> bytes:
    """A model whose weight lies in another file, of a field 13 with a tag of five bytes."""
    location = message_field(1, b"location") + message_field(2, b"/etc/passwd")
    tensor = message_field(8, b"w") + message_field(13, location, hidden=True)
    return message_field(7, message_field(5, tensor))


def hidden_domain() -> bytes:
    node = message_field(4, b"Run") + message_field(7, b"evil", hidden=True)
    return message_field(7, message_field(1, node))


def hidden_functions() -> bytes:
    return message_field(7, b"") + message_field(25, message_field(1, b"Add"), hidden=True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(hidden_weights(), id="weights in another file"),
        pytest.param(hidden_domain(), id="domain of an operator"),
        pytest.param(hidden_functions(), id="functions"),
    ],
)
def test_fields_that_protobuf_reads_otherwise_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "hidden.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match="more than 29 bits"):
        open_exported(tmp_path / "hidden.onnx")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a zip file",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x3a\x7f",
    ],
    ids=["empty", "zip", "git lfs", "long number", "cut"],
)
def test_other_files_are_no_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not an ONNX file"):
        open_exported(tmp_path / "other.onnx")


@pytest.mark.parametrize("size", [(64, 48), (224, 224), (301, 33), (17, 1)], ids=str)
def test_8_bits_are_resized_to_the_same_integers(size: tuple[int, int]) -> None:
    from dinoneck.images.preprocessing import resample
    from dinoneck.runtime import resampling

    image = np.random.default_rng(0).integers(0, 256, (3, 97, 131), dtype=np.uint8)
    expected = resample(torch.from_numpy(image)[None], size, "bilinear")[0].numpy()
    np.testing.assert_array_equal(resampling.resample(image, size, "bilinear"), expected)


def test_what_files_need_is_what_the_package_needs() -> None:
    """The shipped list has the versions of pyproject.toml, and only packages of it."""
    from importlib.resources import files

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *project["optional-dependencies"]["export"]}
    listed = files("dinoneck.runtime").joinpath("requirements.txt").read_text().splitlines()
    assert {*listed} <= known
    assert not any(line.startswith(("torch", "timm", "onnx>")) for line in listed)


def test_the_service_takes_a_file(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from dinoneck.serve.models import open_model
    from dinoneck.serve.settings import Settings

    recipe = Preprocessing(patch_size=16, size=(80, 96))
    file = changed(model, tmp_path / "m.onnx", preprocess=recipe.record())
    served = open_model(str(file), Settings())
    image = torch.rand(3, 70, 90)
    expected = Predictor(HEADS, kit.backbone(layers=[0]), preprocess=recipe).one(image, "patch")
    answer = served.predict(image, "lists")
    assert answer["values"]["mass"] == pytest.approx(expected["mass"], rel=1e-4)
    np.testing.assert_allclose(answer["maps"]["ndvi"], expected["maps"]["ndvi"], **TOLERANCE)
    assert [task["name"] for task in served.facts["tasks"]] == [*expected][:5]
    with pytest.raises(ConfigError, match="no effect on the exported file"):
        open_model(str(file), Settings(tta="flip4"))
    with pytest.raises(ConfigError, match="overlap is 3, which has no effect on the exported file"):
        open_model(str(file), Settings(overlap=3))


def test_evaluate_scores_a_file_as_its_heads(
    model: Path, images: list[Path], tmp_path: Path
) -> None:
    pd = pytest.importorskip("pandas")
    from dinoneck import evaluate

    recipe = Preprocessing(patch_size=16, size=(80, 96))
    file = changed(model, tmp_path / "m.onnx", preprocess=recipe.record())
    predictor = Predictor(HEADS, kit.backbone(layers=[0]), preprocess=recipe)
    rows = predictor(images)
    table = pd.DataFrame(
        {
            "image": [image.name for image in images],
            "mass": [row["mass"] + number for number, row in enumerate(rows)],
        }
    )
    report = evaluate({"head": predictor, "file": str(file)}, images[0].parent, table)
    scores = report["scores"]["mass"]
    expected = scores["head"]["r2"]["pooled"]
    assert scores["file"]["r2"]["pooled"] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(DataError, match="holds objects, and mass"):
        evaluate(str(file), images[0].parent, tmp_path / "truth.json")


def opened(model: Path, path: Path) -> ExportedPredictor:
    recipe = Preprocessing(patch_size=16, size=(80, 96))
    exported = open_exported(changed(model, path, preprocess=recipe.record()))
    assert isinstance(exported, ExportedPredictor)
    return exported


def test_a_task_called_image_has_no_rows_of_a_folder(
    model: Path, images: list[Path], tmp_path: Path
) -> None:
    exported = opened(model, tmp_path / "m.onnx")
    renamed = [msgspec.structs.replace(output) for output in exported.record.outputs]
    for output in renamed:
        output.task = "image" if output.task == "mass" else output.task
    tasks = [
        dataclasses.replace(task, name="image") if task.name == "mass" else task
        for task in exported.tasks
    ]
    record = msgspec.structs.replace(exported.record, outputs=renamed, tasks=tuple(tasks))
    exported = ExportedPredictor(
        "m.onnx",
        record,
        model.read_bytes(),
        runtime="onnxruntime",
        batch_size=None,
        bits=None,
        num_threads=None,
    )
    with pytest.raises(ConfigError, match="pass the images of .* as a list"):
        exported(images[0].parent)
    [row] = exported(images[:1])
    assert isinstance(row["image"], float)


def test_a_row_can_be_changed(model: Path, images: list[Path], tmp_path: Path) -> None:
    [prediction] = opened(model, tmp_path / "m.onnx").predictions(images[:1])
    first = prediction.row("patch")
    expected = first["maps"]["ndvi"].copy()
    first["maps"]["ndvi"][:] = 7
    first["state"][:] = 7
    second = prediction.row("patch")
    np.testing.assert_array_equal(second["maps"]["ndvi"], expected)
    assert (second["state"] != 7).all()


def test_images_may_be_any_iterable_but_a_mapping(
    model: Path, images: list[Path], tmp_path: Path
) -> None:
    exported = opened(model, tmp_path / "m.onnx")
    assert len(exported(image for image in images[:2])) == 2
    with pytest.raises(DataError, match="images are dict"):
        exported({images[0]: 1})


def test_a_name_that_no_system_takes_is_no_image(model: Path, tmp_path: Path) -> None:
    exported = opened(model, tmp_path / "m.onnx")
    for image in ("a" * 5000, ["a" * 5000]):
        with pytest.raises(DataError, match="cannot be read"):
            exported(image)


def test_what_is_no_image_is_named_without_tensors(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a path, a PIL image or an array \(H, W, 3\)$"):
        opened(model, tmp_path / "m.onnx").one(5)


def test_a_smallest_score_is_refused(model: Path, images: list[Path], tmp_path: Path) -> None:
    exported = opened(model, tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="is no detector"):
        exported(images[:1], min_score=0.5)
    with pytest.raises(ConfigError, match="is no detector"):
        exported.one(images[0], min_score=0.5)


@pytest.mark.parametrize("num_threads", [0, -1, 1.5, "2"])
def test_threads_are_counted(num_threads: Any, model: Path) -> None:
    with pytest.raises(ConfigError, match="num_threads is"):
        open_exported(model, num_threads=num_threads)


def test_the_device_of_a_file_is_the_cpu(model: Path, tmp_path: Path) -> None:
    file = opened(model, tmp_path / "m.onnx").source
    assert isinstance(Predictor(file, None, None, torch.device("cpu")), ExportedPredictor)
    with pytest.raises(ConfigError, match="leave device out"):
        Predictor(file, device=torch.device("meta"))


def test_arguments_beyond_those_of_a_predictor_are_refused(model: Path) -> None:
    with pytest.raises(TypeError, match=r"at most 4 positional arguments .*; 5 were given"):
        Predictor(str(model), None, None, "cpu", 64)  # type: ignore[misc]
