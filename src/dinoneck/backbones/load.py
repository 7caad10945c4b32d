"""load_backbone and wrap_backbone: build a Backbone from a name, or from an existing model."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.backbones import official, transformers, vit_files, weights
from dinoneck.backbones.adapter import Adapter, PosEmbed
from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.forward_check import check_forward
from dinoneck.backbones.known import (
    KNOWN,
    SATELLITE,
    TINY,
    architecture_of,
    is_of_transformers,
    model_of,
    names_of,
    resolve_name,
    states_tag,
    weights_of_file,
)
from dinoneck.backbones.runtime import check_runtime
from dinoneck.backbones.weight_hashes import uniform
from dinoneck.dtypes import float_dtype
from dinoneck.errors import BackboneError, ConfigError
from dinoneck.kinds import Runtime
from dinoneck.text import counted, did_you_mean
from dinoneck.torch_wrappers import KEEP_MODEL

logger = logging.getLogger(__name__)

Source = Literal["timm", "transformers"]
File = str | os.PathLike[str]
Loaded = tuple[Adapter, dict[str, Any]]  # the model, and the record of where its weights come from


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, read.

    Attributes:
        path: of the file.
        state: the tensors of its ViT, by the ViT's own names.
    """

    path: str | os.PathLike[str]
    state: Mapping[str, Tensor]


def load_backbone(
    name: str,
    *,
    source: Source = "timm",
    pretrained: bool = True,
    layers: int | Sequence[int] | None = None,
    norm: bool = True,
    frozen: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | str | None = None,
    pos_embed: PosEmbed = "native",
    runtime: Runtime = "torch",
) -> Backbone:
    """Load a ViT by name: DINOv2, DINOv3, LingBot-Vision or TIPSv2.

    The same name and weights give the same Tokens from any library, with one recipe of positions.

    Any image size that the patch divides works, for DINOv2 too. ``"dinoneck_tiny"`` is a built-in
    seeded backbone (64 channels, 6 blocks, patch 16, 2 registers) for documentation and tests.

    Args:
        name: in timm (``vit_small_patch16_dinov3``, ``timm/...``), torch.hub (``dinov3_vits16``) or
            transformers (``facebook/dinov3-...``, a hub name or folder of your own), or an alias
            (``tipsv2_b14``). :func:`wrap_backbone` takes a model.
        source: library of code and weights: ``"timm"``, or ``"transformers"`` (extra ``[hf]``).
        pretrained: load the published weights from the local cache or the hub.
        layers: block indices, 0-based, in the order of the output, duplicates kept, negative from
            the end; None = the last block, an integer n = the n last.
        norm: apply the model's final norm to every layer.
        frozen: keep in eval mode, without autograd. False: all parameters that affect the output
            are trainable.
        checkpoint: a local ``.pth``, ``.npz`` or ``.safetensors`` file instead, official or of the
            library's names; every tensor of the ViT must match. Checkpoints of trainings are read
            too (DINOv2, DINOv3, Lightning, DDP): the averaged model or the teacher, without its
            heads. A file or folder name of published weights gives their tag, mean, std and
            licence; the licence of other files is not known.
        seed: of random weights, with ``pretrained=False``: the same on every machine; None = 0.
        dtype: of the weights and tokens, of torch or by name, such as ``"bfloat16"``; None keeps
            float32.
        pos_embed: how position embeddings are resampled to another grid: ``"native"``, as the
            library does it, or ``"official"``, as the publisher's repository does it. They differ
            for DINOv2 without registers at sizes other than 518 x 518: at 224 x 224 by several
            percent of the features. In timm they also differ for TIPSv2, unless images have 448 x
            448 px.
        runtime: what computes the tokens of frozen weights: ``"torch"``; ``"openvino"`` (extra
            ``[fast]``), which is faster on many CPUs; or ``"auto"``, the faster of both, see
            :meth:`Backbone.with_runtime`.

    Raises:
        BackboneError: if the name is unknown, weights are unavailable or do not fit, a file has the
            name of another model's weights, or a layer does not exist.
        ConfigError: if arguments contradict each other.
        ImportError: naming the extra, if the library is not installed.

    Examples:
        >>> backbone = load_backbone("dinoneck_tiny", layers=[5, 2])
        >>> tokens = backbone(torch.zeros(1, 3, 32, 48))
        >>> tokens.layers, tokens.grid, tokens.patches[0].shape
        ((5, 2), GridSize(rows=2, cols=3), torch.Size([1, 6, 64]))
    """
    _check_name(name)
    _check_choices(source, pos_embed)
    if dtype is not None:
        dtype = float_dtype(dtype)
    _check_flags(pretrained=pretrained, norm=norm, frozen=frozen)
    check_runtime(runtime)
    _check_seed(seed)
    asked_name = name
    if source == "timm" or not (is_of_transformers(name) or Path(name).is_dir()):
        name = resolve_name(name)  # folders, and names of transformers' own with it, are kept
    random = checkpoint is None and (name == TINY or not pretrained)
    if seed is not None and not random:
        raise ConfigError(
            f"seed={seed} applies to random weights only; pass pretrained=False with it"
        )
    is_folder_with_weights = source == "transformers" and Path(name).is_dir()
    if is_folder_with_weights and (random or checkpoint is not None):
        raise ConfigError(
            f"{name} is a folder with weights of its own; leave pretrained=, seed= and "
            "checkpoint= out"
        )
    with torch.inference_mode(False):  # tensors made in that mode do not count the writes to them
        file = None
        if checkpoint is not None:
            name = _named_by_file(name, asked_name, checkpoint)
            file = _read_file(name, source, checkpoint)
            if source == "timm":
                name = _with_biases(name, asked_name, file)
        if random and seed is None:
            seed = 0
        if source == "timm":
            adapter, origin = _from_timm(name, file, seed, pos_embed)
        else:
            adapter, origin = _from_transformers(name, file, seed, pos_embed)
    if origin["kind"] == "file":
        path = Path(name, "model.safetensors") if checkpoint is None else checkpoint
        if weights_of_file(path) is None:
            adapter.has_published_weights = False
            adapter.license = None
    full_name = name
    if not random and checkpoint is None and adapter.name is not None:
        full_name = adapter.name
    backbone = Backbone(
        adapter, name=full_name, layers=layers, norm=norm, frozen=True, origin=origin
    )
    backbone = backbone.to(dtype=dtype)
    if runtime != "torch":
        backbone = backbone.with_runtime(runtime)
    if not frozen:
        backbone.unfreeze().train()
    return backbone


def wrap_backbone(
    model: nn.Module,
    *,
    layers: int | Sequence[int] | None = None,
    norm: bool = True,
    frozen: bool = True,
    dtype: torch.dtype | str | None = None,
    pos_embed: PosEmbed = "native",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Wrap an existing model: of timm, of transformers, or an official object.

    It is used, not copied.

    Recognised are timm's VisionTransformer and Eva; transformers' Dinov2Model,
    Dinov2WithRegistersModel, DINOv3ViTModel and Tipsv2VisionModel; and objects with the
    ``get_intermediate_layers`` of the dinov2 and dinov3 repositories. With ``frozen=True`` its
    parameters stop requiring gradients and it is put into eval mode; else both stay as they are.

    The tokens are those of the model's own forward, bit for bit on a CPU. That is compared here,
    with one small image and block by block, since people change models: it takes the time of two
    forwards of 2 x 3 patches. A model without a kernel on its device or in its dtype is wrapped
    uncompared, with a log line: move it first.

    Args:
        model: the object.
        layers: as for :func:`load_backbone`; None = the ``out_indices`` of transformers' Backbone
            forms, the last block of the others.
        norm: as for :func:`load_backbone`.
        frozen: as for :func:`load_backbone`.
        dtype: converted to this, of torch or by name; None keeps the model's.
        pos_embed: as for :func:`load_backbone`.
        mean: per-channel mean of the images in 0 ... 1, of ``backbone.preprocess``; None = what the
            model says, or ImageNet's. Models of other channels than RGB need both.
        std: per-channel standard deviation, given together with ``mean``.

    Raises:
        BackboneError: if the model is of another kind, its own forward gives other tokens than its
            parts, or they are not finite.
        ConfigError: if an option is of another type, or mean and std are not one number per channel.
    """
    _check_choices("timm", pos_embed)
    if dtype is not None:
        dtype = float_dtype(dtype)
    _check_flags(norm=norm, frozen=frozen)
    adapter = _adapter(model, pos_embed)
    _set_normalisation(adapter, mean, std)
    if layers is None:
        layers = adapter.configured_layers(norm)
    for warning in check_forward(adapter):
        warnings.warn(warning, stacklevel=2)
    backbone = Backbone(
        adapter,
        name=adapter.name or type(model).__name__,
        layers=layers,
        norm=norm,
        frozen=frozen,
        origin={"kind": "object"},
    )
    return backbone.to(dtype=dtype)


def _set_normalisation(
    adapter: Adapter, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    """Take the mean and std of the caller, one number per channel each."""
    if mean is None and std is None:
        return
    channels = adapter.in_chans
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        raise ConfigError(
            f"mean is {mean} and std is {std}; expected {counted(channels, 'number')} each, one per "
            "channel that the model takes"
        )
    adapter.mean = tuple(float(value) for value in mean)
    adapter.std = tuple(float(value) for value in std)


def _adapter(model: nn.Module, pos_embed: PosEmbed) -> Adapter:
    """Return the adapter of the library that the model comes from."""
    kind = type(model).__name__
    if isinstance(model, str):
        raise BackboneError(f"model is the text {model!r}; load_backbone(name) takes a name")
    if not isinstance(model, nn.Module):
        raise BackboneError(f"model is a {kind}; expected a torch module")
    if isinstance(model, Backbone):
        raise BackboneError(
            "this is a Backbone already; backbone.with_layers(...) gives other layers of it"
        )
    for attribute in KEEP_MODEL:
        if isinstance(getattr(model, attribute, None), nn.Module):
            raise BackboneError(
                f"{kind} wraps a model, as torch.compile and DDP do; pass its .{attribute}, and "
                "wrap the Backbone"
            )
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise BackboneError(
            f"{kind} holds adapters of peft, which the backbone's record would not name; merge "
            "them (merge_and_unload()), or pass the plain model and use backbone.add_lora()"
        )
    # here: it imports timm and torchvision, which take as long as torch
    from dinoneck.backbones import timm

    if timm.is_timm(model):
        return timm.TimmAdapter(model, pos_embed)
    if transformers.is_transformers(model):
        return transformers.TransformersAdapter(model, pos_embed)
    if official.is_official(model):
        return official.OfficialAdapter(model, pos_embed)
    hint = ""
    if isinstance(getattr(model, "backbone", None), nn.Module):
        hint = ". If its .backbone is one, pass that"
    raise BackboneError(
        f"{kind} is not a model that can be wrapped; expected a timm VisionTransformer or Eva, a "
        f"DINO model of transformers, or an object of the dinov2 or dinov3 repositories{hint}"
    )


def _named_by_file(name: str, asked_name: str, path: File) -> str:
    """Return the name with the tag of the weights that a file's name or folder names, if it names some.

    Args:
        name: of the model, with the tag that its name alone stands for.
        asked_name: as the caller gave it.
        path: the file.

    Raises:
        BackboneError: if the file's name is that of another model's weights.
    """
    published = weights_of_file(path)
    if published is None:
        if SATELLITE in Path(path).name.lower() and SATELLITE not in name:
            logger.warning(
                "%s: the name says %s, and images are prepared as for %s; give the name with the "
                "tag of the weights, such as vit_large_patch16_dinov3.%s, if that is not meant",
                path,
                SATELLITE,
                name,
                SATELLITE,
            )
        return name
    names = names_of(name)
    full = name if names is None else names.timm
    if architecture_of(published) != architecture_of(full):
        raise BackboneError(
            f"{path} has the name of the weights {published!r}, and the model is {asked_name!r}; "
            f"load it as {published!r}, or rename the file if it holds other weights"
        )
    tag = published.partition(".")[2]
    if full.endswith(f".{tag}"):
        return name
    if states_tag(asked_name):
        logger.warning(
            "%s has the name of the weights %s, and is loaded as %s, as asked: mean, std and "
            "licence are of that",
            path,
            published,
            asked_name,
        )
        return name
    logger.info("%s: the weights are %s, by the name of the file", path, published)
    tagged = f"{full.partition('.')[0]}.{tag}"
    return tagged if names_of(tagged) else published


def _read_file(name: str, source: Source, path: File) -> WeightsFile:
    """Read a file of weights for a model whose name has been checked."""
    if source == "timm":
        from dinoneck.backbones import timm

        timm.check_name(name)
    return WeightsFile(path, vit_files.read_vit(path, name))


def _with_biases(name: str, asked_name: str, file: WeightsFile) -> str:
    """Return timm's name of the architecture with query and value biases, where Meta's file has them.

    Under Meta's own name that is the architecture; timm has two, and the name without ``_qkvb``
    stands for the one without.
    """
    published = model_of(name)
    if published is None or asked_name != published.official:
        return name
    if not weights.has_query_bias(file.state):
        return name
    architecture, _, tag = name.partition(".")
    with_biases = f"{architecture}_qkvb"
    if not any(model.name == with_biases for model in KNOWN):
        return name
    logger.info("%s has query and value biases: it is loaded as %s", file.path, with_biases)
    return f"{with_biases}.{tag}"


def _from_timm(
    name: str, file: WeightsFile | None, seed: int | None, pos_embed: PosEmbed
) -> Loaded:
    """Build a timm model with seeded weights, else with those of a file, else with the published ones."""
    adapter = _empty(name, pos_embed, file)
    if seed is not None:
        return adapter, fill_seeded(adapter.model, seed)
    if file is not None:
        weights.load_vit(adapter.model, file.state, file.path)
        return adapter, {"kind": "file"}
    if adapter.hub_id is None:
        raise BackboneError(
            "no published weights of this model are known; pass checkpoint= or pretrained=False"
        )
    folder, revision = weights.fetch(adapter.hub_id)
    weights.load_file(adapter.model, folder / "model.safetensors")
    return adapter, {"kind": "hub", "repo": adapter.hub_id, "revision": revision}


def _from_transformers(
    name: str, file: WeightsFile | None, seed: int | None, pos_embed: PosEmbed
) -> Loaded:
    """Load a folder, a hub model or a file of its names; seeded weights are converted from timm's names."""
    folder = Path(name)
    if folder.is_dir():
        model = transformers.from_folder(folder)
        return transformers.TransformersAdapter(model, pos_embed), {"kind": "file"}
    names = names_of(name)
    timm_name: str = name
    repo: str | None = name
    if names is not None:
        timm_name = names.timm
        repo = names.transformers
    if seed is not None or file is not None:
        return _by_way_of_timm(timm_name, file, seed, pos_embed)
    if repo is None or "/" not in repo:
        raise BackboneError(
            f"transformers has no weights of {name!r}; use source='timm', or a folder or hub name"
        )
    transformers.import_transformers()  # a missing package is named before anything is downloaded
    folder, revision = weights.fetch(repo, "config.json")
    adapter = transformers.TransformersAdapter(transformers.from_folder(folder), pos_embed)
    adapter.name = repo
    return adapter, {"kind": "hub", "repo": repo, "revision": revision}


def _by_way_of_timm(
    name: str, file: WeightsFile | None, seed: int | None, pos_embed: PosEmbed
) -> Loaded:
    """Build the transformers model of a timm name, with a file of transformers' own names or timm's seeded weights."""
    donor = _empty(name, pos_embed, file)
    origin: dict[str, Any] = {"kind": "file"}
    if seed is not None:
        origin = fill_seeded(donor.model, seed)
    with torch.random.fork_rng(devices=[]):  # what transformers draws is overwritten
        adapter = transformers.TransformersAdapter(transformers.from_timm(donor.model), pos_embed)
    if file is not None:
        weights.load_state(adapter.model, file.state, file.path)
    adapter.name = donor.name
    adapter.mean = donor.mean
    adapter.std = donor.std
    adapter.license = donor.license
    return adapter, origin


def _empty(name: str, pos_embed: PosEmbed, file: WeightsFile | None = None) -> Adapter:
    """Build a timm model whose weights are overwritten next, in the shape of a file's."""
    from dinoneck.backbones import timm

    options = {} if file is None else _options_of(file, name)
    with torch.random.fork_rng(devices=[]):  # what timm draws is overwritten
        return timm.TimmAdapter(timm.build(name, **options), pos_embed)


def _options_of(file: WeightsFile, name: str) -> dict[str, int]:
    """Return, and log, timm's options for what the model in a file has other than the published one."""
    shape = vit_files.shape_of(file.state)
    if shape is None:
        return {}
    options = shape.timm_options(name, file.path)
    if options:
        listed = ", ".join(f"{key}={value}" for key, value in options.items())
        logger.warning("%s: the model is built with %s, as it was trained", file.path, listed)
    return options


def _check_name(name: object) -> None:
    """Raise a ConfigError for what is not the name of a model."""
    if not isinstance(name, str):
        raise ConfigError(
            f"name is a {type(name).__name__}; expected the name of a model. wrap_backbone(model) "
            "takes a model"
        )


def _check_seed(seed: object) -> None:
    """Raise a ConfigError for a seed that is neither None nor a whole number of 0 or more."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ConfigError(f"seed is {seed!r}; expected a whole number, 0 or more, or None")


def _check_choices(source: object, pos_embed: object) -> None:
    """Reject unknown libraries and recipes of positions."""
    if pos_embed not in get_args(PosEmbed):
        raise ConfigError(f"pos_embed is {pos_embed!r}; known: {', '.join(get_args(PosEmbed))}")
    if source not in get_args(Source):
        raise BackboneError(
            f"source is {source!r}; known: "
            f"{', '.join(get_args(Source))}.{did_you_mean(source, get_args(Source))} For an "
            f"official object: {official.HOW_TO}"
        )


def _check_flags(**flags: object) -> None:
    """Raise a ConfigError for a flag that is not True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} is {value!r}; expected True or False")


# the scheme of seeded weights: uniform values in these ranges
SCHEME = "philox-uniform-1"
_LAYER_SCALE = (0.1, 0.3)
_NORM_WEIGHT = (0.9, 1.1)
_SMALL = 0.02 * math.sqrt(3.0)  # the standard deviation is 0.02


def fill_seeded(model: nn.Module, seed: int) -> dict[str, Any]:
    """Overwrite every parameter with seeded random values, meta tensors excepted; return the record of the weights."""
    norm_weights = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            norm_weights.add(f"{name}.weight" if name else "weight")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                continue
            low, high = _range_of(name, parameter, is_norm_weight=name in norm_weights)
            unit = uniform(name, parameter.numel(), seed).reshape(parameter.shape)
            parameter.copy_(torch.from_numpy(unit * np.float32(high - low) + np.float32(low)))
    return {"kind": "seeded", "seed": seed, "scheme": SCHEME}


def _range_of(name: str, parameter: Tensor, *, is_norm_weight: bool) -> tuple[float, float]:
    """Return the smallest and the largest value of a seeded parameter."""
    last = name.rsplit(".", 1)[-1]
    if last.startswith("gamma"):
        return _LAYER_SCALE
    if is_norm_weight:
        return _NORM_WEIGHT
    bound = _SMALL
    if last == "weight" and parameter.ndim >= 2:
        inputs = parameter[0].numel()
        bound = math.sqrt(3.0 / inputs)  # the variance is 1 / inputs
    return -bound, bound
