"""What reading a head file refuses, and using the LoRA weights and the backbone that it names.

Files that are not head files, damaged ones, and forged ones, whose header is canonical and whose
digest fits.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import nn

from dinoneck import (
    Backbone,
    CheckpointError,
    FPNHead,
    HeadCheckpoint,
    load_head,
)
from tests import kit
from tests.faults import signed
from tests.faults.signed import Meta
from tests.refusals import Row

Chunks = dict[str, bytes]
Call = Callable[[Path], Any]
HIDDEN = "mlps.0.hidden.weight"
LORA_A = "adapter/blocks.0.attn.qkv.lora_A"
LORA_B = "adapter/blocks.0.attn.qkv.lora_B"
WEB_PAGE = b"<!DOCTYPE html>\n<html>404</html>\n"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\nsize 80496\n"
ZIP = b"PK\x03\x04" + bytes(60)
PICKLE = b"\x80\x02}q\x00." + bytes(60)
GZIP = b"\x1f\x8b\x08\x00" + bytes(60)


def bytes_of(backbone: Backbone) -> bytes:
    """The file of a small head on this backbone."""
    with tempfile.TemporaryDirectory() as folder:
        return kit.saved_head(Path(folder, "h.safetensors"), backbone=backbone).read_bytes()


@cache
def sound() -> bytes:
    return bytes_of(kit.backbone())


@cache
def sound_with_lora() -> bytes:
    return bytes_of(kit.backbone().add_lora(2))


def sound_file(folder: Path, name: str = "h.safetensors") -> Path:
    (folder / name).write_bytes(sound())
    return folder / name


# files


def content(written: bytes) -> Call:
    """Load a file of these bytes."""

    def call(folder: Path) -> Any:
        (folder / "h.safetensors").write_bytes(written)
        return HeadCheckpoint.load(folder / "h.safetensors")

    return call


def header(text: str) -> Call:
    """Load a file with this JSON header and no tensors."""
    return content(signed.framed(text))


def metadata(text: str) -> Call:
    """Load a file without tensors whose metadata is this text."""
    return header(signed.canonical({"__metadata__": {"dinoneck": text}}))


def edited(edit: Callable[[bytes], bytes]) -> Call:
    """Load a sound file whose bytes were edited."""
    return lambda folder: content(edit(sound()))(folder)


def last_bit_flipped(file: bytes) -> bytes:
    return file[:-1] + bytes([file[-1] ^ 1])


def half_of_the_header(file: bytes) -> bytes:
    return file[:200]


def last_byte_missing(file: bytes) -> bytes:
    return file[:-1]


def one_byte_more(file: bytes) -> bytes:
    return file + b"\0"


def eight_more_spaces(file: bytes) -> bytes:
    """Pad the header more than its spelling does."""
    body = signed.body_at(file)
    return signed.framed(file[8:body].decode() + " " * 8, file[body:])


def spaced_metadata(file: bytes) -> bytes:
    body = signed.body_at(file)
    return signed.framed(file[8:body].decode().replace(r"{\"backbone\":", r"{ \"backbone\":"))


def plain_weights(folder: Path) -> Any:
    save_file({"weight": torch.zeros(2)}, folder / "h.safetensors")
    return HeadCheckpoint.load(folder / "h.safetensors")


def larger_than_any(folder: Path) -> Any:
    """Load a sparse file of 17 GiB."""
    file = folder / "h.safetensors"
    file.touch()
    os.truncate(file, 17 << 30)
    return HeadCheckpoint.load(file)


def two_in_a_folder(folder: Path) -> Any:
    sound_file(folder, "fold0.safetensors")
    sound_file(folder, "fold1.safetensors")
    return HeadCheckpoint.load(folder)


def other_class(folder: Path) -> Any:
    return FPNHead.from_pretrained(sound_file(folder))


def file_in_the_way(folder: Path) -> None:
    (folder / "heads").write_text("notes")
    kit.head().save_pretrained(folder / "heads", backbone=kit.backbone())


# headers


def forged(
    change: Callable[[Meta, Chunks], object], file: Callable[[], bytes] = sound
) -> Callable[[Path], HeadCheckpoint]:
    """Load a file whose metadata, or whose tensors' bytes, were changed; the digest fits."""

    def call(folder: Path) -> HeadCheckpoint:
        meta, chunks = signed.read(file())
        change(meta, chunks)
        (folder / "h.safetensors").write_bytes(signed.write(meta, chunks))
        return HeadCheckpoint.load(folder / "h.safetensors")

    return call


def newer_schema(meta: Meta, chunks: Chunks) -> None:
    meta["schema"] = 7
    meta["created_by"] = {"dinoneck": "9.8.7"}


def other_format(meta: Meta, chunks: Chunks) -> None:
    meta["format"] = "dinoneck.neck"


def newer_schema_of_unknown_version(meta: Meta, chunks: Chunks) -> None:
    meta["schema"] = 7
    meta["created_by"] = None


def licence_of_another_part(meta: Meta, chunks: Chunks) -> None:
    meta["licences"] = {"neck": "MIT"}


def unknown_entry(meta: Meta, chunks: Chunks) -> None:
    meta["versions"] = {}


def missing_entry(meta: Meta, chunks: Chunks) -> None:
    del meta["extra"]


def long_extra(meta: Meta, chunks: Chunks) -> None:
    meta["extra"]["note"] = "x" * 20_000


def tensors_in_another_order(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"].reverse()


def tensor_listed_twice(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"].insert(0, meta["tensors"][0])


def tensor_called_metadata(folder: Path) -> Any:
    meta, _ = signed.read(sound())
    meta["tensors"] = [["__metadata__", "F32", [1]]]
    return metadata(signed.canonical(meta))(folder)


def unknown_type_of_tensor(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"][0][1] = "F8"


def unknown_head_type(meta: Meta, chunks: Chunks) -> None:
    meta["head_type"] = "patch_maen"


def unknown_argument(meta: Meta, chunks: Chunks) -> None:
    meta["config"]["colour"] = 1


def left_out_default(meta: Meta, chunks: Chunks) -> None:
    del meta["config"]["hidden_dim"]


def other_tasks(meta: Meta, chunks: Chunks) -> None:
    meta["tasks"][0]["unit"] = "kg"


def endless_depth(meta: Meta, chunks: Chunks) -> None:
    """Describe a head of a million blocks."""
    meta["head_type"] = "dense"
    meta["config"] = {
        "embed_dim": 64,
        "tasks": [{"$": "Task", "name": "cover", "kind": "dense"}],
        "depth": 1_000_000,
    }


def unusable_inputs(meta: Meta, chunks: Chunks) -> None:
    meta["inputs"]["resize"] = "squash"


def missing_tensor(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"] = [row for row in meta["tensors"] if row[0] != HIDDEN]
    del chunks[HIDDEN]


def additional_tensor(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"].append(["zz", "F32", [1]])
    chunks["zz"] = bytes(4)


def listed(meta: Meta, name: str) -> list[Any]:
    """The row of a tensor in the list of tensors: its name, dtype and shape."""
    rows = {row[0]: row for row in meta["tensors"]}
    row: list[Any] = rows[name]
    return row


def weight_of_integers(meta: Meta, chunks: Chunks) -> None:
    """The hidden weight has its number of bytes as an int32."""
    listed(meta, HIDDEN)[1] = "I32"


def two_dtypes(meta: Meta, chunks: Chunks) -> None:
    listed(meta, HIDDEN)[1] = "BF16"
    chunks[HIDDEN] = chunks[HIDDEN][::2]


def turned_weight(meta: Meta, chunks: Chunks) -> None:
    listed(meta, HIDDEN)[2].reverse()


def nan_weight(meta: Meta, chunks: Chunks) -> None:
    chunks[HIDDEN] = b"\xff" * len(chunks[HIDDEN])


def backbone_of_another_width(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["embed_dim"] = 2 * meta["backbone"]["embed_dim"]


def images_for_other_patches(meta: Meta, chunks: Chunks) -> None:
    meta["inputs"]["patch_size"] = 14


def layer_below_the_depth(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["layers"] = [6]


def short_probe(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["probe"].pop()


def null_depth(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["depth"] = None


def unknown_layers(meta: Meta, chunks: Chunks) -> None:
    del meta["backbone"]["layers"]


def mistyped_views(meta: Meta, chunks: Chunks) -> None:
    meta["tta"] = {"ops": "flip4", "reduce": "median"}


# a checkpoint whose public attributes were changed


def loaded(folder: Path) -> HeadCheckpoint:
    return HeadCheckpoint.load(sound_file(folder))


def saved_with_another_shape(folder: Path) -> None:
    checkpoint = loaded(folder)
    checkpoint.state_dict[HIDDEN] = torch.zeros(3, 64)
    checkpoint.save(folder / "h.safetensors")


def saved_with_other_values(folder: Path) -> None:
    checkpoint = loaded(folder)
    checkpoint.state_dict[HIDDEN].add_(1)
    checkpoint.save(folder / "h.safetensors")


def built_without_a_tensor(folder: Path) -> nn.Module:
    checkpoint = loaded(folder)
    del checkpoint.state_dict[HIDDEN]
    return checkpoint.build()


def built_of_another_configuration(folder: Path) -> nn.Module:
    checkpoint = loaded(folder)
    checkpoint.meta["config"] = {"embed_dim": 64}
    return checkpoint.build()


def saved_into_no_folder(folder: Path) -> None:
    HeadCheckpoint.from_module(kit.head()).save(folder / "no" / "h.safetensors")


def saved_over_a_protected_file(folder: Path) -> None:
    file = sound_file(folder)
    file.chmod(0o444)
    HeadCheckpoint.load(file).save(file)


def saved_over_a_folder(folder: Path) -> None:
    (folder / "h.safetensors").mkdir()
    HeadCheckpoint.from_module(kit.head()).save(folder / "h.safetensors")


def saved_over_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "h.safetensors")
    HeadCheckpoint.from_module(kit.head()).save(folder / "h.safetensors")


def saved_where_no_file_is_renamed(folder: Path) -> None:
    not_supported = OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    with patch.object(Path, "replace", side_effect=not_supported):
        HeadCheckpoint.from_module(kit.head()).save(folder / "h.safetensors")


def read_from_a_pipe(folder: Path) -> nn.Module:
    os.mkfifo(folder / "h.safetensors")
    return load_head(folder / "h.safetensors")


def read_from_a_folder(folder: Path) -> Any:
    (folder / "h.safetensors").mkdir()
    return load_head(folder)


# LoRA weights


def forged_lora(change: Callable[[Meta, Chunks], object]) -> Call:
    return forged(change, sound_with_lora)


def applied(change: Callable[[Meta, Chunks], object]) -> Call:
    """Load a file with changed LoRA weights, and put them into the backbone that it names."""
    return lambda folder: forged_lora(change)(folder).load_backbone()


def lora_without_a_record(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["adapter"] = None


def lora_of_a_large_rank(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["adapter"]["rank"] = 65


def lora_in_more_blocks(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["adapter"]["blocks"] = 7


def lora_of_another_rank(meta: Meta, chunks: Chunks) -> None:
    meta["backbone"]["adapter"]["rank"] = 3


def half_of_lora(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"] = [row for row in meta["tensors"] if row[0] != LORA_B]
    del chunks[LORA_B]


def no_lora(meta: Meta, chunks: Chunks) -> None:
    meta["tensors"] = [row for row in meta["tensors"] if not row[0].startswith("adapter/")]
    for name in [name for name in chunks if name.startswith("adapter/")]:
        del chunks[name]


def lora_in_float16(meta: Meta, chunks: Chunks) -> None:
    listed(meta, LORA_A)[1] = "F16"
    chunks[LORA_A] = chunks[LORA_A][::2]


def lora_with_three_axes(meta: Meta, chunks: Chunks) -> None:
    listed(meta, LORA_A)[2] = [2, 8, 8]


def other_lora_values(meta: Meta, chunks: Chunks) -> None:
    count = len(chunks[LORA_B]) // 4
    # B is zero before any training, so zeros would not change it
    chunks[LORA_B] = torch.ones(count).numpy().tobytes()


def lora_of_another_layer(meta: Meta, chunks: Chunks) -> None:
    for name in (LORA_A, LORA_B):
        other = name.replace("attn.qkv", "attn.qvk")
        listed(meta, name)[0] = other
        chunks[other] = chunks.pop(name)
    meta["tensors"].sort()
    ordered = {name: chunks[name] for name, *_ in meta["tensors"]}
    chunks.clear()
    chunks.update(ordered)


def lora_of_another_width(meta: Meta, chunks: Chunks) -> None:
    listed(meta, LORA_A)[2] = [2, 32]
    chunks[LORA_A] = chunks[LORA_A][: 2 * 32 * 4]


def lora_while_switched_off() -> None:
    backbone = kit.backbone().add_lora(2)
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=backbone)
    with backbone.lora_disabled():
        checkpoint.apply_adapter(backbone)


# the backbone


def rebuilt(**changes: Any) -> Backbone:
    """Load the backbone of a record with these changes."""
    record = kit.backbone().record() | changes
    return HeadCheckpoint.from_module(kit.head(), backbone=record).load_backbone()


def rebuilt_from_a_folder_here(folder: Path) -> Backbone:
    """Load a model of transformers whose name is a folder below the working folder."""
    before = Path.cwd()
    (folder / "me" / "one").mkdir(parents=True)
    os.chdir(folder)
    try:
        return rebuilt(
            name="me/one", source="transformers", weights={"kind": "hub", "repo": "me/one"}
        )
    finally:
        os.chdir(before)


def without_values() -> Any:
    """Save a head with a backbone whose weights are NaN."""
    backbone = kit.backbone()
    with torch.no_grad():
        next(backbone.parameters()).fill_(torch.nan)
    return HeadCheckpoint.from_module(kit.head(), backbone=backbone)


def tuned_weights(**changes: torch.Tensor) -> HeadCheckpoint:
    """Save a head with a tuned backbone and weights that are not its own."""
    backbone = kit.backbone()
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.1)
    weights = backbone.adapter.model.state_dict() | changes
    return HeadCheckpoint.from_module(kit.head(), backbone=backbone, backbone_weights=weights)


def probed(backbone: Backbone) -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone())
    checkpoint.check_backbone(backbone, probe=True)


ROWS: list[Row] = [
    # files
    (content(b""), CheckpointError, "h.safetensors is empty"),
    (content(b"abc"), CheckpointError, ("3 bytes", "cut short")),
    (content(b"0123456789" * 9), CheckpointError, ("not a head file", "1048576")),
    (edited(half_of_the_header), CheckpointError, ("200 bytes", "cut short", "header alone")),
    (content(WEB_PAGE), CheckpointError, "web page"),
    (content(LFS_POINTER), CheckpointError, "Git LFS pointer"),
    (content(ZIP), CheckpointError, "zip"),
    (content(PICKLE), CheckpointError, "pickle"),
    (content(GZIP), CheckpointError, "gzip"),
    (larger_than_any, CheckpointError, (str(17 << 30), str(16 << 30))),
    (header("{"), CheckpointError, "header"),
    (header("[" * 100), CheckpointError, "32"),
    (header('{"a":' + "1" * 21 + "}"), CheckpointError, "20 digits"),
    (header('{"a":NaN}'), CheckpointError, "h.safetensors"),
    (header("[]"), CheckpointError, ("header", "list", "an object")),
    (metadata("{"), CheckpointError, "metadata"),
    (metadata("[]"), CheckpointError, ("metadata", "list", "an object")),
    (edited(spaced_metadata), CheckpointError, "canonical"),
    (edited(eight_more_spaces), CheckpointError, "canonical"),
    (edited(last_byte_missing), CheckpointError, "cut short"),
    (edited(one_byte_more), CheckpointError, "appended"),
    (edited(last_bit_flipped), CheckpointError, "digest"),
    (plain_weights, CheckpointError, "import_weights"),
    (two_in_a_folder, CheckpointError, "fold0.safetensors, fold1.safetensors"),
    (read_from_a_pipe, CheckpointError, "pipe"),
    (read_from_a_folder, CheckpointError, "folder"),
    (other_class, CheckpointError, ("'patch_mean'", "PatchMeanHead", "FPNHead")),
    (file_in_the_way, CheckpointError, "heads is a file"),
    # headers
    (
        forged(backbone_of_another_width),
        CheckpointError,
        ("h.safetensors", "64 channels", "gives 128"),
    ),
    (forged(images_for_other_patches), CheckpointError, ("h.safetensors", "14x14", "16x16")),
    (forged(newer_schema), CheckpointError, ("schema 7", "schema 1", "9.8.7")),
    (forged(newer_schema_of_unknown_version), CheckpointError, ("schema 7", "a later version")),
    (forged(other_format), CheckpointError, ("'dinoneck.neck'", "expected 'dinoneck.head'")),
    (forged(unknown_entry), CheckpointError, "versions"),
    (
        forged(licence_of_another_part),
        CheckpointError,
        ("licences has the names 'neck'", "expected 'backbone'"),
    ),
    (forged(missing_entry), CheckpointError, "extra"),
    (forged(long_extra), CheckpointError, ("extra", "16384")),
    (forged(tensors_in_another_order), CheckpointError, ("before", "order")),
    (forged(tensor_listed_twice), CheckpointError, ("mlps.0.hidden.bias", "twice")),
    (tensor_called_metadata, CheckpointError, "'__metadata__'"),
    (forged(unknown_type_of_tensor), CheckpointError, ("'F8'", "BF16")),
    (forged(unknown_head_type), CheckpointError, ("'patch_maen'", "'patch_mean'")),
    (forged(unknown_argument), CheckpointError, "'colour'"),
    (forged(left_out_default), CheckpointError, ("config.hidden_dim is missing", "normal form")),
    (forged(other_tasks), CheckpointError, ('tasks[0].unit is "kg"', 'expected "g"')),
    (forged(endless_depth), CheckpointError, "far more tensors"),
    (forged(unusable_inputs), CheckpointError, "'squash'"),
    (forged(missing_tensor), CheckpointError, f"lacks {HIDDEN}"),
    (forged(additional_tensor), CheckpointError, "holds zz"),
    (forged(two_dtypes), CheckpointError, "BF16, F32"),
    (forged(turned_weight), CheckpointError, (HIDDEN, "(64, 8)", "(8, 64)")),
    (forged(weight_of_integers), CheckpointError, (HIDDEN, "I32", "F32")),
    (forged(nan_weight), CheckpointError, (HIDDEN, "NaN", "earlier epoch")),
    (forged(layer_below_the_depth), CheckpointError, ("layers", "[6]", "depth 6")),
    (forged(short_probe), CheckpointError, ("probe", "7 numbers", "8 for each")),
    (forged(null_depth), CheckpointError, "backbone.depth is null"),
    (forged(unknown_layers), CheckpointError, "backbone.layers is missing"),
    (forged(mistyped_views), CheckpointError, ("tta.reduce", "'median'", "'mean'")),
    # a checkpoint whose public attributes were changed
    (saved_with_another_shape, CheckpointError, "from_module"),
    (saved_with_other_values, CheckpointError, ("h.safetensors", "digest", "from_module")),
    (built_without_a_tensor, CheckpointError, (HIDDEN, "Load it again")),
    (built_of_another_configuration, CheckpointError, "tasks"),
    (saved_into_no_folder, CheckpointError, ("h.safetensors", "/no does not exist")),
    (saved_over_a_protected_file, CheckpointError, "chmod u+w"),
    (saved_over_a_folder, CheckpointError, ("h.safetensors", "folder")),
    (saved_over_a_pipe, CheckpointError, ("h.safetensors", "pipe")),
    (saved_where_no_file_is_renamed, CheckpointError, ("h.safetensors", "local disk")),
    # LoRA weights
    (forged_lora(lora_without_a_record), CheckpointError, "LoRA"),
    (forged_lora(lora_of_a_large_rank), CheckpointError, ("rank 65", "width 64")),
    (forged_lora(lora_in_more_blocks), CheckpointError, ("7 blocks", "depth 6")),
    (forged_lora(lora_of_another_rank), CheckpointError, ("(2, 64)", "rank 3")),
    (forged_lora(half_of_lora), CheckpointError, f"lacks the LoRA weights {LORA_B[8:]}"),
    (forged_lora(no_lora), CheckpointError, "no LoRA weights"),
    (forged_lora(lora_in_float16), CheckpointError, ("lora_A", "F16")),
    (forged_lora(lora_with_three_axes), CheckpointError, ("lora_A", "(2, 8, 8)", "matrix")),
    (applied(other_lora_values), CheckpointError, ("LoRA", "SHA-256")),
    (applied(lora_of_another_layer), CheckpointError, "blocks.0.attn.qvk"),
    (applied(lora_of_another_width), CheckpointError, ("(2, 32)", "(2, 64)")),
    (lora_while_switched_off, CheckpointError, "lora_disabled()"),
    # the backbone
    (lambda: rebuilt(weights={"kind": "file"}), CheckpointError, "--backbone-file"),
    (
        lambda: rebuilt(name="me/one", weights={"kind": "hub", "repo": "me/two"}),
        CheckpointError,
        ("'me/one'", "'me/two'"),
    ),
    (lambda: rebuilt(dtype="int8"), CheckpointError, ("'int8'", "float32, float16, bfloat16")),
    (lambda: rebuilt(name="../tiny"), CheckpointError, ("'../tiny'", "names no path")),
    (rebuilt_from_a_folder_here, CheckpointError, ("'me/one'", "start elsewhere")),
    (lambda: rebuilt(pos_embed="antialias"), CheckpointError, "'antialias'"),
    (without_values, CheckpointError, "'dinoneck_tiny'"),
    (lambda: tuned_weights(cls_token=torch.zeros(1, 1, 64)), CheckpointError, "SHA-256"),
    (lambda: probed(kit.backbone(seed=1)), CheckpointError, ("'dinoneck_tiny'", "seed 0")),
]
