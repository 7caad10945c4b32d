"""``dinoneck train``: cross-validated heads from a training file, or from flags, next to a baseline; or a detector."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import check_backbone_name
from dinoneck.cli.text import show_remainder, show_scores
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import check_installed
from dinoneck.training.config import TrainConfig

if TYPE_CHECKING:
    from dinoneck.data.layout import DataFolder
    from dinoneck.data.preprocessing import Preprocessing
    from dinoneck.training.run import Trainer

# patches of an image: attention grows with their square, and above it takes most of a pass
MANY_PATCHES = 4096
# patches along the longer side of the size that is proposed instead, about 1,200 in all for 3:4
ENOUGH_ALONG = 40
# detectors whose code is that of transformers; dinoneck.detection.head, which imports torch, has
# the same names
_OF_TRANSFORMERS = ("dfine", "rtdetrv2")
# parameters of heads, necks and pyramids that --hidden-dim sets: the first that a class has
_WIDTHS = ("fpn_dim", "hidden_dim", "out_channels")
# ratio of the two scales; rounding to whole patches alone gives up to about 2 %
DISTORTED = 1.02


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

    The usual commands; each takes --out RUN, and --group COLUMN keeps the rows of one place or day
    in one fold:

        a table of numbers       train --csv cover.csv --targets soil crop --minimum 0
        a column of words        train --csv cover.csv --targets species
        one folder per class     train --images images
        a column of masks        train --csv cover.csv --labels mask --classes soil crop weed
        folders of images, masks train --images images --labels masks
        numbers and masks        train --csv cover.csv --targets crop --labels mask --classes soil crop
        boxes in COCO JSON       train --boxes boxes.json --images images
        objects in COCO JSON     train --instances objects.json --images images
        panoptic segments        train --panoptic folder segments.json --images images
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
    if config is not None:  # a training file that comes first is read by cli.main.command
        raise ConfigError(
            f"{config}: one training file stands first: dinoneck train RUN.yaml --out FOLDER ..."
        )
    # refuse what is wrong before torch is imported
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if (out / "report.json").exists() and not overwrite:
        raise ConfigError(
            f"--out {out} holds results of an earlier run, report.json; choose another folder, or "
            "replace them with --overwrite"
        )
    _check_names(run)
    _check_extras(run)
    objects = run.data.boxes or run.data.objects
    if objects and heads:
        raise ConfigError(
            f"--heads {' '.join(heads)} compares heads of images; {objects} is for one, --head NAME"
        )
    if objects:
        run = with_width(run, hidden_dim)
        report = _train_objects(run, out, overwrite=overwrite, resume=resume)
    else:
        from dinoneck.training.data_folder import of_data_folder

        run, folder = of_data_folder(run)
        run = with_width(run, hidden_dim)  # imports torch
        report = _train_heads(run, heads, out, folder, overwrite=overwrite, resume=resume)
    show_scores(report)
    print(f"written: {out}, with report.json")
    return {"out": out, "report": report}


def _train_objects(
    config: TrainConfig, out: Path, *, overwrite: bool, resume: bool
) -> dict[str, Any]:
    """Train a detector on boxes, or a head on the masks of objects."""
    from dinoneck.detection import train_detector, train_instances

    if config.data.boxes is not None:
        return train_detector(config, out, overwrite=overwrite, resume=resume)
    return train_instances(config, out, overwrite=overwrite, resume=resume)


def _train_heads(
    config: TrainConfig,
    heads: Sequence[str],
    out: Path,
    folder: DataFolder | None,
    *,
    overwrite: bool,
    resume: bool,
) -> dict[str, Any]:
    """Train the head of a configuration, or each of several on the same tokens and folds.

    ``folder`` is the folder of data that the configuration was made of, which is read already.
    """
    from dinoneck.training.comparison import prepare_heads, train_heads
    from dinoneck.training.run import prepare

    if not heads:
        trainer = prepare(config, out, overwrite=overwrite, data_folder=folder)
        _describe(trainer)
        return trainer.train(resume=resume)
    trainers = prepare_heads(config, heads, out, overwrite=overwrite, data_folder=folder)
    first = next(iter(trainers.values()))
    _describe(first)
    return train_heads(trainers, out, resume=resume)


def _check_names(run: TrainConfig) -> None:
    """Refuse names of files, columns and backbones that are wrong, before torch is imported."""
    data = run.data
    check_backbone_name(run.backbone.name, run.backbone.source)
    files = (
        data.images,
        data.store,
        data.boxes,
        data.val_boxes,
        data.val_images,
        data.instances,
        *(data.panoptic or ()),
        run.backbone.file,
    )
    for file in files:
        is_local = file is not None and "://" not in file
        if is_local and not Path(file).exists():
            raise DataError(
                f"{file} does not exist; check the name, which is relative to this folder"
            )
    if data.csv is not None:
        from dinoneck.data.tables import read_cells

        columns = [
            data.image_column or "image",
            *data.targets,
            *data.aux_targets,
            data.labels,
            *run.folds.group,
            run.folds.column,
        ]
        read_cells(data.csv, [column for column in columns if column is not None])


def _check_extras(run: TrainConfig) -> None:
    """Name an extra that the run needs and that is not installed, before torch is imported."""
    if run.backbone.source == "transformers":
        check_installed("transformers", "hf")
    if run.backbone.lora is not None:
        check_installed("peft", "lora")
    if run.data.boxes is not None:
        check_installed("pycocotools", "detection")
        if run.detector.name in _OF_TRANSFORMERS:
            check_installed("transformers", "detection")
            check_installed("scipy", "detection")
    elif run.data.objects:
        check_installed("pycocotools", "masks")
        check_installed("scipy", "masks")
    else:
        check_installed("pandas", "train")
        if run.folds.stratify is not None:
            check_installed("scikit-learn", "train", "sklearn")


def with_width(run: TrainConfig, hidden_dim: int | None) -> TrainConfig:
    """Return the config with the width of its head, neck or pyramid; None: as in the config."""
    from dinoneck.registry import import_modules, resolve
    from dinoneck.training.new_head import head_type

    if hidden_dim is None:
        return run
    import_modules(run.imports)
    if run.data.boxes is not None:
        from dinoneck.detection.training import NECK

        type_name = run.head.get("type", NECK)
    else:
        masks_alone = bool(run.data.labels) and not run.data.targets
        type_name = head_type(run, "segmentation" if masks_alone else None)
    parameters = inspect.signature(resolve(type_name)).parameters
    widths = [name for name in _WIDTHS if name in parameters]
    width = widths[0] if widths else "hidden_dim"  # which the head then refuses
    return run.changed(head={**run.head, width: hidden_dim})


def _describe(trainer: Trainer) -> None:
    """Print what a run trains on, what the head will read, and what a user should know before the work."""
    from dinoneck.data.cells import GROUP, IMAGES
    from dinoneck.data.decoding import read_image_size
    from dinoneck.data.layout import HELD_OUT
    from dinoneck.training.table import groups_of, target_columns

    config = trainer.config
    table = trainer.table
    tokens = trainer.tokens

    # what it learns
    targets, auxiliary = target_columns(config, table)
    masks = [task.name for task in trainer.problem.tasks if task.is_map]
    num_groups = len(set(groups_of(table)))
    line = f"{len(table)} images, {num_groups} groups, targets {', '.join([*targets, *masks])}"
    if auxiliary:
        line += f"; auxiliary: {', '.join(auxiliary)}"
    print(line)

    # what it reads
    grid = tokens.example.grid
    patches = f"{grid.rows}x{grid.cols} patches"
    if tokens.backbone is None:
        print(f"Tokens come from {config.data.store}: {tokens.record.get('name')}, {patches}.")
    else:
        size = read_image_size(table[IMAGES].iloc[0])
        height, width = size
        new_height, new_width = tokens.preprocess.placement(size).canvas
        print(
            f"The first image, {height}x{width} px (height x width), becomes "
            f"{new_height}x{new_width} px, {patches}."
        )
        show_remainder(tokens.preprocess, tokens.preprocess.size or size)
        for line in size_advice(tokens.preprocess, size):
            print(line)

    # how it is scored
    is_drawn = config.folds.column is None and HELD_OUT not in table.attrs
    if GROUP not in table and is_drawn and len(trainer.folds) > 1:
        print(
            "No --group: images of one place or day may fall into several folds, and every score "
            "looks better."
        )


def size_advice(preprocess: Preprocessing, size: tuple[int, int]) -> list[str]:
    """Return what a user should know of images that are distorted or have very many patches.

    Args:
        preprocess: how images are prepared.
        size: (height, width) of an image in px.
    """
    from dinoneck.grid import patch_pair

    lines = []
    height, width = size
    placement = preprocess.placement(size)
    if preprocess.size is not None and preprocess.resize == "stretch":
        resized_height, resized_width = placement.resized
        ratio = (resized_height / height) / (resized_width / width)
        if max(ratio, 1 / ratio) > DISTORTED:
            lines.append(
                f"--resize stretch changes its proportions by {abs(ratio - 1):.0%}; --resize crop, "
                "pad or keep would not."
            )
    if preprocess.size is None:
        patch_height, patch_width = patch_pair(preprocess.patch_size)
        rows = placement.canvas[0] // patch_height
        cols = placement.canvas[1] // patch_width
        if rows * cols > MANY_PATCHES:
            scale = ENOUGH_ALONG / max(rows, cols)
            fewer_rows = max(1, round(rows * scale))
            fewer_cols = max(1, round(cols * scale))
            lines.append(
                f"That is {rows * cols:,} patches per image: slow, and much memory. --size "
                f"{fewer_rows * patch_height}x{fewer_cols * patch_width} brings images to "
                f"{fewer_rows * fewer_cols:,}."
            )
    return lines
