"""train_detector: freeze phases, AMP, accumulation, EMA, several processes, and a state to resume from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from dinoneck.atomic import write_text
from dinoneck.data.box_views import collate_boxes, to_original
from dinoneck.data.boxes import BoxImages
from dinoneck.detection.building import build_detector, check_config, open_images
from dinoneck.detection.detector import MOST_BOXES, Detector, best_of
from dinoneck.detection.evaluation import gather_predictions, score_boxes
from dinoneck.devices import local_device, send
from dinoneck.errors import ConfigError, DataError
from dinoneck.progress import progress
from dinoneck.registry import import_modules
from dinoneck.training.config import TrainConfig
from dinoneck.training.freeze import FreezeSchedule
from dinoneck.training.loggers import loggers_of
from dinoneck.training.optim import EMA, cosine_with_warmup
from dinoneck.training.processes import Processes, joined, seed_step
from dinoneck.training.run import REPORT, UNFINISHED, check_folder
from dinoneck.training.state import check_same, load_state, save_state
from dinoneck.version import versions

DETECTOR, LOG, STATE = "detector.safetensors", "log.jsonl", "state"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_logger = logging.getLogger(__name__)


def train_detector(
    config: TrainConfig, out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = True
) -> dict[str, Any]:
    """Train a detector and write it with its scores.

    The folder gets ``detector.safetensors`` (the weights of the best held-out AP, for :meth:`Detector.load`),
    ``log.jsonl`` (a line per epoch) and, last, ``report.json``. Until then ``unfinished`` holds the state and the best
    detector, and the results of an earlier run stay. The same call after a kill continues the run, and writes what it
    would have written. Under ``torchrun`` each process computes its share of every batch.

    Args:
        config: ``data.boxes`` and ``data.val_boxes`` name COCO files, ``detector`` the detector, ``head`` its neck.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``.
        resume: continue an interrupted run of the same config.

    Returns:
        what ``report.json`` holds: ``best`` (the log's best row: ``AP``, ``AP50``, ``AP75``, ``per_class``, ``epoch``),
        ``untrained`` (the scores of the first weights), ``images``, ``skipped`` boxes, ``parameters``, ``minutes``,
        ``config`` and ``versions``.

    Raises:
        ConfigError: if values contradict each other or have no effect on detectors.
        DataError: if the data cannot be used, the loss is not finite, ``out`` holds results and ``overwrite`` is off,
            or it holds other files than those of a run.
        CheckpointError: if ``out`` holds the state of another run; it names the values that differ.
    """
    import_modules(config.imports)
    check_config(config)
    folder = Path(out)
    check_folder(folder, overwrite=overwrite)
    device = local_device(config.device)
    processes = joined(device)
    train, val = open_images(config)
    run = _Run(config, folder, build_detector(config, train.classes), train, val, processes, device)
    best = run.run(resume=resume)
    report = {
        "best": best,
        "untrained": run.untrained,
        "images": {"train": len(train), "val": len(val)},
        "skipped": {"train": dict(train.skipped), "val": dict(val.skipped)},
        "parameters": sum(parameter.numel() for parameter in run.detector.parameters()),
        "minutes": round(run.minutes, 2),
        "config": config.to_dict(),
        "versions": versions(),
    }
    if processes.writes:
        _replace(folder, run.history, report, overwrite=overwrite)
    return report


def _replace(folder: Path, history: list[dict[str, Any]], report: dict[str, Any], *, overwrite: bool) -> None:
    """Replace the results of an earlier run; its report goes first and the new one comes last."""
    check_folder(folder, overwrite=overwrite)  # another run may have ended here meanwhile
    new = folder / UNFINISHED
    write_text(new / LOG, "".join(json.dumps(row) + "\n" for row in history))
    write_text(new / REPORT, json.dumps(report, indent=2) + "\n")
    (folder / REPORT).unlink(missing_ok=True)
    for name in (DETECTOR, LOG, REPORT):
        if (new / name).exists():  # a run that was ended here has moved its detector
            (new / name).replace(folder / name)
    shutil.rmtree(new)


class _Run:
    """A training run.

    Args:
        config: the run.
        folder: of the results.
        detector: with its first weights.
        train: training images.
        val: held-out images.
        processes: of which each computes its share of the batches.
        device: of the model.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        detector: Detector,
        train: BoxImages,
        val: BoxImages,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.config, self.optim, self.folder = config, config.optim, folder
        self.detector, self.train, self.val = detector.to(device), train, val
        self.processes, self.device = processes, device
        if self.optim.batch_size % processes.count:
            raise ConfigError(
                f"batch_size is {self.optim.batch_size} for {processes.count} processes; expected a multiple"
            )
        self.per_epoch = math.ceil(len(train) / (self.optim.batch_size * config.detector.accumulate))
        self.schedule = FreezeSchedule(config.detector.plan, backbone_lr=self.optim.backbone_lr)
        self.schedule.apply(detector, 0)
        groups = self.schedule.param_groups(
            detector,
            lr=self.optim.lr,
            weight_decay=self.optim.weight_decay,
            layer_decay=config.detector.layer_decay,
        )
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
        steps = self.per_epoch * self.optim.epochs
        self.rates = cosine_with_warmup(self.optimizer, steps, self.optim.warmup, self.optim.min_lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.optim.amp == "fp16")
        self.ema = EMA(detector, self.optim.ema_decay) if self.optim.ema_decay else None
        self.epoch, self.best, self.minutes = 0, -1.0, 0.0
        self.history: list[dict[str, Any]] = []
        self.untrained: dict[str, Any] = {}
        self.loggers = loggers_of(config.logging, folder) if processes.writes else []
        self.model: nn.Module = detector
        if processes.count > 1:
            # denoising queries are not used in a batch without boxes
            places = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(detector, device_ids=places, find_unused_parameters=True)

    def run(self, *, resume: bool) -> dict[str, Any]:
        """Train to the last epoch; return the best row of the log."""
        if resume and (self.folder / UNFINISHED / STATE).exists():
            self._resume()
        if not self.untrained:
            self.untrained = self._scores(self.detector)
        while self.epoch < self.optim.epochs:
            begin = time.monotonic()
            row: dict[str, Any] = {"epoch": self.epoch, "stage": self.schedule.stage(self.epoch), **self._one_epoch()}
            self.minutes += (time.monotonic() - begin) / 60
            last = self.epoch + 1 == self.optim.epochs
            if last or (self.epoch + 1) % self.config.detector.eval_every == 0:
                row |= self._validate()
            self.history.append(row)
            self.epoch += 1
            if self.processes.writes:
                self._save()
                values = {key: value for key, value in row.items() if key != "per_class"}
                for log in self.loggers:
                    log(row["epoch"], {key: x for key, x in values.items() if isinstance(x, float) and key != "epoch"})
                _logger.info("%s", ", ".join(f"{key} {_short(value)}" for key, value in values.items()))
        return max((row for row in self.history if "AP" in row), key=lambda row: row["AP"])

    def _one_epoch(self) -> dict[str, float]:
        """Train for one epoch; return the means of the losses and the learning rate of the head."""
        seed_step(self.optim.seed, self.epoch, self.processes.rank)
        self.model, self.optimizer = self.schedule.start_epoch(self.epoch, self.model, self.optimizer)
        self.detector.note_trained()
        self.model.train()
        rate = self.optimizer.param_groups[-1]["lr"]
        sums: dict[str, Tensor] = {}
        batches, group = list(self._batches()), self.config.detector.accumulate
        bar = progress(batches, desc=f"epoch {self.epoch}", unit="step", hidden=not self.processes.writes)
        for number, (images, targets) in enumerate(self._read(bar)):
            place = number % group
            count = min(group, len(batches) - number + place)  # the last step may have fewer
            last = place + 1 == count
            for name, value in self._backward(images, targets, count, last=last).items():
                sums[name] = sums.get(name, value.new_zeros(())) + value
            if last:
                self._step()
        table = torch.stack([sums[name] for name in sorted(sums)]) / (len(batches) * self.processes.count)
        if self.processes.count > 1:
            torch.distributed.all_reduce(table)
        means = dict(zip(sorted(sums), table.tolist(), strict=True))
        return {"loss": sum(means.values()), **means, "lr": rate}

    def _batches(self) -> Iterator[list[int]]:
        """This process' batches of one epoch; the last is filled up from the start of the order."""
        order = np.random.default_rng([self.optim.seed, self.epoch]).permutation(len(self.train)).tolist()
        whole = self.optim.batch_size
        order += [order[i % len(self.train)] for i in range(-len(order) % whole)]
        for begin in range(0, len(order), whole):
            yield order[begin : begin + whole][self.processes.rank :: self.processes.count]

    def _read(self, batches: Any) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        workers = self.config.detector.workers
        loader = DataLoader(self.train, batch_sampler=batches, num_workers=workers, collate_fn=collate_boxes)
        for images, targets in loader:
            tensors = [x for target in targets for x in target.values() if isinstance(x, Tensor)]
            moved = iter(send([images, *tensors], self.device))
            yield next(moved), [{k: next(moved) if isinstance(x, Tensor) else x for k, x in t.items()} for t in targets]

    def _backward(self, images: Tensor, targets: list[dict[str, Any]], count: int, *, last: bool) -> dict[str, Tensor]:
        """Add one batch's gradients, of ``count`` in a step; processes exchange them with the last of these."""
        waits = not last and isinstance(self.model, DistributedDataParallel)
        dtype = _DTYPES.get(str(self.optim.amp))
        with self.model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext():
                losses: dict[str, Tensor] = self.model(images, targets)
            total = torch.stack([value.float() for value in losses.values()]).sum()
            if not bool(total.isfinite()):
                values = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
                raise DataError(
                    f"the loss is not finite in epoch {self.epoch} ({values}), images "
                    f"{[target['image_id'] for target in targets]}; try a lower --lr, --clip-norm 0.1, or --amp bf16"
                )
            self.scaler.scale(total / count).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach().float() for name, value in losses.items()}

    def _step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.optim.clip_norm is not None:
            nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.requires_grad), self.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.rates.step()
        if self.ema is not None:
            self.ema.update(self.detector)

    def _validate(self) -> dict[str, Any]:
        detector = self._averaged()
        # batch statistics differ between processes; all evaluate those of the detector that is saved
        self.processes.same(detector.buffers())
        scores = self._scores(detector)
        if scores["AP"] > self.best:
            self.best = scores["AP"]
            if self.processes.writes:
                (self.folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
                metrics = {name: scores[name] for name in ("AP", "AP50", "AP75")}
                detector.tuned = set(self.detector.tuned)
                detector.save(
                    self.folder / UNFINISHED / DETECTOR, training={"epochs": self.epoch + 1, "metrics": metrics}
                )
        return scores

    @torch.no_grad()
    def _scores(self, detector: Detector) -> dict[str, Any]:
        """Compare the held-out boxes; each process predicts its share."""
        detector.eval()
        own = range(self.processes.rank, len(self.val), self.processes.count)
        workers, size = self.config.detector.workers, max(1, self.optim.batch_size // self.processes.count)
        loader = DataLoader(Subset(self.val, own), batch_size=size, num_workers=workers, collate_fn=collate_boxes)
        found: dict[int, dict[str, Tensor]] = {}
        for images, targets in loader:
            for detections, target in zip(detector(images.to(self.device)), targets, strict=True):
                best = best_of(detections, MOST_BOXES)
                found[target["image_id"]] = {
                    **best,
                    "boxes": to_original(best["boxes"], images.shape[-2:], target["size"]),
                }
        return score_boxes(self.val, gather_predictions(found) if self.processes.count > 1 else found)

    def _averaged(self) -> Detector:
        return self.detector if self.ema is None else self.ema.module  # type: ignore[return-value]

    def _save(self) -> None:
        state = {
            "run": json.dumps(self._description()),
            "epoch": self.epoch,
            "best": self.best,
            "history": json.dumps(self.history),
            "minutes": self.minutes,
            "untrained": json.dumps(self.untrained),
            "tuned": sorted(self.detector.tuned),
            "model": dict(self.detector.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }
        (self.folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        save_state(self.folder / UNFINISHED / STATE, state)

    def _resume(self) -> None:
        """Take over the state in the folder; the random numbers of every epoch follow from the seed."""
        path = self.folder / UNFINISHED / STATE
        state = load_state(path)
        check_same(json.loads(state["run"]), self._description(), str(path))
        self.epoch, self.best, self.history = state["epoch"], state["best"], json.loads(state["history"])
        self.minutes, self.untrained = state["minutes"], json.loads(state["untrained"])
        self.detector.tuned = set(state["tuned"])
        self.model, _ = self.schedule.start_epoch(max(self.epoch - 1, 0), self.model, self.optimizer)
        self.detector.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.update(self.detector)  # weights that were unfrozen join
            self.ema.load_state_dict(state["ema"])

    def _description(self) -> dict[str, Any]:
        """What must be equal in a run and its continuation."""
        values = self.config.to_dict()
        for key in ("logging", "imports", "device"):
            del values[key]
        for key in ("workers", "eval_every"):
            del values["detector"][key]
        for name, images in (("train", self.train), ("val", self.val)):
            boxes = json.dumps(images.ground_truth()).encode()
            values[name] = {"ids": images.ids, "boxes_sha256": hashlib.sha256(boxes).hexdigest()}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
