"""The command line: exit codes, messages, files; and the main job from data to submission."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from examples.biomass import layouts
from examples.biomass.drawn import write_csiro
from PIL import Image

from dinoneck import HeadCheckpoint, load_head
from dinoneck.cli.main import main
from dinoneck.data import Pasture
from dinoneck.training import r2

MASSES = ["--targets", "Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "GDM_g", "Dry_Total_g"]
TRAIN = ["--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "3"]


@pytest.fixture(scope="module")
def csiro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("csiro")
    write_csiro(Pasture(seed=1, size=(32, 64)), root, train=12, test=3)
    layouts.write(root / "table.csv", layouts.wide(root / "train.csv"))
    return root


@pytest.fixture(scope="module")
def trained(csiro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert (
        main(
            [
                "train",
                "--csv",
                str(csiro / "table.csv"),
                "--out",
                str(out),
                *MASSES,
                "--unit",
                "g",
                "--minimum",
                "0",
                *TRAIN,
            ]
        )
        == 0
    )
    return out


def rows_of(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def records_of(path: Path) -> list[dict[str, str]]:
    header, *rows = rows_of(path)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_training_writes_heads_predictions_and_report(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert report["images"] == 12
    assert set(report["scores"]) == {*MASSES[1:], "overall"}
    assert set(report["scores"]["GDM_g"]) == {"head", "linear", "head + linear"}
    assert report["backbone"]["name"] == "dinoneck_tiny"
    assert sorted(os.listdir(trained)) == ["head.safetensors", "heads", "logs", "out_of_fold.csv", "report.json"]
    assert sorted(os.listdir(trained / "logs")) == ["fold-0.jsonl", "fold-1.jsonl"]
    assert sorted(os.listdir(trained / "heads")) == ["fold-0.safetensors", "fold-1.safetensors"]
    rows = records_of(trained / "out_of_fold.csv")
    assert len(rows) == 12
    assert {row["fold"] for row in rows} == {"0", "1"}
    for fold in "01":  # a head's file holds its own fold's score, not that of all heads together
        own = [(float(row["GDM_g"]), float(row["GDM_g (head)"])) for row in rows if row["fold"] == fold]
        recorded = HeadCheckpoint.load(trained / "heads" / f"fold-{fold}.safetensors").meta["training"]["metrics"]
        assert recorded["R2 GDM_g"] == pytest.approx(r2(*np.array(own).T), rel=1e-3, abs=1e-4)


def test_any_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.RandomState(0)
    lines = ["image,green,field"]
    for i in range(8):
        level = random.randint(0, 255)
        image = np.full((20, 33, 3), 100, np.uint8)
        image[..., 1] = level
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{level / 255:.4f},{i % 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    arguments = ["train", "--csv", str(tmp_path / "t.csv"), "--targets", "green", "--group", "field", "--minimum", "0"]
    out = ["--out", str(tmp_path / "run"), *TRAIN]
    assert main([*arguments, *out, "--resize", "keep"]) == 1
    assert "20x33 px" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, *out]) == 0
    assert (
        "becomes 16x32 px, 1x2 patches.\nThe patch of 16 px does not divide it: --resize crop applies."
        in capsys.readouterr().out
    )
    assert main([*arguments, *out]) == 1
    assert "results of an earlier run" in capsys.readouterr().err
    assert main([*arguments, *out, "--size", "32", "--overwrite"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["inputs"]["size"] == [32, 32]
    predict = ["predict", "--csv", str(tmp_path / "t.csv"), "--heads", str(tmp_path / "run" / "heads")]
    assert main([*predict, "--out", str(tmp_path / "p.csv")]) == 0
    rows = rows_of(tmp_path / "p.csv")
    assert [row[0] for row in rows[1:]] == [f"{i}.png" for i in range(8)]


def test_the_demo_runs_the_commands_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    words = ["--images", "8", "--folds", "2", "--epochs", "2", "--backbone", "dinoneck_tiny", "--random-backbone"]
    assert main(["demo", "--out", str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "seeded random weights" in printed
    verbs = [line.split()[2] for line in printed.splitlines() if line.startswith("$ ")]
    assert verbs == ["train", "verify", "predict", "viz"]
    labels = load_head(out / "run" / "heads" / "fold-0.safetensors").tasks[-1].labels
    assert labels == ("soil", "clover", "dead", "green")
    assert [Path(row["image"]).stem for row in records_of(out / "predictions.csv")] == ["0000", "0001", "0002"]
    page = Path(printed.splitlines()[-1].split()[1].removesuffix(":"))
    assert page == out / "report.html" and "0002.jpg" in page.read_text()
    assert {"run", "overlay", "table.csv"} <= set(os.listdir(out))


def image_folder(tmp_path: Path) -> list[str]:
    lines = ["image,green,field"]
    (tmp_path / "deep").mkdir()
    for i in range(6):
        name = f"deep/{i}.png" if i == 5 else f"{i}.png"
        Image.fromarray(np.full((16, 32, 3), 40 * i, np.uint8)).save(tmp_path / name)
        lines.append(f"{name},{i},{i % 3}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return ["train", "--csv", str(tmp_path / "t.csv"), "--targets", "green", *TRAIN, "--out", str(tmp_path / "run")]


def test_a_run_that_is_refused_keeps_the_earlier_one(tmp_path: Path) -> None:
    command = image_folder(tmp_path)
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(before) == 7
    image = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(image[:40])
    assert main([*command, "--overwrite", "--seed", "1"]) == 1
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "3.png").write_bytes(image)
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert after[tmp_path / "run" / "report.json"] != before[tmp_path / "run" / "report.json"]


def test_advice_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(image_folder(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "No --group" in printed
    assert "--minimum 0 keeps predictions so" in printed
    assert "overall: mean over targets" in printed
    assert "The first image, 16x32 px" in printed
