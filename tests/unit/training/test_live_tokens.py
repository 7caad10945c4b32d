"""Training with the backbone in the loop: LoRA weights learn, frozen ones do not, and the file carries them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import (
    Backbone,
    BackboneError,
    FPNHead,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.training import (
    LiveTokens,
    MemoryTokens,
    Recipe,
    cutmix,
    engine,
    fit,
    manifold_mixup,
    sources,
)
from dinoneck.training.engine import seed_all

IMAGES = 8


def pixels() -> list[np.ndarray]:
    random = np.random.RandomState(0)
    level = random.randint(40, 200, (IMAGES, 1, 1, 1))
    return list((level + random.randint(-30, 30, (IMAGES, 32, 48, 3))).astype(np.uint8))


def problem(lora: bool = True, **of_source: object) -> tuple[PatchMeanHead, LiveTokens, np.ndarray]:
    backbone = load_backbone("dinoneck_tiny")
    backbone = backbone.add_lora(2, targets="all") if lora else backbone.unfreeze_last(1)
    y = np.array([image.mean() / 50 for image in pixels()])
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("level", transform=TargetTransform().fit(y))], hidden_dim=8)
    return head, LiveTokens(backbone, pixels(), [f"p{i}" for i in range(IMAGES)]), y


def weights_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in backbone.named_parameters()}


def learn(head: PatchMeanHead, source: LiveTokens, y: np.ndarray, **arguments: object) -> list[dict[str, float]]:
    given = {"target_ids": source.ids, "epochs": 4, "batch_size": 4, "lr": 3e-3, "recipe": Recipe(backbone_lr=3e-3)}
    return fit(head, source, targets={"level": y}, **{**given, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [True, False])
def test_the_trainable_part_moves_and_the_frozen_part_does_not(lora: bool) -> None:
    head, source, y = problem(lora)
    before = weights_of(source.backbone)
    trainable = {name for name, p in source.backbone.named_parameters() if p.requires_grad}
    history = learn(head, source, y)
    assert history[-1]["loss"] < history[0]["loss"]
    moved = {name for name, value in weights_of(source.backbone).items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= trainable
    assert all("lora" in name for name in moved) == lora
    assert not source.backbone.training


def test_saved_and_reloaded_it_predicts_the_same(tmp_path: Path) -> None:
    head, source, y = problem()
    learn(head, source, y)
    with torch.no_grad():
        expected = head.predict(source.batch(source.ids))["level"][:, 0]
    HeadCheckpoint.from_module(head, backbone=source.backbone, preprocess=source.preprocess).save(
        tmp_path / "h.safetensors"
    )
    answers = Predictor(tmp_path / "h.safetensors")(pixels())
    assert torch.allclose(torch.tensor([answer["level"] for answer in answers]).reshape(-1), expected, atol=1e-5)
    plain = load_backbone("dinoneck_tiny")
    without = head.predict(plain(source.preprocess(pixels())))["level"][:, 0]
    assert not torch.allclose(without, expected, atol=1e-3), "the LoRA weights are part of the answer"


class Stopped(Exception):
    pass


class Interrupted(list[np.ndarray]):
    """Images of which the last one that may be read raises."""

    reads = 0

    def __getitem__(self, row: Any) -> Any:
        self.reads -= 1
        if self.reads == 0:
            raise Stopped
        return super().__getitem__(row)


def interrupted(source: LiveTokens, reads: int) -> LiveTokens:
    images = Interrupted(pixels())
    images.reads = reads
    return LiveTokens(source.backbone, images, source.ids, transform=source.transform)


def brightened(image: torch.Tensor) -> torch.Tensor:
    return (image * (0.5 + 0.5 * torch.rand(()))).to(torch.uint8)


def test_images_read_ahead_give_the_result_of_images_read_in_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head draws random numbers from the generator that the transform draws from."""

    class Noisy(PatchMeanHead):
        def forward(self, tokens: Any, *arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
            outputs = super().forward(tokens, *arguments, **options)
            return {name: torch.dropout(x, 0.5, self.training) for name, x in outputs.items()}

    def weights(transform: Any, epochs: int = 3) -> torch.Tensor:
        head, source, y = problem()
        torch.manual_seed(0)
        noisy = Noisy(64, head.tasks, hidden_dim=8)
        live = LiveTokens(source.backbone, pixels(), source.ids, transform=transform)
        recipe = Recipe(backbone_lr=3e-3, cutmix_alpha=1.0, mixup_alpha=1.0)
        learn(noisy, live, y, epochs=epochs, recipe=recipe, val_ids=live.ids[6:])
        return torch.cat([parameter.detach().flatten() for parameter in noisy.parameters()])

    threads: set[str] = set()

    def slowly(image: torch.Tensor) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        return brightened(image)

    ahead = {transform: weights(transform) for transform in (None, slowly)}
    assert threads == {threading.main_thread().name}
    assert not torch.equal(ahead[None], ahead[slowly])
    monkeypatch.setattr(sources, "in_threads", lambda function, items, workers=None: (function(item) for item in items))
    assert all(torch.equal(result, weights(transform)) for transform, result in ahead.items())


def test_a_failure_to_read_ahead_is_raised_and_leaves_no_thread() -> None:
    head, source, y = problem()
    before = set(threading.enumerate())
    with pytest.raises(Stopped):
        learn(head, interrupted(source, 20), y)
    assert not [thread for thread in set(threading.enumerate()) - before if "dinoneck" in thread.name]


def test_a_run_taken_up_again_covers_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    head, source, y = problem()
    recipe = Recipe(backbone_lr=3e-3, cutmix_alpha=1.0, mixup_alpha=1.0)
    learn(head, source, y, out=tmp_path / "whole", recipe=recipe)
    other, again, _ = problem()
    with pytest.raises(Stopped):
        learn(other, interrupted(again, 30), y, out=tmp_path / "parts", recipe=recipe)  # in the third epoch
    fresh, source_again, _ = problem()
    learn(fresh, source_again, y, out=tmp_path / "parts", recipe=recipe)
    assert (tmp_path / "parts/state.pt").exists()
    for (name, one), two in zip(
        weights_of(source.backbone).items(), weights_of(source_again.backbone).values(), strict=True
    ):
        assert torch.equal(one, two), name
    for one, two in zip(head.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_backbones_learning_rate_and_cutmix_change_the_result() -> None:
    found = []
    for recipe in (Recipe(), Recipe(backbone_lr=1e-2), Recipe(cutmix_alpha=1.0), Recipe(optimizer="sam")):
        head, source, y = problem()
        learn(head, source, y, recipe=recipe, epochs=2)
        found.append(torch.cat([v.flatten() for v in weights_of(source.backbone).values()]))
    for other in found[1:]:
        assert not torch.equal(found[0], other)


@pytest.mark.parametrize("mixup", [None, 1.0])
def test_cutmix_pastes_maps_as_the_images(mixup: float | None) -> None:
    """A step is the step by hand: maps and weights of cells are pasted, other targets count by the area."""
    live, tasks = LiveTokens(load_backbone("dinoneck_tiny"), pixels()), [Task("map", kind="dense"), Task("level")]
    torch.manual_seed(0)
    heads = [FPNHead(64, tasks, 1, fpn_dim=8) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    given = {"map": torch.rand(IMAGES, 1, 2, 3), "level": torch.rand(IMAGES, 1)}
    weight = torch.rand(IMAGES, 2, 3)
    recipe = Recipe(
        weight_decay=0.0, warmup=0.0, clip_norm=None, standardise_tokens=False, cutmix_alpha=1.0, mixup_alpha=mixup,
        mixup_off_last=0.0, epochs=1, batch_size=IMAGES, lr=0.01,
    )  # fmt: skip
    fit(heads[0], live, given, weights={"map": weight}, target_ids=live.ids, recipe=recipe)
    order = np.random.default_rng([42, 0]).permutation(IMAGES)
    seed_all(42, 0, 0)
    images, level = live.images([live.ids[i] for i in order]), given["level"][order]
    mixed, wanted = cutmix(images, {"level": level}, 1.0, patch_size=live.backbone.patch_size)
    assert not torch.equal(wanted["level"], level)
    cells = (mixed != images).any(dim=1)[:, 8::16, 8::16].any(dim=0)  # the patches that are pasted
    maps, weight = (torch.where(cells, x[order].roll(1, 0), x[order]) for x in (given["map"], weight))
    tokens, kept = live.backbone(mixed), 1.0
    if mixup is not None:
        tokens, blended = manifold_mixup(tokens, {**wanted, "eye": torch.eye(IMAGES)}, mixup)
        wanted, kept = blended, blended["eye"][0, 0].item()
    outputs, loss = heads[1](tokens), 0.0
    for share, truth, counts in ((kept, maps, weight), (1 - kept, maps.roll(1, 0), weight.roll(1, 0))):
        loss = loss + share * ((outputs["map"] - truth) ** 2 * counts[:, None]).sum() / counts.sum()
    optimizer = torch.optim.AdamW(heads[1].parameters(), lr=0.01, weight_decay=0.0)
    (loss + ((outputs["level"] - wanted["level"]) ** 2).mean()).backward()  # of MSE the gradient is the same
    optimizer.step()
    for one, two in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_a_frozen_backbone_gives_what_memory_gives() -> None:
    head, source, y = problem()
    backbone = load_backbone("dinoneck_tiny")
    live = LiveTokens(backbone, pixels(), source.ids)
    kept = MemoryTokens.extract(backbone, pixels(), source.ids, dtype=torch.float32)
    twin = PatchMeanHead(64, head.tasks, hidden_dim=8)
    twin.load_state_dict(head.state_dict())
    learn(head, live, y)
    learn(twin, kept, y)  # type: ignore[arg-type]
    for one, two in zip(head.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("lora", [True, False])
def test_a_loaded_head_fits_the_backbone_that_was_trained_along(lora: bool, tmp_path: Path) -> None:
    head, source, y = problem(lora)
    backbone = source.backbone
    save_head(tmp_path / "h.safetensors", head, backbone=backbone)
    loaded = load_head(tmp_path / "h.safetensors")
    assert isinstance(loaded, PatchMeanHead)
    learn(loaded, source, y)
    backbone.freeze()
    own, layers = source.batch(source.ids), loaded.trained_on.layers  # type: ignore[union-attr]
    assert loaded.predict(own)["level"].shape == (IMAGES, 1)
    assert layers == backbone.layers
    with pytest.raises(BackboneError, match="check_backbone=False"):
        loaded(load_backbone("dinoneck_tiny")(source.images(source.ids)))
