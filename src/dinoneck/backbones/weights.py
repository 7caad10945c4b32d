"""Backbone weights: find them (cache, hub, local file), convert official names to timm's, load every key.

timm's own filter drops keys without a message (q and v biases, unknown names). Here a key is
loaded, is listed as unused, or is reported. Names of the official files: facebookresearch/dinov2
and dinov3.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dinoneck.atomic import write_whole
from dinoneck.backbones import rotary
from dinoneck.backbones.adapter import is_lora
from dinoneck.backbones.known import family_of, names_of
from dinoneck.backbones.lora import base_state
from dinoneck.backbones.vit_files import read_vit, shape_of
from dinoneck.errors import BackboneError
from dinoneck.hub_errors import refusal, unreachable, without_retries_logged
from dinoneck.text import first_line, reason_of, some_of

logger = logging.getLogger(__name__)

# official state dicts -> names of timm
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_UNUSED = re.compile(r"(^mask_token$)|(^local_cls_norm\.)|(\.bias_mask$)|(^rope_embed\.periods$)")
_RENAMES = (
    (re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1", "dinov3"),
    (re.compile(r"^storage_tokens$"), "reg_token", "dinov3"),
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g.", "dinov3"),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x.", "dinov3"),
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1.", "dinov2"),
    # of TIPSv2, as transformers saves it
    (re.compile(r"\.mlp\.c_fc\."), ".mlp.fc1.", "dinov2"),
    (re.compile(r"\.mlp\.c_proj\."), ".mlp.fc2.", "dinov2"),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2.", "both"),
)
_QUERY_BIASES = (".q_bias", ".v_bias")  # in the names of timm
_SHOWN = 8  # names in a message
_TRANSFORMERS_NAMES = (
    "embeddings.",
    "encoder.",
    "layer.",
    "layernorm.",
    "model.layer.",
    "norm.",
)
_TIMEOUT_S = 10.0


def fetch(repo_id: str, first: str = "model.safetensors") -> tuple[Path, str]:
    """Return the local folder and the commit of a hub model, from the cache, else downloaded.

    Args:
        repo_id: the repository; its ``.json`` and ``.safetensors`` files are taken.
        first: a file that it must have; another of its files is not looked for if the hub refuses
            this one.

    Raises:
        BackboneError: if it is neither cached nor reachable.
    """
    import huggingface_hub as hub

    patterns = [first]
    if first != "model.safetensors":
        patterns += ["*.json", "*.safetensors"]
    try:
        cached = hub.snapshot_download(repo_id, allow_patterns=patterns, local_files_only=True)
        folder = Path(cached)
        if any(folder.glob("*.safetensors")):
            return folder, folder.name
    except Exception as error:
        logger.info("%s is not in the cache (%s)", repo_id, first_line(error))
    try:
        with without_retries_logged():
            # a quick request first: without a network the download itself retries for most of a minute
            hub.get_hf_file_metadata(hub.hf_hub_url(repo_id, first), timeout=_TIMEOUT_S)
            folder = Path(hub.snapshot_download(repo_id, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many unrelated types
        raise _not_fetched(repo_id, error) from None
    return folder, folder.name


def load_file(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load an official or timm weights file into a timm model; every key must match.

    Raises:
        BackboneError: naming missing, unexpected, misshapen or non-finite entries.
    """
    load_vit(model, read_vit(path), path)


def load_vit(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load the tensors of :func:`dinoneck.backbones.vit_files.read_vit` into a timm model.

    Raises:
        BackboneError: naming another size, or missing, unexpected, misshapen or non-finite entries.
    """
    _check_size(model, state, path)
    _load_named(model, to_timm(state, model), path)


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load the tensors of a file into a model with the same names; every key must match.

    Raises:
        BackboneError: naming missing, unexpected, misshapen or non-finite entries.
    """
    _check_size(model, state, path)
    _load_named(model, state, path)


def _load_named(
    model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Load tensors into a model of this size with the same names; every key must match."""
    state = rotary.load_buffers(model, state, path)
    problems = [*_problems_of_names(model, state), *_problems_of_values(model, state)]
    if problems:
        raise BackboneError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:_SHOWN])}"
        )
    model.load_state_dict(state, strict=True)
    logger.info("%d tensors of %s loaded", len(state), path)


def _problems_of_names(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors a file lacks or has in addition, and what that suggests."""
    expected = model.state_dict()
    problems = []
    missing = expected.keys() - state.keys()
    if missing:
        problems.append(f"missing from the file: {some_of(missing, _SHOWN)}")
    unexpected = state.keys() - expected.keys()
    if unexpected:
        problems.append(f"without a place in the model: {some_of(unexpected, _SHOWN)}")
        if all(key.startswith(_TRANSFORMERS_NAMES) for key in unexpected):
            is_of_transformers = type(model).__module__.startswith("transformers.")
            hint = "these are names of the library transformers: source='transformers'"
            if is_of_transformers:
                hint = (
                    "these are names that the library transformers translates for whole folders: "
                    "load_backbone(folder, source='transformers')"
                )
            problems.append(hint)
    if _has_bias_variants(model):
        if any(key.endswith(_QUERY_BIASES) for key in unexpected):
            problems.append("these biases are of the architecture whose name ends in '_qkvb'")
        elif any(key.endswith(_QUERY_BIASES) for key in missing):
            problems.append("the file is of the architecture whose name does not end in '_qkvb'")
    return problems


def _problems_of_values(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors have another shape or kind than in the model, or values that are not finite."""
    expected = model.state_dict()
    problems = []
    for key in sorted(expected.keys() & state.keys()):
        value = state[key]
        shape = tuple(expected[key].shape)
        if tuple(value.shape) != shape:
            problems.append(f"{key} is {tuple(value.shape)}, expected {shape}")
        elif not value.is_floating_point():
            problems.append(f"{key} is {value.dtype}, expected floating point")
        elif not bool(value.isfinite().all()):
            problems.append(f"{key} holds values that are not finite")
    return problems


def _has_bias_variants(model: nn.Module) -> bool:
    """Whether timm has a model's architecture without query and value biases and with them: not LingBot-Vision's."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return family_of(config.get("architecture") or "") != "lingbot"


def _check_size(
    model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Compare the ViT that a file holds with the model.

    Raises:
        BackboneError: if it is another one, naming both and a published model of the file's shape,
            if there is one; also if it has LoRA weights that are not merged.
    """
    products = [name for name in state if is_lora(name)]
    if products:
        raise BackboneError(
            f"{path} holds LoRA weights beside the ViT's, such as {some_of(products, 1)}; merge "
            "them before you save: backbone.merge_lora() and backbone.save_weights(FILE), or "
            "model.merge_and_unload() of peft. A head's file holds both: save_head(FILE, head, "
            "backbone=backbone)"
        )
    file_shape = shape_of(state)
    shape = shape_of(model.state_dict())
    if file_shape is None or shape is None:
        return
    is_same = replace(file_shape, positions=None) == replace(shape, positions=None)
    if is_same:
        return
    remedy = "wrap_backbone(model) takes the model that the file belongs to"
    names = [repr(model.official or model.name) for model in file_shape.known]
    if names:
        remedy = f"load it as {' or '.join(names)}"
    raise BackboneError(
        f"{path} does not fit {type(model).__name__}: the file holds a {file_shape}, the model is "
        f"a {shape}; {remedy}"
    )


def save_state(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's weights under its own names, without LoRA's, as one atomic file.

    Rotary frequencies that a model of the same name is not built with are written too.

    Raises:
        BackboneError: if the file cannot be written.
    """
    state = base_state(model.state_dict()) | rotary.changed_buffers(model)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        write_whole(path, safetensors.torch.save(tensors))
    except OSError as error:
        raise BackboneError(f"{path} cannot be written: {reason_of(error)}") from error


def _not_fetched(repo_id: str, error: Exception) -> BackboneError:
    """Return the error for weights that are neither cached nor downloaded."""
    names = names_of(repo_id)
    copy = ""
    if names is not None and names.transformers == repo_id:
        copy = f"load timm's copy of the same weights, {names.timm!r}; or "
    return BackboneError(
        f"pretrained weights of {repo_id} are not in the local cache and were not downloaded: "
        f"{refusal(error, repo_id) or unreachable(error)}. Or {copy}pass checkpoint= "
        "(--backbone-file on the command line) with a local file; or pretrained=False "
        "(--random-backbone) for seeded random weights"
    )


def to_timm(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename official keys for a timm model; keys that already are timm's pass through.

    DINOv3's key bias, which its mask sets to zero, is checked to be zero; its bf16-rounded RoPE
    periods are copied into the model, so that the features equal the official ones bit for bit.

    Raises:
        BackboneError: if this architecture lacks biases that the file has.
    """
    rope = getattr(model, "rope", None)
    form = "dinov3" if rope is not None else "dinov2"
    result: dict[str, Tensor] = {}
    for official, value in state.items():
        key = _CHUNK.sub(r"blocks.\1.", official)
        if _UNUSED.search(key):
            logger.info("%s is not used when features are read", official)
            continue
        if form == "dinov3" and key.endswith("attn.qkv.bias"):
            result.update(_split_bias(key, value, state.get(official + "_mask"), model))
            continue
        for pattern, replacement, which in _RENAMES:
            if which in (form, "both"):
                key = pattern.sub(replacement, key)
        result[key] = value
    if "register_tokens" in result and {"pos_embed", "cls_token"} <= result.keys():
        _fold_position_of_cls(result)
    periods = state.get("rope_embed.periods")
    if rope is not None and periods is not None:
        _load_periods(rope, periods)
    return result


def _fold_position_of_cls(state: dict[str, Tensor]) -> None:
    """Add the position embedding of CLS to its token, in place: timm adds positions to patches only."""
    state["reg_token"] = state.pop("register_tokens")
    position = state["pos_embed"]
    state["cls_token"] = state["cls_token"] + position[:, :1]
    state["pos_embed"] = position[:, 1:]


@torch.no_grad()
def _load_periods(rope: nn.Module, periods: Tensor) -> None:
    """Copy the periods of a file into timm's module of rotary positions.

    Raises:
        BackboneError: if it has no such buffer of this shape.
    """
    model_periods = getattr(rope, "periods", None)
    if not isinstance(model_periods, Tensor) or model_periods.shape != periods.shape:
        raise BackboneError(
            f"rope_embed.periods has shape {tuple(periods.shape)}; the model has no place for it"
        )
    model_periods.copy_(periods)


def has_query_bias(state: Mapping[str, Tensor]) -> bool:
    """Whether a DINOv3 file has biases of queries or values that are not zero, as Meta's files do."""
    for name, bias in state.items():
        if name.endswith("attn.qkv.bias") and _is_fused(bias):
            query, _, value = bias.chunk(3)
            if bool(query.any()) or bool(value.any()):
                return True
    return any(name.endswith(_QUERY_BIASES) for name in state)


def _is_fused(bias: Tensor) -> bool:
    """Whether this is one row of query, key and value biases."""
    return bias.ndim == 1 and len(bias) % 3 == 0


def _split_bias(key: str, bias: Tensor, mask: Tensor | None, model: nn.Module) -> dict[str, Tensor]:
    """Split the fused q, k, v biases into timm's q_bias and v_bias; k must be zero."""
    names = dict(model.named_parameters())
    if key.removesuffix("bias") + "weight" not in names:
        return {key: bias}  # no such block in the model: reported with the other unexpected keys
    if not _is_fused(bias):
        raise BackboneError(
            f"{key} has shape {tuple(bias.shape)}; expected one row of query, key and value biases"
        )
    if mask is not None:
        if mask.shape != bias.shape:
            raise BackboneError(
                f"{key}_mask has shape {tuple(mask.shape)}; expected that of the biases, "
                f"{tuple(bias.shape)}: fetch the file again"
            )
        bias = torch.where(mask.nan_to_num(0.0) == 0, 0.0, bias * mask)
    query, key_bias, value = bias.chunk(3)
    stem = key.removesuffix("qkv.bias")
    if bool(key_bias.any()):
        raise BackboneError(
            f"{key}: the key bias is not zero, as it is in every official DINOv3 file, and timm's "
            "model has none; load the file into the model of the dinov3 repository, and pass that: "
            "wrap_backbone(model)"
        )
    if stem + "q_bias" in names:
        return {stem + "q_bias": query, stem + "v_bias": value}
    if bool(query.any()) or bool(value.any()):
        remedy = "load it with the name that ends in '_qkvb', or its features would be wrong"
        if not _has_bias_variants(model):
            remedy = "it is of another model: wrap_backbone(model) takes that"
        raise BackboneError(
            f"{key}: the file has query and value biases, this architecture has none; {remedy}"
        )
    return {}
