"""What constructors refuse by the annotations of their arguments.

Words, types and lists of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from dinoneck import (
    Composition,
    ConfigError,
    FPNHead,
    HeadEnsemble,
    LinearHead,
    PatchMeanHead,
    Task,
)
from dinoneck.data import Preprocessing
from tests.refusals import Row


def task(**fields: Any) -> Task:
    return Task("biomass", **fields)


def fpn_head(**arguments: Any) -> FPNHead:
    return FPNHead(64, [task()], num_layers=3, **arguments)


ROWS: list[Row] = [
    # a word, and the nearest one that is known
    (lambda: task(kind="regresion"), ConfigError, ("kind", "Did you mean 'regression'?")),
    (lambda: task(activation="rellu"), ConfigError, ("activation", "Did you mean 'relu'?")),
    (lambda: task(loss="sum"), ConfigError, ("loss", "'sum'", "'smooth_l1'", "None")),
    (lambda: task(activation=3), ConfigError, ("activation", "3", "'relu'")),
    (
        lambda: Preprocessing(resize="strech"),  # type: ignore[arg-type]
        ConfigError,
        ("resize", "Did you mean 'stretch'?"),
    ),
    (lambda: fpn_head(layer_groups="atuo"), ConfigError, "Did you mean 'auto'?"),
    # one value of another type
    (lambda: task(dim="3"), ConfigError, ("dim", "'3'", "integer")),
    (lambda: task(dim=True), ConfigError, ("dim", "True", "integer")),
    (lambda: task(dim=np.arange(2)), ConfigError, ("dim", "array([0, 1])", "integer")),
    (lambda: task(minimum="zero"), ConfigError, ("minimum", "'zero'", "a number")),
    (lambda: task(unit=3), ConfigError, ("unit", "3", "a text")),
    (lambda: fpn_head(use_coords=1), ConfigError, ("use_coords", "1", "True or False")),
    (lambda: task(transform="log"), ConfigError, ("transform", "'log'", "TargetTransform")),
    (
        lambda: LinearHead(64, [task()], bins=nn.Linear(2, 2)),  # type: ignore[arg-type]
        ConfigError,
        ("bins", "Linear", "a Bins"),
    ),
    # lists
    (lambda: task(labels=[1]), ConfigError, ("labels", "[1]", "list of texts")),
    (lambda: task(weight="high"), ConfigError, ("weight", "'high'", "list of numbers")),
    (lambda: Preprocessing(size=(3,)), ConfigError, ("size", "(3,)", "2 integers")),  # type: ignore[arg-type]
    (lambda: PatchMeanHead(64, "biomass"), ConfigError, ("tasks", "list of Task objects")),  # type: ignore[arg-type]
    (lambda: PatchMeanHead(64, ["biomass"]), ConfigError, ("tasks=)[0]", "a Task")),  # type: ignore[list-item]
    (lambda: HeadEnsemble([3]), ConfigError, ("members=)[0]", "a Head")),  # type: ignore[list-item]
    (lambda: fpn_head(layer_groups=[1, 2]), ConfigError, ("[0] is 1", "list of integers")),
    (
        lambda: Composition(parts=("grass",), sums={"total": 3}),  # type: ignore[dict-item]
        ConfigError,
        ("sums", "{'total': 3}", "texts -> lists of texts"),
    ),
]
