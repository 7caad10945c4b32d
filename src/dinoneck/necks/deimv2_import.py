"""Weights of DEIMv2 -> a SpatialTuningAdapter, and the backbone's beside it. Names of transformers and of DEIMv2."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinoneck.errors import BackboneError, CheckpointError, some_of
from dinoneck.necks.image_detail import WIDENING
from dinoneck.necks.spatial_tuning_adapter import SpatialTuningAdapter
from dinoneck.weight_files import read_state

Source = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module

_LEVELS = range(len(WIDENING))
_TRANSFORMERS = {
    "spatial_tuning_adapter.stem_conv.conv": "detail.stem.conv",
    "spatial_tuning_adapter.stem_conv.norm": "detail.stem.norm",
    **{f"spatial_tuning_adapter.conv{i + 2}.conv": f"detail.steps.{i}.conv" for i in _LEVELS},
    **{f"spatial_tuning_adapter.conv{i + 2}.norm": f"detail.steps.{i}.norm" for i in _LEVELS},
    **{f"fusion_proj.{i}.conv": f"project.{i}" for i in _LEVELS},
    **{f"fusion_proj.{i}.norm": f"norms.{i}" for i in _LEVELS},
}
# in the repository a GELU is the first entry of the second and third step
_REPOSITORY = {
    "sta.stem.0": "detail.stem.conv",
    "sta.stem.1": "detail.stem.norm",
    **{f"sta.conv{i + 2}.{min(i, 1)}": f"detail.steps.{i}.conv" for i in _LEVELS},
    **{f"sta.conv{i + 2}.{min(i, 1) + 1}": f"detail.steps.{i}.norm" for i in _LEVELS},
    **{f"convs.{i}": f"project.{i}" for i in _LEVELS},
    **{f"norms.{i}": f"norms.{i}" for i in _LEVELS},
}
_FAMILIES = ((_TRANSFORMERS, ("backbone.",)), (_REPOSITORY, ("dinov3._model.", "dinov3.")))
_COUNTER = "num_batches_tracked"
_EPS = 1e-5


def import_deimv2(source: Source, patch_size: int = 16, num_layers: int | None = None) -> SpatialTuningAdapter:
    """Return the neck that does what DEIMv2's adapter does; see :meth:`SpatialTuningAdapter.from_deimv2`."""
    return split_deimv2(source, patch_size, num_layers)[1]


def split_deimv2(
    source: Source, patch_size: int = 16, num_layers: int | None = None
) -> tuple[dict[str, Tensor], SpatialTuningAdapter]:
    """Take a DEIMv2 checkpoint apart: the weights of its ViT, and the neck that does what its adapter does.

    The encoder and the decoder of the detector are left where they are. DEIMv2 applies the ViT's final norm to every
    layer it reads, as ``load_backbone(..., layers=..., norm=True)`` does.

    Args:
        source: a ``.safetensors`` or ``.pth`` file, a state dict, or a model of transformers, whole or in part. A
            training checkpoint of the DEIMv2 repository holds the averaged weights too; they are the state dict
            ``["ema"]["module"]`` of the loaded file.
        patch_size: of the ViT.
        num_layers: layers of the tokens; None = those the model takes, 3 for a file or state dict.

    Returns:
        The ViT's state dict, empty if the source has none, under the names of transformers' DINOv3ViTModel or of the
        official files: saved as ``.safetensors`` it is a ``checkpoint=`` of ``load_backbone``, with
        ``source="transformers"`` for the former. And the neck, in eval mode, in the dtype of its weights.

    Raises:
        CheckpointError: if the file cannot be read, or weights are missing, unknown, misshapen or not finite.
    """
    state, where = _state_of(source)
    if num_layers is None:
        num_layers = _taps_of(source)
    names, prefix, backbones = _located(state, where)
    weights = _renamed(state, names, prefix, where)
    neck = _built(weights, patch_size, num_layers, where)
    for name in backbones:
        found = {key.removeprefix(prefix + name): state[key] for key in state if key.startswith(prefix + name)}
        if found:
            return found, neck
    return {}, neck


def _state_of(source: Source) -> tuple[Mapping[str, Tensor], str]:
    """The named tensors of any kind of source, and what messages call it."""
    if isinstance(source, nn.Module):
        where = type(source).__name__
        for name, module in source.named_modules():
            inside = {"spatial_tuning_adapter", "fusion_proj"} & set(name.split("."))
            if inside and getattr(module, "eps", _EPS) != _EPS:
                raise CheckpointError(
                    f"{where}: the eps of {name} is {module.eps}; this neck has {_EPS}", step="config"
                )
        return source.state_dict(), where
    if isinstance(source, Mapping):
        return source, "the state dict"
    try:
        return read_state(source), str(source)
    except BackboneError as error:
        raise CheckpointError(str(error)) from error


def _taps_of(source: Source) -> int:
    """How many layers a model of transformers feeds to its adapter; 3 where nothing tells."""
    config = getattr(source, "config", None)
    taps = getattr(getattr(config, "backbone_config", None), "out_indices", None)
    return len(taps) if taps else len(_LEVELS)


def _located(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """Whose names these are, what stands before them, and under which names the ViT is."""
    for names, backbones in _FAMILIES:
        anchors = "|".join(re.escape(name) for name in names)
        pattern = re.compile(rf"^((?:.*\.)?)(?:{anchors})\.(?:weight|running_var)$")
        prefixes = {match.group(1) for key in state if isinstance(key, str) and (match := pattern.match(key))}
        telling = {prefix for prefix in prefixes if any(key.startswith(prefix + _adapter(names)) for key in state)}
        if len(telling) > 1:
            raise CheckpointError(
                f"{where} holds {len(telling)} adapters, under {some_of(map(repr, telling), 4)}; pass one"
            )
        if telling:
            return names, telling.pop(), backbones
    raise CheckpointError(
        f"{where} holds no adapter of DEIMv2; expected names such as spatial_tuning_adapter.stem_conv.conv.weight "
        "(transformers) or sta.stem.0.weight (the DEIMv2 repository), under any prefix",
        step="tensors",
    )


def _adapter(names: Mapping[str, str]) -> str:
    return next(iter(names)).split(".")[0] + "."


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str], prefix: str, where: str) -> dict[str, Tensor]:
    """The adapter's tensors under our names; nothing under its prefixes may be left over."""
    parts = tuple({prefix + name.split(".")[0] + "." for name in names})
    wanted = {
        f"{prefix}{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in names.items()
        for kind in (
            ("weight",) if ours.endswith("conv") or ours.startswith("project") else
            ("weight", "bias", "running_mean", "running_var", _COUNTER)
        )
    }  # fmt: skip
    given = {key for key in state if key.startswith(parts)}
    unknown = given - wanted.keys()
    missing = {key for key in wanted if not key.endswith(_COUNTER)} - given
    if missing or unknown:
        told = [f"lacks {some_of(missing, 6)}"] if missing else []
        told += [f"holds {some_of(unknown, 6)}, which this neck has no place for"] if unknown else []
        raise CheckpointError(f"{where} {' and '.join(told)}", step="tensors")
    empty = [key for key in sorted(given) if not isinstance(state[key], Tensor) or state[key].is_meta]
    if empty:
        raise CheckpointError(f"{where} holds no tensors, or none with values, for {some_of(empty, 6)}", step="tensors")
    renamed = {wanted[key]: state[key] for key in sorted(given)}
    for ours in wanted.values():
        if ours not in renamed:  # a frozen norm counts nothing
            renamed[ours] = torch.zeros((), dtype=torch.long)
    return renamed


def _built(weights: dict[str, Tensor], patch_size: int, num_layers: int, where: str) -> SpatialTuningAdapter:
    """A neck of the widths that the weights have, filled."""
    fused = [weights[f"project.{place}.weight"] for place in _LEVELS]
    stem = weights["detail.stem.conv.weight"]
    for place, weight in enumerate(fused):
        if weight.ndim == 4 and weight.shape[2:] == (1, 1):
            weights[f"project.{place}.weight"] = weight.flatten(1)
    detail_dim, (out_channels, width) = stem.shape[0] if stem.ndim else 0, (*fused[0].shape, 0, 0)[:2]
    embed_dim = width - WIDENING[0] * detail_dim
    if not stem.is_floating_point():
        raise CheckpointError(f"{where}: the stem's weights are {stem.dtype}; expected floating point", step="tensors")
    if not detail_dim or not out_channels or embed_dim < 1:
        raise CheckpointError(
            f"{where}: the first fusion weight is {tuple(fused[0].shape)} and the stem's {tuple(stem.shape)}; expected "
            "(outputs, C + 2c, 1, 1) and (c, 3, 3, 3)",
            step="tensors",
        )
    neck = SpatialTuningAdapter(
        embed_dim, out_channels, num_layers, "deimv2", detail_dim, patch_size=patch_size, device="meta",
        dtype=stem.dtype,
    )  # fmt: skip
    _check_fit(neck.state_dict(), weights, where)
    neck = neck.to_empty(device="cpu")
    if neck.mix is not None:  # of another number of layers than DEIMv2 knows: it starts as in a new neck
        neck.reset_parameters()
        weights["mix"] = neck.mix.detach().clone()
    neck.load_state_dict(weights)
    return neck.eval()


def _check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"{where}: the weights of {key} are {tuple(value.shape)}; expected {tuple(own[key].shape)}",
                step="tensors",
            )
        if key.endswith(_COUNTER):
            continue
        if value.dtype != own[key].dtype or not value.is_floating_point():
            raise CheckpointError(
                f"{where}: the weights of {key} are {value.dtype}; expected {own[key].dtype}", step="tensors"
            )
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{where}: the weights of {key} are not all finite", step="finite")
