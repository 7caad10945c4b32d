"""The hashes of a backbone's weights, cached while the weights do not change, and the fingerprint made of them.

The fingerprint is a function of the SHA-256 of the float32 weights and of the LoRA weights. So it
is the same for a backbone in half precision and for its record in a file. Where the official recipe
resamples positions instead of the library's own, the fingerprint depends on it too.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from xxhash import xxh3_128

from dinoneck.backbones import lora, rotary
from dinoneck.backbones.adapter import (
    Adapter,
    CastRecord,
    CastTensor,
    MergeRecord,
    OriginalWeights,
    WeightHashes,
    WeightState,
    evaluating,
)
from dinoneck.backbones.known import uses_official_recipe
from dinoneck.devices import bytes_of
from dinoneck.dtypes import dtype_name

_LENGTH = 16  # hex digits of a fingerprint
CHANGED = ("modified", "merged")
"""The kinds of weights that were trained since they were loaded, or that LoRA was merged into."""


def fingerprint_from_record(record: Mapping[str, Any] | None) -> str | None:
    """Return the fingerprint of a backbone record: derived for float32, else the one that it holds, if any."""
    record = record or {}
    if record.get("dtype") == "float32":
        return _fingerprint(
            record.get("weights_sha256"), record.get("adapter"), uses_official_recipe(record)
        )
    stored: str | None = record.get("fingerprint")
    return stored


def current_fingerprint(adapter: Adapter, parameters: Sequence[Tensor]) -> str | None:
    """Return the fingerprint that Tokens of an adapter with these frozen parameters carry.

    A compiled graph contains the one that is known when it is traced.
    """
    if torch.compiler.is_compiling():
        hashes = adapter.hashes
        if hashes is None:
            return None
        return hashes.base_fingerprint if adapter.lora_off else hashes.fingerprint
    if _versions(parameters) is None:
        return None
    return current_hashes(adapter, parameters).fingerprint


def current_hashes(adapter: Adapter, parameters: Sequence[Tensor] | None = None) -> WeightHashes:
    """Return the hashes of the present weights, trainable or not, without LoRA weights that are switched off.

    They are cached until a parameter or persistent buffer moves or is written to: torch counts
    every write in place except those through ``.data``. Trainable weights and inference tensors are
    hashed at every call.

    Args:
        adapter: the model.
        parameters: those of the adapter, where the caller has listed them already.
    """
    if parameters is None:
        parameters = list(adapter.parameters())
    hashes = _cached_hashes(adapter, parameters)
    if hashes is None:
        hashes = _compute_hashes(adapter, parameters)
        adapter.hashes = hashes
    if adapter.lora_off:  # what runs is the base alone
        return hashes._replace(lora=None, fingerprint=hashes.base_fingerprint)
    return hashes


def _compute_hashes(adapter: Adapter, parameters: Sequence[Tensor]) -> WeightHashes:
    """Return the hashes of the present weights and LoRA weights."""
    sha256 = state_digest(base_state(adapter))
    lora_record = lora.record(adapter)
    buffer_names = dict(adapter.named_buffers()).keys()
    persistent_names = adapter.state_dict(keep_vars=True).keys()
    buffers = tuple(sorted(buffer_names & persistent_names))
    # of the float32 weights that these are or were cast from; None if it is not known
    float32_sha256 = sha256
    if adapter.weight.dtype != torch.float32:
        float32_sha256 = None
        cast = adapter.history.cast
        if cast is not None and cast.weights_sha256 == sha256:
            float32_sha256 = cast.float32_sha256
    return WeightHashes(
        state=_state(adapter, parameters, buffers),
        buffers=buffers,
        weights_sha256=sha256,
        float32_sha256=float32_sha256,
        lora=lora_record,
        fingerprint=_fingerprint(float32_sha256, lora_record, adapter.uses_official_recipe),
        base_fingerprint=_fingerprint(float32_sha256, None, adapter.uses_official_recipe),
    )


def forget(adapter: Adapter) -> None:
    """Have the weights hashed again when their hashes are asked for."""
    adapter.hashes = None


def note_original(adapter: Adapter, origin: Mapping[str, Any]) -> None:
    """Record where the present weights come from, and their hashes, which later ones are compared with."""
    hashes = current_hashes(adapter)
    adapter.history.origin = dict(origin)
    adapter.history.original = OriginalWeights(
        dtype=dtype_name(adapter.weight.dtype),
        weights_sha256=hashes.weights_sha256,
        float32_sha256=hashes.float32_sha256,
        tensors={} if hashes.weights_sha256 is None else tensor_hashes(adapter),
    )


def note_published(adapter: Adapter, origin: Mapping[str, Any], licence: str | None) -> None:
    """Record that the present weights are published ones, which a file of their publisher holds.

    Args:
        adapter: the model, as it was read from that file.
        origin: the record of where the published weights come from.
        licence: of them.
    """
    adapter.history.origin = dict(origin)
    adapter.has_published_weights = True
    adapter.license = licence


def note_merge(adapter: Adapter, origin: Mapping[str, Any], *, hashes_before: WeightHashes) -> None:
    """Record that LoRA weights have just been merged.

    Args:
        adapter: the model, after the merge.
        origin: the record of where the merged weights come from.
        hashes_before: those of the weights and LoRA weights before it.
    """
    merged_sha256 = current_hashes(adapter).weights_sha256
    adapter.history.origin = dict(origin)
    adapter.history.merge = MergeRecord(hashes_before, weights_sha256=merged_sha256)


def is_comparable(adapter: Adapter, hashes: WeightHashes) -> bool:
    """Whether both these hashes and those of the weights as they were loaded or wrapped are known."""
    original = adapter.history.original
    if original is None:
        return False
    return original.weights_sha256 is not None and hashes.weights_sha256 is not None


def is_original(adapter: Adapter, hashes: WeightHashes) -> bool:
    """Whether these are the hashes of the weights as they were loaded or wrapped; False where that is not known."""
    original = adapter.history.original
    if original is None or not is_comparable(adapter, hashes):
        return False
    if original.float32_sha256 is not None:
        return original.float32_sha256 == hashes.float32_sha256
    return original.weights_sha256 == hashes.weights_sha256


def changed_tensors(adapter: Adapter) -> list[str]:
    """Return the names of the tensors that are not as they were loaded or wrapped; all, where that is not known.

    LoRA weights are left out.
    """
    original = adapter.history.original
    original_tensors = {} if original is None else original.tensors
    changed = []
    for name, value in tensor_hashes(adapter).items():
        if original_tensors.get(name) != value:
            changed.append(name)
    return changed


def base_state(adapter: Adapter) -> dict[str, Tensor]:
    """Return the weights and persistent buffers by the names of the plain model, without LoRA weights; not copied."""
    return lora.base_state(adapter.model.state_dict())


def tensor_hashes(adapter: Adapter) -> dict[str, str]:
    """Return name -> hash of the dtype, shape and values of every tensor of :func:`base_state`.

    A tensor that was cast and not changed since has the hash of before the cast. These hashes find
    out what a training changed; they protect against no one, and are in no file.
    """
    hashes = _present_tensor_hashes(adapter)
    cast = adapter.history.cast
    if cast is None:
        return hashes
    for name, cast_tensor in cast.tensors.items():
        if hashes.get(name) == cast_tensor.after:
            hashes[name] = cast_tensor.before
    return hashes


def _present_tensor_hashes(adapter: Adapter) -> dict[str, str]:
    hashes = {}
    for name, value in sorted(base_state(adapter).items()):
        total = xxh3_128(f"{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
        hashes[name] = total.hexdigest()
    return hashes


class Watch:
    """Detects whether the weights of an adapter have changed since construction, trainable or not.

    Args:
        adapter: the model.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._hashes = current_hashes(adapter)
        self._dtype = adapter.weight.dtype
        self._counts = _counts_of_writes(adapter)
        self._trainable = _trainable_hashes(adapter)
        self._rotary = rotary_hashes(adapter)
        self._rotary_counts = _counts_of_rotary_writes(adapter)
        self._lora_off = adapter.lora_off

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint of the weights at construction; None where it is not known."""
        return self._hashes.fingerprint

    def is_untouched(self, adapter: Adapter) -> bool:
        """Whether weights of which some are trainable are known to be as they were, without a hash of all of them.

        Frozen weights are compared by torch's counts of writes, trainable ones by their values:
        fused optimizers write to them without a count. False where that is not known.
        """
        counts = _counts_of_writes(adapter)
        if counts is None or counts != self._counts or adapter.lora_off != self._lora_off:
            return False
        if not self._has_same_rotary(adapter):
            return False
        trainable = _trainable_hashes(adapter)
        # the hashes of a frozen backbone are kept: there is nothing to save
        return bool(trainable) and trainable == self._trainable

    def is_same(self, adapter: Adapter) -> bool:
        """Whether the same weights run now; weights that cannot be compared count as the same."""
        if not self._has_same_rotary(adapter):
            return False
        before = self._hashes
        now = current_hashes(adapter)
        if _is_merged(adapter, before, now):
            return True
        if before.fingerprint is not None and now.fingerprint is not None:
            return before.fingerprint == now.fingerprint
        if adapter.weight.dtype != self._dtype:  # cannot be compared
            return True
        return before.weights_sha256 == now.weights_sha256 and before.lora == now.lora

    def _has_same_rotary(self, adapter: Adapter) -> bool:
        """Whether the rotary frequencies are as they were; values are read only after a write or a move."""
        counts = _counts_of_rotary_writes(adapter)
        if counts is not None and counts == self._rotary_counts:
            return True
        if rotary_hashes(adapter) != self._rotary:
            return False
        self._rotary_counts = counts
        return True


def _is_merged(adapter: Adapter, before: WeightHashes, now: WeightHashes) -> bool:
    """Whether all that happened between two hashes is that LoRA was merged: the tokens are the same."""
    merge = adapter.history.merge
    if merge is None or now.weights_sha256 is None:
        return False
    unmerged = merge.hashes_before
    had_same_base = before.weights_sha256 == unmerged.weights_sha256
    was_unmerged = had_same_base and before.lora == unmerged.lora
    return was_unmerged and now.lora is None and now.weights_sha256 == merge.weights_sha256


def state_digest(state: Mapping[str, Tensor]) -> str | None:
    """Return the SHA-256 over names, dtypes, shapes and bytes of tensors; None if one is on the meta device."""
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        if value.is_meta:
            return None
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
    return total.hexdigest()


def values_digest(module: nn.Module) -> str:
    """Return a fast hash of the names and values of a module's state dict, to notice changes of it."""
    total = xxh3_128()
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
    return total.hexdigest()


def fingerprint_before_merge(adapter: Adapter) -> str | None:
    """Return the fingerprint of before LoRA was merged, where nothing but a cast happened since, else None.

    The tokens are the same.
    """
    merge = adapter.history.merge
    if merge is None:
        return None
    now = current_hashes(adapter)
    if now.lora is not None:
        return None
    if merge.weights_sha256 not in (now.weights_sha256, now.float32_sha256):
        return None
    return merge.hashes_before.fingerprint


def unchanged_origin(origin: dict[str, Any]) -> dict[str, Any]:
    """Return where weights come from, without the notes that they were trained or merged since."""
    while origin["kind"] in CHANGED:
        origin = origin["base"]
    return origin


def digest_without(adapter: Adapter, left_out: Sequence[Tensor]) -> str:
    """Return a fast hash of the names and values of the parameters of an adapter, without some of them."""
    ignored = {id(parameter) for parameter in left_out}
    total = xxh3_128()
    for name, parameter in sorted(adapter.named_parameters()):
        if id(parameter) not in ignored:
            total.update(f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|".encode())
            total.update(bytes_of(parameter.detach()))
    return total.hexdigest()


@contextlib.contextmanager
def noting_change(adapter: Adapter, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Move or convert the weights in the ``with`` block.

    A cast is recorded with the hashes of before it. After a move the weights keep their hashes.

    Args:
        adapter: the model, whose weights the body of the ``with`` block applies ``change`` to.
        change: tensor -> tensor, as ``nn.Module._apply`` takes it.
    """
    weight = adapter.weight
    # two numbers that every floating-point dtype holds exactly
    sample = torch.tensor([1.5, -2.25], dtype=weight.dtype, device=weight.device)
    changed = change(sample)
    if changed.dtype != sample.dtype:
        before = current_hashes(adapter)
        tensors_before = None  # on the meta device
        if before.weights_sha256 is not None:
            tensors_before = tensor_hashes(adapter)
        with _counting_writes():
            yield
        _note_cast(adapter, before, tensors_before)
        return
    cached = _cached_hashes(adapter, list(adapter.parameters()))
    with _counting_writes():
        yield
    if cached is None or sample.is_meta or changed.is_meta:
        return
    is_move = torch.equal(sample.cpu(), changed.cpu())  # the same values in another place
    if is_move:
        state = _state(adapter, list(adapter.parameters()), cached.buffers)
        adapter.hashes = cached._replace(state=state)


def _counting_writes() -> contextlib.AbstractContextManager[None]:
    """Leave torch's inference mode: tensors made in that mode do not count the writes to them."""
    return torch.inference_mode(False)


def _note_cast(
    adapter: Adapter, before: WeightHashes, tensors_before: dict[str, str] | None
) -> None:
    """Record the weights, and every tensor, as they were before a cast and are after it.

    Float32 weights have their own hashes: a cast from float16 and back has rounded them. Original
    weights that were never in float32 are noted again in their new dtype: a cast is no training.

    Args:
        adapter: the model, after the cast.
        before: the hashes before it.
        tensors_before: those of every tensor; None if the weights were on the meta device.
    """
    forget(adapter)  # the fingerprint depends on the record of the cast
    cast = CastRecord(
        weights_sha256=state_digest(base_state(adapter)),
        float32_sha256=before.float32_sha256,
        tensors={},
    )
    adapter.history.cast = cast
    if tensors_before is None or cast.weights_sha256 is None:
        return
    was_never_float32 = before.float32_sha256 is None
    if was_never_float32 and is_original(adapter, before):
        note_original(adapter, adapter.history.origin)
    elif adapter.weight.dtype != torch.float32:
        cast_tensors = {}
        for name, after in _present_tensor_hashes(adapter).items():
            cast_tensors[name] = CastTensor(after=after, before=tensors_before[name])
        adapter.history.cast = cast._replace(tensors=cast_tensors)


def _fingerprint(
    weights_sha256: object, lora_record: Mapping[str, Any] | None, uses_official_recipe: bool
) -> str | None:
    """Return the fingerprint of float32 weights, a record of LoRA weights and the recipe of positions.

    Of weights alone it is the beginning of their hash. None if a hash is unknown.
    """
    if not isinstance(weights_sha256, str):
        return None
    parts = [weights_sha256]
    if lora_record is not None:
        lora_sha256 = lora_record.get("sha256")
        if not isinstance(lora_sha256, str):
            return None
        parts.append(lora_sha256)
    if uses_official_recipe:
        parts.append("pos_embed=official")
    if len(parts) == 1:
        return weights_sha256[:_LENGTH]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:_LENGTH]


def _cached_hashes(adapter: Adapter, parameters: Sequence[Tensor]) -> WeightHashes | None:
    """Return the cached hashes if they are those of the present weights."""
    cached = adapter.hashes
    if cached is None or cached.state is None:
        return None
    if _state(adapter, parameters, cached.buffers) != cached.state:
        return None
    return cached


def _state(
    adapter: Adapter, parameters: Sequence[Tensor], buffers: Sequence[str]
) -> WeightState | None:
    """Return :func:`_versions` of weights that are all frozen; None while any of them is trainable."""
    tensors = [*parameters, *(adapter.get_buffer(name) for name in buffers)]
    for tensor in tensors:
        if tensor.requires_grad:
            return None
    return _versions(tensors)


def _counts_of_writes(adapter: Adapter) -> WeightState | None:
    """Return :func:`_versions` of all weights and persistent buffers, trainable or not."""
    return _versions(list(adapter.state_dict(keep_vars=True).values()))


def _trainable_hashes(adapter: Adapter) -> dict[str, str]:
    """Return name -> hash of the values of the weights that are trainable now."""
    hashes = {}
    for name, parameter in adapter.named_parameters():
        if parameter.requires_grad and not parameter.is_meta:
            hashes[name] = xxh3_128(bytes_of(parameter.detach())).hexdigest()
    return hashes


def _counts_of_rotary_writes(adapter: Adapter) -> WeightState | None:
    """Return :func:`_versions` of the rotary frequencies."""
    return _versions(list(rotary.buffers_of(adapter.model).values()))


def rotary_hashes(adapter: Adapter) -> dict[str, str]:
    """Return name -> hash of the values of the rotary frequencies, which no fingerprint holds."""
    hashes = {}
    for name, value in rotary.buffers_of(adapter.model).items():
        if not value.is_meta:
            hashes[name] = xxh3_128(bytes_of(value)).hexdigest()
    return hashes


def _versions(tensors: Sequence[Tensor]) -> WeightState | None:
    """Return the address and the number of writes of every tensor; None if unknown for any of them."""
    try:
        return tuple([(x.data_ptr(), x._version) for x in tensors])
    except RuntimeError:  # inference tensors, and stand-ins
        return None


GRID = (4, 6)  # patches of the image that is probed
PER_LAYER = 8  # numbers of a probe
# measured over families, libraries and norms: float32 2e-6 (TF32 convolutions: of the order 1e-3),
# float16 3e-3, bfloat16 2e-2; relative noise of 1e-3 on every weight: 3e-3 and more
TOLERANCES = {"float16": 8e-3, "bfloat16": 4e-2}
TOLERANCE = 2e-3


def measure(adapter: Adapter, layers: Sequence[int], norm: bool) -> list[float]:
    """Return :data:`PER_LAYER` numbers per layer, each of the order of one."""
    channels = adapter.in_chans
    rows, cols = GRID
    patch_height, patch_width = adapter.patch_size
    height, width = adapter.fixed_size or (rows * patch_height, cols * patch_width)
    noise = uniform("image", channels * height * width, seed=0)
    pixels = noise.reshape(1, channels, height, width) * 4.0 - 2.0  # as of normalised images
    images = torch.from_numpy(pixels).to(adapter.weight.device, adapter.weight.dtype)
    with evaluating(adapter), torch.no_grad():
        sequences = adapter(images, layers, norm)
    numbers = []
    for sequence in sequences:
        numbers += _projected(sequence)
    return numbers


def differs(
    trained: list[float], given: list[float], dtypes: tuple[str, str] = ("float32", "float32")
) -> float | None:
    """Return the largest difference if it is larger than rounding, else None.

    Args:
        trained: the probe of one backbone.
        given: the probe of the other.
        dtypes: the dtypes of the two; the coarser one sets the tolerance.
    """
    if len(trained) != len(given):
        return float("inf")
    gap = float(np.abs(np.array(trained) - np.array(given)).max(initial=0.0))
    tolerance = max(TOLERANCES.get(dtype, TOLERANCE) for dtype in dtypes)
    return gap if not gap <= tolerance else None  # written so that NaN differs


def _projected(sequence: Tensor) -> list[float]:
    """Return projections of a sequence's values onto fixed random signs, each of the order of one."""
    values = sequence[0].double().cpu().numpy()
    scale = np.sqrt(np.mean(values**2)) * np.sqrt(values.size)
    noise = uniform("signs", PER_LAYER * values.size, seed=0)
    signs = np.where(noise < 0.5, -1.0, 1.0).reshape(PER_LAYER, -1)
    projected = signs @ values.reshape(-1) / max(scale, 1e-12)
    return [round(float(number), 6) for number in projected]


def uniform(name: str, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return ``count`` float32 numbers in [0, 1), multiples of 2**-24, the same on every machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    key = int.from_bytes(digest[:16], "little")
    raw = np.random.Philox(key=key).random_raw((count + 1) // 2)
    # two numbers of 24 bits, as many as a float32 holds, of each of 64 bits
    high = raw >> np.uint64(40)
    low = (raw >> np.uint64(8)) & np.uint64(0xFFFFFF)
    numbers = np.concatenate((high, low))[:count]
    return numbers.astype(np.float32) * np.float32(2.0**-24)
