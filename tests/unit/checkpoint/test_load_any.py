"""One head or an ensemble, from a file, a folder or the hub: the name alone is enough."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from tests.hub_server import Hub, Repo

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, Predictor, Task, load_head
from dinoneck.checkpoint import EnsembleFolder, Member
from dinoneck.checkpoint.load_any import load_any


@pytest.fixture
def many(tiny: Backbone, tmp_path: Path) -> Path:
    """The folder of an ensemble of three."""
    made = [HeadCheckpoint.from_module(PatchMeanHead(64, [Task("a")]), backbone=tiny) for _ in range(3)]
    EnsembleFolder([Member(checkpoint, "a", fold) for fold, checkpoint in enumerate(made)]).save(tmp_path / "many")
    return tmp_path / "many"


def pushed(hub: Hub, folder: Path) -> Repo:
    return hub.repo("me/many", {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")})


def test_a_predictor_takes_an_ensemble_by_any_name(hub: Hub, many: Path, tiny: Backbone) -> None:
    repo = pushed(hub, many)
    photo = torch.rand(3, 32, 48)
    expected = Predictor([str(file) for file in sorted((many / "heads").iterdir())], tiny)(photo)
    first, one = repo.branches["main"], next((many / "heads").iterdir())
    repo.branches["v1"] = first
    repo.commit({**dict.fromkeys(repo.commits[first]), "h.safetensors": one.read_bytes()})
    for heads in (many, str(many), EnsembleFolder.load(many)):
        predictor = Predictor(heads, tiny)
        assert (predictor(photo), predictor.revisions) == (expected, {})
    assert Predictor("me/many")(photo) == Predictor(one)(photo), "main holds one head by now"
    for revision in ("v1", first):
        predictor = Predictor("me/many", revision=revision)
        assert (predictor(photo), predictor.revisions) == (expected, {"me/many": first})
    mixed = Predictor(["me/many", one], tiny, revision="v1")
    assert mixed.revisions == {"me/many": first}
    hub.stop()
    assert Predictor("me/many", tiny, revision="v1")(photo) == expected, "from the cache"
    with pytest.raises(CheckpointError, match="revision='v1' is for hub repositories") as caught:
        Predictor(many, revision="v1")
    assert caught.value.step == "hub"


def test_load_any_says_what_it_is(hub: Hub, many: Path) -> None:
    repo = pushed(hub, many)
    head = next((many / "heads").iterdir())
    hub.repo("me/one", {"h.safetensors": head.read_bytes()})
    found = [load_any(source) for source in (many, head, "me/many", "me/one")]
    assert [type(one) for one in found] == [EnsembleFolder, HeadCheckpoint, EnsembleFolder, HeadCheckpoint]
    assert [one.revision for one in found[:3]] == [None, None, repo.branches["main"]]
    assert isinstance(load_head("me/one", revision="main"), PatchMeanHead)
    with pytest.raises(CheckpointError, match="there is no head file"):
        load_any(many / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="there is no hub repository me/gone"):
        load_any("me/gone")


def test_a_commit_in_the_cache_needs_no_hub(hub: Hub, many: Path) -> None:
    repo = pushed(hub, many)
    commit = repo.branches["main"]
    load_any("me/many")
    asked = len(hub.requests)
    assert load_any("me/many", revision=commit).revision == commit
    assert EnsembleFolder.load("me/many", revision=commit).revision == commit
    assert len(hub.requests) == asked


def test_half_an_ensemble_in_the_cache_is_none(hub: Hub, many: Path) -> None:
    """A download broke off, or another program fetched some of the files."""
    commit = pushed(hub, many).branches["main"]
    for held in (["heads/a-fold0.safetensors"], ["ensemble.json"]):
        for name in held:
            huggingface_hub.hf_hub_download("me/many", name, revision=commit)
        hub.down = 503
        with pytest.raises(CheckpointError, match="not in the local cache"):
            load_any("me/many", revision=commit)
        hub.down = None
    loaded = load_any("me/many", revision=commit)
    assert isinstance(loaded, EnsembleFolder)
    assert len(loaded) == 3


def test_a_damaged_member_says_where_it_came_from(hub: Hub, many: Path) -> None:
    commit = pushed(hub, many).branches["main"]
    loaded = EnsembleFolder.load("me/many")
    stored = Path(
        huggingface_hub.try_to_load_from_cache("me/many", loaded.members[1].file, revision=commit)  # type: ignore[arg-type]
    ).resolve()
    raw = bytearray(stored.read_bytes())
    raw[-1] ^= 1
    stored.write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"me/many at {commit}: .*a-fold1.*delete {stored} and load again") as no:
        Predictor("me/many")
    assert no.value.step == "digest"
    stored.unlink()
    assert len(EnsembleFolder.load("me/many", revision=commit)) == 3
