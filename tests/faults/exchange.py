"""Files exchanged between two runs that differ in one thing, then used: resumed, predicted with, trained on.

Each file of one run is replaced by the other run's file of the same name. Right is what the run
gives without the exchange. A whole ``head.safetensors`` of another run is a sound file of another
head: its own predictions are right then.
"""

from __future__ import annotations

import csv
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tests import kit
from tests.faults.pairs.options import Differs, check_same, raise_refusal, sampled, verdict

from dinoneck import FeatureStore, HeadCheckpoint, Predictor
from dinoneck.training import TrainConfig, train

COUNT = 6
STOP_AT = 4  # of the two folds with two epochs each: the second epoch of the second fold
Changes = dict[str, dict[str, Any]]
# what differs -> the fields of the other run's config
RUNS: dict[str, Changes] = {
    "seed": {"optim": {"seed": 7}},
    "learning rate": {"optim": {"lr": 0.03}},
    "layers": {"backbone": {"layers": [2]}},
    "weights of the backbone": {"backbone": {"seed": 1}},
    "dtype": {"optim": {"amp": "bf16"}},
    "target": {"data": {"targets": ["height"]}},
    "unit": {"data": {"unit": "kg"}},
    "size": {"data": {"size": [48, 32]}},
    "hidden width": {"head": {"type": "patch_mean", "hidden_dim": 64}},
    "groups": {"folds": {"group": ["place"]}},
    "numbers": {"data": {"csv": "other.csv"}},
    "pixels": {"data": {"images": "other"}},
}
# what differs -> arguments of the other store
STORES: dict[str, dict[str, Any]] = {
    "weights of the backbone": {"seed": 1},
    "layers": {"layers": [2]},
    "norm": {"norm": False},
    "dtype": {"dtype": "bf16"},
    "views": {"views": "flips4"},
    "size": {"image_size": (48, 32)},
    "pixels": {"images": "other"},
}
MODES = {
    "a file of an unfinished run is another run's, and train goes on": RUNS,
    "a file of a finished run is another run's, and it predicts": RUNS,
    "a file of a store is another store's, and an unfinished run on it goes on": STORES,
    "a file of a store is another store's, and the run's head predicts from it": STORES,
}
"""What is done -> what the two differ in."""


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all exchanges of one mode, or of a share of the differences."""
    act = dict(zip(MODES, (on_unfinished, on_finished, on_store, from_store), strict=True))[mode]
    world = World(folder)
    for difference in sampled([*MODES[mode]], share):
        yield from act(world, difference)


class World:
    """Two sets of images of equal names and sizes, two tables, and runs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = [f"{number}.png" for number in range(COUNT)]
        kit.write_images(folder / "images", names, 32, 48)
        kit.write_images(folder / "other", names, 32, 48, seed=50)
        for name, offset in (("table.csv", 0.0), ("other.csv", 1.0)):
            lines = ["image,mass,height,place"]
            for number in range(COUNT):
                mass = number + 0.5 + offset * (number % 2)
                lines.append(f"{number}.png,{mass},{3 - 0.2 * number},p{number // 2}")
            (folder / name).write_text("\n".join(lines) + "\n")

    def config(self, changes: Changes) -> TrainConfig:
        """The config of a run, with these fields changed; names of files are those of this folder."""
        values: dict[str, Any] = {
            "data": {
                "csv": "table.csv",
                "images": "images",
                "targets": ["mass"],
                "size": [32, 32],
            },
            "backbone": {"name": "dinoneck_tiny"},
            "folds": {"count": 2},
            "optim": {"epochs": 2, "lr": 0.01, "batch_size": 2},
            "device": "cpu",
        }
        for part, fields in changes.items():
            values[part] = {**values.get(part, {}), **fields}
        if values["data"].get("store"):
            del values["data"]["size"]
            del values["backbone"]
        for name in ("csv", "images", "store"):
            if values["data"].get(name):
                values["data"][name] = str(self.folder / values["data"][name])
        return TrainConfig.from_dict(values)

    def stopped(self, changes: Changes, name: str) -> Path:
        """A run that ended in its second fold."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        epochs = []

        def stop(epoch: int, row: dict[str, float]) -> None:
            epochs.append(epoch)
            if len(epochs) == STOP_AT:
                raise KeyboardInterrupt

        try:
            train(self.config(changes), root, callbacks=[stop])
        except KeyboardInterrupt:
            return root
        raise AssertionError("the run was not stopped")

    def finished(self, changes: Changes, name: str) -> Path:
        """A finished run."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        train(self.config(changes), root)
        return root

    def store(self, name: str, **changes: Any) -> Path:
        """A feature store of the images."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        images = self.folder / changes.pop("images", "images")
        backbone = {key: changes.pop(key) for key in ("seed", "layers", "norm") if key in changes}
        options = {"views": "none", "image_size": (32, 32), "dtype": "fp16", **changes}
        store = FeatureStore.create(root, backbone=kit.backbone(**backbone), **options)
        store.extract(images, workers=1, shard_bytes=1)
        return root


def files_of(root: Path) -> list[str]:
    """The files of a folder by their names in it."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def exchanges(one: Path, other: Path, work: Path) -> Iterator[str]:
    """Yield after each exchange of a file that both folders have; ``work`` is the changed copy.

    Shards have names of their own: they are exchanged by their order.
    """
    partners = {name: name for name in files_of(one) if (other / name).exists()}
    shards = [
        [name for name in files_of(root) if name.startswith("data/")] for root in (one, other)
    ]
    partners |= dict(zip(*shards, strict=False))
    for name, partner in partners.items():
        if (one / name).read_bytes() == (other / partner).read_bytes():
            continue
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(one, work)
        shutil.copy(other / partner, work / name)
        yield name
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(other, work)
    yield "all files"


def _quietly(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def results_of(root: Path) -> dict[str, Any]:
    """What a finished run states and holds: its table, and the weights of its head."""
    table = numbers_of(root / "out_of_fold.csv")
    return {"table": table, "head": weights_of(root / "head.safetensors")}


def numbers_of(table: Path) -> list[dict[str, Any]]:
    """Return the rows of a table; all but the image are numbers."""
    rows = []
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers: dict[str, Any] = {}
            for column, value in row.items():
                numbers[column] = value if column == "image" else float(value)
            rows.append(numbers)
    return rows


def weights_of(file: Path) -> dict[str, Any]:
    state = HeadCheckpoint.load(file).state_dict
    return {name: value.float().numpy() for name, value in state.items()}


def on_unfinished(world: World, difference: str) -> Iterator[str]:
    """Exchange a file of a run that was stopped, and continue it."""
    one = world.stopped({}, "one")
    other = world.stopped(RUNS[difference], "two")
    right = results_of(world.finished({}, "right"))
    other_right = results_of(world.finished(RUNS[difference], "other right"))
    work = world.folder / "work"
    for name in exchanges(one, other, work):

        def resume(name: str = name) -> None:
            train(world.config({}), work)
            found = results_of(work)
            if name == "all files" and _is_same(found, other_right):
                raise Differs("it goes on with the config of the other run")
            check_same(found, right, "results", 1e-6)

        yield verdict(f"{difference}: {name}", lambda resume=resume: _quietly(resume))


def _is_same(one: Any, other: Any) -> bool:
    try:
        check_same(one, other, "", 1e-6)
    except Differs:
        return False
    return True


def on_finished(world: World, difference: str) -> Iterator[str]:
    """Exchange a file of a finished run, then predict, and train again without ``overwrite``."""
    one = world.finished({}, "one")
    other = world.finished(RUNS[difference], "two")
    work = world.folder / "work"
    heads = {"head.safetensors": one, "all files": one}
    for name in exchanges(one, other, work):

        def predict(name: str = name) -> None:
            source = other if name in heads else one
            check_same(table_of(world, work), table_of(world, source), "predictions", 1e-5)

        yield verdict(f"{difference}: {name}", predict)

        def evaluate(name: str = name) -> None:
            source = other if name in heads else one
            check_same(scores_of(world, work), scores_of(world, source), "scores", 1e-5)

        yield verdict(f"{difference}: {name}, scored", evaluate)


def table_of(world: World, run: Path) -> list[Any]:
    """What ``dinoneck predict --heads RUN`` writes."""
    table = world.folder / "rows.csv"
    table.unlink(missing_ok=True)
    ran = kit.cli("predict", world.folder / "images", "--heads", run, "--out", table)
    raise_refusal(ran)
    return numbers_of(table)


def scores_of(world: World, run: Path) -> Any:
    """What ``dinoneck evaluate --heads RUN`` prints, without times."""
    words = ["--heads", run, "--truth", world.folder / "table.csv", "--json"]
    ran = kit.cli("evaluate", world.folder / "images", *words)
    raise_refusal(ran)
    scores = {}
    for target, methods in ran.json["scores"].items():
        scores[target] = {"r2": methods["head"]["r2"]["pooled"]}
    return scores


ON_STORE: Changes = {"data": {"store": "work", "images": "images"}}


def on_store(world: World, difference: str) -> Iterator[str]:
    """Exchange a file of the store that a run was stopped on, and continue the run."""
    one = world.store("store")
    other = world.store("other store", **STORES[difference])
    work = world.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(one, work)
    right = results_of(world.finished(ON_STORE, "right"))
    stopped = world.stopped(ON_STORE, "stopped")
    run = world.folder / "run"
    for name in exchanges(one, other, work):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(stopped, run)

        def resume() -> None:
            train(world.config(ON_STORE), run)
            check_same(results_of(run), right, "results", 1e-6)

        yield verdict(f"{difference}: {name}", resume)


def from_store(world: World, difference: str) -> Iterator[str]:
    """Exchange a file of a store, and predict from it with a head that was trained on it."""
    one = world.store("store")
    other = world.store("other store", **STORES[difference])
    work = world.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(one, work)
    head = world.finished(ON_STORE, "run") / "head.safetensors"
    right = stored_rows(head, one)
    # a shard of other images is sound in a store of equal description: their tokens are in it
    also_right = stored_rows(head, other) if difference == "pixels" else right
    for name in exchanges(one, other, work):

        def predict() -> None:
            for row, pair in zip(
                stored_rows(head, work), zip(right, also_right, strict=True), strict=True
            ):
                nearest = min(pair, key=lambda value, row=row: abs(value - row))
                # another rounding of the same tokens is right too
                check_same([row], [nearest], "prediction", 2e-2)

        yield verdict(f"{difference}: {name}", predict)


def stored_rows(head: Path, store: Path) -> list[Any]:
    """The predictions from stored tokens, of the images in order."""
    ids = [str(number) for number in range(COUNT)]
    rows = Predictor(head).predict(FeatureStore.open(store), ids)
    return [float(np.ravel(row["mass"])[0]) for row in rows]
