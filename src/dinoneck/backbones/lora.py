"""LoRA by peft, on the blocks of any library; the adapted layers are found by module, not by name pattern.

peft matches the ends of names: ``proj`` would also match the patch embedding, ``qkv`` matches
nothing in transformers, and an adapter loads onto other base weights without an error. Here the
linear layers of the blocks are listed by their full names and the record names the base that they
belong to. The added weights stay in float32 for every dtype of the base: small steps would be lost
in half precision.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import LORA_PARTS, Adapter, is_lora
from dinoneck.devices import bytes_of
from dinoneck.errors import BackboneError, ConfigError
from dinoneck.extras import missing_extra
from dinoneck.torch_wrappers import COMPILED

Targets = Literal["attention", "all"]
NAME = "default"
LARGEST_ALPHA = 1e6
_SHOWN = 4  # names in a message


def add(
    adapter: Adapter, rank: int, alpha: float | None, targets: Targets, *, seed: int, runs: int
) -> None:
    """Add LoRA weights to the linear layers of the first ``runs`` blocks; an error leaves the model unchanged.

    Raises:
        BackboneError: if LoRA weights are there already, or the rank is out of range.
        ConfigError: for other targets.
    """
    if targets not in get_args(Targets):
        raise ConfigError(f"targets is {targets!r}; expected one of {', '.join(get_args(Targets))}")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= adapter.embed_dim:
        raise BackboneError(f"rank is {rank!r}; expected an integer 1 ... {adapter.embed_dim}")
    alpha = _checked_alpha(alpha, rank)
    if _layers(adapter):
        raise BackboneError(
            "this backbone has LoRA weights already; merge_lora() first, or load the backbone again"
        )
    names = _names_of_layers(adapter, targets, runs)
    trainable = {id(parameter) for parameter in adapter.parameters() if parameter.requires_grad}
    try:
        _inject(adapter, names, rank, alpha)
        _draw(adapter, seed)
    except BaseException:
        _strip(adapter)
        raise
    finally:
        # peft freezes everything else; restore what was trainable
        trainable.update(id(parameter) for parameter in parameters(adapter))
        for parameter in adapter.parameters():
            parameter.requires_grad_(id(parameter) in trainable)
    for block in adapter.blocks[:runs]:
        _call_the_layer(block, True)
    adapter.lora = {
        "kind": "lora",
        "rank": rank,
        "alpha": alpha,
        "targets": targets,
        "blocks": runs,
    }


def _checked_alpha(alpha: float | None, rank: int) -> float:
    """Return alpha, or the rank without one; raise a BackboneError unless it is a positive number."""
    if alpha is None:
        return float(rank)
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not 0 < alpha <= LARGEST_ALPHA:
        raise BackboneError(
            f"alpha is {alpha!r}; expected a positive number, at most {LARGEST_ALPHA:g}"
        )
    return float(alpha)


def remove(adapter: Adapter) -> None:
    """Remove the LoRA weights without adding their products."""
    _strip(adapter)
    adapter.lora = None


def merge(adapter: Adapter) -> None:
    """Add the products to the weights and put the plain linear layers back.

    Raises:
        BackboneError: if there are no LoRA weights.
    """
    layers = _layers(adapter)
    if not layers:
        raise BackboneError("this backbone has no LoRA weights to merge; add_lora() comes first")
    with torch.no_grad():
        for layer in layers.values():
            layer.merge()
    remove(adapter)


@contextlib.contextmanager
def disabled(adapter: Adapter) -> Iterator[None]:
    """Run the ``with`` block without the products."""
    layers = list(_layers(adapter).values())
    were_disabled = [layer.disable_adapters for layer in layers]
    was_off = adapter.lora_off
    adapter.lora_off = bool(layers)
    try:
        for layer in layers:  # peft's own switch would also change what is trainable
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_disabled in zip(layers, were_disabled, strict=True):
            layer._disable_adapters = was_disabled
        adapter.lora_off = was_off


def parameters(adapter: Adapter) -> list[nn.Parameter]:
    """Return all LoRA weights."""
    return [parameter for name, parameter in adapter.named_parameters() if is_lora(name)]


def state(adapter: Adapter) -> dict[str, Tensor]:
    """Return the LoRA weights under names that do not depend on peft: ``<linear layer>.lora_A`` and ``.lora_B``."""
    weights = {}
    for name, layer in _layers(adapter).items():
        for part in LORA_PARTS:
            weights[f"{name}.{part}"] = getattr(layer, part)[NAME].weight
    return weights


def load_state(adapter: Adapter, weights: Mapping[str, Tensor]) -> None:
    """Copy LoRA weights in.

    Raises:
        BackboneError: if names or shapes differ.
    """
    present = state(adapter)
    if present.keys() != weights.keys():
        different = sorted(present.keys() ^ weights.keys())
        raise BackboneError(
            f"the LoRA weights are for other layers; differing: {', '.join(different[:_SHOWN])}"
        )
    for key, value in present.items():
        if value.shape != weights[key].shape:
            raise BackboneError(
                f"{key} is {tuple(weights[key].shape)}, expected {tuple(value.shape)}"
            )
    with torch.no_grad():
        for key, value in present.items():
            value.copy_(weights[key])


def record(adapter: Adapter) -> dict[str, Any] | None:
    """Return the setting with a hash of setting and weights, JSON-able; None without LoRA."""
    if adapter.lora is None:
        return None
    total = hashlib.sha256(json.dumps(adapter.lora, sort_keys=True).encode())
    for name, value in sorted(state(adapter).items()):
        if value.is_meta:
            return {**adapter.lora, "sha256": None}
        total.update(f"|{name}|{tuple(value.shape)}|".encode())
        total.update(bytes_of(value))
    return {**adapter.lora, "sha256": total.hexdigest()}


def base_name(key: str) -> str | None:
    """Return the name of a base parameter without the additions of peft and torch.compile; None for a LoRA weight."""
    if is_lora(key):
        return None
    return key.replace(".base_layer.", ".").replace(f"{COMPILED}.", "")


def base_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model's state dict by the names of the plain model, without LoRA weights."""
    tensors = {}
    for key, value in state.items():
        name = base_name(key)
        if name is not None:
            tensors[name] = value
    return tensors


def _inject(adapter: Adapter, names: list[str], rank: int, alpha: float) -> None:
    """Let peft add its layers to the linear layers of these names."""
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "lora") from error
    exactly = "|".join(re.escape(name) for name in names)  # a list would match the ends of names
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=f"(?:{exactly})")  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(config, adapter.model, adapter_name=NAME)
    adapted = _layers(adapter)
    if set(adapted) != set(names):
        raise BackboneError(f"peft adapted {len(adapted)} of {len(names)} linear layers")


def _draw(adapter: Adapter, seed: int) -> None:
    """Draw the initial values in float32 from a generator of their own: A as peft draws it, B zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(adapter).values():
        for part in LORA_PARTS:
            weight = getattr(layer, part)[NAME].weight
            weight.data = weight.data.float()
            bound = 1 / math.sqrt(weight.shape[1]) if part == "lora_A" else 0.0
            if not weight.is_meta:
                initial = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
                weight.data.copy_(initial)


def _strip(adapter: Adapter) -> None:
    """Put the plain linear layers back, and undo all other changes of peft and of this file."""
    for name, layer in _layers(adapter).items():
        parent, _, attribute = name.rpartition(".")
        setattr(adapter.model.get_submodule(parent), attribute, layer.get_base_layer())
    for block in adapter.blocks:
        _call_the_layer(block, False)
    if hasattr(adapter.model, "peft_config"):
        del adapter.model.peft_config


def _names_of_layers(adapter: Adapter, targets: Targets, runs: int) -> list[str]:
    """Return the full names of the linear layers to adapt in the first ``runs`` blocks."""
    full_names = {id(module): name for name, module in adapter.model.named_modules()}
    names = []
    for block in adapter.blocks[:runs]:
        top: nn.Module | None = block
        if targets == "attention":
            top = getattr(block, adapter.attention, None)
        modules = [] if top is None else list(top.modules())
        linear_layers = [module for module in modules if isinstance(module, nn.Linear)]
        if not linear_layers:
            raise BackboneError(
                f"a block of {type(adapter.model).__name__} has no linear layers to adapt"
            )
        names += [full_names[id(layer)] for layer in linear_layers]
    return names


def _call_the_layer(block: nn.Module, called: bool) -> None:
    """Make timm call the adapted ``qkv`` layer: to add query and value biases it reads ``qkv.weight`` instead."""
    for module in block.modules():
        if getattr(module, "q_bias", None) is None or not hasattr(module, "qkv_bias_separate"):
            continue
        if called and not module.qkv_bias_separate:
            module.qkv_bias_separate = True  # type: ignore[assignment]
            module.dinoneck_called = True  # type: ignore[assignment]
        elif not called and getattr(module, "dinoneck_called", False):
            module.qkv_bias_separate = False  # type: ignore[assignment]
            del module.dinoneck_called


def _layers(adapter: Adapter) -> dict[str, Any]:
    """Return the adapted layers by name; without peft there are none."""
    if not any(hasattr(module, "lora_A") for module in adapter.modules()):
        return {}
    from peft.tuners.lora import LoraLayer

    layers = {}
    for name, module in adapter.model.named_modules():
        if isinstance(module, LoraLayer):
            layers[name] = module
    return layers
