"""Extraction on Ray Data: the same units, spread over the machines of a cluster that share a file system."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import DataError, DinoneckError, StoreError, missing_extra
from dinoneck.progress import progress
from dinoneck.store import extraction
from dinoneck.store.description import Description
from dinoneck.store.extraction import Extracted, Settings, Unit
from dinoneck.store.shards import Writer

UNITS_PER_CALL = 8


def run_units(
    units: Sequence[Unit],
    description: Description,
    writer: Writer,
    backbone: Backbone,
    channel_scale: Tensor | None,
    settings: Settings,
) -> Extracted:
    """Do what :func:`dinoneck.store.extraction.run_units` does, with actors of Ray Data, each a writer of its own.

    There is an actor per GPU of the cluster, or per two CPUs where there is none. Each gets the backbone once.

    Raises:
        ImportError: naming the extra, if Ray is not installed.
        DataError: for an image that cannot be used.
        StoreError: if an actor fails; what was finished is kept.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("ray", "ray") from None
    done = Extracted()
    if not units:
        return done
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = int(resources.get("GPU", 0))
    rows = ([[(image_id, str(path)) for image_id, path in unit.items], sorted(unit.stored)] for unit in units)
    stream = ray.data.from_items([{"unit": json.dumps(row)} for row in rows]).map_batches(
        _Actor,
        fn_constructor_args=(copy.deepcopy(backbone).cpu(), description, writer, channel_scale, settings),
        batch_size=UNITS_PER_CALL,
        compute=ray.data.ActorPoolStrategy(size=gpus or max(1, int(resources.get("CPU", 1)) // 2)),
        num_gpus=1 if gpus else None,
    )
    try:
        with progress(total=sum(len(unit.items) for unit in units), desc="images", unit="image") as bar:
            for row in stream.iter_rows():
                part = json.loads(row["done"])
                if part["problem"]:
                    raise DataError(part["problem"])
                done.written += part["written"]
                done.unusable |= part["unusable"]
                bar.update(part["images"])
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise StoreError(f"an actor failed ({reason}); what was finished is kept, run again") from error
    return done


class _Actor:
    """Holds the backbone in one process of the cluster."""

    def __init__(self, backbone: Backbone, description: Description, writer: Writer, *rest: Any) -> None:
        backbone = backbone.to("cuda") if torch.cuda.is_available() else backbone
        self.rest = description, writer, backbone, *rest

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        parts = [json.loads(str(text)) for text in batch["unit"]]
        units = [Unit([(i, Path(path)) for i, path in items], frozenset(stored)) for items, stored in parts]
        try:
            done = extraction.run_units(units, *self.rest)
        except DinoneckError as error:
            return {"done": [json.dumps({"problem": str(error)})]}
        images = sum(len(unit.items) for unit in units)
        row = {"problem": "", "images": images, "written": done.written, "unusable": done.unusable}
        return {"done": [json.dumps(row)]}
