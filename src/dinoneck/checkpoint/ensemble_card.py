"""What a hub repository says about an ensemble: derived from the headers of its heads and the list that binds them."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from dinoneck.checkpoint.card import base_model, code, page
from dinoneck.checkpoint.ensemble_folder import EnsembleFolder
from dinoneck.checkpoint.header import LISTING, canonical
from dinoneck.version import __version__

_SHARED = ("data", "folds", "epochs", "seed")


def ensemble_card(ensemble: EnsembleFolder, repo_id: str | None = None, figures: Iterable[str] = ()) -> str:
    """Return the README.md that describes an ensemble, see :func:`dinoneck.checkpoint.model_card`.

    Args:
        ensemble: the heads.
        repo_id: ``user/name`` of the hub repository it will stand in.
        figures: pictures that lie beside the page, as paths relative to it.

    Raises:
        CheckpointError: if a name is none.
    """
    meta = _common(ensemble)
    trained = f" on the backbone {code(ensemble.backbone.get('name'))}" if ensemble.backbone else ""
    can_predict = ensemble.backbone is not None
    loading = [
        "```python",
        *(["from dinoneck import Predictor"] if can_predict else []),
        "from dinoneck.checkpoint import EnsembleFolder",
        "",
        f'ensemble = EnsembleFolder.load("{repo_id or "the/folder"}")  # every digest is checked',
        "head = ensemble.build()",
        *(["predict = Predictor(ensemble)  # loads the backbone too"] if can_predict else []),
        "```",
    ]
    rows = [
        f"| {code(member.output)} | {code(member.fold)} | {code(member.weight)} | "
        f"{code(member.checkpoint.meta['digest'])} |"
        for member in ensemble.members
    ]
    file = [
        f"- {code(LISTING)}: lists {len(ensemble)} head files under {code('heads/')}, digest {code(meta['digest'])}",
        "",
        "| output | fold | weight | digest |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"This page and config.json were derived from their headers by dinoneck {__version__}; the files alone decide.",
    ]
    return page(
        meta,
        repo_id,
        figures,
        opening=f"An ensemble of {len(ensemble)} heads ({code(ensemble.reduce)}) of dinoneck{trained}.",
        loading="\n".join(loading),
        file="\n".join(file),
    )


def ensemble_config(ensemble: EnsembleFolder) -> str:
    """Return the config.json beside an ensemble on the hub; nothing reads it to build the heads."""
    meta = _common(ensemble)
    told = {
        "library_name": "dinoneck",
        "file": LISTING,
        "head_type": meta["head_type"],
        "heads": len(ensemble),
        "digest": meta["digest"],
        "base_model": base_model(meta),
    }
    return json.dumps(told, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _training(ensemble: EnsembleFolder) -> dict[str, Any] | None:
    """What all members tell alike, and every metric by output: its mean over the folds and their spread."""
    told = [member.checkpoint.meta.get("training") or {} for member in ensemble.members]
    shared = {key: value for key, value in told[0].items() if key in _SHARED and all(x.get(key) == value for x in told)}
    found: dict[str, list[float]] = {}
    for member, training in zip(ensemble.members, told, strict=True):
        for name, value in (training.get("metrics") or {}).items():
            found.setdefault(f"{member.output} {name}", []).append(value["mean"] if isinstance(value, dict) else value)
    metrics = {name: _spread(values) for name, values in found.items()}
    return {**shared, **({"metrics": metrics} if metrics else {})} or None


def _spread(values: list[float]) -> Any:
    if len(values) == 1:
        return values[0]
    try:
        return {"mean": round(statistics.fmean(values), 6), "sd": round(statistics.stdev(values), 6)}
    except OverflowError:
        return None


def _common(ensemble: EnsembleFolder) -> Mapping[str, Any]:
    """A header for the ensemble: what its heads have in common, their tasks, the digest of their list."""
    metas = [member.checkpoint.meta for member in ensemble.members]
    tasks = {json.dumps(task, sort_keys=True): task for meta in metas for task in meta["tasks"]}
    licences = sorted({str(meta["license"]) for meta in metas if meta.get("license")})
    digest = hashlib.sha256(canonical(ensemble.listing()) + b"\n").hexdigest()  # of ensemble.json as it is written
    return {
        "head_type": "ensemble",
        "tasks": [*tasks.values()],
        "backbone": ensemble.backbone,
        "inputs": ensemble.inputs,
        "training": _training(ensemble),
        "license": ", ".join(licences) or None,
        "digest": f"sha256:{digest}",
    }
