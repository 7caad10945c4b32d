"""The command line: exit codes, messages, files; and the main job from data to submission."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.training.meadow import one_image_only

from dinoneck import (
    Backbone,
    GridSize,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.cli.main import VERBS, main
from dinoneck.cli.train_text import describe_many, verdicts
from dinoneck.data import Pasture, Preprocessing
from dinoneck.training import r2

TRAIN = ["--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "3"]


@pytest.fixture(scope="module")
def csiro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("csiro")
    Pasture(seed=1, size=(32, 64)).write_csiro(root, train=12, test=3)
    return root


@pytest.fixture(scope="module")
def trained(csiro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert main(["train", "--csv", str(csiro / "train.csv"), "--out", str(out), *TRAIN]) == 0
    return out


def rows_of(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


def records_of(path: Path) -> list[dict[str, str]]:
    header, *rows = rows_of(path)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_training_writes_heads_predictions_and_report(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert report["photos"] == 12
    assert set(report["scores"]) == {"head", "token ridge", "token knn", "colour ridge"}
    assert set(report["scores"]["head"]) == {
        "Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "GDM_g", "Dry_Total_g", "overall", "worst fold"
    }  # fmt: skip
    assert report["backbone"]["name"] == "dinoneck_tiny"
    assert sorted(os.listdir(trained)) == ["heads", "logs", "out_of_fold.csv", "report.json"]
    assert sorted(os.listdir(trained / "logs")) == ["fold-0.jsonl", "fold-1.jsonl"]
    assert sorted(os.listdir(trained / "heads")) == ["fold-0.safetensors", "fold-1.safetensors"]
    rows = records_of(trained / "out_of_fold.csv")
    assert len(rows) == 12
    assert {row["fold"] for row in rows} == {"0", "1"}
    for fold in "01":  # a head's file tells its own fold's score, not that of all heads together
        own = [(float(row["GDM_g (head)"]), float(row["GDM_g"])) for row in rows if row["fold"] == fold]
        told = HeadCheckpoint.load(trained / "heads" / f"fold-{fold}.safetensors").meta["training"]["metrics"]
        assert told["R2 GDM_g"] == pytest.approx(r2(*np.array(own).T), rel=1e-3, abs=1e-4)


def test_a_submission_follows_the_test_table(csiro: Path, trained: Path, tmp_path: Path) -> None:
    out, maps = tmp_path / "submission.csv", tmp_path / "maps.png"
    arguments = ["predict", "--csv", str(csiro / "test.csv"), "--heads", str(trained / "heads"), "--out", str(out)]
    assert main([*arguments, "--maps", str(maps), "--tta", "flip4"]) == 0
    rows = records_of(out)
    asked = records_of(csiro / "test.csv")
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in asked]
    predictor = Predictor(trained / "heads", tta="flip4")
    for row, question in zip(rows, asked, strict=True):
        expected = predictor(csiro / question["image_path"])[0][question["target_name"]]
        assert float(row["target"]) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert float(row["target"]) >= 0
    with Image.open(maps) as picture:
        assert picture.width > picture.height


def test_a_submission_is_complete_where_an_image_cannot_be_used(
    csiro: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(csiro, tmp_path / "data")
    asked, out = records_of(csiro / "test.csv"), tmp_path / "submission.csv"
    lost = asked[0]["image_path"]
    (tmp_path / "data" / lost).write_bytes(b"")
    arguments = ["predict", "--csv", str(tmp_path / "data" / "test.csv"), "--heads", str(trained / "heads")]
    assert main([*arguments, "--skip-unusable", "--json", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["filled"] == [lost]
    assert f"left out: {lost}" in told.err
    assert "hold the mean of the other images' predictions" in told.err
    rows = records_of(out)
    assert [row["sample_id"] for row in rows] == [row["sample_id"] for row in asked]
    for target in {row["target_name"] for row in asked}:
        own = {
            q["image_path"]: float(r["target"]) for r, q in zip(rows, asked, strict=True) if q["target_name"] == target
        }
        assert own.pop(lost) == pytest.approx(np.mean([*own.values()]), rel=1e-4)


def test_predictions_from_files_and_folders(csiro: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    assert main(["predict", str(csiro / "test"), "--heads", str(trained / "heads" / "fold-0.safetensors"), "--out",
                 str(out)]) == 0  # fmt: skip
    rows = rows_of(out)
    assert rows[0] == ["image", "Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "GDM_g", "Dry_Total_g"]
    assert len(rows) == 4


def test_photos_that_cannot_be_used_are_left_out_on_request(
    csiro: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((csiro / "test").iterdir())
    folder = tmp_path / "p"
    folder.mkdir()
    for name, file in zip("bdf", good, strict=True):
        (folder / f"{name}{file.suffix}").write_bytes(file.read_bytes())
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes(b"")
    for name in ("e.heic", "e.GIF", ".hidden.heic", "notes.txt"):
        (folder / name).write_bytes(b"of another kind")
    job = ["predict", str(folder), "--heads", str(trained / "heads"), "--out", str(tmp_path / "o.csv")]
    assert main(job) == 1
    assert not (tmp_path / "o.csv").exists()
    capsys.readouterr()
    assert main([*job, "--skip-unusable", "--maps", "--json", "--batch-size", "2"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert sorted(Path(name).name for name in document["unusable"]) == ["a.png", "c.png"]
    assert "left out: 2 pictures of other kinds (.gif, .heic)" in told.err
    assert "3 photos predicted" in told.err
    rows = records_of(tmp_path / "o.csv")
    assert [Path(row["image"]).stem for row in rows] == ["b", "d", "f"]
    for row, answer in zip(rows, Predictor(trained / "heads")(good), strict=True):
        assert float(row["GDM_g"]) == pytest.approx(answer["GDM_g"], rel=1e-4, abs=1e-5)
    assert (tmp_path / "o.png").exists()
    assert main([*job[:1], str(folder / "a.png"), *job[2:], "--skip-unusable"]) == 1
    assert "none of the 1 photos can be used" in capsys.readouterr().err
    assert main([*job, "--skip-unusable", "--maps", str(folder / "m.png")]) == 0
    assert "lies among the photos of" in capsys.readouterr().out


def test_any_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.RandomState(0)
    lines = ["image,green,field"]
    for i in range(8):
        level = random.randint(0, 255)
        photo = np.full((20, 33, 3), 100, np.uint8)
        photo[..., 1] = level
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{level / 255:.4f},{i % 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    arguments = ["train", "--csv", str(tmp_path / "t.csv"), "--targets", "green", "--group", "field", "--minimum", "0"]
    out = ["--out", str(tmp_path / "run"), *TRAIN]
    assert main([*arguments, *out, "--policy", "error"]) == 1
    assert "20x33 px" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, *out]) == 0
    assert (
        "becomes 16x32 px, 1x2 patches.\nThe patch of 16 px does not divide it: --policy crop applies."
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "x", "--targets", "a", *TRAIN], "name it with data.csv (--csv)"),
        (["train", "--out", "x", "--csv", "no.csv", "--targets", "a", *TRAIN], "there is no file no.csv"),
        (["train", "--out", "x", "--pasture", "2", "--backbone", "dinov9", "--random-backbone"], "'dinov9' is unknown"),
        (
            ["train", "--out", "x", "--pasture", "2", *TRAIN, "--backbone-file", "w.pth"],
            "there is no weights file w.pth",
        ),
        (["predict", "--heads", "h", "--out", "x"], "give either photos"),
        (["predict", "p.jpg", "--heads", "no.safetensors", "--out", "x.csv"], "1 of 1 photos or folders do not exist"),
        (["predict", "p.jpg", "--heads", "h", "--out", "x.jpg"], "ends in .csv"),
        (["predict", "p.jpg", "--heads", "h", "--out", "no/x.csv"], "the folder no does not exist"),
        (["inspect", "no.safetensors"], "there is no head file no.safetensors"),
    ],
)
def test_refusals_are_one_line_and_code_1(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not os.listdir(tmp_path)


def test_wrong_usage_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["train"], ["train", "--out", "x", "--size", "big"], ["demo", "--photos", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"example: dinoneck {verb} " in capsys.readouterr().out


def test_inspect_and_verify(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h.safetensors"
    save_head(path, PatchMeanHead(64, [Task("a", unit="g")]), backbone=tiny, preprocess=tiny.preprocess.changed(blur=5))
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    for part in (
        "patch_mean",
        "a (regression, dim 1, g)",
        "dinoneck_tiny",
        "seeded random weights (seed 0)",
        "blur",
        "sha256:",
    ):
        assert part in told
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head_type"] == "patch_mean"
    assert main(["verify", str(path), str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("ok ") == 2
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    assert main(["verify", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "ok " in shown.out
    assert "at step 'digest'" in shown.err
    (tmp_path / "empty").mkdir()
    assert main(["verify", str(tmp_path / "empty")]) == 1


def test_inspect_imports_no_torch(tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    save_head(path, PatchMeanHead(64, [Task("a")]), backbone=tiny)
    script = (
        "import sys\nfrom dinoneck.cli.main import main\ncode = main(['inspect', sys.argv[1]])\n"
        "heavy = {'torch', 'numpy', 'timm', 'PIL', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\nsys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert "patch_mean" in done.stdout


def test_interruption_is_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dinoneck.cli import inspect

    def stop(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "run", stop)
    assert main(["inspect", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def demo(out: Path) -> list[str]:
    return ["demo", "--out", str(out), "--photos", "8", "--folds", "2", "--epochs", "2", "--backbone", "dinoneck_tiny"]


def test_the_demo_keeps_its_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main([*demo(out), "--random-backbone"]) == 0
    told = capsys.readouterr().out
    assert "seeded random weights" in told
    assert "refused: " in told
    assert "does not match its digest" in told
    assert "pasture-0-" in told
    assert load_head(out / "cover.safetensors").tasks[0].labels == ("clover", "grass")
    written = {
        "heads",
        "logs",
        "report.json",
        "out_of_fold.csv",
        "predictions.csv",
        "cover.safetensors",
        "maps.png",
        "photos",
        "README.txt",
    }
    assert written == set(os.listdir(out))


@pytest.mark.slow
def test_the_demo_writes_the_same_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written, printed = [], []
    for _ in range(2):
        assert main([*demo(tmp_path), "--random-backbone"]) == 0
        printed.append(capsys.readouterr().out)
        written.append({path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()})
    assert written[0] == written[1] and len(written[0]) >= 6
    assert printed[0] == printed[1]


def test_the_demo_fails_when_a_promise_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dinoneck.cli import replay

    monkeypatch.setattr(replay, "fingerprint", lambda outputs: "0" * 64)
    assert main([*demo(tmp_path), "--random-backbone"]) == 1
    assert "gives other outputs" in capsys.readouterr().err


def photo_folder(tmp_path: Path) -> list[str]:
    lines = ["image,green,field"]
    (tmp_path / "deep").mkdir()
    for i in range(6):
        name = f"deep/{i}.png" if i == 5 else f"{i}.png"
        Image.fromarray(np.full((16, 32, 3), 40 * i, np.uint8)).save(tmp_path / name)
        lines.append(f"{name},{i},{i % 3}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return ["train", "--csv", str(tmp_path / "t.csv"), "--targets", "green", *TRAIN, "--out", str(tmp_path / "run")]


def test_a_run_that_fails_keeps_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dinoneck.training import run

    command = photo_folder(tmp_path)
    assert main(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(before) == 6
    monkeypatch.setattr(run, "scores_of", lambda result: 1 / 0)
    assert main([*command, "--overwrite", "--seed", "1"]) == 1
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert before == {path: content for path, content in kept.items() if "unfinished" not in path.parts}
    monkeypatch.undo()
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert after[tmp_path / "run" / "report.json"] != before[tmp_path / "run" / "report.json"]


def test_what_must_fail_fails_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dinoneck.training import MemoryTokens

    monkeypatch.setattr(MemoryTokens, "extract", one_image_only(MemoryTokens.extract))
    command = photo_folder(tmp_path)
    text = (tmp_path / "t.csv").read_text()
    for change, message in (
        (("green", "dry mass: g"), "rename it"),
        (("green", "image2"), None),
        (("green", "fold"), "would clash"),
    ):
        (tmp_path / "t.csv").write_text(text.replace(*change))
        if message is not None:
            assert main([*command, "--targets", change[1]]) == 1
            assert message in capsys.readouterr().err
    constant = [f"{line.split(',')[0]},7,0" for line in text.splitlines()[1:]]
    (tmp_path / "t.csv").write_text("image,green,field\n" + "\n".join(constant))
    assert main(command) == 1
    assert "the targets of 'green' are 7 for every image of the table" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text(text)
    assert main([*command, "--folds", "9"]) == 1
    (tmp_path / "file").write_text("x")
    assert main([*command, "--out", str(tmp_path / "file" / "run")]) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_predict_refuses_to_replace_its_inputs_and_searches_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(photo_folder(tmp_path)) == 0
    told = capsys.readouterr().out
    assert "No --group" in told
    assert "--minimum 0 keeps predictions so" in told
    assert "overall: mean over targets" in told
    heads = ["--heads", str(tmp_path / "run" / "heads")]
    csv = str(tmp_path / "t.csv")
    assert main(["predict", "--csv", csv, *heads, "--out", csv]) == 1
    assert "is one of the inputs" in capsys.readouterr().err
    photo = str(tmp_path / "0.png")
    assert main(["predict", photo, *heads, "--out", str(tmp_path / "o.csv"), "--maps", photo]) == 1
    assert "is one of the inputs" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), *heads, "--out", str(tmp_path / "o.csv")]) == 0
    assert len(rows_of(tmp_path / "o.csv")) == 1 + 6
    assert "The first image, 16x32 px" in capsys.readouterr().out


def test_pictures_show_what_the_backbone_saw(tmp_path: Path) -> None:
    """A green frame that the centre crop cuts away must not be in the picture."""
    photo = np.full((46, 94, 3), 90, np.uint8)
    photo[7:-7, 7:-7] = 200
    photo[:7], photo[-7:], photo[:, :7], photo[:, -7:] = (0, 255, 0), (0, 255, 0), (0, 255, 0), (0, 255, 0)
    Image.fromarray(photo).save(tmp_path / "p.png")
    backbone = load_backbone("dinoneck_tiny")
    prepare = backbone.preprocess.changed(policy="crop")
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=backbone, preprocess=prepare)
    maps = tmp_path / "m.png"
    arguments = ["predict", str(tmp_path / "p.png"), "--heads", str(tmp_path / "h.safetensors"), "--out"]
    assert main([*arguments, str(tmp_path / "o.csv"), "--maps", str(maps)]) == 0
    shown = np.asarray(Image.open(maps).convert("RGB"))[26 : 26 + 93, 6 : 6 + 280]
    assert (shown == 200).all()


def test_verdicts_claim_only_what_an_interval_shows() -> None:
    better, even, worse = [0.1, 0.3], [-0.1, 0.3], [-0.3, -0.1]

    def report(ridge: list[float], colour: list[float], images: int = 80, score: float = 0.5, groups: int = 10) -> Any:
        differences = {"token ridge": {"a": ridge}, "colour ridge": {"a": colour}}
        counts = {"predicted": images, "groups_predicted": groups}
        scores = {"scores": {"head": {"a": score}}, "mae": {"head": {"a": 1.0}}}
        return {**counts, **scores, "head_minus": differences}

    [line] = verdicts(report(better, better))
    assert line == "a: the head is better than token ridge, colour ridge."
    [line] = verdicts(report(even, better))
    assert line == "a: the head is better than colour ridge; the head shows no clear difference from token ridge."
    [line] = verdicts(report(worse, even))
    assert line.startswith("a: token ridge is ahead of the head")
    [line] = verdicts(report(better, better, images=20))
    assert "20 images: too few to tell" in line and "better than" not in line
    [line] = verdicts(report(better, better, groups=9))
    assert "9 groups: too few groups to tell" in line and "better than" not in line
    assert "R² is not above 0" in verdicts(report(better, better, score=-0.1))[-1]


def test_the_demo_takes_no_folder_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "precious.safetensors").write_text("x")
    assert main(["demo", "--out", str(tmp_path), "--backbone", "dinoneck_tiny"]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "heads" / "precious.safetensors").read_text() == "x"


@pytest.mark.parametrize(
    "arguments",
    [["--lr", "nan"], ["--lr", "inf"], ["--seed=-1"], ["--seed", "99999999999"], ["--pasture", "0"], ["--folds", "x"],
     ["--size", "1_6"], ["--fit", "crop"], ["--backbone-file", "w.pth", "--random-backbone"]],
)  # fmt: skip
def test_numbers_out_of_range_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--out", "x", *arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert any(word in err for word in ("expected", "invalid literal", "exclude", "--size HEIGHTxWIDTH"))


def test_options_that_would_be_ignored_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "r"), *TRAIN, "--minimum", "0"]) == 1
    assert "minimum: these describe a table" in capsys.readouterr().err
    assert main(["train", "--out", str(tmp_path / "r"), "--backbone-seed", "1", "--pasture", "2"]) == 1
    assert "--random-backbone" in capsys.readouterr().err


def test_the_unexpected_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dinoneck.cli import inspect

    monkeypatch.setattr(inspect, "run", lambda options: [][0])
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: unexpected IndexError: list index out of range")
    with pytest.raises(IndexError):
        main(["--verbose", "inspect", "x"])


def test_photos_of_a_phone_in_their_own_size_are_told_what_they_cost() -> None:
    phone = GridSize(189, 252)  # 3024 x 4032 px
    [line] = describe_many(Preprocessing(), phone)
    assert "47628 patches" in line
    assert "--size 480x640 brings images to 1200." in line
    assert "--size 560x420 " in describe_many(Preprocessing(patch_size=14), GridSize(288, 216))[0]
    assert describe_many(Preprocessing(size=(3024, 4032)), phone) == []  # somebody asked for it
    assert describe_many(Preprocessing(), GridSize(64, 64)) == []
