"""``dinoneck train``: cross-validated heads from a training file, or from flags, next to baselines."""

from __future__ import annotations

import argparse
import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from dinoneck.cli import detect, train_text
from dinoneck.cli.answers import answer
from dinoneck.training.config import TrainConfig

HELP = (
    "train cross-validated heads: numbers (--csv, --targets), classes (a column of words, or a folder per class), "
    "masks (--labels), boxes (--boxes); by flags or from a training file"
)
EXAMPLE = "dinoneck train run.yaml --out run\n         dinoneck train --csv cover.csv --targets crop weed --out run"

_CONFIG = (tyro.conf.OmitArgPrefixes,)


@dataclass(frozen=True)
class Options:
    """The flags of ``dinoneck train``.

    Attributes:
        out: folder for heads, predictions and report.
        config: training file; flags win over it.
        run: the run.
        hidden_dim: width of the head: hidden units, or channels of a pyramid or neck.
        dropout: share of the head's hidden units that training drops, for heads that have it.
        gate_mode: argument mode of --head cls_gating.
        overwrite: replace the results of an earlier run in the folder.
        resume: continue an interrupted run of the same config; --no-resume trains from the beginning.
        json: for programs: one JSON document on stdout, everything else on stderr.
    """

    out: Path
    config: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN.yaml")] = None
    run: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    hidden_dim: int | None = None
    dropout: float | None = None
    gate_mode: str | None = None
    overwrite: bool = False
    resume: bool = True
    json: bool = False

    def whole(self) -> TrainConfig:
        """Return the config with the arguments of the head that have flags of their own."""
        from dinoneck.registry import resolve
        from dinoneck.training.tasks import head_type
        from dinoneck.user_code import import_modules

        import_modules(self.run.imports)
        given: dict[str, Any] = {"dropout": self.dropout, "mode": self.gate_mode}
        if self.hidden_dim is not None:
            takes = inspect.signature(resolve(head_type(self.run))).parameters
            widths = [name for name in ("fpn_dim", "hidden_dim", "out_channels") if name in takes]
            given[widths[0] if widths else "hidden_dim"] = self.hidden_dim
        own = {name: value for name, value in given.items() if value is not None}
        return replace(self.run, head={**self.run.head, **own})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags for the help of all verbs and for completion; :func:`parse` reads them."""
    for group in _flags()._action_groups:
        actions = [action for action in group._group_actions if "--help" not in action.option_strings]
        is_plain = group.title in ("options", "positional arguments")
        target = parser if is_plain or not actions else parser.add_argument_group(group.title)
        for action in actions:
            target._add_action(action)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of ``dinoneck train``; the values of a training file are the flags' defaults.

    Raises:
        ConfigError: if the training file cannot be used.
    """
    default = TrainConfig()
    if not {"-h", "--help"} & set(arguments):
        known, unknown = _flags().parse_known_args(list(arguments))
        if isinstance(known.config, str) and not unknown:
            default = TrainConfig.read(known.config)
    found = _parsed(arguments, default)
    shown = {name: getattr(found, name) for name in ("out", "overwrite", "resume", "json")}
    return argparse.Namespace(**shown, verb="train", config=found.whole, run=run, answer=None)


def _flags() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(Options, config=_CONFIG)


def _parsed(arguments: Sequence[str], default: TrainConfig) -> Options:
    return tyro.cli(
        Options,
        prog="dinoneck train",
        description=f"{HELP}\n\nexample: {EXAMPLE}",
        args=list(arguments),
        default=Options(out=tyro.MISSING, run=default),
        config=_CONFIG,
    )


def run(options: argparse.Namespace) -> int:
    """Train, print the scores, write the folder."""
    config = options.config()
    if config.data.boxes is not None:
        report = detect.train(config, options.out, overwrite=options.overwrite, resume=options.resume)
        answer(options, out=options.out, report=report)
        return 0
    from dinoneck.training.inputs import open_inputs
    from dinoneck.training.run import check_folder, train

    check_folder(options.out, overwrite=options.overwrite)
    inputs = open_inputs(config)
    data = inputs.table
    targets = [*data.targets, *(["masks"] if data.labels and config.data.labels else [])]
    print(f"{len(data)} images, {len(set(data.groups or data.ids))} groups, targets {', '.join(targets)}")
    if data.auxiliary:
        print(f"Auxiliary: {', '.join(data.auxiliary)}.")
    print("\n".join([*train_text.describe_tokens(config, inputs), *train_text.advice(config, data)]), flush=True)
    result = train(config, options.out, inputs=inputs, overwrite=options.overwrite, resume=options.resume)
    print("\n".join(train_text.comparison(result.report)))
    names = [task.name for head in result.heads[:1] for task in head.tasks if task.from_cells is not None]
    if names:
        print(f"{', '.join(names)}: the number of an image is the mean over its cells.")
    answer(options, out=options.out, report=result.report)
    print(f"written: {options.out}/heads, logs, out_of_fold.csv, report.json")
    return 0
