"""Many heads as one folder: the same answers, and nothing missing, exchanged or mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dinoneck import (
    Backbone,
    CheckpointError,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    Task,
    Tokens,
    load_backbone,
    load_head,
)
from dinoneck.checkpoint import EnsembleFolder, Member, load_ensemble, save_ensemble
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.ensemble_folder import is_ensemble, read_listing
from dinoneck.cli.main import main

OUTPUTS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")


def tokens() -> Tokens:
    return Tokens.from_patches(torch.randn(2, 6, 64), grid=(2, 3), patch_size=16)


def member(output: str, fold: int, backbone: Any, weight: float = 1.0, **options: Any) -> Member:
    head = PatchMeanHead(64, [Task(output, unit="g")], hidden_dim=4)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Member(HeadCheckpoint.from_module(head, backbone=backbone, **options), output, fold, weight)


@pytest.fixture(scope="module")
def members(tiny: Backbone) -> list[Member]:
    torch.manual_seed(0)
    preprocess = tiny.preprocess.changed(size=(32, 48))
    return [member(output, fold, tiny.record(), preprocess=preprocess) for output in OUTPUTS for fold in range(5)]


@pytest.fixture(scope="module")
def saved(members: list[Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "e"
    save_ensemble(path, members)
    return path


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "e"))


def test_twenty_five_heads_answer_as_one(members: list[Member], folder: Path, tiny: Backbone) -> None:
    x = tokens()
    loaded = load_ensemble(folder)
    assert isinstance(loaded, HeadEnsemble)
    assert not loaded.training
    answers = loaded.predict(x)
    for output in OUTPUTS:
        own = [item.checkpoint.build().predict(x)[output] for item in members if item.output == output]  # type: ignore[operator]
        assert torch.allclose(answers[output], torch.stack(own).mean(0), atol=1e-6)
    names = sorted(path.name for path in (folder / "heads").iterdir())
    assert names[0] == "Dry_Clover_g-fold0.safetensors"
    assert len(names) == 25
    ensemble = EnsembleFolder.load(folder)
    assert ensemble.backbone == tiny.record()
    assert ensemble.inputs is not None
    assert ensemble.inputs["size"] == [32, 48]
    assert is_ensemble(folder)
    assert not is_ensemble(folder / "heads")
    assert "25 heads" in repr(ensemble)


@pytest.mark.parametrize(("weights", "reduce"), [((1.0, 3.0), "mean"), ((1.0, 1.0), "median")])
def test_weights_and_reduce_travel(weights: Any, reduce: Any, tiny: Backbone, tmp_path: Path) -> None:
    pair = [member("a", fold, tiny.record(), weight) for fold, weight in enumerate(weights)]
    save_ensemble(tmp_path / "e", pair, reduce=reduce)
    built = [item.checkpoint.build() for item in pair]
    wanted = HeadEnsemble.from_heads(built, weights if reduce == "mean" else None, reduce)
    x = tokens()
    assert torch.equal(load_ensemble(tmp_path / "e").predict(x)["a"], wanted.predict(x)["a"])  # type: ignore[operator]


def test_a_folder_becomes_one_file(folder: Path, tmp_path: Path) -> None:
    ensemble, x = EnsembleFolder.load(folder), tokens()
    checkpoint = ensemble.checkpoint()
    checkpoint.save(tmp_path / "one.safetensors")
    assert checkpoint.head_type == "ensemble"
    assert checkpoint.meta["backbone"] == ensemble.backbone
    one, other = load_head(tmp_path / "one.safetensors"), load_ensemble(folder)
    assert all(torch.equal(one.predict(x)[name], other.predict(x)[name]) for name in OUTPUTS)  # type: ignore[operator]


def refused(folder: Path, message: str, step: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        EnsembleFolder.load(folder)
    assert step in (None, caught.value.step), caught.value


def test_missing_extra_exchanged_and_damaged_members(folder: Path, tiny: Backbone, tmp_path: Path) -> None:
    heads = folder / "heads"
    first, second = heads / "GDM_g-fold0.safetensors", heads / "GDM_g-fold1.safetensors"
    content, other = first.read_bytes(), second.read_bytes()
    first.unlink()
    refused(folder, "lacks heads/GDM_g-fold0.safetensors of the 25", "file")
    first.write_bytes(content)
    (heads / "more.safetensors").write_bytes(content)
    refused(folder, "holds heads/more.safetensors, which ensemble.json does not list", "file")
    (heads / "more.safetensors").unlink()
    first.write_bytes(other)
    second.write_bytes(content)
    refused(folder, "another head than ensemble.json lists", "digest")
    second.write_bytes(other)
    damaged = bytearray(content)
    damaged[-1] ^= 1
    first.write_bytes(damaged)
    refused(folder, "does not match its digest", "digest")
    member("GDM_g", 0, tiny.record()).checkpoint.save(first)
    refused(folder, "another head than ensemble.json lists", "digest")


def relisted(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the list; its digest and spelling are right."""
    path = folder / "ensemble.json"
    listing = json.loads(path.read_text())
    change(listing)
    listing["digest"] = headers.digest(listing, ())
    path.write_bytes(headers.canonical(listing) + b"\n")


def test_mixed_backbones_and_inputs_behind_right_digests(folder: Path, tiny: Backbone) -> None:
    others = {
        "backbone": member("GDM_g", 0, load_backbone("dinoneck_tiny", seed=5).record(), preprocess=tiny.preprocess),
        "none": member("GDM_g", 0, None),
        "inputs": member("GDM_g", 0, tiny.record(), preprocess=tiny.preprocess.changed(size=(48, 48))),
    }
    for kind, other in others.items():
        other.checkpoint.save(folder / other.file)
        relisted(
            folder, lambda listing, other=other: listing["members"][20].update(digest=other.checkpoint.meta["digest"])
        )  # type: ignore[misc]
        refused(folder, f"share one {'inputs' if kind == 'inputs' else 'backbone'} record", "pairing")


@pytest.mark.parametrize(
    ("change", "message", "step"),
    [
        (lambda x: x.update(format="other"), "is no list", "schema"),
        (lambda x: x.update(schema=2), "reads up to 1", "schema"),
        (lambda x: x.update(schema=True), "reads up to 1", "schema"),
        (lambda x: x.update(surprise=1), "expected", "schema"),
        (lambda x: x.pop("reduce"), "expected", "schema"),
        (lambda x: x.update(reduce="max"), "expected 'mean' or 'median'", "config"),
        (lambda x: x.update(backbone=None), "is not that of its heads", "pairing"),
        (lambda x: x["backbone"].update(embed_dim=65), "is not that of its heads", "pairing"),
        (lambda x: x.update(inputs=None), "is not that of its heads", "pairing"),
        (lambda x: x.update(backbone=3), "records or null", "schema"),
        (lambda x: x.update(members=[]), "no list of 1", "schema"),
        (lambda x: x["members"].pop(), "does not list", "file"),
        (lambda x: x["members"].append(x["members"][0]), "stands twice", "pairing"),
        (lambda x: x["members"][0].update(extra=1), "no object with", "schema"),
        (lambda x: x["members"][0].update(file="../x.safetensors"), "expected 'heads/", "schema"),
        (lambda x: x["members"][0].update(file="/etc/passwd"), "expected 'heads/", "schema"),
        (lambda x: x["members"][0].update(output="../../x"), "expected letters", "schema"),
        (lambda x: x["members"][0].update(output="a\0"), "expected letters", "schema"),
        (lambda x: x["members"][0].update(fold=-1), "fold is -1", "schema"),
        (lambda x: x["members"][0].update(fold=True), "fold is True", "schema"),
        (lambda x: x["members"][0].update(weight="1"), "weight is '1'", "schema"),
        (lambda x: x["members"][0].update(weight=-1.0), "weights are", "config"),
        (lambda x: x["members"][0].update(digest="sha256:0"), "digest is", "schema"),
        (lambda x: x["members"][0].update(digest="sha256:" + "0" * 64), "another head", "digest"),
    ],
    ids=range(24),
)
def test_forged_lists(change: Callable[[Any], Any], message: str, step: str, folder: Path) -> None:
    relisted(folder, change)
    refused(folder, message, step)


def test_a_head_is_listed_under_its_own_name(folder: Path) -> None:
    old, new = folder / "heads/GDM_g-fold4.safetensors", folder / "heads/GDM-fold4.safetensors"
    old.rename(new)
    relisted(folder, lambda x: x["members"][24].update(file="heads/GDM-fold4.safetensors", output="GDM"))
    refused(folder, "predicts 'GDM_g', it cannot be listed as 'GDM'", "pairing")


@pytest.mark.parametrize(
    "text",
    ["", "[", '{"a":1,"a":2}', '{"a":NaN}', "[" * 1000, "\xff", '{"a":"\\ud800"}', " " * (2 << 20)],
    ids=range(8),
)
def test_unsound_json(text: str, folder: Path) -> None:
    (folder / "ensemble.json").write_bytes(text.encode("latin-1"))
    refused(folder, "ensemble.json", "json")
    (folder / "ensemble.json").unlink()
    refused(folder, "there is no head file")


def test_members_that_do_not_go_together(tiny: Backbone, tmp_path: Path) -> None:
    one, record = member("a", 0, tiny.record()), tiny.record()
    for wrong, message in (
        ([], "1 to"),
        ([one, one], "stands twice"),
        ([one, Member(one.checkpoint, "a", 1)], "are the same head"),
        ([one, member("A", 0, record)], "differs in capitals"),
        ([one, member("b", 0, None)], "share one backbone record"),
        ([Member(one.checkpoint, "b", 0)], "cannot be listed as 'b'"),
        ([Member(one.checkpoint, "a", 0, float("nan"))], "weights are"),
        ([Member(one.checkpoint, "a", 0, 0.0)], "weights are"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_ensemble(tmp_path / "e", wrong)
    with pytest.raises(CheckpointError, match="equal ones for a median"):
        save_ensemble(tmp_path / "e", [one, member("a", 1, record, 2.0)], reduce="median")
    assert not list(tmp_path.iterdir())


def test_writing_replaces_ensembles_alone(members: list[Member], folder: Path, tmp_path: Path) -> None:
    before = read_listing(folder)
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_ensemble(folder, members[:5])
    assert read_listing(folder) == before
    save_ensemble(folder, members[:5], overwrite=True)
    assert len(EnsembleFolder.load(folder)) == 5
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt, which are no part"):
        save_ensemble(folder, members, overwrite=True)
    assert len(EnsembleFolder.load(folder)) == 5
    (tmp_path / "empty").mkdir()
    save_ensemble(tmp_path / "empty", members[:1])
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is no folder"):
        save_ensemble(tmp_path / "file", members[:1], overwrite=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_ensemble(tmp_path / "no" / "where", members[:1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "empty", "file"]


def test_a_failure_half_way_leaves_the_old_folder(
    members: list[Member], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "ensemble.json").read_bytes()
    monkeypatch.setattr(
        "dinoneck.checkpoint.ensemble_folder.write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left"))
    )
    with pytest.raises(CheckpointError, match="no space left"):
        save_ensemble(folder, members[:5], overwrite=True)
    assert (folder / "ensemble.json").read_bytes() == before
    assert len(EnsembleFolder.load(folder)) == 25
    assert [path.name for path in folder.parent.iterdir()] == ["e"]


def test_lora_travels_in_the_folder_and_not_in_one_file(tmp_path: Path) -> None:
    tuned = load_backbone("dinoneck_tiny").add_lora(rank=2)
    save_ensemble(tmp_path / "e", [member("a", fold, tuned) for fold in range(2)])
    ensemble = EnsembleFolder.load(tmp_path / "e")
    assert ensemble.members[0].checkpoint.adapter_state
    assert isinstance(ensemble.build(), HeadEnsemble)
    with pytest.raises(CheckpointError, match="keep them as a folder"):
        ensemble.checkpoint()


def test_a_predictor_takes_the_folder(folder: Path, tiny: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    photo = torch.rand(3, 32, 48)
    one, other = Predictor(folder, tiny)([photo]), Predictor(EnsembleFolder.load(folder), tiny)([photo])
    assert one == other
    files = sorted((folder / "heads").iterdir())
    plain = Predictor(files, tiny)([photo])
    assert all(one[0][name] == pytest.approx(plain[0][name], abs=1e-5) for name in OUTPUTS)
    assert main(["verify", str(folder)]) == 0
    assert "25 heads of Dry_Clover_g" in capsys.readouterr().out
    files[0].unlink()
    assert main(["verify", str(folder)]) == 1
    assert "lacks heads/Dry_Clover_g-fold0.safetensors" in capsys.readouterr().err
