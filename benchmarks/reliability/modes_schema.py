"""Modes 28 to 40: sound JSON that describes no head that could be built. All digests are right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.reliability.attempts import harmless, of_forged
from benchmarks.reliability.changes import GONE, TASK, each, listed, member_type, neck_type, put, wrong
from benchmarks.reliability.forge import forged
from benchmarks.reliability.modes import Mode
from benchmarks.reliability.modes_size import MODES as SIZES
from benchmarks.reliability.modes_strings import MODES as STRINGS
from benchmarks.reliability.subjects import dense, ensemble, fpn, lora, plain, pyramid, told
from dinoneck.checkpoint.header import SCHEMA


def formats() -> Iterator[Mode]:
    """What kind of file it says to be."""
    yield Mode(28, "another format", (
        *each("schema", ("format",), ("other", "", "Dinoneck.head", "dinoneck.head ", "dinoneck.ensemble", "pt", None,
                                      5, [],
                                      {}, True, GONE), "format is"),
        listed("format of a head", "schema", lambda x: x.update(format="dinoneck.head"), "no list of an ensemble"),
        listed("no format", "schema", lambda x: x.pop("format"), "no list of an ensemble"),
    ))  # fmt: skip
    yield Mode(29, "schema 0, -1, \"1\", true", (
        *each("schema", ("schema",), (0, -1, "1", "2", True, False, None, 1.0, 2.0, [2], {}, "", -(1 << 62), GONE),
              "expected a positive integer"),
        wrong("json", ("schema",), 2**70, "more than 20 digits"),
        wrong("schema", ("schema",), 1, "unknown keys ['license', 'training', 'tta', 'versions']"),
        of_forged("2 without what it added", "schema", plain, lambda meta, state: meta.pop("versions"), "lacks"),
        *(listed(f"schema {value!r}", "schema", lambda x, value=value: x.update(schema=value), "schema is")
          for value in (0, -1, "1", True, None, 1.0)),
    ))  # fmt: skip
    later = "install that version or a later one"
    yield Mode(30, "a future schema", (
        *each("schema", ("schema",), (SCHEMA + 1, SCHEMA + 2, 1000, 1 << 31, 1 << 62), later),
        of_forged("with entries nobody knows yet", "schema", plain,
                  lambda meta, state: meta.update(schema=SCHEMA + 1, licences=[], tensors={}), later),
        of_forged("by an unknown version", "schema", plain,
                  lambda meta, state: meta.update(schema=SCHEMA + 1, created_by=None), "of unknown version"),
        wrong("registry", ("versions", "patch_mean"), 2, "version 2; the one here is version 1. Install"),
        wrong("registry", ("versions", "patch_mean"), 65536, "Install"),
        wrong("registry", ("versions", "simple_pyramid"), 2, "Install", pyramid),
        wrong("registry", ("versions", "patch_mean"), 2, "Install", ensemble),
        listed("a future schema", "schema", lambda x: x.update(schema=2), "A newer one may be needed"),
    ))  # fmt: skip


def types() -> Iterator[Mode]:
    """Names of classes."""
    unknown = "is not registered"
    yield Mode(31, "unknown head_type", (
        *each("registry", ("head_type",), ("nothing", "", " ", "head", "patch mean", "Patch_Mean", "patch_mean\n",
                                           "p\u0430tch_mean", "patch_mean\u200b", "PATCH_MEAN", "1"), unknown),
        *each("schema", ("head_type",), (None, 5, [], {}, True, GONE)),
        of_forged("of another class, known here", "config", plain, lambda meta, state: meta.update(
            head_type="fpn", versions={"fpn": 1}), "lacks num_layers"),
        wrong("config", ("head_type",), "fpn", "versions are told of patch_mean"),
        of_forged("a member of an ensemble", "config", ensemble, member_type("nothing"), unknown),
        of_forged("the neck of a head", "config", pyramid, neck_type("nothing"), unknown),
        wrong("config", ("config", "members", 0, "type"), 5, "", ensemble),
        wrong("config", ("config", "members", 0, "type"), "simple_pyramid", "", ensemble),
        wrong("config", ("config", "neck", "type"), "patch_mean", "", pyramid),
        wrong("config", ("config", "tasks", 0, "$"), "Backbone"),
    ))  # fmt: skip
    near = {
        "patch_maen": "patch_mean", "patchmean": "patch_mean", "patch-mean": "patch_mean", "fpm": "fpn",
        "cls_gatting": "cls_gating", "ensembles": "ensemble", "pyramids": "pyramid", "simple_piramid": "simple_pyramid",
    }  # fmt: skip
    yield Mode(32, "a name nearly right", (
        *(wrong("registry", ("head_type",), name, f"Did you mean {meant!r}?") for name, meant in near.items()),
        of_forged("a member of an ensemble", "config", ensemble, member_type("patch_maen"),
                  "Did you mean 'patch_mean'?"),
        of_forged("the neck of a head", "config", pyramid, neck_type("simple_piramid"),
                  "Did you mean 'simple_pyramid'?"),
        wrong("config", ("config", "hiden_dim"), 4, "Did you mean 'hidden_dim'?"),
    ))  # fmt: skip


def missing() -> Mode:
    """Entries that are not there."""
    top = ("backbone", "config", "created_by", "extra", "head_type", "inputs", "license", "tasks", "tensors",
           "training",
           "tta", "versions", "digest")  # fmt: skip
    default = "normal form"
    return Mode(33, "an argument or entry is missing", (
        *(wrong("schema", (key,), GONE, "lacks") for key in top),
        wrong("config", ("config", "embed_dim"), GONE, "lacks embed_dim"),
        wrong("config", ("config", "tasks"), GONE, "lacks tasks"),
        wrong("config", ("config", "hidden_dim"), GONE, default),
        wrong("config", ("config", "num_layers"), GONE, "lacks num_layers", fpn),
        wrong("config", ("config", "fpn_dim"), GONE, default, fpn),
        wrong("config", ("config", "use_coords"), GONE, default, fpn),
        wrong("config", ("config", "depth"), GONE, default, dense),
        wrong("config", ("config", "members"), GONE, "versions are told of", ensemble),
        wrong("config", ("config", "reduce"), GONE, default, ensemble),
        wrong("config", ("config", "members", 1, "config", "embed_dim"), GONE, "lacks embed_dim", ensemble),
        wrong("config", ("config", "members", 1, "config"), GONE, "", ensemble),
        wrong("tensors", ("config", "members", 1), GONE, "which this head has not", ensemble),
        wrong("config", ("config", "neck", "type"), GONE, "", pyramid),
        wrong("config", ("config", "neck", "scales"), GONE, default, pyramid),
        wrong("config", ("config", "tasks", 0, "name"), GONE),
        wrong("config", ("config", "tasks", 0, "dim"), GONE),
        wrong("config", ("tasks", 0), GONE, "tasks listed"),
        wrong("config", ("versions", "patch_mean"), GONE, "versions are told of ;"),
        *(wrong("schema", ("backbone", "adapter", key), GONE, "lacks or adds", lora)
          for key in ("kind", "rank", "alpha", "targets", "blocks", "sha256")),
        *(wrong("schema", ("tta", key), GONE, "tta lacks", told) for key in ("ops", "reduce")),
        *each("schema", ("tta",), ({}, {"ops": "d6"}, {"reduce": "mean"}), "tta lacks"),
        wrong("schema", ("tta", "ops"), None, "tta lacks ops", told),
        wrong("config", ("inputs", "fit"), GONE, "inputs", told),
        *(listed(f"no {key}", "schema", lambda x, key=key: x.pop(key), "expected") for key in ("reduce", "members",
                                                                                               "schema")
          if key != "schema"),
        *(listed(f"a member without {key}", "schema", lambda x, key=key: x["members"][0].pop(key), "no object with")
          for key in ("file", "digest", "output", "fold", "weight")),
    ))  # fmt: skip


def too_many() -> Mode:
    """Entries that nobody asked for."""
    strange = ("colour", "", "__class__", "self", "device", "dtype", "config", "\u0435mbed_dim")
    return Mode(34, "an argument or entry too many", (
        *(wrong("config", ("config", key), "cpu", "has no argument") for key in strange),
        *(wrong("config", ("config", key), None, "has no argument") for key in ("device", "kwargs")),
        *(wrong("schema", (key,), 1, "unknown keys") for key in ("colour", "", "Format", "adapter", "pickle")),
        wrong("config", ("config", "colour"), 1, "has no argument", fpn),
        wrong("config", ("config", "members", 0, "config", "colour"), 1, "has no argument", ensemble),
        wrong("config", ("config", "members", 0, "colour"), 1, "", ensemble),
        wrong("config", ("config", "neck", "colour"), 1, "has no argument", pyramid),
        wrong("config", ("config", "neck", "embed_dim"), 8, "normal form", pyramid),
        wrong("config", ("config", "neck", "embed_dim"), 4, "", pyramid),
        wrong("config", (*TASK, "colour"), 1, "has no field"),
        wrong("config", ("tasks", 0, "colour"), 1, "tasks listed"),
        of_forged("a task listed twice", "config", plain, lambda meta, state: meta["tasks"].append(meta["tasks"][0])),
        of_forged("a task configured twice", "config", plain,
                  lambda meta, state: meta["config"]["tasks"].append(meta["config"]["tasks"][0])),
        wrong("config", ("versions", "fpn"), 1, "versions are told of fpn, patch_mean"),
        wrong("schema", ("backbone", "adapter", "colour"), 1, "lacks or adds colour", lora),
        wrong("schema", ("training", "colour"), 1, "training holds colour", told),
        wrong("schema", ("training", "data", "path"), "/", "training.data", told),
        wrong("schema", ("tta", "more"), 1, "tta holds more", told),
        wrong("config", ("inputs", "colour"), 1, "inputs", told),
        listed("an entry too many", "schema", lambda x: x.update(surprise=1), "expected"),
        listed("a member with an entry too many", "schema", lambda x: x["members"][0].update(extra=1),
               "no object with"),
        harmless("an entry of the backbone that later versions may tell", told,
                 lambda: forged(told(), put(("backbone", "told_later"), 1))),
    ))  # fmt: skip


def mistyped() -> Iterator[Mode]:
    """Values of another type."""
    not_int: tuple[Any, ...] = ("4", 4.0, 4.5, True, None, [4], {"a": 4}, "")
    objects = {
        "config": ([], "x", None, 3), "tasks": ({}, None, "x"), "extra": ([], None, "x"), "created_by": ([], None, "x"),
        "versions": ([], None, "x"), "backbone": ([], "x", 3, True), "inputs": ([], "x", 3), "training": ([], "x", 1),
        "license": (5, [], {}), "tta": ("d6", [], 1), "digest": (None, 5, []),
    }  # fmt: skip
    yield Mode(35, "an argument or entry of another type", (
        *each("config", ("config", "embed_dim"), not_int, "expected int"),
        *each("config", ("config", "hidden_dim"), not_int, "expected int"),
        *each("config", ("config", "tasks"), (None, "a", 3, {}, [None], ["a"], [[]], [{}])),
        *each("schema", (*TASK, "dim"), (4.0, True, [4]), "expected an integer"),
        *each("config", (*TASK, "transform"), ({}, {"$": "Task"})),
        wrong("schema", (*TASK, "dim"), "4", "expected an integer"),
        wrong("config", ("config", "use_coords"), 1, "expected bool", fpn),
        wrong("config", ("config", "layer_indices"), 3, "", fpn),
        *each("config", ("config", "members"), ({}, "x", None, [None], [[]], [{}]), "", ensemble),
        *each("config", ("config", "neck"), (None, 3, [], {}), "", pyramid),
        *(wrong("schema", (key,), value, f"{key} is") for key, values in objects.items() for value in values),
        *each("tensors", ("tensors",), (None, {}, "x", 3), "the list of tensors is"),
        *each("schema", ("tasks", 0), (None, "a", [], 3), "expected an object"),
        *each("schema", ("versions", "patch_mean"), ("1", True, 1.0, [], 0, -1, 1 << 62), "each 1 or more"),
        *each("schema", ("backbone", "name"), (5, [], {}, True), "plain text", told),
        *each("schema", ("backbone", "embed_dim"), ("4", 4.0, True, []), "an integer", told),
        *each("schema", ("backbone", "patch_size"), ("16", [16], [16, 16, 16], 16.0), "one or two integers", told),
        *each("schema", ("backbone", "layers"), ("all", 3, [1.0], ["1"], [True]), "block indices", told),
        *each("schema", ("backbone", "norm"), (1, "yes", []), "true or false", told),
        *each("schema", ("backbone", "mean"), ([0.5], ["a", "b", "c"], [True, 0.5, 0.5], 0.5), "three numbers", told),
        *each("schema", ("backbone", "weights"), ("x", 3, []), "an object", told),
        *each("schema", ("backbone", "probe"), ("x", ["x"], {}), "a list of finite numbers", told),
        *each("schema", ("inputs", "size"), ("32", [1, 2, 3], 1.5, True, 0, 5, [65536, 65536]), "two integers", told),
        *each("schema", ("training", "data"), ("x", [], {"name": 1}), "training.data", told),
        *each("schema", ("training", "metrics"), ([], {"R2": "1"}, {"R2": None}, {"R2": {"mean": 1}}, {"R2": [1]},
                                                  {"R2": {"mean": 1, "sd": []}}, {"": 1}), "training.metrics", told),
        *each("schema", ("created_by", "dinoneck"), (1, [], {}), "plain texts"),
        *(listed(f"weight {value!r}", "schema", lambda x, value=value: x["members"][0].update(weight=value),
                 "weight is")
          for value in ("1", None, True, [])),
        *(listed(f"fold {value!r}", "schema", lambda x, value=value: x["members"][0].update(fold=value), "fold is")
          for value in ("1", None, True, 1.0)),
        listed("members is an object", "schema", lambda x: x.update(members={}), "members is no list"),
        listed("a member is a text", "schema", lambda x: x["members"].__setitem__(0, "x"), "no object with"),
        listed("backbone is a number", "schema", lambda x: x.update(backbone=3), "records or null"),
    ))  # fmt: skip


def ranges() -> Iterator[Mode]:
    """Values that no head can have."""
    yield Mode(36, "an argument or entry out of range", (
        *each("config", ("config", "embed_dim"), (0, -1, -4, -(1 << 62)), "embed_dim is"),
        *each("config", ("config", "hidden_dim"), (0, -1), "hidden_dim is"),
        *each("config", (*TASK, "dim"), (0, -1), "dim is"),
        *each("config", ("config", "num_levels"), (0, -1), "", fpn),
        *each("config", ("config", "num_layers"), (0, -1), "", fpn),
        *each("config", ("config", "layer_indices"), ([-1, 2], [1], [1, 2, 3], []), "", fpn),
        *each("config", ("config", "fusion"), ("sum", "", "Mean"), "", fpn),
        wrong("config", ("config", "depth"), -1, "depth is -1", dense),
        *each("config", ("config", "weights"), ([1.0], [0.0, 0.0], [-1.0, 2.0], [1e300, 1e300]), "", ensemble),
        wrong("config", ("config", "reduce"), "max", "", ensemble),
        wrong("config", ("config", "members"), [], "versions are told of", ensemble),
        *each("config", ("config", "neck", "scales"), ([], [3.0], [0.0], [-1.0], [1.0, 1.0]), "", pyramid),
        *each("config", (*TASK, "kind"), ("regresion", ""), ""),
        *each("config", (*TASK, "name"), ("", "a b", "1a", "a" * 65), "Task name"),
        *each("schema", ("training", "seed"), (-1, True, 1.5), "training.seed", told),
        *each("schema", ("training", "folds"), (-5, 1.5), "training.folds", told),
        *each("schema", ("license",), ("", "MIT\nevil: yes", "M" * 201, "<script>", " MIT", "\u00a9 me"), "SPDX", told),
        *each("schema", ("tta", "ops"), ("../d6", "", "D6", "x" * 65), "tta.ops", told),
        *each("schema", ("tta", "reduce"), ("median", ""), "tta.reduce", told),
        *each("schema", ("backbone", "adapter", "alpha"), (0, -1.0, 1e7, True), "a number above 0", lora),
        *each("schema", ("backbone", "adapter", "targets"), ("every", ""), "'attention' or 'all'", lora),
        *each("schema", ("backbone", "adapter", "kind"), ("dora", ""), "'lora'", lora),
        *each("config", ("backbone", "adapter", "rank"), (0, -1, 10**9), "does not fit a backbone", lora),
        *each("config", ("backbone", "adapter", "blocks"), (0, -1, 10**9), "does not fit a backbone", lora),
        wrong("tensors", ("backbone", "adapter", "rank"), 2, "expected F32 of rank 2", lora),
        *each("config", ("inputs", "fit"), ("squash", ""), "inputs", told),
        *each("config", ("inputs", "size"), ([0, 32], [-32, 32]), "inputs", told),
        listed("weight -1", "config", lambda x: x["members"][0].update(weight=-1.0), "weights are"),
        listed("weight 1e300", "config", lambda x: x["members"][0].update(weight=1e300), "weights are"),
        listed("fold -1", "schema", lambda x: x["members"][0].update(fold=-1), "fold is -1"),
        listed("fold 10000", "schema", lambda x: x["members"][0].update(fold=10000), "fold is 10000"),
        listed("no members", "schema", lambda x: x.update(members=[]), "no list of 1"),
        listed("reduce max", "config", lambda x: x.update(reduce="max"), "'mean' or 'median'"),
        listed("weights for a median", "config", lambda x: x.update(reduce="median"), "equal ones for a median"),
        listed("no such digest", "schema", lambda x: x["members"][0].update(digest="sha256:0"), "digest is"),
    ))  # fmt: skip


MODES: list[Mode] = [*formats(), *types(), missing(), too_many(), *mistyped(), *ranges(), *SIZES, *STRINGS]
