"""The hashes of a backbone's weights, kept while the weights do not change, and the fingerprint made of them.

The fingerprint is a function of the SHA-256 of the float32 weights and of the LoRA weights, so that it is the same for
a backbone in half precision, for its record in a file, and for the records of version 0.1.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dinoneck.backbones import lora, weights
from dinoneck.backbones.adapter import Adapter, WeightHashes, WeightState

_LENGTH = 16


def fingerprint_from_record(record: Mapping[str, Any] | None) -> str | None:
    """Return the fingerprint of a backbone record: derived in float32, else the one it holds, if any."""
    record = record or {}
    if record.get("dtype") == "float32":
        return _fingerprint(record.get("weights_sha256"), record.get("adapter"))
    stored: str | None = record.get("fingerprint")
    return stored


def current_fingerprint(adapter: Adapter, parameters: Sequence[Tensor]) -> str | None:
    """Return the fingerprint that Tokens of an adapter with these frozen parameters carry.

    A compiled graph takes the one that is known when it is traced.
    """
    if torch.compiler.is_compiling():
        hashes = adapter.hashes
        return None if hashes is None else hashes.base_fingerprint if adapter.lora_off else hashes.fingerprint
    if (known := _known(adapter, parameters)) is not None:
        return _as_run(adapter, known).fingerprint
    return current_hashes(adapter, parameters).fingerprint if _have_bytes(parameters) else None


def current_hashes(adapter: Adapter, parameters: Sequence[Tensor] | None = None) -> WeightHashes:
    """Return the hashes of the present weights, trainable or not; ``parameters`` are the adapter's, listed already.

    While LoRA weights are switched off they do not count.

    They are kept until a parameter or persistent buffer lies elsewhere or is written to: torch counts every write in
    place but those through ``.data``. Trainable weights and inference tensors are hashed at every call.
    """
    parameters = list(adapter.parameters()) if parameters is None else parameters
    if (known := _known(adapter, parameters)) is not None:
        return _as_run(adapter, known)
    sha256, added = weights.digest(adapter.model), lora.record(adapter)
    buffers = tuple(sorted(dict(adapter.named_buffers()).keys() & adapter.state_dict(keep_vars=True).keys()))
    full, state = _float32_hash(adapter, sha256), _state(adapter, parameters, buffers)
    adapter.hashes = WeightHashes(
        state, buffers, sha256, added, _fingerprint(full, added), base_fingerprint=_fingerprint(full, None)
    )
    return _as_run(adapter, adapter.hashes)


def _as_run(adapter: Adapter, hashes: WeightHashes) -> WeightHashes:
    """The hashes of what runs at the moment: the base alone while LoRA weights are switched off."""
    return hashes._replace(lora=None, fingerprint=hashes.base_fingerprint) if adapter.lora_off else hashes


def forget(adapter: Adapter) -> None:
    """Take the hashes again when they are asked for: weights may change without torch noticing (captured graphs)."""
    adapter.hashes = None


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
    full = _float32_hash(adapter, current_hashes(adapter).weights_sha256) if casts else None
    known = _known(adapter, list(adapter.parameters()))
    with torch.inference_mode(False):  # tensors made in that mode do not count the writes to them
        yield
    if casts:
        forget(adapter)  # the fingerprint of the cast weights depends on ``cast``
        adapter.cast = (weights.digest(adapter.model), full)
    elif moves and known is not None:
        state = _state(adapter, list(adapter.parameters()), known.buffers)
        adapter.hashes = known._replace(state=state)


def _fingerprint(weights_sha256: str | None, adapter: Mapping[str, Any] | None) -> str | None:
    """The fingerprint of float32 weights and of the record of LoRA weights; None where a hash is unknown."""
    hashes = [weights_sha256] if adapter is None else [weights_sha256, adapter.get("sha256")]
    known = [one for one in hashes if isinstance(one, str)]
    if len(known) < len(hashes):
        return None
    return known[0][:_LENGTH] if len(known) == 1 else hashlib.sha256("|".join(known).encode()).hexdigest()[:_LENGTH]


def _float32_hash(adapter: Adapter, sha256: str | None) -> str | None:
    """The hash of the float32 weights that these are or were; None if that is not known."""
    if adapter.weight.dtype == torch.float32:
        return sha256
    return adapter.cast[1] if adapter.cast is not None and adapter.cast[0] == sha256 else None


def _known(adapter: Adapter, parameters: Sequence[Tensor]) -> WeightHashes | None:
    """The hashes kept, if they are those of the present weights."""
    known = adapter.hashes
    if known is None or known.state is None or _state(adapter, parameters, known.buffers) != known.state:
        return None
    return known


def _state(adapter: Adapter, parameters: Sequence[Tensor], buffers: Sequence[str]) -> WeightState | None:
    """Where every tensor lies and how often it was written to; None if that is not known of all."""
    tensors = [*parameters, *(adapter.get_buffer(name) for name in buffers)]
    if any(x.requires_grad for x in tensors):
        return None
    try:
        return tuple((x.data_ptr(), x._version) for x in tensors)
    except RuntimeError:  # inference tensors, and stand-ins
        return None


def _have_bytes(tensors: Sequence[Tensor]) -> bool:
    """Whether no tensor is a stand-in: a fake one, or one of torch.func."""
    try:
        for tensor in tensors:
            tensor.data_ptr()
    except RuntimeError:
        return False
    return True
