"""Cases that hypothesis draws: heads, ensembles, backbones, preparations, views, tiles and images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from tests import kit
from tests.unit.inference.reference import Member, Setting

from dinoneck import (
    Backbone,
    CLSGatingHead,
    Composition,
    DenseHead,
    FeatureStore,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_backbone,
)

WIDTH = 64  # channels of the built-in backbone
BLOCKS = 6  # of it
ORIENTATION = 0x0112  # the EXIF tag
UNTURNED = {  # orientation -> what makes the stored pixels of the upright ones
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True)
class DrawnMember:
    """A head by its recipe and seed, or members of an ensemble."""

    recipe: str = ""
    seed: int = 0
    layers: tuple[int, ...] = ()
    members: tuple[DrawnMember, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class DrawnHeads:
    """What a key stands for.

    Attributes:
        members: the heads of a list, or the one head.
        is_weighted: whether the weights of the list are passed.
        layers: of the backbone that the heads are given.
        backbone_seed: of its weights.
        norm: whether it applies its final norm.
        size: (height, width) of prepared images, or None.
        resize: how they come to it.
        pad_to: where padding goes, or None.
        views: that are averaged.
    """

    members: tuple[DrawnMember, ...]
    is_weighted: bool
    layers: tuple[int, ...]
    backbone_seed: int
    norm: bool
    size: tuple[int, int] | None
    resize: str
    pad_to: str | None
    views: str


@dataclass(frozen=True)
class DrawnImage:
    """An image of random pixels, and how it is given: its EXIF orientation counts for PIL images and files."""

    size: tuple[int, int]
    form: str
    orientation: int
    seed: int


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        heads: one per key.
        is_keyed: whether the heads are given as a mapping.
        are_files: whether heads come from files, each with a backbone, preparation and views of
            its own.
        images: of one call.
        tile: (height, width), or None.
        overlap: of tiles.
        batch_size: of a pass.
        maps: None, "patch" or "image".
        are_probabilities: whether maps of classes in pixels are probabilities.
        is_stored: whether predictions are made from a store of the images' tokens.
    """

    heads: tuple[DrawnHeads, ...]
    is_keyed: bool
    are_files: bool
    images: tuple[DrawnImage, ...]
    tile: tuple[int, int] | None
    overlap: int | float
    batch_size: int
    maps: str | None
    are_probabilities: bool
    is_stored: bool


# Heads
# -----

PARTS = ("leaf", "stem", "root")
PLANT = Composition(PARTS, {"above": PARTS[:2]}, "plant", total="total", ratio="ratio")
FRUIT = Composition(("ripe", "green"), {"fruit (g)": ("ripe", "green")}, "fruit")
COVER_LABELS = ("soil", "crop", "weed")


def task(name: str, seed: int) -> Task:
    """A task, with the transform that one fold has fitted."""
    scale = TargetTransform(mean=0.3 + 0.1 * seed, std=1.5 + 0.2 * seed)
    logarithm = TargetTransform(log1p=True, mean=1.0 + 0.1 * seed, std=0.3)
    tasks = {
        # regressions about half of whose cells are below the minimum
        "mass": Task("mass", unit="g", minimum=0.0, transform=logarithm),
        "height": Task("height", minimum=0.2, maximum=2.0, transform=scale),
        "ripe": Task("ripe", unit="g", minimum=0.0, transform=scale),
        "green": Task("green", unit="g", minimum=0.0, transform=scale),
        "total": Task("total", unit="g", minimum=0.0, activation="softplus", transform=scale),
        "ratio": Task("ratio", dim=3, kind="ratio", labels=PARTS),
        "soil": Task("soil", dim=2, kind="classification", labels=("wet", "dry")),
        "cover": Task("cover", dim=3, kind="dense", labels=COVER_LABELS, transform=scale),
        "depth": Task("depth", kind="dense", minimum=0.0, maximum=1.0, transform=scale),
        "weed": Task("weed", from_map="cover", minimum=0.4, transform=scale),
        "segments": Task("segments", dim=3, kind="segmentation"),
        "count": Task("count", kind="density", minimum=0.5, transform=scale),
        "crowd": Task("crowd", kind="density", aggregate="mean", activation="sigmoid"),
    }
    return tasks[name]


def tasks_of(names: str, seed: int) -> list[Task]:
    return [task(name, seed) for name in names.split()]


NUM_LAYERS = {"linear": 1, "fine": 1, "fpn": 2, "mask": 2}
"""Layers of the tokens that a head takes; the others take any number and read the last."""
MIXED = ("patch_mean", "composed", "dense", "gate", "resized_gate", "linear", "fine", "mask")
"""Recipes that agree about the tasks that they share, and may be members of one ensemble."""
RECIPES = (*MIXED, "composed_dense", "fpn")


@cache
def build_head(recipe: str, seed: int) -> Any:
    """The head of a recipe with the weights of a seed."""
    build = {
        "patch_mean": lambda: PatchMeanHead(
            WIDTH, tasks_of("mass height soil", seed), hidden_dim=8
        ),
        "composed": lambda: PatchMeanHead(
            WIDTH,
            tasks_of("total ratio ripe green", seed),
            hidden_dim=8,
            compositions=[PLANT, FRUIT],
        ),
        "dense": lambda: DenseHead(
            WIDTH, tasks_of("cover depth segments count crowd weed", seed), hidden_dim=8, depth=1
        ),
        "gate": lambda: CLSGatingHead(
            WIDTH, tasks_of("height total", seed), mode="query", hidden_dim=8
        ),
        "resized_gate": lambda: CLSGatingHead(
            WIDTH, tasks_of("soil mass", seed), mode="resized", num_patches=(2, 3), hidden_dim=8
        ),
        "linear": lambda: LinearHead(WIDTH, tasks_of("soil height", seed)),
        "fine": lambda: LinearHead(
            WIDTH, tasks_of("cover segments weed", seed), pool=None, upsample=2
        ),
        "mask": lambda: MaskHead(
            WIDTH, tasks_of("segments", seed), num_layers=2, num_queries=4, num_blocks=1, dim=16
        ),
        "composed_dense": lambda: DenseHead(
            WIDTH,
            [replace(task("total", seed), kind="density"), task("ratio", seed)],
            hidden_dim=8,
            depth=0,
            compositions=[PLANT],
        ),
        "fpn": lambda: FPNHead(
            WIDTH, tasks_of("mass count cover", seed), num_layers=2, fpn_dim=8, num_levels=2
        ),
    }[recipe]
    head = kit.randomised(build(), seed=seed).eval()
    if recipe == "mask":  # masks with edges: their shares in between are not those of the cells
        with torch.no_grad():
            head.masks[-1].weight.mul_(20.0)
    return head


@st.composite
def members(draw: Any, num_layers: int) -> tuple[DrawnMember, ...]:
    """One head, a list of folds, or one ensemble of several heads, for tokens of so many layers."""
    form = draw(st.sampled_from(["head", "folds", "ensemble", "ensemble"]))
    if form == "ensemble":
        return (draw(ensembles(is_nested=draw(st.booleans()))),)
    fitting = [name for name in RECIPES if NUM_LAYERS.get(name, num_layers) == num_layers]
    recipe = draw(st.sampled_from(fitting))
    if form == "head":
        return (DrawnMember(recipe, draw(st.integers(0, 3))),)
    count = draw(st.integers(2, 3))
    weights = draw(st.permutations([2.0, 0.5, 0.0]))[:count]
    return tuple(DrawnMember(recipe, seed, weight=weights[seed]) for seed in range(count))


@st.composite
def ensembles(draw: Any, is_nested: bool, first_seed: int = 0) -> DrawnMember:
    """Heads of several recipes, each with the blocks that it reads; the first may be an ensemble itself."""
    found = []
    if is_nested:
        found.append(draw(ensembles(is_nested=False, first_seed=10)))
    recipes = draw(st.lists(st.sampled_from(MIXED), min_size=1, max_size=3))
    if is_nested and set(recipes) == {"mask"}:
        recipes[0] = "dense"  # an ensemble in an ensemble hides masks, see the test of that
    for number, recipe in enumerate(recipes):
        num_layers = NUM_LAYERS.get(recipe, draw(st.integers(1, 2)))
        blocks = draw(layer_lists(num_layers))
        found.append(DrawnMember(recipe, first_seed + number, blocks))
    weights = [draw(st.sampled_from([1.0, 3.0])) for _ in found]
    weighted = [
        replace(member, weight=weight) for member, weight in zip(found, weights, strict=True)
    ]
    return DrawnMember(members=tuple(weighted))


@st.composite
def layer_lists(draw: Any, count: int) -> tuple[int, ...]:
    """Different blocks of the backbone, in any order."""
    return tuple(draw(st.permutations(range(BLOCKS)))[:count])


def build(member: DrawnMember) -> Any:
    """The head, or the ensemble."""
    if not member.members:
        return build_head(member.recipe, member.seed)
    return HeadEnsemble.from_heads(
        [build(other) for other in member.members],
        weights=[other.weight for other in member.members],
        layers=[blocks_of(other) for other in member.members],
    )


def blocks_of(member: DrawnMember) -> tuple[int, ...]:
    """The blocks that a member is given: of a nested ensemble those of its members."""
    if not member.members:
        return member.layers
    return tuple(sorted({block for other in member.members for block in other.layers}))


def described(member: DrawnMember, given: tuple[int, ...]) -> Member:
    """The same for the reference; ``given`` are the blocks of a head that is given the tokens as they come."""
    if member.members:
        parts = tuple(described(other, given) for other in member.members)
        return Member(members=parts, weight=member.weight)
    head = build_head(member.recipe, member.seed)
    return Member(head, member.layers or given, weight=member.weight)


# Cases
# -----


@st.composite
def preparations(draw: Any) -> tuple[Any, str, Any]:
    """Size, resize, and pad_to."""
    size = draw(st.sampled_from([None, (32, 48), (48, 32), (40, 56)]))
    choices = (
        ["pad", "pad", "crop", "stretch"]
        if size is None
        else ["pad", "pad", "crop", "stretch", "keep"]
    )
    resize = draw(st.sampled_from(choices))
    pad_to = draw(st.sampled_from(["corner", "center"])) if resize == "pad" else None
    return size, resize, pad_to


@st.composite
def drawn_heads(draw: Any, is_tiled: bool) -> DrawnHeads:
    """The heads of a key, with the backbone, preparation and views of their file."""
    num_layers = draw(st.integers(1, 2))
    size, resize, pad_to = draw(preparations())
    if is_tiled:
        size = draw(st.sampled_from([None, (32, 48)]))
        resize = "keep" if resize == "keep" and size is not None else resize.replace("keep", "crop")
    return DrawnHeads(
        members=draw(members(num_layers)),
        is_weighted=draw(st.booleans()),
        layers=draw(layer_lists(num_layers)),
        backbone_seed=draw(st.integers(0, 1)),
        norm=draw(st.sampled_from([True, True, False])),
        size=size,
        resize=resize,
        pad_to=pad_to,
        views=draw(st.sampled_from(["none", "flip4", "d6"])),
    )


@st.composite
def drawn_images(draw: Any, is_large: bool) -> DrawnImage:
    """An image of 1 to 4 patches a side, or of up to 7 where it is cut into tiles."""
    sides = [40, 64, 80, 103] if is_large else [16, 25, 40, 48, 61]
    height = draw(st.sampled_from(sides))
    width = draw(st.sampled_from(sides))
    form = draw(st.sampled_from(["array", "tensor", "pil", "file"]))
    has_orientation = form in ("pil", "file")
    orientation = draw(st.integers(1, 8)) if has_orientation else 1
    seed = draw(st.integers(0, 9))
    return DrawnImage((height, width), form, orientation, seed)


@st.composite
def cases(draw: Any) -> Case:
    """One comparison."""
    is_stored = draw(st.sampled_from([False] * 7 + [True]))
    is_tiled = not is_stored and draw(st.booleans())
    is_keyed = draw(st.booleans())
    are_files = draw(st.booleans()) and not is_stored
    count = draw(st.integers(1, 2)) if is_keyed else 1
    heads = [draw(drawn_heads(is_tiled)) for _ in range(count)]
    if not are_files:  # all heads have one backbone, preparation and views
        shared_names = ("layers", "backbone_seed", "norm", "size", "resize", "pad_to", "views")
        shared = {name: getattr(heads[0], name) for name in shared_names}
        others = [replace(other, **shared) for other in heads[1:]]
        if len(heads) > 1:
            fitting = draw(members(len(heads[0].layers)))
            others = [replace(other, members=fitting) for other in others]
        heads = [heads[0], *others]
    if is_keyed:  # weights are of a list
        heads = [replace(head, is_weighted=False) for head in heads]
    if is_stored:  # a store does not know which cells show padding
        cropped_heads = []
        for head in heads:
            resize = head.resize.replace("pad", "crop")
            cropped_heads.append(replace(head, resize=resize, pad_to=None))
        heads = cropped_heads
    maps = draw(st.sampled_from([None, "patch", "patch", "image", "image"]))
    images = draw(st.lists(drawn_images(is_tiled), min_size=1, max_size=3))
    if is_stored:
        images = [replace(image, form="file") for image in images]
    return Case(
        heads=tuple(heads),
        is_keyed=is_keyed,
        are_files=are_files,
        images=tuple(images),
        tile=draw(st.sampled_from([(32, 48), (32, 48), (64, 96)])) if is_tiled else None,
        overlap=draw(st.sampled_from([0, 8, 16, 0.25, 0.5])) if is_tiled else 0,
        batch_size=draw(st.integers(1, 5)),
        maps="patch" if is_stored and maps == "image" else maps,
        are_probabilities=maps == "image" and not is_stored and draw(st.booleans()),
        is_stored=is_stored,
    )


# Cases that hypothesis draws too rarely for the quick tier
# ---------------------------------------------------------


def chosen_heads(*members: DrawnMember, **options: Any) -> DrawnHeads:
    """The heads of a key, on the last block and an image of its own size, where nothing else is said."""
    own: dict[str, Any] = {
        "is_weighted": False,
        "layers": (5,),
        "backbone_seed": 0,
        "norm": True,
        "size": None,
        "resize": "stretch",
        "pad_to": None,
        "views": "none",
    }
    return DrawnHeads(members, **(own | options))


def chosen_case(*heads: DrawnHeads, **options: Any) -> Case:
    """A case with maps per patch of a wide image and of a tall one whose file is turned."""
    own: dict[str, Any] = {
        "is_keyed": len(heads) > 1,
        "are_files": False,
        "images": (
            DrawnImage((25, 61), "array", orientation=1, seed=1),
            DrawnImage((61, 25), "file", orientation=6, seed=2),
        ),
        "tile": None,
        "overlap": 0,
        "batch_size": 4,
        "maps": "patch",
        "are_probabilities": False,
        "is_stored": False,
    }
    return Case(heads, **(own | options))


DENSE = DrawnMember("dense", seed=1)
MIXED_ENSEMBLE = DrawnMember(
    members=(
        replace(DENSE, layers=(5,), weight=3.0),
        DrawnMember("composed", seed=2, layers=(3,)),
        DrawnMember("gate", seed=3, layers=(4, 1)),
    )
)
FOLDS = (
    DrawnMember("composed_dense", seed=0, weight=2.0),
    DrawnMember("composed_dense", seed=1, weight=0.5),
    DrawnMember("composed_dense", seed=2, weight=0.0),
)
PADDED: dict[str, Any] = {"size": (64, 64), "resize": "pad", "pad_to": "center", "views": "d6"}
LARGE = (DrawnImage((80, 103), "tensor", orientation=1, seed=1),)
CHOSEN = {
    "padding": chosen_case(chosen_heads(DENSE, **PADDED)),
    "pixels of a padded image": chosen_case(chosen_heads(DENSE, **PADDED), maps="image"),
    "tiles at uneven steps": chosen_case(
        chosen_heads(MIXED_ENSEMBLE, views="flip4"), images=LARGE, tile=(32, 48)
    ),
    "overlapping tiles": chosen_case(
        chosen_heads(MIXED_ENSEMBLE, views="d6"), images=LARGE, tile=(32, 48), overlap=16
    ),
    "weighted folds": chosen_case(
        chosen_heads(*FOLDS, is_weighted=True, views="flip4"), are_files=True
    ),
    "a backbone for each key": chosen_case(
        chosen_heads(MIXED_ENSEMBLE, views="flip4", size=(32, 48)),
        chosen_heads(DENSE, backbone_seed=1, layers=(4, 2), norm=False),
        are_files=True,
    ),
    "stored tokens": chosen_case(
        chosen_heads(MIXED_ENSEMBLE, views="d6"),
        images=(DrawnImage((32, 61), "file", orientation=6, seed=2),),
        is_stored=True,
    ),
}


# What a case stands for
# ----------------------


@cache
def backbone_of(seed: int) -> Backbone:
    return load_backbone("dinoneck_tiny", seed=seed)


def setting_of(case: Case, heads: DrawnHeads) -> Setting:
    """What the reference is told about the heads of a key."""
    backbone = backbone_of(heads.backbone_seed).with_layers(heads.layers, heads.norm)
    recipe = backbone.preprocess.changed(size=heads.size, resize=heads.resize, pad_to=heads.pad_to)
    return Setting(backbone, recipe, heads.views, case.tile, case.overlap)


def reference_of(heads: DrawnHeads) -> Member:
    """The heads of a key for the reference."""
    count = len(heads.members)
    if count == 1:
        return described(heads.members[0], heads.layers)
    described_members = []
    for member in heads.members:
        weight = member.weight if heads.is_weighted else 1.0
        described_members.append(replace(described(member, heads.layers), weight=weight))
    return Member(members=tuple(described_members))


def predictor_of(case: Case) -> Predictor:
    """The predictor of a case."""
    given: dict[str, list[Any]] = {}
    for number, heads in enumerate(case.heads):
        modules = [build(member) for member in heads.members]
        if case.are_files:
            setting = setting_of(case, heads)
            modules = [file_of(module, setting) for module in modules]
        given[f"key {number}"] = modules
    options: dict[str, Any] = {
        "tile": case.tile,
        "overlap": case.overlap,
        "batch_size": case.batch_size,
    }
    [first, *_] = case.heads
    if not case.are_files:
        setting = setting_of(case, first)
        options |= {
            "backbone": setting.backbone,
            "preprocess": setting.preprocess,
            "tta": setting.views,
        }
    if case.is_keyed:
        return Predictor(given, **options)
    if first.is_weighted and len(first.members) > 1:
        options["weights"] = [member.weight for member in first.members]
    return Predictor(given["key 0"], **options)


def file_of(module: Any, setting: Setting) -> HeadCheckpoint:
    """A head's file, with the backbone that gives the blocks it reads, the preparation and the views."""
    backbone = setting.backbone
    if isinstance(module, HeadEnsemble):
        backbone = backbone.with_layers(module.layer_indices, backbone.norm)
    return HeadCheckpoint.from_module(
        module, backbone=backbone, preprocess=setting.preprocess, tta=setting.views
    )


VIEWS_OF_STORE = {"none": "none", "flip4": "flips4", "d6": "d6"}
"""What a predictor averages -> the views that a store holds."""


def store_of(case: Case, predictor: Predictor, folder: Path) -> FeatureStore:
    """A store of the tokens that a predictor needs, of the images of a case."""
    [heads, *_] = case.heads
    store = FeatureStore.create(
        folder / "store",
        backbone=predictor.backbone,
        views=VIEWS_OF_STORE[heads.views],
        image_size=heads.size,
        resize=heads.resize,
    )
    store.extract([given_image(image, folder) for image in case.images], folder, workers=1)
    return store


def upright(image: DrawnImage) -> Any:
    """The image as the reference takes it."""
    random = np.random.default_rng(image.seed)
    coarse = random.integers(0, 256, (5, 7, 3), np.uint8)  # smooth, as photos are
    height, width = image.size
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    if image.form == "tensor":
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    return pixels


def given_image(image: DrawnImage, folder: Path) -> Any:
    """The image as the predictor takes it: with the orientation that its pixels were stored in."""
    pixels = upright(image)
    if image.form in ("array", "tensor"):
        return pixels
    transposition = UNTURNED[image.orientation]
    stored = Image.fromarray(pixels)
    if transposition is not None:
        stored = stored.transpose(transposition)
    stored.getexif()[ORIENTATION] = image.orientation
    if image.form == "pil":
        return stored
    height, width = image.size
    path = folder / f"{height}x{width}-{image.orientation}-{image.seed}.png"
    stored.save(path, exif=stored.getexif())
    return path
