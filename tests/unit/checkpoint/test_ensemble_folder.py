"""Ensemble folders of version 0.1: read as one head with the same predictions; nothing missing, exchanged or mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fixtures.head_files import ANSWERS, answers, integers
from tests.hub_server import Hub, Repo

from dinoneck import (
    CheckpointError,
    HeadCheckpoint,
    HeadEnsemble,
    Predictor,
    ViTFPN,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint import read_header
from dinoneck.cli.main import main

ROOT = Path(__file__).resolve().parents[2] / "fixtures" / "ensemble_v1"
FOLDERS = sorted(folder for folder in ROOT.iterdir() if folder.is_dir())


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def frozen(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy that may be damaged: three folds of two outputs, with all records."""
    return Path(shutil.copytree(ROOT / "plain", tmp_path / "e"))


def members(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "ensemble.json").read_text())["members"])


def built(folder: Path) -> list[Any]:
    """The heads of a folder, in the order of the list."""
    return [load_head(folder / member["file"]) for member in members(folder)]


def predicted(heads: Any, folder: Path) -> dict[str, Any]:
    """What a Predictor of these heads gives for the image of the fixture alone; LoRA weights come with the heads."""
    backbone = load_backbone("dinoneck_tiny") if folder.name == "weighted" else None
    image = integers(3, 32, 48, low=0, high=255).to(torch.uint8)
    return dict(Predictor(heads, backbone, tta="none")(image)[0])


@pytest.mark.filterwarnings("ignore:the file of this HeadEnsemble does not state its backbone")
def test_a_folder_of_0_1_predicts_what_0_1_predicted(frozen: Path) -> None:
    kept, found = json.loads((ROOT / ANSWERS).read_text())[frozen.name], answers(load_head(frozen))
    assert found.keys() == kept["tokens"].keys()
    for name, value in found.items():
        torch.testing.assert_close(value, torch.tensor(kept["tokens"][name]), rtol=1e-5, atol=1e-6)
    assert predicted(frozen, frozen) == pytest.approx(kept["image"], rel=1e-5)


def test_it_is_the_head_that_its_members_make_as_one_file(frozen: Path, tmp_path: Path) -> None:
    listing = json.loads((frozen / "ensemble.json").read_text())
    weights = [member["weight"] for member in listing["members"]]
    head = HeadEnsemble.from_heads(built(frozen), weights if len(set(weights)) > 1 else None, listing["reduce"])
    found = HeadCheckpoint.load(frozen)
    assert found.config == head.config
    assert {name: value.tolist() for name, value in answers(found.build()).items()} == {
        name: value.tolist() for name, value in answers(head).items()
    }
    assert found.file_digest == listing["digest"]
    assert found.meta["extra"]["members"] == [[one["output"], one["fold"]] for one in listing["members"]]
    first = HeadCheckpoint.load(frozen / listing["members"][0]["file"])
    assert (found.meta["backbone"], found.meta["inputs"]) == (first.meta["backbone"], first.meta["inputs"])
    assert found.adapter_state.keys() == first.adapter_state.keys()
    assert all(torch.equal(found.adapter_state[name], value) for name, value in first.adapter_state.items())
    found.save(tmp_path / "one.safetensors")
    again = HeadCheckpoint.load(tmp_path / "one.safetensors")
    assert again.meta == found.meta
    assert all(torch.equal(again.state_dict[name], value) for name, value in found.state_dict.items())


def test_what_the_heads_share_is_kept_and_metrics_become_mean_and_deviation() -> None:
    meta = HeadCheckpoint.load(ROOT / "plain").meta
    assert meta["training"] == {
        "seed": 7,
        "folds": 3,
        "epochs": 40,
        "data": {"name": "pasture", "revision": "2024-10"},
        "metrics": {
            f"{output} {name}": {"mean": mean, "sd": sd}
            for output in ("clover", "total")
            for name, mean, sd in (("R2", 0.625, 0.125), ("loss", 0.25, 0.25))
        },
    }
    assert (meta["license"], meta["tta"]["ops"]) == ("Apache-2.0", "flip4")


def test_a_plain_folder_holds_one_head_or_is_for_predictor(folder: Path, tmp_path: Path) -> None:
    heads = folder / "heads"
    with pytest.raises(CheckpointError, match=r"holds 6 head files: clover-fold0.* pass the folder to Predictor"):
        HeadCheckpoint.load(heads)
    (tmp_path / "single").mkdir()
    shutil.copy(heads / "total-fold0.safetensors", tmp_path / "single")
    assert HeadCheckpoint.load(tmp_path / "single").meta["training"]["fold"] == 0
    with pytest.raises(CheckpointError, match="holds no head files"):
        HeadCheckpoint.load(tmp_path)


# -- refusals ---------------------------------------------------------------------------------------------


def refused(folder: Path, message: str, step: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        HeadCheckpoint.load(folder)
    assert caught.value.step == step, caught.value


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def exchange(folder: Path) -> None:
    one, other = folder / "heads/total-fold0.safetensors", folder / "heads/total-fold1.safetensors"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def resave(folder: Path, **records: Any) -> None:
    """Put the first head there with other records, and list its digest."""
    file = folder / members(folder)[0]["file"]
    old = HeadCheckpoint.load(file)
    kept = {"backbone": old.meta["backbone"], "preprocess": old.preprocess}
    save_head(file, old.build(), **{**kept, **records})
    relist(folder, lambda listing: listing["members"][0].update(digest=read_header(file).meta["digest"]))


def neck(folder: Path) -> None:
    """A file of a neck in the place of a head, with the same records."""
    file = folder / members(folder)[0]["file"]
    old = HeadCheckpoint.load(file)
    save_head(file, ViTFPN(64, num_layers=1), backbone=old.meta["backbone"], preprocess=old.preprocess)
    relist(folder, lambda listing: listing["members"][0].update(digest=read_header(file).meta["digest"]))


def relist(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the list; its digest and spelling are right."""
    path = folder / "ensemble.json"
    listing = json.loads(path.read_text())
    change(listing)
    listing["digest"] = files.digest(listing, ())
    path.write_bytes(files.canonical(listing) + b"\n")


def edited(folder: Path) -> None:
    path = folder / "ensemble.json"
    path.write_text(path.read_text().replace('"median"', '"mean"'))


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (
        lambda x: (x / "heads/total-fold0.safetensors").unlink(),
        "lacks heads/total-fold0.*exactly the 6",
        "file",
    ),
    "more": (
        lambda x: shutil.copy(x / "heads/total-fold0.safetensors", x / "heads/a.safetensors"),
        "holds heads/a.safe",
        "file",
    ),
    "damaged": (lambda x: flip(x / "heads/total-fold0.safetensors"), "does not match its digest", "digest"),
    "exchanged": (exchange, "another head than ensemble.json lists", "digest"),
    "edited": (edited, "the list does not match its digest", "digest"),
    "backbone": (
        lambda x: resave(x, backbone=load_backbone("dinoneck_tiny", seed=5).record()),
        "as ensemble.json states for all",
        "pairing",
    ),
    "no head": (neck, "the heads do not fit together", "config"),
    "inputs": (lambda x: resave(x, preprocess=None), "inputs.* is None; expected", "pairing"),
}


@pytest.mark.filterwarnings("ignore:this PatchMeanHead is saved without backbone=")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_the_folder_that_was_written_is_refused(fault: str, folder: Path) -> None:
    change, message, step = FAULTS[fault]
    change(folder)
    refused(folder, message, step)
    assert main(["verify", str(folder)]) == 1
    with pytest.raises(CheckpointError):
        Predictor(folder)


@pytest.mark.parametrize(
    ("change", "message", "step"),
    [
        (lambda x: x.update(surprise=1), "unknown field `surprise`", "schema"),
        (lambda x: x.update(reduce="max"), "Invalid enum value 'max'", "schema"),
        (lambda x: x["backbone"].update(embed_dim=65), "backbone.embed_dim is 64; expected 65", "pairing"),
        (lambda x: x["members"].pop(), "holds heads/total-fold2.safetensors; expected exactly the 5", "file"),
        (lambda x: x["members"].append(x["members"][0]), "lists a head twice", "pairing"),
        (lambda x: x["members"][0].update(file="../x.safetensors"), "expected 'heads/", "schema"),
        (lambda x: x["members"][0].update(output="../../x"), "matching regex", "schema"),
        (lambda x: x["members"][0].update(weight=2.0), "weights have no meaning for reduce='median'", "config"),
        (lambda x: [one.update(weight=0.0) for one in x["members"]], "not all 0", "config"),
        (lambda x: x["members"][0].update(digest="sha256:" + "0" * 64), "another head", "digest"),
    ],
    ids=range(10),
)
def test_forged_lists(change: Callable[[Any], Any], message: str, step: str, folder: Path) -> None:
    relist(folder, change)
    refused(folder, message, step)


def test_a_head_is_listed_under_its_own_name(folder: Path) -> None:
    (folder / "heads/clover-fold0.safetensors").rename(folder / "heads/weed-fold0.safetensors")
    relist(folder, lambda x: x["members"][0].update(file="heads/weed-fold0.safetensors", output="weed"))
    refused(folder, "predicts 'clover'; it is listed as 'weed'", "pairing")


@pytest.mark.parametrize("text", ["[", '{"a":1,"a":2}', " " * (2 << 20)])
def test_unsound_json(text: str, folder: Path) -> None:
    (folder / "ensemble.json").write_bytes(text.encode("latin-1"))
    refused(folder, "ensemble.json", "json")


# -- verbs ------------------------------------------------------------------------------------------------


def test_migrate_makes_one_file_of_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "one.safetensors"
    assert main(["migrate", str(folder)]) == 1
    assert "name it with --out" in capsys.readouterr().err
    assert main(["migrate", str(folder), "--out", str(folder / "heads" / "total-fold0.safetensors")]) == 1
    assert main(["migrate", str(folder), "--out", str(out)]) == 0
    assert read_header(out).meta == HeadCheckpoint.load(folder).meta
    assert predicted(out, folder) == predicted(folder, folder)
    assert main(["migrate", str(folder), "--out", str(out)]) == 0, "again"
    assert main(["migrate", str(ROOT / "with_lora"), "--out", str(out)]) == 1, "another head is not replaced"
    assert "is another head" in capsys.readouterr().err
    assert main(["verify", str(folder), str(out)]) == 0
    assert "kind ensemble, heads 6" in capsys.readouterr().out


# -- the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """The repository that version 0.1 pushed."""
    source = ROOT / "plain"
    content = {file.relative_to(source).as_posix(): file.read_bytes() for file in source.rglob("*.*")}
    return hub.repo("me/many", {**content, "README.md": b"a page"})


def test_a_repository_of_0_1_is_the_same_head(hub: Hub, repo: Repo) -> None:
    first = repo.branches["main"]
    repo.branches["v1"] = first
    one = (ROOT / "with_lora/heads/total-fold0.safetensors").read_bytes()
    repo.commit({**dict.fromkeys(repo.commits[first]), "h.safetensors": one})
    local = HeadCheckpoint.load(ROOT / "plain")
    for revision in ("v1", first):
        found = HeadCheckpoint.load("me/many", revision=revision)
        assert (found.meta, found.file_digest, found.revision) == (local.meta, local.file_digest, first)
    assert HeadCheckpoint.load("me/many").head_type == "patch_mean", "main holds one head by now"
    predictor = Predictor("me/many", revision="v1")
    assert predictor.revisions == {"me/many": first}
    hub.stop()
    assert predicted(HeadCheckpoint.load("me/many", revision=first), ROOT / "plain") == predicted(local, ROOT / "plain")
