"""``python -m benchmarks.service``: the service under load, with a tiny head, one of real size, and a detector.

Every setting is a server process of its own; clients are threads of this process, on the same machine. The parts:
``mixed``, a thousand requests, one in ten bad in any of some thirty ways; predictions are compared bit for bit with
those of the same model in this process. ``paced``, latency and throughput at 1, 8 and 16 clients. ``slow``, ``/health``
while other clients hold connections with half a head or half a body.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.service.pictures import good
from benchmarks.service.server import Service, running
from benchmarks.service.tables import OUT
from benchmarks.service.traffic import Request, bad_requests, good_requests, mixed, run, slow_clients
from benchmarks.timing import machine
from dinoneck import HeadCheckpoint, PatchMeanHead, Predictor, STAPyramid, Task, load_backbone, save_head
from dinoneck.detection import DetectionHead, Detector

DETECTOR = "fcos"
SLOW_CLIENTS, BODY_TIMEOUT_S = 100, 10
VIT = "vit_small_patch16_dinov3.lvd1689m"
MODELS = {"dinoneck_tiny": (64, 64), VIT: (224, 224), DETECTOR: (128, 160)}
# model, images in a forward pass at most, requests at one client
PACED = (("dinoneck_tiny", 1, 100), ("dinoneck_tiny", 8, 100), (VIT, 1, 15), (VIT, 8, 15), (DETECTOR, 1, 50))
CLIENTS = (1, 8, 16)
PARTS = ("mixed", "paced", "slow")
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


def saved_detector(folder: Path, size: tuple[int, int]) -> Path:
    """Save an untrained detector that finds many boxes in every image."""
    torch.manual_seed(0)
    head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
    head.model.head.classification_head.cls_logits.bias.data.fill_(0.0)  # type: ignore[union-attr]
    Detector(head, load_backbone("dinoneck_tiny"), size).save(folder / "detector.safetensors")
    return folder / "detector.safetensors"


def lone_entries(model: Path, pictures: dict[str, bytes], folder: Path) -> dict[str, dict[str, Any]]:
    """Return each picture's entry in a response, predicted in this process from a file, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        predict = _boxes(Detector.load(model)) if _is_detector(model) else _values(Predictor(model))
        found = {}
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
            found[name] = predict(folder / name)
        return found
    finally:
        torch.set_num_threads(threads)


def _is_detector(model: Path) -> bool:
    return HeadCheckpoint.load(model).head_type == "detector"


def _values(predictor: Predictor) -> Callable[[Path], dict[str, Any]]:
    return lambda file: {"values": predictor(file)[0]}


def _boxes(detector: Detector) -> Callable[[Path], dict[str, Any]]:
    def predict(file: Path) -> dict[str, Any]:
        [found] = detector.predict(file)
        rows = zip(found["names"], found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return {"boxes": [{"label": name, "score": score, "box": box} for name, score, box in rows]}

    return predict


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


def mixed_part(folder: Path, count: int) -> list[dict[str, Any]]:
    """The mixed run of every model."""
    rows = []
    for name, size in MODELS.items():
        model, pictures = saved(folder, name), good(640, 480)
        requests = good_requests(pictures, lone_entries(model, pictures, folder))
        with running(model, *LIMITS, *PATIENT, *options_of(batch=1)) as service:
            row = {"model": name, "size": size, **mixed_run(service, requests, count, clients=8)}
            rows.append({**row, "exit_status": service.stop()})
    return rows


def paced_part(folder: Path) -> list[dict[str, Any]]:
    """Latency and throughput of every model, with one image in a forward pass, and of heads with up to eight."""
    rows = []
    picture = {"image.jpg": good(640, 480)["image.jpg"]}
    for name, batch, count in PACED:
        with running(saved(folder, name), *LIMITS, *PATIENT, *options_of(batch)) as service:
            runs = [
                paced_run(service, good_requests(picture, {}), count * min(clients, 4), clients) for clients in CLIENTS
            ]
            peak = service.metric("process_resident_memory_peak_bytes") / 1e6
            row = {"model": name, "size": MODELS[name], "batch": batch, "paced": runs, "peak_mb": peak}
            rows.append({**row, "exit_status": service.stop()})
    return rows


def saved(folder: Path, name: str) -> Path:
    """Save the model of this name."""
    return saved_detector(folder, MODELS[name]) if name == DETECTOR else saved_head(folder, name, MODELS[name])


def options_of(batch: int) -> tuple[str, ...]:
    """The options of the service that all measurements share."""
    return ("--threads", "1", "--concurrency", str(max(4, batch)), "--queue", "64", "--batch", str(batch))


def slow_run(folder: Path) -> dict[str, Any]:
    """Ask for ``/health`` while slow clients hold connections, until they are closed and the service is ready again."""
    head, seconds, failed = saved_head(folder, "dinoneck_tiny", MODELS["dinoneck_tiny"]), [], 0
    with running(head, "--body-timeout", str(BODY_TIMEOUT_S)) as service, slow_clients(service, SLOW_CLIENTS):
        start, ready = time.perf_counter(), 0
        while service.get("/ready").status == 200:  # until the slow bodies hold every slot
            time.sleep(0.01)
        while ready != 200:
            began = time.perf_counter()
            failed += service.get("/health").status != 200
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)
            ready = service.get("/ready").status
        ready_after = time.perf_counter() - start
        return {
            "slow_clients": 2 * SLOW_CLIENTS,
            "body_timeout_s": BODY_TIMEOUT_S,
            "asked": len(seconds),
            "failed": failed,
            "p50_ms": 1e3 * statistics.median(seconds),
            "max_ms": 1e3 * max(seconds),
            "ready_after_s": ready_after,
            "exit_status": service.stop(),
        }


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the others stay as they are in OUT")
    parser.add_argument("--requests", type=int, default=1000, help="requests of a mixed run")
    options = parser.parse_args()
    stored: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for part in options.parts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "mixed":
                rows = mixed_part(folder, options.requests)
            else:
                rows = paced_part(folder) if part == "paced" else [slow_run(folder)]
        here = machine()
        here["versions"] |= {name: metadata.version(name) for name in ("fastapi", "uvicorn", "pillow")}
        stored[part] = {"rows": rows, "machine": here, "load_average": os.getloadavg()}
        print(json.dumps({part: stored[part]}), flush=True)
    options.out.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
