"""Weights of DEIMv2 under the names of a SpatialTuningAdapter. The names of transformers and of DEIMv2 are here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.errors import BackboneError, CheckpointError, some_of
from dinoneck.necks.image_detail import WIDENING
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
# in the DEIMv2 repository a GELU is the first entry of the second and third step
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


class DEIMv2Weights(NamedTuple):
    """What a checkpoint of DEIMv2 holds of its backbone and neck.

    Attributes:
        backbone: the ViT's state dict, under its own names; empty if there is none.
        config: arguments of the SpatialTuningAdapter.
        neck: its state dict, without a learned mix of layers.
        dtype: of the neck's weights.
        source: the file or class, for messages.
    """

    backbone: dict[str, Tensor]
    config: dict[str, Any]
    neck: dict[str, Tensor]
    dtype: torch.dtype
    source: str

    def check_shapes(self, neck: nn.Module) -> None:
        """Compare every weight with the neck's.

        Raises:
            CheckpointError: if a shape or dtype differs, or a value is not finite.
        """
        own = neck.state_dict()
        for key, value in self.neck.items():
            if value.shape != own[key].shape:
                raise CheckpointError(
                    f"{self.source}: the weights of {key} are {tuple(value.shape)}; expected {tuple(own[key].shape)}",
                    step="tensors",
                )
            if key.endswith(_COUNTER):
                continue
            if value.dtype != own[key].dtype or not value.is_floating_point():
                raise CheckpointError(
                    f"{self.source}: the weights of {key} are {value.dtype}; expected {own[key].dtype}", step="tensors"
                )
            if not bool(value.isfinite().all()):
                raise CheckpointError(f"{self.source}: the weights of {key} are not all finite", step="finite")


def read_deimv2(source: Source, patch_size: int, num_layers: int | None) -> DEIMv2Weights:
    """Read the weights of the ViT and of the adapter; see :func:`dinoneck.split_deimv2`.

    Raises:
        CheckpointError: if the source cannot be read, or weights are missing or unknown.
    """
    state, where = _state_of(source)
    names, prefix, backbones = _find_adapter(state, where)
    weights = _rename(state, names, prefix, where)
    project, stem = [weights[f"project.{place}.weight"] for place in _LEVELS], weights["detail.stem.conv.weight"]
    for place, weight in enumerate(project):
        if weight.ndim == 4 and weight.shape[2:] == (1, 1):
            weights[f"project.{place}.weight"] = weight.flatten(1)
    detail_dim, (out_channels, width) = stem.shape[0] if stem.ndim else 0, (*project[0].shape, 0, 0)[:2]
    embed_dim = width - WIDENING[0] * detail_dim
    if not stem.is_floating_point():
        raise CheckpointError(f"{where}: the stem's weights are {stem.dtype}; expected floating point", step="tensors")
    if not detail_dim or not out_channels or embed_dim < 1:
        raise CheckpointError(
            f"{where}: the first fusion weight is {tuple(project[0].shape)} and the stem's {tuple(stem.shape)}; "
            "expected (outputs, C + 2c, 1, 1) and (c, 3, 3, 3)",
            step="tensors",
        )
    config = {
        "embed_dim": embed_dim, "out_channels": out_channels, "detail": "deimv2", "detail_dim": detail_dim,
        "num_layers": _num_layers(source) if num_layers is None else num_layers, "patch_size": patch_size,
    }  # fmt: skip
    found = (_without_prefix(state, prefix + name) for name in backbones)
    return DEIMv2Weights(next(filter(None, found), {}), config, weights, stem.dtype, where)


def _without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _state_of(source: Source) -> tuple[Mapping[str, Tensor], str]:
    """The named tensors of any kind of source, and its name in messages."""
    if isinstance(source, nn.Module):
        where = type(source).__name__
        for name, module in source.named_modules():
            inside = {"spatial_tuning_adapter", "fusion_proj"} & set(name.split("."))
            if inside and getattr(module, "eps", _EPS) != _EPS:
                raise CheckpointError(
                    f"{where}: the eps of {name} is {module.eps}; expected {_EPS}", step="config"
                )  # fmt: skip
        return source.state_dict(), where
    if isinstance(source, Mapping):
        return source, "the state dict"
    try:
        return read_state(source), str(source)
    except BackboneError as error:
        raise CheckpointError(str(error)) from error


def _num_layers(source: Source) -> int:
    """How many layers a model of transformers feeds to its adapter; 3 where the source does not state it."""
    config = getattr(source, "config", None)
    out_indices = getattr(getattr(config, "backbone_config", None), "out_indices", None)
    return len(out_indices) if out_indices else len(_LEVELS)


def _find_adapter(state: Mapping[str, Tensor], where: str) -> tuple[dict[str, str], str, tuple[str, ...]]:
    """The table of names that the state follows, the prefix before them, and the possible prefixes of the ViT."""
    for names, backbones in _FAMILIES:
        parts = "|".join(re.escape(name) for name in names)
        pattern = re.compile(rf"^((?:.*\.)?)(?:{parts})\.(?:weight|running_var)$")
        prefixes = {match.group(1) for key in state if isinstance(key, str) and (match := pattern.match(key))}
        adapter = next(iter(names)).split(".")[0] + "."
        complete = {prefix for prefix in prefixes if any(key.startswith(prefix + adapter) for key in state)}
        if len(complete) > 1:
            raise CheckpointError(
                f"{where} holds {len(complete)} adapters, under {some_of(map(repr, complete), 4)}; pass one"
            )
        if complete:
            return names, complete.pop(), backbones
    raise CheckpointError(
        f"{where} holds no adapter of DEIMv2; expected names such as spatial_tuning_adapter.stem_conv.conv.weight "
        "(transformers) or sta.stem.0.weight (the DEIMv2 repository), under any prefix",
        step="tensors",
    )


def _kinds(name: str) -> Iterator[str]:
    """The tensors of a layer of the neck: convolutions have no bias, norms running statistics."""
    yield "weight"
    if not name.endswith("conv") and not name.startswith("project"):
        yield from ("bias", "running_mean", "running_var", _COUNTER)


def _rename(state: Mapping[str, Tensor], names: Mapping[str, str], prefix: str, where: str) -> dict[str, Tensor]:
    """The adapter's tensors under the neck's names; every tensor under the adapter's prefixes must be known."""
    renamed = {f"{prefix}{old}.{kind}": f"{new}.{kind}" for old, new in names.items() for kind in _kinds(new)}
    present = {key for key in state if key.startswith(tuple(prefix + name.split(".")[0] + "." for name in names))}
    unknown = present - renamed.keys()
    missing = {key for key in renamed if not key.endswith(_COUNTER)} - present
    if missing or unknown:
        faults = [f"lacks {some_of(missing, 6)}"] if missing else []
        faults += [f"holds {some_of(unknown, 6)}, which this neck does not have"] if unknown else []
        raise CheckpointError(f"{where} {' and '.join(faults)}", step="tensors")
    empty = [key for key in sorted(present) if not isinstance(state[key], Tensor) or state[key].is_meta]
    if empty:
        raise CheckpointError(f"{where} holds no tensors, or none with values, for {some_of(empty, 6)}", step="tensors")
    no_batches = torch.zeros((), dtype=torch.long)  # frozen norms have no counter
    return {new: state.get(old, no_batches) for old, new in renamed.items()}
