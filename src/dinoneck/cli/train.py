"""``dinoneck train``: cross-validated heads from a training file, or from flags, next to baselines."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli import detect, train_text
from dinoneck.cli.arguments import check_backbone_name
from dinoneck.cli.text import table
from dinoneck.errors import ConfigError, DataError
from dinoneck.training.config import TrainConfig


def train(
    config: Annotated[str | None, Positional, arg(metavar="RUN.yaml")] = None,
    *,
    out: Path,
    run: Annotated[TrainConfig, arg(name="")] = TrainConfig(),
    heads: Annotated[tuple[str, ...], arg(metavar="HEAD ...")] = (),
    hidden_dim: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
) -> dict[str, Any]:
    """Train cross-validated heads, or a detector, by flags or from a training file.

    The usual commands; each takes --out RUN, and --group COLUMN keeps the rows of one place or day in one fold:

        a table of numbers       train --csv cover.csv --targets soil crop --minimum 0
        a column of words        train --csv cover.csv --targets species
        one folder per class     train --images images
        a column of masks        train --csv cover.csv --labels mask --classes soil crop weed
        folders of images, masks train --images images --labels masks
        numbers and masks        train --csv cover.csv --targets crop --labels mask --classes soil crop weed
        boxes in COCO JSON       train --boxes boxes.json --images images
        tokens of a store        train --csv cover.csv --targets soil crop --store store
        a training file          train run.yaml

    Example: dinoneck train --csv cover.csv --targets crop weed --out run

    Args:
        config: training file; it comes first, and flags override it.
        out: folder for heads, predictions and report.
        run: the run.
        heads: train each of these heads on the same tokens and folds, and compare them.
        hidden_dim: width of the head, neck or pyramid.
        overwrite: replace the results of an earlier run.
        resume: continue an interrupted run of the same config (default: on).
    """
    if config is not None:  # from_file reads the file that comes first
        raise ConfigError(f"{config}: one training file stands first: dinoneck train RUN.yaml --out FOLDER ...")
    _check_names(run)
    if run.data.boxes is not None and heads:
        raise ConfigError(f"--heads {' '.join(heads)} compares heads of images; a detector takes one neck, --head NAME")
    if run.data.boxes is not None:
        report = detect.train(with_width(run, hidden_dim), out, overwrite, resume)
        return {"out": out, "report": report}
    if heads:
        return _compared(run, heads, out, overwrite, resume)
    from dinoneck.training.folder import check_folder
    from dinoneck.training.run import prepare, train_folds

    check_folder(out, overwrite=overwrite)
    prepared = prepare(with_width(run, hidden_dim), out, overwrite=overwrite)
    print("\n".join(train_text.describe(prepared)), flush=True)
    report, _ = train_folds(prepared, resume=resume)
    print("\n".join(train_text.comparison(report)))
    print(f"written: {out}/head.safetensors, heads, logs, out_of_fold.csv, report.json")
    return {"out": out, "report": report}


def _compared(run: TrainConfig, heads: Sequence[str], out: Path, overwrite: bool, resume: bool) -> dict[str, Any]:
    """Train several heads on the same tokens and folds, and print one table of their scores."""
    from dinoneck.training.comparing import prepare_heads, train_heads
    from dinoneck.viz.score_tables import all_tables

    runs = prepare_heads(run, heads, out, overwrite=overwrite)
    print("\n".join(train_text.describe(next(iter(runs.values())))), flush=True)
    report = train_heads(runs, out, resume=resume)
    print("\n".join(table(*each) for each in all_tables(report)))
    rows = [[name, f"{own['parameters']:,}", f"{own['seconds']:.1f}"] for name, own in report["cost"].items()]
    print(table(("cost", "parameters", "seconds of training"), rows))
    print(report["verdict"])
    print(f"written: {out}/report.json, a folder for each head")
    return {"out": out, "report": report}


def from_file(path: str) -> Callable[..., dict[str, Any]]:
    """Return the verb with the values of a training file as the defaults of its flags.

    Raises:
        ConfigError: if the file cannot be used.
    """
    return partial(train, run=TrainConfig.read(path))


def _check_names(run: TrainConfig) -> None:
    """Refuse names of files, columns and backbones that are wrong, before torch is imported."""
    data, folds = run.data, run.folds
    check_backbone_name(run.backbone.name, run.backbone.source)
    boxes = (data.boxes, data.val_boxes, data.val_images) if data.boxes is not None else ()
    files = (data.images, data.store, run.backbone.file, *boxes)
    if missing := [file for file in files if file is not None and "://" not in file and not Path(file).exists()]:
        raise DataError(f"{missing[0]} does not exist; check the name, which is relative to this folder")
    if data.csv is None:
        return
    from dinoneck.data.tables import read_cells

    named = [data.image_column or "image", *data.targets, *data.aux_targets, data.labels, *folds.group]
    read_cells(data.csv, [column for column in (*named, folds.column) if column is not None])


def with_width(run: TrainConfig, hidden_dim: int | None) -> TrainConfig:
    """Return the config with the width of its head, neck or pyramid; None = as in the config."""
    from dinoneck.registry import import_modules, resolve
    from dinoneck.training.tasks import head_type

    if hidden_dim is None:
        return run
    import_modules(run.imports)
    kind = head_type(run, "segmentation" if run.data.labels and not run.data.targets else None)
    if run.data.boxes is not None:
        from dinoneck.detection.building import NECK

        kind = run.head.get("type", NECK)
    takes = inspect.signature(resolve(kind)).parameters
    name = next((name for name in ("fpn_dim", "hidden_dim", "out_channels") if name in takes), "hidden_dim")
    return run.changed(head={**run.head, name: hidden_dim})
