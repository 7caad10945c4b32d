"""What grids, tokens, plain tensors, tasks, transforms of targets and the registry refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import dinoneck
from dinoneck import (
    CLSGatingHead,
    ConfigError,
    DataError,
    GridError,
    PatchMeanHead,
    PyramidHead,
    RegistryError,
    ShapeError,
    SimplePyramid,
    TargetTransform,
    Task,
    TokenGrid,
    Tokens,
    collate,
    registry,
)
from dinoneck.configured import Configured
from dinoneck.tasks import check_tasks
from tests.refusals import Row

X, MAPS, CLS = torch.zeros(2, 15, 8), torch.zeros(2, 8, 3, 5), torch.zeros(2, 8)
GRID, NAN, KINDS = TokenGrid(16), torch.nan, ("regression",)
HEAD = {"embed_dim": 8, "tasks": [{"$": "Task", "name": "a"}]}


class Mine(Configured, nn.Module):
    """A user's own module."""


def sequence(tokens: int = 17, size: Any = (48, 64), prefix: Any = 5, **more: Any) -> Tokens:
    x = torch.zeros(1, tokens, 2)
    return Tokens.from_sequence(x, image_size=size, patch_size=16, num_prefix_tokens=prefix, **more)


def patches(x: Any = X, grid: Any = (3, 5), **more: Any) -> Tokens:
    return Tokens.from_patches(x, grid=grid, patch_size=16, **more)


def plain(x: Any, **more: Any) -> list[Any]:
    """A neck and a head that take the same input."""
    return [
        lambda: SimplePyramid(8, 4)(x, **more),
        lambda: PatchMeanHead(8, [Task("mass")])(x, **more),
    ]


INPUTS: list[tuple[Any, dict[str, Any], type[Exception], Any]] = [
    (X, {}, ShapeError, "grid=(rows, cols)"),
    (X, {"grid": (3, 4)}, GridError, ("15", "3 rows x 4 cols")),
    (X, {"grid": (2, 7), "num_prefix_tokens": 1, "cls_token": CLS}, ShapeError, "cls_token"),
    (MAPS, {"grid": (5, 3)}, ShapeError, ("3 rows x 5 cols", "(5, 3)")),
    (MAPS, {"num_prefix_tokens": 1}, ShapeError, ("num_prefix_tokens=1", "cls_token=")),
    ([torch.zeros(2, 8, 2, 6), torch.zeros(2, 8, 3, 4)], {}, ShapeError, ("2x6", "3x4")),
    (X[0], {"grid": (3, 5)}, ShapeError, "(15, 8)"),
    (patches(), {"grid": (3, 5)}, ShapeError, "Tokens with grid="),
    (patches(), {"num_prefix_tokens": 1}, ShapeError, "Tokens with num_prefix_tokens="),
    (patches(), {"cls_token": CLS}, ShapeError, "Tokens with cls_token="),
]
LOG = TargetTransform(log1p=True)
TASKS: list[dict[str, Any]] = [
    {"name": ""},
    {"name": "gate"},
    {"dim": 0},
    {"kind": "regresion"},
    {"activation": "gelu"},
    {"loss": "cross_entropy"},
    {"weight": -1},
    {"beta": 0},
    {"transform": "log"},
    {"labels": ("a", "b")},
    {"minimum": 1e308},
    {"maximum": 1e308},
    {"minimum": 2.0, "maximum": 1.0},
    {"kind": "density", "aggregate": "sum", "transform": LOG},
    {"kind": "dense", "aggregate": "mean"},
    {"ignore_index": "0"},
    {"dim": 2, "transform": TargetTransform(mean=(1.0, 2.0, 3.0))},
    *(
        {"dim": 3, "kind": "classification", **given}
        for given in (
            {"minimum": 5},
            {"transform": TargetTransform(mean=1.0)},
            {"activation": "relu"},
        )
    ),
]
TRANSFORMS: list[dict[str, Any]] = [
    {"area": 0.0},
    {"area": (1.0, 2.0)},
    {"std": 0.0},
    {"mean": NAN},
    {"log1p": 1},
    {"mean": (1.0, 2.0), "std": (1.0,)},
    {"mean": ((1.0,),)},
]


def import_file(folder: Path, text: str) -> None:
    """Import a file of one's own, as ``--import`` does."""
    file = folder / "own_head.py"
    file.write_text(text)
    registry.import_modules([str(file)])


ROWS: list[Row] = [
    *((call, error, named) for x, more, error, named in INPUTS for call in plain(x, **more)),
    *(
        (lambda wrong=wrong: Task(**{"name": "a", **wrong}), ConfigError, list(wrong)[-1])
        for wrong in TASKS
    ),
    (
        lambda: Task("a", dim=3, kind="segmentation").natural_map(MAPS[0]),
        ShapeError,
        "(batch, 3, rows, cols)",
    ),
    (lambda: LOG.inverse(MAPS, parts=4), ConfigError, "4"),
    *(
        (lambda wrong=wrong: TargetTransform(**wrong), ConfigError, list(wrong)[-1])
        for wrong in TRANSFORMS
    ),
    (
        lambda: CLSGatingHead(8, [Task("mass")], mode="query")(X, grid=(3, 5)),
        ShapeError,
        "cls_token=",
    ),
    (lambda: GRID(torch.zeros(1, 17, 8), (48, 64)), GridError, ("17", "3 rows x 4 cols")),
    (lambda: GRID(torch.zeros(17, 8), (48, 64)), ShapeError, "(17, 8)"),
    (lambda: GRID.flatten(torch.zeros(3, 4)), ShapeError, "(3, 4)"),
    (
        lambda: GRID.size((480, 361)),
        GridError,
        ("480x361", "361 % 16 = 9", "'crop' (480x352)", "'pad' (480x368)"),
    ),
    (lambda: GRID.size((0, 32)), GridError, "0"),
    (lambda: TokenGrid(0), ConfigError, "0"),
    (lambda: TokenGrid(16, "stretch"), ConfigError, ("'stretch'", "crop")),  # type: ignore[arg-type]
    (lambda: TokenGrid(16, "pad", "middle"), ConfigError, ("'middle'", "center")),  # type: ignore[arg-type]
    (
        lambda: TokenGrid(16, "resize").prepare(torch.zeros(1, 3, 35, 40, dtype=torch.uint8)),
        DataError,
        "uint8",
    ),
    (lambda: GRID.prepare(torch.zeros(3, 35, 40)), ShapeError, "(3, 35, 40)"),
    (
        lambda: GRID.sample(torch.zeros(2, 3, 2, 2), torch.zeros(3, 5, 2), (32, 32)),
        ShapeError,
        "(3, 5, 2)",
    ),
    (
        lambda: GRID.sample(torch.zeros(2, 3, 2, 2), torch.zeros(2, 1, 2), (32, 48)),
        GridError,
        "2x3",
    ),
    (lambda: GRID.reduce_labels(torch.zeros(32, 32)), ShapeError, "(32, 32)"),
    (
        lambda: GRID.reduce_labels(torch.zeros(1, 1, 32, 32), torch.ones(1, 16, 16).bool()),
        ShapeError,
        "mask",
    ),
    (lambda: GRID.reduce_labels(torch.full((1, 1, 16, 16), NAN)), DataError, "256"),
    (lambda: sequence(18), GridError, ("18", "48x64", "3 rows x 4 cols = 12", "5")),
    (lambda: sequence(12, prefix=-1), ConfigError, "num_prefix_tokens"),
    (lambda: sequence(16, prefix=4, num_cls=2), ConfigError, "num_cls"),
    (lambda: sequence(12, prefix=0).cls_token, ShapeError, "CLS"),
    (lambda: patches(grid=(0, 5)), GridError, "grid"),
    (lambda: patches(grid=(3, 4)), GridError, ("15 patch tokens", "3 rows x 4 cols = 12")),
    (lambda: Task("a:b"), ConfigError, ("'a:b'", "rename it")),
    (lambda: Task("a.map"), ConfigError, ("'a.map'", "another name", "'.map'")),
    (
        lambda: Task("a", kind="density", transform=LOG),
        ConfigError,
        ("without log1p", "'regression'"),
    ),
    (lambda: patches(X[0]), ShapeError, "(15, 8)"),
    (lambda: patches([]), ShapeError, ""),
    (lambda: patches([X, X[..., :3]]), ShapeError, "(2, 15, 3)"),
    (lambda: patches(cls_token=CLS.bfloat16()), ShapeError, "bfloat16"),
    (lambda: patches([X, X], cls_token=CLS), ShapeError, "2"),
    (lambda: patches(layers=[1, 2]), ShapeError, "2"),
    (lambda: patches([X] * 2, layers=[11, 2]).select([3]), ConfigError, ("[3]", "(11, 2)")),
    (lambda: patches().select(0), ConfigError, "blocks"),
    (lambda: Tokens.cat([patches(), patches(grid=(5, 3))]), ShapeError, ""),
    (lambda: Tokens.cat([]), ShapeError, ""),
    (lambda: collate([]), ShapeError, ""),
    (lambda: patches()[2], IndexError, "2"),
    (lambda: patches()[True], TypeError, "True"),
    (lambda: TargetTransform().fit([[1.0, NAN], [2.0, NAN]]), DataError, "NaN"),
    (lambda: TargetTransform().fit([1.0, torch.inf]), DataError, "inf"),
    (lambda: TargetTransform().fit([0.0, 1e200]), DataError, ("1e+200", "1")),
    (lambda: TargetTransform(log1p=True).fit([1.0, -2.0]), DataError, "-2"),
    (lambda: TargetTransform().fit([0.1] * 7), DataError, "equal"),
    (lambda: TargetTransform().fit([]), DataError, ""),
    (lambda: TargetTransform().fit(["1", "2"]), DataError, "no numbers"),
    (lambda: TargetTransform(mean=(1.0, 2.0)).forward(torch.zeros(4, 3)), ShapeError, "2"),
    (lambda: check_tasks([], kinds=KINDS, owner="H"), ConfigError, "H"),
    (lambda: check_tasks([Task("a"), Task("a")], kinds=KINDS, owner="H"), ConfigError, "'a'"),
    (
        lambda: check_tasks([Task("a", kind="dense")], kinds=KINDS, owner="H"),
        ConfigError,
        "'dense'",
    ),
    (lambda: registry.resolve("patch_maen"), RegistryError, ("patch_maen", "patch_mean")),
    (lambda: registry.resolve(None), RegistryError, "None"),
    (lambda: registry.name_of(Mine), RegistryError, "dinoneck.register(cls)"),
    (lambda: registry.register(Mine, name="9a"), RegistryError, "9a"),
    (lambda: registry.register(Mine, name="x" * 65), RegistryError, "xxx"),
    (lambda: registry.register(Mine, name="patch_mean"), RegistryError, "patch_mean"),
    (lambda: registry.register(nn.Linear, name="linear"), RegistryError, "Linear"),
    (lambda: registry.register(nn.Linear(1, 1)), RegistryError, "Linear"),  # type: ignore[arg-type]
    (
        lambda: Tokens.cat([patches(source="one"), patches(source="two")]),
        ShapeError,
        "one, two",
    ),
    # constructors, names and modules
    (lambda: SimplePyramid(8, 4, colour=1), TypeError, ("SimplePyramid", "'colour'")),  # type: ignore[call-arg]
    (
        lambda: PyramidHead(neck={"type": "patch_mean", "config": HEAD}, tasks=[Task("a")]),
        ConfigError,
        ("'patch_mean'", "PatchMeanHead", "Neck"),
    ),
    (lambda: registry.import_modules(["no_such_module"]), ConfigError, "no_such_module"),
    (lambda: registry.import_modules(["no_such_file.py"]), ConfigError, "no file no_such_file.py"),
    (
        lambda folder: import_file(folder, "def head(:"),
        ConfigError,
        ("own_head.py", "SyntaxError", "line 1"),
    ),
    (lambda folder: import_file(folder, "1 / 0"), ConfigError, ("own_head.py", "ZeroDivision")),
    (lambda folder: import_file(folder, "import spconf"), ConfigError, ("own_head.py", "'spconf'")),
    (lambda: dinoneck.PatchMaenHead, AttributeError, ("'dinoneck'", "'PatchMaenHead'")),
]
