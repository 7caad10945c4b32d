"""The hashes of a backbone's weights, kept while the weights do not change, and the fingerprint made of them.

The fingerprint is a function of the SHA-256 of the float32 weights and of the LoRA weights, so that it is the same for
a backbone in half precision, for its record in a file, and for the records of version 0.1. Where the official recipe
resamples positions in the place of the library's own, it counts too.
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
from dinoneck.backbones.known import has_other_recipe

_LENGTH = 16


def fingerprint_from_record(record: Mapping[str, Any] | None) -> str | None:
    """Return the fingerprint of a backbone record: derived in float32, else the one it holds, if any."""
    record = record or {}
    if record.get("dtype") == "float32":
        return _fingerprint(record.get("weights_sha256"), record.get("adapter"), has_other_recipe(record))
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
        state,
        buffers,
        sha256,
        added,
        _fingerprint(full, added, adapter.has_other_recipe),
        base_fingerprint=_fingerprint(full, None, adapter.has_other_recipe),
    )
    return _as_run(adapter, adapter.hashes)


def _as_run(adapter: Adapter, hashes: WeightHashes) -> WeightHashes:
    """The hashes of what runs at the moment: the base alone while LoRA weights are switched off."""
    return hashes._replace(lora=None, fingerprint=hashes.base_fingerprint) if adapter.lora_off else hashes


class Watch:
    """Notices whether the weights of an adapter are still those of now, trainable or not.

    A look costs next to nothing while torch has counted no write; else the weights are hashed.

    Args:
        adapter: the model.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._hashes = current_hashes(adapter)
        self._dtype, self._seen = adapter.weight.dtype, self._look(adapter)

    def is_same(self, adapter: Adapter) -> bool:
        """Whether the same weights run now; what cannot be compared counts as the same."""
        look = self._look(adapter)
        if look[1] is not None and look == self._seen and adapter.hashes is not None:
            return True
        before, now = self._hashes, current_hashes(adapter)
        if None not in (before.fingerprint, now.fingerprint):
            same = before.fingerprint == now.fingerprint
        elif adapter.weight.dtype == self._dtype:
            same = (before.weights_sha256, before.lora) == (now.weights_sha256, now.lora)
        else:
            same = True
        self._seen = look if same else self._seen
        return same

    def _look(self, adapter: Adapter) -> tuple[bool, WeightState | None]:
        return adapter.lora_off, _versions(_tensors(adapter, list(adapter.parameters()), self._hashes.buffers))


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


def _fingerprint(weights_sha256: str | None, adapter: Mapping[str, Any] | None, has_other_recipe: bool) -> str | None:
    """The fingerprint of float32 weights, the record of LoRA weights and the recipe of positions.

    None where a hash is unknown.
    """
    hashes = [weights_sha256] if adapter is None else [weights_sha256, adapter.get("sha256")]
    hashes += ["pos_embed=official"] if has_other_recipe else []
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
    """As :func:`_versions`, for weights that are all frozen; None while any of them is trainable."""
    tensors = _tensors(adapter, parameters, buffers)
    return None if any(x.requires_grad for x in tensors) else _versions(tensors)


def _tensors(adapter: Adapter, parameters: Sequence[Tensor], buffers: Sequence[str]) -> list[Tensor]:
    return [*parameters, *(adapter.get_buffer(name) for name in buffers)]


def _versions(tensors: Sequence[Tensor]) -> WeightState | None:
    """Where every tensor lies and how often it was written to; None if that is not known of all."""
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
