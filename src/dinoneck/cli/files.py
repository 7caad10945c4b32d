"""The verbs of head files and of the installation: list, inspect, verify, push, doctor; imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.checkpoint.format import files_in, is_file, only_head, read_header
from dinoneck.checkpoint.schema import describe_intervals, describe_parts, describe_weights
from dinoneck.checkpoint.training_images import TrainingImages
from dinoneck.cli.arguments import Paths
from dinoneck.cli.text import in_line, show, table
from dinoneck.errors import CheckpointError, ConfigError, DinoneckError
from dinoneck.published.detectors import VIT_NAME
from dinoneck.registry import WITH_OWN_VIT
from dinoneck.text import counted, did_you_mean, first_line

Row = dict[str, Any]
"""Name of an entry -> value, as ``--json`` prints it."""
_NAME_COLUMNS = ("name", "transformers", "torch_hub", "alias")
"""Those of the names of a backbone."""
_PUBLISHED_COLUMNS = ("name", "task", "backbone", "licence", "gated")
_TASK_ENTRIES = ("kind", "dim", "unit", "minimum", "maximum", "labels", "from_map")
_HEAD_ENTRIES = ("head_type", "digest", "schema")
_NOT_RECORDED = "not recorded"


def backbones(part: Annotated[str, Positional] = "", *, licence: str | None = None) -> Row:
    """List the published backbones: names, patch, width, depth, registers, licence; exit 1 if none is found.

    --backbone takes the names of timm (also timm/NAME, hf-hub:timm/NAME), transformers and
    torch.hub, and the aliases. The weights are the copies that timm names, which need no account;
    with --backbone-source transformers they are those of the name for transformers, gated for
    DINOv3.

    Example: dinoneck list backbones --licence apache-2.0

    Args:
        part: show only names that contain this.
        licence: show only those under this licence; None = any.
    """
    from dinoneck.backbones.known import KNOWN, LICENSE_LINKS

    condition = ""
    if licence is not None:
        licence = licence.lower()
        _check_licence(licence, sorted(LICENSE_LINKS), what="backbones")
        condition = f" under {licence}"
    rows = []
    for model in KNOWN:
        first_tag = next(iter(model.hubs))
        for tag, hub_name in model.hubs.items():
            if licence not in (None, model.license(tag)):
                continue
            # the names of torch.hub and the alias are those of the first weights
            row: Row = {
                "name": f"{model.name}.{tag}",
                "patch": model.patch,
                "width": model.width,
                "depth": model.depth,
                "registers": model.registers,
                "licence": model.license(tag),
                "transformers": hub_name,
                "torch_hub": model.official if tag == first_tag else None,
                "alias": model.alias if tag == first_tag else None,
            }
            names = [row[column] or "" for column in _NAME_COLUMNS]
            if any(part in name for name in names):
                rows.append(row)
    return _print_rows("backbones", rows, part, condition)


def _check_licence(licence: str, known: Sequence[str], *, what: str) -> None:
    """Raise a ConfigError for a licence that no published backbone or head (``what``) has."""
    if licence not in known:
        raise ConfigError(
            f"--licence is {licence!r}; the licences of published {what} are "
            f"{', '.join(known)}.{did_you_mean(licence, known)}"
        )


def heads(part: Annotated[str, Positional] = "", *, licence: str | None = None) -> Row:
    """List the heads that can be trained, then those that others published; exit 1 if none is found.

    'train --head' takes the first ones, and 'predict --heads' the names of published ones. '--import
    MODULE' adds the heads that a module registers.

    Example: dinoneck list heads --licence apache-2.0

    Args:
        part: show only names that contain this.
        licence: show only published heads, those under this licence; None = any.
    """
    from dinoneck.published import list_published

    types = _head_types(part)
    all_published = list_published()
    if licence is not None:
        licence = licence.lower()
        known = sorted({head.licence.lower() for head in all_published})
        _check_licence(licence, known, what="heads")
    published = []
    for head in all_published:
        if licence not in (None, head.licence.lower()):
            continue
        if part in f"{head.name} {head.task}":
            published.append({column: getattr(head, column) for column in _PUBLISHED_COLUMNS})
    if licence is not None:
        condition = f" heads under {licence}"
        return _print_rows("published", published, part, condition)
    if not types and not published:
        return _print_rows("heads", [], part)
    document: Row = {}
    if types:
        document["heads"] = types
        _show_head_types(types)
    if types and published:
        print()
    if published:
        print(
            "Published heads, to predict with as they are (dinoneck predict IMAGES --heads NAME):\n"
        )
        document |= _print_rows("published", published, part)
    return document


def _head_types(part: str) -> list[Row]:
    """A row per registered type with this in its name; first those that a training takes, which have a purpose."""
    from dinoneck.registry import PURPOSES, REGISTERED, classes

    homes = classes()
    purposes = dict(PURPOSES)
    for name, cls in REGISTERED.items():
        sentence = (cls.__doc__ or "").strip().partition("\n")[0]
        purposes[name] = f"{homes[name]}: {sentence}" if sentence else homes[name]
    names = [*purposes, *(name for name in homes if name not in purposes)]
    rows = []
    for name in names:
        if part in name:
            rows.append({"name": name, "class": homes[name], "purpose": purposes.get(name)})
    return rows


def _show_head_types(types: Sequence[Row]) -> None:
    """Print the types that a training takes with their purposes, then the names of the others."""
    others = [row["name"] for row in types if row["purpose"] is None]
    if len(others) < len(types):
        print("Heads and necks to train (dinoneck train --head NAME):\n")
    for row in types:
        if row["purpose"] is not None:
            show(f"  {row['name']:<24}{row['purpose']}")
    if others:
        show(f"Parts of heads and of files, which --head does not take: {', '.join(others)}")


def _print_rows(what: str, rows: Sequence[Row], part: str, condition: str = "") -> Row:
    """Print rows as a table, and return the document of the verb.

    Args:
        what: the rows are, in words.
        rows: of equal columns.
        part: of the names that was asked for.
        condition: on the rows, in words, that was asked for too.
    """
    if rows:
        cells = []
        for row in rows:
            cells.append(["-" if value is None else str(value) for value in row.values()])
        print(table(list(rows[0]), cells))
    else:
        print(f"none of the {what}{condition} has {part!r} in its name; leave it out to list all")
    return {"ok": bool(rows), what: list(rows)}


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
    config = _without(meta["config"], "tasks", "members")
    if isinstance(config.get("thresholds"), list):  # of a detector
        by_class = _thresholds_by_label(config.get("classes") or (), config["thresholds"])
        config["thresholds"] = f"({by_class})"
    backbone = _describe_backbone(meta["backbone"])
    backbone_licence = meta["licences"].get("backbone") or _NOT_RECORDED
    if meta["head_type"] in WITH_OWN_VIT:
        backbone = f"{VIT_NAME}, in this file"
        backbone_licence = "that of this file"
    return {
        "head_type": f"{meta['head_type']} ({made})",
        "tasks": _describe_tasks(meta["tasks"]),
        "backbone": backbone,
        "inputs": in_line(meta["inputs"] or {}) or _NOT_RECORDED,
        "config": in_line(config),
        "training": in_line(meta.get("training") or {}) or _NOT_RECORDED,
        "training images": _describe_training_images(meta.get("training_images")),
        "licence": meta["license"] or _NOT_RECORDED,
        "backbone's licence": backbone_licence,
        "views": (meta.get("tta") or {}).get("ops") or _NOT_RECORDED,
        "extra": in_line(meta["extra"]) or "none",
        "digest": meta["digest"],
    }


def _describe_training_images(record: str | None) -> str:
    """What a header holds of the images of the training."""
    if record is None:
        return _NOT_RECORDED
    images = TrainingImages.from_record(record)
    of_what = ", a sample" if images.may_be_sample else ""
    return f"by short hashes, {counted(len(images.hashes), 'image')}{of_what}"


def _describe_backbone(record: Mapping[str, Any] | None) -> str:
    """The record of a backbone on one line."""
    if not record:
        return _NOT_RECORDED
    weights = describe_weights(record.get("weights"))
    return f"{in_line(_without(record, 'weights', 'probe'))}; {weights}"


def _describe_tasks(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The tasks of a header on one line."""
    described = []
    for task in tasks:
        facts = [
            in_line({key: task.get(key) for key in _TASK_ENTRIES}),
            in_line(_without(task.get("transform") or {}, "$")),
        ]
        thresholds = task.get("thresholds")
        if thresholds:
            labels = task.get("labels") or range(len(thresholds))
            facts.append(f"thresholds: {_thresholds_by_label(labels, thresholds)}")
        if task.get("parts_of"):
            facts.append(describe_parts(task["parts_of"]))
        for output, interval in describe_intervals(task).items():
            facts.append(f"interval of {output}: {interval}")
        described.append(f"{task.get('name')} ({', '.join(filter(None, facts))})")
    return "; ".join(described) or "no tasks"


def _thresholds_by_label(labels: Sequence[Any], thresholds: Sequence[Any]) -> str:
    """The thresholds of labels on one line."""
    texts = []
    for label, threshold in zip(labels, thresholds, strict=False):
        texts.append(f"{in_line(label)} {in_line(threshold)}")
    return ", ".join(texts)


def _without(record: Mapping[str, Any], *keys: str) -> Row:
    """A record without some of its entries."""
    return {key: value for key, value in record.items() if key not in keys}


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
    for path in files:
        for row in _check(path):
            rows.append(row)
            _show_checked(row)
    is_sound = all(row["state"] == "ok" for row in rows)
    return {"ok": is_sound, "checked": rows}


def _show_checked(row: Row) -> None:
    """Print a row; one of what is not sound to stderr."""
    facts = in_line(_without(row, "state", "path", "message"))
    text = ": ".join(filter(None, (facts, row.get("message"))))
    stream = None if row["state"] == "ok" else sys.stderr
    show(f"{row['state']:<8} {row['path']}  {text}", stream)


def _check(path: Path) -> Iterator[Row]:
    """A row for a file, a store or a repository, or for every head file of a folder."""
    check: Callable[[Path], Row] = _check_head
    files = [path]
    if is_file(path / "store.json"):
        check = _check_store
    elif path.is_dir():
        try:
            files = files_in(path)
        except (DinoneckError, OSError) as error:
            yield _refused(path, error)
            return
    for file in files:
        try:
            yield {"state": "ok", "path": file, **check(file)}
        except Exception as error:  # one broken file must not keep the others from being checked
            yield _refused(file, error)


def _refused(path: Path, error: Exception) -> Row:
    """The row of a file that is not sound; of an error that dinoneck does not raise, its state is ``error``."""
    if not isinstance(error, DinoneckError | OSError):
        message = f"unexpected {type(error).__name__}: {first_line(error)}"
        return {"state": "error", "path": path, "message": message}
    row = {"state": "refused", "path": path, "message": str(error)}
    if isinstance(error, CheckpointError):
        row["step"] = error.step
    return row


def _check_head(file: Path) -> Row:
    """The facts of a head file or of a head on the Hub."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head = HeadCheckpoint.load(file)
    facts: Row = {
        "kind": "head" if head.revision is None else "hub repository",
        "commit": head.revision,
    }
    for entry in _HEAD_ENTRIES:
        facts[entry] = head.meta[entry]
    return facts


def _check_store(path: Path) -> Row:
    """The facts of a feature store; the ids whose bytes are wrong are in the row."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    facts: Row = {
        "kind": "feature store",
        "images": len(store),
        "views": len(store.views),
        "dtype": store.dtype,
    }
    damaged = store.damaged()
    if damaged:
        facts["state"] = "damaged"
        facts["damaged"] = dict(sorted(damaged.items()))
        facts["message"] = "delete the files that are named, and extract again"
    return facts


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

    pushed = push_to_hub(
        file,
        repo,
        private=private,
        revision=revision,
        commit_message=message,
        figures=figure,
        terms=terms,
    )
    document = {"pushed": file, "repo": repo, "commit": pushed.oid, "page": pushed.commit_url}
    show(document)
    return document


def doctor(measure: bool = False, empty_cache: bool = False) -> Row:
    """Check packages, the device, the runtime, and a head that is saved, loaded and used; no network is used.

    Exit 1 if something that dinoneck needs is broken. Paste what it prints into a bug report.

    Example: dinoneck doctor --json

    Args:
        measure: also time blocks of a small ViT in torch and in OpenVINO.
        empty_cache: first remove the compiled programs of backbones, which are made again when they
            are needed.
    """
    from dinoneck import checkup
    from dinoneck.version import versions

    if empty_cache:
        _empty_program_cache()
    findings = list(checkup.checkup())
    if measure:
        findings += checkup.measure()
    for finding in findings:
        show(f"{finding.state:<7}  {finding.name}: {finding.text}")
        if finding.remedy:
            show(f"         -> {finding.remedy}")
    broken = sum(finding.state == "broken" for finding in findings)
    if broken:
        print(f"{broken} things that dinoneck needs are broken; the arrows state remedies")
    else:
        print("the core works")
    return {
        "ok": not broken,
        "versions": versions(),
        "findings": [finding._asdict() for finding in findings],
        "broken": broken,
    }


def _empty_program_cache() -> None:
    """Remove the compiled programs of backbones, and say how many bytes they took."""
    from dinoneck.backbones.program_files import program_folder

    folder = program_folder()
    if folder is None:
        return
    size = folder.size()
    folder.empty()
    show(f"{folder.path}: {size.num_bytes / 1e6:.0f} MB removed")


LISTS = {"backbones": backbones, "heads": heads}
"""The sub-verbs of ``dinoneck list``."""
