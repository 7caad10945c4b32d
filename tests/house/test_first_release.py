"""0.3 is the first release: no name, argument, verb, key or sentence of what came before it is left."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dinoneck import ConfigError, SpatialTuningAdapter, registry
from dinoneck.cli.main import VERBS, main
from dinoneck.data import Preprocessing
from dinoneck.training import TrainConfig
from tests.house.source import ROOT

# -- words ------------------------------------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"\b(?:older|earlier version|legacy|migrat\w*|deprecat\w*|photo\w*)\b|\b(?:version|dinoneck|schema) 0\.[12]\b",
    re.IGNORECASE,
)
PLACES = ("src", "docs", "README.md", "examples", "tests")
TEXTS = {".py", ".pyi", ".md", ".j2", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".ipynb", ".html", ".css"}
ALLOWED = Path(__file__).with_name("allowed_words.txt")


def allowed() -> list[tuple[str, re.Pattern[str]]]:
    """Pattern of paths, and what may stand there."""
    lines = [line for line in ALLOWED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    entries = [line.split(" | ") for line in lines]
    assert all(len(entry) == 3 and entry[2] for entry in entries), "an entry is: paths | expression | reason"
    return [(paths, re.compile(expression)) for paths, expression, _ in entries]


def lines_of(place: str) -> Iterator[tuple[str, int, str]]:
    """Name of the file, number and text of every line below a place."""
    root = ROOT / place
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        if path.suffix in TEXTS and path not in (ALLOWED, Path(__file__).resolve()):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield path.relative_to(ROOT).as_posix(), number, line


def test_words_of_what_came_before_stand_in_the_list_of_allowed_ones() -> None:
    entries, used, found = allowed(), set(), []
    for place in PLACES:
        for name, number, line in lines_of(place):
            if not FORBIDDEN.search(line):
                continue
            for entry in entries:
                if fnmatch(name, entry[0]):
                    line, count = entry[1].subn("", line)
                    used |= {entry} if count else set()
            found += [f"{name}:{number}: {word}" for word in FORBIDDEN.findall(line)]
    assert not found, f"use other words, or add them with a reason to {ALLOWED.name}: {found}"
    assert used == set(entries), f"take out of {ALLOWED.name} what stands nowhere"


# -- names, arguments and verbs ---------------------------------------------------------------------------

NAMES = [
    ("dinoneck.data", "PhotoTable BoxPhotos photo_size to_photo_pixels read_csv Table Pattern Patterns "
     "read_csiro_test Pasture.write_csiro"),
    ("dinoneck", "split_deimv2 SpatialTuningAdapter.from_deimv2"),
    ("dinoneck.points", "MinkowskiAdapter"),
    ("dinoneck.interop", "TokenMeans"),
    ("dinoneck.checkpoint", "read_legacy LegacyFile ImportedHead import_biomass import_cls_gating import_described "
     "import_patch_mean cls_gating_tasks"),
    ("dinoneck.configured", "omitted_arguments Migrations"),
    ("dinoneck.lazy", "renamed_arguments"),
    ("dinoneck.atomic", "write_folder"),
]  # fmt: skip
MODULES = [
    "checkpoint.migrate", "checkpoint.ensemble_folder", "checkpoint.legacy", "training.earlier_keys", "cli.store",
    "cli.import_legacy", "necks.deimv2_weights", "interop.token_means",
]  # fmt: skip
ARGUMENTS = [
    ("dinoneck.data", "BoxImages", "photos"),
    ("dinoneck.data", "Preprocessing.__call__", "photos"),
    ("dinoneck.data", "Preprocessing.prepare", "photos"),
    ("dinoneck.data", "Pasture.write", "photos"),
    ("dinoneck.training", "MemoryTokens.extract", "photos"),
    ("dinoneck.training", "LiveTokens", "photos"),
    *(("dinoneck.training", "Recipe", name) for name in ("ridge_blend", "save_steps", "min_lr", "ema_start")),
    *(("dinoneck.training", "fit", name) for name in ("tasks", "groups", "target_weights")),
]  # fmt: skip
GONE_VERBS = [
    ["migrate"], ["diff"], ["import-legacy"], ["store"], ["card"], ["pull"], ["export-head"], ["viz", "gate"],
    ["viz", "residuals"],
]  # fmt: skip
GONE_FLAGS = [
    "train --out run --photos images", "train --out run --patterns 4", "train --out run --ema 0.9",
    "predict --heads h --out o.csv --csv t.csv --photo-folder images", "demo --photos 3",
    "export h.safetensors --out h.pt2 --format torch", "extract images --out s --size 32 --photos 3",
]  # fmt: skip


def member(module: str, path: str) -> Any:
    """What a dotted path leads to from a module."""
    found: Any = importlib.import_module(module)
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("module", "names"), NAMES)
def test_names_are_gone(module: str, names: str) -> None:
    for path in names.split():
        owner, _, name = path.rpartition(".")
        assert not hasattr(member(module, owner), name), path


@pytest.mark.parametrize("name", MODULES)
def test_modules_are_gone(name: str) -> None:
    assert find_spec(f"dinoneck.{name}") is None


@pytest.mark.parametrize(("module", "function", "argument"), ARGUMENTS)
def test_arguments_are_gone(module: str, function: str, argument: str) -> None:
    assert argument not in inspect.signature(member(module, function)).parameters


def test_no_registered_class_has_versions_or_a_least_size_of_groups() -> None:
    for name in registry.names():
        cls = registry.resolve(name)
        assert "norm_group_size" not in inspect.signature(cls).parameters, name
        assert not hasattr(cls, "checkpoint_version") and not hasattr(cls, "checkpoint_migrations"), name


@pytest.mark.parametrize("words", GONE_VERBS, ids=" ".join)
def test_verbs_are_gone(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as end:  # of a sub-verb
        code = int(end.code or 0)
    assert code == 2, capsys.readouterr().err
    assert len(words) > 1 or words[0] not in VERBS


@pytest.mark.parametrize("line", GONE_FLAGS)
def test_flags_are_gone(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2, capsys.readouterr().err


def test_values_and_keys_are_gone() -> None:
    for interpolation in ("bilinear_float32", "bilinear_uint8"):
        with pytest.raises(ConfigError, match=interpolation):
            Preprocessing(interpolation=interpolation)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="deimv2"):
        SpatialTuningAdapter(8, detail="deimv2")  # type: ignore[arg-type]
    for section in ("trainer", "dataset", "optimization", "experiment", "inference", "model", "recipe"):
        with pytest.raises(ConfigError, match=f"unknown key '{section}'"):
            TrainConfig.from_dict({section: {}})
