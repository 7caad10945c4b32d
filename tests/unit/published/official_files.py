"""Files of published heads with random weights, and what their publishers compute from them, in float64.

Both are written from the names, shapes and formulas of the papers and files, not from the package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck import Tokens
from dinoneck.images.recipe import Placement

ANYTHING = {  # width of the four maps, and of the decoder
    "s": ((48, 96, 192, 384), 64),
    "b": ((96, 192, 384, 768), 128),
    "l": ((256, 512, 1024, 1024), 256),
}
WIDTHS = {"s": 384, "b": 768, "l": 1024, "g": 1536}
Shapes = dict[str, tuple[int, ...]]
TIPSV2_WIDTHS = {"b14": 768, "l14": 1024, "so400m14": 1152, "g14": 1536}
# end of a head's name -> what its tensors' names begin with, and its outputs
TIPSV2_HEADS = {"depth": ("depth", 256), "normals": ("normals", 3), "ade20k": ("segmentation", 150)}


def dpt_shapes(
    width: int,
    hidden: Sequence[int],
    channels: int,
    mid: int,
    out: int,
    *,
    project: bool,
    bias: bool,
    mix: bool,
    norm: bool = False,
) -> Shapes:
    """Names and shapes of a DPT decoder under the names of DINOv2's and DINOv3's files."""
    found: Shapes = {}

    def layer(name: str, *shape: int, bias: int = 0) -> None:
        found[f"{name}.weight"] = shape
        if bias:
            found[f"{name}.bias"] = (bias,)

    for n, own in enumerate(hidden):
        if project:
            layer(f"reassemble_blocks.readout_projects.{n}.0", width, 2 * width, bias=width)
        if norm:
            found |= batch_norm(f"reassemble_blocks.batchnorm_layers.{n}", width)
        layer(f"reassemble_blocks.projects.{n}.conv", own, width, 1, 1, bias=own)
        if n != 2:
            side = {0: 4, 1: 2, 3: 3}[n]
            layer(f"reassemble_blocks.resize_layers.{n}", own, own, side, side, bias=own)
        layer(f"convs.{n}.conv", channels, own, 3, 3)
        for unit in (1, 2) if n else (2,):
            for conv in (1, 2):
                name = f"fusion_blocks.{n}.res_conv_unit{unit}.conv{conv}.conv"
                layer(name, channels, channels, 3, 3, bias=channels if bias else 0)
        layer(f"fusion_blocks.{n}.project.conv", channels, channels, 1, 1, bias=channels)
    if mix:
        layer("project.conv", channels, channels, 3, 3, bias=channels)
    layer("conv_depth.head.0", channels // 2, channels, 3, 3, bias=channels // 2)
    layer("conv_depth.head.2", mid, channels // 2, 3, 3, bias=mid)
    layer("conv_depth.head.4", out, mid, 1, 1, bias=out)
    return found


# part of a head's name -> channels before the last layer, outputs, and what its file has
_DECODERS = {
    "chmv2": (128, 256, ("project", "bias")),
    "synthmix": (32, 256, ("mix", "norm")),
    "depth_anything": (32, 1, ("bias",)),
    "dpt": (32, 1, ("project", "mix")),
}


def decoder_shapes(name: str, width: int, hidden: Sequence[int], channels: int) -> Shapes:
    """Names and shapes of a published DPT decoder of any width, as in its file."""
    if name.startswith("tipsv2"):
        return tipsv2_shapes(name, width, hidden, channels)
    mid, out, has = next(kind for part, kind in _DECODERS.items() if part in name)
    parts = {part: part in has for part in ("project", "bias", "mix", "norm")}
    own = dpt_shapes(width, hidden, channels, mid, out, **parts)
    if "depth_anything" in name:
        return {
            transformers_name(key, "depth_anything"): shape for key, shape in own.items()
        } | unused(channels)
    return {
        ("decode_head." if name.startswith("dinov2") else "") + key: shape
        for key, shape in own.items()
    }


def tipsv2_shapes(name: str, width: int, hidden: Sequence[int], channels: int) -> Shapes:
    """Names and shapes of one of the three heads in a file of TIPSv2-DPT."""
    task, out = TIPSV2_HEADS[name.rpartition("_")[2]]
    meta = dpt_shapes(width, hidden, channels, 1, 1, project=True, bias=False, mix=True)
    found: Shapes = {}
    for meta_name, shape in meta.items():
        if not meta_name.startswith("conv_depth"):
            found[f"{task}_head.{tipsv2_name(meta_name)}"] = shape
    found[f"{task}_head.{task}_head.weight"] = (out, channels)
    found[f"{task}_head.{task}_head.bias"] = (out,)
    return found


def tipsv2_name(meta_name: str) -> str:
    """The name of a DPT decoder's tensor in files of TIPSv2, by that in Meta's files."""
    for theirs, other in (
        (r"^reassemble_blocks\.readout_projects\.(\d)\.0", r"reassemble.readout_projects.\1"),
        (r"^reassemble_blocks\.projects\.(\d)\.conv", r"reassemble.out_projections.\1"),
        (r"^reassemble_blocks", "reassemble"),
        (r"^convs\.(\d)\.conv", r"convs.\1"),
        (r"res_conv_unit1\.conv(\d)\.conv", r"residual_unit.conv\1"),
        (r"res_conv_unit2\.conv(\d)\.conv", r"main_unit.conv\1"),
        (r"^(fusion_blocks\.\d)\.project\.conv", r"\1.out_conv"),
        (r"^project\.conv", "project"),
    ):
        meta_name = re.sub(theirs, other, meta_name)
    return meta_name


def unused(channels: int) -> Shapes:
    """The lateral unit of the coarsest block, which transformers stores and never calls."""
    name = "neck.fusion_stage.layers.0.residual_layer1.convolution"
    weights: Shapes = {f"{name}{conv}.weight": (channels, channels, 3, 3) for conv in (1, 2)}
    return weights | {f"{name}{conv}.bias": (channels,) for conv in (1, 2)}


def transformers_name(name: str, model: str) -> str:
    """The name of a DPT decoder's tensor in ``dpt``, ``depth_anything`` or ``chmv2`` of transformers."""
    heads = {
        "dpt": "head.head.{}",
        "depth_anything": "head.conv{}",
        "chmv2": "head.conv_depth.head.{}",
    }
    if found := re.fullmatch(r"conv_depth\.head\.(\d)\.(\w+)", name):
        place = int(found[1]) // 2 + 1 if model == "depth_anything" else found[1]
        return f"{heads[model].format(place)}.{found[2]}"
    if name.startswith("project."):
        return name.replace("project.conv", "head.projection")
    for theirs, other in (
        (r"^reassemble_blocks\.projects\.(\d)\.conv", r"reassemble_stage.layers.\1.projection"),
        (r"^reassemble_blocks\.resize_layers\.(\d)", r"reassemble_stage.layers.\1.resize"),
        (r"^reassemble_blocks", "reassemble_stage"),
        (r"^convs\.(\d)\.conv", r"convs.\1"),
        (r"res_conv_unit(\d)\.conv(\d)\.conv", r"residual_layer\1.convolution\2"),
        (r"^(fusion_blocks\.\d)\.project\.conv", r"\1.projection"),
        (r"^fusion_blocks", "fusion_layers" if model == "chmv2" else "fusion_stage.layers"),
    ):
        name = re.sub(theirs, other, name)
    return f"{'head' if model == 'chmv2' else 'neck'}.{name}"


def batch_norm(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


def mask_shapes(
    width: int, classes: int, queries: int, *, layers: int = 4, blocks: int = 6
) -> Shapes:
    """Names and shapes in a file of PMT: queries and fused tokens in ViT blocks, then classes and masks."""
    found: Shapes = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        found[f"network.decoder.{name}.weight"] = shape
        if bias:
            found[f"network.decoder.{name}.bias"] = shape[:1]

    layer("q", queries, width, bias=False)
    for i in range(layers):
        found |= batch_norm(f"network.bn.{i}", width) | {f"network.decoder.scalers.{i}": (width,)}
        layer(f"lateral_projections.{i}.0", width // 2, width)
        layer(f"lateral_projections.{i}.2", width, width // 2)
    for i in range(blocks):
        for part in "qkvo":
            layer(f"blocks.{i}.attention.{part}_proj", width, width, bias=part != "k")
        for part in ("up", "down"):
            layer(f"blocks.{i}.mlp.{part}_proj", width, width)
        for k in (1, 2):
            layer(f"blocks.{i}.norm{k}", width)
            found[f"network.decoder.blocks.{i}.layer_scale{k}.lambda1"] = (width,)
    layer("decoder_norm", width)
    layer("class_head", classes + 1, width)
    for i in (0, 2, 4):
        layer(f"mask_head.{i}", width, width)
    for i in (0, 1):
        found[f"network.decoder.upscale.{i}.conv1.weight"] = (width, width, 2, 2)
        found[f"network.decoder.upscale.{i}.conv1.bias"] = (width,)
        layer(f"upscale.{i}.conv2", width, 1, 3, 3, bias=False)
        layer(f"upscale.{i}.norm", width)
    return found | {"network.decoder.attn_mask_probs": (blocks,)}


# classes and queries
_MASKS = {"panoptic": (133, 200), "instance": (80, 200), "semantic": (150, 100)}


def shapes_of(name: str) -> tuple[Shapes, str]:
    """The names and shapes in the file of a published head, and its form."""
    if name.startswith("tipsv2"):
        width = TIPSV2_WIDTHS[name.split("_")[1]]
        return decoder_shapes(name, width, (width // 8, width // 4, width // 2, width), 256), "dpt"
    if "depth_anything" in name:
        hidden, channels = ANYTHING[name[len("dinov2_vit")]]
        return decoder_shapes(name, WIDTHS[name[len("dinov2_vit")]], hidden, channels), "dpt"
    backbone, data, form = name.rsplit("_", 2)
    if form.startswith("pmt"):
        return mask_shapes(WIDTHS[backbone[len("dinov3_vit")]], *_MASKS[data]), "mask"
    if data == "imagenet":
        parts = 5 if form == "linear4" else 2
        width = 4096 if backbone == "dinov3_vit7b16" else WIDTHS[backbone[len("dinov2_vit")]]
        return {"weight": (1000, parts * width), "bias": (1000,)}, "classifier"
    if form == "chmv2":
        return decoder_shapes(name, 1024, (128, 256, 512, 1024), 256), "dpt"
    if data == "synthmix":
        return decoder_shapes(name, 4096, (2048,) * 4, 512), "dpt"
    width = WIDTHS[backbone[len("dinov2_vit")]]
    if form == "dpt":
        return decoder_shapes(name, width, (width // 8, width // 4, width // 2, width), 256), "dpt"
    layers = 1 if form == "linear" else 4
    if data in ("nyu", "kitti"):
        shape = (256, 2 * width * layers, 1, 1)
        return {
            "decode_head.conv_depth.weight": shape,
            "decode_head.conv_depth.bias": (256,),
        }, "depth"
    classes = {"voc2012": 21, "ade20k": 150}[data]
    own = {
        "decode_head.conv_seg.weight": (classes, width * layers, 1, 1),
        "decode_head.conv_seg.bias": (classes,),
    }
    return batch_norm("decode_head.bn", width * layers) | own, "segmentation"


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Values that keep activations in the order of one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        elif name.endswith("num_batches_tracked"):
            values = torch.tensor(7)
        elif len(shape) > 1:
            values = values / math.sqrt(math.prod(shape[1:]))
        else:
            values = 0.3 * values
        if shape == (1,):  # the bias of a depth, which leaves pixels above 0
            values = torch.full(shape, 2.0)
        state[name] = values
    return state


def write(path: Any, state: Mapping[str, Tensor]) -> Any:
    """Save a state dict as its publisher does: those of mmcv and mmseg in a checkpoint with notes."""
    content: Any = dict(state)
    if any(name.startswith("decode_head.") for name in state):
        notes = {"mmcv_version": "1.7.0", "epoch": np.float64(3.0), "CLASSES": ("a", "b")}
        content = {"meta": notes, "state_dict": content}
    torch.save(content, path)
    return path


# what the publishers compute, from the tensors of the files


def logits(name: str, state: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    """The last layer's output of a published head, in float64."""
    forms = {
        "classifier": classifier,
        "segmentation": segmentation,
        "depth": depth_logits,
        "dpt": dpt_logits,
    }
    exact = {key: value.double() for key, value in state.items()}
    if shapes_of(name)[1] == "mask":  # of classes and masks, one after the other
        both = mask_logits(
            exact, tokens.to(dtype=torch.float64), tokens.sequence[0].shape[-1] // 64
        )
        return torch.cat([x.flatten(1) for x in both], dim=1)
    if name.startswith("tipsv2"):
        return tipsv2_logits(name, exact, tokens.to(dtype=torch.float64))
    return forms[shapes_of(name)[1]](exact, tokens.to(dtype=torch.float64))


def classifier(state: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    x = torch.cat([*tokens.cls_token, tokens.patches[-1].mean(dim=1)], dim=1)
    return x @ state["weight"].T + state["bias"]


def segmentation(state: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    own = {name.removeprefix("decode_head."): value for name, value in state.items()}
    wide = torch.cat([as_map(patches, tokens) for patches in tokens.patches], dim=1)
    norm = [own[f"bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.conv2d(
        F.batch_norm(wide, *norm, eps=1e-5), own["conv_seg.weight"], own["conv_seg.bias"]
    )


def depth_logits(state: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    """[patch | CLS] of every block, blocks concatenated, four times as many cells, then a 1x1 convolution."""
    maps = []
    for patches, cls in zip(tokens.patches, tokens.cls_token, strict=True):
        maps.append(as_map(torch.cat([patches, cls[:, None].expand_as(patches)], dim=2), tokens))
    wide = F.interpolate(
        torch.cat(maps, dim=1), scale_factor=4, mode="bilinear", align_corners=False
    )
    return F.conv2d(
        wide, state["decode_head.conv_depth.weight"], state["decode_head.conv_depth.bias"]
    )


def mask_logits(state: Mapping[str, Tensor], tokens: Tokens, heads: int) -> tuple[Tensor, Tensor]:
    """PMT's class logits (B, Q, K + 1) and mask logits (B, Q, 4 rows, 4 cols), with attention written out.

    ``narrow`` in the state is a linear layer in front of the blocks, which published files do not
    have.
    """
    own = {re.sub(r"^network\.(decoder\.)?", "", name): value for name, value in state.items()}
    rows, cols = tokens.grid

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ own[f"{name}.weight"].T + own.get(f"{name}.bias", 0.0)

    def norm(x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
        return x * own[f"{name}.weight"] + own[f"{name}.bias"]

    fused: Any = 0.0
    for i, x in enumerate(tokens.sequence):
        mean, var, gain, shift = (
            own[f"bn.{i}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * gain + shift
        name = f"lateral_projections.{i}"
        fused = (
            fused + (x + linear(F.gelu(linear(x, f"{name}.0")), f"{name}.2")) * own[f"scalers.{i}"]
        )
    fused = linear(fused, "narrow") if "narrow.weight" in own else fused
    x = torch.cat([own["q.weight"].expand(len(fused), -1, -1), fused], 1)
    count, width = x.shape[1] - rows * cols, x.shape[2]
    d = width // heads // 4
    angles = torch.zeros(x.shape[1], 4 * d, dtype=x.dtype)
    for place in range(rows * cols):
        y, x_axis = 2 * (place // cols + 0.5) / rows - 1, 2 * (place % cols + 0.5) / cols - 1
        turns = [2 * math.pi * at * 100 ** (-k / d) for at in (y, x_axis) for k in range(d)]
        angles[count + place] = torch.tensor(turns * 2, dtype=x.dtype)

    def turned(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., 2 * d :], x[..., : 2 * d]], -1)
        return x * angles.cos() + half * angles.sin()

    for block in (f"blocks.{i}" for i in range(6) if f"blocks.{i}.norm1.weight" in own):
        y = norm(x, f"{block}.norm1")
        q, k, v = (
            linear(y, f"{block}.attention.{p}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for p in "qkv"
        )
        share = (turned(q) @ turned(k).mT / (4 * d) ** 0.5).softmax(-1)
        y = linear((share @ v).transpose(1, 2).flatten(2), f"{block}.attention.o_proj")
        x = x + y * own[f"{block}.layer_scale1.lambda1"]
        y = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.up_proj"))
        x = x + linear(y, f"{block}.mlp.down_proj") * own[f"{block}.layer_scale2.lambda1"]
    x = norm(x, "decoder_norm")
    queries, maps = x[:, : len(own["q.weight"])], x[:, count:].mT.unflatten(-1, (rows, cols))
    for up in ("upscale.0", "upscale.1"):
        maps = F.gelu(
            F.conv_transpose2d(maps, own[f"{up}.conv1.weight"], own[f"{up}.conv1.bias"], 2)
        )
        maps = F.conv2d(maps, own[f"{up}.conv2.weight"], padding=1, groups=width)
        maps = norm(maps.movedim(1, -1), f"{up}.norm", 1e-6).movedim(-1, 1)
    embedded = queries
    for name in ("mask_head.0", "mask_head.2"):
        embedded = F.gelu(linear(embedded, name))
    return linear(queries, "class_head"), torch.einsum(
        "bqd,bdhw->bqhw", linear(embedded, "mask_head.4"), maps
    )


def linear_bins(logits: Tensor, far: float) -> Tensor:
    weights = logits.clamp_min(0) + 0.1
    return weighted(weights, torch.linspace(0.001, far, 256, dtype=torch.float64))


def canopy_bins(logits: Tensor) -> Tensor:
    falling = torch.linspace(1, 0, 256, dtype=torch.float64)
    ratios = torch.linspace(math.log(0.001), math.log(12), 256, dtype=torch.float64).exp()
    values = falling * ratios + (1 - falling) * torch.linspace(0.001, 12, 256, dtype=torch.float64)
    return 8 * weighted(logits.clamp_min(0) + 1e-8, values)


def values(name: str, logits: Tensor) -> Tensor:
    """The map of a head in its unit, within its range; of classes, the logarithms of their probabilities."""
    if name.startswith("tipsv2"):
        return tipsv2_values(name, logits)
    if name.endswith("chmv2"):
        return canopy_bins(logits)
    if "depth_anything" in name:
        far = {"indoor": 20.0, "outdoor": 80.0}.get(name.rpartition("_")[2])
        return logits.relu() if far is None else far * logits.sigmoid()
    _, data, form = name.rsplit("_", 2)
    if data in ("voc2012", "ade20k"):
        return logits.log_softmax(dim=1)
    far = {"nyu": 10.0, "kitti": 80.0, "synthmix": 100.0}[data]
    if form == "dpt" and data != "synthmix":
        return (logits.relu() + 0.001).clamp(0.001, far)
    return linear_bins(logits, far).clamp(0.001, far)


def tipsv2_values(name: str, logits: Tensor) -> Tensor:
    """Metres, vectors of length 1, or the logits of the classes, which are resized as such."""
    if name.endswith("depth"):
        centres = torch.linspace(0.001, 10.0, 256, dtype=torch.float64)
        return weighted(logits.clamp_min(0) + 0.001, centres)
    if name.endswith("normals"):
        return logits / logits.square().sum(dim=1, keepdim=True).sqrt()
    return logits


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    return (weights / weights.sum(dim=1, keepdim=True) * values[:, None, None]).sum(
        dim=1, keepdim=True
    )


def dpt_logits(state: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    """The last layer's output of a DPT decoder, before ReLU or bins.

    Those of Meta double the coarser result and resize the next own map to it; Depth Anything's,
    whose files have the names of transformers, resize the coarser result to the next own map, and
    the last one to the pixels.
    """
    doubles = not any(name.startswith("neck.") for name in state)
    if not doubles:
        meta = dpt_shapes(1, (1,) * 4, 2, 1, 1, project=False, bias=True, mix=False)
        state = {name: state[transformers_name(name, "depth_anything")] for name in meta}
    own = {name.removeprefix("decode_head."): value for name, value in state.items()}
    x = dpt_map(own, tokens, doubles=doubles)
    if "project.conv.weight" in own:
        x = dpt_conv(own, x, "project.conv").relu()
    x = grown(dpt_conv(own, x, "conv_depth.head.0"), None if doubles else tokens.image_size)
    return dpt_conv(own, dpt_conv(own, x, "conv_depth.head.2").relu(), "conv_depth.head.4")


def tipsv2_logits(name: str, state: Mapping[str, Tensor], tokens: Tokens) -> Tensor:
    """The last layer's output of TIPSv2's heads: a 3x3 convolution and a linear layer on the DPT map.

    Only the depth head has a ReLU between them, and GELU has the form with tanh.
    """
    task, _ = TIPSV2_HEADS[name.rpartition("_")[2]]
    meta = dpt_shapes(1, (1,) * 4, 2, 1, 1, project=True, bias=False, mix=True)
    own = {}
    for meta_name in meta:
        if not meta_name.startswith("conv_depth"):
            own[meta_name] = state[f"{task}_head.{tipsv2_name(meta_name)}"]
    x = dpt_conv(own, dpt_map(own, tokens, doubles=True, gelu=tanh_gelu), "project.conv")
    if task == "depth":
        x = x.relu()
    weight = state[f"{task}_head.{task}_head.weight"]
    bias = state[f"{task}_head.{task}_head.bias"]
    return torch.einsum("bdhw,od->bohw", x, weight) + bias[:, None, None]


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dpt_conv(own: Mapping[str, Tensor], x: Tensor, name: str, **how: Any) -> Tensor:
    weight = own[f"{name}.weight"]
    return F.conv2d(x, weight, own.get(f"{name}.bias"), padding=weight.shape[-1] // 2, **how)


def grown(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """To a size; None = twice its own."""
    to = [2 * side for side in x.shape[-2:]] if size is None else list(size)
    return F.interpolate(x, size=to, mode="bilinear", align_corners=True)


def dpt_map(
    own: Mapping[str, Tensor],
    tokens: Tokens,
    *,
    doubles: bool,
    gelu: Callable[[Tensor], Tensor] = F.gelu,
) -> Tensor:
    """The fused map of a DPT decoder, in front of its last layers, from tensors in Meta's names."""

    def conv(x: Tensor, name: str, **how: Any) -> Tensor:
        return dpt_conv(own, x, name, **how)

    def unit(x: Tensor, name: str) -> Tensor:
        return x + conv(conv(x.relu(), f"{name}.conv1.conv").relu(), f"{name}.conv2.conv")

    maps = []
    for n, (patches, cls) in enumerate(zip(tokens.patches, tokens.cls_token, strict=True)):
        x, project = patches, f"reassemble_blocks.readout_projects.{n}.0"
        if f"{project}.weight" in own:
            both = torch.cat([patches, cls[:, None].expand_as(patches)], dim=2)
            x = gelu(both @ own[f"{project}.weight"].T + own[f"{project}.bias"])
        x = as_map(x, tokens)
        norm = f"reassemble_blocks.batchnorm_layers.{n}"
        if f"{norm}.weight" in own:
            values = [
                own[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            ]
            x = F.batch_norm(x, *values, eps=1e-5)
        x = conv(x, f"reassemble_blocks.projects.{n}.conv")
        resize = f"reassemble_blocks.resize_layers.{n}"
        if n < 2:
            x = F.conv_transpose2d(
                x, own[f"{resize}.weight"], own[f"{resize}.bias"], stride=(4, 2)[n]
            )
        elif n == 3:
            x = conv(x, resize, stride=2)
        maps.append(conv(x, f"convs.{n}.conv"))
    x = maps[3]
    for f, lateral in enumerate(reversed(maps)):  # from the coarsest
        if f:
            if lateral.shape != x.shape:
                lateral = F.interpolate(
                    lateral, size=x.shape[-2:], mode="bilinear", align_corners=False
                )
            x = x + unit(lateral, f"fusion_blocks.{f}.res_conv_unit1")
        x = unit(x, f"fusion_blocks.{f}.res_conv_unit2")
        x = grown(x, None if doubles or f == 3 else maps[2 - f].shape[-2:])
        x = conv(x, f"fusion_blocks.{f}.project.conv")
    return x


def as_map(patches: Tensor, tokens: Tokens) -> Tensor:
    return patches.transpose(1, 2).reshape(len(patches), -1, *tokens.grid)


def cut(cells: Tensor, placement: Placement) -> Tensor:
    """Leave out the cells that show padding alone, and resize the others to the pixels of the image."""
    places = []
    for side, (count, canvas, corner, pixels) in enumerate(
        zip(cells.shape[2:], placement.canvas, placement.corner, placement.resized, strict=True),
        start=2,
    ):
        first, last = corner * count // canvas, -(-(corner + pixels) * count // canvas)
        cells = cells.narrow(side, first, last - first)
        place = (torch.arange(pixels, dtype=torch.float64) + 0.5 + corner) * count / canvas - first
        places.append(2 * place / (last - first) - 1)
    rows, cols = torch.meshgrid(*places, indexing="ij")
    where = torch.stack([cols, rows], dim=-1)[None]  # (1, height, width, 2)
    return F.grid_sample(cells, where, mode="bilinear", padding_mode="border", align_corners=False)


def backbone_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the DINOv2 backbone in a file of transformers, with patches of 14 px and images of 518 px."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 37 * 37 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    layers = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    layers |= {
        "attention.output.dense": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    for block in range(depth):
        own = f"encoder.layer.{block}."
        shapes |= {f"{own}{name}.weight": shape for name, shape in layers.items()}
        shapes |= {f"{own}{name}.bias": shape[:1] for name, shape in layers.items()}
        shapes |= {f"{own}norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"{own}layer_scale{i}.lambda1": (width,) for i in (1, 2)}
    shapes |= {f"layernorm.{part}": (width,) for part in ("weight", "bias")}
    return {f"backbone.{name}": shape for name, shape in shapes.items()}
