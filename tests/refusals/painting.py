"""What the painting page refuses; a page that is too large is in unit/painting."""

from __future__ import annotations

from dataclasses import replace

import torch

from dinoneck import ConfigError, DataError, ShapeError
from dinoneck.painting import painting_page
from tests.refusals import Row
from tests.unit.painting.fields import CLASSES, document, fields, stroke

FIRST, SECOND = fields(2)
OTHER_FILE = document(replace(FIRST, sha256="0" * 64), [stroke("crop", 4.0, (20.0, 20.0))])
OTHER_CLASS = document(FIRST, [stroke("rock", 4.0, (20.0, 20.0))])

MORE_CLASSES = {**OTHER_CLASS, "classes": [*CLASSES, "rock"]}

ROWS: list[Row] = [
    (lambda: painting_page([FIRST], ["crop"]), ConfigError, "['crop']"),
    (lambda: painting_page([FIRST], "crop"), ConfigError, "'crop'"),
    (lambda: painting_page([FIRST], [f"c{i}" for i in range(256)]), ConfigError, ("'c0'", "255")),
    (lambda: painting_page([FIRST], ["crop", " "]), ConfigError, "' '"),
    (lambda: painting_page([FIRST], ["crop", "crop"]), ConfigError, "['crop', 'crop']"),
    (lambda: painting_page([FIRST], ["crop", 3]), ConfigError, "a class is called 3"),  # type: ignore[list-item]
    (lambda: painting_page([], CLASSES), DataError, "no photo"),
    (
        lambda: painting_page([FIRST, replace(SECOND, name=FIRST.name)], CLASSES),
        DataError,
        "'field/0.jpg'",
    ),
    (
        lambda: painting_page([FIRST, replace(SECOND, patches=torch.zeros(6, 8))], CLASSES),
        ShapeError,
        ("field/1.jpg", "(6, 8)"),
    ),
    (
        lambda: painting_page([FIRST, replace(SECOND, patches=torch.zeros(6, 8, 5))], CLASSES),
        ShapeError,
        ("5 channels", "24"),
    ),
    (
        lambda: painting_page([FIRST, replace(SECOND, patches=SECOND.patches / 0)], CLASSES),
        DataError,
        "photo 1",
    ),
    (
        lambda: painting_page([FIRST, SECOND], CLASSES, strokes=OTHER_FILE),
        DataError,
        "field/0.jpg",
    ),
    (
        lambda: painting_page([FIRST, SECOND], CLASSES, strokes=OTHER_CLASS),
        DataError,
        ("'rock'", "crop, weed, soil"),
    ),
    (
        lambda: painting_page([FIRST, SECOND], CLASSES, strokes=MORE_CLASSES),
        DataError,
        ("a stroke on field/0.jpg is of class 'rock'", "one of crop, weed, soil"),
    ),
]
