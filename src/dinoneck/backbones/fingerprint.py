"""The hash of a backbone's weights, taken once while they stay as they are, and the fingerprint made of it.

The fingerprint is a function of the SHA-256 of the float32 weights and of the LoRA weights, so that it is the same for
a backbone in half precision, for its record in a file, and for the records of version 0.1.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones import lora, weights
from dinoneck.backbones.adapter import Adapter

_LENGTH = 16
State = tuple[tuple[int, int], ...]


def fingerprint(weights_sha256: str | None, adapter: Mapping[str, Any] | None) -> str | None:
    """Return the fingerprint of float32 weights and of the record of LoRA weights; None where a hash is unknown."""
    hashes = [weights_sha256] if adapter is None else [weights_sha256, adapter.get("sha256")]
    known = [one for one in hashes if isinstance(one, str)]
    if len(known) < len(hashes):
        return None
    return known[0][:_LENGTH] if len(known) == 1 else hashlib.sha256("|".join(known).encode()).hexdigest()[:_LENGTH]


def of_record(record: Mapping[str, Any] | None) -> str | None:
    """Return the fingerprint of a backbone record: derived in float32, else the one it holds, if any."""
    record = record or {}
    if record.get("dtype") == "float32":
        return fingerprint(record.get("weights_sha256"), record.get("adapter"))
    found: str | None = record.get("fingerprint")
    return found


def hashes(adapter: Adapter) -> tuple[str | None, dict[str, Any] | None]:
    """Return the SHA-256 of the weights in their present dtype, and the record of LoRA weights.

    While parameters are frozen the result is kept until a parameter or buffer lies elsewhere or is written to: torch
    counts every write in place but those through ``.data``.
    """
    state = _whole_state(adapter)
    if state is None or adapter.hashed is None or adapter.hashed[0] != state:
        found = weights.digest(adapter.model), lora.record(adapter)
        adapter.hashed = (state, *found)
        adapter.fingerprint = fingerprint(_float32_hash(adapter, found[0]), found[1])
    return adapter.hashed[1], adapter.hashed[2]


def of_weights(adapter: Adapter) -> str | None:
    """Return the fingerprint of the present weights, trainable or not; None where the float32 weights are unknown."""
    hashes(adapter)
    return adapter.fingerprint


def of_frozen(adapter: Adapter, parameters: Sequence[nn.Parameter]) -> str | None:
    """Return the fingerprint that Tokens of an adapter's frozen parameters carry.

    A compiled graph takes the one that is known when it is traced.
    """
    if adapter.lora_off:
        return None
    if not torch.compiler.is_compiling():
        state = _state(parameters)
        if state is None:
            return None
        if adapter.fingerprint is None or adapter.fingerprint_of != state:
            hashes(adapter)
            adapter.fingerprint_of = state
    return adapter.fingerprint


def forget(adapter: Adapter) -> None:
    """Take the hash again when it is asked for: weights may change without torch noticing (captured graphs)."""
    adapter.hashed = adapter.fingerprint = None


@contextlib.contextmanager
def kept(adapter: Adapter, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Move or convert the weights inside, and know afterwards which float32 weights they were.

    Args:
        adapter: the model, whose weights the body of the ``with`` block applies ``change`` to.
        change: tensor -> tensor, as ``nn.Module._apply`` takes it.
    """
    sample = torch.tensor([1.5, -2.25], dtype=adapter.weight.dtype, device=adapter.weight.device)
    after = change(sample)
    casts = after.dtype != sample.dtype
    moves = not casts and not sample.is_meta and not after.is_meta and torch.equal(sample.cpu(), after.cpu())
    full = _float32_hash(adapter, hashes(adapter)[0]) if casts else None
    before = _whole_state(adapter)
    known = (
        adapter.hashed if before is not None and adapter.hashed is not None and adapter.hashed[0] == before else None
    )
    yield
    if casts:
        adapter.cast = (hashes(adapter)[0], full)
        adapter.hashed = None
    elif moves and known is not None:
        adapter.hashed = (_whole_state(adapter), known[1], known[2])


def _float32_hash(adapter: Adapter, sha256: str | None) -> str | None:
    """The hash of the float32 weights that these are or were; None if that is not known."""
    if adapter.weight.dtype == torch.float32:
        return sha256
    return adapter.cast[1] if adapter.cast is not None and adapter.cast[0] == sha256 else None


def _whole_state(adapter: Adapter) -> State | None:
    return _state([*adapter.parameters(), *adapter.buffers()])


def _state(tensors: Sequence[Tensor]) -> State | None:
    """Where every tensor lies and how often it was written to; None if one is trainable or a stand-in."""
    if any(x.requires_grad for x in tensors):
        return None
    try:
        return tuple((x.data_ptr(), x._version) for x in tensors)
    except RuntimeError:  # inference tensors, fake ones, those of torch.func
        return None
