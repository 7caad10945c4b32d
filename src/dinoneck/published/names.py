"""The names of tensors in files of published heads, and what they are called here: one function per publisher.

A function takes the name of a tensor in the publisher's file, or in the copy of that file for
transformers. It returns our name of the tensor; None if the tensor is not part of the head; and the
name as it is if it is not known, which :func:`dinoneck.published.loading.translate` rejects.

Each publisher has a table of beginnings of names. No beginning in a table is the beginning of
another one, so that their order does not matter. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dinoneck.backbones.known import TIPSV2_BACKBONE, TIPSV2_HEADS

_LEVELS = 4  # of a DPT decoder
_MASK_BLOCKS = 6  # of PMT's decoder
BATCH_NORM_COUNT = "num_batches_tracked"
"""The end of a batch norm's buffer that only its training reads."""


def _expand(templates: Mapping[str, str], count: int = _LEVELS) -> dict[str, str]:
    """Fill in the numbers of layers: ``{i}`` in their order, ``{j}`` from the last one to the first.

    Publishers number the fusion blocks of a DPT decoder from the coarsest, this library from the
    finest.
    """
    names = {}
    for theirs, ours in templates.items():
        for i in range(count):
            names[theirs.format(i=i)] = ours.format(i=i, j=count - 1 - i)
    return names


def _under(prefix: str, beginnings: Mapping[str, str]) -> dict[str, str]:
    """Put a prefix in front of the publisher's names of a table."""
    return {prefix + theirs: ours for theirs, ours in beginnings.items()}


# the DPT decoder in Meta's files
_META_DPT = _expand(
    {
        "reassemble_blocks.readout_projects.{i}.0.": "neck.reassemble.{i}.readout_linear.",
        "reassemble_blocks.projects.{i}.conv.": "neck.reassemble.{i}.project.",
        "reassemble_blocks.resize_layers.0.": "neck.reassemble.0.up.",
        "reassemble_blocks.resize_layers.1.": "neck.reassemble.1.up.",
        "reassemble_blocks.resize_layers.3.": "neck.reassemble.3.down.",
        "convs.{i}.conv.": "neck.reassemble.{i}.widen.",
        "fusion_blocks.{i}.res_conv_unit1.conv1.conv.": "neck.fusion.{j}.lateral.first.",
        "fusion_blocks.{i}.res_conv_unit1.conv2.conv.": "neck.fusion.{j}.lateral.second.",
        "fusion_blocks.{i}.res_conv_unit2.conv1.conv.": "neck.fusion.{j}.unit.first.",
        "fusion_blocks.{i}.res_conv_unit2.conv2.conv.": "neck.fusion.{j}.unit.second.",
        "fusion_blocks.{i}.project.conv.": "neck.fusion.{j}.project.",
        "project.conv.": "mix.",
        "conv_depth.head.0.": "readouts.0.first.",
        "conv_depth.head.2.": "readouts.0.second.",
        "conv_depth.head.4.": "readouts.0.out.",
    }
)
# the parts of DPT decoders in transformers, which its models put under names of their own
_TRANSFORMERS_REASSEMBLE = _expand(
    {
        "reassemble_stage.readout_projects.{i}.0.": "neck.reassemble.{i}.readout_linear.",
        "reassemble_stage.layers.{i}.projection.": "neck.reassemble.{i}.project.",
        "reassemble_stage.layers.0.resize.": "neck.reassemble.0.up.",
        "reassemble_stage.layers.1.resize.": "neck.reassemble.1.up.",
        "reassemble_stage.layers.3.resize.": "neck.reassemble.3.down.",
        "convs.{i}.": "neck.reassemble.{i}.widen.",
    }
)
_TRANSFORMERS_FUSION = _expand(
    {
        "{i}.residual_layer1.convolution1.": "neck.fusion.{j}.lateral.first.",
        "{i}.residual_layer1.convolution2.": "neck.fusion.{j}.lateral.second.",
        "{i}.residual_layer2.convolution1.": "neck.fusion.{j}.unit.first.",
        "{i}.residual_layer2.convolution2.": "neck.fusion.{j}.unit.second.",
        "{i}.projection.": "neck.fusion.{j}.project.",
    }
)
_TRANSFORMERS_NECK = {
    **_under("neck.", _TRANSFORMERS_REASSEMBLE),
    **_under("neck.fusion_stage.layers.", _TRANSFORMERS_FUSION),
}
# the unit on the coarsest block's lateral map, which transformers stores and never calls
_NEVER_CALLED = "neck.fusion_stage.layers.0.residual_layer1."
TUNED_BACKBONE = "backbone."
"""What the names of the tensors of a backbone that was tuned along begin with, in files of transformers."""
_TRANSFORMERS_BACKBONES = (TUNED_BACKBONE, "dinov2.", "dinov2_with_registers.")

DINOV2 = {
    # Meta's classifiers, linear segmentation and depth, and DPT
    "weight": "readouts.0.weight",
    "bias": "readouts.0.bias",
    "decode_head.bn.": "readouts.0.norm.",
    "decode_head.conv_seg.": "readouts.0.",
    "decode_head.conv_depth.weight": "readouts.0.weight",
    "decode_head.conv_depth.bias": "readouts.0.bias",
    **_under("decode_head.", _META_DPT),
    # Dinov2ForImageClassification and DPTForDepthEstimation of transformers
    "classifier.": "readouts.0.",
    **_TRANSFORMERS_NECK,
    "head.projection.": "mix.",
    "head.head.0.": "readouts.0.first.",
    "head.head.2.": "readouts.0.second.",
    "head.head.4.": "readouts.0.out.",
}

DINOV3 = {
    # Meta's classifier and DPT, of which SYNTHMIX has batch norms
    "weight": "readouts.0.weight",
    "bias": "readouts.0.bias",
    **_META_DPT,
    **_expand({"reassemble_blocks.batchnorm_layers.{i}.": "neck.reassemble.{i}.project.norm."}),
    # CHMv2ForDepthEstimation of transformers
    **_under("head.", _TRANSFORMERS_REASSEMBLE),
    **_under("head.fusion_layers.", _TRANSFORMERS_FUSION),
    "head.conv_depth.head.0.": "readouts.0.first.",
    "head.conv_depth.head.2.": "readouts.0.second.",
    "head.conv_depth.head.4.": "readouts.0.out.",
}

# DepthAnythingForDepthEstimation of transformers
DEPTH_ANYTHING = {
    **_TRANSFORMERS_NECK,
    "head.conv1.": "readouts.0.first.",
    "head.conv2.": "readouts.0.second.",
    "head.conv3.": "readouts.0.out.",
}

PMT = {
    "network.bn.": "norms.",
    "network.decoder.lateral_projections.": "lateral.",
    "network.decoder.scalers.": "scales.",
    "network.decoder.q.": "queries.",
    "network.decoder.decoder_norm.": "norm.",
    "network.decoder.class_head.": "classes.",
    "network.decoder.mask_head.": "masks.",
    **_expand(
        {
            "network.decoder.upscale.{i}.conv1.": "up.{i}.grow.",
            "network.decoder.upscale.{i}.conv2.": "up.{i}.smooth.",
            "network.decoder.upscale.{i}.norm.": "up.{i}.norm.",
        },
        count=2,
    ),
    **_expand(
        {
            "network.decoder.blocks.{i}.norm1.": "blocks.{i}.norm1.",
            "network.decoder.blocks.{i}.norm2.": "blocks.{i}.norm2.",
            "network.decoder.blocks.{i}.attention.q_proj.": "blocks.{i}.attn.q_proj.",
            "network.decoder.blocks.{i}.attention.k_proj.": "blocks.{i}.attn.k_proj.",
            "network.decoder.blocks.{i}.attention.v_proj.": "blocks.{i}.attn.v_proj.",
            "network.decoder.blocks.{i}.attention.o_proj.": "blocks.{i}.attn.proj.",
            "network.decoder.blocks.{i}.mlp.up_proj.": "blocks.{i}.mlp.fc1.",
            "network.decoder.blocks.{i}.mlp.down_proj.": "blocks.{i}.mlp.fc2.",
            "network.decoder.blocks.{i}.layer_scale1.lambda1": "blocks.{i}.gamma_1",
            "network.decoder.blocks.{i}.layer_scale2.lambda1": "blocks.{i}.gamma_2",
        },
        count=_MASK_BLOCKS,
    ),
}
# what all three heads have, after the name of the head
_TIPSV2_DECODER = _expand(
    {
        "reassemble.readout_projects.{i}.": "neck.reassemble.{i}.readout_linear.",
        "reassemble.out_projections.{i}.": "neck.reassemble.{i}.project.",
        "reassemble.resize_layers.0.": "neck.reassemble.0.up.",
        "reassemble.resize_layers.1.": "neck.reassemble.1.up.",
        "reassemble.resize_layers.3.": "neck.reassemble.3.down.",
        "convs.{i}.": "neck.reassemble.{i}.widen.",
        "fusion_blocks.{i}.residual_unit.conv1.": "neck.fusion.{j}.lateral.first.",
        "fusion_blocks.{i}.residual_unit.conv2.": "neck.fusion.{j}.lateral.second.",
        "fusion_blocks.{i}.main_unit.conv1.": "neck.fusion.{j}.unit.first.",
        "fusion_blocks.{i}.main_unit.conv2.": "neck.fusion.{j}.unit.second.",
        "fusion_blocks.{i}.out_conv.": "neck.fusion.{j}.project.",
        "project.": "mix.",
    }
)
# head -> its names; the last layer is called as its head is
TIPSV2 = {head: _under(head, {**_TIPSV2_DECODER, head: "readouts.0."}) for head in TIPSV2_HEADS}

_PMT_ATTENTION_MASKS = "network.decoder.attn_mask_probs"  # read in its training only

# a DINOv2 backbone in transformers -> in timm
BACKBONE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_PRETRAINING_ONLY = "embeddings.mask_token"
_BACKBONE_BLOCK = "encoder.layer."


class _BlockTensor(NamedTuple):
    """A tensor of a block in timm.

    Attributes:
        name: its beginning.
        third: ``"q"``, ``"k"`` or ``"v"`` where the tensor of transformers is that third of it;
            ``""`` where it is all of it.
    """

    name: str
    third: str = ""


# within a block; query, key and value are thirds of one tensor in timm, and have two spellings
BACKBONE_LAYERS = {
    "attention.attention.query.": _BlockTensor("attn.qkv.", third="q"),
    "attention.attention.key.": _BlockTensor("attn.qkv.", third="k"),
    "attention.attention.value.": _BlockTensor("attn.qkv.", third="v"),
    "attention.q_proj.": _BlockTensor("attn.qkv.", third="q"),
    "attention.k_proj.": _BlockTensor("attn.qkv.", third="k"),
    "attention.v_proj.": _BlockTensor("attn.qkv.", third="v"),
    "attention.output.dense.": _BlockTensor("attn.proj."),
    "attention.o_proj.": _BlockTensor("attn.proj."),
    "mlp.up_proj.": _BlockTensor("mlp.fc1."),
    "mlp.down_proj.": _BlockTensor("mlp.fc2."),
    "layer_scale1.lambda1": _BlockTensor("ls1.gamma"),
    "layer_scale2.lambda1": _BlockTensor("ls2.gamma"),
}


def dinov2_name(file_name: str) -> str | None:
    """Return our name of a tensor in Meta's files of heads on DINOv2, and in their copies for transformers."""
    if file_name.startswith((*_TRANSFORMERS_BACKBONES, _NEVER_CALLED)):
        return None
    if file_name.endswith(BATCH_NORM_COUNT):
        return None
    return _rename(file_name, DINOV2)


def dinov3_name(file_name: str) -> str | None:
    """Return our name of a tensor in Meta's files of heads on DINOv3, and in CHMv2's copy for transformers."""
    if file_name.startswith(_TRANSFORMERS_BACKBONES):
        return None
    if file_name.endswith(BATCH_NORM_COUNT):
        return None
    return _rename(file_name, DINOV3)


def depth_anything_name(file_name: str) -> str | None:
    """Return our name of a tensor of the head in files of Depth Anything V2 for transformers."""
    if file_name.startswith((*_TRANSFORMERS_BACKBONES, _NEVER_CALLED)):
        return None
    return _rename(file_name, DEPTH_ANYTHING)


def pmt_name(file_name: str) -> str | None:
    """Return our name of a tensor in files of PMT, the mask heads."""
    if file_name == _PMT_ATTENTION_MASKS or file_name.endswith(BATCH_NORM_COUNT):
        return None
    return _rename(file_name, PMT)


def tipsv2_name(file_name: str, head: str) -> str | None:
    """Return our name of a tensor of one head in files of TIPSv2, which hold three heads and often the backbone.

    Args:
        file_name: of the tensor.
        head: ``depth_head.``, ``normals_head.`` or ``segmentation_head.``.
    """
    others = [other for other in TIPSV2_HEADS if other != head]
    if file_name.startswith((TIPSV2_BACKBONE, *others)):
        return None
    return _rename(file_name, TIPSV2[head])


def possible_names(name: str) -> Iterator[str]:
    """Yield what publishers may call a tensor of ours in their files; the function of one says which are its names."""
    for beginnings in (DINOV2, DINOV3, DEPTH_ANYTHING, PMT, *TIPSV2.values()):
        for theirs, ours in beginnings.items():
            if name.startswith(ours):
                yield theirs + name.removeprefix(ours)


def backbone_name(file_name: str) -> tuple[str, str] | None:
    """Return timm's name of a tensor of a DINOv2 backbone in transformers, and which part of it this is.

    Returns:
        The name, and ``"q"``, ``"k"`` or ``"v"`` for a third of timm's tensor, ``""`` for all of it;
        None for the token that masks patches in the pretraining.
    """
    if file_name == _PRETRAINING_ONLY:
        return None
    if not file_name.startswith(_BACKBONE_BLOCK):
        return _rename(file_name, BACKBONE), ""
    number, _, name = file_name.removeprefix(_BACKBONE_BLOCK).partition(".")
    for theirs, ours in BACKBONE_LAYERS.items():
        if name.startswith(theirs):
            return f"blocks.{number}.{ours.name}{name.removeprefix(theirs)}", ours.third
    return f"blocks.{number}.{name}", ""


def _rename(name: str, beginnings: Mapping[str, str]) -> str:
    """Replace the beginning of a name by ours; a name with another beginning is returned as it is."""
    for theirs, ours in beginnings.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
