"""Random changes behind the digest: other metadata, other tensors, with a spelling and a digest that are right again.

What refuses these is not the checksum. What is not refused has to be a whole head: it loads, it builds, it predicts or
refuses to with a reason, and saved again it has the same bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.reliability.forge import with_header, written
from dinoneck import registry
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.state import TORCH_DTYPES, chunks_of, listing_of

Meta, State = dict[str, Any], dict[str, Tensor]
Content = tuple[Meta, State]

_LARGEST = 1 << 20
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 8, 16, 64, 1 << 20, 1 << 31, 1 << 48, 1 << 63, 10**19, -(10**18),
    0.0, -0.0, 0.5, 1e-320, 1e300, -1.5, "", "a", "a b", "total", "../../etc/passwd", "/dev/zero", "os.system", "\x00",
    "é\u202e", "x" * 300, "mean", "none", "crop", "sha256:" + "0" * 64, [], {}, [[]], [1, 2], [0, 0], ["a"], [None],
    {"a": 1}, {"$": "Task"}, {"type": "patch_mean"}, [[1, 2], [3, 4]], [1] * 50,
)  # fmt: skip
_KEYS = ("", "a", "$", "type", "config", "__class__", "dim", "name", "device", "dtype", "self", "kind", "weights", "é")
_NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e38, 1e-45)


def changed_value(rng: Random, content: Content, donors: Sequence[Content]) -> None:
    """Another value, of the same type or any other, at a random depth."""
    spot = _spot(rng, content[0])
    if spot is None:
        return
    holder, key = spot
    holder[key] = _neighbour(rng, holder[key]) if rng.random() < 0.5 else copy.deepcopy(rng.choice(_VALUES))


def changed_keys(rng: Random, content: Content, donors: Sequence[Content]) -> None:
    """A key or an item more, fewer, twice, or under another name."""
    spot = _spot(rng, content[0])
    if spot is None:
        return
    holder, key = spot
    how = rng.randrange(4)
    if isinstance(holder, dict):
        if how == 0:
            del holder[key]
        elif how == 1:
            holder[rng.choice(_KEYS)] = copy.deepcopy(rng.choice(_VALUES))
        elif how == 2:
            holder[rng.choice(_KEYS)] = holder.pop(key)
        else:
            holder[rng.choice(list(holder))] = copy.deepcopy(holder[key])
    elif how == 0:
        del holder[key]
    elif how == 1:
        holder.insert(key, copy.deepcopy(rng.choice(_VALUES)))
    elif how == 2:
        holder.append(copy.deepcopy(holder[key]))
    else:
        rng.shuffle(holder)


def grafted(rng: Random, content: Content, donors: Sequence[Content]) -> None:
    """A part of another head, or of another place, in the place of one."""
    spot, source = _spot(rng, content[0]), rng.choice(donors)[0]
    if spot is None:
        return
    if rng.random() < 0.6:
        key = rng.choice([key for key in source if key != "digest"])
        content[0][key] = copy.deepcopy(source[key])
    elif (other := _spot(rng, source)) is not None:
        holder, key = spot
        holder[key] = copy.deepcopy(other[0][other[1]])


def changed_rows(rng: Random, content: Content, donors: Sequence[Content]) -> None:
    """The list of tensors: rows more, fewer, twice, renamed, of another dtype or shape."""
    rows = content[0].get("tensors")
    if not isinstance(rows, list) or not rows:
        return
    place, how = rng.randrange(len(rows)), rng.randrange(7)
    row = rows[place]
    if how == 0:
        del rows[place]
    elif how == 1:
        rows.insert(place, copy.deepcopy(row))
    elif how == 2:
        rows.append([rng.choice(("z", "a", "module.a", "adapter/x.lora_A", "")), "F32", [rng.randrange(3)]])
        rows.sort(key=str)
    elif isinstance(row, list) and len(row) == 3:
        if how == 3 and isinstance(row[0], str):
            name = rng.choice(("module.", "_orig_mod.", "adapter/")) + row[0]
            if row[0] in content[1]:
                content[1][name] = content[1][row[0]]
            row[0] = name
        elif how == 4:
            row[1] = rng.choice((*headers.DTYPE_BYTES, "F8_E4M3", "f32"))
        elif how == 5 and isinstance(row[2], list):
            row[2] = rng.choice((row[2][::-1], [*row[2], 1], row[2][1:], [0, *row[2]], [_LARGEST, _LARGEST]))
        else:
            rows[place] = copy.deepcopy(rng.choice(_VALUES))


def changed_tensors(rng: Random, content: Content, donors: Sequence[Content]) -> None:
    """Other numbers in a tensor: a bit, NaN, infinity, noise; or the tensors of two names change places."""
    state = content[1]
    names = [name for name, value in state.items() if value.numel()]
    if not names:
        return
    name, how = rng.choice(names), rng.randrange(4)
    flat = state[name].contiguous().reshape(-1).clone()
    raw = flat.view(torch.uint8)
    if how == 0:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif how == 1 and flat.is_floating_point():
        flat[rng.randrange(len(flat))] = rng.choice(_NUMBERS)
    elif how == 2:
        raw.copy_(torch.frombuffer(bytearray(rng.randbytes(len(raw))), dtype=torch.uint8))
    else:
        other = rng.choice(names)
        state[name], state[other] = state[other], state[name]
        return
    state[name] = flat.reshape(state[name].shape)


def refitted(rng: Random, content: Content, donors: Sequence[Content]) -> None:
    """Another configuration, and everything else as it needs it: what a different, honest head would look like."""
    meta, state = content
    config = meta.get("config")
    if not isinstance(config, dict):
        return
    for _ in range(rng.randrange(1, 3)):
        if (spot := _spot(rng, config)) is not None:
            spot[0][spot[1]] = _neighbour(rng, spot[0][spot[1]])
    try:
        with torch.device("meta"):
            module = registry.resolve(meta["head_type"]).from_config(config)
    except Exception:  # not a head; the reader is to find out
        return
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if sum(torch.Size(shape).numel() for shape in shapes.values()) > _LARGEST:
        return
    for name in [name for name in state if not name.startswith("adapter/")]:
        del state[name]
    state |= {name: torch.full(shape, rng.randrange(-8, 8) / 8) for name, shape in shapes.items()}
    meta["config"], meta["tensors"] = module.config, listing_of(state)
    meta["tasks"] = module.config.get("tasks", [])


CHANGES: dict[str, Callable[[Random, Content, Sequence[Content]], None]] = {
    "a value": changed_value,
    "keys and items": changed_keys,
    "a part of another head": grafted,
    "the list of tensors": changed_rows,
    "tensors": changed_tensors,
    "another configuration": refitted,
}


def forged(rng: Random, change: str, content: Content, donors: Sequence[Content]) -> bytes:
    """Return the file of a head after one kind of change; in a quarter of the cases one or two others follow."""
    own = copy.deepcopy(content[0]), dict(content[1])
    CHANGES[change](rng, own, donors)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 1, 2))):
        CHANGES[rng.choice(list(CHANGES))](rng, own, donors)
    if rng.random() < 0.5:
        _fill(rng, *own)
    return spelled(*own)


def spelled(meta: Meta, state: State) -> bytes:
    """The file, canonical wherever there is a canonical form."""
    try:
        return written(meta, state)
    except Exception:  # no sound list of tensors: no head has such a header
        chunks = [value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for value in state.values()]
        meta["digest"] = headers.digest(meta, chunks)
        block = {"__metadata__": {headers.METADATA_KEY: headers.canonical(meta).decode()}}
        return with_header(json.dumps(block, separators=(",", ":"), ensure_ascii=False), b"".join(chunks))


def _fill(rng: Random, meta: Meta, state: State) -> None:
    """Give every row of the list a tensor of its size, so that the size of the file tells nothing."""
    try:
        entries = headers.entries_of(meta.get("tensors"))
    except Exception:
        return
    if sum(entry.nbytes for entry in entries) > _LARGEST:
        return
    for entry in entries:
        if entry.name not in state or state[entry.name].nbytes != entry.nbytes:
            state[entry.name] = torch.ones(entry.shape).to(TORCH_DTYPES[entry.dtype])


def _spot(rng: Random, root: Any) -> tuple[Any, Any] | None:
    """A random place in nested dicts and lists: what holds it, and the key or index. The digest is computed anew."""
    holder, depth = root, 0
    while True:
        keys = [key for key in holder if key != "digest"] if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return None
        key = rng.choice(keys)
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or (depth and rng.random() < 0.3):
            return holder, key
        holder, depth = inner, depth + 1


def _neighbour(rng: Random, value: Any) -> Any:
    """A value of the same type, near it if it is a number."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, 2 * value, value // 2, -value, float(value)))
    if isinstance(value, float):
        return rng.choice((value + 0.5, -value, 2 * value, value / 3, round(value)))
    if isinstance(value, str):
        place = rng.randrange(len(value) + 1)
        return rng.choice((value[:place], value[:place] + "x" + value[place:], value.upper(), value + " ", value[::-1]))
    return copy.deepcopy(rng.choice(_VALUES))


def content_bytes(meta: Meta, state: State) -> bytes:
    """The file of sound content, its digest as it stands."""
    return headers.build(meta) + b"".join(map(bytes, chunks_of(meta, state)))
