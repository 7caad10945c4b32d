"""Faults that no change of a header or of random bytes brings about: one row each, with the step that refuses it."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.faults import signed, subjects
from tests.faults.judge import KIB, SECONDS, _memory, limited
from torch import Tensor

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanHead, Task
from dinoneck.checkpoint import read_header

SMALL = "smallest"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 80496\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Not Found</title></head><body>404</body></html>\n"
HIDDEN, OUT, BIAS = "mlps.0.hidden.weight", "mlps.0.out.weight", "mlps.0.hidden.bias"


def sound(name: str = SMALL) -> bytes:
    return subjects.files()[name]


def square() -> HeadCheckpoint:
    """A head with two 4 x 4 matrices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a", dim=4)], hidden_dim=4))


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("run",)


def torch_saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
    return buffer.getvalue()


def announcing(length: int, rest: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + (rest or sound()[8:])


def header(change: Callable[[str], str], name: str = SMALL) -> bytes:
    """The file with another spelling of its header."""
    raw = sound(name)
    text = raw[8 : signed.body_at(raw)].decode().rstrip()
    assert change(text) != text
    return signed.framed(change(text), raw[signed.body_at(raw) :])


def recoded(code: str) -> bytes:
    raw = sound()
    text = raw[8 : signed.body_at(raw)].decode().encode(code)
    return len(text).to_bytes(8, "little") + text + raw[signed.body_at(raw) :]


BYTES: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "nothing": ("header", "0 bytes", lambda: b""),
    **{f"{size} bytes": ("header", f"{size} bytes", partial(bytes, size)) for size in (1, 7, 8)},
    **{f"a header of {n} bytes": ("header", f"{n} bytes", partial(announcing, n))
       for n in (0, 1, 10_000, (1 << 20) + 1, 101_000_000, 1 << 32, (1 << 53) + 1, 1 << 63, (1 << 64) - 8)},
    "a length alone": ("header", "100 bytes", lambda: announcing(100, b"x")),
    "an empty object": ("json", "save_head", lambda: announcing(2, b"{}")),
    "a Git LFS pointer": ("header", "git lfs pull", lambda: LFS),
    "a Git LFS pointer with Windows line ends": ("header", "git lfs pull", lambda: LFS.replace(b"\n", b"\r\n")),
    "a web page": ("header", "web page", lambda: HTML),
    **{f"a pickle, protocol {n}": ("header", "", partial(pickle.dumps, Evil(), n)) for n in (0, 5)},
    "torch.save": ("header", "zip or torch.save", partial(torch_saved, Evil())),
    "torch.save, the old form": ("header", "pickle", lambda: torch_saved(
        Evil(), _use_new_zipfile_serialization=False)),
    "a zip": ("header", "zip", lambda: zipped(sound())),
    "a zip that stores a head": ("header", "zip", lambda: zipped(sound(), zipfile.ZIP_STORED)),
    "16 MiB in a small zip": ("header", "zip", lambda: zipped(bytes(16 << 20))),
    "gzip": ("header", "unpack it first", lambda: gzip.compress(sound(), mtime=0)),
    "64 MiB in a small gzip": ("header", "unpack it first", lambda: gzip.compress(bytes(64 << 20), 1, mtime=0)),
    **{f"{name} behind a head": ("tensors", "appended", partial(lambda tail: sound() + tail, tail))
       for name, tail in {"zero": b"\0", "zip": zipped(b"x"), "pickle": pickle.dumps({}), "page": HTML}.items()},
    **{f"a header in {code}": ("json", "", partial(recoded, code)) for code in ("utf-16", "utf-32", "utf-8-sig")},
    **{f"the header is {text}": ("json", "", partial(signed.framed, text)) for text in ("[]", "3", '"x"', "null")},
    **{f"__metadata__ is {text}": ("json", "", partial(signed.framed, f'{{"__metadata__":{text}}}'))
       for text in ("null", "[]", "{}", '{"dinoneck":3}', '{"other":"{}"}', '{"dinoneck":""}', '{"dinoneck":"[]"}',
                    '{"dinoneck":"{}","format":"pt"}')},
    "no metadata at all": ("schema", "", partial(signed.framed, '{"__metadata__":{"dinoneck":"{}"}}')),
    "plain weights": ("json", "save_head", lambda: safetensors.torch.save(square().state_dict)),
    "10^5 brackets": ("json", "nested", partial(signed.framed, "[" * 100_000)),
    "10^5 objects": ("json", "nested", partial(signed.framed, '{"a":' * 100_000 + "0" + "}" * 100_000)),
    "a tensor twice": ("json", "twice|canonical", lambda: header(lambda text: text[:-1] + text[text.index(',"') :])),
    "__metadata__ twice": ("json", "twice|canonical", lambda: header(lambda text: '{"__metadata__":{},' + text[1:])),
    "a gap between tensors": ("json", "canonical", lambda: header(lambda text: text.replace("[0,", "[4,"))),
    "negative offsets": ("json", "canonical", lambda: header(lambda text: text.replace("[0,", "[-4,"))),
    "an offset of another spelling": ("json", "", lambda: header(lambda text: text.replace("[0,", "[0.0,"))),
    "a space in the header": ("json", "canonical", lambda: header(lambda text: text.replace('},"', '}, "', 1))),
    "bytes in the other order": ("digest", "", lambda: sound()[: signed.body_at(sound())]
        + torch.frombuffer(bytearray(sound()[signed.body_at(sound()) :]), dtype=torch.uint8).view(-1, 4).flip(1).numpy()
        .tobytes()),
}  # fmt: skip


def tensors(change: Callable[[dict[str, Tensor]], object], sign: bool = True) -> bytes:
    """The square head with other tensors under the names that it lists."""
    return signed.forged(square(), lambda meta, state: change(state), sign=sign)


def listed(change: Callable[[Any, dict[str, Tensor]], object]) -> bytes:
    return signed.forged(square(), change)


def retyped(name: str, dtype: torch.dtype, code: str) -> bytes:
    def change(meta: Any, state: dict[str, Tensor]) -> None:
        state[name] = state[name].to(dtype)
        next(row for row in meta["tensors"] if row[0] == name)[1] = code

    return listed(change)


def renamed(new: Callable[[str], str]) -> bytes:
    def change(meta: Any, state: dict[str, Tensor]) -> None:
        for row in meta["tensors"]:
            state[new(row[0])] = state.pop(row[0])
            row[0] = new(row[0])
        meta["tensors"].sort()

    return listed(change)


def wide(width: int) -> bytes:
    """Configuration and list of tensors agree about a width that the file does not hold."""

    def change(meta: Any, state: dict[str, Tensor]) -> None:
        meta["config"]["embed_dim"] = width
        next(row for row in meta["tensors"] if row[0] == HIDDEN)[2] = [4, width]

    return listed(change)


def typed(name: str, subject: str = "pyramid") -> bytes:
    """Another name of a part."""
    content = signed.read(sound(subject))
    if subject == "pyramid":
        content.meta["config"]["neck"]["type"] = name
    else:
        content.meta["config"]["members"][0]["type"] = name
    return signed.write(content.meta, content.chunks)


SIGNED: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    **{f"configuration and tensors ask for {width}": ("tensors", "", partial(wide, width))
       for width in (10**6, 10**12, (1 << 48) - 1, 1 << 48)},
    "2000 members": ("config", "", lambda: members(2000)),
    "3000 more tensors": ("tensors", "", lambda: listed(lambda meta, state: meta["tensors"].extend(
        [f"z{i:04d}", "F32", [0]] for i in range(3000)))),
    "NaN in a weight": ("finite", "", lambda: tensors(lambda state: state[HIDDEN].view(-1)[3:4].fill_(float("nan")))),
    "infinity in a bias": ("finite", "", lambda: tensors(lambda state: state[BIAS][:1].fill_(float("-inf")))),
    "a transposed matrix, the old digest": ("digest", "", lambda: tensors(
        lambda state: state.update({HIDDEN: state[HIDDEN].T.contiguous()}), sign=False)),
    "two matrices exchanged, the old digest": ("digest", "", lambda: tensors(
        lambda state: state.update({HIDDEN: state[OUT], OUT: state[HIDDEN]}), sign=False)),
    "weights as int64": ("tensors", "", partial(retyped, HIDDEN, torch.int64, "I64")),
    "weights as float8": ("tensors", "", partial(retyped, HIDDEN, torch.float8_e4m3fn, "F8_E4M3")),
    "true in place of 1 in the list of tasks": ("config", "", lambda: listed(
        lambda meta, state: meta["tasks"][0].update(weight=True))),
    "a future schema": ("schema", "", lambda: listed(lambda meta, state: meta.update(schema=99))),
    "one weight as bfloat16": ("tensors", "", partial(retyped, HIDDEN, torch.bfloat16, "BF16")),
    "names of DataParallel": ("tensors", "lacks", partial(renamed, "module.{}".format)),
    "names of a compiled module": ("tensors", "lacks", partial(renamed, "_orig_mod.{}".format)),
    "LoRA that no record mentions": ("tensors", "", partial(renamed, "adapter/{}".format)),
    "a name nearly right": ("registry", "Did you mean 'patch_mean'", lambda: listed(
        lambda meta, state: meta.update(head_type="patch_maen"))),
    "an argument nearly right": ("config", "Did you mean 'hidden_dim'", lambda: listed(
        lambda meta, state: meta["config"].update(hiden_dim=4))),
    **{f"{name} as {where}": ("config", "", partial(typed, name, where))
       for name in ("os.system", "antigravity.fly") for where in ("pyramid", "ensemble")},
}  # fmt: skip


def members(count: int) -> bytes:
    content = signed.read(sound("ensemble"))
    content.meta["config"]["members"] = content.meta["config"]["members"][:1] * count
    return signed.write(content.meta, content.chunks)


@pytest.mark.parametrize("name", [*BYTES, *SIGNED])
def test_a_file_is_refused_by_its_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, message, content = (BYTES | SIGNED)[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "h").write_bytes(content())
    monkeypatch.chdir(tmp_path)
    modules, before = set(sys.modules), _memory()
    with limited(5 * SECONDS), pytest.raises(CheckpointError, match=message or None) as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert caught.value.step == step
    assert _memory() - before < KIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h"], "something was run or written"
    assert not {"antigravity", "this"} & (set(sys.modules) - modules)
    try:
        read_header(tmp_path / "h")
    except CheckpointError as error:
        assert error.step == step
