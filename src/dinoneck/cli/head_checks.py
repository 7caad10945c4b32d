"""What the headers of head files state, for refusals before torch is imported, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.checkpoint.format import Header, head_files, read_header
from dinoneck.inference.alike import HeadFacts, check_facts_alike
from dinoneck.published.table import is_published
from dinoneck.registry import classes
from dinoneck.runtime.names import is_exported

if TYPE_CHECKING:
    from dinoneck.task_facts import TaskFacts


def headers_of(head: str, *, has_weights: bool = False) -> list[Header]:
    """Return the headers of the head files that a name stands for; none of what is not on this disk.

    Args:
        head: the name.
        has_weights: whether it is that of a published head whose file is named.

    Raises:
        CheckpointError: if a file does not exist or is no head file, a folder holds none, or the name
            is almost that of a published head.
    """
    if is_exported(head) or is_published(head, has_weights=has_weights):
        return []
    may_be_repository = "/" in head and not head.endswith(".safetensors")
    if may_be_repository and not Path(head).exists():
        return []
    return [read_header(file) for file in head_files(head)]


def check_files_alike(heads: Sequence[str], *, compare_views: bool) -> None:
    """Refuse heads of a list that differ; those that are not on this disk are left to the predictor.

    Configurations are compared where one version wrote all files: later ones may spell them otherwise.

    Args:
        heads: the names of those whose predictions are averaged.
        compare_views: whether the recorded views have to be equal.

    Raises:
        CheckpointError: naming the first difference.
    """
    metas: list[Mapping[str, Any]] = []
    for head in heads:
        headers = headers_of(head)
        if not headers:
            return
        metas += [header.meta for header in headers]
    versions = {meta["created_by"].get("dinoneck") for meta in metas}
    facts = []
    for meta in metas:
        of_head = _facts(meta, compare_config=len(versions) == 1, compare_views=compare_views)
        facts.append(of_head)
    check_facts_alike(facts)


def _facts(meta: Mapping[str, Any], *, compare_config: bool, compare_views: bool) -> HeadFacts:
    """What a header states of what the heads of a list have in common."""
    views = None
    if compare_views:
        views = "none" if meta["tta"] is None else meta["tta"]["ops"]
    return HeadFacts(
        backbone=meta["backbone"],
        config=meta["config"] if compare_config else None,
        head_type=_class_name(meta["head_type"]),
        views=views,
    )


def _class_name(head_type: str) -> str | None:
    """The name of the class that is registered by this name; None if it is not registered yet."""
    home = classes().get(head_type)
    return None if home is None else home.rpartition(":")[2]


def stated_tasks(heads: Sequence[str]) -> list[list[TaskFacts]]:
    """Return the tasks of each model; of a detector none. The list is empty if one is not on this disk.

    Args:
        heads: the name of each model. Of a folder of several head files the first one is read.
    """
    tasks_of_models = []
    for head in heads:
        headers = headers_of(head)
        if not headers:
            return []
        tasks_of_models.append(tasks_of(headers[0]))
    return tasks_of_models


def tasks_of(header: Header) -> list[TaskFacts]:
    """Return the tasks that a header states: names, outputs, kinds and intervals."""
    return [_task(record) for record in header.meta["tasks"]]


def _task(record: Mapping[str, Any]) -> TaskFacts:
    """The task that a record of a header describes."""
    from dinoneck.task_facts import TaskRecord
    from dinoneck.task_intervals import Interval

    composed_of: list[str] = []
    composition = record.get("parts_of")
    if composition is not None:
        composed_of = composition["parts"] or [composition["total"]]
    intervals = []
    for interval in record.get("interval") or ():
        intervals.append(
            Interval(
                levels=tuple(interval["levels"]),
                half_widths=tuple(interval["half_widths"]),
                groups=interval["groups"],
            )
        )
    return TaskRecord(
        name=record.get("name", ""),
        dim=record.get("dim", 1),
        kind=record.get("kind", "regression"),
        labels=tuple(record.get("labels", ())),
        from_map=record.get("from_map"),
        shares=record.get("shares", False),
        activation=record.get("activation"),
        composed_of=tuple(composed_of),
        interval=tuple(intervals),
    )
