"""Frames, images, feature files and options that are odd are named, and nothing is left half-written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud import checking, extraction, packing, pictures
from examples.pointcloud.features import device_of
from examples.pointcloud.frames import read_frames
from PIL import Image
from tests.unit.pointcloud.frame_samples import run_verb, write_frames

from dinoneck import ConfigError, DataError, FeatureStore

TURN = [0.0, 0.0, 0.0, 1.0]


def written(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda table: None) -> Path:
    """A scene of two frames with a ``frames.json``."""
    for i in range(2):
        Image.fromarray(np.full((48, 64, 3), 9 * i, np.uint8)).save(folder / f"c{i}.png")
        Image.fromarray(np.full((24, 32), 2000, np.uint16)).save(folder / f"d{i}.png")
    frames = [
        {"color": f"c{i}.png", "depth": f"d{i}.png", "translation_m": [i, 0, 0], "quaternion_xyzw": TURN}
        for i in range(2)
    ]
    table = {"intrinsics": {"fx": 50, "fy": 50, "cx": 31.5, "cy": 23.5}, "image_size": [48, 64], "depth_unit_m": 0.001}
    table["frames"] = frames  # type: ignore[assignment]
    change(table)
    (folder / "frames.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table["frames"][1].update(color="c0.png"), "names images c0 more than once"),
        (lambda table: table["frames"][1].update(translation_m=[10**400, 0, 0]), "expected a finite number"),
        (lambda table: table.update(image_size=[True, True]), r"image_size is \[True, True\]"),
        (lambda table: table["intrinsics"].update(cx=648, cy=484), r"648\.0, 484\.0 for images of 48x64 px"),
        (lambda table: table["intrinsics"].update(cx=15.5, cy=11.5), "belong to images of another size"),
    ],
)
def test_frames_that_would_mean_others_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_frames(written(tmp_path, change))


def test_a_camera_off_the_middle_on_one_side_is_read(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path, lambda table: table["intrinsics"].update(cx=10.0)))
    assert float(frames.cameras.K[0, 0, 2]) == 10.0


@pytest.mark.parametrize("name", ["tpu9x", "meta", "mps", ""])
def test_devices_that_the_verbs_do_not_run_on_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device is {name!r}; expected cpu, cuda or cuda:N"):
        device_of(name)
    with pytest.raises(ConfigError, match="expected cpu, cuda"):
        run_verb(extraction, tmp_path, "--out", tmp_path / "store", "--device", name)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_extract_takes_a_gpu_where_there_is_one(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``dinoneck extract`` does; this machine only claims to have one, and it cannot be used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    write_frames(tmp_path, {"a": (0, 20)})
    words = (
        tmp_path,
        "--out",
        tmp_path / "store",
        "--every",
        20,
        "--backbone",
        "dinoneck_tiny",
        "--processes",
        processes,
    )
    with pytest.raises(ConfigError, match="--device is cuda, and torch sees 0 GPUs"):
        run_verb(extraction, *words)


def test_a_damaged_image_is_left_out_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_frames(tmp_path / "tree", {"a": (0, 20)})
    image = tree / "2D" / "a" / "color" / "20.png"
    image.write_bytes(image.read_bytes()[:-200])
    arguments = (tree, "--out", tmp_path / "store", "--every", 20, "--backbone", "dinoneck_tiny", "--random-backbone")
    with pytest.raises(DataError, match=r"20\.png cannot be read"):
        run_verb(extraction, *arguments)
    assert run_verb(extraction, *arguments, "--skip-unusable") == 0
    assert "left out a/color/20" in capsys.readouterr().out
    assert list(FeatureStore.open(tmp_path / "store").ids) == ["a/color/0"]
    (tree / "2D" / "a" / "color" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of 2 images can be read"):
        run_verb(extraction, *arguments, "--skip-unusable")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_features_without_values_are_not_packed(tmp_path: Path, kind: str) -> None:
    image = tmp_path / "feats" / "s" / "color" / "0.pt"
    image.parent.mkdir(parents=True)
    dense = torch.ones(8, 3, 4)
    torch.save(dense.to_sparse() if kind == "sparse" else dense.to("meta"), image)
    infos = tmp_path / "infos.pkl"
    infos.write_bytes(pickle.dumps({"data_list": [{"img_path": "2D/s/color/0.jpg"}]}, protocol=2))
    with pytest.raises(DataError, match=rf"cannot be used: .*0\.pt \(it holds torch\.float32 \(8, 3, 4\) .*{kind}"):
        run_verb(packing, infos, "--features", tmp_path / "feats", "--kind", "sv")
    assert not (tmp_path / "infos_clip.pkl").exists()


def test_a_picture_may_be_tiny_and_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "room.png"
    assert run_verb(pictures, "--out", out, "--frames", 2, "--render", "1x1") == 0
    before = out.read_bytes()

    def torn(self: Image.Image, to: Any, *_: Any, **__: Any) -> None:
        (to.write if hasattr(to, "write") else to.write_bytes)(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="disk is full"):
        pictures.save(Image.new("RGB", (4, 4)), out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["room.png"]


def test_where_numbers_go_is_looked_at_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "none" / "report.json"):
        with pytest.raises(ConfigError, match="expected a file in a folder that is there"):
            run_verb(checking, "--plan", "small", "--json", path)
    assert not capsys.readouterr().out
