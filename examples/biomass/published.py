"""Weights of the published notebooks as heads: patch MLPs per target and fold, and the CLS gating module."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dinoneck import CLSGatingHead, HeadEnsemble, PatchMeanHead, Task, import_weights
from dinoneck.errors import CheckpointError

TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")
"""What the indices 0 ... 4 in the names of the patch MLPs' files mean."""
MLP_NAMES = {"network.0.": "mlps.0.hidden.", "network.2.": "mlps.0.out."}
GATING_NAMES = {
    "gate_mlp.0.": "gating.hidden.",
    "gate_mlp.2.": "gating.out.",
    "shared_mlp.0.": "trunk.",
    "shared_mlp.1.": "norm.",
    "main_head.": "readouts.0.",
    "state_head.": "readouts.1.",
    "height_head.": "readouts.2.",
    "aux_head.": "readouts.3.",
}
_GRAMS = {"activation": "softplus", "loss": "smooth_l1"}
GATING_TASKS = (
    Task(
        "main",
        dim=3,
        weight=(1.0, 0.6, 0.3),
        unit="g",
        labels=("Dry_Total_g", "GDM_g", "Dry_Green_g"),
        **_GRAMS,
    ),
    Task("state", dim=4, kind="classification", weight=0.1, labels=("Tas", "NSW", "WA", "Vic")),
    Task("height", weight=0.1, unit="cm", labels=("Height_Ave_cm",), **_GRAMS),
    Task("aux", dim=2, weight=0.1, unit="g", labels=("Dry_Dead_g", "Dry_Clover_g"), **_GRAMS),
)


def patch_mlps(
    folder: str | os.PathLike[str],
    pattern: str = "target{target}_fold{fold}.pth",
    *,
    targets: Sequence[str] = TARGETS,
    folds: int = 5,
    embed_dim: int = 1536,
    hidden_dim: int = 128,
) -> HeadEnsemble:
    """Return the mean over the folds of one patch MLP per target; a ReLU follows on every patch.

    Args:
        folder: with one file per target and fold, and no other weights.
        pattern: their names, with ``{target}`` (an index) or ``{name}`` (of the target), and
            ``{fold}``.
        targets: in the order of the indices.
        folds: how many per target, counted from 0.
        embed_dim: of the tokens.
        hidden_dim: of the MLPs.

    Raises:
        CheckpointError: if a file is missing or does not fit, or the folder holds other weights.
    """
    target_of_file = {}
    for index, name in enumerate(targets):
        for fold in range(folds):
            file = pattern.format(target=index, name=name, fold=fold)
            target_of_file[Path(folder, file)] = name
    others = sorted(set(Path(folder).glob("*.pt*")) - target_of_file.keys())
    if len(target_of_file) != len(targets) * folds or others:
        raise CheckpointError(
            f"{pattern!r} names {len(target_of_file)} files and leaves out "
            f"{[file.name for file in others]}; expected one file for each of {len(targets)} "
            f"targets and {folds} folds"
        )
    heads = []
    for path, name in target_of_file.items():
        task = Task(name, unit="g", activation="relu")
        head = PatchMeanHead(embed_dim, [task], hidden_dim=hidden_dim)
        heads.append(import_weights(head, path, MLP_NAMES))
    return HeadEnsemble.from_heads(heads)


def cls_gating(
    file: str | os.PathLike[str],
    *,
    embed_dim: int = 1280,
    num_patches: int = 3600,
    hidden_dim: int = 512,
) -> CLSGatingHead:
    """Return the head with the weights and the tasks of the published CLS gating module.

    Raises:
        CheckpointError: as :func:`dinoneck.import_weights`.
    """
    head = CLSGatingHead(embed_dim, GATING_TASKS, num_patches=num_patches, hidden_dim=hidden_dim)
    return import_weights(head, file, GATING_NAMES)
