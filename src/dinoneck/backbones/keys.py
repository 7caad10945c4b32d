"""Official DINOv2/DINOv3 state dicts -> timm's parameter names, with every key accounted for.

timm's own filter drops keys without a word (q and v biases, unknown names); here a key lands, is listed as
knowingly unused, or is reported. Names of the official files: facebookresearch/dinov2 and dinov3.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinoneck.errors import BackboneError

logger = logging.getLogger(__name__)

_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")
_UNUSED = re.compile(r"(^mask_token$)|(^local_cls_norm\.)|(\.bias_mask$)|(^rope_embed\.periods$)")
_RENAMES = (
    (re.compile(r"\.ls([12])\.gamma$"), r".gamma_\1", "dinov3"),
    (re.compile(r"^storage_tokens$"), "reg_token", "dinov3"),
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g.", "dinov3"),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x.", "dinov3"),
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1.", "dinov2"),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2.", "both"),
)


def to_timm(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename official keys for a timm model; keys that already are timm's pass through.

    DINOv3's key bias, which its mask zeroes, is checked to be zero; its bf16-rounded RoPE periods are copied
    into the model, so that features equal the official ones bit for bit.

    Raises:
        BackboneError: if biases of the file have no place in this architecture.
    """
    rotary = getattr(model, "rope", None)
    family = "dinov3" if rotary is not None else "dinov2"
    result: dict[str, Tensor] = {}
    for official, value in state.items():
        key = _CHUNK.sub(r"blocks.\1.", official)
        if _UNUSED.search(key):
            logger.info("%s is not used when features are read", official)
            continue
        if family == "dinov3" and key.endswith("attn.qkv.bias"):
            result.update(_split_bias(key, value, state.get(official + "_mask"), model))
            continue
        for pattern, replacement, which in _RENAMES:
            if which in (family, "both"):
                key = pattern.sub(replacement, key)
        result[key] = value
    if "register_tokens" in result and {"pos_embed", "cls_token"} <= result.keys():
        _place_registers(result)
    if rotary is not None and "rope_embed.periods" in state:
        _copy_periods(rotary, state["rope_embed.periods"])
    return result


def _split_bias(key: str, bias: Tensor, mask: Tensor | None, model: nn.Module) -> dict[str, Tensor]:
    """q, k, v biases in one -> timm's q_bias and v_bias; k must be zero."""
    names = dict(model.named_parameters())
    if key.removesuffix("bias") + "weight" not in names:
        return {key: bias}  # no such block here: reported with the other keys without a place
    if bias.ndim != 1 or len(bias) % 3 or (mask is not None and mask.shape != bias.shape):
        raise BackboneError(f"{key} has shape {tuple(bias.shape)}; expected one row of query, key and value biases")
    if mask is not None:
        bias = torch.where(mask.nan_to_num(0.0) == 0, 0.0, bias * mask)
    q, k, v = bias.chunk(3)
    stem = key.removesuffix("qkv.bias")
    if bool(k.any()):
        raise BackboneError(f"{key}: the key bias is not zero; this is no official DINOv3 file")
    if stem + "q_bias" in names:
        return {stem + "q_bias": q, stem + "v_bias": v}
    if bool(q.any()) or bool(v.any()):
        raise BackboneError(
            f"{key}: the file has query and value biases, this architecture has none; load it with the name that "
            "ends in '_qkvb', or its features would be wrong"
        )
    return {}


def _place_registers(result: dict[str, Tensor]) -> None:
    """Timm adds position embeddings to patches only; the official CLS has its own share of them."""
    result["reg_token"] = result.pop("register_tokens")
    position = result["pos_embed"]
    result["cls_token"] = result["cls_token"] + position[:, :1]
    result["pos_embed"] = position[:, 1:]


def _copy_periods(rotary: nn.Module, periods: Tensor) -> None:
    own = getattr(rotary, "periods", None)
    if not isinstance(own, Tensor) or own.shape != periods.shape:
        raise BackboneError(f"rope_embed.periods has shape {tuple(periods.shape)}; the model has no place for it")
    with torch.no_grad():
        own.copy_(periods)
