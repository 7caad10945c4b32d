"""Training with the backbone in the loop: views, freeze plans, LoRA weights, and the files that carry them."""

from __future__ import annotations

import logging
import random
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.training.meadow import a_run, rows_of
from tests.unit.training.small_fit import flat
from torch import Tensor
from torchvision.transforms import v2

from dinoneck import (
    BackboneError,
    CheckpointError,
    ConfigError,
    FPNHead,
    HeadCheckpoint,
    LinearHead,
    PatchMeanHead,
    TargetTransform,
    Task,
    evaluate,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.data import Pasture
from dinoneck.training import (
    LiveTokens,
    MemoryTokens,
    Recipe,
    cutmix,
    engine,
    fit,
    manifold_mixup,
    train,
)
from dinoneck.training.engine import seed_all

pytestmark = pytest.mark.slow

IMAGES = 8
IDS = [f"p{i}" for i in range(IMAGES)]
RANDOM = np.random.RandomState(0)
LEVELS = RANDOM.randint(40, 200, (IMAGES, 1, 1, 1))
PIXELS = list((LEVELS + RANDOM.randint(-30, 30, (IMAGES, 32, 48, 3))).astype(np.uint8))
Y = np.array([image.mean() / 50 for image in PIXELS])
MIXED = Recipe(backbone_lr=3e-3, cutmix_alpha=1.0, mixup_alpha=1.0)


def a_head(cls: type[PatchMeanHead] = PatchMeanHead) -> PatchMeanHead:
    torch.manual_seed(0)
    return cls(64, [Task("level", transform=TargetTransform().fit(Y))], hidden_dim=8)


def live(lora: bool = True, images: Any = PIXELS, transform: Any = None) -> LiveTokens:
    backbone = load_backbone("dinoneck_tiny")
    backbone = backbone.add_lora(2, targets="all", seed=0) if lora else backbone.unfreeze_last(1)
    return LiveTokens(backbone, images, IDS, transform=transform)


def learn(source: Any, head: PatchMeanHead | None = None, **arguments: Any) -> Tensor:
    """All weights of head and backbone after a short training."""
    module = head or a_head()
    given = {
        "target_ids": IDS,
        "epochs": 4,
        "batch_size": 4,
        "lr": 3e-3,
        "recipe": Recipe(backbone_lr=3e-3),
    }
    fit(module, source, {"level": Y}, **{**given, **arguments})
    parts = [module, *([source.backbone] if isinstance(source, LiveTokens) else [])]
    return torch.cat([flat(part) for part in parts])


@pytest.mark.parametrize("lora", [True, False])
def test_the_trainable_part_moves_and_the_frozen_part_does_not(lora: bool) -> None:
    source = live(lora)
    before = {name: p.detach().clone() for name, p in source.backbone.named_parameters()}
    trainable = {name for name, p in source.backbone.named_parameters() if p.requires_grad}
    rows: list[Any] = []
    learn(source, callbacks=[lambda *row: rows.append(row)])
    assert [epoch for epoch, _ in rows] == [0, 1, 2, 3]
    assert rows[-1][1]["loss"] < rows[0][1]["loss"]
    moved = {
        name for name, p in source.backbone.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved and moved <= trainable
    assert all("lora" in name for name in moved) == lora
    assert not source.backbone.training


class Stopped(Exception):
    pass


class Interrupted(list[np.ndarray]):
    """Images of which the last one that may be read, in the third epoch, raises."""

    reads = 30

    def __getitem__(self, row: Any) -> Any:
        self.reads -= 1
        if self.reads == 0:
            raise Stopped
        return super().__getitem__(row)


def test_images_read_ahead_give_the_result_of_images_read_in_their_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head draws random numbers from the generator that the transform draws from."""

    class Noisy(PatchMeanHead):
        def forward(self, tokens: Any, *arguments: Any, **options: Any) -> dict[str, Tensor]:
            outputs = super().forward(tokens, *arguments, **options)
            return {name: torch.dropout(x, 0.5, self.training) for name, x in outputs.items()}

    threads: set[str] = set()

    def brightened(image: Tensor) -> Tensor:
        threads.add(threading.current_thread().name)
        return (image * (0.5 + 0.5 * torch.rand(()))).to(torch.uint8)

    def trained(transform: Any) -> Tensor:
        return learn(
            live(transform=transform), a_head(Noisy), epochs=3, recipe=MIXED, val_ids=IDS[6:]
        )

    ahead = {transform: trained(transform) for transform in (None, brightened)}
    assert threads == {threading.main_thread().name}
    assert not torch.equal(ahead[None], ahead[brightened])
    monkeypatch.setattr(
        "dinoneck.training.token_sources.in_threads", lambda read, items, **_: map(read, items)
    )
    assert all(torch.equal(result, trained(transform)) for transform, result in ahead.items())


def test_an_interrupted_run_leaves_no_thread_and_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    whole, before = learn(live(), out=tmp_path / "whole", recipe=MIXED), set(threading.enumerate())
    with pytest.raises(Stopped):
        learn(live(images=Interrupted(PIXELS)), out=tmp_path / "parts", recipe=MIXED)
    assert not [
        thread for thread in set(threading.enumerate()) - before if "dinoneck" in thread.name
    ]
    assert (tmp_path / "parts/state.pt").exists()
    assert torch.equal(learn(live(), out=tmp_path / "parts", recipe=MIXED), whole)


@pytest.mark.parametrize("form", ["array", "tensor", "picture", "file"])
def test_an_image_that_was_replaced_does_not_continue_a_run(tmp_path: Path, form: str) -> None:
    def images(pixels: list[np.ndarray]) -> list[Any]:
        if form == "array":
            return pixels
        if form == "tensor":
            return [torch.from_numpy(image).permute(2, 0, 1) for image in pixels]
        pictures = [Image.fromarray(image) for image in pixels]
        if form == "picture":
            return pictures
        for number, picture in enumerate(pictures):
            picture.save(tmp_path / f"{number}.png")
        return [tmp_path / f"{number}.png" for number in range(len(pictures))]

    first = learn(live(images=images(PIXELS)), out=tmp_path / "out")
    assert torch.equal(learn(live(images=images(PIXELS)), out=tmp_path / "out"), first)
    replaced = [*PIXELS[:5], 255 - PIXELS[5], *PIXELS[6:]]

    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        learn(live(images=images(replaced)), out=tmp_path / "out")


def test_the_backbones_learning_rate_cutmix_and_sam_change_the_result() -> None:
    plain, *others = (
        learn(live(), recipe=recipe, epochs=2)
        for recipe in (
            Recipe(),
            Recipe(backbone_lr=1e-2),
            Recipe(cutmix_alpha=1.0),
            Recipe(optimizer="sam"),
        )
    )
    assert not any(torch.equal(plain, other) for other in others)


@pytest.mark.parametrize("mixup", [None, 1.0])
def test_cutmix_pastes_maps_as_the_images(mixup: float | None) -> None:
    """A step is the step by hand: maps and weights of cells are pasted, other targets count by the area."""
    source, tasks = (
        LiveTokens(load_backbone("dinoneck_tiny"), PIXELS),
        [Task("map", kind="dense"), Task("level")],
    )
    torch.manual_seed(0)
    heads = [FPNHead(64, tasks, 1, fpn_dim=8) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    given = {"map": torch.rand(IMAGES, 1, 2, 3), "level": torch.rand(IMAGES, 1)}
    weight = torch.rand(IMAGES, 2, 3)
    recipe = Recipe(
        weight_decay=0.0,
        warmup=0.0,
        clip_norm=None,
        standardise_tokens=False,
        cutmix_alpha=1.0,
        mixup_alpha=mixup,
        mixup_off_last=0.0,
        epochs=1,
        batch_size=IMAGES,
        lr=0.01,
    )
    fit(heads[0], source, given, weights={"map": weight}, target_ids=source.ids, recipe=recipe)
    order = np.random.default_rng([42, 0]).permutation(IMAGES)
    seed_all(42, 0, 0)
    images, level = source.images([source.ids[i] for i in order]), given["level"][order]
    mixed, wanted = cutmix(images, {"level": level}, 1.0, patch_size=source.backbone.patch_size)
    assert not torch.equal(wanted["level"], level)
    cells = (mixed != images).any(dim=1)[:, 8::16, 8::16].any(dim=0)  # the patches that are pasted
    maps, weight = (
        torch.where(cells, x[order].roll(1, 0), x[order]) for x in (given["map"], weight)
    )
    tokens, kept = source.backbone(mixed), 1.0
    if mixup is not None:
        tokens, blended = manifold_mixup(tokens, {**wanted, "eye": torch.eye(IMAGES)}, mixup)
        wanted, kept = blended, blended["eye"][0, 0].item()
    outputs, loss = heads[1](tokens), 0.0
    for share, truth, counts in (
        (kept, maps, weight),
        (1 - kept, maps.roll(1, 0), weight.roll(1, 0)),
    ):
        loss = loss + share * ((outputs["map"] - truth) ** 2 * counts[:, None]).sum() / counts.sum()
    optimizer = torch.optim.AdamW(heads[1].parameters(), lr=0.01, weight_decay=0.0)
    # of MSE the gradient is the same
    (loss + ((outputs["level"] - wanted["level"]) ** 2).mean()).backward()
    optimizer.step()
    for one, two in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_a_frozen_backbone_gives_what_memory_gives() -> None:
    backbone, heads = load_backbone("dinoneck_tiny"), [a_head(), a_head()]
    learn(LiveTokens(backbone, PIXELS, IDS), heads[0])
    learn(MemoryTokens.extract(backbone, PIXELS, IDS, dtype=torch.float32, batch_size=3), heads[1])
    for one, two in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("lora", [True, False])
def test_a_loaded_head_fits_the_backbone_that_was_trained_along(lora: bool, tmp_path: Path) -> None:
    source = live(lora)
    save_head(tmp_path / "h.safetensors", a_head(), backbone=source.backbone)
    loaded: Any = load_head(tmp_path / "h.safetensors")
    learn(source, loaded)
    source.backbone.freeze()
    assert loaded.predict(source.batch(IDS))["level"].shape == (IMAGES, 1)
    assert loaded.trained_on.layers == source.backbone.layers
    with pytest.raises(BackboneError, match="check_backbone=False"):
        loaded(load_backbone("dinoneck_tiny")(source.images(IDS)))


JITTER = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5)])


def stop(epoch: int, row: dict[str, float]) -> None:
    raise Stopped


def noisy(image: Tensor) -> Tensor:
    """Draw from all three generators."""
    level = random.random() + np.random.rand() + torch.rand(()).item()
    return (image * (level / 3)).to(torch.uint8)


@pytest.mark.parametrize("transform", [JITTER, noisy])
def test_training_transforms_images_and_resumes_bit_for_bit(
    transform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transforms draw from the generators of Python, NumPy and torch; the caller's are left alone."""
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    frozen = load_backbone("dinoneck_tiny")
    live, plain = (LiveTokens(frozen, PIXELS, IDS, transform=own) for own in (transform, None))
    before: Any = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    whole = learn(live, out=tmp_path / "whole")
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert not torch.equal(whole, learn(plain))
    assert torch.equal(live.batch(IDS).sequence[0], plain.batch(IDS).sequence[0])
    with pytest.raises(Stopped):
        learn(live, out=tmp_path / "parts", callbacks=[stop])
    assert torch.equal(learn(live, out=tmp_path / "parts"), whole)


RUNS: dict[str, dict[str, Any]] = {
    "lora": {"backbone": {"lora": 2}, "optim": {"cutmix_alpha": 1.0}},
    "blocks": {"backbone": {"unfreeze_last": 1}, "optim": {"layer_decay": 0.5}},
    "plan": {
        "backbone": {"lora": 2},
        "optim": {"freeze": ["0=all", "1=last:2"], "backbone_lr": 1e-3},
    },
}


TABLE = Pasture(seed=0, size=(32, 32)).table(range(8))


def live_run(**changes: Any) -> Any:
    return a_run(
        None,
        ["GDM_g"],
        **{**changes, "backbone": {"name": "dinoneck_tiny", **changes.get("backbone", {})}},
    )


@pytest.mark.parametrize("name", ["lora", "blocks", "plan"])
def test_files_hold_what_was_trained_along(name: str, tmp_path: Path) -> None:
    """The score of a fold's file is that of the report. An interrupted run gives the same files."""
    config = live_run(**RUNS[name])
    report = train(config, tmp_path / "run", table=TABLE)
    rows = rows_of(tmp_path / "run" / "out_of_fold.csv")
    for number in range(2):
        file = HeadCheckpoint.load(tmp_path / "run" / "heads" / f"fold-{number}.safetensors")
        assert (bool(file.adapter_state), file.backbone_weights is not None) == (
            name != "blocks",
            name != "lora",
        )
        valid = [row["image"] for row in rows if row["fold"] == str(number)]
        found = evaluate(file.source, None, TABLE.loc[valid])["scores"]["GDM_g"]["head"]["r2"][
            "pooled"
        ]
        assert found == pytest.approx(
            report["scores"]["GDM_g"]["head"]["r2"]["folds"][number], abs=1e-6
        )
    assert evaluate(tmp_path / "run", None, TABLE)["images"] == 8
    epochs = iter(range(4))

    def stop(epoch: int, row: object) -> None:
        if next(epochs) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path / "again", table=TABLE, callbacks=[stop])
    train(config, tmp_path / "again", table=TABLE)
    for file_name in (
        "head.safetensors",
        "heads/fold-0.safetensors",
        "heads/fold-1.safetensors",
        "out_of_fold.csv",
    ):
        assert (tmp_path / "run" / file_name).read_bytes() == (
            tmp_path / "again" / file_name
        ).read_bytes()


def test_the_head_on_all_images_is_trained_to_the_last_epoch(tmp_path: Path) -> None:
    """No image is held out to judge its epochs by; those of the folds are judged."""
    rows: list[str] = []
    optim = {"patience": 1, "epochs": 3, "lr": 1e-12, "weight_decay": 0.0, "backbone_lr": 1e-12}
    config = live_run(
        backbone={"unfreeze_last": 1}, optim=optim, losses={"weighting": "uncertainty"}
    )
    report = train(
        config, tmp_path, table=TABLE, callbacks=[lambda epoch, row: rows.append(" ".join(row))]
    )
    assert ["val_loss" in row for row in rows[-3:]] == [False] * 3
    assert all("val_loss" in row for row in rows[:-3])
    assert [*report["loss_weights"]] == ["fold-0", "fold-1", "fold-all"]


def test_a_plan_trains_the_blocks_of_its_epoch_at_decayed_rates() -> None:
    """Block 4 learns at the rate of block 5 times the decay; before the plan's epoch nothing of the backbone moves."""
    backbone = load_backbone("dinoneck_tiny")
    live, head = (
        LiveTokens(backbone, list(TABLE["images"]), list(TABLE.index)),
        LinearHead(64, [Task("GDM_g")]),
    )
    states = []

    def keep(epoch: int, row: object) -> None:
        states.append([flat(block) for block in backbone.adapter.blocks])

    recipe = Recipe(
        epochs=2, batch_size=8, freeze=("1=last:2",), layer_decay=0.1, warmup=0.0, weight_decay=0.0
    )
    keep(-1, None)
    fit(head, live, TABLE[["GDM_g"]], recipe=recipe, clip_norm=None, callbacks=[keep])
    moved = [
        [float((x - y).abs().max()) for x, y in zip(*pair, strict=True)]
        for pair in pairwise(states)
    ]
    assert moved[0] == [0.0] * 6
    assert moved[1][:4] == [0.0] * 4
    # of Adam, a first step is the rate
    assert moved[1][4] == pytest.approx(0.1 * moved[1][5], rel=0.05)


def test_a_head_starts_from_an_earlier_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow run stays at the earlier weights; tensors that fit nothing are listed, or refused where none fits."""
    train(live_run(folds={"only": 0}), tmp_path / "first", table=TABLE)
    first = str(tmp_path / "first" / "head.safetensors")
    slow = {"lr": 1e-12, "weight_decay": 0.0}
    with caplog.at_level(logging.INFO):
        train(live_run(init=first, optim=slow, folds={"only": 0}), tmp_path / "second", table=TABLE)
    count = len(load_head(first).state_dict())
    [line] = [message for message in caplog.messages if "are new;" in message]
    assert line == (
        f"init {first}: {count} of {count} tensors are taken, 0 are new; 0 of the file are left out"
    )
    [taken] = [message for message in caplog.messages if "taken are" in message]
    assert "mlps.0.out.weight" in taken
    old, new = (
        load_head(path).state_dict() for path in (first, tmp_path / "second" / "head.safetensors")
    )
    assert old.keys() == new.keys()
    assert all(torch.allclose(x, new[name], atol=1e-6) for name, x in old.items()), (
        "the token scale too"
    )
    caplog.clear()
    table = TABLE.assign(other=np.arange(8.0))
    own = {"tasks": {"GDM_g": {}, "other": {}}, "folds": {"only": 0}}
    with caplog.at_level(logging.INFO):
        train(
            live_run(init=first, **own),
            tmp_path / "third",
            table=table[["images", "GDM_g", "other"]],
        )
    [new] = [message for message in caplog.messages if "new are" in message]
    assert "mlps.1.out.weight" in new
    other = table[["images", "other", "GDM_g"]]
    with pytest.raises(ConfigError, match="'GDM_g' the same place"):
        train(
            live_run(init=first, **own | {"tasks": {"other": {}, "GDM_g": {}}}),
            tmp_path / "moved",
            table=other,
        )
    save_head(
        tmp_path / "linear.safetensors",
        LinearHead(64, [Task("x")]),
        backbone=load_backbone("dinoneck_tiny"),
    )
    with pytest.raises(ConfigError, match="readouts"):
        train(live_run(init=str(tmp_path / "linear.safetensors")), tmp_path / "fourth", table=TABLE)
