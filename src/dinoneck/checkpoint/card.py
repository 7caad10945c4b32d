"""The page of a head on the Hugging Face Hub: README.md and config.json, derived from its header, without torch.

Strings of a header are untrusted, because the file may come from anyone. In the page they stand in
code spans on one line; in the front matter the YAML library quotes them. Neither file is read to
build the head: the head file alone decides.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.backbones.known import LICENSE_LINKS, LICENSES
from dinoneck.checkpoint.format import HEAD_NAME, read_header
from dinoneck.checkpoint.schema import (
    BACKBONE_PREFIX,
    check,
    describe_intervals,
    describe_parts,
    describe_weights,
)
from dinoneck.errors import CheckpointError
from dinoneck.registry import DETECTORS, WITH_OWN_VIT
from dinoneck.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
_FIGURE = re.compile(r"([\w\-]+/)*[\w\-][\w.\-]*", re.ASCII)
_TEMPLATE = Path(__file__).with_name("card.md.j2")
_LONGEST_LINE = 200  # characters of a value in the page
_NOTHING = "–"
_PIPELINES = {
    "segmentation": "image-segmentation",
    "instances": "image-segmentation",
    "panoptic": "image-segmentation",
    "classification": "image-classification",
    "multilabel": "image-classification",
}
_HUB_LICENCE = re.compile(  # SPDX identifiers that the Hub knows, in its spelling
    r"apache-2\.0|mit|bsd-[23]-clause|isc|unlicense|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0|gpl-2\.0|[al]?gpl-3\.0|"
    r"mpl-2\.0|epl-2\.0|eupl-1\.2|odc-by|odbl|pddl"
)
_OPEN_LICENCE = re.compile(  # whose weights may be passed on without a copy of the terms
    r"apache[- ]?(license[, -]*)?(v|version )?2(\.0)?|mit( license)?|bsd(-[0-4]-clause)?|0bsd|"
    r"cc0(-1\.0)?|cc-by(-[1-4]\.0)?"
)
# the licences under which the weights of backbones are published
_FAMILIES = {
    "dinov3": {
        "name": "DINOv3",
        "publisher": "Meta",
        "license": LICENSES["dinov3"],
        "link": LICENSE_LINKS[LICENSES["dinov3"]],
    },
    "dinov2": {
        "name": "DINOv2",
        "publisher": "Meta",
        "license": LICENSES["dinov2"],
        "link": LICENSE_LINKS[LICENSES["dinov2"]],
    },
    "lingbot": {
        "name": "LingBot-Vision",
        "publisher": "Robbyant",
        "license": LICENSES["lingbot"],
        "link": LICENSE_LINKS[LICENSES["lingbot"]],
    },
    "tipsv2": {
        "name": "TIPSv2",
        "publisher": "Google",
        "license": LICENSES["tipsv2"],
        "link": LICENSE_LINKS[LICENSES["tipsv2"]],
    },
}


def model_card(
    meta_or_path: Mapping[str, Any] | str | os.PathLike[str],
    repo_id: str | None = None,
    figures: Iterable[str] = (),
) -> str:
    """Return the README.md that describes a head, from its header alone.

    It states what the head predicts and in which units, which backbone and inputs it was made for,
    its metrics, the licences, how to load it and the digest of its content.

    Args:
        meta_or_path: a head's header (``HeadCheckpoint.meta``), or its file; the tensors' bytes are
            not read.
        repo_id: ``user/name`` of the Hub repository that the page is for; None = the page of a
            file.
        figures: pictures next to the page, as paths relative to it.

    Raises:
        CheckpointError: if the file is not a sound head file, or a name is not valid.

    Examples:
        >>> from dinoneck import HeadCheckpoint, PatchMeanHead, Task
        >>> checkpoint = HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total", unit="g")]))
        >>> print(model_card(checkpoint.meta, "user/pasture").splitlines()[1])
        library_name: dinoneck
    """
    from huggingface_hub import ModelCard

    if repo_id is not None:
        check_repo_id(repo_id)
    figures = list(figures)
    _check_figure_names(figures)
    meta = meta_or_path if isinstance(meta_or_path, Mapping) else read_header(meta_or_path).meta
    check(meta, "the header")
    backbone = meta["backbone"] or {}
    licence = meta["licences"].get("backbone")
    intervals: dict[str, str] = {}
    for task in meta["tasks"]:
        intervals |= describe_intervals(task)
    tensor_names = [name for name, _dtype, _shape in meta["tensors"]]
    card = ModelCard.from_template(
        _front_matter(meta),
        template_path=str(_TEMPLATE),
        code=code,
        describe_parts=describe_parts,
        is_detector=meta["head_type"] in DETECTORS,
        has_own_vit=meta["head_type"] in WITH_OWN_VIT,
        meta=meta,
        repo_id=repo_id,
        file_name=HEAD_NAME,
        backbone=backbone,
        weights=describe_weights(backbone.get("weights")),
        intervals=intervals,
        thresholds=_all_thresholds(meta),
        metrics=_describe_metrics(meta["training"]),
        licence=licence,
        family=_family_of(backbone, licence),
        base_model=base_model(meta),
        holds_backbone=any(name.startswith(BACKBONE_PREFIX) for name in tensor_names),
        figures=figures,
        version=__version__,
    )
    return f"{card}\n"


def config_json(meta: Mapping[str, Any]) -> str:
    """Return the config.json next to a head on the Hub: the file by whose requests the Hub counts downloads.

    Nothing reads it to build the head.
    """
    document = {"library_name": "dinoneck"}
    for key in ("format", "schema", "head_type", "config", "digest"):
        document[key] = meta[key]
    return json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"


def base_model(meta: Mapping[str, Any]) -> str | None:
    """Return the Hub repository of the backbone's weights, or of those that they were trained from."""
    weights = (meta["backbone"] or {}).get("weights")
    while weights is not None:
        repo = weights.get("repo")
        if weights.get("kind") == "hub" and REPO_ID.fullmatch(repo or ""):
            return str(repo)
        weights = weights.get("base")
    return None


def check_repo_id(repo_id: object) -> None:
    """Check that a name is ``user/name``.

    Raises:
        CheckpointError: if it is not.
    """
    if (
        not isinstance(repo_id, str)
        or not REPO_ID.fullmatch(repo_id)
        or "--" in repo_id
        or ".." in repo_id
    ):
        raise CheckpointError(
            f"{repo_id!r} is not the name of a Hub repository; expected 'user/name'", step="hub"
        )


def code(value: object) -> str:
    """Return a value as a code span that ends where it should, also in a table; a dash for nothing.

    HTML, links and emphasis mean nothing inside a code span. A backtick would end it and a bar
    would end the cell: both are shown as characters that look alike.
    """
    if value is None:
        return _NOTHING
    text = _line(value).replace("`", "ˋ").replace("|", "¦")
    return f"`{text}`" if text else _NOTHING


def is_open(licence: str | None) -> bool:
    """Whether a licence is Apache-2.0, MIT, BSD, CC0 or CC-BY; one that is not stated is not."""
    return licence is not None and _OPEN_LICENCE.fullmatch(licence.strip().lower()) is not None


def link_of(licence: str) -> str | None:
    """Return where the licence of published backbones is; None if that is not known."""
    return LICENSE_LINKS.get(licence)


def _check_figure_names(figures: Iterable[str]) -> None:
    for name in figures:
        if not _FIGURE.fullmatch(name):
            raise CheckpointError(
                f"the figure {name!r} needs a plain name: letters, digits, '_', '-', '.'",
                step="hub",
            )


def _family_of(backbone: Mapping[str, Any], licence: str | None) -> Mapping[str, str]:
    """The family whose publisher the weights of a backbone are of, by their licence; empty for other weights."""
    family = _FAMILIES.get(str(backbone.get("family")), {})
    if licence not in (None, family.get("license")):
        return {}  # weights of another publisher
    return family


def _describe_metrics(training: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metric -> its value, or in words its mean over folds."""
    described = {}
    for name, value in ((training or {}).get("metrics") or {}).items():
        if isinstance(value, Mapping):
            described[name] = f"{value['mean']} (sd {value['sd']})"
        else:
            described[name] = value
    return described


def _all_thresholds(meta: Mapping[str, Any]) -> dict[str, float]:
    """Label -> the smallest score of what is predicted, of all tasks or of a detector."""
    if not meta["tasks"]:  # those of a detector are in its configuration
        config = meta["config"]
        return _thresholds("", config.get("classes"), config.get("thresholds"))
    thresholds: dict[str, float] = {}
    for task in meta["tasks"]:
        thresholds |= _thresholds(task["name"], task.get("labels"), task.get("thresholds"))
    return thresholds


def _thresholds(
    task: str, labels: Sequence[str] | None, thresholds: Sequence[float] | None
) -> dict[str, float]:
    """Return the label, behind the name of its task if it has one, -> the smallest score of what is predicted."""
    by_label = {}
    for label, threshold in zip(labels or (), thresholds or (), strict=False):
        name = f"{task}: {label}" if task else label
        by_label[name] = threshold
    return by_label


def _line(value: object) -> str:
    """Return a value as one line of printable text, of limited length."""
    if isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    spaced = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(spaced.split())
    if len(text) > _LONGEST_LINE:
        return text[: _LONGEST_LINE - 1] + "…"
    return text


def _front_matter(meta: Mapping[str, Any]) -> ModelCardData:
    """Return what the Hub's search and widgets read."""
    from huggingface_hub import ModelCardData

    kinds = [task["kind"] for task in meta["tasks"] if task.get("kind")]
    tags = ["dinoneck", meta["head_type"]]
    tags += [f"task-{kind}" for kind in kinds]
    family = (meta["backbone"] or {}).get("family")
    if family in _FAMILIES:
        tags.append(family)
    base = base_model(meta)
    return ModelCardData(
        library_name="dinoneck",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag=_pipeline(meta, kinds),
        tags=[_line(tag) for tag in tags],
        **_license(meta),
    )


def _pipeline(meta: Mapping[str, Any], kinds: Sequence[str]) -> str | None:
    """The Hub's name of what a head with tasks of these kinds does; None if it has no name for it."""
    for kind in kinds:
        if kind in _PIPELINES:
            return _PIPELINES[kind]
    if kinds:
        return None
    if meta["head_type"] in DETECTORS:
        return "image-segmentation" if meta["config"].get("masks") else "object-detection"
    return "image-feature-extraction"


def _license(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The head's licence, which the Hub knows by name or which is named and linked; nothing without one.

    The licence of the backbone's weights is not that of the repository: the page states it.
    """
    name = meta.get("license")
    if name is None:
        return {}
    if _HUB_LICENCE.fullmatch(name.lower()):
        return {"license": name.lower()}
    return {"license": "other", "license_name": _line(name), "license_link": link_of(name)}
