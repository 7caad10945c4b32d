"""Cases of failure mode 79: folders of heads whose list and files do not go together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.reliability.forge import relisted
from benchmarks.reliability.modes import HARMLESS, Case, Missed
from benchmarks.reliability.saving import head
from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, Task, load_backbone
from dinoneck.checkpoint import EnsembleFolder, Member, load_ensemble, save_ensemble
from dinoneck.data import Preprocessing

FOLDS = 3
Listing = dict[str, Any]


@functools.cache
def record(seed: int = 0) -> dict[str, Any]:
    return load_backbone("dinoneck_tiny", seed=seed).record()


def member(fold: int, output: str = "a", seed: int | None = None, width: int = 64, **options: Any) -> Member:
    """A head on the built-in backbone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold if seed is None else seed)
        module = PatchMeanHead(width, [Task(output, unit="g")], hidden_dim=4)
    backbone = options.pop("backbone", record())
    return Member(HeadCheckpoint.from_module(module, backbone=backbone, **options), output, fold)


def folder_of(place: Path) -> Path:
    save_ensemble(place / "e", [member(fold) for fold in range(FOLDS)])
    return place / "e"


def one(fold: int) -> str:
    return f"heads/a-fold{fold}.safetensors"


def with_files(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Change the files, and load."""

    def run(place: Path) -> None:
        folder = folder_of(place)
        change(folder)
        load_ensemble(folder)

    return run


def with_list(change: Callable[[Listing], object]) -> Callable[[Path], None]:
    """Change the list, and load."""
    return with_files(lambda folder: relisted(folder, change))


def with_member(**options: Any) -> Callable[[Path], None]:
    """Put another head in place of one, listed with its right digest."""

    def change(folder: Path) -> None:
        other = member(1, **options)
        other.checkpoint.save(folder / one(1))
        relisted(folder, lambda listing: listing["members"][1].update(digest=other.checkpoint.meta["digest"]))

    return with_files(change)


def sound(place: Path) -> None:
    """The folder is what its heads are: the mean of their answers."""
    folder = folder_of(place)
    tokens = load_backbone("dinoneck_tiny")(torch.zeros(1, 3, 32, 48))
    said = load_ensemble(folder).predict(tokens)["a"].item()  # type: ignore[operator]
    own = [
        HeadCheckpoint.load(folder / one(fold)).build().predict(tokens)["a"].item()  # type: ignore[operator]
        for fold in range(FOLDS)
    ]
    if abs(said - sum(own) / FOLDS) > 1e-6:
        raise Missed(f"the ensemble says {said}, its heads {own}")


def exchange(folder: Path) -> None:
    (folder / one(0)).rename(folder / "x")
    (folder / one(1)).rename(folder / one(0))
    (folder / "x").rename(folder / one(1))


def flip(folder: Path) -> None:
    content = bytearray((folder / one(2)).read_bytes())
    content[-1] ^= 1
    (folder / one(2)).write_bytes(content)


def link_out(folder: Path) -> None:
    """A head is a link to another sound head, outside."""
    head(5).save(folder.parent / "outside.safetensors")
    (folder / one(1)).unlink()
    (folder / one(1)).symlink_to(folder.parent / "outside.safetensors")


def row(**entries: Any) -> Callable[[Path], None]:
    return with_list(lambda listing: listing["members"][0].update(entries))


def too_many(listing: Listing) -> None:
    listing["members"] = [
        listing["members"][0] | {"fold": fold, "file": f"heads/a-fold{fold}.safetensors"} for fold in range(4097)
    ]


def unlisted_tail(folder: Path) -> None:
    with (folder / "ensemble.json").open("a") as file:
        file.write("{}")


OTHER_SEED = {"backbone": record(5)}
RECORDED = "share one backbone record"
ENSEMBLES = (
    Case("a sound one", HARMLESS, sound),
    Case("one missing", "file", with_files(lambda folder: (folder / one(1)).unlink()), f"lacks {one(1)} of the 3"),
    Case("all missing", "file", with_files(lambda folder: [file.unlink() for file in (folder / "heads").iterdir()])),
    Case("no list", "file", with_files(lambda folder: (folder / "ensemble.json").unlink()), "ensemble.json"),
    Case("one too many", "file", with_files(
        lambda folder: (folder / "heads" / "more.safetensors").write_bytes((folder / one(0)).read_bytes())
    ), "does not list"),
    Case("two exchanged", "digest", with_files(exchange), "another head than ensemble.json lists"),
    Case("one damaged", "digest", with_files(flip), "does not match its digest"),
    Case("one cut", "tensors", with_files(lambda folder: (folder / one(0)).write_bytes(
        (folder / one(0)).read_bytes()[:-8])), "cut short"),
    Case("a link to a sound head elsewhere", "digest", with_files(link_out), "another head than ensemble.json lists"),
    Case("trained again since", "digest", with_files(lambda folder: member(1, seed=9).checkpoint.save(folder / one(1))),
         "another head than ensemble.json lists"),
    Case("of another backbone", "pairing", with_member(seed=1, **OTHER_SEED), RECORDED),
    Case("of no backbone", "pairing", with_member(seed=1, backbone=None), RECORDED),
    Case("of photos prepared otherwise", "pairing", with_member(seed=1, preprocess=Preprocessing(size=(32, 32))),
         "share one inputs record"),
    Case("of another task", "pairing", with_member(output="b"), "predicts 'b', it cannot be listed as 'a'"),
    Case("the same head twice", "pairing", with_member(seed=0), "are the same head"),
    Case("a list of another backbone", "pairing", with_list(lambda x: x["backbone"].update(name="other")), "backbone"),
    Case("listed twice", "pairing", with_list(lambda x: x["members"].append(x["members"][0])), "stands twice"),
    Case("4097 of them", "schema", with_list(too_many), "1 to 4096 heads"),
    Case("none", "schema", with_list(lambda x: x.update(members=[])), "no list of 1"),
    Case("a path that leads out", "schema", row(file="../../../etc/passwd"), "expected 'heads/"),
    Case("an absolute path", "schema", row(file="/etc/passwd"), "expected 'heads/"),
    Case("an output that leads out", "schema", row(output="../x"), "expected letters"),
    Case("a path with NUL", "schema", row(file="heads/a-fold0.safetensors\0"), "expected 'heads/"),
    Case("a negative fold", "schema", row(fold=-1), "fold is -1"),
    Case("a weight that is no number", "schema", row(weight="1"), "weight is '1'"),
    Case("a weight below 0", "config", row(weight=-1.0), "weights are"),
    Case("another digest listed", "digest", row(digest="sha256:" + "0" * 64), "another head than"),
    Case("a newer list", "schema", with_list(lambda x: x.update(schema=99)), "reads up to"),
    Case("a list changed behind its digest", "digest", with_files(
        lambda folder: relisted(folder, lambda x: x.update(reduce="median"), digest=False)), "does not match its dig"),
    Case("a surprise in the list", "schema", with_list(lambda x: x.update(surprise=1)), "expected"),
    Case("something behind the list", "json", with_files(unlisted_tail), "no sound JSON"),
    Case("predicted with another backbone", "pairing", lambda place: Predictor(
        folder_of(place), load_backbone("dinoneck_tiny", seed=1)), "weights: the head was trained on"),
    Case("members of two backbones are not saved", "pairing", lambda place: EnsembleFolder(
        [member(0), member(1, **OTHER_SEED)]).save(place / "e"), RECORDED),
)  # fmt: skip
