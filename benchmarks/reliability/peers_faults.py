"""The faults of the table: what is done to a saved head, by hand and by common tools, whoever's format it is."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.reliability import forge
from benchmarks.reliability.peers_loaders import ConfigChange, Loader, change_config

MARK = "code-was-run"
_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)
_HTML = "<!DOCTYPE html><html><head><title>404</title></head><body>Sorry, we can't find that.</body></html>\n"
Tensors = dict[str, Tensor]


class NotApplicable(Exception):
    """This loader has nothing that this could be done to."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: in the table.
        run: does it to a folder; :class:`NotApplicable` if there is nothing to do it to.
        forged: the same inside a dinoneck file whose digest is right again; None where that makes a sound file of
            another head (any change of values), or where nothing is left to sign.
    """

    name: str
    run: Callable[[Loader, Path], object]
    forged: forge.Change | None = None


class _Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


# -- files ------------------------------------------------------------------------------------------------


def on_bytes(change: Callable[[bytes], bytes]) -> Callable[[Loader, Path], None]:
    """A fault of the file with the tensors, as bytes."""

    def run(loader: Loader, folder: Path) -> None:
        path = folder / loader.weights
        path.write_bytes(change(path.read_bytes()))

    return run


def flip_weight(loader: Loader, folder: Path) -> None:
    """One bit in the exponent of the first weight of the square matrix."""
    path = folder / loader.weights
    content = bytearray(path.read_bytes())
    wanted = tensors_of(path)[loader.square].numpy().tobytes()
    content[content.index(wanted) + 2] ^= 0x80
    path.write_bytes(content)


def flip_name(loader: Loader, folder: Path) -> None:
    """One bit in the name of the square matrix, where the file lists it."""
    path = folder / loader.weights
    content = bytearray(path.read_bytes())
    content[content.index(loader.square.encode()) + 1] ^= 1
    path.write_bytes(content)


def twice(loader: Loader, folder: Path) -> None:
    """A tensor's key twice in the JSON header, first with the bytes of another."""
    path = folder / loader.weights
    if path.suffix != ".safetensors":
        raise NotApplicable
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    first = f'{{"{loader.square}":{json.dumps(header[loader.twin], separators=(",", ":"))},'
    path.write_bytes(forge.with_header(first + content[8:end].decode().rstrip()[1:], content[end:]))


def pickled(loader: Loader, folder: Path) -> None:
    """A pickle under the file's name, which runs code when it is read as one."""
    (folder / loader.weights).write_bytes(pickle.dumps(_Runs(folder / MARK)))


def zipped_pickle(loader: Loader, folder: Path) -> None:
    """A file of torch.save with an object that runs code."""
    path = folder / loader.weights
    torch.save({**tensors_of(path), "extra": _Runs(folder / MARK)}, path)


def zipped(content: bytes) -> bytes:
    """The file inside a zip archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("head", content)
    return archive.getvalue()


# -- tensors ----------------------------------------------------------------------------------------------


def tensors_of(path: Path) -> Tensors:
    """The tensors in a file of either kind; not mapped, since the file is written over."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load(path.read_bytes())
    return torch.load(path, weights_only=True)


def on_tensors(change: Callable[[Loader, Tensors], object]) -> Callable[[Loader, Path], None]:
    """A fault of the tensors, written by the format's own library; the file's metadata stays."""

    def run(loader: Loader, folder: Path) -> None:
        path = folder / loader.weights
        state = {key: value.clone() for key, value in tensors_of(path).items()}
        change(loader, state)
        if path.suffix != ".safetensors":
            torch.save(state, path)
            return
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata()
        safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=told)

    return run


def cast(dtype: torch.dtype) -> Callable[[Loader, Tensors], None]:
    """The square matrix in another dtype."""

    def change(loader: Loader, state: Tensors) -> None:
        state[loader.square] = state[loader.square].to(dtype)

    return change


def planted(value: float) -> Callable[[Loader, Tensors], None]:
    """One value in the square matrix."""

    def change(loader: Loader, state: Tensors) -> None:
        state[loader.square][0, 0] = value

    return change


def narrowed(loader: Loader, state: Tensors) -> None:
    state[loader.square] = state[loader.square][:, :-1]


def transposed(loader: Loader, state: Tensors) -> None:
    state[loader.square] = state[loader.square].T


def exchanged(loader: Loader, state: Tensors) -> None:
    state[loader.square], state[loader.twin] = state[loader.twin], state[loader.square]


def layers_exchanged(loader: Loader, state: Tensors) -> None:
    one, other = loader.layers
    for key in [key for key in state if key.startswith(one)]:
        twin = other + key.removeprefix(one)
        state[key], state[twin] = state[twin], state[key]


def wrapped(loader: Loader, state: Tensors) -> None:
    for key in list(state):
        state[f"module.{key}"] = state.pop(key)


# -- configuration ----------------------------------------------------------------------------------------


def on_config(which: str) -> Callable[[Loader, Path], None]:
    """A fault of the configuration."""

    def run(loader: Loader, folder: Path) -> None:
        change: ConfigChange | None = getattr(loader, which)
        if change is None:
            raise NotApplicable
        change_config(loader, folder, change)

    return run


def config_file(change: Callable[[Path], object], metadata: Callable[[str], dict[str, str] | None]) -> Any:
    """A fault of the whole configuration file; of dinoneck's metadata, which stands in its place."""

    def run(loader: Loader, folder: Path) -> None:
        if loader.config is not None:
            change(folder / loader.config)
            return
        if loader.unknown is None:
            raise NotApplicable
        path = folder / loader.weights
        state = tensors_of(path)
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata()["dinoneck"]
        safetensors.torch.save_file(state, path, metadata=metadata(told))

    return run


def other_head(loader: Loader, folder: Path) -> Tensor:
    """The weights of a head of another setting in the same folder; returns what they ought to say."""
    beside = folder / "other"
    beside.mkdir()
    expected = loader.save(beside, 2, True)
    (beside / loader.weights).replace(folder / loader.weights)
    return expected


def other_base(loader: Loader, folder: Path) -> None:
    """Marks that the head is to be put on other base weights."""
    if loader.other_base is None:
        raise NotApplicable


# -- the same behind a right digest -----------------------------------------------------------------------


def row_of(meta: dict[str, Any], name: str) -> list[Any]:
    """How a header lists a tensor."""
    return next(row for row in meta["tensors"] if row[0] == name)


def signed_missing(meta: dict[str, Any], state: Tensors) -> None:
    meta["tensors"].remove(row_of(meta, "out.bias"))


def signed_renamed(meta: dict[str, Any], state: Tensors) -> None:
    for row in meta["tensors"]:
        state[f"module.{row[0]}"] = state.pop(row[0])
        row[0] = f"module.{row[0]}"


def signed_extra(meta: dict[str, Any], state: Tensors) -> None:
    state["zzz"] = torch.zeros(3)
    meta["tensors"].append(["zzz", "F32", [3]])


def signed_shape(meta: dict[str, Any], state: Tensors) -> None:
    state["hidden.weight"] = state["hidden.weight"][:, :-1].contiguous()
    row_of(meta, "hidden.weight")[2] = list(state["hidden.weight"].shape)


def signed_cast(dtype: torch.dtype, name: str) -> forge.Change:
    def change(meta: dict[str, Any], state: Tensors) -> None:
        state["hidden.weight"] = state["hidden.weight"].to(dtype)
        row_of(meta, "hidden.weight")[1] = name

    return change


def signed_value(value: float) -> forge.Change:
    return lambda meta, state: state["hidden.weight"].__setitem__((0, 0), value)


def signed_config(key: str, value: Any) -> forge.Change:
    return lambda meta, state: meta["config"].__setitem__(key, value)


FAULTS = (
    Fault("empty file", on_bytes(lambda data: b"")),
    Fault("cut in the middle", on_bytes(lambda data: data[: len(data) // 2])),
    Fault("last 16 bytes missing", on_bytes(lambda data: data[:-16])),
    Fault("16 bytes appended", on_bytes(lambda data: data + bytes(16))),
    Fault("one bit flipped in a weight", flip_weight),
    Fault("one bit flipped in a name", flip_name),
    Fault("key twice in the header", twice),
    Fault("Git LFS pointer", on_bytes(lambda data: _LFS.encode())),
    Fault("web page", on_bytes(lambda data: _HTML.encode())),
    Fault("pickle that runs code", pickled),
    Fault("torch.save file that runs code", zipped_pickle),
    Fault("file inside a zip", on_bytes(zipped)),
    Fault("tensor missing", on_tensors(lambda loader, state: state.pop(loader.square)), signed_missing),
    Fault("all names with `module.`", on_tensors(wrapped), signed_renamed),
    Fault("tensor too many", on_tensors(lambda loader, state: state.update(zzz=torch.zeros(3))), signed_extra),
    Fault("wrong shape", on_tensors(narrowed), signed_shape),
    Fault("square matrix transposed", on_tensors(transposed)),
    Fault("two tensors of one shape exchanged", on_tensors(exchanged)),
    Fault("two layers exchanged", on_tensors(layers_exchanged)),
    Fault("weight as int64", on_tensors(cast(torch.int64)), signed_cast(torch.int64, "I64")),
    Fault("weight as float8", on_tensors(cast(torch.float8_e4m3fn)), signed_cast(torch.float8_e4m3fn, "F8_E4M3")),
    Fault("one weight as bfloat16", on_tensors(cast(torch.bfloat16)), signed_cast(torch.bfloat16, "BF16")),
    Fault("NaN in a weight", on_tensors(planted(torch.nan)), signed_value(torch.nan)),
    Fault("infinity in a weight", on_tensors(planted(torch.inf)), signed_value(torch.inf)),
    Fault("config: unknown key", on_config("unknown"), signed_config("unknown_option", 1)),
    Fault("config: version of the future", on_config("newer"), lambda meta, state: meta.update(schema=999)),
    Fault("config: value changed, shapes fit", on_config("value")),
    Fault("config: value changed, shapes do not fit", on_config("size"), signed_config("hidden_dim", 9)),
    Fault("config missing", config_file(lambda path: path.unlink(), lambda told: None)),
    Fault(
        "config cut in the middle",
        config_file(
            lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
            lambda told: {"dinoneck": told[: len(told) // 2]},
        ),
    ),
    Fault("weights of a head with another setting", other_head),
    Fault("other base weights", other_base),
)
