"""The page of a head on the Hugging Face Hub: README.md and config.json, derived from its header, without torch.

Strings of a header are untrusted, because the file may come from anyone. In the page they stand in
code spans on one line; in the front matter the YAML library quotes them. Neither file is read to
build the head: the head file alone decides.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.backbones.known import LICENSE_LINKS, LICENSES
from dinoneck.checkpoint.format import HEAD_NAME, read_header
from dinoneck.checkpoint.schema import BACKBONE_PREFIX, check, describe_parts, describe_weights
from dinoneck.errors import CheckpointError
from dinoneck.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

REPO_ID = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
_FIGURE = re.compile(r"([\w\-]+/)*[\w\-][\w.\-]*", re.ASCII)
_TEMPLATE = Path(__file__).with_name("card.md.j2")
_LONGEST = 200
_PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}
_HUB_LICENCE = re.compile(  # SPDX identifiers that the Hub knows, in its spelling
    r"apache-2\.0|mit|bsd-[23]-clause|isc|unlicense|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-4\.0|gpl-2\.0|[al]?gpl-3\.0|"
    r"mpl-2\.0|epl-2\.0|eupl-1\.2|odc-by|odbl|pddl"
)
_OPEN_LICENCE = re.compile(  # whose weights may be passed on without a copy of the terms
    r"apache[- ]?(license[, -]*)?(v|version )?2(\.0)?|mit( license)?|bsd(-[0-4]-clause)?|0bsd|"
    r"cc0(-1\.0)?|cc-by(-[1-4]\.0)?"
)
_FAMILIES = {  # the licences under which Meta publishes the weights of backbones
    family: {
        "name": name,
        "license": LICENSES[family],
        "link": LICENSE_LINKS[LICENSES[family]],
    }
    for family, name in {"dinov3": "DINOv3", "dinov2": "DINOv2"}.items()
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
    for name in figures:
        if not _FIGURE.fullmatch(name):
            raise CheckpointError(
                f"the figure {name!r} needs a plain name: letters, digits, '_', '-', '.'",
                step="hub",
            )
    meta = meta_or_path if isinstance(meta_or_path, Mapping) else read_header(meta_or_path).meta
    check(meta, "the header")
    backbone = meta["backbone"] or {}
    family = _FAMILIES.get(str(backbone.get("family")), {})
    licence, metrics = (
        meta["licences"].get("backbone"),
        ((meta["training"] or {}).get("metrics") or {}).items(),
    )
    card = ModelCard.from_template(
        _front_matter(meta),
        template_path=str(_TEMPLATE),
        code=code,
        describe_parts=describe_parts,
        meta=meta,
        repo_id=repo_id,
        file_name=HEAD_NAME,
        backbone=backbone,
        weights=describe_weights(backbone.get("weights")),
        metrics={
            name: f"{x['mean']} (sd {x['sd']})" if isinstance(x, Mapping) else x
            for name, x in metrics
        },
        licence=licence,
        family=family if licence in (None, family.get("license")) else {},
        base_model=base_model(meta),
        holds_backbone=any(name.startswith(BACKBONE_PREFIX) for name, *_ in meta["tensors"]),
        figures=figures,
        version=__version__,
    )
    return f"{card}\n"


def config_json(meta: Mapping[str, Any]) -> str:
    """Return the config.json next to a head on the Hub: the file by whose requests the Hub counts downloads.

    Nothing reads it to build the head.
    """
    copied = {key: meta[key] for key in ("format", "schema", "head_type", "config", "digest")}
    return (
        json.dumps(
            {"library_name": "dinoneck", **copied}, indent=2, sort_keys=True, allow_nan=False
        )
        + "\n"
    )


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
    """Refuse a name that is not ``user/name``.

    Raises:
        CheckpointError: naming it.
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
    text = "" if value is None else _line(value).replace("`", "ˋ").replace("|", "¦")
    return f"`{text}`" if text else "–"


def is_open(licence: str | None) -> bool:
    """Whether a licence is Apache-2.0, MIT, BSD, CC0 or CC-BY; one that is not stated is not."""
    return licence is not None and _OPEN_LICENCE.fullmatch(licence.strip().lower()) is not None


def link_of(licence: str) -> str | None:
    """Return where the licence of published backbones is; None if that is not known."""
    return LICENSE_LINKS.get(licence)


def _line(value: object) -> str:
    """Return a value as one line of printable text, of limited length."""
    text = (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _front_matter(meta: Mapping[str, Any]) -> ModelCardData:
    """Return what the Hub's search and widgets read."""
    from huggingface_hub import ModelCardData

    kinds = [task["kind"] for task in meta["tasks"] if task.get("kind")]
    pipeline = next((_PIPELINES[kind] for kind in kinds if kind in _PIPELINES), None)
    if not kinds:
        pipeline = (
            "object-detection" if meta["head_type"] == "detector" else "image-feature-extraction"
        )
    family = (meta["backbone"] or {}).get("family")
    tags = ["dinoneck", meta["head_type"], *(f"task-{kind}" for kind in kinds)]
    tags += [family] if family in _FAMILIES else []
    base = base_model(meta)
    return ModelCardData(
        library_name="dinoneck",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag=pipeline,
        tags=[_line(tag) for tag in tags],
        **_license(meta, base),
    )


def _license(meta: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """The head's own licence, else the backbone's; the Hub knows some by name, others are named and linked."""
    own = meta.get("license")
    name = own or meta["licences"].get("backbone")
    if name is None:
        return {}
    if _HUB_LICENCE.fullmatch(name.lower()):
        return {"license": name.lower()}
    link = link_of(name) or (f"https://huggingface.co/{base}" if base and not own else None)
    return {"license": "other", "license_name": _line(name), "license_link": link}
