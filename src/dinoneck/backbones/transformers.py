"""The adapter of transformers: Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel and Tipsv2VisionModel.

``hidden_states[i]`` of these models is the input of block i, without the final norm; their Backbone
classes drop registers and always apply the norm to the last stage. So the adapter calls the parts:
embeddings, blocks, final norm.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones.adapter import Adapter, ForwardTokens, PosEmbed, official_positions
from dinoneck.backbones.known import (
    NEEDED_TRANSFORMERS,
    NOT_NORMALISED_MEAN,
    NOT_NORMALISED_STD,
    SATELLITE,
    SATELLITE_MEAN,
    SATELLITE_STD,
    TIPSV2_MEAN,
    TIPSV2_STD,
    family_of,
)
from dinoneck.errors import BackboneError
from dinoneck.extras import missing_extra
from dinoneck.grid import patch_pair
from dinoneck.text import first_line, reason_of

logger = logging.getLogger(__name__)

_CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "tipsv2_vision_model": "Tipsv2VisionModel",
    "tipsv2": "Tipsv2VisionModel",  # with a model of texts beside it
}
_FAMILIES = {"dinov3_vit": "dinov3", "tipsv2_vision_model": "tipsv2"}  # others are DINOv2
_SHOWN = 8  # names in a message
_EMBEDDINGS = -1  # the "block" of stage 0: what the first block takes
_NEVER_USED = ("mask_token", "inv_freq")
_DINOV2_PATCHES = "embeddings.patch_embeddings.projection"
_CLASSIFIERS = ("classifier.", "head.")  # of models fine-tuned for classes, next to the ViT
_TEXTS = ("temperature", "text_encoder.", "text_model.")  # of TIPSv2's model of texts
_BLOCK = re.compile(r"\blayer\.(?P<number>\d+)\.(?:\w+\.)*?(?P<module>\w+)\.(?P<part>\w+)$")
# module of a transformers block (of any version since 5.9) -> module of a timm block, see _unfused
_TIMM_NAMES = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
    "q_proj": "attn.q",
    "query": "attn.q",
    "k_proj": "attn.k",
    "key": "attn.k",
    "v_proj": "attn.v",
    "value": "attn.v",
    "o_proj": "attn.proj",
    "dense": "attn.proj",
    "fc1": "mlp.fc1",
    "weights_in": "mlp.fc1",
    "fc2": "mlp.fc2",
    "down_proj": "mlp.fc2",
    "weights_out": "mlp.fc2",
    "gate_proj": "mlp.fc1_g",
    "up_proj": "mlp.fc1_x",
}


def is_transformers(model: nn.Module) -> bool:
    """Whether an object comes from the transformers library, which is not imported for that."""
    return any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__)


class TransformersAdapter(Adapter):
    """A Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel, Tipsv2VisionModel, or their Backbone forms.

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
        config: Any = getattr(model, "config", None)
        kind = getattr(config, "model_type", None)
        if kind not in _CLASSES or not hasattr(model, "embeddings"):
            raise BackboneError(
                f"{type(model).__name__} is not a Dinov2Model, Dinov2WithRegistersModel, "
                "DINOv3ViTModel or Tipsv2VisionModel; if it holds one, pass that"
            )
        self.family = _FAMILIES.get(kind, "dinov2")
        self.embed_dim = int(config.hidden_size)
        self.patch_size = patch_pair(config.patch_size)
        self.num_cls = 1
        self.num_registers = int(getattr(config, "num_register_tokens", 0))
        name_or_path: str = getattr(config, "_name_or_path", None) or ""
        self.name = name_or_path or None
        if SATELLITE in name_or_path:
            self.mean = SATELLITE_MEAN
            self.std = SATELLITE_STD
        if self.family == "tipsv2":
            self.mean = TIPSV2_MEAN
            self.std = TIPSV2_STD
        if name_or_path and Path(name_or_path).is_dir():
            file = Path(name_or_path) / "preprocessor_config.json"
            if file.is_file():
                self.mean, self.std = _normalisation_in(file)
            # head files are shared: no path of this machine in them
            self.name = Path(name_or_path).resolve().name

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks, in order."""
        encoder = self.model.model if self.family == "dinov3" else self.model.encoder
        return cast("Sequence[nn.Module]", encoder.layer)

    @property
    def norms(self) -> Sequence[nn.Module]:
        """The final norm."""
        return (self.model.norm if self.family == "dinov3" else self.model.layernorm,)

    @property
    def patch_embedding(self) -> nn.Module:
        """The module that makes patches of images."""
        return cast("nn.Module", self.model.embeddings.patch_embeddings)

    @property
    def trained_grid(self) -> tuple[int, int] | None:
        """(rows, cols) of the position embedding of DINOv2 and TIPSv2; None for DINOv3."""
        if self.family == "dinov3":
            return None
        height, width = patch_pair(self.model.config.image_size)
        return height // self.patch_size[0], width // self.patch_size[1]

    def configured_layers(self, norm: bool) -> tuple[int, ...] | None:
        """Return the blocks of a Backbone form's ``out_indices``, whose stages count from 1; None for the others.

        Raises:
            BackboneError: if they name stage 0, the embeddings before the first block, or if
                ``norm`` is not what the feature maps have.
        """
        if not self._is_backbone_form:
            return None
        indices = list(self.model.out_indices)
        layers = [self._layer_of_stage(index) for index in indices]
        if _EMBEDDINGS in layers:
            raise BackboneError(
                f"out_indices of {type(self.model).__name__} are {indices}; expected 1 or more, "
                "stage 0 is the embeddings before the first block: pass layers="
            )
        self._check_norm(layers, norm)
        return tuple(layers)

    def _layer_of_stage(self, index: int) -> int:
        """Return the block of an entry of ``out_indices``, which may count from the end; -1 for the embeddings."""
        num_stages = self.depth + 1
        stage = int(index) % num_stages
        return _EMBEDDINGS + stage

    def _check_norm(self, layers: Sequence[int], norm: bool) -> None:
        """Raise if ``norm`` is not what the feature maps of these blocks have."""
        normed = [layer for layer in layers if self._is_normed_map(layer)]
        plain = [layer for layer in layers if not self._is_normed_map(layer)]
        name = type(self.model).__name__
        setting = f"apply_layernorm={self.model.config.apply_layernorm}"
        if normed and plain:
            raise BackboneError(
                f"{name} ({setting}) gives blocks {plain} without the final norm and {normed} with "
                "it, and norm= is one for all layers; pass layers=, and norm= as you want it for all "
                "of them"
            )
        if normed and not norm:
            raise BackboneError(
                f"{name} ({setting}) gives blocks {normed} with the final norm and norm is False; "
                "pass norm=True, or layers= to choose both yourself"
            )
        if plain and norm:
            raise BackboneError(
                f"{name} ({setting}) gives blocks {plain} without the final norm and norm is True; "
                "pass norm=False, or layers= to choose both yourself"
            )

    @property
    def _is_backbone_form(self) -> bool:
        """Whether the model is the Backbone form of its class, such as Dinov2Backbone or Tipsv2VisionBackbone."""
        return hasattr(self.model, "out_indices") and hasattr(self.model, "stage_names")

    @contextlib.contextmanager
    def with_named_outputs(self) -> Iterator[None]:
        """Set ``return_dict`` of the configuration in the ``with`` block.

        Without it some versions of transformers cannot run these models: their own code reads the
        fields of what the encoder returns.
        """
        config = self.model.config
        return_dict = config.return_dict
        config.return_dict = True
        try:
            yield
        finally:
            config.return_dict = return_dict

    def tokens_in_output(self, output: Any) -> list[ForwardTokens]:
        """Return ``last_hidden_state`` of what the model returns, or the ``feature_maps`` of a Backbone form.

        Both come first in tuples, which a forward that was replaced may return.
        """
        if self._is_backbone_form:
            return self._tokens_in_maps(self._field(output, "feature_maps"))
        tokens = self._field(output, "last_hidden_state")
        if not isinstance(tokens, Tensor):
            raise self._unknown_output(output, "last_hidden_state")
        return [ForwardTokens(self.depth - 1, normed=True, tokens=tokens)]

    def _field(self, output: Any, name: str) -> Any:
        """Return the first field of the library's output, which has this name where it is no tuple."""
        if isinstance(output, tuple) and output:
            return output[0]
        if not hasattr(output, name):
            raise self._unknown_output(output, name)
        return getattr(output, name)

    def _unknown_output(self, output: Any, name: str) -> BackboneError:
        return BackboneError(
            f"the forward of {type(self.model).__name__} returns a {type(output).__name__}; expected "
            f"an output with {name}, or a tuple that begins with it: wrap the model without the "
            "change of its forward"
        )

    def _tokens_in_maps(self, maps: Sequence[Tensor]) -> list[ForwardTokens]:
        """Return the tokens of the feature maps of a Backbone form, without that of stage 0."""
        outputs = []
        for index, tokens in zip(self.model.out_indices, maps, strict=True):
            layer = self._layer_of_stage(index)
            if layer == _EMBEDDINGS:
                continue
            patches_only = self.family == "dinov3"  # the sequences of others keep CLS
            if tokens.ndim == 4:
                tokens = tokens.flatten(2).transpose(1, 2)
                patches_only = True
            outputs.append(
                ForwardTokens(
                    layer,
                    normed=self._is_normed_map(layer),
                    tokens=tokens,
                    patches_only=patches_only,
                )
            )
        return outputs

    def _is_normed_map(self, layer: int) -> bool:
        """Whether the final norm is in a Backbone form's feature map of this block."""
        is_last_of_dinov3 = self.family == "dinov3" and layer == self.depth - 1
        return bool(self.model.config.apply_layernorm) or is_last_of_dinov3

    @property
    def rotary(self) -> nn.Module | None:
        """DINOv3's rotary positions; in training mode they would be rescaled at random."""
        return cast("nn.Module | None", getattr(self.model, "rope_embeddings", None))

    def embed_natively(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the prefix and patch tokens with positions, (B, P + N, C); cosine and sine for DINOv3's blocks."""
        tokens = self.model.embeddings(images)
        if self.rotary is None:
            return tokens, {}
        return tokens, {"position_embeddings": self.rotary(images)}

    def embed(self, images: Tensor) -> tuple[Tensor, Any]:
        """Return the same, with DINOv2's positions resampled by the recipe asked for."""
        # DINOv3 has rotary positions, and the classes of models with registers have one recipe
        if self.rotary is not None or self.num_registers:
            return self.embed_natively(images)
        if self.pos_embed == "native":
            return self.embed_natively(images)
        embeddings = self.model.embeddings
        height, width = images.shape[-2:]
        grid = (height // self.patch_size[0], width // self.patch_size[1])
        cls_token = embeddings.cls_token.expand(images.shape[0], -1, -1)
        x = torch.cat((cls_token, embeddings.patch_embeddings(images)), dim=1)
        positions = official_positions(embeddings.position_embeddings, grid, self.trained_grid)
        return embeddings.dropout(x + positions), {}

    def step(self, block: nn.Module, number: int, x: Tensor, extra: Any) -> Tensor:
        """Run one block."""
        output = block(x, **extra)
        if isinstance(output, tuple):
            output = output[0]
        return cast("Tensor", output)


def _normalisation_in(file: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a ``preprocessor_config.json``."""
    try:
        setting = json.loads(file.read_text("utf-8"))
        if setting.get("do_normalize") is False:
            return NOT_NORMALISED_MEAN, NOT_NORMALISED_STD
        return tuple(setting["image_mean"]), tuple(setting["image_std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"{file} does not hold image_mean and image_std: {type(error).__name__}: "
            f"{first_line(error)}; fetch it again"
        ) from error


def from_folder(folder: Path) -> nn.Module:
    """Load a model from a folder with config.json and safetensors weights; every key must match.

    Raises:
        BackboneError: if the folder holds no such model, or keys are missing, left over or
            misshapen.
    """
    library = import_transformers()
    file = folder / "config.json"
    if not file.is_file():
        raise BackboneError(
            f"{folder} holds no config.json; expected a model as transformers saves it"
        )
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{file} cannot be read as JSON: {reason_of(error)}; fetch it again"
        ) from error
    if not isinstance(config, dict):
        raise BackboneError(f"{file} holds a {type(config).__name__}; expected an object")
    kind = config.get("model_type")
    if kind not in _CLASSES:
        raise BackboneError(
            f"{folder} holds a {kind!r} model; expected one of {', '.join(_CLASSES)}"
        )
    cls = _class_of(library, kind)
    try:
        model, report = cls.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise BackboneError(f"the model in {folder} cannot be loaded: {error}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        all_keys = sorted(str(key) for key in report.get(what, ()))
        keys = [key for key in all_keys if not key.endswith(_NEVER_USED)]
        if kind == "tipsv2":
            keys = [key for key in keys if not key.startswith(_TEXTS)]
        if what == "unexpected_keys":
            classifier = [key for key in keys if key.startswith(_CLASSIFIERS)]
            keys = [key for key in keys if not key.startswith(_CLASSIFIERS)]
            if classifier:
                logger.warning("%s: left out: %s", folder, ", ".join(classifier))
        if keys:
            raise BackboneError(
                f"{folder}: {what.replace('_', ' ')}: {', '.join(keys[:_SHOWN])}; the weights do "
                "not fit"
            )
    return cast("nn.Module", model)


def _class_of(library: Any, kind: str) -> Any:
    """Return the class of a ``model_type``; no Auto class, which may run the code of a folder.

    Raises:
        BackboneError: if this version of transformers has none.
    """
    name = _CLASSES[kind]
    cls = getattr(library, name, None)
    if cls is None:
        needed = NEEDED_TRANSFORMERS[_FAMILIES.get(kind, kind)]
        raise BackboneError(
            f"transformers {library.__version__} has no {name}; install transformers {needed} or "
            "newer"
        )
    return cls


def from_timm(model: Any) -> nn.Module:
    """Build the transformers model with the weights of a timm model: both compute the same tokens.

    The names are mapped as in the conversion scripts that transformers publishes for DINOv2 and
    DINOv3.

    Raises:
        BackboneError: if a tensor of the transformers model has no counterpart.
    """
    built = _built_like(model)
    initial = built.state_dict()
    converted = _converted(model, initial)
    different = initial.keys() ^ converted.keys()
    unmatched = sorted(key for key in different if not key.endswith(_NEVER_USED))
    if unmatched:
        raise BackboneError(
            "no counterpart in the model of timm or of transformers: "
            f"{', '.join(unmatched[:_SHOWN])}"
        )
    built.load_state_dict({**initial, **converted}, strict=True)
    return built


def _built_like(model: Any) -> nn.Module:
    """Build the transformers model of a timm model's shape; DINOv3's rotary frequencies are copied."""
    library = import_transformers()
    first_block = model.blocks[0]
    block_state = first_block.state_dict()
    registers = 0 if model.reg_token is None else model.reg_token.shape[1]
    options = {
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": first_block.attn.num_heads,
        "patch_size": model.patch_embed.patch_size[0],
        "image_size": model.patch_embed.img_size[0],
        "layer_norm_eps": first_block.norm1.eps,
    }
    if getattr(model, "rope", None) is not None:
        options |= _dinov3_setting(block_state)
        config = library.DINOv3ViTConfig(**options, num_register_tokens=registers)
        dinov3 = library.DINOv3ViTModel(config)
        dinov3.rope_embeddings.inv_freq.copy_(1.0 / model.rope.periods.float())
        return cast("nn.Module", dinov3)
    options["mlp_ratio"] = 4
    options["use_swiglu_ffn"] = _is_packed(block_state)
    if family_of(model.pretrained_cfg["architecture"]) == "tipsv2":
        tipsv2_class = _class_of(library, "tipsv2_vision_model")
        if not options["use_swiglu_ffn"]:  # SoViT-400M has another one than 4
            options["mlp_ratio"] = block_state["mlp.fc1.weight"].shape[0] / model.embed_dim
        config = library.Tipsv2VisionConfig(**options, num_register_tokens=registers)
        return cast("nn.Module", tipsv2_class(config))
    if registers:
        config = library.Dinov2WithRegistersConfig(**options, num_register_tokens=registers)
        return cast("nn.Module", library.Dinov2WithRegistersModel(config))
    config = library.Dinov2Config(**options)
    return cast("nn.Module", library.Dinov2Model(config))


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


def _dinov3_setting(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of DINOv3ViTConfig that the tensors of a timm block show."""
    is_gated = "mlp.fc1_g.weight" in state
    return {
        "intermediate_size": state["mlp.fc2.weight"].shape[1],
        "use_gated_mlp": is_gated,
        "hidden_act": "silu" if is_gated else "gelu",
        "mlp_bias": "mlp.fc2.bias" in state,
        "proj_bias": "attn.proj.bias" in state,
        "query_bias": True,
        "value_bias": True,
        "key_bias": False,
    }


def _converted(model: Any, names: Collection[str]) -> dict[str, Tensor]:
    """Return a timm model's tensors under the names of this version of transformers."""
    state = model.state_dict()
    is_dinov3 = not any("position_embeddings" in name for name in names)
    norm = "norm" if is_dinov3 else "layernorm"
    patches = "embeddings.patch_embeddings" if is_dinov3 else _DINOV2_PATCHES
    converted = {"embeddings.cls_token": state["cls_token"]}
    for part in ("weight", "bias"):
        converted[f"{norm}.{part}"] = state[f"norm.{part}"]
        converted[f"{patches}.{part}"] = state[f"patch_embed.proj.{part}"]
    if "reg_token" in state:
        converted["embeddings.register_tokens"] = state["reg_token"]
    if not is_dinov3:
        position = state["pos_embed"]
        if "reg_token" in state:  # timm has folded CLS's position into the token
            position = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
        converted["embeddings.position_embeddings"] = position

    blocks = [_unfused(block.state_dict()) for block in model.blocks]
    for name in names:
        match = _BLOCK.search(name)
        if match is None:
            continue
        block = blocks[int(match["number"])]
        name_in_block = f"{_TIMM_NAMES.get(match['module'])}.{match['part']}"
        if name_in_block in block:
            converted[name] = block[name_in_block]
    return converted


def _unfused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a timm block, with its fused projections taken apart too."""
    tensors = dict(state)
    qkv_weight = state["attn.qkv.weight"]
    zero_bias = qkv_weight.new_zeros(len(qkv_weight) // 3)  # timm leaves out biases that are zero
    for part in ("weight", "bias"):
        qkv = state.get(f"attn.qkv.{part}")
        if qkv is None:  # there is always a weight
            query = state.get("attn.q_bias", zero_bias)
            key = state.get("attn.k_bias", zero_bias)
            value = state.get("attn.v_bias", zero_bias)
        else:
            query, key, value = qkv.chunk(3)
        tensors[f"attn.q.{part}"] = query
        tensors[f"attn.k.{part}"] = key
        tensors[f"attn.v.{part}"] = value
        fc1 = state.get(f"mlp.fc1.{part}")
        if fc1 is not None:
            gate = fc1
            up = fc1  # of an MLP without a gate
            if _is_packed(state):
                gate, up = fc1.chunk(2)
            tensors[f"mlp.fc1_g.{part}"] = gate
            tensors[f"mlp.fc1_x.{part}"] = up
    for number in (1, 2):
        scale = state.get(f"gamma_{number}", state.get(f"ls{number}.gamma"))
        if scale is not None:
            tensors[f"ls{number}.lambda1"] = scale
    return tensors


def _is_packed(state: Mapping[str, Tensor]) -> bool:
    """Whether the first layer of a block's MLP holds the gate and the value of SwiGLU in one."""
    return state["mlp.fc1.weight"].shape[0] != state["mlp.fc2.weight"].shape[1]
