"""transformers behind the adapter: Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel.

``hidden_states[i]`` of these models is the input of block i, un-normed; their Backbone classes drop registers and
always norm the last stage. So the parts are used: embeddings, blocks, final norm.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import Adapter, PosEmbed
from dinoneck.backbones.known import SATELLITE, SATELLITE_MEAN, SATELLITE_STD
from dinoneck.backbones.positions import official_positions
from dinoneck.errors import BackboneError, missing_extra
from dinoneck.grid import patch_pair

_FAMILIES = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2", "dinov3_vit": "dinov3"}
_CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
_NEVER_USED = ("mask_token", "inv_freq")


def is_transformers(model: nn.Module) -> bool:
    """Whether an object comes from the transformers library; told without importing it."""
    return any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__)


class TransformersAdapter(Adapter):
    """A Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, or their Backbone forms.

    Args:
        model: the object; used as it is, not copied.
        pos_embed: see :class:`dinoneck.backbones.adapter.Adapter`.

    Raises:
        BackboneError: if the object is of another kind.
    """

    source = "transformers"
    attention = "attention"

    def __init__(self, model: nn.Module, pos_embed: PosEmbed = "native") -> None:
        super().__init__(model, pos_embed)
        config = getattr(model, "config", None)
        kind = getattr(config, "model_type", None)
        if kind not in _FAMILIES or not hasattr(model, "embeddings"):
            inner = next((key for key in ("dinov2", "dinov2_with_registers", "model") if hasattr(model, key)), None)
            hint = f"; pass its .{inner}" if kind in _FAMILIES and inner else ""
            raise BackboneError(
                f"{type(model).__name__} is no Dinov2Model, Dinov2WithRegistersModel or DINOv3ViTModel{hint}"
            )
        self._family = _FAMILIES[kind]
        self.name = getattr(config, "_name_or_path", None) or None
        if SATELLITE in (self.name or ""):
            self.mean, self.std = SATELLITE_MEAN, SATELLITE_STD
        if self.name and Path(self.name).is_dir():
            self._read_normalisation(Path(self.name) / "preprocessor_config.json")
            self.name = Path(self.name).resolve().name  # head files are shared: no path of this machine in them

    @property
    def family(self) -> str:
        """The kind of model."""
        return self._family

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order; they have moved between versions of the library."""
        model = self.model
        holder = model.encoder if self.family == "dinov2" else (model if hasattr(model, "layer") else model.model)
        return cast("Sequence[nn.Module]", holder.layer)

    @property
    def norms(self) -> Sequence[nn.Module]:
        """The final norm."""
        return (self.model.layernorm if self.family == "dinov2" else self.model.norm,)

    @property
    def embed_dim(self) -> int:
        """Channels of a token."""
        return int(self.model.config.hidden_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return patch_pair(self.model.config.patch_size)

    @property
    def num_cls(self) -> int:
        """Always one."""
        return 1

    @property
    def num_registers(self) -> int:
        """Register tokens."""
        return int(getattr(self.model.config, "num_register_tokens", 0))

    @property
    def weight(self) -> Tensor:
        """The patch embedding's weight."""
        patches = self.model.embeddings.patch_embeddings
        return cast("Tensor", patches.projection.weight if hasattr(patches, "projection") else patches.weight)

    @property
    def rotary(self) -> nn.Module | None:
        """DINOv3's rotary positions; in training mode they would be rescaled at random."""
        return cast("nn.Module | None", getattr(self.model, "rope_embeddings", None))

    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        """Patch tokens with positions and prefix; cosine and sine for the blocks of DINOv3."""
        embeddings = self.model.embeddings
        if self.rotary is not None:
            return embeddings(images), {"position_embeddings": self.rotary(images)}
        if self.pos_embed == "native" or self.num_registers:
            return embeddings(images), {}
        height, width = images.shape[-2] // self.patch_size[0], images.shape[-1] // self.patch_size[1]
        x = torch.cat(
            (embeddings.cls_token.expand(images.shape[0], -1, -1), embeddings.patch_embeddings(images)), dim=1
        )
        x = embeddings.dropout(x + official_positions(embeddings.position_embeddings, (height, width)))
        return x, {}

    def step(self, block: nn.Module, number: int, x: Tensor, beside: Any) -> Tensor:
        """Run one block."""
        result = block(x, **beside)
        return cast("Tensor", result[0] if isinstance(result, tuple) else result)

    def _read_normalisation(self, file: Path) -> None:
        if not file.is_file():
            return
        try:
            found = json.loads(file.read_text("utf-8"))
            self.mean, self.std = tuple(found["image_mean"]), tuple(found["image_std"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackboneError(f"{file} does not give image_mean and image_std: {error}") from error


def has_own_names(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors carry the names of this library's models."""
    return any(key.startswith("embeddings.") for key in state)


def from_folder(folder: Path) -> nn.Module:
    """Load a model from a folder with config.json and safetensors weights; every key must land.

    Raises:
        BackboneError: if it is no such folder, or keys are missing, left over or misshapen.
    """
    library = import_transformers()
    file = folder / "config.json"
    if not file.is_file():
        raise BackboneError(f"{folder} holds no config.json: it is no model folder of transformers")
    try:
        kind = json.loads(file.read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BackboneError(f"{file} is no configuration that transformers reads: {error}") from error
    if kind not in _FAMILIES:
        raise BackboneError(f"{folder} holds a {kind!r} model; expected one of {', '.join(_FAMILIES)}")
    noise = logging.getLogger("transformers.modeling_utils")
    level = noise.level
    noise.setLevel(logging.ERROR)  # what it would report is raised below
    try:
        model, told = getattr(library, _CLASSES[kind]).from_pretrained(  # no Auto class: those may run a folder's code
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise BackboneError(f"the model in {folder} cannot be loaded: {error}") from error
    finally:
        noise.setLevel(level)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in told.get(what, ()) if not str(key).endswith(_NEVER_USED))
        if keys:
            raise BackboneError(f"{folder}: {what.replace('_', ' ')}: {', '.join(keys[:8])}; the weights do not fit")
    return cast("nn.Module", model)


def from_timm(model: Any) -> nn.Module:
    """Build the transformers model with the weights of a timm one: the same function of an image.

    Key mappings as published with the transformers conversion scripts of DINOv2 and DINOv3.

    Raises:
        BackboneError: if the model has parts that transformers lacks.
    """
    library = import_transformers()
    state, blocks = model.state_dict(), model.blocks
    shared = {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": blocks[0].attn.num_heads,
        "patch_size": model.patch_embed.patch_size[0],
        "image_size": model.patch_embed.img_size[0],
        "layer_norm_eps": model.blocks[0].norm1.eps,
    }
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    if getattr(model, "rope", None) is not None:
        built = library.DINOv3ViTModel(
            library.DINOv3ViTConfig(**shared, **_dinov3_setting(state), num_register_tokens=registers)
        )
        built.rope_embeddings.inv_freq.copy_(1.0 / model.rope.periods.float())
    else:
        shared |= {"mlp_ratio": 4, "use_swiglu_ffn": "blocks.0.mlp.fc1.weight" in state and _is_packed(state)}
        if registers:
            config = library.Dinov2WithRegistersConfig(**shared, num_register_tokens=registers)
            built = library.Dinov2WithRegistersModel(config)
        else:
            built = library.Dinov2Model(library.Dinov2Config(**shared))
    own = built.state_dict()
    target = _converted(state, own, len(blocks))
    strange = {key for key in own.keys() ^ target.keys() if not key.endswith(_NEVER_USED)}
    if strange:
        raise BackboneError(f"transformers has no place for, or lacks: {', '.join(sorted(strange)[:8])}")
    built.load_state_dict({**{key: own[key] for key in own if key not in target}, **target}, strict=True)
    return cast("nn.Module", built)


def import_transformers() -> Any:
    """Return the transformers package.

    Raises:
        ImportError: naming the extra, if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "hf") from error
    return transformers


def _is_packed(state: Mapping[str, Tensor]) -> bool:
    return state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]


def _dinov3_setting(state: Mapping[str, Tensor]) -> dict[str, Any]:
    gated = "blocks.0.mlp.fc1_g.weight" in state
    return {
        "intermediate_size": state["blocks.0.mlp.fc2.weight"].shape[1],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "mlp_bias": "blocks.0.mlp.fc2.bias" in state,
        "proj_bias": "blocks.0.attn.proj.bias" in state,
        "query_bias": True,
        "value_bias": True,
        "key_bias": False,
    }


def _converted(state: Mapping[str, Tensor], own: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Timm's tensors under the names of this version of transformers."""
    dinov3 = not any("position_embeddings" in key for key in own)
    target = {
        "embeddings.cls_token": state["cls_token"],
        ("norm" if dinov3 else "layernorm") + ".weight": state["norm.weight"],
        ("norm" if dinov3 else "layernorm") + ".bias": state["norm.bias"],
    }
    patches = "embeddings.patch_embeddings." if dinov3 else "embeddings.patch_embeddings.projection."
    for part in ("weight", "bias"):
        target[patches + part] = state[f"patch_embed.proj.{part}"]
    if "reg_token" in state:
        target["embeddings.register_tokens"] = state["reg_token"]
    if not dinov3:
        position = state["pos_embed"]
        if "reg_token" in state:  # timm has folded CLS's position into the token
            position = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
        target["embeddings.position_embeddings"] = position
    stem = next(key for key in own if ".norm1.weight" in key).split("layer.")[0] + "layer."
    for number in range(depth):
        inside = {
            key.removeprefix(f"blocks.{number}."): state[key] for key in state if key.startswith(f"blocks.{number}.")
        }
        names = {key.removeprefix(f"{stem}{number}.") for key in own if key.startswith(f"{stem}{number}.")}
        target |= {f"{stem}{number}.{key}": value for key, value in _converted_block(inside, names).items()}
    return target


def _converted_block(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """One block; ``names`` are those wanted, which differ between versions of transformers."""
    found: dict[str, Tensor] = {}
    for name in names:
        module, _, part = name.rpartition(".")
        last = module.rpartition(".")[2]
        if module in ("norm1", "norm2"):
            found[name] = state[name]
        elif last in ("layer_scale1", "layer_scale2"):
            key = f"gamma_{last[-1]}" if f"gamma_{last[-1]}" in state else f"ls{last[-1]}.gamma"
            found[name] = state[key]
        elif last in _QKV:
            found[name] = _third(state, _QKV[last], part)
        elif last in ("o_proj", "dense"):
            found[name] = state[f"attn.proj.{part}"]
        elif last in ("gate_proj", "up_proj") and f"mlp.fc1_g.{part}" in state:
            found[name] = state[f"mlp.fc1_{'g' if last == 'gate_proj' else 'x'}.{part}"]
        elif last in ("gate_proj", "up_proj") and "gate_proj" in _lasts(names) and f"mlp.fc1.{part}" in state:
            found[name] = state[f"mlp.fc1.{part}"].chunk(2)[int(last == "up_proj")]
        elif last in ("fc1", "up_proj", "weights_in"):
            found[name] = state[f"mlp.fc1.{part}"]
        elif last in ("fc2", "down_proj", "weights_out"):
            found[name] = state[f"mlp.fc2.{part}"]
    return found


_QKV = {"q_proj": 0, "k_proj": 1, "v_proj": 2, "query": 0, "key": 1, "value": 2}


def _lasts(names: set[str]) -> set[str]:
    return {name.split(".")[-2] for name in names if "." in name}


def _third(state: Mapping[str, Tensor], which: int, part: str) -> Tensor:
    """Query, key or value of timm's fused projection; biases that timm leaves out are zero."""
    if f"attn.qkv.{part}" in state:
        return state[f"attn.qkv.{part}"].chunk(3)[which]
    own = state.get(f"attn.{'qkv'[which]}_bias")
    fused = state["attn.qkv.weight"]
    return own if own is not None else fused.new_zeros(len(fused) // 3)
