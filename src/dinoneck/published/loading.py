"""load_published: the file of a published head, checked and translated, as a HeadCheckpoint like any other.

One translator takes the tensors of publishers' files to those of our modules, strict in names and
shapes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import Tensor

from dinoneck.backbones.known import family_of, license_of
from dinoneck.backbones.weight_hashes import state_digest
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import BackboneError, CheckpointError
from dinoneck.hub_errors import refusal, unreachable
from dinoneck.published.table import NOT_STATED, ROWS, PublishedHead, row_named
from dinoneck.text import first_line, some_of
from dinoneck.weight_files import read_state

logger = logging.getLogger(__name__)

# the weights-only reader of earlier versions had a hole (CVE-2026-24747)
_SAFE_READER = Version("2.10")
# a checkpoint of mmcv may hold NumPy numbers in its notes
_NUMBERS: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
]

_SHOWN = 5  # names in an error
_EPS = 1e-5  # of the publishers' batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")
Tensors = Mapping[str, Tensor]
# names of publishers and of transformers -> ours, applied in this order
_RULES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # of the backbone in a file of transformers; query, key and value are parts of one tensor
    (
        r"^encoder\.layer(.*?)attention\.(?:attention\.)?([qkv])(uery|ey|alue|_proj)\.(.*)",
        r"blocks\1attn.qkv.\4:\2",
    ),
    (r"^encoder\.layer(.*)layer_scale(\d)\.lambda1$", r"blocks\1ls\2.gamma"),
    (r"^encoder\.layer", "blocks"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(network|decode_head|neck|head)\.(decoder\.)?", ""),
    (r"^bn\.(\d)\.", r"norms.\1."),  # of PMT, to upscale
    (r"^lateral_projections\.", "lateral."),
    (r"^scalers\.", "scales."),
    (r"^q\.", "queries."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"^(decoder_|layer)norm\.", "norm."),
    (r"^class_head\.", "classes."),
    (r"^mask_head\.", "masks."),
    (r"^upscale\.(\d)\.conv1\.", r"up.\1.grow."),
    (r"^upscale\.(\d)\.conv2\.", r"up.\1.smooth."),
    (r"^upscale\.", "up."),
    (
        r"^reassemble_(blocks|stage)\.readout_projects\.(\d)\.0\.",
        r"neck.reassemble.\2.readout_linear.",
    ),
    (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"neck.reassemble.\1.project."),
    (r"^reassemble_stage\.layers\.(\d)\.projection\.", r"neck.reassemble.\1.project."),
    (r"^reassemble_blocks\.batchnorm_layers\.(\d)\.", r"neck.reassemble.\1.project.norm."),
    (
        r"^reassemble_(blocks\.resize_layers|stage\.layers)\.([01])\.(resize\.)?",
        r"neck.reassemble.\2.up.",
    ),
    (
        r"^reassemble_(blocks\.resize_layers|stage\.layers)\.3\.(resize\.)?",
        "neck.reassemble.3.down.",
    ),
    (r"^convs\.(\d)\.(conv\.)?", r"neck.reassemble.\1.widen."),
    # they number the fusion blocks from the coarsest, we from the finest
    (
        r"^fusion_(blocks|stage\.layers|layers)\.(\d)\.",
        lambda match: f"neck.fusion.{3 - int(match[2])}.",
    ),
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
# transformers stores the lateral unit of the coarsest block, and never calls it; PMT's masks of
# attention are of its training
_UNUSED = re.compile(
    rf"(backbone|dinov2\w*)\.|.*fusion_stage\.layers\.0\.residual_layer1\.|.*({_COUNT}|mask_token|attn_mask_probs)$"
)


def load_published(
    name: str, *, weights: str | os.PathLike[str] | None = None, revision: str | None = None
) -> HeadCheckpoint:
    """Load a head that others published for a frozen backbone.

    Every tensor of the file is checked by name and shape; files of the same ones cannot be
    distinguished where their publisher states no hash. The result names the backbone, its blocks,
    how images are prepared, the unit and the licence, so that ``Predictor(load_published(name))``
    needs nothing else.

    Args:
        name: as in :func:`list_published`.
        weights: a local file in the publisher's format, or in that of transformers (Depth Anything:
            only that); the only way for heads that state no licence, or are gated and without a Hub
            repository. A hash that the publisher states is compared for files of its own format.
        revision: branch, tag or commit of the Hub repository with the same weights in safetensors,
            which is then loaded in place of the publisher's file.

    Raises:
        CheckpointError: if the name is unknown, weights and a revision are given, the file does not
            fit, is damaged or has the name or hash of another one, it cannot be fetched, is gated,
            states no licence, or lacks the Hub repository that a revision is of.
    """
    row = row_named(name)
    file, url = _file(row, weights, revision)
    sha256 = _checked_hash(row, file)
    head = row.build()
    try:
        with torch.serialization.safe_globals(_NUMBERS):  # noqa: TID251 - numbers of NumPy, for this call
            state = read_state(file)
    except BackboneError as error:
        raise CheckpointError(f"published head {name!r}: {error}", step="file") from error
    head.load_state_dict(translated(state, head.state_dict(), str(file)), strict=True, assign=True)
    licence = None if row.licence == NOT_STATED else row.licence
    record = backbone_record(row)
    tuned_weights = None
    if row.tuned:
        tuned_weights = _tuned_backbone(row, state, file)
        record["weights"] = {"kind": "file"}
        record["license"] = licence
        record["weights_sha256"] = state_digest(tuned_weights)
    return HeadCheckpoint.from_module(
        head,
        backbone=record,
        backbone_weights=tuned_weights,
        preprocess=Preprocessing(patch_size=row.model.patch, **row.inputs),
        license=licence,
        extra={"published": name, "url": url, "sha256": sha256},
    )


def _tuned_backbone(row: PublishedHead, state: Tensors, file: Path) -> dict[str, Tensor]:
    """The backbone's weights in a file of a head that was trained along with it, under timm's names."""
    from dinoneck.backbones import timm  # a heavy library

    with torch.device("meta"):
        expected = timm.build(row.backbone).state_dict()
    return translated(backbone_of(state), expected, f"the backbone in {file}")


def backbone_record(row: PublishedHead) -> dict[str, Any]:
    """Return the backbone record of a row: any copy of the weights that were published under its name."""
    model = row.model
    family = family_of(row.backbone)
    has_official_positions = family == "dinov2" and not model.registers
    return {
        "name": row.backbone,
        "family": family,
        "source": "timm",
        "patch_size": [model.patch] * 2,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_cls": 1,
        "num_registers": model.registers,
        "layers": list(row.layers),
        "norm": row.norm,
        "pos_embed": "official" if has_official_positions else "native",
        "dtype": "float32",
        "weights": {"kind": "hub", "repo": f"timm/{row.backbone}"},
        "license": license_of(row.backbone),
    }


def _checked_hash(row: PublishedHead, file: Path) -> str:
    """The SHA-256 of a file, compared with the publisher's if it states one; the Hub's safetensors have another.

    Raises:
        CheckpointError: for another hash, the name of another file of the table, or a missing file.
    """
    if not file.is_file():
        raise CheckpointError(
            f"the weights of {row.name} are to be read from {file}, which is not a file",
            step="file",
        )
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if file.suffix.lower() == ".safetensors":
        return sha256
    owners = {Path(other.url).name: other.name for other in ROWS.values()}
    owner = owners.get(file.name, row.name)
    if owner != row.name:
        raise CheckpointError(
            f"{file} has the name of the file of {owner}; expected that of {row.name}", step="file"
        )
    if not sha256.startswith(row.sha256):
        raise CheckpointError(
            f"{file} has the SHA-256 {sha256[:16]}…; the publisher's file of {row.name} begins with "
            f"{row.sha256}: it is damaged, or another file. Download it again",
            step="digest",
        )
    return sha256


def _file(
    row: PublishedHead, weights: str | os.PathLike[str] | None, revision: str | None
) -> tuple[Path, str]:
    """The local path of a row's file, downloaded once, and its address: the Hub's copy, else the publisher's.

    Raises:
        CheckpointError: if it is to be fetched, and it is gated, has no licence or does not arrive;
            if a revision is given with a local file or without a Hub repository; before it is
            downloaded, if it is a pickle without a known hash and torch's reader is not safe.
    """
    if revision is not None and (weights is not None or row.hub is None):
        raise CheckpointError(
            f"revision={revision!r} is for a Hub copy; {row.name} has {row.hub or 'none'}, and "
            f"weights is {weights!r}. Leave revision= out",
            step="hub",
        )
    if weights is None:
        file = Path(torch.hub.get_dir(), "checkpoints", Path(row.url).name)  # noqa: TID251 - a folder
        needs_hub = row.hub is not None and (row.gated or row.tuned)
        from_hub = revision is not None or needs_hub
        _check_may_fetch(row, from_hub)
    else:
        file = Path(weights)
        from_hub = False
    is_known = from_hub or row.sha256 or file.suffix.lower() == ".safetensors"
    if not is_known and Version(torch.__version__) < _SAFE_READER:
        raise CheckpointError(
            f"{file} is a pickle without a known hash, which torch {torch.__version__} does not "
            f"read safely; install torch {_SAFE_READER} or later, or take a .safetensors file "
            "(revision='main' where there is a Hub copy)"
        )
    if weights is not None or (file.exists() and not from_hub):
        return file, row.url
    url = f"https://huggingface.co/{row.hub}" if from_hub else row.url
    logger.warning(
        "fetching %s: the terms of %s hold for it and what is made of it", url, row.licence
    )
    try:
        if from_hub:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(str(row.hub), "model.safetensors", revision=revision))
            return file, f"{url}/blob/{file.parent.name}/{file.name}"  # its folder is the commit
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file))  # noqa: TID251 - addresses of our own table
    except Exception as error:  # the clients raise many unrelated types
        if from_hub:
            reason = refusal(error, str(row.hub), revision) or unreachable(error)
        else:
            reason = first_line(error)
        raise CheckpointError(
            f"{row.name} was not fetched from {url} ({reason}). Try again, or fetch the file "
            "elsewhere and pass it, weights=FILE (--weights FILE)",
            step="hub",
        ) from None
    return file, url


def _check_may_fetch(row: PublishedHead, from_hub: bool) -> None:
    """Check that the terms of a row let its file be fetched without the user."""
    is_gated = row.gated and not from_hub
    if row.licence == NOT_STATED or is_gated:
        why = "states no licence"
        if is_gated:
            why = f"is given only to people who accepted the terms of {row.licence}"
        raise CheckpointError(
            f"{row.name} {why}: take the file from {row.url} and pass it, weights=FILE (--weights "
            "FILE)",
            step="hub",
        )


def renamed(name: str) -> str:
    """Return our name of a file's tensor."""
    for pattern, ours in _RULES:
        name = re.sub(pattern, ours, name)
    return name


def translated(
    state: Tensors, own: Tensors, where: str, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
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
    # our names -> those of the file; two of the file may have the same one of ours
    file_names: dict[str, str] = {}
    unknown = []
    for file_name in state:
        if _UNUSED.match(file_name):
            continue
        name = renamed(file_name)
        if name in file_names:
            unknown.append(file_name)
        else:
            file_names[name] = file_name

    counts = {}  # of batch norms of ours: a file need not have them
    shapes = {}
    for name, tensor in own.items():
        if name.endswith(_COUNT):
            counts[name] = torch.zeros((), dtype=torch.int64)
        else:
            shapes[name] = tuple(tensor.shape)
    normed_layers = _normed_layers(file_names, own)
    for layer in normed_layers:
        for suffix in _NORM:
            shapes[f"{layer}.norm.{suffix}"] = shapes[f"{layer}.weight"][1:2]

    missing = shapes.keys() - file_names.keys()
    unknown += [file_names[name] for name in file_names.keys() - shapes.keys()]
    if missing or unknown:
        raise CheckpointError(
            f"{where} lacks {some_of(missing, _SHOWN) or 'nothing'}, and holds "
            f"{some_of(unknown, _SHOWN) or 'nothing'} in addition: it is the file of another head",
            step="tensors",
        )
    tensors = {name: state[file_name] for name, file_name in file_names.items()}
    for name, x in tensors.items():
        shape = x.shape
        if len(shapes[name]) == 2 and x.shape[2:] == (1, 1):  # a 1x1 convolution is a linear layer
            shape = x.shape[:2]
        if shape != shapes[name] or not x.is_floating_point():
            raise CheckpointError(
                f"{where}: {file_names[name]} is {x.dtype} {tuple(x.shape)}; expected floats of "
                f"shape {shapes[name]}: it is the file of another head",
                step="tensors",
            )
    for layer in normed_layers:
        _fold_norm(tensors, layer)
    result = {name: x.to(dtype).reshape(shapes[name]) for name, x in tensors.items()}
    return result | counts


def _normed_layers(file_names: Mapping[str, str], own: Tensors) -> set[str]:
    """Our layers in front of which the file has a batch norm, ``<layer>.norm.*``."""
    layers = {name.rpartition(".")[0] for name in own}
    normed = {name.partition(".norm.")[0] for name in file_names if ".norm." in name}
    return normed & layers


def _fold_norm(tensors: dict[str, Tensor], layer: str) -> None:
    """Take the batch norm in front of a layer out of the tensors, and fold it into the layer."""
    gain, shift, mean, variance = (
        tensors.pop(f"{layer}.norm.{suffix}").double() for suffix in _NORM
    )
    scale = gain / torch.sqrt(variance + _EPS)  # (C_in,)
    weight = tensors[f"{layer}.weight"].double().flatten(1)  # (C_out, C_in)
    bias = tensors[f"{layer}.bias"].double()
    tensors[f"{layer}.weight"] = weight * scale
    tensors[f"{layer}.bias"] = bias + weight @ (shift - mean * scale)


def backbone_of(state: Tensors) -> dict[str, Tensor]:
    """Return the weights of a DINOv2 backbone in transformers' names, ``backbone.*``, under timm's."""
    pieces: dict[str, dict[str, Tensor]] = {}  # name -> "q", "k", "v", or "" of a whole tensor
    for key, value in state.items():
        if key.startswith("backbone."):
            name, _, piece = renamed(key.removeprefix("backbone.")).partition(":")
            pieces.setdefault(name, {})[piece] = value
    tensors = {}
    for name, pieces_of_name in pieces.items():
        ordered = [
            pieces_of_name[piece] for piece in ("", "q", "k", "v") if piece in pieces_of_name
        ]
        tensors[name] = torch.cat(ordered)
    return tensors
