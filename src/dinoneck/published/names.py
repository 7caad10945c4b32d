"""The names of tensors in files of published heads, and what they are called here: one function per publisher.

Imports no torch. A name that is not known is returned as it is, and rejected by
:func:`dinoneck.published.loading.translate`, which knows the names of the module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LEVELS = 4  # of a DPT decoder
BATCH_NORM_COUNT = "num_batches_tracked"
"""The end of a batch norm's buffer that only its training reads."""
# transformers stores the lateral unit of the coarsest block and never calls it; PMT uses its
# attention masks in training only
_UNUSED = re.compile(
    r"(backbone|dinov2\w*)\."
    r"|.*fusion_stage\.layers\.0\.residual_layer1\."
    rf"|.*({BATCH_NORM_COUNT}|mask_token|attn_mask_probs)$"
)
_TRANSFORMERS_PREFIXES = ("neck.", "head.", "classifier.")
_PMT_PREFIX = "network."


def _expand(templates: Mapping[str, str]) -> dict[str, str]:
    """Fill in the levels of a DPT decoder: ``{i}`` in their order, ``{j}`` for our number of a fusion block.

    Publishers number the fusion blocks from the coarsest, this library from the finest.
    """
    names = {}
    for theirs, ours in templates.items():
        for i in range(_LEVELS):
            names[theirs.format(i=i)] = ours.format(i=i, j=_LEVELS - 1 - i)
    return names


# layers in Meta's files of DINOv2 and DINOv3, without "decode_head."
_META = _expand(
    {
        # linear heads
        "": "readouts.0",
        "conv_seg": "readouts.0",
        "conv_depth": "readouts.0",
        "bn": "readouts.0.norm",
        # DPT
        "reassemble_blocks.readout_projects.{i}.0": "neck.reassemble.{i}.readout_linear",
        "reassemble_blocks.projects.{i}.conv": "neck.reassemble.{i}.project",
        "reassemble_blocks.batchnorm_layers.{i}": "neck.reassemble.{i}.project.norm",
        "reassemble_blocks.resize_layers.0": "neck.reassemble.0.up",
        "reassemble_blocks.resize_layers.1": "neck.reassemble.1.up",
        "reassemble_blocks.resize_layers.3": "neck.reassemble.3.down",
        "convs.{i}.conv": "neck.reassemble.{i}.widen",
        "fusion_blocks.{i}.res_conv_unit1.conv1.conv": "neck.fusion.{j}.lateral.first",
        "fusion_blocks.{i}.res_conv_unit1.conv2.conv": "neck.fusion.{j}.lateral.second",
        "fusion_blocks.{i}.res_conv_unit2.conv1.conv": "neck.fusion.{j}.unit.first",
        "fusion_blocks.{i}.res_conv_unit2.conv2.conv": "neck.fusion.{j}.unit.second",
        "fusion_blocks.{i}.project.conv": "neck.fusion.{j}.project",
        "project.conv": "mix",
        "conv_depth.head.0": "readouts.0.first",
        "conv_depth.head.2": "readouts.0.second",
        "conv_depth.head.4": "readouts.0.out",
    }
)

# layers in files of transformers, without "neck." and "head."
_TRANSFORMERS = _expand(
    {
        "classifier": "readouts.0",
        "reassemble_stage.readout_projects.{i}.0": "neck.reassemble.{i}.readout_linear",
        "reassemble_stage.layers.{i}.projection": "neck.reassemble.{i}.project",
        "reassemble_stage.layers.0.resize": "neck.reassemble.0.up",
        "reassemble_stage.layers.1.resize": "neck.reassemble.1.up",
        "reassemble_stage.layers.3.resize": "neck.reassemble.3.down",
        "convs.{i}": "neck.reassemble.{i}.widen",
        # DPT and Depth Anything
        "fusion_stage.layers.{i}.residual_layer1.convolution1": "neck.fusion.{j}.lateral.first",
        "fusion_stage.layers.{i}.residual_layer1.convolution2": "neck.fusion.{j}.lateral.second",
        "fusion_stage.layers.{i}.residual_layer2.convolution1": "neck.fusion.{j}.unit.first",
        "fusion_stage.layers.{i}.residual_layer2.convolution2": "neck.fusion.{j}.unit.second",
        "fusion_stage.layers.{i}.projection": "neck.fusion.{j}.project",
        # CHMv2
        "fusion_layers.{i}.residual_layer1.convolution1": "neck.fusion.{j}.lateral.first",
        "fusion_layers.{i}.residual_layer1.convolution2": "neck.fusion.{j}.lateral.second",
        "fusion_layers.{i}.residual_layer2.convolution1": "neck.fusion.{j}.unit.first",
        "fusion_layers.{i}.residual_layer2.convolution2": "neck.fusion.{j}.unit.second",
        "fusion_layers.{i}.projection": "neck.fusion.{j}.project",
        "projection": "mix",
        # the last layers of DPT, of CHMv2 and of Depth Anything; "head." is taken off once
        "head.0": "readouts.0.first",
        "head.2": "readouts.0.second",
        "head.4": "readouts.0.out",
        "conv_depth.head.0": "readouts.0.first",
        "conv_depth.head.2": "readouts.0.second",
        "conv_depth.head.4": "readouts.0.out",
        "conv1": "readouts.0.first",
        "conv2": "readouts.0.second",
        "conv3": "readouts.0.out",
    }
)

# beginnings of names in files of PMT, without "network." and "decoder."
_PMT = {
    "bn.": "norms.",
    "lateral_projections.": "lateral.",
    "scalers.": "scales.",
    "q.": "queries.",
    "decoder_norm.": "norm.",
    "class_head.": "classes.",
    "mask_head.": "masks.",
}
_PMT_UPSCALING = {"upscale.": "up.", ".conv1.": ".grow.", ".conv2.": ".smooth."}
_PMT_BLOCKS = {
    ".attention.o_proj.": ".attn.proj.",
    ".attention.": ".attn.",
    ".mlp.up_proj.": ".mlp.fc1.",
    ".mlp.down_proj.": ".mlp.fc2.",
    ".layer_scale1.lambda1": ".gamma_1",
    ".layer_scale2.lambda1": ".gamma_2",
}

# a DINOv2 backbone in transformers -> in timm: beginnings of names, and parts of them in blocks
_BACKBONE = {
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
    "layernorm.": "norm.",
}
_BACKBONE_BLOCKS = {
    "encoder.layer.": "blocks.",
    ".attention.output.dense.": ".attn.proj.",
    ".attention.o_proj.": ".attn.proj.",
    ".mlp.up_proj.": ".mlp.fc1.",
    ".mlp.down_proj.": ".mlp.fc2.",
    ".layer_scale1.lambda1": ".ls1.gamma",
    ".layer_scale2.lambda1": ".ls2.gamma",
}
# query, key and value are parts of one tensor in timm; two spellings of transformers
_QKV = {
    ".attention.attention.query.": "q",
    ".attention.attention.key.": "k",
    ".attention.attention.value.": "v",
    ".attention.q_proj.": "q",
    ".attention.k_proj.": "k",
    ".attention.v_proj.": "v",
}


def is_unused(file_name: str) -> bool:
    """Whether a tensor in the file of a head is not part of the head."""
    return _UNUSED.match(file_name) is not None


def our_name(file_name: str) -> str:
    """Return our name of a tensor in the file of a published head, by any publisher."""
    if file_name.startswith(_PMT_PREFIX):
        return pmt_name(file_name)
    if file_name.startswith(_TRANSFORMERS_PREFIXES):
        return transformers_name(file_name)
    return meta_name(file_name)


def meta_name(file_name: str) -> str:
    """Return our name of a tensor in Meta's files of DINOv2 and DINOv3."""
    return _by_layer(file_name.removeprefix("decode_head."), _META)


def transformers_name(file_name: str) -> str:
    """Return our name of a tensor of a head in files of transformers."""
    name = file_name.removeprefix("neck.").removeprefix("head.")
    return _by_layer(name, _TRANSFORMERS)


def pmt_name(file_name: str) -> str:
    """Return our name of a tensor in files of PMT, the mask heads."""
    name = file_name.removeprefix(_PMT_PREFIX).removeprefix("decoder.")
    if name.startswith("upscale."):
        return _replace_parts(name, _PMT_UPSCALING)
    if name.startswith("blocks."):
        return _replace_parts(name, _PMT_BLOCKS)
    return _replace_prefix(name, _PMT)


def backbone_name(file_name: str) -> tuple[str, str]:
    """Return timm's name of a tensor of a DINOv2 backbone in transformers, and which part of it this is.

    Returns:
        The name, and ``"q"``, ``"k"`` or ``"v"`` for a third of timm's tensor, ``""`` for all of it.
    """
    if not file_name.startswith("encoder.layer."):
        return _replace_prefix(file_name, _BACKBONE), ""
    for theirs, part in _QKV.items():
        if theirs in file_name:
            name = file_name.replace(theirs, ".attn.qkv.")
            return _replace_parts(name, _BACKBONE_BLOCKS), part
    return _replace_parts(file_name, _BACKBONE_BLOCKS), ""


def _by_layer(name: str, layers: Mapping[str, str]) -> str:
    """Rename the layer of a weight, which is all before the last dot."""
    layer, _, weight = name.rpartition(".")
    if layer not in layers:
        return name
    return f"{layers[layer]}.{weight}"


def _replace_prefix(name: str, beginnings: Mapping[str, str]) -> str:
    """Replace the first of the beginnings that a name has."""
    for theirs, ours in beginnings.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _replace_parts(name: str, parts: Mapping[str, str]) -> str:
    """Replace all parts that a name has, in their order."""
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name
