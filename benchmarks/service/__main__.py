"""``python -m benchmarks.service``: the service under load, with a tiny model and one of real size.

Every setting is a server process of its own; clients are threads of this process, on the same machine. First a mixed
run: a thousand requests, one in ten bad in any of some thirty ways; answers are compared with those of a lone predictor
bit for bit. Then latency and throughput at 1, 8 and 16 clients.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.service.pictures import good
from benchmarks.service.server import Service, running
from benchmarks.service.tables import OUT
from benchmarks.service.traffic import Request, bad_requests, good_requests, mixed, run
from benchmarks.timing import machine
from dinoneck import PatchMeanHead, Predictor, Task, load_backbone, save_head

MODELS = {"dinoneck_tiny": (64, 64), "vit_small_patch16_dinov3.lvd1689m": (224, 224)}
CLIENTS = (1, 8, 16)
MAX_UPLOAD_BYTES, MAX_IMAGES = 2_000_000, 4
LIMITS = ("--max-upload-mb", str(MAX_UPLOAD_BYTES / 1e6), "--max-images", str(MAX_IMAGES), "--max-pixels", "4000000")
PATIENT = ("--timeout", "600", "--body-timeout", "600")


def saved_head(folder: Path, name: str, size: tuple[int, int]) -> Path:
    """Save an untrained head over a random backbone: the time does not depend on the weights."""
    torch.manual_seed(0)
    backbone = load_backbone(name, pretrained=False, seed=0)
    head = PatchMeanHead(backbone.embed_dim, [Task("mass", unit="g", activation="softplus")])
    path = folder / f"{name}.safetensors"
    save_head(path, head, backbone=backbone, preprocess=backbone.preprocess.changed(size=size))
    return path


def lone_values(head: Path, pictures: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """Return what a predictor in this process says of each picture, read from a file, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predictor, found = Predictor(head), {}
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
            found[name] = predictor(folder / name)[0]
        return found
    finally:
        torch.set_num_threads(threads)


def mixed_run(service: Service, good_ones: list[Request], count: int, clients: int) -> dict[str, Any]:
    """A run with one bad request in ten, and what became of it."""
    wrong = bad_requests(MAX_UPLOAD_BYTES, MAX_IMAGES)
    before = service.metric("process_resident_memory_bytes")
    outcome = run(service, mixed(good_ones, wrong, count, 0.1, seed=0), clients)
    half = len(outcome.resident_bytes) // 2
    return {
        "requests": count,
        "clients": clients,
        "kinds_of_bad": len(wrong),
        "answered": len(outcome.seconds),
        "refused": outcome.refused,
        "wrong": outcome.wrong[:20],
        "failures_inside": int('status="500"' in service.get("/metrics").body.decode()),
        "alive": service.process.poll() is None,
        "seconds": outcome.wall_s,
        "resident_before_mb": before / 1e6,
        "resident_first_half_mb": max(outcome.resident_bytes[:half]) / 1e6,
        "resident_second_half_mb": max(outcome.resident_bytes[half:]) / 1e6,
        "resident_peak_mb": service.metric("process_resident_memory_peak_bytes") / 1e6,
    }


def paced_run(service: Service, requests: list[Request], count: int, clients: int) -> dict[str, Any]:
    """Good requests only: how long they take, how many a second."""
    outcome = run(service, mixed(requests, [], count, 0.0, seed=clients), clients, every=10**9)
    cuts = statistics.quantiles(outcome.seconds, n=20, method="inclusive")
    return {
        "clients": clients,
        "requests": count,
        "p50_ms": 1e3 * statistics.median(outcome.seconds),
        "p95_ms": 1e3 * cuts[18],
        "per_s": len(outcome.seconds) / outcome.wall_s,
        "wrong": outcome.wrong[:20],
    }


def measured(name: str, folder: Path, *, mixed_count: int, paced_count: int, batch: int) -> dict[str, Any]:
    """All runs of one model, with the photos' passes alone or gathered."""
    head = saved_head(folder, name, MODELS[name])
    pictures = good(640, 480)
    alone = lone_values(head, pictures, folder)
    options = ("--threads", "1", "--concurrency", str(max(4, batch)), "--queue", "64", "--batch", str(batch))
    row: dict[str, Any] = {"model": name, "size": MODELS[name], "batch": batch}
    with running(head, *LIMITS, *PATIENT, *options) as service:
        if mixed_count:
            row["mixed"] = mixed_run(service, good_requests(pictures, alone), mixed_count, clients=8)
        photo = {"photo.jpg": pictures["photo.jpg"]}
        row["paced"] = [
            paced_run(service, good_requests(photo, {}), paced_count * min(clients, 4), clients) for clients in CLIENTS
        ]
        row["peak_mb"] = service.metric("process_resident_memory_peak_bytes") / 1e6
        row["exit_status"] = service.stop()
    return row


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--requests", type=int, default=1000, help="requests of a mixed run")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, batch, mixed_count, paced_count in (
            ("dinoneck_tiny", 1, options.requests, 100),
            ("dinoneck_tiny", 8, 0, 100),
            ("vit_small_patch16_dinov3.lvd1689m", 1, options.requests, 15),
            ("vit_small_patch16_dinov3.lvd1689m", 8, 0, 15),
        ):
            rows.append(measured(name, Path(folder), mixed_count=mixed_count, paced_count=paced_count, batch=batch))
            print(json.dumps(rows[-1]), flush=True)
    told: dict[str, Any] = {
        "rows": rows,
        "photo": "640x480 JPEG",
        "processors": os.cpu_count(),
        "load_average": os.getloadavg(),
        "machine": machine(),
    }
    told["machine"]["versions"] |= {name: metadata.version(name) for name in ("fastapi", "uvicorn", "pillow")}
    options.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
