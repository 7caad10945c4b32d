"""Counters of the service in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, float("inf"))


class Metrics:
    """Requests by route and status, their durations, and predicted images. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds, self._images = 0.0, 0

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a completed request."""
        with self._lock:
            self._requests[route, status] += 1
            if route == "/predict":
                self._seconds += seconds
                self._buckets[next(bound for bound in BUCKETS_S if seconds <= bound)] += 1

    def images(self, count: int) -> None:
        """Count predicted images."""
        with self._lock:
            self._images += count

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """Return all counters and the given gauges (name -> description, value)."""
        with self._lock:
            lines = _header("dinoneck_requests_total", "counter", "Requests by route and status.")
            lines += [
                f'dinoneck_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self._requests.items())
            ]
            lines += _header("dinoneck_images_total", "counter", "Predicted images.")
            lines.append(f"dinoneck_images_total {self._images}")
            lines += _header("dinoneck_predict_seconds", "histogram", "Seconds from the head of /predict to its end.")
            below = 0
            for bound in BUCKETS_S:
                below += self._buckets[bound]
                label = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'dinoneck_predict_seconds_bucket{{le="{label}"}} {below}')
            lines += [f"dinoneck_predict_seconds_sum {self._seconds:.6f}", f"dinoneck_predict_seconds_count {below}"]
        for name, (description, value) in gauges.items():
            lines += [*_header(name, "gauge", description), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def memory_bytes() -> tuple[int, int]:
    """Return the resident memory of this process, now and at its peak; zeros where there is no ``/proc``."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(status["VmRSS"].split()[0]) * 1024, int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0, 0


def _header(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]
