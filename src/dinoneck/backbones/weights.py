"""Backbone weights: find them (cache, hub, local file), read them safely, put every key where it belongs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from dinoneck.atomic import write_whole
from dinoneck.backbones.keys import to_timm
from dinoneck.backbones.known import SIZES, names_of
from dinoneck.backbones.lora import base_name
from dinoneck.errors import BackboneError, first_line, some_of
from dinoneck.hub_errors import refusal, unreachable
from dinoneck.tensor_bytes import bytes_of
from dinoneck.weight_files import read_state

logger = logging.getLogger(__name__)

_SHOWN = 8
_TIMEOUT_S = 10.0
WEIGHTS_FILE = "model.safetensors"


def fetch(repo_id: str) -> tuple[Path, str | None]:
    """Return the local path and the commit of a hub model's weights: from the cache, else downloaded.

    Raises:
        BackboneError: if they are neither cached nor reachable.
    """
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(repo_id, WEIGHTS_FILE)
    if isinstance(cached, str):
        return Path(cached), Path(cached).parent.name
    try:
        # one quick question first: the download itself retries for most of a minute without a network
        hub.get_hf_file_metadata(hub.hf_hub_url(repo_id, WEIGHTS_FILE), timeout=_TIMEOUT_S)
        path = Path(hub.hf_hub_download(repo_id, WEIGHTS_FILE))
    except Exception as error:  # the hub's client raises many unrelated types
        raise _not_fetched(repo_id, error) from None
    return path, path.parent.name


def fetch_folder(repo_id: str) -> tuple[Path, str | None]:
    """Return the local folder and the commit of a hub model of the transformers library.

    Raises:
        BackboneError: if it is neither cached nor reachable.
    """
    import huggingface_hub as hub

    wanted = ["*.json", "*.safetensors"]
    try:
        folder = Path(hub.snapshot_download(repo_id, allow_patterns=wanted, local_files_only=True))
        if any(folder.glob("*.safetensors")):
            return folder, folder.name
    except Exception as error:
        logger.info("%s is not in the cache (%s)", repo_id, first_line(error))
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo_id, "config.json"), timeout=_TIMEOUT_S)
        folder = Path(hub.snapshot_download(repo_id, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many unrelated types
        raise _not_fetched(repo_id, error) from None
    return folder, folder.name


def load_file(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load an official or timm weights file into a timm model; every key must land.

    Raises:
        BackboneError: naming missing, unexpected, misshapen or non-finite entries.
    """
    load_state(model, to_timm(read_state(path), model), path)


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load named tensors of a file into a model whose names they carry; every key must land.

    Raises:
        BackboneError: naming missing, unexpected, misshapen or non-finite entries.
    """
    own = model.state_dict()
    problems = []
    if missing := own.keys() - state.keys():
        problems.append(f"missing from the file: {some_of(missing, _SHOWN)}")
    if unexpected := state.keys() - own.keys():
        problems.append(f"without a place in the model: {some_of(unexpected, _SHOWN)}{_prefix_hint(unexpected)}")
    for key in sorted(own.keys() & state.keys()):
        if own[key].shape != state[key].shape:
            problems.append(f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}")
        elif not (state[key].is_floating_point() and bool(state[key].isfinite().all())):
            problems.append(f"{key} ({state[key].dtype}) is not finite floating point")
    if problems:
        found = _size_hint(state, own) + "; ".join(problems[:_SHOWN])
        raise BackboneError(f"{path} does not fit {type(model).__name__}: {found}")
    model.load_state_dict(state, strict=True)
    logger.info("%d tensors of %s loaded", len(state), path)


def save_state(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's weights under its own names, LoRA's left out: whole or not at all.

    Raises:
        BackboneError: if the file cannot be written.
    """
    named = {base_name(key): value for key, value in model.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in named.items() if key is not None}
    try:
        write_whole(path, safetensors.torch.save(tensors))
    except OSError as error:
        raise BackboneError(f"{path} cannot be written: {error}") from error


def digest(model: nn.Module) -> str | None:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all parameters; None for meta tensors.

    LoRA weights are left out: a backbone with them still has the base it had.
    """
    total = hashlib.sha256()
    named = {base_name(key): value for key, value in model.state_dict().items() if base_name(key) is not None}
    for name, value in sorted(named.items()):
        if value.is_meta:
            return None
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
    return total.hexdigest()


def _not_fetched(repo_id: str, error: Exception) -> BackboneError:
    names = names_of(repo_id)
    copy = f"load timm's copy of the same weights, {names[0]!r}; or " if names and names[1] == repo_id else ""
    return BackboneError(
        f"pretrained weights of {repo_id} are not in the local cache and were not downloaded: "
        f"{refusal(error, repo_id) or unreachable(error)}. Or {copy}pass checkpoint= (--backbone-file on the command "
        "line) with a local file; or pretrained=False (--random-backbone) for seeded random weights"
    )


def _size_hint(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Name the size of the file's model, where it is not the size of this one."""
    widths = [
        next((x.shape[-1] for key, x in one.items() if key.endswith("cls_token") and x.ndim == 3), 0)
        for one in (state, own)
    ]
    if widths[0] == widths[1] or 0 in widths:
        return ""
    file, model = (f"{SIZES.get(width, 'ViT')} ({width} channels)" for width in widths)
    return f"the file holds a {file}, the model is a {model}; "


def _prefix_hint(unexpected: Iterable[str]) -> str:
    first = next(iter(sorted(unexpected)))
    for prefix in ("module.", "_orig_mod.", "backbone.", "teacher."):
        if first.startswith(prefix):
            return f" (the names carry the prefix {prefix!r}: strip it and save the file again)"
    if first.startswith(("embeddings.", "encoder.", "layer.")):
        return " (these are names of the transformers library)"
    return ""
