"""The training run: freeze phases, AMP, accumulation, EMA, several processes, and a state to go on from."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dinoneck.atomic import write_text
from dinoneck.data import BoxPhotos, collate_boxes
from dinoneck.errors import ConfigError, DataError
from dinoneck.training import EMA, FreezeSchedule, cosine_with_warmup
from dinoneck.training.processes import Processes, seed_step
from dinoneck.training.state import load_state, save_state
from examples.detection.baseline_groups import convolutional_groups
from examples.detection.detectors import Detector, TransformersDetector
from examples.detection.evaluation import evaluate
from examples.detection.testing import predict

LOG, STATE, BEST = "log.jsonl", "last.safetensors", "best"
DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# what may change between a run and its continuation
PLACES = {"out", "weights", "train", "val", "photos", "val_photos"}
FREE = PLACES | {"resume", "device", "workers", "eval_every", "test_only"}
_logger = logging.getLogger("examples.detection")


class Run:
    """A training run.

    Args:
        options: of the command line.
        detector: with its first weights.
        train: photos to learn from.
        val: held-out photos.
        processes: of which each computes its own batches.
        device: of the model.

    Raises:
        ConfigError: if a schedule does not fit the model, or nothing is trainable.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        detector: Detector,
        train: BoxPhotos,
        val: BoxPhotos,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.options, self.detector, self.train, self.val = options, detector.to(device), train, val
        self.processes, self.device = processes, device
        if options.checkpointing and detector.backbone is not None:
            detector.backbone.set_grad_checkpointing()
        rate, is_share = options.backbone_lr
        self.schedule = FreezeSchedule(
            options.freeze or {0: "none"}, backbone_lr=rate * options.lr if is_share else rate
        )
        self.model: nn.Module = detector
        self.per_epoch = math.ceil(len(train) / (options.batch * processes.count * options.accumulate))
        if detector.backbone is not None:
            self.schedule.apply(detector, 0)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self._groups(), betas=(0.9, 0.999))
        self.rates = cosine_with_warmup(self.optimizer, self.per_epoch * options.epochs, options.warmup)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        if options.sync_bn and processes.count > 1:
            if device.type == "cpu":
                raise ConfigError("--sync-bn needs GPUs; leave it out, or take a neck with --neck-option norm=group")
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
        self.ema = EMA(detector, options.ema) if options.ema else None
        self.epoch, self.best = 0, -1.0
        self.history: list[dict[str, Any]] = []
        self.untrained: dict[str, Any] = {}
        self.minutes = 0.0  # of training, without tests
        if processes.count > 1:
            # denoising queries take no part in a batch without boxes
            places = [device.index] if device.type == "cuda" else None
            self.model = DistributedDataParallel(detector, device_ids=places, find_unused_parameters=True)

    def run(self) -> dict[str, Any]:
        """Train to the last epoch; return what the best detector reached."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        if self.options.resume:
            self._resume()
        elif (self.options.out / STATE).exists():
            raise ConfigError(f"{self.options.out} holds a run already; pass --resume, or another --out")
        if not self.untrained:
            self.untrained = self._tested(self.detector)
        while self.epoch < self.options.epochs:
            begin = time.monotonic()
            row = {"epoch": self.epoch, "stage": self.schedule.stage(self.epoch), **self._one_epoch()}
            self.minutes += (time.monotonic() - begin) / 60
            last = self.epoch + 1 == self.options.epochs
            if last or (self.epoch + 1) % self.options.eval_every == 0:
                row |= self._validate()
            self.history.append(row)
            self.epoch += 1
            self._save()
            if self.processes.writes:
                told = (f"{key} {_short(value)}" for key, value in row.items() if key != "per_class")
                _logger.info("%s", ", ".join(told))
        return max((row for row in self.history if "AP" in row), key=lambda row: row["AP"])

    def _one_epoch(self) -> dict[str, float]:
        """Train for one epoch; return the means of the loss components and the learning rate of the detector."""
        seed_step(self.options.seed, self.epoch, self.processes.rank)
        if self.detector.backbone is not None:
            self.model, self.optimizer = self.schedule.start_epoch(self.epoch, self.model, self.optimizer)
        self.model.train()
        rate = self.optimizer.param_groups[-1]["lr"]  # at the start of the epoch
        sums: dict[str, Tensor] = {}
        batches = list(self._batches())
        quiet = None if self.processes.writes else True  # None: a bar on terminals, none in logs
        show = tqdm(batches, mininterval=5.0, desc=f"epoch {self.epoch}", disable=quiet, leave=False)
        for number, (images, targets) in enumerate(self._read(show)):
            place = number % self.options.accumulate
            count = min(self.options.accumulate, len(batches) - number + place)  # the last step may have fewer
            steps = place + 1 == count
            for name, value in self._backward(images, targets, count, last=steps).items():
                sums[name] = sums.get(name, value.new_zeros(())) + value
            if steps:
                self._step()
        names = sorted(sums)
        table = torch.stack([sums[name] for name in names]) / (len(batches) * self.processes.count)
        if self.processes.count > 1:
            torch.distributed.all_reduce(table)
        means = dict(zip(names, table.tolist(), strict=True))
        return {"loss": sum(means.values()), **means, "lr": rate}

    def _batches(self) -> Iterator[list[int]]:
        """This process' batches of one epoch; the last are filled up from the start of the order."""
        order = np.random.default_rng([self.options.seed, self.epoch]).permutation(len(self.train)).tolist()
        whole = self.options.batch * self.processes.count
        order += [order[i % len(self.train)] for i in range(-len(order) % whole)]
        for begin in range(0, len(order) - whole + 1, whole):
            yield order[begin : begin + whole][self.processes.rank :: self.processes.count]

    def _read(self, batches: Any) -> Iterator[tuple[Tensor, list[dict[str, Any]]]]:
        loader = DataLoader(
            self.train,
            batch_sampler=batches,
            num_workers=self.options.workers,
            collate_fn=collate_boxes,
        )
        for images, targets in loader:
            yield images.to(self.device), [_moved(target, self.device) for target in targets]

    def _backward(self, images: Tensor, targets: list[dict[str, Any]], count: int, *, last: bool) -> dict[str, Tensor]:
        """Add one batch's gradients, of ``count`` in a step; processes exchange them with the last of these."""
        waits = not last and isinstance(self.model, DistributedDataParallel)
        dtype = DTYPES[self.options.amp]
        with self.model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext():
                parts: dict[str, Tensor] = self.model(images, targets)
            total = torch.stack([value.float() for value in parts.values()]).sum()
            if not bool(total.isfinite()):
                told = ", ".join(f"{name} {float(value.detach()):g}" for name, value in parts.items())
                raise DataError(
                    f"the loss is not finite in epoch {self.epoch} ({told}), photos "
                    f"{[target['image_id'] for target in targets]}; try a lower --lr, --clip 0.1, or --amp bf16"
                )
            self.scaler.scale(total / count).backward()
        return {name: value.detach().float() for name, value in parts.items()}

    def _step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.requires_grad), self.options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.rates.step()
        if self.ema is not None:
            self.ema.update(self.detector)

    def _validate(self) -> dict[str, Any]:
        if self.processes.count > 1:
            # batch statistics are each process' own; all are to test the detector that is saved
            for value in self._averaged().buffers():
                torch.distributed.broadcast(value, 0)
        found = self._tested(self._averaged())
        if found["AP"] > self.best:
            self.best = found["AP"]
            if self.processes.writes:
                self._averaged().save(self.options.out / BEST, metrics={"AP": found["AP"], "epoch": self.epoch})
        return found

    def _tested(self, detector: Detector) -> dict[str, Any]:
        reading = {"batch": self.options.batch, "workers": self.options.workers}
        return evaluate(predict(detector, self.val, self.processes, self.device, **reading), self.val)

    def _averaged(self) -> Detector:
        return self.detector if self.ema is None else self.ema.module  # type: ignore[return-value]

    def _groups(self) -> list[dict[str, Any]]:
        rates = {"lr": self.options.lr, "weight_decay": self.options.weight_decay}
        if self.detector.backbone is not None:
            return self.schedule.param_groups(self.detector, **rates, layer_decay=self.options.layer_decay)
        if not isinstance(self.detector, TransformersDetector):
            raise ConfigError(f"{self.detector.design.detector} has no backbone to train")
        own = self.schedule.backbone_lr
        return convolutional_groups(self.detector, self.detector.convolutions, backbone_lr=own, **rates)

    def _save(self) -> None:
        if not self.processes.writes:
            return
        state = {
            "told": self._told(),
            "epoch": self.epoch,
            "best": self.best,
            "history": json.dumps(self.history),
            "minutes": self.minutes,
            "untrained": json.dumps(self.untrained),
            "model": dict(self.detector.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }
        save_state(self.options.out / STATE, state)
        write_text(self.options.out / LOG, "".join(json.dumps(row) + "\n" for row in self.history))

    def _resume(self) -> None:
        """Take over the state in ``--out``; every epoch's random numbers follow from the seed and its number.

        Raises:
            CheckpointError: if it is damaged.
            ConfigError: if there is none, or it is of a run with other options.
        """
        path = self.options.out / STATE
        if not path.exists():
            raise ConfigError(f"{self.options.out} holds no run to go on with; leave --resume out")
        state = load_state(path)
        before, now = state["told"], self._told()
        differ = [key for key, value in now.items() if before.get(key) != value]
        if differ:
            told = ", ".join(f"{key} {before.get(key)} and now {now[key]}" for key in differ)
            raise ConfigError(f"{path} is of a run with other options: {told}; pass the same, or another --out")
        self.epoch, self.best, self.history = state["epoch"], state["best"], json.loads(state["history"])
        self.minutes = state["minutes"]
        self.untrained = json.loads(state["untrained"])
        if self.detector.backbone is not None:
            self.model, _ = self.schedule.start_epoch(max(self.epoch - 1, 0), self.model, self.optimizer)
        self.detector.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.update(self.detector)  # what was thawed joins
            self.ema.load_state_dict(state["ema"])

    def _told(self) -> dict[str, str]:
        told = {key: repr(value) for key, value in sorted(vars(self.options).items()) if key not in FREE}
        return {"photos to learn from": repr(len(self.train)), **told}


def _moved(target: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
