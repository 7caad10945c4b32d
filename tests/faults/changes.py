"""Weights changed between two calls, in every way that users have.

Right is a refusal, or the result that a fresh process gives with the weights as they are when
they are used: for a backbone that a head was trained on the refusal, for the head itself the
predictions of its new weights (nothing stale is kept).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tests import kit
from tests.faults.judge import HARMLESS, NOTICED
from tests.faults.pairs.options import Differs, check_same, sampled, verdict
from tests.unit import tuned_backbones
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    FeatureStore,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    SimplePyramid,
    load_head,
    save_head,
)
from dinoneck.detection import DetectionHead, Detector
from dinoneck.training import EMA, LiveTokens, MemoryTokens, fit

TOLERANCE = 1e-5
HALF_TOLERANCE = 3e-2
IDS = ("a", "b", "c", "d")
TARGETS = {"mass": {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}}
Change = Callable[[nn.Module], object]


def _first_weight(module: nn.Module) -> nn.Parameter:
    """A matrix that every output depends on."""
    return next(value for value in module.parameters() if value.ndim == 2)


@torch.no_grad()
def add_in_place(module: nn.Module) -> None:
    _first_weight(module).add_(0.3)


def write_to_data(module: nn.Module) -> None:
    _first_weight(module).data.add_(0.3)


def replace_data(module: nn.Module) -> None:
    weight = _first_weight(module)
    weight.data = weight.data + 0.3


def write_through_numpy(module: nn.Module) -> None:
    _first_weight(module).detach().numpy()[...] += 0.3


def load_state(module: nn.Module) -> None:
    module.load_state_dict({name: 1.2 * value for name, value in module.state_dict().items()})


def assign_state(module: nn.Module) -> None:
    state = {name: 1.2 * value for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def step_of_optimizer(module: nn.Module) -> None:
    weight = _first_weight(module)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.3).step()
    weight.grad = None


def replace_parameter(module: nn.Module) -> None:
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            if value.ndim == 2:
                setattr(part, name, nn.Parameter(value.detach() + 0.3, value.requires_grad))
                return


def take_average(module: nn.Module) -> None:
    """Take the weights of a moving average, as after a training."""
    weight = _first_weight(module)
    was_trainable = weight.requires_grad
    weight.requires_grad_(True)
    average = EMA(module, decay=0.5, warmup=False)
    trained = copy.deepcopy(module)
    add_in_place(trained)
    average.update(trained)
    average.copy_to(module)
    weight.requires_grad_(was_trainable)


def to_half_and_back(module: nn.Module) -> None:
    module.to(torch.bfloat16).to(torch.float32)


def to_half(module: nn.Module) -> None:
    module.to(torch.bfloat16)


def add_lora(module: nn.Module) -> None:
    tuned_backbones.train_lora(module)  # type: ignore[arg-type]


def merge_lora(module: nn.Module) -> None:
    tuned_backbones.merge_lora(module)  # type: ignore[arg-type]


def train_blocks(module: nn.Module) -> None:
    tuned_backbones.train_blocks(module)  # type: ignore[arg-type]


def train_and_freeze(module: nn.Module) -> None:
    tuned_backbones.train_blocks(module)  # type: ignore[arg-type]
    module.freeze()  # type: ignore[operator]


OF_ANY: dict[str, Change] = {
    "add_ in place": add_in_place,
    "a write to .data": write_to_data,
    "another tensor as .data": replace_data,
    "a write through NumPy": write_through_numpy,
    "load_state_dict": load_state,
    "load_state_dict with assign": assign_state,
    "a step of an optimizer": step_of_optimizer,
    "a parameter replaced": replace_parameter,
    "the average of EMA": take_average,
    "to bfloat16 and back": to_half_and_back,
    "to bfloat16": to_half,
}
OF_BACKBONE: dict[str, Change] = {
    **OF_ANY,
    "LoRA added and trained": add_lora,
    "LoRA merged": merge_lora,
    "blocks trained": train_blocks,
    "blocks trained and frozen": train_and_freeze,
}
HALVES = ("to bfloat16 and back", "to bfloat16")


class World:
    """Images, and a head that was trained on the tiny backbone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.paths = kit.write_images(self.images, [f"{name}.png" for name in IDS], 32, 48)
        self.batch = kit.backbone().preprocess(self.paths)

    def head(self) -> PatchMeanHead:
        return kit.randomised(PatchMeanHead(64, [kit.Task("mass")], hidden_dim=8)).eval()

    def saved(self, backbone: Backbone, head: nn.Module | None = None) -> Path:
        return kit.saved_head(
            self.folder / "head.safetensors", head or self.head(), backbone=backbone
        )

    def rows(self, predictor: Predictor) -> list[float]:
        return [row["mass"] for row in predictor(self.paths)]


def a_predictor(world: World, change: Change) -> tuple[Any, Any]:
    """After Predictor is made, before it is called: the backbone."""
    backbone = kit.backbone()
    predictor = Predictor(world.saved(backbone), backbone)
    right = world.rows(predictor)
    change(backbone)
    return world.rows(predictor), right


def a_predictor_of_a_file(world: World, change: Change) -> tuple[Any, Any]:
    """The backbone that a Predictor has rebuilt."""
    predictor = Predictor(world.saved(kit.backbone()))
    right = world.rows(predictor)
    change(predictor.backbone)
    return world.rows(predictor), right


def a_new_predictor(world: World, change: Change) -> tuple[Any, Any]:
    """After the head is saved, before Predictor is made: the backbone."""
    backbone = kit.backbone()
    file = world.saved(backbone)
    right = world.rows(Predictor(file, backbone))
    change(backbone)
    return world.rows(Predictor(file, backbone)), right


def tokens_of_a_head(world: World, change: Change) -> tuple[Any, Any]:
    """Before the backbone makes the tokens that a loaded head reads."""
    backbone = kit.backbone()
    head = load_head(world.saved(backbone))
    with torch.no_grad():
        right = head.predict(backbone(world.batch))["mass"]  # type: ignore[operator]
        change(backbone)
        return head.predict(backbone(world.batch))["mass"], right  # type: ignore[operator]


def one_store(world: World, change: Change) -> tuple[Any, Any]:
    """Between two extractions into one store."""
    backbone = kit.backbone()
    options: dict[str, Any] = {"views": "none", "image_size": (32, 48)}
    root = world.folder / f"store-{len([*world.folder.iterdir()])}"
    store = FeatureStore.create(root, backbone=backbone, **options)
    store.extract(world.paths[:2], root=world.images, workers=1)
    with torch.no_grad():
        right = kit.backbone()(world.batch).sequence[0]
    change(backbone)
    store.extract(world.paths, root=world.images, workers=1)
    return FeatureStore.open(root).batch([*IDS]).sequence[0].float(), right


def a_store_made_again(world: World, change: Change) -> tuple[Any, Any]:
    """Before a store is opened with ``create`` again."""
    backbone = kit.backbone()
    options: dict[str, Any] = {"views": "none", "image_size": (32, 48)}
    root = world.folder / f"store-{len([*world.folder.iterdir()])}"
    store = FeatureStore.create(root, backbone=backbone, **options)
    store.extract(world.paths[:2], root=world.images, workers=1)
    with torch.no_grad():
        right = kit.backbone()(world.batch).sequence[0]
    change(backbone)
    again = FeatureStore.create(root, backbone=backbone, **options)
    again.extract(world.paths, root=world.images, workers=1)
    return FeatureStore.open(root).batch([*IDS]).sequence[0].float(), right


def trained_on_earlier_tokens(world: World, change: Change) -> tuple[Any, Any]:
    """Between the extraction of tokens and the training and saving of a head."""
    backbone = kit.backbone()
    tokens = MemoryTokens([*IDS], _tokens(backbone, world.batch))
    change(backbone)
    head = world.head()
    fit(head, tokens, TARGETS, epochs=1, batch_size=2)
    right = head.eval().predict(tokens.batch([*IDS]))["mass"]
    file = world.saved(backbone, head)
    return world.rows(Predictor(file, backbone)), right


@torch.no_grad()
def _tokens(backbone: Backbone, images: Tensor) -> Any:
    return backbone(images)


def saved_with_an_earlier_base(world: World, change: Change) -> tuple[Any, Any]:
    """Between ``save_weights`` and the training of a head that is saved with these weights."""
    backbone = kit.backbone()
    backbone.save_weights(world.folder / "base.safetensors")
    change(backbone)
    backbone.freeze()
    tokens = MemoryTokens([*IDS], _tokens(backbone, world.batch))
    head = world.head()
    fit(head, tokens, TARGETS, epochs=1, batch_size=2)
    right = head.eval().predict(tokens.batch([*IDS]))["mass"]
    base = kit.backbone(checkpoint=world.folder / "base.safetensors")
    return world.rows(Predictor(world.saved(base, head), base)), right


def saved_after_the_training(world: World, change: Change) -> tuple[Any, Any]:
    """Between the training along with the backbone and ``save_head`` with its weights; the change counts."""
    backbone = kit.backbone().unfreeze_last(1)
    head = world.head()
    source = LiveTokens(backbone, world.paths, IDS)
    fit(head, source, TARGETS, epochs=1, batch_size=2)
    change(backbone)
    backbone.freeze()
    right = head.eval().predict(_tokens(backbone, world.batch))["mass"]
    file = world.folder / "head.safetensors"
    save_head(
        file,
        head,
        backbone=backbone,
        backbone_weights=backbone.state_dict(),
        preprocess=backbone.preprocess.changed(size=(32, 48)),
    )
    return world.rows(Predictor(file)), right


def a_detector(world: World, change: Change) -> tuple[Any, Any]:
    """After a prediction of a detector: its backbone."""
    detector = _detector(kit.backbone())
    right = _boxes(detector, world)
    change(detector.backbone)
    return _boxes(detector, world), right


def a_loaded_detector(world: World, change: Change) -> tuple[Any, Any]:
    """After ``Detector.load``, before its first prediction: its backbone."""
    _detector(kit.backbone()).save(world.folder / "detector.safetensors")
    detector = Detector.load(world.folder / "detector.safetensors")
    right = _boxes(_detector(kit.backbone()), world)
    change(detector.backbone)
    return _boxes(detector, world), right


def a_shared_backbone(world: World, change: Change) -> tuple[Any, Any]:
    """The backbone of the caller, after a detector was loaded on it."""
    _detector(kit.backbone()).save(world.folder / "detector.safetensors")
    shared = kit.backbone()
    detector = Detector.load(world.folder / "detector.safetensors", backbone=shared)
    right = _boxes(_detector(kit.backbone()), world)
    change(shared)
    return _boxes(detector, world), right


def a_saved_detector(world: World, change: Change) -> tuple[Any, Any]:
    """Before a detector is saved: its backbone; the change counts as its training."""
    detector = _detector(kit.backbone())
    change(detector.backbone)
    detector.save(world.folder / "detector.safetensors")
    right = _boxes(detector, world)
    return _boxes(Detector.load(world.folder / "detector.safetensors"), world), right


def _detector(backbone: Backbone) -> Detector:
    torch.manual_seed(0)
    head = DetectionHead("retinanet", ("a", "b"), SimplePyramid(64, 16, scales=(1.0,)))
    tuned_backbones.change(head.parameters())
    return Detector(head, backbone, (32, 48)).eval()


def _boxes(detector: Detector, world: World) -> Any:
    rows = detector.predict(world.paths[:2], min_score=0.06)
    if not len(rows[0]["boxes"]):
        raise AssertionError("there are no boxes to compare")
    return [row["scores"].tolist() for row in rows]


def a_checkpoint(world: World, change: Change) -> tuple[Any, Any]:
    """After ``from_module``, before ``save``: the head, of which the checkpoint holds a copy."""
    backbone, head = kit.backbone(), world.head()
    recipe = backbone.preprocess.changed(size=(32, 48))
    checkpoint = HeadCheckpoint.from_module(head, backbone=backbone, preprocess=recipe)
    right = world.rows(Predictor(head, backbone, preprocess=recipe))
    change(head)
    checkpoint.save(world.folder / "head.safetensors")
    return world.rows(Predictor(world.folder / "head.safetensors", backbone)), right


def the_head_of_a_predictor(world: World, change: Change) -> tuple[Any, Any]:
    """After a prediction: a head module, whose new weights count."""
    backbone, head = kit.backbone(), world.head()
    recipe = backbone.preprocess.changed(size=(32, 48))
    predictor = Predictor(head, backbone, preprocess=recipe)
    world.rows(predictor)
    change(head)
    right = head.predict(_tokens(backbone, world.batch))["mass"]
    return world.rows(predictor), right


def a_member_of_an_ensemble(world: World, change: Change) -> tuple[Any, Any]:
    """After a prediction: a member of an ensemble, whose new weights count."""
    backbone = kit.backbone()
    members = [world.head(), kit.head(kit.Task("mass"))]
    ensemble = HeadEnsemble.from_heads(members).eval()
    recipe = backbone.preprocess.changed(size=(32, 48))
    predictor = Predictor(ensemble, backbone, preprocess=recipe)
    tokens = _tokens(backbone, world.batch)
    ensemble.predict(tokens)
    world.rows(predictor)
    change(ensemble)
    with torch.no_grad():
        values = [member.predict(tokens)["mass"].float() for member in ensemble.heads]
    return world.rows(predictor), torch.stack(values).mean(0)


MODES: dict[str, Callable[[World, Change], tuple[Any, Any]]] = {
    "the backbone of a Predictor, after it is made": a_predictor,
    "the backbone that a Predictor has rebuilt": a_predictor_of_a_file,
    "the backbone, before a Predictor is made": a_new_predictor,
    "the backbone, before it makes tokens for a loaded head": tokens_of_a_head,
    "the backbone, between two extractions into a store": one_store,
    "the backbone, before a store is created again": a_store_made_again,
    "the backbone, between tokens and the training of a head": trained_on_earlier_tokens,
    "the backbone, between save_weights and the head": saved_with_an_earlier_base,
    "the backbone, between a training along and save_head": saved_after_the_training,
    "the backbone of a detector, after a prediction": a_detector,
    "the backbone of a loaded detector": a_loaded_detector,
    "the backbone that a detector was loaded on": a_shared_backbone,
    "the backbone of a detector, before it is saved": a_saved_detector,
    "the head, between from_module and save": a_checkpoint,
    "the head of a Predictor": the_head_of_a_predictor,
    "an ensemble of a Predictor": a_member_of_an_ensemble,
}
"""What is changed when -> its function."""
OF_HEADS = (
    "the head, between from_module and save",
    "the head of a Predictor",
    "an ensemble of a Predictor",
)


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all ways to change the weights, or a share of them, at one place."""
    world = World(folder)
    changes = OF_ANY if mode in OF_HEADS else OF_BACKBONE
    other_weights = _OtherWeights()
    logging.getLogger("dinoneck").addHandler(other_weights)
    try:
        for name in sampled([*changes], share):
            other_weights.warnings.clear()
            tolerance = HALF_TOLERANCE if name in HALVES or "store" in mode else TOLERANCE

            def run(name: str = name, tolerance: float = tolerance) -> None:
                found, right = MODES[mode](world, changes[name])
                try:
                    check_same(_flat(found), _flat(right), "results", tolerance)
                except Differs:
                    if not other_weights.warnings:
                        raise

            result = verdict(name, run)
            yield NOTICED if result == HARMLESS and other_weights.warnings else result
    finally:
        logging.getLogger("dinoneck").removeHandler(other_weights)


_NAMED_WEIGHTS = ("names weights that it was not trained on", "the weights are not compared")


class _OtherWeights(logging.Handler):
    """Keeps the warnings that a head was trained on other weights, or that they are not compared."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if any(sentence in message for sentence in _NAMED_WEIGHTS):
            self.warnings.append(message)


def _flat(value: Any) -> list[float]:
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = [number for row in value for number in row]
    return torch.as_tensor(value).detach().float().flatten().tolist()
