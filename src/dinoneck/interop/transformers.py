"""transformers' models that take a backbone by its configuration: D-FINE, RT-DETR, Mask2Former, UperNet and others.

``from_pretrained`` builds a model on the meta device, loads the tensors of the file and initialises
the others by rules of its own. A ViT has values that are in no file (rotary frequencies), and
neither its weights nor a neck's follow those rules. So transformers only puts tensors in place, and
:class:`DinoneckBackbone` does the rest itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import dimensions_of
from dinoneck.backbones.load import Source
from dinoneck.codec import encode, normal
from dinoneck.errors import ConfigError
from dinoneck.extras import missing_extra
from dinoneck.interop.encoder import DeferredEncoder, EncoderByName, PyramidEncoder
from dinoneck.text import did_you_mean

try:
    from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import BackboneOutput
except ImportError as error:
    raise missing_extra("transformers", "hf") from error

MODEL_TYPE = "dinoneck"


class DinoneckBackboneConfig(BackboneConfigMixin, PreTrainedConfig):  # type: ignore[misc]
    """The configuration of a backbone and a neck in transformers: the ``backbone_config`` of a detector or segmenter.

    Detectors that freeze a backbone's batch norms by default (``freeze_backbone_batch_norms=True``)
    would freeze the neck's at untrained values: pass False, or use a neck with ``norm="group"``.

    Args:
        backbone: name, as in :func:`dinoneck.load_backbone`.
        layers: as there.
        neck: a registered neck.
        neck_config: its arguments; ``embed_dim``, ``num_layers`` and ``patch_size`` come from the
            backbone.
        pretrained: load the published weights when a detector is built from its configuration; a
            detector that is loaded from a file gets its weights from the file.
        seed: of random weights, with ``pretrained=False``.
        features_at: as in :class:`dinoneck.interop.PyramidEncoder`.
        backbone_source: ``source`` of ``load_backbone``: ``"timm"`` or ``"transformers"``.
        norm: as in ``load_backbone``.
        frozen: as there.
        out_features: names of the output levels, out of ``level0`` (the finest), ``level1``, ...;
            None = all.
        out_indices: their numbers instead.
        **kwargs: of transformers' PreTrainedConfig, such as ``output_hidden_states``.

    Attributes:
        hidden_size: channels of the ViT's tokens; None until a model is built, where the name is
            not a published one.
        num_hidden_layers: blocks of the ViT; None in the same case.
        channels: channels of the levels that come out: a detector's ``encoder_in_channels``.

    Raises:
        ConfigError: if the neck is unknown, or an argument does not fit it.

    Examples:
        >>> scales = {"scales": [2.0, 1.0, 0.5]}
        >>> config = DinoneckBackboneConfig("dinoneck_tiny", None, "simple_pyramid", scales)
        >>> config.channels, config.out_features
        ([256, 256, 256], ['level0', 'level1', 'level2'])
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        backbone: str = "vit_small_patch16_dinov3",
        layers: int | Sequence[int] | None = (5, 8, 11),
        neck: str = "spatial_tuning_adapter",
        neck_config: Mapping[str, Any] | None = None,
        pretrained: bool = True,
        seed: int | None = None,
        features_at: float = 1.0,
        backbone_source: Source = "timm",
        norm: bool = True,
        frozen: bool = True,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.backbone_source = backbone_source
        # a list, as a JSON file gives it back
        self.layers = encode(normal(int | Sequence[int] | None, layers, "layers"))
        self.neck = neck
        self.neck_config = normal(dict[str, Any] | None, neck_config, "neck_config") or {}
        self.pretrained = pretrained
        self.seed = normal(int | None, seed, "seed")
        self.features_at = features_at
        self.norm = norm
        self.frozen = frozen
        sketch = self.recipe.sketch()
        self.stage_names = [f"level{number}" for number in range(len(sketch.strides))]
        self.level_channels = sketch.out_channels
        for derived in ("stage_names", "level_channels"):
            kwargs.pop(derived, None)
        width, depth = dimensions_of(backbone) or (None, None)
        self.hidden_size: int | None = kwargs.pop("hidden_size", width)
        self.num_hidden_layers: int | None = kwargs.pop("num_hidden_layers", depth)
        super().__init__(**kwargs)
        self._out_features, self._out_indices = _resolve_levels(
            self.stage_names, out_features, out_indices
        )

    @property
    def recipe(self) -> EncoderByName:
        """The backbone and neck to build."""
        names = [field.name for field in fields(EncoderByName) if field.name != "source"]
        arguments = {name: getattr(self, name) for name in names}
        return EncoderByName(**arguments, source=self.backbone_source)

    @property
    def channels(self) -> list[int]:
        """Channels of the levels that come out."""
        return [self.level_channels] * len(self.out_indices)


class DinoneckBackbone(BackboneMixin, PreTrainedModel):  # type: ignore[misc]
    """The model of a :class:`DinoneckBackboneConfig`; transformers creates it when it builds a detector.

    A saved detector is reloaded with bit-identical outputs, for every backbone and library. Tensors
    that a file lacks are those of a detector built from its configuration: seeded or published
    weights, the neck's initial values.

    Args:
        config: the backbone and neck to build.

    Attributes:
        encoder: the :class:`dinoneck.interop.PyramidEncoder`.

    Raises:
        ConfigError: if the neck's arguments contradict the backbone.
        BackboneError: as :func:`dinoneck.load_backbone` does.

    Examples:
        >>> scales = {"scales": [2.0, 1.0, 0.5]}
        >>> config = DinoneckBackboneConfig("dinoneck_tiny", None, "simple_pyramid", scales)
        >>> maps = DinoneckBackbone(config)(torch.zeros(1, 3, 64, 64)).feature_maps
        >>> [tuple(level.shape) for level in maps]
        [(1, 256, 8, 8), (1, 256, 4, 4), (1, 256, 2, 2)]
    """

    config_class = DinoneckBackboneConfig
    main_input_name = "pixel_values"
    has_attentions = False
    _supports_sdpa = True

    def __init__(self, config: DinoneckBackboneConfig) -> None:
        super().__init__(config)
        # get_default_device() of older torch does not see `with torch.device`
        on_meta = torch.empty(0).is_meta
        self._deferred = DeferredEncoder(config.recipe) if on_meta else None
        if self._deferred is None:
            self.encoder = config.recipe.build()
        else:
            self.encoder = self._deferred.encoder
        self.num_features = [self.encoder.out_channels] * len(self.encoder.strides)
        config.hidden_size = self.backbone.embed_dim
        config.num_hidden_layers = self.backbone.depth
        self._may_warn_of_frozen_norms = not _frozen_norms(self.encoder.neck)
        self.post_init()

    @property
    def backbone(self) -> Backbone:
        """The DINO backbone."""
        return self.encoder.backbone

    def get_input_embeddings(self) -> nn.Module:
        """Return the patch embedding's layer."""
        weight = self.backbone.adapter.weight
        layers: Iterator[nn.Module] = self.modules()
        return next(
            layer
            for layer in layers
            if any(parameter is weight for parameter in layer.parameters(recurse=False))
        )

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the levels of normalised images as ``feature_maps``, and the ViT's token sequences if asked for.

        Args:
            pixel_values: (B, 3, H, W), normalised.
            output_hidden_states: fill ``hidden_states`` as the DINO models of transformers do: the
                embeddings, then the output of every block without the final norm, each
                (B, P + N, C). Blocks after the last of ``config.layers`` do not run and are left
                out. None = as the configuration has it.
            output_attentions: ignored: the blocks do not return attention maps.
            return_dict: False = a plain tuple; None = as the configuration has it.
            **kwargs: ignored.

        Returns:
            BackboneOutput: its ``feature_maps`` are (B, out_channels, rows_i, cols_i), fine to
                coarse.
        """
        if self._may_warn_of_frozen_norms and not torch.compiler.is_compiling():
            self._warn_of_frozen_norms()
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states: list[Tensor] = []
        recording: AbstractContextManager[None] = nullcontext()
        if output_hidden_states:
            recording = _recorded(self.backbone.adapter.blocks, states)
        with recording:
            maps = self.encoder(pixel_values).maps
        output = BackboneOutput(
            feature_maps=tuple(maps[number] for number in self.out_indices),
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def _initialize_weights(self, module: nn.Module, *_: Any, **__: Any) -> None:
        """Skip transformers' initialisation, which calls this for every module inside and for the backbone last."""
        if module is self and self._deferred is not None:
            deferred = self._deferred
            self._deferred = None
            deferred.complete(
                self.encoder, is_loaded=lambda tensor: getattr(tensor, "_is_hf_initialized", False)
            )
        module._is_hf_initialized = True  # type: ignore[assignment]

    def _warn_of_frozen_norms(self) -> None:
        self._may_warn_of_frozen_norms = False
        if _frozen_norms(self.encoder.neck):
            warnings.warn(
                f"the detector has replaced the batch norms of {type(self.encoder.neck).__name__} by frozen ones with "
                "untrained statistics. Build it with freeze_backbone_batch_norms=False, or, where it has no such "
                'argument, give the neck norm="group" (neck_config)',
                stacklevel=2,
            )


def register() -> None:
    """Register ``DinoneckBackboneConfig`` with transformers' AutoConfig, AutoBackbone and AutoModel.

    Importing this module registers it too; call this in a program that only loads a saved detector.
    Further calls have no effect.
    """
    AutoConfig.register(MODEL_TYPE, DinoneckBackboneConfig, exist_ok=True)
    AutoBackbone.register(DinoneckBackboneConfig, DinoneckBackbone, exist_ok=True)
    AutoModel.register(DinoneckBackboneConfig, DinoneckBackbone, exist_ok=True)


def attach_to_detr(model: nn.Module, encoder: PyramidEncoder) -> nn.Module:
    """Put an encoder into an existing D-FINE, RT-DETR or RT-DETRv2 model, in place; return the model.

    The projections after the backbone are re-initialised: none where the channels are the
    detector's own, else 1x1 and batch norm. Encoder and decoder keep their weights.
    ``save_pretrained`` does not record the change: to save and load with transformers, build the
    detector from a :class:`DinoneckBackboneConfig`.

    Args:
        model: such a model, or the ``...ForObjectDetection`` around it.
        encoder: with as many levels as the detector reads, each at half the resolution of the one
            before.

    Raises:
        ConfigError: if the model is of another kind, or the levels do not fit.
    """
    inner: Any = model.model if hasattr(model, "model") else model
    projections = getattr(inner, "encoder_input_proj", None)
    if not isinstance(encoder, PyramidEncoder):
        raise ConfigError(
            f"encoder is {type(encoder).__name__}; expected a PyramidEncoder(backbone, neck)"
        )
    has_backbone = isinstance(getattr(inner, "backbone", None), nn.Module)
    if not isinstance(projections, nn.ModuleList) or not has_backbone:
        raise ConfigError(
            f"{type(model).__name__} is not a D-FINE, RT-DETR or RT-DETRv2 model of transformers"
        )
    if len(projections) != len(encoder.strides):
        raise ConfigError(
            f"the detector reads {len(projections)} levels, the encoder gives "
            f"{len(encoder.strides)}"
        )
    if any(coarse != 2 * fine for fine, coarse in pairwise(encoder.strides)):
        raise ConfigError(
            f"the encoder's strides are {encoder.strides}; the detector needs each twice the one "
            "before"
        )
    width = inner.config.encoder_hidden_dim
    like = next(projections.parameters(), next(inner.parameters()))  # their device and dtype
    inner.backbone = MaskedLevels(encoder)
    inner.encoder_input_proj = nn.ModuleList()
    for _ in encoder.strides:
        projection: nn.Module = nn.Identity()
        if encoder.out_channels != width:
            conv = nn.Conv2d(encoder.out_channels, width, kernel_size=1, bias=False)
            projection = nn.Sequential(conv, nn.BatchNorm2d(width)).to(like)
        inner.encoder_input_proj.append(projection)
    return model


class MaskedLevels(nn.Module):
    """An encoder with the interface of those detectors: levels, each with the mask of valid pixels at its size."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.intermediate_channel_sizes = [encoder.out_channels] * len(encoder.strides)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of a level (B, C, rows, cols) and its mask (B, rows, cols), fine to coarse."""
        maps = self.encoder(pixel_values).maps
        mask = pixel_mask[:, None].float()  # (B, 1, H, W)
        masks = [
            nn.functional.interpolate(mask, size=level.shape[-2:])[:, 0].bool() for level in maps
        ]
        return list(zip(maps, masks, strict=True))


def _resolve_levels(
    names: list[str], features: Sequence[str] | None, indices: Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Return the output levels by name and by number.

    Args:
        names: of all levels.
        features: names of those asked for; None: by ``indices``.
        indices: their numbers, negative ones from the end; None: by ``features``, or all levels.

    Raises:
        ConfigError: for levels that do not exist, repeat or are in another order, for none, and for
            others by name than by number.
    """
    given_numbers = normal(Sequence[int] | None, indices, "out_indices")
    if features is None and given_numbers is None:
        return list(names), list(range(len(names)))
    if features is not None:
        numbers = _numbers_of_levels(names, features)
        if given_numbers is not None and list(given_numbers) != numbers:
            raise ConfigError(
                f"out_features={list(features)} are the levels {numbers}, and "
                f"out_indices={list(given_numbers)}; pass one of the two"
            )
        option = f"out_features={list(features)}"
    else:
        numbers = _count_from_start(names, given_numbers)
        option = f"out_indices={list(given_numbers)}"
    if not numbers:
        raise ConfigError(f"{option} names no level; expected one or more of {', '.join(names)}")
    if numbers != sorted(set(numbers)):
        raise ConfigError(
            f"{option} is not in the order of the levels, or repeats one; expected some of "
            f"{', '.join(names)}, in this order"
        )
    return [names[number] for number in numbers], numbers


def _numbers_of_levels(names: Sequence[str], features: Sequence[str]) -> list[int]:
    """The numbers of levels by name."""
    numbers = []
    for feature in features:
        if feature not in names:
            raise ConfigError(
                f"out_features names {feature!r}; expected one of {', '.join(names)}."
                f"{did_you_mean(feature, names)}"
            )
        numbers.append(names.index(feature))
    return numbers


def _count_from_start(names: Sequence[str], indices: Sequence[int]) -> list[int]:
    """The numbers of levels of which negative ones count from the end."""
    count = len(names)
    numbers = []
    for index in indices:
        if not -count <= index < count:
            raise ConfigError(
                f"out_indices names the level {index}; expected {-count} ... {count - 1} for "
                f"{', '.join(names)}"
            )
        numbers.append(index % count)
    return numbers


@contextmanager
def _recorded(blocks: Sequence[nn.Module], states: list[Tensor]) -> Iterator[None]:
    """Append the first block's input and every block's output to ``states``."""

    def record(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if block is blocks[0]:
            states.append(inputs[0])
        states.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(record) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _frozen_norms(neck: nn.Module) -> bool:
    return any("FrozenBatchNorm" in type(module).__name__ for module in neck.modules())


register()
