"""Extraction on Ray Data: the same units, spread over the machines of a cluster that share a file system."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import DataError, DinoneckError, StoreError, missing_extra
from dinoneck.progress import progress
from dinoneck.store.extraction import Extracted
from dinoneck.store.images import PathLike

if TYPE_CHECKING:
    from dinoneck.store.feature_store import FeatureStore

UNITS_PER_CALL = 4


def extract_on_ray(
    store: FeatureStore,
    paths: PathLike | Sequence[PathLike],
    root: PathLike | None = None,
    *,
    batch_size: int | None = None,
    skip_unusable: bool = False,
    workers: int | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
) -> Extracted:
    """Do what :meth:`dinoneck.FeatureStore.extract` does, with actors of Ray Data, each a writer of its own.

    Store and images must be on a file system that all machines see under one path. Each actor gets the backbone once.

    Args:
        store: made by :meth:`dinoneck.FeatureStore.create`.
        paths: images and folders.
        root: folder that ids are relative to.
        batch_size: views per backbone pass; None = up to 32, see :meth:`dinoneck.FeatureStore.extract`.
        skip_unusable: leave out images that cannot be decoded, and list them.
        workers: threads per actor that decode images; None = one per core, at most 8.
        actors: how many; None = one per GPU of the cluster, or per two CPUs where there is none.
        gpus_per_actor: None = 1 where the cluster has GPUs.

    Raises:
        ImportError: naming the extra, if Ray is not installed.
        DataError: like ``extract``.
        StoreError: as there, or if an actor fails.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("ray", "ray") from None
    units = store._plan(paths, root, batch_size, skip_unusable)
    _start(ray)
    count, gpus = _actors(ray.cluster_resources(), actors, gpus_per_actor)  # type: ignore[no-untyped-call]
    rows = [{"unit": json.dumps([(image_id, str(path)) for image_id, path in unit])} for unit in units]
    settings = {"batch_size": batch_size, "skip_unusable": skip_unusable, "workers": workers}
    backbone = copy.deepcopy(store._backbone).cpu()  # type: ignore[union-attr]
    stream = ray.data.from_items(rows).map_batches(
        _Actor,
        fn_constructor_args=(store.path, backbone, settings),
        batch_size=UNITS_PER_CALL,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_gpus=gpus or None,
    )
    total, count = Extracted(), sum(map(len, units))
    try:
        with progress(total=count, desc="images", unit="image") as bar:
            for row in stream.iter_rows():
                bar.update(_add(total, json.loads(row["done"])))
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise StoreError(f"an actor failed ({reason}); what was finished is kept, run again") from error
    finally:
        store.refresh()
    return total


def _start(ray: Any) -> None:
    """Start Ray unless the caller has; its own logs and progress bars are left out."""
    if not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _add(total: Extracted, done: dict[str, Any]) -> int:
    """Add the result of an actor; return its number of images."""
    if done["problem"]:
        raise DataError(done["problem"])
    total.written += done["written"]
    total.present += done["present"]
    total.unusable |= done["unusable"]
    return int(done["images"])


def _actors(resources: dict[str, float], actors: int | None, gpus_per_actor: float | None) -> tuple[int, float]:
    """How many actors, and the GPUs of each."""
    gpus = min(1.0, resources.get("GPU", 0.0)) if gpus_per_actor is None else gpus_per_actor
    return actors or max(1, int(resources.get("GPU", 0) if gpus else resources.get("CPU", 1) // 2)), gpus


class _Actor:
    """Holds the backbone and the store in one process of the cluster."""

    def __init__(self, path: str, backbone: Backbone, settings: dict[str, Any]) -> None:
        from dinoneck.store.feature_store import FeatureStore

        self.store = FeatureStore.open(path)
        self.store._backbone = backbone.to("cuda") if torch.cuda.is_available() else backbone
        self.settings = settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        units = [[(image_id, Path(path)) for image_id, path in json.loads(str(text))] for text in batch["unit"]]
        try:
            done = self.store._run(units, **self.settings)
        except DinoneckError as error:
            return {"done": [json.dumps({"problem": str(error)})]}
        counts = {"problem": "", "images": sum(map(len, units)), "written": done.written, "present": done.present}
        return {"done": [json.dumps({**counts, "unusable": done.unusable})]}
