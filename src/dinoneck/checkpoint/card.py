"""What a hub repository says about a head file: README.md and config.json, derived from its header, without torch.

Strings of a header are untrusted: anybody may have written the file. In the page they stand in code spans on one
line; in the front matter they are YAML strings. Neither file is ever read back as truth: the head file is.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from dinoneck.checkpoint.header import read_header
from dinoneck.checkpoint.records import told_weights
from dinoneck.errors import CheckpointError
from dinoneck.version import __version__

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
FIGURE = re.compile(r"([\w\-]+/)*[\w\-][\w.\-]*", re.ASCII)
HEAD_NAME = "head.safetensors"
_LONGEST = 200
_PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}
_HUB_LICENCES = frozenset(
    ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
     "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0",
     "agpl-3.0", "mpl-2.0", "epl-2.0", "eupl-1.2", "odc-by", "odbl", "pddl")
)  # fmt: skip


class _Family(NamedTuple):
    """Under which licence the weights of a family of backbones are published."""

    name: str
    license: str
    link: str


_FAMILIES = {
    "dinov3": _Family("DINOv3", "dinov3-license", "https://ai.meta.com/resources/models-and-libraries/dinov3-license"),
    "dinov2": _Family("DINOv2", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
}
_LINKS = {family.license: family.link for family in _FAMILIES.values()}


def model_card(
    checkpoint_or_path: HeadCheckpoint | str | os.PathLike[str],
    repo_id: str | None = None,
    figures: Iterable[str] = (),
) -> str:
    """Return the README.md that describes a head, from its header alone.

    It says what the head predicts and in which units, which backbone and inputs it was made for, under which licences,
    how to load it and which digest its content has.

    Args:
        checkpoint_or_path: the head, or its file; the tensors' bytes are not read.
        repo_id: ``user/name`` of the hub repository it will stand in; None = the page speaks of a file.
        figures: pictures that lie beside the page, as paths relative to it.

    Raises:
        CheckpointError: if the file is no sound head file, or a name is none.

    Examples:
        >>> from dinoneck import HeadCheckpoint, PatchMeanHead, Task
        >>> checkpoint = HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total", unit="g")]))
        >>> print(model_card(checkpoint, "user/pasture").splitlines()[1])
        library_name: dinoneck
    """
    meta = _meta(checkpoint_or_path)
    return page(meta, repo_id, figures, opening=_opening(meta), loading=_loading(meta, repo_id), file=_file(meta))


def page(
    meta: Mapping[str, Any], repo_id: str | None, figures: Iterable[str], *, opening: str, loading: str, file: str
) -> str:
    """Return the page of a header, or of what an ensemble's headers have in common, with the sections that differ."""
    if repo_id is not None:
        check_repo_id(repo_id)
    front = yaml.safe_dump(
        _front(meta, repo_id), sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6
    )
    parts = [
        f"---\n{front}---",
        f"# {repo_id.partition('/')[2] if repo_id else 'A head'}",
        opening,
        "## Predictions\n\n" + _tasks(meta["tasks"], meta.get("tta")),
        "## Load\n\n" + loading,
        "## Backbone\n\n" + _backbone(meta["backbone"]),
        "## Inputs\n\n" + (_entries(meta["inputs"]) if meta["inputs"] else "How photos were prepared is not recorded."),
    ]
    if meta.get("training"):
        parts.append("## Training\n\n" + _entries(meta["training"]))
    parts.append("## Licence\n\n" + _licence(meta))
    if pictures := [f"![{_alt(name)}]({_checked_figure(name)})" for name in figures]:
        parts.append("## Figures\n\n" + "\n\n".join(pictures))
    parts.append("## The file\n\n" + file)
    return "\n\n".join(parts) + "\n"


def config_json(checkpoint_or_path: HeadCheckpoint | str | os.PathLike[str]) -> str:
    """Return the config.json beside a head on the hub: what tools search in, and by which the hub counts downloads.

    Nothing reads it to build the head.

    Raises:
        CheckpointError: if the file is no sound head file.
    """
    meta = _meta(checkpoint_or_path)
    told = {
        "library_name": "dinoneck",
        "file": HEAD_NAME,
        **{key: meta[key] for key in ("format", "schema", "created_by", "head_type", "config", "digest")},
        "base_model": base_model(meta),
    }
    return json.dumps(told, indent=2, sort_keys=True, allow_nan=False) + "\n"


def base_model(meta: Mapping[str, Any]) -> str | None:
    """Return the hub repository whose weights the backbone has, or had before it was trained on."""
    weights = (meta["backbone"] or {}).get("weights")
    for _ in range(4):
        if not isinstance(weights, Mapping):
            return None
        repo = weights.get("repo")
        if weights.get("kind") == "hub" and isinstance(repo, str) and REPO_ID.fullmatch(repo):
            return repo
        weights = weights.get("base")
    return None


def check_repo_id(repo_id: object) -> None:
    """Refuse what is no ``user/name``.

    Raises:
        CheckpointError: naming it.
    """
    if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise CheckpointError(f"{repo_id!r} is no hub repository; expected 'user/name'", step="hub")


def _meta(checkpoint_or_path: HeadCheckpoint | str | os.PathLike[str]) -> Mapping[str, Any]:
    if isinstance(checkpoint_or_path, str | os.PathLike):
        return read_header(checkpoint_or_path).meta
    return checkpoint_or_path.meta


def _front(meta: Mapping[str, Any], repo_id: str | None) -> dict[str, Any]:
    """The front matter: what the hub's search and widgets read."""
    front: dict[str, Any] = {"library_name": "dinoneck"}
    if base := base_model(meta):
        front |= {"base_model": base, "base_model_relation": "adapter"}
    front |= _front_licence(meta)
    if dataset := _hub_dataset(meta.get("training")):
        front["datasets"] = [dataset]
    kinds = [kind for task in meta["tasks"] if isinstance(kind := task.get("kind"), str)]
    if pipeline := next((_PIPELINES[kind] for kind in kinds if kind in _PIPELINES), None):
        front["pipeline_tag"] = pipeline
    elif not kinds:
        front["pipeline_tag"] = "image-feature-extraction"
    family = (meta["backbone"] or {}).get("family")
    tags = [
        "dinoneck",
        meta["head_type"],
        *(f"task-{kind}" for kind in kinds),
        *([family] if family in _FAMILIES else []),
    ]
    front["tags"] = list(dict.fromkeys(_line(tag) for tag in tags))
    if metrics := _metrics(meta.get("training")):
        front["model-index"] = [_index(meta, metrics, repo_id)]
    return front


def _front_licence(meta: Mapping[str, Any]) -> dict[str, str]:
    """The head's own licence, else the backbone's; the hub knows some by name, others are named and linked."""
    own = meta.get("license")
    told = own or (meta["backbone"] or {}).get("license")
    if not isinstance(told, str):
        return {}
    if told.lower() in _HUB_LICENCES:  # the hub spells SPDX identifiers small
        return {"license": told.lower()}
    link = _LINKS.get(told) or (None if own else _page(base_model(meta)))
    return {"license": "other", "license_name": _line(told), **({"license_link": link} if link else {})}


def _metrics(training: Any) -> list[dict[str, Any]]:
    """The metrics of the training record as the hub lists them; of a mean with its spread, the mean."""
    told = training.get("metrics") if isinstance(training, Mapping) else None
    found = []
    for name, value in sorted(told.items()) if isinstance(told, Mapping) else ():
        spread = isinstance(value, Mapping)
        number = value.get("mean") if spread else value
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number):
            shown = f"{name} (mean, sd {value.get('sd')})" if spread else name
            found.append({"type": _line(name), "value": float(number), "name": _line(shown)})
    return found


def _hub_dataset(training: Any) -> str | None:
    """The name of the training data where it is spelled like a data set of the hub."""
    data = training.get("data") if isinstance(training, Mapping) else None
    name = data.get("name") if isinstance(data, Mapping) else None
    return name if isinstance(name, str) and REPO_ID.fullmatch(name) else None


def _index(meta: Mapping[str, Any], metrics: list[dict[str, Any]], repo_id: str | None) -> dict[str, Any]:
    data = meta["training"].get("data")
    told = data if isinstance(data, Mapping) else {"name": data}
    name = told.get("name")
    dataset = {
        "name": _line(name) if isinstance(name, str) and name else "not recorded",
        "type": _hub_dataset(meta["training"]) or "other",
    }
    if isinstance(told.get("revision"), str):
        dataset["revision"] = _line(told["revision"])
    kinds = [task.get("kind") for task in meta["tasks"]]
    task = next((_PIPELINES[kind] for kind in kinds if kind in _PIPELINES), "other")
    return {
        "name": repo_id or _line(meta["head_type"]),
        "results": [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}],
    }


def _opening(meta: Mapping[str, Any]) -> str:
    backbone = meta["backbone"]
    trained = f" on the backbone {code(backbone.get('name'))}" if backbone else ""
    return f"A trained {code(meta['head_type'])} of dinoneck{trained}."


def _tasks(tasks: Sequence[Mapping[str, Any]], tta: Any) -> str:
    if not tasks:
        return "None: this is a building block or a neck."
    columns = ("name", "kind", "outputs", "unit", "transform", "at least", "labels")
    rows = [columns, ("---",) * len(columns)]
    rows += [
        (
            code(task.get("name")),
            code(task.get("kind")),
            code(task.get("dim")),
            code(task.get("unit")),
            code(_made_of(task) or _transform(task.get("transform"))),
            code(task.get("minimum")),
            code(", ".join(str(label) for label in task.get("labels") or ())),
        )
        for task in tasks
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    views = f" They are meant to be averaged over the views {code(tta.get('ops'))}." if isinstance(tta, Mapping) else ""
    return f"{table}\n\nPredictions are given in these units: the transforms are undone.{views}"


def _made_of(task: Mapping[str, Any]) -> str:
    """What the value of a task is made of, where it has no readout of its own."""
    if isinstance(parts := task.get("parts_of"), Mapping):
        return f"{parts.get('total')} x {parts.get('ratio')}"
    return f"mean over the cells of {task['from_cells']}" if task.get("from_cells") else ""


def _transform(told: Any) -> str:
    """A target transform in words."""
    if not isinstance(told, Mapping):
        return ""
    steps = [f"/ area {told['area']}"] if told.get("area") else []
    steps += ["log1p"] if told.get("log1p") else []
    steps += [f"z-score (mean {told['mean']}, std {told.get('std')})"] if told.get("mean") is not None else []
    return ", ".join(steps)


def _loading(meta: Mapping[str, Any], repo_id: str | None) -> str:
    source = repo_id or HEAD_NAME
    use = "predict = Predictor(checkpoint)  # loads the backbone too" if meta["backbone"] and meta["tasks"] else None
    lines = [
        "```python",
        f"from dinoneck import HeadCheckpoint{', Predictor' if use else ''}",
        "",
        f'checkpoint = HeadCheckpoint.load("{source}")  # every byte is checked',
        "head = checkpoint.build()",
        *([use] if use else []),
        "```",
    ]
    return "\n".join(lines)


def _backbone(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "Not recorded."
    shown = {key: value for key, value in record.items() if key not in ("probe", "weights") and value is not None}
    shown["weights"] = told_weights(record.get("weights"))
    if record.get("probe"):
        shown["functional probe"] = f"{len(record['probe'])} numbers, for check_backbone(backbone, probe=True)"
    return _entries(shown)


def _licence(meta: Mapping[str, Any]) -> str:
    backbone = meta["backbone"] or {}
    own, theirs = meta.get("license"), backbone.get("license")
    lines = [f"Head: {code(own)}." if own else "Head: its author recorded none of its own."]
    if theirs:
        lines.append(f"Weights of the backbone: {code(theirs)}; they are not in this file.")
    family = _FAMILIES.get(str(backbone.get("family")))
    if family is not None and theirs in (None, family.license):
        lines.append(_notice(family, bool(backbone.get("adapter"))))
    elif theirs and (page := _page(base_model(meta))):
        lines.append(f"Read that licence where the weights are published: <{page}>.")
    return "\n\n".join(lines)


def _notice(family: _Family, lora: bool) -> str:
    """What holds for weights of a family; in our own words, the licence itself decides."""
    if family.license == "apache-2.0":
        return f"{family.name} weights are published by Meta under the Apache License 2.0: <{family.link}>."
    changed = " The LoRA weights in this file are changes to those weights." if lora else ""
    return (
        f"**{family.name} notice.** Weights of {family.name} are published by Meta under the {family.name} License, "
        f"which goes on holding for them whoever passes them on: <{family.link}>. Among other things it asks that the "
        "weights and works derived from them are passed on under the same terms with a copy of them, that publications "
        f"name {family.name}, and it excludes some uses.{changed} Whether a head that was trained on their features is "
        "such a work is not decided here: read the licence before you use this head or publish your own."
    )


def _file(meta: Mapping[str, Any]) -> str:
    made = meta["created_by"]
    versions = ", ".join(f"{key} {value}" for key, value in sorted(made.items()))
    return (
        f"- {code(HEAD_NAME)}: schema {code(meta['schema'])}, made by {code(versions)}\n"
        f"- digest {code(meta['digest'])}\n\n"
        f"This page and config.json were derived from its header by dinoneck {__version__}; the file alone decides."
    )


def _entries(record: Mapping[str, Any]) -> str:
    rows = [f"| {code(key)} | {code(value)} |" for key, value in sorted(record.items())]
    return "\n".join(["| entry | value |", "| --- | --- |", *rows])


def _page(repo: str | None) -> str | None:
    return f"https://huggingface.co/{repo}" if repo else None


def _alt(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0].replace("_", " ")


def _checked_figure(name: str) -> str:
    if not FIGURE.fullmatch(name):
        raise CheckpointError(f"the figure {name!r} needs a plain name: letters, digits, '_', '-', '.'", step="hub")
    return name


def _line(value: object) -> str:
    """A value on one line of printable text, of limited length."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def code(value: object) -> str:
    """A value as a code span that ends where it should, also in a table; a dash for nothing.

    Inside a code span neither HTML nor links nor emphasis mean anything. A backtick would end it and a bar would end
    the cell: both are shown as their look-alikes.
    """
    text = "" if value is None else _line(value).replace("`", "ˋ").replace("|", "¦")
    return f"`{text}`" if text else "–"
