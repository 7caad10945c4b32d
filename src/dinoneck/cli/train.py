"""``dinoneck train``: cross-validated heads from a training file, or from flags, next to a baseline; or a detector.

There is one function per training, :func:`train`, :func:`train_objects` and :func:`train_boxes`;
:func:`parse_training` chooses it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from tyro.conf import Fixed, Positional, Suppress, arg

from dinoneck.cli.arguments import (
    check_backbone_name,
    flag_of,
    flags,
    parse,
    with_default_runtime,
)
from dinoneck.cli.text import show, show_remainder, show_scores
from dinoneck.data.run_names import REPORT
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import check_installed, check_scores_of_boxes
from dinoneck.published.detectors import DETECTORS as PUBLISHED_DETECTORS
from dinoneck.registry import check_registered
from dinoneck.text import counted
from dinoneck.training.config import (
    HEAD,
    TRAININGS,
    AnyConfig,
    TrainConfig,
    TrainDetectorConfig,
    TrainInstancesConfig,
    config_of,
    merged_values,
    stated_options,
)
from dinoneck.training.recipe import Config, DetectorRecipe, has_flag
from dinoneck.training.trainings import Training
from dinoneck.yaml_file import read_yaml

if TYPE_CHECKING:
    from dinoneck.images.preprocessing import Preprocessing
    from dinoneck.training.run import ImageTrainer

# patches of an image: attention grows with their square, and above it takes most of a pass
MANY_PATCHES = 4096
# patches along the longer side of the size that is proposed instead, about 1,200 in all for 3:4
ENOUGH_ALONG = 40
# detectors whose code is that of transformers; dinoneck.detection.head, which imports torch, has
# the same names
_OF_TRANSFORMERS = ("dfine", "rtdetrv2")
# the values of optim that a command line and its training file state, which parse_training fills in
Stated = Annotated[tuple[str, ...], Fixed, Suppress]
# what a first run needs, of whichever training, in the order of use
FIRST_FLAGS = (
    "--csv",
    "--boxes",
    "--val-boxes",
    "--instances",
    "--panoptic",
    "--images",
    "--targets",
    "--labels",
    "--classes",
    "--group",
    "--size",
    "--backbone",
    "--random-backbone",
    "--head",
    "--detector",
    "--init",
    "--epochs",
    "--folds",
    "--out",
    "--overwrite",
    "--dry-run",
)
# ratio of the two scales; rounding to whole patches alone gives up to about 2 %
DISTORTED = 1.02


def train(
    config: Annotated[str | None, Positional, arg(metavar="RUN.yaml")] = None,
    *,
    out: Path,
    run: Annotated[TrainConfig, arg(name="")] = TrainConfig(),
    heads: Annotated[tuple[Annotated[dict[str, Any], HEAD], ...], arg(metavar="HEAD ...")] = (),
    hidden_dim: int | None = None,
    with_linear: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train cross-validated heads, or a detector, by flags or from a training file.

    The usual commands; each takes --out RUN, and --group COLUMN keeps the rows of one place or day
    in one fold:

        a table of numbers       train --csv cover.csv --targets soil crop --minimum 0
        a column of words        train --csv cover.csv --targets species
        several labels an image  train --csv damage.csv --multilabel crack rust moss
        one folder per class     train --images images
        one folder per label     train --images images --multilabel crack rust moss
        labels in COCO JSON      train --images images --multilabel damage.json
        a column of masks        train --csv cover.csv --labels mask --classes soil crop weed
        folders of images, masks train --images images --labels masks
        numbers and masks        train --csv cover.csv --targets crop --labels mask --classes soil crop
        boxes in COCO JSON       train --boxes boxes.json --images images
        boxes of YOLO or VOC     train --boxes data.yaml, train --boxes Annotations
        objects in COCO JSON     train --instances objects.json --images images
        panoptic segments        train --panoptic folder segments.json --images images
        tokens of a store        train --csv cover.csv --targets soil crop --store store
        a training file          train run.yaml

    The options below are those of numbers, classes and masks. For boxes and objects
    see 'dinoneck train --boxes boxes.json --help' and 'dinoneck train --instances objects.json
    --help'.

    A finished run predicts with another method, without training, by its folder and the method:

        the linear baseline      train --out run --predict-with linear

    Example: dinoneck train --csv cover.csv --targets crop weed --out run

    Args:
        config: training file; it comes first, and flags override it.
        out: folder for heads, predictions and report.
        run: the run.
        heads: train each of these heads, such as fpn '{type: fpn, fpn_dim: 64}' patch_mean, on the
            same tokens and folds, and compare them; a head given by its name alone has those
            arguments of head that it takes.
        hidden_dim: width of the head, neck or pyramid.
        with_linear: predict with the average of head and linear baseline, as --predict-with
            average.
        overwrite: replace the results of an earlier run.
        resume: continue an interrupted run of the same config.
        dry_run: print what is read of the data and write it to data.txt, data.json and, as a picture,
            data.jpg in --out; no backbone is loaded and nothing is trained.
    """
    if with_linear:
        run = run.with_average()
    return _train_and_show(
        config,
        run,
        out,
        heads=heads,
        hidden_dim=hidden_dim,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
    )


def train_objects(
    config: Annotated[str | None, Positional, arg(metavar="RUN.yaml")] = None,
    *,
    out: Path,
    run: Annotated[TrainInstancesConfig, arg(name="")],
    hidden_dim: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    stated: Stated = (),
) -> dict[str, Any]:
    """Train cross-validated heads that predict every object with its class and mask, or panoptic segments.

    --instances names the COCO file of objects, or --panoptic the folder and the COCO file of
    panoptic segments. 'dinoneck train --help' shows all trainings.

    Example: dinoneck train --instances objects.json --images images --out run

    Args:
        config: training file; it comes first, and flags override it.
        out: folder for heads, predictions and report.
        run: the run.
        hidden_dim: width of the head or neck.
        overwrite: replace the results of an earlier run.
        resume: continue an interrupted run of the same config.
        dry_run: print what is read of the data and write it to data.txt, data.json and, as a picture,
            data.jpg in --out; no backbone is loaded and nothing is trained.
        stated: values of optim that are taken as they are.
    """
    return _train_and_show(
        config,
        run,
        out,
        hidden_dim=hidden_dim,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        stated=stated,
    )


def train_boxes(
    config: Annotated[str | None, Positional, arg(metavar="RUN.yaml")] = None,
    *,
    out: Path,
    run: Annotated[TrainDetectorConfig, arg(name="")],
    hidden_dim: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    dry_run: bool = False,
    stated: Stated = (),
) -> dict[str, Any]:
    """Train a detector from COCO JSON.

    'dinoneck train --help' shows all trainings.

    Example: dinoneck train --boxes boxes.json --images images --out run

    Args:
        config: training file; it comes first, and flags override it.
        out: folder for the detector and the report.
        run: the run.
        hidden_dim: width of the neck.
        overwrite: replace the results of an earlier run.
        resume: continue an interrupted run of the same config.
        dry_run: print what is read of the data and write it to data.txt, data.json and, as a picture,
            data.jpg in --out; no backbone is loaded and nothing is trained.
        stated: values of optim that are taken as they are.
    """
    return _train_and_show(
        config,
        run,
        out,
        hidden_dim=hidden_dim,
        overwrite=overwrite,
        resume=resume,
        dry_run=dry_run,
        stated=stated,
    )


def parse_training(words: Sequence[str]) -> partial[Any]:
    """Return the call that a command line of ``train`` describes, of one of the three functions above.

    A training file comes first; the data that it names, or the flags ``--boxes``, ``--instances`` and
    ``--panoptic``, decide. The flags are searched for before they are parsed, as a parser is made for
    one class of configs.

    Raises:
        ConfigError: if the file cannot be used, or file and flags describe two trainings.
        SystemExit: as :func:`dinoneck.cli.arguments.parse`.
    """
    data = _data_in(words)
    training = TRAININGS.of_data(data)
    verb: Any = _FUNCTIONS[training.config]
    stated = _stated_in(words)
    if words and not words[0].startswith("-"):
        training, values = _read_with_data(words[0], data)
        run = config_of(values, words[0])
        stated += stated_options(values)
        verb = partial(_FUNCTIONS[training.config], run=run)
        words = words[1:]
    flags_of_all: list[str] = []
    for function in _FUNCTIONS.values():
        flags_of_all += flags(function)
    call = parse(
        verb,
        "dinoneck train",
        words,
        pairs=True,
        explain=partial(_explain, training=training),
        first=FIRST_FLAGS,
        candidates=flags_of_all,
    )
    if "stated" in call.keywords:
        call.keywords["stated"] = tuple(stated)
    return call


def _stated_in(words: Sequence[str]) -> list[str]:
    """The names of the values of ``optim`` that a command line states."""
    stated_flags = {flag_of(word) for word in words}
    stated = []
    for name in DetectorRecipe.__struct_fields__:
        if f"--{name.replace('_', '-')}" in stated_flags:
            stated.append(name)
    return stated


def _data_in(words: Sequence[str]) -> dict[str, Any]:
    """The data in a command line that decides which training it describes: key -> file, or its files."""
    data: dict[str, Any] = {}
    for position, word in enumerate(words):
        flag, is_joined, value = word.partition("=")
        following = words[position + 1 :]
        if flag == "--panoptic":
            data["panoptic"] = tuple(following[:2])
        elif flag in ("--boxes", "--instances"):
            data[flag.removeprefix("--")] = value if is_joined else " ".join(following[:1])
    return data


def _read_with_data(path: str, data: Mapping[str, Any]) -> tuple[Training, dict[str, Any]]:
    """Read a training file whose data may stand in the command line; return the training and its plain values."""
    values = read_yaml(path)
    in_file = TRAININGS.of_values(values)
    in_words = TRAININGS.of_data(data)
    if data and in_file is not TRAININGS.default and in_file is not in_words:
        raise ConfigError(
            f"{path} describes a training of {in_file.learns}, and --{next(iter(data))} one of "
            f"{in_words.learns}; leave one of them out"
        )
    if data:
        values = merged_values(values, {"data": data})
    return TRAININGS.of_values(values), values


def _explain(flag: str, training: Training) -> str:
    """What a flag is that this training has not: a key of training files alone, or of other trainings; else empty."""
    name = flag.removeprefix("--")
    switch = name.removeprefix("no-")
    if switch == "with-ridge":
        return "It is called --with-linear now, or --predict-with average"
    for key in _keys_of_files(training.config):
        if key.rpartition(".")[2].replace("_", "-") in (name, switch):
            return f"{key} stands in the training file alone: dinoneck train RUN.yaml"
    others = []
    for other in TRAININGS.all:
        other_flags = flags(_FUNCTIONS[other.config])
        if other is not training and (flag in other_flags or f"--{switch}" in other_flags):
            others.append(other)
    if not others:
        return ""
    learned = " and of ".join(other.learns for other in others)
    sentence = f"It is an option of the training of {learned}"
    if training.data_keys:
        data = " or ".join(f"--{key}" for key in training.data_keys)
        return f"{sentence}, and has no effect with {data}; leave it out"
    data = " or ".join(f"--{key}" for other in others for key in other.data_keys)
    return f"{sentence}, and needs {data}; or leave it out"


def _keys_of_files(config: type[Config], prefix: str = "") -> list[str]:
    """The keys that no flag sets, ``GROUP.KEY`` where they are in a group."""
    keys = []
    hints = get_type_hints(config, include_extras=True)
    for name in config.__struct_fields__:
        hint = hints[name]
        if not has_flag(hint):
            keys.append(prefix + name)
        elif isinstance(hint, type) and issubclass(hint, Config):
            keys += _keys_of_files(hint, f"{prefix}{name}.")
    return keys


_FUNCTIONS: dict[type[Config], Callable[..., dict[str, Any]]] = {
    TrainConfig: train,
    TrainInstancesConfig: train_objects,
    TrainDetectorConfig: train_boxes,
}


def _train_and_show(
    config: str | None,
    run: AnyConfig,
    out: Path,
    *,
    heads: Sequence[Mapping[str, Any]] = (),
    hidden_dim: int | None,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    stated: Sequence[str] = (),
) -> dict[str, Any]:
    """Train as :func:`dinoneck.train` does, and print what it does and its scores; return the document."""
    may_switch = isinstance(run, TrainConfig) and run.predict_with is not None and not overwrite
    switches_method = may_switch and (out / REPORT).exists()
    _check_before_torch(config, run, out, replaces=overwrite or switches_method)
    data_folder = None
    if isinstance(run, TrainConfig):
        from dinoneck.training.data_folder import of_data_folder

        run, data_folder = of_data_folder(run)
    from dinoneck.training.entrance import run_training, show_data

    if dry_run:
        summary = show_data(run, out, data_folder=data_folder, overwrite=overwrite)
        print(f"written: {out}, with data.txt and what else shows the data; nothing is trained.")
        return {"out": out, "data": summary.to_dict()}
    try:
        report = run_training(
            _with_runtime(run),
            out,
            data_folder=data_folder,
            heads=heads,
            hidden_dim=hidden_dim,
            overwrite=overwrite,
            resume=resume,
            stated=stated,
            describe=_describe,
        )
    except KeyboardInterrupt:
        if resume and not overwrite:
            print("The same command continues this training.")
        raise
    if switches_method:
        print(f"{out} is a finished run: nothing is trained.")
    document = _shown(out, report)
    if not heads:  # several have a folder each
        print(f"predict with it: {_predict_command(run, out)}")
    return document


def _predict_command(run: AnyConfig, out: Path) -> str:
    """The command that predicts with a run, from the weights and modules that its file does not hold."""
    command = ["dinoneck", "predict", "IMAGES", "--heads", str(out)]
    if run.backbone.file is not None:
        command += ["--backbone-file", run.backbone.file]
    for module in run.imports:
        command += ["--import", module]
    command += ["--out", "predictions.csv", "--overlay", "pictures"]
    return shlex.join(command)


def _with_runtime(run: AnyConfig) -> AnyConfig:
    """The run with the runtime of commands, where it names none and computes tokens before the training."""
    if isinstance(run, TrainDetectorConfig):
        return run
    if isinstance(run, TrainConfig) and run.data.store is not None:
        return run
    return run.changed(backbone=with_default_runtime(run.backbone))


def _check_before_torch(config: str | None, run: AnyConfig, out: Path, *, replaces: bool) -> None:
    """Refuse what is wrong before torch is imported: a second file, an output, names, lacking extras.

    Args:
        config: a training file that is not the first word.
        run: the run.
        out: folder of the results.
        replaces: whether results of an earlier run may be there.
    """
    if config is not None:  # a training file that comes first is read by parse_training
        raise ConfigError(
            f"{config}: one training file stands first: dinoneck train RUN.yaml --out FOLDER ..."
        )
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if (out / REPORT).exists() and not replaces:
        raise ConfigError(
            f"--out {out} holds results of an earlier run, report.json; choose another folder, or "
            "replace them with --overwrite"
        )
    check_backbone_name(run.backbone.name, run.backbone.source)
    if "type" in run.head and not run.imports:  # which may register it
        check_registered(run.head["type"])
    for file in _named_files(run):
        if file is None or "://" in file:
            continue
        if not Path(file).exists():
            raise DataError(
                f"{file} does not exist; check the name, which is relative to this folder"
            )
    _check_extras(run)
    _check_data(run)


def _named_files(run: AnyConfig) -> list[str | None]:
    """The files and folders that a run reads."""
    images = run.data.images
    weights = run.backbone.file
    if isinstance(run, TrainConfig):
        folder_of_masks = run.data.labels if run.data.csv is None else None
        return [images, folder_of_masks, run.data.store, weights]
    if isinstance(run, TrainInstancesConfig):
        objects = [run.data.instances, *(run.data.panoptic or ())]
        return [images, *objects, weights, run.weights]
    return [
        images,
        run.data.boxes,
        run.data.val_boxes,
        run.data.val_images,
        weights,
        run.weights,
    ]


def _check_data(run: AnyConfig) -> None:
    """Refuse sizes, blocks and data that cannot be used, and what data lack, as far as it shows without torch."""
    from dinoneck.cli.run_checks import (
        check_coco_images,
        check_detector_size,
        check_layers,
        check_neck,
        check_table,
    )

    check_layers(run)
    check_neck(run)
    if isinstance(run, TrainDetectorConfig):
        check_detector_size(run)
    if isinstance(run, TrainConfig):
        check_table(run)
        return
    images = run.data.images
    if isinstance(run, TrainInstancesConfig):
        if run.data.instances is not None:
            check_coco_images(run.data.instances, images)
        return
    if run.data.boxes is not None:
        check_coco_images(run.data.boxes, images)
    if run.data.val_boxes is not None:
        check_coco_images(run.data.val_boxes, run.data.val_images or images)


def _check_extras(run: AnyConfig) -> None:
    """Name an extra that the run needs and that is not installed."""
    if run.backbone.source == "transformers":
        check_installed("transformers", "hf")
    if run.backbone.lora is not None:
        check_installed("peft", "lora")
    if run.init in PUBLISHED_DETECTORS:
        check_installed("transformers", "detection")
        check_installed("scipy", "detection")
    if isinstance(run, TrainDetectorConfig):
        check_scores_of_boxes()
        if run.detector.name in _OF_TRANSFORMERS:
            check_installed("transformers", "detection")
            check_installed("scipy", "detection")
    elif isinstance(run, TrainInstancesConfig):
        check_installed("pycocotools", "masks")
        check_installed("scipy", "masks")
    else:
        check_installed("pandas", "train")
        if run.folds.stratify is not None:
            check_installed("scikit-learn", "train", "sklearn")


def _shown(out: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Print the scores of a run, its peak memory and where its files are; return the document of the verb."""
    show_scores(report)
    if "peak_memory_mb" in report:
        print(f"peak memory: {report['peak_memory_mb']:.0f} MiB")
    print(f"written: {out}, with report.json")
    predicts = report.get("predicts")
    if predicts is not None:
        line = predicts["sentence"]
        if predicts["better"] is not None:
            command = ["dinoneck", "train", "--out", str(out), "--predict-with", predicts["better"]]
            line += f" Change to it: {shlex.join(command)}"
        show(line)
    return {"out": out, "report": report}


def _describe(trainer: ImageTrainer) -> None:
    """Print what a run trains on, what the head will read, and what a user should know before the work."""
    from dinoneck.images.decoding import read_image_size
    from dinoneck.training.table import target_columns

    config = trainer.config
    table = trainer.table
    tokens = trainer.tokens

    # what it learns
    targets, auxiliary = target_columns(config, table.columns)
    masks = [task.name for task in trainer.problem.tasks if task.is_map]
    line = f"{len(table)} images"
    if table.has_groups:
        line += f", {counted(len(set(table.groups)), 'group')}"
    line += f", targets {', '.join([*targets, *masks])}"
    if auxiliary:
        line += f"; auxiliary: {', '.join(auxiliary)}"
    print(line)

    # what it reads
    grid = tokens.example.grid
    patches = f"{grid.rows}x{grid.cols} patches"
    if tokens.backbone is None:
        print(f"Tokens come from {config.data.store}: {tokens.record.get('name')}, {patches}.")
    else:
        size = read_image_size(table.images[0])
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
    is_drawn = config.folds.column is None and not table.has_parts
    if not table.has_groups and is_drawn and len(trainer.folds) > 1:
        if config.data.csv is not None:
            print(
                "No --group: if images of one place or day fall into different folds, the scores are "
                "too good."
            )
        else:
            print(
                "No groups: if images of one place or day fall into different folds, the scores are "
                "too good. A table can name them (--csv, --group)."
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
