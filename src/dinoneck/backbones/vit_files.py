"""The ViT in a file of weights: found among everything that a training has saved, and described by its tensors.

A ViT is recognised by its CLS token and its patch embedding. What stands before these names in the
file (``teacher.backbone.``, ``model.``) is taken away, so that checkpoints of DINOv2, DINOv3,
Lightning and DDP need no conversion.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dinoneck.backbones.known import (
    KNOWN,
    TIPSV2_BACKBONE,
    TIPSV2_HEADS,
    Known,
    dimensions_of,
    family_of,
    model_of,
)
from dinoneck.errors import BackboneError
from dinoneck.text import counted, some_of
from dinoneck.torch_wrappers import plain_name
from dinoneck.weight_files import as_dict, check_dense, check_held, read_any

logger = logging.getLogger(__name__)

_SHOWN = 4
_MAX_DEPTH = 6  # dicts in dicts; checkpoints have up to four, such as model, teacher, backbone
_MAX_ENTRIES = 1_000_000  # a ViT-7B and its optimiser have less than 10,000
_CLASS_TOKEN = "cls_token"  # noqa: S105 - a name of a tensor
_EMBEDDINGS = "embeddings."  # of transformers, before its CLS token
_PATCHES = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
)
_REGISTERS = ("reg_token", "register_tokens", "storage_tokens", "embeddings.register_tokens")
_POSITIONS = ("pos_embed", "embeddings.position_embeddings")
_SHARDED = "_flat_param"  # FSDP's name for the part of all weights that one GPU holds
_OPTIMISER = re.compile(r"optim")
# what classifies, projects or pools the tokens: it does not change them
_CLASSIFIER = re.compile(
    r"(head|heads|cls_head|head_dist|classifier|fc|fc_norm|linear|linear_head|dino_head|"
    r"ibot_head|projector|projection_head|predictor|attn_pool)\."
)
# "blocks.3." of timm and the repositories, "blocks.0.3." of block 3 in a chunk, "encoder.layer.3."
_BLOCK = re.compile(r"^(?:blocks\.(?:\d+\.)?|(?:\w+\.)*layer\.)(?P<number>\d+)\.")
_GATED = re.compile(r"\.mlp\.(w1|w12|fc1_g|gate_proj|weights_in)\.")
_SIZES = {192: "ViT-T", 384: "ViT-S", 768: "ViT-B", 1024: "ViT-L", 1152: "SoViT-400M"}
_SIZES |= {1280: "ViT-H+", 1536: "ViT-g", 4096: "ViT-7B"}
_FAMILY_NAMES = {
    "dinov2": "DINOv2",
    "dinov3": "DINOv3",
    "lingbot": "LingBot-Vision",
    "tipsv2": "TIPSv2",
}

# what trainings call a model of averaged weights: torch.optim.swa_utils, Lightning, timm
_AVERAGED = frozenset(("ema", "swa", "average", "averaged"))
# Lightning's WeightAveraging has the averaged weights under "state_dict"
_BEFORE_AVERAGING = "current_model_state."

Role = Literal["ema", "teacher", "other", "student"]
_PREFERRED: tuple[Role, ...] = ("ema", "teacher", "other", "student")
_ROLE_NAMES: dict[Role, str] = {
    "ema": "the averaged model (EMA)",
    "teacher": "the teacher",
    "student": "the student",
    "other": "the ViT",
}


def read_vit(path: str | os.PathLike[str], name: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of the ViT that a file holds, under the ViT's own names.

    Of several, those of the size of the named model are preferred: a distillation keeps its teacher
    next to the model that it trains. Of these the averaged model (EMA) is taken, else the teacher,
    else the one that is no student; the log says which, and what is left out. A classifier or
    projector next to the ViT is left out.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote: a state dict, or dicts that hold one.
        name: of the model that the tensors are for.

    Raises:
        BackboneError: if the file is missing, damaged, no file of tensors, holds several ViTs that
            are equally good, or one GPU's part of the weights.
    """
    _check_is_file(Path(path))
    loaded = as_dict(read_any(path), str(path))
    tensors = _flatten(loaded, path)
    if not tensors:
        raise BackboneError(
            f"{path} holds no tensors, but {some_of(map(str, loaded), _SHOWN)}; expected a state "
            "dict of named tensors"
        )
    _check_is_whole(tensors, path)
    prefix = _choose(tensors, loaded, path, name)
    state = _vit_at(prefix, tensors)
    check_dense(state, str(path))
    check_held(state, str(path))
    return state


def _check_is_file(path: Path) -> None:
    """Raise a BackboneError for folders, with what to do with them."""
    if path == Path():
        return  # an empty name: refused by the reader
    is_part = path.suffix == ".distcp" and (path.parent / ".metadata").is_file()
    folder = path.parent if is_part else path
    if not folder.is_dir():
        return
    if (folder / ".metadata").is_file():
        raise BackboneError(
            f"{folder} is a distributed checkpoint (DCP), whose weights are spread over files; "
            "make one file of it, and load that: python -m torch.distributed.checkpoint."
            f"format_utils dcp_to_torch {folder} weights.pth"
        )
    if (folder / "config.json").is_file():
        raise BackboneError(
            f"{folder} is a folder of the library transformers, which is a model of its own: give "
            "it as the name, load_backbone(folder, source='transformers') (--backbone and "
            "--backbone-source on the command line)"
        )


def _flatten(loaded: Mapping[Any, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of dicts in dicts by their joined names, without those of optimisers."""
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", loaded, 1)]
    visited = 0
    while waiting:
        prefix, entries, depth = waiting.pop()
        for key, value in entries.items():
            visited += 1
            name = f"{prefix}{key}"
            if visited > _MAX_ENTRIES:
                raise BackboneError(
                    f"{path} holds more than {_MAX_ENTRIES} entries; expected the weights of a ViT"
                )
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, Mapping) and depth < _MAX_DEPTH and not _OPTIMISER.match(name):
                waiting.append((f"{name}.", value, depth + 1))
    return tensors


def _check_is_whole(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raise a BackboneError for one GPU's part of weights that a training with FSDP has divided."""
    sharded = [name for name in tensors if name.endswith(_SHARDED)]
    sharded += [name for name, value in tensors.items() if hasattr(value, "placements")]
    if sharded:
        raise BackboneError(
            f"{path} holds one GPU's part of weights that FSDP divides ({some_of(sharded, 1)}); "
            "pass a file of all of them, such as the eval/training_…/teacher_checkpoint.pth that "
            "DINOv2 and DINOv3 write"
        )


def _choose(
    tensors: Mapping[str, Tensor],
    loaded: Mapping[Any, Any],
    path: str | os.PathLike[str],
    name: str | None,
) -> str:
    """Return what stands before the names of the ViT to take, ``""`` if there is none, and log it."""
    prefixes = _prefixes(tensors)
    if not prefixes:
        return ""  # no ViT: the names that are missing are listed later
    candidates = _with_best_role(_of_named_size(prefixes, tensors, name))
    chosen = candidates[0]
    for other in candidates[1:]:
        if not _are_same(_vit_at(chosen, tensors), _vit_at(other, tensors)):
            names = ", ".join(repr(prefix) for prefix in candidates)
            raise BackboneError(
                f"{path} holds several ViTs, under names that begin with {names}; save the one to "
                f"load alone, such as the first: {_code_that_saves(chosen, loaded, path)}"
            )
    _log_choice(tensors, chosen, prefixes, path)
    return chosen


def _code_that_saves(prefix: str, loaded: Mapping[Any, Any], path: str | os.PathLike[str]) -> str:
    """Return the lines of Python that save the ViT at a prefix alone."""
    reader = "safetensors.torch.load_file" if Path(path).suffix == ".safetensors" else "torch.load"
    state = f"{reader}({str(path)!r})"
    entries = loaded
    before = prefix
    while before:
        inner = [
            key
            for key, value in entries.items()
            if isinstance(value, Mapping) and before.startswith(f"{key}.")
        ]
        if not inner:
            break
        state += f"[{inner[0]!r}]"
        entries = entries[inner[0]]
        before = before.removeprefix(f"{inner[0]}.")
    if not before:
        return f"torch.save({state}, 'weights.pth')"
    return (
        f"torch.save({{name.removeprefix({before!r}): x for name, x in {state}.items() "
        f"if name.startswith({before!r})}}, 'weights.pth')"
    )


def _of_named_size(
    prefixes: list[str], tensors: Mapping[str, Tensor], name: str | None
) -> list[str]:
    """Return the prefixes of the ViTs that have the width and depth of the named model; all if none has."""
    size = None if name is None else dimensions_of(name)
    if size is None:
        return prefixes
    of_size = []
    for prefix in prefixes:
        shape = shape_of(_vit_at(prefix, tensors))
        if shape is not None and (shape.width, shape.depth) == size:
            of_size.append(prefix)
    return of_size or prefixes


def _with_best_role(prefixes: list[str]) -> list[str]:
    """Return the prefixes of the role that is preferred among them."""
    for role in _PREFERRED:
        candidates = [prefix for prefix in prefixes if _role(prefix) == role]
        if candidates:
            return candidates
    return prefixes


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what stands before the names of every ViT in the file, but for Gram anchoring's copies."""
    prefixes = []
    for name in tensors:
        if not (name == _CLASS_TOKEN or name.endswith(f".{_CLASS_TOKEN}")):
            continue
        prefix = name.removesuffix(_CLASS_TOKEN)
        if prefix == _EMBEDDINGS or prefix.endswith(f".{_EMBEDDINGS}"):
            prefix = prefix.removesuffix(_EMBEDDINGS)
        is_old_copy = "gram" in re.split(r"[._]", prefix)
        if not is_old_copy and any(part in _vit_at(prefix, tensors) for part in _PATCHES):
            prefixes.append(prefix)
    return sorted(prefixes)


def _role(prefix: str) -> Role:
    """Return what a training uses a model for, by the words of its name."""
    words = re.split(r"[._]", prefix.lower())
    if _AVERAGED.intersection(words):
        return "ema"
    if "teacher" in words:
        return "teacher"
    if "student" in words or prefix.startswith(_BEFORE_AVERAGING):
        return "student"
    return "other"


def _vit_at(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, without that, wrappers, and classifiers."""
    state = {}
    for name, value in tensors.items():
        if not name.startswith(prefix):
            continue
        vit_name = plain_name(name.removeprefix(prefix))
        if not is_of_classifier(vit_name):
            state[vit_name] = value
    return state


def is_of_classifier(name: str) -> bool:
    """Whether a tensor of these names classifies, projects or pools tokens: it is left out of a file's ViT."""
    return _CLASSIFIER.match(name) is not None


def _are_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    if one.keys() != other.keys():
        return False
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _log_choice(
    tensors: Mapping[str, Tensor],
    chosen: str,
    prefixes: list[str],
    path: str | os.PathLike[str],
) -> None:
    """Log the names that are taken and what is left out, if that is not plain."""
    taken = _vit_at(chosen, tensors)
    left_out = []
    for name in tensors:
        vit_name = plain_name(name.removeprefix(chosen))
        if not (name.startswith(chosen) and vit_name in taken):
            left_out.append(_part_of(name))
    others = [repr(prefix) for prefix in prefixes if prefix != chosen]
    sentences = []
    if chosen:
        rather = f", not of {' or '.join(others)}" if others else ""
        sentences.append(
            f"the weights are those of {_ROLE_NAMES[_role(chosen)]}, whose names begin with "
            f"{chosen!r}{rather}"
        )
    if left_out:
        parts = [f"{part} ({count})" for part, count in Counter(left_out).items()]
        sentences.append(f"left out: {some_of(parts, _SHOWN)}")
    if sentences:
        is_plain = chosen in ("", "model.", "state_dict.") and not left_out
        # one file of their publisher holds backbone and heads
        is_of_tipsv2 = chosen == TIPSV2_BACKBONE and not others
        if is_of_tipsv2 and all(part.startswith(TIPSV2_HEADS) for part in left_out):
            is_plain = True
        level = logging.INFO if is_plain else logging.WARNING
        logger.log(level, "%s: %s", path, "; ".join(sentences))


def _part_of(name: str) -> str:
    """Return the module that a tensor belongs to, in up to three words: ``model.teacher.dino_head``."""
    words = name.split(".")[:-1] or [name]
    return ".".join(words[:3])


@dataclass(frozen=True)
class VitShape:
    """What the tensors of a ViT say of its architecture.

    Attributes:
        form: ``dinov2`` with learned positions, ``dinov3`` without.
        width: channels of a token.
        depth: blocks.
        patch: pixels per patch side.
        registers: register tokens.
        is_gated: whether the MLPs are gated (SwiGLU).
        positions: rows of the square grid of learned positions; None without, 0 if it is no square.
    """

    form: str
    width: int
    depth: int
    patch: int
    registers: int
    is_gated: bool
    positions: int | None

    def timm_options(self, name: str, path: str | os.PathLike[str]) -> dict[str, int]:
        """Return timm's options for what a training of one's own has set other than the published model of a name.

        These are the patch, the registers of DINOv3's form (also of DINOv2's, if both have some) and
        the size of the images, on which the grid of learned positions depends.

        Args:
            name: of the model; the changes are none if it is another size, or the file's shape is
                that of another published model: of its family, or of another one with the same
                grid of learned positions.
            path: the file, for the message.

        Raises:
            BackboneError: if learned positions are of no square grid.
        """
        model = model_of(name)
        if model is None or self.form != model.form:
            return {}
        if not self._has_blocks_of(model):
            return {}
        options = {}
        if not self._is_published(family_of(name)):
            if self.patch != model.patch:
                options["patch_size"] = self.patch
            both_have_registers = bool(self.registers and model.registers)
            if self.registers != model.registers and self.form == "dinov3":
                options["num_reg_tokens"] = self.registers
            elif self.registers != model.registers and both_have_registers:
                options["reg_tokens"] = self.registers
        if self.positions is not None:
            if self.positions == 0:
                raise BackboneError(
                    f"the learned positions of {path} are of no square grid; wrap_backbone(model) "
                    "takes the model that they belong to"
                )
            patch = options.get("patch_size", model.patch)
            size = self.positions * patch
            if size != model.image_size:
                options["img_size"] = size
        return options

    def __str__(self) -> str:
        size = _SIZES.get(self.width, "model")
        mlp = ", gated MLPs" if self.is_gated else ""
        registers = f", {counted(self.registers, 'register')}" if self.registers else ""
        families = [family_of(model.name) for model in self.known] or [self.form]
        names = " or ".join(_FAMILY_NAMES[family] for family in families)
        return (
            f"{size} of {self.width} channels, {self.depth} blocks, patch {self.patch}{registers}"
            f"{mlp} ({names})"
        )

    @property
    def known(self) -> list[Known]:
        """The first published architecture of this shape of every family that has one."""
        models: dict[str, Known] = {}
        for model in KNOWN:
            has_tokens = model.patch == self.patch and model.registers == self.registers
            if model.form == self.form and has_tokens and self._has_blocks_of(model):
                models.setdefault(family_of(model.name), model)
        return list(models.values())

    def _is_published(self, family: str) -> bool:
        """Whether this is the shape of a published model of a family, or of another family's with its positions."""
        for model in self.known:
            if family_of(model.name) == family:
                return True
            if self.positions is not None and self.positions * self.patch == model.image_size:
                return True
        return False

    def _has_blocks_of(self, model: Known) -> bool:
        """Whether the blocks are as many, as wide and as gated as those of a published model."""
        return (
            self.width == model.width
            and self.depth == model.depth
            and self.is_gated == model.is_gated
        )


def shape_of(state: Mapping[str, Tensor]) -> VitShape | None:
    """Return the architecture that these tensors are of; None if they are no ViT."""
    cls_token = _first_of(state, (_CLASS_TOKEN, _EMBEDDINGS + _CLASS_TOKEN))
    patches = _first_of(state, _PATCHES)
    if cls_token is None or cls_token.ndim != 3 or patches is None or patches.ndim != 4:
        return None
    registers = _first_of(state, _REGISTERS)
    position = _first_of(state, _POSITIONS)
    return VitShape(
        form="dinov3" if position is None else "dinov2",
        width=cls_token.shape[-1],
        depth=_depth(state),
        patch=patches.shape[-1],
        registers=0 if registers is None else registers.shape[1],
        is_gated=_is_gated(state),
        positions=None if position is None else _rows(position.shape[1]),
    )


def _first_of(state: Mapping[str, Tensor], names: Sequence[str]) -> Tensor | None:
    """Return the tensor of the first of these names that is there; None if none is."""
    for name in names:
        if name in state:
            return state[name]
    return None


def _depth(state: Mapping[str, Tensor]) -> int:
    """Return the number of blocks: one more than the largest number."""
    depth = 0
    for name in state:
        match = _BLOCK.match(name)
        if match is not None:
            depth = max(depth, int(match["number"]) + 1)
    return depth


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs are gated: by their names, or as timm packs gate and value into one layer."""
    if any(_GATED.search(name) for name in state):
        return True
    first = state.get("blocks.0.mlp.fc1.weight")
    second = state.get("blocks.0.mlp.fc2.weight")
    if first is None or second is None or first.ndim != 2 or second.ndim != 2:
        return False
    return first.shape[0] != second.shape[1]


def _rows(count: int) -> int:
    """Return the rows of the square grid that positions are of, with or without CLS's own; 0 if none fits."""
    for patches in (count, count - 1):
        rows = math.isqrt(max(patches, 0))
        if rows and rows * rows == patches:
            return rows
    return 0
