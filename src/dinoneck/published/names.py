"""One translator from the tensors of publishers' files to those of our modules: strict in names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError, some_of

_SHOWN = 5
_EPS = 1e-5  # of the publishers' batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")
Tensors = Mapping[str, Tensor]
Rules = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
# names of publishers and of transformers -> ours, applied in this order
_HEAD: Rules = (
    (r"^network\.(decoder\.)?bn\.", "norms."),  # PMT's; its names follow
    (r"^network\.(decoder\.)?", ""),
    (r"^lateral_projections\.", "lateral."),
    (r"^scalers\.", "scales."),
    (r"^q\.", "queries."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^decoder_norm\.", "norm."),
    (r"^class_head\.", "classes."),
    (r"^mask_head\.", "masks."),
    (r"^upscale\.(\d)\.conv1\.", r"up.\1.grow."),
    (r"^upscale\.(\d)\.conv2\.", r"up.\1.smooth."),
    (r"^upscale\.", "up."),
    (r"^(decode_head|neck|head)\.", ""),
    (r"^reassemble_(blocks|stage)\.readout_projects\.(\d)\.0\.", r"neck.reassemble.\2.readout_linear."),
    (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"neck.reassemble.\1.project."),
    (r"^reassemble_stage\.layers\.(\d)\.projection\.", r"neck.reassemble.\1.project."),
    (r"^reassemble_blocks\.batchnorm_layers\.(\d)\.", r"neck.reassemble.\1.project.norm."),
    (r"^reassemble_(blocks\.resize_layers|stage\.layers)\.([01])\.(resize\.)?", r"neck.reassemble.\2.up."),
    (r"^reassemble_(blocks\.resize_layers|stage\.layers)\.3\.(resize\.)?", "neck.reassemble.3.down."),
    (r"^convs\.(\d)\.(conv\.)?", r"neck.reassemble.\1.widen."),
    # they number the fusion blocks from the coarsest, we from the finest
    (r"^fusion_(blocks|stage\.layers|layers)\.(\d)\.", lambda found: f"neck.fusion.{3 - int(found[2])}."),
    (r"\.res\w+1\.conv(olution)?1\.(conv\.)?", ".lateral.first."),
    (r"\.res\w+1\.conv(olution)?2\.(conv\.)?", ".lateral.second."),
    (r"\.res\w+2\.conv(olution)?1\.(conv\.)?", ".unit.first."),
    (r"\.res\w+2\.conv(olution)?2\.(conv\.)?", ".unit.second."),
    (r"\.project(ion)?\.(conv\.)?", ".project."),
    (r"^project(ion)?\.(conv\.)?", "mix."),
    (r"^(conv_depth\.)?head\.0\.|^conv1\.", "readouts.0.first."),
    (r"^(conv_depth\.)?head\.2\.|^conv2\.", "readouts.0.second."),
    (r"^(conv_depth\.)?head\.4\.|^conv3\.", "readouts.0.out."),
    (r"^((classifier|conv_depth|conv_seg)\.)?(weight|bias)$", r"readouts.0.\3"),
    (r"^bn\.", "readouts.0.norm."),
)
_COUNT = "num_batches_tracked"  # of a batch norm, which only its training reads
# transformers stores the lateral unit of the coarsest block, and never calls it; PMT's masks of attention are of its
# training
_UNUSED = re.compile(
    rf"(backbone|dinov2\w*)\.|.*fusion_stage\.layers\.0\.residual_layer1\.|.*({_COUNT}|attn_mask_probs)$"
)
_BACKBONE: Rules = (
    (r"encoder\.layer\.", "blocks."),
    (r"layernorm\.", "norm."),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.cls_token", "cls_token"),
    (r"attention\.(output\.dense|o_proj)", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"attention\.(?:attention\.)?([qkv])(uery|ey|alue|_proj)\.(weight|bias)$", r"attn.qkv.\3.\1"),
)


def renamed(name: str, rules: Rules = _HEAD) -> str:
    """Return our name of a file's tensor."""
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    return name


def translated(state: Tensors, own: Tensors, where: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the tensors of a file under our names, in our shapes and a dtype, and without batch norms.

    A batch norm in front of a linear layer is folded into it, in float64.

    Args:
        state: of the file.
        own: the tensors of the module, on any device; only names and shapes are read.
        where: the file, for messages.
        dtype: of the result.

    Raises:
        CheckpointError: naming the tensors that are missing, unknown, or of another shape or type.
    """
    given, unknown = dict[str, str](), list[str]()  # our names -> those of the file
    for theirs in state:
        if not _UNUSED.match(theirs) and given.setdefault(renamed(theirs), theirs) != theirs:
            unknown.append(theirs)
    counts = {name: torch.zeros((), dtype=torch.int64) for name in own if name.endswith(_COUNT)}
    shapes = {name: tuple(x.shape) for name, x in own.items() if name not in counts}
    norms = {name.partition(".norm.")[0] for name in given if ".norm." in name} & {
        name.rpartition(".")[0] for name in own
    }
    shapes |= {f"{layer}.norm.{part}": shapes[f"{layer}.weight"][1:2] for layer in norms for part in _NORM}
    missing, unknown = shapes.keys() - given.keys(), [*unknown, *(given[name] for name in given.keys() - shapes.keys())]
    if missing or unknown:
        raise CheckpointError(
            f"{where} lacks {some_of(missing, _SHOWN) or 'nothing'} of this head, and holds "
            f"{some_of(unknown, _SHOWN) or 'nothing'} that it does not have: it is the file of another head",
            step="tensors",
        )
    tensors = {name: state[theirs] for name, theirs in given.items()}
    for name, x in tensors.items():
        is_1x1 = len(shapes[name]) == 2 and x.shape[2:] == (1, 1)
        if (x.shape[:2] if is_1x1 else x.shape) != shapes[name] or not x.is_floating_point():
            raise CheckpointError(
                f"{where}: {given[name]} is {x.dtype} {tuple(x.shape)}; expected floats of shape {shapes[name]}: it is "
                "the file of another head",
                step="tensors",
            )
    for layer in norms:
        gain, shift, mean, variance = (tensors.pop(f"{layer}.norm.{part}").double() for part in _NORM)
        scale = gain / torch.sqrt(variance + _EPS)  # (C_in,)
        weight = tensors[f"{layer}.weight"].double().flatten(1)  # (C_out, C_in)
        tensors[f"{layer}.weight"] = weight * scale
        tensors[f"{layer}.bias"] = tensors[f"{layer}.bias"].double() + weight @ (shift - mean * scale)
    return {name: x.to(dtype).reshape(shapes[name]) for name, x in tensors.items()} | counts


def backbone_of(state: Tensors) -> dict[str, Tensor]:
    """Return the weights of a DINOv2 backbone in transformers' names, ``backbone.*``, under timm's."""
    found: dict[str, Any] = {}
    for key, value in state.items():
        if key.startswith("backbone.") and not key.endswith("mask_token"):
            name = renamed(key.removeprefix("backbone."), _BACKBONE)
            whole, _, part = name.rpartition(".") if ".qkv." in name else (name, "", "")
            found.setdefault(whole, {})[part] = value.float()
    return {name: torch.cat([parts[part] for part in sorted(parts, key="qkv".find)]) for name, parts in found.items()}
