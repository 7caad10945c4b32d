"""Several heads on the same tokens, folds and targets, and one table of their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinoneck.atomic import write_text
from dinoneck.errors import ConfigError
from dinoneck.progress import note
from dinoneck.regular_files import read_regular
from dinoneck.training.config import TrainConfig
from dinoneck.training.folder import LOGS, REPORT
from dinoneck.training.report import HEAD, scores_of, verdict
from dinoneck.training.run import Run, prepare, train_folds
from dinoneck.training.scores import Split
from dinoneck.training.table import groups_of
from dinoneck.training.tasks import SEVERAL_LAYERS


def prepare_heads(config: TrainConfig, heads: Sequence[str], out: Path, *, overwrite: bool = False) -> dict[str, Run]:
    """Return a run per head, each with the tokens, folds and targets of the first, in the folder ``out / NAME``.

    Raises:
        ConfigError: for fewer than two heads, or a head that is named twice.
        DinoneckError: as :func:`dinoneck.training.train`.
    """
    if len({*heads}) < max(len(heads), 2):
        raise ConfigError(f"heads are {', '.join(heads)}; expected two or more, each once")
    heads = sorted(heads, key=SEVERAL_LAYERS.__contains__, reverse=True)  # all heads read the layers of the first
    runs: dict[str, Run] = {}
    for name in heads:
        source = next((run.source for run in runs.values()), None)
        own = config.changed(head={**config.head, "type": name})
        runs[name] = prepare(own, out / name, overwrite=overwrite, source=source)
    return runs


def train_heads(runs: dict[str, Run], out: Path, *, resume: bool = True) -> dict[str, Any]:
    """Train the runs of :func:`prepare_heads` and write ``out / report.json``: target -> head -> scores.

    The first head is compared with each other one, by intervals over groups. ``cost``: head -> seconds of training and
    parameters.
    """
    first = next(iter(runs.values()))
    tokens, predictions, cost, report = first.source.load(), dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for name, run in runs.items():
        note(f"head {name}")
        report, found = train_folds(run, tokens=tokens, resume=resume)
        predictions[name] = found[HEAD]
        logs = [line for path in (run.folder / LOGS).glob("*.jsonl") for line in read_regular(path).splitlines()]
        seconds = sum(json.loads(line)["seconds"] for line in logs)
        cost[name] = {"parameters": report["parameters"], "seconds": seconds}
    groups = groups_of(first.table) or list(first.table.index)
    split = Split([valid for _, valid in first.folds.values()], groups)
    scores = scores_of(first.problem.scored, predictions, split, report["target_weights"])
    line = verdict(first.problem.scored, scores, report["groups_predicted"], [*runs])
    shared = {key: value for key, value in report.items() if key not in ("config", "parameters")}
    whole = shared | {"scores": scores, "verdict": line, "cost": cost}
    write_text(out / REPORT, json.dumps(whole, indent=2, allow_nan=False) + "\n")
    return whole
