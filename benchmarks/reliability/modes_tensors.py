"""Modes 41 to 52: the tensors are not those of the head, or not its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.reliability.attempts import load, of_bytes, of_folder, of_forged, of_saving, same_bits
from benchmarks.reliability.forge import Change, content_of, forged, relisted, written
from benchmarks.reliability.modes import HARMLESS, Case, Missed, Mode
from benchmarks.reliability.modes_numbers import MODES as NUMBERS
from benchmarks.reliability.modes_numbers import rewritten
from benchmarks.reliability.subjects import ALL, Subject, drawn_lora, ensemble, file_of, fpn, lora, plain
from dinoneck import HeadCheckpoint, PatchMeanHead, Task, load_backbone, save_head

Meta, State = dict[str, Any], dict[str, Tensor]
BIAS, WEIGHT, OUT_BIAS, OUT = "mlps.0.hidden.bias", "mlps.0.hidden.weight", "mlps.0.out.bias", "mlps.0.out.weight"
MEMBERS = ("heads/a-fold0.safetensors", "heads/a-fold1.safetensors")


def without(*names: str) -> Change:
    """Tensors that are gone from list and file."""

    def change(meta: Meta, state: State) -> None:
        meta["tensors"] = [row for row in meta["tensors"] if row[0] not in names]

    return change


def more(name: str, value: Tensor, dtype: str = "F32") -> Change:
    """A tensor more."""

    def change(meta: Meta, state: State) -> None:
        state[name] = value
        meta["tensors"] = sorted([*meta["tensors"], [name, dtype, list(value.shape)]], key=lambda row: str(row[0]))

    return change


def renamed(new: Callable[[str], str], only: str | None = None) -> Change:
    """Other names."""

    def change(meta: Meta, state: State) -> None:
        for row in meta["tensors"]:
            if only in (None, row[0]):
                state[new(row[0])] = state.pop(row[0])
                row[0] = new(row[0])
        meta["tensors"].sort()

    return change


def reshaped(name: str, shape: list[int]) -> Change:
    """A tensor of another shape; its numbers are repeated or left out to fit."""

    def change(meta: Meta, state: State) -> None:
        count = torch.Size(shape).numel()
        flat = state[name].reshape(-1)
        state[name] = flat.repeat(count // max(1, flat.numel()) + 1)[:count].reshape(shape)
        next(row for row in meta["tensors"] if row[0] == name)[2] = shape

    return change


def applied(name: str, change: Change, subject: Subject = lora) -> Case:
    """A LoRA fault that a reader cannot know without the backbone: it is refused when it meets it."""

    def run(folder: Path) -> None:
        head = load(folder / "h.safetensors", forged(subject(), change))
        head.apply_adapter(load_backbone("dinoneck_tiny"))

    return Case(name, "pairing", run)


def adapter_names() -> list[str]:
    """Of LoRA's tensors in the file."""
    return [row[0] for row in lora().meta["tensors"] if row[0].startswith("adapter/")]


def first_pair() -> list[str]:
    """The two LoRA tensors of one layer."""
    return adapter_names()[:2]


def late(change: Callable[[], Change]) -> Change:
    """A change that is made up when it is needed."""
    return lambda meta, state: change()(meta, state)


def presence() -> Iterator[Mode]:
    """Missing, extra and renamed tensors."""
    names = (BIAS, WEIGHT, OUT_BIAS, OUT)
    yield Mode(41, "a tensor is missing", (
        *(of_forged(name, "tensors", plain, without(name), f"lacks {name}") for name in names),
        of_forged("all", "tensors", plain, lambda meta, state: meta.update(tensors=[]), "lacks"),
        of_forged("of a member of an ensemble", "tensors", ensemble, without(f"heads.1.{BIAS}"), f"heads.1.{BIAS}"),
        of_forged("the whole second member", "tensors", ensemble, without(*(f"heads.1.{name}" for name in names)),
                  "lacks heads.1"),
        of_forged("of a neck", "tensors", fpn, late(lambda: without(fpn().meta["tensors"][0][0])), "lacks"),
        of_forged("half of a LoRA pair", "tensors", lora, late(lambda: without(first_pair()[0])), "not complete"),
        of_forged("all LoRA tensors", "tensors", lora, late(lambda: without(*adapter_names())), "not complete"),
        applied("both LoRA tensors of a layer", late(lambda: without(*first_pair()))),
        of_bytes("listed, its bytes gone", "tensors", lambda: file_of(plain)[:-64], "cut short"),
        of_bytes("of a file of schema 1", "tensors", rewritten(lambda meta, state: drop_first(meta))),
    ))  # fmt: skip
    one = torch.zeros(1)
    yield Mode(42, "a tensor too many", (
        of_forged("z", "tensors", plain, more("z", one), "holds z"),
        of_forged("first in order", "tensors", plain, more("A", one), "holds A"),
        of_forged("empty", "tensors", plain, more("z", torch.zeros(0)), "holds z"),
        of_forged("a counter", "tensors", plain, more("num_batches_tracked", torch.tensor(1), "I64"), "holds num"),
        of_forged("of a layer the head has not", "tensors", plain, more("mlps.1.hidden.bias", torch.zeros(4)), "holds"),
        of_forged("in an ensemble", "tensors", ensemble, more("heads.2.x", one), "holds heads.2.x"),
        of_forged("LoRA that no record mentions", "tensors", plain, more("adapter/x.lora_A", torch.zeros(1, 4)),
                  "does not mention"),
        of_forged("half a LoRA pair", "tensors", lora, more("adapter/x.lora_A", torch.zeros(1, 4)), "not complete"),
        applied("a LoRA pair for no layer", lambda meta, state: [
            more(f"adapter/blocks.9.attn.proj.lora_{half}", torch.zeros(1, 4) if half == "A" else torch.zeros(4, 1))(
                meta, state) for half in "AB"]),
        of_bytes("bytes that no list mentions", "tensors", lambda: file_of(plain) + bytes(16), "appended"),
        of_saving("saving a module that has grown one", "tensors", grown, "extra.weight"),
    ))  # fmt: skip
    wrappers = ("module.", "_orig_mod.")
    yield Mode(43, "tensors under other names", (
        *(of_forged(f"prefix {prefix}", "tensors", plain, renamed(lambda name, prefix=prefix: prefix + name),
                    f"its names begin with {prefix!r}: it was saved from a wrapped module") for prefix in wrappers),
        of_forged("prefix _orig_mod.module.", "tensors", plain, renamed(lambda name: f"_orig_mod.module.{name}"),
                  "'_orig_mod.'"),
        of_forged("prefix head.", "tensors", plain, renamed(lambda name: f"head.{name}"), "lacks"),
        of_forged("prefix model.", "tensors", fpn, renamed(lambda name: f"model.{name}"), "lacks"),
        of_forged("one of them", "tensors", plain, renamed(lambda name: f"module.{name}", BIAS), f"lacks {BIAS}"),
        of_forged("capitals", "tensors", plain, renamed(str.upper, OUT), "lacks"),
        of_forged("gamma for weight", "tensors", plain, renamed(lambda name: name.replace("weight", "gamma"), OUT),
                  "lacks"),
        of_forged("a space behind", "tensors", plain, renamed(lambda name: f"{name} ", OUT), "lacks"),
        of_forged("members out of order", "tensors", ensemble,
                  renamed(lambda name: name.replace("heads.1", "heads.2")), "lacks heads.1"),
        of_forged("LoRA as the head's", "tensors", lora, renamed(lambda name: name.removeprefix("adapter/"))),
        of_forged("the head's as LoRA", "tensors", lora,
                  renamed(lambda name: f"adapter/{name.removeprefix('adapter/')}")),
        applied("LoRA of a layer under another's name", renamed(lambda name: name.replace("blocks.0.", "blocks.7."))),
        of_saving("saving a module that DataParallel wraps", "registry", lambda path: save_head(
            path, nn.DataParallel(small_head())), "Save the PatchMeanHead inside it instead"),
    ))  # fmt: skip


def drop_first(meta: Meta) -> None:
    """Take the first tensor off a list."""
    del meta["tensors"][0]


def small_head() -> PatchMeanHead:
    """A head to be saved."""
    return PatchMeanHead(4, [Task("a", dim=4)], hidden_dim=4)


def grown(path: Path) -> None:
    """Save a head with a layer that its configuration does not know."""
    head = small_head()
    head.extra = nn.Linear(1, 1)
    save_head(path, head)


def shapes() -> Iterator[Mode]:
    """Other shapes, and the one change of shape that leaves no trace."""
    wrong = ([2, 2], [1, 4], [4, 1], [], [5], [3], [0], [4, 0], [8], [1, 1, 4])
    yield Mode(44, "a tensor of another shape", (
        *(of_forged(f"(4,) as {shape}", "tensors", plain, reshaped(BIAS, shape), "needs (4,)") for shape in wrong),
        *(of_forged(f"(4, 4) as {shape}", "tensors", plain, reshaped(WEIGHT, shape), "needs (4, 4)")
          for shape in ([16], [2, 8], [8, 2], [4, 4, 1], [1, 4, 4], [4, 5], [4, 8])),
        of_forged("a transposed matrix", "tensors", lora, lambda meta, state: reshaped(
            WEIGHT, list(reversed(state[WEIGHT].shape)))(meta, state), "needs"),
        of_forged("in an ensemble", "tensors", ensemble, reshaped(f"heads.1.{BIAS}", [2, 2]), "needs (4,)"),
        of_forged("LoRA of another rank", "tensors", lora, late(lambda: reshaped(first_pair()[0], [2, 64])),
                  "of rank 1"),
        of_forged("LoRA without its second side", "tensors", lora, late(lambda: reshaped(first_pair()[0], [64])),
                  "of rank"),
        applied("LoRA of another width", late(lambda: reshaped(first_pair()[0], [1, 63]))),
        *(of_forged(f"a row {row!r}", "tensors", plain, lambda meta, state, row=row: meta["tensors"].__setitem__(0,
                                                                                                                 row),
                    "describes no tensor")
          for row in ([], ["a"], ["a", "F32"], ["a", "F32", [4], 1], [4, "F32", [4]], ["", "F32", [4]], "a", None, {},
                      ["__metadata__", "F32", [4]], ["a", "F32", 4], ["a", "F32", None])),
        *(of_forged(f"a side of {side!r}", "tensors", plain, side_of(side), "describes no tensor")
          for side in (-4, 4.0, "4", True, None, [4], 1 << 48)),
        of_bytes("in a file of schema 1", "tensors", rewritten(lambda meta, state: meta["tensors"][0].__setitem__(
            2, [1, *meta["tensors"][0][2]]))),
    ))  # fmt: skip
    yield Mode(45, "a square matrix transposed", (
        *(of_forged(f"{owner}: {name}", "digest", subject, transposed(name), digest=False)
          for owner, subject, name in (("patch_mean", plain, WEIGHT), ("patch_mean", plain, OUT),
                                       ("ensemble", ensemble, f"heads.1.{WEIGHT}"))),
        of_folder("in an ensemble's folder, with a digest of its own", "digest", lambda folder: exchanged_inside(
            folder, transposed(WEIGHT)), "another head"),
        of_bytes("in a file of schema 1", "digest", rewritten(lambda meta, state: turn_over(state), digest=False)),
    ))  # fmt: skip


def side_of(side: Any) -> Change:
    """A shape that is none."""
    return lambda meta, state: meta["tensors"][0].__setitem__(2, [side])


def transposed(name: str) -> Change:
    """The numbers of a matrix, columns first."""
    return lambda meta, state: state.update({name: state[name].T.contiguous()})


def turn_over(state: State) -> None:
    """Every tensor backwards."""
    for name, value in state.items():
        state[name] = value.flip(tuple(range(value.ndim)))


def exchanged_inside(folder: Path, change: Change) -> None:
    """A member of an ensemble's folder becomes another sound head."""
    path = folder / MEMBERS[0]
    meta, state = content_of(HeadCheckpoint.load(path))
    change(meta, state)
    path.write_bytes(written(meta, state))


def swapped(one: str, other: str) -> Change:
    """Two tensors change places."""
    return lambda meta, state: state.update({one: state[other], other: state[one]})


def swap_files(folder: Path) -> None:
    """Two members change places."""
    one, other = (folder / name for name in MEMBERS)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def swap_digests(listing: dict[str, Any]) -> None:
    """The list names each member by the other's digest."""
    one, other = listing["members"]
    one["digest"], other["digest"] = other["digest"], one["digest"]


def swapped_lora(meta: Meta, state: State) -> None:
    """Two LoRA tensors of one shape change places."""
    names = [name for name in state if name.startswith("adapter/")]
    one, other = next(
        (one, other)
        for one in names
        for other in names
        if state[one].shape == state[other].shape and not torch.equal(state[one], state[other])
    )
    swapped(one, other)(meta, state)


def places() -> Iterator[Mode]:
    """Tensors that change places, and tensors that are one."""
    yield Mode(50, "two tensors of one shape swapped", (
        of_forged("two matrices", "digest", plain, swapped(WEIGHT, OUT), digest=False),
        of_forged("two vectors", "digest", plain, swapped(BIAS, OUT_BIAS), digest=False),
        of_forged("of two members", "digest", ensemble, swapped(f"heads.0.{OUT}", f"heads.1.{OUT}"), digest=False),
        of_forged("their names in the list", "tensors", plain, lambda meta, state: meta["tensors"].sort(
            key=lambda row: row[0] != OUT), "not in order"),
        of_forged("two LoRA tensors", "digest", drawn_lora, swapped_lora, digest=False),
        applied("two LoRA tensors, with a right digest", swapped_lora, drawn_lora),
        of_folder("two members of an ensemble", "digest", swap_files, "another head"),
        of_folder("two digests in an ensemble's list", "digest", lambda folder: relisted(folder, swap_digests),
                  "another head"),
        of_folder("two tensors of a member, with a digest of its own", "digest", lambda folder: exchanged_inside(
            folder, swapped(WEIGHT, OUT)), "another head"),
    ))  # fmt: skip
    share = "share their memory"
    yield Mode(51, "shared or tied weights", (
        of_saving("saving one layer twice", "write", tied(lambda a, b: setattr(b, "hidden", a.hidden)), share),
        of_saving("saving one parameter twice", "write", tied(lambda a, b: setattr(b.out, "weight", a.out.weight)),
                  share),
        of_saving("saving two parameters of one head", "write", tied(
            lambda a, b: setattr(a.out, "weight", a.hidden.weight)), share),
        of_saving("saving a matrix and its transpose", "write", tied(
            lambda a, b: setattr(a.out, "weight", nn.Parameter(a.hidden.weight.detach().T))), share),
        of_saving("saving a row of a matrix as a bias", "write", tied(
            lambda a, b: setattr(a.out, "bias", nn.Parameter(a.hidden.weight.detach()[2]))), share),
        of_saving("saving views that overlap", "write", tied(overlapping), share),
        Case("neighbours in one buffer are two tensors", HARMLESS, in_one_buffer),
        Case("equal numbers in two tensors stay two tensors", HARMLESS, equal_numbers),
        Case("two heads from one file share nothing", HARMLESS, two_builds),
    ))  # fmt: skip


def tied(tie: Callable[[Any, Any], object]) -> Callable[[Path], None]:
    """Save a head after two of its parts were tied."""

    def save(path: Path) -> None:
        head: Any = PatchMeanHead(4, [Task("a", dim=4), Task("b", dim=4)], hidden_dim=4)
        tie(*head.mlps)
        save_head(path, head)

    return save


def overlapping(one: Any, other: Any) -> None:
    """Two biases that share two of their numbers."""
    buffer = torch.zeros(6)
    one.out.bias, other.out.bias = nn.Parameter(buffer[:4]), nn.Parameter(buffer[2:])


def in_one_buffer(folder: Path) -> None:
    """As optimizers with flat parameters lay them out."""
    head: Any = small_head()
    buffer = torch.arange(8.0)
    head.mlps[0].hidden.bias, head.mlps[0].out.bias = nn.Parameter(buffer[:4]), nn.Parameter(buffer[4:])
    save_head(folder / "h", head)
    found = HeadCheckpoint.load(folder / "h")
    same_bits(found, HeadCheckpoint.from_module(head))
    if found.state_dict[OUT_BIAS].tolist() != [4.0, 5.0, 6.0, 7.0]:
        raise Missed("other numbers were saved")


def equal_numbers(folder: Path) -> None:
    """Changing one of them leaves the other."""
    raw = forged(plain(), lambda meta, state: state.update({OUT: state[WEIGHT].clone()}))
    built: Any = load(folder / "h.safetensors", raw).build()
    with torch.no_grad():
        built.mlps[0].out.weight.zero_()
    if not torch.equal(built.mlps[0].hidden.weight, plain().state_dict[WEIGHT]):
        raise Missed("two tensors of a file share their memory")


def two_builds(folder: Path) -> None:
    """Changing one head leaves the other and the checkpoint."""
    head = load(folder / "h.safetensors", file_of(plain))
    one, other = head.build(), head.build()
    with torch.no_grad():
        for value in one.state_dict().values():
            value.zero_()
    same_bits(HeadCheckpoint.from_module(other), plain())
    same_bits(head, plain())


def reversed_bytes(value: Tensor) -> Tensor:
    """The numbers as a big-endian machine lays them out."""
    width = value.element_size()
    return (
        value.contiguous()
        .view(-1)
        .view(torch.uint8)
        .view(-1, width)
        .flip(1)
        .reshape(-1)
        .view(value.dtype)
        .reshape(value.shape)
    )


def big_endian(meta: Meta, state: State) -> None:
    """All of them."""
    state.update({name: reversed_bytes(value) for name, value in state.items()})


def as_dtype(dtype: torch.dtype, name: str) -> Callable[[], HeadCheckpoint]:
    """The plain head in another dtype."""

    def make() -> HeadCheckpoint:
        return HeadCheckpoint.from_module(plain().build(dtype=dtype))

    make.__name__ = name
    return make


def endianness() -> Mode:
    """Writers and machines whose bytes lie the other way round."""

    def elsewhere(name: str, step: str, act: Callable[[Path], object]) -> Case:
        def run(folder: Path) -> None:
            (folder / "h.safetensors").write_bytes(file_of(plain))
            with mock.patch("sys.byteorder", "big"):
                act(folder / "h.safetensors")

        return Case(name, step, run, "little-endian")

    halves = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}
    return Mode(52, "a big-endian writer", (
        of_bytes("the header's length", "header", lambda: file_of(plain)[7::-1] + file_of(plain)[8:], "header of"),
        *(of_forged(f"the numbers: {what}", "digest", subject, big_endian, digest=False) for what,
          subject in ALL.items()),
        *(of_forged(f"the numbers in {name}", "digest", as_dtype(dtype, name), big_endian, digest=False)
          for name, dtype in halves.items()),
        of_bytes("numbers of a file of schema 1", "digest", rewritten(big_endian, digest=False)),
        of_folder("a member of an ensemble, with a digest of its own", "digest", lambda folder: exchanged_inside(
            folder, big_endian), "another head"),
        elsewhere("reading on such a machine", "file", HeadCheckpoint.load),
        elsewhere("saving on such a machine", "write", lambda path: save_head(path, small_head())),
    ))  # fmt: skip


MODES: list[Mode] = sorted([*presence(), *shapes(), *NUMBERS, *places(), endianness()], key=lambda mode: mode.number)
