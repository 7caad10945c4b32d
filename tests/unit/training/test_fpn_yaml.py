"""The design source's YAML keys build the head they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.cases import tokens_of

from dinoneck import Composition, ConfigError, FPNHead, Task
from dinoneck.training import read_fpn_yaml

SOURCE = """
model.head.type: fpn
model.head.fpn_dim: 256
model.head.num_levels: 3
model.head.layer_grouping: auto
model.head.use_cls_context: false
model.head.ndvi_dense: true
model.backbone_layers.enabled: true
model.backbone_layers.indices: [2, 5, 8, 11]
model.backbone_layers.separate_bottlenecks: true
loss.weighting: uw
"""
NESTED = """
model:
  head: {type: fpn, fpn_dim: 16, num_levels: 2, layer_grouping: explicit, use_cls_context: true}
  backbone_layers: {enabled: true, indices: [1, 3, 5], separate_bottlenecks: false}
fpn:
  layer_groups: [[0, 2], [1]]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text)
    return path


def test_the_printed_keys(tmp_path: Path) -> None:
    head = read_fpn_yaml(written(tmp_path, SOURCE)).head()
    assert head.config | {"tasks": None} == FPNHead(384, head.tasks, 4, (2, 5, 8, 11)).config | {"tasks": None}
    assert [(task.name, task.dim, task.kind) for task in head.tasks] == [
        ("reg3", 1, "regression"),
        ("ratio", 3, "ratio"),
        ("ndvi", 1, "regression"),
        ("ndvi_dense", 1, "dense"),
    ]
    settings = read_fpn_yaml(tmp_path / "train.yaml")
    composition = Composition(("a", "b", "c"), {"some": ("a", "b")}, name="masses", total="reg3", ratio="ratio")  # type: ignore[arg-type]
    loss = settings.loss(head.tasks, [composition])
    assert settings.weighting == "uw"
    outputs = {"reg3": torch.ones(2, 1), "ratio": torch.zeros(2, 3), "ndvi": torch.ones(2, 1)}
    outputs["ndvi_dense"] = torch.ones(2, 1, 3, 4)
    targets = {name: torch.zeros_like(value) for name, value in outputs.items()} | {"ratio": torch.eye(3)[:2]}
    _, parts = loss(outputs, targets)
    assert set(parts) == {"reg3", "ratio", "ndvi", "ndvi_dense", "masses"}


def test_nested_keys_and_own_tasks(tmp_path: Path) -> None:
    mass = Task("reg3", unit="g")
    head = read_fpn_yaml(written(tmp_path, NESTED)).head(embed_dim=24, tasks=[mass], patch_size=14)
    wanted = FPNHead(24, [mass], 3, (1, 3, 5), 16, 2, [[0, 2], [1]], False, use_cls_context=True, patch_size=14)
    assert head.config == wanted.config
    assert head.neck.grouper.groups == ((0, 2), (1,))


def test_without_backbone_layers_only_the_last_is_read(tmp_path: Path) -> None:
    text = SOURCE.replace("enabled: true", "enabled: false").replace("256", "8")
    head = read_fpn_yaml(written(tmp_path, text)).head(embed_dim=24)
    assert (head.num_layers, head.layer_indices) == (1, None)
    assert head(tokens_of(2, 3, 4))["ndvi_dense"].shape == (2, 1, 3, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("fpn_dim: 256", "fpn_dims: 256"), r"unknown key 'model.head.fpn_dims'.*fpn_dim"),
        (("type: fpn", "type: unet"), "model.head.type is 'unet'"),
        (("weighting: uw", "weighting: gradnorm"), "loss.weighting is 'gradnorm'"),
        (("grouping: auto", "grouping: explicit"), "explicit grouping needs the groups"),
        (("loss.weighting: uw", "fpn.layer_groups: [[0], [1], [2]]"), "auto makes its own"),
        (("indices: [2, 5, 8, 11]", "indices: []"), r"indices is \[\]"),
        (("enabled: true", "enabled: 1"), "enabled is 1; expected true or false"),
        (("num_levels: 3", "num_levels: 0"), "num_levels is 0"),
        (("loss.weighting: uw", "model.head.fpn_dim: 3"), "'model.head.fpn_dim' stands twice"),
        (("model.head.type: fpn", "model: {head: {type: fpn, fpn_dim: 3}}"), "stands twice"),
        (("model.head.type: fpn", "- 1: ["), "is no YAML"),
        (("fpn_dim: 256", "fpn_dim: wide"), r"train\.yaml: FPNHead\(fpn_dim=\) is 'wide'"),
        (("model.head.type: fpn", "model: &a {head: *a}"), "anchors and aliases"),
        (("fpn_dim: 256", "fpn_dim: !!int zz"), "value of 'model.head.fpn_dim' cannot be read"),
        (("fpn_dim: 256", "fpn_dim: 2001-99-99"), "value of 'model.head.fpn_dim' cannot be read"),
        (("[2, 5, 8, 11]", "[2, -1]"), r"train\.yaml: .*layer_indices"),
        (("fpn_dim: 256", "fpn_dim: !!python/object:os.system {}"), "unknown key|cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_fpn_yaml(written(tmp_path, SOURCE.replace(*change))).head()


@pytest.mark.parametrize("content", [None, "", "just text", "[1, 2]", b"\xff\xfe\x00"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "train.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        read_fpn_yaml(path).head()


def test_an_argument_that_the_file_tells_is_not_given_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fpn_dim given twice"):
        read_fpn_yaml(written(tmp_path, SOURCE)).head(fpn_dim=3)
