"""Damaged and forged head files: each is refused, by the step that ought to."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanHead, PatchMeanMLP, Task, load_head, save_head
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.read import read_file


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of the smallest head file."""
    path = tmp_path_factory.mktemp("small") / "h"
    torch.manual_seed(0)
    save_head(path, PatchMeanMLP(2, 1, 1))
    return path.read_bytes()


@pytest.fixture(scope="module")
def head() -> HeadCheckpoint:
    torch.manual_seed(0)
    return HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a", dim=4)], hidden_dim=4))


def refused(path: Path, content: bytes, step: str | None = None) -> CheckpointError:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(path)
    if step is not None:
        assert caught.value.step == step, caught.value
    return caught.value


def forged(checkpoint: HeadCheckpoint, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> bytes:
    """A file with changed content whose digest and spelling are right: only the checks before can refuse it."""
    meta, state = copy.deepcopy(checkpoint.meta), {key: value.clone() for key, value in checkpoint.state_dict.items()}
    change(meta, state)
    chunks = [
        state[row[0]].contiguous().view(torch.uint8).numpy().tobytes() for row in meta["tensors"] if row[0] in state
    ]
    meta["digest"] = headers.digest(meta, chunks)
    return headers.build(meta) + b"".join(chunks)


def test_the_forger_writes_good_files(head: HeadCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "h").write_bytes(forged(head, lambda meta, state: None))
    assert HeadCheckpoint.load(tmp_path / "h").meta == head.meta


def test_every_single_bit_flip_is_refused(small: bytes, tmp_path: Path) -> None:
    path, accepted = tmp_path / "h", []
    for bit in range(len(small) * 8):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_file(path)
            accepted.append(bit)
        except CheckpointError:
            pass
    assert not accepted


def test_every_prefix_and_every_appendix_is_refused(small: bytes, tmp_path: Path) -> None:
    for length in range(len(small)):
        refused(tmp_path / "h", small[:length])
    for tail in (b"\0", b" ", b"PK\x05\x06" + bytes(18), small):
        refused(tmp_path / "h", small + tail, "tensors")


@pytest.mark.parametrize(
    ("content", "step", "message"),
    [
        (b"", "header", "0 bytes"),
        (b"1234567", "header", "7 bytes"),
        (bytes(8) + b"{}", "header", "header of 0 bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "header", "header of 1099511627776"),
        ((2**63).to_bytes(8, "little") + b"{}", "header", "header of"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "header", "git lfs pull"),
        (b"<!DOCTYPE html><html>not found</html>", "header", "web page"),
        (pickle.dumps({"a": 1}), "header", "pickle"),
        (gzip.compress(b"x" * 100, mtime=0), "header", "gzip"),
        ((100).to_bytes(8, "little") + b"\xff" * 100, "json", "no sound JSON"),
        ((4).to_bytes(8, "little") + b"[[[[", "json", "no sound JSON"),
    ],
    ids=range(11),
)
def test_other_files_are_named(content: bytes, step: str, message: str, tmp_path: Path) -> None:
    assert message in str(refused(tmp_path / "h", content, step))


def test_pickles_of_torch_and_plain_safetensors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    assert "zip or torch.save" in str(refused(tmp_path / "h", buffer.getvalue(), "header"))
    from safetensors.torch import save

    assert "plain weights, not a head file" in str(refused(tmp_path / "h", save({"a": torch.zeros(1)}), "json"))


def with_header(text: str, body: bytes = b"") -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + body


@pytest.mark.parametrize(
    "text",
    [
        '{"__metadata__":{"dinoneck":"{}"},"__metadata__":{"dinoneck":"{}"}}',
        '{"a":1,"a":2}',
        '{"__metadata__":{"dinoneck":"{\\"a\\":1,\\"a\\":2}"}}',
        '{"__metadata__":{"dinoneck":"{\\"a\\":NaN}"}}',
        '{"__metadata__":{"dinoneck":"{\\"a\\":1e999}"}}',
        '{"__metadata__":{"dinoneck":"{\\"a\\":123456789012345678901234567890}"}}',
        '{"__metadata__":{"dinoneck":"{\\"a\\":\\"\\\\ud800\\"}"}}',
        '{"__metadata__":{"dinoneck":"{ }"}}',
        '{"__metadata__":{"dinoneck":"[]"}}',
        '{"__metadata__":{"dinoneck":3}}',
        '{"__metadata__":{"dinoneck":"{}","other":"x"}}',
        '{"__metadata__":[]}',
        "{}",
        "[]",
        "3",
        "[" * 100_000,
        '{"__metadata__":{"dinoneck":"' + "[" * 100_000 + '"}}',
    ],
    ids=range(17),
)
def test_unsound_json(text: str, tmp_path: Path) -> None:
    refused(tmp_path / "h", with_header(text), "json")


def test_headers_larger_than_the_cap(tmp_path: Path) -> None:
    refused(tmp_path / "h", with_header(json.dumps({"a": "x" * (1 << 20)})), "header")


def put(key: str, value: object) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    return lambda meta, state: meta.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        (put("format", "other"), "schema", "'other'"),
        (put("schema", 0), "schema", "schema is 0"),
        (put("schema", -1), "schema", "-1"),
        (put("schema", "1"), "schema", "'1'"),
        (put("schema", True), "schema", "True"),
        (put("schema", 3), "schema", "install that version or a later one"),
        (put("colour", 1), "schema", "colour"),
        (lambda meta, state: meta.pop("extra"), "schema", "extra"),
        (put("config", []), "schema", "config is list"),
        (put("backbone", "x"), "schema", "backbone is str"),
        (put("head_type", "patch_maen"), "registry", "Did you mean 'patch_mean'?"),
        (put("head_type", "os.system"), "registry", "not registered"),
        (put("head_type", "../../etc/passwd"), "registry", "not registered"),
        (lambda meta, state: meta["config"].pop("embed_dim"), "config", "lacks embed_dim"),
        (lambda meta, state: meta["config"].update(colour=1), "config", "no argument 'colour'"),
        (lambda meta, state: meta["config"].update(embed_dim="4"), "config", "expected int"),
        (lambda meta, state: meta["config"].update(embed_dim=0), "config", "embed_dim is 0"),
        (lambda meta, state: meta["config"].update(embed_dim=-4), "config", "embed_dim is -4"),
        (lambda meta, state: meta["config"].update(embed_dim=10**12), "tensors", "needs (4, 1000000000000)"),
        (lambda meta, state: meta["config"].update(embed_dim=10**19), "config", "refused"),
        (lambda meta, state: meta["config"].pop("hidden_dim"), "config", "normal form"),
        (put("tasks", []), "config", "tasks"),
        (put("inputs", {"size": 3}), "config", "inputs"),
        (lambda meta, state: meta["tensors"].pop(), "tensors", "lacks mlps.0.out.weight"),
        (lambda meta, state: meta["tensors"].append(["z", "F32", [0]]), "tensors", "holds z"),
        (lambda meta, state: meta["tensors"].reverse(), "tensors", "not in order"),
        (lambda meta, state: meta["tensors"].append(meta["tensors"][-1]), "tensors", "twice"),
        (lambda meta, state: meta["tensors"][0].append(1), "tensors", "describes no tensor"),
        (lambda meta, state: meta["tensors"][0].__setitem__(1, "F8_E4M3"), "tensors", "describes no tensor"),
        (lambda meta, state: meta["tensors"][0].__setitem__(2, [-4]), "tensors", "describes no tensor"),
        (lambda meta, state: meta["tensors"][0].__setitem__(2, [4.0]), "tensors", "describes no tensor"),
        (lambda meta, state: meta["tensors"][0].__setitem__(2, [2, 2]), "tensors", "needs (4,)"),
    ],
)
def test_forged_metadata(head: HeadCheckpoint, change: Any, step: str, message: str, tmp_path: Path) -> None:
    def guarded(meta: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        change(meta, state)

    try:
        content = forged(head, guarded)
    except CheckpointError as error:  # the forger's own tool already refuses to spell such a header
        assert error.step == step
        assert message in str(error)
        return
    assert message in str(refused(tmp_path / "h", content, step))


def retyped(
    dtype: torch.dtype, name: str, everywhere: bool
) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(meta: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        for row in meta["tensors"] if everywhere else meta["tensors"][:1]:
            state[row[0]] = state[row[0]].to(dtype)
            row[1] = name

    return change


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (retyped(torch.int64, "I64", True), "tensors"),
        (retyped(torch.int64, "I64", False), "tensors"),
        (retyped(torch.bfloat16, "BF16", False), "tensors"),
        (retyped(torch.float64, "F64", False), "tensors"),
        (lambda meta, state: state["mlps.0.out.bias"].fill_(torch.nan), "finite"),
        (lambda meta, state: state["mlps.0.out.bias"].fill_(-torch.inf), "finite"),
    ],
)
def test_forged_tensors(head: HeadCheckpoint, change: Any, step: str, tmp_path: Path) -> None:
    refused(tmp_path / "h", forged(head, change), step)


def test_swapped_or_transposed_tensors_need_the_digest(head: HeadCheckpoint, tmp_path: Path) -> None:
    """Same shapes, other content, old digest: only the digest can tell."""

    def old_digest(change: Callable[[dict[str, torch.Tensor]], None]) -> bytes:
        state = {key: value.clone() for key, value in head.state_dict.items()}
        change(state)
        chunks = [state[row[0]].contiguous().view(torch.uint8).numpy().tobytes() for row in head.meta["tensors"]]
        return headers.build(head.meta) + b"".join(chunks)

    def transpose(state: dict[str, torch.Tensor]) -> None:
        state["mlps.0.hidden.weight"] = state["mlps.0.hidden.weight"].T

    def swap(state: dict[str, torch.Tensor]) -> None:
        one, other = "mlps.0.hidden.weight", "mlps.0.out.weight"
        state[one], state[other] = state[other], state[one]

    refused(tmp_path / "h", old_digest(transpose), "digest")
    refused(tmp_path / "h", old_digest(swap), "digest")


def test_prefixes_of_wrapped_modules_are_named(head: HeadCheckpoint, tmp_path: Path) -> None:
    def wrap(meta: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
        for row in meta["tensors"]:
            state[f"_orig_mod.{row[0]}"] = state.pop(row[0])
            row[0] = f"_orig_mod.{row[0]}"

    assert "'_orig_mod.'" in str(refused(tmp_path / "h", forged(head, wrap), "tensors"))


def test_offsets_are_not_taken_from_the_file(head: HeadCheckpoint, tmp_path: Path) -> None:
    """Overlapping, gapped and negative offsets: the header must be the one that the metadata implies."""
    content = forged(head, lambda meta, state: None)
    for old, new in ((b"[0,16]", b"[1,17]"), (b"[0,16]", b"[-1,1]"), (b"[16,80]", b"[00,80]")):
        assert content.count(old) >= 1, old
        refused(tmp_path / "h", content.replace(old, new.ljust(len(old))), None)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "no", "there is no head file"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(CheckpointError, match=message):
            HeadCheckpoint.load(path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(CheckpointError, match="no regular file"):
        HeadCheckpoint.load(fifo)


def test_every_failure_is_one_family(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no head file"):
        load_head(tmp_path / "no")


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """In a process that may write 64 KiB per file, over a good file."""
    path = tmp_path / "h"
    save_head(path, PatchMeanMLP(4, 2))
    before = path.read_bytes()
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from dinoneck import PatchMeanMLP, CheckpointError, save_head\n"
        "head = PatchMeanMLP(1024, 128)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (65536, {resource.RLIM_INFINITY}))\n"
        "try:\n    save_head(sys.argv[1], head)\nexcept CheckpointError as error:\n    print(error.step, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("write")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["h"]


@pytest.mark.slow
def test_kill_minus_9_never_leaves_half_a_file(tmp_path: Path) -> None:
    """A process saves two heads in turn and is killed at 60 random moments; the file always is one of them."""
    path = tmp_path / "h"
    script = (
        "import sys, torch\n"
        "from dinoneck import HeadCheckpoint, PatchMeanMLP\n"
        "heads = []\n"
        "for seed in (0, 1):\n    torch.manual_seed(seed)\n"
        "    heads.append(HeadCheckpoint.from_module(PatchMeanMLP(1536, 512)))\n"
        "heads[0].save(sys.argv[1])\nprint(heads[0].meta['digest'], heads[1].meta['digest'], flush=True)\n"
        "while True:\n    for head in heads:\n        head.save(sys.argv[1])\n"
    )
    known: set[str] = set()
    random = __import__("random").Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        known |= set(process.stdout.readline().split())
        for _ in range(5):
            time.sleep(random.uniform(0.001, 0.05))
            assert HeadCheckpoint.load(path).meta["digest"] in known  # a reader beside the writer
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert HeadCheckpoint.load(path).meta["digest"] in known
    assert len(known) == 2
