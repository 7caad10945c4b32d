"""One translator from the tensors of publishers' files to those of our modules: strict in names and shapes.

The two libraries number the fusion blocks of a DPT from the coarsest (f), we number them from the finest (n = 3 - f).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError, some_of

_SHOWN = 5
_EPS = 1e-5  # of the publishers' batch norms
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


class Dialect(NamedTuple):
    """The names of one form of file.

    Attributes:
        names: our name, with {n} for its number -> the file's, with {n} and {f}.
        norms: the file's name of a layer -> the batch norm before it, which is folded into the layer.
        unused: names that a file may hold and no head reads, as a regular expression.
    """

    names: Mapping[str, str]
    norms: Mapping[str, str] = {}
    unused: str = r"(?!)"


_META_DPT = {
    "neck.reassemble.{n}.readout_linear": "reassemble_blocks.readout_projects.{n}.0",
    "neck.reassemble.{n}.project": "reassemble_blocks.projects.{n}.conv",
    "neck.reassemble.{n}.up": "reassemble_blocks.resize_layers.{n}",
    "neck.reassemble.{n}.down": "reassemble_blocks.resize_layers.{n}",
    "neck.reassemble.{n}.widen": "convs.{n}.conv",
    "neck.fusion.{n}.lateral.first": "fusion_blocks.{f}.res_conv_unit1.conv1.conv",
    "neck.fusion.{n}.lateral.second": "fusion_blocks.{f}.res_conv_unit1.conv2.conv",
    "neck.fusion.{n}.unit.first": "fusion_blocks.{f}.res_conv_unit2.conv1.conv",
    "neck.fusion.{n}.unit.second": "fusion_blocks.{f}.res_conv_unit2.conv2.conv",
    "neck.fusion.{n}.project": "fusion_blocks.{f}.project.conv",
    "mix": "project.conv",
    "readouts.{n}.first": "conv_depth.head.0",
    "readouts.{n}.second": "conv_depth.head.2",
    "readouts.{n}.out": "conv_depth.head.4",
}
_HUB_DPT = {
    "neck.reassemble.{n}.readout_linear": "neck.reassemble_stage.readout_projects.{n}.0",
    "neck.reassemble.{n}.project": "neck.reassemble_stage.layers.{n}.projection",
    "neck.reassemble.{n}.up": "neck.reassemble_stage.layers.{n}.resize",
    "neck.reassemble.{n}.down": "neck.reassemble_stage.layers.{n}.resize",
    "neck.reassemble.{n}.widen": "neck.convs.{n}",
    "neck.fusion.{n}.lateral.first": "neck.fusion_stage.layers.{f}.residual_layer1.convolution1",
    "neck.fusion.{n}.lateral.second": "neck.fusion_stage.layers.{f}.residual_layer1.convolution2",
    "neck.fusion.{n}.unit.first": "neck.fusion_stage.layers.{f}.residual_layer2.convolution1",
    "neck.fusion.{n}.unit.second": "neck.fusion_stage.layers.{f}.residual_layer2.convolution2",
    "neck.fusion.{n}.project": "neck.fusion_stage.layers.{f}.projection",
    "mix": "head.projection",
    "readouts.{n}.first": "head.head.0",
    "readouts.{n}.second": "head.head.2",
    "readouts.{n}.out": "head.head.4",
}
_CHMV2 = {
    ours: re.sub(r"^(neck|head)\.(fusion_stage\.layers)?", lambda m: f"head.{'fusion_layers' * bool(m[2])}", theirs)
    for ours, theirs in _HUB_DPT.items()
} | {f"readouts.{{n}}.{part}": f"head.conv_depth.head.{i}" for i, part in ((0, "first"), (2, "second"), (4, "out"))}
_ANYTHING = _HUB_DPT | {
    "readouts.{n}.first": "head.conv1",
    "readouts.{n}.second": "head.conv2",
    "readouts.{n}.out": "head.conv3",
}
_UNUSED = r"backbone\.|neck\.fusion_stage\.layers\.0\.residual_layer1\."  # the latter is stored and never called
DIALECTS = (
    Dialect({"readouts.{n}": ""}),  # a classifier
    Dialect({"readouts.{n}": "classifier"}, unused=r"dinov2(_with_registers)?\."),  # of transformers
    Dialect({"readouts.{n}": "decode_head.conv_depth"}),
    Dialect({"readouts.{n}": "decode_head.conv_seg"}, {"decode_head.conv_seg": "decode_head.bn"}),
    Dialect({ours: f"decode_head.{theirs}" for ours, theirs in _META_DPT.items()}),  # DINOv2's
    Dialect(_META_DPT),  # DINOv3's
    Dialect(
        _META_DPT,
        {f"reassemble_blocks.projects.{n}.conv": f"reassemble_blocks.batchnorm_layers.{n}" for n in range(4)},
    ),
    Dialect(_HUB_DPT, unused=_UNUSED),  # of transformers, as those that follow
    Dialect(_ANYTHING, unused=_UNUSED),
    Dialect(_CHMV2, unused=r"backbone\."),
)


def translated(state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the tensors of a file under our names and in our shapes, in float32.

    Of the dialects that have our names, the one with the most names of the file is taken.

    Args:
        state: of the file.
        own: the tensors of the module, on any device; only names and shapes are read.
        where: the file, for messages.

    Raises:
        CheckpointError: naming the tensors that are missing, unknown, or of another shape or type.
    """
    known = [each for each in DIALECTS if {_generic(name) for name in own} <= each.names.keys()]
    dialect = max(known, key=lambda each: len(state.keys() & _expected(own, each).keys()))
    expected, names = _expected(own, dialect), _names(own, dialect)
    counters = {f"{norm}.num_batches_tracked" for norm in dialect.norms.values()}
    given = {name: x for name, x in state.items() if name not in counters and not re.match(dialect.unused, name)}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{where} lacks {some_of(missing, _SHOWN) or 'nothing'} of this head, and holds "
            f"{some_of(unknown, _SHOWN) or 'nothing'} that it does not have: it is the file of another head",
            step="tensors",
        )
    for name, shapes in expected.items():
        if tuple(given[name].shape) not in shapes or not given[name].is_floating_point():
            raise CheckpointError(
                f"{where}: {name} is {given[name].dtype} {tuple(given[name].shape)}; expected floats of shape "
                f"{shapes[-1]}: it is the file of another head",
                step="tensors",
            )
    folded = {**given, **dict(_folded(given, dialect.norms))}
    return {ours: folded[theirs].float().reshape(own[ours].shape) for theirs, ours in names.items()}


def _generic(name: str) -> str:
    """Our name of a module, with {n} for its number."""
    return re.sub(r"\d", "{n}", name.rpartition(".")[0])


def _names(own: Mapping[str, Tensor], dialect: Dialect) -> dict[str, str]:
    """The file's names -> ours."""
    found = {}
    for name in own:
        number = int(digit[0]) if (digit := re.search(r"\d", name)) else 0
        theirs = dialect.names[_generic(name)].format(n=number, f=3 - number)
        found[f"{theirs}.{name.rpartition('.')[2]}".removeprefix(".")] = name
    return found


def _expected(own: Mapping[str, Tensor], dialect: Dialect) -> dict[str, list[tuple[int, ...]]]:
    """The names in a file -> the shapes that each may have: ours, or that of a 1x1 convolution."""
    found = {}
    for theirs, ours in _names(own, dialect).items():
        shape = tuple(own[ours].shape)
        found[theirs] = [shape, (*shape, 1, 1)] if len(shape) == 2 else [shape]
    for layer, norm in dialect.norms.items():
        channels = found[f"{layer}.weight"][0][1]
        found |= {f"{norm}.{part}": [(channels,)] for part in _NORM_PARTS}
    return found


def _folded(state: Mapping[str, Tensor], norms: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The weight and bias of every layer behind a batch norm, such that the norm can go; computed in float64."""
    for layer, norm in norms.items():
        gain, shift, mean, variance = (state[f"{norm}.{part}"].double() for part in _NORM_PARTS)
        scale = gain / torch.sqrt(variance + _EPS)  # (C_in,)
        weight = state[f"{layer}.weight"].double().flatten(1)  # (C_out, C_in)
        yield f"{layer}.weight", weight * scale
        yield f"{layer}.bias", state[f"{layer}.bias"].double() + weight @ (shift - mean * scale)


_TIMM_NAMES = {
    "encoder.layer.": "blocks.",
    "layernorm.": "norm.",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.cls_token": "cls_token",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_QKV = re.compile(r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$")


def backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a DINOv2 backbone in transformers' names, ``backbone.*``, under timm's."""
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = key.removeprefix("backbone.")
        if name == key or name == "embeddings.mask_token":
            continue
        for theirs, ours in _TIMM_NAMES.items():
            name = name.replace(theirs, ours)
        if match := _QKV.search(name):
            parts.setdefault(f"{name[: match.start()]}attn.qkv.{match[2]}", {})[match[1][0]] = value
        else:
            found[name] = value.float()
    return found | {name: torch.cat([own[part] for part in "qkv"]).float() for name, own in parts.items()}
