"""The two runs that benchmarks.kill_campaign kills, and what must hold of their files after a kill and in the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.kill_campaign_terms import BATCH, EPOCHS, PHOTOS, SAVE_STEPS, STEPS, TRAINED
from dinoneck import FeatureStore, StoreError, Task, Tokens, load_backbone
from dinoneck.heads.head import Head
from dinoneck.store import shards
from dinoneck.store.files import LocalFiles
from dinoneck.store.index import read_index
from dinoneck.training import Recipe, fit
from dinoneck.training.run_state import load_state

SIZE = (32, 64)
UNIT_VIEWS = 8  # two photos go through the backbone together
SHARD_BYTES = 15_000  # three photos of four patterns: the end of a shard cuts a unit
BITS = Mapping[str, Any]


class Job(Protocol):
    """A run in a folder of its own."""

    def prepare(self, root: Path, data: Path) -> Callable[[], dict[str, Any]]:
        """Load what the run needs; the returned call is the run, and says what it did."""
        ...

    def seen(self, root: Path) -> dict[str, Any]:
        """What a reader sees of the run's files."""
        ...

    def damage(self, root: Path, whole: Path, told: BITS) -> list[str]:
        """What is wrong with the files of an unfinished run, beside those of the uninterrupted one."""
        ...

    def difference(self, root: Path, whole: Path, told: BITS, own: BITS) -> list[str]:
        """What differs between a finished run and the uninterrupted one."""
        ...


def write_photos(folder: Path) -> None:
    """Write small random photos."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(PHOTOS):
        small = Image.fromarray(random.integers(0, 256, (6, 9, 3)).astype(np.uint8))
        small.resize((96, 64), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")


class Extraction:
    """``FeatureStore.create`` and ``extract``: int8, four patterns, three photos per shard."""

    def prepare(self, root: Path, data: Path) -> Callable[[], dict[str, Any]]:
        """Make the photos and load the backbone."""
        if not (data / "photos").exists():
            write_photos(data / "photos")
        backbone = load_backbone("dinoneck_tiny")

        def run() -> dict[str, Any]:
            store = FeatureStore.create(
                root / "store", backbone=backbone, patterns="flips4", image_size=SIZE, dtype="int8"
            )
            done = store.extract(data / "photos", batch_size=UNIT_VIEWS, workers=1, shard_bytes=SHARD_BYTES)
            return {"kept": done.present, "done": len(done.written)}

        return run

    def seen(self, root: Path) -> dict[str, Any]:
        """Every indexed image, and where its records are."""
        entries = read_index(LocalFiles(root / "store"))
        return {entry.id: [entry.file, entry.offset] for entry in entries}

    def damage(self, root: Path, whole: Path, told: BITS) -> list[str]:
        """Name what is indexed with other bits, and shards that are half written."""
        store = root / "store"
        if not (store / "store.json").exists():
            return []
        found, expected = _records(store), _records(whole / "store")
        problems = [f"{key} has other bits" for key, value in found.items() if value != expected.get(key)]
        opened = FeatureStore.open(store)  # a kill may leave a finished shard that the index does not list yet
        problems += [f"verify() names {image_id}" for image_id in opened.verify() if image_id in opened]
        for name in shards.names(LocalFiles(store)):
            problems += _unsound(opened, name)
        return problems

    def difference(self, root: Path, whole: Path, told: BITS, own: BITS) -> list[str]:
        """Name what is missing, doubled, left over or has other bits."""
        store, expected = root / "store", whole / "store"
        problems = self.damage(root, whole, told)
        missing = _records(expected).keys() - _records(store).keys()
        problems += [f"{key} is missing" for key in sorted(missing)]
        if len(read_index(LocalFiles(store))) != PHOTOS:
            problems.append(f"the index has {len(read_index(LocalFiles(store)))} lines for {PHOTOS} photos")
        problems += [f"{path.name} is left in data" for path in (store / "data").glob(".*")]
        for name in ("store.json", "channel_scale.safetensors"):
            if (store / name).read_bytes() != (expected / name).read_bytes():
                problems.append(f"{name} differs")
        return problems


def _records(store: Path) -> dict[tuple[str, int], bytes]:
    """(id, pattern) -> the bytes of its record."""
    found = {}
    for entry in read_index(LocalFiles(store)):
        raw = (store / entry.file).read_bytes()
        for pattern in range(len(entry.crc32)):
            found[entry.id, pattern] = raw[entry.at(pattern) : entry.at(pattern) + entry.length]
    return found


def _unsound(store: FeatureStore, name: str) -> list[str]:
    try:
        shards.entries_in(store.reader.files, name, store.description.layout)
    except StoreError as error:
        return [f"{name} is half written ({error})"]
    return []


class DropoutHead(Head):
    """Dropout, batch statistics and two layers: whatever a resumed run could get wrong."""

    def __init__(self, embed_dim: int, tasks: Sequence[Task], hidden_dim: int = 16) -> None:
        super().__init__()
        self.embed_dim, self.tasks = embed_dim, tuple(tasks)
        self.first, self.norm = nn.Linear(embed_dim, hidden_dim), nn.BatchNorm1d(hidden_dim)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(hidden_dim, 1)

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """(B, N, C) -> (B, 1)."""
        hidden = self.norm(self.first(tokens.patches[-1].mean(dim=1)))
        return {self.tasks[0].name: self.last(self.drop(hidden.relu()))}


class Training:
    """``fit`` on the uninterrupted store: dropout, mixup, EMA, the best epoch kept, a state every two steps."""

    def prepare(self, root: Path, data: Path) -> Callable[[], dict[str, Any]]:
        """Open the store and make the head."""
        store = FeatureStore.open(data / "extraction" / "store")
        torch.manual_seed(0)
        head = DropoutHead(store[store.ids[0]].sequence[0].shape[-1], [Task("cover")])
        recipe = Recipe(save_steps=SAVE_STEPS, mixup_alpha=0.5, patience=EPOCHS)

        def run() -> dict[str, Any]:
            fit(
                head,
                store,
                targets={"cover": np.linspace(0.0, 1.0, PHOTOS)},
                target_ids=store.ids,
                ids=store.ids[:TRAINED],
                val_ids=store.ids[TRAINED:],
                epochs=EPOCHS,
                batch_size=BATCH,
                lr=1e-2,
                out=root / "run",
                recipe=recipe,
            )
            return {"head": digest(head.state_dict())}

        return run

    def seen(self, root: Path) -> dict[str, Any]:
        """The step of the state."""
        path = root / "run" / "last.safetensors"
        return {"step": load_state(path)["progress"]["step"]} if path.exists() else {}

    def damage(self, root: Path, whole: Path, told: BITS) -> list[str]:
        """Compare the state with those the uninterrupted run wrote, and the log's lines with its log."""
        problems, path, log = [], root / "run" / "last.safetensors", root / "run" / "log.jsonl"
        state = load_state(path) if path.exists() else None  # its header's order is free: the content is compared
        if state is not None and digest(state) not in told["states"]:
            problems.append("the state is none that the uninterrupted run wrote")
        if log.exists():
            finished = log.read_bytes()[: log.read_bytes().rfind(b"\n") + 1]
            if not (whole / "run" / "log.jsonl").read_bytes().startswith(finished):
                problems.append("the log has other lines")
            if finished.count(b"\n") > (0 if state is None else state["progress"]["epoch"]):
                problems.append("the log is ahead of the state")
        return problems

    def difference(self, root: Path, whole: Path, told: BITS, own: BITS) -> list[str]:
        """Name the parts of the state, steps and files that differ."""
        problems = self.damage(root, whole, told)
        found, expected = (load_state(folder / "run" / "last.safetensors") for folder in (root, whole))
        problems += [f"the {part} differs" for part in expected if digest(found.get(part)) != digest(expected[part])]
        if (root / "run" / "log.jsonl").read_bytes() != (whole / "run" / "log.jsonl").read_bytes():
            problems.append("the log differs")
        if own["head"] != told["head"]:
            problems.append("the head's final weights differ")
        if own["steps"] is not None:
            problems += self._other_steps(own, told["steps"])
        return problems

    @staticmethod
    def _other_steps(own: BITS, expected: BITS) -> list[str]:
        """Steps after which weights, averages, optimizer, batches or random numbers differ, or that are missing."""
        steps = own["steps"]
        other = [step for step, value in steps.items() if expected.get(step) != value]
        problems = [f"{len(other)} steps differ, the first is {other[0]}"] if other else []
        wanted = [str(step) for step in range(own["before"].get("step", 0) + 1, EPOCHS * STEPS + 1)]
        return problems if list(steps) == wanted else [*problems, f"steps {list(steps)} were run, expected {wanted}"]


JOBS: dict[str, Job] = {"extraction": Extraction(), "training": Training()}


def digest(value: Any) -> str:
    """SHA-256 of nested dicts, sequences, arrays, tensors and plain values."""
    total = hashlib.sha256()
    _feed(total, value)
    return total.hexdigest()


def _feed(total: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        total.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, list | tuple):
        total.update(f"[{len(value)}".encode())
        for part in value:
            _feed(total, part)
    else:
        total.update(f"{type(value).__name__} {value!r};".encode())
