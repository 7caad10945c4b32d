"""The page and the config.json of a head: their content, and that nothing in a header can write into them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import kit

from dinoneck import (
    Backbone,
    HeadCheckpoint,
    MaskHead,
    PatchMeanHead,
    SimplePyramid,
    STAPyramid,
    TargetTransform,
    Task,
    save_head,
)
from dinoneck.checkpoint import model_card
from dinoneck.checkpoint.card import config_json
from dinoneck.detection.head import DetectionHead

EVIL = (
    "x\n---\nlicense: mit",
    "a | b | c",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "!!python/object/apply:os.system ['true']",
    "key: value # comment",
    "\u202egnp.exe",
    "\u2028line",
    "```\nfence",
    "'\"\\",
    "x" * 5000,
)


@pytest.fixture
def meta(tiny: Backbone) -> dict[str, Any]:
    total = Task(
        "total",
        unit="g/m²",
        transform=TargetTransform(area=0.21, log1p=True, mean=(1.5,), std=(2.0,)),
    )
    crop = Task("crop", dim=2, kind="classification", labels=("rye", "vetch"))
    head = PatchMeanHead(64, [total, crop])
    return HeadCheckpoint.from_module(head, backbone=tiny, preprocess=tiny.preprocess.record()).meta


def on(meta: dict[str, Any], **changes: Any) -> Any:
    """This header with changes; ``backbone__name=`` reaches into a record."""
    changed = copy.deepcopy(meta)
    for key, value in changes.items():
        *outer, inner = key.split("__")
        (changed[outer[0]] if outer else changed)[inner] = value
    return changed


def front(page: str) -> dict[str, Any]:
    """The front matter, as the hub finds it."""
    block = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|$))", page)
    assert block is not None
    return yaml.safe_load(block.group(2))  # type: ignore[no-any-return]


def section(page: str, title: str) -> str:
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_page_states_what_the_header_holds(meta: dict[str, Any]) -> None:
    page = model_card(on(meta), "me/pasture")
    front_matter = front(page)
    assert front_matter["library_name"] == "dinoneck"
    assert front_matter["pipeline_tag"] == "image-classification"
    assert front_matter["tags"] == [
        "dinoneck",
        "patch_mean",
        "task-regression",
        "task-classification",
    ]
    assert not {"license", "base_model", "model-index"} & front_matter.keys(), (
        "nothing is claimed that is not recorded"
    )
    tasks = section(page, "Predictions")
    assert (
        "| `total` | `regression` | `1` | `g/m²` | `/ area 0.21, log1p, z-score (mean [1.5], std "
        "[2.0])` |" in tasks
    )
    assert "`rye, vetch`" in tasks
    assert 'HeadCheckpoint.load("me/pasture")' in section(page, "Load")
    assert "`dinoneck_tiny`" in section(page, "Backbone")
    assert meta["digest"] in section(page, "The file")
    assert f"dinoneck {meta['created_by']['dinoneck']}" in section(page, "The file")


def test_the_loading_lines_run(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_head("head.safetensors", PatchMeanHead(64, [Task("total")]), backbone=tiny)
    block = re.search(r"```python\n(.*?)```", model_card("head.safetensors"), re.DOTALL)
    assert block is not None
    space: dict[str, Any] = {}
    exec(block.group(1), space)
    assert space["head"].tasks[0].name == "total"
    assert space["predict"] is not None


@pytest.mark.parametrize(
    ("family", "licence", "stated"),
    [
        ("dinov3", "dinov3-license", "**DINOv3 notice.**"),
        ("dinov2", "apache-2.0", "published by Meta under the Apache License 2.0"),
        ("lingbot", "apache-2.0", "published by Robbyant under the Apache License 2.0"),
        ("tipsv2", "apache-2.0", "published by Google under the Apache License 2.0"),
    ],
)
def test_the_backbones_licence_goes_along(
    meta: dict[str, Any], family: str, licence: str, stated: str
) -> None:
    weights = {
        "kind": "hub",
        "repo": "timm/vit_small_patch16_dinov3.lvd1689m",
        "revision": "0" * 40,
    }
    given = {
        "backbone__family": family,
        "licences": {"backbone": licence},
        "backbone__weights": weights,
    }
    page = model_card(on(meta, **given))
    front_matter = front(page)
    assert front_matter["base_model"] == "timm/vit_small_patch16_dinov3.lvd1689m"
    assert front_matter["base_model_relation"] == "adapter"
    assert family in front_matter["tags"]
    assert stated in section(page, "Licence")
    assert ("notice" in page) is (family == "dinov3")
    # the head's own is not known, and the backbone's is not that of the repository
    assert not {"license", "license_name", "license_link"} & front_matter.keys()
    assert "Head: its author recorded no licence." in section(page, "Licence")
    assert f"Weights of the backbone: `{licence}`; they are not in" in section(page, "Licence")


def test_the_front_matter_states_the_licence_of_the_head(meta: dict[str, Any]) -> None:
    backbone = {"backbone__family": "dinov3", "licences": {"backbone": "dinov3-license"}}

    of_hub = front(model_card(on(meta, license="MIT", **backbone)))
    other = front(model_card(on(meta, license="dinov3-license", **backbone)))

    assert of_hub["license"] == "mit" and "license_name" not in of_hub
    assert (other["license"], other["license_name"]) == ("other", "dinov3-license")
    assert other["license_link"].startswith("https://ai.meta.com/")


def test_a_metric_of_several_folds_has_its_standard_deviation(meta: dict[str, Any]) -> None:
    metrics = {"r2": {"mean": 0.71, "sd": 0.04}, "folds": 5}
    training = {**(meta["training"] or {}), "metrics": metrics}

    page = model_card(on(meta, training=training))

    assert "0.71 (sd 0.04)" in page


def test_a_neck_alone_extracts_features() -> None:
    page = model_card(HeadCheckpoint.from_module(SimplePyramid(64, 8)).meta)

    assert front(page)["pipeline_tag"] == "image-feature-extraction"


def check_outside_of_code(body: str) -> None:
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```python\n.*?```", "", body, flags=re.DOTALL))
    for sign in (
        "<script",
        "javascript",
        "evil",
        "`",
        "](",
        "\x1b",
        "\u202e",
        "\u2028",
        "$$",
        "alert",
        "!!",
    ):
        assert sign not in outside, sign


@pytest.fixture
def labels_on_images() -> HeadCheckpoint:
    """A head of two labels, one of which needs a high probability."""
    tags = Task("tags", kind="multilabel", dim=2, labels=("crack", "moss"))
    checkpoint = HeadCheckpoint.from_module(PatchMeanHead(64, [tags]))
    return checkpoint.with_thresholds({"tags": (0.75, 0.25)})


def test_thresholds_of_labels_are_on_the_page(labels_on_images: HeadCheckpoint) -> None:
    predictions = section(model_card(labels_on_images.meta), "Predictions")
    assert "| `tags: crack` | `0.75` |" in predictions
    assert "| `tags: moss` | `0.25` |" in predictions


def test_thresholds_of_a_detector_are_on_the_page() -> None:
    neck = STAPyramid(64, 32)
    head = DetectionHead("fcos", ("cat", "dog"), neck, thresholds=(0.5, 0.125))
    predictions = section(model_card(HeadCheckpoint.from_module(head).meta), "Predictions")
    assert "| `cat` | `0.5` |" in predictions
    assert "| `dog` | `0.125` |" in predictions


def test_a_page_without_thresholds_has_no_table_of_them(meta: dict[str, Any]) -> None:
    assert "if its score is at least" not in model_card(meta)


@pytest.mark.parametrize(
    ("kind", "pipeline"),
    [("multilabel", "image-classification"), ("classification", "image-classification")],
)
def test_the_hub_finds_a_head_by_what_it_does(kind: str, pipeline: str) -> None:
    task = Task("tags", kind=kind, dim=2, labels=("crack", "moss"))
    page = model_card(HeadCheckpoint.from_module(PatchMeanHead(64, [task])).meta)
    assert front(page)["pipeline_tag"] == pipeline


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_the_hub_finds_masks_of_objects_as_segmentation(kind: str) -> None:
    task = Task("things", kind=kind, dim=1, labels=("cell",))
    page = model_card(
        HeadCheckpoint.from_module(MaskHead(64, [task], num_queries=5, num_blocks=1)).meta
    )
    assert front(page)["pipeline_tag"] == "image-segmentation"


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_no_string_of_a_header_writes_into_the_page(meta: dict[str, Any], evil: str) -> None:
    plain = model_card(on(meta), "me/pasture")
    task = {**meta["tasks"][0], "name": evil, "kind": evil, "unit": evil, "labels": [evil, evil]}
    source = on(
        meta,
        tasks=[task, meta["tasks"][1]],
        created_by={evil: evil[:200]},
        inputs={"fit": evil, evil: [evil]},
        training={"data": {"name": evil, "revision": evil}, "metrics": {evil: 1.0}},
        backbone__name=evil,
        backbone__family=evil,
        licences={"backbone": evil[:200]},
        backbone__source=evil,
        backbone__weights={"kind": "hub", "repo": evil, "revision": evil},
    )
    page = model_card(source, "me/pasture")
    front_matter = front(page)
    assert set(front_matter) == {"library_name", "pipeline_tag", "tags"}
    assert all(isinstance(tag, str) and "\n" not in tag for tag in front_matter["tags"])
    body = page.split("\n---\n", 1)[1]
    assert "\n---" not in body
    titles = [line for line in body.splitlines() if line.startswith("#")]
    shown = [line for line in plain.split("\n---\n", 1)[1].splitlines() if line.startswith("#")]
    assert titles == [*shown[:5], "## Training", *shown[5:]], "no heading more"
    assert body.count("```") == 2
    check_outside_of_code(body)
    assert {line.count("|") for line in body.splitlines() if line.startswith("|")} == {3, 8}
    assert all(sign.isprintable() or sign == "\n" for sign in page)
    assert json.loads(config_json(source))["digest"] == meta["digest"]
    many = on(meta, head_type="ensemble", config={"weights": [evil]})
    check_outside_of_code(model_card(many).split("\n---\n", 1)[1])


@pytest.mark.slow
def test_a_card_is_made_without_torch(tmp_path: Path) -> None:
    """It is derived from the header: a web server that shows it needs no torch."""
    file = kit.saved_head(tmp_path / "head.safetensors")
    script = (
        "import sys; from dinoneck.checkpoint import model_card; "
        f"page = model_card({str(file)!r}); print('mass' in page, 'torch' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "True False\n"
