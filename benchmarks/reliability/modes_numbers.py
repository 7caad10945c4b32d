"""Modes 46 to 49: dtypes, numbers that are not finite, tensors without numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.reliability.attempts import load, of_bytes, of_forged, of_saving, same_bits
from benchmarks.reliability.forge import Change, forged, written
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.modes_json import in_header
from benchmarks.reliability.subjects import Subject, ensemble, first_schema, fpn, lora, plain
from dinoneck import HeadCheckpoint, PatchMeanHead, SpatialTuningAdapter, Task, save_head
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.state import TORCH_DTYPES

Meta, State = dict[str, Any], dict[str, Tensor]
BIAS, WEIGHT, OUT = "mlps.0.hidden.bias", "mlps.0.hidden.weight", "mlps.0.out.weight"
FLOATS = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
COUNTS = {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


def rewritten(change: Change, *, digest: bool = True) -> Callable[[], bytes]:
    """The smallest file of schema 1 after a change, by its own rules."""

    def content() -> bytes:
        raw = first_schema()
        file = io.BytesIO(raw)
        header = headers.parse(file, len(raw), "a file of schema 1")
        data = headers.read_data(file, header, "a file of schema 1")
        state = {
            entry.name: torch.frombuffer(buffer, dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
            for entry, buffer in zip(header.tensors, data, strict=True)
        }
        change(header.meta, state)
        return written(header.meta, state, digest=digest)

    return content


def retyped(dtype: torch.dtype, name: str, only: str | None = None) -> Change:
    """Tensors of another dtype, in list and file."""

    def change(meta: Meta, state: State) -> None:
        for row in meta["tensors"]:
            if only in (None, row[0]):
                state[row[0]] = state[row[0]].to(dtype)
                row[1] = name

    return change


def relabelled(name: Any, shape: list[int] | None = None) -> Change:
    """Another dtype in the list; the bytes stay."""

    def change(meta: Meta, state: State) -> None:
        meta["tensors"][0][1] = name
        if shape is not None:
            meta["tensors"][0][2] = shape

    return change


def whole(name: str, dtype: torch.dtype) -> Case:
    """A head of one other dtype is a head: it keeps it."""

    def run(folder: Path) -> None:
        found = load(folder / "h.safetensors", forged(plain(), retyped(dtype, name)))
        same_bits(found, HeadCheckpoint.from_module(plain().build(dtype=dtype)))

    return Case(f"all tensors {name}", HARMLESS, run)


def saved_in(dtype: torch.dtype) -> Callable[[Path], None]:
    """Save a head with one parameter of another dtype."""

    def save(path: Path) -> None:
        head: Any = PatchMeanHead(4, [Task("a")], hidden_dim=4)
        head.mlps[0].hidden.bias = nn.Parameter(head.mlps[0].hidden.bias.detach().to(dtype), requires_grad=False)
        save_head(path, head)

    return save


def dtypes() -> Mode:
    """All that the format knows, and all that it does not."""
    unknown = (
        "F8_E4M3",
        "F8_E5M2",
        "F4",
        "F6_E2M3",
        "I8",
        "I16",
        "U16",
        "U32",
        "U64",
        "C64",
        "f32",
        "float32",
        "",
        "NAN",
    )
    return Mode(46, "another dtype: int64, fp8, bf16, f64", (
        *(of_forged(f"all tensors {name}", "tensors", plain, retyped(dtype, name), "needs") for name,
          dtype in COUNTS.items()),
        *(of_forged(f"one tensor {name}", "tensors", plain, retyped(dtype, name, BIAS)) for name,
          dtype in COUNTS.items()),
        *(of_forged(f"one tensor {name}", "tensors", plain, retyped(dtype, name, BIAS), "a head has one dtype")
          for name, dtype in FLOATS.items()),
        *(of_forged(f"a member {name}", "tensors", ensemble, retyped(dtype, name, f"heads.1.{OUT}"), "one dtype")
          for name, dtype in FLOATS.items()),
        *(of_forged(f"unknown dtype {name or 'without a name'}", "tensors", plain, relabelled(name),
                    "describes no tensor")
          for name in unknown),
        *(of_forged(f"a dtype that is {name!r}", "tensors", plain, relabelled(name), "describes no tensor")
          for name in (None, 5, [], {}, True)),
        of_forged("the same bytes as I32", "tensors", plain, relabelled("I32"), "mixes F32, I32"),
        of_forged("the same bytes as F16, twice as many", "tensors", plain, relabelled("F16", [8])),
        of_forged("the same bytes as U8", "tensors", plain, relabelled("U8", [16]), "mixes F32, U8"),
        of_forged("fewer bytes than the list says", "tensors", plain, lambda meta, state: state.update(
            {BIAS: state[BIAS].half()}), "its header announces"),
        of_forged("half a head read as the other half", "digest", halves, lambda meta, state: [
            row.__setitem__(1, "BF16") for row in meta["tensors"]], digest=False),
        in_header("in the header that other readers see", '"dtype":"F32"', '"dtype":"I32"', "canonically"),
        of_forged("LoRA in F64", "tensors", lora, lambda meta, state: retyped(
            torch.float64, "F64", next(row[0] for row in meta["tensors"] if row[0].startswith("adapter/")))(meta,
                                                                                                            state),
            "expected F32"),
        of_bytes("one tensor of a file of schema 1", "tensors", rewritten(lambda meta, state: retyped(
            torch.float64, "F64", meta["tensors"][0][0])(meta, state))),
        *(whole(name, dtype) for name, dtype in FLOATS.items()),
        *(of_saving(f"saving {dtype}".replace("torch.", ""), "write", saved_in(dtype), "cannot be saved")
          for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int8)),
        *(of_saving(f"saving one parameter in {dtype}".replace("torch.", ""), "tensors", saved_in(dtype))
          for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64)),
    ))  # fmt: skip


def halves() -> HeadCheckpoint:
    """The plain head in float16."""
    return HeadCheckpoint.from_module(plain().build(dtype=torch.float16))


def filled(name: str, value: float, place: int | None = None) -> Change:
    """A number at one place, or everywhere."""

    def change(meta: Meta, state: State) -> None:
        flat = state[name].view(-1)
        flat[place if place is not None else slice(None)] = value

    return change


def bits(pattern: int) -> Change:
    """The first number by its bits."""

    def change(meta: Meta, state: State) -> None:
        state[BIAS].view(torch.int32)[0] = pattern - (1 << 32 if pattern >> 31 else 0)

    return change


def in_dtype(name: str, dtype: torch.dtype, value: float) -> Change:
    """A head of another dtype with one such number."""

    def change(meta: Meta, state: State) -> None:
        retyped(dtype, name)(meta, state)
        filled(OUT, value, -1)(meta, state)

    return change


def saved_with(value: float, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    """Save a head with one such number."""

    def save(path: Path) -> None:
        head: Any = PatchMeanHead(4, [Task("a")], hidden_dim=4)
        with torch.no_grad():
            head.mlps[0].out.weight.view(-1)[-1] = value
        save_head(path, head.to(dtype))

    return save


def everywhere(what: str, value: float) -> Iterator[Case]:
    """One value in every kind of place."""
    for name in (BIAS, WEIGHT, OUT):
        yield of_forged(f"{what} first in {name}", "finite", plain, filled(name, value, 0), f"{name} holds values")
        yield of_forged(f"{what} last in {name}", "finite", plain, filled(name, value, -1), f"{name} holds values")
    yield of_forged(f"{what} everywhere", "finite", plain, filled(WEIGHT, value))
    for name, dtype in FLOATS.items():
        yield of_forged(f"{what} in {name}", "finite", plain, in_dtype(name, dtype, value))
    subjects: dict[str, Subject] = {"ensemble": ensemble, "fpn": fpn, "LoRA": lora}
    for owner, subject in subjects.items():

        def change(meta: Meta, state: State) -> None:
            filled(meta["tensors"][0][0], value, -1)(meta, state)

        yield of_forged(f"{what}: {owner}", "finite", subject, change)
    yield of_forged(f"{what}, the digest left as it was", "digest", plain, filled(OUT, value, 0), digest=False)
    yield of_bytes(f"{what} in a file of schema 1", "finite", rewritten(
        lambda meta, state: filled(meta["tensors"][0][0], value, 0)(meta, state)))  # fmt: skip
    yield of_saving(f"saving {what}", "finite", saved_with(value), "not finite")
    yield of_saving(f"saving {what} in bfloat16", "finite", saved_with(value, torch.bfloat16), "not finite")


def infinite() -> Iterator[Mode]:
    """Numbers that no head may hold, and neighbours that it may."""
    yield Mode(47, "NaN", (
        *everywhere("NaN", math.nan),
        *(of_forged(f"bits {pattern:08x}", "finite", plain, bits(pattern))
          for pattern in (0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFC00000, 0xFFFFFFFF)),
    ))  # fmt: skip
    largest = {"largest": torch.finfo(torch.float32).max, "smallest": 1e-45, "minus zero": -0.0}
    yield Mode(48, "infinity", (
        *everywhere("infinity", math.inf),
        *everywhere("minus infinity", -math.inf),
        of_saving("saving 1e6 in float16, where it is infinity", "finite", saved_with(1e6, torch.float16),
                  "not finite"),
        *(finite_neighbour(what, value) for what, value in largest.items()),
    ))  # fmt: skip


def finite_neighbour(what: str, value: float) -> Case:
    """An odd number that is finite keeps its bits."""

    def run(folder: Path) -> None:
        found = load(folder / "h.safetensors", forged(plain(), filled(BIAS, value, 0))).state_dict[BIAS]
        wanted = plain().state_dict[BIAS].clone()
        wanted[0] = value
        if not torch.equal(found.view(torch.int32), wanted.view(torch.int32)):
            raise Missed(f"{found} for {wanted}")

    return Case(f"the {what} number is kept", HARMLESS, run)


def emptied(*names: str) -> Change:
    """Tensors without numbers, in list and file."""

    def change(meta: Meta, state: State) -> None:
        for row in meta["tensors"]:
            if not names or row[0] in names:
                row[2] = [0, *row[2][1:]]
                state[row[0]] = torch.zeros(row[2])

    return change


def extra_empty(shape: list[int]) -> Change:
    """One tensor more that takes no room."""
    return lambda meta, state: (meta["tensors"].append(["z", "F32", shape]), state.update(z=torch.zeros(shape)))


def grown(path: Path) -> None:
    """Save a head that has grown an empty parameter."""
    head = PatchMeanHead(4, [Task("a")], hidden_dim=4)
    head.extra = nn.Parameter(torch.zeros(0))
    save_head(path, head)


def counters(folder: Path) -> None:
    """Batch statistics count in tensors without dimensions: read bit for bit."""
    head = HeadCheckpoint.from_module(SpatialTuningAdapter(8, 4))
    if not any(not value.ndim for value in head.state_dict.values()):
        raise Missed("the adapter counts nothing")
    head.save(folder / "h")
    same_bits(HeadCheckpoint.load(folder / "h"), head)


def empty() -> Mode:
    """Sides of 0."""
    return Mode(49, "zero-size tensors", (
        of_forged("a vector", "tensors", plain, emptied(BIAS), "needs (4,)"),
        of_forged("a matrix", "tensors", plain, emptied(WEIGHT), "needs (4, 4)"),
        of_forged("all", "tensors", plain, emptied(), "needs"),
        of_forged("of a member of an ensemble", "tensors", ensemble, emptied(f"heads.1.{OUT}"), "needs"),
        of_forged("of LoRA", "tensors", lora, lambda meta, state: emptied(meta["tensors"][0][0])(meta, state)),
        of_forged("one too many", "tensors", plain, extra_empty([0]), "holds z"),
        of_forged("one too many, of 2^47 empty rows", "tensors", plain, extra_empty_rows, "holds z"),
        of_forged("in a configuration that agrees", "config", plain, agreeing, "hidden_dim is 0"),
        of_bytes("a file without any", "tensors", lambda: forged(plain(), lambda meta, state: meta.update(tensors=[])),
                 "lacks"),
        of_bytes("in a file of schema 1", "tensors", rewritten(
            lambda meta, state: emptied(meta["tensors"][0][0])(meta, state))),
        of_saving("saving a module that has grown one", "tensors", grown, "extra"),
        Case("counters without dimensions", HARMLESS, counters),
    ))  # fmt: skip


def extra_empty_rows(meta: Meta, state: State) -> None:
    """A shape with a side of 0 and one of 2^47."""
    meta["tensors"].append(["z", "F32", [1 << 47, 0]])
    state["z"] = torch.zeros(0)


def agreeing(meta: Meta, state: State) -> None:
    """Configuration and tensors agree that nothing is there."""
    meta["config"]["hidden_dim"] = 0
    for row in meta["tensors"]:
        row[2] = [0 if place == (0 if ".hidden." in row[0] else 1) and len(row[2]) > place else side
                  for place, side in enumerate(row[2])]  # fmt: skip
        state[row[0]] = torch.zeros(row[2])


MODES: list[Mode] = [dtypes(), *infinite(), empty()]
