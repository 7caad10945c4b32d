"""The verbs of head files and of the installation: list, inspect, verify, push, doctor; imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.checkpoint.format import files_in, is_file, only_head, read_header
from dinoneck.checkpoint.schema import describe_parts, describe_weights
from dinoneck.cli.arguments import Paths
from dinoneck.cli.text import in_line, show, table
from dinoneck.errors import CheckpointError, ConfigError, DinoneckError
from dinoneck.text import first_line

Row = dict[str, Any]
_PUBLISHED = ("name", "task", "backbone", "licence", "gated")
_COLUMNS = ("name", "patch", "width", "depth", "registers", "licence", "transformers", "torch_hub")
_SHOWN = ("kind", "dim", "unit", "minimum", "maximum", "labels", "from_map")
_MISSING = "not recorded"


def backbones(part: Annotated[str, Positional] = "") -> Row:
    """List the published backbones: names, patch, width, depth, registers, licence; exit 1 if none is found.

    --backbone takes the names of timm (also timm/NAME, hf-hub:timm/NAME), transformers and
    torch.hub. The weights are timm's, which need no account; with --backbone-source transformers
    they are facebook/NAME, gated for DINOv3.

    Example: dinoneck list backbones dinov3

    Args:
        part: show only names that contain this.
    """
    from dinoneck.backbones.known import KNOWN

    rows = []
    for model in KNOWN:
        for tag, hub in model.hubs.items():
            official = model.official if tag == next(iter(model.hubs)) else None
            names = [f"{model.name}.{tag}", hub, official]
            if any(part in name for name in names if name):
                numbers = (model.patch, model.width, model.depth, model.registers)
                rows.append((names[0], *numbers, model.license(tag), hub, official))
    return _listing("backbones", _COLUMNS, rows, part)


def heads(part: Annotated[str, Positional] = "") -> Row:
    """List the registered head types, then the heads that others published; exit 1 if none is found.

    Head files name the types, and --head takes those of heads and necks. 'dinoneck --import MODULE
    list heads' adds those that a module registers. --heads takes the names of published heads.

    Example: dinoneck list heads

    Args:
        part: show only names that contain this.
    """
    from dinoneck.published import list_published
    from dinoneck.registry import classes

    every = [tuple(getattr(row, key) for key in _PUBLISHED) for row in list_published()]
    published = [row for row in every if part in f"{row[0]} {row[1]}"]
    types = [pair for pair in classes().items() if part in pair[0]]
    found = _listing("heads", ("name", "class"), types, part) if types or not published else {}
    return found | (_listing("published", _PUBLISHED, published, part) if published else {})


def _listing(what: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]], part: str) -> Row:
    """Print rows, and return them as records."""
    if rows:
        print(
            table(columns, [["-" if cell is None else str(cell) for cell in row] for row in rows])
        )
    else:
        print(f"none of the {what} has {part!r} in its name; leave it out to list all")
    return {"ok": bool(rows), what: [dict(zip(columns, row, strict=True)) for row in rows]}


def inspect(file: Annotated[Path, Positional]) -> Row:
    """Print what a head file is, from its header alone.

    Example: dinoneck inspect head.safetensors

    Args:
        file: a head file, or the folder of a training.
    """
    file = only_head(file)
    header = read_header(file)
    size = f"{len(header.sizes)} tensors, {sum(header.sizes)} bytes"
    show({"file": str(file), **entries(header.meta), "weights": size})
    show("the header alone was read: 'dinoneck verify' checks every byte")
    return header.meta


def entries(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of a header in words: heading -> text."""
    made = f"schema {meta['schema']}, made by dinoneck {meta['created_by'].get('dinoneck')}"
    backbone = meta["backbone"] or {}
    plain = {key: value for key, value in backbone.items() if key not in ("weights", "probe")}
    return {
        "head_type": f"{meta['head_type']} ({made})",
        "tasks": _tasks(meta),
        "backbone": f"{in_line(plain)}; {describe_weights(backbone.get('weights'))}"
        if backbone
        else _MISSING,
        "inputs": in_line(meta["inputs"] or {}) or _MISSING,
        "config": in_line(
            {key: value for key, value in meta["config"].items() if key not in ("tasks", "members")}
        ),
        "training": in_line(meta.get("training") or {}) or _MISSING,
        "licence": meta["license"] or _MISSING,
        "backbone's licence": meta["licences"].get("backbone") or _MISSING,
        "views": (meta.get("tta") or {}).get("ops") or _MISSING,
        "extra": in_line(meta["extra"]) or "none",
        "digest": meta["digest"],
    }


def _tasks(meta: Mapping[str, Any]) -> str:
    lines = []
    for task in meta["tasks"]:
        steps = {key: value for key, value in (task.get("transform") or {}).items() if key != "$"}
        parts = [in_line({key: task.get(key) for key in _SHOWN}), in_line(steps)]
        parts += [describe_parts(task["parts_of"])] if task.get("parts_of") else []
        lines.append(f"{task.get('name')} ({', '.join(filter(None, parts))})")
    return "; ".join(lines) or "no tasks"


def verify(files: Paths) -> Row:
    """Check every byte of head files and feature stores; exit 1 if anything is refused.

    Example: dinoneck verify head.safetensors

    Args:
        files: head files, folders of them, feature stores, or Hub repositories.
    """
    if not files:
        raise ConfigError(
            "no files are named; name head files, folders of them, feature stores or Hub "
            "repositories"
        )
    rows = []
    for row in chain.from_iterable(map(_rows, files)):
        rows.append(row)
        about = in_line(
            {key: value for key, value in row.items() if key not in ("state", "path", "message")}
        )
        text = ": ".join(filter(None, (about, row.get("message"))))
        show(
            f"{row['state']:<8} {row['path']}  {text}", None if row["state"] == "ok" else sys.stderr
        )
    return {"ok": all(row["state"] == "ok" for row in rows), "checked": rows}


def _rows(path: Path) -> Iterator[Row]:
    """A row for a file, a store or a repository, or for every head file of a folder."""
    is_store = is_file(path / "store.json")
    parts = [path]
    if path.is_dir() and not is_store:
        try:
            parts = files_in(path)
        except (DinoneckError, OSError) as error:
            yield _refused(path, error)
            return
    for part in parts:
        try:
            yield {"state": "ok", "path": part, **(_store(part) if is_store else _head(part))}
        except Exception as error:  # one broken file must not keep the others from being checked
            yield _refused(part, error)


def _refused(path: Path, error: Exception) -> Row:
    """The row of a file that is not sound; of an error that dinoneck does not raise, its state is ``error``."""
    if isinstance(error, DinoneckError | OSError):
        step = {"step": error.step} if isinstance(error, CheckpointError) else {}
        return {"state": "refused", "path": path, "message": str(error), **step}
    problem = f"unexpected {type(error).__name__}: {first_line(error)}"
    return {"state": "error", "path": path, "message": problem}


def _head(file: Path) -> Row:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head = HeadCheckpoint.load(file)
    kind = "head" if head.revision is None else "hub repository"
    return {
        "kind": kind,
        "commit": head.revision,
        **{key: head.meta[key] for key in ("head_type", "digest", "schema")},
    }


def _store(path: Path) -> Row:
    """The facts of a feature store; the ids whose bytes are wrong are in the row."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    about = {
        "kind": "feature store",
        "images": len(store),
        "views": len(store.views),
        "dtype": store.dtype,
    }
    if damaged := dict(sorted(store.damaged().items())):
        hint = "delete the files that are named, and extract again"
        about |= {"state": "damaged", "damaged": damaged, "message": hint}
    return about


def push(
    file: Annotated[Path, Positional],
    repo: Annotated[str, Positional, arg(metavar="USER/NAME")],
    private: bool = False,
    revision: Annotated[str | None, arg(metavar="BRANCH")] = None,
    message: str | None = None,
    figure: tuple[Path, ...] = (),
    terms: Path | None = None,
) -> Row:
    """Publish a head file on the Hugging Face Hub, with its page, in one commit.

    Log in with 'hf auth login', or set HF_TOKEN.

    Example: dinoneck push head.safetensors user/name --private

    Args:
        file: a head file; checked before anything is sent.
        repo: the repository; it is created if it does not exist.
        private: make a new repository private; an existing public one is refused.
        revision: the branch (default: main).
        message: the first line of the commit.
        figure: pictures for the page.
        terms: text of the backbone's licence, to be published too; required unless that is
            Apache-2.0, MIT, BSD, CC0 or CC-BY.
    """
    from dinoneck.checkpoint.hub import push_to_hub

    options = {
        "private": private,
        "revision": revision,
        "commit_message": message,
        "figures": figure,
        "terms": terms,
    }
    pushed = push_to_hub(file, repo, **options)  # type: ignore[arg-type]
    document = {"pushed": file, "repo": repo, "commit": pushed.oid, "page": pushed.commit_url}
    show(document)
    return document


def doctor() -> Row:
    """Check packages, the device, and a head that is saved, loaded and used; no network is used.

    Exit 1 if something that dinoneck needs is broken. Paste what it prints into a bug report.

    Example: dinoneck doctor --json
    """
    from dinoneck.checkup import checkup
    from dinoneck.version import versions

    findings = [*checkup()]
    for finding in findings:
        show(f"{finding.state:<7}  {finding.name}: {finding.text}")
        if finding.remedy:
            show(f"         -> {finding.remedy}")
    broken = sum(finding.state == "broken" for finding in findings)
    print(
        f"{broken} things that dinoneck needs are broken; the arrows state remedies"
        if broken
        else "the core works"
    )
    return {
        "ok": not broken,
        "versions": versions(),
        "findings": [own._asdict() for own in findings],
        "broken": broken,
    }


listed = {"backbones": backbones, "heads": heads}
