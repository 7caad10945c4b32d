"""What a run leaves on disk: its folder, the state that it resumes from, and the logs of its epochs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinoneck.atomic import read_regular, write_whole
from dinoneck.data import run_names
from dinoneck.data.summary import DataSummary
from dinoneck.errors import CheckpointError, DataError, DinoneckError
from dinoneck.inference.alike import difference
from dinoneck.kinds import Runtime, present_report
from dinoneck.progress import announce
from dinoneck.text import reason_of, some_of
from dinoneck.training.config import TRAININGS
from dinoneck.training.processes import wait_for_all
from dinoneck.weight_files import read_any

STATE = "state.pt"
LOG = "log.jsonl"
# in the folder of what is unfinished: name of a head's file -> SHA-256 of what the run wrote
FINISHED_HEADS = "finished_heads.json"
# what zipfile raises, also by a changed method
_DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError)
Callback = Callable[[int, dict[str, Any]], object]  # of an epoch and its row of numbers
_DATA_FILES = (run_names.DATA_FACTS, run_names.DATA_TEXT, run_names.DATA_SHEET)
EARLIER = "earlier"
"""The folder in that of a run that keeps the results which the run replaces, until its report is written."""
TOKENS = "tokens"
TARGETS = "hash of targets and folds"
SAMPLES = "ids and targets of the samples"
BACKBONE = "backbone of live tokens"
IMAGE_FILES = "hash of image files"
FROM_MAPS = "numbers read from maps"
BACKBONE_RECORD = "backbone record"
# it is not compared: a continuation takes the runtime of the run
RUNTIME = "runtime"
# entries that runs of 0.3 do not have; they are not compared there
NOT_IN_OLD_RUNS = (TOKENS, TARGETS, SAMPLES, BACKBONE, IMAGE_FILES, FROM_MAPS)
# entries of 0.3 with some tokens in them, whose last bits depend on the device
TARGETS_OF_0_3 = "hash of images and targets"
SAMPLES_OF_0_3 = "ids and targets"
# -> the entry that is compared in their place where both runs have it
_REPLACED = {TARGETS_OF_0_3: TARGETS, SAMPLES_OF_0_3: SAMPLES}
# entries of a config that may differ in a continuation: a run keeps all that may predict
_MAY_DIFFER = ("imports", "device", "predict_with")
_REMEDY = "use another folder, or replace it: fit(..., resume=False), --no-resume"
_DAMAGED_REMEDY = "restore it from a copy, or start again: fit(..., resume=False), --no-resume"


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Reject a folder that holds other files than an earlier run, or results of one that are not to be replaced.

    Hidden files do not count.

    Raises:
        DataError: naming it and some of its files, or the folder that cannot be written to.
    """
    _check_files_in(folder, overwrite=overwrite)
    _check_writable(folder)


def _check_files_in(folder: Path, *, overwrite: bool) -> None:
    """Check that what is in a folder is of a run, and may be replaced or continued."""
    results = results_in(folder)
    is_begun = (folder / run_names.UNFINISHED).is_dir()
    # a run may stop before its report
    finished = [path for path in results if path.name == run_names.REPORT or not is_begun]
    if finished and not overwrite:
        raise DataError(
            f"{folder} holds results ({finished[0].name}); overwrite=True (--overwrite) replaces "
            "them"
        )
    if not results and not is_begun:
        names = [path.name for path in folder.glob("[!.]*")]
        if names and not _holds_summary_alone(folder, names):
            raise DataError(
                f"{folder} holds {some_of(names, 3)}, which are not of a run; choose a new or empty "
                "folder"
            )


def _holds_summary_alone(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder holds what a dry run, or a run that has just begun, writes of its data, and no other file.

    ``data.json`` is written first, and is read to tell it from a file of the user.
    """
    if run_names.DATA_FACTS not in names or not {*names} <= {*_DATA_FILES}:
        return False
    try:
        facts = json.loads(read_regular(folder / run_names.DATA_FACTS))
    except ValueError:
        return False
    return isinstance(facts, dict) and facts.keys() >= {"lines", "images", "left_out"}


def _check_writable(folder: Path) -> None:
    """Check that a folder, or where it is missing the next one above it, can be written to."""
    existing = [path for path in (folder, *folder.absolute().parents) if path.exists()]
    parent = existing[0]
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(
            f"the results cannot be written to {folder}: {parent} is not a folder that can be "
            "written to"
        )


def results_in(folder: Path) -> list[Path]:
    """Return the files that a run left in the folder; the report first, so that a half-removed run has none."""
    patterns = (
        run_names.REPORT,
        run_names.HEAD_FILE,
        run_names.PREDICTIONS,
        f"{run_names.HEADS}/fold-*.safetensors",
        f"{run_names.BASELINES}/fold-*.safetensors",
        f"{run_names.LOGS}/fold-*.jsonl",
        run_names.DETECTOR,
        LOG,
        run_names.TRAINED_ON,
    )
    paths: list[Path] = []
    for pattern in patterns:
        paths += sorted(folder.glob(pattern))
    return paths


def show_data(summary: DataSummary) -> None:
    """Print what was read, and draw the sheet, in the process that writes files.

    Masks that are drawn are kept, so that finer maps of them are made without decoding them again.
    """
    if writes():
        for line in summary.lines():
            announce(line)
        summary.draw()


def is_new(folder: Path) -> bool:
    """Whether a folder holds nothing of a run that is finished, or goes on."""
    return not results_in(folder) and not (folder / run_names.UNFINISHED).exists()


def write_data(folder: Path, summary: DataSummary) -> None:
    """Write ``data.json``, ``data.txt`` and the sheet ``data.jpg``, in the process that writes files.

    Without images at hand there is no sheet.
    """
    if not writes():
        return
    facts = json.dumps(summary.to_dict(), indent=2, allow_nan=False)
    write_file(folder / run_names.DATA_FACTS, f"{facts}\n".encode())
    text = "\n".join(summary.lines())
    write_file(folder / run_names.DATA_TEXT, f"{text}\n".encode())
    if summary.jpeg is None:
        (folder / run_names.DATA_SHEET).unlink(missing_ok=True)
    else:
        write_file(folder / run_names.DATA_SHEET, summary.jpeg)


def begin(folder: Path, values: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    """Keep what identifies a run; set the results of another one that is to be replaced aside.

    They are in ``folder / EARLIER`` until :func:`finish`. An unfinished run that has not kept the
    state of an epoch, such as one that an error ended at its start, is replaced by any other.

    All processes of a group call it together, see :func:`dinoneck.training.processes.join_processes`.

    Args:
        folder: of the run.
        values: its config and what else must be equal in a continuation; imports, the device and
            what predicts may differ.
        resume: continue an unfinished run.

    Returns:
        The values that must be equal.

    Raises:
        CheckpointError: if the folder holds an unfinished run of another config, other images or
            other targets.
    """
    identity = {name: x for name, x in values.items() if name not in _MAY_DIFFER}
    text = json.dumps(identity, indent=2) + "\n"
    earlier = _unfinished_identity(folder) if resume else None
    if earlier is not None:
        check_same(earlier, json.loads(text), str(folder))
    # no other process reads the folder while the first one changes it, or goes on with what the
    # folder held before
    wait_for_all()
    if earlier is None and writes():
        _set_aside(folder)
        shutil.rmtree(folder / run_names.UNFINISHED, ignore_errors=True)
        write_file(folder / run_names.UNFINISHED / run_names.RUN, text.encode())
        _write_finished_heads(folder, {})
    wait_for_all()
    return identity


def is_begun_by_0_3(folder: Path) -> bool:
    """Return whether the folder holds a run of heads to continue that 0.3 began.

    Such a run is compared by :data:`TARGETS_OF_0_3`, which needs the tokens of all images.
    """
    identity = _unfinished_identity(folder)
    return identity is not None and TARGETS not in identity


def runtime_of_unfinished(folder: Path) -> Runtime | None:
    """Return what computes the tokens of the unfinished run in a folder; None without such a run."""
    identity = _unfinished_identity(folder)
    if identity is None:
        return None
    runtime: Runtime = identity.get(RUNTIME, "torch")  # those of 0.3 have none
    return runtime


def _unfinished_identity(folder: Path) -> dict[str, Any] | None:
    """Return what identifies the unfinished run in a folder; None without a run that has kept an epoch."""
    path = folder / run_names.UNFINISHED / run_names.RUN
    if not path.exists() or (folder / run_names.REPORT).exists() or not _has_epochs(folder):
        return None
    return _read_json(path)


def note_finished_head(folder: Path, head_file: Path) -> None:
    """Keep the hash of a head's file that a run has written, for :func:`is_finished_head`."""
    finished = _finished_heads(folder) or {}
    finished[head_file.name] = _hash_of_file(head_file)
    _write_finished_heads(folder, finished)


def is_finished_head(folder: Path, head_file: Path) -> bool:
    """Whether a head's file is there and is what this run wrote.

    A file without a note was written just before a kill: its fold is trained to the same end again.
    Unfinished runs of 0.3 have no notes; their files are taken.

    Raises:
        CheckpointError: if the file is another one than the run wrote.
    """
    if not head_file.exists():
        return False
    finished = _finished_heads(folder)
    if finished is None:
        return True
    if head_file.name not in finished:
        return False
    if _hash_of_file(head_file) != finished[head_file.name]:
        raise CheckpointError(
            f"{head_file} is not the file that this run wrote: it was changed, or is of another "
            "run; remove it, and its fold is trained again",
            step="pairing",
        )
    return True


def _finished_heads(folder: Path) -> dict[str, str] | None:
    """Name of a head's file -> SHA-256, of the heads that an unfinished run wrote; None for runs of 0.3."""
    path = folder / run_names.UNFINISHED / FINISHED_HEADS
    if not path.exists():
        return None
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file in the folder of what is unfinished.

    Raises:
        CheckpointError: if it is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(read_regular(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; {_DAMAGED_REMEDY}") from error
    return content


def _write_finished_heads(folder: Path, finished: Mapping[str, str]) -> None:
    path = folder / run_names.UNFINISHED / FINISHED_HEADS
    write_file(path, (json.dumps(finished, indent=2) + "\n").encode())


def _hash_of_file(path: Path) -> str:
    return hashlib.sha256(read_regular(path)).hexdigest()


def _has_epochs(folder: Path) -> bool:
    """Whether an unfinished run has something to continue from, in its folder or those of its heads."""
    if any(folder.rglob(STATE)) or results_in(folder):
        return True
    for path in folder.iterdir():
        is_of_head = path.is_dir() and path.name not in (EARLIER, run_names.UNFINISHED)
        if is_of_head and results_in(path):
            return True
    return False


def _set_aside(folder: Path) -> None:
    """Move the results of a finished run into a folder of their own; remove those of an unfinished one."""
    results = results_in(folder)
    if (folder / run_names.UNFINISHED).is_dir() and not (folder / run_names.REPORT).exists():
        for path in results:
            path.unlink()
        return
    earlier = folder / EARLIER
    if results and (earlier / run_names.REPORT).exists():
        shutil.rmtree(earlier)
    # the report last: a kill between leaves results that the same command goes on to move
    if results:  # else what is there of data is that of the new run
        results += [folder / name for name in _DATA_FILES if (folder / name).exists()]
    for path in reversed(results):
        new_path = earlier / path.relative_to(folder)
        new_path.parent.mkdir(parents=True, exist_ok=True)
        path.replace(new_path)


def finish(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write the report, the last file of a run; remove the results that it replaces; return its plain values."""
    json_values = write_report(folder, report)
    if writes():
        shutil.rmtree(folder / run_names.UNFINISHED, ignore_errors=True)
        shutil.rmtree(folder / EARLIER, ignore_errors=True)
    return json_values


def write_report(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write the report of a run in the process that writes files; return its plain values."""
    text = json.dumps(report, indent=2, allow_nan=False)
    if writes():
        write_file(folder / run_names.REPORT, f"{text}\n".encode())
    json_values: dict[str, Any] = json.loads(text)
    return json_values


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of a finished run, with the present names of methods; None where the folder has none.

    Raises:
        DataError: if it is damaged, or holds no report.
    """
    path = folder / run_names.REPORT
    if not path.is_file():
        return None
    try:
        report: Any = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}; restore it, or remove it") from error
    no_report = f"{path} is damaged: it holds no report; restore it, or remove it"
    if not isinstance(report, dict):
        raise DataError(no_report)
    try:
        return present_report(report)
    except (AttributeError, TypeError) as error:  # its scores are no mappings
        raise DataError(no_report) from error


def writes() -> bool:
    """Whether this process writes: the first one under torchrun."""
    return os.environ.get("RANK", "0") == "0"


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a run, whole or not at all; make its folder.

    Raises:
        CheckpointError: if it cannot be written; a file that is there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {reason_of(error)}", step="write"
        ) from error


def load_state(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a run, its tensors on the CPU; None where the file does not exist.

    Raises:
        CheckpointError: if the file is damaged, or that of another run.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            # torch does not compare the checksums of tensors
            damaged = file.testzip()
    except (OSError, *_DAMAGED) as error:
        raise CheckpointError(
            f"{path} cannot be read as the state of a training run: {reason_of(error)}; "
            f"{_DAMAGED_REMEDY}"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged, its part {damaged} does not fit its checksum; {_DAMAGED_REMEDY}"
        )
    try:
        state: dict[str, Any] = read_any(path)
    except DinoneckError as error:
        raise CheckpointError(f"{error}; {_DAMAGED_REMEDY}") from error
    run_of_state = state.get("run") if isinstance(state, dict) else None
    if run_of_state is None:
        raise CheckpointError(
            f"{path} holds other things than the state of a training run; {_REMEDY}"
        )
    check_same(run_of_state, run, str(path))
    return state


def _compared(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a run's identity that are compared with those of another one."""
    compared = {}
    for name, value in values.items():
        if name == RUNTIME:
            continue
        is_new = name in NOT_IN_OLD_RUNS and name not in others
        replacement = _REPLACED.get(name)
        is_replaced = replacement in values and replacement in others
        if is_new or is_replaced:
            continue
        if name == BACKBONE_RECORD:
            # neither what is known of a licence nor what computes the tokens makes another run
            value = {key: x for key, x in value.items() if key not in ("license", "runtime")}
        compared[name] = value
    return compared


def check_same(earlier: Mapping[str, Any], present: Mapping[str, Any], where: str) -> None:
    """Check that a run continues itself.

    Args:
        earlier: the identity of the run whose state is there.
        present: the identity of the run that would continue it.
        where: the folder or the file with the state, for messages.

    Raises:
        CheckpointError: naming the first difference.
    """
    earlier = _compared(TRAININGS.without_void_keys(earlier), present)
    earlier.pop("predict_with", None)  # of with_ridge, which 0.3 compared
    present = _compared(present, earlier)
    values_that_differ = difference(earlier, present, "run")
    if values_that_differ:
        raise CheckpointError(
            f"{where} is of another run, its value / yours: {values_that_differ}; {_REMEDY}",
            step="pairing",
        )
